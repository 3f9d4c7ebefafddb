//! SSH keys, host certificates and signatures, as far as proof of possession by a host needs them (RFC 4253 section 6.6,
//! RFC 5656, RFC 8332, RFC 8709, and OpenSSH's `PROTOCOL.certkeys` and `PROTOCOL.key`).
//!
//! A reader of our own, because the crates that read SSH bring a second implementation of each curve along, and what is needed
//! is some length-prefixed strings over the backend that is here anyway (`docs/decisions/0013-proofs-of-possession.md`). Keys
//! pass through the same policy as all others; Ed25519 is allowed in addition, since it is what hosts have.

use bonafide_identity::Timestamp;
use data_encoding::{BASE64, BASE64URL_NOPAD};
use zeroize::Zeroizing;

use crate::crypto::{self, Curve};
use crate::der::{self, Writer};
use crate::ecdsa;
use crate::jws::{ecdsa_der_from_parts, ecdsa_parts};
use crate::key::{
    KeyAlgorithm, KeyError, PrivateKey, PublicKey, SignatureAlgorithm, Signer as _, VerificationAlgorithm,
};
use crate::pem;

/// Why something of SSH cannot be read or is not accepted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SshError {
    /// The bytes are not what they should be.
    #[error("malformed: {0}")]
    Malformed(&'static str),
    /// A kind of key or certificate that is not supported.
    #[error("unsupported key type {0:?}: use ed25519, ecdsa on nistp256 or nistp384, or rsa")]
    Unsupported(String),
    /// The key is within the format and outside of the policy.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A plain key where a certificate is needed.
    #[error("is a key and not a certificate")]
    NotCertificate,
    /// A certificate where a plain key is needed.
    #[error("is a certificate and not a key")]
    NotKey,
    /// A line of an `authorized_keys` file with options that would have no effect here.
    #[error("options before the key have no effect here: remove them")]
    Options,
    /// The private key is encrypted.
    #[error("the private key is encrypted: host keys have no passphrase")]
    Encrypted,
}

/// Why a certificate does not make its holder a host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SshVerifyError {
    /// A user's certificate, or one of an unknown kind.
    #[error("ssh: certificate presented as a host key has type {0}")]
    NotHost(u32),
    /// Signed by nobody whom we know.
    #[error("ssh: no authorities for hostname: {0}")]
    UnknownAuthority(String),
    /// It may only be used under a condition that nobody here checks.
    #[error("ssh: unsupported critical option {0:?} in certificate")]
    CriticalOption(String),
    /// Before its time.
    #[error("ssh: cert is not yet valid")]
    NotYetValid,
    /// Past its time.
    #[error("ssh: cert has expired")]
    Expired,
    /// The authority did not sign it.
    #[error("ssh: certificate signature does not verify")]
    Signature,
    /// It names no host, which would make it good for all of them.
    #[error("cert has no valid principals")]
    NoPrincipals,
}

/// A plain public key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SshPublicKey {
    kind: Kind,
    blob: Box<[u8]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Ed25519([u8; 32]),
    Other(PublicKey),
}

/// A signature: its format and what that format says it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SshSignature {
    /// The name of the algorithm, such as `ssh-ed25519`.
    pub format: String,
    /// The signature itself.
    pub blob: Vec<u8>,
}

impl SshPublicKey {
    /// Reads the wire form.
    ///
    /// # Errors
    /// [`SshError`].
    pub fn parse(blob: &[u8]) -> Result<Self, SshError> {
        let mut reader = Wire(blob);
        let name = reader.text()?;
        if name.ends_with(CERTIFICATE) {
            return Err(SshError::NotKey);
        }
        let kind = Kind::read(name, &mut reader)?;
        reader.end()?;
        Ok(Self { kind, blob: blob.into() })
    }

