//! Which GPUs the kubelet allocated to the caller's container.
//!
//! Allocated is not accessible: a privileged container, or one whose runtime believes what an image says of itself
//! (`NVIDIA_VISIBLE_DEVICES`), may use more than it was given. So these selectors say what the kubelet gave, and nothing is said
//! of containers that may reach the host's devices anyway. No variable, file or device node of the workload is looked at.
//!
//! The kubelet's list names pods and does not identify them, and a name is given again. So the list is read between two looks at
//! the pods: before it the pod with the caller's UID has the name and its container runs, and after it that is still so and no
//! other pod has the name. UIDs are never given twice; what was listed in between was therefore allocated to that pod. What
//! changed meanwhile is looked at again, three times; then nothing is said, and the attestor fails.

pub mod devices;
pub mod host;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bonafide_identity::Selector;
use bonafide_proto::kubelet::podresources::pod_resources_lister_client::PodResourcesListerClient;
use bonafide_proto::kubelet::podresources::{ListPodResourcesRequest, PodResources};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use self::devices::DeviceError;
use self::host::HostFacts;
use super::kubernetes::cgroup::Located;
use super::kubernetes::pod::{Container, Found, Listing, Pod};
use super::kubernetes::shared::Shared;
use super::kubernetes::source::{SourceError, connect, refused};
use super::kubernetes::{Placed, PodError, Pods};
use super::{AttestError, WorkloadAttestor};
use crate::caller::PinnedCaller;
use crate::metrics;

/// Where allocations are asked for, and what is said of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuConfig {
    /// The kubelet's socket.
    pub pod_resources_socket: PathBuf,
    /// Whether the UUIDs of whole GPUs are said.
    pub device_uuids: bool,
}

impl Default for GpuConfig {
    fn default() -> Self {
        Self { pod_resources_socket: DEFAULT_POD_RESOURCES_SOCKET.into(), device_uuids: false }
    }
}

/// The socket unless the configuration says otherwise.
pub const DEFAULT_POD_RESOURCES_SOCKET: &str = "/var/lib/kubelet/pod-resources/kubelet.sock";

const READERS: usize = 4;

/// Why nothing is said of a container's GPUs.
#[derive(Debug, thiserror::Error)]
enum GpuError {
    #[error(transparent)]
    Pod(#[from] PodError),
    #[error("the kubelet's allocations cannot be read")]
    Source(#[from] SourceError),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error("the drivers of this machine do not say what its devices are")]
    Host,
    #[error("the pod or its container changed while its devices were looked at")]
    Unsteady,
}

impl GpuError {
    fn reason(&self) -> &'static str {
        match self {
            Self::Pod(_) => "pod",
            Self::Source(_) => "kubelet",
            Self::Device(_) => "devices",
            Self::Host => "host",
            Self::Unsteady => "unsteady",
        }
    }
}

impl From<GpuError> for AttestError {
    fn from(error: GpuError) -> Self {
        metrics::gpu_withheld(error.reason());
        match error {
            GpuError::Pod(error) => error.into(),
            error => Self::Service { what: "the kubelet", source: Arc::new(error) },
        }
    }
}

/// The attestor of type `gpu`.
pub struct Gpu {
    config: GpuConfig,
    pods: Arc<Pods>,
    allocations: Shared<Arc<Vec<PodResources>>, SourceError>,
    proc: PathBuf,
    sys: PathBuf,
    /// How many read the drivers' files at once.
    reading: Arc<Semaphore>,
}

impl Gpu {
    /// An attestor that asks for allocations to these pods.
    #[must_use]
    pub fn new(config: GpuConfig, pods: Arc<Pods>) -> Self {
        // The kubelet limits how often, and others ask it as well.
        let allocations = Shared::new(pods.pause());
        Self {
            config,
            pods,
            allocations,
            proc: "/proc".into(),
            sys: "/sys".into(),
            reading: Arc::new(Semaphore::new(READERS)),
        }
    }

    /// With the drivers' files below other roots than `/proc` and `/sys`.
    #[must_use]
    pub fn with_roots(self, proc: PathBuf, sys: PathBuf) -> Self {
        Self { proc, sys, ..self }
    }

    /// All allocations, asked for from now on.
    async fn allocations(&self) -> Result<Arc<Vec<PodResources>>, SourceError> {
        let ask = || async {
            let answer = tokio::time::timeout(PATIENCE, list(&self.config.pod_resources_socket)).await;
            let answer = answer.unwrap_or(Err(SourceError::TooSlow));
            metrics::kubelet_asked("pod_resources", answer.is_ok());
            answer.map(Arc::new)
        };
        self.allocations.since(Instant::now(), ask).await
    }

