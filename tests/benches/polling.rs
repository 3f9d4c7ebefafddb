//! What the polling of agents costs the server, measured on the real program.
//!
//! A thousand agents with a hundred entries each poll as SPIRE's agents do: mutual TLS, one connection each, one
//! `SyncAuthorizedEntries` stream for each pass. Counted is the processor time of the server's process, from `/proc`,
//! so neither the clients nor other work on the machine are part of it. Slices of two kinds of calls alternate: passes,
//! and calls of a method that does not exist, which cost what every call costs (TLS, HTTP/2, a reply) and nothing more.
//!
//! Asserted: no pass reads the store, and a pass costs at most [`MOST`] such calls.
//!
//! `BONAFIDE_BENCH_TARGET=<admin socket>,<address>,<pid>` measures another server with the same API, without asserting
//! anything. `BONAFIDE_BENCH_AGENTS` and `BONAFIDE_BENCH_EACH` change the numbers.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on says why by panicking")]

use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bonafide_tests::load::{Agent, Target};
use bonafide_tests::usage::{metric, processor_seconds};
use bonafide_tests::{Deployment, Settings, setting};
use tokio::task::JoinSet;

/// So many empty calls may a pass cost that brings a hundred entries.
const MOST: f64 = 7.0;
/// Calls at once; on few threads, so that the clients leave the server its processor.
const AT_ONCE: usize = 16;
/// Slices of each kind.
const SLICES: usize = 4;
const READS: &str = "bonafide_server_store_reads_total";

