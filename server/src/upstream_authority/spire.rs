//! Another server of the same trust domain, ours or SPIRE, as the upstream authority: nesting.
//!
//! This server is a workload of an agent that belongs to the upstream server, and the registration entry of that
//! workload says `downstream`. The identity comes over the agent's Workload API and is kept fresh by staying on its
//! stream. A connection to the upstream server is remade when the identity has changed, because a server judges the
//! certificate that a connection was made with, and that one expires.
//!
//! A process may have several identities, when several entries match it, and nothing in the Workload API says which one
//! is downstream. So the next one is tried when the upstream server refuses, and the one that works is remembered.
//!
//! Rejected: a static certificate for the connection (somebody would have to renew it), and reading the identity anew
//! for each call (the agent would attest this process every five seconds).

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bonafide_identity::{AuthorityKind, Bundle, JwtAuthority, SpiffeId, Timestamp, TrustDomain};
use bonafide_pki::tls::{self, PeerCheck, Svid, SvidHolder, TrustStore};
use bonafide_pki::{PrivateKey, PublicKey, Random, Signer, TrustRoots, inspect, split_certificates};
use bonafide_proto::convert::{bundle_from_server, jwt_authorities_to_wire, wit_authorities_to_wire};
use bonafide_proto::spire::server::bundle::v1::bundle_client::BundleClient;
use bonafide_proto::spire::server::bundle::v1::{
    GetBundleRequest, PublishJwtAuthorityRequest, PublishWitAuthorityRequest,
};
use bonafide_proto::spire::server::svid::v1::NewDownstreamX509caRequest;
use bonafide_proto::spire::server::svid::v1::svid_client::SvidClient;
use bonafide_proto::spire::types;
use bonafide_proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use bonafide_proto::workload::{X509svidRequest, X509svidResponse};
use bonafide_runtime::BoxError;
use bonafide_runtime::backoff::Backoff;
use bonafide_runtime::clock::SharedClock;
use bonafide_runtime::shutdown::Shutdown;
use bonafide_runtime::tasks::chain;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};

use super::{Address, UpstreamAuthority, UpstreamCa, UpstreamError};

/// Where the upstream is, and how this server shows who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpireConfig {
    /// The trust domain, which is that of the upstream server too.
    pub trust_domain: TrustDomain,
    /// The upstream server.
    pub server_address: Address,
    /// The Workload API socket of an agent of the upstream server.
    pub workload_api_socket: PathBuf,
    /// Time between two looks at the upstream's bundle.
    pub poll_interval: Duration,
}

/// A client of the upstream server.
pub struct Spire {
    config: SpireConfig,
    clock: SharedClock,
    random: Arc<dyn Random>,
    identities: Mutex<Identities>,
    trust: TrustStore,
    /// How the stream of identities is.
    state: watch::Sender<State>,
    /// The connection, and the identity that it was made with.
    connection: tokio::sync::Mutex<Option<(Arc<Svid>, Channel)>>,
    /// What was left out of a bundle and complained about: once each.
    left_out: Mutex<HashSet<Vec<u8>>>,
}

/// The identities of this process in the trust domain.
#[derive(Default)]
struct Identities {
    held: Vec<(SpiffeId, SvidHolder)>,
    /// The one in use.
    chosen: usize,
}

impl Identities {
    /// Takes the place of `self`, and goes on with the same one where there is one of that name.
    fn replace(&mut self, held: Vec<(SpiffeId, SvidHolder)>) {
        let chosen = self.held.get(self.chosen).map(|(id, _)| id.clone());
        self.chosen = held.iter().position(|(id, _)| Some(id) == chosen.as_ref()).unwrap_or(0);
        self.held = held;
    }

    fn chosen(&self) -> Option<(SpiffeId, SvidHolder)> {
        self.held.get(self.chosen).cloned()
    }

