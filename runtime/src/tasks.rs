//! Tasks that have a name, an owner and an end.
//!
//! [`TaskGroup`] supervises: the first task that fails or panics triggers the shutdown of all, and joining has a
//! deadline that names whoever outlives it. A bare `tokio::spawn` loses panics and is waited for by nobody.
//!
//! [`Periodic`] is background work as an idempotent reconciler whose status can be read: running since when, how the
//! last run ended, when the next one is due.

use std::collections::BTreeMap;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bonafide_identity::Timestamp;
use thiserror::Error;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::BoxError;
use crate::backoff::Backoff;
use crate::clock::SharedClock;
use crate::shutdown::Shutdown;

/// Why a group of tasks did not end well.
#[derive(Debug, Error)]
pub enum TaskError {
    /// A task ended with an error.
    #[error("task {name} failed: {source}")]
    Failed {
        /// The task's name.
        name: &'static str,
        /// What it ended with.
        source: BoxError,
    },
    /// A task panicked.
    #[error("task {name} panicked: {message}")]
    Panicked {
        /// The task's name.
        name: &'static str,
        /// The panic's message, empty when it had none.
        message: String,
    },
    /// Tasks were still running when the deadline passed; they were aborted.
    #[error("tasks still running {deadline:?} after the shutdown began: {}{}", names.join(", "), first.as_ref().map(|first| format!(" (first failure: {first})")).unwrap_or_default())]
    Outlived {
        /// The names of those that were aborted, sorted.
        names: Vec<&'static str>,
        /// How long they were given.
        deadline: Duration,
        /// The failure that began the shutdown, if one did.
        first: Option<Box<TaskError>>,
    },
}

/// Named tasks that live and end together.
#[derive(Debug)]
pub struct TaskGroup {
    shutdown: Shutdown,
    tasks: JoinSet<(u64, Result<(), TaskError>)>,
    running: BTreeMap<u64, &'static str>,
    next: u64,
}

impl TaskGroup {
    /// An empty group that triggers, and listens to, `shutdown`.
    pub fn new(shutdown: Shutdown) -> Self {
        Self { shutdown, tasks: JoinSet::new(), running: BTreeMap::new(), next: 0 }
    }

    /// The group's shutdown.
    pub fn shutdown(&self) -> &Shutdown {
        &self.shutdown
    }

    /// Starts a task. When it fails or panics the group's shutdown is triggered at once, also before anyone joins.
    /// A task that ends with `Ok` simply ends.
    ///
    /// Must be called within a tokio runtime.
    pub fn spawn<F>(&mut self, name: &'static str, task: F)
    where
        F: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        let id = self.next;
        self.next += 1;
        self.running.insert(id, name);
        let shutdown = self.shutdown.clone();
        self.tasks.spawn(async move {
            let outcome = match CatchUnwind(Box::pin(task)).await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(source)) => Err(TaskError::Failed { name, source }),
                Err(message) => Err(TaskError::Panicked { name, message }),
            };
            if let Err(failure) = &outcome {
                tracing::error!(task = name, error = %failure, "a task failed; stopping");
                shutdown.trigger();
            }
            (id, outcome)
        });
    }

    /// Waits until every task has ended. From the moment the shutdown is triggered (by a failure, a signal, anyone)
    /// the tasks have `deadline` to end; those that have not are aborted.
    ///
    /// # Errors
    /// The first failure; or, when tasks had to be aborted, [`TaskError::Outlived`] with the first failure inside.
    pub async fn join(mut self, deadline: Duration) -> Result<(), TaskError> {
        let mut first = None;
        let expiry = {
            let shutdown = self.shutdown.clone();
            async move {
                shutdown.triggered().await;
                tokio::time::sleep(deadline).await;
            }
        };
        tokio::pin!(expiry);
        while !self.tasks.is_empty() {
            tokio::select! {
                Some(ended) = self.tasks.join_next() => {
                    // A JoinError would mean that the wrapper was aborted or panicked; neither happens before the
                    // deadline, as panics are caught inside.
                    if let Ok((id, outcome)) = ended {
                        self.running.remove(&id);
                        if let Err(failure) = outcome {
                            first.get_or_insert(failure);
                        }
                    }
                }
                () = &mut expiry => {
                    let mut names: Vec<_> = self.running.values().copied().collect();
                    names.sort_unstable();
                    // Aborting takes effect at a task's next await point; one that has none must not hold us up.
                    let _ = tokio::time::timeout(ABORT_TIME, self.tasks.shutdown()).await;
                    return Err(TaskError::Outlived { names, deadline, first: first.map(Box::new) });
                }
            }
        }
        first.map_or(Ok(()), Err)
    }
}

/// How long aborted tasks may take to let go.
const ABORT_TIME: Duration = Duration::from_secs(1);

/// Turns a panic of the inner future into its message.
struct CatchUnwind<F>(Pin<Box<F>>);

impl<F: Future> Future for CatchUnwind<F> {
    type Output = Result<F::Output, String>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        // The future is dropped after a panic and never polled again, so nobody sees a broken invariant of it.
        match std::panic::catch_unwind(AssertUnwindSafe(|| self.0.as_mut().poll(context))) {
            Ok(poll) => poll.map(Ok),
            Err(payload) => Poll::Ready(Err(panic_message(payload.as_ref()))),
        }
    }
}

