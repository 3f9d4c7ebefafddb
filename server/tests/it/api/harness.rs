//! A server in this process, and clients that reach it through its sockets.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bonafide_identity::{
    Bundle, Entry, EntryId, SelectorSet, SpiffeId, Timestamp, TrustDomain, X509Authority,
};
use bonafide_pki::tls::{PeerCheck, Svid, SvidHolder, TrustStore, client_config, server_name};
use bonafide_pki::{KeyType, PrivateKey, Signer, SystemRandom, TrustRoots, agent_csr};
use bonafide_proto::spire::server::agent::v1::agent_client::AgentClient;
use bonafide_proto::spire::server::agent::v1::attest_agent_request::{Params, Step};
use bonafide_proto::spire::server::agent::v1::attest_agent_response::Step as Answer;
use bonafide_proto::spire::server::agent::v1::{
    AgentX509svidParams, AttestAgentRequest, CreateJoinTokenRequest,
};
use bonafide_proto::spire::server::entry::v1::entry_client::EntryClient;
use bonafide_proto::spire::types;
use bonafide_runtime::clock::{Clock, SharedClock};
use bonafide_runtime::telemetry::{LogConfig, LogHandle, LogLevel, init_logging};
use bonafide_server::config::Config;
use bonafide_server::server::{Environment, RunningServer, Server};
use bonafide_server::store::{Bundles as _, Entries as _};
use bonafide_testkit::{ManualClock, TestAuthority};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

/// A running server and everything around it.
pub(super) struct TestServer {
    pub(super) server: RunningServer,
    pub(super) clock: ManualClock,
    pub(super) folder: TempDir,
}

#[derive(Debug)]
struct TestClock(ManualClock);

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        self.0.now()
    }
}

/// The process can have one log.
pub(super) fn log() -> LogHandle {
    static LOG: OnceLock<LogHandle> = OnceLock::new();
    let config = LogConfig { level: LogLevel::Fatal, ..LogConfig::default() };
    LOG.get_or_init(|| init_logging(config).expect("nothing else sets logging up")).clone()
}

pub(super) fn trust_domain() -> TrustDomain {
    TrustDomain::parse("example.org").unwrap()
}

pub(super) fn id(path: &str) -> SpiffeId {
    SpiffeId::from_parts(trust_domain(), path).unwrap()
}

pub(super) fn wire_id(path: &str) -> Option<types::Spiffeid> {
    Some(types::Spiffeid { trust_domain: "example.org".to_owned(), path: path.to_owned() })
}

