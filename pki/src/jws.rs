//! JSON Web Signatures in compact form (RFC 7515), shared by JWT-SVIDs and WIT-SVIDs.
//!
//! Written here because the usual JWT library has no backend for ring, re-reads the key for each token, and decides
//! with a process-wide provider. What is left to do is base64url, a fixed-width ECDSA signature and a strict header.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use bonafide_identity::{JwtAuthority, SpiffeId, Timestamp, TrustDomain};
use data_encoding::BASE64URL_NOPAD;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::der::{self, DerError, Reader, Writer};
use crate::jwt::JwtError;
use crate::key::{KeyAlgorithm, PublicKey, SignatureAlgorithm, Signer, VerificationAlgorithm};

/// The signature algorithms of the JWT-SVID standard (section 2.1), by their JOSE names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum JwsAlgorithm {
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// ECDSA on P-384 with SHA-384.
    Es384,
    /// ECDSA on P-521 with SHA-512: known by name, and refused, because the key policy has no P-521.
    Es512,
    /// RSA PKCS#1 v1.5 with SHA-256.
    Rs256,
    /// RSA PKCS#1 v1.5 with SHA-384.
    Rs384,
    /// RSA PKCS#1 v1.5 with SHA-512.
    Rs512,
    /// RSA-PSS with SHA-256.
    Ps256,
    /// RSA-PSS with SHA-384.
    Ps384,
    /// RSA-PSS with SHA-512.
    Ps512,
}

impl JwsAlgorithm {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Es256,
        Self::Es384,
        Self::Es512,
        Self::Rs256,
        Self::Rs384,
        Self::Rs512,
        Self::Ps256,
        Self::Ps384,
        Self::Ps512,
    ];

    /// The JOSE name: `ES256`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
            Self::Es512 => "ES512",
            Self::Rs256 => "RS256",
            Self::Rs384 => "RS384",
            Self::Rs512 => "RS512",
            Self::Ps256 => "PS256",
            Self::Ps384 => "PS384",
            Self::Ps512 => "PS512",
        }
    }

    /// Whether keys of this kind can make such signatures: the pairs that a WIT-SVID may confirm.
    pub const fn fits(self, key: KeyAlgorithm) -> bool {
        match self {
            Self::Es256 => matches!(key, KeyAlgorithm::EcP256),
            Self::Es384 => matches!(key, KeyAlgorithm::EcP384),
            Self::Es512 => false,
            _ => matches!(key, KeyAlgorithm::Rsa(_)),
        }
    }

    const fn verification(self) -> Option<VerificationAlgorithm> {
        match self {
            Self::Es256 => Some(VerificationAlgorithm::EcdsaSha256),
            Self::Es384 => Some(VerificationAlgorithm::EcdsaSha384),
            Self::Es512 => None,
            Self::Rs256 => Some(VerificationAlgorithm::RsaPkcs1Sha256),
            Self::Rs384 => Some(VerificationAlgorithm::RsaPkcs1Sha384),
            Self::Rs512 => Some(VerificationAlgorithm::RsaPkcs1Sha512),
            Self::Ps256 => Some(VerificationAlgorithm::RsaPssSha256),
            Self::Ps384 => Some(VerificationAlgorithm::RsaPssSha384),
            Self::Ps512 => Some(VerificationAlgorithm::RsaPssSha512),
        }
    }
}

impl fmt::Display for JwsAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for JwsAlgorithm {
    type Err = JwtError;

    fn from_str(text: &str) -> Result<Self, JwtError> {
        let found = Self::ALL.into_iter().find(|algorithm| algorithm.as_str() == text);
        found.ok_or_else(|| JwtError::Algorithm(text.to_owned()))
    }
}

/// What a source of verification keys knows about a trust domain and a key ID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyLookup {
    /// The key.
    Found(PublicKey),
    /// The trust domain is known, the key ID is not.
    UnknownKey,
    /// There is no bundle for the trust domain.
    UnknownTrustDomain,
}

