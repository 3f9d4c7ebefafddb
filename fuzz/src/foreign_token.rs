//! Tokens of foreign issuers, their key sets, the templates that make agent IDs of them, and the claims of `http_challenge`.
//!
//! The bytes are read as each of these, and as the claims of a token that the known key signs. Laws: nobody is admitted without a
//! signature of the issuer's key; an admitted node gets an ID below its issuer's and uses its token up; a template gives a
//! path or an error, and what a claim says is never more than a part of one segment; a claim of a host that cannot be right
//! leads to no challenge.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use async_trait::async_trait;
use bonafide_identity::SpiffeId;
use bonafide_pki::oidc::{OidcKeys, OidcToken, TokenRules};
use bonafide_pki::{JwsAlgorithm, SystemRandom, jwk};
use bonafide_server::node_attestor::http_challenge::{HttpChallenge, HttpChallengeSettings, SystemResolver};
use bonafide_server::node_attestor::oidc::claims::{ClaimPath, Pattern};
use bonafide_server::node_attestor::oidc::{FIELDS, IssuerSettings, KeySource, Oidc, template};
use bonafide_server::node_attestor::template::{Output, Template, Value};
use bonafide_server::node_attestor::{Attempt, AttestError, Attested, Conversation, NodeAttestor};
use data_encoding::BASE64URL_NOPAD;
use serde_json::json;
use tokio::runtime::{Builder, Runtime};

use crate::known_key::{self, KnownKey};
use crate::{NOW, trust_domain};

/// The issuer of this target.
pub const ISSUER: &str = "https://issuer.test";

struct Fixture {
    runtime: Runtime,
    oidc: Oidc,
    hosts: HttpChallenge,
    /// It holds the issuer's keys.
    _files: tempfile::TempDir,
}

static FIXTURE: LazyLock<Fixture> = LazyLock::new(|| {
    let files = crate::folder();
    let path = files.path().join("keys.json");
    std::fs::write(&path, key_set()).expect("there is room");
    let claim = |text: &str| ClaimPath::parse(text).expect("a path");
    let issuer = IssuerSettings {
        name: "x".to_owned(),
        url: ISSUER.to_owned(),
        keys: KeySource::File(path),
        ca_path: None,
        fetch_token_path: None,
        refresh: Duration::from_secs(3600),
        rules: rules(),
        required_claims: vec![(claim("/k/ns"), vec![Pattern::new("a*b"), Pattern::new("n")])],
        selectors: vec![("sub".to_owned(), claim("sub")), ("group".to_owned(), claim("/k/groups"))],
        agent_path_template: template("/oidc/{{ .Issuer }}/{{ .Claims.sub }}").expect("a template"),
        reattestable: true,
    };
    let hosts = HttpChallengeSettings {
        allowed_dns_patterns: Vec::new(),
        required_port: None,
        allow_non_root_ports: true,
        tofu: true,
        allow_local_addresses: false,
    };
    Fixture {
        runtime: Builder::new_current_thread().enable_time().build().expect("a runtime"),
        oidc: Oidc::new(trust_domain(), vec![issuer]).expect("the keys are there"),
        hosts: HttpChallenge::new(trust_domain(), hosts, Arc::new(SystemResolver), Arc::new(SystemRandom)),
        _files: files,
    }
});

fn rules() -> TokenRules {
    TokenRules {
        audiences: vec!["here".to_owned()],
        algorithms: vec![JwsAlgorithm::Es256],
        leeway: Duration::from_secs(60),
        max_age: Duration::from_secs(3600),
    }
}

/// The issuer's key set.
pub fn key_set() -> Vec<u8> {
    use bonafide_pki::Signer as _;
    let mut key =
        serde_json::to_value(jwk::public_key_to_jwk(KnownKey::default().public_key())).expect("JSON");
    key["kid"] = "k".into();
    json!({ "keys": [key] }).to_string().into_bytes()
}

