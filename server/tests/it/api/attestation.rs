//! Node attestation, from the wire to the record.

use std::time::Duration;

use bonafide_identity::TrustDomain;
use bonafide_pki::{KeyType, PrivateKey, SignatureAlgorithm, Signer, agent_csr, pem};
use bonafide_proto::convert::denial_reason;
use bonafide_proto::spire::server::agent::v1::attest_agent_request::{Params, Step};
use bonafide_proto::spire::server::agent::v1::{
    AgentX509svidParams, AttestAgentRequest, BanAgentRequest, CreateJoinTokenRequest, DeleteAgentRequest,
    PostStatusRequest, RenewAgentRequest,
};
use bonafide_proto::spire::server::entry::v1::{GetAuthorizedEntriesRequest, ListEntriesRequest};
use bonafide_proto::spire::types::AttestationData;
use bonafide_proto::spire::types::permission_denied_details::Reason;
use bonafide_server::store::Nodes as _;
use bonafide_testkit::{ManualClock, TestAuthority};
use data_encoding::{BASE64, HEXLOWER};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tonic::transport::Endpoint;
use tonic::{Code, Status};

use super::harness::*;

fn no_challenge(_: Vec<u8>) -> Vec<u8> {
    panic!("there is no challenge")
}

#[tokio::test]
async fn a_join_token_makes_an_agent() {
    let server = TestServer::start().await;
    let token = server.join_token(600).await;
    let agent = attest(server.anonymous().await, "join_token", token.as_bytes(), no_challenge).await.unwrap();
    assert_eq!(agent.path(), format!("/spire/agent/join_token/{token}"));
    assert_eq!(agent.chain.len(), 1, "a self-signed authority is not part of the chain");

    let node = server.server.context().state.node(&agent.id).unwrap();
    assert_eq!(node.attestation_type, "join_token");
    assert!(!node.can_reattest && node.selectors.is_empty());
    let channel = server.remote(Some(&agent)).await.unwrap();
    let authorized =
        entries(&channel).get_authorized_entries(GetAuthorizedEntriesRequest::default()).await.unwrap();
    assert_eq!(authorized.into_inner().entries, []);

    let audit = server.audit().await;
    let line =
        audit.iter().find(|line| line["method"] == "/spire.api.server.agent.v1.Agent/AttestAgent").unwrap();
    assert_eq!(line["decision"], "allowed");
    assert_eq!(line["code"], "OK");
    assert_eq!(line["targets"], json!([agent.id.to_string()]));
    assert_eq!(line["issued"], json!([{"kind": "agent", "id": node.serial.unwrap().to_string()}]));
    assert_eq!(line["caller"]["class"], "any");
    let whole = std::fs::read_to_string(server.audit_file()).unwrap();
    let minted = whole.lines().find(|line| line.contains("CreateJoinToken")).unwrap();
    assert!(!minted.contains(&token), "the token is a secret");
}

/// SPIRE had the race: two nodes with one token, both admitted.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_twenty_nodes_with_one_token_exactly_one_attests() {
    let server = TestServer::start().await;
    for _ in 0..3 {
        let token = server.join_token(600).await;
        let mut attempts = JoinSet::new();
        for _ in 0..20 {
            let (channel, token) = (server.anonymous().await, token.clone());
            attempts
                .spawn(async move { attest(channel, "join_token", token.as_bytes(), no_challenge).await });
        }
        let outcomes = attempts.join_all().await;
        assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
        for refused in outcomes.into_iter().filter(Result::is_err) {
            assert_refused(
                refused.map(drop),
                Code::InvalidArgument,
                "failed to attest: join token does not exist or has already been used",
            );
        }
    }
}

#[tokio::test]
async fn an_expired_token_is_spent_by_the_attempt() {
    let server = TestServer::start().await;
    let token = server.join_token(10).await;
    server.clock.advance(Duration::from_secs(11));
    let channel = server.anonymous().await;
    let first = attest(channel.clone(), "join_token", token.as_bytes(), no_challenge).await;
    assert_refused(first.map(drop), Code::InvalidArgument, "join token expired");
    let second = attest(channel, "join_token", token.as_bytes(), no_challenge).await;
    let text = "failed to attest: join token does not exist or has already been used";
    assert_refused(second.map(drop), Code::InvalidArgument, text);
}

