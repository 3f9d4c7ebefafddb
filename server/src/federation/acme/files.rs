//! What outlives a restart: the account and the certificate, each with its key, in files that only the server's user can read.
//!
//! A file is written beside the former one and then takes its name, so that a crash leaves one of the two. One that
//! cannot be understood is as good as none: another account or certificate can be had.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::PathBuf;

use instant_acme::AccountCredentials;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::AcmeError;

/// An account of an ACME server.
#[derive(Deserialize, Serialize)]
pub(super) struct StoredAccount {
    pub(super) directory_url: String,
    pub(super) email: String,
    pub(super) credentials: AccountCredentials,
}

/// A certificate, its key and what they were ordered for.
#[derive(Deserialize, Serialize)]
pub(super) struct StoredCertificate {
    pub(super) directory_url: String,
    pub(super) domain_name: String,
    /// PKCS#8 in PEM.
    #[serde(with = "secret")]
    pub(super) key: Zeroizing<String>,
    /// PEM, leaf first.
    pub(super) chain: String,
}

mod secret {
    use serde::{Deserialize as _, Deserializer, Serializer};
    use zeroize::Zeroizing;

    pub(super) fn serialize<S: Serializer>(
        text: &Zeroizing<String>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Zeroizing<String>, D::Error> {
        String::deserialize(deserializer).map(Zeroizing::new)
    }
}

/// The folder.
pub(super) struct Files {
    folder: PathBuf,
}

impl Files {
    pub(super) fn open(folder: PathBuf) -> Result<Self, AcmeError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&folder);
        made.map_err(|source| AcmeError::File { doing: "create", path: folder.clone(), source })?;
        Ok(Self { folder })
    }

    pub(super) fn account(&self) -> Result<Option<StoredAccount>, AcmeError> {
        self.read(ACCOUNT)
    }

    pub(super) fn keep_account(&self, account: &StoredAccount) -> Result<(), AcmeError> {
        self.write(ACCOUNT, account)
    }

    pub(super) fn forget_account(&self) -> Result<(), AcmeError> {
        let path = self.folder.join(ACCOUNT);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(AcmeError::File { doing: "remove", path, source })
            }
            _ => Ok(()),
        }
    }

    pub(super) fn certificate(&self) -> Result<Option<StoredCertificate>, AcmeError> {
        self.read(CERTIFICATE)
    }

    pub(super) fn keep_certificate(&self, certificate: &StoredCertificate) -> Result<(), AcmeError> {
        self.write(CERTIFICATE, certificate)
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, AcmeError> {
        let path = self.folder.join(name);
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened,
        };
        // With room for a usual file, so that a key is not copied while the buffer grows.
        let mut text = Zeroizing::new(Vec::with_capacity(32 * 1024));
        let read = file.and_then(|file| file.take(MAX_FILE).read_to_end(&mut text));
        read.map_err(|source| AcmeError::File { doing: "read", path: path.clone(), source })?;
        Ok(serde_json::from_slice(&text)
            .inspect_err(|error| {
                tracing::warn!(path = %path.display(), %error, "the file is not understood and is made anew");
            })
            .ok())
    }

    fn write<T: Serialize>(&self, name: &str, content: &T) -> Result<(), AcmeError> {
        let (path, new) = (self.folder.join(name), self.folder.join(format!("{name}.new")));
        let written = (|| {
            let mut text = Zeroizing::new(Vec::with_capacity(32 * 1024));
            serde_json::to_writer_pretty(&mut *text, content)?;
            // A leftover of a crash could have another mode or be a link: never write into it.
            match fs::remove_file(&new) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            File::open(&self.folder)?.sync_all()
        })();
        written.map_err(|source| AcmeError::File { doing: "write", path, source })
    }
}

const ACCOUNT: &str = "account.json";
const CERTIFICATE: &str = "certificate.json";
/// The largest file that is read.
const MAX_FILE: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn what_was_kept_is_found_by_its_owner_alone_and_damage_counts_as_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::open(folder.path().join("bundle-acme")).unwrap();
        assert!(files.certificate().unwrap().is_none() && files.account().unwrap().is_none());
        files.forget_account().unwrap();
        let stored = |chain: &str| StoredCertificate {
            directory_url: "https://acme.test/directory".to_owned(),
            domain_name: "bundle.test".to_owned(),
            key: "key".to_owned().into(),
            chain: chain.to_owned(),
        };
        fs::write(files.folder.join("certificate.json.new"), "left by a crash").unwrap();
        files.keep_certificate(&stored("first")).unwrap();
        files.keep_certificate(&stored("second")).unwrap();
        let found = files.certificate().unwrap().unwrap();
        assert_eq!((found.chain.as_str(), found.key.as_str()), ("second", "key"));
        let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(files.folder.join(CERTIFICATE)), 0o600);
        assert_eq!(mode(files.folder.clone()), 0o700);
        assert_eq!(fs::read_dir(&files.folder).unwrap().count(), 1, "nothing is left beside it");
        fs::write(files.folder.join(CERTIFICATE), "{\"chain\": ").unwrap();
        assert!(files.certificate().unwrap().is_none());
    }
}