    /// Goes on with the next one, after `refused` was refused.
    fn pass_over(&mut self, refused: &SpiffeId) {
        if self.held.get(self.chosen).is_some_and(|(id, _)| id == refused) {
            self.chosen = (self.chosen + 1) % self.held.len();
        }
    }

    fn names(&self) -> String {
        let names: Vec<String> = self.held.iter().map(|(id, _)| id.to_string()).collect();
        names.join(", ")
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// Nothing has come yet.
    Starting,
    /// There is an identity.
    Known,
    /// There is none, and this is why.
    Without(String),
}

impl Spire {
    /// A client that has done nothing yet; [`UpstreamAuthority::run`] gives it its identity.
    #[must_use]
    pub fn new(config: SpireConfig, clock: SharedClock, random: Arc<dyn Random>) -> Self {
        Self {
            config,
            clock,
            random,
            identities: Mutex::default(),
            trust: TrustStore::empty(),
            state: watch::Sender::new(State::Starting),
            connection: tokio::sync::Mutex::default(),
            left_out: Mutex::default(),
        }
    }

    /// Takes identities from one stream until it ends, and says why it ended.
    async fn follow_identity(&self, received: &mut bool) -> String {
        let socket = self.config.workload_api_socket.clone();
        let dial = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://localhost").connect_timeout(CONNECT_TIMEOUT);
        let channel = match endpoint.connect_with_connector(dial).await {
            Ok(channel) => channel,
            Err(error) => return format!("the Workload API cannot be reached: {}", chain(&error)),
        };
        let mut request = Request::new(X509svidRequest {});
        // SPIFFE Workload Endpoint, section 3.
        request.metadata_mut().insert("workload.spiffe.io", MetadataValue::from_static("true"));
        let mut stream = match SpiffeWorkloadApiClient::new(channel).fetch_x509svid(request).await {
            Ok(stream) => stream.into_inner(),
            Err(status) => return refused_identity(&status),
        };
        loop {
            match stream.message().await {
                Ok(Some(response)) => match identities_of(&response, &self.config.trust_domain) {
                    Ok((held, roots)) => {
                        self.take(held, roots);
                        *received = true;
                    }
                    Err(reason) => return format!("the Workload API gave no usable identity: {reason}"),
                },
                Ok(None) => return "the agent ended the stream".to_owned(),
                Err(status) => return refused_identity(&status),
            }
        }
    }

    fn take(&self, held: Vec<(SpiffeId, SvidHolder)>, roots: TrustRoots) {
        self.trust.set_trust_domain(&self.config.trust_domain, &Arc::new(roots));
        let names = {
            let mut identities = self.identities();
            identities.replace(held);
            identities.names()
        };
        if self.state.send_replace(State::Known) != State::Known {
            tracing::info!(identities = names, "this server has its identity for the upstream server");
        }
    }

    fn identities(&self) -> MutexGuard<'_, Identities> {
        self.identities.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The identity to connect with; at a start it is waited for, but not for long.
    async fn identity(&self) -> Result<(SpiffeId, SvidHolder, Arc<Svid>), UpstreamError> {
        let mut state = self.state.subscribe();
        let _ = timeout(IDENTITY_WAIT, state.wait_for(|state| *state != State::Starting)).await;
        let state = state.borrow().clone();
        let without = |reason: &str| {
            let socket = self.config.workload_api_socket.display();
            failed(format!("no identity from the Workload API at {socket}: {reason}"))
        };
        let chosen = self.identities().chosen();
        match (state, chosen.and_then(|(id, holder)| Some((id, holder.current()?, holder)))) {
            (State::Known, Some((id, svid, holder))) => {
                let end = svid.chain().next().and_then(|leaf| inspect(leaf).ok()).map(|info| info.not_after);
                if end.is_none_or(|end| end <= self.clock.now()) {
                    return Err(without("the last one has expired, and the agent sends no new one"));
                }
                Ok((id, holder, svid))
            }
            (State::Without(reason), _) => Err(without(&reason)),
            _ => Err(without("the agent does not answer")),
        }
    }

