//! The SPIFFE Broker API: a broker, known by its certificate, asks for the identities of workloads that it names.
//!
//! It is served on sockets of its own, on a Unix socket, on TCP or on both, and on both with mutual TLS: the agent shows its
//! SVID, and the client must be one of the configured brokers, of whatever trust domain whose bundle the agent holds. That
//! is looked at in the handshake, and again for each call and message: a connection must not outlive the certificate
//! or the authority that it was opened with.
//!
//! A broker never says what a workload is. It names one, and the agent finds out: a process is pinned and attested like a
//! caller, and its stream ends when it exits. Which kinds of names a broker may use, and which of them over TCP,
//! the configuration says; a process number has a meaning on this machine only.
//!
//! Errors carry the reasons of the standard, which SPIRE leaves out. Another difference: SPIRE hands out tokens of
//! entries for administrators and downstream servers although it holds back their X.509-SVIDs, and takes no notice of the
//! SPIFFE ID in a request for tokens; here the same entries are meant by both calls, and the ID counts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use bonafide_identity::{SelectorSet, SpiffeId, drop_duplicate_hints};
use bonafide_pki::{tls, verify_svid_chain};
use bonafide_proto::broker::api_server::{Api, ApiServer};
use bonafide_proto::broker::{
    FetchJwtsvidRequest, FetchJwtsvidResponse, Jwtsvid, SubscribeToJwtBundlesRequest,
    SubscribeToJwtBundlesResponse, SubscribeToX509BundlesRequest, SubscribeToX509BundlesResponse,
    SubscribeToX509svidRequest, SubscribeToX509svidResponse, WorkloadPidReference, WorkloadReference,
    X509svid,
};
use bonafide_proto::convert::status_with_error_info;
use bonafide_runtime::clock::SharedClock;
use bonafide_runtime::listener::Peer;
use bonafide_runtime::shutdown::Shutdown;
use prost::{Message as _, Name as _};
use prost_types::Any;
use tonic::service::RoutesBuilder;
use tonic::service::interceptor::InterceptedService;
use tonic::{Code, Request, Response, Status};

use super::stream::{Channel, Feed, Gate, Messages, Next, Watched, open};
use super::{
    ATTESTATION_FAILED, NamedProcessError, audiences, code, named_process, ready_svids, reflection,
    require_security_header, sign_all,
};
use crate::caller::PinnedCaller;
use crate::metrics;
use crate::svid_cache::tokens::JwtSvids;
use crate::svid_cache::{Bundles, Interest, Kind, SvidCache, View, X509, X509Svid};
use crate::workload_attestor::WorkloadAttestors;

/// By which kinds of references a broker may name workloads: type URLs, or `*` for all that the agent understands; with
/// whether they may be used over TCP.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct References(pub BTreeMap<String, bool>);

impl References {
    /// Whether the type may be used at all, and then whether over TCP. What is said of a type by its name counts more than what
    /// is said of all.
    fn over_tcp(&self, type_url: &str) -> Option<bool> {
        self.0.get(type_url).or_else(|| self.0.get("*")).copied()
    }
}

/// How a call came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// On the Unix socket.
    Unix,
    /// Over TCP.
    Tcp,
}

/// What the API is made of. Clones share it.
#[derive(Clone)]
pub struct BrokerApi {
    /// Where SVIDs and bundles are.
    pub cache: Arc<SvidCache>,
    /// Where JWT-SVIDs come from.
    pub tokens: Arc<JwtSvids>,
    /// Who says what processes are.
    pub attestors: WorkloadAttestors,
    /// The time.
    pub clock: SharedClock,
    /// Ends streams.
    pub shutdown: Shutdown,
    /// Who may ask, and how.
    pub brokers: Arc<BTreeMap<SpiffeId, References>>,
    /// By what brokers are recognised.
    pub trust: tls::TrustStore,
}

