//! Becoming an agent: from a folder and a configuration to an SVID that the server acknowledges.
//!
//! A stored SVID is used again when its key is there and it has not expired. Otherwise the node is attested on a
//! connection without client certificate, and the bundle is fetched on that same connection: it is trusted because the
//! server has just proven itself by the bundle that the operator supplied.
//!
//! When the bundle that the agent holds no longer knows the server, the agent can, if it is told to and can attest again,
//! begin anew with the bundle of the operator ([`decide`]). It does so without a restart: workloads keep what they hold until
//! it has worked.
//!
//! Rejected: waiting for ever at start-up. A node that cannot attest within a minute should be seen by whoever
//! supervises it. (An agent that may begin anew tries for a day.)

pub mod source;
pub mod store;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bonafide_identity::{Bundle, Timestamp, TrustDomain};
use bonafide_pki::{KeyManager, TrustRoots, X509Error};
use bonafide_runtime::backoff::Backoff;
use tonic::Code;

use crate::config::{BootstrapConfig, KeyStorage, Rebootstrap, RebootstrapMode};
use crate::own_svid::{OwnSvid, OwnSvidError, Slots, Stored};
use crate::server_client::{OPERATION_TIMEOUT, ServerError, Verification, unknown_since};
use source::{Inquiry, SourceError};
use store::{AgentData, Attempts, StoreError};

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
    /// The bundle of the operator.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// It is there and cannot be used.
    #[error("the trust bundle for the first contact cannot be used")]
    Supplied(#[source] X509Error),
    /// The bundle that the server sent.
    #[error("the server sent a trust bundle that cannot be used")]
    Bundle(#[source] X509Error),
    /// The server did not attest this node.
    #[error("node attestation failed")]
    Attestation(#[source] ServerError),
    /// The agent's own SVID.
    #[error(transparent)]
    OwnSvid(#[from] OwnSvidError),
    /// The agent should be able to begin anew, and is not.
    #[error(
        "bootstrap.rebootstrap_mode is \"always\", but this agent cannot attest again: neither by its attestor nor by the \
         server's leave"
    )]
    CannotBeginAnew,
}

/// What to do when the server is not known by the bundle that the agent holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unknown {
    /// Try again with the same bundle: it may be an impostor, or a server that is being set up.
    Wait,
    /// Begin anew with the operator's bundle.
    BeginAnew,
}

/// Begin anew after the delay, and only when the agent may attest again: it would be left with nothing otherwise.
pub(crate) fn decide(config: &Rebootstrap, reattestable: bool, since: Timestamp, now: Timestamp) -> Unknown {
    if config.mode != RebootstrapMode::Never && reattestable && now.saturating_since(since) >= config.delay {
        Unknown::BeginAnew
    } else {
        Unknown::Wait
    }
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
    anew: &Rebootstrap,
    patience: AttestPatience,
) -> Result<OwnSvid, BootstrapError> {
    let data = surroundings.file.load()?;
    if !data.bundle.is_empty() {
        trust(surroundings, &data.bundle).map_err(|error| StoreError::Damaged {
            path: Path::new("agent-data.json").to_owned(),
            problem: error.to_string(),
        })?;
    }
    let own = match Stored::find(&data, &surroundings.keys, surroundings.clock.now()).await? {
        Stored::Usable(stored) => {
            let found = stored.id().trust_domain();
            if *found != surroundings.trust_domain {
                return Err(BootstrapError::OtherTrustDomain {
                    found: found.clone(),
                    configured: surroundings.trust_domain.clone(),
                });
            }
            tracing::info!(id = %stored.id(), not_after = stored.not_after().unix_seconds(), "using the stored SVID of the agent");
            if data.bundle.is_empty() {
                supplied(surroundings, config, &data).await?;
            }
            OwnSvid::adopt(surroundings, stored, data.bundle)
        }
        Stored::Unusable(why) => {
            tracing::info!(why, "attesting this node");
            attest(surroundings, data, config, anew, patience).await?
        }
    };
    if anew.mode != RebootstrapMode::Never && !own.reattestable() {
        if anew.mode == RebootstrapMode::Always {
            return Err(BootstrapError::CannotBeginAnew);
        }
        tracing::warn!(
            "this agent cannot attest again, so it cannot begin anew when it no longer knows its server"
        );
    }
    Ok(own)
}

