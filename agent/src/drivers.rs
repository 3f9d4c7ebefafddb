//! From configuration to the parts that can be chosen: one match for each seam.

use std::sync::Arc;

use bonafide_pki::Random;
use bonafide_runtime::clock::SharedClock;

use crate::config::{NodeAttestorConfig, WorkloadAttestorConfig};
use crate::node_attestor::NodeAttestor;
use crate::node_attestor::http_challenge::HttpChallenge;
use crate::node_attestor::join_token::JoinToken;
use crate::node_attestor::k8s_psat::K8sPsat;
use crate::node_attestor::oidc::Oidc;
use crate::node_attestor::sshpop::SshPop;
use crate::node_attestor::tpm_devid::TpmDevId;
use crate::node_attestor::x509pop::X509Pop;
use crate::workload_attestor::docker::Docker;
use crate::workload_attestor::gpu::Gpu;
use crate::workload_attestor::k8s::K8s;
use crate::workload_attestor::slurm::Slurm;
use crate::workload_attestor::systemd::Systemd;
use crate::workload_attestor::unix::Unix;
use crate::workload_attestor::{WorkloadAttestor, WorkloadAttestors};

pub(crate) fn node_attestor(config: &NodeAttestorConfig, random: &Arc<dyn Random>) -> Arc<dyn NodeAttestor> {
    match config.clone() {
        NodeAttestorConfig::JoinToken(source) => Arc::new(JoinToken::new(source)),
        NodeAttestorConfig::X509Pop { certificate, private_key, intermediates } => {
            Arc::new(X509Pop::new(certificate, private_key, intermediates, Arc::clone(random)))
        }
        NodeAttestorConfig::SshPop { host_key, host_cert } => {
            Arc::new(SshPop::new(host_key, host_cert, Arc::clone(random)))
        }
        NodeAttestorConfig::TpmDevId(config) => Arc::new(TpmDevId::new(config, Arc::clone(random))),
        NodeAttestorConfig::HttpChallenge(config) => Arc::new(HttpChallenge::new(config)),
        NodeAttestorConfig::Oidc(source) => Arc::new(Oidc::new(source)),
        NodeAttestorConfig::K8sPsat { cluster, token_path } => Arc::new(K8sPsat::new(cluster, token_path)),
    }
}

pub(crate) fn workload_attestors(
    config: &[WorkloadAttestorConfig],
    clock: &SharedClock,
) -> WorkloadAttestors {
    // What both attestors of pods ask for, they ask for once.
    let pods = config.iter().find_map(|config| match config {
        WorkloadAttestorConfig::K8s(config) => Some(config.pods()),
        _ => None,
    });
    let attestor = |config: &WorkloadAttestorConfig| -> Option<Arc<dyn WorkloadAttestor>> {
        Some(match config {
            WorkloadAttestorConfig::Unix(config) => Arc::new(Unix::new(config.clone(), Arc::clone(clock))),
            WorkloadAttestorConfig::Systemd(config) => Arc::new(Systemd::new(config.clone())),
            WorkloadAttestorConfig::Docker(config) => Arc::new(Docker::new(config.clone())),
            WorkloadAttestorConfig::K8s(config) => Arc::new(K8s::new(config, Arc::clone(pods.as_ref()?))),
            // The configuration is refused when it has this without the other.
            WorkloadAttestorConfig::Gpu(config) => {
                Arc::new(Gpu::new(config.clone(), Arc::clone(pods.as_ref()?)))
            }
            WorkloadAttestorConfig::Slurm(config) => Arc::new(Slurm::new(config.clone(), Arc::clone(clock))),
        })
    };
    WorkloadAttestors::new(config.iter().filter_map(attestor).collect())
}
