//! Registration entries: the rule that whoever shows these selectors under that parent is entitled to this SPIFFE ID.

use crate::{DnsName, DnsNameError, IdError, SelectorSet, SpiffeId, Timestamp, TrustDomain, text::textual};
use std::fmt;

/// The longest entry ID, in bytes.
pub const MAX_ENTRY_ID: usize = 255;
/// The longest hint, in bytes.
pub const MAX_HINT: usize = 1024;

/// Why an entry or its ID is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// The entry ID is empty.
    #[error("missing entry ID")]
    NoId,
    /// The entry ID has more than [`MAX_ENTRY_ID`] bytes.
    #[error("entry ID is longer than 255 characters")]
    IdTooLong,
    /// The entry ID holds a character outside `A-Z a-z 0-9 . _ -`.
    #[error("entry ID may hold only letters, digits, dots, dashes and underscores")]
    IdCharacter,
    /// The SPIFFE ID is not a workload's of this trust domain.
    #[error("invalid spiffe ID: {0}")]
    SpiffeId(IdError),
    /// The parent ID is not a member of this trust domain.
    #[error("invalid parent ID: {0}")]
    ParentId(IdError),
    /// There is no selector.
    #[error("selector list is empty")]
    NoSelectors,
    /// A TTL does not fit the 31 bits that the wire has for it.
    #[error("TTL is out of range")]
    Ttl,
    /// A DNS name breaks the rules.
    #[error("invalid DNS name: {0}")]
    DnsName(DnsNameError),
    /// The hint has more than [`MAX_HINT`] bytes.
    #[error("hint is too long, max length is 1024 characters")]
    HintTooLong,
    /// Selectors of several types with `store_svid`.
    #[error("selector types must be the same when store SVID is enabled")]
    MixedSelectors,
    /// `store_svid` together with `disable_x509_svid_prefetch`.
    #[error("X.509-SVID prefetch cannot be disabled when store SVID is enabled")]
    StoreWithoutPrefetch,
}

/// The name of an entry: 1 to 255 of `A-Z a-z 0-9 . _ -`, usually a UUID.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId(Box<str>);

impl EntryId {
    /// Parses an entry ID.
    ///
    /// # Errors
    /// [`EntryError::NoId`], [`EntryError::IdTooLong`] or [`EntryError::IdCharacter`].
    pub fn parse(text: &str) -> Result<Self, EntryError> {
        if text.is_empty() {
            return Err(EntryError::NoId);
        }
        if !text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-')) {
            return Err(EntryError::IdCharacter);
        }
        if text.len() > MAX_ENTRY_ID {
            return Err(EntryError::IdTooLong);
        }
        Ok(Self(text.into()))
    }

    /// A version 4 UUID (RFC 9562 section 5.4) made of 16 random bytes: the ID of an entry whose creator named none.
    pub fn from_random(mut bytes: [u8; 16]) -> Self {
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        let mut text = String::with_capacity(36);
        for (at, byte) in bytes.iter().enumerate() {
            if matches!(at, 4 | 6 | 8 | 10) {
                text.push('-');
            }
            for nibble in [byte >> 4, byte & 0x0f] {
                text.push(char::from_digit(nibble.into(), 16).unwrap_or('0'));
            }
        }
        Self(text.into())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EntryId({})", self.0)
    }
}

impl std::borrow::Borrow<str> for EntryId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

textual!(EntryId, EntryError);

/// A registration entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The entry's name.
    pub id: EntryId,
    /// The identity that it grants.
    pub spiffe_id: SpiffeId,
    /// Who may use the entry: an agent, another entry's SPIFFE ID, or the server for an alias of nodes.
    pub parent_id: SpiffeId,
    /// What a process (for an alias: a node) must show, all of it.
    pub selectors: SelectorSet,
    /// Life of X.509-SVIDs (and WIT-SVIDs) in seconds; 0 for the server's default.
    pub x509_svid_ttl: u32,
    /// Life of JWT-SVIDs in seconds; 0 for the server's default.
    pub jwt_svid_ttl: u32,
    /// Foreign trust domains whose bundles the workload gets; sorted, without duplicates.
    pub federates_with: Box<[TrustDomain]>,
    /// The workload may use the server's administrative API.
    pub admin: bool,
    /// The workload is a downstream server and may be given an intermediate authority.
    pub downstream: bool,
    /// When the entry is deleted as stale; it works until then. `None` for never.
    pub expires_at: Option<Timestamp>,
    /// DNS names of the X.509-SVID, in the order given; the first is its common name too.
    pub dns_names: Box<[DnsName]>,
    /// How often the entry was updated.
    pub revision: i64,
    /// When the entry was created. With the revision it tells an agent whether its SVID is out of date.
    pub created_at: Timestamp,
    /// The SVID goes to a secret store and not to processes.
    pub store_svid: bool,
    /// Free text that lets a workload with several identities tell them apart.
    pub hint: Box<str>,
    /// The X.509-SVID is made on demand only.
    pub disable_x509_svid_prefetch: bool,
    /// JWT-SVIDs get a `jti` claim.
    pub jwt_svid_include_jti: bool,
}

