//! The Workload API over its real socket.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bonafide_agent::caller::PinnedCaller;
use bonafide_agent::workload_attestor::{AttestError, WorkloadAttestor, WorkloadAttestors};
use bonafide_identity::{Bundle, Selector, TrustDomain, X509Authority};
use bonafide_pki::{
    JwtKeys, PrivateKey, Signer as _, TrustRoots, inspect, validate_jwt_svid, validate_wit_svid,
    verify_svid_chain,
};
use bonafide_proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use bonafide_proto::workload::{
    JwtBundlesRequest, JwtsvidRequest, ValidateJwtsvidRequest, WitBundlesRequest, WitsvidRequest,
    X509BundlesRequest, X509svidRequest, X509svidResponse,
};
use bonafide_runtime::clock::{Clock as _, SystemClock};
use bonafide_testkit::{TestAuthority, trust_domain};
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Status};

use crate::fake_server::FakeServer;
use crate::harness::{
    Home, certificates, channel, eventually, federating, my_entry, next, overrides, workload, workload_at,
};

const JWT: fn(&[&str]) -> JwtsvidRequest = |audience| JwtsvidRequest {
    audience: audience.iter().map(|audience| (*audience).to_owned()).collect(),
    spiffe_id: String::new(),
};

fn foreign_bundle(name: &str) -> Bundle {
    let at = |seconds| bonafide_identity::Timestamp::from_unix_seconds(seconds);
    let name = TrustDomain::parse(name).unwrap();
    let root = TestAuthority::new(&name, at(1_700_000_000), at(2_000_000_000)).root().to_vec();
    let mut bundle = Bundle::empty(name);
    bundle.x509_authorities.push(X509Authority { certificate: root, tainted: false });
    bundle
}

/// The serial of the first SVID in a message.
fn serial(message: &X509svidResponse) -> String {
    leaf(message).serial.to_string()
}

fn leaf(message: &X509svidResponse) -> bonafide_pki::CertificateInfo {
    inspect(&certificates(&message.svids[0].x509_svid)[0]).unwrap()
}

#[tokio::test]
async fn the_first_message_holds_everything() {
    let server = FakeServer::start().await;
    {
        let mut state = server.lock();
        state.add(my_entry("e3", "/three").hint("same").with(|entry| entry.revision = 4).build());
        state.add(federating(my_entry("e1", "/one").hint("first").build(), &["one.test", "missing.test"]));
        // Made earlier than e3, so the hint is its.
        let earlier = bonafide_identity::Timestamp::from_unix_seconds(1_000_000_000);
        state.add(my_entry("e4", "/four").hint("same").with(|entry| entry.created_at = earlier).build());
        state.add(my_entry("e2", "/two").selectors(["unix:uid:4000000000"]).build());
        state.add(my_entry("e5", "/stored").with(|entry| entry.store_svid = true).build());
        for name in ["one.test", "two.test"] {
            state.federated.insert(TrustDomain::parse(name).unwrap(), foreign_bundle(name));
        }
    }
    let home = Home::new();
    let _agent = home.start(&server, "").await;
    let mut stream = workload(&home).await.fetch_x509svid(X509svidRequest {}).await.unwrap().into_inner();
    let message = next(&mut stream).await.unwrap();

    let seen: Vec<(&str, &str)> =
        message.svids.iter().map(|svid| (svid.spiffe_id.as_str(), svid.hint.as_str())).collect();
    assert_eq!(seen, [("spiffe://example.org/one", "first"), ("spiffe://example.org/four", "same")]);
    assert!(message.crl.is_empty());
    let root = server.lock().bundle().x509_authorities[0].certificate.clone();
    let roots = Arc::new(TrustRoots::from_der([root.as_slice()]).unwrap());
    for svid in &message.svids {
        assert_eq!(svid.bundle, root);
        let chain = certificates(&svid.x509_svid);
        let id = verify_svid_chain(&chain, &|_| Some(Arc::clone(&roots)), SystemClock.now()).unwrap();
        assert_eq!(id.to_string(), svid.spiffe_id);
        let key = PrivateKey::from_pkcs8_der(&svid.x509_svid_key).unwrap();
        assert_eq!(inspect(&chain[0]).unwrap().public_key.as_ref(), Some(key.public_key()));
    }
    let names: Vec<&String> = message.federated_bundles.keys().collect();
    assert_eq!(names, ["spiffe://one.test"]);
}

#[tokio::test]
async fn a_stream_sees_rotations_without_reconnecting() {
    let server = FakeServer::start().await;
    {
        let mut state = server.lock();
        state.x509_ttl = Duration::from_secs(2);
        state.add(my_entry("e1", "/a").build());
    }
    let home = Home::new();
    let _agent = home.start(&server, "").await;
    let mut stream = workload(&home).await.fetch_x509svid(X509svidRequest {}).await.unwrap().into_inner();
    let mut serials = BTreeSet::new();
    for _ in 0..4 {
        let message = next(&mut stream).await.unwrap();
        let now = SystemClock.now();
        assert!(leaf(&message).not_after > now, "an SVID that has ended was sent");
        assert!(serials.insert(serial(&message)), "a rotation brings another certificate");
    }
    // And the authority: prepared, then used.
    server.lock().rotate_x509();
    let roots = server.lock().bundle().x509_authorities;
    let new = inspect(&roots[1].certificate).unwrap().ski;
    loop {
        let message = next(&mut stream).await.unwrap();
        if leaf(&message).aki == new {
            assert_eq!(
                message.svids[0].bundle.len(),
                roots[0].certificate.len() + roots[1].certificate.len()
            );
            return;
        }
    }
}

