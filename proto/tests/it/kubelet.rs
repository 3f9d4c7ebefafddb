//! What the kubelet answers, as the Go packages of Kubernetes encode it: the parts that we know are where we look.

use std::fs;

use bonafide_proto::kubelet::core::Pod;
use bonafide_proto::kubelet::podresources::ListPodResourcesResponse;
use bonafide_proto::kubelet::pods::{EventType, ListPodsResponse, WatchPodsEvent};
use data_encoding::BASE64;
use prost::Message as _;

use crate::vectors::folder;

fn sample(name: &str) -> Vec<u8> {
    let text = fs::read_to_string(folder().join("kubelet/samples.json")).unwrap();
    let samples: serde_json::Value = serde_json::from_str(&text).unwrap();
    BASE64.decode(samples[name].as_str().unwrap().as_bytes()).unwrap()
}

#[test]
fn a_pod_is_understood() {
    let list = ListPodsResponse::decode(sample("list_pods").as_slice()).unwrap();
    assert_eq!(list.pods, [sample("pod")]);
    let pod = Pod::decode(list.pods[0].as_slice()).unwrap();
    let (metadata, spec, status) = (pod.metadata.unwrap(), pod.spec.unwrap(), pod.status.unwrap());
    assert_eq!((metadata.name.as_str(), metadata.namespace.as_str()), ("web-0", "shop"));
    assert_eq!(metadata.uid, "2c48913c-b29f-11e7-9350-020968147796");
    assert_eq!(metadata.labels["app"], "web");
    let owner = &metadata.owner_references[0];
    assert_eq!((owner.kind.as_str(), owner.name.as_str()), ("StatefulSet", "web"));
    assert_eq!(owner.uid, "11111111-b29f-11e7-9350-020968147796");
    assert_eq!((spec.service_account_name.as_str(), spec.node_name.as_str()), ("cart", "node-1"));
    let source = spec.volumes[0].volume_source.as_ref().unwrap();
    assert_eq!(source.host_path.as_ref().unwrap().path, "/dev");
    assert_eq!(spec.containers[0].security_context.as_ref().unwrap().privileged, Some(true));
    assert_eq!(spec.init_containers[0].name, "init");
    let main = &status.container_statuses[0];
    assert_eq!((main.name.as_str(), main.image.as_str()), ("main", "r/web:1"));
    assert_eq!(main.image_id, "r/web@sha256:aa");
    assert!(main.container_id.starts_with("containerd://9bca8d63"));
    assert!(main.state.as_ref().unwrap().running.is_some());
    assert!(status.init_container_statuses[0].state.as_ref().unwrap().terminated.is_some());
    assert_eq!(status.ephemeral_container_statuses[0].name, "debug");
}

#[test]
fn marks_and_allocations_are_understood() {
    let event = WatchPodsEvent::decode(sample("watch").as_slice()).unwrap();
    assert_eq!(event.r#type(), EventType::InitialSyncComplete);
    let list = ListPodResourcesResponse::decode(sample("resources").as_slice()).unwrap();
    let pod = &list.pod_resources[0];
    assert_eq!((pod.name.as_str(), pod.namespace.as_str()), ("web-0", "shop"));
    let container = &pod.containers[0];
    assert_eq!(container.name, "main");
    assert_eq!(container.devices[0].resource_name, "nvidia.com/gpu");
    assert_eq!(container.devices[0].device_ids, ["GPU-0", "GPU-1::2"]);
    let claim = &container.dynamic_resources[0];
    assert_eq!((claim.claim_name.as_str(), claim.claim_namespace.as_str()), ("c", "shop"));
    let device = &claim.claim_resources[0];
    assert_eq!(device.cdi_devices[0].name, "k8s.gpu.nvidia.com/claim=u-gpu-0");
    assert_eq!((device.driver_name.as_str(), device.pool_name.as_str()), ("gpu.nvidia.com", "node-1"));
    assert_eq!((device.device_name.as_str(), device.share_id.as_deref()), ("gpu-0", Some("share-1")));
}
