//! What the server's store reads back: records, backups, the file of the expected state.
//!
//! The first byte says what the rest is: the payload of a record of some table (its first byte), a backup as it is, a backup
//! built of these records, the file of the expected state as it is or with the checksums put right, an entry of a group's log. Laws: a record that was
//! read is written as one that reads as the same; a backup that was put together right is whole, and not any more after one
//! bit has changed; it can be restored, whatever its records say; no store opens beside a file whose checksum is wrong or that promises more than is there.

use std::path::Path;
use std::sync::Arc;

use bonafide_server::store::{
    DriverKind, Existing, Store, StoreConfig, StoreError, check_log_entry, restore, rewritten, verify_backup,
};
use prost::Message;

use crate::{NOW, trust_domain, with_a_flipped_bit};

/// Whether the rest is what the first byte says.
pub fn check(data: &[u8]) -> bool {
    let Some((kind, rest)) = data.split_first() else { return false };
    match *kind {
        RAW_BACKUP => backup(rest).unwrap_or(false),
        BUILT_BACKUP => built_backup(rest),
        RAW_EXPECTED => expected(rest),
        LOG_ENTRY => check_log_entry(rest).is_ok(),
        BUILT_EXPECTED => expected(&with_checksums(rest)),
        _ => record(*kind, rest),
    }
}

/// The first byte of a backup as it is.
pub const RAW_BACKUP: u8 = 1;
/// The first byte of records of which a backup is built.
pub const BUILT_BACKUP: u8 = 2;
/// The first byte of a file of the expected state as it is.
pub const RAW_EXPECTED: u8 = 3;
/// The first byte of an entry of a group's log, its checksums aside.
pub const LOG_ENTRY: u8 = 5;
/// The first byte of one without right checksums.
pub const BUILT_EXPECTED: u8 = 4;

fn record(table: u8, payload: &[u8]) -> bool {
    let Ok(once) = rewritten(&[table], payload) else { return false };
    // Nothing was in it: such a record is never written.
    if once.is_empty() {
        return true;
    }
    assert_eq!(rewritten(&[table], &once).expect("it was written by us"), once);
    true
}

/// Nothing when the backup is refused; else whether a store can be made of it.
fn backup(file: &[u8]) -> Option<bool> {
    let folder = crate::folder();
    let path = folder.path().join("backup");
    std::fs::write(&path, file).expect("there is room");
    match verify_backup(&path) {
        Ok(info) => {
            assert_eq!(info.bytes, file.len() as u64);
            std::fs::write(&path, with_a_flipped_bit(file)).expect("there is room");
            assert!(verify_backup(&path).is_err(), "one bit has changed");
            Some(info.trust_domain == trust_domain().as_str() && restored(file))
        }
        Err(StoreError::Corrupt { .. } | StoreError::Mismatch { .. }) => None,
        Err(other) => panic!("not an answer to damage: {other}"),
    }
}

/// The bytes as records (length of the payload, table, payload), in a backup with one frame for each four.
fn built_backup(mut bytes: &[u8]) -> bool {
    let mut records = Vec::new();
    while let Some(([length, table], rest)) = bytes.split_first_chunk() {
        let (payload, rest) = rest.split_at(usize::from(*length).min(rest.len()));
        let key = [&[TABLES[usize::from(*table) % TABLES.len()]][..], &(records.len() as u64).to_be_bytes()]
            .concat();
        records.push((key, payload));
        bytes = rest;
    }
    backup(&backup_of(&records)).expect("a backup that was put together right is whole")
}

/// Whether a store opens with what is in the backup. That its records are in order is no promise of a backup.
fn restored(file: &[u8]) -> bool {
    let folder = crate::folder();
    let (source, place) = (folder.path().join("backup"), folder.path().join("store"));
    std::fs::write(&source, file).expect("there is room");
    restore(&source, &config(&place), Existing::Refuse, NOW).expect("a whole backup can be restored");
    match Store::open(config(&place), Arc::new(|| NOW)) {
        Ok(_) => true,
        Err(StoreError::Corrupt { .. } | StoreError::Mismatch { .. }) => false,
        Err(other) => panic!("not an answer to damage: {other}"),
    }
}

/// A backup with these records, all of commit 1, by the layout that the store's documentation gives.
pub fn backup_of(records: &[(Vec<u8>, &[u8])]) -> Vec<u8> {
    let mut digest = 0_u64;
    let mut parts = Vec::new();
    for some in records.chunks(4) {
        let mut part = Part::default();
        for (key, payload) in some {
            let head = [&[1][..], &1_u64.to_be_bytes()].concat();
            let sealed = [&head[..], &(key.len() as u64).to_be_bytes(), key, payload].concat();
            let crc = crc32fast::hash(&sealed);
            digest = digest.wrapping_add(spread(1_u64.rotate_left(32) ^ u64::from(crc)));
            let value = [&head[..], &crc.to_be_bytes(), payload].concat();
            part.records.push(PartRecord { key: key.clone(), value });
        }
        parts.push(part.encode_to_vec());
    }
    let count = records.len() as u64;
    let changes = records.iter().filter(|(key, _)| key[0] == b'c');
    let epochs = changes.filter_map(|(_, payload)| Changes::decode(*payload).ok());
    let epoch = epochs.map(|part| part.first.wrapping_add(part.changes.len() as u64).wrapping_sub(1)).max();
    let epoch = epoch.unwrap_or(1);
    let header = Header {
        store_id: vec![5; 16],
        trust_domain: trust_domain().to_string(),
        sequence: 1,
        count,
        digest,
        last_row: count,
        epoch,
        entries: records.iter().filter(|(key, _)| key[0] == b'e').count() as u64,
    };
    let head = BackupHeader { version: 1, created_at: NOW.unix_millis(), header: Some(header) };
    let mut file = b"BFBACKUP".to_vec();
    frame(&mut file, 1, &head.encode_to_vec());
    parts.iter().for_each(|part| frame(&mut file, 2, part));
    frame(&mut file, 3, &Trailer { count, digest }.encode_to_vec());
    file
}

