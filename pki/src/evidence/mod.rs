//! Attestation evidence of NVIDIA GPUs (Hopper, Blackwell) and NVSwitches (LS10): a device signs what it runs.
//!
//! Evidence is a report and a chain of certificates. The report is an SPDM 1.1 GET_MEASUREMENTS request with its
//! MEASUREMENTS response (DMTF DSP0274, sections 10.11.1 and 10.11.2), signed by the device with ECDSA on P-384 over exactly those
//! bytes. The leaf certificate belongs to the firmware that runs (DICE), the one above it to the device itself, and the chain
//! ends at a root that the verifier pins.
//!
//! [`verify_device`] answers for one device, [`verify_node`] for all that a node shows at once. Nothing here talks to anybody, and no
//! time is read: reference values come as [`References`], which [`rim`] makes once from signed files.
//!
//! What evidence does not say: any process that may open a device can have it sign any nonce, so evidence is a fact about a
//! node beside its identity, never the identity. Secure boot and debug fuses have no field of their own: they are among the
//! measured values, and hold when these match their references.

mod certificate;
mod reference;
mod report;
pub mod rim;
mod xml;

use std::collections::BTreeSet;
use std::fmt;

use bonafide_identity::Timestamp;

pub use certificate::Architecture;
pub use reference::{Reference, ReferenceError, ReferenceKind, References};
pub use report::{Feature, Report};

use crate::digest::Sha256;
use crate::x509::{TrustRoots, VerifyError, verify_chain};
use certificate::DeviceIdentity;

/// What a device gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceEvidence {
    /// Request and response, as they were exchanged.
    pub report: Vec<u8>,
    /// DER certificates, leaf first.
    pub chain: Vec<Vec<u8>>,
}

/// A device whose evidence is good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedDevice {
    /// What kind of device it is.
    pub architecture: Architecture,
    /// SHA-256 of the public key (SPKI) of the device's own certificate: its lasting identity.
    pub device_key: [u8; 32],
    /// The identifier in that certificate.
    pub pdi: [u8; 8],
    /// The driver's version; switches have none.
    pub driver_version: Option<String>,
    /// The firmware's version, as `96.00.9F.00.01`.
    pub firmware_version: String,
    /// How the GPU is protected, where the report says so.
    pub feature: Option<Feature>,
    /// Whether protected PCIe is on, where the report says so.
    pub protected_pcie: Option<bool>,
    /// Whether the driver's measurements were compared, and are as they should be.
    pub driver: Compared,
    /// The same for the firmware.
    pub firmware: Compared,
    /// Identifiers of the devices that it says it is connected to.
    neighbours: BTreeSet<[u8; 8]>,
}

/// What became of a comparison that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compared {
    /// All measurements are among the reference values.
    Match,
    /// There are no reference values for this version.
    NoReference,
    /// The device has no such part.
    Nothing,
}

/// Whether reference values must be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measurements {
    /// A version without reference values is refused.
    Required,
    /// A version without reference values is accepted, and not said to match.
    Preferred,
}

/// What evidence is held against.
pub struct Policy<'a> {
    /// The roots of device certificates.
    pub roots: &'a TrustRoots,
    /// The reference values.
    pub references: &'a References,
    /// Whether they must be there.
    pub measurements: Measurements,
    /// The time.
    pub now: Timestamp,
}

