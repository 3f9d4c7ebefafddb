//! Private keys of others are loaded, ours are read by others, secrets stay unprinted, policy holds.

use bonafide_pki::possession::Proof;
use bonafide_pki::{
    KeyAlgorithm, KeyError, KeyType, PrivateKey, PublicKey, SignatureAlgorithm, Signer as _,
    VerificationAlgorithm, pem,
};

use crate::support::{OpenSsl, P256, P384, RSA_2048, Role, key};

#[test]
fn openssl_checks_our_keys_and_verifies_what_they_sign() {
    let Some(openssl) = OpenSsl::find("openssl_checks_our_keys_and_verifies_what_they_sign") else { return };
    openssl.write("message", "something to sign");
    for kind in KeyType::ALL {
        let key = key(kind, Role::Leaf);
        openssl.write("key.pem", pem::encode("PRIVATE KEY", &key.expose_pkcs8()));
        openssl.must("pkey -in key.pem -check -noout");
        openssl.write("public.pem", pem::encode("PUBLIC KEY", key.public_key().spki_der()));
        assert_eq!(
            openssl.must("pkey -in key.pem -pubout"),
            String::from_utf8(openssl.read("public.pem")).unwrap()
        );
        openssl.write("signature", key.sign(b"something to sign").unwrap());
        let hash = if kind == KeyType::EcP384 { "sha384" } else { "sha256" };
        openssl.must(&format!("dgst -{hash} -verify public.pem -signature signature message"));
    }
}

#[test]
fn keys_of_every_common_form_are_loaded() {
    let Some(openssl) = OpenSsl::find("keys_of_every_common_form_are_loaded") else { return };
    for (genpkey, kind, algorithm) in [
        (P256, KeyType::EcP256, KeyAlgorithm::EcP256),
        (P384, KeyType::EcP384, KeyAlgorithm::EcP384),
        (RSA_2048, KeyType::Rsa2048, KeyAlgorithm::Rsa(2048)),
        ("-algorithm RSA -pkeyopt rsa_keygen_bits:3072", KeyType::Rsa2048, KeyAlgorithm::Rsa(3072)),
    ] {
        openssl.must(&format!("genpkey {genpkey} -out pkcs8.pem"));
        openssl.must("pkey -in pkcs8.pem -traditional -out traditional.pem");
        openssl.must("pkey -in pkcs8.pem -pubout -outform DER -out public.der");
        for name in ["pkcs8.pem", "traditional.pem"] {
            let key = PrivateKey::from_pem(&openssl.read(name)).unwrap();
            assert_eq!((key.key_type(), key.public_key().algorithm()), (kind, algorithm));
            assert_eq!(key.public_key().spki_der(), openssl.read("public.der"));
            let again = PrivateKey::from_pkcs8_der(&key.expose_pkcs8()).unwrap();
            assert_eq!(again.public_key(), key.public_key());
        }
    }
    // `openssl ecparam` writes the curve in front of the key.
    openssl.must("ecparam -name prime256v1 -genkey -out with-parameters.pem");
    PrivateKey::from_pem(&openssl.read("with-parameters.pem")).unwrap();
}

#[test]
fn a_damaged_key_is_refused_when_it_is_loaded_and_not_when_it_is_needed() {
    for (kind, step) in [(KeyType::EcP256, 1), (KeyType::Rsa2048, 37)] {
        let pkcs8 = key(kind, Role::Leaf).expose_pkcs8();
        for at in (0..pkcs8.len()).step_by(step) {
            let mut damaged = pkcs8.to_vec();
            damaged[at] ^= 1;
            if let Ok(key) = PrivateKey::from_pkcs8_der(&damaged) {
                assert!(key.sign(b"message").is_ok(), "{kind}: byte {at}");
            }
        }
    }
}

#[test]
fn keys_outside_the_policy_are_refused_and_named() {
    let Some(openssl) = OpenSsl::find("keys_outside_the_policy_are_refused_and_named") else { return };
    for (genpkey, private, public) in [
        ("-algorithm RSA -pkeyopt rsa_keygen_bits:1024", "fewer than 2048 bits", "this key has 1024"),
        (
            "-algorithm EC -pkeyopt ec_paramgen_curve:P-521",
            "P-521 is not supported",
            "P-521 is not supported",
        ),
        ("-algorithm ED25519", "Ed25519 is not supported", "Ed25519 is not supported"),
    ] {
        openssl.must(&format!("genpkey {genpkey} -out key.pem"));
        let text = PrivateKey::from_pem(&openssl.read("key.pem")).unwrap_err().to_string();
        assert!(text.contains(private), "{text}");
        openssl.must("pkey -in key.pem -pubout -outform DER -out public.der");
        let text = PublicKey::from_spki_der(&openssl.read("public.der")).unwrap_err().to_string();
        assert!(text.contains(public), "{text}");
    }
    openssl.must(&format!("genpkey {P256} -aes256 -pass pass:x -out key.pem"));
    let text = PrivateKey::from_pem(&openssl.read("key.pem")).unwrap_err().to_string();
    assert_eq!(text, "malformed key: the private key is encrypted: decrypt it first");
    assert!(matches!(PrivateKey::from_pem(b"no key"), Err(KeyError::Malformed(_))));
}