/// Where the keys to verify tokens come from.
pub trait JwtKeySource {
    /// The key of a trust domain under a key ID.
    fn key(&self, trust_domain: &TrustDomain, key_id: &str) -> KeyLookup;
}

/// Keys of some trust domains, prepared for verification.
#[derive(Clone, Debug, Default)]
pub struct JwtKeys {
    keys: HashMap<TrustDomain, HashMap<String, PublicKey>>,
}

impl JwtKeys {
    /// Without any trust domain.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the keys of a trust domain. A key that the policy does not allow is left out, with a warning in the log:
    /// tokens signed with it are refused as signed with an unknown key.
    pub fn insert(&mut self, trust_domain: TrustDomain, authorities: &[JwtAuthority]) {
        let keys = authorities.iter().filter_map(|authority| {
            match PublicKey::from_spki_der(&authority.public_key) {
                Ok(key) => Some((authority.key_id.clone(), key)),
                Err(error) => {
                    let key_id = &authority.key_id;
                    tracing::warn!(%trust_domain, key_id, %error, "token authority is not usable");
                    None
                }
            }
        });
        let keys = keys.collect();
        self.keys.insert(trust_domain, keys);
    }
}

impl JwtKeySource for JwtKeys {
    fn key(&self, trust_domain: &TrustDomain, key_id: &str) -> KeyLookup {
        match self.keys.get(trust_domain) {
            None => KeyLookup::UnknownTrustDomain,
            Some(keys) => keys.get(key_id).cloned().map_or(KeyLookup::UnknownKey, KeyLookup::Found),
        }
    }
}

/// A signing key with its key ID and the header prepared.
pub(crate) struct TokenSigner {
    pub(crate) key_id: String,
    pub(crate) algorithm: JwsAlgorithm,
    signer: Arc<dyn Signer>,
    signature_algorithm: SignatureAlgorithm,
}

impl TokenSigner {
    pub(crate) fn new(key_id: String, signer: Arc<dyn Signer>) -> Self {
        let signature_algorithm = signer.key_type().signature_algorithm();
        let algorithm = match signature_algorithm {
            SignatureAlgorithm::EcdsaP256Sha256 => JwsAlgorithm::Es256,
            SignatureAlgorithm::EcdsaP384Sha384 => JwsAlgorithm::Es384,
            SignatureAlgorithm::RsaPkcs1Sha256 => JwsAlgorithm::Rs256,
            SignatureAlgorithm::RsaPssSha256 => JwsAlgorithm::Ps256,
        };
        Self { key_id, algorithm, signer, signature_algorithm }
    }

    pub(crate) fn public_key(&self) -> &PublicKey {
        self.signer.public_key()
    }

    pub(crate) fn sign(&self, kind: &str, claims: &impl Serialize) -> Result<String, JwtError> {
        #[derive(Serialize)]
        struct Protected<'a> {
            alg: &'a str,
            kid: &'a str,
            typ: &'a str,
        }
        let header = Protected { alg: self.algorithm.as_str(), kid: &self.key_id, typ: kind };
        let encode = |error: serde_json::Error| JwtError::Malformed(error.to_string());
        let mut token = BASE64URL_NOPAD.encode(&serde_json::to_vec(&header).map_err(encode)?);
        token.push('.');
        BASE64URL_NOPAD.encode_append(&serde_json::to_vec(claims).map_err(encode)?, &mut token);
        let signature = self.signer.sign_with(self.signature_algorithm, token.as_bytes())?;
        let signature = match self.algorithm {
            JwsAlgorithm::Es256 => ecdsa_fixed(&signature, 32)?,
            JwsAlgorithm::Es384 => ecdsa_fixed(&signature, 48)?,
            _ => signature,
        };
        token.push('.');
        BASE64URL_NOPAD.encode_append(&signature, &mut token);
        Ok(token)
    }
}

