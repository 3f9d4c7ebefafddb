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

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use async_trait::async_trait;
    use bonafide_runtime::listener::{PeerCred, PidfdOrigin};
    use rustix::process::{Pid, PidfdFlags, getegid, geteuid, pidfd_open};

    use super::*;

    const UID: &str = "2c48913c-b29f-11e7-9350-020968147796";

    type Answer = Box<dyn FnMut(usize) -> Result<Listing, SourceError> + Send>;

    struct Scripted {
        asked: Mutex<(usize, Answer)>,
    }

    #[async_trait]
    impl PodSource for Scripted {
        async fn list(&self) -> Result<Listing, SourceError> {
            let mut asked = self.asked.lock().unwrap();
            asked.0 += 1;
            let number = asked.0;
            (asked.1)(number)
        }

        async fn changed(&self) {
            std::future::pending::<()>().await;
        }
    }

    fn pods(answer: impl FnMut(usize) -> Result<Listing, SourceError> + Send + 'static) -> Pods {
        let source = Scripted { asked: Mutex::new((0, Box::new(answer))) };
        let interval = Duration::from_millis(10);
        Pods::new(Box::new(source), Waiting { attempts: 20, interval, cgroup_roots: Vec::new() })
    }

    fn listed() -> Listing {
        let json = serde_json::json!({"items": [{
            "metadata": {"uid": UID, "name": "web-0", "namespace": "shop"},
            "status": {"containerStatuses": [{"name": "c", "containerID": format!("containerd://{}", "a".repeat(64))}]}
        }]});
        Listing::from_json(json.to_string().as_bytes()).unwrap()
    }

    /// This process, in a `/proc` in which it has these cgroups.
    fn caller(folder: &Path, cgroup: &str) -> PinnedCaller {
        let pid = i32::try_from(std::process::id()).unwrap();
        let own = folder.join(pid.to_string());
        std::fs::create_dir_all(&own).unwrap();
        for file in ["stat", "status"] {
            std::fs::copy(format!("/proc/self/{file}"), own.join(file)).unwrap();
        }
        std::fs::write(own.join("cgroup"), cgroup).unwrap();
        let cred = PeerCred {
            pid,
            uid: geteuid().as_raw(),
            gid: getegid().as_raw(),
            pidfd: Some(Arc::new(pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()).unwrap())),
            pidfd_origin: PidfdOrigin::Socket,
        };
        PinnedCaller::pin_observed(&cred, folder, None).unwrap()
    }

    fn inside() -> String {
        format!("0::/kubepods/burstable/pod{UID}/{}\n", "a".repeat(64))
    }

    fn is_container(found: Found<'_>) -> bool {
        matches!(found, Found::Container(..))
    }

    #[tokio::test]
    async fn a_container_is_waited_for_until_it_is_there_or_the_time_is_over() {
        let folder = tempfile::tempdir().unwrap();
        let caller = caller(folder.path(), &inside());
        let late = pods(|number| Ok(if number < 4 { Listing::default() } else { listed() }));
        let placed = late.place(&caller).unwrap();
        assert_eq!(*late.wait(&placed, is_container).await.unwrap(), listed());
        let never = pods(|_| Ok(Listing::default()));
        let placed = never.place(&caller).unwrap();
        let failed = never.wait(&placed, is_container).await;
        assert!(matches!(failed, Err(PodError::Unknown(total)) if total == Duration::from_millis(200)));
        let away = pods(|_| Err(SourceError::TooSlow));
        let placed = away.place(&caller).unwrap();
        assert!(matches!(
            away.wait(&placed, is_container).await,
            Err(PodError::Source(SourceError::TooSlow))
        ));
    }

    #[tokio::test]
    async fn who_moves_meanwhile_is_told_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let caller = caller(folder.path(), &inside());
        let file = folder.path().join(std::process::id().to_string()).join("cgroup");
        for (moved, refused) in [
            (format!("0::/kubepods/burstable/pod{UID}/{}\n", "b".repeat(64)), true),
            ("0::/\n".to_owned(), true),
            ("0::/user.slice/x\n".to_owned(), true),
            // Within its container it may go where it likes.
            (format!("0::/kubepods/burstable/pod{UID}/{}/below\n", "a".repeat(64)), false),
        ] {
            std::fs::write(&file, inside()).unwrap();
            let away = file.clone();
            let moving = pods(move |_| {
                std::fs::write(&away, &moved).unwrap();
                Ok(listed())
            });
            let placed = moving.place(&caller).unwrap();
            let result = moving.wait(&placed, is_container).await;
            assert_eq!(matches!(result, Err(PodError::Moved)), refused, "{result:?}");
        }
    }

    #[tokio::test]
    async fn those_who_wait_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        let caller = caller(folder.path(), &inside());
        let never = pods(|_| Ok(Listing::default()));
        let all = never.places.acquire_many(u32::try_from(MAX_WAITING).unwrap()).await.unwrap();
        let placed = never.place(&caller).unwrap();
        assert!(matches!(never.wait(&placed, is_container).await, Err(PodError::TooMany)));
        drop(all);
    }
}
