//! Evidence of GPUs, from a program of the operator's to the server.

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use bonafide_pki::evidence::device_nonce;
use bonafide_pki::{inspect, pem};
use data_encoding::{BASE64, HEXLOWER};

use crate::fake_server::FakeServer;
use crate::harness::{Home, eventually};

/// A program that writes its input down and prints this.
fn collector(home: &Home, prints: &str) -> String {
    let path = home.folder.path().canonicalize().unwrap().join("collect");
    std::fs::write(home.path("printed"), prints).unwrap();
    let script = "#!/bin/sh\nPATH=/usr/bin:/bin\nhere=$(dirname \"$0\")\ncat > \"$here/nonces\"\ncat \"$here/printed\"\n";
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    format!("[gpu_evidence]\ncommand = {:?}", path.display().to_string())
}

fn printed() -> String {
    let certificates = pem::encode("CERTIFICATE", b"leaf") + &pem::encode("CERTIFICATE", b"device");
    let certificates = BASE64.encode(certificates.as_bytes());
    format!(r#"[{{"evidence": "{}", "certificate": "{certificates}"}}]"#, BASE64.encode(b"report"))
}

#[tokio::test]
async fn evidence_is_shown_at_the_start_and_whenever_the_key_changes() {
    const NAME: &str = "evidence_is_shown_at_the_start_and_whenever_the_key_changes";
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: {NAME}: the collector must be root's");
        return;
    }
    let server = FakeServer::start().await;
    server.lock().agent_ttl = Duration::from_secs(4);
    let home = Home::new();
    let agent = home.start(&server, &collector(&home, &printed())).await;
    eventually("evidence is shown for a second key", async || {
        let shown = server.lock().shown.clone();
        let keys: std::collections::BTreeSet<_> = shown.iter().map(|(key, _)| key.clone()).collect();
        if keys.len() >= 2 { Ok(()) } else { Err(format!("{} times", shown.len())) }
    })
    .await;
    agent.shut_down();
    let (key, request) = server.lock().shown[0].clone();
    assert_eq!(request.challenge, [7; 32]);
    let [device] = &request.devices[..] else { panic!("{request:?}") };
    assert_eq!(
        (&device.report[..], &device.certificates[..]),
        (&b"report"[..], &[b"leaf".to_vec(), b"device".to_vec()][..])
    );
    // The program was last given the nonces of a key that was shown, or is in use now.
    let nonces = std::fs::read_to_string(home.path("nonces")).unwrap();
    let nonces: Vec<&str> = nonces.lines().collect();
    assert_eq!(nonces.len(), 32);
    let mut keys: Vec<_> = server.lock().shown.iter().map(|(key, _)| key.clone()).collect();
    assert!(keys.contains(&key));
    keys.push(inspect(&agent.own_svid().chain()[0]).unwrap().public_key.unwrap().spki_der().to_vec());
    let of = |key: &[u8], index| HEXLOWER.encode(&device_nonce(&[7; 32], key, index));
    assert!(keys.iter().any(|key| nonces[0] == of(key, 0) && nonces[31] == of(key, 31)), "{nonces:?}");
}

#[tokio::test]
async fn an_agent_whose_collector_fails_serves_all_the_same() {
    let server = FakeServer::start().await;
    let home = Home::new();
    let _agent = home.start(&server, &collector(&home, "no evidence")).await;
    eventually("a challenge was asked for", async || match server.lock().count("GetChallenge") {
        0 => Err("none"),
        _ => Ok(()),
    })
    .await;
    assert!(server.lock().shown.is_empty());
}
