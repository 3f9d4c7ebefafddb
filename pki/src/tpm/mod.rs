//! TPM 2.0: the structures that prove where a key lives, and the credential that only one TPM can open.
//!
//! Section numbers are those of the TPM 2.0 Library specification of the Trusted Computing Group, parts 1 (architecture) and 2
//! (structures). Only what attestation needs is read: RSA and elliptic-curve keys, and the statement of `TPM2_Certify`. What is
//! read is borrowed from nobody, has no bytes left over, and keeps its bytes, since names are digests of them.

mod credential;
mod structures;

pub use credential::{Credential, make_credential};
pub use structures::{
    Attributes, CertifyStatement, Hash, Kind, Public, Scheme, Signature, attributes, template,
};

use crate::key::KeyError;
use crate::x509::X509Error;

/// Why bytes of a TPM, or of somebody who claims to have one, are not accepted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TpmError {
    /// Not the structure that it should be.
    #[error("it is malformed: {0}")]
    Malformed(&'static str),
    /// Well-formed, and nothing that is used here.
    #[error("{0}")]
    Unsupported(&'static str),
    /// A key that is not what it would have to be.
    #[error("the key {0}")]
    Unfit(&'static str),
    /// The key policy does not allow the key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A certificate cannot be read.
    #[error(transparent)]
    Certificate(#[from] X509Error),
    /// The signature of a statement is wrong.
    #[error("the signature is not one of the attestation key")]
    Signature,
    /// The statement is about another key.
    #[error("the certified key is another one")]
    OtherKey,
}

/// Whether a statement of `TPM2_Certify`, signed by `attestation_key`, says that `key` is in the same TPM. What the attestation key is,
/// and whether it is in a TPM at all, is not looked at: see [`Public::is_attestation_key`] and [`make_credential`].
///
/// # Errors
/// [`TpmError`]: it does not.
pub fn verify_certification(
    attestation_key: &Public,
    key: &Public,
    statement: &[u8],
    signature: &[u8],
) -> Result<(), TpmError> {
    let signature = Signature::parse(signature)?;
    if Some(signature.scheme) != attestation_key.scheme() {
        return Err(TpmError::Signature);
    }
    if !signature.verify(&attestation_key.key()?, statement) {
        return Err(TpmError::Signature);
    }
    if CertifyStatement::parse(statement)?.name == key.name() { Ok(()) } else { Err(TpmError::OtherKey) }
}

/// Whether a certificate may be one of an endorsement key: its extended key usages, where it has any, name that purpose
/// (TCG EK Credential Profile, 3.5.16).
///
/// # Errors
/// [`TpmError::Certificate`].
pub fn may_certify_endorsement_key(certificate: &[u8]) -> Result<bool, TpmError> {
    const PURPOSE: &str = "2.23.133.8.1";
    Ok(crate::x509::allows_purpose(certificate, PURPOSE)?)
}
