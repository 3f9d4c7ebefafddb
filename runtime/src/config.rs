//! Configuration: a TOML file becomes a checked value, or one list of everything that is wrong with it.
//!
//! An operator who has made three mistakes must not need three restarts to learn of them. Reading therefore goes on
//! after a mistake: the offending key is taken out and the rest is read again, so that every unknown key and every value of the
//! wrong type is found, with its path and line. What the types cannot say (ranges, references, keys that exclude each
//! other) is checked afterwards by the owner of the configuration with [`Problems`], which collects in the same form.
//!
//! Structures must carry `#[serde(deny_unknown_fields)]`. A key that must be present is best an `Option` that
//! [`Problems::required`] checks: serde stops at the first missing field, so only one of them could be listed.

pub mod hcl;
mod toml_file;
mod units;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use thiserror::Error;

pub use units::{ByteSize, HumanDuration, UnitError};

/// Why a configuration was refused.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read the configuration file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file was read and mistakes were found; the text lists them all.
    #[error("{}", describe(path, problems))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The mistakes in the order of their lines.
        problems: Vec<Problem>,
    },
}

fn describe(path: &Path, problems: &[Problem]) -> String {
    let count =
        if problems.len() == 1 { "1 mistake".to_owned() } else { format!("{} mistakes", problems.len()) };
    let mut text = format!("{}: {count}", path.display());
    for problem in problems {
        text.push_str("\n  ");
        text.push_str(&problem.to_string());
    }
    text
}

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key's path, such as `server.listen[0].port`; empty for the file as a whole.
    pub key: String,
    /// The line in the file, from 1; `None` when the key is not in the file.
    pub line: Option<usize>,
    /// What is wrong and what would be right.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

/// Where each key of a file was written.
#[derive(Clone, Debug, Default)]
pub struct Document {
    path: PathBuf,
    lines: BTreeMap<String, usize>,
}

impl Document {
    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The line on which the key stands, or its nearest parent that is in the file.
    pub fn line(&self, key: &str) -> Option<usize> {
        let mut key = key;
        loop {
            if let Some(line) = self.lines.get(key) {
                return Some(*line);
            }
            key = &key[..key.rfind(['.', '['])?];
        }
    }
}

/// Reads a TOML file.
///
/// # Errors
/// When the file cannot be read, or with every mistake that reading finds.
pub fn load_toml<T: DeserializeOwned>(path: impl AsRef<Path>) -> Result<T, ConfigError> {
    load_toml_document(path).map(|(value, _)| value)
}

/// Reads a TOML file and keeps the lines of its keys, so that later checks can name them.
///
/// # Errors
/// As [`load_toml`].
pub fn load_toml_document<T: DeserializeOwned>(path: impl AsRef<Path>) -> Result<(T, Document), ConfigError> {
    let path = path.as_ref();
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    parse_toml(path, &text)
}

/// Reads TOML text; `path` is what the messages call it.
///
/// # Errors
/// With every mistake that reading finds.
pub fn parse_toml<T: DeserializeOwned>(path: &Path, text: &str) -> Result<(T, Document), ConfigError> {
    toml_file::parse(text)
        .map(|(value, lines)| (value, Document { path: path.to_owned(), lines }))
        .map_err(|problems| ConfigError::Invalid { path: path.to_owned(), problems })
}

/// Collects mistakes while a configuration is checked.
#[derive(Clone, Debug)]
pub struct Problems<'a> {
    document: &'a Document,
    found: Vec<Problem>,
}

impl<'a> Problems<'a> {
    /// No mistakes yet in this document.
    pub fn new(document: &'a Document) -> Self {
        Self { document, found: Vec::new() }
    }

    /// Notes a mistake. `key` is the full path; the message says what would be right.
    pub fn push(&mut self, key: impl Into<String>, message: impl fmt::Display) {
        let key = key.into();
        let line = self.document.line(&key);
        self.found.push(Problem { key, line, message: message.to_string() });
    }

    /// Notes a mistake unless `holds`.
    pub fn check(&mut self, holds: bool, key: impl Into<String>, message: impl fmt::Display) {
        if !holds {
            self.push(key, message);
        }
    }

    /// The value, or a note of the error and `None`.
    pub fn take<T, E: fmt::Display>(&mut self, key: impl Into<String>, result: Result<T, E>) -> Option<T> {
        result.map_err(|error| self.push(key, error)).ok()
    }

    /// The value, or a note that the key is missing.
    pub fn required<T>(&mut self, key: impl Into<String>, value: Option<T>) -> Option<T> {
        if value.is_none() {
            self.push(key, "is required");
        }
        value
    }

    /// Whether nothing has been noted.
    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// The value when nothing was noted.
    ///
    /// # Errors
    /// Every noted mistake. Also when `value` is `None` although nothing was noted, which is a mistake of the caller
    /// and is said as such.
    pub fn finish<T>(mut self, value: Option<T>) -> Result<T, ConfigError> {
        match value {
            Some(value) if self.found.is_empty() => Ok(value),
            _ => {
                if self.found.is_empty() {
                    self.push("", "the configuration is incomplete");
                }
                self.found.sort_by_key(|problem| problem.line.unwrap_or(usize::MAX));
                Err(ConfigError::Invalid { path: self.document.path.clone(), problems: self.found })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_is_not_there_has_the_line_of_its_parent() {
        let lines = [("a".to_owned(), 3), ("a.b".to_owned(), 4), ("l[1]".to_owned(), 9)].into();
        let document = Document { path: "x".into(), lines };
        assert_eq!(document.line("a.b"), Some(4));
        assert_eq!(document.line("a.c.d"), Some(3));
        assert_eq!(document.line("l[1].port"), Some(9));
        assert_eq!(document.line("z"), None);
    }

    #[test]
    fn problems_are_all_listed_in_order() {
        let lines = [("a".to_owned(), 3), ("b".to_owned(), 1)].into();
        let document = Document { path: "server.toml".into(), lines };
        let mut problems = Problems::new(&document);
        problems.check(false, "a", "must be positive");
        problems.check(true, "a", "never said");
        assert_eq!(problems.required::<u8>("c", None), None);
        assert_eq!(problems.take("b", "x".parse::<u8>()), None);
        let error = problems.finish(Some(())).unwrap_err().to_string();
        assert_eq!(
            error,
            "server.toml: 3 mistakes\n  line 1: b: invalid digit found in string\n  line 3: a: must be positive\n  c: is required"
        );
    }
}
