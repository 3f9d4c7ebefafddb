//! Records and backups as version 1 wrote them load for ever.
//!
//! `samples/v1.backup` was written once and is never written again; when the format grows, a further sample joins it.
//! `BONAFIDE_TEST_WRITE_SAMPLE=<file>` writes one from the present code.

use std::path::{Path, PathBuf};

use bonafide_identity::{
    AttestedNode, AuthorityKind, AuthoritySlot, DnsName, EntryId, JoinToken, JwtAuthority, SerialNumber,
    SlotId, SlotStatus, SpiffeId, Timestamp, TrustDomain,
};
use bonafide_server::store::{
    Bundles, DriverKind, EndpointProfile, Entries, Existing, FederationRelationship, Issuance, IssuedSvid,
    JoinTokens, Journal, JournalRecord, Nodes, Relationships, Store, SvidKind, restore,
};

use super::{ON_DISK, bundle, config, each, entry, id, node, open, trust_domain};

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_unix_seconds(seconds)
}

fn full_entry() -> bonafide_identity::Entry {
    let mut entry = entry("full");
    entry.admin = true;
    entry.downstream = true;
    entry.expires_at = Some(Timestamp::from_unix_millis(1_700_000_000_123));
    entry.dns_names = ["b.example", "a.example"].map(|name| name.parse::<DnsName>().unwrap()).into();
    entry.revision = i64::MAX;
    entry.store_svid = true;
    entry.disable_x509_svid_prefetch = true;
    entry.jwt_svid_include_jti = false;
    entry.hint = "ünïcode".into();
    entry
}

fn full_bundle() -> bonafide_identity::Bundle {
    let mut bundle = bundle("store.test", vec![0, 1, 2, 255]);
    bundle.x509_authorities[0].tainted = true;
    let key = |key_id: &str, expires_at| JwtAuthority {
        key_id: key_id.into(),
        public_key: vec![9; 91],
        expires_at,
        tainted: expires_at.is_none(),
    };
    bundle.jwt_authorities = vec![key("jwt", Some(at(1_800_000_000))), key("old", None)];
    bundle.wit_authorities = vec![key("wit", Some(at(1_900_000_000)))];
    bundle.refresh_hint = 300;
    bundle.sequence_number = u64::MAX;
    bundle
}

fn banned_node() -> AttestedNode {
    let mut node = node("banned", 0);
    node.serial = None;
    node.new_serial = Some(SerialNumber::from(u128::MAX));
    node.new_not_after = at(1_850_000_000);
    node.can_reattest = false;
    node
}

fn relationships() -> [FederationRelationship; 2] {
    let name = |name| TrustDomain::parse(name).unwrap();
    [
        FederationRelationship {
            trust_domain: name("web.test"),
            bundle_endpoint_url: "https://web.test/bundle".into(),
            profile: EndpointProfile::HttpsWeb,
        },
        FederationRelationship {
            trust_domain: name("spiffe.test"),
            bundle_endpoint_url: "https://spiffe.test:8443".into(),
            profile: EndpointProfile::HttpsSpiffe {
                endpoint_spiffe_id: SpiffeId::parse("spiffe://spiffe.test/spire/server").unwrap(),
            },
        },
    ]
}

fn tokens() -> [JoinToken; 2] {
    [
        JoinToken { value: "plain".into(), expires_at: at(1_800_000_000), agent_id: None },
        JoinToken { value: "for-agent".into(), expires_at: at(-1), agent_id: Some(id("/node/one")) },
    ]
}

fn journal() -> [JournalRecord; 3] {
    let record = |kind, slot, status, authority_id: &str| JournalRecord {
        kind,
        slot: AuthoritySlot {
            slot,
            status,
            authority_id: authority_id.into(),
            issued_at: at(1_700_000_000),
            not_after: at(1_700_086_400),
            tainted: status == SlotStatus::Old,
            upstream_authority_id: (kind == AuthorityKind::X509).then(|| "upstream".into()),
        },
        key_id: format!("key-{authority_id}"),
        certificate_chain: if kind == AuthorityKind::X509 { vec![vec![1; 5], vec![2; 5]] } else { vec![] },
        public_key: vec![3; 91],
        revoked: Vec::new(),
    };
    [
        record(AuthorityKind::X509, SlotId::A, SlotStatus::Active, "x"),
        record(AuthorityKind::Jwt, SlotId::B, SlotStatus::Prepared, "j"),
        record(AuthorityKind::Wit, SlotId::A, SlotStatus::Old, "w"),
    ]
}

