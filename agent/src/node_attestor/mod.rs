//! The agent's half of node attestation: proving to the server which node this is.
//!
//! An attestor opens an [`Attempt`] for each attestation: a payload, and answers to as many challenges as the server
//! likes. What an attempt needs (a token, a key) is read when it begins, so a renewed certificate or a new token file
//! is used without a restart.

pub mod http_challenge;
pub mod join_token;
pub mod k8s_psat;
pub mod oidc;
pub mod sshpop;
pub mod tpm_devid;
pub mod x509pop;

use std::path::PathBuf;

use async_trait::async_trait;
use bonafide_pki::KeyError;
use bonafide_pki::ssh::SshError;
use zeroize::Zeroizing;

use crate::tpm::TpmError;

/// One way to prove which node this is.
#[async_trait]
pub trait NodeAttestor: Send + Sync {
    /// The type that the server knows it by.
    fn kind(&self) -> &'static str;

    /// Gathers what one attestation needs.
    ///
    /// # Errors
    /// Something is missing or unusable; the text says what to do.
    async fn begin(&self) -> Result<Box<dyn Attempt>, NodeAttestError>;
}

/// One attestation.
pub trait Attempt: Send {
    /// What the server sees first.
    fn payload(&self) -> Zeroizing<Vec<u8>>;

    /// The answer to a challenge.
    ///
    /// # Errors
    /// The challenge cannot be understood or answered.
    fn respond(&mut self, challenge: &[u8]) -> Result<Vec<u8>, NodeAttestError>;
}

/// Why the node cannot be attested from this side.
#[derive(Debug, thiserror::Error)]
pub enum NodeAttestError {
    /// There is no token.
    #[error("there is no join token: create one at the server and put it into node_attestor.join_token")]
    NoToken,
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A file does not hold what it should.
    #[error("{path} {problem}")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A file does not hold a key that can be used.
    #[error("{path} holds no usable private key")]
    Key {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: KeyError,
    },
    /// A file does not hold what OpenSSH writes.
    #[error("cannot use {path}")]
    Ssh {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: SshError,
    },
    /// A file does not hold what a TPM makes.
    #[error("{path} is no public area of a key as a TPM makes it")]
    Blob {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: bonafide_pki::tpm::TpmError,
    },
    /// The TPM does not do its part.
    #[error(transparent)]
    Tpm(#[from] TpmError),
    /// The TPM has no certificate that says who made it.
    #[error(
        "the TPM has no certificate of its RSA endorsement key at the index 0x01c00002: write the manufacturer's there"
    )]
    NoEndorsementCertificate {
        /// What the TPM said.
        #[source]
        source: TpmError,
    },
    /// The port for the server's call cannot be had.
    #[error("cannot listen on port {port} for the server's challenge")]
    Listen {
        /// The port.
        port: u16,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The token cannot be obtained.
    #[error("cannot get a token from {url}: {problem}")]
    Token {
        /// Where it was asked for, without query.
        url: String,
        /// What went wrong.
        problem: String,
    },
    /// The key cannot sign.
    #[error("cannot sign the server's challenge")]
    Sign(#[source] KeyError),
    /// The server asks for something that this attestor does not do.
    #[error("cannot answer the server's challenge: {0}")]
    Challenge(&'static str),
}

pub(crate) fn read(path: &std::path::Path) -> Result<Zeroizing<Vec<u8>>, NodeAttestError> {
    let content = std::fs::read(path)
        .map_err(|source| NodeAttestError::Unreadable { path: path.to_owned(), source })?;
    Ok(Zeroizing::new(content))
}
