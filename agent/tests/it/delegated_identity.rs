//! The Delegated Identity API on the admin socket, with this process as the delegate.

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use async_trait::async_trait;
use bonafide_agent::agent::Agent;
use bonafide_agent::caller::PinnedCaller;
use bonafide_agent::workload_attestor::{AttestError, WorkloadAttestor, WorkloadAttestors};
use bonafide_identity::{Bundle, Selector, TrustDomain};
use bonafide_pki::{PrivateKey, Signer as _, inspect};
use bonafide_proto::spire::agent::delegatedidentity::v1::delegated_identity_client::DelegatedIdentityClient;
use bonafide_proto::spire::agent::delegatedidentity::v1::{
    FetchJwtsviDsRequest, SubscribeToJwtBundlesRequest, SubscribeToX509BundlesRequest,
    SubscribeToX509sviDsRequest, SubscribeToX509sviDsResponse,
};
use bonafide_proto::spire::types;
use bonafide_testkit::EntryBuilder;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::fake_server::FakeServer;
use crate::harness::{Home, channel, eventually, federating, my_entry, next, overrides};

const DELEGATE: &str = "admin.authorized_delegates = [\"spiffe://example.org/delegate\"]";

type Client = DelegatedIdentityClient<Channel>;

async fn client(home: &Home) -> Client {
    DelegatedIdentityClient::new(channel(home.admin_socket()).await)
}

fn selectors(of: &[&str]) -> Vec<types::Selector> {
    of.iter()
        .map(|text| {
            let (kind, value) = text.split_once(':').unwrap();
            types::Selector { r#type: kind.to_owned(), value: value.to_owned() }
        })
        .collect()
}

fn by_selectors(of: &[&str]) -> SubscribeToX509sviDsRequest {
    SubscribeToX509sviDsRequest { selectors: selectors(of), pid: 0 }
}

fn by_pid(pid: i32) -> SubscribeToX509sviDsRequest {
    SubscribeToX509sviDsRequest { selectors: Vec::new(), pid }
}

fn paths(message: &SubscribeToX509sviDsResponse) -> Vec<(String, String)> {
    let svids = message.x509_svids.iter().map(|svid| svid.x509_svid.as_ref().unwrap());
    svids.map(|svid| (svid.id.as_ref().unwrap().path.clone(), svid.hint.clone())).collect()
}

async fn first_error(client: &mut Client, request: SubscribeToX509sviDsRequest) -> (Code, String) {
    let error = match client.subscribe_to_x509svi_ds(request).await {
        Ok(stream) => next(&mut stream.into_inner()).await.unwrap_err(),
        Err(error) => error,
    };
    (error.code(), error.message().to_owned())
}

/// Says of a process which program it runs.
struct Program;

#[async_trait]
impl WorkloadAttestor for Program {
    fn kind(&self) -> &'static str {
        "program"
    }

    async fn attest(&self, caller: &PinnedCaller) -> Result<Vec<Selector>, AttestError> {
        let path = caller.executable_path()?;
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let name = if name == "sleep" || name == "coreutils" { "sleep" } else { "test" };
        Ok(vec![Selector::new("program", name)?])
    }
}

