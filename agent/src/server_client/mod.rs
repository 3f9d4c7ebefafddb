//! What the agent asks of the server.
//!
//! [`Connector`] makes connections, [`Connection`] is one with a method for each rpc, and [`ServerClient`] keeps one
//! connection with the agent's SVID and replaces it: after any failure of a call, and when the agent's SVID changes.
//! Each operation has 30 seconds, connecting included.
//!
//! Calls share one HTTP/2 connection. The addresses behind the server's name are taken in turn by successive connections
//! rather than used at once: an agent makes a handful of calls in a sync, and a second connection would only double
//! what the server keeps for it.
//!
//! Generated message types end here; everything handed out is a domain type.

mod connection;
mod error;
mod sync;

use std::str::FromStr;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bonafide_identity::{Bundle, EntryId, SpiffeId, Timestamp, TrustDomain};
use bonafide_pki::evidence::{CHALLENGE_SIZE, DeviceEvidence};
use bonafide_proto::convert::{SignedToken, X509Chain};
use tokio::sync::Mutex;

pub use connection::{
    Attested, Connection, Connector, Identity, Signed, SignedBatch, Verification, WitRequest, X509Request,
};
pub use error::{ServerError, unknown_since};
pub use sync::{EntrySync, KnownEntry};

use crate::metrics;

/// Where the server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerAddress {
    /// A name or an IP address without brackets.
    pub host: String,
    /// The TCP port.
    pub port: u16,
}

impl FromStr for ServerAddress {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const SHAPE: &str = "must have the form host:port, with brackets around an IPv6 address";
        let (host, port) = text.rsplit_once(':').ok_or(SHAPE)?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or(SHAPE)?;
        let host = match host.strip_prefix('[') {
            Some(inner) => {
                inner.strip_suffix(']').filter(|inner| inner.parse::<std::net::Ipv6Addr>().is_ok())
            }
            None => Some(host).filter(|host| !host.contains([':', ']', '/', ' '])),
        };
        let host = host.filter(|host| !host.is_empty()).ok_or(SHAPE)?;
        Ok(Self { host: host.to_owned(), port })
    }
}

impl std::fmt::Display for ServerAddress {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            write!(formatter, "[{}]:{}", self.host, self.port)
        } else {
            write!(formatter, "{}:{}", self.host, self.port)
        }
    }
}

/// One connection with the agent's SVID, remade when needed. Cheap to clone.
#[derive(Clone)]
pub struct ServerClient {
    shared: Arc<Shared>,
}

struct Shared {
    connector: Connector,
    identity: Identity,
    current: Mutex<Option<Arc<Connection>>>,
    unknown_since: std::sync::Mutex<Option<Timestamp>>,
    timeout: Duration,
}

impl ServerClient {
    /// A client that connects when it is first used.
    #[must_use]
    pub fn new(connector: Connector, identity: Identity) -> Self {
        let shared = Shared {
            connector,
            identity,
            current: Mutex::new(None),
            unknown_since: std::sync::Mutex::default(),
            timeout: OPERATION_TIMEOUT,
        };
        Self { shared: Arc::new(shared) }
    }

    /// Drops the connection; calls in flight end in their own time. The next call connects anew, with the SVID that the
    /// agent holds then.
    pub async fn disconnect(&self) {
        self.shared.current.lock().await.take();
    }

    /// Tells the server the version of the agent.
    ///
    /// # Errors
    /// See [`ServerError`].
    pub async fn post_status(&self, version: &str) -> Result<(), ServerError> {
        self.operation("PostStatus", async |connection| connection.post_status(version).await).await
    }

    /// The entries that this agent is entitled to, of which it holds `known` already.
    ///
    /// # Errors
    /// See [`ServerError`].
    pub async fn sync_entries(&self, known: &[KnownEntry]) -> Result<EntrySync, ServerError> {
        self.operation("SyncAuthorizedEntries", async |connection| connection.sync_entries(known).await).await
    }

    /// The bundle of the own trust domain.
    ///
    /// # Errors
    /// See [`ServerError`].
    pub async fn bundle(&self) -> Result<Bundle, ServerError> {
        self.operation("GetBundle", async |connection| connection.bundle().await).await
    }

    /// The bundle of another trust domain; `None` when the server has none.
    ///
    /// # Errors
    /// See [`ServerError`].
    pub async fn federated_bundle(&self, trust_domain: &TrustDomain) -> Result<Option<Bundle>, ServerError> {
        let fetch = async |connection: &Connection| connection.federated_bundle(trust_domain).await;
        self.operation("GetFederatedBundle", fetch).await
    }

    /// Has X.509-SVIDs signed. Results stand in the order of the requests.
    ///
    /// # Errors
    /// The whole call failed; see [`ServerError`].
    pub async fn sign_x509(&self, requests: &[X509Request]) -> Result<SignedBatch<X509Chain>, ServerError> {
        self.operation("BatchNewX509SVID", async |connection| connection.sign_x509(requests).await).await
    }

