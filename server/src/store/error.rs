//! Why the store refuses.

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::kv::KvError;

/// Why a write, an opening, a backup or a restore was refused.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The named thing is not in the store.
    #[error("{0} not found")]
    NotFound(&'static str),
    /// The named thing is in the store already.
    #[error("{what} already exists")]
    AlreadyExists {
        /// What it is: `entry`, `join token`, …
        what: &'static str,
    },
    /// The file system is full. Reads go on, and so do writes as soon as there is room.
    #[error("no space left for the store {}: free some space, writes resume by themselves{}", path.display(),
            if *confirmed { "" } else { " (whether this write will be kept is decided then)" })]
    Full {
        /// The store.
        path: PathBuf,
        /// True when the write is certainly not in the store.
        confirmed: bool,
    },
    /// What is on the disk is not what was written there. Nothing of it is served.
    #[error("store file {} is damaged: {what}; {way_back}", file.display())]
    Corrupt {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        what: String,
        /// What to do.
        way_back: String,
    },
    /// Another process has the store open.
    #[error("store {} is in use by another process", path.display())]
    Busy {
        /// The store.
        path: PathBuf,
    },
    /// The store belongs to something else, or was written by a newer version.
    #[error("store {}: {what}", path.display())]
    Mismatch {
        /// The store, or the backup.
        path: PathBuf,
        /// What does not fit.
        what: String,
    },
    /// The closure refused for a reason of its own; nothing was written.
    #[error("{0}")]
    Refused(Box<dyn Error + Send + Sync>),
    /// The file system failed.
    #[error("store file {}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The database of the group cannot be reached. Reads and signing go on for a while, writes as soon as it is back.
    #[error("the store's database {database} cannot be reached: {what}; writes resume by themselves{}",
            if *confirmed { "" } else { " (whether this write will be kept is decided then)" })]
    Unreachable {
        /// The database, without secrets.
        database: String,
        /// What is known of the reason.
        what: String,
        /// True when the write is certainly not in the store.
        confirmed: bool,
    },
    /// The database of the group has not been heard of for so long that what is in memory is no basis to sign on.
    #[error("this server has not heard of the store's database for {}s, and signs nothing until it does", silence.as_secs())]
    CutOff {
        /// For how long.
        silence: Duration,
    },
    /// The writer is gone: the server is shutting down, or the writer failed before and said why in the log.
    #[error("the store is closed")]
    Closed,
    /// The closure panicked; nothing was written.
    #[error("a write panicked: {0}")]
    Panicked(String),
}

impl StoreError {
    /// A refusal of the caller's own, to be found again with [`StoreError::refusal`].
    pub fn refused(reason: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Refused(reason.into())
    }

    /// The caller's own reason, when this is one and of type `E`; the error itself otherwise.
    pub fn refusal<E: Error + 'static>(self) -> Result<E, Self> {
        match self {
            Self::Refused(reason) => reason.downcast::<E>().map(|reason| *reason).map_err(Self::Refused),
            other => Err(other),
        }
    }

    pub(super) fn corrupt(file: impl Into<PathBuf>, what: impl Into<String>) -> Self {
        Self::Corrupt { file: file.into(), what: what.into(), way_back: WAY_BACK.into() }
    }

    pub(super) fn io(path: impl Into<PathBuf>, source: io::Error) -> Self {
        let path = path.into();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { path, confirmed: true },
            _ => Self::Io { path, source },
        }
    }

    pub(super) fn from_kv(error: KvError, file: impl Into<PathBuf>) -> Self {
        let file = file.into();
        match error {
            KvError::Full => Self::Full { path: file, confirmed: true },
            KvError::Busy => Self::Busy { path: file },
            KvError::Damaged(what) => Self::corrupt(file, what),
            KvError::Unreachable(what) => {
                Self::Unreachable { database: file.display().to_string(), what, confirmed: true }
            }
            KvError::Io(source) => Self::Io { path: file, source },
        }
    }
}

/// The advice that goes with every damaged file.
const WAY_BACK: &str = "nothing of it was used; restore the latest backup with `bonafide-server restore`, \
                        which keeps this file beside the new one";
