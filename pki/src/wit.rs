//! WIT-SVIDs: workload identity tokens bound to a key that the workload proves to hold (the `cnf` claim).

use bonafide_identity::{SpiffeId, Timestamp};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::jwk::{self, Jwk};
use crate::jws::{JwsAlgorithm, JwtKeySource, Token};
use crate::jwt::{JwtError, JwtSigner};
use crate::key::PublicKey;

/// The claims of a WIT-SVID to sign.
#[derive(Clone, Debug)]
pub struct WitClaims<'a> {
    /// The subject.
    pub sub: &'a SpiffeId,
    /// Expiry; rounded down to seconds.
    pub exp: Timestamp,
    /// Issue; rounded down to seconds.
    pub iat: Timestamp,
    /// The issuer, when configured.
    pub iss: Option<&'a str>,
}

impl JwtSigner {
    /// Signs a WIT-SVID for a workload's key, which will sign with `algorithm`.
    ///
    /// # Errors
    /// [`JwtError::Confirmation`] when key and algorithm do not fit, [`JwtError::Lifetime`], [`JwtError::Key`].
    pub fn sign_wit_svid(
        &self,
        claims: &WitClaims<'_>,
        key: &PublicKey,
        algorithm: JwsAlgorithm,
    ) -> Result<String, JwtError> {
        #[derive(Serialize)]
        struct Confirmation {
            jwk: Jwk,
        }
        #[derive(Serialize)]
        struct Payload<'a> {
            cnf: Confirmation,
            exp: i64,
            iat: i64,
            #[serde(skip_serializing_if = "Option::is_none")]
            iss: Option<&'a str>,
            sub: String,
        }
        if !algorithm.fits(key.algorithm()) {
            return Err(JwtError::Confirmation { algorithm, key: key.algorithm() });
        }
        let (exp, iat) = (claims.exp.unix_seconds(), claims.iat.unix_seconds());
        if exp < iat {
            return Err(JwtError::Lifetime);
        }
        let cnf = Confirmation { jwk: jwk::public_key_to_jwk_with_algorithm(key, algorithm) };
        self.token.sign(TYPE, &Payload { cnf, exp, iat, iss: claims.iss, sub: claims.sub.to_string() })
    }
}

/// A WIT-SVID whose signature and times are right. Its bearer must still prove to hold the confirmed key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValidatedWit {
    /// The subject.
    pub spiffe_id: SpiffeId,
    /// All claims.
    pub claims: Map<String, Value>,
    /// The `exp` claim.
    pub expires_at: Timestamp,
    /// The key that the bearer must prove to hold.
    pub confirmation: PublicKey,
    /// The algorithm that the bearer signs with.
    pub confirmation_algorithm: JwsAlgorithm,
}

/// Validates a WIT-SVID. Clocks may differ by a minute.
///
/// # Errors
/// [`JwtError`].
pub fn validate_wit_svid(
    token: &str,
    keys: &dyn JwtKeySource,
    now: Timestamp,
) -> Result<ValidatedWit, JwtError> {
    let token = Token::parse(token)?;
    if token.kind.as_deref() != Some(TYPE) {
        return Err(JwtError::Kind(token.kind.unwrap_or_default()));
    }
    let checked = token.check(keys, now)?;
    let jwk = token.claims.get("cnf").and_then(|cnf| cnf.get("jwk")).cloned();
    let jwk: Jwk = jwk.and_then(|jwk| serde_json::from_value(jwk).ok()).ok_or(JwtError::Claim("cnf"))?;
    let confirmation = jwk::jwk_to_public_key(&jwk).map_err(|_| JwtError::Claim("cnf"))?;
    let confirmation_algorithm: JwsAlgorithm = jwk.alg.as_deref().unwrap_or_default().parse()?;
    if !confirmation_algorithm.fits(confirmation.algorithm()) {
        let (algorithm, key) = (confirmation_algorithm, confirmation.algorithm());
        return Err(JwtError::Confirmation { algorithm, key });
    }
    Ok(ValidatedWit {
        spiffe_id: checked.spiffe_id,
        claims: token.claims,
        expires_at: checked.expires_at,
        confirmation,
        confirmation_algorithm,
    })
}

const TYPE: &str = "wit+jwt";
