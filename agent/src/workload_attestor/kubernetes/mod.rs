//! What is known of the pods of this node, for the attestors `k8s` and `gpu`.
//!
//! A process is in a container by its cgroups, and the kubelet says what that container is. It knows of a container a moment after
//! it has started, so whoever asks early is made to wait: as long as the caller lives, stays where it is and the time is not
//! over. Each waits for itself and holds up nobody; what the kubelet is asked, it is asked once for all of them.

pub mod cgroup;
pub mod pod;
pub(crate) mod shared;
pub mod source;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;

use self::cgroup::{LocateError, Located, locate, node_roots};
use self::pod::{Found, Listing, Twice};
use self::shared::Shared;
use self::source::{PodSource, SourceError};
use super::AttestError;
use crate::caller::{CallerError, PinnedCaller};

/// How long a container is waited for, and where pods are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// How often the kubelet is asked at most when nothing says that something changed.
    pub attempts: u32,
    /// The time between two of these questions.
    pub interval: Duration,
    /// Where in the tree of cgroups pods are, beside the root.
    pub cgroup_roots: Vec<String>,
}

impl Default for Waiting {
    fn default() -> Self {
        Self { attempts: 60, interval: Duration::from_millis(500), cgroup_roots: Vec::new() }
    }
}

impl Waiting {
    /// The least time between two questions of any kind: the kubelet makes its lists anew for each.
    fn pause(&self) -> Duration {
        self.interval / 5
    }
}

/// Why nothing can be said of a process in a pod.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    /// The caller is gone.
    #[error(transparent)]
    Caller(#[from] CallerError),
    /// Its cgroups say nothing that can be believed.
    #[error(transparent)]
    Place(#[from] LocateError),
    /// The kubelet cannot be asked.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The kubelet says too much.
    #[error(transparent)]
    Twice(#[from] Twice),
    /// The caller went to other cgroups meanwhile.
    #[error("the caller was moved to another cgroup while the kubelet was asked")]
    Moved,
    /// The kubelet knows nothing of the container.
    #[error("the kubelet does not know of the container within {0:?}; has its pod been deleted?")]
    Unknown(Duration),
    /// Too many wait.
    #[error("{MAX_WAITING} callers wait for the kubelet already")]
    TooMany,
}

impl From<PodError> for AttestError {
    fn from(error: PodError) -> Self {
        match error {
            PodError::Caller(error) => Self::Caller(error),
            error => Self::Service { what: "the kubelet", source: Arc::new(error) },
        }
    }
}

/// The pods of this node.
pub struct Pods {
    source: Box<dyn PodSource>,
    shared: Shared<Arc<Listing>, SourceError>,
    waiting: Waiting,
    places: Semaphore,
}

/// A caller's cgroups, and where they say that it is.
pub struct Placed<'a> {
    text: String,
    caller: &'a PinnedCaller,
    roots: &'a [String],
}

impl Pods {
    /// The pods that this source lists.
    #[must_use]
    pub fn new(source: Box<dyn PodSource>, mut waiting: Waiting) -> Self {
        let own = std::fs::read_to_string(Path::new("/proc/self/cgroup")).unwrap_or_default();
        waiting.cgroup_roots.extend(node_roots(&own));
        let shared = Shared::new(waiting.pause());
        Self { source, shared, waiting, places: Semaphore::new(MAX_WAITING) }
    }

    /// The least time between two questions.
    pub(crate) fn pause(&self) -> Duration {
        self.waiting.pause()
    }

    /// Looks where a caller is.
    ///
    /// # Errors
    /// It is gone.
    pub fn place<'a>(&'a self, caller: &'a PinnedCaller) -> Result<Placed<'a>, PodError> {
        Ok(Placed { text: caller.read("cgroup")?, caller, roots: &self.waiting.cgroup_roots })
    }

    /// All pods, asked for from now on.
    ///
    /// # Errors
    /// The kubelet has no answer.
    pub async fn list(&self) -> Result<Arc<Listing>, SourceError> {
        self.shared.since(Instant::now(), || async { self.source.list().await.map(Arc::new) }).await
    }

    /// Waits for a listing that has the place in it, to the satisfaction of `good`; the caller was there before and is there after.
    ///
    /// # Errors
    /// [`PodError`]; the time is over.
    pub async fn wait(
        &self,
        placed: &Placed<'_>,
        good: impl Fn(Found<'_>) -> bool + Send,
    ) -> Result<Arc<Listing>, PodError> {
        let Some(place) = placed.located()? else { return Ok(Arc::default()) };
        let total = self.waiting.interval * self.waiting.attempts;
        let deadline = Instant::now() + total;
        let mut held = None;
        loop {
            let listing = self.list().await?;
            // Whatever it says: of a caller that is gone or elsewhere it says nothing.
            placed.check()?;
            if good(listing.find(&place)?) {
                return Ok(listing);
            }
            let now = Instant::now();
            if now >= deadline {
                return Err(PodError::Unknown(total));
            }
            if held.is_none() {
                held = Some(self.places.try_acquire().map_err(|_| PodError::TooMany)?);
                tracing::debug!(caller = ?placed.caller, ?place, "the kubelet does not know of the container yet");
            }
            // Not at the same moments as the others: who asks later asks with those who come later.
            let next = (now + self.waiting.interval).min(deadline);
            let _ = tokio::time::timeout_at(next, self.source.changed()).await;
        }
    }
}

impl Placed<'_> {
    /// Where the caller is, if in a pod.
    ///
    /// # Errors
    /// [`LocateError`].
    pub fn located(&self) -> Result<Option<Located<'_>>, LocateError> {
        locate(&self.text, self.roots)
    }

    /// The caller is still there.
    ///
    /// # Errors
    /// It is gone, or somewhere else.
    pub fn check(&self) -> Result<(), PodError> {
        let now = self.caller.read("cgroup")?;
        if now != self.text && locate(&now, self.roots)? != self.located()? {
            return Err(PodError::Moved);
        }
        Ok(())
    }
}

const MAX_WAITING: usize = 4096;
