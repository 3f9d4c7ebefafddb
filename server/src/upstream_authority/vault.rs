//! HashiCorp Vault, or OpenBao, as the upstream authority: the PKI engine signs this server's CA as an intermediate.
//!
//! Few calls are made (a signature each half `ca_ttl`, a renewal of the token now and then), so each has a connection of
//! its own, and files (CA, client certificate, secrets) are read when they are used: replacing a file needs no restart.
//! Everything that the other side can make us do is bounded in time and size. A token is renewed before it ends; when
//! that fails, or Vault refuses it, there is a new login.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bonafide_identity::{Bundle, Timestamp, TrustDomain};
use bonafide_pki::{pem, tls};
use bonafide_runtime::BoxError;
use bonafide_runtime::shutdown::Shutdown;
use bonafide_runtime::tasks::chain;
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use zeroize::Zeroizing;

use super::{Address, UpstreamAuthority, UpstreamCa, UpstreamError};

/// Where Vault is, and how this server shows who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VaultConfig {
    /// The trust domain that CA certificates are asked for.
    pub trust_domain: TrustDomain,
    /// Where Vault listens.
    pub address: VaultAddress,
    /// PEM with the roots that Vault's certificate is verified with.
    pub ca_cert_path: Option<PathBuf>,
    /// The namespace, as Vault's enterprise edition and OpenBao have them.
    pub namespace: Option<String>,
    /// Where the PKI engine is mounted.
    pub pki_mount_point: String,
    /// How a token is had.
    pub auth: VaultAuth,
}

/// `https://host:port`, or `http://` of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VaultAddress {
    address: Address,
    tls: bool,
}

impl VaultAddress {
    /// Whether the connection is encrypted.
    pub fn is_tls(&self) -> bool {
        self.tls
    }
}

impl std::str::FromStr for VaultAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (tls, rest) = match text.split_once("://") {
            Some(("https", rest)) => (true, rest),
            Some(("http", rest)) => (false, rest),
            _ => return Err("must begin with https:// (or http:// on this machine)".to_owned()),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let with_port = || format!("{rest}:{}", if tls { 443 } else { 80 });
        let address: Address = rest
            .parse()
            .or_else(|_| with_port().parse())
            .map_err(|error: &str| format!("the host {error}"))?;
        let is_local = address.host == "localhost"
            || address.host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        if !tls && !is_local {
            return Err(
                "http:// would show the token to the network; it is for this machine alone".to_owned()
            );
        }
        Ok(Self { address, tls })
    }
}

impl std::fmt::Display for VaultAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}://{}", if self.tls { "https" } else { "http" }, self.address)
    }
}

/// How a token is had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VaultAuth {
    /// A file holds it.
    Token {
        /// The file.
        token_file: PathBuf,
    },
    /// An application role.
    AppRole {
        /// Where the method is mounted.
        mount_point: String,
        /// The role's ID.
        role_id: String,
        /// The file with the secret ID.
        secret_id_file: PathBuf,
    },
    /// A TLS client certificate.
    Certificate {
        /// Where the method is mounted.
        mount_point: String,
        /// The name of the certificate role; any that fits when absent.
        role: Option<String>,
        /// PEM with the certificate, then its intermediates.
        client_cert_path: PathBuf,
        /// PEM with its key, PKCS#8.
        client_key_path: PathBuf,
    },
    /// The token of a Kubernetes service account.
    Kubernetes {
        /// Where the method is mounted.
        mount_point: String,
        /// The role.
        role: String,
        /// The file with the service account's token.
        token_path: PathBuf,
    },
}

/// A client of Vault.
pub struct Vault {
    config: VaultConfig,
    token: Mutex<Option<Token>>,
    /// When the token is to be renewed; `None` when there is nothing to renew.
    renew_at: watch::Sender<Option<Instant>>,
}

struct Token {
    value: Zeroizing<String>,
    /// `None`: never.
    ends_at: Option<Instant>,
}

impl Vault {
    /// A client that has done nothing yet.
    #[must_use]
    pub fn new(config: VaultConfig) -> Self {
        Self { config, token: Mutex::new(None), renew_at: watch::Sender::new(None) }
    }

