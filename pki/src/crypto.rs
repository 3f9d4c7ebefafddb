//! The cryptographic backend, and the only module that names it.
//!
//! ring and aws-lc-rs share most of their interface, so one body serves both; the few places that differ are
//! gated here. Both at once are refused: rustls panics at run time when it finds two providers, and a process
//! must not hold two implementations of the same signature.

#[cfg(all(feature = "ring", feature = "aws-lc"))]
compile_error!(
    "features `ring` and `aws-lc` exclude each other: build with --no-default-features for aws-lc"
);
#[cfg(not(any(feature = "ring", feature = "aws-lc")))]
compile_error!("choose a cryptographic backend: feature `ring` or `aws-lc`");

#[cfg(feature = "aws-lc")]
use aws_lc_rs as backend;
#[cfg(all(feature = "ring", not(feature = "aws-lc")))]
use ring as backend;

use backend::agreement;
use backend::digest;
use backend::hmac;
use backend::rand::{SecureRandom as _, SystemRandom};
use backend::signature::{
    self, EcdsaKeyPair, EcdsaSigningAlgorithm, KeyPair as _, RsaKeyPair, UnparsedPublicKey,
};
use rustls::crypto::CryptoProvider;
use rustls_pki_types::SignatureVerificationAlgorithm;
use zeroize::Zeroizing;

use crate::key::{SignatureAlgorithm, VerificationAlgorithm};

/// The two curves that the policy allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Curve {
    P256,
    P384,
}

/// The backend refused; it never says why, so neither can we.
#[derive(Debug)]
pub(crate) struct Refused;

/// Fills `out` from the operating system's random source.
pub(crate) fn fill_random(out: &mut [u8]) {
    SystemRandom::new()
        .fill(out)
        .expect("the operating system's random source never fails once it is seeded");
}

/// SHA-1, for key identifiers and certificate fingerprints only.
pub(crate) fn sha1(data: &[u8]) -> [u8; 20] {
    let mut out = [0; 20];
    out.copy_from_slice(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, data).as_ref());
    out
}

/// SHA-256 of something that comes in parts.
pub(crate) struct Sha256(digest::Context);

impl Sha256 {
    pub(crate) fn new() -> Self {
        Self(digest::Context::new(&digest::SHA256))
    }

    pub(crate) fn update(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    pub(crate) fn finish(self) -> [u8; 32] {
        let mut out = [0; 32];
        out.copy_from_slice(self.0.finish().as_ref());
        out
    }
}

/// A digest of the SHA-2 family: 256, 384 or 512 bits.
pub(crate) fn sha2(bits: usize, data: &[u8]) -> Vec<u8> {
    let algorithm = match bits {
        256 => &digest::SHA256,
        384 => &digest::SHA384,
        _ => &digest::SHA512,
    };
    digest::digest(algorithm, data).as_ref().to_vec()
}

/// HMAC with SHA-256 over these parts.
pub(crate) fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key));
    parts.iter().for_each(|part| context.update(part));
    context.sign().as_ref().to_vec()
}

/// AES in the CFB mode with full blocks and a first block of zeros (NIST SP 800-38A, 6.3), in place. The backends do not offer it.
pub(crate) fn aes_cfb_encrypt(key: &[u8], data: &mut [u8]) -> Result<(), Refused> {
    fn chained<C: BlockCipherEncrypt + BlockSizeUser<BlockSize = U16>>(cipher: &C, data: &mut [u8]) {
        let mut register = aes::Block::default();
        for block in data.chunks_mut(16) {
            cipher.encrypt_block(&mut register);
            for (byte, pad) in block.iter_mut().zip(register.iter()) {
                *byte ^= pad;
            }
            register[..block.len()].copy_from_slice(block);
        }
    }
    use aes::cipher::consts::U16;
    use aes::cipher::{BlockCipherEncrypt, BlockSizeUser, KeyInit as _};

    match key.len() {
        16 => chained(&aes::Aes128::new_from_slice(key).map_err(|_| Refused)?, data),
        32 => chained(&aes::Aes256::new_from_slice(key).map_err(|_| Refused)?, data),
        _ => return Err(Refused),
    }
    Ok(())
}

/// Encrypts to an RSA key with OAEP and SHA-256. `key` is a PKCS#1 RSAPublicKey.
pub(crate) fn rsa_oaep_sha256(
    key: &[u8],
    label: &[u8],
    message: &[u8],
    random: &dyn crate::random::Random,
) -> Result<Vec<u8>, Refused> {
    use rsa::traits::RandomizedEncryptor as _;

    let key = rsa_public(key).ok_or(Refused)?;
    rsa::oaep::EncryptingKey::<rsa::sha2::Sha256>::new_with_label(key, label)
        .encrypt_with_rng(&mut Generator(random), message)
        .map_err(|_| Refused)
}

