//! The polling protocol of agents: `SyncAuthorizedEntries`.
//!
//! An agent with few entries gets all of them in one message. With many it first gets their revisions and then asks for those it does
//! not have. The entries are those of the moment at which the stream began: the agent compares revisions with what it
//! asks for, and must not see two states in one pass.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bonafide_identity::Entry;
use bonafide_proto::convert::{SyncForm, SyncPage};
use bonafide_proto::spire::server::entry::v1::entry_server::EntryServer;
use bonafide_proto::spire::server::entry::v1::{SyncAuthorizedEntriesRequest, SyncAuthorizedEntriesResponse};
use bonafide_proto::spire::types::EntryMask;
use prost::Message as _;
use tokio_stream::Stream;
use tonic::body::Body;
use tonic::codec::{Codec, EncodeBuf, Encoder};
use tonic::server::{Grpc, NamedService, StreamingService};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstDecoder;

use super::Service;
use crate::api::Call;

/// Entries, or revisions, in one message; SPIRE's number, by which agents size their requests.
const PAGE: usize = 500;
/// How long an agent may take to say what it wants.
const FIRST_MESSAGE: Duration = Duration::from_secs(30);

/// The response stream.
pub(super) struct Pages {
    requests: Streaming<SyncAuthorizedEntriesRequest>,
    mask: Option<EntryMask>,
    /// Ascending by id.
    entries: Vec<Arc<Entry>>,
    next: Next,
    call: Arc<Call>,
}

/// What is sent next.
enum Next {
    /// All entries in one message, then the end.
    Everything,
    /// Revisions from this position on.
    Revisions(usize),
    /// Nothing before the agent asks.
    Question,
    /// Entries at these positions, when the agent has a token for them: to ask again costs as much as to poll anew.
    Charge(Pin<Box<dyn Future<Output = Result<(), Status>> + Send>>, VecDeque<usize>),
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
        call: Arc<Call>,
    ) -> Self {
        entries.sort_unstable_by(|a, b| a.id.cmp(&b.id));
        let next = if entries.len() <= PAGE { Next::Everything } else { Next::Revisions(0) };
        Self { requests, mask, entries, next, call }
    }

    fn revisions(&self, from: usize) -> (Page, usize) {
        let to = self.entries.len().min(from + PAGE);
        let more = to < self.entries.len();
        (Page { entries: self.entries[from..to].to_vec(), form: Form::Revisions, more }, to)
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
    type Item = Result<Page, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            match std::mem::replace(&mut self.next, Next::End) {
                Next::Everything => {
                    let entries = std::mem::take(&mut self.entries);
                    return Poll::Ready(Some(Ok(Page { entries, form: Form::Full(self.mask), more: false })));
                }
                Next::Revisions(from) => {
                    let (page, to) = self.revisions(from);
                    self.next = if page.more { Next::Revisions(to) } else { Next::Question };
                    return Poll::Ready(Some(Ok(page)));
                }
                Next::Question => match Pin::new(&mut self.requests).poll_next(context) {
                    Poll::Pending => {
                        self.next = Next::Question;
                        return Poll::Pending;
                    }
                    Poll::Ready(Some(Ok(request))) => {
                        let call = self.call.clone();
                        let token = Box::pin(async move { call.charge(1).await });
                        self.next = Next::Charge(token, self.positions(&request.ids));
                    }
                    // The agent has what it wanted, and says so by closing or by cancelling.
                    Poll::Ready(None) => {}
                    Poll::Ready(Some(Err(status))) if status.code() == tonic::Code::Cancelled => {}
                    Poll::Ready(Some(Err(status))) => return Poll::Ready(Some(Err(status))),
                },
                Next::Charge(mut token, positions) => match token.as_mut().poll(context) {
                    Poll::Pending => {
                        self.next = Next::Charge(token, positions);
                        return Poll::Pending;
                    }
                    Poll::Ready(Ok(())) => self.next = Next::Answer(positions),
                    Poll::Ready(Err(status)) => return Poll::Ready(Some(Err(status))),
                },
                Next::Answer(mut positions) => {
                    let rest = positions.split_off(positions.len().min(PAGE));
                    let more = !rest.is_empty();
                    let entries = positions.iter().map(|position| self.entries[*position].clone()).collect();
                    self.next = if more { Next::Answer(rest) } else { Next::Question };
                    return Poll::Ready(Some(Ok(Page { entries, form: Form::Full(self.mask), more })));
                }
                Next::End => return Poll::Ready(None),
            }
        }
    }
}

