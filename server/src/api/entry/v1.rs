//! `spire.api.server.entry.v1.Entry`

mod sync;

pub use sync::Server;

use std::sync::Arc;

use async_trait::async_trait;
use bonafide_identity::{Entry as DomainEntry, EntryId, EntryIndex, Timestamp, TrustDomain};
use bonafide_proto::convert::{
    ConvertError, EntryFilter, NewEntry, apply_entry_update, entry_filter_from_wire, entry_from_wire,
    entry_to_wire, status, status_ok,
};
use bonafide_proto::spire::server::entry::v1::entry_server::Entry;
use bonafide_proto::spire::server::entry::v1::{
    BatchCreateEntryRequest, BatchCreateEntryResponse, BatchDeleteEntryRequest, BatchDeleteEntryResponse,
    BatchUpdateEntryRequest, BatchUpdateEntryResponse, CountEntriesRequest, CountEntriesResponse,
    GetAuthorizedEntriesRequest, GetAuthorizedEntriesResponse, GetEntryRequest, ListEntriesRequest,
    ListEntriesResponse, SyncAuthorizedEntriesRequest, batch_create_entry_response,
    batch_delete_entry_response, batch_update_entry_response,
};
use bonafide_proto::spire::types::{self, EntryMask};
use tonic::{Code, Request, Response, Status, Streaming};

use super::super::page::Page;
use super::super::{Call, count, lifetimes, random_uuid, store_failure};
use crate::server::Context;
use crate::store::{Bundles as _, Entries as _, StoreError, Unit};

/// The service.
pub struct Service {
    context: Arc<Context>,
}

impl Service {
    /// Over the server's state.
    pub fn new(context: Arc<Context>) -> Self {
        Self { context }
    }

    /// The entries that the calling agent may have, by id.
    fn authorized(&self, call: &Call) -> Result<Vec<Arc<DomainEntry>>, Status> {
        let node = call.agent()?;
        // An agent that hears this goes to another server of the group.
        self.context.store.current().map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(self.context.state.with_entries(|entries| entries.authorized(&node.id, &node.selectors)))
    }

    /// The answer to a poll.
    async fn pages(
        &self,
        request: Request<Streaming<SyncAuthorizedEntriesRequest>>,
    ) -> Result<sync::Pages, Status> {
        let call = Call::of(&request)?;
        let mut requests = request.into_inner();
        let mask = sync::first(&mut requests).await?;
        let entries = self.authorized(&call)?;
        Ok(sync::Pages::new(requests, mask, entries, call))
    }

    fn select(&self, filter: &EntryFilter, page: Page) -> Vec<(u64, Arc<DomainEntry>)> {
        let state = &self.context.state;
        match &filter.spiffe_id {
            // Few entries share an ID: no need to look at all of them.
            Some(id) if page.limit == usize::MAX => state.with_entries(|entries| {
                let same = entries.by_spiffe_id(id).filter(|entry| filter.matches(entry));
                same.map(|entry| (0, entry.clone())).collect()
            }),
            _ => state.entries_page(page.after, page.limit, |entry| filter.matches(entry)),
        }
    }
}

#[async_trait]
impl Entry for Service {
    async fn count_entries(
        &self,
        request: Request<CountEntriesRequest>,
    ) -> Result<Response<CountEntriesResponse>, Status> {
        let filter = entry_filter_from_wire(request.into_inner().filter.as_ref(), &self.context.td)?;
        let found = if filter == EntryFilter::default() {
            self.context.state.with_entries(EntryIndex::len)
        } else {
            self.select(&filter, Page { after: 0, limit: usize::MAX }).len()
        };
        Ok(Response::new(CountEntriesResponse { count: count(found) }))
    }