async fn start_with_programs(home: &Home, server: &FakeServer) -> Agent {
    let mut overrides = overrides();
    overrides.workload_attestors = Some(WorkloadAttestors::new(vec![Arc::new(Program)]));
    home.start_with(home.config(server, DELEGATE), overrides).await.unwrap()
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
async fn a_delegate_gets_what_the_selectors_are_entitled_to() {
    let server = FakeServer::start().await;
    let other = |id: &str, path: &str| EntryBuilder::new(id).spiffe_id(path).selectors(["k8s:ns:a"]);
    {
        let mut state = server.lock();
        state.add(my_entry("d", "/delegate").build());
        state.add(federating(
            other("e1", "/one").hint("same").build(),
            &["two.test", "one.test", "none.test"],
        ));
        // No rule about hints here.
        state.add(other("e2", "/two").hint("same").build());
        state.add(other("e3", "/admin").with(|entry| entry.admin = true).build());
        state.add(other("e4", "/downstream").with(|entry| entry.downstream = true).build());
        // Rights go with the ID, and the entry that gives them is another.
        state.add(other("e5", "/twin").build());
        let twin = EntryBuilder::new("e6").spiffe_id("/twin").selectors(["k8s:ns:c"]);
        state.add(twin.with(|entry| entry.downstream = true).build());
        // One that is never signed must not hold up the rest, as it is never handed out.
        state.refuse.insert("e3".into());
        for name in ["one.test", "two.test"] {
            let name = TrustDomain::parse(name).unwrap();
            state.federated.insert(name.clone(), Bundle::empty(name));
        }
    }
    let home = Home::new();
    let _agent = home.start(&server, DELEGATE).await;
    let mut client = client(&home).await;
    let mut stream =
        client.subscribe_to_x509svi_ds(by_selectors(&["k8s:ns:a", "k8s:x:y"])).await.unwrap().into_inner();
    let message = next(&mut stream).await.unwrap();
    let expected =
        [("/one", "same"), ("/two", "same")].map(|(path, hint)| (path.to_owned(), hint.to_owned()));
    assert_eq!(paths(&message), expected);
    assert_eq!(message.federates_with, ["spiffe://one.test", "spiffe://two.test"]);
    for svid in &message.x509_svids {
        let leaf = inspect(&svid.x509_svid.as_ref().unwrap().cert_chain[0]).unwrap();
        let key = PrivateKey::from_pkcs8_der(&svid.x509_svid_key).unwrap();
        assert_eq!(leaf.public_key.as_ref(), Some(key.public_key()));
        assert_eq!(svid.x509_svid.as_ref().unwrap().expires_at, leaf.not_after.unix_seconds());
    }

    let twin =
        client.fetch_jwtsvi_ds(tokens(&["x"], by_selectors(&["k8s:ns:a"]))).await.unwrap().into_inner();
    assert_eq!(twin.svids.len(), 2);
    server.lock().entries.remove("e6");
    let message = next(&mut stream).await.unwrap();
    assert_eq!(message.x509_svids.len(), 3, "without the other entry the ID has no rights");

    // An empty list is an answer, and what comes later is pushed.
    let mut nobody = client.subscribe_to_x509svi_ds(by_selectors(&["k8s:ns:b"])).await.unwrap().into_inner();
    assert_eq!(next(&mut nobody).await.unwrap(), SubscribeToX509sviDsResponse::default());
    server.lock().add(EntryBuilder::new("e7").spiffe_id("/five").selectors(["k8s:ns:b"]).build());
    assert_eq!(paths(&next(&mut nobody).await.unwrap()), [("/five".to_owned(), String::new())]);
}

#[tokio::test]
async fn who_may_ask_is_decided_by_entry_and_configuration_and_again_at_each_change() {
    let server = FakeServer::start().await;
    let home = Home::new();
    let _agent = home.start(&server, DELEGATE).await;
    let mut client = client(&home).await;
    let ask = || by_selectors(&["k8s:ns:a"]);
    let denied = |text: &str| (Code::PermissionDenied, text.to_owned());
    assert_eq!(first_error(&mut client, ask()).await, denied("no identity issued"));
    server.lock().add(my_entry("o", "/other").build());
    eventually("another identity is not enough", async || {
        let seen = first_error(&mut client, ask()).await;
        if seen == denied("caller not configured as an authorized delegate") { Ok(()) } else { Err(seen) }
    })
    .await;

    server.lock().add(my_entry("d", "/delegate").build());
    let mut streams = None;
    eventually("the delegate is let in", async || {
        let mut svids = match client.subscribe_to_x509svi_ds(ask()).await {
            Ok(stream) => stream.into_inner(),
            Err(error) => return Err(error.to_string()),
        };
        match svids.message().await {
            Ok(Some(_)) => {
                let x509 = client.subscribe_to_x509_bundles(SubscribeToX509BundlesRequest {}).await;
                let jwt = client.subscribe_to_jwt_bundles(SubscribeToJwtBundlesRequest {}).await;
                streams = Some((svids, x509.unwrap().into_inner(), jwt.unwrap().into_inner()));
                Ok(())
            }
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let (mut svids, mut x509, mut jwt) = streams.unwrap();
    next(&mut x509).await.unwrap();
    next(&mut jwt).await.unwrap();

    // Nothing about the subject changes; the delegate's own entry goes.
    server.lock().entries.remove("d");
    let ends = [
        next(&mut svids).await.map(drop).unwrap_err(),
        next(&mut x509).await.map(drop).unwrap_err(),
        next(&mut jwt).await.map(drop).unwrap_err(),
    ];
    for end in ends {
        assert_eq!(
            (end.code(), end.message()),
            (Code::PermissionDenied, "caller not configured as an authorized delegate")
        );
    }
}

#[tokio::test]
async fn without_delegates_nobody_may_ask() {
    let server = FakeServer::start().await;
    server.lock().add(my_entry("d", "/delegate").build());
    let home = Home::new();
    let _agent = home.start(&server, "").await;
    let mut client = client(&home).await;
    let refused: Vec<Status> = vec![
        client.subscribe_to_x509svi_ds(by_selectors(&["a:b"])).await.map(drop).unwrap_err(),
        client.subscribe_to_x509_bundles(SubscribeToX509BundlesRequest {}).await.map(drop).unwrap_err(),
        client.subscribe_to_jwt_bundles(SubscribeToJwtBundlesRequest {}).await.map(drop).unwrap_err(),
        client.fetch_jwtsvi_ds(tokens(&["x"], by_selectors(&["a:b"]))).await.map(drop).unwrap_err(),
    ];
    for status in refused {
        assert_eq!(status.code(), Code::PermissionDenied);
        assert_eq!(status.message(), "caller not configured as an authorized delegate");
    }
}

fn tokens(audience: &[&str], of: SubscribeToX509sviDsRequest) -> FetchJwtsviDsRequest {
    let audience = audience.iter().map(|audience| (*audience).to_owned()).collect();
    FetchJwtsviDsRequest { audience, selectors: of.selectors, pid: of.pid }
}

#[tokio::test]
async fn requests_name_a_workload_in_one_way() {
    let server = FakeServer::start().await;
    server.lock().add(my_entry("d", "/delegate").build());
    let home = Home::new();
    let _agent = home.start(&server, DELEGATE).await;
    let mut client = client(&home).await;
    let neither = "must provide either selectors or non-zero PID, but not both";
    let both = SubscribeToX509sviDsRequest { selectors: selectors(&["a:b"]), pid: 7 };
    for wrong in [by_pid(0), both] {
        let seen = first_error(&mut client, wrong.clone()).await;
        assert_eq!(seen, (Code::InvalidArgument, neither.to_owned()));
        let refused = client.fetch_jwtsvi_ds(tokens(&["x"], wrong)).await.unwrap_err();
        assert_eq!((refused.code(), refused.message()), (Code::InvalidArgument, neither));
    }
    let nameless = SubscribeToX509sviDsRequest { selectors: selectors(&[":b"]), pid: 0 };
    let (code, text) = first_error(&mut client, nameless).await;
    assert_eq!(code, Code::InvalidArgument);
    assert!(text.starts_with("could not parse provided selectors"), "{text}");
    for nobody in [-1, i32::MAX] {
        let seen = first_error(&mut client, by_pid(nobody)).await;
        assert_eq!(seen, (Code::Unavailable, "workload attestation failed".to_owned()), "{nobody}");
    }
    let no_audience = client.fetch_jwtsvi_ds(tokens(&[""], by_selectors(&["a:b"]))).await.unwrap_err();
    assert_eq!(
        (no_audience.code(), no_audience.message()),
        (Code::InvalidArgument, "audience must be specified")
    );
}

#[tokio::test]
async fn tokens_are_fetched_for_others() {
    let server = FakeServer::start().await;
    {
        let mut state = server.lock();
        state.add(my_entry("d", "/delegate").build());
        for (id, path) in [("e1", "/one"), ("e2", "/two"), ("e3", "/admin")] {
            let entry = EntryBuilder::new(id).spiffe_id(path).selectors(["k8s:ns:a"]).hint("h");
            state.add(entry.with(|entry| entry.admin = path == "/admin").build());
        }
        state.add(
            EntryBuilder::new("e4")
                .spiffe_id("/x")
                .selectors(["k8s:ns:b"])
                .with(|e| e.downstream = true)
                .build(),
        );
    }
    let home = Home::new();
    let _agent = home.start(&server, DELEGATE).await;
    let mut client = client(&home).await;
    let svids =
        client.fetch_jwtsvi_ds(tokens(&["x"], by_selectors(&["k8s:ns:a"]))).await.unwrap().into_inner().svids;
    let seen: Vec<_> =
        svids.iter().map(|svid| (svid.id.as_ref().unwrap().path.as_str(), svid.hint.as_str())).collect();
    assert_eq!(seen, [("/one", "h"), ("/two", "h")]);
    assert!(
        svids
            .iter()
            .all(|svid| svid.issued_at > 0 && svid.expires_at > svid.issued_at && !svid.token.is_empty())
    );
    let none = client.fetch_jwtsvi_ds(tokens(&["x"], by_selectors(&["k8s:ns:b"]))).await.unwrap_err();
    assert_eq!((none.code(), none.message()), (Code::PermissionDenied, "no identity issued"));
    server.lock().fail.insert("NewJWTSVID", vec![Status::unknown("broken")]);
    let broken = client.fetch_jwtsvi_ds(tokens(&["y"], by_selectors(&["k8s:ns:a"]))).await.unwrap_err();
    assert_eq!(broken.code(), Code::Unavailable);
}

#[tokio::test]
async fn all_bundles_of_the_agent_are_pushed() {
    let server = FakeServer::start().await;
    {
        let mut state = server.lock();
        // Keys for other tokens do not belong to those for JWT-SVIDs.
        state.support_wit();
        state.add(my_entry("d", "/delegate").build());
        // The delegate itself federates with nobody.
        let other = EntryBuilder::new("e1").spiffe_id("/one").selectors(["k8s:ns:a"]).build();
        state.add(federating(other, &["one.test"]));
        let name = TrustDomain::parse("one.test").unwrap();
        state.federated.insert(name.clone(), Bundle::empty(name));
    }
    let home = Home::new();
    let _agent = home.start(&server, DELEGATE).await;
    let mut client = client(&home).await;
    let mut x509 =
        client.subscribe_to_x509_bundles(SubscribeToX509BundlesRequest {}).await.unwrap().into_inner();
    let mut jwt =
        client.subscribe_to_jwt_bundles(SubscribeToJwtBundlesRequest {}).await.unwrap().into_inner();
    let first = next(&mut x509).await.unwrap().ca_certificates;
    let root = server.lock().bundle().x509_authorities[0].certificate.clone();
    let expected = [("spiffe://example.org", root.clone()), ("spiffe://one.test", Vec::new())];
    assert_eq!(first, BTreeMap::from(expected.map(|(name, roots)| (name.to_owned(), roots))));
    let keys = next(&mut jwt).await.unwrap().bundles;
    let keys: serde_json::Value = serde_json::from_slice(&keys["spiffe://example.org"]).unwrap();
    assert_eq!(keys["keys"].as_array().unwrap().len(), 1);

    // A change of the foreign bundle alone.
    {
        let mut state = server.lock();
        let name = TrustDomain::parse("one.test").unwrap();
        let certificate = root.clone();
        let authority = bonafide_identity::X509Authority { certificate, tainted: false };
        state.federated.get_mut(&name).unwrap().x509_authorities.push(authority);
    }
    assert_eq!(next(&mut x509).await.unwrap().ca_certificates["spiffe://one.test"], root);
    // Nobody names the trust domain any more, so its bundle goes.
    server.lock().entries.remove("e1");
    assert_eq!(next(&mut x509).await.unwrap().ca_certificates.len(), 1);
}

#[tokio::test]
async fn a_process_is_named_by_its_number_and_pinned() {
    let server = FakeServer::start().await;
    {
        let mut state = server.lock();
        state.add(EntryBuilder::new("d").spiffe_id("/delegate").selectors(["program:test"]).build());
        state.add(EntryBuilder::new("e1").spiffe_id("/sleeper").selectors(["program:sleep"]).build());
    }
    let home = Home::new();
    let _agent = start_with_programs(&home, &server).await;
    let mut client = client(&home).await;
    let sleeper = Sleeper::new();
    let pid = sleeper.pid();
    let mut stream = client.subscribe_to_x509svi_ds(by_pid(pid)).await.unwrap().into_inner();
    assert_eq!(paths(&next(&mut stream).await.unwrap()), [("/sleeper".to_owned(), String::new())]);
    let tokens_of = client.fetch_jwtsvi_ds(tokens(&["x"], by_pid(pid))).await.unwrap().into_inner().svids;
    assert_eq!(tokens_of.len(), 1);

    // It exits; the next change, which a new owner of the number would profit from, is not sent.
    drop(sleeper);
    server.lock().add(EntryBuilder::new("e2").spiffe_id("/more").selectors(["program:sleep"]).build());
    let end = next(&mut stream).await.unwrap_err();
    assert_eq!((end.code(), end.message()), (Code::Unavailable, "workload attestation failed"));
    assert_eq!(first_error(&mut client, by_pid(pid)).await.0, Code::Unavailable);
}

#[tokio::test]
async fn the_workload_socket_does_not_delegate() {
    let server = FakeServer::start().await;
    server.lock().add(my_entry("d", "/delegate").build());
    let home = Home::new();
    let _agent = home.start(&server, DELEGATE).await;
    let mut client = DelegatedIdentityClient::new(channel(home.socket()).await);
    let refused = client.subscribe_to_x509_bundles(SubscribeToX509BundlesRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
}