    /// The connection, made anew when the identity has changed.
    async fn channel(&self) -> Result<(Channel, SpiffeId), UpstreamError> {
        let (id, holder, svid) = self.identity().await?;
        let mut connection = self.connection.lock().await;
        if let Some((made_with, channel)) = &*connection
            && Arc::ptr_eq(made_with, &svid)
        {
            return Ok((channel.clone(), id));
        }
        *connection = None;
        let channel = self.connect(holder).await.map_err(|error| {
            let reason = tls::refusal(&*error).map_or_else(|| chain(&*error), ToString::to_string);
            failed(format!("cannot reach the server at {}: {reason}", self.config.server_address))
        })?;
        *connection = Some((svid, channel.clone()));
        Ok((channel, id))
    }

    async fn connect(&self, identity: SvidHolder) -> Result<Channel, BoxError> {
        let clock = Arc::clone(&self.clock);
        let config = tls::client_config(
            Some(identity),
            self.trust.clone(),
            PeerCheck::ServerId(self.config.trust_domain.server_id()),
            Arc::new(move || clock.now()),
        );
        let address = self.config.server_address.clone();
        let dial = tower::service_fn(move |_| {
            let (config, address) = (Arc::clone(&config), address.clone());
            async move {
                let tcp = address.dial().await?;
                let tls = TlsConnector::from(config).connect(tls::server_name(), tcp).await?;
                Ok::<_, BoxError>(TokioIo::new(tls))
            }
        });
        let uri = |scheme: &str| format!("{scheme}://{}", self.config.server_address).parse::<http::Uri>();
        // The scheme `http` keeps the library from adding a TLS of its own; the requests say `https`.
        let channel = Endpoint::from(uri("http")?)
            .origin(uri("https")?)
            .user_agent(concat!("bonafide-server/", env!("CARGO_PKG_VERSION")))?
            .connect_timeout(CONNECT_TIMEOUT)
            .connect_with_connector(dial)
            .await?;
        Ok(channel)
    }

    /// Makes one call, within a bound. What the server refuses is given as a status, everything else as an error.
    async fn call<T, F>(
        &self,
        rpc: &'static str,
        call: impl Fn(Channel) -> F + Send + Sync,
    ) -> Result<Result<T, Status>, UpstreamError>
    where
        F: Future<Output = Result<Response<T>, Status>> + Send,
    {
        let address = &self.config.server_address;
        // The first of them is waited for at a start; only then is known how many there are.
        self.identity().await?;
        let mut refusal = String::new();
        let tries = self.identities().held.len().clamp(1, MOST_IDENTITIES);
        for _ in 0..tries {
            let (channel, id) = self.channel().await?;
            let status = match timeout(CALL_TIMEOUT, call(channel)).await {
                Ok(Ok(response)) => return Ok(Ok(response.into_inner())),
                Ok(Err(status)) => status,
                Err(_) => {
                    self.connection.lock().await.take();
                    return Err(failed(format!("{address} did not answer {rpc} within {CALL_TIMEOUT:?}")));
                }
            };
            if std::error::Error::source(&status).is_some() {
                // It is the transport that speaks; the next call tries another connection.
                self.connection.lock().await.take();
                let hint = match status.code() {
                    Code::Unknown | Code::Unavailable => {
                        "; if the server runs, it may have refused the certificate of this one: see its log"
                    }
                    _ => "",
                };
                let reason = chain(&status);
                return Err(failed(format!(
                    "the connection to {address} broke during {rpc}: {reason}{hint}"
                )));
            }
            if status.code() != Code::PermissionDenied {
                return Ok(Err(status));
            }
            status.message().clone_into(&mut refusal);
            self.identities().pass_over(&id);
        }
        let names = self.identities().names();
        Err(failed(format!(
            "{address} refused {rpc}: {refusal}. The entry of one of this server's identities there ({names}) must be \
             downstream"
        )))
    }

