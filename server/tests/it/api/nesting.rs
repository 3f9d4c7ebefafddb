//! The `spire` upstream authority against a server in this process, with an agent that says what the test wants.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bonafide_identity::{AuthorityKind, EntryId};
use bonafide_pki::{Signer as _, SystemRandom};
use bonafide_proto::workload as api;
use bonafide_proto::workload::spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer};
use bonafide_runtime::clock::SharedClock;
use bonafide_runtime::shutdown::Shutdown;
use bonafide_server::store::Entries as _;
use bonafide_server::upstream_authority::spire::{Spire, SpireConfig};
use bonafide_server::upstream_authority::{Address, UpstreamAuthority};
use bonafide_testkit::TestAuthority;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_stream::wrappers::{UnixListenerStream, WatchStream};
use tokio_stream::{Empty, StreamExt as _};
use tonic::{Request, Response, Status};

use super::harness::{Identity, TestServer, eventually, id, stored_entry, trust_domain};
use crate::authority::upstream::conforms;

/// An agent that hands out what the test puts into it.
struct FakeAgent {
    message: watch::Sender<Option<api::X509svidResponse>>,
}

impl FakeAgent {
    fn start(socket: &Path) -> watch::Sender<Option<api::X509svidResponse>> {
        let message = watch::Sender::new(None);
        let service = SpiffeWorkloadApiServer::new(Self { message: message.clone() });
        let listener = UnixListenerStream::new(UnixListener::bind(socket).unwrap());
        tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(listener));
        message
    }
}

