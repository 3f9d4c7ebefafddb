//! What becomes of each setting of SPIRE's `agent.conf`.

use bonafide_runtime::import::Carry::{Left, LeftBlock, Moot, To, Used};
use bonafide_runtime::import::Form::{Bool, Duration, Integer, Lower, Text, Texts};
use bonafide_runtime::import::{Carry, Import, Row, Table, shared};

use super::Config;
use super::keys::KEYS;

/// The translation of `agent.conf`.
pub const TABLE: Table = Table {
    program: "bonafide-agent",
    rows: ROWS,
    order: || KEYS.iter().map(|key| key.path).collect(),
    compose,
    validate: |text| Config::parse("the translated configuration".as_ref(), text).map(drop),
};

const fn row(setting: &'static str, carry: Carry) -> Row {
    Row { setting, carry }
}

const PROFILING: &str =
    "there is no profiling endpoint: attach a profiler such as perf to the process instead";
const TELEMETRY: &str = "metrics are offered to Prometheus only, at health_address under /metrics";
const SDS: &str = "Envoy's secret discovery service is not offered: let Envoy read files that `bonafide write --watch` keeps fresh";
const BOOTSTRAP: &str = "the first bundle is read from a file only: write what `bonafide bundle show --format pem` prints to bootstrap.bundle_file";
const ATTESTOR: &str = "this node attestor does not exist here: attest by x509pop or with a join token; the agent then has another \
                        SPIFFE ID, so entries below it need a new parent";
const WORKLOAD: &str =
    "this workload attestor does not exist here: entries with its selectors match no process on this node";
const RATES: &str = "calls of workloads are not limited by rate";
const BROKER: &str = "the broker API is not offered";
const PIPE: &str = "named pipes exist on Windows only";

const BROKERS: &[&str] = &[
    "socket_path",
    "bind_address",
    "brokers.id",
    "brokers.allowed_reference_types.type_url",
    "brokers.allowed_reference_types.allow_over_tcp",
];

