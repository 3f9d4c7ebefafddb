//! What the kubelet allocated to a container, as selectors: pure functions of its list.
//!
//! Names of devices are what a plugin likes to write, so they are read with suspicion: one that is too long, holds anything but
//! visible ASCII, or is repeated makes the whole list of that container unusable. Whether a device is shared is seen only in the
//! list of the whole node.

use std::collections::{BTreeMap, BTreeSet};

use bonafide_proto::kubelet::podresources::{ContainerResources, DynamicResource, PodResources};

use super::host::{Device, Facts, HostFacts};

/// Why nothing is said of a container's devices.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// Two pods of the list have the name.
    #[error("the kubelet lists two pods or containers of this name")]
    Twice,
    /// A name of a device, a resource or a claim that no plugin gives.
    #[error("the kubelet lists a device or resource with a name that cannot be right: {0:?}")]
    Name(String),
    /// So many that the list cannot be right.
    #[error("the kubelet lists more than {MAX_DEVICES} devices for one container")]
    TooMany,
}

/// Selector values of a container's devices; none when it has no GPU.
///
/// # Errors
/// [`DeviceError`]: the list cannot be relied on.
pub fn values(
    list: &[PodResources],
    (namespace, pod, container): (&str, &str, &str),
    host: &HostFacts,
    uuids: bool,
) -> Result<Vec<String>, DeviceError> {
    let Some(mine) = find(list, namespace, pod, container)? else { return Ok(Vec::new()) };
    let held = Held::read(mine)?;
    let mut elsewhere = BTreeSet::new();
    for other in list.iter().flat_map(|pod| &pod.containers) {
        if !std::ptr::eq(other, mine) {
            keys(other, &mut elsewhere);
        }
    }
    Ok(held.values(&elsewhere, host, uuids))
}

/// Whether the list has devices for the container at all.
pub fn any(
    list: &[PodResources],
    (namespace, pod, container): (&str, &str, &str),
) -> Result<bool, DeviceError> {
    let mine = find(list, namespace, pod, container)?;
    Ok(mine.is_some_and(|mine| !mine.devices.is_empty() || !mine.dynamic_resources.is_empty()))
}

/// The one container of that name; none when the kubelet has allocated nothing to it.
fn find<'a>(
    list: &'a [PodResources],
    namespace: &str,
    pod: &str,
    container: &str,
) -> Result<Option<&'a ContainerResources>, DeviceError> {
    let mut pods = list.iter().filter(|one| one.namespace == namespace && one.name == pod);
    let (first, second) = (pods.next(), pods.next());
    if second.is_some() {
        return Err(DeviceError::Twice);
    }
    let mut containers =
        first.into_iter().flat_map(|pod| &pod.containers).filter(|one| one.name == container);
    let (first, second) = (containers.next(), containers.next());
    if second.is_some() { Err(DeviceError::Twice) } else { Ok(first) }
}

/// What a container holds.
#[derive(Default)]
struct Held {
    vendors: BTreeSet<&'static str>,
    resources: BTreeSet<String>,
    /// The devices by what is one piece of hardware or one partition of it, and whether it was given in shares.
    devices: BTreeMap<Device, bool>,
    profiles: BTreeSet<String>,
    claims: Vec<String>,
    channels: BTreeSet<u32>,
    /// Given by a claim: that nobody else has the claim cannot be seen here.
    claimed: bool,
}

impl Held {
    fn read(container: &ContainerResources) -> Result<Self, DeviceError> {
        let mut held = Self::default();
        let count: usize = container.devices.iter().map(|devices| devices.device_ids.len()).sum();
        let claimed = container.dynamic_resources.iter().map(|claim| claim.claim_resources.len());
        if count.saturating_add(claimed.sum()) > MAX_DEVICES {
            return Err(DeviceError::TooMany);
        }
        for devices in &container.devices {
            let Some(kind) = plugin(&devices.resource_name) else { continue };
            held.resources.insert(checked(&devices.resource_name)?.to_owned());
            held.vendors.insert(kind.vendor);
            if let Some(profile) = kind.profile {
                held.profiles.insert(profile.to_owned());
            }
            let mut seen = BTreeSet::new();
            for id in &devices.device_ids {
                if !seen.insert(checked(id)?) {
                    return Err(DeviceError::Name(shown(id)));
                }
                if kind.monitors {
                    continue;
                }
                let (device, share) = device(kind.vendor, id)?;
                *held.devices.entry(device).or_default() |= share || kind.shared;
            }
        }
        for claim in &container.dynamic_resources {
            held.claim(claim)?;
        }
        Ok(held)
    }

