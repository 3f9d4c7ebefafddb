//! `agent-data.json`: the agent's own SVID and the bundle, kept over restarts.
//!
//! The layout is SPIRE's, so a data folder can change hands: lists of base64 of PEM text. Private keys are not in it; they
//! are in the key manager's file. Each write goes to a new file that is made durable before it takes the name, so a
//! crash leaves the old state or the new one.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use bonafide_identity::Timestamp;
use bonafide_pki::pem;
use data_encoding::BASE64;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// What is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AgentData {
    /// The agent's chain, DER, leaf first; empty when it has none.
    pub svid: Vec<Vec<u8>>,
    /// The X.509 authorities of the own trust domain, DER.
    pub bundle: Vec<Vec<u8>>,
    /// Whether the agent may attest again.
    pub reattestable: bool,
    /// What has been tried since the agent last knew its server.
    pub attempts: Attempts,
}

/// Attempts to become an agent, counted over restarts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attempts {
    /// How many.
    pub count: u32,
    /// Since when, to the second.
    pub since: Option<Timestamp>,
}

impl Attempts {
    /// One more.
    #[must_use]
    pub fn one_more(self, now: Timestamp) -> Self {
        let now = Timestamp::from_unix_seconds(now.unix_seconds());
        Self { count: self.count.saturating_add(1), since: self.since.or(Some(now)) }
    }
}

