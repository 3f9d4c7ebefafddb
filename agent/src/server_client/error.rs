//! What can go wrong between agent and server, and what it means.

use std::error::Error;
use std::time::Duration;

use bonafide_identity::Timestamp;
use bonafide_pki::{VerifyError, tls};
use bonafide_proto::convert::{ConvertError, denial_reason};
use bonafide_proto::spire::types::permission_denied_details::Reason;
use bonafide_runtime::BoxError;
use tokio_rustls::rustls;
use tonic::Code;

use super::ServerAddress;
use crate::node_attestor::NodeAttestError;

/// Why an operation at the server failed.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// No connection.
    #[error("cannot reach the server at {address}")]
    Unreachable {
        /// Where the server should be.
        address: ServerAddress,
        /// What happened.
        #[source]
        source: BoxError,
    },
    /// The server's certificate is not one of the trust domain's server.
    #[error(
        "the server at {address} does not prove to be the server of the trust domain: either it is another one, \
         or the bundle that this agent holds is out of date"
    )]
    Untrusted {
        /// Where it is.
        address: ServerAddress,
        /// What is wrong with it.
        #[source]
        source: BoxError,
    },
    /// The server closed a fresh connection on which the agent had shown its certificate. With TLS 1.3 a client whose
    /// certificate is refused has finished its handshake by then, so this is all it sees.
    #[error(
        "the server closed the connection before it answered {rpc}, most likely because it refused the agent's \
         certificate: look into the server's log{}",
        cause(status)
    )]
    CertificateRefused {
        /// The first call on the connection.
        rpc: &'static str,
        /// What the transport said.
        status: Box<tonic::Status>,
    },
    /// The server answered with an error, or the connection broke.
    #[error("{rpc} failed: {} ({:?}){}", status.message(), status.code(), cause(status))]
    Status {
        /// The call.
        rpc: &'static str,
        /// The answer. Not a source: its text would only be said twice.
        status: Box<tonic::Status>,
    },
    /// No answer in time.
    #[error("{rpc} was not answered within {after:?}")]
    Timeout {
        /// The call.
        rpc: &'static str,
        /// How long it had.
        after: Duration,
    },
    /// The server answered with something that makes no sense.
    #[error("the answer to {rpc} is malformed: {what}")]
    Malformed {
        /// The call.
        rpc: &'static str,
        /// What is wrong.
        what: String,
    },
    /// The agent has nothing to attest itself with.
    #[error(transparent)]
    Attestor(#[from] NodeAttestError),
}

impl ServerError {
    pub(super) fn malformed(rpc: &'static str, what: impl Into<String>) -> Self {
        Self::Malformed { rpc, what: what.into() }
    }

    pub(super) fn unreadable(rpc: &'static str) -> impl Fn(ConvertError) -> Self {
        move |error| Self::malformed(rpc, error.to_string())
    }

    /// Sorts out what a failed connection attempt was.
    pub(super) fn connecting(address: &ServerAddress, source: BoxError) -> Self {
        let address = address.clone();
        match find::<rustls::Error>(source.as_ref()) {
            Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented) => {
                Self::Untrusted { address, source }
            }
            _ => Self::Unreachable { address, source },
        }
    }

    /// Sorts out what a failed call was. `proven` says whether this connection ever brought an answer.
    pub(super) fn calling(rpc: &'static str, status: tonic::Status, proven: bool, certified: bool) -> Self {
        let alert = status.source().and_then(find::<rustls::Error>);
        let refused = matches!(alert, Some(rustls::Error::AlertReceived(_)))
            || (!proven
                && status.source().is_some()
                && matches!(status.code(), Code::Unknown | Code::Unavailable));
        if certified && refused {
            Self::CertificateRefused { rpc, status: Box::new(status) }
        } else {
            Self::Status { rpc, status: Box::new(status) }
        }
    }

    /// The code that the server answered with, if it answered.
    #[must_use]
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Status { status, .. } => Some(status.code()),
            _ => None,
        }
    }

    /// Why the server denies this agent, when it says so in a way to act upon.
    #[must_use]
    pub fn denial(&self) -> Option<Reason> {
        match self {
            Self::Status { status, .. } => denial_reason(status),
            _ => None,
        }
    }

    /// The server's certificate is signed by nobody whom the agent knows. Other faults of a certificate pass, or show that the
    /// server is another one.
    #[must_use]
    pub fn is_unknown_authority(&self) -> bool {
        let Self::Untrusted { source, .. } = self else { return false };
        matches!(
            find::<rustls::Error>(source.as_ref()).and_then(|error| tls::refusal(error)),
            Some(tls::PeerError::Certificate(VerifyError::UnknownAuthority | VerifyError::Signature))
        )
    }

    /// Whether the server is known by the agent's bundle, as far as this error shows it: it came after the check of the server's
    /// certificate, or was that the authority is unknown. Being away says nothing, nor do other faults of a certificate.
    #[must_use]
    pub fn shows_known(&self) -> Option<bool> {
        match self {
            Self::Unreachable { .. } | Self::Timeout { .. } => None,
            Self::Untrusted { .. } => self.is_unknown_authority().then_some(false),
            Self::CertificateRefused { .. }
            | Self::Status { .. }
            | Self::Malformed { .. }
            | Self::Attestor(_) => Some(true),
        }
    }

    /// The server does not know the call.
    #[must_use]
    pub fn is_unimplemented(&self) -> bool {
        self.code() == Some(Code::Unimplemented)
    }

    /// Answers that say nothing against the connection: it is kept.
    pub(super) fn shows_a_working_connection(&self) -> bool {
        matches!(self.code(), Some(Code::NotFound | Code::Unimplemented | Code::InvalidArgument))
    }

    /// One word for metrics.
    #[must_use]
    pub fn outcome(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } => "unreachable",
            Self::Untrusted { .. } => "untrusted",
            Self::CertificateRefused { .. } => "certificate_refused",
            Self::Status { .. } => "error",
            Self::Timeout { .. } => "timeout",
            Self::Malformed { .. } => "malformed",
            Self::Attestor(_) => "attestor",
        }
    }
}