    fn claim(&mut self, claim: &DynamicResource) -> Result<(), DeviceError> {
        for part in &claim.claim_resources {
            let driver = part.driver_name.as_str();
            let vendor = DRIVERS.iter().find(|(name, _)| *name == driver).map(|(_, vendor)| *vendor);
            if vendor.is_none() && driver != COMPUTE_DOMAIN {
                continue;
            }
            let name = checked(&part.device_name)?;
            let (space, claim) = (checked(&claim.claim_namespace)?, checked(&claim.claim_name)?);
            self.claims.push(format!("dra:driver:{driver}"));
            self.claims.push(format!("dra:claim:{space}/{claim}"));
            self.claims.push(format!("dra:device:{name}"));
            for cdi in &part.cdi_devices {
                let uid = claim_uid(checked(&cdi.name)?, driver, name);
                self.claims.extend(uid.map(|uid| format!("dra:claim-uid:{uid}")));
            }
            if let Some(vendor) = vendor {
                self.vendors.insert(vendor);
                self.claimed = true;
                let device = claimed_device(vendor, driver, checked(&part.pool_name)?, name);
                *self.devices.entry(device).or_default() |= part.share_id.is_some();
            } else if let Some(channel) = name.strip_prefix("channel-").and_then(|number| number.parse().ok())
            {
                self.channels.insert(channel);
            }
        }
        Ok(())
    }

    fn values(&self, elsewhere: &BTreeSet<Device>, host: &HostFacts, uuids: bool) -> Vec<String> {
        let mut values: Vec<String> = Vec::new();
        values.extend(self.vendors.iter().map(|vendor| format!("vendor:{vendor}")));
        values.extend(self.resources.iter().map(|resource| format!("resource:{resource}")));
        values.extend(self.claims.iter().cloned());
        values.extend(self.channels.iter().map(|channel| format!("imex-channel:{channel}")));
        values.extend(self.profiles.iter().map(|profile| format!("mig-profile:{profile}")));
        let count = self.devices.len();
        if count > 0 {
            values.push(format!("count:{count}"));
            let steps = [1, 2, 4, 8, 16].into_iter().filter(|step| *step <= count);
            values.extend(steps.map(|step| format!("count-ge:{step}")));
            let shared = self
                .devices
                .iter()
                .any(|(device, share)| *share || elsewhere.iter().any(|other| host.same(device, other)));
            if shared {
                values.push("shared:true".to_owned());
            } else if !self.claimed && self.devices.keys().all(|device| !matches!(device, Device::Other(_))) {
                // Plugins name shares of one GPU as they like; only what is known to be a whole device can be said to be alone.
                values.push("shared:false".to_owned());
            }
            for device in self.devices.keys().take(MAX_NAMED) {
                match device {
                    Device::Mig(uuid) => values.push(format!("mig-uuid:MIG-{uuid}")),
                    Device::Gpu(uuid) if uuids && !shared => values.push(format!("uuid:GPU-{uuid}")),
                    _ => {}
                }
            }
            values.extend(self.common(host));
        }
        values.sort_unstable();
        values.dedup();
        values
    }

