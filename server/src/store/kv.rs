//! The seam under the embedded store: a small ordered key-value database.
//!
//! Everything the store means (records, checksums, sequence numbers, aggregates) is written once above this seam, so a
//! driver has to get only two promises right: a batch is all or nothing, and [`KeyValue::commit`] returns only when the
//! batch survives a power cut. Transactions, snapshots and iterators that outlive a call are left out on purpose: the
//! embedded databases disagree about them, and one writer thread does not need them.
//!
//! One suite (`tests/it/store_kv.rs`) runs against every driver.

mod connection_string;
mod memory;
mod postgres;
mod redb;
mod sled;

use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

pub use connection_string::{ConnectionStringError, check as check_connection_string};
pub use memory::Memory;

use super::{DriverKind, StoreConfig};
use crate::status::names;

/// An ordered set of keys with values.
///
/// Methods may block on the disk: callers use them from a thread of their own.
pub trait KeyValue: Send {
    /// The value of `key`.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError>;

    /// The values of `keys`, in their order: one question where asking costs a journey.
    fn get_many(&self, keys: &[&[u8]]) -> Result<Vec<Option<Vec<u8>>>, KvError> {
        keys.iter().map(|key| self.get(key)).collect()
    }

    /// Calls `visit` for each key of `range` in ascending order of bytes, until it breaks.
    fn scan(&self, range: &Range, visit: Visitor<'_>) -> Result<(), KvError>;

    /// Applies `batch` as a whole. When this returns `Ok` the batch is on the disk; when it returns an error the batch
    /// may or may not be there, and the database must be opened anew before it is used again.
    fn commit(&mut self, batch: &Batch) -> Result<(), KvError>;

    /// Bytes that the database occupies.
    fn size(&self) -> Result<u64, KvError>;

    /// The same database as one that other servers write to as well; `None` for one that is this process's alone.
    fn shared(&mut self) -> Option<&mut dyn Shared> {
        None
    }
}

/// A database that several servers write to, one at a time, with a log of what they committed.
///
/// After an error it must be opened anew, as after a failed [`KeyValue::commit`].
pub trait Shared {
    /// Begins a transaction beside which nobody else has one. Gives the present value of `lock`, the record that is locked
    /// for it, and the first [`News`] after commit `after`.
    fn begin(&mut self, lock: &[u8], after: u64) -> Result<(Vec<u8>, News), KvError>;

    /// What was committed after commit `after`, some at a time. Within a transaction nothing
    /// is added.
    fn news(&mut self, after: u64) -> Result<News, KvError>;

    /// Ends the transaction: `batch` and the log's `entry` for commit `sequence` are durable, both or neither. Wakes the
    /// other servers.
    fn commit_logged(&mut self, batch: &Batch, sequence: u64, entry: &[u8]) -> Result<(), KvError>;

    /// Ends the transaction without a trace.
    fn end(&mut self) -> Result<(), KvError>;

    /// Ends the transaction with a commit that writes the record `key` as it is: what was committed before it is then as durable
    /// as what was acknowledged, also where a commit waits for another machine and that wait was cut short.
    fn confirm(&mut self, key: &[u8]) -> Result<(), KvError>;

    /// Puts the first record and the log's entry for `sequence` into a database that is void. Does nothing in another.
    fn found(&mut self, key: &[u8], value: &[u8], sequence: u64) -> Result<(), KvError>;
}

/// What the log of a shared database says.
#[derive(Debug, PartialEq, Eq)]
pub enum News {
    /// What followed, in the order of the commits and without gaps.
    Entries {
        /// Entries of the log.
        entries: Vec<Vec<u8>>,
        /// There are more.
        more: bool,
    },
    /// The log does not know the commit that was asked after: it begins later, or the database is another.
    Unknown,
}

/// What a driver of a shared database does besides opening it.
pub trait SharedDriver {
    /// The database, in words that hold no secret.
    fn describe(&self) -> String;

    /// `wake` is called when another server has committed, and when the connection is lost.
    fn on_news(&self, wake: Box<dyn Fn() + Send + Sync>);

