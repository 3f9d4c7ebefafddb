//! The store: aggregates behind one unit of work, durable on the disk and readable in memory.
//!
//! Every write is a closure that runs on one writer thread and sees the store as it is after all writes before it;
//! [`Store::write`] returns when the write is on the disk and in [`State`]. Every hot read is answered by [`State`].
//! One writer because that makes a write serialisable without locks, retries or conflicts, and because commits in
//! groups (see [`writer`]) are faster than commits in parallel on every embedded database that was measured.
//!
//! What is written once here, above a small key-value seam ([`kv`]): keys, records with version, sequence number and
//! checksum ([`record`]), payloads ([`codec`]), the check of everything at open ([`load`], [`expect`]), backup and
//! restore ([`backup`]). `docs/decisions/0007-embedded-store.md` says why it is built this way.

pub mod aggregates;
mod backup;
mod codec;
mod error;
mod expect;
pub mod kv;
mod load;
mod record;
mod replay;
mod shared;
mod snapshot;
mod state;
mod unit;
mod writer;

use std::cell::Cell;
use std::fmt;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bonafide_identity::TrustDomain;
use bonafide_runtime::clock::SharedClock;
use prost::Message;
use tokio::sync::{Semaphore, oneshot};

pub use aggregates::{
    Bundles, Change, ChangeLog, EndpointProfile, Entries, FederationRelationship, Issuance, IssuedSvid,
    JoinTokens, Journal, JournalRecord, MAX_SPENT, Nodes, Relationships, Spending, SpentTokens, SvidKind,
};
pub use backup::{BackupInfo, Existing, restore, verify_backup};
pub use error::StoreError;
pub use shared::{ConnectionSecret, PostgresConfig};
pub use state::{EntriesGuard, KEPT_CHANGES, State};
pub use unit::Unit;

use codec::Header;
use expect::{ExpectFile, Expected};
use kv::{Batch, Driver, KeyValue, KvError};
use record::Table;
use shared::Heard;
use writer::{Command, Sharing, Trouble, Write, Writer};

/// Reads the payload of a record, of which `key` says the table, and writes what it read: what checks the reader
/// without a database, with bytes that no database of ours would hold.
///
/// # Errors
/// [`StoreError::Corrupt`] when there is no such table, or the payload cannot be read.
pub fn rewritten(key: &[u8], payload: &[u8]) -> Result<Vec<u8>, StoreError> {
    let table = Table::of(key).ok_or_else(|| StoreError::corrupt("(record)", "it is of an unknown kind"))?;
    codec::rewritten(table, payload).map_err(|error| StoreError::corrupt("(record)", error.to_string()))
}

/// Reads a message from the log of a shared database as if it came first, with its checksums put right: what checks the
/// reader without a database.
///
/// # Errors
/// What is wrong with it.
pub fn check_log_entry(message: &[u8]) -> Result<(), String> {
    replay::check(message)
}

/// Which database is under the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DriverKind {
    /// Nothing on the disk: gone with the process.
    Memory,
    /// sled; the default.
    Sled,
    /// redb.
    Redb,
    /// PostgreSQL, shared by a group of servers.
    Postgres,
}

impl DriverKind {
    /// The name in configuration files.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Sled => "sled",
            Self::Redb => "redb",
            Self::Postgres => "postgres",
        }
    }
}

impl fmt::Display for DriverKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for DriverKind {
    type Err = UnknownDriver;

    fn from_str(text: &str) -> Result<Self, UnknownDriver> {
        [Self::Memory, Self::Sled, Self::Redb, Self::Postgres]
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .ok_or_else(|| UnknownDriver(text.to_owned()))
    }
}

/// No driver has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown store driver {0:?}: use sled, redb, postgres or memory")]
pub struct UnknownDriver(String);

/// Where a store is and what it is.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// The database under it.
    pub driver: DriverKind,
    /// sled: a folder; redb: a file. `<path>.expect` lies beside it. PostgreSQL: only that file, and `<path>.server` with
    /// the identity of this server. Not used by the memory driver.
    pub path: PathBuf,
    /// Bytes that the database may use for its cache. The state in memory comes on top.
    pub cache_bytes: u64,
    /// A store belongs to one trust domain and refuses to open for another.
    pub trust_domain: TrustDomain,
    /// Where the database of a group of servers is; for that driver only.
    pub postgres: Option<PostgresConfig>,
}

