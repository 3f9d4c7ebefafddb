//! Trust domain names (SPIFFE-ID section 2.1).

use crate::{SpiffeId, text::textual};
use std::{fmt, sync::Arc};

/// The longest trust domain name, in bytes.
pub const MAX_TRUST_DOMAIN: usize = 255;

pub(crate) const SCHEME: &str = "spiffe://";

/// Why a text is not a SPIFFE ID, or not one of the class that is required here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Nothing was given.
    #[error("cannot be empty")]
    Empty,
    /// The text does not begin with `spiffe://`.
    #[error("scheme is missing or invalid")]
    Scheme,
    /// No trust domain stands after the scheme.
    #[error("trust domain is missing")]
    NoTrustDomain,
    /// The trust domain holds a character outside `a-z 0-9 . - _`.
    #[error("trust domain may hold only lower-case letters, digits, dots, dashes and underscores")]
    TrustDomainCharacter,
    /// The trust domain is longer than [`MAX_TRUST_DOMAIN`].
    #[error("trust domain is longer than 255 bytes")]
    TrustDomainTooLong,
    /// A path was given where only a trust domain may stand.
    #[error("a trust domain has no path")]
    UnexpectedPath,
    /// The path is neither empty nor starts with a slash.
    #[error("path must start with a slash")]
    NoLeadingSlash,
    /// Two slashes in a row.
    #[error("path may not hold an empty segment")]
    EmptySegment,
    /// The path ends with a slash.
    #[error("path may not end with a slash")]
    TrailingSlash,
    /// A segment is `.` or `..`.
    #[error("path may not hold a segment of one or two dots")]
    DotSegment,
    /// A segment holds a character outside `A-Z a-z 0-9 . - _`.
    #[error("path may hold only letters, digits, dots, dashes and underscores between its slashes")]
    PathCharacter,
    /// The whole ID is longer than [`MAX_SPIFFE_ID`](crate::MAX_SPIFFE_ID).
    #[error("SPIFFE ID is longer than 2048 bytes")]
    TooLong,
    /// The ID belongs to another trust domain than the one required.
    #[error("\"{id}\" is not a member of trust domain \"{trust_domain}\"")]
    NotMember {
        /// The ID given.
        id: SpiffeId,
        /// The trust domain it had to belong to.
        trust_domain: TrustDomain,
    },
    /// The ID is that of the trust domain itself.
    #[error("\"{0}\" has no path, so it names a trust domain, not a member of it")]
    NoPath(SpiffeId),
    /// The ID lies in `/spire`, which is not for workloads.
    #[error("\"{0}\" is not a workload: path is in the reserved namespace /spire")]
    Reserved(SpiffeId),
    /// The ID is not below `/spire/agent/`.
    #[error("\"{0}\" is not an agent: path must start with /spire/agent/")]
    NotAgent(SpiffeId),
}

/// A trust domain name without scheme, such as `example.org`.
///
/// One machine word; clones share the text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrustDomain(
    // A thin pointer: an entry holds two SPIFFE IDs and there are a million of them. The second indirection is
    // seldom followed, because equal names of one process are nearly always the same allocation.
    Arc<Box<str>>,
);

impl TrustDomain {
    /// Parses a bare name.
    ///
    /// # Errors
    /// When it is empty, longer than 255 bytes or holds anything but `a-z 0-9 . - _`.
    pub fn parse(name: &str) -> Result<Self, IdError> {
        check_name(name)?;
        Ok(Self(Arc::new(name.into())))
    }

    /// Parses a bare name or the ID form `spiffe://name`, as string fields of the API accept both.
    ///
    /// # Errors
    /// As [`parse`](Self::parse); also when the ID form has a path.
    pub fn parse_lenient(text: &str) -> Result<Self, IdError> {
        match text.strip_prefix(SCHEME) {
            Some("") => Err(IdError::NoTrustDomain),
            Some(name) if name.contains('/') => Err(IdError::UnexpectedPath),
            Some(name) => Self::parse(name),
            None => Self::parse(text),
        }
    }

