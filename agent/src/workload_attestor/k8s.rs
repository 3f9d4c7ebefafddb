//! The pod and container that a process is in, as the kubelet says.
//!
//! Selectors are SPIRE's. Which container it is comes from the caller's cgroups ([`kubernetes::cgroup`](super::kubernetes::cgroup)), and
//! everything else from the kubelet, asked after the caller was looked at; afterwards it must still live and be there. A pod's
//! UID is never given twice, so a name that was given to another pod changes nothing.
//!
//! Containers of all kinds are looked up, ephemeral ones as well, which SPIRE leaves out. A container that the kubelet calls
//! terminated is nobody's. Labels of namespaces (`ns-label`) are not among what a kubelet knows.

use std::sync::Arc;

use async_trait::async_trait;
use bonafide_identity::Selector;

use super::kubernetes::pod::Found;
use super::kubernetes::source::{Kubelet, KubeletConfig, PodsApi, Preferred};
use super::kubernetes::{PodError, Pods, Waiting};
use super::{AttestError, WorkloadAttestor};
use crate::caller::PinnedCaller;

/// How the kubelet is asked, and what for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct K8sConfig {
    /// The socket of the Pods API, which is preferred where it is.
    pub pods_api_socket: std::path::PathBuf,
    /// The kubelet's port.
    pub kubelet: KubeletConfig,
    /// The variable of the agent's environment that has the node's name when the configuration has none.
    pub node_name_env: String,
    /// How long a container is waited for.
    pub waiting: Waiting,
    /// Leaves out the selectors of the container, and does not wait for it.
    pub disable_container_selectors: bool,
}

impl K8sConfig {
    /// The pods, asked for as this says.
    #[must_use]
    pub fn pods(&self) -> Arc<Pods> {
        let mut kubelet = self.kubelet.clone();
        if kubelet.node_name.is_none() {
            kubelet.node_name = std::env::var(&self.node_name_env).ok().filter(|name| !name.is_empty());
        }
        let source = Preferred::new(PodsApi::new(self.pods_api_socket.clone()), Kubelet::new(kubelet));
        Arc::new(Pods::new(Box::new(source), self.waiting.clone()))
    }
}

/// The attestor of type `k8s`.
pub struct K8s {
    pods: Arc<Pods>,
    without_container: bool,
}

impl K8s {
    /// An attestor that asks for these pods.
    #[must_use]
    pub fn new(config: &K8sConfig, pods: Arc<Pods>) -> Self {
        Self { pods, without_container: config.disable_container_selectors }
    }
}

#[async_trait]
impl WorkloadAttestor for K8s {
    fn kind(&self) -> &'static str {
        KIND
    }

    async fn attest(&self, caller: &PinnedCaller) -> Result<Vec<Selector>, AttestError> {
        let placed = self.pods.place(caller)?;
        let Some(place) = placed.located().map_err(PodError::from)? else { return Ok(Vec::new()) };
        let good = |found: Found<'_>| match found {
            Found::Container(..) => true,
            Found::Pod(_) => self.without_container,
            Found::Nothing => false,
        };
        let listing = self.pods.wait(&placed, good).await?;
        let values = match listing.find(&place).map_err(PodError::from)? {
            Found::Container(pod, container) => pod.values(Some(container), !self.without_container),
            Found::Pod(pod) if self.without_container => pod.values(None, false),
            _ => Vec::new(),
        };
        values.iter().map(|value| Ok(Selector::new(KIND, value)?)).collect()
    }
}

const KIND: &str = "k8s";
/// The variable that has the node's name unless the configuration says otherwise.
pub const DEFAULT_NODE_NAME_ENV: &str = "MY_NODE_NAME";
