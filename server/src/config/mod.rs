//! The configuration file: TOML in, validated settings out.
//!
//! Unknown keys are refused, and all mistakes are reported together. The documentation in
//! `docs/reference/configuration-server.md` is generated from [`reference::FIELDS`], and a test holds both it and the
//! reader to the same set of keys, so that no option is undocumented and none is documented that does nothing.

mod attestors;
mod bundle_publisher;
mod federation;
pub mod import;
pub mod lifetime;
mod raw;
pub mod reference;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use bonafide_identity::lifetime::policy::Policy;
use bonafide_identity::{SpiffeId, TrustDomain};
use bonafide_pki::{CaSubject, KeyType};
use bonafide_runtime::config::{ConfigError, HumanDuration, Problem, Problems, parse_toml};
use bonafide_runtime::listener::proxy::{Cidr, TrustedProxies};
use bonafide_runtime::telemetry::LogConfig;
use serde::Deserialize as _;

pub use crate::federation::acme::AcmeSettings;
use crate::gpu_evidence::GpuEvidenceSettings;
use crate::kubernetes::Access;
use crate::node_attestor::http_challenge::HttpChallengeSettings;
use crate::node_attestor::k8s_psat::ClusterSettings;
use crate::node_attestor::oidc::IssuerSettings;
use crate::node_attestor::template::Template;
use crate::node_attestor::x509pop::{AgentPathTemplate, Mode};
use crate::store::{ConnectionSecret, DriverKind, PostgresConfig, kv};
use crate::upstream_authority::Address;
use crate::upstream_authority::cert_manager::CertManagerIssuer;
use crate::upstream_authority::vault::{VaultAddress, VaultAuth};
pub use bundle_publisher::{BundlePublisherSettings, Target};
pub use federation::{BundleEndpointProfile, BundleEndpointSettings, FederationSettings};
use raw::{
    Raw, RawAudit, RawAuthority, RawCertManager, RawKeyManager, RawListen, RawMemory, RawNodeAttestor,
    RawPostgres, RawPrune, RawStore, RawUpstream, RawUpstreamDisk, RawUpstreamSpire, RawVault, RawX509Pop,
};

/// Where the local administration socket lies when neither the configuration nor a flag says otherwise.
pub const DEFAULT_ADMIN_SOCKET: &str = "/tmp/bonafide-server/private/api.sock";

/// The settings of one server, all of them valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The trust domain this server issues for.
    pub trust_domain: TrustDomain,
    /// The folder under which the server keeps its files.
    pub data_dir: PathBuf,
    /// SPIFFE IDs with administration rights over TLS, of this or of a federated trust domain.
    pub admin_ids: Vec<SpiffeId>,
    /// Where calls come in.
    pub listen: Listen,
    /// The log.
    pub log: LogConfig,
    /// The audit log.
    pub audit: Audit,
    /// Lifetimes, keys and issuers.
    pub authority: AuthoritySettings,
    /// Where private keys are kept.
    pub key_manager: KeyManagerSettings,
    /// Who signs the CA certificate; `None` means self-signed.
    pub upstream_authority: Option<UpstreamSettings>,
    /// Where entries, agents, bundles and tokens are kept.
    pub store: StoreSettings,
    /// How nodes prove what they are.
    pub node_attestor: NodeAttestorSettings,
    /// How often one caller may call.
    pub ratelimit: RateLimitSettings,
    /// What is cleaned up.
    pub prune: PruneSettings,
    /// How bundles of other trust domains come in, and how our own goes out.
    pub federation: FederationSettings,
    /// How long what is signed may live.
    pub lifetime: Policy,
    /// Where the own bundle is published besides.
    pub bundle_publishers: Vec<BundlePublisherSettings>,
}

/// Where calls come in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// TCP address for agents, downstream servers and remote administrators.
    pub address: SocketAddr,
    /// Path of the Unix socket for local administration.
    pub admin_socket: PathBuf,
    /// Address of `/live`, `/ready` and `/metrics`; `None` means none.
    pub health_address: Option<SocketAddr>,
    /// Connections kept open at once over TCP.
    pub max_connections: u32,
    /// Proxies that may say, with the PROXY protocol, whom they speak for at `address`.
    pub trusted_proxies: TrustedProxies,
}

/// The audit log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Audit {
    /// The file that gets one JSON object for each call; `None` when auditing is off.
    pub file: Option<PathBuf>,
}

/// Lifetimes, keys and issuers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthoritySettings {
    /// Lifetime of the X.509 CA and of the JWT and WIT keys.
    pub ca_ttl: Duration,
    /// Lifetime of an X.509-SVID whose entry has none.
    pub default_x509_svid_ttl: Duration,
    /// Lifetime of a JWT-SVID whose entry has none.
    pub default_jwt_svid_ttl: Duration,
    /// Lifetime of a WIT-SVID whose entry has none.
    pub default_wit_svid_ttl: Duration,
    /// Lifetime of an agent's SVID.
    pub agent_ttl: Duration,
    /// Key of the X.509 CA.
    pub ca_key_type: KeyType,
    /// Key that signs JWT-SVIDs.
    pub jwt_key_type: KeyType,
    /// Key that signs WIT-SVIDs.
    pub wit_key_type: KeyType,
    /// Subject of the CA certificate.
    pub ca_subject: CaSubject,
    /// The `iss` claim of JWT-SVIDs.
    pub jwt_issuer: Option<String>,
    /// The `iss` claim of WIT-SVIDs.
    pub wit_issuer: Option<String>,
    /// No JWT keys and no JWT-SVIDs.
    pub disable_jwt_svids: bool,
    /// No WIT keys and no WIT-SVIDs.
    pub disable_wit_svids: bool,
}

/// Where private keys are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyManagerSettings {
    /// In memory: a restart makes new authorities.
    Memory,
    /// In a file of mode 0600.
    Disk {
        /// The file.
        path: PathBuf,
    },
}

