//! A server that does as it is told: enough of the server's APIs for an agent, with switches for what goes wrong.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bonafide_identity::{
    Bundle, Entry, JwtAuthority, SpiffeId, Timestamp, TrustDomain, X509Authority, capped,
};
use bonafide_pki::{
    CaSubject, JwsAlgorithm, JwtClaims, JwtSigner, KeyType, LeafProfile, PrivateKey, PublicKey, Signer,
    Subject, SystemRandom, TrustRoots, VerifiedCsr, WitClaims, X509Issuer, csr_public_key_unverified,
    inspect, random_key_id, random_serial, self_signed_ca, tls,
};
use bonafide_proto::bonafide::agent::v1 as evidence;
use bonafide_proto::bonafide::agent::v1::gpu_evidence_server::{GpuEvidence, GpuEvidenceServer};
use bonafide_proto::convert::{
    bundle_to_wire, entry_to_wire, permission_denied_with_reason, spiffe_id_to_wire, status, status_ok,
};
use bonafide_proto::spire::server::agent::v1 as agent;
use bonafide_proto::spire::server::agent::v1::agent_server::{Agent, AgentServer};
use bonafide_proto::spire::server::bundle::v1 as bundle;
use bonafide_proto::spire::server::bundle::v1::bundle_server::{Bundle as BundleApi, BundleServer};
use bonafide_proto::spire::server::entry::v1 as entry;
use bonafide_proto::spire::server::entry::v1::entry_server::{Entry as EntryApi, EntryServer};
use bonafide_proto::spire::server::svid::v1 as svid;
use bonafide_proto::spire::server::svid::v1::svid_server::{Svid, SvidServer};
use bonafide_proto::spire::types;
use bonafide_proto::spire::types::permission_denied_details::Reason;
use bonafide_runtime::clock::{Clock as _, SystemClock};
use bonafide_runtime::listener::{Peer, TlsOptions, serve_tls};
use bonafide_runtime::shutdown::Shutdown;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::{Code, Request, Response, Status, Streaming};

/// What the server is and does. Tests change it while it runs.
pub(crate) struct State {
    pub(crate) trust_domain: TrustDomain,
    pub(crate) x509: Vec<(Arc<X509Issuer>, bool)>,
    pub(crate) jwt: Vec<(Arc<JwtSigner>, bool)>,
    pub(crate) wit: Option<Arc<JwtSigner>>,
    pub(crate) entries: BTreeMap<String, Entry>,
    /// Sent as they are, beside the entries.
    pub(crate) raw_entries: Vec<types::Entry>,
    pub(crate) federated: BTreeMap<TrustDomain, Bundle>,
    pub(crate) tokens: HashSet<String>,
    pub(crate) agent_ttl: Duration,
    pub(crate) x509_ttl: Duration,
    pub(crate) jwt_ttl: Duration,
    pub(crate) reattestable: bool,
    /// Evidence of GPUs, with the key (SPKI) of the agent that showed it.
    pub(crate) shown: Vec<(Vec<u8>, evidence::SubmitEvidenceRequest)>,
    /// Denies every call of an agent.
    pub(crate) deny: Option<Reason>,
    /// Entries for which nothing is signed.
    pub(crate) refuse: HashSet<String>,
    /// The next calls of an rpc end so.
    pub(crate) fail: HashMap<&'static str, Vec<Status>>,
    /// How long an rpc takes.
    pub(crate) delay: HashMap<&'static str, Duration>,
    pub(crate) page_size: usize,
    pub(crate) calls: Vec<&'static str>,
    /// The certificate that the last call of an agent was made with.
    pub(crate) last_certificate: Vec<u8>,
    /// How many items each signing call had.
    pub(crate) batches: Vec<usize>,
    /// Full entries sent by the synchronisation.
    pub(crate) sent_entries: usize,
    holder: tls::SvidHolder,
    trust: tls::TrustStore,
}

pub(crate) type Shared = Arc<Mutex<State>>;

