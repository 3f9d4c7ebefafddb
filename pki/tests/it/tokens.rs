//! JWT-SVIDs and WIT-SVIDs: form, verification by OpenSSL, tokens of others, refusals with the texts of the Workload API.

use std::sync::Arc;

use bonafide_identity::{JwtAuthority, TrustDomain};
use bonafide_pki::{
    JwsAlgorithm, JwtClaims, JwtError, JwtKeys, JwtSigner, KeyType, PrivateKey, Signer as _, SystemRandom,
    WitClaims, jwk, pem, random_jti, random_key_id, validate_jwt_svid, validate_wit_svid,
};
use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};

use crate::support::{NOW, OpenSsl, P256, P384, RSA_2048, Role, at, domain, id, key, web};

fn signer(kind: KeyType) -> JwtSigner {
    JwtSigner::new(format!("key-{kind}"), key(kind, Role::Authority))
}

fn keys_of(signers: &[&JwtSigner]) -> JwtKeys {
    let authorities: Vec<JwtAuthority> = signers
        .iter()
        .map(|signer| JwtAuthority {
            key_id: signer.key_id().to_owned(),
            public_key: signer.public_key().spki_der().to_vec(),
            expires_at: None,
            tainted: false,
        })
        .collect();
    let mut keys = JwtKeys::new();
    keys.insert(domain(), &authorities);
    keys
}

fn sign(signer: &JwtSigner, aud: &[&str]) -> String {
    let aud: Vec<String> = aud.iter().map(|audience| (*audience).to_owned()).collect();
    let sub = web();
    let claims = JwtClaims { sub: &sub, aud: &aud, exp: at(300), iat: at(0), iss: None, jti: None };
    signer.sign_jwt_svid(&claims).unwrap()
}

fn part(token: &str, index: usize) -> Vec<u8> {
    BASE64URL_NOPAD.decode(token.split('.').nth(index).unwrap().as_bytes()).unwrap()
}

/// A token of any content, signed as it should be.
fn forge(kind: KeyType, header: &Value, claims: &Value) -> String {
    let encode = |value: &Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
    forge_raw(kind, &format!("{}.{}", encode(header), encode(claims)))
}

fn forge_raw(kind: KeyType, signed: &str) -> String {
    let der = key(kind, Role::Authority).sign(signed.as_bytes()).unwrap();
    let signature = if kind == KeyType::EcP256 { fixed(&der, 32) } else { der };
    format!("{signed}.{}", BASE64URL_NOPAD.encode(&signature))
}

/// SEQUENCE { INTEGER r, INTEGER s } to two numbers of fixed width.
fn fixed(der: &[u8], size: usize) -> Vec<u8> {
    let r_end = 4 + usize::from(der[3]);
    let number = |bytes: &[u8]| {
        let bytes = bytes.strip_prefix(&[0]).unwrap_or(bytes);
        [vec![0; size - bytes.len()], bytes.to_vec()].concat()
    };
    [number(&der[4..r_end]), number(&der[r_end + 2..])].concat()
}

