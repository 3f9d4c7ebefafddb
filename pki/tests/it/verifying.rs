//! Chains of peers: accepted for the right reasons only.

use std::sync::Arc;

use bonafide_identity::{SpiffeId, TrustDomain};
use bonafide_pki::{
    CaSubject, KeyType, LeafProfile, Signer as _, TrustRoots, VerifyError, X509Issuer, inspect,
    self_signed_ca, sha1_fingerprint, split_certificates, verify_chain, verify_svid_chain,
};

use crate::support::{
    OpenSsl, P256, Role, at, authority, authority_of, domain, id, key, leaf, profile, serial, web,
};

fn roots(issuer: &X509Issuer) -> Arc<TrustRoots> {
    Arc::new(TrustRoots::from_der([issuer.certificate()]).unwrap())
}

fn verify(chain: &[Vec<u8>], roots: &Arc<TrustRoots>, offset: i64) -> Result<SpiffeId, VerifyError> {
    verify_svid_chain(chain, &|name| (*name == domain()).then(|| roots.clone()), at(offset))
}

#[test]
fn time_is_checked_at_both_ends() {
    let issuer = authority(KeyType::EcP256);
    let roots = roots(&issuer);
    let chain = [leaf(&issuer, &web(), &*key(KeyType::EcP256, Role::Leaf))];
    assert_eq!(verify(&chain, &roots, -11), Err(VerifyError::NotYetValid));
    assert_eq!(verify(&chain, &roots, -10), Ok(web()));
    assert_eq!(verify(&chain, &roots, 3600), Ok(web()));
    assert_eq!(verify(&chain, &roots, 3601), Err(VerifyError::Expired));
}

#[test]
fn an_expired_root_vouches_for_nobody() {
    // The same name and key with a shorter life: what a forged clock or a stale bundle would leave behind.
    let ca_key = key(KeyType::EcP256, Role::Authority);
    let subject = CaSubject { serial_number: Some("1".to_owned()), ..CaSubject::default() };
    let make =
        |begin, end| self_signed_ca(&*ca_key, &domain(), &subject, at(begin), at(end), serial()).unwrap();
    let long = make(-10, 86_400);
    let issuer = X509Issuer::new(&domain(), long.clone(), Vec::new(), ca_key.clone()).unwrap();
    let chain = [leaf(&issuer, &web(), &*key(KeyType::EcP256, Role::Leaf))];
    let short = make(-10, 5);
    let only_short = Arc::new(TrustRoots::from_der([&short[..]]).unwrap());
    assert_eq!(verify(&chain, &only_short, 5), Ok(web()));
    assert_eq!(verify(&chain, &only_short, 6), Err(VerifyError::Expired));
    let later = make(100, 200);
    let only_later = Arc::new(TrustRoots::from_der([&later[..]]).unwrap());
    assert_eq!(verify(&chain, &only_later, 50), Err(VerifyError::NotYetValid));
    let both = Arc::new(TrustRoots::from_der([&short[..], &long]).unwrap());
    assert_eq!(verify(&chain, &both, 6), Ok(web()));
}

#[test]
fn only_authorities_of_the_same_trust_domain_count() {
    let issuer = authority(KeyType::EcP256);
    let workload = key(KeyType::EcP256, Role::Leaf);
    let chain = [leaf(&issuer, &web(), &*workload)];
    let other = authority(KeyType::EcP384);
    assert_eq!(verify(&chain, &roots(&other), 0), Err(VerifyError::UnknownAuthority));
    // Same name, another key.
    let twin = authority_of(&domain(), key(KeyType::EcP256, Role::Leaf));
    assert!(verify(&chain, &roots(&twin), 0).is_err());

    let elsewhere = TrustDomain::parse("elsewhere.org").unwrap();
    let foreign = authority_of(&elsewhere, key(KeyType::EcP256, Role::Authority));
    let stranger = id("spiffe://elsewhere.org/x");
    let chain = [leaf(&foreign, &stranger, &*workload)];
    assert_eq!(verify(&chain, &roots(&foreign), 0), Err(VerifyError::UnknownTrustDomain(elsewhere)));
    assert_eq!(verify_svid_chain(&chain, &|_| Some(roots(&foreign)), at(0)), Ok(stranger));
    assert_eq!(verify(&[], &roots(&issuer), 0), Err(VerifyError::Empty));
    let long = vec![chain[0].clone(); 11];
    assert_eq!(verify_svid_chain(&long, &|_| Some(roots(&foreign)), at(0)), Err(VerifyError::TooLong));
}

