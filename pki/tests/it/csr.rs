//! CSRs: others' are read without damage, ours are read by others, weak ones are refused.

use bonafide_pki::{
    CaSubject, CsrError, KeyAlgorithm, KeyType, Signer as _, VerifiedCsr, agent_csr, ca_csr,
    csr_public_key_unverified,
};
use x509_parser::prelude::FromDer as _;

use crate::support::{OpenSsl, P256, P384, RSA_2048, Role, authority, domain, key, profile, serial, web};

#[test]
fn our_requests_are_read_by_openssl_and_by_us() {
    let openssl = OpenSsl::find("our_requests_are_read_by_openssl_and_by_us");
    for kind in KeyType::ALL {
        let signer = key(kind, Role::Leaf);
        let number = serial();
        for (der, uri, subject) in [
            (agent_csr(&*signer, None).unwrap(), None, "C = US, O = SPIRE".to_owned()),
            (
                agent_csr(&*signer, Some(&web())).unwrap(),
                Some(web().to_string()),
                "C = US, O = SPIRE".to_owned(),
            ),
            (
                ca_csr(&*signer, &domain(), &CaSubject::default(), &number).unwrap(),
                Some("spiffe://example.org".to_owned()),
                format!("C = US, O = SPIFFE, serialNumber = {number}"),
            ),
        ] {
            let csr = VerifiedCsr::parse(&der).unwrap();
            assert_eq!(&csr.public_key, signer.public_key());
            assert_eq!(csr.uris, Vec::from_iter(uri.clone()));
            assert_eq!(csr_public_key_unverified(&der).unwrap(), csr.public_key);
            let (rest, independent) =
                x509_parser::certification_request::X509CertificationRequest::from_der(&der).unwrap();
            assert!(rest.is_empty());
            assert_eq!(independent.certification_request_info.subject.as_raw(), csr.subject_raw);
            let Some(openssl) = &openssl else { continue };
            openssl.write("our.csr", &der);
            let text = openssl.must("req -inform DER -in our.csr -noout -verify -text");
            assert!(text.contains(&format!("Subject: {subject}\n")), "{text}");
            if let Some(uri) = uri {
                assert!(text.contains(&format!("URI:{uri}\n")), "{text}");
            }
        }
    }
}

/// A library of the field issues a P-256 certificate over a P-384 point for the second and third of these.
#[test]
fn the_hash_of_the_signature_says_nothing_about_the_key() {
    let Some(openssl) = OpenSsl::find("the_hash_of_the_signature_says_nothing_about_the_key") else { return };
    let issuer = authority(KeyType::EcP256);
    openssl.write_certificate("ca.pem", issuer.certificate());
    for (genpkey, hash, algorithm) in [
        (P256, "sha256", KeyAlgorithm::EcP256),
        (P256, "sha384", KeyAlgorithm::EcP256),
        (P384, "sha256", KeyAlgorithm::EcP384),
        (P384, "sha384", KeyAlgorithm::EcP384),
        (RSA_2048, "sha256", KeyAlgorithm::Rsa(2048)),
        (RSA_2048, "sha384", KeyAlgorithm::Rsa(2048)),
        (RSA_2048, "sha512", KeyAlgorithm::Rsa(2048)),
    ] {
        let der = openssl.csr(genpkey, &format!("-{hash} -subj /CN=x"));
        let csr = VerifiedCsr::parse(&der).unwrap();
        assert_eq!(csr.public_key.algorithm(), algorithm);
        openssl.must("pkey -in csr-key.pem -pubout -outform DER -out public.der");
        assert_eq!(csr.public_key.spki_der(), openssl.read("public.der"), "{genpkey} {hash}");

        let leaf = issuer.issue(&profile(&web(), &csr.public_key)).unwrap();
        openssl.write_certificate("leaf.pem", &leaf);
        openssl.must(&format!("verify -attime {} -CAfile ca.pem leaf.pem", crate::support::NOW));
        let certified = openssl.must("x509 -in leaf.pem -noout -pubkey");
        assert_eq!(certified, openssl.must("pkey -in csr-key.pem -pubout"), "{genpkey} {hash}");
    }
}

#[test]
fn weak_or_unsupported_requests_are_refused_and_named() {
    let Some(openssl) = OpenSsl::find("weak_or_unsupported_requests_are_refused_and_named") else { return };
    for (genpkey, more, expected) in [
        (
            "-algorithm RSA -pkeyopt rsa_keygen_bits:1024",
            "-sha256",
            "RSA needs 2048 to 8192 bits, this key has 1024",
        ),
        (
            "-algorithm RSA -pkeyopt rsa_keygen_bits:1024",
            "-sha1",
            "RSA needs 2048 to 8192 bits, this key has 1024",
        ),
        (RSA_2048, "-sha1", "use ECDSA or RSA PKCS#1"),
        (RSA_2048, "-sha256 -sigopt rsa_padding_mode:pss", "use ECDSA or RSA PKCS#1"),
        (P256, "-sha1", "use ECDSA or RSA PKCS#1"),
        (P256, "-sha512", "use ECDSA or RSA PKCS#1"),
        ("-algorithm EC -pkeyopt ec_paramgen_curve:P-521", "-sha512", "P-521 is not supported"),
        ("-algorithm EC -pkeyopt ec_paramgen_curve:secp256k1", "-sha256", "secp256k1 is not supported"),
        ("-algorithm ED25519", "", "Ed25519 is not supported"),
        (
            "-algorithm EC -pkeyopt ec_paramgen_curve:P-256 -pkeyopt ec_param_enc:explicit",
            "-sha256",
            "this key algorithm is not supported",
        ),
    ] {
        let der = openssl.csr(genpkey, &format!("{more} -subj /CN=x"));
        let text = VerifiedCsr::parse(&der).unwrap_err().to_string();
        assert!(text.contains(expected), "{genpkey} {more}: {text}");
    }
    let large = "-algorithm RSA -pkeyopt rsa_keygen_bits:4104";
    let text = VerifiedCsr::parse(&openssl.csr(large, "-subj /CN=x")).unwrap_err().to_string();
    assert!(text.contains("4104 bits is too large"), "{text}");
}

