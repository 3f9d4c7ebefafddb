//! Authority slots: the two places in which a server keeps its authorities of one kind, and how they take turns.
//!
//! An authority is prepared in the free slot and published, so that everybody can learn to trust it; then activated, so
//! that it signs; then it is old, until the next one is prepared in its place. One state machine serves X.509, JWT and
//! WIT authorities: three would drift apart. It decides only; keys, bundle and journal are moved by whoever drives it,
//! journal first.

use crate::{Timestamp, activate_at, prepare_at, text::textual};
use std::{fmt, time::Duration};

/// A text that names nothing known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown name, expected one of {expected}")]
pub struct UnknownName {
    /// The names there are.
    pub expected: &'static str,
}

/// The kinds of authorities.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AuthorityKind {
    /// Signs X.509-SVIDs.
    X509,
    /// Signs JWT-SVIDs.
    Jwt,
    /// Signs WIT-SVIDs.
    Wit,
}

impl AuthorityKind {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::X509, Self::Jwt, Self::Wit];

    /// The name in lower case: `x509`, `jwt`, `wit`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::X509 => "x509",
            Self::Jwt => "jwt",
            Self::Wit => "wit",
        }
    }

    /// Parses the lower-case name.
    ///
    /// # Errors
    /// When it is another text.
    pub fn parse(text: &str) -> Result<Self, UnknownName> {
        let found = Self::ALL.into_iter().find(|kind| kind.as_str() == text);
        found.ok_or(UnknownName { expected: "x509, jwt, wit" })
    }

    /// The key manager's ID of the key in a slot, such as `x509-CA-A`.
    pub const fn key_id(self, slot: SlotId) -> &'static str {
        match (self, slot) {
            (Self::X509, SlotId::A) => "x509-CA-A",
            (Self::X509, SlotId::B) => "x509-CA-B",
            (Self::Jwt, SlotId::A) => "JWT-Signer-A",
            (Self::Jwt, SlotId::B) => "JWT-Signer-B",
            (Self::Wit, SlotId::A) => "WIT-Signer-A",
            (Self::Wit, SlotId::B) => "WIT-Signer-B",
        }
    }
}

impl fmt::Display for AuthorityKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

textual!(AuthorityKind, UnknownName);

/// One of the two slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SlotId {
    /// The first.
    A,
    /// The second.
    B,
}

impl SlotId {
    /// The name: `A` or `B`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::A => "A",
            Self::B => "B",
        }
    }

    /// Parses `A` or `B`.
    ///
    /// # Errors
    /// When it is another text.
    pub fn parse(text: &str) -> Result<Self, UnknownName> {
        match text {
            "A" => Ok(Self::A),
            "B" => Ok(Self::B),
            _ => Err(UnknownName { expected: "A, B" }),
        }
    }

    /// The other one.
    pub const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

impl fmt::Display for SlotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

textual!(SlotId, UnknownName);

/// Where the authority in a slot is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SlotStatus {
    /// Published, does not sign yet.
    Prepared,
    /// Signs.
    Active,
    /// Has signed; what it signed still verifies.
    Old,
}

impl SlotStatus {
    /// The name in capitals, as the errors of the API print it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Prepared => "PREPARED",
            Self::Active => "ACTIVE",
            Self::Old => "OLD",
        }
    }

    /// Parses the name in capitals.
    ///
    /// # Errors
    /// When it is another text.
    pub fn parse(text: &str) -> Result<Self, UnknownName> {
        let found = [Self::Prepared, Self::Active, Self::Old].into_iter().find(|s| s.as_str() == text);
        found.ok_or(UnknownName { expected: "PREPARED, ACTIVE, OLD" })
    }
}

impl fmt::Display for SlotStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

textual!(SlotStatus, UnknownName);

/// An authority in its slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthoritySlot {
    /// Which slot it is in.
    pub slot: SlotId,
    /// Where it is in its life.
    pub status: SlotStatus,
    /// X.509: the subject key ID in lower-case hex. JWT and WIT: the key ID.
    pub authority_id: String,
    /// When it was made.
    pub issued_at: Timestamp,
    /// When it ends.
    pub not_after: Timestamp,
    /// No longer trustworthy.
    pub tainted: bool,
    /// The subject key ID (lower-case hex) of the upstream root it chains to; `None` when it is its own root.
    pub upstream_authority_id: Option<String>,
}

