//! The SPIFFE Workload API.
//!
//! Each call is attested on its own; a stream is attested once, when it opens, and ends when its caller does. Codes matter
//! here: clients give up for good on InvalidArgument and come back on everything else, so that code is for requests
//! that are wrong in themselves.
//!
//! The WIT-SVID profile is served as the standard has it as long as the server publishes WIT authorities, and answers
//! Unimplemented otherwise, which the standard asks for.

use std::collections::BTreeSet;
use std::sync::Arc;

use bonafide_identity::{Entry, SelectorSet, SpiffeId, TrustDomain, drop_duplicate_hints};
use bonafide_pki::validate_jwt_svid;
use bonafide_proto::convert::SignedToken;
use bonafide_proto::workload::spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer};
use bonafide_proto::workload::{
    JwtBundlesRequest, JwtBundlesResponse, Jwtsvid, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest,
    ValidateJwtsvidResponse, WitBundlesRequest, WitBundlesResponse, Witsvid, WitsvidRequest, WitsvidResponse,
    X509BundlesRequest, X509BundlesResponse, X509svid, X509svidRequest, X509svidResponse,
};
use bonafide_runtime::clock::SharedClock;
use bonafide_runtime::shutdown::Shutdown;
use bonafide_runtime::tasks::chain;
use tonic::service::RoutesBuilder;
use tonic::service::interceptor::InterceptedService;
use tonic::{Request, Response, Status};

use super::limit::Limits;
use super::stream::{Channel, Feed, Messages, Next, Open, Watched, open};
use super::unidentified::Unidentified;
use super::{
    ATTESTATION_FAILED, Ready, audiences, code, no_identity, pin, ready_svids, require_security_header,
    sign_all,
};
use crate::caller::PinnedCaller;
use crate::metrics;
use crate::svid_cache::tokens::JwtSvids;
use crate::svid_cache::{
    Availability, Bundles, CachedBundle, Interest, SvidCache, View, Wit, WorkloadKeys, X509,
};
use crate::workload_attestor::{Attested, WorkloadAttestors};

/// What the Workload API is made of. Clones share it.
#[derive(Clone)]
pub struct WorkloadApi {
    /// Where SVIDs and bundles are.
    pub cache: Arc<SvidCache>,
    /// Where JWT-SVIDs come from.
    pub tokens: Arc<JwtSvids>,
    /// Who says what callers are.
    pub attestors: WorkloadAttestors,
    /// The time.
    pub clock: SharedClock,
    /// Ends streams.
    pub shutdown: Shutdown,
    /// Whether bundles are given to callers without identity.
    pub allow_unauthenticated_verifiers: bool,
    /// Further claims of foreign tokens to hand out.
    pub allowed_foreign_jwt_claims: Arc<BTreeSet<String>>,
    /// How often callers may call.
    pub limits: Arc<Limits>,
    /// What is said of callers without identity.
    pub unidentified: Arc<Unidentified>,
}

impl WorkloadApi {
    /// Adds the service, which refuses calls without the security header before anything else is looked at.
    pub fn serve(self, routes: &mut RoutesBuilder) {
        let service = SpiffeWorkloadApiServer::new(self).max_decoding_message_size(MAX_REQUEST);
        routes.add_service(InterceptedService::new(service, |request: Request<()>| {
            require_security_header(request, "workload.spiffe.io")
        }));
    }

    async fn attest(&self, extensions: &http::Extensions) -> Result<(PinnedCaller, Attested), Status> {
        let caller = pin(extensions)?;
        let attested = self.attestors.attest(&caller).await;
        Ok((caller, attested.map_err(|_| Status::unavailable(ATTESTATION_FAILED))?))
    }

