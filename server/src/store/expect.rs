//! What the database is expected to hold: a small file beside it.
//!
//! A database that lost its end, or all of it, can still look whole to itself: sled opens a shortened log as an older
//! or an empty database. So the number of the last commit and of the records after it stand in a second file, and a
//! database that is behind that is refused at open. (A hole in the middle is found by the tally in the database's own
//! header; see [`record`](super::record).)
//!
//! The file must not cost every commit a second `fsync`. A commit first becomes durable in the database, then is
//! written here without waiting for the disk. Whatever ends the process, the system keeps both, so this file is exact;
//! only a power cut can leave it behind the database, by what was written since the writer last synced it (at most
//! [`SYNC_EVERY`] earlier), and never ahead of it. Behind is no error. What stays undetected is then a power cut *and*
//! a database shortened by just those last moments. Rejected: a sync for each commit (halves the rate of commits), and
//! only numbers inside the database (go back together with it).
//!
//! Layout: two slots of [`SLOT`] bytes, written in turn, each with its own checksum: a write that a power cut tears
//! leaves the other. The file is also what is locked against a second process.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;

use super::StoreError;

/// The longest time between a commit and its number being safe from a power cut in this file.
pub(super) const SYNC_EVERY: Duration = Duration::from_secs(1);

const MAGIC: &[u8; 8] = b"BFEXPECT";
const VERSION: u8 = 1;
const SLOT: u64 = 4096;
const SLOT_LEN: usize = 8 + 1 + 16 + 8 + 8 + 4;

/// The expected state of a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Expected {
    /// Which database.
    pub(super) store_id: [u8; 16],
    /// Its last commit; 0 until the first one is known to be durable.
    pub(super) sequence: u64,
    /// Records after that commit.
    pub(super) count: u64,
}

/// The file, locked while this lives.
#[derive(Debug)]
pub(super) struct ExpectFile {
    file: File,
    path: PathBuf,
    next_slot: u64,
    /// When the oldest write that may not be on the disk was made.
    dirty_since: Option<Instant>,
}

/// Where the expected state of the database at `path` is.
pub(super) fn path_for(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".expect");
    name.into()
}

/// What that file is called until it is whole.
fn unfinished_for(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".unfinished");
    name.into()
}

impl ExpectFile {
    /// Opens and locks the file that belongs to the database at `store`. `None` when there is none.
    pub(super) fn open(store: &Path) -> Result<Option<(Self, Expected)>, StoreError> {
        let path = path_for(store);
        let file = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StoreError::io(path, error)),
        };
        lock(&file, store)?;
        let mut newest: Option<(u64, Expected)> = None;
        for slot in 0..2 {
            let mut bytes = [0; SLOT_LEN];
            match file.read_exact_at(&mut bytes, slot * SLOT) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => continue,
                Err(error) => return Err(StoreError::io(path, error)),
            }
            if let Some(found) = decode(&bytes)
                && newest.is_none_or(|(_, other)| found.sequence >= other.sequence)
            {
                newest = Some((slot, found));
            }
        }
        let Some((slot, expected)) = newest else {
            return Err(StoreError::corrupt(path, "neither of its two copies matches its checksum"));
        };
        Ok(Some((Self { file, path, next_slot: 1 - slot, dirty_since: None }, expected)))
    }

    /// Makes the file for a new database; it is on the disk when this returns.
    ///
    /// It gets its name when it is whole: a process that is killed on the way leaves a file of another name, which the
    /// next one writes anew, and never half of an expected state. Of two that make it at once the lock lets one go on.
    pub(super) fn create(store: &Path, expected: &Expected) -> Result<Self, StoreError> {
        let path = path_for(store);
        let unfinished = unfinished_for(&path);
        let fail = |error| StoreError::io(&path, error);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&unfinished)
            .map_err(fail)?;
        lock(&file, store)?;
        // Somebody else may have finished between our opening and our locking: then what we hold is theirs.
        let ours = file.metadata().map_err(fail)?;
        let named = fs::symlink_metadata(&unfinished);
        if !named.is_ok_and(|named| (named.dev(), named.ino()) == (ours.dev(), ours.ino()))
            || fs::symlink_metadata(&path).is_ok()
        {
            return Err(StoreError::Busy { path: store.to_owned() });
        }
        // Both slots have their place on the disk from now on: later writes need no space.
        let mut content = vec![0; SLOT as usize + SLOT_LEN];
        content[..SLOT_LEN].copy_from_slice(&encode(expected));
        content[SLOT as usize..].copy_from_slice(&encode(expected));
        file.set_len(0)
            .and_then(|()| file.write_all(&content))
            .and_then(|()| file.sync_all())
            .and_then(|()| fs::rename(&unfinished, &path))
            .map_err(fail)?;
        sync_parent(&path)?;
        Ok(Self { file, path, next_slot: 0, dirty_since: None })
    }

    /// Notes a commit that is durable in the database. Not synced: see [`ExpectFile::sync_if_due`].
    pub(super) fn advance(&mut self, expected: &Expected, now: Instant) -> Result<(), StoreError> {
        let written = self.file.write_all_at(&encode(expected), self.next_slot * SLOT);
        written.map_err(|error| StoreError::io(&self.path, error))?;
        self.next_slot = 1 - self.next_slot;
        self.dirty_since.get_or_insert(now);
        Ok(())
    }

    /// When [`ExpectFile::sync_if_due`] wants to be called; `None` when all is on the disk.
    pub(super) fn due(&self) -> Option<Instant> {
        self.dirty_since.map(|since| since + SYNC_EVERY)
    }

    /// Syncs what has waited for [`SYNC_EVERY`].
    pub(super) fn sync_if_due(&mut self, now: Instant) -> Result<(), StoreError> {
        if self.due().is_some_and(|due| due <= now) { self.sync() } else { Ok(()) }
    }

    /// Syncs.
    pub(super) fn sync(&mut self) -> Result<(), StoreError> {
        self.file.sync_data().map_err(|error| StoreError::io(&self.path, error))?;
        self.dirty_since = None;
        Ok(())
    }
}

