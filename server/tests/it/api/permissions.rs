//! The permission table, over the wire: each rpc × each class of caller.

use bonafide_pki::{KeyType, PrivateKey, agent_csr, inspect};
use bonafide_proto::convert::denial_reason;
use bonafide_proto::spire::server::agent::v1::{AttestAgentRequest, CountAgentsRequest, ListAgentsRequest};
use bonafide_proto::spire::server::bundle::v1::ListFederatedBundlesRequest;
use bonafide_proto::spire::server::bundle::v1::bundle_client::BundleClient;
use bonafide_proto::spire::server::entry::v1::ListEntriesRequest;
use bonafide_proto::spire::server::svid::v1::svid_client::SvidClient;
use bonafide_proto::spire::server::svid::v1::{
    BatchNewX509svidRequest, NewJwtsvidRequest, NewX509svidParams,
};
use bonafide_proto::spire::types::permission_denied_details::Reason;
use bonafide_server::api::{Who, table::RULES};
use http::uri::PathAndQuery;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::client::Grpc;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use super::harness::*;

/// Calls any rpc with an empty message; what comes back is not looked at.
async fn call(channel: &Channel, path: &'static str) -> Result<(), Status> {
    let mut client = Grpc::new(channel.clone());
    client.ready().await.map_err(|error| Status::unknown(error.to_string()))?;
    let codec: ProstCodec<(), ()> = ProstCodec::default();
    let path = PathAndQuery::from_static(path);
    let mut request = Request::new(tokio_stream::iter([()]));
    request.set_timeout(std::time::Duration::from_secs(20));
    let mut stream = client.streaming(request, path, codec).await?.into_inner();
    // One message is enough: some streams do not end by themselves.
    stream.message().await.map(drop)
}

const LOCAL_SERVICES: [&str; 4] = [
    "spire.api.server.logger.v1.Logger",
    "spire.api.server.debug.v1.Debug",
    "grpc.health.v1.Health",
    "bonafide.server.v1.Maintenance",
];

/// Rpcs that change authorities would leave the test without an agent; they are last.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn each_rpc_lets_in_whom_the_table_names_and_nobody_else() {
    let server = TestServer::start().await;
    let agent = server.agent().await;
    let banned = server.agent().await;
    let evicted = server.agent().await;
    let context = server.server.context();
    let parent = agent.id.clone();
    let (admin, downstream, member) =
        (server.identity("/admin"), server.identity("/downstream"), server.identity("/member"));
    let static_admin = server.identity("/static-admin");
    for (name, path, is_admin, is_downstream) in
        [("a", "/admin", true, false), ("d", "/downstream", false, true), ("m", "/member", false, false)]
    {
        let mut entry = stored_entry(name, &parent, path);
        (entry.admin, entry.downstream) = (is_admin, is_downstream);
        server.entry(entry).await;
    }
    let (banned_id, evicted_id) = (banned.id.clone(), evicted.id.clone());
    context
        .store
        .write(move |unit| {
            use bonafide_server::store::Nodes as _;
            let mut node = bonafide_identity::AttestedNode::clone(&unit.node(&banned_id).unwrap());
            node.ban();
            unit.node_put(node)?;
            unit.node_delete(&evicted_id).map(drop)
        })
        .await
        .unwrap();

    let none = Who::ANY;
    let callers = [
        ("local", Who::LOCAL, server.local().await, None),
        ("admin by entry", Who::ADMIN, server.remote(Some(&admin)).await.unwrap(), None),
        ("admin by configuration", Who::ADMIN, server.remote(Some(&static_admin)).await.unwrap(), None),
        ("downstream", Who::DOWNSTREAM, server.remote(Some(&downstream)).await.unwrap(), None),
        ("agent", Who::AGENT, server.remote(Some(&agent)).await.unwrap(), None),
        ("member", none, server.remote(Some(&member)).await.unwrap(), Some(Reason::AgentNotAttested)),
        ("banned agent", none, server.remote(Some(&banned)).await.unwrap(), Some(Reason::AgentBanned)),
        ("evicted agent", none, server.remote(Some(&evicted)).await.unwrap(), Some(Reason::AgentNotAttested)),
        ("anonymous", none, server.anonymous().await, None),
    ];
    for rule in RULES {
        for (name, class, channel, reason) in &callers {
            let outcome = call(channel, rule.path).await;
            let code = outcome.as_ref().map_or_else(Status::code, |()| Code::Ok);
            let what = format!("{name} calls {}: {outcome:?}", rule.path);
            let served = *class == Who::LOCAL || !LOCAL_SERVICES.contains(&rule.service());
            if !served {
                assert_eq!(code, Code::Unimplemented, "{what}");
                continue;
            }
            if rule.allows(Who::ANY) || rule.allows(*class) {
                assert!(!matches!(code, Code::PermissionDenied | Code::Unauthenticated), "{what}");
                continue;
            }
            let status = outcome.expect_err(&what);
            let text = format!("authorization denied for method {}", rule.path);
            assert_eq!((status.code(), status.message()), (Code::PermissionDenied, &text[..]), "{what}");
            // Only where agents may call at all do they learn why they may not.
            let expected = if !rule.allows(Who::AGENT) {
                None
            } else if *class == none || *class == Who::LOCAL {
                *reason
            } else {
                Some(Reason::AgentNotAttested)
            };
            assert_eq!(denial_reason(&status), expected, "{what}");
        }
    }
    let audit = server.audit().await;
    let denied = audit.iter().filter(|line| line["decision"] == "denied").count();
    assert!(denied > 200, "{denied} denials audited");
}

