//! What certificates of ours contain: the profiles that callers fill in, and the extensions that follow from them.

use bonafide_identity::{DnsName, SerialNumber, SpiffeId, Timestamp};

use super::name;
use crate::der::{self, Writer};
use crate::key::{PublicKey, SignatureAlgorithm};

/// The subject of a leaf certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject<'a> {
    /// `C=US, O=SPIRE`.
    Default,
    /// A name as DER, copied as it is. An empty one gives the default.
    Raw(&'a [u8]),
}

/// A leaf X.509-SVID: key usages digitalSignature, keyEncipherment and keyAgreement; client and server authentication.
#[derive(Clone, Debug)]
pub struct LeafProfile<'a> {
    /// The one URI of the certificate.
    pub spiffe_id: &'a SpiffeId,
    /// DNS names in order; the first becomes the common name, in place of another one.
    pub dns_names: &'a [DnsName],
    /// The subject.
    pub subject: Subject<'a>,
    /// The key that is certified.
    pub public_key: &'a PublicKey,
    /// Start of validity; rounded down to seconds.
    pub not_before: Timestamp,
    /// End of validity; rounded down to seconds.
    pub not_after: Timestamp,
    /// The serial number: see [`crate::random_serial`].
    pub serial: SerialNumber,
}

/// A CA certificate for a downstream server of the same trust domain.
#[derive(Clone, Debug)]
pub struct CaProfile<'a> {
    /// The key that is certified.
    pub public_key: &'a PublicKey,
    /// Start of validity; rounded down to seconds.
    pub not_before: Timestamp,
    /// End of validity; rounded down to seconds.
    pub not_after: Timestamp,
    /// The serial number: see [`crate::random_serial`].
    pub serial: SerialNumber,
}

/// The configured subject of a CA certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaSubject {
    /// Countries (C).
    pub country: Vec<String>,
    /// Organizations (O).
    pub organization: Vec<String>,
    /// Organizational units (OU).
    pub organizational_unit: Vec<String>,
    /// The common name (CN).
    pub common_name: Option<String>,
    /// The serial number attribute (2.5.4.5); without one, the certificate's serial number in decimal, which keeps
    /// the names of successive authorities apart.
    pub serial_number: Option<String>,
}

impl Default for CaSubject {
    /// `C=US, O=SPIFFE`.
    fn default() -> Self {
        Self {
            country: vec!["US".to_owned()],
            organization: vec!["SPIFFE".to_owned()],
            organizational_unit: Vec::new(),
            common_name: None,
            serial_number: None,
        }
    }
}

impl CaSubject {
    pub(crate) fn to_der(&self, serial: &SerialNumber) -> Vec<u8> {
        let serial_number = self.serial_number.clone().unwrap_or_else(|| serial.to_string());
        let mut writer = Writer::with_capacity(128);
        writer.sequence(|writer| {
            let mut all = |kind: &[u8], values: &[String]| {
                values.iter().for_each(|value| name::attribute(writer, kind, value));
            };
            all(name::COUNTRY, &self.country);
            all(name::ORGANIZATION, &self.organization);
            all(name::ORGANIZATIONAL_UNIT, &self.organizational_unit);
            all(name::COMMON_NAME, self.common_name.as_slice());
            all(name::SERIAL_NUMBER, &[serial_number]);
        });
        writer.finish()
    }
}

/// The AlgorithmIdentifier of a signature.
pub(crate) const fn signature_identifier(algorithm: SignatureAlgorithm) -> &'static [u8] {
    match algorithm {
        SignatureAlgorithm::EcdsaP256Sha256 => ECDSA_SHA256,
        SignatureAlgorithm::EcdsaP384Sha384 => ECDSA_SHA384,
        // Certificates and CSRs are never signed with PSS: the two share the one RSA form that all peers read.
        SignatureAlgorithm::RsaPkcs1Sha256 | SignatureAlgorithm::RsaPssSha256 => RSA_SHA256,
    }
}

