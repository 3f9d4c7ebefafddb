//! One connection to the server, and a method for each call.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bonafide_identity::{Bundle, EntryId, Timestamp, TrustDomain};
use bonafide_pki::evidence::{CHALLENGE_SIZE, DeviceEvidence};
use bonafide_pki::tls;
use bonafide_proto::bonafide::agent::v1::gpu_evidence_client::GpuEvidenceClient;
use bonafide_proto::bonafide::agent::v1::{
    GetChallengeRequest, SubmitEvidenceRequest, submit_evidence_request,
};
use bonafide_proto::convert::{
    self, SignedToken, X509Chain, bundle_from_server, jwt_svid_from_server, wit_svid_from_server,
    x509_svid_from_server,
};
use bonafide_proto::spire::server::agent::v1::agent_client::AgentClient;
use bonafide_proto::spire::server::agent::v1::{
    AgentX509svidParams, AttestAgentRequest, PostStatusRequest, RenewAgentRequest, attest_agent_request,
    attest_agent_response,
};
use bonafide_proto::spire::server::bundle::v1::bundle_client::BundleClient;
use bonafide_proto::spire::server::bundle::v1::{GetBundleRequest, GetFederatedBundleRequest};
use bonafide_proto::spire::server::entry::v1::entry_client::EntryClient;
use bonafide_proto::spire::server::svid::v1::svid_client::SvidClient;
use bonafide_proto::spire::server::svid::v1::{
    BatchNewWitsvidRequest, BatchNewX509svidRequest, NewJwtsvidRequest, NewWitsvidParams, NewX509svidParams,
};
use bonafide_proto::spire::types;
use bonafide_runtime::BoxError;
use bonafide_runtime::clock::SharedClock;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::sync::{self, EntrySync, KnownEntry};
use super::{ServerAddress, ServerError};
use crate::node_attestor::NodeAttestor;

/// The agent's own SVID, as TLS needs it; empty until the agent is attested.
pub type Identity = tls::SvidHolder;

/// How the server is recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verification {
    /// By the bundle that the agent holds.
    Bundle,
    /// By the SPIFFE ID that it claims, unproven. For an insecure bootstrap.
    ClaimedId,
}

/// Makes connections to one server. Cheap to clone.
#[derive(Clone)]
pub struct Connector {
    address: ServerAddress,
    trust_domain: TrustDomain,
    trust: tls::TrustStore,
    clock: SharedClock,
    /// Which of the addresses behind the name comes next.
    turn: Arc<AtomicUsize>,
}

impl Connector {
    /// Connections to this server, recognised by what `trust` holds when a connection is made.
    #[must_use]
    pub fn new(
        address: ServerAddress,
        trust_domain: TrustDomain,
        trust: tls::TrustStore,
        clock: SharedClock,
    ) -> Self {
        Self { address, trust_domain, trust, clock, turn: Arc::default() }
    }

    /// Connections to the same server, recognised by something else.
    #[must_use]
    pub fn trusting(&self, trust: tls::TrustStore) -> Self {
        Self { trust, ..self.clone() }
    }

    pub(super) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Where the server is.
    #[must_use]
    pub fn address(&self) -> &ServerAddress {
        &self.address
    }

    /// Connects, with the agent's SVID or without a client certificate.
    ///
    /// # Errors
    /// [`ServerError::Unreachable`] or [`ServerError::Untrusted`].
    pub async fn connect(
        &self,
        verification: Verification,
        identity: Option<&Identity>,
    ) -> Result<Connection, ServerError> {
        let server = super::server_id(&self.trust_domain);
        let clock = Arc::clone(&self.clock);
        let now: tls::Now = Arc::new(move || clock.now());
        let config = match verification {
            Verification::Bundle => tls::client_config(
                identity.cloned(),
                self.trust.clone(),
                tls::PeerCheck::ServerId(server),
                now,
            ),
            Verification::ClaimedId => tls::insecure_client_config(server, now),
        };
        let address = self.address.clone();
        let turn = Arc::clone(&self.turn);
        let dial = tower::service_fn(move |_| {
            let (config, address, turn) = (Arc::clone(&config), address.clone(), Arc::clone(&turn));
            async move {
                let tcp = dial(&address, &turn).await?;
                let tls = TlsConnector::from(config).connect(tls::server_name(), tcp).await?;
                Ok::<_, BoxError>(TokioIo::new(tls))
            }
        });
        let uri = |scheme: &str| format!("{scheme}://{}", self.address).parse::<http::Uri>();
        let connected = async {
            // The scheme `http` keeps the library from adding a TLS of its own; the requests say `https`.
            Endpoint::from(uri("http")?)
                .origin(uri("https")?)
                .user_agent(concat!("bonafide-agent/", env!("CARGO_PKG_VERSION")))?
                .connect_timeout(CONNECT_TIMEOUT)
                .connect_with_connector(dial)
                .await
                .map_err(BoxError::from)
        };
        match connected.await {
            Ok(channel) => {
                Ok(Connection { channel, certified: identity.is_some(), proven: AtomicBool::new(false) })
            }
            Err(error) => Err(ServerError::connecting(&self.address, error)),
        }
    }
}

