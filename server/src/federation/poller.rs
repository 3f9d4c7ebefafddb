//! One worker for each relationship, kept equal to configuration and store.
//!
//! Changes are taken from the store's own signal, so a relationship is polled from the moment in which it is written. A
//! worker is stopped, with whatever request it has under way, when its relationship changes or goes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bonafide_identity::{Bundle, TrustDomain};
use bonafide_runtime::shutdown::Shutdown;
use tokio::task::{AbortHandle, JoinSet};

use super::Federation;
use super::fetch::{Answer, Conditional, Fetched, WAIT};
use super::schedule::{Ended, Pace, next, same};
use crate::status::names;
use crate::store::{EndpointProfile, FederationRelationship};

/// Runs until the shutdown.
pub(super) async fn run(federation: &Federation, shutdown: Shutdown) {
    let mut changes = federation.state().subscribe_bundles();
    let mut workers = JoinSet::new();
    let mut running: BTreeMap<TrustDomain, (Arc<FederationRelationship>, AbortHandle)> = BTreeMap::new();
    loop {
        changes.borrow_and_update();
        let wanted = federation.relationships();
        running.retain(|name, (had, worker)| {
            let stays = wanted.get(name) == Some(had);
            if !stays {
                worker.abort();
                if !wanted.contains_key(name) {
                    // Whoever alerts on an old value must not hear of what was ended on purpose.
                    metrics::gauge!(names::FEDERATION_LAST_SUCCESS, "trust_domain" => name.to_string())
                        .set(f64::NAN);
                }
                tracing::info!(trust_domain = %name, "federation: no longer polled as before");
            }
            stays
        });
        for (name, relationship) in wanted {
            if running.contains_key(&name) {
                continue;
            }
            tracing::info!(trust_domain = %name, url = relationship.bundle_endpoint_url, "federation: polled from now on");
            let worker = Worker::new(federation.clone(), Arc::clone(&relationship));
            running.insert(name, (relationship, workers.spawn(worker.run())));
        }
        metrics::gauge!(names::FEDERATION_RELATIONSHIPS).set(running.len() as f64);
        tokio::select! {
            () = shutdown.triggered() => break,
            changed = changes.changed() => if changed.is_err() { break },
            Some(ended) = workers.join_next() => {
                // A worker never ends by itself; one that panicked is started again, after a pause so as not to spin.
                if ended.is_err_and(|error| error.is_panic()) {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    running.retain(|_, (_, worker)| !worker.is_finished());
                }
            }
        }
    }
    workers.shutdown().await;
}

struct Worker {
    federation: Federation,
    relationship: Arc<FederationRelationship>,
    /// The tag of the last document, and what was in it.
    last: Option<(String, Bundle)>,
    /// What the last document said of the pace.
    pace: Option<Pace>,
    failures: u32,
    early: u32,
}

impl Worker {
    fn new(federation: Federation, relationship: Arc<FederationRelationship>) -> Self {
        Self { federation, relationship, last: None, pace: None, failures: 0, early: 0 }
    }

    async fn run(mut self) {
        let mut changes = self.federation.state().subscribe_bundles();
        loop {
            let trusted = self.trusted();
            let (pace, ended) = self.poll().await;
            let delay = next(pace, ended, self.federation.inner.random.u64());
            tracing::debug!(trust_domain = %self.relationship.trust_domain, ?ended, ?delay, "federation: polled");
            let sleep = tokio::time::sleep(delay);
            tokio::pin!(sleep);
            loop {
                tokio::select! {
                    () = &mut sleep => break,
                    changed = changes.changed(), if self.failures > 0 => {
                        // Perhaps somebody has just set the bundle that was missing.
                        if changed.is_err() || self.trusted() != trusted {
                            break;
                        }
                    }
                }
            }
        }
    }

    /// The bundle with which the endpoint is authenticated.
    fn trusted(&self) -> Option<Arc<Bundle>> {
        match &self.relationship.profile {
            EndpointProfile::HttpsWeb => None,
            EndpointProfile::HttpsSpiffe { endpoint_spiffe_id } => {
                self.federation.state().bundle(endpoint_spiffe_id.trust_domain())
            }
        }
    }

    async fn poll(&mut self) -> (Pace, Ended) {
        let stored = self.federation.state().bundle(&self.relationship.trust_domain);
        // The tag stands for what was stored then; when that has been deleted or replaced, it must come again.
        let as_stored =
            |(_, bundle): &&(String, Bundle)| stored.as_deref().is_some_and(|stored| same(stored, bundle));
        let tag = self.last.as_ref().filter(as_stored).map(|(tag, _)| tag.clone());
        let conditional = Conditional { tag, wait: true };
        let asked_to_hold = conditional.tag.is_some();
        let fetched = tokio::select! {
            fetched = self.federation.fetch(&self.relationship, &conditional) => fetched,
            // Not something to find out when the peer lets go of the request.
            () = self.no_longer_stored(), if asked_to_hold => {
                return (Pace::of_stored(None), Ended::Held { well: true, early: 0 });
            }
        };
        let failed = match fetched {
            Ok(answer) => match self.took(answer, asked_to_hold).await {
                Ok(ended) => return ended,
                Err(error) => {
                    let trust_domain = &self.relationship.trust_domain;
                    tracing::error!(%trust_domain, %error, "a fetched bundle could not be stored");
                    self.failures
                }
            },
            Err(_) => self.failures,
        };
        self.failures = self.failures.saturating_add(1);
        let stored = self.federation.state().bundle(&self.relationship.trust_domain);
        (Pace::of_stored(stored.as_deref()), Ended::Failed(failed))
    }

    /// Ends when what was fetched last is deleted or replaced.
    async fn no_longer_stored(&self) {
        let mut changes = self.federation.state().subscribe_bundles();
        loop {
            let stored = self.federation.state().bundle(&self.relationship.trust_domain);
            let there = self.last.as_ref().zip(stored).is_some_and(|((_, last), stored)| same(&stored, last));
            if !there || changes.changed().await.is_err() {
                return;
            }
        }
    }

    async fn took(
        &mut self,
        answer: Answer,
        asked_to_hold: bool,
    ) -> Result<(Pace, Ended), crate::store::StoreError> {
        let Answer { fetched, holds, took } = answer;
        let changed = match fetched {
            Fetched::Bundle { published, tag } => {
                self.pace = Some(Pace::of(&published.bundle, published.refresh_hint));
                self.last = tag.map(|tag| (tag, published.bundle.clone()));
                self.federation.take(&self.relationship, published.bundle).await?
            }
            Fetched::NotModified => {
                self.federation.unchanged(&self.relationship.trust_domain);
                false
            }
        };
        self.failures = 0;
        let stored = || self.federation.state().bundle(&self.relationship.trust_domain);
        let pace = self.pace.unwrap_or_else(|| Pace::of_stored(stored().as_deref()));
        if !holds || self.last.is_none() {
            self.early = 0;
            return Ok((pace, Ended::Answered));
        }
        // The first answer of all tells that the peer holds requests; none was asked to be held yet.
        let well = changed || !asked_to_hold && self.early == 0 || took >= WAIT / 2;
        let early = self.early;
        self.early = if well && asked_to_hold { 0 } else { early.saturating_add(1) };
        Ok((pace, Ended::Held { well, early }))
    }
}
