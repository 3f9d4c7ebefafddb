//! Which entries an agent, and then a process, is entitled to.
//!
//! The index is kept up to date entry by entry and never rebuilt: with a million entries a rebuild takes seconds, and
//! whoever waits for one gets yesterday's answer. An answer costs what it contains, not what the index contains. Per
//! entry the index holds a few pointers to one shared [`Entry`]; its keys are the entry's own texts.

use crate::{Entry, EntryId, Interner, Selector, SelectorSet, SpiffeId, Timestamp, TrustDomain};
use std::{
    borrow::Borrow,
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, hash_map},
    hash::{BuildHasherDefault, DefaultHasher, Hash, Hasher},
    sync::Arc,
};

/// All entries of a trust domain, indexed for the questions that are asked all the time.
///
/// Entries whose SPIFFE ID or parent belongs to another trust domain are kept and listed, but entitle nobody.
#[derive(Debug)]
pub struct EntryIndex {
    trust_domain: TrustDomain,
    server_id: SpiffeId,
    next_row: u64,
    rows: BTreeMap<u64, Arc<Entry>>,
    by_id: HashMap<ById, u64>,
    by_spiffe_id: HashMap<SpiffeId, Group>,
    /// By parent; only local entries, and no aliases.
    children: HashMap<SpiffeId, BTreeSet<Child>>,
    /// Fingerprints of the keys of `children`, and how many share each.
    parents: HashMap<Fingerprint, u32, BuildHasherDefault<AsItIs>>,
    /// Aliases (parent is the server) by one of their selectors, their anchor: a node that matches must show it.
    aliases: HashMap<Selector, Group>,
    /// Aliases that demand nothing.
    unconditional_aliases: BTreeSet<ById>,
    admins: HashMap<SpiffeId, usize>,
    downstream: HashMap<SpiffeId, Group>,
    federating: HashMap<TrustDomain, Group>,
    expiring: BTreeSet<(Timestamp, ById)>,
    interner: Interner,
}

impl EntryIndex {
    /// An empty index of `trust_domain`'s entries.
    pub fn new(trust_domain: TrustDomain) -> Self {
        Self {
            server_id: trust_domain.server_id(),
            trust_domain,
            next_row: 1,
            rows: BTreeMap::new(),
            by_id: HashMap::new(),
            by_spiffe_id: HashMap::new(),
            children: HashMap::new(),
            parents: HashMap::default(),
            aliases: HashMap::new(),
            unconditional_aliases: BTreeSet::new(),
            admins: HashMap::new(),
            downstream: HashMap::new(),
            federating: HashMap::new(),
            expiring: BTreeSet::new(),
            interner: Interner::new(),
        }
    }

    /// Makes room for this many more entries at once, which a loader that knows their number should do.
    pub fn reserve(&mut self, additional: usize) {
        self.by_id.reserve(additional);
        self.by_spiffe_id.reserve(additional);
    }

    /// Adds an entry, or replaces the one with its ID. An entry that nobody else holds yet is made to share its texts
    /// with those that are here.
    pub fn put(&mut self, entry: Arc<Entry>) {
        let row = self.row(&entry.id).unwrap_or(self.next_row);
        self.put_at(row, entry);
    }

    /// As [`put`](Self::put), at a row of the caller's choice, for a store that keeps row numbers. What was in that row,
    /// or had this ID in another row, is gone.
    pub fn put_at(&mut self, row: u64, mut entry: Arc<Entry>) {
        if let Some(entry) = Arc::get_mut(&mut entry) {
            self.share_texts(entry);
        }
        if let Some((former, row)) = self.by_id.remove_entry(&entry.id) {
            self.rows.remove(&row);
            self.unlink(&former.0);
        }
        if let Some(former) = self.rows.remove(&row) {
            self.by_id.remove(&former.id);
            self.unlink(&former);
        }
        self.next_row = self.next_row.max(row.saturating_add(1));
        self.by_id.insert(ById(entry.clone()), row);
        self.link(&entry);
        self.rows.insert(row, entry);
    }

    /// The row of the entry of this ID.
    pub fn row(&self, id: &EntryId) -> Option<u64> {
        self.by_id.get(id).copied()
    }

    /// Removes an entry.
    pub fn remove(&mut self, id: &EntryId) -> Option<Arc<Entry>> {
        let (entry, row) = self.by_id.remove_entry(id)?;
        self.rows.remove(&row);
        self.unlink(&entry.0);
        Some(entry.0)
    }

