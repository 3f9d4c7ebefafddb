//! Keeping up with the server: entries, bundles, and what has to be signed.
//!
//! A pass asks for entries, the own bundle and the bundles that entries federate with, then has signed what is due.
//! Between two passes the loop signs whatever a subscriber waits for, at once, and renews each SVID at its instant; so
//! the interval bounds how old the agent's knowledge is, not how long anybody waits.
//!
//! A denial that the server gives a reason for is acted upon (see [`reaction`]). Everything else is retried with growing
//! delays, while workloads keep what they hold. A server that this agent's bundle does not know is retried as well, and the
//! agent begins anew when it is told to: leaving would take the SVIDs of every workload along, and the log says what is
//! wrong.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bonafide_identity::{Bundle, Timestamp, TrustDomain};
use bonafide_pki::{Random, TrustRoots, X509Error, tls};
use bonafide_proto::spire::types::permission_denied_details::Reason;
use bonafide_runtime::backoff::Backoff;
use bonafide_runtime::clock::SharedClock;
use bonafide_runtime::health::ReadinessGuard;
use bonafide_runtime::shutdown::Shutdown;
use bonafide_runtime::tasks::chain;
use tokio::task::JoinSet;

use crate::bootstrap::store::Attempts;
use crate::bootstrap::{Unknown, begin_anew, decide};
use crate::config::{BootstrapConfig, Rebootstrap};
use crate::metrics;
use crate::own_svid::{OwnSvid, OwnSvidError};
use crate::server_client::{ServerClient, ServerError};
use crate::svid_cache::issuing::Issuing;
use crate::svid_cache::tokens::JwtSvids;
use crate::svid_cache::{Bundles, Occasion, SvidCache};

/// Why a pass failed.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// The server did not answer as it should.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The own bundle is of another trust domain.
    #[error("the server sent the bundle of {found} as its own, not of {expected}")]
    OtherTrustDomain {
        /// Whose bundle came.
        found: TrustDomain,
        /// Whose should have come.
        expected: TrustDomain,
    },
    /// The own bundle cannot be used.
    #[error("the server sent a trust bundle that cannot be used")]
    Bundle(#[source] X509Error),
    /// The own bundle is empty: nothing could be verified any more.
    #[error("the server sent a trust bundle without X.509 authorities")]
    EmptyBundle,
    /// The agent's own SVID could not be renewed.
    #[error("the agent's own SVID could not be renewed")]
    OwnSvid(#[source] OwnSvidError),
}

/// Why the agent gives up. Its supervisor starts it again, and it attests anew then.
#[derive(Debug, thiserror::Error)]
pub enum FatalError {
    /// The server does not want this agent any more, and it cannot attest again by itself.
    #[error("the server denies this agent ({}); its stored SVID is removed, so the next start attests anew", describe(*.0))]
    Denied(Reason),
    /// The agent's own SVID ended and cannot be renewed.
    #[error("the agent's own SVID has expired; it must be attested anew")]
    Expired(#[source] Option<Box<OwnSvidError>>),
}

/// What a denial asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reaction {
    /// Retry later.
    Retry,
    /// Attest again and go on.
    Attest,
    /// Forget the SVID and leave.
    Leave,
}

/// What to do about a denial, for an agent that may or may not attest again by itself.
///
/// At start-up the answer is the same: an agent that may attest again does so at once, which spares the restart that
/// would lead there anyway.
fn reaction(reason: Reason, reattestable: bool) -> Reaction {
    match reason {
        Reason::Unknown => Reaction::Retry,
        Reason::AgentBanned => Reaction::Leave,
        Reason::AgentExpired
        | Reason::AgentNotAttested
        | Reason::AgentNotActive
        | Reason::AgentMustReattest => {
            if reattestable {
                Reaction::Attest
            } else {
                Reaction::Leave
            }
        }
    }
}

fn describe(reason: Reason) -> &'static str {
    match reason {
        Reason::Unknown => "without a reason",
        Reason::AgentExpired => "its SVID has expired",
        Reason::AgentNotAttested => "it is not known as an attested agent",
        Reason::AgentNotActive => "its SVID is not the active one",
        Reason::AgentBanned => "it is banned",
        Reason::AgentMustReattest => "it must attest again",
    }
}