    async fn list_entries(
        &self,
        request: Request<ListEntriesRequest>,
    ) -> Result<Response<ListEntriesResponse>, Status> {
        let request = request.into_inner();
        let filter = entry_filter_from_wire(request.filter.as_ref(), &self.context.td)?;
        let page = Page::parse(request.page_size, &request.page_token, "failed to list entries")?;
        let found = self.select(&filter, page);
        let next_page_token = page.next_token(&found);
        let mask = request.output_mask.as_ref();
        let entries = found.iter().map(|(_, entry)| entry_to_wire(entry, mask)).collect();
        Ok(Response::new(ListEntriesResponse { entries, next_page_token }))
    }

    async fn get_entry(&self, request: Request<GetEntryRequest>) -> Result<Response<types::Entry>, Status> {
        let call = Call::of(&request)?;
        let request = request.into_inner();
        if request.id.is_empty() {
            return Err(Status::invalid_argument("missing ID"));
        }
        call.target(&request.id);
        let id = EntryId::parse(&request.id).ok();
        let entry = id.and_then(|id| self.context.state.with_entries(|entries| entries.get(&id).cloned()));
        let entry = entry.ok_or_else(|| Status::not_found("entry not found"))?;
        Ok(Response::new(entry_to_wire(&entry, request.output_mask.as_ref())))
    }

    async fn batch_create_entry(
        &self,
        request: Request<BatchCreateEntryRequest>,
    ) -> Result<Response<BatchCreateEntryResponse>, Status> {
        let call = Call::of(&request)?;
        let request = request.into_inner();
        let trust_domain = self.context.td.clone();
        let now = self.context.clock.now();
        let what = "failed to create entry";
        let read = |wire: &types::Entry| match entry_from_wire(wire, &trust_domain) {
            Ok(entry) => {
                let entry = new_entry(&self.context, entry, now);
                let (policy, ttls) = (&self.context.config.lifetime, self.context.issuing.ttls());
                lifetimes::refused(policy, &entry, &ttls, now, what).map_or(Ok(entry), Err)
            }
            Err(error) => Err(refusal(&error, "failed to create entry")),
        };
        let wanted: Vec<_> = request.entries.iter().map(read).collect();
        let outcomes = self
            .context
            .store
            .write(move |unit| {
                wanted.into_iter().map(|entry| create(unit, entry)).collect::<Result<Vec<_>, _>>()
            })
            .await
            .map_err(|error| store_failure("failed to create entry", &error))?;
        let mask = request.output_mask.as_ref();
        let results = outcomes.into_iter().enumerate().map(|(position, outcome)| {
            note(&call, position, &outcome);
            batch_create_entry_response::Result {
                status: Some(outcome.status),
                entry: outcome.entry.map(|entry| entry_to_wire(&entry, mask)),
            }
        });
        Ok(Response::new(BatchCreateEntryResponse { results: results.collect() }))
    }

    async fn batch_update_entry(
        &self,
        request: Request<BatchUpdateEntryRequest>,
    ) -> Result<Response<BatchUpdateEntryResponse>, Status> {
        let call = Call::of(&request)?;
        let BatchUpdateEntryRequest { entries, input_mask, output_mask } = request.into_inner();
        let trust_domain = self.context.td.clone();
        let (policy, ttls) = (self.context.config.lifetime.clone(), self.context.issuing.ttls());
        let now = self.context.clock.now();
        let outcomes = self
            .context
            .store
            .write(move |unit| {
                let mask = input_mask.as_ref();
                let refused = |entry: &DomainEntry| {
                    lifetimes::refused(&policy, entry, &ttls, now, "failed to update entry")
                };
                let updated = entries.iter().map(|wire| update(unit, wire, mask, &trust_domain, &refused));
                updated.collect::<Result<Vec<_>, _>>()
            })
            .await
            .map_err(|error| store_failure("failed to update entry", &error))?;
        let mask = output_mask.as_ref();
        let results = outcomes.into_iter().enumerate().map(|(position, outcome)| {
            note(&call, position, &outcome);
            batch_update_entry_response::Result {
                status: Some(outcome.status),
                entry: outcome.entry.map(|entry| entry_to_wire(&entry, mask)),
            }
        });
        Ok(Response::new(BatchUpdateEntryResponse { results: results.collect() }))
    }

