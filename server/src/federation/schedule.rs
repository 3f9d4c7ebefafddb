//! When a peer is asked again, and what of its answer is stored. Pure: no clock, no network.

use std::time::Duration;

use bonafide_identity::{Bundle, JwtAuthority, X509Authority};
use bonafide_pki::inspect;
use bonafide_runtime::backoff::spread;

/// Attempts in the time that the hint names, so that one that fails costs nothing.
const ATTEMPTS: u32 = 4;
/// A smaller hint counts as this one.
const SMALLEST_HINT: Duration = Duration::from_secs(60);
/// The pace for a bundle whose document names none (SPIFFE Federation, section 4.2).
const DEFAULT_PACE: Duration = Duration::from_secs(300);
/// The longest pace: a hint of years must not keep a revocation from being seen.
const LONGEST_PACE: Duration = Duration::from_secs(24 * 3600);
/// The pace without any bundle.
const BOOTSTRAP_PACE: Duration = Duration::from_secs(60);
/// The part of an authority's life that is the hint where the bundle says 0.
const PART_OF_LIFE: u32 = 10;
/// The first wait after a failure; it doubles up to the pace.
const FIRST_RETRY: Duration = Duration::from_secs(2);
/// Between two requests that a peer holds.
const PAUSE: Duration = Duration::from_millis(100);
/// The wait after a change, while a peer goes on changing; it doubles.
const FIRST_CHANGE: Duration = Duration::from_secs(2);
/// The longest wait after a change.
const LONGEST_CHANGE: Duration = Duration::from_secs(32);
/// After a time without changes the next one counts as the first.
pub const QUIET: Duration = Duration::from_secs(64);
/// The first wait after a held request that came back early and with nothing new.
const FIRST_EARLY: Duration = Duration::from_secs(1);

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The peer answered at its own pace.
    Answered,
    /// The peer holds requests until something changes.
    Held {
        /// It brought a change, or was held for as long as it was meant to be.
        well: bool,
        /// How many before it, in a row, did not.
        early: u32,
    },
    /// It brought a change to a peer that holds requests, after so many others that followed closely on each other. Each
    /// change is written to the disk and goes to all agents, so that a peer must not set the pace of that.
    Changed(u32),
    /// It failed, for the so-many-th time in a row, counted from 0.
    Failed(u32),
}

/// The pace of polling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace(Duration);

impl Pace {
    /// Without a bundle.
    pub const BOOTSTRAP: Self = Self(BOOTSTRAP_PACE);

    /// For `bundle`, whose document names `hint` in seconds, or none.
    pub fn of(bundle: &Bundle, hint: Option<u64>) -> Self {
        let hint = match hint {
            None => return Self(DEFAULT_PACE),
            Some(0) => {
                shortest_life(&bundle.x509_authorities).map_or(SMALLEST_HINT, |life| life / PART_OF_LIFE)
            }
            Some(seconds) => Duration::from_secs(seconds),
        };
        Self((hint.max(SMALLEST_HINT) / ATTEMPTS).min(LONGEST_PACE))
    }

    /// For a bundle that is stored, of which nobody knows whether its document named a hint.
    pub fn of_stored(bundle: Option<&Bundle>) -> Self {
        bundle.map_or(Self::BOOTSTRAP, |bundle| Self::of(bundle, Some(bundle.refresh_hint)))
    }
}

/// How long to wait before the next request; `draw` is uniform over all of `u64`.
pub fn next(pace: Pace, ended: Ended, draw: u64) -> Duration {
    let doubled = |first: Duration, times: u32| first.saturating_mul(1 << times.min(20)).min(pace.0);
    match ended {
        Ended::Answered => pace.0,
        Ended::Held { well: true, .. } => PAUSE,
        Ended::Held { well: false, early } => doubled(FIRST_EARLY, early),
        Ended::Changed(before) => doubled(FIRST_CHANGE, before).min(LONGEST_CHANGE),
        Ended::Failed(before) => spread(doubled(FIRST_RETRY, before), draw),
    }
}

fn shortest_life(authorities: &[X509Authority]) -> Option<Duration> {
    let lives = authorities.iter().filter_map(|authority| inspect(&authority.certificate).ok());
    lives.map(|info| info.not_after.saturating_since(info.not_before)).min()
}

/// What becomes of a fetched bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It is stored.
    Store,
    /// What is stored stays.
    Keep,
    /// What is stored stays, until the next poll brings the same again.
    Confirm,
}

