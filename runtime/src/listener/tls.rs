//! gRPC on mutual TLS, over TCP and on Unix sockets.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bonafide_identity::SpiffeId;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tonic::service::Routes;

use super::accept::Connections;
use super::authority::AuthorityShim;
use super::connection::{Prefaced, Quota, Server, Share, next_connection_id};
use super::proxy::{ReadError, TrustedProxies, take_header};
use super::{ConnectionRegistry, Http2Options, ListenerError, Peer, TlsPeer, UnixListenerBound};
use crate::BoxError;
use crate::shutdown::Shutdown;

/// How a TLS listener is served.
#[derive(Clone, Debug)]
pub struct TlsOptions {
    /// The listener's name in logs and metrics.
    pub name: &'static str,
    /// How long a handshake may take, and before it a header of the PROXY protocol.
    pub handshake_timeout: Duration,
    /// Peers that may say in such a header whom they speak for. When there are none, no connection has one.
    pub trusted_proxies: TrustedProxies,
    /// Handshakes that may run at once; further connections wait in the kernel's queue.
    pub max_handshakes: usize,
    /// Handshakes that one address may have running, so that one client cannot hold all places.
    pub max_handshakes_per_address: usize,
    /// Connections that may be open at once. Half of them are for clients that have shown a certificate: whoever has none
    /// must not keep out those who have.
    pub max_connections: usize,
    /// Connections without a client certificate that one address may have open.
    pub max_anonymous_per_address: usize,
    /// After this time a connection takes no new requests, so that clients spread anew over the servers; running streams go on
    /// without limit, except those of clients without a certificate, which end after as long again. `None` is never.
    pub max_connection_age: Option<Duration>,
    /// The part of `max_connection_age` by which single connections differ from it, 0 to 1.
    pub age_jitter: f64,
    /// How long running streams may go on after the shutdown began.
    pub drain: Duration,
    /// The bounds of each connection.
    pub http2: Http2Options,
    /// Where the connections are registered.
    pub registry: ConnectionRegistry,
}

impl Default for TlsOptions {
    fn default() -> Self {
        Self {
            name: "tls",
            handshake_timeout: Duration::from_secs(10),
            trusted_proxies: TrustedProxies::default(),
            max_handshakes: 256,
            max_handshakes_per_address: 128,
            max_connections: 100_000,
            max_anonymous_per_address: 4096,
            max_connection_age: Some(Duration::from_secs(180)),
            age_jitter: 0.1,
            drain: Duration::from_secs(10),
            // The pings find peers that have vanished without a word; without them such a connection would outlive its age.
            http2: Http2Options {
                keepalive_interval: Some(Duration::from_secs(60)),
                ..Http2Options::default()
            },
            registry: ConnectionRegistry::new(),
        }
    }
}

