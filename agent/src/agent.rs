//! The composition root: build, attest, serve.
//!
//! Sockets are bound first, so that a wrong path or another agent in its place is found out before a join token is spent;
//! they answer once the first synchronisation is done, and callers wait until then.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bonafide_identity::SpiffeId;
use bonafide_pki::{KeyError, Random, SystemRandom, tls};
use bonafide_proto::health::v1::health_server::HealthServer;
use bonafide_proto::spire::agent::debug::v1::debug_server::DebugServer;
use bonafide_proto::spire::agent::logger::v1::logger_server::LoggerServer;
use bonafide_runtime::BoxError;
use bonafide_runtime::clock::{SharedClock, SystemClock};
use bonafide_runtime::health::{Readiness, serve_http};
use bonafide_runtime::listener::{
    ListenerError, TlsOptions, UnixListenerBound, UnixOptions, bind_unix, serve_tls, serve_tls_unix,
    serve_unix,
};
use bonafide_runtime::shutdown::Shutdown;
use bonafide_runtime::tasks::{TaskError, TaskGroup};
use bonafide_runtime::telemetry::{self, LogHandle};
use tokio::net::TcpListener;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tonic::service::{Routes, RoutesBuilder};

use crate::api::admin::{DebugService, LoggerService};
use crate::api::broker::{BrokerApi, Transport};
use crate::api::delegated_identity::DelegatedIdentityApi;
use crate::api::health::HealthService;
use crate::api::limit::Limits;
use crate::api::reflection;
use crate::api::unidentified::Unidentified;
use crate::api::workload::WorkloadApi;
use crate::bootstrap::store::{DataFile, StoreError};
use crate::bootstrap::{AttestPatience, BootstrapError, bootstrap, key_manager};
use crate::config::Config;
use crate::gpu_evidence::{Command, Showing};
use crate::own_svid::{OwnSvid, Surroundings};
use crate::server_client::{Connector, Identity, ServerClient};
use crate::svid_cache::SvidCache;
use crate::svid_cache::issuing::Issuing;
use crate::svid_cache::tokens::JwtSvids;
use crate::sync::{BeginAnew, FatalError, LastSync, Sync};
use crate::workload_attestor::WorkloadAttestors;
use crate::{drivers, metrics};