#[tokio::test]
async fn malformed_requests_are_refused_before_anything_is_spent() {
    let server = TestServer::start().await;
    let channel = server.anonymous().await;
    let key = PrivateKey::generate(KeyType::EcP256).unwrap();
    let csr = agent_csr(&key, None).unwrap();
    let data = |kind: &str, payload: &[u8]| {
        Some(AttestationData { r#type: kind.to_owned(), payload: payload.to_vec() })
    };
    let svid = |csr: &[u8]| Some(AgentX509svidParams { csr: csr.to_vec() });
    let params = |data, params| Some(Step::Params(Params { data, params }));
    for (step, message) in [
        (None, "malformed param: missing params"),
        (Some(Step::ChallengeResponse(vec![1])), "malformed param: missing params"),
        (params(None, svid(&csr)), "malformed param: missing attestation data"),
        (params(data("join_token", b"x"), None), "malformed param: missing X509-SVID parameters"),
        (params(data("join_token", b"x"), svid(b"")), "malformed param: missing CSR"),
        (params(data("", b"x"), svid(&csr)), "malformed param: missing attestation data type"),
        (params(data("join_token", b""), svid(&csr)), "malformed param: missing attestation data payload"),
        (
            params(data("join_token", &vec![b'x'; 256 * 1024 + 1]), svid(&csr)),
            "malformed param: attestation data payload has 262145 bytes; the limit is 262144",
        ),
        (
            params(data("join_token", b"x"), svid(&vec![0; 16 * 1024 + 1])),
            "malformed param: CSR has 16385 bytes; the limit is 16384",
        ),
        (
            params(data("join_token", b"\xff\xfe"), svid(&csr)),
            "failed to attest: join token does not exist or has already been used",
        ),
    ] {
        let requests = tokio_stream::iter([AttestAgentRequest { step }]);
        let outcome = match agents(&channel).attest_agent(requests).await {
            Ok(response) => response.into_inner().message().await.map(drop),
            Err(status) => Err(status),
        };
        assert_refused(outcome, Code::InvalidArgument, message);
    }
    let unknown = attest(channel.clone(), "x509pop", b"x", no_challenge).await;
    let text = "error getting node attestor: could not find node attestor type \"x509pop\"";
    assert_refused(unknown.map(drop), Code::FailedPrecondition, text);
    // Nothing at all, and the end.
    let outcome = match agents(&channel).attest_agent(tokio_stream::empty()).await {
        Ok(response) => response.into_inner().message().await.map(drop),
        Err(status) => Err(status),
    };
    assert_eq!(outcome.unwrap_err().code(), Code::Cancelled);
}

#[tokio::test]
async fn a_csr_that_cannot_be_read_is_refused() {
    let server = TestServer::start().await;
    let token = server.join_token(600).await;
    let requests = tokio_stream::iter([attest_params("join_token", token.as_bytes(), b"not a CSR")]);
    let outcome = match agents(&server.anonymous().await).attest_agent(requests).await {
        Ok(response) => response.into_inner().message().await.map(drop),
        Err(status) => Err(status),
    };
    let status = outcome.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().starts_with("failed to parse CSR: "), "{status:?}");
}

/// The contract of the agents in the field: the CSR's signature and subject do not matter, its key does.
#[tokio::test]
async fn only_the_key_of_the_csr_counts() {
    let server = TestServer::start().await;
    let token = server.join_token(600).await;
    let key = PrivateKey::generate(KeyType::EcP256).unwrap();
    let mut csr = agent_csr(&key, None).unwrap();
    *csr.last_mut().unwrap() ^= 1;
    let requests = tokio_stream::iter([attest_params("join_token", token.as_bytes(), &csr)]);
    let mut responses = agents(&server.anonymous().await).attest_agent(requests).await.unwrap().into_inner();
    assert!(responses.message().await.unwrap().is_some());
}

/// Anybody can write an ECDSA signature in another way, which makes another fingerprint.
#[tokio::test]
async fn advisory_a_banned_node_does_not_return_with_another_form_of_its_certificate() {
    let authority = node_authority();
    let (server, _files) = x509pop_server(authority.root(), "").await;
    let mut node = Node::new(&authority, |_| {});
    let issuer = node.chain.get(1).map_or(authority.root(), Vec::as_slice);
    let issuer = bonafide_pki::inspect(issuer).unwrap().public_key.unwrap();
    let other = bonafide_pki::twin(&node.chain[0], &issuer).unwrap();
    assert_ne!(other, node.chain[0]);

    let agent = node.attest(&server).await.unwrap();
    node.chain[0] = other;
    let second = node.attest(&server).await.unwrap_err();
    assert_eq!(second.code(), Code::PermissionDenied);
    assert!(second.message().ends_with("has already been used to attest an agent"), "{second:?}");
    let local = agents(&server.local().await);
    let id = || wire_id(agent.path());
    local.clone().ban_agent(BanAgentRequest { id: id() }).await.unwrap();
    let banned = node.attest(&server).await.unwrap_err();
    assert_eq!(banned.message(), "failed to attest: agent is banned");
    local.clone().delete_agent(DeleteAgentRequest { id: id() }).await.unwrap();
    node.attest(&server).await.unwrap();
}

#[tokio::test]
async fn a_banned_agent_is_kept_out_until_it_is_evicted() {
    let authority = node_authority();
    let (server, _files) = x509pop_server(authority.root(), "").await;
    let node = Node::new(&authority, |_| {});
    let agent = node.attest(&server).await.unwrap();
    let local = agents(&server.local().await);
    let id = || wire_id(agent.path());
    local.clone().ban_agent(BanAgentRequest { id: id() }).await.unwrap();

    let refused = node.attest(&server).await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::PermissionDenied, "failed to attest: agent is banned")
    );
    assert_eq!(denial_reason(&refused), None, "agents act on details; here there must be none");
    let channel = server.remote(Some(&agent)).await.unwrap();
    let status = agents(&channel).post_status(PostStatusRequest::default()).await.unwrap_err();
    assert_eq!(denial_reason(&status), Some(Reason::AgentBanned));

    local.clone().delete_agent(DeleteAgentRequest { id: id() }).await.unwrap();
    let channel = server.remote(Some(&agent)).await.unwrap();
    let status = agents(&channel).post_status(PostStatusRequest::default()).await.unwrap_err();
    assert_eq!(denial_reason(&status), Some(Reason::AgentNotAttested));
    node.attest(&server).await.unwrap();
}

