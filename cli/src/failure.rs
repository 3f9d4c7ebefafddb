//! What can go wrong in a command, in words for the person who typed it, each with the next thing to try.

use std::path::{Path, PathBuf};

use tonic::{Code, Status};

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// Nothing answers on the socket.
    #[error("cannot reach the {who} at {}: {reason}", .path.display())]
    Unreachable {
        /// "server" or "agent".
        who: &'static str,
        /// The socket that was tried.
        path: PathBuf,
        /// What the operating system said.
        reason: String,
    },
    /// The call was answered with an error.
    #[error("{what}: {} ({:?})", .status.message(), .status.code())]
    Refused {
        /// What was asked for.
        what: String,
        /// The answer.
        status: Box<Status>,
    },
    /// Some items of a batch were refused; the others were carried out.
    #[error("{failed} of {total} {what} failed")]
    Partly {
        /// The kind of item.
        what: &'static str,
        /// How many were refused.
        failed: usize,
        /// How many there were.
        total: usize,
    },
    /// A value on the command line or in an input file is no good.
    #[error("{0}")]
    Input(String),
    /// A local file could not be read or written.
    #[error("{}: {error}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        error: std::io::Error,
    },
    /// The answer is not what the standard asks for.
    #[error("the answer is malformed: {0}")]
    Malformed(String),
}

impl Failure {
    /// A refusal of `what`.
    pub(crate) fn refused(what: impl Into<String>) -> impl FnOnce(Status) -> Self {
        let what = what.into();
        move |status| Self::Refused { what, status: Box::new(status) }
    }

    /// A failure at `path`.
    pub(crate) fn file(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |error| Self::File { path, error }
    }

    /// What the person can do about it, where that is known.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::Unreachable { who: "server", path, .. } => Some(format!(
                "is bonafide-server running, and may you open {}? Name another socket with --server-socket or BONAFIDE_SERVER_SOCKET",
                path.display()
            )),
            Self::Unreachable { .. } => Some(
                "is bonafide-agent running? Name its socket with --agent-socket or SPIFFE_ENDPOINT_SOCKET".to_owned(),
            ),
            Self::Refused { status, .. } => match status.code() {
                Code::PermissionDenied if status.message().contains("no identity issued") => Some(
                    "no registration entry fits this process: compare its selectors (`id`, path of the program) with `bonafide entry list`; a new entry takes one sync interval to arrive"
                        .to_owned(),
                ),
                Code::PermissionDenied => Some("this command is for the server's local socket or an admin".to_owned()),
                Code::Unavailable if status.message().contains("initializing") => {
                    Some("the server is still starting: try again in a few seconds".to_owned())
                }
                Code::ResourceExhausted => Some("try again later, or with a smaller request".to_owned()),
                Code::Unimplemented => Some("the other side does not offer this: compare the versions".to_owned()),
                _ => None,
            },
            _ => None,
        }
    }
}