    /// Reads one line of an `authorized_keys` file: type, base64, perhaps a comment. The option `cert-authority` may stand
    /// before it; no other, since it would have no effect. Nothing for an empty line and a comment.
    ///
    /// # Errors
    /// [`SshError`].
    pub fn from_authorized_key(line: &str) -> Result<Option<Self>, SshError> {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            return Ok(None);
        }
        let line = line.strip_prefix("cert-authority ").unwrap_or(line).trim_start();
        let (name, blob) = key_line(line)?;
        let key = Self::parse(&blob)?;
        if key.name() == name {
            Ok(Some(key))
        } else {
            Err(SshError::Malformed("the line names another key type"))
        }
    }

    /// The type of the key: `ssh-ed25519`.
    pub fn name(&self) -> &'static str {
        match &self.kind {
            Kind::Ed25519(_) => ED25519,
            Kind::Other(key) => match key.algorithm() {
                KeyAlgorithm::EcP256 => ECDSA_P256,
                KeyAlgorithm::EcP384 => ECDSA_P384,
                KeyAlgorithm::Rsa(_) => RSA,
            },
        }
    }

    /// The wire form.
    pub fn blob(&self) -> &[u8] {
        &self.blob
    }

    /// Whether `signature` is one of this key over `message`. RSA with SHA-1 (`ssh-rsa`) is accepted only for `legacy`.
    pub fn verify(&self, message: &[u8], signature: &SshSignature, legacy: bool) -> bool {
        match (&self.kind, signature.format.as_str()) {
            (Kind::Ed25519(key), ED25519) => crypto::verify_ed25519(key, message, &signature.blob),
            (Kind::Other(key), format) => match (key.algorithm(), format) {
                (KeyAlgorithm::EcP256, ECDSA_P256) => {
                    ecdsa(key, VerificationAlgorithm::EcdsaSha256, 32, message, &signature.blob)
                }
                (KeyAlgorithm::EcP384, ECDSA_P384) => {
                    ecdsa(key, VerificationAlgorithm::EcdsaSha384, 48, message, &signature.blob)
                }
                (KeyAlgorithm::Rsa(bits), RSA | RSA_SHA256 | RSA_SHA512) => {
                    // Some signers leave zeros in front away.
                    let Some(missing) = bits.div_ceil(8).checked_sub(signature.blob.len()) else {
                        return false;
                    };
                    let padded = [&vec![0; missing][..], &signature.blob].concat();
                    match format {
                        RSA => legacy && crypto::verify_rsa_sha1(key.bare(), message, &padded),
                        RSA_SHA256 => key.verify(VerificationAlgorithm::RsaPkcs1Sha256, message, &padded),
                        _ => key.verify(VerificationAlgorithm::RsaPkcs1Sha512, message, &padded),
                    }
                }
                _ => false,
            },
            _ => false,
        }
    }
}

fn ecdsa(
    key: &PublicKey,
    algorithm: VerificationAlgorithm,
    size: usize,
    message: &[u8],
    blob: &[u8],
) -> bool {
    let mut reader = Wire(blob);
    let (Ok(r), Ok(s)) = (reader.mpint(), reader.mpint()) else { return false };
    if reader.end().is_err() || r.len() > size || s.len() > size {
        return false;
    }
    key.verify(algorithm, message, &ecdsa_der_from_parts(r, s))
}

impl Kind {
    /// The key after its type.
    fn read(name: &str, reader: &mut Wire<'_>) -> Result<Self, SshError> {
        Ok(match name {
            ED25519 => {
                let key = reader.bytes()?.try_into();
                Self::Ed25519(key.map_err(|_| SshError::Malformed("an Ed25519 key has 32 bytes"))?)
            }
            ECDSA_P256 | ECDSA_P384 => {
                let (curve, called) =
                    if name == ECDSA_P256 { (Curve::P256, "nistp256") } else { (Curve::P384, "nistp384") };
                if reader.text()? != called {
                    return Err(SshError::Malformed("the key is of another curve than its type says"));
                }
                // Whether the point lies on its curve is found out when a signature is verified.
                Self::Other(PublicKey::from_bare(Some(curve), reader.bytes()?)?)
            }
            RSA => {
                let (exponent, modulus) = (reader.mpint()?, reader.mpint()?);
                let mut writer = Writer::with_capacity(modulus.len() + 32);
                writer.sequence(|writer| {
                    writer.integer(modulus);
                    writer.integer(exponent);
                });
                Self::Other(PublicKey::from_bare(None, &writer.finish())?)
            }
            other => return Err(SshError::Unsupported(other.to_owned())),
        })
    }
}

