//! Keys: what kinds there are, what the policy allows, how they sign.
//!
//! A [`PublicKey`] can only hold a key that the policy allows: P-256, P-384, or RSA of 2048 to 8192 bits. Everything
//! that came from a peer passes through it, so a weak key is refused in one place. Smaller limits for
//! particular peers (RSA up to 4096 bits in a CSR) are checked where those bytes are read.
//!
//! P-521 and Ed25519 are left out: the default backend cannot verify P-521, and no peer of SPIRE uses Ed25519.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use zeroize::Zeroizing;

use crate::crypto::{self, BackendKey, Curve};
use crate::der::{self, DerError, Reader, Writer};
use crate::pem;

/// The kinds of keys that we generate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeyType {
    /// ECDSA on P-256: the default; 40 times cheaper to sign with than P-384 or RSA with the default backend.
    EcP256,
    /// ECDSA on P-384.
    EcP384,
    /// RSA, 2048 bits.
    Rsa2048,
    /// RSA, 4096 bits. Generating one takes seconds.
    Rsa4096,
}

impl KeyType {
    /// All kinds, for tables and tests.
    pub const ALL: [Self; 4] = [Self::EcP256, Self::EcP384, Self::Rsa2048, Self::Rsa4096];

    /// The name in configuration files.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::EcP256 => "ec-p256",
            Self::EcP384 => "ec-p384",
            Self::Rsa2048 => "rsa-2048",
            Self::Rsa4096 => "rsa-4096",
        }
    }

    /// What a key of this kind signs certificates and tokens with.
    pub const fn signature_algorithm(self) -> SignatureAlgorithm {
        match self {
            Self::EcP256 => SignatureAlgorithm::EcdsaP256Sha256,
            Self::EcP384 => SignatureAlgorithm::EcdsaP384Sha384,
            Self::Rsa2048 | Self::Rsa4096 => SignatureAlgorithm::RsaPkcs1Sha256,
        }
    }
}

impl fmt::Display for KeyType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for KeyType {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let found = Self::ALL.into_iter().find(|kind| kind.as_str() == text);
        found.ok_or_else(|| KeyError::UnknownType(text.to_owned()))
    }
}

/// How we sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SignatureAlgorithm {
    /// ECDSA on P-256 with SHA-256.
    EcdsaP256Sha256,
    /// ECDSA on P-384 with SHA-384.
    EcdsaP384Sha384,
    /// RSA PKCS#1 v1.5 with SHA-256: certificates, CSRs and RS256.
    RsaPkcs1Sha256,
    /// RSA-PSS with SHA-256 and a salt of 32 bytes: TLS 1.3 and `x509pop`.
    RsaPssSha256,
}

/// How a signature is checked. The key must fit: ECDSA works with either curve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum VerificationAlgorithm {
    /// ECDSA with SHA-256, signature as DER.
    EcdsaSha256,
    /// ECDSA with SHA-384, signature as DER.
    EcdsaSha384,
    /// RSA PKCS#1 v1.5 with SHA-256.
    RsaPkcs1Sha256,
    /// RSA PKCS#1 v1.5 with SHA-384.
    RsaPkcs1Sha384,
    /// RSA PKCS#1 v1.5 with SHA-512.
    RsaPkcs1Sha512,
    /// RSA-PSS with SHA-256 and a salt of 32 bytes.
    RsaPssSha256,
    /// RSA-PSS with SHA-384 and a salt of 48 bytes.
    RsaPssSha384,
    /// RSA-PSS with SHA-512 and a salt of 64 bytes.
    RsaPssSha512,
    /// RSA-PSS with SHA-256 and a salt of any length, as Go signs `x509pop` challenges. About ten times slower.
    RsaPssSha256AnySalt,
}

/// The kind of a public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyAlgorithm {
    /// Elliptic curve P-256.
    EcP256,
    /// Elliptic curve P-384.
    EcP384,
    /// RSA with this many bits in the modulus.
    Rsa(usize),
}

impl KeyAlgorithm {
    pub(crate) fn curve(self) -> Option<Curve> {
        match self {
            Self::EcP256 => Some(Curve::P256),
            Self::EcP384 => Some(Curve::P384),
            Self::Rsa(_) => None,
        }
    }

    /// The largest kind that we generate whose strength this key reaches.
    fn key_type(self) -> KeyType {
        match self {
            Self::EcP256 => KeyType::EcP256,
            Self::EcP384 => KeyType::EcP384,
            Self::Rsa(bits) if bits < 4096 => KeyType::Rsa2048,
            Self::Rsa(_) => KeyType::Rsa4096,
        }
    }
}

