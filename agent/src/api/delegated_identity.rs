//! SPIRE's Delegated Identity API: a process that the configuration trusts asks for the identities of others.
//!
//! The caller is attested like a workload, and one of the SPIFFE IDs that it is entitled to must be among the authorised
//! delegates. That is decided again before each message and whenever the entries of the agent change, so a delegate that
//! loses its entry loses its streams at once and not when a message happens to be due.
//!
//! Selectors that a delegate names are believed. A process that it names by number is pinned and attested like a caller, and
//! ends the stream when it exits: SPIRE goes on sending what the next owner of the number has no right to, and leaves
//! it to the delegate to notice.
//!
//! A SPIFFE ID that an entry of the agent grants to administrators or downstream servers is never handed to a delegate, by
//! whichever entry.

use std::collections::BTreeSet;
use std::sync::Arc;

use bonafide_identity::{Entry, SelectorSet, SpiffeId, TrustDomain};
use bonafide_proto::convert::{SignedToken, jwt_svid_to_wire, selectors_from_wire, spiffe_id_to_wire};
use bonafide_proto::spire::agent::delegatedidentity::v1::delegated_identity_server::{
    DelegatedIdentity, DelegatedIdentityServer,
};
use bonafide_proto::spire::agent::delegatedidentity::v1::{
    FetchJwtsviDsRequest, FetchJwtsviDsResponse, SubscribeToJwtBundlesRequest, SubscribeToJwtBundlesResponse,
    SubscribeToX509BundlesRequest, SubscribeToX509BundlesResponse, SubscribeToX509sviDsRequest,
    SubscribeToX509sviDsResponse, X509svidWithKey,
};
use bonafide_proto::spire::types;
use bonafide_runtime::clock::SharedClock;
use bonafide_runtime::shutdown::Shutdown;
use bytes::Bytes;
use tonic::service::RoutesBuilder;
use tonic::{Request, Response, Status};

use super::stream::{Channel, Feed, Gate, Messages, Next, Open, Watched, open};
use super::{
    ATTESTATION_FAILED, NamedProcessError, audiences, code, named_process, no_identity, pin, ready_svids,
    sign_all,
};
use crate::caller::PinnedCaller;
use crate::metrics;
use crate::svid_cache::tokens::JwtSvids;
use crate::svid_cache::{Bundles, Interest, Kind, Subscription, SvidCache, View, X509, X509Svid};
use crate::workload_attestor::WorkloadAttestors;

/// What the API is made of. Clones share it.
#[derive(Clone)]
pub struct DelegatedIdentityApi {
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
    /// Who may ask.
    pub delegates: Arc<BTreeSet<SpiffeId>>,
}

impl DelegatedIdentityApi {
    /// Adds the service.
    pub fn serve(self, routes: &mut RoutesBuilder) {
        routes.add_service(DelegatedIdentityServer::new(self).max_decoding_message_size(MAX_REQUEST));
    }

    /// The caller with its selectors, if it is a delegate.
    async fn delegate(&self, extensions: &http::Extensions) -> Result<(PinnedCaller, SelectorSet), Status> {
        let caller = pin(extensions)?;
        let selectors = self.attestors.attest(&caller).await.map(|attested| attested.selectors);
        let selectors = selectors.map_err(|_| Status::unavailable(ATTESTATION_FAILED))?;
        authorize(&self.cache.matching(&selectors), &self.delegates).inspect_err(|status| {
            tracing::warn!(
                ?caller,
                reason = status.message(),
                "a call for the identities of others was refused"
            );
        })?;
        Ok((caller, selectors))
    }

    /// The workload that a request means; with the process when it was named by number.
    async fn subject(
        &self,
        selectors: &[types::Selector],
        pid: i32,
    ) -> Result<(Option<PinnedCaller>, SelectorSet), Status> {
        if selectors.is_empty() == (pid == 0) {
            return Err(Status::invalid_argument(
                "must provide either selectors or non-zero PID, but not both",
            ));
        }
        if pid == 0 {
            let selectors = selectors_from_wire(selectors).map_err(|error| {
                Status::invalid_argument(format!("could not parse provided selectors: {error}"))
            })?;
            return Ok((None, selectors));
        }
        match named_process(pid, &self.attestors, &self.cache).await {
            Ok((process, selectors)) => Ok((Some(process), selectors)),
            Err(NamedProcessError::Gone | NamedProcessError::NotAttested) => {
                Err(Status::unavailable(ATTESTATION_FAILED))
            }
        }
    }

