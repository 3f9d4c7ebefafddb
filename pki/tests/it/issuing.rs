//! Certificates that we issue: contents by an independent parser, validity by OpenSSL.

use std::sync::Arc;

use bonafide_identity::{DnsName, SerialNumber, Timestamp, TrustDomain};
use bonafide_pki::{
    CaIssuer, CaProfile, CaSubject, KeyType, LeafProfile, PrivateKey, Signer as _, Subject, TrustRoots,
    VerificationAlgorithm, VerifiedCsr, X509Error, X509Issuer, acme_challenge_certificate, ca_csr, inspect,
    self_signed_ca, verify_svid_chain, web_csr,
};
use x509_parser::prelude::*;

use crate::support::{OpenSsl, Role, at, authority, domain, id, key, leaf, profile, serial, web};

fn parsed(der: &[u8]) -> X509Certificate<'_> {
    let (rest, certificate) = X509Certificate::from_der(der).unwrap();
    assert!(rest.is_empty());
    certificate
}

fn extension<'a>(certificate: &'a X509Certificate<'_>, oid: &str) -> (bool, &'a ParsedExtension<'a>) {
    let all: Vec<_> =
        certificate.extensions().iter().filter(|extension| extension.oid.to_id_string() == oid).collect();
    assert_eq!(all.len(), 1, "{oid}");
    (all[0].critical, all[0].parsed_extension())
}

#[test]
fn a_leaf_has_exactly_what_the_template_says() {
    let issuer = authority(KeyType::EcP256);
    let workload = key(KeyType::EcP256, Role::Leaf);
    let der = leaf(&issuer, &web(), &*workload);
    let leaf = parsed(&der);
    let ca = parsed(issuer.certificate());

    assert_eq!(leaf.version(), X509Version::V3);
    assert_eq!(leaf.issuer().as_raw(), ca.subject().as_raw());
    assert_eq!(leaf.subject().to_string(), "C=US, O=SPIRE");
    assert_eq!(leaf.public_key().raw, workload.public_key().spki_der());
    assert_eq!(leaf.validity().not_before.timestamp(), at(-10).unix_seconds());
    assert_eq!(leaf.validity().not_after.timestamp(), at(3600).unix_seconds());
    assert_eq!(leaf.signature_algorithm, leaf.tbs_certificate.signature);

    assert_eq!(leaf.extensions().len(), 6);
    let (critical, usage) = extension(&leaf, "2.5.29.15");
    // digitalSignature, keyEncipherment, keyAgreement: bits 0, 2 and 4.
    assert!(critical && matches!(usage, ParsedExtension::KeyUsage(usage) if usage.flags == 0b1_0101));
    let (critical, usage) = extension(&leaf, "2.5.29.37");
    let ParsedExtension::ExtendedKeyUsage(usage) = usage else { panic!("{usage:?}") };
    assert!(!critical && usage.server_auth && usage.client_auth && !usage.any && usage.other.is_empty());
    let (critical, constraints) = extension(&leaf, "2.5.29.19");
    let ParsedExtension::BasicConstraints(constraints) = constraints else { panic!("{constraints:?}") };
    assert!(critical && !constraints.ca && constraints.path_len_constraint.is_none());
    let (critical, names) = extension(&leaf, "2.5.29.17");
    let ParsedExtension::SubjectAlternativeName(names) = names else { panic!("{names:?}") };
    assert!(!critical);
    assert_eq!(names.general_names, [GeneralName::URI("spiffe://example.org/ns/default/sa/web")]);
    let (critical, subject_id) = extension(&leaf, "2.5.29.14");
    let ParsedExtension::SubjectKeyIdentifier(subject_id) = subject_id else { panic!("{subject_id:?}") };
    assert!(!critical);
    assert_eq!(subject_id.0, workload.public_key().subject_key_id());
    let (critical, authority_id) = extension(&leaf, "2.5.29.35");
    let ParsedExtension::AuthorityKeyIdentifier(authority_id) = authority_id else {
        panic!("{authority_id:?}")
    };
    assert!(
        !critical
            && authority_id.authority_cert_issuer.is_none()
            && authority_id.authority_cert_serial.is_none()
    );
    let (_, ca_id) = extension(&ca, "2.5.29.14");
    assert_eq!(*ca_id, ParsedExtension::SubjectKeyIdentifier(authority_id.key_identifier.clone().unwrap()));
}

