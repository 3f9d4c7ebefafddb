//! Connection strings as `libpq` writes them, `key=value` or `postgresql://`, TLS settings included.
//!
//! The client library knows neither certificate files nor `verify-full`; these four parameters are taken out here, so that
//! a string that works for `psql`, or for SPIRE, works unchanged. TLS is verified in full or not used at all: `require`
//! without verification would protect the password from nobody who can answer in the database's place.

use std::path::PathBuf;

use tokio_postgres::config::{Config, Host, SslMode, TargetSessionAttrs};

/// A connection string, taken apart. No `Debug`: it holds a password.
pub(super) struct ConnectionString {
    /// What the client library needs.
    pub(super) config: Config,
    /// Whether the connection is encrypted, and the database's certificate verified.
    pub(super) tls: bool,
    /// `sslrootcert`
    pub(super) ca: Option<PathBuf>,
    /// `sslcert`
    pub(super) certificate: Option<PathBuf>,
    /// `sslkey`
    pub(super) key: Option<PathBuf>,
}

/// Why a connection string cannot be used. Never holds any of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectionStringError {
    /// It does not follow the syntax.
    #[error("is neither `key=value …` nor `postgresql://…` as psql takes it: {0}")]
    Syntax(String),
    /// `sslmode` has a value that `libpq` does not know.
    #[error(
        "has an sslmode that does not exist: use verify-full, or disable on a Unix socket or a trusted network"
    )]
    SslMode,
    /// Hosts of both kinds.
    #[error("names both Unix sockets and hosts: use one kind")]
    Mixed,
    /// No host.
    #[error("names no host: add host=…")]
    NoHost,
    /// No database.
    #[error("names no database: add dbname=…")]
    NoDatabase,
}

/// Whether a connection string can be used.
///
/// # Errors
/// What is wrong with it.
pub fn check(text: &str) -> Result<(), ConnectionStringError> {
    parse(text).map(drop)
}

pub(super) fn parse(text: &str) -> Result<ConnectionString, ConnectionStringError> {
    let text = text.trim();
    let (rest, taken) = if text.starts_with("postgres://") || text.starts_with("postgresql://") {
        take_from_url(text)?
    } else {
        take_from_pairs(text)?
    };
    let syntax = |error: &dyn std::error::Error| {
        let source = error.source().map(ToString::to_string).unwrap_or_default();
        // What looks like an option may be a part of a password that was not quoted.
        let source =
            if source.starts_with("unknown") { "an option that does not exist".to_owned() } else { source };
        ConnectionStringError::Syntax(format!("{error}: {source}"))
    };
    let mut config: Config = rest.parse().map_err(|error: tokio_postgres::Error| syntax(&error))?;
    let mut found =
        ConnectionString { config: Config::new(), tls: true, ca: None, certificate: None, key: None };
    let mut mode = None;
    for (name, value) in taken {
        match &name[..] {
            "sslrootcert" if value == "system" => {}
            "sslrootcert" => found.ca = Some(value.into()),
            "sslcert" => found.certificate = Some(value.into()),
            "sslkey" => found.key = Some(value.into()),
            _ => mode = Some(value),
        }
    }
    if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
        return Err(ConnectionStringError::NoHost);
    }
    if config.get_dbname().is_none() {
        return Err(ConnectionStringError::NoDatabase);
    }
    let sockets = config.get_hosts().iter().filter(|host| matches!(host, Host::Unix(_))).count();
    let only_sockets = sockets > 0 && sockets == config.get_hosts().len();
    if sockets > 0 && !only_sockets {
        return Err(ConnectionStringError::Mixed);
    }
    found.tls = match mode.as_deref() {
        Some("disable") => false,
        None | Some("allow" | "prefer" | "require" | "verify-ca" | "verify-full") => !only_sockets,
        Some(_) => return Err(ConnectionStringError::SslMode),
    };
    config.ssl_mode(if found.tls { SslMode::Require } else { SslMode::Disable });
    // A standby takes no writes.
    config.target_session_attrs(TargetSessionAttrs::ReadWrite);
    found.config = config;
    Ok(found)
}

type Taken = (String, Vec<(String, String)>);

fn is_ours(name: &str) -> bool {
    matches!(name, "sslmode" | "sslrootcert" | "sslcert" | "sslkey")
}