/// Why evidence is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EvidenceError {
    /// The report cannot be read.
    #[error("the report is malformed: {0}")]
    Malformed(&'static str),
    /// The chain does not lead to a pinned root.
    #[error("the certificate chain is refused: {0}")]
    Chain(#[from] VerifyError),
    /// The chain is good, but is not that of a known device.
    #[error("the certificates are not those of a known device: {0}")]
    Certificate(String),
    /// The report is an answer to another nonce.
    #[error("the report answers another nonce: collect evidence anew for each challenge")]
    Nonce,
    /// The signature is not the leaf's over these bytes.
    #[error("the signature of the report is wrong")]
    Signature,
    /// The firmware of the certificate is not that of the report.
    #[error("the firmware identifier of the report is not that of its certificate")]
    Firmware,
    /// The report is of another chip than the certificates.
    #[error("the report is of another chip than its certificates")]
    Chip,
    /// The reference values for this version are missing.
    #[error("no reference values for {kind} {version} of {product}: import them")]
    NoReference {
        /// Driver or firmware.
        kind: ReferenceKind,
        /// The chip.
        product: &'static str,
        /// The version.
        version: String,
    },
    /// A measurement is not among its reference values.
    #[error("measurement {index} of the {kind} is not one of its reference values (version {version})")]
    Measurement {
        /// Driver or firmware.
        kind: ReferenceKind,
        /// The version.
        version: String,
        /// The index that the reference values use, from 0.
        index: u8,
    },
    /// Driver and firmware both claim a measurement.
    #[error("the reference values of driver and firmware both claim measurement {0}")]
    Conflict(u8),
    /// No device.
    #[error("there is no evidence of any device")]
    Empty,
    /// More devices than a node has.
    #[error("evidence of more than {MAX_DEVICES} devices")]
    TooMany,
    /// One device twice.
    #[error("the same device is shown twice")]
    Duplicate,
    /// Devices in different modes.
    #[error("the GPUs are not all in one mode")]
    Mode,
    /// Switches and GPUs that are not connected to each other.
    #[error("the GPUs and switches are not those of one machine")]
    Topology,
}

impl EvidenceError {
    /// A short name for metrics and audit lines.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed",
            Self::Chain(_) => "chain",
            Self::Certificate(_) => "certificate",
            Self::Nonce => "nonce",
            Self::Signature => "signature",
            Self::Firmware => "firmware_id",
            Self::Chip => "chip",
            Self::NoReference { .. } => "no_reference",
            Self::Measurement { .. } => "measurement",
            Self::Conflict(_) => "conflict",
            Self::Empty => "empty",
            Self::TooMany => "too_many",
            Self::Duplicate => "duplicate",
            Self::Mode => "mode",
            Self::Topology => "topology",
        }
    }
}

/// An error with the position of the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeEvidenceError {
    /// The device, from 0; nothing when it is not about a single one.
    pub device: Option<usize>,
    /// What is wrong.
    pub error: EvidenceError,
}

impl fmt::Display for NodeEvidenceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.device {
            Some(device) => write!(f, "device {device}: {}", self.error),
            None => self.error.fmt(f),
        }
    }
}

impl std::error::Error for NodeEvidenceError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}

/// Most devices of one node: eight GPUs and four switches are common.
pub const MAX_DEVICES: usize = 32;

/// Bytes of a challenge.
pub const CHALLENGE_SIZE: usize = 32;

/// The nonce that the device at `index` has to sign: SHA-256 of a label, the server's challenge, SHA-256 of the agent's public key
/// (SPKI, DER), and the index as four bytes, big-endian. So evidence is of no use to another agent, at another time, or
/// for another device.
pub fn device_nonce(challenge: &[u8; CHALLENGE_SIZE], agent_spki: &[u8], index: usize) -> [u8; 32] {
    let mut key = Sha256::new();
    key.update(agent_spki);
    let mut nonce = Sha256::new();
    nonce.update(b"bonafide.agent.v1 gpu evidence\0");
    nonce.update(challenge);
    nonce.update(&key.finish());
    nonce.update(&u32::try_from(index).unwrap_or(u32::MAX).to_be_bytes());
    nonce.finish()
}

