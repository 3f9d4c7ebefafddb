//! How an ACME server is called: each call over a connection of its own, over TLS and bounded in time and size.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bonafide_pki::tls::https_web_client;
use bonafide_runtime::BoxError;
use bonafide_runtime::clock::SharedClock;
use bytes::Bytes;
use http::header::{HOST, HeaderValue};
use http::{Request, Response, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use instant_acme::{BodyWrapper, BytesResponse, HttpClient};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use super::super::EndpointUrl;
use super::super::fetch::web_roots;

/// Calls an ACME server.
#[derive(Clone)]
pub(super) struct DirectoryClient {
    ca_path: Option<PathBuf>,
    clock: SharedClock,
}

impl DirectoryClient {
    /// The server is verified with the authorities in the PEM file, or with those of the system; either is read at each call.
    pub(super) fn new(ca_path: Option<PathBuf>, clock: SharedClock) -> Self {
        Self { ca_path, clock }
    }

    async fn exchange(self, request: Request<BodyWrapper<Bytes>>) -> Result<Response<Full<Bytes>>, BoxError> {
        // What the directory names must be as good as the directory (RFC 8555, section 6.1).
        let url = EndpointUrl::parse(&request.uri().to_string()).map_err(|error| error.to_string())?;
        let path = self.ca_path.clone();
        let roots = tokio::task::spawn_blocking(move || web_roots(path.as_deref())).await??;
        let clock = self.clock.clone();
        let tls = https_web_client(&roots, Arc::new(move || clock.now()));
        let name = ServerName::try_from(url.host().to_owned())?;
        let tcp = TcpStream::connect((url.host(), url.port())).await?;
        let stream = TlsConnector::from(tls).connect(name, tcp).await?;
        let (mut sender, connection) = http1::Builder::new()
            .max_buf_size(MAX_HEAD)
            .max_headers(MAX_FIELDS)
            .handshake(TokioIo::new(stream))
            .await?;
        // Ends with this call, whatever the other side does.
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        let (mut head, body) = request.into_parts();
        head.uri = url.target().parse::<Uri>()?;
        head.headers.insert(HOST, HeaderValue::from_str(&url.authority())?);
        let answer = sender.send_request(Request::from_parts(head, body)).await?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, MAX_BODY).collect().await?.to_bytes();
        Ok(Response::from_parts(head, Full::new(body)))
    }
}

impl HttpClient for DirectoryClient {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, instant_acme::Error>> + Send>> {
        let what = format!("{} {}", request.method(), request.uri());
        let exchange = self.clone().exchange(request);
        Box::pin(async move {
            let answer = match tokio::time::timeout(CALL, exchange).await {
                Ok(answer) => answer,
                Err(_) => Err(format!("no answer within {CALL:?}").into()),
            };
            let answer = answer.map_err(|error| {
                instant_acme::Error::Other(
                    format!("{what}: {}", bonafide_runtime::tasks::chain(&*error)).into(),
                )
            })?;
            Ok(answer.into())
        })
    }
}

/// For one call.
const CALL: Duration = Duration::from_secs(30);
const MAX_HEAD: usize = 64 * 1024;
const MAX_FIELDS: usize = 100;
/// A chain with a handful of certificates has 10 kB.
const MAX_BODY: usize = 1 << 20;