#[test]
fn authorities_are_not_leaves() {
    let issuer = authority(KeyType::EcP256);
    let chain = [issuer.certificate().to_vec()];
    assert_eq!(verify(&chain, &roots(&issuer), 0), Err(VerifyError::Authority));
}

#[test]
fn a_damaged_certificate_is_refused_wherever_the_damage_is() {
    let issuer = authority(KeyType::EcP256);
    let roots = roots(&issuer);
    let good = leaf(&issuer, &web(), &*key(KeyType::EcP256, Role::Leaf));
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x01;
        assert!(verify(&[bad], &roots, 0).is_err(), "bit flipped in byte {at}");
    }
    let mut longer = good.clone();
    longer.push(0);
    assert!(verify(&[longer], &roots, 0).is_err());
}

#[test]
fn a_certificate_is_a_sequence_and_nothing_that_is_numbered_like_one() {
    let good = leaf(&authority(KeyType::EcP256), &web(), &*key(KeyType::EcP256, Role::Leaf));
    inspect(&good).unwrap();
    // The same number in the classes application, context-specific and private.
    for tag in [0x70, 0xb0, 0xf0] {
        let bad = [&[tag], &good[1..]].concat();
        assert!(split_certificates(&bad).is_err());
        assert_eq!(
            inspect(&bad).unwrap_err().to_string(),
            "malformed certificate: it is not one DER sequence"
        );
    }
    let error = inspect(&[&good[..], &good].concat()).unwrap_err().to_string();
    assert_eq!(error, "malformed certificate: bytes after the certificate");
}

/// Leaves that other software could issue under a trusted authority.
#[test]
fn leaves_that_are_not_svids_are_refused() {
    let Some(openssl) = OpenSsl::find("leaves_that_are_not_svids_are_refused") else { return };
    let (ca, _) = openssl.ca(
        "/CN=ca",
        "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign\nsubjectKeyIdentifier=hash",
    );
    openssl.must("x509 -inform DER -in made-ca.der -out made-ca.pem");
    let trusted = Arc::new(TrustRoots::from_der([&ca[..]]).unwrap());
    let now = inspect(&ca).unwrap().not_before.saturating_add(std::time::Duration::from_secs(60));
    openssl.csr(P256, "-subj /CN=leaf");
    let issue = |extensions: &str| {
        openssl.write("leaf.conf", extensions);
        openssl.must(
            "x509 -req -inform DER -in made.csr -CA made-ca.pem -CAkey made-ca-key.pem -days 30 -extfile leaf.conf \
             -outform DER -out leaf.der",
        );
        verify_svid_chain(&[openssl.read("leaf.der")], &|_| Some(trusted.clone()), now)
    };
    let uri = "subjectAltName=URI:spiffe://example.org/a";
    assert_eq!(issue(uri), Ok(id("spiffe://example.org/a")));
    // Any extended key usage will do, as with go-spiffe.
    assert_eq!(issue(&format!("{uri}\nextendedKeyUsage=codeSigning")), Ok(id("spiffe://example.org/a")));
    assert_eq!(issue("subjectAltName=DNS:example.org"), Err(VerifyError::UriCount(0)));
    assert_eq!(issue("basicConstraints=CA:FALSE"), Err(VerifyError::UriCount(0)));
    assert_eq!(issue(&format!("{uri},URI:spiffe://example.org/b")), Err(VerifyError::UriCount(2)));
    assert!(matches!(issue("subjectAltName=URI:https://example.org/a"), Err(VerifyError::SpiffeId(_))));
    assert!(matches!(issue("subjectAltName=URI:spiffe://Example.org/a"), Err(VerifyError::SpiffeId(_))));
    assert_eq!(
        issue("subjectAltName=URI:spiffe://example.org"),
        Err(VerifyError::NoPath(id("spiffe://example.org")))
    );
    for usage in ["keyUsage=keyCertSign", "keyUsage=cRLSign,digitalSignature", "basicConstraints=CA:TRUE"] {
        assert_eq!(issue(&format!("{uri}\n{usage}")), Err(VerifyError::Authority), "{usage}");
    }
    assert!(matches!(issue(&format!("{uri}\n1.2.3.4=critical,DER:0500")), Err(VerifyError::Path(_))));
}

