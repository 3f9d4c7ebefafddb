//! sled: the default driver, with what sled itself leaves out.
//!
//! * sled's `flush` writes with `sync_file_range`, which commits neither the file's extents nor the drive's cache: after
//!   a power cut, acknowledged data is gone or the database cannot be opened. So [`KeyValue::commit`] adds `fsync` on
//!   the log file, and creation adds it on the folders.
//! * sled moves a page that is larger than an eighth of a mebibyte into a file of its own under `blobs/`, which it never
//!   syncs. A page holds up to seventeen values, so values are cut into pieces of [`PIECE`] bytes: no page gets there.
//! * sled cannot open a database whose last opening was interrupted while it wrote a snapshot; see [`prepare`].
//! * sled opens a shortened log as an older or an empty database without a word. The layer above finds that out (see
//!   `store::expect`); here only the panics are caught, by the wrapper that every driver gets.
//!
//! Layout of keys: `1 key` holds a whole value or the first piece of one, `2 length key number` the further pieces.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::ops::{Bound, ControlFlow};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;

use super::{Batch, KeyValue, KvError, Range, Visitor, sync_folder};

/// Longest value under one key of sled.
const PIECE: usize = 4096;
/// How long sled's threads may take to let go of a database.
const LINGER: Duration = Duration::from_secs(30);
const WHOLE: u8 = 0;
const CUT: u8 = 1;
const HEAD: u8 = 1;
const TAIL: u8 = 2;

struct Sled {
    /// `None` only while it is dropped.
    database: Option<sled::Db>,
    /// The log, opened once more to be synced.
    log: File,
    /// Number of further pieces of each value that is cut.
    cut: HashMap<Vec<u8>, u32>,
}

/// The file of sled that holds the data, inside its folder.
pub(super) fn data_file(path: &Path) -> PathBuf {
    path.join("db")
}

pub(super) fn open(path: &Path, cache_bytes: u64) -> Result<Box<dyn KeyValue>, KvError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(KvError::from_io)?;
    prepare(path).map_err(KvError::from_io)?;
    let database = sled::Config::new()
        .path(path)
        .cache_capacity(cache_bytes)
        // Each commit flushes: a timer would only write in between.
        .flush_every_ms(None)
        .open()
        .map_err(from_sled)?;
    let log = File::open(data_file(path)).map_err(KvError::from_io)?;
    log.sync_all().map_err(KvError::from_io)?;
    File::open(path.join("conf")).and_then(|conf| conf.sync_all()).map_err(KvError::from_io)?;
    sync_folder(path)?;
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        sync_folder(parent)?;
    }
    let mut opened = Sled { database: Some(database), log, cut: HashMap::new() };
    opened.cut = opened.cut_values()?;
    Ok(Box::new(opened))
}

