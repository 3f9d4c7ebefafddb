//! What the agent is told: a TOML file, checked as a whole.
//!
//! [`raw`] is the file as it is written, where nearly everything may be absent; [`Config`] is what it means. The step
//! between them takes defaults and checks what types cannot say.

pub mod import;
mod keys;
mod raw;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bonafide_identity::TrustDomain;
use bonafide_pki::KeyType;
use bonafide_runtime::config::{ConfigError, Document, Problems, load_toml_document, parse_toml};
use bonafide_runtime::telemetry::LogConfig;

pub use keys::reference;
use raw::Raw;

use crate::server_client::ServerAddress;
use crate::workload_attestor::unix::{DEFAULT_SIZE_LIMIT, UnixConfig};

/// A checked configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// The trust domain of the server.
    pub trust_domain: TrustDomain,
    /// Where the agent keeps its own SVID and keys.
    pub data_dir: PathBuf,
    /// Time between two looks at the server.
    pub sync_interval: Duration,
    /// Where `/live`, `/ready` and `/metrics` are served, if anywhere.
    pub health_address: Option<SocketAddr>,
    /// Whether bundles are given to processes without identity.
    pub allow_unauthenticated_verifiers: bool,
    /// Further claims of foreign tokens that ValidateJWTSVID hands out.
    pub allowed_foreign_jwt_claims: Vec<String>,
    /// Where the server is.
    pub server: ServerAddress,
    /// How the server is recognised at first contact.
    pub bootstrap: BootstrapConfig,
    /// How the agent proves which node it runs on.
    pub node_attestor: NodeAttestorConfig,
    /// The socket for workloads.
    pub workload_socket: PathBuf,
    /// The socket for administration, if any.
    pub admin_socket: Option<PathBuf>,
    /// Where and how much to log.
    pub log: LogConfig,
    /// How SVIDs of workloads are made and kept.
    pub svid: SvidConfig,
    /// How processes are described.
    pub workload_attestors: Vec<WorkloadAttestorConfig>,
}

/// How the server is recognised before the agent holds a bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BootstrapConfig {
    /// By a bundle in a file.
    Bundle {
        /// The file.
        file: PathBuf,
        /// What it holds.
        format: BundleFormat,
    },
    /// Not at all: only the claimed SPIFFE ID is compared.
    Insecure,
}

/// The two ways to write a bundle into a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BundleFormat {
    /// Certificates in PEM.
    #[default]
    Pem,
    /// A SPIFFE bundle document.
    Spiffe,
}

/// One node attestor. Which exist is the match in `drivers`.
#[derive(Clone, PartialEq, Eq)]
pub enum NodeAttestorConfig {
    /// By a token that the server handed out; good for one attestation.
    JoinToken(JoinTokenSource),
    /// By possession of the key of a certificate that the server trusts.
    X509Pop {
        /// PEM of the certificate.
        certificate: PathBuf,
        /// PEM of its key.
        private_key: PathBuf,
        /// PEM of further intermediates.
        intermediates: Option<PathBuf>,
    },
}

impl std::fmt::Debug for NodeAttestorConfig {
    // The token is a secret.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::JoinToken(_) => "JoinToken",
            Self::X509Pop { .. } => "X509Pop",
        })
    }
}

/// Where the join token comes from.
#[derive(Clone, PartialEq, Eq)]
pub enum JoinTokenSource {
    /// Nowhere: the agent must still hold a valid SVID.
    None,
    /// The configuration.
    Inline(String),
    /// A file, read at attestation.
    File(PathBuf),
}

/// How SVIDs of workloads are made and kept.
#[derive(Debug, Clone, Copy)]
pub struct SvidConfig {
    /// The keys made for workloads.
    pub key_type: KeyType,
    /// How long before expiry to renew, in place of half the life.
    pub availability_target: Option<Duration>,
    /// X.509-SVIDs to keep without a subscriber.
    pub x509_cache_size: usize,
    /// JWT-SVIDs to keep.
    pub jwt_cache_size: usize,
}

