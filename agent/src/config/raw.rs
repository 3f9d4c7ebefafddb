//! The configuration file as it is written.

use std::collections::BTreeMap;
use std::path::PathBuf;

use bonafide_runtime::config::HumanDuration;
use bonafide_runtime::telemetry::{LogFormat, LogLevel};
use serde::{Deserialize, Serialize};

use super::{BundleFormat, KeyStorage, RebootstrapMode};

macro_rules! table {
    ($(#[$doc:meta])* $name:ident { $($key:ident: $kind:ty),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Default, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub(super) struct $name {
            $(pub(super) $key: $kind),*
        }
    };
}

table! {
    /// The whole file.
    Raw {
        trust_domain: Option<String>,
        data_dir: Option<PathBuf>,
        key_manager: Option<KeyStorage>,
        sync_interval: Option<HumanDuration>,
        health_address: Option<String>,
        allow_unauthenticated_verifiers: Option<bool>,
        allowed_foreign_jwt_claims: Option<Vec<String>>,
        server: Server,
        bootstrap: Bootstrap,
        node_attestor: NodeAttestor,
        workload_api: WorkloadApi,
        admin: Admin,
        broker: Broker,
        rate_limit: RateLimit,
        log: Log,
        svid: Svid,
        workload_attestor: WorkloadAttestor,
        gpu_evidence: Option<GpuEvidence>,
    }
}

table! {
    GpuEvidence {
        command: Option<PathBuf>,
        timeout: Option<HumanDuration>,
    }
}

table! { Server { address: Option<String> } }

table! {
    Bootstrap {
        bundle_file: Option<PathBuf>,
        bundle_url: Option<String>,
        bundle_unix_socket: Option<PathBuf>,
        bundle_workload_api: Option<String>,
        bundle_format: Option<BundleFormat>,
        insecure: Option<bool>,
        rebootstrap_mode: Option<RebootstrapMode>,
        rebootstrap_delay: Option<HumanDuration>,
    }
}

table! {
    /// Which table is present says which attestor is meant.
    NodeAttestor {
        join_token: Option<JoinToken>,
        x509pop: Option<X509Pop>,
        sshpop: Option<SshPop>,
        tpm_devid: Option<TpmDevId>,
        http_challenge: Option<HttpChallenge>,
        oidc: Option<Oidc>,
        k8s_psat: Option<K8sPsat>,
    }
}

table! {
    JoinToken {
        token: Option<String>,
        token_file: Option<PathBuf>,
    }
}

table! {
    X509Pop {
        certificate_path: Option<PathBuf>,
        private_key_path: Option<PathBuf>,
        intermediates_path: Option<PathBuf>,
    }
}

table! {
    SshPop {
        host_key_path: Option<PathBuf>,
        host_cert_path: Option<PathBuf>,
    }
}

table! {
    TpmDevId {
        devid_cert_path: Option<PathBuf>,
        devid_priv_path: Option<PathBuf>,
        devid_pub_path: Option<PathBuf>,
        devid_password: Option<String>,
        tpm_device_path: Option<PathBuf>,
        owner_hierarchy_password: Option<String>,
        endorsement_hierarchy_password: Option<String>,
    }
}

table! {
    HttpChallenge {
        hostname: Option<String>,
        agentname: Option<String>,
        port: Option<u16>,
        advertised_port: Option<u16>,
    }
}

table! {
    Oidc {
        token_path: Option<PathBuf>,
        token_url: Option<String>,
        method: Option<String>,
        headers: Option<BTreeMap<String, String>>,
        response_field: Option<String>,
        ca_path: Option<PathBuf>,
    }
}

table! {
    WorkloadApi {
        socket: Option<PathBuf>,
        enabled: Option<bool>,
    }
}

table! {
    K8sPsat {
        cluster: Option<String>,
        token_path: Option<PathBuf>,
    }
}