#[test]
fn name_constraints_in_a_bundle_are_named_as_the_cause() {
    let Some(openssl) = OpenSsl::find("name_constraints_in_a_bundle_are_named_as_the_cause") else { return };
    let (ca, ca_key) = openssl.ca(
        "/CN=ca/serialNumber=1",
        "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign\nsubjectKeyIdentifier=hash\n\
         nameConstraints=critical,permitted;URI:example.org",
    );
    // The leaf is issued under the same key and name without the constraints.
    let subject = CaSubject {
        country: Vec::new(),
        organization: Vec::new(),
        common_name: Some("ca".to_owned()),
        serial_number: Some("1".to_owned()),
        ..CaSubject::default()
    };
    let now = inspect(&ca).unwrap().not_before;
    let end = now.saturating_add(std::time::Duration::from_secs(60));
    let free = self_signed_ca(&*ca_key, &domain(), &subject, now, end, serial()).unwrap();
    let issuer = X509Issuer::new(&domain(), free, Vec::new(), ca_key).unwrap();
    let workload = key(KeyType::EcP256, Role::Leaf);
    let der = issuer
        .issue(&LeafProfile { not_before: now, not_after: end, ..profile(&web(), workload.public_key()) })
        .unwrap();
    let trusted = Arc::new(TrustRoots::from_der([&ca[..]]).unwrap());
    assert_eq!(verify_svid_chain(&[der], &|_| Some(trusted.clone()), now), Err(VerifyError::NameConstraints));
}

#[test]
fn the_whole_path_of_another_pki_is_given() {
    let issuer = authority(KeyType::EcP256);
    let trusted = roots(&issuer);
    let chain = [leaf(&issuer, &web(), &*key(KeyType::Rsa2048, Role::Leaf))];
    let path = verify_chain(&chain, &trusted, at(0)).unwrap();
    assert_eq!(path, [chain[0].clone(), issuer.certificate().to_vec()]);
    assert_eq!(sha1_fingerprint(b"abc")[..4], [0xa9, 0x99, 0x3e, 0x36]);
}

#[test]
fn concatenated_certificates_are_taken_apart() {
    let issuer = authority(KeyType::EcP256);
    let one = issuer.certificate().to_vec();
    assert_eq!(split_certificates(&[&one[..], &one].concat()).unwrap(), [one.clone(), one.clone()]);
    assert_eq!(split_certificates(b"").unwrap(), Vec::<Vec<u8>>::new());
    assert!(split_certificates(&one[..one.len() - 1]).is_err());
    assert!(split_certificates(&[&one[..], b"\x02\x01\x00"].concat()).is_err());
    assert!(TrustRoots::from_der([&one[..], b"junk"]).is_err());
    let held = TrustRoots::from_der([&one[..]]).unwrap();
    assert_eq!(held.certificates().collect::<Vec<_>>(), [&one[..]]);
}

/// CVE-2024-24783 (Go): a certificate with a key of an unknown kind ended the process that verified it.
#[test]
fn advisory_keys_of_unknown_kinds_are_refused_and_nothing_more() {
    let Some(openssl) = OpenSsl::find("advisory_keys_of_unknown_kinds_are_refused_and_nothing_more") else {
        return;
    };
    let (ca, _) = openssl.ca(
        "/CN=ca",
        "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign\nsubjectKeyIdentifier=hash",
    );
    let now = inspect(&ca).unwrap().not_before.saturating_add(std::time::Duration::from_secs(60));
    let trusted = Arc::new(TrustRoots::from_der([&ca[..]]).unwrap());
    openssl.must("genpkey -algorithm ed448 -out odd-key.pem");
    openssl.must(
        "req -x509 -new -key odd-key.pem -subj /CN=odd -days 30 \
         -addext subjectAltName=URI:spiffe://example.org/a -addext basicConstraints=critical,CA:FALSE \
         -outform DER -out odd.der",
    );
    let odd = openssl.read("odd.der");
    assert_eq!(inspect(&odd).unwrap().public_key, None);
    let roots = |_: &_| Some(trusted.clone());
    for chain in [vec![odd.clone()], vec![odd.clone(), ca.clone()], vec![odd.clone(), odd.clone()]] {
        verify_svid_chain(&chain, &roots, now).unwrap_err();
    }
    // As an authority it vouches for nobody.
    let odd_roots = TrustRoots::from_der([&odd[..]]);
    if let Ok(odd_roots) = odd_roots {
        let odd_roots = Arc::new(odd_roots);
        verify_svid_chain(std::slice::from_ref(&odd), &|_| Some(odd_roots.clone()), now).unwrap_err();
    }
}
