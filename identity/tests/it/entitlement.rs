//! The index answers as a plain reading of the rules over a list of entries would.

use bonafide_identity::{
    Entry, EntryId, EntryIndex, Selector, SelectorSet, SpiffeId, Timestamp, TrustDomain,
    drop_duplicate_hints, matching_entries,
};
use proptest::prelude::*;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

fn trust_domain() -> TrustDomain {
    TrustDomain::parse("td").unwrap()
}

fn id(path: &str) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://td{path}")).unwrap()
}

fn set<'a>(texts: impl IntoIterator<Item = &'a str>) -> SelectorSet {
    texts.into_iter().map(|text| Selector::parse(text).unwrap()).collect()
}

fn entry(name: &str, spiffe_id: SpiffeId, parent_id: SpiffeId, selectors: SelectorSet) -> Entry {
    Entry {
        id: EntryId::parse(name).unwrap(),
        spiffe_id,
        parent_id,
        selectors,
        x509_svid_ttl: 0,
        jwt_svid_ttl: 0,
        federates_with: [].into(),
        admin: false,
        downstream: false,
        expires_at: None,
        dns_names: [].into(),
        revision: 0,
        created_at: Timestamp::from_unix_seconds(0),
        store_svid: false,
        hint: "".into(),
        disable_x509_svid_prefetch: false,
        jwt_svid_include_jti: false,
    }
}

fn names(entries: &[Arc<Entry>]) -> Vec<String> {
    entries.iter().map(|entry| entry.id.to_string()).collect()
}

/// The rules, read one after the other over all entries.
struct Naive(BTreeMap<EntryId, Entry>);

impl Naive {
    fn authorized(&self, agent: &SpiffeId, node: &SelectorSet) -> Vec<Entry> {
        let td = trust_domain();
        let local: Vec<_> = self
            .0
            .values()
            .filter(|e| *e.spiffe_id.trust_domain() == td && *e.parent_id.trust_domain() == td)
            .collect();
        let is_alias = |e: &Entry| e.parent_id == td.server_id();
        let mut ids = BTreeSet::from([agent.clone()]);
        ids.extend(
            local
                .iter()
                .filter(|e| is_alias(e) && e.selectors.is_subset_of(node))
                .map(|e| e.spiffe_id.clone()),
        );
        loop {
            let more: Vec<_> = local
                .iter()
                .filter(|e| !is_alias(e) && ids.contains(&e.parent_id) && !ids.contains(&e.spiffe_id))
                .map(|e| e.spiffe_id.clone())
                .collect();
            if more.is_empty() {
                break;
            }
            ids.extend(more);
        }
        local.into_iter().filter(|e| !is_alias(e) && ids.contains(&e.parent_id)).cloned().collect()
    }
}

const PATHS: [&str; 9] = [
    "/spire/agent/x/1",
    "/spire/agent/x/2",
    "/spire/server",
    "/group/1",
    "/group/2",
    "/w/1",
    "/w/2",
    "/w/3",
    "/w/4",
];

fn any_id() -> impl Strategy<Value = SpiffeId> {
    let here = (0..PATHS.len()).prop_map(|n| id(PATHS[n]));
    let there =
        (0..PATHS.len()).prop_map(|n| SpiffeId::parse(&format!("spiffe://other{}", PATHS[n])).unwrap());
    prop_oneof![9 => here, 1 => there]
}

fn any_set(most: usize) -> impl Strategy<Value = SelectorSet> {
    let selector = (0..5u8).prop_map(|n| Selector::new("k", &n.to_string()).unwrap());
    prop::collection::vec(selector, 0..=most).prop_map(|members| members.into_iter().collect())
}

