//! Reference values out of signed files: SWID tags (ISO/IEC 19770-2:2015 with TCG's Reference Integrity Manifest) under an
//! enveloped XML signature, as NVIDIA publishes them.
//!
//! Used once for each file, by a command of the operator; what comes out is a [`Reference`]. The signature must be over the whole
//! document, by the first certificate in it, which must lead to a pinned root *at a moment that the operator names*: signers
//! live for two years, and what they signed stays in use.

use std::collections::BTreeMap;

use bonafide_identity::Timestamp;
use data_encoding::BASE64;

use super::reference::{Reference, ReferenceKind};
use super::xml::{self, Element, XmlError};
use crate::crypto;
use crate::key::KeyAlgorithm;
use crate::x509::{TrustRoots, VerifyError, inspect, verify_chain};

/// Why a file gives no reference values.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RimError {
    /// It is not XML that can be used.
    #[error("the file cannot be read: {0}")]
    Xml(String),
    /// There is no signature, or not of the one kind that is known.
    #[error("the signature cannot be used: {0}")]
    Form(&'static str),
    /// What was signed is something else.
    #[error("the file was changed after it was signed")]
    Digest,
    /// The signature is not that of the certificate in the file.
    #[error("the signature is wrong")]
    Signature,
    /// The certificates do not lead to a root.
    #[error("the signer is refused: {0} (of a file whose signer has expired since, say when it was valid)")]
    Signer(#[from] VerifyError),
    /// The content is not that of reference values.
    #[error("the content is not understood: {0}")]
    Content(String),
}

impl From<XmlError> for RimError {
    fn from(error: XmlError) -> Self {
        Self::Xml(error.0.to_owned())
    }
}

/// Verifies a file and takes its active values out.
///
/// # Errors
/// [`RimError`].
pub fn import(file: &[u8], roots: &TrustRoots, at: Timestamp) -> Result<Reference, RimError> {
    let root = xml::read(file)?;
    let (signer, signer_expires) = verify(&root, roots, at)?;
    let mut reference = content(&root)?;
    reference.signer = signer;
    reference.signer_expires = signer_expires.unix_seconds();
    Ok(reference)
}

/// A file in canonical form (Canonical XML 1.1), its signature included. Nothing is verified.
///
/// # Errors
/// [`RimError::Xml`].
pub fn canonical(file: &[u8]) -> Result<Vec<u8>, RimError> {
    Ok(xml::read(file)?.canonical(&[], None))
}

/// The subject of the signer, and when its certificate ends.
fn verify(root: &Element, roots: &TrustRoots, at: Timestamp) -> Result<(String, Timestamp), RimError> {
    let form = RimError::Form;
    let signature =
        root.only(DSIG, "Signature").ok_or(form("there is not exactly one Signature in the document"))?;
    let info = signature.only(DSIG, "SignedInfo").ok_or(form("it has no SignedInfo"))?;
    let algorithm = |element: Option<&Element>, uri: &str| {
        element.and_then(|element| element.attribute("", "Algorithm")).is_some_and(|said| said == uri)
    };
    if !algorithm(info.only(DSIG, "CanonicalizationMethod"), C14N)
        || !algorithm(info.only(DSIG, "SignatureMethod"), ECDSA_SHA384)
    {
        return Err(form("it is not ECDSA with SHA-384 over Canonical XML 1.1"));
    }
    let reference = info.only(DSIG, "Reference").ok_or(form("it does not refer to exactly one thing"))?;
    if reference.attribute("", "URI") != Some("") {
        return Err(form("it is not over the whole document"));
    }
    let transforms = reference.only(DSIG, "Transforms").ok_or(form("it has no transforms"))?;
    let transforms: Vec<_> =
        transforms.elements().map(|one| one.attribute("", "Algorithm").unwrap_or("")).collect();
    if transforms != [ENVELOPED, C14N] || !algorithm(reference.only(DSIG, "DigestMethod"), SHA384) {
        return Err(form("it has other transforms or another digest than the usual"));
    }
    let bytes = |element: Option<&Element>, what| {
        let text: String = element.ok_or(form(what))?.text().split_ascii_whitespace().collect();
        BASE64.decode(text.as_bytes()).map_err(|_| form(what))
    };
    let digest = bytes(reference.only(DSIG, "DigestValue"), "it has no digest")?;
    let value = bytes(signature.only(DSIG, "SignatureValue"), "it has no value")?;
    let certificates = signature.only(DSIG, "KeyInfo").and_then(|info| info.only(DSIG, "X509Data"));
    let chain: Vec<Vec<u8>> = certificates
        .ok_or(form("it has no certificates"))?
        .named(DSIG, "X509Certificate")
        .map(|certificate| bytes(Some(certificate), "a certificate is not base64"))
        .collect::<Result<_, _>>()?;

    let path = verify_chain(&chain, roots, at)?;
    let signer = inspect(&path[0]).map_err(|_| form("the signer's certificate cannot be read"))?;
    let key = signer.public_key.as_ref().filter(|key| key.algorithm() == KeyAlgorithm::EcP384);
    let key = key.ok_or(form("the signer's key is not on P-384"))?;
    if !crypto::verify_p384_fixed(key.bare(), &info.canonical(&[root, signature], None), &value) {
        return Err(RimError::Signature);
    }
    if crypto::sha384(&root.canonical(&[], Some(signature)))[..] != digest[..] {
        return Err(RimError::Digest);
    }
    Ok((signer.subject.clone(), signer.not_after))
}

fn content(root: &Element) -> Result<Reference, RimError> {
    let wrong = |text: &str| RimError::Content(text.to_owned());
    if root.namespace != SWID || root.local() != "SoftwareIdentity" {
        return Err(wrong("it is not a SWID tag"));
    }
    let meta = root.only(SWID, "Meta").ok_or_else(|| wrong("there is not one Meta"))?;
    let said = |name: &str| {
        let value = meta.attribute("", name).filter(|value| plain(value));
        value.map(str::to_owned).ok_or_else(|| wrong(&format!("Meta has no usable {name}")))
    };
    let (product, version) = (said("product")?, said("colloquialVersion")?);
    let tag_id =
        root.attribute("", "tagId").filter(|id| plain(id)).ok_or_else(|| wrong("there is no tagId"))?;
    let payload = root.only(SWID, "Payload").ok_or_else(|| wrong("there is not one Payload"))?;
    let mut values = BTreeMap::new();
    for resource in payload.named(SWID, "Resource") {
        let attribute = |name: &str| resource.attribute("", name);
        if attribute("type") != Some("Measurement") {
            continue;
        }
        match attribute("active") {
            Some("True" | "true") => {}
            Some("False" | "false") => continue,
            _ => return Err(wrong("a measurement does not say whether it is active")),
        }
        let index = attribute("index").and_then(|index| index.parse::<u8>().ok());
        let index = index.ok_or_else(|| wrong("a measurement has no index"))?;
        let count = attribute("alternatives").and_then(|count| count.parse::<usize>().ok());
        let count = count.filter(|count| (1..=MAX_ALTERNATIVES).contains(count));
        let count =
            count.ok_or_else(|| wrong(&format!("measurement {index} has no number of alternatives")))?;
        let digests: Option<Vec<String>> = (0..count)
            .map(|at| {
                let digest = resource.attribute(SHA384_ATTRIBUTE, &format!("Hash{at}"))?;
                let good = digest.len() == 96 && digest.bytes().all(|digit| digit.is_ascii_hexdigit());
                good.then(|| digest.to_ascii_lowercase())
            })
            .collect();
        let digests = digests.ok_or_else(|| wrong(&format!("measurement {index} lacks a SHA-384 digest")))?;
        if values.insert(index, digests).is_some() {
            return Err(wrong(&format!("measurement {index} stands twice")));
        }
    }
    if values.is_empty() {
        return Err(wrong("no measurement is active"));
    }
    // The tag does not say whose the values are in a field of its own; versions of firmware are five bytes in hexadecimal.
    let parts: Vec<&str> = version.split('.').collect();
    let firmware = parts.len() == 5
        && parts.iter().all(|part| part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit()));
    let kind = if firmware { ReferenceKind::Firmware } else { ReferenceKind::Driver };
    Ok(Reference {
        kind,
        product,
        version,
        tag_id: tag_id.to_owned(),
        signer: String::new(),
        signer_expires: 0,
        values,
    })
}

fn plain(text: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    !text.is_empty() && text.len() <= 128 && text.bytes().all(good)
}

const MAX_ALTERNATIVES: usize = 16;

const SWID: &str = "http://standards.iso.org/iso/19770/-2/2015/schema.xsd";
const DSIG: &str = "http://www.w3.org/2000/09/xmldsig#";
const SHA384_ATTRIBUTE: &str = "http://www.w3.org/2001/04/xmlenc#sha384";
const C14N: &str = "http://www.w3.org/2006/12/xml-c14n11";
const ENVELOPED: &str = "http://www.w3.org/2000/09/xmldsig#enveloped-signature";
const ECDSA_SHA384: &str = "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384";
const SHA384: &str = "http://www.w3.org/2001/04/xmldsig-more#sha384";
