//! The composition root: build, bind, run.
//!
//! [`Server::start`] is the only door; the binary and the tests go through it, with another clock and other
//! randomness if they like.

mod bundle_endpoint;
mod standing;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bonafide_identity::lifetime::policy::Policy;
use bonafide_identity::{SpiffeId, SvidTtls, Timestamp, TrustDomain};
use bonafide_pki::tls::{ClientAuth, SvidHolder, TrustStore, server_config};
use bonafide_pki::{Random, SystemRandom, inspect};
use bonafide_proto::bonafide::agent::v1::gpu_evidence_server::GpuEvidenceServer;
use bonafide_proto::bonafide::server::v1::maintenance_server::MaintenanceServer;
use bonafide_proto::health::v1::health_server::HealthServer;
use bonafide_proto::spire::server::agent::v1::agent_server::AgentServer;
use bonafide_proto::spire::server::bundle::v1::bundle_server::BundleServer;
use bonafide_proto::spire::server::debug::v1::debug_server::DebugServer;
use bonafide_proto::spire::server::localauthority::v1::local_authority_server::LocalAuthorityServer;
use bonafide_proto::spire::server::logger::v1::logger_server::LoggerServer;
use bonafide_proto::spire::server::svid::v1::svid_server::SvidServer;
use bonafide_proto::spire::server::trustdomain::v1::trust_domain_server::TrustDomainServer;
use bonafide_runtime::BoxError;
use bonafide_runtime::backoff::Backoff;
use bonafide_runtime::clock::{SharedClock, SystemClock};
use bonafide_runtime::health::{Readiness, ReadinessGuard, serve_http};
use bonafide_runtime::listener::{
    ConnectionRegistry, Http2Options, ListenerError, TlsOptions, UnixListenerBound, UnixOptions, bind_unix,
    serve_tls, serve_unix,
};
use bonafide_runtime::shutdown::Shutdown;
use bonafide_runtime::tasks::{NextRun, Periodic, Schedule, TaskError, TaskGroup};
use bonafide_runtime::telemetry::{LogHandle, describe, metrics};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tonic::service::Routes;

use crate::api::{self, Gate, Services, table::Incomplete};
use crate::attestation::Attestation;
use crate::audit::AuditLog;
use crate::authority::{Authorities, AuthorityConfig, AuthorityError, Issuing, IssuingConfig, ServerSvid};
use crate::bundle_publisher::Publication;
use crate::config::lifetime::judge;
use crate::config::{AuthoritySettings, Config};
use crate::drivers::{self, NodeAttestorError};
use crate::federation::{Federation, fetch::Fetcher};
use crate::gpu_evidence::GpuEvidence;
use crate::status;
use crate::store::{Store, StoreError};
use crate::tasks::{self, NodePruning};
use crate::upstream_authority::UpstreamError;

/// What all services share.
pub struct Context {
    /// The settings.
    pub config: Config,
    /// The trust domain this server issues for.
    pub td: TrustDomain,
    /// Writes go here.
    pub store: Store,
    /// Reads are answered from here.
    pub state: Arc<crate::store::State>,
    /// The authorities and their slots.
    pub authorities: Arc<Authorities>,
    /// Signs.
    pub issuing: Arc<Issuing>,
    /// Attests nodes.
    pub attestation: Attestation,
    /// Judges evidence of GPUs, where it is asked for.
    pub gpu_evidence: Option<GpuEvidence>,
    /// Relationships with other trust domains.
    pub federation: Federation,
    /// The server's own SVID, as it is presented now.
    pub server_svid: SvidHolder,
    /// The time.
    pub clock: SharedClock,
    /// Randomness.
    pub random: Arc<dyn Random>,
    /// The audit log.
    pub audit: AuditLog,
    /// The open connections.
    pub connections: ConnectionRegistry,
    /// Whether each part works.
    pub readiness: Readiness,
    /// The process's log.
    pub log: LogHandle,
    /// When the server started.
    pub started_at: Timestamp,
}

/// What a server takes from its process instead of from its configuration.
#[derive(Clone)]
pub struct Environment {
    /// The time.
    pub clock: SharedClock,
    /// Randomness.
    pub random: Arc<dyn Random>,
    /// The process's log.
    pub log: LogHandle,
}