/// What rotation should do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RotationStep {
    /// Make and publish a new authority in this slot.
    Prepare(SlotId),
    /// Let the prepared authority sign from now on.
    Activate,
}

/// Why the slots do not do what was asked. The texts are those of the LocalAuthority API.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SlotError {
    /// There is no active authority yet.
    #[error("server is initializing")]
    Initializing,
    /// No authority was named.
    #[error("no authority ID provided")]
    NoAuthorityId,
    /// The named authority is not in the other slot.
    #[error("unexpected authority ID")]
    UnexpectedAuthorityId,
    /// Activation of something that is not prepared.
    #[error("only Prepared authorities can be activated: unsupported local authority status: {}", status_text(.0))]
    NotPrepared(Option<SlotStatus>),
    /// The active authority cannot be tainted.
    #[error("unable to taint current local authority")]
    TaintCurrent,
    /// Only an old authority can be tainted.
    #[error("only Old local authorities can be tainted: unsupported local authority status: {0}")]
    TaintNotOld(SlotStatus),
    /// The authority is tainted already.
    #[error("authority is already tainted")]
    AlreadyTainted,
    /// The named authority cannot be revoked.
    #[error("invalid authority ID: {0}")]
    NotRevocable(RevokeProblem),
    /// Only a tainted authority may be revoked.
    #[error("it is not possible to revoke an untainted root CA")]
    Untainted,
    /// The authorities of this server do not chain to an upstream.
    #[error("upstream authority is not configured")]
    NoUpstream,
    /// The new authority has the ID of one that is there.
    #[error("authority {0} is in a slot already")]
    Duplicate(String),
    /// The new authority ends before it begins.
    #[error("authority ends before it was issued")]
    NoLife,
    /// The slots to restore contradict each other.
    #[error("the two slots of one kind must differ and only one may be active")]
    Contradiction,
}

/// What is wrong with the authority named for revocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RevokeProblem {
    /// No authority was named.
    #[error("no authority ID provided")]
    Missing,
    /// It is the active one.
    #[error("unable to use current authority")]
    Current,
    /// It is not in the other slot.
    #[error("only Old local authority can be revoked")]
    Unexpected,
    /// It is prepared, not old.
    #[error("only Old local authority can be revoked")]
    NotOld(SlotStatus),
}

fn status_text(status: &Option<SlotStatus>) -> &'static str {
    status.map_or("UNKNOWN", SlotStatus::as_str)
}

/// The two slots of one kind: at most one active authority, and at most one other that is prepared or old.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuthoritySlots {
    active: Option<AuthoritySlot>,
    other: Option<AuthoritySlot>,
}

impl AuthoritySlots {
    /// Empty slots, as at a server's first start.
    pub fn new() -> Self {
        Self::default()
    }

    /// Slots as a journal recorded them.
    ///
    /// # Errors
    /// [`SlotError::Contradiction`] for three slots, the same slot or ID twice, two active ones, or two that are not.
    pub fn restore(slots: impl IntoIterator<Item = AuthoritySlot>) -> Result<Self, SlotError> {
        let mut restored = Self::default();
        for slot in slots {
            let place =
                if slot.status == SlotStatus::Active { &mut restored.active } else { &mut restored.other };
            if place.is_some() {
                return Err(SlotError::Contradiction);
            }
            *place = Some(slot);
        }
        match (&restored.active, &restored.other) {
            (Some(a), Some(o)) if a.slot == o.slot || a.authority_id == o.authority_id => {
                Err(SlotError::Contradiction)
            }
            _ => Ok(restored),
        }
    }

    /// The authority that signs.
    pub fn active(&self) -> Option<&AuthoritySlot> {
        self.active.as_ref()
    }

    /// The authority in the other slot, prepared or old.
    pub fn other(&self) -> Option<&AuthoritySlot> {
        self.other.as_ref()
    }