/// A running server. Stops when dropped.
pub(crate) struct FakeServer {
    pub(crate) state: Shared,
    pub(crate) address: SocketAddr,
    shutdown: Shutdown,
    task: tokio::task::JoinHandle<()>,
}

impl FakeServer {
    pub(crate) async fn start() -> Self {
        let mut state = State {
            trust_domain: bonafide_testkit::trust_domain(),
            x509: Vec::new(),
            jwt: Vec::new(),
            wit: None,
            entries: BTreeMap::new(),
            raw_entries: Vec::new(),
            federated: BTreeMap::new(),
            tokens: HashSet::from(["token".to_owned()]),
            agent_ttl: Duration::from_secs(3600),
            x509_ttl: Duration::from_secs(3600),
            jwt_ttl: Duration::from_secs(300),
            reattestable: false,
            deny: None,
            refuse: HashSet::new(),
            fail: HashMap::new(),
            delay: HashMap::new(),
            page_size: 500,
            calls: Vec::new(),
            last_certificate: Vec::new(),
            batches: Vec::new(),
            shown: Vec::new(),
            sent_entries: 0,
            holder: tls::SvidHolder::empty(),
            trust: tls::TrustStore::empty(),
        };
        state.rotate_x509();
        state.rotate_jwt();
        Self::resume(Arc::new(Mutex::new(state)), None).await
    }

    /// Starts again with what an earlier one knew.
    pub(crate) async fn resume(state: Shared, address: Option<SocketAddr>) -> Self {
        let address = address.unwrap_or_else(|| ([127, 0, 0, 1], 0).into());
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (holder, trust) = {
            let state = state.lock().unwrap();
            (state.holder.clone(), state.trust.clone())
        };
        let now: tls::Now = Arc::new(|| SystemClock.now());
        let config = tls::server_config(holder, trust, tls::ClientAuth::OptionalSpiffe, now);
        let service = Service { state: Arc::clone(&state) };
        let routes = Routes::new(AgentServer::new(service.clone()))
            .add_service(EntryServer::new(service.clone()))
            .add_service(BundleServer::new(service.clone()))
            .add_service(GpuEvidenceServer::new(service.clone()))
            .add_service(SvidServer::new(service));
        let shutdown = Shutdown::new();
        let options = TlsOptions { drain: Duration::ZERO, ..TlsOptions::default() };
        let id = |chain: &[rustls_pki_types::CertificateDer<'_>]| match chain.first() {
            None => Ok(None),
            Some(leaf) => Ok(inspect(leaf)?.spiffe_id),
        };
        let until = shutdown.clone();
        let task = tokio::spawn(async move {
            serve_tls(listener, config, routes, options, id, until).await.unwrap();
        });
        Self { state, address, shutdown, task }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Closes the port and all connections.
    pub(crate) async fn stop(mut self) -> (Shared, SocketAddr) {
        self.shutdown.trigger();
        (&mut self.task).await.unwrap();
        (Arc::clone(&self.state), self.address)
    }
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        self.shutdown.trigger();
    }
}

fn now() -> Timestamp {
    SystemClock.now()
}

fn later(by: Duration) -> Timestamp {
    now().saturating_add(by)
}

impl State {
    /// Adds an X.509 authority and signs with it from now on, the server's own certificate included.
    pub(crate) fn rotate_x509(&mut self) {
        let key: Arc<dyn Signer> = Arc::new(PrivateKey::generate(KeyType::EcP256).unwrap());
        let day = Duration::from_secs(86_400);
        let (start, end) = (now().saturating_sub(Duration::from_secs(10)), later(day));
        let serial = random_serial(&SystemRandom);
        let ca =
            self_signed_ca(&*key, &self.trust_domain, &CaSubject::default(), start, end, serial).unwrap();
        let issuer = X509Issuer::new(&self.trust_domain, ca, Vec::new(), key).unwrap();
        self.x509.push((Arc::new(issuer), false));
        let key = PrivateKey::generate(KeyType::EcP256).unwrap();
        let id = self.trust_domain.server_id();
        let leaf = self.sign_x509(&id, key.public_key(), Duration::from_secs(3600));
        self.holder.set(tls::Svid::new(vec![leaf], Arc::new(key)).unwrap());
        let roots: Vec<_> = self.x509.iter().map(|(issuer, _)| issuer.certificate().to_vec()).collect();
        let roots = TrustRoots::from_der(roots.iter().map(Vec::as_slice)).unwrap();
        self.trust.set_trust_domain(&self.trust_domain, &Arc::new(roots));
    }

