//! One file that holds a whole store, and the way back from it.
//!
//! The file holds the records just as they lie in the database, seals included, so that it fits every driver and each
//! later version that can read the records. Layout: the magic `BFBACKUP`, then frames of type (1 byte), length (4, big
//! endian), CRC-32 over type, length and body (4), body. Frames: one header, any number of parts with records, one
//! trailer with their number and tally. A file without a trailer, or with a bit that is not as it was, is refused
//! before anything is written.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use bonafide_identity::Timestamp;
use prost::Message;
use tokio::sync::oneshot;

use super::codec::Header;
use super::expect::{ExpectFile, path_for, sync_parent};
use super::kv::{self, Batch};
use super::record::{self, Table, Tally};
use super::writer::{self, BackupStep, Command, Pair};
use super::{DriverKind, Store, StoreConfig, StoreError, load, random_id, write_header};

const MAGIC: &[u8; 8] = b"BFBACKUP";
const VERSION: u32 = 1;
const HEADER: u8 = 1;
const RECORDS: u8 = 2;
const TRAILER: u8 = 3;
/// No frame is longer; a length beyond this is damage.
const MAX_FRAME: u32 = 64 << 20;
/// Bytes of records per commit when restoring.
const RESTORE_BATCH: usize = 4 << 20;

/// What is in a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupInfo {
    /// The trust domain it belongs to.
    pub trust_domain: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// The last commit in it.
    pub sequence: u64,
    /// Its records.
    pub records: u64,
    /// Length of the file.
    pub bytes: u64,
}

/// What to do when there is a store where one shall be restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Nothing: refuse.
    Refuse,
    /// Rename it to `<path>.before-restore-<unix seconds>` and go on.
    MoveAside,
}

#[derive(Clone, PartialEq, Message)]
struct BackupHeader {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(sint64, tag = "2")]
    created_at: i64,
    /// Of the store at the moment of the backup.
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

pub(super) async fn backup(store: &Store, dest: &Path) -> Result<BackupInfo, StoreError> {
    let created_at = store.now();
    let store = store.clone();
    let dest = dest.to_owned();
    tokio::task::spawn_blocking(move || {
        let (reply, answer) = oneshot::channel();
        store.inner.send(Command::Backup(BackupStep::Begin(reply)))?;
        let header = answer.blocking_recv().map_err(|_| StoreError::Closed)??;
        let written = write_file(&store, &dest, &header, created_at);
        let _ = store.inner.send(Command::Backup(BackupStep::End));
        written
    })
    .await
    .map_err(|error| StoreError::Panicked(error.to_string()))?
}

fn write_file(
    store: &Store,
    dest: &Path,
    header: &Header,
    created_at: Timestamp,
) -> Result<BackupInfo, StoreError> {
    let mut partial = dest.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let result = write_partial(store, &partial, header, created_at).and_then(|bytes| {
        fs::rename(&partial, dest).map_err(|error| StoreError::io(dest, error))?;
        sync_parent(dest)?;
        Ok(BackupInfo {
            trust_domain: header.trust_domain.clone(),
            created_at,
            sequence: header.sequence,
            records: header.count,
            bytes,
        })
    });
    if result.is_err() {
        let _ = fs::remove_file(&partial);
    }
    result
}

fn write_partial(
    store: &Store,
    partial: &Path,
    header: &Header,
    created_at: Timestamp,
) -> Result<u64, StoreError> {
    let fail = |error| StoreError::io(partial, error);
    // It holds join tokens: nobody else may read it. What stands there already, a leftover or a file or link that somebody
    // else has put there, is never written to.
    match fs::remove_file(partial) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fail(error)),
        _ => {}
    }
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(partial).map_err(fail)?;
    let mut out = BufWriter::new(file);
    out.write_all(MAGIC).map_err(fail)?;
    let head =
        BackupHeader { version: VERSION, created_at: created_at.unix_millis(), header: Some(header.clone()) };
    write_frame(&mut out, HEADER, &head.encode_to_vec()).map_err(fail)?;
    let mut tally = Tally::default();
    loop {
        let (reply, answer) = oneshot::channel();
        store.inner.send(Command::Backup(BackupStep::Next(reply)))?;
        let records = answer.blocking_recv().map_err(|_| StoreError::Closed)??;
        if records.is_empty() {
            break;
        }
        for (key, value) in &records {
            let opened = record::open(key, value);
            tally
                .add(opened.map_err(|error| StoreError::corrupt(store_file(store), error.to_string()))?.seal);
        }
        let records = records.into_iter().map(|(key, value)| PartRecord { key, value }).collect();
        write_frame(&mut out, RECORDS, &Part { records }.encode_to_vec()).map_err(fail)?;
    }
    if (tally.count, tally.digest) != (header.count, header.digest) {
        return Err(StoreError::corrupt(store_file(store), "what was copied is not what it should hold"));
    }
    let trailer = Trailer { count: tally.count, digest: tally.digest };
    write_frame(&mut out, TRAILER, &trailer.encode_to_vec()).map_err(fail)?;
    let file = out.into_inner().map_err(|error| fail(error.into_error()))?;
    file.sync_all().map_err(fail)?;
    Ok(file.metadata().map_err(fail)?.len())
}

