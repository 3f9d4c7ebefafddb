//! A gRPC service and a client of it, without generated code.

use std::convert::Infallible;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bonafide_runtime::listener::Peer;
use http::{Request, Response, Uri};
use hyper_util::rt::TokioIo;
use tokio::sync::watch;
use tokio_stream::{Stream, StreamExt};
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};
use tonic_prost::ProstCodec;

/// `Unary` answers with who called; `Watch` sends each new version of a text for as long as it is read; `Hang` never answers.
#[derive(Clone)]
pub(crate) struct Echo {
    pub(crate) text: watch::Sender<String>,
    /// Streams and calls that are open.
    pub(crate) open: Arc<AtomicUsize>,
    /// Calls of `Unary` that arrived.
    pub(crate) arrived: Arc<AtomicUsize>,
}

impl Echo {
    pub(crate) fn new() -> Self {
        Self { text: watch::Sender::new("first".into()), open: Arc::default(), arrived: Arc::default() }
    }

    pub(crate) fn routes(&self) -> Routes {
        Routes::new(self.clone())
    }

    /// Waits until so many streams and calls are open.
    pub(crate) async fn wait_open(&self, count: usize) {
        level(|| self.open.load(Ordering::SeqCst), |open| *open == count).await;
    }
}

/// Waits for a level, and says the last one seen when it does not come.
pub(crate) async fn level<T: std::fmt::Debug>(
    mut look: impl FnMut() -> T,
    reached: impl Fn(&T) -> bool,
) -> T {
    let begin = std::time::Instant::now();
    loop {
        let seen = look();
        if reached(&seen) {
            return seen;
        }
        assert!(begin.elapsed() < Duration::from_secs(20), "not reached; last seen: {seen:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

impl NamedService for Echo {
    const NAME: &'static str = "test.Echo";
}

type Call<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl tower::Service<Request<tonic::body::Body>> for Echo {
    type Response = Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Call<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<tonic::body::Body>) -> Self::Future {
        let (echo, authority) = (self.clone(), request.uri().authority().map(ToString::to_string));
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(ProstCodec::<String, String>::default());
            Ok(match request.uri().path() {
                "/test.Echo/Unary" => {
                    echo.arrived.fetch_add(1, Ordering::SeqCst);
                    grpc.unary(Unary { authority }, request).await
                }
                "/test.Echo/Watch" => grpc.server_streaming(Watch(echo), request).await,
                _ => grpc.unary(Hang(echo), request).await,
            })
        })
    }
}

struct Unary {
    authority: Option<String>,
}

impl tower::Service<tonic::Request<String>> for Unary {
    type Response = tonic::Response<String>;
    type Error = Status;
    type Future = Call<Result<Self::Response, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: tonic::Request<String>) -> Self::Future {
        let peer = request.extensions().get::<Arc<Peer>>().map(|peer| match &**peer {
            Peer::Unix(peer) => {
                format!(
                    "pid={} uid={} gid={} origin={:?}",
                    peer.cred.pid, peer.cred.uid, peer.cred.gid, peer.cred.pidfd_origin
                )
            }
            Peer::Tls(peer) => format!(
                "ip={} certificates={} id={}",
                peer.addr.ip(),
                peer.certificates.len(),
                peer.spiffe_id.as_ref().map_or("none".into(), ToString::to_string)
            ),
        });
        let answer = format!(
            "{} authority={} from {}",
            request.get_ref(),
            self.authority.as_deref().unwrap_or("none"),
            peer.as_deref().unwrap_or("nobody")
        );
        Box::pin(async move { Ok(tonic::Response::new(answer)) })
    }
}

/// Counts one open stream or call while it lives.
struct Open(Arc<AtomicUsize>);

impl Open {
    fn new(echo: &Echo) -> Self {
        echo.open.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(&echo.open))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

struct Watch(Echo);

impl tower::Service<tonic::Request<String>> for Watch {
    type Response = tonic::Response<Pin<Box<dyn Stream<Item = Result<String, Status>> + Send>>>;
    type Error = Status;
    type Future = Call<Result<Self::Response, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: tonic::Request<String>) -> Self::Future {
        let open = Open::new(&self.0);
        let texts = tokio_stream::wrappers::WatchStream::new(self.0.text.subscribe());
        Box::pin(async move {
            let stream = texts.map(move |text| {
                let _counted = &open;
                Ok(text)
            });
            Ok(tonic::Response::new(Box::pin(stream) as Pin<Box<dyn Stream<Item = _> + Send>>))
        })
    }
}

struct Hang(Echo);

impl tower::Service<tonic::Request<String>> for Hang {
    type Response = tonic::Response<String>;
    type Error = Status;
    type Future = Call<Result<Self::Response, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: tonic::Request<String>) -> Self::Future {
        let open = Open::new(&self.0);
        Box::pin(async move {
            let _open = open;
            std::future::pending().await
        })
    }
}

/// Calls `Unary`.
pub(crate) async fn unary(channel: &Channel, text: &str) -> Result<String, Status> {
    call(channel, "/test.Echo/Unary", text).await
}

/// Calls `Hang`.
pub(crate) async fn hang(channel: &Channel) -> Result<String, Status> {
    call(channel, "/test.Echo/Hang", "").await
}

async fn call(channel: &Channel, path: &'static str, text: &str) -> Result<String, Status> {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let codec = ProstCodec::<String, String>::default();
    let path = http::uri::PathAndQuery::from_static(path);
    grpc.unary(tonic::Request::new(text.to_owned()), path, codec).await.map(tonic::Response::into_inner)
}

/// Opens `Watch`.
pub(crate) async fn watch(channel: &Channel) -> Result<Streaming<String>, Status> {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let codec = ProstCodec::<String, String>::default();
    let path = http::uri::PathAndQuery::from_static("/test.Echo/Watch");
    grpc.server_streaming(tonic::Request::new(String::new()), path, codec)
        .await
        .map(tonic::Response::into_inner)
}

/// A channel to a Unix socket, as tonic makes it.
pub(crate) async fn connect_unix(path: &Path) -> Result<Channel, tonic::transport::Error> {
    let path = path.to_owned();
    Endpoint::from_static("http://localhost")
        .connect_with_connector(tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { tokio::net::UnixStream::connect(path).await.map(TokioIo::new) }
        }))
        .await
}
