//! What the agent holds for its workloads: entries, their SVIDs, bundles, and who waits for which of them.
//!
//! One structure behind one lock answers all questions about X.509-SVIDs, WIT-SVIDs and bundles; nothing is awaited under
//! the lock. JWT-SVIDs are made on request and live in [`tokens`].
//!
//! Subscribers are grouped by what they are (their selectors) and by what they want, so that a change is looked at
//! once for each group and wakes those alone that it concerns. A subscriber then takes a [`View`] and makes its
//! message from it.
//!
//! An SVID is renewed at an instant that was drawn when it came. Rejected: drawing at each check, as others do, which
//! bends the distribution towards the early end the more often one looks.

mod bundles;
pub mod issuing;
mod svid;
pub mod tokens;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bonafide_identity::{Entry, EntryId, Selector, SelectorSet, SpiffeId, Timestamp, TrustDomain};
use tokio::sync::{Notify, watch};

pub use bundles::{Bundles, CachedBundle, Tainted, WorkloadKeys};
pub use svid::{Availability, Svid, WitSvid, X509Svid};

use crate::metrics;
use svid::{Need, Slot, version};

/// What a subscriber wants to hear about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Interest {
    /// X.509-SVIDs and the X.509 part of bundles. Has SVIDs signed.
    X509,
    /// WIT-SVIDs. Has SVIDs signed.
    Wit,
    /// Bundles alone.
    Bundles,
    /// All bundles that the agent holds, whomever their owners federate with.
    AllBundles,
}

/// Why the cache is asked what is to be signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occasion {
    /// A regular look: everything that is due, what failed before included.
    Regular,
    /// A subscriber has come: what it waits for, unless that has failed already.
    Demand,
}

/// A kind of SVID that is kept for each entry.
pub trait Kind: 'static {
    /// The SVID.
    type Svid: Svid;
    /// Its name in logs and metrics.
    const NAME: &'static str;
    /// Who waits for it.
    const INTEREST: Interest;
    /// Whether it is signed before anybody asks.
    const AHEAD: bool;
    #[doc(hidden)]
    fn slot(held: &Held) -> &SlotOf<Self>;
    #[doc(hidden)]
    fn slot_mut(held: &mut Held) -> &mut SlotOf<Self>;
}

/// The slot of a kind; its inside is the cache's business.
#[doc(hidden)]
pub struct SlotOf<K: Kind + ?Sized>(Slot<K::Svid>);

/// X.509-SVIDs.
pub enum X509 {}

/// WIT-SVIDs.
pub enum Wit {}

impl Kind for X509 {
    type Svid = X509Svid;
    const NAME: &'static str = "x509";
    const INTEREST: Interest = Interest::X509;
    const AHEAD: bool = true;
    fn slot(held: &Held) -> &SlotOf<Self> {
        &held.x509
    }
    fn slot_mut(held: &mut Held) -> &mut SlotOf<Self> {
        &mut held.x509
    }
}

impl Kind for Wit {
    type Svid = WitSvid;
    const NAME: &'static str = "wit";
    const INTEREST: Interest = Interest::Wit;
    const AHEAD: bool = false;
    fn slot(held: &Held) -> &SlotOf<Self> {
        &held.wit
    }
    fn slot_mut(held: &mut Held) -> &mut SlotOf<Self> {
        &mut held.wit
    }
}

/// What became of the request for one entry: an SVID, or a failure that the log tells about.
pub type Outcome<S> = (Arc<Entry>, Result<S, ()>);

/// An entry and what is held for it.
#[doc(hidden)]
pub struct Held {
    entry: Arc<Entry>,
    x509: SlotOf<X509>,
    wit: SlotOf<Wit>,
    /// When a workload last came for it: a count, not a time.
    last_used: u64,
}

/// See the module.
pub struct SvidCache {
    state: Mutex<State>,
    demand: Notify,
    limit: usize,
}

