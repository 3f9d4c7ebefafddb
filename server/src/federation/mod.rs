//! Federation: how bundles of other trust domains come in, and how our own goes out (SPIFFE Federation).
//!
//! | module | what it does |
//! |---|---|
//! | `endpoint_url` | addresses of bundle endpoints, valid once parsed |
//! | `http_headers` | entity tags and the `wait` preference, read and compared |
//! | `schedule` | when to poll again; what of a fetched bundle is stored: pure decisions |
//! | `fetch` | one request to a peer's endpoint |
//! | `poller` | one worker for each relationship, kept equal to configuration and store |
//! | `serve` | our own endpoint |
//! | `certificate_files` | the web certificate of our endpoint, read again when its files change |
//! | `acme` | the web certificate of our endpoint, fetched and renewed by ACME |
//!
//! SPIRE polls at a quarter of the peer's refresh hint, so that a revoked authority is trusted for a minute and more
//! after its own trust domain has dropped it. Between our servers a change travels at once: the endpoint gives each
//! document an entity tag and holds a conditional request with `Prefer: wait=N` (RFC 7240) until the document changes;
//! the poller asks like this, and goes on with the pace of the hint where the answer does not say
//! `Preference-Applied`. A peer that knows nothing of it sees an ordinary GET.

pub mod acme;
pub mod certificate_files;
mod endpoint_url;
pub mod fetch;
pub mod http_headers;
mod poller;
pub mod schedule;
pub mod serve;

use std::collections::BTreeMap;
use std::sync::Arc;

use bonafide_identity::{Bundle, TrustDomain};
use bonafide_pki::Random;
use bonafide_runtime::clock::SharedClock;
use bonafide_runtime::tasks::{TaskGroup, chain};

use crate::config::{BundleEndpointProfile, BundleEndpointSettings, FederationSettings};
use crate::status::names;
use crate::store::{Bundles as _, FederationRelationship, State, Store};
pub use endpoint_url::{EndpointUrl, EndpointUrlError};
use fetch::{Conditional, FetchError, Fetched, Fetcher};
use schedule::{Decision, decide, still_trusted};

/// Relationships with other trust domains, and how their bundles are brought. Clones share it.
#[derive(Clone)]
pub struct Federation {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    /// From the configuration; they win over those in the store.
    configured: BTreeMap<TrustDomain, Arc<FederationRelationship>>,
    fetcher: Fetcher,
    clock: SharedClock,
    random: Arc<dyn Random>,
}

/// Why a bundle was not refreshed.
#[derive(Debug, thiserror::Error)]
pub enum RefreshError {
    /// There is no relationship with the trust domain.
    #[error("no relationship with trust domain \"{0}\"")]
    NoRelationship(TrustDomain),
    /// The peer's endpoint gave no bundle.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// What the endpoint was authenticated with is no longer what is stored of its trust domain.
    #[error("the trust in the endpoint has changed meanwhile; what was fetched is not stored")]
    Outdated,
    /// The bundle could not be stored.
    #[error("the bundle could not be stored: {0}")]
    Store(#[from] crate::store::StoreError),
}

/// What became of a fetched bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Taken {
    /// It was stored.
    Changed,
    /// It is what was there already, or the relationship is gone.
    Unchanged,
    /// It has a smaller number than what is stored, and is kept only when it comes again.
    Unconfirmed,
    /// It was fetched with trust that has changed meanwhile.
    Outdated,
}

impl Federation {
    /// The relationships of the configuration and of `store`. Nothing is fetched before [`Self::spawn`].
    pub fn new(
        store: Store,
        configured: impl IntoIterator<Item = FederationRelationship>,
        fetcher: Fetcher,
        clock: SharedClock,
        random: Arc<dyn Random>,
    ) -> Self {
        let configured =
            configured.into_iter().map(|one| (one.trust_domain.clone(), Arc::new(one))).collect();
        Self { inner: Arc::new(Inner { store, configured, fetcher, clock, random }) }
    }

    /// All relationships at this moment.
    pub fn relationships(&self) -> BTreeMap<TrustDomain, Arc<FederationRelationship>> {
        let stored = self.state().relationships();
        let mut all: BTreeMap<_, _> = stored.into_iter().map(|one| (one.trust_domain.clone(), one)).collect();
        all.extend(self.inner.configured.iter().map(|(name, one)| (name.clone(), Arc::clone(one))));
        all
    }

    fn relationship(&self, trust_domain: &TrustDomain) -> Option<Arc<FederationRelationship>> {
        let configured = self.inner.configured.get(trust_domain).cloned();
        configured.or_else(|| self.state().relationship(trust_domain))
    }

    /// Fetches the bundle of a trust domain now and stores it when it is another. Says whether it was.
    ///
    /// # Errors
    /// There is no such relationship, the endpoint gave no bundle, or it could not be stored.
    pub async fn refresh(&self, trust_domain: &TrustDomain) -> Result<bool, RefreshError> {
        let relationship = self
            .relationship(trust_domain)
            .ok_or_else(|| RefreshError::NoRelationship(trust_domain.clone()))?;
        let mut before = None;
        loop {
            let answer = self.fetch(&relationship, &Conditional::default()).await?;
            let Fetched::Bundle { published, .. } = answer.fetched else { return Ok(false) };
            let again = before.is_some();
            match self.take(&relationship, published.bundle.clone(), answer.trusted, before).await? {
                Taken::Unconfirmed if !again => before = Some(published.bundle),
                Taken::Outdated => return Err(RefreshError::Outdated),
                taken => return Ok(taken == Taken::Changed),
            }
        }
    }