    /// What the host's drivers say of each of the devices alike.
    fn common(&self, host: &HostFacts) -> Vec<String> {
        let mut facts = self.devices.keys().map(|device| host.of(device));
        let Some(mut common) = facts.next().flatten().cloned() else { return Vec::new() };
        for other in facts {
            let Some(other) = other else { return Vec::new() };
            let keep = |fact: &mut Option<String>, other: &Option<String>| {
                if fact != other {
                    *fact = None;
                }
            };
            keep(&mut common.product, &other.product);
            keep(&mut common.vbios, &other.vbios);
            keep(&mut common.driver, &other.driver);
        }
        let Facts { product, vbios, driver } = common;
        let mut values = Vec::new();
        values.extend(product.map(|product| format!("product:{product}")));
        values.extend(vbios.map(|vbios| format!("vbios:{vbios}")));
        if let Some(driver) = driver {
            let major =
                driver.split('.').next().filter(|major| major.bytes().all(|byte| byte.is_ascii_digit()));
            values
                .extend(major.filter(|major| !major.is_empty()).map(|major| format!("driver-major:{major}")));
            values.push(format!("driver:{driver}"));
        }
        values
    }
}

/// The devices of a container whose names can be read; others are nobody's to us.
fn keys(container: &ContainerResources, keys: &mut BTreeSet<Device>) {
    for devices in &container.devices {
        let Some(kind) = plugin(&devices.resource_name).filter(|kind| !kind.monitors) else { continue };
        let ids = devices.device_ids.iter().filter_map(|id| checked(id).ok());
        keys.extend(ids.filter_map(|id| Some(device(kind.vendor, id).ok()?.0)));
    }
    for part in container.dynamic_resources.iter().flat_map(|claim| &claim.claim_resources) {
        let vendor = DRIVERS.iter().find(|(name, _)| *name == part.driver_name);
        if let (Some((driver, vendor)), Ok(pool), Ok(name)) =
            (vendor, checked(&part.pool_name), checked(&part.device_name))
        {
            keys.insert(claimed_device(vendor, driver, pool, name));
        }
    }
}

/// What a resource of a device plugin says.
struct Plugin<'a> {
    vendor: &'static str,
    profile: Option<&'a str>,
    shared: bool,
    /// Gives a view of all devices and none of them.
    monitors: bool,
}

fn plugin(resource: &str) -> Option<Plugin<'_>> {
    let (domain, name) = resource.split_once('/')?;
    let (base, shared) = name.strip_suffix(".shared").map_or((name, false), |base| (base, true));
    let profile = base.strip_prefix("mig-").filter(|profile| is_profile(profile));
    let vendor = match domain {
        "nvidia.com" if base == "gpu" || profile.is_some() => "nvidia",
        // Partitions have resources of their own: cpx_nps4 and the like.
        "amd.com" if name == "gpu" || name.starts_with("cpx") || name.starts_with("spx") => "amd",
        "gpu.intel.com" => "intel",
        _ => return None,
    };
    let monitors = vendor == "intel" && name.ends_with("monitoring");
    Some(Plugin { vendor, profile: profile.filter(|_| vendor == "nvidia"), shared, monitors })
}

/// `1g.10gb`, with parts such as `+me` behind it.
fn is_profile(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'+' | b'-' | b'_');
    !text.is_empty() && text.len() <= 32 && text.bytes().all(plain)
}

/// The device that a plugin's name means, and whether it is a share of it.
fn device(vendor: &'static str, id: &str) -> Result<(Device, bool), DeviceError> {
    let wrong = || DeviceError::Name(shown(id));
    let digits =
        |text: &str| !text.is_empty() && text.len() <= 6 && text.bytes().all(|byte| byte.is_ascii_digit());
    if let Some((base, replica)) = id.split_once("::") {
        if vendor != "nvidia" || !digits(replica) {
            return Err(wrong());
        }
        return Ok((named(vendor, base).ok_or_else(wrong)?, true));
    }
    if vendor == "intel" {
        let (card, share) =
            id.strip_prefix("card").and_then(|rest| rest.split_once('-')).ok_or_else(wrong)?;
        let card = Some(card).filter(|card| digits(card) && digits(share)).ok_or_else(wrong)?;
        // That there are several shares shows when others hold them.
        return Ok((Device::Other(format!("intel/card{card}")), false));
    }
    Ok((named(vendor, id).ok_or_else(wrong)?, false))
}

