//! Synchronisation, renewal, and what the agent does when the server is difficult.

use std::collections::BTreeSet;
use std::time::Duration;

use bonafide_agent::bootstrap::store::DataFile;
use bonafide_identity::{Bundle, TrustDomain};
use bonafide_pki::inspect;
use bonafide_proto::convert::entry_to_wire;
use bonafide_proto::spire::types::permission_denied_details::Reason;
use bonafide_proto::workload::X509svidRequest;
use tonic::Status;

use crate::bootstrap::x509pop;
use crate::fake_server::FakeServer;
use crate::harness::{Home, certificates, eventually, federating, my_entry, next, workload};

fn ids(agent: &bonafide_agent::agent::Agent) -> BTreeSet<String> {
    agent.cache().entries().iter().map(|entry| entry.id.as_str().to_owned()).collect()
}

/// Waits until a pass has failed.
async fn fails(agent: &bonafide_agent::agent::Agent) {
    eventually("a failed pass", async || match agent.last_sync().failures_in_a_row() {
        0 => Err("none"),
        _ => Ok(()),
    })
    .await;
}

fn set(ids: &[&str]) -> BTreeSet<String> {
    ids.iter().map(|id| (*id).to_owned()).collect()
}

#[tokio::test]
async fn both_phases_of_the_synchronisation_lead_to_the_same_entries() {
    for page_size in [1, 2, 3, 500] {
        let server = FakeServer::start().await;
        {
            let mut state = server.lock();
            state.page_size = page_size;
            for number in 0..5 {
                state.add(my_entry(&format!("e{number}"), "/a").build());
            }
        }
        let home = Home::new();
        let agent = home.start(&server, "").await;
        assert_eq!(ids(&agent), set(&["e0", "e1", "e2", "e3", "e4"]), "pages of {page_size}");

        {
            let mut state = server.lock();
            state.sent_entries = 0;
            state.entries.remove("e0");
            state.add(my_entry("e5", "/a").build());
            // One changed, and one made anew under its old ID.
            state.add(my_entry("e1", "/b").with(|entry| entry.revision = 7).build());
            let later = bonafide_identity::Timestamp::from_unix_seconds(1_800_000_000);
            state.add(my_entry("e2", "/c").with(|entry| entry.created_at = later).build());
        }
        eventually("the changes arrive", async || {
            let path = |id: &str| {
                let id = bonafide_identity::EntryId::parse(id).unwrap();
                agent.cache().entry(&id).map(|entry| entry.spiffe_id.path().to_owned()).unwrap_or_default()
            };
            let seen = (ids(&agent), path("e1"), path("e2"));
            let expected = (set(&["e1", "e2", "e3", "e4", "e5"]), "/b".to_owned(), "/c".to_owned());
            if seen == expected { Ok(()) } else { Err(seen) }
        })
        .await;
        if page_size < 5 {
            assert_eq!(server.lock().sent_entries, 3, "only what is new crosses the wire");
        }

        server.lock().entries.clear();
        eventually(
            "nothing is left",
            async || if ids(&agent).is_empty() { Ok(()) } else { Err(ids(&agent)) },
        )
        .await;
    }
}

#[tokio::test]
async fn malformed_entries_are_left_out_one_by_one() {
    for page_size in [1, 500] {
        let server = FakeServer::start().await;
        {
            let mut state = server.lock();
            state.page_size = page_size;
            state.add(my_entry("good", "/a").build());
            let wire = || entry_to_wire(&my_entry("bad", "/b").build(), None);
            let mut broken = wire();
            broken.spiffe_id.as_mut().unwrap().path = "//".into();
            state.raw_entries.push(broken);
            let mut broken = wire();
            broken.id = "worse".into();
            broken.selectors[0].r#type.clear();
            state.raw_entries.push(broken);
        }
        let home = Home::new();
        let agent = home.start(&server, "").await;
        assert_eq!(ids(&agent), set(&["good"]));
    }
}