    /// The database as it is at this moment, for reading only, while others go on.
    fn snapshot(&self) -> Result<Box<dyn KeyValue>, KvError>;

    /// Puts all that is there aside under a name with `suffix`, and gives a void database in its place; nobody sees any of
    /// it before [`Replacing::finish`].
    fn replace(&self, suffix: &str) -> Result<Box<dyn Replacing>, KvError>;
}

/// A database that is about to take the place of another.
pub trait Replacing {
    /// Adds records.
    fn add(&mut self, batch: &Batch) -> Result<(), KvError>;

    /// Begins the log at `sequence` and shows everything.
    fn finish(&mut self, sequence: u64) -> Result<(), KvError>;
}

/// What [`KeyValue::scan`] calls with each key and value.
pub type Visitor<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>;

/// Opens one database, again and again: after a failed commit the writer drops the database and opens it anew.
pub trait Driver: Send {
    /// Opens the database, creating it where it does not exist.
    fn open(&self) -> Result<Box<dyn KeyValue>, KvError>;

    /// The file that holds the data, for messages and for the check that it exists. `None` when nothing is on a disk
    /// of this machine.
    fn file(&self) -> Option<&Path>;

    /// The same, for a database that several servers share.
    fn shared(&self) -> Option<&dyn SharedDriver> {
        None
    }
}

/// Why a database could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum KvError {
    /// The file system has no room.
    #[error("no space left on the device")]
    Full,
    /// The database is held by somebody else, or by a predecessor that is not gone yet.
    #[error("the database is in use")]
    Busy,
    /// What is on the disk is not what was written.
    #[error("{0}")]
    Damaged(String),
    /// The database is on another machine and does not answer.
    #[error("{0}")]
    Unreachable(String),
    /// The file system failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl KvError {
    /// Sorts an I/O error: full, busy, or just failed.
    fn from_io(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full,
            io::ErrorKind::WouldBlock => Self::Busy,
            io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData => Self::Damaged(error.to_string()),
            _ => Self::Io(error),
        }
    }
}

/// A half-open range of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// First key, included.
    pub from: Vec<u8>,
    /// End of the range, excluded; `None` is the end of all keys.
    pub to: Option<Vec<u8>>,
}

impl Range {
    /// Every key.
    pub fn all() -> Self {
        Self { from: Vec::new(), to: None }
    }

    /// Every key that begins with `prefix`.
    pub fn prefix(prefix: &[u8]) -> Self {
        let mut to = prefix.to_vec();
        while let Some(last) = to.pop() {
            if last < u8::MAX {
                to.push(last + 1);
                return Self { from: prefix.to_vec(), to: Some(to) };
            }
        }
        Self { from: prefix.to_vec(), to: None }
    }

    /// Every key greater than `key`.
    pub fn after(key: &[u8]) -> Self {
        let mut from = key.to_vec();
        from.push(0);
        Self { from, to: None }
    }

    /// The same range, ending before `to`.
    pub fn until(mut self, to: &[u8]) -> Self {
        self.to = Some(to.to_vec());
        self
    }

    /// True when no key can lie in it (`BTreeMap::range` panics on such ranges).
    fn is_void(&self) -> bool {
        self.to.as_ref().is_some_and(|to| *to <= self.from)
    }

    fn bounds(&self) -> (std::ops::Bound<&[u8]>, std::ops::Bound<&[u8]>) {
        use std::ops::Bound::{Excluded, Included, Unbounded};
        (Included(&self.from), self.to.as_deref().map_or(Unbounded, Excluded))
    }
}

/// Writes and deletions that are applied together. A later operation on a key replaces an earlier one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    operations: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
}

impl Batch {
    /// Sets `key` to `value`.
    pub fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.operations.insert(key, Some(value));
    }

    /// Removes `key`; removing what is not there is no error.
    pub fn delete(&mut self, key: Vec<u8>) {
        self.operations.insert(key, None);
    }

    /// The operations in ascending order of keys; `None` deletes.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
        self.operations.iter().map(|(key, value)| (key.as_slice(), value.as_deref()))
    }

    /// Number of operations.
    pub fn len(&self) -> usize {
        self.operations.len()
    }

    /// True when there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }
}

