//! What a store needs whose database is shared by a group of servers: settings, an identity, and how fresh memory is.

use std::fmt;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::expect::sync_parent;
use super::kv::KvError;
use super::{StoreError, random_id};

/// How to reach the PostgreSQL database of a group of servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PostgresConfig {
    /// Where it is, and who we are there.
    pub connection_string: ConnectionSecret,
    /// PEM with the roots that its certificate is verified with; those of the system when there is none here and no
    /// `sslrootcert` in the connection string.
    pub ca_path: Option<PathBuf>,
    /// PEM: a certificate to show to the database.
    pub client_certificate_path: Option<PathBuf>,
    /// PEM: its key, PKCS#8.
    pub client_key_path: Option<PathBuf>,
    /// How long one question to the database may take, waiting for a lock included. A connection attempt has half of it.
    pub timeout: Duration,
    /// How long the server signs with what is in memory while the database cannot be reached.
    pub max_cut_off: Duration,
}

impl PostgresConfig {
    /// Long enough for a lock behind a large commit, short enough for a caller.
    pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
    /// Longer than a failover takes, and a small part of the life that SVIDs have left when they are renewed.
    pub const DEFAULT_MAX_CUT_OFF: Duration = Duration::from_secs(5 * 60);
}

/// A connection string, or where it is read from at each connection. `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub enum ConnectionSecret {
    /// Itself.
    Text(String),
    /// A file that holds it.
    File(PathBuf),
}

impl ConnectionSecret {
    pub(super) fn read(&self) -> Result<String, KvError> {
        match self {
            Self::Text(text) => Ok(text.clone()),
            Self::File(path) => fs::read_to_string(path)
                .map_err(|error| KvError::Io(io::Error::other(format!("{}: {error}", path.display())))),
        }
    }
}

impl fmt::Debug for ConnectionSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(_) => f.write_str("(hidden)"),
            Self::File(path) => path.fmt(f),
        }
    }
}

/// The identity of the server whose files lie at `path`, made at its first start. It says which journal is its own, so it
/// belongs to the keys: whoever copies the folder makes the same server a second time, which the database refuses.
pub(super) fn identity(path: &Path) -> Result<String, StoreError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".server");
    let file = PathBuf::from(name);
    let fail = |error| StoreError::io(&file, error);
    match fs::read_to_string(&file) {
        Ok(text) if is_identity(text.trim()) => return Ok(text.trim().to_owned()),
        Ok(_) => {
            return Err(StoreError::Mismatch {
                path: file,
                what: "it does not hold the identity of a server: bring it back, or remove it to begin with a new one \
                       (the authorities of the old one then end by themselves)"
                    .into(),
            });
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(fail(error)),
    }
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder).map_err(|error| StoreError::io(folder, error))?;
    }
    let identity = data_encoding::HEXLOWER.encode(&random_id());
    let mut unfinished = file.clone().into_os_string();
    unfinished.push(".unfinished");
    let unfinished = PathBuf::from(unfinished);
    let mut out = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&unfinished)
        .map_err(fail)?;
    writeln!(out, "{identity}").and_then(|()| out.sync_all()).map_err(fail)?;
    fs::rename(&unfinished, &file).map_err(fail)?;
    sync_parent(&file)?;
    Ok(identity)
}

fn is_identity(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// When the database was last heard of.
#[derive(Debug)]
pub(super) struct Heard {
    base: Instant,
    /// Milliseconds after `base`.
    last: AtomicU64,
    /// Why the database is not there, while it is not.
    lost: Mutex<Option<String>>,
    limit: Duration,
}

impl Heard {
    pub(super) fn new(now: Instant, limit: Duration) -> Self {
        Self { base: now, last: AtomicU64::new(0), lost: Mutex::default(), limit }
    }

    /// The database said at `now` that memory holds all that it holds.
    pub(super) fn note(&self, now: Instant) {
        let since = now.saturating_duration_since(self.base).as_millis();
        self.last.store(u64::try_from(since).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.lost(None);
    }

    /// Notes why the database is lost; `None` when it is there, or when asking it again will not help.
    pub(super) fn lost(&self, why: Option<String>) {
        *self.lost.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    pub(super) fn why_lost(&self) -> Option<String> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// For how long nothing has been heard.
    pub(super) fn silence(&self, now: Instant) -> Duration {
        let last = self.base + Duration::from_millis(self.last.load(Ordering::Relaxed));
        now.saturating_duration_since(last)
    }

    /// The silence, when it is too long for what is in memory to be acted on.
    pub(super) fn too_long(&self, now: Instant) -> Option<Duration> {
        Some(self.silence(now)).filter(|silence| *silence > self.limit.max(POLL_EVERY * 3))
    }
}

/// How often the log is read even when nobody called: what bounds the wait for a notification that was lost, and what
/// notices a database that has gone.
pub(super) const POLL_EVERY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_made_once_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data/store");
        let made = identity(&path).unwrap();
        assert_eq!(identity(&path).unwrap(), made);
        fs::write(folder.path().join("data/store.server"), "half").unwrap();
        assert!(identity(&path).unwrap_err().to_string().contains("store.server"));
    }

    #[test]
    fn silence_is_too_long_after_the_limit() {
        let start = Instant::now();
        let heard = Heard::new(start, Duration::from_secs(60));
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(heard.too_long(at(60)), None);
        assert_eq!(heard.too_long(at(61)), Some(Duration::from_secs(61)));
        heard.note(at(50));
        assert_eq!((heard.silence(at(61)), heard.too_long(at(110))), (Duration::from_secs(11), None));
        heard.lost(Some("why".into()));
        assert_eq!(heard.why_lost().as_deref(), Some("why"));
        heard.note(at(62));
        assert_eq!(heard.why_lost(), None);
    }

    #[test]
    fn the_secret_is_not_shown() {
        let secret = ConnectionSecret::Text("host=db password=secret".into());
        assert!(!format!("{secret:?}").contains("secret"));
    }
}
