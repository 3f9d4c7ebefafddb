//! HTTPS for strangers: HTTP/1.1 behind TLS without client certificates, with everything bounded.
//!
//! For documents that anybody may read, such as a trust bundle. It shares the accept loop of the gRPC listeners and
//! nothing else: a connection here is short, has one request at a time, and is never registered.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HeaderValue};
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_util::task::TaskTracker;

use super::ListenerError;
use super::accept::{Connections, RateLimited};
use super::connection::Quota;
use crate::shutdown::Shutdown;

/// The bounds of an HTTPS listener.
#[derive(Clone, Debug)]
pub struct HttpsOptions {
    /// The listener's name in logs and metrics.
    pub name: &'static str,
    /// Connections that may be open at once; more are closed.
    pub max_connections: usize,
    /// Connections that one address may have open; of IPv6, one network of 64 bits, since that is what one host gets.
    pub max_connections_per_address: usize,
    /// How long a handshake may take.
    pub handshake_timeout: Duration,
    /// How long a client may take to send the head of a request, on a new connection and between two requests. While more
    /// than half of the places are taken, a new connection has a fifth of it, and none is kept after its answer.
    pub head_timeout: Duration,
    /// The largest head of a request, in bytes.
    pub max_head: usize,
    /// How long a connection may live in all, whatever the client does.
    pub max_age: Duration,
    /// How long an answer that has begun may take when the connection is to end.
    pub last_answer: Duration,
}

impl Default for HttpsOptions {
    fn default() -> Self {
        Self {
            name: "https",
            max_connections: 512,
            max_connections_per_address: 128,
            handshake_timeout: Duration::from_secs(10),
            head_timeout: Duration::from_secs(10),
            max_head: 16 * 1024,
            max_age: Duration::from_secs(120),
            last_answer: Duration::from_secs(2),
        }
    }
}

/// Answers requests with `answer` until the shutdown. The bodies of requests are not read.
///
/// # Errors
/// When the listener breaks.
pub async fn serve_https<A, F>(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    options: HttpsOptions,
    answer: A,
    shutdown: Shutdown,
) -> Result<(), ListenerError>
where
    A: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let all = Quota::new(options.max_connections);
    let addresses: Quota<IpAddr> = Quota::new(options.max_connections_per_address);
    let tasks = TaskTracker::new();
    let stop = shutdown.child();
    let mut connections = Connections::new(options.name, listener, shutdown.clone());
    let name = options.name;
    let shared = Arc::new(Shared {
        acceptor: TlsAcceptor::from(tls),
        options,
        complaints: Mutex::new(RateLimited::new(Duration::from_secs(1))),
        open: all.clone(),
    });
    let outcome = loop {
        let (stream, address): (TcpStream, SocketAddr) = match connections.next().await {
            Ok(Some(accepted)) => accepted,
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        };
        let places = all.take(()).and_then(|place| Some((place, addresses.take(host(address.ip()))?)));
        let Some(places) = places else {
            shared.refuse("too_many_connections", address, &"there are too many connections");
            continue;
        };
        let (shared, answer, stop) = (Arc::clone(&shared), answer.clone(), stop.clone());
        tasks.spawn(async move {
            let _places = places;
            let _gauge = Open::new(name);
            shared.serve(stream, address, answer, stop).await;
        });
    };
    drop(connections);
    stop.trigger();
    tasks.close();
    tasks.wait().await;
    outcome
}

struct Shared {
    acceptor: TlsAcceptor,
    options: HttpsOptions,
    complaints: Mutex<RateLimited>,
    open: Quota<()>,
}

impl Shared {
    async fn serve<A, F>(&self, stream: TcpStream, address: SocketAddr, answer: A, stop: Shutdown)
    where
        A: Fn(Request<Incoming>) -> F,
        F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
    {
        let options = &self.options;
        let handshake = tokio::time::timeout(options.handshake_timeout, self.acceptor.accept(stream));
        let mut stream = tokio::select! {
            () = stop.triggered() => return,
            shaken = handshake => match shaken {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => return self.refuse("tls", address, &error),
                Err(_) => return self.refuse("timeout", address, &"the TLS handshake took too long"),
            },
        };
        // Who speaks another protocol has seen the certificate, which is all that it is for.
        if stream.get_ref().1.alpn_protocol().is_some_and(|protocol| protocol != b"http/1.1") {
            let _ = tokio::time::timeout(options.last_answer, stream.shutdown()).await;
            return;
        }
        let service = service_fn(|request: Request<Incoming>| {
            let response = answer(request);
            async move {
                let mut response = response.await;
                if self.crowded() {
                    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(response)
            }
        });
        let head_timeout = if self.crowded() { options.head_timeout / 5 } else { options.head_timeout };
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(head_timeout)
            .max_buf_size(options.max_head)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = pin!(connection);
        tokio::select! {
            // What goes wrong on one such connection is the client's affair.
            _ = connection.as_mut() => return,
            () = tokio::time::sleep(options.max_age) => {}
            () = stop.triggered() => {}
        }
        connection.as_mut().graceful_shutdown();
        let _ = tokio::time::timeout(options.last_answer, connection).await;
    }

    fn crowded(&self) -> bool {
        self.open.taken(&()) > self.options.max_connections / 2
    }

    fn refuse(&self, reason: &'static str, address: SocketAddr, why: &dyn std::fmt::Display) {
        let listener = self.options.name;
        metrics::counter!("bonafide_listener_handshake_failures_total", "listener" => listener, "reason" => reason)
            .increment(1);
        let mut complaints = self.complaints.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(suppressed) = complaints.allow() {
            tracing::debug!(listener, %address, reason, error = %why, suppressed, "a connection was refused");
        }
    }
}

/// What counts as one client: an IPv4 address, or the network of an IPv6 address.
fn host(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
    }
}

/// Counts an open connection.
struct Open {
    gauge: metrics::Gauge,
}

impl Open {
    fn new(name: &'static str) -> Self {
        metrics::counter!("bonafide_listener_connections_total", "listener" => name).increment(1);
        let gauge = metrics::gauge!("bonafide_listener_connections", "listener" => name);
        gauge.increment(1.0);
        Self { gauge }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.gauge.decrement(1.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_with_many_addresses_counts_once() {
        let of = |text: &str| host(text.parse().unwrap());
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff::2"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }
}
