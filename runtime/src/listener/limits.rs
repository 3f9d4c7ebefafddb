//! Limits of the process: file descriptors, and core dumps.

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

/// Forbids core dumps for good: the image of a process that holds signing keys must not end up in a file. Wiping keys when
/// they are dropped does not help there.
///
/// # Errors
/// When the kernel refuses.
pub fn forbid_core_dumps() -> Result<(), ListenerError> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(|error| ListenerError::CoreLimit(io::Error::from(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_core_is_dumped_any_more() {
        forbid_core_dumps().unwrap();
        assert_eq!(getrlimit(Resource::RLIMIT_CORE).unwrap(), (0, 0));
    }
}
