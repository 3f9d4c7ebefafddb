//! What the daemons weigh and how fast a cached SVID is handed out, measured on the real programs.
//!
//! Asserted: an empty server below 30 MiB, an idle agent below 20 MiB and with 500 SVIDs below 25 MiB of resident
//! memory; the 99th percentile of a cached X.509-SVID fetch on an open connection below 1 ms. Latency on a shared
//! machine is noisy, so it is measured in rounds and the best round counts; a bare echo over a Unix socket in the
//! same round says what the machine could do at that moment.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on says why by panicking")]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream as StdStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bonafide_proto::workload as api;
use bonafide_proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use bonafide_tests::{Deployment, Settings, eventually, setting};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::metadata::MetadataValue;
use tonic::transport::{Endpoint, Uri};
use tower::service_fn;

const SOON: Duration = Duration::from_secs(60);
const FETCHES: usize = 2_000;
const MANY: usize = 500;

fn main() {
    // `cargo bench` passes its own flags, and `cargo test` runs benches with none: there is nothing to do then.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let deployment = Deployment::start(Settings::default()).unwrap();
    let (server, agent) = deployment.pids();
    let (server, agent) = (server.unwrap(), agent.unwrap());
    std::thread::sleep(Duration::from_secs(3));
    let idle = resident(agent);
    let empty = resident(server);
    println!("server, empty: {empty:.1} MiB resident (limit 30)");
    println!("agent, idle: {idle:.1} MiB resident (limit 20)");

    let uid = format!("unix:uid:{}", rustix::process::getuid().as_raw());
    deployment.register("/bench", &uid).unwrap();
    eventually("an SVID", SOON, || deployment.cli(&["fetch", "x509"])).unwrap();
    let (best, bare) = latency(deployment.workload_socket());
    println!(
        "cached fetch on an open connection: p99 {:.0} µs (limit 1,000); bare echo over a Unix socket: p99 {:.0} µs",
        best.as_secs_f64() * 1e6,
        bare.as_secs_f64() * 1e6
    );

    register_many(&deployment);
    eventually("500 SVIDs", SOON, || {
        let fetched = deployment.cli(&["fetch", "x509"])?;
        let count = fetched["svids"].as_array().map_or(0, Vec::len);
        if count == MANY + 1 { Ok(()) } else { Err(format!("{count} SVIDs")) }
    })
    .unwrap();
    let full = resident(agent);
    println!("agent, {MANY} SVIDs: {full:.1} MiB resident (limit 25)");

    assert!(empty < 30.0, "the empty server takes {empty:.1} MiB");
    assert!(idle < 20.0, "the idle agent takes {idle:.1} MiB");
    assert!(full < 25.0, "the agent with {MANY} SVIDs takes {full:.1} MiB");
    assert!(best < Duration::from_millis(1), "a cached fetch takes {best:?} at the 99th percentile");
}

/// Resident memory of a process in MiB.
fn resident(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}

fn register_many(deployment: &Deployment) {
    let parent = deployment.agent_id().unwrap();
    let uid = rustix::process::getuid().as_raw();
    let entries: Vec<_> = (0..MANY)
        .map(|index| {
            serde_json::json!({
                "spiffe_id": format!("spiffe://example.org/many/{index}"),
                "parent_id": parent,
                "selectors": [{ "type": "unix", "value": format!("uid:{uid}") }],
            })
        })
        .collect();
    let file = deployment.folder().join("many.json");
    fs::write(&file, serde_json::json!({ "entries": entries }).to_string()).unwrap();
    deployment.cli(&["entry", "import", file.to_str().unwrap()]).unwrap();
}

/// The best round's 99th percentile of a fetch, and that of a bare echo in the same round.
fn latency(socket: PathBuf) -> (Duration, Duration) {
    let rounds = setting("BONAFIDE_BENCH_SECONDS", 2).max(1) * 2;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut client = runtime.block_on(async {
        let channel = Endpoint::from_static("http://localhost")
            .connect_with_connector(service_fn(move |_: Uri| {
                let socket = socket.clone();
                async move { UnixStream::connect(socket).await.map(TokioIo::new) }
            }))
            .await
            .unwrap();
        SpiffeWorkloadApiClient::new(channel)
    });
    (0..rounds)
        .map(|_| {
            let fetch = percentile_99(|| {
                runtime.block_on(async {
                    let mut request = tonic::Request::new(api::X509svidRequest {});
                    request.metadata_mut().insert("workload.spiffe.io", MetadataValue::from_static("true"));
                    let mut stream = client.fetch_x509svid(request).await.unwrap().into_inner();
                    assert_eq!(stream.message().await.unwrap().unwrap().svids.len(), 1);
                });
            });
            (fetch, bare_echo())
        })
        .min()
        .unwrap()
}

fn bare_echo() -> Duration {
    let (mut near, mut far) = StdStream::pair().unwrap();
    let echo = std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while far.read_exact(&mut buffer).is_ok() {
            far.write_all(&buffer).unwrap();
        }
    });
    let mut buffer = [0; 64];
    let p99 = percentile_99(|| {
        near.write_all(&buffer).unwrap();
        near.read_exact(&mut buffer).unwrap();
    });
    drop(near);
    echo.join().unwrap();
    p99
}

fn percentile_99(mut once: impl FnMut()) -> Duration {
    let mut times: Vec<Duration> = (0..FETCHES)
        .map(|_| {
            let start = Instant::now();
            once();
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[FETCHES * 99 / 100]
}
