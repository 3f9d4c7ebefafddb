//! A pod as the kubelet describes it, from JSON (`/pods`) or from protobuf (the Pods API), and the selectors that it makes.

use std::collections::BTreeMap;

use bonafide_proto::kubelet::core;
use serde::Deserialize;

use super::cgroup::Located;

/// What is used of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pod {
    /// Never given twice.
    pub uid: String,
    /// Given again, to a later pod.
    pub name: String,
    /// The namespace.
    pub namespace: String,
    service_account: String,
    node_name: String,
    labels: BTreeMap<String, String>,
    owners: Vec<Owner>,
    containers: Vec<Container>,
    /// Whether a part of the host's `/dev` is mounted.
    pub host_devices: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Owner {
    kind: String,
    name: String,
    uid: String,
}

/// A container of a pod, as its status has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    kind: Kind,
    /// Its name in the pod.
    pub name: String,
    image: String,
    image_id: String,
    id: String,
    /// Whether the kubelet has seen it start.
    pub running: bool,
    terminated: bool,
    /// Whether it may do what root may.
    pub privileged: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Main,
    Init,
    Ephemeral,
}

/// The kubelet names two pods or containers where there can be one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the kubelet names two pods or containers for the caller's cgroup")]
pub struct Twice;

/// All pods of a node at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing(Vec<Pod>);

/// What a listing says of a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found<'a> {
    /// The container, which has not ended.
    Container(&'a Pod, &'a Container),
    /// The pod, in which the container is not known yet.
    Pod(&'a Pod),
    /// Nothing.
    Nothing,
}

impl Listing {
    /// Reads the answer to `GET /pods`.
    ///
    /// # Errors
    /// It is not a list of pods.
    pub fn from_json(json: &[u8]) -> Result<Self, serde_json::Error> {
        let list: JsonList = serde_json::from_slice(json)?;
        Ok(Self(list.items.unwrap_or_default().into_iter().map(Pod::from).collect()))
    }

    /// Reads encoded pods.
    ///
    /// # Errors
    /// One of them is not a pod.
    pub fn from_proto<B: AsRef<[u8]>>(pods: &[B]) -> Result<Self, prost::DecodeError> {
        let pods = pods.iter().map(|pod| <core::Pod as prost::Message>::decode(pod.as_ref()).map(Pod::from));
        Ok(Self(pods.collect::<Result<_, _>>()?))
    }

