//! Binding Unix sockets.
//!
//! The socket is bound under a temporary name in the same folder, given its mode, and renamed: nobody can
//! connect before the mode is right, and clients of a server that is replaced see the old socket or the new one, never
//! none. A socket that a crash left behind is replaced; one on which a live process answers is not.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use super::ListenerError;

/// The longest path of a Unix socket: the kernel's field has 108 bytes, the last for the end.
const MAX_PATH: usize = 107;
/// The length of the temporary names: a dot and five characters.
const TEMPORARY_NAME: usize = 6;
/// How many temporary names are tried.
const ATTEMPTS: u32 = 16;

/// A bound Unix socket. Dropping it removes the socket file, provided that it is still this one.
#[derive(Debug)]
pub struct UnixListenerBound {
    listener: UnixListener,
    path: PathBuf,
    identity: (u64, u64),
}

impl UnixListenerBound {
    /// The path on which clients find it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A second handle on the same socket for the accept loop.
    pub(super) fn listener(&self) -> io::Result<tokio::net::UnixListener> {
        tokio::net::UnixListener::from_std(self.listener.try_clone()?)
    }
}

impl Drop for UnixListenerBound {
    fn drop(&mut self) {
        // Another process may have taken the path over meanwhile; its socket must stay.
        if identity(&self.path).is_ok_and(|identity| identity == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Binds a Unix socket at `path` with the permission bits `mode`. A missing parent folder is created with `dir_mode`
/// (and what is missing above it with 0755); an existing one is left as it is.
///
/// # Errors
/// [`ListenerError::PathTooLong`], [`ListenerError::ForeignFolder`], [`ListenerError::NotASocket`],
/// [`ListenerError::AlreadyServed`], or [`ListenerError::Socket`] with the step that failed.
pub fn bind_unix(
    path: impl AsRef<Path>,
    mode: u32,
    dir_mode: u32,
) -> Result<UnixListenerBound, ListenerError> {
    let path = path.as_ref();
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    check_length(path)?;
    check_owners(folder)?;
    create_folder(folder, dir_mode)?;
    check_owners(folder)?;
    check_free(path)?;
    let (listener, temporary) = bind_temporary(folder)?;
    let finish = || {
        fs::set_permissions(&temporary, Permissions::from_mode(mode))
            .map_err(failed("set the mode of", &temporary))?;
        let identity = identity(&temporary).map_err(failed("inspect", &temporary))?;
        fs::rename(&temporary, path).map_err(failed("put the socket at", path))?;
        Ok(identity)
    };
    let identity = finish().inspect_err(|_| {
        let _ = fs::remove_file(&temporary);
    })?;
    Ok(UnixListenerBound { listener, path: path.to_owned(), identity })
}

fn check_length(path: &Path) -> Result<(), ListenerError> {
    let length = path.as_os_str().as_bytes().len();
    let name = path.file_name().map_or(0, |name| name.as_bytes().len());
    let limit = MAX_PATH - TEMPORARY_NAME.saturating_sub(name);
    if length > limit {
        return Err(ListenerError::PathTooLong { path: path.to_owned(), length, limit });
    }
    Ok(())
}

/// Where anybody may make files, such as in `/tmp`, the folders below must be ours or root's: somebody else could have made
/// them first, and could put another socket in the place of ours, on which clients would believe to find us.
fn check_owners(folder: &Path) -> Result<(), ListenerError> {
    const ANYBODY_WRITES: u32 = 0o002;
    let ours = rustix::process::geteuid().as_raw();
    let mut above_is_open = false;
    for path in folder.ancestors().collect::<Vec<_>>().into_iter().rev() {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let metadata = match fs::symlink_metadata(path) {
            Ok(metadata) => metadata,
            // What is missing will be made by us; if that cannot be, that will be said then.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(());
            }
            Err(error) => return Err(failed("inspect", path)(error)),
        };
        let owner = metadata.uid();
        if above_is_open && owner != 0 && owner != ours {
            return Err(ListenerError::ForeignFolder { path: path.to_owned(), owner });
        }
        above_is_open = metadata.is_dir() && metadata.mode() & ANYBODY_WRITES != 0;
    }
    Ok(())
}

fn create_folder(folder: &Path, mode: u32) -> Result<(), ListenerError> {
    if folder.is_dir() {
        return Ok(());
    }
    if let Some(above) = folder.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(above)
            .map_err(failed("create the folder", above))?;
    }
    match DirBuilder::new().mode(mode).create(folder) {
        // The process's umask has taken bits away.
        Ok(()) => fs::set_permissions(folder, Permissions::from_mode(mode))
            .map_err(failed("set the mode of the folder", folder)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => Ok(()),
        Err(error) => Err(failed("create the folder", folder)(error)),
    }
}

/// Nothing, or a socket on which nobody answers, may stand at the path.
fn check_free(path: &Path) -> Result<(), ListenerError> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("inspect", path)(error)),
    };
    if !metadata.file_type().is_socket() {
        return Err(ListenerError::NotASocket { path: path.to_owned() });
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(ListenerError::AlreadyServed { path: path.to_owned() }),
        Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) => {
            Ok(())
        }
        Err(error) => Err(failed("find out whether someone serves on", path)(error)),
    }
}

fn bind_temporary(folder: &Path) -> Result<(UnixListener, PathBuf), ListenerError> {
    let process = std::process::id();
    let mut attempt = 0;
    loop {
        // The name needs to be unused, not unpredictable: whoever may create files here could also replace the socket.
        let name = format!(".{:05x}", process.wrapping_mul(ATTEMPTS).wrapping_add(attempt) & 0xf_ffff);
        let temporary = folder.join(name);
        match UnixListener::bind(&temporary) {
            Ok(listener) => {
                listener.set_nonblocking(true).map_err(failed("set up", &temporary))?;
                return Ok((listener, temporary));
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && attempt + 1 < ATTEMPTS => attempt += 1,
            Err(error) => return Err(failed("bind a socket at", &temporary)(error)),
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

fn failed(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ListenerError {
    let path = path.to_owned();
    move |source| ListenerError::Socket { step, path, source }
}
