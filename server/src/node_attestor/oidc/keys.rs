//! An issuer's keys: from a file or fetched, kept, and renewed when they are old or a token names one that is not there.
//!
//! Fetching happens for tokens that strangers present, so it has a rate of its own, whoever asks; and one fetch at a time is
//! enough for all who wait. What was fetched last stays in use when a later fetch fails: an issuer that is away for an hour
//! must not keep the agents of a whole cluster away.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bonafide_identity::Timestamp;
use bonafide_pki::oidc::{KeySetError, OidcKeys};
use bonafide_pki::tls::web_client_config;
use bonafide_runtime::fetch::{Query, fetch, system_authorities};
use http::{HeaderValue, Uri, header};
use serde::Deserialize;
use tokio_rustls::rustls::ClientConfig;

/// Where keys come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// A JSON Web Key Set in a file.
    File(PathBuf),
    /// A JSON Web Key Set at a URL.
    Url(Uri),
    /// The issuer's own documents (OpenID Connect Discovery 1.0, section 4).
    Discovery(Uri),
}

/// An issuer, and how its keys are had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySettings {
    /// What the issuer is called in messages.
    pub name: String,
    /// The `iss` claim of its tokens, to the letter.
    pub url: String,
    /// Where its keys come from.
    pub source: KeySource,
    /// PEM of the authorities that verify its server, in place of the system's.
    pub ca_path: Option<PathBuf>,
    /// A file with a token that is shown when keys are fetched.
    pub fetch_token_path: Option<PathBuf>,
    /// How long fetched keys are used before they are fetched anew.
    pub refresh: Duration,
}

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// A file cannot be read.
    #[error("issuer {issuer}: cannot read {}: {source}", path.display())]
    Read {
        /// The issuer's name.
        issuer: String,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file with keys has none.
    #[error("issuer {issuer}: {}: {source}", path.display())]
    KeySet {
        /// The issuer's name.
        issuer: String,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: KeySetError,
    },
    /// There is nothing to verify the issuer's server with.
    #[error("issuer {issuer}: {reason}")]
    Authorities {
        /// The issuer's name.
        issuer: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// The keys of one issuer.
pub(in crate::node_attestor) struct Keys {
    name: String,
    url: String,
    source: KeySource,
    tls: Option<Arc<ClientConfig>>,
    fetch_token: Option<PathBuf>,
    refresh: Duration,
    kept: Mutex<Kept>,
    fetching: tokio::sync::Mutex<()>,
}

/// What is known, and when it was asked for.
#[derive(Clone, Default)]
struct Kept {
    keys: Option<Arc<OidcKeys>>,
    fetched_at: Option<Timestamp>,
    tried_at: Option<Timestamp>,
}

#[derive(Debug, PartialEq, Eq)]
enum Step {
    Use,
    Fetch,
    /// A fetch is due, and another was made a moment ago.
    Wait,
}

impl Kept {
    fn step(&self, key_id: &str, refresh: Duration, now: Timestamp) -> Step {
        let known = self.keys.as_ref().is_some_and(|keys| keys.has(key_id));
        // A clock that was set back must not keep old keys alive: a time in the future is none.
        let within =
            |at: Option<Timestamp>, time| at.is_some_and(|at| at <= now && now < at.saturating_add(time));
        if known && within(self.fetched_at, refresh) {
            Step::Use
        } else if !within(self.tried_at, BETWEEN) {
            Step::Fetch
        } else if known {
            Step::Use
        } else {
            Step::Wait
        }
    }
}

impl Keys {
    /// Reads the files that there are.
    pub(in crate::node_attestor) fn new(settings: &KeySettings) -> Result<Self, KeysError> {
        let issuer = settings.name.clone();
        let read = |path: &Path| {
            std::fs::read(path).map_err(|source| KeysError::Read {
                issuer: issuer.clone(),
                path: path.to_owned(),
                source,
            })
        };
        if let KeySource::File(path) = &settings.source {
            OidcKeys::parse(&read(path)?).map_err(|source| KeysError::KeySet {
                issuer: issuer.clone(),
                path: path.clone(),
                source,
            })?;
        }
        if let Some(path) = &settings.fetch_token_path {
            read(path)?;
        }
        let secure = |url: &Uri| url.scheme_str() == Some("https");
        let needs_tls =
            matches!(&settings.source, KeySource::Url(url) | KeySource::Discovery(url) if secure(url));
        let tls = if needs_tls {
            let (path, roots) = match &settings.ca_path {
                Some(path) => (path.clone(), read(path)?),
                None => system_authorities().map_err(|error| KeysError::Authorities {
                    issuer: issuer.clone(),
                    reason: format!("{error}: set ca_path"),
                })?,
            };
            Some(web_client_config(&roots).map_err(|error| KeysError::Authorities {
                issuer: issuer.clone(),
                reason: format!("{}: {error}", path.display()),
            })?)
        } else {
            None
        };
        Ok(Self {
            name: issuer,
            url: settings.url.clone(),
            source: settings.source.clone(),
            tls,
            fetch_token: settings.fetch_token_path.clone(),
            // A file costs nothing to read again.
            refresh: if matches!(settings.source, KeySource::File(_)) { BETWEEN } else { settings.refresh },
            kept: Mutex::default(),
            fetching: tokio::sync::Mutex::default(),
        })
    }

    /// The keys, with the one that is named among them if the issuer has it. The text says why there are none at all.
    pub(in crate::node_attestor) async fn for_key(
        &self,
        key_id: &str,
        now: Timestamp,
    ) -> Result<Arc<OidcKeys>, String> {
        if self.kept().step(key_id, self.refresh, now) == Step::Fetch {
            let _one_at_a_time = self.fetching.lock().await;
            // Another may have done it meanwhile.
            if self.kept().step(key_id, self.refresh, now) == Step::Fetch {
                self.change(|kept| kept.tried_at = Some(now));
                match self.obtain().await {
                    Ok(keys) => self.change(|kept| {
                        kept.keys = Some(Arc::new(keys));
                        kept.fetched_at = Some(now);
                    }),
                    Err(why) => {
                        tracing::warn!(issuer = self.name, why, "the issuer's keys could not be renewed");
                    }
                }
            }
        }
        self.kept().keys.ok_or_else(|| "they could not be fetched yet".to_owned())
    }

    /// The `iss` claim of the issuer's tokens.
    pub(in crate::node_attestor) fn issuer(&self) -> &str {
        &self.url
    }

    fn kept(&self) -> Kept {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn change(&self, change: impl FnOnce(&mut Kept)) {
        change(&mut self.kept.lock().unwrap_or_else(PoisonError::into_inner));
    }

    async fn obtain(&self) -> Result<OidcKeys, String> {
        let document = match &self.source {
            KeySource::File(path) => {
                let read = tokio::fs::read(path).await;
                read.map_err(|error| format!("{}: {error}", path.display()))?.into()
            }
            KeySource::Url(url) => self.fetch(url.clone()).await?,
            KeySource::Discovery(url) => {
                let document = self.fetch(url.clone()).await?;
                self.fetch(self.key_set_url(url, &document)?).await?
            }
        };
        OidcKeys::parse(&document).map_err(|error| error.to_string())
    }

    /// Where the issuer says its keys are. It must be the issuer who says so, and not with less protection.
    fn key_set_url(&self, asked: &Uri, document: &[u8]) -> Result<Uri, String> {
        #[derive(Deserialize)]
        struct Discovery {
            issuer: String,
            jwks_uri: String,
        }
        let found: Discovery = serde_json::from_slice(document)
            .map_err(|error| format!("{asked} is not a discovery document: {error}"))?;
        if found.issuer != self.url {
            return Err(format!("{asked} is of another issuer, {:?}", found.issuer));
        }
        let url: Uri =
            found.jwks_uri.parse().map_err(|error| format!("jwks_uri {:?}: {error}", found.jwks_uri))?;
        if acceptable(&url) && (asked.scheme_str() == url.scheme_str() || url.scheme_str() == Some("https")) {
            Ok(url)
        } else {
            Err(format!("jwks_uri {url} is not an https URL"))
        }
    }

    async fn fetch(&self, url: Uri) -> Result<bytes::Bytes, String> {
        let mut query = Query::get(url.clone(), MAX_DOCUMENT, FETCH_TIME);
        query
            .headers
            .insert(header::ACCEPT, HeaderValue::from_static("application/json, application/jwk-set+json"));
        if let Some(path) = &self.fetch_token {
            let token = tokio::fs::read_to_string(path).await;
            let token = token.map_err(|error| format!("{}: {error}", path.display()))?;
            let mut value = HeaderValue::from_str(&format!("Bearer {}", token.trim()))
                .map_err(|_| format!("{} holds no token", path.display()))?;
            value.set_sensitive(true);
            query.headers.insert(header::AUTHORIZATION, value);
        }
        fetch(query, self.tls.clone()).await.map_err(|error| format!("{url}: {error}"))
    }
}

/// Whether keys may be fetched from there: with TLS, or from this very machine.
pub fn acceptable(url: &Uri) -> bool {
    let local = |host: &str| matches!(host, "localhost" | "127.0.0.1" | "[::1]");
    match (url.scheme_str(), url.host()) {
        (Some("https"), Some(_)) => true,
        (Some("http"), Some(host)) => local(host),
        _ => false,
    }
}

/// Between two fetches of one issuer's keys, whatever tokens name.
const BETWEEN: Duration = Duration::from_secs(10);
const FETCH_TIME: Duration = Duration::from_secs(10);
const MAX_DOCUMENT: usize = 256 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_fetched_when_they_are_old_or_lack_one_and_not_too_often() {
        const HOUR: Duration = Duration::from_secs(3600);
        let at = Timestamp::from_unix_seconds;
        let set = r#"{"keys":[{"kty":"EC","crv":"P-256","kid":"k","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}"#;
        let keys = Some(Arc::new(OidcKeys::parse(set.as_bytes()).unwrap()));
        let kept = |keys: &Option<Arc<OidcKeys>>, fetched: Option<i64>, tried: Option<i64>| Kept {
            keys: keys.clone(),
            fetched_at: fetched.map(at),
            tried_at: tried.map(at),
        };
        for (kept, key_id, now, expected) in [
            (kept(&None, None, None), "k", 0, Step::Fetch),
            (kept(&None, None, Some(0)), "k", 9, Step::Wait),
            (kept(&None, None, Some(0)), "k", 10, Step::Fetch),
            (kept(&keys, Some(0), Some(0)), "k", 3599, Step::Use),
            (kept(&keys, Some(0), Some(0)), "k", 3600, Step::Fetch),
            (kept(&keys, Some(0), Some(3600)), "k", 3609, Step::Use),
            (kept(&keys, Some(0), Some(3600)), "k", 3610, Step::Fetch),
            (kept(&keys, Some(0), Some(0)), "other", 9, Step::Wait),
            (kept(&keys, Some(0), Some(0)), "other", 10, Step::Fetch),
            (kept(&keys, Some(100), Some(100)), "k", 50, Step::Fetch),
        ] {
            assert_eq!(kept.step(key_id, HOUR, at(now)), expected, "{key_id} at {now}");
        }
    }

    #[test]
    fn keys_come_over_tls_or_from_this_machine() {
        for (url, expected) in [
            ("https://issuer.test/keys", true),
            ("http://127.0.0.1:1/keys", true),
            ("http://[::1]:1/keys", true),
            ("http://localhost/keys", true),
            ("http://issuer.test/keys", false),
            ("http://localhost.evil.test/keys", false),
            ("ftp://localhost/keys", false),
            ("/keys", false),
        ] {
            assert_eq!(acceptable(&url.parse().unwrap()), expected, "{url}");
        }
    }
}