    /// The bare name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The ID form: `spiffe://name`.
    pub fn id_string(&self) -> String {
        format!("{SCHEME}{}", self.as_str())
    }

    /// The SPIFFE ID of the trust domain itself, which its authorities carry: no path.
    pub fn id(&self) -> SpiffeId {
        SpiffeId::unchecked(self.clone(), "")
    }

    /// The ID of the domain's servers: `spiffe://name/spire/server`.
    pub fn server_id(&self) -> SpiffeId {
        SpiffeId::unchecked(self.clone(), SpiffeId::SERVER_PATH)
    }

    /// The ID of an agent: `spiffe://name/spire/agent/<suffix>`; the suffix may have several segments.
    ///
    /// # Errors
    /// When the suffix does not form a valid path.
    pub fn agent_id(&self, suffix: &str) -> Result<SpiffeId, IdError> {
        SpiffeId::from_parts(self.clone(), &format!("{}{suffix}", SpiffeId::AGENT_PREFIX))
    }

    /// How many values share this text; the interner drops what nobody else holds.
    pub(crate) fn holders(&self) -> usize {
        Arc::strong_count(&self.0)
    }
}

pub(crate) fn check_name(name: &str) -> Result<(), IdError> {
    if name.is_empty() {
        return Err(IdError::NoTrustDomain);
    }
    if !name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_')) {
        return Err(IdError::TrustDomainCharacter);
    }
    if name.len() > MAX_TRUST_DOMAIN {
        return Err(IdError::TrustDomainTooLong);
    }
    Ok(())
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TrustDomain({})", self.as_str())
    }
}

impl AsRef<str> for TrustDomain {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl std::borrow::Borrow<str> for TrustDomain {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

textual!(TrustDomain, IdError);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_standard() {
        for good in ["a", "example.org", "a_b-c.9", "-", "..", &"x".repeat(255)] {
            assert_eq!(TrustDomain::parse(good).unwrap().as_str(), good);
        }
        for (bad, why) in [
            ("", IdError::NoTrustDomain),
            ("Example.org", IdError::TrustDomainCharacter),
            ("example.org:80", IdError::TrustDomainCharacter),
            ("user@example.org", IdError::TrustDomainCharacter),
            ("ex%61mple.org", IdError::TrustDomainCharacter),
            ("exämple.org", IdError::TrustDomainCharacter),
            ("spiffe://example.org", IdError::TrustDomainCharacter),
            (&"x".repeat(256), IdError::TrustDomainTooLong),
        ] {
            assert_eq!(TrustDomain::parse(bad), Err(why), "{bad}");
        }
    }

    #[test]
    fn lenient_accepts_the_id_form_without_a_path() {
        assert_eq!(TrustDomain::parse_lenient("spiffe://td").unwrap().as_str(), "td");
        assert_eq!(TrustDomain::parse_lenient("td").unwrap().as_str(), "td");
        assert_eq!(TrustDomain::parse_lenient("spiffe://td/x"), Err(IdError::UnexpectedPath));
        assert_eq!(TrustDomain::parse_lenient("spiffe://td/"), Err(IdError::UnexpectedPath));
        assert_eq!(TrustDomain::parse_lenient("spiffe://"), Err(IdError::NoTrustDomain));
        assert_eq!(TrustDomain::parse_lenient("SPIFFE://td"), Err(IdError::TrustDomainCharacter));
    }

    #[test]
    fn well_known_ids() {
        let td = TrustDomain::parse("td").unwrap();
        assert_eq!(td.id_string(), "spiffe://td");
        assert_eq!(td.id().to_string(), "spiffe://td");
        assert_eq!(td.server_id().to_string(), "spiffe://td/spire/server");
        assert_eq!(td.agent_id("x509pop/ab").unwrap().to_string(), "spiffe://td/spire/agent/x509pop/ab");
        assert!(td.agent_id("").is_err());
        assert!(td.agent_id("a//b").is_err());
    }
}
