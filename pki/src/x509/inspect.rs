//! Reading what a certificate says, without judging it.

use std::net::IpAddr;

use bonafide_identity::{SerialNumber, SpiffeId, Timestamp};
use data_encoding::HEXLOWER;
use x509_parser::asn1_rs::Tag;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::OID_X509_EXT_EXTENDED_KEY_USAGE;
use x509_parser::prelude::FromDer as _;
use x509_parser::x509::X509Name;

use super::X509Error;
use crate::crypto::Curve;
use crate::der::{self, Reader, Writer};
use crate::ecdsa;
use crate::jws::{ecdsa_der_from_parts, ecdsa_parts};
use crate::key::{KeyAlgorithm, PublicKey};

/// What a certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateInfo {
    /// The SPIFFE ID: the only URI, when there is exactly one and it is a SPIFFE ID (also of a trust domain alone).
    pub spiffe_id: Option<SpiffeId>,
    /// All URIs.
    pub uris: Vec<String>,
    /// All DNS names.
    pub dns_names: Vec<String>,
    /// All IP addresses.
    pub ip_addresses: Vec<IpAddr>,
    /// Start of validity.
    pub not_before: Timestamp,
    /// End of validity.
    pub not_after: Timestamp,
    /// The serial number.
    pub serial: SerialNumber,
    /// The subject as RFC 4514 text: `O=SPIRE,C=US`.
    pub subject: String,
    /// The subject as DER.
    pub subject_raw: Vec<u8>,
    /// The first common name of the subject.
    pub common_name: Option<String>,
    /// The issuer as RFC 4514 text.
    pub issuer: String,
    /// The first common name of the issuer.
    pub issuer_common_name: Option<String>,
    /// The subject key identifier, lower-case hex.
    pub ski: Option<String>,
    /// The authority key identifier, lower-case hex.
    pub aki: Option<String>,
    /// Basic constraints say that this is a CA.
    pub is_ca: bool,
    /// The key usages, when the extension is present.
    pub key_usage: Option<KeyUsage>,
    /// There are name constraints on URIs, with which no rustls peer accepts a SPIFFE chain.
    pub constrains_uris: bool,
    /// The key; nothing when the key policy does not allow it.
    pub public_key: Option<PublicKey>,
}

/// The key usages that matter for SVIDs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyUsage {
    /// digitalSignature.
    pub digital_signature: bool,
    /// keyCertSign.
    pub certificate_sign: bool,
    /// cRLSign.
    pub crl_sign: bool,
}

/// The same certificate with the other signature that is as good: from an ECDSA signature (r, s) anybody can make (r, n - s). It has
/// another fingerprint. Nothing for an issuer with an RSA key, whose signatures have one form.
pub fn twin(certificate: &[u8], issuer: &PublicKey) -> Option<Vec<u8>> {
    const BROKEN: &str = "the certificate is broken";
    let curve = match issuer.algorithm() {
        KeyAlgorithm::EcP256 => Curve::P256,
        KeyAlgorithm::EcP384 => Curve::P384,
        KeyAlgorithm::Rsa(_) => return None,
    };
    let mut parts = Reader::new(Reader::new(certificate).expect(der::SEQUENCE, BROKEN).ok()?.content);
    let (signed, algorithm) = (parts.next().ok()?, parts.next().ok()?);
    let signature = parts.expect(der::BIT_STRING, BROKEN).ok()?;
    let (r, s) = ecdsa_parts(der::bit_string_bytes(signature.content, BROKEN).ok()?).ok()?;
    let signature = ecdsa_der_from_parts(r, &ecdsa::negated(curve, s)?);
    let mut writer = Writer::with_capacity(certificate.len() + 8);
    writer.sequence(|writer| {
        writer.raw(signed.raw);
        writer.raw(algorithm.raw);
        writer.bit_string(&signature);
    });
    Some(writer.finish())
}

/// Takes certificates apart that follow each other without a separator, as the Workload API sends them. Each piece is
/// one DER element; what is in it is not looked at.
///
/// # Errors
/// [`X509Error::Malformed`] when the bytes are not a sequence of DER elements.
pub fn split_certificates(bytes: &[u8]) -> Result<Vec<Vec<u8>>, X509Error> {
    let mut reader = Reader::new(bytes);
    let mut certificates = Vec::new();
    while !reader.is_empty() {
        let certificate = reader
            .expect(der::SEQUENCE, "not a certificate")
            .map_err(|error| X509Error::Malformed(error.to_string()))?;
        certificates.push(certificate.raw.to_vec());
    }
    Ok(certificates)
}

