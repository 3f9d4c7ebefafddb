//! Where CA certificates come from when the trust domain hangs below somebody else's root.
//!
//! An upstream authority signs ([`UpstreamAuthority::mint_ca`]), and it may tell more: what it publishes now, with
//! taints ([`UpstreamAuthority::bundle`]), which a task polls and takes into the bundle; and it may take token keys
//! upward ([`UpstreamAuthority::publish_key`]), so that tokens of this server verify in the whole trust domain.
//!
//! Polling and not a stream, because none of those above has one: SPIRE's server API has no stream of bundles, and
//! files, Vault and cert-manager are asked anyway.

mod address;
pub mod cert_manager;
pub mod disk;
pub mod spire;
pub mod vault;

use std::sync::Arc;
use std::time::Duration;

use bonafide_identity::{AuthorityKind, Bundle, JwtAuthority, SerialNumber, Timestamp, TrustDomain, capped};
use bonafide_pki::{LeafProfile, PublicKey, Subject, TrustRoots, X509Issuer, verify_svid_chain};
use bonafide_runtime::BoxError;
use bonafide_runtime::shutdown::Shutdown;

pub use address::Address;

/// A CA certificate from upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamCa {
    /// DER, the new CA first, then intermediates up to and without the root.
    pub chain: Vec<Vec<u8>>,
    /// DER of the roots that relying parties need.
    pub roots: Vec<Vec<u8>>,
}

/// Signs CA certificates for this server. Every call ends within a bounded time, whatever the other side does.
#[async_trait::async_trait]
pub trait UpstreamAuthority: Send + Sync {
    /// What the configuration calls it.
    fn name(&self) -> &'static str;

    /// Signs the CA certificate that `csr` (DER) asks for.
    ///
    /// # Errors
    /// The upstream authority cannot be used, or refuses.
    async fn mint_ca(
        &self,
        csr: &[u8],
        preferred_ttl: Duration,
        now: Timestamp,
    ) -> Result<UpstreamCa, UpstreamError>;

    /// What it publishes now: its roots, and the token keys of the trust domain where it knows them, with taints. Each
    /// certificate and key in it can be used for verification. `None` when it tells its roots with a signature only.
    ///
    /// # Errors
    /// It cannot be asked or read.
    async fn bundle(&self, now: Timestamp) -> Result<Option<Bundle>, UpstreamError>;

    /// How long to wait between two looks at [`Self::bundle`].
    fn poll_interval(&self) -> Duration {
        Duration::from_secs(5)
    }

    /// Publishes a JWT or WIT key upward, and gives all keys of that kind in the trust domain. `None` when keys of this
    /// kind are not its business; they are then published by this server alone.
    ///
    /// # Errors
    /// It cannot be asked, or refuses the key.
    async fn publish_key(
        &self,
        _kind: AuthorityKind,
        _key: &JwtAuthority,
    ) -> Result<Option<Vec<JwtAuthority>>, UpstreamError> {
        Ok(None)
    }

    /// What it has to do beside the calls, such as keeping its own identity fresh, until the shutdown.
    ///
    /// # Errors
    /// It can never work again; the server stops.
    async fn run(&self, _shutdown: Shutdown) -> Result<(), BoxError> {
        Ok(())
    }
}

/// Why an upstream authority did not give what was asked; the text names the file, the address or the rule.
#[derive(Debug, thiserror::Error)]
#[error("upstream authority {name}: {reason}")]
pub struct UpstreamError {
    /// What the configuration calls it.
    pub name: &'static str,
    /// What is wrong and what to do.
    pub reason: String,
}

/// Signs a leaf for nobody with `issuer` and verifies it against `roots`, as every relying party will: a chain that
/// leads nowhere is found before it signs anything that matters. The error is the reason.
pub(crate) fn prove_chain(
    issuer: &X509Issuer,
    key: &PublicKey,
    roots: &[Vec<u8>],
    now: Timestamp,
) -> Result<(), String> {
    let trust_domain = issuer.trust_domain();
    let lifetime = capped(Duration::from_secs(60), now, issuer.not_after());
    let leaf = issuer
        .issue(&LeafProfile {
            spiffe_id: &trust_domain.server_id(),
            dns_names: &[],
            subject: Subject::Default,
            public_key: key,
            not_before: lifetime.not_before,
            not_after: lifetime.not_after,
            serial: SerialNumber::from(1),
        })
        .map_err(|error| error.to_string())?;
    let roots = TrustRoots::from_der(roots.iter().map(Vec::as_slice)).map_err(|error| error.to_string())?;
    let roots = Arc::new(roots);
    let trusted = |of: &TrustDomain| (of == trust_domain).then(|| Arc::clone(&roots));
    verify_svid_chain(&issuer.chain_for_leaf(leaf), &trusted, now)
        .map(drop)
        .map_err(|error| error.to_string())
}