/// digitalSignature, keyEncipherment, keyAgreement; critical.
pub(crate) const LEAF_KEY_USAGE: &[u8] =
    &[0x30, 0x0e, 0x06, 0x03, 0x55, 0x1d, 0x0f, 0x01, 0x01, 0xff, 0x04, 0x04, 0x03, 0x02, 0x03, 0xa8];
/// keyCertSign, cRLSign; critical.
pub(crate) const CA_KEY_USAGE: &[u8] =
    &[0x30, 0x0e, 0x06, 0x03, 0x55, 0x1d, 0x0f, 0x01, 0x01, 0xff, 0x04, 0x04, 0x03, 0x02, 0x01, 0x06];
/// serverAuth, clientAuth.
pub(crate) const LEAF_EXTENDED_KEY_USAGE: &[u8] = &[
    0x30, 0x1d, 0x06, 0x03, 0x55, 0x1d, 0x25, 0x04, 0x16, 0x30, 0x14, 0x06, 0x08, 0x2b, 0x06, 0x01, 0x05,
    0x05, 0x07, 0x03, 0x01, 0x06, 0x08, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x02,
];
/// Basic constraints with CA:FALSE; critical.
pub(crate) const NOT_A_CA: &[u8] =
    &[0x30, 0x0c, 0x06, 0x03, 0x55, 0x1d, 0x13, 0x01, 0x01, 0xff, 0x04, 0x02, 0x30, 0x00];
/// Basic constraints with CA:TRUE and no path length; critical.
pub(crate) const A_CA: &[u8] =
    &[0x30, 0x0f, 0x06, 0x03, 0x55, 0x1d, 0x13, 0x01, 0x01, 0xff, 0x04, 0x05, 0x30, 0x03, 0x01, 0x01, 0xff];

pub(crate) fn subject_key_id(writer: &mut Writer, id: &[u8; 20]) {
    extension(writer, SUBJECT_KEY_ID, |writer| writer.element(der::OCTET_STRING, id));
}

pub(crate) fn authority_key_id(writer: &mut Writer, id: &[u8]) {
    extension(writer, AUTHORITY_KEY_ID, |writer| {
        writer.sequence(|writer| writer.element(der::implicit(0), id));
    });
}

/// DNS names, then a URI where there is one.
pub(crate) fn subject_alternative_name(writer: &mut Writer, uri: Option<&str>, dns_names: &[DnsName]) {
    extension(writer, SUBJECT_ALTERNATIVE_NAME, |writer| {
        writer.sequence(|writer| {
            dns_names.iter().for_each(|name| writer.element(der::implicit(2), name.as_str().as_bytes()));
            uri.iter().for_each(|uri| writer.element(der::implicit(6), uri.as_bytes()));
        });
    });
}

/// The digest of a key authorization (RFC 8737, section 3); critical.
pub(crate) fn acme_identifier(writer: &mut Writer, digest: &[u8; 32]) {
    writer.sequence(|writer| {
        writer.element(der::OID, ACME_IDENTIFIER);
        writer.element(der::BOOLEAN, &[0xff]);
        writer.nested(der::OCTET_STRING, |writer| writer.element(der::OCTET_STRING, digest));
    });
}

fn extension(writer: &mut Writer, oid: &[u8], value: impl FnOnce(&mut Writer)) {
    writer.sequence(|writer| {
        writer.element(der::OID, oid);
        writer.nested(der::OCTET_STRING, value);
    });
}

/// id-pe-acmeIdentifier, 1.3.6.1.5.5.7.1.31.
const ACME_IDENTIFIER: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x01, 0x1f];

pub(crate) const SUBJECT_KEY_ID: &[u8] = &[0x55, 0x1d, 0x0e];
pub(crate) const AUTHORITY_KEY_ID: &[u8] = &[0x55, 0x1d, 0x23];
pub(crate) const SUBJECT_ALTERNATIVE_NAME: &[u8] = &[0x55, 0x1d, 0x11];

pub(crate) const ECDSA_SHA256: &[u8] =
    &[0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
pub(crate) const ECDSA_SHA384: &[u8] =
    &[0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03];
pub(crate) const RSA_SHA256: &[u8] =
    &[0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b, 0x05, 0x00];
