//! What becomes of each setting of SPIRE's `server.conf`.

use std::net::{IpAddr, Ipv4Addr};

use bonafide_identity::TrustDomain;
use bonafide_runtime::import::Carry::{Block, Left, Moot, To, Used};
use bonafide_runtime::import::Form::{Bool, Duration, Integer, Lower, Text, Texts};
use bonafide_runtime::import::{Carry, Import, Row, Table, shared};
use toml::Value;

use super::{Config, reference};
use crate::node_attestor::sshpop;
use crate::node_attestor::x509pop::{AgentPathTemplate, Mode};

/// The translation of `server.conf`.
pub const TABLE: Table = Table {
    program: "bonafide-server",
    rows: ROWS,
    order: || reference::FIELDS.iter().map(|field| field.key).collect(),
    compose,
    validate: |text| Config::parse(text, "the translated configuration".as_ref()).map(drop),
};

const fn row(setting: &'static str, carry: Carry) -> Row {
    Row { setting, carry }
}

const MEMORY: &str =
    "rights and entries are looked up in memory on each call here, so there is no cache to tune";
const PROFILING: &str =
    "there is no profiling endpoint: attach a profiler such as perf to the process instead";
const TELEMETRY: &str = "metrics are offered to Prometheus only, at listen.health_address under /metrics";
const KEYS: &str = "keys are kept in a file or in memory only; the written configuration keeps them in a file, which may be \
                    weaker than what this plugin gave";
const UPSTREAM: &str = "this upstream authority does not exist here: sign this server's CA with upstream_authority.disk, .spire, .vault \
                        or .cert_manager, or let it be self-signed";
const ATTESTOR: &str = "this node attestor does not exist here: its agents must attest in another way and then have other SPIFFE IDs, \
                        so entries below them need new parents. For Google Cloud and Azure see node_attestor.oidc, for \
                        the rest x509pop, sshpop, tpm_devid, http_challenge and join tokens";
const PUBLISHER: &str = "bundles are published to Kubernetes clusters only (bundle_publisher): publish what `bonafide bundle show --format spiffe` prints, \
                         by a timer";
const DATABASE_IAM: &str = "passwords made by AWS IAM do not exist here: give the database's role a password or a client certificate, and \
                            write a connection string with it";
const ONE_CONNECTION: &str = "a server has one connection to the database here";
const MYSQL_TLS: &str = "it is for MySQL; with PostgreSQL the connection string says it";
const CONTENT: &str = "what is in SPIRE's database is not read: move the entries with `spire-server entry show -output json` and \
                       `bonafide entry import`, federated bundles with `spire-server bundle list -output json` and `bonafide bundle \
                       import`; agents attest anew";
const PIPE: &str = "named pipes exist on Windows only";
const PQ: &str = "key exchange that withstands quantum computers cannot be required";

