//! Reference values: what the measurements of a driver or firmware version must be.
//!
//! They are JSON documents of our own, made once from signed files ([`super::rim`]) and then trusted like configuration, so that
//! the server never reads XML:
//!
//! ```json
//! {"kind": "firmware", "product": "GH100", "version": "96.00.5E.00.01", "tag_id": "560b…", "signer": "CN=…",
//!  "signer_expires": 1750584573, "values": {"0": ["0000…"], "12": ["758a…", "7df0…"]}}
//! ```

use std::collections::BTreeMap;
use std::fmt;

use data_encoding::HEXLOWER_PERMISSIVE;
use serde::{Deserialize, Serialize};

use super::{Architecture, Compared, EvidenceError, Measurements, Policy, Report};

/// Whose measurements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReferenceKind {
    /// The driver's.
    Driver,
    /// The firmware's (VBIOS of a GPU, BIOS of a switch).
    Firmware,
}

impl fmt::Display for ReferenceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Driver => "driver",
            Self::Firmware => "firmware",
        })
    }
}

/// The reference values of one version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reference {
    /// Whose.
    pub kind: ReferenceKind,
    /// The chip: `GH100`, `GB100`, `LS10`.
    pub product: String,
    /// The version: `550.144.03`, `96.00.5E.00.01`.
    pub version: String,
    /// The tag of the file that they came from.
    pub tag_id: String,
    /// The subject of who signed that file.
    pub signer: String,
    /// When the signer's certificate ends, in seconds since 1970.
    pub signer_expires: i64,
    /// By index: lower-case hexadecimal digests of which the measurement must be one.
    pub values: BTreeMap<u8, Vec<String>>,
}

/// Why reference values cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Not our JSON.
    #[error("not reference values as the import writes them: {0}")]
    Json(String),
    /// A digest is not one.
    #[error("a value at index {0} is not 96 hexadecimal digits")]
    Digest(u8),
    /// No measurement is compared at all.
    #[error("there are no values")]
    Empty,
    /// More than any file has.
    #[error("more than {MAX_REFERENCES} files")]
    TooMany,
}

/// All known reference values.
#[derive(Clone, Debug, Default)]
pub struct References(Vec<Prepared>);

#[derive(Clone, Debug)]
struct Prepared {
    kind: ReferenceKind,
    product: String,
    version: String,
    values: BTreeMap<u8, Vec<[u8; 48]>>,
}

impl References {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds those of a JSON document.
    ///
    /// # Errors
    /// [`ReferenceError`].
    pub fn add_json(&mut self, text: &[u8]) -> Result<(), ReferenceError> {
        let reference: Reference =
            serde_json::from_slice(text).map_err(|error| ReferenceError::Json(error.to_string()))?;
        self.add(&reference)
    }

    /// Adds some.
    ///
    /// # Errors
    /// [`ReferenceError`].
    pub fn add(&mut self, reference: &Reference) -> Result<(), ReferenceError> {
        if self.0.len() >= MAX_REFERENCES {
            return Err(ReferenceError::TooMany);
        }
        if reference.values.is_empty() {
            return Err(ReferenceError::Empty);
        }
        let mut values = BTreeMap::new();
        for (index, texts) in &reference.values {
            let digest = |text: &String| {
                let bytes = HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok()?;
                <[u8; 48]>::try_from(bytes).ok()
            };
            let digests: Option<Vec<_>> = texts.iter().map(digest).collect();
            let digests =
                digests.filter(|digests| !digests.is_empty()).ok_or(ReferenceError::Digest(*index))?;
            values.insert(*index, digests);
        }
        self.0.push(Prepared {
            kind: reference.kind,
            product: reference.product.clone(),
            version: reference.version.to_ascii_uppercase(),
            values,
        });
        Ok(())
    }

    /// How many versions are known.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether none is known.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn of<'a>(&'a self, kind: ReferenceKind, product: &'a str, version: &str) -> Vec<&'a Prepared> {
        let version = version.to_ascii_uppercase();
        let fits =
            |known: &&Prepared| known.kind == kind && known.product == product && known.version == version;
        self.0.iter().filter(fits).collect()
    }
}

/// Compares driver and firmware with their references.
pub(super) fn compare(
    report: &Report<'_>,
    architecture: Architecture,
    policy: &Policy<'_>,
) -> Result<(Compared, Compared), EvidenceError> {
    let firmware_version = report.firmware_version()?;
    let driver = match (architecture, report.driver_version()) {
        (Architecture::Switch, _) => None,
        (_, Some(version)) => Some(version),
        (_, None) => return Err(EvidenceError::Malformed("it has no driver version")),
    };
    let product = architecture.product();
    let firmware_known = policy.references.of(ReferenceKind::Firmware, product, &firmware_version);
    let driver_known =
        driver.map_or(Vec::new(), |version| policy.references.of(ReferenceKind::Driver, product, version));
    for one in &driver_known {
        let claimed =
            one.values.keys().find(|index| firmware_known.iter().any(|of| of.values.contains_key(index)));
        if let Some(index) = claimed {
            return Err(EvidenceError::Conflict(*index));
        }
    }
    let firmware =
        against(report, &firmware_known, ReferenceKind::Firmware, product, &firmware_version, policy)?;
    let driver = match driver {
        Some(version) => against(report, &driver_known, ReferenceKind::Driver, product, version, policy)?,
        None => Compared::Nothing,
    };
    Ok((driver, firmware))
}

/// One of the references of this version must fit; the complaint is about the first.
fn against(
    report: &Report<'_>,
    known: &[&Prepared],
    kind: ReferenceKind,
    product: &'static str,
    version: &str,
    policy: &Policy<'_>,
) -> Result<Compared, EvidenceError> {
    let mut complaint = None;
    for reference in known {
        let wrong = reference.values.iter().find(|(index, digests)| {
            let skipped = **index == DECODER_INDEX && report.decoder_is_off();
            let measured = report.measurement(**index);
            !skipped && !measured.is_some_and(|value| digests.contains(value))
        });
        match wrong {
            None => return Ok(Compared::Match),
            Some((index, _)) => {
                complaint.get_or_insert(EvidenceError::Measurement {
                    kind,
                    version: version.to_owned(),
                    index: *index,
                });
            }
        }
    }
    match (complaint, policy.measurements) {
        (Some(complaint), _) => Err(complaint),
        (None, Measurements::Preferred) => Ok(Compared::NoReference),
        (None, Measurements::Required) => {
            Err(EvidenceError::NoReference { kind, product, version: version.to_owned() })
        }
    }
}

/// The measurement of the first video decoder.
const DECODER_INDEX: u8 = 35;

const MAX_REFERENCES: usize = 4096;
