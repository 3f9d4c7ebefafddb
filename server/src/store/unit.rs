//! The unit of work: what a closure given to [`Store::write`](super::Store::write) sees and changes.
//!
//! Reads look at the unit's own writes, then at those of the writes before it in the same group commit, then at the
//! state in memory (or, for what is not kept there, at the database). Its writes stay in an [`Overlay`] until the
//! closure returns `Ok`; then they join the group's. A unit that fails is dropped with its overlay.

use std::borrow::Borrow;
use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use bonafide_identity::{
    AttestedNode, AuthorityKind, Bundle, Entry, EntryId, JoinToken, SpiffeId, Timestamp, TrustDomain,
};

use super::StoreError;
use super::aggregates::{
    Bundles, Change, ChangeLog, Entries, FederationRelationship, Issuance, IssuedSvid, JoinTokens, Journal,
    JournalRecord, MAX_SPENT, Nodes, Relationships, Spending, SpentTokens,
};
use super::codec::{self, DecodeError};
use super::kv::{KeyValue, Range};
use super::record::{self, Table};
use super::state::{Applied, Placed, State};
use super::writer::Pair;

/// Writes that are not committed yet.
#[derive(Debug, Default)]
pub(super) struct Overlay {
    pub(super) applied: Applied,
    /// Payloads by key; `None` deletes.
    pub(super) payloads: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    /// Bytes of keys and payloads, to bound a group.
    pub(super) bytes: usize,
    /// Entries of `applied` by what makes them similar.
    similar: HashMap<(SpiffeId, SpiffeId), Vec<EntryId>>,
    pub(super) last_row: u64,
}

impl Overlay {
    /// Nothing written; rows go on after `last_row`.
    pub(super) fn after_row(last_row: u64) -> Self {
        Self { last_row, ..Self::default() }
    }

    /// Takes over the writes of a unit that was made on top of this.
    pub(super) fn merge(&mut self, unit: Self) {
        self.applied.entries.extend(unit.applied.entries);
        self.applied.nodes.extend(unit.applied.nodes);
        self.applied.bundles.extend(unit.applied.bundles);
        self.applied.relationships.extend(unit.applied.relationships);
        self.applied.journals.extend(unit.applied.journals);
        self.applied.changes.extend(unit.applied.changes);
        self.applied.bundles_changed |= unit.applied.bundles_changed;
        self.applied.spent += unit.applied.spent;
        self.payloads.extend(unit.payloads);
        self.bytes += unit.bytes;
        for (key, mut ids) in unit.similar {
            self.similar.entry(key).or_default().append(&mut ids);
        }
        self.last_row = unit.last_row;
    }

    fn put(&mut self, key: Vec<u8>, payload: Vec<u8>) {
        self.bytes += key.len() + payload.len();
        self.payloads.insert(key, Some(payload));
    }

    fn delete(&mut self, key: Vec<u8>) {
        self.bytes += key.len();
        self.payloads.insert(key, None);
    }
}

/// A unit of work; the traits of [`aggregates`](super::aggregates) are its methods.
pub struct Unit<'a> {
    pub(super) state: &'a State,
    pub(super) database: &'a dyn KeyValue,
    pub(super) file: &'a Path,
    /// Whose journal the unit sees; empty in a store of one server.
    pub(super) server: &'a str,
    pub(super) group: &'a Overlay,
    pub(super) own: Overlay,
    /// Set when the database failed to answer: the writer then opens it anew.
    pub(super) failed: &'a Cell<bool>,
}

