//! Reading and writing structures (part 2).

use super::TpmError;
use crate::crypto::{self, Curve};
use crate::der::Writer;
use crate::jws::ecdsa_der_from_parts;
use crate::key::{PublicKey, VerificationAlgorithm};

/// Digests that keys are named and signed with (`TPM_ALG_ID`, 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hash {
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

impl Hash {
    /// The number of this algorithm.
    pub const fn id(self) -> u16 {
        match self {
            Self::Sha256 => 0x000b,
            Self::Sha384 => 0x000c,
            Self::Sha512 => 0x000d,
        }
    }

    fn from_id(id: u16) -> Result<Self, TpmError> {
        let known = [Self::Sha256, Self::Sha384, Self::Sha512].into_iter().find(|hash| hash.id() == id);
        known.ok_or(TpmError::Unsupported("its hash algorithm is none of SHA-256, SHA-384 and SHA-512"))
    }

    fn digest(self, data: &[u8]) -> Vec<u8> {
        crypto::sha2(self.bits(), data)
    }

    const fn bits(self) -> usize {
        match self {
            Self::Sha256 => 256,
            Self::Sha384 => 384,
            Self::Sha512 => 512,
        }
    }
}

/// How a key signs (`TPMT_SIG_SCHEME`, 11.2.1.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// RSA PKCS#1 v1.5.
    RsaSsa(Hash),
    /// RSA PSS.
    RsaPss(Hash),
    /// ECDSA.
    Ecdsa(Hash),
}

impl Scheme {
    /// Its two numbers, as commands want them.
    pub fn to_bytes(self) -> [u8; 4] {
        let (algorithm, hash) = match self {
            Self::RsaSsa(hash) => (ALG_RSASSA, hash),
            Self::RsaPss(hash) => (ALG_RSAPSS, hash),
            Self::Ecdsa(hash) => (ALG_ECDSA, hash),
        };
        let ([a, b], [c, d]) = (algorithm.to_be_bytes(), hash.id().to_be_bytes());
        [a, b, c, d]
    }

    /// The digest that is signed.
    pub const fn hash(self) -> Hash {
        match self {
            Self::RsaSsa(hash) | Self::RsaPss(hash) | Self::Ecdsa(hash) => hash,
        }
    }