    /// The token in use, or that of a new login.
    async fn token(&self) -> Result<Zeroizing<String>, UpstreamError> {
        let mut token = self.token.lock().await;
        if let Some(held) = token.as_ref().filter(|held| held.ends_at.is_none_or(|end| end > Instant::now()))
        {
            return Ok(held.value.clone());
        }
        let (value, lease) = self.log_in().await?;
        *token = Some(self.keep(value.clone(), lease));
        Ok(value)
    }

    fn keep(&self, value: Zeroizing<String>, lease: Lease) -> Token {
        let length = Duration::from_secs(lease.seconds);
        let now = Instant::now();
        let ends_at = (lease.seconds > 0).then(|| now.checked_add(length)).flatten();
        let renew_at = ends_at.filter(|_| lease.renewable).map(|_| now + length / 3 * 2);
        self.renew_at.send_replace(renew_at);
        Token { value, ends_at }
    }

    async fn log_in(&self) -> Result<(Zeroizing<String>, Lease), UpstreamError> {
        let (method, body) = match &self.config.auth {
            VaultAuth::Token { token_file } => {
                let token = secret(token_file)?;
                let answer =
                    self.call(Method::GET, "auth/token/lookup-self", Some(&token), None).await?.accepted()?;
                let found: Data<TokenData> = parsed("auth/token/lookup-self", &answer)?;
                let lease = Lease { seconds: found.data.ttl, renewable: found.data.renewable };
                return Ok((token, lease));
            }
            VaultAuth::AppRole { mount_point, role_id, secret_id_file } => {
                let secret_id = secret(secret_id_file)?;
                (mount_point, json!({ "role_id": role_id, "secret_id": secret_id.as_str() }))
            }
            VaultAuth::Certificate { mount_point, role, .. } => {
                (mount_point, role.as_ref().map_or(json!({}), |role| json!({ "name": role })))
            }
            VaultAuth::Kubernetes { mount_point, role, token_path } => {
                let jwt = secret(token_path)?;
                (mount_point, json!({ "role": role, "jwt": jwt.as_str() }))
            }
        };
        let path = format!("auth/{method}/login");
        let answer = self.call(Method::POST, &path, None, Some(body)).await?.accepted()?;
        granted(&path, &answer)
    }

    /// Renews the token; when that cannot be done, the next call logs in again.
    async fn renew(&self) {
        const PATH: &str = "auth/token/renew-self";
        let mut token = self.token.lock().await;
        let Some(held) = token.as_ref() else {
            self.renew_at.send_replace(None);
            return;
        };
        let answer = self.call(Method::POST, PATH, Some(&held.value), Some(json!({}))).await;
        match answer.and_then(Answer::accepted).and_then(|answer| granted(PATH, &answer)) {
            Ok((value, lease)) => *token = Some(self.keep(value, lease)),
            Err(error) => {
                tracing::warn!(%error, "the token is not renewed; there will be a new login");
                *token = None;
                self.renew_at.send_replace(None);
            }
        }
    }

    /// One request and its answer, within a bound.
    async fn call(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        body: Option<Value>,
    ) -> Result<Answer, UpstreamError> {
        let address = &self.config.address;
        let broken = |reason: &str| failed(format!("{address}, {path}: {reason}"));
        let mut request = Request::builder()
            .method(method)
            .uri(format!("/v1/{path}"))
            .header(http::header::HOST, address.address.to_string())
            .header(http::header::CONTENT_TYPE, "application/json")
            .header("X-Vault-Request", "true");
        if let Some(namespace) = &self.config.namespace {
            request = request.header("X-Vault-Namespace", namespace);
        }
        if let Some(token) = token {
            let mut value = http::HeaderValue::from_str(token)
                .map_err(|_| broken("the token holds characters that no token has"))?;
            value.set_sensitive(true);
            request = request.header("X-Vault-Token", value);
        }
        let body = body.map_or_else(Bytes::new, |body| Bytes::from(body.to_string()));
        let request = request.body(Full::new(body)).map_err(|error| broken(&error.to_string()))?;
        match timeout(CALL_TIMEOUT, self.exchange(request)).await {
            Ok(Ok((status, body))) => Ok(Answer { what: format!("{address}, {path}"), status, body }),
            Ok(Err(error)) => Err(broken(&chain(&*error))),
            Err(_) => Err(broken(&format!("no answer within {CALL_TIMEOUT:?}"))),
        }
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes), BoxError> {
        let VaultAddress { address, tls } = &self.config.address;
        let tcp = address.dial().await?;
        if !tls {
            return exchange_over(tcp, request).await;
        }
        let config = self.tls().await?;
        let name = ServerName::try_from(address.host.clone())?;
        exchange_over(TlsConnector::from(config).connect(name, tcp).await?, request).await
    }

