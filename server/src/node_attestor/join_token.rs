//! Join tokens: a secret that an administrator makes and one node presents, once.
//!
//! The token leaves the store in the same write that hands it out, before anything else is known of the attempt, its
//! expiry included; so two nodes that present one token at the same moment cannot both have it (SPIRE had this race;
//! its advisory is the reason for the order here). What follows may fail and the token is gone all the same: a token that failed must
//! be suspected.

use async_trait::async_trait;
use bonafide_identity::{
    Entry, EntryError, EntryId, Selector, SelectorError, SelectorSet, SpiffeId, Timestamp, TrustDomain,
};

use super::{Attempt, AttestError, Attested, Conversation, NodeAttestor};
use crate::store::{JoinTokens as _, State, Store, StoreError};

/// The attestor.
pub struct JoinToken {
    trust_domain: TrustDomain,
    store: Store,
}

/// The attestor's name.
pub const NAME: &str = "join_token";

impl JoinToken {
    /// Over the tokens in `store`.
    pub fn new(trust_domain: TrustDomain, store: Store) -> Self {
        Self { trust_domain, store }
    }
}

/// The agent ID's path below `/spire/agent/` for a token.
pub fn agent_path(token: &str) -> String {
    format!("{NAME}/{token}")
}

/// The entry that gives a token's agent the additional identity `spiffe_id`.
///
/// # Errors
/// Never for the ID of an agent and a UUID; the entry could otherwise not be found again.
pub fn alias(
    entry_id: &str,
    spiffe_id: &SpiffeId,
    agent: &SpiffeId,
    created_at: Timestamp,
) -> Result<Entry, AliasError> {
    Ok(Entry {
        id: EntryId::parse(entry_id)?,
        spiffe_id: spiffe_id.clone(),
        parent_id: agent.clone(),
        selectors: alias_selectors(agent)?,
        x509_svid_ttl: 0,
        jwt_svid_ttl: 0,
        federates_with: Box::default(),
        admin: false,
        downstream: false,
        expires_at: None,
        dns_names: Box::default(),
        revision: 0,
        created_at,
        store_svid: false,
        hint: "".into(),
        disable_x509_svid_prefetch: false,
        jwt_svid_include_jti: false,
    })
}

/// Why there is no such entry.
#[derive(Debug, thiserror::Error)]
pub enum AliasError {
    /// The entry's ID.
    #[error(transparent)]
    Entry(#[from] EntryError),
    /// The selector that names the agent.
    #[error(transparent)]
    Selector(#[from] SelectorError),
}

/// The entries that join tokens made for an agent. They leave with its record.
pub fn aliases(state: &State, agent: &SpiffeId) -> Vec<EntryId> {
    let below = state.with_entries(|entries| entries.authorized(agent, &SelectorSet::empty()));
    below.iter().filter(|entry| is_alias(entry, agent)).map(|entry| entry.id.clone()).collect()
}

/// Whether an entry is one that a join token made for the agent, and that nobody has made into another since.
pub fn is_alias(entry: &Entry, agent: &SpiffeId) -> bool {
    entry.parent_id == *agent && alias_selectors(agent).is_ok_and(|selectors| selectors == entry.selectors)
}

fn alias_selectors(agent: &SpiffeId) -> Result<SelectorSet, SelectorError> {
    Ok([Selector::new("spiffe_id", &agent.to_string())?].into_iter().collect())
}

#[async_trait]
impl NodeAttestor for JoinToken {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn attest(&self, attempt: Attempt<'_>, _: &mut dyn Conversation) -> Result<Attested, AttestError> {
        let unknown = || {
            let text = "failed to attest: join token does not exist or has already been used";
            AttestError::Invalid(text.to_owned())
        };
        // What is not text was never a token.
        let token = std::str::from_utf8(attempt.payload).map_err(|_| unknown())?.to_owned();
        let taken =
            self.store.write(move |unit| unit.token_take(&token)).await.map_err(|error| match error {
                StoreError::Full { .. } | StoreError::Unreachable { .. } => {
                    AttestError::Unavailable(format!("failed to attest: {error}"))
                }
                error => AttestError::Internal(format!("failed to attest: {error}")),
            })?;
        let token = taken.ok_or_else(unknown)?;
        if token.expires_at <= attempt.now {
            return Err(AttestError::Invalid("join token expired".to_owned()));
        }
        let id = self
            .trust_domain
            .agent_id(&agent_path(&token.value))
            .map_err(|error| AttestError::Internal(format!("failed to attest: {error}")))?;
        Ok(Attested { id, selectors: SelectorSet::empty(), can_reattest: false, twin: None })
    }
}