/// One workload attestor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WorkloadAttestorConfig {
    /// User, groups and executable.
    Unix(UnixConfig),
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// The file cannot be read, or everything that is wrong with it.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let (raw, document) = load_toml_document(path)?;
        Self::check(raw, &document)
    }

    /// Checks a document; `path` is what the messages call it.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let (raw, document) = parse_toml(path, text)?;
        Self::check(raw, &document)
    }

    fn check(raw: Raw, document: &Document) -> Result<Self, ConfigError> {
        let mut problems = Problems::new(document);
        // Each part is read before any is needed, so that each mistake is seen.
        let trust_domain = problems
            .required("trust_domain", raw.trust_domain)
            .and_then(|text| problems.take("trust_domain", TrustDomain::parse_lenient(&text)));
        let sync_interval = raw.sync_interval.map_or(DEFAULT_SYNC_INTERVAL, Into::into);
        problems.check(sync_interval >= MIN_SYNC_INTERVAL, "sync_interval", "must be at least 10ms");
        let health_address = raw.health_address.and_then(|text| {
            let address = text.parse().map_err(|_| format!("\"{text}\" is not an IP address and port"));
            problems.take("health_address", address)
        });
        let server = problems
            .required("server.address", raw.server.address)
            .and_then(|text| problems.take("server.address", text.parse::<ServerAddress>()));
        let bootstrap = bootstrap(raw.bootstrap, &mut problems);
        let node_attestor = node_attestor(raw.node_attestor, &mut problems);
        let (workload_socket, admin_socket) =
            sockets(raw.workload_api.socket, raw.admin.socket, &mut problems);
        let svid = svid(raw.svid, &mut problems);
        let unix = raw.workload_attestor.unix.unwrap_or_default();

        let whole = (|| {
            Some(Self {
                trust_domain: trust_domain?,
                data_dir: raw.data_dir.unwrap_or_else(|| DEFAULT_DATA_DIR.into()),
                sync_interval,
                health_address,
                allow_unauthenticated_verifiers: raw.allow_unauthenticated_verifiers.unwrap_or(false),
                allowed_foreign_jwt_claims: raw.allowed_foreign_jwt_claims.unwrap_or_default(),
                server: server?,
                bootstrap: bootstrap?,
                node_attestor: node_attestor?,
                workload_socket,
                admin_socket,
                log: LogConfig {
                    level: raw.log.level.unwrap_or_default(),
                    format: raw.log.format.unwrap_or_default(),
                    file: raw.log.file,
                },
                svid: svid?,
                workload_attestors: vec![WorkloadAttestorConfig::Unix(UnixConfig {
                    discover_workload_path: unix.discover_workload_path.unwrap_or(false),
                    workload_size_limit: unix.workload_size_limit.unwrap_or(DEFAULT_SIZE_LIMIT),
                })],
            })
        })();
        problems.finish(whole)
    }
}

fn bootstrap(raw: raw::Bootstrap, problems: &mut Problems<'_>) -> Option<BootstrapConfig> {
    match (raw.bundle_file, raw.insecure.unwrap_or(false)) {
        (Some(_), true) => {
            problems.push("bootstrap", "give either bundle_file or insecure = true, not both");
            None
        }
        (None, false) => {
            problems.push("bootstrap", "give bundle_file, or insecure = true for an experiment");
            None
        }
        (Some(file), false) => {
            Some(BootstrapConfig::Bundle { file, format: raw.bundle_format.unwrap_or_default() })
        }
        (None, true) => Some(BootstrapConfig::Insecure),
    }
}

fn node_attestor(raw: raw::NodeAttestor, problems: &mut Problems<'_>) -> Option<NodeAttestorConfig> {
    match (raw.join_token, raw.x509pop) {
        (Some(_), Some(_)) => {
            problems.push("node_attestor", "only one table may be given");
            None
        }
        (None, None) => {
            problems.push(
                "node_attestor",
                "give one table, [node_attestor.join_token] or [node_attestor.x509pop]",
            );
            None
        }
        (Some(raw), None) => Some(NodeAttestorConfig::JoinToken(match (raw.token, raw.token_file) {
            (Some(_), Some(_)) => {
                problems.push("node_attestor.join_token", "give either token or token_file, not both");
                return None;
            }
            (Some(token), None) => JoinTokenSource::Inline(token),
            (None, Some(file)) => JoinTokenSource::File(file),
            (None, None) => JoinTokenSource::None,
        })),
        (None, Some(raw)) => {
            let certificate =
                problems.required("node_attestor.x509pop.certificate_path", raw.certificate_path);
            let private_key =
                problems.required("node_attestor.x509pop.private_key_path", raw.private_key_path);
            Some(NodeAttestorConfig::X509Pop {
                certificate: certificate?,
                private_key: private_key?,
                intermediates: raw.intermediates_path,
            })
        }
    }
}

fn sockets(
    workload: Option<PathBuf>,
    admin: Option<PathBuf>,
    problems: &mut Problems<'_>,
) -> (PathBuf, Option<PathBuf>) {
    let workload = workload.unwrap_or_else(|| DEFAULT_WORKLOAD_SOCKET.into());
    if let Some(admin) = &admin {
        // Whoever mounts the workload socket's folder into a container must not hand out the admin socket with it.
        problems.check(
            normalised(workload.parent()) != normalised(admin.parent()),
            "admin.socket",
            "must be in another folder than workload_api.socket",
        );
    }
    for (key, socket) in [("workload_api.socket", Some(&workload)), ("admin.socket", admin.as_ref())] {
        if let Some(socket) = socket {
            let length = socket.as_os_str().len();
            problems.check(
                length <= MAX_SOCKET_PATH,
                key,
                format!("has {length} bytes; at most {MAX_SOCKET_PATH} are possible"),
            );
            problems.check(socket.file_name().is_some(), key, "must name a file");
        }
    }
    (workload, admin)
}

