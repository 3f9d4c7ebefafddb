//! Instants and spans of validity.
//!
//! Certificates count seconds, but rotation under test runs on lifetimes of a few seconds, where a rounding to seconds
//! would already be a tenth of the life. So instants are milliseconds everywhere inside and seconds only on the wire.
//! All arithmetic saturates: a date read from a peer must never be able to panic or to wrap.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// An instant: milliseconds since the Unix epoch, UTC, negative before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(i64);

impl Timestamp {
    /// The instant of a count of seconds since the Unix epoch; saturates at the ends of what milliseconds can hold.
    pub const fn from_unix_seconds(seconds: i64) -> Self {
        Self(seconds.saturating_mul(1000))
    }

    /// The instant of a count of milliseconds since the Unix epoch.
    pub const fn from_unix_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// Whole seconds since the Unix epoch, rounded towards the past, as certificates and the wire count them.
    pub const fn unix_seconds(self) -> i64 {
        self.0.div_euclid(1000)
    }

    /// Milliseconds since the Unix epoch.
    pub const fn unix_millis(self) -> i64 {
        self.0
    }

    /// The instant `duration` later (to the millisecond, rounded down).
    pub fn saturating_add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(millis(duration)))
    }

    /// The instant `duration` earlier (to the millisecond, the duration rounded down).
    pub fn saturating_sub(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(millis(duration)))
    }

    /// The time since `earlier`; zero when `earlier` is in fact later.
    pub fn saturating_since(self, earlier: Timestamp) -> Duration {
        if self <= earlier { Duration::ZERO } else { Duration::from_millis(self.0.abs_diff(earlier.0)) }
    }

    /// The same instant without its fraction of a second, as it reads after a trip through a certificate.
    pub const fn floor_to_second(self) -> Self {
        Self::from_unix_seconds(self.unix_seconds())
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// The validity that something to be signed will get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    /// First instant of validity (backdated).
    pub not_before: Timestamp,
    /// Last instant of validity.
    pub not_after: Timestamp,
    /// True when the promised life was cut short because the issuer ends first.
    pub limited_by_issuer: bool,
}

impl Lifetime {
    /// True when nothing valid can be made: the end does not lie after `now`.
    pub fn is_over(&self, now: Timestamp) -> bool {
        self.not_after <= now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_round_towards_the_past() {
        assert_eq!(Timestamp::from_unix_millis(1_999).unix_seconds(), 1);
        assert_eq!(Timestamp::from_unix_millis(-1).unix_seconds(), -1);
        assert_eq!(Timestamp::from_unix_millis(-1_000).unix_seconds(), -1);
        assert_eq!(Timestamp::from_unix_millis(-1_001).unix_seconds(), -2);
    }

    #[test]
    fn arithmetic_saturates() {
        let end = Timestamp::from_unix_millis(i64::MAX);
        let start = Timestamp::from_unix_millis(i64::MIN);
        assert_eq!(end.saturating_add(Duration::MAX), end);
        assert_eq!(start.saturating_sub(Duration::MAX), start);
        assert_eq!(end.saturating_since(start), Duration::from_millis(u64::MAX));
        assert_eq!(start.saturating_since(end), Duration::ZERO);
        assert_eq!(Timestamp::from_unix_seconds(i64::MAX), end);
        assert!(start.floor_to_second() <= Timestamp::from_unix_seconds(0));
    }
}
