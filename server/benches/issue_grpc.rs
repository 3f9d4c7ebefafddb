//! Issuing X.509-SVIDs as agents have it done: over mutual TLS, in batches of 100, each written to the inventory and
//! to the audit log, compared with nothing but the cryptography.
//!
//! One process holds the server (sled store, audit file, all tasks) and its clients, on all processors. Slices of
//! both alternate in one run, so that other work on the machine meets both alike:
//!
//! - bare: each processor verifies the signature of a CSR and signs the bytes of a certificate, again and again;
//! - gRPC: agents with ready CSRs ask for batches, one after the other on each connection.
//!
//! Rates are taken twice: by the clock on the wall, which sees time spent waiting for the disk, and by processor time,
//! which other work on the machine cannot distort (the scheduler favours whoever has more threads). Both median ratios
//! must be at least 0.60. `BONAFIDE_BENCH_SECONDS` sets the length (default 10).

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bonafide_identity::{AttestedNode, Entry, EntryId, Selector, SelectorSet, SpiffeId, Timestamp};
use bonafide_pki::tls::{PeerCheck, Svid, SvidHolder, TrustStore, client_config, server_name};
use bonafide_pki::{KeyType, PrivateKey, Signer, TrustRoots, VerificationAlgorithm, agent_csr, inspect};
use bonafide_proto::spire::server::svid::v1::svid_client::SvidClient;
use bonafide_proto::spire::server::svid::v1::{BatchNewX509svidRequest, NewX509svidParams};
use bonafide_runtime::clock::{Clock as _, SystemClock};
use bonafide_runtime::telemetry::{LogConfig, LogLevel, init_logging};
use bonafide_server::config::Config;
use bonafide_server::server::{Environment, RunningServer, Server};
use bonafide_server::store::{Entries as _, Nodes as _};
use hyper_util::rt::TokioIo;
use rustix::time::{ClockId, clock_gettime};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

