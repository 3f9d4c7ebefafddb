//! The store in memory: what every hot read is answered from.
//!
//! The writer thread applies each commit here after it is on the disk and before its writers are told, so a reader
//! sees no write that could still be lost, and a writer sees its own. A commit appears as a whole: entries and tables
//! have a lock each (an agent's entry lookup shall not wait for a node listing), and a commit takes both.

use std::borrow::Borrow;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::Hash;
use std::ops::{Bound, Deref};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use bonafide_identity::{
    AttestedNode, AuthorityKind, Bundle, Entry, EntryId, EntryIndex, SpiffeId, TrustDomain,
};
use tokio::sync::watch;

use super::aggregates::{Change, FederationRelationship};

/// How many changes are kept, in memory and on the disk. An agent that was away for longer gets a snapshot.
pub const KEPT_CHANGES: usize = 16_384;

/// What the store holds, in memory. Cheap to read from any thread; it changes only through
/// [`Store::write`](super::Store::write).
pub struct State {
    trust_domain: TrustDomain,
    entries: RwLock<EntryIndex>,
    tables: RwLock<Tables>,
    epoch: watch::Sender<u64>,
    bundles: watch::Sender<u64>,
    spent: AtomicI64,
}

#[derive(Default)]
pub(super) struct Tables {
    pub(super) nodes: Rows<SpiffeId, AttestedNode>,
    pub(super) bundles: Rows<TrustDomain, Bundle>,
    pub(super) relationships: Rows<TrustDomain, FederationRelationship>,
    pub(super) changes: Changes,
    /// What each record of the authorities' journals says is revoked, by the key of the record.
    pub(super) revoked: BTreeMap<Vec<u8>, Vec<String>>,
}

/// A value and its place in the listing order.
pub(super) type Placed<T> = (u64, Arc<T>);

impl State {
    /// The trust domain of the server.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Position of the last change.
    pub fn epoch(&self) -> u64 {
        *self.epoch.borrow()
    }