/// Makes the name of a file durable.
pub(super) fn sync_parent(path: &Path) -> Result<(), StoreError> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent).and_then(|folder| folder.sync_all()).map_err(|error| StoreError::io(parent, error))
}

fn lock(file: &File, store: &Path) -> Result<(), StoreError> {
    rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive).map_err(|error| match error {
        rustix::io::Errno::WOULDBLOCK => StoreError::Busy { path: store.to_owned() },
        other => StoreError::io(path_for(store), other.into()),
    })
}

fn encode(expected: &Expected) -> [u8; SLOT_LEN] {
    let mut bytes = [0; SLOT_LEN];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8] = VERSION;
    bytes[9..25].copy_from_slice(&expected.store_id);
    bytes[25..33].copy_from_slice(&expected.sequence.to_be_bytes());
    bytes[33..41].copy_from_slice(&expected.count.to_be_bytes());
    let crc = crc32fast::hash(&bytes[..41]);
    bytes[41..].copy_from_slice(&crc.to_be_bytes());
    bytes
}

fn decode(bytes: &[u8; SLOT_LEN]) -> Option<Expected> {
    let (body, crc) = bytes.split_at(41);
    if crc32fast::hash(body).to_be_bytes() != crc || &body[..8] != MAGIC || body[8] != VERSION {
        return None;
    }
    Some(Expected {
        store_id: body[9..25].try_into().ok()?,
        sequence: u64::from_be_bytes(body[25..33].try_into().ok()?),
        count: u64::from_be_bytes(body[33..41].try_into().ok()?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(sequence: u64) -> Expected {
        Expected { store_id: [7; 16], sequence, count: 2 * sequence }
    }

    fn read(path: &Path) -> Result<Option<Expected>, StoreError> {
        Ok(ExpectFile::open(path)?.map(|(_, expected)| expected))
    }

    #[test]
    fn the_newest_slot_counts_and_a_torn_one_leaves_the_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db");
        assert!(read(&path).unwrap().is_none());
        let mut file = ExpectFile::create(&path, &at(0)).unwrap();
        for sequence in 1..=5 {
            file.advance(&at(sequence), Instant::now()).unwrap();
        }
        drop(file);
        assert_eq!(read(&path).unwrap(), Some(at(5)));

        let mut bytes = fs::read(path_for(&path)).unwrap();
        // Commit 5 went into the slot that commit 1 went into: the first.
        bytes[30] ^= 1;
        fs::write(path_for(&path), &bytes).unwrap();
        assert_eq!(read(&path).unwrap(), Some(at(4)));

        bytes[SLOT as usize + 30] ^= 1;
        fs::write(path_for(&path), &bytes).unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("db.expect") && error.contains("restore"), "{error}");

        fs::write(path_for(&path), b"").unwrap();
        assert!(matches!(read(&path), Err(StoreError::Corrupt { .. })));
    }

    #[test]
    fn a_second_holder_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db");
        let _file = ExpectFile::create(&path, &at(0)).unwrap();
        assert!(matches!(ExpectFile::open(&path), Err(StoreError::Busy { .. })));
    }

    #[test]
    fn what_a_killed_maker_left_is_made_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db");
        let unfinished = unfinished_for(&path_for(&path));
        for left in [&b""[..], &encode(&at(9)), &[0; 9000]] {
            fs::write(&unfinished, left).unwrap();
            assert!(read(&path).unwrap().is_none(), "what is not whole has no name");
            drop(ExpectFile::create(&path, &at(0)).unwrap());
            assert!(!unfinished.exists());
            assert_eq!(read(&path).unwrap(), Some(at(0)));
            fs::remove_file(path_for(&path)).unwrap();
        }
    }

    #[test]
    fn of_two_makers_one_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db");
        let first = File::create(unfinished_for(&path_for(&path))).unwrap();
        lock(&first, &path).unwrap();
        assert!(matches!(ExpectFile::create(&path, &at(0)), Err(StoreError::Busy { .. })));
        drop(first);
        let made = ExpectFile::create(&path, &at(0)).unwrap();
        assert!(matches!(ExpectFile::create(&path, &at(1)), Err(StoreError::Busy { .. })));
        drop(made);
        assert_eq!(read(&path).unwrap(), Some(at(0)), "the refused one left it alone");
    }

    #[test]
    fn it_is_synced_after_a_while() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db");
        let mut file = ExpectFile::create(&path, &at(0)).unwrap();
        assert_eq!(file.due(), None);
        let start = Instant::now();
        file.advance(&at(1), start).unwrap();
        file.advance(&at(2), start + SYNC_EVERY / 2).unwrap();
        assert_eq!(file.due(), Some(start + SYNC_EVERY));
        file.sync_if_due(start + SYNC_EVERY / 2).unwrap();
        assert!(file.due().is_some());
        file.sync_if_due(start + SYNC_EVERY).unwrap();
        assert_eq!(file.due(), None);
    }
}
