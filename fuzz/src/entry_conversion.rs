//! Messages of the APIs, as protobuf bytes, and what the conversions make of them.
//!
//! The bytes are decoded as each message that has a conversion. Laws: what was accepted obeys the rules of the domain and
//! comes back from the wire as it was; an update that is refused changes nothing.

use std::sync::LazyLock;

use bonafide_identity::{
    AttestedNode, Entry, EntryId, Selector, SelectorSet, SerialNumber, SpiffeId, Timestamp,
};
use bonafide_proto::convert::{
    AuthorityChecks, agent_filter_from_wire, agent_from_server, agent_to_wire, apply_bundle_update,
    apply_entry_update, bundle_from_server, bundle_from_wire, bundle_to_wire, denial_reason,
    entry_filter_from_wire, entry_from_server, entry_from_wire, entry_to_wire, join_token_from_server,
    join_token_to_wire, jwt_svid_from_server, jwt_svid_to_wire, result_status, selector_match_from_wire,
    wit_svid_from_server, wit_svid_to_wire, x509_svid_from_server, x509_svid_to_wire,
};
use bonafide_proto::spire::server::agent::v1::list_agents_request;
use bonafide_proto::spire::server::entry::v1::list_entries_request;
use bonafide_proto::spire::types::{self, BundleMask, EntryMask};
use prost::Message;

use crate::{NOW, trust_domain};

/// What an update is applied to.
static ENTRY: LazyLock<Entry> = LazyLock::new(|| Entry {
    id: entry_id(),
    spiffe_id: id("spiffe://example.org/web"),
    parent_id: id("spiffe://example.org/spire/agent/a"),
    selectors: selectors(),
    x509_svid_ttl: 3600,
    jwt_svid_ttl: 0,
    federates_with: [].into(),
    admin: false,
    downstream: false,
    expires_at: None,
    dns_names: [].into(),
    revision: 7,
    created_at: NOW,
    store_svid: false,
    hint: "internal".into(),
    disable_x509_svid_prefetch: false,
    jwt_svid_include_jti: true,
});

static NODE: LazyLock<AttestedNode> = LazyLock::new(|| AttestedNode {
    id: id("spiffe://example.org/spire/agent/a"),
    attestation_type: "join_token".into(),
    serial: Some(SerialNumber::from(1_u128)),
    not_after: NOW,
    new_serial: None,
    new_not_after: Timestamp::from_unix_seconds(0),
    selectors: selectors(),
    can_reattest: true,
    agent_version: "1.2.3".into(),
    evidence_until: None,
});

/// Accepts all but empty bytes: what is in them is for other targets.
const CHECKS: AuthorityChecks<'static> = AuthorityChecks { x509: &not_empty, public_key: &not_empty };

/// Whether one of the messages was decoded and accepted.
pub fn check(data: &[u8]) -> bool {
    let accepted = [
        decoded(data, entry),
        decoded(data, bundle),
        decoded(data, agent),
        decoded(data, |wire: types::SelectorMatch| selector_match_from_wire(&wire, "selectors").is_ok()),
        decoded(data, |filter: list_entries_request::Filter| {
            entry_filter_from_wire(Some(&filter), &trust_domain()).is_ok_and(|filter| filter.matches(&ENTRY))
        }),
        decoded(data, |filter: list_agents_request::Filter| {
            agent_filter_from_wire(Some(&filter)).is_ok_and(|filter| filter.matches(&NODE))
        }),
        decoded(data, x509_svid),
        decoded(data, jwt_svid),
        decoded(data, wit_svid),
    ];
    let details = data.to_vec().into();
    let reason = denial_reason(&tonic::Status::with_details(tonic::Code::PermissionDenied, "", details));
    // Nearly any bytes are one of these.
    decoded(data, |token: types::JoinToken| {
        let token = join_token_from_server(token);
        assert_eq!(join_token_from_server(join_token_to_wire(&token)), token);
        true
    });
    decoded(data, |status: types::Status| result_status(Some(&status)).is_ok() == (status.code == 0));
    // Read by the generated code alone, whose recursion and sizes are not ours to trust.
    let _ = bonafide_proto::workload::X509svidResponse::decode(data);
    let _ = bonafide_proto::workload::JwtBundlesResponse::decode(data);
    accepted.contains(&true) || reason.is_some()
}

