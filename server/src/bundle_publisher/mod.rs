//! Bundle publishers: where those who do not ask this server find the trust domain's bundle.
//!
//! A publisher is told the whole bundle at the start, after each change and once a minute, so that what somebody else
//! changed or removed at its place comes back.

pub mod kubernetes;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bonafide_identity::{Bundle, TrustDomain};
use bonafide_runtime::BoxError;

use crate::kubernetes::ApiError;
use crate::status::names;
use crate::store::Store;

/// One place where the bundle is published.
#[async_trait]
pub trait BundlePublisher: Send + Sync {
    /// Its table in the configuration, for logs and metrics.
    fn name(&self) -> &str;

    /// Makes the place show `bundle`; doing so again changes nothing. Each call of it that goes elsewhere is bounded in time.
    ///
    /// # Errors
    /// [`PublishError`].
    async fn publish(&self, bundle: &Bundle) -> Result<(), PublishError>;
}

/// How old what is known of a shared database may be for it to be published. It is asked each second.
const FRESH: Duration = Duration::from_secs(5);

/// Why a bundle could not be published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The cluster.
    #[error(transparent)]
    Cluster(#[from] ApiError),
    /// Some objects of a cluster were changed, and these were not.
    #[error("{done} objects have the bundle, {failed} could not be changed; the first of them, {object}")]
    Partly {
        /// Those that have it.
        done: usize,
        /// Those that could not be changed.
        failed: usize,
        /// The first of those.
        object: String,
        /// Why it could not.
        #[source]
        source: Box<ApiError>,
    },
}

/// Publishes the bundle of the own trust domain everywhere.
pub struct Publication {
    store: Store,
    trust_domain: TrustDomain,
    publishers: Vec<Arc<dyn BundlePublisher>>,
}

impl Publication {
    /// Nothing is published before the first [`Self::run`].
    pub fn new(store: Store, trust_domain: TrustDomain, publishers: Vec<Arc<dyn BundlePublisher>>) -> Self {
        Self { store, trust_domain, publishers }
    }

    /// Whether there is a place at all.
    pub fn is_empty(&self) -> bool {
        self.publishers.is_empty()
    }

    /// Publishes the present bundle at all places at once. One that fails keeps no other from having it.
    ///
    /// # Errors
    /// Which places do not have it, and why.
    pub async fn run(&self) -> Result<(), BoxError> {
        // What is in memory may be old: another server of the group would be undone.
        if let Some(silence) = self.store.silence().filter(|silence| *silence > FRESH) {
            let seconds = silence.as_secs();
            return Err(format!(
                "the store's database has not been heard of for {seconds}s, so the bundle may be old"
            )
            .into());
        }
        let Some(bundle) = self.store.state().bundle(&self.trust_domain) else { return Ok(()) };
        let runs = self.publishers.iter().map(|publisher| {
            let (publisher, bundle) = (Arc::clone(publisher), Arc::clone(&bundle));
            tokio::spawn(async move {
                let outcome = publisher.publish(&bundle).await;
                let result = if outcome.is_ok() { "published" } else { "failed" };
                let name = publisher.name().to_owned();
                metrics::counter!(names::BUNDLE_PUBLICATIONS, "publisher" => name.clone(), "result" => result)
                    .increment(1);
                outcome.map_err(|error| format!("{name}: {}", bonafide_runtime::tasks::chain(&error)))
            })
        });
        let mut failures = Vec::new();
        for run in runs.collect::<Vec<_>>() {
            match run.await {
                Ok(Ok(())) => {}
                Ok(Err(failure)) => failures.push(failure),
                Err(panicked) => failures.push(panicked.to_string()),
            }
        }
        if failures.is_empty() { Ok(()) } else { Err(failures.join("; ").into()) }
    }
}