    /// Adds a JWT authority and signs with it from now on.
    pub(crate) fn rotate_jwt(&mut self) {
        self.jwt.push((Arc::new(token_signer()), false));
    }

    pub(crate) fn support_wit(&mut self) {
        self.wit = Some(Arc::new(token_signer()));
    }

    /// No client certificate is accepted any more.
    pub(crate) fn distrust_clients(&mut self) {
        self.trust.set(HashMap::new());
    }

    pub(crate) fn add(&mut self, entry: Entry) {
        self.entries.insert(entry.id.as_str().to_owned(), entry);
    }

    pub(crate) fn bundle(&self) -> Bundle {
        let mut bundle = Bundle::empty(self.trust_domain.clone());
        for (issuer, tainted) in &self.x509 {
            let certificate = issuer.certificate().to_vec();
            bundle.x509_authorities.push(X509Authority { certificate, tainted: *tainted });
        }
        bundle.jwt_authorities =
            self.jwt.iter().map(|(signer, tainted)| authority(signer, *tainted)).collect();
        bundle.wit_authorities = self.wit.iter().map(|signer| authority(signer, false)).collect();
        bundle.sequence_number = 1;
        bundle
    }

    pub(crate) fn root_pem(&self) -> String {
        bonafide_pki::bundle::to_pem(&self.bundle())
    }

    pub(crate) fn count(&self, rpc: &str) -> usize {
        self.calls.iter().filter(|call| **call == rpc).count()
    }

    pub(crate) fn sign_x509(&self, id: &SpiffeId, key: &PublicKey, ttl: Duration) -> Vec<u8> {
        let (issuer, _) = self.x509.last().unwrap();
        let life = capped(ttl, now(), issuer.not_after());
        let profile = LeafProfile {
            spiffe_id: id,
            dns_names: &[],
            subject: Subject::Default,
            public_key: key,
            not_before: life.not_before,
            not_after: life.not_after,
            serial: random_serial(&SystemRandom),
        };
        issuer.issue(&profile).unwrap()
    }

    fn wire_svid(&self, id: &SpiffeId, leaf: Vec<u8>) -> types::X509svid {
        let expires_at = inspect(&leaf).unwrap().not_after.unix_seconds();
        types::X509svid {
            id: Some(spiffe_id_to_wire(id)),
            cert_chain: vec![leaf.into()],
            expires_at,
            hint: String::new(),
        }
    }

    fn called(&mut self, rpc: &'static str) -> Result<(), Status> {
        self.calls.push(rpc);
        match self.fail.get_mut(rpc) {
            Some(failures) if !failures.is_empty() => Err(failures.remove(0)),
            _ => Ok(()),
        }
    }
}

fn token_signer() -> JwtSigner {
    let key = PrivateKey::generate(KeyType::EcP256).unwrap();
    JwtSigner::new(random_key_id(&SystemRandom), Arc::new(key))
}

fn authority(signer: &JwtSigner, tainted: bool) -> JwtAuthority {
    JwtAuthority {
        key_id: signer.key_id().to_owned(),
        public_key: signer.public_key().spki_der().to_vec(),
        expires_at: Some(later(Duration::from_secs(86_400))),
        tainted,
    }
}

#[derive(Clone)]
struct Service {
    state: Shared,
}

