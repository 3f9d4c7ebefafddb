//! SVIDs from whatever authority is active.

use std::sync::Arc;
use std::time::Duration;

use bonafide_identity::{Entry, SerialNumber, SpiffeId, Timestamp};
use bonafide_pki::{PublicKey, Random, VerifiedCsr};

use super::Authorities;
use crate::caller::Caller;

/// Lifetimes and names that the configuration gives.
#[derive(Clone, Debug)]
pub struct IssuingConfig {
    /// `default_x509_svid_ttl`: workloads whose entry gives none, and the server itself.
    pub default_x509_svid_ttl: Duration,
    /// `default_jwt_svid_ttl`.
    pub default_jwt_svid_ttl: Duration,
    /// `default_wit_svid_ttl`: WIT-SVIDs minted without a lifetime.
    pub default_wit_svid_ttl: Duration,
    /// `agent_ttl`.
    pub agent_ttl: Duration,
    /// `ca_ttl`, for downstream authorities.
    pub ca_ttl: Duration,
    /// `iss` of JWT-SVIDs.
    pub jwt_issuer: Option<String>,
    /// `iss` of WIT-SVIDs.
    pub wit_issuer: Option<String>,
}

/// An X509-SVID or a downstream CA that has just been signed.
#[derive(Clone, Debug)]
pub struct SignedX509 {
    /// DER, leaf first, without the root.
    pub chain: Vec<Vec<u8>>,
    /// What is recorded and audited.
    pub issued: Issued,
}

/// A JWT-SVID or WIT-SVID that has just been signed. No `Debug`: the token is a bearer secret.
pub struct SignedToken {
    /// Compact serialisation.
    pub token: String,
    /// What is recorded and audited.
    pub issued: Issued,
}

/// What was signed, for the inventory and the audit log.
pub use crate::store::IssuedSvid as Issued;

/// Where news of what was signed goes besides the store: the audit log. Called once for each batch.
pub trait IssuanceSink: Send + Sync {
    /// `method` is the full gRPC method.
    fn issued(&self, caller: &Caller, method: &'static str, svids: &[Issued]);
}

/// Signs.
pub struct Issuing { _p: () }

impl Issuing {
    pub fn new(config: IssuingConfig, authorities: Arc<Authorities>, store: crate::store::Store, sink: Arc<dyn IssuanceSink>, random: Arc<dyn Random>) -> Self;
    pub fn issue_workload_x509(&self, entry: &Entry, csr: &VerifiedCsr, now: Timestamp) -> Result<SignedX509, SigningError>;
    pub fn issue_agent_x509(&self, id: &SpiffeId, key: &PublicKey, now: Timestamp) -> Result<SignedX509, SigningError>;
    pub fn issue_server_x509(&self, key: &PublicKey, now: Timestamp) -> Result<SignedX509, SigningError>;
    pub fn issue_downstream_ca(&self, key: &PublicKey, preferred_ttl: Duration, now: Timestamp) -> Result<SignedX509, SigningError>;
    pub fn mint_x509(&self, csr: &VerifiedCsr, id: &SpiffeId, ttl: Duration, now: Timestamp) -> Result<SignedX509, SigningError>;
    pub fn issue_jwt(&self, entry: &Entry, audience: &[String], now: Timestamp) -> Result<SignedToken, SigningError>;
    pub fn mint_jwt(&self, id: &SpiffeId, audience: &[String], ttl: Duration, now: Timestamp) -> Result<SignedToken, SigningError>;
    pub fn issue_wit(&self, entry: &Entry, key: &PublicKey, algorithm: &str, now: Timestamp) -> Result<SignedToken, SigningError>;
    pub fn mint_wit(&self, id: &SpiffeId, key: &PublicKey, algorithm: &str, ttl: Duration, now: Timestamp) -> Result<SignedToken, SigningError>;
    /// Writes what was signed to the inventory and the audit log: one write and one audit flush. A store that is
    /// full does not stop signing.
    pub async fn record(&self, caller: &Caller, method: &'static str, svids: &[Issued]);
}