#[test]
fn a_self_signed_ca_has_exactly_what_the_template_says() {
    let issuer = authority(KeyType::EcP384);
    let ca = parsed(issuer.certificate());
    assert_eq!(ca.issuer().as_raw(), ca.subject().as_raw());
    let number = inspect(issuer.certificate()).unwrap().serial.to_string();
    assert_eq!(ca.subject().to_string(), format!("C=US, O=SPIFFE, serialNumber={number}"));
    assert_eq!(ca.extensions().len(), 4);
    let (critical, usage) = extension(&ca, "2.5.29.15");
    // keyCertSign and cRLSign: bits 5 and 6.
    assert!(critical && matches!(usage, ParsedExtension::KeyUsage(usage) if usage.flags == 0b110_0000));
    let (critical, constraints) = extension(&ca, "2.5.29.19");
    let ParsedExtension::BasicConstraints(constraints) = constraints else { panic!("{constraints:?}") };
    assert!(critical && constraints.ca && constraints.path_len_constraint.is_none());
    let (_, names) = extension(&ca, "2.5.29.17");
    let ParsedExtension::SubjectAlternativeName(names) = names else { panic!("{names:?}") };
    assert_eq!(names.general_names, [GeneralName::URI("spiffe://example.org")]);
    assert_eq!(ca.signature_algorithm.algorithm.to_id_string(), "1.2.840.10045.4.3.3");
    assert_eq!(inspect(issuer.certificate()).unwrap().ski.as_deref(), Some(issuer.authority_id()));
}

/// RFC 8737, section 3: self-signed, that name alone, and the digest in a critical extension.
#[test]
fn the_answer_to_a_challenge_has_a_name_and_a_digest() {
    let own = key(KeyType::EcP256, Role::Leaf);
    let digest = [7; 32];
    let name = DnsName::parse("bundle.example.org").unwrap();
    let der = acme_challenge_certificate(&*own, &name, &digest, at(-10), at(3600), serial()).unwrap();
    let certificate = parsed(&der);
    assert_eq!(certificate.issuer().as_raw(), certificate.subject().as_raw());
    let signed = certificate.tbs_certificate.as_ref();
    let signature = &certificate.signature_value.data;
    assert!(own.public_key().verify(VerificationAlgorithm::EcdsaSha256, signed, signature));
    let (_, names) = extension(&certificate, "2.5.29.17");
    let ParsedExtension::SubjectAlternativeName(names) = names else { panic!("{names:?}") };
    assert_eq!(names.general_names, [GeneralName::DNSName("bundle.example.org")]);
    let identifier = certificate
        .extensions()
        .iter()
        .find(|extension| extension.oid.to_id_string() == "1.3.6.1.5.5.7.1.31")
        .expect("an acmeIdentifier");
    assert!(identifier.critical);
    assert_eq!(identifier.value, [&[0x04, 32][..], &digest].concat());
    assert_eq!(certificate.extensions().len(), 2);
}

#[test]
fn a_request_for_a_web_certificate_has_one_name_and_no_subject() {
    let own = key(KeyType::EcP256, Role::Leaf);
    let der = web_csr(&*own, &DnsName::parse("bundle.example.org").unwrap()).unwrap();
    assert_eq!(VerifiedCsr::parse(&der).unwrap().public_key, *own.public_key());
    let (_, request) = X509CertificationRequest::from_der(&der).unwrap();
    assert_eq!(request.certification_request_info.subject.as_raw(), [0x30, 0]);
    let names: Vec<_> = request.requested_extensions().unwrap().collect();
    let [ParsedExtension::SubjectAlternativeName(names)] = names[..] else { panic!("{names:?}") };
    assert_eq!(names.general_names, [GeneralName::DNSName("bundle.example.org")]);
}

