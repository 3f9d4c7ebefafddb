//! JSON Web Keys (RFC 7517, RFC 7518 section 6) of the kinds that the key policy allows: public ones in and out, and
//! private ones out, for the workloads that own them.

use std::collections::BTreeMap;

use data_encoding::BASE64URL_NOPAD;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::crypto::Curve;
use crate::der::{self, DerError, Reader, Writer};
use crate::jws::JwsAlgorithm;
use crate::key::{KeyAlgorithm, KeyError, PrivateKey, PublicKey, Signer as _, rsa_components};

/// A JWK with the members that SPIFFE uses. Unknown members are ignored when read, absent ones are not written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Jwk {
    /// What the key is for: `x509-svid`, `jwt-svid`, `wit-svid` in SPIFFE bundles.
    #[serde(rename = "use", default, skip_serializing_if = "Option::is_none")]
    pub key_use: Option<String>,
    /// The family: `EC` or `RSA`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kty: String,
    /// The key ID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kid: Option<String>,
    /// The curve: `P-256` or `P-384`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crv: Option<String>,
    /// The algorithm that the key is meant for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alg: Option<String>,
    /// The x coordinate, base64url.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub x: Option<String>,
    /// The y coordinate, base64url.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub y: Option<String>,
    /// The RSA modulus, base64url.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n: Option<String>,
    /// The RSA exponent, base64url.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub e: Option<String>,
    /// The certificate chain, standard base64 of DER.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub x5c: Option<Vec<String>>,
}

/// Why a JWK is not a usable public key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JwkError {
    /// A family or curve that we do not support.
    #[error("unsupported key: kty {kty:?}, crv {crv:?}")]
    Unsupported {
        /// The `kty` member.
        kty: String,
        /// The `crv` member, or nothing.
        crv: String,
    },
    /// A member is absent or not base64url.
    #[error("JWK member {0:?} is missing or not base64url")]
    Member(&'static str),
    /// The numbers are not a key that the policy allows.
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// The JWK of a public key: `kty` and the numbers, nothing else.
pub fn public_key_to_jwk(key: &PublicKey) -> Jwk {
    let encode = |bytes: &[u8]| Some(BASE64URL_NOPAD.encode(bytes));
    let ec = |crv: &str, size: usize| {
        let (x, y) = key.bare()[1..].split_at(size);
        Jwk { kty: "EC".to_owned(), crv: Some(crv.to_owned()), x: encode(x), y: encode(y), ..Jwk::default() }
    };
    match key.algorithm() {
        KeyAlgorithm::EcP256 => ec("P-256", 32),
        KeyAlgorithm::EcP384 => ec("P-384", 48),
        KeyAlgorithm::Rsa(_) => {
            let (n, e) = rsa_components(key.bare()).expect("a public key was parsed when it was made");
            Jwk { kty: "RSA".to_owned(), n: encode(n), e: encode(e), ..Jwk::default() }
        }
    }
}

/// As [`public_key_to_jwk`], with `alg`: the form of a WIT-SVID's confirmation key.
pub fn public_key_to_jwk_with_algorithm(key: &PublicKey, algorithm: JwsAlgorithm) -> Jwk {
    Jwk { alg: Some(algorithm.as_str().to_owned()), ..public_key_to_jwk(key) }
}

/// The JWK of a private key with `alg`, as JSON: what a workload signs with under its WIT-SVID.
///
/// # Panics
/// Never: the numbers are read from a key that was parsed when it was made.
pub fn private_key_to_jwk(key: &PrivateKey, algorithm: JwsAlgorithm) -> Zeroizing<String> {
    #[derive(Serialize)]
    struct Private<'a> {
        #[serde(flatten)]
        public: &'a Jwk,
        #[serde(flatten)]
        numbers: BTreeMap<&'static str, &'a str>,
    }
    let pkcs8 = key.expose_pkcs8();
    let numbers = private_numbers(&pkcs8, key.public_key().algorithm())
        .expect("a private key was parsed when it was made");
    let public = public_key_to_jwk_with_algorithm(key.public_key(), algorithm);
    let numbers = numbers.iter().map(|(name, number)| (*name, number.as_str())).collect();
    Zeroizing::new(serde_json::to_string(&Private { public: &public, numbers }).expect("texts are JSON"))
}