fn store_file(store: &Store) -> &Path {
    &store.inner.config.path
}

/// Reads a backup through and checks all of it, without restoring.
///
/// # Errors
/// [`StoreError::Corrupt`] when it is not whole, [`StoreError::Mismatch`] when it was made by a newer version.
pub fn verify_backup(file: &Path) -> Result<BackupInfo, StoreError> {
    let mut reader = Reader::open(file)?;
    while reader.next()?.is_some() {}
    reader.info()
}

/// Makes a store from the backup at `source`. The backup is checked as a whole first; the store takes its place only
/// when it is complete, and is a new one: the expected-state file of a former store does not fit it.
///
/// # Errors
/// [`StoreError::Corrupt`] when the backup is not whole; [`StoreError::Mismatch`] when it belongs to another trust
/// domain, when there is a store at the place and `existing` says to refuse, or for the memory driver;
/// [`StoreError::Busy`] when the store at the place is open; errors of the file system.
pub fn restore(
    source: &Path,
    config: &StoreConfig,
    existing: Existing,
    now: Timestamp,
) -> Result<BackupInfo, StoreError> {
    let info = verify_backup(source)?;
    let mismatch = |path: &Path, what: String| StoreError::Mismatch { path: path.to_owned(), what };
    if info.trust_domain != config.trust_domain.as_str() {
        return Err(mismatch(
            source,
            format!("the backup belongs to trust domain {}, not {}", info.trust_domain, config.trust_domain),
        ));
    }
    if config.driver == DriverKind::Memory {
        return Err(mismatch(
            source,
            "a store in memory cannot be restored: it ends with the process".into(),
        ));
    }
    if config.driver == DriverKind::Postgres {
        return restore_shared(source, config, existing, now).map(|()| info);
    }
    if let Some(folder) = config.path.parent() {
        fs::create_dir_all(folder).map_err(|error| StoreError::io(folder, error))?;
    }
    clear_place(config, existing, now)?;

    let mut staging = config.path.as_os_str().to_owned();
    staging.push(".restoring");
    let staging = PathBuf::from(staging);
    remove(&staging)?;
    let header = fill(source, config, &staging)?;
    fs::rename(&staging, &config.path).map_err(|error| StoreError::io(&config.path, error))?;
    sync_parent(&config.path)?;
    // Last: a store without this file is refused, so one that is half restored never opens.
    ExpectFile::create(&config.path, &writer::expected(&header))?;
    Ok(info)
}

/// Writes all records of the backup into a new database at `staging`.
fn fill(source: &Path, config: &StoreConfig, staging: &Path) -> Result<Header, StoreError> {
    let fail = |error| StoreError::from_kv(error, staging);
    let driver = kv::driver(&StoreConfig { path: staging.to_owned(), ..config.clone() }, "");
    let mut database = driver.open().map_err(fail)?;
    let mut reader = Reader::open(source)?;
    let mut batch = Batch::default();
    let mut bytes = 0;
    while let Some(records) = reader.next()? {
        for (key, value) in records {
            bytes += key.len() + value.len();
            batch.put(key, value);
            if bytes >= RESTORE_BATCH {
                database.commit(&std::mem::take(&mut batch)).map_err(fail)?;
                bytes = 0;
            }
        }
    }
    database.commit(&batch).map_err(fail)?;
    // A store of its own: a backup restored twice makes two stores that must not be taken for each other.
    let header = Header {
        store_id: random_id().to_vec(),
        sequence: reader.header.sequence + 1,
        ..reader.header.clone()
    };
    write_header(&mut *database, &header, staging)?;
    Ok(header)
}

