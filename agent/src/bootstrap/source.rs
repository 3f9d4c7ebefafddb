//! Where the trust bundle for the first contact comes from.
//!
//! A file, a URL, somebody's Workload API, or nowhere at all. It is asked for again at each attempt, so that a source that
//! learns of a new authority is believed without a restart. A source on a Unix socket is told what the bundle is wanted for,
//! in SPIRE's query parameters, so that it can decide which one to give.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bonafide_identity::{Timestamp, TrustDomain};
use bonafide_pki::{bundle, split_certificates, tls};
use bonafide_proto::workload::X509BundlesRequest;
use bonafide_proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use bonafide_runtime::BoxError;
use bytes::Bytes;
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tonic::transport::Endpoint;

use super::store::{Attempts, rfc3339};
use crate::config::{BootstrapConfig, BundleFormat};
use crate::server_client::ServerAddress;

/// Where a bundle lies behind HTTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BundleUrl {
    /// On the web, known by the certificate authorities of the system.
    Https(Uri),
    /// Behind a Unix socket.
    Unix {
        /// The URL, of which the path and the query matter.
        url: Uri,
        /// The socket.
        socket: PathBuf,
    },
}

impl BundleUrl {
    /// A URL, which must be `https`, or `http` when it is asked for on a Unix socket.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(text: &str, socket: Option<PathBuf>) -> Result<Self, String> {
        let url = Uri::from_str(text).map_err(|error| format!("is not a URL: {error}"))?;
        let scheme = url.scheme_str();
        if has_userinfo(&url) {
            return Err("must not hold a user or a password, which would not be sent".to_owned());
        }
        if url.host().is_none_or(str::is_empty) {
            return Err("must be a URL with scheme and host".to_owned());
        }
        match socket {
            None if scheme == Some("https") => Ok(Self::Https(url)),
            None => {
                Err("must begin with https://, or with http:// together with bundle_unix_socket".to_owned())
            }
            Some(socket) if scheme == Some("http") => Ok(Self::Unix { url, socket }),
            Some(_) => Err("must begin with http:// when it is asked for on a Unix socket".to_owned()),
        }
    }
}

impl fmt::Display for BundleUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Https(url) => formatter.write_str(&shown(url)),
            Self::Unix { url, socket } => write!(formatter, "{} on {}", shown(url), socket.display()),
        }
    }
}

/// Whether a URL holds a user or a password.
pub(crate) fn has_userinfo(url: &Uri) -> bool {
    url.authority().is_some_and(|authority| authority.as_str().contains('@'))
}

/// A URL for people: without userinfo and query, which may hold secrets.
pub(crate) fn shown(url: &Uri) -> String {
    let scheme = url.scheme_str().unwrap_or_default();
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{scheme}://{}{port}{}", url.host().unwrap_or_default(), url.path())
}

/// Why no bundle came.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A file, which only a person can put right.
    #[error("cannot use the trust bundle in {path}: {problem}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Something that may answer better later.
    #[error("cannot get the trust bundle from {source_name}: {problem}")]
    Away {
        /// Where it should come from.
        source_name: String,
        /// What went wrong.
        problem: String,
    },
}

/// What a source is asked for.
pub(crate) struct Inquiry<'a> {
    pub(crate) trust_domain: &'a TrustDomain,
    pub(crate) server: &'a ServerAddress,
    /// Whether the agent has had a bundle before.
    pub(crate) again: bool,
    pub(crate) attempts: Attempts,
    pub(crate) now: Timestamp,
}

/// The X.509 authorities by which to recognise the server; `None` when it is to be taken at its word.
pub(crate) async fn fetch(
    config: &BootstrapConfig,
    inquiry: &Inquiry<'_>,
) -> Result<Option<Vec<Vec<u8>>>, SourceError> {
    let away = |source_name: String| move |problem: String| SourceError::Away { source_name, problem };
    let (roots, error): (_, Box<dyn FnOnce(String) -> SourceError>) = match config {
        BootstrapConfig::Insecure => return Ok(None),
        BootstrapConfig::Bundle { file, format } => {
            let path = file.clone();
            let roots = match std::fs::read(file) {
                Ok(content) => parse(inquiry.trust_domain, &content, *format),
                Err(error) => Err(error.to_string()),
            };
            (roots, Box::new(move |problem| SourceError::File { path, problem }))
        }
        BootstrapConfig::Url { url, format } => {
            let roots = match bounded(download(url, inquiry)).await {
                Ok(content) => parse(inquiry.trust_domain, &content, *format),
                Err(error) => Err(error),
            };
            (roots, Box::new(away(url.to_string())))
        }
        BootstrapConfig::WorkloadApi { socket } => {
            let roots = bounded(ask_workload_api(socket, inquiry.trust_domain)).await;
            (roots, Box::new(away(format!("the Workload API at {}", socket.display()))))
        }
    };
    match roots {
        Ok(roots) if roots.is_empty() => Err(error("it holds no X.509 authority".to_owned())),
        Ok(roots) => Ok(Some(roots)),
        Err(problem) => Err(error(problem)),
    }
}