    /// The authority that waits to sign.
    pub fn prepared(&self) -> Option<&AuthoritySlot> {
        self.other().filter(|slot| slot.status == SlotStatus::Prepared)
    }

    /// The authority that signed before the active one.
    pub fn old(&self) -> Option<&AuthoritySlot> {
        self.other().filter(|slot| slot.status == SlotStatus::Old)
    }

    /// Both authorities, the active one first.
    pub fn iter(&self) -> impl Iterator<Item = &AuthoritySlot> {
        self.active.iter().chain(&self.other)
    }

    /// The active authority, which each operation of the LocalAuthority API demands.
    ///
    /// # Errors
    /// [`SlotError::Initializing`] when there is none.
    pub fn require_active(&self) -> Result<&AuthoritySlot, SlotError> {
        self.active().ok_or(SlotError::Initializing)
    }

    /// The slot in which the next authority will be prepared: the one that is not active.
    pub fn free_slot(&self) -> SlotId {
        match (&self.active, &self.other) {
            (Some(active), _) => active.slot.other(),
            // Before the first activation an abandoned preparation is simply made again in its place.
            (None, Some(other)) => other.slot,
            (None, None) => SlotId::A,
        }
    }

    /// Puts a new authority, prepared, into the [`free_slot`](Self::free_slot), in place of what was there.
    ///
    /// # Errors
    /// When it has the ID of the active authority, or ends before it begins.
    pub fn prepare(
        &mut self,
        authority_id: String,
        issued_at: Timestamp,
        not_after: Timestamp,
        upstream_authority_id: Option<String>,
    ) -> Result<&AuthoritySlot, SlotError> {
        if authority_id.is_empty() {
            return Err(SlotError::NoAuthorityId);
        }
        if self.active().is_some_and(|active| active.authority_id == authority_id) {
            return Err(SlotError::Duplicate(authority_id));
        }
        if not_after <= issued_at {
            return Err(SlotError::NoLife);
        }
        let slot = self.free_slot();
        Ok(self.other.insert(AuthoritySlot {
            slot,
            status: SlotStatus::Prepared,
            authority_id,
            issued_at,
            not_after,
            tainted: false,
            upstream_authority_id,
        }))
    }

    /// Lets the prepared authority of this ID sign; the former active one is old from now on.
    ///
    /// # Errors
    /// When no ID is given, or it is not the other slot's, or what is there is not prepared.
    pub fn activate(&mut self, authority_id: &str) -> Result<&AuthoritySlot, SlotError> {
        if authority_id.is_empty() {
            return Err(SlotError::NoAuthorityId);
        }
        if self.other().is_none_or(|other| other.authority_id != authority_id) {
            return Err(SlotError::UnexpectedAuthorityId);
        }
        self.activate_prepared()
    }

    /// Lets the prepared authority sign, whatever its ID: the step of rotation.
    ///
    /// # Errors
    /// [`SlotError::NotPrepared`] when there is none.
    pub fn activate_prepared(&mut self) -> Result<&AuthoritySlot, SlotError> {
        let status = self.other().map(|other| other.status);
        let Some(mut next) = self.other.take_if(|other| other.status == SlotStatus::Prepared) else {
            return Err(SlotError::NotPrepared(status));
        };
        next.status = SlotStatus::Active;
        self.other = self.active.take().map(|former| AuthoritySlot { status: SlotStatus::Old, ..former });
        Ok(self.active.insert(next))
    }

    /// Marks the old authority of this ID as tainted.
    ///
    /// # Errors
    /// When no ID is given, it is the active one's or not the other slot's, the other is not old, or is tainted already.
    pub fn taint(&mut self, authority_id: &str) -> Result<&AuthoritySlot, SlotError> {
        if authority_id.is_empty() {
            return Err(SlotError::NoAuthorityId);
        }
        if self.active().is_some_and(|active| active.authority_id == authority_id) {
            return Err(SlotError::TaintCurrent);
        }
        let other = self.other.as_mut().filter(|other| other.authority_id == authority_id);
        let other = other.ok_or(SlotError::UnexpectedAuthorityId)?;
        taint_old(other)
    }