table! {
    Admin {
        socket: Option<PathBuf>,
        authorized_delegates: Option<Vec<String>>,
    }
}

table! {
    Broker {
        socket: Option<PathBuf>,
        address: Option<String>,
        brokers: Option<Vec<BrokerEntry>>,
    }
}

table! {
    BrokerEntry {
        id: Option<String>,
        allowed_reference_types: Option<Vec<ReferenceType>>,
    }
}

table! {
    ReferenceType {
        type_url: Option<String>,
        allow_over_tcp: Option<bool>,
    }
}

table! {
    RateLimit {
        fetch_x509_svid: Option<u32>,
        fetch_jwt_svid: Option<u32>,
        fetch_x509_bundles: Option<u32>,
        fetch_jwt_bundles: Option<u32>,
    }
}

table! {
    Log {
        level: Option<LogLevel>,
        format: Option<LogFormat>,
        file: Option<PathBuf>,
        source_location: Option<bool>,
        selectors: Option<Vec<String>>,
    }
}

table! {
    Svid {
        key_type: Option<String>,
        availability_target: Option<HumanDuration>,
        x509_cache_size: Option<usize>,
        jwt_cache_size: Option<usize>,
    }
}

table! {
    /// Which tables are present says which attestors run.
    WorkloadAttestor {
        unix: Option<Unix>,
        systemd: Option<Systemd>,
        docker: Option<Docker>,
        k8s: Option<K8s>,
        gpu: Option<Gpu>,
        slurm: Option<Slurm>,
    }
}

table! {
    K8s {
        pods_api_socket: Option<PathBuf>,
        kubelet_secure_port: Option<u16>,
        kubelet_read_only_port: Option<u16>,
        kubelet_ca_path: Option<PathBuf>,
        skip_kubelet_verification: Option<bool>,
        token_path: Option<PathBuf>,
        certificate_path: Option<PathBuf>,
        private_key_path: Option<PathBuf>,
        use_anonymous_authentication: Option<bool>,
        node_name: Option<String>,
        node_name_env: Option<String>,
        max_poll_attempts: Option<u32>,
        poll_retry_interval: Option<HumanDuration>,
        disable_container_selectors: Option<bool>,
        cgroup_roots: Option<Vec<String>>,
    }
}

table! {
    Gpu {
        pod_resources_socket: Option<PathBuf>,
        device_uuids: Option<bool>,
    }
}

table! {
    Slurm {
        jobs_dir: Option<PathBuf>,
        cgroup_root: Option<PathBuf>,
    }
}

table! { Systemd { bus_socket: Option<PathBuf> } }

table! {
    Docker {
        docker_socket_path: Option<String>,
        docker_version: Option<String>,
        podman_socket_path: Option<String>,
        podman_socket_path_template: Option<String>,
        container_id_cgroup_matchers: Option<Vec<String>>,
    }
}

table! {
    Unix {
        discover_workload_path: Option<bool>,
        workload_size_limit: Option<i64>,
    }
}

#[cfg(test)]
impl Raw {
    /// Nothing but every table, so that each key shows when this is written out.
    pub(super) fn with_all_tables() -> Self {
        Self {
            node_attestor: NodeAttestor {
                join_token: Some(JoinToken::default()),
                x509pop: Some(X509Pop::default()),
                sshpop: Some(SshPop::default()),
                tpm_devid: Some(TpmDevId::default()),
                http_challenge: Some(HttpChallenge::default()),
                oidc: Some(Oidc::default()),
                k8s_psat: Some(K8sPsat::default()),
            },
            workload_attestor: WorkloadAttestor {
                unix: Some(Unix::default()),
                systemd: Some(Systemd::default()),
                docker: Some(Docker::default()),
                k8s: Some(K8s::default()),
                gpu: Some(Gpu::default()),
                slurm: Some(Slurm::default()),
            },
            gpu_evidence: Some(GpuEvidence::default()),
            ..Self::default()
        }
    }
}
