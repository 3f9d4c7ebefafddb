//! Outcomes: of one item in a batch, and of a call that was denied for a reason the caller should act on.

use prost::{Message, Name};
use prost_types::Any;
use tonic::{Code, Status};

use crate::rpc;
use crate::spire::types::{self, PermissionDeniedDetails, permission_denied_details::Reason};

/// The status of an item that succeeded. It must be sent: Go clients read it without looking whether it is there.
#[must_use]
pub fn status_ok() -> types::Status {
    status(Code::Ok, "OK")
}

/// The status of an item.
#[must_use]
pub fn status(code: Code, message: impl Into<String>) -> types::Status {
    types::Status { code: code as i32, message: message.into() }
}

/// The status of an item that failed as a call would have.
#[must_use]
pub fn status_from_error(error: &Status) -> types::Status {
    status(error.code(), error.message())
}

/// Reads the status of an item; a server that leaves it out has broken the protocol, and its item counts as failed.
///
/// # Errors
/// The failure as if the item had been a call of its own.
pub fn result_status(status: Option<&types::Status>) -> Result<(), Status> {
    let status = status.ok_or_else(|| Status::internal("the server sent a result without a status"))?;
    match Code::from_i32(status.code) {
        Code::Ok => Ok(()),
        code => Err(Status::new(code, status.message.clone())),
    }
}

/// `PermissionDenied` with the reason in the details of the status, where an agent looks for it: without it an
/// evicted agent keeps asking instead of attesting again.
#[must_use]
pub fn permission_denied_with_reason(message: impl Into<String>, reason: Reason) -> Status {
    let message = message.into();
    let reason = PermissionDeniedDetails { reason: reason as i32 };
    let details = rpc::Status {
        code: Code::PermissionDenied as i32,
        message: message.clone(),
        details: vec![Any { type_url: PermissionDeniedDetails::type_url(), value: reason.encode_to_vec() }],
    };
    Status::with_details(Code::PermissionDenied, message, details.encode_to_vec().into())
}

/// An error with a `google.rpc.ErrorInfo` in its details: `reason` is what programs tell causes apart by, `domain` says who
/// defines it.
#[must_use]
pub fn status_with_error_info(code: Code, message: impl Into<String>, reason: &str, domain: &str) -> Status {
    let message = message.into();
    let info = rpc::ErrorInfo { reason: reason.to_owned(), domain: domain.to_owned(), ..Default::default() };
    let details = rpc::Status {
        code: code as i32,
        message: message.clone(),
        details: vec![Any { type_url: rpc::ErrorInfo::type_url(), value: info.encode_to_vec() }],
    };
    Status::with_details(code, message, details.encode_to_vec().into())
}

/// The reason and the domain of an error that carries a `google.rpc.ErrorInfo`.
#[must_use]
pub fn error_info(status: &Status) -> Option<(String, String)> {
    let details = rpc::Status::decode(status.details()).ok()?.details;
    let wanted = rpc::ErrorInfo::full_name();
    let packed = details.iter().find(|detail| detail.type_url.rsplit('/').next() == Some(&*wanted))?;
    let info = rpc::ErrorInfo::decode(packed.value.as_slice()).ok()?;
    Some((info.reason, info.domain))
}

/// The reason for which a server denied a call; `None` for other errors, without details, or when this version
/// does not know the reason.
#[must_use]
pub fn denial_reason(status: &Status) -> Option<Reason> {
    if status.code() != Code::PermissionDenied {
        return None;
    }
    let details = rpc::Status::decode(status.details()).ok()?.details;
    let wanted = PermissionDeniedDetails::full_name();
    // The part before the last slash is a host that nobody asks.
    let packed = details.iter().find(|detail| detail.type_url.rsplit('/').next() == Some(&*wanted))?;
    let reason = PermissionDeniedDetails::decode(packed.value.as_slice()).ok()?.reason;
    Reason::try_from(reason).ok()
}