#[tokio::test]
async fn a_renewed_svid_supersedes_the_old_one_when_it_is_first_used() {
    let server = TestServer::start().await;
    let old = server.agent().await;
    let channel = server.remote(Some(&old)).await.unwrap();
    let key = std::sync::Arc::new(PrivateKey::generate(KeyType::EcP256).unwrap());
    let csr = agent_csr(&*key, None).unwrap();
    let request = RenewAgentRequest { params: Some(AgentX509svidParams { csr }) };
    let svid = agents(&channel).renew_agent(request).await.unwrap().into_inner().svid.unwrap();
    let chain = svid.cert_chain.iter().map(|der| der.to_vec()).collect();
    let new = Identity { id: old.id.clone(), chain, key };

    // The old one goes on until the new one is used.
    let status = PostStatusRequest { agent_version: "1.2.3".to_owned(), ..Default::default() };
    agents(&channel).post_status(status.clone()).await.unwrap();
    let renewed = server.remote(Some(&new)).await.unwrap();
    agents(&renewed).post_status(status.clone()).await.unwrap();
    let refused = agents(&channel).post_status(status.clone()).await.unwrap_err();
    assert_eq!(denial_reason(&refused), Some(Reason::AgentNotActive));
    assert_eq!(
        refused.message(),
        "authorization denied for method /spire.api.server.agent.v1.Agent/PostStatus"
    );
    agents(&renewed).post_status(status).await.unwrap();
    let node = server.server.context().state.node(&new.id).unwrap();
    assert_eq!((node.new_serial, node.agent_version.as_str()), (None, "1.2.3"));
}

#[tokio::test]
async fn an_expired_svid_is_told_so() {
    let server = TestServer::start().await;
    let agent = server.agent().await;
    let channel = server.remote(Some(&agent)).await.unwrap();
    agents(&channel).post_status(PostStatusRequest::default()).await.unwrap();
    server.clock.advance(Duration::from_secs(3601));
    let refused = agents(&channel).post_status(PostStatusRequest::default()).await.unwrap_err();
    assert_eq!(denial_reason(&refused), Some(Reason::AgentExpired));
}