fn panic_message(payload: &(dyn std::any::Any + Send)) -> String {
    payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_default()
}

/// When a reconciler wants to run again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextRun {
    /// After the usual interval.
    Usual,
    /// After this long.
    In(Duration),
    /// At this time; at once when it has passed.
    At(Timestamp),
}

/// How a run of a reconciler ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastRun {
    /// When it began.
    pub began: Timestamp,
    /// How long it took.
    pub took: Duration,
    /// `None` when it succeeded, else the error's text with its causes.
    pub error: Option<String>,
}

/// What is known about a reconciler at this moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeriodicStatus {
    /// When the present run began; `None` between runs.
    pub running_since: Option<Timestamp>,
    /// How the last finished run ended.
    pub last: Option<LastRun>,
    /// When the next run is due; `None` while running or stopped.
    pub next: Option<Timestamp>,
    /// Finished runs.
    pub runs: u64,
    /// Finished runs that failed.
    pub failures: u64,
    /// Failures since the last success.
    pub failures_in_a_row: u64,
}

/// How often a reconciler runs.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// Between the end of a run and the begin of the next.
    pub interval: Duration,
    /// The first delay after a failure; it doubles up to `interval`.
    pub retry: Duration,
    /// Whether the first run is due at once rather than after the interval.
    pub immediately: bool,
}

impl Schedule {
    /// Runs at once and then each `interval`; after a failure first after a tenth of it (at least 100 ms).
    pub fn every(interval: Duration) -> Self {
        Self {
            interval,
            retry: (interval / 10).max(Duration::from_millis(100)).min(interval),
            immediately: true,
        }
    }
}

/// Background work with a visible status. Clones share it.
#[derive(Clone)]
pub struct Periodic {
    inner: Arc<PeriodicInner>,
}

struct PeriodicInner {
    name: &'static str,
    schedule: Schedule,
    clock: SharedClock,
    status: Mutex<PeriodicStatus>,
    wake: Notify,
}

impl std::fmt::Debug for Periodic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Periodic").field("name", &self.inner.name).field("status", &self.status()).finish()
    }
}

impl Periodic {
    /// Work called `name` that is to run on `schedule`. Nothing runs before [`Periodic::run`].
    pub fn new(name: &'static str, schedule: Schedule, clock: SharedClock) -> Self {
        let status = Mutex::default();
        Self { inner: Arc::new(PeriodicInner { name, schedule, clock, status, wake: Notify::new() }) }
    }

