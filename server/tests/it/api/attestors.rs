//! The node attestors beside `join_token` and `x509pop`, over the wire, with what others make: `ssh-keygen`, an HTTP server, an
//! issuer of tokens.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bonafide_identity::Timestamp;
use bonafide_pki::digest::Sha256;
use bonafide_pki::ssh::{SshCertificate, SshPrivateKey};
use bonafide_pki::{KeyType, PrivateKey, SignatureAlgorithm, Signer as _, SystemRandom, jwk, pem};
use bonafide_proto::spire::server::agent::v1::{BanAgentRequest, DeleteAgentRequest, RenewAgentRequest};
use bonafide_runtime::clock::SystemClock;
use bonafide_server::node_attestor::http_challenge::{HttpChallenge, HttpChallengeSettings, Resolver};
use bonafide_server::node_attestor::{Attempt, AttestError, Conversation, NodeAttestor as _};
use bonafide_testkit::ManualClock;
use data_encoding::{BASE64, BASE64URL_NOPAD};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tonic::{Code, Status};

use super::harness::*;
use crate::kubernetes::double::Double;

pub(super) fn no_challenge(_: Vec<u8>) -> Vec<u8> {
    panic!("there is no challenge")
}

// What holds for all of them

/// A node that can attest by one of the attestors, as often as it likes.
struct Candidate<'a> {
    attestor: &'static str,
    /// A payload that has not been used.
    payload: Box<dyn Fn() -> Vec<u8> + 'a>,
    answer: Box<dyn Fn(Vec<u8>) -> Vec<u8> + 'a>,
    /// Whether a payload is spent by being shown, whatever comes of it.
    spent_by_showing: bool,
    reattestable: bool,
}

#[tokio::test]
async fn every_attestor_keeps_the_rules() {
    let roots = super::attestation::node_authority();
    let issuer = Issuer::new("k1");
    let clock = ManualClock::default();
    let files = TempDir::new().unwrap();
    let file = |name: &str, content: &[u8]| {
        let path = files.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.display().to_string()
    };
    if !keygen(files.path(), &["-N", "", "-t", "ed25519", "-f", "ca"]) {
        return;
    }
    let cluster = Double::start().await;
    let root = file("root.pem", pem::encode("CERTIFICATE", roots.root()).as_bytes());
    let machine = super::tpm::Machine::new();
    let keys = format!("jwks_path = \"{}\"", file("keys.json", issuer.key_set().as_bytes()));
    let section = format!(
        "[node_attestor.x509pop]\nca_bundle_path = \"{root}\"\n\
         [node_attestor.sshpop]\ncert_authorities_path = \"{}\"\n\
         [node_attestor.http_challenge]\nallow_local_addresses = true\n{}\
         [node_attestor.k8s_psat.clusters.prod]\nservice_account_allow_list = [\"spire:agent\"]\n\
         audience = [\"bonafide\"]\nkube_config_file = \"{}\"\n{}",
        files.path().join("ca.pub").display(),
        machine.section(&files),
        cluster.kubeconfig(files.path()).display(),
        issuer_section(&keys, ""),
    );
    let server = TestServer::start_in(TempDir::new().unwrap(), clock.clone(), &section).await;

    let x509 = super::attestation::Node::new(&roots, |_| {});
    let sign = [&["-s", "ca", "-h", "-I", "x", "-n", "host"][..], &VALID].concat();
    let host = Host::new(files.path(), "host", &["-t", "ed25519"], &sign);
    let page = |nonce: &str| format!("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{nonce}\n");
    let (port, nonce, _, web) = web_node(page).await;
    let tokens: Vec<String> = {
        let mut made = Vec::new();
        for _ in 0..8 {
            made.push(server.join_token(600).await);
        }
        made
    };
    let (tokens, drawn) = (Mutex::new(tokens), std::sync::atomic::AtomicU64::new(0));
    let candidates = [
        Candidate {
            attestor: "join_token",
            payload: Box::new(|| tokens.lock().unwrap().pop().unwrap().into_bytes()),
            answer: Box::new(no_challenge),
            spent_by_showing: true,
            reattestable: false,
        },
        Candidate {
            attestor: "x509pop",
            payload: Box::new(|| x509.payload()),
            answer: Box::new(|challenge| x509.answer(&challenge, None)),
            spent_by_showing: false,
            reattestable: true,
        },
        Candidate {
            attestor: "sshpop",
            payload: Box::new(|| host.payload()),
            answer: Box::new(|challenge| host.answer(&challenge, |_| {})),
            spent_by_showing: false,
            reattestable: true,
        },
        Candidate {
            attestor: "tpm_devid",
            payload: Box::new(|| machine.payload()),
            answer: Box::new(|challenge| machine.answer(&challenge)),
            spent_by_showing: false,
            reattestable: true,
        },
        Candidate {
            attestor: "http_challenge",
            payload: Box::new(|| {
                json!({ "hostname": "127.0.0.1", "agentname": "a", "port": port }).to_string().into_bytes()
            }),
            answer: Box::new(|challenge| {
                let challenge: Value = serde_json::from_slice(&challenge).unwrap();
                *nonce.lock().unwrap() = challenge["nonce"].as_str().unwrap().to_owned();
                b"{}".to_vec()
            }),
            spent_by_showing: false,
            reattestable: false,
        },
        Candidate {
            attestor: "oidc",
            payload: Box::new(|| {
                let number = drawn.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                oidc_payload(
                    &issuer.token(&claims(&clock, |claims| claims["jti"] = number.to_string().into())),
                )
            }),
            answer: Box::new(no_challenge),
            spent_by_showing: false,
            reattestable: true,
        },
        Candidate {
            attestor: "k8s_psat",
            payload: Box::new(|| {
                let claims = claims(&clock, |_| {});
                let token = issuer.token(&claims);
                cluster.admit(&token, &claims);
                json!({ "cluster": "prod", "token": token }).to_string().into_bytes()
            }),
            answer: Box::new(no_challenge),
            spent_by_showing: false,
            reattestable: true,
        },
    ];
    let configured: Vec<&str> = server.server.context().attestation.attestors().names().collect();
    let mut tried: Vec<&str> = candidates.iter().map(|candidate| candidate.attestor).collect();
    tried.sort_unstable();
    assert_eq!(configured, tried, "an attestor without a candidate");
    for candidate in &candidates {
        rules(&server, candidate).await;
    }
    web.abort();
}