pub(super) fn selector(text: &str) -> types::Selector {
    let (kind, value) = text.split_once(':').unwrap();
    types::Selector { r#type: kind.to_owned(), value: value.to_owned() }
}

/// The minimal configuration, with limits off; `more` is TOML that is added.
pub(super) fn configuration(folder: &std::path::Path, more: &str) -> Config {
    let folder_text = folder.display();
    let text = format!(
        r#"
        trust_domain = "example.org"
        data_dir = "{folder_text}"
        admin_ids = ["spiffe://example.org/static-admin"]
        [listen]
        address = "127.0.0.1:0"
        admin_socket = "{folder_text}/api.sock"
        {more}
        "#
    );
    let text = if text.contains("[ratelimit]") {
        text
    } else {
        format!("{text}\n[ratelimit]\nattestation = 0\nsigning = 0\n")
    };
    let text =
        if text.contains("[store]") { text } else { format!("{text}\n[store]\ndriver = \"memory\"\n") };
    let text = if text.contains("key_manager") { text } else { format!("{text}\n[key_manager.memory]\n") };
    Config::parse(&text, "test.toml".as_ref()).unwrap()
}

impl TestServer {
    pub(super) async fn start() -> Self {
        Self::start_with("").await
    }

    pub(super) async fn start_with(more: &str) -> Self {
        Self::start_in(TempDir::new().unwrap(), ManualClock::default(), more).await
    }

    pub(super) async fn start_with_admins(ids: &[&str]) -> Self {
        let (folder, clock) = (TempDir::new().unwrap(), ManualClock::default());
        let mut config = configuration(folder.path(), "");
        config.admin_ids = ids.iter().map(|id| SpiffeId::parse(id).unwrap()).collect();
        Self::start_from(folder, clock, config).await
    }

    pub(super) async fn start_in(folder: TempDir, clock: ManualClock, more: &str) -> Self {
        let config = configuration(folder.path(), more);
        Self::start_from(folder, clock, config).await
    }

    pub(super) async fn start_from(folder: TempDir, clock: ManualClock, config: Config) -> Self {
        let shared: SharedClock = Arc::new(TestClock(clock.clone()));
        let environment = Environment { clock: shared, random: Arc::new(SystemRandom), log: log() };
        let server = Server::start(config, environment).await.unwrap();
        Self { server, clock, folder }
    }

    pub(super) fn audit_file(&self) -> PathBuf {
        self.folder.path().join("audit.log")
    }

    /// The lines of the audit log so far.
    pub(super) async fn audit(&self) -> Vec<serde_json::Value> {
        self.server.context().audit.flush().await;
        let text = std::fs::read_to_string(self.audit_file()).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// A channel through the administration socket.
    pub(super) async fn local(&self) -> Channel {
        let path = self.server.admin_socket().to_owned();
        let dial = move |_: http::Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        };
        Endpoint::from_static("http://localhost")
            .connect_with_connector(tower::service_fn(dial))
            .await
            .unwrap()
    }

    fn trust(&self) -> TrustStore {
        let trust = TrustStore::empty();
        let bundle = self.server.context().state.bundle(&trust_domain()).unwrap();
        let roots = bundle.x509_authorities.iter().map(|authority| &authority.certificate[..]);
        trust.set_trust_domain(&trust_domain(), &Arc::new(TrustRoots::from_der(roots).unwrap()));
        trust
    }

    /// A channel over TLS, with this SVID or without one.
    pub(super) async fn remote(&self, svid: Option<&Identity>) -> Result<Channel, tonic::transport::Error> {
        self.remote_through(Endpoint::from_static("http://server"), svid).await
    }

    /// As [`Self::remote`], with HTTP/2 as `endpoint` says.
    pub(super) async fn remote_through(
        &self,
        endpoint: Endpoint,
        svid: Option<&Identity>,
    ) -> Result<Channel, tonic::transport::Error> {
        self.dial(endpoint, svid, String::new()).await
    }

    /// Through something that sends `header` before TLS begins.
    pub(super) async fn anonymous_behind(&self, header: &str) -> Result<Channel, tonic::transport::Error> {
        self.dial(Endpoint::from_static("http://server"), None, header.to_owned()).await
    }

    async fn dial(
        &self,
        endpoint: Endpoint,
        svid: Option<&Identity>,
        header: String,
    ) -> Result<Channel, tonic::transport::Error> {
        let tls = self.client_tls(svid);
        let address = self.server.address();
        let dial = move |_: http::Uri| {
            let (tls, header) = (tls.clone(), header.clone());
            async move {
                let mut tcp = TcpStream::connect(address).await?;
                tcp.write_all(header.as_bytes()).await?;
                let name: ServerName<'static> = server_name();
                TlsConnector::from(tls).connect(name, tcp).await.map(TokioIo::new)
            }
        };
        endpoint.connect_with_connector(tower::service_fn(dial)).await
    }

    /// A client's TLS, with this SVID or without one.
    pub(super) fn client_tls(&self, svid: Option<&Identity>) -> Arc<tokio_rustls::rustls::ClientConfig> {
        let holder =
            svid.map(|svid| SvidHolder::new(Svid::new(svid.chain.clone(), svid.key.clone()).unwrap()));
        let server_id = PeerCheck::ServerId(trust_domain().server_id());
        client_config(holder, self.trust(), server_id, Arc::new(self.clock.as_fn()))
    }

    pub(super) async fn anonymous(&self) -> Channel {
        self.remote(None).await.unwrap()
    }

    /// An SVID of this trust domain for any ID, without an entry.
    pub(super) fn identity(&self, path: &str) -> Identity {
        let key = PrivateKey::generate(KeyType::EcP256).unwrap();
        let context = self.server.context();
        let now = context.clock.now();
        let signed = context.issuing.issue_agent_x509(&id(path), key.public_key(), now).unwrap();
        Identity { id: id(path), chain: signed.chain, key: Arc::new(key) }
    }

    /// Writes an entry past the API.
    pub(super) async fn entry(&self, entry: Entry) -> Arc<Entry> {
        let context = self.server.context();
        context.store.write(move |unit| unit.entry_create(entry)).await.unwrap()
    }

    /// Writes a bundle of another trust domain past the API.
    pub(super) async fn federated(&self, name: &str) -> TestAuthority {
        let trust_domain = TrustDomain::parse(name).unwrap();
        let now = self.clock.now();
        let later = now.saturating_add(Duration::from_secs(86_400));
        let authority = TestAuthority::new(&trust_domain, now.saturating_sub(Duration::from_secs(60)), later);
        let mut bundle = Bundle::empty(trust_domain);
        bundle
            .x509_authorities
            .push(X509Authority { certificate: authority.certificate().to_vec(), tainted: false });
        self.server.context().store.write(move |unit| unit.bundle_put(bundle)).await.unwrap();
        authority
    }

    pub(super) async fn join_token(&self, ttl: i32) -> String {
        let request = CreateJoinTokenRequest { ttl, ..CreateJoinTokenRequest::default() };
        let response = AgentClient::new(self.local().await).create_join_token(request).await;
        response.unwrap().into_inner().value
    }

    /// Attests with a fresh join token.
    pub(super) async fn agent(&self) -> Identity {
        let token = self.join_token(600).await;
        attest(self.anonymous().await, "join_token", token.as_bytes(), |_| unreachable!()).await.unwrap()
    }
}

/// A key and its SVID.
#[derive(Clone)]
pub(super) struct Identity {
    pub(super) id: SpiffeId,
    pub(super) chain: Vec<Vec<u8>>,
    pub(super) key: Arc<PrivateKey>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({})", self.id)
    }
}