impl Environment {
    /// The system's clock and randomness.
    pub fn system(log: LogHandle) -> Self {
        Self { clock: SystemClock::shared(), random: Arc::new(SystemRandom), log }
    }
}

/// Why a server did not start, or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A folder could not be made.
    #[error("cannot create {}: {source}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The audit log could not be opened.
    #[error("cannot open the audit log {}: {source}", path.display())]
    Audit {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// An address could not be bound.
    #[error("cannot listen on {key} = {address}: {source}")]
    Bind {
        /// The configuration key.
        key: &'static str,
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The administration socket could not be bound.
    #[error(transparent)]
    Listener(#[from] ListenerError),
    /// The store could not be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The key manager could not be opened.
    #[error("key manager: {0}")]
    KeyManager(#[from] bonafide_pki::KeyError),
    /// The upstream authority cannot be used.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// There is no authority to sign with.
    #[error("authorities: {0}")]
    Authority(#[from] AuthorityError),
    /// The server could not sign its own SVID.
    #[error(transparent)]
    ServerSvid(#[from] crate::authority::server_svid::ServerSvidError),
    /// The access to a cluster that the bundle is published to cannot be used.
    #[error(transparent)]
    BundlePublisher(#[from] drivers::BundlePublisherError),
    /// The lifetimes of the configuration cannot work with its policy.
    #[error("{0}")]
    Lifetimes(String),
    /// The certificate of the bundle endpoint cannot be used.
    #[error("federation.bundle_endpoint: {0}")]
    BundleEndpoint(#[from] crate::federation::certificate_files::CertificateFilesError),
    /// The folder of what ACME needs cannot be used.
    #[error("federation.bundle_endpoint.acme: {0}")]
    Acme(#[from] crate::federation::acme::AcmeError),
    /// The files of a node attestor cannot be used.
    #[error(transparent)]
    NodeAttestor(#[from] NodeAttestorError),
    /// An rpc has no row in the permission table.
    #[error(transparent)]
    Permissions(#[from] Incomplete),
    /// A signal handler could not be installed.
    #[error("cannot install a signal handler: {0}")]
    Signal(std::io::Error),
    /// A task failed, or outlived the shutdown.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// A thread could not be run.
    #[error("a thread of the start failed: {0}")]
    Thread(String),
}

/// How long a shutdown may take.
pub const SHUTDOWN: Duration = Duration::from_secs(10);
/// Of that, how long running calls may go on.
const DRAIN: Duration = Duration::from_secs(8);

/// The server.
pub struct Server;

/// A server that serves.
pub struct RunningServer {
    context: Arc<Context>,
    address: SocketAddr,
    health_address: Option<SocketAddr>,
    bundle_endpoint_address: Option<SocketAddr>,
    group: TaskGroup,
    tasks: Vec<Periodic>,
}

impl Server {
    /// Builds everything that the configuration names, binds the addresses and begins to serve.
    ///
    /// # Errors
    /// Something that the configuration names cannot be used; nothing is then left running.
    pub async fn start(config: Config, environment: Environment) -> Result<RunningServer, ServerError> {
        let Environment { clock, random, log } = environment;
        let started_at = clock.now();
        let (td, readiness, connections) =
            (config.trust_domain.clone(), Readiness::new(), ConnectionRegistry::new());
        let mut group = TaskGroup::new(Shutdown::new());
        let stop_on_failure = StopUnlessStarted(Some(group.shutdown().clone()));
        let serving = readiness.register("server");
        let authority_ready = readiness.register("server.ca");
        let store_ready = readiness.register("catalog.datastore");
        let judgement = judge(&config, started_at);
        if !judgement.problems.is_empty() {
            return Err(ServerError::Lifetimes(judgement.problems.join("; ")));
        }
        judgement.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        create_folder(&config.data_dir)?;

        // First of all somebody must be able to see that the server is starting.
        let health_address = health(&config, &readiness, &mut group).await?;
        for table in status::tables() {
            describe(table);
        }

        let audit = match &config.audit.file {
            None => AuditLog::disabled(),
            Some(path) => AuditLog::start(path.clone(), readiness.register("audit"))
                .map_err(|source| ServerError::Audit { path: path.clone(), source })?,
        };
        let store = open_store(&config, &clock).await?;
        store_ready.ready();
        let keys = drivers::key_manager(&config.key_manager)?;
        let upstream = drivers::upstream_authority(config.upstream_authority.as_ref(), &td, &random, &clock)?;
        if let Some(upstream) = upstream.clone() {
            let shutdown = group.shutdown().clone();
            group.spawn("upstream authority", async move { upstream.run(shutdown).await });
        }
        let begin = || {
            let config = authority_config(&td, &config.authority, config.lifetime.clone());
            let (keys, upstream, store) = (keys.clone(), upstream.clone(), store.clone());
            Authorities::start(config, keys, upstream, store, clock.clone(), random.clone())
        };
        let authorities = patiently(begin, &authority_ready, &*random).await?;
        authority_ready.ready();
        let issuing = Arc::new(Issuing::new(
            issuing_config(&config.authority, config.lifetime.clone()),
            authorities.clone(),
            store.clone(),
            random.clone(),
        ));
        let (own_svid, trust) = (SvidHolder::empty(), TrustStore::empty());
        let server_svid = ServerSvid::start(
            issuing.clone(),
            store.clone(),
            own_svid.clone(),
            trust.clone(),
            random.clone(),
            started_at,
        )?;
        let attestors = drivers::node_attestors(&config.node_attestor, &td, &store, &random)?;
        let gpu_evidence = config.node_attestor.gpu_evidence.clone().map(GpuEvidence::open).transpose();
        let gpu_evidence = gpu_evidence.map_err(NodeAttestorError::from)?;
        let gate = Arc::new(Gate::new(
            store.clone(),
            clock.clone(),
            audit.clone(),
            config.admin_ids.clone(),
            config.ratelimit,
        ));
        let federation = Federation::new(
            store.clone(),
            config.federation.federates_with.clone(),
            Fetcher::new(config.federation.web_ca_path.clone(), clock.clone()),
            clock.clone(),
            random.clone(),
        );
        let context = Arc::new(Context {
            td,
            gpu_evidence,
            federation,
            state: store.state().clone(),
            attestation: Attestation::new(attestors, issuing.clone(), store.clone())
                .with_spiffe_id_selector(config.node_attestor.spiffe_id_selector),
            authorities,
            issuing,
            server_svid: own_svid.clone(),
            clock: clock.clone(),
            random: random.clone(),
            audit,
            connections: connections.clone(),
            readiness,
            log,
            started_at,
            store: store.clone(),
            config,
        });
        let publishers = drivers::bundle_publishers(&context.config.bundle_publishers)?;
        let publication = Publication::new(context.store.clone(), context.td.clone(), publishers);
        let remote = remote_routes(&context, &gate)?;
        let local = local_routes(&context, &gate)?;

        let (tcp, address) = bind_tcp("listen.address", context.config.listen.address).await?;
        let bundle_endpoint = bundle_endpoint::bind(&context).await?;
        let unix = bind_unix(&context.config.listen.admin_socket, 0o770, 0o750)?;

        let mut periodic = tasks::spawn(
            &mut group,
            tasks::Parts {
                authorities: context.authorities.clone(),
                server_svid,
                store,
                clock: clock.clone(),
                random: random.clone(),
                publication,
                node_pruning: context.config.prune.attested_nodes_expired_for.map(|expired_for| {
                    NodePruning { expired_for, tofu_nodes: context.config.prune.tofu_nodes }
                }),
            },
        );
        spawn_remote(&mut group, &context, tcp, remote, own_svid, trust);
        spawn_local(&mut group, &context, unix, local);
        let mut bundle_endpoint_address = None;
        if let Some(bound) = bundle_endpoint {
            let (address, certificate) = bundle_endpoint::spawn(&mut group, &context, bound);
            bundle_endpoint_address = Some(address);
            periodic.extend(certificate);
        }
        context.federation.spawn(&mut group);
        standing::spawn(&mut group, context.state.clone(), connections, clock.clone());
        spawn_observer(&mut group, &context);
        spawn_reopen(&mut group, &context)?;
        serving.ready();
        let (shutdown, judged) = (group.shutdown().clone(), context.store.clone());
        group.spawn("readiness", async move {
            // Ready until the shutdown begins, so that nobody sends new work to a server that drains.
            let _parts = authority_ready;
            let mut look = tokio::time::interval(Duration::from_secs(1));
            loop {
                tokio::select! {
                    () = shutdown.triggered() => break,
                    _ = look.tick() => {}
                }
                match judged.current() {
                    Ok(()) => store_ready.ready(),
                    Err(error) => store_ready.not_ready(error.to_string()),
                }
            }
            drop(serving);
            Ok(())
        });
        tracing::info!(
            trust_domain = %context.td,
            %address,
            socket = %context.config.listen.admin_socket.display(),
            "serving"
        );
        stop_on_failure.started();
        Ok(RunningServer {
            context,
            address,
            health_address,
            bundle_endpoint_address,
            group,
            tasks: periodic,
        })
    }
}

impl RunningServer {
    /// The TCP address that agents connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The address of `/live`, `/ready` and `/metrics`.
    pub fn health_address(&self) -> Option<SocketAddr> {
        self.health_address
    }

    /// The address of the bundle endpoint.
    pub fn bundle_endpoint_address(&self) -> Option<SocketAddr> {
        self.bundle_endpoint_address
    }

    /// The administration socket.
    pub fn admin_socket(&self) -> &Path {
        &self.context.config.listen.admin_socket
    }

    /// What the services share.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Triggering it stops the server.
    pub fn shutdown(&self) -> Shutdown {
        self.group.shutdown().clone()
    }

    /// The background work, with its status.
    pub fn tasks(&self) -> &[Periodic] {
        &self.tasks
    }

    /// Waits until the server has stopped, for whatever reason, and closes what must be closed last.
    ///
    /// # Errors
    /// The failure that stopped it, or the tasks that did not stop in time.
    pub async fn wait(self) -> Result<(), ServerError> {
        let Self { context, group, .. } = self;
        let outcome = group.join(SHUTDOWN).await;
        context.audit.close().await;
        context.store.close().await;
        tracing::info!("stopped");
        outcome.map_err(ServerError::Task)
    }

    /// Stops the server and waits until it has stopped.
    ///
    /// # Errors
    /// As [`Self::wait`].
    pub async fn stop(self) -> Result<(), ServerError> {
        self.shutdown().trigger();
        self.wait().await
    }
}

/// Stops what has been started when the rest of the start fails.
struct StopUnlessStarted(Option<Shutdown>);

impl StopUnlessStarted {
    fn started(mut self) {
        self.0 = None;
    }
}

impl Drop for StopUnlessStarted {
    fn drop(&mut self) {
        if let Some(shutdown) = &self.0 {
            shutdown.trigger();
        }
    }
}

fn create_folder(path: &Path) -> Result<(), ServerError> {
    use std::os::unix::fs::DirBuilderExt as _;
    let mut builder = std::fs::DirBuilder::new();
    builder
        .recursive(true)
        .mode(0o750)
        .create(path)
        .map_err(|source| ServerError::Folder { path: path.to_owned(), source })
}

/// Waits for an upstream authority that is away as long as there is no authority to sign with; one that is held makes
/// waiting unnecessary. Whoever looks at the readiness sees why.
async fn patiently<F>(
    mut begin: impl FnMut() -> F,
    ready: &ReadinessGuard,
    random: &dyn Random,
) -> Result<Arc<Authorities>, AuthorityError>
where
    F: Future<Output = Result<Arc<Authorities>, AuthorityError>>,
{
    let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30), 2.0);
    loop {
        let error = match begin().await {
            Err(AuthorityError::Upstream(error)) => error,
            outcome => return outcome,
        };
        let retry_in = backoff.next(random.u64());
        tracing::error!(
            %error,
            ?retry_in,
            "there is no authority to sign with, and the upstream authority gives none: the server waits for it"
        );
        ready.not_ready(format!("no authority to sign with: {error}"));
        tokio::time::sleep(retry_in).await;
    }
}

async fn open_store(config: &Config, clock: &SharedClock) -> Result<Store, ServerError> {
    let (store_config, clock) = (drivers::store_config(&config.store, &config.trust_domain), clock.clone());
    let opened = tokio::task::spawn_blocking(move || Store::open(store_config, clock)).await;
    let (store, found) = opened.map_err(|error| ServerError::Thread(error.to_string()))??;
    tracing::info!(
        driver = %config.store.driver,
        entries = found.entries,
        agents = found.nodes,
        bundles = found.bundles,
        took = ?found.elapsed,
        "store opened"
    );
    Ok(store)
}

fn authority_config(td: &TrustDomain, settings: &AuthoritySettings, policy: Policy) -> AuthorityConfig {
    AuthorityConfig {
        trust_domain: td.clone(),
        ca_ttl: settings.ca_ttl,
        ca_key_type: settings.ca_key_type,
        jwt_key_type: settings.jwt_key_type,
        wit_key_type: settings.wit_key_type,
        ca_subject: settings.ca_subject.clone(),
        jwt_enabled: !settings.disable_jwt_svids,
        wit_enabled: !settings.disable_wit_svids,
        policy,
    }
}

fn issuing_config(settings: &AuthoritySettings, policy: Policy) -> IssuingConfig {
    IssuingConfig {
        ttls: SvidTtls {
            ca: settings.ca_ttl,
            x509: settings.default_x509_svid_ttl,
            jwt: settings.default_jwt_svid_ttl,
            wit: settings.default_wit_svid_ttl,
            agent: settings.agent_ttl,
        },
        jwt_issuer: settings.jwt_issuer.clone(),
        wit_issuer: settings.wit_issuer.clone(),
        policy,
    }
}

/// What agents, downstream servers and remote administrators reach.
fn remote_routes(context: &Arc<Context>, gate: &Arc<Gate>) -> Result<Routes, Incomplete> {
    shared(context, gate).routes()
}

/// What local administrators reach.
fn local_routes(context: &Arc<Context>, gate: &Arc<Gate>) -> Result<Routes, Incomplete> {
    shared(context, gate)
        .with(LoggerServer::new(api::logger::v1::Service::new(context.clone())))
        .with(DebugServer::new(api::debug::v1::Service::new(context.clone())))
        .with(HealthServer::new(api::health::v1::Service::new(context.clone())))
        .with(MaintenanceServer::new(api::maintenance::v1::Service::new(context.clone())))
        .routes()
}

fn shared(context: &Arc<Context>, gate: &Arc<Gate>) -> Services {
    let settings = &context.config.authority;
    let bundle = api::bundle::v1::Service::new(
        context.store.clone(),
        context.authorities.clone(),
        context.td.clone(),
        !settings.disable_jwt_svids,
        !settings.disable_wit_svids,
    );
    let svid =
        api::svid::v1::Service::new(context.store.clone(), context.issuing.clone(), context.clock.clone());
    let trust_domain = api::trustdomain::v1::Service::new(
        context.store.clone(),
        context.td.clone(),
        context.federation.clone(),
    );
    let local_authority = api::localauthority::v1::Service::new(context.authorities.clone());
    Services::new(gate.clone())
        .with(AgentServer::new(api::agent::v1::Service::new(context.clone())))
        .with(BundleServer::new(bundle))
        .with(api::entry::v1::Server::new(api::entry::v1::Service::new(context.clone())))
        .with(SvidServer::new(svid))
        .with(LocalAuthorityServer::new(local_authority))
        .with(TrustDomainServer::new(trust_domain))
        .with(GpuEvidenceServer::new(api::gpu_evidence::v1::Service::new(context.clone())))
}

async fn bind_tcp(key: &'static str, address: SocketAddr) -> Result<(TcpListener, SocketAddr), ServerError> {
    let failed = |source| ServerError::Bind { key, address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

async fn health(
    config: &Config,
    readiness: &Readiness,
    group: &mut TaskGroup,
) -> Result<Option<SocketAddr>, ServerError> {
    let Some(address) = config.listen.health_address else { return Ok(None) };
    let (listener, bound) = bind_tcp("listen.health_address", address).await?;
    let (readiness, handle, shutdown) = (readiness.clone(), metrics(), group.shutdown().clone());
    let upkeep = (handle.clone(), shutdown.clone());
    group.spawn("metrics upkeep", async move {
        upkeep.0.upkeep(upkeep.1).await;
        Ok(())
    });
    group.spawn("health", async move { Ok(serve_http(listener, readiness, handle, shutdown).await?) });
    Ok(Some(bound))
}

fn spawn_remote(
    group: &mut TaskGroup,
    context: &Arc<Context>,
    listener: TcpListener,
    routes: Routes,
    svid: SvidHolder,
    trust: TrustStore,
) {
    let clock = context.clock.clone();
    let tls = server_config(svid, trust, ClientAuth::OptionalSpiffe, Arc::new(move || clock.now()));
    let options = TlsOptions {
        name: "grpc",
        trusted_proxies: context.config.listen.trusted_proxies.clone(),
        max_connections: context.config.listen.max_connections as usize,
        drain: DRAIN,
        registry: context.connections.clone(),
        ..TlsOptions::default()
    };
    let (td, admin_ids) = (context.td.clone(), context.config.admin_ids.clone());
    let peer_info =
        move |chain: &[rustls_pki_types::CertificateDer<'_>]| -> Result<Option<SpiffeId>, BoxError> {
            let Some(leaf) = chain.first() else { return Ok(None) };
            let id = inspect(leaf)?.spiffe_id.ok_or("the certificate holds no SPIFFE ID")?;
            // The handshake accepts every trust domain whose bundle is here; calls are for our own and for the named.
            if id.trust_domain() != &td && !admin_ids.contains(&id) {
                return Err(format!("{id} is of another trust domain and not in admin_ids").into());
            }
            Ok(Some(id))
        };
    let shutdown = group.shutdown().clone();
    group.spawn(
        "grpc",
        async move { Ok(serve_tls(listener, tls, routes, options, peer_info, shutdown).await?) },
    );
}

fn spawn_local(group: &mut TaskGroup, context: &Arc<Context>, listener: UnixListenerBound, routes: Routes) {
    let options = UnixOptions {
        name: "admin",
        // Callers are told apart by socket permission alone; the process is noted for the audit log.
        pin_peers: false,
        drain: DRAIN,
        http2: Http2Options::default(),
        registry: context.connections.clone(),
        ..UnixOptions::default()
    };
    let shutdown = group.shutdown().clone();
    group.spawn("admin socket", async move { Ok(serve_unix(listener, routes, options, shutdown).await?) });
}

/// Reads the state into the metrics every few seconds.
fn spawn_observer(group: &mut TaskGroup, context: &Arc<Context>) {
    let (observed, random) = (context.clone(), context.random.clone());
    let periodic = Periodic::new("metrics", Schedule::every(Duration::from_secs(5)), context.clock.clone());
    let shutdown = group.shutdown().clone();
    group.spawn("metrics", async move {
        let work = |_| {
            let context = observed.clone();
            async move {
                status::observe(&context.store, &context.authorities, &context.connections);
                Ok(NextRun::Usual)
            }
        };
        periodic.run(shutdown, move || random.u64(), work).await
    });
}

/// Opens log and audit log anew at SIGUSR2.
fn spawn_reopen(group: &mut TaskGroup, context: &Arc<Context>) -> Result<(), ServerError> {
    let mut reopen = signal(SignalKind::user_defined2()).map_err(ServerError::Signal)?;
    let (context, shutdown) = (context.clone(), group.shutdown().clone());
    group.spawn("log rotation", async move {
        loop {
            tokio::select! {
                () = shutdown.triggered() => return Ok(()),
                _ = reopen.recv() => {}
            }
            if let Err(error) = context.log.reopen() {
                tracing::error!(%error, "the log could not be opened anew; the old file stays in use");
            }
            if let Err(error) = context.audit.reopen().await {
                tracing::error!(%error, "the audit log could not be opened anew; the old file stays in use");
            }
        }
    });
    Ok(())
}
