//! Files with the certificates that an attestor trusts.

use std::path::PathBuf;

use bonafide_pki::pem;
use bonafide_pki::x509::{TrustRoots, inspect};

/// Why such files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RootsError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It does not hold certificates.
    #[error("{}: {reason}", path.display())]
    NotCertificates {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// All certificates of these files together.
pub(super) fn read(paths: &[PathBuf]) -> Result<TrustRoots, RootsError> {
    let mut certificates = Vec::new();
    for path in paths {
        let unusable = |reason: String| RootsError::NotCertificates { path: path.clone(), reason };
        let text = std::fs::read(path).map_err(|source| RootsError::Read { path: path.clone(), source })?;
        let blocks = pem::decode_all(&text).map_err(|error| unusable(error.to_string()))?;
        let before = certificates.len();
        for (label, der) in blocks {
            if label == "CERTIFICATE" {
                inspect(&der).map_err(|error| unusable(error.to_string()))?;
                certificates.push(der);
            }
        }
        if certificates.len() == before {
            return Err(unusable("no certificate found: give PEM certificates".to_owned()));
        }
    }
    TrustRoots::from_der(certificates.iter().map(Vec::as_slice)).map_err(|error| {
        RootsError::NotCertificates {
            path: paths.first().cloned().unwrap_or_default(),
            reason: error.to_string(),
        }
    })
}
