//! The writer thread: runs closures one after the other, commits them in groups, and comes back after a full disk.
//!
//! A durable commit costs a disk about the same for one write as for a thousand. While one commit is on its way to the
//! disk, closures queue up; all of them form the next group. Within a group each closure sees those before it, and one
//! that fails takes only its own writes with it. Nobody is answered before the group is on the disk and in the state.
//!
//! When a commit fails the database is dropped and opened anew, since neither driver can go on (sled does not even
//! read). What it then holds decides: the old header means that the group is lost and its writers are told so; the
//! group's header means that it got through after all. While the database cannot be opened, writes are refused at once
//! and reads go on from the state. A disk that is nearly full is not tried at all: [`RESERVE`].
//!
//! A database that several servers share is locked for the length of a group: what others have committed since is applied
//! to the state first, in their order, so a closure sees the present whoever made it. Between groups the thread reads the
//! log when it is told that there is something in it, and once a second in any case.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::StoreError;
use super::codec::{self, Header};
use super::expect::{ExpectFile, Expected};
use super::kv::{Batch, Driver, KeyValue, KvError, News, Shared};
use super::load::{load, read_header};
use super::record::{self, Table, Tally};
use super::replay;
use super::shared::{Heard, POLL_EVERY};
use super::snapshot::Snapshot;
use super::state::{KEPT_CHANGES, State};
use super::unit::{Overlay, Unit};
use crate::status::names;

/// Most writes in one commit.
const GROUP_WRITES: usize = 1024;
/// No further write joins a group of this many bytes.
const GROUP_BYTES: usize = 4 << 20;
/// Room that must be left on the file system for a commit to be tried. Running a database into a full disk costs it a
/// reopening, and one that was killed at that moment needs room to recover.
const RESERVE: u64 = 4 << 20;
/// What a commit may take up on the disk, in multiples of what is written.
const AMPLIFICATION: u64 = 4;
/// How long a database that cannot be opened is left alone.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MOST: Duration = Duration::from_secs(2);
/// How long a predecessor may take to let go of its lock.
const LOCK_WAIT: Duration = Duration::from_secs(2);
/// Changes per record of the change log.
const CHANGES_PER_RECORD: usize = 64;

/// What the writer is asked to do.
pub(super) enum Command {
    /// Run a closure. The permit bounds the queue.
    Write(Box<dyn Job>, OwnedSemaphorePermit),
    /// Begin, go on with or end a backup.
    Backup(BackupStep),
    /// Another server has committed, or the connection is lost.
    News,
    /// Bytes of the database.
    Size(oneshot::Sender<Result<u64, StoreError>>),
    /// Sync everything and stop.
    Close(oneshot::Sender<()>),
}

/// One step of a backup: the backup decides the pace, so that a slow destination never holds up a write.
pub(super) enum BackupStep {
    Begin(oneshot::Sender<Result<Header, StoreError>>),
    Next(oneshot::Sender<Result<Vec<Pair>, StoreError>>),
    End,
}

/// A key and its value.
pub(super) type Pair = (Vec<u8>, Vec<u8>);

/// A closure and the one who waits for it.
pub(super) trait Job: Send {
    /// Runs the closure; true when its writes shall be kept.
    fn run(&mut self, unit: &mut Unit<'_>) -> bool;
    /// Answers: with what the closure returned, or with why it could not be committed.
    fn finish(self: Box<Self>, committed: Result<(), StoreError>);
}

/// The usual [`Job`].
pub(super) struct Write<F, T> {
    closure: Option<F>,
    result: Option<Result<T, StoreError>>,
    reply: oneshot::Sender<Result<T, StoreError>>,
}

impl<F, T> Write<F, T> {
    pub(super) fn new(closure: F, reply: oneshot::Sender<Result<T, StoreError>>) -> Self {
        Self { closure: Some(closure), result: None, reply }
    }
}

impl<F, T> Job for Write<F, T>
where
    F: FnOnce(&mut Unit<'_>) -> Result<T, StoreError> + Send,
    T: Send,
{
    fn run(&mut self, unit: &mut Unit<'_>) -> bool {
        let Some(closure) = self.closure.take() else { return false };
        let result = catch_unwind(AssertUnwindSafe(|| closure(unit))).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<&str>().map(ToString::to_string);
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
            Err(StoreError::Panicked(text))
        });
        self.result.insert(result).is_ok()
    }

    fn finish(self: Box<Self>, committed: Result<(), StoreError>) {
        let result = match (committed, self.result) {
            (Ok(()), Some(result)) => result,
            (Ok(()), None) => Err(StoreError::Closed),
            (Err(error), _) => Err(error),
        };
        // Whoever does not wait any more does not need the answer.
        let _ = self.reply.send(result);
    }
}