/// Reads one DER certificate.
///
/// # Errors
/// [`X509Error::Malformed`], also when bytes follow the certificate.
pub fn inspect(der: &[u8]) -> Result<CertificateInfo, X509Error> {
    let certificate = parse(der)?;
    let time = |time: x509_parser::time::ASN1Time| Timestamp::from_unix_seconds(time.timestamp());
    let mut info = CertificateInfo {
        spiffe_id: None,
        uris: Vec::new(),
        dns_names: Vec::new(),
        ip_addresses: Vec::new(),
        not_before: time(certificate.validity().not_before),
        not_after: time(certificate.validity().not_after),
        serial: SerialNumber::from_be_bytes(trimmed(certificate.raw_serial()))
            .map_err(|error| X509Error::Malformed(error.to_string()))?,
        subject: rfc4514(certificate.subject()),
        subject_raw: certificate.subject().as_raw().to_vec(),
        common_name: common_name(certificate.subject()),
        issuer: rfc4514(certificate.issuer()),
        issuer_common_name: common_name(certificate.issuer()),
        ski: None,
        aki: None,
        is_ca: false,
        key_usage: None,
        constrains_uris: false,
        public_key: PublicKey::from_spki_der(certificate.public_key().raw).ok(),
    };
    for extension in certificate.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => info.read_names(&names.general_names),
            ParsedExtension::BasicConstraints(constraints) => info.is_ca = constraints.ca,
            ParsedExtension::KeyUsage(usage) => {
                info.key_usage = Some(KeyUsage {
                    digital_signature: usage.digital_signature(),
                    certificate_sign: usage.key_cert_sign(),
                    crl_sign: usage.crl_sign(),
                });
            }
            ParsedExtension::SubjectKeyIdentifier(id) => info.ski = Some(HEXLOWER.encode(id.0)),
            ParsedExtension::AuthorityKeyIdentifier(id) => {
                info.aki = id.key_identifier.as_ref().map(|id| HEXLOWER.encode(id.0));
            }
            ParsedExtension::NameConstraints(constraints) => {
                let subtrees = [&constraints.permitted_subtrees, &constraints.excluded_subtrees];
                info.constrains_uris = subtrees
                    .into_iter()
                    .flatten()
                    .flatten()
                    .any(|subtree| matches!(subtree.base, GeneralName::URI(_)));
            }
            ParsedExtension::ParseError { .. } => {
                let oid = extension.oid.to_id_string();
                return Err(X509Error::Malformed(format!("extension {oid} cannot be read")));
            }
            _ => {}
        }
    }
    if let [uri] = &info.uris[..] {
        info.spiffe_id = SpiffeId::parse(uri).ok();
    }
    Ok(info)
}

/// Whether a certificate may be used for the purpose with this object identifier: its extended key usages name it, name any
/// purpose, or are absent (RFC 5280 4.2.1.12).
///
/// # Errors
/// [`X509Error::Malformed`].
pub fn allows_purpose(der: &[u8], purpose: &str) -> Result<bool, X509Error> {
    let certificate = parse(der)?;
    let mut purposes =
        certificate.extensions().iter().filter(|extension| extension.oid == OID_X509_EXT_EXTENDED_KEY_USAGE);
    Ok(purposes.all(|extension| match extension.parsed_extension() {
        ParsedExtension::ExtendedKeyUsage(usage) => {
            usage.any || usage.other.iter().any(|oid| oid.to_id_string() == purpose)
        }
        _ => false,
    }))
}