impl Service {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// A call that only an agent may make.
    fn agent_call<T>(
        &self,
        rpc: &'static str,
        request: &Request<T>,
    ) -> Result<MutexGuard<'_, State>, Status> {
        let mut state = self.state();
        state.called(rpc)?;
        match request.extensions().get::<Arc<Peer>>().map(|peer| &**peer) {
            Some(Peer::Tls(peer)) if peer.spiffe_id.is_some() => {
                state.last_certificate.clone_from(&peer.certificates[0]);
            }
            _ => return Err(Status::permission_denied("authorization denied")),
        }
        match state.deny {
            Some(reason) => Err(permission_denied_with_reason("authorization denied", reason)),
            None => Ok(state),
        }
    }
}

/// The methods that no agent calls, and those that are written out.
macro_rules! service {
    ($service:path { unused { $($name:ident: $request:ty => $response:ty,)* } $($written:tt)* }) => {
        #[tonic::async_trait]
        impl $service for Service {
            $(async fn $name(&self, _: Request<$request>) -> Result<Response<$response>, Status> {
                Err(Status::unimplemented(stringify!($name)))
            })*
            $($written)*
        }
    };
}

service!(Agent {
    unused {
        count_agents: agent::CountAgentsRequest => agent::CountAgentsResponse,
        list_agents: agent::ListAgentsRequest => agent::ListAgentsResponse,
        get_agent: agent::GetAgentRequest => types::Agent,
        delete_agent: agent::DeleteAgentRequest => (),
        ban_agent: agent::BanAgentRequest => (),
        create_join_token: agent::CreateJoinTokenRequest => types::JoinToken,
    }

    type AttestAgentStream = ReceiverStream<Result<agent::AttestAgentResponse, Status>>;

    async fn attest_agent(
        &self,
        request: Request<Streaming<agent::AttestAgentRequest>>,
    ) -> Result<Response<Self::AttestAgentStream>, Status> {
        use agent::attest_agent_request::Step;
        use agent::attest_agent_response as answer;
        let anonymous = match request.extensions().get::<Arc<Peer>>().map(|peer| &**peer) {
            Some(Peer::Tls(peer)) => peer.spiffe_id.is_none(),
            _ => false,
        };
        assert!(anonymous, "attestation must not carry a client certificate");
        self.state().called("AttestAgent")?;
        let mut requests = request.into_inner();
        let first = requests.message().await?.and_then(|request| request.step);
        let Some(Step::Params(params)) = first else { return Err(Status::invalid_argument("malformed param")) };
        let (data, csr) = (params.data.unwrap(), params.params.unwrap().csr);
        let (send, receive) = mpsc::channel(2);
        let service = self.clone();
        tokio::spawn(async move {
            let result = async {
                let name = match data.r#type.as_str() {
                    "join_token" => {
                        let token = String::from_utf8(data.payload).unwrap();
                        if !service.state().tokens.remove(&token) {
                            return Err(Status::invalid_argument(
                                "failed to attest: join token does not exist or has already been used",
                            ));
                        }
                        format!("join_token/{token}")
                    }
                    _ => {
                        let nonce = data_encoding::BASE64.encode(&[1; 32]);
                        let challenge = format!(r#"{{"ecdsa_signature":{{"nonce":"{nonce}"}}}}"#).into_bytes();
                        let step = Some(answer::Step::Challenge(challenge));
                        let _ = send.send(Ok(agent::AttestAgentResponse { step })).await;
                        let response = requests.message().await?.and_then(|request| request.step);
                        match response {
                            Some(Step::ChallengeResponse(response)) if response.starts_with(b"{") => {}
                            _ => return Err(Status::invalid_argument("no response")),
                        }
                        "x509pop/node".to_owned()
                    }
                };
                let state = service.state();
                let key = csr_public_key_unverified(&csr).unwrap();
                let id = state.trust_domain.agent_id(&name).unwrap();
                let leaf = state.sign_x509(&id, &key, state.agent_ttl);
                let svid = Some(state.wire_svid(&id, leaf));
                let result = answer::Result { svid, reattestable: state.reattestable };
                Ok(agent::AttestAgentResponse { step: Some(answer::Step::Result(result)) })
            }
            .await;
            let _ = send.send(result).await;
        });
        Ok(Response::new(ReceiverStream::new(receive)))
    }

    async fn renew_agent(
        &self,
        request: Request<agent::RenewAgentRequest>,
    ) -> Result<Response<agent::RenewAgentResponse>, Status> {
        let id = match request.extensions().get::<Arc<Peer>>().map(|peer| &**peer) {
            Some(Peer::Tls(peer)) => peer.spiffe_id.clone(),
            _ => None,
        };
        let state = self.agent_call("RenewAgent", &request)?;
        let csr = request.get_ref().params.as_ref().unwrap().csr.clone();
        let leaf = state.sign_x509(&id.unwrap(), &csr_public_key_unverified(&csr).unwrap(), state.agent_ttl);
        let id = inspect(&leaf).unwrap().spiffe_id.unwrap();
        Ok(Response::new(agent::RenewAgentResponse { svid: Some(state.wire_svid(&id, leaf)) }))
    }

    async fn post_status(
        &self,
        request: Request<agent::PostStatusRequest>,
    ) -> Result<Response<agent::PostStatusResponse>, Status> {
        drop(self.agent_call("PostStatus", &request)?);
        Ok(Response::new(agent::PostStatusResponse {}))
    }
});