impl BrokerApi {
    /// Adds the service and reflection to what is served on one of the sockets.
    ///
    /// # Errors
    /// The descriptors are broken, which a test rules out.
    pub fn serve(
        self,
        transport: Transport,
        routes: &mut RoutesBuilder,
    ) -> Result<(), tonic_reflection::server::Error> {
        let guard = |request: Request<()>| require_security_header(request, "broker.spiffe.io");
        let service = ApiServer::new(Service { api: self, transport, refusal_logged: AtomicI64::new(0) })
            .max_decoding_message_size(MAX_REQUEST);
        routes.add_service(InterceptedService::new(service, guard));
        reflection::add(routes, reflection::BROKER, move |request: Request<()>| match transport {
            Transport::Unix => guard(request),
            Transport::Tcp => {
                Err(Status::permission_denied("server reflection is only available over Unix sockets"))
            }
        })
    }
}

/// Who called. Asked again and again whether it still is.
struct Broker {
    id: SpiffeId,
    peer: Arc<Peer>,
    trust: tls::TrustStore,
    clock: SharedClock,
}

impl Broker {
    fn of(extensions: &http::Extensions, api: &BrokerApi) -> Result<Self, Status> {
        let peer = extensions.get::<Arc<Peer>>().ok_or_else(|| Status::internal("the caller is unknown"))?;
        let Peer::Tls(tls) = &**peer else { return Err(Status::unauthenticated(NO_BROKER)) };
        let id = tls.spiffe_id.clone().filter(|id| api.brokers.contains_key(id));
        let broker = Self {
            id: id.ok_or_else(|| Status::unauthenticated(NO_BROKER))?,
            peer: Arc::clone(peer),
            trust: api.trust.clone(),
            clock: Arc::clone(&api.clock),
        };
        broker.verify()?;
        Ok(broker)
    }

    fn verify(&self) -> Result<(), Status> {
        let Peer::Tls(tls) = &*self.peer else { return Err(Status::unauthenticated(NO_BROKER)) };
        let roots = |trust_domain: &bonafide_identity::TrustDomain| self.trust.roots(trust_domain);
        match verify_svid_chain(&tls.certificates, &roots, self.clock.now()) {
            Ok(id) if id == self.id => Ok(()),
            Ok(_) => Err(Status::unauthenticated(NO_BROKER)),
            Err(error) => Err(Status::unauthenticated(format!(
                "the certificate of this connection is no longer valid ({error}); connect anew"
            ))),
        }
    }
}

impl Gate for Broker {
    async fn changed(&mut self) {
        std::future::pending::<()>().await;
    }

    fn check(&mut self) -> Result<(), Status> {
        self.verify()
    }
}

/// The API on one of its sockets.
struct Service {
    api: BrokerApi,
    transport: Transport,
    /// When a refused broker was last written about, in Unix seconds.
    refusal_logged: AtomicI64,
}

impl Service {
    /// Not each time: one that goes on trying would fill the log.
    fn log_refusal(&self, extensions: &http::Extensions, status: &Status) {
        let now = self.api.clock.now().unix_seconds();
        let last = self.refusal_logged.load(Ordering::Relaxed);
        if now.abs_diff(last) < REFUSALS_APART {
            return;
        }
        self.refusal_logged.store(now, Ordering::Relaxed);
        let id = match extensions.get::<Arc<Peer>>().map(|peer| &**peer) {
            Some(Peer::Tls(tls)) => tls.spiffe_id.as_ref().map(ToString::to_string),
            _ => None,
        };
        tracing::warn!(broker = id, reason = status.message(), "a broker was refused");
    }

    /// Who asks about which process.
    async fn asked(
        &self,
        extensions: &http::Extensions,
        reference: Option<WorkloadReference>,
    ) -> Result<(Broker, PinnedCaller, SelectorSet), Status> {
        let broker =
            Broker::of(extensions, &self.api).inspect_err(|status| self.log_refusal(extensions, status))?;
        let references =
            self.api.brokers.get(&broker.id).ok_or_else(|| Status::unauthenticated(NO_BROKER))?;
        let reference = reference.and_then(|reference| reference.reference).unwrap_or_default();
        let pid = process_id(&broker.id, references, self.transport, &reference)
            .inspect_err(|status| tracing::warn!(broker = %broker.id, reason = status.message(), "a reference to a workload was refused"))?;
        match named_process(pid, &self.api.attestors, &self.api.cache).await {
            Ok((process, selectors)) => Ok((broker, process, selectors)),
            Err(NamedProcessError::Gone) => Err(not_found()),
            Err(NamedProcessError::NotAttested) => Err(Status::unavailable(ATTESTATION_FAILED)),
        }
    }