const ROWS: &[Row] = &[
    row("agent.data_dir", Used),
    row("agent.admin_socket_path", To(Text, "admin.socket")),
    row("agent.insecure_bootstrap", Used),
    row("agent.rebootstrap_mode", Used),
    row("agent.rebootstrap_delay", Moot("the agent never bootstraps anew by itself")),
    row("agent.join_token", Used),
    row("agent.join_token_file", Used),
    row("agent.log_file", To(Text, "log.file")),
    row("agent.log_format", To(Lower, "log.format")),
    row("agent.log_level", Used),
    row("agent.log_selectors", Left("selectors are not logged")),
    row("agent.log_source_location", Left("log lines have no source locations")),
    row("agent.sds.default_svid_name", Left(SDS)),
    row("agent.sds.default_bundle_name", Left(SDS)),
    row("agent.sds.default_all_bundles_name", Left(SDS)),
    row("agent.sds.disable_spiffe_cert_validation", Left(SDS)),
    row("agent.server_address", Used),
    row("agent.server_port", Used),
    row("agent.socket_path", Used),
    row(
        "agent.disable_workload_api",
        Left("the Workload API is always offered: close its folder to those who shall not use it"),
    ),
    row("agent.disable_sds_api", Moot("it is not offered")),
    row("agent.workload_x509_svid_key_type", To(Lower, "svid.key_type")),
    row("agent.trust_bundle_format", Used),
    row("agent.trust_bundle_path", Used),
    row("agent.trust_bundle_spiffe_workload_api", Left(BOOTSTRAP)),
    row("agent.trust_bundle_unix_socket", Left(BOOTSTRAP)),
    row("agent.trust_bundle_url", Left(BOOTSTRAP)),
    row("agent.trust_domain", To(Text, "trust_domain")),
    row("agent.allow_unauthenticated_verifiers", To(Bool, "allow_unauthenticated_verifiers")),
    row("agent.allowed_foreign_jwt_claims", To(Texts, "allowed_foreign_jwt_claims")),
    row("agent.availability_target", To(Duration, "svid.availability_target")),
    row("agent.x509_svid_cache_max_size", Used),
    row("agent.jwt_svid_cache_max_size", Used),
    row(
        "agent.authorized_delegates",
        Left("the delegated identity API is not offered: let each workload call the Workload API itself"),
    ),
    row("agent.profiling_enabled", Left(PROFILING)),
    row("agent.profiling_port", Moot(PROFILING)),
    row("agent.profiling_freq", Moot(PROFILING)),
    row("agent.profiling_names", Moot(PROFILING)),
    row("agent.experimental.sync_interval", To(Duration, "sync_interval")),
    row(
        "agent.experimental.jwt_svid_cache_hit_timeout",
        Left("how long the agent waits for a new token while it holds a valid one is fixed"),
    ),
    row("agent.experimental.named_pipe_name", Moot(PIPE)),
    row("agent.experimental.admin_named_pipe_name", Moot(PIPE)),
    row("agent.experimental.use_sync_authorized_entries", Used),
    row(
        "agent.experimental.require_pq_kem",
        Left("key exchange that withstands quantum computers cannot be required"),
    ),
    row("agent.experimental.ratelimit.fetch_x509_svid", Left(RATES)),
    row("agent.experimental.ratelimit.fetch_jwt_svid", Left(RATES)),
    row("agent.experimental.ratelimit.fetch_x509_bundles", Left(RATES)),
    row("agent.experimental.ratelimit.fetch_jwt_bundles", Left(RATES)),
    row("agent.experimental.ratelimit.stream_secrets", Left(RATES)),
    row("agent.experimental.ratelimit.fetch_secrets", Left(RATES)),
    row("agent.experimental.broker", LeftBlock(BROKER, BROKERS)),
    row("telemetry.Prometheus.host", Used),
    row("telemetry.Prometheus.port", Used),
    row("telemetry.Prometheus.tls", Left("/metrics is plain HTTP: keep it on a loopback or private address")),
    row("telemetry.InMem", Moot("metrics are kept in memory always")),
    row("telemetry.EnableTrustDomainLabel", Left(TELEMETRY)),
    row("telemetry.EnableHostnameLabel", Moot("Prometheus adds the instance itself")),
    row("telemetry.*", Left(TELEMETRY)),
    row("health_checks.listener_enabled", Used),
    row("health_checks.bind_address", Used),
    row("health_checks.bind_port", Used),
    row("health_checks.ready_path", Used),
    row("health_checks.live_path", Used),
    row("plugins.KeyManager.disk", Used),
    row(
        "plugins.KeyManager.disk.directory",
        Moot("the agent makes keys of its own, in data_dir; SPIRE's file stays as it is"),
    ),
    row(
        "plugins.KeyManager.memory",
        Left(
            "the agent keeps its key in data_dir, which only its user can read; a restart needs no new attestation then",
        ),
    ),
    row(
        "plugins.KeyManager.*",
        Left(
            "the agent keeps its key in data_dir, which only its user can read; that may be weaker than what this plugin gave",
        ),
    ),
    row("plugins.NodeAttestor.join_token", Used),
    row("plugins.NodeAttestor.x509pop", Used),
    row("plugins.NodeAttestor.x509pop.private_key_path", To(Text, "node_attestor.x509pop.private_key_path")),
    row("plugins.NodeAttestor.x509pop.certificate_path", To(Text, "node_attestor.x509pop.certificate_path")),
    row(
        "plugins.NodeAttestor.x509pop.intermediates_path",
        To(Text, "node_attestor.x509pop.intermediates_path"),
    ),
    row(
        "plugins.NodeAttestor.x509pop.spiffe_endpoint_socket",
        Left(
            "certificate and key are read from files only: keep them fresh there, with `bonafide write --watch` for instance",
        ),
    ),
    row("plugins.NodeAttestor.*", Left(ATTESTOR)),
    row("plugins.WorkloadAttestor.unix", Used),
    row(
        "plugins.WorkloadAttestor.unix.discover_workload_path",
        To(Bool, "workload_attestor.unix.discover_workload_path"),
    ),
    row(
        "plugins.WorkloadAttestor.unix.workload_size_limit",
        To(Integer, "workload_attestor.unix.workload_size_limit"),
    ),
    row("plugins.WorkloadAttestor.*", Left(WORKLOAD)),
    row(
        "plugins.SVIDStore.*",
        Left("SVIDs are not stored elsewhere: entries with store_svid are delivered to nobody"),
    ),
];