#[tokio::test]
async fn a_refused_entry_does_not_hold_up_the_others() {
    let server = FakeServer::start().await;
    {
        let mut state = server.lock();
        state.add(my_entry("e1", "/refused").build());
        state.add(my_entry("e2", "/signed").build());
        state.refuse.insert("e1".into());
    }
    let home = Home::new();
    let _agent = home.start(&server, "").await;
    let mut stream = workload(&home).await.fetch_x509svid(X509svidRequest {}).await.unwrap().into_inner();
    let message = next(&mut stream).await.unwrap();
    assert_eq!(message.svids.len(), 1);
    assert_eq!(message.svids[0].spiffe_id, "spiffe://example.org/signed");
    // And comes as soon as it is signed after all.
    server.lock().refuse.clear();
    let message = next(&mut stream).await.unwrap();
    assert_eq!(message.svids.len(), 2);
}

#[tokio::test]
async fn a_federated_bundle_that_fails_keeps_nothing_else_from_workloads() {
    let server = FakeServer::start().await;
    let name = TrustDomain::parse("one.test").unwrap();
    {
        let mut state = server.lock();
        let authority = state.bundle().x509_authorities[0].clone();
        state.add(federating(my_entry("e1", "/a").build(), &["one.test"]));
        let mut bundle = Bundle::empty(name.clone());
        bundle.x509_authorities.push(authority);
        state.federated.insert(name, bundle);
    }
    let home = Home::new();
    let agent = home.start(&server, "").await;
    let mut stream = workload(&home).await.fetch_x509svid(X509svidRequest {}).await.unwrap().into_inner();
    let before = next(&mut stream).await.unwrap();
    assert_eq!(before.federated_bundles.len(), 1);
    {
        let mut state = server.lock();
        let failures = (0..1000).map(|_| Status::internal("broken")).collect();
        state.fail.insert("GetFederatedBundle", failures);
        state.rotate_x509();
    }
    let message = next(&mut stream).await.unwrap();
    assert_eq!(certificates(&message.svids[0].bundle).len(), 2, "the change of the own bundle has come");
    assert_eq!(message.federated_bundles, before.federated_bundles);
    server.lock().add(my_entry("e2", "/b").build());
    while next(&mut stream).await.unwrap().svids.len() != 2 {}
    // It is a failure all the same.
    fails(&agent).await;
    server.lock().fail.clear();
    eventually("it recovers", async || match agent.last_sync().failures_in_a_row() {
        0 => Ok(()),
        count => Err(count),
    })
    .await;
}

#[tokio::test]
async fn batches_shrink_after_a_failure_and_grow_again() {
    let server = FakeServer::start().await;
    {
        let mut state = server.lock();
        for number in 0..700 {
            state.add(my_entry(&format!("e{number}"), "/a").build());
        }
        state.fail.insert("BatchNewX509SVID", vec![Status::internal("too much")]);
    }
    let home = Home::new();
    let agent = home.start(&server, "").await;
    eventually("all are signed", async || {
        let counts = agent.cache().counts();
        if counts.x509 == 700 { Ok(()) } else { Err(counts) }
    })
    .await;
    assert_eq!(server.lock().batches, [500, 250, 450]);
}

#[tokio::test]
async fn the_cache_keeps_to_its_limit_and_signs_on_demand() {
    let server = FakeServer::start().await;
    {
        let mut state = server.lock();
        for number in 0..4 {
            state.add(my_entry(&format!("e{number}"), "/other").selectors(["unix:uid:4000000000"]).build());
        }
        state.add(my_entry("mine", "/mine").with(|entry| entry.disable_x509_svid_prefetch = true).build());
    }
    let home = Home::new();
    // Demand is met without waiting for the next pass.
    let agent = home.start(&server, "svid.x509_cache_size = 2\nsync_interval = \"1h\"").await;
    assert_eq!(agent.cache().counts().x509, 2);
    let started = std::time::Instant::now();
    let mut stream = workload(&home).await.fetch_x509svid(X509svidRequest {}).await.unwrap().into_inner();
    assert_eq!(next(&mut stream).await.unwrap().svids[0].spiffe_id, "spiffe://example.org/mine");
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    assert_eq!(agent.cache().counts().x509, 2, "one of the others had to go");
}

