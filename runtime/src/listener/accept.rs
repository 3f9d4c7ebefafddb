//! Accepting: what goes on after an error, and what does not.

use std::future::Future;
use std::io;
use std::time::Duration;

use tokio::time::Instant;

use super::ListenerError;
use crate::shutdown::Shutdown;

/// Something that connections come from. Tests script it.
pub(crate) trait Accept {
    /// A connection.
    type Connection;
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

/// Accepts until the shutdown and hands each connection to `serve`, which must not take long.
///
/// # Errors
/// When the listener itself is broken.
pub(crate) async fn accept_loop<A: Accept>(
    name: &'static str,
    listener: &A,
    shutdown: &Shutdown,
    mut serve: impl AsyncFnMut(A::Connection),
) -> Result<(), ListenerError> {
    let errors = metrics::counter!("bonafide_listener_accept_errors_total", "listener" => name);
    let mut wait = FIRST_WAIT;
    let mut warnings = RateLimited::new(WARN_EVERY);
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.triggered() => return Ok(()),
            accepted = listener.accept() => accepted,
        };
        let error = match accepted {
            Ok(connection) => {
                wait = FIRST_WAIT;
                tokio::select! {
                    () = shutdown.triggered() => return Ok(()),
                    () = serve(connection) => continue,
                }
            }
            Err(error) => error,
        };
        errors.increment(1);
        match classify(&error) {
            Verdict::Connection => {}
            Verdict::Exhausted => {
                if let Some(suppressed) = warnings.allow() {
                    tracing::warn!(listener = name, %error, suppressed, "cannot accept connections; waiting for resources");
                }
                tokio::select! {
                    () = shutdown.triggered() => return Ok(()),
                    () = tokio::time::sleep(wait) => {}
                }
                wait = (wait * 2).min(LONGEST_WAIT);
            }
            Verdict::Broken => return Err(ListenerError::Accept { listener: name, source: error }),
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
        Some(Errno::EBADF | Errno::EINVAL | Errno::ENOTSOCK | Errno::EOPNOTSUPP | Errno::EFAULT) => Verdict::Broken,
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