impl Identity {
    pub(super) fn path(&self) -> &str {
        self.id.path()
    }
}

/// One attestation; `answer` answers challenges.
pub(super) async fn attest(
    channel: Channel,
    kind: &str,
    payload: &[u8],
    answer: impl Fn(Vec<u8>) -> Vec<u8>,
) -> Result<Identity, Status> {
    let key = PrivateKey::generate(KeyType::EcP256).unwrap();
    let csr = agent_csr(&key, None).unwrap();
    let params = attest_params(kind, payload, &csr);
    let (requests, stream) = tokio::sync::mpsc::channel(4);
    requests.send(params).await.unwrap();
    let stream = tokio_stream::wrappers::ReceiverStream::new(stream);
    let mut responses = AgentClient::new(channel).attest_agent(stream).await?.into_inner();
    loop {
        let response =
            responses.message().await?.ok_or_else(|| Status::internal("ended without a result"))?;
        match response.step {
            Some(Answer::Challenge(challenge)) => {
                let step = Some(Step::ChallengeResponse(answer(challenge)));
                requests.send(AttestAgentRequest { step }).await.unwrap();
            }
            Some(Answer::Result(result)) => {
                let svid = result.svid.unwrap();
                assert!(responses.message().await?.is_none(), "the stream ends after the result");
                return Ok(Identity {
                    id: bonafide_proto::convert::spiffe_id_from_wire(svid.id.as_ref(), "id").unwrap(),
                    chain: svid.cert_chain.iter().map(|der| der.to_vec()).collect(),
                    key: Arc::new(key),
                });
            }
            None => return Err(Status::internal("a response without a step")),
        }
    }
}

pub(super) fn attest_params(kind: &str, payload: &[u8], csr: &[u8]) -> AttestAgentRequest {
    AttestAgentRequest {
        step: Some(Step::Params(Params {
            data: Some(types::AttestationData { r#type: kind.to_owned(), payload: payload.to_vec() }),
            params: Some(AgentX509svidParams { csr: csr.to_vec() }),
        })),
    }
}

/// An entry to write past the API.
pub(super) fn stored_entry(entry_id: &str, parent: &SpiffeId, path: &str) -> Entry {
    Entry {
        id: EntryId::parse(entry_id).unwrap(),
        spiffe_id: id(path),
        parent_id: parent.clone(),
        selectors: [bonafide_identity::Selector::parse("unix:uid:1000").unwrap()]
            .into_iter()
            .collect::<SelectorSet>(),
        x509_svid_ttl: 0,
        jwt_svid_ttl: 0,
        federates_with: Box::default(),
        admin: false,
        downstream: false,
        expires_at: None,
        dns_names: Box::default(),
        revision: 0,
        created_at: Timestamp::from_unix_seconds(1_767_225_600),
        store_svid: false,
        hint: "".into(),
        disable_x509_svid_prefetch: false,
        jwt_svid_include_jti: false,
    }
}

/// A valid entry as a client asks for it.
pub(super) fn wanted_entry(path: &str) -> types::Entry {
    types::Entry {
        spiffe_id: wire_id(path),
        parent_id: wire_id("/spire/agent/test/1"),
        selectors: vec![selector("unix:uid:1000")],
        ..types::Entry::default()
    }
}

pub(super) fn entries(channel: &Channel) -> EntryClient<Channel> {
    EntryClient::new(channel.clone())
}

pub(super) fn agents(channel: &Channel) -> AgentClient<Channel> {
    AgentClient::new(channel.clone())
}

#[track_caller]
pub(super) fn assert_refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, message: &str) {
    let status = result.expect_err("must be refused");
    assert_eq!((status.code(), status.message()), (code, message));
}

/// Waits until `holds`, at most ten seconds.
pub(super) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    for _ in 0..1000 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not within ten seconds: {what}");
}
