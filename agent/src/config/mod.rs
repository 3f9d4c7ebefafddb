//! What the agent is told: a TOML file, checked as a whole.
//!
//! [`raw`] is the file as it is written, where nearly everything may be absent; [`Config`] is what it means. The step
//! between them takes defaults and checks what types cannot say.

mod attestors;
pub mod import;
mod keys;
mod raw;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bonafide_identity::{SpiffeId, TrustDomain};
use bonafide_pki::KeyType;
use bonafide_runtime::config::{ConfigError, Document, Problems, load_toml_document, parse_toml};
use bonafide_runtime::telemetry::LogConfig;
use http::{HeaderMap, Method, Uri};

pub use keys::reference;
use raw::Raw;
use zeroize::Zeroizing;

use crate::api::broker::References;
use crate::api::limit::RateLimits;
use crate::bootstrap::source::{BundleUrl, socket_path as socket_path_of};
use crate::gpu_evidence::GpuEvidenceConfig;
use crate::server_client::ServerAddress;
use crate::workload_attestor::docker::{DEFAULT_DOCKER_SOCKET, DEFAULT_PODMAN_SOCKET, DockerConfig};
use crate::workload_attestor::gpu::GpuConfig;
use crate::workload_attestor::k8s::K8sConfig;
use crate::workload_attestor::slurm::{DEFAULT_CGROUP_ROOT, SlurmConfig};
use crate::workload_attestor::systemd::{DEFAULT_BUS_SOCKET, SystemdConfig};
use crate::workload_attestor::unix::{DEFAULT_SIZE_LIMIT, UnixConfig};

/// A checked configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// The trust domain of the server.
    pub trust_domain: TrustDomain,
    /// Where the agent keeps its own SVID and keys.
    pub data_dir: PathBuf,
    /// Where the keys of these SVIDs are.
    pub key_manager: KeyStorage,
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
    /// What to do when the server is no longer known.
    pub rebootstrap: Rebootstrap,
    /// How the agent proves which node it runs on.
    pub node_attestor: NodeAttestorConfig,
    /// The socket for workloads.
    pub workload_socket: PathBuf,
    /// Whether the Workload API is offered there.
    pub workload_api_enabled: bool,
    /// The socket for administration, if any.
    pub admin_socket: Option<PathBuf>,
    /// Who may ask for the identities of others there.
    pub authorized_delegates: BTreeSet<SpiffeId>,
    /// Who may ask for the identities of others with a certificate, and where.
    pub broker: BrokerConfig,
    /// How often each kind of workload may call.
    pub rate_limits: RateLimits,
    /// Where and how much to log.
    pub log: LogConfig,
    /// Beginnings of selectors that may be written to the log.
    pub log_selectors: Vec<String>,
    /// How SVIDs of workloads are made and kept.
    pub svid: SvidConfig,
    /// How processes are described.
    pub workload_attestors: Vec<WorkloadAttestorConfig>,
    /// How evidence of GPUs is collected, if it is.
    pub gpu_evidence: Option<GpuEvidenceConfig>,
}

/// Where the keys of the agent's own SVIDs are kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyStorage {
    /// In a file in the data folder.
    #[default]
    Disk,
    /// Nowhere but in memory: a restart needs a new attestation.
    Memory,
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
    /// By a bundle behind a URL.
    Url {
        /// Where.
        url: BundleUrl,
        /// What lies there.
        format: BundleFormat,
    },
    /// By the bundle that another agent's Workload API gives out.
    WorkloadApi {
        /// Its socket.
        socket: PathBuf,
    },
    /// Not at all: only the claimed SPIFFE ID is compared.
    Insecure,
}

/// Beginning anew when the bundle that the agent holds no longer knows the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rebootstrap {
    /// Whether.
    pub mode: RebootstrapMode,
    /// How long the server must have been unknown.
    pub delay: Duration,
}

/// Whether to begin anew.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RebootstrapMode {
    /// No.
    #[default]
    Never,
    /// When the agent can attest again.
    Auto,
    /// Yes; an agent that cannot attest again does not start.
    Always,
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

/// The SPIFFE Broker API. Served nowhere without a socket or an address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BrokerConfig {
    /// The Unix socket.
    pub socket: Option<PathBuf>,
    /// The TCP address.
    pub address: Option<SocketAddr>,
    /// The brokers, and by which references they may name workloads.
    pub brokers: BTreeMap<SpiffeId, References>,
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
    /// By possession of an SSH host key.
    SshPop {
        /// The private key.
        host_key: PathBuf,
        /// Its certificate.
        host_cert: PathBuf,
    },
    /// By a device identity in a TPM.
    TpmDevId(TpmDevIdConfig),
    /// By answering under a host name.
    HttpChallenge(HttpChallengeConfig),
    /// By a token of an OpenID Connect issuer.
    Oidc(TokenSource),
    /// By the token of the agent's pod in a Kubernetes cluster.
    K8sPsat {
        /// The server's name for the cluster.
        cluster: String,
        /// The file with the token.
        token_path: PathBuf,
    },
}