impl Unit<'_> {
    fn payload(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        if let Some(written) = self.own.payloads.get(key).or_else(|| self.group.payloads.get(key)) {
            return Ok(written.clone());
        }
        let value = self.database.get(key).map_err(|error| {
            self.failed.set(true);
            StoreError::from_kv(error, self.file)
        })?;
        value
            .map(|value| {
                let opened = record::open(key, &value).map_err(|error| self.corrupt(error))?;
                Ok(opened.payload.to_vec())
            })
            .transpose()
    }

    /// Keys and payloads of a range that `wanted` accepts, in order, up to `limit`.
    fn collect(
        &self,
        range: &Range,
        limit: usize,
        mut wanted: impl FnMut(&[u8]) -> Result<bool, DecodeError>,
    ) -> Result<Vec<Pair>, StoreError> {
        let mut found = Vec::new();
        let mut damage = None;
        let written =
            |key: &[u8]| self.own.payloads.contains_key(key) || self.group.payloads.contains_key(key);
        let scanned = self.database.scan(range, &mut |key, value| {
            if written(key) {
                return ControlFlow::Continue(());
            }
            match record::open(key, value) {
                Err(error) => damage = Some(self.corrupt(error)),
                Ok(opened) => match wanted(opened.payload) {
                    Err(error) => damage = Some(self.corrupt(error)),
                    Ok(true) => found.push((key.to_vec(), opened.payload.to_vec())),
                    Ok(false) => {}
                },
            }
            if damage.is_some() || found.len() >= limit {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        scanned.map_err(|error| {
            self.failed.set(true);
            StoreError::from_kv(error, self.file)
        })?;
        if let Some(damage) = damage {
            return Err(damage);
        }
        let in_range =
            |key: &[u8]| key >= &range.from[..] && range.to.as_ref().is_none_or(|to| key < &to[..]);
        let group = self.group.payloads.iter().filter(|(key, _)| !self.own.payloads.contains_key(*key));
        for (key, payload) in group.chain(&self.own.payloads) {
            if let Some(payload) = payload.as_ref().filter(|_| in_range(key))
                && wanted(payload).map_err(|error| self.corrupt(error))?
            {
                found.push((key.clone(), payload.clone()));
            }
        }
        found.sort_unstable();
        found.truncate(limit);
        Ok(found)
    }

    fn corrupt(&self, error: impl ToString) -> StoreError {
        StoreError::corrupt(self.file, error.to_string())
    }

    fn next_row(&mut self) -> u64 {
        self.own.last_row += 1;
        self.own.last_row
    }

    fn placed_entry(&self, id: &EntryId) -> Option<Placed<Entry>> {
        match written(&self.own.applied.entries, &self.group.applied.entries, id) {
            Some((row, entry)) => entry.clone().map(|entry| (*row, entry)),
            None => {
                let entries = self.state.entries();
                Some((entries.row(id)?, entries.get(id)?.clone()))
            }
        }
    }

    fn entry_set(&mut self, row: u64, entry: Entry) -> Arc<Entry> {
        let entry = Arc::new(entry);
        self.own.put(entry_key(row), codec::entry(&entry));
        let similar = self.own.similar.entry((entry.spiffe_id.clone(), entry.parent_id.clone())).or_default();
        similar.push(entry.id.clone());
        self.own.applied.entries.insert(entry.id.clone(), (row, Some(entry.clone())));
        self.own.applied.changes.push(Change::Entry(entry.id.clone()));
        entry
    }

    fn placed_node(&self, id: &SpiffeId) -> Option<Placed<AttestedNode>> {
        match written(&self.own.applied.nodes, &self.group.applied.nodes, id) {
            Some((row, node)) => node.clone().map(|node| (*row, node)),
            None => self.state.tables().nodes.placed(id),
        }
    }

    fn placed_bundle(&self, trust_domain: &TrustDomain) -> Option<Placed<Bundle>> {
        match written(&self.own.applied.bundles, &self.group.applied.bundles, trust_domain) {
            Some((row, bundle)) => bundle.clone().map(|bundle| (*row, bundle)),
            None => self.state.tables().bundles.placed(trust_domain),
        }
    }

    fn placed_relationship(&self, trust_domain: &TrustDomain) -> Option<Placed<FederationRelationship>> {
        match written(&self.own.applied.relationships, &self.group.applied.relationships, trust_domain) {
            Some((row, relationship)) => relationship.clone().map(|relationship| (*row, relationship)),
            None => self.state.tables().relationships.placed(trust_domain),
        }
    }

    fn relationship_set(
        &mut self,
        row: u64,
        relationship: FederationRelationship,
    ) -> Arc<FederationRelationship> {
        let name = relationship.trust_domain.clone();
        let relationship = Arc::new(relationship);
        self.own.put(name_key(Table::Relationship, &name), codec::relationship(row, &relationship));
        self.own.applied.relationships.insert(name.clone(), (row, Some(relationship.clone())));
        self.own.applied.changes.push(Change::Relationship(name));
        self.own.applied.bundles_changed = true;
        relationship
    }
}

impl Entries for Unit<'_> {
    fn entry(&self, id: &EntryId) -> Option<Arc<Entry>> {
        self.placed_entry(id).map(|(_, entry)| entry)
    }

    fn similar_entry(&self, entry: &Entry) -> Option<Arc<Entry>> {
        let same = |other: &Arc<Entry>| {
            other.spiffe_id == entry.spiffe_id
                && other.parent_id == entry.parent_id
                && other.selectors == entry.selectors
        };
        let key = (entry.spiffe_id.clone(), entry.parent_id.clone());
        let fresh = self.own.similar.get(&key).into_iter().chain(self.group.similar.get(&key)).flatten();
        if let Some(found) = fresh.filter_map(|id| self.entry(id)).find(same) {
            return Some(found);
        }
        let untouched =
            |id: &EntryId| written(&self.own.applied.entries, &self.group.applied.entries, id).is_none();
        let entries = self.state.entries();
        match entries.similar(entry) {
            None => None,
            Some(found) if untouched(&found.id) => Some(found.clone()),
            // The one it names has changed in the meantime; there may be another.
            Some(_) => entries
                .by_spiffe_id(&entry.spiffe_id)
                .find(|other| untouched(&other.id) && same(other))
                .cloned(),
        }
    }

    fn entries_where(&self, wanted: &mut dyn FnMut(&Entry) -> bool) -> Vec<Arc<Entry>> {
        let fresh = |id: &EntryId| written(&self.own.applied.entries, &self.group.applied.entries, id);
        let mut found: Vec<_> = self
            .state
            .entries()
            .iter()
            .filter(|entry| fresh(&entry.id).is_none() && wanted(entry))
            .cloned()
            .collect();
        let group =
            self.group.applied.entries.iter().filter(|(id, _)| !self.own.applied.entries.contains_key(*id));
        let changed = group.chain(&self.own.applied.entries).filter_map(|(_, (_, entry))| entry.as_ref());
        found.extend(changed.filter(|entry| wanted(entry)).cloned());
        found
    }

    fn entry_create(&mut self, entry: Entry) -> Result<Arc<Entry>, StoreError> {
        if self.entry(&entry.id).is_some() {
            return Err(StoreError::AlreadyExists { what: "entry" });
        }
        // Deleted in this very commit: the place is still taken.
        let vacated =
            written(&self.own.applied.entries, &self.group.applied.entries, &entry.id).map(|(row, _)| *row);
        let row = vacated.unwrap_or_else(|| self.next_row());
        Ok(self.entry_set(row, entry))
    }

    fn entry_update(&mut self, entry: Entry) -> Result<Arc<Entry>, StoreError> {
        let (row, _) = self.placed_entry(&entry.id).ok_or(StoreError::NotFound("entry"))?;
        Ok(self.entry_set(row, entry))
    }

    fn entry_delete(&mut self, id: &EntryId) -> Result<Arc<Entry>, StoreError> {
        let (row, entry) = self.placed_entry(id).ok_or(StoreError::NotFound("entry"))?;
        self.own.delete(entry_key(row));
        self.own.applied.entries.insert(id.clone(), (row, None));
        self.own.applied.changes.push(Change::Entry(id.clone()));
        Ok(entry)
    }
}

impl Nodes for Unit<'_> {
    fn node(&self, id: &SpiffeId) -> Option<Arc<AttestedNode>> {
        self.placed_node(id).map(|(_, node)| node)
    }

    fn node_put(&mut self, node: AttestedNode) -> Result<Arc<AttestedNode>, StoreError> {
        let place = self.placed_node(&node.id).map(|(row, _)| row);
        let vacated =
            written(&self.own.applied.nodes, &self.group.applied.nodes, &node.id).map(|(row, _)| *row);
        let row = place.or(vacated).unwrap_or_else(|| self.next_row());
        let id = node.id.clone();
        let node = Arc::new(node);
        self.own.put(Table::Node.key(id.to_string().as_bytes()), codec::node(row, &node));
        self.own.applied.nodes.insert(id.clone(), (row, Some(node.clone())));
        self.own.applied.changes.push(Change::Node(id));
        Ok(node)
    }

    fn node_delete(&mut self, id: &SpiffeId) -> Result<Arc<AttestedNode>, StoreError> {
        let (row, node) = self.placed_node(id).ok_or(StoreError::NotFound("agent"))?;
        self.own.delete(Table::Node.key(id.to_string().as_bytes()));
        self.own.applied.nodes.insert(id.clone(), (row, None));
        self.own.applied.changes.push(Change::Node(id.clone()));
        Ok(node)
    }
}