fn main() {
    let seconds: f64 =
        std::env::var("BONAFIDE_BENCH_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(10.0);
    // `cargo test --benches` only wants to know that it runs, and unoptimised there is nothing to compare.
    let trial = std::env::args().any(|argument| argument == "--test") || cfg!(debug_assertions);
    let seconds = if trial { 0.5 } else { seconds };

    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("runtime");
    let folder = tempfile::tempdir().expect("folder");
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let bare = Bare::new();
    let (server, clients) = runtime.block_on(async {
        let server = start(folder.path()).await;
        // One more than there are processors: while one batch is on the wire, the others are being signed.
        let mut clients = Vec::new();
        for number in 0..=processors {
            clients.push(Client::new(&server, number).await);
        }
        (server, clients)
    });
    let mut clients = runtime.block_on(grpc_slice(clients, WARM_UP)).1;

    let (mut bare_rates, mut grpc_rates) = (Vec::new(), Vec::new());
    let start = Instant::now();
    while start.elapsed().as_secs_f64() < seconds || bare_rates.len() < 3 {
        bare_rates.push(bare.slice(processors));
        let (through, returned) = runtime.block_on(grpc_slice(clients, SLICE));
        clients = returned;
        grpc_rates.push(through);
    }
    let issued = runtime.block_on(async {
        let now = SystemClock.now();
        let store = server.context().store.clone();
        use bonafide_server::store::Issuance as _;
        store.write(move |unit| unit.issued(now, 100)).await.expect("inventory").len()
    });
    assert!(issued >= 100, "the inventory holds only {issued} of what was issued");
    runtime.block_on(server.stop()).expect("the server stops");
    let audited = std::fs::metadata(folder.path().join("audit.log")).expect("audit log").len();
    assert!(audited > 0, "nothing was audited");

    println!("processors: {processors}, pairs of slices: {}", bare_rates.len());
    for (per, pick) in
        [("second", (|rate| rate.wall) as fn(&Rate) -> f64), ("processor second", |rate| rate.cpu)]
    {
        let of = |rates: &[Rate]| median(rates.iter().map(pick).collect());
        let ratio =
            median(grpc_rates.iter().zip(&bare_rates).map(|(grpc, bare)| pick(grpc) / pick(bare)).collect());
        println!("bare verify+sign:   {:>8.0} per {per}", of(&bare_rates));
        println!("mutual TLS, by 100: {:>8.0} per {per}, persisted and audited", of(&grpc_rates));
        println!("ratio:              {ratio:>8.3} (at least {LEAST_RATIO})");
        assert!(
            trial || ratio >= LEAST_RATIO,
            "too much beside the cryptography: {ratio:.3} < {LEAST_RATIO}"
        );
    }
}

/// How fast something went.
struct Rate {
    /// Per second.
    wall: f64,
    /// Per second of processor time of this process.
    cpu: f64,
}

/// Measures from its making on.
struct Stopwatch {
    wall: Instant,
    cpu: f64,
}

impl Stopwatch {
    fn start() -> Self {
        Self { wall: Instant::now(), cpu: process_seconds() }
    }

    fn rate(&self, count: f64) -> Rate {
        Rate { wall: count / self.wall.elapsed().as_secs_f64(), cpu: count / (process_seconds() - self.cpu) }
    }
}

fn process_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Nothing but the signatures.
struct Bare {
    workload: PrivateKey,
    authority: PrivateKey,
    request: Vec<u8>,
    request_signature: Vec<u8>,
    certificate: Vec<u8>,
}

impl Bare {
    fn new() -> Self {
        let workload = PrivateKey::generate(KeyType::EcP256).expect("key");
        let authority = PrivateKey::generate(KeyType::EcP256).expect("key");
        // As long as what is signed in a CSR and in a leaf certificate; the content does not matter.
        let request = vec![7; 160];
        let request_signature = workload.sign(&request).expect("signature");
        Self { workload, authority, request, request_signature, certificate: vec![9; 420] }
    }

    fn once(&self) -> Vec<u8> {
        let key = self.workload.public_key();
        assert!(key.verify(VerificationAlgorithm::EcdsaSha256, &self.request, &self.request_signature));
        self.authority.sign(&self.certificate).expect("signature")
    }

    /// Rate of so many threads together.
    fn slice(&self, threads: usize) -> Rate {
        let stop = AtomicBool::new(false);
        let count = AtomicU64::new(0);
        let watch = Stopwatch::start();
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        for _ in 0..16 {
                            black_box(self.once());
                        }
                        count.fetch_add(16, Ordering::Relaxed);
                    }
                });
            }
            std::thread::sleep(SLICE);
            stop.store(true, Ordering::Relaxed);
        });
        watch.rate(count.load(Ordering::Relaxed) as f64)
    }
}

/// An agent's connection with a request that is ready to be sent.
struct Client {
    inner: SvidClient<Channel>,
    request: BatchNewX509svidRequest,
}

impl Client {
    async fn new(server: &RunningServer, number: usize) -> Self {
        let context = server.context();
        let now = context.clock.now();
        let id = context.td.agent_id(&format!("bench/{number}")).expect("valid");
        let key = PrivateKey::generate(KeyType::EcP256).expect("key");
        let signed = context.issuing.issue_agent_x509(&id, key.public_key(), now).expect("agent SVID");
        let node = node(&id, &signed.chain[0], now);
        let (agent, parent) = (id.clone(), id);
        let params = (0..BATCH)
            .map(|item| NewX509svidParams {
                entry_id: format!("{number}-{item}"),
                csr: agent_csr(&PrivateKey::generate(KeyType::EcP256).expect("key"), None).expect("CSR"),
            })
            .collect::<Vec<_>>();
        let entries: Vec<_> = params.iter().map(|item| entry(&item.entry_id, &parent, now)).collect();
        context
            .store
            .write(move |unit| {
                unit.node_put(node)?;
                entries.into_iter().try_for_each(|entry| unit.entry_create(entry).map(drop))
            })
            .await
            .unwrap_or_else(|error| panic!("entries of {agent}: {error}"));
        let svid = Svid::new(signed.chain, Arc::new(key)).expect("SVID");
        let inner = SvidClient::new(connect(server, svid).await);
        Self { inner, request: BatchNewX509svidRequest { params } }
    }

    async fn batch(&mut self) {
        let response = self.inner.batch_new_x509svid(self.request.clone()).await.expect("batch").into_inner();
        assert_eq!(response.results.len(), BATCH);
        for result in &response.results {
            assert!(result.svid.is_some(), "{:?}", result.status);
        }
    }
}

