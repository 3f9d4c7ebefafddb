//! The conversions: what is accepted, what is refused with which text, and that no input makes them panic.

mod laws;
mod masks;
mod refusals;
mod statuses;

use std::collections::BTreeMap;

use bonafide_identity::{
    AttestedNode, Bundle, DnsName, Entry, EntryId, JwtAuthority, Selector, SelectorSet, SerialNumber,
    SpiffeId, Timestamp, TrustDomain, X509Authority,
};
use bonafide_proto::convert::{AuthorityChecks, spiffe_id_to_wire};
use bonafide_proto::spire::types;

pub(crate) fn td(name: &str) -> TrustDomain {
    TrustDomain::parse(name).unwrap()
}

pub(crate) fn id(text: &str) -> SpiffeId {
    SpiffeId::parse(text).unwrap()
}

pub(crate) fn wire_id(trust_domain: &str, path: &str) -> Option<types::Spiffeid> {
    Some(types::Spiffeid { trust_domain: trust_domain.into(), path: path.into() })
}

pub(crate) fn selectors(texts: &[&str]) -> SelectorSet {
    texts.iter().map(|text| Selector::parse(text).unwrap()).collect()
}

/// An entry in which no field has its default value.
pub(crate) fn entry() -> Entry {
    Entry {
        id: EntryId::parse("entry-1").unwrap(),
        spiffe_id: id("spiffe://td/web"),
        parent_id: id("spiffe://td/spire/agent/a"),
        selectors: selectors(&["unix:uid:1000", "unix:gid:1000"]),
        x509_svid_ttl: 3600,
        jwt_svid_ttl: 300,
        federates_with: [td("one.test"), td("two.test")].into(),
        admin: true,
        downstream: true,
        expires_at: Some(Timestamp::from_unix_seconds(2_000_000_000)),
        dns_names: [DnsName::parse("z.test").unwrap(), DnsName::parse("a.test").unwrap()].into(),
        revision: 7,
        created_at: Timestamp::from_unix_seconds(1_700_000_000),
        store_svid: true,
        hint: "internal".into(),
        disable_x509_svid_prefetch: true,
        jwt_svid_include_jti: true,
    }
}

/// What a client sends to create an entry; without mistakes.
pub(crate) fn wire_entry() -> types::Entry {
    types::Entry {
        spiffe_id: Some(spiffe_id_to_wire(&id("spiffe://td/web"))),
        parent_id: Some(spiffe_id_to_wire(&id("spiffe://td/spire/agent/a"))),
        selectors: vec![types::Selector { r#type: "unix".into(), value: "uid:1000".into() }],
        ..types::Entry::default()
    }
}

pub(crate) fn node() -> AttestedNode {
    AttestedNode {
        id: id("spiffe://td/spire/agent/a"),
        attestation_type: "join_token".into(),
        serial: Some(SerialNumber::from(u128::MAX)),
        not_after: Timestamp::from_unix_seconds(1_700_000_000),
        new_serial: Some(SerialNumber::from(1)),
        new_not_after: Timestamp::from_unix_seconds(1_800_000_000),
        selectors: selectors(&["k8s:ns:x"]),
        can_reattest: true,
        agent_version: "1.2.3".into(),
        evidence_until: None,
    }
}

pub(crate) fn bundle() -> Bundle {
    let key = |id: &str, expires_at| JwtAuthority {
        key_id: id.into(),
        public_key: vec![3, 4],
        expires_at,
        tainted: true,
    };
    let mut bundle = Bundle::empty(td("td"));
    bundle.x509_authorities = vec![X509Authority { certificate: vec![1, 2], tainted: true }];
    bundle.jwt_authorities = vec![key("jwt", Some(Timestamp::from_unix_seconds(9))), key("forever", None)];
    bundle.wit_authorities = vec![key("wit", None)];
    bundle.refresh_hint = 60;
    bundle.sequence_number = 5;
    bundle
}

/// Accepts everything but empty bytes.
pub(crate) fn not_empty(bytes: &[u8]) -> Result<(), String> {
    if bytes.is_empty() { Err("nothing there".into()) } else { Ok(()) }
}

pub(crate) const CHECKS: AuthorityChecks<'static> =
    AuthorityChecks { x509: &not_empty, public_key: &not_empty };

/// The fields of a message that have a value, as text, by name: what a mask is compared with.
pub(crate) fn set_fields<M: prost::Message + prost::Name>(message: &M) -> BTreeMap<String, String> {
    let descriptor = crate::vectors::pool().get_message_by_name(&M::full_name()).unwrap();
    let message =
        prost_reflect::DynamicMessage::decode(descriptor, message.encode_to_vec().as_slice()).unwrap();
    message.fields().map(|(field, value)| (field.name().to_owned(), value.to_string())).collect()
}