    fn answered<T>(&self, rpc: &str, answer: Result<T, Status>) -> Result<T, UpstreamError> {
        answer.map_err(|status| {
            let (code, message) = (status.code(), status.message());
            failed(format!("{} answered {rpc} with {code:?}: {message}", self.config.server_address))
        })
    }

    /// What can be used for verification; one certificate that cannot would cost the trust domain all its trust.
    fn usable(&self, rpc: &str, wire: &types::Bundle) -> Result<Bundle, UpstreamError> {
        let malformed = |reason: String| {
            failed(format!("{} answered {rpc} with nonsense: {reason}", self.config.server_address))
        };
        let mut bundle = bundle_from_server(wire).map_err(|error| malformed(error.to_string()))?;
        if bundle.trust_domain != self.config.trust_domain {
            return Err(malformed(format!(
                "the bundle of {}; this server is of {}",
                bundle.trust_domain, self.config.trust_domain
            )));
        }
        bundle.x509_authorities.retain(|root| match TrustRoots::from_der([root.certificate.as_slice()]) {
            Ok(_) => true,
            Err(error) => self.leave_out("certificate", &root.certificate, &error),
        });
        let mut key = |key: &JwtAuthority| match PublicKey::from_spki_der(&key.public_key) {
            Ok(_) => true,
            Err(error) => self.leave_out("key", key.key_id.as_bytes(), &error),
        };
        bundle.jwt_authorities.retain(&mut key);
        bundle.wit_authorities.retain(&mut key);
        Ok(bundle)
    }

    fn leave_out(&self, what: &str, bytes: &[u8], error: &dyn std::fmt::Display) -> bool {
        let mut left_out = self.left_out.lock().unwrap_or_else(PoisonError::into_inner);
        if left_out.len() < MOST_COMPLAINTS && left_out.insert(bytes.to_vec()) {
            tracing::error!(%error, "a {what} in the bundle of the upstream server cannot be used and is left out");
        }
        false
    }
}

#[async_trait::async_trait]
impl UpstreamAuthority for Spire {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn mint_ca(
        &self,
        csr: &[u8],
        preferred_ttl: Duration,
        _: Timestamp,
    ) -> Result<UpstreamCa, UpstreamError> {
        const RPC: &str = "NewDownstreamX509CA";
        let preferred_ttl = i32::try_from(preferred_ttl.as_secs()).unwrap_or(i32::MAX);
        let request = NewDownstreamX509caRequest { csr: csr.to_vec(), preferred_ttl };
        let answer = self
            .call(RPC, |channel| {
                let request = request.clone();
                async move { SvidClient::new(channel).new_downstream_x509ca(request).await }
            })
            .await?;
        let answer = self.answered(RPC, answer)?;
        Ok(UpstreamCa { chain: answer.ca_cert_chain, roots: answer.x509_authorities })
    }

    async fn bundle(&self, _: Timestamp) -> Result<Option<Bundle>, UpstreamError> {
        const RPC: &str = "GetBundle";
        let request = GetBundleRequest { output_mask: None };
        let answer = self
            .call(RPC, |channel| async move { BundleClient::new(channel).get_bundle(request).await })
            .await?;
        let answer = self.answered(RPC, answer)?;
        self.usable(RPC, &answer).map(Some)
    }

    fn poll_interval(&self) -> Duration {
        self.config.poll_interval
    }

