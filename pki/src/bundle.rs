//! Trust bundles as documents: the SPIFFE bundle format (SPIFFE Trust Domain and Bundle standard, section 4), the
//! key sets of the Workload API, and PEM.

use bonafide_identity::{Bundle, JwtAuthority, TrustDomain, X509Authority};
use data_encoding::BASE64;
use serde::{Deserialize, Serialize};
use serde_json::Serializer;
use serde_json::ser::PrettyFormatter;

use crate::jwk::{Jwk, JwkError, jwk_to_public_key, public_key_to_jwk};
use crate::key::PublicKey;
use crate::pem;
use crate::x509::{X509Error, inspect};

/// Why a document is not a trust bundle.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BundleError {
    /// More bytes than any real bundle has.
    #[error("bundle has more than {MAX_DOCUMENT_BYTES} bytes")]
    TooLarge,
    /// More keys than any real trust domain publishes.
    #[error("bundle has more than {MAX_PUBLISHED_KEYS} keys")]
    TooManyKeys,
    /// Not JSON of this shape.
    #[error("bundle is not a SPIFFE bundle document: {0}")]
    Json(#[from] serde_json::Error),
    /// Not PEM.
    #[error("bundle is not PEM: {0}")]
    Pem(#[from] pem::PemError),
    /// A PEM text without certificates.
    #[error("bundle has no certificates")]
    Empty,
    /// A PEM block that is something else.
    #[error("bundle has a PEM block {0:?} among the certificates")]
    Label(String),
    /// An X.509 key without exactly one certificate.
    #[error(
        "bundle key {index}: an x509-svid key must have exactly one certificate in x5c, this one has {count}"
    )]
    CertificateCount {
        /// Its place in `keys`, from 0.
        index: usize,
        /// How many there are.
        count: usize,
    },
    /// A certificate that cannot be read.
    #[error("bundle key {index}: {source}")]
    Certificate {
        /// Its place, from 0.
        index: usize,
        /// What is wrong.
        source: X509Error,
    },
    /// A certificate that is not base64.
    #[error("bundle key {0}: x5c is not base64")]
    NotBase64(usize),
    /// A token key without key ID.
    #[error("bundle key {0}: a token key must have a kid")]
    KeyIdMissing(usize),
    /// Two token keys with the same key ID.
    #[error("bundle has two keys with kid {0:?}")]
    DuplicateKeyId(String),
    /// A token key that cannot be used.
    #[error("bundle key {index}: {source}")]
    Key {
        /// Its place in `keys`, from 0.
        index: usize,
        /// What is wrong.
        source: JwkError,
    },
}

#[derive(Serialize, Deserialize)]
struct Document {
    keys: Vec<Jwk>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    spiffe_sequence: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    spiffe_refresh_hint: Option<u64>,
}

/// The SPIFFE bundle document: X.509, JWT and WIT authorities, sequence number, and the refresh hint in seconds when
/// there is one. Authorities that cannot be read are left out, with a warning in the log.
pub fn to_spiffe_json(bundle: &Bundle) -> String {
    let trust_domain = &bundle.trust_domain;
    let mut keys: Vec<Jwk> = Vec::new();
    for authority in &bundle.x509_authorities {
        match inspect(&authority.certificate) {
            Ok(info) => {
                // The numbers of the key repeat what the certificate says; a key that our policy does not know
                // travels in the certificate alone.
                let key = info.public_key.as_ref().map(public_key_to_jwk).unwrap_or_default();
                keys.push(Jwk {
                    key_use: Some(X509_USE.to_owned()),
                    x5c: Some(vec![BASE64.encode(&authority.certificate)]),
                    ..key
                });
            }
            Err(error) => tracing::warn!(%trust_domain, %error, "X.509 authority is not usable"),
        }
    }
    let mut document =
        Document { keys, spiffe_sequence: Some(bundle.sequence_number), spiffe_refresh_hint: None };
    document.keys.extend(token_keys(&bundle.jwt_authorities, Some(JWT_USE)));
    document.keys.extend(token_keys(&bundle.wit_authorities, Some(WIT_USE)));
    document.spiffe_refresh_hint = Some(bundle.refresh_hint).filter(|hint| *hint > 0);
    String::from_utf8(pretty(&document)).expect("JSON is UTF-8")
}