impl CertificateInfo {
    fn read_names(&mut self, names: &[GeneralName<'_>]) {
        for name in names {
            match name {
                GeneralName::URI(uri) => self.uris.push((*uri).to_owned()),
                // Counted, so that a certificate with a broken second URI is not taken for one with a single URI.
                GeneralName::Invalid(Tag(6), octets) => {
                    self.uris.push(String::from_utf8_lossy(octets).into_owned());
                }
                GeneralName::DNSName(name) => self.dns_names.push((*name).to_owned()),
                GeneralName::IPAddress(octets) => {
                    let v4 = <[u8; 4]>::try_from(*octets).map(IpAddr::from);
                    let v6 = <[u8; 16]>::try_from(*octets).map(IpAddr::from);
                    self.ip_addresses.extend(v4.or(v6));
                }
                _ => {}
            }
        }
    }
}

pub(crate) fn parse(bytes: &[u8]) -> Result<X509Certificate<'_>, X509Error> {
    let malformed = |what: String| Err(X509Error::Malformed(what));
    match X509Certificate::from_der(bytes) {
        // The parser looks at the number of the outermost tag and not at its class, which others do.
        Ok(([], certificate)) => match Reader::new(bytes).expect(der::SEQUENCE, "not a certificate") {
            Ok(_) => Ok(certificate),
            Err(_) => malformed("it is not one DER sequence".to_owned()),
        },
        Ok(_) => malformed("bytes after the certificate".to_owned()),
        Err(error) => malformed(error.to_string()),
    }
}

fn trimmed(serial: &[u8]) -> &[u8] {
    match serial {
        [0, rest @ ..] if !rest.is_empty() => rest,
        serial => serial,
    }
}

fn common_name(name: &X509Name<'_>) -> Option<String> {
    let first = name.iter_common_name().next();
    first.map(|name| String::from_utf8_lossy(name.attr_value().data).into_owned())
}

/// A name as RFC 4514 text: last set first, `+` within a set.
fn rfc4514(name: &X509Name<'_>) -> String {
    let sets = name.iter_rdn().map(|set| {
        let attributes = set.iter().map(|attribute| {
            let oid = attribute.attr_type().to_id_string();
            let short =
                SHORT_NAMES.iter().find(|(known, _)| *known == oid).map(|(_, short)| (*short).to_owned());
            // A value that is not text is written as hex of its DER content, with a mark (RFC 4514 2.4).
            let value = match std::str::from_utf8(attribute.attr_value().data) {
                Ok(text) => escaped(text),
                Err(_) => format!("#{}", HEXLOWER.encode(attribute.attr_value().data)),
            };
            format!("{}={value}", short.unwrap_or(oid))
        });
        attributes.collect::<Vec<_>>().join("+")
    });
    let mut sets: Vec<String> = sets.collect();
    sets.reverse();
    sets.join(",")
}

fn escaped(text: &str) -> String {
    let last = text.chars().count().saturating_sub(1);
    let mut out = String::with_capacity(text.len());
    for (at, character) in text.chars().enumerate() {
        match character {
            '"' | '+' | ',' | ';' | '<' | '>' | '\\' => out.extend(['\\', character]),
            ' ' if at == 0 || at == last => out.push_str("\\ "),
            '#' if at == 0 => out.push_str("\\#"),
            // Names end up in terminals and logs.
            control if control.is_control() => {
                let mut octets = [0; 4];
                for octet in control.encode_utf8(&mut octets).bytes() {
                    out.push_str(&format!("\\{octet:02X}"));
                }
            }
            other => out.push(other),
        }
    }
    out
}

const SHORT_NAMES: [(&str, &str); 11] = [
    ("2.5.4.3", "CN"),
    ("2.5.4.5", "SERIALNUMBER"),
    ("2.5.4.6", "C"),
    ("2.5.4.7", "L"),
    ("2.5.4.8", "ST"),
    ("2.5.4.9", "STREET"),
    ("2.5.4.10", "O"),
    ("2.5.4.11", "OU"),
    ("2.5.4.17", "POSTALCODE"),
    ("0.9.2342.19200300.100.1.1", "UID"),
    ("0.9.2342.19200300.100.1.25", "DC"),
];

#[cfg(test)]
mod tests {
    use super::escaped;

    #[test]
    fn special_characters_are_escaped() {
        assert_eq!(escaped(" a,b+c\"d\\e#f "), "\\ a\\,b\\+c\\\"d\\\\e#f\\ ");
        assert_eq!(escaped("#x"), "\\#x");
        assert_eq!(escaped("a\n\u{1b}[31m"), "a\\0A\\1B[31m");
        assert_eq!(escaped(""), "");
    }
}