async fn rules(server: &TestServer, candidate: &Candidate<'_>) {
    let Candidate { attestor, payload, answer, spent_by_showing, reattestable } = candidate;
    let state = &server.server.context().state;
    let present = async |payload: &[u8]| attest(server.anonymous().await, attestor, payload, answer).await;
    let before = state.nodes().len();

    // Nothing that cannot be right is more than refused, with a text that says by whom, and leaves a record.
    let deep = "[".repeat(100_000);
    let wide = format!("{{{}\"x\":0}}", "\"certificates\":[],".repeat(10_000));
    for malformed in
        ["{", "null", "true", "7", "\"text\"", "[]", "{}", "[[[]]]", "\u{0}", "{\"\":{}}", &deep, &wide]
    {
        let refused = present(malformed.as_bytes()).await.unwrap_err();
        let shown = &malformed[..malformed.len().min(20)];
        let usual = matches!(refused.code(), Code::InvalidArgument | Code::PermissionDenied);
        assert!(usual, "{attestor} {shown}: {refused:?}");
        let prefix = format!("nodeattestor({attestor}): ");
        let named = refused.message().starts_with(&prefix) || *attestor == "join_token";
        assert!(named, "{attestor} {shown}: {refused:?}");
        assert!(refused.message().len() < 1024 && refused.details().is_empty(), "{attestor} {shown}");
    }
    assert_eq!(state.nodes().len(), before);

    // What fails after the attestor was satisfied has used nothing up.
    let shown = payload();
    let outcome = with_csr(server, candidate, &shown, b"not a CSR").await;
    assert!(outcome.unwrap_err().message().starts_with("failed to parse CSR: "), "{attestor}");
    assert_eq!(state.nodes().len(), before);
    let agent = match spent_by_showing {
        true => present(&payload()).await,
        false => present(&shown).await,
    };
    let agent = agent.unwrap();

    // The ID is that of an agent, below the attestor's name; the record says how it came about.
    assert!(agent.path().starts_with(&format!("/spire/agent/{attestor}/")), "{}", agent.path());
    let record = state.node(&agent.id).unwrap();
    assert_eq!((record.attestation_type.as_str(), record.can_reattest), (*attestor, *reattestable));
    let selectors: Vec<&str> = record.selectors.iter().map(bonafide_identity::Selector::as_str).collect();
    let mut unique = selectors.clone();
    unique.sort_unstable();
    unique.dedup();
    assert_eq!(selectors, unique);
    assert!(record.selectors.iter().all(|selector| selector.kind() == *attestor));
    assert_eq!(state.nodes().len(), before + 1);

    // Again: only who can reattest, and then it is the same agent.
    match (reattestable, *attestor) {
        (true, _) => assert_eq!(present(&payload()).await.unwrap().id, agent.id),
        // Another token is another agent.
        (false, "join_token") => assert_ne!(present(&payload()).await.unwrap().id, agent.id),
        (false, _) => assert_eq!(present(&payload()).await.unwrap_err().code(), Code::PermissionDenied),
    }
    // A ban holds for all.
    if *attestor != "join_token" {
        let ban = BanAgentRequest { id: wire_id(agent.path()) };
        agents(&server.local().await).ban_agent(ban).await.unwrap();
        assert_refused(
            present(&payload()).await,
            Code::PermissionDenied,
            "failed to attest: agent is banned",
        );
    }
}

/// An attestation with any bytes for a CSR.
async fn with_csr(
    server: &TestServer,
    node: &Candidate<'_>,
    payload: &[u8],
    csr: &[u8],
) -> Result<(), Status> {
    use bonafide_proto::spire::server::agent::v1::AttestAgentRequest;
    use bonafide_proto::spire::server::agent::v1::attest_agent_request::Step as Asked;
    use bonafide_proto::spire::server::agent::v1::attest_agent_response::Step;

    let (requests, stream) = tokio::sync::mpsc::channel(4);
    requests.send(attest_params(node.attestor, payload, csr)).await.unwrap();
    let stream = tokio_stream::wrappers::ReceiverStream::new(stream);
    let mut responses = agents(&server.anonymous().await).attest_agent(stream).await?.into_inner();
    while let Some(response) = responses.message().await? {
        if let Some(Step::Challenge(challenge)) = response.step {
            let step = Some(Asked::ChallengeResponse((node.answer)(challenge)));
            requests.send(AttestAgentRequest { step }).await.unwrap();
        }
    }
    Ok(())
}

// sshpop

/// Runs `ssh-keygen`; `false` when the machine has none.
fn keygen(folder: &Path, arguments: &[&str]) -> bool {
    let mut command = Command::new("ssh-keygen");
    match command.arg("-q").args(arguments).current_dir(folder).stdin(Stdio::null()).output() {
        Ok(output) => {
            assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
            true
        }
        Err(_) => {
            println!("SKIPPED: sshpop: ssh-keygen is not installed");
            false
        }
    }
}

struct Host {
    key: SshPrivateKey,
    certificate: SshCertificate,
}

impl Host {
    fn new(folder: &Path, name: &str, kind: &[&str], sign: &[&str]) -> Self {
        keygen(folder, &[&["-N", "", "-f", name], kind].concat());
        keygen(folder, &[sign, &[&format!("{name}.pub")]].concat());
        let read = |name: String| std::fs::read(folder.join(name)).unwrap();
        Self {
            key: SshPrivateKey::from_text(&read(name.to_owned())).unwrap(),
            certificate: SshCertificate::from_text(&read(format!("{name}-cert.pub"))).unwrap(),
        }
    }

    fn payload(&self) -> Vec<u8> {
        ssh_payload(self.certificate.wire())
    }

    fn answer(&self, challenge: &[u8], change: impl FnOnce(&mut Value)) -> Vec<u8> {
        let challenge: Value = serde_json::from_slice(challenge).unwrap();
        let theirs = BASE64.decode(challenge["Nonce"].as_str().unwrap().as_bytes()).unwrap();
        assert_eq!(theirs.len(), 32);
        let mut combined = Sha256::new();
        combined.update(&theirs);
        combined.update(&[9; 32]);
        let signature = self.key.sign(&combined.finish()).unwrap();
        let mut answer = json!({
            "Nonce": BASE64.encode(&[9; 32]),
            "Signature": { "Format": signature.format, "Blob": BASE64.encode(&signature.blob), "Rest": null },
        });
        change(&mut answer);
        answer.to_string().into_bytes()
    }

    async fn attest(&self, server: &TestServer) -> Result<Identity, Status> {
        let answer = |challenge: Vec<u8>| self.answer(&challenge, |_| {});
        attest(server.anonymous().await, "sshpop", &self.payload(), answer).await
    }
}

fn ssh_payload(wire: &[u8]) -> Vec<u8> {
    json!({ "Certificate": BASE64.encode(wire) }).to_string().into_bytes()
}

/// The tests' clock begins on 2026-01-01.
const VALID: [&str; 2] = ["-V", "20251231000000Z:20260102000000Z"];

