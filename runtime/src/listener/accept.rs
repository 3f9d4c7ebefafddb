//! Accepting: what goes on after an error, and what does not.

use std::future::Future;
use std::io;
use std::time::Duration;

use tokio::time::Instant;

use super::ListenerError;
use crate::shutdown::Shutdown;

/// Something that connections come from. Tests script it.
pub(crate) trait Accept: Send + Sync {
    /// A connection.
    type Connection: Send;
    /// Waits for the next one. Dropping the future loses none.
    fn accept(&self) -> impl Future<Output = io::Result<Self::Connection>> + Send;
}

impl Accept for tokio::net::UnixListener {
    type Connection = tokio::net::UnixStream;

    async fn accept(&self) -> io::Result<Self::Connection> {
        self.accept().await.map(|(stream, _)| stream)
    }
}

impl Accept for tokio::net::TcpListener {
    type Connection = (tokio::net::TcpStream, std::net::SocketAddr);

    async fn accept(&self) -> io::Result<Self::Connection> {
        self.accept().await
    }
}

/// The first wait after the system has run out of something, and the longest.
const FIRST_WAIT: Duration = Duration::from_millis(10);
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// At most one warning in this time.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// The connections of a listener, one after the other, until the shutdown.
pub(crate) struct Connections<A> {
    name: &'static str,
    listener: A,
    shutdown: Shutdown,
    wait: Duration,
    warnings: RateLimited,
    errors: metrics::Counter,
}

impl<A: Accept> Connections<A> {
    pub(crate) fn new(name: &'static str, listener: A, shutdown: Shutdown) -> Self {
        let errors = metrics::counter!("bonafide_listener_accept_errors_total", "listener" => name);
        Self { name, listener, shutdown, wait: FIRST_WAIT, warnings: RateLimited::new(WARN_EVERY), errors }
    }

    /// Waits for the next connection; `None` after the shutdown.
    ///
    /// # Errors
    /// When the listener itself is broken.
    pub(crate) async fn next(&mut self) -> Result<Option<A::Connection>, ListenerError> {
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.shutdown.triggered() => return Ok(None),
                accepted = self.listener.accept() => accepted,
            };
            let error = match accepted {
                Ok(connection) => {
                    self.wait = FIRST_WAIT;
                    return Ok(Some(connection));
                }
                Err(error) => error,
            };
            self.errors.increment(1);
            match classify(&error) {
                Verdict::Connection => {}
                Verdict::Exhausted => {
                    if let Some(suppressed) = self.warnings.allow() {
                        tracing::warn!(listener = self.name, %error, suppressed, "cannot accept connections; waiting for resources");
                    }
                    tokio::select! {
                        () = self.shutdown.triggered() => return Ok(None),
                        () = tokio::time::sleep(self.wait) => {}
                    }
                    self.wait = (self.wait * 2).min(LONGEST_WAIT);
                }
                Verdict::Broken => return Err(ListenerError::Accept { listener: self.name, source: error }),
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// The connection failed, not the listener.
    Connection,
    /// The system lacks something; waiting helps.
    Exhausted,
    /// The listener is no listener.
    Broken,
}

fn classify(error: &io::Error) -> Verdict {
    use nix::errno::Errno;
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EBADF | Errno::EINVAL | Errno::ENOTSOCK | Errno::EOPNOTSUPP | Errno::EFAULT) => {
            Verdict::Broken
        }
        // accept(2): errors that wait on the new socket are returned by accept and must be treated like EAGAIN.
        Some(
            Errno::ECONNABORTED
            | Errno::ECONNRESET
            | Errno::EINTR
            | Errno::EAGAIN
            | Errno::ENETDOWN
            | Errno::EPROTO
            | Errno::ENOPROTOOPT
            | Errno::EHOSTDOWN
            | Errno::ENONET
            | Errno::EHOSTUNREACH
            | Errno::ENETUNREACH,
        ) => Verdict::Connection,
        // EMFILE, ENFILE, ENOBUFS, ENOMEM, and anything unknown: a wrong guess must not spin.
        _ => Verdict::Exhausted,
    }
}

