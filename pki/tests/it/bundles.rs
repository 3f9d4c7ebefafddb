//! Bundle documents and key sets: the form that goes out, and what is taken in.

use bonafide_identity::{Bundle, JwtAuthority, X509Authority};
use bonafide_pki::bundle::{
    BundleError, from_jwks, from_pem, from_spiffe_json, jwks_for_workload, to_pem, to_spiffe_json, wit_jwks,
};
use bonafide_pki::jwk::{Jwk, jwk_to_public_key, public_key_to_jwk};
use bonafide_pki::{KeyType, PublicKey, Signer as _};
use data_encoding::{BASE64, HEXLOWER};
use serde_json::{Value, json};

use crate::support::{OpenSsl, Role, authority, domain, key};

fn token_authority(key_id: &str, kind: KeyType) -> JwtAuthority {
    let public_key = key(kind, Role::Authority).public_key().spki_der().to_vec();
    JwtAuthority { key_id: key_id.to_owned(), public_key, expires_at: None, tainted: false }
}

fn full() -> Bundle {
    let mut bundle = Bundle::empty(domain());
    bundle.x509_authorities = KeyType::ALL
        .map(|kind| X509Authority { certificate: authority(kind).certificate().to_vec(), tainted: false })
        .to_vec();
    bundle.jwt_authorities =
        vec![token_authority("a", KeyType::EcP256), token_authority("b", KeyType::Rsa2048)];
    bundle.wit_authorities = vec![token_authority("w", KeyType::EcP384)];
    bundle.refresh_hint = 300;
    bundle.sequence_number = 7;
    bundle
}

#[test]
fn a_bundle_survives_the_round_trip() {
    let bundle = full();
    assert_eq!(from_spiffe_json(&domain(), to_spiffe_json(&bundle).as_bytes()).unwrap(), bundle);
    let from_text = from_pem(&domain(), to_pem(&bundle).as_bytes()).unwrap();
    assert_eq!(from_text.x509_authorities, bundle.x509_authorities);
}

#[test]
fn the_document_has_the_form_of_the_standard() {
    let text = to_spiffe_json(&full());
    assert!(text.starts_with(
        "{\n    \"keys\": [\n        {\n            \"use\": \"x509-svid\",\n            \"kty\": \"EC\""
    ));
    assert!(text.ends_with("],\n    \"spiffe_sequence\": 7,\n    \"spiffe_refresh_hint\": 300\n}"));
    let document: Value = serde_json::from_str(&text).unwrap();
    let keys = document["keys"].as_array().unwrap();
    let uses: Vec<&str> = keys.iter().map(|key| key["use"].as_str().unwrap()).collect();
    assert_eq!(
        uses,
        ["x509-svid", "x509-svid", "x509-svid", "x509-svid", "jwt-svid", "jwt-svid", "wit-svid"]
    );
    for x509 in &keys[..4] {
        assert_eq!(x509["x5c"].as_array().unwrap().len(), 1);
        assert!(x509.get("kid").is_none());
    }
    for token in &keys[4..] {
        assert!(token["kid"].is_string() && token.get("x5c").is_none());
    }
    let mut bundle = full();
    bundle.refresh_hint = 0;
    assert!(!to_spiffe_json(&bundle).contains("refresh_hint"));
}

#[test]
fn key_sets_for_workloads_are_ordered_and_without_use() {
    let keys = [token_authority("b", KeyType::EcP256), token_authority("a", KeyType::Rsa2048)];
    let text = String::from_utf8(jwks_for_workload(&keys)).unwrap();
    assert!(text.starts_with(
        "{\n    \"keys\": [\n        {\n            \"kty\": \"RSA\",\n            \"kid\": \"a\","
    ));
    assert!(!text.contains("\"use\"") && !text.contains("spiffe_"));
    let document: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(document["keys"][1]["kid"], "b");
    let reversed = [keys[1].clone(), keys[0].clone()];
    assert_eq!(jwks_for_workload(&reversed), text.as_bytes(), "the same keys give the same bytes");
    assert_eq!(from_jwks(text.as_bytes()).unwrap(), reversed);
    assert_eq!(wit_jwks(&keys), text.as_bytes());
    assert_eq!(jwks_for_workload(&[]), b"{\n    \"keys\": []\n}");
}

/// The example keys of RFC 7517 appendix A.1 and RFC 7638.
#[test]
fn published_keys_are_read_and_written_unchanged() {
    let ec = json!({"kty": "EC", "crv": "P-256",
        "x": "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4", "y": "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"});
    let rsa = json!({"kty": "RSA", "n": "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR\
        1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs\
        8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-cs\
        FCur-kEgU8awapJzKnqDKgw", "e": "AQAB"});
    for published in [ec, rsa] {
        let jwk: Jwk = serde_json::from_value(published.clone()).unwrap();
        let key = jwk_to_public_key(&jwk).unwrap();
        key.check_point().unwrap();
        assert_eq!(serde_json::to_value(public_key_to_jwk(&key)).unwrap(), published);
        assert_eq!(PublicKey::from_spki_der(key.spki_der()).unwrap(), key);
    }
}

fn refused(document: &Value) -> BundleError {
    from_spiffe_json(&domain(), document.to_string().as_bytes()).unwrap_err()
}