impl Entry {
    /// Checks the rules that hold between and within the fields, for an entry of `trust_domain`'s server.
    /// That the federated bundles exist is for the store to say.
    ///
    /// # Errors
    /// The first rule that the entry breaks.
    pub fn validate(&self, trust_domain: &TrustDomain) -> Result<(), EntryError> {
        self.spiffe_id.require_workload(trust_domain).map_err(EntryError::SpiffeId)?;
        self.parent_id.require_member(trust_domain).map_err(EntryError::ParentId)?;
        if self.selectors.is_empty() {
            return Err(EntryError::NoSelectors);
        }
        if i32::try_from(self.x509_svid_ttl).is_err() || i32::try_from(self.jwt_svid_ttl).is_err() {
            return Err(EntryError::Ttl);
        }
        if self.hint.len() > MAX_HINT {
            return Err(EntryError::HintTooLong);
        }
        if self.store_svid {
            if self.selectors.as_slice().windows(2).any(|pair| pair[0].kind() != pair[1].kind()) {
                return Err(EntryError::MixedSelectors);
            }
            if self.disable_x509_svid_prefetch {
                return Err(EntryError::StoreWithoutPrefetch);
            }
        }
        Ok(())
    }

    /// True when both grant the same identity to the same holders: same SPIFFE ID, parent and selector set.
    pub fn is_similar_to(&self, other: &Entry) -> bool {
        self.spiffe_id == other.spiffe_id
            && self.parent_id == other.parent_id
            && self.selectors == other.selectors
    }

    /// True when the entry may be deleted as stale.
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.expires_at.is_some_and(|at| at < now)
    }
}

// A server holds a million of these.
const _: () = assert!(size_of::<Entry>() <= 176);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Selector;

    fn entry() -> Entry {
        Entry {
            id: EntryId::parse("e").unwrap(),
            spiffe_id: SpiffeId::parse("spiffe://td/web").unwrap(),
            parent_id: SpiffeId::parse("spiffe://td/spire/agent/a").unwrap(),
            selectors: [Selector::parse("unix:uid:1").unwrap()].into_iter().collect(),
            x509_svid_ttl: 0,
            jwt_svid_ttl: 0,
            federates_with: [].into(),
            admin: false,
            downstream: false,
            expires_at: None,
            dns_names: [].into(),
            revision: 0,
            created_at: Timestamp::from_unix_seconds(0),
            store_svid: false,
            hint: "".into(),
            disable_x509_svid_prefetch: false,
            jwt_svid_include_jti: false,
        }
    }

    #[test]
    fn entry_ids() {
        for good in ["a", "A.b_c-9", &"x".repeat(255), "..."] {
            assert_eq!(EntryId::parse(good).unwrap().as_str(), good);
        }
        assert_eq!(EntryId::parse(""), Err(EntryError::NoId));
        assert_eq!(EntryId::parse("a/b"), Err(EntryError::IdCharacter));
        assert_eq!(EntryId::parse("ä"), Err(EntryError::IdCharacter));
        assert_eq!(EntryId::parse(&"x".repeat(256)), Err(EntryError::IdTooLong));
    }

    #[test]
    fn random_ids_are_uuids_of_version_4() {
        assert_eq!(EntryId::from_random([0xff; 16]).as_str(), "ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert_eq!(EntryId::from_random([0; 16]).as_str(), "00000000-0000-4000-8000-000000000000");
    }

    #[test]
    fn each_rule_is_checked() {
        let td = TrustDomain::parse("td").unwrap();
        assert_eq!(entry().validate(&td), Ok(()));
        let id = |text: &str| SpiffeId::parse(text).unwrap();
        let not_member = IdError::NotMember { id: id("spiffe://other/x"), trust_domain: td.clone() };
        let mixed = || ["a:1", "b:1"].iter().map(|s| Selector::parse(s).unwrap()).collect();
        let with = |change: &dyn Fn(&mut Entry)| {
            let mut changed = entry();
            change(&mut changed);
            changed.validate(&td)
        };
        let reserved = id("spiffe://td/spire/x");
        assert_eq!(
            with(&|e| e.spiffe_id = reserved.clone()),
            Err(EntryError::SpiffeId(IdError::Reserved(reserved.clone())))
        );
        assert_eq!(with(&|e| e.spiffe_id = id("spiffe://other/x")), Err(EntryError::SpiffeId(not_member)));
        assert_eq!(
            with(&|e| e.parent_id = id("spiffe://td")),
            Err(EntryError::ParentId(IdError::NoPath(id("spiffe://td"))))
        );
        assert_eq!(with(&|e| e.selectors = SelectorSet::empty()), Err(EntryError::NoSelectors));
        assert_eq!(with(&|e| e.x509_svid_ttl = 1 << 31), Err(EntryError::Ttl));
        assert_eq!(with(&|e| e.jwt_svid_ttl = u32::MAX), Err(EntryError::Ttl));
        assert_eq!(with(&|e| e.hint = "h".repeat(1025).into()), Err(EntryError::HintTooLong));
        assert_eq!(with(&|e| e.hint = "h".repeat(1024).into()), Ok(()));
        assert_eq!(with(&|e| e.selectors = mixed()), Ok(()));
        assert_eq!(
            with(&|e| {
                e.store_svid = true;
                e.selectors = mixed();
            }),
            Err(EntryError::MixedSelectors)
        );
        assert_eq!(
            with(&|e| {
                e.store_svid = true;
                e.disable_x509_svid_prefetch = true;
            }),
            Err(EntryError::StoreWithoutPrefetch)
        );
    }

    #[test]
    fn a_parent_may_be_the_server_or_a_workload() {
        let td = TrustDomain::parse("td").unwrap();
        for parent in ["spiffe://td/spire/server", "spiffe://td/group"] {
            let mut entry = entry();
            entry.parent_id = SpiffeId::parse(parent).unwrap();
            assert_eq!(entry.validate(&td), Ok(()));
        }
    }
}