/// Everything the writer thread owns.
pub(super) struct Writer {
    pub(super) driver: Box<dyn Driver>,
    /// `None` while the database cannot be opened.
    pub(super) database: Option<Box<dyn KeyValue>>,
    pub(super) path: PathBuf,
    pub(super) file: PathBuf,
    pub(super) state: Arc<State>,
    /// `None` for a database that is not on a disk.
    pub(super) expect: Option<ExpectFile>,
    /// As of the last commit.
    pub(super) header: Header,
    pub(super) change_records: VecDeque<u64>,
    pub(super) trouble: Trouble,
    pub(super) snapshot: Option<Snapshot>,
    /// `None` for a database that is this server's alone.
    pub(super) sharing: Option<Sharing>,
}

/// What only a database needs that several servers share.
pub(super) struct Sharing {
    /// Which of them this is.
    pub(super) server: String,
    pub(super) heard: Arc<Heard>,
    /// A [`Command::News`] is on its way.
    pub(super) called: Arc<AtomicBool>,
    /// When the log is read next without a call.
    pub(super) poll_at: Instant,
    /// Tells the commits of this process from those of its predecessors.
    pub(super) nonce: u64,
}

/// What is wrong at present.
#[derive(Default)]
pub(super) struct Trouble {
    /// A group whose commit failed, until it is known whether it got through.
    pending: Option<Group>,
    /// Not tried again before.
    retry: Option<(Instant, Duration)>,
    /// Why the last attempt failed.
    cause: Option<Cause>,
    /// The database turned out to be another than expected; nothing is written any more.
    fatal: Option<String>,
}

enum Cause {
    Full,
    Unreachable(String),
    Other(String),
}

impl From<KvError> for Cause {
    fn from(error: KvError) -> Self {
        match error {
            KvError::Full => Self::Full,
            KvError::Unreachable(what) => Self::Unreachable(what),
            other => Self::Other(other.to_string()),
        }
    }
}

/// What opening the database anew told of the group whose commit had failed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Settled {
    /// It is in the database.
    Kept,
    /// It is not.
    Lost,
    /// The log does not go back to it any more.
    Untold,
}

/// A group on its way into the database.
struct Group {
    overlay: Overlay,
    header: Header,
    /// Records of the change log after this group.
    change_records: VecDeque<u64>,
    /// What it leaves in the log of a shared database.
    entry: Vec<u8>,
}

impl Writer {
    /// Works until every sender is gone or it is told to close.
    pub(super) fn run(mut self, commands: &Receiver<Command>) {
        let mut waiting: VecDeque<Command> = VecDeque::new();
        loop {
            let command = match waiting.pop_front() {
                Some(command) => command,
                None => match self.receive(commands) {
                    Some(command) => command,
                    None => break,
                },
            };
            match command {
                Command::Write(job, permit) => {
                    let jobs = self.run_group((job, permit), commands, &mut waiting);
                    drop(jobs);
                }
                Command::Backup(step) => self.backup(step),
                Command::News => self.follow(),
                Command::Size(reply) => {
                    let size = self.ready().and_then(|()| {
                        self.database().size().map_err(|error| StoreError::from_kv(error, &self.file))
                    });
                    let _ = reply.send(size);
                }
                Command::Close(reply) => {
                    self.close();
                    let _ = reply.send(());
                    return;
                }
            }
            self.sync_expected(false);
        }
        self.close();
    }