fn decoded<M: Message + Default>(data: &[u8], accept: impl FnOnce(M) -> bool) -> bool {
    M::decode(data).is_ok_and(accept)
}

fn entry(wire: types::Entry) -> bool {
    let td = trust_domain();
    if let Ok(read) = entry_from_server(&wire) {
        assert_eq!(entry_from_server(&entry_to_wire(&read, None)).expect("it was written by us"), read);
    }
    // A mask is made of the bytes at hand, too.
    let mask = EntryMask::decode(wire.hint.as_bytes()).ok();
    let mut updated = ENTRY.clone();
    match apply_entry_update(&mut updated, &wire, mask.as_ref(), &td) {
        Ok(()) => assert_eq!(updated.validate(&td), Ok(())),
        Err(_) => assert_eq!(updated, *ENTRY),
    }
    assert_eq!(
        (&updated.id, updated.revision, updated.created_at),
        (&ENTRY.id, ENTRY.revision, ENTRY.created_at)
    );

    let Ok(new) = entry_from_wire(&wire, &td) else { return false };
    let stored = new.into_entry(entry_id, NOW);
    assert_eq!(stored.validate(&td), Ok(()));
    let shown = entry_to_wire(&stored, None);
    assert_eq!(entry_from_server(&shown).expect("it was written by us"), stored);
    let again = entry_from_wire(&shown, &td).expect("it was accepted before").into_entry(entry_id, NOW);
    assert_eq!(again, stored);
    true
}

fn bundle(wire: types::Bundle) -> bool {
    if let Ok(read) = bundle_from_server(&wire) {
        let _ = bundle_to_wire(&read, None);
        let mask = BundleMask::decode(wire.trust_domain.as_bytes()).ok();
        let mut updated = read.clone();
        if apply_bundle_update(&mut updated, &wire, mask.as_ref(), &CHECKS).is_err() {
            assert_eq!(updated, read);
        }
    }
    let Ok(read) = bundle_from_wire(&wire, &CHECKS) else { return false };
    assert_eq!(bundle_from_server(&bundle_to_wire(&read, None)).expect("it was written by us"), read);
    true
}

fn agent(wire: types::Agent) -> bool {
    let Ok(read) = agent_from_server(&wire) else { return false };
    assert_eq!(agent_from_server(&agent_to_wire(&read, None)).expect("it was written by us"), read);
    true
}

fn x509_svid(wire: types::X509svid) -> bool {
    let Ok(chain) = x509_svid_from_server(wire) else { return false };
    assert_eq!(x509_svid_from_server(x509_svid_to_wire(chain.clone())).expect("it was written by us"), chain);
    true
}

fn jwt_svid(wire: types::Jwtsvid) -> bool {
    let Ok(token) = jwt_svid_from_server(wire) else { return false };
    assert_eq!(jwt_svid_from_server(jwt_svid_to_wire(token.clone())).expect("it was written by us"), token);
    true
}

fn wit_svid(wire: types::Witsvid) -> bool {
    let Ok(token) = wit_svid_from_server(wire) else { return false };
    assert_eq!(wit_svid_from_server(wit_svid_to_wire(token.clone())).expect("it was written by us"), token);
    true
}

fn not_empty(bytes: &[u8]) -> Result<(), String> {
    if bytes.is_empty() { Err("nothing there".into()) } else { Ok(()) }
}

fn id(text: &str) -> SpiffeId {
    SpiffeId::parse(text).expect("a valid ID")
}

fn entry_id() -> EntryId {
    EntryId::parse("entry-1").expect("a valid ID")
}

fn selectors() -> SelectorSet {
    [Selector::parse("unix:uid:1000").expect("a valid selector")].into_iter().collect()
}