#[tokio::test]
async fn changes_of_entries_are_pushed() {
    let server = FakeServer::start().await;
    server.lock().add(my_entry("e1", "/a").build());
    let home = Home::new();
    let _agent = home.start(&server, "").await;
    let mut stream = workload(&home).await.fetch_x509svid(X509svidRequest {}).await.unwrap().into_inner();
    let paths = |message: X509svidResponse| -> Vec<String> {
        message.svids.into_iter().map(|svid| svid.spiffe_id.replace("spiffe://example.org", "")).collect()
    };
    let first = next(&mut stream).await.unwrap();
    let before = serial(&first);
    assert_eq!(paths(first), ["/a"]);

    server.lock().add(my_entry("e0", "/b").build());
    assert_eq!(paths(next(&mut stream).await.unwrap()), ["/b", "/a"]);

    // A changed entry gets a new SVID; what is sent is never the old one under the new name.
    server.lock().add(my_entry("e1", "/c").with(|entry| entry.revision = 1).build());
    server.lock().entries.remove("e0");
    loop {
        let message = next(&mut stream).await.unwrap();
        for svid in &message.svids {
            let id = inspect(&certificates(&svid.x509_svid)[0]).unwrap().spiffe_id.unwrap();
            assert_eq!(id.to_string(), svid.spiffe_id);
        }
        if message.svids.len() == 1 && message.svids[0].spiffe_id.ends_with("/c") {
            assert_ne!(serial(&message), before);
            break;
        }
    }

    server.lock().entries.clear();
    let end = next(&mut stream).await.unwrap_err();
    assert_eq!((end.code(), end.message()), (Code::PermissionDenied, "no identity issued"));
}

#[tokio::test]
async fn who_has_no_identity_is_told_so_by_every_method() {
    let server = FakeServer::start().await;
    server.lock().support_wit();
    server.lock().add(my_entry("e1", "/a").selectors(["unix:uid:4000000000"]).build());
    let home = Home::new();
    let _agent = home.start(&server, "").await;
    let mut client = workload(&home).await;
    let mut ends = BTreeMap::new();
    let mut x509 = client.fetch_x509svid(X509svidRequest {}).await.unwrap().into_inner();
    ends.insert("FetchX509SVID", next(&mut x509).await.unwrap_err());
    let mut bundles = client.fetch_x509_bundles(X509BundlesRequest {}).await.unwrap().into_inner();
    ends.insert("FetchX509Bundles", next(&mut bundles).await.unwrap_err());
    let mut bundles = client.fetch_jwt_bundles(JwtBundlesRequest {}).await.unwrap().into_inner();
    ends.insert("FetchJWTBundles", next(&mut bundles).await.unwrap_err());
    let mut wit = client.fetch_witsvid(WitsvidRequest::default()).await.unwrap().into_inner();
    ends.insert("FetchWITSVID", next(&mut wit).await.unwrap_err());
    let mut bundles = client.fetch_wit_bundles(WitBundlesRequest {}).await.unwrap().into_inner();
    ends.insert("FetchWITBundles", next(&mut bundles).await.unwrap_err());
    ends.insert("FetchJWTSVID", client.fetch_jwtsvid(JWT(&["x"])).await.unwrap_err());
    for (method, end) in ends {
        assert_eq!((end.code(), end.message()), (Code::PermissionDenied, "no identity issued"), "{method}");
    }
}