async fn bounded<T>(work: impl Future<Output = Result<T, BoxError>>) -> Result<T, String> {
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(result) => result.map_err(|error| bonafide_runtime::tasks::chain(&*error)),
        Err(_) => Err(format!("no answer within {PATIENCE:?}")),
    }
}

fn parse(trust_domain: &TrustDomain, content: &[u8], format: BundleFormat) -> Result<Vec<Vec<u8>>, String> {
    let bundle = match format {
        BundleFormat::Pem => bundle::from_pem(trust_domain, content),
        BundleFormat::Spiffe => bundle::from_spiffe_json(trust_domain, content),
    };
    Ok(super::roots(&bundle.map_err(|error| error.to_string())?))
}

async fn download(url: &BundleUrl, inquiry: &Inquiry<'_>) -> Result<Bytes, BoxError> {
    match url {
        BundleUrl::Https(url) => {
            let host = url.host().unwrap_or_default();
            // A URL has brackets around an IPv6 address, and nothing else does.
            let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
            let tcp = TcpStream::connect((host.as_str(), url.port_u16().unwrap_or(443))).await?;
            let tls = TlsConnector::from(web_client()?).connect(ServerName::try_from(host)?, tcp).await?;
            get(tls, url, url.path_and_query().map_or("/", |path| path.as_str())).await
        }
        BundleUrl::Unix { url, socket } => {
            let query = [url.query().map(str::to_owned), Some(parameters(inquiry))];
            let query: Vec<String> = query.into_iter().flatten().filter(|part| !part.is_empty()).collect();
            get(UnixStream::connect(socket).await?, url, &format!("{}?{}", url.path(), query.join("&"))).await
        }
    }
}

fn web_client() -> Result<Arc<ClientConfig>, BoxError> {
    let mut roots = RootCertStore::empty();
    // What cannot be read is missing then; that none can be read is an error.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err("this system has no certificate authorities".into());
    }
    let config = ClientConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// One GET. Whoever answers may not redirect: what is asked for is named by the operator.
async fn get<S>(stream: S, url: &Uri, path: &str) -> Result<Bytes, BoxError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let result = async {
        let request = Request::get(path)
            .header(http::header::HOST, url.authority().map_or("localhost", |authority| authority.as_str()))
            .header(http::header::USER_AGENT, concat!("bonafide-agent/", env!("CARGO_PKG_VERSION")))
            .body(Empty::<Bytes>::new())?;
        let response = sender.send_request(request).await?;
        if response.status() != StatusCode::OK {
            return Err(format!("the answer is {}", response.status()).into());
        }
        Ok(Limited::new(response.into_body(), MOST).collect().await?.to_bytes())
    }
    .await;
    connection.abort();
    result
}

/// What the source is told, sorted by name.
fn parameters(inquiry: &Inquiry<'_>) -> String {
    let Attempts { count, since } = inquiry.attempts;
    let started = rfc3339(since.unwrap_or(inquiry.now)).unwrap_or_default();
    [
        ("spiffe-trust-domain", inquiry.trust_domain.as_str().to_owned()),
        ("spire-attest-mode", if inquiry.again { "rebootstrap" } else { "bootstrap" }.to_owned()),
        ("spire-attest-start-time", started),
        ("spire-connection-attempts", count.to_string()),
        ("spire-server-address", inquiry.server.host.clone()),
        ("spire-server-port", inquiry.server.port.to_string()),
    ]
    .map(|(name, value)| format!("{name}={}", escaped(&value)))
    .join("&")
}

