//! What nodes and servers send each other at attestation: `x509pop` payloads, challenges and responses, join tokens, `k8s_psat`
//! payloads and what API servers answer about them.
//!
//! The bytes up to the first zero byte are what the node presents, those after it what it answers. They are also read as the
//! signed part of the node's certificate, then presented with a good answer; and as the challenge that an agent gets. Laws:
//! nobody is admitted without a signature of the certificate's key over both nonces, or of the cluster's key; an admitted
//! node gets an agent's ID and selectors of the attestor's type; a join token is good once.

use std::path::PathBuf;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bonafide_agent::node_attestor::{self as agent_half, NodeAttestor as _};
use bonafide_identity::{JoinToken, SelectorSet, Timestamp};
use bonafide_pki::oidc::{OidcKeys, OidcToken, TokenRules};
use bonafide_pki::possession::Proof;
use bonafide_pki::{JwsAlgorithm, KeyAlgorithm, inspect, pem};
use bonafide_server::config::X509PopSettings;
use bonafide_server::kubernetes::{Access, Api, ApiError, Call};
use bonafide_server::node_attestor::k8s_psat::{self, ClusterSettings, K8sPsat};
use bonafide_server::node_attestor::oidc::{KeySettings, KeySource};
use bonafide_server::node_attestor::x509pop::{AgentPathTemplate, Mode, X509Pop};
use bonafide_server::node_attestor::{Attempt, AttestError, Attested, NodeAttestor, join_token};
use bonafide_server::store::{JoinTokens as _, Store, StoreConfig};
use data_encoding::BASE64;
use serde_json::{Value, json};
use tokio::runtime::{Builder, Runtime};

use crate::exchange::{Constant, Node};
use crate::foreign_token::{ISSUER, key_set, token as signed_token};
use crate::{NOW, known_key, split_at_byte, trust_domain, with_a_flipped_bit};

/// The token that the store holds whenever an attempt begins.
pub const TOKEN: &str = "6f3a1c0e";

struct Fixture {
    runtime: Runtime,
    store: Store,
    tokens: join_token::JoinToken,
    /// With the usual agent path, and with one that is made of what the certificate says.
    pops: [X509Pop; 2],
    /// With the cluster's keys alone, and with an API server that is asked too.
    psat: K8sPsat,
    /// What that API server answers to everything.
    api_answer: Arc<Mutex<Vec<u8>>>,
    /// The cluster's keys are read when they are needed.
    _files: tempfile::TempDir,
    /// Answers any number of challenges.
    agent: Mutex<Box<dyn agent_half::Attempt>>,
}

