//! Trust bundles: the authorities that a trust domain's SVIDs are verified with.
//!
//! Keys and certificates are opaque bytes here; who needs to look inside (when does this certificate end, is this the
//! one with that key) passes a closure. Each change of content moves the sequence number by one, which is what peers
//! compare.

use crate::{Timestamp, TrustDomain};
use std::collections::BTreeSet;
use std::time::Duration;

/// An X.509 authority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct X509Authority {
    /// The root certificate, DER.
    pub certificate: Vec<u8>,
    /// Announced as no longer trustworthy: still verifies, but nobody should hold a certificate of it.
    pub tainted: bool,
}

/// A JWT authority; WIT authorities have the same shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtAuthority {
    /// The `kid` of tokens signed with the key.
    pub key_id: String,
    /// The public key, PKIX (SubjectPublicKeyInfo) DER.
    pub public_key: Vec<u8>,
    /// When the key ends; `None` when it was not said.
    pub expires_at: Option<Timestamp>,
    /// Announced as no longer trustworthy.
    pub tainted: bool,
}

/// Why an authority of a bundle is not tainted or not revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthorityRefusal {
    /// The bundle holds no such X.509 authority.
    #[error("no root CA found with the provided subject key ID")]
    NoSuchRoot,
    /// The bundle holds no such key.
    #[error("no JWT authority found with provided authority ID")]
    NoSuchKey,
    /// The X.509 authority is tainted already.
    #[error("root CA is already tainted")]
    RootAlreadyTainted,
    /// The key is tainted already.
    #[error("JWT key is already tainted")]
    KeyAlreadyTainted,
    /// Only a tainted X.509 authority may be revoked.
    #[error("it is not possible to revoke an untainted root CA")]
    RootUntainted,
    /// Only a tainted key may be revoked.
    #[error("it is not possible to revoke an untainted key")]
    KeyUntainted,
}

/// Why a bundle was not pruned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PruneRefusal {
    /// Each X.509 authority has ended: something is wrong with a clock or with rotation.
    #[error("pruning would remove every X.509 authority; check the clock and the rotation of authorities")]
    AllX509,
    /// Each JWT authority has ended.
    #[error("pruning would remove every JWT authority; check the clock and the rotation of authorities")]
    AllJwt,
    /// Each WIT authority has ended.
    #[error("pruning would remove every WIT authority; check the clock and the rotation of authorities")]
    AllWit,
}

/// How many authorities a pruning removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// X.509 authorities.
    pub x509: usize,
    /// JWT authorities.
    pub jwt: usize,
    /// WIT authorities.
    pub wit: usize,
}

impl Pruned {
    /// True when nothing was removed.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What an upstream has tainted at some time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Distrusted {
    /// DER of root certificates.
    pub x509: BTreeSet<Vec<u8>>,
    /// Key IDs of JWT authorities.
    pub jwt: BTreeSet<String>,
    /// Key IDs of WIT authorities.
    pub wit: BTreeSet<String>,
}

impl Distrusted {
    /// Adds what is tainted in `upstream`.
    pub fn note(&mut self, upstream: &Bundle) {
        let roots = upstream.x509_authorities.iter().filter(|root| root.tainted);
        self.x509.extend(roots.map(|root| root.certificate.clone()));
        let tainted = |keys: &[JwtAuthority]| -> Vec<String> {
            keys.iter().filter(|key| key.tainted).map(|key| key.key_id.clone()).collect()
        };
        self.jwt.extend(tainted(&upstream.jwt_authorities));
        self.wit.extend(tainted(&upstream.wit_authorities));
    }

    /// Forgets what is no longer in `bundle`, so that the memory of a long life stays small.
    pub fn forget_beyond(&mut self, bundle: &Bundle) {
        self.x509.retain(|der| bundle.x509_authorities.iter().any(|root| root.certificate == *der));
        self.jwt.retain(|id| bundle.jwt_authorities.iter().any(|key| key.key_id == *id));
        self.wit.retain(|id| bundle.wit_authorities.iter().any(|key| key.key_id == *id));
    }
}

