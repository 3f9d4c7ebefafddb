//! JWT-SVIDs (SPIFFE JWT-SVID standard): sign and validate.

use std::fmt;
use std::sync::Arc;

use bonafide_identity::{IdError, SpiffeId, Timestamp, TrustDomain};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::jws::{JwsAlgorithm, JwtKeySource, Token, TokenSigner};
use crate::key::{KeyError, PublicKey, Signer};

/// Why a token is not issued or not accepted. The texts reach the callers of the Workload API.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JwtError {
    /// More bytes than a token may have.
    #[error("token is too long")]
    TooLong,
    /// Not a compact JWS with a JSON header and JSON claims.
    #[error("unable to parse JWT token: {0}")]
    Malformed(String),
    /// An algorithm outside the standard, or ES512.
    #[error("unable to parse JWT token: unsupported signature algorithm {0:?}")]
    Algorithm(String),
    /// A `typ` that is neither absent nor expected.
    #[error("token type {0:?} is not supported")]
    Kind(String),
    /// No `kid`.
    #[error("token header missing key id")]
    KeyIdMissing,
    /// No `sub`.
    #[error("token missing subject claim")]
    SubjectMissing,
    /// `sub` is not a SPIFFE ID.
    #[error("token has an invalid subject claim: {0}")]
    Subject(#[source] IdError),
    /// No `exp`.
    #[error("token missing exp claim")]
    ExpiryMissing,
    /// A claim of the wrong type.
    #[error("token has an invalid {0} claim")]
    Claim(&'static str),
    /// No bundle for the trust domain of the subject.
    #[error("no keys found for trust domain {:?}", .0.as_str())]
    UnknownTrustDomain(TrustDomain),
    /// The bundle has no such key.
    #[error("public key {key_id:?} not found in trust domain {:?}", .trust_domain.as_str())]
    UnknownKey {
        /// The `kid`.
        key_id: String,
        /// The trust domain of the subject.
        trust_domain: TrustDomain,
    },
    /// The signature is wrong, or of another kind than the key.
    #[error("token signature is invalid")]
    Signature,
    /// Past `exp`.
    #[error("token has expired")]
    Expired,
    /// Before `nbf`.
    #[error("token is not valid yet")]
    NotYetValid,
    /// `iat` lies in the future.
    #[error("token was issued in the future")]
    IssuedInFuture,
    /// The audience that was asked for is not among those of the token.
    #[error("expected audience in {} (audience={})", Quoted(std::slice::from_ref(.expected)), Quoted(.present))]
    Audience {
        /// What was asked for.
        expected: String,
        /// What the token has.
        present: Vec<String>,
    },
    /// A token without audience was to be issued.
    #[error("at least one audience is required")]
    NoAudience,
    /// A token that ends before it begins was to be issued.
    #[error("token would expire before it is issued")]
    Lifetime,
    /// The confirmation key of a WIT-SVID does not fit its algorithm.
    #[error("signing algorithm {algorithm} does not fit a key of type {key}")]
    Confirmation {
        /// The algorithm that was asked for.
        algorithm: JwsAlgorithm,
        /// The kind of key.
        key: crate::key::KeyAlgorithm,
    },
    /// The signer failed.
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// Strings in quotes with spaces between, in brackets.
struct Quoted<'a>(&'a [String]);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quoted: Vec<String> = self.0.iter().map(|text| format!("{text:?}")).collect();
        write!(f, "[{}]", quoted.join(" "))
    }
}

/// The claims of a JWT-SVID to sign.
#[derive(Clone, Debug)]
pub struct JwtClaims<'a> {
    /// The subject.
    pub sub: &'a SpiffeId,
    /// Audiences in order; empty ones are dropped.
    pub aud: &'a [String],
    /// Expiry; rounded down to seconds.
    pub exp: Timestamp,
    /// Issue; rounded down to seconds.
    pub iat: Timestamp,
    /// The issuer, when configured.
    pub iss: Option<&'a str>,
    /// The token ID, when asked for: see [`crate::random_jti`].
    pub jti: Option<String>,
}