/// Makes the backup the content of a database that a group of servers shares, in one transaction. What was there stays
/// beside it, in tables of another name. The servers must not be running: each has seen another store, and says so.
fn restore_shared(
    source: &Path,
    config: &StoreConfig,
    existing: Existing,
    now: Timestamp,
) -> Result<(), StoreError> {
    let driver = kv::driver(config, "");
    let shared = driver.shared().ok_or(StoreError::NotFound("database"))?;
    let file = PathBuf::from(shared.describe());
    let fail = |error| StoreError::from_kv(error, &file);
    // As a server of this machine would, so that none has it open.
    let held = match ExpectFile::open(&config.path) {
        Ok(held) => held,
        Err(StoreError::Corrupt { .. }) => None,
        Err(error) => return Err(error),
    };
    let former = load::read_header(&*driver.open().map_err(fail)?, &file)?;
    if existing == Existing::Refuse && former.is_some() {
        return Err(StoreError::Mismatch {
            path: file,
            what: "there is a store already: give another database, or ask for it to be moved aside".into(),
        });
    }
    let mut place = shared.replace(&format!("before_restore_{}", now.unix_seconds())).map_err(fail)?;
    let mut reader = Reader::open(source)?;
    let (mut batch, mut bytes) = (Batch::default(), 0);
    while let Some(records) = reader.next()? {
        for (key, value) in records {
            bytes += key.len() + value.len();
            batch.put(key, value);
            if bytes >= RESTORE_BATCH {
                place.add(&std::mem::take(&mut batch)).map_err(fail)?;
                bytes = 0;
            }
        }
    }
    // Beyond what a server that is running after all could take for the continuation of what it knows.
    let before = former.map_or(0, |former| former.sequence).max(reader.header.sequence);
    let header = Header { store_id: random_id().to_vec(), sequence: before + 2, ..reader.header.clone() };
    let key = Table::Header.key(&[]);
    let (_, value) = record::seal(&key, header.sequence, &header.encode_to_vec());
    batch.put(key, value);
    place.add(&batch).map_err(fail)?;
    place.finish(header.sequence).map_err(fail)?;
    drop(held);
    match fs::remove_file(path_for(&config.path)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(StoreError::io(path_for(&config.path), error))
        }
        _ => Ok(()),
    }
}

/// Makes sure that neither a database nor an expected-state file is where the store shall be.
fn clear_place(config: &StoreConfig, existing: Existing, now: Timestamp) -> Result<(), StoreError> {
    let expect = path_for(&config.path);
    // Held until the files are out of the way, so that no server opens them meanwhile.
    let _held = match ExpectFile::open(&config.path) {
        Ok(held) => held,
        // Damaged is what restoring is for.
        Err(StoreError::Corrupt { .. }) => None,
        Err(error) => return Err(error),
    };
    for path in [&config.path, &expect] {
        if fs::symlink_metadata(path).is_err() {
            continue;
        }
        if existing == Existing::Refuse {
            return Err(StoreError::Mismatch {
                path: config.path.clone(),
                what: "there is a store already: give another path, or ask for it to be moved aside".into(),
            });
        }
        let mut aside = path.as_os_str().to_owned();
        aside.push(format!(".before-restore-{}", now.unix_seconds()));
        let aside = PathBuf::from(aside);
        if fs::symlink_metadata(&aside).is_ok() {
            return Err(StoreError::Mismatch { path: aside, what: "it is in the way".into() });
        }
        fs::rename(path, &aside).map_err(|error| StoreError::io(path, error))?;
    }
    sync_parent(&config.path)
}

/// Removes what an interrupted restore, or an interrupted making of a store, left.
pub(super) fn remove(path: &Path) -> Result<(), StoreError> {
    let removed = match fs::symlink_metadata(path) {
        Err(_) => return Ok(()),
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    };
    removed.map_err(|error| StoreError::io(path, error))
}

struct Reader {
    input: BufReader<File>,
    path: PathBuf,
    bytes: u64,
    created_at: Timestamp,
    header: Header,
    tally: Tally,
    complete: bool,
}

