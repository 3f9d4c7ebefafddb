//! Becoming an agent, and becoming one again after a restart.

use std::time::Duration;

use bonafide_agent::bootstrap::store::DataFile;
use bonafide_pki::{KeyType, PrivateKey, Signer as _, pem};
use bonafide_proto::spire::types::permission_denied_details::Reason;
use bonafide_runtime::tasks::chain;
use bonafide_testkit::{TestAuthority, id, trust_domain};
use tonic::Status;

use crate::fake_server::FakeServer;
use crate::harness::Home;

fn why(result: Result<bonafide_agent::agent::Agent, bonafide_agent::agent::StartError>) -> String {
    match result {
        Ok(_) => panic!("the agent must not start"),
        Err(error) => chain(&error),
    }
}

#[tokio::test]
async fn a_join_token_attests_once_and_the_svid_is_used_again() {
    let server = FakeServer::start().await;
    let home = Home::new();
    let agent = home.start(&server, "").await;
    assert_eq!(agent.own_svid().id(), id("/spire/agent/join_token/token"));
    let chain = agent.own_svid().chain();
    assert_eq!(server.lock().calls[..3], ["AttestAgent", "GetBundle", "PostStatus"]);
    agent.shut_down();
    agent.join().await.unwrap();

    let again = home.start(&server, "").await;
    assert_eq!(again.own_svid().chain(), chain);
    assert_eq!(server.lock().count("AttestAgent"), 1);
}

#[tokio::test]
async fn keys_in_memory_are_never_written_and_a_restart_attests_anew() {
    let server = FakeServer::start().await;
    let home = Home::new();
    let agent = home.start(&server, "key_manager = \"memory\"").await;
    let chain = agent.own_svid().chain();
    assert!(!home.path("data/keys.json").exists());
    agent.shut_down();
    agent.join().await.unwrap();
    // The token was good for one attestation.
    let error = why(home.try_start(&server, "key_manager = \"memory\"").await);
    assert!(error.contains("already been used"), "{error}");
    server.lock().tokens.insert("token".to_owned());
    let again = home.start(&server, "key_manager = \"memory\"").await;
    assert_ne!(again.own_svid().chain(), chain);
    assert_eq!(server.lock().count("AttestAgent"), 3);
    assert!(!home.path("data/keys.json").exists());
}