#[tokio::test]
async fn the_agents_own_svid_is_renewed_before_it_ends() {
    let server = FakeServer::start().await;
    server.lock().agent_ttl = Duration::from_secs(2);
    let home = Home::new();
    let agent = home.start(&server, "").await;
    let mut changes = agent.own_svid().changes();
    let mut slots = BTreeSet::new();
    for _ in 0..3 {
        tokio::time::timeout(crate::harness::PATIENCE, changes.changed()).await.unwrap().unwrap();
        // What is in use is what a restart would find.
        eventually("the state is stored", async || {
            let stored = DataFile::open(&home.path("data")).unwrap().load().unwrap().svid;
            if stored == agent.own_svid().chain() { Ok(()) } else { Err("another SVID is stored") }
        })
        .await;
        // The server learns of it at the next call, and forgets the one before then.
        eventually("the new SVID is used", async || {
            let used = server.lock().last_certificate.clone();
            if used == agent.own_svid().chain()[0] { Ok(()) } else { Err("another is") }
        })
        .await;
        let key = inspect(&agent.own_svid().chain()[0]).unwrap().public_key.unwrap();
        assert!(slots.insert(key.spki_der().to_vec()), "each renewal has its own key");
    }
    assert!(server.lock().count("RenewAgent") >= 3);
    assert_eq!(server.lock().count("AttestAgent"), 1);
    let keys: serde_json::Value =
        serde_json::from_slice(&std::fs::read(home.path("data/keys.json")).unwrap()).unwrap();
    let slots: Vec<_> = keys["keys"].as_object().unwrap().keys().cloned().collect();
    assert_eq!(slots, ["agent-svid-A", "agent-svid-B"]);
}

#[tokio::test]
async fn an_agent_that_can_attest_again_does_so_to_renew() {
    let server = FakeServer::start().await;
    {
        let mut state = server.lock();
        state.agent_ttl = Duration::from_secs(2);
        state.reattestable = true;
    }
    let home = Home::new();
    let agent = home.start(&server, &x509pop(&home)).await;
    let mut changes = agent.own_svid().changes();
    tokio::time::timeout(crate::harness::PATIENCE, changes.changed()).await.unwrap().unwrap();
    assert_eq!(server.lock().count("RenewAgent"), 0);
    assert!(server.lock().count("AttestAgent") >= 2);
}

#[tokio::test]
async fn a_denied_agent_attests_again_when_it_can() {
    for reason in
        [Reason::AgentExpired, Reason::AgentNotAttested, Reason::AgentNotActive, Reason::AgentMustReattest]
    {
        let server = FakeServer::start().await;
        {
            let mut state = server.lock();
            state.reattestable = true;
            state.add(my_entry("e1", "/a").build());
        }
        let home = Home::new();
        let agent = home.start(&server, &x509pop(&home)).await;
        let mut stream = workload(&home).await.fetch_x509svid(X509svidRequest {}).await.unwrap().into_inner();
        next(&mut stream).await.unwrap();
        let attested = server.lock().count("AttestAgent");
        server.lock().deny = Some(reason);
        eventually("it attests again", async || {
            let count = server.lock().count("AttestAgent");
            if count > attested { Ok(()) } else { Err(count) }
        })
        .await;
        server.lock().deny = None;
        server.lock().add(my_entry("e0", "/b").build());
        let message = next(&mut stream).await.unwrap();
        assert_eq!(message.svids.len(), 2, "{reason:?}: the stream goes on");
        drop(agent);
    }
}

#[tokio::test]
async fn a_denied_agent_that_cannot_attest_again_leaves() {
    for (reason, reattestable) in [
        (Reason::AgentExpired, false),
        (Reason::AgentNotAttested, false),
        (Reason::AgentNotActive, false),
        (Reason::AgentMustReattest, false),
        (Reason::AgentBanned, false),
        (Reason::AgentBanned, true),
    ] {
        let server = FakeServer::start().await;
        server.lock().reattestable = reattestable;
        let home = Home::new();
        let attestor = if reattestable { x509pop(&home) } else { String::new() };
        let agent = home.start(&server, &attestor).await;
        server.lock().deny = Some(reason);
        let end = tokio::time::timeout(crate::harness::PATIENCE, agent.join()).await.expect("it leaves");
        let error = bonafide_runtime::tasks::chain(&end.unwrap_err());
        assert!(error.contains("the server denies this agent"), "{reason:?}: {error}");
        let data = DataFile::open(&home.path("data")).unwrap().load().unwrap();
        assert!(data.svid.is_empty(), "{reason:?}");
        assert!(!home.socket().exists());
    }
}

