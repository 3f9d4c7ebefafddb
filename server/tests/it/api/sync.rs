//! The polling protocol of agents.

use std::collections::BTreeSet;

use bonafide_proto::spire::server::agent::v1::BanAgentRequest;
use bonafide_proto::spire::server::entry::v1::{
    GetAuthorizedEntriesRequest, SyncAuthorizedEntriesRequest, SyncAuthorizedEntriesResponse,
};
use bonafide_proto::spire::types::EntryMask;
use bonafide_server::store::Entries as _;
use tokio::sync::mpsc;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use super::harness::*;

/// The mask that SPIRE's agents send.
fn agent_mask() -> Option<EntryMask> {
    Some(EntryMask {
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
        ..EntryMask::default()
    })
}

struct Sync {
    requests: mpsc::Sender<SyncAuthorizedEntriesRequest>,
    responses: Streaming<SyncAuthorizedEntriesResponse>,
}

impl Sync {
    async fn begin(channel: &Channel, first: SyncAuthorizedEntriesRequest) -> Result<Self, Status> {
        let (requests, stream) = mpsc::channel(4);
        requests.send(first).await.unwrap();
        let stream = tokio_stream::wrappers::ReceiverStream::new(stream);
        let responses = entries(channel).sync_authorized_entries(stream).await?.into_inner();
        Ok(Self { requests, responses })
    }

    async fn next(&mut self) -> Option<SyncAuthorizedEntriesResponse> {
        self.responses.message().await.unwrap()
    }

    async fn ask(&self, ids: Vec<String>) {
        self.requests.send(SyncAuthorizedEntriesRequest { ids, ..Default::default() }).await.unwrap();
    }
}

fn first() -> SyncAuthorizedEntriesRequest {
    SyncAuthorizedEntriesRequest { output_mask: agent_mask(), ids: Vec::new() }
}

async fn fill(server: &TestServer, agent: &Identity, range: std::ops::Range<usize>) {
    let parent = agent.id.clone();
    let store = &server.server.context().store;
    store
        .write(move |unit| {
            for n in range {
                let mut entry = stored_entry(&format!("e{n:05}"), &parent, &format!("/w/{n}"));
                entry.revision = 3;
                unit.entry_create(entry)?;
            }
            Ok(())
        })
        .await
        .unwrap();
}

#[tokio::test]
async fn few_entries_come_in_one_message() {
    let server = TestServer::start().await;
    let agent = server.agent().await;
    let channel = server.remote(Some(&agent)).await.unwrap();
    for (range, expected) in [(0..0, 0), (0..1, 1), (1..500, 500)] {
        fill(&server, &agent, range).await;
        let mut sync = Sync::begin(&channel, first()).await.unwrap();
        let all = sync.next().await.unwrap();
        assert_eq!((all.entries.len(), all.entry_revisions.len(), all.more), (expected, 0, false));
        assert!(all.entries.is_sorted_by_key(|entry| &entry.id));
        assert!(all.entries.iter().all(|entry| entry.parent_id.is_none() && entry.revision_number == 3));
        assert_eq!(sync.next().await, None, "the server ends the stream");
    }
}

#[tokio::test]
async fn many_entries_come_as_revisions_and_then_on_demand() {
    let server = TestServer::start().await;
    let agent = server.agent().await;
    let channel = server.remote(Some(&agent)).await.unwrap();
    fill(&server, &agent, 0..1203).await;
    let mut sync = Sync::begin(&channel, first()).await.unwrap();
    let mut ids = Vec::new();
    for (size, more) in [(500, true), (500, true), (203, false)] {
        let page = sync.next().await.unwrap();
        assert_eq!((page.entry_revisions.len(), page.entries.len(), page.more), (size, 0, more));
        for revision in page.entry_revisions {
            assert_eq!((revision.revision_number, revision.created_at), (3, 1_767_225_600));
            ids.push(revision.id);
        }
    }
    assert!(ids.is_sorted());
    assert_eq!(ids.len(), 1203);

    // What is written now belongs to the next pass.
    fill(&server, &agent, 1203..1204).await;
    let mut asked: Vec<String> = ids[..3].to_vec();
    asked.extend(["nobody".to_owned(), "e01203".to_owned(), ids[0].clone()]);
    sync.ask(asked).await;
    let answer = sync.next().await.unwrap();
    let found: Vec<&String> = answer.entries.iter().map(|entry| &entry.id).collect();
    assert_eq!((found, answer.more), (ids[..3].iter().collect(), false));
    assert_eq!(answer.entry_revisions, []);

    // More than a page at once.
    sync.ask(ids.clone()).await;
    let mut seen = BTreeSet::new();
    for (size, more) in [(500, true), (500, true), (203, false)] {
        let page = sync.next().await.unwrap();
        assert_eq!((page.entries.len(), page.more), (size, more));
        seen.extend(page.entries.into_iter().map(|entry| entry.id));
    }
    assert_eq!(seen.len(), 1203);
    // Nothing of what is asked: still one answer.
    sync.ask(vec!["nobody".to_owned()]).await;
    assert_eq!(sync.next().await, Some(SyncAuthorizedEntriesResponse::default()));
    let Sync { requests, mut responses } = sync;
    drop(requests);
    assert_eq!(responses.message().await.unwrap(), None, "closing is success");
}

