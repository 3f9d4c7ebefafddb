//! Tokens of foreign issuers: rules, keys, and what a token is remembered by.

use std::time::Duration;

use bonafide_pki::oidc::{KeySetError, OidcError, OidcKeys, OidcToken, TokenRules};
use bonafide_pki::{JwsAlgorithm, JwtClaims, JwtError, JwtSigner, KeyType, jwk};
use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};

use crate::support::{Role, at, key, web};

fn rules() -> TokenRules {
    TokenRules {
        audiences: vec!["bonafide".to_owned()],
        algorithms: vec![JwsAlgorithm::Es256, JwsAlgorithm::Rs256],
        leeway: Duration::from_secs(30),
        max_age: Duration::from_secs(3600),
    }
}

fn signer(kind: KeyType) -> JwtSigner {
    JwtSigner::new("k1".to_owned(), key(kind, Role::Authority))
}

fn token(kind: KeyType, issued: i64, expires: i64, jti: Option<&str>) -> String {
    let (sub, aud) = (web(), ["bonafide".to_owned()]);
    let claims = JwtClaims {
        sub: &sub,
        aud: &aud,
        exp: at(expires),
        iat: at(issued),
        iss: Some("https://issuer.test"),
        jti: jti.map(str::to_owned),
    };
    signer(kind).sign_jwt_svid(&claims).unwrap()
}

fn key_set(kind: KeyType, change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut jwk = serde_json::to_value(jwk::public_key_to_jwk(signer(kind).public_key())).unwrap();
    jwk["kid"] = "k1".into();
    change(&mut jwk);
    json!({ "keys": [jwk] }).to_string().into_bytes()
}

/// The token with another header, and the signature of the first.
fn with_header(token: &str, header: &Value) -> String {
    let rest = token.split_once('.').unwrap().1;
    format!("{}.{rest}", BASE64URL_NOPAD.encode(header.to_string().as_bytes()))
}

#[test]
fn a_token_is_accepted_within_its_rules_only() {
    let text = token(KeyType::EcP256, 0, 600, None);
    let parsed = OidcToken::parse(&text).unwrap();
    assert_eq!((parsed.issuer().unwrap(), parsed.key_id()), ("https://issuer.test", "k1"));
    let checked = parsed.check_claims(&rules(), at(0)).unwrap();
    assert_eq!(checked.refused_from, at(630));
    parsed.verify(&OidcKeys::parse(&key_set(KeyType::EcP256, |_| {})).unwrap()).unwrap();

    let check = |text: &str, rules: &TokenRules, now| {
        OidcToken::parse(text).unwrap().check_claims(rules, now).map(drop)
    };
    assert!(check(&text, &rules(), at(629)).is_ok());
    assert!(matches!(check(&text, &rules(), at(630)), Err(OidcError::Token(JwtError::Expired))));
    assert!(matches!(check(&text, &rules(), at(-31)), Err(OidcError::Token(JwtError::IssuedInFuture))));
    assert!(check(&text, &rules(), at(-30)).is_ok());
    let long = token(KeyType::EcP256, 0, 86_400, None);
    assert!(check(&long, &rules(), at(3629)).is_ok());
    let old = check(&long, &rules(), at(3630)).unwrap_err();
    assert_eq!(old.to_string(), "token is too old: it was issued 3630s ago, the limit is 3600s");

    let other = TokenRules { audiences: vec!["other".to_owned()], ..rules() };
    assert!(matches!(check(&text, &other, at(0)), Err(OidcError::Audience(_))));
    let other = TokenRules { algorithms: vec![JwsAlgorithm::Es384], ..rules() };
    assert!(matches!(check(&text, &other, at(0)), Err(OidcError::Algorithm(JwsAlgorithm::Es256))));
    let typed = with_header(&text, &json!({"alg": "ES256", "kid": "k1", "typ": "logout+jwt"}));
    assert!(matches!(check(&typed, &rules(), at(0)), Err(OidcError::Kind(_))));
    for algorithm in ["none", "HS256", "ES256K", "EdDSA", ""] {
        let text = with_header(&text, &json!({"alg": algorithm, "kid": "k1"}));
        assert!(matches!(OidcToken::parse(&text), Err(JwtError::Algorithm(_))), "{algorithm}");
    }
    assert!(OidcToken::parse(&with_header(&text, &json!({"alg": "ES256"}))).is_err(), "no key ID");
}

#[test]
fn keys_are_those_for_signatures_with_the_right_algorithm() {
    let text = token(KeyType::EcP256, 0, 600, None);
    let verify = |set: &[u8]| OidcToken::parse(&text).unwrap().verify(&OidcKeys::parse(set).unwrap());
    verify(&key_set(KeyType::EcP256, |jwk| jwk["use"] = "sig".into())).unwrap();
    verify(&key_set(KeyType::EcP256, |jwk| jwk["alg"] = "ES256".into())).unwrap();
    let other = key_set(KeyType::EcP256, |jwk| jwk["kid"] = "k2".into());
    assert!(matches!(verify(&other), Err(OidcError::UnknownKey(id)) if id == "k1"));
    // The key of another family under the same ID: what a confusion of algorithms would need.
    assert!(matches!(verify(&key_set(KeyType::Rsa2048, |_| {})), Err(OidcError::Token(JwtError::Signature))));
    let limited = key_set(KeyType::Rsa2048, |jwk| jwk["alg"] = "RS256".into());
    assert!(matches!(verify(&limited), Err(OidcError::Algorithm(_))));
    for useless in [
        key_set(KeyType::EcP256, |jwk| jwk["use"] = "enc".into()),
        key_set(KeyType::EcP256, |jwk| jwk["kid"] = "".into()),
        key_set(KeyType::EcP256, |jwk| jwk["kty"] = "oct".into()),
        key_set(KeyType::EcP256, |jwk| jwk["alg"] = "HS256".into()),
        key_set(KeyType::EcP256, |jwk| jwk["x"] = "AA".into()),
        br#"{"keys":[]}"#.to_vec(),
    ] {
        assert_eq!(OidcKeys::parse(&useless).unwrap_err(), KeySetError::NoKeys);
    }
    assert!(matches!(OidcKeys::parse(b"[]"), Err(KeySetError::Json(_))));
    let many = json!({ "keys": vec![json!({}); 101] }).to_string();
    assert_eq!(OidcKeys::parse(many.as_bytes()).unwrap_err(), KeySetError::TooMany);
}

#[test]
fn a_token_is_remembered_by_what_nobody_but_the_issuer_can_change() {
    let fingerprint =
        |text: &str| OidcToken::parse(text).unwrap().check_claims(&rules(), at(0)).unwrap().fingerprint;
    let first = token(KeyType::EcP256, 0, 600, None);
    let again = token(KeyType::EcP256, 0, 600, None);
    assert_ne!(first, again, "signatures are drawn");
    assert_eq!(fingerprint(&first), fingerprint(&again));
    assert_ne!(fingerprint(&first), fingerprint(&token(KeyType::EcP256, 0, 601, None)));
    let named = |jti, expires| fingerprint(&token(KeyType::EcP256, 0, expires, Some(jti)));
    assert_eq!(named("a", 600), named("a", 601));
    assert_ne!(named("a", 600), named("b", 600));
}