#[derive(Default)]
struct State {
    held: BTreeMap<EntryId, Held>,
    /// Entries by their first selector: whoever matches has it.
    by_selector: HashMap<Selector, BTreeSet<EntryId>>,
    bundles: Option<Arc<Bundles>>,
    /// The SPIFFE IDs to which entries give rights at the server.
    privileged: Arc<BTreeSet<SpiffeId>>,
    groups: HashMap<GroupKey, Group>,
    uses: u64,
    /// The server has said that it does not sign WIT-SVIDs.
    no_wit: bool,
    taint_window: Option<(Timestamp, usize)>,
}

type GroupKey = (SelectorSet, Interest);

struct Group {
    matched: Vec<EntryId>,
    wake: watch::Sender<u64>,
    members: usize,
}

/// What a workload is entitled to, at one moment.
pub struct View<S> {
    /// Its entries in ascending order of their IDs, with what can be given for each.
    pub entries: Vec<(Arc<Entry>, Availability<S>)>,
    /// All bundles of the agent.
    pub bundles: Arc<Bundles>,
    /// The SPIFFE IDs to which entries of this agent give rights at the server.
    pub privileged: Arc<BTreeSet<SpiffeId>>,
}

impl<S> View<S> {
    /// Without the identities that carry rights at the server: those stay with the process that has them.
    ///
    /// The server gives rights to SPIFFE IDs, whichever entry an SVID was signed for. So each entry is left out whose ID any entry
    /// of the agent has with `admin` or `downstream`.
    #[must_use]
    pub fn delegable(mut self) -> Self {
        self.entries.retain(|(entry, _)| !self.privileged.contains(&entry.spiffe_id));
        self
    }
}

/// Numbers for people.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Entries.
    pub entries: usize,
    /// X.509-SVIDs.
    pub x509: usize,
    /// WIT-SVIDs.
    pub wit: usize,
}

