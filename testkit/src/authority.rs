//! An authority that is not ours: certificates made by another library, for tests that must not agree with themselves.

use bonafide_identity::{SpiffeId, Timestamp, TrustDomain};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType, SignatureAlgorithm, SubjectPublicKeyInfo,
};
use time::OffsetDateTime;

/// A certificate authority of a trust domain, made by `rcgen`.
pub struct TestAuthority {
    trust_domain: TrustDomain,
    validity: (Timestamp, Timestamp),
    certificate: Vec<u8>,
    /// What follows the leaf: this authority's certificate and those above it, without the root.
    intermediates: Vec<Vec<u8>>,
    root: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
}

impl TestAuthority {
    /// A self-signed P-256 authority with this validity.
    pub fn new(trust_domain: &TrustDomain, not_before: Timestamp, not_after: Timestamp) -> Self {
        Self::with_algorithm(trust_domain, not_before, not_after, &rcgen::PKCS_ECDSA_P256_SHA256)
    }

    /// A self-signed authority with this validity and kind of key.
    pub fn with_algorithm(
        trust_domain: &TrustDomain,
        not_before: Timestamp,
        not_after: Timestamp,
        algorithm: &'static SignatureAlgorithm,
    ) -> Self {
        let key = key_of(algorithm);
        let params = ca_params(trust_domain, not_before, not_after, "root");
        let certificate = params.self_signed(&key).expect("rcgen signs with its own key").der().to_vec();
        Self {
            trust_domain: trust_domain.clone(),
            validity: (not_before, not_after),
            root: certificate.clone(),
            certificate,
            intermediates: Vec::new(),
            issuer: Issuer::new(params, key),
        }
    }

    /// An authority below this one, with the same validity.
    pub fn intermediate(&self) -> Self {
        let key = key_of(&rcgen::PKCS_ECDSA_P256_SHA256);
        let (not_before, not_after) = self.validity;
        let mut params = ca_params(&self.trust_domain, not_before, not_after, "intermediate");
        params.use_authority_key_identifier_extension = true;
        let certificate =
            params.signed_by(&key, &self.issuer).expect("rcgen signs with its own key").der().to_vec();
        let mut intermediates = vec![certificate.clone()];
        intermediates.extend(self.intermediates.iter().cloned());
        Self {
            trust_domain: self.trust_domain.clone(),
            validity: self.validity,
            root: self.root.clone(),
            certificate,
            intermediates,
            issuer: Issuer::new(params, key),
        }
    }

    /// This authority's certificate, DER.
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// The self-signed certificate at the top, DER.
    pub fn root(&self) -> &[u8] {
        &self.root
    }

    /// This authority's private key, PKCS#8 DER.
    pub fn pkcs8(&self) -> Vec<u8> {
        self.issuer.key().serialize_der()
    }

    /// Issues a leaf as an X.509-SVID should be, with a new P-256 key and the authority's validity.
    pub fn issue(&self, id: &SpiffeId) -> TestLeaf {
        self.issue_with(id, |_| {})
    }

    /// As [`issue`](Self::issue), with this validity.
    pub fn issue_for(&self, id: &SpiffeId, not_before: Timestamp, not_after: Timestamp) -> TestLeaf {
        self.issue_with(id, |params| {
            params.not_before = date(not_before);
            params.not_after = date(not_after);
        })
    }

    /// As [`issue`](Self::issue), after `change`, which may well spoil it.
    pub fn issue_with(&self, id: &SpiffeId, change: impl FnOnce(&mut CertificateParams)) -> TestLeaf {
        let key = key_of(&rcgen::PKCS_ECDSA_P256_SHA256);
        let mut params = CertificateParams::default();
        params.not_before = date(self.validity.0);
        params.not_after = date(self.validity.1);
        params.distinguished_name = name("leaf");
        params.subject_alt_names = vec![uri(&id.to_string())];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        change(&mut params);
        let leaf = params.signed_by(&key, &self.issuer).expect("rcgen signs with its own key");
        let mut chain = vec![leaf.der().to_vec()];
        chain.extend(self.intermediates.iter().cloned());
        TestLeaf { chain, pkcs8: key.serialize_der() }
    }