impl Bundles for Unit<'_> {
    fn bundle(&self, trust_domain: &TrustDomain) -> Option<Arc<Bundle>> {
        self.placed_bundle(trust_domain).map(|(_, bundle)| bundle)
    }

    fn bundle_put(&mut self, bundle: Bundle) -> Result<Arc<Bundle>, StoreError> {
        let name = bundle.trust_domain.clone();
        let place = self.placed_bundle(&name).map(|(row, _)| row);
        let vacated =
            written(&self.own.applied.bundles, &self.group.applied.bundles, &name).map(|(row, _)| *row);
        let row = place.or(vacated).unwrap_or_else(|| self.next_row());
        let bundle = Arc::new(bundle);
        self.own.put(name_key(Table::Bundle, &name), codec::bundle(row, &bundle));
        self.own.applied.bundles.insert(name.clone(), (row, Some(bundle.clone())));
        self.own.applied.changes.push(Change::Bundle(name));
        self.own.applied.bundles_changed = true;
        Ok(bundle)
    }

    fn bundle_delete(&mut self, trust_domain: &TrustDomain) -> Result<Arc<Bundle>, StoreError> {
        let (row, bundle) = self.placed_bundle(trust_domain).ok_or(StoreError::NotFound("bundle"))?;
        self.own.delete(name_key(Table::Bundle, trust_domain));
        self.own.applied.bundles.insert(trust_domain.clone(), (row, None));
        self.own.applied.changes.push(Change::Bundle(trust_domain.clone()));
        self.own.applied.bundles_changed = true;
        Ok(bundle)
    }
}

