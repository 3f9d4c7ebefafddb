//! Each refusal with its text.

use bonafide_identity::{MatchBehavior, Timestamp};
use bonafide_proto::convert::{
    AgentFilter, ConvertError, EntryFilter, agent_filter_from_wire, agent_from_server, agent_id_from_wire,
    bundle_from_server, bundle_from_wire, entry_filter_from_wire, entry_from_server, entry_from_wire,
    jwt_svid_from_server, match_to_wire, member_id_from_wire, spiffe_id_from_wire, wit_authorities_from_wire,
    wit_svid_from_server, workload_id_from_wire, x509_svid_from_server, x509_svid_to_wire,
};
use bonafide_proto::spire::server::{agent::v1 as agent, entry::v1 as entry_api};
use bonafide_proto::spire::types::{self, entry::AdditionalAttributes};

use super::{CHECKS, entry, id, node, selectors, td, wire_entry, wire_id};

fn text<T: std::fmt::Debug>(result: Result<T, ConvertError>) -> String {
    let error = result.unwrap_err();
    let status = tonic::Status::from(error.clone());
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    assert_eq!(status.message(), error.to_string());
    status.message().to_owned()
}

#[test]
fn ids() {
    let read = |trust_domain: &str, path: &str| {
        text(spiffe_id_from_wire(wire_id(trust_domain, path).as_ref(), "invalid agent ID"))
    };
    let characters = "characters are limited to";
    assert_eq!(
        text(spiffe_id_from_wire(None, "invalid agent ID")),
        "invalid agent ID: request must specify SPIFFE ID"
    );
    assert_eq!(read("", "/a"), "invalid agent ID: trust domain is missing");
    assert_eq!(read("spiffe://", "/a"), "invalid agent ID: trust domain is missing");
    assert_eq!(
        read("TD", "/a"),
        format!(
            "invalid agent ID: trust domain {characters} lowercase letters, numbers, dots, dashes, and underscores"
        )
    );
    assert_eq!(read("td", "a"), "invalid agent ID: path must have a leading slash");
    assert_eq!(read("td", "/a/"), "invalid agent ID: path cannot have a trailing slash");
    assert_eq!(read("td", "//a"), "invalid agent ID: path cannot contain empty segments");
    assert_eq!(read("td", "/a/../b"), "invalid agent ID: path cannot contain dot segments");
    assert_eq!(
        read("td", "/a b"),
        format!(
            "invalid agent ID: path segment {characters} letters, numbers, dots, dashes, and underscores"
        )
    );
    assert_eq!(spiffe_id_from_wire(wire_id("spiffe://td", "").as_ref(), "").unwrap(), id("spiffe://td"));
}

#[test]
fn classes_of_ids() {
    let td = td("td");
    let not_here = "x: \"spiffe://other/a\" is not a member of trust domain \"td\"";
    let other = wire_id("other", "/a");
    let domain = wire_id("td", "");
    let reserved = wire_id("td", "/spire/server");
    let workload = wire_id("td", "/a");

    assert_eq!(text(member_id_from_wire(other.as_ref(), &td, "x")), not_here);
    assert_eq!(text(workload_id_from_wire(other.as_ref(), &td, "x")), not_here);
    assert_eq!(text(agent_id_from_wire(other.as_ref(), &td, "x")), not_here);

    assert_eq!(
        text(member_id_from_wire(domain.as_ref(), &td, "x")),
        "x: \"spiffe://td\" is not a member of trust domain \"td\"; path is empty"
    );
    assert_eq!(
        text(workload_id_from_wire(domain.as_ref(), &td, "x")),
        "x: \"spiffe://td\" is not a workload in trust domain \"td\"; path is empty"
    );
    assert_eq!(
        text(agent_id_from_wire(domain.as_ref(), &td, "x")),
        "x: \"spiffe://td\" is not an agent in trust domain \"td\"; path is empty"
    );
    assert_eq!(
        text(workload_id_from_wire(reserved.as_ref(), &td, "x")),
        "x: \"spiffe://td/spire/server\" is not a workload in trust domain \"td\"; path is in the reserved \
         namespace"
    );
    assert_eq!(
        text(agent_id_from_wire(workload.as_ref(), &td, "x")),
        "x: \"spiffe://td/a\" is not an agent in trust domain \"td\"; path is not in the agent namespace"
    );
    assert!(member_id_from_wire(reserved.as_ref(), &td, "x").is_ok());
    assert!(workload_id_from_wire(wire_id("spiffe://td", "/a").as_ref(), &td, "x").is_ok());
    assert!(agent_id_from_wire(wire_id("td", "/spire/agent/a").as_ref(), &td, "x").is_ok());
}