    /// The entry of this ID.
    pub fn get(&self, id: &EntryId) -> Option<&Arc<Entry>> {
        self.by_id.get_key_value(id).map(|(entry, _)| &entry.0)
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// True when there is no entry.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// All entries in the order of their rows: that in which their IDs were first put, unless told otherwise.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.rows.values()
    }

    /// The entries behind `row`, with their row numbers, in the order of [`iter`](Self::iter). Rows begin at 1; an
    /// entry keeps its row through updates, and a row is never used again. This is what listings page by.
    pub fn after_row(&self, row: u64) -> impl Iterator<Item = (u64, &Arc<Entry>)> {
        let behind = (std::ops::Bound::Excluded(row), std::ops::Bound::Unbounded);
        self.rows.range(behind).map(|(row, entry)| (*row, entry))
    }

    /// Every entry that the agent is entitled to, sorted by entry ID.
    ///
    /// These are the children of the agent, of each alias that the node's selectors satisfy, and of each such child in
    /// turn. Aliases themselves are not among them.
    pub fn authorized(&self, agent: &SpiffeId, node_selectors: &SelectorSet) -> Vec<Arc<Entry>> {
        let mut seen = HashSet::new();
        let mut pending: Vec<&BTreeSet<Child>> = Vec::new();
        let mut visit = |id, pending: &mut Vec<_>| {
            if let Some((id, children)) = self.children.get_key_value(id)
                && seen.insert(id)
            {
                pending.push(children);
            }
        };
        visit(agent, &mut pending);
        for alias in self.aliases_of(node_selectors) {
            visit(&alias.spiffe_id, &mut pending);
        }
        let mut found: Vec<&Child> = Vec::new();
        while let Some(children) = pending.pop() {
            for child in children {
                if self.parents.contains_key(&child.fingerprint) {
                    visit(&child.entry.spiffe_id, &mut pending);
                }
                found.push(child);
            }
        }
        // A concatenation of sorted sets: the sort merges them.
        found.sort();
        found.into_iter().map(|child| child.entry.clone()).collect()
    }

    /// The entry of this ID if the agent is entitled to it; the same rule as [`authorized`](Self::authorized), decided
    /// from the entry upwards.
    pub fn authorized_entry(
        &self,
        agent: &SpiffeId,
        node_selectors: &SelectorSet,
        id: &EntryId,
    ) -> Option<Arc<Entry>> {
        let entry = self.get(id).filter(|entry| self.is_local(entry) && !self.is_alias(entry))?;
        let mut seen = HashSet::from([&entry.parent_id]);
        let mut pending = vec![&entry.parent_id];
        while let Some(id) = pending.pop() {
            if id == agent {
                return Some(entry.clone());
            }
            for holder in self.by_spiffe_id(id).filter(|holder| self.is_local(holder)) {
                if !self.is_alias(holder) {
                    if seen.insert(&holder.parent_id) {
                        pending.push(&holder.parent_id);
                    }
                } else if holder.selectors.is_subset_of(node_selectors) {
                    return Some(entry.clone());
                }
            }
        }
        None
    }

    /// The stored entry with the same SPIFFE ID, parent and selector set, of which there should be at most one.
    pub fn similar(&self, entry: &Entry) -> Option<&Arc<Entry>> {
        let same_id = self.by_spiffe_id.get(&entry.spiffe_id)?;
        // Thousands of nodes may hold one ID, and a node may hold thousands: search the smaller group.
        let siblings = self.children.get(&entry.parent_id).filter(|_| self.is_local(entry));
        match siblings.filter(|siblings| siblings.len() < same_id.len()) {
            Some(siblings) => {
                let mut siblings = siblings.iter().map(|sibling| &sibling.entry);
                siblings.find(|sibling| sibling.is_similar_to(entry))
            }
            None => same_id.iter().find(|stored| stored.is_similar_to(entry)),
        }
    }

    /// The entries that grant this SPIFFE ID, sorted by entry ID.
    pub fn by_spiffe_id(&self, id: &SpiffeId) -> impl Iterator<Item = &Arc<Entry>> {
        self.by_spiffe_id.get(id).into_iter().flat_map(Group::iter)
    }

    /// The local entries below this parent, aliases excepted, sorted by entry ID.
    pub fn by_parent_id(&self, id: &SpiffeId) -> impl Iterator<Item = &Arc<Entry>> {
        self.children.get(id).into_iter().flatten().map(|child| &child.entry)
    }