/// Anybody can write an ECDSA signature in another way, which makes another fingerprint.
#[tokio::test]
async fn advisory_a_banned_host_does_not_return_with_another_form_of_its_certificate() {
    let folder = TempDir::new().unwrap();
    for (name, bits) in [("p256", "256"), ("p384", "384")] {
        if !keygen(folder.path(), &["-N", "", "-t", "ecdsa", "-b", bits, "-f", name]) {
            return;
        }
    }
    let keys = ["p256", "p384"].map(|name| {
        let line = std::fs::read_to_string(folder.path().join(format!("{name}.pub"))).unwrap();
        format!("{:?}", line.trim())
    });
    let section = format!("[node_attestor.sshpop]\ncert_authorities = [{}]\n", keys.join(", "));
    let server = TestServer::start_with(&section).await;
    for (name, authority) in [("a", "p256"), ("b", "p384")] {
        let sign = [&["-s", authority, "-h", "-I", "rack", "-n", "node-1.example.org"][..], &VALID].concat();
        let host = Host::new(folder.path(), name, &["-t", "ed25519"], &sign);
        let read = std::fs::read(folder.path().join(name)).unwrap();
        let twin = Host {
            key: SshPrivateKey::from_text(&read).unwrap(),
            certificate: host.certificate.twin().unwrap(),
        };
        assert_ne!(twin.certificate.fingerprint(), host.certificate.fingerprint());

        let agent = host.attest(&server).await.unwrap();
        let second = twin.attest(&server).await.unwrap_err();
        assert_eq!(second.code(), Code::PermissionDenied);
        assert_eq!(
            second.message(),
            "nodeattestor(sshpop): attestation data has already been used to attest an agent"
        );
        let local = agents(&server.local().await);
        let id = || wire_id(agent.path());
        local.clone().ban_agent(BanAgentRequest { id: id() }).await.unwrap();
        let banned = twin.attest(&server).await.unwrap_err();
        assert_eq!(
            (banned.code(), banned.message()),
            (Code::PermissionDenied, "failed to attest: agent is banned")
        );
        local.clone().delete_agent(DeleteAgentRequest { id: id() }).await.unwrap();
        twin.attest(&server).await.unwrap();
    }
}

async fn ssh_server(more: &str) -> Option<(TestServer, TempDir)> {
    let folder = TempDir::new().unwrap();
    for name in ["ca", "stranger"] {
        if !keygen(folder.path(), &["-N", "", "-t", "ed25519", "-f", name]) {
            return None;
        }
    }
    let path = folder.path().join("ca.pub");
    let section = format!("[node_attestor.sshpop]\ncert_authorities_path = \"{}\"\n{more}", path.display());
    Some((TestServer::start_with(&section).await, folder))
}

#[tokio::test]
async fn a_host_certificate_makes_an_agent() {
    let Some((server, folder)) = ssh_server("").await else { return };
    let sign = [&["-s", "ca", "-h", "-I", "rack", "-n", "node-1.example.org"][..], &VALID].concat();
    for (name, kind) in [
        ("a", &["-t", "ed25519"][..]),
        ("b", &["-t", "ecdsa", "-b", "256"]),
        ("c", &["-t", "ecdsa", "-b", "384"]),
        ("d", &["-t", "rsa", "-b", "2048"]),
    ] {
        let host = Host::new(folder.path(), name, kind, &sign);
        let agent = host.attest(&server).await.unwrap();
        assert_eq!(agent.path(), format!("/spire/agent/sshpop/{}", host.certificate.fingerprint()));
        let record = server.server.context().state.node(&agent.id).unwrap();
        assert!(record.can_reattest && record.selectors.is_empty());
        host.attest(&server).await.unwrap();
    }
}

#[tokio::test]
async fn who_is_no_host_or_cannot_prove_it_is_not_attested() {
    let Some((server, folder)) = ssh_server("").await else { return };
    let ed25519 = &["-t", "ed25519"][..];
    let host = |name: &str, sign: &[&str]| Host::new(folder.path(), name, ed25519, sign);
    let sign = [&["-s", "ca", "-h", "-I", "x", "-n", "host"][..], &VALID].concat();
    let good = host("good", &sign);
    let other = host("other", &sign);
    let old = ["-s", "ca", "-h", "-I", "x", "-n", "host", "-V", "20240101000000Z:20250101000000Z"];
    let early = ["-s", "ca", "-h", "-I", "x", "-n", "host", "-V", "20270101000000Z:20280101000000Z"];
    let option = [&sign[..], &["-O", "critical:x=y"]].concat();
    let user = [&["-s", "ca", "-I", "x", "-n", "host"][..], &VALID].concat();
    let nobody = [&["-s", "ca", "-h", "-I", "x"][..], &VALID].concat();
    let stranger = [&["-s", "stranger", "-h", "-I", "x", "-n", "host"][..], &VALID].concat();
    let damaged = {
        let mut wire = good.certificate.wire().to_vec();
        *wire.last_mut().unwrap() ^= 1;
        ssh_payload(&wire)
    };
    let checked = "failed to check host key: ssh: ";
    for (payload, code, text) in [
        (b"{{".to_vec(), Code::InvalidArgument, "failed to unmarshal data: "),
        (b"{\"Certificate\":\"?\"}".to_vec(), Code::InvalidArgument, "failed to unmarshal data: "),
        (b"{}".to_vec(), Code::InvalidArgument, "no certificate in response"),
        (ssh_payload(b"hello\n"), Code::InvalidArgument, "failed to parse public key: "),
        (
            ssh_payload(good.key.public_key().blob()),
            Code::InvalidArgument,
            "pubkey in response is not a certificate",
        ),
        (host("n", &nobody).payload(), Code::InvalidArgument, "cert has no valid principals"),
        (
            host("u", &user).payload(),
            Code::PermissionDenied,
            &format!("{checked}certificate presented as a host key has type 1"),
        ),
        (
            host("s", &stranger).payload(),
            Code::PermissionDenied,
            &format!("{checked}no authorities for hostname: host"),
        ),
        (
            host("p", &option).payload(),
            Code::PermissionDenied,
            &format!("{checked}unsupported critical option \"x\" in certificate"),
        ),
        (host("e", &early).payload(), Code::PermissionDenied, &format!("{checked}cert is not yet valid")),
        (host("l", &old).payload(), Code::PermissionDenied, &format!("{checked}cert has expired")),
        (damaged, Code::PermissionDenied, &format!("{checked}certificate signature does not verify")),
    ] {
        let refused = attest(server.anonymous().await, "sshpop", &payload, no_challenge).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused:?}");
        assert!(refused.message().starts_with(&format!("nodeattestor(sshpop): {text}")), "{refused:?}");
    }
    for (answer, code, text) in [
        (
            &(|challenge: &[u8]| other.answer(challenge, |_| {})) as &(dyn Fn(&[u8]) -> Vec<u8> + Sync),
            Code::PermissionDenied,
            "failed to verify signature: ",
        ),
        (
            &|challenge: &[u8]| {
                good.answer(challenge, |answer| answer["Nonce"] = BASE64.encode(&[8; 32]).into())
            },
            Code::PermissionDenied,
            "failed to verify signature: ",
        ),
        (
            &|challenge: &[u8]| good.answer(challenge, |answer| answer["Nonce"] = "AAAA".into()),
            Code::InvalidArgument,
            "failed to combine nonces: invalid response nonce size",
        ),
        (
            &|challenge: &[u8]| good.answer(challenge, |answer| answer["Signature"] = Value::Null),
            Code::InvalidArgument,
            "failed to verify signature: ",
        ),
        (
            &|challenge: &[u8]| {
                good.answer(challenge, |answer| answer["Signature"]["Format"] = "ssh-rsa".into())
            },
            Code::PermissionDenied,
            "failed to verify signature: ",
        ),
        (&|_: &[u8]| b"[1".to_vec(), Code::InvalidArgument, "failed to unmarshal challenge response: "),
    ] {
        let answered =
            attest(server.anonymous().await, "sshpop", &good.payload(), |challenge| answer(&challenge)).await;
        let refused = answered.unwrap_err();
        assert_eq!(refused.code(), code, "{refused:?}");
        assert!(refused.message().starts_with(&format!("nodeattestor(sshpop): {text}")), "{refused:?}");
    }
    good.attest(&server).await.unwrap();
}