    /// Wakes whenever the epoch has moved on; the value is the epoch.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.epoch.subscribe()
    }

    /// Wakes whenever a bundle or a federation relationship has changed; the value is the epoch of that change.
    pub fn subscribe_bundles(&self) -> watch::Receiver<u64> {
        self.bundles.subscribe()
    }

    /// The changes after `epoch`, oldest first. `None` when that position is no longer, or not yet, in the log: then
    /// only everything will do.
    pub fn changes_since(&self, epoch: u64) -> Option<Vec<Change>> {
        read(&self.tables).changes.since(epoch)
    }

    /// The entry index, locked for reading. Writes wait while it is held: hold it for a look, never across an `await`.
    pub fn entries(&self) -> EntriesGuard<'_> {
        EntriesGuard(read(&self.entries))
    }

    /// Calls `look` with the entry index.
    pub fn with_entries<R>(&self, look: impl FnOnce(&EntryIndex) -> R) -> R {
        look(&self.entries())
    }

    /// Up to `limit` entries that `wanted` accepts, in listing order, after row `after` (0 is the beginning), each with
    /// its row. Entries are listed in the order of their creation; a row stays with its entry through updates and
    /// restarts.
    pub fn entries_page(
        &self,
        after: u64,
        limit: usize,
        mut wanted: impl FnMut(&Entry) -> bool,
    ) -> Vec<(u64, Arc<Entry>)> {
        read(&self.entries)
            .after_row(after)
            .filter(|(_, entry)| wanted(entry))
            .take(limit)
            .map(|(row, entry)| (row, entry.clone()))
            .collect()
    }

    /// The attested node with this agent ID.
    pub fn node(&self, id: &SpiffeId) -> Option<Arc<AttestedNode>> {
        read(&self.tables).nodes.get(id).cloned()
    }

    /// Every attested node in the order in which they first attested.
    pub fn nodes(&self) -> Vec<Arc<AttestedNode>> {
        read(&self.tables).nodes.values()
    }

    /// Up to `limit` nodes that `wanted` accepts after row `after`, each with its row.
    pub fn nodes_page(
        &self,
        after: u64,
        limit: usize,
        wanted: impl FnMut(&AttestedNode) -> bool,
    ) -> Vec<(u64, Arc<AttestedNode>)> {
        read(&self.tables).nodes.page(after, limit, wanted)
    }

    /// The bundle of this trust domain.
    pub fn bundle(&self, trust_domain: &TrustDomain) -> Option<Arc<Bundle>> {
        read(&self.tables).bundles.get(trust_domain).cloned()
    }

    /// Every bundle, the server's own included, in the order in which they were first set.
    pub fn bundles(&self) -> Vec<Arc<Bundle>> {
        read(&self.tables).bundles.values()
    }

    /// Up to `limit` bundles after row `after`, each with its row.
    pub fn bundles_page(&self, after: u64, limit: usize) -> Vec<(u64, Arc<Bundle>)> {
        read(&self.tables).bundles.page(after, limit, |_| true)
    }

    /// The federation relationship with this trust domain.
    pub fn relationship(&self, trust_domain: &TrustDomain) -> Option<Arc<FederationRelationship>> {
        read(&self.tables).relationships.get(trust_domain).cloned()
    }

    /// Every federation relationship in the order of creation.
    pub fn relationships(&self) -> Vec<Arc<FederationRelationship>> {
        read(&self.tables).relationships.values()
    }

    /// Up to `limit` federation relationships after row `after`, each with its row.
    pub fn relationships_page(&self, after: u64, limit: usize) -> Vec<(u64, Arc<FederationRelationship>)> {
        read(&self.tables).relationships.page(after, limit, |_| true)
    }

    /// Key identifiers of what has been revoked of `kind`, by any server of the group.
    pub fn revoked(&self, kind: AuthorityKind) -> Vec<String> {
        let prefix = super::record::Table::Journal.key(&[super::codec::kind_number(kind)]);
        let tables = read(&self.tables);
        let of_kind = tables.revoked.range(prefix.clone()..).take_while(|(key, _)| key.starts_with(&prefix));
        let mut all: Vec<String> = of_kind.flat_map(|(_, ids)| ids.iter().cloned()).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    pub(super) fn new(trust_domain: TrustDomain, entries: EntryIndex, tables: Tables) -> Self {
        let epoch = tables.changes.last;
        Self {
            trust_domain,
            entries: RwLock::new(entries),
            tables: RwLock::new(tables),
            epoch: watch::Sender::new(epoch),
            bundles: watch::Sender::new(epoch),
            spent: AtomicI64::new(0),
        }
    }

    pub(super) fn tables(&self) -> RwLockReadGuard<'_, Tables> {
        read(&self.tables)
    }

    /// Used tokens that are remembered in the database.
    pub(super) fn spent(&self) -> i64 {
        self.spent.load(Ordering::Relaxed)
    }

    /// Adds to the used tokens that are remembered.
    pub(super) fn count_spent(&self, more: i64) {
        self.spent.fetch_add(more, Ordering::Relaxed);
    }

    /// Shows a commit to the readers, all of it at once, and wakes those who wait.
    pub(super) fn apply(&self, commit: Applied) {
        self.count_spent(commit.spent);
        let epoch = {
            let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
            let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
            for (id, (row, entry)) in commit.entries {
                match entry {
                    // A copy of its own, since the index shares the texts of entries that nobody else holds.
                    Some(entry) => entries.put_at(row, Arc::new(Entry::clone(&entry))),
                    None => drop(entries.remove(&id)),
                }
            }
            tables.nodes.apply(commit.nodes);
            tables.bundles.apply(commit.bundles);
            tables.relationships.apply(commit.relationships);
            for (key, revoked) in commit.journals {
                match revoked {
                    Some(revoked) => drop(tables.revoked.insert(key, revoked)),
                    None => drop(tables.revoked.remove(&key)),
                }
            }
            for change in commit.changes {
                tables.changes.push(change);
            }
            tables.changes.last
        };
        if epoch != self.epoch() {
            self.epoch.send_replace(epoch);
            if commit.bundles_changed {
                self.bundles.send_replace(epoch);
            }
        }
    }
}

impl State {
    /// Takes over everything from `newer`, a later state of the same store, and wakes everybody who waits.
    pub(super) fn replace(&self, newer: Self) {
        let spent = newer.spent();
        let epoch = {
            let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
            let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
            *entries = newer.entries.into_inner().unwrap_or_else(PoisonError::into_inner);
            *tables = newer.tables.into_inner().unwrap_or_else(PoisonError::into_inner);
            self.spent.store(spent, Ordering::Relaxed);
            tables.changes.last
        };
        self.epoch.send_replace(epoch);
        self.bundles.send_replace(epoch);
    }
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("trust_domain", &self.trust_domain)
            .field("epoch", &self.epoch())
            .finish()
    }
}

/// The entry index, locked for reading.
pub struct EntriesGuard<'a>(RwLockReadGuard<'a, EntryIndex>);

impl Deref for EntriesGuard<'_> {
    type Target = EntryIndex;

    fn deref(&self) -> &EntryIndex {
        &self.0
    }
}

/// A commit, as the state takes it. `None` deletes.
#[derive(Debug, Default)]
pub(super) struct Applied {
    pub(super) entries: HashMap<EntryId, (u64, Option<Arc<Entry>>)>,
    pub(super) nodes: HashMap<SpiffeId, (u64, Option<Arc<AttestedNode>>)>,
    pub(super) bundles: HashMap<TrustDomain, (u64, Option<Arc<Bundle>>)>,
    pub(super) relationships: HashMap<TrustDomain, (u64, Option<Arc<FederationRelationship>>)>,
    pub(super) changes: Vec<Change>,
    pub(super) bundles_changed: bool,
    /// Revocations by record of the journal.
    pub(super) journals: HashMap<Vec<u8>, Option<Vec<String>>>,
    /// Used tokens more (or fewer) than before.
    pub(super) spent: i64,
}