impl JoinTokens for Unit<'_> {
    fn token_create(&mut self, token: &JoinToken) -> Result<(), StoreError> {
        if token.value.len() > MAX_TOKEN {
            return Err(StoreError::refused(format!("a join token may have {MAX_TOKEN} bytes at most")));
        }
        let key = Table::Token.key(token.value.as_bytes());
        if self.payload(&key)?.is_some() {
            return Err(StoreError::AlreadyExists { what: "join token" });
        }
        self.own.put(key, codec::token(token));
        Ok(())
    }

    fn token_take(&mut self, value: &str) -> Result<Option<JoinToken>, StoreError> {
        let key = Table::Token.key(value.as_bytes());
        let Some(payload) = self.payload(&key)? else { return Ok(None) };
        let token = codec::read_token(&payload).map_err(|error| self.corrupt(error))?;
        self.own.delete(key);
        Ok(Some(token))
    }

    fn tokens_prune(&mut self, now: Timestamp, limit: usize) -> Result<usize, StoreError> {
        let expired = |payload: &[u8]| Ok(codec::read_token(payload)?.expires_at <= now);
        let found = self.collect(&Table::Token.all(), limit, expired)?;
        let count = found.len();
        for (key, _) in found {
            self.own.delete(key);
        }
        Ok(count)
    }
}

