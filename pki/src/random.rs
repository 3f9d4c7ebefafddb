//! Randomness as a seam: serial numbers, key IDs and renewal draws come from an injected source.
//!
//! Private keys do not: the backend draws those from the operating system, always. A seeded source in a test or a
//! simulation must never be able to produce a key that somebody trusts.

use bonafide_identity::SerialNumber;
use data_encoding::BASE64URL_NOPAD;

use crate::crypto;

/// A source of random bytes.
pub trait Random: Send + Sync {
    /// Fills `out` completely.
    fn fill(&self, out: &mut [u8]);

    /// A number drawn uniformly from all 64-bit values.
    fn u64(&self) -> u64 {
        let mut bytes = [0; 8];
        self.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }
}

/// The operating system's cryptographic random source.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemRandom;

impl Random for SystemRandom {
    fn fill(&self, out: &mut [u8]) {
        crypto::fill_random(out);
    }
}

/// A certificate serial number from 1 to 2^128 − 1.
pub fn random_serial(random: &dyn Random) -> SerialNumber {
    let mut bytes = [0; 16];
    while bytes == [0; 16] {
        random.fill(&mut bytes);
    }
    serial_from(&bytes)
}

/// A key ID for a JWT or WIT authority: 32 letters and digits.
pub fn random_key_id(random: &dyn Random) -> String {
    // Bytes beyond the largest multiple of 62 are drawn again, so that each character is equally likely.
    const LIMIT: u8 = 248;
    let mut id = String::with_capacity(KEY_ID_LENGTH);
    let mut bytes = [0; 48];
    while id.len() < KEY_ID_LENGTH {
        random.fill(&mut bytes);
        let usable = bytes.iter().filter(|byte| **byte < LIMIT);
        let characters = usable.map(|byte| char::from(ALPHANUMERIC[usize::from(*byte) % ALPHANUMERIC.len()]));
        id.extend(characters.take(KEY_ID_LENGTH - id.len()));
    }
    id
}

/// A JWT ID: the 16 bytes of a version 4 UUID as unpadded base64url.
pub fn random_jti(random: &dyn Random) -> String {
    let mut bytes = [0; 16];
    random.fill(&mut bytes);
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    BASE64URL_NOPAD.encode(&bytes)
}

fn serial_from(bytes: &[u8]) -> SerialNumber {
    SerialNumber::from_be_bytes(bytes).expect("16 bytes fit into a serial number")
}

const KEY_ID_LENGTH: usize = 32;
const ALPHANUMERIC: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU8, Ordering};

    /// Repeats one byte, another at each call.
    struct Counting(AtomicU8);

    impl Random for Counting {
        fn fill(&self, out: &mut [u8]) {
            out.fill(self.0.fetch_add(1, Ordering::Relaxed));
        }
    }

    #[test]
    fn serials_are_never_zero() {
        let serial = random_serial(&Counting(AtomicU8::new(0)));
        assert_eq!(serial, serial_from(&[1; 16]));
    }

    #[test]
    fn key_ids_are_alphanumeric_and_skip_biased_bytes() {
        let id = random_key_id(&SystemRandom);
        assert_eq!(id.len(), 32);
        assert!(id.bytes().all(|byte| byte.is_ascii_alphanumeric()));
        // 248 to 255 give nothing; then comes 0.
        assert_eq!(random_key_id(&Counting(AtomicU8::new(248))), "0".repeat(32));
    }

    #[test]
    fn jti_is_a_version_4_uuid() {
        let bytes = BASE64URL_NOPAD.decode(random_jti(&SystemRandom).as_bytes()).unwrap();
        assert_eq!((bytes.len(), bytes[6] >> 4, bytes[8] >> 6), (16, 4, 2));
    }
}
