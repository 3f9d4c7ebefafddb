//! Type `http_challenge`: the server asks the host name that this agent claims for a nonce, over plain HTTP.
//!
//! The port is open while an attestation is under way and no longer. It serves one path, answers a few callers at a time and
//! knows nothing but the nonce, which is worthless to anybody but the server that sent it.

use std::convert::Infallible;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use zeroize::Zeroizing;

use super::{Attempt, NodeAttestError, NodeAttestor};
use crate::config::HttpChallengeConfig;

/// The attestor of type `http_challenge`.
pub struct HttpChallenge {
    config: HttpChallengeConfig,
}

impl HttpChallenge {
    /// With these settings.
    #[must_use]
    pub fn new(config: HttpChallengeConfig) -> Self {
        Self { config }
    }

    async fn listen(&self) -> Result<TcpListener, NodeAttestError> {
        let port = self.config.port;
        // One socket for both families where the system has IPv6.
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        match TcpListener::bind(any).await {
            Ok(listener) => Ok(listener),
            Err(_) => TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))
                .await
                .map_err(|source| NodeAttestError::Listen { port, source }),
        }
    }
}

#[async_trait]
impl NodeAttestor for HttpChallenge {
    fn kind(&self) -> &'static str {
        "http_challenge"
    }

    async fn begin(&self) -> Result<Box<dyn Attempt>, NodeAttestError> {
        let listener = self.listen().await?;
        let bound =
            listener.local_addr().map_err(|source| NodeAttestError::Listen { port: 0, source })?.port();
        let HttpChallengeConfig { hostname, agentname, advertised_port, .. } = &self.config;
        let hostname = match hostname {
            Some(name) => name.clone(),
            None => {
                let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
                tracing::info!(name, "http_challenge: claiming the name of this machine");
                name
            }
        };
        let claim = Claim { hostname: &hostname, agentname, port: advertised_port.unwrap_or(bound) };
        let payload = serde_json::to_vec(&claim).expect("texts and a number are JSON");
        let nonce = Arc::new(Mutex::new(None));
        let path = format!("/.well-known/spiffe/nodeattestor/http_challenge/{agentname}/challenge");
        let server = tokio::spawn(serve(listener, path.into(), Arc::clone(&nonce)));
        Ok(Box::new(Serving { payload, nonce, server }))
    }
}

struct Serving {
    payload: Vec<u8>,
    nonce: Arc<Mutex<Option<String>>>,
    server: JoinHandle<()>,
}

impl Attempt for Serving {
    fn payload(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.payload.clone())
    }

    fn respond(&mut self, challenge: &[u8]) -> Result<Vec<u8>, NodeAttestError> {
        let challenge: Challenge = serde_json::from_slice(challenge)
            .map_err(|_| NodeAttestError::Challenge("it is not the JSON of an http_challenge challenge"))?;
        let plain = |byte: u8| byte.is_ascii_graphic();
        if challenge.nonce.is_empty() || challenge.nonce.len() > 64 || !challenge.nonce.bytes().all(plain) {
            // Other servers might take what is shown here for something else.
            return Err(NodeAttestError::Challenge("its nonce is none"));
        }
        *self.nonce.lock().unwrap_or_else(PoisonError::into_inner) = Some(challenge.nonce);
        Ok(b"{}".to_vec())
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Until it is aborted, and everything it began with it.
async fn serve(listener: TcpListener, path: Arc<str>, nonce: Arc<Mutex<Option<String>>>) {
    let places = Arc::new(Semaphore::new(CALLERS));
    let mut calls = tokio::task::JoinSet::new();
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors, most likely: not at full speed into the same again.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let (path, nonce) = (Arc::clone(&path), Arc::clone(&nonce));
        calls.spawn(async move {
            let service = service_fn(move |request| {
                let response = answer(&request, &path, &nonce);
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIME)
                .max_buf_size(8192)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            let _ = tokio::time::timeout(CALL_TIME, connection).await;
            drop(place);
        });
        while calls.try_join_next().is_some() {}
    }
}

fn answer<B>(request: &Request<B>, path: &str, nonce: &Mutex<Option<String>>) -> Response<Full<Bytes>> {
    let nonce = nonce.lock().unwrap_or_else(PoisonError::into_inner);
    let (status, body) = match &*nonce {
        Some(nonce) if request.uri().path() == path && request.method() == Method::GET => {
            (StatusCode::OK, format!("{nonce}\n"))
        }
        _ => (StatusCode::NOT_FOUND, String::new()),
    };
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response
}

#[derive(Serialize)]
struct Claim<'a> {
    hostname: &'a str,
    agentname: &'a str,
    port: u16,
}