    async fn batch_delete_entry(
        &self,
        request: Request<BatchDeleteEntryRequest>,
    ) -> Result<Response<BatchDeleteEntryResponse>, Status> {
        let call = Call::of(&request)?;
        let ids = request.into_inner().ids;
        let wanted = ids.clone();
        let statuses = self
            .context
            .store
            .write(move |unit| wanted.iter().map(|id| delete(unit, id)).collect::<Result<Vec<_>, _>>())
            .await
            .map_err(|error| store_failure("failed to delete entry", &error))?;
        let results = ids.into_iter().zip(statuses).enumerate().map(|(position, (id, status))| {
            call.target(&id);
            if status.code != Code::Ok as i32 {
                call.failed(position, status.code, &status.message);
            }
            batch_delete_entry_response::Result { status: Some(status), id }
        });
        Ok(Response::new(BatchDeleteEntryResponse { results: results.collect() }))
    }

    async fn get_authorized_entries(
        &self,
        request: Request<GetAuthorizedEntriesRequest>,
    ) -> Result<Response<GetAuthorizedEntriesResponse>, Status> {
        let call = Call::of(&request)?;
        let authorized = self.authorized(&call)?;
        let mask = request.get_ref().output_mask.as_ref();
        let entries = authorized.iter().map(|entry| entry_to_wire(entry, mask)).collect();
        Ok(Response::new(GetAuthorizedEntriesResponse { entries }))
    }

    type SyncAuthorizedEntriesStream = sync::Messages;

    async fn sync_authorized_entries(
        &self,
        request: Request<Streaming<SyncAuthorizedEntriesRequest>>,
    ) -> Result<Response<sync::Messages>, Status> {
        self.pages(request).await.map(|pages| Response::new(sync::Messages(pages)))
    }
}

/// What became of one item.
struct ItemOutcome {
    status: types::Status,
    entry: Option<Arc<DomainEntry>>,
    /// For the audit log, also when there is no entry in the answer.
    id: Option<EntryId>,
}

impl ItemOutcome {
    fn done(entry: Arc<DomainEntry>) -> Self {
        Self { status: status_ok(), id: Some(entry.id.clone()), entry: Some(entry) }
    }

    fn refused(status: types::Status, id: Option<EntryId>) -> Self {
        Self { status, entry: None, id }
    }
}

fn note(call: &Call, position: usize, outcome: &ItemOutcome) {
    if let Some(id) = &outcome.id {
        call.target(id.as_str());
    }
    if outcome.status.code != Code::Ok as i32 {
        call.failed(position, outcome.status.code, &outcome.status.message);
    }
}

fn refusal(error: &ConvertError, when_stored: &str) -> types::Status {
    error.to_status(if error.found_when_stored() { when_stored } else { "failed to convert entry" })
}

fn new_entry(context: &Context, entry: NewEntry, now: Timestamp) -> DomainEntry {
    let draw = || {
        // A UUID is within the alphabet and length of an ID.
        EntryId::parse(&random_uuid(&*context.random)).expect("a UUID is an entry ID")
    };
    entry.into_entry(draw, now)
}

/// `Err` is a failure of the store, which undoes the whole batch; anything wrong with the item is its own status.
fn create(unit: &mut Unit<'_>, entry: Result<DomainEntry, types::Status>) -> Result<ItemOutcome, StoreError> {
    let entry = match entry {
        Ok(entry) => entry,
        Err(status) => return Ok(ItemOutcome::refused(status, None)),
    };
    if let Some(similar) = unit.similar_entry(&entry) {
        let status = status(Code::AlreadyExists, "similar entry already exists");
        let id = Some(similar.id.clone());
        return Ok(ItemOutcome { status, entry: Some(similar), id });
    }
    if let Some(status) = missing_bundle(unit, &entry, "failed to create entry") {
        return Ok(ItemOutcome::refused(status, Some(entry.id)));
    }
    let id = entry.id.clone();
    match unit.entry_create(entry) {
        Ok(entry) => Ok(ItemOutcome::done(entry)),
        Err(StoreError::AlreadyExists { .. }) => {
            let text = "failed to create entry: an entry with this ID already exists";
            Ok(ItemOutcome::refused(status(Code::AlreadyExists, text), Some(id)))
        }
        Err(error) => Err(error),
    }
}