/// Since when the server is unknown by the agent's bundle, after one more operation: from the first unknown authority on, until
/// anything shows that the server is known.
#[must_use]
pub fn unknown_since(
    before: Option<Timestamp>,
    result: Result<(), &ServerError>,
    now: Timestamp,
) -> Option<Timestamp> {
    match result.map_or_else(ServerError::shows_known, |()| Some(true)) {
        Some(true) => None,
        Some(false) => before.or(Some(now)),
        None => before,
    }
}

/// What is behind a status that the transport made.
fn cause(status: &tonic::Status) -> String {
    status.source().map(|source| format!(": {}", bonafide_runtime::tasks::chain(source))).unwrap_or_default()
}

/// The first error of this type in a chain of sources. An `io::Error` hides what it wraps from `source`.
fn find<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found);
        }
        if let Some(inner) = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref)
            && let Some(found) = find(inner as &(dyn Error + 'static))
        {
            return Some(found);
        }
        next = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address() -> ServerAddress {
        "localhost:8081".parse().unwrap()
    }

    #[test]
    fn a_certificate_that_is_not_trusted_is_told_from_no_connection() {
        let tls = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let wrapped = std::io::Error::new(std::io::ErrorKind::InvalidData, tls);
        assert!(matches!(ServerError::connecting(&address(), wrapped.into()), ServerError::Untrusted { .. }));
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        assert!(matches!(
            ServerError::connecting(&address(), refused.into()),
            ServerError::Unreachable { .. }
        ));
    }

    #[test]
    fn an_outage_neither_begins_nor_ends_the_time_in_which_a_server_is_unknown() {
        let at = Timestamp::from_unix_seconds;
        let tls: rustls::Error = tls::PeerError::Certificate(VerifyError::UnknownAuthority).into();
        let unknown = ServerError::connecting(&address(), std::io::Error::other(tls).into());
        assert!(unknown.is_unknown_authority());
        let away = ServerError::connecting(&address(), "away".into());
        let slow = ServerError::Timeout { rpc: "x", after: Duration::ZERO };
        let expired = rustls::Error::InvalidCertificate(rustls::CertificateError::Expired);
        let expired = ServerError::connecting(&address(), std::io::Error::other(expired).into());
        let status = |status| ServerError::calling("x", status, true, true);
        let denied = status(tonic::Status::permission_denied("no"));
        for other in [&away, &slow, &expired] {
            assert_eq!(unknown_since(None, Err(other), at(1)), None, "{other}");
            assert_eq!(unknown_since(Some(at(1)), Err(other), at(2)), Some(at(1)), "{other}");
        }
        assert_eq!(unknown_since(None, Err(&unknown), at(3)), Some(at(3)));
        assert_eq!(unknown_since(Some(at(3)), Err(&unknown), at(4)), Some(at(3)));
        assert_eq!(unknown_since(Some(at(3)), Err(&denied), at(4)), None);
        assert_eq!(unknown_since(Some(at(3)), Ok(()), at(4)), None);
    }

    #[test]
    fn only_an_unproven_connection_suggests_a_refused_certificate() {
        let broken =
            || tonic::Status::from_error(Box::new(std::io::Error::from(std::io::ErrorKind::BrokenPipe)));
        let call = |status, proven, certified| ServerError::calling("x", status, proven, certified);
        assert!(matches!(call(broken(), false, true), ServerError::CertificateRefused { .. }));
        assert!(matches!(call(broken(), true, true), ServerError::Status { .. }));
        assert!(matches!(call(broken(), false, false), ServerError::Status { .. }));
        assert!(matches!(
            call(tonic::Status::unknown("said the server"), false, true),
            ServerError::Status { .. }
        ));
    }
}