    async fn publish_key(
        &self,
        kind: AuthorityKind,
        key: &JwtAuthority,
    ) -> Result<Option<Vec<JwtAuthority>>, UpstreamError> {
        let one = std::slice::from_ref(key);
        let mut wire = types::Bundle {
            trust_domain: self.config.trust_domain.as_str().to_owned(),
            ..types::Bundle::default()
        };
        let (rpc, answer) = match kind {
            AuthorityKind::X509 => return Ok(None),
            AuthorityKind::Jwt => {
                const RPC: &str = "PublishJWTAuthority";
                let request =
                    PublishJwtAuthorityRequest { jwt_authority: jwt_authorities_to_wire(one).pop() };
                let answer = self.call(RPC, |channel| {
                    let request = request.clone();
                    async move { BundleClient::new(channel).publish_jwt_authority(request).await }
                });
                (RPC, answer.await?.map(|answer| wire.jwt_authorities = answer.jwt_authorities))
            }
            AuthorityKind::Wit => {
                const RPC: &str = "PublishWITAuthority";
                let request =
                    PublishWitAuthorityRequest { wit_authority: wit_authorities_to_wire(one).pop() };
                let answer = self.call(RPC, |channel| {
                    let request = request.clone();
                    async move { BundleClient::new(channel).publish_wit_authority(request).await }
                });
                (RPC, answer.await?.map(|answer| wire.wit_authorities = answer.wit_authorities))
            }
        };
        if answer.as_ref().is_err_and(|status| status.code() == Code::Unimplemented) {
            return Ok(None);
        }
        self.answered(rpc, answer)?;
        let bundle = self.usable(rpc, &wire)?;
        Ok(Some(match kind {
            AuthorityKind::Wit => bundle.wit_authorities,
            _ => bundle.jwt_authorities,
        }))
    }

    /// Stays on the stream of identities, and comes back to it.
    async fn run(&self, shutdown: Shutdown) -> Result<(), BoxError> {
        let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(15), 2.0);
        loop {
            let mut received = false;
            let reason = tokio::select! {
                () = shutdown.triggered() => return Ok(()),
                reason = self.follow_identity(&mut received) => reason,
            };
            if received {
                backoff.reset();
            }
            let retry_in = backoff.next(self.random.u64());
            tracing::warn!(
                reason,
                ?retry_in,
                "the stream of this server's identity for the upstream server ended"
            );
            // An identity that is held stays good until its end.
            self.state.send_if_modified(|state| {
                let told = State::Without(reason);
                let changed = !matches!(state, State::Known) && *state != told;
                if changed {
                    *state = told;
                }
                changed
            });
            tokio::select! {
                () = shutdown.triggered() => return Ok(()),
                () = tokio::time::sleep(retry_in) => {}
            }
        }
    }
}

/// The identities of the trust domain in one message of the Workload API, and the trust domain's roots.
///
/// # Errors
/// There is no identity of the trust domain, or one of them, or the roots, cannot be used.
pub fn identities_of(
    response: &X509svidResponse,
    trust_domain: &TrustDomain,
) -> Result<(Vec<(SpiffeId, SvidHolder)>, TrustRoots), String> {
    let of_ours = |id: &str| SpiffeId::parse(id).ok().filter(|id| id.trust_domain() == trust_domain);
    let ours: Vec<_> =
        response.svids.iter().filter_map(|svid| Some((of_ours(&svid.spiffe_id)?, svid))).collect();
    let (_, first) = ours.first().ok_or_else(|| format!("there is none of trust domain {trust_domain}"))?;
    let roots = split_certificates(&first.bundle).map_err(|error| error.to_string())?;
    let roots = TrustRoots::from_der(roots.iter().map(Vec::as_slice)).map_err(|error| error.to_string())?;
    let held = ours.into_iter().map(|(id, wire)| {
        let chain = split_certificates(&wire.x509_svid).map_err(|error| error.to_string())?;
        let key = PrivateKey::from_pkcs8_der(&wire.x509_svid_key).map_err(|error| error.to_string())?;
        let key: Arc<dyn Signer> = Arc::new(key);
        Ok((id, SvidHolder::new(Svid::new(chain, key).map_err(|error| error.to_string())?)))
    });
    Ok((held.collect::<Result<_, String>>()?, roots))
}

fn refused_identity(status: &Status) -> String {
    match status.code() {
        Code::PermissionDenied => format!(
            "{}; register an entry with `downstream` for this process at the upstream server",
            status.message()
        ),
        code => format!("{} ({code:?})", status.message()),
    }
}