/// A token taken apart; nothing about it is verified.
pub(crate) struct Token<'a> {
    pub(crate) signed: &'a str,
    signature: Vec<u8>,
    pub(crate) algorithm: JwsAlgorithm,
    pub(crate) kind: Option<String>,
    pub(crate) key_id: String,
    pub(crate) claims: Map<String, Value>,
}

/// A token whose signature and times are right.
pub(crate) struct Checked {
    pub(crate) spiffe_id: SpiffeId,
    pub(crate) expires_at: Timestamp,
}

impl<'a> Token<'a> {
    pub(crate) fn parse(token: &'a str) -> Result<Self, JwtError> {
        #[derive(Deserialize)]
        struct Protected {
            alg: String,
            #[serde(default)]
            kid: String,
            typ: Option<String>,
            crit: Option<Value>,
        }
        if token.len() > MAX_TOKEN_BYTES {
            return Err(JwtError::TooLong);
        }
        let malformed = |what: &str| JwtError::Malformed(what.to_owned());
        let (signed, signature) =
            token.rsplit_once('.').ok_or_else(|| malformed("it is not a compact JWS"))?;
        let (header, payload) = signed.split_once('.').ok_or_else(|| malformed("it is not a compact JWS"))?;
        if payload.contains('.') {
            return Err(malformed("it has more than three parts"));
        }
        let decode = |part: &str, what: &str| {
            BASE64URL_NOPAD
                .decode(part.as_bytes())
                .map_err(|_| JwtError::Malformed(format!("{what} is not base64url")))
        };
        let header: Protected = serde_json::from_slice(&decode(header, "the header")?)
            .map_err(|error| JwtError::Malformed(format!("the header: {error}")))?;
        if header.crit.is_some() {
            return Err(malformed("the header has critical extensions"));
        }
        let algorithm: JwsAlgorithm = header.alg.parse()?;
        if header.kid.is_empty() {
            return Err(JwtError::KeyIdMissing);
        }
        let claims: Map<String, Value> = serde_json::from_slice(&decode(payload, "the payload")?)
            .map_err(|error| JwtError::Malformed(format!("the claims: {error}")))?;
        let signature = decode(signature, "the signature")?;
        Ok(Self { signed, signature, algorithm, kind: header.typ, key_id: header.kid, claims })
    }

    /// Checks subject, key, signature and times, in the order in which the errors are most telling.
    pub(crate) fn check(&self, keys: &dyn JwtKeySource, now: Timestamp) -> Result<Checked, JwtError> {
        let subject = match self.claims.get("sub") {
            Some(Value::String(subject)) if !subject.is_empty() => subject,
            Some(Value::String(_) | Value::Null) | None => return Err(JwtError::SubjectMissing),
            Some(_) => return Err(JwtError::Claim("sub")),
        };
        let spiffe_id = SpiffeId::parse(subject).map_err(JwtError::Subject)?;
        let expires_at = self.date("exp")?.ok_or(JwtError::ExpiryMissing)?;

        let trust_domain = spiffe_id.trust_domain();
        let key = match keys.key(trust_domain, &self.key_id) {
            KeyLookup::Found(key) => key,
            KeyLookup::UnknownKey => {
                return Err(JwtError::UnknownKey {
                    key_id: self.key_id.clone(),
                    trust_domain: trust_domain.clone(),
                });
            }
            KeyLookup::UnknownTrustDomain => return Err(JwtError::UnknownTrustDomain(trust_domain.clone())),
        };
        self.verify(&key)?;

        let leeway = Timestamp::saturating_sub;
        if leeway(now, LEEWAY) > expires_at {
            return Err(JwtError::Expired);
        }
        if self.date("nbf")?.is_some_and(|from| now.saturating_add(LEEWAY) < from) {
            return Err(JwtError::NotYetValid);
        }
        if self.date("iat")?.is_some_and(|at| now.saturating_add(LEEWAY) < at) {
            return Err(JwtError::IssuedInFuture);
        }
        Ok(Checked { spiffe_id, expires_at })
    }