#[test]
fn openssl_verifies_every_pair_of_authority_and_leaf_keys() {
    let openssl = OpenSsl::find("openssl_verifies_every_pair_of_authority_and_leaf_keys");
    for ca_kind in KeyType::ALL {
        let issuer = authority(ca_kind);
        let roots = Arc::new(TrustRoots::from_der([issuer.certificate()]).unwrap());
        for leaf_kind in KeyType::ALL {
            let der = leaf(&issuer, &web(), &*key(leaf_kind, Role::Leaf));
            let verified = verify_svid_chain(std::slice::from_ref(&der), &|_| Some(roots.clone()), at(0));
            assert_eq!(verified, Ok(web()), "{ca_kind} {leaf_kind}");
            let Some(openssl) = &openssl else { continue };
            openssl.write_certificate("ca.pem", issuer.certificate());
            openssl.write_certificate("leaf.pem", &der);
            openssl.must(&format!(
                "verify -x509_strict -check_ss_sig -purpose sslserver -attime {} -CAfile ca.pem leaf.pem",
                at(0).unix_seconds()
            ));
        }
    }
}

#[test]
fn openssl_reads_leaf_and_ca_as_meant() {
    let Some(openssl) = OpenSsl::find("openssl_reads_leaf_and_ca_as_meant") else { return };
    let issuer = authority(KeyType::EcP256);
    openssl.write_certificate("leaf.pem", &leaf(&issuer, &web(), &*key(KeyType::EcP256, Role::Leaf)));
    let text = openssl.must("x509 -in leaf.pem -noout -text");
    for line in [
        "Subject: C = US, O = SPIRE",
        "Digital Signature, Key Encipherment, Key Agreement",
        "TLS Web Server Authentication, TLS Web Client Authentication",
        "CA:FALSE",
        "URI:spiffe://example.org/ns/default/sa/web",
        "ASN1 OID: prime256v1",
        "Signature Algorithm: ecdsa-with-SHA256",
    ] {
        assert!(text.contains(line), "{line:?} in\n{text}");
    }
    openssl.write_certificate("ca.pem", issuer.certificate());
    let text = openssl.must("x509 -in ca.pem -noout -text");
    for line in ["CA:TRUE\n", "Certificate Sign, CRL Sign", "URI:spiffe://example.org\n"] {
        assert!(text.contains(line), "{line:?} in\n{text}");
    }
}

#[test]
fn dns_names_come_with_a_common_name_that_replaces_another() {
    let issuer = authority(KeyType::EcP256);
    let workload = key(KeyType::EcP256, Role::Leaf);
    let names = ["web.example.org", "*.example.org"].map(|name| DnsName::parse(name).unwrap());
    let (spiffe_id, public_key) = (web(), workload.public_key());
    let with = |subject, dns_names| {
        let info = issuer.issue(&LeafProfile { subject, dns_names, ..profile(&spiffe_id, public_key) });
        inspect(&info.unwrap()).unwrap()
    };
    let info = with(Subject::Default, &names);
    assert_eq!(info.subject, "CN=web.example.org,O=SPIRE,C=US");
    assert_eq!(info.dns_names, ["web.example.org", "*.example.org"]);
    assert_eq!(info.uris, [web().to_string()]);

    // O=Example, CN=other: the subject of a minted certificate.
    let raw = b"\x30\x22\x31\x10\x30\x0e\x06\x03\x55\x04\x0a\x0c\x07Example\x31\x0e\x30\x0c\x06\x03\x55\x04\x03\x0c\x05other";
    assert_eq!(with(Subject::Raw(raw), &[]).subject_raw, raw);
    assert_eq!(with(Subject::Raw(raw), &names).subject, "CN=web.example.org,O=Example");
    assert_eq!(with(Subject::Raw(b"\x30\x00"), &[]).subject, "O=SPIRE,C=US");
    assert_eq!(with(Subject::Raw(b"\x30\x00"), &names).subject, "CN=web.example.org,O=SPIRE,C=US");

    let broken =
        LeafProfile { subject: Subject::Raw(b"\x30\x02\x31\x00"), ..profile(&spiffe_id, public_key) };
    assert!(matches!(issuer.issue(&broken), Err(X509Error::Profile(_))));
}

