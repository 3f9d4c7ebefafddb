//! The audit log: one JSON object in one line for each call.
//!
//! A thread of its own writes, so that no call waits for the disk. The queue to it has no bound of its own; instead
//! *new* calls wait at the gate while too much is queued ([`AuditLog::admission`]). So a call that was let in can always be
//! recorded, without waiting and without loss, and what is queued is still bounded, by the bound at the gate and the
//! calls already inside.
//!
//! When the file cannot be written, lines are lost, because the alternative is to stop issuing identities; the loss is
//! counted, logged, and makes the server not ready.
//!
//! Rejected: the process's ordinary log (its level may be changed, its form is for people), and one line for each item
//! of a batch (500 lines for one decision of one caller).

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use bonafide_identity::Timestamp;
use bonafide_runtime::health::ReadinessGuard;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::{Notify, oneshot};
use tonic::Code;

use crate::api::{Notes, code_name};
use crate::caller::{Caller, Origin};
use crate::status::names;

/// What became of a call at the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It was let in; the code says how it ended.
    Allowed,
    /// The caller had no right.
    Denied,
    /// The caller called too often.
    Limited,
}

impl Decision {
    fn name(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::Limited => "limited",
        }
    }
}

/// One line.
#[derive(Clone, Debug)]
pub struct CallRecord {
    /// When the call ended.
    pub time: Timestamp,
    /// Who called, and by what right.
    pub caller: Caller,
    /// `/package.Service/Method`
    pub method: &'static str,
    /// What the handler said of it.
    pub notes: Notes,
    /// Whether it was let in.
    pub decision: Decision,
    /// How it ended.
    pub code: Code,
    /// The status message; empty on success.
    pub message: String,
    /// How long it took.
    pub took: Duration,
}

/// The audit log. Clones share it; without a file it records nothing.
#[derive(Clone)]
pub struct AuditLog {
    shared: Option<Arc<Shared>>,
}

struct Shared {
    queue: mpsc::Sender<Message>,
    queued: Arc<Queued>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct Queued {
    count: AtomicUsize,
    less: Notify,
}

enum Message {
    Record(Box<CallRecord>),
    Flush(oneshot::Sender<()>),
    Reopen(oneshot::Sender<io::Result<()>>),
    Close,
}

/// New calls wait while this many lines are queued.
const BOUND: usize = 4096;
/// How much is collected before it is written although more is queued.
const CHUNK: usize = 64 * 1024;

impl AuditLog {
    /// An audit log that records nothing.
    pub fn disabled() -> Self {
        Self { shared: None }
    }

    /// Opens the file, to append to it, and starts the writer.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn start(path: PathBuf, readiness: ReadinessGuard) -> io::Result<Self> {
        let file = open(&path)?;
        readiness.ready();
        let (queue, messages) = mpsc::channel();
        let queued = Arc::new(Queued::default());
        let writer = Writer {
            path,
            file,
            readiness,
            queued: queued.clone(),
            lines: Vec::with_capacity(CHUNK),
            count: 0,
            torn: false,
            failing: false,
        };
        let thread = std::thread::Builder::new()
            .name("audit".to_owned())
            .stack_size(256 * 1024)
            .spawn(move || writer.run(&messages))?;
        Ok(Self { shared: Some(Arc::new(Shared { queue, queued, writer: Mutex::new(Some(thread)) })) })
    }

    /// Waits until there is room for what a new call will say.
    pub async fn admission(&self) {
        let Some(shared) = &self.shared else { return };
        loop {
            let less = shared.queued.less.notified();
            tokio::pin!(less);
            less.as_mut().enable();
            if shared.queued.count.load(Ordering::Acquire) < BOUND {
                return;
            }
            less.await;
        }
    }

    /// Records a call; never waits.
    pub fn record(&self, record: CallRecord) {
        let Some(shared) = &self.shared else { return };
        shared.queued.count.fetch_add(1, Ordering::AcqRel);
        if shared.queue.send(Message::Record(Box::new(record))).is_err() {
            // Only after `close`, when no listener accepts calls any more.
            metrics::counter!(names::AUDIT_LOST).increment(1);
        }
    }

    /// Waits until everything recorded so far has been handed to the system.
    pub async fn flush(&self) {
        let Some(shared) = &self.shared else { return };
        let (done, wait) = oneshot::channel();
        if shared.queue.send(Message::Flush(done)).is_ok() {
            // An error means that the writer has ended, which it does only after a last flush.
            let _ = wait.await;
        }
    }

