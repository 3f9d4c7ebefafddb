//! Masks, field by field: a mask with one field shows or writes that field and no other.

use std::collections::BTreeSet;

use bonafide_identity::{Bundle, Timestamp};
use bonafide_proto::convert::{
    agent_from_server, agent_to_wire, apply_bundle_update, apply_entry_update, bundle_from_server,
    bundle_from_wire, bundle_to_wire, entry_from_server, entry_from_wire, entry_to_wire,
    join_token_from_server, join_token_to_wire,
};
use bonafide_proto::spire::types::{self, AgentMask, BundleMask, EntryMask};
use prost::{Message, Name};
use prost_reflect::{DynamicMessage, Value};

use super::{CHECKS, bundle, entry, id, node, set_fields, td, wire_entry};

/// One mask for each of its fields, with the name of that field.
fn single_field_masks<M: Message + Name + Default>() -> Vec<(String, M)> {
    let descriptor = crate::vectors::pool().get_message_by_name(&M::full_name()).unwrap();
    descriptor
        .fields()
        .map(|field| {
            let mut mask = DynamicMessage::new(descriptor.clone());
            mask.set_field(&field, Value::Bool(true));
            (field.name().to_owned(), mask.transcode_to().unwrap())
        })
        .collect()
}

fn names(all: &[&str]) -> BTreeSet<String> {
    all.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn output_masks_of_entries() {
    let all = set_fields(&entry_to_wire(&entry(), None));
    assert_eq!(all.len(), 16, "the sample has each field set: {all:?}");
    assert_eq!(set_fields(&entry_to_wire(&entry(), Some(&EntryMask::default()))).len(), 1);
    let masks = single_field_masks::<EntryMask>();
    assert_eq!(masks.len(), 15);
    for (name, mask) in masks {
        let shown = set_fields(&entry_to_wire(&entry(), Some(&mask)));
        assert_eq!(shown.keys().cloned().collect::<BTreeSet<_>>(), names(&["id", &name]));
        assert_eq!(shown[&name], all[&name]);
    }
}

#[test]
fn output_masks_of_agents() {
    let mut banned = node();
    banned.serial = None;
    let mut all = set_fields(&agent_to_wire(&node(), None));
    all.extend(set_fields(&agent_to_wire(&banned, None)).remove_entry("banned"));
    assert_eq!(all.len(), 8, "between them the samples have each field set: {all:?}");
    assert_eq!(set_fields(&agent_to_wire(&node(), Some(&AgentMask::default()))).len(), 1);
    for (name, mask) in single_field_masks::<AgentMask>() {
        let node = if name == "banned" { banned.clone() } else { node() };
        let shown = set_fields(&agent_to_wire(&node, Some(&mask)));
        assert_eq!(shown.keys().cloned().collect::<BTreeSet<_>>(), names(&["id", &name]));
        assert_eq!(shown[&name], all[&name]);
    }
}

#[test]
fn output_masks_of_bundles() {
    let all = set_fields(&bundle_to_wire(&bundle(), None));
    assert_eq!(all.len(), 6, "the sample has each field set: {all:?}");
    assert_eq!(set_fields(&bundle_to_wire(&bundle(), Some(&BundleMask::default()))).len(), 1);
    for (name, mask) in single_field_masks::<BundleMask>() {
        let shown = set_fields(&bundle_to_wire(&bundle(), Some(&mask)));
        assert_eq!(shown.keys().cloned().collect::<BTreeSet<_>>(), names(&["trust_domain", &name]));
        assert_eq!(shown[&name], all[&name]);
    }
}

/// An entry that differs from `entry()` in each field, and whose changes can be made one by one.
fn changed() -> types::Entry {
    types::Entry {
        id: "another".into(),
        spiffe_id: super::wire_id("td", "/other"),
        parent_id: super::wire_id("spiffe://td", "/spire/server"),
        selectors: vec![types::Selector { r#type: "unix".into(), value: "path:/a:b".into() }],
        x509_svid_ttl: 1,
        federates_with: vec!["spiffe://three.test".into(), "three.test".into()],
        expires_at: 3,
        dns_names: vec!["*.b.test".into()],
        revision_number: 99,
        jwt_svid_ttl: 2,
        hint: "external".into(),
        created_at: 99,
        ..types::Entry::default()
    }
}

#[test]
fn input_masks_of_entries() {
    let mut before = entry();
    // Otherwise the rule about stored SVIDs would refuse each single change.
    before.disable_x509_svid_prefetch = false;
    let shown_before = set_fields(&entry_to_wire(&before, None));
    for (name, mask) in single_field_masks::<EntryMask>() {
        let mut after = before.clone();
        apply_entry_update(&mut after, &changed(), Some(&mask), &td("td")).unwrap();
        let shown = set_fields(&entry_to_wire(&after, None));
        let differing: BTreeSet<String> = shown_before
            .keys()
            .filter(|field| shown.get(*field) != shown_before.get(*field))
            .cloned()
            .collect();
        if name == "revision_number" || name == "created_at" {
            assert_eq!(differing, names(&[]), "a client cannot set {name}");
        } else {
            assert_eq!(differing, names(&[&name]));
        }
    }
    let mut after = before.clone();
    apply_entry_update(&mut after, &changed(), Some(&EntryMask::default()), &td("td")).unwrap();
    assert_eq!(after, before, "an empty mask writes nothing");
}

#[test]
fn an_update_without_mask_replaces_everything() {
    let mut after = entry();
    apply_entry_update(&mut after, &wire_entry(), None, &td("td")).unwrap();
    let mut expected =
        entry_from_wire(&wire_entry(), &td("td")).unwrap().into_entry(|| entry().id, entry().created_at);
    expected.revision = entry().revision;
    assert_eq!(after, expected);
    assert!(after.dns_names.is_empty() && after.hint.is_empty() && !after.admin);
}

#[test]
fn a_refused_update_changes_nothing() {
    let mut entry = entry();
    let before = entry.clone();
    let wire = types::Entry { hint: "new".into(), jwt_svid_ttl: -1, ..wire_entry() };
    apply_entry_update(&mut entry, &wire, None, &td("td")).unwrap_err();
    assert_eq!(entry, before);
}

#[test]
fn input_masks_of_bundles() {
    let before = bundle();
    let wire = types::Bundle {
        trust_domain: "another.test".into(),
        x509_authorities: vec![types::X509Certificate { asn1: vec![9], tainted: true }],
        jwt_authorities: Vec::new(),
        refresh_hint: 1,
        sequence_number: 2,
        wit_authorities: Vec::new(),
    };
    let shown_before = set_fields(&bundle_to_wire(&before, None));
    for (name, mask) in single_field_masks::<BundleMask>() {
        let mut after = before.clone();
        apply_bundle_update(&mut after, &wire, Some(&mask), &CHECKS).unwrap();
        let shown = set_fields(&bundle_to_wire(&after, None));
        let differing: BTreeSet<String> = shown_before
            .keys()
            .filter(|field| shown.get(*field) != shown_before.get(*field))
            .cloned()
            .collect();
        let expected = if name == "wit_authorities" { names(&[]) } else { names(&[&name]) };
        assert_eq!(differing, expected);
        assert!(
            after.x509_authorities.iter().all(|authority| authority.tainted == (name != "x509_authorities"))
        );
    }
}

#[test]
fn what_a_client_may_not_decide_about_a_bundle_is_ignored() {
    let mut expected = bundle();
    expected.wit_authorities.clear();
    for authority in &mut expected.x509_authorities {
        authority.tainted = false;
    }
    for authority in &mut expected.jwt_authorities {
        authority.tainted = false;
    }
    let wire = bundle_to_wire(&bundle(), None);
    assert_eq!(bundle_from_wire(&wire, &CHECKS).unwrap(), expected);
    assert_eq!(bundle_from_server(&wire).unwrap(), bundle(), "a server is believed");
}

#[test]
fn a_server_may_leave_fields_out() {
    let mask = EntryMask { spiffe_id: true, ..EntryMask::default() };
    let read = entry_from_server(&entry_to_wire(&entry(), Some(&mask))).unwrap();
    assert_eq!((read.id, read.spiffe_id), (entry().id, entry().spiffe_id));
    assert_eq!(read.parent_id, id("spiffe://td/spire/server"));
    assert!(read.selectors.is_empty());

    let mask = BundleMask::default();
    let read = bundle_from_server(&bundle_to_wire(&bundle(), Some(&mask))).unwrap();
    assert_eq!(read, Bundle::empty(td("td")));

    let read = agent_from_server(&agent_to_wire(&node(), Some(&AgentMask::default()))).unwrap();
    assert_eq!(read.id, node().id);
}

#[test]
fn there_and_back() {
    assert_eq!(entry_from_server(&entry_to_wire(&entry(), None)).unwrap(), entry());
    let mut expected = node();
    expected.new_serial = None;
    expected.new_not_after = Timestamp::from_unix_seconds(0);
    assert_eq!(agent_from_server(&agent_to_wire(&node(), None)).unwrap(), expected);
    let token = bonafide_identity::JoinToken {
        value: "secret".into(),
        expires_at: Timestamp::from_unix_seconds(5),
        agent_id: None,
    };
    assert!(join_token_from_server(join_token_to_wire(&token)) == token);
}
