//! Calls over the network, by the `kube` crate: it reads kubeconfig files, gets and renews credentials as they say, and does
//! TLS. Its own ways of reading answers have no limit of size, so bodies are read here.
//!
//! A client is used for a minute and then made anew, so that files that were replaced are noticed; and at once after a call
//! that did not come through. A cluster that is away holds up few callers: 16 calls are under way at once, others wait two
//! seconds for a turn, and for two seconds after a call that did not come through nobody is made to wait for another one.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bonafide_runtime::BoxError;
use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use kube::client::{AuthError, Body};
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use serde::Deserialize;
use tokio::sync::{Mutex, Semaphore};
use tokio::time::{Instant, timeout};

use super::{Access, Api, ApiError, CALL_TIME, Call, MAX_ANSWER, Verb, unusable};
use crate::node_attestor::oidc::acceptable;

/// A client of one cluster.
pub(super) struct Client {
    access: Access,
    made: Mutex<Option<(kube::Client, Instant)>>,
    /// How many calls are made at once, whoever asks for them.
    slots: Semaphore,
    /// Held while credentials are had.
    making: Arc<Semaphore>,
    /// When a call last did not come through.
    away: Mutex<Option<Instant>>,
}

impl Client {
    /// Reads the files, so that mistakes are found early.
    pub(super) fn new(access: Access) -> Result<Self, ApiError> {
        match &access {
            Access::InCluster => drop(in_cluster()?),
            Access::KubeConfig(path) => drop(Kubeconfig::read_from(path).map_err(unusable_access)?),
        }
        Ok(Self {
            access,
            made: Mutex::new(None),
            slots: Semaphore::new(MOST_CALLS),
            making: Arc::new(Semaphore::new(1)),
            away: Mutex::default(),
        })
    }

    async fn client(&self) -> Result<kube::Client, ApiError> {
        let mut made = self.made.lock().await;
        if let Some((client, at)) = &*made
            && at.elapsed() < FRESH
        {
            return Ok(client.clone());
        }
        let config = self.config().await?;
        // A kubeconfig file may name a program that gets credentials, and that is waited for here. One at a time: whoever gives
        // up waiting leaves it behind.
        let one = Arc::clone(&self.making).try_acquire_owned();
        let one = one.map_err(|_| unusable_access("credentials are still being waited for"))?;
        let client = tokio::task::spawn_blocking(move || {
            let _one = one;
            kube::Client::try_from(config)
        });
        let client = client.await.map_err(unusable_access)?.map_err(without_secrets)?;
        *made = Some((client.clone(), Instant::now()));
        Ok(client)
    }

    async fn config(&self) -> Result<Config, ApiError> {
        let mut config = match &self.access {
            Access::InCluster => in_cluster()?,
            Access::KubeConfig(path) => {
                let file = Kubeconfig::read_from(path).map_err(unusable_access)?;
                let of_file = file.clusters.iter().filter_map(|named| named.cluster.as_ref());
                let proxied = of_file.into_iter().any(|cluster| cluster.proxy_url.is_some());
                let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await;
                let mut config = config.map_err(unusable_access)?;
                let refused = |why: &str| unusable_access(format!("{}: {why}", path.display()));
                if config.accept_invalid_certs {
                    return Err(refused(
                        "insecure-skip-tls-verify would show tokens to anybody: name certificate-authority",
                    ));
                }
                if !acceptable(&config.cluster_url) {
                    return Err(refused("the server must have an https URL (http on the same machine only)"));
                }
                if proxied {
                    return Err(refused("proxy-url is not supported"));
                }
                // What the environment says is not read.
                config.proxy_url = None;
                config
            }
        };
        config.connect_timeout = Some(CALL_TIME);
        config.read_timeout = Some(CALL_TIME);
        // Whoever waits for the answer tries again.
        config.default_retry = false;
        Ok(config)
    }