fn rsa_public(key: &[u8]) -> Option<rsa::PublicKey> {
    use rsa::BoxedUint;

    let number =
        |bytes: &[u8]| BoxedUint::from_be_slice(bytes, u32::try_from(bytes.len() * 8).unwrap_or(0)).ok();
    let (modulus, exponent) = crate::key::rsa_components(key).ok()?;
    rsa::PublicKey::new_with_size_limits(number(modulus)?, number(exponent)?, 2048..=8192).ok()
}

/// Whether two secrets are the same, in a time that depends on their lengths only.
pub(crate) fn same(one: &[u8], other: &[u8]) -> bool {
    use subtle::ConstantTimeEq as _;

    one.ct_eq(other).into()
}

/// SHA-384, as reports of devices are signed and measured with.
pub(crate) fn sha384(data: &[u8]) -> [u8; 48] {
    let mut out = [0; 48];
    out.copy_from_slice(digest::digest(&digest::SHA384, data).as_ref());
    out
}

/// Verifies an ECDSA signature on P-384 with SHA-384 that is written as r and s of 48 bytes each. `key` is the
/// uncompressed point.
pub(crate) fn verify_p384_fixed(key: &[u8], message: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&signature::ECDSA_P384_SHA384_FIXED, key).verify(message, signature).is_ok()
}

/// Verifies `signature` over `message`. `key` is the subjectPublicKey content: an uncompressed point or a PKCS#1
/// RSAPublicKey. `false` also when the backend lacks the combination.
pub(crate) fn verify(
    curve: Option<Curve>,
    algorithm: VerificationAlgorithm,
    key: &[u8],
    message: &[u8],
    signature: &[u8],
) -> bool {
    use VerificationAlgorithm as V;
    let method: &'static dyn signature::VerificationAlgorithm = match (curve, algorithm) {
        (Some(Curve::P256), V::EcdsaSha256) => &signature::ECDSA_P256_SHA256_ASN1,
        (Some(Curve::P256), V::EcdsaSha384) => &signature::ECDSA_P256_SHA384_ASN1,
        (Some(Curve::P384), V::EcdsaSha256) => &signature::ECDSA_P384_SHA256_ASN1,
        (Some(Curve::P384), V::EcdsaSha384) => &signature::ECDSA_P384_SHA384_ASN1,
        (None, V::RsaPkcs1Sha256) => &signature::RSA_PKCS1_2048_8192_SHA256,
        (None, V::RsaPkcs1Sha384) => &signature::RSA_PKCS1_2048_8192_SHA384,
        (None, V::RsaPkcs1Sha512) => &signature::RSA_PKCS1_2048_8192_SHA512,
        (None, V::RsaPssSha256) => &signature::RSA_PSS_2048_8192_SHA256,
        (None, V::RsaPssSha384) => &signature::RSA_PSS_2048_8192_SHA384,
        (None, V::RsaPssSha512) => &signature::RSA_PSS_2048_8192_SHA512,
        (None, V::RsaPssSha256AnySalt) => return verify_pss_any_salt(key, message, signature),
        _ => return false,
    };
    UnparsedPublicKey::new(method, key).verify(message, signature).is_ok()
}

/// RSA-PSS with a salt of any length: Go signs with the longest salt that fits, which neither backend verifies.
/// Only the public key is involved, so nothing secret passes through the RustCrypto code.
fn verify_pss_any_salt(key: &[u8], message: &[u8], signature: &[u8]) -> bool {
    use rsa::signature::Verifier as _;

    let Some(key) = rsa_public(key) else { return false };
    let Ok(signature) = rsa::pss::Signature::from_bytes_with_max_len(signature, 8192 / 8) else {
        return false;
    };
    rsa::pss::VerifyingKey::<rsa::sha2::Sha256>::new_with_auto_salt_len(key)
        .verify(message, &signature)
        .is_ok()
}

/// Verifies RSA PKCS#1 v1.5 with SHA-1, which Go's SSH library signs challenges with. Only for messages that hold a
/// nonce of ours: nobody can make two of those collide in advance.
pub(crate) fn verify_rsa_sha1(key: &[u8], message: &[u8], signature: &[u8]) -> bool {
    let method = &signature::RSA_PKCS1_2048_8192_SHA1_FOR_LEGACY_USE_ONLY;
    UnparsedPublicKey::new(method, key).verify(message, signature).is_ok()
}

