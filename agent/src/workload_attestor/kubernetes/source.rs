//! Where the pods of the node are asked for: the kubelet, in one of its two ways.
//!
//! The Pods API on a Unix socket that only root can open needs no token, no certificate and no right in the cluster, and says when
//! something changes. It is used where its socket is. Elsewhere the kubelet's HTTP port is asked for `/pods`. Files with
//! secrets and authorities are read for each question, so that what rotates is followed.
//!
//! Rejected: asking the API server, which makes attestation depend on it, and which a pod on the node may reach before the
//! kubelet's own state does.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bonafide_pki::tls::{WebServer, web_client_config_with};
use bonafide_proto::kubelet::pods::pods_client::PodsClient;
use bonafide_proto::kubelet::pods::{EventType, ListPodsRequest, WatchPodsRequest};
use bonafide_runtime::fetch::{FetchError, Query, fetch};
use http::{HeaderValue, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tonic::transport::{Channel, Endpoint};
use zeroize::Zeroizing;

use super::pod::Listing;
use crate::metrics;

/// Where pods are asked for.
#[async_trait]
pub trait PodSource: Send + Sync {
    /// All pods of the node now.
    ///
    /// # Errors
    /// There is no answer within bounds.
    async fn list(&self) -> Result<Listing, SourceError>;

    /// Ends when another answer may be had. May never end.
    async fn changed(&self);
}

/// How the kubelet's HTTP port is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KubeletConfig {
    /// The port.
    pub port: u16,
    /// How the two know each other; none on the port that needs no authentication.
    pub tls: Option<KubeletTls>,
    /// The name to dial and to verify. Without, the kubelet is dialled on the loopback and its name not looked at.
    pub node_name: Option<String>,
}

/// How agent and kubelet know each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KubeletTls {
    /// PEM of the authorities of the kubelet's certificate; none believes anybody.
    pub ca_path: Option<PathBuf>,
    /// What the agent shows.
    pub credentials: Credentials,
}

/// What the agent shows the kubelet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credentials {
    /// The token in a file.
    Token(PathBuf),
    /// A certificate.
    Certificate {
        /// PEM of the chain.
        certificate: PathBuf,
        /// PEM of the key.
        key: PathBuf,
    },
    /// Nothing.
    Anonymous,
}

/// Why the kubelet's pods are not known. Shared by all who wait for them.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SourceError {
    /// A file of the configuration.
    #[error("cannot read {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Arc<std::io::Error>,
    },
    /// A file of the configuration holds something else.
    #[error("{path} {problem}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Authorities, certificate or key cannot be used.
    #[error("the TLS settings cannot be used: {0}")]
    Tls(String),
    /// The port does not answer.
    #[error("the kubelet's port does not answer as it should{}", hint(.0))]
    Http(#[source] Arc<FetchError>),
    /// It is no list of pods.
    #[error("the kubelet's answer is no list of pods")]
    Json(#[source] Arc<serde_json::Error>),
    /// The socket is not there or nobody listens.
    #[error("cannot connect to {path}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Arc<tonic::transport::Error>,
    },
    /// The API on the socket says no.
    #[error("the kubelet refuses with {code:?}: {message}")]
    Refused {
        /// The gRPC code.
        code: tonic::Code,
        /// What it says.
        message: String,
    },
    /// One of the pods is none.
    #[error("a pod from the kubelet cannot be read")]
    Proto(#[source] Arc<prost::DecodeError>),
    /// It takes too long.
    #[error("the kubelet does not answer within {PATIENCE:?}")]
    TooSlow,
}

fn hint(error: &FetchError) -> &'static str {
    match error {
        FetchError::Status(status) if status.as_u16() == 401 => {
            ": it does not know the agent (look at token_path)"
        }
        FetchError::Status(status) if status.as_u16() == 403 => ": the agent may not get nodes/proxy",
        _ => "",
    }
}

/// The kubelet's HTTP port.
pub struct Kubelet(KubeletConfig);

impl Kubelet {
    /// The kubelet at this address.
    #[must_use]
    pub fn new(config: KubeletConfig) -> Self {
        Self(config)
    }