    async fn exchange(&self, call: &Call<'_>) -> Result<(StatusCode, Bytes), ApiError> {
        let method = match call.verb {
            Verb::Create => Method::POST,
            Verb::Delete => Method::DELETE,
            Verb::Get | Verb::List => Method::GET,
            Verb::Apply | Verb::Patch => Method::PATCH,
        };
        let mut request = Request::new(Body::empty());
        *request.method_mut() = method;
        *request.uri_mut() = call
            .path
            .parse()
            .map_err(|error: http::uri::InvalidUri| unusable(call.verb, call.resource, error))?;
        let json = header::HeaderValue::from_static("application/json");
        request.headers_mut().insert(header::ACCEPT, json.clone());
        if let Some(body) = &call.body {
            let content = match call.verb {
                // JSON is YAML.
                Verb::Apply => header::HeaderValue::from_static("application/apply-patch+yaml"),
                Verb::Patch => header::HeaderValue::from_static("application/json-patch+json"),
                _ => json,
            };
            request.headers_mut().insert(header::CONTENT_TYPE, content);
            *request.body_mut() = Body::from(body.to_string().into_bytes());
        }
        let unreachable = |error: kube::Error| match error {
            error @ kube::Error::Auth(_) => without_secrets(error),
            error => ApiError::Unreachable(error.into()),
        };
        let (head, body) = self.client().await?.send(request).await.map_err(unreachable)?.into_parts();
        let body = Limited::new(body, MAX_ANSWER).collect().await;
        let body = body.map_err(|error| unusable(call.verb, call.resource, error))?;
        Ok((head.status, body.to_bytes()))
    }
}

#[async_trait]
impl Api for Client {
    async fn call(&self, call: Call<'_>) -> Result<Vec<u8>, ApiError> {
        let slot = timeout(REST, self.slots.acquire()).await;
        let _slot = slot.map_err(|_| ApiError::Busy)?;
        if self.away.lock().await.is_some_and(|at| at.elapsed() < REST) {
            return Err(ApiError::Unreachable("the last call did not come through, a moment ago".into()));
        }
        let outcome = timeout(CALL_TIME, self.exchange(&call)).await.unwrap_or(Err(ApiError::TimedOut));
        let away = matches!(outcome, Err(ApiError::Unreachable(_) | ApiError::TimedOut));
        *self.away.lock().await = away.then(Instant::now);
        let outcome = outcome.and_then(|(status, body)| judged(&call, status, body));
        if away || matches!(outcome, Err(ApiError::Unauthorized)) {
            *self.made.lock().await = None;
        }
        outcome
    }
}

fn judged(call: &Call<'_>, status: StatusCode, body: Bytes) -> Result<Vec<u8>, ApiError> {
    if status.is_success() {
        return Ok(body.into());
    }
    #[derive(Deserialize)]
    struct Status {
        message: String,
    }
    let message = serde_json::from_slice(&body).map(|Status { message }| message).unwrap_or_default();
    let said: BoxError = message.chars().take(MOST_WORDS).collect::<String>().into();
    let resource = call.resource.to_owned();
    Err(match status {
        StatusCode::UNAUTHORIZED => ApiError::Unauthorized,
        StatusCode::FORBIDDEN => ApiError::Forbidden { verb: call.verb, resource, said },
        StatusCode::NOT_FOUND => ApiError::Missing { resource, said },
        StatusCode::CONFLICT => ApiError::Exists { resource },
        status => ApiError::Refused { verb: call.verb, resource, status: status.as_u16(), said },
    })
}

fn in_cluster() -> Result<Config, ApiError> {
    Config::incluster().map_err(|error| {
        unusable_access(format!("there is no kube_config_file, and this server is in no cluster: {error}"))
    })
}

/// What the program for credentials was called with, and what it printed, is nobody's business.
fn without_secrets(error: kube::Error) -> ApiError {
    match error {
        kube::Error::Auth(AuthError::AuthExecRun { out, .. }) => {
            unusable_access(format!("the program for credentials ended with {}", out.status))
        }
        kube::Error::Auth(AuthError::AuthExecParse(_)) => {
            unusable_access("what the program for credentials printed is no ExecCredential")
        }
        error => unusable_access(error),
    }
}

fn unusable_access(error: impl Into<BoxError>) -> ApiError {
    ApiError::Access(error.into())
}

/// How long a client is used before the files are read again.
const FRESH: Duration = Duration::from_secs(60);
const MOST_CALLS: usize = 16;
/// For a turn to call, and after a call that did not come through.
const REST: Duration = Duration::from_secs(2);
/// Of the API server's message, in characters.
const MOST_WORDS: usize = 500;
