//! ID tokens of foreign issuers (OpenID Connect Core 1.0, section 2, and RFC 7519), and the key sets that verify them.
//!
//! Stricter than the standard where it leaves a choice: a key ID is required, the algorithm must be one that was allowed, a
//! token must say when it was issued and when it expires, and it must not be older than the operator accepts.

use std::collections::HashMap;
use std::time::Duration;

use bonafide_identity::Timestamp;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::digest::Sha256;
use crate::jwk::{Jwk, jwk_to_public_key};
use crate::jws::{JwsAlgorithm, Token};
use crate::jwt::{JwtError, audiences};
use crate::key::PublicKey;

/// Why a token is not accepted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OidcError {
    /// Its form, signature or times.
    #[error(transparent)]
    Token(#[from] JwtError),
    /// The issuer's key set has no key under this key ID.
    #[error("the issuer has no key {0:?}")]
    UnknownKey(String),
    /// An algorithm that is not allowed for the issuer, or not for this key.
    #[error("signature algorithm {0} is not allowed")]
    Algorithm(JwsAlgorithm),
    /// A `typ` of something else than a token of identity.
    #[error("token type {0:?} is not supported")]
    Kind(String),
    /// `iss` is absent.
    #[error("token missing iss claim")]
    NoIssuer,
    /// `iat` is absent.
    #[error("token missing iat claim")]
    NoIssueTime,
    /// None of the expected audiences.
    #[error("token is not meant for this server (audience={0:?})")]
    Audience(Vec<String>),
    /// Issued too long ago.
    #[error("token is too old: it was issued {}s ago, the limit is {}s", .age.as_secs(), .limit.as_secs())]
    TooOld {
        /// Its age.
        age: Duration,
        /// The most that is accepted.
        limit: Duration,
    },
}

/// What a token of one issuer must be like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRules {
    /// Audiences, of which the token must have one.
    pub audiences: Vec<String>,
    /// Accepted signature algorithms.
    pub algorithms: Vec<JwsAlgorithm>,
    /// What clocks may differ by.
    pub leeway: Duration,
    /// How long ago a token may have been issued.
    pub max_age: Duration,
}

/// A token taken apart. Nothing about it is verified until [`Self::check`] has passed.
pub struct OidcToken<'a> {
    token: Token<'a>,
}

/// What was found out about a token that passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckedToken {
    /// From here on it would be refused.
    pub refused_from: Timestamp,
    /// What it is remembered by: a digest of issuer and `jti`, or of the signed part when it has no `jti`. The signature is
    /// left out, because some can be written in several ways.
    pub fingerprint: [u8; 32],
}

impl<'a> OidcToken<'a> {
    /// Takes a token apart.
    ///
    /// # Errors
    /// [`JwtError`].
    pub fn parse(text: &'a str) -> Result<Self, JwtError> {
        Token::parse(text).map(|token| Self { token })
    }

    /// The `iss` claim.
    ///
    /// # Errors
    /// It is absent or no text.
    pub fn issuer(&self) -> Result<&str, OidcError> {
        match self.token.claims.get("iss") {
            Some(Value::String(issuer)) if !issuer.is_empty() => Ok(issuer),
            Some(Value::String(_) | Value::Null) | None => Err(OidcError::NoIssuer),
            Some(_) => Err(JwtError::Claim("iss").into()),
        }
    }

    /// The ID of the key that is said to have signed it.
    pub fn key_id(&self) -> &str {
        &self.token.key_id
    }

    /// All claims.
    pub fn claims(&self) -> &Map<String, Value> {
        &self.token.claims
    }

    /// What can be said without a key: algorithm, type, audience and times. Cheap, so it comes before keys are fetched.
    ///
    /// # Errors
    /// [`OidcError`].
    pub fn check_claims(&self, rules: &TokenRules, now: Timestamp) -> Result<CheckedToken, OidcError> {
        let token = &self.token;
        if !rules.algorithms.contains(&token.algorithm) {
            return Err(OidcError::Algorithm(token.algorithm));
        }
        if let Some(kind) = &token.kind
            && !["JWT", "at+jwt"].iter().any(|known| kind.eq_ignore_ascii_case(known))
        {
            return Err(OidcError::Kind(kind.clone()));
        }
        let present = audiences(token.claims.get("aud"))?;
        if !present.iter().any(|audience| rules.audiences.contains(audience)) {
            return Err(OidcError::Audience(present));
        }
        let expires_at = token.date("exp")?.ok_or(JwtError::ExpiryMissing)?;
        let issued_at = token.date("iat")?.ok_or(OidcError::NoIssueTime)?;
        let ends = expires_at.min(issued_at.saturating_add(rules.max_age)).saturating_add(rules.leeway);
        if expires_at.saturating_add(rules.leeway) <= now {
            return Err(JwtError::Expired.into());
        }
        if now.saturating_add(rules.leeway) < issued_at {
            return Err(JwtError::IssuedInFuture.into());
        }
        if token.date("nbf")?.is_some_and(|from| now.saturating_add(rules.leeway) < from) {
            return Err(JwtError::NotYetValid.into());
        }
        if ends <= now {
            let age = u64::try_from(now.unix_seconds() - issued_at.unix_seconds()).unwrap_or(0);
            return Err(OidcError::TooOld { age: Duration::from_secs(age), limit: rules.max_age });
        }
        Ok(CheckedToken { refused_from: ends, fingerprint: self.fingerprint()? })
    }