/// The authorities of one trust domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    /// Whose they are.
    pub trust_domain: TrustDomain,
    /// Root certificates.
    pub x509_authorities: Vec<X509Authority>,
    /// Keys of JWT-SVIDs.
    pub jwt_authorities: Vec<JwtAuthority>,
    /// Keys of WIT-SVIDs.
    pub wit_authorities: Vec<JwtAuthority>,
    /// How often consumers should look for a new version, in seconds; 0 when not said.
    pub refresh_hint: u64,
    /// Version of the content.
    pub sequence_number: u64,
}

impl Bundle {
    /// How long an authority stays in the bundle after its end, for peers whose clock is behind.
    pub const PRUNE_MARGIN: Duration = Duration::from_secs(24 * 60 * 60);

    /// A bundle without authorities, at sequence number 0.
    pub fn empty(trust_domain: TrustDomain) -> Self {
        Self {
            trust_domain,
            x509_authorities: Vec::new(),
            jwt_authorities: Vec::new(),
            wit_authorities: Vec::new(),
            refresh_hint: 0,
            sequence_number: 0,
        }
    }

    /// True when there is not one authority of any kind.
    pub fn is_empty(&self) -> bool {
        self.x509_authorities.is_empty() && self.jwt_authorities.is_empty() && self.wit_authorities.is_empty()
    }

    /// Adds what is not there yet and says whether anything was; if so, the sequence number moves by one.
    ///
    /// A certificate is there when its bytes are, a key when its key ID is: an ID names one key, and a later claim to
    /// it must not push aside the key that verifiers know by it. Flags of what is there stay as they are.
    pub fn append(
        &mut self,
        x509: impl IntoIterator<Item = X509Authority>,
        jwt: impl IntoIterator<Item = JwtAuthority>,
        wit: impl IntoIterator<Item = JwtAuthority>,
    ) -> bool {
        let before = self.len();
        for authority in x509 {
            if self.x509_authorities.iter().all(|have| have.certificate != authority.certificate) {
                self.x509_authorities.push(authority);
            }
        }
        append_keys(&mut self.jwt_authorities, jwt);
        append_keys(&mut self.wit_authorities, wit);
        let changed = self.len() != before;
        if changed {
            self.bump();
        }
        changed
    }

    /// Removes what ended more than [`PRUNE_MARGIN`](Self::PRUNE_MARGIN) before `now`. If anything goes, the sequence
    /// number moves by one, keys without a known end go too, and the refresh hint is reset to 0, as peers expect it
    /// of a pruned bundle. `certificate_end` reads a certificate's last instant; one it cannot read stays.
    ///
    /// # Errors
    /// When every authority of some kind would go. The bundle is unchanged then.
    pub fn prune(
        &mut self,
        now: Timestamp,
        certificate_end: impl Fn(&[u8]) -> Option<Timestamp>,
    ) -> Result<Pruned, PruneRefusal> {
        let limit = now.saturating_sub(Self::PRUNE_MARGIN);
        let root_ended =
            |root: &X509Authority| certificate_end(&root.certificate).is_some_and(|end| end < limit);
        let key_ended = |key: &JwtAuthority| key.expires_at.is_none_or(|end| end < limit);
        let pruned = Pruned {
            x509: self.x509_authorities.iter().filter(|root| root_ended(root)).count(),
            jwt: self.jwt_authorities.iter().filter(|key| key_ended(key)).count(),
            wit: self.wit_authorities.iter().filter(|key| key_ended(key)).count(),
        };
        if pruned.is_empty() {
            return Ok(pruned);
        }
        let all = |gone: usize, there: usize| there > 0 && gone == there;
        if all(pruned.x509, self.x509_authorities.len()) {
            return Err(PruneRefusal::AllX509);
        }
        if all(pruned.jwt, self.jwt_authorities.len()) {
            return Err(PruneRefusal::AllJwt);
        }
        if all(pruned.wit, self.wit_authorities.len()) {
            return Err(PruneRefusal::AllWit);
        }
        self.x509_authorities.retain(|root| !root_ended(root));
        self.jwt_authorities.retain(|key| !key_ended(key));
        self.wit_authorities.retain(|key| !key_ended(key));
        self.refresh_hint = 0;
        self.bump();
        Ok(pruned)
    }