impl SpentTokens for Unit<'_> {
    fn spend(
        &mut self,
        fingerprint: &[u8; 32],
        until: Timestamp,
        now: Timestamp,
    ) -> Result<Spending, StoreError> {
        let key = Table::Spent.key(fingerprint);
        if self.payload(&key)?.is_some() {
            return Ok(Spending::Again);
        }
        let kept = self.state.spent() + self.group.applied.spent + self.own.applied.spent;
        if kept >= MAX_SPENT && self.spent_prune(now, 1000)? == 0 {
            return Ok(Spending::Full);
        }
        self.own.put(key, codec::spent(until));
        self.own.applied.spent += 1;
        Ok(Spending::First)
    }

    fn spent_prune(&mut self, now: Timestamp, limit: usize) -> Result<usize, StoreError> {
        let past = |payload: &[u8]| Ok(codec::read_spent(payload)?.saturating_add(SPENT_LONGER) <= now);
        let found = self.collect(&Table::Spent.all(), limit, past)?;
        let count = found.len();
        self.own.applied.spent -= i64::try_from(count).unwrap_or(0);
        for (key, _) in found {
            self.own.delete(key);
        }
        Ok(count)
    }
}

impl Relationships for Unit<'_> {
    fn relationship(&self, trust_domain: &TrustDomain) -> Option<Arc<FederationRelationship>> {
        self.placed_relationship(trust_domain).map(|(_, relationship)| relationship)
    }

    fn relationship_create(
        &mut self,
        relationship: FederationRelationship,
    ) -> Result<Arc<FederationRelationship>, StoreError> {
        let name = &relationship.trust_domain;
        if self.placed_relationship(name).is_some() {
            return Err(StoreError::AlreadyExists { what: "federation relationship" });
        }
        let written = written(&self.own.applied.relationships, &self.group.applied.relationships, name);
        let vacated = written.map(|(row, _)| *row);
        let row = vacated.unwrap_or_else(|| self.next_row());
        Ok(self.relationship_set(row, relationship))
    }

    fn relationship_update(
        &mut self,
        relationship: FederationRelationship,
    ) -> Result<Arc<FederationRelationship>, StoreError> {
        let found = self.placed_relationship(&relationship.trust_domain);
        let (row, _) = found.ok_or(StoreError::NotFound("federation relationship"))?;
        Ok(self.relationship_set(row, relationship))
    }

    fn relationship_delete(
        &mut self,
        trust_domain: &TrustDomain,
    ) -> Result<Arc<FederationRelationship>, StoreError> {
        let found = self.placed_relationship(trust_domain);
        let (row, relationship) = found.ok_or(StoreError::NotFound("federation relationship"))?;
        self.own.delete(name_key(Table::Relationship, trust_domain));
        self.own.applied.relationships.insert(trust_domain.clone(), (row, None));
        self.own.applied.changes.push(Change::Relationship(trust_domain.clone()));
        self.own.applied.bundles_changed = true;
        Ok(relationship)
    }
}

