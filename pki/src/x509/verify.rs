//! Verifying a peer's X.509-SVID: path to a root of its trust domain, and the rules of the X509-SVID standard.
//!
//! Paths are built by rustls-webpki, without a DNS name and for any extended key usage (go-spiffe does the same; an
//! SVID is a client and a server certificate alike). What webpki leaves open is added here: the validity of the root
//! itself, the single URI, key usages of the leaf.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bonafide_identity::{IdError, SpiffeId, Timestamp, TrustDomain};
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeIdIter, VerifiedPath};

use super::X509Error;
use super::inspect::{CertificateInfo, inspect};
use crate::crypto;

/// The X.509 authorities of a trust domain, prepared for verification.
pub struct TrustRoots {
    anchors: Vec<TrustAnchor<'static>>,
    roots: Vec<Root>,
}

struct Root {
    der: Vec<u8>,
    not_before: Timestamp,
    not_after: Timestamp,
}

impl TrustRoots {
    /// Prepares DER certificates.
    ///
    /// # Errors
    /// [`X509Error::Malformed`] for the first that is not a certificate.
    pub fn from_der<'a>(certificates: impl IntoIterator<Item = &'a [u8]>) -> Result<Self, X509Error> {
        let mut prepared = Self { anchors: Vec::new(), roots: Vec::new() };
        for der in certificates {
            let info = inspect(der)?;
            let certificate = CertificateDer::from(der);
            let anchor = webpki::anchor_from_trusted_cert(&certificate)
                .map_err(|error| X509Error::Malformed(error.to_string()))?;
            prepared.anchors.push(anchor.to_owned());
            prepared.roots.push(Root {
                der: der.to_vec(),
                not_before: info.not_before,
                not_after: info.not_after,
            });
        }
        Ok(prepared)
    }

    /// The certificates as they were given.
    pub fn certificates(&self) -> impl Iterator<Item = &[u8]> {
        self.roots.iter().map(|root| &root.der[..])
    }

    /// The certificate that an anchor of ours was made from.
    fn root(&self, anchor: &TrustAnchor<'_>) -> Option<&Root> {
        let at = self.anchors.iter().position(|known| std::ptr::eq(known, anchor)).or_else(|| {
            self.anchors.iter().position(|known| {
                known.subject == anchor.subject
                    && known.subject_public_key_info == anchor.subject_public_key_info
            })
        })?;
        self.roots.get(at)
    }
}

impl fmt::Debug for TrustRoots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TrustRoots({} certificates)", self.roots.len())
    }
}

/// Why a chain of certificates is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// No certificate was presented.
    #[error("no certificate was presented")]
    Empty,
    /// More certificates than any real chain has.
    #[error("certificate chain has more than {MAX_CHAIN} certificates")]
    TooLong,
    /// A certificate cannot be read.
    #[error("certificate cannot be read: {0}")]
    Malformed(String),
    /// Not exactly one URI.
    #[error("certificate is not an X.509-SVID: it has {0} URIs instead of one SPIFFE ID")]
    UriCount(usize),
    /// The URI is not a SPIFFE ID.
    #[error("certificate is not an X.509-SVID: {0}")]
    SpiffeId(#[from] IdError),
    /// The URI names a trust domain alone, as authorities do.
    #[error("certificate is not a leaf X.509-SVID: its SPIFFE ID {0} has no path")]
    NoPath(SpiffeId),
    /// An authority where a leaf is needed.
    #[error("certificate is not a leaf X.509-SVID: it may sign certificates or CRLs")]
    Authority,
    /// There is no bundle for the trust domain.
    #[error("no trust bundle for trust domain {0}")]
    UnknownTrustDomain(TrustDomain),
    /// A certificate of the chain is over.
    #[error("certificate has expired")]
    Expired,
    /// A certificate of the chain has not begun.
    #[error("certificate is not valid yet: check the clocks of both sides")]
    NotYetValid,
    /// No path to an authority of the trust domain.
    #[error("certificate is not signed by a known authority of its trust domain")]
    UnknownAuthority,
    /// A signature in the chain is wrong.
    #[error("a signature in the certificate chain is wrong")]
    Signature,
    /// Name constraints, which cannot be applied to SPIFFE IDs.
    #[error("an authority of the chain has name constraints that cannot be applied to SPIFFE IDs")]
    NameConstraints,
    /// Any other fault of the path.
    #[error("certificate chain is not valid: {0}")]
    Path(String),
}

/// Verifies an X.509-SVID (leaf first) and gives its SPIFFE ID. `roots` gives the authorities of a trust domain.
///
/// # Errors
/// [`VerifyError`].
pub fn verify_svid_chain(
    chain: &[Vec<u8>],
    roots: &dyn Fn(&TrustDomain) -> Option<Arc<TrustRoots>>,
    now: Timestamp,
) -> Result<SpiffeId, VerifyError> {
    let chain: Vec<CertificateDer<'_>> = chain.iter().map(|der| CertificateDer::from(&der[..])).collect();
    let (leaf, intermediates) = chain.split_first().ok_or(VerifyError::Empty)?;
    verify_svid(leaf, intermediates, roots, now)
}