fn named(vendor: &'static str, id: &str) -> Option<Device> {
    if id.is_empty() || id.contains(':') && vendor == "nvidia" {
        return None;
    }
    let uuid =
        |prefix: &str| id.strip_prefix(prefix).filter(|uuid| is_uuid(uuid)).map(str::to_ascii_lowercase);
    if vendor == "amd" {
        return Some(Device::Pci(id.to_ascii_lowercase()));
    }
    Some(uuid("GPU-").map(Device::Gpu).or_else(|| uuid("MIG-").map(Device::Mig)).unwrap_or_else(|| {
        // Other plugins have other names; they say which device it is and no more.
        Device::Other(format!("{vendor}/{id}"))
    }))
}

/// The device that a claim's driver means.
fn claimed_device(vendor: &str, driver: &str, pool: &str, name: &str) -> Device {
    let minor = (vendor == "nvidia").then(|| name.strip_prefix("gpu-")?.parse().ok()).flatten();
    minor.map_or_else(|| Device::Other(format!("{driver}/{pool}/{name}")), Device::Minor)
}

/// The claim's UID in `k8s.<driver>/claim=<uid>-<device>`.
fn claim_uid<'a>(cdi: &'a str, driver: &str, device: &str) -> Option<&'a str> {
    let rest = cdi.strip_prefix("k8s.")?.strip_prefix(driver)?.strip_prefix("/claim=")?;
    rest.strip_suffix(device)?.strip_suffix('-').filter(|uid| is_uuid(uid))
}

fn is_uuid(text: &str) -> bool {
    let lengths: Vec<usize> = text.split('-').map(str::len).collect();
    lengths == [8, 4, 4, 4, 12] && text.bytes().all(|byte| byte == b'-' || byte.is_ascii_hexdigit())
}

/// A name as those who give them write it.
fn checked(name: &str) -> Result<&str, DeviceError> {
    let good = (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic());
    if good { Ok(name) } else { Err(DeviceError::Name(shown(name))) }
}

fn shown(name: &str) -> String {
    name.chars().take(64).collect()
}

const DRIVERS: [(&str, &str); 3] =
    [("gpu.nvidia.com", "nvidia"), ("gpu.amd.com", "amd"), ("gpu.intel.com", "intel")];
const COMPUTE_DOMAIN: &str = "compute-domain.nvidia.com";
/// Kubernetes allows 253 for most names.
const MAX_NAME: usize = 253;
const MAX_DEVICES: usize = 1024;
/// Of how many devices the UUIDs are said.
const MAX_NAMED: usize = 16;

#[cfg(test)]
mod tests {
    use bonafide_proto::kubelet::podresources::{CdiDevice, ClaimResource, ContainerDevices};

    use super::*;

    const G: &str = "GPU-aaaaaaaa-0000-0000-0000-000000000001";
    const H: &str = "GPU-aaaaaaaa-0000-0000-0000-000000000002";
    const M: &str = "MIG-aaaaaaaa-0000-0000-0000-000000000003";

    fn container(name: &str, resource: &str, ids: &[&str]) -> ContainerResources {
        let ids = ids.iter().map(|id| (*id).to_owned()).collect();
        let devices = ContainerDevices { resource_name: resource.to_owned(), device_ids: ids };
        ContainerResources { name: name.to_owned(), devices: vec![devices], dynamic_resources: Vec::new() }
    }

    fn pod(name: &str, containers: Vec<ContainerResources>) -> PodResources {
        PodResources { name: name.to_owned(), namespace: "n".to_owned(), containers }
    }

    fn of(list: &[PodResources], uuids: bool) -> Result<Vec<String>, DeviceError> {
        values(list, ("n", "p", "c"), &HostFacts::default(), uuids)
    }

    fn single(resource: &str, ids: &[&str]) -> Result<Vec<String>, DeviceError> {
        of(&[pod("p", vec![container("c", resource, ids)])], true)
    }

