//! From the configuration to the implementation behind each seam: one `match` for each.

use std::sync::Arc;

use bonafide_identity::TrustDomain;
use bonafide_pki::key_manager::{self, KeyManager};
use bonafide_pki::{KeyError, Random};
use bonafide_runtime::clock::SharedClock;
use bonafide_runtime::tasks::chain;

use crate::bundle_publisher::BundlePublisher;
use crate::bundle_publisher::kubernetes::{CaBundle, ClusterTrustBundle, ConfigMap};
use crate::config::lifetime::judge;
use crate::config::{
    BundlePublisherSettings, Config, KeyManagerSettings, NodeAttestorSettings, StoreSettings, Target,
    UpstreamSettings, VaultSettings,
};
use crate::federation;
use crate::gpu_evidence::GpuEvidence;
use crate::kubernetes;
use crate::node_attestor::Attestors;
use crate::node_attestor::http_challenge::{HttpChallenge, SystemResolver};
use crate::node_attestor::join_token::JoinToken;
use crate::node_attestor::k8s_psat::{K8sPsat, K8sPsatError};
use crate::node_attestor::oidc::{KeysError, Oidc};
use crate::node_attestor::roots::RootsError;
use crate::node_attestor::sshpop::{SshPop, SshPopError};
use crate::node_attestor::tpm_devid::TpmDevId;
use crate::node_attestor::x509pop::X509Pop;
use crate::store::{Store, StoreConfig};
use crate::upstream_authority::cert_manager::{self, CertManager};
use crate::upstream_authority::disk::{Disk, DiskConfig};
use crate::upstream_authority::spire::{Spire, SpireConfig};
use crate::upstream_authority::vault::{Vault, VaultConfig};
use crate::upstream_authority::{UpstreamAuthority, UpstreamError};

/// Where private keys are kept.
///
/// # Errors
/// The key file cannot be read.
pub fn key_manager(settings: &KeyManagerSettings) -> Result<Arc<dyn KeyManager>, KeyError> {
    Ok(match settings {
        KeyManagerSettings::Memory => Arc::new(key_manager::Memory::new()),
        KeyManagerSettings::Disk { path } => Arc::new(key_manager::Disk::open(path)?),
    })
}

/// Who signs the CA certificate. Nobody else is asked anything yet.
///
/// # Errors
/// Its files cannot be used.
pub fn upstream_authority(
    settings: Option<&UpstreamSettings>,
    trust_domain: &TrustDomain,
    random: &Arc<dyn Random>,
    clock: &SharedClock,
) -> Result<Option<Arc<dyn UpstreamAuthority>>, UpstreamError> {
    Ok(match settings {
        None => None,
        Some(UpstreamSettings::Disk { certificate_path, key_path, bundle_path }) => {
            let config = DiskConfig {
                trust_domain: trust_domain.clone(),
                cert_file_path: certificate_path.clone(),
                key_file_path: key_path.clone(),
                bundle_file_path: bundle_path.clone(),
            };
            Some(Arc::new(Disk::open(config, random.clone(), clock.now())?))
        }
        Some(UpstreamSettings::Vault(settings)) => {
            let VaultSettings { address, ca_cert_path, namespace, pki_mount_point, auth } = settings.clone();
            let trust_domain = trust_domain.clone();
            let config =
                VaultConfig { trust_domain, address, ca_cert_path, namespace, pki_mount_point, auth };
            Some(Arc::new(Vault::new(config)))
        }
        Some(UpstreamSettings::CertManager { access, issuer }) => {
            let api = kubernetes::connect(access).map_err(cert_manager::refused)?;
            Some(Arc::new(CertManager::new(trust_domain.clone(), issuer.clone(), api)))
        }
        Some(UpstreamSettings::Spire { server_address, workload_api_socket, poll_interval }) => {
            let config = SpireConfig {
                trust_domain: trust_domain.clone(),
                server_address: server_address.clone(),
                workload_api_socket: workload_api_socket.clone(),
                poll_interval: *poll_interval,
            };
            Some(Arc::new(Spire::new(config, clock.clone(), random.clone())))
        }
    })
}

/// Where the own bundle is published.
///
/// # Errors
/// The files that say how to reach a cluster cannot be used.
pub fn bundle_publishers(
    settings: &[BundlePublisherSettings],
) -> Result<Vec<Arc<dyn BundlePublisher>>, BundlePublisherError> {
    let publisher = |settings: &BundlePublisherSettings| {
        let BundlePublisherSettings { name, access, target } = settings.clone();
        let api = kubernetes::connect(&access)
            .map_err(|source| BundlePublisherError { name: name.clone(), source })?;
        Ok::<Arc<dyn BundlePublisher>, _>(match target {
            Target::ConfigMap(settings) => Arc::new(ConfigMap::new(name, api, settings)),
            Target::ClusterTrustBundle { name: object, signer_name } => {
                Arc::new(ClusterTrustBundle::new(name, api, object, signer_name))
            }
            Target::CaBundle { label } => Arc::new(CaBundle::new(name, api, label)),
        })
    };
    settings.iter().map(publisher).collect()
}

/// Why a bundle publisher cannot be started.
#[derive(Debug, thiserror::Error)]
#[error("bundle_publisher.{name}")]
pub struct BundlePublisherError {
    name: String,
    source: kubernetes::ApiError,
}