/// A certificate, taken apart and not yet believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SshCertificate {
    wire: Box<[u8]>,
    signed: usize,
    /// The certified key.
    pub key: SshPublicKey,
    /// The serial number that the authority gave it, often 0.
    pub serial: u64,
    /// 1 for users, 2 for hosts.
    pub certificate_type: u32,
    /// What the authority calls it.
    pub key_id: String,
    /// The hosts (or users) that it is for.
    pub principals: Vec<String>,
    valid_after: u64,
    valid_before: u64,
    critical_options: Vec<String>,
    /// Who signed it.
    pub authority: SshPublicKey,
    signature: SshSignature,
}

impl SshCertificate {
    /// Reads the wire form.
    ///
    /// # Errors
    /// [`SshError`].
    pub fn parse(wire: &[u8]) -> Result<Self, SshError> {
        if wire.len() > MAX_CERTIFICATE {
            return Err(SshError::Malformed("the certificate is too long"));
        }
        let mut reader = Wire(wire);
        let name = reader.text()?;
        let Some(plain) = name.strip_suffix(CERTIFICATE) else {
            // What it is matters for the message only.
            return Err(match SshPublicKey::parse(wire) {
                Ok(_) => SshError::NotCertificate,
                Err(error) => error,
            });
        };
        reader.bytes()?;
        let before = reader.0;
        let kind = Kind::read(plain, &mut reader)?;
        let fields = &before[..before.len() - reader.0.len()];
        let mut blob = Vec::with_capacity(fields.len() + 32);
        put(&mut blob, plain.as_bytes());
        blob.extend_from_slice(fields);
        let key = SshPublicKey { kind, blob: blob.into() };
        let serial = reader.u64()?;
        let certificate_type = reader.u32()?;
        let key_id = reader.text()?.to_owned();
        let mut names = Wire(reader.bytes()?);
        let mut principals = Vec::new();
        while !names.0.is_empty() {
            principals.push(names.text()?.to_owned());
        }
        let (valid_after, valid_before) = (reader.u64()?, reader.u64()?);
        let critical_options = options(reader.bytes()?)?;
        options(reader.bytes()?)?;
        reader.bytes()?;
        let authority = SshPublicKey::parse(reader.bytes()?)?;
        let signed = wire.len() - reader.0.len();
        let mut inner = Wire(reader.bytes()?);
        reader.end()?;
        let signature = SshSignature { format: inner.text()?.to_owned(), blob: inner.bytes()?.to_vec() };
        inner.end()?;
        Ok(Self {
            wire: wire.into(),
            signed,
            key,
            serial,
            certificate_type,
            key_id,
            principals,
            valid_after,
            valid_before,
            critical_options,
            authority,
            signature,
        })
    }

    /// Reads the first line of a file such as `ssh_host_ed25519_key-cert.pub`.
    ///
    /// # Errors
    /// [`SshError`].
    pub fn from_text(text: &[u8]) -> Result<Self, SshError> {
        let text = std::str::from_utf8(text).map_err(|_| SshError::Malformed("the file is not text"))?;
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let line = lines.next().ok_or(SshError::Malformed("the file is empty"))?;
        Self::parse(&key_line(line)?.1)
    }

    /// The wire form.
    pub fn wire(&self) -> &[u8] {
        &self.wire
    }

    /// SHA-256 of the wire form as base64url without padding.
    pub fn fingerprint(&self) -> String {
        let mut digest = crypto::Sha256::new();
        digest.update(&self.wire);
        BASE64URL_NOPAD.encode(&digest.finish())
    }

    /// The same certificate with the other signature that is as good: from an ECDSA signature (r, s) anybody can make (r, n - s).
    /// It has another fingerprint. Nothing for other authorities, whose signatures have one form.
    pub fn twin(&self) -> Option<Self> {
        let curve = match self.authority.name() {
            ECDSA_P256 => Curve::P256,
            ECDSA_P384 => Curve::P384,
            _ => return None,
        };
        let mut reader = Wire(&self.signature.blob);
        let (r, s) = (reader.mpint().ok()?, reader.mpint().ok()?);
        let negated = ecdsa::negated(curve, s)?;
        let (mut numbers, mut signature) = (Vec::new(), Vec::new());
        put_mpint(&mut numbers, r);
        put_mpint(&mut numbers, &negated);
        put(&mut signature, self.signature.format.as_bytes());
        put(&mut signature, &numbers);
        let mut wire = self.wire[..self.signed].to_vec();
        put(&mut wire, &signature);
        Self::parse(&wire).ok()
    }

