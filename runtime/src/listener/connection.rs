//! One HTTP/2 connection, from its preface to its end, and the set of them that a listener has.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt;
use std::hash::Hash;
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;

use super::accept::RateLimited;
use super::registry::{CloseMode, ConnectionRegistry};
use super::{Http2Options, Peer};
use crate::shutdown::Shutdown;
use crate::tasks::chain;

/// What every HTTP/2 client sends first (RFC 9113, section 3.4).
pub(super) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A number that no other connection of this process has.
pub(super) fn next_connection_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// The connections of one listener: how they are served and how they end.
pub(super) struct Server {
    pub(super) name: &'static str,
    routes: Routes,
    http2: Http2Options,
    builder: http2::Builder<TokioExecutor>,
    registry: ConnectionRegistry,
    tasks: TaskTracker,
    stop: Shutdown,
    abort: CancellationToken,
    complaints: Mutex<RateLimited>,
}

impl Server {
    pub(super) fn new(
        name: &'static str,
        routes: Routes,
        http2: Http2Options,
        registry: ConnectionRegistry,
        shutdown: &Shutdown,
    ) -> Arc<Self> {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(http2.max_concurrent_streams)
            .max_header_list_size(http2.max_header_list_size)
            .initial_stream_window_size(http2.stream_window)
            .initial_connection_window_size(http2.connection_window)
            .max_frame_size(MAX_FRAME_SIZE)
            .max_send_buf_size(http2.max_send_buffer)
            .keep_alive_interval(http2.keepalive_interval)
            .keep_alive_timeout(http2.keepalive_timeout)
            .auto_date_header(false);
        Arc::new(Self {
            name,
            routes: routes.prepare(),
            http2,
            builder,
            registry,
            tasks: TaskTracker::new(),
            stop: shutdown.child(),
            abort: CancellationToken::new(),
            complaints: Mutex::new(RateLimited::new(Duration::from_secs(1))),
        })
    }

    /// Starts the work on one connection. It is dropped at its next await point when the drain has run out of time.
    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let abort = self.abort.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = abort.cancelled() => {}
                () = work => {}
            }
        });
    }

    /// Serves HTTP/2 until the peer, its age, the registry or the shutdown ends it.
    pub(super) async fn serve<I>(&self, io: I, peer: Peer, max_age: Option<Duration>)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let peer = Arc::new(peer);
        let id = peer.connection_id();
        let mut registration = self.registry.register(Arc::clone(&peer));
        let _gauge = OpenConnection::new(self.name);
        let service = WithPeer { routes: self.routes.clone(), peer };
        let mut connection = pin!(self.builder.serve_connection(TokioIo::new(io), service));
        let mut age = pin!(async {
            match max_age {
                Some(max_age) => tokio::time::sleep(max_age).await,
                None => std::future::pending().await,
            }
        });
        let mut closing: Option<CloseMode> = None;
        loop {
            tokio::select! {
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        tracing::debug!(listener = self.name, connection = id, %error, "connection ended with an error");
                    }
                    return;
                }
                mode = registration.close(closing) => {
                    if mode == CloseMode::Now {
                        return;
                    }
                }
                () = &mut age, if closing.is_none() => {}
                () = self.stop.triggered(), if closing.is_none() => {}
            }
            closing = Some(CloseMode::Graceful);
            // GOAWAY: the client opens its next stream elsewhere, the running ones go on.
            connection.as_mut().graceful_shutdown();
        }
    }

    /// Reads the preface, which must come in time.
    ///
    /// # Errors
    /// When it does not come, or something else comes.
    pub(super) async fn read_preface<I: AsyncRead + Unpin>(&self, io: &mut I) -> io::Result<()> {
        let mut first = [0; PREFACE.len()];
        match tokio::time::timeout(self.http2.preface_timeout, io.read_exact(&mut first)).await {
            Ok(read) => read?,
            Err(_) => return Err(io::Error::new(io::ErrorKind::TimedOut, "no HTTP/2 preface in time")),
        };
        if first == *PREFACE {
            Ok(())
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidData, "the client does not speak HTTP/2"))
        }
    }

    /// Counts a connection that came to nothing and says why, at most once a second.
    pub(super) fn refuse(&self, reason: &'static str, peer: &dyn fmt::Display, detail: &dyn fmt::Display) {
        self.count_failure(reason);
        let allowed = self.complaints.lock().unwrap_or_else(PoisonError::into_inner).allow();
        if let Some(suppressed) = allowed {
            tracing::warn!(listener = self.name, %peer, reason, %detail, suppressed, "connection refused");
        }
    }

    /// The same for a failure on the way. That a peer has simply left is worth no warning: probes of port and socket do that.
    pub(super) fn give_up(&self, reason: &'static str, peer: &dyn fmt::Display, error: &io::Error) {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
        if matches!(error.kind(), UnexpectedEof | ConnectionReset | BrokenPipe) {
            self.count_failure("left");
            tracing::debug!(listener = self.name, %peer, %error, "the peer left before its first request");
        } else {
            self.refuse(reason, peer, &chain(error));
        }
    }

    fn count_failure(&self, reason: &'static str) {
        metrics::counter!("bonafide_listener_handshake_failures_total", "listener" => self.name, "reason" => reason)
            .increment(1);
    }

    /// Ends all connections: GOAWAY at once, then up to `deadline` for running streams, then the end.
    pub(super) async fn drain(&self, deadline: Duration) {
        self.stop.trigger();
        self.tasks.close();
        if tokio::time::timeout(deadline, self.tasks.wait()).await.is_err() {
            tracing::warn!(
                listener = self.name,
                connections = self.tasks.len(),
                ?deadline,
                "cutting connections that are still busy"
            );
            self.abort.cancel();
            self.tasks.wait().await;
        }
    }
}