#[tokio::test]
async fn nothing_but_the_agents_user_may_read_its_state() {
    use std::os::unix::fs::PermissionsExt as _;
    let server = FakeServer::start().await;
    let home = Home::new();
    let _agent = home.start(&server, "").await;
    for (name, mode) in [
        ("data", 0o700),
        ("data/agent-data.json", 0o600),
        ("data/keys.json", 0o600),
        ("public", 0o755),
        ("public/api.sock", 0o777),
        ("private", 0o750),
        ("private/admin.sock", 0o770),
    ] {
        let found = std::fs::metadata(home.path(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!(found, mode, "{name}: {found:o}");
    }
}

#[tokio::test]
async fn a_node_with_a_certificate_answers_the_challenge() {
    let server = FakeServer::start().await;
    server.lock().reattestable = true;
    let home = Home::new();
    let agent = home.start(&server, &x509pop(&home)).await;
    assert_eq!(agent.own_svid().id(), id("/spire/agent/x509pop/node"));
    assert!(agent.own_svid().reattestable());
}

pub(crate) fn x509pop(home: &Home) -> String {
    let at = |seconds| bonafide_identity::Timestamp::from_unix_seconds(seconds);
    let leaf = TestAuthority::new(&trust_domain(), at(1_700_000_000), at(2_000_000_000)).issue(&id("/node"));
    std::fs::write(home.path("c.pem"), pem::encode("CERTIFICATE", &leaf.chain[0])).unwrap();
    std::fs::write(home.path("k.pem"), pem::encode("PRIVATE KEY", &leaf.pkcs8)).unwrap();
    format!(
        "node_attestor.x509pop.certificate_path = \"{}\"\nnode_attestor.x509pop.private_key_path = \"{}\"",
        home.path("c.pem").display(),
        home.path("k.pem").display(),
    )
}

#[tokio::test]
async fn a_spent_token_is_reported_at_once() {
    let server = FakeServer::start().await;
    server.lock().tokens.clear();
    let error = why(Home::new().try_start(&server, "").await);
    assert!(error.contains("join token does not exist or has already been used"), "{error}");
    assert_eq!(server.lock().count("AttestAgent"), 1, "the answer would be the same");
}

#[tokio::test]
async fn a_denied_attestation_is_final_and_other_failures_are_retried() {
    let server = FakeServer::start().await;
    server
        .lock()
        .fail
        .insert("AttestAgent", vec![Status::permission_denied("failed to attest: agent is banned")]);
    let error = why(Home::new().try_start(&server, "").await);
    assert!(error.contains("agent is banned"), "{error}");

    let busy = || Status::unavailable("busy");
    server.lock().fail.insert("AttestAgent", vec![busy(), busy()]);
    server.lock().calls.clear();
    let _agent = Home::new().start(&server, "").await;
    assert_eq!(server.lock().count("AttestAgent"), 3);

    let home = Home::new();
    server.lock().fail.insert("AttestAgent", (0..100).map(|_| busy()).collect());
    let error = why(home.try_start(&server, "").await);
    assert!(error.contains("busy"), "{error}");
    assert!(!home.socket().exists(), "an agent that did not start leaves no socket");
}

#[tokio::test]
async fn a_server_that_the_bundle_does_not_know_is_refused() {
    let server = FakeServer::start().await;
    let home = Home::new();
    let config = home.config(&server, "");
    let other = FakeServer::start().await;
    std::fs::write(home.path("bundle.pem"), other.lock().root_pem()).unwrap();
    let error = why(home.start_with(config, crate::harness::impatient()).await);
    assert!(error.contains("does not prove to be the server of the trust domain"), "{error}");
    assert_eq!(server.lock().count("AttestAgent"), 0, "the token must not be shown to a stranger");
    assert!(server.lock().tokens.contains("token"));
}

#[tokio::test]
async fn an_insecure_bootstrap_takes_the_servers_word_once() {
    let server = FakeServer::start().await;
    let home = Home::new();
    let agent = home.start(&server, "bootstrap.insecure = true").await;
    agent.shut_down();
    agent.join().await.unwrap();
    // From now on the bundle that came counts.
    let (state, address) = server.stop().await;
    let impostor = FakeServer::start().await;
    let impostor_state = std::sync::Arc::clone(&impostor.state);
    drop(impostor);
    let impostor = FakeServer::resume(impostor_state, Some(address)).await;
    std::fs::remove_file(home.path("data/keys.json")).unwrap();
    let error = why(home.try_start(&impostor, "bootstrap.insecure = true").await);
    assert!(error.contains("does not prove to be the server"), "{error}");
    drop(state);
}

#[tokio::test]
async fn bundle_files_that_cannot_be_used_are_named() {
    let server = FakeServer::start().await;
    let home = Home::new();
    for (content, format) in [("nothing", "pem"), ("{}", "spiffe"), ("{\"keys\":[]}", "spiffe")] {
        std::fs::write(home.path("b"), content).unwrap();
        let extra = format!(
            "bootstrap.bundle_file = \"{}\"\nbootstrap.bundle_format = \"{format}\"",
            home.path("b").display()
        );
        let error = why(home.try_start(&server, &extra).await);
        assert!(
            error.contains("cannot use the trust bundle in") && error.contains("/b"),
            "{content}: {error}"
        );
    }
    let json = bonafide_pki::bundle::to_spiffe_json(&server.lock().bundle());
    std::fs::write(home.path("b"), json).unwrap();
    let extra = format!(
        "bootstrap.bundle_file = \"{}\"\nbootstrap.bundle_format = \"spiffe\"",
        home.path("b").display()
    );
    home.start(&server, &extra).await;
}

#[tokio::test]
async fn an_unusable_stored_svid_is_replaced() {
    let server = FakeServer::start().await;
    let home = Home::new();
    let stop = async |agent: bonafide_agent::agent::Agent| {
        agent.shut_down();
        agent.join().await.unwrap();
        server.lock().tokens.insert("token".to_owned());
    };
    stop(home.start(&server, "").await).await;

    // Its key is gone.
    std::fs::remove_file(home.path("data/keys.json")).unwrap();
    stop(home.start(&server, "").await).await;
    assert_eq!(server.lock().count("AttestAgent"), 2);

    // It has expired: one that lives two seconds is over by then.
    server.lock().agent_ttl = Duration::from_secs(2);
    std::fs::remove_file(home.path("data/keys.json")).unwrap();
    stop(home.start(&server, "sync_interval = \"1h\"").await).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    server.lock().agent_ttl = Duration::from_secs(3600);
    stop(home.start(&server, "").await).await;
    assert_eq!(server.lock().count("AttestAgent"), 4);
}

#[tokio::test]
async fn a_damaged_state_is_reported_and_kept() {
    let server = FakeServer::start().await;
    let home = Home::new();
    let agent = home.start(&server, "").await;
    agent.shut_down();
    agent.join().await.unwrap();
    let path = home.path("data/agent-data.json");
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let error = why(home.try_start(&server, "").await);
    assert!(error.contains("agent-data.json is damaged") && error.contains("remove it"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap().len(), whole.len() / 2, "nothing was overwritten");
    assert_eq!(server.lock().count("AttestAgent"), 1);
}

#[tokio::test]
async fn the_data_of_another_trust_domain_is_refused() {
    let server = FakeServer::start().await;
    let home = Home::new();
    let agent = home.start(&server, "").await;
    agent.shut_down();
    agent.join().await.unwrap();
    let mut config = home.config(&server, "");
    config.trust_domain = "other.test".parse().unwrap();
    let error = why(home.start_with(config, crate::harness::impatient()).await);
    assert!(error.contains("belongs to trust domain example.org, not other.test"), "{error}");
}

#[tokio::test]
async fn a_socket_in_use_is_found_out_before_a_token_is_spent() {
    let server = FakeServer::start().await;
    let home = Home::new();
    let first = home.start(&server, "").await;
    server.lock().tokens.insert("token".to_owned());
    let mut config = home.config(&server, "");
    config.data_dir = home.path("other-data");
    let error = why(home.start_with(config, crate::harness::impatient()).await);
    assert!(error.contains("another process is serving"), "{error}");
    assert_eq!(server.lock().count("AttestAgent"), 1);
    assert!(home.socket().exists(), "the socket of the first agent stays");
    drop(first);
}

#[tokio::test]
async fn a_denial_at_start_up_removes_the_svid_of_an_agent_that_cannot_attest_again() {
    for reason in [
        Reason::AgentExpired,
        Reason::AgentNotAttested,
        Reason::AgentNotActive,
        Reason::AgentMustReattest,
        Reason::AgentBanned,
    ] {
        let server = FakeServer::start().await;
        let home = Home::new();
        let agent = home.start(&server, "").await;
        agent.shut_down();
        agent.join().await.unwrap();
        server.lock().deny = Some(reason);
        let error = why(home.try_start(&server, "").await);
        assert!(error.contains("the server denies this agent"), "{reason:?}: {error}");
        let data = DataFile::open(&home.path("data")).unwrap().load().unwrap();
        assert!(data.svid.is_empty() && !data.bundle.is_empty(), "{reason:?}");
        // The supervisor starts it again, with a new token.
        server.lock().deny = None;
        server.lock().tokens.insert("token".to_owned());
        home.start(&server, "").await;
    }
}

#[tokio::test]
async fn a_refused_client_certificate_is_explained() {
    let server = FakeServer::start().await;
    let home = Home::new();
    let agent = home.start(&server, "").await;
    agent.shut_down();
    agent.join().await.unwrap();
    server.lock().distrust_clients();
    let overrides = crate::harness::overrides();
    let shutdown = overrides.shutdown.clone();
    let config = home.config(&server, "");
    let client = {
        use bonafide_agent::server_client::{Connector, ServerClient};
        use bonafide_pki::tls;
        use std::sync::Arc;
        let trust = tls::TrustStore::empty();
        let roots: Vec<_> =
            server.lock().bundle().x509_authorities.into_iter().map(|a| a.certificate).collect();
        let roots = bonafide_pki::TrustRoots::from_der(roots.iter().map(Vec::as_slice)).unwrap();
        trust.set_trust_domain(&trust_domain(), &Arc::new(roots));
        let at = |seconds| bonafide_identity::Timestamp::from_unix_seconds(seconds);
        let leaf = TestAuthority::new(&trust_domain(), at(1_700_000_000), at(2_000_000_000))
            .issue(&id("/spire/agent/x"));
        let key = Arc::new(PrivateKey::from_pkcs8_der(&leaf.pkcs8).unwrap());
        assert_eq!(key.key_type(), KeyType::EcP256);
        let identity = tls::SvidHolder::new(tls::Svid::new(leaf.chain, key).unwrap());
        let clock = bonafide_runtime::clock::SystemClock::shared();
        ServerClient::new(Connector::new(config.server, trust_domain(), trust, clock), identity)
    };
    let error = chain(&client.bundle().await.unwrap_err());
    assert!(error.contains("refused the agent's certificate") && error.contains("server's log"), "{error}");
    drop(shutdown);
}