    /// Whether this makes its holder a host, in the order in which SSH itself looks: kind, authority, critical options,
    /// validity, signature. SHA-1 signatures of authorities are refused, as OpenSSH refuses them.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn verify_host(&self, authorities: &[SshPublicKey], now: Timestamp) -> Result<(), SshVerifyError> {
        let principal = self.principals.first().ok_or(SshVerifyError::NoPrincipals)?;
        if self.certificate_type != HOST {
            return Err(SshVerifyError::NotHost(self.certificate_type));
        }
        if !authorities.contains(&self.authority) {
            return Err(SshVerifyError::UnknownAuthority(principal.clone()));
        }
        // OpenSSH defines none for hosts. SPIRE lets source-address pass without looking at the address.
        if let Some(option) = self.critical_options.first() {
            return Err(SshVerifyError::CriticalOption(option.clone()));
        }
        let now = u64::try_from(now.unix_seconds()).unwrap_or(0);
        if now < self.valid_after {
            return Err(SshVerifyError::NotYetValid);
        }
        if now >= self.valid_before {
            return Err(SshVerifyError::Expired);
        }
        // Zeros that are left away in front would be another form of the same certificate.
        let whole = match &self.authority.kind {
            Kind::Other(key) => match key.algorithm() {
                KeyAlgorithm::Rsa(bits) => self.signature.blob.len() == bits.div_ceil(8),
                _ => true,
            },
            Kind::Ed25519(_) => true,
        };
        if !whole || !self.authority.verify(&self.wire[..self.signed], &self.signature, false) {
            return Err(SshVerifyError::Signature);
        }
        Ok(())
    }
}

/// The names of options: pairs of strings in ascending order of the first.
fn options(bytes: &[u8]) -> Result<Vec<String>, SshError> {
    let mut reader = Wire(bytes);
    let mut names: Vec<String> = Vec::new();
    while !reader.0.is_empty() {
        let name = reader.text()?;
        reader.bytes()?;
        if names.last().is_some_and(|last| last.as_str() >= name) {
            return Err(SshError::Malformed("options are not in order"));
        }
        names.push(name.to_owned());
    }
    Ok(names)
}

/// Type and content of a line, both as written.
fn key_line(line: &str) -> Result<(&str, Vec<u8>), SshError> {
    let mut words = line.split_ascii_whitespace();
    let name = words.next().unwrap_or_default();
    let known = [ED25519, ECDSA_P256, ECDSA_P384, RSA];
    let plain = name.strip_suffix(CERTIFICATE).unwrap_or(name);
    if !known.contains(&plain) {
        let key_like = ["ssh-", "ecdsa-", "sk-"].iter().any(|start| name.starts_with(start));
        return Err(if key_like { SshError::Unsupported(name.to_owned()) } else { SshError::Options });
    }
    let text = words.next().ok_or(SshError::Malformed("the line ends after the key type"))?;
    let blob = BASE64.decode(text.as_bytes()).map_err(|_| SshError::Malformed("the key is not base64"))?;
    Ok((name, blob))
}

/// The private key of a host. Not clonable, not printable.
pub struct SshPrivateKey {
    kind: PrivateKind,
}

enum PrivateKind {
    Ed25519 { seed: Zeroizing<[u8; 32]>, public: [u8; 32] },
    Other(Box<PrivateKey>),
}

impl SshPrivateKey {
    /// Reads a key file: OpenSSH's own format, or PEM as for all other keys.
    ///
    /// # Errors
    /// [`SshError`].
    pub fn from_text(text: &[u8]) -> Result<Self, SshError> {
        let blocks = pem::decode_all(text).map_err(|_| SshError::Malformed("the file is not PEM"))?;
        for (label, content) in blocks {
            let content = Zeroizing::new(content);
            if label == "OPENSSH PRIVATE KEY" {
                return Self::from_openssh(&content);
            }
        }
        Ok(Self { kind: PrivateKind::Other(Box::new(PrivateKey::from_pem(text)?)) })
    }