const ROWS: &[Row] = &[
    row("server.admin_ids", To(Texts, "admin_ids")),
    row("server.agent_ttl", To(Duration, "authority.agent_ttl")),
    row("server.audit_log_enabled", Used),
    row("server.bind_address", Used),
    row("server.bind_port", Used),
    row("server.ca_key_type", To(Lower, "authority.ca_key_type")),
    row("server.ca_subject.country", Used),
    row("server.ca_subject.organization", Used),
    row("server.ca_subject.common_name", Used),
    row("server.ca_ttl", To(Duration, "authority.ca_ttl")),
    row("server.data_dir", Used),
    row("server.default_x509_svid_ttl", To(Duration, "authority.default_x509_svid_ttl")),
    row("server.default_jwt_svid_ttl", To(Duration, "authority.default_jwt_svid_ttl")),
    row("server.disable_jwt_svids", Used),
    row("server.jwt_issuer", Used),
    row("server.jwt_key_type", To(Lower, "authority.jwt_key_type")),
    row("server.log_file", To(Text, "log.file")),
    row("server.log_level", Used),
    row("server.log_format", To(Lower, "log.format")),
    row("server.log_source_location", To(Bool, "log.source_location")),
    row("server.prune_attested_nodes_expired_for", To(Duration, "prune.attested_nodes_expired_for")),
    row(
        "server.prune_attested_nodes_batch_size",
        Moot("pruning does not hold anything up, so it has no batches to size"),
    ),
    row("server.prune_tofu_nodes", Used),
    row("server.proxy_protocol_trusted_cidrs", To(Texts, "listen.proxy_protocol_trusted_cidrs")),
    row("server.ratelimit.attestation", Used),
    row("server.ratelimit.signing", Used),
    row("server.socket_path", Used),
    row("server.trust_domain", Used),
    row("server.max_attested_node_info_staleness", Moot(MEMORY)),
    row("server.profiling_enabled", Left(PROFILING)),
    row("server.profiling_port", Moot(PROFILING)),
    row("server.profiling_freq", Moot(PROFILING)),
    row("server.profiling_names", Moot(PROFILING)),
    row("server.federation.bundle_endpoint", Block),
    row("server.federation.bundle_endpoint.address", Used),
    row("server.federation.bundle_endpoint.port", Used),
    row(
        "server.federation.bundle_endpoint.refresh_hint",
        To(Duration, "federation.bundle_endpoint.refresh_hint"),
    ),
    row("server.federation.bundle_endpoint.acme", Block),
    row("server.federation.bundle_endpoint.acme.directory_url", Used),
    row("server.federation.bundle_endpoint.acme.domain_name", Used),
    row("server.federation.bundle_endpoint.acme.email", Used),
    row("server.federation.bundle_endpoint.acme.tos_accepted", Used),
    row("server.federation.bundle_endpoint.profile.https_spiffe", Used),
    row("server.federation.bundle_endpoint.profile.https_web", Block),
    row("server.federation.bundle_endpoint.profile.https_web.acme", Block),
    row("server.federation.bundle_endpoint.profile.https_web.acme.directory_url", Used),
    row("server.federation.bundle_endpoint.profile.https_web.acme.domain_name", Used),
    row("server.federation.bundle_endpoint.profile.https_web.acme.email", Used),
    row("server.federation.bundle_endpoint.profile.https_web.acme.tos_accepted", Used),
    row("server.federation.bundle_endpoint.profile.https_web.serving_cert_file", Block),
    row("server.federation.bundle_endpoint.profile.https_web.serving_cert_file.cert_file_path", Used),
    row("server.federation.bundle_endpoint.profile.https_web.serving_cert_file.key_file_path", Used),
    row(
        "server.federation.bundle_endpoint.profile.https_web.serving_cert_file.file_sync_interval",
        Moot("a new certificate is noticed within seconds"),
    ),
    row("server.federation.federates_with.*", Block),
    row("server.federation.federates_with.*.bundle_endpoint_url", Used),
    row("server.federation.federates_with.*.bundle_endpoint_profile.https_spiffe", Block),
    row("server.federation.federates_with.*.bundle_endpoint_profile.https_spiffe.endpoint_spiffe_id", Used),
    row("server.federation.federates_with.*.bundle_endpoint_profile.https_web", Used),
    row("server.experimental.agent_spiffe_id_as_selector", To(Bool, "node_attestor.spiffe_id_selector")),
    row(
        "server.experimental.auth_opa_policy_engine",
        Left("who may call what is fixed, as by SPIRE's own policy: there are no policies in Rego"),
    ),
    row("server.experimental.cache_reload_interval", Moot(MEMORY)),
    row("server.experimental.full_cache_reload_interval", Moot(MEMORY)),
    row("server.experimental.events_based_cache", Moot(MEMORY)),
    row("server.experimental.prune_events_older_than", Moot(MEMORY)),
    row("server.experimental.event_timeout", Moot(MEMORY)),
    row("server.experimental.sql_transaction_timeout", Moot(MEMORY)),
    row("server.experimental.require_pq_kem", Left(PQ)),
    row("server.experimental.wit_key_type", To(Lower, "authority.wit_key_type")),
    row("server.experimental.wit_issuer", Used),
    row("server.experimental.feature_flags", Used),
    row("server.experimental.named_pipe_name", Moot(PIPE)),
    row("telemetry.Prometheus.host", Used),
    row("telemetry.Prometheus.port", Used),
    row("telemetry.Prometheus.tls", Left("/metrics is plain HTTP: keep it on a loopback or private address")),
    row("telemetry.InMem", Moot("metrics are kept in memory always")),
    row(
        "telemetry.EnableTrustDomainLabel",
        Left("the metrics name no trust domain: add the label in Prometheus's scrape configuration"),
    ),
    row("telemetry.EnableHostnameLabel", Moot("Prometheus adds the instance itself")),
    row("telemetry.*", Left(TELEMETRY)),
    row("health_checks.listener_enabled", Used),
    row("health_checks.bind_address", Used),
    row("health_checks.bind_port", Used),
    row("health_checks.ready_path", Used),
    row("health_checks.live_path", Used),
    row("plugins.DataStore.sql", Used),
    row("plugins.DataStore.sql.database_type", Used),
    row("plugins.DataStore.sql.connection_string", Used),
    row("plugins.DataStore.sql.ro_connection_string", Moot("every read is answered from memory here")),
    row("plugins.DataStore.sql.max_open_conns", Moot(ONE_CONNECTION)),
    row("plugins.DataStore.sql.max_idle_conns", Moot(ONE_CONNECTION)),
    row("plugins.DataStore.sql.conn_max_lifetime", Moot(ONE_CONNECTION)),
    row("plugins.DataStore.sql.disable_migration", Moot("the tables of this server need no migration")),
    row("plugins.DataStore.sql.root_ca_path", Moot(MYSQL_TLS)),
    row("plugins.DataStore.sql.client_cert_path", Moot(MYSQL_TLS)),
    row("plugins.DataStore.sql.client_key_path", Moot(MYSQL_TLS)),
    row("plugins.DataStore.*", Left("this store does not exist here: choose one with store.driver")),
    row("plugins.KeyManager.disk", Used),
    row(
        "plugins.KeyManager.disk.keys_path",
        Moot("this server makes keys of its own, in key_manager.disk.path; SPIRE's file stays as it is"),
    ),
    row("plugins.KeyManager.memory", Used),
    row("plugins.KeyManager.*", Left(KEYS)),
    row("plugins.NodeAttestor.join_token", Used),
    row("plugins.NodeAttestor.x509pop", Used),
    row("plugins.NodeAttestor.x509pop.mode", To(Lower, "node_attestor.x509pop.mode")),
    row("plugins.NodeAttestor.x509pop.spiffe_prefix", Used),
    row("plugins.NodeAttestor.x509pop.ca_bundle_path", To(Text, "node_attestor.x509pop.ca_bundle_path")),
    row("plugins.NodeAttestor.x509pop.ca_bundle_paths", To(Texts, "node_attestor.x509pop.ca_bundle_paths")),
    row("plugins.NodeAttestor.x509pop.agent_path_template", Used),
    row(
        "plugins.NodeAttestor.x509pop.max_intermediates",
        To(Integer, "node_attestor.x509pop.max_intermediates"),
    ),
    row(
        "plugins.NodeAttestor.x509pop.max_rsa_key_size",
        To(Integer, "node_attestor.x509pop.max_rsa_key_size"),
    ),
    row("plugins.NodeAttestor.x509pop.verify_client_ip", To(Bool, "node_attestor.x509pop.verify_client_ip")),
    row("plugins.NodeAttestor.sshpop", Used),
    row("plugins.NodeAttestor.sshpop.cert_authorities", To(Texts, "node_attestor.sshpop.cert_authorities")),
    row(
        "plugins.NodeAttestor.sshpop.cert_authorities_path",
        To(Text, "node_attestor.sshpop.cert_authorities_path"),
    ),
    row("plugins.NodeAttestor.sshpop.canonical_domain", To(Text, "node_attestor.sshpop.canonical_domain")),
    row("plugins.NodeAttestor.sshpop.agent_path_template", Used),
    row("plugins.NodeAttestor.tpm_devid", Used),
    row("plugins.NodeAttestor.tpm_devid.devid_ca_path", To(Text, "node_attestor.tpm_devid.devid_ca_path")),
    row(
        "plugins.NodeAttestor.tpm_devid.endorsement_ca_path",
        To(Text, "node_attestor.tpm_devid.endorsement_ca_path"),
    ),
    row("plugins.NodeAttestor.http_challenge", Used),
    row(
        "plugins.NodeAttestor.http_challenge.allowed_dns_patterns",
        To(Texts, "node_attestor.http_challenge.allowed_dns_patterns"),
    ),
    row(
        "plugins.NodeAttestor.http_challenge.required_port",
        To(Integer, "node_attestor.http_challenge.required_port"),
    ),
    row(
        "plugins.NodeAttestor.http_challenge.allow_non_root_ports",
        To(Bool, "node_attestor.http_challenge.allow_non_root_ports"),
    ),
    row("plugins.NodeAttestor.http_challenge.tofu", To(Bool, "node_attestor.http_challenge.tofu")),
    row("plugins.NodeAttestor.k8s_psat", Used),
    row("plugins.NodeAttestor.k8s_psat.clusters.*", Block),
    row("plugins.NodeAttestor.k8s_psat.clusters.*.service_account_allow_list", Used),
    row("plugins.NodeAttestor.k8s_psat.clusters.*.audience", Used),
    row("plugins.NodeAttestor.k8s_psat.clusters.*.kube_config_file", Used),
    row("plugins.NodeAttestor.k8s_psat.clusters.*.allowed_node_label_keys", Used),
    row("plugins.NodeAttestor.k8s_psat.clusters.*.allowed_pod_label_keys", Used),
    row("plugins.NodeAttestor.k8s_psat.clusters.*.use_pod_uid_for_agent_id", Used),
    row("plugins.NodeAttestor.*", Left(ATTESTOR)),
    row("plugins.UpstreamAuthority.disk", Used),
    row(
        "plugins.UpstreamAuthority.disk.cert_file_path",
        To(Text, "upstream_authority.disk.certificate_path"),
    ),
    row("plugins.UpstreamAuthority.disk.key_file_path", To(Text, "upstream_authority.disk.key_path")),
    row("plugins.UpstreamAuthority.disk.bundle_file_path", To(Text, "upstream_authority.disk.bundle_path")),
    row("plugins.UpstreamAuthority.spire", Used),
    row("plugins.UpstreamAuthority.spire.server_address", Used),
    row("plugins.UpstreamAuthority.spire.server_port", Used),
    row(
        "plugins.UpstreamAuthority.spire.workload_api_socket",
        To(Text, "upstream_authority.spire.workload_api_socket"),
    ),
    row("plugins.UpstreamAuthority.spire.experimental.workload_api_named_pipe_name", Moot(PIPE)),
    row("plugins.UpstreamAuthority.spire.experimental.require_pq_kem", Left(PQ)),
    row("plugins.UpstreamAuthority.vault", Used),
    row("plugins.UpstreamAuthority.vault.vault_addr", To(Text, "upstream_authority.vault.address")),
    row("plugins.UpstreamAuthority.vault.namespace", To(Text, "upstream_authority.vault.namespace")),
    row(
        "plugins.UpstreamAuthority.vault.pki_mount_point",
        To(Text, "upstream_authority.vault.pki_mount_point"),
    ),
    row("plugins.UpstreamAuthority.vault.ca_cert_path", To(Text, "upstream_authority.vault.ca_cert_path")),
    row(
        "plugins.UpstreamAuthority.vault.insecure_skip_verify",
        Left(
            "Vault's certificate is always verified: name its roots in upstream_authority.vault.ca_cert_path",
        ),
    ),
    row("plugins.UpstreamAuthority.vault.token_auth", Block),
    row("plugins.UpstreamAuthority.vault.token_auth.token", Used),
    row("plugins.UpstreamAuthority.vault.approle_auth", Block),
    row(
        "plugins.UpstreamAuthority.vault.approle_auth.approle_auth_mount_point",
        To(Text, "upstream_authority.vault.approle.mount_point"),
    ),
    row(
        "plugins.UpstreamAuthority.vault.approle_auth.approle_id",
        To(Text, "upstream_authority.vault.approle.role_id"),
    ),
    row("plugins.UpstreamAuthority.vault.approle_auth.approle_secret_id", Used),
    row("plugins.UpstreamAuthority.vault.cert_auth", Block),
    row(
        "plugins.UpstreamAuthority.vault.cert_auth.cert_auth_mount_point",
        To(Text, "upstream_authority.vault.cert.mount_point"),
    ),
    row(
        "plugins.UpstreamAuthority.vault.cert_auth.cert_auth_role_name",
        To(Text, "upstream_authority.vault.cert.role"),
    ),
    row(
        "plugins.UpstreamAuthority.vault.cert_auth.client_cert_path",
        To(Text, "upstream_authority.vault.cert.client_cert_path"),
    ),
    row(
        "plugins.UpstreamAuthority.vault.cert_auth.client_key_path",
        To(Text, "upstream_authority.vault.cert.client_key_path"),
    ),
    row("plugins.UpstreamAuthority.vault.k8s_auth", Block),
    row(
        "plugins.UpstreamAuthority.vault.k8s_auth.k8s_auth_mount_point",
        To(Text, "upstream_authority.vault.kubernetes.mount_point"),
    ),
    row(
        "plugins.UpstreamAuthority.vault.k8s_auth.k8s_auth_role_name",
        To(Text, "upstream_authority.vault.kubernetes.role"),
    ),
    row(
        "plugins.UpstreamAuthority.vault.k8s_auth.token_path",
        To(Text, "upstream_authority.vault.kubernetes.token_path"),
    ),
    row("plugins.UpstreamAuthority.cert-manager", Used),
    row(
        "plugins.UpstreamAuthority.cert-manager.kube_config_file",
        To(Text, "upstream_authority.cert_manager.kube_config_file"),
    ),
    row(
        "plugins.UpstreamAuthority.cert-manager.namespace",
        To(Text, "upstream_authority.cert_manager.namespace"),
    ),
    row(
        "plugins.UpstreamAuthority.cert-manager.issuer_name",
        To(Text, "upstream_authority.cert_manager.issuer_name"),
    ),
    row(
        "plugins.UpstreamAuthority.cert-manager.issuer_kind",
        To(Text, "upstream_authority.cert_manager.issuer_kind"),
    ),
    row(
        "plugins.UpstreamAuthority.cert-manager.issuer_group",
        To(Text, "upstream_authority.cert_manager.issuer_group"),
    ),
    row("plugins.UpstreamAuthority.*", Left(UPSTREAM)),
    row("plugins.BundlePublisher.k8s_configmap", Used),
    row("plugins.BundlePublisher.k8s_configmap.clusters.*", Block),
    row("plugins.BundlePublisher.k8s_configmap.clusters.*.configmap_name", Used),
    row("plugins.BundlePublisher.k8s_configmap.clusters.*.configmap_key", Used),
    row("plugins.BundlePublisher.k8s_configmap.clusters.*.namespace", Used),
    row("plugins.BundlePublisher.k8s_configmap.clusters.*.kubeconfig_path", Used),
    row("plugins.BundlePublisher.k8s_configmap.clusters.*.format", Used),
    row("plugins.BundlePublisher.k8s_configmap.clusters.*.refresh_hint", Used),
    row("plugins.BundlePublisher.*", Left(PUBLISHER)),
    row("plugins.Notifier.*", Left(PUBLISHER)),
    row(
        "plugins.CredentialComposer.*",
        Left(
            "what is in a certificate or token cannot be changed by plugins: see whether DNS names and TTLs of entries do",
        ),
    ),
];