    pub(crate) fn verify(&self, key: &PublicKey) -> Result<(), JwtError> {
        let unsupported = || JwtError::Algorithm(self.algorithm.as_str().to_owned());
        let method = self.algorithm.verification().ok_or_else(unsupported)?;
        if !self.algorithm.fits(key.algorithm()) {
            return Err(JwtError::Signature);
        }
        let verified = match self.algorithm {
            JwsAlgorithm::Es256 | JwsAlgorithm::Es384 => {
                let size = if self.algorithm == JwsAlgorithm::Es256 { 32 } else { 48 };
                let signature = ecdsa_der(&self.signature, size).ok_or(JwtError::Signature)?;
                key.verify(method, self.signed.as_bytes(), &signature)
            }
            _ => key.verify(method, self.signed.as_bytes(), &self.signature),
        };
        if verified { Ok(()) } else { Err(JwtError::Signature) }
    }

    /// A NumericDate (RFC 7519 2): seconds, perhaps with a fraction.
    pub(crate) fn date(&self, claim: &'static str) -> Result<Option<Timestamp>, JwtError> {
        let seconds = match self.claims.get(claim) {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::Number(number)) => {
                number.as_i64().or_else(|| number.as_f64().map(|value| value.floor() as i64))
            }
            Some(_) => None,
        };
        let seconds = seconds.ok_or(JwtError::Claim(claim))?;
        Ok(Some(Timestamp::from_unix_seconds(seconds.clamp(-LATEST_SECOND, LATEST_SECOND))))
    }
}

/// An ECDSA signature as r and s, each of `size` bytes (RFC 7518 3.4), from its DER form.
fn ecdsa_fixed(signature: &[u8], size: usize) -> Result<Vec<u8>, JwtError> {
    let (r, s) = ecdsa_parts(signature).map_err(|error| JwtError::Malformed(error.0.to_owned()))?;
    let mut out = vec![0; 2 * size];
    for (at, part) in [(size, r), (2 * size, s)] {
        let start = at.checked_sub(part.len()).ok_or(JwtError::Signature)?;
        out[start..at].copy_from_slice(part);
    }
    Ok(out)
}

/// The DER form of an ECDSA signature, from r and s of `size` bytes each.
fn ecdsa_der(signature: &[u8], size: usize) -> Option<Vec<u8>> {
    if signature.len() != 2 * size {
        return None;
    }
    let (r, s) = signature.split_at(size);
    Some(ecdsa_der_from_parts(r, s))
}

/// r and s of an ECDSA signature in DER, without leading zeros.
pub(crate) fn ecdsa_parts(signature: &[u8]) -> Result<(&[u8], &[u8]), DerError> {
    const BROKEN: &str = "ECDSA signature is broken";
    let mut parts = Reader::new(Reader::new(signature).expect(der::SEQUENCE, BROKEN)?.content);
    let r = parts.expect(der::INTEGER, BROKEN)?;
    let s = parts.expect(der::INTEGER, BROKEN)?;
    Ok((der::positive_integer(r.content, BROKEN)?, der::positive_integer(s.content, BROKEN)?))
}

pub(crate) fn ecdsa_der_from_parts(r: &[u8], s: &[u8]) -> Vec<u8> {
    let mut writer = Writer::with_capacity(r.len() + s.len() + 10);
    writer.sequence(|writer| {
        writer.integer(r);
        writer.integer(s);
    });
    writer.finish()
}

/// Larger than any token that fits into the headers it is carried in.
const MAX_TOKEN_BYTES: usize = 64 << 10;

/// What clocks may differ by.
const LEEWAY: std::time::Duration = std::time::Duration::from_secs(60);

/// Dates beyond this differ in nothing that matters, and stay clear of overflow.
const LATEST_SECOND: i64 = 1 << 43;