async fn connect(server: &RunningServer, svid: Svid) -> Channel {
    let context = server.context();
    let bundle = context.state.bundle(&context.td).expect("own bundle");
    let roots = bundle.x509_authorities.iter().map(|root| root.certificate.as_slice());
    let trust = TrustStore::empty();
    trust.set_trust_domain(&context.td, &Arc::new(TrustRoots::from_der(roots).expect("roots")));
    let peer = PeerCheck::ServerId(context.td.server_id());
    let tls = client_config(Some(SvidHolder::new(svid)), trust, peer, Arc::new(|| SystemClock.now()));
    let address = server.address();
    let dial = move |_: http::Uri| {
        let tls = tls.clone();
        async move {
            let tcp = TcpStream::connect(address).await?;
            tcp.set_nodelay(true)?;
            TlsConnector::from(tls).connect(server_name(), tcp).await.map(TokioIo::new)
        }
    };
    let endpoint = Endpoint::from_static("http://server");
    endpoint.connect_with_connector(tower::service_fn(dial)).await.expect("connection")
}

async fn start(folder: &Path) -> RunningServer {
    let text = format!(
        "trust_domain = \"bench.example\"\ndata_dir = {folder:?}\n\
         [listen]\naddress = \"127.0.0.1:0\"\nadmin_socket = {:?}\n\
         [ratelimit]\nattestation = 0\nsigning = 0\n",
        folder.join("api.sock")
    );
    let config = Config::parse(&text, Path::new("bench.toml")).expect("configuration");
    let log = init_logging(LogConfig { level: LogLevel::Warn, ..LogConfig::default() }).expect("log");
    Server::start(config, Environment::system(log)).await.expect("server")
}

/// SVIDs in each second that the clients got together, and the clients.
async fn grpc_slice(clients: Vec<Client>, length: Duration) -> (Rate, Vec<Client>) {
    let watch = Stopwatch::start();
    let start = watch.wall;
    let tasks: Vec<_> = clients
        .into_iter()
        .map(|mut client| {
            tokio::spawn(async move {
                let mut batches = 0_usize;
                while start.elapsed() < length {
                    client.batch().await;
                    batches += 1;
                }
                (client, batches)
            })
        })
        .collect();
    let (mut clients, mut batches) = (Vec::new(), 0);
    for task in tasks {
        let (client, done) = task.await.expect("client");
        clients.push(client);
        batches += done;
    }
    (watch.rate((batches * BATCH) as f64), clients)
}

fn node(id: &SpiffeId, leaf: &[u8], now: Timestamp) -> AttestedNode {
    AttestedNode {
        id: id.clone(),
        attestation_type: "join_token".to_owned(),
        serial: Some(inspect(leaf).expect("leaf").serial),
        not_after: now.saturating_add(Duration::from_secs(3600)),
        new_serial: None,
        new_not_after: Timestamp::from_unix_seconds(0),
        selectors: SelectorSet::empty(),
        can_reattest: false,
        agent_version: String::new(),
        evidence_until: None,
    }
}

fn entry(entry_id: &str, parent: &SpiffeId, now: Timestamp) -> Entry {
    let path = format!("/workload/{entry_id}");
    Entry {
        id: EntryId::parse(entry_id).expect("valid"),
        spiffe_id: SpiffeId::from_parts(parent.trust_domain().clone(), &path).expect("valid"),
        parent_id: parent.clone(),
        selectors: std::iter::once(Selector::new("unix", "uid:1000").expect("valid")).collect(),
        x509_svid_ttl: 0,
        jwt_svid_ttl: 0,
        federates_with: Box::default(),
        admin: false,
        downstream: false,
        expires_at: None,
        dns_names: Box::default(),
        revision: 0,
        created_at: now,
        store_svid: false,
        hint: "".into(),
        disable_x509_svid_prefetch: false,
        jwt_svid_include_jti: false,
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

const LEAST_RATIO: f64 = 0.60;
const BATCH: usize = 100;
const SLICE: Duration = Duration::from_millis(500);
const WARM_UP: Duration = Duration::from_secs(1);
