//! The SPIFFE Broker API, called with the client of another project.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bonafide_identity::{Bundle, SpiffeId, TrustDomain, X509Authority};
use bonafide_pki::{KeyType, PrivateKey, Signer as _, TrustRoots, tls};
use bonafide_proto::convert::error_info;
use bonafide_runtime::BoxError;
use bonafide_runtime::clock::{Clock as _, SystemClock};
use bonafide_testkit::{EntryBuilder, TestAuthority, trust_domain};
use hyper_util::rt::TokioIo;
use spiffe::broker_api::SecurityHeader;
use spiffe::broker_api::pb::spiffe::broker::api_client::ApiClient;
use spiffe::broker_api::pb::spiffe::broker::{
    FetchJwtsvidRequest, KubernetesObjectReference, SubscribeToJwtBundlesRequest,
    SubscribeToX509BundlesRequest, SubscribeToX509svidRequest, WorkloadPidReference, WorkloadReference,
};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tonic::codegen::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use crate::fake_server::FakeServer;
use crate::harness::{Home, eventually, federating, my_entry, my_selector, next};

type Client = ApiClient<InterceptedService<Channel, SecurityHeader>>;

/// Who calls: a chain with its key.
type Caller = (Vec<Vec<u8>>, PrivateKey);

/// An identity of the trust domain.
fn identity(server: &FakeServer, path: &str) -> Caller {
    let key = PrivateKey::generate(KeyType::EcP256).unwrap();
    let id = SpiffeId::parse(&format!("spiffe://example.org{path}")).unwrap();
    let leaf = server.lock().sign_x509(&id, key.public_key(), Duration::from_secs(600));
    (vec![leaf], key)
}

fn client_config(server: &FakeServer, caller: Option<Caller>) -> Arc<tokio_rustls::rustls::ClientConfig> {
    let root = server.lock().bundle().x509_authorities[0].certificate.clone();
    let trust = tls::TrustStore::empty();
    trust.set_trust_domain(&trust_domain(), &Arc::new(TrustRoots::from_der([root.as_slice()]).unwrap()));
    let holder =
        caller.map(|(chain, key)| tls::SvidHolder::new(tls::Svid::new(chain, Arc::new(key)).unwrap()));
    // The agent shows its own SVID.
    let agent = SpiffeId::parse("spiffe://example.org/spire/agent/join_token/token").unwrap();
    tls::client_config(holder, trust, tls::PeerCheck::ServerId(agent), Arc::new(|| SystemClock.now()))
}

#[derive(Clone)]
enum Place {
    Unix(std::path::PathBuf),
    Tcp(SocketAddr),
}

async fn channel(
    server: &FakeServer,
    place: Place,
    caller: Option<Caller>,
) -> Result<Channel, tonic::transport::Error> {
    let config = client_config(server, caller);
    let connect = tower::service_fn(move |_| {
        let (place, connector) = (place.clone(), TlsConnector::from(Arc::clone(&config)));
        async move {
            Ok::<_, BoxError>(match place {
                Place::Unix(path) => TokioIo::new(Box::new(
                    connector.connect(tls::server_name(), UnixStream::connect(path).await?).await?,
                ) as Box<dyn Stream>),
                Place::Tcp(address) => TokioIo::new(Box::new(
                    connector.connect(tls::server_name(), TcpStream::connect(address).await?).await?,
                ) as Box<dyn Stream>),
            })
        }
    });
    Endpoint::from_static("http://localhost").connect_with_connector(connect).await
}

trait Stream: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send> Stream for T {}

struct World {
    server: FakeServer,
    home: Home,
    tcp: SocketAddr,
    agent: bonafide_agent::agent::Agent,
}

impl World {
    async fn new(types: &str) -> Self {
        Self::with(types, |_| ()).await
    }

    async fn with(types: &str, prepare: impl FnOnce(&FakeServer)) -> Self {
        let server = FakeServer::start().await;
        prepare(&server);
        let home = Home::new();
        // A port that is free now.
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let extra = format!(
            r#"
            broker.socket = "{}"
            broker.address = "{tcp}"
            [[broker.brokers]]
            id = "spiffe://example.org/broker"
            allowed_reference_types = [{types}]
            [[broker.brokers]]
            id = "spiffe://one.test/broker"
            allowed_reference_types = [{types}]
            "#,
            home.path("broker/broker.sock").display(),
        );
        let agent = home.start(&server, &extra).await;
        Self { server, home, tcp, agent }
    }

    fn unix(&self) -> Place {
        Place::Unix(self.home.path("broker/broker.sock"))
    }

    async fn client(&self, place: Place) -> Client {
        let channel = channel(&self.server, place, Some(identity(&self.server, "/broker"))).await.unwrap();
        ApiClient::with_interceptor(channel, SecurityHeader::new())
    }
}

