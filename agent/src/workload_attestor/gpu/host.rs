//! What the drivers of this machine say of its GPUs, from `/proc` and `/sys`. What is not there is not said.
//!
//! NVIDIA's management library would say more (architecture, NVLink cliques, which process uses what). Loading it at run time takes
//! code that this project forbids itself (`unsafe`), so those facts are left out.

use std::collections::BTreeMap;
use std::path::Path;

/// A device by what tells it from others.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Device {
    /// A whole GPU of NVIDIA by its UUID.
    Gpu(String),
    /// A partition of one by its UUID.
    Mig(String),
    /// A whole GPU of NVIDIA by the number of its device node.
    Minor(u32),
    /// A GPU of AMD by its address, or a partition by its name.
    Pci(String),
    /// Anything else by a name that is good for comparison.
    Other(String),
}

/// What is known of a device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// The model, in lower case with hyphens.
    pub product: Option<String>,
    /// The version of its firmware as the driver says; nobody has attested it.
    pub vbios: Option<String>,
    /// The version of its driver.
    pub driver: Option<String>,
}

/// What is known of this machine's devices.
#[derive(Debug, Clone, Default)]
pub struct HostFacts {
    nvidia: BTreeMap<String, Facts>,
    minors: BTreeMap<u32, String>,
    amd: BTreeMap<String, Facts>,
}

impl HostFacts {
    /// Reads them below these roots.
    #[must_use]
    pub fn read(proc: &Path, sys: &Path) -> Self {
        let mut facts = Self::default();
        let driver = text(&proc.join("driver/nvidia/version")).as_deref().and_then(nvidia_driver);
        for entry in entries(&proc.join("driver/nvidia/gpus")) {
            let Some(information) = text(&entry.join("information")) else { continue };
            let line = |name: &str| {
                let found = information.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
                found.map(str::trim).filter(|value| !value.is_empty())
            };
            // Absent until the driver has used the device once.
            let Some(uuid) = line("GPU UUID").and_then(|uuid| uuid.strip_prefix("GPU-")) else { continue };
            let uuid = uuid.to_ascii_lowercase();
            if let Some(minor) = line("Device Minor").and_then(|minor| minor.parse().ok()) {
                facts.minors.insert(minor, uuid.clone());
            }
            let vbios = line("Video BIOS").filter(|vbios| !vbios.contains('?')).and_then(version);
            let known = Facts { product: line("Model").and_then(product), vbios, driver: driver.clone() };
            facts.nvidia.insert(uuid, known);
        }
        let driver = text(&sys.join("module/amdgpu/version")).as_deref().map(str::trim).and_then(version);
        for entry in entries(&sys.join("bus/pci/drivers/amdgpu")) {
            let Some(address) = entry.file_name().and_then(|name| name.to_str()) else { continue };
            if text(&entry.join("vendor")).is_none_or(|vendor| vendor.trim() != "0x1002") {
                continue;
            }
            let read = |name: &str| text(&entry.join(name)).map(|value| value.trim().to_owned());
            let known = Facts {
                product: read("product_name").as_deref().and_then(product),
                vbios: read("vbios_version").as_deref().and_then(version),
                driver: driver.clone(),
            };
            facts.amd.insert(address.to_ascii_lowercase(), known);
        }
        facts
    }

    /// What is known of one.
    #[must_use]
    pub fn of(&self, device: &Device) -> Option<&Facts> {
        match device {
            Device::Gpu(uuid) => self.nvidia.get(uuid),
            Device::Minor(minor) => self.nvidia.get(self.minors.get(minor)?),
            Device::Pci(address) => self.amd.get(address),
            Device::Mig(_) | Device::Other(_) => None,
        }
    }

    /// Whether two names mean one device: a GPU may be named by its UUID or by its number.
    #[must_use]
    pub fn same(&self, one: &Device, other: &Device) -> bool {
        let resolved = |device: &Device| match device {
            Device::Minor(minor) => self.minors.get(minor).cloned().map(Device::Gpu),
            _ => None,
        };
        let left = resolved(one);
        let right = resolved(other);
        left.as_ref().unwrap_or(one) == right.as_ref().unwrap_or(other)
    }
}

/// The version in the line `NVRM version:` of `/proc/driver/nvidia/version`.
fn nvidia_driver(content: &str) -> Option<String> {
    let line = content.lines().find_map(|line| line.strip_prefix("NVRM version:"))?;
    let mut words = line.split_ascii_whitespace();
    version(words.find(|word| word.contains('.') && word.starts_with(|first: char| first.is_ascii_digit()))?)
}

