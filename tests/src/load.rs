//! Agents that put load on a server, as SPIRE's agents do: attested with join tokens, each on a connection of its own
//! with its SVID, polling with `SyncAuthorizedEntries`. Any server with SPIRE's API can be the target.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bonafide_identity::{SpiffeId, Timestamp, TrustDomain};
use bonafide_pki::tls::{PeerCheck, Svid, SvidHolder, TrustStore, client_config, server_name};
use bonafide_pki::{KeyType, PrivateKey, TrustRoots, agent_csr};
use bonafide_proto::spire::server::agent::v1::agent_client::AgentClient;
use bonafide_proto::spire::server::agent::v1::attest_agent_response::Step as Answer;
use bonafide_proto::spire::server::agent::v1::{
    AgentX509svidParams, AttestAgentRequest, CreateJoinTokenRequest, attest_agent_request,
};
use bonafide_proto::spire::server::bundle::v1::GetBundleRequest;
use bonafide_proto::spire::server::bundle::v1::bundle_client::BundleClient;
use bonafide_proto::spire::server::entry::v1::entry_client::EntryClient;
use bonafide_proto::spire::server::entry::v1::{
    BatchCreateEntryRequest, SyncAuthorizedEntriesRequest, SyncAuthorizedEntriesResponse,
};
use bonafide_proto::spire::server::svid::v1::svid_client::SvidClient;
use bonafide_proto::spire::server::svid::v1::{BatchNewX509svidRequest, NewX509svidParams};
use bonafide_proto::spire::types;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status};
use tonic_prost::ProstCodec;
use tower::service_fn;

/// Entries in one creating call.
const CREATED_AT_ONCE: usize = 500;
/// Seconds in which a join token must be used.
const TOKEN_TTL: i32 = 600;

/// A server and what is known of it.
#[derive(Clone)]
pub struct Target {
    trust_domain: TrustDomain,
    address: String,
    admin: Channel,
    trust: TrustStore,
}

impl Target {
    /// Connects to a server's administration socket and learns its bundle there.
    ///
    /// # Errors
    /// The server cannot be reached, or its bundle cannot be read.
    pub async fn new(socket: &Path, address: &str) -> Result<Self, String> {
        let admin = local(socket.to_owned()).await?;
        let bundle = BundleClient::new(admin.clone())
            .get_bundle(GetBundleRequest { output_mask: None })
            .await
            .map_err(|status| text("GetBundle", &status))?
            .into_inner();
        let trust_domain = TrustDomain::parse(&bundle.trust_domain).map_err(|error| error.to_string())?;
        let roots = bundle.x509_authorities.iter().map(|authority| &*authority.asn1);
        let roots = TrustRoots::from_der(roots).map_err(|error| error.to_string())?;
        let trust = TrustStore::empty();
        trust.set_trust_domain(&trust_domain, &Arc::new(roots));
        Ok(Self { trust_domain, address: address.to_owned(), admin, trust })
    }

    /// Attests an agent with a fresh join token; it may call from now on.
    ///
    /// # Errors
    /// What the server said.
    pub async fn attest(&self) -> Result<Agent, String> {
        let request = CreateJoinTokenRequest { ttl: TOKEN_TTL, ..Default::default() };
        let token = AgentClient::new(self.admin.clone())
            .create_join_token(request)
            .await
            .map_err(|status| text("CreateJoinToken", &status))?
            .into_inner();
        let key = PrivateKey::generate(KeyType::EcP256).map_err(|error| error.to_string())?;
        let csr = agent_csr(&key, None).map_err(|error| error.to_string())?;
        let (send, requests) = mpsc::channel(1);
        let params = attest_agent_request::Params {
            data: Some(types::AttestationData {
                r#type: "join_token".to_owned(),
                payload: token.value.into_bytes(),
            }),
            params: Some(AgentX509svidParams { csr }),
        };
        let first = AttestAgentRequest { step: Some(attest_agent_request::Step::Params(params)) };
        send.send(first).await.map_err(|error| error.to_string())?;
        let mut answers = AgentClient::new(self.connect(None).await?)
            .attest_agent(ReceiverStream::new(requests))
            .await
            .map_err(|status| text("AttestAgent", &status))?
            .into_inner();
        let answer = answers.message().await.map_err(|status| text("AttestAgent", &status))?;
        let Some(Answer::Result(result)) = answer.and_then(|answer| answer.step) else {
            return Err("AttestAgent: there is no result".to_owned());
        };
        let svid = result.svid.ok_or("AttestAgent: there is no SVID")?;
        let id = svid.id.ok_or("AttestAgent: there is no SPIFFE ID")?;
        let id = SpiffeId::parse(&format!("spiffe://{}{}", id.trust_domain, id.path));
        let id = id.map_err(|error| error.to_string())?;
        let chain = svid.cert_chain.iter().map(|der| der.to_vec()).collect();
        let svid = Svid::new(chain, Arc::new(key)).map_err(|error| error.to_string())?;
        let holder = SvidHolder::new(svid);
        let channel = self.connect(Some(holder.clone())).await?;
        Ok(Agent { id, holder, target: self.clone(), channel, known: HashMap::new() })
    }

