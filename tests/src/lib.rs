//! Whole-system tests: the real daemons as processes, over real sockets.
//!
//! [`Deployment`] starts a server and an agent in a folder of its own and leaves nothing behind. The programs are
//! built before they are started (a build that has nothing to do takes a moment), so a test never runs yesterday's
//! server. Waiting is for a state, with a bound, and a failure says what was seen last ([`eventually`]).

pub mod deployment;
pub mod load;
pub mod programs;
pub mod usage;

use std::fmt::Display;
use std::time::{Duration, Instant};

pub use deployment::{Deployment, Settings};

/// Tries `probe` until it succeeds, for at most `bound`.
///
/// # Errors
/// When the bound is reached: what was waited for, and what the probe said last.
pub fn eventually<T, E: Display>(
    what: &str,
    bound: Duration,
    mut probe: impl FnMut() -> Result<T, E>,
) -> Result<T, String> {
    let deadline = Instant::now() + bound;
    loop {
        match probe() {
            Ok(value) => return Ok(value),
            Err(last) if Instant::now() >= deadline => {
                return Err(format!("waited {bound:?} for {what}; last seen: {last}"));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// A length from the environment, for tests that are short by default and long in continuous integration.
pub fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} must be a whole number, not {text:?}")),
        Err(_) => default,
    }
}

/// Says that a test did not run. Where `BONAFIDE_TEST_REQUIRE` names the test (or is `all`), that is a failure.
pub fn skipped(test: &str, why: &str) {
    let required = std::env::var("BONAFIDE_TEST_REQUIRE").unwrap_or_default();
    assert!(
        !required.split(',').any(|name| name == test || name == "all"),
        "{test} is required here but cannot run: {why}"
    );
    eprintln!("SKIPPED: {test}: {why}");
}
