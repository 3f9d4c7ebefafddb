//! A clock that stands still until it is told otherwise.

use bonafide_identity::Timestamp;
use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

/// A clock moved by hand. Clones show the same time.
#[derive(Clone, Debug)]
pub struct ManualClock {
    millis: Arc<AtomicI64>,
}

impl ManualClock {
    /// A clock that shows `start`.
    pub fn at(start: Timestamp) -> Self {
        Self { millis: Arc::new(AtomicI64::new(start.unix_millis())) }
    }

    /// The time it shows.
    pub fn now(&self) -> Timestamp {
        Timestamp::from_unix_millis(self.millis.load(Ordering::SeqCst))
    }

    /// Moves it forward and returns the new time.
    pub fn advance(&self, by: Duration) -> Timestamp {
        let add = |now| Timestamp::from_unix_millis(now).saturating_add(by).unix_millis();
        let former = self
            .millis
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |now| Some(add(now)))
            .unwrap_or_else(|unchanged| unchanged);
        Timestamp::from_unix_millis(add(former))
    }

    /// Sets it to any time, also an earlier one.
    pub fn set(&self, to: Timestamp) {
        self.millis.store(to.unix_millis(), Ordering::SeqCst);
    }

    /// The clock as a closure that tells its time.
    pub fn as_fn(&self) -> impl Fn() -> Timestamp + Send + Sync + Clone + 'static {
        let clock = self.clone();
        move || clock.now()
    }
}

impl Default for ManualClock {
    /// A clock that shows 2026-01-01T00:00:00Z, a time at which certificates of any library are content.
    fn default() -> Self {
        Self::at(Timestamp::from_unix_seconds(1_767_225_600))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_and_closures_show_the_same_time() {
        let clock = ManualClock::default();
        let start = clock.now();
        let tell = clock.as_fn();
        assert_eq!(
            clock.clone().advance(Duration::from_millis(1500)).saturating_since(start).as_millis(),
            1500
        );
        assert_eq!(tell(), clock.now());
        clock.set(start);
        assert_eq!(tell(), start);
    }
}
