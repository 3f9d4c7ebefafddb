//! Where calls come in.
//!
//! Each service is wrapped in a [`Guarded`] before it is registered, and there is no other way to register one. The
//! guard decides by the path alone, before a single byte of the message is decoded: permission ([`table`],
//! [`crate::caller`]), then rate ([`limit`]); afterwards it measures and audits what came out. Handlers never decide
//! who may call them; they find the decision in the request ([`Call`]).
//!
//! A guard around each service, and not one layer around all, because a service then cannot be reached without it,
//! whatever the composition root does.

pub mod agent;
pub mod bundle;
pub mod debug;
pub mod entry;
pub mod gpu_evidence;
pub mod health;
mod lifetimes;
pub mod limit;
pub mod localauthority;
pub mod logger;
pub mod maintenance;
pub mod svid;
pub mod table;
pub mod trustdomain;

mod guard;
mod page;

use std::fmt::Display;
use std::sync::{Arc, Mutex, PoisonError};

use bonafide_identity::{AttestedNode, Entry};
use bonafide_pki::Random;
use bonafide_proto::convert;
use bonafide_proto::spire::types;
use data_encoding::HEXLOWER;
use tokio::time::Instant;
use tonic::Status;

use crate::caller::{Caller, Origin, Right, network};
use crate::store::{Store, StoreError, Unit};
pub(crate) use guard::code_name;
pub use guard::{Gate, Guarded, Services};
use limit::{Limiter, Subject};
pub use table::{Audited, Limit, Rule, Who};

/// One call that was let in. Handlers take it from the request.
#[derive(Debug)]
pub struct Call {
    /// The row of the permission table.
    pub rule: &'static Rule,
    /// Who calls, and by what right.
    pub caller: Caller,
    limiter: Option<Arc<Limiter>>,
    deadline: Option<Instant>,
    notes: Mutex<Notes>,
}

/// What a handler says of a call, for the audit log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notes {
    /// What was acted on: entry ids, SPIFFE IDs, authority ids.
    pub targets: Vec<String>,
    /// What was signed: kind, and serial number or token or key id.
    pub issued: Vec<(&'static str, String)>,
    /// Anything else.
    pub more: Vec<(&'static str, String)>,
    /// Items of a batch that failed: position, code, message.
    pub failed: Vec<(usize, i32, String)>,
    /// How many items were left out of the lists above because there were too many.
    pub left_out: usize,
}

/// A batch may hold thousands of items; a line of the audit log holds so many of each kind.
const MOST_NOTES: usize = 1000;

impl Notes {
    fn push<T>(list: &mut Vec<T>, left_out: &mut usize, item: impl FnOnce() -> T) {
        if list.len() < MOST_NOTES {
            list.push(item());
        } else {
            *left_out += 1;
        }
    }
}

/// A count for the wire.
fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

/// A random UUID (version 4).
fn random_uuid(random: &dyn Random) -> String {
    let mut bytes = [0; 16];
    random.fill(&mut bytes);
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = HEXLOWER.encode(&bytes);
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// What became of one item of a batch.
pub(crate) type Outcome<T> = Result<T, types::Status>;

/// Runs `one` for each item in one write, and gives each its status; a failure of one leaves the others alone,
/// because `one` checks before it changes anything.
pub(crate) async fn batch<I, T, F>(
    store: &Store,
    call: &Call,
    items: Vec<I>,
    failure: &'static str,
    one: F,
) -> Vec<Outcome<T>>
where
    I: Send + 'static,
    T: Send + 'static,
    F: Fn(&mut Unit<'_>, I) -> Result<Outcome<T>, StoreError> + Send + 'static,
{
    let count = items.len();
    let written = store
        .write(move |unit| items.into_iter().map(|item| one(unit, item)).collect::<Result<Vec<_>, _>>())
        .await;
    let outcomes = written.unwrap_or_else(|error| {
        let status = store_failure(failure, &error);
        (0..count).map(|_| Err(convert::status_from_error(&status))).collect()
    });
    for (position, outcome) in outcomes.iter().enumerate() {
        if let Err(status) = outcome {
            call.failed(position, status.code, &status.message);
        }
    }
    outcomes
}

/// What a caller is told when the store did not take a write; `what` begins the text.
pub(crate) fn store_failure(what: &str, error: &StoreError) -> Status {
    let text = format!("{what}: {error}");
    match error {
        StoreError::NotFound(_) => Status::not_found(text),
        StoreError::AlreadyExists { .. } => Status::already_exists(text),
        // Nothing is wrong with the request; it may be repeated.
        StoreError::Full { .. }
        | StoreError::Unreachable { .. }
        | StoreError::CutOff { .. }
        | StoreError::Closed => Status::unavailable(text),
        _ => Status::internal(text),
    }
}

impl Call {
    /// The call that a request belongs to.
    ///
    /// # Errors
    /// Internal, when the request did not come through the guard.
    pub fn of<T>(request: &tonic::Request<T>) -> Result<Arc<Self>, Status> {
        let call = request.extensions().get::<Arc<Self>>();
        call.cloned().ok_or_else(|| Status::internal("the call did not come through the guard"))
    }

    /// The record of the calling agent, as it was when the call was let in.
    ///
    /// # Errors
    /// Internal, when the table does not restrict the rpc to agents.
    pub fn agent(&self) -> Result<&Arc<AttestedNode>, Status> {
        match &self.caller.right {
            Right::Agent(node) => Ok(node),
            _ => Err(Status::internal("the caller is not an agent")),
        }
    }

    /// The entries that make the caller a downstream server.
    pub fn downstream_entries(&self) -> &[Arc<Entry>] {
        match &self.caller.right {
            Right::Downstream(entries) => entries,
            _ => &[],
        }
    }

    /// Takes `cost` tokens for a batch, waiting for them as long as the caller's deadline allows.
    ///
    /// # Errors
    /// ResourceExhausted when they cannot be there in time, or never.
    pub async fn charge(&self, cost: usize) -> Result<(), Status> {
        match &self.limiter {
            Some(limiter) => limiter.take(self.subject(), cost, self.deadline).await,
            None => Ok(()),
        }
    }

    fn subject(&self) -> Subject {
        match (&self.caller.right, &self.caller.origin) {
            (Right::Agent(node), _) => Subject::Agent(node.id.clone()),
            (_, Origin::Remote { address, .. }) => Subject::Address(network(address.ip())),
            // The administration socket is never limited: it has no limiter.
            (_, Origin::Local { .. }) => Subject::Crowd,
        }
    }

    /// Notes for the audit log what was acted on.
    pub fn target(&self, target: impl Display) {
        let notes = &mut *self.lock();
        Notes::push(&mut notes.targets, &mut notes.left_out, || target.to_string());
    }

    /// Notes for the audit log what was signed: `x509`, `jwt`, `wit`, `agent` or `ca`, and the serial number, or the
    /// token's or key's id.
    pub fn issued(&self, kind: &'static str, id: impl Display) {
        let notes = &mut *self.lock();
        Notes::push(&mut notes.issued, &mut notes.left_out, || (kind, id.to_string()));
    }

    /// Notes anything else for the audit log.
    pub fn note(&self, key: &'static str, value: impl Display) {
        let notes = &mut *self.lock();
        Notes::push(&mut notes.more, &mut notes.left_out, || (key, value.to_string()));
    }

    /// Notes that an item of a batch failed.
    pub fn failed(&self, position: usize, code: i32, message: &str) {
        let notes = &mut *self.lock();
        Notes::push(&mut notes.failed, &mut notes.left_out, || (position, code, message.to_owned()));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
