//! What an agent is entitled to among a million entries, right after one of them changed; and what they all weigh.
//!
//! Fails when the 99th percentile of a lookup is not below 100 µs, or the process does not stay below 1 GiB.
//! `BONAFIDE_BENCH_ENTRIES`, `BONAFIDE_BENCH_AGENTS` and `BONAFIDE_BENCH_LOOKUPS` set the sizes.

use bonafide_identity::{
    Entry, EntryId, EntryIndex, Selector, SelectorSet, SpiffeId, Timestamp, TrustDomain,
};
use std::{
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

const LOOKUP_LIMIT: Duration = Duration::from_micros(100);
const MEMORY_LIMIT: usize = 1 << 30;
/// Agents that one alias stands for, and entries below each alias.
const GROUP: usize = 100;

fn main() {
    // Cargo passes `--bench` when it measures; otherwise it only wants to see that this runs.
    let measured = std::env::args().any(|argument| argument == "--bench");
    let setting = |name: &str, default: usize| match std::env::var(name) {
        Ok(value) => value.parse().unwrap_or_else(|_| panic!("{name}={value} is not a number")),
        Err(_) => default,
    };
    let entries = setting("BONAFIDE_BENCH_ENTRIES", if measured { 1_000_000 } else { 10_000 });
    let agents = setting("BONAFIDE_BENCH_AGENTS", if measured { 10_000 } else { 100 });
    let lookups = setting("BONAFIDE_BENCH_LOOKUPS", if measured { 20_000 } else { 200 });

    let fleet = Fleet { trust_domain: TrustDomain::parse("example.org").expect("valid"), agents };
    let before = resident_bytes();
    let mut putting = Duration::ZERO;
    let mut index = EntryIndex::new(fleet.trust_domain.clone());
    index.reserve(entries);
    let load = |index: &mut EntryIndex, entry| timed(|| index.put(Arc::new(entry))).0;
    for n in 0..entries {
        putting += load(&mut index, fleet.entry(n));
    }
    for group in 0..agents.div_ceil(GROUP) {
        putting += load(&mut index, fleet.alias(group));
        for n in 0..10 {
            putting += load(&mut index, fleet.below_alias(group, n));
        }
    }
    let resident = resident_bytes();
    println!(
        "{} entries, {agents} agents: put in {putting:.1?}, {} MiB ({} bytes per entry)",
        index.len(),
        resident >> 20,
        resident.saturating_sub(before) / index.len().max(1),
    );

    let mut changes = Vec::with_capacity(lookups);
    let mut found = 0;
    let mut all = Vec::with_capacity(lookups);
    let mut one = Vec::with_capacity(lookups);
    for round in 0..lookups {
        let changed = spread(round, 1) % entries;
        let mut entry = fleet.entry(changed);
        entry.revision = 1 + round as i64;
        let entry = Arc::new(entry);
        changes.push(timed(|| index.put(entry)).0);

        let agent = spread(round, 2) % agents;
        let (id, node) = (fleet.agent(agent), fleet.node_selectors(agent));
        let (took, authorized) = timed(|| index.authorized(&id, &node));
        all.push(took);
        found += authorized.len();

        let wanted = fleet.entry(changed).id;
        let holder = changed % agents;
        let (id, node) = (fleet.agent(holder), fleet.node_selectors(holder));
        let (took, allowed) = timed(|| index.authorized_entry(&id, &node, &wanted));
        one.push(took);
        assert_eq!(allowed.map(|entry| entry.revision), Some(1 + round as i64), "the change must be seen");
    }
    let shares = entries / agents.max(1) + 10;
    println!("an agent is entitled to {} entries on average", found / lookups.max(1));
    assert!(found / lookups.max(1) >= shares - 10, "agents must get their entries");
    print("put of a changed entry", &mut changes);
    let p99 = print("authorized", &mut all);
    print("authorized_entry", &mut one);
    let resident = resident_bytes();
    println!("resident at the end: {} MiB", resident >> 20);

    if measured {
        assert!(
            p99 < LOOKUP_LIMIT,
            "authorized takes {p99:?} at the 99th percentile, limit {LOOKUP_LIMIT:?}"
        );
        assert!(resident < MEMORY_LIMIT, "{} MiB resident, limit {} MiB", resident >> 20, MEMORY_LIMIT >> 20);
    }
}

/// A made-up fleet: each entry is a function of its number, so that nothing but the index itself takes memory.
struct Fleet {
    trust_domain: TrustDomain,
    agents: usize,
}

impl Fleet {
    fn agent(&self, n: usize) -> SpiffeId {
        self.id(&format!("/spire/agent/k8s_psat/production/{}", uuid(n, 3)))
    }

    fn node_selectors(&self, agent: usize) -> SelectorSet {
        selectors([
            "k8s_psat:cluster:production".into(),
            format!("k8s_psat:agent_node_label:group:{}", agent / GROUP),
            format!("k8s_psat:agent_node_name:node-{agent}"),
            format!("k8s_psat:agent_node_uid:{}", uuid(agent, 3)),
        ])
    }

    fn entry(&self, n: usize) -> Entry {
        let team = n % 500;
        Entry {
            id: EntryId::parse(&uuid(n, 4).to_string()).expect("valid"),
            spiffe_id: self.id(&format!("/ns/team-{team}/sa/service-{n}")),
            parent_id: self.agent(n % self.agents),
            selectors: selectors([format!("k8s:ns:team-{team}"), format!("k8s:sa:service-{n}")]),
            x509_svid_ttl: 0,
            jwt_svid_ttl: 0,
            federates_with: [].into(),
            admin: false,
            downstream: false,
            expires_at: None,
            dns_names: [].into(),
            revision: 0,
            created_at: Timestamp::from_unix_seconds(1_767_225_600),
            store_svid: false,
            hint: "".into(),
            disable_x509_svid_prefetch: false,
            jwt_svid_include_jti: false,
        }
    }

    fn alias(&self, group: usize) -> Entry {
        let mut alias = self.entry(group);
        alias.id = EntryId::parse(&format!("alias-{group}")).expect("valid");
        alias.spiffe_id = self.id(&format!("/group/{group}"));
        alias.parent_id = self.trust_domain.server_id();
        alias.selectors = selectors([
            "k8s_psat:cluster:production".into(),
            format!("k8s_psat:agent_node_label:group:{group}"),
        ]);
        alias
    }

    fn below_alias(&self, group: usize, n: usize) -> Entry {
        let mut entry = self.entry(group);
        entry.id = EntryId::parse(&format!("group-{group}-{n}")).expect("valid");
        entry.spiffe_id = self.id(&format!("/daemon/{n}"));
        entry.parent_id = self.id(&format!("/group/{group}"));
        entry
    }

    fn id(&self, path: &str) -> SpiffeId {
        // Parsed from scratch, as by a loader that does not care: the index does the sharing.
        SpiffeId::parse(&format!("spiffe://{}{path}", self.trust_domain)).expect("valid")
    }
}

fn selectors<const N: usize>(texts: [String; N]) -> SelectorSet {
    texts.iter().map(|text| Selector::parse(text).expect("valid")).collect()
}

fn uuid(n: usize, salt: usize) -> EntryId {
    let half = |salt| (spread(n, salt) as u64).to_be_bytes();
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&half(salt));
    bytes[8..].copy_from_slice(&half(salt + 100));
    EntryId::from_random(bytes)
}

/// A number that looks random, the same for the same arguments.
fn spread(n: usize, salt: usize) -> usize {
    let mut mixed = (n as u64).wrapping_add((salt as u64) << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 31)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    (mixed ^ (mixed >> 32)) as usize
}

fn timed<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let start = Instant::now();
    let result = black_box(work());
    (start.elapsed(), result)
}

/// Prints the distribution and returns its 99th percentile.
fn print(what: &str, times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    let at = |percent: usize| times.get(times.len() * percent / 100).copied().unwrap_or_default();
    let micros = |time: Duration| time.as_nanos() as f64 / 1000.0;
    println!("{what}: p50 {:.1} µs, p99 {:.1} µs", micros(at(50)), micros(at(99)));
    at(99)
}

/// What the process has in memory, from the second field of `/proc/self/statm` (pages).
fn resident_bytes() -> usize {
    const PAGE: usize = 4096;
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap_or(0) * PAGE
}
