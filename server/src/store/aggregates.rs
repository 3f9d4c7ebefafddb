//! What the store keeps beside the domain types of `bonafide_identity`, and one small trait per aggregate.
//!
//! The traits are the seam between the rest of the server and a kind of store: [`Unit`](super::Unit) implements them
//! over a key-value database, that of one server or one shared by several. A closure given to
//! [`Store::write`](super::Store::write) uses them on its unit of work, sees its own writes and those of every write
//! before it, and leaves nothing behind when it returns an error.

use std::sync::Arc;

use bonafide_identity::{
    AttestedNode, AuthorityKind, AuthoritySlot, Bundle, Entry, EntryId, JoinToken, SpiffeId, Timestamp,
    TrustDomain,
};

use super::StoreError;

/// Registration entries.
pub trait Entries {
    /// The entry with this ID.
    fn entry(&self, id: &EntryId) -> Option<Arc<Entry>>;

    /// An entry with the same SPIFFE ID, parent ID and set of selectors.
    fn similar_entry(&self, entry: &Entry) -> Option<Arc<Entry>>;

    /// Every entry that `wanted` accepts. Looks at all of them: meant for deletions that cascade.
    fn entries_where(&self, wanted: &mut dyn FnMut(&Entry) -> bool) -> Vec<Arc<Entry>>;

    /// Adds an entry. [`StoreError::AlreadyExists`] when the ID is taken; whether a similar entry may exist is the
    /// caller's decision.
    fn entry_create(&mut self, entry: Entry) -> Result<Arc<Entry>, StoreError>;

    /// Replaces the entry with the same ID; it keeps its place in the listing order. [`StoreError::NotFound`] when
    /// there is none. The revision is written as given.
    fn entry_update(&mut self, entry: Entry) -> Result<Arc<Entry>, StoreError>;

    /// Removes an entry and returns it. [`StoreError::NotFound`] when there is none.
    fn entry_delete(&mut self, id: &EntryId) -> Result<Arc<Entry>, StoreError>;
}

/// Attested nodes.
pub trait Nodes {
    /// The node with this agent ID.
    fn node(&self, id: &SpiffeId) -> Option<Arc<AttestedNode>>;

    /// Adds a node, or replaces the one with the same ID.
    fn node_put(&mut self, node: AttestedNode) -> Result<Arc<AttestedNode>, StoreError>;

    /// Removes a node and returns it. [`StoreError::NotFound`] when there is none.
    fn node_delete(&mut self, id: &SpiffeId) -> Result<Arc<AttestedNode>, StoreError>;
}

/// Trust bundles: the server's own and those of federated trust domains.
pub trait Bundles {
    /// The bundle of this trust domain.
    fn bundle(&self, trust_domain: &TrustDomain) -> Option<Arc<Bundle>>;

    /// Adds a bundle, or replaces the one of the same trust domain.
    fn bundle_put(&mut self, bundle: Bundle) -> Result<Arc<Bundle>, StoreError>;

    /// Removes a bundle and returns it. [`StoreError::NotFound`] when there is none.
    fn bundle_delete(&mut self, trust_domain: &TrustDomain) -> Result<Arc<Bundle>, StoreError>;
}

/// Join tokens.
pub trait JoinTokens {
    /// Adds a token. [`StoreError::AlreadyExists`] when the value is taken.
    fn token_create(&mut self, token: &JoinToken) -> Result<(), StoreError>;

    /// Removes a token and returns it, expired or not: at most one caller ever gets it.
    fn token_take(&mut self, value: &str) -> Result<Option<JoinToken>, StoreError>;

    /// Removes up to `limit` tokens that have expired at `now` and says how many.
    fn tokens_prune(&mut self, now: Timestamp, limit: usize) -> Result<usize, StoreError>;
}

/// Tokens of foreign issuers that have attested a node, so that none does so again.
pub trait SpentTokens {
    /// Notes a token by its fingerprint; it is remembered `until` it would be refused anyway, and then for as long as an
    /// attestation that began before may take.
    fn spend(
        &mut self,
        fingerprint: &[u8; 32],
        until: Timestamp,
        now: Timestamp,
    ) -> Result<Spending, StoreError>;

    /// Forgets up to `limit` tokens whose time has been over for five minutes and says how many.
    fn spent_prune(&mut self, now: Timestamp, limit: usize) -> Result<usize, StoreError>;
}

/// What became of the attempt to use a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spending {
    /// It had not been used before, and is now.
    First,
    /// It had been used.
    Again,
    /// [`MAX_SPENT`] tokens are remembered and none can be forgotten yet.
    Full,
}

/// Used tokens that are remembered at once: some 15 MB in the database, nothing in memory.
pub const MAX_SPENT: i64 = 200_000;

/// Federation relationships.
pub trait Relationships {
    /// The relationship with this trust domain.
    fn relationship(&self, trust_domain: &TrustDomain) -> Option<Arc<FederationRelationship>>;

    /// Adds a relationship. [`StoreError::AlreadyExists`] when there is one with this trust domain.
    fn relationship_create(
        &mut self,
        relationship: FederationRelationship,
    ) -> Result<Arc<FederationRelationship>, StoreError>;

