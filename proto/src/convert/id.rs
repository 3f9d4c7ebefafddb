//! SPIFFE IDs, trust domains and selectors.
//!
//! The identity crate has its own sentences for its own users; here they are put as SPIRE and go-spiffe put them.

use std::fmt::{self, Display, Formatter};

use bonafide_identity::{IdError, Selector, SelectorError, SelectorSet, SpiffeId, TrustDomain};

use crate::convert::ConvertError;
use crate::spire::types;

/// Who may stand in a field that holds a SPIFFE ID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdClass {
    /// Any ID of the trust domain that has a path.
    Member,
    /// A member outside of the reserved paths.
    Workload,
    /// A member below `/spire/agent/`.
    Agent,
}

/// Why a SPIFFE ID was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IdRefusal {
    /// The field is absent.
    Missing,
    /// It is no SPIFFE ID.
    Malformed(IdError),
    /// It is one, but not of the class that the field asks for.
    Class {
        /// The ID.
        id: SpiffeId,
        /// The trust domain of this server.
        trust_domain: TrustDomain,
        /// What the field asks for.
        class: IdClass,
        /// Which rule of the class it breaks.
        broken: IdError,
    },
}

impl Display for IdRefusal {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        let (id, trust_domain, class, broken) = match self {
            Self::Missing => return formatter.write_str("request must specify SPIFFE ID"),
            Self::Malformed(error) => return syntax(error).fmt(formatter),
            Self::Class { id, trust_domain, class, broken } => (id, trust_domain, class, broken),
        };
        let (noun, end) = match (class, broken) {
            (_, IdError::NotMember { .. }) => ("a member of", ""),
            (IdClass::Member, _) => ("a member of", "; path is empty"),
            (IdClass::Workload, IdError::NoPath(_)) => ("a workload in", "; path is empty"),
            (IdClass::Workload, _) => ("a workload in", "; path is in the reserved namespace"),
            (IdClass::Agent, IdError::NoPath(_)) => ("an agent in", "; path is empty"),
            (IdClass::Agent, _) => ("an agent in", "; path is not in the agent namespace"),
        };
        write!(formatter, "\"{id}\" is not {noun} trust domain \"{trust_domain}\"{end}")
    }
}

/// The sentence of go-spiffe for a mistake of syntax; ours where it has none.
pub(super) fn syntax(error: &IdError) -> impl Display + '_ {
    struct Syntax<'a>(&'a IdError);

    impl Display for Syntax<'_> {
        fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
            formatter.write_str(match self.0 {
                IdError::Scheme => "scheme is missing or invalid",
                IdError::TrustDomainCharacter => {
                    "trust domain characters are limited to lowercase letters, numbers, dots, dashes, and \
                     underscores"
                }
                IdError::NoLeadingSlash => "path must have a leading slash",
                IdError::EmptySegment => "path cannot contain empty segments",
                IdError::TrailingSlash => "path cannot have a trailing slash",
                IdError::DotSegment => "path cannot contain dot segments",
                IdError::PathCharacter => {
                    "path segment characters are limited to letters, numbers, dots, dashes, and underscores"
                }
                other => return other.fmt(formatter),
            })
        }
    }

    Syntax(error)
}

/// The two parts of an ID; the trust domain is sent by its bare name.
#[must_use]
pub fn spiffe_id_to_wire(id: &SpiffeId) -> types::Spiffeid {
    types::Spiffeid { trust_domain: id.trust_domain().as_str().to_owned(), path: id.path().to_owned() }
}

/// Reads an ID of any trust domain and class; `what` begins the text of a refusal.
///
/// # Errors
/// When it is absent or malformed.
pub fn spiffe_id_from_wire(
    id: Option<&types::Spiffeid>,
    what: &'static str,
) -> Result<SpiffeId, ConvertError> {
    parse(id, None).map_err(|reason| ConvertError::SpiffeId { what, reason })
}