/// A device identity in a TPM.
#[derive(Clone, PartialEq, Eq)]
pub struct TpmDevIdConfig {
    /// PEM of the certificate, and of those between it and its root.
    pub devid_cert: PathBuf,
    /// The private part of the key, which this TPM alone can load.
    pub devid_priv: PathBuf,
    /// The public area of the key.
    pub devid_pub: PathBuf,
    /// The password of the key.
    pub devid_password: Secret,
    /// Where the TPM is; the only one of the machine when absent.
    pub tpm_device: Option<PathBuf>,
    /// The password of the owner's hierarchy.
    pub owner_hierarchy_password: Secret,
    /// The password of the endorsement hierarchy.
    pub endorsement_hierarchy_password: Secret,
}

/// A secret of the configuration. It is wiped when the last copy of the configuration goes, and is never printed.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(Arc<Zeroizing<String>>);

impl Secret {
    /// Takes a text over.
    pub fn new(text: String) -> Self {
        Self(Arc::new(Zeroizing::new(text)))
    }

    /// The secret itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

/// How the server's call is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpChallengeConfig {
    /// The name of this host; that of the machine when there is none.
    pub hostname: Option<String>,
    /// The agent's part of the path.
    pub agentname: String,
    /// The port to listen on; 0 is any.
    pub port: u16,
    /// The port that the server is told, when it is another.
    pub advertised_port: Option<u16>,
}

/// Where tokens come from.
#[derive(Clone, PartialEq, Eq)]
pub enum TokenSource {
    /// A file.
    File(PathBuf),
    /// A service.
    Url(Box<TokenUrl>),
}

/// A service that hands out tokens.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenUrl {
    /// Where it is.
    pub url: Uri,
    /// How it is asked.
    pub method: Method,
    /// Headers of the request; their values may be secrets.
    pub headers: HeaderMap,
    /// The member of the answer that is the token; the whole answer when there is none.
    pub field: Option<String>,
    /// PEM of the authorities that verify it, in place of the system's.
    pub ca_path: Option<PathBuf>,
}

impl std::fmt::Debug for NodeAttestorConfig {
    // The token is a secret.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::JoinToken(_) => "JoinToken",
            Self::X509Pop { .. } => "X509Pop",
            Self::SshPop { .. } => "SshPop",
            Self::TpmDevId(_) => "TpmDevId",
            Self::HttpChallenge(_) => "HttpChallenge",
            Self::Oidc(_) => "Oidc",
            Self::K8sPsat { .. } => "K8sPsat",
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
    /// The unit, from systemd.
    Systemd(SystemdConfig),
    /// The container, from its engine.
    Docker(DockerConfig),
    /// The pod, from the kubelet.
    K8s(K8sConfig),
    /// The pod's GPUs, from the kubelet.
    Gpu(GpuConfig),
    /// The Slurm job and step.
    Slurm(SlurmConfig),
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
        let rebootstrap = Rebootstrap {
            mode: raw.bootstrap.rebootstrap_mode.unwrap_or_default(),
            delay: raw.bootstrap.rebootstrap_delay.map_or(DEFAULT_REBOOTSTRAP_DELAY, Duration::from),
        };
        problems.check(
            raw.bootstrap.insecure != Some(true) || rebootstrap.mode == RebootstrapMode::Never,
            "bootstrap.rebootstrap_mode",
            "must be \"never\" with insecure = true: whoever can stand in between could take over a running agent",
        );
        let bootstrap = bootstrap(raw.bootstrap, &mut problems);
        let node_attestor = node_attestor(raw.node_attestor, &mut problems);
        let (workload_socket, admin_socket) =
            sockets(raw.workload_api.socket, raw.admin.socket, &mut problems);
        let authorized_delegates = delegates(raw.admin.authorized_delegates, &mut problems);
        let broker = broker(raw.broker, &workload_socket, admin_socket.as_deref(), &mut problems);
        let rate_limits = RateLimits {
            fetch_x509_svid: raw.rate_limit.fetch_x509_svid.unwrap_or(0),
            fetch_jwt_svid: raw.rate_limit.fetch_jwt_svid.unwrap_or(0),
            fetch_x509_bundles: raw.rate_limit.fetch_x509_bundles.unwrap_or(0),
            fetch_jwt_bundles: raw.rate_limit.fetch_jwt_bundles.unwrap_or(0),
        };
        let svid = svid(raw.svid, &mut problems);
        let log_selectors = raw.log.selectors.unwrap_or_default();
        for (at, prefix) in log_selectors.iter().enumerate() {
            let message =
                "is no beginning of a selector: write its type, or more of it, without a colon at the end";
            let good = !prefix.is_empty() && !prefix.ends_with(':');
            problems.check(good, format!("log.selectors[{at}]"), message);
        }
        let workload_attestors = workload_attestors(raw.workload_attestor, &mut problems);

        let gpu_evidence = match raw.gpu_evidence {
            None => Some(None),
            Some(raw) => gpu_evidence(raw, &mut problems).map(Some),
        };

