//! The slots of each kind of authority, and the steps between their states.

use std::sync::Arc;
use std::time::Duration;

use bonafide_identity::{AuthorityKind, AuthoritySlot, AuthoritySlots, Timestamp, TrustDomain};
use bonafide_pki::{CaSubject, JwtSigner, KeyManager, KeyType, Random, X509Issuer};
use bonafide_runtime::clock::SharedClock;
use tokio::sync::watch;

use crate::store::{Store, StoreError};
use crate::upstream_authority::{UpstreamAuthority, UpstreamError};

/// What the authorities are like.
#[derive(Clone, Debug)]
pub struct AuthorityConfig {
    /// The trust domain they sign for.
    pub trust_domain: TrustDomain,
    /// Life of a CA certificate and of a JWT or WIT key.
    pub ca_ttl: Duration,
    /// Key of the X.509 authority.
    pub ca_key_type: KeyType,
    /// Key of the JWT authority.
    pub jwt_key_type: KeyType,
    /// Key of the WIT authority.
    pub wit_key_type: KeyType,
    /// Subject of CA certificates.
    pub ca_subject: CaSubject,
    /// Whether there is a JWT authority at all.
    pub jwt_enabled: bool,
    /// Whether there is a WIT authority at all.
    pub wit_enabled: bool,
}

/// An active JWT or WIT key.
pub struct TokenIssuer {
    /// Signs with it.
    pub signer: JwtSigner,
    /// No token may outlive this.
    pub not_after: Timestamp,
}

/// The authorities of this server.
pub struct Authorities {
    _private: (),
}

impl Authorities {
    /// Restores what the journal names and the key manager still holds, makes what is missing, and returns once
    /// there is an active authority of each enabled kind.
    ///
    /// # Errors
    /// A key cannot be made, the upstream authority refuses, or the store does not take the step.
    pub async fn start(
        config: AuthorityConfig,
        keys: Arc<dyn KeyManager>,
        upstream: Option<Arc<dyn UpstreamAuthority>>,
        store: Store,
        clock: SharedClock,
        random: Arc<dyn Random>,
    ) -> Result<Arc<Self>, AuthorityError>;

    /// The X.509 authority that signs now.
    pub fn x509(&self) -> Arc<X509Issuer>;
    /// The JWT key that signs now; `None` when JWT-SVIDs are switched off.
    pub fn jwt(&self) -> Option<Arc<TokenIssuer>>;
    /// The WIT key that signs now; `None` when WIT-SVIDs are switched off.
    pub fn wit(&self) -> Option<Arc<TokenIssuer>>;
    /// Both slots of a kind.
    pub fn slots(&self, kind: AuthorityKind) -> AuthoritySlots;
    /// Whether CA certificates come from an upstream authority.
    pub fn has_upstream(&self) -> bool;
    /// Counts the steps taken: changes after each of them.
    pub fn subscribe(&self) -> watch::Receiver<u64>;
    /// Takes every step that is due and returns the instant of the next look.
    ///
    /// # Errors
    /// The first step that failed; the others have been tried.
    pub async fn tick(self: &Arc<Self>, now: Timestamp) -> Result<Timestamp, AuthorityError>;
    /// Makes a new authority in the slot that is not active and publishes it.
    pub async fn prepare(self: &Arc<Self>, kind: AuthorityKind) -> Result<AuthoritySlot, AuthorityError>;
    /// Signs with the prepared authority from now on.
    pub async fn activate(self: &Arc<Self>, kind: AuthorityKind, id: &str) -> Result<AuthoritySlot, AuthorityError>;
    /// Marks an old authority in the bundle, so that everybody replaces what it signed.
    pub async fn taint(self: &Arc<Self>, kind: AuthorityKind, id: &str) -> Result<AuthoritySlot, AuthorityError>;
    /// Takes a tainted old authority out of the bundle.
    pub async fn revoke(self: &Arc<Self>, kind: AuthorityKind, id: &str) -> Result<AuthoritySlot, AuthorityError>;
    /// As [`Self::taint`], for the root of the upstream authority with this subject key identifier (hex).
    pub async fn taint_upstream(self: &Arc<Self>, subject_key_id: &str) -> Result<(), AuthorityError>;
    /// As [`Self::revoke`], for the root of the upstream authority with this subject key identifier (hex).
    pub async fn revoke_upstream(self: &Arc<Self>, subject_key_id: &str) -> Result<(), AuthorityError>;
}

/// Why a step was not taken.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The store did not take it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The upstream authority did not give what was asked.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
}
