//! Trust bundles and their authorities.

use bonafide_identity::{Bundle, JwtAuthority, Timestamp, X509Authority};

use crate::convert::{ConvertError, instant_or_never, trust_domain_from_wire};
use crate::spire::types::{self, BundleMask};

/// How the bytes of an authority are checked. This crate knows no crypto backend, so that the caller brings it; the
/// error is the end of the sentence that the client sees.
pub struct AuthorityChecks<'a> {
    /// Exactly one X.509 certificate, DER.
    pub x509: &'a dyn Fn(&[u8]) -> Result<(), String>,
    /// A SubjectPublicKeyInfo, DER, of an acceptable key.
    pub public_key: &'a dyn Fn(&[u8]) -> Result<(), String>,
}

/// The bundle for the wire: its trust domain always, the rest as the mask says (absent mask: everything).
#[must_use]
pub fn bundle_to_wire(bundle: &Bundle, mask: Option<&BundleMask>) -> types::Bundle {
    let mask = mask.unwrap_or(&ALL);
    let mut wire =
        types::Bundle { trust_domain: bundle.trust_domain.as_str().to_owned(), ..types::Bundle::default() };
    if mask.x509_authorities {
        wire.x509_authorities = x509_authorities_to_wire(&bundle.x509_authorities);
    }
    if mask.jwt_authorities {
        wire.jwt_authorities = jwt_authorities_to_wire(&bundle.jwt_authorities);
    }
    if mask.wit_authorities {
        wire.wit_authorities = wit_authorities_to_wire(&bundle.wit_authorities);
    }
    if mask.refresh_hint {
        wire.refresh_hint = i64::try_from(bundle.refresh_hint).unwrap_or(i64::MAX);
    }
    if mask.sequence_number {
        wire.sequence_number = bundle.sequence_number;
    }
    wire
}

/// Reads a bundle that a client wants to store. `tainted` and the WIT authorities are ignored.
///
/// # Errors
/// With SPIRE's text when the trust domain, an authority or the refresh hint is unusable.
pub fn bundle_from_wire(wire: &types::Bundle, checks: &AuthorityChecks<'_>) -> Result<Bundle, ConvertError> {
    let mut bundle = Bundle::empty(trust_domain_from_wire(&wire.trust_domain, TRUST_DOMAIN)?);
    apply_bundle_update(&mut bundle, wire, None, checks)?;
    Ok(bundle)
}

/// Writes the masked fields of a client's bundle into a stored one (absent mask: all fields). The trust domain and
/// the WIT authorities stay, and `tainted` flags are ignored.
///
/// # Errors
/// With SPIRE's text when a masked field is unusable; the bundle is then unchanged.
pub fn apply_bundle_update(
    bundle: &mut Bundle,
    wire: &types::Bundle,
    mask: Option<&BundleMask>,
    checks: &AuthorityChecks<'_>,
) -> Result<(), ConvertError> {
    // All of it is read even where the mask leaves a part out: SPIRE refuses a broken key in either case.
    let x509 = x509_authorities_from_wire(&wire.x509_authorities, checks, X509_AUTHORITY)?;
    let jwt = jwt_authorities_from_wire(&wire.jwt_authorities, checks, JWT_AUTHORITY)?;
    let refresh_hint = u64::try_from(wire.refresh_hint).map_err(|_| ConvertError::RefreshHint)?;
    let mask = mask.unwrap_or(&ALL);
    if mask.x509_authorities {
        bundle.x509_authorities = x509;
    }
    if mask.jwt_authorities {
        bundle.jwt_authorities = jwt;
    }
    if mask.refresh_hint {
        bundle.refresh_hint = refresh_hint;
    }
    if mask.sequence_number {
        bundle.sequence_number = wire.sequence_number;
    }
    Ok(())
}

/// Reads a bundle that a server sent, with `tainted` flags and WIT authorities. The bytes of certificates and keys
/// are not parsed here.
///
/// # Errors
/// When the trust domain is malformed, a certificate is empty, or a key lacks its ID.
pub fn bundle_from_server(wire: &types::Bundle) -> Result<Bundle, ConvertError> {
    let authority = |what, reason: &str| ConvertError::Authority { what, reason: reason.to_owned() };
    let mut bundle = Bundle::empty(trust_domain_from_wire(&wire.trust_domain, TRUST_DOMAIN)?);
    for certificate in &wire.x509_authorities {
        if certificate.asn1.is_empty() {
            return Err(authority(X509_AUTHORITY, "empty certificate"));
        }
        bundle
            .x509_authorities
            .push(X509Authority { certificate: certificate.asn1.clone(), tainted: certificate.tainted });
    }
    for key in &wire.jwt_authorities {
        if key.key_id.is_empty() {
            return Err(authority(JWT_AUTHORITY, MISSING_KEY_ID));
        }
        bundle.jwt_authorities.push(JwtAuthority {
            key_id: key.key_id.clone(),
            public_key: key.public_key.clone(),
            expires_at: instant_or_never(key.expires_at),
            tainted: key.tainted,
        });
    }
    for key in &wire.wit_authorities {
        if key.key_id.is_empty() {
            return Err(authority("unable to parse WIT authority", MISSING_KEY_ID));
        }
        bundle.wit_authorities.push(JwtAuthority {
            key_id: key.key_id.clone(),
            public_key: key.public_key.clone(),
            expires_at: instant_or_never(key.expires_at),
            tainted: key.tainted,
        });
    }
    // Only a hint, and only from the own server: nothing is lost by taking nonsense as "none given".
    bundle.refresh_hint = u64::try_from(wire.refresh_hint).unwrap_or(0);
    bundle.sequence_number = wire.sequence_number;
    Ok(bundle)
}