#[test]
fn serials_and_dates_keep_their_extremes() {
    let trust_domain = domain();
    let ca_key = key(KeyType::EcP256, Role::Authority);
    let far = Timestamp::from_unix_seconds(4_000_000_000);
    let ca = self_signed_ca(&*ca_key, &trust_domain, &CaSubject::default(), at(0), far, serial()).unwrap();
    let issuer = X509Issuer::new(&trust_domain, ca, Vec::new(), ca_key).unwrap();
    let workload = key(KeyType::EcP256, Role::Leaf);
    let (spiffe_id, public_key) = (web(), workload.public_key());
    for (number, text) in [
        (1, "1"),
        (u128::MAX, "340282366920938463463374607431768211455"),
        (1 << 127, "170141183460469231731687303715884105728"),
    ] {
        // One second before and after the change from UTCTime to GeneralizedTime.
        for seconds in [2_524_607_999, 2_524_608_000, 4_000_000_000] {
            let not_after = Timestamp::from_unix_seconds(seconds);
            let serial = SerialNumber::from(number);
            let der =
                issuer.issue(&LeafProfile { serial, not_after, ..profile(&spiffe_id, public_key) }).unwrap();
            let leaf = parsed(&der);
            assert_eq!(leaf.validity().not_after.timestamp(), seconds);
            assert_eq!(leaf.serial.to_string(), text);
            assert!(leaf.raw_serial()[0] < 0x80, "positive");
            assert!(
                leaf.raw_serial().len() == 1 || leaf.raw_serial()[0] != 0 || leaf.raw_serial()[1] >= 0x80,
                "minimal"
            );
            assert_eq!(inspect(&der).unwrap().serial.to_string(), text);
        }
    }
}

#[test]
fn what_must_not_be_issued_is_refused() {
    let issuer = authority(KeyType::EcP256);
    let workload = key(KeyType::EcP256, Role::Leaf);
    let (spiffe_id, public_key) = (web(), workload.public_key());
    let refused = |profile: &LeafProfile<'_>| match issuer.issue(profile) {
        Err(X509Error::Profile(text)) => text,
        other => panic!("{other:?}"),
    };
    let foreign = id("spiffe://other.org/x");
    assert_eq!(
        refused(&profile(&foreign, public_key)),
        "spiffe://other.org/x is not in trust domain example.org"
    );
    let late = LeafProfile { not_after: at(86_401), ..profile(&spiffe_id, public_key) };
    assert!(refused(&late).starts_with("the validity ends after that of its authority "));
    let empty = LeafProfile { not_after: at(-10), ..profile(&spiffe_id, public_key) };
    assert_eq!(refused(&empty), "the validity ends before it begins");
    let ca = CaProfile { public_key, not_before: at(0), not_after: at(86_401), serial: serial() };
    assert!(issuer.issue_ca(&ca).is_err());
    let eternal = Timestamp::from_unix_seconds(i64::MAX / 1000);
    let ca = self_signed_ca(&*workload, &domain(), &CaSubject::default(), at(0), eternal, serial());
    assert!(matches!(ca, Err(X509Error::Profile(text)) if text == "a certificate cannot express this date"));
}