fn main() {
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let (agents, each) = (count("BONAFIDE_BENCH_AGENTS", 1000), count("BONAFIDE_BENCH_EACH", 100));
    let slice = Duration::from_secs(setting("BONAFIDE_BENCH_SECONDS", 2).max(1));
    let foreign = std::env::var("BONAFIDE_BENCH_TARGET").ok();
    let (server, deployment) = match &foreign {
        Some(text) => (Server::named(text), None),
        None => {
            let (server, deployment) = Server::own();
            (server, Some(deployment))
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let costs = runtime.block_on(measure(&server, agents, each, slice));
    drop(deployment);

    let Costs { idle, first, pass, nothing, reads } = costs;
    println!("{agents} agents with {each} entries each; processor time of the server:");
    println!("idle:        {:>9.1} ms each second", idle * 1e3);
    for (name, cost) in [("first pass", first), ("pass", pass), ("empty call", nothing)] {
        println!(
            "{name:<12} {:>9.1} µs, {:>8.0} each processor second; {:>8.0} with what runs beside",
            cost.own * 1e6,
            1.0 / cost.own,
            1.0 / cost.all
        );
    }
    let ratio = pass.own / nothing.own;
    println!("a pass costs {ratio:.2} empty calls (at most {MOST}); store reads: {reads:?}");
    if foreign.is_none() {
        assert_eq!(reads, Some(0.0), "passes have read the store");
        assert!(each != 100 || ratio <= MOST, "a pass costs {ratio:.2} empty calls, more than {MOST}");
    }
}

fn count(name: &str, default: u64) -> usize {
    usize::try_from(setting(name, default)).unwrap()
}

struct Server {
    socket: PathBuf,
    address: String,
    pid: u32,
    /// Where its metrics are, if it is ours.
    health: Option<String>,
}

impl Server {
    fn named(text: &str) -> Self {
        let parts: Vec<_> = text.split(',').collect();
        let [socket, address, pid] = parts[..] else {
            panic!("BONAFIDE_BENCH_TARGET must be <admin socket>,<address>,<pid>, not {text:?}");
        };
        let (socket, address, pid) = (socket.into(), address.to_owned(), pid.parse().unwrap());
        Self { socket, address, pid, health: None }
    }

    fn own() -> (Self, Deployment) {
        let health = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).unwrap();
        let mut deployment = Deployment::prepare(Settings {
            listen_extra: format!("health_address = \"{health}\"\n"),
            agent_ttl: "1h".to_owned(),
            ..Settings::default()
        })
        .unwrap();
        deployment.start_server().unwrap();
        let server = Self {
            socket: deployment.server_socket(),
            address: format!("127.0.0.1:{}", deployment.port()),
            pid: deployment.pids().0.unwrap(),
            health: Some(health.to_string()),
        };
        (server, deployment)
    }

    fn reads(&self) -> Option<f64> {
        self.health.as_ref().map(|address| metric(address, READS).unwrap())
    }
}

struct Costs {
    /// Processor seconds each second while nobody calls.
    idle: f64,
    first: Cost,
    pass: Cost,
    nothing: Cost,
    /// Reads of the store by all passes, where the server tells.
    reads: Option<f64>,
}

/// Processor seconds for one call.
#[derive(Clone, Copy, Default)]
struct Cost {
    /// Without what the server does anyway.
    own: f64,
    /// With it.
    all: f64,
}

async fn measure(server: &Server, agents: usize, each: usize, slice: Duration) -> Costs {
    let begin = Instant::now();
    let target = Target::new(&server.socket, &server.address).await.unwrap();
    let mut attesting: JoinSet<Result<Agent, String>> = JoinSet::new();
    let mut attested = Vec::with_capacity(agents);
    for _ in 0..agents {
        if attesting.len() == AT_ONCE {
            attested.push(attesting.join_next().await.unwrap().unwrap().unwrap());
        }
        let target = target.clone();
        attesting.spawn(async move { target.attest().await });
    }
    while let Some(agent) = attesting.join_next().await {
        attested.push(agent.unwrap().unwrap());
    }
    target.register(&attested, each).await.unwrap();
    println!("set up in {:.1} s", begin.elapsed().as_secs_f64());
    // A server with a cache that is built anew now and then may need a moment until it shows everything.
    let mut last = attested.last().unwrap().clone();
    for _ in 0..300 {
        if last.pass().await.unwrap().entries == each {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let reads = server.reads();
    let (before, begin) = (processor_seconds(server.pid), Instant::now());
    // Long enough for one of whatever happens every few seconds.
    tokio::time::sleep(IDLE.max(slice)).await;
    let idle = (processor_seconds(server.pid) - before) / begin.elapsed().as_secs_f64();

    let agents: Arc<[tokio::sync::Mutex<Agent>]> =
        attested.into_iter().map(tokio::sync::Mutex::new).collect();
    let first = run(server, &agents, idle, Until::Each, Kind::Pass(each)).await;
    run(server, &agents, idle, Until::Over(Duration::from_millis(500)), Kind::Nothing).await;
    let (mut passes, mut nothings) = (Vec::new(), Vec::new());
    for _ in 0..SLICES {
        nothings.push(run(server, &agents, idle, Until::Over(slice / 2), Kind::Nothing).await);
        passes.push(run(server, &agents, idle, Until::Over(slice), Kind::Pass(each)).await);
    }
    let reads = reads.and_then(|before| Some(server.reads()? - before));
    Costs { idle, first, pass: median(passes), nothing: median(nothings), reads }
}

#[derive(Clone, Copy)]
enum Until {
    /// Each agent has called once.
    Each,
    /// So much time is over.
    Over(Duration),
}

#[derive(Clone, Copy)]
enum Kind {
    /// With so many entries.
    Pass(usize),
    Nothing,
}

/// Calls of one kind by all agents in turn.
async fn run(
    server: &Server,
    agents: &Arc<[tokio::sync::Mutex<Agent>]>,
    idle: f64,
    until: Until,
    kind: Kind,
) -> Cost {
    let next = Arc::new(AtomicUsize::new(0));
    let (before, begin) = (processor_seconds(server.pid), Instant::now());
    let mut callers = JoinSet::new();
    for _ in 0..AT_ONCE {
        let (agents, next) = (agents.clone(), next.clone());
        callers.spawn(async move {
            let mut calls = 0_usize;
            loop {
                let turn = next.fetch_add(1, Ordering::Relaxed);
                let over = match until {
                    Until::Each => turn >= agents.len(),
                    Until::Over(length) => begin.elapsed() >= length,
                };
                if over {
                    return calls;
                }
                let mut agent = agents[turn % agents.len()].lock().await;
                // A connection ends when it is old; what was on its way then goes over the next one.
                let mut again = (0..3).peekable();
                while let Some(_attempt) = again.next() {
                    let called = match kind {
                        Kind::Pass(entries) => {
                            agent.pass().await.map(|pass| assert_eq!(pass.entries, entries, "entries"))
                        }
                        Kind::Nothing => agent.nothing().await,
                    };
                    match called {
                        Ok(()) => break,
                        Err(error) => assert!(again.peek().is_some(), "{error}"),
                    }
                }
                calls += 1;
            }
        });
    }
    let mut calls = 0;
    while let Some(done) = callers.join_next().await {
        calls += done.unwrap();
    }
    let used = processor_seconds(server.pid) - before;
    let own = used - idle * begin.elapsed().as_secs_f64();
    Cost { own: own / calls as f64, all: used / calls as f64 }
}

fn median(mut costs: Vec<Cost>) -> Cost {
    costs.sort_by(|a, b| a.own.total_cmp(&b.own));
    costs[costs.len() / 2]
}

const IDLE: Duration = Duration::from_secs(1);
