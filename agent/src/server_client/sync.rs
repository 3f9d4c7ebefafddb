//! `SyncAuthorizedEntries` from the agent's side.
//!
//! The first message says which fields the agent wants. A server with at most a page of entries answers with all of them
//! and is done. Otherwise it sends pages of revisions; the agent compares them with what it holds and asks for the rest
//! by ID, a page at a time. Whoever is not among the revisions is gone.

use std::collections::HashMap;
use std::sync::Arc;

use bonafide_identity::Entry;
use bonafide_proto::convert::entry_from_server;
use bonafide_proto::spire::server::entry::v1::{SyncAuthorizedEntriesRequest, SyncAuthorizedEntriesResponse};
use bonafide_proto::spire::types;
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use super::ServerError;

pub(super) const RPC: &str = "SyncAuthorizedEntries";

/// An entry that the agent holds already.
pub type KnownEntry = Arc<Entry>;

/// All entries that the agent is entitled to.
#[derive(Debug, Default)]
pub struct EntrySync {
    /// Those that could be read, in the server's order.
    pub entries: Vec<Arc<Entry>>,
    /// How many came over the wire in full.
    pub transferred: usize,
    /// How many of those were malformed; they are left out.
    pub malformed: usize,
}

impl EntrySync {
    fn take(&mut self, wire: &types::Entry) {
        self.transferred += 1;
        match entry_from_server(wire) {
            Ok(entry) => self.entries.push(Arc::new(entry)),
            Err(error) => {
                self.malformed += 1;
                tracing::warn!(entry = wire.id, %error, "the server sent an entry that cannot be used");
            }
        }
    }
}

/// The message that opens the stream. What only the server needs for signing is left out.
pub(super) fn opening() -> SyncAuthorizedEntriesRequest {
    SyncAuthorizedEntriesRequest {
        output_mask: Some(types::EntryMask {
            spiffe_id: true,
            selectors: true,
            federates_with: true,
            admin: true,
            downstream: true,
            revision_number: true,
            store_svid: true,
            hint: true,
            additional_attributes: true,
            created_at: true,
            ..types::EntryMask::default()
        }),
        ids: Vec::new(),
    }
}

pub(super) async fn run(
    mut answers: Streaming<SyncAuthorizedEntriesResponse>,
    requests: mpsc::Sender<SyncAuthorizedEntriesRequest>,
    known: &[KnownEntry],
    failed: impl Fn(Status) -> ServerError,
) -> Result<EntrySync, ServerError> {
    let mut next = async || -> Result<SyncAuthorizedEntriesResponse, ServerError> {
        let answer = answers.message().await.map_err(&failed)?;
        answer.ok_or_else(|| ServerError::malformed(RPC, "the server ended before it was done"))
    };
    let mut sync = EntrySync::default();

    let mut page = next().await?;
    if page.entry_revisions.is_empty() {
        page.entries.iter().for_each(|entry| sync.take(entry));
        if page.more {
            return Err(ServerError::malformed(RPC, "a full answer announces more"));
        }
        return Ok(sync);
    }

    let known: HashMap<&str, &KnownEntry> = known.iter().map(|entry| (entry.id.as_str(), entry)).collect();
    let page_size = page.entry_revisions.len();
    let mut wanted = Vec::new();
    loop {
        if !page.entries.is_empty() {
            return Err(ServerError::malformed(RPC, "revisions and entries are mixed"));
        }
        for revision in &page.entry_revisions {
            if revision.id.is_empty() || revision.revision_number < 0 {
                return Err(ServerError::malformed(RPC, "a revision has no ID or is negative"));
            }
            match known.get(revision.id.as_str()) {
                Some(entry) if is_current(entry, revision.revision_number, revision.created_at) => {
                    sync.entries.push(Arc::clone(entry));
                }
                _ => wanted.push(revision.id.clone()),
            }
        }
        if !page.more {
            break;
        }
        page = next().await?;
    }

    wanted.sort_unstable();
    wanted.dedup();
    for ids in wanted.chunks(page_size) {
        let request = SyncAuthorizedEntriesRequest { output_mask: None, ids: ids.to_vec() };
        if requests.send(request).await.is_err() {
            return Err(ServerError::malformed(RPC, "the server stopped listening"));
        }
        loop {
            let page = next().await?;
            if !page.entry_revisions.is_empty() {
                return Err(ServerError::malformed(RPC, "revisions and entries are mixed"));
            }
            for entry in &page.entries {
                // Sorted, as they were asked for; what was not asked for would appear twice.
                if ids.binary_search(&entry.id).is_ok() {
                    sync.take(entry);
                }
            }
            if !page.more {
                break;
            }
        }
    }
    Ok(sync)
}

/// Whether the held entry is the one that the server has. An entry that was deleted and made again under the same ID
/// starts with the same revision, so its time of creation counts too; 0 comes from servers that do not tell.
fn is_current(entry: &Entry, revision: i64, created_at: i64) -> bool {
    entry.revision == revision && (created_at == 0 || entry.created_at.unix_seconds() == created_at)
}