    /// Opens the file anew, after something else has moved it away.
    ///
    /// # Errors
    /// The file cannot be opened; the old one is kept.
    pub async fn reopen(&self) -> io::Result<()> {
        let Some(shared) = &self.shared else { return Ok(()) };
        let (done, wait) = oneshot::channel();
        let closed = || io::Error::other("the audit log is closed");
        shared.queue.send(Message::Reopen(done)).map_err(|_| closed())?;
        wait.await.map_err(|_| closed())?
    }

    /// Writes what is queued, syncs the file and ends the writer.
    pub async fn close(&self) {
        let Some(shared) = &self.shared else { return };
        let writer = shared.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(writer) = writer else { return };
        let _ = shared.queue.send(Message::Close);
        // The thread's panic has been logged by the panic hook; there is nothing to add.
        let _ = tokio::task::spawn_blocking(move || writer.join()).await;
    }
}

struct Writer {
    path: PathBuf,
    file: File,
    readiness: ReadinessGuard,
    queued: Arc<Queued>,
    lines: Vec<u8>,
    count: usize,
    /// The last write ended inside a line.
    torn: bool,
    failing: bool,
}

impl Writer {
    fn run(mut self, messages: &mpsc::Receiver<Message>) {
        loop {
            let message = match messages.try_recv() {
                Ok(message) => message,
                Err(_) => {
                    self.write();
                    match messages.recv() {
                        Ok(message) => message,
                        Err(_) => break,
                    }
                }
            };
            match message {
                Message::Record(record) => {
                    line(&record, &mut self.lines);
                    self.count += 1;
                    if self.lines.len() >= CHUNK {
                        self.write();
                    }
                }
                Message::Flush(done) => {
                    self.write();
                    let _ = done.send(());
                }
                Message::Reopen(done) => {
                    self.write();
                    let _ = done.send(open(&self.path).map(|file| {
                        self.file = file;
                        self.torn = false;
                    }));
                }
                Message::Close => break,
            }
        }
        self.write();
        if let Err(error) = self.file.sync_all() {
            tracing::error!(file = %self.path.display(), %error, "the audit log could not be synced");
        }
    }

