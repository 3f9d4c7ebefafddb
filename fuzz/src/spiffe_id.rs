//! Texts that name something: in certificates, tokens, requests, configurations, command lines.
//!
//! Laws: what was accepted prints as it was read; for SPIFFE IDs and trust domains, what is accepted is what a second
//! statement of the standard's rules (SPIFFE-ID, section 2) accepts.

use std::fmt::{Debug, Display};
use std::str::FromStr;

use bonafide_identity::{DnsName, EntryId, Selector, SerialNumber, SpiffeId, TrustDomain};

/// Whether the text is anything.
pub fn check(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let id = round_trip::<SpiffeId>(text);
    assert_eq!(id.is_some(), is_spiffe_id(text));
    if let Some(id) = &id {
        let td = id.trust_domain();
        assert_eq!(SpiffeId::from_parts(td.clone(), id.path()).as_ref(), Ok(id));
        assert_eq!(SpiffeId::parse_near(text, td).as_ref(), Ok(id));
        assert_eq!(SpiffeId::parse_near(text, &crate::trust_domain()).as_ref(), Ok(id));
        assert_eq!(id.require_workload(td).is_ok(), !id.path().is_empty() && !id.is_reserved());
        assert!(id.require_agent(td).is_err() || id.is_reserved());
    }
    let td = round_trip::<TrustDomain>(text);
    assert_eq!(td.is_some(), is_trust_domain(text));
    if let Ok(lenient) = TrustDomain::parse_lenient(text) {
        assert!(text == lenient.as_str() || text == lenient.id_string());
        assert_eq!(lenient.id().to_string(), lenient.id_string());
    }
    if let Ok(agent) = crate::trust_domain().agent_id(text) {
        assert!(agent.is_agent() && agent.to_string() == format!("spiffe://example.org/spire/agent/{text}"));
    }
    let selector = round_trip::<Selector>(text);
    if let Some(selector) = &selector {
        assert_eq!(Selector::new(selector.kind(), selector.value()).as_ref(), Ok(selector));
    }
    let name = round_trip::<DnsName>(text);
    let entry = round_trip::<EntryId>(text);
    // Leading zeros are read and not written.
    let serial = SerialNumber::parse(text).ok();
    if let Some(serial) = &serial {
        assert_eq!(SerialNumber::parse(&serial.to_string()).as_ref(), Ok(serial));
        assert_eq!(SerialNumber::from_be_bytes(serial.as_be_bytes()).as_ref(), Ok(serial));
    }
    id.is_some()
        || td.is_some()
        || selector.is_some()
        || name.is_some()
        || entry.is_some()
        || serial.is_some()
}

fn round_trip<T: FromStr + Display + Debug + PartialEq>(text: &str) -> Option<T> {
    let read = text.parse::<T>().ok()?;
    assert_eq!(read.to_string(), text, "not printed as it was read");
    Some(read)
}

fn is_trust_domain(name: &str) -> bool {
    (1..=255).contains(&name.len())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-_".contains(c))
}

fn is_spiffe_id(text: &str) -> bool {
    let Some(rest) = text.strip_prefix("spiffe://") else { return false };
    let mut parts = rest.split('/');
    let segment = |part: &str| {
        !["", ".", ".."].contains(&part)
            && part.chars().all(|c| c.is_ascii_alphanumeric() || ".-_".contains(c))
    };
    text.len() <= 2048 && parts.next().is_some_and(is_trust_domain) && parts.all(segment)
}
