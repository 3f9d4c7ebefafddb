//! Signing on request: what is refused with which words, and what is signed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bonafide_identity::{Bundle, DnsName, Timestamp};
use bonafide_pki::{
    JwsAlgorithm, JwtKeys, KeyType, PrivateKey, Signer, TrustRoots, agent_csr, inspect, validate_jwt_svid,
    validate_wit_svid, verify_svid_chain,
};
use bonafide_proto::spire::server::svid::v1 as pb;
use bonafide_proto::spire::server::svid::v1::svid_client::SvidClient;
use bonafide_proto::spire::types;
use bonafide_server::store::Issuance as _;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::harness::{Identity, TestServer, assert_refused, id, stored_entry, trust_domain, wire_id};

/// A CSR by another library, with these URIs and DNS names and this common name.
fn csr(uris: &[&str], dns_names: &[&str], common_name: Option<&str>) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    if let Some(name) = common_name {
        params.distinguished_name.push(DnType::OrganizationName, "Acme");
        params.distinguished_name.push(DnType::CommonName, name);
    }
    let uris = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap()));
    let names = dns_names.iter().map(|name| SanType::DnsName((*name).try_into().unwrap()));
    params.subject_alt_names = uris.chain(names).collect();
    params.serialize_request(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
}

fn tampered(mut csr: Vec<u8>) -> Vec<u8> {
    *csr.last_mut().unwrap() ^= 1;
    csr
}

fn key_csr() -> Vec<u8> {
    agent_csr(&PrivateKey::generate(KeyType::EcP256).unwrap(), None).unwrap()
}

fn bundle(server: &TestServer) -> Arc<Bundle> {
    server.server.context().state.bundle(&trust_domain()).unwrap()
}

fn verify(server: &TestServer, chain: &[Vec<u8>]) -> bonafide_identity::SpiffeId {
    let bundle = bundle(server);
    let roots = bundle.x509_authorities.iter().map(|root| root.certificate.as_slice());
    let roots = Arc::new(TrustRoots::from_der(roots).unwrap());
    verify_svid_chain(chain, &|_| Some(Arc::clone(&roots)), server.clock.now()).unwrap()
}

fn der(chain: &[bytes::Bytes]) -> Vec<Vec<u8>> {
    chain.iter().map(|der| der.to_vec()).collect()
}

async fn recorded(server: &TestServer) -> Vec<bonafide_server::store::IssuedSvid> {
    let now = server.clock.now();
    server.server.context().store.write(move |unit| unit.issued(now, 1000)).await.unwrap()
}

#[track_caller]
fn assert_status(status: Option<&types::Status>, code: Code, message: &str) {
    let status = status.expect("every result has a status");
    let found = status.message.as_str();
    let fits = match message.strip_suffix('…') {
        Some(beginning) => found.starts_with(beginning),
        None => found == message,
    };
    assert!(status.code == code as i32 && fits, "{} {found:?} instead of {code:?} {message:?}", status.code);
}

#[track_caller]
fn assert_refused_as<T>(what: &str, result: Result<T, Status>, code: Code, message: &str) {
    let Err(status) = result else { panic!("{what}: must be refused") };
    let status = types::Status { code: status.code() as i32, message: status.message().to_owned() };
    assert_status(Some(&status), code, message);
}

#[tokio::test]
async fn mint_x509_refuses_with_the_words_of_the_contract() {
    let server = TestServer::start().await;
    let mut client = SvidClient::new(server.local().await);
    let own = "spiffe://example.org/w";
    let invalid = Code::InvalidArgument;
    for (what, csr, ttl, message) in [
        ("no CSR", Vec::new(), 0, "missing CSR"),
        ("no DER", b"nonsense".to_vec(), 0, "malformed CSR: …"),
        ("bytes after it", [csr(&[own], &[], None), vec![0]].concat(), 0, "malformed CSR: …"),
        ("signature", tampered(csr(&[own], &[], None)), 0, "invalid CSR signature: …"),
        ("no URI", csr(&[], &["a.example.org"], None), 0, "CSR URI SAN is required"),
        ("two URIs", csr(&[own, "spiffe://example.org/x"], &[], None), 0, "only one URI SAN is expected"),
        ("no SPIFFE ID", csr(&["https://example.org/w"], &[], None), 0, "CSR URI SAN is invalid: …"),
        ("other trust domain", csr(&["spiffe://other.org/w"], &[], None), 0, "CSR URI SAN is invalid: …"),
        ("no path", csr(&["spiffe://example.org"], &[], None), 0, "CSR URI SAN is invalid: …"),
        ("reserved", csr(&["spiffe://example.org/spire/x"], &[], None), 0, "CSR URI SAN is invalid: …"),
        ("DNS name", csr(&[own], &["a b.example.org"], None), 0, "CSR DNS name is not valid: …"),
        (
            "wildcard",
            csr(&[own], &["*.example.org", "a.example.org"], None),
            0,
            "CSR DNS name contains a wildcard that covers another non-wildcard name…",
        ),
        ("ttl", csr(&[own], &[], None), -1, "TTL must not be negative"),
    ] {
        let result = client.mint_x509svid(pb::MintX509svidRequest { csr, ttl }).await;
        assert_refused_as(what, result, invalid, message);
    }
    assert_eq!(recorded(&server).await, []);
}

