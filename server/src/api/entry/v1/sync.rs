//! The polling protocol of agents: `SyncAuthorizedEntries`.
//!
//! An agent with few entries gets all of them in one message. With many it first gets their revisions and then asks for those it does
//! not have. The entries are those of the moment at which the stream began: the agent compares revisions with what it
//! asks for, and must not see two states in one pass.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bonafide_identity::Entry;
use bonafide_proto::convert::entry_to_wire;
use bonafide_proto::spire::server::entry::v1::{
    EntryRevision, SyncAuthorizedEntriesRequest, SyncAuthorizedEntriesResponse,
};
use bonafide_proto::spire::types::EntryMask;
use tokio_stream::Stream;
use tonic::{Status, Streaming};

/// Entries, or revisions, in one message; SPIRE's number, by which agents size their requests.
const PAGE: usize = 500;
/// How long an agent may take to say what it wants.
const FIRST_MESSAGE: Duration = Duration::from_secs(30);

/// The response stream.
pub struct Pages {
    requests: Streaming<SyncAuthorizedEntriesRequest>,
    mask: Option<EntryMask>,
    /// Ascending by id.
    entries: Vec<Arc<Entry>>,
    next: Next,
}

/// What is sent next.
enum Next {
    /// All entries in one message, then the end.
    Everything,
    /// Revisions from this position on.
    Revisions(usize),
    /// Nothing before the agent asks.
    Question,
    /// Entries at these positions; an empty list is still answered, by one message.
    Answer(VecDeque<usize>),
    /// Nothing more.
    End,
}

/// Reads the first message: the mask, which holds for the whole stream.
pub(super) async fn first(
    requests: &mut Streaming<SyncAuthorizedEntriesRequest>,
) -> Result<Option<EntryMask>, Status> {
    let first = tokio::time::timeout(FIRST_MESSAGE, requests.message())
        .await
        .map_err(|_| Status::deadline_exceeded("the first message did not come in time"))??;
    let first = first.ok_or_else(|| Status::invalid_argument("the stream ended before its first message"))?;
    if !first.ids.is_empty() {
        return Err(Status::invalid_argument("specifying IDs on initial request is not supported"));
    }
    if first.output_mask.is_some_and(|mask| !mask.revision_number) {
        return Err(Status::invalid_argument("revision number cannot be masked"));
    }
    Ok(first.output_mask)
}

impl Pages {
    /// Answers from `entries`, the snapshot of this stream.
    pub(super) fn new(
        requests: Streaming<SyncAuthorizedEntriesRequest>,
        mask: Option<EntryMask>,
        mut entries: Vec<Arc<Entry>>,
    ) -> Self {
        entries.sort_unstable_by(|a, b| a.id.cmp(&b.id));
        let next = if entries.len() <= PAGE { Next::Everything } else { Next::Revisions(0) };
        Self { requests, mask, entries, next }
    }

    fn full<'a>(
        &self,
        entries: impl Iterator<Item = &'a Arc<Entry>>,
        more: bool,
    ) -> SyncAuthorizedEntriesResponse {
        let entries = entries.map(|entry| entry_to_wire(entry, self.mask.as_ref())).collect();
        SyncAuthorizedEntriesResponse { entries, more, ..Default::default() }
    }

    fn revisions(&self, from: usize) -> (SyncAuthorizedEntriesResponse, usize) {
        let to = self.entries.len().min(from + PAGE);
        let revision = |entry: &Arc<Entry>| EntryRevision {
            id: entry.id.as_str().to_owned(),
            revision_number: entry.revision,
            created_at: entry.created_at.unix_seconds(),
        };
        let entry_revisions = self.entries[from..to].iter().map(revision).collect();
        let more = to < self.entries.len();
        (SyncAuthorizedEntriesResponse { entry_revisions, more, ..Default::default() }, to)
    }

    /// Positions of the entries an agent asks for, ascending; what it may not have is left out.
    fn positions(&self, ids: &[String]) -> VecDeque<usize> {
        let position = |id: &String| self.entries.binary_search_by(|entry| entry.id.as_str().cmp(id)).ok();
        let mut positions: Vec<usize> = ids.iter().filter_map(position).collect();
        positions.sort_unstable();
        positions.dedup();
        positions.into()
    }
}

impl Stream for Pages {
    type Item = Result<SyncAuthorizedEntriesResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            match std::mem::replace(&mut self.next, Next::End) {
                Next::Everything => return Poll::Ready(Some(Ok(self.full(self.entries.iter(), false)))),
                Next::Revisions(from) => {
                    let (response, to) = self.revisions(from);
                    self.next = if response.more { Next::Revisions(to) } else { Next::Question };
                    return Poll::Ready(Some(Ok(response)));
                }
                Next::Question => match Pin::new(&mut self.requests).poll_next(context) {
                    Poll::Pending => {
                        self.next = Next::Question;
                        return Poll::Pending;
                    }
                    Poll::Ready(Some(Ok(request))) => {
                        self.next = Next::Answer(self.positions(&request.ids));
                    }
                    // The agent has what it wanted, and says so by closing or by cancelling.
                    Poll::Ready(None) => {}
                    Poll::Ready(Some(Err(status))) if status.code() == tonic::Code::Cancelled => {}
                    Poll::Ready(Some(Err(status))) => return Poll::Ready(Some(Err(status))),
                },
                Next::Answer(mut positions) => {
                    let rest = positions.split_off(positions.len().min(PAGE));
                    let more = !rest.is_empty();
                    let page = positions.iter().map(|position| &self.entries[*position]);
                    let response = self.full(page, more);
                    self.next = if more { Next::Answer(rest) } else { Next::Question };
                    return Poll::Ready(Some(Ok(response)));
                }
                Next::End => return Poll::Ready(None),
            }
        }
    }
}