fn compose(import: &mut Import<'_>) {
    let folder = import.text("agent.data_dir").unwrap_or_else(|| ".".to_owned());
    let own = format!("{}/bonafide", folder.trim_end_matches('/'));
    let why = "A folder of its own within SPIRE's: both keep files of the same names, and SPIRE's must stay as they are for as \
               long as there is a way back.";
    import.set("data_dir", own.clone(), "agent.data_dir", Some(why));
    if !import.is_set("trust_domain") {
        import.refuse("agent.trust_domain", "is required");
    }
    let address = import.text("agent.server_address");
    let port = import.integer("agent.server_port").filter(|port| *port != 0);
    match (address, port) {
        (Some(address), Some(port)) => {
            let address = address.trim_matches(['[', ']']);
            let colon = address.contains(':');
            let address = if colon { format!("[{address}]:{port}") } else { format!("{address}:{port}") };
            import.set("server.address", address, "agent.server_address", None);
        }
        (address, port) => {
            if address.is_none() {
                import.refuse("agent.server_address", "is required");
            }
            if port.is_none() {
                import.refuse("agent.server_port", "is required");
            }
        }
    }
    let socket = import.text("agent.socket_path");
    let socket = socket.unwrap_or_else(|| "/tmp/spire-agent/public/api.sock".to_owned());
    import.set("workload_api.socket", socket, "agent.socket_path", None);
    if let Some(level) = import.text("agent.log_level") {
        import.set("log.level", shared::log_level(&level), "agent.log_level", None);
    }
    for (setting, key) in [
        ("agent.x509_svid_cache_max_size", "svid.x509_cache_size"),
        ("agent.jwt_svid_cache_max_size", "svid.jwt_cache_size"),
    ] {
        // Zero and less mean the default, which is the same.
        if let Some(size) = import.integer(setting).filter(|size| *size > 0) {
            import.set(key, size, setting, None);
        }
    }
    if import.bool("agent.experimental.use_sync_authorized_entries") == Some(false) {
        let why = "the agent always asks by SyncAuthorizedEntries";
        import.left("agent.experimental.use_sync_authorized_entries", why);
    }
    match import.text("agent.rebootstrap_mode").as_deref() {
        None | Some("never") => {}
        Some(_) => import.left(
            "agent.rebootstrap_mode",
            "the agent never bootstraps anew by itself: after a loss of all authorities remove its data_dir and start it again",
        ),
    }
    shared::health(import, "health_address");
    bootstrap(import, &own);
    attestors(import, &own);
}

fn bootstrap(import: &mut Import<'_>, data_dir: &str) {
    const KEY: &str = "bootstrap.bundle_file";
    let insecure = import.bool("agent.insecure_bootstrap").unwrap_or(false);
    let bundle = import.text("agent.trust_bundle_path");
    if bundle.is_none() && import.has("agent.trust_bundle_format") {
        import.moot(
            "agent.trust_bundle_format",
            "it says nothing without trust_bundle_path; bootstrap.bundle_file is PEM",
        );
    }
    let format = import.text("agent.trust_bundle_format").unwrap_or_else(|| "pem".to_owned());
    let why = "The bundle by which the agent recognises its server must hold the authority of the server that it is going to.";
    match (bundle, insecure) {
        (Some(_), true) => {
            import.refuse("agent.insecure_bootstrap", "excludes trust_bundle_path; remove one of them");
        }
        (Some(file), false) => {
            import.set(KEY, file, "agent.trust_bundle_path", Some(why));
            import.set("bootstrap.bundle_format", format, "agent.trust_bundle_format", None);
        }
        (None, true) => import.set("bootstrap.insecure", true, "agent.insecure_bootstrap", None),
        (None, false) => {
            // A file that is not there: the agent says so and trusts nobody.
            import.set(KEY, format!("{data_dir}/bootstrap-bundle.pem"), "", Some(why));
        }
    }
}