    /// The next command; meanwhile the expected state is synced when it is due.
    fn receive(&mut self, commands: &Receiver<Command>) -> Option<Command> {
        loop {
            let sync = self.expect.as_ref().and_then(ExpectFile::due);
            let poll = self.sharing.as_ref().map(|sharing| sharing.poll_at);
            let Some(due) = sync.into_iter().chain(poll).min() else {
                return commands.recv().ok();
            };
            match commands.recv_timeout(due.saturating_duration_since(Instant::now())) {
                Ok(command) => return Some(command),
                Err(RecvTimeoutError::Timeout) => {
                    self.sync_expected(false);
                    if poll.is_some_and(|poll| poll <= Instant::now()) {
                        self.follow();
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    fn sync_expected(&mut self, now: bool) {
        let Some(expect) = &mut self.expect else { return };
        let synced = if now { expect.sync() } else { expect.sync_if_due(Instant::now()) };
        if let Err(error) = synced {
            tracing::warn!(%error, "the expected state of the store could not be synced");
        }
    }

    fn close(&mut self) {
        self.database = None;
        self.sync_expected(true);
    }

    fn database(&self) -> &dyn KeyValue {
        self.database.as_deref().expect("`ready` was called before")
    }

    /// Runs the first write and all that have queued up, and commits them together.
    fn run_group(
        &mut self,
        first: (Box<dyn Job>, OwnedSemaphorePermit),
        commands: &Receiver<Command>,
        waiting: &mut VecDeque<Command>,
    ) -> Vec<OwnedSemaphorePermit> {
        if let Err(error) = self.ready().and_then(|()| self.begin()) {
            first.0.finish(Err(error));
            return vec![first.1];
        }
        let mut group = Overlay::after_row(self.header.last_row);
        let mut jobs = Vec::new();
        let mut permits = Vec::new();
        let failed = Cell::new(false);
        let server = self.sharing.as_ref().map_or("", |sharing| &sharing.server);
        let mut next = Some(first);
        while let Some((mut job, permit)) = next.take() {
            let mut unit = Unit {
                state: &self.state,
                database: self.database(),
                file: &self.file,
                server,
                group: &group,
                own: Overlay::after_row(group.last_row),
                failed: &failed,
            };
            let keep = job.run(&mut unit);
            let own = unit.own;
            if keep {
                group.merge(own);
            }
            jobs.push(job);
            permits.push(permit);
            if jobs.len() < GROUP_WRITES && group.bytes < GROUP_BYTES {
                next = match commands.try_recv() {
                    Ok(Command::Write(job, permit)) => Some((job, permit)),
                    Ok(other) => {
                        waiting.push_back(other);
                        None
                    }
                    Err(_) => None,
                };
            }
        }
        let committed =
            if group.payloads.is_empty() { self.end() } else { self.measured_commit(group, jobs.len()) };
        match committed {
            Ok(()) => jobs.into_iter().for_each(|job| job.finish(Ok(()))),
            Err(error) => {
                for job in jobs {
                    job.finish(Err(self.refusal(&error)));
                }
            }
        }
        if failed.get() {
            self.lose();
        }
        permits
    }

    fn measured_commit(&mut self, group: Overlay, writes: usize) -> Result<(), Failure> {
        let begun = Instant::now();
        let committed = self.commit(group);
        metrics::histogram!(names::STORE_COMMIT_SECONDS).record(begun.elapsed().as_secs_f64());
        let result = if committed.is_ok() { "ok" } else { "failed" };
        metrics::counter!(names::STORE_WRITES, "result" => result).increment(writes as u64);
        committed
    }

    /// Makes a group durable and visible.
    fn commit(&mut self, overlay: Overlay) -> Result<(), Failure> {
        let needed = RESERVE + AMPLIFICATION * overlay.bytes as u64;
        if self.free_space().is_some_and(|free| free < needed) {
            return Err(Failure::Full { confirmed: true });
        }
        let (batch, group) = self.seal(overlay).map_err(|error| match error {
            StoreError::Unreachable { what, .. } => {
                self.trouble.cause = Some(Cause::Unreachable(what.clone()));
                self.lose();
                Failure::Unreachable { what, confirmed: true }
            }
            error => {
                self.lose();
                Failure::Error(error.to_string())
            }
        })?;
        let database = self.database.as_mut().expect("`ready` was called before");
        let committed = match database.shared() {
            Some(shared) => shared.commit_logged(&batch, group.header.sequence, &group.entry),
            None => database.commit(&batch),
        };
        let Err(error) = committed else {
            self.committed(group);
            return Ok(());
        };
        tracing::warn!(%error, sequence = group.header.sequence, "a commit failed; the store is opened anew");
        self.trouble.pending = Some(group);
        self.trouble.cause = Some(error.into());
        self.lose();
        match self.reopen() {
            Ok(Settled::Kept) => Ok(()),
            Ok(Settled::Lost) => Err(self.failure(true)),
            Ok(Settled::Untold) | Err(()) => Err(self.failure(false)),
        }
    }

    /// Turns a group into the operations that make it, the change log and the header.
    fn seal(&mut self, overlay: Overlay) -> Result<(Batch, Group), StoreError> {
        let fail = |error| StoreError::from_kv(error, &self.file);
        let sequence = self.header.sequence + 1;
        let mut payloads: BTreeMap<&[u8], Option<&[u8]>> = BTreeMap::new();
        for (key, payload) in &overlay.payloads {
            payloads.insert(key, payload.as_deref());
        }

        let mut change_records = self.change_records.clone();
        let mut epoch = self.header.epoch;
        let mut change_log = Vec::new();
        for part in overlay.applied.changes.chunks(CHANGES_PER_RECORD) {
            let first = epoch + 1;
            epoch += part.len() as u64;
            change_records.push_back(epoch);
            change_log.push((Table::Change.key(&epoch.to_be_bytes()), Some(codec::changes(first, part))));
        }
        while change_records.front().is_some_and(|last| last + KEPT_CHANGES as u64 <= epoch) {
            let last = change_records.pop_front().unwrap_or_default();
            change_log.push((Table::Change.key(&last.to_be_bytes()), None));
        }
        for (key, payload) in &change_log {
            payloads.insert(key, payload.as_deref());
        }

        let mut tally = Tally { count: self.header.count, digest: self.header.digest };
        let mut removed = Tally::default();
        let mut entries = self.header.entries;
        let mut batch = Batch::default();
        let keys: Vec<&[u8]> = payloads.keys().copied().collect();
        let formers = self.database().get_many(&keys).map_err(fail)?;
        for ((key, payload), former) in payloads.into_iter().zip(formers) {
            if let Some(former) = &former {
                let opened = record::open(key, former);
                let seal = opened.map_err(|error| StoreError::corrupt(&self.file, error.to_string()))?.seal;
                tally.remove(seal);
                removed.add(seal);
            }
            if let Some(snapshot) = &mut self.snapshot {
                snapshot.keep(key, former.as_deref());
            }
            if Table::of(key) == Some(Table::Entry) {
                entries = entries + u64::from(payload.is_some()) - u64::from(former.is_some());
            }
            match payload {
                Some(payload) => {
                    let (seal, value) = record::seal(key, sequence, payload);
                    tally.add(seal);
                    batch.put(key.to_vec(), value);
                }
                None if former.is_some() => batch.delete(key.to_vec()),
                None => {}
            }
        }
        let header = Header {
            sequence,
            count: tally.count,
            digest: tally.digest,
            last_row: overlay.last_row,
            epoch,
            entries,
            ..self.header.clone()
        };
        let key = Table::Header.key(&[]);
        let (_, value) = record::seal(&key, sequence, &header.encode_to_vec());
        batch.put(key, value);
        let entry = self.sharing.as_mut().map_or_else(Vec::new, |sharing| {
            sharing.nonce = sharing.nonce.wrapping_add(1);
            let Sharing { server, nonce, .. } = sharing;
            replay::write(server, *nonce, sequence, &batch, removed, overlay.applied.spent)
        });
        Ok((batch, Group { overlay, header, change_records, entry }))
    }

    /// A group is on the disk: show it.
    fn committed(&mut self, group: Group) {
        self.change_records = group.change_records;
        self.advance(group.header);
        self.state.apply(group.overlay.applied);
        self.heard();
    }

    /// The database holds the commit that `header` tells of.
    fn advance(&mut self, header: Header) {
        self.header = header;
        let Some(expect) = &mut self.expect else { return };
        if let Err(error) = expect.advance(&expected(&self.header), Instant::now()) {
            // The database is ahead of it, which is no error; the next commit tries again.
            tracing::warn!(%error, "the expected state of the store could not be written");
        }
    }

    /// Memory holds all that the database holds, as of now.
    fn heard(&self) {
        if let Some(sharing) = &self.sharing {
            sharing.heard.note(Instant::now());
        }
    }

    /// Lets go of a database that failed.
    fn lose(&mut self) {
        self.database = None;
        let Some(sharing) = &self.sharing else { return };
        sharing.heard.lost(Some(match &self.trouble.cause {
            Some(Cause::Unreachable(what) | Cause::Other(what)) => what.clone(),
            Some(Cause::Full) => KvError::Full.to_string(),
            None => "the connection is lost".to_owned(),
        }));
    }

    fn shared(&mut self) -> &mut dyn Shared {
        let shared = self.database.as_mut().and_then(|database| database.shared());
        shared.expect("called only for a shared database that is open")
    }

    /// Locks a shared database, and brings memory to where it is.
    fn begin(&mut self) -> Result<(), StoreError> {
        if self.sharing.is_none() {
            return Ok(());
        }
        let begun = self.begin_shared();
        begun.map_err(|error| self.failed(error))
    }

    fn begin_shared(&mut self) -> Result<(), Cut> {
        for _ in 0..2 {
            let sequence = self.header.sequence;
            let (header, news) = self.shared().begin(&Table::Header.key(&[]), sequence)?;
            match news {
                News::Entries { entries, more } => {
                    self.take_in(entries, more)?;
                    return self.same(&header);
                }
                // Reading everything takes longer than others may be kept waiting.
                News::Unknown => {
                    self.shared().end()?;
                    self.reload()?;
                }
            }
        }
        Err(KvError::Unreachable("the log moves faster than this server can read the store".into()).into())
    }

    /// Makes sure that the header in the database is the one that the log has led to.
    fn same(&self, header: &[u8]) -> Result<(), Cut> {
        let key = Table::Header.key(&[]);
        let opened = record::open(&key, header).map_err(|error| Cut::Fatal(error.to_string()))?;
        let header = Header::read(opened.payload).map_err(|error| Cut::Fatal(error.to_string()))?;
        self.follows(&header)?;
        if header == self.header {
            return Ok(());
        }
        Err(Cut::Fatal(format!("its commit {} is not the one that this server knows", header.sequence)))
    }

    /// Makes sure that `header` can be a later one of this store.
    fn follows(&self, header: &Header) -> Result<(), Cut> {
        if header.store_id != self.header.store_id {
            return Err(Cut::Fatal("it is another store than this server opened".into()));
        }
        if header.sequence < self.header.sequence {
            return Err(Cut::Fatal(format!(
                "it ends with commit {} where commit {} has been: it went back",
                header.sequence, self.header.sequence
            )));
        }
        Ok(())
    }

    /// Ends a transaction that wrote nothing.
    fn end(&mut self) -> Result<(), Failure> {
        if self.sharing.is_some()
            && let Err(error) = self.shared().end()
        {
            // Nothing was written, so nothing failed for those who asked; the next one finds the database closed.
            tracing::warn!(%error, "the store's database is lost");
            self.trouble.cause = Some(error.into());
            self.lose();
        }
        Ok(())
    }

    /// Applies what others have committed, and tries to open a database that is lost.
    fn follow(&mut self) {
        let Some(sharing) = &mut self.sharing else { return };
        sharing.called.store(false, Ordering::Release);
        sharing.poll_at = Instant::now() + POLL_EVERY;
        if self.trouble.fatal.is_some() {
            return;
        }
        if self.database.is_none() {
            // Said when it was lost, and by each write meanwhile.
            let _ = self.ready();
            return;
        }
        let sequence = self.header.sequence;
        let caught_up = match self.shared().news(sequence) {
            Ok(News::Entries { entries, more }) => self.take_in(entries, more),
            Ok(News::Unknown) => self.reload(),
            Err(error) => Err(error.into()),
        };
        if let Err(error) = caught_up {
            self.failed(error);
        }
    }

    /// Applies entries of the log, in their order, and then all that come after them.
    fn take_in(&mut self, mut entries: Vec<Vec<u8>>, mut more: bool) -> Result<(), Cut> {
        loop {
            for entry in entries {
                self.replay(&entry)?;
            }
            if !more {
                self.heard();
                return Ok(());
            }
            let sequence = self.header.sequence;
            (entries, more) = match self.shared().news(sequence)? {
                News::Entries { entries, more } => (entries, more),
                News::Unknown => {
                    return Err(KvError::Unreachable("the log was shortened meanwhile".into()).into());
                }
            };
        }
    }

    fn replay(&mut self, entry: &[u8]) -> Result<(), Cut> {
        let replayed = replay::read(entry, &self.header, &self.state).map_err(Cut::Fatal)?;
        self.change_records.retain(|last| !replayed.change_records_gone.contains(last));
        self.change_records.extend(replayed.change_records);
        self.advance(replayed.header);
        self.state.apply(replayed.applied);
        Ok(())
    }

    /// Reads everything: this server was away for longer than the log goes back.
    fn reload(&mut self) -> Result<(), Cut> {
        let Some(shared) = self.driver.shared() else { return Ok(()) };
        let database = shared.snapshot()?;
        let wrong = |error: StoreError| match error {
            // A connection that broke meanwhile says nothing about what is there.
            StoreError::Unreachable { what, .. } => Cut::Passing(KvError::Unreachable(what)),
            StoreError::Io { source, .. } => Cut::Passing(KvError::Io(source)),
            StoreError::Busy { .. } => Cut::Passing(KvError::Busy),
            StoreError::Full { .. } => Cut::Passing(KvError::Full),
            error => Cut::Fatal(error.to_string()),
        };
        let header = read_header(&*database, &self.file).map_err(wrong)?;
        let header = header.ok_or_else(|| Cut::Fatal("it has no header any more".into()))?;
        self.follows(&header)?;
        let loaded = load(&*database, header, self.state.trust_domain(), &self.file).map_err(wrong)?;
        tracing::info!(
            from = self.header.sequence,
            to = loaded.header.sequence,
            "the log does not go back to this server's last commit; the store was read anew"
        );
        self.change_records = loaded.change_records;
        self.advance(loaded.header);
        self.state.replace(loaded.state);
        self.heard();
        Ok(())
    }

    /// Draws the consequences of a failure outside a commit.
    fn failed(&mut self, error: Cut) -> StoreError {
        match error {
            Cut::Fatal(what) => {
                self.database = None;
                // Whoever writes shall hear the reason.
                if let Some(sharing) = &self.sharing {
                    sharing.heard.lost(None);
                }
                tracing::error!(file = %self.file.display(), "{what}; writes are refused until the server is restarted");
                self.trouble.fatal = Some(what.clone());
                StoreError::corrupt(&self.file, what)
            }
            Cut::Passing(error) => {
                tracing::warn!(%error, "the store's database is lost; it is opened anew");
                self.trouble.cause = Some(error.into());
                self.lose();
                let failure = self.failure(true);
                self.refusal(&failure)
            }
        }
    }

    /// Makes sure that the database is open, or says why it is not.
    fn ready(&mut self) -> Result<(), StoreError> {
        if let Some(what) = &self.trouble.fatal {
            return Err(StoreError::corrupt(&self.file, what));
        }
        if self.database.is_some() {
            return Ok(());
        }
        let patient = self.trouble.retry.is_some_and(|(at, _)| Instant::now() < at);
        if patient || self.reopen().is_err() || self.database.is_none() {
            let failure = self.failure(true);
            return Err(self.refusal(&failure));
        }
        Ok(())
    }

    fn patience(&mut self, cause: Cause) {
        let wait = self.trouble.retry.map_or(RETRY_FIRST, |(_, wait)| (2 * wait).min(RETRY_MOST));
        self.trouble.retry = Some((Instant::now() + wait, wait));
        self.trouble.cause = Some(cause);
    }

    /// As [`Self::reopen`], for a database that goes on without us. The lock is had before the log is read, so that a
    /// commit of ours that the database may still be working on has ended either way.
    fn reopen_shared(&mut self) -> Result<Settled, ()> {
        let opened = self.driver.open().map_err(Cut::Passing).and_then(|mut database| {
            let shared = database.shared().ok_or_else(|| Cut::Fatal("it is not shared any more".into()))?;
            let news = shared.begin(&Table::Header.key(&[]), self.header.sequence)?;
            Ok((database, news))
        });
        let (database, (header, news)) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                self.give_up(error);
                return Err(());
            }
        };
        self.database = Some(database);
        let pending = self.trouble.pending.take();
        let had = pending.is_some();
        let mut settled = Settled::Lost;
        let caught_up = match news {
            News::Entries { mut entries, more } => {
                if let Some(group) = pending.filter(|group| entries.first() == Some(&group.entry)) {
                    entries.remove(0);
                    self.committed(group);
                    settled = Settled::Kept;
                }
                let taken = self.take_in(entries, more).and_then(|()| self.same(&header));
                let kept = settled == Settled::Kept;
                taken.and_then(|()| {
                    let shared = self.shared();
                    Ok(if kept { shared.confirm(&Table::Header.key(&[])) } else { shared.end() }?)
                })
            }
            News::Unknown => {
                settled = Settled::Untold;
                let ended = self.shared().end().map_err(Cut::Passing);
                ended.and_then(|()| self.reload())
            }
        };
        if let Err(error) = caught_up {
            self.database = None;
            self.give_up(error);
            // It is there, but whether it would survive this machine is not known.
            return if settled == Settled::Kept { Ok(Settled::Untold) } else { Err(()) };
        }
        let sequence = self.header.sequence;
        let kept = had && settled == Settled::Kept;
        tracing::info!(sequence, kept, "the store's database is open again");
        self.trouble.retry = None;
        Ok(settled)
    }

    /// Leaves the database alone for a while, or for good.
    fn give_up(&mut self, error: Cut) {
        match error {
            Cut::Passing(error) => {
                self.patience(error.into());
                self.lose();
            }
            fatal @ Cut::Fatal(_) => drop(self.failed(fatal)),
        }
    }

    /// Opens the database and finds out what became of the pending group.
    fn reopen(&mut self) -> Result<Settled, ()> {
        if self.sharing.is_some() {
            return self.reopen_shared();
        }
        let opened = self.open_waiting_for_lock().map_err(Cause::from);
        let opened = opened.and_then(|database| match read_header(&*database, &self.file) {
            Ok(header) => Ok((database, header)),
            Err(StoreError::Full { .. }) => Err(Cause::Full),
            Err(error) => Err(Cause::Other(error.to_string())),
        });
        let (database, header) = match opened {
            Ok(opened) => opened,
            Err(cause) => {
                self.patience(cause);
                return Err(());
            }
        };
        let pending = self.trouble.pending.take();
        let mut settled = Settled::Lost;
        let header = header.unwrap_or_default();
        if header == self.header {
            tracing::info!(sequence = header.sequence, "the store is open again");
        } else if let Some(group) = pending.filter(|group| group.header == header) {
            tracing::info!(
                sequence = header.sequence,
                "the store is open again; the failed commit got through"
            );
            self.committed(group);
            settled = Settled::Kept;
        } else {
            let what = format!(
                "after a failed commit it holds commit {} where {} was expected; writes are refused until the server \
                 is restarted",
                header.sequence, self.header.sequence
            );
            tracing::error!(file = %self.file.display(), "{what}");
            self.trouble.fatal = Some(what.clone());
            self.trouble.cause = Some(Cause::Other(what));
            return Err(());
        }
        self.database = Some(database);
        self.trouble.retry = None;
        Ok(settled)
    }

    fn open_waiting_for_lock(&self) -> Result<Box<dyn KeyValue>, KvError> {
        let start = Instant::now();
        loop {
            match self.driver.open() {
                Err(KvError::Busy) if start.elapsed() < LOCK_WAIT => thread::sleep(Duration::from_millis(5)),
                other => return other,
            }
        }
    }

    fn failure(&self, confirmed: bool) -> Failure {
        match &self.trouble.cause {
            Some(Cause::Other(what)) => Failure::Error(what.clone()),
            Some(Cause::Unreachable(what)) => Failure::Unreachable { what: what.clone(), confirmed },
            Some(Cause::Full) | None => Failure::Full { confirmed },
        }
    }

    fn refusal(&self, failure: &Failure) -> StoreError {
        if let Some(what) = &self.trouble.fatal {
            return StoreError::corrupt(&self.file, what);
        }
        match failure {
            Failure::Full { confirmed } => {
                StoreError::Full { path: self.path.clone(), confirmed: *confirmed }
            }
            Failure::Unreachable { what, confirmed } => StoreError::Unreachable {
                database: self.file.display().to_string(),
                what: what.clone(),
                confirmed: *confirmed,
            },
            Failure::Error(what) => {
                StoreError::Io { path: self.file.clone(), source: std::io::Error::other(what.clone()) }
            }
        }
    }

    /// Bytes that may still be written to the file system. `None` where there is none, or it does not say.
    fn free_space(&self) -> Option<u64> {
        let file = self.driver.file()?;
        let stat = rustix::fs::statvfs(file).ok()?;
        // Some file systems have no notion of a size.
        (stat.f_blocks > 0).then(|| stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn backup(&mut self, step: BackupStep) {
        match step {
            BackupStep::Begin(reply) => {
                let begun = self.ready().and_then(|()| {
                    if self.snapshot.is_some() {
                        return Err(StoreError::Mismatch {
                            path: self.path.clone(),
                            what: "another backup is running: wait for its end".into(),
                        });
                    }
                    let Some(shared) = self.driver.shared() else {
                        self.snapshot = Some(Snapshot::default());
                        return Ok(self.header.clone());
                    };
                    // Others write as well: the database itself holds the moment.
                    let fail = |error| StoreError::from_kv(error, &self.file);
                    let database = shared.snapshot().map_err(fail)?;
                    let header =
                        read_header(&*database, &self.file)?.ok_or(StoreError::NotFound("header"))?;
                    self.snapshot = Some(Snapshot::of(database));
                    Ok(header)
                });
                let begun_here = begun.is_ok();
                if reply.send(begun).is_err() && begun_here {
                    self.snapshot = None;
                }
            }
            BackupStep::Next(reply) => {
                let next = self.ready().and_then(|()| {
                    let database = self.database.as_deref().expect("`ready` was called before");
                    match &mut self.snapshot {
                        Some(snapshot) => {
                            snapshot.next(database).map_err(|error| StoreError::from_kv(error, &self.file))
                        }
                        None => Err(StoreError::Closed),
                    }
                });
                let _ = reply.send(next);
            }
            BackupStep::End => self.snapshot = None,
        }
    }
}

/// Why a commit failed.
enum Failure {
    Full { confirmed: bool },
    Unreachable { what: String, confirmed: bool },
    Error(String),
}

/// Why a shared database could not be followed.
enum Cut {
    /// It may work when it is opened anew.
    Passing(KvError),
    /// It is not what this server knows.
    Fatal(String),
}

impl From<KvError> for Cut {
    fn from(error: KvError) -> Self {
        match error {
            KvError::Damaged(what) => Self::Fatal(what),
            other => Self::Passing(other),
        }
    }
}

/// What a header promises.
pub(super) fn expected(header: &Header) -> Expected {
    let mut store_id = [0; 16];
    let length = header.store_id.len().min(16);
    store_id[..length].copy_from_slice(&header.store_id[..length]);
    Expected { store_id, sequence: header.sequence, count: header.count }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::{Mutex, PoisonError};

    use bonafide_identity::{Bundle, TrustDomain, X509Authority};
    use bonafide_runtime::clock::SystemClock;

    use super::super::kv::{Memory, Range, Visitor};
    use super::super::{Bundles, ChangeLog, JoinTokens, Store, StoreConfig};
    use super::*;

    /// A database that fails on order and outlives its openings.
    #[derive(Clone, Default)]
    struct Faulty(Arc<Mutex<Fault>>);

    #[derive(Default)]
    struct Fault {
        keys: Memory,
        /// What the next commit does instead of working.
        commit: Option<(KvError, Landing)>,
        /// How many openings fail.
        openings: usize,
        reads_fail: bool,
    }

    enum Landing {
        Nothing,
        Everything,
        /// Back to an earlier state: what no database should ever do.
        Older(Batch),
    }

    impl Faulty {
        fn with<T>(&self, look: impl FnOnce(&mut Fault) -> T) -> T {
            look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
        }
    }

    impl Driver for Faulty {
        fn open(&self) -> Result<Box<dyn KeyValue>, KvError> {
            self.with(|fault| match fault.openings.checked_sub(1) {
                Some(rest) => {
                    fault.openings = rest;
                    Err(KvError::Full)
                }
                None => Ok(Box::new(self.clone()) as Box<dyn KeyValue>),
            })
        }

        fn file(&self) -> Option<&Path> {
            None
        }
    }

    impl KeyValue for Faulty {
        fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
            self.with(|fault| {
                if std::mem::take(&mut fault.reads_fail) { Err(KvError::Full) } else { fault.keys.get(key) }
            })
        }

        fn scan(&self, range: &Range, visit: Visitor<'_>) -> Result<(), KvError> {
            self.with(|fault| fault.keys.scan(range, visit))
        }

        fn commit(&mut self, batch: &Batch) -> Result<(), KvError> {
            self.with(|fault| match fault.commit.take() {
                None => fault.keys.commit(batch),
                Some((error, landing)) => {
                    match landing {
                        Landing::Nothing => {}
                        Landing::Everything => fault.keys.commit(batch)?,
                        Landing::Older(older) => fault.keys.commit(&older)?,
                    }
                    Err(error)
                }
            })
        }

        fn size(&self) -> Result<u64, KvError> {
            self.with(|fault| fault.keys.size())
        }
    }

    fn open(faulty: &Faulty) -> Store {
        let config = StoreConfig::memory(TrustDomain::parse("td").unwrap());
        Store::open_with(config, SystemClock::shared(), Box::new(faulty.clone()), String::new()).unwrap().0
    }

    async fn put(store: &Store, name: &str) -> Result<u64, StoreError> {
        let mut bundle = Bundle::empty(TrustDomain::parse(name).unwrap());
        bundle.x509_authorities.push(X509Authority { certificate: vec![1], tainted: false });
        store
            .write(move |unit| {
                unit.bundle_put(bundle)?;
                Ok(unit.epoch())
            })
            .await
    }

    fn names(store: &Store) -> Vec<String> {
        store.state().bundles().iter().map(|bundle| bundle.trust_domain.to_string()).collect()
    }

    /// Every record is there, and the tally fits.
    fn check(store: &Store, faulty: &Faulty) {
        faulty.with(|fault| {
            let header = read_header(&fault.keys, Path::new("")).unwrap().unwrap();
            let td = store.state().trust_domain();
            let loaded = load(&fault.keys, header, td, Path::new("")).unwrap();
            let found: Vec<_> =
                loaded.state.bundles().iter().map(|bundle| bundle.trust_domain.to_string()).collect();
            assert_eq!(found, names(store));
            assert_eq!(loaded.state.epoch(), store.state().epoch());
        });
    }

    async fn resumes(store: &Store, name: &str) {
        let start = Instant::now();
        while let Err(error) = put(store, name).await {
            assert!(matches!(error, StoreError::Full { confirmed: true, .. }), "{error:?}");
            assert!(start.elapsed() < Duration::from_secs(30), "writes must resume; last: {error}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn a_commit_that_failed_is_gone_and_the_next_one_works() {
        let faulty = Faulty::default();
        let store = open(&faulty);
        put(&store, "a").await.unwrap();
        faulty.with(|fault| fault.commit = Some((KvError::Full, Landing::Nothing)));
        let error = put(&store, "b").await.unwrap_err();
        assert!(matches!(error, StoreError::Full { confirmed: true, .. }), "{error:?}");
        assert_eq!(put(&store, "c").await.unwrap(), 2);
        assert_eq!(names(&store), ["a", "c"]);
        check(&store, &faulty);
    }

    #[tokio::test]
    async fn a_commit_that_got_through_in_spite_of_an_error_is_acknowledged() {
        let faulty = Faulty::default();
        let store = open(&faulty);
        faulty.with(|fault| fault.commit = Some((KvError::Full, Landing::Everything)));
        assert_eq!(put(&store, "a").await.unwrap(), 1);
        assert_eq!(put(&store, "b").await.unwrap(), 2);
        assert_eq!(names(&store), ["a", "b"]);
        check(&store, &faulty);
    }

    #[tokio::test]
    async fn an_open_question_is_settled_when_the_database_opens_again() {
        for (landing, kept) in [(Landing::Nothing, false), (Landing::Everything, true)] {
            let faulty = Faulty::default();
            let store = open(&faulty);
            put(&store, "a").await.unwrap();
            faulty.with(|fault| {
                fault.commit = Some((KvError::Full, landing));
                fault.openings = 3;
            });
            let error = put(&store, "b").await.unwrap_err();
            assert!(matches!(error, StoreError::Full { confirmed: false, .. }), "{error:?}");
            assert!(error.to_string().contains("decided"), "{error}");
            assert_eq!(names(&store), ["a"], "not shown before it is known");
            resumes(&store, "c").await;
            assert_eq!(names(&store), if kept { vec!["a", "b", "c"] } else { vec!["a", "c"] });
            check(&store, &faulty);
        }
    }

    #[tokio::test]
    async fn a_database_that_went_back_in_time_is_not_written_to() {
        let faulty = Faulty::default();
        let store = open(&faulty);
        put(&store, "a").await.unwrap();
        let mut older = Batch::default();
        let key = Table::Header.key(&[]);
        older.put(key.clone(), faulty.get(&key).unwrap().unwrap());
        put(&store, "b").await.unwrap();
        faulty.with(|fault| fault.commit = Some((KvError::Full, Landing::Older(older))));
        for _ in 0..2 {
            let error = put(&store, "c").await.unwrap_err();
            assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
        }
        assert_eq!(names(&store), ["a", "b"], "reads go on");
    }

    #[tokio::test]
    async fn a_read_that_failed_is_tried_again_on_a_fresh_opening() {
        let faulty = Faulty::default();
        let store = open(&faulty);
        faulty.with(|fault| fault.reads_fail = true);
        assert!(store.write(|unit| unit.token_take("t")).await.is_err());
        assert_eq!(store.write(|unit| unit.token_take("t")).await.unwrap(), None);
        put(&store, "a").await.unwrap();
        check(&store, &faulty);
    }

    /// A writer that waits for the disk collects all that comes in meanwhile.
    #[tokio::test]
    async fn writes_are_committed_in_groups() {
        let faulty = Faulty::default();
        let store = open(&faulty);
        let (hold, held) = std::sync::mpsc::channel::<()>();
        let blocker = {
            let store = store.clone();
            tokio::spawn(async move { store.write(move |_| Ok(held.recv().is_ok())).await })
        };
        let writes: Vec<_> = (0..200)
            .map(|n| {
                let store = store.clone();
                tokio::spawn(async move { put(&store, &format!("td{n}")).await })
            })
            .collect();
        for _ in 0..2000 {
            tokio::task::yield_now().await;
        }
        hold.send(()).unwrap();
        assert!(blocker.await.unwrap().unwrap());
        for write in writes {
            write.await.unwrap().unwrap();
        }
        let sequence = read_header(&faulty, Path::new("")).unwrap().unwrap().sequence;
        assert!(sequence < 20, "{sequence} commits for 200 writes");
        check(&store, &faulty);
    }
}