async fn dial(address: &ServerAddress, turn: &AtomicUsize) -> std::io::Result<TcpStream> {
    let found: Vec<SocketAddr> =
        tokio::net::lookup_host((address.host.as_str(), address.port)).await?.collect();
    dial_any(&found, turn.fetch_add(1, Ordering::Relaxed)).await
}

/// Connects to one of these, beginning with the one whose turn it is.
async fn dial_any(found: &[SocketAddr], first: usize) -> std::io::Result<TcpStream> {
    let mut last = std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address");
    for offset in 0..found.len() {
        let candidate = found[first.wrapping_add(offset) % found.len()];
        match tokio::time::timeout(DIAL_TIMEOUT, TcpStream::connect(candidate)).await {
            Ok(Ok(stream)) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Ok(Err(error)) => last = error,
            Err(_) => last = std::io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}

/// A certificate request for one entry.
pub struct X509Request {
    /// The entry.
    pub entry: EntryId,
    /// DER of the PKCS#10 request.
    pub csr: Vec<u8>,
}

/// A WIT-SVID request for one entry.
pub struct WitRequest {
    /// The entry.
    pub entry: EntryId,
    /// DER of the SubjectPublicKeyInfo to bind.
    pub public_key: Vec<u8>,
    /// The JOSE name of the algorithm that the workload signs with.
    pub algorithm: &'static str,
}

/// What became of one item of a batch.
pub type Signed<T> = Result<T, Status>;

/// What became of each item of a batch, in the order of the requests.
pub type SignedBatch<T> = Vec<Signed<T>>;

/// The outcome of an attestation.
#[derive(Debug)]
pub struct Attested {
    /// DER, leaf first.
    pub chain: Vec<Vec<u8>>,
    /// Whether the agent may attest again later.
    pub reattestable: bool,
}

/// One connection to the server.
pub struct Connection {
    channel: Channel,
    /// Whether the agent's certificate was offered.
    certified: bool,
    /// Whether any answer has come.
    proven: AtomicBool,
}

impl Connection {
    /// Attests this node.
    ///
    /// # Errors
    /// See [`ServerError`].
    pub async fn attest(&self, attestor: &dyn NodeAttestor, csr: Vec<u8>) -> Result<Attested, ServerError> {
        const RPC: &str = "AttestAgent";
        use attest_agent_request::Step;
        let mut attempt = attestor.begin().await?;
        let (send, requests) = mpsc::channel(1);
        let params = attest_agent_request::Params {
            data: Some(types::AttestationData {
                r#type: attestor.kind().to_owned(),
                payload: attempt.payload().to_vec(),
            }),
            params: Some(AgentX509svidParams { csr }),
        };
        let step = |step| AttestAgentRequest { step: Some(step) };
        let gone = |_| ServerError::malformed(RPC, "the server stopped listening");
        send.send(step(Step::Params(params))).await.map_err(gone)?;
        let mut client = AgentClient::new(self.channel.clone());
        let mut answers = self.call(RPC, client.attest_agent(ReceiverStream::new(requests))).await?;
        loop {
            let answer = answers.message().await.map_err(|status| self.failed(RPC, status))?;
            match answer.and_then(|answer| answer.step) {
                Some(attest_agent_response::Step::Challenge(challenge)) => {
                    // Some attestors wait for hardware.
                    let answered = tokio::task::spawn_blocking(move || {
                        let response = attempt.respond(&challenge);
                        (attempt, response)
                    });
                    let response;
                    (attempt, response) = match answered.await {
                        Ok(answered) => answered,
                        Err(error) => return Err(ServerError::malformed(RPC, error.to_string())),
                    };
                    let response = response?;
                    send.send(step(Step::ChallengeResponse(response))).await.map_err(gone)?;
                }
                Some(attest_agent_response::Step::Result(result)) => {
                    let chain = own_chain(RPC, result.svid)?;
                    return Ok(Attested { chain, reattestable: result.reattestable });
                }
                None => return Err(ServerError::malformed(RPC, "the server ended without a result")),
            }
        }
    }

    pub(super) async fn renew(&self, csr: Vec<u8>) -> Result<Vec<Vec<u8>>, ServerError> {
        const RPC: &str = "RenewAgent";
        let request = RenewAgentRequest { params: Some(AgentX509svidParams { csr }) };
        let response = self.call(RPC, AgentClient::new(self.channel.clone()).renew_agent(request)).await?;
        own_chain(RPC, response.svid)
    }

    pub(super) async fn post_status(&self, version: &str) -> Result<(), ServerError> {
        let request = PostStatusRequest { agent_version: version.to_owned(), ..PostStatusRequest::default() };
        self.call("PostStatus", AgentClient::new(self.channel.clone()).post_status(request)).await?;
        Ok(())
    }

    pub(super) async fn gpu_challenge(&self) -> Result<[u8; CHALLENGE_SIZE], ServerError> {
        const RPC: &str = "GetChallenge";
        let mut client = GpuEvidenceClient::new(self.channel.clone());
        let answer = self.call(RPC, client.get_challenge(GetChallengeRequest {})).await?;
        let challenge = answer.challenge.try_into();
        challenge.map_err(|_| ServerError::malformed(RPC, "the challenge is not 32 bytes long"))
    }

    pub(super) async fn submit_gpu_evidence(
        &self,
        challenge: &[u8],
        devices: Vec<DeviceEvidence>,
    ) -> Result<Timestamp, ServerError> {
        let devices = devices.into_iter().map(|device| submit_evidence_request::Device {
            report: device.report,
            certificates: device.chain,
        });
        let request = SubmitEvidenceRequest { challenge: challenge.to_vec(), devices: devices.collect() };
        let mut client = GpuEvidenceClient::new(self.channel.clone());
        let answer = self.call("SubmitEvidence", client.submit_evidence(request)).await?;
        Ok(Timestamp::from_unix_seconds(answer.expires_at))
    }

    /// The bundle of the own trust domain. Needs no client certificate.
    ///
    /// # Errors
    /// See [`ServerError`].
    pub async fn bundle(&self) -> Result<Bundle, ServerError> {
        const RPC: &str = "GetBundle";
        let request = GetBundleRequest { output_mask: None };
        let bundle = self.call(RPC, BundleClient::new(self.channel.clone()).get_bundle(request)).await?;
        bundle_from_server(&bundle).map_err(ServerError::unreadable(RPC))
    }

    pub(super) async fn federated_bundle(
        &self,
        trust_domain: &TrustDomain,
    ) -> Result<Option<Bundle>, ServerError> {
        const RPC: &str = "GetFederatedBundle";
        let request =
            GetFederatedBundleRequest { trust_domain: trust_domain.as_str().to_owned(), output_mask: None };
        let answer =
            self.call(RPC, BundleClient::new(self.channel.clone()).get_federated_bundle(request)).await;
        let bundle = match answer {
            Err(error) if error.code() == Some(Code::NotFound) => return Ok(None),
            answer => bundle_from_server(&answer?).map_err(ServerError::unreadable(RPC))?,
        };
        if bundle.trust_domain != *trust_domain {
            let what = format!("asked for {trust_domain} and got {}", bundle.trust_domain);
            return Err(ServerError::malformed(RPC, what));
        }
        Ok(Some(bundle))
    }

    pub(super) async fn sync_entries(&self, known: &[KnownEntry]) -> Result<EntrySync, ServerError> {
        let (send, requests) = mpsc::channel(1);
        let _ = send.send(sync::opening()).await;
        let mut client = EntryClient::new(self.channel.clone());
        let answers =
            self.call(sync::RPC, client.sync_authorized_entries(ReceiverStream::new(requests))).await?;
        sync::run(answers, send, known, |status| self.failed(sync::RPC, status)).await
    }

    pub(super) async fn sign_x509(
        &self,
        requests: &[X509Request],
    ) -> Result<SignedBatch<X509Chain>, ServerError> {
        const RPC: &str = "BatchNewX509SVID";
        let params = requests
            .iter()
            .map(|request| NewX509svidParams {
                entry_id: request.entry.as_str().to_owned(),
                csr: request.csr.clone(),
            })
            .collect();
        let mut client = SvidClient::new(self.channel.clone());
        let response = self.call(RPC, client.batch_new_x509svid(BatchNewX509svidRequest { params })).await?;
        let results = response.results.into_iter().map(|result| {
            convert::result_status(result.status.as_ref())?;
            let svid = result.svid.ok_or_else(|| Status::internal("the server sent no SVID"))?;
            x509_svid_from_server(svid).map_err(|error| Status::internal(error.to_string()))
        });
        complete(RPC, requests.len(), results.collect())
    }

    pub(super) async fn sign_wit(
        &self,
        requests: &[WitRequest],
    ) -> Result<SignedBatch<SignedToken>, ServerError> {
        const RPC: &str = "BatchNewWITSVID";
        let params = requests
            .iter()
            .map(|request| NewWitsvidParams {
                entry_id: request.entry.as_str().to_owned(),
                public_key: request.public_key.clone(),
                signing_algorithm: request.algorithm.to_owned(),
            })
            .collect();
        let mut client = SvidClient::new(self.channel.clone());
        let response = self.call(RPC, client.batch_new_witsvid(BatchNewWitsvidRequest { params })).await?;
        let results = response.results.into_iter().map(|result| {
            // SPIRE sends no status with a WIT-SVID that it signed.
            if result.svid.is_none() || result.status.is_some() {
                convert::result_status(result.status.as_ref())?;
            }
            let svid = result.svid.ok_or_else(|| Status::internal("the server sent no SVID"))?;
            wit_svid_from_server(svid).map_err(|error| Status::internal(error.to_string()))
        });
        complete(RPC, requests.len(), results.collect())
    }

    pub(super) async fn sign_jwt(
        &self,
        entry: &EntryId,
        audiences: &[String],
    ) -> Result<SignedToken, ServerError> {
        const RPC: &str = "NewJWTSVID";
        let request = NewJwtsvidRequest { entry_id: entry.as_str().to_owned(), audience: audiences.to_vec() };
        let response = self.call(RPC, SvidClient::new(self.channel.clone()).new_jwtsvid(request)).await?;
        let svid = response.svid.ok_or_else(|| ServerError::malformed(RPC, "there is no SVID"))?;
        jwt_svid_from_server(svid).map_err(ServerError::unreadable(RPC))
    }

    async fn call<T>(
        &self,
        rpc: &'static str,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, ServerError> {
        match call.await {
            Ok(response) => {
                self.proven.store(true, Ordering::Relaxed);
                Ok(response.into_inner())
            }
            Err(status) => Err(self.failed(rpc, status)),
        }
    }

    fn failed(&self, rpc: &'static str, status: Status) -> ServerError {
        ServerError::calling(rpc, status, self.proven.load(Ordering::Relaxed), self.certified)
    }
}

fn own_chain(rpc: &'static str, svid: Option<types::X509svid>) -> Result<Vec<Vec<u8>>, ServerError> {
    let svid = svid.ok_or_else(|| ServerError::malformed(rpc, "there is no SVID"))?;
    let svid = x509_svid_from_server(svid).map_err(ServerError::unreadable(rpc))?;
    Ok(svid.certificates.into_iter().map(Vec::from).collect())
}

fn complete<T>(
    rpc: &'static str,
    asked: usize,
    results: SignedBatch<T>,
) -> Result<SignedBatch<T>, ServerError> {
    if results.len() != asked {
        let what = format!("{asked} SVIDs were asked for and {} came", results.len());
        return Err(ServerError::malformed(rpc, what));
    }
    Ok(results)
}

/// For the TCP handshake with one address; a name may have several.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// For name lookup, all addresses and TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn all_addresses_are_tried_beginning_with_the_one_whose_turn_it_is() {
        let (one, two) = (
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
        );
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let addresses = [one.local_addr().unwrap(), closed, two.local_addr().unwrap()];
        let mut met = Vec::new();
        for turn in [0, 1, 2, 3, usize::MAX - 1] {
            met.push(dial_any(&addresses, turn).await.unwrap().peer_addr().unwrap());
        }
        let [one, _, two] = addresses;
        // The closed one is passed over.
        assert_eq!(met[..4], [one, two, two, one]);
        assert_eq!(dial_any(&[closed], 0).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
        assert_eq!(dial_any(&[], 0).await.unwrap_err().kind(), std::io::ErrorKind::NotFound);
    }
}
