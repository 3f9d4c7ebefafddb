//! Is the process alive, is it ready to work: asked over HTTP by supervisors, together with the metrics.
//!
//! Each component registers itself and says when it is ready. The whole is ready when every component is, and alive
//! unless one has failed for good; a process that is not alive is to be restarted, one that is not ready only gets no new
//! work.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use crate::listener::ListenerError;
use crate::listener::accept::Connections;
use crate::shutdown::Shutdown;
use crate::telemetry::MetricsHandle;

/// The state of every component. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    components: Arc<Mutex<BTreeMap<String, State>>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Ready,
    NotReady(String),
    Failed(String),
}

impl Readiness {
    /// No components: ready and alive.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a component that is not ready yet ("starting"). A second one of the same name takes the place of the first.
    pub fn register(&self, name: impl Into<String>) -> ReadinessGuard {
        let name = name.into();
        self.lock().insert(name.clone(), State::NotReady("starting".into()));
        ReadinessGuard { readiness: self.clone(), name }
    }

    /// Whether every component is ready.
    pub fn is_ready(&self) -> bool {
        self.lock().values().all(|state| *state == State::Ready)
    }

    /// Whether no component has failed for good.
    pub fn is_live(&self) -> bool {
        !self.lock().values().any(|state| matches!(state, State::Failed(_)))
    }

    /// Each component by name: `{"server.ca": {"ready": false, "live": true, "why": "starting"}}`.
    pub fn details(&self) -> serde_json::Value {
        let components = self.lock();
        let details = components.iter().map(|(name, state)| {
            let detail = match state {
                State::Ready => serde_json::json!({"ready": true, "live": true}),
                State::NotReady(why) => serde_json::json!({"ready": false, "live": true, "why": why}),
                State::Failed(why) => serde_json::json!({"ready": false, "live": false, "why": why}),
            };
            (name.clone(), detail)
        });
        serde_json::Value::Object(details.collect())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, State>> {
        // Each change is one insertion, so a panic elsewhere leaves the map whole.
        self.components.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A component's voice. When it is dropped the component is not ready any more ("stopped").
#[derive(Debug)]
pub struct ReadinessGuard {
    readiness: Readiness,
    name: String,
}

impl ReadinessGuard {
    /// The component works.
    pub fn ready(&self) {
        self.say(State::Ready);
    }

    /// The component does not work at the moment.
    pub fn not_ready(&self, why: impl Into<String>) {
        self.say(State::NotReady(why.into()));
    }

    /// The component will never work again in this process.
    pub fn failed(&self, why: impl Into<String>) {
        self.say(State::Failed(why.into()));
    }

    fn say(&self, state: State) {
        self.readiness.lock().insert(self.name.clone(), state);
    }
}

impl Drop for ReadinessGuard {
    fn drop(&mut self) {
        let mut components = self.readiness.lock();
        // A failure must stay visible after the component has gone because of it.
        if !matches!(components.get(&self.name), Some(State::Failed(_))) {
            components.insert(self.name.clone(), State::NotReady("stopped".into()));
        }
    }
}

/// Connections that are served at once; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 64;
/// How long a client may take to send a request's head, on a new connection and between two requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may live in all, whatever the client does.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);
/// How long an answer that has begun may take when the connection is to end.
const LAST_ANSWER: Duration = Duration::from_secs(1);
/// The largest head of a request.
const MAX_HEAD: usize = 16 * 1024;

/// Serves `/live`, `/ready` (200 or 500, with [`Readiness::details`] as JSON) and `/metrics` on HTTP/1 until the
/// shutdown.
///
/// # Errors
/// When the listener breaks.
pub async fn serve_http(
    listener: TcpListener,
    readiness: Readiness,
    metrics: MetricsHandle,
    shutdown: Shutdown,
) -> Result<(), ListenerError> {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let tasks = TaskTracker::new();
    let stop = shutdown.child();
    let mut connections = Connections::new("health", listener, shutdown.clone());
    let outcome = loop {
        let stream = match connections.next().await {
            Ok(Some((stream, _))) => stream,
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        };
        let place = tokio::select! {
            () = shutdown.triggered() => break Ok(()),
            place = Arc::clone(&places).acquire_owned() => place,
        };
        let (readiness, metrics, stop) = (readiness.clone(), metrics.clone(), stop.clone());
        tasks.spawn(async move {
            let _place = place;
            let service = service_fn(move |request: Request<Incoming>| {
                let response = answer(&request, &readiness, &metrics);
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .max_buf_size(MAX_HEAD)
                .serve_connection(TokioIo::new(stream), service);
            let mut connection = pin!(connection);
            tokio::select! {
                // What goes wrong on one such connection is the client's affair.
                _ = connection.as_mut() => return,
                () = tokio::time::sleep(CONNECTION_TIMEOUT) => {}
                () = stop.triggered() => {}
            }
            connection.as_mut().graceful_shutdown();
            let _ = tokio::time::timeout(LAST_ANSWER, connection).await;
        });
    };
    drop(connections);
    stop.trigger();
    tasks.close();
    tasks.wait().await;
    outcome
}

fn answer<B>(request: &Request<B>, readiness: &Readiness, metrics: &MetricsHandle) -> Response<Full<Bytes>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut response = plain(
            StatusCode::METHOD_NOT_ALLOWED,
            "text/plain; charset=utf-8",
            "only GET is served here\n".into(),
        );
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        "/live" => verdict(readiness.is_live(), readiness),
        "/ready" => verdict(readiness.is_ready(), readiness),
        "/metrics" => plain(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", metrics.render()),
        _ => plain(
            StatusCode::NOT_FOUND,
            "text/plain; charset=utf-8",
            "see /live, /ready and /metrics\n".into(),
        ),
    }
}

fn verdict(good: bool, readiness: &Readiness) -> Response<Full<Bytes>> {
    let status = if good { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR };
    plain(status, "application/json", readiness.details().to_string())
}

fn plain(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_is_as_ready_as_its_least_ready_part() {
        let readiness = Readiness::new();
        assert!(readiness.is_ready() && readiness.is_live());
        let (store, authority) = (readiness.register("store"), readiness.register("authority"));
        assert!(!readiness.is_ready() && readiness.is_live());
        store.ready();
        authority.ready();
        assert!(readiness.is_ready());
        store.not_ready("disk full");
        assert!(!readiness.is_ready() && readiness.is_live());
        assert_eq!(readiness.details()["store"]["why"], "disk full");
        store.failed("corrupt");
        drop(store);
        assert!(!readiness.is_live());
        assert_eq!(readiness.details()["store"]["why"], "corrupt");
        drop(authority);
        assert_eq!(readiness.details()["authority"]["why"], "stopped");
    }

    #[test]
    fn each_path_has_its_answer() {
        let readiness = Readiness::new();
        let guard = readiness.register("server");
        let metrics = crate::telemetry::metrics();
        let status = |method: Method, path: &str| {
            let request = Request::builder().method(method).uri(path).body(()).unwrap();
            answer(&request, &readiness, &metrics).status().as_u16()
        };
        assert_eq!((status(Method::GET, "/live"), status(Method::GET, "/ready")), (200, 500));
        guard.ready();
        assert_eq!((status(Method::HEAD, "/ready"), status(Method::GET, "/metrics")), (200, 200));
        assert_eq!((status(Method::GET, "/"), status(Method::POST, "/live")), (404, 405));
    }
}