/// Values by key and by row.
pub(super) struct Rows<K, V> {
    by_key: HashMap<K, u64>,
    by_row: BTreeMap<u64, Arc<V>>,
}

impl<K, V> Default for Rows<K, V> {
    fn default() -> Self {
        Self { by_key: HashMap::new(), by_row: BTreeMap::new() }
    }
}

impl<K: Hash + Eq, V> Rows<K, V> {
    pub(super) fn get<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<&Arc<V>>
    where
        K: Borrow<Q>,
    {
        self.by_row.get(self.by_key.get(key)?)
    }

    pub(super) fn placed(&self, key: &K) -> Option<Placed<V>> {
        let row = *self.by_key.get(key)?;
        Some((row, self.by_row.get(&row)?.clone()))
    }

    pub(super) fn len(&self) -> usize {
        self.by_row.len()
    }

    /// False when the key or the row is taken.
    pub(super) fn insert(&mut self, key: K, row: u64, value: Arc<V>) -> bool {
        self.by_key.insert(key, row).is_none() & self.by_row.insert(row, value).is_none()
    }

    fn values(&self) -> Vec<Arc<V>> {
        self.by_row.values().cloned().collect()
    }

    fn page(&self, after: u64, limit: usize, mut wanted: impl FnMut(&V) -> bool) -> Vec<(u64, Arc<V>)> {
        self.by_row
            .range((Bound::Excluded(after), Bound::Unbounded))
            .filter(|(_, value)| wanted(value))
            .take(limit)
            .map(|(row, value)| (*row, value.clone()))
            .collect()
    }

    fn apply(&mut self, changes: HashMap<K, (u64, Option<Arc<V>>)>) {
        for (key, (row, value)) in changes {
            match value {
                Some(value) => {
                    // Deleted and created again within one commit: the row is another one.
                    if let Some(old) = self.by_key.insert(key, row).filter(|old| *old != row) {
                        self.by_row.remove(&old);
                    }
                    self.by_row.insert(row, value);
                }
                None => {
                    if let Some(old) = self.by_key.remove(&key) {
                        self.by_row.remove(&old);
                    }
                }
            }
        }
    }
}

/// The newest changes.
#[derive(Debug, Default)]
pub(super) struct Changes {
    kept: VecDeque<Change>,
    /// Epoch of the last one.
    pub(super) last: u64,
}

impl Changes {
    /// Goes on from `epoch` with nothing kept.
    pub(super) fn starting_at(epoch: u64) -> Self {
        Self { kept: VecDeque::new(), last: epoch }
    }

    pub(super) fn push(&mut self, change: Change) {
        if self.kept.len() == KEPT_CHANGES {
            self.kept.pop_front();
        }
        self.kept.push_back(change);
        self.last += 1;
    }

    fn since(&self, epoch: u64) -> Option<Vec<Change>> {
        let wanted = usize::try_from(self.last.checked_sub(epoch)?).ok()?;
        let skipped = self.kept.len().checked_sub(wanted)?;
        Some(self.kept.iter().skip(skipped).cloned().collect())
    }
}

/// A panic of a reader cannot leave the tables half changed, so a poisoned lock is as good as another.
fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_found_by_position_until_they_are_dropped() {
        let name = |n: usize| TrustDomain::parse(&format!("td{n}")).expect("valid");
        let mut changes = Changes::starting_at(10);
        assert_eq!(changes.since(10), Some(vec![]));
        assert_eq!(changes.since(9), None);
        assert_eq!(changes.since(11), None);
        for n in 0..KEPT_CHANGES + 5 {
            changes.push(Change::Bundle(name(n)));
        }
        assert_eq!(changes.since(10), None);
        assert_eq!(changes.since(15).map(|found| found.len()), Some(KEPT_CHANGES));
        assert_eq!(changes.since(changes.last - 1), Some(vec![Change::Bundle(name(KEPT_CHANGES + 4))]));
    }

    #[test]
    fn rows_keep_their_order_through_updates() {
        let mut rows = Rows::<&str, u32>::default();
        assert!(rows.insert("b", 1, Arc::new(1)));
        assert!(rows.insert("a", 2, Arc::new(2)));
        rows.apply(HashMap::from([("b", (1, Some(Arc::new(3)))), ("c", (5, Some(Arc::new(4))))]));
        assert_eq!(rows.page(0, 9, |_| true), [(1, Arc::new(3)), (2, Arc::new(2)), (5, Arc::new(4))]);
        assert_eq!(rows.page(1, 1, |_| true), [(2, Arc::new(2))]);
        rows.apply(HashMap::from([("a", (2, None)), ("b", (7, Some(Arc::new(8))))]));
        assert_eq!(rows.page(0, 9, |_| true), [(5, Arc::new(4)), (7, Arc::new(8))]);
    }
}
