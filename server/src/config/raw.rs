//! The document as it is written: every key optional, nothing checked beyond its type.

use std::collections::BTreeMap;
use std::path::PathBuf;

use bonafide_pki::CaSubject;
use bonafide_runtime::config::HumanDuration;
use bonafide_runtime::telemetry::{LogConfig, LogFormat, LogLevel};
use serde::Deserialize;

use crate::node_attestor::x509pop::Mode;

macro_rules! raw {
    ($($name:ident { $($field:ident: $type:ty,)* })*) => {$(
        #[derive(Debug, Default, Deserialize)]
        #[cfg_attr(test, derive(serde::Serialize))]
        #[serde(deny_unknown_fields, default)]
        pub(super) struct $name {
            $(pub(super) $field: $type,)*
        }
    )*};
}

raw! {
    Raw {
        trust_domain: Option<String>,
        data_dir: Option<PathBuf>,
        admin_ids: Vec<String>,
        listen: RawListen,
        log: RawLog,
        audit: RawAudit,
        authority: RawAuthority,
        key_manager: RawKeyManager,
        upstream_authority: RawUpstream,
        store: RawStore,
        node_attestor: RawNodeAttestor,
        ratelimit: RawRateLimit,
        prune: RawPrune,
        federation: RawFederation,
        lifetime: RawLifetime,
        bundle_publisher: RawBundlePublisher,
    }
    RawListen {
        address: Option<String>,
        admin_socket: Option<PathBuf>,
        health_address: Option<String>,
        max_connections: Option<u32>,
        proxy_protocol_trusted_cidrs: Vec<String>,
    }
    RawLog {
        level: LogLevel,
        format: LogFormat,
        file: Option<PathBuf>,
        source_location: Option<bool>,
    }
    RawAudit {
        enabled: Option<bool>,
        file: Option<PathBuf>,
    }
    RawAuthority {
        ca_ttl: Option<HumanDuration>,
        default_x509_svid_ttl: Option<HumanDuration>,
        default_jwt_svid_ttl: Option<HumanDuration>,
        default_wit_svid_ttl: Option<HumanDuration>,
        agent_ttl: Option<HumanDuration>,
        ca_key_type: Option<String>,
        jwt_key_type: Option<String>,
        wit_key_type: Option<String>,
        ca_subject: RawCaSubject,
        jwt_issuer: Option<String>,
        wit_issuer: Option<String>,
        disable_jwt_svids: Option<bool>,
        disable_wit_svids: Option<bool>,
    }
    RawCaSubject {
        country: Option<Vec<String>>,
        organization: Option<Vec<String>>,
        common_name: Option<String>,
    }
    RawKeyManager {
        disk: Option<RawKeyManagerDisk>,
        memory: Option<RawMemory>,
    }
    RawKeyManagerDisk {
        path: Option<PathBuf>,
    }
    RawMemory {}
    RawUpstream {
        disk: Option<RawUpstreamDisk>,
        spire: Option<RawUpstreamSpire>,
        vault: Option<RawVault>,
        cert_manager: Option<RawCertManager>,
    }
    RawCertManager {
        kube_config_file: Option<PathBuf>,
        namespace: Option<String>,
        issuer_name: Option<String>,
        issuer_kind: Option<String>,
        issuer_group: Option<String>,
    }
    RawVault {
        address: Option<String>,
        ca_cert_path: Option<PathBuf>,
        namespace: Option<String>,
        pki_mount_point: Option<String>,
        token: Option<RawVaultToken>,
        approle: Option<RawVaultAppRole>,
        cert: Option<RawVaultCert>,
        kubernetes: Option<RawVaultKubernetes>,
    }
    RawVaultToken {
        token_file: Option<PathBuf>,
    }
    RawVaultAppRole {
        mount_point: Option<String>,
        role_id: Option<String>,
        secret_id_file: Option<PathBuf>,
    }
    RawVaultCert {
        mount_point: Option<String>,
        role: Option<String>,
        client_cert_path: Option<PathBuf>,
        client_key_path: Option<PathBuf>,
    }
    RawVaultKubernetes {
        mount_point: Option<String>,
        role: Option<String>,
        token_path: Option<PathBuf>,
    }
    RawUpstreamSpire {
        server_address: Option<String>,
        workload_api_socket: Option<PathBuf>,
        poll_interval: Option<HumanDuration>,
    }
    RawUpstreamDisk {
        certificate_path: Option<PathBuf>,
        key_path: Option<PathBuf>,
        bundle_path: Option<PathBuf>,
    }
    RawStore {
        driver: Option<String>,
        path: Option<PathBuf>,
        cache_mib: Option<u32>,
        postgres: Option<RawPostgres>,
    }
    RawPostgres {
        connection_string: Option<String>,
        connection_string_path: Option<PathBuf>,
        ca_path: Option<PathBuf>,
        client_certificate_path: Option<PathBuf>,
        client_key_path: Option<PathBuf>,
        timeout: Option<HumanDuration>,
        max_cut_off: Option<HumanDuration>,
    }
    RawNodeAttestor {
        spiffe_id_selector: Option<bool>,
        join_token: RawJoinToken,
        x509pop: Option<RawX509Pop>,
        sshpop: Option<RawSshPop>,
        tpm_devid: Option<RawTpmDevId>,
        http_challenge: Option<RawHttpChallenge>,
        oidc: Option<RawOidc>,
        k8s_psat: Option<RawK8sPsat>,
        gpu_evidence: Option<RawGpuEvidence>,
    }
    RawGpuEvidence {
        root_paths: Vec<PathBuf>,
        references_path: Option<PathBuf>,
        measurements: Option<String>,
        max_age: Option<HumanDuration>,
        device_selectors: Option<bool>,
    }
    RawJoinToken {
        enabled: Option<bool>,
    }
    RawX509Pop {
        mode: Option<Mode>,
        ca_bundle_path: Option<PathBuf>,
        ca_bundle_paths: Vec<PathBuf>,
        agent_path_template: Option<String>,
        spiffe_prefix: Option<String>,
        max_intermediates: Option<usize>,
        max_rsa_key_size: Option<usize>,
        verify_client_ip: Option<bool>,
    }
    RawSshPop {
        cert_authorities: Vec<String>,
        cert_authorities_path: Option<PathBuf>,
        canonical_domain: Option<String>,
        agent_path_template: Option<String>,
    }
    RawTpmDevId {
        devid_ca_path: Option<PathBuf>,
        endorsement_ca_path: Option<PathBuf>,
    }
    RawHttpChallenge {
        allowed_dns_patterns: Vec<String>,
        required_port: Option<u16>,
        allow_non_root_ports: Option<bool>,
        tofu: Option<bool>,
        allow_local_addresses: Option<bool>,
    }
    RawOidc {
        issuers: Vec<RawIssuer>,
    }
    RawIssuer {
        name: Option<String>,
        url: Option<String>,
        audiences: Vec<String>,
        jwks_path: Option<PathBuf>,
        jwks_url: Option<String>,
        ca_path: Option<PathBuf>,
        fetch_token_path: Option<PathBuf>,
        refresh: Option<HumanDuration>,
        algorithms: Option<Vec<String>>,
        leeway: Option<HumanDuration>,
        max_age: Option<HumanDuration>,
        required_claims: BTreeMap<String, Vec<String>>,
        selectors: BTreeMap<String, String>,
        agent_path_template: Option<String>,
        reattestable: Option<bool>,
    }
    RawK8sPsat {
        clusters: BTreeMap<String, RawPsatCluster>,
    }
    RawPsatCluster {
        service_account_allow_list: Vec<String>,
        audience: Option<Vec<String>>,
        kube_config_file: Option<PathBuf>,
        allowed_node_label_keys: Vec<String>,
        allowed_pod_label_keys: Vec<String>,
        use_pod_uid_for_agent_id: Option<bool>,
        issuer: Option<String>,
        jwks_path: Option<PathBuf>,
        jwks_url: Option<String>,
        ca_path: Option<PathBuf>,
        fetch_token_path: Option<PathBuf>,
        refresh: Option<HumanDuration>,
        max_age: Option<HumanDuration>,
        ask_api_server: Option<bool>,
    }
    RawRateLimit {
        attestation: Option<u32>,
        signing: Option<u32>,
    }
    RawFederation {
        web_ca_path: Option<PathBuf>,
        bundle_endpoint: Option<RawBundleEndpoint>,
        federates_with: BTreeMap<String, RawFederatesWith>,
    }
    RawBundleEndpoint {
        address: Option<String>,
        refresh_hint: Option<HumanDuration>,
        profile: Option<String>,
        certificate_path: Option<PathBuf>,
        key_path: Option<PathBuf>,
        acme: Option<RawAcme>,
    }
    RawAcme {
        domain_name: Option<String>,
        email: Option<String>,
        tos_accepted: Option<bool>,
        directory_url: Option<String>,
        directory_ca_path: Option<PathBuf>,
    }
    RawFederatesWith {
        bundle_endpoint_url: Option<String>,
        profile: Option<String>,
        endpoint_spiffe_id: Option<String>,
    }
    RawLifetime {
        profiles: Vec<String>,
        when_issuer_ends_first: Option<String>,
        rules: Vec<RawLifetimeRule>,
    }
    RawLifetimeRule {
        name: Option<String>,
        kinds: Vec<String>,
        id: Option<String>,
        selectors: Vec<String>,
        from: Option<String>,
        min: Option<HumanDuration>,
        default: Option<HumanDuration>,
        max: Option<HumanDuration>,
        beyond: Option<String>,
    }
    RawBundlePublisher {
        k8s_configmap: RawConfigMaps,
        k8s_cluster_trust_bundle: RawClusterTrustBundles,
        k8s_ca_bundle: RawCaBundles,
    }
    RawConfigMaps {
        clusters: BTreeMap<String, RawConfigMap>,
    }
    RawConfigMap {
        namespace: Option<String>,
        configmap_name: Option<String>,
        configmap_key: Option<String>,
        format: Option<String>,
        refresh_hint: Option<HumanDuration>,
        kubeconfig_path: Option<PathBuf>,
    }
    RawClusterTrustBundles {
        clusters: BTreeMap<String, RawClusterTrustBundle>,
    }
    RawClusterTrustBundle {
        name: Option<String>,
        signer_name: Option<String>,
        kubeconfig_path: Option<PathBuf>,
    }
    RawCaBundles {
        clusters: BTreeMap<String, RawCaBundle>,
    }
    RawCaBundle {
        label: Option<String>,
        kubeconfig_path: Option<PathBuf>,
    }
    RawPrune {
        attested_nodes_expired_for: Option<HumanDuration>,
        tofu_nodes: Option<bool>,
    }
}

impl From<RawLog> for LogConfig {
    fn from(raw: RawLog) -> Self {
        Self {
            level: raw.level,
            format: raw.format,
            file: raw.file,
            source_location: raw.source_location.unwrap_or(false),
        }
    }
}

impl From<RawCaSubject> for CaSubject {
    fn from(raw: RawCaSubject) -> Self {
        if raw.country.is_none() && raw.organization.is_none() && raw.common_name.is_none() {
            return Self::default();
        }
        Self {
            country: raw.country.unwrap_or_default(),
            organization: raw.organization.unwrap_or_default(),
            common_name: raw.common_name,
            organizational_unit: Vec::new(),
            serial_number: None,
        }
    }
}
