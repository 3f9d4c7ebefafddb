//! How long something to be signed will live.
//!
//! A leaf never outlives its issuer. It begins a little in the past, for verifiers whose clock is behind; and its ends
//! fall on whole seconds, since that is all a certificate can say and what is recorded must equal what is signed.

pub mod policy;

use self::policy::Kind;
use crate::{Entry, Lifetime, Timestamp, rotation::ACTIVATION_LIMIT};
use std::time::Duration;

/// How far before now a certificate begins.
pub const BACKDATE: Duration = Duration::from_secs(10);

/// The validity of a certificate signed at `now`: from [`BACKDATE`] ago until `ttl` from now, at most until the issuer
/// ends. Both ends are whole seconds, rounded towards the past.
pub fn capped(ttl: Duration, now: Timestamp, issuer_not_after: Timestamp) -> Lifetime {
    let not_before = now.saturating_sub(BACKDATE).floor_to_second();
    span(not_before, ttl, now, issuer_not_after)
}

/// The validity of a token signed at `now`: as [`capped`], but it begins now.
pub fn capped_token(ttl: Duration, now: Timestamp, issuer_not_after: Timestamp) -> Lifetime {
    span(now.floor_to_second(), ttl, now, issuer_not_after)
}

fn span(not_before: Timestamp, ttl: Duration, now: Timestamp, issuer_not_after: Timestamp) -> Lifetime {
    let wanted = now.saturating_add(ttl);
    Lifetime {
        not_before,
        not_after: wanted.min(issuer_not_after).floor_to_second(),
        limited_by_issuer: wanted > issuer_not_after,
    }
}

/// The longest life that an authority of life `ca_ttl` can give at any moment of its service: the time between its
/// replacement and its end.
pub fn longest_guaranteed(ca_ttl: Duration) -> Duration {
    (ca_ttl / 6).min(ACTIVATION_LIMIT)
}

/// The lives a server gives by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SvidTtls {
    /// Authorities of each kind.
    pub ca: Duration,
    /// X.509-SVIDs of workloads, and of the server itself.
    pub x509: Duration,
    /// JWT-SVIDs.
    pub jwt: Duration,
    /// WIT-SVIDs.
    pub wit: Duration,
    /// X.509-SVIDs of agents.
    pub agent: Duration,
}

impl SvidTtls {
    /// What an entry asks for, if anything, and what SVIDs of that kind have otherwise. WIT-SVIDs share the setting of its
    /// X.509-SVIDs.
    pub fn of_entry(&self, kind: Kind, entry: &Entry) -> (Option<Duration>, Duration) {
        let (asked, usual) = match kind {
            Kind::X509 => (entry.x509_svid_ttl, self.x509),
            Kind::Jwt => (entry.jwt_svid_ttl, self.jwt),
            Kind::Wit => (entry.x509_svid_ttl, self.wit),
            Kind::Agent => (0, self.agent),
            Kind::Authority => (0, self.ca),
        };
        ((asked > 0).then(|| Duration::from_secs(asked.into())), usual)
    }

    /// The settings that the authority cannot always keep, as `(setting, its value)`: SVIDs issued late in the
    /// authority's service would end with it. Compare [`longest_guaranteed`].
    pub fn too_long(&self) -> Vec<(&'static str, Duration)> {
        let limit = longest_guaranteed(self.ca);
        [("x509", self.x509), ("jwt", self.jwt), ("wit", self.wit), ("agent", self.agent)]
            .into_iter()
            .filter(|(_, ttl)| *ttl > limit)
            .collect()
    }
}

impl Default for SvidTtls {
    fn default() -> Self {
        const HOUR: Duration = Duration::from_secs(60 * 60);
        Self { ca: 24 * HOUR, x509: HOUR, jwt: HOUR / 12, wit: HOUR, agent: HOUR }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_unix_millis(1_000_700);

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_unix_seconds(seconds)
    }

    #[test]
    fn a_leaf_begins_early_and_ends_with_its_issuer() {
        let free = capped(Duration::from_secs(60), NOW, at(5000));
        assert_eq!((free.not_before, free.not_after, free.limited_by_issuer), (at(990), at(1060), false));
        let cut = capped(Duration::from_secs(60), NOW, at(1030));
        assert_eq!((cut.not_after, cut.limited_by_issuer), (at(1030), true));
        assert!(!cut.is_over(NOW));
        assert!(capped(Duration::from_secs(60), NOW, at(1000)).is_over(NOW));
    }

    #[test]
    fn a_token_begins_now() {
        let token = capped_token(Duration::from_secs(3), NOW, at(5000));
        assert_eq!((token.not_before, token.not_after), (at(1000), at(1003)));
    }

    #[test]
    fn defaults_fit_the_default_authority() {
        assert_eq!(SvidTtls::default().too_long(), []);
        assert_eq!(longest_guaranteed(Duration::from_secs(6)), Duration::from_secs(1));
        assert_eq!(longest_guaranteed(Duration::MAX), Duration::from_secs(7 * 86_400));
        let long = SvidTtls { agent: Duration::from_secs(5 * 3600), ..SvidTtls::default() };
        assert_eq!(long.too_long(), [("agent", Duration::from_secs(5 * 3600))]);
    }
}