    /// The pod and container of a place.
    ///
    /// # Errors
    /// There are two.
    pub fn find(&self, place: &Located<'_>) -> Result<Found<'_>, Twice> {
        let mut found = Found::Nothing;
        for pod in self.0.iter().filter(|pod| place.uid.as_ref().is_none_or(|uid| *uid == pod.uid)) {
            if pod.uid.is_empty() {
                continue;
            }
            let mut containers = pod.containers.iter().filter(|container| container.id == place.id);
            let here = match (containers.next(), containers.next()) {
                (Some(_), Some(_)) => return Err(Twice),
                // It has ended: whatever still lives there is nobody's.
                (Some(container), None) if container.terminated => continue,
                (Some(container), None) => Found::Container(pod, container),
                _ if place.uid.is_some() => Found::Pod(pod),
                _ => continue,
            };
            if found != Found::Nothing {
                return Err(Twice);
            }
            found = here;
        }
        Ok(found)
    }

    /// How many pods have this name now.
    #[must_use]
    pub fn named(&self, namespace: &str, name: &str) -> usize {
        self.0.iter().filter(|pod| pod.namespace == namespace && pod.name == name).count()
    }
}

impl Pod {
    /// The values of the selectors of the pod, as the processes of a container have them when it is known, and with those about
    /// the container itself when it is `named`.
    ///
    /// Whoever creates a pod chooses most of these texts. What is not one line of text makes no selector, nor does what is
    /// absent.
    #[must_use]
    pub fn values(&self, container: Option<&Container>, named: bool) -> Vec<String> {
        let of = |kind| self.containers.iter().filter(move |container| container.kind == kind);
        let mut values = Vec::new();
        let mut add = |name: &str, parts: &[&str]| {
            if parts.iter().all(|part| !part.is_empty()) {
                values.push(format!("{name}:{}", parts.join(":")));
            }
        };
        add("sa", &[&self.service_account]);
        add("ns", &[&self.namespace]);
        add("node-name", &[&self.node_name]);
        add("pod-uid", &[&self.uid]);
        add("pod-name", &[&self.name]);
        // Whoever may attach a container to a pod brings an image that these do not count: it must not pass for the pod's.
        let attached = container.is_some_and(|container| container.kind == Kind::Ephemeral);
        let images = [("pod-image", Kind::Main), ("pod-init-image", Kind::Init)];
        for (name, kind) in images.into_iter().filter(|_| !attached) {
            add(&format!("{name}-count"), &[&of(kind).count().to_string()]);
            for container in of(kind) {
                add(name, &[&container.image]);
                add(name, &[&container.image_id]);
            }
        }
        for owner in &self.owners {
            add("pod-owner", &[&owner.kind, &owner.name]);
            add("pod-owner-uid", &[&owner.kind, &owner.uid]);
        }
        if let Some(container) = container.filter(|_| named) {
            add("container-name", &[&container.name]);
            add("container-image", &[&container.image]);
            add("container-image", &[&container.image_id]);
        }
        // A label may be empty; Kubernetes allows no colon in its key, with which two could make the same selector.
        let labels = self.labels.iter().filter(|(key, _)| !key.contains(':'));
        values.extend(labels.map(|(key, value)| format!("pod-label:{key}:{value}")));
        values.retain(|value| !value.contains(char::is_control));
        values.sort_unstable();
        values.dedup();
        values
    }
}

/// The ID in `runtime://id`.
fn id_of(text: &str) -> String {
    text.split_once("://").map_or("", |(_, id)| id).to_owned()
}

fn is_device_path(path: &str) -> bool {
    let mut parts = path.split('/').filter(|part| !part.is_empty() && *part != ".");
    // With `..` it may be anything.
    path.contains("..") || parts.next().is_none_or(|first| first == "dev")
}

#[derive(Deserialize)]
struct JsonList {
    #[serde(default)]
    items: Option<Vec<JsonPod>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct JsonPod {
    metadata: JsonMetadata,
    spec: JsonSpec,
    status: JsonStatus,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct JsonMetadata {
    uid: String,
    name: String,
    namespace: String,
    labels: Option<BTreeMap<String, String>>,
    owner_references: Option<Vec<Owner>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct JsonSpec {
    service_account_name: String,
    node_name: String,
    volumes: Option<Vec<JsonVolume>>,
    containers: Option<Vec<JsonContainer>>,
    init_containers: Option<Vec<JsonContainer>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct JsonVolume {
    host_path: Option<JsonHostPath>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct JsonHostPath {
    path: String,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct JsonContainer {
    name: String,
    security_context: Option<JsonSecurityContext>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct JsonSecurityContext {
    privileged: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct JsonStatus {
    container_statuses: Option<Vec<JsonContainerStatus>>,
    init_container_statuses: Option<Vec<JsonContainerStatus>>,
    ephemeral_container_statuses: Option<Vec<JsonContainerStatus>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct JsonContainerStatus {
    name: String,
    image: String,
    #[serde(rename = "imageID")]
    image_id: String,
    #[serde(rename = "containerID")]
    container_id: String,
    state: JsonState,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct JsonState {
    running: Option<serde::de::IgnoredAny>,
    terminated: Option<serde::de::IgnoredAny>,
}

impl From<JsonPod> for Pod {
    fn from(pod: JsonPod) -> Self {
        let JsonPod { metadata, spec, status } = pod;
        let declared = spec.containers.into_iter().chain(spec.init_containers).flatten();
        let privileged: Vec<String> = declared
            .filter(|one| {
                one.security_context.as_ref().is_some_and(|context| context.privileged == Some(true))
            })
            .map(|one| one.name)
            .collect();
        let statuses = [
            (Kind::Main, status.container_statuses),
            (Kind::Init, status.init_container_statuses),
            (Kind::Ephemeral, status.ephemeral_container_statuses),
        ];
        let containers = statuses
            .into_iter()
            .flat_map(|(kind, list)| list.into_iter().flatten().map(move |status| (kind, status)));
        Self {
            uid: metadata.uid,
            name: metadata.name,
            namespace: metadata.namespace,
            service_account: spec.service_account_name,
            node_name: spec.node_name,
            labels: metadata.labels.unwrap_or_default(),
            owners: metadata.owner_references.unwrap_or_default(),
            host_devices: spec
                .volumes
                .into_iter()
                .flatten()
                .filter_map(|volume| volume.host_path)
                .any(|host| is_device_path(&host.path)),
            containers: containers
                .map(|(kind, status)| Container {
                    kind,
                    id: id_of(&status.container_id),
                    running: status.state.running.is_some(),
                    terminated: status.state.terminated.is_some(),
                    privileged: privileged.contains(&status.name),
                    name: status.name,
                    image: status.image,
                    image_id: status.image_id,
                })
                .collect(),
        }
    }
}

impl From<core::Pod> for Pod {
    fn from(pod: core::Pod) -> Self {
        let (metadata, spec) = (pod.metadata.unwrap_or_default(), pod.spec.unwrap_or_default());
        let status = pod.status.unwrap_or_default();
        let declared = spec.containers.into_iter().chain(spec.init_containers);
        let privileged: Vec<String> = declared
            .filter(|one| {
                one.security_context.as_ref().is_some_and(|context| context.privileged == Some(true))
            })
            .map(|one| one.name)
            .collect();
        let statuses = [
            (Kind::Main, status.container_statuses),
            (Kind::Init, status.init_container_statuses),
            (Kind::Ephemeral, status.ephemeral_container_statuses),
        ];
        let containers =
            statuses.into_iter().flat_map(|(kind, list)| list.into_iter().map(move |status| (kind, status)));
        let owners = metadata.owner_references.into_iter();
        let hosts = spec.volumes.into_iter().filter_map(|volume| volume.volume_source?.host_path);
        Self {
            uid: metadata.uid,
            name: metadata.name,
            namespace: metadata.namespace,
            service_account: spec.service_account_name,
            node_name: spec.node_name,
            labels: metadata.labels,
            owners: owners
                .map(|owner| Owner { kind: owner.kind, name: owner.name, uid: owner.uid })
                .collect(),
            host_devices: hosts.into_iter().any(|host| is_device_path(&host.path)),
            containers: containers
                .map(|(kind, status)| {
                    let state = status.state.unwrap_or_default();
                    Container {
                        kind,
                        id: id_of(&status.container_id),
                        running: state.running.is_some(),
                        terminated: state.terminated.is_some(),
                        privileged: privileged.contains(&status.name),
                        name: status.name,
                        image: status.image,
                        image_id: status.image_id,
                    }
                })
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use data_encoding::BASE64;

    use super::*;

    const MAIN: &str = "9bca8d63d5fa610783847915bcff0ecac1273e5b4bed3f6fa1b07350e0135961";
    const INIT: &str = "34a2062fd26c805aa8cf814cdfe479322b791f80afb9ea4db02d50375df14b41";
    const UID: &str = "2c48913c-b29f-11e7-9350-020968147796";

    fn place(uid: Option<&str>, id: &'static str) -> Located<'static> {
        Located { uid: uid.map(str::to_owned), id }
    }

    /// The same pod as the Go packages of Kubernetes write it in both forms.
    fn samples() -> [Listing; 2] {
        let text = include_str!("../../../../proto/tests/vectors/kubelet/samples.json");
        let samples: serde_json::Value = serde_json::from_str(text).unwrap();
        let pod = BASE64.decode(samples["pod"].as_str().unwrap().as_bytes()).unwrap();
        let json = samples["pod_list_json"].to_string();
        [Listing::from_json(json.as_bytes()).unwrap(), Listing::from_proto(&[pod]).unwrap()]
    }

    #[test]
    fn both_forms_say_the_same() {
        let [json, proto] = samples();
        assert_eq!(json, proto);
        let Ok(Found::Container(pod, container)) = json.find(&place(Some(UID), MAIN)) else {
            panic!("{json:?}")
        };
        assert!(container.running && container.privileged && pod.host_devices);
        let expected = [
            "container-image:r/web:1",
            "container-image:r/web@sha256:aa",
            "container-name:main",
            "node-name:node-1",
            "ns:shop",
            "pod-image-count:1",
            "pod-image:r/web:1",
            "pod-image:r/web@sha256:aa",
            "pod-init-image-count:1",
            "pod-init-image:r/init:1",
            "pod-init-image:r/init@sha256:bb",
            "pod-label:app:web",
            "pod-name:web-0",
            "pod-owner-uid:StatefulSet:11111111-b29f-11e7-9350-020968147796",
            "pod-owner:StatefulSet:web",
            "pod-uid:2c48913c-b29f-11e7-9350-020968147796",
            "sa:cart",
        ];
        assert_eq!(pod.values(Some(container), true), expected);
        assert!(pod.values(None, false).iter().all(|value| !value.starts_with("container-")));
    }

    #[test]
    fn a_place_is_one_container_of_one_pod() {
        let [listing, _] = samples();
        assert!(matches!(listing.find(&place(None, MAIN)), Ok(Found::Container(..))));
        let unknown: &'static str = "0000000000000000000000000000000000000000000000000000000000000000";
        assert!(matches!(listing.find(&place(Some(UID), unknown)), Ok(Found::Pod(_))));
        assert_eq!(listing.find(&place(Some(UID), INIT)), Ok(Found::Nothing), "it has ended");
        assert_eq!(listing.find(&place(None, INIT)), Ok(Found::Nothing));
        let other = "a2830d0d-b0f0-4ff0-81b5-0ee4e299cf80";
        assert_eq!(listing.find(&place(Some(other), MAIN)), Ok(Found::Nothing));
        let twice = Listing([listing.0.clone(), listing.0.clone()].concat());
        assert_eq!(twice.find(&place(Some(UID), MAIN)), Err(Twice));
        assert_eq!(twice.find(&place(None, MAIN)), Err(Twice));
        assert_eq!((listing.named("shop", "web-0"), twice.named("shop", "web-0")), (1, 2));
    }

    #[test]
    fn hostile_texts_make_no_selectors_of_others() {
        let json = serde_json::json!({"items": [{
            "metadata": {"uid": UID, "name": "x\nk8s:sa:admin", "namespace": "n", "labels":
                {"a:b": "c", "fine": "", "line": "x\ny"}, "ownerReferences": null},
            "spec": {"nodeName": ""},
            "status": {"containerStatuses": [{"name": "c", "image": "i\u{7}", "containerID": format!("docker://{MAIN}")}]}
        }]});
        let listing = Listing::from_json(json.to_string().as_bytes()).unwrap();
        let Ok(Found::Container(pod, container)) = listing.find(&place(Some(UID), MAIN)) else { panic!() };
        let expected = [
            "container-name:c",
            "ns:n",
            "pod-image-count:1",
            "pod-init-image-count:0",
            "pod-label:fine:",
            &format!("pod-uid:{UID}"),
        ];
        assert_eq!(pod.values(Some(container), true), expected);
        assert!(!container.running);
    }

    #[test]
    fn parts_of_the_hosts_devices_are_noticed() {
        for (path, devices) in [
            ("/dev", true),
            ("/dev/nvidia0", true),
            ("/", true),
            ("//./dev/x", true),
            ("/var/../dev", true),
            ("/var/lib/dev", false),
            ("/development", false),
        ] {
            assert_eq!(is_device_path(path), devices, "{path}");
        }
    }
}