impl fmt::Display for KeyAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EcP256 => f.write_str("EC P-256"),
            Self::EcP384 => f.write_str("EC P-384"),
            Self::Rsa(bits) => write!(f, "RSA {bits}"),
        }
    }
}

/// What can be wrong with a key or with keeping it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The name of a key type is not known.
    #[error("unknown key type {0:?}: use ec-p256, ec-p384, rsa-2048 or rsa-4096")]
    UnknownType(String),
    /// The bytes are not a key.
    #[error("malformed key: {0}")]
    Malformed(&'static str),
    /// A key that the policy does not allow.
    #[error("key is not allowed: {0}")]
    Policy(String),
    /// The backend could not make a key.
    #[error("could not generate a {0} key")]
    Generate(KeyType),
    /// The backend could not sign with this key and algorithm.
    #[error("could not sign with {0:?}")]
    Sign(SignatureAlgorithm),
    /// A key ID that cannot be used.
    #[error("key ID must not be empty")]
    EmptyId,
    /// The key file cannot be used as it stands.
    #[error("key file {path}: {problem}")]
    File {
        /// The file.
        path: String,
        /// What is wrong and what to do.
        problem: String,
    },
    /// The key file could not be read or written.
    #[error("key file {path}: {doing}")]
    Io {
        /// The file.
        path: String,
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// The thread that worked on the keys ended without an answer.
    #[error("key operation was cut off")]
    Interrupted,
}

impl From<DerError> for KeyError {
    fn from(error: DerError) -> Self {
        Self::Malformed(error.0)
    }
}

/// A public key within the policy, with its SubjectPublicKeyInfo kept byte for byte. Cheap to clone.
#[derive(Clone)]
pub struct PublicKey {
    inner: Arc<PublicKeyInner>,
}

struct PublicKeyInner {
    spki: Box<[u8]>,
    /// Where the content of the BIT STRING starts in `spki`; it reaches to the end.
    key_start: usize,
    algorithm: KeyAlgorithm,
}

impl PublicKey {
    /// Reads a SubjectPublicKeyInfo (PKIX) and applies the key policy.
    ///
    /// Whether an elliptic-curve point lies on its curve is found out when a signature is verified; a key without a
    /// signature needs [`Self::check_point`].
    ///
    /// # Errors
    /// [`KeyError::Malformed`] or [`KeyError::Policy`].
    pub fn from_spki_der(spki: &[u8]) -> Result<Self, KeyError> {
        let mut outer = Reader::new(spki);
        let info = outer.expect(der::SEQUENCE, "public key is not a sequence")?;
        outer.end("bytes after the public key")?;
        let mut info = Reader::new(info.content);
        let identifier = info.expect(der::SEQUENCE, "public key algorithm is not a sequence")?;
        let key = info.expect(der::BIT_STRING, "public key is not a bit string")?;
        info.end("bytes after the public key")?;
        let key = der::bit_string_bytes(key.content, "public key is not a whole number of bytes")?;

        let algorithm = match identifier.raw {
            EC_P256_IDENTIFIER => ec_point(key, 32, KeyAlgorithm::EcP256)?,
            EC_P384_IDENTIFIER => ec_point(key, 48, KeyAlgorithm::EcP384)?,
            RSA_IDENTIFIER | RSA_IDENTIFIER_WITHOUT_NULL => KeyAlgorithm::Rsa(rsa_bits(key)?),
            _ => return Err(KeyError::Policy(unsupported(identifier.content))),
        };
        let key_start = spki.len() - key.len();
        Ok(Self { inner: Arc::new(PublicKeyInner { spki: spki.into(), key_start, algorithm }) })
    }

    /// A key from its bare form: an uncompressed point or a PKCS#1 RSAPublicKey.
    pub(crate) fn from_bare(curve: Option<Curve>, key: &[u8]) -> Result<Self, KeyError> {
        let identifier = match curve {
            Some(Curve::P256) => EC_P256_IDENTIFIER,
            Some(Curve::P384) => EC_P384_IDENTIFIER,
            None => RSA_IDENTIFIER,
        };
        let mut writer = Writer::with_capacity(key.len() + 40);
        writer.sequence(|writer| {
            writer.raw(identifier);
            writer.bit_string(key);
        });
        Self::from_spki_der(&writer.finish())
    }

    /// The SubjectPublicKeyInfo as DER.
    pub fn spki_der(&self) -> &[u8] {
        &self.inner.spki
    }

    /// The kind of key.
    pub fn algorithm(&self) -> KeyAlgorithm {
        self.inner.algorithm
    }

    /// The subject key identifier: SHA-1 of the BIT STRING content (RFC 5280 4.2.1.2, method 1).
    pub fn subject_key_id(&self) -> [u8; 20] {
        crypto::sha1(self.bare())
    }

    /// Verifies a signature; `false` also when the algorithm does not fit the key.
    pub fn verify(&self, algorithm: VerificationAlgorithm, message: &[u8], signature: &[u8]) -> bool {
        crypto::verify(self.inner.algorithm.curve(), algorithm, self.bare(), message, signature)
    }

    /// Checks that an elliptic-curve point lies on its curve; nothing to check for RSA.
    ///
    /// # Errors
    /// [`KeyError::Malformed`].
    pub fn check_point(&self) -> Result<(), KeyError> {
        match self.inner.algorithm.curve() {
            Some(curve) if !crypto::point_on_curve(curve, self.bare()) => {
                Err(KeyError::Malformed("public key is not a point on its curve"))
            }
            _ => Ok(()),
        }
    }

    /// The content of the BIT STRING: an uncompressed point or a PKCS#1 RSAPublicKey.
    pub(crate) fn bare(&self) -> &[u8] {
        &self.inner.spki[self.inner.key_start..]
    }
}

impl PartialEq for PublicKey {
    fn eq(&self, other: &Self) -> bool {
        self.inner.algorithm == other.inner.algorithm && self.bare() == other.bare()
    }
}

impl Eq for PublicKey {}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = data_encoding::HEXLOWER.encode(&self.subject_key_id());
        write!(f, "PublicKey({}, {id})", self.inner.algorithm)
    }
}