    #[test]
    fn each_vendors_forms_are_understood() {
        assert_eq!(
            single("nvidia.com/gpu", &[G, H]).unwrap(),
            [
                "count-ge:1",
                "count-ge:2",
                "count:2",
                "resource:nvidia.com/gpu",
                "shared:false",
                &format!("uuid:{G}"),
                &format!("uuid:{H}"),
                "vendor:nvidia",
            ]
        );
        assert_eq!(
            single("nvidia.com/mig-1g.10gb", &[M]).unwrap(),
            [
                "count-ge:1",
                "count:1",
                "mig-profile:1g.10gb",
                &format!("mig-uuid:{M}"),
                "resource:nvidia.com/mig-1g.10gb",
                "shared:false",
                "vendor:nvidia",
            ]
        );
        assert!(single("nvidia.com/gpu", &[M]).unwrap().contains(&format!("mig-uuid:{M}")));
        // A plugin with names of its own says which device, and no UUID.
        let found = single("nvidia.com/gpu", &["nvidia0", "nvidia0/gi1"]).unwrap();
        assert!(found.contains(&"count:2".to_owned()) && !found.iter().any(|value| value.contains("uuid")));
        let amd = single("amd.com/gpu", &["0000:19:00.0", "amdgpu_xcp_3"]).unwrap();
        assert!(amd.contains(&"vendor:amd".to_owned()) && amd.contains(&"count:2".to_owned()), "{amd:?}");
        let intel = single("gpu.intel.com/i915", &["card0-0", "card0-1", "card1-0"]).unwrap();
        assert!(intel.contains(&"vendor:intel".to_owned()) && intel.contains(&"count:2".to_owned()));
        let all = single("gpu.intel.com/i915_monitoring", &["all"]).unwrap();
        assert_eq!(all, ["resource:gpu.intel.com/i915_monitoring", "vendor:intel"]);
        for resource in ["cpu", "nvidia.com/pgpu", "example.com/gpu", "rdma/hca", "nvidia.com/mig-", ""] {
            assert_eq!(single(resource, &[G]), Ok(vec![]), "{resource}");
        }
    }

    #[test]
    fn replicas_are_one_shared_device() {
        let shares = [format!("{G}::0"), format!("{G}::3"), format!("{H}::0")];
        let shares: Vec<&str> = shares.iter().map(String::as_str).collect();
        for resource in ["nvidia.com/gpu", "nvidia.com/gpu.shared"] {
            let found = single(resource, &shares).unwrap();
            assert!(found.contains(&"count:2".to_owned()) && found.contains(&"shared:true".to_owned()));
            assert!(!found.iter().any(|value| value.starts_with("uuid")), "{found:?}");
        }
        assert!(single("nvidia.com/gpu.shared", &[G]).unwrap().contains(&"shared:true".to_owned()));
    }

    #[test]
    fn a_device_of_two_containers_is_shared_and_not_named() {
        for other in [
            pod("q", vec![container("x", "nvidia.com/gpu", &[G])]),
            pod("q", vec![container("x", "nvidia.com/gpu", &[H, &format!("{G}::1")])]),
        ] {
            let list = [pod("p", vec![container("c", "nvidia.com/gpu", &[G])]), other];
            let found = of(&list, true).unwrap();
            assert!(found.contains(&"shared:true".to_owned()), "{found:?}");
            assert!(!found.iter().any(|value| value.starts_with("uuid") || value == "shared:false"));
        }
        let beside = vec![
            container("c", "gpu.intel.com/xe", &["card0-0"]),
            container("d", "gpu.intel.com/xe", &["card0-1"]),
        ];
        assert!(of(&[pod("p", beside)], true).unwrap().contains(&"shared:true".to_owned()));
    }

