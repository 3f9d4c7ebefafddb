//! The web certificate of the bundle endpoint: two PEM files that something else renews.
//!
//! Both are read every few seconds and taken when they have changed and fit together. A renewal that has written one of
//! them so far is a moment in which they do not: the last good pair stays until they do.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bonafide_pki::digest::Sha256;
use bonafide_pki::tls::{Svid, SvidHolder};
use bonafide_pki::{KeyError, PrivateKey, pem};
use zeroize::Zeroizing;

/// How often the files are looked at.
pub const EVERY: Duration = Duration::from_secs(5);
/// The largest file that is read.
const MAX_FILE: u64 = 1 << 20;

/// Why a pair of files is not used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateFilesError {
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The certificates are not PEM, or there are none.
    #[error("{}: {what}", path.display())]
    Certificates {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The key cannot be used, or is not that of the certificate.
    #[error("{}: {source}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: KeyError,
    },
}

/// A certificate and its key on the disk, and the pair that is presented.
pub struct CertificateFiles {
    certificate_path: PathBuf,
    key_path: PathBuf,
    holder: SvidHolder,
    seen: [u8; 32],
}

impl CertificateFiles {
    /// Reads the pair for the first time.
    ///
    /// # Errors
    /// [`CertificateFilesError`].
    pub fn open(certificate_path: PathBuf, key_path: PathBuf) -> Result<Self, CertificateFilesError> {
        let mut files = Self { certificate_path, key_path, holder: SvidHolder::empty(), seen: [0; 32] };
        files.refresh()?;
        Ok(files)
    }

    /// What is presented.
    pub fn holder(&self) -> &SvidHolder {
        &self.holder
    }

    /// Takes the pair when it has changed, and says whether it has.
    ///
    /// # Errors
    /// The new pair cannot be used; the last good one stays.
    pub fn refresh(&mut self) -> Result<bool, CertificateFilesError> {
        let certificates = read(&self.certificate_path)?;
        let key = read(&self.key_path)?;
        let mut digest = Sha256::new();
        digest.update(&(certificates.len() as u64).to_be_bytes());
        digest.update(&certificates);
        digest.update(&key);
        let now = digest.finish();
        if now == self.seen {
            return Ok(false);
        }
        let wrong =
            |what: String| CertificateFilesError::Certificates { path: self.certificate_path.clone(), what };
        let blocks = pem::decode_all(&certificates).map_err(|error| wrong(error.to_string()))?;
        let chain: Vec<_> =
            blocks.into_iter().filter(|(label, _)| label == "CERTIFICATE").map(|(_, der)| der).collect();
        if chain.is_empty() {
            return Err(wrong("there is no certificate in it".to_owned()));
        }
        let broken = |source| CertificateFilesError::Key { path: self.key_path.clone(), source };
        let key = PrivateKey::from_pem(&key).map_err(broken)?;
        self.holder.set(Svid::new(chain, Arc::new(key)).map_err(broken)?);
        self.seen = now;
        Ok(true)
    }
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, CertificateFilesError> {
    let failed = |source| CertificateFilesError::Read { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(failed)?;
    // With room for a usual file, so that a key is not copied while the buffer grows.
    let mut content = Zeroizing::new(Vec::with_capacity(16 * 1024));
    file.take(MAX_FILE).read_to_end(&mut content).map_err(failed)?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (String, String) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    #[test]
    fn a_pair_that_does_not_fit_never_replaces_one_that_did() {
        let folder = tempfile::tempdir().unwrap();
        let (certificate, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
        let write = |path: &Path, text: &str| std::fs::write(path, text).unwrap();
        let (first, second) = (pair(), pair());
        write(&certificate, &first.0);
        assert!(CertificateFiles::open(certificate.clone(), key.clone()).is_err(), "there is no key yet");
        write(&key, &first.1);
        let mut files = CertificateFiles::open(certificate.clone(), key.clone()).unwrap();
        let presented =
            |files: &CertificateFiles| files.holder().current().unwrap().chain().next().unwrap().to_vec();
        let before = presented(&files);
        assert!(!files.refresh().unwrap(), "nothing has changed");

        write(&certificate, &second.0);
        let error = files.refresh().unwrap_err();
        assert!(matches!(error, CertificateFilesError::Key { .. }), "{error}");
        assert_eq!(presented(&files), before);
        for broken in [
            "",
            "-----BEGIN CERTIFICATE-----\nAA",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        ] {
            write(&certificate, broken);
            files.refresh().unwrap_err();
        }
        std::fs::remove_file(&certificate).unwrap();
        files.refresh().unwrap_err();
        assert_eq!(presented(&files), before);

        write(&certificate, &second.0);
        write(&key, &second.1);
        assert!(files.refresh().unwrap());
        assert_ne!(presented(&files), before);
    }
}