#[tokio::test]
async fn a_token_for_an_agent_brings_an_alias_that_leaves_with_it() {
    let server = TestServer::start().await;
    let local = server.local().await;
    let request = CreateJoinTokenRequest { ttl: 60, agent_id: wire_id("/nodes/one"), ..Default::default() };
    let token = agents(&local).create_join_token(request).await.unwrap().into_inner();
    let list = async || {
        let response = entries(&local).list_entries(ListEntriesRequest::default()).await.unwrap();
        response.into_inner().entries
    };
    let parent = format!("/spire/agent/join_token/{}", token.value);
    let [alias] = &list().await[..] else { panic!("one entry") };
    assert_eq!((&alias.spiffe_id, &alias.parent_id), (&wire_id("/nodes/one"), &wire_id(&parent)));
    assert_eq!(alias.selectors, [selector(&format!("spiffe_id:spiffe://example.org{parent}"))]);

    let agent =
        attest(server.anonymous().await, "join_token", token.value.as_bytes(), no_challenge).await.unwrap();
    let channel = server.remote(Some(&agent)).await.unwrap();
    let authorized = entries(&channel).get_authorized_entries(GetAuthorizedEntriesRequest::default()).await;
    assert_eq!(authorized.unwrap().into_inner().entries.len(), 1);
    agents(&local).delete_agent(DeleteAgentRequest { id: wire_id(agent.path()) }).await.unwrap();
    assert_eq!(list().await, []);
}

#[tokio::test]
async fn attestations_from_one_address_are_limited_and_wait_their_turn() {
    let server = TestServer::start_with("[ratelimit]\nattestation = 1\nsigning = 1\n").await;
    let (first, second) = (server.join_token(600).await, server.join_token(600).await);
    let channel = server.anonymous().await;
    attest(channel.clone(), "join_token", first.as_bytes(), no_challenge).await.unwrap();
    let begun = std::time::Instant::now();
    let agent = attest(channel.clone(), "join_token", second.as_bytes(), no_challenge).await.unwrap();
    assert!(begun.elapsed() > Duration::from_millis(500), "{:?}", begun.elapsed());
    // A caller whose deadline is too near is refused at once.
    let mut request = tonic::Request::new(tokio_stream::empty());
    request.set_timeout(Duration::from_millis(100));
    let status = agents(&channel).attest_agent(request).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    // Another rpc has a bucket of its own, which belongs to the agent.
    let channel = server.remote(Some(&agent)).await.unwrap();
    let csr = agent_csr(&*agent.key, None).unwrap();
    let request = || {
        let csr = csr.clone();
        let mut request =
            tonic::Request::new(RenewAgentRequest { params: Some(AgentX509svidParams { csr }) });
        request.set_timeout(Duration::from_millis(300));
        request
    };
    agents(&channel).renew_agent(request()).await.unwrap();
    let status = agents(&channel).renew_agent(request()).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    let audit = server.audit().await;
    assert!(audit.iter().any(|line| line["decision"] == "limited"));
}

#[tokio::test]
async fn a_node_has_its_own_id_among_its_selectors_when_asked_for() {
    for (more, expected) in [("", 0), ("[node_attestor]\nspiffe_id_selector = true\n", 1)] {
        let server = TestServer::start_with(more).await;
        let token = server.join_token(600).await;
        attest(server.anonymous().await, "join_token", token.as_bytes(), no_challenge).await.unwrap();
        let own = id(&format!("/spire/agent/join_token/{token}"));
        let node = server.server.context().state.node(&own).unwrap();
        let found: Vec<_> = node.selectors.iter().filter(|one| one.kind() == "spiffe_id").collect();
        assert_eq!(found.len(), expected);
        assert!(found.iter().all(|one| one.value() == own.to_string()));
    }
}