#[tokio::test]
async fn mint_x509_honours_subject_names_and_life_of_the_request() {
    let server = TestServer::start().await;
    let mut client = SvidClient::new(server.local().await);
    let now = server.clock.now().floor_to_second();
    for (names, common_name, ttl, subject, life) in [
        (&[][..], None, 0, "O=SPIRE,C=US", 3600),
        (&[][..], Some("web"), 60, "CN=web,O=Acme", 60),
        (&["b.example.org", "a.example.org"][..], None, 60, "CN=b.example.org,O=SPIRE,C=US", 60),
        (&["b.example.org"][..], Some("web"), 60, "CN=b.example.org,O=Acme", 60),
    ] {
        let csr = csr(&["spiffe://example.org/w"], names, common_name);
        let response = client.mint_x509svid(pb::MintX509svidRequest { csr, ttl }).await.unwrap().into_inner();
        let svid = response.svid.unwrap();
        assert_eq!(svid.id, wire_id("/w"));
        let chain = der(&svid.cert_chain);
        assert_eq!(chain.len(), 1, "a self-signed authority is in the bundle and not in the chain");
        assert_eq!(verify(&server, &chain), id("/w"));
        let leaf = inspect(&chain[0]).unwrap();
        assert_eq!(leaf.subject, subject);
        assert_eq!(leaf.dns_names, names);
        assert_eq!(leaf.not_before, now.saturating_sub(Duration::from_secs(10)));
        assert_eq!(leaf.not_after, now.saturating_add(Duration::from_secs(life)));
        assert_eq!(svid.expires_at, leaf.not_after.unix_seconds());
        let serial = leaf.serial.to_string();
        assert!(recorded(&server).await.iter().any(|issued| issued.serial == serial), "not in the inventory");
        let audited = server.audit().await.pop().unwrap();
        assert!(audited.to_string().contains(&serial), "not in the audit log: {audited}");
    }
}

#[tokio::test]
async fn mint_jwt_refuses_with_the_words_of_the_contract() {
    let server = TestServer::start().await;
    let mut client = SvidClient::new(server.local().await);
    let other = Some(types::Spiffeid { trust_domain: "other.org".into(), path: "/w".into() });
    let some = || vec!["a".to_owned()];
    for (what, id, audience, ttl, message) in [
        ("no ID", None, some(), 0, "invalid SPIFFE ID: request must specify SPIFFE ID"),
        (
            "other trust domain",
            other,
            some(),
            0,
            "invalid SPIFFE ID: \"spiffe://other.org/w\" is not a member of trust domain \"example.org\"",
        ),
        ("no path", wire_id(""), some(), 0, "invalid SPIFFE ID: …"),
        ("malformed", wire_id("/a//b"), some(), 0, "invalid SPIFFE ID: path cannot contain empty segments"),
        ("reserved", wire_id("/spire/server"), some(), 0, "invalid SPIFFE ID: …"),
        ("no audience", wire_id("/w"), vec![], 0, "at least one audience is required"),
        ("blank audience", wire_id("/w"), vec![String::new()], 0, "at least one audience is required"),
        ("ttl", wire_id("/w"), some(), -5, "TTL must not be negative"),
    ] {
        let result = client.mint_jwtsvid(pb::MintJwtsvidRequest { id, audience, ttl }).await;
        assert_refused_as(what, result, Code::InvalidArgument, message);
    }
}