/// The secret members of RFC 7518, sections 6.2.2 and 6.3.2.
fn private_numbers(
    pkcs8: &[u8],
    algorithm: KeyAlgorithm,
) -> Result<Vec<(&'static str, Zeroizing<String>)>, DerError> {
    const BROKEN: &str = "private key is not PKCS#8";
    let encode = |number: &[u8]| Zeroizing::new(BASE64URL_NOPAD.encode(number));
    let mut info = Reader::new(Reader::new(pkcs8).expect(der::SEQUENCE, BROKEN)?.content);
    info.expect(der::INTEGER, BROKEN)?;
    info.expect(der::SEQUENCE, BROKEN)?;
    let inner = info.expect(der::OCTET_STRING, BROKEN)?;
    let mut numbers = Reader::new(Reader::new(inner.content).expect(der::SEQUENCE, BROKEN)?.content);
    numbers.expect(der::INTEGER, BROKEN)?;
    match algorithm {
        KeyAlgorithm::EcP256 | KeyAlgorithm::EcP384 => {
            // RFC 5915: of the full width of the curve already.
            Ok(vec![("d", encode(numbers.expect(der::OCTET_STRING, BROKEN)?.content))])
        }
        KeyAlgorithm::Rsa(_) => {
            // RFC 8017, A.1.2: the modulus and the public exponent come first.
            numbers.expect(der::INTEGER, BROKEN)?;
            numbers.expect(der::INTEGER, BROKEN)?;
            ["d", "p", "q", "dp", "dq", "qi"]
                .into_iter()
                .map(|name| {
                    let number = numbers.expect(der::INTEGER, BROKEN)?;
                    Ok((name, encode(der::positive_integer(number.content, BROKEN)?)))
                })
                .collect()
        }
    }
}

/// The public key of a JWK, checked against the key policy.
///
/// # Errors
/// [`JwkError`].
pub fn jwk_to_public_key(jwk: &Jwk) -> Result<PublicKey, JwkError> {
    let decode = |value: &Option<String>, name: &'static str| {
        let value = value.as_ref().ok_or(JwkError::Member(name))?;
        BASE64URL_NOPAD.decode(value.trim_end_matches('=').as_bytes()).map_err(|_| JwkError::Member(name))
    };
    let ec = |curve: Curve, size: usize| {
        let (x, y) = (decode(&jwk.x, "x")?, decode(&jwk.y, "y")?);
        // RFC 7518 6.2.1.2: full width, leading zeros included.
        if x.len() != size {
            return Err(JwkError::Member("x"));
        }
        if y.len() != size {
            return Err(JwkError::Member("y"));
        }
        Ok(PublicKey::from_bare(Some(curve), &[&[4], &x[..], &y[..]].concat())?)
    };
    match (jwk.kty.as_str(), jwk.crv.as_deref()) {
        ("EC", Some("P-256")) => ec(Curve::P256, 32),
        ("EC", Some("P-384")) => ec(Curve::P384, 48),
        ("RSA", _) => {
            let (n, e) = (decode(&jwk.n, "n")?, decode(&jwk.e, "e")?);
            let mut writer = Writer::with_capacity(n.len() + 32);
            writer.sequence(|writer| {
                writer.integer(&n);
                writer.integer(&e);
            });
            Ok(PublicKey::from_bare(None, &writer.finish())?)
        }
        (kty, crv) => {
            Err(JwkError::Unsupported { kty: kty.to_owned(), crv: crv.unwrap_or_default().to_owned() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::KeyType;

    #[test]
    fn a_private_jwk_holds_the_secret_numbers_of_its_public_one() {
        for (kind, algorithm, names) in [
            (KeyType::EcP256, JwsAlgorithm::Es256, &["d"][..]),
            (KeyType::EcP384, JwsAlgorithm::Es384, &["d"]),
            (KeyType::Rsa2048, JwsAlgorithm::Rs256, &["d", "dp", "dq", "p", "q", "qi"]),
        ] {
            let key = PrivateKey::generate(kind).unwrap();
            let json = private_key_to_jwk(&key, algorithm);
            let public: Jwk = serde_json::from_str(&json).unwrap();
            assert_eq!(jwk_to_public_key(&public).unwrap(), *key.public_key());
            assert_eq!(public.alg.as_deref(), Some(algorithm.as_str()));
            let pkcs8 = key.expose_pkcs8();
            let members: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&json).unwrap();
            for name in names {
                let number = BASE64URL_NOPAD.decode(members[*name].as_str().unwrap().as_bytes()).unwrap();
                assert!(pkcs8.windows(number.len()).any(|window| window == number), "{kind} {name}");
            }
            let secret = members
                .keys()
                .filter(|name| !["kty", "crv", "alg", "x", "y", "n", "e"].contains(&name.as_str()));
            assert_eq!(secret.collect::<Vec<_>>(), names);
        }
    }
}
