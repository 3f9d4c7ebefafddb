//! Keys in one JSON file, in the form that SPIRE's disk key manager uses: `{"keys":{"<id>":"<base64 PKCS#8>"}}`.
//!
//! The file is replaced as a whole: temporary file with mode 0600, written, flushed to the device, renamed over the
//! old one, directory flushed. The new state counts only after that, so a failed write leaves the old keys in the
//! file and in memory. The file is read once, at the start: one process owns it.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use data_encoding::BASE64;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde::ser::SerializeMap as _;
use serde::{Deserialize, Serialize, Serializer};
use zeroize::Zeroizing;

use super::{KeyManager, checked_id, off_thread, signer};
use crate::key::{KeyError, KeyType, PrivateKey, Signer};

type Keys = BTreeMap<String, Arc<PrivateKey>>;

/// Keeps keys in a file that only its owner can read.
pub struct Disk {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    /// Held while the file is written, so that file and memory change together.
    keys: Mutex<Keys>,
}

impl Disk {
    /// Opens the key file, or starts without keys when there is none. The folder is created (0700) when missing.
    /// Blocks on file access.
    ///
    /// # Errors
    /// [`KeyError::File`] when others can read the file or its content is broken; it is left as it is.
    /// [`KeyError::Io`] when it cannot be read.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, KeyError> {
        let path = path.into();
        let folder = folder(&path);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(|source| io_error(&path, "could not create its folder", source))?;
        let keys = read(&path)?;
        Ok(Self { inner: Arc::new(Inner { path, keys: Mutex::new(keys) }) })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Keys> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what `change` makes of the keys, and makes it current once it is on the device.
    fn change(&self, change: impl FnOnce(&mut Keys)) -> Result<(), KeyError> {
        let mut current = self.lock();
        let mut next = current.clone();
        change(&mut next);
        match write(&self.path, &next) {
            Ok(()) => {
                *current = next;
                Ok(())
            }
            Err(failure) => {
                if failure.replaced {
                    // The new keys stand in the file although nobody may use them: put the old ones back. When that
                    // fails too, the first failure is still the one to report.
                    let _ = write(&self.path, &current);
                }
                Err(io_error(
                    &self.path,
                    "could not be written; the keys in it are unchanged",
                    failure.source,
                ))
            }
        }
    }
}

#[async_trait]
impl KeyManager for Disk {
    async fn generate(&self, id: &str, kind: KeyType) -> Result<Arc<dyn Signer>, KeyError> {
        let id = checked_id(id)?;
        let inner = self.inner.clone();
        off_thread(move || {
            let key = Arc::new(PrivateKey::generate(kind)?);
            inner.change(|keys| {
                keys.insert(id, key.clone());
            })?;
            Ok(key as Arc<dyn Signer>)
        })
        .await
    }

    async fn key(&self, id: &str) -> Result<Option<Arc<dyn Signer>>, KeyError> {
        let inner = self.inner.clone();
        let id = id.to_owned();
        // Off the async threads because the lock is held while another key is written.
        off_thread(move || Ok(inner.lock().get(&id).map(signer))).await
    }

    async fn ids(&self) -> Result<Vec<String>, KeyError> {
        let inner = self.inner.clone();
        off_thread(move || Ok(inner.lock().keys().cloned().collect())).await
    }

    async fn remove(&self, id: &str) -> Result<(), KeyError> {
        let inner = self.inner.clone();
        let id = id.to_owned();
        off_thread(move || {
            if !inner.lock().contains_key(&id) {
                return Ok(());
            }
            inner.change(|keys| {
                keys.remove(&id);
            })
        })
        .await
    }
}

