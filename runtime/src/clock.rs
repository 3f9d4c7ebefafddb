//! The time of day, behind a seam.
//!
//! Decisions take `now` as an argument. Only tasks and the edge where a request enters read a clock, once, through
//! [`Clock`]; a test hands in a closure or a manual clock.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bonafide_identity::Timestamp;

/// Tells the time of day.
pub trait Clock: Send + Sync {
    /// The present time.
    fn now(&self) -> Timestamp;
}

/// A clock shared by many tasks.
pub type SharedClock = Arc<dyn Clock>;

/// The clock of the operating system. It may jump in both directions when an operator or NTP sets it.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl SystemClock {
    /// The system clock, ready to share.
    pub fn shared() -> SharedClock {
        Arc::new(Self)
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let millis = match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => i64::try_from(since.as_millis()).unwrap_or(i64::MAX),
            Err(before) => i64::try_from(before.duration().as_millis()).map_or(i64::MIN, |millis| -millis),
        };
        Timestamp::from_unix_millis(millis)
    }
}

/// Any closure that tells the time is a clock.
impl<F> Clock for F
where
    F: Fn() -> Timestamp + Send + Sync,
{
    fn now(&self) -> Timestamp {
        self()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_clock_tells_a_plausible_time() {
        // 2025-01-01: no machine that runs this test has an earlier date unless its clock is broken.
        assert!(SystemClock.now() > Timestamp::from_unix_seconds(1_735_689_600));
    }

    #[test]
    fn a_closure_is_a_clock() {
        let clock: SharedClock = Arc::new(|| Timestamp::from_unix_seconds(7));
        assert_eq!(clock.now(), Timestamp::from_unix_seconds(7));
    }
}
