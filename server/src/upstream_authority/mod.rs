//! Where CA certificates come from when the trust domain hangs below somebody else's root.

pub mod disk;

use std::time::Duration;

use bonafide_identity::Timestamp;

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
    async fn mint_ca(&self, csr: &[u8], preferred_ttl: Duration, now: Timestamp) -> Result<UpstreamCa, UpstreamError>;

    /// The roots as they are now, DER.
    ///
    /// # Errors
    /// They cannot be read.
    async fn roots(&self) -> Result<Vec<Vec<u8>>, UpstreamError>;
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