/// Behind a load balancer the limit, and the audit log, are about the client that it names.
#[tokio::test]
async fn a_trusted_proxy_says_whose_attestation_it_is() {
    let more =
        "proxy_protocol_trusted_cidrs = [\"127.0.0.1/32\"]\n[ratelimit]\nattestation = 1\nsigning = 1\n";
    let server = TestServer::start_with(more).await;
    let client = |last: u8| format!("PROXY TCP4 192.0.2.{last} 127.0.0.1 40000 8081\r\n");
    let begun = std::time::Instant::now();
    for last in 1..=5 {
        let token = server.join_token(600).await;
        let channel = server.anonymous_behind(&client(last)).await.unwrap();
        attest(channel, "join_token", token.as_bytes(), no_challenge).await.unwrap();
    }
    assert!(
        begun.elapsed() < Duration::from_secs(4),
        "five clients have waited like one: {:?}",
        begun.elapsed()
    );
    // A client's second call counts with its first, over another connection of the proxy.
    let channel = server.anonymous_behind(&client(5)).await.unwrap();
    let mut request = tonic::Request::new(tokio_stream::empty());
    request.set_timeout(Duration::from_millis(100));
    let status = agents(&channel).attest_agent(request).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    let audit = server.audit().await;
    for last in 1..=5 {
        let address = format!("192.0.2.{last}:40000");
        assert!(
            audit.iter().any(|line| line["caller"]["address"] == address.as_str()),
            "{address}: {audit:?}"
        );
    }
    server.anonymous_behind("PROXY TCP4 nowhere\r\n").await.unwrap_err();
}

// x509pop

pub(super) fn node_authority() -> TestAuthority {
    let clock = ManualClock::default();
    let (from, to) = (
        clock.now().saturating_sub(Duration::from_secs(60)),
        clock.now().saturating_add(Duration::from_secs(86_400)),
    );
    TestAuthority::new(&TrustDomain::parse("nodes.test").unwrap(), from, to)
}

async fn x509pop_server(root: &[u8], more: &str) -> (TestServer, TempDir) {
    let files = TempDir::new().unwrap();
    let roots = files.path().join("roots.pem");
    std::fs::write(&roots, pem::encode("CERTIFICATE", root)).unwrap();
    let section = format!("[node_attestor.x509pop]\nca_bundle_path = \"{}\"\n{more}", roots.display());
    (TestServer::start_with(&section).await, files)
}

pub(super) struct Node {
    chain: Vec<Vec<u8>>,
    key: PrivateKey,
}

impl Node {
    pub(super) fn new(authority: &TestAuthority, change: impl FnOnce(&mut rcgen::CertificateParams)) -> Self {
        let leaf = authority.issue_with(&bonafide_testkit::id("/node"), change);
        Self { key: PrivateKey::from_pkcs8_der(&leaf.pkcs8).unwrap(), chain: leaf.chain }
    }

    pub(super) fn payload(&self) -> Vec<u8> {
        let certificates: Vec<String> = self.chain.iter().map(|der| BASE64.encode(der)).collect();
        serde_json::to_vec(&json!({ "certificates": certificates })).unwrap()
    }

    /// The answer to a challenge, signed over `nonce` (or the challenge's own).
    pub(super) fn answer(&self, challenge: &[u8], nonce: Option<&[u8]>) -> Vec<u8> {
        let challenge: Value = serde_json::from_slice(challenge).unwrap();
        let rsa = matches!(self.key.key_type(), KeyType::Rsa2048 | KeyType::Rsa4096);
        let (asked, other) = match rsa {
            true => ("rsa_signature", "ecdsa_signature"),
            false => ("ecdsa_signature", "rsa_signature"),
        };
        assert_eq!(challenge[other], Value::Null);
        let asked = BASE64.decode(challenge[asked]["nonce"].as_str().unwrap().as_bytes()).unwrap();
        assert_eq!(asked.len(), 32);
        let mine = [7; 32];
        let message = [nonce.unwrap_or(&asked), &mine].concat();
        let mine = BASE64.encode(&mine);
        let response = if rsa {
            let signature = self.key.sign_with(SignatureAlgorithm::RsaPssSha256, &message).unwrap();
            json!({"rsa_signature": {"nonce": mine, "signature": BASE64.encode(&signature)}, "ecdsa_signature": null})
        } else {
            let (r, s) = numbers(&self.key.sign(&message).unwrap());
            let signature = json!({"nonce": mine, "r": BASE64.encode(&r), "s": BASE64.encode(&s)});
            json!({"rsa_signature": null, "ecdsa_signature": signature})
        };
        serde_json::to_vec(&response).unwrap()
    }

    async fn attest(&self, server: &TestServer) -> Result<Identity, Status> {
        let answer = |challenge: Vec<u8>| self.answer(&challenge, None);
        attest(server.anonymous().await, "x509pop", &self.payload(), answer).await
    }
}