/// The keys and payloads in a backup.
#[cfg(test)]
pub(crate) fn records_of(mut file: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    file = &file[8..];
    let mut records = Vec::new();
    while let Some((head, rest)) = file.split_first_chunk::<9>() {
        let (body, rest) = rest.split_at(u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize);
        if head[0] == 2 {
            let part = Part::decode(body).expect("a backup of ours");
            records.extend(part.records.into_iter().map(|record| (record.key, record.value[13..].to_vec())));
        }
        file = rest;
    }
    records
}

fn frame(out: &mut Vec<u8>, kind: u8, body: &[u8]) {
    let length = (body.len() as u32).to_be_bytes();
    out.push(kind);
    out.extend_from_slice(&length);
    out.extend_from_slice(&crc32fast::hash(&[&[kind], &length[..], body].concat()).to_be_bytes());
    out.extend_from_slice(body);
}

fn spread(seal: u64) -> u64 {
    let x = (seal ^ (seal >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Opens a store that has nothing but this file. It may, when the file says that nothing was committed.
fn expected(file: &[u8]) -> bool {
    let folder = crate::folder();
    let path = folder.path().join("store");
    std::fs::write(folder.path().join("store.expect"), file).expect("there is room");
    let slots: Vec<&[u8]> = [0, SLOT].iter().filter_map(|at| slot(file, *at)).collect();
    let newest = slots.iter().map(|slot| &slot[25..33]).max();
    let opened = open(&path);
    assert_eq!(opened, newest == Some(&[0; 8]), "{slots:?}");
    opened
}

fn open(path: &Path) -> bool {
    match Store::open(config(path), Arc::new(|| NOW)) {
        Ok((store, loaded)) => {
            assert!(loaded.created && loaded.entries == 0);
            drop(store);
            true
        }
        Err(StoreError::Corrupt { .. }) => {
            assert!(!path.exists(), "a database was made beside a file that was refused");
            false
        }
        Err(other) => panic!("not an answer to damage: {other}"),
    }
}

fn config(path: &Path) -> StoreConfig {
    StoreConfig {
        driver: DriverKind::Redb,
        path: path.to_owned(),
        cache_bytes: 1 << 20,
        trust_domain: trust_domain(),
        postgres: None,
    }
}

/// The copy at this place, when it is right.
fn slot(file: &[u8], at: usize) -> Option<&[u8]> {
    let slot = file.get(at..at + SLOT_BYTES)?;
    let right = slot[..9] == *b"BFEXPECT\x01" && crc32fast::hash(&slot[..41]).to_be_bytes() == slot[41..];
    right.then_some(slot)
}

fn with_checksums(bytes: &[u8]) -> Vec<u8> {
    let mut file = bytes.to_vec();
    for at in [0, SLOT] {
        if let Some(slot) = file.get_mut(at..at + SLOT_BYTES) {
            slot[..9].copy_from_slice(b"BFEXPECT\x01");
            let crc = crc32fast::hash(&slot[..41]).to_be_bytes();
            slot[41..].copy_from_slice(&crc);
        }
    }
    file
}

const SLOT: usize = 4096;
const SLOT_BYTES: usize = 45;
/// The first bytes of keys.
pub const TABLES: &[u8] = b"enbftjic";

// The messages of a backup, stated a second time: files of today must be read for ever.

#[derive(Clone, PartialEq, Message)]
struct Header {
    #[prost(bytes = "vec", tag = "1")]
    store_id: Vec<u8>,
    #[prost(string, tag = "2")]
    trust_domain: String,
    #[prost(uint64, tag = "3")]
    sequence: u64,
    #[prost(uint64, tag = "4")]
    count: u64,
    #[prost(fixed64, tag = "5")]
    digest: u64,
    #[prost(uint64, tag = "6")]
    last_row: u64,
    #[prost(uint64, tag = "7")]
    epoch: u64,
    #[prost(uint64, tag = "8")]
    entries: u64,
}

/// A record of the change log; what has changed is not needed here.
#[derive(Clone, PartialEq, Message)]
struct Changes {
    #[prost(uint64, tag = "1")]
    first: u64,
    #[prost(bytes = "vec", repeated, tag = "2")]
    changes: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct BackupHeader {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(sint64, tag = "2")]
    created_at: i64,
    #[prost(message, optional, tag = "3")]
    header: Option<Header>,
}

#[derive(Clone, PartialEq, Message)]
struct Part {
    #[prost(message, repeated, tag = "1")]
    records: Vec<PartRecord>,
}

#[derive(Clone, PartialEq, Message)]
struct PartRecord {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct Trailer {
    #[prost(uint64, tag = "1")]
    count: u64,
    #[prost(fixed64, tag = "2")]
    digest: u64,
}