fn version(text: &str) -> Option<String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b'+');
    let good = (1..=64).contains(&text.len()) && text.bytes().all(plain);
    good.then(|| text.to_ascii_lowercase())
}

/// A model's name in lower case, with a hyphen for each run of anything else than letters, digits and dots.
fn product(text: &str) -> Option<String> {
    let mut name = String::new();
    for letter in text.chars().take(128) {
        if letter.is_ascii_alphanumeric() || letter == '.' {
            name.push(letter.to_ascii_lowercase());
        } else if !name.ends_with('-') {
            name.push('-');
        }
    }
    let name = name.trim_matches('-');
    (!name.is_empty()).then(|| name.to_owned())
}

fn entries(folder: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.take(MAX_ENTRIES).map(|entry| entry.path()).collect()
}

fn text(path: &Path) -> Option<String> {
    use std::io::Read as _;
    let mut content = Vec::new();
    std::fs::File::open(path).ok()?.take(MAX_FILE).read_to_end(&mut content).ok()?;
    String::from_utf8(content).ok()
}

const MAX_ENTRIES: usize = 256;
const MAX_FILE: u64 = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, path: &str, content: &str) {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    #[test]
    fn drivers_files_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let (proc, sys) = (folder.path().join("proc"), folder.path().join("sys"));
        let version = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build  (x@y)\nGCC version:  gcc 13.2.0\n";
        write(&proc, "driver/nvidia/version", version);
        let gpu = |uuid: &str, minor: u32| {
            format!(
                "Model: \t\t NVIDIA H200\nIRQ:   \t\t 24\nGPU UUID: \t {uuid}\nVideo BIOS: \t 96.00.A5.00.01\nDevice Minor: \t {minor}\n"
            )
        };
        let uuid = "aaaaaaaa-0000-0000-0000-000000000001";
        write(&proc, "driver/nvidia/gpus/0000:19:00.0/information", &gpu(&format!("GPU-{uuid}"), 3));
        write(
            &proc,
            "driver/nvidia/gpus/0000:1a:00.0/information",
            "Model: \t NVIDIA H200\nVideo BIOS: \t ??.??\n",
        );
        write(&proc, "driver/nvidia/gpus/0000:1b:00.0/other", "");
        write(&sys, "module/amdgpu/version", "6.8.5\n");
        write(&sys, "bus/pci/drivers/amdgpu/0000:c1:00.0/vendor", "0x1002\n");
        write(&sys, "bus/pci/drivers/amdgpu/0000:c1:00.0/product_name", "AMD Instinct MI300X OAM\n");
        write(&sys, "bus/pci/drivers/amdgpu/0000:c1:00.0/vbios_version", "113-M3000100-102\n");
        write(&sys, "bus/pci/drivers/amdgpu/bind", "");

        let facts = HostFacts::read(&proc, &sys);
        let found = facts.of(&Device::Gpu(uuid.to_owned())).unwrap();
        assert_eq!(found.product.as_deref(), Some("nvidia-h200"));
        assert_eq!(found.vbios.as_deref(), Some("96.00.a5.00.01"));
        assert_eq!(found.driver.as_deref(), Some("580.159.04"));
        assert_eq!(facts.of(&Device::Minor(3)), Some(found));
        assert_eq!(facts.of(&Device::Minor(4)), None);
        assert!(facts.same(&Device::Minor(3), &Device::Gpu(uuid.to_owned())));
        assert!(!facts.same(&Device::Minor(4), &Device::Gpu(uuid.to_owned())));
        let amd = facts.of(&Device::Pci("0000:c1:00.0".to_owned())).unwrap();
        assert_eq!(amd.product.as_deref(), Some("amd-instinct-mi300x-oam"));
        assert_eq!((amd.vbios.as_deref(), amd.driver.as_deref()), (Some("113-m3000100-102"), Some("6.8.5")));
        let nothing = HostFacts::read(&folder.path().join("x"), &folder.path().join("x"));
        assert_eq!(nothing.of(&Device::Minor(3)), None);
    }

    #[test]
    fn odd_texts_are_no_facts() {
        assert_eq!(
            nvidia_driver("NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.1  Tue"),
            Some("470.1".into())
        );
        for content in ["", "NVRM version:", "NVRM version: x y", "GCC version: 1.2"] {
            assert_eq!(nvidia_driver(content), None, "{content}");
        }
        assert_eq!(product("  -- "), None);
        assert_eq!(product("A\n:b"), Some("a-b".to_owned()));
        assert_eq!(version("1:2"), None);
    }
}
