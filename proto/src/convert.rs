//! Between wire and domain types.
//!
//! This is the one place where a peer's message becomes something the rest of the project trusts, so every rule
//! about single fields is here and nowhere else: presence, syntax, the class of a SPIFFE ID, masks. Rules that
//! need a clock, a store or a crypto backend are not: the caller brings those (certificates and keys are checked
//! by a function that the caller hands in).
//!
//! There are two directions of trust. `*_from_wire` reads what a client asks of the server: strict, and what a
//! client may not decide (revision, creation time, `tainted`) is ignored as SPIRE ignores it. `*_from_server`
//! reads what a server answered: fields that a mask left out are tolerated.
//!
//! Refusals carry SPIRE's own sentences, because scripts and controllers match on them.

mod agent;
mod bundle;
mod entry;
mod filter;
mod id;
mod page;
mod status;
mod svid;

pub use agent::{agent_from_server, agent_to_wire, join_token_from_server, join_token_to_wire};
pub use bundle::{
    AuthorityChecks, apply_bundle_update, bundle_from_server, bundle_from_wire, bundle_to_wire,
    jwt_authorities_from_wire, jwt_authorities_to_wire, wit_authorities_from_wire, wit_authorities_to_wire,
    x509_authorities_from_wire, x509_authorities_to_wire,
};
pub use entry::{NewEntry, apply_entry_update, entry_from_server, entry_from_wire, entry_to_wire};
pub use filter::{
    AgentFilter, EntryFilter, agent_filter_from_wire, entry_filter_from_wire, match_to_wire,
    selector_match_from_wire, trust_domain_match_from_wire,
};
pub use id::{
    IdClass, IdRefusal, agent_id_from_wire, member_id_from_wire, selector_from_wire, selectors_from_wire,
    selectors_to_wire, spiffe_id_from_wire, spiffe_id_to_wire, trust_domain_from_wire, workload_id_from_wire,
};
pub use page::{SyncForm, SyncPage};
pub use status::{
    denial_reason, error_info, permission_denied_with_reason, result_status, status, status_from_error,
    status_ok, status_with_error_info,
};
pub use svid::{
    SignedToken, X509Chain, jwt_svid_from_server, jwt_svid_to_wire, wit_svid_from_server, wit_svid_to_wire,
    x509_svid_from_server, x509_svid_to_wire,
};

use bonafide_identity::{DnsNameError, IdError, SelectorError, Timestamp};

use crate::spire::types;

/// Why a message was refused. The text is what the peer is told; each variant is the peer's mistake, so all of
/// them are `InvalidArgument`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConvertError {
    /// A SPIFFE ID is missing, malformed or not of the class that the field asks for.
    #[error("{what}: {reason}")]
    SpiffeId {
        /// What was read, such as `invalid parent ID`.
        what: &'static str,
        /// What is wrong with it.
        reason: IdRefusal,
    },
    /// A trust domain is malformed.
    #[error("{what}: {}", id::syntax(.reason))]
    TrustDomain {
        /// What was read, such as `invalid federated trust domain`.
        what: &'static str,
        /// What is wrong with it.
        reason: IdError,
    },
    /// A selector is malformed; as the field of an entry it has no prefix.
    #[error("{0}")]
    Selector(SelectorError),
    /// A selector in a filter is malformed.
    #[error("{what}: {reason}")]
    FilterSelector {
        /// What was read, such as `malformed selectors filter`.
        what: &'static str,
        /// What is wrong with it.
        reason: SelectorError,
    },
    /// A filter compares with nothing.
    #[error("{what}: empty {of} set")]
    EmptyFilter {
        /// What was read.
        what: &'static str,
        /// What the set would hold: `selector` or `trust domain`.
        of: &'static str,
    },
    /// A filter names a comparison that this version does not know.
    #[error("{what}: unknown match behavior {number}")]
    MatchBehavior {
        /// What was read.
        what: &'static str,
        /// The number on the wire.
        number: i32,
    },
    /// An entry without selectors would match every process.
    #[error("selector list is empty")]
    NoSelectors,
    /// A selector or a DNS name stands twice. An entry without the second one is not what the client asked for: one
    /// that compares what it wants with what there is would change it for ever.
    #[error("{0:?} is given twice, leave one out")]
    Twice(String),
    /// A DNS name could not stand in a certificate.
    #[error("invalid DNS name: {0}")]
    DnsName(DnsNameError),
    /// More than 1024 bytes.
    #[error("hint is too long, max length is 1024 characters")]
    HintTooLong,
    /// More than 255 characters.
    #[error("datastore-validation: invalid registration entry: entry ID too long")]
    EntryIdTooLong,
    /// Not of `[A-Za-z0-9._-]`.
    #[error("datastore-validation: invalid registration entry: entry ID contains invalid characters")]
    EntryIdCharacters,
    /// A server sent an entry without ID.
    #[error("missing entry ID")]
    NoEntryId,
    /// Less than zero.
    #[error("datastore-validation: invalid registration entry: X509SvidTtl is not set")]
    X509SvidTtl,
    /// Less than zero.
    #[error("datastore-validation: invalid registration entry: JwtSvidTtl is not set")]
    JwtSvidTtl,
    /// An SVID store finds its entries by the type of their selectors.
    #[error(
        "datastore-validation: invalid registration entry: selector types must be the same when store SVID is enabled"
    )]
    StoreSelectorTypes,
    /// A stored SVID is always signed ahead of time.
    #[error("datastore-validation: specifying cache behaviour is incompatible with storable SVIDs")]
    StorePrefetch,
    /// A certificate or key in a bundle is not usable.
    #[error("{what}: {reason}")]
    Authority {
        /// What was read, such as `unable to parse X.509 authority`.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// Less than zero.
    #[error("refresh hint must not be negative")]
    RefreshHint,
    /// A serial number that is not a decimal number of at most 20 bytes.
    #[error("invalid serial number \"{0}\"")]
    Serial(String),
    /// A server sent an SVID in which this part is missing.
    #[error("the server sent an SVID without {0}")]
    IncompleteSvid(&'static str),
}

impl ConvertError {
    /// The status of one item of a batch: `what` is the outer text, such as `failed to convert entry`.
    #[must_use]
    pub fn to_status(&self, what: &str) -> types::Status {
        status(tonic::Code::InvalidArgument, format!("{what}: {self}"))
    }

    /// Whether SPIRE finds this mistake only when it stores the entry. Its outer text is then
    /// `failed to create entry` or `failed to update entry` instead of `failed to convert entry`.
    #[must_use]
    pub fn found_when_stored(&self) -> bool {
        matches!(
            self,
            Self::EntryIdTooLong
                | Self::EntryIdCharacters
                | Self::X509SvidTtl
                | Self::JwtSvidTtl
                | Self::StoreSelectorTypes
                | Self::StorePrefetch
        )
    }
}

/// Reads whole seconds. What lies beyond the reach of a [`Timestamp`] becomes the last whole second within it, so that
/// it is the same on the way back.
fn instant(seconds: i64) -> Timestamp {
    Timestamp::from_unix_seconds(seconds).floor_to_second()
}

/// Reads whole seconds of which zero means never.
fn instant_or_never(seconds: i64) -> Option<Timestamp> {
    (seconds != 0).then(|| instant(seconds))
}

impl From<ConvertError> for tonic::Status {
    fn from(error: ConvertError) -> Self {
        Self::invalid_argument(error.to_string())
    }
}