impl Journal for Unit<'_> {
    fn journal(&self, kind: AuthorityKind) -> Result<Vec<JournalRecord>, StoreError> {
        let range = Range::prefix(&journal_key(self.server, kind, ""));
        let records = self.collect(&range, usize::MAX, |_| Ok(true))?;
        let mut records = records
            .iter()
            .map(|(_, payload)| codec::read_journal(payload))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| self.corrupt(error))?;
        records.sort_by_key(|record| record.slot.issued_at);
        Ok(records)
    }

    fn journal_put(&mut self, record: &JournalRecord) -> Result<(), StoreError> {
        let key = journal_key(self.server, record.kind, &record.slot.authority_id);
        self.own.put(key.clone(), codec::journal(record));
        self.own.applied.journals.insert(key, Some(record.revoked.clone()));
        Ok(())
    }

    fn journal_delete(&mut self, kind: AuthorityKind, authority_id: &str) -> Result<(), StoreError> {
        let key = journal_key(self.server, kind, authority_id);
        self.own.delete(key.clone());
        self.own.applied.journals.insert(key, None);
        Ok(())
    }

    fn revoked(&self, kind: AuthorityKind) -> Result<Vec<String>, StoreError> {
        let range = Range::prefix(&Table::Journal.key(&[codec::kind_number(kind)]));
        let fresh = [&self.group.applied.journals, &self.own.applied.journals];
        if fresh.iter().all(|journals| journals.is_empty()) {
            return Ok(self.state.revoked(kind));
        }
        let mut all = Vec::new();
        for (_, payload) in self.collect(&range, usize::MAX, |_| Ok(true))? {
            all.extend(codec::read_journal(&payload).map_err(|error| self.corrupt(error))?.revoked);
        }
        all.sort_unstable();
        all.dedup();
        Ok(all)
    }

    fn journals_prune(&mut self, now: Timestamp) -> Result<usize, StoreError> {
        let own = AuthorityKind::ALL.map(|kind| journal_key(self.server, kind, ""));
        let over = |payload: &[u8]| {
            Ok(codec::read_journal(payload)?.slot.not_after.saturating_add(FORGOTTEN) <= now)
        };
        let mut found = self.collect(&Table::Journal.all(), usize::MAX, over)?;
        found.retain(|(key, _)| own.iter().all(|own| !key.starts_with(own)));
        let count = found.len();
        for (key, _) in found {
            self.own.delete(key.clone());
            self.own.applied.journals.insert(key, None);
        }
        Ok(count)
    }
}

impl Issuance for Unit<'_> {
    fn record_issued(&mut self, svids: &[IssuedSvid]) -> Result<(), StoreError> {
        for group in svids.chunk_by(|a, b| a.kind == b.kind && a.authority_id == b.authority_id) {
            for part in group.chunks(SVIDS_PER_RECORD) {
                let Some(last) = part.iter().map(|svid| svid.not_after).max() else { continue };
                let mut key = issuance_end(last).to_vec();
                key.extend_from_slice(&self.next_row().to_be_bytes());
                self.own.put(Table::Issuance.key(&key), codec::issuance(part));
            }
        }
        Ok(())
    }

    fn issued(&self, now: Timestamp, limit: usize) -> Result<Vec<IssuedSvid>, StoreError> {
        let mut range = Table::Issuance.all();
        range.from = Table::Issuance.key(&issuance_end(now));
        let mut found = Vec::new();
        for (_, payload) in self.collect(&range, limit, |_| Ok(true))? {
            let svids = codec::read_issuance(&payload).map_err(|error| self.corrupt(error))?;
            found.extend(svids.into_iter().filter(|svid| svid.not_after > now));
            if found.len() >= limit {
                break;
            }
        }
        found.sort_by_key(|svid| svid.not_after);
        Ok(found)
    }

    fn issued_prune(&mut self, now: Timestamp, limit: usize) -> Result<usize, StoreError> {
        let expired = Table::Issuance.all().until(&Table::Issuance.key(&issuance_end(now)));
        let found = self.collect(&expired, limit, |_| Ok(true))?;
        let count = found.len();
        for (key, _) in found {
            self.own.delete(key);
        }
        Ok(count)
    }
}

impl ChangeLog for Unit<'_> {
    fn epoch(&self) -> u64 {
        let fresh = self.group.applied.changes.len() + self.own.applied.changes.len();
        self.state.epoch() + fresh as u64
    }
}

/// The value is a key, and keys that are much longer than this fit into no index.
const MAX_TOKEN: usize = 1024;