    fn from_openssh(content: &[u8]) -> Result<Self, SshError> {
        const BROKEN: SshError = SshError::Malformed("the private key does not fit together");
        let mut reader = Wire(content.strip_prefix(b"openssh-key-v1\0").ok_or(BROKEN)?);
        let (cipher, kdf) = (reader.text()?, reader.text()?);
        if (cipher, kdf) != ("none", "none") {
            return Err(SshError::Encrypted);
        }
        reader.bytes()?;
        if reader.u32()? != 1 {
            return Err(SshError::Malformed("the file does not hold exactly one key"));
        }
        let public = SshPublicKey::parse(reader.bytes()?)?;
        let mut reader = Wire(reader.bytes()?);
        if reader.u32()? != reader.u32()? {
            return Err(BROKEN);
        }
        let name = reader.text()?;
        let kind = match name {
            ED25519 => {
                let point: [u8; 32] = reader.bytes()?.try_into().map_err(|_| BROKEN)?;
                let secret = reader.bytes()?;
                let seed = secret.get(..32).filter(|_| secret.len() == 64).ok_or(BROKEN)?;
                let mut kept = Zeroizing::new([0; 32]);
                kept.copy_from_slice(seed);
                if !crypto::ed25519_fits(&kept, &point) {
                    return Err(BROKEN);
                }
                PrivateKind::Ed25519 { seed: kept, public: point }
            }
            ECDSA_P256 | ECDSA_P384 => {
                let size = if name == ECDSA_P256 { 32 } else { 48 };
                reader.text()?;
                let point = reader.bytes()?;
                let secret = reader.mpint()?;
                let mut whole = Zeroizing::new(vec![0; size]);
                let start = size.checked_sub(secret.len()).ok_or(BROKEN)?;
                whole[start..].copy_from_slice(secret);
                PrivateKind::Other(Box::new(PrivateKey::from_ec_numbers(size == 32, &whole, point)?))
            }
            RSA => {
                let (n, e, d) = (reader.mpint()?, reader.mpint()?, reader.mpint()?);
                reader.mpint()?;
                let (p, q) = (reader.mpint()?, reader.mpint()?);
                let pkcs8 = crypto::rsa_pkcs8(n, e, d, p, q).map_err(|_| BROKEN)?;
                PrivateKind::Other(Box::new(PrivateKey::from_pkcs8_der(&pkcs8)?))
            }
            other => return Err(SshError::Unsupported(other.to_owned())),
        };
        let key = Self { kind };
        if key.public_key() == public { Ok(key) } else { Err(BROKEN) }
    }

    /// The public half.
    pub fn public_key(&self) -> SshPublicKey {
        let mut blob = Vec::new();
        let kind = match &self.kind {
            PrivateKind::Ed25519 { public, .. } => {
                put(&mut blob, ED25519.as_bytes());
                put(&mut blob, public);
                Kind::Ed25519(*public)
            }
            PrivateKind::Other(key) => {
                let public = key.public_key();
                match public.algorithm() {
                    KeyAlgorithm::EcP256 | KeyAlgorithm::EcP384 => {
                        let names = match public.algorithm() {
                            KeyAlgorithm::EcP256 => [ECDSA_P256, "nistp256"],
                            _ => [ECDSA_P384, "nistp384"],
                        };
                        names.iter().for_each(|name| put(&mut blob, name.as_bytes()));
                        put(&mut blob, public.bare());
                    }
                    KeyAlgorithm::Rsa(_) => {
                        let (n, e) = crate::key::rsa_components(public.bare())
                            .expect("a public key was parsed when it was made");
                        put(&mut blob, RSA.as_bytes());
                        put_mpint(&mut blob, e);
                        put_mpint(&mut blob, n);
                    }
                }
                Kind::Other(public.clone())
            }
        };
        SshPublicKey { kind, blob: blob.into() }
    }