#[tokio::test]
async fn names_of_a_host_stay_in_their_place() {
    let more = "canonical_domain = \"example.org\"\nagent_path_template = \"/ssh/{{ .Hostname }}/{{ .KeyId | lower }}\"";
    let Some((server, folder)) = ssh_server(more).await else { return };
    let host = |name: &str, id: &str, principals: &str| {
        let sign = [&["-s", "ca", "-h", "-I", id, "-n", principals][..], &VALID].concat();
        Host::new(folder.path(), name, &["-t", "ed25519"], &sign)
    };
    let agent = host("a", "Rack", "node-1.example.org,x").attest(&server).await.unwrap();
    assert_eq!(agent.path(), "/spire/agent/ssh/node-1/rack");
    let elsewhere = host("b", "rack", "x,node-1.example.org").attest(&server).await.unwrap_err();
    assert_eq!(
        elsewhere.message(),
        "nodeattestor(sshpop): failed to decanonicalize hostname: cert principal is not in domain \".example.org\""
    );
    for (name, id, principal) in [
        ("c", "../x", "a.example.org"),
        ("d", "..", "a.example.org"),
        ("e", "x", "a/b.example.org"),
        ("f", "x y", "a.example.org"),
        ("g", "x", ".example.org"),
    ] {
        let refused = host(name, id, principal).attest(&server).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{id} {principal}: {refused:?}");
        assert!(refused.message().contains("failed to create AgentID: "), "{refused:?}");
    }
}

// http_challenge

/// A place is held meanwhile, before anything is proven.
#[tokio::test]
async fn the_answer_to_an_http_challenge_is_waited_for_briefly() {
    use bonafide_proto::spire::server::agent::v1::attest_agent_response::Step as Challenged;

    let server = TestServer::start_with("[node_attestor.http_challenge]\n").await;
    let channel = server.anonymous().await;
    let (requests, stream) = tokio::sync::mpsc::channel(1);
    let stream = tokio_stream::wrappers::ReceiverStream::new(stream);
    let payload = json!({ "hostname": "node.test", "agentname": "a", "port": 80 }).to_string();
    requests
        .send(attest_params("http_challenge", payload.as_bytes(), b"looked at afterwards"))
        .await
        .unwrap();
    let mut responses = agents(&channel).attest_agent(stream).await.unwrap().into_inner();
    let challenge = responses.message().await.unwrap().unwrap();
    assert!(matches!(challenge.step, Some(Challenged::Challenge(_))));
    tokio::time::pause();
    let begin = tokio::time::Instant::now();
    let status = responses.message().await.unwrap_err();
    let waited = begin.elapsed();
    tokio::time::resume();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert!(waited < Duration::from_secs(10), "{waited:?}");
    drop(requests);
}

/// Leads each name to the addresses that are written down for it.
struct Names(BTreeMap<&'static str, Vec<IpAddr>>);

#[async_trait]
impl Resolver for Names {
    async fn addresses(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        self.0.get(host).cloned().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }
}

/// What the server said, and what the node answers.
struct Node<'a>(&'a (dyn Fn(Vec<u8>) + Sync));

#[async_trait]
impl Conversation for Node<'_> {
    async fn challenge(&mut self, challenge: Vec<u8>) -> Result<Vec<u8>, AttestError> {
        (self.0)(challenge);
        Ok(b"\n".to_vec())
    }
}

/// Serves whatever `answer` makes of the nonce, to any number of callers; the requests are kept.
async fn web_node(
    answer: impl Fn(&str) -> String + Send + Sync + 'static,
) -> (u16, Arc<Mutex<String>>, Arc<Mutex<Vec<String>>>, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (nonce, requests) = (Arc::new(Mutex::new(String::new())), Arc::new(Mutex::new(Vec::new())));
    let (shown, kept) = (nonce.clone(), requests.clone());
    let task = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 2048];
            let read = stream.read(&mut request).await.unwrap();
            kept.lock().unwrap().push(String::from_utf8_lossy(&request[..read]).into_owned());
            let text = answer(&shown.lock().unwrap());
            stream.write_all(text.as_bytes()).await.unwrap();
        }
    });
    (port, nonce, requests, task)
}

fn http_challenge(local: bool) -> HttpChallenge {
    let settings = HttpChallengeSettings {
        allowed_dns_patterns: Vec::new(),
        required_port: None,
        allow_non_root_ports: true,
        tofu: true,
        allow_local_addresses: local,
    };
    let address = |text: &str| text.parse::<IpAddr>().unwrap();
    let names = Names(BTreeMap::from([
        ("node.test", vec![address("127.0.0.1")]),
        ("second.test", vec![address("127.9.9.9"), address("127.0.0.1")]),
        ("metadata.test", vec![address("169.254.169.254")]),
    ]));
    HttpChallenge::new(trust_domain(), settings, Arc::new(names), Arc::new(SystemRandom))
}

async fn challenged(
    attestor: &HttpChallenge,
    host: &str,
    port: u16,
    nonce: &Mutex<String>,
) -> Result<bonafide_server::node_attestor::Attested, AttestError> {
    let payload = json!({ "hostname": host, "agentname": "a-1", "port": port }).to_string();
    let attempt = Attempt {
        payload: payload.as_bytes(),
        address: None,
        now: Timestamp::from_unix_seconds(1_767_225_600),
    };
    let hear = |challenge: Vec<u8>| {
        let challenge: Value = serde_json::from_slice(&challenge).unwrap();
        let text = challenge["nonce"].as_str().unwrap();
        assert_eq!(data_encoding::BASE64URL.decode(text.as_bytes()).unwrap().len(), 32);
        *nonce.lock().unwrap() = text.to_owned();
    };
    attestor.attest(attempt, &mut Node(&hear)).await
}