/// A token over these claims.
pub fn token(claims: &[u8]) -> String {
    let header = BASE64URL_NOPAD.encode(br#"{"alg":"ES256","kid":"k"}"#);
    let signed = format!("{header}.{}", BASE64URL_NOPAD.encode(claims));
    let (r, s) = known_key::signature(signed.as_bytes());
    format!("{signed}.{}", BASE64URL_NOPAD.encode(&[r, s].concat()))
}

/// What a node with this token presents.
pub fn payload(token: &str) -> Vec<u8> {
    json!({ "token": token }).to_string().into_bytes()
}

/// Whether anything was read, or a node admitted.
pub fn check(data: &[u8]) -> bool {
    let mut read = false;
    if let Ok(text) = std::str::from_utf8(data) {
        if let Ok(token) = OidcToken::parse(text) {
            let _ = token.check_claims(&rules(), NOW);
            read = true;
        }
        if let Ok(template) = Template::parse(text, FIELDS) {
            rendered(&template);
            read = true;
        }
        if let Ok(path) = ClaimPath::parse(text) {
            assert_eq!(path.to_string(), text);
        }
        assert!(Pattern::new(text).matches(&text.replace('*', "x")) && Pattern::new("*").matches(text));
    }
    read |= OidcKeys::parse(data).is_ok();
    read |= attest(data).is_ok_and(|attested| sound(&attested));
    read | signed(data) | host(data)
}

fn rendered(template: &Template) {
    let values = |name: &'static str, _: Option<&str>| {
        Some(Value::Text(if name == ".Claims" { "../a/b:\u{e4}_." } else { "x" }.to_owned()))
    };
    if let Ok(path) = template.render(Output::Escaped, &values) {
        assert!(path.starts_with('/'));
        assert!(!path.contains("../a"), "a claim reaches beyond its place: {path}");
    }
}

/// A token over these bytes, as it is and with another signature.
fn signed(data: &[u8]) -> bool {
    let good = token(data);
    let payload = self::payload(&good);
    let Ok(attested) = attest(&payload) else { return false };
    let attempt = Attempt { payload: &payload, address: None, now: NOW };
    let spent = FIXTURE.oidc.spends(attempt).expect("what was attested is used up");
    assert!(spent.until > NOW);
    let (head, _) = good.rsplit_once('.').expect("three parts");
    let (r, s) = known_key::signature(b"something else");
    let forged = format!("{head}.{}", BASE64URL_NOPAD.encode(&[r, s].concat()));
    assert!(attest(&self::payload(&forged)).is_err(), "admitted with a signature of other bytes");
    sound(&attested)
}

fn sound(attested: &Attested) -> bool {
    let path = attested.id.path();
    assert!(path.starts_with("/spire/agent/oidc/x/") && path.split('/').count() == 6, "{path}");
    SpiffeId::parse(&attested.id.to_string()).expect("an ID is one");
    assert!(attested.selectors.iter().all(|selector| selector.kind() == "oidc"));
    true
}

/// Whether the node would be challenged: the claim is of a host that there could be.
fn host(data: &[u8]) -> bool {
    let mut node = Node { challenged: false };
    let attempt = Attempt { payload: data, address: None, now: NOW };
    let outcome = FIXTURE.runtime.block_on(FIXTURE.hosts.attest(attempt, &mut node));
    assert!(outcome.is_err(), "admitted without an answer");
    node.challenged
}

struct Node {
    challenged: bool,
}

#[async_trait]
impl Conversation for Node {
    async fn challenge(&mut self, _: Vec<u8>) -> Result<Vec<u8>, AttestError> {
        self.challenged = true;
        Err(AttestError::Gone)
    }
}

fn attest(payload: &[u8]) -> Result<Attested, AttestError> {
    let attempt = Attempt { payload, address: None, now: NOW };
    FIXTURE.runtime.block_on(FIXTURE.oidc.attest(attempt, &mut Node { challenged: false }))
}