fn issued() -> Vec<IssuedSvid> {
    [
        SvidKind::WorkloadX509,
        SvidKind::WorkloadJwt,
        SvidKind::WorkloadWit,
        SvidKind::AgentX509,
        SvidKind::ServerX509,
        SvidKind::DownstreamAuthority,
    ]
    .into_iter()
    .enumerate()
    .map(|(n, kind)| IssuedSvid {
        kind,
        spiffe_id: id(&format!("/issued/{n}")),
        entry_id: (n < 3).then(|| EntryId::parse("full").unwrap()),
        serial: if n == 1 { String::new() } else { format!("{n}") },
        not_after: at(1_700_000_000 + n as i64),
        authority_id: "x".into(),
    })
    .collect()
}

async fn write(store: &Store) {
    store
        .write(|unit| {
            unit.entry_create(full_entry())?;
            unit.entry_create(entry("gone"))?;
            unit.entry_create(entry("plain"))?;
            unit.node_put(node("one", 7))?;
            unit.node_put(banned_node())?;
            unit.bundle_put(full_bundle())?;
            unit.bundle_put(bundle("other.test", vec![]))?;
            for relationship in relationships() {
                unit.relationship_create(relationship)?;
            }
            for token in tokens() {
                unit.token_create(&token)?;
            }
            for record in journal() {
                unit.journal_put(&record)?;
            }
            unit.record_issued(&issued())
        })
        .await
        .unwrap();
    store.write(|unit| unit.entry_delete(&EntryId::parse("gone").unwrap())).await.unwrap();
}

/// `expected` are the nodes that were written, with what the version that wrote them knew.
async fn check(store: &Store, expected: [AttestedNode; 2]) {
    let state = store.state();
    let entries: Vec<_> =
        state.entries_page(0, 10, |_| true).iter().map(|(_, e)| e.as_ref().clone()).collect();
    assert_eq!(entries, [full_entry(), entry("plain")]);
    let nodes: Vec<_> = state.nodes().iter().map(|node| node.as_ref().clone()).collect();
    assert_eq!(nodes, expected);
    let bundles: Vec<_> = state.bundles().iter().map(|bundle| bundle.as_ref().clone()).collect();
    assert_eq!(bundles, [full_bundle(), bundle("other.test", vec![])]);
    let found: Vec<_> = state.relationships().iter().map(|found| found.as_ref().clone()).collect();
    assert_eq!(found, relationships());
    assert_eq!(state.epoch(), 10);
    assert_eq!(state.changes_since(0).unwrap().len(), 10);
    assert_eq!(state.trust_domain(), &trust_domain());
    store
        .write(|unit| {
            for token in tokens() {
                assert_eq!(unit.token_take(&token.value)?, Some(token));
            }
            for record in journal() {
                assert_eq!(unit.journal(record.kind)?, [record]);
            }
            assert_eq!(unit.issued(at(0), 100)?.iter().map(|svid| &svid.serial).collect::<Vec<_>>().len(), 6);
            let mut found = unit.issued(at(0), 100)?;
            found.sort_by_key(|svid| svid.spiffe_id.clone());
            assert_eq!(found, issued());
            Ok(())
        })
        .await
        .unwrap();
}

#[test]
fn records_of_version_1_load() {
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/store/samples/v1.backup");
    each(&ON_DISK, async |driver, folder| {
        let config = config(driver, folder.path());
        restore(&sample, &config, Existing::Refuse, at(0)).unwrap();
        let (store, _) = open(driver, folder.path()).unwrap();
        // Evidence came later.
        let without = |node| AttestedNode { evidence_until: None, ..node };
        check(&store, [node("one", 7), banned_node()].map(without)).await;
    });
}

#[test]
fn the_present_code_reads_what_it_writes() {
    each(&[DriverKind::Redb], async |driver, folder| {
        let (store, _) = open(driver, folder.path()).unwrap();
        write(&store).await;
        if let Some(file) = std::env::var_os("BONAFIDE_TEST_WRITE_SAMPLE") {
            store.backup(&PathBuf::from(file)).await.unwrap();
        }
        store.close().await;
        check(&open(driver, folder.path()).unwrap().0, [node("one", 7), banned_node()]).await;
    });
}
