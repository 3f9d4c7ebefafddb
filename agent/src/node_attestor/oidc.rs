//! Type `oidc`: a token of an OpenID Connect issuer that the server trusts. There is no challenge.
//!
//! The token comes from a file, as a cluster projects it, or from a URL, as the metadata services of clouds hand it out. It is
//! obtained anew for each attestation, since a token is good for one. Running a command for it is not supported.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bonafide_pki::tls::web_client_config;
use bonafide_runtime::fetch::{Query, fetch, system_authorities};
use http::Uri;
use serde::Serialize;
use zeroize::Zeroizing;

use super::{Attempt, NodeAttestError, NodeAttestor, read};
use crate::bootstrap::source::{has_userinfo, shown};
use crate::config::{TokenSource, TokenUrl};

/// The attestor of type `oidc`.
pub struct Oidc {
    source: TokenSource,
}

impl Oidc {
    /// With tokens from this source.
    #[must_use]
    pub fn new(source: TokenSource) -> Self {
        Self { source }
    }
}

#[async_trait]
impl NodeAttestor for Oidc {
    fn kind(&self) -> &'static str {
        "oidc"
    }

    async fn begin(&self) -> Result<Box<dyn Attempt>, NodeAttestError> {
        let token = match &self.source {
            TokenSource::File(path) => from_file(path)?,
            TokenSource::Url(source) => from_url(source).await?,
        };
        let payload = serde_json::to_vec(&Payload { token: &token }).expect("a text is JSON");
        Ok(Box::new(Presented(Zeroizing::new(payload))))
    }
}

/// The token in a file.
pub(super) fn from_file(path: &Path) -> Result<Zeroizing<String>, NodeAttestError> {
    let content = read(path)?;
    let text = std::str::from_utf8(&content).map(str::trim).unwrap_or_default();
    if !is_token(text) {
        return Err(NodeAttestError::Unusable { path: path.to_owned(), problem: "holds no token" });
    }
    Ok(Zeroizing::new(text.to_owned()))
}

async fn from_url(source: &TokenUrl) -> Result<Zeroizing<String>, NodeAttestError> {
    let failed = |problem: String| NodeAttestError::Token { url: shown(&source.url), problem };
    let tls = if source.url.scheme_str() == Some("https") { Some(tls(source, &failed)?) } else { None };
    let query = Query {
        method: source.method.clone(),
        headers: source.headers.clone(),
        ..Query::get(source.url.clone(), MAX_ANSWER, TIME)
    };
    let answer = fetch(query, tls).await.map_err(|error| failed(error.to_string()))?;
    let token = match &source.field {
        None => String::from_utf8(answer.to_vec()).ok().map(|text| text.trim().to_owned()),
        Some(field) => serde_json::from_slice::<serde_json::Value>(&answer)
            .ok()
            .and_then(|answer| answer.get(field)?.as_str().map(str::to_owned)),
    };
    let token = token.filter(|token| is_token(token));
    // What the answer was instead is not said: it may hold other secrets.
    token.map(Zeroizing::new).ok_or_else(|| failed("the answer holds no token".to_owned()))
}

fn tls(
    source: &TokenUrl,
    failed: &dyn Fn(String) -> NodeAttestError,
) -> Result<Arc<tokio_rustls::rustls::ClientConfig>, NodeAttestError> {
    let (path, roots) = match &source.ca_path {
        Some(path) => (path.clone(), read(path)?.to_vec()),
        None => system_authorities().map_err(|error| failed(format!("{error}: set ca_path")))?,
    };
    web_client_config(&roots).map_err(|error| failed(format!("{}: {error}", path.display())))
}

/// Three parts of base64url: whatever else was found is not sent to anybody.
fn is_token(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    text.len() <= MAX_ANSWER
        && text.bytes().all(plain)
        && text.split('.').filter(|part| !part.is_empty()).count() == 3
}

/// A payload that says everything.
pub(super) struct Presented(pub(super) Zeroizing<Vec<u8>>);

impl Attempt for Presented {
    fn payload(&self) -> Zeroizing<Vec<u8>> {
        self.0.clone()
    }

    fn respond(&mut self, _: &[u8]) -> Result<Vec<u8>, NodeAttestError> {
        Err(NodeAttestError::Challenge("a token is not challenged"))
    }
}

#[derive(Serialize)]
struct Payload<'a> {
    token: &'a str,
}

/// A token, or the JSON around one.
const MAX_ANSWER: usize = 64 << 10;
const TIME: Duration = Duration::from_secs(10);

/// Whether a token may be fetched from there: by scheme, and because nobody would send a user or a password along.
pub(crate) fn is_fetchable(url: &Uri) -> bool {
    matches!(url.scheme_str(), Some("http" | "https")) && url.host().is_some() && !has_userinfo(url)
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, Method};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_file_is_read_at_each_attestation() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let attestor = Oidc::new(TokenSource::File(path.clone()));
        assert!(matches!(attestor.begin().await, Err(NodeAttestError::Unreadable { .. })));
        for (content, token) in [
            ("a.b.c\n", Some("a.b.c")),
            (" d.e.f", Some("d.e.f")),
            ("", None),
            ("a.b", None),
            ("a.b.c d", None),
        ] {
            std::fs::write(&path, content).unwrap();
            let payload = attestor.begin().await.ok().map(|attempt| attempt.payload().to_vec());
            let expected = token.map(|token| format!(r#"{{"token":"{token}"}}"#).into_bytes());
            assert_eq!(payload, expected, "{content:?}");
        }
        std::fs::write(&path, "a.b.c").unwrap();
        let mut attempt = attestor.begin().await.unwrap();
        assert!(matches!(attempt.respond(b"{}"), Err(NodeAttestError::Challenge(_))));
    }

    #[tokio::test]
    async fn a_metadata_service_is_asked_as_it_wants_to_be() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = tokio::spawn(async move {
            let mut requests = Vec::new();
            for body in ["a.b.c", r#"{"access_token":"d.e.f","other":1}"#, r#"{"error":"x"}"#] {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = vec![0; 2048];
                let read = stream.read(&mut request).await.unwrap();
                requests.push(String::from_utf8_lossy(&request[..read]).into_owned());
                let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            requests
        });
        let mut headers = HeaderMap::new();
        headers.insert("metadata-flavor", "Google".parse().unwrap());
        let source = |field: Option<&str>, method| {
            Oidc::new(TokenSource::Url(Box::new(TokenUrl {
                url: format!("http://{address}/identity?audience=x").parse().unwrap(),
                method,
                headers: headers.clone(),
                field: field.map(str::to_owned),
                ca_path: None,
            })))
        };
        let payload = |attempt: Box<dyn Attempt>| String::from_utf8(attempt.payload().to_vec()).unwrap();
        assert_eq!(payload(source(None, Method::GET).begin().await.unwrap()), r#"{"token":"a.b.c"}"#);
        let token = source(Some("access_token"), Method::POST).begin().await.unwrap();
        assert_eq!(payload(token), r#"{"token":"d.e.f"}"#);
        let none = source(Some("access_token"), Method::GET).begin().await.map(drop).unwrap_err().to_string();
        assert!(
            none.ends_with("the answer holds no token")
                && !none.contains("error")
                && !none.contains("audience"),
            "{none}"
        );
        let requests = service.await.unwrap();
        assert!(requests[0].starts_with("GET /identity?audience=x HTTP/1.1"));
        assert!(requests[0].contains("metadata-flavor: Google"));
        assert!(requests[1].starts_with("POST /identity?audience=x HTTP/1.1"));
    }
}