    async fn stream<F: Feed>(
        &self,
        extensions: &http::Extensions,
        reference: Option<WorkloadReference>,
        feed: F,
    ) -> Opened<F::Message> {
        let asked = self.asked(extensions, reference).await;
        let (broker, process, selectors) =
            asked.inspect_err(|status| metrics::workload_called(F::METHOD, status.code()))?;
        tracing::info!(broker = %broker.id, ?process, method = F::METHOD, "a broker asks for a workload");
        let channel = Channel {
            subscription: self.api.cache.subscribe(selectors, F::INTEREST),
            watched: vec![Watched { process, gone: not_found }],
            gate: broker,
            clock: Arc::clone(&self.api.clock),
            shutdown: self.api.shutdown.clone(),
        };
        Ok(open(feed, channel))
    }

    async fn jwt_svids(&self, request: Request<FetchJwtsvidRequest>) -> Result<FetchJwtsvidResponse, Status> {
        let (_, extensions, request) = request.into_parts();
        let audiences = audiences(request.audience)?;
        let wanted = super::workload::requested_id(&request.spiffe_id)?;
        let (broker, process, selectors) = self.asked(&extensions, request.reference).await?;
        let mut entries = drop_duplicate_hints(self.api.cache.delegable(&selectors));
        entries.retain(|entry| wanted.as_ref().is_none_or(|id| entry.spiffe_id == *id));
        if entries.is_empty() {
            return Err(refused(Code::PermissionDenied, "no identity issued", "WORKLOAD_NOT_ENTITLED"));
        }
        tracing::info!(broker = %broker.id, ?process, "a broker asks for tokens of a workload");
        let signed = sign_all(&self.api.tokens, entries, audiences).await?;
        // Signing may have taken its time.
        process.recheck().map_err(|_| not_found())?;
        broker.verify()?;
        let svids = signed.into_iter().map(|(entry, token)| Jwtsvid {
            spiffe_id: entry.spiffe_id.to_string(),
            svid: token.token.clone(),
            hint: entry.hint.to_string(),
        });
        Ok(FetchJwtsvidResponse { svids: svids.collect() })
    }
}

/// The process that a reference means, if the broker may use that kind of reference.
fn process_id(
    broker: &SpiffeId,
    allowed: &References,
    transport: Transport,
    reference: &Any,
) -> Result<i32, Status> {
    let invalid = |text: &str| refused(Code::InvalidArgument, text, "WORKLOAD_REFERENCE_INVALID");
    let type_url = reference.type_url.as_str();
    if type_url.is_empty() {
        return Err(invalid("workload reference must be provided"));
    }
    match (allowed.over_tcp(type_url), transport) {
        (None, _) => {
            let text = format!("broker \"{broker}\" is not allowed to use reference type \"{type_url}\"");
            return Err(Status::permission_denied(text));
        }
        (Some(false), Transport::Tcp) => {
            let text =
                format!("reference type \"{type_url}\" is not allowed over TCP for broker \"{broker}\"");
            return Err(Status::permission_denied(text));
        }
        (Some(_), _) => {}
    }
    if type_url != WorkloadPidReference::type_url() {
        return Err(Status::unimplemented(format!(
            "no workload attestor supports reference type \"{type_url}\""
        )));
    }
    match WorkloadPidReference::decode(reference.value.as_slice()) {
        Ok(WorkloadPidReference { pid }) if pid > 0 => Ok(pid),
        Ok(_) => Err(invalid("the process ID of a reference must be positive")),
        Err(_) => Err(invalid("the reference cannot be read")),
    }
}

fn not_found() -> Status {
    refused(Code::NotFound, "there is no such workload on this node", "WORKLOAD_NOT_FOUND")
}

/// An error with a reason of the standard.
fn refused(code: Code, text: &str, reason: &'static str) -> Status {
    status_with_error_info(code, text, reason, "spiffe.io")
}