fn escaped(value: &str) -> String {
    value
        .bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

async fn ask_workload_api(socket: &Path, trust_domain: &TrustDomain) -> Result<Vec<Vec<u8>>, BoxError> {
    let socket = socket.to_owned();
    let connect = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(socket).await?)) }
    });
    let channel = Endpoint::from_static("http://localhost").connect_with_connector(connect).await?;
    let mut client = SpiffeWorkloadApiClient::new(channel).max_decoding_message_size(MOST);
    let mut request = tonic::Request::new(X509BundlesRequest {});
    request.metadata_mut().insert("workload.spiffe.io", tonic::metadata::MetadataValue::from_static("true"));
    let answer = client.fetch_x509_bundles(request).await?.into_inner().message().await?;
    let bundles = answer.ok_or("it ended without an answer")?.bundles;
    let bundle = bundles.get(&trust_domain.id_string());
    let bundle = bundle.ok_or_else(|| format!("it has no bundle of {trust_domain}"))?;
    Ok(split_certificates(bundle)?)
}

/// The path of a Unix socket, as `unix:/path`, `unix:///path` or the path itself.
pub(crate) fn socket_path(text: &str) -> Result<PathBuf, &'static str> {
    let path = text.strip_prefix("unix://").or_else(|| text.strip_prefix("unix:")).unwrap_or(text);
    if path.starts_with('/') { Ok(path.into()) } else { Err("must be unix:///absolute/path") }
}

const PATIENCE: Duration = Duration::from_secs(20);
const MOST: usize = 4 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_https_or_behind_a_socket() {
        let socket = || Some(PathBuf::from("/s"));
        assert!(matches!(BundleUrl::new("https://a.test/b?c=d", None), Ok(BundleUrl::Https(_))));
        assert!(matches!(BundleUrl::new("http://a.test/b", socket()), Ok(BundleUrl::Unix { .. })));
        for (text, socket) in [
            ("http://a.test/b", None),
            ("https://a.test/b", socket()),
            ("/b", None),
            ("a.test", None),
            ("https://", None),
            ("https://user:secret@a.test/b", None),
            ("http://user@a.test/b", socket()),
            ("ftp://a.test/", socket()),
            ("", None),
        ] {
            assert!(BundleUrl::new(text, socket).is_err(), "{text}");
        }
    }

    #[test]
    fn secrets_in_urls_are_not_shown() {
        let url = BundleUrl::new("https://a.test:8443/b?token=secret", None).unwrap();
        assert_eq!(url.to_string(), "https://a.test:8443/b");
        let url = BundleUrl::new("http://[::1]/b?token=secret", Some("/s".into())).unwrap();
        assert_eq!(url.to_string(), "http://[::1]/b on /s");
        assert_eq!(shown(&"https://user:secret@a.test/b?c".parse().unwrap()), "https://a.test/b");
    }

    #[test]
    fn a_source_on_a_socket_is_told_what_it_is_asked_for() {
        let at = |seconds| Timestamp::from_unix_seconds(seconds);
        let inquiry = Inquiry {
            trust_domain: &TrustDomain::parse("example.org").unwrap(),
            server: &"[::1]:8081".parse().unwrap(),
            again: false,
            attempts: Attempts { count: 3, since: Some(at(1_700_000_000)) },
            now: at(1_700_000_100),
        };
        assert_eq!(
            parameters(&inquiry),
            "spiffe-trust-domain=example.org&spire-attest-mode=bootstrap&\
             spire-attest-start-time=2023-11-14T22%3A13%3A20Z&spire-connection-attempts=3&\
             spire-server-address=%3A%3A1&spire-server-port=8081"
        );
        let again = Inquiry { again: true, attempts: Attempts::default(), ..inquiry };
        assert!(parameters(&again).contains("spire-attest-mode=rebootstrap"));
        assert!(parameters(&again).contains("spire-attest-start-time=2023-11-14T22%3A15%3A00Z"));
    }

    #[test]
    fn sockets_are_named_in_three_ways() {
        for text in ["/run/a.sock", "unix:/run/a.sock", "unix:///run/a.sock"] {
            assert_eq!(socket_path(text).unwrap(), Path::new("/run/a.sock"));
        }
        for text in ["", "run/a.sock", "unix:a", "unix://a", "tcp://1.2.3.4:5"] {
            assert!(socket_path(text).is_err(), "{text}");
        }
    }
}