fn failed(reason: String) -> UpstreamError {
    UpstreamError { name: NAME, reason }
}

const NAME: &str = "spire";

/// For name lookup, all addresses and TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// For an answer on a connection that exists.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a call waits for the first identity.
const IDENTITY_WAIT: Duration = Duration::from_secs(3);
/// How many identities are tried in one call.
const MOST_IDENTITIES: usize = 8;
/// How many parts of bundles are remembered as complained about.
const MOST_COMPLAINTS: usize = 64;

#[cfg(test)]
mod tests {
    use bonafide_proto::workload::X509svid;
    use bonafide_testkit::{TestAuthority, id, trust_domain};

    use super::*;

    fn message(edit: impl FnOnce(&mut X509svid)) -> X509svidResponse {
        let now = Timestamp::from_unix_seconds(1_800_000_000);
        let before = now.saturating_sub(Duration::from_secs(60));
        let authority =
            TestAuthority::new(&trust_domain(), before, now.saturating_add(Duration::from_secs(3600)));
        let issued = authority.issue(&id("/nested"));
        let mut svid = X509svid {
            spiffe_id: id("/nested").to_string(),
            x509_svid: issued.chain.concat().into(),
            x509_svid_key: issued.pkcs8.to_vec().into(),
            bundle: authority.root().to_vec().into(),
            hint: String::new(),
        };
        edit(&mut svid);
        X509svidResponse { svids: vec![svid], ..X509svidResponse::default() }
    }

    fn names(response: &X509svidResponse) -> Vec<(SpiffeId, SvidHolder)> {
        identities_of(response, &trust_domain()).unwrap().0
    }

    #[test]
    fn identities_of_other_trust_domains_are_passed_over() {
        let mut response = message(|_| {});
        let foreign = X509svid { spiffe_id: "spiffe://elsewhere/x".to_owned(), ..response.svids[0].clone() };
        response.svids.insert(0, foreign);
        let held = names(&response);
        assert_eq!(held.len(), 1);
        assert_eq!(held[0].0, id("/nested"));
    }

    #[test]
    fn the_identity_that_works_is_kept_over_a_renewal() {
        let mut response = message(|_| {});
        response.svids.insert(0, X509svid { spiffe_id: id("/a").to_string(), ..response.svids[0].clone() });
        let mut identities = Identities::default();
        identities.replace(names(&response));
        let chosen = |identities: &Identities| identities.chosen().unwrap().0;
        assert_eq!(chosen(&identities), id("/a"));
        identities.pass_over(&id("/a"));
        assert_eq!(chosen(&identities), id("/nested"));
        // Two calls were refused at the same time.
        identities.pass_over(&id("/a"));
        assert_eq!(chosen(&identities), id("/nested"));
        identities.replace(names(&response));
        assert_eq!(chosen(&identities), id("/nested"));
        identities.pass_over(&id("/nested"));
        assert_eq!(chosen(&identities), id("/a"));
        response.svids.remove(0);
        identities.replace(names(&response));
        assert_eq!(chosen(&identities), id("/nested"));
    }

    #[test]
    fn unusable_identities_are_refused() {
        type Edit = fn(&mut X509svid);
        let cases: [(Edit, &str); 5] = [
            (|svid| svid.spiffe_id = "spiffe://elsewhere/x".to_owned(), "none of trust domain"),
            (|svid| svid.x509_svid = vec![0x30, 0x03, 1].into(), ""),
            (|svid| svid.x509_svid_key = Vec::new().into(), ""),
            (|svid| svid.x509_svid_key = TestAuthority::request(&id("/other")).1.into(), ""),
            (|svid| svid.bundle = b"x".to_vec().into(), ""),
        ];
        for (edit, reason) in cases {
            let Err(refused) = identities_of(&message(edit), &trust_domain()) else { panic!("not refused") };
            assert!(refused.contains(reason), "{refused}");
        }
    }
}