fn any_entry() -> impl Strategy<Value = Entry> {
    let name = prop_oneof![
        (0..12u8).prop_map(|n| format!("e{n}")),
        (0..6u8).prop_map(|n| format!("same-prefix-{n}"))
    ];
    let flags = (any::<bool>(), any::<bool>(), prop::option::of(0..4i64), prop::bool::ANY);
    (name, any_id(), any_id(), any_set(2), flags, any::<i64>()).prop_map(
        |(name, spiffe_id, parent_id, selectors, (admin, downstream, expires, federates), revision)| {
            let mut entry = entry(&name, spiffe_id, parent_id, selectors);
            entry.admin = admin;
            entry.downstream = downstream;
            entry.expires_at = expires.map(Timestamp::from_unix_seconds);
            entry.revision = revision;
            if federates {
                entry.federates_with = [TrustDomain::parse("peer").unwrap()].into();
            }
            entry
        },
    )
}

#[derive(Clone, Debug)]
enum Change {
    Put(Entry),
    Remove(u8),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![4 => any_entry().prop_map(Change::Put), 1 => (0..12u8).prop_map(Change::Remove)]
}

proptest! {
    #[test]
    fn the_index_agrees_with_the_rules(
        changes in prop::collection::vec(change(), 0..60),
        node in any_set(4),
    ) {
        let mut naive = Naive(BTreeMap::new());
        let mut rows: Vec<EntryId> = Vec::new();
        let mut index = EntryIndex::new(trust_domain());
        for change in changes {
            match change {
                Change::Put(entry) => {
                    if !rows.contains(&entry.id) {
                        rows.push(entry.id.clone());
                    }
                    naive.0.insert(entry.id.clone(), entry.clone());
                    index.put(Arc::new(entry));
                }
                Change::Remove(n) => {
                    let id = EntryId::parse(&format!("e{n}")).unwrap();
                    rows.retain(|row| *row != id);
                    let removed = index.remove(&id).map(|entry| (*entry).clone());
                    prop_assert_eq!(removed, naive.0.remove(&id));
                }
            }
        }

        prop_assert_eq!(index.len(), naive.0.len());
        prop_assert_eq!(index.is_empty(), naive.0.is_empty());
        prop_assert_eq!(index.iter().map(|e| e.id.clone()).collect::<Vec<_>>(), rows.clone());
        let numbers: Vec<u64> = index.after_row(0).map(|(row, _)| row).collect();
        prop_assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]));
        if let Some(first) = numbers.first() {
            prop_assert_eq!(index.after_row(*first).count(), index.len() - 1);
        }

        let here = PATHS.map(id);
        let elsewhere = SpiffeId::parse("spiffe://other/spire/agent/x/1").unwrap();
        for agent in here.iter().filter(|agent| !agent.is_server()).chain([&elsewhere]) {
            let expected = naive.authorized(agent, &node);
            let authorized = index.authorized(agent, &node);
            prop_assert_eq!(authorized.iter().map(|e| (**e).clone()).collect::<Vec<_>>(), expected.clone());
            for stored in naive.0.values() {
                let one = index.authorized_entry(agent, &node, &stored.id);
                let is_expected = expected.iter().any(|entry| entry.id == stored.id);
                prop_assert_eq!(one.as_deref(), is_expected.then_some(stored), "{} for {}", stored.id, agent);
            }
        }
        for wanted in here.iter().chain([&elsewhere]) {
            let holders: Vec<_> = naive.0.values().filter(|e| e.spiffe_id == *wanted).cloned().collect();
            prop_assert_eq!(index.by_spiffe_id(wanted).map(|e| (**e).clone()).collect::<Vec<_>>(), holders.clone());
            prop_assert_eq!(index.is_admin(wanted), holders.iter().any(|e| e.admin));
            let downstream: Vec<_> = holders.iter().filter(|e| e.downstream).map(|e| e.id.to_string()).collect();
            prop_assert_eq!(names(&index.downstream(wanted)), downstream);
        }
        let federating: Vec<_> =
            naive.0.values().filter(|e| !e.federates_with.is_empty()).map(|e| e.id.to_string()).collect();
        prop_assert_eq!(names(&index.federating_with(&TrustDomain::parse("peer").unwrap())), federating);
        for now in (0..5).map(Timestamp::from_unix_seconds) {
            let expired: BTreeSet<_> = naive.0.values().filter(|e| e.is_expired(now)).map(|e| e.id.to_string()).collect();
            let found = index.expired(now);
            prop_assert_eq!(found.len(), expired.len());
            prop_assert_eq!(names(&found).into_iter().collect::<BTreeSet<_>>(), expired);
        }
        for stored in naive.0.values() {
            let mut probe = stored.clone();
            probe.id = EntryId::parse("probe").unwrap();
            let similar = index.similar(&probe).expect("it is there");
            prop_assert!(similar.is_similar_to(stored));
            probe.selectors = set(["k:9"]);
            prop_assert_eq!(index.similar(&probe), None);
        }

        // Taking everything out again leaves nothing behind.
        for id in &rows {
            prop_assert!(index.remove(id).is_some());
        }
        for agent in &here {
            prop_assert_eq!(index.authorized(agent, &node), []);
            prop_assert!(!index.is_admin(agent));
            prop_assert_eq!(index.by_spiffe_id(agent).count() + index.by_parent_id(agent).count(), 0);
        }
        prop_assert_eq!(index.expired(Timestamp::from_unix_seconds(i64::MAX / 1000)), []);
    }

    #[test]
    fn hints_have_one_owner(hints in prop::collection::vec((0..3u8, 0..3i64), 0..10)) {
        let entries: Vec<_> = hints
            .iter()
            .enumerate()
            .map(|(n, (hint, created))| {
                let mut entry = entry(&format!("e{n}"), id("/w/1"), id("/spire/agent/x/1"), set(["k:1"]));
                entry.hint = if *hint == 0 { "".into() } else { hint.to_string().into() };
                entry.created_at = Timestamp::from_unix_seconds(*created);
                Arc::new(entry)
            })
            .collect();
        let expected: Vec<_> = entries
            .iter()
            .filter(|e| {
                let rivals = entries.iter().filter(|rival| rival.hint == e.hint);
                let first = rivals.map(|rival| (rival.created_at, &rival.id)).min();
                e.hint.is_empty() || first == Some((e.created_at, &e.id))
            })
            .cloned()
            .collect();
        prop_assert_eq!(drop_duplicate_hints(entries), expected);
    }
}