#[test]
fn odd_but_valid_requests_are_accepted() {
    let Some(openssl) = OpenSsl::find("odd_but_valid_requests_are_accepted") else { return };
    openssl.write(
        "req.conf",
        "[req]\ndistinguished_name=dn\nprompt=no\nattributes=attributes\nreq_extensions=ext\n\
         [dn]\n0.DC=org\n1.DC=example\nO=a\n+OU=b\nCN=c\n[attributes]\nchallengePassword=secret\n\
         [ext]\nsubjectAltName=URI:spiffe://example.org/a,DNS:a.example.org,DNS:b.example.org,IP:10.0.0.1,email:a@b.c\n\
         subjectKeyIdentifier=hash\n1.2.3.4.5=critical,DER:0500\nextendedKeyUsage=codeSigning\n",
    );
    let csr = VerifiedCsr::parse(&openssl.csr(P256, "-config req.conf")).unwrap();
    assert_eq!(csr.uris, ["spiffe://example.org/a"]);
    assert_eq!(csr.dns_names, ["a.example.org", "b.example.org"]);
    let leaf = authority(KeyType::EcP256)
        .issue(&bonafide_pki::LeafProfile {
            subject: bonafide_pki::Subject::Raw(&csr.subject_raw),
            ..profile(&web(), &csr.public_key)
        })
        .unwrap();
    let info = bonafide_pki::inspect(&leaf).unwrap();
    assert_eq!(info.subject_raw, csr.subject_raw);
    assert_eq!(info.subject, "CN=c,O=a+OU=b,DC=example,DC=org");

    openssl.must(&format!("genpkey {P256} -out csr-key.pem"));
    openssl.write("empty.conf", "[req]\ndistinguished_name=dn\nprompt=no\n[dn]\n");
    openssl.must("req -new -key csr-key.pem -subj / -config empty.conf -outform DER -out made.csr");
    assert_eq!(VerifiedCsr::parse(&openssl.read("made.csr")).unwrap().subject_raw, b"\x30\x00");
}

#[test]
fn damage_is_noticed() {
    let signer = key(KeyType::EcP256, Role::Leaf);
    let der = agent_csr(&*signer, Some(&web())).unwrap();
    let mut longer = der.clone();
    longer.push(0);
    assert!(
        matches!(VerifiedCsr::parse(&longer), Err(CsrError::Malformed(text)) if text == "bytes after the request")
    );
    assert!(matches!(csr_public_key_unverified(&longer), Err(CsrError::Malformed(_))));
    for length in 0..der.len() {
        assert!(VerifiedCsr::parse(&der[..length]).is_err(), "cut to {length}");
    }
    // Another SPIFFE ID under the same signature.
    let at = der.windows(7).position(|part| part == b"default").unwrap();
    let mut forged = der.clone();
    forged[at] = b'e';
    assert!(matches!(VerifiedCsr::parse(&forged), Err(CsrError::InvalidSignature)));
    assert_eq!(
        &csr_public_key_unverified(&forged).unwrap(),
        signer.public_key(),
        "attestation takes the key only"
    );

    // A point off the curve cannot sign, and is refused where no signature is asked for.
    let at = der.windows(4).position(|part| part == b"\x03\x42\x00\x04").unwrap() + 10;
    let mut off_curve = der;
    off_curve[at] ^= 1;
    assert!(matches!(VerifiedCsr::parse(&off_curve), Err(CsrError::InvalidSignature)));
    assert!(matches!(csr_public_key_unverified(&off_curve), Err(CsrError::KeyPolicy(_))));
}

#[test]
fn an_empty_organization_is_accepted() {
    use bonafide_pki::Signer;
    // A whole request by hand: O is the empty string, as an installer left it.
    let signer = key(KeyType::EcP256, Role::Leaf);
    let subject = b"\x30\x0b\x31\x09\x30\x07\x06\x03\x55\x04\x0a\x0c\x00";
    let body = [&b"\x02\x01\x00"[..], subject, signer.public_key().spki_der(), b"\xa0\x00"].concat();
    let signed = [&[0x30, u8::try_from(body.len()).unwrap()][..], &body].concat();
    let signature = Signer::sign(&*signer, &signed).unwrap();
    let length = u8::try_from(signature.len() + 1).unwrap();
    let tail =
        [&b"\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02\x03"[..], &[length, 0], &signature].concat();
    let total = u8::try_from(signed.len() + tail.len()).unwrap();
    let der = [&[0x30, 0x81, total][..], &signed, &tail].concat();
    assert_eq!(VerifiedCsr::parse(&der).unwrap().subject_raw, subject);
}

#[test]
fn a_request_for_minting_names_everything() {
    let signer = key(KeyType::EcP256, Role::Leaf);
    let names =
        ["a.example.org", "*.example.org"].map(|name| bonafide_identity::DnsName::parse(name).unwrap());
    let csr = VerifiedCsr::parse(&bonafide_pki::workload_csr(&*signer, &web(), &names).unwrap()).unwrap();
    assert_eq!(csr.uris, [web().to_string()]);
    assert_eq!(csr.dns_names, ["a.example.org", "*.example.org"]);
}