/// Something that holds a private key and signs with it.
pub trait Signer: Send + Sync {
    /// The kind of key. An RSA key of another size, loaded from a file, reports the largest kind whose strength it
    /// reaches; its size is in [`PublicKey::algorithm`].
    fn key_type(&self) -> KeyType;

    /// The public half.
    fn public_key(&self) -> &PublicKey;

    /// Signs with `algorithm`; ECDSA signatures come out as DER. Bound by the processor, never by I/O.
    ///
    /// # Errors
    /// [`KeyError::Sign`] when the algorithm does not fit the key.
    fn sign_with(&self, algorithm: SignatureAlgorithm, message: &[u8]) -> Result<Vec<u8>, KeyError>;

    /// Signs as certificates and tokens are signed: [`KeyType::signature_algorithm`].
    ///
    /// # Errors
    /// [`KeyError::Sign`].
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        self.sign_with(self.key_type().signature_algorithm(), message)
    }
}

/// A private key in memory. Not clonable, not printable; its PKCS#8 form is wiped when dropped.
pub struct PrivateKey {
    backend: BackendKey,
    pkcs8: Zeroizing<Vec<u8>>,
    public: PublicKey,
}

impl PrivateKey {
    /// A fresh key. RSA takes up to some seconds of processor time: call it off the async threads.
    ///
    /// # Errors
    /// [`KeyError::Generate`].
    pub fn generate(kind: KeyType) -> Result<Self, KeyError> {
        let pkcs8 = match kind {
            KeyType::EcP256 => crypto::generate_ec(Curve::P256),
            KeyType::EcP384 => crypto::generate_ec(Curve::P384),
            KeyType::Rsa2048 => crypto::generate_rsa(2048),
            KeyType::Rsa4096 => crypto::generate_rsa(4096),
        };
        Self::from_pkcs8_der(&pkcs8.map_err(|_| KeyError::Generate(kind))?)
    }