    fn of(algorithm: u16, hash: u16) -> Result<Self, TpmError> {
        let hash = Hash::from_id(hash)?;
        match algorithm {
            ALG_RSASSA => Ok(Self::RsaSsa(hash)),
            ALG_RSAPSS => Ok(Self::RsaPss(hash)),
            ALG_ECDSA => Ok(Self::Ecdsa(hash)),
            _ => Err(TpmError::Unsupported("its signature scheme is none of RSASSA, RSAPSS and ECDSA")),
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Option<Self>, TpmError> {
        match reader.u16()? {
            ALG_NULL => Ok(None),
            algorithm => Self::of(algorithm, reader.u16()?).map(Some),
        }
    }
}

/// What may be done with an object (`TPMA_OBJECT`, 8.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes(u32);

/// The bits of [`Attributes`].
pub mod attributes {
    /// Neither the object nor its ancestors can be duplicated.
    pub const FIXED_TPM: u32 = 1 << 1;
    /// It stays under its parent.
    pub const FIXED_PARENT: u32 = 1 << 4;
    /// The TPM made the secret itself.
    pub const SENSITIVE_DATA_ORIGIN: u32 = 1 << 5;
    /// Its password authorizes its use.
    pub const USER_WITH_AUTH: u32 = 1 << 6;
    /// Its policy alone authorizes what concerns the object itself.
    pub const ADMIN_WITH_POLICY: u32 = 1 << 7;
    /// Wrong passwords are not counted.
    pub const NO_DA: u32 = 1 << 10;
    /// It signs only what the TPM made, or decrypts only what the TPM keeps.
    pub const RESTRICTED: u32 = 1 << 16;
    /// It decrypts.
    pub const DECRYPT: u32 = 1 << 17;
    /// It signs.
    pub const SIGN: u32 = 1 << 18;
    /// It was made by the TPM that holds it, and never leaves it.
    pub const RESIDENT: u32 = FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN;
}

impl Attributes {
    /// Whether all of these bits are set.
    pub const fn has(self, bits: u32) -> bool {
        self.0 & bits == bits
    }
}

/// The kinds of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// RSA.
    Rsa,
    /// A key on P-256 or P-384.
    Ecc,
}

/// The public area of a key (`TPMT_PUBLIC`, 12.2.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Public {
    wire: Vec<u8>,
    name_hash: Hash,
    attributes: Attributes,
    aes_bits: Option<u16>,
    scheme: Option<Scheme>,
    unique: Unique,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Unique {
    Rsa { exponent: u32, modulus: Vec<u8> },
    Ecc { curve: Curve, x: Vec<u8>, y: Vec<u8> },
}

impl Public {
    /// Reads a public area, without the length that often precedes it.
    ///
    /// # Errors
    /// [`TpmError::Malformed`] or [`TpmError::Unsupported`].
    pub fn parse(bytes: &[u8]) -> Result<Self, TpmError> {
        if bytes.len() > MAX_STRUCTURE {
            return Err(TpmError::Malformed("a public area has at most 1024 bytes"));
        }
        let mut reader = Reader(bytes);
        let kind = reader.u16()?;
        if kind != ALG_RSA && kind != ALG_ECC {
            return Err(TpmError::Unsupported("it is neither an RSA nor an elliptic-curve key"));
        }
        let name_hash = Hash::from_id(reader.u16()?)?;
        let attributes = Attributes(reader.u32()?);
        reader.sized()?;
        let aes_bits = match reader.u16()? {
            ALG_NULL => None,
            ALG_AES => {
                let bits = reader.u16()?;
                if reader.u16()? != ALG_CFB {
                    return Err(TpmError::Unsupported("it protects others with a mode that is not CFB"));
                }
                Some(bits)
            }
            _ => return Err(TpmError::Unsupported("it protects others with a cipher that is not AES")),
        };
        let scheme = Scheme::read(&mut reader)?;
        let unique = if kind == ALG_RSA {
            let bits = reader.u16()?;
            // Zero stands for 2^16 + 1 (12.2.3.5).
            let exponent = match reader.u32()? {
                0 => 65_537,
                exponent => exponent,
            };
            let modulus = reader.sized()?;
            if modulus.len() * 8 != usize::from(bits) {
                return Err(TpmError::Malformed("the modulus has not the size that it is said to have"));
            }
            Unique::Rsa { exponent, modulus: modulus.to_vec() }
        } else {
            let (curve, size) = match reader.u16()? {
                CURVE_P256 => (Curve::P256, 32),
                CURVE_P384 => (Curve::P384, 48),
                _ => return Err(TpmError::Unsupported("its curve is neither P-256 nor P-384")),
            };
            if reader.u16()? != ALG_NULL {
                reader.u16()?;
            }
            let (x, y) = (reader.sized()?, reader.sized()?);
            if x.len() > size || y.len() > size {
                return Err(TpmError::Malformed("a coordinate is longer than those of its curve"));
            }
            Unique::Ecc { curve, x: x.to_vec(), y: y.to_vec() }
        };
        reader.end()?;
        Ok(Self { wire: bytes.to_vec(), name_hash, attributes, aes_bits, scheme, unique })
    }

    /// The bytes that were read.
    pub fn wire(&self) -> &[u8] {
        &self.wire
    }

    /// The kind of key.
    pub fn kind(&self) -> Kind {
        match self.unique {
            Unique::Rsa { .. } => Kind::Rsa,
            Unique::Ecc { .. } => Kind::Ecc,
        }
    }

    /// What may be done with it.
    pub fn attributes(&self) -> Attributes {
        self.attributes
    }