#[test]
fn entries() {
    let refuse = |spoil: fn(&mut types::Entry)| {
        let mut wire = wire_entry();
        spoil(&mut wire);
        let error = entry_from_wire(&wire, &td("td")).unwrap_err();
        (error.to_string(), error.found_when_stored())
    };
    let converted = |text: &str| (text.to_owned(), false);
    let stored = |text: &str| (format!("datastore-validation: {text}"), true);

    assert_eq!(
        refuse(|wire| wire.spiffe_id = None),
        converted("invalid spiffe ID: request must specify SPIFFE ID")
    );
    assert_eq!(
        refuse(|wire| wire.parent_id = None),
        converted("invalid parent ID: request must specify SPIFFE ID")
    );
    assert_eq!(
        refuse(|wire| wire.spiffe_id = wire_id("td", "/spire/x")),
        converted(
            "invalid spiffe ID: \"spiffe://td/spire/x\" is not a workload in trust domain \"td\"; path is in the \
             reserved namespace"
        )
    );
    assert_eq!(refuse(|wire| wire.selectors.clear()), converted("selector list is empty"));
    assert_eq!(refuse(|wire| wire.selectors[0].r#type.clear()), converted("missing selector type"));
    assert_eq!(
        refuse(|wire| wire.selectors[0].r#type = "a:b".into()),
        converted("selector type contains ':'")
    );
    assert_eq!(refuse(|wire| wire.selectors[0].value.clear()), converted("missing selector value"));
    assert_eq!(
        refuse(|wire| wire.federates_with = vec![String::new()]),
        converted("invalid federated trust domain: trust domain is missing")
    );
    assert_eq!(
        refuse(|wire| wire.selectors.push(wire.selectors[0].clone())),
        converted("\"unix:uid:1000\" is given twice, leave one out")
    );
    assert_eq!(
        refuse(|wire| wire.dns_names = ["a.test", "b.test", "a.test"].map(String::from).into()),
        converted("\"a.test\" is given twice, leave one out")
    );
    assert!(refuse(|wire| wire.dns_names = vec!["a..b".into()]).0.starts_with("invalid DNS name: "));
    assert_eq!(
        refuse(|wire| wire.hint = "h".repeat(1025)),
        converted("hint is too long, max length is 1024 characters")
    );
    assert_eq!(
        refuse(|wire| wire.id = "i".repeat(256)),
        stored("invalid registration entry: entry ID too long")
    );
    assert_eq!(
        refuse(|wire| wire.id = "a/b".into()),
        stored("invalid registration entry: entry ID contains invalid characters")
    );
    assert_eq!(
        refuse(|wire| wire.x509_svid_ttl = -1),
        stored("invalid registration entry: X509SvidTtl is not set")
    );
    assert_eq!(
        refuse(|wire| wire.jwt_svid_ttl = i32::MIN),
        stored("invalid registration entry: JwtSvidTtl is not set")
    );
    assert_eq!(
        refuse(|wire| {
            wire.store_svid = true;
            wire.selectors.push(types::Selector { r#type: "k8s".into(), value: "ns:x".into() });
        }),
        stored("invalid registration entry: selector types must be the same when store SVID is enabled")
    );
    assert_eq!(
        refuse(|wire| {
            wire.store_svid = true;
            wire.additional_attributes = Some(AdditionalAttributes {
                disable_x509_svid_prefetch: true,
                ..AdditionalAttributes::default()
            });
        }),
        stored("specifying cache behaviour is incompatible with storable SVIDs")
    );
    assert_eq!(text(entry_from_server(&wire_entry())), "missing entry ID");
}

#[test]
fn the_status_of_a_refused_item() {
    let error = entry_from_wire(&types::Entry { spiffe_id: None, ..wire_entry() }, &td("td")).unwrap_err();
    let status = error.to_status("failed to convert entry");
    assert_eq!(status.code, 3);
    assert_eq!(status.message, "failed to convert entry: invalid spiffe ID: request must specify SPIFFE ID");
}

#[test]
fn accepted_entries() {
    let mut wire = wire_entry();
    wire.revision_number = 5;
    wire.created_at = 5;
    wire.hint = "h".repeat(1024);
    wire.federates_with = vec!["z.test".into(), "spiffe://a.test".into(), "a.test".into()];
    wire.dns_names = vec!["z.test".into(), "a.test".into()];
    let new = entry_from_wire(&wire, &td("td")).unwrap();
    assert_eq!(new.id, None);
    let drawn = entry().id;
    let created_at = Timestamp::from_unix_millis(1_500);
    let stored = new.into_entry(|| drawn.clone(), created_at);
    assert_eq!((stored.revision, stored.created_at, &stored.id), (0, created_at, &drawn));
    assert_eq!(*stored.federates_with, [td("a.test"), td("z.test")]);
    assert_eq!(stored.dns_names[0].as_str(), "z.test");
    assert_eq!(stored.selectors, selectors(&["unix:uid:1000"]));
    assert_eq!(stored.expires_at, None);
    assert_eq!(stored.validate(&td("td")), Ok(()));

    wire.id = "wanted".into();
    let wanted = entry_from_wire(&wire, &td("td")).unwrap();
    assert_eq!(wanted.into_entry(|| panic!("an ID was given"), created_at).id.as_str(), "wanted");
}

#[test]
fn entry_filters() {
    let read = |spoil: fn(&mut entry_api::list_entries_request::Filter)| {
        let mut filter = entry_api::list_entries_request::Filter::default();
        spoil(&mut filter);
        entry_filter_from_wire(Some(&filter), &td("td"))
    };
    assert_eq!(
        text(read(|filter| filter.by_spiffe_id = wire_id("td", "/spire/x"))),
        "malformed SPIFFE ID filter: \"spiffe://td/spire/x\" is not a workload in trust domain \"td\"; path is in \
         the reserved namespace"
    );
    assert_eq!(
        text(read(|filter| filter.by_parent_id = wire_id("other", "/x"))),
        "malformed parent ID filter: \"spiffe://other/x\" is not a member of trust domain \"td\""
    );
    assert_eq!(
        text(read(|filter| filter.by_selectors = Some(types::SelectorMatch::default()))),
        "malformed selectors filter: empty selector set"
    );
    assert_eq!(
        text(read(|filter| {
            filter.by_selectors = Some(types::SelectorMatch {
                selectors: vec![types::Selector::default()],
                ..types::SelectorMatch::default()
            });
        })),
        "malformed selectors filter: missing selector type"
    );
    assert_eq!(
        text(read(|filter| filter.by_federates_with = Some(types::FederatesWithMatch::default()))),
        "malformed federates with filter: empty trust domain set"
    );
    assert_eq!(
        text(read(|filter| {
            filter.by_federates_with =
                Some(types::FederatesWithMatch { trust_domains: vec!["td".into()], r#match: 4 });
        })),
        "malformed federates with filter: unknown match behavior 4"
    );
    assert!(
        text(read(|filter| {
            filter.by_federates_with =
                Some(types::FederatesWithMatch { trust_domains: vec!["TD".into()], r#match: 0 });
        }))
        .starts_with("malformed federates with filter: trust domain characters")
    );
    // What SPIRE's command line sends when nothing was asked for.
    let nothing = read(|filter| {
        filter.by_hint = Some(String::new());
        filter.by_downstream = Some(false);
    });
    assert_eq!(nothing.unwrap(), EntryFilter::default());
    let absent = entry_filter_from_wire::<entry_api::count_entries_request::Filter>(None, &td("td"));
    assert_eq!(absent.unwrap(), EntryFilter::default());
}

#[test]
fn what_entry_filters_match() {
    type Make = fn(&mut entry_api::count_entries_request::Filter);
    let matches = |make: Make| {
        let mut filter = entry_api::count_entries_request::Filter::default();
        make(&mut filter);
        entry_filter_from_wire(Some(&filter), &td("td")).unwrap().matches(&entry())
    };
    let conditions: [(Make, bool); 12] = [
        (|_| {}, true),
        (|filter| filter.by_spiffe_id = wire_id("td", "/web"), true),
        (|filter| filter.by_spiffe_id = wire_id("td", "/other"), false),
        (|filter| filter.by_parent_id = wire_id("td", "/spire/agent/a"), true),
        (|filter| filter.by_parent_id = wire_id("td", "/spire/agent/b"), false),
        (|filter| filter.by_hint = Some("internal".into()), true),
        (|filter| filter.by_hint = Some("intern".into()), false),
        (|filter| filter.by_downstream = Some(true), true),
        (|filter| filter.by_federates_with = trust_domains(&["two.test"], MatchBehavior::Superset), true),
        (|filter| filter.by_federates_with = trust_domains(&["two.test"], MatchBehavior::Exact), false),
        (
            |filter| {
                let all = ["x.test", "two.test", "spiffe://one.test"];
                filter.by_federates_with = trust_domains(&all, MatchBehavior::Subset);
            },
            true,
        ),
        (|filter| filter.by_federates_with = trust_domains(&["x.test"], MatchBehavior::Any), false),
    ];
    for (number, (make, expected)) in conditions.into_iter().enumerate() {
        assert_eq!(matches(make), expected, "condition {number}");
    }
    let mut other = entry();
    other.downstream = false;
    let filter = EntryFilter { downstream: true, ..EntryFilter::default() };
    assert!(!filter.matches(&other));
    let given = (selectors(&["unix:uid:1000"]), MatchBehavior::Superset);
    assert!(EntryFilter { selectors: Some(given), ..EntryFilter::default() }.matches(&entry()));
}

fn trust_domains(names: &[&str], behavior: MatchBehavior) -> Option<types::FederatesWithMatch> {
    Some(types::FederatesWithMatch {
        trust_domains: names.iter().map(|name| (*name).to_owned()).collect(),
        r#match: match_to_wire(behavior),
    })
}

#[test]
fn agent_filters() {
    let empty = agent::list_agents_request::Filter {
        by_selector_match: Some(types::SelectorMatch::default()),
        ..agent::list_agents_request::Filter::default()
    };
    assert_eq!(text(agent_filter_from_wire(Some(&empty))), "failed to parse selectors: empty selector set");
    let filter = agent::count_agents_request::Filter {
        by_attestation_type: "join_token".into(),
        by_selector_match: Some(types::SelectorMatch {
            selectors: vec![types::Selector { r#type: "k8s".into(), value: "ns:x".into() }],
            r#match: match_to_wire(MatchBehavior::Any),
        }),
        by_banned: Some(false),
        by_can_reattest: Some(true),
        by_expires_before: "2023-11-15 00:13:21 +0200 +02".into(),
    };
    let filter = agent_filter_from_wire(Some(&filter)).unwrap();
    assert_eq!(filter.expires_before, Some(Timestamp::from_unix_seconds(1_700_000_001)));
    assert!(filter.matches(&node()));
    let spoils: [fn(&mut AgentFilter); 4] = [
        |filter| filter.attestation_type = Some("x509pop".into()),
        |filter| filter.banned = Some(true),
        |filter| filter.can_reattest = Some(false),
        |filter| filter.expires_before = Some(Timestamp::from_unix_seconds(1_700_000_000)),
    ];
    for spoil in spoils {
        let mut filter = filter.clone();
        spoil(&mut filter);
        assert!(!filter.matches(&node()), "{filter:?}");
    }
}

#[test]
fn instants_in_agent_filters() {
    let read = |text: &str| {
        let filter = agent::list_agents_request::Filter {
            by_expires_before: text.into(),
            ..agent::list_agents_request::Filter::default()
        };
        agent_filter_from_wire(Some(&filter)).unwrap().expires_before.map(Timestamp::unix_seconds)
    };
    assert_eq!(read("1970-01-01 00:00:00 +0000 +00"), Some(0));
    assert_eq!(read("2000-02-29 12:00:00 -0130 -01"), Some(951_831_000));
    assert_eq!(read("1969-12-31 23:59:59 +0000 +00"), Some(-1));
    assert_eq!(read("0000-03-01 00:00:00 +0000 +00"), Some(-62_162_035_200));
    assert_eq!(read("9999-12-31 23:59:59 +0000 +00"), Some(253_402_300_799));
    for unreadable in [
        "",
        "2023-11-15",
        "2023-11-15T00:13:20Z",
        "2023-11-15 00:13:20 +0200",
        "2023-11-15 00:13:20 +0200 CEST",
        "2023-02-29 00:00:00 +0000 +00",
        "1900-02-29 00:00:00 +0000 +00",
        "2023-13-01 00:00:00 +0000 +00",
        "2023-01-00 00:00:00 +0000 +00",
        "2023-01-01 24:00:00 +0000 +00",
        "2023-01-01 00:00:00 ä000 +00",
        "2023-01-01 00:00:00 +0000 +00 x",
        "+023-01-01 00:00:00 +0000 +00",
    ] {
        assert_eq!(read(unreadable), None, "{unreadable}");
    }
}

#[test]
fn bundles() {
    let key = |id: &str, bytes: &[u8]| types::JwtKey {
        key_id: id.into(),
        public_key: bytes.to_vec(),
        ..types::JwtKey::default()
    };
    let read = |bundle: types::Bundle| text(bundle_from_wire(&bundle, &CHECKS));
    let good = types::Bundle { trust_domain: "spiffe://td".into(), ..types::Bundle::default() };
    assert_eq!(bundle_from_wire(&good, &CHECKS).unwrap().trust_domain, td("td"));
    assert_eq!(read(types::Bundle::default()), "invalid trust domain: trust domain is missing");
    assert_eq!(
        read(types::Bundle { x509_authorities: vec![types::X509Certificate::default()], ..good.clone() }),
        "unable to parse X.509 authority: nothing there"
    );
    assert_eq!(
        read(types::Bundle { jwt_authorities: vec![key("a", b"")], ..good.clone() }),
        "unable to parse JWT authority: nothing there"
    );
    assert_eq!(
        read(types::Bundle { jwt_authorities: vec![key("", b"x")], ..good.clone() }),
        "unable to parse JWT authority: missing key ID"
    );
    assert_eq!(read(types::Bundle { refresh_hint: -1, ..good.clone() }), "refresh hint must not be negative");
    assert_eq!(
        text(wit_authorities_from_wire(
            &[types::WitKey { public_key: vec![1], ..types::WitKey::default() }],
            &CHECKS,
            "invalid WIT authority"
        )),
        "invalid WIT authority: missing key ID"
    );

    let from_server = |bundle: types::Bundle| text(bundle_from_server(&bundle));
    assert_eq!(
        from_server(types::Bundle {
            x509_authorities: vec![types::X509Certificate::default()],
            ..good.clone()
        }),
        "unable to parse X.509 authority: empty certificate"
    );
    assert_eq!(
        from_server(types::Bundle { jwt_authorities: vec![key("", b"x")], ..good.clone() }),
        "unable to parse JWT authority: missing key ID"
    );
    assert_eq!(
        from_server(types::Bundle { wit_authorities: vec![types::WitKey::default()], ..good.clone() }),
        "unable to parse WIT authority: missing key ID"
    );
    assert_eq!(bundle_from_server(&types::Bundle { refresh_hint: -1, ..good }).unwrap().refresh_hint, 0);
}

#[test]
fn agents() {
    let wire = types::Agent {
        id: wire_id("td", "/spire/agent/a"),
        x509svid_serial_number: "12x".into(),
        ..types::Agent::default()
    };
    assert_eq!(text(agent_from_server(&wire)), "invalid serial number \"12x\"");
    let banned = types::Agent { x509svid_serial_number: String::new(), ..wire };
    assert!(agent_from_server(&banned).unwrap().banned());
}

#[test]
fn svids() {
    let chain = types::X509svid {
        cert_chain: vec![vec![1].into()],
        id: wire_id("td", "/a"),
        expires_at: 9,
        hint: "h".into(),
    };
    let read = x509_svid_from_server(chain.clone()).unwrap();
    assert_eq!(x509_svid_to_wire(read), chain);
    assert_eq!(
        text(x509_svid_from_server(types::X509svid { id: None, ..chain.clone() })),
        "invalid SPIFFE ID in SVID: request must specify SPIFFE ID"
    );
    assert_eq!(
        text(x509_svid_from_server(types::X509svid { cert_chain: Vec::new(), ..chain.clone() })),
        "the server sent an SVID without certificates"
    );
    assert_eq!(
        text(x509_svid_from_server(types::X509svid { expires_at: 0, ..chain })),
        "the server sent an SVID without expires_at"
    );

    let token = types::Jwtsvid {
        token: "a.b.c".into(),
        id: wire_id("td", "/a"),
        expires_at: 9,
        issued_at: 8,
        hint: "h".into(),
    };
    let read = jwt_svid_from_server(token.clone()).unwrap();
    assert!(!format!("{read:?}{token:?}").contains("a.b.c"), "a token is a secret");
    assert!(bonafide_proto::convert::jwt_svid_to_wire(read) == token);
    assert_eq!(
        text(jwt_svid_from_server(types::Jwtsvid { token: String::new(), ..token.clone() })),
        "the server sent an SVID without token"
    );
    assert_eq!(
        text(jwt_svid_from_server(types::Jwtsvid { issued_at: 0, ..token.clone() })),
        "the server sent an SVID without issued_at"
    );
    assert_eq!(
        text(jwt_svid_from_server(types::Jwtsvid { issued_at: 10, ..token })),
        "the server sent an SVID without a life: it ends before it begins"
    );
    let token = types::Witsvid {
        token: "a.b.c".into(),
        id: wire_id("td", "/a"),
        expires_at: 9,
        issued_at: 8,
        hint: "h".into(),
    };
    let read = wit_svid_from_server(token.clone()).unwrap();
    assert_eq!(bonafide_proto::convert::wit_svid_to_wire(read), token);
}
