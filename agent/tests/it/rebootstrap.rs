//! A server that the agent's bundle no longer knows.

use std::time::Duration;

use bonafide_agent::agent::Agent;
use bonafide_agent::bootstrap::store::{Attempts, DataFile};
use bonafide_identity::Timestamp;
use bonafide_pki::inspect;
use bonafide_proto::workload::X509svidRequest;

use crate::bootstrap::x509pop;
use crate::fake_server::FakeServer;
use crate::harness::{Home, certificates, eventually, impatient, my_entry, next, overrides, workload};

/// A server of the same trust domain with authorities of its own, in the place of another.
async fn replace(server: FakeServer) -> FakeServer {
    let (_, address) = server.stop().await;
    let other = FakeServer::start().await;
    let state = std::sync::Arc::clone(&other.state);
    drop(other);
    state.lock().unwrap().reattestable = true;
    FakeServer::resume(state, Some(address)).await
}

async fn known() -> FakeServer {
    let server = FakeServer::start().await;
    let mut state = server.lock();
    state.reattestable = true;
    state.add(my_entry("e1", "/a").build());
    drop(state);
    server
}

async fn is_unknown(agent: &Agent) {
    eventually("some passes have failed", async || match agent.last_sync().failures_in_a_row() {
        count @ 0..=2 => Err(count),
        _ => Ok(()),
    })
    .await;
}

fn settings(home: &Home, mode: &str) -> String {
    format!(
        "{}\nbootstrap.rebootstrap_mode = \"{mode}\"\nbootstrap.rebootstrap_delay = \"300ms\"\n{}",
        x509pop(home),
        format_args!("bootstrap.bundle_file = \"{}\"", home.path("bundle.pem").display()),
    )
}

#[tokio::test]
async fn an_agent_begins_anew_and_its_workloads_notice_new_svids_only() {
    let server = known().await;
    let home = Home::new();
    let agent = home.start(&server, &settings(&home, "auto")).await;
    let mut stream = workload(&home).await.fetch_x509svid(X509svidRequest {}).await.unwrap().into_inner();
    let before = next(&mut stream).await.unwrap();

    let server = replace(server).await;
    server.lock().add(my_entry("e1", "/a").build());
    // The operator's bundle is still the old one: nothing is lost by trying.
    is_unknown(&agent).await;
    tokio::time::timeout(Duration::from_millis(300), stream.message()).await.unwrap_err();
    assert_eq!(server.lock().count("AttestAgent"), 0, "nothing is shown to a stranger");

    std::fs::write(home.path("bundle.pem"), server.lock().root_pem()).unwrap();
    let root = server.lock().bundle().x509_authorities[0].certificate.clone();
    let issuer = inspect(&root).unwrap().ski;
    loop {
        let message = next(&mut stream).await.unwrap();
        assert_eq!(message.svids.len(), 1);
        if inspect(&certificates(&message.svids[0].x509_svid)[0]).unwrap().aki == issuer {
            assert_eq!(message.svids[0].bundle, root);
            assert_ne!(message.svids[0].x509_svid, before.svids[0].x509_svid);
            break;
        }
    }
    assert_eq!(inspect(&agent.own_svid().chain()[0]).unwrap().aki, issuer);
    assert_eq!(server.lock().count("AttestAgent"), 1);
    agent.shut_down();
    agent.join().await.unwrap();
    // And so it is after a restart.
    let again = home.start(&server, &settings(&home, "auto")).await;
    assert_eq!(inspect(&again.own_svid().chain()[0]).unwrap().aki, issuer);
    assert_eq!(server.lock().count("AttestAgent"), 1);
}