impl SvidCache {
    /// Nothing yet; keeps up to `limit` X.509-SVIDs that nobody is subscribed to.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { state: Mutex::default(), demand: Notify::new(), limit }
    }

    /// All entries.
    #[must_use]
    pub fn entries(&self) -> Vec<Arc<Entry>> {
        self.lock().held.values().map(|held| Arc::clone(&held.entry)).collect()
    }

    /// The entry with this ID.
    #[must_use]
    pub fn entry(&self, id: &EntryId) -> Option<Arc<Entry>> {
        self.lock().held.get(id).map(|held| Arc::clone(&held.entry))
    }

    /// The bundles, once the server was reached.
    #[must_use]
    pub fn bundles(&self) -> Option<Arc<Bundles>> {
        self.lock().bundles.clone()
    }

    /// Numbers for people.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.lock().counts()
    }

    /// The entries that a workload with these selectors is entitled to, in ascending order of their IDs.
    #[must_use]
    pub fn matching(&self, selectors: &SelectorSet) -> Vec<Arc<Entry>> {
        let mut state = self.lock();
        let matched = state.matching(selectors);
        state.touch(&matched);
        matched.iter().filter_map(|id| state.held.get(id)).map(|held| Arc::clone(&held.entry)).collect()
    }

    /// As [`matching`](Self::matching), without the identities that carry rights at the server ([`View::delegable`]).
    #[must_use]
    pub fn delegable(&self, selectors: &SelectorSet) -> Vec<Arc<Entry>> {
        let mut entries = self.matching(selectors);
        let privileged = Arc::clone(&self.lock().privileged);
        // The flags as well: the entries may be of a moment before.
        entries.retain(|entry| !entry.admin && !entry.downstream && !privileged.contains(&entry.spiffe_id));
        entries
    }

    /// Takes what the server said, in place of what it said before, and wakes those whom it concerns.
    pub fn update(&self, entries: Vec<Arc<Entry>>, bundles: Bundles) {
        let mut state = self.lock();
        // Of all entries, also of those that are never served.
        let with_rights = entries.iter().filter(|entry| entry.admin || entry.downstream);
        let privileged: BTreeSet<SpiffeId> = with_rights.map(|entry| entry.spiffe_id.clone()).collect();
        let rights_changed: BTreeSet<SpiffeId> =
            state.privileged.symmetric_difference(&privileged).cloned().collect();
        state.privileged = Arc::new(privileged);
        let changed = state.replace_entries(entries);
        let bundles = Arc::new(bundles);
        let before = state.bundles.replace(Arc::clone(&bundles));
        if before.as_ref().is_none_or(|before| before.own.wit != bundles.own.wit) {
            state.no_wit = false;
        }
        let parts = match &before {
            Some(before) => bundles.changes(before),
            None => BTreeMap::new(),
        };
        if before.is_none_or(|before| before.tainted != bundles.tainted) {
            for held in state.held.values_mut() {
                held.x509.0.taint(&bundles.tainted);
                held.wit.0.taint(&bundles.tainted);
            }
        }
        state.wake_after_update(&changed, &parts, &bundles);
        // What may be delegated has changed for whoever has another entry with such an ID.
        for group in state.groups.values() {
            let mut matched = group.matched.iter().filter_map(|id| state.held.get(id));
            if matched.any(|held| rights_changed.contains(&held.entry.spiffe_id)) {
                group.wake.send_modify(|count| *count += 1);
            }
        }
        state.report();
    }

    /// Joins a group of subscribers. What they lack is asked for as soon as one of them looks.
    #[must_use]
    pub fn subscribe(self: &Arc<Self>, selectors: SelectorSet, interest: Interest) -> Subscription {
        let mut state = self.lock();
        let matched = state.matching(&selectors);
        state.touch(&matched);
        let key = (selectors, interest);
        let group = state.groups.entry(key.clone()).or_insert_with(|| Group {
            matched,
            wake: watch::Sender::new(0),
            members: 0,
        });
        group.members += 1;
        let changes = group.wake.subscribe();
        drop(state);
        Subscription { cache: Arc::clone(self), key, changes }
    }

    /// Waits until a subscriber has missed something since this was last asked.
    pub async fn demanded(&self) {
        self.demand.notified().await;
    }

    /// The entries whose SVID of this kind is to be signed now. Also lets go of SVIDs beyond the limit.
    pub fn due<K: Kind>(&self, now: Timestamp, occasion: Occasion) -> Vec<Arc<Entry>> {
        let mut state = self.lock();
        let subscribed = state.subscribed(K::INTEREST);
        let keep = state.keep::<K>(&subscribed, self.limit);
        state.evict::<K>(&keep, now);

        let mut taints = state.taint_quota(now);
        let granted = taints;
        let mut due = Vec::new();
        for id in &keep {
            let Some(held) = state.held.get(id) else { continue };
            let slot = &K::slot(held).0;
            let wanted = match slot.need(&held.entry, now) {
                None => false,
                Some(Need::Missing) if occasion == Occasion::Demand => {
                    slot.failures() == 0 && subscribed.contains(id)
                }
                Some(_) if occasion == Occasion::Demand => false,
                Some(Need::Missing | Need::Renewal) => true,
                Some(Need::Tainted) => {
                    let allowed = taints > 0;
                    taints = taints.saturating_sub(1);
                    allowed
                }
            };
            if wanted {
                due.push(Arc::clone(&held.entry));
            }
        }
        state.taints_used(granted - taints);
        state.report();
        due
    }

    /// Remembers that the server does not sign WIT-SVIDs, and tells those who wait for one. Forgotten when the WIT
    /// authorities of the own bundle change.
    pub fn wit_is_unsupported(&self) {
        let mut state = self.lock();
        state.no_wit = true;
        for (_, group) in state.groups.iter().filter(|((_, interest), _)| *interest == Interest::Wit) {
            group.wake.send_modify(|count| *count += 1);
        }
    }

    /// Whether the server signs WIT-SVIDs: it publishes authorities for them and has not said otherwise.
    #[must_use]
    pub fn supports_wit(&self) -> bool {
        let state = self.lock();
        let publishes =
            state.bundles.as_ref().is_some_and(|bundles| !bundles.own.bundle.wit_authorities.is_empty());
        publishes && !state.no_wit
    }

    /// When the next SVID is to be renewed; now or earlier when one is overdue. One whose renewal has failed waits for the
    /// next regular look instead.
    #[must_use]
    pub fn next_renewal(&self, now: Timestamp) -> Option<Timestamp> {
        let state = self.lock();
        let held = state.held.values();
        let renewals = held.flat_map(|held| [held.x509.0.next_renewal(now), held.wit.0.next_renewal(now)]);
        // The next batch of what a tainted authority signed must not wait for the next look at the server.
        let tainted = |held: &Held| held.x509.0.awaits_replacement() || held.wit.0.awaits_replacement();
        let batch = state.held.values().any(tainted).then(|| state.next_taint_batch(now));
        renewals.flatten().chain(batch).min()
    }

    /// Takes what the server signed, or failed to sign, for these states of the entries.
    pub fn put<K: Kind>(&self, signed: Vec<Outcome<K::Svid>>) {
        let mut state = self.lock();
        let mut changed = HashSet::new();
        let tainted = state.bundles.as_ref().map(|bundles| bundles.tainted.clone()).unwrap_or_default();
        for (entry, result) in signed {
            let Some(held) = state.held.get_mut(&entry.id) else { continue };
            let slot = &mut K::slot_mut(held).0;
            metrics::svid_signed(K::NAME, result.is_ok());
            match result {
                Ok(svid) => slot.put(svid, &entry, &tainted),
                Err(()) => slot.failed(),
            }
            // A failure is news as well: nobody should go on waiting for it.
            changed.insert(entry.id.clone());
        }
        for ((_, interest), group) in &state.groups {
            if *interest == K::INTEREST && group.matched.iter().any(|id| changed.contains(id)) {
                group.wake.send_modify(|count| *count += 1);
            }
        }
        state.report();
    }

    fn view<K: Kind>(&self, key: &GroupKey, now: Timestamp) -> Option<View<K::Svid>> {
        let state = self.lock();
        let bundles = state.bundles.clone()?;
        let matched = state.groups.get(key).map(|group| group.matched.as_slice()).unwrap_or_default();
        let entries: Vec<_> = matched
            .iter()
            .filter_map(|id| state.held.get(id))
            .map(|held| (Arc::clone(&held.entry), K::slot(held).0.availability(&held.entry, now)))
            .collect();
        let privileged = Arc::clone(&state.privileged);
        drop(state);
        let waits = key.1 == K::INTEREST;
        if waits && entries.iter().any(|(_, availability)| matches!(availability, Availability::Pending)) {
            self.demand.notify_one();
        }
        Some(View { entries, bundles, privileged })
    }

    fn leave(&self, key: &GroupKey) {
        let mut state = self.lock();
        let Some(group) = state.groups.get_mut(key) else { return };
        group.members -= 1;
        if group.members == 0
            && let Some(group) = state.groups.remove(key)
        {
            state.touch(&group.matched);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change is whole before anything could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A member of a group of subscribers. Leaves it when dropped.
pub struct Subscription {
    cache: Arc<SvidCache>,
    key: GroupKey,
    changes: watch::Receiver<u64>,
}

impl Subscription {
    /// What the workload is entitled to now; `None` before the server was first reached. Later changes are reported by
    /// [`changed`](Self::changed).
    #[must_use]
    pub fn view<K: Kind>(&mut self, now: Timestamp) -> Option<View<K::Svid>> {
        self.changes.mark_unchanged();
        self.cache.view::<K>(&self.key, now)
    }

    /// Waits for a change since the last view.
    pub async fn changed(&mut self) {
        if self.changes.changed().await.is_err() {
            // The group lives as long as its members, and this is one.
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.cache.leave(&self.key);
    }
}

impl State {
    fn matching(&self, selectors: &SelectorSet) -> Vec<EntryId> {
        let candidates = selectors.iter().filter_map(|selector| self.by_selector.get(selector)).flatten();
        let mut matched: Vec<EntryId> = candidates
            .filter(|id| self.held.get(*id).is_some_and(|held| held.entry.selectors.is_subset_of(selectors)))
            .cloned()
            .collect();
        matched.sort_unstable();
        matched
    }

    fn touch(&mut self, ids: &[EntryId]) {
        self.uses += 1;
        for id in ids {
            if let Some(held) = self.held.get_mut(id) {
                held.last_used = self.uses;
            }
        }
    }

    /// Returns the IDs of entries that came, went or changed.
    fn replace_entries(&mut self, entries: Vec<Arc<Entry>>) -> HashSet<EntryId> {
        let mut changed = HashSet::new();
        // Entries for an SVID store are pushed elsewhere and never served to a process; one without selectors would be
        // every process's.
        let mut entries: BTreeMap<EntryId, Arc<Entry>> = entries
            .into_iter()
            .filter(|entry| !entry.store_svid && !entry.selectors.is_empty())
            .map(|entry| (entry.id.clone(), entry))
            .collect();
        let gone: Vec<EntryId> = self.held.keys().filter(|id| !entries.contains_key(*id)).cloned().collect();
        for id in gone {
            if let Some(held) = self.held.remove(&id) {
                self.unindex(&held.entry);
                changed.insert(id);
            }
        }
        entries.retain(|id, entry| {
            self.held
                .get(id)
                .is_none_or(|held| version(&held.entry) != version(entry) || held.entry != *entry)
        });
        for (id, entry) in entries {
            changed.insert(id.clone());
            if let Some(selector) = entry.selectors.iter().next() {
                match self.held.get_mut(&id) {
                    Some(held) => {
                        held.x509.0.entry_changed();
                        held.wit.0.entry_changed();
                        let before = std::mem::replace(&mut held.entry, Arc::clone(&entry));
                        self.unindex(&before);
                    }
                    None => {
                        let (x509, wit) = (SlotOf(Slot::default()), SlotOf(Slot::default()));
                        self.held
                            .insert(id.clone(), Held { entry: Arc::clone(&entry), x509, wit, last_used: 0 });
                    }
                }
                self.by_selector.entry(selector.clone()).or_default().insert(id);
            }
        }
        changed
    }

    fn unindex(&mut self, entry: &Entry) {
        let Some(selector) = entry.selectors.iter().next() else { return };
        if let Some(ids) = self.by_selector.get_mut(selector) {
            ids.remove(&entry.id);
            if ids.is_empty() {
                self.by_selector.remove(selector);
            }
        }
    }

    fn wake_after_update(
        &mut self,
        changed: &HashSet<EntryId>,
        parts: &BTreeMap<TrustDomain, bundles::Parts>,
        bundles: &Bundles,
    ) {
        let mut groups = std::mem::take(&mut self.groups);
        for ((selectors, interest), group) in &mut groups {
            let mut wakes = false;
            if !changed.is_empty() {
                let matched = self.matching(selectors);
                wakes = matched != group.matched || matched.iter().any(|id| changed.contains(id));
                group.matched = matched;
            }
            let concerns = |name: &TrustDomain| {
                *name == bundles.own.bundle.trust_domain
                    || *interest == Interest::AllBundles
                    || group
                        .matched
                        .iter()
                        .filter_map(|id| self.held.get(id))
                        .any(|held| held.entry.federates_with.binary_search(name).is_ok())
            };
            wakes |= parts.iter().any(|(name, parts)| {
                let wanted = match interest {
                    Interest::X509 => parts.x509,
                    Interest::Bundles | Interest::AllBundles => parts.x509 || parts.tokens,
                    Interest::Wit => false,
                };
                wanted && concerns(name)
            });
            if wakes {
                group.wake.send_modify(|count| *count += 1);
            }
        }
        self.groups = groups;
    }

    fn subscribed(&self, interest: Interest) -> HashSet<EntryId> {
        let groups = self.groups.iter().filter(|((_, of), _)| *of == interest);
        groups.flat_map(|(_, group)| group.matched.iter().cloned()).collect()
    }

    /// The entries whose SVID is kept: those with a subscriber, then up to the limit those that were used last, then
    /// those that are signed ahead.
    fn keep<K: Kind>(&self, subscribed: &HashSet<EntryId>, limit: usize) -> Vec<EntryId> {
        let mut keep: Vec<EntryId> = subscribed.iter().cloned().collect();
        keep.sort_unstable();
        if K::AHEAD {
            let mut others: Vec<&Held> = self
                .held
                .values()
                .filter(|held| !subscribed.contains(&held.entry.id))
                .filter(|held| K::slot(held).0.svid().is_some() || !held.entry.disable_x509_svid_prefetch)
                .collect();
            // A held SVID is worth more than one to be signed; among equals, whoever came last.
            others.sort_by_key(|held| {
                (K::slot(held).0.svid().is_none(), std::cmp::Reverse(held.last_used), held.entry.id.clone())
            });
            let room = limit.saturating_sub(keep.len());
            keep.extend(others.into_iter().take(room).map(|held| held.entry.id.clone()));
        }
        keep
    }

    /// Lets go of what is not kept. SVIDs that are not signed ahead stay until they need renewal.
    fn evict<K: Kind>(&mut self, keep: &[EntryId], now: Timestamp) {
        let keep: HashSet<&EntryId> = keep.iter().collect();
        for held in self.held.values_mut() {
            if keep.contains(&held.entry.id) {
                continue;
            }
            let stale = K::slot(held).0.need(&held.entry, now).is_some();
            if (K::AHEAD || stale) && K::slot_mut(held).0.drop_svid() {
                tracing::debug!(
                    entry = held.entry.id.as_str(),
                    kind = K::NAME,
                    "an SVID that nobody uses is let go"
                );
            }
        }
    }

    /// How many SVIDs may be replaced now because of a tainted authority. The time runs from the first that is replaced, not
    /// from the first look, or two batches could follow each other at once.
    fn taint_quota(&mut self, now: Timestamp) -> usize {
        match self.taint_window {
            Some((since, used)) if used > 0 && now.saturating_since(since) < TAINT_WINDOW => {
                TAINT_BATCH.saturating_sub(used)
            }
            _ => {
                self.taint_window = Some((now, 0));
                TAINT_BATCH
            }
        }
    }

    /// When SVIDs may be replaced again because of a tainted authority.
    fn next_taint_batch(&self, now: Timestamp) -> Timestamp {
        match self.taint_window {
            Some((since, used)) if used >= TAINT_BATCH => since.saturating_add(TAINT_WINDOW).max(now),
            _ => now,
        }
    }

    fn taints_used(&mut self, count: usize) {
        if let Some((_, used)) = &mut self.taint_window {
            *used += count;
        }
    }

    fn counts(&self) -> Counts {
        Counts {
            entries: self.held.len(),
            x509: self.held.values().filter(|held| held.x509.0.svid().is_some()).count(),
            wit: self.held.values().filter(|held| held.wit.0.svid().is_some()).count(),
        }
    }

    fn report(&self) {
        let Counts { entries, x509, wit } = self.counts();
        metrics::entries(entries);
        metrics::svids("x509", x509);
        metrics::svids("wit", wit);
        metrics::next_expiry(
            self.held.values().filter_map(|held| held.x509.0.svid()).map(|svid| svid.not_after).min(),
        );
    }
}

/// SVIDs of a tainted authority are replaced at this rate, so that a whole fleet does not ask at once.
const TAINT_BATCH: usize = 100;
const TAINT_WINDOW: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests;
