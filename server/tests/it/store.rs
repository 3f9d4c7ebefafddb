//! The store: one behaviour over every driver, and what must survive.

mod backup;
mod behaviour;
mod damage;
mod full_disk;
mod group;
mod key_value;
mod kill;
mod power;
mod samples;
mod workload;

use std::path::Path;
use std::sync::Arc;

use bonafide_identity::{
    AttestedNode, Bundle, Entry, EntryId, JoinToken, Selector, SerialNumber, SpiffeId, Timestamp,
    TrustDomain, X509Authority,
};
use bonafide_runtime::clock::SystemClock;
use bonafide_server::store::{
    ConnectionSecret, DriverKind, LoadedState, PostgresConfig, State, Store, StoreConfig, StoreError,
};
use bonafide_testkit::Postgres;

pub(crate) const DRIVERS: [DriverKind; 4] =
    [DriverKind::Memory, DriverKind::Sled, DriverKind::Redb, DriverKind::Postgres];
/// What keeps its content in files of its own.
pub(crate) const ON_DISK: [DriverKind; 2] = [DriverKind::Sled, DriverKind::Redb];
/// What survives the process.
pub(crate) const LASTING: [DriverKind; 3] = [DriverKind::Sled, DriverKind::Redb, DriverKind::Postgres];

pub(crate) fn trust_domain() -> TrustDomain {
    TrustDomain::parse("store.test").unwrap()
}

pub(crate) fn id(path: &str) -> SpiffeId {
    SpiffeId::from_parts(trust_domain(), path).unwrap()
}

pub(crate) fn config(driver: DriverKind, folder: &Path) -> StoreConfig {
    let postgres = (driver == DriverKind::Postgres).then(|| postgres(folder));
    StoreConfig {
        driver,
        path: folder.join("store"),
        cache_bytes: 8 << 20,
        trust_domain: trust_domain(),
        postgres,
    }
}

/// A database for each folder.
pub(crate) fn postgres(folder: &Path) -> PostgresConfig {
    let name: String = folder.to_string_lossy().bytes().map(|byte| format!("{byte:02x}")).collect();
    let name = format!("t{}", &name[name.len().saturating_sub(50)..]);
    at(Postgres::shared().unwrap().database(&name))
}

pub(crate) fn at(connection_string: String) -> PostgresConfig {
    PostgresConfig {
        connection_string: ConnectionSecret::Text(connection_string),
        ca_path: None,
        client_certificate_path: None,
        client_key_path: None,
        timeout: PostgresConfig::DEFAULT_TIMEOUT,
        max_cut_off: PostgresConfig::DEFAULT_MAX_CUT_OFF,
    }
}

/// False, with a line that says so, where the driver needs a program that is not installed.
pub(crate) fn available(driver: DriverKind) -> bool {
    match Postgres::shared() {
        Err(why) if driver == DriverKind::Postgres => {
            skip("the driver postgres", why.as_str());
            false
        }
        _ => true,
    }
}

pub(crate) fn open(driver: DriverKind, folder: &Path) -> Result<(Store, LoadedState), StoreError> {
    Store::open(config(driver, folder), SystemClock::shared())
}

pub(crate) fn entry(name: &str) -> Entry {
    Entry {
        id: EntryId::parse(name).unwrap(),
        spiffe_id: id(&format!("/workload/{name}")),
        parent_id: id("/spire/agent/join_token/node"),
        selectors: ["unix:uid:1000", "unix:path:/bin/true"]
            .map(|text| Selector::parse(text).unwrap())
            .into_iter()
            .collect(),
        x509_svid_ttl: 3600,
        jwt_svid_ttl: 300,
        federates_with: Box::new([TrustDomain::parse("other.test").unwrap()]),
        admin: false,
        downstream: false,
        expires_at: None,
        dns_names: Box::new(["a.example".parse().unwrap()]),
        revision: 0,
        created_at: Timestamp::from_unix_seconds(1_700_000_000),
        store_svid: false,
        hint: "hint".into(),
        disable_x509_svid_prefetch: false,
        jwt_svid_include_jti: true,
    }
}

pub(crate) fn node(name: &str, serial: u128) -> AttestedNode {
    AttestedNode {
        id: id(&format!("/spire/agent/x509pop/{name}")),
        attestation_type: "x509pop".into(),
        serial: Some(SerialNumber::from(serial)),
        not_after: Timestamp::from_unix_seconds(1_800_000_000),
        new_serial: None,
        new_not_after: Timestamp::from_unix_seconds(0),
        selectors: [Selector::parse("x509pop:subject:cn:node").unwrap()].into_iter().collect(),
        can_reattest: true,
        agent_version: "0.1.0".into(),
        evidence_until: Some(Timestamp::from_unix_seconds(1_900_000_000)),
    }
}

pub(crate) fn bundle(name: &str, certificate: Vec<u8>) -> Bundle {
    let mut bundle = Bundle::empty(TrustDomain::parse(name).unwrap());
    bundle.x509_authorities.push(X509Authority { certificate, tainted: false });
    bundle
}

pub(crate) fn token(value: &str) -> JoinToken {
    JoinToken { value: value.into(), expires_at: Timestamp::from_unix_seconds(1_800_000_000), agent_id: None }
}

/// All that a state shows, as text to compare.
pub(crate) fn content(state: &State) -> String {
    let rows = |text: Vec<String>| text.join("\n");
    let entries =
        state.entries_page(0, usize::MAX, |_| true).iter().map(|entry| format!("{entry:?}")).collect();
    let nodes = state.nodes_page(0, usize::MAX, |_| true).iter().map(|node| format!("{node:?}")).collect();
    let bundles = state.bundles_page(0, usize::MAX).iter().map(|bundle| format!("{bundle:?}")).collect();
    let relationships =
        state.relationships_page(0, usize::MAX).iter().map(|found| format!("{found:?}")).collect();
    let changes = format!("{:?}", state.changes_since(state.epoch().saturating_sub(100)));
    [rows(entries), rows(nodes), rows(bundles), rows(relationships), changes].join("\n--\n")
}

/// Runs `body` once per driver, each in a folder of its own.
pub(crate) fn each(drivers: &[DriverKind], body: impl AsyncFn(DriverKind, Arc<tempfile::TempDir>)) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    for driver in drivers.iter().filter(|driver| available(**driver)) {
        eprintln!("driver: {driver}");
        runtime.block_on(body(*driver, Arc::new(tempfile::tempdir().unwrap())));
    }
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

pub(crate) fn skip(name: &str, why: &str) {
    eprintln!("SKIPPED: {name}: {why}");
}

pub(crate) fn setting(name: &str, default: usize) -> usize {
    std::env::var(name)
        .ok()
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text}: not a number")))
}