service!(GpuEvidence {
    unused {}

    async fn get_challenge(
        &self,
        request: Request<evidence::GetChallengeRequest>,
    ) -> Result<Response<evidence::GetChallengeResponse>, Status> {
        drop(self.agent_call("GetChallenge", &request)?);
        Ok(Response::new(evidence::GetChallengeResponse { challenge: vec![7; 32] }))
    }

    async fn submit_evidence(
        &self,
        request: Request<evidence::SubmitEvidenceRequest>,
    ) -> Result<Response<evidence::SubmitEvidenceResponse>, Status> {
        let mut state = self.agent_call("SubmitEvidence", &request)?;
        let key = inspect(&state.last_certificate).unwrap().public_key.unwrap();
        state.shown.push((key.spki_der().to_vec(), request.into_inner()));
        let expires_at = later(Duration::from_secs(3600)).unix_seconds();
        Ok(Response::new(evidence::SubmitEvidenceResponse { selectors: Vec::new(), expires_at }))
    }
});

service!(EntryApi {
    unused {
        count_entries: entry::CountEntriesRequest => entry::CountEntriesResponse,
        list_entries: entry::ListEntriesRequest => entry::ListEntriesResponse,
        get_entry: entry::GetEntryRequest => types::Entry,
        batch_create_entry: entry::BatchCreateEntryRequest => entry::BatchCreateEntryResponse,
        batch_update_entry: entry::BatchUpdateEntryRequest => entry::BatchUpdateEntryResponse,
        batch_delete_entry: entry::BatchDeleteEntryRequest => entry::BatchDeleteEntryResponse,
        get_authorized_entries: entry::GetAuthorizedEntriesRequest => entry::GetAuthorizedEntriesResponse,
    }

    type SyncAuthorizedEntriesStream = ReceiverStream<Result<entry::SyncAuthorizedEntriesResponse, Status>>;

    async fn sync_authorized_entries(
        &self,
        request: Request<Streaming<entry::SyncAuthorizedEntriesRequest>>,
    ) -> Result<Response<Self::SyncAuthorizedEntriesStream>, Status> {
        let (entries, page_size) = {
            let state = self.agent_call("SyncAuthorizedEntries", &request)?;
            let mut entries: Vec<types::Entry> =
                state.entries.values().map(|entry| entry_to_wire(entry, None)).collect();
            entries.extend(state.raw_entries.iter().cloned());
            entries.sort_by(|a, b| a.id.cmp(&b.id));
            (entries, state.page_size)
        };
        let mut requests = request.into_inner();
        let first = requests.message().await?.unwrap();
        assert!(first.ids.is_empty(), "the first message asks for no entries");
        let mask = first.output_mask.unwrap();
        assert!(mask.revision_number && mask.created_at && mask.selectors && !mask.parent_id && !mask.x509_svid_ttl);

        let (send, receive) = mpsc::channel(4);
        let service = self.clone();
        tokio::spawn(async move {
            let full = |entries: &[types::Entry], more| {
                service.state().sent_entries += entries.len();
                entry::SyncAuthorizedEntriesResponse { entries: entries.to_vec(), entry_revisions: Vec::new(), more }
            };
            if entries.len() <= page_size {
                let _ = send.send(Ok(full(&entries, false))).await;
                return;
            }
            let pages = entries.chunks(page_size);
            let last = pages.len() - 1;
            for (number, page) in pages.enumerate() {
                let entry_revisions = page
                    .iter()
                    .map(|entry| entry::EntryRevision {
                        id: entry.id.clone(),
                        revision_number: entry.revision_number,
                        created_at: entry.created_at,
                    })
                    .collect();
                let page =
                    entry::SyncAuthorizedEntriesResponse { entry_revisions, more: number != last, ..Default::default() };
                let _ = send.send(Ok(page)).await;
            }
            while let Ok(Some(request)) = requests.message().await {
                assert!(request.ids.len() <= page_size && request.ids.is_sorted() && !request.ids.is_empty());
                let wanted: Vec<_> =
                    entries.iter().filter(|entry| request.ids.contains(&entry.id)).cloned().collect();
                // One at a time, so that the client meets `more` here as well.
                for entry in &wanted {
                    let _ = send.send(Ok(full(std::slice::from_ref(entry), true))).await;
                }
                let _ = send.send(Ok(full(&[], false))).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receive)))
    }
});

