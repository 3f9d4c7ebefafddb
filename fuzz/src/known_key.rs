//! A P-256 key whose private half is the number 1, and signatures made with the nonce 1.
//!
//! Worth nothing as a secret, and just right here: a signature is one hash and one addition, and the same bytes always
//! get the same one. So targets can sign whatever the fuzzer comes up with, and seeds come out the same each time.
//!
//! With d = k = 1 on a curve of order n: the public key is the generator G, r = x(G) mod n, s = (z + r·d)/k = z + r mod n
//! (FIPS 186-5, section 6.4.1).

use std::sync::Arc;

use bonafide_identity::{DnsName, JwtAuthority, SerialNumber, Timestamp};
use bonafide_pki::x509::{CaSubject, LeafProfile, Subject, TrustRoots, X509Issuer, self_signed_ca};
use bonafide_pki::{JwtKeys, KeyError, KeyType, PrivateKey, PublicKey, SignatureAlgorithm, Signer};

/// The key.
pub struct KnownKey(PublicKey);

impl Default for KnownKey {
    fn default() -> Self {
        Self(PublicKey::from_spki_der(&spki()).expect("the generator is a public key"))
    }
}

impl Signer for KnownKey {
    fn key_type(&self) -> KeyType {
        KeyType::EcP256
    }

    fn public_key(&self) -> &PublicKey {
        &self.0
    }

    fn sign_with(&self, algorithm: SignatureAlgorithm, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        match algorithm {
            SignatureAlgorithm::EcdsaP256Sha256 => Ok(signature_der(message)),
            other => Err(KeyError::Sign(other)),
        }
    }
}

/// r and s of a message's signature, 32 bytes each.
pub fn signature(message: &[u8]) -> ([u8; 32], [u8; 32]) {
    let hash = ring::digest::digest(&ring::digest::SHA256, message);
    let hash = hash.as_ref().try_into().expect("SHA-256 has 32 bytes");
    // Both are below 2^256, which is below 2n: the sum is below 3n.
    let (sum, carry) = add(hash, &G_X);
    let (mut s, mut carry) = (sum, carry);
    while carry || s >= ORDER {
        let (less, borrow) = subtract(&s, &ORDER);
        carry &= !borrow;
        s = less;
    }
    (G_X, s)
}

/// The same as DER.
pub fn signature_der(message: &[u8]) -> Vec<u8> {
    let (r, s) = signature(message);
    tlv(0x30, &[&integer(&r), &integer(&s)])
}

/// What was signed, the algorithm, the signature: the frame of certificates and requests.
pub fn signed(content: &[u8]) -> Vec<u8> {
    let signature = signature_der(content);
    tlv(0x30, &[content, ECDSA_SHA256, &tlv(0x03, &[&[0], &signature])])
}

/// The public key as SubjectPublicKeyInfo.
pub fn spki() -> Vec<u8> {
    tlv(0x30, &[EC_P256, &tlv(0x03, &[&[0, 4], &G_X, &G_Y])])
}

/// The private key as PKCS#8.
pub fn pkcs8() -> Vec<u8> {
    let mut one = [0; 32];
    one[31] = 1;
    let public = tlv(0xa1, &[&tlv(0x03, &[&[0, 4], &G_X, &G_Y])]);
    let key = tlv(0x30, &[&[2, 1, 1], &tlv(0x04, &[&one]), &public]);
    tlv(0x30, &[&[2, 1, 0], EC_P256, &tlv(0x04, &[&key])])
}

/// One DER element.
pub fn tlv(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let octets = length.to_be_bytes();
    let significant = &octets[octets.iter().take_while(|octet| **octet == 0).count()..];
    let mut out = vec![tag];
    if length < 0x80 {
        out.push(length as u8);
    } else {
        out.push(0x80 | significant.len() as u8);
        out.extend_from_slice(significant);
    }
    parts.iter().for_each(|part| out.extend_from_slice(part));
    out
}

/// A CA certificate of `example.org` with this key, valid from 2020 to 2040.
pub fn authority() -> Vec<u8> {
    let serial = SerialNumber::from(1_u128);
    let (from, until) =
        (Timestamp::from_unix_seconds(1_577_836_800), Timestamp::from_unix_seconds(2_208_988_800));
    self_signed_ca(&KnownKey::default(), &crate::trust_domain(), &CaSubject::default(), from, until, serial)
        .expect("the profile is sound")
}