impl StoreConfig {
    /// A cache that is good for up to some hundred thousand entries, since only writes go through it.
    pub const DEFAULT_CACHE_BYTES: u64 = 32 << 20;

    /// A store that is gone with the process.
    pub fn memory(trust_domain: TrustDomain) -> Self {
        Self {
            driver: DriverKind::Memory,
            path: PathBuf::new(),
            cache_bytes: 0,
            trust_domain,
            postgres: None,
        }
    }
}

/// What opening found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadedState {
    /// True when there was no store before.
    pub created: bool,
    /// Registration entries.
    pub entries: usize,
    /// Attested nodes.
    pub nodes: usize,
    /// Bundles, the server's own included.
    pub bundles: usize,
    /// Federation relationships.
    pub relationships: usize,
    /// Join tokens that were not used yet.
    pub tokens: usize,
    /// Number of the last commit.
    pub sequence: u64,
    /// Position of the last change.
    pub epoch: u64,
    /// How long opening took.
    pub elapsed: Duration,
}

/// The store. Clones are the same store; it closes when the last one is dropped.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    config: StoreConfig,
    clock: SharedClock,
    state: Arc<State>,
    commands: Arc<Mutex<Option<mpsc::Sender<Command>>>>,
    /// How fresh the state is, where others write as well.
    heard: Option<Arc<Heard>>,
    /// The database, for messages.
    database: String,
    /// Bounds the writes that wait; also what makes `write` wait instead of piling up closures.
    queue: Arc<Semaphore>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

/// Writes that may wait for the writer thread.
const QUEUE: usize = 8192;

impl Store {
    /// Opens the store, or makes a new one where neither a database nor its expected-state file is. Reads and checks
    /// everything, so it blocks for a while: a second for some hundred thousand entries.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when anything is damaged, missing or shortened, [`StoreError::Busy`] when another process
    /// has it open, [`StoreError::Mismatch`] when it belongs to another trust domain or a newer version, and errors of
    /// the file system.
    pub fn open(config: StoreConfig, clock: SharedClock) -> Result<(Self, LoadedState), StoreError> {
        let server = match config.driver {
            DriverKind::Postgres => shared::identity(&config.path)?,
            DriverKind::Memory | DriverKind::Sled | DriverKind::Redb => String::new(),
        };
        let driver = kv::driver(&config, &server);
        Self::open_with(config, clock, driver, server)
    }

