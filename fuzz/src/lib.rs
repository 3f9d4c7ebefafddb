//! What the fuzz targets do, one module for each, beside the programs that the fuzzer runs.
//!
//! It is a library so that a stable compiler can run each committed seed through the same code, as a plain test.
//!
//! A target is a function `check(data) -> bool`: it must return whatever the bytes are, it asserts the laws that hold for
//! what was accepted, and it says whether anything was accepted at all. The tests hold the seeds to that answer: a seed that
//! was meant to be read and is refused leaves a target that only ever sees errors.
//!
//! What stands behind a signature is reached with [`known_key`], whose signatures the target makes itself: a fuzzer cannot
//! guess one. The same goes for checksums.
#![forbid(unsafe_code)]

pub mod csr;
pub mod entry_conversion;
pub mod jwks;
pub mod jwt;
pub mod known_key;
pub mod pem_and_certificate;
pub mod spiffe_id;

#[cfg(feature = "shim")]
pub mod authority_shim;

#[cfg(feature = "daemons")]
pub mod agent_store_file;
#[cfg(feature = "daemons")]
pub mod attestation_payload;
#[cfg(feature = "daemons")]
pub mod config;
#[cfg(feature = "daemons")]
mod exchange;
#[cfg(feature = "daemons")]
pub mod federation;
#[cfg(feature = "daemons")]
pub mod foreign_token;
#[cfg(feature = "daemons")]
pub mod gpu_evidence;
#[cfg(feature = "daemons")]
pub mod kubelet_facts;
#[cfg(feature = "daemons")]
pub mod proxy_header;
#[cfg(feature = "daemons")]
pub mod server_records;
#[cfg(feature = "daemons")]
pub mod spire_config;
#[cfg(feature = "daemons")]
pub mod ssh_host;
#[cfg(feature = "daemons")]
pub mod tpm_devid;
#[cfg(feature = "daemons")]
pub mod upstream_answer;
#[cfg(feature = "daemons")]
pub mod workload_facts;

#[cfg(all(test, feature = "daemons"))]
mod lock;
#[cfg(all(test, feature = "daemons"))]
mod seeds;

use bonafide_identity::{Timestamp, TrustDomain};

/// The time at which everything is judged: 2026-01-01.
pub const NOW: Timestamp = Timestamp::from_unix_seconds(1_767_225_600);

/// `example.org`.
pub fn trust_domain() -> TrustDomain {
    TrustDomain::parse("example.org").expect("a valid name")
}

/// The bytes with one bit changed; which one depends on the bytes, so that a run can be repeated.
fn with_a_flipped_bit(bytes: &[u8]) -> Vec<u8> {
    let mut flipped = bytes.to_vec();
    let sum = bytes.iter().fold(0_usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(*byte)));
    if let Some(byte) = flipped.get_mut(sum / 8 % bytes.len().max(1)) {
        *byte ^= 1 << (sum % 8);
    }
    flipped
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    part.is_empty() || bytes.windows(part.len()).any(|window| window == part)
}

/// Both sides of the first `separator`; nothing on the right when there is none.
fn split_at_byte(bytes: &[u8], separator: u8) -> (&[u8], &[u8]) {
    match bytes.iter().position(|byte| *byte == separator) {
        Some(at) => (&bytes[..at], &bytes[at + 1..]),
        None => (bytes, &[]),
    }
}

/// A folder for files that are read once and forgotten: in memory where the system has such a place.
#[cfg(feature = "daemons")]
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("there is room for small files")
}
