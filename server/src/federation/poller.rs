//! One worker for each relationship, kept equal to configuration and store.
//!
//! Changes are taken from the store's own signal, so a relationship is polled from the moment in which it is written. A
//! worker is stopped, with whatever request it has under way, when its relationship changes or goes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bonafide_identity::{Bundle, TrustDomain};
use bonafide_runtime::shutdown::Shutdown;
use tokio::task::{AbortHandle, JoinSet};

use super::fetch::{Answer, Conditional, Fetched, WAIT};
use super::schedule::{Ended, Pace, QUIET, next, same};
use super::{Federation, Taken};
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
    /// Whether there has been an answer. What the first one brings is no change of the peer.
    answered: bool,
    /// When the last change came, and how many before it had followed closely on each other.
    changed: Option<(Instant, u32)>,
    /// What the last poll brought under a smaller number than that of what is stored.
    unconfirmed: Option<Bundle>,
}

impl Worker {
    fn new(federation: Federation, relationship: Arc<FederationRelationship>) -> Self {
        Self {
            federation,
            relationship,
            last: None,
            pace: None,
            failures: 0,
            early: 0,
            answered: false,
            changed: None,
            unconfirmed: None,
        }
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
        let Answer { fetched, holds, took, trusted } = answer;
        let before = self.unconfirmed.take();
        let taken = match fetched {
            Fetched::Bundle { published, tag } => {
                self.pace = Some(Pace::of(&published.bundle, published.refresh_hint));
                self.last = tag.map(|tag| (tag, published.bundle.clone()));
                let bundle = published.bundle;
                let taken = self.federation.take(&self.relationship, bundle.clone(), trusted, before).await?;
                if taken == Taken::Unconfirmed {
                    self.unconfirmed = Some(bundle);
                }
                taken
            }
            Fetched::NotModified => {
                self.federation.unchanged(&self.relationship.trust_domain);
                Taken::Unchanged
            }
        };
        if matches!(taken, Taken::Unconfirmed | Taken::Outdated) {
            // Soon again, as after a failure.
            let failed = self.failures;
            self.failures = failed.saturating_add(1);
            let stored = self.federation.state().bundle(&self.relationship.trust_domain);
            return Ok((Pace::of_stored(stored.as_deref()), Ended::Failed(failed)));
        }
        let changed = taken == Taken::Changed;
        let first = !std::mem::replace(&mut self.answered, true);
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
        if changed && !first {
            let now = Instant::now();
            let close = self.changed.filter(|(last, _)| now.duration_since(*last) < QUIET);
            let before = close.map_or(0, |(_, before)| before.saturating_add(1));
            self.changed = Some((now, before));
            return Ok((pace, Ended::Changed(before)));
        }
        Ok((pace, Ended::Held { well, early }))
    }
}

#[cfg(test)]
mod tests {
    use bonafide_identity::{SpiffeId, Timestamp, X509Authority};
    use bonafide_pki::SystemRandom;
    use bonafide_pki::bundle::PublishedBundle;
    use bonafide_runtime::clock::SharedClock;

    use super::super::fetch::Fetcher;
    use super::*;
    use crate::store::{Bundles as _, Store, StoreConfig};

    fn bundle(sequence_number: u64, content: u8) -> Bundle {
        let root = X509Authority { certificate: vec![content], tainted: false };
        let mut bundle = Bundle::empty(TrustDomain::parse("b.org").unwrap());
        bundle.x509_authorities.push(root);
        Bundle { sequence_number, ..bundle }
    }

    fn answer(bundle: &Bundle, trusted: Option<Bundle>) -> Answer {
        let tag = Some(format!("\"{}\"", bundle.sequence_number));
        let published = PublishedBundle { bundle: bundle.clone(), refresh_hint: Some(300) };
        let fetched = Fetched::Bundle { published, tag };
        Answer { fetched, holds: true, took: Duration::from_millis(1), trusted: trusted.map(Arc::new) }
    }

    fn worker() -> (Worker, Store) {
        let clock: SharedClock = Arc::new(|| Timestamp::from_unix_seconds(0));
        let own = TrustDomain::parse("a.org").unwrap();
        let (store, _) = Store::open(StoreConfig::memory(own), clock.clone()).unwrap();
        let relationship = FederationRelationship {
            trust_domain: TrustDomain::parse("b.org").unwrap(),
            bundle_endpoint_url: "https://localhost/".to_owned(),
            profile: EndpointProfile::HttpsSpiffe {
                endpoint_spiffe_id: SpiffeId::parse("spiffe://b.org/spire/server").unwrap(),
            },
        };
        let fetcher = Fetcher::new(None, clock.clone());
        let federation =
            Federation::new(store.clone(), [relationship.clone()], fetcher, clock, Arc::new(SystemRandom));
        (Worker::new(federation, Arc::new(relationship)), store)
    }

    #[tokio::test]
    async fn a_peer_that_goes_on_changing_does_not_set_the_pace() {
        let (mut worker, _store) = worker();
        let mut ended = Vec::new();
        for sequence in 1..5_u8 {
            let answer = answer(&bundle(sequence.into(), sequence), None);
            ended.push(worker.took(answer, sequence > 1).await.unwrap().1);
        }
        let first = Ended::Held { well: true, early: 0 };
        assert_eq!(ended, [first, Ended::Changed(0), Ended::Changed(1), Ended::Changed(2)]);
        // After a quiet time the next one is a first one again.
        worker.changed = worker.changed.map(|(last, before)| (last.checked_sub(QUIET).unwrap(), before));
        let (_, ended) = worker.took(answer(&bundle(9, 9), None), true).await.unwrap();
        assert_eq!(ended, Ended::Changed(0));
    }

    #[tokio::test]
    async fn a_smaller_number_counts_when_it_comes_again() {
        let (mut worker, store) = worker();
        let stored = || store.state().bundle(&worker_domain()).unwrap().sequence_number;
        worker.took(answer(&bundle(7, 7), None), false).await.unwrap();
        let mut ended = Vec::new();
        for (sequence, content) in [(3, 3), (4, 4), (3, 3)] {
            ended.push(worker.took(answer(&bundle(sequence, content), None), false).await.unwrap().1);
            assert_eq!(stored(), 7);
        }
        assert_eq!(ended, [Ended::Failed(0), Ended::Failed(1), Ended::Failed(2)]);
        worker.took(answer(&bundle(3, 3), None), false).await.unwrap();
        assert_eq!(stored(), 3);
    }

    #[tokio::test]
    async fn an_operators_bundle_stands_against_what_was_under_way() {
        let (mut worker, store) = worker();
        let operators = bundle(0, 1);
        store.write(move |unit| unit.bundle_put(operators)).await.unwrap();
        let (_, ended) = worker.took(answer(&bundle(8, 3), Some(bundle(5, 2))), false).await.unwrap();
        assert_eq!(ended, Ended::Failed(0));
        assert_eq!(*store.state().bundle(&worker_domain()).unwrap(), bundle(0, 1));
        // With the trust that is stored it is taken.
        worker.took(answer(&bundle(8, 3), Some(bundle(5, 1))), false).await.unwrap();
        assert_eq!(*store.state().bundle(&worker_domain()).unwrap(), bundle(8, 3));
    }

    fn worker_domain() -> TrustDomain {
        TrustDomain::parse("b.org").unwrap()
    }
}