    /// Removes the old, tainted authority of this ID and gives it back. The slot is empty then: what nobody may trust
    /// any more is not worth showing.
    ///
    /// # Errors
    /// When no ID is given, it is the active one's or not the other slot's, the other is not old, or is not tainted.
    pub fn revoke(&mut self, authority_id: &str) -> Result<AuthoritySlot, SlotError> {
        self.check_revocable(AuthorityKind::X509, authority_id)?;
        self.other.take_if(|other| other.tainted).ok_or(SlotError::Untainted)
    }

    /// Says whether an authority of the bundle may be revoked as far as the slots are concerned; that it is tainted is
    /// for the bundle to say. An X.509 authority must be the old one; of the other kinds any key may go that is neither
    /// active nor prepared, since the bundle also holds the keys of other servers.
    ///
    /// # Errors
    /// [`SlotError::NotRevocable`] with the reason.
    pub fn check_revocable(&self, kind: AuthorityKind, authority_id: &str) -> Result<(), SlotError> {
        let named = |slot: &&AuthoritySlot| slot.authority_id == authority_id;
        let problem = if authority_id.is_empty() {
            RevokeProblem::Missing
        } else if self.active().filter(named).is_some() {
            RevokeProblem::Current
        } else {
            match self.other().filter(named) {
                Some(other) if other.status != SlotStatus::Old => RevokeProblem::NotOld(other.status),
                None if kind == AuthorityKind::X509 => RevokeProblem::Unexpected,
                _ => return Ok(()),
            }
        };
        Err(SlotError::NotRevocable(problem))
    }

    /// Empties the other slot if it holds the old authority of this ID: what follows on the revocation of a key that
    /// need not be in a slot at all.
    pub fn forget_old(&mut self, authority_id: &str) -> Option<AuthoritySlot> {
        self.other.take_if(|other| other.status == SlotStatus::Old && other.authority_id == authority_id)
    }

    /// Marks the old authority that chains to this upstream root as tainted.
    ///
    /// # Errors
    /// When there is no upstream, no ID is given, the root is the active authority's or not the other's, the other is
    /// not old, or is tainted already.
    pub fn taint_upstream(&mut self, upstream_authority_id: &str) -> Result<&AuthoritySlot, SlotError> {
        self.check_upstream(upstream_authority_id)?;
        self.other.as_mut().ok_or(SlotError::UnexpectedAuthorityId).and_then(taint_old)
    }

    /// Removes the old, tainted authority that chains to this upstream root and gives it back.
    ///
    /// # Errors
    /// As [`taint_upstream`](Self::taint_upstream), except that it must be tainted.
    pub fn revoke_upstream(&mut self, upstream_authority_id: &str) -> Result<AuthoritySlot, SlotError> {
        self.check_upstream(upstream_authority_id)?;
        self.other.take_if(|other| other.tainted).ok_or(SlotError::Untainted)
    }

    /// Marks the old authority as tainted because the bundle says so of it, or of the root above it: what
    /// [`taint`](Self::taint) is for an operator, this is for an upstream. Says whether it was not marked before.
    pub fn distrust_old(&mut self) -> bool {
        match self.other.as_mut().filter(|other| other.status == SlotStatus::Old) {
            Some(old) => !std::mem::replace(&mut old.tainted, true),
            None => false,
        }
    }

    fn check_upstream(&self, id: &str) -> Result<(), SlotError> {
        let active = self.require_active()?.upstream_authority_id.as_deref();
        let other = self.other().and_then(|other| other.upstream_authority_id.as_deref());
        if active.is_none() && other.is_none() {
            return Err(SlotError::NoUpstream);
        }
        if id.is_empty() {
            return Err(SlotError::NoAuthorityId);
        }
        if active == Some(id) {
            return Err(SlotError::TaintCurrent);
        }
        match self.other() {
            Some(slot) if other == Some(id) && slot.status == SlotStatus::Old => Ok(()),
            Some(slot) if other == Some(id) => Err(SlotError::TaintNotOld(slot.status)),
            _ => Err(SlotError::UnexpectedAuthorityId),
        }
    }