#[test]
fn an_alias_selects_its_children_and_is_not_returned() {
    let mut index = EntryIndex::new(trust_domain());
    let group = id("/group/1");
    let alias = entry(
        "alias",
        group.clone(),
        trust_domain().server_id(),
        set(["k8s_psat:cluster:c", "k8s_psat:label:gpu"]),
    );
    index.put(Arc::new(alias));
    index.put(Arc::new(entry("child", id("/w/1"), group, set(["unix:uid:1"]))));
    index.put(Arc::new(entry("grandchild", id("/w/2"), id("/w/1"), set(["unix:uid:1"]))));
    let agent = id("/spire/agent/x/1");
    let satisfied = set(["k8s_psat:cluster:c", "k8s_psat:label:gpu", "k8s_psat:label:ssd"]);
    assert_eq!(names(&index.authorized(&agent, &satisfied)), ["child", "grandchild"]);
    assert_eq!(names(&index.authorized(&agent, &set(["k8s_psat:cluster:c"]))), Vec::<String>::new());
    let one = |name: &str| index.authorized_entry(&agent, &satisfied, &EntryId::parse(name).unwrap());
    assert!(one("grandchild").is_some());
    assert!(one("alias").is_none());
    assert!(one("absent").is_none());
}

#[test]
fn parents_in_a_circle_end() {
    let mut index = EntryIndex::new(trust_domain());
    let agent = id("/spire/agent/x/1");
    index.put(Arc::new(entry("a", id("/w/1"), id("/w/2"), set(["k:1"]))));
    index.put(Arc::new(entry("b", id("/w/2"), id("/w/1"), set(["k:1"]))));
    index.put(Arc::new(entry("self", id("/w/3"), id("/w/3"), set(["k:1"]))));
    assert_eq!(index.authorized(&agent, &SelectorSet::empty()), []);
    assert_eq!(index.authorized_entry(&agent, &SelectorSet::empty(), &EntryId::parse("a").unwrap()), None);
    index.put(Arc::new(entry("c", id("/w/1"), agent.clone(), set(["k:1"]))));
    assert_eq!(names(&index.authorized(&agent, &SelectorSet::empty())), ["a", "b", "c"]);
}