/// The numbers in a DER signature, unsigned.
fn numbers(der: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let number = |at: usize| {
        let length = usize::from(der[at + 1]);
        let bytes = &der[at + 2..at + 2 + length];
        let bytes = if bytes[0] == 0 { &bytes[1..] } else { bytes };
        (bytes.to_vec(), at + 2 + length)
    };
    let (r, next) = number(2);
    (r, number(next).0)
}

#[tokio::test]
async fn a_certificate_of_the_configured_roots_makes_an_agent() {
    let root = node_authority();
    let (server, _files) = x509pop_server(root.root(), "").await;
    let node = Node::new(&root.intermediate(), |params| {
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, "node-1");
        params.subject_alt_names =
            vec![rcgen::SanType::URI("x509pop://example.org/rack/a/12".try_into().unwrap())];
        params.serial_number = Some(vec![0x0a, 0xbc].into());
    });
    let agent = node.attest(&server).await.unwrap();
    let sha1 = |der: &[u8]| HEXLOWER.encode(&bonafide_pki::x509::sha1_fingerprint(der));
    assert_eq!(agent.path(), format!("/spire/agent/x509pop/{}", sha1(&node.chain[0])));
    let record = server.server.context().state.node(&agent.id).unwrap();
    assert!(record.can_reattest);
    let selectors: Vec<String> = record.selectors.iter().map(ToString::to_string).collect();
    let mut expected = vec![
        format!("x509pop:ca:fingerprint:{}", sha1(&node.chain[1])),
        format!("x509pop:ca:fingerprint:{}", sha1(root.root())),
        "x509pop:san:rack:a/12".to_owned(),
        "x509pop:serialnumber:0abc".to_owned(),
        "x509pop:subject:cn:node-1".to_owned(),
    ];
    expected.sort();
    assert_eq!(selectors, expected);

    // What evidence said holds until its end, over another attestation as well.
    let (mut with_evidence, until) =
        ((*record).clone(), server.clock.now().saturating_add(Duration::from_secs(60)));
    with_evidence.set_evidence(bonafide_testkit::selectors(["gpu_node:attested:true"]), until);
    let shown = with_evidence.selectors.clone();
    server.server.context().store.write(move |unit| unit.node_put(with_evidence)).await.unwrap();

    // Again: the former SVID is dead at once, and renewing is not for those who can attest.
    let again = node.attest(&server).await.unwrap();
    let record = server.server.context().state.node(&agent.id).unwrap();
    assert_eq!((&record.selectors, record.evidence_until), (&shown, Some(until)));
    let channel = server.remote(Some(&agent)).await.unwrap();
    let refused = agents(&channel).post_status(PostStatusRequest::default()).await.unwrap_err();
    assert_eq!(denial_reason(&refused), Some(Reason::AgentNotActive));
    let channel = server.remote(Some(&again)).await.unwrap();
    let refused = agents(&channel).renew_agent(RenewAgentRequest::default()).await.unwrap_err();
    assert_eq!(refused.message(), "agent must reattest instead of renew");
    assert_eq!(denial_reason(&refused), Some(Reason::AgentMustReattest));
}

#[tokio::test]
async fn rsa_keys_are_challenged_with_pss_up_to_the_size_that_is_allowed() {
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let root = params.self_signed(&ca_key).unwrap().der().to_vec();
    let issuer = rcgen::Issuer::new(params, ca_key);
    let node = |kind| {
        let key = PrivateKey::generate(kind).unwrap();
        let pkcs8 = rustls_pki_types::PrivatePkcs8KeyDer::from(key.expose_pkcs8().to_vec());
        let pair = rcgen::KeyPair::from_pkcs8_der_and_sign_algo(&pkcs8, &rcgen::PKCS_RSA_SHA256).unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
        let leaf = params.signed_by(&pair, &issuer).unwrap();
        Node { chain: vec![leaf.der().to_vec()], key }
    };
    let (server, _files) = x509pop_server(&root, "max_rsa_key_size = 2048").await;
    let small = node(KeyType::Rsa2048);
    small.attest(&server).await.unwrap();
    let replay = |challenge: Vec<u8>| small.answer(&challenge, Some(&[1; 32]));
    let refused = attest(server.anonymous().await, "x509pop", &small.payload(), replay).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let refused = node(KeyType::Rsa4096).attest(&server).await.unwrap_err();
    assert_eq!(
        refused.message(),
        "nodeattestor(x509pop): certificate's RSA key has 4096 bits; the limit is 2048"
    );
}