    /// Certifies somebody else's key, a SubjectPublicKeyInfo as DER: the common name is `device`, there is no SPIFFE ID, and `change`
    /// may spoil it. The certificate comes first, without the root.
    pub fn certify(&self, key: &[u8], change: impl FnOnce(&mut CertificateParams)) -> Vec<Vec<u8>> {
        let key = SubjectPublicKeyInfo::from_der(key).expect("rcgen knows the kinds of keys that are tested");
        let mut params = CertificateParams::default();
        params.not_before = date(self.validity.0);
        params.not_after = date(self.validity.1);
        params.distinguished_name = name("device");
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        change(&mut params);
        let leaf = params.signed_by(&key, &self.issuer).expect("rcgen signs with its own key");
        let mut chain = vec![leaf.der().to_vec()];
        chain.extend(self.intermediates.iter().cloned());
        chain
    }

    /// A certificate signing request (PKCS#10 DER) with this URI, and the private key it was signed with (PKCS#8 DER).
    pub fn request(id: &SpiffeId) -> (Vec<u8>, Vec<u8>) {
        let key = key_of(&rcgen::PKCS_ECDSA_P256_SHA256);
        let mut params = CertificateParams::default();
        params.distinguished_name = name("request");
        params.subject_alt_names = vec![uri(&id.to_string())];
        let request = params.serialize_request(&key).expect("rcgen signs with its own key");
        (request.der().to_vec(), key.serialize_der())
    }
}

impl std::fmt::Debug for TestAuthority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TestAuthority").field("trust_domain", &self.trust_domain).finish_non_exhaustive()
    }
}

/// A leaf of a [`TestAuthority`].
#[derive(Clone)]
pub struct TestLeaf {
    /// DER certificates, the leaf first, without the root.
    pub chain: Vec<Vec<u8>>,
    /// The private key, PKCS#8 DER.
    pub pkcs8: Vec<u8>,
}

impl std::fmt::Debug for TestLeaf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TestLeaf").field("chain", &self.chain.len()).finish_non_exhaustive()
    }
}

fn key_of(algorithm: &'static SignatureAlgorithm) -> KeyPair {
    KeyPair::generate_for(algorithm).expect("the algorithm is one that the backend can make keys for")
}

fn ca_params(
    trust_domain: &TrustDomain,
    not_before: Timestamp,
    not_after: Timestamp,
    common_name: &str,
) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = date(not_before);
    params.not_after = date(not_after);
    params.distinguished_name = name(common_name);
    params.subject_alt_names = vec![uri(&trust_domain.id_string())];
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn name(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "Test");
    name.push(DnType::CommonName, common_name);
    name
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().expect("a SPIFFE ID is ASCII"))
}

fn date(at: Timestamp) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(at.unix_seconds())
        .expect("tests stay within the years of certificates")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{id, trust_domain};
    use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

    #[test]
    fn a_leaf_of_an_intermediate_chains_to_the_root() {
        let (start, end) =
            (Timestamp::from_unix_seconds(1_767_225_600), Timestamp::from_unix_seconds(1_767_229_200));
        let root = TestAuthority::new(&trust_domain(), start, end);
        let leaf = root.intermediate().issue(&id("/web"));
        assert_eq!(leaf.chain.len(), 2);
        let parse = |der| X509Certificate::from_der(der).unwrap().1;
        let (svid, middle, top) = (parse(&leaf.chain[0]), parse(&leaf.chain[1]), parse(root.root()));
        assert_eq!(svid.issuer(), middle.subject());
        assert_eq!(middle.issuer(), top.subject());
        assert!(middle.is_ca() && top.is_ca() && !svid.is_ca());
        assert_eq!(svid.validity().not_after.timestamp(), end.unix_seconds());
        let names = &svid.subject_alternative_name().unwrap().unwrap().value.general_names;
        assert_eq!(names[..], [GeneralName::URI("spiffe://example.org/web")]);
        assert_eq!(root.issue(&id("/web")).chain.len(), 1);
    }
}