    async fn x509_svids(
        &self,
        request: Request<SubscribeToX509sviDsRequest>,
    ) -> Opened<SubscribeToX509sviDsResponse> {
        let (_, extensions, request) = request.into_parts();
        let (caller, of_caller) = self.delegate(&extensions).await?;
        let (process, selectors) = self.subject(&request.selectors, request.pid).await?;
        let named =
            process.map(|process| Watched { process, gone: || Status::unavailable(ATTESTATION_FAILED) });
        let channel = Channel {
            subscription: self.cache.subscribe(selectors, X509SvidFeed::INTEREST),
            watched: [Watched::caller(caller)].into_iter().chain(named).collect(),
            gate: Delegate {
                subscription: self.cache.subscribe(of_caller, Interest::AllBundles),
                delegates: Arc::clone(&self.delegates),
                clock: Arc::clone(&self.clock),
            },
            clock: Arc::clone(&self.clock),
            shutdown: self.shutdown.clone(),
        };
        Ok(open(X509SvidFeed, channel))
    }

    async fn bundles<F: Feed>(&self, extensions: &http::Extensions, feed: F) -> Opened<F::Message> {
        let delegate = self.delegate(extensions).await;
        let (caller, selectors) =
            delegate.inspect_err(|status| metrics::workload_called(F::METHOD, status.code()))?;
        let channel = Channel {
            subscription: self.cache.subscribe(selectors, F::INTEREST),
            watched: vec![Watched::caller(caller)],
            gate: Open,
            clock: Arc::clone(&self.clock),
            shutdown: self.shutdown.clone(),
        };
        Ok(open(feed, channel))
    }

    async fn jwt_svids(
        &self,
        request: Request<FetchJwtsviDsRequest>,
    ) -> Result<FetchJwtsviDsResponse, Status> {
        let (_, extensions, request) = request.into_parts();
        let audiences = audiences(request.audience)?;
        let (caller, of_caller) = self.delegate(&extensions).await?;
        let (process, selectors) = self.subject(&request.selectors, request.pid).await?;
        let entries = self.cache.delegable(&selectors);
        if entries.is_empty() {
            return Err(no_identity());
        }
        let signed = sign_all(&self.tokens, entries, audiences).await?;
        // Signing may have taken its time.
        for process in [Some(caller), process].into_iter().flatten() {
            process.recheck().map_err(|_| Status::unavailable(ATTESTATION_FAILED))?;
        }
        authorize(&self.cache.matching(&of_caller), &self.delegates)?;
        let svid = |(entry, token): (Arc<Entry>, Arc<SignedToken>)| {
            let mut svid = jwt_svid_to_wire((*token).clone());
            svid.hint = entry.hint.to_string();
            svid
        };
        Ok(FetchJwtsviDsResponse { svids: signed.into_iter().map(svid).collect() })
    }
}

type Opened<M> = Result<Response<Messages<M>>, Status>;

#[tonic::async_trait]
impl DelegatedIdentity for DelegatedIdentityApi {
    type SubscribeToX509SVIDsStream = Messages<SubscribeToX509sviDsResponse>;

    async fn subscribe_to_x509svi_ds(
        &self,
        request: Request<SubscribeToX509sviDsRequest>,
    ) -> Opened<SubscribeToX509sviDsResponse> {
        let result = self.x509_svids(request).await;
        result.inspect_err(|status| metrics::workload_called(X509SvidFeed::METHOD, status.code()))
    }

    type SubscribeToX509BundlesStream = Messages<SubscribeToX509BundlesResponse>;

    async fn subscribe_to_x509_bundles(
        &self,
        request: Request<SubscribeToX509BundlesRequest>,
    ) -> Opened<SubscribeToX509BundlesResponse> {
        self.bundles(request.extensions(), X509BundleFeed(Arc::clone(&self.delegates))).await
    }

    async fn fetch_jwtsvi_ds(
        &self,
        request: Request<FetchJwtsviDsRequest>,
    ) -> Result<Response<FetchJwtsviDsResponse>, Status> {
        let result = self.jwt_svids(request).await;
        metrics::workload_called("delegated.FetchJWTSVIDs", code(&result));
        result.map(Response::new)
    }

    type SubscribeToJWTBundlesStream = Messages<SubscribeToJwtBundlesResponse>;

    async fn subscribe_to_jwt_bundles(
        &self,
        request: Request<SubscribeToJwtBundlesRequest>,
    ) -> Opened<SubscribeToJwtBundlesResponse> {
        self.bundles(request.extensions(), JwtBundleFeed(Arc::clone(&self.delegates))).await
    }
}

/// Whether a caller with these entries is a delegate.
fn authorize(entries: &[Arc<Entry>], delegates: &BTreeSet<SpiffeId>) -> Result<(), Status> {
    if entries.is_empty() {
        return Err(no_identity());
    }
    if entries.iter().any(|entry| delegates.contains(&entry.spiffe_id)) {
        return Ok(());
    }
    Err(Status::permission_denied("caller not configured as an authorized delegate"))
}

/// The caller's own entitlement, beside the subscription to somebody else's identities.
struct Delegate {
    subscription: Subscription,
    delegates: Arc<BTreeSet<SpiffeId>>,
    clock: SharedClock,
}