    /// Marks the X.509 authorities that `is_meant` picks (by their DER) as tainted.
    ///
    /// # Errors
    /// When there is none, or they are tainted already.
    pub fn taint_x509(&mut self, is_meant: impl Fn(&[u8]) -> bool) -> Result<(), AuthorityRefusal> {
        let mut found = false;
        let mut changed = false;
        for root in self.x509_authorities.iter_mut().filter(|root| is_meant(&root.certificate)) {
            found = true;
            changed |= !root.tainted;
            root.tainted = true;
        }
        if !found {
            return Err(AuthorityRefusal::NoSuchRoot);
        }
        if !changed {
            return Err(AuthorityRefusal::RootAlreadyTainted);
        }
        self.bump();
        Ok(())
    }

    /// Removes the X.509 authorities that `is_meant` picks (by their DER). They must have been tainted.
    ///
    /// # Errors
    /// When there is none, or one is not tainted. The bundle is unchanged then.
    pub fn revoke_x509(&mut self, is_meant: impl Fn(&[u8]) -> bool) -> Result<(), AuthorityRefusal> {
        let mut meant = self.x509_authorities.iter().filter(|root| is_meant(&root.certificate)).peekable();
        if meant.peek().is_none() {
            return Err(AuthorityRefusal::NoSuchRoot);
        }
        if meant.any(|root| !root.tainted) {
            return Err(AuthorityRefusal::RootUntainted);
        }
        self.x509_authorities.retain(|root| !is_meant(&root.certificate));
        self.bump();
        Ok(())
    }

    /// Marks a JWT authority as tainted and gives it back.
    ///
    /// # Errors
    /// When it is not there, or tainted already.
    pub fn taint_jwt(&mut self, key_id: &str) -> Result<JwtAuthority, AuthorityRefusal> {
        let tainted = taint_key(&mut self.jwt_authorities, key_id)?;
        self.bump();
        Ok(tainted)
    }

    /// Removes a tainted JWT authority and gives it back.
    ///
    /// # Errors
    /// When it is not there, or not tainted.
    pub fn revoke_jwt(&mut self, key_id: &str) -> Result<JwtAuthority, AuthorityRefusal> {
        let revoked = revoke_key(&mut self.jwt_authorities, key_id)?;
        self.bump();
        Ok(revoked)
    }

    /// As [`taint_jwt`](Self::taint_jwt), for a WIT authority.
    ///
    /// # Errors
    /// As [`taint_jwt`](Self::taint_jwt).
    pub fn taint_wit(&mut self, key_id: &str) -> Result<JwtAuthority, AuthorityRefusal> {
        let tainted = taint_key(&mut self.wit_authorities, key_id)?;
        self.bump();
        Ok(tainted)
    }

    /// As [`revoke_jwt`](Self::revoke_jwt), for a WIT authority.
    ///
    /// # Errors
    /// As [`revoke_jwt`](Self::revoke_jwt).
    pub fn revoke_wit(&mut self, key_id: &str) -> Result<JwtAuthority, AuthorityRefusal> {
        let revoked = revoke_key(&mut self.wit_authorities, key_id)?;
        self.bump();
        Ok(revoked)
    }