/// Serves gRPC on TLS until the shutdown, then drains.
///
/// `peer_info` turns the client chain that the TLS configuration has verified (leaf first; empty without one) into the client's
/// identity; an error ends the connection.
///
/// # Errors
/// When the listener breaks.
pub async fn serve_tls<F>(
    listener: TcpListener,
    config: Arc<ServerConfig>,
    routes: Routes,
    options: TlsOptions,
    peer_info: F,
    shutdown: Shutdown,
) -> Result<(), ListenerError>
where
    F: Fn(&[CertificateDer<'_>]) -> Result<Option<SpiffeId>, BoxError> + Send + Sync + 'static,
{
    let name = options.name;
    let server = Server::new(name, routes, options.http2.clone(), options.registry.clone(), &shutdown);
    let handshakes = Arc::new(Semaphore::new(options.max_handshakes));
    let addresses: Quota<IpAddr> = Quota::new(options.max_handshakes_per_address);
    let connections = Quota::new(options.max_connections);
    let anonymous = Anonymous {
        all: Quota::new(options.max_connections.div_ceil(2)),
        addresses: Quota::new(options.max_anonymous_per_address),
    };
    let handshake = Arc::new(Handshake { acceptor: TlsAcceptor::from(config), peer_info, options });
    let mut incoming = Connections::new(name, listener, shutdown.clone());
    let outcome = loop {
        let (mut stream, addr): (TcpStream, SocketAddr) = match incoming.next().await {
            Ok(Some(accepted)) => accepted,
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        };
        let Some(connection) = connections.take(()) else {
            server.refuse("too_many_connections", &addr, &"the server has too many connections");
            continue;
        };
        let addresses = addresses.clone();
        let unfinished = move |addr: SocketAddr, server: &Server| {
            let place = addresses.take(addr.ip());
            if place.is_none() {
                let why = "this address has too many unfinished handshakes";
                server.refuse("too_many_handshakes", &addr, &why);
            }
            place
        };
        // A proxy speaks for many; the place is taken for whom it names.
        let proxied = handshake.options.trusted_proxies.trusts(addr.ip());
        let mut address = None;
        if !proxied {
            address = unfinished(addr, &server);
            if address.is_none() {
                continue;
            }
        }
        let permit = tokio::select! {
            () = shutdown.triggered() => break Ok(()),
            permit = Arc::clone(&handshakes).acquire_owned() => permit,
        };
        let (served, handshake, anonymous) = (Arc::clone(&server), Arc::clone(&handshake), anonymous.clone());
        server.spawn(async move {
            let _connection = connection;
            // Small frames must not wait for the acknowledgement of those before them. Failing costs time, nothing else.
            let _ = stream.set_nodelay(true);
            let Some(addr) = handshake.client(&mut stream, addr, proxied, &served).await else { return };
            if address.is_none() {
                address = unfinished(addr, &served);
            }
            let Some(address) = address else { return };
            let Some((stream, peer)) = handshake.run(stream, addr, &served).await else { return };
            let stream = Prefaced::new(stream);
            drop((permit, address));
            let max_age = handshake.max_age(peer.connection_id());
            if is_known(&peer) {
                return served.serve(stream, peer, max_age).await;
            }
            let Some(_place) = anonymous.place(addr.ip()) else {
                served.refuse(
                    "too_many_anonymous",
                    &addr,
                    &"there are too many connections without a certificate",
                );
                return;
            };
            match max_age {
                None => served.serve(stream, peer, None).await,
                // What it may call takes seconds; an answer that it does not read would otherwise hold the place for ever.
                Some(age) => drop(tokio::time::timeout(age * 2, served.serve(stream, peer, Some(age))).await),
            }
        });
    };
    drop(incoming);
    server.drain(handshake.options.drain).await;
    outcome
}

/// Serves gRPC on TLS on a Unix socket until the shutdown, then drains. The socket file is removed as soon as no more
/// connections are accepted. Peers are [`Peer::Tls`] with the unspecified address.
///
/// It is meant for configurations that insist on a client certificate: the bounds that [`TlsOptions`] has for clients
/// without one are not applied. Those for one address hold for one user here.
///
/// # Errors
/// When the listener breaks.
pub async fn serve_tls_unix<F>(
    bound: UnixListenerBound,
    config: Arc<ServerConfig>,
    routes: Routes,
    options: TlsOptions,
    peer_info: F,
    shutdown: Shutdown,
) -> Result<(), ListenerError>
where
    F: Fn(&[CertificateDer<'_>]) -> Result<Option<SpiffeId>, BoxError> + Send + Sync + 'static,
{
    let name = options.name;
    let listener = bound.listener().map_err(|source| ListenerError::Socket {
        step: "listen on",
        path: bound.path().to_owned(),
        source,
    })?;
    let server = Server::new(name, routes, options.http2.clone(), options.registry.clone(), &shutdown);
    let users: Quota<u32> = Quota::new(options.max_handshakes_per_address);
    let connections = Quota::new(options.max_connections);
    let handshake = Arc::new(Handshake { acceptor: TlsAcceptor::from(config), peer_info, options });
    let mut incoming = Connections::new(name, listener, shutdown);
    let outcome = loop {
        let stream = match incoming.next().await {
            Ok(Some(stream)) => stream,
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        };
        let uid = match stream.peer_cred() {
            Ok(cred) => cred.uid(),
            Err(error) => {
                server.refuse("credentials", &"unknown", &error);
                continue;
            }
        };
        let peer = format!("uid {uid}");
        let Some(connection) = connections.take(()) else {
            server.refuse("too_many_connections", &peer, &"there are too many connections");
            continue;
        };
        let Some(user) = users.take(uid) else {
            server.refuse("too_many_handshakes", &peer, &"this user has too many unfinished handshakes");
            continue;
        };
        let (served, handshake) = (Arc::clone(&server), Arc::clone(&handshake));
        server.spawn(async move {
            let _connection = connection;
            let Some((stream, peer)) = handshake.run(stream, NO_ADDRESS, &served).await else { return };
            drop(user);
            let max_age = handshake.max_age(peer.connection_id());
            served.serve(Prefaced::new(AuthorityShim::new(stream)), peer, max_age).await;
        });
    };
    drop((incoming, bound));
    server.drain(handshake.options.drain).await;
    outcome
}

/// Of clients on a Unix socket.
const NO_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// The places of clients without a certificate.
#[derive(Clone)]
struct Anonymous {
    all: Quota<()>,
    addresses: Quota<IpAddr>,
}

impl Anonymous {
    fn place(&self, address: IpAddr) -> Option<(Share<()>, Share<IpAddr>)> {
        Some((self.all.take(())?, self.addresses.take(address)?))
    }
}

fn is_known(peer: &Peer) -> bool {
    matches!(peer, Peer::Tls(peer) if peer.spiffe_id.is_some())
}

struct Handshake<F> {
    acceptor: TlsAcceptor,
    peer_info: F,
    options: TlsOptions,
}

type ServedStream<S> = tokio_rustls::server::TlsStream<S>;

impl<F> Handshake<F>
where
    F: Fn(&[CertificateDer<'_>]) -> Result<Option<SpiffeId>, BoxError>,
{
    /// Where the client is: what a header of the PROXY protocol says, or where the connection comes from.
    async fn client(
        &self,
        stream: &mut TcpStream,
        addr: SocketAddr,
        trusted: bool,
        server: &Server,
    ) -> Option<SocketAddr> {
        if self.options.trusted_proxies.0.is_empty() {
            return Some(addr);
        }
        match tokio::time::timeout(self.options.handshake_timeout, take_header(stream, trusted)).await {
            Ok(Ok(client)) => Some(client.unwrap_or(addr)),
            Ok(Err(ReadError::Header(error))) => {
                server.refuse("proxy_header", &addr, &error);
                None
            }
            Ok(Err(ReadError::Io(error))) => {
                server.give_up("proxy_header", &addr, &error);
                None
            }
            Err(_) => {
                server.refuse("timeout", &addr, &"nothing came, or only a part of a PROXY protocol header");
                None
            }
        }
    }

    /// The stream behind its TLS handshake and HTTP/2 preface, and who is there.
    async fn run<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
        addr: SocketAddr,
        server: &Server,
    ) -> Option<(ServedStream<S>, Peer)> {
        let timeout = self.options.handshake_timeout;
        let mut stream = match tokio::time::timeout(timeout, self.acceptor.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                server.give_up("tls", &addr, &error);
                return None;
            }
            Err(_) => {
                server.refuse("timeout", &addr, &"the TLS handshake took too long");
                return None;
            }
        };
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let spiffe_id = match (self.peer_info)(chain) {
            Ok(spiffe_id) => spiffe_id,
            Err(error) => {
                server.refuse("identity", &addr, &error);
                return None;
            }
        };
        let certificates = Arc::new(chain.iter().map(|certificate| certificate.to_vec()).collect());
        if let Err(error) = server.read_preface(&mut stream).await {
            server.give_up("preface", &addr, &error);
            return None;
        }
        let peer = TlsPeer { addr, certificates, spiffe_id, connection_id: next_connection_id() };
        Some((stream, Peer::Tls(peer)))
    }

    fn max_age(&self, connection: u64) -> Option<Duration> {
        let age = self.options.max_connection_age?;
        Some(jittered(age, self.options.age_jitter, connection))
    }
}

/// `age` plus or minus up to the part `jitter` of it. The number of the connection is randomness enough: connections
/// that came in one burst must not all leave in one.
fn jittered(age: Duration, jitter: f64, connection: u64) -> Duration {
    // Fibonacci hashing: consecutive numbers land evenly over the whole range.
    let place = connection.wrapping_mul(0x9e37_79b9_7f4a_7c15) as f64 / u64::MAX as f64;
    age.mul_f64(1.0 + jitter.clamp(0.0, 1.0) * (2.0 * place - 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_differ_within_their_bounds() {
        let ages: Vec<_> = (0..100)
            .map(|connection| jittered(Duration::from_secs(180), 0.1, connection).as_secs())
            .collect();
        assert!(ages.iter().all(|age| (162..=198).contains(age)), "{ages:?}");
        let lower = ages.iter().filter(|age| **age < 180).count();
        assert!((40..=60).contains(&lower), "{lower} of 100 below the middle");
        assert_eq!(jittered(Duration::from_secs(180), 0.0, 7), Duration::from_secs(180));
    }
}