/// Lets something happen once in a while and counts what it held back.
pub(super) struct RateLimited {
    every: Duration,
    last: Option<Instant>,
    suppressed: u64,
}

impl RateLimited {
    pub(super) fn new(every: Duration) -> Self {
        Self { every, last: None, suppressed: 0 }
    }

    /// How many times it was held back since the last time, when it may happen now.
    pub(super) fn allow(&mut self) -> Option<u64> {
        let now = Instant::now();
        if self.last.is_some_and(|last| now.duration_since(last) < self.every) {
            self.suppressed += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use nix::errno::Errno;

    use super::*;

    /// Answers from a script, its last line again and again.
    struct Script {
        lines: Mutex<VecDeque<Result<u32, Errno>>>,
        calls: AtomicUsize,
    }

    impl Script {
        fn new(lines: impl IntoIterator<Item = Result<u32, Errno>>) -> Self {
            Self { lines: Mutex::new(lines.into_iter().collect()), calls: AtomicUsize::new(0) }
        }
    }

    impl Accept for &Script {
        type Connection = u32;

        async fn accept(&self) -> io::Result<u32> {
            self.calls.fetch_add(1, Ordering::Relaxed);
            let mut lines = self.lines.lock().unwrap();
            let line = if lines.len() > 1 { lines.pop_front() } else { lines.front().copied() };
            line.expect("a script has a line").map_err(io::Error::from)
        }
    }

    /// What comes before the script's last connection, 0; at most for a simulated minute.
    async fn play(script: &Script) -> (Result<(), ListenerError>, Vec<u32>) {
        let mut served = Vec::new();
        let mut connections = Connections::new("script", script, Shutdown::new());
        let play = async {
            while let Some(connection) = connections.next().await? {
                if connection == 0 {
                    break;
                }
                served.push(connection);
            }
            Ok(())
        };
        let outcome = tokio::time::timeout(Duration::from_secs(60), play).await.unwrap_or(Ok(()));
        (outcome, served)
    }

    #[tokio::test(start_paused = true)]
    async fn the_shutdown_ends_waiting() {
        for line in [Err(Errno::EMFILE), Ok(1)] {
            let (script, shutdown) = (Script::new([line]), Shutdown::new());
            let mut connections = Connections::new("script", &script, shutdown.clone());
            shutdown.trigger();
            assert!(connections.next().await.unwrap().is_none());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn want_of_descriptors_is_waited_out_without_spinning() {
        for errno in [Errno::EMFILE, Errno::ENFILE, Errno::ENOBUFS, Errno::ENOMEM] {
            let script = Script::new([Err(errno)]);
            let (outcome, served) = play(&script).await;
            assert!(outcome.is_ok() && served.is_empty());
            // 10 ms doubling to a second, then one a second for the rest of the minute.
            let calls = script.calls.load(Ordering::Relaxed);
            assert!((55..=75).contains(&calls), "{calls} calls of accept in a minute of {errno}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn after_the_want_the_next_connections_are_served() {
        let script = Script::new([Ok(1), Err(Errno::EMFILE), Err(Errno::EMFILE), Ok(2), Ok(3), Ok(0)]);
        let begin = Instant::now();
        let (outcome, served) = play(&script).await;
        assert!(outcome.is_ok());
        assert_eq!(served, [1, 2, 3]);
        assert_eq!(begin.elapsed(), Duration::from_millis(30));
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_failed_costs_no_time() {
        let script = Script::new([Err(Errno::ECONNABORTED), Err(Errno::EPROTO), Ok(1), Ok(0)]);
        let begin = Instant::now();
        assert_eq!(play(&script).await.1, [1]);
        assert_eq!(begin.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_broken_listener_is_an_error() {
        let (outcome, _) = play(&Script::new([Err(Errno::EBADF)])).await;
        assert!(matches!(outcome, Err(ListenerError::Accept { listener: "script", .. })), "{outcome:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn warnings_are_rare_and_count_what_they_hold_back() {
        let mut limited = RateLimited::new(Duration::from_secs(10));
        assert_eq!(limited.allow(), Some(0));
        assert_eq!((limited.allow(), limited.allow()), (None, None));
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(limited.allow(), Some(2));
    }
}