impl Reader {
    fn open(path: &Path) -> Result<Self, StoreError> {
        let file = File::open(path).map_err(|error| StoreError::io(path, error))?;
        let bytes = file.metadata().map_err(|error| StoreError::io(path, error))?.len();
        let mut reader = Self {
            input: BufReader::with_capacity(1 << 20, file),
            path: path.to_owned(),
            bytes,
            created_at: Timestamp::from_unix_millis(0),
            header: Header::default(),
            tally: Tally::default(),
            complete: false,
        };
        let mut magic = [0; 8];
        reader.fill(&mut magic)?;
        if &magic != MAGIC {
            return Err(reader.damaged("it is not a backup of a store"));
        }
        let (kind, body) = reader.frame()?;
        if kind != HEADER {
            return Err(reader.damaged("it does not begin with a header"));
        }
        let head = BackupHeader::decode(&body[..]).map_err(|error| reader.damaged(error.to_string()))?;
        if head.version != VERSION {
            return Err(StoreError::Mismatch {
                path: path.to_owned(),
                what: format!("the backup has version {}, this server knows version {VERSION}", head.version),
            });
        }
        reader.created_at = Timestamp::from_unix_millis(head.created_at);
        reader.header = head.header.ok_or_else(|| reader.damaged("its header is empty"))?;
        Ok(reader)
    }

    /// The next records; `None` when all were read and are as many, and the same, as the trailer says.
    fn next(&mut self) -> Result<Option<Vec<Pair>>, StoreError> {
        if self.complete {
            return Ok(None);
        }
        let (kind, body) = self.frame()?;
        match kind {
            RECORDS => {
                let part = Part::decode(&body[..]).map_err(|error| self.damaged(error.to_string()))?;
                let mut records = Vec::with_capacity(part.records.len());
                for PartRecord { key, value } in part.records {
                    if matches!(Table::of(&key), None | Some(Table::Header)) {
                        return Err(self.damaged("it holds a record of an unknown kind"));
                    }
                    let opened =
                        record::open(&key, &value).map_err(|error| self.damaged(error.to_string()))?;
                    self.tally.add(opened.seal);
                    records.push((key, value));
                }
                Ok(Some(records))
            }
            TRAILER => {
                let trailer = Trailer::decode(&body[..]).map_err(|error| self.damaged(error.to_string()))?;
                let found = (self.tally.count, self.tally.digest);
                if (trailer.count, trailer.digest) != found
                    || (self.header.count, self.header.digest) != found
                {
                    return Err(self.damaged("its records are not those that it was made of"));
                }
                let mut rest = [0; 1];
                if self.input.read(&mut rest).map_err(|error| StoreError::io(&self.path, error))? != 0 {
                    return Err(self.damaged("something follows its end"));
                }
                self.complete = true;
                Ok(None)
            }
            other => Err(self.damaged(format!("it holds a frame of type {other}"))),
        }
    }

    fn info(&self) -> Result<BackupInfo, StoreError> {
        Ok(BackupInfo {
            trust_domain: self.header.trust_domain.clone(),
            created_at: self.created_at,
            sequence: self.header.sequence,
            records: self.tally.count,
            bytes: self.bytes,
        })
    }

    fn frame(&mut self) -> Result<(u8, Vec<u8>), StoreError> {
        let mut head = [0; 9];
        self.fill(&mut head)?;
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
        let crc = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        if length > MAX_FRAME || u64::from(length) > self.bytes {
            return Err(self.damaged("a frame is longer than it can be"));
        }
        let mut body = vec![0; length as usize];
        self.fill(&mut body)?;
        if checksum(head[0], length, &body) != crc {
            return Err(self.damaged("a frame does not match its checksum"));
        }
        Ok((head[0], body))
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), StoreError> {
        self.input.read_exact(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => self.damaged("it ends too early"),
            _ => StoreError::io(&self.path, error),
        })
    }

    fn damaged(&self, what: impl Into<String>) -> StoreError {
        StoreError::Corrupt {
            file: self.path.clone(),
            what: what.into(),
            way_back: "nothing was restored from it; take another backup".into(),
        }
    }
}

fn write_frame(out: &mut impl io::Write, kind: u8, body: &[u8]) -> io::Result<()> {
    let length = u32::try_from(body.len()).map_err(io::Error::other)?;
    out.write_all(&[kind])?;
    out.write_all(&length.to_be_bytes())?;
    out.write_all(&checksum(kind, length, body).to_be_bytes())?;
    out.write_all(body)
}

fn checksum(kind: u8, length: u32, body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&[kind]);
    hasher.update(&length.to_be_bytes());
    hasher.update(body);
    hasher.finalize()
}