#[tokio::test]
async fn rights_end_with_the_entry_that_gave_them() {
    let server = TestServer::start().await;
    let admin = server.identity("/admin");
    let channel = server.remote(Some(&admin)).await.unwrap();
    let count = async || {
        let request = CountAgentsRequest::default();
        agents(&channel).count_agents(request).await.map(drop)
    };
    assert_eq!(count().await.unwrap_err().code(), Code::PermissionDenied);
    let mut entry = stored_entry("a", &id("/spire/server"), "/admin");
    entry.admin = true;
    server.entry(entry).await;
    count().await.unwrap();
    let context = server.server.context();
    context
        .store
        .write(|unit| {
            use bonafide_server::store::Entries as _;
            unit.entry_delete(&bonafide_identity::EntryId::parse("a").unwrap()).map(drop)
        })
        .await
        .unwrap();
    assert_eq!(count().await.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test]
async fn an_admin_with_an_expired_svid_is_no_admin() {
    let server = TestServer::start().await;
    let admin = server.identity("/static-admin");
    let channel = server.remote(Some(&admin)).await.unwrap();
    let request = || CountAgentsRequest::default();
    agents(&channel).count_agents(request()).await.unwrap();
    server.clock.advance(std::time::Duration::from_secs(3601));
    let status = agents(&channel).count_agents(request()).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
}

/// An identity of another trust domain.
fn foreign(authority: &bonafide_testkit::TestAuthority, id: &str) -> Identity {
    let id = bonafide_identity::SpiffeId::parse(id).unwrap();
    let leaf = authority.issue(&id);
    let key = std::sync::Arc::new(PrivateKey::from_pkcs8_der(&leaf.pkcs8).unwrap());
    Identity { id, chain: leaf.chain, key }
}

#[tokio::test]
async fn foreign_trust_domains_get_in_only_by_name() {
    let server = TestServer::start_with_admins(&["spiffe://other.org/admin"]).await;
    let authority = server.federated("other.org").await;
    let admin = foreign(&authority, "spiffe://other.org/admin");
    let count = CountAgentsRequest::default;
    eventually("the new bundle is used in handshakes", async || match server.remote(Some(&admin)).await {
        Ok(channel) => agents(&channel).count_agents(count()).await.is_ok(),
        Err(_) => false,
    })
    .await;
    // With TLS 1.3 the client learns of the refusal with its first call.
    let stranger = foreign(&authority, "spiffe://other.org/web");
    let refused = match server.remote(Some(&stranger)).await {
        Err(_) => true,
        Ok(channel) => call(&channel, "/spire.api.server.bundle.v1.Bundle/GetBundle").await.is_err(),
    };
    assert!(refused, "not in admin_ids");
}

/// The connection was made under the old trust; it ends with it.
#[tokio::test]
async fn connections_end_when_their_chain_is_no_longer_trusted() {
    let server = TestServer::start_with_admins(&["spiffe://other.org/admin"]).await;
    let authority = server.federated("other.org").await;
    let admin = foreign(&authority, "spiffe://other.org/admin");
    let count = CountAgentsRequest::default;
    let mut channel = None;
    eventually("the new bundle is used in handshakes", async || {
        let Ok(connected) = server.remote(Some(&admin)).await else { return false };
        let works = agents(&connected).count_agents(count()).await.is_ok();
        channel = Some(connected);
        works
    })
    .await;
    let channel = channel.unwrap();
    let before = server.server.context().connections.len();
    let context = server.server.context();
    context
        .store
        .write(|unit| {
            use bonafide_server::store::Bundles as _;
            unit.bundle_delete(&bonafide_identity::TrustDomain::parse("other.org").unwrap()).map(drop)
        })
        .await
        .unwrap();
    eventually("the connection is closed", async || context.connections.len() < before).await;
    assert!(agents(&channel).count_agents(count()).await.is_err());
}

/// A client may verify before an authority goes and send its first byte after the connections were looked through.
#[tokio::test]
async fn a_connection_that_is_made_slowly_outlives_its_trust_by_seconds_only() {
    let server = TestServer::start_with_admins(&["spiffe://other.org/admin"]).await;
    let authority = server.federated("other.org").await;
    let admin = foreign(&authority, "spiffe://other.org/admin");
    eventually("the new bundle is used in handshakes", async || {
        let Ok(connected) = server.remote(Some(&admin)).await else { return false };
        agents(&connected).count_agents(CountAgentsRequest::default()).await.is_ok()
    })
    .await;
    let context = server.server.context();
    let connector = tokio_rustls::TlsConnector::from(server.client_tls(Some(&admin)));
    let tcp = tokio::net::TcpStream::connect(server.server.address()).await.unwrap();
    let mut slow = connector.connect(bonafide_pki::tls::server_name(), tcp).await.unwrap();
    // The server answers who came later: so it has read the slow client's last word.
    let later = server.remote(Some(&admin)).await.unwrap();
    agents(&later).count_agents(CountAgentsRequest::default()).await.unwrap();
    drop(later);
    eventually("other connections are gone", async || context.connections.is_empty()).await;
    context
        .store
        .write(|unit| {
            use bonafide_server::store::Bundles as _;
            unit.bundle_delete(&bonafide_identity::TrustDomain::parse("other.org").unwrap()).map(drop)
        })
        .await
        .unwrap();
    let refused = async || server.remote(Some(&admin)).await;
    eventually("new handshakes fail", async || match refused().await {
        Ok(channel) => agents(&channel).count_agents(CountAgentsRequest::default()).await.is_err(),
        Err(_) => true,
    })
    .await;
    slow.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    slow.flush().await.unwrap();
    let mut settings = [0; 9];
    tokio::time::timeout(std::time::Duration::from_secs(10), slow.read_exact(&mut settings))
        .await
        .unwrap()
        .unwrap();
    assert!(!context.connections.is_empty(), "the slow one is served");
    tokio::time::pause();
    tokio::time::advance(std::time::Duration::from_secs(26)).await;
    tokio::time::resume();
    eventually("the second look has found it", async || context.connections.is_empty()).await;
}

/// Calls with a message of another rpc.
async fn call_with(channel: &Channel, path: &'static str, message: AttestAgentRequest) -> Result<(), Status> {
    let mut client = Grpc::new(channel.clone());
    client.ready().await.map_err(|error| Status::unknown(error.to_string()))?;
    let codec: ProstCodec<AttestAgentRequest, ()> = ProstCodec::default();
    let stream = tokio_stream::iter([message]);
    let response = client.streaming(Request::new(stream), PathAndQuery::from_static(path), codec).await?;
    response.into_inner().message().await.map(drop)
}

/// Anybody may call these; what has arrived of a message is held in memory until the rest is there.
#[tokio::test]
async fn what_strangers_send_is_bounded_in_size_and_time() {
    const GET_BUNDLE: &str = "/spire.api.server.bundle.v1.Bundle/GetBundle";
    const ATTEST: &str = "/spire.api.server.agent.v1.Agent/AttestAgent";
    let server = TestServer::start().await;
    let channel = server.anonymous().await;
    let of = |size: usize| attest_params("join_token", &vec![b'x'; size], b"csr");
    for (path, size, most) in [(GET_BUNDLE, 100 << 10, 65_536), (ATTEST, 2 << 20, 1_048_576)] {
        let text = format!("the request is larger than {most} bytes");
        let refused = call_with(&channel, path, of(size)).await.unwrap_err();
        assert_ne!(refused.code(), Code::Ok, "{path}");
        assert_eq!(refused.message(), text, "{path}: {refused:?}");
    }
    // A large payload that is allowed is read.
    let refused = call_with(&channel, ATTEST, of(200 << 10)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");

    let mut client = Grpc::new(channel.clone());
    client.ready().await.unwrap();
    let codec: ProstCodec<(), ()> = ProstCodec::default();
    let request = Request::new(tokio_stream::pending::<()>());
    tokio::time::pause();
    // How a client that has not finished its request hears of it is the client's affair.
    client.streaming(request, PathAndQuery::from_static(GET_BUNDLE), codec).await.map(drop).unwrap_err();
    tokio::time::resume();
    let audit = server.audit().await;
    let line = audit.last().unwrap();
    assert_eq!(
        (&line["code"], &line["message"]),
        (&"DeadlineExceeded".into(), &"the request did not come in time".into())
    );
}

/// CVE-2021-27098 (SPIRE): a request signed by an agent named an identity that was not its own, and got it.
#[tokio::test]
async fn advisory_an_agent_gets_no_identity_but_its_own() {
    let server = TestServer::start().await;
    let (mine, other) = (server.agent().await, server.agent().await);
    server.entry(stored_entry("mine", &mine.id, "/mine")).await;
    server.entry(stored_entry("other", &other.id, "/other")).await;
    server.entry(stored_entry("orphan", &id("/spire/agent/gone"), "/orphan")).await;
    let mut client = SvidClient::new(server.remote(Some(&mine)).await.unwrap());
    // The request says whatever it likes; the certificate says what the entry does.
    for claimed in ["/other", "/spire/server", "/spire/agent/x", "/mine"] {
        let key = PrivateKey::generate(KeyType::EcP256).unwrap();
        let csr = agent_csr(&key, Some(&id(claimed))).unwrap();
        let params = vec![NewX509svidParams { entry_id: "mine".to_owned(), csr }];
        let response = client.batch_new_x509svid(BatchNewX509svidRequest { params }).await.unwrap();
        let svid = response.into_inner().results.remove(0).svid.unwrap();
        assert_eq!(inspect(&svid.cert_chain[0]).unwrap().uris, ["spiffe://example.org/mine"], "{claimed}");
    }
    for entry in ["other", "orphan", "", "no such"] {
        let key = PrivateKey::generate(KeyType::EcP256).unwrap();
        let csr = agent_csr(&key, Some(&id("/mine"))).unwrap();
        let params = vec![NewX509svidParams { entry_id: entry.to_owned(), csr }];
        let response = client.batch_new_x509svid(BatchNewX509svidRequest { params }).await.unwrap();
        let result = response.into_inner().results.remove(0);
        assert!(result.svid.is_none() && result.status.unwrap().code != 0, "{entry:?}");
        let audience = vec!["a".to_owned()];
        let token = client.new_jwtsvid(NewJwtsvidRequest { entry_id: entry.to_owned(), audience }).await;
        assert!(token.is_err(), "{entry:?}");
    }
}

/// SPIRE 1.9.3 and 1.8.9: the size of a page that a caller asks for is no reason to take memory for it.
#[tokio::test]
async fn advisory_a_huge_page_costs_what_it_holds() {
    let server = TestServer::start().await;
    let local = server.local().await;
    let request = ListAgentsRequest { page_size: i32::MAX, ..ListAgentsRequest::default() };
    assert!(agents(&local).list_agents(request).await.unwrap().into_inner().agents.is_empty());
    let request = ListEntriesRequest { page_size: i32::MAX, ..ListEntriesRequest::default() };
    assert!(entries(&local).list_entries(request).await.unwrap().into_inner().entries.is_empty());
    let request =
        ListFederatedBundlesRequest { page_size: i32::MAX, ..ListFederatedBundlesRequest::default() };
    let response = BundleClient::new(local).list_federated_bundles(request).await.unwrap();
    assert!(response.into_inner().bundles.is_empty());
}

#[tokio::test]
async fn an_unknown_method_is_unimplemented_for_everybody() {
    let server = TestServer::start().await;
    for channel in [server.local().await, server.anonymous().await] {
        for path in ["/spire.api.server.agent.v1.Agent/NoSuchMethod", "/no.such.Service/Method"] {
            assert_eq!(call(&channel, path).await.unwrap_err().code(), Code::Unimplemented, "{path}");
        }
    }
}