#[tokio::test]
async fn without_leave_the_agent_waits_for_the_server_that_it_knows() {
    let server = known().await;
    let home = Home::new();
    let agent = home.start(&server, &settings(&home, "never")).await;
    let state = std::sync::Arc::clone(&server.state);
    let impostor = replace(server).await;
    std::fs::write(home.path("bundle.pem"), impostor.lock().root_pem()).unwrap();
    is_unknown(&agent).await;
    assert_eq!(impostor.lock().count("AttestAgent"), 0);
    // What it holds it serves.
    let mut stream = workload(&home).await.fetch_x509svid(X509svidRequest {}).await.unwrap().into_inner();
    assert_eq!(next(&mut stream).await.unwrap().svids.len(), 1);
    let (_, address) = impostor.stop().await;
    let _server = FakeServer::resume(state, Some(address)).await;
    eventually("the agent is back", async || match agent.last_sync().failures_in_a_row() {
        0 => Ok(()),
        count => Err(count),
    })
    .await;
}

#[tokio::test]
async fn an_agent_begins_anew_at_start_up_too() {
    let server = known().await;
    let home = Home::new();
    let config = home.config(&server, &settings(&home, "auto"));
    let agent = home.start_with(config.clone(), overrides()).await.unwrap();
    agent.shut_down();
    agent.join().await.unwrap();
    let server = replace(server).await;
    std::fs::write(home.path("bundle.pem"), server.lock().root_pem()).unwrap();
    // With its SVID, and with nothing but the old bundle.
    for lost in [false, true] {
        if lost {
            std::fs::remove_file(home.path("data/keys.json")).unwrap();
        }
        let agent = home.start_with(config.clone(), overrides()).await.unwrap();
        let root = server.lock().bundle().x509_authorities[0].certificate.clone();
        assert_eq!(inspect(&agent.own_svid().chain()[0]).unwrap().aki, inspect(&root).unwrap().ski);
        agent.shut_down();
        agent.join().await.unwrap();
    }
}

#[tokio::test]
async fn an_outage_before_does_not_count_as_time_in_which_the_server_is_unknown() {
    let server = known().await;
    let home = Home::new();
    let settings = settings(&home, "auto").replace("300ms", "1h");
    let config = home.config(&server, &settings);
    let agent = home.start_with(config.clone(), overrides()).await.unwrap();
    agent.shut_down();
    agent.join().await.unwrap();
    // As an agent leaves it that has tried for long to reach a server that was away.
    let file = DataFile::open(&home.path("data")).unwrap();
    let mut data = file.load().unwrap();
    data.svid.clear();
    data.attempts = Attempts { count: 9, since: Some(Timestamp::from_unix_seconds(1_600_000_000)) };
    file.store(&data).unwrap();
    let server = replace(server).await;
    std::fs::write(home.path("bundle.pem"), server.lock().root_pem()).unwrap();
    let starting = tokio::spawn(Agent::start(config, overrides()));
    eventually("it has been tried some times", async || match file.load().unwrap().attempts.count {
        count @ 0..=12 => Err(count),
        _ => Ok(()),
    })
    .await;
    assert_eq!(server.lock().count("AttestAgent"), 0);
    assert!(!starting.is_finished());
    starting.abort();
}

#[tokio::test]
async fn only_an_agent_that_can_attest_again_begins_anew() {
    let server = FakeServer::start().await;
    let home = Home::new();
    let extra = "bootstrap.rebootstrap_mode = \"always\"";
    let config = |home: &Home, extra: &str| {
        // The helper takes any `bootstrap.` key for a source.
        let file = home.path("bundle.pem");
        home.config(&server, &format!("{extra}\nbootstrap.bundle_file = \"{}\"", file.display()))
    };
    let error = match home.start_with(config(&home, extra), impatient()).await {
        Ok(_) => panic!("it must not start"),
        Err(error) => error.to_string(),
    };
    assert!(error.contains("cannot attest again"), "{error}");
    server.lock().tokens.insert("token".into());
    let home = Home::new();
    home.start_with(config(&home, "bootstrap.rebootstrap_mode = \"auto\""), overrides()).await.unwrap();
}
