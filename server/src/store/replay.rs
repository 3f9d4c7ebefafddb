//! What another server committed, from the log of a shared database into memory.
//!
//! A log entry holds the records that a commit wrote, seals included, and what the tally lost by them. So whoever was at
//! the commit before can check that it follows: the number, each checksum, and that the tally comes out as the new header
//! says. An entry that does not follow is not applied; two servers can then not drift apart without a word.

use std::sync::Arc;

use bonafide_identity::{EntryIndex, SpiffeId, TrustDomain};
use prost::Message;

use super::codec::{self, EntryReader, Header};
use super::kv::Batch;
use super::record::{self, Table, Tally};
use super::state::{Applied, State, Tables};

/// One commit, as it lies in the log: a CRC-32 (4 bytes, big endian) and this message.
#[derive(Clone, PartialEq, Message)]
struct LogEntry {
    #[prost(uint64, tag = "1")]
    sequence: u64,
    /// The server that committed, and a number that it drew: what tells its commit from another's of the same number.
    #[prost(string, tag = "2")]
    server: String,
    #[prost(fixed64, tag = "3")]
    nonce: u64,
    #[prost(message, repeated, tag = "4")]
    operations: Vec<Operation>,
    /// Records that were replaced or deleted.
    #[prost(uint64, tag = "5")]
    removed_count: u64,
    #[prost(fixed64, tag = "6")]
    removed_digest: u64,
    /// Used tokens more, or fewer.
    #[prost(sint64, tag = "7")]
    spent: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Operation {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    /// Absent where the record was deleted.
    #[prost(bytes = "vec", optional, tag = "2")]
    value: Option<Vec<u8>>,
}

/// A commit of another server, checked.
#[derive(Debug)]
pub(super) struct Replayed {
    pub(super) header: Header,
    pub(super) applied: Applied,
    /// Records of the change log that are new, by their last epoch, and that are gone.
    pub(super) change_records: Vec<u64>,
    pub(super) change_records_gone: Vec<u64>,
}

/// What a commit leaves in the log.
pub(super) fn write(
    server: &str,
    nonce: u64,
    sequence: u64,
    batch: &Batch,
    removed: Tally,
    spent: i64,
) -> Vec<u8> {
    let operations = batch
        .iter()
        .map(|(key, value)| Operation { key: key.to_vec(), value: value.map(<[u8]>::to_vec) })
        .collect();
    sealed(&LogEntry {
        sequence,
        server: server.to_owned(),
        nonce,
        operations,
        removed_count: removed.count,
        removed_digest: removed.digest,
        spent,
    })
}

fn decode(entry: &[u8]) -> Result<LogEntry, String> {
    let (crc, entry) = entry.split_at_checked(4).ok_or("an entry of the log is too short")?;
    if crc32fast::hash(entry).to_be_bytes() != crc {
        return Err("an entry of the log does not match its checksum".into());
    }
    LogEntry::decode(entry).map_err(|error| format!("an entry of the log cannot be read: {error}"))
}

/// Reads the entry that follows the commit `before`, with `state` as that commit left it.
pub(super) fn read(entry: &[u8], before: &Header, state: &State) -> Result<Replayed, String> {
    let entry = decode(entry)?;
    let wrong = |what: &str| format!("commit {} of the log {what}", entry.sequence);
    if Some(entry.sequence) != before.sequence.checked_add(1) {
        return Err(wrong(&format!("comes after commit {}", before.sequence)));
    }
    let mut header = None;
    let mut applied = Applied { spent: entry.spent, ..Applied::default() };
    let (mut change_records, mut change_records_gone) = (Vec::new(), Vec::new());
    let mut tally = Tally {
        count: before.count.wrapping_sub(entry.removed_count),
        digest: before.digest.wrapping_sub(entry.removed_digest),
    };
    let mut reader = EntryReader::default();
    for Operation { key, value } in &entry.operations {
        let table =
            Table::of(key).ok_or_else(|| wrong("is of a newer server: it holds an unknown record"))?;
        let rest = &key[1..];
        let text = || std::str::from_utf8(rest).map_err(|_| wrong("has a key that is no text"));
        let row = || {
            let row = rest.try_into().map_err(|_| wrong("has an entry without a row"))?;
            Ok::<u64, String>(u64::from_be_bytes(row))
        };
        let Some(value) = value else {
            match table {
                Table::Header => return Err(wrong("deletes the header")),
                Table::Entry => {
                    let row = row()?;
                    let index = state.entries();
                    let found =
                        index.after_row(row.saturating_sub(1)).next().filter(|(found, _)| *found == row);
                    let (_, found) = found.ok_or_else(|| wrong("deletes an entry that is not there"))?;
                    applied.entries.insert(found.id.clone(), (row, None));
                }
                Table::Node => {
                    let id = SpiffeId::parse(text()?).map_err(|_| wrong("deletes what is no agent"))?;
                    applied.nodes.insert(id, (0, None));
                }
                Table::Bundle => {
                    let name = TrustDomain::parse(text()?).map_err(|_| wrong("deletes what is no bundle"))?;
                    applied.bundles.insert(name, (0, None));
                    applied.bundles_changed = true;
                }
                Table::Relationship => {
                    let name = TrustDomain::parse(text()?).map_err(|_| wrong("deletes no relationship"))?;
                    applied.relationships.insert(name, (0, None));
                    applied.bundles_changed = true;
                }
                Table::Journal => drop(applied.journals.insert(key.clone(), None)),
                Table::Change => change_records_gone.push(row()?),
                Table::Token | Table::Issuance | Table::Spent => {}
            }
            continue;
        };
        let opened = record::open(key, value).map_err(|error| wrong(&error.to_string()))?;
        if opened.seal.sequence != entry.sequence {
            return Err(wrong("holds a record of another commit"));
        }
        let unreadable = |error: codec::DecodeError| wrong(&error.to_string());
        let payload = opened.payload;
        if table == Table::Header {
            header = Some(Header::read(payload).map_err(unreadable)?);
            continue;
        }
        tally.add(opened.seal);
        match table {
            Table::Header | Table::Token | Table::Issuance | Table::Spent => {}
            Table::Entry => {
                let read = reader.read(payload).map_err(unreadable)?;
                applied.entries.insert(read.id.clone(), (row()?, Some(Arc::new(read))));
            }
            Table::Node => {
                let (row, node) = codec::read_node(payload).map_err(unreadable)?;
                applied.nodes.insert(node.id.clone(), (row, Some(Arc::new(node))));
            }
            Table::Bundle => {
                let (row, bundle) = codec::read_bundle(payload).map_err(unreadable)?;
                applied.bundles.insert(bundle.trust_domain.clone(), (row, Some(Arc::new(bundle))));
                applied.bundles_changed = true;
            }
            Table::Relationship => {
                let (row, found) = codec::read_relationship(payload).map_err(unreadable)?;
                applied.relationships.insert(found.trust_domain.clone(), (row, Some(Arc::new(found))));
                applied.bundles_changed = true;
            }
            Table::Journal => {
                let record = codec::read_journal(payload).map_err(unreadable)?;
                applied.journals.insert(key.clone(), Some(record.revoked));
            }
            Table::Change => {
                let (first, changes) = codec::read_changes(payload).map_err(unreadable)?;
                if Some(first) != before.epoch.checked_add(1 + applied.changes.len() as u64) {
                    return Err(wrong("has a gap in its changes"));
                }
                applied.changes.extend(changes);
                change_records.push(row()?);
            }
        }
    }
    let header = header.ok_or_else(|| wrong("has no header"))?;
    if header.store_id != before.store_id || header.trust_domain != before.trust_domain {
        return Err(wrong("is of another store"));
    }
    let follows = header.sequence == entry.sequence
        && Some(header.epoch) == before.epoch.checked_add(applied.changes.len() as u64)
        && (header.count, header.digest) == (tally.count, tally.digest);
    if !follows {
        return Err(wrong(&format!("does not follow from commit {}", before.sequence)));
    }
    Ok(Replayed { header, applied, change_records, change_records_gone })
}

/// Reads a message as the first entry of a log, with its checksums put right: what the reader makes of bytes that no
/// server wrote.
pub(super) fn check(message: &[u8]) -> Result<(), String> {
    let mut entry = LogEntry::decode(message).map_err(|error| error.to_string())?;
    for operation in &mut entry.operations {
        if let Some(value) = &mut operation.value {
            *value = record::seal(&operation.key, entry.sequence, value).1;
        }
    }
    let trust_domain = TrustDomain::parse("td").map_err(|error| error.to_string())?;
    let state = State::new(trust_domain.clone(), EntryIndex::new(trust_domain), Tables::default());
    let before = Header { sequence: entry.sequence.wrapping_sub(1), ..Header::default() };
    read(&sealed(&entry), &before, &state).map(drop)
}

fn sealed(entry: &LogEntry) -> Vec<u8> {
    let entry = entry.encode_to_vec();
    let mut sealed = crc32fast::hash(&entry).to_be_bytes().to_vec();
    sealed.extend_from_slice(&entry);
    sealed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_follows_or_is_refused() {
        let trust_domain = TrustDomain::parse("td").unwrap();
        let state = State::new(trust_domain.clone(), EntryIndex::new(trust_domain), Tables::default());
        let before = Header { store_id: vec![7; 16], sequence: 4, count: 1, digest: 9, ..Header::default() };
        let mut batch = Batch::default();
        let mut tally = Tally { count: before.count, digest: before.digest };
        let key = Table::Spent.key(&[1; 32]);
        let (seal, value) = record::seal(&key, 5, &[]);
        tally.add(seal);
        batch.put(key, value);
        let header = Header { sequence: 5, count: tally.count, digest: tally.digest, ..before.clone() };
        let key = Table::Header.key(&[]);
        batch.put(key.clone(), record::seal(&key, 5, &header.encode_to_vec()).1);
        let entry = write("server", 1, 5, &batch, Tally::default(), 1);

        let replayed = read(&entry, &before, &state).unwrap();
        assert_eq!((replayed.header, replayed.applied.spent), (header, 1));
        for bit in 0..entry.len() * 8 {
            let mut damaged = entry.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&damaged, &before, &state).is_err(), "bit {bit}");
        }
        for other in [
            Header { sequence: 3, ..before.clone() },
            Header { count: 2, ..before.clone() },
            Header { digest: 8, ..before.clone() },
            Header { epoch: 1, ..before.clone() },
            Header { store_id: vec![8; 16], ..before.clone() },
        ] {
            assert!(read(&entry, &other, &state).is_err(), "{other:?}");
        }
        let more = write("server", 1, 5, &batch, Tally { count: 1, digest: 0 }, 1);
        assert!(read(&more, &before, &state).is_err(), "it says that a record is gone");
    }
}