/// A bundle as its own trust domain published it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishedBundle {
    /// The bundle; its refresh hint is 0 also where the document has none.
    pub bundle: Bundle,
    /// The refresh hint in seconds; `None` when the document does not say one, which asks for another pace than 0 does.
    pub refresh_hint: Option<u64>,
}

/// Reads a SPIFFE bundle document, as [`from_spiffe_json`], and keeps what only the poller of an endpoint wants to know.
///
/// # Errors
/// [`BundleError`].
pub fn published(trust_domain: &TrustDomain, document: &[u8]) -> Result<PublishedBundle, BundleError> {
    let document = read(document)?;
    if document.keys.len() > MAX_PUBLISHED_KEYS {
        return Err(BundleError::TooManyKeys);
    }
    let refresh_hint = document.spiffe_refresh_hint;
    Ok(PublishedBundle { bundle: from_document(trust_domain, &document)?, refresh_hint })
}

/// Reads a SPIFFE bundle document. Keys with another `use`, or of a family that the standard does not name, are ignored
/// as the standard asks; keys that are meant for us and broken are refused.
///
/// # Errors
/// [`BundleError`].
pub fn from_spiffe_json(trust_domain: &TrustDomain, document: &[u8]) -> Result<Bundle, BundleError> {
    from_document(trust_domain, &read(document)?)
}

fn from_document(trust_domain: &TrustDomain, document: &Document) -> Result<Bundle, BundleError> {
    let mut bundle = Bundle::empty(trust_domain.clone());
    bundle.sequence_number = document.spiffe_sequence.unwrap_or(0);
    bundle.refresh_hint = document.spiffe_refresh_hint.unwrap_or(0);
    for (index, key) in document.keys.iter().enumerate() {
        match key.key_use.as_deref() {
            Some(X509_USE) => bundle.x509_authorities.push(x509_authority(index, key)?),
            Some(JWT_USE) => bundle.jwt_authorities.extend(token_authority(index, key)?),
            Some(WIT_USE) => bundle.wit_authorities.extend(token_authority(index, key)?),
            _ => {}
        }
    }
    bundle.x509_authorities = without_repeats(bundle.x509_authorities);
    unique(&bundle.jwt_authorities)?;
    unique(&bundle.wit_authorities)?;
    Ok(bundle)
}

/// The JWT key set of the Workload API: no `use`, ordered by key ID, indented by four spaces.
pub fn jwks_for_workload(authorities: &[JwtAuthority]) -> Vec<u8> {
    key_set(authorities, None)
}

/// The WIT key set of the Workload API, in the same form.
pub fn wit_jwks(authorities: &[JwtAuthority]) -> Vec<u8> {
    key_set(authorities, None)
}

/// Reads a JWK set of token keys, whatever their `use`: the other side of [`jwks_for_workload`].
///
/// # Errors
/// [`BundleError`].
pub fn from_jwks(document: &[u8]) -> Result<Vec<JwtAuthority>, BundleError> {
    let document = read(document)?;
    let mut authorities = Vec::new();
    for (index, key) in document.keys.iter().enumerate() {
        authorities.extend(token_authority(index, key)?);
    }
    unique(&authorities)?;
    Ok(authorities)
}

/// The X.509 authorities as PEM.
pub fn to_pem(bundle: &Bundle) -> String {
    bundle.x509_authorities.iter().map(|authority| pem::encode(CERTIFICATE, &authority.certificate)).collect()
}

/// A bundle of the X.509 authorities in a PEM text.
///
/// # Errors
/// [`BundleError`], also when there is no certificate.
pub fn from_pem(trust_domain: &TrustDomain, text: &[u8]) -> Result<Bundle, BundleError> {
    if text.len() > MAX_DOCUMENT_BYTES {
        return Err(BundleError::TooLarge);
    }
    let mut bundle = Bundle::empty(trust_domain.clone());
    for (index, (label, certificate)) in pem::decode_all(text)?.into_iter().enumerate() {
        if label != CERTIFICATE {
            return Err(BundleError::Label(label));
        }
        inspect(&certificate).map_err(|source| BundleError::Certificate { index, source })?;
        bundle.x509_authorities.push(X509Authority { certificate, tainted: false });
    }
    if bundle.x509_authorities.is_empty() {
        return Err(BundleError::Empty);
    }
    bundle.x509_authorities = without_repeats(bundle.x509_authorities);
    Ok(bundle)
}