#[tokio::test]
async fn the_first_message_is_checked() {
    let server = TestServer::start().await;
    let agent = server.agent().await;
    let channel = server.remote(Some(&agent)).await.unwrap();
    let ids = SyncAuthorizedEntriesRequest { ids: vec!["x".to_owned()], ..first() };
    let no_revision =
        SyncAuthorizedEntriesRequest { output_mask: Some(EntryMask::default()), ids: Vec::new() };
    for request in [ids, no_revision] {
        let status = Sync::begin(&channel, request).await.err().unwrap();
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    }
    let no_mask = SyncAuthorizedEntriesRequest::default();
    fill(&server, &agent, 0..1).await;
    let mut sync = Sync::begin(&channel, no_mask).await.unwrap();
    assert!(sync.next().await.unwrap().entries[0].parent_id.is_some(), "no mask means everything");
}

#[tokio::test]
async fn aliases_give_their_children_and_are_not_given_themselves() {
    let server = TestServer::start().await;
    let agent = server.agent().await;
    let other = server.agent().await;
    let alias_id = id("/alias");
    let mut alias = stored_entry("alias", &trust_domain().server_id(), "/alias");
    alias.selectors = bonafide_testkit::selectors(["x:1"]);
    server.entry(alias).await;
    server.entry(stored_entry("child", &alias_id, "/child")).await;
    server.entry(stored_entry("grandchild", &id("/child"), "/grandchild")).await;
    server.entry(stored_entry("foreign", &other.id, "/foreign")).await;
    let node = agent.id.clone();
    let store = &server.server.context().store;
    store
        .write(move |unit| {
            use bonafide_server::store::Nodes as _;
            let mut node = bonafide_identity::AttestedNode::clone(&unit.node(&node).unwrap());
            node.selectors = bonafide_testkit::selectors(["x:1", "x:2"]);
            unit.node_put(node)
        })
        .await
        .unwrap();
    let channel = server.remote(Some(&agent)).await.unwrap();
    let request = GetAuthorizedEntriesRequest { output_mask: None };
    let authorized = entries(&channel).get_authorized_entries(request).await.unwrap().into_inner();
    let ids: Vec<&str> = authorized.entries.iter().map(|entry| entry.id.as_str()).collect();
    assert_eq!(ids, ["child", "grandchild"]);
}

/// A connection that was made knows nothing of a ban; the server ends it, with the streams on it.
#[tokio::test]
async fn a_ban_ends_the_open_streams_of_the_agent_and_of_nobody_else() {
    let server = TestServer::start().await;
    let (agent, other) = (server.agent().await, server.agent().await);
    fill(&server, &agent, 0..501).await;
    let channel = server.remote(Some(&agent)).await.unwrap();
    let other_channel = server.remote(Some(&other)).await.unwrap();
    let other_request = || GetAuthorizedEntriesRequest { output_mask: None };
    entries(&other_channel).get_authorized_entries(other_request()).await.unwrap();
    let mut sync = Sync::begin(&channel, first()).await.unwrap();
    assert!(sync.next().await.unwrap().more);
    assert!(!sync.next().await.unwrap().more);
    let before = server.server.context().connections.len();
    let request = BanAgentRequest { id: wire_id(agent.path()) };
    agents(&server.local().await).ban_agent(request).await.unwrap();
    let ended = tokio::time::timeout(std::time::Duration::from_secs(5), sync.responses.message()).await;
    assert!(ended.expect("within five seconds").is_err(), "the stream is cut");
    eventually("the connection is gone", async || server.server.context().connections.len() <= before).await;
    entries(&other_channel).get_authorized_entries(other_request()).await.unwrap();
}