#[tokio::test]
async fn a_host_that_shows_the_nonce_is_an_agent() {
    let ok = |nonce: &str| format!("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n  {nonce}\n");
    let (port, nonce, requests, task) = web_node(ok).await;
    let attestor = http_challenge(true);
    let attested = challenged(&attestor, "Node.TEST", port, &nonce).await.unwrap();
    assert_eq!(attested.id.path(), "/spire/agent/http_challenge/node.test");
    let selectors: Vec<&str> = attested.selectors.iter().map(bonafide_identity::Selector::as_str).collect();
    assert_eq!(selectors, ["http_challenge:hostname:node.test"]);
    assert!(!attested.can_reattest);
    let request = requests.lock().unwrap()[0].clone();
    let path = "/.well-known/spiffe/nodeattestor/http_challenge/a-1/challenge";
    assert!(request.starts_with(&format!("GET {path} HTTP/1.1\r\n")), "{request}");
    assert!(request.contains(&format!("host: node.test:{port}\r\n")), "{request}");
    // The first address does not answer.
    challenged(&attestor, "second.test", port, &nonce).await.unwrap();
    task.abort();
}

#[tokio::test]
async fn the_server_cannot_be_made_to_look_around() {
    const SAME: &str = "nodeattestor(http_challenge): challenge verification failed: expected nonce was not found in HTTP response";
    let refused = async |attestor: &HttpChallenge, host: &str, port, nonce: &Mutex<String>| {
        let error = challenged(attestor, host, port, nonce).await.unwrap_err();
        assert!(matches!(error, AttestError::Denied(_)));
        error.to_string()
    };
    let nothing = Mutex::new(String::new());
    let open = http_challenge(true);
    // Whatever is there, the text is the same.
    let wrong = |_: &str| "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nsecret".to_owned();
    let redirect =
        |_: &str| "HTTP/1.1 302 Found\r\nlocation: http://node.test/\r\ncontent-length: 0\r\n\r\n".to_owned();
    let beyond =
        |nonce: &str| format!("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{}{nonce}", " ".repeat(64));
    let not_found = |nonce: &str| format!("HTTP/1.1 404 Not Found\r\nconnection: close\r\n\r\n{nonce}");
    type Reply = Box<dyn Fn(&str) -> String + Send + Sync>;
    let replies: [Reply; 4] = [Box::new(wrong), Box::new(redirect), Box::new(beyond), Box::new(not_found)];
    for reply in replies {
        let (port, nonce, requests, task) = web_node(reply).await;
        assert_eq!(refused(&open, "node.test", port, &nonce).await, SAME);
        assert_eq!(requests.lock().unwrap().len(), 1, "redirects are not followed");
        task.abort();
    }
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    assert_eq!(refused(&open, "node.test", closed, &nothing).await, SAME);
    assert_eq!(refused(&open, "unknown.test", 80, &nothing).await, SAME);
    // Loopback and metadata services are not called at all.
    let (port, nonce, requests, task) = web_node(|nonce| format!("HTTP/1.1 200 OK\r\n\r\n{nonce}")).await;
    let shut = http_challenge(false);
    assert_eq!(refused(&shut, "node.test", port, &nonce).await, SAME);
    assert_eq!(refused(&shut, "metadata.test", 80, &nothing).await, SAME);
    assert_eq!(requests.lock().unwrap().len(), 0);
    task.abort();
}

/// Calls are few, and a node that finds no place for its own must come again.
#[tokio::test]
async fn more_calls_than_are_made_at_once_are_put_off() {
    // Accepts in the backlog and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let attestor = Arc::new(http_challenge(true));
    let mut calls = JoinSet::new();
    for _ in 0..33 {
        let attestor = attestor.clone();
        let nonce = Mutex::new(String::new());
        calls.spawn(async move { challenged(&attestor, "node.test", port, &nonce).await });
    }
    let first = calls.join_next().await.unwrap().unwrap().unwrap_err();
    assert!(
        matches!(&first, AttestError::Unavailable(text) if text.contains("too many hosts are called")),
        "{first:?}"
    );
}

/// Through the whole server, with an address in place of a name: the first is trusted, and no second one.
#[tokio::test]
async fn the_first_agent_of_a_host_is_trusted_until_it_is_deleted() {
    let server =
        TestServer::start_with("[node_attestor.http_challenge]\nallow_local_addresses = true\n").await;
    let ok = |nonce: &str| format!("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{nonce}\n");
    let (port, nonce, _, task) = web_node(ok).await;
    let payload = json!({ "hostname": "127.0.0.1", "agentname": "default", "port": port }).to_string();
    let answer = |challenge: Vec<u8>| {
        let challenge: Value = serde_json::from_slice(&challenge).unwrap();
        *nonce.lock().unwrap() = challenge["nonce"].as_str().unwrap().to_owned();
        b"{}".to_vec()
    };
    let attest =
        async || attest(server.anonymous().await, "http_challenge", payload.as_bytes(), answer).await;
    let agent = attest().await.unwrap();
    assert_eq!(agent.path(), "/spire/agent/http_challenge/127.0.0.1");
    let text = "nodeattestor(http_challenge): attestation data has already been used to attest an agent";
    assert_refused(attest().await, Code::PermissionDenied, text);
    // Its SVID is renewed instead.
    let channel = server.remote(Some(&agent)).await.unwrap();
    let csr = bonafide_pki::agent_csr(&*agent.key, None).unwrap();
    let params = Some(bonafide_proto::spire::server::agent::v1::AgentX509svidParams { csr });
    agents(&channel).renew_agent(RenewAgentRequest { params }).await.unwrap();
    let local = agents(&server.local().await);
    local.clone().delete_agent(DeleteAgentRequest { id: wire_id(agent.path()) }).await.unwrap();
    attest().await.unwrap();
    local.clone().ban_agent(BanAgentRequest { id: wire_id(agent.path()) }).await.unwrap();
    assert_refused(attest().await, Code::PermissionDenied, "failed to attest: agent is banned");
    task.abort();
}

// oidc

/// An issuer of tokens: a key, and claims that can be anything.
pub(super) struct Issuer {
    key: PrivateKey,
    key_id: String,
}

impl Issuer {
    pub(super) fn new(key_id: &str) -> Self {
        Self { key: PrivateKey::generate(KeyType::EcP256).unwrap(), key_id: key_id.to_owned() }
    }

    pub(super) fn key_set(&self) -> String {
        let mut jwk = serde_json::to_value(jwk::public_key_to_jwk(self.key.public_key())).unwrap();
        jwk["kid"] = self.key_id.clone().into();
        json!({ "keys": [jwk] }).to_string()
    }

    pub(super) fn token(&self, claims: &Value) -> String {
        let header = json!({ "alg": "ES256", "kid": self.key_id }).to_string();
        let encode = |text: &str| BASE64URL_NOPAD.encode(text.as_bytes());
        let signed = format!("{}.{}", encode(&header), encode(&claims.to_string()));
        let der = self.key.sign_with(SignatureAlgorithm::EcdsaP256Sha256, signed.as_bytes()).unwrap();
        let number = |at: usize| {
            let length = usize::from(der[at + 1]);
            let bytes = &der[at + 2..at + 2 + length];
            let bytes = &bytes[bytes.len().saturating_sub(32)..];
            ([vec![0; 32 - bytes.len()], bytes.to_vec()].concat(), at + 2 + length)
        };
        let (r, next) = number(2);
        format!("{signed}.{}", BASE64URL_NOPAD.encode(&[r, number(next).0].concat()))
    }
}

