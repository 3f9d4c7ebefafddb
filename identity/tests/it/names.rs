//! Parsers take any text without a panic, accept exactly what the standard allows, and print what they read.

use bonafide_identity::{
    AuthorityKind, DnsName, EntryId, MAX_SPIFFE_ID, MAX_TRUST_DOMAIN, Selector, SerialNumber, SlotId,
    SlotStatus, SpiffeId, TrustDomain,
};
use proptest::prelude::*;

/// Text that is often nearly right, so that the rules near the border are met.
fn nearly() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        8 => "[a-z0-9._-]{0,12}",
        2 => "[A-Z]{1,3}",
        4 => Just("/".to_owned()),
        1 => Just("//".to_owned()),
        2 => Just("/.".to_owned()),
        2 => Just("/..".to_owned()),
        1 => Just("spiffe://".to_owned()),
        1 => Just(":".to_owned()),
        1 => Just("*.".to_owned()),
        1 => Just("%2e".to_owned()),
        1 => "\\PC{1,2}",
        1 => "[a-z]{200,300}",
        1 => "(/[A-Za-z]{1,60}){30,40}",
    ];
    (prop::bool::weighted(0.8), prop::collection::vec(piece, 0..6))
        .prop_map(|(id, pieces)| if id { "spiffe://" } else { "" }.to_owned() + &pieces.concat())
}

/// The rules of SPIFFE-ID section 2, written down a second time and in another way.
fn is_spiffe_id(text: &str) -> bool {
    let Some(rest) = text.strip_prefix("spiffe://") else { return false };
    let mut parts = rest.split('/');
    let name = parts.next().unwrap_or("");
    let name_ok = !name.is_empty()
        && name.len() <= MAX_TRUST_DOMAIN
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c));
    let segment_ok = |segment: &str| {
        !segment.is_empty()
            && segment != "."
            && segment != ".."
            && segment.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
    };
    text.len() <= MAX_SPIFFE_ID && name_ok && parts.all(segment_ok)
}

proptest! {
    #[test]
    fn ids_are_accepted_by_the_rules_and_printed_as_read(text in nearly()) {
        match SpiffeId::parse(&text) {
            Ok(id) => {
                prop_assert!(is_spiffe_id(&text), "{text}");
                prop_assert_eq!(id.to_string(), text.as_str());
                prop_assert_eq!(SpiffeId::from_parts(id.trust_domain().clone(), id.path()), Ok(id.clone()));
                prop_assert_eq!(SpiffeId::parse_near(&text, id.trust_domain()), Ok(id));
            }
            Err(error) => {
                prop_assert!(!is_spiffe_id(&text), "{text}: {error}");
                prop_assert!(!error.to_string().is_empty());
            }
        }
    }

    #[test]
    fn valid_ids_are_accepted(
        name in "[a-z0-9._-]{1,255}",
        segments in prop::collection::vec("[A-Za-z0-9_-][A-Za-z0-9._-]{0,30}", 0..30),
    ) {
        let path: String = segments.iter().map(|segment| format!("/{segment}")).collect();
        let id = SpiffeId::from_parts(TrustDomain::parse(&name).unwrap(), &path).unwrap();
        prop_assert_eq!(SpiffeId::parse(&id.to_string()).unwrap(), id);
    }

    #[test]
    fn classes_exclude_each_other(text in nearly()) {
        if let Ok(id) = SpiffeId::parse(&text) {
            let td = id.trust_domain().clone();
            let workload = id.require_workload(&td).is_ok();
            let agent = id.require_agent(&td).is_ok();
            prop_assert!(!(workload && agent));
            prop_assert!(!(workload && id.is_reserved()));
            prop_assert_eq!(id.require_member(&td).is_ok(), !id.path().is_empty());
            prop_assert!(id.require_member(&TrustDomain::parse("-other-").unwrap()).is_err() || td.as_str() == "-other-");
        }
    }

    #[test]
    fn no_text_makes_a_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..400), text in nearly()) {
        for text in [String::from_utf8_lossy(&bytes).as_ref(), &text] {
            let _ = SpiffeId::parse(text);
            let _ = AuthorityKind::parse(text);
            let _ = SlotId::parse(text);
            let _ = SlotStatus::parse(text);
            if let Ok(td) = TrustDomain::parse_lenient(text) {
                prop_assert_eq!(TrustDomain::parse_lenient(&td.id_string()), Ok(td.clone()));
                prop_assert_eq!(TrustDomain::parse(td.as_str()), Ok(td.clone()));
                prop_assert_eq!(SpiffeId::parse(&td.id_string()), Ok(td.id()));
                prop_assert_eq!(SpiffeId::parse(&td.server_id().to_string()), Ok(td.server_id()));
            }
            if let Ok(td) = TrustDomain::parse("td").unwrap().agent_id(text) {
                prop_assert!(td.is_agent());
            }
            if let Ok(selector) = Selector::parse(text) {
                prop_assert_eq!(selector.to_string(), text);
                prop_assert_eq!(Selector::new(selector.kind(), selector.value()), Ok(selector));
            }
            if let Ok(name) = DnsName::parse(text) {
                prop_assert_eq!(name.to_string(), text);
                prop_assert!(text.len() <= 255 && text.is_ascii());
                prop_assert!(text.split('.').all(|label| !label.is_empty() && label.len() <= 63));
            }
            if let Ok(id) = EntryId::parse(text) {
                prop_assert_eq!(id.as_str(), text);
            }
            let _ = SerialNumber::parse(text);
        }
        if let Ok(serial) = SerialNumber::from_be_bytes(&bytes) {
            prop_assert_eq!(SerialNumber::parse(&serial.to_string()), Ok(serial));
        }
    }

    #[test]
    fn serials_survive_both_forms(number in any::<u128>(), bytes in prop::collection::vec(any::<u8>(), 1..=20)) {
        prop_assert_eq!(SerialNumber::from(number).to_string(), number.to_string());
        prop_assert_eq!(SerialNumber::from(number), number.to_be_bytes().into());
        let serial = SerialNumber::from_be_bytes(&bytes).unwrap();
        prop_assert_eq!(SerialNumber::parse(&serial.to_string()), Ok(serial));
        prop_assert_eq!(SerialNumber::from_be_bytes(serial.as_be_bytes()), Ok(serial));
    }

    #[test]
    fn random_entry_ids_are_valid(bytes in any::<[u8; 16]>()) {
        let id = EntryId::from_random(bytes);
        prop_assert_eq!(id.as_str().len(), 36);
        prop_assert_eq!(EntryId::parse(id.as_str()), Ok(id));
    }
}
