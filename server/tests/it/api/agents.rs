//! The Agent service for administrators.

use bonafide_identity::{AttestedNode, SerialNumber, Timestamp};
use bonafide_proto::spire::server::agent::v1::{
    AgentX509svidParams, BanAgentRequest, CountAgentsRequest, CreateJoinTokenRequest, DeleteAgentRequest,
    GetAgentRequest, ListAgentsRequest, PostStatusRequest, RenewAgentRequest, count_agents_request,
    list_agents_request,
};
use bonafide_proto::spire::types::{self, AgentMask, SelectorMatch};
use bonafide_server::store::Nodes as _;
use tonic::Code;

use super::harness::*;

fn spiffe(trust_domain: &str, path: &str) -> Option<types::Spiffeid> {
    Some(types::Spiffeid { trust_domain: trust_domain.to_owned(), path: path.to_owned() })
}

async fn node(server: &TestServer, name: &str, change: impl FnOnce(&mut AttestedNode)) {
    let mut node = AttestedNode {
        id: id(&format!("/spire/agent/test/{name}")),
        attestation_type: "test".to_owned(),
        serial: Some(SerialNumber::from(77)),
        not_after: Timestamp::from_unix_seconds(1_767_300_000),
        new_serial: None,
        new_not_after: Timestamp::from_unix_seconds(0),
        selectors: bonafide_testkit::selectors(["test:all"]),
        can_reattest: false,
        agent_version: "1.0".to_owned(),
        evidence_until: None,
    };
    change(&mut node);
    server.server.context().store.write(move |unit| unit.node_put(node)).await.unwrap();
}

#[tokio::test]
async fn agents_are_named_by_agent_ids() {
    let server = TestServer::start().await;
    let client = agents(&server.local().await);
    let cases = [
        (None, Code::InvalidArgument, "invalid agent ID: request must specify SPIFFE ID"),
        (
            spiffe("other.org", "/spire/agent/x"),
            Code::InvalidArgument,
            "invalid agent ID: \"spiffe://other.org/spire/agent/x\" is not a member of trust domain \"example.org\"",
        ),
        (
            spiffe("example.org", "/web"),
            Code::InvalidArgument,
            "invalid agent ID: \"spiffe://example.org/web\" is not an agent in trust domain \"example.org\"; \
             path is not in the agent namespace",
        ),
        (
            spiffe("example.org", ""),
            Code::InvalidArgument,
            "invalid agent ID: \"spiffe://example.org\" is not an agent in trust domain \"example.org\"; \
             path is empty",
        ),
        (
            spiffe("example.org", "/spire/agent//x"),
            Code::InvalidArgument,
            "invalid agent ID: path cannot contain empty segments",
        ),
        (spiffe("example.org", "/spire/agent/nobody"), Code::NotFound, "agent not found"),
    ];
    for (id, code, message) in cases {
        let mut client = client.clone();
        let request = GetAgentRequest { id: id.clone(), ..Default::default() };
        assert_refused(client.get_agent(request).await, code, message);
        assert_refused(client.delete_agent(DeleteAgentRequest { id: id.clone() }).await, code, message);
        assert_refused(client.ban_agent(BanAgentRequest { id }).await, code, message);
    }
}