/// Who signs the CA certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpstreamSettings {
    /// A CA key on the disk.
    Disk {
        /// PEM: the CA certificate, then its intermediates.
        certificate_path: PathBuf,
        /// PEM: the CA's private key.
        key_path: PathBuf,
        /// PEM: the roots, when the certificate is not itself a root.
        bundle_path: Option<PathBuf>,
    },
    /// Another server of the same trust domain, ours or SPIRE.
    Spire {
        /// Where it listens.
        server_address: Address,
        /// The Workload API socket of an agent of that server.
        workload_api_socket: PathBuf,
        /// Time between two looks at its bundle.
        poll_interval: Duration,
    },
    /// The PKI engine of HashiCorp Vault or OpenBao.
    Vault(VaultSettings),
    /// cert-manager in a Kubernetes cluster.
    CertManager {
        /// The cluster.
        access: Access,
        /// Which issuer, and where requests are made.
        issuer: CertManagerIssuer,
    },
}

/// The PKI engine of HashiCorp Vault or OpenBao.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VaultSettings {
    /// Where it listens.
    pub address: VaultAddress,
    /// PEM with the roots that its certificate is verified with.
    pub ca_cert_path: Option<PathBuf>,
    /// The namespace.
    pub namespace: Option<String>,
    /// Where the PKI engine is mounted.
    pub pki_mount_point: String,
    /// How a token is had.
    pub auth: VaultAuth,
}

/// Where entries, agents, bundles and tokens are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreSettings {
    /// The implementation.
    pub driver: DriverKind,
    /// Folder (sled) or file (redb).
    pub path: PathBuf,
    /// Memory that the driver may use as cache, in bytes.
    pub cache_bytes: u64,
    /// The database that a group of servers shares; for the driver `postgres` only.
    pub postgres: Option<PostgresConfig>,
}

/// How nodes prove what they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeAttestorSettings {
    /// A node has its own SPIFFE ID among its selectors.
    pub spiffe_id_selector: bool,
    /// Join tokens are accepted.
    pub join_token: bool,
    /// X.509 proof of possession; `None` when it is not configured.
    pub x509pop: Option<X509PopSettings>,
    /// SSH proof of possession; `None` when it is not configured.
    pub sshpop: Option<SshPopSettings>,
    /// Device identities in TPMs; `None` when they are not configured.
    pub tpm_devid: Option<TpmDevIdSettings>,
    /// HTTP challenges; `None` when they are not configured.
    pub http_challenge: Option<HttpChallengeSettings>,
    /// Issuers whose tokens are accepted.
    pub oidc: Vec<IssuerSettings>,
    /// Evidence of GPUs, beside one of the others; `None` when it is not asked for.
    pub gpu_evidence: Option<GpuEvidenceSettings>,
    /// Kubernetes clusters whose agents are accepted.
    pub k8s_psat: Vec<ClusterSettings>,
}

/// SSH proof of possession.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SshPopSettings {
    /// Authorities that sign host certificates, as lines of an `authorized_keys` file.
    pub cert_authorities: Vec<String>,
    /// A file with such lines.
    pub cert_authorities_path: Option<PathBuf>,
    /// The domain in which the hosts are; it is cut off their names.
    pub canonical_domain: Option<String>,
    /// How the agent's SPIFFE ID is made.
    pub agent_path_template: Template,
}

/// Device identities in TPMs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TpmDevIdSettings {
    /// PEM file with the authorities of device identities.
    pub devid_ca_path: PathBuf,
    /// PEM file with the authorities of manufacturers of TPMs.
    pub endorsement_ca_path: PathBuf,
}

/// X.509 proof of possession.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct X509PopSettings {
    /// Whose certificates are accepted.
    pub mode: Mode,
    /// PEM files with the roots; empty in the spiffe mode, which uses this trust domain's bundle.
    pub ca_bundle_paths: Vec<PathBuf>,
    /// How the agent's SPIFFE ID is made.
    pub agent_path_template: AgentPathTemplate,
    /// In the spiffe mode, the path under which the presented SVIDs must lie.
    pub spiffe_prefix: String,
    /// Intermediate certificates accepted in one payload.
    pub max_intermediates: usize,
    /// Largest RSA modulus accepted, in bits.
    pub max_rsa_key_size: usize,
    /// The caller's address must be among the certificate's IP addresses.
    pub verify_client_ip: bool,
}

/// How often one caller may call, per second and per rpc. Zero switches a limit off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimitSettings {
    /// Attestations from one address.
    pub attestation: u32,
    /// Signatures for one agent or address.
    pub signing: u32,
}

/// What is cleaned up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PruneSettings {
    /// Agents whose SVID has been expired for this long are removed; `None` keeps them.
    pub attested_nodes_expired_for: Option<Duration>,
    /// Also agents that cannot attest again by themselves.
    pub tofu_nodes: bool,
}

impl Config {
    /// Reads and validates a file.
    ///
    /// # Errors
    /// The file cannot be read, or all mistakes in it.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    /// Validates a document; `path` is only for the messages.
    ///
    /// # Errors
    /// All mistakes in it.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        match parse_toml(path, text) {
            Ok((raw, document)) => {
                let mut problems = Problems::new(&document);
                let config = check(raw, &mut problems);
                problems.finish(config)
            }
            Err(ConfigError::Invalid { path, problems }) => {
                let problems = and_those_beside(problems, &path, text);
                Err(ConfigError::Invalid { path, problems })
            }
            Err(error) => Err(error),
        }
    }

    /// What an operator should know about settings that are valid but will not do what they promise.
    pub fn warnings(&self) -> Vec<String> {
        let authority = &self.authority;
        // An SVID signed just before the next CA takes over still has this much of its issuer's life ahead.
        let guaranteed = (authority.ca_ttl / 6).min(Duration::from_secs(7 * 86_400));
        let mut ttls = vec![
            ("authority.default_x509_svid_ttl", authority.default_x509_svid_ttl),
            ("authority.agent_ttl", authority.agent_ttl),
        ];
        if !authority.disable_jwt_svids {
            ttls.push(("authority.default_jwt_svid_ttl", authority.default_jwt_svid_ttl));
        }
        if !authority.disable_wit_svids {
            ttls.push(("authority.default_wit_svid_ttl", authority.default_wit_svid_ttl));
        }
        let mut warnings: Vec<String> = ttls
            .into_iter()
            .filter(|(_, ttl)| *ttl > guaranteed)
            .map(|(key, ttl)| {
                format!(
                    "{key} is {ttl:?}, but an authority with authority.ca_ttl = {:?} guarantees only {guaranteed:?}: \
                     some SVIDs will be shorter",
                    authority.ca_ttl
                )
            })
            .collect();
        if self.store.driver == DriverKind::Memory {
            warnings
                .push("store.driver is memory: entries, agents and bundles are lost at a restart".to_owned());
        }
        for network in self.listen.trusted_proxies.0.iter().filter(|network| network.prefix() == 0) {
            warnings.push(format!(
                "listen.proxy_protocol_trusted_cidrs has {network}: anybody may choose the address from which a call seems to \
                 come, for limits and attestation as well as in the audit log"
            ));
        }
        for pattern in
            self.node_attestor.http_challenge.iter().flat_map(|settings| &settings.allowed_dns_patterns)
        {
            if !(pattern.as_str().starts_with('^') && pattern.as_str().ends_with('$')) {
                warnings.push(format!(
                    "node_attestor.http_challenge.allowed_dns_patterns: {pattern} matches anywhere in a name, so names of \
                     other domains may have it in them; write ^ and $ around it"
                ));
            }
        }
        warnings
    }
}

