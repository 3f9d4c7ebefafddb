//! The limit on file descriptors.

use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::ListenerError;

/// What the limit was and is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DescriptorLimit {
    /// Before.
    pub before: u64,
    /// Now.
    pub now: u64,
}

/// Raises the soft limit on file descriptors to the hard one. Each connection costs one descriptor, one on a Unix socket
/// with a pinned peer costs two.
///
/// # Errors
/// When the kernel refuses.
pub fn raise_descriptor_limit() -> Result<DescriptorLimit, ListenerError> {
    let failed = |error| ListenerError::DescriptorLimit(io::Error::from(error));
    let (before, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(failed)?;
    if before < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map_err(failed)?;
    }
    Ok(DescriptorLimit { before, now: hard.max(before) })
}