fn attestors(import: &mut Import<'_>, data_dir: &str) {
    const TOKEN: &str = "node_attestor.join_token.token";
    const TOKEN_FILE: &str = "node_attestor.join_token.token_file";
    const ONCE: &str =
        "Good for one attestation with the server that made it: put a token of the new server here.";
    let token = import.text("agent.join_token");
    let file = import.text("agent.join_token_file");
    if token.is_some() && file.is_some() {
        import.refuse("agent.join_token_file", "excludes join_token; remove one of them");
    }
    let x509pop = import.has("plugins.NodeAttestor.x509pop");
    if x509pop && import.has("plugins.NodeAttestor.join_token") {
        import.refuse("plugins.NodeAttestor.join_token", "there can be one NodeAttestor");
    }
    match (token, file) {
        _ if x509pop => {
            for setting in ["agent.join_token", "agent.join_token_file"] {
                if import.has(setting) {
                    import.left(setting, "the agent attests by x509pop; remove that table to use a token");
                }
            }
            for (key, file) in [("certificate_path", "node.pem"), ("private_key_path", "node.key")] {
                let key = format!("node_attestor.x509pop.{key}");
                let why = "SPIRE's file names none: put it there.";
                if !import.is_set(&key) {
                    import.set(&key, format!("{data_dir}/{file}"), "", Some(why));
                }
            }
        }
        (Some(token), _) => import.set(TOKEN, token, "agent.join_token", Some(ONCE)),
        (None, Some(file)) => import.set(TOKEN_FILE, file, "agent.join_token_file", Some(ONCE)),
        (None, None) => {
            let why = "Say here how this node attests; until then the agent holds nothing to attest with.";
            import.set_table("node_attestor.join_token", "", Some(why));
        }
    }
    if !import.has("plugins.WorkloadAttestor.unix") {
        import.note(
            "plugins.WorkloadAttestor.unix",
            "SPIRE's file has no unix attestor; here it always runs, and its selectors hold beside others",
        );
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::Path;

    use bonafide_runtime::import::{Translation, translate};

    use super::*;
    use crate::config::{BootstrapConfig, BundleFormat, JoinTokenSource, NodeAttestorConfig};

    fn attempt(text: &str) -> Result<Translation, Vec<String>> {
        translate(&TABLE, "agent.conf", text, &|_| Err(io::Error::from(io::ErrorKind::NotFound)))
            .map_err(|mistakes| mistakes.iter().map(ToString::to_string).collect())
    }

    fn import(text: &str) -> (Config, Translation) {
        let translation = attempt(text).unwrap();
        let config = Config::parse(Path::new("agent.toml"), &translation.text).unwrap();
        (config, translation)
    }

    fn left(translation: &Translation) -> Vec<&str> {
        let mut left: Vec<&str> = translation.left.iter().map(|remark| remark.setting.as_str()).collect();
        left.sort_unstable();
        left
    }

    const LEAST: &str =
        "agent {\n trust_domain = \"example.org\"\n server_address = \"server\"\n server_port = 8081\n}\n";

    #[test]
    fn defaults_stay_those_of_spire_and_nothing_is_trusted_by_accident() {
        let (config, translation) = import(LEAST);
        assert_eq!(config.workload_socket, Path::new("/tmp/spire-agent/public/api.sock"));
        assert_eq!(config.data_dir, Path::new("./bonafide"));
        assert!(matches!(config.bootstrap, BootstrapConfig::Bundle { .. }));
        assert!(config.node_attestor == NodeAttestorConfig::JoinToken(JoinTokenSource::None));
        assert_eq!(left(&translation), Vec::<&str>::new());
    }

    #[test]
    fn all_that_exists_here_is_carried() {
        let (config, translation) = import(
            r#"{"agent": [{"trust_domain": "example.org", "server_address": "::1", "server_port": "9081",
              "data_dir": "/d/", "admin_socket_path": "/run/p/admin.sock", "socket_path": "/run/a.sock",
              "trust_bundle_path": "b.json", "trust_bundle_format": "spiffe", "log_level": "DEBUG",
              "workload_x509_svid_key_type": "ec-p384", "availability_target": "24h0m0s",
              "x509_svid_cache_max_size": 7, "jwt_svid_cache_max_size": 0, "allow_unauthenticated_verifiers": true,
              "allowed_foreign_jwt_claims": ["scope"], "rebootstrap_mode": "never",
              "experimental": {"sync_interval": "2s", "use_sync_authorized_entries": true}}],
             "health_checks": {"listener_enabled": true, "bind_address": "0.0.0.0", "bind_port": "8082"},
             "plugins": [{"NodeAttestor": [{"x509pop": {"plugin_data": {"certificate_path": "c", "private_key_path": "k"}}}],
              "KeyManager": {"disk": {"plugin_data": {"directory": "x"}}},
              "WorkloadAttestor": [{"unix": [{"plugin_data": [{"discover_workload_path": true, "workload_size_limit": -1}]}]}]}]}"#,
        );
        assert_eq!(left(&translation), Vec::<&str>::new());
        assert_eq!((config.server.host.as_str(), config.server.port), ("::1", 9081));
        assert_eq!(config.data_dir, Path::new("/d/bonafide"));
        let bundle = BootstrapConfig::Bundle { file: "b.json".into(), format: BundleFormat::Spiffe };
        assert_eq!(config.bootstrap, bundle);
        assert!(matches!(config.node_attestor, NodeAttestorConfig::X509Pop { .. }));
        assert_eq!((config.svid.x509_cache_size, config.svid.jwt_cache_size), (7, 1000));
        assert_eq!(config.health_address.unwrap().to_string(), "0.0.0.0:8082");
        assert_eq!(config.sync_interval.as_secs(), 2);
        assert!(config.svid.availability_target.is_some() && config.allow_unauthenticated_verifiers);
        let super::super::WorkloadAttestorConfig::Unix(unix) = &config.workload_attestors[0] else {
            panic!("{:?}", config.workload_attestors);
        };
        assert!(unix.discover_workload_path && unix.workload_size_limit == -1);
    }

    #[test]
    fn what_does_not_exist_here_is_named_without_secrets() {
        let (config, translation) = import(
            r#"agent {
              trust_domain = "example.org" server_address = "server" server_port = 8081
              trust_bundle_url = "https://x" join_token = "the-token" log_selectors = ["unix:uid"]
              trust_bundle_format = "spiffe"
              rebootstrap_mode = "auto" authorized_delegates = ["spiffe://example.org/d"]
              sds { default_svid_name = "x" disable_spiffe_cert_validation = false }
              experimental {
                use_sync_authorized_entries = false
                ratelimit { fetch_x509_svid = 5 fetch_secrets = 0 }
                broker { socket_path = "x" }
              }
            }
            plugins {
              KeyManager "memory" { plugin_data { } }
              WorkloadAttestor "k8s" { plugin_data { token_path = "x" } }
              WorkloadAttestor "docker" { }
              SVIDStore "aws_secretsmanager" { plugin_data { secretaccesskey = "hidden" } }
            }
            health_checks { bind_port = "8080" }
            telemetry { Prometheus { host = "localhost" } }"#,
        );
        assert_eq!(
            left(&translation),
            [
                "agent.authorized_delegates",
                "agent.experimental.broker",
                "agent.experimental.ratelimit.fetch_x509_svid",
                "agent.experimental.use_sync_authorized_entries",
                "agent.log_selectors",
                "agent.rebootstrap_mode",
                "agent.sds.default_svid_name",
                "agent.trust_bundle_url",
                "plugins.KeyManager.memory",
                "plugins.SVIDStore.aws_secretsmanager",
                "plugins.WorkloadAttestor.docker",
                "plugins.WorkloadAttestor.k8s",
            ]
        );
        assert!(!translation.text.contains("hidden"), "{}", translation.text);
        let file = "./bonafide/bootstrap-bundle.pem".into();
        assert_eq!(config.bootstrap, BootstrapConfig::Bundle { file, format: BundleFormat::Pem });
        let moot: Vec<&str> = translation.moot.iter().map(|remark| remark.setting.as_str()).collect();
        for setting in ["agent.trust_bundle_format", "health_checks.bind_port", "telemetry.Prometheus.host"] {
            assert!(moot.contains(&setting), "{setting} in {moot:?}");
        }
        assert_eq!(translation.text.matches("the-token").count(), 1, "{}", translation.text);
    }

    #[test]
    fn what_spire_refuses_is_refused() {
        let found =
            attempt(&format!("{LEAST}agent {{ insecure_boostrap = true\nsocket_path = \"\" }}")).unwrap_err();
        assert_eq!(found, ["agent.conf:6:9: agent.insecure_boostrap: SPIRE has no such setting"]);
        let found =
            attempt(&format!("{LEAST}agent {{ join_token = \"a\" join_token_file = \"b\" }}")).unwrap_err();
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(attempt("agent { }").unwrap_err().len(), 3);
    }

    /// Rows that write do so under keys that exist.
    #[test]
    fn the_table_writes_keys_that_are_read() {
        for Row { setting, carry } in ROWS {
            if let To(_, key) = carry {
                assert!(KEYS.iter().any(|known| known.path == *key), "{setting}: {key}");
            }
        }
    }
}