service!(BundleApi {
    unused {
        count_bundles: bundle::CountBundlesRequest => bundle::CountBundlesResponse,
        append_bundle: bundle::AppendBundleRequest => types::Bundle,
        publish_jwt_authority: bundle::PublishJwtAuthorityRequest => bundle::PublishJwtAuthorityResponse,
        publish_wit_authority: bundle::PublishWitAuthorityRequest => bundle::PublishWitAuthorityResponse,
        list_federated_bundles: bundle::ListFederatedBundlesRequest => bundle::ListFederatedBundlesResponse,
        batch_create_federated_bundle: bundle::BatchCreateFederatedBundleRequest => bundle::BatchCreateFederatedBundleResponse,
        batch_update_federated_bundle: bundle::BatchUpdateFederatedBundleRequest => bundle::BatchUpdateFederatedBundleResponse,
        batch_set_federated_bundle: bundle::BatchSetFederatedBundleRequest => bundle::BatchSetFederatedBundleResponse,
        batch_delete_federated_bundle: bundle::BatchDeleteFederatedBundleRequest => bundle::BatchDeleteFederatedBundleResponse,
    }

    async fn get_bundle(&self, _: Request<bundle::GetBundleRequest>) -> Result<Response<types::Bundle>, Status> {
        let mut state = self.state();
        state.called("GetBundle")?;
        Ok(Response::new(bundle_to_wire(&state.bundle(), None)))
    }

    async fn get_federated_bundle(
        &self,
        request: Request<bundle::GetFederatedBundleRequest>,
    ) -> Result<Response<types::Bundle>, Status> {
        let state = self.agent_call("GetFederatedBundle", &request)?;
        let name = TrustDomain::parse(&request.get_ref().trust_domain).unwrap();
        let bundle = state.federated.get(&name).ok_or_else(|| Status::not_found("bundle not found"))?;
        Ok(Response::new(bundle_to_wire(bundle, None)))
    }
});