#[tokio::test]
async fn minted_jwts_verify() {
    let server = TestServer::start().await;
    let mut client = SvidClient::new(server.local().await);
    let now = server.clock.now().unix_seconds();
    for (ttl, life) in [(0, 300), (17, 17)] {
        let audience = vec!["b".to_owned(), String::new(), "a".to_owned()];
        let request = pb::MintJwtsvidRequest { id: wire_id("/w"), audience, ttl };
        let svid = client.mint_jwtsvid(request).await.unwrap().into_inner().svid.unwrap();
        assert_eq!((svid.issued_at, svid.expires_at), (now, now + life));
        let mut keys = JwtKeys::new();
        keys.insert(trust_domain(), &bundle(&server).jwt_authorities);
        let jwt = validate_jwt_svid(&svid.token, &keys, Some("a"), server.clock.now()).unwrap();
        assert_eq!(jwt.spiffe_id, id("/w"));
        assert_eq!(jwt.audience, ["b", "a"]);
        assert!(!jwt.claims.contains_key("jti") && !jwt.claims.contains_key("nbf"), "{:?}", jwt.claims);
    }
}

#[tokio::test]
async fn wit_svids_are_bound_to_the_key() {
    let server = TestServer::start().await;
    let mut client = SvidClient::new(server.local().await);
    let key = PrivateKey::generate(KeyType::EcP256).unwrap();
    let spki = key.public_key().spki_der().to_vec();
    let request = |id, public_key: &[u8], algorithm: &str, ttl| pb::MintWitsvidRequest {
        id,
        public_key: public_key.to_vec(),
        ttl,
        signing_algorithm: algorithm.to_owned(),
    };
    for (what, request, message) in [
        ("no ID", request(None, &spki, "ES256", 0), "invalid SPIFFE ID: request must specify SPIFFE ID"),
        ("reserved ID", request(wire_id("/spire/x"), &spki, "ES256", 0), "invalid SPIFFE ID: …"),
        ("no key", request(wire_id("/w"), &[], "ES256", 0), "missing public key"),
        ("no DER", request(wire_id("/w"), b"x", "ES256", 0), "malformed public key: …"),
        ("no algorithm", request(wire_id("/w"), &spki, "", 0), "missing signing algorithm"),
        ("unknown algorithm", request(wire_id("/w"), &spki, "HS256", 0), "invalid signing algorithm: …"),
        ("wrong curve", request(wire_id("/w"), &spki, "ES384", 0), "failed to sign WIT-SVID: …"),
        ("wrong family", request(wire_id("/w"), &spki, "RS256", 0), "failed to sign WIT-SVID: …"),
        ("ttl", request(wire_id("/w"), &spki, "ES256", -1), "TTL must not be negative"),
    ] {
        assert_refused_as(what, client.mint_witsvid(request).await, Code::InvalidArgument, message);
    }
    let minted = client.mint_witsvid(request(wire_id("/w"), &spki, "ES256", 0)).await.unwrap();
    let svid = minted.into_inner().svid.unwrap();
    assert_eq!(svid.expires_at - svid.issued_at, 3600);
    let mut keys = JwtKeys::new();
    keys.insert(trust_domain(), &bundle(&server).wit_authorities);
    let wit = validate_wit_svid(&svid.token, &keys, server.clock.now()).unwrap();
    assert_eq!(wit.spiffe_id, id("/w"));
    assert_eq!((&wit.confirmation, wit.confirmation_algorithm), (key.public_key(), JwsAlgorithm::Es256));
    assert!(!wit.claims.contains_key("aud"));
}

async fn agent(server: &TestServer) -> (Identity, SvidClient<Channel>) {
    let agent = server.agent().await;
    let client = SvidClient::new(server.remote(Some(&agent)).await.unwrap());
    (agent, client)
}

