//! How a record lies in the database: keys, the seal around every value, and the tally over all of them.
//!
//! No embedded store checks what it reads back: both of ours have served flipped bits as values. So each value carries
//! a version, the sequence number of the commit that wrote it, and a CRC-32 over all of that, its key and its payload.
//! A value that is missing as a whole leaves no bad checksum behind; the [`Tally`] of all records, kept up to date in
//! the header with each commit, finds that.

use super::kv::Range;

/// Tables: the first byte of each key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Table {
    /// One record: what the database holds altogether.
    Header = 0,
    /// Registration entries by row.
    Entry = b'e',
    /// Attested nodes by SPIFFE ID.
    Node = b'n',
    /// Bundles by trust domain.
    Bundle = b'b',
    /// Federation relationships by trust domain.
    Relationship = b'f',
    /// Join tokens by value.
    Token = b't',
    /// Authority slots by kind and authority ID.
    Journal = b'j',
    /// Issued SVIDs by the second of their expiry.
    Issuance = b'i',
    /// Changes by epoch.
    Change = b'c',
    /// Tokens of foreign issuers that were used, by fingerprint.
    Spent = b'u',
}

impl Table {
    pub(super) fn key(self, rest: &[u8]) -> Vec<u8> {
        let mut key = Vec::with_capacity(1 + rest.len());
        key.push(self as u8);
        key.extend_from_slice(rest);
        key
    }

    pub(super) fn all(self) -> Range {
        Range::prefix(&[self as u8])
    }

    pub(super) fn of(key: &[u8]) -> Option<Self> {
        Some(match key.first()? {
            0 => Self::Header,
            b'e' => Self::Entry,
            b'n' => Self::Node,
            b'b' => Self::Bundle,
            b'f' => Self::Relationship,
            b't' => Self::Token,
            b'j' => Self::Journal,
            b'i' => Self::Issuance,
            b'c' => Self::Change,
            b'u' => Self::Spent,
            _ => return None,
        })
    }
}

/// Version of the seal. Payloads are protobuf messages and grow without it.
const VERSION: u8 = 1;
const SEAL_LEN: usize = 1 + 8 + 4;

/// A record taken out of its seal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Opened<'a> {
    pub(super) seal: Seal,
    pub(super) payload: &'a [u8],
}

/// The part of a record that the tally counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seal {
    pub(super) sequence: u64,
    crc: u32,
}

/// Why a record cannot be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SealError {
    #[error("a record does not match its checksum")]
    Checksum,
    #[error("a record is shorter than its seal")]
    Short,
    #[error("a record has version {0}, this server knows version 1: it was written by a newer server")]
    Version(u8),
}

/// Wraps `payload`: version (1 byte), sequence (8, big endian), CRC-32 (4, big endian), payload.
pub(super) fn seal(key: &[u8], sequence: u64, payload: &[u8]) -> (Seal, Vec<u8>) {
    let crc = checksum(VERSION, sequence, key, payload);
    let mut value = Vec::with_capacity(SEAL_LEN + payload.len());
    value.push(VERSION);
    value.extend_from_slice(&sequence.to_be_bytes());
    value.extend_from_slice(&crc.to_be_bytes());
    value.extend_from_slice(payload);
    (Seal { sequence, crc }, value)
}

/// Checks and unwraps what [`seal`] made.
pub(super) fn open<'a>(key: &[u8], value: &'a [u8]) -> Result<Opened<'a>, SealError> {
    let (head, payload) = value.split_at_checked(SEAL_LEN).ok_or(SealError::Short)?;
    let (version, sequence, crc) = parts(head);
    if checksum(version, sequence, key, payload) != crc {
        return Err(SealError::Checksum);
    }
    if version != VERSION {
        return Err(SealError::Version(version));
    }
    Ok(Opened { seal: Seal { sequence, crc }, payload })
}

fn parts(head: &[u8]) -> (u8, u64, u32) {
    let mut sequence = [0; 8];
    sequence.copy_from_slice(&head[1..9]);
    let mut crc = [0; 4];
    crc.copy_from_slice(&head[9..13]);
    (head[0], u64::from_be_bytes(sequence), u32::from_be_bytes(crc))
}

fn checksum(version: u8, sequence: u64, key: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&[version]);
    hasher.update(&sequence.to_be_bytes());
    hasher.update(&(key.len() as u64).to_be_bytes());
    hasher.update(key);
    hasher.update(payload);
    hasher.finalize()
}

/// How many records there are, and a sum over their seals that does not depend on their order, so that a commit can
/// bring it up to date from the records it replaces. An older version of a record has another sequence number and so
/// another share in the sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) count: u64,
    pub(super) digest: u64,
}

impl Tally {
    pub(super) fn add(&mut self, seal: Seal) {
        self.count = self.count.wrapping_add(1);
        self.digest = self.digest.wrapping_add(share(seal));
    }

    pub(super) fn remove(&mut self, seal: Seal) {
        self.count = self.count.wrapping_sub(1);
        self.digest = self.digest.wrapping_sub(share(seal));
    }
}

/// Spreads a seal over 64 bits (the finalizer of SplitMix64), so that sums of different sets differ.
fn share(seal: Seal) -> u64 {
    let mut x = seal.sequence.rotate_left(32) ^ u64::from(seal.crc);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_is_found() {
        let (_, value) = seal(b"key", 7, b"payload");
        assert_eq!(open(b"key", &value).expect("whole").payload, b"payload");
        for bit in 0..value.len() * 8 {
            let mut damaged = value.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(open(b"key", &damaged), Err(SealError::Checksum), "bit {bit}");
        }
    }

    #[test]
    fn a_record_under_another_key_is_refused() {
        let (_, value) = seal(b"key", 7, b"payload");
        assert_eq!(open(b"kez", &value), Err(SealError::Checksum));
        assert_eq!(open(b"ke", &seal(b"key", 7, b"").1), Err(SealError::Checksum));
        assert_eq!(open(b"key", &value[..12]), Err(SealError::Short));
    }

    #[test]
    fn a_newer_record_is_named() {
        let crc = checksum(2, 7, b"key", b"");
        let mut value = vec![2];
        value.extend_from_slice(&7_u64.to_be_bytes());
        value.extend_from_slice(&crc.to_be_bytes());
        assert_eq!(open(b"key", &value), Err(SealError::Version(2)));
    }

    #[test]
    fn the_tally_tells_versions_of_a_record_apart() {
        let (old, _) = seal(b"key", 1, b"payload");
        let (new, _) = seal(b"key", 2, b"payload");
        let (mut a, mut b) = (Tally::default(), Tally::default());
        a.add(old);
        b.add(old);
        b.remove(old);
        b.add(new);
        assert_eq!((a.count, b.count), (1, 1));
        assert_ne!(a.digest, b.digest);
        b.remove(new);
        assert_eq!(b, Tally::default());
    }
}