#[tokio::test]
async fn listing_filters_masks_and_pages() {
    let server = TestServer::start().await;
    node(&server, "a", |_| {}).await;
    node(&server, "b", |node| node.can_reattest = true).await;
    node(&server, "c", AttestedNode::ban).await;
    node(&server, "d", |node| {
        node.attestation_type = "other".to_owned();
        node.selectors = bonafide_testkit::selectors(["other:x"]);
        node.not_after = Timestamp::from_unix_seconds(1_767_225_601);
    })
    .await;
    let client = agents(&server.local().await);
    let names = async |filter: list_agents_request::Filter| {
        let request = ListAgentsRequest { filter: Some(filter), ..Default::default() };
        let response = client.clone().list_agents(request).await.unwrap().into_inner();
        assert_eq!(response.next_page_token, "");
        let mut names: Vec<char> = response
            .agents
            .iter()
            .map(|agent| agent.id.as_ref().unwrap().path.chars().last().unwrap())
            .collect();
        names.sort_unstable();
        names.into_iter().collect::<String>()
    };
    let filter = list_agents_request::Filter::default;
    let by = |text: &str, how: i32| Some(SelectorMatch { selectors: vec![selector(text)], r#match: how });
    for (filter, expected) in [
        (filter(), "abcd"),
        (list_agents_request::Filter { by_attestation_type: "other".to_owned(), ..filter() }, "d"),
        (list_agents_request::Filter { by_banned: Some(true), ..filter() }, "c"),
        (list_agents_request::Filter { by_banned: Some(false), ..filter() }, "abd"),
        (list_agents_request::Filter { by_can_reattest: Some(true), ..filter() }, "b"),
        (list_agents_request::Filter { by_selector_match: by("other:x", 0), ..filter() }, "d"),
        (list_agents_request::Filter { by_selector_match: by("test:all", 3), ..filter() }, "abc"),
        (
            list_agents_request::Filter {
                by_expires_before: "2026-01-01 01:00:00 +0000 +00".to_owned(),
                ..filter()
            },
            "d",
        ),
        (list_agents_request::Filter { by_expires_before: "tomorrow".to_owned(), ..filter() }, "abcd"),
    ] {
        assert_eq!(names(filter.clone()).await, expected, "{filter:?}");
    }

    // Pages of two, until there is no token.
    let (mut token, mut seen) = (String::new(), Vec::new());
    loop {
        let request = ListAgentsRequest { page_size: 2, page_token: token, ..Default::default() };
        let page = client.clone().list_agents(request).await.unwrap().into_inner();
        assert!(page.agents.len() <= 2);
        seen.extend(page.agents.into_iter().map(|agent| agent.id.unwrap().path));
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(seen.len(), 4);
    let request = ListAgentsRequest { page_size: 2, page_token: "x".to_owned(), ..Default::default() };
    let refused = client.clone().list_agents(request).await;
    assert_refused(refused, Code::Internal, "failed to list agents: could not parse token 'x'");

    let nothing = |filter| ListAgentsRequest { filter: Some(filter), ..Default::default() };
    let empty = list_agents_request::Filter { by_selector_match: Some(SelectorMatch::default()), ..filter() };
    let refused = client.clone().list_agents(nothing(empty)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);

    let counting = count_agents_request::Filter { by_banned: Some(true), ..Default::default() };
    for (filter, expected) in [(None, 4), (Some(counting), 1)] {
        let count = client.clone().count_agents(CountAgentsRequest { filter }).await.unwrap();
        assert_eq!(count.into_inner().count, expected);
    }

    let request = |mask| GetAgentRequest { id: wire_id("/spire/agent/test/a"), output_mask: mask };
    let whole = client.clone().get_agent(request(None)).await.unwrap().into_inner();
    assert_eq!(
        (
            whole.attestation_type.as_str(),
            whole.x509svid_serial_number.as_str(),
            whole.agent_version.as_str()
        ),
        ("test", "77", "1.0")
    );
    let bare = client.clone().get_agent(request(Some(AgentMask::default()))).await.unwrap().into_inner();
    assert_eq!(bare, types::Agent { id: wire_id("/spire/agent/test/a"), ..Default::default() });
}

#[tokio::test]
async fn join_tokens_are_checked() {
    let server = TestServer::start().await;
    let client = agents(&server.local().await);
    let create = async |request: CreateJoinTokenRequest| client.clone().create_join_token(request).await;
    let request = |ttl| CreateJoinTokenRequest { ttl, ..Default::default() };
    for ttl in [0, -1, i32::MIN] {
        assert_refused(
            create(request(ttl)).await,
            Code::InvalidArgument,
            "ttl is required, you must provide one",
        );
    }
    let named = CreateJoinTokenRequest { token: "my-token".to_owned(), ..request(60) };
    let token = create(named.clone()).await.unwrap().into_inner();
    assert_eq!(
        (token.value.as_str(), token.expires_at),
        ("my-token", server.clock.now().unix_seconds() + 60)
    );
    let refused = create(named).await.unwrap_err();
    assert_eq!(refused.code(), Code::Internal);
    assert!(refused.message().starts_with("failed to create token: "), "{refused:?}");
    let random = create(request(60)).await.unwrap().into_inner().value;
    assert_eq!((random.len(), &random[14..15]), (36, "4"), "{random}");

    for (agent_id, message) in [
        (
            spiffe("example.org", "/spire/agent/x"),
            "invalid agent ID: \"spiffe://example.org/spire/agent/x\" is not a workload in trust domain \
             \"example.org\"; path is in the reserved namespace",
        ),
        (
            spiffe("other.org", "/x"),
            "invalid agent ID: \"spiffe://other.org/x\" is not a member of trust domain \"example.org\"",
        ),
    ] {
        let refused = create(CreateJoinTokenRequest { agent_id, ..request(60) }).await;
        assert_refused(refused, Code::InvalidArgument, message);
    }
    for token in ["a b", "../x", "x/", "ä"] {
        let refused =
            create(CreateJoinTokenRequest { token: token.to_owned(), ..request(60) }).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{token}: {refused:?}");
    }
}

#[tokio::test]
async fn what_an_agent_says_of_itself_is_checked() {
    let server = TestServer::start().await;
    let agent = server.agent().await;
    let client = agents(&server.remote(Some(&agent)).await.unwrap());
    let version =
        |length: usize| PostStatusRequest { agent_version: "x".repeat(length), ..Default::default() };
    client.clone().post_status(version(255)).await.unwrap();
    assert_eq!(client.clone().post_status(version(256)).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(server.server.context().state.node(&agent.id).unwrap().agent_version.len(), 255);

    let renew = async |params| client.clone().renew_agent(RenewAgentRequest { params }).await;
    assert_refused(renew(None).await, Code::InvalidArgument, "params cannot be nil");
    let csr = |csr: &[u8]| Some(AgentX509svidParams { csr: csr.to_vec() });
    assert_refused(renew(csr(b"")).await, Code::InvalidArgument, "missing CSR");
    let refused = renew(csr(b"x")).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().starts_with("failed to parse CSR: "), "{refused:?}");
}