#[test]
fn header_and_claims_have_exactly_the_agreed_form() {
    let signer = JwtSigner::new("kid1".to_owned(), key(KeyType::EcP256, Role::Authority));
    let token = sign(&signer, &["b", "", "a"]);
    assert_eq!(String::from_utf8(part(&token, 0)).unwrap(), r#"{"alg":"ES256","kid":"kid1","typ":"JWT"}"#);
    assert_eq!(
        String::from_utf8(part(&token, 1)).unwrap(),
        format!(
            r#"{{"aud":["b","a"],"exp":{},"iat":{NOW},"sub":"spiffe://example.org/ns/default/sa/web"}}"#,
            NOW + 300
        )
    );
    assert_eq!(part(&token, 2).len(), 64);

    let sub = web();
    let aud = ["a".to_owned()];
    let jti = random_jti(&SystemRandom);
    let claims = JwtClaims {
        sub: &sub,
        aud: &aud,
        exp: at(300),
        iat: at(0),
        iss: Some("https://i"),
        jti: Some(jti.clone()),
    };
    let claims: Value = serde_json::from_slice(&part(&signer.sign_jwt_svid(&claims).unwrap(), 1)).unwrap();
    assert_eq!(
        (&claims["iss"], &claims["jti"], &claims["aud"]),
        (&json!("https://i"), &json!(jti), &json!(["a"]))
    );
    assert!(claims.get("nbf").is_none());

    let none = JwtClaims { sub: &sub, aud: &["".to_owned()], exp: at(300), iat: at(0), iss: None, jti: None };
    assert!(matches!(signer.sign_jwt_svid(&none), Err(JwtError::NoAudience)));
    let backwards = JwtClaims { sub: &sub, aud: &aud, exp: at(-1), iat: at(0), iss: None, jti: None };
    assert!(matches!(signer.sign_jwt_svid(&backwards), Err(JwtError::Lifetime)));
    assert_eq!(random_key_id(&SystemRandom).len(), 32);
}

#[test]
fn every_kind_of_key_signs_tokens_that_we_and_openssl_verify() {
    let openssl = OpenSsl::find("every_kind_of_key_signs_tokens_that_we_and_openssl_verify");
    for (kind, algorithm) in [
        (KeyType::EcP256, JwsAlgorithm::Es256),
        (KeyType::EcP384, JwsAlgorithm::Es384),
        (KeyType::Rsa2048, JwsAlgorithm::Rs256),
        (KeyType::Rsa4096, JwsAlgorithm::Rs256),
    ] {
        let signer = signer(kind);
        assert_eq!(signer.algorithm(), algorithm);
        // ECDSA numbers that begin with zeros turn up once in 256 signatures.
        for round in 0..if kind == KeyType::EcP256 { 600 } else { 2 } {
            let token = sign(&signer, &["a", &round.to_string()]);
            let valid = validate_jwt_svid(&token, &keys_of(&[&signer]), Some("a"), at(0)).unwrap();
            assert_eq!((valid.spiffe_id, valid.expires_at), (web(), at(300)));
        }
        let Some(openssl) = &openssl else { continue };
        let token = sign(&signer, &["a"]);
        let (signed, _) = token.rsplit_once('.').unwrap();
        let raw = part(&token, 2);
        let signature = if kind == KeyType::Rsa2048 || kind == KeyType::Rsa4096 {
            raw
        } else {
            let number = |half: &[u8]| {
                let skipped = half.iter().take_while(|byte| **byte == 0).count();
                let half = &half[skipped..];
                let pad = if half[0] >= 0x80 { vec![0] } else { Vec::new() };
                [vec![2, u8::try_from(half.len() + pad.len()).unwrap()], pad, half.to_vec()].concat()
            };
            let (r, s) = raw.split_at(raw.len() / 2);
            let body = [number(r), number(s)].concat();
            [vec![0x30, u8::try_from(body.len()).unwrap()], body].concat()
        };
        openssl.write("public.pem", pem::encode("PUBLIC KEY", signer.public_key().spki_der()));
        openssl.write("signed", signed);
        openssl.write("signature", signature);
        let hash = if kind == KeyType::EcP384 { "sha384" } else { "sha256" };
        openssl.must(&format!("dgst -{hash} -verify public.pem -signature signature signed"));
    }
}

#[test]
fn tokens_of_others_are_accepted_with_every_algorithm_of_the_standard() {
    let Some(openssl) = OpenSsl::find("tokens_of_others_are_accepted_with_every_algorithm_of_the_standard")
    else {
        return;
    };
    let pss = "-sigopt rsa_padding_mode:pss -sigopt rsa_pss_saltlen:digest";
    for (name, genpkey, hash, more, size) in [
        ("ES256", P256, "sha256", "", Some(32)),
        ("ES384", P384, "sha384", "", Some(48)),
        ("RS256", RSA_2048, "sha256", "", None),
        ("RS384", RSA_2048, "sha384", "", None),
        ("RS512", RSA_2048, "sha512", "", None),
        ("PS256", RSA_2048, "sha256", pss, None),
        ("PS384", RSA_2048, "sha384", pss, None),
        ("PS512", RSA_2048, "sha512", pss, None),
    ] {
        openssl.must(&format!("genpkey {genpkey} -out key.pem"));
        let header = json!({"alg": name, "kid": "k", "typ": "JOSE"}).to_string();
        let claims = json!({"sub": web().to_string(), "aud": "one", "exp": NOW as f64 + 0.5, "extra": [1]})
            .to_string();
        let encode = |text: &str| BASE64URL_NOPAD.encode(text.as_bytes());
        let signed = format!("{}.{}", encode(&header), encode(&claims));
        openssl.write("signed", &signed);
        openssl.must(&format!("dgst -{hash} -sign key.pem {more} -out signature signed"));
        let signature = openssl.read("signature");
        let signature = size.map_or(signature.clone(), |size| fixed(&signature, size));
        let token = format!("{signed}.{}", BASE64URL_NOPAD.encode(&signature));

        let made = PrivateKey::from_pem(&openssl.read("key.pem")).unwrap();
        let signer = JwtSigner::new("k".to_owned(), Arc::new(made));
        let valid = validate_jwt_svid(&token, &keys_of(&[&signer]), Some("one"), at(0)).unwrap();
        assert_eq!(valid.claims["aud"], json!(["one"]), "a single audience becomes a list");
        assert_eq!(valid.claims["extra"], json!([1]));
        assert_eq!((valid.audience, valid.expires_at), (vec!["one".to_owned()], at(0)));

        // The same bytes under every other name fail.
        for other in JwsAlgorithm::ALL.iter().filter(|other| other.as_str() != name) {
            let header = json!({"alg": other.as_str(), "kid": "k"}).to_string();
            let token =
                format!("{}.{}.{}", encode(&header), encode(&claims), BASE64URL_NOPAD.encode(&signature));
            assert!(
                validate_jwt_svid(&token, &keys_of(&[&signer]), None, at(0)).is_err(),
                "{name} as {other}"
            );
        }
    }
}

#[test]
fn refusals_say_why() {
    let header = json!({"alg": "ES256", "kid": "key-ec-p256", "typ": "JWT"});
    let claims = json!({"sub": web().to_string(), "aud": ["a", "b"], "exp": NOW + 10});
    let with = |base: &Value, name: &str, value: Value| {
        let mut changed = base.clone();
        match value {
            Value::Null => changed.as_object_mut().unwrap().remove(name),
            value => changed.as_object_mut().unwrap().insert(name.to_owned(), value),
        };
        changed
    };
    let claim = |name, value| forge(KeyType::EcP256, &header, &with(&claims, name, value));
    let head = |name, value| forge(KeyType::EcP256, &with(&header, name, value), &claims);
    let keys = keys_of(&[&signer(KeyType::EcP256)]);
    let text = |token: &str| validate_jwt_svid(token, &keys, Some("a"), at(0)).unwrap_err().to_string();
    let good = forge(KeyType::EcP256, &header, &claims);
    validate_jwt_svid(&good, &keys, Some("a"), at(0)).unwrap();
    validate_jwt_svid(&head("typ", Value::Null), &keys, Some("a"), at(0)).unwrap();
    validate_jwt_svid(&head("typ", json!("JOSE")), &keys, Some("a"), at(0)).unwrap();

    assert_eq!(text(&claim("exp", json!(NOW - 61))), "token has expired");
    validate_jwt_svid(&claim("exp", json!(NOW - 60)), &keys, Some("a"), at(0)).unwrap();
    assert_eq!(text(&claim("nbf", json!(NOW + 61))), "token is not valid yet");
    validate_jwt_svid(&claim("nbf", json!(NOW + 60)), &keys, Some("a"), at(0)).unwrap();
    assert_eq!(text(&claim("iat", json!(NOW + 61))), "token was issued in the future");
    assert_eq!(text(&claim("aud", json!(["x", "y"]))), r#"expected audience in ["a"] (audience=["x" "y"])"#);
    assert_eq!(text(&claim("aud", Value::Null)), r#"expected audience in ["a"] (audience=[])"#);
    assert_eq!(text(&claim("aud", json!([1]))), "token has an invalid aud claim");
    assert_eq!(text(&claim("sub", Value::Null)), "token missing subject claim");
    assert_eq!(text(&claim("sub", json!(""))), "token missing subject claim");
    assert!(
        text(&claim("sub", json!("https://example.org"))).starts_with("token has an invalid subject claim: ")
    );
    assert_eq!(text(&claim("exp", Value::Null)), "token missing exp claim");
    assert_eq!(text(&claim("exp", json!("soon"))), "token has an invalid exp claim");
    assert_eq!(
        text(&claim("sub", json!("spiffe://other.org/x"))),
        r#"no keys found for trust domain "other.org""#
    );
    assert_eq!(
        text(&head("kid", json!("old"))),
        r#"public key "old" not found in trust domain "example.org""#
    );
    assert_eq!(text(&head("kid", Value::Null)), "token header missing key id");
    assert_eq!(text(&head("typ", json!("at+jwt"))), r#"token type "at+jwt" is not supported"#);
    assert_eq!(
        text(&head("crit", json!(["exp"]))),
        "unable to parse JWT token: the header has critical extensions"
    );
    for algorithm in ["none", "HS256", "EdDSA", "es256", ""] {
        let expected = format!("unable to parse JWT token: unsupported signature algorithm {algorithm:?}");
        assert_eq!(text(&head("alg", json!(algorithm))), expected);
    }
    let expected = "unable to parse JWT token: unsupported signature algorithm \"ES512\"";
    assert_eq!(text(&head("alg", json!("ES512"))), expected);
    assert_eq!(text(&head("alg", json!("RS256"))), "token signature is invalid");

    let unsigned = good.rsplit_once('.').unwrap().0;
    assert_eq!(text(&format!("{unsigned}.")), "token signature is invalid");
    assert_eq!(
        text(&format!("{}.{}", unsigned, BASE64URL_NOPAD.encode(&[0; 64]))),
        "token signature is invalid"
    );
    let other = forge(KeyType::EcP256, &header, &with(&claims, "aud", json!(["a"])));
    let spliced = format!("{unsigned}.{}", other.rsplit_once('.').unwrap().1);
    assert_eq!(text(&spliced), "token signature is invalid");

    for malformed in [
        String::new(),
        ".".to_owned(),
        "..".to_owned(),
        "a.b".to_owned(),
        format!("{good}."),
        format!("{good}.{good}"),
        format!("{good}="),
        format!(" {good}"),
        format!("{good}\n"),
        forge_raw(KeyType::EcP256, &format!("{}.bm8", BASE64URL_NOPAD.encode(header.to_string().as_bytes()))),
        json!({"payload": "", "signatures": []}).to_string(),
        forge(KeyType::EcP256, &header, &json!([1])),
        forge(KeyType::EcP256, &json!("text"), &claims),
    ] {
        assert!(
            text(&malformed).starts_with("unable to parse JWT token: "),
            "{malformed}: {}",
            text(&malformed)
        );
    }
    let duplicate = BASE64URL_NOPAD.encode(br#"{"alg":"ES256","alg":"ES256","kid":"key-ec-p256"}"#);
    let duplicate =
        forge_raw(KeyType::EcP256, &format!("{duplicate}.{}", unsigned.split_once('.').unwrap().1));
    assert!(text(&duplicate).starts_with("unable to parse JWT token: "));
    assert_eq!(text(&claim("pad", json!("x".repeat(70_000)))), "token is too long");
    // Dates far outside any calendar are neither a panic nor valid for ever in the past.
    validate_jwt_svid(&claim("exp", json!(1e300)), &keys, Some("a"), at(0)).unwrap();
    assert_eq!(text(&claim("exp", json!(-1e300))), "token has expired");
    assert_eq!(text(&claim("nbf", json!(u64::MAX))), "token is not valid yet");
}

#[test]
fn keys_outside_the_policy_are_left_out_of_a_key_set() {
    let good = signer(KeyType::EcP256);
    let authority = |key_id: &str, public_key: &[u8]| JwtAuthority {
        key_id: key_id.to_owned(),
        public_key: public_key.to_vec(),
        expires_at: None,
        tainted: false,
    };
    let mut keys = JwtKeys::new();
    let authorities = [authority("broken", b"junk"), authority(good.key_id(), good.public_key().spki_der())];
    keys.insert(domain(), &authorities);
    validate_jwt_svid(&sign(&good, &["a"]), &keys, None, at(0)).unwrap();
    let broken = JwtSigner::new("broken".to_owned(), key(KeyType::EcP256, Role::Authority));
    let error = validate_jwt_svid(&sign(&broken, &["a"]), &keys, None, at(0)).unwrap_err();
    assert!(matches!(error, JwtError::UnknownKey { .. }), "{error}");
    assert!(TrustDomain::parse("example.org").is_ok());
}

#[test]
fn wit_svids_bind_a_key() {
    let authority = signer(KeyType::EcP256);
    let keys = keys_of(&[&authority]);
    let sub = web();
    let claims = WitClaims { sub: &sub, exp: at(3600), iat: at(0), iss: Some("https://issuer") };
    for (kind, algorithm) in [
        (KeyType::EcP256, JwsAlgorithm::Es256),
        (KeyType::EcP384, JwsAlgorithm::Es384),
        (KeyType::Rsa2048, JwsAlgorithm::Ps512),
    ] {
        let workload = key(kind, Role::Leaf);
        let token = authority.sign_wit_svid(&claims, workload.public_key(), algorithm).unwrap();
        let header: Value = serde_json::from_slice(&part(&token, 0)).unwrap();
        assert_eq!(header, json!({"alg": "ES256", "kid": "key-ec-p256", "typ": "wit+jwt"}));
        let payload: Value = serde_json::from_slice(&part(&token, 1)).unwrap();
        assert_eq!(payload["cnf"]["jwk"]["alg"], json!(algorithm.as_str()));
        assert!(payload.get("aud").is_none() && payload["cnf"]["jwk"].get("d").is_none());
        assert_eq!((&payload["iss"], &payload["exp"]), (&json!("https://issuer"), &json!(NOW + 3600)));

        let valid = validate_wit_svid(&token, &keys, at(0)).unwrap();
        assert_eq!(valid.spiffe_id, web());
        assert_eq!((&valid.confirmation, valid.confirmation_algorithm), (workload.public_key(), algorithm));
        assert!(matches!(validate_wit_svid(&token, &keys, at(3661)), Err(JwtError::Expired)));
        // One kind of token is not taken for the other.
        assert!(matches!(validate_jwt_svid(&token, &keys, None, at(0)), Err(JwtError::Kind(_))));
    }
    assert!(matches!(validate_wit_svid(&sign(&authority, &["a"]), &keys, at(0)), Err(JwtError::Kind(_))));
    let workload = key(KeyType::EcP256, Role::Leaf);
    for algorithm in [JwsAlgorithm::Es384, JwsAlgorithm::Es512, JwsAlgorithm::Rs256] {
        let error = authority.sign_wit_svid(&claims, workload.public_key(), algorithm).unwrap_err();
        assert!(matches!(error, JwtError::Confirmation { .. }), "{error}");
    }
    let header = json!({"alg": "ES256", "kid": "key-ec-p256", "typ": "wit+jwt"});
    let mut jwk = serde_json::to_value(jwk::public_key_to_jwk(workload.public_key())).unwrap();
    let bad = |cnf: Value| {
        let claims = json!({"sub": web().to_string(), "exp": NOW + 10, "cnf": cnf});
        validate_wit_svid(&forge(KeyType::EcP256, &header, &claims), &keys, at(0)).unwrap_err()
    };
    assert!(matches!(bad(Value::Null), JwtError::Claim("cnf")));
    assert!(matches!(bad(json!({"jwk": "x"})), JwtError::Claim("cnf")));
    assert!(matches!(bad(json!({ "jwk": jwk })), JwtError::Algorithm(_)));
    jwk["alg"] = json!("ES384");
    assert!(matches!(bad(json!({ "jwk": jwk })), JwtError::Confirmation { .. }));
    assert!(id("spiffe://example.org/x").path() == "/x");
}