/// Takes our parameters out of `key = 'value' …`.
fn take_from_pairs(text: &str) -> Result<Taken, ConnectionStringError> {
    let syntax = |what: &str| ConnectionStringError::Syntax(what.to_owned());
    let (mut rest, mut taken) = (String::new(), Vec::new());
    let mut letters = text.chars().peekable();
    loop {
        while letters.next_if(|letter| letter.is_whitespace()).is_some() {}
        if letters.peek().is_none() {
            return Ok((rest, taken));
        }
        let mut name = String::new();
        while let Some(letter) = letters.next_if(|letter| *letter != '=' && !letter.is_whitespace()) {
            name.push(letter);
        }
        while letters.next_if(|letter| letter.is_whitespace()).is_some() {}
        letters.next_if_eq(&'=').ok_or_else(|| syntax("a name without `=`"))?;
        while letters.next_if(|letter| letter.is_whitespace()).is_some() {}
        let quoted = letters.next_if_eq(&'\'').is_some();
        let mut value = String::new();
        loop {
            match letters.next() {
                Some('\\') => value.push(letters.next().ok_or_else(|| syntax("it ends with a backslash"))?),
                Some('\'') if quoted => break,
                None if quoted => return Err(syntax("a quote is not closed")),
                None => break,
                Some(letter) if letter.is_whitespace() && !quoted => break,
                Some(letter) => value.push(letter),
            }
        }
        if is_ours(&name) {
            taken.push((name, value));
        } else {
            let value = value.replace('\\', "\\\\").replace('\'', "\\'");
            rest.push_str(&format!("{name}='{value}' "));
        }
    }
}

/// Takes our parameters out of the query of a URL.
fn take_from_url(text: &str) -> Result<Taken, ConnectionStringError> {
    let Some((head, query)) = text.split_once('?') else { return Ok((text.to_owned(), Vec::new())) };
    let (mut kept, mut taken) = (Vec::new(), Vec::new());
    for part in query.split('&') {
        match part.split_once('=') {
            Some((name, value)) if is_ours(name) => taken.push((name.to_owned(), decoded(value)?)),
            _ => kept.push(part),
        }
    }
    let rest = if kept.is_empty() { head.to_owned() } else { format!("{head}?{}", kept.join("&")) };
    Ok((rest, taken))
}

fn decoded(text: &str) -> Result<String, ConnectionStringError> {
    let bad = || ConnectionStringError::Syntax("a `%` is not followed by two hexadecimal digits".to_owned());
    let (mut bytes, mut rest) = (Vec::new(), text.bytes());
    while let Some(byte) = rest.next() {
        let byte = if byte == b'%' {
            let digits = [rest.next().ok_or_else(bad)?, rest.next().ok_or_else(bad)?];
            let digits = std::str::from_utf8(&digits).map_err(|_| bad())?;
            u8::from_str_radix(digits, 16).map_err(|_| bad())?
        } else {
            byte
        };
        bytes.push(byte);
    }
    String::from_utf8(bytes).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read_and_tls_is_whole_or_absent() {
        let both = [
            "host=db.example port=5433 dbname=spire user=u password='a \\'b' sslmode=verify-full sslrootcert=/ca.pem sslcert=/c.pem sslkey = /k.pem",
            "postgresql://u:a%20%27b@db.example:5433/spire?sslmode=verify-full&sslrootcert=%2Fca.pem&sslcert=/c.pem&sslkey=/k.pem",
        ];
        for text in both {
            let found = parse(text).unwrap();
            assert!(found.tls, "{text}");
            assert_eq!(found.ca, Some("/ca.pem".into()));
            assert_eq!(found.certificate, Some("/c.pem".into()));
            assert_eq!(found.key, Some("/k.pem".into()));
            assert_eq!(found.config.get_password(), Some(&b"a 'b"[..]));
            assert_eq!(found.config.get_ports(), [5433]);
            assert_eq!(found.config.get_dbname(), Some("spire"));
        }
        // What would be encrypted without verification is verified.
        assert!(parse("host=db dbname=d").unwrap().tls);
        assert!(parse("host=db dbname=d sslmode=require").unwrap().tls);
        assert!(!parse("host=db dbname=d sslmode=disable").unwrap().tls);
        assert!(!parse("host=/run/postgresql dbname=d").unwrap().tls);
    }

    #[test]
    fn what_is_wrong_is_said_without_the_secret() {
        let wrong = [
            "dbname=d password=secret",
            "host=db password=secret",
            "host=db dbname=d password=secret sslmode=verify",
            "host=db dbname=d password='secret",
            "host=db,/run dbname=d password=secret",
            "host=db dbname=d password=secret unknown=1",
            "host=db dbname=d password=not quoted-secret=1",
            "host=db dbname=d password",
            "postgresql://u:secret@db/d?sslcert=%2",
        ];
        for text in wrong {
            let error = parse(text).err().unwrap_or_else(|| panic!("{text}")).to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
