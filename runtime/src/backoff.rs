//! Growing delays between attempts.
//!
//! The caller draws the randomness, so a test gets the same delays each time. Each delay is spread over the upper
//! half of its step: a thousand agents that lost one server at the same moment must not come back at the same moment.

use std::time::Duration;

/// The delays of one sequence of attempts.
#[derive(Clone, Debug)]
pub struct Backoff {
    initial: Duration,
    max: Duration,
    multiplier: f64,
    step: Duration,
}

impl Backoff {
    /// Starts at `initial`, grows by `multiplier` (at least 1) after each attempt, never above `max`.
    pub fn new(initial: Duration, max: Duration, multiplier: f64) -> Self {
        let initial = initial.min(max);
        let multiplier = if multiplier.is_finite() { multiplier.max(1.0) } else { 1.0 };
        Self { initial, max, multiplier, step: initial }
    }

    /// The delay before the next attempt: between half of the present step and all of it, chosen by `draw`, a number
    /// uniform over all of `u64`.
    pub fn next(&mut self, draw: u64) -> Duration {
        let delay = spread(self.step, draw);
        let grown = self.step.as_secs_f64() * self.multiplier;
        // Compared as numbers first: a duration cannot hold everything that a float can.
        self.step = if grown >= self.max.as_secs_f64() { self.max } else { Duration::from_secs_f64(grown) };
        delay
    }

    /// Back to the first step, after an attempt that succeeded.
    pub fn reset(&mut self) {
        self.step = self.initial;
    }
}

/// A point in the upper half of `step`, uniform in `draw`.
pub fn spread(step: Duration, draw: u64) -> Duration {
    let half = step / 2;
    half + half.mul_f64(draw as f64 / u64::MAX as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_the_maximum_and_restart() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(5), 2.0);
        let delays: Vec<_> = (0..4).map(|_| backoff.next(u64::MAX).as_secs()).collect();
        assert_eq!(delays, [1, 2, 4, 5]);
        backoff.reset();
        assert_eq!(backoff.next(0), Duration::from_millis(500));
    }

    #[test]
    fn no_argument_makes_it_panic_or_stand_still_at_zero_time() {
        for multiplier in [f64::NAN, f64::INFINITY, -3.0, 1e300] {
            let mut backoff = Backoff::new(Duration::from_secs(1), Duration::MAX, multiplier);
            for draw in [0, 1, u64::MAX] {
                assert!(backoff.next(draw) >= Duration::from_millis(500));
            }
        }
        assert_eq!(
            Backoff::new(Duration::from_secs(9), Duration::from_secs(3), 2.0).next(u64::MAX),
            Duration::from_secs(3)
        );
    }
}
