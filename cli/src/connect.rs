//! Connections to the two local sockets.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bonafide_proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::Request;
use tonic::metadata::MetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use crate::failure::Failure;

/// Where the server and the agent listen.
#[derive(Clone, Debug)]
pub(crate) struct Sockets {
    /// The server's local socket.
    pub(crate) server: PathBuf,
    /// The Workload API: a path, or the `unix:` form of SPIFFE_ENDPOINT_SOCKET.
    pub(crate) agent: String,
}

impl Sockets {
    /// A connection to the server's local socket.
    pub(crate) async fn server(&self) -> Result<Channel, Failure> {
        channel("server", &self.server).await
    }

    /// A connection to the agent's socket, without the security header.
    pub(crate) async fn agent(&self) -> Result<Channel, Failure> {
        channel("agent", &self.agent_path()?).await
    }

    /// A Workload API client (SPIFFE Workload Endpoint, section 3: the security header is on every call).
    pub(crate) async fn workload(&self) -> Result<WorkloadClient, Failure> {
        Ok(SpiffeWorkloadApiClient::with_interceptor(self.agent().await?, SecurityHeader)
            .max_decoding_message_size(16 << 20))
    }

    fn agent_path(&self) -> Result<PathBuf, Failure> {
        let text = self.agent.as_str();
        let path = text.strip_prefix("unix://").or_else(|| text.strip_prefix("unix:")).unwrap_or(text);
        if path.contains("://") || path.is_empty() {
            return Err(Failure::Input(format!(
                "{text:?} is not a Unix socket: give a path or unix:///path (the agent serves no TCP)"
            )));
        }
        Ok(PathBuf::from(path))
    }
}

/// A client of the Workload API.
pub(crate) type WorkloadClient = SpiffeWorkloadApiClient<InterceptedService<Channel, SecurityHeader>>;

/// Adds `workload.spiffe.io: true` to each call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SecurityHeader;

impl Interceptor for SecurityHeader {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, tonic::Status> {
        request.metadata_mut().insert("workload.spiffe.io", MetadataValue::from_static("true"));
        Ok(request)
    }
}

async fn channel(who: &'static str, path: &Path) -> Result<Channel, Failure> {
    // The first connection is made by hand: tonic would only say "transport error" when it fails.
    let unreachable = |reason: String| Failure::Unreachable { who, path: path.to_owned(), reason };
    let first = UnixStream::connect(path).await.map_err(|error| unreachable(error.to_string()))?;
    let (first, target) = (Arc::new(Mutex::new(Some(first))), path.to_owned());
    Endpoint::from_static("http://localhost")
        .connect_timeout(Duration::from_secs(10))
        .connect_with_connector(service_fn(move |_: Uri| {
            let made = first.lock().ok().and_then(|mut first| first.take());
            let target = target.clone();
            async move {
                match made {
                    Some(made) => Ok(TokioIo::new(made)),
                    None => UnixStream::connect(target).await.map(TokioIo::new),
                }
            }
        }))
        .await
        .map_err(|error| unreachable(error.to_string()))
}