/// Reads an ID that must be in the trust domain and have a path.
///
/// # Errors
/// When it is absent, malformed or not a member.
pub fn member_id_from_wire(
    id: Option<&types::Spiffeid>,
    trust_domain: &TrustDomain,
    what: &'static str,
) -> Result<SpiffeId, ConvertError> {
    of_class(id, trust_domain, IdClass::Member, what)
}

/// Reads an ID that must be a member outside of the reserved paths.
///
/// # Errors
/// When it is absent, malformed or not a workload.
pub fn workload_id_from_wire(
    id: Option<&types::Spiffeid>,
    trust_domain: &TrustDomain,
    what: &'static str,
) -> Result<SpiffeId, ConvertError> {
    of_class(id, trust_domain, IdClass::Workload, what)
}

/// Reads an ID that must be a member below `/spire/agent/`.
///
/// # Errors
/// When it is absent, malformed or not an agent.
pub fn agent_id_from_wire(
    id: Option<&types::Spiffeid>,
    trust_domain: &TrustDomain,
    what: &'static str,
) -> Result<SpiffeId, ConvertError> {
    of_class(id, trust_domain, IdClass::Agent, what)
}

fn of_class(
    id: Option<&types::Spiffeid>,
    trust_domain: &TrustDomain,
    class: IdClass,
    what: &'static str,
) -> Result<SpiffeId, ConvertError> {
    let refuse = |reason| ConvertError::SpiffeId { what, reason };
    let id = parse(id, Some(trust_domain)).map_err(refuse)?;
    let check = match class {
        IdClass::Member => id.require_member(trust_domain),
        IdClass::Workload => id.require_workload(trust_domain),
        IdClass::Agent => id.require_agent(trust_domain),
    };
    match check {
        Ok(()) => Ok(id),
        Err(broken) => {
            Err(refuse(IdRefusal::Class { id, trust_domain: trust_domain.clone(), class, broken }))
        }
    }
}

/// `near` is the trust domain that the ID probably has: its name is then shared instead of stored again, which
/// counts with a million entries.
fn parse(id: Option<&types::Spiffeid>, near: Option<&TrustDomain>) -> Result<SpiffeId, IdRefusal> {
    let id = id.ok_or(IdRefusal::Missing)?;
    let trust_domain = match near {
        Some(near) if near.as_str() == id.trust_domain => near.clone(),
        _ => TrustDomain::parse_lenient(&id.trust_domain).map_err(IdRefusal::Malformed)?,
    };
    SpiffeId::from_parts(trust_domain, &id.path).map_err(IdRefusal::Malformed)
}

/// Reads a trust domain from a string field: its name, or `spiffe://` and its name.
///
/// # Errors
/// When it is empty or malformed; the text begins with `what`.
pub fn trust_domain_from_wire(text: &str, what: &'static str) -> Result<TrustDomain, ConvertError> {
    TrustDomain::parse_lenient(text).map_err(|reason| ConvertError::TrustDomain { what, reason })
}

/// Reads one selector.
///
/// # Errors
/// When a part is empty, or the type holds a `:`.
pub fn selector_from_wire(selector: &types::Selector) -> Result<Selector, SelectorError> {
    Selector::new(&selector.r#type, &selector.value)
}

/// Reads selectors into a set; an empty list gives an empty set.
///
/// # Errors
/// When one of them is malformed.
pub fn selectors_from_wire(selectors: &[types::Selector]) -> Result<SelectorSet, SelectorError> {
    selectors.iter().map(selector_from_wire).collect()
}

/// The selectors of a set, in its order.
#[must_use]
pub fn selectors_to_wire(selectors: &SelectorSet) -> Vec<types::Selector> {
    selectors
        .iter()
        .map(|selector| types::Selector {
            r#type: selector.kind().to_owned(),
            value: selector.value().to_owned(),
        })
        .collect()
}