#[tokio::test]
async fn a_batch_gives_each_item_its_own_answer() {
    let server = TestServer::start().await;
    let (agent, mut client) = agent(&server).await;
    let mut entry = stored_entry("own", &agent.id, "/own");
    entry.x509_svid_ttl = 90;
    entry.hint = "blue".into();
    entry.dns_names = [DnsName::parse("own.example.org").unwrap()].into();
    server.entry(entry).await;
    server.entry(stored_entry("child", &id("/own"), "/child")).await;
    server.entry(stored_entry("foreign", &id("/spire/agent/other"), "/foreign")).await;

    let empty = client.batch_new_x509svid(pb::BatchNewX509svidRequest { params: vec![] }).await;
    assert_refused(empty, Code::InvalidArgument, "missing parameters");

    let own = csr(&["spiffe://example.org/somebody-else"], &["evil.example.org"], Some("evil"));
    let table: Vec<(&str, Vec<u8>, Code, &str)> = vec![
        ("own", own.clone(), Code::Ok, "OK"),
        ("", own.clone(), Code::InvalidArgument, "missing entry ID"),
        ("own", vec![], Code::InvalidArgument, "missing CSR"),
        ("nowhere", vec![], Code::InvalidArgument, "missing CSR"),
        ("nowhere", own.clone(), Code::NotFound, "entry not found or not authorized"),
        ("not an id!", own.clone(), Code::NotFound, "entry not found or not authorized"),
        ("foreign", own.clone(), Code::NotFound, "entry not found or not authorized"),
        ("own", b"nonsense".to_vec(), Code::InvalidArgument, "malformed CSR: …"),
        ("own", tampered(own), Code::InvalidArgument, "invalid CSR signature: …"),
        ("child", key_csr(), Code::Ok, "OK"),
    ];
    let params = table
        .iter()
        .map(|(entry, csr, ..)| pb::NewX509svidParams { entry_id: (*entry).into(), csr: csr.clone() });
    let request = pb::BatchNewX509svidRequest { params: params.collect() };
    let results = client.batch_new_x509svid(request).await.unwrap().into_inner().results;
    assert_eq!(results.len(), table.len());
    for (result, (_, _, code, message)) in results.iter().zip(&table) {
        assert_status(result.status.as_ref(), *code, message);
        assert_eq!(result.svid.is_some(), *code == Code::Ok);
    }
    let svid = results[0].svid.as_ref().unwrap();
    assert_eq!((svid.id.clone(), svid.hint.as_str()), (wire_id("/own"), "blue"));
    let chain = der(&svid.cert_chain);
    assert_eq!(verify(&server, &chain), id("/own"));
    let leaf = inspect(&chain[0]).unwrap();
    assert_eq!(leaf.dns_names, ["own.example.org"], "names come from the entry");
    assert_eq!(leaf.subject, "CN=own.example.org,O=SPIRE,C=US");
    let life = leaf.not_after.saturating_since(server.clock.now().floor_to_second());
    assert_eq!(life, Duration::from_secs(90));
    assert_eq!(results[9].svid.as_ref().unwrap().id, wire_id("/child"));

    let serials: BTreeSet<_> = [0, 9]
        .map(|at: usize| {
            inspect(&results[at].svid.as_ref().unwrap().cert_chain[0]).unwrap().serial.to_string()
        })
        .into();
    let entries: BTreeSet<_> = recorded(&server)
        .await
        .into_iter()
        .filter(|issued| serials.contains(&issued.serial))
        .map(|issued| issued.entry_id.unwrap().to_string())
        .collect();
    assert_eq!(entries, ["child".to_owned(), "own".to_owned()].into());
    let audited = server.audit().await.pop().unwrap().to_string();
    assert!(serials.iter().all(|serial| audited.contains(serial)), "{audited}");
}

#[tokio::test]
async fn a_batch_is_at_most_what_may_be_signed_in_a_second() {
    let server = TestServer::start_with("[ratelimit]").await;
    let (_, mut client) = agent(&server).await;
    // Items that cost nothing but their place.
    let x509 =
        |number| pb::BatchNewX509svidRequest { params: vec![pb::NewX509svidParams::default(); number] };
    let wit = |number| pb::BatchNewWitsvidRequest { params: vec![pb::NewWitsvidParams::default(); number] };
    let text = "rate (501) exceeds burst size (500)";
    let refused = client.batch_new_x509svid(x509(501)).await;
    assert_refused(refused.map(drop), Code::ResourceExhausted, text);
    let refused = client.batch_new_witsvid(wit(501)).await;
    assert_refused(refused.map(drop), Code::ResourceExhausted, text);
    // What was refused has cost nothing, and the two rpcs share nothing.
    assert_eq!(client.batch_new_x509svid(x509(500)).await.unwrap().into_inner().results.len(), 500);
    assert_eq!(client.batch_new_witsvid(wit(500)).await.unwrap().into_inner().results.len(), 500);
}