        let whole = (|| {
            Some(Self {
                trust_domain: trust_domain?,
                data_dir: raw.data_dir.unwrap_or_else(|| DEFAULT_DATA_DIR.into()),
                key_manager: raw.key_manager.unwrap_or_default(),
                sync_interval,
                health_address,
                allow_unauthenticated_verifiers: raw.allow_unauthenticated_verifiers.unwrap_or(false),
                allowed_foreign_jwt_claims: raw.allowed_foreign_jwt_claims.unwrap_or_default(),
                server: server?,
                bootstrap: bootstrap?,
                rebootstrap,
                node_attestor: node_attestor?,
                workload_socket,
                workload_api_enabled: raw.workload_api.enabled.unwrap_or(true),
                admin_socket,
                authorized_delegates,
                broker,
                rate_limits,
                log: LogConfig {
                    level: raw.log.level.unwrap_or_default(),
                    format: raw.log.format.unwrap_or_default(),
                    file: raw.log.file,
                    source_location: raw.log.source_location.unwrap_or(false),
                },
                log_selectors,
                svid: svid?,
                workload_attestors: workload_attestors?,
                gpu_evidence: gpu_evidence?,
            })
        })();
        problems.finish(whole)
    }
}

fn bootstrap(raw: raw::Bootstrap, problems: &mut Problems<'_>) -> Option<BootstrapConfig> {
    const SOURCES: &str = "bundle_file, bundle_url, bundle_workload_api";
    let insecure = raw.insecure.unwrap_or(false);
    let given =
        [raw.bundle_file.is_some(), raw.bundle_url.is_some(), raw.bundle_workload_api.is_some(), insecure];
    match given.into_iter().filter(|given| *given).count() {
        1 => {}
        0 => {
            problems
                .push("bootstrap", format!("give one of {SOURCES}, or insecure = true for an experiment"));
            return None;
        }
        _ => {
            problems.push("bootstrap", format!("give only one of {SOURCES} and insecure = true"));
            return None;
        }
    }
    let format = raw.bundle_format.unwrap_or_default();
    problems.check(
        raw.bundle_unix_socket.is_none() || raw.bundle_url.is_some(),
        "bootstrap.bundle_unix_socket",
        "means nothing without bundle_url",
    );
    if let Some(file) = raw.bundle_file {
        return Some(BootstrapConfig::Bundle { file, format });
    }
    if let Some(url) = raw.bundle_url {
        let url = problems.take("bootstrap.bundle_url", BundleUrl::new(&url, raw.bundle_unix_socket))?;
        return Some(BootstrapConfig::Url { url, format });
    }
    if let Some(socket) = raw.bundle_workload_api {
        let socket = problems.take("bootstrap.bundle_workload_api", socket_path_of(&socket))?;
        return Some(BootstrapConfig::WorkloadApi { socket });
    }
    Some(BootstrapConfig::Insecure)
}

fn node_attestor(raw: raw::NodeAttestor, problems: &mut Problems<'_>) -> Option<NodeAttestorConfig> {
    let raw::NodeAttestor { join_token, x509pop, sshpop, tpm_devid, http_challenge, oidc, k8s_psat } = raw;
    let given = [
        join_token.is_some(),
        x509pop.is_some(),
        sshpop.is_some(),
        tpm_devid.is_some(),
        http_challenge.is_some(),
        oidc.is_some(),
        k8s_psat.is_some(),
    ];
    match given.iter().filter(|given| **given).count() {
        0 => {
            problems.push(
                "node_attestor",
                "give one table: [node_attestor.join_token], x509pop, sshpop, tpm_devid, http_challenge, oidc or k8s_psat",
            );
            return None;
        }
        1 => {}
        _ => {
            problems.push("node_attestor", "only one table may be given");
            return None;
        }
    }
    None.or(join_token.map(|raw| attestors::join_token(raw, problems)))
        .or(x509pop.map(|raw| attestors::x509pop(raw, problems)))
        .or(sshpop.map(|raw| Some(attestors::sshpop(raw))))
        .or(tpm_devid.map(|raw| attestors::tpm_devid(raw, problems)))
        .or(http_challenge.map(|raw| attestors::http_challenge(raw, problems)))
        .or(oidc.map(|raw| attestors::oidc(raw, problems)))
        .or(k8s_psat.map(|raw| attestors::k8s_psat(raw, problems)))?
}

fn gpu_evidence(raw: raw::GpuEvidence, problems: &mut Problems<'_>) -> Option<GpuEvidenceConfig> {
    let command = problems.required("gpu_evidence.command", raw.command);
    problems.check(
        command.as_ref().is_none_or(|path| path.is_absolute()),
        "gpu_evidence.command",
        "must be an absolute path",
    );
    let timeout = raw.timeout.map_or(DEFAULT_COLLECT_TIMEOUT, Duration::from);
    problems.check(
        (Duration::from_secs(1)..=LONGEST_COLLECT_TIMEOUT).contains(&timeout),
        "gpu_evidence.timeout",
        "must be between 1s and 100s: a challenge lives for two minutes",
    );
    Some(GpuEvidenceConfig { command: command?, timeout })
}

