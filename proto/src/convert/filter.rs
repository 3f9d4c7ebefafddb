//! Conditions of the listing and counting calls.
//!
//! The calls `List…` and `Count…` have filter messages of the same shape but of different types; the traits here,
//! private to this module, let one reader serve both.

use bonafide_identity::{AttestedNode, Entry, MatchBehavior, SelectorSet, SpiffeId, Timestamp, TrustDomain};

use crate::convert::{
    ConvertError, member_id_from_wire, selectors_from_wire, trust_domain_from_wire, workload_id_from_wire,
};
use crate::spire::server::{agent, entry};
use crate::spire::types::{self, federates_with_match, selector_match};

/// Which entries a caller wants; all conditions must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EntryFilter {
    /// Only entries with this identity.
    pub spiffe_id: Option<SpiffeId>,
    /// Only entries with this parent.
    pub parent_id: Option<SpiffeId>,
    /// Compares the selectors of the entry with these.
    pub selectors: Option<(SelectorSet, MatchBehavior)>,
    /// Compares the trust domains that the entry federates with (sorted, without duplicates) with these.
    pub federates_with: Option<(Vec<TrustDomain>, MatchBehavior)>,
    /// Only entries with this hint, which is not empty.
    pub hint: Option<String>,
    /// Only entries of downstream servers.
    pub downstream: bool,
}

impl EntryFilter {
    /// Whether the entry fulfils all conditions.
    #[must_use]
    pub fn matches(&self, entry: &Entry) -> bool {
        self.spiffe_id.as_ref().is_none_or(|id| *id == entry.spiffe_id)
            && self.parent_id.as_ref().is_none_or(|id| *id == entry.parent_id)
            && self.selectors.as_ref().is_none_or(|(given, how)| entry.selectors.matches(given, *how))
            && self.federates_with.as_ref().is_none_or(|(given, how)| {
                // An entry that federates with nobody is found by no comparison, not even as a subset.
                !entry.federates_with.is_empty() && how.holds(&entry.federates_with, given)
            })
            && self.hint.as_ref().is_none_or(|hint| **hint == *entry.hint)
            && (!self.downstream || entry.downstream)
    }
}

/// Which attested nodes a caller wants; all conditions must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AgentFilter {
    /// Only nodes that this attestor admitted; not empty.
    pub attestation_type: Option<String>,
    /// Compares the selectors of the node with these.
    pub selectors: Option<(SelectorSet, MatchBehavior)>,
    /// Only nodes that are banned, or only others.
    pub banned: Option<bool>,
    /// Only nodes that can attest again, or only others.
    pub can_reattest: Option<bool>,
    /// Only nodes whose SVID ends before this instant.
    pub expires_before: Option<Timestamp>,
}

impl AgentFilter {
    /// Whether the node fulfils all conditions.
    #[must_use]
    pub fn matches(&self, node: &AttestedNode) -> bool {
        self.attestation_type.as_ref().is_none_or(|kind| *kind == node.attestation_type)
            && self.selectors.as_ref().is_none_or(|(given, how)| node.selectors.matches(given, *how))
            && self.banned.is_none_or(|banned| banned == node.banned())
            && self.can_reattest.is_none_or(|can_reattest| can_reattest == node.can_reattest)
            && self.expires_before.is_none_or(|instant| node.not_after < instant)
    }
}

/// Reads the filter of `ListEntries` or `CountEntries`; an absent one has no condition.
///
/// # Errors
/// With SPIRE's text when a condition is malformed.
#[allow(private_bounds)]
pub fn entry_filter_from_wire<F: EntryConditions>(
    filter: Option<&F>,
    trust_domain: &TrustDomain,
) -> Result<EntryFilter, ConvertError> {
    let Some(filter) = filter else { return Ok(EntryFilter::default()) };
    let parent_id = filter
        .parent_id()
        .map(|id| member_id_from_wire(Some(id), trust_domain, "malformed parent ID filter"))
        .transpose()?;
    let spiffe_id = filter
        .spiffe_id()
        .map(|id| workload_id_from_wire(Some(id), trust_domain, "malformed SPIFFE ID filter"))
        .transpose()?;
    let selectors = filter
        .selectors()
        .map(|condition| selector_match_from_wire(condition, "malformed selectors filter"))
        .transpose()?;
    let federates_with = filter
        .federates_with()
        .map(|condition| trust_domain_match_from_wire(condition, "malformed federates with filter"))
        .transpose()?;
    Ok(EntryFilter {
        spiffe_id,
        parent_id,
        selectors,
        federates_with,
        hint: filter.hint().filter(|hint| !hint.is_empty()).cloned(),
        // SPIRE's command line always sends `false`, and means no condition.
        downstream: filter.downstream().unwrap_or(false),
    })
}