#[test]
fn keys_have_names() {
    for kind in KeyType::ALL {
        assert_eq!(kind.to_string().parse::<KeyType>().unwrap(), kind);
    }
    let error = "rsa-1024".parse::<KeyType>().unwrap_err().to_string();
    assert_eq!(error, "unknown key type \"rsa-1024\": use ec-p256, ec-p384, rsa-2048 or rsa-4096");
}

#[test]
fn printing_a_key_gives_nothing_away() {
    for kind in KeyType::ALL {
        let key = key(kind, Role::Leaf);
        let printed = format!("{key:?}");
        assert_eq!(printed, format!("PrivateKey({}, secret)", key.public_key().algorithm()));
    }
}

#[test]
fn a_signature_fits_one_message_one_key_and_one_algorithm() {
    use VerificationAlgorithm as V;
    let all = [
        V::EcdsaSha256,
        V::EcdsaSha384,
        V::RsaPkcs1Sha256,
        V::RsaPkcs1Sha384,
        V::RsaPkcs1Sha512,
        V::RsaPssSha256,
        V::RsaPssSha384,
        V::RsaPssSha512,
        V::RsaPssSha256AnySalt,
    ];
    for (kind, sign, fits) in [
        (KeyType::EcP256, SignatureAlgorithm::EcdsaP256Sha256, &[V::EcdsaSha256][..]),
        (KeyType::EcP384, SignatureAlgorithm::EcdsaP384Sha384, &[V::EcdsaSha384]),
        (KeyType::Rsa2048, SignatureAlgorithm::RsaPkcs1Sha256, &[V::RsaPkcs1Sha256]),
        (KeyType::Rsa4096, SignatureAlgorithm::RsaPssSha256, &[V::RsaPssSha256, V::RsaPssSha256AnySalt]),
    ] {
        let (signer, other) = (key(kind, Role::Leaf), key(kind, Role::Authority));
        let signature = signer.sign_with(sign, b"message").unwrap();
        for algorithm in all {
            let verified = signer.public_key().verify(algorithm, b"message", &signature);
            assert_eq!(verified, fits.contains(&algorithm), "{kind} {algorithm:?}");
            assert!(!signer.public_key().verify(algorithm, b"messagf", &signature));
            assert!(!other.public_key().verify(algorithm, b"message", &signature));
        }
    }
    let ec = key(KeyType::EcP256, Role::Leaf);
    assert!(matches!(ec.sign_with(SignatureAlgorithm::RsaPkcs1Sha256, b""), Err(KeyError::Sign(_))));
}

#[test]
fn points_are_checked_on_request() {
    for kind in [KeyType::EcP256, KeyType::EcP384] {
        let key = key(kind, Role::Leaf);
        key.public_key().check_point().unwrap();
        let mut spki = key.public_key().spki_der().to_vec();
        *spki.last_mut().unwrap() ^= 1;
        assert!(PublicKey::from_spki_der(&spki).unwrap().check_point().is_err());
    }
    key(KeyType::Rsa2048, Role::Leaf).public_key().check_point().unwrap();
}

#[test]
fn possession_is_proven_with_either_family() {
    for kind in KeyType::ALL {
        let (holder, other) = (key(kind, Role::Leaf), key(kind, Role::Authority));
        let proof = Proof::sign(&holder, b"server", b"client").unwrap();
        assert!(proof.verify(holder.public_key(), b"server", b"client"));
        assert!(!proof.verify(holder.public_key(), b"server", b"clienu"));
        assert!(!proof.verify(other.public_key(), b"server", b"client"));
    }
}

/// Go signs RSA-PSS with the longest salt and ECDSA P-384 over SHA-256; both must be accepted.
#[test]
fn proofs_of_other_implementations_are_accepted() {
    let Some(openssl) = OpenSsl::find("proofs_of_other_implementations_are_accepted") else { return };
    openssl.write("message", "serverclient");
    for salt in ["max", "digest", "17"] {
        for bits in [2048, 3072, 4096] {
            openssl.must(&format!("genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:{bits} -out key.pem"));
            openssl.must(&format!(
                "dgst -sha256 -sign key.pem -sigopt rsa_padding_mode:pss -sigopt rsa_pss_saltlen:{salt} -out signature message"
            ));
            let key = PrivateKey::from_pem(&openssl.read("key.pem")).unwrap();
            let mut signature = openssl.read("signature");
            let proof = Proof::Rsa { signature: signature.clone() };
            assert!(proof.verify(key.public_key(), b"server", b"client"), "{salt} {bits}");
            signature[9] ^= 1;
            assert!(!Proof::Rsa { signature }.verify(key.public_key(), b"server", b"client"));
        }
    }
    openssl.must(&format!("genpkey {P384} -out key.pem"));
    openssl.must("dgst -sha256 -sign key.pem -out signature message");
    let key = PrivateKey::from_pem(&openssl.read("key.pem")).unwrap();
    let signature = openssl.read("signature");
    // SEQUENCE { INTEGER r, INTEGER s }, both shorter than 128 bytes.
    let r_end = 4 + usize::from(signature[3]);
    let proof = Proof::Ecdsa { r: signature[4..r_end].to_vec(), s: signature[r_end + 2..].to_vec() };
    assert!(proof.verify(key.public_key(), b"server", b"client"));
    assert!(!proof.verify(key.public_key(), b"server", b"other"));
}
