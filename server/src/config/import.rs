//! What becomes of each setting of SPIRE's `server.conf`.

use bonafide_runtime::import::Carry::{Left, LeftBlock, Moot, To, Used};
use bonafide_runtime::import::Form::{Bool, Duration, Integer, Lower, Text, Texts};
use bonafide_runtime::import::{Carry, Import, Row, Table, shared};
use toml::Value;

use super::{Config, reference};
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
const UPSTREAM: &str = "this upstream authority does not exist here: sign this server's CA with upstream_authority.disk, or let \
                        it be self-signed";
const ATTESTOR: &str = "this node attestor does not exist here: its agents must attest in another way, by x509pop or with \
                        join tokens, and then have other SPIFFE IDs, so entries below them need new parents";
const PUBLISHER: &str = "bundles are not published by the server: publish what `bonafide bundle show --format spiffe` prints, \
                         by a timer";
const FEDERATION: &str = "federation by bundle endpoints does not exist here: exchange bundles with `bonafide bundle show --format spiffe` \
                          and `bonafide bundle set`";

const BUNDLE_ENDPOINT: &[&str] = &[
    "address",
    "port",
    "refresh_hint",
    "acme.directory_url",
    "acme.domain_name",
    "acme.email",
    "acme.tos_accepted",
    "profile.https_spiffe",
    "profile.https_web",
];
const FEDERATES_WITH: &[&str] = &[
    "bundle_endpoint_url",
    "bundle_endpoint_profile.https_spiffe.endpoint_spiffe_id",
    "bundle_endpoint_profile.https_web",
];

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
    row("server.log_source_location", Left("log lines have no source locations")),
    row("server.prune_attested_nodes_expired_for", To(Duration, "prune.attested_nodes_expired_for")),
    row(
        "server.prune_attested_nodes_batch_size",
        Moot("pruning does not hold anything up, so it has no batches to size"),
    ),
    row("server.prune_tofu_nodes", Used),
    row(
        "server.proxy_protocol_trusted_cidrs",
        Left(
            "the PROXY protocol is not understood: let the load balancer pass connections without it; limits for each \
             address then count the balancer's",
        ),
    ),
    row("server.ratelimit.attestation", Used),
    row("server.ratelimit.signing", Used),
    row("server.socket_path", Used),
    row("server.trust_domain", Used),
    row("server.max_attested_node_info_staleness", Moot(MEMORY)),
    row("server.profiling_enabled", Left(PROFILING)),
    row("server.profiling_port", Moot(PROFILING)),
    row("server.profiling_freq", Moot(PROFILING)),
    row("server.profiling_names", Moot(PROFILING)),
    row("server.federation.bundle_endpoint", LeftBlock(FEDERATION, BUNDLE_ENDPOINT)),
    row("server.federation.federates_with.*", LeftBlock(FEDERATION, FEDERATES_WITH)),
    row(
        "server.experimental.agent_spiffe_id_as_selector",
        Left(
            "agents get no selector spiffe_id: entries that use it as a node selector must name the agent as their parent",
        ),
    ),
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
    row(
        "server.experimental.require_pq_kem",
        Left("key exchange that withstands quantum computers cannot be required"),
    ),
    row("server.experimental.wit_key_type", To(Lower, "authority.wit_key_type")),
    row("server.experimental.wit_issuer", Used),
    row("server.experimental.feature_flags", Used),
    row("server.experimental.named_pipe_name", Moot("named pipes exist on Windows only")),
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
    row(
        "plugins.DataStore.*",
        Left(
            "entries, agents and bundles do not lie in an SQL database here, and are not read from one: move the entries \
             with `spire-server entry show -output json` and `bonafide entry import`, federated bundles with `spire-server bundle \
             list -output json` and `bonafide bundle import`; agents attest anew",
        ),
    ),
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
    row("plugins.NodeAttestor.*", Left(ATTESTOR)),
    row("plugins.UpstreamAuthority.disk", Used),
    row(
        "plugins.UpstreamAuthority.disk.cert_file_path",
        To(Text, "upstream_authority.disk.certificate_path"),
    ),
    row("plugins.UpstreamAuthority.disk.key_file_path", To(Text, "upstream_authority.disk.key_path")),
    row("plugins.UpstreamAuthority.disk.bundle_file_path", To(Text, "upstream_authority.disk.bundle_path")),
    row("plugins.UpstreamAuthority.*", Left(UPSTREAM)),
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
    shared::health(import, "listen.health_address");
    x509pop(import);
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
        Some(folder) => {
            let own = format!("{}/bonafide", folder.trim_end_matches('/'));
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
    let template = setting("agent_path_template");
    if let Some(text) = import.text(&template) {
        let mode = if spiffe { Mode::Spiffe } else { Mode::ExternalPki };
        match AgentPathTemplate::parse(&text, mode) {
            Ok(_) => import.set("node_attestor.x509pop.agent_path_template", text, &template, None),
            Err(error) => {
                let why = format!(
                    "{error}: without it agents get other SPIFFE IDs, so write a template of the names that are known here \
                     (see the reference) or give entries below these agents new parents"
                );
                import.left(&template, &why);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::Path;

    use bonafide_runtime::import::{Translation, translate};

    use super::*;
    use crate::config::KeyManagerSettings;

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
            "{LEAST}plugins {{ DataStore \"sql\" {{ plugin_data {{ connection_string = \"hidden\" }} }} KeyManager \"disk\" {{ plugin_data {{ keys_path = \"k\" }} }} }}"
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
              federation {{
                bundle_endpoint {{ port = 8443 }}
                federates_with "a.test" {{ bundle_endpoint_url = "https://a" }}
                federates_with "b.test" {{ bundle_endpoint_url = "https://b" }}
              }}
              experimental {{ feature_flags = ["other"] require_pq_kem = true }}
            }}
            telemetry {{ Prometheus {{ port = 1 }} Statsd = [{{ address = "x" }}] }}
            health_checks {{ listener_enabled = true bind_port = 2 ready_path = "/r" }}
            plugins {{
              NodeAttestor "aws_iid" {{ plugin_data {{ secret_access_key = "hidden" }} }}
              NodeAttestor "own" {{ plugin_cmd = "/bin/own" plugin_data {{}} }}
              NodeAttestor "x509pop" {{ plugin_data {{ ca_bundle_path = "c" agent_path_template = "/{{{{ .Foo }}}}" }} }}
              KeyManager "aws_kms" {{ plugin_data {{ region = "x" }} }}
              UpstreamAuthority "vault" {{ plugin_data {{ }} }}
              BundlePublisher "aws_s3" {{ plugin_data {{ }} }}
              CredentialComposer "uniqueid" {{ }}
            }}"#
        ));
        assert_eq!(config.listen.address.to_string(), "127.0.0.1:8081", "closed rather than open to all");
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
                "plugins.UpstreamAuthority.vault",
                "server.bind_address",
                "server.experimental.feature_flags",
                "server.experimental.require_pq_kem",
                "server.federation.bundle_endpoint",
                "server.federation.federates_with.a.test",
                "server.federation.federates_with.b.test",
                "server.log_source_location",
                "server.profiling_enabled",
                "server.proxy_protocol_trusted_cidrs",
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
             federates_with \"a.test\" {{ bundle_endpoint_profile \"https_spiffe\" {{ id = 1 }} }} }} }}"
        ))
        .unwrap_err();
        assert_eq!(
            found,
            [
                "server.conf:6:59: server.federation.bundle_endpoint.prot: SPIRE has no such setting",
                "server.conf:7:68: server.federation.federates_with.a.test.bundle_endpoint_profile.https_spiffe.id: SPIRE has no \
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