/// Without `.` and doubled slashes.
fn normalised(folder: Option<&Path>) -> PathBuf {
    let parts = folder.into_iter().flat_map(Path::components);
    parts.filter(|part| *part != std::path::Component::CurDir).collect()
}

fn svid(raw: raw::Svid, problems: &mut Problems<'_>) -> Option<SvidConfig> {
    let key_type = match raw.key_type {
        None => Some(KeyType::EcP256),
        Some(text) => problems.take("svid.key_type", text.parse::<KeyType>()),
    };
    let availability_target = raw.availability_target.map(Duration::from);
    problems.check(
        availability_target.is_none_or(|target| target >= MIN_AVAILABILITY_TARGET),
        "svid.availability_target",
        "must be at least 24h",
    );
    let mut size = |key: &str, size: Option<usize>| {
        problems.check(size != Some(0), key, "must be at least 1");
        size.unwrap_or(DEFAULT_CACHE_SIZE)
    };
    Some(SvidConfig {
        x509_cache_size: size("svid.x509_cache_size", raw.x509_cache_size),
        jwt_cache_size: size("svid.jwt_cache_size", raw.jwt_cache_size),
        key_type: key_type?,
        availability_target,
    })
}

const DEFAULT_DATA_DIR: &str = "/var/lib/bonafide-agent";
const DEFAULT_WORKLOAD_SOCKET: &str = "/tmp/bonafide-agent/public/api.sock";
const DEFAULT_SYNC_INTERVAL: Duration = Duration::from_secs(5);
const DEFAULT_CACHE_SIZE: usize = 1000;
const MIN_SYNC_INTERVAL: Duration = Duration::from_millis(10);
const MIN_AVAILABILITY_TARGET: Duration = Duration::from_secs(24 * 3600);
/// `sun_path` holds 108 bytes with the terminating zero, and binding goes through a longer temporary name.
const MAX_SOCKET_PATH: usize = 90;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use bonafide_runtime::config::HumanDuration;

    use super::keys::{Absent, KEYS};
    use super::*;

    const LEAST: &str = r#"
        trust_domain = "example.org"
        server.address = "localhost:8081"
        bootstrap.insecure = true
        node_attestor.join_token.token = "secret-token"
    "#;

    const FULL: &str = r#"
        trust_domain = "spiffe://example.org"
        data_dir = "/var/lib/x"
        sync_interval = "250ms"
        health_address = "127.0.0.1:9000"
        allow_unauthenticated_verifiers = true
        allowed_foreign_jwt_claims = ["scope"]
        [server]
        address = "[::1]:8081"
        [bootstrap]
        bundle_file = "bundle.json"
        bundle_format = "spiffe"
        [node_attestor.x509pop]
        certificate_path = "c.pem"
        private_key_path = "k.pem"
        intermediates_path = "i.pem"
        [workload_api]
        socket = "/run/a/public/api.sock"
        [admin]
        socket = "/run/a/private/admin.sock"
        [log]
        level = "debug"
        format = "json"
        file = "/var/log/agent"
        [svid]
        key_type = "rsa-2048"
        availability_target = "24h"
        x509_cache_size = 5
        jwt_cache_size = 6
        [workload_attestor.unix]
        discover_workload_path = true
        workload_size_limit = -1
    "#;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(Path::new("agent.toml"), text)
    }

    fn mistakes(text: &str) -> Vec<(String, String)> {
        match parse(text) {
            Err(ConfigError::Invalid { problems, .. }) => {
                problems.into_iter().map(|problem| (problem.key, problem.message)).collect()
            }
            other => panic!("expected mistakes, got {other:?}"),
        }
    }

    #[test]
    fn the_least_configuration_takes_the_documented_defaults() {
        let config = parse(LEAST).unwrap();
        let documented = |path: &str| match KEYS.iter().find(|key| key.path == path).unwrap().absent {
            Absent::Is(default) => default,
            _ => panic!("{path} has no default"),
        };
        assert_eq!(config.trust_domain.as_str(), "example.org");
        assert_eq!(config.data_dir, Path::new(documented("data_dir")));
        assert_eq!(HumanDuration(config.sync_interval).to_string(), documented("sync_interval"));
        assert_eq!(
            config.allow_unauthenticated_verifiers.to_string(),
            documented("allow_unauthenticated_verifiers")
        );
        assert_eq!(config.workload_socket, Path::new(documented("workload_api.socket")));
        assert_eq!(config.admin_socket, None);
        assert_eq!(config.log.level.as_str(), documented("log.level"));
        assert_eq!(config.svid.key_type.to_string(), documented("svid.key_type"));
        assert_eq!(config.svid.x509_cache_size.to_string(), documented("svid.x509_cache_size"));
        assert_eq!(config.svid.jwt_cache_size.to_string(), documented("svid.jwt_cache_size"));
        assert_eq!(config.bootstrap, BootstrapConfig::Insecure);
        assert_eq!(config.workload_attestors, [WorkloadAttestorConfig::Unix(UnixConfig::default())]);
    }

    #[test]
    fn a_full_configuration_is_understood() {
        let config = parse(FULL).unwrap();
        assert_eq!(config.server, ServerAddress { host: "::1".into(), port: 8081 });
        assert_eq!(config.sync_interval, Duration::from_millis(250));
        assert_eq!(config.svid.availability_target, Some(Duration::from_secs(86_400)));
        let unix = UnixConfig { discover_workload_path: true, workload_size_limit: -1 };
        assert_eq!(config.workload_attestors, [WorkloadAttestorConfig::Unix(unix)]);
        assert_eq!(
            config.bootstrap,
            BootstrapConfig::Bundle { file: "bundle.json".into(), format: BundleFormat::Spiffe }
        );
        let NodeAttestorConfig::X509Pop { intermediates, .. } = config.node_attestor else {
            panic!("x509pop")
        };
        assert_eq!(intermediates, Some("i.pem".into()));
    }

    #[test]
    fn the_reference_names_exactly_the_keys_that_are_read() {
        fn leaves(prefix: &str, value: &serde_json::Value, found: &mut BTreeSet<String>) {
            match value {
                serde_json::Value::Object(members) => {
                    for (name, value) in members {
                        leaves(
                            &if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") },
                            value,
                            found,
                        );
                    }
                }
                _ => {
                    found.insert(prefix.to_owned());
                }
            }
        }
        let mut read = BTreeSet::new();
        leaves("", &serde_json::to_value(Raw::with_all_tables()).unwrap(), &mut read);
        let documented: BTreeSet<String> = KEYS.iter().map(|key| key.path.to_owned()).collect();
        assert_eq!(read, documented);
    }

    #[test]
    fn all_mistakes_are_reported_at_once() {
        let found = mistakes(
            r#"
            data_dirr = "x"
            sync_interval = "soon"
            allow_unauthenticated_verifiers = "yes"
            allowed_foreign_jwt_claims = [1]
            log.level = "loud"
            svid = 3
            workload_attestor.docker.socket = "x"
            "#,
        );
        for expected in [
            "data_dirr",
            "sync_interval",
            "allow_unauthenticated_verifiers",
            "allowed_foreign_jwt_claims[0]",
            "log.level",
            "svid",
            "workload_attestor.docker",
        ] {
            assert!(found.iter().any(|(key, _)| key == expected), "{expected} is missing from {found:#?}");
        }

        let found = mistakes(
            r#"
            trust_domain = "Example.org"
            sync_interval = "1ms"
            health_address = "nowhere"
            bootstrap.insecure = true
            bootstrap.bundle_file = "b.pem"
            node_attestor.join_token.token = "a"
            node_attestor.x509pop.certificate_path = "c"
            workload_api.socket = "/run/a/./api.sock"
            admin.socket = "/run/a//admin.sock"
            svid.key_type = "dsa"
            svid.availability_target = "23h"
            svid.jwt_cache_size = 0
            "#,
        );
        let keys: BTreeSet<&str> = found.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(
            keys.into_iter().collect::<Vec<_>>(),
            [
                "admin.socket",
                "bootstrap",
                "health_address",
                "node_attestor",
                "server.address",
                "svid.availability_target",
                "svid.jwt_cache_size",
                "svid.key_type",
                "sync_interval",
                "trust_domain",
            ]
        );
    }

    #[test]
    fn each_single_mistake_has_its_text() {
        let with = |line: &str| {
            let found = mistakes(&format!("{LEAST}\n{line}"));
            assert_eq!(found.len(), 1, "{found:?}");
            format!("{}: {}", found[0].0, found[0].1)
        };
        assert_eq!(
            with("node_attestor.join_token.token_file = \"f\""),
            "node_attestor.join_token: give either token or token_file, not both"
        );
        let long = "x".repeat(120);
        assert_eq!(
            with(&format!("workload_api.socket = \"/{long}\"")),
            "workload_api.socket: has 121 bytes; at most 90 are possible"
        );
        assert_eq!(mistakes("trust_domain = \"example.org\"\nserver.address = \"a:1\"").len(), 2);
        assert_eq!(mistakes("trust_domain =").len(), 1);
    }

    #[test]
    fn the_token_is_not_printed() {
        assert!(!format!("{:?}", parse(LEAST).unwrap()).contains("secret-token"));
    }
}