#[tokio::test]
async fn a_workload_api_that_is_switched_off_is_not_there() {
    let server = FakeServer::start().await;
    server.lock().add(my_entry("e1", "/a").build());
    let home = Home::new();
    let _agent = home.start(&server, "workload_api.enabled = false").await;
    let mut client = workload(&home).await;
    let refused = client.fetch_x509svid(X509svidRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
    assert_eq!(client.fetch_jwtsvid(JWT(&["x"])).await.unwrap_err().code(), Code::Unimplemented);
    let health = bonafide_proto::health::v1::HealthCheckRequest { service: String::new() };
    let channel = channel(home.socket()).await;
    let mut health_client = bonafide_proto::health::v1::health_client::HealthClient::new(channel);
    assert_eq!(health_client.check(health).await.unwrap().into_inner().status, 1, "it is serving");
}

#[tokio::test]
async fn requests_that_are_wrong_in_themselves_are_invalid_arguments() {
    let server = FakeServer::start().await;
    server.lock().add(my_entry("e1", "/a").build());
    let home = Home::new();
    let _agent = home.start(&server, "").await;

    // The header: absent, wrong, doubled, in another case.
    let mut bare = SpiffeWorkloadApiClient::new(channel(home.socket()).await);
    let header = |values: &[&str]| {
        let mut metadata = MetadataMap::new();
        for value in values {
            metadata.append("workload.spiffe.io", value.parse().unwrap());
        }
        metadata
    };
    for values in [&[][..], &["false"], &["True"], &[""], &["true", "true"], &["true", "false"]] {
        let request = |message| Request::from_parts(header(values), tonic::Extensions::default(), message);
        let mut refusals: Vec<Status> = Vec::new();
        refusals.push(bare.fetch_x509svid(request(X509svidRequest {})).await.unwrap_err());
        let with = |_: ()| header(values);
        macro_rules! refused {
            ($($method:ident($message:expr)),* $(,)?) => {
                $(refusals.push(
                    bare.$method(Request::from_parts(with(()), tonic::Extensions::default(), $message))
                        .await
                        .map(|_| ())
                        .unwrap_err(),
                );)*
            };
        }
        refused! {
            fetch_x509_bundles(X509BundlesRequest {}),
            fetch_jwtsvid(JWT(&["x"])),
            fetch_jwt_bundles(JwtBundlesRequest {}),
            validate_jwtsvid(ValidateJwtsvidRequest { audience: "x".into(), svid: "y".into() }),
            fetch_witsvid(WitsvidRequest::default()),
            fetch_wit_bundles(WitBundlesRequest {}),
        }
        for refusal in refusals {
            let found = (refusal.code(), refusal.message());
            assert_eq!(found, (Code::InvalidArgument, "security header missing from request"), "{values:?}");
        }
    }

    let mut client = workload(&home).await;
    let jwt =
        |audience: &[&str], spiffe_id: &str| JwtsvidRequest { spiffe_id: spiffe_id.into(), ..JWT(audience) };
    let validate =
        |audience: &str, svid: &str| ValidateJwtsvidRequest { audience: audience.into(), svid: svid.into() };
    let mut cases: Vec<(&str, Status, &str)> = vec![
        ("no audience", client.fetch_jwtsvid(jwt(&[], "")).await.unwrap_err(), "audience must be specified"),
        (
            "empty audience",
            client.fetch_jwtsvid(jwt(&[""], "")).await.unwrap_err(),
            "audience must be specified",
        ),
        (
            "no audience",
            client.validate_jwtsvid(validate("", "x")).await.unwrap_err(),
            "audience must be specified",
        ),
        ("no token", client.validate_jwtsvid(validate("x", "")).await.unwrap_err(), "svid must be specified"),
    ];
    for id in ["example.org/a", "spiffe://", "spiffe://Example.org/a", "spiffe://example.org/a/", "\u{0}"] {
        let refusal = client.fetch_jwtsvid(jwt(&["x"], id)).await.unwrap_err();
        cases.push(("JWT ID", refusal, "invalid requested SPIFFE ID: "));
        let refusal = client.fetch_witsvid(WitsvidRequest { spiffe_id: id.into() }).await.unwrap_err();
        cases.push(("WIT ID", refusal, "invalid requested SPIFFE ID: "));
    }
    for token in ["x", "a.b.c", "....", "e30.e30.e30"] {
        cases.push(("token", client.validate_jwtsvid(validate("x", token)).await.unwrap_err(), ""));
    }
    for (what, refusal, text) in cases {
        assert_eq!(refusal.code(), Code::InvalidArgument, "{what}: {refusal:?}");
        assert!(refusal.message().starts_with(text), "{what}: {refusal:?}");
    }
}

#[tokio::test]
async fn oversized_requests_are_refused_and_nothing_breaks() {
    let server = FakeServer::start().await;
    server.lock().add(my_entry("e1", "/a").build());
    let home = Home::new();
    let _agent = home.start(&server, "").await;
    let mut client = workload(&home).await;
    let large = "x".repeat(300 * 1024);
    let validate = ValidateJwtsvidRequest { audience: "x".into(), svid: large.clone() };
    assert_eq!(client.validate_jwtsvid(validate).await.unwrap_err().code(), Code::OutOfRange);
    assert_eq!(client.fetch_jwtsvid(JWT(&[&large])).await.unwrap_err().code(), Code::OutOfRange);
    let dots = ValidateJwtsvidRequest { audience: "x".into(), svid: ".".repeat(100 * 1024) };
    assert_eq!(client.validate_jwtsvid(dots).await.unwrap_err().code(), Code::InvalidArgument);
    let mut headers = workload(&home).await;
    let mut request = Request::new(X509svidRequest {});
    request.metadata_mut().insert("x-large", "x".repeat(64 * 1024).parse().unwrap());
    assert!(headers.fetch_x509svid(request).await.is_err());
    client.fetch_jwtsvid(JWT(&["x"])).await.unwrap();
}

#[tokio::test]
async fn equal_bundle_messages_are_not_repeated() {
    let server = FakeServer::start().await;
    server.lock().add(federating(my_entry("e1", "/a").build(), &["one.test"]));
    server.lock().federated.insert(TrustDomain::parse("one.test").unwrap(), foreign_bundle("one.test"));
    let home = Home::new();
    let _agent = home.start(&server, "").await;
    let mut client = workload(&home).await;
    let mut x509 = client.fetch_x509_bundles(X509BundlesRequest {}).await.unwrap().into_inner();
    let mut jwt = client.fetch_jwt_bundles(JwtBundlesRequest {}).await.unwrap().into_inner();
    let first = next(&mut x509).await.unwrap();
    assert_eq!(first.bundles.keys().collect::<Vec<_>>(), ["spiffe://example.org", "spiffe://one.test"]);
    let keys = |message: bonafide_proto::workload::JwtBundlesResponse| {
        let jwks: serde_json::Value =
            serde_json::from_slice(&message.bundles["spiffe://example.org"]).unwrap();
        jwks["keys"]
            .as_array()
            .unwrap()
            .iter()
            .map(|key| key["kid"].as_str().unwrap().to_owned())
            .collect::<BTreeSet<_>>()
    };
    assert_eq!(keys(next(&mut jwt).await.unwrap()).len(), 1);

    // Only the JWT stream has something new to say; the X.509 one says the next thing that is new for it.
    server.lock().rotate_jwt();
    assert_eq!(keys(next(&mut jwt).await.unwrap()).len(), 2);
    server.lock().rotate_x509();
    let second = next(&mut x509).await.unwrap();
    let own = "spiffe://example.org";
    assert!(second.bundles[own].len() > first.bundles[own].len(), "an equal message was repeated");

    // Federation ends with the entry that asked for it.
    server.lock().add(my_entry("e1", "/a").with(|entry| entry.revision = 1).build());
    let third = next(&mut x509).await.unwrap();
    assert_eq!(third.bundles.keys().collect::<Vec<_>>(), [own]);
}

#[tokio::test]
async fn verifiers_without_identity_get_the_own_bundle_when_allowed() {
    let server = FakeServer::start().await;
    server
        .lock()
        .add(federating(my_entry("e1", "/a").selectors(["unix:uid:4000000000"]).build(), &["one.test"]));
    server.lock().federated.insert(TrustDomain::parse("one.test").unwrap(), foreign_bundle("one.test"));
    let home = Home::new();
    let _agent = home.start(&server, "allow_unauthenticated_verifiers = true").await;
    let mut client = workload(&home).await;
    let mut stream = client.fetch_x509_bundles(X509BundlesRequest {}).await.unwrap().into_inner();
    assert_eq!(
        next(&mut stream).await.unwrap().bundles.into_keys().collect::<Vec<_>>(),
        ["spiffe://example.org"]
    );
    let mut stream = client.fetch_x509svid(X509svidRequest {}).await.unwrap().into_inner();
    assert_eq!(next(&mut stream).await.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test]
async fn jwt_svids_are_signed_once_and_validated() {
    let server = FakeServer::start().await;
    {
        let mut state = server.lock();
        state.add(my_entry("e2", "/b").hint("b").build());
        state.add(my_entry("e1", "/a").build());
    }
    let home = Home::new();
    let _agent = home.start(&server, "").await;
    let mut client = workload(&home).await;
    let both = client.fetch_jwtsvid(JWT(&["x", "y"])).await.unwrap().into_inner();
    let seen: Vec<_> = both.svids.iter().map(|svid| (svid.spiffe_id.as_str(), svid.hint.as_str())).collect();
    assert_eq!(seen, [("spiffe://example.org/a", ""), ("spiffe://example.org/b", "b")]);
    let mut keys = JwtKeys::new();
    keys.insert(trust_domain(), &server.lock().bundle().jwt_authorities);
    for svid in &both.svids {
        let valid = validate_jwt_svid(&svid.svid, &keys, Some("y"), SystemClock.now()).unwrap();
        assert_eq!(valid.spiffe_id.to_string(), svid.spiffe_id);
    }

    let again = client.fetch_jwtsvid(JWT(&["y", "x"])).await.unwrap().into_inner();
    assert_eq!(again, both);
    assert_eq!(server.lock().count("NewJWTSVID"), 2);
    let one = JwtsvidRequest { spiffe_id: "spiffe://example.org/b".into(), ..JWT(&["x", "y"]) };
    assert_eq!(client.fetch_jwtsvid(one).await.unwrap().into_inner().svids, both.svids[1..]);
    let nobody = JwtsvidRequest { spiffe_id: "spiffe://example.org/c".into(), ..JWT(&["x"]) };
    assert_eq!(client.fetch_jwtsvid(nobody).await.unwrap_err().message(), "no identity issued");

    let validate =
        |audience: &str, svid: &str| ValidateJwtsvidRequest { audience: audience.into(), svid: svid.into() };
    let valid = client.validate_jwtsvid(validate("x", &both.svids[0].svid)).await.unwrap().into_inner();
    assert_eq!(valid.spiffe_id, "spiffe://example.org/a");
    let claims = valid.claims.unwrap().fields;
    assert_eq!(claims.keys().collect::<Vec<_>>(), ["aud", "exp", "iat", "sub"]);
    assert!(matches!(claims["aud"].kind, Some(prost_types::value::Kind::ListValue(_))));
    let refused = client.validate_jwtsvid(validate("z", &both.svids[0].svid)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("expected audience in"), "{refused:?}");
}

#[tokio::test]
async fn a_token_of_a_tainted_key_is_not_served_again() {
    let server = FakeServer::start().await;
    server.lock().add(my_entry("e1", "/a").build());
    let home = Home::new();
    let _agent = home.start(&server, "").await;
    let mut client = workload(&home).await;
    let first = client.fetch_jwtsvid(JWT(&["x"])).await.unwrap().into_inner();
    server.lock().rotate_jwt();
    server.lock().jwt[0].1 = true;
    eventually("another token", async || {
        let token = client.fetch_jwtsvid(JWT(&["x"])).await.unwrap().into_inner();
        if token != first { Ok(()) } else { Err("still the old token") }
    })
    .await;
    // It still verifies until it is revoked.
    let validate = ValidateJwtsvidRequest { audience: "x".into(), svid: first.svids[0].svid.clone() };
    client.validate_jwtsvid(validate.clone()).await.unwrap();
    server.lock().jwt.remove(0);
    eventually("the old token is refused", async || {
        client.validate_jwtsvid(validate.clone()).await.map_or_else(
            |error| {
                assert!(error.message().starts_with("public key"), "{error:?}");
                Ok(())
            },
            |_| Err("it is still valid"),
        )
    })
    .await;
}

#[tokio::test]
async fn jwt_failures_are_unavailable_and_a_kept_token_outlives_the_server() {
    let server = FakeServer::start().await;
    {
        let mut state = server.lock();
        // Due at half of it.
        state.jwt_ttl = Duration::from_secs(4);
        state.add(my_entry("e1", "/a").build());
    }
    let home = Home::new();
    let _agent = home.start(&server, "").await;
    let mut client = workload(&home).await;
    server.lock().fail.insert("NewJWTSVID", vec![Status::unknown("broken")]);
    let refused = client.fetch_jwtsvid(JWT(&["x"])).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().starts_with("could not fetch JWT-SVID: "), "{refused:?}");
    // What may go away by itself is asked again.
    server.lock().fail.insert("NewJWTSVID", vec![Status::unavailable("busy")]);
    let token = client.fetch_jwtsvid(JWT(&["x"])).await.unwrap().into_inner();

    // It comes due, and the server is of no help.
    let broken = || (0..1000).map(|_| Status::unknown("broken")).collect();
    server.lock().fail.insert("NewJWTSVID", broken());
    let before = server.lock().count("NewJWTSVID");
    eventually("the agent asks for the next by itself", async || {
        let count = server.lock().count("NewJWTSVID");
        if count > before { Ok(()) } else { Err(count) }
    })
    .await;
    let started = Instant::now();
    assert_eq!(client.fetch_jwtsvid(JWT(&["x"])).await.unwrap().into_inner(), token);
    assert!(started.elapsed() < Duration::from_secs(1));

    // As soon as the server can, the token is replaced.
    server.lock().fail.clear();
    eventually("a fresh token", async || {
        let fetched =
            client.fetch_jwtsvid(JWT(&["x"])).await.map_err(|error| error.to_string())?.into_inner();
        if fetched != token { Ok(()) } else { Err("the old one".to_owned()) }
    })
    .await;
}

#[tokio::test]
async fn no_request_waits_for_the_server_once_there_is_a_token() {
    let server = FakeServer::start().await;
    {
        let mut state = server.lock();
        state.jwt_ttl = Duration::from_secs(4);
        state.add(my_entry("e1", "/a").build());
    }
    let home = Home::new();
    let _agent = home.start(&server, "").await;
    let mut client = workload(&home).await;
    client.fetch_jwtsvid(JWT(&["x"])).await.unwrap();
    // Each call of the server takes its time from now on.
    server.lock().delay.insert("NewJWTSVID", Duration::from_millis(300));
    let mut tokens = BTreeSet::new();
    let mut longest = Duration::ZERO;
    while tokens.len() < 3 {
        let started = Instant::now();
        let answer = client.fetch_jwtsvid(JWT(&["x"])).await.unwrap().into_inner();
        longest = longest.max(started.elapsed());
        let mut keys = JwtKeys::new();
        keys.insert(trust_domain(), &server.lock().bundle().jwt_authorities);
        validate_jwt_svid(&answer.svids[0].svid, &keys, Some("x"), SystemClock.now()).unwrap();
        tokens.insert(answer.svids[0].svid.clone());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(longest < Duration::from_millis(300), "{longest:?}");
}

#[tokio::test]
async fn tokens_with_a_number_of_their_own_are_signed_for_each_call() {
    let server = FakeServer::start().await;
    server.lock().add(my_entry("e1", "/a").with(|entry| entry.jwt_svid_include_jti = true).build());
    let home = Home::new();
    let agent = home.start(&server, "").await;
    let mut client = workload(&home).await;
    for calls in 1..=3 {
        client.fetch_jwtsvid(JWT(&["x"])).await.unwrap();
        assert_eq!(server.lock().count("NewJWTSVID"), calls);
    }
    drop(agent);
}

#[tokio::test]
async fn callers_with_the_same_selectors_share_an_allowance() {
    let server = FakeServer::start().await;
    server.lock().add(my_entry("e1", "/a").build());
    let home = Home::new();
    let limits = "[rate_limit]\nfetch_x509_svid = 1\nfetch_jwt_svid = 1\nfetch_x509_bundles = 1\nfetch_jwt_bundles = 1";
    let _agent = home.start(&server, limits).await;
    // This process is the agent, so its own calls are exempt.
    let mut own = workload(&home).await;
    for _ in 0..5 {
        own.fetch_jwtsvid(JWT(&["x"])).await.unwrap();
    }
    let executable = std::env::current_exe().unwrap();
    let socket = home.socket();
    let call = move || {
        let mut command = std::process::Command::new(&executable);
        command.args(["--exact", "workload_api::calls_twice_from_outside", "--nocapture", "--ignored"]);
        command.env("AGENT_TEST_SOCKET", socket).output().unwrap()
    };
    let output = tokio::task::spawn_blocking(call).await.unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
}

/// The other process of [`callers_with_the_same_selectors_share_an_allowance`].
#[tokio::test]
#[ignore = "run by another test"]
async fn calls_twice_from_outside() {
    let Some(socket) = std::env::var_os("AGENT_TEST_SOCKET") else { return };
    let mut clients = Vec::new();
    for _ in 0..2 {
        clients.push(workload_at(socket.clone().into()).await);
    }
    let mut refusals = Vec::new();
    for client in &mut clients {
        refusals.push(client.fetch_x509svid(X509svidRequest {}).await.map(drop).err());
        refusals.push(client.fetch_jwtsvid(JWT(&["x"])).await.map(drop).err());
        refusals.push(client.fetch_x509_bundles(X509BundlesRequest {}).await.map(drop).err());
        refusals.push(client.fetch_jwt_bundles(JwtBundlesRequest {}).await.map(drop).err());
    }
    assert!(refusals[..4].iter().all(Option::is_none), "{refusals:?}");
    let methods = ["FetchX509SVID", "FetchJWTSVID", "FetchX509Bundles", "FetchJWTBundles"];
    for (refusal, method) in refusals[4..].iter().zip(methods) {
        let refusal = refusal.as_ref().expect("the second call within a second is too many");
        assert_eq!(refusal.code(), Code::Unavailable);
        assert_eq!(refusal.message(), format!("rate limit exceeded for /SpiffeWorkloadAPI/{method}"));
    }
    // Validation is not limited.
    let request = ValidateJwtsvidRequest { audience: "x".into(), svid: "x".into() };
    assert_eq!(clients[0].validate_jwtsvid(request).await.unwrap_err().code(), Code::InvalidArgument);
}

/// Keeps what the agent's log would have.
#[derive(Clone, Default)]
struct Lines(Arc<std::sync::Mutex<Vec<String>>>);

impl tracing::Subscriber for Lines {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.is_event() && metadata.target().starts_with("bonafide_agent::api")
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        struct Fields(String);
        impl tracing::field::Visit for Fields {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                self.0.push_str(&format!("{field}={value:?} "));
            }
        }
        let mut fields = Fields(String::new());
        event.record(&mut fields);
        self.0.lock().unwrap().push(fields.0);
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

#[tokio::test]
async fn the_log_names_a_caller_without_identity_and_only_the_selectors_that_it_may() {
    let server = FakeServer::start().await;
    server.lock().add(my_entry("e1", "/a").selectors(["unix:uid:4000000000"]).build());
    let home = Home::new();
    let lines = Lines::default();
    let _guard = tracing::subscriber::set_default(lines.clone());
    let _agent = home.start(&server, "log.selectors = [\"unix:uid\"]").await;
    let (executable, socket) = (std::env::current_exe().unwrap(), home.socket());
    let call = move || {
        let mut command = std::process::Command::new(&executable);
        command.args(["--exact", "workload_api::asks_from_outside", "--nocapture", "--ignored"]);
        command.env("AGENT_TEST_SOCKET", socket).output().unwrap()
    };
    let output = tokio::task::spawn_blocking(call).await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let lines = lines.0.lock().unwrap().clone();
    let found: Vec<_> = lines.iter().filter(|line| line.contains("no identity issued")).collect();
    // Three calls within a second, or a little more of it.
    assert!((1..=2).contains(&found.len()), "{lines:?}");
    let uid = own_uid();
    assert!(found[0].contains(&format!("selectors=\"unix:uid:{uid}\"")), "{found:?}");
    assert!(found[0].contains("registered=false") && !found[0].contains("unix:gid"), "{found:?}");
}

fn own_uid() -> u32 {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata("/proc/self").unwrap().uid()
}

/// The other process of [`the_log_names_a_caller_without_identity_and_only_the_selectors_that_it_may`].
#[tokio::test]
#[ignore = "run by another test"]
async fn asks_from_outside() {
    let Some(socket) = std::env::var_os("AGENT_TEST_SOCKET") else { return };
    let mut client = workload_at(socket.into()).await;
    for _ in 0..3 {
        client.fetch_jwtsvid(JWT(&["x"])).await.unwrap_err();
    }
}

#[tokio::test]
async fn tokens_of_other_trust_domains_lose_unknown_claims() {
    let server = FakeServer::start().await;
    let other = FakeServer::start().await;
    {
        let mut state = other.lock();
        state.trust_domain = TrustDomain::parse("one.test").unwrap();
        let bundle = state.bundle();
        let mut state = server.lock();
        state.add(federating(my_entry("e1", "/a").build(), &["one.test"]));
        state.federated.insert(bundle.trust_domain.clone(), bundle);
    }
    let id = bonafide_identity::SpiffeId::parse("spiffe://one.test/x").unwrap();
    let now = SystemClock.now();
    let audience = ["x".to_owned()];
    let claims = bonafide_pki::JwtClaims {
        sub: &id,
        aud: &audience,
        exp: now.saturating_add(Duration::from_secs(60)),
        iat: now,
        iss: Some("issuer"),
        jti: Some("number".into()),
    };
    let token = other.lock().jwt[0].0.sign_jwt_svid(&claims).unwrap();
    let home = Home::new();
    let _agent = home.start(&server, "allowed_foreign_jwt_claims = [\"jti\"]").await;
    let request = ValidateJwtsvidRequest { audience: "x".into(), svid: token };
    let valid = workload(&home).await.validate_jwtsvid(request.clone()).await.unwrap().into_inner();
    assert_eq!(valid.spiffe_id, "spiffe://one.test/x");
    assert_eq!(valid.claims.unwrap().fields.into_keys().collect::<Vec<_>>(), ["aud", "exp", "jti", "sub"]);

    server.lock().add(my_entry("e1", "/a").with(|entry| entry.revision = 1).build());
    let mut client = workload(&home).await;
    eventually("the foreign trust domain is unknown", async || {
        match client.validate_jwtsvid(request.clone()).await {
            Ok(_) => Err("still valid".to_owned()),
            Err(error) if error.message().starts_with("no keys found for trust domain") => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    })
    .await;
}

#[tokio::test]
async fn wit_svids_come_with_their_key_and_rotate() {
    let server = FakeServer::start().await;
    {
        let mut state = server.lock();
        state.support_wit();
        state.x509_ttl = Duration::from_secs(2);
        state.add(my_entry("e1", "/a").hint("h").build());
        state.add(my_entry("e2", "/b").build());
    }
    let home = Home::new();
    let _agent = home.start(&server, "").await;
    assert_eq!(server.lock().count("BatchNewWITSVID"), 0, "nobody has asked yet");
    let mut client = workload(&home).await;
    let only_a = WitsvidRequest { spiffe_id: "spiffe://example.org/a".into() };
    let mut stream = client.fetch_witsvid(only_a).await.unwrap().into_inner();
    let mut bundles = client.fetch_wit_bundles(WitBundlesRequest {}).await.unwrap().into_inner();
    let bundle = next(&mut bundles).await.unwrap().bundles["spiffe://example.org"].clone();
    let authorities = bonafide_pki::bundle::from_jwks(bundle.as_bytes()).unwrap();
    let mut keys = JwtKeys::new();
    keys.insert(trust_domain(), &authorities);

    let mut seen = BTreeSet::new();
    for _ in 0..3 {
        let message = next(&mut stream).await.unwrap();
        assert_eq!(message.svids.len(), 1);
        let svid = &message.svids[0];
        assert_eq!((svid.spiffe_id.as_str(), svid.hint.as_str()), ("spiffe://example.org/a", "h"));
        let valid = validate_wit_svid(&svid.wit_svid, &keys, SystemClock.now()).unwrap();
        let jwk: bonafide_pki::jwk::Jwk = serde_json::from_str(&svid.wit_svid_key).unwrap();
        assert_eq!(bonafide_pki::jwk::jwk_to_public_key(&jwk).unwrap(), valid.confirmation);
        let private: serde_json::Value = serde_json::from_str(&svid.wit_svid_key).unwrap();
        assert!(private["d"].is_string() && private["alg"] == "ES256");
        assert!(seen.insert(svid.wit_svid.clone()));
    }
}

#[tokio::test]
async fn jwt_bundles_hold_jwt_keys_alone_in_a_fixed_order() {
    let server = FakeServer::start().await;
    {
        let mut state = server.lock();
        state.support_wit();
        (0..5).for_each(|_| state.rotate_jwt());
        state.add(my_entry("e1", "/a").build());
    }
    let home = Home::new();
    let _agent = home.start(&server, "").await;
    let mut stream =
        workload(&home).await.fetch_jwt_bundles(JwtBundlesRequest {}).await.unwrap().into_inner();
    let bundles = next(&mut stream).await.unwrap().bundles;
    let document = std::str::from_utf8(&bundles["spiffe://example.org"]).unwrap().to_owned();
    let keys: serde_json::Value = serde_json::from_str(&document).unwrap();
    let members = |key: &serde_json::Value| key.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let keys = keys["keys"].as_array().unwrap();
    assert!(keys.iter().all(|key| members(key) == ["crv", "kid", "kty", "x", "y"]), "{document}");
    let found: Vec<String> = keys.iter().map(|key| key["kid"].as_str().unwrap().to_owned()).collect();
    let mut expected: Vec<String> =
        server.lock().jwt.iter().map(|(signer, _)| signer.key_id().to_owned()).collect();
    expected.sort();
    assert_eq!(found, expected);
    assert!(document.starts_with("{\n    \"keys\": ["), "{document}");
}

#[tokio::test]
async fn wit_methods_are_unimplemented_when_the_server_has_none() {
    let server = FakeServer::start().await;
    server.lock().add(my_entry("e1", "/a").build());
    let home = Home::new();
    let _agent = home.start(&server, "").await;
    let mut client = workload(&home).await;
    let mut svids = client.fetch_witsvid(WitsvidRequest::default()).await.unwrap().into_inner();
    assert_eq!(next(&mut svids).await.unwrap_err().code(), Code::Unimplemented);
    let mut bundles = client.fetch_wit_bundles(WitBundlesRequest {}).await.unwrap().into_inner();
    assert_eq!(next(&mut bundles).await.unwrap_err().code(), Code::Unimplemented);

    // One that publishes authorities and still does not sign.
    server.lock().support_wit();
    server
        .lock()
        .fail
        .insert("BatchNewWITSVID", (0..100).map(|_| Status::unimplemented("disabled")).collect());
    eventually("the answer is final", async || {
        let mut svids = client.fetch_witsvid(WitsvidRequest::default()).await.unwrap().into_inner();
        let end = next(&mut svids).await.unwrap_err();
        assert_eq!(end.code(), Code::Unimplemented);
        if server.lock().count("BatchNewWITSVID") > 0 { Ok(()) } else { Err("not asked yet") }
    })
    .await;
}

struct Broken;

#[async_trait]
impl WorkloadAttestor for Broken {
    fn kind(&self) -> &'static str {
        "broken"
    }
    async fn attest(&self, _: &PinnedCaller) -> Result<Vec<Selector>, AttestError> {
        Err(AttestError::Stopped)
    }
}

struct SaysNothing;

#[async_trait]
impl WorkloadAttestor for SaysNothing {
    fn kind(&self) -> &'static str {
        "silent"
    }
    async fn attest(&self, _: &PinnedCaller) -> Result<Vec<Selector>, AttestError> {
        Ok(Vec::new())
    }
}

/// What an attestor that failed would have said may be what an entry asks for.
#[tokio::test]
async fn who_is_not_wholly_attested_is_not_told_that_it_has_no_identity() {
    let server = FakeServer::start().await;
    server.lock().add(my_entry("e1", "/a").build());
    for (broken, code) in [(true, Code::Unavailable), (false, Code::PermissionDenied)] {
        server.lock().tokens.insert("token".to_owned());
        let home = Home::new();
        let mut overrides = overrides();
        let other: Arc<dyn WorkloadAttestor> = if broken { Arc::new(Broken) } else { Arc::new(SaysNothing) };
        overrides.workload_attestors = Some(WorkloadAttestors::new(vec![Arc::new(SaysNothing), other]));
        let config = home.config(&server, "allow_unauthenticated_verifiers = true");
        let _agent = home.start_with(config, overrides).await.unwrap();
        let mut client = workload(&home).await;
        assert_eq!(client.fetch_jwtsvid(JWT(&["x"])).await.unwrap_err().code(), code);
        let refusal = match client.fetch_x509svid(X509svidRequest {}).await {
            Err(refusal) => refusal,
            Ok(stream) => next(&mut stream.into_inner()).await.unwrap_err(),
        };
        assert_eq!(refusal.code(), code);
        // Bundles are for everybody here.
        let mut bundles = client.fetch_x509_bundles(X509BundlesRequest {}).await.unwrap().into_inner();
        next(&mut bundles).await.unwrap();
    }
}

#[tokio::test]
async fn failed_attestation_is_unavailable() {
    let server = FakeServer::start().await;
    server.lock().add(my_entry("e1", "/a").build());
    let home = Home::new();
    let mut overrides = overrides();
    overrides.workload_attestors = Some(WorkloadAttestors::new(vec![Arc::new(Broken), Arc::new(Broken)]));
    let _agent = home.start_with(home.config(&server, ""), overrides).await.unwrap();
    let mut client = workload(&home).await;
    let validate = ValidateJwtsvidRequest { audience: "x".into(), svid: "y".into() };
    for refusal in [
        client.fetch_x509svid(X509svidRequest {}).await.unwrap_err(),
        client.fetch_jwtsvid(JWT(&["x"])).await.unwrap_err(),
        client.validate_jwtsvid(validate).await.unwrap_err(),
    ] {
        assert_eq!((refusal.code(), refusal.message()), (Code::Unavailable, "workload attestation failed"));
    }
}

#[tokio::test]
async fn a_shutdown_ends_streams_and_removes_the_socket() {
    let server = FakeServer::start().await;
    server.lock().add(my_entry("e1", "/a").build());
    let home = Home::new();
    let agent = home.start(&server, "").await;
    let mut stream = workload(&home).await.fetch_x509svid(X509svidRequest {}).await.unwrap().into_inner();
    next(&mut stream).await.unwrap();
    agent.shut_down();
    assert_eq!(next(&mut stream).await.unwrap_err().code(), Code::Unavailable);
    agent.join().await.unwrap();
    assert!(!home.socket().exists() && !home.admin_socket().exists());
}

#[tokio::test]
async fn an_engine_that_is_away_fails_alone_and_takes_nothing_from_the_others() {
    let server = FakeServer::start().await;
    server.lock().add(my_entry("e1", "/a").build());
    // This process is in no container, so its engine must not be needed; systemd always is.
    let away = r#"
        workload_attestor.systemd.bus_socket = "/nonexistent/bus"
        workload_attestor.docker.docker_socket_path = "unix:///nonexistent/docker.sock"
    "#;
    let home = Home::new();
    let both = format!("{away}\nworkload_attestor.unix.discover_workload_path = false");
    let _agent = home.start(&server, &both).await;
    let mut stream = workload(&home).await.fetch_x509svid(X509svidRequest {}).await.unwrap().into_inner();
    assert_eq!(next(&mut stream).await.unwrap().svids[0].spiffe_id, "spiffe://example.org/a");

    let server = FakeServer::start().await;
    let home = Home::new();
    let only = "workload_attestor.systemd.bus_socket = \"/nonexistent/bus\"";
    let _agent = home.start(&server, only).await;
    let refusal = workload(&home).await.fetch_x509svid(X509svidRequest {}).await.unwrap_err();
    assert_eq!((refusal.code(), refusal.message()), (Code::Unavailable, "workload attestation failed"));
}