fn read(path: &Path) -> Result<Keys, KeyError> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Keys::new()),
        Err(source) => return Err(io_error(path, "could not be opened", source)),
    };
    let metadata = file.metadata().map_err(|source| io_error(path, "could not be examined", source))?;
    let mode = metadata.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(file_error(
            path,
            format!(
                "mode {mode:04o} lets other users read the private keys: chmod 0600, and replace the keys if \
                     somebody may have read them"
            ),
        ));
    }
    let size = metadata.len();
    if size > MAX_FILE_BYTES {
        return Err(file_error(path, format!("{size} bytes is too large for a key file")));
    }
    let mut text = Zeroizing::new(Vec::with_capacity(size as usize + 1));
    file.read_to_end(&mut text).map_err(|source| io_error(path, "could not be read", source))?;
    let stored: Stored = serde_json::from_slice(&text).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        // The error's own text may quote what it found, which may be a key.
        file_error(
            path,
            format!(
                "is not a key file (line {line}, column {column}): restore it from a backup, or move \
                                  it away to start with new keys"
            ),
        )
    })?;
    stored
        .keys
        .0
        .into_iter()
        .map(|(id, encoded)| {
            let broken = |what: &dyn std::fmt::Display| {
                file_error(
                    path,
                    format!(
                        "key {id:?}: {what}: restore it from a backup, or move it away to start \
                                          with new keys"
                    ),
                )
            };
            let der = BASE64.decode(encoded.as_bytes()).map_err(|_| broken(&"is not base64"))?;
            let key = PrivateKey::from_pkcs8_der(&Zeroizing::new(der)).map_err(|error| broken(&error))?;
            Ok((id.clone(), Arc::new(key)))
        })
        .collect()
}

/// A write that failed before or after the new file took the place of the old one.
struct WriteFailure {
    replaced: bool,
    source: io::Error,
}

impl From<io::Error> for WriteFailure {
    fn from(source: io::Error) -> Self {
        Self { replaced: false, source }
    }
}

fn write(path: &Path, keys: &Keys) -> Result<(), WriteFailure> {
    let stored = StoredRef { keys: Encoded(keys) };
    let mut text = Zeroizing::new(Vec::with_capacity(256 + keys.len() * 4096));
    serde_json::to_writer(&mut *text, &stored).map_err(io::Error::other)?;

    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    // A leftover of a crash could have another mode or be a link: never write into it.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&new, path)
    })();
    if let Err(source) = written {
        let _ = fs::remove_file(&new);
        return Err(source.into());
    }
    let flushed = File::open(folder(path)).and_then(|folder| folder.sync_all());
    flushed.map_err(|source| WriteFailure { replaced: true, source })
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

fn file_error(path: &Path, problem: String) -> KeyError {
    KeyError::File { path: path.display().to_string(), problem }
}

fn io_error(path: &Path, doing: &'static str, source: io::Error) -> KeyError {
    KeyError::Io { path: path.display().to_string(), doing, source }
}

#[derive(Deserialize)]
struct Stored {
    keys: StoredKeys,
}

/// IDs with base64, wiped when dropped. An ID that occurs twice is refused: one of the keys would be lost.
struct StoredKeys(BTreeMap<String, Zeroizing<String>>);

impl<'de> Deserialize<'de> for StoredKeys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = StoredKeys;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object of base64 strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<StoredKeys, A::Error> {
                let mut keys = BTreeMap::new();
                while let Some((id, encoded)) = map.next_entry::<String, String>()? {
                    if keys.insert(id, Zeroizing::new(encoded)).is_some() {
                        return Err(de::Error::custom("a key ID occurs twice"));
                    }
                }
                Ok(StoredKeys(keys))
            }
        }
        deserializer.deserialize_map(Keys)
    }
}

#[derive(Serialize)]
struct StoredRef<'a> {
    keys: Encoded<'a>,
}

struct Encoded<'a>(&'a Keys);

impl Serialize for Encoded<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (id, key) in self.0 {
            map.serialize_entry(id, Zeroizing::new(BASE64.encode(&key.expose_pkcs8())).as_str())?;
        }
        map.end()
    }
}

/// Far above a hundred RSA keys.
const MAX_FILE_BYTES: u64 = 4 << 20;