/// Reads X.509 authorities that a client gave; `tainted` is ignored. `what` begins the text of a refusal.
///
/// # Errors
/// When one is not accepted by the check.
pub fn x509_authorities_from_wire(
    wire: &[types::X509Certificate],
    checks: &AuthorityChecks<'_>,
    what: &'static str,
) -> Result<Vec<X509Authority>, ConvertError> {
    wire.iter()
        .map(|certificate| {
            (checks.x509)(&certificate.asn1).map_err(|reason| ConvertError::Authority { what, reason })?;
            Ok(X509Authority { certificate: certificate.asn1.clone(), tainted: false })
        })
        .collect()
}

/// Reads JWT authorities that a client gave; `tainted` is ignored. `what` begins the text of a refusal.
///
/// # Errors
/// When the key is not accepted by the check, or its ID is empty.
pub fn jwt_authorities_from_wire(
    wire: &[types::JwtKey],
    checks: &AuthorityChecks<'_>,
    what: &'static str,
) -> Result<Vec<JwtAuthority>, ConvertError> {
    wire.iter().map(|key| key_from_wire(&key.key_id, &key.public_key, key.expires_at, checks, what)).collect()
}

/// Reads WIT authorities that a client gave; `tainted` is ignored. `what` begins the text of a refusal.
///
/// # Errors
/// When the key is not accepted by the check, or its ID is empty.
pub fn wit_authorities_from_wire(
    wire: &[types::WitKey],
    checks: &AuthorityChecks<'_>,
    what: &'static str,
) -> Result<Vec<JwtAuthority>, ConvertError> {
    wire.iter().map(|key| key_from_wire(&key.key_id, &key.public_key, key.expires_at, checks, what)).collect()
}

/// X.509 authorities for the wire.
#[must_use]
pub fn x509_authorities_to_wire(authorities: &[X509Authority]) -> Vec<types::X509Certificate> {
    authorities
        .iter()
        .map(|authority| types::X509Certificate {
            asn1: authority.certificate.clone(),
            tainted: authority.tainted,
        })
        .collect()
}

/// JWT authorities for the wire.
#[must_use]
pub fn jwt_authorities_to_wire(authorities: &[JwtAuthority]) -> Vec<types::JwtKey> {
    authorities
        .iter()
        .map(|authority| types::JwtKey {
            public_key: authority.public_key.clone(),
            key_id: authority.key_id.clone(),
            expires_at: authority.expires_at.map_or(0, Timestamp::unix_seconds),
            tainted: authority.tainted,
        })
        .collect()
}

/// WIT authorities for the wire.
#[must_use]
pub fn wit_authorities_to_wire(authorities: &[JwtAuthority]) -> Vec<types::WitKey> {
    authorities
        .iter()
        .map(|authority| types::WitKey {
            public_key: authority.public_key.clone(),
            key_id: authority.key_id.clone(),
            expires_at: authority.expires_at.map_or(0, Timestamp::unix_seconds),
            tainted: authority.tainted,
        })
        .collect()
}

const TRUST_DOMAIN: &str = "invalid trust domain";
const X509_AUTHORITY: &str = "unable to parse X.509 authority";
const JWT_AUTHORITY: &str = "unable to parse JWT authority";
const MISSING_KEY_ID: &str = "missing key ID";

const ALL: BundleMask = BundleMask {
    x509_authorities: true,
    jwt_authorities: true,
    refresh_hint: true,
    sequence_number: true,
    wit_authorities: true,
};

fn key_from_wire(
    key_id: &str,
    public_key: &[u8],
    expires_at: i64,
    checks: &AuthorityChecks<'_>,
    what: &'static str,
) -> Result<JwtAuthority, ConvertError> {
    (checks.public_key)(public_key).map_err(|reason| ConvertError::Authority { what, reason })?;
    if key_id.is_empty() {
        return Err(ConvertError::Authority { what, reason: MISSING_KEY_ID.to_owned() });
    }
    Ok(JwtAuthority {
        key_id: key_id.to_owned(),
        public_key: public_key.to_vec(),
        expires_at: instant_or_never(expires_at),
        tainted: false,
    })
}