impl Gate for Delegate {
    async fn changed(&mut self) {
        self.subscription.changed().await;
    }

    fn check(&mut self) -> Result<(), Status> {
        let view = self.subscription.view::<X509>(self.clock.now());
        let entries = view.map(|view| view.entries).unwrap_or_default();
        let entries: Vec<_> = entries.into_iter().map(|(entry, _)| entry).collect();
        authorize(&entries, &self.delegates)
    }
}

struct X509SvidFeed;

impl Feed for X509SvidFeed {
    type Kind = X509;
    type Message = SubscribeToX509sviDsResponse;
    /// Chains, hints and trust domains; a key changes with its chain.
    type Mark = (Vec<(Vec<Bytes>, String)>, Vec<String>);
    const METHOD: &'static str = "delegated.SubscribeToX509SVIDs";
    const INTEREST: Interest = Interest::X509;

    fn mark(&self, message: &SubscribeToX509sviDsResponse) -> Option<Self::Mark> {
        let svids = message.x509_svids.iter().filter_map(|svid| svid.x509_svid.as_ref());
        let svids = svids.map(|svid| (svid.cert_chain.clone(), svid.hint.clone())).collect();
        Some((svids, message.federates_with.clone()))
    }

    fn next(&self, view: View<X509Svid>) -> Next<SubscribeToX509sviDsResponse> {
        let View { entries, bundles, .. } = view.delegable();
        let Some(ready) = ready_svids(entries.into_iter()) else { return Next::Wait };
        let federated: BTreeSet<_> = ready
            .iter()
            .flat_map(|(entry, _)| entry.federates_with.iter())
            .filter(|name| bundles.federated.contains_key(*name))
            .map(TrustDomain::id_string)
            .collect();
        let svids = ready.into_iter().map(|(entry, svid)| X509svidWithKey {
            x509_svid: Some(types::X509svid {
                id: Some(spiffe_id_to_wire(&entry.spiffe_id)),
                cert_chain: svid.certificates().collect(),
                expires_at: svid.not_after.unix_seconds(),
                hint: entry.hint.to_string(),
            }),
            x509_svid_key: svid.key.to_vec(),
        });
        Next::Send(SubscribeToX509sviDsResponse {
            x509_svids: svids.collect(),
            federates_with: federated.into_iter().collect(),
        })
    }
}

struct X509BundleFeed(Arc<BTreeSet<SpiffeId>>);
struct JwtBundleFeed(Arc<BTreeSet<SpiffeId>>);

/// All bundles, for the delegate whose own entries these are.
fn all_bundles<S, M>(
    view: View<S>,
    delegates: &BTreeSet<SpiffeId>,
    message: impl FnOnce(&Bundles) -> M,
) -> Next<M> {
    let entries: Vec<_> = view.entries.into_iter().map(|(entry, _)| entry).collect();
    match authorize(&entries, delegates) {
        Ok(()) => Next::Send(message(&view.bundles)),
        Err(status) => Next::End(status),
    }
}

impl Feed for X509BundleFeed {
    /// No SVIDs are looked at.
    type Kind = X509;
    type Message = SubscribeToX509BundlesResponse;
    type Mark = SubscribeToX509BundlesResponse;
    const METHOD: &'static str = "delegated.SubscribeToX509Bundles";
    const INTEREST: Interest = Interest::AllBundles;

    fn mark(&self, message: &Self::Message) -> Option<Self::Mark> {
        Some(message.clone())
    }

    fn next(&self, view: View<<X509 as Kind>::Svid>) -> Next<Self::Message> {
        all_bundles(view, &self.0, |bundles| SubscribeToX509BundlesResponse {
            ca_certificates: bundles
                .all()
                .map(|bundle| (bundle.bundle.trust_domain.id_string(), bundle.x509.to_vec()))
                .collect(),
        })
    }
}

impl Feed for JwtBundleFeed {
    /// No SVIDs are looked at.
    type Kind = X509;
    type Message = SubscribeToJwtBundlesResponse;
    type Mark = SubscribeToJwtBundlesResponse;
    const METHOD: &'static str = "delegated.SubscribeToJWTBundles";
    const INTEREST: Interest = Interest::AllBundles;

    fn mark(&self, message: &Self::Message) -> Option<Self::Mark> {
        Some(message.clone())
    }

    fn next(&self, view: View<<X509 as Kind>::Svid>) -> Next<Self::Message> {
        all_bundles(view, &self.0, |bundles| SubscribeToJwtBundlesResponse {
            bundles: bundles
                .all()
                .map(|bundle| (bundle.bundle.trust_domain.id_string(), bundle.jwt.to_vec()))
                .collect(),
        })
    }
}

/// Selectors and audiences, of whose number nobody needs many.
const MAX_REQUEST: usize = 128 * 1024;