pub(super) const URL: &str = "https://cluster.test";

pub(super) fn claims(clock: &ManualClock, change: impl FnOnce(&mut Value)) -> Value {
    let now = clock.now().unix_seconds();
    let mut claims = json!({
        "iss": URL, "aud": ["bonafide"], "sub": "system:serviceaccount:spire:agent", "iat": now, "exp": now + 600,
        "kubernetes.io": { "namespace": "spire", "node": { "name": "node_1", "uid": "u-1" }, "pod": { "name": "p", "uid": "p-1" },
            "serviceaccount": { "name": "agent", "uid": "sa-1" } },
        "groups": ["a", "b", "a"],
    });
    change(&mut claims);
    claims
}

fn oidc_payload(token: &str) -> Vec<u8> {
    json!({ "token": token }).to_string().into_bytes()
}

fn issuer_section(keys: &str, more: &str) -> String {
    format!(
        r#"
        [[node_attestor.oidc.issuers]]
        name = "prod"
        url = "{URL}"
        audiences = ["bonafide"]
        {keys}
        required_claims = {{ "/kubernetes.io/namespace" = ["spire", "spire-*"] }}
        selectors = {{ ns = "/kubernetes.io/namespace", node = "/kubernetes.io/node/name", group = "groups", none = "nothing" }}
        agent_path_template = "/oidc/{{{{ .Issuer }}}}/{{{{ index .Claims \"/kubernetes.io/node/name\" }}}}"
        {more}
        "#
    )
}

async fn oidc_server(
    folder: TempDir,
    clock: ManualClock,
    issuer: &Issuer,
    more: &str,
) -> (TestServer, TempDir) {
    let files = TempDir::new().unwrap();
    let path = files.path().join("keys.json");
    std::fs::write(&path, issuer.key_set()).unwrap();
    let section = issuer_section(&format!("jwks_path = \"{}\"", path.display()), more);
    (TestServer::start_in(folder, clock, &section).await, files)
}

async fn with_token(server: &TestServer, token: &str) -> Result<Identity, Status> {
    attest(server.anonymous().await, "oidc", &oidc_payload(token), no_challenge).await
}

const USED: &str = "nodeattestor(oidc): attestation data has already been used to attest an agent";

#[tokio::test]
async fn a_token_makes_an_agent_once() {
    let issuer = Issuer::new("k1");
    let clock = ManualClock::default();
    let (server, _files) = oidc_server(TempDir::new().unwrap(), clock.clone(), &issuer, "").await;
    let token = issuer.token(&claims(&clock, |_| {}));
    let agent = with_token(&server, &token).await.unwrap();
    assert_eq!(agent.path(), "/spire/agent/oidc/prod/node_5F1");
    let record = server.server.context().state.node(&agent.id).unwrap();
    assert!(record.can_reattest);
    let selectors: Vec<&str> = record.selectors.iter().map(bonafide_identity::Selector::as_str).collect();
    let expected = [
        "oidc:group:a",
        "oidc:group:b",
        "oidc:issuer:https://cluster.test",
        "oidc:node:node_1",
        "oidc:ns:spire",
    ];
    assert_eq!(selectors, expected);

    assert_refused(with_token(&server, &token).await, Code::PermissionDenied, USED);
    // Signed again it is the same token; one second later it is another.
    let again = issuer.token(&claims(&clock, |_| {}));
    assert_refused(with_token(&server, &again).await, Code::PermissionDenied, USED);
    clock.advance(Duration::from_secs(1));
    with_token(&server, &issuer.token(&claims(&clock, |_| {}))).await.unwrap();
    // Of many at the same moment one succeeds.
    let token = issuer.token(&claims(&clock, |claims| claims["jti"] = "x".into()));
    let mut attempts = JoinSet::new();
    for _ in 0..10 {
        let (channel, payload) = (server.anonymous().await, oidc_payload(&token));
        attempts.spawn(async move { attest(channel, "oidc", &payload, no_challenge).await });
    }
    let outcomes = attempts.join_all().await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
}

#[tokio::test]
async fn a_restart_does_not_forget_which_tokens_were_used() {
    let issuer = Issuer::new("k1");
    let (clock, data) = (ManualClock::default(), TempDir::new().unwrap());
    let disk = format!("[store]\ndriver = \"redb\"\npath = \"{}\"", data.path().join("store.redb").display());
    let token = issuer.token(&claims(&clock, |_| {}));
    let (server, _files) = oidc_server(TempDir::new().unwrap(), clock.clone(), &issuer, &disk).await;
    with_token(&server, &token).await.unwrap();
    let shutdown = server.server.shutdown();
    shutdown.trigger();
    server.server.wait().await.unwrap();
    let (server, _files) = oidc_server(TempDir::new().unwrap(), clock.clone(), &issuer, &disk).await;
    assert_refused(with_token(&server, &token).await, Code::PermissionDenied, USED);
}

#[tokio::test]
async fn a_refusal_uses_nothing_up() {
    let issuer = Issuer::new("k1");
    let clock = ManualClock::default();
    let (server, _files) = oidc_server(TempDir::new().unwrap(), clock.clone(), &issuer, "").await;
    let token = issuer.token(&claims(&clock, |_| {}));
    // A CSR that cannot be read, and a ban: both are found after the token was looked at.
    let requests = tokio_stream::iter([attest_params("oidc", &oidc_payload(&token), b"not a CSR")]);
    let outcome =
        agents(&server.anonymous().await).attest_agent(requests).await.unwrap().into_inner().message().await;
    assert_eq!(outcome.unwrap_err().code(), Code::InvalidArgument);
    let agent = with_token(&server, &token).await.unwrap();
    let local = agents(&server.local().await);
    local.clone().ban_agent(BanAgentRequest { id: wire_id(agent.path()) }).await.unwrap();
    clock.advance(Duration::from_secs(1));
    let token = issuer.token(&claims(&clock, |_| {}));
    assert_refused(
        with_token(&server, &token).await,
        Code::PermissionDenied,
        "failed to attest: agent is banned",
    );
    local.clone().delete_agent(DeleteAgentRequest { id: wire_id(agent.path()) }).await.unwrap();
    with_token(&server, &token).await.unwrap();
}