/// Verifies an Ed25519 signature.
pub(crate) fn verify_ed25519(key: &[u8; 32], message: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&signature::ED25519, key).verify(message, signature).is_ok()
}

/// Signs with an Ed25519 key.
pub(crate) fn sign_ed25519(seed: &[u8; 32], public: &[u8; 32], message: &[u8]) -> Result<Vec<u8>, Refused> {
    let pair = signature::Ed25519KeyPair::from_seed_and_public_key(seed, public).map_err(|_| Refused)?;
    Ok(pair.sign(message).as_ref().to_vec())
}

/// Whether the halves of an Ed25519 key belong together.
pub(crate) fn ed25519_fits(seed: &[u8; 32], public: &[u8; 32]) -> bool {
    signature::Ed25519KeyPair::from_seed_and_public_key(seed, public).is_ok()
}

/// An RSA key as PKCS#8 from the numbers that OpenSSH writes: it leaves out two that the backend needs. The key is read
/// once; no operation with it happens outside of the backend (`docs/decisions/0002-rsa-keys.md`).
pub(crate) fn rsa_pkcs8(
    n: &[u8],
    e: &[u8],
    d: &[u8],
    p: &[u8],
    q: &[u8],
) -> Result<Zeroizing<Vec<u8>>, Refused> {
    use rsa::BoxedUint;
    use rsa::pkcs8::EncodePrivateKey as _;

    if n.len() > 8192 / 8 || [e, d, p, q].iter().any(|number| number.len() > n.len()) {
        return Err(Refused);
    }
    let number = |bytes: &[u8]| {
        BoxedUint::from_be_slice(bytes, u32::try_from(bytes.len() * 8).unwrap_or(0)).map_err(|_| Refused)
    };
    let key =
        rsa::PrivateKey::from_components(number(n)?, number(e)?, number(d)?, vec![number(p)?, number(q)?])
            .map_err(|_| Refused)?;
    let document = key.to_pkcs8_der().map_err(|_| Refused)?;
    Ok(Zeroizing::new(document.as_bytes().to_vec()))
}

/// Whether `point` (uncompressed) lies on the curve. Verifying a signature checks it as a matter of course; this
/// is for keys that arrive without one.
pub(crate) fn point_on_curve(curve: Curve, point: &[u8]) -> bool {
    let algorithm = match curve {
        Curve::P256 => &agreement::ECDH_P256,
        Curve::P384 => &agreement::ECDH_P384,
    };
    let Ok(ours) = agreement::EphemeralPrivateKey::generate(algorithm, &SystemRandom::new()) else {
        return false;
    };
    let theirs = agreement::UnparsedPublicKey::new(algorithm, point);
    #[cfg(feature = "aws-lc")]
    let agreed = agreement::agree_ephemeral(ours, theirs, (), |_| Ok(()));
    #[cfg(all(feature = "ring", not(feature = "aws-lc")))]
    let agreed = agreement::agree_ephemeral(ours, &theirs, |_| ());
    agreed.is_ok()
}

/// A private key inside the backend.
pub(crate) enum BackendKey {
    Ecdsa(Curve, EcdsaKeyPair),
    Rsa(RsaKeyPair),
}

impl BackendKey {
    pub(crate) fn ecdsa_from_pkcs8(curve: Curve, pkcs8: &[u8]) -> Result<Self, Refused> {
        #[cfg(feature = "aws-lc")]
        let pair = EcdsaKeyPair::from_pkcs8(signing(curve), pkcs8);
        #[cfg(all(feature = "ring", not(feature = "aws-lc")))]
        let pair = EcdsaKeyPair::from_pkcs8(signing(curve), pkcs8, &SystemRandom::new());
        pair.map(|pair| Self::Ecdsa(curve, pair)).map_err(|_| Refused)
    }

    pub(crate) fn rsa_from_pkcs8(pkcs8: &[u8]) -> Result<Self, Refused> {
        RsaKeyPair::from_pkcs8(pkcs8).map(Self::Rsa).map_err(|_| Refused)
    }

    /// The subjectPublicKey content.
    pub(crate) fn public_key(&self) -> &[u8] {
        match self {
            Self::Ecdsa(_, pair) => pair.public_key().as_ref(),
            Self::Rsa(pair) => pair.public_key().as_ref(),
        }
    }

