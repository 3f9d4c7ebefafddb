//! Where calls come in.
//!
//! Two sockets: the public one for workloads ([`workload`]), and the admin one for whoever looks after the agent
//! ([`admin`]). They are in different folders, so that handing out the first never hands out the second.

pub mod admin;
pub mod health;
mod reflection;
mod stream;
pub mod workload;

use std::sync::Arc;

use bonafide_runtime::listener::{Peer, PeerCred};
use tonic::Status;

use crate::caller::PinnedCaller;

pub use reflection::reflection;

/// The process that called, as the listener vouches for it.
fn peer(extensions: &http::Extensions) -> Result<&PeerCred, Status> {
    match extensions.get::<Arc<Peer>>().map(|peer| &**peer) {
        Some(Peer::Unix(peer)) => Ok(&peer.cred),
        _ => Err(Status::internal("the caller is not a local process")),
    }
}

/// Pins the caller. Why that fails is for the log; the caller learns that it was not attested.
fn pin(extensions: &http::Extensions) -> Result<PinnedCaller, Status> {
    let cred = peer(extensions)?;
    PinnedCaller::pin(cred).map_err(|error| {
        let (pid, uid, error) = (cred.pid, cred.uid, &error as &dyn std::error::Error);
        tracing::warn!(pid, uid, error, "a caller cannot be pinned");
        Status::unavailable(ATTESTATION_FAILED)
    })
}

const ATTESTATION_FAILED: &str = "workload attestation failed";