    #[test]
    fn claims_are_said_with_their_uid() {
        let uid = "11111111-b29f-11e7-9350-020968147796";
        let claim = |driver: &str, device: &str, share: Option<&str>| {
            let cdi = CdiDevice { name: format!("k8s.{driver}/claim={uid}-{device}") };
            let part = ClaimResource {
                cdi_devices: vec![cdi],
                driver_name: driver.to_owned(),
                pool_name: "node".to_owned(),
                device_name: device.to_owned(),
                share_id: share.map(str::to_owned),
            };
            let claim = DynamicResource {
                claim_name: "train".to_owned(),
                claim_namespace: "n".to_owned(),
                claim_resources: vec![part],
            };
            let resources =
                ContainerResources { name: "c".to_owned(), devices: vec![], dynamic_resources: vec![claim] };
            of(&[pod("p", vec![resources])], true).unwrap()
        };
        let found = claim("gpu.nvidia.com", "gpu-3", None);
        assert_eq!(
            found,
            [
                "count-ge:1",
                "count:1",
                "dra:claim-uid:11111111-b29f-11e7-9350-020968147796",
                "dra:claim:n/train",
                "dra:device:gpu-3",
                "dra:driver:gpu.nvidia.com",
                "vendor:nvidia",
            ],
            "whether somebody else has the claim is not known"
        );
        assert!(claim("gpu.nvidia.com", "gpu-3", Some("s")).contains(&"shared:true".to_owned()));
        let channel = claim("compute-domain.nvidia.com", "channel-7", None);
        assert!(
            channel.contains(&"imex-channel:7".to_owned())
                && !channel.iter().any(|value| value.starts_with("count"))
        );
        assert_eq!(claim("nic.example.com", "gpu-3", None), Vec::<String>::new());
        assert_eq!(claim_uid("k8s.gpu.nvidia.com/claim=x-gpu-3", "gpu.nvidia.com", "gpu-3"), None);
    }

    #[test]
    fn hostile_names_end_it() {
        let long = "x".repeat(10 << 20);
        for id in [
            "",
            long.as_str(),
            "GPU-\n",
            "a b",
            "a\u{7}",
            "ü",
            &format!("{G}::0::1"),
            &format!("{G}::"),
            &format!("{G}::x"),
            &format!("{G}:x"),
            "::1",
        ] {
            let error = single("nvidia.com/gpu", &[G, id]).unwrap_err();
            assert!(matches!(&error, DeviceError::Name(name) if name.chars().count() <= 64), "{error:?}");
        }
        for id in ["card0", "card-1", "cardx-1", "card0-x", "card0::1", "all"] {
            assert!(single("gpu.intel.com/i915", &[id]).is_err(), "{id}");
        }
        assert!(single("amd.com/gpu", &["0000:19:00.0::1"]).is_err());
        assert!(single("nvidia.com/gpu", &[G, G]).is_err(), "the same twice");
        let many: Vec<String> = (0..=MAX_DEVICES).map(|number| format!("nvidia{number}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(single("nvidia.com/gpu", &many), Err(DeviceError::TooMany));
        // Somebody else's names are not ours to answer for.
        let list = [
            pod("p", vec![container("c", "nvidia.com/gpu", &[G])]),
            pod("q", vec![container("x", "nvidia.com/gpu", &["\n", ""])]),
        ];
        assert!(of(&list, false).unwrap().contains(&"shared:false".to_owned()));
    }

    #[test]
    fn names_of_pods_and_containers_are_found_once_or_not_at_all() {
        let mine = || pod("p", vec![container("c", "nvidia.com/gpu", &[G])]);
        assert_eq!(of(&[mine(), mine()], true), Err(DeviceError::Twice));
        let two = || container("c", "nvidia.com/gpu", &[G]);
        assert_eq!(of(&[pod("p", vec![two(), two()])], true), Err(DeviceError::Twice));
        assert_eq!(of(&[pod("q", vec![two()])], true), Ok(vec![]));
        assert_eq!(of(&[pod("p", vec![container("d", "nvidia.com/gpu", &[G])])], true), Ok(vec![]));
        let elsewhere = PodResources { namespace: "m".to_owned(), ..mine() };
        assert_eq!(of(&[elsewhere], true), Ok(vec![]));
    }
}