#[tokio::test]
async fn who_cannot_prove_possession_is_not_attested() {
    let root = node_authority();
    let (server, _files) = x509pop_server(root.root(), "max_intermediates = 1").await;
    let node = Node::new(&root, |_| {});
    let prefixed = |text: &str| format!("nodeattestor(x509pop): {text}");

    // A signature over another nonce, as in a replay.
    let replay = |challenge: Vec<u8>| node.answer(&challenge, Some(&[1; 32]));
    let refused = attest(server.anonymous().await, "x509pop", &node.payload(), replay).await;
    assert_refused(
        refused.map(drop),
        Code::PermissionDenied,
        &prefixed("challenge response verification failed"),
    );
    // Another node's key.
    let other = Node::new(&root, |_| {});
    let foreign_key = |challenge: Vec<u8>| other.answer(&challenge, None);
    let refused = attest(server.anonymous().await, "x509pop", &node.payload(), foreign_key).await;
    assert_refused(
        refused.map(drop),
        Code::PermissionDenied,
        &prefixed("challenge response verification failed"),
    );
    // Nothing that could be a response.
    for (answer, start) in [
        (&b"{}"[..], "challenge response does not answer the challenge"),
        (b"", "unable to unmarshal challenge response: "),
        (b"[1]", "unable to unmarshal challenge response: "),
        (
            br#"{"ecdsa_signature":{"nonce":"","r":"AQ==","s":"AQ=="}}"#,
            "challenge response nonce must have 32 bytes",
        ),
        (br#"{"ecdsa_signature":{"nonce":"","r":"","s":""}}"#, "challenge response verification failed"),
    ] {
        let refused = attest(server.anonymous().await, "x509pop", &node.payload(), |_| answer.to_vec())
            .await
            .unwrap_err();
        assert!(refused.message().starts_with(&prefixed(start)), "{refused:?}");
    }
    // Certificates that are not acceptable are refused without a challenge.
    let stranger = node_authority();
    let short = |params: &mut rcgen::CertificateParams| {
        params.not_after = rcgen::date_time_ymd(2025, 12, 31);
        params.not_before = rcgen::date_time_ymd(2025, 1, 1);
    };
    for (chain, code, start) in [
        (Node::new(&stranger, |_| {}).chain, Code::PermissionDenied, "certificate verification failed: "),
        (
            Node::new(&root, short).chain,
            Code::PermissionDenied,
            "certificate verification failed: certificate has expired",
        ),
        (
            Node::new(&root, |params| params.key_usages = vec![rcgen::KeyUsagePurpose::KeyEncipherment])
                .chain,
            Code::InvalidArgument,
            "certificate not intended for digital signature use",
        ),
        (
            Node::new(&root, |params| params.key_usages = Vec::new()).chain,
            Code::InvalidArgument,
            "certificate not intended for digital signature use",
        ),
        (
            Node::new(&root.intermediate().intermediate(), |_| {}).chain,
            Code::InvalidArgument,
            "2 intermediate certificates given; the limit is 1",
        ),
        (vec![vec![1, 2, 3]], Code::InvalidArgument, "unable to parse leaf certificate: "),
        (Vec::new(), Code::InvalidArgument, "no certificate to attest"),
    ] {
        let node = Node { chain, key: PrivateKey::generate(KeyType::EcP256).unwrap() };
        let refused =
            attest(server.anonymous().await, "x509pop", &node.payload(), no_challenge).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused:?}");
        assert!(refused.message().starts_with(&prefixed(start)), "{refused:?}");
    }
    for payload in [&b"x"[..], b"{\"certificates\":\"x\"}", b"{\"certificates\":[\"?\"]}"] {
        let refused = attest(server.anonymous().await, "x509pop", payload, no_challenge).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().starts_with(&prefixed("failed to unmarshal data: ")), "{refused:?}");
    }
}

