//! Certificate signing requests (PKCS#10, RFC 2986).
//!
//! Read by ourselves: the library's CSR type took the key's curve from the signature algorithm, so a P-384 key
//! signed with SHA-256 came out as a broken P-256 certificate. Here the key is only ever what its own
//! SubjectPublicKeyInfo says, and it is kept byte for byte.

use bonafide_identity::{DnsName, SerialNumber, SpiffeId, TrustDomain};

use super::X509Error;
use super::name;
use super::profile::{self, CaSubject, SUBJECT_ALTERNATIVE_NAME};
use crate::der::{self, DerError, Reader, Writer};
use crate::key::{KeyAlgorithm, KeyError, PublicKey, Signer, VerificationAlgorithm};

/// Why a CSR is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CsrError {
    /// The bytes are not one PKCS#10 request.
    #[error("malformed CSR: {0}")]
    Malformed(String),
    /// The sender does not hold the private key.
    #[error("invalid CSR signature: the signature does not match the public key")]
    InvalidSignature,
    /// The signature was made with an algorithm that we do not accept.
    #[error("invalid CSR signature: {0}")]
    UnsupportedSignature(&'static str),
    /// A key that the policy does not allow.
    #[error("malformed CSR: {0}")]
    KeyPolicy(KeyError),
}

impl From<DerError> for CsrError {
    fn from(error: DerError) -> Self {
        Self::Malformed(error.0.to_owned())
    }
}

/// A CSR whose sender has proven possession of the private key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedCsr {
    /// The key to certify.
    pub public_key: PublicKey,
    /// URIs that were asked for, as they are.
    pub uris: Vec<String>,
    /// DNS names that were asked for, as they are.
    pub dns_names: Vec<String>,
    /// The subject as DER; empty sequence when none.
    pub subject_raw: Vec<u8>,
}

impl VerifiedCsr {
    /// Parses a CSR and verifies its signature.
    ///
    /// # Errors
    /// [`CsrError`].
    pub fn parse(der: &[u8]) -> Result<Self, CsrError> {
        let csr = Csr::parse(der)?;
        let public_key = csr.public_key()?;
        let algorithm = csr.signature_algorithm()?;
        if !public_key.verify(algorithm, csr.signed, csr.signature) {
            return Err(CsrError::InvalidSignature);
        }
        let mut names = Names::default();
        names.read(csr.attributes)?;
        Ok(Self { public_key, uris: names.uris, dns_names: names.dns, subject_raw: csr.subject.to_vec() })
    }
}

/// The public key of a CSR, without asking for proof that the sender holds the private key: what node attestation
/// does, where the attestation itself is the proof and the TLS handshake the later one.
///
/// # Errors
/// [`CsrError`], never about the signature.
pub fn csr_public_key_unverified(der: &[u8]) -> Result<PublicKey, CsrError> {
    let key = Csr::parse(der)?.public_key()?;
    key.check_point().map_err(CsrError::KeyPolicy)?;
    Ok(key)
}

/// The CSR that a server sends to its upstream authority: the URI of the trust domain and the CA subject.
///
/// # Errors
/// [`X509Error::Key`] when signing fails.
pub fn ca_csr(
    signer: &dyn Signer,
    trust_domain: &TrustDomain,
    subject: &CaSubject,
    serial: &SerialNumber,
) -> Result<Vec<u8>, X509Error> {
    write(signer, &subject.to_der(serial), Some(&trust_domain.id_string()), &[])
}

/// The CSR of an agent or a workload: `C=US, O=SPIRE`, and the SPIFFE ID when it is known already.
///
/// # Errors
/// [`X509Error::Key`] when signing fails.
pub fn agent_csr(signer: &dyn Signer, id: Option<&SpiffeId>) -> Result<Vec<u8>, X509Error> {
    write(signer, name::DEFAULT, id.map(ToString::to_string).as_deref(), &[])
}

/// The CSR for an SVID that is minted without an entry: the SPIFFE ID and DNS names are those asked for.
///
/// # Errors
/// [`X509Error::Key`] when signing fails.
pub fn workload_csr(signer: &dyn Signer, id: &SpiffeId, dns_names: &[DnsName]) -> Result<Vec<u8>, X509Error> {
    write(signer, name::DEFAULT, Some(&id.to_string()), dns_names)
}