const DEFAULT_COLLECT_TIMEOUT: Duration = Duration::from_secs(60);
const LONGEST_COLLECT_TIMEOUT: Duration = Duration::from_secs(100);

fn workload_attestors(
    raw: raw::WorkloadAttestor,
    problems: &mut Problems<'_>,
) -> Option<Vec<WorkloadAttestorConfig>> {
    let mut attestors = Vec::new();
    let raw::WorkloadAttestor { unix, systemd, docker, k8s, gpu, slurm } = raw;
    let alone = systemd.is_none() && docker.is_none() && k8s.is_none() && gpu.is_none() && slurm.is_none();
    if let Some(unix) = unix.or_else(|| alone.then(raw::Unix::default)) {
        attestors.push(WorkloadAttestorConfig::Unix(UnixConfig {
            discover_workload_path: unix.discover_workload_path.unwrap_or(false),
            workload_size_limit: unix.workload_size_limit.unwrap_or(DEFAULT_SIZE_LIMIT),
        }));
    }
    if let Some(systemd) = systemd {
        let bus_socket = systemd.bus_socket.unwrap_or_else(|| DEFAULT_BUS_SOCKET.into());
        attestors.push(WorkloadAttestorConfig::Systemd(SystemdConfig { bus_socket }));
    }
    let mut whole = true;
    if let Some(docker) = docker {
        let docker = self::docker(docker, problems).map(WorkloadAttestorConfig::Docker);
        whole &= docker.is_some();
        attestors.extend(docker);
    }
    problems.check(
        gpu.is_none() || k8s.is_some(),
        "workload_attestor.gpu",
        "needs the table workload_attestor.k8s, which says how the kubelet is asked for pods",
    );
    if let Some(k8s) = k8s {
        attestors.push(WorkloadAttestorConfig::K8s(attestors::k8s(k8s, problems)));
    }
    if let Some(gpu) = gpu {
        attestors.push(WorkloadAttestorConfig::Gpu(attestors::gpu(gpu)));
    }
    if let Some(slurm) = slurm {
        attestors.push(WorkloadAttestorConfig::Slurm(self::slurm(slurm, problems)));
    }
    whole.then_some(attestors)
}

fn slurm(raw: raw::Slurm, problems: &mut Problems<'_>) -> SlurmConfig {
    let cgroup_root = raw.cgroup_root.unwrap_or_else(|| DEFAULT_CGROUP_ROOT.into());
    let paths = [("jobs_dir", raw.jobs_dir.as_ref()), ("cgroup_root", Some(&cgroup_root))];
    for (name, path) in paths {
        let key = format!("workload_attestor.slurm.{name}");
        problems.check(path.is_none_or(|path| path.is_absolute()), key, "must be an absolute path");
    }
    SlurmConfig { jobs_dir: raw.jobs_dir, cgroup_root }
}

fn docker(raw: raw::Docker, problems: &mut Problems<'_>) -> Option<DockerConfig> {
    let key = |name: &str| format!("workload_attestor.docker.{name}");
    // SPIRE writes addresses of sockets.
    let mut socket = |name: &str, path: Option<String>, default: &str| {
        let path = path.unwrap_or_else(|| default.to_owned());
        let plain = path.strip_prefix("unix://").unwrap_or(&path);
        problems.check(plain.starts_with('/'), key(name), "must be the absolute path of a Unix socket");
        plain.to_owned()
    };
    let docker_socket = socket("docker_socket_path", raw.docker_socket_path, DEFAULT_DOCKER_SOCKET).into();
    let podman_socket = socket("podman_socket_path", raw.podman_socket_path, DEFAULT_PODMAN_SOCKET).into();
    let podman_user_socket = match raw.podman_socket_path_template {
        None => Some(None),
        Some(text) => {
            let template = socket("podman_socket_path_template", Some(text), "");
            problems.take(key("podman_socket_path_template"), template.parse()).map(Some)
        }
    };
    if let Some(version) = &raw.docker_version {
        let digits = version.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        problems.check(digits && !version.is_empty(), key("docker_version"), "must be like 1.44");
    }
    let patterns = raw.container_id_cgroup_matchers.unwrap_or_default();
    let matchers: Option<Vec<_>> = patterns
        .iter()
        .enumerate()
        .map(|(at, pattern)| {
            problems.take(key(&format!("container_id_cgroup_matchers[{at}]")), pattern.parse())
        })
        // To the end, so that each mistake is seen.
        .collect::<Vec<_>>()
        .into_iter()
        .collect();
    Some(DockerConfig {
        docker_socket,
        version: raw.docker_version,
        podman_socket,
        podman_user_socket: podman_user_socket?,
        matchers: matchers?,
    })
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
            socket_path(key, socket, problems);
        }
    }
    (workload, admin)
}

