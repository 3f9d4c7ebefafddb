//! One request to a peer's bundle endpoint.
//!
//! hyper on our own TLS and nothing between: a client library would follow redirects, keep cookies and connections, and
//! bring a TLS configuration of its own. Redirects are refused because the relationship names one endpoint, and the
//! authentication is of that one.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bonafide_identity::{Bundle, SpiffeId, TrustDomain};
use bonafide_pki::bundle::{BundleError, MAX_DOCUMENT_BYTES, PublishedBundle, published};
use bonafide_pki::tls::{Now, TrustStore, WebRoots, https_spiffe_client, https_web_client, refusal};
use bonafide_pki::{TrustRoots, X509Error, pem};
use bonafide_runtime::clock::SharedClock;
use bytes::Bytes;
use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_LENGTH, ETAG, HOST, IF_NONE_MATCH, USER_AGENT};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;

use super::endpoint_url::{EndpointUrl, EndpointUrlError};
use super::http_headers::entity_tag;
use crate::store::{EndpointProfile, FederationRelationship, State};

/// How long a peer is asked to hold a request until its bundle changes.
pub const WAIT: Duration = Duration::from_secs(20);
/// How long connecting and the TLS handshake may take.
const CONNECT: Duration = Duration::from_secs(10);
/// How long an answer may take, beyond the time for which it was asked to be held.
const ANSWER: Duration = Duration::from_secs(15);
/// How much of the head of an answer is read.
const MAX_HEAD: usize = 64 * 1024;
/// How many header fields an answer may have.
const MAX_FIELDS: usize = 100;

/// Under which condition a peer shall send its bundle.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conditional {
    /// Only when it is no longer the one with this tag.
    pub tag: Option<String>,
    /// Ask the peer to hold the request until then, for at most [`WAIT`].
    pub wait: bool,
}

/// What a peer answered.
#[derive(Debug)]
pub struct Answer {
    /// The bundle, or that it is as before.
    pub fetched: Fetched,
    /// The peer holds requests that ask for it.
    pub holds: bool,
    /// How long it took.
    pub took: Duration,
    /// The bundle with which the endpoint was authenticated; `None` in the profile `https_web`.
    pub trusted: Option<Arc<Bundle>>,
}

/// The content of an answer.
#[derive(Debug)]
pub enum Fetched {
    /// A bundle.
    Bundle {
        /// As it was published.
        published: PublishedBundle,
        /// The tag by which to ask for the next one.
        tag: Option<String>,
    },
    /// It is still the one with the tag.
    NotModified,
}