static FIXTURE: LazyLock<Fixture> = LazyLock::new(|| {
    let runtime = Builder::new_current_thread().build().expect("a runtime without drivers");
    let clock = Arc::new(|| NOW);
    let (store, _) = Store::open(StoreConfig::memory(trust_domain()), clock).expect("a store in memory");
    let files = crate::folder();
    let file = |name: &str, label: &str, der: &[u8]| -> PathBuf {
        let path = files.path().join(name);
        std::fs::write(&path, pem::encode(label, der)).expect("there is room");
        path
    };
    let roots = file("roots.pem", "CERTIFICATE", &known_key::authority());
    let pop = |template: &str| {
        let settings = X509PopSettings {
            mode: Mode::ExternalPki,
            ca_bundle_paths: vec![roots.clone()],
            agent_path_template: AgentPathTemplate::parse(template, Mode::ExternalPki).expect("a template"),
            spiffe_prefix: String::new(),
            max_intermediates: 4,
            max_rsa_key_size: 4096,
            verify_client_ip: false,
        };
        let random = Arc::new(Constant(SERVER_NONCE));
        X509Pop::new(trust_domain(), settings, store.state().clone(), random).expect("the roots are there")
    };
    let agent = agent_half::x509pop::X509Pop::new(
        file("node.pem", "CERTIFICATE", &known_key::leaf()),
        file("node.key", "PRIVATE KEY", &known_key::pkcs8()),
        None,
        Arc::new(Constant(CLIENT_NONCE)),
    );
    let keys = files.path().join("keys.json");
    std::fs::write(&keys, key_set()).expect("there is room");
    let cluster = |name: &str, alive: Option<Access>| ClusterSettings {
        name: name.to_owned(),
        service_accounts: ["a:b".to_owned()].into(),
        audiences: vec!["here".to_owned()],
        node_labels: ["x".to_owned()].into(),
        pod_labels: ["x".to_owned()].into(),
        agent_per_pod: alive.is_none(),
        proof: k8s_psat::Proof::Keys {
            keys: Box::new(KeySettings {
                name: name.to_owned(),
                url: ISSUER.to_owned(),
                source: KeySource::File(keys.clone()),
                ca_path: None,
                fetch_token_path: None,
                refresh: Duration::from_secs(3600),
            }),
            rules: TokenRules {
                audiences: vec!["here".to_owned()],
                algorithms: vec![JwsAlgorithm::Es256],
                leeway: Duration::from_secs(60),
                max_age: Duration::from_secs(3600),
            },
            alive,
        },
    };
    let clusters = vec![cluster("keys", None), cluster("asked", Some(Access::InCluster))];
    let api_answer = Arc::new(Mutex::new(Vec::new()));
    let connect = |_: &Access| Ok(Arc::new(Answering(Arc::clone(&api_answer))) as Arc<dyn Api>);
    let psat = K8sPsat::new(trust_domain(), clusters, &connect).expect("the keys are there");
    let agent = runtime.block_on(agent.begin()).expect("certificate and key are there");
    Fixture {
        runtime,
        tokens: join_token::JoinToken::new(trust_domain(), store.clone()),
        pops: [
            pop("/{{ .PluginName }}/{{ .Fingerprint }}"),
            pop("/n/{{ .Subject.CommonName }}/{{ .SerialNumberHex }}"),
        ],
        store,
        psat,
        api_answer: Arc::clone(&api_answer),
        _files: files,
        agent: Mutex::new(agent),
    }
});

/// Whether a node was admitted, or a challenge answered.
pub fn check(data: &[u8]) -> bool {
    let (payload, answer) = split_at_byte(data, 0);
    let admitted = x509pop(payload, answer);
    let certified = certified(data);
    let token = token(data);
    let answered = challenge(data);
    let cluster = psat(payload, answer);
    // The same as claims that the cluster has signed.
    let claimed = ["keys", "asked"].map(|name| psat(&psat_payload(name, &signed_token(payload)), answer));
    admitted || certified || token || answered || cluster || claimed.contains(&true)
}

/// What a pod with this token presents.
pub fn psat_payload(cluster: &str, token: &str) -> Vec<u8> {
    json!({ "cluster": cluster, "token": token }).to_string().into_bytes()
}

fn psat(payload: &[u8], answer: &[u8]) -> bool {
    let Fixture { psat, api_answer, .. } = &*FIXTURE;
    *api_answer.lock().expect("nothing panics on this side of a crash") = answer.to_vec();
    let Ok(attested) = attest(psat, payload, &mut |_| Vec::new()) else { return false };
    sound(&attested, "k8s_psat");
    let path = attested.id.path();
    let below = ["keys/pod/", "asked/"].map(|place| format!("/spire/agent/k8s_psat/{place}"));
    let suffix = below.iter().find_map(|place| path.strip_prefix(place.as_str()));
    assert!(suffix.is_some_and(|suffix| !suffix.contains('/')), "{path}");
    assert!(attested.can_reattest);
    // As in `proven`: no opinion on what only this reader cannot read.
    let Ok(presented) = serde_json::from_slice::<Value>(payload) else { return true };
    let text = member(&presented, "token", 1).as_str().expect("it was admitted").trim_ascii();
    let keys = OidcKeys::parse(&key_set()).expect("our own keys");
    let token = OidcToken::parse(text).expect("it was admitted");
    assert!(token.verify(&keys).is_ok(), "admitted without a signature");
    true
}