#[tokio::test]
async fn tokens_that_are_not_as_they_should_be_are_refused() {
    let issuer = Issuer::new("k1");
    let clock = ManualClock::default();
    let (server, _files) = oidc_server(TempDir::new().unwrap(), clock.clone(), &issuer, "").await;
    let token = |change: fn(&mut Value)| issuer.token(&claims(&clock, change));
    let good = token(|_| {});
    let unsigned = {
        let rest = good.split_once('.').unwrap().1;
        format!(
            "{}.{}",
            BASE64URL_NOPAD.encode(br#"{"alg":"none","kid":"k1"}"#),
            rest.rsplit_once('.').unwrap().0
        ) + "."
    };
    let forged = Issuer::new("k1").token(&claims(&clock, |_| {}));
    let unknown = Issuer::new("k9").token(&claims(&clock, |_| {}));
    for (token, code, text) in [
        (String::new(), Code::InvalidArgument, "unable to parse JWT token: "),
        ("a.b.c".to_owned(), Code::InvalidArgument, "unable to parse JWT token: "),
        (
            unsigned,
            Code::InvalidArgument,
            "unable to parse JWT token: unsupported signature algorithm \"none\"",
        ),
        (forged, Code::PermissionDenied, "token signature is invalid"),
        (unknown, Code::PermissionDenied, "the issuer has no key \"k9\""),
        (
            token(|claims| claims["iss"] = "https://other.test".into()),
            Code::PermissionDenied,
            "tokens of issuer \"https://other.test\" are not accepted",
        ),
        (token(|claims| claims["iss"] = Value::Null), Code::InvalidArgument, "token missing iss claim"),
        (
            token(|claims| claims["aud"] = "other".into()),
            Code::PermissionDenied,
            "token is not meant for this server",
        ),
        (token(|claims| claims["exp"] = 1.into()), Code::PermissionDenied, "token has expired"),
        (token(|claims| claims["exp"] = Value::Null), Code::PermissionDenied, "token missing exp claim"),
        (token(|claims| claims["iat"] = Value::Null), Code::PermissionDenied, "token missing iat claim"),
        (token(|claims| claims["iat"] = 1.into()), Code::PermissionDenied, "token is too old"),
        (
            token(|claims| claims["nbf"] = 4_000_000_000_i64.into()),
            Code::PermissionDenied,
            "token is not valid yet",
        ),
        (
            token(|claims| claims["kubernetes.io"]["namespace"] = "default".into()),
            Code::PermissionDenied,
            "claim /kubernetes.io/namespace does not have a value that is required",
        ),
        (
            token(|claims| claims["kubernetes.io"]["node"] = Value::Null),
            Code::InvalidArgument,
            "the node has no .Claims",
        ),
        (
            token(|claims| claims["kubernetes.io"]["node"]["name"] = "".into()),
            Code::InvalidArgument,
            "a placeholder",
        ),
        (
            token(|claims| claims["kubernetes.io"]["node"]["name"] = "x".repeat(513).into()),
            Code::InvalidArgument,
            "the node has no .Claims",
        ),
        (
            token(|claims| claims["groups"] = vec!["x\n"].into()),
            Code::InvalidArgument,
            "claim groups cannot be made selectors of",
        ),
        (
            token(|claims| claims["groups"] = (0..65).collect::<Vec<_>>().into()),
            Code::InvalidArgument,
            "claim groups cannot be made selectors of",
        ),
    ] {
        let refused = with_token(&server, &token).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused:?}");
        assert!(refused.message().starts_with(&format!("nodeattestor(oidc): {text}")), "{text}: {refused:?}");
    }
    for payload in [&b"x"[..], b"{}", b"[]", b"{\"token\":1}"] {
        let refused = attest(server.anonymous().await, "oidc", payload, no_challenge).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(
            refused.message().starts_with("nodeattestor(oidc): failed to unmarshal data: "),
            "{refused:?}"
        );
    }
    // What a claim says cannot be more than a part of one segment, and different claims make different agents.
    for (name, path) in [("../../x509pop/1", "_2E._2F.._2Fx509pop_2F1"), ("..", "_2E."), ("a b", "a_20b")] {
        let named =
            issuer.token(&claims(&clock, |claims| claims["kubernetes.io"]["node"]["name"] = name.into()));
        let agent = with_token(&server, &named).await.unwrap();
        assert_eq!(agent.path(), format!("/spire/agent/oidc/prod/{path}"));
    }
}

#[tokio::test]
async fn trust_on_first_use_admits_one_agent_to_a_name() {
    let issuer = Issuer::new("k1");
    let clock = ManualClock::default();
    let (server, _files) =
        oidc_server(TempDir::new().unwrap(), clock.clone(), &issuer, "reattestable = false").await;
    let agent = with_token(&server, &issuer.token(&claims(&clock, |_| {}))).await.unwrap();
    assert!(!server.server.context().state.node(&agent.id).unwrap().can_reattest);
    clock.advance(Duration::from_secs(1));
    assert_refused(
        with_token(&server, &issuer.token(&claims(&clock, |_| {}))).await,
        Code::PermissionDenied,
        USED,
    );
}

/// What an issuer's server says, by path.
type Documents = Arc<Mutex<BTreeMap<String, String>>>;