    /// What to do at `now`, if anything. Asked again after each step, it leads from any state to one that is in order.
    ///
    /// A prepared authority is preferred to a new one as long as it lives, since others know it already. But while there
    /// is time it is replaced when it would end soon after its activation, as after a cut of the configured life.
    pub fn due(&self, now: Timestamp) -> Option<RotationStep> {
        let prepare = Some(RotationStep::Prepare(self.free_slot()));
        let alive = self.prepared().filter(|prepared| prepared.not_after > now);
        let active = self.active();
        if active.is_none_or(|active| now > activate_at(active.issued_at, active.not_after)) {
            return if alive.is_some() { Some(RotationStep::Activate) } else { prepare };
        }
        let wants_next = active.is_some_and(|active| now > prepare_at(active.issued_at, active.not_after));
        let has_next = alive.is_some_and(|next| now <= activate_at(next.issued_at, next.not_after));
        if wants_next && !has_next { prepare } else { None }
    }

    /// The first instant, `now` at the earliest, at which something is [`due`](Self::due) if nothing changes until then.
    pub fn next_due(&self, now: Timestamp) -> Timestamp {
        let thresholds = self.iter().flat_map(|slot| {
            [
                prepare_at(slot.issued_at, slot.not_after),
                activate_at(slot.issued_at, slot.not_after),
                slot.not_after,
            ]
        });
        // A threshold is to be passed, not reached; instants are whole milliseconds.
        thresholds
            .map(|at| at.saturating_add(Duration::from_millis(1)).max(now))
            .chain([now])
            .filter(|at| self.due(*at).is_some())
            .min()
            .unwrap_or(now)
    }
}