/// The answer as messages of the generated type, for whoever calls the service by its trait.
pub struct Messages(pub(super) Pages);

impl Stream for Messages {
    type Item = Result<SyncAuthorizedEntriesResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let page = Pin::new(&mut self.0).poll_next(context);
        page.map(|page| page.map(|page| page.and_then(Page::into_message)))
    }
}

/// One message of the answer.
pub(super) struct Page {
    entries: Vec<Arc<Entry>>,
    form: Form,
    more: bool,
}

enum Form {
    Full(Option<EntryMask>),
    Revisions,
}

impl Page {
    fn on_the_wire(&self) -> SyncPage<'_, impl Iterator<Item = &Entry> + Clone> {
        let form = match &self.form {
            Form::Full(mask) => SyncForm::Full(mask.as_ref()),
            Form::Revisions => SyncForm::Revisions,
        };
        SyncPage { entries: self.entries.iter().map(|entry| &**entry), form, more: self.more }
    }

    /// The same as a message of the generated type.
    fn into_message(self) -> Result<SyncAuthorizedEntriesResponse, Status> {
        let mut bytes = Vec::new();
        self.on_the_wire().encode(&mut bytes);
        let message = SyncAuthorizedEntriesResponse::decode(bytes.as_slice());
        message.map_err(|error| Status::internal(error.to_string()))
    }
}

/// The service, with the answers to polls written as bytes without messages of generated types in between.
#[derive(Clone)]
pub struct Server {
    service: Arc<Service>,
    others: EntryServer<Service>,
}

impl Server {
    /// Serves all methods of `service`.
    pub fn new(service: Service) -> Self {
        let service = Arc::new(service);
        Self { others: EntryServer::from_arc(service.clone()), service }
    }
}

const PATH: &str = "/spire.api.server.entry.v1.Entry/SyncAuthorizedEntries";

impl NamedService for Server {
    const NAME: &'static str = <EntryServer<Service> as NamedService>::NAME;
}

impl tower::Service<http::Request<Body>> for Server {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        if request.uri().path() != PATH {
            return tower::Service::call(&mut self.others, request);
        }
        let polls = Polls(self.service.clone());
        Box::pin(async move { Ok(Grpc::new(PageCodec).streaming(polls, request).await) })
    }
}

struct Polls(Arc<Service>);

impl StreamingService<SyncAuthorizedEntriesRequest> for Polls {
    type Response = Page;
    type ResponseStream = Pages;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Pages>, Status>> + Send>>;

    fn call(&mut self, request: Request<Streaming<SyncAuthorizedEntriesRequest>>) -> Self::Future {
        let service = self.0.clone();
        Box::pin(async move { service.pages(request).await.map(Response::new) })
    }
}

struct PageCodec;

impl Codec for PageCodec {
    type Encode = Page;
    type Decode = SyncAuthorizedEntriesRequest;
    type Encoder = PageEncoder;
    type Decoder = ProstDecoder<SyncAuthorizedEntriesRequest>;

    fn encoder(&mut self) -> PageEncoder {
        PageEncoder
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstDecoder::default()
    }
}

struct PageEncoder;

impl Encoder for PageEncoder {
    type Item = Page;
    type Error = Status;

    fn encode(&mut self, page: Page, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        let page = page.on_the_wire();
        buffer.reserve(page.encoded_len());
        page.encode(buffer);
        Ok(())
    }
}