    /// Loads a key from PKCS#8 DER (P-256, P-384, RSA of 2048 bits and more).
    ///
    /// # Errors
    /// [`KeyError::Malformed`] or [`KeyError::Policy`].
    pub fn from_pkcs8_der(pkcs8: &[u8]) -> Result<Self, KeyError> {
        let mut outer = Reader::new(pkcs8);
        let info = outer.expect(der::SEQUENCE, "private key is not PKCS#8")?;
        outer.end("bytes after the private key")?;
        let mut info = Reader::new(info.content);
        info.expect(der::INTEGER, "private key is not PKCS#8")?;
        let identifier = info.expect(der::SEQUENCE, "private key is not PKCS#8")?;
        let curve = match identifier.raw {
            EC_P256_IDENTIFIER => Some(Curve::P256),
            EC_P384_IDENTIFIER => Some(Curve::P384),
            RSA_IDENTIFIER => None,
            _ => return Err(KeyError::Policy(unsupported(identifier.content))),
        };
        let backend = match curve {
            Some(curve) => BackendKey::ecdsa_from_pkcs8(curve, pkcs8)
                .map_err(|_| KeyError::Malformed("the EC private key is broken or lacks its public key"))?,
            None => BackendKey::rsa_from_pkcs8(pkcs8).map_err(|_| {
                KeyError::Malformed("the RSA private key is broken or has fewer than 2048 bits")
            })?,
        };
        let public = PublicKey::from_bare(curve, backend.public_key())?;
        let key = Self { backend, pkcs8: Zeroizing::new(pkcs8.to_vec()), public };
        // The backends compare the halves of EC keys, but let RSA keys pass whose parts do not belong together.
        if curve.is_none() && !key.signs() {
            return Err(KeyError::Malformed(
                "the RSA private key is damaged: it does not sign for its public key",
            ));
        }
        Ok(key)
    }

    fn signs(&self) -> bool {
        let signature = self.sign_with(SignatureAlgorithm::RsaPkcs1Sha256, b"trial");
        signature.is_ok_and(|made| self.public.verify(VerificationAlgorithm::RsaPkcs1Sha256, b"trial", &made))
    }

    /// Loads the first private key of a PEM text: `PRIVATE KEY`, `RSA PRIVATE KEY` or `EC PRIVATE KEY`.
    ///
    /// # Errors
    /// [`KeyError::Malformed`] or [`KeyError::Policy`].
    pub fn from_pem(text: &[u8]) -> Result<Self, KeyError> {
        let blocks = pem::decode_all(text).map_err(|_| KeyError::Malformed("the PEM text is broken"))?;
        for (label, der) in blocks {
            let der = Zeroizing::new(der);
            match label.as_str() {
                "PRIVATE KEY" => return Self::from_pkcs8_der(&der),
                "RSA PRIVATE KEY" => return Self::from_pkcs8_der(&pkcs8(RSA_IDENTIFIER, &der)),
                "EC PRIVATE KEY" => return Self::from_pkcs8_der(&pkcs8(sec1_curve(&der)?, &der)),
                "ENCRYPTED PRIVATE KEY" => {
                    return Err(KeyError::Malformed("the private key is encrypted: decrypt it first"));
                }
                _ => {}
            }
        }
        Err(KeyError::Malformed("there is no private key in the PEM text"))
    }

    /// Signs with ECDSA over SHA-256 although the curve is P-384, as protocols ask that fix the hash and not the curve.
    /// The signature comes out as DER. Not for certificates and tokens, whose readers expect the curve's own hash.
    ///
    /// # Errors
    /// [`KeyError::Policy`] for other keys.
    pub fn sign_p384_sha256(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        if self.public.algorithm() != KeyAlgorithm::EcP384 {
            return Err(KeyError::Policy("this signature needs a P-384 key".to_owned()));
        }
        crate::p384::sign_sha256(&self.pkcs8, self.public.bare(), message)
            .map_err(|_| KeyError::Malformed("the P-384 key does not sign for its public key"))
    }

    /// The secret itself, as PKCS#8 DER: for workloads that own the key and for the disk key manager.
    pub fn expose_pkcs8(&self) -> Zeroizing<Vec<u8>> {
        self.pkcs8.clone()
    }
}

impl Signer for PrivateKey {
    fn key_type(&self) -> KeyType {
        self.public.algorithm().key_type()
    }

    fn public_key(&self) -> &PublicKey {
        &self.public
    }

    fn sign_with(&self, algorithm: SignatureAlgorithm, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        self.backend.sign(algorithm, message).map_err(|_| KeyError::Sign(algorithm))
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey({}, secret)", self.public.algorithm())
    }
}

/// The modulus and the exponent of a PKCS#1 RSAPublicKey, without leading zeros.
pub(crate) fn rsa_components(key: &[u8]) -> Result<(&[u8], &[u8]), KeyError> {
    let mut outer = Reader::new(key);
    let numbers = outer.expect(der::SEQUENCE, "RSA key is not a sequence")?;
    outer.end("bytes after the RSA key")?;
    let mut numbers = Reader::new(numbers.content);
    let modulus = numbers.expect(der::INTEGER, "RSA modulus is not an integer")?;
    let exponent = numbers.expect(der::INTEGER, "RSA exponent is not an integer")?;
    numbers.end("bytes after the RSA exponent")?;
    Ok((
        der::positive_integer(modulus.content, "RSA modulus is not a positive number")?,
        der::positive_integer(exponent.content, "RSA exponent is not a positive number")?,
    ))
}