/// Why a peer's endpoint gave no bundle.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The relationship's URL cannot be used.
    #[error(transparent)]
    Url(#[from] EndpointUrlError),
    /// The host cannot stand in a TLS handshake.
    #[error("{0:?} is neither a host name nor an IP address")]
    Host(String),
    /// The endpoint cannot be authenticated because nothing is known of its trust domain.
    #[error(
        "can't perform SPIFFE Authentication: local copy of bundle not found: set a bundle of trust domain {0} first"
    )]
    NoBundle(TrustDomain),
    /// The stored bundle of the endpoint's trust domain cannot be used.
    #[error("the stored bundle of trust domain {trust_domain} cannot be used: {source}")]
    Roots {
        /// Whose bundle.
        trust_domain: TrustDomain,
        /// What is wrong with it.
        source: X509Error,
    },
    /// The authorities of the Web PKI cannot be read.
    #[error("the authorities of the Web PKI: {0}")]
    WebRoots(String),
    /// No connection.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// Host and port.
        address: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The TLS handshake failed; most often the endpoint is not who it should be.
    #[error("the endpoint is not authenticated: {0}")]
    Tls(String),
    /// Something took too long.
    #[error("{0} took too long")]
    Timeout(&'static str),
    /// The endpoint does not speak HTTP.
    #[error("the answer cannot be read: {0}")]
    Http(#[from] hyper::Error),
    /// Another status than 200.
    #[error("unexpected status {status} fetching bundle{}", .note)]
    Status {
        /// The status.
        status: u16,
        /// What to make of it.
        note: &'static str,
    },
    /// The document is too long or broke off.
    #[error("the bundle document cannot be read: {0}")]
    Body(String),
    /// The document is no bundle.
    #[error(transparent)]
    Document(#[from] BundleError),
    /// An authority that verification could not use.
    #[error("an authority of the bundle cannot be used: {0}")]
    Authority(X509Error),
}

/// Fetches bundles.
#[derive(Clone)]
pub struct Fetcher {
    web_ca_path: Option<PathBuf>,
    clock: SharedClock,
}

impl Fetcher {
    /// For the profile `https_web`, endpoints are verified with the authorities in the PEM file, or with those of the system.
    /// Either is read at each fetch, so that it may change.
    pub fn new(web_ca_path: Option<PathBuf>, clock: SharedClock) -> Self {
        Self { web_ca_path, clock }
    }

    /// Asks the endpoint of a relationship for its bundle.
    ///
    /// # Errors
    /// [`FetchError`].
    pub async fn fetch(
        &self,
        relationship: &FederationRelationship,
        state: &State,
        conditional: &Conditional,
    ) -> Result<Answer, FetchError> {
        let began = Instant::now();
        let url = EndpointUrl::parse(&relationship.bundle_endpoint_url)?;
        let (tls, name, trusted) = match &relationship.profile {
            EndpointProfile::HttpsWeb => {
                let name = server_name(&url)?;
                (https_web_client(&self.web_roots().await?, self.now()), name, None)
            }
            EndpointProfile::HttpsSpiffe { endpoint_spiffe_id } => {
                let (trust, bundle) = trust(state, endpoint_spiffe_id)?;
                // The name is only a hint here: a host name that TLS cannot carry is no reason to refuse.
                let name = server_name(&url).unwrap_or_else(|_| bonafide_pki::tls::server_name());
                (https_spiffe_client(trust, endpoint_spiffe_id.clone(), self.now()), name, Some(bundle))
            }
        };
        let held = if conditional.wait && conditional.tag.is_some() { WAIT } else { Duration::ZERO };
        let response = tokio::time::timeout(CONNECT + ANSWER + held, exchange(&url, tls, name, conditional));
        let (response, connection) = response.await.map_err(|_| FetchError::Timeout("the answer"))??;
        let _connection = connection;
        let holds = response.headers().contains_key(PREFERENCE_APPLIED);
        let took = began.elapsed();
        let answer = |fetched| Answer { fetched, holds, took, trusted };
        if response.status() == StatusCode::NOT_MODIFIED && conditional.tag.is_some() {
            return Ok(answer(Fetched::NotModified));
        }
        if response.status() != StatusCode::OK {
            let redirect = response.status().is_redirection();
            let note = if redirect { ": redirects are not followed" } else { "" };
            return Err(FetchError::Status { status: response.status().as_u16(), note });
        }
        let tag = response.headers().get(ETAG).and_then(|tag| tag.to_str().ok()).and_then(entity_tag);
        let document = tokio::time::timeout(ANSWER, read(response))
            .await
            .map_err(|_| FetchError::Timeout("the bundle document"))??;
        let published = published(&relationship.trust_domain, &document)?;
        let certificates = published.bundle.x509_authorities.iter().map(|root| root.certificate.as_slice());
        // One that cannot be used would cost that trust domain all trust: the last good bundle is better.
        TrustRoots::from_der(certificates).map_err(FetchError::Authority)?;
        Ok(answer(Fetched::Bundle { published, tag }))
    }

    async fn web_roots(&self) -> Result<WebRoots, FetchError> {
        let path = self.web_ca_path.clone();
        // Hundreds of files on some systems.
        let read = tokio::task::spawn_blocking(move || web_roots(path.as_deref())).await;
        read.map_err(|error| FetchError::WebRoots(error.to_string()))?.map_err(FetchError::WebRoots)
    }

    fn now(&self) -> Now {
        let clock = self.clock.clone();
        Arc::new(move || clock.now())
    }
}

/// The authorities of the Web PKI: those of a PEM file, or those of the system.
///
/// # Errors
/// The file cannot be read, or holds something else; or the system has none.
pub fn web_roots(path: Option<&std::path::Path>) -> Result<WebRoots, String> {
    let Some(path) = path else {
        let found = rustls_native_certs::load_native_certs();
        let certificates = found.certs.iter().map(|certificate| certificate.to_vec());
        return WebRoots::from_der(certificates, true).map_err(|error| match found.errors.first() {
            Some(why) => format!("the system's cannot be read: {why}"),
            None => format!("the system's: {error}; name a file with federation.web_ca_path"),
        });
    };
    let at = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let text = std::fs::read(path).map_err(|error| at(&error))?;
    let blocks = pem::decode_all(&text).map_err(|error| at(&error))?;
    let certificates = blocks.into_iter().filter(|(label, _)| label == "CERTIFICATE").map(|(_, der)| der);
    WebRoots::from_der(certificates, false).map_err(|error| at(&error))
}

fn server_name(url: &EndpointUrl) -> Result<ServerName<'static>, FetchError> {
    ServerName::try_from(url.host().to_owned()).map_err(|_| FetchError::Host(url.host().to_owned()))
}

/// Only the trust domain of the endpoint, as it is stored now.
fn trust(state: &State, endpoint: &SpiffeId) -> Result<(TrustStore, Arc<Bundle>), FetchError> {
    let trust_domain = endpoint.trust_domain();
    let bundle = state.bundle(trust_domain).ok_or_else(|| FetchError::NoBundle(trust_domain.clone()))?;
    let roots = TrustRoots::from_der(bundle.x509_authorities.iter().map(|root| root.certificate.as_slice()))
        .map_err(|source| FetchError::Roots { trust_domain: trust_domain.clone(), source })?;
    let trust = TrustStore::empty();
    trust.set_trust_domain(trust_domain, &Arc::new(roots));
    Ok((trust, bundle))
}

/// Ends the connection when it is dropped.
struct Connection(tokio::task::JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn exchange(
    url: &EndpointUrl,
    tls: Arc<ClientConfig>,
    name: ServerName<'static>,
    conditional: &Conditional,
) -> Result<(Response<Incoming>, Connection), FetchError> {
    let stream = tokio::time::timeout(CONNECT, async {
        let tcp = TcpStream::connect((url.host(), url.port())).await.map_err(|source| {
            let address = format!("{}:{}", url.host(), url.port());
            FetchError::Connect { address, source }
        })?;
        TlsConnector::from(tls).connect(name, tcp).await.map_err(|error| {
            let reason = refusal(&error).map(ToString::to_string);
            FetchError::Tls(reason.unwrap_or_else(|| error.to_string()))
        })
    })
    .await
    .map_err(|_| FetchError::Timeout("connecting"))??;
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_FIELDS)
        .handshake(TokioIo::new(stream))
        .await?;
    let connection = Connection(tokio::spawn(async move {
        // The request reports what goes wrong.
        let _ = connection.await;
    }));
    let mut request = Request::get(url.target())
        .header(HOST, url.authority())
        .header(ACCEPT, "application/json")
        // An older copy would bring back what has been revoked.
        .header(CACHE_CONTROL, "no-cache")
        .header(USER_AGENT, concat!("bonafide/", env!("CARGO_PKG_VERSION")));
    if let Some(tag) = &conditional.tag {
        request = request.header(IF_NONE_MATCH, tag);
    }
    if conditional.wait {
        request = request.header(PREFER, format!("wait={}", WAIT.as_secs()));
    }
    let request = request
        .body(Empty::<Bytes>::new())
        .map_err(|error| EndpointUrlError::Malformed(error.to_string()))?;
    let response = sender.send_request(request).await?;
    Ok((response, connection))
}

async fn read(response: Response<Incoming>) -> Result<Vec<u8>, FetchError> {
    let too_long = || FetchError::Document(BundleError::TooLarge);
    let length = response.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if length.is_some_and(|length: u64| length > MAX_DOCUMENT_BYTES as u64) {
        return Err(too_long());
    }
    let body = Limited::new(response.into_body(), MAX_DOCUMENT_BYTES);
    match body.collect().await {
        Ok(collected) => Ok(collected.to_bytes().to_vec()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(too_long()),
        Err(error) => Err(FetchError::Body(error.to_string())),
    }
}

/// RFC 7240.
pub(super) const PREFER: &str = "prefer";
/// RFC 7240.
pub(super) const PREFERENCE_APPLIED: &str = "preference-applied";