    /// True when some entry makes the holder of this SPIFFE ID an administrator.
    pub fn is_admin(&self, id: &SpiffeId) -> bool {
        self.admins.contains_key(id)
    }

    /// The entries that make the holder of this SPIFFE ID a downstream server, sorted by entry ID.
    pub fn downstream(&self, id: &SpiffeId) -> Vec<Arc<Entry>> {
        self.downstream.get(id).into_iter().flat_map(Group::iter).cloned().collect()
    }

    /// The entries that federate with a trust domain, sorted by entry ID.
    pub fn federating_with(&self, trust_domain: &TrustDomain) -> Vec<Arc<Entry>> {
        self.federating.get(trust_domain).into_iter().flat_map(Group::iter).cloned().collect()
    }

    /// The entries whose time is over at `now`, the longest overdue first.
    pub fn expired(&self, now: Timestamp) -> Vec<Arc<Entry>> {
        self.expiring.iter().take_while(|(at, _)| *at < now).map(|(_, entry)| entry.0.clone()).collect()
    }

    fn aliases_of<'a>(&'a self, node: &'a SelectorSet) -> impl Iterator<Item = &'a Arc<Entry>> {
        let anchored = node.iter().filter_map(|selector| self.aliases.get(selector)).flat_map(Group::iter);
        anchored
            .filter(|alias| alias.selectors.is_subset_of(node))
            .chain(self.unconditional_aliases.iter().map(|alias| &alias.0))
    }

    fn is_local(&self, entry: &Entry) -> bool {
        *entry.spiffe_id.trust_domain() == self.trust_domain
            && *entry.parent_id.trust_domain() == self.trust_domain
    }

    fn is_alias(&self, entry: &Entry) -> bool {
        entry.parent_id == self.server_id
    }

    fn share_texts(&mut self, entry: &mut Entry) {
        if let Some((known, _)) = self.by_spiffe_id.get_key_value(&entry.spiffe_id) {
            entry.spiffe_id = known.clone();
        } else {
            entry.spiffe_id.share_trust_domain(&self.trust_domain);
        }
        if let Some((known, _)) = self.children.get_key_value(&entry.parent_id) {
            entry.parent_id = known.clone();
        } else {
            entry.parent_id.share_trust_domain(&self.trust_domain);
        }
        self.interner.share_selectors(&mut entry.selectors);
        for name in &mut entry.federates_with {
            self.interner.share_trust_domain(name);
        }
    }

    fn link(&mut self, entry: &Arc<Entry>) {
        add(&mut self.by_spiffe_id, &entry.spiffe_id, entry);
        if self.is_local(entry) {
            if !self.is_alias(entry) {
                self.adopt(entry);
            } else if let Some(anchor) = self.rarest_anchor(entry) {
                add(&mut self.aliases, &anchor, entry);
            } else {
                self.unconditional_aliases.insert(ById(entry.clone()));
            }
        }
        if entry.admin {
            *self.admins.entry(entry.spiffe_id.clone()).or_default() += 1;
        }
        if entry.downstream {
            add(&mut self.downstream, &entry.spiffe_id, entry);
        }
        for name in &entry.federates_with {
            add(&mut self.federating, name, entry);
        }
        if let Some(at) = entry.expires_at {
            self.expiring.insert((at, ById(entry.clone())));
        }
    }

    fn unlink(&mut self, entry: &Arc<Entry>) {
        drop_from(&mut self.by_spiffe_id, &entry.spiffe_id, &entry.id);
        if self.is_local(entry) {
            if !self.is_alias(entry) {
                self.disown(entry);
            } else {
                for selector in &entry.selectors {
                    drop_from(&mut self.aliases, selector, &entry.id);
                }
                self.unconditional_aliases.remove(&entry.id);
            }
        }
        if entry.admin
            && let Some(count) = self.admins.get_mut(&entry.spiffe_id)
        {
            *count -= 1;
            if *count == 0 {
                self.admins.remove(&entry.spiffe_id);
            }
        }
        if entry.downstream {
            drop_from(&mut self.downstream, &entry.spiffe_id, &entry.id);
        }
        for name in &entry.federates_with {
            drop_from(&mut self.federating, name, &entry.id);
        }
        if let Some(at) = entry.expires_at {
            self.expiring.remove(&(at, ById(entry.clone())));
        }
    }

    fn adopt(&mut self, entry: &Arc<Entry>) {
        let child = Child::new(entry);
        match self.children.get_mut(&entry.parent_id) {
            Some(children) => {
                children.insert(child);
            }
            None => {
                self.children.insert(entry.parent_id.clone(), BTreeSet::from([child]));
                *self.parents.entry(fingerprint(&entry.parent_id)).or_default() += 1;
            }
        }
    }