/// How synchronisation goes; shared with whoever shows it.
#[derive(Debug, Clone, Default)]
pub struct LastSync(Arc<Outcomes>);

#[derive(Debug, Default)]
struct Outcomes {
    success: AtomicI64,
    failures_in_a_row: AtomicU64,
}

impl LastSync {
    /// When a pass last succeeded, in Unix seconds; 0 before the first.
    #[must_use]
    pub fn unix_seconds(&self) -> i64 {
        self.0.success.load(Ordering::Relaxed)
    }

    /// How many passes have failed since.
    #[must_use]
    pub fn failures_in_a_row(&self) -> u64 {
        self.0.failures_in_a_row.load(Ordering::Relaxed)
    }

    fn succeeded(&self, now: Timestamp) {
        self.0.success.store(now.unix_seconds(), Ordering::Relaxed);
        self.0.failures_in_a_row.store(0, Ordering::Relaxed);
    }

    fn failed(&self) {
        self.0.failures_in_a_row.fetch_add(1, Ordering::Relaxed);
    }
}

/// Keeps up with the server.
pub struct Sync {
    pub(crate) trust_domain: TrustDomain,
    pub(crate) own: OwnSvid,
    pub(crate) client: ServerClient,
    pub(crate) trust: tls::TrustStore,
    /// By what the members of all trust domains whose bundles the agent holds are recognised, if anybody wants to know.
    pub(crate) peers: Option<tls::TrustStore>,
    pub(crate) cache: Arc<SvidCache>,
    pub(crate) tokens: Arc<JwtSvids>,
    pub(crate) issuing: Issuing,
    pub(crate) clock: SharedClock,
    pub(crate) random: Arc<dyn Random>,
    pub(crate) interval: Duration,
    pub(crate) last: LastSync,
    pub(crate) readiness: ReadinessGuard,
    /// Since the last pass that succeeded.
    pub(crate) attested_again: AtomicBool,
    /// What to do when the server is no longer known.
    pub(crate) anew: BeginAnew,
}

/// What an agent needs that begins anew when it no longer knows its server.
pub(crate) struct BeginAnew {
    pub(crate) config: Rebootstrap,
    pub(crate) source: BootstrapConfig,
    /// Since the server was last known, for whoever is asked for the bundle.
    pub(crate) attempts: Mutex<Attempts>,
}