    async fn ask(&self) -> Result<Listing, SourceError> {
        let KubeletConfig { port, tls, node_name } = &self.0;
        // The open port is the loopback's, as in SPIRE.
        let host = node_name.as_deref().filter(|_| tls.is_some()).unwrap_or("127.0.0.1");
        let scheme = if tls.is_some() { "https" } else { "http" };
        let url: Uri = format!("{scheme}://{host}:{port}/pods")
            .parse()
            .map_err(|_| SourceError::Tls(format!("{host:?} is no name of a host")))?;
        let mut query = Query::get(url, MAX_ANSWER, PATIENCE);
        let mut client = None;
        if let Some(KubeletTls { ca_path, credentials }) = tls {
            let authorities = ca_path.as_deref().map(read).transpose()?;
            let server = match &authorities {
                None => WebServer::Anybody,
                Some(authorities) if node_name.is_some() => WebServer::Named(authorities),
                Some(authorities) => WebServer::Local(authorities),
            };
            let identity = match credentials {
                Credentials::Certificate { certificate, key } => Some((read(certificate)?, read(key)?)),
                Credentials::Token(path) => {
                    query.headers.insert(http::header::AUTHORIZATION, bearer(path)?);
                    None
                }
                Credentials::Anonymous => None,
            };
            let identity = identity.as_ref().map(|(chain, key)| (chain.as_slice(), key.as_slice()));
            let config = web_client_config_with(server, identity)
                .map_err(|error| SourceError::Tls(error.to_string()))?;
            client = Some(config);
        }
        let answer = fetch(query, client).await.map_err(|error| SourceError::Http(Arc::new(error)))?;
        Listing::from_json(&answer).map_err(|error| SourceError::Json(Arc::new(error)))
    }
}

#[async_trait]
impl PodSource for Kubelet {
    async fn list(&self) -> Result<Listing, SourceError> {
        let result = self.ask().await;
        metrics::kubelet_asked("pods", result.is_ok());
        result
    }

    async fn changed(&self) {
        std::future::pending::<()>().await;
    }
}