    fn open_with(
        config: StoreConfig,
        clock: SharedClock,
        driver: Box<dyn Driver>,
        server: String,
    ) -> Result<(Self, LoadedState), StoreError> {
        let start = Instant::now();
        let file = match driver.shared() {
            Some(shared) => PathBuf::from(shared.describe()),
            None => driver.file().map_or_else(|| PathBuf::from("(memory)"), Path::to_owned),
        };
        let (expect, database, header, created) = match driver.shared() {
            Some(_) => open_shared(&config, &*driver, &file)?,
            None => open_checked(&config, &*driver, &file)?,
        };
        if header.trust_domain != config.trust_domain.as_str() {
            return Err(StoreError::Mismatch {
                path: config.path,
                what: format!(
                    "it belongs to trust domain {}, not {}",
                    header.trust_domain, config.trust_domain
                ),
            });
        }
        let loaded = match driver.shared() {
            None => load::load(&*database, header, &config.trust_domain, &file)?,
            // Others may be writing: all of it has to be of one moment.
            Some(shared) => {
                let still = shared.snapshot().map_err(|error| StoreError::from_kv(error, &file))?;
                let header = load::read_header(&*still, &file)?.unwrap_or(header);
                load::load(&*still, header, &config.trust_domain, &file)?
            }
        };
        let state = Arc::new(loaded.state);
        let found = LoadedState {
            created,
            entries: state.entries().len(),
            nodes: state.tables().nodes.len(),
            bundles: state.tables().bundles.len(),
            relationships: state.tables().relationships.len(),
            tokens: loaded.tokens,
            sequence: loaded.header.sequence,
            epoch: loaded.header.epoch,
            elapsed: start.elapsed(),
        };
        let (send, receive) = mpsc::channel();
        let commands = Arc::new(Mutex::new(Some(send)));
        let sharing = driver.shared().map(|shared| {
            let limit =
                config.postgres.as_ref().map_or(PostgresConfig::DEFAULT_MAX_CUT_OFF, |at| at.max_cut_off);
            let called = Arc::new(AtomicBool::new(false));
            shared.on_news(waker(&commands, &called));
            Sharing {
                server,
                heard: Arc::new(Heard::new(start, limit)),
                called,
                poll_at: Instant::now(),
                nonce: RandomState::new().hash_one(0),
            }
        });
        let described = file.display().to_string();
        let heard = sharing.as_ref().map(|sharing| sharing.heard.clone());
        let writer = Writer {
            driver,
            database: Some(database),
            path: config.path.clone(),
            file,
            state: state.clone(),
            expect,
            header: loaded.header,
            change_records: loaded.change_records,
            trouble: Trouble::default(),
            snapshot: None,
            sharing,
        };
        let thread = thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || writer.run(&receive))
            .map_err(|error| StoreError::io(&config.path, error))?;
        let inner = Inner {
            config,
            clock,
            state,
            commands,
            heard,
            database: described,
            queue: Arc::new(Semaphore::new(QUEUE)),
            writer: Mutex::new(Some(thread)),
        };
        Ok((Self { inner: Arc::new(inner) }, found))
    }

    /// Runs `closure` on the writer thread and commits what it wrote, all or nothing. Returns when that is durable and
    /// visible in [`Store::state`]. A closure that returns an error, or panics, leaves nothing behind.
    ///
    /// The closure runs between other people's writes: it must be quick and must not wait for anything. A caller that
    /// is dropped while it waits has still written.
    ///
    /// # Errors
    /// The closure's own; [`StoreError::Full`] and [`StoreError::Io`] when the commit failed; [`StoreError::Closed`].
    pub async fn write<T, F>(&self, closure: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Unit<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        self.inner.reachable()?;
        let permit = self.inner.queue.clone().acquire_owned().await.map_err(|_| StoreError::Closed)?;
        let (reply, answer) = oneshot::channel();
        self.inner.send(Command::Write(Box::new(Write::new(closure, reply)), permit))?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// What the store holds, in memory.
    pub fn state(&self) -> &Arc<State> {
        &self.inner.state
    }

    /// Whether what is in memory is recent enough to sign on. Always, for a store that nobody else writes to; for one that
    /// is shared, while its database has been heard of within `max_cut_off`.
    ///
    /// # Errors
    /// [`StoreError::CutOff`].
    pub fn current(&self) -> Result<(), StoreError> {
        let silence = self.inner.heard.as_ref().and_then(|heard| heard.too_long(Instant::now()));
        silence.map_or(Ok(()), |silence| Err(StoreError::CutOff { silence }))
    }

    /// For how long the shared database has not been heard of; `None` for a store that nobody else writes to.
    pub fn silence(&self) -> Option<Duration> {
        self.inner.heard.as_ref().map(|heard| heard.silence(Instant::now()))
    }

    /// The configuration that it was opened with.
    pub fn config(&self) -> &StoreConfig {
        &self.inner.config
    }

    /// Bytes that the database occupies.
    pub async fn size(&self) -> Result<u64, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.inner.send(Command::Size(reply))?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// Writes everything, as it is at this moment, into one file at `dest`, while the store goes on. A file that is
    /// there is replaced when the new one is complete and on the disk.
    ///
    /// # Errors
    /// [`StoreError::Mismatch`] when a backup is running already, [`StoreError::Full`] and [`StoreError::Io`] of either
    /// file system.
    pub async fn backup(&self, dest: &Path) -> Result<BackupInfo, StoreError> {
        backup::backup(self, dest).await
    }

    /// Waits for the writes that are under way, syncs and closes. Writes from now on get [`StoreError::Closed`]; reads
    /// go on.
    pub async fn close(&self) {
        let (reply, answer) = oneshot::channel();
        if self.inner.send(Command::Close(reply)).is_ok() {
            let _ = answer.await;
        }
        let inner = self.inner.clone();
        let _ = tokio::task::spawn_blocking(move || inner.join()).await;
    }

    fn now(&self) -> bonafide_identity::Timestamp {
        self.inner.clock.now()
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("config", &self.inner.config).finish_non_exhaustive()
    }
}