#[tokio::test]
async fn keys_are_fetched_when_a_token_needs_them_and_the_last_ones_stay_in_use() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let url = format!("http://{address}");
    let (first, second) = (Issuer::new("k1"), Issuer::new("k2"));
    let documents: Documents = Arc::default();
    let fetched: Arc<Mutex<Vec<String>>> = Arc::default();
    let (served, kept) = (documents.clone(), fetched.clone());
    let task = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 2048];
            let read = stream.read(&mut request).await.unwrap();
            let request = String::from_utf8_lossy(&request[..read]).into_owned();
            let path = request.split(' ').nth(1).unwrap().to_owned();
            kept.lock().unwrap().push(path.clone());
            let answer = match served.lock().unwrap().get(&path) {
                Some(body) => format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()),
                None => "HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n".to_owned(),
            };
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    let set = |path: &str, body: String| documents.lock().unwrap().insert(path.to_owned(), body);
    let discovery = |issuer: &str| json!({ "issuer": issuer, "jwks_uri": format!("{url}/keys") }).to_string();
    const DISCOVERY: &str = "/.well-known/openid-configuration";

    let clock = ManualClock::default();
    let section = issuer_section("", "refresh = \"1m\"").replace(URL, &url);
    let server = TestServer::start_in(TempDir::new().unwrap(), clock.clone(), &section).await;
    let attest = async |issuer: &Issuer| {
        clock.advance(Duration::from_secs(1));
        let token = issuer.token(&claims(&clock, |claims| claims["iss"] = url.clone().into()));
        with_token(&server, &token).await
    };
    let fetches = || std::mem::take(&mut *fetched.lock().unwrap()).len();
    let unavailable = "nodeattestor(oidc): the issuer's keys are not available";
    // The issuer is not there yet, and is not asked again at once.
    assert_refused(attest(&first).await, Code::Unavailable, unavailable);
    assert_refused(attest(&first).await, Code::Unavailable, unavailable);
    assert_eq!(fetches(), 1);
    // Somebody else's documents are not the issuer's.
    set(DISCOVERY, discovery("https://other.test"));
    set("/keys", first.key_set());
    clock.advance(Duration::from_secs(10));
    assert_refused(attest(&first).await, Code::Unavailable, unavailable);
    assert_eq!(fetches(), 1);
    set(DISCOVERY, discovery(&url));
    clock.advance(Duration::from_secs(10));
    attest(&first).await.unwrap();
    attest(&first).await.unwrap();
    assert_eq!(fetches(), 2);
    // The issuer takes a new key; an unknown key has it asked, but not for each token.
    set("/keys", second.key_set());
    assert_eq!(
        attest(&second).await.unwrap_err().message(),
        "nodeattestor(oidc): the issuer has no key \"k2\""
    );
    assert_eq!(fetches(), 0);
    clock.advance(Duration::from_secs(10));
    attest(&second).await.unwrap();
    assert_eq!(fetches(), 2);
    assert_eq!(attest(&first).await.unwrap_err().code(), Code::PermissionDenied, "the old key is gone");
    // It breaks, and is away when its keys are due: those that are known go on.
    set("/keys", "{}".to_owned());
    clock.advance(Duration::from_secs(60));
    attest(&second).await.unwrap();
    assert_eq!(fetches(), 2);
    documents.lock().unwrap().clear();
    clock.advance(Duration::from_secs(60));
    attest(&second).await.unwrap();
    // A document without an end is not read to its end.
    set("/keys", "x".repeat(300 << 10));
    set(DISCOVERY, discovery(&url));
    clock.advance(Duration::from_secs(60));
    attest(&second).await.unwrap();
    // A token that would be refused anyway makes nobody ask.
    fetches();
    clock.advance(Duration::from_secs(60));
    let late = claims(&clock, |claims| {
        claims["iss"] = url.clone().into();
        claims["exp"] = 1.into();
    });
    assert_eq!(
        with_token(&server, &Issuer::new("k3").token(&late)).await.unwrap_err().code(),
        Code::PermissionDenied
    );
    assert_eq!(fetches(), 0);
    task.abort();
}

/// Over TLS the issuer's server is verified: by its name, and by the authorities that are configured.
#[tokio::test]
async fn keys_come_over_tls_from_a_server_that_is_verified() {
    use tokio_rustls::TlsAcceptor;
    use tokio_rustls::rustls::ServerConfig;

    let issuer = Issuer::new("k1");
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = rustls_pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let config = ServerConfig::builder_with_provider(bonafide_pki::tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let set = issuer.key_set();
    let shown = Arc::new(Mutex::new(Vec::new()));
    let requests = shown.clone();
    let task = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut request = vec![0; 2048];
            let read = stream.read(&mut request).await.unwrap();
            requests.lock().unwrap().push(String::from_utf8_lossy(&request[..read]).into_owned());
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{set}", set.len());
            stream.write_all(answer.as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
        }
    });
    let files = TempDir::new().unwrap();
    let file = |name: &str, content: &str| {
        let path = files.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.display().to_string()
    };
    let secret = file("secret", "a-secret\n");
    let attested = async |host: &str, roots: String| {
        let clock = ManualClock::default();
        let keys = format!(
            "jwks_url = \"https://{host}:{port}/keys\"\nca_path = \"{roots}\"\nfetch_token_path = \"{secret}\""
        );
        let section = issuer_section(&keys, "");
        let server = TestServer::start_in(TempDir::new().unwrap(), clock.clone(), &section).await;
        with_token(&server, &issuer.token(&claims(&clock, |_| {}))).await.map(|agent| agent.path().to_owned())
    };
    let right = file("right.pem", &made.cert.pem());
    attested("localhost", right.clone()).await.unwrap();
    let request = shown.lock().unwrap().pop().unwrap();
    assert!(request.starts_with("GET /keys HTTP/1.1\r\n"), "{request}");
    assert!(request.contains("authorization: Bearer a-secret\r\n"), "{request}");
    for (host, roots) in [("localhost", file("wrong.pem", &other.cert.pem())), ("127.0.0.1", right)] {
        assert_eq!(attested(host, roots).await.unwrap_err().code(), Code::Unavailable, "{host}");
    }
    assert_eq!(shown.lock().unwrap().len(), 0, "nobody unverified is shown the token");
    task.abort();
}

/// `validate` finds what would stop the server.
#[test]
fn files_that_cannot_be_used_are_found_by_the_check() {
    let folder = TempDir::new().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let random: Arc<dyn bonafide_pki::Random> = Arc::new(SystemRandom);
    let check = |section: &str| {
        let config = configuration(folder.path(), section);
        bonafide_server::drivers::check(&config, &random, &SystemClock::shared()).join("\n")
    };
    let sshpop = |path: &str| format!("[node_attestor.sshpop]\ncert_authorities_path = \"{path}\"");
    assert!(check(&sshpop("/missing")).starts_with("node_attestor.sshpop: cannot read /missing"));
    assert!(check(&sshpop(&write("empty", "# none\n\n"))).contains("there is no certificate authority in"));
    let dsa = check(&sshpop(&write("dsa", "# old\nssh-dss AAAA\n")));
    assert!(dsa.contains("dsa, line 2: unsupported key type \"ssh-dss\""), "{dsa}");
    let inline = check("[node_attestor.sshpop]\ncert_authorities = [\"from=\\\"x\\\" ssh-ed25519 AAAA\"]");
    assert!(inline.contains("cert_authorities[0]: options before the key"), "{inline}");
    let root = pem::encode("CERTIFICATE", super::attestation::node_authority().root());
    let (root, none) = (write("root.pem", &root), write("none.pem", "no certificate\n"));
    let tpm = |devices: &str, manufacturers: &str| {
        check(&format!(
            "[node_attestor.tpm_devid]\ndevid_ca_path = \"{devices}\"\nendorsement_ca_path = \"{manufacturers}\""
        ))
    };
    assert_eq!(tpm(&root, &root), "");
    assert!(tpm("/missing", &root).starts_with("node_attestor.tpm_devid: cannot read /missing"));
    assert!(tpm(&root, &none).contains("none.pem: no certificate found: give PEM certificates"));
    let oidc = |keys: &str| issuer_section(keys, "");
    let missing = check(&oidc("jwks_path = \"/missing\""));
    assert!(missing.starts_with("node_attestor.oidc: issuer prod: cannot read /missing"), "{missing}");
    let empty = check(&oidc(&format!("jwks_path = \"{}\"", write("none.json", "{\"keys\":[]}"))));
    assert!(empty.contains("it has no key for signatures that can be used"), "{empty}");
    let roots = check(&oidc(&format!("ca_path = \"{}\"", write("roots", ""))));
    assert!(roots.contains("there is no certificate of an authority"), "{roots}");
    assert_eq!(
        check(&oidc(&format!("jwks_path = \"{}\"", write("keys.json", &Issuer::new("k").key_set())))),
        ""
    );
}
