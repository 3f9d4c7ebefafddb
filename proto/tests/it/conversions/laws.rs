//! Laws over arbitrary messages: nothing panics, and what is accepted comes back as it was.

use bonafide_identity::{Entry, Timestamp};
use bonafide_proto::convert::{
    SyncForm, SyncPage, agent_filter_from_wire, agent_from_server, agent_to_wire, apply_bundle_update,
    apply_entry_update, bundle_from_server, bundle_from_wire, bundle_to_wire, denial_reason,
    entry_filter_from_wire, entry_from_server, entry_from_wire, entry_to_wire, jwt_svid_from_server,
    result_status, wit_svid_from_server, x509_svid_from_server,
};
use bonafide_proto::spire::server::{agent::v1 as agent, entry::v1 as entry_api};
use bonafide_proto::spire::types::{self, BundleMask, EntryMask, entry::AdditionalAttributes};
use proptest::prelude::*;
use prost::Message;

use super::{CHECKS, bundle, entry, td};

/// Arbitrary text, but often one that is nearly right.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        "[a-z/:.*]{0,12}",
        Just("td".to_owned()),
        Just("spiffe://td".to_owned()),
        Just("spiffe://".to_owned()),
        Just("/spire/agent/x".to_owned()),
        Just("/web".to_owned()),
    ]
}

fn wire_id() -> impl Strategy<Value = Option<types::Spiffeid>> {
    proptest::option::weighted(
        0.9,
        prop_oneof![
            (text(), text()).prop_map(|(trust_domain, path)| types::Spiffeid { trust_domain, path }),
            "/[a-z]{1,8}".prop_map(|path| types::Spiffeid { trust_domain: "td".into(), path }),
        ],
    )
}

