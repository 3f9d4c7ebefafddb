//! SPIFFE IDs (SPIFFE-ID sections 2 and 4).
//!
//! An ID is kept as its trust domain and its path rather than as one URI: all IDs of a process share the text of a few
//! trust domains, and most questions are about the path. The whole value takes three machine words.

use crate::{
    text::textual,
    trust_domain::{IdError, MAX_TRUST_DOMAIN, SCHEME, TrustDomain, check_name},
};
use std::{fmt, sync::Arc};

/// The longest SPIFFE ID, in bytes, scheme included.
pub const MAX_SPIFFE_ID: usize = 2048;

/// A SPIFFE ID such as `spiffe://example.org/ns/default/sa/web`. Clones share their text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId {
    trust_domain: TrustDomain,
    path: Arc<str>,
}

impl SpiffeId {
    pub(crate) const SERVER_PATH: &'static str = "/spire/server";
    pub(crate) const AGENT_PREFIX: &'static str = "/spire/agent/";

    /// Parses the URI form. The scheme must be the lower-case `spiffe://`; there is no room for a port, user
    /// information, percent-encoding, a query or a fragment.
    ///
    /// # Errors
    /// The first rule that the text breaks.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        let (name, path) = split(text)?;
        Ok(Self { trust_domain: TrustDomain::parse(name)?, path: path.into() })
    }

    /// As [`parse`](Self::parse), sharing the text of `trust_domain` when the ID belongs to it (it may well not).
    ///
    /// # Errors
    /// As [`parse`](Self::parse).
    pub fn parse_near(text: &str, trust_domain: &TrustDomain) -> Result<Self, IdError> {
        let (name, path) = split(text)?;
        let trust_domain =
            if name == trust_domain.as_str() { trust_domain.clone() } else { TrustDomain::parse(name)? };
        Ok(Self { trust_domain, path: path.into() })
    }

    /// The ID of `path` (empty, or starting with a slash) in `trust_domain`.
    ///
    /// # Errors
    /// When the path breaks a rule or the whole ID gets too long.
    pub fn from_parts(trust_domain: TrustDomain, path: &str) -> Result<Self, IdError> {
        if SCHEME.len() + trust_domain.as_str().len() + path.len() > MAX_SPIFFE_ID {
            return Err(IdError::TooLong);
        }
        check_path(path)?;
        Ok(Self { trust_domain, path: path.into() })
    }

    /// For the constants of this crate only: `path` must be valid and short.
    pub(crate) fn unchecked(trust_domain: TrustDomain, path: &'static str) -> Self {
        Self { trust_domain, path: path.into() }
    }

    /// Shares the text of `known` if that is the ID's trust domain.
    pub(crate) fn share_trust_domain(&mut self, known: &TrustDomain) {
        if self.trust_domain == *known {
            self.trust_domain = known.clone();
        }
    }

    pub(crate) fn trust_domain_mut(&mut self) -> &mut TrustDomain {
        &mut self.trust_domain
    }

    /// How many values share the path; the interner drops what nobody else holds.
    pub(crate) fn holders(&self) -> usize {
        Arc::strong_count(&self.path)
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The path: empty, or `/` and segments.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// True in the path space that the implementation keeps for itself: `/spire` and all below.
    pub fn is_reserved(&self) -> bool {
        self.path.strip_prefix("/spire").is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// True below `/spire/agent/`.
    pub fn is_agent(&self) -> bool {
        self.path.starts_with(Self::AGENT_PREFIX)
    }

    /// True for `/spire/server`.
    pub fn is_server(&self) -> bool {
        &*self.path == Self::SERVER_PATH
    }

    /// Demands the *member* class: of this trust domain, with a path.
    ///
    /// # Errors
    /// [`IdError::NotMember`] or [`IdError::NoPath`].
    pub fn require_member(&self, trust_domain: &TrustDomain) -> Result<(), IdError> {
        if self.trust_domain != *trust_domain {
            return Err(IdError::NotMember { id: self.clone(), trust_domain: trust_domain.clone() });
        }
        if self.path.is_empty() {
            return Err(IdError::NoPath(self.clone()));
        }
        Ok(())
    }

    /// Demands the *workload* class: a member outside the reserved path space.
    ///
    /// # Errors
    /// As [`require_member`](Self::require_member), or [`IdError::Reserved`].
    pub fn require_workload(&self, trust_domain: &TrustDomain) -> Result<(), IdError> {
        self.require_member(trust_domain)?;
        if self.is_reserved() { Err(IdError::Reserved(self.clone())) } else { Ok(()) }
    }

    /// Demands the *agent* class: a member below `/spire/agent/`.
    ///
    /// # Errors
    /// As [`require_member`](Self::require_member), or [`IdError::NotAgent`].
    pub fn require_agent(&self, trust_domain: &TrustDomain) -> Result<(), IdError> {
        self.require_member(trust_domain)?;
        if self.is_agent() { Ok(()) } else { Err(IdError::NotAgent(self.clone())) }
    }
}

/// Checks a whole URI and splits it into trust domain name and path.
fn split(text: &str) -> Result<(&str, &str), IdError> {
    if text.is_empty() {
        return Err(IdError::Empty);
    }
    let rest = text.strip_prefix(SCHEME).ok_or(IdError::Scheme)?;
    let (name, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    check_name(name)?;
    if text.len() > MAX_SPIFFE_ID {
        return Err(IdError::TooLong);
    }
    check_path(path)?;
    Ok((name, path))
}

fn check_path(path: &str) -> Result<(), IdError> {
    if path.is_empty() {
        return Ok(());
    }
    let segments = path.strip_prefix('/').ok_or(IdError::NoLeadingSlash)?;
    let mut rest = segments.split('/').peekable();
    while let Some(segment) = rest.next() {
        match segment {
            "" if rest.peek().is_none() => return Err(IdError::TrailingSlash),
            "" => return Err(IdError::EmptySegment),
            "." | ".." => return Err(IdError::DotSegment),
            _ if segment.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_')) => {}
            _ => return Err(IdError::PathCharacter),
        }
    }
    Ok(())
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if f.width().is_some() || f.precision().is_some() {
            return f.pad(&[SCHEME, self.trust_domain.as_str(), &self.path].concat());
        }
        f.write_str(SCHEME)?;
        f.write_str(self.trust_domain.as_str())?;
        f.write_str(&self.path)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SpiffeId({self})")
    }
}

textual!(SpiffeId, IdError);

// A trust domain name of full length must leave room for a path.
const _: () = assert!(SCHEME.len() + MAX_TRUST_DOMAIN < MAX_SPIFFE_ID);
const _: () = assert!(size_of::<SpiffeId>() == 3 * size_of::<usize>());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_ids_print_as_they_were_read() {
        for good in [
            "spiffe://td",
            "spiffe://td/a",
            "spiffe://td/A-Z_a.z/0..9",
            "spiffe://td/...",
            "spiffe://td/spire/agent/join_token/x",
            &format!("spiffe://{}/{}", "d".repeat(255), "p".repeat(2048 - 9 - 255 - 1)),
        ] {
            assert_eq!(SpiffeId::parse(good).unwrap().to_string(), good);
        }
    }

    #[test]
    fn each_rule_has_its_error() {
        for (bad, why) in [
            ("", IdError::Empty),
            ("td/a", IdError::Scheme),
            ("SPIFFE://td/a", IdError::Scheme),
            ("https://td/a", IdError::Scheme),
            ("spiffe:/td", IdError::Scheme),
            ("spiffe://", IdError::NoTrustDomain),
            ("spiffe:///a", IdError::NoTrustDomain),
            ("spiffe://TD/a", IdError::TrustDomainCharacter),
            ("spiffe://td:8081/a", IdError::TrustDomainCharacter),
            ("spiffe://u@td/a", IdError::TrustDomainCharacter),
            ("spiffe://td?q", IdError::TrustDomainCharacter),
            ("spiffe://td#f", IdError::TrustDomainCharacter),
            ("spiffe://td/", IdError::TrailingSlash),
            ("spiffe://td/a/", IdError::TrailingSlash),
            ("spiffe://td//a", IdError::EmptySegment),
            ("spiffe://td/./a", IdError::DotSegment),
            ("spiffe://td/a/..", IdError::DotSegment),
            ("spiffe://td/a?q", IdError::PathCharacter),
            ("spiffe://td/a#f", IdError::PathCharacter),
            ("spiffe://td/%41", IdError::PathCharacter),
            ("spiffe://td/ä", IdError::PathCharacter),
            ("spiffe://td/a b", IdError::PathCharacter),
            ("spiffe://td/a\0", IdError::PathCharacter),
            (&format!("spiffe://td/{}", "p".repeat(2048 - 11)), IdError::TooLong),
            (&format!("spiffe://{}/p", "d".repeat(256)), IdError::TrustDomainTooLong),
        ] {
            assert_eq!(SpiffeId::parse(bad), Err(why), "{bad}");
        }
        let td = TrustDomain::parse("td").unwrap();
        assert_eq!(SpiffeId::from_parts(td.clone(), "a"), Err(IdError::NoLeadingSlash));
        assert_eq!(SpiffeId::from_parts(td, &"/p".repeat(1024)), Err(IdError::TooLong));
    }

    #[test]
    fn classes() {
        let td = TrustDomain::parse("td").unwrap();
        let id = |path: &str| SpiffeId::from_parts(td.clone(), path).unwrap();
        assert!(id("/spire").is_reserved());
        assert!(id("/spire/x").is_reserved());
        assert!(!id("/spirex").is_reserved());
        assert!(id("/spire/agent/x").is_agent());
        assert!(!id("/spire/agent").is_agent());
        assert!(id("/spire/server").is_server());
        assert!(id("/web").require_workload(&td).is_ok());
        assert_eq!(id("").require_member(&td), Err(IdError::NoPath(id(""))));
        assert_eq!(id("/spire/x").require_workload(&td), Err(IdError::Reserved(id("/spire/x"))));
        assert!(id("/spire/x").require_member(&td).is_ok());
        assert_eq!(id("/web").require_agent(&td), Err(IdError::NotAgent(id("/web"))));
        let other = TrustDomain::parse("other").unwrap();
        assert!(matches!(id("/web").require_member(&other), Err(IdError::NotMember { .. })));
    }

    #[test]
    fn an_id_is_a_string_in_serde() {
        let id = SpiffeId::parse("spiffe://td/a").unwrap();
        let json = serde_json::to_string(&id).unwrap();
        assert_eq!(json, "\"spiffe://td/a\"");
        assert_eq!(serde_json::from_str::<SpiffeId>(&json).unwrap(), id);
        assert!(serde_json::from_str::<SpiffeId>("\"spiffe://TD\"").is_err());
    }

    #[test]
    fn parse_near_shares_only_its_own_domain() {
        let td = TrustDomain::parse("td").unwrap();
        assert_eq!(SpiffeId::parse_near("spiffe://td/a", &td), SpiffeId::parse("spiffe://td/a"));
        assert_eq!(SpiffeId::parse_near("spiffe://other/a", &td), SpiffeId::parse("spiffe://other/a"));
        assert_eq!(SpiffeId::parse_near("spiffe://tD/a", &td), Err(IdError::TrustDomainCharacter));
    }
}
