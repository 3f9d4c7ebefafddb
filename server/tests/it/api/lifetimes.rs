//! The policy of lifetimes: when entries are written, when something is signed, and when an operator asks.

use std::time::Duration;

use bonafide_pki::{KeyType, PrivateKey, agent_csr, inspect};
use bonafide_proto::bonafide::server::v1::CheckLifetimesRequest;
use bonafide_proto::bonafide::server::v1::maintenance_client::MaintenanceClient;
use bonafide_proto::spire::server::entry::v1::{BatchCreateEntryRequest, BatchUpdateEntryRequest};
use bonafide_proto::spire::server::svid::v1::svid_client::SvidClient;
use bonafide_proto::spire::server::svid::v1::{
    BatchNewX509svidRequest, MintJwtsvidRequest, NewJwtsvidRequest, NewX509svidParams,
};
use bonafide_proto::spire::types;
use bonafide_server::server::{Environment, Server, ServerError};
use bonafide_testkit::ManualClock;
use tonic::Code;

use super::harness::*;

const RULES: &str = r#"
    [[lifetime.rules]]
    name = "payments"
    id = "spiffe://example.org/payments/*"
    kinds = ["x509"]
    max = "10m"
    beyond = "refuse"
    [[lifetime.rules]]
    name = "tokens"
    kinds = ["jwt"]
    max = "1m"
"#;

#[tokio::test]
async fn an_entry_that_asks_for_too_much_is_not_accepted() {
    let server = TestServer::start_with(RULES).await;
    let channel = server.local().await;
    let wanted = |path: &str, ttl: i32| types::Entry { x509_svid_ttl: ttl, ..wanted_entry(path) };
    let request = BatchCreateEntryRequest {
        entries: vec![wanted("/payments/a", 601), wanted("/payments/b", 600), wanted("/other", 7200)],
        output_mask: None,
    };
    let results = entries(&channel).batch_create_entry(request).await.unwrap().into_inner().results;
    let codes: Vec<i32> = results.iter().map(|result| result.status.as_ref().unwrap().code).collect();
    assert_eq!(codes, [Code::InvalidArgument as i32, 0, 0]);
    let message = &results[0].status.as_ref().unwrap().message;
    assert_eq!(
        message,
        "failed to create entry: the lifetime of 601s is longer than the 600s that rule \"payments\" allows"
    );
    let mut longer = results[1].entry.clone().unwrap();
    longer.x509_svid_ttl = 3600;
    let request = BatchUpdateEntryRequest { entries: vec![longer], input_mask: None, output_mask: None };
    let result = entries(&channel).batch_update_entry(request).await.unwrap().into_inner().results.remove(0);
    let status = result.status.unwrap();
    assert_eq!(status.code, Code::InvalidArgument as i32, "{}", status.message);
    assert!(
        status.message.starts_with("failed to update entry: the lifetime of 3600s"),
        "{}",
        status.message
    );
    let id = bonafide_identity::EntryId::parse(&results[1].entry.as_ref().unwrap().id).unwrap();
    let stored =
        server.server.context().state.with_entries(|all| all.get(&id).map(|entry| entry.x509_svid_ttl));
    assert_eq!(stored, Some(600), "nothing is lost");
}

