//! Everything rotates at once, under a client that makes a mutual-TLS handshake every 50 ms.
//!
//! The length is `BONAFIDE_TEST_SOAK_SECONDS`. Lifetimes are seconds: an X.509-SVID lives 6, an authority 30, so a
//! minute holds about twenty renewals of each SVID and three rotations of each authority.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bonafide_tests::{Deployment, Settings, eventually, setting};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);

#[test]
fn no_handshake_fails_while_everything_rotates() {
    let seconds = setting("BONAFIDE_TEST_SOAK_SECONDS", 40);
    let deployment = Deployment::start(Settings {
        ca_ttl: "30s".to_owned(),
        x509_svid_ttl: "6s".to_owned(),
        jwt_svid_ttl: "5s".to_owned(),
        agent_ttl: "12s".to_owned(),
        ..Settings::default()
    })
    .unwrap();
    // Two files, so two paths and two identities.
    let server = deployment.folder().join("soak-server");
    let client = deployment.folder().join("soak-client");
    for copy in [&server, &client] {
        std::fs::copy(&deployment.programs().workload, copy).unwrap();
    }
    let selector = |path: &std::path::Path| format!("unix:path:{}", path.canonicalize().unwrap().display());
    deployment.register("/server", &selector(&server)).unwrap();
    deployment.register("/client", &selector(&client)).unwrap();

    let mut listening = Command::new(&server)
        .args(["serve", "--peer", "spiffe://example.org/client"])
        .env("SPIFFE_ENDPOINT_SOCKET", deployment.endpoint())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(listening.stdout.take().unwrap()).lines();
    let mut address = None;
    for line in lines.by_ref() {
        let event: Value = serde_json::from_str(&line.unwrap()).unwrap();
        if event["event"] == "listening" {
            address = Some(event["address"].as_str().unwrap().to_owned());
            break;
        }
    }
    let address = address.expect("the server's address");
    // Somebody must read what the server prints, or it stops when the pipe is full.
    std::thread::spawn(move || lines.for_each(drop));

    let report = Command::new(&client)
        .args(["dial", "--address", &address, "--peer", "spiffe://example.org/server", "--period-ms", "50"])
        .args(["--seconds", &seconds.to_string(), "--audience", "soak"])
        .env("SPIFFE_ENDPOINT_SOCKET", deployment.endpoint())
        .stdin(Stdio::null())
        .output();
    stop(&mut listening);
    let report = report.unwrap();
    let text = String::from_utf8_lossy(&report.stdout);
    let last = text.lines().last().unwrap_or_default();
    let summary: Value = serde_json::from_str(last).unwrap_or_else(|error| panic!("{error}: {text}"));
    println!("{summary}");
    assert_eq!(summary["event"], "summary", "{text}");
    let count = |name: &str| summary[name].as_u64().unwrap_or_else(|| panic!("{name}: {summary}"));
    assert_eq!(count("failed"), 0, "{text}");
    assert_eq!(count("tokens_failed"), 0, "{text}");
    assert_eq!(count("interruptions"), 0, "the streams saw each rotation without reconnecting: {text}");
    assert!(count("handshakes") >= seconds * 10, "{summary}");
    assert!(count("svids") >= seconds / 6, "{summary}");
    assert!(count("peer_svids") >= seconds / 6, "{summary}");
    assert!(count("authorities") > seconds / 40, "{summary}");
    assert!(count("jwt_keys") > seconds / 40, "{summary}");
}

#[test]
fn a_tainted_authority_is_gone_everywhere_within_seconds() {
    let deployment = Deployment::start(Settings::default()).unwrap();
    let uid = format!("unix:uid:{}", rustix::process::getuid().as_raw());
    deployment.register("/tool", &uid).unwrap();
    let serial = |deployment: &Deployment| -> Result<String, String> {
        let now = deployment.cli(&["fetch", "x509"])?;
        Ok(now["svids"][0]["serial_number"].as_str().unwrap_or_default().to_owned())
    };
    let before = eventually("an SVID", SOON, || serial(&deployment)).unwrap();
    let old = deployment.cli(&["authority", "show", "x509"]).unwrap()["authorities"][0]["id"].clone();
    let fresh = deployment.cli(&["authority", "prepare", "x509"]).unwrap()["authorities"][0]["id"].clone();
    deployment.cli(&["authority", "activate", "x509", fresh.as_str().unwrap()]).unwrap();
    deployment.cli(&["authority", "taint", "x509", old.as_str().unwrap()]).unwrap();
    eventually("a new SVID after the taint", SOON, || match serial(&deployment) {
        Ok(now) if now != before => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .unwrap();
}

fn stop(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}