    /// How it signs, where that is fixed.
    pub fn scheme(&self) -> Option<Scheme> {
        self.scheme
    }

    /// The digest that its name is made with.
    pub fn name_hash(&self) -> Hash {
        self.name_hash
    }

    /// The bits of AES with which it protects others.
    pub(super) fn aes_bits(&self) -> Option<u16> {
        self.aes_bits
    }

    /// Its name: an algorithm and the digest of the public area (part 1, 16).
    pub fn name(&self) -> Vec<u8> {
        let mut name = self.name_hash.id().to_be_bytes().to_vec();
        name.extend(self.name_hash.digest(&self.wire));
        name
    }

    /// The key itself, checked by the key policy.
    ///
    /// # Errors
    /// [`TpmError::Key`].
    pub fn key(&self) -> Result<PublicKey, TpmError> {
        Ok(match &self.unique {
            Unique::Rsa { exponent, modulus } => {
                let mut writer = Writer::with_capacity(modulus.len() + 20);
                writer.sequence(|writer| {
                    writer.integer(modulus);
                    writer.integer(&exponent.to_be_bytes());
                });
                PublicKey::from_bare(None, &writer.finish())?
            }
            Unique::Ecc { curve, x, y } => {
                let size = match curve {
                    Curve::P256 => 32,
                    Curve::P384 => 48,
                };
                // A TPM may leave out leading zeros.
                let mut point = vec![0; 1 + 2 * size];
                point[0] = 4;
                point[1 + size - x.len()..=size].copy_from_slice(x);
                point[1 + 2 * size - y.len()..].copy_from_slice(y);
                PublicKey::from_bare(Some(*curve), &point)?
            }
        })
    }

    /// Whether a key that the TPM made signs statements of the TPM only: an attestation key.
    ///
    /// # Errors
    /// [`TpmError::Unfit`] says what is missing.
    pub fn is_attestation_key(&self) -> Result<(), TpmError> {
        self.is_resident()?;
        let has = |bits| self.attributes.has(bits);
        let demands = [
            (has(attributes::RESTRICTED), "is not restricted: it would sign a forged statement"),
            (has(attributes::SIGN), "does not sign"),
            (!has(attributes::DECRYPT), "decrypts: one that signs statements must do nothing else"),
            (self.scheme == Some(Scheme::RsaSsa(Hash::Sha256)), "does not sign with RSASSA and SHA-256"),
            (self.name_hash == Hash::Sha256, "is not named with SHA-256"),
        ];
        fulfilled(&demands)
    }

    /// Whether a key that the TPM made signs, as a key of a device identity does.
    ///
    /// # Errors
    /// [`TpmError::Unfit`] says what is missing.
    pub fn is_device_key(&self) -> Result<(), TpmError> {
        self.is_resident()?;
        let has = |bits| self.attributes.has(bits);
        fulfilled(&[
            (has(attributes::SIGN), "does not sign"),
            (!has(attributes::DECRYPT), "decrypts: a device identity must only sign"),
        ])
    }

    /// Whether a key that the TPM made protects what is meant for this TPM: an endorsement key.
    ///
    /// # Errors
    /// [`TpmError::Unfit`] says what is missing.
    pub fn is_endorsement_key(&self) -> Result<(), TpmError> {
        self.is_resident()?;
        let has = |bits| self.attributes.has(bits);
        fulfilled(&[
            (self.kind() == Kind::Rsa, "is no RSA key"),
            (has(attributes::RESTRICTED | attributes::DECRYPT), "is no restricted decryption key"),
            (!has(attributes::SIGN), "signs"),
            (matches!(self.aes_bits, Some(128 | 256)), "does not protect with AES of 128 or 256 bits"),
            (self.name_hash == Hash::Sha256, "is not named with SHA-256"),
        ])
    }