    fn disown(&mut self, entry: &Arc<Entry>) {
        let Some(children) = self.children.get_mut(&entry.parent_id) else { return };
        children.remove(&Child::new(entry));
        if !children.is_empty() {
            return;
        }
        self.children.remove(&entry.parent_id);
        let fingerprint = fingerprint(&entry.parent_id);
        if let Some(sharers) = self.parents.get_mut(&fingerprint) {
            *sharers -= 1;
            if *sharers == 0 {
                self.parents.remove(&fingerprint);
            }
        }
    }

    /// All nodes of a cluster share a selector and differ in another: anchor where the fewest are.
    fn rarest_anchor(&self, alias: &Entry) -> Option<Selector> {
        alias
            .selectors
            .iter()
            .min_by_key(|selector| self.aliases.get(*selector).map_or(0, Group::len))
            .cloned()
    }
}

/// The entries that a process with these selectors gets, out of those its agent is entitled to: all whose selectors it
/// shows. Sorted by entry ID, the first being the default identity of most clients.
pub fn matching_entries<'a>(
    entries: impl Iterator<Item = &'a Arc<Entry>>,
    workload: &SelectorSet,
) -> Vec<Arc<Entry>> {
    let mut matching: Vec<_> =
        entries.filter(|entry| entry.selectors.is_subset_of(workload)).cloned().collect();
    matching.sort_by(|a, b| a.id.cmp(&b.id));
    matching
}

/// Leaves one entry for each hint that is not empty: the one created first, among those of the same instant the one
/// with the smallest ID. The order of the rest is kept.
pub fn drop_duplicate_hints(entries: Vec<Arc<Entry>>) -> Vec<Arc<Entry>> {
    let mut owners: HashMap<&str, &Arc<Entry>> = HashMap::new();
    for entry in entries.iter().filter(|entry| !entry.hint.is_empty()) {
        let owner = owners.entry(&entry.hint).or_insert(entry);
        if (entry.created_at, &entry.id) < (owner.created_at, &owner.id) {
            *owner = entry;
        }
    }
    let kept: Vec<bool> = entries
        .iter()
        .map(|entry| owners.get(&*entry.hint).is_none_or(|owner| Arc::ptr_eq(owner, entry)))
        .collect();
    entries.into_iter().zip(kept).filter_map(|(entry, keep)| keep.then_some(entry)).collect()
}

/// An entry that is looked up, compared and sorted by its ID.
#[derive(Clone, Debug)]
struct ById(Arc<Entry>);

impl Borrow<EntryId> for ById {
    fn borrow(&self) -> &EntryId {
        &self.0.id
    }
}

impl Hash for ById {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.id.hash(state);
    }
}

impl PartialEq for ById {
    fn eq(&self, other: &Self) -> bool {
        self.0.id == other.0.id
    }
}

impl Eq for ById {}

impl Ord for ById {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.id.cmp(&other.0.id)
    }
}

impl PartialOrd for ById {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// A hash of a SPIFFE ID that says "not this one" without a look at the ID.
type Fingerprint = u64;

fn fingerprint(id: &SpiffeId) -> Fingerprint {
    // Keyed with a constant on purpose: whoever makes two IDs collide wins one needless lookup.
    let mut hasher = DefaultHasher::new();
    id.path().hash(&mut hasher);
    hasher.finish()
}

/// Passes a fingerprint through, which is a hash already.
#[derive(Debug, Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write_u64(&mut self, fingerprint: u64) {
        self.0 = fingerprint;
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }
}

/// An entry below its parent, ordered by entry ID.
///
/// What an agent is entitled to lies scattered over memory, and each place visited costs as much as a hundred steps
/// of arithmetic. So what decides the order and the descent is kept here, beside the pointer, and an entry itself is
/// only touched to be handed out.
#[derive(Debug)]
struct Child {
    /// The first bytes of the entry ID, as a number of the same order.
    prefix: u64,
    /// Of the entry's SPIFFE ID, to see whether it is a parent in turn.
    fingerprint: Fingerprint,
    entry: Arc<Entry>,
}

impl Child {
    fn new(entry: &Arc<Entry>) -> Self {
        let mut prefix = [0; 8];
        for (to, from) in prefix.iter_mut().zip(entry.id.as_str().bytes()) {
            *to = from;
        }
        Self {
            prefix: u64::from_be_bytes(prefix),
            fingerprint: fingerprint(&entry.spiffe_id),
            entry: entry.clone(),
        }
    }
}