/// As [`verify_svid_chain`], on the types of the TLS library.
pub(crate) fn verify_svid(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    roots: &dyn Fn(&TrustDomain) -> Option<Arc<TrustRoots>>,
    now: Timestamp,
) -> Result<SpiffeId, VerifyError> {
    let id = leaf_id(leaf)?;
    let roots =
        roots(id.trust_domain()).ok_or_else(|| VerifyError::UnknownTrustDomain(id.trust_domain().clone()))?;
    path(leaf, intermediates, &roots, now, |_| ())?;
    Ok(id)
}

/// The SPIFFE ID of a leaf, by the rules of the X509-SVID standard (sections 2, 4, 5) for leaves. Nothing is verified.
pub(crate) fn leaf_id(leaf: &CertificateDer<'_>) -> Result<SpiffeId, VerifyError> {
    let info = inspect(leaf).map_err(|error| VerifyError::Malformed(error.to_string()))?;
    let [uri] = &info.uris[..] else { return Err(VerifyError::UriCount(info.uris.len())) };
    let id = SpiffeId::parse(uri)?;
    let usage = info.key_usage.unwrap_or_default();
    if info.is_ca || usage.certificate_sign || usage.crl_sign {
        return Err(VerifyError::Authority);
    }
    if id.path().is_empty() {
        return Err(VerifyError::NoPath(id));
    }
    Ok(id)
}

/// Verifies any chain (leaf first) against roots, whatever the leaf's names and extended key usages: for `x509pop`
/// with certificates of another PKI. Gives the whole path, leaf first, root last.
///
/// # Errors
/// [`VerifyError`].
pub fn verify_chain(
    chain: &[Vec<u8>],
    roots: &TrustRoots,
    now: Timestamp,
) -> Result<Vec<Vec<u8>>, VerifyError> {
    let chain: Vec<CertificateDer<'_>> = chain.iter().map(|der| CertificateDer::from(&der[..])).collect();
    let (leaf, intermediates) = chain.split_first().ok_or(VerifyError::Empty)?;
    path(leaf, intermediates, roots, now, |path| {
        let mut certificates = vec![leaf.to_vec()];
        certificates.extend(path.intermediate_certificates().map(|certificate| certificate.der().to_vec()));
        certificates.extend(roots.root(path.anchor()).map(|root| root.der.clone()));
        certificates
    })
}

fn path<T>(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    roots: &TrustRoots,
    now: Timestamp,
    found: impl FnOnce(&VerifiedPath<'_>) -> T,
) -> Result<T, VerifyError> {
    if intermediates.len() >= MAX_CHAIN {
        return Err(VerifyError::TooLong);
    }
    let leaf = EndEntityCert::try_from(leaf).map_err(|error| fault(&error))?;
    let seconds = u64::try_from(now.unix_seconds()).unwrap_or(0);
    let time = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
    // webpki takes an anchor as eternal; an expired authority must not vouch for anybody.
    let root_is_current = |path: &VerifiedPath<'_>| match roots.root(path.anchor()) {
        Some(root) if now.unix_seconds() > root.not_after.unix_seconds() => {
            Err(webpki::Error::CertExpired { time, not_after: time })
        }
        Some(root) if now < root.not_before => Err(webpki::Error::CertNotValidYet { time, not_before: time }),
        _ => Ok(()),
    };
    let path = leaf.verify_for_usage(
        crypto::chain_algorithms(),
        &roots.anchors,
        intermediates,
        time,
        AnyUsage,
        None,
        Some(&root_is_current),
    );
    path.map(|path| found(&path)).map_err(|error| fault(&error))
}

struct AnyUsage;

impl ExtendedKeyUsageValidator for AnyUsage {
    fn validate(&self, _: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        Ok(())
    }
}

fn fault(error: &webpki::Error) -> VerifyError {
    use webpki::Error as E;
    match error {
        E::CertExpired { .. } => VerifyError::Expired,
        E::CertNotValidYet { .. } => VerifyError::NotYetValid,
        E::UnknownIssuer => VerifyError::UnknownAuthority,
        E::InvalidSignatureForPublicKey | E::SignatureAlgorithmMismatch => VerifyError::Signature,
        E::CaUsedAsEndEntity => VerifyError::Authority,
        E::NameConstraintViolation => VerifyError::NameConstraints,
        other => VerifyError::Path(other.to_string()),
    }
}

impl CertificateInfo {
    /// Whether the certificate's validity includes `now`.
    pub fn is_current(&self, now: Timestamp) -> bool {
        self.not_before <= now && now.unix_seconds() <= self.not_after.unix_seconds()
    }
}

/// Real chains have up to four; webpki stops building paths at six intermediates.
const MAX_CHAIN: usize = 10;