fn compose(import: &mut Import<'_>) {
    base(import);
    address(import);
    authority(import);
    datastore(import);
    shared::health(import, "listen.health_address");
    x509pop(import);
    node_attestors(import);
    k8s_psat(import);
    configmaps(import);
    upstream(import);
    bundle_endpoint(import);
    federates_with(import);
}

/// The folder of this server within SPIRE's.
fn own_folder(import: &mut Import<'_>) -> String {
    let folder = import.text("server.data_dir").unwrap_or_default();
    format!("{}/bonafide", folder.trim_end_matches('/'))
}

fn base(import: &mut Import<'_>) {
    match import.text("server.trust_domain") {
        Some(text) => {
            // SPIRE takes both forms here.
            let name = text.strip_prefix("spiffe://").unwrap_or(&text);
            import.set("trust_domain", name, "server.trust_domain", None);
        }
        None => import.refuse("server.trust_domain", "is required"),
    }
    match import.text("server.data_dir") {
        Some(_) => {
            let own = own_folder(import);
            let why = "A folder of its own within SPIRE's: both keep files of the same names, and SPIRE's must stay as they are for as \
                       long as there is a way back.";
            import.set("data_dir", own, "server.data_dir", Some(why));
        }
        None => import.refuse("server.data_dir", "is required"),
    }
    let socket = import.text("server.socket_path");
    let socket = socket.unwrap_or_else(|| "/tmp/spire-server/private/api.sock".to_owned());
    import.set("listen.admin_socket", socket, "server.socket_path", None);
    if let Some(level) = import.text("server.log_level") {
        import.set("log.level", shared::log_level(&level), "server.log_level", None);
    }
    let audit = import.bool("server.audit_log_enabled").unwrap_or(false);
    import.set("audit.enabled", audit, "server.audit_log_enabled", None);
    if audit {
        import.note(
            "server.audit_log_enabled",
            "audit lines go to audit.file, one JSON object each, and not into the log",
        );
    }
    for (setting, key, on) in [
        ("server.ratelimit.attestation", "ratelimit.attestation", 1),
        ("server.ratelimit.signing", "ratelimit.signing", 500),
    ] {
        let limit = if import.bool(setting).unwrap_or(true) { on } else { 0 };
        import.set(key, limit, setting, None);
    }
    let pruned = import.is_set("prune.attested_nodes_expired_for");
    if import.bool("server.prune_tofu_nodes") == Some(true) {
        if pruned {
            import.set("prune.tofu_nodes", true, "server.prune_tofu_nodes", None);
        } else {
            import
                .moot("server.prune_tofu_nodes", "it says nothing without prune_attested_nodes_expired_for");
        }
    }
    let memory = import.has("plugins.KeyManager.memory");
    if memory && import.has("plugins.KeyManager.disk") {
        import.refuse("plugins.KeyManager.memory", "there can be one KeyManager");
    } else if memory {
        import.set_table("key_manager.memory", "plugins.KeyManager.memory", None);
    }
    // SPIRE takes join tokens whether the plugin is there or not.
    import.set("node_attestor.join_token.enabled", true, "plugins.NodeAttestor.join_token", None);
}

fn address(import: &mut Import<'_>) {
    let address = import.text("server.bind_address").unwrap_or_else(|| "0.0.0.0".to_owned());
    let port = import.integer("server.bind_port").filter(|port| *port != 0).unwrap_or(8081);
    let host = shared::host(&address).unwrap_or_else(|| {
        let why = "it is a name, and this server binds to addresses only: write the address into listen.address, where \
                   127.0.0.1 stands now";
        import.left("server.bind_address", why);
        "127.0.0.1".to_owned()
    });
    let from = if import.has("server.bind_port") { "server.bind_port" } else { "server.bind_address" };
    import.set("listen.address", format!("{host}:{port}"), from, None);
}

fn authority(import: &mut Import<'_>) {
    import.default("authority.ca_ttl", "24h");
    import.default("authority.default_x509_svid_ttl", "1h");
    import.default("authority.default_jwt_svid_ttl", "5m");
    for (setting, key, form) in [
        ("server.ca_subject.country", "authority.ca_subject.country", Texts),
        ("server.ca_subject.organization", "authority.ca_subject.organization", Texts),
        ("server.ca_subject.common_name", "authority.ca_subject.common_name", Text),
    ] {
        let value = import.value(setting, form);
        // An empty subject is the default one.
        if let Some(value) = value.filter(|value| value.as_array().is_none_or(|list| !list.is_empty())) {
            import.set(key, value, setting, None);
        }
    }
    let no_jwt = import.bool("server.disable_jwt_svids").unwrap_or(false);
    import.set("authority.disable_jwt_svids", no_jwt, "server.disable_jwt_svids", None);
    issuer(import, "server.jwt_issuer", "authority.jwt_issuer", no_jwt);
    let mut wit = false;
    let flags = import.value("server.experimental.feature_flags", Texts);
    for flag in flags.as_ref().and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
        if flag == "wit-svid" {
            wit = true;
        } else {
            let why = format!("the feature {flag:?} is not known here");
            import.left("server.experimental.feature_flags", &why);
        }
    }
    import.set("authority.disable_wit_svids", !wit, "server.experimental.feature_flags", None);
    issuer(import, "server.experimental.wit_issuer", "authority.wit_issuer", !wit);
}

/// The database stays PostgreSQL where it was that, with tables of our own beside SPIRE's; others become files.
fn datastore(import: &mut Import<'_>) {
    const PLUGIN: &str = "plugins.DataStore.sql";
    if !import.has(PLUGIN) {
        return;
    }
    import.left(PLUGIN, CONTENT);
    let kind = format!("{PLUGIN}.database_type");
    if import.is_block(&kind) {
        return import.left(&kind, DATABASE_IAM);
    }
    match import.text(&kind).as_deref() {
        Some("postgres") => {
            import.set("store.driver", "postgres", &kind, None);
            let path = format!("{}/postgres", own_folder(import));
            let secret = format!("{PLUGIN}.connection_string");
            let why = format!(
                "secrets are read from files: write it to {path}, of mode 0600; TLS is verified whatever its sslmode says, \
                 unless that is disable"
            );
            import.left(&secret, &why);
            let comment = "Put the connection string there, in a file that only the server's user can read.";
            import.set("store.postgres.connection_string_path", path, "", Some(comment));
        }
        Some("mysql") => {
            import.left(&kind, "MySQL is not used here: one server keeps files, a group shares PostgreSQL");
        }
        _ => {}
    }
}

fn issuer(import: &mut Import<'_>, setting: &str, key: &str, disabled: bool) {
    let Some(issuer) = import.text(setting) else { return };
    if disabled {
        import.moot(setting, "such SVIDs are disabled");
    } else {
        import.set(key, issuer, setting, None);
    }
}