/// Keys that could not be read are known; what is wrong with the others an operator wants to know as well.
fn and_those_beside(mut found: Vec<Problem>, path: &Path, text: &str) -> Vec<Problem> {
    let Ok((mut table, document)) = parse_toml::<toml::Table>(path, text) else { return found };
    for problem in &found {
        remove(&mut table, &problem.key);
    }
    let Ok(raw) = Raw::deserialize(table) else { return found };
    let mut problems = Problems::new(&document);
    check(raw, &mut problems);
    if let Err(ConfigError::Invalid { problems, .. }) = problems.finish(None::<Config>) {
        let known =
            |new: &Problem| new.key.is_empty() || found.iter().any(|old| old.key.starts_with(&new.key));
        let fresh: Vec<Problem> = problems.into_iter().filter(|problem| !known(problem)).collect();
        found.extend(fresh);
    }
    found.sort_by_key(|problem| problem.line.unwrap_or(usize::MAX));
    found
}

/// Takes a key like `a.b[1]` out, list and all.
fn remove(table: &mut toml::Table, key: &str) {
    match key.split_once('.') {
        Some((head, rest)) => {
            if let Some(toml::Value::Table(table)) = table.get_mut(head) {
                remove(table, rest);
            }
        }
        None => {
            table.remove(key.split('[').next().unwrap_or(key));
        }
    }
}

const HOUR: Duration = Duration::from_secs(3600);

fn check(raw: Raw, problems: &mut Problems<'_>) -> Option<Config> {
    let trust_domain = match raw.trust_domain {
        Some(text) => problems.take("trust_domain", TrustDomain::parse(&text)),
        None => {
            problems
                .push("trust_domain", "is required: the name of the trust domain, such as \"example.org\"");
            None
        }
    };
    if raw.data_dir.is_none() {
        problems.push("data_dir", "is required: the folder where the server keeps its files");
    }
    let parse_id = |(at, text): (usize, &String)| {
        let parsed = SpiffeId::parse(text).map_err(|error| format!("{text:?}: {error}"));
        problems.take(format!("admin_ids[{at}]"), parsed)
    };
    let admin_ids = raw.admin_ids.iter().enumerate().filter_map(parse_id).collect();
    // Paths below are relative to it; the mistake has been noted, and the rest is still worth checking.
    let data = raw.data_dir.clone().unwrap_or_default();

    let listen = listen(raw.listen, problems);
    let audit = audit(raw.audit, &data, problems);
    let authority = authority(raw.authority, problems);
    let key_manager = key_manager(raw.key_manager, &data, problems);
    let upstream_authority = upstream(raw.upstream_authority, problems);
    let store = store(raw.store, &data, problems);
    let node_attestor = node_attestor(raw.node_attestor, problems);
    let ratelimit = RateLimitSettings {
        attestation: raw.ratelimit.attestation.unwrap_or(1),
        signing: raw.ratelimit.signing.unwrap_or(500),
    };
    let prune = prune(raw.prune, problems);
    let lifetime = lifetime::settings(raw.lifetime, problems);
    let federation = federation::settings(raw.federation, trust_domain.as_ref(), problems);
    let bundle_publishers = bundle_publisher::settings(raw.bundle_publisher, problems);

    Some(Config {
        trust_domain: trust_domain?,
        data_dir: raw.data_dir?,
        admin_ids,
        listen: listen?,
        log: raw.log.into(),
        audit,
        authority: authority?,
        key_manager: key_manager?,
        upstream_authority: match upstream_authority {
            Some(settings) => Some(settings?),
            None => None,
        },
        store: store?,
        node_attestor: node_attestor?,
        ratelimit,
        prune: prune?,
        federation: federation?,
        lifetime: lifetime?,
        bundle_publishers: bundle_publishers?,
    })
}

