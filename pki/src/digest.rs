//! Digests of things too large to hold in memory, such as the executable of a process.

use crate::crypto;

/// SHA-256 of bytes that come in parts.
pub struct Sha256(crypto::Sha256);

impl Default for Sha256 {
    fn default() -> Self {
        Self::new()
    }
}

impl Sha256 {
    /// Of nothing yet.
    pub fn new() -> Self {
        Self(crypto::Sha256::new())
    }

    /// Adds the next part.
    pub fn update(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    /// The digest of all parts.
    pub fn finish(self) -> [u8; 32] {
        self.0.finish()
    }
}

/// Whether two secrets are the same. The time that it takes tells nothing of where they differ.
pub fn same_secret(one: &[u8], other: &[u8]) -> bool {
    crypto::same(one, other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_and_the_whole_have_the_same_digest() {
        let mut digest = Sha256::new();
        digest.update(b"a");
        digest.update(b"bc");
        // FIPS 180-2, appendix B.1.
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(data_encoding::HEXLOWER.encode(&digest.finish()), expected);
    }

    #[test]
    fn secrets_are_compared_whole() {
        assert!(same_secret(b"abc", b"abc") && same_secret(b"", b""));
        assert!(!same_secret(b"abc", b"abd") && !same_secret(b"abc", b"ab") && !same_secret(b"", b"a"));
    }
}