    async fn tls(&self) -> Result<Arc<ClientConfig>, BoxError> {
        let mut roots = RootCertStore::empty();
        let path = self.config.ca_cert_path.as_ref().ok_or("ca_cert_path is missing")?;
        for certificate in certificates(path).await? {
            roots.add(certificate).map_err(|error| format!("{}: {error}", path.display()))?;
        }
        let config = ClientConfig::builder_with_provider(tls::provider())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        Ok(Arc::new(match &self.config.auth {
            VaultAuth::Certificate { client_cert_path, client_key_path, .. } => {
                let chain = certificates(client_cert_path).await?;
                let key = Zeroizing::new(
                    tokio::fs::read(client_key_path).await.map_err(unreadable(client_key_path))?,
                );
                let mut blocks = pem::decode_all(&key)?;
                let position = blocks.iter().position(|(label, _)| label == "PRIVATE KEY");
                let position = position.ok_or_else(|| {
                    format!(
                        "{}: no PKCS#8 key; convert it with `openssl pkcs8 -topk8 -nocrypt`",
                        client_key_path.display()
                    )
                })?;
                let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(blocks.swap_remove(position).1));
                config.with_client_auth_cert(chain, key)?
            }
            _ => config.with_no_client_auth(),
        }))
    }

    async fn sign(&self, csr: &[u8], ttl: Duration) -> Result<Answer, UpstreamError> {
        let path = format!("{}/root/sign-intermediate", self.config.pki_mount_point);
        let body = json!({
            "csr": pem::encode("CERTIFICATE REQUEST", csr),
            "format": "pem",
            "ttl": format!("{}s", ttl.as_secs()),
            "uri_sans": self.config.trust_domain.id_string(),
            // Subject and names are those of the CSR, not of the engine's defaults.
            "use_csr_values": true,
        });
        let token = self.token().await?;
        self.call(Method::POST, &path, Some(&token), Some(body)).await
    }
}

#[async_trait::async_trait]
impl UpstreamAuthority for Vault {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn mint_ca(
        &self,
        csr: &[u8],
        preferred_ttl: Duration,
        _: Timestamp,
    ) -> Result<UpstreamCa, UpstreamError> {
        let mut answer = self.sign(csr, preferred_ttl).await?;
        if answer.status == StatusCode::FORBIDDEN {
            // The token may have been revoked, or its policy may have changed: a new one knows.
            *self.token.lock().await = None;
            answer = self.sign(csr, preferred_ttl).await?;
        }
        signed(&answer.accepted()?)
    }

    /// The PKI engine tells its roots with each signature.
    async fn bundle(&self, _: Timestamp) -> Result<Option<Bundle>, UpstreamError> {
        Ok(None)
    }

    /// Keeps the token from ending.
    async fn run(&self, shutdown: Shutdown) -> Result<(), BoxError> {
        let mut renew_at = self.renew_at.subscribe();
        loop {
            let at = *renew_at.borrow_and_update();
            let due = async {
                match at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = shutdown.triggered() => return Ok(()),
                changed = renew_at.changed() => if changed.is_err() { return Ok(()) },
                () = due => self.renew().await,
            }
        }
    }
}

/// What Vault answered.
struct Answer {
    /// The address and the path, for messages.
    what: String,
    status: StatusCode,
    body: Bytes,
}

impl Answer {
    /// The body of a success, or Vault's own words.
    fn accepted(self) -> Result<Bytes, UpstreamError> {
        if self.status.is_success() {
            return Ok(self.body);
        }
        #[derive(Deserialize)]
        struct Errors {
            errors: Vec<String>,
        }
        let said = serde_json::from_slice(&self.body).map(|Errors { errors }| errors.join("; "));
        let said = one_line(&said.unwrap_or_default());
        Err(failed(format!("{}: {} {said}", self.what, self.status)))
    }
}

/// How long a token is good.
#[derive(Clone, Copy, Debug)]
pub struct Lease {
    /// 0: without end.
    pub seconds: u64,
    /// Whether it can be renewed.
    pub renewable: bool,
}

#[derive(Deserialize)]
struct Data<T> {
    data: T,
}