/// How to recognise the server by what the operator supplies; trusts it from now on.
async fn supplied(
    surroundings: &Surroundings,
    config: &BootstrapConfig,
    data: &AgentData,
) -> Result<Verification, BootstrapError> {
    let inquiry = Inquiry {
        trust_domain: &surroundings.trust_domain,
        server: surroundings.connector.address(),
        again: !data.bundle.is_empty(),
        attempts: data.attempts,
        now: surroundings.clock.now(),
    };
    match source::fetch(config, &inquiry).await? {
        None => Ok(Verification::ClaimedId),
        Some(roots) => {
            trust(surroundings, &roots).map_err(|error| match config {
                BootstrapConfig::Bundle { file, .. } => {
                    SourceError::File { path: file.clone(), problem: error.to_string() }.into()
                }
                _ => BootstrapError::Supplied(error),
            })?;
            Ok(Verification::Bundle)
        }
    }
}

async fn attest(
    surroundings: &Surroundings,
    mut data: AgentData,
    config: &BootstrapConfig,
    anew: &Rebootstrap,
    patience: AttestPatience,
) -> Result<OwnSvid, BootstrapError> {
    let started = tokio::time::Instant::now();
    let total = if anew.mode == RebootstrapMode::Never { patience.total } else { PATIENCE_TO_BEGIN_ANEW };
    let mut backoff = Backoff::new(patience.initial, patience.total, 1.5);
    let mut by_stored = !data.bundle.is_empty();
    // Of this run alone: what the file remembers of attempts counts those of an outage, too.
    let mut since = None;
    loop {
        let now = surroundings.clock.now();
        data.attempts = data.attempts.one_more(now);
        surroundings.file.store(&data)?;
        let attempt = async {
            let verification =
                if by_stored { Verification::Bundle } else { supplied(surroundings, config, &data).await? };
            attest_once(surroundings, verification).await
        };
        let attempt = tokio::time::timeout(OPERATION_TIMEOUT, attempt).await;
        let error = match attempt {
            Ok(Ok(own)) => return Ok(own),
            Ok(Err(error)) => error,
            Err(_) => BootstrapError::Attestation(ServerError::Timeout {
                rpc: "AttestAgent",
                after: OPERATION_TIMEOUT,
            }),
        };
        if let BootstrapError::Attestation(error) = &error {
            since = unknown_since(since, Err(error), now);
        }
        if by_stored
            && matches!(&error, BootstrapError::Attestation(error) if error.is_unknown_authority())
            && decide(anew, data.reattestable, since.unwrap_or(now), now) == Unknown::BeginAnew
        {
            tracing::warn!("the server is not known by the stored bundle; beginning anew");
            by_stored = false;
            continue;
        }
        let delay = backoff.next(surroundings.random.u64());
        let is_final = match &error {
            BootstrapError::Attestation(error) => is_final(error),
            BootstrapError::Source(SourceError::Away { .. }) => false,
            _ => true,
        };
        if is_final || started.elapsed() + delay > total {
            return Err(error);
        }
        let text = bonafide_runtime::tasks::chain(&error);
        tracing::warn!(error = text, retry_in = ?delay, "node attestation failed");
        tokio::time::sleep(delay).await;
    }
}