/// Makes it safe for sled to recover what a predecessor left.
///
/// sled takes a snapshot file that it did not finish (killed, or no space) for a damaged one and refuses to open ever
/// after; such a file is never needed. And it trusts a snapshot to be older than what is durable of the log, so what a
/// killed predecessor left in the system's cache is synced before a snapshot is made of it.
fn prepare(path: &Path) -> io::Result<()> {
    for found in fs::read_dir(path)? {
        let found = found?;
        let name = found.file_name();
        if name.to_str().is_some_and(|name| name.starts_with("snap.") && name.ends_with(".generating")) {
            fs::remove_file(found.path())?;
        }
    }
    match File::open(data_file(path)) {
        Ok(log) => log.sync_all(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

impl Sled {
    fn database(&self) -> &sled::Db {
        self.database.as_ref().expect("taken only by drop")
    }

    fn cut_values(&self) -> Result<HashMap<Vec<u8>, u32>, KvError> {
        let mut cut = HashMap::new();
        for record in self.database().scan_prefix([TAIL]) {
            let (key, _) = record.map_err(from_sled)?;
            let owner = key
                .get(1..5)
                .and_then(|length| Some(u32::from_be_bytes(length.try_into().ok()?) as usize))
                .and_then(|length| key.get(5..5 + length))
                .ok_or_else(|| KvError::Damaged("a piece of a value has no owner".into()))?;
            *cut.entry(owner.to_vec()).or_insert(0) += 1;
        }
        Ok(cut)
    }

    /// Puts the pieces of a value together again.
    fn whole(&self, key: &[u8], head: &[u8]) -> Result<Vec<u8>, KvError> {
        match head.split_first() {
            Some((&WHOLE, value)) => Ok(value.to_vec()),
            Some((&CUT, rest)) if rest.len() >= 4 => {
                let (count, first) = rest.split_at(4);
                let count = u32::from_be_bytes([count[0], count[1], count[2], count[3]]);
                let mut value = first.to_vec();
                for number in 0..count {
                    let piece = self.database().get(tail_key(key, number)).map_err(from_sled)?;
                    let piece =
                        piece.ok_or_else(|| KvError::Damaged("a piece of a value is missing".into()))?;
                    value.extend_from_slice(&piece);
                }
                Ok(value)
            }
            _ => Err(KvError::Damaged("a value has no beginning".into())),
        }
    }
}

impl KeyValue for Sled {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        let head = self.database().get(head_key(key)).map_err(from_sled)?;
        head.map(|head| self.whole(key, &head)).transpose()
    }

    fn scan(&self, range: &Range, visit: Visitor<'_>) -> Result<(), KvError> {
        if range.is_void() {
            return Ok(());
        }
        let to = range.to.as_deref().map_or_else(|| vec![HEAD + 1], head_key);
        let bounds = (Bound::Included(head_key(&range.from)), Bound::Excluded(to));
        for record in self.database().range::<Vec<u8>, _>(bounds) {
            let (stored_key, head) = record.map_err(from_sled)?;
            let key = &stored_key[1..];
            let flow = match head.split_first() {
                Some((&WHOLE, value)) => visit(key, value),
                _ => visit(key, &self.whole(key, &head)?),
            };
            if let ControlFlow::Break(()) = flow {
                break;
            }
        }
        Ok(())
    }

    fn commit(&mut self, batch: &Batch) -> Result<(), KvError> {
        let mut operations = sled::Batch::default();
        for (key, value) in batch.iter() {
            let old_tail = self.cut.remove(key).unwrap_or(0);
            let mut new_tail = 0;
            match value {
                None => operations.remove(head_key(key)),
                Some(value) if value.len() <= PIECE => {
                    let mut head = Vec::with_capacity(1 + value.len());
                    head.push(WHOLE);
                    head.extend_from_slice(value);
                    operations.insert(head_key(key), head);
                }
                Some(value) => {
                    let (first, rest) = value.split_at(PIECE);
                    for piece in rest.chunks(PIECE) {
                        operations.insert(tail_key(key, new_tail), piece);
                        new_tail += 1;
                    }
                    let mut head = vec![CUT];
                    head.extend_from_slice(&new_tail.to_be_bytes());
                    head.extend_from_slice(first);
                    operations.insert(head_key(key), head);
                    self.cut.insert(key.to_vec(), new_tail);
                }
            }
            for number in new_tail..old_tail {
                operations.remove(tail_key(key, number));
            }
        }
        self.database().apply_batch(operations).map_err(from_sled)?;
        self.database().flush().map_err(from_sled)?;
        self.log.sync_all().map_err(KvError::from_io)
    }

    fn size(&self) -> Result<u64, KvError> {
        self.database().size_on_disk().map_err(from_sled)
    }
}

impl Drop for Sled {
    /// sled's own threads hold on to the database, and to its lock, for a moment after the last handle is gone. Who
    /// drops a database may want to open it again, so this waits for them.
    fn drop(&mut self) {
        drop(self.database.take());
        let start = Instant::now();
        while start.elapsed() < LINGER {
            match rustix::fs::flock(&self.log, FlockOperation::NonBlockingLockExclusive) {
                Err(rustix::io::Errno::WOULDBLOCK) => thread::sleep(Duration::from_millis(1)),
                _ => return,
            }
        }
    }
}

fn head_key(key: &[u8]) -> Vec<u8> {
    let mut stored = Vec::with_capacity(1 + key.len());
    stored.push(HEAD);
    stored.extend_from_slice(key);
    stored
}

fn tail_key(key: &[u8], number: u32) -> Vec<u8> {
    let length = u32::try_from(key.len()).expect("keys are far shorter than four gibibytes");
    let mut stored = Vec::with_capacity(9 + key.len());
    stored.push(TAIL);
    stored.extend_from_slice(&length.to_be_bytes());
    stored.extend_from_slice(key);
    stored.extend_from_slice(&number.to_be_bytes());
    stored
}

fn from_sled(error: sled::Error) -> KvError {
    match error {
        // sled wraps a refused lock into an error of its own text.
        sled::Error::Io(error) if error.to_string().contains("could not acquire lock") => KvError::Busy,
        sled::Error::Io(error) => KvError::from_io(error),
        other => KvError::Damaged(other.to_string()),
    }
}