    /// The name.
    pub fn name(&self) -> &'static str {
        self.inner.name
    }

    /// The present status.
    pub fn status(&self) -> PeriodicStatus {
        self.lock().clone()
    }

    /// Makes the next run due now. During a run: due as soon as it ends.
    pub fn wake(&self) {
        self.inner.wake.notify_one();
    }

    /// Runs `work` until the shutdown. A failed run is logged, counted and retried; it ends nothing. A run that is
    /// in progress at the shutdown is dropped at its next await point.
    ///
    /// # Errors
    /// None today; the type fits [`TaskGroup::spawn`].
    pub async fn run<W, F, D>(self, shutdown: Shutdown, mut draw: D, mut work: W) -> Result<(), BoxError>
    where
        W: FnMut(Timestamp) -> F,
        F: Future<Output = Result<NextRun, BoxError>>,
        D: FnMut() -> u64,
    {
        let inner = &*self.inner;
        let Schedule { interval, retry, immediately } = inner.schedule;
        let mut backoff = Backoff::new(retry, interval.max(retry), 2.0);
        let mut delay = if immediately { Duration::ZERO } else { interval };
        loop {
            self.lock().next = Some(inner.clock.now().saturating_add(delay));
            tokio::select! {
                () = shutdown.triggered() => break,
                () = tokio::time::sleep(delay) => {}
                () = inner.wake.notified() => {}
            }
            let began = inner.clock.now();
            {
                let mut status = self.lock();
                status.running_since = Some(began);
                status.next = None;
            }
            let clock = tokio::time::Instant::now();
            let outcome = tokio::select! {
                () = shutdown.triggered() => break,
                outcome = work(began) => outcome,
            };
            let error = outcome.as_ref().err().map(|error| chain(error.as_ref()));
            delay = match outcome {
                Ok(next) => {
                    backoff.reset();
                    match next {
                        NextRun::Usual => interval,
                        NextRun::In(delay) => delay,
                        NextRun::At(at) => at.saturating_since(inner.clock.now()),
                    }
                }
                Err(_) => backoff.next(draw()),
            };
            if let Some(error) = &error {
                tracing::warn!(task = inner.name, %error, retry_in = ?delay, "a periodic task failed");
            }
            let mut status = self.lock();
            status.runs += 1;
            status.failures += u64::from(error.is_some());
            status.failures_in_a_row = if error.is_some() { status.failures_in_a_row + 1 } else { 0 };
            status.running_since = None;
            status.last = Some(LastRun { began, took: clock.elapsed(), error });
        }
        let mut status = self.lock();
        status.running_since = None;
        status.next = None;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, PeriodicStatus> {
        // The status stays whole whatever panics: each update is a few plain assignments.
        self.inner.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An error and its causes in one line, joined by `: `.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // Many libraries print their source inside their own text already.
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;

    #[tokio::test(start_paused = true)]
    async fn the_first_failure_stops_the_group_and_is_named() {
        let shutdown = Shutdown::new();
        let mut group = TaskGroup::new(shutdown.clone());
        let heard = shutdown.clone();
        group.spawn("patient", async move {
            heard.triggered().await;
            Ok(())
        });
        group.spawn("broken", async { Err("no disk".into()) });
        let error = group.join(Duration::from_secs(5)).await.unwrap_err();
        assert!(matches!(error, TaskError::Failed { name: "broken", .. }), "{error}");
        assert!(shutdown.is_triggered());
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_is_a_failure_with_its_message() {
        let mut group = TaskGroup::new(Shutdown::new());
        group.spawn("careless", async { panic!("index {} is out of bounds", 3) });
        let error = group.join(Duration::from_secs(5)).await.unwrap_err();
        assert_eq!(error.to_string(), "task careless panicked: index 3 is out of bounds");
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_stops_the_others_before_anyone_joins() {
        let shutdown = Shutdown::new();
        let mut group = TaskGroup::new(shutdown.clone());
        group.spawn("broken", async { Err("at once".into()) });
        tokio::time::timeout(Duration::from_secs(5), shutdown.triggered())
            .await
            .expect("triggered without a join");
        assert!(group.join(Duration::ZERO).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_outlives_the_deadline_is_named_and_aborted() {
        struct Dropped(Arc<Mutex<bool>>);
        impl Drop for Dropped {
            fn drop(&mut self) {
                *self.0.lock().unwrap() = true;
            }
        }
        let dropped = Arc::new(Mutex::new(false));
        let shutdown = Shutdown::new();
        let mut group = TaskGroup::new(shutdown.clone());
        let guard = Dropped(Arc::clone(&dropped));
        group.spawn("stubborn", async move {
            let _guard = guard;
            std::future::pending().await
        });
        group.spawn("quick", async { Ok(()) });
        shutdown.trigger();
        let error = group.join(Duration::from_secs(3)).await.unwrap_err();
        assert!(error.to_string().contains("3s after the shutdown began: stubborn"), "{error}");
        assert!(*dropped.lock().unwrap(), "the task lives on");
    }

    #[tokio::test(start_paused = true)]
    async fn tasks_that_end_well_end_the_group_well() {
        let shutdown = Shutdown::new();
        let mut group = TaskGroup::new(shutdown.clone());
        group.spawn("one", async { Ok(()) });
        group.join(Duration::ZERO).await.expect("nothing failed");
        assert!(!shutdown.is_triggered());
    }

    #[tokio::test(start_paused = true)]
    async fn a_reconciler_shows_its_status_and_survives_failures() {
        let shutdown = Shutdown::new();
        let periodic =
            Periodic::new("sweep", Schedule::every(Duration::from_secs(60)), Arc::new(SystemClock));
        let runs = Arc::new(Mutex::new(0_u32));
        let counted = Arc::clone(&runs);
        let task = tokio::spawn(periodic.clone().run(
            shutdown.clone(),
            || u64::MAX,
            move |_| {
                let mut runs = counted.lock().unwrap();
                *runs += 1;
                let fails = *runs == 1;
                async move { if fails { Err("not yet".into()) } else { Ok(NextRun::Usual) } }
            },
        ));
        // First run at once and failing, second after the retry delay of 6 s, third after the interval.
        let begin = tokio::time::Instant::now();
        while *runs.lock().unwrap() < 3 {
            assert!(begin.elapsed() < Duration::from_secs(120), "last status: {:?}", periodic.status());
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        let status = periodic.status();
        assert_eq!((status.runs, status.failures, status.failures_in_a_row), (3, 1, 0), "{status:?}");
        assert!(status.next.is_some() && status.running_since.is_none());
        assert!(begin.elapsed() >= Duration::from_secs(66), "{:?}", begin.elapsed());
        shutdown.trigger();
        task.await.expect("no panic").expect("ends well");
        assert_eq!(periodic.status().next, None);
    }

    #[tokio::test(start_paused = true)]
    async fn waking_a_reconciler_makes_it_run_now() {
        let shutdown = Shutdown::new();
        let schedule = Schedule { immediately: false, ..Schedule::every(Duration::from_secs(3600)) };
        let periodic = Periodic::new("sweep", schedule, Arc::new(SystemClock));
        let _task = tokio::spawn(periodic.clone().run(
            shutdown,
            || 0,
            |_| async { Ok(NextRun::In(Duration::from_secs(9))) },
        ));
        periodic.wake();
        let begin = tokio::time::Instant::now();
        while periodic.status().runs == 0 {
            assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", periodic.status());
            tokio::time::advance(Duration::from_millis(10)).await;
        }
    }
}