    /// Whether a key of the issuer signed it.
    ///
    /// # Errors
    /// [`OidcError::UnknownKey`], [`OidcError::Algorithm`], or a wrong signature.
    pub fn verify(&self, keys: &OidcKeys) -> Result<(), OidcError> {
        let key = keys
            .keys
            .get(&self.token.key_id)
            .ok_or_else(|| OidcError::UnknownKey(self.token.key_id.clone()))?;
        if key.algorithm.is_some_and(|algorithm| algorithm != self.token.algorithm) {
            return Err(OidcError::Algorithm(self.token.algorithm));
        }
        Ok(self.token.verify(&key.key)?)
    }

    fn fingerprint(&self) -> Result<[u8; 32], OidcError> {
        let issuer = self.issuer()?;
        let mut digest = Sha256::new();
        let mut part = |bytes: &[u8]| {
            digest.update(&(bytes.len() as u64).to_be_bytes());
            digest.update(bytes);
        };
        match self.token.claims.get("jti") {
            Some(Value::String(id)) if !id.is_empty() => {
                part(b"jti");
                part(issuer.as_bytes());
                part(id.as_bytes());
            }
            _ => {
                part(b"token");
                part(self.token.signed.as_bytes());
            }
        }
        Ok(digest.finish())
    }
}

/// The keys of one issuer, by key ID.
#[derive(Clone, Debug, Default)]
pub struct OidcKeys {
    keys: HashMap<String, OidcKey>,
}

#[derive(Clone, Debug)]
struct OidcKey {
    key: PublicKey,
    algorithm: Option<JwsAlgorithm>,
}

impl OidcKeys {
    /// Reads a JSON Web Key Set (RFC 7517). Keys that are not for signatures, not within the key policy, or without a key ID
    /// are left out; issuers publish such beside the others.
    ///
    /// # Errors
    /// It is no key set, has too many keys, or none that can be used.
    pub fn parse(json: &[u8]) -> Result<Self, KeySetError> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<Value>,
        }
        let set: Set = serde_json::from_slice(json).map_err(|error| KeySetError::Json(error.to_string()))?;
        if set.keys.len() > MAX_KEYS {
            return Err(KeySetError::TooMany);
        }
        let mut keys = HashMap::new();
        for value in set.keys {
            let Ok(jwk) = serde_json::from_value::<Jwk>(value) else { continue };
            let for_signatures = jwk.key_use.as_deref().is_none_or(|usage| usage == "sig");
            let Some(key_id) = jwk.kid.clone().filter(|id| !id.is_empty() && for_signatures) else {
                continue;
            };
            let algorithm = match jwk.alg.as_deref().map(str::parse) {
                None => None,
                Some(Ok(algorithm)) => Some(algorithm),
                Some(Err(_)) => continue,
            };
            let Ok(key) = jwk_to_public_key(&jwk) else { continue };
            // The first one counts: a later one must not take its place.
            keys.entry(key_id).or_insert(OidcKey { key, algorithm });
        }
        if keys.is_empty() { Err(KeySetError::NoKeys) } else { Ok(Self { keys }) }
    }

    /// Whether there is a key with this ID.
    pub fn has(&self, key_id: &str) -> bool {
        self.keys.contains_key(key_id)
    }
}

/// Why a key set cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeySetError {
    /// Not the JSON of a key set.
    #[error("it is not a JSON Web Key Set: {0}")]
    Json(String),
    /// More keys than anybody needs.
    #[error("it has more than {MAX_KEYS} keys")]
    TooMany,
    /// Nothing that could verify a token.
    #[error("it has no key for signatures that can be used (RSA, P-256 or P-384, with a key ID)")]
    NoKeys,
}

const MAX_KEYS: usize = 100;
