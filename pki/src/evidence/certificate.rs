//! What the certificates of a device say: which kind it is, which one, and which firmware holds the key.

use std::fmt;

use x509_parser::certificate::X509Certificate;
use x509_parser::oid_registry::OID_X509_SERIALNUMBER;

use super::EvidenceError;
use crate::der::{self, DerError, Reader};
use crate::digest::Sha256;
use crate::key::{KeyAlgorithm, PublicKey};
use crate::x509::inspect::parse;

/// A kind of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Architecture {
    /// A Hopper GPU, GH100.
    Hopper,
    /// A Blackwell GPU, GB100.
    Blackwell,
    /// An NVSwitch, LS10.
    Switch,
}

impl Architecture {
    /// The chip as reference values and selectors write it.
    pub const fn product(self) -> &'static str {
        match self {
            Self::Hopper => "GH100",
            Self::Blackwell => "GB100",
            Self::Switch => "LS10",
        }
    }

    /// The number that a report gives for the chip.
    pub(super) const fn chip(self) -> Option<u64> {
        match self {
            Self::Hopper => Some(0x180),
            Self::Blackwell => Some(0x1a0),
            Self::Switch => None,
        }
    }

    fn of(common_name: &str) -> Option<Self> {
        match common_name.split(' ').next()? {
            "GH100" => Some(Self::Hopper),
            "GB100" => Some(Self::Blackwell),
            "LS_10" => Some(Self::Switch),
            _ => None,
        }
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.product())
    }
}

/// What a verified chain says of a device.
pub(super) struct DeviceIdentity {
    pub(super) architecture: Architecture,
    /// The key that signs reports.
    pub(super) attestation_key: PublicKey,
    /// The identifier of the firmware that holds it.
    pub(super) firmware_id: Option<[u8; 48]>,
    pub(super) device_key: [u8; 32],
    pub(super) pdi: [u8; 8],
}

impl DeviceIdentity {
    /// Reads a verified path, leaf first and root last, and the chain that it was found in.
    pub(super) fn read(chain: &[Vec<u8>], path: &[Vec<u8>]) -> Result<Self, EvidenceError> {
        let refused = |text: &str| EvidenceError::Certificate(text.to_owned());
        // Nothing may be there that was not verified, and nothing in another order; the root may be left out.
        let given =
            chain.iter().eq(path) || path.split_last().is_some_and(|(_, below)| chain.iter().eq(below));
        let [leaf, device, _, ..] = path else { return Err(refused("the chain is too short")) };
        if !given {
            return Err(refused("the chain holds certificates that do not belong to its path"));
        }
        let read =
            |der: &[u8]| parse(der).map(drop).map_err(|error| EvidenceError::Certificate(error.to_string()));
        read(leaf)?;
        read(device)?;
        let (Ok(leaf), Ok(device)) = (parse(leaf), parse(device)) else {
            return Err(refused("a certificate cannot be read"));
        };

        let (leaf_name, device_name) = (common_name(&leaf), common_name(&device));
        let architecture =
            Architecture::of(device_name).filter(|kind| Architecture::of(leaf_name) == Some(*kind));
        let Some(architecture) = architecture else {
            return Err(refused(&format!(
                "neither {leaf_name:?} nor {device_name:?} is a device that is known"
            )));
        };
        if !leaf_name.ends_with(" FMC LF") || !device_name.ends_with(" BROM") {
            return Err(refused("the leaf is not that of a device's firmware"));
        }
        let usage = leaf.key_usage().ok().flatten();
        if !usage.is_some_and(|usage| usage.value.digital_signature() && !usage.value.key_cert_sign()) {
            return Err(refused("the leaf's key is not for signing reports"));
        }
        let attestation_key = PublicKey::from_spki_der(leaf.public_key().raw).ok();
        let Some(attestation_key) = attestation_key.filter(|key| key.algorithm() == KeyAlgorithm::EcP384)
        else {
            return Err(refused("the leaf's key is not on P-384"));
        };
        let firmware_id =
            firmware_id(&leaf).map_err(|error| EvidenceError::Certificate(error.0.to_owned()))?;
        let pdi = pdi(&device, architecture).ok_or_else(|| refused("the device has no serial number"))?;
        let mut device_key = Sha256::new();
        device_key.update(device.public_key().raw);
        Ok(Self { architecture, attestation_key, firmware_id, device_key: device_key.finish(), pdi })
    }
}