/// Records of the issuance log are kept below the size at which drivers cut values.
const SVIDS_PER_RECORD: usize = 28;

/// What was written for `key`, by the unit or by the group before it.
fn written<'a, K: Hash + Eq + Borrow<Q>, Q: Hash + Eq + ?Sized, V>(
    own: &'a HashMap<K, V>,
    group: &'a HashMap<K, V>,
    key: &Q,
) -> Option<&'a V> {
    own.get(key).or_else(|| group.get(key))
}

fn entry_key(row: u64) -> Vec<u8> {
    Table::Entry.key(&row.to_be_bytes())
}

fn name_key(table: Table, trust_domain: &TrustDomain) -> Vec<u8> {
    table.key(trust_domain.as_str().as_bytes())
}

/// In a group each server has a journal of its own: its identity stands between two zeros, which no authority ID holds.
fn journal_key(server: &str, kind: AuthorityKind, authority_id: &str) -> Vec<u8> {
    let mut key = Table::Journal.key(&[codec::kind_number(kind)]);
    if !server.is_empty() {
        key.push(0);
        key.extend_from_slice(server.as_bytes());
        key.push(0);
    }
    key.extend_from_slice(authority_id.as_bytes());
    key
}

/// The first second in which an SVID that ends at `not_after` is surely over, in ascending order of bytes.
fn issuance_end(not_after: Timestamp) -> [u8; 8] {
    u64::try_from(not_after.unix_seconds()).unwrap_or(0).to_be_bytes()
}

/// How long after its end an authority of another server stays in the journal: what it revoked may be needed longer.
const FORGOTTEN: std::time::Duration = std::time::Duration::from_secs(14 * 86_400);

/// Attestations decide by the time at which they began; none takes as long as this.
const SPENT_LONGER: std::time::Duration = std::time::Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use bonafide_testkit::{ManualClock, trust_domain};

    use super::super::{Spending, Store, StoreConfig};
    use super::*;

    #[tokio::test]
    async fn used_tokens_are_counted_forgotten_and_bounded() {
        let clock = ManualClock::default();
        let (store, _) = Store::open(StoreConfig::memory(trust_domain()), Arc::new(clock.as_fn())).unwrap();
        let now = clock.now();
        let later = |seconds| now.saturating_add(std::time::Duration::from_secs(seconds));
        let spend = async |name: u8, until, at| {
            store.write(move |unit| unit.spend(&[name; 32], until, at)).await.unwrap()
        };
        assert_eq!(spend(1, later(10), now).await, Spending::First);
        assert_eq!(spend(1, later(10), now).await, Spending::Again);
        assert_eq!(spend(2, later(20), now).await, Spending::First);
        assert_eq!(store.state().spent(), 2);
        // A write that fails uses nothing up.
        let failed = store.write(|unit| {
            unit.spend(&[3; 32], Timestamp::from_unix_seconds(0), Timestamp::from_unix_seconds(0))?;
            Err::<(), _>(StoreError::NotFound("agent"))
        });
        assert!(failed.await.is_err());
        assert_eq!(store.state().spent(), 2);

        let prune = async |at| store.write(move |unit| unit.spent_prune(at, 10)).await.unwrap();
        // An attempt that began when the token was good may still be under way.
        assert_eq!(prune(later(309)).await, 0);
        assert_eq!(prune(later(310)).await, 1);
        assert_eq!((store.state().spent(), prune(later(310)).await), (1, 0));
        assert_eq!(spend(1, later(10), now).await, Spending::First);

        // As if that many were there: nothing is accepted until one can be forgotten.
        store.state().count_spent(MAX_SPENT - 2);
        assert_eq!(spend(4, later(30), now).await, Spending::Full);
        assert_eq!(spend(2, later(20), now).await, Spending::Again);
        assert_eq!(spend(4, later(30), later(310)).await, Spending::First);
        assert_eq!(spend(5, later(30), later(310)).await, Spending::Full);
    }
}