    fn is_resident(&self) -> Result<(), TpmError> {
        let has = |bits| self.attributes.has(bits);
        fulfilled(&[
            (has(attributes::FIXED_TPM), "is not fixed to its TPM: it could be copied"),
            (has(attributes::FIXED_PARENT), "is not fixed to its parent: it could be copied"),
            (has(attributes::SENSITIVE_DATA_ORIGIN), "was not made by the TPM"),
        ])
    }
}

fn fulfilled(demands: &[(bool, &'static str)]) -> Result<(), TpmError> {
    match demands.iter().find(|(met, _)| !met) {
        Some((_, problem)) => Err(TpmError::Unfit(problem)),
        None => Ok(()),
    }
}

/// The public areas that keys are made from.
pub mod template {
    use super::{
        ALG_AES, ALG_CFB, ALG_ECC, ALG_NULL, ALG_RSA, CURVE_P256, Hash, Kind, Scheme, attributes as bit,
        sized,
    };

    /// The storage key of the owner, under which keys of device identities are kept: templates H-1 and H-2 of the TCG EK
    /// Credential Profile with the attributes of the TCG TPM v2.0 Provisioning Guidance, 7.5.1.
    pub fn storage_root(kind: Kind) -> Vec<u8> {
        let bits = bit::RESIDENT | bit::USER_WITH_AUTH | bit::NO_DA | bit::RESTRICTED | bit::DECRYPT;
        match kind {
            Kind::Rsa => rsa(bits, &[], &aes(), None, &[]),
            Kind::Ecc => ecc(bits, &aes(), None),
        }
    }

    /// An attestation key: RSASSA with SHA-256.
    pub fn attestation_key() -> Vec<u8> {
        let bits = bit::RESIDENT | bit::USER_WITH_AUTH | bit::NO_DA | bit::RESTRICTED | bit::SIGN;
        rsa(bits, &[], &ALG_NULL.to_be_bytes(), Some(Scheme::RsaSsa(Hash::Sha256)), &[])
    }

    /// A key that signs whatever its holder gives it, with SHA-256.
    pub fn signing_key(kind: Kind) -> Vec<u8> {
        let bits = bit::RESIDENT | bit::USER_WITH_AUTH | bit::NO_DA | bit::SIGN;
        match kind {
            Kind::Rsa => rsa(bits, &[], &ALG_NULL.to_be_bytes(), Some(Scheme::RsaSsa(Hash::Sha256)), &[]),
            Kind::Ecc => ecc(bits, &ALG_NULL.to_be_bytes(), Some(Scheme::Ecdsa(Hash::Sha256))),
        }
    }

    /// The endorsement key for which manufacturers make certificates: template L-1 of the TCG EK Credential Profile.
    pub fn endorsement_key() -> Vec<u8> {
        // The policy that whoever knows the password of the endorsement hierarchy may use the key.
        const POLICY: [u8; 32] = [
            0x83, 0x71, 0x97, 0x67, 0x44, 0x84, 0xb3, 0xf8, 0x1a, 0x90, 0xcc, 0x8d, 0x46, 0xa5, 0xd7, 0x24,
            0xfd, 0x52, 0xd7, 0x6e, 0x06, 0x52, 0x0b, 0x64, 0xf2, 0xa1, 0xda, 0x1b, 0x33, 0x14, 0x69, 0xaa,
        ];
        let bits = bit::RESIDENT | bit::ADMIN_WITH_POLICY | bit::RESTRICTED | bit::DECRYPT;
        rsa(bits, &POLICY, &aes(), None, &[0; 256])
    }

    fn aes() -> Vec<u8> {
        [ALG_AES.to_be_bytes(), 128_u16.to_be_bytes(), ALG_CFB.to_be_bytes()].concat()
    }

    fn rsa(
        attributes: u32,
        policy: &[u8],
        symmetric: &[u8],
        scheme: Option<Scheme>,
        unique: &[u8],
    ) -> Vec<u8> {
        let mut out = head(ALG_RSA, attributes, policy, symmetric, scheme);
        out.extend(2048_u16.to_be_bytes());
        out.extend(0_u32.to_be_bytes());
        out.extend(sized(unique));
        out
    }

    fn ecc(attributes: u32, symmetric: &[u8], scheme: Option<Scheme>) -> Vec<u8> {
        let mut out = head(ALG_ECC, attributes, &[], symmetric, scheme);
        out.extend(CURVE_P256.to_be_bytes());
        out.extend(ALG_NULL.to_be_bytes());
        out.extend(sized(&[]));
        out.extend(sized(&[]));
        out
    }

    fn head(kind: u16, attributes: u32, policy: &[u8], symmetric: &[u8], scheme: Option<Scheme>) -> Vec<u8> {
        let mut out = kind.to_be_bytes().to_vec();
        out.extend(Hash::Sha256.id().to_be_bytes());
        out.extend(attributes.to_be_bytes());
        out.extend(sized(policy));
        out.extend_from_slice(symmetric);
        match scheme {
            Some(scheme) => out.extend(scheme.to_bytes()),
            None => out.extend(ALG_NULL.to_be_bytes()),
        }
        out
    }
}

/// What a TPM states about a key that it holds (`TPMS_ATTEST` of the type `TPM_ST_ATTEST_CERTIFY`, 10.12.8).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertifyStatement {
    /// The name of the key.
    pub name: Vec<u8>,
}

impl CertifyStatement {
    /// Reads a statement.
    ///
    /// # Errors
    /// [`TpmError::Malformed`], also for statements about something else.
    pub fn parse(bytes: &[u8]) -> Result<Self, TpmError> {
        if bytes.len() > MAX_STRUCTURE {
            return Err(TpmError::Malformed("a statement has at most 1024 bytes"));
        }
        let mut reader = Reader(bytes);
        // The value that a restricted key signs nothing else with.
        if reader.u32()? != 0xff54_4347 {
            return Err(TpmError::Malformed("the statement does not begin as those of a TPM do"));
        }
        if reader.u16()? != 0x8017 {
            return Err(TpmError::Malformed("the statement does not certify a key"));
        }
        // Who signed, what the caller added, the clock (17 bytes), the firmware.
        reader.sized()?;
        reader.sized()?;
        reader.take(17 + 8)?;
        let name = reader.sized()?.to_vec();
        reader.sized()?;
        reader.end()?;
        Ok(Self { name })
    }
}

/// A signature that a TPM made (`TPMT_SIGNATURE`, 11.3.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// How it was made.
    pub scheme: Scheme,
    bytes: Vec<u8>,
}

impl Signature {
    /// Reads a signature.
    ///
    /// # Errors
    /// [`TpmError::Malformed`] or [`TpmError::Unsupported`].
    pub fn parse(bytes: &[u8]) -> Result<Self, TpmError> {
        if bytes.len() > MAX_STRUCTURE + 8 {
            return Err(TpmError::Malformed("a signature has at most 1032 bytes"));
        }
        let mut reader = Reader(bytes);
        let scheme = Scheme::of(reader.u16()?, reader.u16()?)?;
        let bytes = match scheme {
            Scheme::RsaSsa(_) | Scheme::RsaPss(_) => reader.sized()?.to_vec(),
            Scheme::Ecdsa(_) => {
                let (r, s) = (reader.sized()?, reader.sized()?);
                ecdsa_der_from_parts(r, s)
            }
        };
        reader.end()?;
        Ok(Self { scheme, bytes })
    }