#[test]
fn broken_documents_are_refused_and_the_place_is_named() {
    let certificate = BASE64.encode(authority(KeyType::EcP256).certificate());
    let good = json!({"use": "x509-svid", "kty": "EC", "x5c": [certificate]});
    let jwk = serde_json::to_value(public_key_to_jwk(key(KeyType::EcP256, Role::Leaf).public_key())).unwrap();
    let jwt = |changes: Value| {
        let mut key = jwk.clone();
        key["use"] = json!("jwt-svid");
        for (name, value) in changes.as_object().unwrap() {
            key[name] = value.clone();
        }
        key
    };
    let with = |key: Value| json!({"keys": [good, key]});
    assert!(from_spiffe_json(&domain(), with(jwt(json!({"kid": "k"}))).to_string().as_bytes()).is_ok());

    let two = with(json!({"use": "x509-svid", "x5c": [certificate, certificate]}));
    assert!(matches!(refused(&two), BundleError::CertificateCount { index: 1, count: 2 }));
    let none = with(json!({"use": "x509-svid", "kty": "EC"}));
    assert!(matches!(refused(&none), BundleError::CertificateCount { index: 1, count: 0 }));
    let junk = with(json!({"use": "x509-svid", "x5c": ["AAAA"]}));
    assert!(refused(&junk).to_string().starts_with("bundle key 1: malformed certificate: "));
    assert!(matches!(refused(&with(json!({"use": "x509-svid", "x5c": ["*"]}))), BundleError::NotBase64(1)));
    assert!(matches!(refused(&with(jwt(json!({})))), BundleError::KeyIdMissing(1)));
    assert!(matches!(refused(&with(jwt(json!({"kid": ""})))), BundleError::KeyIdMissing(1)));
    for (name, value) in [("x", json!("AAAA")), ("y", json!(null)), ("x", json!("*"))] {
        assert!(matches!(
            refused(&with(jwt(json!({"kid": "k", name: value})))),
            BundleError::Key { index: 1, .. }
        ));
    }
    let weak = with(json!({"use": "jwt-svid", "kid": "k", "kty": "RSA", "n": BASE64URL_1024, "e": "AQAB"}));
    assert!(refused(&weak).to_string().contains("RSA needs 2048"), "{}", refused(&weak));
    let twice = json!({"keys": [jwt(json!({"kid": "k"})), jwt(json!({"kid": "k"}))]});
    assert!(matches!(refused(&twice), BundleError::DuplicateKeyId(id) if id == "k"));
    for shape in [
        json!({}),
        json!([]),
        json!({"keys": {}}),
        json!({"keys": [1]}),
        json!({"keys": [], "spiffe_sequence": -1}),
    ] {
        assert!(matches!(refused(&shape), BundleError::Json(_)), "{shape}");
    }
    assert!(from_spiffe_json(&domain(), &vec![b' '; 5 << 20]).is_err());
}

const BASE64URL_1024: &str = "u1SU1LfVLPHCozMxH2Mo4lgOEePzNm0tRgeLezV6ffAt0gunVTLw7onLRnrq0_IzW7yWR7QkrmBL7jTKEn5u-qKhbwKfBstIs-bMY2Zkp18gnTxKLxoS2tFczGkPLPgizskuemMghRniWaoLcyehkd3qqGElvW_VDL5AaWTg0nM";

#[test]
fn keys_that_are_not_for_us_are_ignored() {
    let document = json!({"keys": [
        {"kty": "EC", "crv": "P-256"},
        {"use": "sig", "kty": "oct", "k": "AAAA"},
        {"use": "jwt-svid", "kid": "ed", "kty": "OKP", "crv": "Ed25519", "x": "AAAA"},
        {"use": "jwt-svid", "kid": "p521", "kty": "EC", "crv": "P-521", "x": "AAAA", "y": "AAAA"},
    ], "unknown": true});
    let bundle = from_spiffe_json(&domain(), document.to_string().as_bytes()).unwrap();
    assert!(bundle.is_empty());
    assert_eq!((bundle.sequence_number, bundle.refresh_hint), (0, 0));
}

#[test]
fn pem_bundles_hold_certificates_only() {
    let ca = authority(KeyType::EcP256);
    let one = bonafide_pki::pem::encode("CERTIFICATE", ca.certificate());
    let twice = from_pem(&domain(), format!("# roots\n{one}{one}").as_bytes()).unwrap();
    assert_eq!(twice.x509_authorities.len(), 1);
    assert!(matches!(from_pem(&domain(), b"nothing"), Err(BundleError::Empty)));
    let secret = bonafide_pki::pem::encode("PRIVATE KEY", b"x");
    assert!(matches!(from_pem(&domain(), (one + &secret).as_bytes()), Err(BundleError::Label(_))));
    let junk = bonafide_pki::pem::encode("CERTIFICATE", b"x");
    assert!(matches!(from_pem(&domain(), junk.as_bytes()), Err(BundleError::Certificate { index: 0, .. })));
}

#[test]
fn openssl_reads_our_pem_and_agrees_on_the_key_identifier() {
    let Some(openssl) = OpenSsl::find("openssl_reads_our_pem_and_agrees_on_the_key_identifier") else {
        return;
    };
    openssl.write("bundle.pem", to_pem(&full()));
    openssl.must("storeutl -noout -certs bundle.pem");
    // A certificate that OpenSSL makes for the same key carries the same identifier.
    for kind in KeyType::ALL {
        let key = key(kind, Role::Leaf);
        openssl.write("key.pem", bonafide_pki::pem::encode("PRIVATE KEY", &key.expose_pkcs8()));
        openssl.must("req -x509 -new -key key.pem -subj /CN=x -outform DER -out theirs.der");
        let theirs = bonafide_pki::inspect(&openssl.read("theirs.der")).unwrap().ski.unwrap();
        assert_eq!(theirs, HEXLOWER.encode(&key.public_key().subject_key_id()));
    }
}