impl Ord for Child {
    fn cmp(&self, other: &Self) -> Ordering {
        self.prefix.cmp(&other.prefix).then_with(|| self.entry.id.cmp(&other.entry.id))
    }
}

impl PartialOrd for Child {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Child {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Child {}

/// Entries under one key, in the order of their IDs. Mostly there is exactly one, and a million of those must be cheap.
#[derive(Debug)]
enum Group {
    One(ById),
    #[expect(clippy::box_collection, reason = "keeps the common case at two words")]
    Many(Box<BTreeSet<ById>>),
}

impl Group {
    fn iter(&self) -> impl Iterator<Item = &Arc<Entry>> {
        let (one, many) = match self {
            Self::One(entry) => (Some(entry), None),
            Self::Many(entries) => (None, Some(entries.iter())),
        };
        one.into_iter().chain(many.into_iter().flatten()).map(|entry| &entry.0)
    }

    fn len(&self) -> usize {
        match self {
            Self::One(_) => 1,
            Self::Many(entries) => entries.len(),
        }
    }
}

fn add<K: Clone + Eq + Hash>(groups: &mut HashMap<K, Group>, key: &K, entry: &Arc<Entry>) {
    let entry = ById(entry.clone());
    match groups.entry(key.clone()) {
        hash_map::Entry::Vacant(vacant) => {
            vacant.insert(Group::One(entry));
        }
        hash_map::Entry::Occupied(mut occupied) => match occupied.get_mut() {
            Group::Many(entries) => {
                entries.insert(entry);
            }
            Group::One(first) => {
                let entries = BTreeSet::from([first.clone(), entry]);
                occupied.insert(Group::Many(entries.into()));
            }
        },
    }
}

fn drop_from<K: Eq + Hash>(groups: &mut HashMap<K, Group>, key: &K, id: &EntryId) {
    let emptied = match groups.get_mut(key) {
        None => return,
        Some(Group::One(entry)) => entry.0.id == *id,
        Some(Group::Many(entries)) => {
            entries.remove(id);
            entries.is_empty()
        }
    };
    if emptied {
        groups.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_removed_leaves_nothing_behind() {
        let td = TrustDomain::parse("td").unwrap();
        let parents =
            [td.server_id(), td.agent_id("a").unwrap(), SpiffeId::parse("spiffe://td/w/0").unwrap()];
        let sets = [&["k:1"][..], &["k:1", "k:2"], &["k:2", "k:3"], &[], &["k:1", "k:2", "k:3"]];
        let mut index = EntryIndex::new(td.clone());
        let entry = |n: usize| Entry {
            id: EntryId::parse(&format!("e{n}")).unwrap(),
            spiffe_id: SpiffeId::parse(&format!("spiffe://td/w/{}", n % 7)).unwrap(),
            parent_id: parents[n % 3].clone(),
            selectors: sets[n % 5].iter().map(|text| Selector::parse(text).unwrap()).collect(),
            x509_svid_ttl: 0,
            jwt_svid_ttl: 0,
            federates_with: [TrustDomain::parse("peer").unwrap()].into(),
            admin: true,
            downstream: true,
            expires_at: Some(Timestamp::from_unix_seconds(0)),
            dns_names: [].into(),
            revision: 0,
            created_at: Timestamp::from_unix_seconds(0),
            store_svid: false,
            hint: "".into(),
            disable_x509_svid_prefetch: false,
            jwt_svid_include_jti: false,
        };
        for n in 0..100 {
            index.put(Arc::new(entry(n)));
        }
        // An update may move an entry from any place to any other.
        for n in 0..100 {
            let mut moved = entry(n * 31 % 100);
            moved.id = EntryId::parse(&format!("e{n}")).unwrap();
            index.put(Arc::new(moved));
        }
        for n in 0..100 {
            assert!(index.remove(&EntryId::parse(&format!("e{n}")).unwrap()).is_some());
        }
        let left = [
            index.rows.len(),
            index.by_id.len(),
            index.by_spiffe_id.len(),
            index.children.len(),
            index.parents.len(),
            index.aliases.len(),
            index.unconditional_aliases.len(),
            index.admins.len(),
            index.downstream.len(),
            index.federating.len(),
            index.expiring.len(),
        ];
        assert_eq!(left, [0; 11]);
    }
}