    /// Registers entries below these agents, `each` for every one; their IDs by agent.
    ///
    /// # Errors
    /// What the server said.
    pub async fn register(&self, agents: &[Agent], each: usize) -> Result<Vec<Vec<String>>, String> {
        let entries: Vec<types::Entry> = agents
            .iter()
            .enumerate()
            .flat_map(|(agent, parent)| (0..each).map(move |item| self.entry(&parent.id, agent, item)))
            .collect();
        let mut ids = Vec::with_capacity(entries.len());
        let mut client = EntryClient::new(self.admin.clone()).max_decoding_message_size(usize::MAX);
        for part in entries.chunks(CREATED_AT_ONCE) {
            let request = BatchCreateEntryRequest { entries: part.to_vec(), output_mask: None };
            let created = client.batch_create_entry(request).await;
            let created = created.map_err(|status| text("BatchCreateEntry", &status))?.into_inner();
            for result in created.results {
                let message = result.status.map(|status| status.message).unwrap_or_default();
                ids.push(result.entry.ok_or(format!("an entry was not created: {message}"))?.id);
            }
        }
        Ok(ids.chunks(each.max(1)).map(<[String]>::to_vec).collect())
    }

    fn entry(&self, parent: &SpiffeId, agent: usize, item: usize) -> types::Entry {
        let id = |path: String| types::Spiffeid { trust_domain: self.trust_domain.to_string(), path };
        let selector = |value: String| types::Selector { r#type: "k8s".to_owned(), value };
        types::Entry {
            spiffe_id: Some(id(format!("/ns/team-{item}/sa/service-{agent}-{item}"))),
            parent_id: Some(id(parent.path().to_owned())),
            selectors: vec![
                selector(format!("ns:team-{item}")),
                selector(format!("sa:service-{agent}-{item}")),
            ],
            ..Default::default()
        }
    }

    async fn connect(&self, identity: Option<SvidHolder>) -> Result<Channel, String> {
        let server = PeerCheck::ServerId(self.trust_domain.server_id());
        let tls = client_config(identity, self.trust.clone(), server, Arc::new(now));
        let address = self.address.clone();
        let dial = move |_: Uri| {
            let (tls, address) = (tls.clone(), address.clone());
            async move {
                let tcp = TcpStream::connect(address).await?;
                tcp.set_nodelay(true)?;
                TlsConnector::from(tls).connect(server_name(), tcp).await.map(TokioIo::new)
            }
        };
        let endpoint = Endpoint::from_static("http://server");
        endpoint.connect_with_connector(service_fn(dial)).await.map_err(|error| format!("connect: {error:?}"))
    }
}

fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_unix_seconds(i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

async fn local(socket: PathBuf) -> Result<Channel, String> {
    let dial = move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    };
    let endpoint = Endpoint::from_static("http://localhost");
    endpoint.connect_with_connector(service_fn(dial)).await.map_err(|error| error.to_string())
}

fn text(rpc: &str, status: &Status) -> String {
    format!("{rpc}: {:?}: {}", status.code(), status.message())
}

/// What one pass of an agent brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pass {
    /// Entries that the agent is entitled to.
    pub entries: usize,
    /// How many of them came in full.
    pub transferred: usize,
}

/// An attested agent with its connection. Clones share the connection.
#[derive(Clone)]
pub struct Agent {
    id: SpiffeId,
    holder: SvidHolder,
    target: Target,
    channel: Channel,
    /// Revision and time of creation of each entry it has seen.
    known: HashMap<String, (i64, i64)>,
}

impl Agent {
    /// Its SPIFFE ID.
    #[must_use]
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// The same agent on another connection.
    ///
    /// # Errors
    /// The server cannot be reached.
    pub async fn reconnected(&self) -> Result<Self, String> {
        let channel = self.target.connect(Some(self.holder.clone())).await?;
        Ok(Self { channel, ..self.clone() })
    }

