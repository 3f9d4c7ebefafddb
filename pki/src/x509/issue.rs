//! Issuing certificates.
//!
//! The certificate is written by us, so that the issuer's name, its key identifier and the subject's key are the very
//! bytes of the CA certificate and of the CSR; see `docs/decisions/0003-own-certificate-writer.md`. What depends on the
//! CA alone is prepared once; issuing a leaf is then one signature and less than a microsecond of copying.

use std::sync::Arc;

use bonafide_identity::{DnsName, SerialNumber, Timestamp, TrustDomain};
use data_encoding::HEXLOWER;

use super::inspect::{CertificateInfo, inspect, parse};
use super::name;
use super::profile::{self, CaProfile, CaSubject, LeafProfile, Subject};
use super::verify::{TrustRoots, VerifyError, verify_chain};
use super::{X509Error, csr};
use crate::der::{self, DerError, Writer};
use crate::key::{PublicKey, Signer};

/// An active X.509 authority: its certificate, what is handed out with leaves, and the key that signs.
pub struct X509Issuer {
    trust_domain: TrustDomain,
    certificate: Vec<u8>,
    chain: Vec<Vec<u8>>,
    signer: Arc<dyn Signer>,
    subject: Vec<u8>,
    authority_key_id: Vec<u8>,
    authority_id: String,
    not_before: Timestamp,
    not_after: Timestamp,
}

impl X509Issuer {
    /// Takes a CA certificate into service. `upstream_chain` is what peers need besides the leaf: empty for a
    /// self-signed CA, else the CA certificate itself and further intermediates, without the root.
    ///
    /// A CA that would produce certificates that peers refuse is refused here: a throw-away leaf is issued, compared
    /// and verified first.
    ///
    /// # Errors
    /// [`X509Error::Malformed`] or [`X509Error::Authority`].
    pub fn new(
        trust_domain: &TrustDomain,
        certificate: Vec<u8>,
        upstream_chain: Vec<Vec<u8>>,
        signer: Arc<dyn Signer>,
    ) -> Result<Self, X509Error> {
        let info = inspect(&certificate)?;
        check_authority(&info, trust_domain, signer.public_key())?;
        check_chain(&certificate, &upstream_chain)?;
        let key_id = match &info.ski {
            Some(hex) => {
                HEXLOWER.decode(hex.as_bytes()).map_err(|error| X509Error::Malformed(error.to_string()))?
            }
            None => signer.public_key().subject_key_id().to_vec(),
        };
        let mut authority_key_id = Writer::with_capacity(48);
        profile::authority_key_id(&mut authority_key_id, &key_id);
        let issuer = Self {
            trust_domain: trust_domain.clone(),
            subject: info.subject_raw,
            authority_key_id: authority_key_id.finish(),
            authority_id: HEXLOWER.encode(&key_id),
            not_before: info.not_before,
            not_after: info.not_after,
            certificate,
            chain: upstream_chain,
            signer,
        };
        issuer.check_itself()?;
        Ok(issuer)
    }

    /// Issues a leaf X.509-SVID and gives its DER. Bound by the processor.
    ///
    /// # Errors
    /// [`X509Error::Profile`] when the SPIFFE ID belongs to another trust domain, or the validity is empty, outside
    /// what a certificate can express, or longer than the CA's. [`X509Error::Key`] when signing fails.
    pub fn issue(&self, profile: &LeafProfile<'_>) -> Result<Vec<u8>, X509Error> {
        if profile.spiffe_id.trust_domain() != &self.trust_domain {
            let (id, own) = (profile.spiffe_id, &self.trust_domain);
            return Err(X509Error::Profile(format!("{id} is not in trust domain {own}")));
        }
        self.check_validity(profile.not_before, profile.not_after)?;
        let named;
        let subject = match (profile.subject, profile.dns_names.first()) {
            (Subject::Default | Subject::Raw(name::EMPTY), None) => name::DEFAULT,
            (Subject::Raw(raw), None) => {
                name::check(raw)?;
                raw
            }
            (subject, Some(first)) => {
                let raw = match subject {
                    Subject::Default | Subject::Raw(name::EMPTY) => name::DEFAULT,
                    Subject::Raw(raw) => raw,
                };
                name::check(raw)?;
                named = name::with_attribute(raw, name::COMMON_NAME, first.as_str())?;
                &named
            }
        };
        let uri = profile.spiffe_id.to_string();
        let certificate = Certificate {
            serial: &profile.serial,
            issuer: &self.subject,
            not_before: profile.not_before,
            not_after: profile.not_after,
            subject,
            public_key: profile.public_key,
        };
        certificate.sign(&*self.signer, |writer| {
            writer.raw(profile::LEAF_KEY_USAGE);
            writer.raw(profile::LEAF_EXTENDED_KEY_USAGE);
            writer.raw(profile::NOT_A_CA);
            profile::subject_key_id(writer, &profile.public_key.subject_key_id());
            writer.raw(&self.authority_key_id);
            profile::subject_alternative_name(writer, Some(&uri), profile.dns_names);
        })
    }