fn common_name<'a>(certificate: &'a X509Certificate<'_>) -> &'a str {
    certificate.subject().iter_common_name().next().and_then(|name| name.as_str().ok()).unwrap_or_default()
}

/// The device's identifier: hexadecimal digits, a byte for the kind of device and eight for the device.
fn pdi(certificate: &X509Certificate<'_>, architecture: Architecture) -> Option<[u8; 8]> {
    let mut found = certificate.subject().iter_by_oid(&OID_X509_SERIALNUMBER);
    let (text, None) = (found.next()?.as_str().ok()?, found.next()) else { return None };
    let bytes = data_encoding::HEXUPPER_PERMISSIVE.decode(text.as_bytes()).ok()?;
    let (kind, identifier) = bytes.split_first()?;
    let expected = if architecture == Architecture::Switch { 0x50 } else { 0x41 };
    (*kind == expected).then_some(identifier.try_into().ok()?)
}

/// The identifier of the firmware in the one DICE extension of the leaf: DeviceID of TCG's first DICE architecture (Hopper, switches), or the
/// first FWID of DiceTcbInfo (TCG DICE Attestation Architecture, 6.1.1; Blackwell).
fn firmware_id(leaf: &X509Certificate<'_>) -> Result<Option<[u8; 48]>, DerError> {
    let mut found = None;
    for extension in leaf.extensions() {
        let id = match extension.oid.as_bytes() {
            DEVICE_ID => device_id(extension.value)?,
            TCB_INFO => tcb_info(extension.value)?,
            _ => continue,
        };
        if found.replace(id).is_some() {
            return Err(DerError("the leaf has two firmware identifiers"));
        }
    }
    Ok(found)
}

/// SEQUENCE { INTEGER 1, SubjectPublicKeyInfo, FWID }
fn device_id(value: &[u8]) -> Result<[u8; 48], DerError> {
    const BROKEN: &str = "the leaf's DICE extension is broken";
    let mut outer = Reader::new(value);
    let mut inner = Reader::new(outer.expect(der::SEQUENCE, BROKEN)?.content);
    outer.end(BROKEN)?;
    inner.expect(der::INTEGER, BROKEN)?;
    inner.expect(der::SEQUENCE, BROKEN)?;
    let id = inner.expect(der::SEQUENCE, BROKEN)?;
    inner.end(BROKEN)?;
    fwid(id.content)
}

/// SEQUENCE { …, fwids [6] IMPLICIT SEQUENCE OF FWID, … }
fn tcb_info(value: &[u8]) -> Result<[u8; 48], DerError> {
    const BROKEN: &str = "the leaf's TcbInfo is broken";
    let mut outer = Reader::new(value);
    let mut inner = Reader::new(outer.expect(der::SEQUENCE, BROKEN)?.content);
    outer.end(BROKEN)?;
    let mut found = None;
    while !inner.is_empty() {
        let element = inner.next()?;
        if element.tag == der::explicit(6) {
            let first = Reader::new(element.content).expect(der::SEQUENCE, BROKEN)?;
            if found.replace(fwid(first.content)?).is_some() {
                return Err(DerError(BROKEN));
            }
        }
    }
    found.ok_or(DerError("the leaf's TcbInfo has no firmware identifier"))
}

/// FWID ::= SEQUENCE { hashAlg OBJECT IDENTIFIER, digest OCTET STRING }, with SHA-384.
fn fwid(content: &[u8]) -> Result<[u8; 48], DerError> {
    const BROKEN: &str = "the firmware identifier is not a SHA-384 digest";
    let mut parts = Reader::new(content);
    let algorithm = parts.expect(der::OID, BROKEN)?;
    let digest = parts.expect(der::OCTET_STRING, BROKEN)?;
    parts.end(BROKEN)?;
    if algorithm.content != SHA384 {
        return Err(DerError(BROKEN));
    }
    digest.content.try_into().map_err(|_| DerError(BROKEN))
}

/// 2.23.133.5.4.1
const DEVICE_ID: &[u8] = &[0x67, 0x81, 0x05, 0x05, 0x04, 0x01];
/// 2.23.133.5.4.1.1
const TCB_INFO: &[u8] = &[0x67, 0x81, 0x05, 0x05, 0x04, 0x01, 0x01];
/// 2.16.840.1.101.3.4.2.2
const SHA384: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02];