    /// As [`attest`](Self::attest), for a method whose calls may be limited.
    async fn admit(
        &self,
        extensions: &http::Extensions,
        method: &'static str,
    ) -> Result<(PinnedCaller, SelectorSet), Status> {
        let (caller, Attested { selectors, complete }) = self.attest(extensions).await?;
        // What is missing may be what would match. Bundles alone may be for everybody.
        if !complete && !method.ends_with("Bundles") && self.cache.matching(&selectors).is_empty() {
            return Err(Status::unavailable(ATTESTATION_FAILED));
        }
        if u32::try_from(caller.pid()) != Ok(std::process::id())
            && !self.limits.admits(method, &selectors, self.clock.now())
        {
            tracing::warn!(?caller, method, "a caller calls too often");
            return Err(Status::unavailable(format!("rate limit exceeded for /SpiffeWorkloadAPI/{method}")));
        }
        Ok((caller, selectors))
    }

    /// The agent's own calls are those of its health check.
    fn note_unidentified(&self, caller: &PinnedCaller, method: &'static str, selectors: &SelectorSet) {
        if u32::try_from(caller.pid()) != Ok(std::process::id()) {
            self.unidentified.note(caller, method, selectors, self.clock.now());
        }
    }

    async fn stream<F: Feed>(&self, extensions: &http::Extensions, feed: F) -> Opened<F::Message> {
        let attested = self.admit(extensions, F::METHOD).await;
        let (caller, selectors) =
            attested.inspect_err(|status| metrics::workload_called(F::METHOD, status.code()))?;
        let needs_none = self.allow_unauthenticated_verifiers && F::METHOD.ends_with("Bundles");
        if !needs_none && self.cache.matching(&selectors).is_empty() {
            self.note_unidentified(&caller, F::METHOD, &selectors);
        }
        let channel = Channel {
            subscription: self.cache.subscribe(selectors, F::INTEREST),
            watched: vec![Watched::caller(caller)],
            gate: Open,
            clock: Arc::clone(&self.clock),
            shutdown: self.shutdown.clone(),
        };
        Ok(open(feed, channel))
    }

    fn bundle_feed<M, B: BundleForm<M>>(&self, form: B) -> BundleFeed<B> {
        BundleFeed {
            form,
            unauthenticated: self.allow_unauthenticated_verifiers,
            cache: Arc::clone(&self.cache),
        }
    }

    async fn jwt_svids(&self, request: Request<JwtsvidRequest>) -> Result<JwtsvidResponse, Status> {
        let (_, extensions, request) = request.into_parts();
        let audiences = audiences(request.audience)?;
        let wanted = requested_id(&request.spiffe_id)?;
        let (caller, selectors) = self.admit(&extensions, "FetchJWTSVID").await?;
        let mut entries = drop_duplicate_hints(self.cache.matching(&selectors));
        entries.retain(|entry| wanted.as_ref().is_none_or(|id| entry.spiffe_id == *id));
        if entries.is_empty() {
            self.note_unidentified(&caller, "FetchJWTSVID", &selectors);
            return Err(no_identity());
        }
        let signed = sign_all(&self.tokens, entries, audiences).await?;
        // Signing may have taken its time.
        if let Err(error) = caller.recheck() {
            tracing::warn!(
                ?caller,
                error = chain(&error),
                "the caller did not last until its tokens were signed"
            );
            return Err(Status::unavailable(ATTESTATION_FAILED));
        }
        let svid = |(entry, token): (Arc<Entry>, Arc<SignedToken>)| Jwtsvid {
            spiffe_id: entry.spiffe_id.to_string(),
            svid: token.token.clone(),
            hint: entry.hint.to_string(),
        };
        Ok(JwtsvidResponse { svids: signed.into_iter().map(svid).collect() })
    }