    /// One pass of `SyncAuthorizedEntries`, with the messages of SPIRE's agent.
    ///
    /// # Errors
    /// What the server said, or what it should not have said.
    pub async fn pass(&mut self) -> Result<Pass, String> {
        const RPC: &str = "SyncAuthorizedEntries";
        let (send, requests) = mpsc::channel(1);
        send.send(opening()).await.map_err(|error| error.to_string())?;
        let mut answers = EntryClient::new(self.channel.clone())
            .max_decoding_message_size(usize::MAX)
            .sync_authorized_entries(ReceiverStream::new(requests))
            .await
            .map_err(|status| text(RPC, &status))?
            .into_inner();
        let mut next = async || -> Result<SyncAuthorizedEntriesResponse, String> {
            let answer = answers.message().await.map_err(|status| text(RPC, &status))?;
            answer.ok_or_else(|| format!("{RPC}: the server ended before it was done"))
        };
        let mut page = next().await?;
        if page.entry_revisions.is_empty() {
            self.known.clear();
            let transferred = self.learn(&page.entries);
            return Ok(Pass { entries: transferred, transferred });
        }
        let size = page.entry_revisions.len();
        let (mut entries, mut wanted) = (0, Vec::new());
        loop {
            entries += page.entry_revisions.len();
            for revision in page.entry_revisions {
                let seen = (revision.revision_number, revision.created_at);
                if self.known.get(&revision.id) != Some(&seen) {
                    wanted.push(revision.id);
                }
            }
            if !page.more {
                break;
            }
            page = next().await?;
        }
        wanted.sort_unstable();
        let mut transferred = 0;
        for ids in wanted.chunks(size) {
            let request = SyncAuthorizedEntriesRequest { output_mask: None, ids: ids.to_vec() };
            send.send(request).await.map_err(|_| format!("{RPC}: the server stopped listening"))?;
            loop {
                let page = next().await?;
                transferred += self.learn(&page.entries);
                if !page.more {
                    break;
                }
            }
        }
        Ok(Pass { entries, transferred })
    }

    fn learn(&mut self, entries: &[types::Entry]) -> usize {
        for entry in entries {
            self.known.insert(entry.id.clone(), (entry.revision_number, entry.created_at));
        }
        entries.len()
    }

    /// A call of a method that the server does not have: what every call costs, TLS and HTTP/2, and nothing more.
    ///
    /// # Errors
    /// Any other answer than Unimplemented.
    pub async fn nothing(&self) -> Result<(), String> {
        let mut client = Grpc::new(self.channel.clone());
        client.ready().await.map_err(|error| error.to_string())?;
        let path = http::uri::PathAndQuery::from_static("/spire.api.server.entry.v1.Entry/Nothing");
        let codec: ProstCodec<(), ()> = ProstCodec::default();
        match client.unary(tonic::Request::new(()), path, codec).await {
            Err(status) if status.code() == Code::Unimplemented => Ok(()),
            Err(status) => Err(text("Nothing", &status)),
            Ok(_) => Err("Nothing: the server has such a method".to_owned()),
        }
    }

    /// Has `csrs` signed for these entries in one call; how many SVIDs came.
    ///
    /// # Errors
    /// What the server said.
    pub async fn sign(&self, items: &[(String, Vec<u8>)]) -> Result<usize, Status> {
        let params = items
            .iter()
            .map(|(entry, csr)| NewX509svidParams { entry_id: entry.clone(), csr: csr.clone() })
            .collect();
        let mut client = SvidClient::new(self.channel.clone()).max_decoding_message_size(usize::MAX);
        let response = client.batch_new_x509svid(BatchNewX509svidRequest { params }).await?.into_inner();
        Ok(response.results.iter().filter(|result| result.svid.is_some()).count())
    }
}

/// A CSR as agents send it for a workload.
///
/// # Errors
/// The key cannot be made.
pub fn csr() -> Result<Vec<u8>, String> {
    let key = PrivateKey::generate(KeyType::EcP256).map_err(|error| error.to_string())?;
    agent_csr(&key, None).map_err(|error| error.to_string())
}

/// The mask that SPIRE's agent opens with.
fn opening() -> SyncAuthorizedEntriesRequest {
    SyncAuthorizedEntriesRequest {
        output_mask: Some(types::EntryMask {
            spiffe_id: true,
            selectors: true,
            federates_with: true,
            admin: true,
            downstream: true,
            revision_number: true,
            store_svid: true,
            hint: true,
            additional_attributes: true,
            created_at: true,
            ..types::EntryMask::default()
        }),
        ids: Vec::new(),
    }
}