impl BeginAnew {
    fn attempts(&self) -> MutexGuard<'_, Attempts> {
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sync {
    /// Tries until a first pass has succeeded.
    ///
    /// # Errors
    /// The server denies this agent for good. Ends without error, too, when the shutdown is triggered first.
    pub async fn first(&self, shutdown: &Shutdown) -> Result<(), FatalError> {
        if let Err(error) = self.client.post_status(env!("CARGO_PKG_VERSION")).await
            && !error.is_unimplemented()
        {
            tracing::debug!(error = chain(&error), "the server did not take the agent's version");
        }
        let mut backoff = self.backoff();
        loop {
            tokio::select! {
                () = shutdown.triggered() => return Ok(()),
                delay = self.turn(&mut backoff) => {
                    let delay = delay?;
                    if self.last.unix_seconds() != 0 {
                        return Ok(());
                    }
                    tokio::select! {
                        () = shutdown.triggered() => return Ok(()),
                        () = tokio::time::sleep(delay) => {}
                    }
                }
            }
        }
    }

    /// Goes on until the shutdown.
    ///
    /// # Errors
    /// [`FatalError`].
    pub async fn run(self, shutdown: Shutdown) -> Result<(), FatalError> {
        tokio::select! {
            () = shutdown.triggered() => Ok(()),
            result = self.keep_up() => result,
        }
    }

    async fn keep_up(&self) -> Result<(), FatalError> {
        let mut backoff = self.backoff();
        let mut delay = self.jittered();
        loop {
            let pass = tokio::time::sleep(delay);
            tokio::pin!(pass);
            loop {
                let now = self.clock.now();
                let own = Some(self.own.renew_at()).filter(|at| *at > now);
                let renewal = until(self.cache.next_renewal(now), now);
                tokio::select! {
                    () = &mut pass => break,
                    () = tokio::time::sleep(until(own, now)) => break,
                    () = self.cache.demanded() => self.sign(Occasion::Demand).await?,
                    () = tokio::time::sleep(renewal) => self.sign(Occasion::Regular).await?,
                }
            }
            delay = self.turn(&mut backoff).await?;
        }
    }

    /// One pass and what follows from how it went. Returns how long to wait for the next.
    async fn turn(&self, backoff: &mut Backoff) -> Result<Duration, FatalError> {
        let started = std::time::Instant::now();
        let result = self.pass().await;
        let now = self.clock.now();
        metrics::synced(result.is_ok().then_some(now), started.elapsed());
        match result {
            Ok(()) => {
                backoff.reset();
                self.attested_again.store(false, Ordering::Relaxed);
                *self.anew.attempts() = Attempts::default();
                self.last.succeeded(now);
                self.readiness.ready();
                Ok(self.jittered())
            }
            Err(error) => {
                let text = chain(&error);
                self.last.failed();
                // Once it has served, an agent without a server goes on serving what it holds: a supervisor that
                // restarted it for that would take the SVIDs of every workload away.
                if self.last.unix_seconds() == 0 {
                    self.readiness.not_ready(text.clone());
                }
                let denial = match &error {
                    SyncError::Server(error) => error.denial(),
                    SyncError::OwnSvid(OwnSvidError::Server(error)) => error.denial(),
                    _ => None,
                };
                let unknown = match &error {
                    SyncError::Server(error) | SyncError::OwnSvid(OwnSvidError::Server(error)) => {
                        error.is_unknown_authority()
                    }
                    _ => false,
                };
                let reattests = if unknown { self.begin_anew(now).await } else { self.react(denial).await? };
                self.check_life(error)?;
                let mut delay = backoff.next(self.random.u64());
                if self.cache.counts().x509 == 0 {
                    delay = delay.min(self.interval);
                }
                // Once: a server that goes on denying must not be asked without pause.
                if reattests && !self.attested_again.swap(true, Ordering::Relaxed) {
                    delay = Duration::ZERO;
                }
                tracing::warn!(error = text, retry_in = ?delay, "synchronisation with the server failed");
                Ok(delay)
            }
        }
    }

    /// The server is not known by the agent's bundle. Says whether the agent has just been attested anew.
    async fn begin_anew(&self, now: Timestamp) -> bool {
        let attempts = {
            let mut attempts = self.anew.attempts();
            *attempts = attempts.one_more(now);
            *attempts
        };
        let since = self.client.unknown_since().unwrap_or(now);
        if decide(&self.anew.config, self.own.reattestable(), since, now) == Unknown::Wait {
            return false;
        }
        tracing::warn!("the server is not known by the agent's bundle; beginning anew");
        let result = begin_anew(&self.own, &self.client, &self.anew.source, attempts).await;
        metrics::own_svid_renewed(result.is_ok());
        match result {
            Ok(()) => {
                self.client.observe(Ok(()));
                tracing::warn!(id = %self.own.id(), "this node is attested anew");
                true
            }
            Err(error) => {
                tracing::warn!(error = chain(&error), "beginning anew failed");
                false
            }
        }
    }

    /// Says whether the agent has just been attested again.
    async fn react(&self, denial: Option<Reason>) -> Result<bool, FatalError> {
        let Some(reason) = denial else { return Ok(false) };
        match reaction(reason, self.own.reattestable()) {
            Reaction::Retry => Ok(false),
            Reaction::Attest => {
                tracing::warn!(reason = describe(reason), "the server denies this agent; attesting again");
                match self.own.renew(&self.client).await {
                    Ok(()) => Ok(true),
                    Err(error) => {
                        tracing::warn!(error = chain(&error), "attesting again failed");
                        Ok(false)
                    }
                }
            }
            Reaction::Leave => {
                if let Err(error) = self.own.forget().await {
                    tracing::error!(error = chain(&error), "the agent's stored SVID cannot be removed");
                }
                Err(FatalError::Denied(reason))
            }
        }
    }

    /// Gives up once the agent's SVID has ended, unless it can still attest again.
    fn check_life(&self, error: SyncError) -> Result<(), FatalError> {
        if self.own.reattestable() || self.clock.now() < self.own.not_after() {
            return Ok(());
        }
        Err(FatalError::Expired(match error {
            SyncError::OwnSvid(error) => Some(Box::new(error)),
            _ => None,
        }))
    }

    async fn pass(&self) -> Result<(), SyncError> {
        self.renew_own_svid().await?;
        let known = self.cache.entries();
        let sync = self.client.sync_entries(&known).await?;
        let own = self.client.bundle().await?;
        self.trust_own(&own).await?;
        let wanted: BTreeSet<TrustDomain> = sync
            .entries
            .iter()
            .flat_map(|entry| entry.federates_with.iter())
            .filter(|name| **name != self.trust_domain)
            .cloned()
            .collect();
        let before = self.cache.bundles();
        let (federated, failure) = self.federated(wanted, before.as_deref()).await;
        let bundles = Bundles::new(own, federated, before.as_deref());
        self.tokens.drop_signed_by(&bundles.tainted.jwt);
        let tainted = self.own.is_signed_by(&bundles.tainted.x509);
        tracing::debug!(entries = sync.entries.len(), transferred = sync.transferred, "synchronised");
        if let Some(peers) = &self.peers
            && before.is_none_or(|before| !bundles.same_as(&before))
        {
            peers.set(bundles.trust_roots());
        }
        self.cache.update(sync.entries, bundles);
        let signed = self.issuing.sign_due(Occasion::Regular).await.map(drop);
        if tainted {
            tracing::warn!("the authority that signed the agent's SVID is tainted; renewing");
            if let Err(error) = self.own.renew(&self.client).await {
                tracing::warn!(error = chain(&error), "the agent's own SVID could not be renewed yet");
            }
        }
        signed?;
        failure.map_or(Ok(()), |error| Err(error.into()))
    }

    /// A renewal that fails costs nothing yet: the pass goes on with the present SVID unless the server has a reason to
    /// deny it.
    async fn renew_own_svid(&self) -> Result<(), SyncError> {
        let now = self.clock.now();
        if self.own.renew_at() > now {
            return Ok(());
        }
        match self.own.renew(&self.client).await {
            Ok(()) => Ok(()),
            Err(OwnSvidError::Server(error)) if error.denial().is_some() => {
                Err(SyncError::OwnSvid(OwnSvidError::Server(error)))
            }
            Err(error) if self.own.not_after() <= now => Err(SyncError::OwnSvid(error)),
            Err(error) => {
                tracing::warn!(error = chain(&error), "the agent's own SVID could not be renewed yet");
                Ok(())
            }
        }
    }

    async fn trust_own(&self, bundle: &Bundle) -> Result<(), SyncError> {
        if bundle.trust_domain != self.trust_domain {
            let (found, expected) = (bundle.trust_domain.clone(), self.trust_domain.clone());
            return Err(SyncError::OtherTrustDomain { found, expected });
        }
        let roots: Vec<Vec<u8>> =
            bundle.x509_authorities.iter().map(|authority| authority.certificate.clone()).collect();
        if roots.is_empty() {
            return Err(SyncError::EmptyBundle);
        }
        let prepared = TrustRoots::from_der(roots.iter().map(Vec::as_slice)).map_err(SyncError::Bundle)?;
        let prepared = Arc::new(prepared);
        self.trust.set_trust_domain(&self.trust_domain, &prepared);
        if let Some(peers) = &self.peers {
            peers.set_trust_domain(&self.trust_domain, &prepared);
        }
        if let Err(error) = self.own.keep_roots(roots).await {
            // Needed at the next start only.
            tracing::error!(error = chain(&error), "the trust bundle cannot be stored");
        }
        Ok(())
    }

    /// The bundles of other trust domains, with the first failure if there was one. It must not keep what else has come from
    /// workloads: a bundle that could not be had is the one that is held already.
    async fn federated(
        &self,
        wanted: BTreeSet<TrustDomain>,
        held: Option<&Bundles>,
    ) -> (Vec<Bundle>, Option<ServerError>) {
        let held = |name: &TrustDomain| Some(held?.federated.get(name)?.bundle.clone());
        let mut wanted = wanted.into_iter();
        let mut running = JoinSet::new();
        let mut bundles = Vec::new();
        let mut failure: Option<ServerError> = None;
        loop {
            // Without answers there is no use in asking on.
            while running.len() < FEDERATED_AT_ONCE
                && failure.as_ref().is_none_or(|error| error.code().is_some())
                && let Some(name) = wanted.next()
            {
                let client = self.client.clone();
                running.spawn(async move {
                    let bundle = client.federated_bundle(&name).await;
                    (name, bundle)
                });
            }
            let Some(done) = running.join_next().await else {
                bundles.extend(wanted.filter_map(|name| held(&name)));
                return (bundles, failure);
            };
            match done {
                Ok((_, Ok(Some(bundle)))) => bundles.push(bundle),
                Ok((name, Ok(None))) => {
                    tracing::debug!(trust_domain = %name, "the server has no bundle of a federated trust domain");
                }
                Ok((name, Err(error))) => {
                    let text = chain(&error);
                    tracing::warn!(trust_domain = %name, error = text, "the bundle of a federated trust domain cannot be had");
                    bundles.extend(held(&name));
                    failure.get_or_insert(error);
                }
                Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
            }
        }
    }

    async fn sign(&self, occasion: Occasion) -> Result<(), FatalError> {
        if let Err(error) = self.issuing.sign_due(occasion).await {
            tracing::warn!(error = chain(&error), "SVIDs could not be signed");
            self.react(error.denial()).await?;
        }
        Ok(())
    }

    fn backoff(&self) -> Backoff {
        let max = (self.interval * 48).min(MAX_DELAY).max(self.interval);
        Backoff::new(self.interval, max, 1.5)
    }

    fn jittered(&self) -> Duration {
        let tenth = self.interval / 10;
        let draw = self.random.u64() as f64 / u64::MAX as f64;
        self.interval - tenth + (tenth * 2).mul_f64(draw)
    }
}

/// For ever without an instant.
fn until(at: Option<Timestamp>, now: Timestamp) -> Duration {
    at.map_or(Duration::MAX, |at| at.saturating_since(now) + RENEWAL_SLACK)
}

const FEDERATED_AT_ONCE: usize = 10;
const MAX_DELAY: Duration = Duration::from_secs(8 * 60);
/// Renewals that are due within moments of each other go in one batch.
const RENEWAL_SLACK: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn denials_are_acted_upon_as_the_table_says() {
        use Reaction::{Attest, Leave, Retry};
        for (reason, reattestable, fixed) in [
            (Reason::AgentExpired, Attest, Leave),
            (Reason::AgentNotAttested, Attest, Leave),
            (Reason::AgentNotActive, Attest, Leave),
            (Reason::AgentMustReattest, Attest, Leave),
            (Reason::AgentBanned, Leave, Leave),
            (Reason::Unknown, Retry, Retry),
        ] {
            assert_eq!(reaction(reason, true), reattestable, "{reason:?}");
            assert_eq!(reaction(reason, false), fixed, "{reason:?}");
        }
    }
}
