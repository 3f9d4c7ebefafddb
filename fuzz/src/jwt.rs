//! JWT-SVIDs and WIT-SVIDs: from workloads, which got them from anybody.
//!
//! The text is read as a token, and as header and claims (two lines) of a token that is then signed. Laws: the subject and
//! the expiry are those of the claims; the audience that is asked for must be among those of the token; no token is both a
//! JWT and a WIT; nothing is accepted under a signature of other bytes.

use std::sync::LazyLock;

use bonafide_pki::{JwtKeys, validate_jwt_svid, validate_wit_svid};
use data_encoding::BASE64URL_NOPAD;
use serde_json::Value;

use crate::{NOW, known_key, split_at_byte, with_a_flipped_bit};

static KEYS: LazyLock<JwtKeys> = LazyLock::new(known_key::token_keys);

/// Whether the text is a token, or the content of one.
pub fn check(data: &[u8]) -> bool {
    let whole = std::str::from_utf8(data).is_ok_and(token);
    let (header, claims) = split_at_byte(data, b'\n');
    let signed = sign(header, claims);
    let content = token(&signed);
    if content {
        let signature = signed.rsplit_once('.').expect("it has three parts").1;
        let other = sign(header, &with_a_flipped_bit(claims));
        let forged = format!("{}.{signature}", other.rsplit_once('.').expect("it has three parts").0);
        assert!(!token(&forged), "accepted with a signature of other claims");
    }
    whole || content
}

/// A token of the known key.
pub fn sign(header: &[u8], claims: &[u8]) -> String {
    let mut token = format!("{}.{}", BASE64URL_NOPAD.encode(header), BASE64URL_NOPAD.encode(claims));
    let (r, s) = known_key::signature(token.as_bytes());
    token.push('.');
    BASE64URL_NOPAD.encode_append(&[r, s].concat(), &mut token);
    token
}

fn token(text: &str) -> bool {
    let jwt = validate_jwt_svid(text, &*KEYS, None, NOW);
    let wit = validate_wit_svid(text, &*KEYS, NOW);
    assert!(jwt.is_err() || wit.is_err(), "one token of two kinds");
    if let Ok(wit) = &wit {
        assert_eq!(wit.claims.get("sub"), Some(&Value::from(wit.spiffe_id.to_string())));
        assert!(wit.expires_at.saturating_add(LEEWAY) >= NOW);
        assert!(wit.confirmation_algorithm.fits(wit.confirmation.algorithm()));
    }
    let Ok(jwt) = &jwt else { return wit.is_ok() };
    assert_eq!(jwt.claims.get("sub"), Some(&Value::from(jwt.spiffe_id.to_string())));
    assert_eq!(jwt.spiffe_id.trust_domain(), &crate::trust_domain(), "there are no keys of another one");
    assert!(jwt.expires_at.saturating_add(LEEWAY) >= NOW);
    assert_eq!(jwt.claims.get("aud"), Some(&Value::from(jwt.audience.clone())));
    for audience in &jwt.audience {
        let again = validate_jwt_svid(text, &*KEYS, Some(audience), NOW);
        assert_eq!(again.expect("the audience is one of the token's"), *jwt);
    }
    let stranger: String = jwt.audience.concat() + "x";
    assert!(validate_jwt_svid(text, &*KEYS, Some(&stranger), NOW).is_err(), "accepted for another audience");
    true
}

const LEEWAY: std::time::Duration = std::time::Duration::from_secs(60);
