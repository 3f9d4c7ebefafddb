//! The server is killed at random moments under a load of entries, tokens and attestations, and started again.
//!
//! What was acknowledged must be there after each start, a join token must work once however often the server dies
//! around it, and no start may fail. `BONAFIDE_TEST_KILLS` is the number of kills for each driver. (The store alone is
//! killed, and has its power cut, in the server's own tests.)

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bonafide_identity::{Timestamp, TrustDomain};
use bonafide_pki::{KeyType, PrivateKey, agent_csr, tls};
use bonafide_proto::spire::server::agent::v1 as agent_api;
use bonafide_proto::spire::server::agent::v1::agent_client::AgentClient;
use bonafide_proto::spire::server::entry::v1 as entry_api;
use bonafide_proto::spire::server::entry::v1::entry_client::EntryClient;
use bonafide_proto::spire::types;
use bonafide_tests::{Deployment, Settings, setting};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status};
use tower::service_fn;

#[test]
fn kills_lose_nothing_that_sled_acknowledged() {
    kill_and_check("sled");
}

#[test]
fn kills_lose_nothing_that_redb_acknowledged() {
    kill_and_check("redb");
}

/// What the server has acknowledged.
#[derive(Default)]
struct Acknowledged {
    entries: BTreeSet<String>,
    /// Tokens that exist and were not used, as far as was acknowledged.
    tokens: BTreeSet<String>,
    /// Tokens that an attestation has used.
    used: BTreeSet<String>,
    /// Tokens whose attestation was under way when the server died: used or not, but never twice.
    unknown: BTreeSet<String>,
}

fn kill_and_check(store: &str) {
    let kills = setting("BONAFIDE_TEST_KILLS", 10);
    let mut deployment =
        Deployment::prepare(Settings { store: store.to_owned(), ..Settings::default() }).unwrap();
    let acknowledged = Arc::new(Mutex::new(Acknowledged::default()));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    deployment.start_server().unwrap();
    for round in 0..kills {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let moment = Duration::from_millis(20 + (random >> 33) % 300);
        let clients = runtime.block_on(Clients::connect(&deployment));
        let load = [
            runtime.spawn(write_entries(clients.clone(), round, Arc::clone(&acknowledged))),
            runtime.spawn(use_tokens(clients, round, Arc::clone(&acknowledged))),
        ];
        std::thread::sleep(moment);
        deployment.kill_server();
        for task in load {
            runtime.block_on(task).unwrap();
        }
        deployment.start_server().unwrap_or_else(|why| panic!("{store}, kill {round}: {why}"));
        let clients = runtime.block_on(Clients::connect(&deployment));
        let mut acknowledged = acknowledged.lock().unwrap();
        runtime.block_on(check(clients, &mut acknowledged, &format!("{store}, kill {round}")));
    }
    let acknowledged = acknowledged.lock().unwrap();
    println!(
        "{store}: {kills} kills of the server, {} entries and {} attestations acknowledged, none lost",
        acknowledged.entries.len(),
        acknowledged.used.len()
    );
    assert!(acknowledged.entries.len() as u64 > kills && acknowledged.used.len() as u64 >= kills / 2);
}

#[derive(Clone)]
struct Clients {
    local: Channel,
    remote: Channel,
}

impl Clients {
    async fn connect(deployment: &Deployment) -> Self {
        let socket = deployment.server_socket();
        let local = Endpoint::from_static("http://localhost").connect_with_connector_lazy(service_fn(
            move |_: Uri| {
                let socket = socket.clone();
                async move { UnixStream::connect(socket).await.map(TokioIo::new) }
            },
        ));
        let server = TrustDomain::parse("example.org").unwrap().server_id();
        let connector = TlsConnector::from(tls::insecure_client_config(server, Arc::new(now)));
        let port = deployment.port();
        let remote = Endpoint::from_static("http://localhost").connect_with_connector_lazy(service_fn(
            move |_: Uri| {
                let connector = connector.clone();
                async move {
                    let tcp = TcpStream::connect(("127.0.0.1", port)).await?;
                    connector.connect(tls::server_name(), tcp).await.map(TokioIo::new)
                }
            },
        ));
        Self { local, remote }
    }

    async fn create_token(&self, value: &str) -> Result<(), Status> {
        let request =
            agent_api::CreateJoinTokenRequest { ttl: 3_600, token: value.to_owned(), agent_id: None };
        AgentClient::new(self.local.clone()).create_join_token(request).await.map(drop)
    }

    async fn attest(&self, token: &str) -> Result<(), Status> {
        let key = PrivateKey::generate(KeyType::EcP256).unwrap();
        let params = agent_api::attest_agent_request::Params {
            data: Some(types::AttestationData {
                r#type: "join_token".to_owned(),
                payload: token.as_bytes().to_vec(),
            }),
            params: Some(agent_api::AgentX509svidParams { csr: agent_csr(&key, None).unwrap() }),
        };
        let step = agent_api::attest_agent_request::Step::Params(params);
        let request = tokio_stream_of(agent_api::AttestAgentRequest { step: Some(step) });
        let mut stream = AgentClient::new(self.remote.clone()).attest_agent(request).await?.into_inner();
        match stream.message().await? {
            Some(_) => Ok(()),
            None => Err(Status::unavailable("the stream ended without an answer")),
        }
    }
}