/// The same content is news only under a later number. Other content under a smaller number is a peer that was set up anew
/// and counts from the beginning, or an older copy from a cache or from one of several servers that is behind, which would
/// bring back what has been revoked: it is news when two polls in a row agree. `before` is what the poll before this one
/// brought and was not stored for that reason.
pub fn decide(stored: Option<&Bundle>, fetched: &Bundle, before: Option<&Bundle>) -> Decision {
    let Some(stored) = stored else { return Decision::Store };
    let older = fetched.sequence_number < stored.sequence_number;
    if same(stored, fetched) {
        let later = fetched.sequence_number > stored.sequence_number;
        return if later { Decision::Store } else { Decision::Keep };
    }
    let again = |before: &Bundle| before.sequence_number == fetched.sequence_number && same(before, fetched);
    if older && !before.is_some_and(again) { Decision::Confirm } else { Decision::Store }
}

/// Whether an endpoint that was authenticated with `trusted` still would be, now that `stored` is what is known of its trust
/// domain: somebody may have replaced it just because it is no longer to be believed.
pub fn still_trusted(trusted: &Bundle, stored: Option<&Bundle>) -> bool {
    stored.is_some_and(|stored| {
        members(&trusted.x509_authorities, &stored.x509_authorities, |root| root.certificate.as_slice())
    })
}

/// Whether both would be published as the same document, apart from the number: what a document cannot say (`tainted`, the
/// end of a key) does not count.
pub fn same(a: &Bundle, b: &Bundle) -> bool {
    a.refresh_hint == b.refresh_hint
        && members(&a.x509_authorities, &b.x509_authorities, |root| root.certificate.as_slice())
        && members(&a.jwt_authorities, &b.jwt_authorities, key)
        && members(&a.wit_authorities, &b.wit_authorities, key)
}

fn key(authority: &JwtAuthority) -> (&str, &[u8]) {
    (&authority.key_id, &authority.public_key)
}

/// Sorted, since a peer decides how many there are.
fn members<'a, T, K: Ord>(a: &'a [T], b: &'a [T], key: impl Fn(&'a T) -> K) -> bool {
    let sorted = |members: &'a [T]| {
        let mut keys: Vec<K> = members.iter().map(&key).collect();
        keys.sort_unstable();
        keys
    };
    a.len() == b.len() && sorted(a) == sorted(b)
}

#[cfg(test)]
mod tests {
    use bonafide_identity::{Timestamp, TrustDomain};
    use bonafide_testkit::TestAuthority;
    use proptest::prelude::*;

    use super::*;

    fn bundle(lives: &[u64]) -> Bundle {
        let trust_domain = TrustDomain::parse("other.org").unwrap();
        let begin = Timestamp::from_unix_seconds(1_767_225_600);
        let mut bundle = Bundle::empty(trust_domain.clone());
        for life in lives {
            let authority =
                TestAuthority::new(&trust_domain, begin, begin.saturating_add(Duration::from_secs(*life)));
            let certificate = authority.certificate().to_vec();
            bundle.x509_authorities.push(X509Authority { certificate, tainted: false });
        }
        bundle
    }

    fn pace(lives: &[u64], hint: Option<u64>) -> u64 {
        next(Pace::of(&bundle(lives), hint), Ended::Answered, 0).as_secs()
    }

    #[test]
    fn the_pace_is_a_quarter_of_the_hint() {
        assert_eq!(pace(&[], None), 300);
        assert_eq!(pace(&[3600], None), 300);
        assert_eq!(pace(&[], Some(300)), 75);
        assert_eq!(pace(&[], Some(1)), 15);
        // No hint: a tenth of the shortest life, but no less than a minute, and of that a quarter.
        assert_eq!(pace(&[86_400, 36_000], Some(0)), 900);
        assert_eq!(pace(&[60], Some(0)), 15);
        assert_eq!(pace(&[], Some(0)), 15);
        assert_eq!(pace(&[], Some(u64::MAX)), 86_400);
        assert_eq!(next(Pace::of_stored(None), Ended::Answered, 0).as_secs(), 60);
        let mut stored = bundle(&[36_000]);
        assert_eq!(next(Pace::of_stored(Some(&stored)), Ended::Answered, 0).as_secs(), 900);
        stored.refresh_hint = 600;
        assert_eq!(next(Pace::of_stored(Some(&stored)), Ended::Answered, 0).as_secs(), 150);
    }

