//! Evidence of GPUs: what an attested node may say of its devices, and what follows from it.
//!
//! Never alone: the caller is an agent that a node attestor admitted, and its key is part of each nonce. What is good becomes selectors of
//! type `gpu_node` on the node's record, for a bounded time. What is not takes nothing but these selectors from the node.
//!
//! Challenges are kept in memory, one for each agent: who asks again gets another one, and after a restart or at another server an
//! agent simply asks anew.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bonafide_identity::{EVIDENCE, Selector, SelectorError, SelectorSet, SpiffeId, Timestamp};
use bonafide_pki::evidence::{
    Architecture, CHALLENGE_SIZE, Compared, DeviceEvidence, Feature, Measurements, NodeEvidenceError, Policy,
    ReferenceError, References, VerifiedDevice, device_nonce, verify_node,
};
use bonafide_pki::{Random, TrustRoots, X509Error, pem};
use data_encoding::HEXLOWER;

/// The settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuEvidenceSettings {
    /// PEM files with the roots of device certificates.
    pub root_paths: Vec<PathBuf>,
    /// The folder of reference values.
    pub references_path: Option<PathBuf>,
    /// Whether a version without reference values is taken.
    pub measurements: Measurements,
    /// How long selectors last.
    pub max_age: Duration,
    /// Whether each device gets a selector of its own.
    pub device_selectors: bool,
}

/// Why the files of the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum GpuEvidenceFilesError {
    /// One cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// One is too large.
    #[error("{} is larger than {MAX_FILE} bytes", .0.display())]
    Size(PathBuf),
    /// One has no certificates.
    #[error("{} holds no certificates in PEM", .0.display())]
    NoRoots(PathBuf),
    /// A certificate is broken.
    #[error("{}: {source}", path.display())]
    Root {
        /// Where.
        path: PathBuf,
        /// What is wrong.
        source: X509Error,
    },
    /// Reference values are broken.
    #[error("{}: {source}", path.display())]
    Reference {
        /// Where.
        path: PathBuf,
        /// What is wrong.
        source: ReferenceError,
    },
}

/// Judges evidence.
pub struct GpuEvidence {
    settings: GpuEvidenceSettings,
    roots: TrustRoots,
    references: References,
    memory: Mutex<Memory>,
}

#[derive(Default)]
struct Memory {
    challenges: HashMap<SpiffeId, ([u8; CHALLENGE_SIZE], Timestamp)>,
    /// Who showed a device last, and until when that counts.
    devices: HashMap<[u8; 32], (SpiffeId, Timestamp)>,
}

/// Good evidence.
#[derive(Debug, PartialEq, Eq)]
pub struct Judgement {
    /// What the node gets.
    pub selectors: SelectorSet,
    /// Until when.
    pub until: Timestamp,
    /// The hashes of the devices' keys, in hexadecimal.
    pub devices: Vec<String>,
    /// Another node that showed one of the devices, whose evidence still counts.
    pub also_at: Option<SpiffeId>,
}

/// Why evidence is refused.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// There is no such challenge.
    #[error("the challenge was not given to this agent, was used, or is too old: ask for another one")]
    Challenge,
    /// The evidence.
    #[error(transparent)]
    Evidence(#[from] NodeEvidenceError),
    /// A fact that makes no selector.
    #[error("a fact about a device cannot be expressed: {0}")]
    Selector(#[from] SelectorError),
}

impl Refusal {
    /// A short name for metrics.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Challenge => "challenge",
            Self::Evidence(refused) => refused.error.code(),
            Self::Selector(_) => "malformed",
        }
    }
}

impl GpuEvidence {
    /// Reads the files that the settings name.
    ///
    /// # Errors
    /// [`GpuEvidenceFilesError`].
    pub fn open(settings: GpuEvidenceSettings) -> Result<Self, GpuEvidenceFilesError> {
        let mut certificates = Vec::new();
        for path in &settings.root_paths {
            let none = || GpuEvidenceFilesError::NoRoots(path.clone());
            let blocks = pem::decode_all(&read(path)?).map_err(|_| none())?;
            let found = blocks.into_iter().filter(|(label, _)| label == "CERTIFICATE");
            let found: Vec<_> = found.map(|(_, der)| der).collect();
            if found.is_empty() {
                return Err(none());
            }
            // One by one, so that the file is named.
            TrustRoots::from_der(found.iter().map(Vec::as_slice))
                .map_err(|source| GpuEvidenceFilesError::Root { path: path.clone(), source })?;
            certificates.extend(found);
        }
        let roots = TrustRoots::from_der(certificates.iter().map(Vec::as_slice))
            .map_err(|source| GpuEvidenceFilesError::Root { path: settings.root_paths[0].clone(), source })?;
        let mut references = References::new();
        if let Some(folder) = &settings.references_path {
            let unreadable = |source| GpuEvidenceFilesError::Read { path: folder.clone(), source };
            let entries = std::fs::read_dir(folder).map_err(unreadable)?;
            let mut paths = entries
                .map(|entry| entry.map(|entry| entry.path()))
                .collect::<Result<Vec<_>, _>>()
                .map_err(unreadable)?;
            paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
            paths.sort();
            for path in paths {
                let added = references.add_json(&read(&path)?);
                added.map_err(|source| GpuEvidenceFilesError::Reference { path, source })?;
            }
        }
        Ok(Self { settings, roots, references, memory: Mutex::default() })
    }