/// Reads the filter of `ListAgents` or `CountAgents`; an absent one has no condition. An instant that cannot be read
/// is no condition, as in SPIRE.
///
/// # Errors
/// When the selectors are malformed or empty.
#[allow(private_bounds)]
pub fn agent_filter_from_wire<F: AgentConditions>(filter: Option<&F>) -> Result<AgentFilter, ConvertError> {
    let Some(filter) = filter else { return Ok(AgentFilter::default()) };
    let selectors = filter
        .selectors()
        .map(|condition| selector_match_from_wire(condition, "failed to parse selectors"))
        .transpose()?;
    Ok(AgentFilter {
        attestation_type: Some(filter.attestation_type()).filter(|kind| !kind.is_empty()).cloned(),
        selectors,
        banned: filter.banned(),
        can_reattest: filter.can_reattest(),
        expires_before: instant(filter.expires_before()),
    })
}

/// Reads a comparison with selectors; `what` begins the text of a refusal.
///
/// # Errors
/// When a selector is malformed, there is none, or the comparison is unknown.
pub fn selector_match_from_wire(
    condition: &types::SelectorMatch,
    what: &'static str,
) -> Result<(SelectorSet, MatchBehavior), ConvertError> {
    let set = selectors_from_wire(&condition.selectors)
        .map_err(|reason| ConvertError::FilterSelector { what, reason })?;
    if set.is_empty() {
        return Err(ConvertError::EmptyFilter { what, of: "selector" });
    }
    Ok((set, behavior(condition.r#match, what)?))
}

/// Reads a comparison with trust domains, which come back sorted and without duplicates; `what` begins the text of a
/// refusal.
///
/// # Errors
/// When a trust domain is malformed, there is none, or the comparison is unknown.
pub fn trust_domain_match_from_wire(
    condition: &types::FederatesWithMatch,
    what: &'static str,
) -> Result<(Vec<TrustDomain>, MatchBehavior), ConvertError> {
    let mut set = condition
        .trust_domains
        .iter()
        .map(|text| trust_domain_from_wire(text, what))
        .collect::<Result<Vec<_>, _>>()?;
    if set.is_empty() {
        return Err(ConvertError::EmptyFilter { what, of: "trust domain" });
    }
    set.sort_unstable();
    set.dedup();
    Ok((set, behavior(condition.r#match, what)?))
}

/// The number of a comparison; the same for selectors and trust domains.
#[must_use]
pub fn match_to_wire(behavior: MatchBehavior) -> i32 {
    let number = match behavior {
        MatchBehavior::Exact => selector_match::MatchBehavior::MatchExact,
        MatchBehavior::Subset => selector_match::MatchBehavior::MatchSubset,
        MatchBehavior::Superset => selector_match::MatchBehavior::MatchSuperset,
        MatchBehavior::Any => selector_match::MatchBehavior::MatchAny,
    };
    number as i32
}

fn behavior(number: i32, what: &'static str) -> Result<MatchBehavior, ConvertError> {
    use federates_with_match::MatchBehavior as Wire;
    match Wire::try_from(number) {
        Ok(Wire::MatchExact) => Ok(MatchBehavior::Exact),
        Ok(Wire::MatchSubset) => Ok(MatchBehavior::Subset),
        Ok(Wire::MatchSuperset) => Ok(MatchBehavior::Superset),
        Ok(Wire::MatchAny) => Ok(MatchBehavior::Any),
        Err(_) => Err(ConvertError::MatchBehavior { what, number }),
    }
}

/// Reads Go's layout `2006-01-02 15:04:05 -0700 -07`, in which SPIRE's command line sends an instant. The second
/// offset is the name of a zone without a name: it must be an offset too, and says nothing more.
fn instant(text: &str) -> Option<Timestamp> {
    let mut parts = text.split(' ');
    let (date, time, offset, zone) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some()
        || !matches!(zone.as_bytes(), [b'+' | b'-', a, b] if a.is_ascii_digit() && b.is_ascii_digit())
    {
        return None;
    }
    let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
    let [hour, minute, second] = numbers(time, ':', [2, 2, 2])?;
    let (sign, digits) = match offset.as_bytes().first()? {
        b'+' => (1, &offset[1..]),
        b'-' => (-1, &offset[1..]),
        _ => return None,
    };
    let [offset] = numbers(digits, ' ', [4])?;
    let (offset_hours, offset_minutes) = (offset / 100, offset % 100);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days_in_month = match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 if leap => 29,
        2 => 28,
        _ => return None,
    };
    if !(1..=days_in_month).contains(&day)
        || hour > 23
        || minute > 59
        || second > 59
        || offset_hours > 24
        || offset_minutes > 59
    {
        return None;
    }
    // Counted from 1 March, so that the leap day ends a year: 719468 days lie between 0000-03-01 and 1970-01-01.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year.div_euclid(4) - year.div_euclid(100)
        + year.div_euclid(400)
        + (153 * month + 2) / 5
        + (day - 1)
        - 719_468;
    let of_day = (hour * 60 + minute) * 60 + second;
    Some(Timestamp::from_unix_seconds(
        days * 86_400 + of_day - sign * (offset_hours * 60 + offset_minutes) * 60,
    ))
}

/// Splits a text into numbers that have exactly so many digits.
fn numbers<const N: usize>(text: &str, separator: char, digits: [usize; N]) -> Option<[i64; N]> {
    let mut parts = text.split(separator);
    let mut values = [0; N];
    for (value, digits) in values.iter_mut().zip(digits) {
        let part = parts.next()?;
        if part.len() != digits || !part.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        *value = part.parse().ok()?;
    }
    parts.next().is_none().then_some(values)
}

trait EntryConditions {
    fn spiffe_id(&self) -> Option<&types::Spiffeid>;
    fn parent_id(&self) -> Option<&types::Spiffeid>;
    fn selectors(&self) -> Option<&types::SelectorMatch>;
    fn federates_with(&self) -> Option<&types::FederatesWithMatch>;
    fn hint(&self) -> Option<&String>;
    fn downstream(&self) -> Option<bool>;
}

macro_rules! entry_conditions {
    ($($filter:path),*) => {$(
        impl EntryConditions for $filter {
            fn spiffe_id(&self) -> Option<&types::Spiffeid> {
                self.by_spiffe_id.as_ref()
            }
            fn parent_id(&self) -> Option<&types::Spiffeid> {
                self.by_parent_id.as_ref()
            }
            fn selectors(&self) -> Option<&types::SelectorMatch> {
                self.by_selectors.as_ref()
            }
            fn federates_with(&self) -> Option<&types::FederatesWithMatch> {
                self.by_federates_with.as_ref()
            }
            fn hint(&self) -> Option<&String> {
                self.by_hint.as_ref()
            }
            fn downstream(&self) -> Option<bool> {
                self.by_downstream
            }
        }
    )*};
}

entry_conditions!(entry::v1::list_entries_request::Filter, entry::v1::count_entries_request::Filter);

trait AgentConditions {
    fn attestation_type(&self) -> &String;
    fn selectors(&self) -> Option<&types::SelectorMatch>;
    fn banned(&self) -> Option<bool>;
    fn can_reattest(&self) -> Option<bool>;
    fn expires_before(&self) -> &str;
}

macro_rules! agent_conditions {
    ($($filter:path),*) => {$(
        impl AgentConditions for $filter {
            fn attestation_type(&self) -> &String {
                &self.by_attestation_type
            }
            fn selectors(&self) -> Option<&types::SelectorMatch> {
                self.by_selector_match.as_ref()
            }
            fn banned(&self) -> Option<bool> {
                self.by_banned
            }
            fn can_reattest(&self) -> Option<bool> {
                self.by_can_reattest
            }
            fn expires_before(&self) -> &str {
                &self.by_expires_before
            }
        }
    )*};
}

agent_conditions!(agent::v1::list_agents_request::Filter, agent::v1::count_agents_request::Filter);