    /// Takes over what `upstream` publishes of the same trust domain: authorities that are new, taints, and the
    /// departure of what is in `distrusted`. What this bundle holds beyond that stays: an upstream need not know the
    /// keys of those below it. Says whether anything changed; if so, the sequence number moves by one.
    ///
    /// What `signs` picks (by DER, or by key ID) is left as it is: whoever saw its taint would ask for a new signature
    /// and get another of the same authority. It has to be replaced first.
    ///
    /// `distrusted` is what the upstream has tainted at some time. Only that may go: an authority that is merely
    /// missing may be missing by a mistake, and trust that is taken away by mistake is an outage.
    pub fn follow(
        &mut self,
        upstream: &Bundle,
        distrusted: &Distrusted,
        signs: impl Fn(&[u8], &str) -> bool,
    ) -> bool {
        let before =
            (self.x509_authorities.clone(), self.jwt_authorities.clone(), self.wit_authorities.clone());
        for theirs in &upstream.x509_authorities {
            match self.x509_authorities.iter_mut().find(|ours| ours.certificate == theirs.certificate) {
                Some(ours) => ours.tainted |= theirs.tainted && !signs(&ours.certificate, ""),
                None => self.x509_authorities.push(theirs.clone()),
            }
        }
        self.x509_authorities.retain(|ours| {
            !distrusted.x509.contains(&ours.certificate)
                || upstream.x509_authorities.iter().any(|theirs| theirs.certificate == ours.certificate)
                || signs(&ours.certificate, "")
        });
        follow_keys(&mut self.jwt_authorities, &upstream.jwt_authorities, &distrusted.jwt, &signs);
        follow_keys(&mut self.wit_authorities, &upstream.wit_authorities, &distrusted.wit, &signs);
        let (x509, jwt, wit) = before;
        let changed =
            x509 != self.x509_authorities || jwt != self.jwt_authorities || wit != self.wit_authorities;
        if changed {
            self.bump();
        }
        changed
    }

    /// True when both hold the same authorities, in any order, under the same refresh hint; the sequence number does
    /// not count.
    pub fn same_content(&self, other: &Bundle) -> bool {
        self.trust_domain == other.trust_domain
            && self.refresh_hint == other.refresh_hint
            && same_members(&self.x509_authorities, &other.x509_authorities)
            && same_members(&self.jwt_authorities, &other.jwt_authorities)
            && same_members(&self.wit_authorities, &other.wit_authorities)
    }

    fn len(&self) -> usize {
        self.x509_authorities.len() + self.jwt_authorities.len() + self.wit_authorities.len()
    }

    fn bump(&mut self) {
        self.sequence_number = self.sequence_number.saturating_add(1);
    }
}

fn append_keys(keys: &mut Vec<JwtAuthority>, more: impl IntoIterator<Item = JwtAuthority>) {
    for key in more {
        if keys.iter().all(|have| have.key_id != key.key_id) {
            keys.push(key);
        }
    }
}

fn follow_keys(
    ours: &mut Vec<JwtAuthority>,
    theirs: &[JwtAuthority],
    distrusted: &BTreeSet<String>,
    signs: &impl Fn(&[u8], &str) -> bool,
) {
    append_keys(ours, theirs.iter().cloned());
    for key in theirs.iter().filter(|key| key.tainted) {
        // The same ID with another key would be somebody else's key.
        let same = |have: &&mut JwtAuthority| have.key_id == key.key_id && have.public_key == key.public_key;
        if let Some(have) = ours.iter_mut().find(same) {
            have.tainted |= !signs(&[], &have.key_id);
        }
    }
    ours.retain(|key| {
        !distrusted.contains(&key.key_id)
            || theirs.iter().any(|listed| listed.key_id == key.key_id)
            || signs(&[], &key.key_id)
    });
}

fn taint_key(keys: &mut [JwtAuthority], key_id: &str) -> Result<JwtAuthority, AuthorityRefusal> {
    let key = keys.iter_mut().find(|key| key.key_id == key_id).ok_or(AuthorityRefusal::NoSuchKey)?;
    if key.tainted {
        return Err(AuthorityRefusal::KeyAlreadyTainted);
    }
    key.tainted = true;
    Ok(key.clone())
}

fn revoke_key(keys: &mut Vec<JwtAuthority>, key_id: &str) -> Result<JwtAuthority, AuthorityRefusal> {
    let at = keys.iter().position(|key| key.key_id == key_id).ok_or(AuthorityRefusal::NoSuchKey)?;
    if !keys[at].tainted {
        return Err(AuthorityRefusal::KeyUntainted);
    }
    Ok(keys.remove(at))
}