fn read(document: &[u8]) -> Result<Document, BundleError> {
    if document.len() > MAX_DOCUMENT_BYTES {
        return Err(BundleError::TooLarge);
    }
    Ok(serde_json::from_slice(document)?)
}

fn x509_authority(index: usize, key: &Jwk) -> Result<X509Authority, BundleError> {
    let [encoded] = key.x5c.as_deref().unwrap_or_default() else {
        let count = key.x5c.as_ref().map_or(0, Vec::len);
        return Err(BundleError::CertificateCount { index, count });
    };
    let certificate = BASE64.decode(encoded.as_bytes()).map_err(|_| BundleError::NotBase64(index))?;
    inspect(&certificate).map_err(|source| BundleError::Certificate { index, source })?;
    Ok(X509Authority { certificate, tainted: false })
}

/// The authority of a token key; nothing for a family or curve that we do not support.
fn token_authority(index: usize, key: &Jwk) -> Result<Option<JwtAuthority>, BundleError> {
    let key_id = key.kid.clone().filter(|id| !id.is_empty()).ok_or(BundleError::KeyIdMissing(index))?;
    match jwk_to_public_key(key) {
        Ok(public) => {
            let public_key = public.spki_der().to_vec();
            Ok(Some(JwtAuthority { key_id, public_key, expires_at: None, tainted: false }))
        }
        Err(error @ JwkError::Unsupported { .. }) => {
            tracing::warn!(key_id, %error, "token key of a bundle is ignored");
            Ok(None)
        }
        Err(source) => Err(BundleError::Key { index, source }),
    }
}

fn without_repeats(authorities: Vec<X509Authority>) -> Vec<X509Authority> {
    let mut kept: Vec<X509Authority> = Vec::with_capacity(authorities.len());
    for authority in authorities {
        if !kept.iter().any(|known| known.certificate == authority.certificate) {
            kept.push(authority);
        }
    }
    kept
}

fn unique(authorities: &[JwtAuthority]) -> Result<(), BundleError> {
    let mut ids: Vec<&str> = authorities.iter().map(|authority| authority.key_id.as_str()).collect();
    ids.sort_unstable();
    match ids.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(BundleError::DuplicateKeyId(pair[0].to_owned())),
        None => Ok(()),
    }
}

fn key_set(authorities: &[JwtAuthority], key_use: Option<&str>) -> Vec<u8> {
    let keys = token_keys(authorities, key_use);
    pretty(&Document { keys, spiffe_sequence: None, spiffe_refresh_hint: None })
}

fn token_keys(authorities: &[JwtAuthority], key_use: Option<&str>) -> Vec<Jwk> {
    let mut keys: Vec<Jwk> = authorities
        .iter()
        .filter_map(|authority| match PublicKey::from_spki_der(&authority.public_key) {
            Ok(key) => Some(Jwk {
                key_use: key_use.map(str::to_owned),
                kid: Some(authority.key_id.clone()),
                ..public_key_to_jwk(&key)
            }),
            Err(error) => {
                tracing::warn!(key_id = authority.key_id, %error, "token authority is not usable");
                None
            }
        })
        .collect();
    keys.sort_by(|a, b| a.kid.cmp(&b.kid));
    keys
}

fn pretty(document: &Document) -> Vec<u8> {
    let mut out = Vec::with_capacity(1024);
    let mut serializer = Serializer::with_formatter(&mut out, PrettyFormatter::with_indent(b"    "));
    document.serialize(&mut serializer).expect("strings and numbers always serialize into memory");
    out
}

const X509_USE: &str = "x509-svid";
const JWT_USE: &str = "jwt-svid";
const WIT_USE: &str = "wit-svid";
const CERTIFICATE: &str = "CERTIFICATE";

/// The longest bundle document that is read: thousands of authorities. A bundle comes from a peer.
pub const MAX_DOCUMENT_BYTES: usize = 4 << 20;

/// How many keys of all uses the bundle of a peer may have: each is stored, compared, and handed to agents and workloads.
pub const MAX_PUBLISHED_KEYS: usize = 1024;