    /// A new challenge for an agent, in place of one that it may have.
    pub fn challenge(&self, agent: &SpiffeId, random: &dyn Random, now: Timestamp) -> [u8; CHALLENGE_SIZE] {
        let mut challenge = [0; CHALLENGE_SIZE];
        random.fill(&mut challenge);
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        // There are never more than agents that asked within two minutes.
        memory.challenges.retain(|_, (_, until)| *until > now);
        memory.challenges.insert(agent.clone(), (challenge, now.saturating_add(CHALLENGE_LIFE)));
        challenge
    }

    /// Judges what an agent shows under a challenge, which is used up by that. `key` is the agent's public key (SPKI).
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn judge(
        &self,
        agent: &SpiffeId,
        key: &[u8],
        challenge: &[u8],
        devices: &[DeviceEvidence],
        now: Timestamp,
    ) -> Result<Judgement, Refusal> {
        let given = self.memory.lock().unwrap_or_else(PoisonError::into_inner).challenges.remove(agent);
        let challenge = given.filter(|(given, until)| given == challenge && *until > now);
        let (challenge, _) = challenge.ok_or(Refusal::Challenge)?;
        let policy = Policy {
            roots: &self.roots,
            references: &self.references,
            measurements: self.settings.measurements,
            now,
        };
        let verified = verify_node(devices, |index| device_nonce(&challenge, key, index), &policy)?;
        let selectors = selectors(&verified, self.settings.device_selectors)?;
        let until = now.saturating_add(self.settings.max_age);
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        memory.devices.retain(|_, (_, until)| *until > now);
        let mut also_at = None;
        for device in &verified {
            let before = memory.devices.insert(device.device_key, (agent.clone(), until));
            also_at = before.map(|(other, _)| other).filter(|other| other != agent).or(also_at);
        }
        let devices = verified.iter().map(|device| HEXLOWER.encode(&device.device_key)).collect();
        Ok(Judgement { selectors, until, devices, also_at })
    }
}

/// The selectors that good evidence gives. What is not known is left out; only revocation is always said, as `unknown`, for it is not
/// looked at here.
fn selectors(devices: &[VerifiedDevice], each_device: bool) -> Result<SelectorSet, SelectorError> {
    let gpus = || devices.iter().filter(|device| device.architecture != Architecture::Switch);
    let mut values = BTreeSet::from([
        "attested:true".to_owned(),
        format!("attested-count:{}", gpus().count()),
        "revocation:unknown".to_owned(),
    ]);
    values.extend(
        devices.iter().map(|device| format!("arch:{}", device.architecture.product().to_lowercase())),
    );
    if devices.iter().all(|device| device.firmware == Compared::Match) {
        values.insert("fw-rim:match".to_owned());
    }
    if gpus().all(|device| device.driver == Compared::Match) {
        values.insert("driver-rim:match".to_owned());
    }
    if gpus()
        .all(|device| device.feature == Some(Feature::ProtectedPcie) || device.protected_pcie == Some(true))
    {
        values.insert("cc-mode:ppcie".to_owned());
    } else if gpus().all(confidential) {
        values.insert("cc-mode:on".to_owned());
    }
    if each_device {
        values.extend(devices.iter().map(|device| format!("device:{}", HEXLOWER.encode(&device.device_key))));
    }
    values.iter().map(|value| Selector::new(EVIDENCE, value)).collect()
}

/// A Hopper GPU gives reports in confidential-computing mode only; a Blackwell GPU also without, so there the report must say it.
fn confidential(gpu: &VerifiedDevice) -> bool {
    gpu.architecture == Architecture::Hopper || gpu.feature == Some(Feature::Multiple)
}

fn read(path: &Path) -> Result<Vec<u8>, GpuEvidenceFilesError> {
    use std::io::Read as _;
    let unreadable = |source| GpuEvidenceFilesError::Read { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(unreadable)?;
    let mut content = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut content).map_err(unreadable)?;
    if content.len() as u64 > MAX_FILE {
        return Err(GpuEvidenceFilesError::Size(path.to_owned()));
    }
    Ok(content)
}

const CHALLENGE_LIFE: Duration = Duration::from_secs(120);
const MAX_FILE: u64 = 1 << 20;
