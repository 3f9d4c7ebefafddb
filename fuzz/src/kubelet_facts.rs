//! What is read about pods: `/proc/<pid>/cgroup`, pods as JSON and as protobuf, the kubelet's list of allocations.
//!
//! Laws: what a workload appends to its cgroup path does not change which pod it is in, and what it puts in front makes it none; what a pod's
//! creator wrote makes selectors of one line and of their own kind; allocations of others change nothing but whether a device is shared.

use bonafide_agent::workload_attestor::gpu::devices;
use bonafide_agent::workload_attestor::gpu::host::HostFacts;
use bonafide_agent::workload_attestor::kubernetes::cgroup::{Located, locate, node_roots};
use bonafide_agent::workload_attestor::kubernetes::pod::{Found, Listing};
use bonafide_proto::kubelet::podresources::ListPodResourcesResponse;
use prost::Message as _;

/// The container whose pods are described.
pub const ID: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

/// Whether the bytes are any of these and say something.
pub fn check(data: &[u8]) -> bool {
    let json = Listing::from_json(data).is_ok_and(|listing| pods(&listing));
    let proto = Listing::from_proto(&[data]).is_ok_and(|listing| pods(&listing));
    cgroups(data) | json | proto | allocations(data)
}

fn cgroups(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    for root in node_roots(text) {
        assert!(root.starts_with('/') && text.contains(&root));
    }
    let Ok(Some(found)) = locate(text, &[]) else { return false };
    assert!(found.id.len() == 64 && found.id.bytes().all(|byte| byte.is_ascii_hexdigit()));
    if let Some(uid) = &found.uid {
        assert!(matches!(uid.len(), 32 | 36) && !uid.contains('_'));
    }
    if text.lines().count() == 1 {
        let line = text.lines().next().unwrap_or_default();
        let below = format!("{line}/kubepods/pod{}/{}", "0".repeat(32), "0".repeat(64));
        assert_eq!(locate(&below, &[]).as_ref(), Ok(&Some(found.clone())), "a name below a container counts");
        if found.uid.is_some()
            && let Some((head, path)) =
                line.rsplit_once(':').filter(|(head, _)| head.matches(':').count() == 1)
        {
            let forged = format!("{head}:/user.slice{path}");
            assert!(!matches!(locate(&forged, &[]), Ok(Some(_))), "a pod in a user's slice counts");
        }
    }
    true
}

fn pods(listing: &Listing) -> bool {
    let place = Located { uid: None, id: ID };
    let Ok(Found::Container(pod, container)) = listing.find(&place) else { return false };
    assert!(!pod.uid.is_empty() && listing.named(&pod.namespace, &pod.name) > 0);
    let (all, fewer) = (pod.values(Some(container), true), pod.values(Some(container), false));
    for value in &all {
        assert!(!value.contains(char::is_control));
        let kinds = ["sa:", "ns:", "node-name:", "pod-", "container-name:", "container-image:"];
        assert!(kinds.iter().any(|kind| value.starts_with(kind)), "{value}");
    }
    assert!(fewer.iter().all(|value| all.contains(value) && !value.starts_with("container-")));
    true
}

fn allocations(data: &[u8]) -> bool {
    let Ok(list) = ListPodResourcesResponse::decode(data) else { return false };
    let list = list.pod_resources;
    let Some(pod) = list.first() else { return false };
    let Some(container) = pod.containers.first() else { return false };
    let name = (pod.namespace.as_str(), pod.name.as_str(), container.name.as_str());
    let host = HostFacts::default();
    let Ok(values) = devices::values(&list, name, &host, true) else { return false };
    for value in &values {
        assert!(value.len() < 1024 && value.bytes().all(|byte| byte.is_ascii_graphic()), "{value:?}");
    }
    assert!(values.iter().filter(|value| value.starts_with("uuid:")).count() <= 16);
    assert!(
        !values.contains(&"shared:true".to_owned()) || !values.iter().any(|value| value.starts_with("uuid:"))
    );
    // Alone on the node it has the same devices.
    let own = [pod.clone()];
    if let Ok(alone) = devices::values(&own, name, &host, true) {
        let count = |values: &[String]| {
            values.iter().filter(|value| value.starts_with("count")).cloned().collect::<Vec<_>>()
        };
        assert_eq!(count(&alone), count(&values));
    }
    !values.is_empty()
}