/// Root → server CA (signed by the root for its CSR) → downstream CA → leaf, for all kinds of keys of the middle.
#[test]
fn chains_of_authorities_hold_without_the_root() {
    let openssl = OpenSsl::find("chains_of_authorities_hold_without_the_root");
    let trust_domain = domain();
    for kind in KeyType::ALL {
        let root_key = key(KeyType::EcP384, Role::Authority);
        let root_subject = CaSubject { common_name: Some("Root".to_owned()), ..CaSubject::default() };
        let root =
            self_signed_ca(&*root_key, &trust_domain, &root_subject, at(-10), at(86_400), serial()).unwrap();
        let upstream = CaIssuer::new(&trust_domain, root.clone(), Vec::new(), root_key).unwrap();

        let server_key = key(kind, Role::Authority);
        let number = serial();
        let csr = ca_csr(&*server_key, &trust_domain, &CaSubject::default(), &number).unwrap();
        let csr = VerifiedCsr::parse(&csr).unwrap();
        let server_ca = upstream.sign_ca(&csr, at(-10), at(80_000), &serial()).unwrap();
        let info = inspect(&server_ca).unwrap();
        assert_eq!(info.subject, format!("SERIALNUMBER={number},O=SPIFFE,C=US"));
        assert!(info.is_ca && info.uris == ["spiffe://example.org"]);
        let server =
            X509Issuer::new(&trust_domain, server_ca.clone(), vec![server_ca.clone()], server_key).unwrap();
        assert!(server.has_upstream());
        server.check_roots(&TrustRoots::from_der([&root[..]]).unwrap(), at(0)).unwrap();
        let strangers = TrustRoots::from_der([authority(KeyType::EcP256).certificate()]).unwrap();
        let error = server.check_roots(&strangers, at(0)).unwrap_err().to_string();
        assert!(error.contains("its chain does not lead to its roots"), "{error}");

        let roots = Arc::new(TrustRoots::from_der([&root[..]]).unwrap());
        let trusted = |_: &TrustDomain| Some(roots.clone());
        let chain = server.chain_for_leaf(leaf(&server, &web(), &*key(KeyType::EcP256, Role::Leaf)));
        assert_eq!(chain.len(), 2);
        assert_eq!(verify_svid_chain(&chain, &trusted, at(0)), Ok(web()));
        assert!(verify_svid_chain(&chain[..1], &trusted, at(0)).is_err(), "the intermediate is needed");

        let downstream_key = Arc::new(PrivateKey::generate(KeyType::EcP256).unwrap());
        let public_key = downstream_key.public_key();
        let profile = CaProfile { public_key, not_before: at(-10), not_after: at(70_000), serial: serial() };
        let downstream_ca = server.issue_ca(&profile).unwrap();
        let info = inspect(&downstream_ca).unwrap();
        assert_eq!(info.subject, format!("OU=DOWNSTREAM-2,SERIALNUMBER={number},O=SPIFFE,C=US"));
        assert!(info.is_ca && info.uris == ["spiffe://example.org"]);
        assert_eq!(info.aki.as_deref(), Some(server.authority_id()));
        let chain = server.chain_for_leaf(downstream_ca.clone());
        let downstream =
            X509Issuer::new(&trust_domain, downstream_ca.clone(), chain, downstream_key).unwrap();
        let chain = downstream.chain_for_leaf(leaf(&downstream, &web(), &*key(KeyType::EcP256, Role::Leaf)));
        assert_eq!(verify_svid_chain(&chain, &trusted, at(0)), Ok(web()));

        let Some(openssl) = &openssl else { continue };
        openssl.write_certificate("root.pem", &root);
        openssl.write_certificate("leaf.pem", &chain[0]);
        let between: String =
            chain[1..].iter().map(|der| bonafide_pki::pem::encode("CERTIFICATE", der)).collect();
        openssl.write("between.pem", between);
        openssl.must(&format!(
            "verify -x509_strict -attime {} -CAfile root.pem -untrusted between.pem leaf.pem",
            at(0).unix_seconds()
        ));
    }
}

#[test]
fn an_upstream_signs_only_for_its_own_trust_domain() {
    let trust_domain = domain();
    let issuer_key = key(KeyType::EcP256, Role::Authority);
    let root = authority(KeyType::EcP256).certificate().to_vec();
    let upstream = CaIssuer::new(&trust_domain, root, Vec::new(), issuer_key).unwrap();
    let requester = key(KeyType::EcP256, Role::Leaf);
    let other = TrustDomain::parse("other.org").unwrap();
    let csr = ca_csr(&*requester, &other, &CaSubject::default(), &serial()).unwrap();
    let error = upstream.sign_ca(&VerifiedCsr::parse(&csr).unwrap(), at(0), at(60), &serial()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "certificate not issued: the CSR must ask for exactly the URI spiffe://example.org"
    );
}

fn refusal(certificate: Vec<u8>, chain: Vec<Vec<u8>>, key: Arc<PrivateKey>) -> String {
    match X509Issuer::new(&domain(), certificate, chain, key) {
        Err(X509Error::Authority(text)) => text,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("accepted"),
    }
}

