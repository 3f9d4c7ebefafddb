//! Opening: every record is read once, checked, and becomes the state in memory.
//!
//! Nothing is served from a database that does not check out as a whole: each record against its checksum, all of them
//! against the tally in the header, the header against the expected-state file.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread;

use bonafide_identity::{Entry, EntryIndex, TrustDomain};

use super::StoreError;
use super::aggregates::Change;
use super::codec::{self, EntryReader, Header};
use super::kv::{KeyValue, Range};
use super::record::{self, SealError, Table, Tally};
use super::state::{Changes, State, Tables};

/// A database that checked out.
pub(super) struct Loaded {
    pub(super) header: Header,
    pub(super) state: State,
    /// Epoch of the last change in each record of the change log, ascending.
    pub(super) change_records: VecDeque<u64>,
    pub(super) tokens: usize,
}

/// Reads the header. `None` when there is none.
pub(super) fn read_header(database: &dyn KeyValue, file: &Path) -> Result<Option<Header>, StoreError> {
    let key = Table::Header.key(&[]);
    let Some(value) = database.get(&key).map_err(|error| StoreError::from_kv(error, file))? else {
        return Ok(None);
    };
    let opened = record::open(&key, &value).map_err(|error| sealed(error, file))?;
    Header::read(opened.payload).map(Some).map_err(|error| StoreError::corrupt(file, error.to_string()))
}

/// Reads and checks everything.
pub(super) fn load(
    database: &dyn KeyValue,
    header: Header,
    trust_domain: &TrustDomain,
    file: &Path,
) -> Result<Loaded, StoreError> {
    let corrupt = |what: String| StoreError::corrupt(file, what);
    let mut tables = Tables::default();
    let mut change_log: Vec<(u64, Vec<Change>)> = Vec::new();
    let mut tokens = 0;
    let mut spent = 0;
    let mut tally = Tally::default();

    // Filling the index costs as much as reading and decoding, so it goes on beside them.
    let (entries, scanned) = thread::scope(|scope| {
        let (send, receive) = mpsc::sync_channel::<Vec<(u64, Arc<Entry>)>>(CHUNKS_AHEAD);
        let expected = usize::try_from(header.entries.min(header.count)).unwrap_or(0);
        let builder = scope.spawn(move || {
            let mut index = EntryIndex::new(trust_domain.clone());
            index.reserve(expected);
            for (row, entry) in receive.into_iter().flatten() {
                if index.row(&entry.id).is_some() {
                    return Err(format!("two records are of entry {}", entry.id));
                }
                index.put_at(row, entry);
            }
            Ok(index)
        });
        let mut chunk = Vec::with_capacity(CHUNK);
        let mut reader = EntryReader::default();
        let mut damage = None;
        let result = database.scan(&Range::all(), &mut |key, value| {
            let mut take = || -> Result<(), StoreError> {
                let opened = record::open(key, value).map_err(|error| sealed(error, file))?;
                let Some(table) = Table::of(key) else {
                    return Err(StoreError::Mismatch {
                        path: file.to_owned(),
                        what: "it holds records of a kind that this server does not know: it was written by a newer \
                               server"
                            .into(),
                    });
                };
                if table == Table::Header {
                    return Ok(());
                }
                if opened.seal.sequence > header.sequence {
                    return Err(corrupt("it holds a record that is newer than its last commit".into()));
                }
                tally.add(opened.seal);
                let unreadable = |error: codec::DecodeError| corrupt(error.to_string());
                let twice = |what: &str| corrupt(format!("two {what} records are in the same place"));
                match table {
                    Table::Header | Table::Issuance => {}
                    Table::Journal => {
                        let record = codec::read_journal(opened.payload).map_err(unreadable)?;
                        tables.revoked.insert(key.to_vec(), record.revoked);
                    }
                    Table::Token => tokens += 1,
                    Table::Spent => spent += 1,
                    Table::Entry => {
                        let row = key[1..].try_into().map_err(|_| corrupt("an entry has no row".into()))?;
                        let entry = reader.read(opened.payload).map_err(unreadable)?;
                        chunk.push((u64::from_be_bytes(row), Arc::new(entry)));
                        if chunk.len() == CHUNK {
                            // The builder is gone only when it failed, which is found when it is joined.
                            let _ = send.send(std::mem::replace(&mut chunk, Vec::with_capacity(CHUNK)));
                        }
                    }
                    Table::Node => {
                        let (row, node) = codec::read_node(opened.payload).map_err(unreadable)?;
                        if !tables.nodes.insert(node.id.clone(), row, Arc::new(node)) {
                            return Err(twice("node"));
                        }
                    }
                    Table::Bundle => {
                        let (row, bundle) = codec::read_bundle(opened.payload).map_err(unreadable)?;
                        if !tables.bundles.insert(bundle.trust_domain.clone(), row, Arc::new(bundle)) {
                            return Err(twice("bundle"));
                        }
                    }
                    Table::Relationship => {
                        let (row, found) = codec::read_relationship(opened.payload).map_err(unreadable)?;
                        if !tables.relationships.insert(found.trust_domain.clone(), row, Arc::new(found)) {
                            return Err(twice("federation relationship"));
                        }
                    }
                    Table::Change => change_log.push(codec::read_changes(opened.payload).map_err(unreadable)?),
                }
                Ok(())
            };
            match take() {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    damage = Some(error);
                    ControlFlow::Break(())
                }
            }
        });
        let _ = send.send(chunk);
        drop(send);
        let entries = builder.join().unwrap_or_else(|_| Err("an entry record cannot be read".into()));
        let scanned = match damage {
            Some(error) => Err(error),
            None => result.map_err(|error| StoreError::from_kv(error, file)),
        };
        (entries.map_err(corrupt), scanned)
    });
    scanned?;
    let entries = entries?;

    if tally.count != header.count {
        return Err(corrupt(format!(
            "it holds {} records where commit {} left {}",
            tally.count, header.sequence, header.count
        )));
    }
    if entries.len() as u64 != header.entries {
        return Err(corrupt(format!(
            "it holds {} entries where {} are expected",
            entries.len(),
            header.entries
        )));
    }
    if tally.digest != header.digest {
        return Err(corrupt(format!("its records are not those that commit {} left", header.sequence)));
    }

    let (changes, change_records) = changes(change_log, header.epoch).map_err(corrupt)?;
    tables.changes = changes;
    let state = State::new(trust_domain.clone(), entries, tables);
    state.count_spent(spent);
    Ok(Loaded { header, state, change_records, tokens })
}

