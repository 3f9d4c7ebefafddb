//! How often workloads may call: a token bucket for each method and each set of selectors.
//!
//! Processes with the same selectors are the same workload here, so that one which starts itself anew over and over does
//! not get a new allowance with each process. The number of buckets is bounded: one that is full again says the same as
//! none. A caller that would need a bucket when there is room for no more shares one with all others like it.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use bonafide_identity::{SelectorSet, Timestamp};

/// Calls in a second, for each method; 0 is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RateLimits {
    /// FetchX509SVID.
    pub fetch_x509_svid: u32,
    /// FetchJWTSVID.
    pub fetch_jwt_svid: u32,
    /// FetchX509Bundles.
    pub fetch_x509_bundles: u32,
    /// FetchJWTBundles.
    pub fetch_jwt_bundles: u32,
}

impl RateLimits {
    fn of(&self, method: &str) -> u32 {
        match method {
            "FetchX509SVID" => self.fetch_x509_svid,
            "FetchJWTSVID" => self.fetch_jwt_svid,
            "FetchX509Bundles" => self.fetch_x509_bundles,
            "FetchJWTBundles" => self.fetch_jwt_bundles,
            _ => 0,
        }
    }
}

/// Counts calls.
pub struct Limits {
    limits: RateLimits,
    buckets: Mutex<HashMap<(&'static str, Option<SelectorSet>), Bucket>>,
}

/// What is left, in thousandths of a call, at an instant.
#[derive(Clone, Copy)]
struct Bucket {
    left: u64,
    at: Timestamp,
}

impl Bucket {
    fn at(self, now: Timestamp, limit: u32) -> Self {
        let full = u64::from(limit) * CALL;
        // A thousandth of a call for each millisecond and each call in a second.
        let millis = u64::try_from(now.saturating_since(self.at).as_millis()).unwrap_or(u64::MAX);
        let left = self.left.saturating_add(millis.saturating_mul(u64::from(limit))).min(full);
        Self { left, at: self.at.max(now) }
    }
}

impl Limits {
    /// With these limits.
    #[must_use]
    pub fn new(limits: RateLimits) -> Self {
        Self { limits, buckets: Mutex::default() }
    }

    /// Whether a call may go on, which is counted if so.
    #[must_use]
    pub fn admits(&self, method: &'static str, selectors: &SelectorSet, now: Timestamp) -> bool {
        let limit = self.limits.of(method);
        if limit == 0 {
            return true;
        }
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let mut key = (method, Some(selectors.clone()));
        if !buckets.contains_key(&key) && buckets.len() >= MOST_BUCKETS {
            let limits = self.limits;
            buckets.retain(|(method, _), bucket| {
                let limit = limits.of(method);
                bucket.at(now, limit).left < u64::from(limit) * CALL
            });
            if buckets.len() >= MOST_BUCKETS {
                key.1 = None;
            }
        }
        let full = Bucket { left: u64::from(limit) * CALL, at: now };
        let bucket = buckets.entry(key).or_insert(full);
        *bucket = bucket.at(now, limit);
        let admitted = bucket.left >= CALL;
        if admitted {
            bucket.left -= CALL;
        }
        admitted
    }
}

const CALL: u64 = 1000;
const MOST_BUCKETS: usize = 4096;

#[cfg(test)]
mod tests {
    use bonafide_testkit::selectors;

    use super::*;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_unix_millis(millis)
    }

    fn limits() -> Limits {
        Limits::new(RateLimits { fetch_x509_svid: 2, fetch_jwt_svid: 1, ..RateLimits::default() })
    }

    #[test]
    fn each_method_and_each_set_of_selectors_has_its_own_allowance() {
        let limits = limits();
        let (a, b) = (selectors(["unix:uid:1"]), selectors(["unix:uid:1", "unix:gid:1"]));
        let ask = |method, of: &SelectorSet, millis| limits.admits(method, of, at(millis));
        assert!(ask("FetchX509SVID", &a, 0) && ask("FetchX509SVID", &a, 0));
        assert!(!ask("FetchX509SVID", &a, 0));
        assert!(ask("FetchJWTSVID", &a, 0) && !ask("FetchJWTSVID", &a, 0));
        assert!(ask("FetchX509SVID", &b, 0));
        assert!((0..100).all(|_| ask("FetchJWTBundles", &a, 0) && ask("ValidateJWTSVID", &a, 0)));
        // Half a second is one call of two, and a long pause no more than two.
        assert!(!ask("FetchX509SVID", &a, 499));
        assert!(ask("FetchX509SVID", &a, 500) && !ask("FetchX509SVID", &a, 500));
        assert!(ask("FetchX509SVID", &a, 60_000) && ask("FetchX509SVID", &a, 60_000));
        assert!(!ask("FetchX509SVID", &a, 60_000));
        // A clock that goes back gives nothing away.
        assert!(!ask("FetchX509SVID", &a, 0) && !ask("FetchX509SVID", &a, 60_000));
    }

    #[test]
    fn callers_cannot_make_buckets_without_end() {
        let limits = limits();
        let of = |number: usize| selectors([format!("unix:uid:{number}").as_str()]);
        for number in 0..MOST_BUCKETS {
            assert!(limits.admits("FetchX509SVID", &of(number), at(0)));
        }
        // No room: whoever comes now shares.
        let admitted =
            (0..10).filter(|n| limits.admits("FetchX509SVID", &of(MOST_BUCKETS + n), at(0))).count();
        assert_eq!(admitted, 2);
        assert!(limits.buckets.lock().unwrap().len() <= MOST_BUCKETS + 1);
        // Buckets that are full again make room.
        assert!(limits.admits("FetchX509SVID", &of(1_000_000), at(1000)));
        assert_eq!(limits.buckets.lock().unwrap().len(), 1);
    }
}