/// The driver that `config` names. `server` tells this server from the others that share the database.
pub fn driver(config: &StoreConfig, server: &str) -> Box<dyn Driver> {
    let (path, cache_bytes) = (config.path.clone(), config.cache_bytes);
    match config.driver {
        DriverKind::Memory => Box::new(Volatile),
        DriverKind::Sled => {
            let file = sled::data_file(&path);
            Box::new(OnDisk { path, file, cache_bytes, open: sled::open })
        }
        DriverKind::Redb => Box::new(OnDisk { file: path.clone(), path, cache_bytes, open: redb::open }),
        DriverKind::Postgres => Box::new(postgres::Postgres::new(config.postgres.clone(), server)),
    }
}

struct Volatile;

impl Driver for Volatile {
    fn open(&self) -> Result<Box<dyn KeyValue>, KvError> {
        Ok(Box::new(Memory::default()))
    }

    fn file(&self) -> Option<&Path> {
        None
    }
}

/// Opens the database at a path with a cache of so many bytes.
type Opener = fn(&Path, u64) -> Result<Box<dyn KeyValue>, KvError>;

struct OnDisk {
    path: PathBuf,
    file: PathBuf,
    cache_bytes: u64,
    open: Opener,
}

impl Driver for OnDisk {
    fn open(&self) -> Result<Box<dyn KeyValue>, KvError> {
        let inner = guarded(|| (self.open)(&self.path, self.cache_bytes))?;
        Ok(Box::new(Guarded { inner: Some(inner), reads: metrics::counter!(names::STORE_READS) }))
    }

    fn file(&self) -> Option<&Path> {
        Some(&self.file)
    }
}

/// Counts reads, and turns the panics with which both databases answer some kinds of damage (a flipped bit in sled's log, a zeroed page
/// in redb) into [`KvError::Damaged`].
struct Guarded {
    inner: Option<Box<dyn KeyValue>>,
    reads: metrics::Counter,
}

impl Guarded {
    fn inner(&self) -> &dyn KeyValue {
        self.inner.as_deref().expect("taken only by drop")
    }
}

impl KeyValue for Guarded {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        self.reads.increment(1);
        guarded(|| self.inner().get(key))
    }

    fn scan(&self, range: &Range, visit: Visitor<'_>) -> Result<(), KvError> {
        self.reads.increment(1);
        guarded(|| self.inner().scan(range, visit))
    }

    fn commit(&mut self, batch: &Batch) -> Result<(), KvError> {
        let inner = self.inner.as_mut().expect("taken only by drop");
        guarded(|| inner.commit(batch))
    }

    fn size(&self) -> Result<u64, KvError> {
        guarded(|| self.inner().size())
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let inner = self.inner.take();
        // Closing flushes; a database that is already broken may panic there, and there is nobody left to tell.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(inner)));
    }
}

fn guarded<T>(action: impl FnOnce() -> Result<T, KvError>) -> Result<T, KvError> {
    catch_unwind(AssertUnwindSafe(action)).unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<&str>()
            .map(ToString::to_string)
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_default();
        Err(KvError::Damaged(format!("the database gave up: {}", text.lines().next().unwrap_or_default())))
    })
}

/// Makes the names inside `folder` durable.
fn sync_folder(folder: &Path) -> Result<(), KvError> {
    std::fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(KvError::from_io)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_range_ends_where_the_prefix_ends() {
        assert_eq!(Range::prefix(b"ab"), Range { from: b"ab".to_vec(), to: Some(b"ac".to_vec()) });
        assert_eq!(Range::prefix(&[1, 255]), Range { from: vec![1, 255], to: Some(vec![2]) });
        assert_eq!(Range::prefix(&[255, 255]), Range { from: vec![255, 255], to: None });
        assert_eq!(Range::prefix(b""), Range::all());
    }

    #[test]
    fn a_panic_becomes_damage() {
        let error = guarded::<()>(|| panic!("page {} is gone", 7)).expect_err("must fail");
        assert!(matches!(&error, KvError::Damaged(text) if text.contains("page 7 is gone")), "{error}");
    }
}
