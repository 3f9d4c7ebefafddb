use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bonafide_identity::SpiffeId;
use bonafide_runtime::listener::{
    CloseMode, ListenerError, Peer, TlsOptions, bind_unix, serve_tls, serve_tls_unix,
};
use bonafide_runtime::shutdown::Shutdown;
use http::Uri;
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_stream::StreamExt;
use tonic::transport::{Channel, Endpoint};

use crate::echo::{Echo, level, unary, watch};

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    roots: Arc<RootCertStore>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(certificate.der().clone()).unwrap();
        Self { issuer: Issuer::new(params, key), roots: Arc::new(roots) }
    }

    fn issue(&self, name: SanType) -> Identity {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![name];
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (vec![certificate.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
    }

    pub(crate) fn client(&self, identity: Option<Identity>) -> Arc<ClientConfig> {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(Arc::clone(&self.roots));
        let mut config = match identity {
            Some((chain, key)) => builder.with_client_auth_cert(chain, key).unwrap(),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Arc::new(config)
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

pub(crate) struct Served {
    pub(crate) authority: Authority,
    pub(crate) addr: SocketAddr,
    pub(crate) echo: Echo,
    pub(crate) options: TlsOptions,
    shutdown: Shutdown,
    task: JoinHandle<Result<(), ListenerError>>,
}

fn server_config(authority: &Authority) -> ServerConfig {
    let (chain, key) = authority.issue(SanType::DnsName("localhost".try_into().unwrap()));
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&authority.roots), provider())
        .allow_unauthenticated()
        .build()
        .unwrap();
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// The identity by the length of the chain is enough here; whose it is, is another crate's business.
fn identity(chain: &[CertificateDer<'_>]) -> Result<Option<SpiffeId>, bonafide_runtime::BoxError> {
    match chain {
        [] => Ok(None),
        [leaf] if leaf.windows(6).any(|window| window == b"banned") => Err("this agent is banned".into()),
        _ => Ok(Some(SpiffeId::parse("spiffe://example.org/client").unwrap())),
    }
}

pub(crate) async fn serve(change: impl FnOnce(&mut TlsOptions)) -> Served {
    let authority = Authority::new();
    let config = server_config(&authority);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let mut options = TlsOptions::default();
    change(&mut options);
    let (echo, shutdown) = (Echo::new(), Shutdown::new());
    let task = tokio::spawn(serve_tls(
        listener,
        Arc::new(config),
        echo.routes(),
        options.clone(),
        identity,
        shutdown.clone(),
    ));
    Served { authority, addr, echo, options, shutdown, task }
}

async fn connect(addr: SocketAddr, config: Arc<ClientConfig>) -> Result<Channel, tonic::transport::Error> {
    let connector = TlsConnector::from(config);
    Endpoint::from_static("http://localhost")
        .connect_with_connector(tower::service_fn(move |_: Uri| {
            let connector = connector.clone();
            async move {
                let stream = TcpStream::connect(addr).await?;
                stream.set_nodelay(true)?;
                let name = ServerName::try_from("localhost").expect("a name");
                connector.connect(name, stream).await.map(TokioIo::new)
            }
        }))
        .await
}

/// A connection without a certificate, for what a client library would not send.
pub(crate) async fn connect_raw(served: &Served) -> tokio_rustls::client::TlsStream<TcpStream> {
    let stream = TcpStream::connect(served.addr).await.unwrap();
    let connector = TlsConnector::from(served.authority.client(None));
    connector.connect(ServerName::try_from("localhost").unwrap(), stream).await.unwrap()
}

fn uri(id: &str) -> SanType {
    SanType::URI(id.try_into().unwrap())
}

#[tokio::test]
async fn a_unix_socket_speaks_tls_as_well() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tls.sock");
    let bound = bind_unix(&path, 0o777, 0o755).unwrap();
    let (authority, echo, shutdown) = (Authority::new(), Echo::new(), Shutdown::new());
    let options = TlsOptions { drain: Duration::from_millis(200), ..TlsOptions::default() };
    let (config, registry) = (Arc::new(server_config(&authority)), options.registry.clone());
    let task =
        tokio::spawn(serve_tls_unix(bound, config, echo.routes(), options, identity, shutdown.clone()));
    let connect = async |name: &str| {
        let client = authority.client(Some(authority.issue(uri(name))));
        let (connector, path) = (TlsConnector::from(client), path.clone());
        Endpoint::from_static("http://localhost")
            .connect_with_connector(tower::service_fn(move |_: Uri| {
                let (connector, path) = (connector.clone(), path.clone());
                async move {
                    let stream = tokio::net::UnixStream::connect(path).await?;
                    let name = ServerName::try_from("localhost").expect("a name");
                    connector.connect(name, stream).await.map(TokioIo::new)
                }
            }))
            .await
    };
    let channel = connect("spiffe://example.org/client").await.unwrap();
    assert_eq!(
        unary(&channel, "a").await.unwrap(),
        "a authority=localhost from ip=0.0.0.0 certificates=1 id=spiffe://example.org/client"
    );
    assert_eq!(registry.len(), 1);
    // Who is refused by name learns it with the first call at the latest.
    if let Ok(channel) = connect("spiffe://example.org/banned").await {
        unary(&channel, "b").await.unwrap_err();
    }
    assert_eq!(registry.len(), 1);
    shutdown.trigger();
    task.await.unwrap().unwrap();
    assert!(!path.exists());
}

#[tokio::test]
async fn callers_are_known_by_their_certificate_or_not_at_all() {
    let served = serve(|_| {}).await;
    let anonymous = connect(served.addr, served.authority.client(None)).await.unwrap();
    assert_eq!(
        unary(&anonymous, "a").await.unwrap(),
        "a authority=localhost from ip=127.0.0.1 certificates=0 id=none"
    );
    let identity = served.authority.issue(uri("spiffe://example.org/client"));
    let known = connect(served.addr, served.authority.client(Some(identity))).await.unwrap();
    assert_eq!(
        unary(&known, "b").await.unwrap(),
        "b authority=localhost from ip=127.0.0.1 certificates=1 id=spiffe://example.org/client"
    );
    assert_eq!(served.options.registry.len(), 2);

    // The application closes what has lost its standing, and nothing else.
    let mut lost = watch(&known).await.unwrap();
    lost.next().await.unwrap().unwrap();
    let mut kept = watch(&anonymous).await.unwrap();
    kept.next().await.unwrap().unwrap();
    let banned = |peer: &Peer| matches!(peer, Peer::Tls(peer) if peer.spiffe_id.is_some());
    assert_eq!(served.options.registry.close_where(CloseMode::Now, banned), 1);
    assert!(lost.next().await.is_none_or(|item| item.is_err()));
    served.echo.text.send_replace("second".into());
    assert_eq!(kept.next().await.unwrap().unwrap(), "second");
}

#[tokio::test]
async fn strangers_and_the_banned_are_refused() {
    let served = serve(|_| {}).await;
    let banned = served.authority.issue(uri("spiffe://example.org/banned"));
    let stranger = Authority::new().issue(uri("spiffe://example.org/client"));
    for identity in [banned, stranger] {
        // With TLS 1.3 a client learns of its refusal with its first call.
        let refused = match connect(served.addr, served.authority.client(Some(identity))).await {
            Ok(channel) => unary(&channel, "x").await.is_err(),
            Err(_) => true,
        };
        assert!(refused);
    }
    assert!(served.options.registry.is_empty());
}

#[tokio::test]
async fn slow_handshakes_end_and_do_not_hold_up_others() {
    let served = serve(|options| {
        options.handshake_timeout = Duration::from_millis(300);
        options.max_handshakes = 4;
        options.max_handshakes_per_address = 3;
    })
    .await;
    let mut silent = Vec::new();
    for _ in 0..3 {
        silent.push(TcpStream::connect(served.addr).await.unwrap());
    }
    // This address has all it may have: the next is refused at once.
    let mut refused = TcpStream::connect(served.addr).await.unwrap();
    let read = tokio::time::timeout(Duration::from_millis(250), refused.read(&mut [0])).await;
    assert!(matches!(read, Ok(Ok(0) | Err(_))), "{read:?}");
    for mut stream in silent {
        let read = tokio::time::timeout(Duration::from_secs(10), stream.read(&mut [0])).await;
        assert!(matches!(read, Ok(Ok(0) | Err(_))), "left open: {read:?}");
    }
    let channel = connect(served.addr, served.authority.client(None)).await.unwrap();
    unary(&channel, "x").await.unwrap();
}

#[tokio::test]
async fn who_does_not_speak_http2_behind_tls_is_put_out() {
    let served = serve(|options| options.http2.preface_timeout = Duration::from_millis(200)).await;
    for first in ["", "GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"] {
        let stream = TcpStream::connect(served.addr).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let connector = TlsConnector::from(served.authority.client(None));
        let mut stream = connector.connect(name, stream).await.unwrap();
        stream.write_all(first.as_bytes()).await.unwrap();
        let read = tokio::time::timeout(Duration::from_secs(10), stream.read(&mut [0])).await;
        assert!(matches!(read, Ok(Ok(0) | Err(_))), "after {first:?}: {read:?}");
    }
    assert!(served.options.registry.is_empty());
}

#[tokio::test]
async fn connections_age_without_a_failed_call_or_a_cut_stream() {
    let served = serve(|options| options.max_connection_age = Some(Duration::from_millis(50))).await;
    let identity = served.authority.issue(uri("spiffe://example.org/client"));
    let channel = connect(served.addr, served.authority.client(Some(identity))).await.unwrap();
    let mut stream = watch(&channel).await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), "first");
    let begin = std::time::Instant::now();
    let (mut calls, mut unsent) = (0, 0);
    let mut seen = std::collections::BTreeSet::new();
    while begin.elapsed() < Duration::from_secs(1) {
        match unary(&channel, "x").await {
            Ok(_) => calls += 1,
            // hyper's client cancels what it had not yet sent when the GOAWAY came. It is for the client to send it anew.
            Err(status) if status.code() == tonic::Code::Cancelled => unsent += 1,
            Err(status) => panic!("call {calls} failed: {status:?}"),
        }
        seen.extend(served.options.registry.peers().iter().map(|peer| peer.connection_id()));
    }
    assert!(seen.len() >= 5, "{} connections for {calls} calls in a second", seen.len());
    assert_eq!(served.echo.arrived.load(Ordering::SeqCst), calls, "the server lost calls that had arrived");
    assert!(unsent <= seen.len(), "{unsent} calls were not sent over {} connections", seen.len());
    served.echo.text.send_replace("still here".into());
    assert_eq!(stream.next().await.unwrap().unwrap(), "still here");
    drop((stream, channel));
    level(|| served.options.registry.len(), |open| *open == 0).await;
}

/// Anybody can connect. They must not keep out those who have shown who they are.
#[tokio::test]
async fn who_has_no_certificate_gets_a_part_of_the_places_for_a_time() {
    let served = serve(|options| {
        options.max_connections = 6;
        options.max_anonymous_per_address = 2;
        options.max_connection_age = Some(Duration::from_millis(300));
    })
    .await;
    let open = served.options.registry.clone();
    let mut held = Vec::new();
    for _ in 0..2 {
        let channel = connect(served.addr, served.authority.client(None)).await.unwrap();
        let mut stream = watch(&channel).await.unwrap();
        stream.next().await.unwrap().unwrap();
        held.push((channel, stream));
    }
    let third = connect(served.addr, served.authority.client(None)).await;
    let refused = match third {
        Ok(channel) => unary(&channel, "x").await.is_err(),
        Err(_) => true,
    };
    assert!(refused);
    let identity = served.authority.issue(uri("spiffe://example.org/client"));
    let known = connect(served.addr, served.authority.client(Some(identity))).await.unwrap();
    let mut stream = watch(&known).await.unwrap();
    stream.next().await.unwrap().unwrap();
    // The streams of the known go on for as long as they like.
    level(|| open.len(), |open| *open == 1).await;
    served.echo.text.send_replace("still here".into());
    assert_eq!(stream.next().await.unwrap().unwrap(), "still here");
    // There are places again.
    let channel = connect(served.addr, served.authority.client(None)).await.unwrap();
    unary(&channel, "x").await.unwrap();
}

#[tokio::test]
async fn shutdown_ends_with_a_stream_open() {
    let served = serve(|options| options.drain = Duration::from_millis(300)).await;
    let channel = connect(served.addr, served.authority.client(None)).await.unwrap();
    let mut stream = watch(&channel).await.unwrap();
    stream.next().await.unwrap().unwrap();
    served.shutdown.trigger();
    tokio::time::timeout(Duration::from_secs(10), served.task).await.expect("ends").unwrap().unwrap();
    served.echo.wait_open(0).await;
    assert!(TcpStream::connect(served.addr).await.is_err());
}