#[test]
fn authorities_that_peers_would_refuse_are_refused() {
    let own = authority(KeyType::EcP256);
    let (own_key, other_key) = (key(KeyType::EcP256, Role::Authority), key(KeyType::EcP256, Role::Leaf));
    let own = own.certificate().to_vec();
    assert_eq!(
        refusal(own.clone(), Vec::new(), other_key.clone()),
        "it belongs to another key than the signer's"
    );
    let not_ca = leaf(&authority(KeyType::EcP256), &web(), &*other_key);
    assert_eq!(refusal(not_ca.clone(), Vec::new(), other_key), "its basic constraints do not say CA:TRUE");
    assert_eq!(
        refusal(own.clone(), vec![not_ca], own_key.clone()),
        "its chain does not begin with its own certificate"
    );
    let unrelated = authority(KeyType::EcP384).certificate().to_vec();
    assert_eq!(
        refusal(own.clone(), vec![own, unrelated], own_key.clone()),
        "the certificates of its chain do not follow one another"
    );
    let other = TrustDomain::parse("other.org").unwrap();
    let foreign = self_signed_ca(&*own_key, &other, &CaSubject::default(), at(0), at(60), serial()).unwrap();
    assert_eq!(
        refusal(foreign, Vec::new(), own_key),
        "its URI spiffe://other.org is not spiffe://example.org"
    );
}

/// Peers built on rustls refuse any chain with URI name constraints, even fitting ones.
#[test]
fn authorities_with_uri_name_constraints_are_refused() {
    let Some(openssl) = OpenSsl::find("authorities_with_uri_name_constraints_are_refused") else { return };
    const CA: &str =
        "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash";
    for constraint in ["permitted;URI:example.org", "excluded;URI:.other.org"] {
        let (ca, ca_key) =
            openssl.ca("/CN=constrained", &format!("{CA}\nnameConstraints=critical,{constraint}"));
        assert!(inspect(&ca).unwrap().constrains_uris);
        assert!(refusal(ca, Vec::new(), ca_key).contains("name constraints on URIs"));
    }
    // Constraints on other names do no harm.
    let (ca, ca_key) =
        openssl.ca("/CN=constrained", &format!("{CA}\nnameConstraints=critical,permitted;DNS:example.org"));
    X509Issuer::new(&domain(), ca, Vec::new(), ca_key).unwrap();

    let (ca, ca_key) = openssl.ca(
        "/CN=x",
        "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,cRLSign\nsubjectKeyIdentifier=hash",
    );
    assert_eq!(refusal(ca, Vec::new(), ca_key), "its key usage does not include keyCertSign");
}

/// Enterprise roots repeat attributes and set several in one; a leaf's issuer must be those very bytes.
#[test]
fn issuer_names_are_copied_byte_for_byte() {
    let Some(openssl) = OpenSsl::find("issuer_names_are_copied_byte_for_byte") else { return };
    let subject = "/DC=org/DC=example/OU=One/OU=Two/O=Ex\u{e4}mple+L=Here/CN=Issuing CA 1";
    let (ca, ca_key) = openssl.ca(
        subject,
        "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign\nsubjectKeyIdentifier=0102030405",
    );
    let issuer = X509Issuer::new(&domain(), ca.clone(), Vec::new(), ca_key).unwrap();
    assert_eq!(issuer.authority_id(), "0102030405");
    let now = issuer.not_before();
    let workload = key(KeyType::EcP256, Role::Leaf);
    let spiffe_id = web();
    let der = issuer
        .issue(&LeafProfile {
            not_before: now,
            not_after: now.saturating_add(std::time::Duration::from_secs(60)),
            ..profile(&spiffe_id, workload.public_key())
        })
        .unwrap();
    assert_eq!(parsed(&der).issuer().as_raw(), parsed(&ca).subject().as_raw());
    assert_eq!(inspect(&der).unwrap().aki.as_deref(), Some("0102030405"));
    openssl.write_certificate("ca.pem", &ca);
    openssl.write_certificate("leaf.pem", &der);
    openssl.must(&format!("verify -attime {} -CAfile ca.pem leaf.pem", now.unix_seconds() + 1));
    let roots = Arc::new(TrustRoots::from_der([&ca[..]]).unwrap());
    assert_eq!(verify_svid_chain(&[der], &|_| Some(roots.clone()), now), Ok(web()));
}