/// Why the agent did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A socket.
    #[error(transparent)]
    Listener(#[from] ListenerError),
    /// The address for health and metrics.
    #[error("cannot listen on {address} for health and metrics")]
    Health {
        /// The address.
        address: std::net::SocketAddr,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Two sockets are in one folder, by whatever names it goes: whoever is handed the one would be handed the other.
    #[error("{} and {} are in the same folder; each socket needs one of its own", .one.display(), .other.display())]
    SharedFolder {
        /// A socket.
        one: PathBuf,
        /// The other one.
        other: PathBuf,
    },
    /// The address for brokers.
    #[error("cannot listen on {address} for brokers")]
    Broker {
        /// The address.
        address: std::net::SocketAddr,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The data folder.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The keys in the data folder.
    #[error("cannot use the keys in {folder}")]
    Keys {
        /// The data folder.
        folder: PathBuf,
        /// Why not.
        #[source]
        source: KeyError,
    },
    /// The agent did not get its SVID.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    /// The server does not want this agent.
    #[error(transparent)]
    Fatal(#[from] FatalError),
    /// The descriptors for reflection.
    #[error("cannot describe the services")]
    Reflection(#[source] tonic_reflection::server::Error),
    /// The shutdown was triggered before the agent was up.
    #[error("stopped before the agent was up")]
    Stopped,
}

/// What tests and embedders may choose. The default is what the daemon runs with.
pub struct Overrides {
    /// The time.
    pub clock: SharedClock,
    /// Randomness.
    pub random: Arc<dyn Random>,
    /// The log of the process; without it the admin socket has no Logger service.
    pub log: Option<LogHandle>,
    /// How long a first attestation is tried.
    pub patience: AttestPatience,
    /// Workload attestors in place of the configured ones.
    pub workload_attestors: Option<WorkloadAttestors>,
    /// Ends the agent.
    pub shutdown: Shutdown,
    /// How long running streams may go on when the agent ends.
    pub drain: Duration,
}

impl Default for Overrides {
    fn default() -> Self {
        Self {
            clock: SystemClock::shared(),
            random: Arc::new(SystemRandom),
            log: None,
            patience: AttestPatience::default(),
            workload_attestors: None,
            shutdown: Shutdown::new(),
            drain: Duration::from_secs(5),
        }
    }
}

/// A running agent.
pub struct Agent {
    own: OwnSvid,
    cache: Arc<SvidCache>,
    readiness: Readiness,
    last_sync: LastSync,
    tasks: TaskGroup,
    shutdown: Shutdown,
    drain: Duration,
}

impl Agent {
    /// Starts an agent. When this returns it serves.
    ///
    /// # Errors
    /// [`StartError`]. Nothing is left running.
    pub async fn start(config: Config, overrides: Overrides) -> Result<Self, StartError> {
        let started = Instant::now();
        let Overrides { clock, random, log, patience, workload_attestors, shutdown, drain } = overrides;
        metrics::describe_all();
        let readiness = Readiness::new();
        let sync_ready = readiness.register("agent");
        let bound = Bound::bind(&config).await?;
        let peers = bound.serves_brokers().then(tls::TrustStore::empty);
        let mut tasks = TaskGroup::new(shutdown.clone());
        if let Some(listener) = bound.health {
            let serve = serve_http(listener, readiness.clone(), telemetry::metrics(), shutdown.clone());
            tasks.spawn("health", async move { Ok(serve.await?) });
        }

        let identity = Identity::empty();
        let broker_identity = identity.clone();
        let trust = tls::TrustStore::empty();
        let connector = Connector::new(
            config.server.clone(),
            config.trust_domain.clone(),
            trust.clone(),
            Arc::clone(&clock),
        );
        let client = ServerClient::new(connector.clone(), identity.clone());
        let surroundings = Surroundings {
            trust_domain: config.trust_domain.clone(),
            file: DataFile::open(&config.data_dir)?,
            keys: key_manager(config.key_manager, &config.data_dir)
                .map_err(|source| StartError::Keys { folder: config.data_dir.clone(), source })?,
            attestor: drivers::node_attestor(&config.node_attestor, &random),
            connector,
            identity,
            trust: trust.clone(),
            clock: Arc::clone(&clock),
            random: Arc::clone(&random),
        };
        let own = tokio::select! {
            () = shutdown.triggered() => return Err(StartError::Stopped),
            own = bootstrap(&surroundings, &config.bootstrap, &config.rebootstrap, patience) => own?,
        };

        let cache = Arc::new(SvidCache::new(config.svid.x509_cache_size));
        let tokens = Arc::new(JwtSvids::new(
            client.clone(),
            Arc::clone(&clock),
            Arc::clone(&random),
            config.svid.jwt_cache_size,
        ));
        let issuing = Issuing::new(
            Arc::clone(&cache),
            client.clone(),
            Arc::clone(&clock),
            Arc::clone(&random),
            config.svid,
        );
        let showing = config.gpu_evidence.clone().map(|config| Showing {
            collector: Arc::new(Command::new(config)),
            own: own.clone(),
            client: client.clone(),
            clock: Arc::clone(&clock),
        });
        let last_sync = LastSync::default();
        let sync = Sync {
            trust_domain: config.trust_domain.clone(),
            own: own.clone(),
            client,
            trust,
            peers: peers.clone(),
            cache: Arc::clone(&cache),
            tokens: Arc::clone(&tokens),
            issuing,
            clock: Arc::clone(&clock),
            random,
            interval: config.sync_interval,
            last: last_sync.clone(),
            readiness: sync_ready,
            attested_again: std::sync::atomic::AtomicBool::new(false),
            anew: BeginAnew {
                config: config.rebootstrap,
                source: config.bootstrap,
                attempts: std::sync::Mutex::default(),
            },
        };
        sync.first(&shutdown).await?;
        if shutdown.is_triggered() {
            return Err(StartError::Stopped);
        }
        let until = shutdown.clone();
        tasks.spawn("sync", async move { Ok(sync.run(until).await?) });

        if let Some(showing) = showing {
            let until = shutdown.clone();
            tasks.spawn("gpu-evidence", async move {
                showing.run(until).await;
                Ok(())
            });
        }
        let (fresh, entries, until) = (Arc::clone(&tokens), Arc::clone(&cache), shutdown.clone());
        tasks.spawn("jwt-renewal", async move {
            tokio::select! {
                () = until.triggered() => {}
                () = fresh.keep_fresh(|id| entries.entry(id)) => {}
            }
            Ok(())
        });
        let attestors = workload_attestors
            .unwrap_or_else(|| drivers::workload_attestors(&config.workload_attestors, &clock));
        let delegated_identity = DelegatedIdentityApi {
            cache: Arc::clone(&cache),
            tokens: Arc::clone(&tokens),
            attestors: attestors.clone(),
            clock: Arc::clone(&clock),
            shutdown: shutdown.clone(),
            delegates: Arc::new(config.authorized_delegates),
        };
        if let Some(trust) = peers {
            let api = BrokerApi {
                cache: Arc::clone(&cache),
                tokens: Arc::clone(&tokens),
                attestors: attestors.clone(),
                clock: Arc::clone(&clock),
                shutdown: shutdown.clone(),
                brokers: Arc::new(config.broker.brokers),
                trust,
            };
            let (socket, address) = (bound.broker_socket, bound.broker_address);
            serve_brokers(&mut tasks, api, broker_identity, (socket, address), drain)
                .map_err(StartError::Reflection)?;
        }
        let workload_api = WorkloadApi {
            cache: Arc::clone(&cache),
            tokens: Arc::clone(&tokens),
            attestors,
            clock,
            shutdown: shutdown.clone(),
            allow_unauthenticated_verifiers: config.allow_unauthenticated_verifiers,
            allowed_foreign_jwt_claims: Arc::new(config.allowed_foreign_jwt_claims.into_iter().collect()),
            limits: Arc::new(Limits::new(config.rate_limits)),
            unidentified: Arc::new(Unidentified::new(config.log_selectors)),
        };
        let mut routes = RoutesBuilder::default();
        if config.workload_api_enabled {
            workload_api.serve(&mut routes);
        }
        routes.add_service(HealthServer::new(HealthService::new(readiness.clone())));
        reflection(&mut routes, config.workload_api_enabled).map_err(StartError::Reflection)?;
        serve(&mut tasks, "workload-api", bound.workload, routes.routes(), drain);

        if let Some(socket) = bound.admin {
            let mut routes = RoutesBuilder::default();
            let (own, cache, last_sync) = (own.clone(), Arc::clone(&cache), last_sync.clone());
            delegated_identity.serve(&mut routes);
            routes.add_service(DebugServer::new(DebugService { own, cache, tokens, last_sync, started }));
            routes.add_service(HealthServer::new(HealthService::new(readiness.clone())));
            if let Some(log) = log {
                routes.add_service(LoggerServer::new(LoggerService { log }));
            }
            serve(&mut tasks, "admin", socket, routes.routes(), drain);
        }
        tracing::info!(id = %own.id(), socket = %config.workload_socket.display(), "the agent serves");
        Ok(Self { own, cache, readiness, last_sync, tasks, shutdown, drain })
    }

    /// The agent's own SVID.
    #[must_use]
    pub fn own_svid(&self) -> &OwnSvid {
        &self.own
    }

    /// What the agent holds for its workloads.
    #[must_use]
    pub fn cache(&self) -> &Arc<SvidCache> {
        &self.cache
    }

    /// How the synchronisation with the server goes.
    #[must_use]
    pub fn last_sync(&self) -> &LastSync {
        &self.last_sync
    }

    /// Whether the agent can serve.
    #[must_use]
    pub fn readiness(&self) -> &Readiness {
        &self.readiness
    }

    /// Ends the agent.
    pub fn shut_down(&self) {
        self.shutdown.trigger();
    }

    /// Waits until the agent has ended: because it was told to, or because a part of it failed.
    ///
    /// # Errors
    /// What failed.
    pub async fn join(self) -> Result<(), TaskError> {
        self.tasks.join(self.drain + Duration::from_secs(5)).await
    }
}

/// The sockets, bound and not yet served.
struct Bound {
    workload: UnixListenerBound,
    admin: Option<UnixListenerBound>,
    broker_socket: Option<UnixListenerBound>,
    broker_address: Option<TcpListener>,
    health: Option<TcpListener>,
}

impl Bound {
    async fn bind(config: &Config) -> Result<Self, StartError> {
        let health = match config.health_address {
            Some(address) => Some(
                TcpListener::bind(address).await.map_err(|source| StartError::Health { address, source })?,
            ),
            None => None,
        };
        let bound = Self {
            workload: bind_unix(&config.workload_socket, 0o777, 0o755)?,
            admin: match &config.admin_socket {
                Some(path) => Some(bind_unix(path, 0o770, 0o750)?),
                None => None,
            },
            broker_socket: match &config.broker.socket {
                Some(path) => Some(bind_unix(path, 0o777, 0o755)?),
                None => None,
            },
            broker_address: match config.broker.address {
                Some(address) => Some(
                    TcpListener::bind(address)
                        .await
                        .map_err(|source| StartError::Broker { address, source })?,
                ),
                None => None,
            },
            health,
        };
        // The configuration was compared as text; links and `..` show now that the folders are there.
        let folder = |path: &Path| path.parent().and_then(|folder| folder.canonicalize().ok());
        let (admin, broker) = (config.admin_socket.as_ref(), config.broker.socket.as_ref());
        let workload = Some(&config.workload_socket);
        for (one, other) in [(workload, admin), (workload, broker), (admin, broker)] {
            if let (Some(one), Some(other)) = (one, other)
                && folder(one) == folder(other)
            {
                return Err(StartError::SharedFolder { one: one.clone(), other: other.clone() });
            }
        }
        Ok(bound)
    }

    fn serves_brokers(&self) -> bool {
        self.broker_socket.is_some() || self.broker_address.is_some()
    }
}

fn serve(
    tasks: &mut TaskGroup,
    name: &'static str,
    socket: UnixListenerBound,
    routes: Routes,
    drain: Duration,
) {
    let shutdown = tasks.shutdown().clone();
    // Far beyond what processes of one user need, and too little to take the agent's memory from everybody else.
    let mut options = UnixOptions { name, drain, max_connections_per_user: 1024, ..UnixOptions::default() };
    options.http2.max_concurrent_streams = 128;
    tasks.spawn(name, async move { Ok(serve_unix(socket, routes, options, shutdown).await?) });
}

fn serve_brokers(
    tasks: &mut TaskGroup,
    api: BrokerApi,
    identity: Identity,
    (socket, address): (Option<UnixListenerBound>, Option<TcpListener>),
    drain: Duration,
) -> Result<(), tonic_reflection::server::Error> {
    let clock = Arc::clone(&api.clock);
    let now: tls::Now = Arc::new(move || clock.now());
    let brokers = tls::PeerCheck::AnyOf(api.brokers.keys().cloned().collect());
    let config = tls::server_config_for(identity, api.trust.clone(), brokers, now);
    let options = move |name| TlsOptions { name, drain, max_connections: 1024, ..TlsOptions::default() };
    let routes = |transport| {
        let mut routes = RoutesBuilder::default();
        api.clone().serve(transport, &mut routes)?;
        Ok::<_, tonic_reflection::server::Error>(routes.routes())
    };
    if let Some(socket) = socket {
        let (config, routes) = (Arc::clone(&config), routes(Transport::Unix)?);
        let shutdown = tasks.shutdown().clone();
        tasks.spawn("broker", async move {
            Ok(serve_tls_unix(socket, config, routes, options("broker"), broker_id, shutdown).await?)
        });
    }
    if let Some(listener) = address {
        let (routes, shutdown) = (routes(Transport::Tcp)?, tasks.shutdown().clone());
        tasks.spawn("broker-tcp", async move {
            Ok(serve_tls(listener, config, routes, options("broker-tcp"), broker_id, shutdown).await?)
        });
    }
    Ok(())
}

/// Who a verified chain belongs to.
fn broker_id(chain: &[CertificateDer<'_>]) -> Result<Option<SpiffeId>, BoxError> {
    match chain.first() {
        None => Ok(None),
        Some(leaf) => Ok(bonafide_pki::inspect(leaf)?.spiffe_id),
    }
}