fn rsa_bits(key: &[u8]) -> Result<usize, KeyError> {
    let (modulus, exponent) = rsa_components(key)?;
    let bits = modulus.len() * 8 - modulus[0].leading_zeros() as usize;
    if !(RSA_MIN_BITS..=RSA_MAX_BITS).contains(&bits) {
        return Err(KeyError::Policy(format!(
            "RSA needs {RSA_MIN_BITS} to {RSA_MAX_BITS} bits, this key has {bits}"
        )));
    }
    let odd = |number: &[u8]| number.last().is_some_and(|byte| byte & 1 == 1);
    // The largest exponent that the backend accepts has 33 bits; real ones are 3 and 65537.
    let small = exponent.len() <= 4 && exponent != [1];
    if !odd(modulus) || !odd(exponent) || !small {
        return Err(KeyError::Policy("the RSA modulus or exponent is not usable".to_owned()));
    }
    Ok(bits)
}

fn ec_point(key: &[u8], size: usize, algorithm: KeyAlgorithm) -> Result<KeyAlgorithm, KeyError> {
    if key.len() == 1 + 2 * size && key[0] == 4 {
        Ok(algorithm)
    } else {
        Err(KeyError::Malformed("the public key is not an uncompressed point"))
    }
}

/// Names the algorithm of a refused key when it is a known one.
fn unsupported(identifier: &[u8]) -> String {
    let known: [(&[u8], &str); 6] = [
        (&[0x2b, 0x81, 0x04, 0x00, 0x23], "P-521"),
        (&[0x2b, 0x81, 0x04, 0x00, 0x0a], "secp256k1"),
        (&[0x2b, 0x81, 0x04, 0x00, 0x21], "P-224"),
        (&[0x2b, 0x65, 0x70], "Ed25519"),
        (&[0x2b, 0x65, 0x71], "Ed448"),
        (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0a], "RSA-PSS"),
    ];
    let name = known.iter().find(|(oid, _)| identifier.windows(oid.len()).any(|part| part == *oid));
    let name = name.map_or("this key algorithm", |(_, name)| name);
    format!("{name} is not supported: use P-256, P-384 or RSA")
}

fn pkcs8(identifier: &[u8], key: &[u8]) -> Zeroizing<Vec<u8>> {
    // One allocation of sufficient size, so that no copy of the key is left behind by growing.
    let mut writer = Writer::with_capacity(key.len() + 64);
    writer.sequence(|writer| {
        writer.integer(&[]);
        writer.raw(identifier);
        writer.element(der::OCTET_STRING, key);
    });
    Zeroizing::new(writer.finish())
}

/// The algorithm identifier for a SEC 1 key, from the curve that it names.
fn sec1_curve(key: &[u8]) -> Result<&'static [u8], KeyError> {
    let mut fields =
        Reader::new(Reader::new(key).expect(der::SEQUENCE, "EC private key is not a sequence")?.content);
    while !fields.is_empty() {
        let field = fields.next()?;
        if field.tag == der::explicit(0) {
            return match field.content {
                content if EC_P256_IDENTIFIER.ends_with(content) => Ok(EC_P256_IDENTIFIER),
                content if EC_P384_IDENTIFIER.ends_with(content) => Ok(EC_P384_IDENTIFIER),
                content => Err(KeyError::Policy(unsupported(content))),
            };
        }
    }
    Err(KeyError::Malformed("the EC private key does not name its curve"))
}

/// The AlgorithmIdentifier of keys on a curve.
pub(crate) fn ec_identifier(curve: Curve) -> &'static [u8] {
    match curve {
        Curve::P256 => EC_P256_IDENTIFIER,
        Curve::P384 => EC_P384_IDENTIFIER,
    }
}

const RSA_MIN_BITS: usize = 2048;
const RSA_MAX_BITS: usize = 8192;

/// id-ecPublicKey with prime256v1.
const EC_P256_IDENTIFIER: &[u8] = &[
    0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07,
];
/// id-ecPublicKey with secp384r1.
const EC_P384_IDENTIFIER: &[u8] = &[
    0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x05, 0x2b, 0x81, 0x04, 0x00,
    0x22,
];
/// rsaEncryption with NULL parameters.
const RSA_IDENTIFIER: &[u8] =
    &[0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00];
/// rsaEncryption as some encoders write it.
const RSA_IDENTIFIER_WITHOUT_NULL: &[u8] =
    &[0x30, 0x0b, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
