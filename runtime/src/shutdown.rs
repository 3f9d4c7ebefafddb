//! One signal that tells everything in the process to stop.
//!
//! A [`Shutdown`] is cheap to clone and only ever goes one way. [`Shutdown::child`] makes a narrower one: triggering
//! the parent triggers the child, not the reverse.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Told once, heard by everyone who holds a clone.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    token: CancellationToken,
}

impl Shutdown {
    /// A shutdown that nobody has triggered.
    pub fn new() -> Self {
        Self::default()
    }

    /// Tells everyone to stop. Later calls change nothing.
    pub fn trigger(&self) {
        self.token.cancel();
    }

    /// Waits until somebody has triggered it; at once when that has happened already.
    pub async fn triggered(&self) {
        self.token.cancelled().await;
    }

    /// Whether it has been triggered.
    pub fn is_triggered(&self) -> bool {
        self.token.is_cancelled()
    }

    /// A shutdown of a part: triggered with this one, or alone.
    pub fn child(&self) -> Self {
        Self { token: self.token.child_token() }
    }
}

/// Triggers `shutdown` at the first SIGTERM or SIGINT, then returns. It returns, too, when someone else has triggered it.
///
/// A second signal ends the process at once with status 128 + the signal's number, so that an operator never has to
/// wait for a drain that hangs.
///
/// # Errors
/// When the signal handlers cannot be installed.
pub async fn on_signals(shutdown: Shutdown) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let name = tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
        () = shutdown.triggered() => return Ok(()),
    };
    tracing::info!(signal = name, "stopping; a second signal ends the process at once");
    shutdown.trigger();
    // Detached on purpose: it must outlive the group that waits for everything else to end.
    tokio::spawn(async move {
        let kind = tokio::select! {
            _ = terminate.recv() => SignalKind::terminate(),
            _ = interrupt.recv() => SignalKind::interrupt(),
        };
        tracing::warn!("second signal: leaving without waiting for open streams");
        std::process::exit(128 + kind.as_raw_value());
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_parent_stops_its_children_and_not_the_reverse() {
        let parent = Shutdown::new();
        let (first, second) = (parent.child(), parent.child());
        first.trigger();
        assert!(first.is_triggered() && !parent.is_triggered() && !second.is_triggered());
        parent.trigger();
        second.triggered().await;
        assert!(parent.clone().is_triggered());
    }
}
