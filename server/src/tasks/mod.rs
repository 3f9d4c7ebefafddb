//! Background work: reconcilers with visible status.
//!
//! Each is idempotent and may run at any time, twice, or late; what it is to do follows from the present state and
//! not from what it did before. A run that fails is logged, counted and tried again; only the group's shutdown ends
//! them.

mod prune;

use std::sync::Arc;
use std::time::Duration;

use bonafide_pki::Random;
use bonafide_runtime::BoxError;
use bonafide_runtime::clock::SharedClock;
use bonafide_runtime::tasks::{NextRun, Periodic, Schedule, TaskGroup};
use tokio::sync::Mutex;

use crate::authority::{Authorities, ServerSvid, slots::LONGEST_WAIT};
use crate::bundle_publisher::Publication;
use crate::store::Store;
pub use prune::NodePruning;

/// What the tasks work on.
pub struct Parts {
    /// The authorities to rotate.
    pub authorities: Arc<Authorities>,
    /// The server's own SVID and trust.
    pub server_svid: ServerSvid,
    /// The store to keep tidy.
    pub store: Store,
    /// The time.
    pub clock: SharedClock,
    /// Spreads retries and prunings.
    pub random: Arc<dyn Random>,
    /// Where the bundle is published.
    pub publication: Publication,
    /// Whether, and which, expired nodes are deleted.
    pub node_pruning: Option<NodePruning>,
}

/// Starts all of them in `group` and gives their statuses.
pub fn spawn(group: &mut TaskGroup, parts: Parts) -> Vec<Periodic> {
    let Parts { authorities, server_svid, store, clock, random, publication, node_pruning } = parts;
    let mut tasks = Tasks { group, clock, random, statuses: Vec::new() };

    let rotated = Arc::clone(&authorities);
    // A failed step is tried again soon: with lives of seconds there is not much time.
    let schedule = Schedule { interval: LONGEST_WAIT, retry: Duration::from_millis(100), immediately: true };
    let rotation = tasks.start("authority rotation", schedule, move |now| {
        let authorities = Arc::clone(&rotated);
        async move { Ok(NextRun::At(authorities.tick(now).await?)) }
    });

    if let Some(interval) = authorities.upstream_poll_interval() {
        let followed = Arc::clone(&authorities);
        tasks.start("upstream bundle", Schedule::every(interval), move |now| {
            let authorities = Arc::clone(&followed);
            async move {
                authorities.follow_upstream(now).await?;
                Ok(NextRun::Usual)
            }
        });
    }

    let svid = Arc::new(Mutex::new(server_svid));
    let schedule =
        Schedule { interval: Duration::from_secs(5), retry: Duration::from_millis(100), immediately: true };
    let periodic = tasks.start("server SVID", schedule, move |now| {
        let svid = Arc::clone(&svid);
        async move {
            let renewal = svid.lock().await.refresh(now)?;
            // Looked at again before that: the clock may be set forward.
            Ok(NextRun::At(renewal.min(now.saturating_add(Duration::from_secs(5)))))
        }
    });
    let (mut bundles, mut steps) = (store.state().subscribe_bundles(), authorities.subscribe());
    let shutdown = tasks.group.shutdown().clone();
    tasks.group.spawn("server SVID wake-up", async move {
        loop {
            let changed = tokio::select! {
                () = shutdown.triggered() => return Ok(()),
                changed = bundles.changed() => changed,
                changed = steps.changed() => changed,
            };
            if changed.is_err() {
                return Ok(());
            }
            periodic.wake();
        }
    });

    // A bundle that somebody else has changed may taint what signs here.
    tasks.wake_with_bundles("authority rotation wake-up", &store, rotation);
    if !publication.is_empty() {
        let publication = Arc::new(publication);
        // Once a minute, so that what others changed comes back; a failure is tried again soon, then less and less often.
        let schedule = Schedule {
            interval: Duration::from_secs(60),
            retry: Duration::from_millis(500),
            immediately: true,
        };
        let periodic = tasks.start("bundle publication", schedule, move |_| {
            let publication = Arc::clone(&publication);
            async move {
                publication.run().await?;
                Ok(NextRun::Usual)
            }
        });
        tasks.wake_with_bundles("bundle publication wake-up", &store, periodic);
    }

    prune::start(&mut tasks, &store, authorities.trust_domain(), node_pruning);
    tasks.statuses
}

struct Tasks<'a> {
    group: &'a mut TaskGroup,
    clock: SharedClock,
    random: Arc<dyn Random>,
    statuses: Vec<Periodic>,
}

impl Tasks<'_> {
    fn start<W, F>(&mut self, name: &'static str, schedule: Schedule, work: W) -> Periodic
    where
        W: FnMut(bonafide_identity::Timestamp) -> F + Send + 'static,
        F: Future<Output = Result<NextRun, BoxError>> + Send + 'static,
    {
        let periodic = Periodic::new(name, schedule, Arc::clone(&self.clock));
        self.statuses.push(periodic.clone());
        let random = Arc::clone(&self.random);
        let shutdown = self.group.shutdown().clone();
        self.group.spawn(name, periodic.clone().run(shutdown, move || random.u64(), work));
        periodic
    }

    /// Makes a run due whenever a bundle changes.
    fn wake_with_bundles(&mut self, name: &'static str, store: &Store, periodic: Periodic) {
        let (mut bundles, shutdown) = (store.state().subscribe_bundles(), self.group.shutdown().clone());
        self.group.spawn(name, async move {
            loop {
                let changed = tokio::select! {
                    () = shutdown.triggered() => return Ok(()),
                    changed = bundles.changed() => changed,
                };
                if changed.is_err() {
                    return Ok(());
                }
                periodic.wake();
            }
        });
    }
}