    #[test]
    fn failures_back_off_to_the_pace() {
        let pace = Pace::of(&bundle(&[]), Some(300));
        let waits: Vec<u64> =
            (0..8).map(|before| next(pace, Ended::Failed(before), u64::MAX).as_secs()).collect();
        assert_eq!(waits, [2, 4, 8, 16, 32, 64, 75, 75]);
        assert_eq!(next(pace, Ended::Failed(0), 0), FIRST_RETRY / 2);
        assert_eq!(next(Pace::BOOTSTRAP, Ended::Failed(u32::MAX), u64::MAX).as_secs(), 60);
    }

    #[test]
    fn a_peer_that_says_it_holds_and_does_not_is_asked_less_and_less() {
        let pace = Pace::of(&bundle(&[]), Some(300));
        assert_eq!(next(pace, Ended::Held { well: true, early: 0 }, 0), PAUSE);
        let waits: Vec<u64> =
            (0..9).map(|early| next(pace, Ended::Held { well: false, early }, 0).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 75, 75]);
    }

    #[test]
    fn what_is_stored() {
        let mut stored = bundle(&[3600]);
        stored.sequence_number = 7;
        let with = |sequence: u64, change: fn(&mut Bundle)| {
            let mut fetched = stored.clone();
            fetched.sequence_number = sequence;
            change(&mut fetched);
            decide(Some(&stored), &fetched, None)
        };
        assert_eq!(decide(None, &stored, None), Decision::Store);
        assert_eq!(with(7, |_| ()), Decision::Keep);
        assert_eq!(with(8, |_| ()), Decision::Store);
        assert_eq!(with(6, |_| ()), Decision::Keep, "the same content never goes back");
        assert_eq!(with(6, |new| new.x509_authorities.clear()), Decision::Confirm, "nor does other, at once");
        let mut older = stored.clone();
        older.sequence_number = 6;
        older.x509_authorities.clear();
        assert_eq!(decide(Some(&stored), &older, Some(&older)), Decision::Store, "two polls agree");
        let other = Bundle { refresh_hint: 5, ..older.clone() };
        assert_eq!(decide(Some(&stored), &older, Some(&other)), Decision::Confirm);
        let other = Bundle { sequence_number: 5, ..older.clone() };
        assert_eq!(decide(Some(&stored), &older, Some(&other)), Decision::Confirm);
        assert_eq!(with(7, |new| new.refresh_hint = 9), Decision::Store);
        let key = JwtAuthority { key_id: "a".into(), public_key: vec![1], expires_at: None, tainted: false };
        let mut known = stored.clone();
        known.jwt_authorities.push(JwtAuthority {
            expires_at: Some(Timestamp::from_unix_seconds(9)),
            tainted: true,
            ..key.clone()
        });
        let mut fetched = stored.clone();
        fetched.jwt_authorities.push(key.clone());
        assert_eq!(decide(Some(&known), &fetched, None), Decision::Keep, "a document cannot say these");
        fetched.jwt_authorities[0].public_key = vec![2];
        assert_eq!(decide(Some(&known), &fetched, None), Decision::Store);
        fetched.jwt_authorities = vec![key];
        fetched.wit_authorities = fetched.jwt_authorities.clone();
        assert_eq!(decide(Some(&known), &fetched, None), Decision::Store);
    }

    #[test]
    fn a_peer_that_goes_on_changing_is_asked_less_often() {
        let pace = Pace::of(&bundle(&[]), Some(300));
        let waits: Vec<u64> = (0..7).map(|before| next(pace, Ended::Changed(before), 0).as_secs()).collect();
        assert_eq!(waits, [2, 4, 8, 16, 32, 32, 32]);
    }

    #[test]
    fn what_was_fetched_with_other_trust_is_noticed() {
        let (trusted, other) = (bundle(&[60, 70]), bundle(&[60]));
        let mut turned = trusted.clone();
        turned.x509_authorities.reverse();
        turned.sequence_number += 1;
        assert!(still_trusted(&trusted, Some(&turned)));
        assert!(!still_trusted(&trusted, Some(&other)));
        assert!(!still_trusted(&trusted, None));
    }

    proptest! {
        #[test]
        fn no_answer_makes_the_poller_spin_or_sleep_for_ever(
            hint in any::<Option<u64>>(), count in any::<u32>(), draw in any::<u64>()
        ) {
            let pace = Pace::of(&bundle(&[]), hint);
            for ended in [
                Ended::Answered,
                Ended::Held { well: true, early: count },
                Ended::Held { well: false, early: count },
                Ended::Changed(count),
                Ended::Failed(count),
            ] {
                let wait = next(pace, ended, draw);
                prop_assert!(wait >= PAUSE && wait <= LONGEST_PACE, "{wait:?}");
            }
        }
    }
}