    /// Has WIT-SVIDs signed. Results stand in the order of the requests.
    ///
    /// # Errors
    /// The whole call failed; see [`ServerError`].
    pub async fn sign_wit(&self, requests: &[WitRequest]) -> Result<SignedBatch<SignedToken>, ServerError> {
        self.operation("BatchNewWITSVID", async |connection| connection.sign_wit(requests).await).await
    }

    /// Has a JWT-SVID signed.
    ///
    /// # Errors
    /// See [`ServerError`].
    pub async fn sign_jwt(&self, entry: &EntryId, audiences: &[String]) -> Result<SignedToken, ServerError> {
        self.operation("NewJWTSVID", async |connection| connection.sign_jwt(entry, audiences).await).await
    }

    /// Renews the agent's own SVID.
    ///
    /// # Errors
    /// See [`ServerError`].
    pub async fn renew(&self, csr: Vec<u8>) -> Result<Vec<Vec<u8>>, ServerError> {
        self.operation("RenewAgent", async |connection| connection.renew(csr.clone()).await).await
    }

    /// A challenge for evidence of GPUs.
    ///
    /// # Errors
    /// See [`ServerError`]; a server without it answers Unimplemented.
    pub async fn gpu_challenge(&self) -> Result<[u8; CHALLENGE_SIZE], ServerError> {
        self.operation("GetChallenge", async |connection| connection.gpu_challenge().await).await
    }

    /// Has evidence of GPUs judged, and says until when it counts.
    ///
    /// # Errors
    /// See [`ServerError`].
    pub async fn submit_gpu_evidence(
        &self,
        challenge: &[u8],
        devices: Vec<DeviceEvidence>,
    ) -> Result<Timestamp, ServerError> {
        let submit = async |connection: &Connection| connection.submit_gpu_evidence(challenge, devices).await;
        self.operation("SubmitEvidence", submit).await
    }

    /// Since when the server has not been known by the agent's bundle; nothing while it is, or was when it was last there.
    #[must_use]
    pub fn unknown_since(&self) -> Option<Timestamp> {
        *self.shared.unknown_since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes into account what an operation on a connection of its own says about [`unknown_since`](Self::unknown_since).
    pub fn observe(&self, result: Result<(), &ServerError>) {
        let mut since = self.shared.unknown_since.lock().unwrap_or_else(PoisonError::into_inner);
        *since = unknown_since(*since, result, self.shared.connector.now());
    }

    /// How connections are made, for those that must not carry the agent's SVID.
    #[must_use]
    pub fn connector(&self) -> &Connector {
        &self.shared.connector
    }

    async fn operation<T>(
        &self,
        rpc: &'static str,
        call: impl AsyncFnOnce(&Connection) -> Result<T, ServerError>,
    ) -> Result<T, ServerError> {
        let started = std::time::Instant::now();
        let mut used = None;
        let attempt = async {
            let connection = self.connection().await?;
            let connection = used.insert(connection);
            call(connection).await
        };
        let result = match tokio::time::timeout(self.shared.timeout, attempt).await {
            Ok(result) => result,
            Err(_) => Err(ServerError::Timeout { rpc, after: self.shared.timeout }),
        };
        metrics::server_called(rpc, result.as_ref().err(), started.elapsed());
        self.observe(result.as_ref().map(drop));
        if let Err(error) = &result
            && !error.shows_a_working_connection()
        {
            self.forget(used.as_ref()).await;
        }
        result
    }

    async fn connection(&self) -> Result<Arc<Connection>, ServerError> {
        let mut current = self.shared.current.lock().await;
        if let Some(connection) = &*current {
            return Ok(Arc::clone(connection));
        }
        let connection =
            Arc::new(self.shared.connector.connect(Verification::Bundle, Some(&self.shared.identity)).await?);
        *current = Some(Arc::clone(&connection));
        Ok(connection)
    }

    /// Drops the connection unless another call has replaced it already.
    async fn forget(&self, failed: Option<&Arc<Connection>>) {
        let mut current = self.shared.current.lock().await;
        if let (Some(kept), Some(failed)) = (&*current, failed)
            && Arc::ptr_eq(kept, failed)
        {
            *current = None;
        }
    }
}

/// The server ID of a trust domain, which every connection insists on.
fn server_id(trust_domain: &TrustDomain) -> SpiffeId {
    trust_domain.server_id()
}

/// For one operation, connecting included.
pub(crate) const OPERATION_TIMEOUT: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for (text, host, port) in
            [("localhost:8081", "localhost", 8081), ("10.0.0.1:1", "10.0.0.1", 1), ("[::1]:443", "::1", 443)]
        {
            let address: ServerAddress = text.parse().unwrap();
            assert_eq!((address.host.as_str(), address.port), (host, port));
            assert_eq!(address.to_string(), text);
        }
        for text in [
            "",
            "localhost",
            ":8081",
            "localhost:",
            "localhost:0",
            "localhost:65536",
            "::1:443",
            "[::1:443",
            "[x]:1",
            "http://a:1",
            "a b:1",
        ] {
            assert!(text.parse::<ServerAddress>().is_err(), "{text}");
        }
    }
}