    /// Signs; ECDSA signatures come out as DER. The backend can sign ECDSA only with the hash of the curve's size.
    pub(crate) fn sign(&self, algorithm: SignatureAlgorithm, message: &[u8]) -> Result<Vec<u8>, Refused> {
        use SignatureAlgorithm as S;
        let random = SystemRandom::new();
        match (self, algorithm) {
            (Self::Ecdsa(Curve::P256, pair), S::EcdsaP256Sha256)
            | (Self::Ecdsa(Curve::P384, pair), S::EcdsaP384Sha384) => {
                pair.sign(&random, message).map(|signature| signature.as_ref().to_vec()).map_err(|_| Refused)
            }
            (Self::Rsa(pair), S::RsaPkcs1Sha256) => rsa_sign(pair, &signature::RSA_PKCS1_SHA256, message),
            (Self::Rsa(pair), S::RsaPssSha256) => rsa_sign(pair, &signature::RSA_PSS_SHA256, message),
            _ => Err(Refused),
        }
    }
}

fn rsa_sign(
    pair: &RsaKeyPair,
    encoding: &'static dyn signature::RsaEncoding,
    message: &[u8],
) -> Result<Vec<u8>, Refused> {
    #[cfg(feature = "aws-lc")]
    let length = pair.public_modulus_len();
    #[cfg(all(feature = "ring", not(feature = "aws-lc")))]
    let length = pair.public().modulus_len();
    let mut out = vec![0; length];
    pair.sign(encoding, &SystemRandom::new(), message, &mut out).map_err(|_| Refused)?;
    Ok(out)
}

fn signing(curve: Curve) -> &'static EcdsaSigningAlgorithm {
    match curve {
        Curve::P256 => &signature::ECDSA_P256_SHA256_ASN1_SIGNING,
        Curve::P384 => &signature::ECDSA_P384_SHA384_ASN1_SIGNING,
    }
}

/// A fresh elliptic-curve key as PKCS#8.
pub(crate) fn generate_ec(curve: Curve) -> Result<Zeroizing<Vec<u8>>, Refused> {
    let document = EcdsaKeyPair::generate_pkcs8(signing(curve), &SystemRandom::new()).map_err(|_| Refused)?;
    Ok(Zeroizing::new(document.as_ref().to_vec()))
}

/// A fresh RSA key as PKCS#8. Takes seconds for 4096 bits.
#[cfg(feature = "aws-lc")]
pub(crate) fn generate_rsa(bits: usize) -> Result<Zeroizing<Vec<u8>>, Refused> {
    use backend::encoding::{AsDer as _, Pkcs8V1Der};
    use backend::rsa::{KeyPair, KeySize};
    let size = match bits {
        2048 => KeySize::Rsa2048,
        4096 => KeySize::Rsa4096,
        _ => return Err(Refused),
    };
    let pair = KeyPair::generate(size).map_err(|_| Refused)?;
    let der: Pkcs8V1Der<'static> = pair.as_der().map_err(|_| Refused)?;
    Ok(Zeroizing::new(der.as_ref().to_vec()))
}

/// A fresh RSA key as PKCS#8. Takes seconds for 4096 bits.
///
/// ring cannot make RSA keys. The RustCrypto crate is used for the primes alone; every private-key operation
/// happens in ring (`docs/decisions/0002-rsa-keys.md`).
#[cfg(all(feature = "ring", not(feature = "aws-lc")))]
pub(crate) fn generate_rsa(bits: usize) -> Result<Zeroizing<Vec<u8>>, Refused> {
    use rsa::pkcs8::EncodePrivateKey as _;

    let key =
        rsa::PrivateKey::new(&mut Generator(&crate::random::SystemRandom), bits).map_err(|_| Refused)?;
    let document = key.to_pkcs8_der().map_err(|_| Refused)?;
    Ok(Zeroizing::new(document.as_bytes().to_vec()))
}

/// A random source in the form that the RSA crate asks for.
struct Generator<'a>(&'a dyn crate::random::Random);

impl rsa::rand_core::TryRng for Generator<'_> {
    type Error = std::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        let mut bytes = [0; 4];
        self.0.fill(&mut bytes);
        Ok(u32::from_le_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        Ok(self.0.u64())
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Self::Error> {
        self.0.fill(out);
        Ok(())
    }
}

impl rsa::rand_core::TryCryptoRng for Generator<'_> {}

/// The TLS provider of this backend.
pub(crate) fn tls_provider() -> CryptoProvider {
    #[cfg(feature = "aws-lc")]
    return rustls::crypto::aws_lc_rs::default_provider();
    #[cfg(all(feature = "ring", not(feature = "aws-lc")))]
    return rustls::crypto::ring::default_provider();
}

/// What a certificate in a peer's chain may be signed with.
pub(crate) fn chain_algorithms() -> &'static [&'static dyn SignatureVerificationAlgorithm] {
    tls_provider().signature_verification_algorithms.all
}
