//! Files that only root could have written: what an operator's programs leave for the agent, or that the agent runs.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

/// Why a file is not used.
#[derive(Debug, thiserror::Error)]
pub enum OwnedError {
    /// Somebody else than root could have changed it, or something above it.
    #[error("{} is not used: {problem}", path.display())]
    Unsafe {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong.
        problem: &'static str,
    },
    /// It cannot be read.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// The file or folder.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Refuses a path when somebody else than root or `owner` could put something in its place: it and each folder above it belong to one of
/// them and are not writable for others, and none is a link.
///
/// # Errors
/// [`OwnedError`].
pub(crate) fn ensure_owned(path: &Path, owner: u32) -> Result<std::fs::Metadata, OwnedError> {
    let look = |part: &Path| {
        let found = std::fs::symlink_metadata(part);
        found.map_err(|source| OwnedError::Unreadable { path: part.to_owned(), source })
    };
    for part in path.ancestors() {
        check(part, &look(part)?, owner)?;
    }
    look(path)
}

fn check(path: &Path, found: &std::fs::Metadata, owner: u32) -> Result<(), OwnedError> {
    let refused = |problem| Err(OwnedError::Unsafe { path: path.to_owned(), problem });
    if found.is_symlink() {
        return refused("it is a symbolic link: name the file itself");
    }
    if found.uid() != owner && found.uid() != 0 {
        return refused("it belongs to another user than root");
    }
    // In a sticky folder others can change only what is theirs.
    let sticky = found.is_dir() && found.mode() & 0o1000 != 0;
    if found.mode() & 0o022 != 0 && !sticky {
        return refused("others than its owner may write to it");
    }
    Ok(())
}

/// A file that was read, and which one it was.
pub(crate) struct Owned {
    pub(crate) content: Vec<u8>,
    /// Device, inode, and when it was changed: another file, or other content, has another one.
    pub(crate) instance: (u64, u64, i64, i64),
}

/// Reads the file `name` in `folder`, up to `most` bytes; nothing when there is none.
///
/// # Errors
/// [`OwnedError`], also for a file that has another name as well, or is larger.
pub(crate) fn read_owned(
    folder: &Path,
    name: &str,
    owner: u32,
    most: u64,
) -> Result<Option<Owned>, OwnedError> {
    ensure_owned(folder, owner)?;
    let path = folder.join(name);
    let unreadable = |source| OwnedError::Unreadable { path: path.clone(), source };
    // Opening must neither follow a link nor wait for the other end of a pipe.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let file = match rustix::fs::open(&path, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(unreadable(errno.into())),
    };
    let found = file.metadata().map_err(unreadable)?;
    check(&path, &found, owner)?;
    let refused = |problem| Err(OwnedError::Unsafe { path: path.clone(), problem });
    if !found.is_file() || found.nlink() != 1 {
        return refused("it is not a file with one name");
    }
    let mut content = Vec::new();
    file.take(most + 1).read_to_end(&mut content).map_err(unreadable)?;
    if content.len() as u64 > most {
        return refused("it is too large");
    }
    Ok(Some(Owned { content, instance: (found.dev(), found.ino(), found.ctime(), found.ctime_nsec()) }))
}