#[tokio::test]
async fn entitlement_is_that_of_the_moment() {
    let server = TestServer::start().await;
    let (agent, mut client) = agent(&server).await;
    server.entry(stored_entry("own", &agent.id, "/own")).await;
    let mut status = async || {
        let params = vec![pb::NewX509svidParams { entry_id: "own".into(), csr: key_csr() }];
        let results = client.batch_new_x509svid(pb::BatchNewX509svidRequest { params }).await;
        results.unwrap().into_inner().results[0].status.clone().unwrap().code
    };
    assert_eq!(status().await, 0);
    let store = server.server.context().store.clone();
    store
        .write(|unit| {
            use bonafide_server::store::Entries as _;
            unit.entry_delete(&bonafide_identity::EntryId::parse("own").unwrap())
        })
        .await
        .unwrap();
    assert_eq!(status().await, Code::NotFound as i32);
}

#[tokio::test]
async fn jwts_for_agents() {
    let server = TestServer::start().await;
    let (agent, mut client) = agent(&server).await;
    let mut entry = stored_entry("own", &agent.id, "/own");
    entry.jwt_svid_ttl = 45;
    entry.hint = "blue".into();
    entry.jwt_svid_include_jti = true;
    server.entry(entry).await;
    let request = |entry: &str, audience: &[&str]| pb::NewJwtsvidRequest {
        entry_id: entry.to_owned(),
        audience: audience.iter().map(|audience| (*audience).to_owned()).collect(),
    };
    for (what, request, code, message) in [
        ("no entry ID", request("", &["a"]), Code::NotFound, "entry not found or not authorized"),
        ("unknown", request("other", &["a"]), Code::NotFound, "entry not found or not authorized"),
        ("unknown comes first", request("other", &[]), Code::NotFound, "entry not found or not authorized"),
        ("no audience", request("own", &[]), Code::InvalidArgument, "at least one audience is required"),
        ("blank audience", request("own", &[""]), Code::InvalidArgument, "at least one audience is required"),
    ] {
        assert_refused_as(what, client.new_jwtsvid(request).await, code, message);
    }
    let svid = client.new_jwtsvid(request("own", &["a", "b"])).await.unwrap().into_inner().svid.unwrap();
    let now = server.clock.now().unix_seconds();
    assert_eq!((svid.issued_at, svid.expires_at, svid.hint.as_str()), (now, now + 45, "blue"));
    assert_eq!(svid.id, wire_id("/own"));
    let mut keys = JwtKeys::new();
    keys.insert(trust_domain(), &bundle(&server).jwt_authorities);
    let jwt = validate_jwt_svid(&svid.token, &keys, Some("b"), server.clock.now()).unwrap();
    let jti = jwt.claims["jti"].as_str().unwrap();
    assert!(recorded(&server).await.iter().any(|issued| issued.serial == jti));
}

#[tokio::test]
async fn wits_for_agents() {
    let server = TestServer::start().await;
    let (agent, mut client) = agent(&server).await;
    let mut entry = stored_entry("own", &agent.id, "/own");
    entry.x509_svid_ttl = 45;
    server.entry(entry).await;
    let empty = client.batch_new_witsvid(pb::BatchNewWitsvidRequest { params: vec![] }).await;
    assert_refused(empty, Code::InvalidArgument, "missing parameters");
    let key = PrivateKey::generate(KeyType::EcP384).unwrap().public_key().spki_der().to_vec();
    let table: Vec<(&str, &[u8], &str, Code, &str)> = vec![
        ("own", &key, "ES384", Code::Ok, "OK"),
        ("", &key, "ES384", Code::InvalidArgument, "missing entry ID"),
        ("other", &key, "ES384", Code::NotFound, "entry not found or not authorized"),
        ("own", &[], "ES384", Code::InvalidArgument, "missing public key"),
        ("own", b"x", "ES384", Code::InvalidArgument, "malformed public key: …"),
        ("own", &key, "", Code::InvalidArgument, "missing signing algorithm"),
        ("own", &key, "none", Code::InvalidArgument, "invalid signing algorithm: …"),
        ("own", &key, "ES256", Code::InvalidArgument, "failed to sign WIT-SVID: …"),
    ];
    let params = table.iter().map(|(entry, key, algorithm, ..)| pb::NewWitsvidParams {
        entry_id: (*entry).into(),
        public_key: key.to_vec(),
        signing_algorithm: (*algorithm).into(),
    });
    let request = pb::BatchNewWitsvidRequest { params: params.collect() };
    let results = client.batch_new_witsvid(request).await.unwrap().into_inner().results;
    assert_eq!(results.len(), table.len());
    for (result, (_, _, _, code, message)) in results.iter().zip(&table) {
        assert_status(result.status.as_ref(), *code, message);
        assert_eq!(result.svid.is_some(), *code == Code::Ok);
    }
    let svid = results[0].svid.as_ref().unwrap();
    assert_eq!(svid.expires_at - svid.issued_at, 45);
}