type Nothing<T> = Empty<Result<T, Status>>;
type Boxed<T> = std::pin::Pin<Box<dyn tokio_stream::Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl SpiffeWorkloadApi for FakeAgent {
    type FetchX509SVIDStream = Boxed<api::X509svidResponse>;
    type FetchX509BundlesStream = Nothing<api::X509BundlesResponse>;
    type FetchJWTBundlesStream = Nothing<api::JwtBundlesResponse>;
    type FetchWITSVIDStream = Nothing<api::WitsvidResponse>;
    type FetchWITBundlesStream = Nothing<api::WitBundlesResponse>;

    async fn fetch_x509svid(
        &self,
        request: Request<api::X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        if request.metadata().get("workload.spiffe.io").is_none_or(|value| value != "true") {
            return Err(Status::invalid_argument("security header missing from request"));
        }
        if self.message.borrow().is_none() {
            return Err(Status::permission_denied("no identity issued"));
        }
        let messages = WatchStream::new(self.message.subscribe()).filter_map(|message| message.map(Ok));
        Ok(Response::new(Box::pin(messages)))
    }

    async fn fetch_x509_bundles(
        &self,
        _: Request<api::X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn fetch_jwtsvid(
        &self,
        _: Request<api::JwtsvidRequest>,
    ) -> Result<Response<api::JwtsvidResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn fetch_jwt_bundles(
        &self,
        _: Request<api::JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn validate_jwtsvid(
        &self,
        _: Request<api::ValidateJwtsvidRequest>,
    ) -> Result<Response<api::ValidateJwtsvidResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn fetch_witsvid(
        &self,
        _: Request<api::WitsvidRequest>,
    ) -> Result<Response<Self::FetchWITSVIDStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn fetch_wit_bundles(
        &self,
        _: Request<api::WitBundlesRequest>,
    ) -> Result<Response<Self::FetchWITBundlesStream>, Status> {
        Err(Status::unimplemented(""))
    }
}

fn message(server: &TestServer, identities: &[Identity]) -> api::X509svidResponse {
    let bundle = server.server.context().state.bundle(&trust_domain()).unwrap();
    let roots: Vec<u8> = bundle.x509_authorities.iter().flat_map(|root| root.certificate.clone()).collect();
    let svid = |identity: &Identity| api::X509svid {
        spiffe_id: identity.id.to_string(),
        x509_svid: identity.chain.concat().into(),
        x509_svid_key: identity.key.expose_pkcs8().to_vec().into(),
        bundle: roots.clone().into(),
        hint: String::new(),
    };
    api::X509svidResponse { svids: identities.iter().map(svid).collect(), ..api::X509svidResponse::default() }
}

struct Nested {
    server: TestServer,
    says: watch::Sender<Option<api::X509svidResponse>>,
    upstream: Arc<Spire>,
    shutdown: Shutdown,
}

impl Nested {
    async fn start(more: &str) -> Self {
        let server = TestServer::start_with(more).await;
        let socket = server.folder.path().join("agent.sock");
        let says = FakeAgent::start(&socket);
        let clock: SharedClock = server.server.context().clock.clone();
        let config = SpireConfig {
            trust_domain: trust_domain(),
            server_address: Address { host: "127.0.0.1".to_owned(), port: server.server.address().port() },
            workload_api_socket: socket,
            poll_interval: Duration::from_secs(5),
        };
        let upstream = Arc::new(Spire::new(config, clock, Arc::new(SystemRandom)));
        let shutdown = Shutdown::new();
        let (running, until) = (Arc::clone(&upstream), shutdown.clone());
        tokio::spawn(async move { running.run(until).await });
        Self { server, says, upstream, shutdown }
    }

    async fn downstream(&self, name: &str) {
        let mut entry = stored_entry(name, &id("/spire/agent/x"), &format!("/{name}"));
        entry.downstream = true;
        self.server.entry(entry).await;
    }

    async fn sign(&self) -> Result<(), String> {
        let csr = TestAuthority::request(&trust_domain().id()).0;
        let now = self.server.clock.now();
        let signed = self.upstream.mint_ca(&csr, Duration::from_secs(60), now).await;
        signed.map(drop).map_err(|error| error.to_string())
    }
}

impl Drop for Nested {
    fn drop(&mut self) {
        self.shutdown.trigger();
    }
}

#[tokio::test]
async fn the_driver_conforms() {
    let nested = Nested::start("").await;
    nested.downstream("nested").await;
    // The first is not downstream: the driver finds out.
    let identities = [nested.server.identity("/another"), nested.server.identity("/nested")];
    nested.says.send_replace(Some(message(&nested.server, &identities)));
    conforms(&*nested.upstream, nested.server.clock.now()).await;
    let key = bonafide_identity::JwtAuthority {
        key_id: "w".to_owned(),
        public_key: identities[0].key.public_key().spki_der().to_vec(),
        expires_at: None,
        tainted: false,
    };
    let keys = nested.upstream.publish_key(AuthorityKind::Wit, &key).await.unwrap().unwrap();
    assert!(keys.iter().any(|key| key.key_id == "w"));
}

#[tokio::test]
async fn an_upstream_without_token_keys_is_put_up_with() {
    let nested = Nested::start("[authority]\ndisable_jwt_svids = true\ndisable_wit_svids = true").await;
    nested.downstream("nested").await;
    nested.says.send_replace(Some(message(&nested.server, &[nested.server.identity("/nested")])));
    conforms(&*nested.upstream, nested.server.clock.now()).await;
}

#[tokio::test]
async fn what_is_wrong_is_said_and_put_right_without_a_restart() {
    let nested = Nested::start("").await;
    let refused = nested.sign().await.unwrap_err();
    assert!(refused.contains("no identity") && refused.contains("agent.sock"), "{refused}");

    // There is an identity, but the entry is not downstream; entries are judged at each call.
    nested.says.send_replace(Some(message(&nested.server, &[nested.server.identity("/nested")])));
    eventually("the identity", async || nested.sign().await.is_err_and(|error| error.contains("/nested")))
        .await;
    let refused = nested.sign().await.unwrap_err();
    assert!(refused.contains("must be downstream"), "{refused}");
    nested.downstream("nested").await;
    nested.sign().await.unwrap();
    let entry = EntryId::parse("nested").unwrap();
    nested.server.server.context().store.write(move |unit| unit.entry_delete(&entry)).await.unwrap();
    nested.sign().await.unwrap_err();

    // A renewed identity is used at once: the connection of the former one is given up.
    nested.downstream("renewed").await;
    nested.says.send_replace(Some(message(&nested.server, &[nested.server.identity("/renewed")])));
    eventually("the renewed identity", async || nested.sign().await.is_ok()).await;

    // An identity that has ended is not worth a connection.
    nested.server.clock.advance(Duration::from_secs(7200));
    let refused = nested.sign().await.unwrap_err();
    assert!(refused.contains("has expired"), "{refused}");
}

#[tokio::test]
async fn a_server_of_another_authority_is_not_believed() {
    let (nested, other) = (Nested::start("").await, TestServer::start().await);
    nested.downstream("nested").await;
    // The roots are those of another server.
    let mut message = message(&nested.server, &[nested.server.identity("/nested")]);
    let foreign = other.server.context().state.bundle(&trust_domain()).unwrap();
    message.svids[0].bundle = foreign.x509_authorities[0].certificate.clone().into();
    nested.says.send_replace(Some(message));
    eventually("a refusal", async || nested.sign().await.is_err_and(|error| error.contains("cannot reach")))
        .await;
    let bundle = nested.upstream.bundle(nested.server.clock.now()).await;
    let refused = bundle.unwrap_err().to_string();
    assert!(refused.contains("127.0.0.1") && !refused.contains("OtherError"), "{refused}");
}