/// Verifies the evidence of one device over a nonce.
///
/// # Errors
/// [`EvidenceError`]; the first check that fails is named. Chain and signature come before anything is compared.
pub fn verify_device(
    evidence: &DeviceEvidence,
    nonce: &[u8; 32],
    policy: &Policy<'_>,
) -> Result<VerifiedDevice, EvidenceError> {
    let report = Report::parse(&evidence.report)?;
    if report.nonce() != nonce {
        return Err(EvidenceError::Nonce);
    }
    let path = verify_chain(&evidence.chain, policy.roots, policy.now)?;
    let identity = DeviceIdentity::read(&evidence.chain, &path)?;
    if !report.is_signed_by(&identity.attestation_key) {
        return Err(EvidenceError::Signature);
    }
    match (report.firmware_id(), identity.firmware_id) {
        (Some(said), Some(certified)) if said == certified => {}
        // Drivers of the 535 series and switches do not repeat it.
        (None, Some(_)) if identity.architecture != Architecture::Blackwell => {}
        _ => return Err(EvidenceError::Firmware),
    }
    if report.chip().is_some_and(|chip| Some(chip) != identity.architecture.chip()) {
        return Err(EvidenceError::Chip);
    }
    let (driver, firmware) = reference::compare(&report, identity.architecture, policy)?;
    let neighbours = report.neighbours(identity.architecture == Architecture::Switch);
    Ok(VerifiedDevice {
        architecture: identity.architecture,
        device_key: identity.device_key,
        pdi: identity.pdi,
        driver_version: report.driver_version().map(str::to_owned),
        firmware_version: report.firmware_version()?,
        feature: report.feature(),
        protected_pcie: report.protected_pcie(),
        driver,
        firmware,
        neighbours,
    })
}

/// Verifies the evidence of all devices of a node; the one at position `n` must have signed the nonce at `n`.
///
/// # Errors
/// [`NodeEvidenceError`] with the first device that is refused, or what is wrong with them together.
pub fn verify_node(
    devices: &[DeviceEvidence],
    nonce: impl Fn(usize) -> [u8; 32],
    policy: &Policy<'_>,
) -> Result<Vec<VerifiedDevice>, NodeEvidenceError> {
    let whole = |error| NodeEvidenceError { device: None, error };
    if devices.is_empty() {
        return Err(whole(EvidenceError::Empty));
    }
    if devices.len() > MAX_DEVICES {
        return Err(whole(EvidenceError::TooMany));
    }
    let mut verified: Vec<VerifiedDevice> = Vec::with_capacity(devices.len());
    for (index, evidence) in devices.iter().enumerate() {
        let at = |error| NodeEvidenceError { device: Some(index), error };
        let device = verify_device(evidence, &nonce(index), policy).map_err(at)?;
        if verified.iter().any(|other| other.device_key == device.device_key) {
            return Err(at(EvidenceError::Duplicate));
        }
        verified.push(device);
    }
    together(&verified).map_err(whole)?;
    Ok(verified)
}

/// What must be so of devices of one machine.
fn together(devices: &[VerifiedDevice]) -> Result<(), EvidenceError> {
    let (switches, gpus): (Vec<_>, Vec<_>) =
        devices.iter().partition(|device| device.architecture == Architecture::Switch);
    if gpus.is_empty() {
        return Err(EvidenceError::Empty);
    }
    let modes = |mode: fn(&VerifiedDevice) -> Option<u8>| {
        gpus.iter().map(|gpu| mode(gpu)).collect::<BTreeSet<_>>().len()
    };
    if modes(|gpu| gpu.feature.map(|feature| feature as u8)) > 1
        || modes(|gpu| gpu.protected_pcie.map(u8::from)) > 1
    {
        return Err(EvidenceError::Mode);
    }
    if switches.is_empty() {
        return Ok(());
    }
    let names =
        |devices: &[&VerifiedDevice]| devices.iter().map(|device| device.pdi).collect::<BTreeSet<_>>();
    let (all_gpus, all_switches) = (names(&gpus), names(&switches));
    let connected = gpus.iter().all(|gpu| gpu.neighbours == all_switches)
        && switches.iter().all(|switch| switch.neighbours == all_gpus);
    if connected { Ok(()) } else { Err(EvidenceError::Topology) }
}