/// The value behind an optional key, or its default; `None` is a mistake, already noted.
fn parsed<T: FromStr>(problems: &mut Problems<'_>, key: &str, text: Option<String>, default: T) -> Option<T>
where
    T::Err: fmt::Display,
{
    match text {
        None => Some(default),
        Some(text) => problems.take(key, text.parse().map_err(|error| format!("{text:?}: {error}"))),
    }
}

fn duration(
    problems: &mut Problems<'_>,
    key: &str,
    duration: Option<HumanDuration>,
    default: Duration,
) -> Option<Duration> {
    match duration {
        None => Some(default),
        Some(HumanDuration(duration)) => {
            problems.check(duration >= Duration::from_secs(1), key, "must be at least 1s");
            Some(duration)
        }
    }
}

fn listen(raw: RawListen, problems: &mut Problems<'_>) -> Option<Listen> {
    let default = SocketAddr::from(([0, 0, 0, 0], 8081));
    let address = parsed(problems, "listen.address", raw.address, default);
    let health_address = match raw.health_address {
        Some(text) => parsed(problems, "listen.health_address", Some(text), default).map(Some),
        None => Some(None),
    };
    let max_connections = raw.max_connections.unwrap_or(20_000);
    problems.check(max_connections > 0, "listen.max_connections", "must be at least 1");
    let network = |(at, text): (usize, &String)| {
        let parsed = text.parse::<Cidr>().map_err(|error| format!("{text:?} {error}"));
        problems.take(format!("listen.proxy_protocol_trusted_cidrs[{at}]"), parsed)
    };
    let trusted_proxies: Option<Vec<Cidr>> =
        raw.proxy_protocol_trusted_cidrs.iter().enumerate().map(network).collect();
    Some(Listen {
        address: address?,
        admin_socket: raw.admin_socket.unwrap_or_else(|| PathBuf::from(DEFAULT_ADMIN_SOCKET)),
        health_address: health_address?,
        max_connections,
        trusted_proxies: TrustedProxies(trusted_proxies?),
    })
}

fn audit(raw: RawAudit, data_dir: &Path, problems: &mut Problems<'_>) -> Audit {
    let enabled = raw.enabled.unwrap_or(true);
    problems.check(
        enabled || raw.file.is_none(),
        "audit.file",
        "has no effect while audit.enabled is false; remove one of them",
    );
    Audit { file: enabled.then(|| raw.file.unwrap_or_else(|| data_dir.join("audit.log"))) }
}

fn authority(raw: RawAuthority, problems: &mut Problems<'_>) -> Option<AuthoritySettings> {
    let ca_ttl = duration(problems, "authority.ca_ttl", raw.ca_ttl, 24 * HOUR);
    let x509 = duration(problems, "authority.default_x509_svid_ttl", raw.default_x509_svid_ttl, HOUR);
    let agent_default = x509.unwrap_or(HOUR);
    let jwt = duration(
        problems,
        "authority.default_jwt_svid_ttl",
        raw.default_jwt_svid_ttl,
        Duration::from_secs(300),
    );
    let wit = duration(problems, "authority.default_wit_svid_ttl", raw.default_wit_svid_ttl, HOUR);
    let agent = duration(problems, "authority.agent_ttl", raw.agent_ttl, agent_default);
    let ca_key_type = parsed(problems, "authority.ca_key_type", raw.ca_key_type, KeyType::EcP256);
    let others = ca_key_type.unwrap_or(KeyType::EcP256);
    let jwt_key_type = parsed(problems, "authority.jwt_key_type", raw.jwt_key_type, others);
    let wit_key_type = parsed(problems, "authority.wit_key_type", raw.wit_key_type, others);
    let disable_jwt_svids = raw.disable_jwt_svids.unwrap_or(false);
    let disable_wit_svids = raw.disable_wit_svids.unwrap_or(false);
    problems.check(
        !(disable_jwt_svids && raw.jwt_issuer.is_some()),
        "authority.jwt_issuer",
        "has no effect while authority.disable_jwt_svids is true",
    );
    problems.check(
        !(disable_wit_svids && raw.wit_issuer.is_some()),
        "authority.wit_issuer",
        "has no effect while authority.disable_wit_svids is true",
    );
    Some(AuthoritySettings {
        ca_ttl: ca_ttl?,
        default_x509_svid_ttl: x509?,
        default_jwt_svid_ttl: jwt?,
        default_wit_svid_ttl: wit?,
        agent_ttl: agent?,
        ca_key_type: ca_key_type?,
        jwt_key_type: jwt_key_type?,
        wit_key_type: wit_key_type?,
        ca_subject: raw.ca_subject.into(),
        jwt_issuer: raw.jwt_issuer,
        wit_issuer: raw.wit_issuer,
        disable_jwt_svids,
        disable_wit_svids,
    })
}

fn key_manager(
    raw: RawKeyManager,
    data_dir: &Path,
    problems: &mut Problems<'_>,
) -> Option<KeyManagerSettings> {
    match (raw.memory, raw.disk) {
        (Some(_), Some(_)) => {
            problems
                .push("key_manager.memory", "remove this or key_manager.disk: there can be one key manager");
            None
        }
        (Some(RawMemory {}), None) => Some(KeyManagerSettings::Memory),
        (None, disk) => {
            let path = disk.and_then(|disk| disk.path).unwrap_or_else(|| data_dir.join("keys.json"));
            Some(KeyManagerSettings::Disk { path })
        }
    }
}

/// The one upstream authority that is configured, `None` inside when it has mistakes.
fn upstream(raw: RawUpstream, problems: &mut Problems<'_>) -> Option<Option<UpstreamSettings>> {
    let RawUpstream { disk, spire, vault, cert_manager } = raw;
    let named = [
        (disk.is_some(), "disk"),
        (spire.is_some(), "spire"),
        (vault.is_some(), "vault"),
        (cert_manager.is_some(), "cert_manager"),
    ];
    let named: Vec<&str> = named.into_iter().filter(|(there, _)| *there).map(|(_, name)| name).collect();
    for other in named.iter().skip(1) {
        problems.push(
            format!("upstream_authority.{other}"),
            format!("remove this or upstream_authority.{}: there can be one upstream authority", named[0]),
        );
    }
    let disk = disk.map(|disk| upstream_disk(disk, problems));
    let spire = spire.map(|spire| upstream_spire(spire, problems));
    let vault = vault.map(|vault| upstream_vault(vault, problems));
    let cert_manager = cert_manager.map(|cert_manager| upstream_cert_manager(cert_manager, problems));
    disk.or(spire).or(vault).or(cert_manager)
}

fn upstream_cert_manager(raw: RawCertManager, problems: &mut Problems<'_>) -> Option<UpstreamSettings> {
    const KEY: &str = "upstream_authority.cert_manager";
    let mut text = |name: &str, value: Option<String>, default: Option<&str>| {
        let value = value.or_else(|| default.map(str::to_owned));
        let value = problems.required(format!("{KEY}.{name}"), value)?;
        problems.check(!value.is_empty(), format!("{KEY}.{name}"), "must not be empty");
        Some(value)
    };
    let namespace = text("namespace", raw.namespace, None);
    let name = text("issuer_name", raw.issuer_name, None);
    let kind = text("issuer_kind", raw.issuer_kind, Some("Issuer"));
    let group = text("issuer_group", raw.issuer_group, Some("cert-manager.io"));
    Some(UpstreamSettings::CertManager {
        access: raw.kube_config_file.map_or(Access::InCluster, Access::KubeConfig),
        issuer: CertManagerIssuer { namespace: namespace?, name: name?, kind: kind?, group: group? },
    })
}

fn upstream_vault(raw: RawVault, problems: &mut Problems<'_>) -> Option<UpstreamSettings> {
    const KEY: &str = "upstream_authority.vault";
    let address = problems.required(format!("{KEY}.address"), raw.address);
    let address: Option<VaultAddress> =
        address.and_then(|text| problems.take(format!("{KEY}.address"), text.parse()));
    if let Some(address) = &address {
        problems.check(
            !address.is_tls() || raw.ca_cert_path.is_some(),
            format!("{KEY}.ca_cert_path"),
            "is required with https: a PEM file with the roots that the certificate is verified with",
        );
    }
    let pki_mount_point = vault_mount(problems, "pki_mount_point", raw.pki_mount_point, "pki");
    let mut methods = Vec::new();
    if let Some(token) = raw.token {
        let token_file = problems.required(format!("{KEY}.token.token_file"), token.token_file);
        methods.push(token_file.map(|token_file| VaultAuth::Token { token_file }));
    }
    if let Some(approle) = raw.approle {
        let mount_point = vault_mount(problems, "approle.mount_point", approle.mount_point, "approle");
        let role_id = problems.required(format!("{KEY}.approle.role_id"), approle.role_id);
        let file = problems.required(format!("{KEY}.approle.secret_id_file"), approle.secret_id_file);
        methods.push(role_id.zip(file).map(|(role_id, secret_id_file)| VaultAuth::AppRole {
            mount_point,
            role_id,
            secret_id_file,
        }));
    }
    if let Some(cert) = raw.cert {
        let mount_point = vault_mount(problems, "cert.mount_point", cert.mount_point, "cert");
        let certificate = problems.required(format!("{KEY}.cert.client_cert_path"), cert.client_cert_path);
        let key = problems.required(format!("{KEY}.cert.client_key_path"), cert.client_key_path);
        let tls = address.as_ref().is_none_or(VaultAddress::is_tls);
        problems.check(tls, format!("{KEY}.cert"), "needs an address with https");
        methods.push(certificate.zip(key).map(|(client_cert_path, client_key_path)| {
            VaultAuth::Certificate { mount_point, role: cert.role, client_cert_path, client_key_path }
        }));
    }
    if let Some(kubernetes) = raw.kubernetes {
        let mount_point =
            vault_mount(problems, "kubernetes.mount_point", kubernetes.mount_point, "kubernetes");
        let role = problems.required(format!("{KEY}.kubernetes.role"), kubernetes.role);
        let token_path = kubernetes
            .token_path
            .unwrap_or_else(|| PathBuf::from("/var/run/secrets/kubernetes.io/serviceaccount/token"));
        methods.push(role.map(|role| VaultAuth::Kubernetes { mount_point, role, token_path }));
    }
    problems.check(
        methods.len() == 1,
        KEY,
        "needs exactly one of the tables token, approle, cert and kubernetes: how to log in",
    );
    Some(UpstreamSettings::Vault(VaultSettings {
        address: address?,
        ca_cert_path: raw.ca_cert_path,
        namespace: raw.namespace,
        pki_mount_point,
        auth: methods.pop()??,
    }))
}

/// A mount point, which becomes a part of the path of a request.
fn vault_mount(problems: &mut Problems<'_>, key: &str, mount: Option<String>, default: &str) -> String {
    let mount = mount.map_or_else(|| default.to_owned(), |mount| mount.trim_matches('/').to_owned());
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    let good = !mount.is_empty() && mount.chars().all(plain) && mount.split('/').all(|part| part != "..");
    problems.check(
        good,
        format!("upstream_authority.vault.{key}"),
        format!("must be the path of a mount, such as {default:?}"),
    );
    mount
}

fn upstream_spire(raw: RawUpstreamSpire, problems: &mut Problems<'_>) -> Option<UpstreamSettings> {
    const ADDRESS: &str = "upstream_authority.spire.server_address";
    let address = problems.required(ADDRESS, raw.server_address);
    let address = address
        .and_then(|text| problems.take(ADDRESS, text.parse().map_err(|error| format!("{text:?}: {error}"))));
    let workload_api_socket =
        problems.required("upstream_authority.spire.workload_api_socket", raw.workload_api_socket);
    let poll_interval = raw.poll_interval.map_or(Duration::from_secs(5), |HumanDuration(interval)| interval);
    problems.check(
        (Duration::from_millis(100)..=Duration::from_secs(60)).contains(&poll_interval),
        "upstream_authority.spire.poll_interval",
        "must be from 100ms to 1m",
    );
    Some(UpstreamSettings::Spire {
        server_address: address?,
        workload_api_socket: workload_api_socket?,
        poll_interval,
    })
}

fn upstream_disk(raw: RawUpstreamDisk, problems: &mut Problems<'_>) -> Option<UpstreamSettings> {
    let certificate_path =
        problems.required("upstream_authority.disk.certificate_path", raw.certificate_path);
    let key_path = problems.required("upstream_authority.disk.key_path", raw.key_path);
    Some(UpstreamSettings::Disk {
        certificate_path: certificate_path?,
        key_path: key_path?,
        bundle_path: raw.bundle_path,
    })
}

fn store(raw: RawStore, data_dir: &Path, problems: &mut Problems<'_>) -> Option<StoreSettings> {
    let driver = parsed(problems, "store.driver", raw.driver, DriverKind::Sled)?;
    problems.check(
        driver != DriverKind::Memory || raw.path.is_none(),
        "store.path",
        "has no effect with store.driver = \"memory\"",
    );
    problems.check(
        driver != DriverKind::Postgres || raw.cache_mib.is_none(),
        "store.cache_mib",
        "has no effect with store.driver = \"postgres\"",
    );
    let cache_mib = raw.cache_mib.unwrap_or(32);
    problems.check((1..=1 << 20).contains(&cache_mib), "store.cache_mib", "must be from 1 to 1048576");
    let default = match driver {
        DriverKind::Redb => "store.redb",
        DriverKind::Sled | DriverKind::Memory | DriverKind::Postgres => "store",
    };
    let postgres = match (driver, raw.postgres) {
        (DriverKind::Postgres, raw) => Some(postgres(raw.unwrap_or_default(), problems)?),
        (_, Some(_)) => {
            problems.push("store.postgres", "has no effect without store.driver = \"postgres\"");
            None
        }
        (_, None) => None,
    };
    Some(StoreSettings {
        postgres,
        driver,
        path: raw.path.unwrap_or_else(|| data_dir.join(default)),
        cache_bytes: u64::from(cache_mib) * 1024 * 1024,
    })
}

/// The environment variable that may hold the connection string.
const CONNECTION_STRING: &str = "BONAFIDE_STORE_CONNECTION_STRING";

fn postgres(raw: RawPostgres, problems: &mut Problems<'_>) -> Option<PostgresConfig> {
    let from_environment = std::env::var(CONNECTION_STRING).ok();
    let given = (raw.connection_string, raw.connection_string_path, from_environment);
    let connection_string = match given {
        (Some(_), Some(_), _) => {
            problems
                .push("store.postgres.connection_string_path", "cannot be given beside connection_string");
            None
        }
        (Some(text), None, _) | (None, None, Some(text)) => {
            let checked = kv::check_connection_string(&text);
            problems.take("store.postgres.connection_string", checked).map(|()| ConnectionSecret::Text(text))
        }
        (None, Some(path), _) => Some(ConnectionSecret::File(path)),
        (None, None, None) => {
            problems.push(
                "store.postgres.connection_string",
                format!(
                    "is required: set it, connection_string_path, or {CONNECTION_STRING} in the environment"
                ),
            );
            None
        }
    };
    problems.check(
        raw.client_certificate_path.is_some() == raw.client_key_path.is_some(),
        "store.postgres.client_key_path",
        "must be given together with client_certificate_path",
    );
    let default = PostgresConfig::DEFAULT_TIMEOUT;
    let timeout = duration(problems, "store.postgres.timeout", raw.timeout, default)?;
    let shortest = Duration::from_secs(1);
    problems.check(
        (shortest..=60 * shortest).contains(&timeout),
        "store.postgres.timeout",
        "must be from 1s to 1m",
    );
    let default = PostgresConfig::DEFAULT_MAX_CUT_OFF;
    let max_cut_off = duration(problems, "store.postgres.max_cut_off", raw.max_cut_off, default)?;
    problems.check(
        (3 * shortest..=24 * HOUR).contains(&max_cut_off),
        "store.postgres.max_cut_off",
        "must be from 3s to 24h",
    );
    Some(PostgresConfig {
        connection_string: connection_string?,
        ca_path: raw.ca_path,
        client_certificate_path: raw.client_certificate_path,
        client_key_path: raw.client_key_path,
        timeout,
        max_cut_off,
    })
}

fn node_attestor(raw: RawNodeAttestor, problems: &mut Problems<'_>) -> Option<NodeAttestorSettings> {
    let x509pop = raw.x509pop.map(|raw| x509pop(raw, problems));
    let sshpop = raw.sshpop.map(|raw| attestors::sshpop(raw, problems));
    let tpm_devid = raw.tpm_devid.map(|raw| attestors::tpm_devid(raw, problems));
    let http_challenge = raw.http_challenge.map(|raw| attestors::http_challenge(raw, problems));
    let oidc = raw.oidc.map(|raw| attestors::oidc(raw, problems));
    let k8s_psat = raw.k8s_psat.map(|raw| attestors::k8s_psat(raw, problems));
    let gpu_evidence = raw.gpu_evidence.map(|raw| attestors::gpu_evidence(raw, problems));
    let join_token = raw.join_token.enabled.unwrap_or(true);
    let others = [
        x509pop.is_some(),
        sshpop.is_some(),
        tpm_devid.is_some(),
        http_challenge.is_some(),
        oidc.is_some(),
        k8s_psat.is_some(),
        join_token,
    ];
    problems.check(
        gpu_evidence.is_none() || others.contains(&true),
        "node_attestor.gpu_evidence",
        "says nothing of who a node is: configure another node attestor beside it",
    );
    Some(NodeAttestorSettings {
        spiffe_id_selector: raw.spiffe_id_selector.unwrap_or(false),
        gpu_evidence: gpu_evidence.map_or(Some(None), |settings| settings.map(Some))?,
        join_token,
        x509pop: x509pop.map_or(Some(None), |settings| settings.map(Some))?,
        sshpop: sshpop.map_or(Some(None), |settings| settings.map(Some))?,
        tpm_devid: tpm_devid.map_or(Some(None), |settings| settings.map(Some))?,
        http_challenge: http_challenge.map_or(Some(None), |settings| settings.map(Some))?,
        oidc: oidc.unwrap_or(Some(Vec::new()))?,
        k8s_psat: k8s_psat.unwrap_or(Some(Vec::new()))?,
    })
}

fn x509pop(raw: RawX509Pop, problems: &mut Problems<'_>) -> Option<X509PopSettings> {
    const KEY: &str = "node_attestor.x509pop";
    let mode = raw.mode.unwrap_or(Mode::ExternalPki);
    let mut ca_bundle_paths = raw.ca_bundle_paths;
    ca_bundle_paths.extend(raw.ca_bundle_path);
    let bundle_key = format!("{KEY}.ca_bundle_path");
    match mode {
        Mode::ExternalPki => {
            problems.check(
                !ca_bundle_paths.is_empty(),
                bundle_key,
                "is required in the external_pki mode: a PEM file with the roots",
            );
            let prefix = format!("{KEY}.spiffe_prefix");
            problems.check(raw.spiffe_prefix.is_none(), prefix, "has no effect in the external_pki mode");
        }
        Mode::Spiffe => problems.check(
            ca_bundle_paths.is_empty(),
            bundle_key,
            "has no effect in the spiffe mode, which trusts this trust domain's bundle",
        ),
    }
    let spiffe_prefix = raw.spiffe_prefix.unwrap_or_else(|| "/spire-exchange/".to_owned());
    problems.check(
        spiffe_prefix.starts_with('/') && spiffe_prefix.ends_with('/'),
        format!("{KEY}.spiffe_prefix"),
        "must start and end with a slash",
    );
    let template = match raw.agent_path_template {
        None => Some(AgentPathTemplate::default_for(mode)),
        Some(text) => {
            problems.take(format!("{KEY}.agent_path_template"), AgentPathTemplate::parse(&text, mode))
        }
    };
    let max_intermediates = raw.max_intermediates.unwrap_or(4);
    problems.check(max_intermediates <= 32, format!("{KEY}.max_intermediates"), "must be at most 32");
    let max_rsa_key_size = raw.max_rsa_key_size.unwrap_or(8192);
    problems.check(
        (2048..=8192).contains(&max_rsa_key_size),
        format!("{KEY}.max_rsa_key_size"),
        "must be from 2048 to 8192",
    );
    Some(X509PopSettings {
        mode,
        ca_bundle_paths,
        agent_path_template: template?,
        spiffe_prefix,
        max_intermediates,
        max_rsa_key_size,
        verify_client_ip: raw.verify_client_ip.unwrap_or(false),
    })
}

fn prune(raw: RawPrune, problems: &mut Problems<'_>) -> Option<PruneSettings> {
    let tofu_nodes = raw.tofu_nodes.unwrap_or(false);
    problems.check(
        !tofu_nodes || raw.attested_nodes_expired_for.is_some(),
        "prune.tofu_nodes",
        "has no effect without prune.attested_nodes_expired_for",
    );
    let attested_nodes_expired_for = match raw.attested_nodes_expired_for {
        None => None,
        some => Some(duration(problems, "prune.attested_nodes_expired_for", some, HOUR)?),
    };
    Some(PruneSettings { attested_nodes_expired_for, tofu_nodes })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("server.toml"))
    }

    fn problems(text: &str) -> Vec<String> {
        match parse(text) {
            Err(ConfigError::Invalid { problems, .. }) => {
                problems.into_iter().map(|problem| format!("{}: {}", problem.key, problem.message)).collect()
            }
            other => panic!("expected mistakes, got {other:?}"),
        }
    }

    const MINIMAL: &str = "trust_domain = \"example.org\"\ndata_dir = \"/var/lib/bonafide\"\n";

    #[test]
    fn two_lines_are_enough() {
        let config = parse(MINIMAL).unwrap();
        assert_eq!(config.listen.address, SocketAddr::from(([0, 0, 0, 0], 8081)));
        assert_eq!(config.listen.health_address, None);
        assert_eq!(config.audit.file, Some(PathBuf::from("/var/lib/bonafide/audit.log")));
        assert_eq!(config.store.driver, DriverKind::Sled);
        assert_eq!(config.store.path, PathBuf::from("/var/lib/bonafide/store"));
        assert_eq!(
            config.key_manager,
            KeyManagerSettings::Disk { path: "/var/lib/bonafide/keys.json".into() }
        );
        assert_eq!(config.authority.agent_ttl, HOUR);
        assert!(config.node_attestor.join_token);
        assert_eq!(config.warnings(), Vec::<String>::new());
    }

    #[test]
    fn all_mistakes_are_reported_at_once() {
        let found = problems(
            r#"
            trust_domain = "Example.org"
            data_dri = "/x"
            admin_ids = ["spiffe://example.org/admin", "admin"]
            [listen]
            address = "8081"
            colour = 1
            [authority]
            ca_ttl = "one day"
            ca_key_type = "ec-p521"
            [store]
            driver = "mysql"
            [key_manager.disk]
            [key_manager.memory]
            [node_attestor.x509pop]
            max_intermediates = -1
            [prune]
            tofu_nodes = "yes"
            "#,
        );
        let keys: Vec<&str> = found.iter().map(|p| p.split(':').next().unwrap()).collect();
        for key in [
            "trust_domain",
            "data_dir",
            "data_dri",
            "admin_ids[1]",
            "listen.address",
            "listen.colour",
            "authority.ca_ttl",
            "authority.ca_key_type",
            "store.driver",
            "key_manager.memory",
            "node_attestor.x509pop.ca_bundle_path",
            "node_attestor.x509pop.max_intermediates",
            "prune.tofu_nodes",
        ] {
            assert!(keys.contains(&key), "{key} is missing in {found:#?}");
        }
        assert_eq!(found.len(), 13, "{found:#?}");
    }

    #[test]
    fn options_without_effect_are_mistakes() {
        for (text, key) in [
            ("[audit]\nenabled = false\nfile = \"/x\"", "audit.file"),
            ("[store]\ndriver = \"memory\"\npath = \"/x\"", "store.path"),
            ("[store.postgres]\nconnection_string = \"host=a dbname=b\"", "store.postgres"),
            ("[store]\ndriver = \"postgres\"", "store.postgres.connection_string"),
            (
                "[store]\ndriver = \"postgres\"\n[store.postgres]\nconnection_string = \"host=db\"",
                "store.postgres.connection_string",
            ),
            (
                "[store]\ndriver = \"postgres\"\n[store.postgres]\nconnection_string_path = \"/x\"\nclient_key_path = \"/y\"",
                "store.postgres.client_key_path",
            ),
            (
                "[store]\ndriver = \"postgres\"\n[store.postgres]\nconnection_string_path = \"/x\"\ntimeout = \"2m\"",
                "store.postgres.timeout",
            ),
            ("[prune]\ntofu_nodes = true", "prune.tofu_nodes"),
            (
                "[node_attestor.x509pop]\nca_bundle_path = \"/x\"\nspiffe_prefix = \"/y/\"",
                "node_attestor.x509pop.spiffe_prefix",
            ),
            (
                "[node_attestor.x509pop]\nmode = \"spiffe\"\nca_bundle_path = \"/x\"",
                "node_attestor.x509pop.ca_bundle_path",
            ),
        ] {
            let found = problems(&format!("{MINIMAL}{text}\n"));
            assert_eq!(found.len(), 1, "{text}: {found:?}");
            assert!(found[0].starts_with(key), "{text}: {found:?}");
        }
    }

    #[test]
    fn there_is_one_upstream_authority_with_one_way_to_log_in() {
        let spire =
            "[upstream_authority.spire]\nserver_address = \"root:8081\"\nworkload_api_socket = \"/s\"\n";
        let config = parse(&format!("{MINIMAL}{spire}")).unwrap();
        assert_eq!(
            config.upstream_authority,
            Some(UpstreamSettings::Spire {
                server_address: Address { host: "root".to_owned(), port: 8081 },
                workload_api_socket: "/s".into(),
                poll_interval: Duration::from_secs(5),
            })
        );
        let vault = "[upstream_authority.vault]\naddress = \"https://v:8200\"\nca_cert_path = \"/ca\"\n";
        let token = "[upstream_authority.vault.token]\ntoken_file = \"/t\"\n";
        parse(&format!("{MINIMAL}{vault}{token}")).unwrap();
        for (text, key) in [
            (format!("{spire}{vault}{token}"), "upstream_authority.vault: remove"),
            (spire.replace("root:8081", "root"), "upstream_authority.spire.server_address"),
            (format!("{spire}poll_interval = \"1ms\""), "upstream_authority.spire.poll_interval"),
            (vault.to_owned(), "upstream_authority.vault: needs exactly one"),
            (format!("{vault}{token}[upstream_authority.vault.kubernetes]\nrole = \"r\""), "upstream_authority.vault: needs"),
            (format!("{vault}pki_mount_point = \"../sys\"\n{token}"), "upstream_authority.vault.pki_mount_point"),
            (
                "[upstream_authority.vault]\naddress = \"https://v\"\n[upstream_authority.vault.token]\ntoken_file = \"/t\"".to_owned(),
                "upstream_authority.vault.ca_cert_path",
            ),
            (format!("{vault}{token}").replace("https", "http"), "upstream_authority.vault.address"),
        ] {
            let found = problems(&format!("{MINIMAL}{text}\n"));
            assert!(found.iter().any(|problem| problem.starts_with(key)), "{text}: {found:?}");
        }
    }

    #[test]
    fn lifetimes_that_cannot_be_kept_are_warned_about() {
        let config = parse(&format!("{MINIMAL}[authority]\nca_ttl = \"1h\"\n")).unwrap();
        let warnings = config.warnings();
        assert!(warnings.iter().any(|w| w.starts_with("authority.default_x509_svid_ttl")), "{warnings:?}");
        assert!(warnings.iter().any(|w| w.starts_with("authority.agent_ttl")), "{warnings:?}");
        assert!(!warnings.iter().any(|w| w.starts_with("authority.default_jwt_svid_ttl")), "{warnings:?}");
    }

    #[test]
    fn proxies_are_networks_and_not_everybody() {
        let listen = |networks: &str| {
            parse(&format!("{MINIMAL}[listen]\nproxy_protocol_trusted_cidrs = {networks}\n"))
        };
        let config = listen("[\"10.0.0.0/8\", \"2001:db8::/32\"]").unwrap();
        assert!(config.listen.trusted_proxies.trusts("10.9.9.9".parse().unwrap()));
        assert_eq!(config.warnings(), Vec::<String>::new());
        let warnings = listen("[\"0.0.0.0/0\"]").unwrap().warnings();
        assert!(warnings.iter().any(|one| one.contains("0.0.0.0/0: anybody")), "{warnings:?}");
        let error = listen("[\"10.0.0.0/8\", \"10.0.0.1\"]").unwrap_err().to_string();
        assert!(error.contains("listen.proxy_protocol_trusted_cidrs[1]"), "{error}");
    }

    #[test]
    fn syntax_errors_name_the_file_and_the_place() {
        let error = parse("trust_domain = ").unwrap_err().to_string();
        assert!(error.contains("server.toml") && error.contains("line 1"), "{error}");
    }

    /// Everything that can be written is documented, and the reverse.
    #[test]
    fn the_reference_lists_exactly_the_keys_that_are_read() {
        let sections = [
            "[bundle_publisher.k8s_ca_bundle.clusters.'\"<name>\"']",
            "[bundle_publisher.k8s_cluster_trust_bundle.clusters.'\"<name>\"']",
            "[bundle_publisher.k8s_configmap.clusters.'\"<name>\"']",
            "[federation.bundle_endpoint.acme]",
            "[federation.federates_with.'\"<trust domain>\"']",
            "[key_manager.disk]",
            "[key_manager.memory]",
            "[[lifetime.rules]]",
            "[node_attestor.gpu_evidence]",
            "[node_attestor.http_challenge]",
            "[node_attestor.k8s_psat.clusters.'\"<cluster>\"']",
            "[[node_attestor.oidc.issuers]]",
            "[node_attestor.sshpop]",
            "[node_attestor.tpm_devid]",
            "[node_attestor.x509pop]",
            "[store.postgres]",
            "[upstream_authority.cert_manager]",
            "[upstream_authority.disk]",
            "[upstream_authority.spire]",
            "[upstream_authority.vault.approle]",
            "[upstream_authority.vault.cert]",
            "[upstream_authority.vault.kubernetes]",
            "[upstream_authority.vault.token]",
        ];
        let raw: Raw = parse_toml(Path::new("x"), &sections.join("\n")).unwrap().0;
        let mut read = Vec::new();
        leaves(String::new(), &serde_json::to_value(raw).unwrap(), &mut read);
        read.sort();
        let mut documented: Vec<String> =
            reference::FIELDS.iter().map(|field| field.key.to_owned()).collect();
        documented.sort();
        assert_eq!(read, documented);
    }

    fn leaves(path: String, value: &serde_json::Value, found: &mut Vec<String>) {
        match value {
            serde_json::Value::Object(members) if !members.is_empty() => {
                for (key, value) in members {
                    let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                    leaves(path, value, found);
                }
            }
            serde_json::Value::Array(items) if items.first().is_some_and(serde_json::Value::is_object) => {
                leaves(format!("{path}[]"), &items[0], found);
            }
            _ => found.push(path),
        }
    }
}