/// A request stream of one message.
fn tokio_stream_of<T: Send + 'static>(message: T) -> impl tonic::IntoStreamingRequest<Message = T> {
    tonic::Request::new(tokio_stream::once(message))
}

fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    Timestamp::from_unix_millis(i64::try_from(since.as_millis()).unwrap())
}

/// Creates entries until the server is gone.
async fn write_entries(clients: Clients, round: u64, acknowledged: Arc<Mutex<Acknowledged>>) {
    let mut client = EntryClient::new(clients.local);
    let id = |path: String| Some(types::Spiffeid { trust_domain: "example.org".to_owned(), path });
    for number in 0.. {
        let name = format!("e-{round}-{number}");
        let entry = types::Entry {
            id: name.clone(),
            spiffe_id: id(format!("/{name}")),
            parent_id: id("/spire/agent/x".to_owned()),
            selectors: vec![types::Selector { r#type: "unix".to_owned(), value: "uid:1".to_owned() }],
            ..types::Entry::default()
        };
        let request = entry_api::BatchCreateEntryRequest { entries: vec![entry], output_mask: None };
        let Ok(answer) = client.batch_create_entry(request).await else { return };
        let status = answer.into_inner().results.into_iter().next().and_then(|result| result.status).unwrap();
        assert_eq!(status.code, 0, "{}", status.message);
        acknowledged.lock().unwrap().entries.insert(name);
    }
}

/// Makes tokens and attests with them until the server is gone.
async fn use_tokens(clients: Clients, round: u64, acknowledged: Arc<Mutex<Acknowledged>>) {
    for number in 0.. {
        let token = format!("t-{round}-{number}");
        if clients.create_token(&token).await.is_err() {
            return;
        }
        acknowledged.lock().unwrap().tokens.insert(token.clone());
        // Every other token is left for the check after the kill.
        if number % 2 == 0 {
            continue;
        }
        let attested = clients.attest(&token).await;
        let mut acknowledged = acknowledged.lock().unwrap();
        acknowledged.tokens.remove(&token);
        match attested {
            Ok(()) => acknowledged.used.insert(token),
            Err(_) => acknowledged.unknown.insert(token),
        };
    }
}

async fn check(clients: Clients, acknowledged: &mut Acknowledged, at: &str) {
    let mut entries = EntryClient::new(clients.local.clone()).max_decoding_message_size(64 << 20);
    let request = entry_api::ListEntriesRequest {
        output_mask: Some(types::EntryMask::default()),
        ..entry_api::ListEntriesRequest::default()
    };
    let listed: BTreeSet<String> = entries
        .list_entries(request)
        .await
        .unwrap()
        .into_inner()
        .entries
        .into_iter()
        .map(|entry| entry.id)
        .collect();
    let lost: Vec<_> = acknowledged.entries.difference(&listed).collect();
    assert!(lost.is_empty(), "{at}: acknowledged entries are lost: {lost:?}");

    let mut agents = AgentClient::new(clients.local.clone()).max_decoding_message_size(64 << 20);
    let request = agent_api::ListAgentsRequest {
        output_mask: Some(types::AgentMask::default()),
        ..agent_api::ListAgentsRequest::default()
    };
    let attested: BTreeSet<String> = agents
        .list_agents(request)
        .await
        .unwrap()
        .into_inner()
        .agents
        .into_iter()
        .filter_map(|agent| agent.id?.path.strip_prefix("/spire/agent/join_token/").map(str::to_owned))
        .collect();
    let lost: Vec<_> = acknowledged.used.difference(&attested).collect();
    assert!(lost.is_empty(), "{at}: acknowledged attestations are lost: {lost:?}");

    // What was under way either happened as a whole or not at all. The token is consumed before the node is recorded,
    // so it may be gone without an agent; with an agent it must be gone.
    for token in std::mem::take(&mut acknowledged.unknown) {
        let again = clients.attest(&token).await;
        assert!(!(attested.contains(&token) && again.is_ok()), "{at}: token {token} attested twice");
        acknowledged.used.extend(again.is_ok().then_some(token));
    }
    // Used tokens are used; a few of each round are enough, for each try costs a handshake.
    for token in acknowledged.used.iter().rev().take(3) {
        let again = clients.attest(token).await.expect_err("a used token must not work again");
        assert_eq!(again.code(), Code::InvalidArgument, "{at}: {again}");
    }
    // Tokens that were acknowledged and not used still work, once.
    for token in std::mem::take(&mut acknowledged.tokens).into_iter().take(2) {
        clients.attest(&token).await.unwrap_or_else(|status| panic!("{at}: token {token} is lost: {status}"));
        let again = clients.attest(&token).await.expect_err("a used token must not work again");
        assert_eq!(again.code(), Code::InvalidArgument, "{at}: {again}");
        acknowledged.used.insert(token);
    }
}
