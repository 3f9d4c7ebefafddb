//! X.509-SVIDs: requests, issuing, reading, verifying (SPIFFE X509-SVID standard, RFC 5280).

mod csr;
pub(crate) mod inspect;
mod issue;
mod name;
mod profile;
pub(crate) mod verify;

pub use csr::{CsrError, VerifiedCsr, agent_csr, ca_csr, csr_public_key_unverified, web_csr, workload_csr};
pub use inspect::{CertificateInfo, KeyUsage, allows_purpose, inspect, split_certificates, twin};
pub use issue::{CaIssuer, X509Issuer, acme_challenge_certificate, self_signed_ca};
pub use profile::{CaProfile, CaSubject, LeafProfile, Subject};
pub use verify::{TrustRoots, VerifyError, verify_chain, verify_svid_chain};

use crate::crypto;
use crate::key::KeyError;

/// Why a certificate could not be issued or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum X509Error {
    /// The bytes are not a certificate.
    #[error("malformed certificate: {0}")]
    Malformed(String),
    /// The certificate cannot be used as the authority that signs SVIDs.
    #[error("certificate authority refused: {0}")]
    Authority(String),
    /// What was asked for cannot be issued.
    #[error("certificate not issued: {0}")]
    Profile(String),
    /// The key is not usable.
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// SHA-1 of a DER certificate: how `x509pop` names certificates.
pub fn sha1_fingerprint(der: &[u8]) -> [u8; 20] {
    crypto::sha1(der)
}