const NO_BROKER: &str = "the caller is not a broker of this agent";
/// In seconds.
const REFUSALS_APART: u64 = 10;
/// References and audiences, of whose number nobody needs many.
const MAX_REQUEST: usize = 128 * 1024;

type Opened<M> = Result<Response<Messages<M>>, Status>;

#[tonic::async_trait]
impl Api for Service {
    type SubscribeToX509SVIDStream = Messages<SubscribeToX509svidResponse>;

    async fn subscribe_to_x509svid(
        &self,
        request: Request<SubscribeToX509svidRequest>,
    ) -> Opened<SubscribeToX509svidResponse> {
        let (_, extensions, request) = request.into_parts();
        self.stream(&extensions, request.reference, X509SvidFeed).await
    }

    type SubscribeToX509BundlesStream = Messages<SubscribeToX509BundlesResponse>;

    async fn subscribe_to_x509_bundles(
        &self,
        request: Request<SubscribeToX509BundlesRequest>,
    ) -> Opened<SubscribeToX509BundlesResponse> {
        let (_, extensions, request) = request.into_parts();
        self.stream(&extensions, request.reference, X509BundleFeed).await
    }

    async fn fetch_jwtsvid(
        &self,
        request: Request<FetchJwtsvidRequest>,
    ) -> Result<Response<FetchJwtsvidResponse>, Status> {
        let result = self.jwt_svids(request).await;
        metrics::workload_called("broker.FetchJWTSVID", code(&result));
        result.map(Response::new)
    }

    type SubscribeToJWTBundlesStream = Messages<SubscribeToJwtBundlesResponse>;

    async fn subscribe_to_jwt_bundles(
        &self,
        request: Request<SubscribeToJwtBundlesRequest>,
    ) -> Opened<SubscribeToJwtBundlesResponse> {
        let (_, extensions, request) = request.into_parts();
        self.stream(&extensions, request.reference, JwtBundleFeed).await
    }
}

struct X509SvidFeed;

impl Feed for X509SvidFeed {
    type Kind = X509;
    type Message = SubscribeToX509svidResponse;
    /// As in the Workload API: a message at each change, whether or not it shows.
    type Mark = ();
    const METHOD: &'static str = "broker.SubscribeToX509SVID";
    const INTEREST: Interest = Interest::X509;

    fn mark(&self, _: &SubscribeToX509svidResponse) -> Option<()> {
        None
    }

    /// Without any identity the message is empty: the workload may get one later.
    fn next(&self, view: View<X509Svid>) -> Next<SubscribeToX509svidResponse> {
        let View { mut entries, bundles, .. } = view.delegable();
        let kept: BTreeSet<_> =
            drop_duplicate_hints(entries.iter().map(|(entry, _)| Arc::clone(entry)).collect())
                .into_iter()
                .map(|entry| entry.id.clone())
                .collect();
        entries.retain(|(entry, _)| kept.contains(&entry.id));
        let Some(ready) = ready_svids(entries.into_iter()) else { return Next::Wait };
        let federated: BTreeSet<_> =
            ready.iter().flat_map(|(entry, _)| entry.federates_with.iter().cloned()).collect();
        let names = bundles.for_workload(&federated).skip(1);
        let svids = ready.into_iter().map(|(entry, svid)| X509svid {
            spiffe_id: entry.spiffe_id.to_string(),
            x509_svid: svid.chain.clone(),
            x509_svid_key: svid.key.clone(),
            bundle: bundles.own.x509.clone(),
            hint: entry.hint.to_string(),
        });
        Next::Send(SubscribeToX509svidResponse {
            svids: svids.collect(),
            crl: Vec::new(),
            federated_bundles: names.map(|(name, bundle)| (name, bundle.x509.clone())).collect(),
        })
    }
}

struct X509BundleFeed;
struct JwtBundleFeed;

fn named<V>(bundles: &Bundles, form: impl Fn(&crate::svid_cache::CachedBundle) -> V) -> BTreeMap<String, V> {
    bundles.all().map(|bundle| (bundle.bundle.trust_domain.id_string(), form(bundle))).collect()
}