    async fn validate(
        &self,
        request: Request<ValidateJwtsvidRequest>,
    ) -> Result<ValidateJwtsvidResponse, Status> {
        let (_, extensions, request) = request.into_parts();
        if request.audience.is_empty() {
            return Err(Status::invalid_argument("audience must be specified"));
        }
        if request.svid.is_empty() {
            return Err(Status::invalid_argument("svid must be specified"));
        }
        let (_, Attested { selectors, .. }) = self.attest(&extensions).await?;
        let federated: BTreeSet<TrustDomain> = self
            .cache
            .matching(&selectors)
            .iter()
            .flat_map(|entry| entry.federates_with.iter().cloned())
            .collect();
        let bundles =
            self.cache.bundles().ok_or_else(|| Status::unavailable("the agent holds no bundle yet"))?;
        let keys = WorkloadKeys { bundles: &bundles, federated: &federated };
        let valid = validate_jwt_svid(&request.svid, &keys, Some(&request.audience), self.clock.now())
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let mut claims = valid.claims;
        if *valid.spiffe_id.trust_domain() != bundles.own.bundle.trust_domain {
            claims.retain(|name, _| {
                matches!(name.as_str(), "sub" | "exp" | "aud")
                    || self.allowed_foreign_jwt_claims.contains(name)
            });
        }
        Ok(ValidateJwtsvidResponse {
            spiffe_id: valid.spiffe_id.to_string(),
            claims: Some(prost_types::Struct {
                fields: claims.into_iter().map(|(name, value)| (name, wire_value(value))).collect(),
            }),
        })
    }
}

type Opened<M> = Result<Response<Messages<M>>, Status>;

#[tonic::async_trait]
impl SpiffeWorkloadApi for WorkloadApi {
    type FetchX509SVIDStream = Messages<X509svidResponse>;

    async fn fetch_x509svid(&self, request: Request<X509svidRequest>) -> Opened<X509svidResponse> {
        self.stream(request.extensions(), X509SvidFeed).await
    }

    type FetchX509BundlesStream = Messages<X509BundlesResponse>;

    async fn fetch_x509_bundles(&self, request: Request<X509BundlesRequest>) -> Opened<X509BundlesResponse> {
        self.stream(request.extensions(), self.bundle_feed(X509Form)).await
    }

    async fn fetch_jwtsvid(
        &self,
        request: Request<JwtsvidRequest>,
    ) -> Result<Response<JwtsvidResponse>, Status> {
        let result = self.jwt_svids(request).await;
        metrics::workload_called("FetchJWTSVID", code(&result));
        result.map(Response::new)
    }

    type FetchJWTBundlesStream = Messages<JwtBundlesResponse>;

    async fn fetch_jwt_bundles(&self, request: Request<JwtBundlesRequest>) -> Opened<JwtBundlesResponse> {
        self.stream(request.extensions(), self.bundle_feed(JwtForm)).await
    }

    async fn validate_jwtsvid(
        &self,
        request: Request<ValidateJwtsvidRequest>,
    ) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        let result = self.validate(request).await;
        metrics::workload_called("ValidateJWTSVID", code(&result));
        result.map(Response::new)
    }

    type FetchWITSVIDStream = Messages<WitsvidResponse>;

    async fn fetch_witsvid(&self, request: Request<WitsvidRequest>) -> Opened<WitsvidResponse> {
        let wanted = requested_id(&request.get_ref().spiffe_id)?;
        let feed = WitSvidFeed { wanted, cache: Arc::clone(&self.cache) };
        self.stream(request.extensions(), feed).await
    }

    type FetchWITBundlesStream = Messages<WitBundlesResponse>;

    async fn fetch_wit_bundles(&self, request: Request<WitBundlesRequest>) -> Opened<WitBundlesResponse> {
        self.stream(request.extensions(), self.bundle_feed(WitForm)).await
    }
}

struct X509SvidFeed;

impl Feed for X509SvidFeed {
    type Kind = X509;
    type Message = X509svidResponse;
    /// The contract asks for a message at each change, whether or not it shows.
    type Mark = ();
    const METHOD: &'static str = "FetchX509SVID";
    const INTEREST: Interest = Interest::X509;

    fn mark(&self, _: &X509svidResponse) -> Option<()> {
        None
    }