fn taint_old(slot: &mut AuthoritySlot) -> Result<&AuthoritySlot, SlotError> {
    if slot.status != SlotStatus::Old {
        return Err(SlotError::TaintNotOld(slot.status));
    }
    if slot.tainted {
        return Err(SlotError::AlreadyTainted);
    }
    slot.tainted = true;
    Ok(slot)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_unix_seconds(seconds)
    }

    const HOUR: i64 = 3600;

    /// Slots with `a` active since 0 and `b` prepared at 12 h, each for 24 h.
    fn prepared() -> AuthoritySlots {
        let mut slots = AuthoritySlots::new();
        slots.prepare("a".into(), at(0), at(24 * HOUR), None).unwrap();
        slots.activate_prepared().unwrap();
        slots.prepare("b".into(), at(12 * HOUR), at(36 * HOUR), None).unwrap();
        slots
    }

    fn rotated() -> AuthoritySlots {
        let mut slots = prepared();
        slots.activate("b").unwrap();
        slots
    }

    #[test]
    fn only_an_old_authority_is_distrusted() {
        let mut slots = prepared();
        assert!(!slots.distrust_old());
        slots.activate("b").unwrap();
        assert!(slots.distrust_old());
        assert!(!slots.distrust_old(), "marked already");
        assert!(slots.old().unwrap().tainted && !slots.active().unwrap().tainted);
        slots.revoke("a").unwrap();
    }

    #[test]
    fn a_life_of_a_day() {
        let mut slots = AuthoritySlots::new();
        assert_eq!(slots.due(at(0)), Some(RotationStep::Prepare(SlotId::A)));
        slots.prepare("a".into(), at(0), at(24 * HOUR), None).unwrap();
        assert_eq!(slots.due(at(0)), Some(RotationStep::Activate));
        assert_eq!(slots.require_active(), Err(SlotError::Initializing));
        slots.activate_prepared().unwrap();

        let later = |at: Timestamp| at.saturating_add(Duration::from_millis(1));
        assert_eq!(slots.due(at(12 * HOUR)), None);
        assert_eq!(slots.next_due(at(0)), later(at(12 * HOUR)));
        assert_eq!(slots.due(later(at(12 * HOUR))), Some(RotationStep::Prepare(SlotId::B)));
        slots.prepare("b".into(), at(12 * HOUR), at(36 * HOUR), None).unwrap();
        assert_eq!(slots.due(at(20 * HOUR)), None);
        assert_eq!(slots.next_due(at(13 * HOUR)), later(at(20 * HOUR)));
        assert_eq!(slots.due(later(at(20 * HOUR))), Some(RotationStep::Activate));
        slots.activate_prepared().unwrap();

        assert_eq!(slots.active().unwrap().slot, SlotId::B);
        assert_eq!(slots.old().unwrap().authority_id, "a");
        assert_eq!(slots.due(at(24 * HOUR)), None);
        assert_eq!(slots.due(at(24 * HOUR + 1)), Some(RotationStep::Prepare(SlotId::A)));
    }

    #[test]
    fn a_life_of_seconds_keeps_its_milliseconds() {
        let mut slots = AuthoritySlots::new();
        slots.prepare("a".into(), at(0), at(3), None).unwrap();
        slots.activate_prepared().unwrap();
        assert_eq!(slots.next_due(at(0)).unix_millis(), 1_501);
        slots.prepare("b".into(), Timestamp::from_unix_millis(1_501), at(5), None).unwrap();
        assert_eq!(slots.next_due(at(2)).unix_millis(), 2_501);
    }

    #[test]
    fn after_an_outage_a_known_authority_comes_before_a_new_one() {
        let mut slots = prepared();
        assert_eq!(slots.due(at(35 * HOUR)), Some(RotationStep::Activate));
        assert_eq!(slots.due(at(36 * HOUR)), Some(RotationStep::Prepare(SlotId::B)));
        slots.activate_prepared().unwrap();
        assert_eq!(slots.due(at(35 * HOUR)), Some(RotationStep::Prepare(SlotId::A)));
    }

    #[test]
    fn a_prepared_authority_that_would_end_soon_is_replaced_once() {
        let mut slots = prepared();
        slots.prepare("short".into(), at(12 * HOUR), at(13 * HOUR), None).unwrap();
        assert_eq!(slots.due(at(12 * HOUR + 1)), None);
        let soon = slots.next_due(at(12 * HOUR + 1));
        assert_eq!(soon, at(12 * HOUR + 3000).saturating_add(Duration::from_millis(1)));
        assert_eq!(slots.due(soon), Some(RotationStep::Prepare(SlotId::B)));
        slots.prepare("short2".into(), soon, soon.saturating_add(Duration::from_secs(3600)), None).unwrap();
        assert_eq!(slots.due(soon), None);
    }

    #[test]
    fn activation_errors() {
        let mut slots = prepared();
        assert_eq!(slots.activate(""), Err(SlotError::NoAuthorityId));
        assert_eq!(slots.activate("a"), Err(SlotError::UnexpectedAuthorityId));
        assert_eq!(slots.activate("x"), Err(SlotError::UnexpectedAuthorityId));
        let mut slots = rotated();
        let error = slots.activate("a").unwrap_err();
        assert_eq!(
            error.to_string(),
            "only Prepared authorities can be activated: unsupported local authority status: OLD"
        );
        assert_eq!(AuthoritySlots::new().activate_prepared(), Err(SlotError::NotPrepared(None)));
    }

    #[test]
    fn preparation_errors() {
        let mut slots = prepared();
        assert_eq!(slots.prepare("a".into(), at(0), at(1), None), Err(SlotError::Duplicate("a".into())));
        assert_eq!(slots.prepare("c".into(), at(1), at(1), None), Err(SlotError::NoLife));
        assert_eq!(slots.prepare(String::new(), at(0), at(1), None), Err(SlotError::NoAuthorityId));
        assert_eq!(slots, prepared());
    }

    #[test]
    fn taint_then_revoke() {
        let mut slots = rotated();
        assert_eq!(slots.taint(""), Err(SlotError::NoAuthorityId));
        assert_eq!(slots.taint("b"), Err(SlotError::TaintCurrent));
        assert_eq!(slots.taint("x"), Err(SlotError::UnexpectedAuthorityId));
        assert_eq!(prepared().taint("b"), Err(SlotError::TaintNotOld(SlotStatus::Prepared)));
        assert_eq!(slots.revoke("a"), Err(SlotError::Untainted));
        assert!(slots.taint("a").unwrap().tainted);
        assert_eq!(slots.taint("a"), Err(SlotError::AlreadyTainted));
        assert_eq!(slots.revoke("a").unwrap().authority_id, "a");
        assert_eq!(slots.other(), None);
        assert_eq!(slots.free_slot(), SlotId::A);
    }

    #[test]
    fn what_may_be_revoked_depends_on_the_kind() {
        use AuthorityKind::{Jwt, X509};
        let not = |problem| Err(SlotError::NotRevocable(problem));
        for kind in AuthorityKind::ALL {
            assert_eq!(rotated().check_revocable(kind, ""), not(RevokeProblem::Missing));
            assert_eq!(rotated().check_revocable(kind, "b"), not(RevokeProblem::Current));
            assert_eq!(rotated().check_revocable(kind, "a"), Ok(()));
            let expected = not(RevokeProblem::NotOld(SlotStatus::Prepared));
            assert_eq!(prepared().check_revocable(kind, "b"), expected);
        }
        assert_eq!(rotated().check_revocable(X509, "foreign"), not(RevokeProblem::Unexpected));
        assert_eq!(rotated().check_revocable(Jwt, "foreign"), Ok(()));
        let mut slots = rotated();
        assert_eq!(slots.forget_old("foreign"), None);
        assert!(slots.forget_old("a").is_some());
        assert_eq!(slots.forget_old("b"), None);
    }

    #[test]
    fn upstream_roots() {
        let mut slots = AuthoritySlots::new();
        assert_eq!(slots.taint_upstream("r1"), Err(SlotError::Initializing));
        slots.prepare("a".into(), at(0), at(9), Some("r1".into())).unwrap();
        slots.activate_prepared().unwrap();
        slots.prepare("b".into(), at(0), at(9), Some("r2".into())).unwrap();
        assert_eq!(slots.taint_upstream("r2"), Err(SlotError::TaintNotOld(SlotStatus::Prepared)));
        slots.activate_prepared().unwrap();
        assert_eq!(slots.taint_upstream(""), Err(SlotError::NoAuthorityId));
        assert_eq!(slots.taint_upstream("r2"), Err(SlotError::TaintCurrent));
        assert_eq!(slots.taint_upstream("r3"), Err(SlotError::UnexpectedAuthorityId));
        assert_eq!(slots.revoke_upstream("r1"), Err(SlotError::Untainted));
        slots.taint_upstream("r1").unwrap();
        assert_eq!(slots.revoke_upstream("r1").unwrap().authority_id, "a");
        assert_eq!(rotated().taint_upstream("r1"), Err(SlotError::NoUpstream));
    }

    #[test]
    fn restoring_what_a_journal_recorded() {
        for slots in [AuthoritySlots::new(), prepared(), rotated()] {
            assert_eq!(AuthoritySlots::restore(slots.iter().cloned()), Ok(slots));
        }
        let only_old =
            AuthoritySlots::restore([AuthoritySlot { slot: SlotId::B, ..rotated().old().unwrap().clone() }]);
        assert_eq!(only_old.unwrap().due(at(0)), Some(RotationStep::Prepare(SlotId::B)));
        let active = prepared().active().unwrap().clone();
        let same_slot = AuthoritySlot { status: SlotStatus::Old, authority_id: "x".into(), ..active.clone() };
        let second = AuthoritySlot { slot: SlotId::B, authority_id: "x".into(), ..active.clone() };
        for other in [active.clone(), same_slot, second] {
            assert_eq!(AuthoritySlots::restore([active.clone(), other]), Err(SlotError::Contradiction));
        }
    }

    #[test]
    fn names() {
        for kind in AuthorityKind::ALL {
            assert_eq!(AuthorityKind::parse(kind.as_str()), Ok(kind));
            assert_ne!(kind.key_id(SlotId::A), kind.key_id(SlotId::B));
        }
        assert_eq!(AuthorityKind::X509.key_id(SlotId::B), "x509-CA-B");
        assert_eq!(serde_json::to_string(&SlotStatus::Old).unwrap(), "\"OLD\"");
        assert_eq!(serde_json::from_str::<SlotId>("\"B\"").unwrap(), SlotId::B);
        assert!(SlotStatus::parse("old").is_err());
    }
}