/// An API server that answers the same to everything.
struct Answering(Arc<Mutex<Vec<u8>>>);

#[async_trait]
impl Api for Answering {
    async fn call(&self, _: Call<'_>) -> Result<Vec<u8>, ApiError> {
        Ok(self.0.lock().expect("nothing panics on this side of a crash").clone())
    }
}

fn x509pop(payload: &[u8], answer: &[u8]) -> bool {
    let attempts = FIXTURE.pops.iter().map(|pop| attest(pop, payload, &mut |_| answer.to_vec()));
    let admitted: Vec<Attested> = attempts.filter_map(Result::ok).collect();
    for attested in &admitted {
        sound(attested, "x509pop");
        let another = with_a_flipped_bit(&[SERVER_NONCE; 32]);
        assert_ne!(proven(payload, answer, &[SERVER_NONCE; 32]), Some(false), "admitted without proof");
        assert_ne!(proven(payload, answer, &another), Some(true), "the server's nonce is not signed");
    }
    !admitted.is_empty()
}

/// A second opinion on whether an answer proves possession of the key of the first certificate in a payload. `None`
/// where this reader has none: it looks at all that is there, and so stops at text that is no UTF-8, at deep nesting and at
/// huge numbers in members that the readers under test pass over.
fn proven(payload: &[u8], answer: &[u8], server_nonce: &[u8]) -> Option<bool> {
    let json = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).ok();
    let (payload, answer) = (json(payload)?, json(answer)?);
    let certificates = match payload.get("Certificates") {
        Some(list) => list,
        None => member(&payload, "certificates", 0),
    };
    let Ok(leaf) = inspect(&bytes(&certificates[0])) else { return Some(false) };
    let key = leaf.public_key.expect("only keys within the policy are admitted");
    let (proof, nonce) = match key.algorithm() {
        KeyAlgorithm::Rsa(_) => {
            let rsa = member(&answer, "rsa_signature", 0);
            (Proof::Rsa { signature: bytes(member(rsa, "signature", 1)) }, member(rsa, "nonce", 0))
        }
        KeyAlgorithm::EcP256 | KeyAlgorithm::EcP384 => {
            let ecdsa = member(&answer, "ecdsa_signature", 1);
            let (r, s) = (bytes(member(ecdsa, "r", 1)), bytes(member(ecdsa, "s", 2)));
            (Proof::Ecdsa { r, s }, member(ecdsa, "nonce", 0))
        }
    };
    let nonce = bytes(nonce);
    Some(nonce.len() == 32 && proof.verify(&key, server_nonce, &nonce))
}

/// A member of a JSON object, or of an array that stands for one: the readers take both.
fn member<'a>(value: &'a Value, name: &str, index: usize) -> &'a Value {
    value.get(name).or_else(|| value.get(index)).unwrap_or(&Value::Null)
}

fn bytes(value: &Value) -> Vec<u8> {
    BASE64.decode(value.as_str().unwrap_or_default().as_bytes()).unwrap_or_default()
}

/// A certificate signed over these bytes, with the right answer and with one over other nonces.
fn certified(data: &[u8]) -> bool {
    let certificate = known_key::signed(data);
    let payload = self::payload(&[&certificate]);
    let mut admitted = false;
    for pop in &FIXTURE.pops {
        let outcome = attest(pop, &payload, &mut |challenge| answer(challenge, &[]));
        let Ok(attested) = outcome else { continue };
        sound(&attested, "x509pop");
        let replayed = attest(pop, &payload, &mut |challenge| answer(challenge, &[1]));
        assert!(replayed.is_err(), "admitted with a signature of other nonces");
        admitted = true;
    }
    admitted
}

/// What a node with these certificates presents.
pub fn payload(certificates: &[&[u8]]) -> Vec<u8> {
    let certificates: Vec<String> = certificates.iter().map(|der| BASE64.encode(der)).collect();
    json!({ "certificates": certificates }).to_string().into_bytes()
}