fn update(
    unit: &mut Unit<'_>,
    wire: &types::Entry,
    mask: Option<&EntryMask>,
    trust_domain: &TrustDomain,
    refused: &dyn Fn(&DomainEntry) -> Option<types::Status>,
) -> Result<ItemOutcome, StoreError> {
    let not_found = || ItemOutcome::refused(status(Code::NotFound, "failed to update entry"), None);
    let stored = EntryId::parse(&wire.id).ok().and_then(|id| unit.entry(&id));
    let Some(stored) = stored else {
        // A malformed entry is refused as such, whether or not there is one to update.
        return Ok(match entry_refusal(wire, mask, trust_domain) {
            Some(status) => ItemOutcome::refused(status, None),
            None => not_found(),
        });
    };
    let mut entry = DomainEntry::clone(&stored);
    if let Err(error) = apply_entry_update(&mut entry, wire, mask, trust_domain) {
        return Ok(ItemOutcome::refused(refusal(&error, "failed to update entry"), Some(entry.id)));
    }
    if let Some(status) = refused(&entry) {
        return Ok(ItemOutcome::refused(status, Some(entry.id)));
    }
    if let Some(status) = missing_bundle(unit, &entry, "failed to update entry") {
        return Ok(ItemOutcome::refused(status, Some(entry.id)));
    }
    entry.revision = stored.revision.saturating_add(1);
    unit.entry_update(entry).map(ItemOutcome::done)
}

/// What is wrong with an update by itself.
fn entry_refusal(
    wire: &types::Entry,
    mask: Option<&EntryMask>,
    trust_domain: &TrustDomain,
) -> Option<types::Status> {
    let mut blank = DomainEntry {
        id: EntryId::parse("none").ok()?,
        spiffe_id: trust_domain.server_id(),
        parent_id: trust_domain.server_id(),
        selectors: bonafide_identity::SelectorSet::empty(),
        x509_svid_ttl: 0,
        jwt_svid_ttl: 0,
        federates_with: Box::default(),
        admin: false,
        downstream: false,
        expires_at: None,
        dns_names: Box::default(),
        revision: 0,
        created_at: Timestamp::from_unix_seconds(0),
        store_svid: false,
        hint: "".into(),
        disable_x509_svid_prefetch: false,
        jwt_svid_include_jti: false,
    };
    let error = apply_entry_update(&mut blank, wire, mask, trust_domain).err()?;
    Some(refusal(&error, "failed to update entry"))
}

fn delete(unit: &mut Unit<'_>, id: &str) -> Result<types::Status, StoreError> {
    if id.is_empty() {
        return Ok(status(Code::InvalidArgument, "missing entry ID"));
    }
    let not_found = || status(Code::NotFound, "entry not found");
    let Ok(id) = EntryId::parse(id) else { return Ok(not_found()) };
    match unit.entry_delete(&id) {
        Ok(_) => Ok(status_ok()),
        Err(StoreError::NotFound(_)) => Ok(not_found()),
        Err(error) => Err(error),
    }
}

/// An entry can only federate with trust domains whose bundle is there.
fn missing_bundle(unit: &Unit<'_>, entry: &DomainEntry, what: &str) -> Option<types::Status> {
    let missing = entry.federates_with.iter().find(|name| unit.bundle(name).is_none())?;
    Some(status(Code::Internal, format!("{what}: unable to find federated bundle \"spiffe://{missing}\"")))
}