    fn write(&mut self) {
        if self.lines.is_empty() {
            return;
        }
        let outcome = self.write_lines();
        match outcome {
            Ok(()) => {
                metrics::counter!(names::AUDIT_LINES).increment(self.count as u64);
                if std::mem::take(&mut self.failing) {
                    tracing::info!(file = %self.path.display(), "the audit log can be written again");
                    self.readiness.ready();
                }
            }
            Err(error) => {
                metrics::counter!(names::AUDIT_LOST).increment(self.count as u64);
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::error!(file = %self.path.display(), %error, "the audit log cannot be written: lines are lost");
                    self.readiness.not_ready(format!("the audit log cannot be written: {error}"));
                }
            }
        }
        self.lines.clear();
        self.queued.count.fetch_sub(std::mem::take(&mut self.count), Ordering::AcqRel);
        self.queued.less.notify_waiters();
    }

    fn write_lines(&mut self) -> io::Result<()> {
        if self.torn {
            self.file.write_all(b"\n")?;
            self.torn = false;
        }
        let mut rest = &self.lines[..];
        while !rest.is_empty() {
            match self.file.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    self.torn = rest[written - 1] != b'\n';
                    rest = &rest[written..];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

fn line(record: &CallRecord, out: &mut Vec<u8>) {
    let Caller { request_id, origin, right } = &record.caller;
    let mut caller = Map::new();
    if record.decision == Decision::Allowed {
        caller.insert("class".to_owned(), right.name().into());
    }
    match origin {
        Origin::Local { pid, uid, gid, path } => {
            caller.insert("uid".to_owned(), (*uid).into());
            caller.insert("gid".to_owned(), (*gid).into());
            caller.insert("pid".to_owned(), (*pid).into());
            if let Some(path) = path {
                caller.insert("path".to_owned(), path.to_string_lossy().into());
            }
        }
        Origin::Remote { address, id } => {
            caller.insert("address".to_owned(), address.to_string().into());
            if let Some(id) = id {
                caller.insert("spiffe_id".to_owned(), id.to_string().into());
            }
        }
    }
    let mut object = Map::new();
    object.insert("time".to_owned(), time_text(record.time).into());
    object.insert("request_id".to_owned(), request_id.to_string().into());
    object.insert("caller".to_owned(), caller.into());
    object.insert("method".to_owned(), record.method.into());
    object.insert("decision".to_owned(), record.decision.name().into());
    object.insert("code".to_owned(), code_name(record.code).into());
    if !record.message.is_empty() {
        object.insert("message".to_owned(), record.message.clone().into());
    }
    object
        .insert("duration_us".to_owned(), u64::try_from(record.took.as_micros()).unwrap_or(u64::MAX).into());
    let notes = &record.notes;
    if !notes.targets.is_empty() {
        object.insert("targets".to_owned(), notes.targets.clone().into());
    }
    if !notes.issued.is_empty() {
        let issued = notes.issued.iter().map(|(kind, id)| json!({"kind": kind, "id": id}));
        object.insert("issued".to_owned(), issued.collect());
    }
    if !notes.failed.is_empty() {
        let failed = notes.failed.iter().map(|(position, code, message)| {
            json!({"position": position, "code": code_name(Code::from(*code)), "message": message})
        });
        object.insert("failed".to_owned(), failed.collect());
    }
    for (key, value) in &notes.more {
        object.entry(*key).or_insert_with(|| Value::from(value.as_str()));
    }
    if notes.left_out > 0 {
        object.insert("left_out".to_owned(), notes.left_out.into());
    }
    // Writing values into memory cannot fail: all keys are strings.
    if serde_json::to_writer(&mut *out, &object).is_ok() {
        out.push(b'\n');
    }
}

fn time_text(time: Timestamp) -> String {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(time.unix_millis()) * 1_000_000)
        .ok()
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_else(|| time.unix_millis().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::caller::Right;
    use bonafide_runtime::health::Readiness;

    fn record(method: &'static str) -> CallRecord {
        CallRecord {
            time: Timestamp::from_unix_millis(1_767_225_600_250),
            caller: Caller {
                request_id: 7,
                origin: Origin::Local { pid: 12, uid: 0, gid: 5, path: Some("/usr/bin/bonafide".into()) },
                right: Right::Local,
            },
            method,
            notes: Notes {
                targets: vec!["entry-1".to_owned()],
                issued: vec![("x509", "1234".to_owned())],
                failed: vec![(3, 5, "no such entry".to_owned())],
                ..Notes::default()
            },
            decision: Decision::Allowed,
            code: Code::Ok,
            message: String::new(),
            took: Duration::from_millis(2),
        }
    }

    fn lines(path: &Path) -> Vec<Value> {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[tokio::test]
    async fn a_call_becomes_a_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.log");
        let readiness = Readiness::new();
        let log = AuditLog::start(path.clone(), readiness.register("audit")).unwrap();
        log.record(record("/a.B/C"));
        log.flush().await;
        assert_eq!(
            lines(&path),
            [json!({
                "time": "2026-01-01T00:00:00.25Z",
                "request_id": "7",
                "caller": {"class": "local", "uid": 0, "gid": 5, "pid": 12, "path": "/usr/bin/bonafide"},
                "method": "/a.B/C",
                "decision": "allowed",
                "code": "OK",
                "duration_us": 2000,
                "targets": ["entry-1"],
                "issued": [{"kind": "x509", "id": "1234"}],
                "failed": [{"position": 3, "code": "NotFound", "message": "no such entry"}],
            })]
        );
        log.close().await;
    }

    #[tokio::test]
    async fn rotation_loses_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (path, old) = (folder.path().join("audit.log"), folder.path().join("audit.log.1"));
        let log = AuditLog::start(path.clone(), Readiness::new().register("audit")).unwrap();
        log.record(record("/a.B/C"));
        std::fs::rename(&path, &old).unwrap();
        log.record(record("/a.B/D"));
        log.reopen().await.unwrap();
        log.record(record("/a.B/E"));
        log.close().await;
        assert_eq!((lines(&old).len(), lines(&path).len()), (2, 1));
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_written_shows_in_readiness_and_stops_nobody() {
        if !Path::new("/dev/full").exists() {
            eprintln!("SKIPPED: a_file_that_cannot_be_written…: there is no /dev/full");
            return;
        }
        let readiness = Readiness::new();
        let log = AuditLog::start("/dev/full".into(), readiness.register("audit")).unwrap();
        assert!(readiness.is_ready());
        for _ in 0..2 * BOUND {
            log.record(record("/a.B/C"));
        }
        log.flush().await;
        assert!(!readiness.is_ready());
        log.admission().await;
    }

    #[tokio::test]
    async fn new_calls_wait_while_too_much_is_queued() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.log");
        let log = AuditLog::start(path.clone(), Readiness::new().register("audit")).unwrap();
        for _ in 0..20 * BOUND {
            log.admission().await;
            log.record(record("/a.B/C"));
            let queued = log.shared.as_ref().unwrap().queued.count.load(Ordering::Acquire);
            assert!(queued <= BOUND, "{queued}");
        }
        log.close().await;
        assert_eq!(lines(&path).len(), 20 * BOUND);
    }
}