/// The CSR for the certificate of a web server: one DNS name, and no subject.
///
/// # Errors
/// [`X509Error::Key`] when signing fails.
pub fn web_csr(signer: &dyn Signer, name: &DnsName) -> Result<Vec<u8>, X509Error> {
    write(signer, name::EMPTY, None, std::slice::from_ref(name))
}

fn write(
    signer: &dyn Signer,
    subject: &[u8],
    uri: Option<&str>,
    dns_names: &[DnsName],
) -> Result<Vec<u8>, X509Error> {
    let mut info = Writer::with_capacity(512);
    info.sequence(|writer| {
        writer.integer(&[]);
        writer.raw(subject);
        writer.raw(signer.public_key().spki_der());
        writer.nested(der::explicit(0), |writer| {
            if uri.is_none() && dns_names.is_empty() {
                return;
            }
            writer.sequence(|writer| {
                writer.element(der::OID, EXTENSION_REQUEST);
                writer.nested(der::SET, |writer| {
                    writer.sequence(|writer| profile::subject_alternative_name(writer, uri, dns_names));
                });
            });
        });
    });
    let info = info.finish();
    let signature = signer.sign(&info)?;
    let mut out = Writer::with_capacity(info.len() + signature.len() + 32);
    out.sequence(|writer| {
        writer.raw(&info);
        writer.raw(profile::signature_identifier(signer.key_type().signature_algorithm()));
        writer.bit_string(&signature);
    });
    Ok(out.finish())
}

/// The parts of a request, still as bytes.
struct Csr<'a> {
    /// What is signed.
    signed: &'a [u8],
    subject: &'a [u8],
    spki: &'a [u8],
    attributes: &'a [u8],
    signature_identifier: &'a [u8],
    signature: &'a [u8],
}

impl<'a> Csr<'a> {
    fn parse(der: &'a [u8]) -> Result<Self, CsrError> {
        if der.len() > MAX_CSR_BYTES {
            return Err(CsrError::Malformed(format!("it has more than {MAX_CSR_BYTES} bytes")));
        }
        let mut outer = Reader::new(der);
        let request = outer.expect(der::SEQUENCE, "not a sequence")?;
        outer.end("bytes after the request")?;
        let mut request = Reader::new(request.content);
        let signed = request.expect(der::SEQUENCE, "no request information")?;
        let identifier = request.expect(der::SEQUENCE, "no signature algorithm")?;
        let signature = request.expect(der::BIT_STRING, "no signature")?;
        request.end("bytes after the signature")?;

        let mut info = Reader::new(signed.content);
        let version = info.expect(der::INTEGER, "no version")?;
        if version.content != [0] {
            return Err(CsrError::Malformed("the version is not 1".to_owned()));
        }
        let subject = info.expect(der::SEQUENCE, "no subject")?;
        name::check(subject.raw)?;
        let spki = info.expect(der::SEQUENCE, "no public key")?;
        let attributes = if info.is_empty() {
            // RFC 2986 wants the element even when it is empty; some encoders leave it out.
            &[][..]
        } else {
            info.expect(der::explicit(0), "attributes have another tag")?.content
        };
        info.end("bytes after the attributes")?;
        Ok(Self {
            signed: signed.raw,
            subject: subject.raw,
            spki: spki.raw,
            attributes,
            signature_identifier: identifier.raw,
            signature: der::bit_string_bytes(
                signature.content,
                "the signature is not a whole number of bytes",
            )?,
        })
    }

    fn public_key(&self) -> Result<PublicKey, CsrError> {
        let key = PublicKey::from_spki_der(self.spki).map_err(CsrError::KeyPolicy)?;
        match key.algorithm() {
            KeyAlgorithm::Rsa(bits) if bits > MAX_RSA_BITS => Err(CsrError::KeyPolicy(KeyError::Policy(
                format!("an RSA key of {bits} bits is too large: at most {MAX_RSA_BITS}"),
            ))),
            _ => Ok(key),
        }
    }