    /// Replaces the relationship with the same trust domain. [`StoreError::NotFound`] when there is none.
    fn relationship_update(
        &mut self,
        relationship: FederationRelationship,
    ) -> Result<Arc<FederationRelationship>, StoreError>;

    /// Removes a relationship and returns it. [`StoreError::NotFound`] when there is none.
    fn relationship_delete(
        &mut self,
        trust_domain: &TrustDomain,
    ) -> Result<Arc<FederationRelationship>, StoreError>;
}

/// The journal of the server's own authorities; those of other servers of a group are not seen here.
pub trait Journal {
    /// Every record of a kind, oldest first.
    fn journal(&self, kind: AuthorityKind) -> Result<Vec<JournalRecord>, StoreError>;

    /// Adds a record, or replaces the one with the same kind and authority ID.
    fn journal_put(&mut self, record: &JournalRecord) -> Result<(), StoreError>;

    /// Removes the record of an authority; removing what is not there is no error.
    fn journal_delete(&mut self, kind: AuthorityKind, authority_id: &str) -> Result<(), StoreError>;

    /// Key identifiers of what administrators have revoked of this kind, at whichever server of the group.
    fn revoked(&self, kind: AuthorityKind) -> Result<Vec<String>, StoreError>;

    /// Removes the records of other servers whose authorities ended two weeks ago, and says how many.
    fn journals_prune(&mut self, now: Timestamp) -> Result<usize, StoreError>;
}

/// The log of issued SVIDs.
pub trait Issuance {
    /// Notes what was issued: one record for the whole slice.
    fn record_issued(&mut self, svids: &[IssuedSvid]) -> Result<(), StoreError>;

    /// Up to about `limit` SVIDs that are still valid at `now`, the earliest expiry first.
    fn issued(&self, now: Timestamp, limit: usize) -> Result<Vec<IssuedSvid>, StoreError>;

    /// Removes up to `limit` records in which everything has expired at `now` and says how many.
    fn issued_prune(&mut self, now: Timestamp, limit: usize) -> Result<usize, StoreError>;
}

/// The ordered log of changes; every write to entries, nodes, bundles and relationships appends to it by itself.
pub trait ChangeLog {
    /// Position of the last change, this unit's own included.
    fn epoch(&self) -> u64;
}

/// One change: what changed, not how; the present value is in [`State`](super::State).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Change {
    /// An entry was created, updated or deleted.
    Entry(EntryId),
    /// A node was attested, renewed, banned or deleted.
    Node(SpiffeId),
    /// A bundle was set or deleted.
    Bundle(TrustDomain),
    /// A federation relationship was set or deleted.
    Relationship(TrustDomain),
}

/// With whom, and how, the server exchanges bundles (SPIFFE Federation, section 5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FederationRelationship {
    /// The foreign trust domain.
    pub trust_domain: TrustDomain,
    /// Where its bundle endpoint is.
    pub bundle_endpoint_url: String,
    /// How the endpoint is authenticated.
    pub profile: EndpointProfile,
}

/// How a bundle endpoint is authenticated (SPIFFE Federation, section 5.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndpointProfile {
    /// By the web PKI.
    HttpsWeb,
    /// By an X.509-SVID.
    HttpsSpiffe {
        /// Whose SVID the endpoint must show.
        endpoint_spiffe_id: SpiffeId,
    },
}

/// One authority of the server, as it must be found again after a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalRecord {
    /// X.509, JWT or WIT.
    pub kind: AuthorityKind,
    /// Slot, status, authority ID and times.
    pub slot: AuthoritySlot,
    /// Name of the private key in the key manager.
    pub key_id: String,
    /// X.509 only: the authority's certificate, then the upstream intermediates; DER.
    pub certificate_chain: Vec<Vec<u8>>,
    /// SubjectPublicKeyInfo, DER.
    pub public_key: Vec<u8>,
    /// Key identifiers of what an administrator has revoked of this kind, oldest first; the same in each record of a kind.
    pub revoked: Vec<String>,
}

/// One SVID that was signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuedSvid {
    /// What it is.
    pub kind: SvidKind,
    /// Whose it is.
    pub spiffe_id: SpiffeId,
    /// The entry that entitled to it; `None` for agents, servers and minted SVIDs.
    pub entry_id: Option<EntryId>,
    /// Serial number (decimal) or `jti`; may be empty for a token without one.
    pub serial: String,
    /// End of its life.
    pub not_after: Timestamp,
    /// The authority that signed it.
    pub authority_id: String,
}

/// Kind of an issued SVID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SvidKind {
    /// X.509-SVID of a workload.
    WorkloadX509,
    /// JWT-SVID of a workload.
    WorkloadJwt,
    /// WIT-SVID of a workload.
    WorkloadWit,
    /// X.509-SVID of an agent.
    AgentX509,
    /// X.509-SVID of the server itself.
    ServerX509,
    /// Certificate of a downstream authority.
    DownstreamAuthority,
}