/// CVE-2021-27099 (SPIRE): what a node may choose became a part of its agent ID and reached beyond its place there.
#[tokio::test]
async fn advisory_a_certificate_cannot_name_its_way_to_another_agent() {
    let root = node_authority();
    let template = "agent_path_template = \"/{{ .Subject.CommonName }}\"";
    let (server, _files) = x509pop_server(root.root(), template).await;
    let named = |name: &str| {
        Node::new(&root, |params| {
            params.distinguished_name = rcgen::DistinguishedName::new();
            if !name.is_empty() {
                params.distinguished_name.push(rcgen::DnType::CommonName, name);
            }
        })
    };
    assert_eq!(named("rack-1").attest(&server).await.unwrap().path(), "/spire/agent/rack-1");
    let token = server.agent().await;
    let taken = token.path().strip_prefix("/spire/agent/").unwrap();
    for name in
        [taken, "../server", "..", ".", "", "/", "a/", "/a", "a//b", "a/./b", "a b", "%2e%2e", "\u{fc}"]
    {
        let refused = named(name).attest(&server).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{name:?}: {refused:?}");
    }
    // Nobody has taken the place of the agent that was there.
    let channel = server.remote(Some(&token)).await.unwrap();
    agents(&channel).post_status(PostStatusRequest::default()).await.unwrap();
}

/// Places are few. A node that takes no answers must not keep one.
#[tokio::test]
async fn nodes_that_read_nothing_are_sent_away() {
    let root = node_authority();
    let (server, _files) = x509pop_server(root.root(), "").await;
    let node = std::sync::Arc::new(Node::new(&root, |_| {}));
    // Without a window the challenge cannot be sent.
    let deaf = Endpoint::from_static("http://server").initial_stream_window_size(0);
    let channel = server.remote_through(deaf, None).await.unwrap();
    let mut deaf = JoinSet::new();
    for _ in 0..256 {
        let (channel, node) = (channel.clone(), node.clone());
        deaf.spawn(async move { attest(channel, "x509pop", &node.payload(), no_challenge).await.map(drop) });
    }
    eventually("no place is left", async || {
        let busy = node.attest(&server).await;
        busy.is_err_and(|status| status.code() == Code::Unavailable)
    })
    .await;
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(31)).await;
    tokio::time::resume();
    eventually("there are places again", async || node.attest(&server).await.is_ok()).await;
}

#[tokio::test]
async fn the_callers_address_can_be_required_in_the_certificate() {
    let root = node_authority();
    let (server, _files) = x509pop_server(root.root(), "verify_client_ip = true").await;
    let with = |address: &str| {
        let address = address.parse().unwrap();
        Node::new(&root, |params| params.subject_alt_names = vec![rcgen::SanType::IpAddress(address)])
    };
    with("127.0.0.1").attest(&server).await.unwrap();
    let refused = with("127.0.0.2").attest(&server).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn an_svid_below_the_prefix_is_exchanged_for_that_of_an_agent() {
    let server = TestServer::start_with("[node_attestor.x509pop]\nmode = \"spiffe\"\n").await;
    let attest_as = async |path: &str| {
        let svid = server.identity(path);
        let key = PrivateKey::from_pkcs8_der(&svid.key.expose_pkcs8()).unwrap();
        Node { chain: svid.chain.clone(), key }.attest(&server).await
    };
    let agent = attest_as("/spire-exchange/rack/1").await.unwrap();
    assert_eq!(agent.path(), "/spire/agent/x509pop/rack/1");
    let refused = attest_as("/web").await.unwrap_err();
    assert_eq!(
        refused.message(),
        "nodeattestor(x509pop): certificate's SPIFFE ID spiffe://example.org/web is not below /spire-exchange/"
    );
}

/// An attestation holds a place; a node that says nothing must give it up.
#[tokio::test]
async fn a_node_that_says_nothing_is_sent_away() {
    let server = TestServer::start().await;
    let channel = server.anonymous().await;
    let (requests, stream) = tokio::sync::mpsc::channel::<AttestAgentRequest>(1);
    let stream = tokio_stream::wrappers::ReceiverStream::new(stream);
    let mut responses = agents(&channel).attest_agent(stream).await.unwrap().into_inner();
    // From here the time jumps from one timer to the next whenever nothing else is to be done.
    tokio::time::pause();
    let status = responses.message().await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::DeadlineExceeded, "the node did not answer in time")
    );
    tokio::time::resume();
    drop(requests);
}