#[test]
fn a_row_is_kept_through_updates_and_never_used_again() {
    let mut index = EntryIndex::new(trust_domain());
    let put = |index: &mut EntryIndex, name: &str| {
        index.put(Arc::new(entry(name, id("/w/1"), id("/spire/agent/x/1"), set(["k:1"]))));
    };
    for name in ["b", "a", "b", "c"] {
        put(&mut index, name);
    }
    index.remove(&EntryId::parse("c").unwrap());
    put(&mut index, "c");
    let rows: Vec<_> = index.after_row(0).map(|(row, entry)| (row, entry.id.as_str())).collect();
    assert_eq!(rows, [(1, "b"), (2, "a"), (4, "c")]);
    assert_eq!(index.after_row(2).count(), 1);
}

#[test]
fn a_store_may_choose_the_rows() {
    let mut index = EntryIndex::new(trust_domain());
    let put = |index: &mut EntryIndex, row, name: &str| {
        let entry = entry(name, id("/w/1"), id("/spire/agent/x/1"), set(["k:1"]));
        index.put_at(row, Arc::new(entry));
    };
    put(&mut index, 7, "a");
    put(&mut index, 3, "b");
    put(&mut index, 9, "a");
    assert_eq!(index.row(&EntryId::parse("a").unwrap()), Some(9));
    put(&mut index, 3, "c");
    let rows: Vec<_> = index.after_row(0).map(|(row, entry)| (row, entry.id.as_str())).collect();
    assert_eq!(rows, [(3, "c"), (9, "a")]);
    assert_eq!(names(&index.authorized(&id("/spire/agent/x/1"), &SelectorSet::empty())), ["a", "c"]);
    assert!(index.get(&EntryId::parse("b").unwrap()).is_none());
    index.put(Arc::new(entry("d", id("/w/1"), id("/spire/agent/x/1"), set(["k:1"]))));
    assert_eq!(index.row(&EntryId::parse("d").unwrap()), Some(10));
}

#[test]
fn a_process_gets_the_entries_whose_selectors_it_shows() {
    let parent = id("/spire/agent/x/1");
    let entries = [
        Arc::new(entry("b", id("/w/1"), parent.clone(), set(["unix:uid:1"]))),
        Arc::new(entry("a", id("/w/2"), parent.clone(), set(["unix:uid:1", "unix:gid:2"]))),
        Arc::new(entry("c", id("/w/3"), parent, set(["unix:uid:2"]))),
    ];
    let process = set(["unix:uid:1", "unix:gid:2", "unix:path:/bin/x"]);
    assert_eq!(names(&matching_entries(entries.iter(), &process)), ["a", "b"]);
    assert_eq!(names(&matching_entries(entries.iter(), &set(["unix:uid:1"]))), ["b"]);
    assert_eq!(names(&matching_entries(entries.iter(), &SelectorSet::empty())), Vec::<String>::new());
}

#[test]
fn equal_texts_are_shared() {
    let mut index = EntryIndex::new(trust_domain());
    for name in ["a", "b"] {
        index.put(Arc::new(entry(name, id("/w/1"), id("/spire/agent/x/1"), set(["k:1"]))));
    }
    let get = |name: &str| index.get(&EntryId::parse(name).unwrap()).unwrap();
    let (a, b) = (get("a"), get("b"));
    assert!(std::ptr::eq(a.spiffe_id.path(), b.spiffe_id.path()));
    assert!(std::ptr::eq(a.parent_id.path(), b.parent_id.path()));
    assert!(std::ptr::eq(a.selectors.as_slice()[0].as_str(), b.selectors.as_slice()[0].as_str()));
}