impl Feed for X509BundleFeed {
    /// No SVIDs are looked at.
    type Kind = X509;
    type Message = SubscribeToX509BundlesResponse;
    type Mark = SubscribeToX509BundlesResponse;
    const METHOD: &'static str = "broker.SubscribeToX509Bundles";
    const INTEREST: Interest = Interest::AllBundles;

    fn mark(&self, message: &Self::Message) -> Option<Self::Mark> {
        Some(message.clone())
    }

    fn next(&self, view: View<<X509 as Kind>::Svid>) -> Next<Self::Message> {
        let bundles = named(&view.bundles, |bundle| bundle.x509.clone());
        Next::Send(SubscribeToX509BundlesResponse { crl: Vec::new(), bundles })
    }
}

impl Feed for JwtBundleFeed {
    /// No SVIDs are looked at.
    type Kind = X509;
    type Message = SubscribeToJwtBundlesResponse;
    type Mark = SubscribeToJwtBundlesResponse;
    const METHOD: &'static str = "broker.SubscribeToJWTBundles";
    const INTEREST: Interest = Interest::AllBundles;

    fn mark(&self, message: &Self::Message) -> Option<Self::Mark> {
        Some(message.clone())
    }

    fn next(&self, view: View<<X509 as Kind>::Svid>) -> Next<Self::Message> {
        Next::Send(SubscribeToJwtBundlesResponse {
            bundles: named(&view.bundles, |bundle| bundle.jwt.clone()),
        })
    }
}

#[cfg(test)]
mod tests {
    use bonafide_proto::broker::KubernetesObjectReference;
    use bonafide_proto::convert::error_info;
    use bonafide_testkit::id;

    use super::*;

    fn reference(type_url: &str, value: Vec<u8>) -> Any {
        Any { type_url: type_url.to_owned(), value }
    }

    fn pid(pid: i32) -> Any {
        reference(&WorkloadPidReference::type_url(), WorkloadPidReference { pid }.encode_to_vec())
    }

    fn allowed(types: &[(&str, bool)]) -> References {
        References(types.iter().map(|(name, tcp)| ((*name).to_owned(), *tcp)).collect())
    }

    #[test]
    fn references_are_allowed_by_type_and_by_transport() {
        let name = WorkloadPidReference::type_url();
        let ask = |types: &[(&str, bool)], transport, reference: &Any| {
            process_id(&id("/broker"), &allowed(types), transport, reference).map_err(|status| status.code())
        };
        for (types, unix, tcp) in [
            (&[][..], Err(Code::PermissionDenied), Err(Code::PermissionDenied)),
            (&[("x/y", true)], Err(Code::PermissionDenied), Err(Code::PermissionDenied)),
            (&[(&*name, false)], Ok(7), Err(Code::PermissionDenied)),
            (&[(&*name, true)], Ok(7), Ok(7)),
            (&[("*", false)], Ok(7), Err(Code::PermissionDenied)),
            (&[("*", true)], Ok(7), Ok(7)),
            // What is said by name counts more.
            (&[("*", true), (&*name, false)], Ok(7), Err(Code::PermissionDenied)),
        ] {
            assert_eq!(ask(types, Transport::Unix, &pid(7)), unix, "{types:?}");
            assert_eq!(ask(types, Transport::Tcp, &pid(7)), tcp, "{types:?}");
        }
    }

    #[test]
    fn references_that_mean_nothing_say_why() {
        let ask = |reference: &Any| {
            let all = allowed(&[("*", true)]);
            let status = process_id(&id("/broker"), &all, Transport::Unix, reference).unwrap_err();
            (status.code(), error_info(&status).map(|(reason, domain)| format!("{domain} {reason}")))
        };
        let invalid = (Code::InvalidArgument, Some("spiffe.io WORKLOAD_REFERENCE_INVALID".to_owned()));
        for broken in
            [Any::default(), pid(0), pid(-1), reference(&WorkloadPidReference::type_url(), vec![0xff])]
        {
            assert_eq!(ask(&broken), invalid, "{broken:?}");
        }
        let object = KubernetesObjectReference::default().encode_to_vec();
        for other in [KubernetesObjectReference::type_url(), "type.googleapis.com/x.Y".into(), "x".into()] {
            assert_eq!(ask(&reference(&other, object.clone())), (Code::Unimplemented, None));
        }
    }
}