    /// Issues a CA certificate for a downstream server: our subject with the organizational unit `DOWNSTREAM-<n>`,
    /// n being the number of authorities above the new one.
    ///
    /// # Errors
    /// As [`Self::issue`].
    pub fn issue_ca(&self, profile: &CaProfile<'_>) -> Result<Vec<u8>, X509Error> {
        self.check_validity(profile.not_before, profile.not_after)?;
        let unit = format!("DOWNSTREAM-{}", self.chain.len() + 1);
        let subject = name::with_attribute(&self.subject, name::ORGANIZATIONAL_UNIT, &unit)?;
        let uri = self.trust_domain.id_string();
        let certificate = Certificate {
            serial: &profile.serial,
            issuer: &self.subject,
            not_before: profile.not_before,
            not_after: profile.not_after,
            subject: &subject,
            public_key: profile.public_key,
        };
        certificate.sign(&*self.signer, |writer| {
            writer.raw(profile::CA_KEY_USAGE);
            writer.raw(profile::A_CA);
            profile::subject_key_id(writer, &profile.public_key.subject_key_id());
            writer.raw(&self.authority_key_id);
            profile::subject_alternative_name(writer, Some(&uri), &[]);
        })
    }

    /// What is handed out with a leaf (or a downstream CA): the leaf, then the intermediates, without the root.
    pub fn chain_for_leaf(&self, leaf: Vec<u8>) -> Vec<Vec<u8>> {
        std::iter::once(leaf).chain(self.chain.iter().cloned()).collect()
    }

    /// The CA certificate as DER.
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// The authority's ID: the subject key identifier of its certificate in lower-case hex.
    pub fn authority_id(&self) -> &str {
        &self.authority_id
    }

    /// The start of the CA's validity.
    pub fn not_before(&self) -> Timestamp {
        self.not_before
    }

    /// The end of the CA's validity: no leaf lives longer.
    pub fn not_after(&self) -> Timestamp {
        self.not_after
    }

    /// The trust domain whose SVIDs this authority signs.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Whether there is an upstream authority above this one.
    pub fn has_upstream(&self) -> bool {
        !self.chain.is_empty()
    }

    /// Checks that peers with these roots would accept at `now` what this authority signs: an upstream authority must
    /// give a chain that leads to the roots that it gives.
    ///
    /// # Errors
    /// [`X509Error::Authority`].
    pub fn check_roots(&self, roots: &TrustRoots, now: Timestamp) -> Result<(), X509Error> {
        let chain = self.chain_for_leaf(self.throw_away_leaf()?);
        match verify_chain(&chain, roots, now) {
            Ok(_) => Ok(()),
            Err(error) => Err(X509Error::Authority(format!("its chain does not lead to its roots: {error}"))),
        }
    }

    fn check_validity(&self, not_before: Timestamp, not_after: Timestamp) -> Result<(), X509Error> {
        if not_after.unix_seconds() <= not_before.unix_seconds() {
            return Err(X509Error::Profile("the validity ends before it begins".to_owned()));
        }
        if not_after.unix_seconds() > self.not_after.unix_seconds() {
            let id = &self.authority_id;
            return Err(X509Error::Profile(format!("the validity ends after that of its authority {id}")));
        }
        Ok(())
    }

    /// Issues a leaf for nobody and looks at it as a peer would.
    fn check_itself(&self) -> Result<(), X509Error> {
        let refused = |problem: &str| X509Error::Authority(problem.to_owned());
        let leaf = self.issue(&LeafProfile {
            spiffe_id: &self.trust_domain.server_id(),
            dns_names: &[],
            subject: Subject::Default,
            public_key: self.signer.public_key(),
            not_before: self.not_before,
            not_after: self.not_after,
            serial: SerialNumber::from_be_bytes(&[1])
                .map_err(|error| X509Error::Malformed(error.to_string()))?,
        })?;
        let parsed = parse(&leaf)?;
        let authority = parse(&self.certificate)?;
        if parsed.issuer().as_raw() != authority.subject().as_raw() {
            return Err(refused("its name does not survive being written into a certificate"));
        }
        let roots = TrustRoots::from_der([&self.certificate[..]])?;
        match verify_chain(&[leaf], &roots, self.not_after) {
            Ok(_) => Ok(()),
            Err(VerifyError::NameConstraints) => Err(refused(NAME_CONSTRAINTS)),
            Err(VerifyError::Signature) => Err(refused("its key does not verify what the signer signs")),
            Err(error) => Err(refused(&format!("peers would refuse what it signs: {error}"))),
        }
    }