service!(Svid {
    unused {
        mint_x509svid: svid::MintX509svidRequest => svid::MintX509svidResponse,
        mint_jwtsvid: svid::MintJwtsvidRequest => svid::MintJwtsvidResponse,
        mint_witsvid: svid::MintWitsvidRequest => svid::MintWitsvidResponse,
        new_downstream_x509ca: svid::NewDownstreamX509caRequest => svid::NewDownstreamX509caResponse,
    }

    async fn batch_new_x509svid(
        &self,
        request: Request<svid::BatchNewX509svidRequest>,
    ) -> Result<Response<svid::BatchNewX509svidResponse>, Status> {
        use svid::batch_new_x509svid_response::Result as Item;
        let count = request.get_ref().params.len();
        self.state().batches.push(count);
        let state = self.agent_call("BatchNewX509SVID", &request)?;
        let results = request.get_ref().params.iter().map(|params| {
            let Some(entry) = state.entries.get(&params.entry_id).filter(|_| !state.refuse.contains(&params.entry_id))
            else {
                let status = Some(status(Code::NotFound, "entry not found or not authorized"));
                return Item { status, svid: None };
            };
            let csr = VerifiedCsr::parse(&params.csr).unwrap();
            let leaf = state.sign_x509(&entry.spiffe_id, &csr.public_key, state.x509_ttl);
            Item { status: Some(status_ok()), svid: Some(state.wire_svid(&entry.spiffe_id, leaf)) }
        });
        Ok(Response::new(svid::BatchNewX509svidResponse { results: results.collect() }))
    }

    async fn new_jwtsvid(
        &self,
        request: Request<svid::NewJwtsvidRequest>,
    ) -> Result<Response<svid::NewJwtsvidResponse>, Status> {
        let delay = self.state().delay.get("NewJWTSVID").copied();
        tokio::time::sleep(delay.unwrap_or_default()).await;
        let state = self.agent_call("NewJWTSVID", &request)?;
        let request = request.get_ref();
        let entry = state.entries.get(&request.entry_id).ok_or_else(|| Status::not_found("entry not found"))?;
        let (iat, exp) = (now(), later(state.jwt_ttl));
        let claims = JwtClaims { sub: &entry.spiffe_id, aud: &request.audience, exp, iat, iss: None, jti: None };
        let (signer, _) = state.jwt.last().unwrap();
        let svid = types::Jwtsvid {
            token: signer.sign_jwt_svid(&claims).unwrap(),
            id: Some(spiffe_id_to_wire(&entry.spiffe_id)),
            expires_at: exp.unix_seconds(),
            issued_at: iat.unix_seconds(),
            hint: String::new(),
        };
        Ok(Response::new(svid::NewJwtsvidResponse { svid: Some(svid) }))
    }

    async fn batch_new_witsvid(
        &self,
        request: Request<svid::BatchNewWitsvidRequest>,
    ) -> Result<Response<svid::BatchNewWitsvidResponse>, Status> {
        use svid::batch_new_witsvid_response::Result as Item;
        let state = self.agent_call("BatchNewWITSVID", &request)?;
        let signer = state.wit.as_ref().ok_or_else(|| Status::unimplemented("WIT functionality is disabled"))?;
        let results = request.get_ref().params.iter().map(|params| {
            let entry = &state.entries[&params.entry_id];
            let key = PublicKey::from_spki_der(&params.public_key).unwrap();
            let algorithm: JwsAlgorithm = params.signing_algorithm.parse().unwrap();
            let (iat, exp) = (now(), later(state.x509_ttl));
            let claims = WitClaims { sub: &entry.spiffe_id, exp, iat, iss: None };
            let svid = types::Witsvid {
                token: signer.sign_wit_svid(&claims, &key, algorithm).unwrap(),
                id: Some(spiffe_id_to_wire(&entry.spiffe_id)),
                expires_at: exp.unix_seconds(),
                issued_at: iat.unix_seconds(),
                hint: String::new(),
            };
            // As SPIRE answers: no status with a success.
            Item { status: None, svid: Some(svid) }
        });
        Ok(Response::new(svid::BatchNewWitsvidResponse { results: results.collect() }))
    }
});