fn bearer(path: &Path) -> Result<HeaderValue, SourceError> {
    let wrong = |problem| SourceError::Content { path: path.to_owned(), problem };
    let content = read(path)?;
    let token = std::str::from_utf8(&content).map_err(|_| wrong("holds no token"))?.trim();
    if token.is_empty() {
        return Err(wrong("holds no token"));
    }
    let text = Zeroizing::new(format!("Bearer {token}"));
    let mut value = HeaderValue::from_str(&text).map_err(|_| wrong("holds no token"))?;
    value.set_sensitive(true);
    Ok(value)
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, SourceError> {
    use std::io::Read as _;
    let failed = |source| SourceError::File { path: path.to_owned(), source: Arc::new(source) };
    let mut content = Zeroizing::new(Vec::new());
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(MAX_FILE).read_to_end(&mut content).map_err(failed)?;
    Ok(content)
}

/// The kubelet's Pods API.
pub struct PodsApi {
    socket: PathBuf,
    changes: watch::Sender<u64>,
    watching: Arc<AtomicBool>,
}

impl PodsApi {
    /// The API behind this socket.
    #[must_use]
    pub fn new(socket: PathBuf) -> Self {
        Self { socket, changes: watch::Sender::new(0), watching: Arc::default() }
    }

    async fn ask(&self) -> Result<Listing, SourceError> {
        let work = async {
            let mut client = pods_client(&self.socket).await?;
            let answer = client.list_pods(ListPodsRequest {}).await.map_err(|status| refused(&status))?;
            let pods = answer.into_inner().pods;
            Listing::from_proto(&pods).map_err(|error| SourceError::Proto(Arc::new(error)))
        };
        tokio::time::timeout(PATIENCE, work).await.map_err(|_| SourceError::TooSlow)?
    }
}

async fn pods_client(socket: &Path) -> Result<PodsClient<Channel>, SourceError> {
    Ok(PodsClient::new(connect(socket).await?).max_decoding_message_size(MAX_ANSWER))
}

/// A connection to a gRPC service on a Unix socket.
pub(crate) async fn connect(socket: &Path) -> Result<Channel, SourceError> {
    let path = socket.to_owned();
    let dial = tower::service_fn(move |_| {
        let path = path.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
    });
    let failed = |source| SourceError::Connect { path: socket.to_owned(), source: Arc::new(source) };
    Endpoint::from_static("http://localhost").connect_with_connector(dial).await.map_err(failed)
}

pub(crate) fn refused(status: &tonic::Status) -> SourceError {
    let message = status.message().chars().filter(|letter| !letter.is_control()).take(200).collect();
    SourceError::Refused { code: status.code(), message }
}

#[async_trait]
impl PodSource for PodsApi {
    async fn list(&self) -> Result<Listing, SourceError> {
        let result = self.ask().await;
        metrics::kubelet_asked("pods_api", result.is_ok());
        result
    }

    /// Watches as long as somebody waits for it, all together over one stream.
    async fn changed(&self) {
        let mut changes = self.changes.subscribe();
        if !self.watching.swap(true, Ordering::SeqCst) {
            let (watching, changes) = (Arc::clone(&self.watching), self.changes.clone());
            let socket = self.socket.clone();
            // Whoever waits may go away at any moment; the others still wait.
            tokio::spawn(async move {
                if let Ok(client) = pods_client(&socket).await {
                    watch(client, &changes).await;
                }
                // One that fails at once is not begun anew at once.
                tokio::time::sleep(AGAIN).await;
                watching.store(false, Ordering::SeqCst);
            });
        }
        if changes.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Ends with the stream, or at a change that nobody waits for.
async fn watch(mut client: PodsClient<Channel>, changes: &watch::Sender<u64>) {
    let Ok(stream) = client.watch_pods(WatchPodsRequest {}).await else { return };
    let mut stream = stream.into_inner();
    let mut synced = false;
    while let Ok(Some(event)) = stream.message().await {
        synced |= event.r#type() == EventType::InitialSyncComplete;
        if synced {
            // The mark itself counts: something may have changed between the last question and the beginning of the stream.
            changes.send_modify(|count| *count += 1);
            if changes.receiver_count() == 0 {
                return;
            }
        }
    }
}

/// The Pods API where its socket is, the HTTP port elsewhere.
pub struct Preferred {
    api: PodsApi,
    kubelet: Kubelet,
}

impl Preferred {
    /// Both ways to the same kubelet.
    #[must_use]
    pub fn new(api: PodsApi, kubelet: Kubelet) -> Self {
        Self { api, kubelet }
    }

    fn has_api(&self) -> bool {
        self.api.socket.exists()
    }
}

#[async_trait]
impl PodSource for Preferred {
    async fn list(&self) -> Result<Listing, SourceError> {
        if !self.has_api() {
            return self.kubelet.list().await;
        }
        match self.api.list().await {
            // A socket that an older run left, or one of another version of the API.
            Err(
                SourceError::Connect { .. } | SourceError::Refused { code: tonic::Code::Unimplemented, .. },
            ) => self.kubelet.list().await,
            answer => answer,
        }
    }

    async fn changed(&self) {
        if self.has_api() {
            self.api.changed().await;
        } else {
            self.kubelet.changed().await;
        }
    }
}

/// The Pods API unless the configuration says otherwise.
pub const DEFAULT_PODS_API_SOCKET: &str = "/var/lib/kubelet/pods-api/pods-api.sock";
/// The kubelet's port unless the configuration says otherwise.
pub const DEFAULT_SECURE_PORT: u16 = 10250;
/// The authorities of the cluster unless the configuration says otherwise.
pub const DEFAULT_CA_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt";
/// The token of the agent's service account unless the configuration says otherwise.
pub const DEFAULT_TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

const PATIENCE: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_millis(500);
/// For 500 pods of the largest size that is usual; the API server takes none above 1.5 MiB.
const MAX_ANSWER: usize = 64 << 20;
const MAX_FILE: u64 = 1 << 20;