    /// The signature as others know it: the number of RSA, or the DER of ECDSA.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Whether it is one of this key over this message.
    pub fn verify(&self, key: &PublicKey, message: &[u8]) -> bool {
        use VerificationAlgorithm as V;
        let algorithm = match self.scheme {
            Scheme::RsaSsa(Hash::Sha256) => V::RsaPkcs1Sha256,
            Scheme::RsaSsa(Hash::Sha384) => V::RsaPkcs1Sha384,
            Scheme::RsaSsa(Hash::Sha512) => V::RsaPkcs1Sha512,
            Scheme::Ecdsa(Hash::Sha256) => V::EcdsaSha256,
            Scheme::Ecdsa(Hash::Sha384) => V::EcdsaSha384,
            Scheme::RsaPss(_) | Scheme::Ecdsa(Hash::Sha512) => return false,
        };
        key.verify(algorithm, message, &self.bytes)
    }
}

/// Reads big-endian numbers and sized buffers.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], TpmError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(TpmError::Malformed("it is cut short"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn u16(&mut self) -> Result<u16, TpmError> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn u32(&mut self) -> Result<u32, TpmError> {
        Ok(u32::from(self.u16()?) << 16 | u32::from(self.u16()?))
    }

    fn sized(&mut self) -> Result<&'a [u8], TpmError> {
        let size = self.u16()?;
        self.take(size.into())
    }

    fn end(&self) -> Result<(), TpmError> {
        if self.0.is_empty() { Ok(()) } else { Err(TpmError::Malformed("there are bytes after its end")) }
    }
}