    fn next(&self, view: View<<X509 as crate::svid_cache::Kind>::Svid>) -> Next<X509svidResponse> {
        let View { entries, bundles, .. } = view;
        let ready = match ready(entries) {
            Ok(ready) => ready,
            Err(next) => return next,
        };
        let mut message = X509svidResponse::default();
        let mut federated = BTreeSet::new();
        for (entry, svid) in ready {
            message.svids.push(X509svid {
                spiffe_id: entry.spiffe_id.to_string(),
                x509_svid: svid.chain.clone(),
                x509_svid_key: svid.key.clone(),
                bundle: bundles.own.x509.clone(),
                hint: entry.hint.to_string(),
            });
            federated.extend(entry.federates_with.iter().cloned());
        }
        let names = bundles.for_workload(&federated).skip(1);
        message.federated_bundles = names.map(|(name, bundle)| (name, bundle.x509.clone())).collect();
        Next::Send(message)
    }
}

struct WitSvidFeed {
    wanted: Option<SpiffeId>,
    cache: Arc<SvidCache>,
}

impl Feed for WitSvidFeed {
    type Kind = Wit;
    type Message = WitsvidResponse;
    /// The tokens; the keys need not be kept for that.
    type Mark = Vec<(String, String)>;
    const METHOD: &'static str = "FetchWITSVID";
    const INTEREST: Interest = Interest::Wit;

    fn mark(&self, message: &WitsvidResponse) -> Option<Self::Mark> {
        Some(message.svids.iter().map(|svid| (svid.wit_svid.clone(), svid.hint.clone())).collect())
    }

    fn next(&self, view: View<<Wit as crate::svid_cache::Kind>::Svid>) -> Next<WitsvidResponse> {
        if !self.cache.supports_wit() {
            return Next::End(Status::unimplemented("fetching WIT-SVIDs is not implemented"));
        }
        let mut entries = view.entries;
        entries.retain(|(entry, _)| self.wanted.as_ref().is_none_or(|id| entry.spiffe_id == *id));
        let ready = match ready(entries) {
            Ok(ready) => ready,
            Err(next) => return next,
        };
        let svids = ready.into_iter().map(|(entry, svid)| Witsvid {
            spiffe_id: entry.spiffe_id.to_string(),
            wit_svid: svid.token.clone(),
            wit_svid_key: svid.key.to_string(),
            hint: entry.hint.to_string(),
        });
        Next::Send(WitsvidResponse { svids: svids.collect() })
    }
}

/// The SVIDs to send: one for each entry that is left after the rule about hints. While one is being signed nothing is sent,
/// for a client takes the first message as all it will get at start.
fn ready<S, M>(entries: Vec<(Arc<Entry>, Availability<S>)>) -> Result<Ready<S>, Next<M>> {
    if entries.is_empty() {
        return Err(Next::End(no_identity()));
    }
    let kept: BTreeSet<_> =
        drop_duplicate_hints(entries.iter().map(|(entry, _)| Arc::clone(entry)).collect())
            .into_iter()
            .map(|entry| entry.id.clone())
            .collect();
    ready_svids(entries.into_iter().filter(|(entry, _)| kept.contains(&entry.id))).ok_or(Next::Wait)
}

/// One of the forms in which bundles are served.
trait BundleForm<M>: Send + Sync + 'static {
    const METHOD: &'static str;

    fn check(&self, _: &SvidCache) -> Result<(), Status> {
        Ok(())
    }

    fn message<'a>(&self, bundles: impl Iterator<Item = (String, &'a Arc<CachedBundle>)>) -> M;
}

struct X509Form;
struct JwtForm;
struct WitForm;

impl BundleForm<X509BundlesResponse> for X509Form {
    const METHOD: &'static str = "FetchX509Bundles";

    fn message<'a>(
        &self,
        bundles: impl Iterator<Item = (String, &'a Arc<CachedBundle>)>,
    ) -> X509BundlesResponse {
        let bundles = bundles.map(|(name, bundle)| (name, bundle.x509.clone())).collect();
        X509BundlesResponse { bundles, crl: Vec::new() }
    }
}

impl BundleForm<JwtBundlesResponse> for JwtForm {
    const METHOD: &'static str = "FetchJWTBundles";