    /// Keeps the bundles of all relationships fresh until the shutdown of `group`.
    pub fn spawn(&self, group: &mut TaskGroup) {
        let (federation, shutdown) = (self.clone(), group.shutdown().clone());
        group.spawn("federation", async move {
            poller::run(&federation, shutdown).await;
            Ok(())
        });
    }

    fn state(&self) -> &Arc<State> {
        self.inner.store.state()
    }

    /// One request, with its metrics and its line in the log when it fails.
    async fn fetch(
        &self,
        relationship: &FederationRelationship,
        conditional: &Conditional,
    ) -> Result<fetch::Answer, FetchError> {
        let fetched = self.inner.fetcher.fetch(relationship, self.state(), conditional).await;
        if let Err(error) = &fetched {
            count(&relationship.trust_domain, "failed");
            let (trust_domain, url) = (&relationship.trust_domain, &relationship.bundle_endpoint_url);
            tracing::warn!(%trust_domain, url, error = chain(error), "the bundle could not be fetched; the last one is kept");
        }
        fetched
    }

    /// Stores a fetched bundle, unless it is what is there already, or the relationship or the trust with which it was
    /// fetched (`trusted`) is gone meanwhile. `before` is as in [`decide`].
    async fn take(
        &self,
        relationship: &FederationRelationship,
        bundle: Bundle,
        trusted: Option<Arc<Bundle>>,
        before: Option<Bundle>,
    ) -> Result<Taken, crate::store::StoreError> {
        use crate::store::Relationships as _;
        let trust_domain = relationship.trust_domain.clone();
        let (sequence, empty) = (bundle.sequence_number, bundle.is_empty());
        let configured = self.inner.configured.contains_key(&trust_domain);
        let wanted = relationship.clone();
        // Most answers are no news: they cost no write.
        let local = self.state().bundle(&trust_domain);
        match decide(local.as_deref(), &bundle, before.as_ref()) {
            Decision::Keep => {
                self.unchanged(&trust_domain);
                return Ok(Taken::Unchanged);
            }
            Decision::Confirm => {
                self.unchanged(&trust_domain);
                tracing::warn!(%trust_domain, sequence, "the peer's bundle has a smaller number than the last one; it is taken when it comes again");
                return Ok(Taken::Unconfirmed);
            }
            Decision::Store => {}
        }
        let taken = self
            .inner
            .store
            .write(move |unit| {
                // What was fetched from an endpoint that is no longer the right one must not become trust.
                if !configured && unit.relationship(&wanted.trust_domain).as_deref() != Some(&wanted) {
                    return Ok(Taken::Unchanged);
                }
                // Nor what came from one that is no longer believed: an operator's bundle must stand.
                if let Some(trusted) = &trusted
                    && !still_trusted(trusted, unit.bundle(&trusted.trust_domain).as_deref())
                {
                    return Ok(Taken::Outdated);
                }
                let local = unit.bundle(&wanted.trust_domain);
                match decide(local.as_deref(), &bundle, before.as_ref()) {
                    Decision::Keep => Ok(Taken::Unchanged),
                    Decision::Confirm => Ok(Taken::Unconfirmed),
                    Decision::Store => unit.bundle_put(bundle).map(|_| Taken::Changed),
                }
            })
            .await?;
        match taken {
            Taken::Unchanged | Taken::Unconfirmed => self.unchanged(&trust_domain),
            Taken::Outdated => {
                count(&trust_domain, "failed");
                tracing::warn!(%trust_domain, "the trust in the endpoint has changed meanwhile; what was fetched is not stored");
            }
            Taken::Changed => {
                self.succeeded(&trust_domain, "changed");
                tracing::info!(%trust_domain, sequence, "a federated bundle has changed");
                if empty {
                    tracing::warn!(%trust_domain, "the peer's bundle is empty: nothing of that trust domain is trusted any more");
                }
            }
        }
        Ok(taken)
    }

    fn unchanged(&self, trust_domain: &TrustDomain) {
        self.succeeded(trust_domain, "unchanged");
    }

    fn succeeded(&self, trust_domain: &TrustDomain, result: &'static str) {
        count(trust_domain, result);
        let (name, now) = (trust_domain.to_string(), self.inner.clock.now());
        metrics::gauge!(names::FEDERATION_LAST_SUCCESS, "trust_domain" => name)
            .set(now.unix_seconds() as f64);
    }
}

/// Whether the files that the settings name can be used: for `validate`.
pub fn check(settings: &FederationSettings) -> Vec<String> {
    let mut problems = Vec::new();
    if let Some(path) = &settings.web_ca_path
        && let Err(error) = fetch::web_roots(Some(path))
    {
        problems.push(format!("federation.web_ca_path: {error}"));
    }
    if let Some(BundleEndpointSettings {
        profile: BundleEndpointProfile::HttpsWeb { certificate_path, key_path },
        ..
    }) = &settings.bundle_endpoint
        && let Err(error) =
            certificate_files::CertificateFiles::open(certificate_path.clone(), key_path.clone())
    {
        problems.push(format!("federation.bundle_endpoint: {error}"));
    }
    if let Some(BundleEndpointSettings { profile: BundleEndpointProfile::HttpsWebAcme(acme), .. }) =
        &settings.bundle_endpoint
        && let Some(path) = &acme.directory_ca_path
        && let Err(error) = fetch::web_roots(Some(path))
    {
        problems.push(format!("federation.bundle_endpoint.acme.directory_ca_path: {error}"));
    }
    problems
}

fn count(trust_domain: &TrustDomain, result: &'static str) {
    let name = trust_domain.to_string();
    metrics::counter!(names::FEDERATION_FETCHES, "trust_domain" => name, "result" => result).increment(1);
}