#[tokio::test]
async fn downstream_servers_get_an_authority() {
    let server = TestServer::start().await;
    let mut entry = stored_entry("downstream", &id("/spire/agent/x"), "/downstream");
    entry.downstream = true;
    server.entry(entry).await;
    let identity = server.identity("/downstream");
    let mut client = SvidClient::new(server.remote(Some(&identity)).await.unwrap());
    for (what, csr, preferred_ttl, message) in [
        ("no CSR", vec![], 0, "missing CSR"),
        ("no DER", b"x".to_vec(), 0, "malformed CSR: …"),
        ("signature", tampered(key_csr()), 0, "invalid CSR signature: …"),
        ("ttl", key_csr(), -1, "TTL must not be negative"),
    ] {
        let request = pb::NewDownstreamX509caRequest { csr, preferred_ttl };
        assert_refused_as(what, client.new_downstream_x509ca(request).await, Code::InvalidArgument, message);
    }
    let now = server.clock.now().floor_to_second();
    let own_end: Timestamp = server.server.context().authorities.x509().not_after();
    for (preferred_ttl, end) in [(0, own_end), (600, now.saturating_add(Duration::from_secs(600)))] {
        let request = pb::NewDownstreamX509caRequest { csr: key_csr(), preferred_ttl };
        let response = client.new_downstream_x509ca(request).await.unwrap().into_inner();
        assert_eq!(response.ca_cert_chain.len(), 1);
        let ca = inspect(&response.ca_cert_chain[0]).unwrap();
        assert!(ca.is_ca);
        assert_eq!((ca.uris, ca.not_after), (vec!["spiffe://example.org".to_owned()], end));
        let roots: Vec<_> =
            bundle(&server).x509_authorities.iter().map(|root| root.certificate.clone()).collect();
        assert_eq!(response.x509_authorities, roots);
    }
}

#[tokio::test]
async fn what_is_switched_off_is_unimplemented() {
    let server =
        TestServer::start_with("[authority]\ndisable_jwt_svids = true\ndisable_wit_svids = true").await;
    let (agent, mut of_agent) = agent(&server).await;
    server.entry(stored_entry("own", &agent.id, "/own")).await;
    let mut local = SvidClient::new(server.local().await);
    let jwt = "JWT functionality is disabled";
    let mint = local.mint_jwtsvid(pb::MintJwtsvidRequest::default()).await;
    assert_refused(mint, Code::Unimplemented, jwt);
    let new = of_agent.new_jwtsvid(pb::NewJwtsvidRequest::default()).await;
    assert_refused(new, Code::Unimplemented, jwt);
    let mint = local.mint_witsvid(pb::MintWitsvidRequest::default()).await;
    assert_refused(mint, Code::Unimplemented, "WIT functionality is disabled");
    let key = PrivateKey::generate(KeyType::EcP256).unwrap().public_key().spki_der().to_vec();
    let params = vec![pb::NewWitsvidParams {
        entry_id: "own".into(),
        public_key: key,
        signing_algorithm: "ES256".into(),
    }];
    let results = of_agent.batch_new_witsvid(pb::BatchNewWitsvidRequest { params }).await;
    let result = &results.unwrap().into_inner().results[0];
    assert_status(
        result.status.as_ref(),
        Code::Internal,
        "failed to sign WIT-SVID: WIT functionality is disabled",
    );
    let params = vec![pb::NewX509svidParams { entry_id: "own".into(), csr: key_csr() }];
    let results = of_agent.batch_new_x509svid(pb::BatchNewX509svidRequest { params }).await;
    assert_status(results.unwrap().into_inner().results[0].status.as_ref(), Code::Ok, "OK");
}