    /// Signs: RSA with SHA-256 (`rsa-sha2-256`), elliptic curves with the hash of their size.
    ///
    /// # Errors
    /// [`KeyError::Sign`].
    pub fn sign(&self, message: &[u8]) -> Result<SshSignature, KeyError> {
        let key = match &self.kind {
            PrivateKind::Ed25519 { seed, public } => {
                let blob = crypto::sign_ed25519(seed, public, message)
                    .map_err(|_| KeyError::Malformed("the Ed25519 key does not fit together"))?;
                return Ok(SshSignature { format: ED25519.to_owned(), blob });
            }
            PrivateKind::Other(key) => key,
        };
        let (format, algorithm) = match key.public_key().algorithm() {
            KeyAlgorithm::EcP256 => (ECDSA_P256, SignatureAlgorithm::EcdsaP256Sha256),
            KeyAlgorithm::EcP384 => (ECDSA_P384, SignatureAlgorithm::EcdsaP384Sha384),
            KeyAlgorithm::Rsa(_) => (RSA_SHA256, SignatureAlgorithm::RsaPkcs1Sha256),
        };
        let signature = key.sign_with(algorithm, message)?;
        let blob = match format {
            RSA_SHA256 => signature,
            _ => {
                let (r, s) = ecdsa_parts(&signature)?;
                let mut blob = Vec::new();
                put_mpint(&mut blob, r);
                put_mpint(&mut blob, s);
                blob
            }
        };
        Ok(SshSignature { format: format.to_owned(), blob })
    }
}

impl std::fmt::Debug for SshPrivateKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SshPrivateKey({}, secret)", self.public_key().name())
    }
}

impl PrivateKey {
    /// A key on P-256 or P-384 from its secret number (of full width) and its point.
    fn from_ec_numbers(p256: bool, secret: &[u8], point: &[u8]) -> Result<Self, KeyError> {
        let identifier = crate::key::ec_identifier(if p256 { Curve::P256 } else { Curve::P384 });
        let mut writer = Writer::with_capacity(256);
        writer.sequence(|writer| {
            writer.integer(&[]);
            writer.raw(identifier);
            writer.nested(der::OCTET_STRING, |writer| {
                writer.sequence(|writer| {
                    writer.integer(&[1]);
                    writer.element(der::OCTET_STRING, secret);
                    writer.nested(der::explicit(1), |writer| writer.bit_string(point));
                });
            });
        });
        Self::from_pkcs8_der(&Zeroizing::new(writer.finish()))
    }
}

/// What is left of bytes in SSH's encoding (RFC 4251, section 5).
struct Wire<'a>(&'a [u8]);

impl<'a> Wire<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], SshError> {
        let (taken, rest) =
            self.0.split_at_checked(length).ok_or(SshError::Malformed("it ends too early"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn u32(&mut self) -> Result<u32, SshError> {
        Ok(self.take(4)?.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte)))
    }

    fn u64(&mut self) -> Result<u64, SshError> {
        Ok(self.take(8)?.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
    }

    fn bytes(&mut self) -> Result<&'a [u8], SshError> {
        let length = self.u32()?;
        self.take(usize::try_from(length).unwrap_or(usize::MAX))
    }

    fn text(&mut self) -> Result<&'a str, SshError> {
        std::str::from_utf8(self.bytes()?).map_err(|_| SshError::Malformed("a text is not UTF-8"))
    }

    /// A positive number, without the zero byte that keeps it positive.
    fn mpint(&mut self) -> Result<&'a [u8], SshError> {
        match self.bytes()? {
            [] => Err(SshError::Malformed("a number is zero")),
            [0, rest @ ..] if rest.first().is_some_and(|byte| *byte >= 0x80) => Ok(rest),
            [first, ..] if *first == 0 || *first >= 0x80 => {
                Err(SshError::Malformed("a number is negative or has zeros in front"))
            }
            number => Ok(number),
        }
    }

    fn end(&self) -> Result<(), SshError> {
        if self.0.is_empty() { Ok(()) } else { Err(SshError::Malformed("there are bytes after the end")) }
    }
}

fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(bytes);
}

fn put_mpint(out: &mut Vec<u8>, number: &[u8]) {
    if number.first().is_some_and(|byte| *byte >= 0x80) {
        put(out, &[&[0], number].concat());
    } else {
        put(out, number);
    }
}

const ED25519: &str = "ssh-ed25519";
const ECDSA_P256: &str = "ecdsa-sha2-nistp256";
const ECDSA_P384: &str = "ecdsa-sha2-nistp384";
const RSA: &str = "ssh-rsa";
const RSA_SHA256: &str = "rsa-sha2-256";
const RSA_SHA512: &str = "rsa-sha2-512";
const CERTIFICATE: &str = "-cert-v01@openssh.com";
const HOST: u32 = 2;
/// Real ones have one or two thousand bytes.
const MAX_CERTIFICATE: usize = 64 << 10;