#[derive(Deserialize)]
struct TokenData {
    ttl: u64,
    #[serde(default)]
    renewable: bool,
}

/// The token of a login or of a renewal; `path` is for the messages.
///
/// # Errors
/// The answer is not one of a login.
pub fn granted(path: &str, body: &[u8]) -> Result<(Zeroizing<String>, Lease), UpstreamError> {
    #[derive(Deserialize)]
    struct Granted {
        auth: Auth,
    }
    #[derive(Deserialize)]
    struct Auth {
        client_token: String,
        #[serde(default)]
        lease_duration: u64,
        #[serde(default)]
        renewable: bool,
    }
    let Granted { auth } = parsed(path, body)?;
    if auth.client_token.is_empty() {
        return Err(failed(format!("{path} gave no token")));
    }
    let lease = Lease { seconds: auth.lease_duration, renewable: auth.renewable };
    Ok((Zeroizing::new(auth.client_token), lease))
}

/// The certificate that Vault signed, what is above it, and the root: the last of `ca_chain`, or the issuer itself when
/// there is no chain. That they belong together is for the caller to prove.
///
/// # Errors
/// The answer is not one of `sign-intermediate`, or its chain is too long.
pub fn signed(body: &[u8]) -> Result<UpstreamCa, UpstreamError> {
    #[derive(Deserialize)]
    struct Signed {
        certificate: String,
        #[serde(default)]
        issuing_ca: String,
        #[serde(default)]
        ca_chain: Vec<String>,
    }
    const WHAT: &str = "sign-intermediate";
    let Data { data: Signed { certificate, issuing_ca, ca_chain } } = parsed(WHAT, body)?;
    if ca_chain.len() > LONGEST_CHAIN {
        return Err(failed(format!("{WHAT} answered with a chain of {} certificates", ca_chain.len())));
    }
    let one = |text: &str| -> Result<Vec<u8>, UpstreamError> {
        let blocks = pem::decode_all(text.as_bytes());
        match blocks.map_err(|error| failed(format!("{WHAT}: {error}")))?.as_slice() {
            [(label, der)] if label == "CERTIFICATE" => Ok(der.clone()),
            _ => Err(failed(format!("{WHAT} answered with something else than one certificate"))),
        }
    };
    let mut chain = vec![one(&certificate)?];
    let mut above = ca_chain.iter().map(|text| one(text)).collect::<Result<Vec<_>, _>>()?;
    // Some versions begin the chain with the new certificate.
    above.retain(|certificate| *certificate != chain[0]);
    let root = match above.pop() {
        Some(root) => root,
        None => one(&issuing_ca)?,
    };
    chain.extend(above);
    Ok(UpstreamCa { chain, roots: vec![root] })
}

fn parsed<'a, T: Deserialize<'a>>(what: &str, body: &'a [u8]) -> Result<T, UpstreamError> {
    // The text of the error names the place and never what stands there.
    serde_json::from_slice(body).map_err(|error| {
        failed(format!("{what} answered with nonsense at line {}, column {}", error.line(), error.column()))
    })
}

/// The words of the other side, in one line and not too many: they go into a log.
fn one_line(text: &str) -> String {
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MOST_WORDS).collect();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

async fn exchange_over(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> Result<(StatusCode, Bytes), BoxError> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Ends with this call, whatever the other side does.
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let (head, body) = sender.send_request(request).await?.into_parts();
    let body = Limited::new(body, LARGEST_ANSWER).collect().await?;
    Ok((head.status, body.to_bytes()))
}

async fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, BoxError> {
    let text = tokio::fs::read(path).await.map_err(unreadable(path))?;
    let blocks = pem::decode_all(&text).map_err(|error| format!("{}: {error}", path.display()))?;
    let found: Vec<_> = blocks
        .into_iter()
        .filter(|(label, _)| label == "CERTIFICATE")
        .map(|(_, der)| CertificateDer::from(der))
        .collect();
    if found.is_empty() {
        return Err(format!("{}: holds no certificate", path.display()).into());
    }
    Ok(found)
}

/// A secret from a file, without the line end.
fn secret(path: &Path) -> Result<Zeroizing<String>, UpstreamError> {
    let text = std::fs::read_to_string(path).map_err(|error| failed(unreadable(path)(error)))?;
    let text = Zeroizing::new(text);
    let secret = text.trim();
    if secret.is_empty() {
        return Err(failed(format!("{} is empty", path.display())));
    }
    Ok(Zeroizing::new(secret.to_owned()))
}

