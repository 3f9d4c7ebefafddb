//! How nodes prove what they are: the server's half.
//!
//! An attestor gets the node's payload, may challenge the node as often as it likes, and says which agent ID the node
//! has, what is known of it (selectors), and whether it could prove all that again. Everything after that (bans,
//! signing, the record) is the same for all and happens in [`crate::attestation`].

pub mod http_challenge;
pub mod join_token;
mod json;
pub mod k8s_psat;
pub mod oidc;
pub mod roots;
pub mod sshpop;
pub mod template;
pub mod tpm_devid;
pub mod x509pop;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;
use bonafide_identity::{SelectorSet, SpiffeId, Timestamp};

/// What is known of an attempt besides the payload.
#[derive(Clone, Copy, Debug)]
pub struct Attempt<'a> {
    /// What the node presented.
    pub payload: &'a [u8],
    /// Where it calls from; `None` over the administration socket.
    pub address: Option<IpAddr>,
    /// The time of the attempt.
    pub now: Timestamp,
}

/// What an attestor found out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attested {
    /// The agent's SPIFFE ID.
    pub id: SpiffeId,
    /// What is known of the node.
    pub selectors: SelectorSet,
    /// Whether the node can attest again by itself.
    pub can_reattest: bool,
    /// The ID that another form of the same proof would have given, where a proof has one. There is no second agent of that ID.
    pub twin: Option<SpiffeId>,
}

/// Why a node was not attested. The texts go to the node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttestError {
    /// The node sent something that cannot be right.
    #[error("{0}")]
    Invalid(String),
    /// What it sent is well-formed and does not entitle it.
    #[error("{0}")]
    Denied(String),
    /// The server could not do its part; a later attempt may succeed.
    #[error("{0}")]
    Unavailable(String),
    /// The server failed.
    #[error("{0}")]
    Internal(String),
    /// The node did not answer a challenge in time.
    #[error("the node did not answer in time")]
    TimedOut,
    /// The node went away.
    #[error("the node went away")]
    Gone,
}

/// The other end of an attempt.
#[async_trait]
pub trait Conversation: Send {
    /// Sends a challenge and waits for the answer.
    ///
    /// # Errors
    /// The node is gone, or silent.
    async fn challenge(&mut self, challenge: Vec<u8>) -> Result<Vec<u8>, AttestError>;
}

/// The server's half of a node attestor.
#[async_trait]
pub trait NodeAttestor: Send + Sync {
    /// The name that agents ask for, and the type of the selectors.
    fn name(&self) -> &'static str;

    /// Finds out what the node is.
    ///
    /// # Errors
    /// Why it was not attested.
    async fn attest(
        &self,
        attempt: Attempt<'_>,
        conversation: &mut dyn Conversation,
    ) -> Result<Attested, AttestError>;

    /// What a payload that was attested uses up, so that it attests no second time; nothing for most attestors. It is used
    /// up in the write that records the node, so a refusal uses up nothing.
    fn spends(&self, _attempt: Attempt<'_>) -> Option<Spent> {
        None
    }
}

/// Something that is good once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spent {
    /// What it is remembered by.
    pub fingerprint: [u8; 32],
    /// Until when it could be presented again.
    pub until: Timestamp,
}

/// The attestors that are configured, by name.
#[derive(Clone, Default)]
pub struct Attestors {
    by_name: BTreeMap<&'static str, Arc<dyn NodeAttestor>>,
}

impl Attestors {
    /// Adds one.
    #[must_use]
    pub fn with(mut self, attestor: Arc<dyn NodeAttestor>) -> Self {
        self.by_name.insert(attestor.name(), attestor);
        self
    }

    /// The one with this name.
    pub fn named(&self, name: &str) -> Option<&Arc<dyn NodeAttestor>> {
        self.by_name.get(name)
    }

    /// The names of all.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.by_name.keys().copied()
    }
}
