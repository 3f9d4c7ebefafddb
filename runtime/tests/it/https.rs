//! HTTPS for strangers: what they may do, and what they may not.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bonafide_runtime::listener::{HttpsOptions, ListenerError, serve_https};
use bonafide_runtime::shutdown::Shutdown;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

struct Served {
    addr: SocketAddr,
    client: Arc<ClientConfig>,
    shutdown: Shutdown,
    task: JoinHandle<Result<(), ListenerError>>,
}

/// Answers with the path; `/slow` never.
async fn answer(request: Request<Incoming>) -> Response<Full<Bytes>> {
    if request.uri().path() == "/slow" {
        std::future::pending::<()>().await;
    }
    Response::new(Full::new(request.uri().path().to_owned().into()))
}

async fn serve(options: HttpsOptions) -> Served {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let tls = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let shutdown = Shutdown::new();
    let task = tokio::spawn(serve_https(listener, Arc::new(tls), options, answer, shutdown.clone()));
    Served { addr, client: Arc::new(client), shutdown, task }
}

impl Served {
    async fn connect(&self) -> std::io::Result<TlsStream<TcpStream>> {
        let tcp = TcpStream::connect(self.addr).await?;
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::clone(&self.client)).connect(name, tcp).await
    }

    async fn get(&self, path: &str) -> std::io::Result<String> {
        let mut stream = self.connect().await?;
        stream
            .write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes())
            .await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        Ok(text)
    }
}

/// Waits until the server closes, at most ten seconds, and says how long it took.
async fn closed(mut stream: impl AsyncReadExt + Unpin) -> Duration {
    let began = Instant::now();
    let mut rest = Vec::new();
    let end = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut rest)).await;
    drop(end.expect("the server closes"));
    began.elapsed()
}

#[tokio::test]
async fn whoever_is_slow_is_let_go() {
    let short = Duration::from_millis(300);
    let options = HttpsOptions {
        handshake_timeout: short,
        head_timeout: short,
        max_age: 2 * short,
        last_answer: short,
        ..HttpsOptions::default()
    };
    let served = serve(options).await;
    assert!(served.get("/x").await.unwrap().ends_with("\r\n\r\n/x"));
    // No handshake; no request; half of a request; an answer that never comes.
    assert!(closed(TcpStream::connect(served.addr).await.unwrap()).await >= short / 2);
    closed(served.connect().await.unwrap()).await;
    let mut half = served.connect().await.unwrap();
    half.write_all(b"GET / HTTP/1.1\r\nhost").await.unwrap();
    closed(half).await;
    let mut waiting = served.connect().await.unwrap();
    waiting.write_all(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    assert!(closed(waiting).await >= short, "it may live for its age");
}

#[tokio::test]
async fn when_places_are_few_no_connection_is_kept() {
    let options = HttpsOptions {
        max_connections: 4,
        head_timeout: Duration::from_millis(1500),
        ..HttpsOptions::default()
    };
    let served = serve(options).await;
    let ask = async || {
        let mut stream = served.connect().await.unwrap();
        stream.write_all(b"GET /x HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        stream
    };
    let kept = closed(ask().await).await;
    assert!(kept >= Duration::from_millis(1200), "{kept:?}: kept for the next request");
    let mut waiting = Vec::new();
    for _ in 0..2 {
        let mut stream = served.connect().await.unwrap();
        stream.write_all(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        waiting.push(stream);
    }
    let kept = closed(ask().await).await;
    assert!(kept < Duration::from_millis(1200), "{kept:?}");
    let idle = closed(served.connect().await.unwrap()).await;
    assert!(idle < Duration::from_millis(1200), "{idle:?}");
}

#[tokio::test]
async fn one_address_cannot_take_all_places() {
    let options = HttpsOptions { max_connections_per_address: 2, ..HttpsOptions::default() };
    let served = serve(options).await;
    let first = served.connect().await.unwrap();
    let second = served.connect().await.unwrap();
    assert!(served.get("/x").await.is_err(), "a third is closed");
    drop((first, second));
    let deadline = Instant::now() + Duration::from_secs(10);
    while served.get("/x").await.is_err() {
        assert!(Instant::now() < deadline, "the places are never given back");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn the_shutdown_ends_what_is_open() {
    let served =
        serve(HttpsOptions { last_answer: Duration::from_millis(200), ..HttpsOptions::default() }).await;
    let _idle = served.connect().await.unwrap();
    let mut waiting = served.connect().await.unwrap();
    waiting.write_all(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let _silent = TcpStream::connect(served.addr).await.unwrap();
    served.shutdown.trigger();
    tokio::time::timeout(Duration::from_secs(5), served.task).await.expect("ends").unwrap().unwrap();
}