/// The largest frame that is announced to clients: HTTP/2's minimum, which is also its default.
pub(super) const MAX_FRAME_SIZE: u32 = 16_384;

struct OpenConnection(metrics::Gauge);

impl OpenConnection {
    fn new(name: &'static str) -> Self {
        metrics::counter!("bonafide_listener_connections_total", "listener" => name).increment(1);
        let gauge = metrics::gauge!("bonafide_listener_connections", "listener" => name);
        gauge.increment(1);
        Self(gauge)
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.decrement(1);
    }
}

/// The routes, with the peer put among each request's extensions.
struct WithPeer {
    routes: Routes,
    peer: Arc<Peer>,
}

impl hyper::service::Service<Request<Incoming>> for WithPeer {
    type Response = Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = <Routes as tower::Service<Request<Incoming>>>::Future;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        request.extensions_mut().insert(Arc::clone(&self.peer));
        // The router is a handle; it is always ready.
        tower::Service::call(&mut self.routes.clone(), request)
    }
}

/// Gives the preface that has been read already to whoever reads next.
pub(super) struct Prefaced<I> {
    left: &'static [u8],
    inner: I,
}

impl<I> Prefaced<I> {
    pub(super) fn new(inner: I) -> Self {
        Self { left: PREFACE, inner }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Prefaced<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.left.is_empty() {
            return Pin::new(&mut self.inner).poll_read(context, buffer);
        }
        let (now, later) = self.left.split_at(self.left.len().min(buffer.remaining()));
        buffer.put_slice(now);
        self.left = later;
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Prefaced<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

/// How many of something each key may have at once.
#[derive(Clone)]
pub(super) struct Quota<K> {
    most: usize,
    taken: Arc<Mutex<HashMap<K, usize>>>,
}

impl<K: Clone + Eq + Hash> Quota<K> {
    pub(super) fn new(most: usize) -> Self {
        Self { most, taken: Arc::default() }
    }

    /// One more for `key`, or `None` when it has all it may have.
    pub(super) fn take(&self, key: K) -> Option<Share<K>> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(key.clone()).or_default();
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(Share { quota: self.clone(), key })
    }

    /// How many `key` has.
    pub(super) fn taken(&self, key: &K) -> usize {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).get(key).copied().unwrap_or(0)
    }
}

/// One of a key's places; dropping gives it back.
pub(super) struct Share<K: Eq + Hash> {
    quota: Quota<K>,
    key: K,
}

impl<K: Eq + Hash> Drop for Share<K> {
    fn drop(&mut self) {
        let mut taken = self.quota.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.key);
            }
        }
    }
}