    /// What the host's drivers say. A driver that hangs must hold up nobody but those who have its devices.
    async fn host(&self) -> Result<HostFacts, GpuError> {
        let read = async {
            let one = Arc::clone(&self.reading).acquire_owned().await;
            let (proc, sys) = (self.proc.clone(), self.sys.clone());
            tokio::task::spawn_blocking(move || {
                let _one = one;
                HostFacts::read(&proc, &sys)
            })
            .await
        };
        match tokio::time::timeout(PATIENCE, read).await {
            Ok(Ok(host)) => Ok(host),
            Ok(Err(_)) | Err(_) => Err(GpuError::Host),
        }
    }

    /// One pass; nothing when something changed.
    async fn look(&self, placed: &Placed<'_>, place: &Located<'_>) -> Result<Option<Vec<String>>, GpuError> {
        let good = |found: Found<'_>| matches!(found, Found::Container(_, container) if container.running);
        let before = self.pods.wait(placed, good).await?;
        let Some((pod, container)) = owner(&before, place)? else { return Ok(None) };
        if container.privileged || pod.host_devices {
            tracing::debug!(
                pod = pod.uid,
                "a container that may reach the host's devices has no gpu selectors"
            );
            return Ok(Some(Vec::new()));
        }
        let list = match self.allocations().await {
            Ok(list) => list,
            // Others spend from the kubelet's limit as well.
            Err(SourceError::Refused { code: tonic::Code::ResourceExhausted, .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let name = (pod.namespace.as_str(), pod.name.as_str(), container.name.as_str());
        if !devices::any(&list, name)? {
            return Ok(Some(Vec::new()));
        }
        let host = self.host().await?;
        let values = devices::values(&list, name, &host, self.config.device_uuids)?;
        if values.is_empty() {
            // To say nothing is never wrong.
            return Ok(Some(values));
        }
        let after = self.pods.list().await?;
        placed.check()?;
        let still = owner(&after, place)?;
        let same = still.is_some_and(|(then, its)| {
            then.uid == pod.uid
                && (&then.namespace, &then.name) == (&pod.namespace, &pod.name)
                && its.name == container.name
        });
        // An older or a younger pod of the same name may be the one that is meant.
        let alone = |listing: &Listing| listing.named(&pod.namespace, &pod.name) == 1;
        if !same || !alone(&before) || !alone(&after) {
            return Ok(None);
        }
        Ok(Some(values))
    }

    async fn values(&self, caller: &PinnedCaller) -> Result<Vec<String>, GpuError> {
        let placed = self.pods.place(caller)?;
        let Some(place) = placed.located().map_err(PodError::from)? else { return Ok(Vec::new()) };
        for _ in 0..PASSES {
            if let Some(values) = self.look(&placed, &place).await? {
                return Ok(values);
            }
        }
        Err(GpuError::Unsteady)
    }
}

/// The pod and the running container of a place.
fn owner<'a>(
    listing: &'a Listing,
    place: &Located<'_>,
) -> Result<Option<(&'a Pod, &'a Container)>, GpuError> {
    match listing.find(place).map_err(PodError::from)? {
        Found::Container(pod, container) if container.running => Ok(Some((pod, container))),
        _ => Ok(None),
    }
}

#[async_trait]
impl WorkloadAttestor for Gpu {
    fn kind(&self) -> &'static str {
        KIND
    }

    async fn attest(&self, caller: &PinnedCaller) -> Result<Vec<Selector>, AttestError> {
        let values = self.values(caller).await?;
        values.iter().map(|value| Ok(Selector::new(KIND, value)?)).collect()
    }
}

async fn list(socket: &Path) -> Result<Vec<PodResources>, SourceError> {
    let mut client =
        PodResourcesListerClient::new(connect(socket).await?).max_decoding_message_size(MAX_ANSWER);
    let answer = client.list(ListPodResourcesRequest {}).await.map_err(|status| refused(&status))?;
    Ok(answer.into_inner().pod_resources)
}

const KIND: &str = "gpu";
/// The first and three more.
const PASSES: usize = 4;
const PATIENCE: Duration = Duration::from_secs(10);
const MAX_ANSWER: usize = 16 << 20;