fn x509pop(import: &mut Import<'_>) {
    const PLUGIN: &str = "plugins.NodeAttestor.x509pop";
    if !import.has(PLUGIN) {
        return;
    }
    let setting = |name: &str| format!("{PLUGIN}.{name}");
    import.default("node_attestor.x509pop.mode", "external_pki");
    let spiffe = import.set_value("node_attestor.x509pop.mode").and_then(Value::as_str) == Some("spiffe");
    let prefix = setting("spiffe_prefix");
    if let Some(text) = import.text(&prefix) {
        if spiffe {
            let slash = if text.ends_with('/') { "" } else { "/" };
            import.set("node_attestor.x509pop.spiffe_prefix", format!("{text}{slash}"), &prefix, None);
        } else {
            import.moot(&prefix, "it says nothing in the external_pki mode");
        }
    }
    let mode = if spiffe { Mode::Spiffe } else { Mode::ExternalPki };
    template(import, "x509pop", |text| {
        AgentPathTemplate::parse(text, mode).map(drop).map_err(|error| error.to_string())
    });
}

fn template(import: &mut Import<'_>, attestor: &str, check: impl Fn(&str) -> Result<(), String>) {
    let setting = format!("plugins.NodeAttestor.{attestor}.agent_path_template");
    let Some(text) = import.text(&setting) else { return };
    match check(&text) {
        Ok(()) => import.set(&format!("node_attestor.{attestor}.agent_path_template"), text, &setting, None),
        Err(error) => {
            let why = format!(
                "{error}: without it agents get other SPIFFE IDs, so write a template of the names that are known here \
                 (see the reference) or give entries below these agents new parents"
            );
            import.left(&setting, &why);
        }
    }
}

fn node_attestors(import: &mut Import<'_>) {
    if import.has("plugins.NodeAttestor.sshpop") {
        template(import, "sshpop", |text| {
            sshpop::template(text).map(drop).map_err(|error| error.to_string())
        });
    }
    const CHALLENGE: &str = "plugins.NodeAttestor.http_challenge";
    if import.has(CHALLENGE) {
        import.default("node_attestor.http_challenge.tofu", true);
        import.note(
            CHALLENGE,
            "host names become lower case in agents' IDs and selectors, and names that lead to loopback and link-local addresses are \
             not called; allow_local_addresses = true allows that",
        );
    }
}

fn k8s_psat(import: &mut Import<'_>) {
    const CLUSTERS: &str = "plugins.NodeAttestor.k8s_psat.clusters";
    if !import.has("plugins.NodeAttestor.k8s_psat") {
        return;
    }
    let names = import.names("plugins.NodeAttestor.k8s_psat.clusters.*");
    if names.is_empty() {
        import.moot("plugins.NodeAttestor.k8s_psat", "without clusters it attests nobody");
    }
    for name in names {
        let block = format!("{CLUSTERS}.{name}");
        let key = |setting: &str| format!("node_attestor.k8s_psat.clusters.{name:?}.{setting}");
        for (setting, form) in [
            ("service_account_allow_list", Texts),
            ("audience", Texts),
            ("kube_config_file", Text),
            ("allowed_node_label_keys", Texts),
            ("allowed_pod_label_keys", Texts),
            ("use_pod_uid_for_agent_id", Bool),
        ] {
            let from = format!("{block}.{setting}");
            match import.value(&from, form) {
                Some(value) => import.set(&key(setting), value, &from, None),
                None if setting == "service_account_allow_list" => import.refuse(&from, "is required"),
                None => {}
            }
        }
    }
}

fn configmaps(import: &mut Import<'_>) {
    const PLUGIN: &str = "plugins.BundlePublisher.k8s_configmap";
    if !import.has(PLUGIN) {
        return;
    }
    let names = import.names("plugins.BundlePublisher.k8s_configmap.clusters.*");
    if names.is_empty() {
        import.moot(PLUGIN, "without clusters it publishes nothing");
    }
    for name in names {
        let from = |setting: &str| format!("{PLUGIN}.clusters.{name}.{setting}");
        let key = |setting: &str| format!("bundle_publisher.k8s_configmap.clusters.{name:?}.{setting}");
        for setting in ["namespace", "configmap_name", "configmap_key", "format"] {
            match import.value(&from(setting), Text) {
                Some(value) => import.set(&key(setting), value, &from(setting), None),
                None => import.refuse(&from(setting), "is required"),
            }
        }
        if import.text(&from("kubeconfig_path")).is_some_and(|path| !path.is_empty())
            && let Some(path) = import.value(&from("kubeconfig_path"), Text)
        {
            import.set(&key("kubeconfig_path"), path, &from("kubeconfig_path"), None);
        }
        // It has an effect in one format only, and is refused with the others.
        if import.text(&from("format")).as_deref() == Some("spiffe")
            && let Some(hint) = import.value(&from("refresh_hint"), Duration)
        {
            import.set(&key("refresh_hint"), hint, &from("refresh_hint"), None);
        }
    }
}

fn upstream(import: &mut Import<'_>) {
    const SPIRE: &str = "plugins.UpstreamAuthority.spire";
    const CERT_MANAGER: &str = "plugins.UpstreamAuthority.cert-manager";
    let kinds =
        ["disk", "spire", "vault", "cert-manager"].map(|kind| format!("plugins.UpstreamAuthority.{kind}"));
    for second in kinds.iter().filter(|kind| import.has(kind)).skip(1).cloned().collect::<Vec<_>>() {
        import.refuse(&second, "there can be one UpstreamAuthority");
    }
    if import.has(SPIRE) {
        let [address, port] = ["server_address", "server_port"].map(|name| format!("{SPIRE}.{name}"));
        match (import.text(&address), import.text(&port)) {
            (Some(host), Some(port)) => {
                let host = host.trim_matches(['[', ']']);
                let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
                let key = "upstream_authority.spire.server_address";
                import.set(key, format!("{host}:{port}"), &address, None);
            }
            (None, _) => import.refuse(&address, "is required"),
            (_, None) => import.refuse(&port, "is required"),
        }
    }
    if import.has("plugins.UpstreamAuthority.vault") {
        vault(import);
    }
    if import.has(CERT_MANAGER) {
        for name in ["namespace", "issuer_name"] {
            if !import.is_set(&format!("upstream_authority.cert_manager.{name}")) {
                import.refuse(&format!("{CERT_MANAGER}.{name}"), "is required");
            }
        }
    }
}

/// SPIRE takes secrets from its file and much from the environment, which wins over the file; here neither is read.
fn vault(import: &mut Import<'_>) {
    const PLUGIN: &str = "plugins.UpstreamAuthority.vault";
    const KEY: &str = "upstream_authority.vault";
    let own = own_folder(import);
    import.note(PLUGIN, "variables of the environment such as VAULT_ADDR and VAULT_TOKEN are not read");
    let missing = |import: &mut Import<'_>, setting: &str, key: &str, value: String, from: &str| {
        let key = format!("{KEY}.{key}");
        if !import.is_set(&key) {
            let why = format!("SPIRE's file does not say it: {from}. Say it in {key}");
            import.left(&format!("{PLUGIN}.{setting}"), &why);
            import.set(&key, value, "", Some("SPIRE's file does not say it."));
        }
    };
    let from = |variable: &str| format!("SPIRE takes it from {variable}");
    let address = "https://127.0.0.1:8200".to_owned();
    missing(import, "vault_addr", "address", address, &from("VAULT_ADDR"));
    let address = import.set_value("upstream_authority.vault.address").and_then(Value::as_str);
    if address.is_some_and(|address| address.starts_with("https://")) {
        let roots = "SPIRE trusts those of VAULT_CACERT, or the system's";
        missing(import, "ca_cert_path", "ca_cert_path", format!("{own}/vault-ca.pem"), roots);
    }
    let methods = ["token_auth", "approle_auth", "cert_auth", "k8s_auth"];
    let methods = methods.map(|method| format!("{PLUGIN}.{method}"));
    let chosen: Vec<&String> = methods.iter().filter(|method| import.has(method)).collect();
    if chosen.len() != 1 {
        import.refuse(PLUGIN, "needs one of token_auth, approle_auth, cert_auth and k8s_auth");
        return;
    }
    let secret = |import: &mut Import<'_>, setting: &str, key: &str, file: &str| {
        let (setting, path) = (format!("{PLUGIN}.{setting}"), format!("{own}/{file}"));
        import.left(&setting, &format!("secrets are read from files: write it to {path}, of mode 0600"));
        let why = "Put the secret there, in a file that only the server's user can read.";
        import.set(&format!("{KEY}.{key}"), path, "", Some(why));
    };
    match chosen[0].as_str() {
        "plugins.UpstreamAuthority.vault.token_auth" => {
            secret(import, "token_auth.token", "token.token_file", "vault-token");
        }
        "plugins.UpstreamAuthority.vault.approle_auth" => {
            let role = "role-id".to_owned();
            missing(import, "approle_auth.approle_id", "approle.role_id", role, &from("VAULT_APPROLE_ID"));
            secret(import, "approle_auth.approle_secret_id", "approle.secret_id_file", "vault-secret-id");
        }
        "plugins.UpstreamAuthority.vault.cert_auth" => {
            for (name, file, variable) in [
                ("client_cert_path", "vault-client.pem", "VAULT_CLIENT_CERT"),
                ("client_key_path", "vault-client.key", "VAULT_CLIENT_KEY"),
            ] {
                let (setting, key) = (format!("cert_auth.{name}"), format!("cert.{name}"));
                missing(import, &setting, &key, format!("{own}/{file}"), &from(variable));
            }
        }
        _ => {
            for name in ["k8s_auth_role_name", "token_path"] {
                let setting = format!("{PLUGIN}.k8s_auth.{name}");
                let key = if name == "token_path" { name } else { "role" };
                if !import.is_set(&format!("{KEY}.kubernetes.{key}")) {
                    import.refuse(&setting, "is required");
                }
            }
        }
    }
}