fn unreadable(path: &Path) -> impl Fn(std::io::Error) -> String {
    move |error| format!("{} cannot be read: {error}", path.display())
}

fn failed(reason: String) -> UpstreamError {
    UpstreamError { name: NAME, reason }
}

const NAME: &str = "vault";

/// For one request with its connection and its answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// In bytes.
const LARGEST_ANSWER: usize = 1 << 20;
/// In certificates.
const LONGEST_CHAIN: usize = 16;
/// Of Vault's errors, in characters.
const MOST_WORDS: usize = 500;

#[cfg(test)]
mod tests {
    use bonafide_testkit::{TestAuthority, trust_domain};

    use super::*;

    #[test]
    fn addresses() {
        for (text, shown) in [
            ("https://vault.example.org:8200", "https://vault.example.org:8200"),
            ("https://vault.example.org/", "https://vault.example.org:443"),
            ("http://127.0.0.1:8200", "http://127.0.0.1:8200"),
            ("http://localhost", "http://localhost:80"),
            ("http://[::1]:8200", "http://[::1]:8200"),
        ] {
            assert_eq!(text.parse::<VaultAddress>().unwrap().to_string(), shown);
        }
        for text in
            ["vault:8200", "http://vault.example.org:8200", "https://", "https://a:b@host", "ftp://x", ""]
        {
            assert!(text.parse::<VaultAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_vault_says_stays_in_one_line() {
        let said =
            json!({ "errors": ["1 error occurred:\n\t* permission denied\n\n", "\u{1b}[31mforged\r\n"] });
        let answer = Answer {
            what: "here".to_owned(),
            status: StatusCode::FORBIDDEN,
            body: Bytes::from(said.to_string()),
        };
        let refused = answer.accepted().unwrap_err().to_string();
        let expected = "here: 403 Forbidden 1 error occurred: * permission denied ; [31mforged";
        assert!(refused.ends_with(expected), "{refused:?}");
        assert!(one_line(&"x".repeat(MOST_WORDS + 1)).len() == MOST_WORDS);
    }

    fn text(der: &[u8]) -> String {
        pem::encode("CERTIFICATE", der)
    }

    #[test]
    fn the_root_is_the_end_of_the_chain() {
        let now = Timestamp::from_unix_seconds(1_800_000_000);
        let root = TestAuthority::new(&trust_domain(), now, now.saturating_add(Duration::from_secs(60)));
        let middle = root.intermediate();
        let new = middle.intermediate();
        let answer = |chain: &[&[u8]]| {
            let chain: Vec<String> = chain.iter().map(|der| text(der)).collect();
            let data = json!({
                "certificate": text(new.certificate()), "issuing_ca": text(middle.certificate()), "ca_chain": chain,
            });
            signed(json!({ "data": data }).to_string().as_bytes()).unwrap()
        };
        let whole = answer(&[middle.certificate(), root.certificate()]);
        assert_eq!(whole.chain, [new.certificate(), middle.certificate()]);
        assert_eq!(whole.roots, [root.certificate()]);
        assert_eq!(answer(&[new.certificate(), middle.certificate(), root.certificate()]), whole);
        let short = answer(&[]);
        assert_eq!((short.chain.len(), &short.roots[0][..]), (1, middle.certificate()));
    }

    #[test]
    fn nonsense_is_refused_and_not_repeated() {
        for body in
            ["", "{}", "[]", "{\"data\":{\"certificate\":\"s3cret\"}}", "{\"data\":{\"certificate\":7}}"]
        {
            let refused = signed(body.as_bytes()).unwrap_err().to_string();
            assert!(!refused.contains("s3cret"), "{refused}");
        }
        for body in
            ["{\"auth\":null}", "{\"auth\":{\"client_token\":\"\"}}", "{\"auth\":{\"client_token\":7}}"]
        {
            assert!(granted("login", body.as_bytes()).is_err(), "{body}");
        }
        let long = vec![""; LONGEST_CHAIN + 1];
        let body = json!({ "data": { "certificate": "", "ca_chain": long } }).to_string();
        assert!(signed(body.as_bytes()).unwrap_err().to_string().contains("chain of 17"));
    }
}