    fn signature_algorithm(&self) -> Result<VerificationAlgorithm, CsrError> {
        let known = ALGORITHMS.iter().find(|(identifier, _)| *identifier == self.signature_identifier);
        known.map(|(_, algorithm)| *algorithm).ok_or(CsrError::UnsupportedSignature(
            "use ECDSA or RSA PKCS#1 with SHA-256 or SHA-384, or RSA PKCS#1 with SHA-512",
        ))
    }
}

#[derive(Default)]
struct Names {
    uris: Vec<String>,
    dns: Vec<String>,
}

impl Names {
    fn read(&mut self, attributes: &[u8]) -> Result<(), CsrError> {
        let mut attributes = Reader::new(attributes);
        while !attributes.is_empty() {
            let attribute = attributes.expect(der::SEQUENCE, "an attribute is not a sequence")?;
            let mut parts = Reader::new(attribute.content);
            let oid = parts.expect(der::OID, "an attribute has no type")?;
            let values = parts.expect(der::SET, "an attribute has no values")?;
            parts.end("bytes after an attribute")?;
            if oid.content == EXTENSION_REQUEST {
                let mut values = Reader::new(values.content);
                let extensions =
                    values.expect(der::SEQUENCE, "the requested extensions are not a sequence")?;
                values.end("the requested extensions are given twice")?;
                self.read_extensions(extensions.content)?;
            }
        }
        Ok(())
    }

    fn read_extensions(&mut self, extensions: &[u8]) -> Result<(), CsrError> {
        let mut extensions = Reader::new(extensions);
        while !extensions.is_empty() {
            let extension = extensions.expect(der::SEQUENCE, "an extension is not a sequence")?;
            let mut parts = Reader::new(extension.content);
            let oid = parts.expect(der::OID, "an extension has no type")?;
            if parts.peek() == Some(der::BOOLEAN) {
                parts.next()?;
            }
            let value = parts.expect(der::OCTET_STRING, "an extension has no value")?;
            parts.end("bytes after an extension")?;
            if oid.content == SUBJECT_ALTERNATIVE_NAME {
                let mut value = Reader::new(value.content);
                let names = value.expect(der::SEQUENCE, "the alternative names are not a sequence")?;
                value.end("bytes after the alternative names")?;
                self.read_names(names.content)?;
            }
        }
        Ok(())
    }

    fn read_names(&mut self, names: &[u8]) -> Result<(), CsrError> {
        const DNS: u8 = der::implicit(2);
        const URI: u8 = der::implicit(6);
        let mut names = Reader::new(names);
        while !names.is_empty() {
            let name = names.next()?;
            let list = match name.tag {
                DNS => &mut self.dns,
                URI => &mut self.uris,
                _ => continue,
            };
            let text = std::str::from_utf8(name.content).ok().filter(|text| text.is_ascii());
            list.push(text.ok_or(DerError("an alternative name is not ASCII"))?.to_owned());
        }
        Ok(())
    }
}

/// SHA-1 and smaller are absent on purpose. RSA-PSS is, because its parameters would have to be read and no
/// SPIFFE client sends it.
const ALGORITHMS: [(&[u8], VerificationAlgorithm); 5] = [
    (profile::ECDSA_SHA256, VerificationAlgorithm::EcdsaSha256),
    (profile::ECDSA_SHA384, VerificationAlgorithm::EcdsaSha384),
    (profile::RSA_SHA256, VerificationAlgorithm::RsaPkcs1Sha256),
    (
        &[0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0c, 0x05, 0x00],
        VerificationAlgorithm::RsaPkcs1Sha384,
    ),
    (
        &[0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0d, 0x05, 0x00],
        VerificationAlgorithm::RsaPkcs1Sha512,
    ),
];

/// pkcs-9-at-extensionRequest.
const EXTENSION_REQUEST: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x0e];

/// A CSR with an RSA-4096 key and a dozen names has 1.5 kB.
const MAX_CSR_BYTES: usize = 64 << 10;

/// Verifying with larger keys would be a cheap way to keep a server busy.
const MAX_RSA_BITS: usize = 4096;