fn bundle_endpoint(import: &mut Import<'_>) {
    const BLOCK: &str = "server.federation.bundle_endpoint";
    const KEY: &str = "federation.bundle_endpoint";
    const FILES: &str = "profile.https_web.serving_cert_file";
    if !import.has(BLOCK) {
        return;
    }
    let setting = |name: &str| format!("{BLOCK}.{name}");
    let (address, port) = (setting("address"), setting("port"));
    let text = import.text(&address);
    let host = text.as_deref().and_then(|text| text.parse::<IpAddr>().ok());
    if text.is_some() && host.is_none() {
        import
            .note(&address, "it is not an IP address: SPIRE then listens on all addresses, and so does this");
    }
    let number = import.integer(&port).unwrap_or(0);
    if number == 0 {
        import.note(&port, "without it SPIRE listens on any free port, and so does this: say which");
    }
    let host = host.unwrap_or(Ipv4Addr::UNSPECIFIED.into());
    let host = if host.is_ipv6() { format!("[{host}]") } else { host.to_string() };
    let from = if import.has(&port) { &port } else { BLOCK };
    let why = "While SPIRE's server runs on the same machine, only one of them can have this address.";
    import.set(&format!("{KEY}.address"), format!("{host}:{number}"), from, Some(why));

    let profile = format!("{KEY}.profile");
    let (old, web, spiffe) = (setting("acme"), setting("profile.https_web"), setting("profile.https_spiffe"));
    if [&old, &web, &spiffe].into_iter().filter(|one| import.has(one)).count() > 1 {
        import.refuse(BLOCK, "needs exactly one profile");
    } else if import.has(&web) || import.has(&old) {
        let from = if import.has(&web) { &web } else { &old };
        import.set(&profile, "https_web", from, None);
        let nested = setting("profile.https_web.acme");
        if let Some(block) = [old, nested].into_iter().find(|block| import.has(block)) {
            return acme(import, &block);
        }
        for (name, key) in [("cert_file_path", "certificate_path"), ("key_file_path", "key_path")] {
            let name = setting(&format!("{FILES}.{name}"));
            match import.text(&name) {
                Some(path) => import.set(&format!("{KEY}.{key}"), path, &name, None),
                None => import.refuse(&name, "is required"),
            }
        }
    } else {
        import.set(&profile, "https_spiffe", &spiffe, None);
    }
}

fn acme(import: &mut Import<'_>, block: &str) {
    const KEY: &str = "federation.bundle_endpoint.acme";
    let setting = |name: &str| format!("{block}.{name}");
    for name in ["domain_name", "email"] {
        match import.text(&setting(name)).filter(|text| !text.is_empty()) {
            Some(text) => import.set(&format!("{KEY}.{name}"), text, &setting(name), None),
            None => import.refuse(&setting(name), "is required"),
        }
    }
    if let Some(url) = import.text(&setting("directory_url")).filter(|text| !text.is_empty()) {
        import.set(&format!("{KEY}.directory_url"), url, &setting("directory_url"), None);
    }
    let accepted = import.bool(&setting("tos_accepted")).unwrap_or(false);
    import.set(&format!("{KEY}.tos_accepted"), true, &setting("tos_accepted"), None);
    if !accepted {
        import.note(
            &setting("tos_accepted"),
            "it is not true, and with SPIRE there would be no certificate: accept the ACME server's terms of service before you \
             use this file",
        );
    }
    import.note(
        block,
        "account and certificate are this server's own: it orders another certificate at its first start",
    );
}