    /// A leaf for the authority's own key, as long as the authority; it never leaves the process.
    fn throw_away_leaf(&self) -> Result<Vec<u8>, X509Error> {
        self.issue(&LeafProfile {
            spiffe_id: &self.trust_domain.server_id(),
            dns_names: &[],
            subject: Subject::Default,
            public_key: self.signer.public_key(),
            not_before: self.not_before,
            not_after: self.not_after,
            serial: SerialNumber::from(1_u128),
        })
    }
}

/// A self-signed CA certificate of a trust domain, with the signer's key.
///
/// # Errors
/// [`X509Error::Profile`] when the validity is empty or cannot be expressed; [`X509Error::Key`] when signing fails.
pub fn self_signed_ca(
    signer: &dyn Signer,
    trust_domain: &TrustDomain,
    subject: &CaSubject,
    not_before: Timestamp,
    not_after: Timestamp,
    serial: SerialNumber,
) -> Result<Vec<u8>, X509Error> {
    if not_after.unix_seconds() <= not_before.unix_seconds() {
        return Err(X509Error::Profile("the validity ends before it begins".to_owned()));
    }
    let subject = subject.to_der(&serial);
    let certificate = Certificate {
        serial: &serial,
        issuer: &subject,
        not_before,
        not_after,
        subject: &subject,
        public_key: signer.public_key(),
    };
    certificate.sign(signer, |writer| {
        writer.raw(profile::CA_KEY_USAGE);
        writer.raw(profile::A_CA);
        profile::subject_key_id(writer, &signer.public_key().subject_key_id());
        profile::subject_alternative_name(writer, Some(&trust_domain.id_string()), &[]);
    })
}

/// The certificate with which a server answers the challenge `tls-alpn-01` for `name` (RFC 8737, section 3): signed by its own key,
/// with that name alone and the SHA-256 `digest` of the key authorization in a critical extension.
///
/// # Errors
/// [`X509Error::Profile`] when the validity cannot be expressed; [`X509Error::Key`] when signing fails.
pub fn acme_challenge_certificate(
    signer: &dyn Signer,
    name: &DnsName,
    digest: &[u8; 32],
    not_before: Timestamp,
    not_after: Timestamp,
    serial: SerialNumber,
) -> Result<Vec<u8>, X509Error> {
    let subject = name::with_attribute(name::EMPTY, name::COMMON_NAME, "ACME challenge")?;
    let certificate = Certificate {
        serial: &serial,
        issuer: &subject,
        not_before,
        not_after,
        subject: &subject,
        public_key: signer.public_key(),
    };
    certificate.sign(signer, |writer| {
        profile::subject_alternative_name(writer, None, std::slice::from_ref(name));
        profile::acme_identifier(writer, digest);
    })
}

/// An authority that signs the CA certificates of servers: the `disk` upstream authority. It may be any CA of a
/// private PKI, without a SPIFFE ID.
pub struct CaIssuer {
    issuer: X509Issuer,
}

impl CaIssuer {
    /// Takes an upstream CA certificate and key into service; `upstream_chain` as in [`X509Issuer::new`].
    ///
    /// # Errors
    /// As [`X509Issuer::new`].
    pub fn new(
        trust_domain: &TrustDomain,
        certificate: Vec<u8>,
        upstream_chain: Vec<Vec<u8>>,
        signer: Arc<dyn Signer>,
    ) -> Result<Self, X509Error> {
        Ok(Self { issuer: X509Issuer::new(trust_domain, certificate, upstream_chain, signer)? })
    }