fn sized(bytes: &[u8]) -> Vec<u8> {
    let size = u16::try_from(bytes.len()).expect("templates are short");
    [&size.to_be_bytes()[..], bytes].concat()
}

/// Larger than each structure of RSA keys with 4096 bits, which is what TPMs have.
const MAX_STRUCTURE: usize = 1024;

const ALG_RSA: u16 = 0x0001;
const ALG_AES: u16 = 0x0006;
const ALG_NULL: u16 = 0x0010;
const ALG_RSASSA: u16 = 0x0014;
const ALG_RSAPSS: u16 = 0x0016;
const ALG_ECDSA: u16 = 0x0018;
const ALG_ECC: u16 = 0x0023;
const ALG_CFB: u16 = 0x0043;
const CURVE_P256: u16 = 0x0003;
const CURVE_P384: u16 = 0x0004;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{KeyType, PrivateKey, SignatureAlgorithm, Signer as _};

    /// An endorsement key's public area with this modulus.
    fn rsa_with(template: &[u8], modulus: &[u8]) -> Vec<u8> {
        let head = match template.ends_with(&[0; 256]) {
            true => template.len() - 258,
            false => template.len() - 2,
        };
        [&template[..head], &sized(modulus)].concat()
    }

    #[test]
    fn public_areas_are_read_whole_or_not_at_all() {
        let wire = rsa_with(&template::attestation_key(), &[0xc1; 256]);
        let public = Public::parse(&wire).unwrap();
        assert_eq!((public.kind(), public.wire()), (Kind::Rsa, &wire[..]));
        assert_eq!(public.scheme(), Some(Scheme::RsaSsa(Hash::Sha256)));
        assert_eq!(public.key().unwrap().algorithm().to_string(), "RSA 2048");
        assert_eq!((public.name().len(), &public.name()[..2]), (34, &[0, 0x0b][..]));
        public.is_attestation_key().unwrap();
        for cut in 0..wire.len() {
            assert!(matches!(Public::parse(&wire[..cut]), Err(TpmError::Malformed(_))), "{cut}");
        }
        assert!(Public::parse(&[&wire[..], &[0]].concat()).is_err());
        assert!(Public::parse(&rsa_with(&template::attestation_key(), &[0xc1; 255])).is_err());
        let ecc = template::storage_root(Kind::Ecc);
        let point = [&ecc[..ecc.len() - 4], &sized(&[1; 31]), &sized(&[2; 32])].concat();
        let public = Public::parse(&point).unwrap();
        let bare = public.key().unwrap();
        assert_eq!(bare.bare()[..3], [4, 0, 1]);
        assert!(
            Public::parse(&[&ecc[..ecc.len() - 4], &sized(&[1; 33]), &sized(&[2; 32])].concat()).is_err()
        );
    }

    #[test]
    fn each_role_demands_its_attributes() {
        let with = |template: &[u8], clear: u32, set: u32| {
            let mut wire = rsa_with(template, &[0xc1; 256]);
            let bits = u32::from_be_bytes(wire[4..8].try_into().unwrap()) & !clear | set;
            wire[4..8].copy_from_slice(&bits.to_be_bytes());
            Public::parse(&wire).unwrap()
        };
        let (ak, ek) = (template::attestation_key(), template::endorsement_key());
        let devid = template::signing_key(Kind::Rsa);
        with(&ak, 0, 0).is_attestation_key().unwrap();
        with(&ek, 0, 0).is_endorsement_key().unwrap();
        with(&devid, 0, 0).is_device_key().unwrap();
        with(&devid, 0, attributes::RESTRICTED).is_device_key().unwrap();
        for bit in [attributes::FIXED_TPM, attributes::FIXED_PARENT, attributes::SENSITIVE_DATA_ORIGIN] {
            assert!(with(&ak, bit, 0).is_attestation_key().is_err());
            assert!(with(&ek, bit, 0).is_endorsement_key().is_err());
            assert!(with(&devid, bit, 0).is_device_key().is_err());
        }
        for bit in [attributes::RESTRICTED, attributes::SIGN] {
            assert!(with(&ak, bit, 0).is_attestation_key().is_err());
        }
        assert!(with(&ak, 0, attributes::DECRYPT).is_attestation_key().is_err());
        assert!(with(&ek, attributes::DECRYPT, 0).is_endorsement_key().is_err());
        assert!(with(&ek, 0, attributes::SIGN).is_endorsement_key().is_err());
        assert!(with(&devid, attributes::SIGN, 0).is_device_key().is_err());
        assert!(with(&devid, 0, attributes::DECRYPT).is_device_key().is_err());
        assert!(with(&ak, 0, 0).is_endorsement_key().is_err());
        assert!(with(&ek, 0, 0).is_attestation_key().is_err());
    }

    #[test]
    fn statements_are_read_whole_or_not_at_all() {
        let statement = [
            &[0xff, 0x54, 0x43, 0x47, 0x80, 0x17][..],
            &sized(b"signer"),
            &sized(b"extra"),
            &[0; 25],
            &sized(b"name"),
            &sized(b"qualified"),
        ]
        .concat();
        assert_eq!(CertifyStatement::parse(&statement).unwrap().name, b"name");
        for cut in 0..statement.len() {
            assert!(CertifyStatement::parse(&statement[..cut]).is_err(), "{cut}");
        }
        assert!(CertifyStatement::parse(&[&statement[..], &[0]].concat()).is_err());
        for at in 0..6 {
            let mut changed = statement.clone();
            changed[at] ^= 1;
            assert!(CertifyStatement::parse(&changed).is_err(), "byte {at}");
        }
    }

    #[test]
    fn signatures_are_those_of_their_scheme() {
        let key = PrivateKey::generate(KeyType::EcP256).unwrap();
        let der = key.sign_with(SignatureAlgorithm::EcdsaP256Sha256, b"message").unwrap();
        let (r, s) = crate::jws::ecdsa_parts(&der).unwrap();
        let wire = [&[0, 0x18, 0, 0x0b][..], &sized(r), &sized(s)].concat();
        let signature = Signature::parse(&wire).unwrap();
        assert!(signature.verify(key.public_key(), b"message"));
        assert!(!signature.verify(key.public_key(), b"massage"));
        assert_eq!(signature.into_bytes(), der);
        assert!(Signature::parse(&[&wire[..], &[0]].concat()).is_err());
        assert!(matches!(Signature::parse(&[0, 0x1a, 0, 0x0b]), Err(TpmError::Unsupported(_))));
        assert!(matches!(Signature::parse(&[0, 0x18, 0, 0x04]), Err(TpmError::Unsupported(_))));
    }
}