const PID_TYPE: &str = "{ type_url = \"type.googleapis.com/spiffe.broker.WorkloadPIDReference\" }";

fn by_pid(pid: i32) -> Option<WorkloadReference> {
    Some(WorkloadPidReference { pid }.into())
}

fn myself() -> Option<WorkloadReference> {
    by_pid(i32::try_from(std::process::id()).unwrap())
}

fn tokens(audience: &[&str], reference: Option<WorkloadReference>, spiffe_id: &str) -> FetchJwtsvidRequest {
    let audience = audience.iter().map(|audience| (*audience).to_owned()).collect();
    FetchJwtsvidRequest { reference, audience, spiffe_id: spiffe_id.to_owned() }
}

fn reason(status: &Status) -> (Code, Option<String>) {
    let info = error_info(status);
    (status.code(), info.map(|(reason, domain)| format!("{domain} {reason}")))
}

struct Sleeper(Child);

impl Sleeper {
    fn new() -> Self {
        Self(Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap())
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.0.id()).unwrap()
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn a_broker_gets_what_the_named_workload_is_entitled_to() {
    let world = World::with(PID_TYPE, |server| {
        let mut state = server.lock();
        state.add(federating(my_entry("e1", "/one").hint("same").build(), &["one.test"]));
        let later = bonafide_identity::Timestamp::from_unix_seconds(1_900_000_000);
        state.add(my_entry("e2", "/two").hint("same").with(|entry| entry.created_at = later).build());
        state.add(my_entry("e3", "/admin").with(|entry| entry.admin = true).build());
        state.add(my_entry("e5", "/twin").build());
        let twin = EntryBuilder::new("e6").spiffe_id("/twin").selectors(["a:b"]);
        state.add(twin.with(|entry| entry.admin = true).build());
        state.add(my_entry("e4", "/downstream").with(|entry| entry.downstream = true).build());
        state.add(my_entry("e5", "/three").build());
        let name = TrustDomain::parse("one.test").unwrap();
        state.federated.insert(name.clone(), Bundle::empty(name));
    })
    .await;
    let mut client = world.client(world.unix()).await;
    let request = SubscribeToX509svidRequest { reference: myself() };
    let mut stream = client.subscribe_to_x509svid(request).await.unwrap().into_inner();
    let message = next(&mut stream).await.unwrap();
    let seen: Vec<_> =
        message.svids.iter().map(|svid| (svid.spiffe_id.as_str(), svid.hint.as_str())).collect();
    assert_eq!(seen, [("spiffe://example.org/one", "same"), ("spiffe://example.org/three", "")]);
    assert_eq!(message.federated_bundles.keys().collect::<Vec<_>>(), ["spiffe://one.test"]);
    let root = world.server.lock().bundle().x509_authorities[0].certificate.clone();
    for svid in &message.svids {
        assert_eq!(svid.bundle, root);
        let leaf = bonafide_pki::inspect(&crate::harness::certificates(&svid.x509_svid)[0]).unwrap();
        assert_eq!(leaf.spiffe_id.unwrap().to_string(), svid.spiffe_id);
        let key = PrivateKey::from_pkcs8_der(&svid.x509_svid_key).unwrap();
        assert_eq!(leaf.public_key.as_ref(), Some(key.public_key()));
    }

    // The same entries are meant by tokens, and a SPIFFE ID in the request counts.
    let all = client.fetch_jwtsvid(tokens(&["x"], myself(), "")).await.unwrap().into_inner().svids;
    let ids: Vec<_> = all.iter().map(|svid| svid.spiffe_id.as_str()).collect();
    assert_eq!(ids, ["spiffe://example.org/one", "spiffe://example.org/three"]);
    let one = client.fetch_jwtsvid(tokens(&["x"], myself(), ids[1])).await.unwrap().into_inner().svids;
    assert_eq!(one, all[1..]);

    // All bundles, although the workload is not asked for them.
    let request = SubscribeToX509BundlesRequest { reference: myself() };
    let mut bundles = client.subscribe_to_x509_bundles(request).await.unwrap().into_inner();
    let names: BTreeSet<String> = next(&mut bundles).await.unwrap().bundles.into_keys().collect();
    assert_eq!(names, ["spiffe://example.org", "spiffe://one.test"].map(str::to_owned).into());
    let request = SubscribeToJwtBundlesRequest { reference: myself() };
    let mut bundles = client.subscribe_to_jwt_bundles(request).await.unwrap().into_inner();
    assert_eq!(next(&mut bundles).await.unwrap().bundles.len(), 2);

    // Without any identity the message is empty, and the next comes when there is one.
    world.server.lock().entries.clear();
    loop {
        let message = next(&mut stream).await.unwrap();
        if message.svids.is_empty() {
            break;
        }
    }
    world.server.lock().add(my_entry("e9", "/nine").build());
    assert_eq!(next(&mut stream).await.unwrap().svids[0].spiffe_id, "spiffe://example.org/nine");
    drop(world.agent);
}

#[tokio::test]
async fn only_configured_brokers_get_through_the_handshake() {
    let world = World::new(PID_TYPE).await;
    let request = || SubscribeToX509svidRequest { reference: myself() };
    for place in [world.unix(), Place::Tcp(world.tcp)] {
        for caller in
            [None, Some(identity(&world.server, "/other")), Some(identity(&world.server, "/broker/x"))]
        {
            // With TLS 1.3 a client learns only afterwards that it was refused.
            let refused = match channel(&world.server, place.clone(), caller).await {
                Err(_) => continue,
                Ok(channel) => {
                    let mut client = ApiClient::with_interceptor(channel, SecurityHeader::new());
                    client.subscribe_to_x509svid(request()).await.map(drop).unwrap_err()
                }
            };
            assert!(matches!(refused.code(), Code::Unavailable | Code::Unknown), "{refused:?}");
            assert_ne!(refused.message(), "there is no such workload on this node");
        }
    }
}

#[tokio::test]
async fn a_broker_may_be_of_a_trust_domain_that_the_agent_has_a_bundle_of() {
    let at = |seconds| bonafide_identity::Timestamp::from_unix_seconds(seconds);
    let name = TrustDomain::parse("one.test").unwrap();
    let authority = TestAuthority::new(&name, at(1_700_000_000), at(2_000_000_000));
    let issued = authority.issue(&SpiffeId::parse("spiffe://one.test/broker").unwrap());
    let caller = || (issued.chain.clone(), PrivateKey::from_pkcs8_der(&issued.pkcs8).unwrap());
    let world = World::with("{ type_url = \"*\" }", |server| {
        let mut state = server.lock();
        state.add(federating(my_entry("e1", "/one").build(), &["one.test"]));
        let mut bundle = Bundle::empty(name.clone());
        let certificate = authority.root().to_vec();
        bundle.x509_authorities.push(X509Authority { certificate, tainted: false });
        state.federated.insert(name.clone(), bundle);
    })
    .await;
    let channel = channel(&world.server, world.unix(), Some(caller())).await.unwrap();
    let mut client = ApiClient::with_interceptor(channel, SecurityHeader::new());
    let request = SubscribeToX509svidRequest { reference: myself() };
    let mut stream = client.subscribe_to_x509svid(request.clone()).await.unwrap().into_inner();
    next(&mut stream).await.unwrap();

    // The authority goes; the connection stays, and is worth nothing.
    world.server.lock().federated.get_mut(&name).unwrap().x509_authorities.clear();
    eventually("the broker is not recognised any more", async || {
        match client.subscribe_to_x509svid(request.clone()).await {
            Err(status) if status.code() == Code::Unauthenticated => Ok(()),
            other => Err(format!("{:?}", other.map(drop))),
        }
    })
    .await;
    world.server.lock().add(my_entry("e2", "/two").build());
    let end = loop {
        if let Err(end) = next(&mut stream).await {
            break end;
        }
    };
    assert_eq!(end.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn references_are_refused_with_the_reasons_of_the_standard() {
    let world = World::with(&format!("{PID_TYPE}, {{ type_url = \"type.googleapis.com/spiffe.broker.KubernetesObjectReference\", allow_over_tcp = true }}"), |server| {
        server.lock().add(EntryBuilder::new("e1").spiffe_id("/x").selectors(["k8s:ns:a"]).build());
    })
    .await;
    let object: WorkloadReference = KubernetesObjectReference::default().into();
    let gone = {
        let sleeper = Sleeper::new();
        sleeper.pid()
    };
    let invalid = || (Code::InvalidArgument, Some("spiffe.io WORKLOAD_REFERENCE_INVALID".to_owned()));
    let missing = || (Code::NotFound, Some("spiffe.io WORKLOAD_NOT_FOUND".to_owned()));
    let mut unix = world.client(world.unix()).await;
    let mut tcp = world.client(Place::Tcp(world.tcp)).await;
    for (reference, on_unix, on_tcp) in [
        (None, invalid(), invalid()),
        (Some(WorkloadReference { reference: None }), invalid(), invalid()),
        (by_pid(0), invalid(), (Code::PermissionDenied, None)),
        (by_pid(gone), missing(), (Code::PermissionDenied, None)),
        (Some(object), (Code::Unimplemented, None), (Code::Unimplemented, None)),
    ] {
        for (client, expected) in [(&mut unix, on_unix), (&mut tcp, on_tcp)] {
            let request = SubscribeToX509svidRequest { reference: reference.clone() };
            let mut seen = vec![client.subscribe_to_x509svid(request).await.map(drop).unwrap_err()];
            let request = SubscribeToX509BundlesRequest { reference: reference.clone() };
            seen.push(client.subscribe_to_x509_bundles(request).await.map(drop).unwrap_err());
            let request = SubscribeToJwtBundlesRequest { reference: reference.clone() };
            seen.push(client.subscribe_to_jwt_bundles(request).await.map(drop).unwrap_err());
            seen.push(
                client.fetch_jwtsvid(tokens(&["x"], reference.clone(), "")).await.map(drop).unwrap_err(),
            );
            for status in seen {
                assert_eq!(reason(&status), expected, "{reference:?}: {status:?}");
            }
        }
    }
    // No audience; a malformed ID; nobody.
    let refused = unix.fetch_jwtsvid(tokens(&[], myself(), "")).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::InvalidArgument, "audience must be specified"));
    let refused = unix.fetch_jwtsvid(tokens(&["x"], myself(), "x")).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let refused = unix.fetch_jwtsvid(tokens(&["x"], myself(), "")).await.unwrap_err();
    let entitled = (Code::PermissionDenied, Some("spiffe.io WORKLOAD_NOT_ENTITLED".to_owned()));
    assert_eq!((reason(&refused), refused.message()), (entitled, "no identity issued"));
}

#[tokio::test]
async fn over_tcp_only_what_is_allowed_there() {
    let type_url = "type.googleapis.com/spiffe.broker.WorkloadPIDReference";
    let world = World::with(&format!("{{ type_url = \"{type_url}\", allow_over_tcp = true }}"), |server| {
        server.lock().add(my_entry("e1", "/one").build());
    })
    .await;
    let mut client = world.client(Place::Tcp(world.tcp)).await;
    let request = SubscribeToX509svidRequest { reference: myself() };
    let mut stream = client.subscribe_to_x509svid(request).await.unwrap().into_inner();
    assert_eq!(next(&mut stream).await.unwrap().svids.len(), 1);
}

#[tokio::test]
async fn every_method_wants_the_header_and_reflection_the_unix_socket() {
    use tokio_stream::StreamExt as _;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

    let world = World::new(PID_TYPE).await;
    let channel =
        async |place| channel(&world.server, place, Some(identity(&world.server, "/broker"))).await.unwrap();
    for value in [None, Some("false"), Some("TRUE")] {
        let mut client = ApiClient::new(channel(world.unix()).await);
        let mut request = Request::new(SubscribeToX509svidRequest { reference: myself() });
        if let Some(value) = value {
            request.metadata_mut().insert("broker.spiffe.io", value.parse().unwrap());
        }
        let refused = client.subscribe_to_x509svid(request).await.unwrap_err();
        let expected = (Code::InvalidArgument, "security header missing from request");
        assert_eq!((refused.code(), refused.message()), expected);
    }
    let ask = || ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let list = async |place: Place, header: bool| -> Result<ServerReflectionResponse, Status> {
        let mut client = ServerReflectionClient::new(channel(place).await);
        let mut request = Request::new(tokio_stream::once(ask()));
        if header {
            request.metadata_mut().insert("broker.spiffe.io", "true".parse().unwrap());
        }
        client.server_reflection_info(request).await?.into_inner().next().await.unwrap()
    };
    let Some(MessageResponse::ListServicesResponse(services)) =
        list(world.unix(), true).await.unwrap().message_response
    else {
        panic!("a list");
    };
    assert!(services.service.iter().any(|service| service.name == "spiffe.broker.API"), "{services:?}");
    assert!(!services.service.iter().any(|service| service.name == "SpiffeWorkloadAPI"), "{services:?}");
    assert_eq!(list(world.unix(), false).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(list(Place::Tcp(world.tcp), true).await.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test]
async fn the_stream_of_a_process_ends_with_it() {
    let world = World::with(PID_TYPE, |server| {
        server.lock().add(my_entry("e1", "/one").build());
    })
    .await;
    let mut client = world.client(world.unix()).await;
    let sleeper = Sleeper::new();
    let request = SubscribeToX509svidRequest { reference: by_pid(sleeper.pid()) };
    let mut stream = client.subscribe_to_x509svid(request).await.unwrap().into_inner();
    assert_eq!(next(&mut stream).await.unwrap().svids.len(), 1, "{}", my_selector());
    drop(sleeper);
    world.server.lock().add(my_entry("e2", "/two").build());
    let end = next(&mut stream).await.unwrap_err();
    assert_eq!(reason(&end), (Code::NotFound, Some("spiffe.io WORKLOAD_NOT_FOUND".to_owned())));
}