fn socket_path(key: &str, socket: &Path, problems: &mut Problems<'_>) {
    let length = socket.as_os_str().len();
    problems.check(
        length <= MAX_SOCKET_PATH,
        key,
        format!("has {length} bytes; at most {MAX_SOCKET_PATH} are possible"),
    );
    problems.check(socket.file_name().is_some(), key, "must name a file");
}

fn delegates(ids: Option<Vec<String>>, problems: &mut Problems<'_>) -> BTreeSet<SpiffeId> {
    let ids = ids.unwrap_or_default().into_iter().enumerate();
    ids.filter_map(|(index, id)| {
        problems.take(format!("admin.authorized_delegates[{index}]"), SpiffeId::parse(&id))
    })
    .collect()
}

fn broker(
    raw: raw::Broker,
    workload: &Path,
    admin: Option<&Path>,
    problems: &mut Problems<'_>,
) -> BrokerConfig {
    let address = raw.address.and_then(|text| {
        let address = text.parse().map_err(|_| format!("\"{text}\" is not an IP address and port"));
        problems.take("broker.address", address)
    });
    if let Some(socket) = &raw.socket {
        socket_path("broker.socket", socket, problems);
        for (other, name) in [(Some(workload), "workload_api.socket"), (admin, "admin.socket")] {
            problems.check(
                other.is_none_or(|other| normalised(socket.parent()) != normalised(other.parent())),
                "broker.socket",
                format!("must be in another folder than {name}"),
            );
        }
    }
    let listens = raw.socket.is_some() || address.is_some();
    let entries = raw.brokers.unwrap_or_default();
    problems.check(
        !listens || !entries.is_empty(),
        "broker.brokers",
        "must name a broker, or nobody could call",
    );
    problems.check(
        listens || entries.is_empty(),
        "broker",
        "give a socket or an address on which the brokers may call",
    );
    let mut brokers = BTreeMap::new();
    for (index, entry) in entries.into_iter().enumerate() {
        let key = |name: &str| format!("broker.brokers[{index}].{name}");
        let mut references = BTreeMap::new();
        for (number, kind) in entry.allowed_reference_types.unwrap_or_default().into_iter().enumerate() {
            let key = key(&format!("allowed_reference_types[{number}].type_url"));
            let Some(type_url) = problems.required(&key, kind.type_url) else { continue };
            problems.check(!type_url.is_empty(), &key, "must not be empty");
            let again = references.insert(type_url, kind.allow_over_tcp.unwrap_or(false)).is_some();
            problems.check(!again, &key, "is given twice");
        }
        problems.check(
            !references.is_empty(),
            key("allowed_reference_types"),
            "must name a type, or \"*\" for all",
        );
        let id = problems.required(key("id"), entry.id);
        if let Some(id) = id.and_then(|id| problems.take(key("id"), SpiffeId::parse(&id))) {
            let again = brokers.insert(id, References(references)).is_some();
            problems.check(!again, key("id"), "is given twice");
        }
    }
    BrokerConfig { socket: raw.socket, address, brokers }
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
const DEFAULT_REBOOTSTRAP_DELAY: Duration = Duration::from_secs(600);
const MIN_SYNC_INTERVAL: Duration = Duration::from_millis(10);
const MIN_AVAILABILITY_TARGET: Duration = Duration::from_secs(24 * 3600);
/// `sun_path` holds 108 bytes with the terminating zero, and binding goes through a longer temporary name.
const MAX_SOCKET_PATH: usize = 90;

#[cfg(test)]
mod tests {
    use bonafide_runtime::config::HumanDuration;

    use super::keys::{Absent, KEYS};
    use super::*;
    use crate::workload_attestor::gpu::DEFAULT_POD_RESOURCES_SOCKET;
    use crate::workload_attestor::k8s::DEFAULT_NODE_NAME_ENV;
    use crate::workload_attestor::kubernetes::Waiting;
    use crate::workload_attestor::kubernetes::source::{
        Credentials, DEFAULT_CA_PATH, DEFAULT_PODS_API_SOCKET, DEFAULT_SECURE_PORT, DEFAULT_TOKEN_PATH,
        KubeletConfig, KubeletTls,
    };

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
        rebootstrap_mode = "auto"
        rebootstrap_delay = "1m"
        [node_attestor.x509pop]
        certificate_path = "c.pem"
        private_key_path = "k.pem"
        intermediates_path = "i.pem"
        [workload_api]
        socket = "/run/a/public/api.sock"
        [admin]
        socket = "/run/a/private/admin.sock"
        authorized_delegates = ["spiffe://example.org/delegate"]
        [broker]
        socket = "/run/a/broker/broker.sock"
        address = "127.0.0.1:8443"
        [[broker.brokers]]
        id = "spiffe://other.test/broker"
        allowed_reference_types = [{ type_url = "*" }, { type_url = "a/b", allow_over_tcp = true }]
        [rate_limit]
        fetch_x509_svid = 1
        fetch_jwt_svid = 2
        fetch_x509_bundles = 3
        fetch_jwt_bundles = 4
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
        [workload_attestor.systemd]
        bus_socket = "/run/bus"
        [workload_attestor.docker]
        docker_socket_path = "unix:///run/docker.sock"
        docker_version = "1.44"
        podman_socket_path = "/run/podman.sock"
        podman_socket_path_template = "unix:///run/user/%d/podman.sock"
        container_id_cgroup_matchers = ["/my.slice/<id>"]
        [workload_attestor.k8s]
        pods_api_socket = "/run/pods.sock"
        kubelet_secure_port = 10251
        kubelet_ca_path = "/ca.pem"
        certificate_path = "/c.pem"
        private_key_path = "/k.pem"
        node_name = "node-1"
        node_name_env = "NODE"
        max_poll_attempts = 4
        poll_retry_interval = "1s"
        disable_container_selectors = true
        cgroup_roots = ["/my.slice/"]
        [workload_attestor.gpu]
        pod_resources_socket = "/run/res.sock"
        device_uuids = true
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
        let mode = serde_json::to_value(config.rebootstrap.mode).unwrap();
        assert_eq!(mode, documented("bootstrap.rebootstrap_mode"));
        assert_eq!(
            HumanDuration(config.rebootstrap.delay).to_string(),
            documented("bootstrap.rebootstrap_delay")
        );
        assert_eq!(config.workload_attestors, [WorkloadAttestorConfig::Unix(UnixConfig::default())]);
    }

    #[test]
    fn a_full_configuration_is_understood() {
        let config = parse(FULL).unwrap();
        assert_eq!(config.server, ServerAddress { host: "::1".into(), port: 8081 });
        assert_eq!(config.sync_interval, Duration::from_millis(250));
        assert_eq!(config.svid.availability_target, Some(Duration::from_secs(86_400)));
        let delegate = SpiffeId::parse("spiffe://example.org/delegate").unwrap();
        assert_eq!(config.authorized_delegates, BTreeSet::from([delegate]));
        let broker = SpiffeId::parse("spiffe://other.test/broker").unwrap();
        let types = [("*", false), ("a/b", true)].map(|(name, tcp)| (name.to_owned(), tcp));
        assert_eq!(config.broker.brokers, BTreeMap::from([(broker, References(BTreeMap::from(types)))]));
        assert_eq!(config.broker.address, Some(([127, 0, 0, 1], 8443).into()));
        let limits =
            RateLimits { fetch_x509_svid: 1, fetch_jwt_svid: 2, fetch_x509_bundles: 3, fetch_jwt_bundles: 4 };
        assert_eq!(config.rate_limits, limits);
        let unix = UnixConfig { discover_workload_path: true, workload_size_limit: -1 };
        let systemd = SystemdConfig { bus_socket: "/run/bus".into() };
        let docker = DockerConfig {
            docker_socket: "/run/docker.sock".into(),
            version: Some("1.44".to_owned()),
            podman_socket: "/run/podman.sock".into(),
            podman_user_socket: Some("/run/user/%d/podman.sock".parse().unwrap()),
            matchers: vec!["/my.slice/<id>".parse().unwrap()],
        };
        let k8s = K8sConfig {
            pods_api_socket: "/run/pods.sock".into(),
            kubelet: KubeletConfig {
                port: 10251,
                tls: Some(KubeletTls {
                    ca_path: Some("/ca.pem".into()),
                    credentials: Credentials::Certificate {
                        certificate: "/c.pem".into(),
                        key: "/k.pem".into(),
                    },
                }),
                node_name: Some("node-1".to_owned()),
            },
            node_name_env: "NODE".to_owned(),
            waiting: Waiting {
                attempts: 4,
                interval: Duration::from_secs(1),
                cgroup_roots: vec!["/my.slice".to_owned()],
            },
            disable_container_selectors: true,
        };
        let gpu = GpuConfig { pod_resources_socket: "/run/res.sock".into(), device_uuids: true };
        assert_eq!(
            config.workload_attestors,
            [
                WorkloadAttestorConfig::Unix(unix),
                WorkloadAttestorConfig::Systemd(systemd),
                WorkloadAttestorConfig::Docker(docker),
                WorkloadAttestorConfig::K8s(k8s),
                WorkloadAttestorConfig::Gpu(gpu),
            ]
        );
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
            workload_attestor.dockerr.socket = "x"
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
            "workload_attestor.dockerr",
            "workload_attestor.docker.socket",
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
            admin.authorized_delegates = ["spiffe://example.org/a", "delegate"]
            svid.key_type = "dsa"
            svid.availability_target = "23h"
            svid.jwt_cache_size = 0
            "#,
        );
        let keys: BTreeSet<&str> = found.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(
            keys.into_iter().collect::<Vec<_>>(),
            [
                "admin.authorized_delegates[1]",
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
        for (line, start) in [
            ("[gpu_evidence]", "gpu_evidence.command: "),
            ("gpu_evidence.command = \"collect\"", "gpu_evidence.command: must be an absolute path"),
            (
                "gpu_evidence = { command = \"/c\", timeout = \"2m\" }",
                "gpu_evidence.timeout: must be between",
            ),
            ("workload_attestor.slurm.jobs_dir = \"jobs\"", "workload_attestor.slurm.jobs_dir: must be"),
        ] {
            let found = with(line);
            assert!(found.starts_with(start), "{found}");
        }
        assert_eq!(mistakes("trust_domain = \"example.org\"\nserver.address = \"a:1\"").len(), 2);
        assert_eq!(mistakes("trust_domain =").len(), 1);
    }

    #[test]
    fn a_bundle_comes_from_one_place() {
        let base = "trust_domain = \"example.org\"\nserver.address = \"a:1\"\nnode_attestor.join_token.token = \"t\"\n";
        let good = |lines: &str| parse(&format!("{base}{lines}")).unwrap().bootstrap;
        let bad = |lines: &str| mistakes(&format!("{base}{lines}")).remove(0);
        assert!(matches!(
            good("bootstrap.bundle_url = \"https://a.test/b\""),
            BootstrapConfig::Url { url: BundleUrl::Https(_), format: BundleFormat::Pem }
        ));
        assert!(matches!(
            good("bootstrap.bundle_url = \"http://a/b\"\nbootstrap.bundle_unix_socket = \"/s\""),
            BootstrapConfig::Url { url: BundleUrl::Unix { .. }, .. }
        ));
        let socket = BootstrapConfig::WorkloadApi { socket: "/s".into() };
        assert_eq!(good("bootstrap.bundle_workload_api = \"unix:///s\""), socket);
        for (lines, key) in [
            ("", "bootstrap"),
            ("bootstrap.insecure = true\nbootstrap.bundle_file = \"f\"", "bootstrap"),
            ("bootstrap.bundle_url = \"https://a/b\"\nbootstrap.bundle_file = \"f\"", "bootstrap"),
            ("bootstrap.bundle_url = \"http://a/b\"", "bootstrap.bundle_url"),
            ("bootstrap.bundle_workload_api = \"tcp://1.2.3.4:5\"", "bootstrap.bundle_workload_api"),
            (
                "bootstrap.insecure = true\nbootstrap.bundle_unix_socket = \"/s\"",
                "bootstrap.bundle_unix_socket",
            ),
            (
                "bootstrap.insecure = true\nbootstrap.rebootstrap_mode = \"often\"",
                "bootstrap.rebootstrap_mode",
            ),
            (
                "bootstrap.insecure = true\nbootstrap.rebootstrap_mode = \"auto\"",
                "bootstrap.rebootstrap_mode",
            ),
        ] {
            assert_eq!(bad(lines).0, key, "{lines}");
        }
    }

    #[test]
    fn a_broker_needs_a_name_references_and_a_way_to_call() {
        let with = |lines: &str| -> Vec<String> {
            let found = mistakes(&format!("{LEAST}\n{lines}"));
            found.into_iter().map(|(key, message)| format!("{key}: {message}")).collect()
        };
        let types = "allowed_reference_types = [{ type_url = \"*\" }]";
        assert_eq!(
            with("broker.address = \"127.0.0.1:1\""),
            ["broker.brokers: must name a broker, or nobody could call"]
        );
        assert_eq!(
            with(&format!("[[broker.brokers]]\nid = \"spiffe://a/b\"\n{types}")),
            ["broker: give a socket or an address on which the brokers may call"]
        );
        let beside = "admin.socket = \"/run/a/x.sock\"\nbroker.socket = \"/run/./a/b.sock\"";
        assert_eq!(
            with(&format!("{beside}\n[[broker.brokers]]\nid = \"spiffe://a/b\"\n{types}")),
            ["broker.socket: must be in another folder than admin.socket"]
        );
        let found = with(&format!(
            r#"
            [broker]
            socket = "/tmp/bonafide-agent/public/broker.sock"
            [[broker.brokers]]
            id = "spiffe://a/b"
            {types}
            [[broker.brokers]]
            id = "spiffe://a/b"
            allowed_reference_types = [{{ allow_over_tcp = true }}, {{ type_url = "x" }}, {{ type_url = "x" }}]
            [[broker.brokers]]
            id = "b"
            "#
        ));
        let keys: Vec<&str> = found.iter().map(|text| text.split(": ").next().unwrap()).collect();
        assert_eq!(
            keys,
            [
                "broker.socket",
                "broker.brokers[1].id",
                "broker.brokers[1].allowed_reference_types[0].type_url",
                "broker.brokers[1].allowed_reference_types[2].type_url",
                "broker.brokers[2].allowed_reference_types",
                "broker.brokers[2].id",
            ]
        );
    }

    #[test]
    fn attestors_of_workloads_run_when_their_table_is_there() {
        let of = |line: &str| parse(&format!("{LEAST}\n{line}")).unwrap().workload_attestors;
        let docker = WorkloadAttestorConfig::Docker(DockerConfig::default());
        assert_eq!(of("[workload_attestor.docker]"), [docker]);
        let systemd = WorkloadAttestorConfig::Systemd(SystemdConfig::default());
        assert_eq!(of("[workload_attestor.systemd]"), [systemd]);
        let documented = |name: &str| {
            let key = KEYS.iter().find(|key| key.path == format!("workload_attestor.{name}")).unwrap();
            if let Absent::Is(default) = key.absent { default } else { panic!("{name} has no default") }
        };
        assert_eq!(documented("systemd.bus_socket"), DEFAULT_BUS_SOCKET);
        assert_eq!(documented("docker.docker_socket_path"), DEFAULT_DOCKER_SOCKET);
        assert_eq!(documented("docker.podman_socket_path"), DEFAULT_PODMAN_SOCKET);

        let found = mistakes(&format!(
            r#"{LEAST}
            [workload_attestor.docker]
            docker_socket_path = "tcp://localhost:2375"
            docker_version = "v1/../x"
            podman_socket_path_template = "/run/podman.sock"
            container_id_cgroup_matchers = ["/docker/<id>", "/docker/*", "<id>/<id>"]
            "#
        ));
        let keys: BTreeSet<&str> =
            found.iter().filter_map(|(key, _)| key.strip_prefix("workload_attestor.docker.")).collect();
        assert_eq!(
            keys.into_iter().collect::<Vec<_>>(),
            [
                "container_id_cgroup_matchers[1]",
                "container_id_cgroup_matchers[2]",
                "docker_socket_path",
                "docker_version",
                "podman_socket_path_template",
            ]
        );
    }

    #[test]
    fn the_kubelet_is_asked_as_it_is_written() {
        let of = |lines: &str| {
            let config = parse(&format!("{LEAST}\n[workload_attestor.k8s]\n{lines}")).unwrap();
            let [WorkloadAttestorConfig::K8s(k8s)] = &config.workload_attestors[..] else {
                panic!("{config:?}")
            };
            k8s.clone()
        };
        let documented = |name: &str| {
            let key = KEYS.iter().find(|key| key.path == format!("workload_attestor.{name}")).unwrap();
            if let Absent::Is(default) = key.absent { default } else { panic!("{name} has no default") }
        };
        let least = of("");
        assert_eq!(least.pods_api_socket, Path::new(documented("k8s.pods_api_socket")));
        assert_eq!(documented("k8s.pods_api_socket"), DEFAULT_PODS_API_SOCKET);
        assert_eq!(documented("k8s.kubelet_secure_port"), DEFAULT_SECURE_PORT.to_string());
        assert_eq!(documented("k8s.kubelet_ca_path"), DEFAULT_CA_PATH);
        assert_eq!(documented("k8s.token_path"), DEFAULT_TOKEN_PATH);
        assert_eq!(documented("k8s.node_name_env"), DEFAULT_NODE_NAME_ENV);
        assert_eq!(documented("gpu.pod_resources_socket"), DEFAULT_POD_RESOURCES_SOCKET);
        assert_eq!(least.waiting.attempts.to_string(), documented("k8s.max_poll_attempts"));
        assert_eq!(HumanDuration(least.waiting.interval).to_string(), documented("k8s.poll_retry_interval"));
        let tls = least.kubelet.tls.unwrap();
        assert_eq!(tls.ca_path, Some(DEFAULT_CA_PATH.into()));
        assert_eq!(tls.credentials, Credentials::Token(DEFAULT_TOKEN_PATH.into()));
        assert_eq!(of("kubelet_read_only_port = 10255").kubelet.tls, None);
        let open =
            of("skip_kubelet_verification = true\nuse_anonymous_authentication = true").kubelet.tls.unwrap();
        assert_eq!((open.ca_path, open.credentials), (None, Credentials::Anonymous));

        let found = mistakes(&format!(
            r#"{LEAST}
            [workload_attestor.k8s]
            kubelet_read_only_port = 10255
            kubelet_secure_port = 0
            certificate_path = "/c"
            token_path = "/t"
            use_anonymous_authentication = true
            node_name = "a b"
            max_poll_attempts = 0
            poll_retry_interval = "0s"
            cgroup_roots = ["/a", "x", "/../b"]
            "#
        ));
        let keys: BTreeSet<&str> =
            found.iter().filter_map(|(key, _)| key.strip_prefix("workload_attestor.k8s.")).collect();
        assert_eq!(
            keys.into_iter().collect::<Vec<_>>(),
            [
                "cgroup_roots[1]",
                "cgroup_roots[2]",
                "certificate_path",
                "kubelet_read_only_port",
                "kubelet_secure_port",
                "max_poll_attempts",
                "node_name",
                "poll_retry_interval",
                "use_anonymous_authentication",
            ]
            .into_iter()
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect::<Vec<_>>()
        );
        let found = mistakes(&format!("{LEAST}\n[workload_attestor.gpu]"));
        assert_eq!(found[0].0, "workload_attestor.gpu");
    }

    #[test]
    fn the_token_is_not_printed() {
        assert!(!format!("{:?}", parse(LEAST).unwrap()).contains("secret-token"));
    }
}