fn same_members<T: PartialEq>(a: &[T], b: &[T]) -> bool {
    a.len() == b.len()
        && a.iter().all(|member| b.contains(member))
        && b.iter().all(|member| a.contains(member))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(byte: u8) -> X509Authority {
        X509Authority { certificate: vec![byte], tainted: false }
    }

    fn key(id: &str, expires_at: Option<i64>) -> JwtAuthority {
        JwtAuthority {
            key_id: id.into(),
            public_key: id.as_bytes().to_vec(),
            expires_at: expires_at.map(Timestamp::from_unix_seconds),
            tainted: false,
        }
    }

    fn bundle() -> Bundle {
        Bundle::empty(TrustDomain::parse("td").unwrap())
    }

    /// In these tests a certificate of byte n ends at day n.
    fn end(certificate: &[u8]) -> Option<Timestamp> {
        certificate.first().map(|day| Timestamp::from_unix_seconds(i64::from(*day) * 86_400))
    }

    #[test]
    fn appending_what_is_there_changes_nothing() {
        let mut bundle = bundle();
        assert!(bundle.append([root(1), root(1)], [key("a", None)], []));
        assert_eq!((bundle.x509_authorities.len(), bundle.sequence_number), (1, 1));
        let before = bundle.clone();
        let mut tainted = root(1);
        tainted.tainted = true;
        assert!(!bundle.append([tainted], [key("a", Some(7))], []));
        assert_eq!(bundle, before);
        assert!(bundle.append([], [], [key("a", None)]), "WIT keys are a set of their own");
        assert_eq!(bundle.sequence_number, 2);
    }

    #[test]
    fn pruning_leaves_a_day_of_margin_and_resets_the_hint() {
        let mut bundle = bundle();
        bundle.append([root(1), root(2)], [key("old", Some(86_400)), key("new", Some(9 * 86_400))], []);
        bundle.refresh_hint = 300;
        let day = |day: i64| Timestamp::from_unix_seconds(day * 86_400);
        assert_eq!(bundle.prune(day(2), end), Ok(Pruned::default()));
        assert_eq!((bundle.refresh_hint, bundle.sequence_number), (300, 1));
        let later = day(2).saturating_add(Duration::from_millis(1));
        assert_eq!(bundle.prune(later, end), Ok(Pruned { x509: 1, jwt: 1, wit: 0 }));
        assert_eq!(bundle.x509_authorities, [root(2)]);
        assert_eq!((bundle.refresh_hint, bundle.sequence_number), (0, 2));
    }

    #[test]
    fn pruning_refuses_to_empty_a_kind() {
        let far = Timestamp::from_unix_seconds(1000 * 86_400);
        let mut bundle = bundle();
        bundle.append([root(1)], [key("a", Some(far.unix_seconds()))], []);
        let before = bundle.clone();
        assert_eq!(bundle.prune(far, end), Err(PruneRefusal::AllX509));
        assert_eq!(bundle, before);
        bundle.jwt_authorities[0].expires_at = None;
        bundle.x509_authorities[0].certificate.clear();
        assert_eq!(bundle.prune(far, end), Err(PruneRefusal::AllJwt));
        bundle.jwt_authorities.clear();
        assert_eq!(
            bundle.prune(far, end),
            Ok(Pruned::default()),
            "a certificate without a readable end stays"
        );
    }

    #[test]
    fn taint_before_revoke() {
        let mut bundle = bundle();
        bundle.append([root(1), root(2)], [key("a", None)], [key("w", None)]);
        let first = |der: &[u8]| der == [1];
        assert_eq!(bundle.revoke_x509(first), Err(AuthorityRefusal::RootUntainted));
        assert_eq!(bundle.taint_x509(|_| false), Err(AuthorityRefusal::NoSuchRoot));
        assert_eq!(bundle.sequence_number, 1);
        bundle.taint_x509(first).unwrap();
        assert_eq!(bundle.taint_x509(first), Err(AuthorityRefusal::RootAlreadyTainted));
        bundle.revoke_x509(first).unwrap();
        assert_eq!(bundle.x509_authorities, [root(2)]);
        assert_eq!(bundle.sequence_number, 3);

        assert_eq!(bundle.revoke_jwt("a"), Err(AuthorityRefusal::KeyUntainted));
        assert_eq!(bundle.taint_jwt("w"), Err(AuthorityRefusal::NoSuchKey));
        assert!(bundle.taint_jwt("a").unwrap().tainted);
        assert_eq!(bundle.taint_jwt("a"), Err(AuthorityRefusal::KeyAlreadyTainted));
        assert_eq!(bundle.revoke_jwt("a").unwrap().key_id, "a");
        bundle.taint_wit("w").unwrap();
        bundle.revoke_wit("w").unwrap();
        assert_eq!(bundle.sequence_number, 7);
    }

    #[test]
    fn an_upstream_adds_taints_and_takes_back_only_what_it_had_tainted() {
        let none = |_: &[u8], _: &str| false;
        let (mut ours, mut upstream) = (bundle(), bundle());
        let mut distrusted = Distrusted::default();
        ours.append([root(1)], [key("own", None)], []);
        upstream.append([root(2)], [key("theirs", None)], [key("w", None)]);
        assert!(ours.follow(&upstream, &distrusted, none));
        assert_eq!(
            (ours.x509_authorities.len(), ours.jwt_authorities.len(), ours.sequence_number),
            (2, 2, 2)
        );
        assert!(!ours.follow(&upstream, &distrusted, none), "nothing new");

        // What is only missing stays.
        assert!(!ours.follow(&bundle(), &distrusted, none));

        upstream.taint_x509(|der| der == [2]).unwrap();
        upstream.taint_jwt("theirs").unwrap();
        upstream.taint_wit("w").unwrap();
        distrusted.note(&upstream);
        // First what signs has to be replaced; then the taint helps.
        let signs = |der: &[u8], id: &str| der == [2] || id == "theirs" || id == "w";
        assert!(!ours.follow(&upstream, &distrusted, signs));
        assert!(ours.follow(&upstream, &distrusted, none));
        assert!(ours.x509_authorities[1].tainted && ours.jwt_authorities[1].tainted);
        assert!(ours.wit_authorities[0].tainted && !ours.x509_authorities[0].tainted);

        // What something depends on is not taken away, and goes when nothing does any more.
        upstream.revoke_x509(|der| der == [2]).unwrap();
        upstream.revoke_jwt("theirs").unwrap();
        upstream.revoke_wit("w").unwrap();
        assert!(ours.follow(&upstream, &distrusted, |der, id| der == [2] || id == "theirs"));
        assert_eq!((ours.x509_authorities.len(), ours.jwt_authorities.len()), (2, 2));
        assert!(ours.follow(&upstream, &distrusted, none));
        assert_eq!((ours.x509_authorities.len(), ours.jwt_authorities.len()), (1, 1));
        assert!(ours.wit_authorities.is_empty());
        distrusted.forget_beyond(&ours);
        assert_eq!(distrusted, Distrusted::default());
    }

    #[test]
    fn a_key_id_that_means_another_key_is_not_tainted() {
        let (mut ours, mut upstream) = (bundle(), bundle());
        ours.append([], [key("a", None)], []);
        let other = JwtAuthority { public_key: vec![9], tainted: true, ..key("a", None) };
        upstream.append([], [other], []);
        assert!(!ours.follow(&upstream, &Distrusted::default(), |_, _| false));
    }

    #[test]
    fn content_has_no_order() {
        let (mut a, mut b) = (bundle(), bundle());
        a.append([root(1), root(2)], [], []);
        b.append([root(2)], [], []);
        assert!(!a.same_content(&b));
        b.append([root(1)], [], []);
        assert!(a.same_content(&b) && a != b);
    }
}
