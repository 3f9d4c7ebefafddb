//! Where calls come in.
//!
//! Two sockets: the public one for workloads ([`workload`]), and the admin one for whoever looks after the agent
//! ([`admin`]) or asks on behalf of other processes ([`delegated_identity`]). They are in different folders, so that handing
//! out the first never hands out the second. Where it is configured, brokers ask for the identities of others on sockets of
//! their own, with certificates ([`broker`]).

pub mod admin;
pub mod broker;
pub mod delegated_identity;
pub mod health;
pub mod limit;
mod reflection;
mod stream;
pub mod unidentified;
pub mod workload;

use std::sync::Arc;

use bonafide_identity::{Entry, SelectorSet};
use bonafide_proto::convert::SignedToken;
use bonafide_runtime::listener::{Peer, PeerCred};
use bonafide_runtime::tasks::chain;
use tokio::task::JoinSet;
use tonic::{Code, Request, Status};

use crate::caller::{CallerError, PinnedCaller};
use crate::svid_cache::tokens::JwtSvids;
use crate::svid_cache::{Availability, SvidCache};
use crate::workload_attestor::WorkloadAttestors;

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

/// A process that somebody named by its number, and what it is.
async fn named_process(
    pid: i32,
    attestors: &WorkloadAttestors,
    cache: &SvidCache,
) -> Result<(PinnedCaller, SelectorSet), NamedProcessError> {
    let process = PinnedCaller::pin_named(pid).map_err(|error| {
        tracing::warn!(pid, error = chain(&error), "a process that was named cannot be pinned");
        match error {
            CallerError::Gone => NamedProcessError::Gone,
            _ => NamedProcessError::NotAttested,
        }
    })?;
    match attestors.attest(&process).await {
        // What is missing may be what would match.
        Ok(found) if !found.complete && cache.matching(&found.selectors).is_empty() => {
            Err(NamedProcessError::NotAttested)
        }
        Ok(found) => Ok((process, found.selectors)),
        Err(_) if !process.is_running() => Err(NamedProcessError::Gone),
        Err(_) => Err(NamedProcessError::NotAttested),
    }
}

/// Why nothing is known about a process that was named.
enum NamedProcessError {
    /// There is no such process, or no longer.
    Gone,
    /// It could not be looked at.
    NotAttested,
}

/// Entries with the SVIDs to send for them.
type Ready<S> = Vec<(Arc<Entry>, Arc<S>)>;

/// The SVIDs that there are; `None` while one is being signed, and when there are entries and the server refuses all.
fn ready_svids<S>(entries: impl Iterator<Item = (Arc<Entry>, Availability<S>)>) -> Option<Ready<S>> {
    let (mut ready, mut refused) = (Vec::new(), false);
    for (entry, availability) in entries {
        match availability {
            Availability::Ready(svid) => ready.push((entry, svid)),
            Availability::Pending => return None,
            Availability::Refused => refused = true,
        }
    }
    if ready.is_empty() && refused { None } else { Some(ready) }
}

/// A token for each entry, in their order. One failure fails all.
async fn sign_all(
    tokens: &Arc<JwtSvids>,
    entries: Vec<Arc<Entry>>,
    audiences: Vec<String>,
) -> Result<Vec<(Arc<Entry>, Arc<SignedToken>)>, Status> {
    let audiences: Arc<[String]> = audiences.into();
    let mut running = JoinSet::new();
    for (position, entry) in entries.into_iter().enumerate() {
        let (tokens, audiences) = (Arc::clone(tokens), Arc::clone(&audiences));
        running.spawn(async move {
            let token = tokens.fetch(&entry, &audiences).await;
            (position, entry, token)
        });
    }
    let mut signed = Vec::with_capacity(running.len());
    while let Some(done) = running.join_next().await {
        let (position, entry, token) = done.map_err(|_| Status::internal("signing stopped"))?;
        let token = token.map_err(|error| {
            let error = chain(&error);
            tracing::warn!(entry = entry.id.as_str(), id = %entry.spiffe_id, error, "could not fetch a JWT-SVID");
            Status::unavailable(format!("could not fetch JWT-SVID: {error}"))
        })?;
        signed.push((position, entry, token));
    }
    signed.sort_unstable_by_key(|(position, ..)| *position);
    Ok(signed.into_iter().map(|(_, entry, token)| (entry, token)).collect())
}

/// The audiences of a request, of which there must be one at least.
fn audiences(requested: Vec<String>) -> Result<Vec<String>, Status> {
    let audiences: Vec<String> = requested.into_iter().filter(|audience| !audience.is_empty()).collect();
    if audiences.is_empty() {
        return Err(Status::invalid_argument("audience must be specified"));
    }
    Ok(audiences)
}

fn no_identity() -> Status {
    Status::permission_denied("no identity issued")
}

fn code<T>(result: &Result<T, Status>) -> Code {
    result.as_ref().map_or_else(Status::code, |_| Code::Ok)
}

/// SPIFFE Workload Endpoint and Broker Endpoint: metadata that proves that the call was not made by a confused deputy such as
/// a browser.
fn require_security_header(request: Request<()>, name: &'static str) -> Result<Request<()>, Status> {
    let mut values = request.metadata().get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) if value == "true" => Ok(request),
        _ => Err(Status::invalid_argument("security header missing from request")),
    }
}