fn selector() -> impl Strategy<Value = types::Selector> {
    prop_oneof![
        1 => (text(), text()).prop_map(|(kind, value)| types::Selector { r#type: kind, value }),
        3 => ("[a-c]", "[a-z:]{1,4}").prop_map(|(kind, value)| types::Selector { r#type: kind, value }),
    ]
}

/// A mask is fifteen booleans: two bytes each on the wire, three for the last.
fn mask_of(bits: u16) -> EntryMask {
    let wire: Vec<u8> = (2u8..=15)
        .filter(|number| bits >> number & 1 == 1)
        .flat_map(|number| [number << 3, 1])
        .chain(if bits & 1 == 1 { vec![0x80, 0x01, 1] } else { Vec::new() })
        .collect();
    EntryMask::decode(wire.as_slice()).unwrap()
}

fn several<S: Strategy>(item: S) -> impl Strategy<Value = Vec<S::Value>>
where
    S::Value: std::fmt::Debug,
{
    proptest::collection::vec(item, 0..4)
}

prop_compose! {
    fn wire_entry()(
        (id, spiffe_id, parent_id, selectors) in (text(), wire_id(), wire_id(), several(selector())),
        (x509_svid_ttl, jwt_svid_ttl) in (any::<i32>(), any::<i32>()),
        federates_with in several(prop_oneof![text(), "[a-z]{1,3}"]),
        dns_names in several(prop_oneof![text(), "[a-z]{1,3}\\.test"]),
        (admin, downstream, store_svid) in any::<(bool, bool, bool)>(),
        (expires_at, revision_number, created_at) in any::<(i64, i64, i64)>(),
        hint in text(),
        attributes in any::<Option<(bool, bool)>>(),
    ) -> types::Entry {
        types::Entry {
            id, spiffe_id, parent_id, selectors, x509_svid_ttl, federates_with, admin, downstream, expires_at,
            dns_names, revision_number, store_svid, jwt_svid_ttl, hint, created_at,
            additional_attributes: attributes.map(|(disable_x509_svid_prefetch, jwt_svid_include_jti)| {
                AdditionalAttributes { disable_x509_svid_prefetch, jwt_svid_include_jti }
            }),
        }
    }
}

proptest! {
    /// What was accepted obeys the rules of the domain, is the same after a round trip, and is accepted again.
    #[test]
    fn entries(wire in wire_entry()) {
        let td = td("td");
        let _ = entry_from_server(&wire);
        if let Ok(new) = entry_from_wire(&wire, &td) {
            let created_at = Timestamp::from_unix_seconds(1);
            let stored = new.into_entry(|| entry().id, created_at);
            prop_assert_eq!(stored.validate(&td), Ok(()));
            let shown = entry_to_wire(&stored, None);
            prop_assert_eq!(entry_from_server(&shown).unwrap(), stored.clone());
            prop_assert_eq!(entry_from_wire(&shown, &td).unwrap().into_entry(|| entry().id, created_at), stored);
        }
    }

    /// What is written straight from domain types is what the generated types give, to the byte.
    #[test]
    fn pages(
        wires in proptest::collection::vec(wire_entry(), 0..4),
        mask in proptest::option::of(any::<u16>()),
        (created_at, more) in (any::<i64>(), any::<bool>()),
    ) {
        let created_at = Timestamp::from_unix_seconds(created_at);
        let entries: Vec<_> = wires
            .iter()
            .filter_map(|wire| {
                let mut entry = entry_from_wire(wire, &td("td")).ok()?.into_entry(|| entry().id, created_at);
                entry.revision = wire.revision_number;
                Some(entry)
            })
            .collect();
        let mask = mask.map(mask_of);
        let full = SyncPage { entries: entries.iter(), form: SyncForm::Full(mask.as_ref()), more };
        let message = entry_api::SyncAuthorizedEntriesResponse {
            entries: entries.iter().map(|entry| entry_to_wire(entry, mask.as_ref())).collect(),
            more,
            ..Default::default()
        };
        let mut bytes = Vec::new();
        full.encode(&mut bytes);
        prop_assert_eq!(&bytes, &message.encode_to_vec());
        prop_assert_eq!(full.encoded_len(), bytes.len());

        let revisions = SyncPage { entries: entries.iter(), form: SyncForm::Revisions, more };
        let revision = |entry: &Entry| entry_api::EntryRevision {
            id: entry.id.as_str().to_owned(),
            revision_number: entry.revision,
            created_at: entry.created_at.unix_seconds(),
        };
        let message = entry_api::SyncAuthorizedEntriesResponse {
            entry_revisions: entries.iter().map(revision).collect(),
            more,
            ..Default::default()
        };
        let mut bytes = Vec::new();
        revisions.encode(&mut bytes);
        prop_assert_eq!(&bytes, &message.encode_to_vec());
        prop_assert_eq!(revisions.encoded_len(), bytes.len());
    }

    /// An update either leaves an entry that obeys the rules, or the old one.
    #[test]
    fn updates(wire in wire_entry(), mask in proptest::option::of(any::<u16>())) {
        let td = td("td");
        let mut before = entry();
        before.disable_x509_svid_prefetch = false;
        let mask = mask.map(mask_of);
        let mut after = before.clone();
        match apply_entry_update(&mut after, &wire, mask.as_ref(), &td) {
            Ok(()) => prop_assert_eq!(after.validate(&td), Ok(())),
            Err(_) => prop_assert_eq!(&after, &before),
        }
        prop_assert_eq!((&after.id, after.revision, after.created_at), (&before.id, before.revision, before.created_at));
    }

    /// A bundle that was accepted comes back without what clients may not decide.
    #[test]
    fn bundles(
        trust_domain in text(),
        x509 in several((any::<Vec<u8>>(), any::<bool>())),
        jwt in several((any::<Vec<u8>>(), text(), any::<i64>(), any::<bool>())),
        (refresh_hint, sequence_number) in any::<(i64, u64)>(),
        bits in any::<u8>(),
    ) {
        let wire = types::Bundle {
            trust_domain,
            x509_authorities: x509
                .into_iter()
                .map(|(asn1, tainted)| types::X509Certificate { asn1, tainted })
                .collect(),
            jwt_authorities: jwt
                .into_iter()
                .map(|(public_key, key_id, expires_at, tainted)| {
                    types::JwtKey { public_key, key_id, expires_at, tainted }
                })
                .collect(),
            refresh_hint,
            sequence_number,
            wit_authorities: Vec::new(),
        };
        if let Ok(read) = bundle_from_wire(&wire, &CHECKS) {
            prop_assert_eq!(bundle_from_server(&bundle_to_wire(&read, None)).unwrap(), read);
        }
        let _ = bundle_from_server(&wire);
        let mask = BundleMask {
            x509_authorities: bits & 1 != 0,
            jwt_authorities: bits & 2 != 0,
            refresh_hint: bits & 4 != 0,
            sequence_number: bits & 8 != 0,
            wit_authorities: bits & 16 != 0,
        };
        let mut stored = bundle();
        if apply_bundle_update(&mut stored, &wire, Some(&mask), &CHECKS).is_err() {
            prop_assert_eq!(stored, bundle());
        }
    }

    #[test]
    fn filters(
        spiffe_id in wire_id(),
        parent_id in wire_id(),
        selectors in several(selector()),
        trust_domains in several(text()),
        behavior in -1..6i32,
        expires_before in prop_oneof![
            any::<String>(),
            "[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2} [+-][0-9]{4} [+-][0-9]{2}",
        ],
    ) {
        let by_selectors = Some(types::SelectorMatch { selectors, r#match: behavior });
        let filter = entry_api::list_entries_request::Filter {
            by_spiffe_id: spiffe_id,
            by_parent_id: parent_id,
            by_selectors: by_selectors.clone(),
            by_federates_with: Some(types::FederatesWithMatch { trust_domains, r#match: behavior }),
            by_hint: None,
            by_downstream: None,
        };
        if let Ok(filter) = entry_filter_from_wire(Some(&filter), &td("td")) {
            let _ = filter.matches(&entry());
        }
        let filter = agent::list_agents_request::Filter {
            by_selector_match: by_selectors,
            by_expires_before: expires_before,
            ..agent::list_agents_request::Filter::default()
        };
        if let Ok(filter) = agent_filter_from_wire(Some(&filter)) {
            let _ = filter.matches(&super::node());
        }
    }

    /// Bytes from a hostile peer: whatever decodes can be converted or is refused.
    #[test]
    fn arbitrary_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        if let Ok(wire) = types::Agent::decode(bytes.as_slice())
            && let Ok(read) = agent_from_server(&wire)
        {
            let _ = agent_to_wire(&read, None);
        }
        let _ = types::X509svid::decode(bytes.as_slice()).map(x509_svid_from_server);
        let _ = types::Jwtsvid::decode(bytes.as_slice()).map(jwt_svid_from_server);
        let _ = types::Witsvid::decode(bytes.as_slice()).map(wit_svid_from_server);
        let _ = types::Status::decode(bytes.as_slice()).map(|status| result_status(Some(&status)));
        let status = tonic::Status::with_details(tonic::Code::PermissionDenied, "", bytes.into());
        let _ = denial_reason(&status);
    }
}