/// The known key's answer to a challenge, with something more signed than was asked for.
pub fn answer(challenge: &[u8], surplus: &[u8]) -> Vec<u8> {
    let challenge: Value = serde_json::from_slice(challenge).expect("our own challenge");
    let theirs = challenge["ecdsa_signature"]["nonce"].as_str().expect("the key is one of a curve");
    let theirs = BASE64.decode(theirs.as_bytes()).expect("our own challenge");
    let ours = [CLIENT_NONCE; 32];
    let (r, s) = known_key::signature(&[&theirs[..], &ours, surplus].concat());
    let encode = |bytes: &[u8]| BASE64.encode(bytes);
    json!({ "rsa_signature": null, "ecdsa_signature": { "nonce": encode(&ours), "r": encode(&r), "s": encode(&s) } })
        .to_string()
        .into_bytes()
}

/// The challenge that the server of this target sends to nodes with keys on curves.
pub fn server_challenge() -> Vec<u8> {
    let nonce = BASE64.encode(&[SERVER_NONCE; 32]);
    json!({ "rsa_signature": null, "ecdsa_signature": { "nonce": nonce } }).to_string().into_bytes()
}

fn token(data: &[u8]) -> bool {
    let Fixture { runtime, store, tokens, .. } = &*FIXTURE;
    runtime
        .block_on(store.write(|unit| {
            // It is still there when the last attempt did not present it.
            unit.token_take(TOKEN)?;
            unit.token_create(&JoinToken {
                value: TOKEN.into(),
                expires_at: Timestamp::from_unix_seconds(NOW.unix_seconds() + 60),
                agent_id: None,
            })
        }))
        .expect("a store in memory");
    let Ok(attested) = attest(tokens, data, &mut |_| Vec::new()) else {
        assert_ne!(data, TOKEN.as_bytes());
        return false;
    };
    assert_eq!(data, TOKEN.as_bytes(), "admitted with another token");
    sound(&attested, "join_token");
    assert!(attest(tokens, data, &mut |_| Vec::new()).is_err(), "a token was good twice");
    true
}

/// The agent's half: signs what a server asks it to, but never something that it did not help to choose.
fn challenge(data: &[u8]) -> bool {
    let mut attempt = FIXTURE.agent.lock().expect("nothing panics on this side of a crash");
    let Ok(response) = attempt.respond(data) else { return false };
    let response: Value = serde_json::from_slice(&response).expect("our own response");
    assert_eq!(response["ecdsa_signature"]["nonce"], Value::from(BASE64.encode(&[CLIENT_NONCE; 32])));
    // As in `proven`: no opinion on what only this reader cannot read.
    let Ok(asked) = serde_json::from_slice::<Value>(data) else { return true };
    let nonce = bytes(member(member(&asked, "ecdsa_signature", 1), "nonce", 0));
    assert_eq!(nonce.len(), 32, "signed what the server alone chose");
    assert_eq!(proven(&attempt.payload(), response.to_string().as_bytes(), &nonce), Some(true));
    true
}

fn sound(attested: &Attested, kind: &str) {
    assert_eq!(attested.id.require_agent(&trust_domain()), Ok(()));
    assert!(attested.selectors.iter().all(|selector| selector.kind() == kind));
    assert_eq!(attested.selectors == SelectorSet::empty(), kind == "join_token");
}

fn attest(
    attestor: &dyn NodeAttestor,
    payload: &[u8],
    respond: &mut (dyn FnMut(&[u8]) -> Vec<u8> + Send),
) -> Result<Attested, AttestError> {
    let attempt = Attempt { payload, address: None, now: NOW };
    FIXTURE.runtime.block_on(attestor.attest(attempt, &mut Node(respond)))
}

const SERVER_NONCE: u8 = 7;
const CLIENT_NONCE: u8 = 9;