/// Attests the node of a running agent with the operator's bundle in place of the one that no longer knows the server.
/// Nothing of what the agent holds is touched before that has worked.
pub(crate) async fn begin_anew(
    own: &OwnSvid,
    client: &crate::server_client::ServerClient,
    config: &BootstrapConfig,
    attempts: Attempts,
) -> Result<(), BootstrapError> {
    let surroundings = own.surroundings();
    let apart = bonafide_pki::tls::TrustStore::empty();
    let surroundings = Surroundings {
        connector: surroundings.connector.trusting(apart.clone()),
        trust: apart,
        ..surroundings.clone()
    };
    let attempt = async {
        let data = AgentData { bundle: own.roots(), attempts, ..AgentData::default() };
        let verification = supplied(&surroundings, config, &data).await?;
        let connection =
            surroundings.connector.connect(verification, None).await.map_err(BootstrapError::Attestation)?;
        let fresh = Slots::generate(&surroundings, Some(own.slot())).await?;
        let attested = connection
            .attest(&*surroundings.attestor, fresh.csr()?)
            .await
            .map_err(BootstrapError::Attestation)?;
        let pair = fresh.with_chain(attested.chain, attested.reattestable)?;
        let roots = roots(&connection.bundle().await.map_err(BootstrapError::Attestation)?);
        // Checked before anything is replaced.
        trust(&surroundings, &roots).map_err(BootstrapError::Bundle)?;
        Ok((pair, roots))
    };
    let (pair, roots) = tokio::time::timeout(OPERATION_TIMEOUT, attempt).await.unwrap_or_else(|_| {
        Err(BootstrapError::Attestation(ServerError::Timeout {
            rpc: "AttestAgent",
            after: OPERATION_TIMEOUT,
        }))
    })?;
    // The state file first: an agent whose disk is full keeps SVID and bundle as they are.
    own.install(pair, Some(roots.clone()), client).await?;
    trust(own.surroundings(), &roots).map_err(BootstrapError::Bundle)
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

fn roots(bundle: &Bundle) -> Vec<Vec<u8>> {
    bundle.x509_authorities.iter().map(|authority| authority.certificate.clone()).collect()
}

fn trust(surroundings: &Surroundings, roots: &[Vec<u8>]) -> Result<(), X509Error> {
    let prepared = TrustRoots::from_der(roots.iter().map(Vec::as_slice))?;
    surroundings.trust.set_trust_domain(&surroundings.trust_domain, &Arc::new(prepared));
    Ok(())
}

/// The key manager: its file is beside the state, where it has one.
pub(crate) fn key_manager(
    storage: KeyStorage,
    folder: &Path,
) -> Result<Arc<dyn KeyManager>, bonafide_pki::KeyError> {
    Ok(match storage {
        KeyStorage::Disk => Arc::new(bonafide_pki::key_manager::Disk::open(folder.join("keys.json"))?),
        KeyStorage::Memory => Arc::new(bonafide_pki::key_manager::Memory::new()),
    })
}

/// SPIRE's bound for agents that may begin anew.
const PATIENCE_TO_BEGIN_ANEW: Duration = Duration::from_secs(24 * 3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_begins_anew_after_the_delay_when_it_may_and_can() {
        let at = |seconds| Timestamp::from_unix_seconds(seconds);
        let config = |mode| Rebootstrap { mode, delay: Duration::from_secs(600) };
        for (mode, reattestable, now, expected) in [
            (RebootstrapMode::Never, true, 1_000_000, Unknown::Wait),
            (RebootstrapMode::Auto, true, 599, Unknown::Wait),
            (RebootstrapMode::Auto, true, 600, Unknown::BeginAnew),
            (RebootstrapMode::Auto, false, 600, Unknown::Wait),
            (RebootstrapMode::Always, true, 600, Unknown::BeginAnew),
            (RebootstrapMode::Always, false, 600, Unknown::Wait),
        ] {
            assert_eq!(decide(&config(mode), reattestable, at(0), at(now)), expected, "{mode:?} {now}");
        }
        // A clock that goes back makes nothing shorter.
        assert_eq!(decide(&config(RebootstrapMode::Auto), true, at(900), at(0)), Unknown::Wait);
    }
}