    /// Signs a server's CSR as a CA certificate: subject and key of the CSR, whose only URI must be that of the
    /// trust domain.
    ///
    /// # Errors
    /// [`X509Error::Profile`] when the CSR asks for something else; as [`X509Issuer::issue`].
    pub fn sign_ca(
        &self,
        request: &csr::VerifiedCsr,
        not_before: Timestamp,
        not_after: Timestamp,
        serial: &SerialNumber,
    ) -> Result<Vec<u8>, X509Error> {
        let issuer = &self.issuer;
        let uri = issuer.trust_domain.id_string();
        if request.uris != [uri.as_str()] {
            return Err(X509Error::Profile(format!("the CSR must ask for exactly the URI {uri}")));
        }
        issuer.check_validity(not_before, not_after)?;
        let subject = &request.subject_raw;
        if subject == name::EMPTY {
            return Err(X509Error::Profile("the CSR has an empty subject".to_owned()));
        }
        let public_key = &request.public_key;
        let certificate =
            Certificate { serial, issuer: &issuer.subject, not_before, not_after, subject, public_key };
        certificate.sign(&*issuer.signer, |writer| {
            writer.raw(profile::CA_KEY_USAGE);
            writer.raw(profile::A_CA);
            profile::subject_key_id(writer, &public_key.subject_key_id());
            writer.raw(&issuer.authority_key_id);
            profile::subject_alternative_name(writer, Some(&uri), &[]);
        })
    }

    /// The end of the upstream CA's validity.
    pub fn not_after(&self) -> Timestamp {
        self.issuer.not_after
    }
}

/// The parts of a certificate that are not extensions.
struct Certificate<'a> {
    serial: &'a SerialNumber,
    issuer: &'a [u8],
    not_before: Timestamp,
    not_after: Timestamp,
    subject: &'a [u8],
    public_key: &'a PublicKey,
}

impl Certificate<'_> {
    fn sign(&self, signer: &dyn Signer, extensions: impl FnOnce(&mut Writer)) -> Result<Vec<u8>, X509Error> {
        let algorithm = signer.key_type().signature_algorithm();
        let identifier = profile::signature_identifier(algorithm);
        let mut validity = Ok(());
        let mut writer = Writer::with_capacity(1024);
        writer.sequence(|writer| {
            writer.nested(der::explicit(0), |writer| writer.integer(&[2]));
            writer.integer(self.serial.as_be_bytes());
            writer.raw(identifier);
            writer.raw(self.issuer);
            writer.sequence(|writer| {
                validity = writer.time(self.not_before).and_then(|()| writer.time(self.not_after));
            });
            writer.raw(self.subject);
            writer.raw(self.public_key.spki_der());
            writer.nested(der::explicit(3), |writer| writer.sequence(extensions));
        });
        validity?;
        let signed = writer.finish();
        let signature = signer.sign_with(algorithm, &signed)?;
        let mut out = Writer::with_capacity(signed.len() + signature.len() + 32);
        out.sequence(|writer| {
            writer.raw(&signed);
            writer.raw(identifier);
            writer.bit_string(&signature);
        });
        Ok(out.finish())
    }
}

impl From<DerError> for X509Error {
    fn from(error: DerError) -> Self {
        Self::Profile(error.0.to_owned())
    }
}

fn check_authority(
    info: &CertificateInfo,
    trust_domain: &TrustDomain,
    key: &PublicKey,
) -> Result<(), X509Error> {
    let refused = |problem: String| Err(X509Error::Authority(problem));
    if !info.is_ca {
        return refused("its basic constraints do not say CA:TRUE".to_owned());
    }
    if info.key_usage.is_some_and(|usage| !usage.certificate_sign) {
        return refused("its key usage does not include keyCertSign".to_owned());
    }
    if info.subject_raw == name::EMPTY {
        return refused("its subject is empty".to_owned());
    }
    let own = trust_domain.id_string();
    if let Some(foreign) = info.uris.iter().find(|uri| **uri != own) {
        return refused(format!("its URI {foreign} is not {own}"));
    }
    if info.constrains_uris {
        return refused(NAME_CONSTRAINTS.to_owned());
    }
    if info.public_key.as_ref() != Some(key) {
        return refused("it belongs to another key than the signer's".to_owned());
    }
    Ok(())
}

/// Each certificate is signed by the next, the first is the authority's own, and none has URI constraints.
fn check_chain(certificate: &[u8], chain: &[Vec<u8>]) -> Result<(), X509Error> {
    let refused = |problem: &str| Err(X509Error::Authority(problem.to_owned()));
    if chain.first().is_some_and(|first| first != certificate) {
        return refused("its chain does not begin with its own certificate");
    }
    for pair in chain.windows(2) {
        let (lower, upper) = (parse(&pair[0])?, parse(&pair[1])?);
        if lower.issuer().as_raw() != upper.subject().as_raw() {
            return refused("the certificates of its chain do not follow one another");
        }
    }
    for upstream in chain {
        if inspect(upstream)?.constrains_uris {
            return refused(NAME_CONSTRAINTS);
        }
    }
    Ok(())
}

const NAME_CONSTRAINTS: &str = "it or an authority above it has name constraints on URIs, which make many TLS \
                                libraries refuse every SVID: have it reissued without them";