#[tokio::test]
async fn a_denial_without_reason_is_only_an_error() {
    let server = FakeServer::start().await;
    server.lock().add(my_entry("e1", "/a").build());
    let home = Home::new();
    let agent = home.start(&server, "").await;
    let denied = || Status::permission_denied("authorization denied");
    server.lock().fail.insert("SyncAuthorizedEntries", (0..3).map(|_| denied()).collect());
    fails(&agent).await;
    assert!(agent.readiness().is_ready(), "it still serves");
    server.lock().add(my_entry("e2", "/b").build());
    eventually("it recovers", async || if ids(&agent).len() == 2 { Ok(()) } else { Err(ids(&agent)) }).await;
    assert_eq!(server.lock().count("AttestAgent"), 1);
}

#[tokio::test]
async fn what_a_tainted_authority_signed_is_replaced() {
    let server = FakeServer::start().await;
    {
        let mut state = server.lock();
        for number in 0..3 {
            state.add(my_entry(&format!("e{number}"), "/a").build());
        }
    }
    let home = Home::new();
    let agent = home.start(&server, "").await;
    let mut stream = workload(&home).await.fetch_x509svid(X509svidRequest {}).await.unwrap().into_inner();
    next(&mut stream).await.unwrap();
    server.lock().rotate_x509();
    let (old, new) = {
        let authorities = server.lock().bundle().x509_authorities;
        let ski = |index: usize| inspect(&authorities[index].certificate).unwrap().ski.unwrap();
        (ski(0), ski(1))
    };
    // Publishing alone replaces nothing.
    let message = next(&mut stream).await.unwrap();
    let issuer = |svid: &bonafide_proto::workload::X509svid| inspect_first(&svid.x509_svid).aki.unwrap();
    assert!(message.svids.iter().all(|svid| issuer(svid) == old));
    assert_eq!(inspect(&agent.own_svid().chain()[0]).unwrap().aki.unwrap(), old);

    server.lock().x509[0].1 = true;
    loop {
        let message = next(&mut stream).await.unwrap();
        if message.svids.iter().all(|svid| issuer(svid) == new) {
            // The tainted root stays until it is revoked.
            let roots = server.lock().bundle().x509_authorities;
            let length: usize = roots.iter().map(|root| root.certificate.len()).sum();
            assert_eq!(message.svids[0].bundle.len(), length);
            break;
        }
    }
    eventually("the agent's SVID is of the new authority", async || {
        let aki = inspect(&agent.own_svid().chain()[0]).unwrap().aki.unwrap();
        if aki == new { Ok(()) } else { Err(aki) }
    })
    .await;
}

fn inspect_first(chain: &[u8]) -> bonafide_pki::CertificateInfo {
    inspect(&certificates(chain)[0]).unwrap()
}

#[tokio::test]
async fn workloads_keep_what_they_hold_while_the_server_is_away() {
    let server = FakeServer::start().await;
    server.lock().add(my_entry("e1", "/a").build());
    let home = Home::new();
    let agent = home.start(&server, "").await;
    let mut client = workload(&home).await;
    let mut stream = client.fetch_x509svid(X509svidRequest {}).await.unwrap().into_inner();
    let before = next(&mut stream).await.unwrap();
    let (state, address) = server.stop().await;
    fails(&agent).await;

    let mut late = client.fetch_x509svid(X509svidRequest {}).await.unwrap().into_inner();
    assert_eq!(next(&mut late).await.unwrap().svids, before.svids);

    let server = FakeServer::resume(state, Some(address)).await;
    server.lock().add(my_entry("e0", "/b").build());
    assert_eq!(next(&mut stream).await.unwrap().svids.len(), 2, "the stream goes on");
}

#[tokio::test]
async fn the_limit_of_life_is_final_for_an_agent_that_cannot_attest_again() {
    let server = FakeServer::start().await;
    server.lock().agent_ttl = Duration::from_secs(2);
    let home = Home::new();
    let agent = home.start(&server, "").await;
    let (_state, _) = server.stop().await;
    let end = tokio::time::timeout(crate::harness::PATIENCE, agent.join()).await.expect("it leaves");
    let error = bonafide_runtime::tasks::chain(&end.unwrap_err());
    assert!(error.contains("the agent's own SVID has expired"), "{error}");
}