/// What issues under [`authority`].
pub fn issuer() -> X509Issuer {
    X509Issuer::new(&crate::trust_domain(), authority(), Vec::new(), Arc::new(KnownKey::default()))
        .expect("the authority is sound")
}

/// A leaf of [`authority`], with this key, valid for the hour before and after [`crate::NOW`].
pub fn leaf() -> Vec<u8> {
    let hour = std::time::Duration::from_secs(3600);
    let key = KnownKey::default();
    let profile = LeafProfile {
        spiffe_id: &crate::trust_domain().agent_id("x509pop/n1").expect("a valid path"),
        dns_names: &[DnsName::parse("n1.example.org").expect("a valid name")],
        subject: Subject::Default,
        public_key: key.public_key(),
        not_before: crate::NOW.saturating_sub(hour),
        not_after: crate::NOW.saturating_add(hour),
        serial: SerialNumber::from(77_u128),
    };
    issuer().issue(&profile).expect("the profile is sound")
}

/// [`authority`], to verify with.
pub fn roots() -> TrustRoots {
    TrustRoots::from_der([&authority()[..]]).expect("the authority is sound")
}

/// Verification keys of `example.org`: this one under the key ID `one`, [`rsa`] under `rsa`.
pub fn token_keys() -> JwtKeys {
    let mut keys = JwtKeys::new();
    keys.insert(crate::trust_domain(), &token_authorities());
    keys
}

/// The same as authorities of a bundle.
pub fn token_authorities() -> [JwtAuthority; 2] {
    let authority = |key_id: &str, public_key| JwtAuthority {
        key_id: key_id.into(),
        public_key,
        expires_at: None,
        tainted: false,
    };
    [authority("one", spki()), authority("rsa", rsa().public_key().spki_der().to_vec())]
}

/// An RSA key of 2048 bits that is a secret no more than the other.
pub fn rsa() -> PrivateKey {
    PrivateKey::from_pkcs8_der(include_bytes!("../keys/rsa-2048.pkcs8.der")).expect("it is a key")
}

fn integer(magnitude: &[u8; 32]) -> Vec<u8> {
    let skipped = magnitude.iter().take_while(|byte| **byte == 0).count().min(31);
    let magnitude = &magnitude[skipped..];
    let sign: &[u8] = if magnitude[0] >= 0x80 { &[0] } else { &[] };
    tlv(0x02, &[sign, magnitude])
}

fn add(a: &[u8; 32], b: &[u8; 32]) -> ([u8; 32], bool) {
    let (mut sum, mut carry) = ([0; 32], 0);
    for at in (0..32).rev() {
        let digit = u16::from(a[at]) + u16::from(b[at]) + carry;
        sum[at] = digit as u8; // the low byte is meant
        carry = digit >> 8;
    }
    (sum, carry == 1)
}

fn subtract(a: &[u8; 32], b: &[u8; 32]) -> ([u8; 32], bool) {
    let (mut difference, mut borrow) = ([0; 32], false);
    for at in (0..32).rev() {
        let (digit, first) = a[at].overflowing_sub(b[at]);
        let (digit, second) = digit.overflowing_sub(u8::from(borrow));
        difference[at] = digit;
        borrow = first || second;
    }
    (difference, borrow)
}

/// ecdsa-with-SHA256.
pub(crate) const ECDSA_SHA256: &[u8] =
    &[0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
/// id-ecPublicKey with prime256v1.
const EC_P256: &[u8] = &[
    0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07,
];

// The curve's order and generator (SP 800-186, section 3.2.1.3).
const ORDER: [u8; 32] = *b"\xff\xff\xff\xff\x00\x00\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff\
    \xbc\xe6\xfa\xad\xa7\x17\x9e\x84\xf3\xb9\xca\xc2\xfc\x63\x25\x51";
const G_X: [u8; 32] = *b"\x6b\x17\xd1\xf2\xe1\x2c\x42\x47\xf8\xbc\xe6\xe5\x63\xa4\x40\xf2\
    \x77\x03\x7d\x81\x2d\xeb\x33\xa0\xf4\xa1\x39\x45\xd8\x98\xc2\x96";
const G_Y: [u8; 32] = *b"\x4f\xe3\x42\xe2\xfe\x1a\x7f\x9b\x8e\xe7\xeb\x4a\x7c\x0f\x9e\x16\
    \x2b\xce\x33\x57\x6b\x31\x5e\xce\xcb\xb6\x40\x68\x37\xbf\x51\xf5";
