//! Evidence of GPUs: reports, reference values, signed files of them, what a collector prints.
//!
//! Laws: what a report signs is all of it but the signature, no shorter text of it is a report, and a changed bit changes what is
//! signed or is refused; XML in canonical form is its own canonical form; what is printed has certificates for each device; nobody
//! whom the fuzzer invents is a known device.

use std::sync::LazyLock;

use bonafide_agent::gpu_evidence::parse;
use bonafide_pki::TrustRoots;
use bonafide_pki::evidence::{
    DeviceEvidence, MAX_DEVICES, Measurements, Policy, References, Report, rim, verify_node,
};

use crate::{NOW, with_a_flipped_bit};

static NOBODY: LazyLock<TrustRoots> =
    LazyLock::new(|| TrustRoots::from_der(std::iter::empty()).expect("nothing is no wrong certificate"));

/// Whether the bytes are any of these.
pub fn check(data: &[u8]) -> bool {
    report(data) | xml(data) | reference(data) | printed(data)
}

fn report(data: &[u8]) -> bool {
    let Ok(report) = Report::parse(data) else { return false };
    assert_eq!(report.signed_bytes(), &data[..data.len() - 96]);
    assert_eq!(&report.nonce()[..], &data[4..36]);
    assert!(Report::parse(&data[..data.len() - 1]).is_err(), "a report that is cut off is read");
    if let Ok(version) = report.firmware_version() {
        assert!(!version.is_empty() && version.len() <= 32 && version.is_ascii());
    }
    let changed = with_a_flipped_bit(data);
    if let Ok(other) = Report::parse(&changed) {
        assert!(
            other.signed_bytes() != report.signed_bytes()
                || changed[data.len() - 96..] != data[data.len() - 96..]
        );
    }
    shown(&[DeviceEvidence { report: data.to_vec(), chain: vec![data.to_vec()] }], *report.nonce());
    true
}

fn shown(devices: &[DeviceEvidence], nonce: [u8; 32]) {
    let references = References::new();
    let policy =
        Policy { roots: &NOBODY, references: &references, measurements: Measurements::Preferred, now: NOW };
    assert!(verify_node(devices, |_| nonce, &policy).is_err(), "a device without a root is known");
}

fn xml(data: &[u8]) -> bool {
    let Ok(canonical) = rim::canonical(data) else { return false };
    assert_eq!(rim::canonical(&canonical).as_ref(), Ok(&canonical));
    assert!(rim::import(data, &NOBODY, NOW).is_err(), "a file of nobody is believed");
    true
}

fn reference(data: &[u8]) -> bool {
    let mut references = References::new();
    references.add_json(data).is_ok() && references.len() == 1
}

fn printed(data: &[u8]) -> bool {
    let Ok(devices) = parse(data) else { return false };
    assert!(devices.len() <= MAX_DEVICES && devices.iter().all(|device| !device.chain.is_empty()));
    shown(&devices, [0; 32]);
    true
}
