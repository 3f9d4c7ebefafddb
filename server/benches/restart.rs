//! How long a server with many entries takes to open its store, and what that costs in memory.
//!
//! `BONAFIDE_BENCH_ENTRIES` is the number of entries, 50,000 unless told; the promise is for 500,000 on sled: less than
//! five seconds. The opening runs in a process of its own, so that its memory is that of a server just started; the
//! files are in the system's cache, as they are when a server is restarted.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use bonafide_identity::{Entry, EntryId, Selector, SpiffeId, Timestamp, TrustDomain};
use bonafide_runtime::clock::SystemClock;
use bonafide_server::store::{DriverKind, Entries, Issuance, IssuedSvid, Store, StoreConfig, SvidKind};

const PROMISED_ENTRIES: f64 = 500_000.0;
const PROMISED_SECONDS: f64 = 5.0;
const OPEN: &str = "BONAFIDE_BENCH_OPEN";

fn main() {
    if let Some(order) = std::env::var_os(OPEN) {
        let order = order.into_string().expect("a plain name");
        let (driver, folder) = order.split_once(' ').expect("driver and folder");
        return open(driver.parse().expect("a driver"), Path::new(folder));
    }
    let entries =
        std::env::var("BONAFIDE_BENCH_ENTRIES").map_or(50_000, |text| text.parse().expect("a number"));
    for driver in [DriverKind::Sled, DriverKind::Redb] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fill(driver, folder.path(), entries);
        let output = Command::new(std::env::current_exe().expect("this program"))
            .env(OPEN, format!("{driver} {}", folder.path().display()))
            .output()
            .expect("running this program");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        print!("{text}");
        let seconds: f64 = text
            .split_whitespace()
            .skip_while(|word| *word != "opened_in")
            .nth(1)
            .and_then(|word| word.parse().ok())
            .expect("the child says how long it took");
        let for_all = seconds * (PROMISED_ENTRIES / entries as f64).max(1.0);
        println!("{driver}: {seconds:.2} s for {entries} entries, {for_all:.2} s for 500,000 at that rate");
        if driver == DriverKind::Sled {
            assert!(
                for_all < PROMISED_SECONDS,
                "restarting takes {for_all:.2} s, promised are {PROMISED_SECONDS}"
            );
        }
    }
}

fn config(driver: DriverKind, folder: &Path) -> StoreConfig {
    StoreConfig {
        driver,
        path: folder.join("store"),
        cache_bytes: StoreConfig::DEFAULT_CACHE_BYTES,
        trust_domain: TrustDomain::parse("bench.example").expect("a name"),
        postgres: None,
    }
}

fn fill(driver: DriverKind, folder: &Path, entries: usize) {
    const PART: usize = 1000;
    let (store, _) = Store::open(config(driver, folder), SystemClock::shared()).expect("opening");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let start = Instant::now();
    runtime.block_on(async {
        for first in (0..entries).step_by(PART) {
            let part = first..(first + PART).min(entries);
            let issued: Vec<_> = part.clone().step_by(10).map(svid).collect();
            store
                .write(move |unit| {
                    for n in part {
                        unit.entry_create(entry(n))?;
                    }
                    unit.record_issued(&issued)
                })
                .await
                .expect("writing");
        }
        let size = store.size().await.expect("the size") >> 20;
        println!("{driver}: {entries} entries written in {:.1} s, {size} MiB", start.elapsed().as_secs_f64());
        store.close().await;
    });
    println!("{driver}: filling took {} MiB at most", status("VmHWM"));
}

fn open(driver: DriverKind, folder: &Path) {
    let (store, found) = Store::open(config(driver, folder), SystemClock::shared()).expect("opening");
    println!(
        "{driver}: opened_in {:.3} s, {} entries, {} MiB resident, {} MiB at most",
        found.elapsed.as_secs_f64(),
        found.entries,
        status("VmRSS"),
        status("VmHWM"),
    );
    assert_eq!(store.state().entries().len(), found.entries);
}

/// A hundred entries per agent, every one with an identity of its own.
fn entry(n: usize) -> Entry {
    let selectors = [format!("k8s:pod-label:app:service-{}", n % 5000), format!("k8s:ns:team-{}", n % 300)];
    Entry {
        id: entry_id(n),
        spiffe_id: id(&format!("/ns/team-{}/sa/service-{n}", n % 300)),
        parent_id: id(&format!("/spire/agent/k8s_psat/cluster/{:036x}", n / 100)),
        selectors: selectors.iter().map(|text| Selector::parse(text).expect("a selector")).collect(),
        x509_svid_ttl: 3600,
        jwt_svid_ttl: 300,
        federates_with: Box::default(),
        admin: false,
        downstream: false,
        expires_at: None,
        dns_names: Box::new([format!("service-{n}.team.svc").parse().expect("a DNS name")]),
        revision: 0,
        created_at: Timestamp::from_unix_seconds(1_750_000_000),
        store_svid: false,
        hint: Box::default(),
        disable_x509_svid_prefetch: false,
        jwt_svid_include_jti: false,
    }
}

fn svid(n: usize) -> IssuedSvid {
    IssuedSvid {
        kind: SvidKind::WorkloadX509,
        spiffe_id: id(&format!("/ns/team-{}/sa/service-{n}", n % 300)),
        entry_id: Some(entry_id(n)),
        serial: format!("{}", u128::MAX - n as u128),
        not_after: Timestamp::from_unix_seconds(1_750_000_000 + n as i64),
        authority_id: "0123456789abcdef0123456789abcdef01234567".into(),
    }
}

fn entry_id(n: usize) -> EntryId {
    let mixed = (n as u128 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
    EntryId::from_random(mixed.to_be_bytes())
}

fn id(path: &str) -> SpiffeId {
    SpiffeId::from_parts(TrustDomain::parse("bench.example").expect("a name"), path).expect("a path")
}

/// A line of `/proc/self/status`, in MiB.
fn status(name: &str) -> u64 {
    let status =
        std::fs::read_to_string(PathBuf::from("/proc/self/status")).expect("the status of this process");
    let line = status.lines().find(|line| line.starts_with(name)).expect("a known line");
    line.split_whitespace().nth(1).and_then(|text| text.parse::<u64>().ok()).expect("a number") >> 10
}