/// A token authority: its key and key ID. Signs JWT-SVIDs, and WIT-SVIDs (in the module `wit`).
pub struct JwtSigner {
    pub(crate) token: TokenSigner,
}

impl JwtSigner {
    /// Takes a key into service under a key ID (see [`crate::random_key_id`]).
    pub fn new(key_id: String, signer: Arc<dyn Signer>) -> Self {
        Self { token: TokenSigner::new(key_id, signer) }
    }

    /// The key ID.
    pub fn key_id(&self) -> &str {
        &self.token.key_id
    }

    /// The algorithm: ES256, ES384 or RS256 by the kind of key.
    pub fn algorithm(&self) -> JwsAlgorithm {
        self.token.algorithm
    }

    /// The public key, as it goes into the bundle.
    pub fn public_key(&self) -> &PublicKey {
        self.token.public_key()
    }

    /// Signs a JWT-SVID.
    ///
    /// # Errors
    /// [`JwtError::NoAudience`], [`JwtError::Lifetime`], [`JwtError::Key`].
    pub fn sign_jwt_svid(&self, claims: &JwtClaims<'_>) -> Result<String, JwtError> {
        #[derive(Serialize)]
        struct Payload<'a> {
            aud: Vec<&'a str>,
            exp: i64,
            iat: i64,
            #[serde(skip_serializing_if = "Option::is_none")]
            iss: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            jti: Option<&'a str>,
            sub: String,
        }
        let aud: Vec<&str> =
            claims.aud.iter().map(String::as_str).filter(|audience| !audience.is_empty()).collect();
        if aud.is_empty() {
            return Err(JwtError::NoAudience);
        }
        let (exp, iat) = (claims.exp.unix_seconds(), claims.iat.unix_seconds());
        if exp < iat {
            return Err(JwtError::Lifetime);
        }
        let sub = claims.sub.to_string();
        self.token.sign("JWT", &Payload { aud, exp, iat, iss: claims.iss, jti: claims.jti.as_deref(), sub })
    }
}

/// A JWT-SVID whose signature, times and audience are right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValidatedJwt {
    /// The subject.
    pub spiffe_id: SpiffeId,
    /// All claims; `aud` is always a list.
    pub claims: Map<String, Value>,
    /// The `exp` claim.
    pub expires_at: Timestamp,
    /// The audiences.
    pub audience: Vec<String>,
}

/// Validates a JWT-SVID (JWT-SVID standard, section 5). Without `audience`, any audience is accepted. Clocks may
/// differ by a minute.
///
/// # Errors
/// [`JwtError`], whose text is what the Workload API answers.
pub fn validate_jwt_svid(
    token: &str,
    keys: &dyn JwtKeySource,
    audience: Option<&str>,
    now: Timestamp,
) -> Result<ValidatedJwt, JwtError> {
    let mut token = Token::parse(token)?;
    if let Some(kind) = token.kind.take().filter(|kind| kind != "JWT" && kind != "JOSE") {
        return Err(JwtError::Kind(kind));
    }
    let checked = token.check(keys, now)?;
    let present = audiences(token.claims.get("aud"))?;
    if let Some(expected) = audience
        && !present.iter().any(|audience| audience == expected)
    {
        return Err(JwtError::Audience { expected: expected.to_owned(), present });
    }
    let mut claims = token.claims;
    claims.insert("aud".to_owned(), Value::from(present.clone()));
    Ok(ValidatedJwt {
        spiffe_id: checked.spiffe_id,
        claims,
        expires_at: checked.expires_at,
        audience: present,
    })
}

pub(crate) fn audiences(claim: Option<&Value>) -> Result<Vec<String>, JwtError> {
    const BROKEN: JwtError = JwtError::Claim("aud");
    match claim {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::String(one)) => Ok(vec![one.clone()]),
        Some(Value::Array(list)) => {
            list.iter().map(|audience| audience.as_str().map(str::to_owned).ok_or(BROKEN)).collect()
        }
        Some(_) => Err(BROKEN),
    }
}