/// The kept changes, and the last epoch of each record; the records must follow each other without gaps up to `epoch`.
fn changes(mut log: Vec<(u64, Vec<Change>)>, epoch: u64) -> Result<(Changes, VecDeque<u64>), String> {
    log.sort_unstable_by_key(|(first, _)| *first);
    let start = log.first().map_or(epoch, |(first, _)| first.saturating_sub(1));
    let mut changes = Changes::starting_at(start);
    let mut records = VecDeque::with_capacity(log.len());
    for (first, part) in log {
        if changes.last.checked_add(1) != Some(first) {
            return Err(format!("the change log has a gap at {first}"));
        }
        if first.checked_add(part.len() as u64).is_none() {
            return Err(format!("the change log counts beyond what it can after {first}"));
        }
        for change in part {
            changes.push(change);
        }
        records.push_back(changes.last);
    }
    if changes.last != epoch {
        return Err(format!("the change log ends at {} and not at {epoch}", changes.last));
    }
    Ok((changes, records))
}

fn sealed(error: SealError, file: &Path) -> StoreError {
    match error {
        SealError::Version(_) => StoreError::Mismatch { path: file.to_owned(), what: error.to_string() },
        SealError::Checksum | SealError::Short => StoreError::corrupt(file, error.to_string()),
    }
}

/// Entries per message between the scan and the builder.
const CHUNK: usize = 1024;
const CHUNKS_AHEAD: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_log_at_the_end_of_the_numbers_is_refused() {
        let change = || Change::Bundle(TrustDomain::parse("td").unwrap());
        let end = u64::MAX;
        assert!(changes(vec![(end, vec![change(), change()])], end).is_err());
        assert!(changes(vec![(end, vec![change()]), (end, vec![change()])], end).is_err());
        assert_eq!(changes(vec![(8, vec![change(), change()])], 9).map(|(read, _)| read.last), Ok(9));
    }
}
