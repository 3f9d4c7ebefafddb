//! Where CA certificates come from when the trust domain hangs below somebody else's root.

pub mod disk;

use std::sync::Arc;
use std::time::Duration;

use bonafide_identity::{SerialNumber, Timestamp, TrustDomain, capped};
use bonafide_pki::{LeafProfile, PublicKey, Subject, TrustRoots, X509Issuer, verify_svid_chain};

/// A CA certificate from upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamCa {
    /// DER, the new CA first, then intermediates up to and without the root.
    pub chain: Vec<Vec<u8>>,
    /// DER of the roots that relying parties need.
    pub roots: Vec<Vec<u8>>,
}

/// Signs CA certificates for this server.
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

    /// The roots as they are now, DER.
    ///
    /// # Errors
    /// They cannot be read.
    async fn roots(&self, now: Timestamp) -> Result<Vec<Vec<u8>>, UpstreamError>;
}

/// Why an upstream authority did not give what was asked; the text names the file or the rule.
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
