//! Starting, stopping, starting again.

use std::time::{Duration, Instant};

use bonafide_pki::tls::{ClientAuth, SvidHolder, TrustStore, server_config};
use bonafide_proto::spire::server::entry::v1::{BatchCreateEntryRequest, CountEntriesRequest};
use bonafide_proto::spire::types::AgentMask;
use bonafide_server::server::{Environment, Server, ServerError};
use bonafide_testkit::ManualClock;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::harness::*;

async fn http_get(server: &TestServer, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(server.server.health_address().unwrap()).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_written_is_there_after_a_restart() {
    for driver in ["sled", "redb"] {
        let settings = format!("[store]\ndriver = \"{driver}\"\n[key_manager.disk]\n");
        let server = TestServer::start_in(TempDir::new().unwrap(), ManualClock::default(), &settings).await;
        let agent = server.agent().await;
        let request = BatchCreateEntryRequest { entries: vec![wanted_entry("/web")], output_mask: None };
        entries(&server.local().await).batch_create_entry(request).await.unwrap();
        let TestServer { server, clock, folder } = server;
        server.stop().await.unwrap();

        let server = TestServer::start_in(folder, clock, &settings).await;
        let count =
            entries(&server.local().await).count_entries(CountEntriesRequest::default()).await.unwrap();
        assert_eq!(count.into_inner().count, 1, "{driver}");
        // The authority is the same too: the agent's SVID of before still opens the door.
        let channel = server.remote(Some(&agent)).await.unwrap();
        let request = bonafide_proto::spire::server::agent::v1::PostStatusRequest::default();
        agents(&channel).post_status(request).await.unwrap();
        server.server.stop().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_has_a_deadline_that_open_streams_cannot_move() {
    let server = TestServer::start().await;
    let socket = server.server.admin_socket().to_owned();
    // A stream that its client never ends.
    let client = bonafide_proto::health::v1::health_client::HealthClient::new(server.local().await);
    let mut watch = client
        .clone()
        .watch(bonafide_proto::health::v1::HealthCheckRequest::default())
        .await
        .unwrap()
        .into_inner();
    watch.message().await.unwrap();
    let begun = Instant::now();
    server.server.stop().await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert!(!socket.exists());
}

#[tokio::test]
async fn health_and_metrics_are_served() {
    let server = TestServer::start_with("health_address = \"127.0.0.1:0\"\n").await;
    let agent = server.agent().await;
    let (status, body) = http_get(&server, "/ready").await;
    assert!(status.contains("200"), "{status} {body}");
    assert!(http_get(&server, "/live").await.0.contains("200"));
    let details: serde_json::Value = serde_json::from_str(&body).unwrap();
    for part in ["server", "server.ca", "catalog.datastore", "audit"] {
        assert_eq!(details[part]["ready"], true, "{part} in {body}");
    }
    let request = bonafide_proto::spire::server::agent::v1::GetAgentRequest {
        id: wire_id(agent.path()),
        output_mask: Some(AgentMask::default()),
    };
    agents(&server.local().await).get_agent(request).await.unwrap();
    let (_, metrics) = http_get(&server, "/metrics").await;
    for name in [
        "bonafide_server_rpcs_total{method=\"/spire.api.server.agent.v1.Agent/GetAgent\",code=\"OK\"}",
        "bonafide_server_signatures_total{kind=\"agent\"}",
        "bonafide_server_attestations_total{type=\"join_token\",code=\"OK\"}",
        "bonafide_server_authority_not_after_seconds{kind=\"x509\"}",
        "bonafide_server_agents",
        "# HELP bonafide_server_rpcs_total ",
    ] {
        assert!(metrics.contains(name), "{name} is missing in\n{metrics}");
    }
    let part = server.server.context().readiness.register("part");
    part.not_ready("for the test");
    let (status, body) = http_get(&server, "/ready").await;
    assert!(status.contains("500") && body.contains("for the test"), "{status} {body}");
}

#[tokio::test]
async fn a_start_that_fails_says_why_and_leaves_nothing_running() {
    let server = TestServer::start().await;
    let address = server.server.address();
    let folder = TempDir::new().unwrap();
    let mut config = configuration(folder.path(), "");
    config.listen.address = address;
    let environment = Environment::system(log());
    let error = Server::start(config.clone(), environment.clone()).await.err().unwrap();
    assert!(matches!(error, ServerError::Bind { .. }), "{error}");
    assert!(
        error.to_string().starts_with(&format!("cannot listen on listen.address = {address}: ")),
        "{error}"
    );

    config.listen.address = "127.0.0.1:0".parse().unwrap();
    config.listen.admin_socket = server.server.admin_socket().to_owned();
    let error = Server::start(config.clone(), environment.clone()).await.err().unwrap().to_string();
    assert!(error.contains("another process is serving"), "{error}");

    config.listen.admin_socket = folder.path().join("api.sock");
    config.audit.file = Some("/no/such/folder/audit.log".into());
    let error = Server::start(config.clone(), environment.clone()).await.err().unwrap().to_string();
    assert!(error.contains("/no/such/folder/audit.log"), "{error}");

    config.audit.file = None;
    Server::start(config, environment).await.unwrap().stop().await.unwrap();
}

/// Advisories about resumed sessions: a client must be verified against the trust of now at each connection.
#[tokio::test]
async fn tls_sessions_are_never_resumed() {
    use tokio_rustls::TlsConnector;
    use tokio_rustls::rustls::client::Resumption;
    use tokio_rustls::rustls::{ClientConfig, HandshakeKind};
    let server = TestServer::start().await;
    // What is tested is what the server listens with; that it is made by this function is seen in its source.
    let _ = server_config(
        SvidHolder::empty(),
        TrustStore::empty(),
        ClientAuth::OptionalSpiffe,
        std::sync::Arc::new(server.clock.as_fn()),
    );
    let insecure = bonafide_pki::tls::insecure_client_config(
        trust_domain().server_id(),
        std::sync::Arc::new(server.clock.as_fn()),
    );
    let mut config = ClientConfig::clone(&insecure);
    config.resumption = Resumption::in_memory_sessions(16);
    let connector = TlsConnector::from(std::sync::Arc::new(config));
    for _ in 0..3 {
        let tcp = TcpStream::connect(server.server.address()).await.unwrap();
        let mut tls = connector.connect(bonafide_pki::tls::server_name(), tcp).await.unwrap();
        // Tickets would come with the first bytes after the handshake.
        tls.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
        let mut some = [0; 9];
        tls.read_exact(&mut some).await.unwrap();
        assert_eq!(tls.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_comes_from_a_running_server_and_from_one_that_is_not() {
    use bonafide_runtime::clock::SystemClock;
    use bonafide_server::backup::{BackupError, backup};
    let settings = "[store]\ndriver = \"sled\"\n[key_manager.disk]\n";
    let server = TestServer::start_in(TempDir::new().unwrap(), ManualClock::default(), settings).await;
    let request = BatchCreateEntryRequest { entries: vec![wanted_entry("/web")], output_mask: None };
    entries(&server.local().await).batch_create_entry(request).await.unwrap();
    let folder = TempDir::new().unwrap();
    let config = configuration(server.folder.path(), settings);
    let (live, cold) = (folder.path().join("live"), folder.path().join("cold"));
    let of_running = backup(&config, &live, SystemClock::shared()).await.unwrap();
    assert!(of_running.records > 0);
    assert_eq!(std::fs::metadata(&live).unwrap().len(), of_running.bytes);
    // Nothing is left where it was made.
    let names: Vec<String> = std::fs::read_dir(server.folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("backup-"))
        .collect();
    assert_eq!(names, Vec::<String>::new());
    let missing = folder.path().join("no/such/folder/file");
    let error = backup(&config, &missing, SystemClock::shared()).await.unwrap_err();
    assert!(matches!(error, BackupError::Write { .. }), "{error}");

    let TestServer { server, folder: data, .. } = server;
    server.stop().await.unwrap();
    let of_stopped = backup(&config, &cold, SystemClock::shared()).await.unwrap();
    assert!(of_stopped.sequence >= of_running.sequence);

    // And the way back, after the store is lost.
    std::fs::remove_dir_all(data.path().join("store")).unwrap();
    bonafide_server::store::restore(
        &live,
        &bonafide_server::drivers::store_config(&config.store, &config.trust_domain),
        bonafide_server::store::Existing::MoveAside,
        ManualClock::default().now(),
    )
    .unwrap();
    let server = TestServer::start_in(data, ManualClock::default(), settings).await;
    let count = entries(&server.local().await).count_entries(CountEntriesRequest::default()).await.unwrap();
    assert_eq!(count.into_inner().count, 1);
}