/// Why the state cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system refuses.
    #[error("cannot {step} {path}")]
    Io {
        /// What was tried.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The file is not what was written.
    #[error("{path} is damaged ({problem}): restore it, or remove it to attest this node anew")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

/// The file.
#[derive(Debug, Clone)]
pub struct DataFile {
    path: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct Document {
    #[serde(default)]
    svid: Option<Vec<String>>,
    #[serde(default)]
    bundle: Option<Vec<String>>,
    #[serde(default)]
    reattestable: bool,
    // Values, for what other agents write there must not cost the rest.
    #[serde(default)]
    bootstrap_start_time: serde_json::Value,
    #[serde(default)]
    connection_attempts: serde_json::Value,
}

impl DataFile {
    /// The file in this folder, which is created when it is missing.
    ///
    /// # Errors
    /// The folder cannot be created.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(io("create", folder))?;
        Ok(Self { path: folder.join(FILE) })
    }

    /// What is kept; nothing when there is no file.
    ///
    /// # Errors
    /// The file cannot be read, or is damaged.
    pub fn load(&self) -> Result<AgentData, StoreError> {
        match std::fs::read(&self.path) {
            Ok(content) => {
                parse(&content).map_err(|problem| StoreError::Damaged { path: self.path.clone(), problem })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(AgentData::default()),
            Err(error) => Err(io("read", &self.path)(error)),
        }
    }

    /// Replaces what is kept. Durable when this returns.
    ///
    /// # Errors
    /// The file cannot be written; what was kept before still is.
    pub fn store(&self, data: &AgentData) -> Result<(), StoreError> {
        let encode = |certificates: &[Vec<u8>]| {
            certificates.iter().map(|der| BASE64.encode(pem::encode(CERTIFICATE, der).as_bytes())).collect()
        };
        let document = Document {
            svid: Some(encode(&data.svid)),
            bundle: Some(encode(&data.bundle)),
            reattestable: data.reattestable,
            bootstrap_start_time: data
                .attempts
                .since
                .and_then(rfc3339)
                .unwrap_or_else(|| NEVER.to_owned())
                .into(),
            connection_attempts: data.attempts.count.into(),
        };
        let content = serde_json::to_vec(&document).expect("lists of texts are JSON");
        let fresh = self.path.with_extension("json.new");
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&fresh)
            .map_err(io("create", &fresh))?;
        file.write_all(&content).and_then(|()| file.sync_all()).map_err(io("write", &fresh))?;
        std::fs::rename(&fresh, &self.path).map_err(io("replace", &self.path))?;
        let folder = self.path.parent().unwrap_or(Path::new("."));
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(io("write", folder))
    }
}

/// Reads the content of `agent-data.json`.
///
/// # Errors
/// What is wrong with it, as text.
pub fn parse(content: &[u8]) -> Result<AgentData, String> {
    // Through a map: a structure would be read from a list as well.
    let members: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(content).map_err(|error| error.to_string())?;
    let document =
        Document::deserialize(serde_json::Value::Object(members)).map_err(|error| error.to_string())?;
    let decode = |name: &str, items: Option<Vec<String>>| {
        let mut certificates = Vec::new();
        for item in items.unwrap_or_default() {
            let text = BASE64.decode(item.as_bytes()).map_err(|error| format!("{name}: {error}"))?;
            let blocks = pem::decode_all(&text).map_err(|error| format!("{name}: {error}"))?;
            certificates
                .extend(blocks.into_iter().filter(|(label, _)| label == CERTIFICATE).map(|(_, der)| der));
        }
        Ok::<_, String>(certificates)
    };
    Ok(AgentData {
        svid: decode("svid", document.svid)?,
        bundle: decode("bundle", document.bundle)?,
        reattestable: document.reattestable,
        attempts: Attempts {
            count: document
                .connection_attempts
                .as_u64()
                .and_then(|count| u32::try_from(count).ok())
                .unwrap_or(0),
            since: document.bootstrap_start_time.as_str().and_then(from_rfc3339),
        },
    })
}

/// As `2026-01-01T00:00:00Z`; `None` for years that have no four digits.
pub(crate) fn rfc3339(at: Timestamp) -> Option<String> {
    OffsetDateTime::from_unix_timestamp(at.unix_seconds()).ok()?.format(&Rfc3339).ok()
}

/// What lies before 1970 stands for no time at all, as other agents write it.
fn from_rfc3339(text: &str) -> Option<Timestamp> {
    let seconds = OffsetDateTime::parse(text, &Rfc3339).ok()?.unix_timestamp();
    let at = Timestamp::from_unix_seconds(seconds);
    (seconds > 0 && rfc3339(at).is_some()).then_some(at)
}

fn io(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { step, path, source }
}

const FILE: &str = "agent-data.json";
const NEVER: &str = "0001-01-01T00:00:00Z";
const CERTIFICATE: &str = "CERTIFICATE";

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn what_was_stored_is_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let file = DataFile::open(&folder.path().join("a/b")).unwrap();
        assert_eq!(file.load().unwrap(), AgentData::default());
        let data = AgentData {
            svid: vec![vec![1, 2], vec![3]],
            bundle: vec![vec![4; 100]],
            reattestable: true,
            attempts: Attempts::default().one_more(Timestamp::from_unix_millis(1_700_000_000_123)),
        };
        file.store(&data).unwrap();
        file.store(&data).unwrap();
        assert_eq!(file.load().unwrap(), data);
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&folder.path().join("a/b/agent-data.json")), 0o600);
        assert_eq!(mode(&folder.path().join("a/b")), 0o700);
        assert_eq!(std::fs::read_dir(folder.path().join("a/b")).unwrap().count(), 1);
    }

    #[test]
    fn the_layout_is_that_of_other_agents() {
        // `MAM=` is 30 03; each item is a PEM text in base64, and one item may hold several.
        let pem = "-----BEGIN CERTIFICATE-----\nMAM=\n-----END CERTIFICATE-----\n";
        let item = BASE64.encode(pem.repeat(2).as_bytes());
        let content = format!(
            r#"{{"svid":["{item}"],"bundle":null,"reattestable":true,"bootstrap_use":0,"bootstrap_start_time":"x","connection_attempts":3}}"#
        );
        let data = parse(content.as_bytes()).unwrap();
        assert_eq!(data.svid, [vec![0x30, 0x03], vec![0x30, 0x03]]);
        assert!(data.bundle.is_empty() && data.reattestable);
        assert_eq!(data.attempts, Attempts { count: 3, since: None });
        let times = [
            ("0001-01-01T00:00:00Z", None),
            ("2023-11-14T22:13:20.123456789Z", Some(1_700_000_000)),
            ("2023-11-14T23:13:20+01:00", Some(1_700_000_000)),
        ];
        for (text, seconds) in times {
            let data =
                parse(format!(r#"{{"bootstrap_start_time":"{text}","connection_attempts":"x"}}"#).as_bytes());
            let since = seconds.map(Timestamp::from_unix_seconds);
            assert_eq!(data.unwrap().attempts, Attempts { count: 0, since }, "{text}");
        }
    }

    #[test]
    fn damage_is_refused_with_the_way_back() {
        let folder = tempfile::tempdir().unwrap();
        let file = DataFile::open(folder.path()).unwrap();
        for content in ["", "{", "[]", r#"{"svid":["%%%"]}"#, r#"{"svid":[3]}"#, "\u{0}\u{0}\u{0}"] {
            std::fs::write(folder.path().join(FILE), content).unwrap();
            let error = file.load().unwrap_err().to_string();
            assert!(
                error.contains("agent-data.json is damaged") && error.contains("remove it"),
                "{content}: {error}"
            );
        }
    }
}
