//! Becoming an agent: from a folder and a configuration to an SVID that the server acknowledges.
//!
//! A stored SVID is used again when its key is there and it has not expired. Otherwise the node is attested on a
//! connection without client certificate, and the bundle is fetched on that same connection: it is trusted because the
//! server has just proven itself by the bundle that the operator supplied.
//!
//! Rejected: waiting for ever at start-up. A node that cannot attest within a minute should be seen by whoever
//! supervises it.

pub mod store;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bonafide_identity::{Bundle, TrustDomain};
use bonafide_pki::{KeyManager, TrustRoots, X509Error, bundle};
use bonafide_runtime::backoff::Backoff;
use tonic::Code;

use crate::config::{BootstrapConfig, BundleFormat};
use crate::own_svid::{OwnSvid, OwnSvidError, Slots, Stored};
use crate::server_client::{OPERATION_TIMEOUT, ServerError, Verification};
use store::{AgentData, StoreError};

pub(crate) use crate::own_svid::Surroundings;

/// Why the agent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// The stored state.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The stored state is of another trust domain.
    #[error("the data folder belongs to trust domain {found}, not {configured}: use another data_dir")]
    OtherTrustDomain {
        /// Whose SVID lies there.
        found: TrustDomain,
        /// What the configuration says.
        configured: TrustDomain,
    },
    /// The bundle file.
    #[error("cannot use the trust bundle in {path}: {problem}")]
    BundleFile {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The bundle that the server sent.
    #[error("the server sent a trust bundle that cannot be used")]
    Bundle(#[source] X509Error),
    /// The server did not attest this node.
    #[error("node attestation failed")]
    Attestation(#[source] ServerError),
    /// The agent's own SVID.
    #[error(transparent)]
    OwnSvid(#[from] OwnSvidError),
}

/// How long a first attestation is tried.
#[derive(Debug, Clone, Copy)]
pub struct AttestPatience {
    /// The first wait between two attempts.
    pub initial: Duration,
    /// How long to try.
    pub total: Duration,
}

impl Default for AttestPatience {
    fn default() -> Self {
        Self { initial: Duration::from_secs(5), total: Duration::from_secs(60) }
    }
}

/// Finds or obtains the agent's SVID.
pub(crate) async fn bootstrap(
    surroundings: &Surroundings,
    config: &BootstrapConfig,
    patience: AttestPatience,
) -> Result<OwnSvid, BootstrapError> {
    let data = surroundings.file.load()?;
    let now = surroundings.clock.now();
    let verification = if !data.bundle.is_empty() {
        trust(surroundings, &data.bundle).map_err(|error| StoreError::Damaged {
            path: Path::new("agent-data.json").to_owned(),
            problem: error.to_string(),
        })?;
        Verification::Bundle
    } else {
        match config {
            BootstrapConfig::Bundle { file, format } => {
                let problem = |problem: String| BootstrapError::BundleFile { path: file.clone(), problem };
                let bundle = read_bundle(&surroundings.trust_domain, file, *format).map_err(problem)?;
                let roots = roots(&bundle);
                if roots.is_empty() {
                    return Err(problem("it holds no X.509 authority".to_owned()));
                }
                trust(surroundings, &roots).map_err(|error| problem(error.to_string()))?;
                Verification::Bundle
            }
            BootstrapConfig::Insecure => Verification::ClaimedId,
        }
    };

    match Stored::find(&data, &surroundings.keys, now).await? {
        Stored::Usable(stored) => {
            let found = stored.id().trust_domain();
            if *found != surroundings.trust_domain {
                return Err(BootstrapError::OtherTrustDomain {
                    found: found.clone(),
                    configured: surroundings.trust_domain.clone(),
                });
            }
            tracing::info!(id = %stored.id(), not_after = stored.not_after().unix_seconds(), "using the stored SVID of the agent");
            return Ok(OwnSvid::adopt(surroundings, stored, roots_or_empty(&data)));
        }
        Stored::Unusable(why) => tracing::info!(why, "attesting this node"),
    }
    attest(surroundings, verification, patience).await
}

async fn attest(
    surroundings: &Surroundings,
    verification: Verification,
    patience: AttestPatience,
) -> Result<OwnSvid, BootstrapError> {
    let started = tokio::time::Instant::now();
    let mut backoff = Backoff::new(patience.initial, patience.total, 1.5);
    loop {
        let attempt = tokio::time::timeout(OPERATION_TIMEOUT, attest_once(surroundings, verification)).await;
        let error = match attempt {
            Ok(Ok(own)) => return Ok(own),
            Ok(Err(BootstrapError::Attestation(error))) => error,
            Ok(Err(other)) => return Err(other),
            Err(_) => ServerError::Timeout { rpc: "AttestAgent", after: OPERATION_TIMEOUT },
        };
        let delay = backoff.next(surroundings.random.u64());
        if is_final(&error) || started.elapsed() + delay > patience.total {
            return Err(BootstrapError::Attestation(error));
        }
        let text = bonafide_runtime::tasks::chain(&error);
        tracing::warn!(error = text, retry_in = ?delay, "node attestation failed");
        tokio::time::sleep(delay).await;
    }
}

/// Whether asking again would bring the same answer.
fn is_final(error: &ServerError) -> bool {
    matches!(error, ServerError::Attestor(_))
        || matches!(
            error.code(),
            Some(
                Code::PermissionDenied
                    | Code::InvalidArgument
                    | Code::FailedPrecondition
                    | Code::Unimplemented
            )
        )
}

async fn attest_once(
    surroundings: &Surroundings,
    verification: Verification,
) -> Result<OwnSvid, BootstrapError> {
    let connection =
        surroundings.connector.connect(verification, None).await.map_err(BootstrapError::Attestation)?;
    let fresh = Slots::generate(surroundings, None).await?;
    let attested = connection
        .attest(&*surroundings.attestor, fresh.csr()?)
        .await
        .map_err(BootstrapError::Attestation)?;
    let stored = fresh.with_chain(attested.chain, attested.reattestable)?;
    let bundle = connection.bundle().await.map_err(BootstrapError::Attestation)?;
    let roots = roots(&bundle);
    trust(surroundings, &roots).map_err(BootstrapError::Bundle)?;
    let own = OwnSvid::adopt(surroundings, stored, roots);
    own.persist().await?;
    tracing::info!(id = %own.id(), "this node is attested");
    Ok(own)
}

fn read_bundle(trust_domain: &TrustDomain, file: &Path, format: BundleFormat) -> Result<Bundle, String> {
    let content = std::fs::read(file).map_err(|error| error.to_string())?;
    match format {
        BundleFormat::Pem => bundle::from_pem(trust_domain, &content),
        BundleFormat::Spiffe => bundle::from_spiffe_json(trust_domain, &content),
    }
    .map_err(|error| error.to_string())
}

fn roots(bundle: &Bundle) -> Vec<Vec<u8>> {
    bundle.x509_authorities.iter().map(|authority| authority.certificate.clone()).collect()
}

fn roots_or_empty(data: &AgentData) -> Vec<Vec<u8>> {
    data.bundle.clone()
}

fn trust(surroundings: &Surroundings, roots: &[Vec<u8>]) -> Result<(), X509Error> {
    let prepared = TrustRoots::from_der(roots.iter().map(Vec::as_slice))?;
    surroundings.trust.set_trust_domain(&surroundings.trust_domain, &Arc::new(prepared));
    Ok(())
}

/// The key manager's file beside the state.
pub(crate) fn key_manager(folder: &Path) -> Result<Arc<dyn KeyManager>, bonafide_pki::KeyError> {
    Ok(Arc::new(bonafide_pki::key_manager::Disk::open(folder.join("keys.json"))?))
}