#[tokio::test]
async fn each_signature_keeps_the_policy_and_the_audit_log_says_why() {
    let server = TestServer::start_with(RULES).await;
    let agent = server.agent().await;
    let mut payments = stored_entry("payments", &agent.id, "/payments/web");
    (payments.x509_svid_ttl, payments.jwt_svid_ttl) = (0, 300);
    server.entry(payments).await;
    // Written before there was a rule, as it were.
    let mut old = stored_entry("old", &agent.id, "/payments/old");
    old.x509_svid_ttl = 3600;
    server.entry(old).await;
    let channel = server.remote(Some(&agent)).await.unwrap();
    let params = ["payments", "old"].map(|entry| NewX509svidParams {
        entry_id: entry.to_owned(),
        csr: agent_csr(&PrivateKey::generate(KeyType::EcP256).unwrap(), None).unwrap(),
    });
    let request = BatchNewX509svidRequest { params: params.into() };
    let results =
        SvidClient::new(channel.clone()).batch_new_x509svid(request).await.unwrap().into_inner().results;
    // The default of an hour was nobody's wish.
    let svid = results[0].svid.as_ref().unwrap();
    let info = inspect(&svid.cert_chain[0]).unwrap();
    let now = server.clock.now();
    assert_eq!(info.not_after.saturating_since(now.floor_to_second()), Duration::from_secs(600));
    let status = results[1].status.as_ref().unwrap();
    assert_eq!(status.code, Code::FailedPrecondition as i32);
    assert!(status.message.contains("rule \"payments\""), "{}", status.message);

    let request = NewJwtsvidRequest { entry_id: "payments".to_owned(), audience: vec!["a".to_owned()] };
    let token = SvidClient::new(channel).new_jwtsvid(request).await.unwrap().into_inner().svid.unwrap();
    assert_eq!(token.expires_at - token.issued_at, 60);
    let request = MintJwtsvidRequest { id: wire_id("/any"), audience: vec!["a".to_owned()], ttl: 3600 };
    let minted = SvidClient::new(server.local().await).mint_jwtsvid(request).await.unwrap();
    let minted = minted.into_inner().svid.unwrap();
    assert_eq!(minted.expires_at - minted.issued_at, 60);

    let audit = server.audit().await;
    let text = audit.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    for reason in ["rule payments: 600s for 3600s", "rule tokens: 60s for 300s", "rule tokens: 60s for 3600s"]
    {
        assert!(text.contains(reason), "{reason} is not in {text}");
    }
}

#[tokio::test]
async fn an_authority_that_ends_first_is_named() {
    let server = TestServer::start_with(
        "[authority]\nca_ttl = \"12h\"\n[lifetime]\nwhen_issuer_ends_first = \"refuse\"\n",
    )
    .await;
    let request = |ttl| MintJwtsvidRequest { id: wire_id("/any"), audience: vec!["a".to_owned()], ttl };
    let mut client = SvidClient::new(server.local().await);
    client.mint_jwtsvid(request(3600)).await.unwrap();
    let status = client.mint_jwtsvid(request(13 * 3600)).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("after its issuer JWT authority "), "{}", status.message());
}

#[tokio::test]
async fn lifetimes_that_cannot_work_keep_the_server_from_starting() {
    let folder = tempfile::TempDir::new().unwrap();
    let more = "[authority]\nca_ttl = \"1h\"\n[lifetime]\nwhen_issuer_ends_first = \"refuse\"\n";
    let config = configuration(folder.path(), more);
    let clock = ManualClock::default();
    let environment = Environment {
        clock: std::sync::Arc::new(move || clock.now()),
        random: std::sync::Arc::new(bonafide_pki::SystemRandom),
        log: log(),
    };
    match Server::start(config, environment).await {
        Err(ServerError::Lifetimes(why)) => assert!(why.contains("3600s / 6 = 600s"), "{why}"),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it started"),
    }
}

#[tokio::test]
async fn the_check_tells_what_breaks_on_a_day() {
    let more = "[[lifetime.rules]]\nname = \"later\"\nkinds = [\"x509\"]\nfrom = \"2090-01-01\"\nmax = \"10m\"\nbeyond = \"refuse\"\n";
    let server = TestServer::start_with(more).await;
    let agent = server.agent().await;
    for (name, ttl) in [("long", 3600), ("short", 300), ("none", 0)] {
        let mut entry = stored_entry(name, &agent.id, &format!("/{name}"));
        entry.x509_svid_ttl = ttl;
        server.entry(entry).await;
    }
    let mut client = MaintenanceClient::new(server.local().await);
    let mut check =
        async |at| client.check_lifetimes(CheckLifetimesRequest { at }).await.unwrap().into_inner();
    let now = check(0).await;
    assert_eq!((now.refused, now.adjusted, now.entries), (0, 0, 3));
    assert_eq!(now.at, server.clock.now().unix_seconds());
    let day = 3_786_912_000;
    assert_eq!(now.beginnings, [day]);
    assert!(now.warnings.iter().any(|warning| warning.contains("from 2090-01-01")), "{:?}", now.warnings);
    let then = check(day).await;
    assert_eq!((then.refused, then.adjusted), (1, 1));
    assert_eq!(then.findings[0].spiffe_id, "spiffe://example.org/long");
    assert!(then.findings[0].refused && then.findings[0].reason.contains("rule \"later\""));
    assert_eq!((then.findings[1].asked, then.findings[1].life), (3600, 600));
    assert_eq!(then.problems.len(), 1, "the default is an hour: {:?}", then.problems);
    assert_eq!(check(day - 1).await.refused, 0);
}
