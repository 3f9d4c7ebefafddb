//! One HTTP request with a bound on everything: time, size of headers and body, no redirects, no connection kept.
//!
//! For what the daemons ask others for now and then (key sets, tokens of a metadata service, challenges). Redirects are
//! answers like any other that is not 200: following one would let the peer choose whom we talk to.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Uri, header};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Query {
    /// GET, or POST without a body.
    pub method: Method,
    /// An `http` or `https` URL.
    pub url: Uri,
    /// Further headers.
    pub headers: HeaderMap,
    /// The largest body that is read.
    pub limit: usize,
    /// For everything together.
    pub timeout: Duration,
}

impl Query {
    /// A GET.
    pub fn get(url: Uri, limit: usize, timeout: Duration) -> Self {
        Self { method: Method::GET, url, headers: HeaderMap::new(), limit, timeout }
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The URL has no host, or another scheme than `http` and `https`.
    #[error("{0} is not an http or https URL")]
    Url(Uri),
    /// The URL is `https` and no TLS was given.
    #[error("there are no certificate authorities to verify {0} with")]
    NoTls(Uri),
    /// The connection.
    #[error("cannot connect to {host}: {source}")]
    Connect {
        /// Host and port.
        host: String,
        /// What the system, or TLS, said.
        source: io::Error,
    },
    /// The peer does not speak HTTP, or stopped in the middle.
    #[error("the answer is broken: {0}")]
    Http(#[from] hyper::Error),
    /// An answer other than 200.
    #[error("the answer is {0}")]
    Status(http::StatusCode),
    /// The body is larger than allowed.
    #[error("the answer has more than {0} bytes")]
    TooLarge(usize),
    /// It took too long.
    #[error("there was no answer within {0:?}")]
    Timeout(Duration),
}

/// Asks, and reads the whole answer.
///
/// # Errors
/// [`FetchError`]; also when the answer is not a 200.
pub async fn fetch(query: Query, tls: Option<Arc<ClientConfig>>) -> Result<Bytes, FetchError> {
    let after = query.timeout;
    tokio::time::timeout(after, ask(query, tls)).await.map_err(|_| FetchError::Timeout(after))?
}

async fn ask(query: Query, tls: Option<Arc<ClientConfig>>) -> Result<Bytes, FetchError> {
    let wrong = || FetchError::Url(query.url.clone());
    let secure = match query.url.scheme_str() {
        Some("https") => true,
        Some("http") => false,
        _ => return Err(wrong()),
    };
    // In a URL the brackets are around an IPv6 address, for the system they are not.
    let host = query.url.host().ok_or_else(wrong)?.trim_matches(['[', ']']).to_owned();
    let port = query.url.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let failed = |source| FetchError::Connect { host: format!("{host}:{port}"), source };
    let stream = TcpStream::connect((host.as_str(), port)).await.map_err(failed)?;
    if !secure {
        return exchange(stream, query, Surplus::Refuse).await;
    }
    let tls = tls.ok_or_else(|| FetchError::NoTls(query.url.clone()))?;
    let name = ServerName::try_from(host.clone()).map_err(|_| wrong())?;
    let stream = TlsConnector::from(tls).connect(name, stream).await.map_err(failed)?;
    exchange(stream, query, Surplus::Refuse).await
}

/// What is done with a body beyond the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Surplus {
    /// The answer is refused.
    Refuse,
    /// The rest is not read.
    Ignore,
}

/// The same over a connection that is there already. Time is not limited here.
///
/// # Errors
/// [`FetchError`].
pub async fn exchange<S>(stream: S, query: Query, surplus: Surplus) -> Result<Bytes, FetchError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(HEADERS)
        .handshake(TokioIo::new(stream))
        .await?;
    // It ends with the answer, or with this future.
    let connection = AbortOnDrop(tokio::spawn(async move {
        let _ = connection.await;
    }));
    let path = query.url.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let host = query.url.authority().map_or("", http::uri::Authority::as_str);
    let wrong = |_| FetchError::Url(query.url.clone());
    let mut request =
        Request::builder().method(query.method).uri(path).body(Empty::<Bytes>::new()).map_err(wrong)?;
    *request.headers_mut() = query.headers;
    let wrong = |_| FetchError::Url(query.url.clone());
    request.headers_mut().insert(header::HOST, HeaderValue::from_str(host).map_err(wrong)?);
    request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    let answer = sender.send_request(request).await?;
    if answer.status() != http::StatusCode::OK {
        return Err(FetchError::Status(answer.status()));
    }
    let mut body = answer.into_body();
    let mut read = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        let room = query.limit - read.len();
        if data.len() > room && surplus == Surplus::Refuse {
            return Err(FetchError::TooLarge(query.limit));
        }
        read.extend_from_slice(&data[..data.len().min(room)]);
        if read.len() == query.limit && surplus == Surplus::Ignore {
            break;
        }
    }
    drop(connection);
    Ok(read.into())
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The certificate authorities that the system trusts, as PEM, and where they were found.
///
/// # Errors
/// There is none of the usual files: say in the configuration where the authorities are.
pub fn system_authorities() -> io::Result<(PathBuf, Vec<u8>)> {
    let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let usual = AUTHORITIES.iter().map(|path| Path::new(path).to_owned());
    for path in named.into_iter().chain(usual) {
        match std::fs::read(&path) {
            Ok(text) => return Ok((path, text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, "the system has no file of certificate authorities"))
}

const AUTHORITIES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

const HEADERS: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    async fn answered(answer: &'static [u8], limit: usize, surplus: Surplus) -> Result<Bytes, FetchError> {
        let (ours, mut theirs) = duplex(1 << 16);
        let peer = tokio::spawn(async move {
            let mut request = vec![0; 1024];
            let read = theirs.read(&mut request).await.unwrap();
            theirs.write_all(answer).await.unwrap();
            String::from_utf8(request[..read].to_vec()).unwrap()
        });
        let url = Uri::from_static("http://issuer.test:8080/keys?a=b");
        let result = exchange(ours, Query::get(url, limit, Duration::from_secs(1)), surplus).await;
        let request = peer.await.unwrap();
        assert!(request.starts_with("GET /keys?a=b HTTP/1.1\r\n"), "{request}");
        assert!(request.contains("host: issuer.test:8080\r\n"), "{request}");
        result
    }

    #[tokio::test]
    async fn an_answer_has_a_size_and_is_a_200() {
        const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";
        assert_eq!(answered(OK, 5, Surplus::Refuse).await.unwrap(), "hello");
        assert!(matches!(answered(OK, 4, Surplus::Refuse).await, Err(FetchError::TooLarge(4))));
        assert_eq!(answered(OK, 4, Surplus::Ignore).await.unwrap(), "hell");
        let redirect = b"HTTP/1.1 302 Found\r\nlocation: http://other.test/\r\ncontent-length: 0\r\n\r\n";
        assert!(matches!(answered(redirect, 5, Surplus::Refuse).await, Err(FetchError::Status(_))));
        assert!(matches!(answered(b"SSH-2.0-x\r\n\r\n", 5, Surplus::Refuse).await, Err(FetchError::Http(_))));
    }

    #[tokio::test]
    async fn what_cannot_be_asked_is_said() {
        let ask =
            |url: &'static str| fetch(Query::get(Uri::from_static(url), 5, Duration::from_secs(5)), None);
        assert!(matches!(ask("ftp://localhost/").await, Err(FetchError::Url(_))));
        assert!(matches!(ask("/path").await, Err(FetchError::Url(_))));
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = silent.local_addr().unwrap();
        let url: Uri = format!("https://{address}/").parse().unwrap();
        let query = Query::get(url, 5, Duration::from_millis(50));
        assert!(matches!(fetch(query, None).await, Err(FetchError::NoTls(_))));
        let url: Uri = format!("http://{address}/").parse().unwrap();
        let query = Query::get(url, 5, Duration::from_millis(50));
        assert!(matches!(fetch(query, None).await, Err(FetchError::Timeout(_))));
    }
}