    fn message<'a>(
        &self,
        bundles: impl Iterator<Item = (String, &'a Arc<CachedBundle>)>,
    ) -> JwtBundlesResponse {
        JwtBundlesResponse { bundles: bundles.map(|(name, bundle)| (name, bundle.jwt.clone())).collect() }
    }
}

impl BundleForm<WitBundlesResponse> for WitForm {
    const METHOD: &'static str = "FetchWITBundles";

    fn check(&self, cache: &SvidCache) -> Result<(), Status> {
        if cache.supports_wit() {
            return Ok(());
        }
        Err(Status::unimplemented("fetching WIT bundles is not implemented"))
    }

    fn message<'a>(
        &self,
        bundles: impl Iterator<Item = (String, &'a Arc<CachedBundle>)>,
    ) -> WitBundlesResponse {
        WitBundlesResponse { bundles: bundles.map(|(name, bundle)| (name, bundle.wit.clone())).collect() }
    }
}

struct BundleFeed<B> {
    form: B,
    unauthenticated: bool,
    cache: Arc<SvidCache>,
}

macro_rules! bundle_feed {
    ($form:ty, $message:ty) => {
        impl Feed for BundleFeed<$form> {
            /// No SVIDs are looked at.
            type Kind = X509;
            type Message = $message;
            type Mark = $message;
            const METHOD: &'static str = <$form as BundleForm<$message>>::METHOD;
            const INTEREST: Interest = Interest::Bundles;

            fn mark(&self, message: &$message) -> Option<$message> {
                Some(message.clone())
            }

            fn next(&self, view: View<<X509 as crate::svid_cache::Kind>::Svid>) -> Next<$message> {
                bundles_for(&self.form, self.unauthenticated, &self.cache, &view.entries, &view.bundles)
            }
        }
    };
}

bundle_feed!(X509Form, X509BundlesResponse);
bundle_feed!(JwtForm, JwtBundlesResponse);
bundle_feed!(WitForm, WitBundlesResponse);

fn bundles_for<M, S>(
    form: &impl BundleForm<M>,
    unauthenticated: bool,
    cache: &SvidCache,
    entries: &[(Arc<Entry>, S)],
    bundles: &Bundles,
) -> Next<M> {
    if let Err(status) = form.check(cache) {
        return Next::End(status);
    }
    if entries.is_empty() && !unauthenticated {
        return Next::End(no_identity());
    }
    let federated: BTreeSet<TrustDomain> =
        entries.iter().flat_map(|(entry, _)| entry.federates_with.iter().cloned()).collect();
    Next::Send(form.message(bundles.for_workload(&federated)))
}

/// Any process may call, on many streams at once, and what has arrived of a request is held until the rest is there. The
/// largest that makes sense is a token to validate, of up to 64 KiB.
const MAX_REQUEST: usize = 128 * 1024;

pub(super) fn requested_id(text: &str) -> Result<Option<SpiffeId>, Status> {
    if text.is_empty() {
        return Ok(None);
    }
    let id = SpiffeId::parse(text);
    id.map(Some).map_err(|error| Status::invalid_argument(format!("invalid requested SPIFFE ID: {error}")))
}

fn wire_value(value: serde_json::Value) -> prost_types::Value {
    use prost_types::value::Kind;
    let kind = match value {
        serde_json::Value::Null => Kind::NullValue(0),
        serde_json::Value::Bool(value) => Kind::BoolValue(value),
        // A Struct has no other numbers.
        serde_json::Value::Number(value) => Kind::NumberValue(value.as_f64().unwrap_or(f64::NAN)),
        serde_json::Value::String(value) => Kind::StringValue(value),
        serde_json::Value::Array(values) => {
            Kind::ListValue(prost_types::ListValue { values: values.into_iter().map(wire_value).collect() })
        }
        serde_json::Value::Object(members) => Kind::StructValue(prost_types::Struct {
            fields: members.into_iter().map(|(name, value)| (name, wire_value(value))).collect(),
        }),
    };
    prost_types::Value { kind: Some(kind) }
}