fn federates_with(import: &mut Import<'_>) {
    const BLOCK: &str = "server.federation.federates_with";
    let mut done: Vec<TrustDomain> = Vec::new();
    for name in import.names("server.federation.federates_with.*") {
        let block = format!("{BLOCK}.{name}");
        let trust_domain = match TrustDomain::parse_lenient(&name) {
            Ok(trust_domain) if done.contains(&trust_domain) => {
                import.refuse(&block, "is a trust domain that stands there twice");
                continue;
            }
            Ok(trust_domain) => trust_domain,
            Err(error) => {
                import.refuse(&block, &format!("is not a trust domain: {error}"));
                continue;
            }
        };
        let key = |name: &str| format!("federation.federates_with.\"{trust_domain}\".{name}");
        let url = format!("{block}.bundle_endpoint_url");
        match import.text(&url) {
            Some(text) => import.set(&key("bundle_endpoint_url"), text, &url, None),
            None => import.refuse(&url, "is required"),
        }
        let profile = format!("{block}.bundle_endpoint_profile");
        let (web, spiffe) = (format!("{profile}.https_web"), format!("{profile}.https_spiffe"));
        match (import.has(&web), import.has(&spiffe)) {
            (true, false) => import.set(&key("profile"), "https_web", &web, None),
            (false, true) => {
                import.set(&key("profile"), "https_spiffe", &spiffe, None);
                let id = format!("{spiffe}.endpoint_spiffe_id");
                match import.text(&id) {
                    Some(text) => import.set(&key("endpoint_spiffe_id"), text, &id, None),
                    None => import.refuse(&id, "is required"),
                }
            }
            _ => import.refuse(&profile, "needs one of the profiles https_spiffe and https_web"),
        }
        done.push(trust_domain);
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::Path;

    use bonafide_runtime::import::{Translation, translate};

    use super::*;
    use crate::config::{BundleEndpointProfile, KeyManagerSettings, UpstreamSettings};
    use crate::kubernetes::Access;
    use crate::node_attestor::k8s_psat::Proof;
    use crate::store::EndpointProfile;
    use crate::upstream_authority::vault::VaultAuth;

    fn attempt(text: &str) -> Result<Translation, Vec<String>> {
        let read = |path: &Path| match path.to_str() {
            Some("x509pop.hcl") => Ok("ca_bundle_path = \"roots.pem\"\nmax_intermediates = 2".to_owned()),
            _ => Err(io::Error::from(io::ErrorKind::NotFound)),
        };
        translate(&TABLE, "server.conf", text, &read)
            .map_err(|mistakes| mistakes.iter().map(ToString::to_string).collect())
    }

    fn import(text: &str) -> (Config, Translation) {
        let translation = attempt(text).unwrap();
        let config = Config::parse(&translation.text, Path::new("server.toml")).unwrap();
        (config, translation)
    }

    fn left(translation: &Translation) -> Vec<&str> {
        translation.left.iter().map(|remark| remark.setting.as_str()).collect()
    }

    const LEAST: &str = "server {\n trust_domain = \"example.org\"\n data_dir = \"/var/lib/spire\"\n}\n";

    #[test]
    fn defaults_stay_those_of_spire() {
        let (config, translation) = import(&format!(
            "{LEAST}plugins {{ DataStore \"sql\" {{ plugin_data {{ database_type = \"sqlite3\" connection_string = \"hidden\" }} }} KeyManager \"disk\" {{ plugin_data {{ keys_path = \"k\" }} }} }}"
        ));
        assert_eq!(config.listen.admin_socket, Path::new("/tmp/spire-server/private/api.sock"));
        assert_eq!(config.data_dir, Path::new("/var/lib/spire/bonafide"));
        assert_eq!(
            config.key_manager,
            KeyManagerSettings::Disk { path: "/var/lib/spire/bonafide/keys.json".into() }
        );
        assert_eq!(config.audit.file, None);
        assert!(config.authority.disable_wit_svids);
        assert_eq!((config.ratelimit.attestation, config.ratelimit.signing), (1, 500));
        assert_eq!(left(&translation), ["plugins.DataStore.sql"]);
        assert!(!translation.text.contains("hidden"), "{}", translation.text);
        assert!(translation.text.contains("bonafide entry import"), "{}", translation.text);
    }

    #[test]
    fn a_group_stays_on_postgresql_and_its_secret_out_of_the_file() {
        let (config, translation) = import(&format!(
            "{LEAST}plugins {{ DataStore \"sql\" {{ plugin_data {{ database_type = \"postgres\" max_open_conns = 5 connection_string = \
             \"dbname=spire password=hidden\" }} }} KeyManager \"disk\" {{ plugin_data {{ keys_path = \"k\" }} }} }}"
        ));
        assert_eq!(config.store.driver, crate::store::DriverKind::Postgres);
        let path = "/var/lib/spire/bonafide/postgres".into();
        let found = config.store.postgres.map(|postgres| postgres.connection_string);
        assert_eq!(found, Some(crate::store::ConnectionSecret::File(path)));
        assert_eq!(left(&translation), ["plugins.DataStore.sql", "plugins.DataStore.sql.connection_string"]);
        assert!(!translation.text.contains("hidden"), "{}", translation.text);
        for other in ["mysql", "aws_postgres\" { region = \"r\" } #"] {
            let text = format!(
                "{LEAST}plugins {{ DataStore \"sql\" {{ plugin_data {{\n database_type \"{other}\"\n }} }} KeyManager \"disk\" {{ plugin_data \
                 {{ keys_path = \"k\" }} }} }}"
            );
            let text = text.replace("database_type \"mysql\"", "database_type = \"mysql\"");
            let (config, translation) = import(&text);
            assert_eq!(config.store.driver, crate::store::DriverKind::Sled, "{other}");
            assert!(left(&translation).iter().any(|left| left.contains("database_type")), "{other}");
        }
    }

    #[test]
    fn all_that_exists_here_is_carried() {
        let (config, translation) = import(
            r#"
            server = {
              trust_domain = "spiffe://example.org", bind_address = "localhost", bind_port = "9081"
              data_dir = "./.data/", socket_path = "/run/s.sock"
              admin_ids = ["spiffe://example.org/a"], admin_ids = ["spiffe://example.org/b"]
              agent_ttl = "0s" ca_ttl = "1.5h" default_x509_svid_ttl = "10m" default_jwt_svid_ttl = "90s"
              ca_key_type = "RSA-2048" jwt_key_type = "ec-p384"
              ca_subject { country = ["DE"] organization = ["O"] common_name = "CA" }
              jwt_issuer = "https://issuer" log_level = "WARNING" log_format = "JSON" log_file = "/var/log/x"
              audit_log_enabled = true prune_attested_nodes_expired_for = "24h" prune_tofu_nodes = true
              ratelimit { attestation = false signing = false }
              max_attested_node_info_staleness = "10s" profiling_enabled = false
              experimental { feature_flags = ["wit-svid"] wit_issuer = "w" wit_key_type = "ec-p256" require_pq_kem = false }
            }
            telemetry { Prometheus { port = 9988 } }
            health_checks { listener_enabled = true bind_port = "9988" live_path = "/live" }
            plugins {
              KeyManager "memory" { plugin_data = {} }
              NodeAttestor "join_token" { plugin_data {} }
              NodeAttestor "x509pop" { plugin_data_file = "x509pop.hcl" }
              NodeAttestor "k8s_psat" { enabled = false plugin_data { } }
              UpstreamAuthority "disk" { plugin_data { cert_file_path = "c" key_file_path = "k" ttl = "1h" } }
            }"#,
        );
        assert_eq!(left(&translation), Vec::<&str>::new());
        assert_eq!(config.listen.address.to_string(), "127.0.0.1:9081");
        assert_eq!(config.listen.health_address.unwrap().to_string(), "127.0.0.1:9988");
        assert_eq!(config.admin_ids.len(), 2);
        assert_eq!(config.authority.ca_ttl.as_secs(), 5400);
        assert_eq!(config.authority.agent_ttl.as_secs(), 600);
        assert_eq!(config.authority.ca_key_type, bonafide_pki::KeyType::Rsa2048);
        assert_eq!(config.authority.ca_subject.country, ["DE"]);
        assert!(!config.authority.disable_wit_svids && config.authority.wit_issuer.as_deref() == Some("w"));
        assert_eq!(config.log.level.as_str(), "warn");
        assert!(config.audit.file.is_some() && config.prune.tofu_nodes);
        assert_eq!(config.ratelimit.signing, 0);
        assert_eq!(config.key_manager, KeyManagerSettings::Memory);
        let x509pop = config.node_attestor.x509pop.unwrap();
        assert_eq!((x509pop.ca_bundle_paths.len(), x509pop.max_intermediates), (1, 2));
        assert!(config.upstream_authority.is_some());
        let moot: Vec<&str> = translation.moot.iter().map(|remark| remark.setting.as_str()).collect();
        for setting in [
            "server.agent_ttl",
            "server.max_attested_node_info_staleness",
            "server.profiling_enabled",
            "server.experimental.require_pq_kem",
            "plugins.NodeAttestor.k8s_psat",
            "plugins.UpstreamAuthority.disk.ttl",
        ] {
            assert!(moot.contains(&setting), "{setting} in {moot:?}");
        }
    }

    #[test]
    fn what_does_not_exist_here_is_named_with_its_place() {
        let (config, translation) = import(&format!(
            r#"{LEAST}
            server {{
              bind_address = "spire-server" proxy_protocol_trusted_cidrs = ["10.0.0.0/8"]
              log_source_location = true profiling_enabled = true
              federation {{ bundle_endpoint {{ port = 8443 acme {{ domain_name = "a" email = "e@a" }} }} }}
              experimental {{ feature_flags = ["other"] require_pq_kem = true agent_spiffe_id_as_selector = true }}
            }}
            telemetry {{ Prometheus {{ port = 1 }} Statsd = [{{ address = "x" }}] }}
            health_checks {{ listener_enabled = true bind_port = 2 ready_path = "/r" }}
            plugins {{
              NodeAttestor "aws_iid" {{ plugin_data {{ secret_access_key = "hidden" }} }}
              NodeAttestor "own" {{ plugin_cmd = "/bin/own" plugin_data {{}} }}
              NodeAttestor "x509pop" {{ plugin_data {{ ca_bundle_path = "c" agent_path_template = "/{{{{ .Foo }}}}" }} }}
              KeyManager "aws_kms" {{ plugin_data {{ region = "x" }} }}
              UpstreamAuthority "gcp_cas" {{ plugin_data {{ }} }}
              BundlePublisher "aws_s3" {{ plugin_data {{ }} }}
              CredentialComposer "uniqueid" {{ }}
            }}"#
        ));
        assert_eq!(config.listen.address.to_string(), "127.0.0.1:8081", "closed rather than open to all");
        assert!(config.listen.trusted_proxies.trusts("10.1.2.3".parse().unwrap()));
        assert!(config.log.source_location && config.node_attestor.spiffe_id_selector);
        let mut found = left(&translation);
        found.sort_unstable();
        assert_eq!(
            found,
            [
                "health_checks.ready_path",
                "plugins.BundlePublisher.aws_s3",
                "plugins.CredentialComposer.uniqueid",
                "plugins.KeyManager.aws_kms",
                "plugins.NodeAttestor.aws_iid",
                "plugins.NodeAttestor.own",
                "plugins.NodeAttestor.x509pop.agent_path_template",
                "plugins.UpstreamAuthority.gcp_cas",
                "server.bind_address",
                "server.experimental.feature_flags",
                "server.experimental.require_pq_kem",
                "server.profiling_enabled",
                "telemetry.Prometheus.port",
                "telemetry.Statsd",
            ]
        );
        for setting in found {
            assert!(
                translation.text.contains(&format!("#   {setting}")),
                "{setting} in {}",
                translation.text
            );
        }
        assert!(!translation.text.contains("hidden"), "{}", translation.text);
        assert!(translation.left.iter().all(|remark| remark.place.is_some()));
    }

    #[test]
    fn federation_is_carried() {
        let (config, translation) = import(&format!(
            r#"{LEAST}
            server {{ federation {{
              bundle_endpoint {{
                address = "::" port = "8443" refresh_hint = "10m"
                profile "https_web" {{ serving_cert_file {{ cert_file_path = "c" key_file_path = "k" file_sync_interval = "1h" }} }}
              }}
              federates_with "a.test" {{
                bundle_endpoint_url = "https://a.test:8443"
                bundle_endpoint_profile "https_spiffe" {{ endpoint_spiffe_id = "spiffe://a.test/spire/server" }}
              }}
              federates_with "spiffe://b.test" {{ bundle_endpoint_url = "https://b.test" bundle_endpoint_profile "https_web" {{}} }}
            }} }}"#
        ));
        assert_eq!(left(&translation), Vec::<&str>::new());
        let endpoint = config.federation.bundle_endpoint.unwrap();
        assert_eq!(
            (endpoint.address.to_string(), endpoint.refresh_hint.as_secs()),
            ("[::]:8443".to_owned(), 600)
        );
        let web = BundleEndpointProfile::HttpsWeb { certificate_path: "c".into(), key_path: "k".into() };
        assert_eq!(endpoint.profile, web);
        let peers: Vec<_> = config.federation.federates_with;
        assert_eq!((peers[0].trust_domain.as_str(), peers[1].trust_domain.as_str()), ("a.test", "b.test"));
        assert!(matches!(&peers[0].profile, EndpointProfile::HttpsSpiffe { endpoint_spiffe_id }
            if endpoint_spiffe_id.to_string() == "spiffe://a.test/spire/server"));
        assert!(matches!(peers[1].profile, EndpointProfile::HttpsWeb));

        // JSON writes blocks otherwise, and SPIRE takes a name for every address.
        let (config, _) = import(
            r#"{"server": {"trust_domain": "example.org", "data_dir": "d", "federation": [{"bundle_endpoint": [
              {"address": "localhost", "port": 1, "profile": [{"https_spiffe": [{}]}]}]}]}}"#,
        );
        let endpoint = config.federation.bundle_endpoint.unwrap();
        assert_eq!(endpoint.address.to_string(), "0.0.0.0:1");
        assert_eq!(endpoint.profile, BundleEndpointProfile::HttpsSpiffe);

        for (before, after) in [("", ""), ("profile \"https_web\" {", "}")] {
            let (config, translation) = import(&format!(
                r#"{LEAST}server {{ federation {{ bundle_endpoint {{ port = 443 {before}
                  acme {{ domain_name = "b.test" email = "a@b.test" tos_accepted = true directory_url = "https://ca.test/dir" }}
                {after} }} }} }}"#
            ));
            assert_eq!(left(&translation), Vec::<&str>::new());
            let Some(BundleEndpointProfile::HttpsWebAcme(acme)) =
                config.federation.bundle_endpoint.map(|endpoint| endpoint.profile)
            else {
                panic!("{}", translation.text);
            };
            assert_eq!((acme.domain_name.as_str(), acme.email.as_str()), ("b.test", "a@b.test"));
            assert_eq!(acme.directory_url.as_str(), "https://ca.test/dir");
        }
    }

    #[test]
    fn federation_that_spire_refuses_is_refused() {
        for (text, part) in [
            ("bundle_endpoint { port = 1 profile \"https_web\" { } }", "cert_file_path: is required"),
            (
                "bundle_endpoint { port = 1 acme { email = \"a@b.test\" } }",
                "bundle_endpoint.acme.domain_name: is required",
            ),
            (
                "bundle_endpoint { port = 1 profile \"https_web\" { acme { } } profile \"https_spiffe\" { } }",
                "bundle_endpoint: needs exactly one profile",
            ),
            ("bundle_endpoint { port = 1 profile \"http\" { } }", "profile.http: SPIRE has no such setting"),
            (
                "federates_with \"a.test\" { bundle_endpoint_url = \"https://a\" }",
                "federates_with.a.test.bundle_endpoint_profile: needs one",
            ),
            (
                "federates_with \"a.test\" { bundle_endpoint_profile \"https_web\" { } }",
                "federates_with.a.test.bundle_endpoint_url: is required",
            ),
            (
                "federates_with \"a.test\" { bundle_endpoint_url = \"http://a\" bundle_endpoint_profile \"https_web\" { } }",
                "bundle_endpoint_url, here federation.federates_with.a.test.bundle_endpoint_url: ",
            ),
            (
                "federates_with \"a\\\"]\" { bundle_endpoint_url = \"https://a\" bundle_endpoint_profile \"https_web\" { } }",
                "is not a trust domain",
            ),
            (
                "federates_with \"a\" { bundle_endpoint_url = \"https://a\" bundle_endpoint_profile \"https_web\" { } }\
                 federates_with \"spiffe://a\" { }",
                "stands there twice",
            ),
            (
                "federates_with \"a\" { bundle_endpoint_url = \"https://a\" bundle_endpoint_profile \"https_spiffe\" { } }",
                "endpoint_spiffe_id: is required",
            ),
        ] {
            let found = attempt(&format!("{LEAST}server {{ federation {{ {text} }} }}")).unwrap_err();
            assert!(found[0].starts_with("server.conf:5:") && found[0].contains(part), "{text}: {found:?}");
        }
    }

    #[test]
    fn upstream_authorities_are_carried() {
        let with = |text: &str| attempt(&format!("{LEAST}plugins {{ UpstreamAuthority {text} }}"));
        let read = |translation: &Translation| {
            Config::parse(&translation.text, Path::new("server.toml")).unwrap().upstream_authority.unwrap()
        };
        let nested = with(
            "\"spire\" { plugin_data { server_address = \"::1\" server_port = 8081 workload_api_socket = \"/a.sock\"\n\
             experimental { workload_api_named_pipe_name = \"p\" require_pq_kem = false } } }",
        )
        .unwrap();
        let UpstreamSettings::Spire { server_address, workload_api_socket, .. } = read(&nested) else {
            panic!()
        };
        assert_eq!(
            (server_address.to_string().as_str(), workload_api_socket),
            ("[::1]:8081", "/a.sock".into())
        );
        assert_eq!(left(&nested), Vec::<&str>::new());

        let vault = |text: &str| with(&format!("\"vault\" {{ plugin_data {{ {text} }} }}"));
        const VAULT: &str = "plugins.UpstreamAuthority.vault";
        let whole = vault(
            "vault_addr = \"https://v:8200\" ca_cert_path = \"ca\" namespace = \"n\" pki_mount_point = \"p\" insecure_skip_verify = true\n\
             approle_auth { approle_auth_mount_point = \"m\" approle_id = \"r\" approle_secret_id = \"hidden\" }",
        )
        .unwrap();
        assert_eq!(
            left(&whole),
            [format!("{VAULT}.insecure_skip_verify"), format!("{VAULT}.approle_auth.approle_secret_id")]
        );
        assert!(!whole.text.contains("hidden"), "{}", whole.text);
        let UpstreamSettings::Vault(settings) = read(&whole) else { panic!() };
        assert_eq!((settings.namespace.as_deref(), settings.pki_mount_point.as_str()), (Some("n"), "p"));
        let VaultAuth::AppRole { mount_point, role_id, secret_id_file } = settings.auth else { panic!() };
        assert_eq!((mount_point.as_str(), role_id.as_str()), ("m", "r"));
        assert_eq!(secret_id_file, Path::new("/var/lib/spire/bonafide/vault-secret-id"));

        // What SPIRE takes from the environment is named.
        let least = vault("token_auth { }").unwrap();
        assert_eq!(
            left(&least),
            ["vault_addr", "ca_cert_path", "token_auth.token"].map(|name| format!("{VAULT}.{name}"))
        );
        let UpstreamSettings::Vault(settings) = read(&least) else { panic!() };
        assert_eq!(settings.address.to_string(), "https://127.0.0.1:8200");
        let cert = vault(
            "vault_addr = \"https://v\" ca_cert_path = \"ca\" cert_auth { cert_auth_role_name = \"r\" client_cert_path = \"c\" }",
        );
        let cert = cert.unwrap();
        assert_eq!(left(&cert), [format!("{VAULT}.cert_auth.client_key_path")]);
        let UpstreamSettings::Vault(settings) = read(&cert) else { panic!() };
        assert!(matches!(settings.auth, VaultAuth::Certificate { role: Some(role), .. } if role == "r"));
        let kubernetes = vault(
            "vault_addr = \"http://127.0.0.1:1\" k8s_auth { k8s_auth_role_name = \"r\" token_path = \"t\" }",
        )
        .unwrap();
        assert_eq!(left(&kubernetes), Vec::<&str>::new());
        let UpstreamSettings::Vault(settings) = read(&kubernetes) else { panic!() };
        assert!(matches!(settings.auth, VaultAuth::Kubernetes { role, .. } if role == "r"));

        for (found, part) in [
            (
                with("\"spire\" { plugin_data { server_port = \"1\" workload_api_socket = \"/a\" } }"),
                "server_address: is required",
            ),
            (vault("vault_addr = \"http://127.0.0.1:1\""), "vault: needs one of token_auth"),
            (
                vault("vault_addr = \"http://127.0.0.1:1\" token_auth { } cert_auth { }"),
                "vault: needs one of token_auth",
            ),
            (
                vault("vault_addr = \"http://127.0.0.1:1\" k8s_auth { token_path = \"t\" }"),
                "k8s_auth_role_name: is required",
            ),
            (
                vault("vault_addr = \"http://v:1\" token_auth { }"),
                "vault_addr, here upstream_authority.vault.address: ",
            ),
            (
                with(
                    "\"disk\" { plugin_data { cert_file_path = \"c\" key_file_path = \"k\" } }\nUpstreamAuthority \"vault\" { plugin_data { token_auth { } } }",
                ),
                "vault: there can be one UpstreamAuthority",
            ),
        ] {
            let found = found.unwrap_err();
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].starts_with("server.conf:") && found[0].contains(part), "{part}: {found:?}");
        }
    }

    #[test]
    fn clusters_are_carried() {
        let with = |text: &str| attempt(&format!("{LEAST}plugins {{ {text} }}"));
        let psat = |text: &str| with(&format!("NodeAttestor \"k8s_psat\" {{ plugin_data {{ {text} }} }}"));
        let translation = psat(
            r#"clusters = { "nodes.a" = { service_account_allow_list = ["spire:agent"] kube_config_file = "" }
              pods = { service_account_allow_list = ["spire:a", "spire:b"] audience = [] kube_config_file = "/k" allowed_node_label_keys = ["n"]
                allowed_pod_label_keys = ["p"] use_pod_uid_for_agent_id = true } }"#,
        )
        .unwrap();
        assert_eq!(left(&translation), Vec::<&str>::new());
        let config = Config::parse(&translation.text, Path::new("server.toml")).unwrap();
        let [nodes, pods] = config.node_attestor.k8s_psat.as_slice() else { panic!("{}", translation.text) };
        assert_eq!((nodes.name.as_str(), nodes.agent_per_pod), ("nodes.a", false));
        assert_eq!(nodes.audiences, ["spire-server"]);
        assert_eq!(nodes.proof, Proof::TokenReview(Access::InCluster));
        assert_eq!(pods.proof, Proof::TokenReview(Access::KubeConfig("/k".into())));
        assert!(pods.agent_per_pod && pods.audiences.is_empty() && pods.service_accounts.len() == 2);
        assert!(pods.node_labels.contains("n") && pods.pod_labels.contains("p"));
        let found = psat("clusters = { a = { } }").unwrap_err();
        assert!(found[0].contains("service_account_allow_list: is required"), "{found:?}");
        let none = psat("").unwrap();
        assert!(Config::parse(&none.text, Path::new("x")).unwrap().node_attestor.k8s_psat.is_empty());

        let publisher =
            |text: &str| with(&format!("BundlePublisher \"k8s_configmap\" {{ plugin_data {{ {text} }} }}"));
        let translation = publisher(
            r#"clusters = { a = { namespace = "n" configmap_name = "m" configmap_key = "k" format = "spiffe" refresh_hint = "1m" kubeconfig_path = "/k" }
              b = { namespace = "n" configmap_name = "m" configmap_key = "k" format = "pem" refresh_hint = "1m" kubeconfig_path = "" } }"#,
        )
        .unwrap();
        assert_eq!(left(&translation), Vec::<&str>::new());
        let config = Config::parse(&translation.text, Path::new("server.toml")).unwrap();
        let access: Vec<_> = config.bundle_publishers.iter().map(|one| one.access.clone()).collect();
        assert_eq!(access, [Access::KubeConfig("/k".into()), Access::InCluster], "{}", translation.text);
        let found = publisher("clusters = { a = { namespace = \"n\" } }").unwrap_err();
        assert!(found.iter().any(|one| one.contains("configmap_name: is required")), "{found:?}");

        let upstream =
            |text: &str| with(&format!("UpstreamAuthority \"cert-manager\" {{ plugin_data {{ {text} }} }}"));
        let translation = upstream(
            r#"issuer_name = "i" issuer_kind = "ClusterIssuer" issuer_group = "g" namespace = "n" kube_config_file = "/k""#,
        )
        .unwrap();
        assert_eq!(left(&translation), Vec::<&str>::new());
        let config = Config::parse(&translation.text, Path::new("server.toml")).unwrap();
        let Some(UpstreamSettings::CertManager { access, issuer }) = config.upstream_authority else {
            panic!()
        };
        assert_eq!(access, Access::KubeConfig("/k".into()));
        assert_eq!(
            [issuer.namespace, issuer.name, issuer.kind, issuer.group],
            ["n", "i", "ClusterIssuer", "g"]
        );
        let found = upstream("issuer_name = \"i\"").unwrap_err();
        assert!(found[0].contains("namespace: is required"), "{found:?}");
    }

    #[test]
    fn proofs_of_possession_of_a_host_are_carried() {
        let with = |text: &str| import(&format!("{LEAST}plugins {{ NodeAttestor {text} }}"));
        let (config, translation) = with(
            r#""sshpop" { plugin_data { cert_authorities = ["k"] cert_authorities_path = "f" canonical_domain = "d"
              agent_path_template = "/ssh/{{ .Hostname }}" } }"#,
        );
        let sshpop = config.node_attestor.sshpop.unwrap();
        assert_eq!(
            (sshpop.cert_authorities.as_slice(), sshpop.canonical_domain.as_deref()),
            (&["k".to_owned()][..], Some("d"))
        );
        assert_eq!(sshpop.cert_authorities_path.as_deref(), Some(Path::new("f")));
        assert_eq!(sshpop.agent_path_template.start(), "/ssh/");
        assert_eq!(left(&translation), Vec::<&str>::new());
        let (_, translation) = with(
            r#""sshpop" { plugin_data { cert_authorities_path = "f" agent_path_template = "/{{ .Foo }}" } }"#,
        );
        assert_eq!(left(&translation), ["plugins.NodeAttestor.sshpop.agent_path_template"]);

        let (config, translation) =
            with(r#""tpm_devid" { plugin_data { devid_ca_path = "d" endorsement_ca_path = "e" } }"#);
        let devid = config.node_attestor.tpm_devid.unwrap();
        assert_eq!((devid.devid_ca_path, devid.endorsement_ca_path), ("d".into(), "e".into()));
        assert_eq!(left(&translation), Vec::<&str>::new());

        let (config, translation) = with("\"http_challenge\" { }");
        let challenge = config.node_attestor.http_challenge.unwrap();
        assert!(challenge.tofu && challenge.allow_non_root_ports && !challenge.allow_local_addresses);
        assert!(translation.text.contains("allow_local_addresses"), "{}", translation.text);
        let (config, _) = with(
            r#""http_challenge" { plugin_data { allowed_dns_patterns = ["^a$"] required_port = 80 tofu = false
              allow_non_root_ports = false } }"#,
        );
        let challenge = config.node_attestor.http_challenge.unwrap();
        assert_eq!((challenge.allowed_dns_patterns.len(), challenge.required_port), (1, Some(80)));
        assert!(!challenge.tofu && !challenge.allow_non_root_ports);
    }

    #[test]
    fn mistakes_are_found_together_and_have_their_place() {
        let found = attempt(
            "server {\n trust_domain = \"Example\"\n data_dir = \"d\"\n bind_prot = 1\n ca_ttl = \"soon\"\n}\nagent { }\n\
             plugins {\n KeyManger \"disk\" { }\n NodeAttestor \"x509pop\" { plugin_data_file = \"missing\" }\n}\n",
        )
        .unwrap_err();
        for (line, start) in found.iter().zip([
            "server.conf:4:2: server.bind_prot: SPIRE has no such setting",
            "server.conf:5:11: server.ca_ttl: \"soon\" is not a duration",
            "server.conf:7:1: agent: SPIRE has no such setting",
            "server.conf:9:2: plugins.KeyManger: SPIRE has no such kind of plugins",
            "server.conf:10:46: plugins.NodeAttestor.x509pop: plugin_data_file \"missing\" cannot be read",
        ]) {
            assert!(line.starts_with(start), "{line}");
        }
        assert_eq!(found.len(), 5, "{found:?}");
        let found = attempt(&format!(
            "{LEAST}server {{ federation {{\n bundle_endpoint {{ profile \"https_web\" {{ acme {{ x = 1 }} }} prot = 1 }}\n\
             federates_with \"a.test\" {{ bundle_endpoint_url = \"https://a\" bundle_endpoint_profile \"https_spiffe\" {{\n\
             endpoint_spiffe_id = \"spiffe://a.test/x\" id = 1 }} }} }} }}"
        ))
        .unwrap_err();
        assert_eq!(
            found,
            [
                "server.conf:6:42: server.federation.bundle_endpoint.profile.https_web.acme.domain_name: is required",
                "server.conf:6:42: server.federation.bundle_endpoint.profile.https_web.acme.email: is required",
                "server.conf:6:49: server.federation.bundle_endpoint.profile.https_web.acme.x: SPIRE has no such setting",
                "server.conf:6:59: server.federation.bundle_endpoint.prot: SPIRE has no such setting",
                "server.conf:8:42: server.federation.federates_with.a.test.bundle_endpoint_profile.https_spiffe.id: SPIRE has no \
                 such setting",
            ]
        );
        // What only we refuse is reported where SPIRE's file says it.
        let found =
            attempt("server {\n trust_domain = \"Example\"\n data_dir = \"d\"\n ca_key_type = \"x\"\n}")
                .unwrap_err();
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(
            found[0].starts_with("server.conf:2:17: server.trust_domain, here trust_domain: "),
            "{found:?}"
        );
        assert!(
            found[1].starts_with("server.conf:4:16: server.ca_key_type, here authority.ca_key_type: "),
            "{found:?}"
        );
        assert_eq!(attempt("").unwrap_err().len(), 2);
        assert_eq!(attempt("server {").unwrap_err(), ["server.conf:1:8: this brace is never closed"]);
    }

    /// Rows that write do so under keys that exist.
    #[test]
    fn the_table_writes_keys_that_are_read() {
        for Row { setting, carry } in ROWS {
            if let To(_, key) = carry {
                assert!(reference::FIELDS.iter().any(|field| field.key == *key), "{setting}: {key}");
            }
        }
    }
}
