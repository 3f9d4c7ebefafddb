//! When to rotate: thresholds of authorities, renewal instants of SVIDs.
//!
//! A renewal instant is drawn once, when the SVID is issued. Drawing again at each check, as is common, makes the
//! earliest of all draws win, so that a fleet renews in a lump at the early end of the window instead of spread over it.

use crate::{BACKDATE, Timestamp};
use std::time::Duration;

/// An authority is replaced at most this long before its end, however long its life.
pub const ACTIVATION_LIMIT: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// The next authority is prepared at most this long before the end of the active one.
pub const PREPARATION_LIMIT: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// An availability target below this is not meaningful and is ignored.
pub const LEAST_AVAILABILITY_TARGET: Duration = Duration::from_secs(24 * 60 * 60);

const LEAST_TIME_BEFORE_TARGET: Duration = Duration::from_secs(12 * 60 * 60);
const TARGET_SPREAD: Duration = Duration::from_secs(10 * 60);

/// The instant after which the next authority is to be prepared: half of the life, at most 30 days, before the end.
pub fn prepare_at(issued_at: Timestamp, not_after: Timestamp) -> Timestamp {
    let life = not_after.saturating_since(issued_at);
    not_after.saturating_sub((life / 2).min(PREPARATION_LIMIT))
}

/// The instant after which the next authority is to be activated: a sixth of the life, at most 7 days, before the end.
pub fn activate_at(issued_at: Timestamp, not_after: Timestamp) -> Timestamp {
    let life = not_after.saturating_since(issued_at);
    not_after.saturating_sub((life / 6).min(ACTIVATION_LIMIT))
}

/// The instant at which an X.509-SVID with this validity is to be renewed, for a uniformly drawn number.
///
/// It lies at half of the life, up to a tenth of that half earlier or later. With an availability target (at least 24 h,
/// and only if the SVID lives more than 12 h longer) it lies so long before the end, and up to ten minutes earlier.
///
/// A certificate begins [`BACKDATE`] before it is issued, which would make one that lives for seconds look half spent
/// at birth; so that much is left out of its life, unless the certificate is too short to have been backdated.
pub fn renewal_instant(
    not_before: Timestamp,
    not_after: Timestamp,
    draw: u64,
    availability_target: Option<Duration>,
) -> Timestamp {
    let backdated = not_after.saturating_since(not_before) > BACKDATE;
    let issued_at = if backdated { not_before.saturating_add(BACKDATE) } else { not_before };
    renewal_after_issue(issued_at, not_after, draw, availability_target)
}

/// As [`renewal_instant`], for something whose instant of issue is known, such as a token.
pub fn renewal_after_issue(
    issued_at: Timestamp,
    not_after: Timestamp,
    draw: u64,
    availability_target: Option<Duration>,
) -> Timestamp {
    let life = not_after.saturating_since(issued_at);
    let target = availability_target.filter(|target| {
        *target >= LEAST_AVAILABILITY_TARGET
            && life.checked_sub(*target).is_some_and(|before| before > LEAST_TIME_BEFORE_TARGET)
    });
    let remaining = match target {
        Some(target) => target.saturating_add(portion(TARGET_SPREAD, draw)),
        None => {
            let half = life / 2;
            let tenth = half / 10;
            (half - tenth).saturating_add(portion(tenth * 2, draw))
        }
    };
    not_after.saturating_sub(remaining)
}

/// The part of `span`, to the millisecond, that the draw picks: uniform over 0 to the whole, both included.
fn portion(span: Duration, draw: u64) -> Duration {
    let choices = span.as_millis().saturating_add(1).min(u128::from(u64::MAX));
    let chosen = (u128::from(draw) * choices) >> 64;
    Duration::from_millis(u64::try_from(chosen).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_unix_seconds(0).saturating_add(Duration::from_secs(seconds))
    }

    #[test]
    fn a_day_is_prepared_at_12_and_activated_at_20_hours() {
        let (start, end) = (at(0), at(24 * 3600));
        assert_eq!(prepare_at(start, end), at(12 * 3600));
        assert_eq!(activate_at(start, end), at(20 * 3600));
    }

    #[test]
    fn long_lives_have_limits() {
        let year = at(365 * 86_400);
        assert_eq!(prepare_at(at(0), year), at(335 * 86_400));
        assert_eq!(activate_at(at(0), year), at(358 * 86_400));
    }

    #[test]
    fn seconds_keep_their_milliseconds() {
        assert_eq!(prepare_at(at(0), at(5)).unix_millis(), 2_500);
        assert_eq!(activate_at(at(0), at(5)).unix_millis(), 4_167);
    }

    #[test]
    fn half_life_and_a_tenth() {
        let (start, end) = (at(0), at(2 * 3600 + 10));
        assert_eq!(renewal_instant(start, end, 0, None), at(10 + 3600 + 360));
        assert_eq!(renewal_instant(start, end, u64::MAX, None), at(10 + 3600 - 360));
        let middle = renewal_instant(start, end, 1 << 63, None).unix_millis();
        assert!((middle - at(10 + 3600).unix_millis()).abs() <= 1);
    }

    #[test]
    fn a_short_life_is_counted_from_its_issue() {
        // Issued at 10 for 4 s, backdated to 0.
        for draw in [0, 1 << 63, u64::MAX] {
            let renewal = renewal_instant(at(0), at(14), draw, None).unix_millis();
            assert!((11_800..=12_200).contains(&renewal), "{renewal}");
        }
        // Not backdated at all.
        assert_eq!(renewal_instant(at(0), at(4), 1 << 63, None), at(2));
    }

    #[test]
    fn availability_target_needs_a_day_and_a_longer_life() {
        let life = 48 * HOUR;
        let (start, end) = (at(0), at(life.as_secs()));
        let renewal = |target| renewal_after_issue(start, end, 0, Some(target));
        assert_eq!(renewal(24 * HOUR), at(24 * 3600));
        assert_eq!(renewal_after_issue(start, end, u64::MAX, Some(24 * HOUR)), at(24 * 3600 - 600));
        let half_life = at(24 * 3600 + 8640);
        assert_eq!(renewal(24 * HOUR - Duration::from_secs(1)), half_life);
        assert_eq!(renewal(36 * HOUR), half_life, "12 h are not more than 12 h");
        assert_eq!(renewal(36 * HOUR - Duration::from_secs(1)), at(12 * 3600 + 1));
    }

    #[test]
    fn absurd_spans_do_not_panic() {
        let ends = [i64::MIN, -1, 0, 1, i64::MAX].map(Timestamp::from_unix_millis);
        for start in ends {
            for end in ends {
                for draw in [0, u64::MAX] {
                    let renewal = renewal_instant(start, end, draw, Some(Duration::MAX));
                    assert!(renewal <= end);
                    assert!(prepare_at(start, end) <= activate_at(start, end));
                }
            }
        }
    }
}
