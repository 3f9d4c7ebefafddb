//! The report as bytes: request, response, measurements, vendor fields, signature. Nothing is copied and nothing is believed.

use std::collections::{BTreeMap, BTreeSet};

use super::EvidenceError;
use crate::crypto;
use crate::key::{KeyAlgorithm, PublicKey};

/// How a GPU is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Feature {
    /// One GPU passed through.
    Single = 0,
    /// Several GPUs passed through together.
    Multiple = 1,
    /// Protected PCIe.
    ProtectedPcie = 2,
}

/// A report that was taken apart, not verified.
#[derive(Clone, Debug)]
pub struct Report<'a> {
    nonce: &'a [u8; 32],
    /// By the index of the block, from 1.
    measurements: BTreeMap<u8, &'a [u8; MEASUREMENT]>,
    fields: BTreeMap<u16, &'a [u8]>,
    signed: &'a [u8],
    signature: &'a [u8; SIGNATURE],
}

impl<'a> Report<'a> {
    /// Takes a report apart. Unknown fields are kept out of the way; a field or block that stands twice, a length that does
    /// not fit, and anything left over are refused.
    ///
    /// # Errors
    /// [`EvidenceError::Malformed`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, EvidenceError> {
        const SHORT: EvidenceError = EvidenceError::Malformed("it is cut short");
        if bytes.len() > MAX_REPORT {
            return Err(EvidenceError::Malformed("it is larger than any report"));
        }
        let (signed, signature) = bytes.split_last_chunk::<SIGNATURE>().ok_or(SHORT)?;
        let mut rest = Cursor(signed);
        // DSP0274 1.1: version, GET_MEASUREMENTS, signature requested, all blocks.
        if rest.array::<4>()? != &[SPDM_1_1, 0xe0, 0x01, 0xff] {
            return Err(EvidenceError::Malformed("the request is not for all measurements with a signature"));
        }
        let nonce = rest.array::<32>()?;
        if rest.array::<1>()? != &[0] {
            return Err(EvidenceError::Malformed("the request is for another certificate slot than 0"));
        }
        if rest.array::<2>()? != &[SPDM_1_1, 0x60] {
            return Err(EvidenceError::Malformed("the response does not hold measurements"));
        }
        if rest.array::<2>()? != &[0, 0] {
            return Err(EvidenceError::Malformed(
                "the response is of another slot or number of measurements",
            ));
        }
        let count = usize::from(rest.array::<1>()?[0]);
        let length = rest.array::<3>()?;
        let length = usize::from(length[0]) | usize::from(length[1]) << 8 | usize::from(length[2]) << 16;
        let measurements = blocks(rest.take(length)?, count)?;
        rest.array::<32>()?;
        let length = usize::from(u16::from_le_bytes(*rest.array::<2>()?));
        let fields = fields(rest.take(length)?)?;
        if !rest.0.is_empty() {
            return Err(EvidenceError::Malformed("the signature is not where it should be"));
        }
        Ok(Self { nonce, measurements, fields, signed, signature })
    }

    /// The nonce of the request.
    pub fn nonce(&self) -> &'a [u8; 32] {
        self.nonce
    }

    /// Everything before the signature.
    pub fn signed_bytes(&self) -> &'a [u8] {
        self.signed
    }

    /// The measurement that reference values call `index`, which is one less than the number of its block.
    pub fn measurement(&self, index: u8) -> Option<&'a [u8; MEASUREMENT]> {
        self.measurements.get(&index.checked_add(1)?).copied()
    }

    /// The driver's version.
    pub fn driver_version(&self) -> Option<&'a str> {
        text(self.fields.get(&DRIVER_VERSION)?)
    }

    /// The firmware's version: of a GPU from its number, of a switch as it is written; in upper case.
    ///
    /// # Errors
    /// It is missing, or is neither.
    pub fn firmware_version(&self) -> Result<String, EvidenceError> {
        const WRONG: EvidenceError = EvidenceError::Malformed("it has no firmware version");
        let field = self.fields.get(&FIRMWARE_VERSION).ok_or(WRONG)?;
        if let Ok(number) = <[u8; 8]>::try_from(*field) {
            let [.., a, b, c, d] = u64::from_le_bytes(number).to_be_bytes();
            let last = number[4];
            return Ok(format!("{a:02X}.{b:02X}.{c:02X}.{d:02X}.{last:02X}"));
        }
        text(field).map(str::to_ascii_uppercase).ok_or(WRONG)
    }

    /// The identifier of the firmware, when the report repeats it.
    pub(super) fn firmware_id(&self) -> Option<&'a [u8]> {
        self.fields.get(&FIRMWARE_ID).copied()
    }

    /// The number of the chip, when the report gives one.
    pub(super) fn chip(&self) -> Option<u64> {
        let field = self.fields.get(&CHIP)?;
        // Too long a number is no chip, which is different from saying nothing.
        if field.len() > 8 {
            return Some(u64::MAX);
        }
        Some(field.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    /// The first video decoder is switched off, so that its measurement has no meaning.
    pub(super) fn decoder_is_off(&self) -> bool {
        self.fields.get(&DECODER).is_some_and(|status| status.first() == Some(&OFF))
    }

    /// How the GPU is protected.
    pub fn feature(&self) -> Option<Feature> {
        match *self.fields.get(&FEATURE)? {
            [0, 0] => Some(Feature::Single),
            [1, 0] => Some(Feature::Multiple),
            [2, 0] => Some(Feature::ProtectedPcie),
            _ => None,
        }
    }

    /// Whether protected PCIe is on.
    pub fn protected_pcie(&self) -> Option<bool> {
        match *self.fields.get(&PROTECTED_PCIE)?.first()? {
            ON => Some(true),
            OFF => Some(false),
            _ => None,
        }
    }

    /// The identifiers of the devices that this one is connected to: a GPU lists switches, bytes in the opposite order of the
    /// certificate's, one for each link; a switch lists up to eight GPUs, and behind them which port leads to which. Unused places
    /// are all zeros or all ones.
    pub(super) fn neighbours(&self, of_a_switch: bool) -> BTreeSet<[u8; 8]> {
        let field = if of_a_switch { GPU_NEIGHBOURS } else { SWITCH_NEIGHBOURS };
        let places = self.fields.get(&field).copied().unwrap_or_default().as_chunks::<8>().0;
        let places = if of_a_switch { &places[..places.len().min(8)] } else { places };
        let used = places.iter().filter(
            |place| !matches!(**place, [0x00 | 0xff, ..] if place.iter().all(|byte| *byte == place[0])),
        );
        used.map(|place| {
            let mut place = *place;
            if !of_a_switch {
                place.reverse();
            }
            place
        })
        .collect()
    }

    /// Whether this key, on P-384, made the signature.
    pub fn is_signed_by(&self, key: &PublicKey) -> bool {
        key.algorithm() == KeyAlgorithm::EcP384
            && crypto::verify_p384_fixed(key.bare(), self.signed, self.signature)
    }
}

fn blocks(record: &[u8], count: usize) -> Result<BTreeMap<u8, &[u8; MEASUREMENT]>, EvidenceError> {
    let mut rest = Cursor(record);
    let mut blocks = BTreeMap::new();
    for _ in 0..count {
        let [index, specification] = *rest.array::<2>()?;
        let size = u16::from_le_bytes(*rest.array::<2>()?);
        let kind = rest.array::<1>()?;
        let value_size = u16::from_le_bytes(*rest.array::<2>()?);
        // The highest bit says raw instead of digest, the others what was measured (DSP0274, table 47).
        let _ = kind;
        if specification != 1
            || usize::from(value_size) != MEASUREMENT
            || usize::from(size) != MEASUREMENT + 3
        {
            return Err(EvidenceError::Malformed("a measurement is not a digest of 48 bytes"));
        }
        let value = rest.array::<MEASUREMENT>()?;
        if index == 0 || blocks.insert(index, value).is_some() {
            return Err(EvidenceError::Malformed("a measurement has no index of its own"));
        }
    }
    if rest.0.is_empty() {
        Ok(blocks)
    } else {
        Err(EvidenceError::Malformed("bytes follow the measurements"))
    }
}

fn fields(opaque: &[u8]) -> Result<BTreeMap<u16, &[u8]>, EvidenceError> {
    let mut rest = Cursor(opaque);
    let mut fields = BTreeMap::new();
    while !rest.0.is_empty() {
        let kind = u16::from_le_bytes(*rest.array::<2>()?);
        let length = usize::from(u16::from_le_bytes(*rest.array::<2>()?));
        if fields.insert(kind, rest.take(length)?).is_some() {
            return Err(EvidenceError::Malformed("a field stands twice"));
        }
    }
    Ok(fields)
}

/// Printable text up to the first zero byte, after which there are only zeros.
fn text(field: &[u8]) -> Option<&str> {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    let (text, padding) = field.split_at(end);
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b'+');
    let good = !text.is_empty() && text.len() <= MAX_VERSION && text.iter().all(plain);
    (good && padding.iter().all(|byte| *byte == 0)).then_some(str::from_utf8(text).ok()?)
}

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], EvidenceError> {
        let cut = EvidenceError::Malformed("a length does not fit");
        let (taken, rest) = self.0.split_at_checked(length).ok_or(cut)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<&'a [u8; N], EvidenceError> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(EvidenceError::Malformed("it is cut short"))?;
        self.0 = rest;
        Ok(taken)
    }
}

/// NVML hands out at most 0x2000 bytes of response.
const MAX_REPORT: usize = 0x2000 + 37;
const MAX_VERSION: usize = 32;
const SIGNATURE: usize = 96;
const MEASUREMENT: usize = 48;
const SPDM_1_1: u8 = 0x11;

const DRIVER_VERSION: u16 = 3;
const CHIP: u16 = 4;
const FIRMWARE_VERSION: u16 = 6;
const DECODER: u16 = 11;
const FIRMWARE_ID: u16 = 20;
const PROTECTED_PCIE: u16 = 21;
const SWITCH_NEIGHBOURS: u16 = 22;
const GPU_NEIGHBOURS: u16 = 26;
const FEATURE: u16 = 36;

const ON: u8 = 0xaa;
const OFF: u8 = 0x55;
