//! Join tokens: a secret that an administrator makes and one node presents, once.
//!
//! The token leaves the store in the same write that hands it out, before anything else is known of the attempt, its
//! expiry included; so two nodes that present one token at the same moment cannot both have it (SPIRE had this race;
//! its advisory is the reason for the order here). What follows may fail and the token is gone all the same: a token that failed must
//! be suspected.

use async_trait::async_trait;
use bonafide_identity::{SelectorSet, TrustDomain};

use super::{Attempt, AttestError, Attested, Conversation, NodeAttestor};
use crate::store::{JoinTokens as _, Store, StoreError};

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
                StoreError::Full { .. } => AttestError::Unavailable(format!("failed to attest: {error}")),
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
        Ok(Attested { id, selectors: SelectorSet::empty(), can_reattest: false })
    }
}