impl Inner {
    fn send(&self, command: Command) -> Result<(), StoreError> {
        let commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        let commands = commands.as_ref().ok_or(StoreError::Closed)?;
        commands.send(command).map_err(|_| StoreError::Closed)
    }

    /// Refuses at once while the database is known to be lost: whoever waits would only learn it later.
    fn reachable(&self) -> Result<(), StoreError> {
        let Some(what) = self.heard.as_ref().and_then(|heard| heard.why_lost()) else { return Ok(()) };
        Err(StoreError::Unreachable { database: self.database.clone(), what, confirmed: true })
    }

    /// Lets the writer finish and waits for it.
    fn join(&self) {
        drop(self.commands.lock().unwrap_or_else(PoisonError::into_inner).take());
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        // A closure may hold the last clone: then this *is* the writer thread, and it is about to end.
        if let Some(writer) = writer.filter(|writer| writer.thread().id() != thread::current().id())
            && writer.join().is_err()
        {
            tracing::error!("the store's writer thread panicked");
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.join();
    }
}

type Checked = (Option<ExpectFile>, Box<dyn KeyValue>, Header, bool);

/// Opens the database and holds it against its expected-state file; makes both when there is neither.
fn open_checked(config: &StoreConfig, driver: &dyn Driver, file: &Path) -> Result<Checked, StoreError> {
    let opened = |driver: &dyn Driver| driver.open().map_err(|error| StoreError::from_kv(error, file));
    if driver.file().is_none() {
        let mut database = opened(driver)?;
        let header = first_header(config, random_id());
        write_header(&mut *database, &header, file)?;
        return Ok((None, database, header, true));
    }
    let corrupt = |what: String| StoreError::corrupt(file, what);
    let occupied = fs::metadata(file).is_ok_and(|data| data.len() > 0);
    let (mut expect, expected) = match ExpectFile::open(&config.path)? {
        Some(found) => found,
        None if occupied => {
            return Err(StoreError::corrupt(
                expect::path_for(&config.path),
                format!("it is missing, so that nobody can tell whether {} is whole", file.display()),
            ));
        }
        None => {
            if let Some(folder) = config.path.parent() {
                fs::create_dir_all(folder).map_err(|error| StoreError::io(folder, error))?;
            }
            let expected = Expected { store_id: random_id(), sequence: 0, count: 0 };
            (ExpectFile::create(&config.path, &expected)?, expected)
        }
    };
    if expected.sequence > 0 && !occupied {
        return Err(corrupt(format!(
            "it is missing or empty where commit {} is expected",
            expected.sequence
        )));
    }
    let mut database = match opened(driver) {
        // Killed while making it: nothing was ever acknowledged that could be in there.
        Err(StoreError::Corrupt { .. }) if expected.sequence == 0 => {
            backup::remove(&config.path)?;
            opened(driver)?
        }
        other => other?,
    };
    let found = load::read_header(&*database, file)?;
    let created = found.is_none() && expected.sequence == 0;
    let header = match found {
        Some(header) => header,
        None if created => {
            // Killed between making the file and the first commit: whatever else is in there is not ours.
            if !is_void(&*database, file)? {
                return Err(corrupt("it holds records but no header".into()));
            }
            let header = first_header(config, expected.store_id);
            write_header(&mut *database, &header, file)?;
            header
        }
        None => {
            return Err(corrupt(format!("it has no header where commit {} is expected", expected.sequence)));
        }
    };
    let holds = writer::expected(&header);
    if holds.store_id != expected.store_id {
        return Err(corrupt(format!(
            "it is not the database that {} belongs to",
            expect::path_for(&config.path).display()
        )));
    }
    if holds.sequence < expected.sequence {
        return Err(corrupt(format!(
            "it ends with commit {} where commit {} is expected: its end is missing",
            holds.sequence, expected.sequence
        )));
    }
    if holds.sequence == expected.sequence && holds.count != expected.count {
        return Err(corrupt(format!("it has {} records where {} are expected", holds.count, expected.count)));
    }
    if holds != expected {
        expect.advance(&holds, Instant::now())?;
        expect.sync()?;
    }
    Ok((Some(expect), database, header, created))
}

/// Sends the writer after the news, unless it is on its way already.
fn waker(
    commands: &Arc<Mutex<Option<mpsc::Sender<Command>>>>,
    called: &Arc<AtomicBool>,
) -> Box<dyn Fn() + Send + Sync> {
    // Not an owner: the driver that calls it belongs to the thread that ends when the last sender is gone.
    let (commands, called) = (Arc::downgrade(commands), called.clone());
    Box::new(move || {
        if called.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Some(commands) = commands.upgrade()
            && let Some(commands) = &*commands.lock().unwrap_or_else(PoisonError::into_inner)
        {
            // A writer that has ended wants no news.
            let _ = commands.send(Command::News);
        }
    })
}

/// Opens a database that others use as well, and holds it against what this server has seen of it before.
fn open_shared(config: &StoreConfig, driver: &dyn Driver, file: &Path) -> Result<Checked, StoreError> {
    let fail = |error| StoreError::from_kv(error, file);
    let known = ExpectFile::open(&config.path)?;
    let mut database = driver.open().map_err(|error| match error {
        KvError::Busy => StoreError::Mismatch {
            path: file.to_owned(),
            what: format!(
                "a server with the identity in {}.server is connected already: give each server a data_dir of its own",
                config.path.display()
            ),
        },
        error => StoreError::from_kv(error, file),
    })?;
    let mut found = load::read_header(&*database, file)?;
    let mut created = false;
    if found.is_none() {
        if known.as_ref().is_some_and(|(_, expected)| expected.sequence > 0) {
            return Err(StoreError::corrupt(file, "it is empty, and this server has seen it full"));
        }
        let header = first_header(config, random_id());
        let key = Table::Header.key(&[]);
        let (_, value) = record::seal(&key, header.sequence, &header.encode_to_vec());
        let shared = database.shared().ok_or_else(|| StoreError::corrupt(file, "it cannot be shared"))?;
        shared.found(&key, &value, header.sequence).map_err(fail)?;
        found = load::read_header(&*database, file)?;
        created = found.as_ref() == Some(&header);
    }
    let header = found.ok_or_else(|| StoreError::corrupt(file, "it holds records but no header"))?;
    let holds = writer::expected(&header);
    let Some((mut expect, expected)) = known else {
        return Ok((Some(ExpectFile::create(&config.path, &holds)?), database, header, created));
    };
    let beside = || expect::path_for(&config.path).display().to_string();
    if holds.store_id != expected.store_id {
        let what = format!(
            "it is not the database that {} belongs to; remove that file if it was restored",
            beside()
        );
        return Err(StoreError::corrupt(file, what));
    }
    if holds.sequence < expected.sequence
        || (holds.sequence == expected.sequence && holds.count != expected.count)
    {
        return Err(StoreError::corrupt(
            file,
            format!(
                "it ends with commit {} ({} records) where this server has seen commit {} ({} records): a standby that \
                 lacked the last commits took over, or an older copy was restored; remove {} to accept the loss",
                holds.sequence,
                holds.count,
                expected.sequence,
                expected.count,
                beside()
            ),
        ));
    }
    expect.advance(&holds, Instant::now())?;
    expect.sync()?;
    Ok((Some(expect), database, header, created))
}

fn is_void(database: &dyn KeyValue, file: &Path) -> Result<bool, StoreError> {
    let found = Cell::new(false);
    database
        .scan(&kv::Range::all(), &mut |_, _| {
            found.set(true);
            std::ops::ControlFlow::Break(())
        })
        .map_err(|error| StoreError::from_kv(error, file))?;
    Ok(!found.get())
}

fn first_header(config: &StoreConfig, store_id: [u8; 16]) -> Header {
    Header {
        store_id: store_id.to_vec(),
        trust_domain: config.trust_domain.to_string(),
        sequence: 1,
        ..Header::default()
    }
}

fn write_header(database: &mut dyn KeyValue, header: &Header, file: &Path) -> Result<(), StoreError> {
    let mut batch = Batch::default();
    let key = Table::Header.key(&[]);
    let (_, value) = record::seal(&key, header.sequence, &header.encode_to_vec());
    batch.put(key, value);
    database.commit(&batch).map_err(|error: KvError| StoreError::from_kv(error, file))
}

/// Tells databases apart; not a secret, so the keys of the standard library's hash maps are random enough.
fn random_id() -> [u8; 16] {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&RandomState::new().hash_one(0).to_be_bytes());
    id[8..].copy_from_slice(&RandomState::new().hash_one(1).to_be_bytes());
    id
}