/// Which store, and where.
pub fn store_config(settings: &StoreSettings, trust_domain: &TrustDomain) -> StoreConfig {
    StoreConfig {
        driver: settings.driver,
        path: settings.path.clone(),
        cache_bytes: settings.cache_bytes,
        trust_domain: trust_domain.clone(),
        postgres: settings.postgres.clone(),
    }
}

/// The node attestors that are configured.
///
/// # Errors
/// The files of one cannot be used.
pub fn node_attestors(
    settings: &NodeAttestorSettings,
    trust_domain: &TrustDomain,
    store: &Store,
    random: &Arc<dyn Random>,
) -> Result<Attestors, NodeAttestorError> {
    let mut attestors = Attestors::default();
    if settings.join_token {
        attestors = attestors.with(Arc::new(JoinToken::new(trust_domain.clone(), store.clone())));
    }
    if let Some(settings) = &settings.x509pop {
        let state = store.state().clone();
        let attestor = X509Pop::new(trust_domain.clone(), settings.clone(), state, random.clone())
            .map_err(NodeAttestorError::X509Pop)?;
        attestors = attestors.with(Arc::new(attestor));
    }
    if let Some(settings) = &settings.sshpop {
        let attestor = SshPop::new(trust_domain.clone(), settings.clone(), random.clone())?;
        attestors = attestors.with(Arc::new(attestor));
    }
    if let Some(settings) = &settings.tpm_devid {
        let attestor = TpmDevId::new(trust_domain.clone(), settings, random.clone())
            .map_err(NodeAttestorError::TpmDevId)?;
        attestors = attestors.with(Arc::new(attestor));
    }
    if let Some(settings) = &settings.http_challenge {
        let (resolver, random) = (Arc::new(SystemResolver), random.clone());
        let attestor = HttpChallenge::new(trust_domain.clone(), settings.clone(), resolver, random);
        attestors = attestors.with(Arc::new(attestor));
    }
    if !settings.oidc.is_empty() {
        attestors = attestors.with(Arc::new(Oidc::new(trust_domain.clone(), settings.oidc.clone())?));
    }
    if !settings.k8s_psat.is_empty() {
        let clusters = settings.k8s_psat.clone();
        let attestor = K8sPsat::new(trust_domain.clone(), clusters, &kubernetes::connect)?;
        attestors = attestors.with(Arc::new(attestor));
    }
    Ok(attestors)
}

/// Why a node attestor cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum NodeAttestorError {
    /// `x509pop`.
    #[error("node_attestor.x509pop: {0}")]
    X509Pop(#[source] RootsError),
    /// `sshpop`.
    #[error("node_attestor.sshpop: {0}")]
    SshPop(#[from] SshPopError),
    /// `tpm_devid`.
    #[error("node_attestor.tpm_devid: {0}")]
    TpmDevId(#[source] RootsError),
    /// `gpu_evidence`.
    #[error("node_attestor.gpu_evidence: {0}")]
    GpuEvidence(#[from] crate::gpu_evidence::GpuEvidenceFilesError),
    /// `oidc`.
    #[error("node_attestor.oidc: {0}")]
    Oidc(#[from] KeysError),
    /// `k8s_psat`.
    #[error("node_attestor.k8s_psat: {0}")]
    K8sPsat(#[from] K8sPsatError),
}

/// Whether everything that the configuration names can be used, without starting anything: for `validate`.
pub fn check(config: &Config, random: &Arc<dyn Random>, clock: &SharedClock) -> Vec<String> {
    let mut problems = judge(config, clock.now()).problems;
    if let Err(error) =
        upstream_authority(config.upstream_authority.as_ref(), &config.trust_domain, random, clock)
    {
        problems.push(format!("upstream_authority: {error}"));
    }
    if let Some(x509pop) = &config.node_attestor.x509pop
        && let Err(error) = X509Pop::check(x509pop)
    {
        problems.push(format!("node_attestor.x509pop: {error}"));
    }
    if let Some(sshpop) = &config.node_attestor.sshpop
        && let Err(error) = SshPop::check(sshpop)
    {
        problems.push(format!("node_attestor.sshpop: {error}"));
    }
    if let Some(tpm_devid) = &config.node_attestor.tpm_devid
        && let Err(error) = TpmDevId::check(tpm_devid)
    {
        problems.push(format!("node_attestor.tpm_devid: {error}"));
    }
    if let Some(Err(error)) = config.node_attestor.gpu_evidence.clone().map(GpuEvidence::open) {
        problems.push(format!("node_attestor.gpu_evidence: {error}"));
    }
    if let Err(error) = Oidc::check(&config.node_attestor.oidc) {
        problems.push(format!("node_attestor.oidc: {error}"));
    }
    let clusters = config.node_attestor.k8s_psat.clone();
    if let Err(error) = K8sPsat::new(config.trust_domain.clone(), clusters, &kubernetes::connect) {
        problems.push(format!("node_attestor.k8s_psat: {error}"));
    }
    if let Err(error) = bundle_publishers(&config.bundle_publishers) {
        problems.push(chain(&error));
    }
    problems.extend(federation::check(&config.federation));
    problems
}