#[derive(Deserialize)]
struct Challenge {
    nonce: String,
}

/// More than strangers will hold by accident: who says nothing loses the place soon.
const CALLERS: usize = 64;
const HEAD_TIME: Duration = Duration::from_secs(3);
const CALL_TIME: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use bonafide_runtime::fetch::{FetchError, Query, fetch};

    use super::*;

    #[tokio::test]
    async fn the_nonce_is_shown_at_one_place_while_the_attempt_lasts() {
        let config = HttpChallengeConfig {
            hostname: Some("node.test".to_owned()),
            agentname: "default".to_owned(),
            port: 0,
            advertised_port: None,
        };
        let mut attempt = HttpChallenge::new(config.clone()).begin().await.unwrap();
        let claim: serde_json::Value = serde_json::from_slice(&attempt.payload()).unwrap();
        let port = claim["port"].as_u64().unwrap();
        assert_eq!(
            claim,
            serde_json::json!({ "hostname": "node.test", "agentname": "default", "port": port })
        );
        let get = async |path: &str| {
            let url = format!("http://127.0.0.1:{port}{path}").parse().unwrap();
            fetch(Query::get(url, 64, Duration::from_secs(5)), None).await
        };
        let path = "/.well-known/spiffe/nodeattestor/http_challenge/default/challenge";
        let missing = |answer| matches!(answer, Err(FetchError::Status(StatusCode::NOT_FOUND)));
        assert!(missing(get(path).await));
        for wrong in ["", "{}", r#"{"nonce":""}"#, r#"{"nonce":"a b"}"#, r#"{"nonce":"a\nb"}"#] {
            assert!(
                matches!(attempt.respond(wrong.as_bytes()), Err(NodeAttestError::Challenge(_))),
                "{wrong}"
            );
        }
        assert_eq!(attempt.respond(br#"{"nonce":"abc_-="}"#).unwrap(), b"{}");
        assert_eq!(get(path).await.unwrap(), "abc_-=\n");
        assert!(missing(get("/").await) && missing(get(&path.replace("default", "other")).await));

        // The port is taken, and free again when the attempt is over.
        let same = HttpChallengeConfig { port: u16::try_from(port).unwrap(), ..config };
        let taken = HttpChallenge::new(same.clone()).begin().await.map(drop).unwrap_err();
        assert!(taken.to_string().contains(&format!("cannot listen on port {port}")), "{taken}");
        drop(attempt);
        let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
        while HttpChallenge::new(same.clone()).begin().await.is_err() {
            assert!(tokio::time::Instant::now() < deadline, "the port is still taken");
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn callers_that_say_nothing_do_not_keep_the_server_out() {
        let config = HttpChallengeConfig {
            hostname: Some("node.test".to_owned()),
            agentname: "a".to_owned(),
            port: 0,
            advertised_port: None,
        };
        let mut attempt = HttpChallenge::new(config).begin().await.unwrap();
        let claim: serde_json::Value = serde_json::from_slice(&attempt.payload()).unwrap();
        let port = u16::try_from(claim["port"].as_u64().unwrap()).unwrap();
        attempt.respond(br#"{"nonce":"abc"}"#).unwrap();
        let mut silent = Vec::new();
        for _ in 0..CALLERS {
            silent.push(tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap());
        }
        let url =
            format!("http://127.0.0.1:{port}/.well-known/spiffe/nodeattestor/http_challenge/a/challenge");
        let query = Query::get(url.parse().unwrap(), 64, HEAD_TIME * 2);
        assert_eq!(fetch(query, None).await.unwrap(), "abc\n");
    }

    #[tokio::test]
    async fn the_port_that_is_named_may_be_another() {
        let config = HttpChallengeConfig {
            hostname: None,
            agentname: "a".to_owned(),
            port: 0,
            advertised_port: Some(80),
        };
        let attempt = HttpChallenge::new(config).begin().await.unwrap();
        let claim: serde_json::Value = serde_json::from_slice(&attempt.payload()).unwrap();
        assert_eq!(claim["port"], 80);
        assert!(!claim["hostname"].as_str().unwrap().is_empty());
    }
}
