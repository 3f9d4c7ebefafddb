//! An API server as far as this server uses one, which can also fail in all the ways of a network.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// What the double knows, does and has seen.
#[derive(Default)]
pub(crate) struct State {
    /// Objects by path.
    pub(crate) objects: BTreeMap<String, Value>,
    /// What is said of a token: its user, and the audiences that it is for.
    pub(crate) tokens: BTreeMap<String, (Value, Vec<String>)>,
    /// Rights that are missing: verb and resource.
    pub(crate) forbidden: BTreeSet<(&'static str, &'static str)>,
    pub(crate) trouble: Option<Trouble>,
    /// Verb and path of each request.
    pub(crate) seen: Vec<String>,
    made: u64,
}

/// How the double fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    Silent,
    Endless,
    Nonsense,
    Failing,
    Stranger,
    /// It does not know audiences.
    NoAudiences,
}

pub(crate) struct Double {
    state: Mutex<State>,
    pub(crate) address: SocketAddr,
}

impl Double {
    pub(crate) async fn start() -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let double = Arc::new(Self { state: Mutex::default(), address });
        let serving = Arc::clone(&double);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let double = Arc::clone(&serving);
                tokio::spawn(async move {
                    let service = service_fn(move |request| {
                        let double = Arc::clone(&double);
                        async move { Ok::<_, Infallible>(double.answer(request).await) }
                    });
                    drop(
                        hyper::server::conn::http1::Builder::new()
                            .serve_connection(TokioIo::new(stream), service)
                            .await,
                    );
                });
            }
        });
        double
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// A file that leads here.
    pub(crate) fn kubeconfig(&self, folder: &Path) -> PathBuf {
        let cluster = json!({ "server": format!("http://{}", self.address) });
        super::kubeconfig(folder, "kubeconfig", &cluster, &json!({ "token": "credential" }))
    }

    /// A pod with a node and a token, as its claims say.
    pub(crate) fn admit(&self, token: &str, claims: &Value) {
        let of =
            |path: &str| claims["kubernetes.io"].pointer(path).and_then(Value::as_str).unwrap().to_owned();
        let (pod, node) = (of("/pod/name"), of("/node/name"));
        let mut state = self.state();
        state.objects.insert(
            format!("/api/v1/namespaces/{}/pods/{pod}", of("/namespace")),
            json!({
                "metadata": { "name": pod, "uid": of("/pod/uid"), "labels": { "app": "agent", "tier": "a" } },
                "spec": { "nodeName": node }, "status": { "phase": "Running", "hostIP": "192.0.2.7" },
            }),
        );
        let labels = json!({ "zone": "z1", "secret": "s" });
        let object = json!({ "metadata": { "name": node, "uid": of("/node/uid"), "labels": labels } });
        state.objects.insert(format!("/api/v1/nodes/{node}"), object);
        let extra = |name: &str| format!("authentication.kubernetes.io/{name}");
        let user = json!({
            "username": claims["sub"], "uid": "sa-1", "groups": ["system:serviceaccounts"],
            "extra": {
                extra("pod-name"): [pod], extra("pod-uid"): [of("/pod/uid")],
                extra("node-name"): [node], extra("node-uid"): [of("/node/uid")],
            },
        });
        let audiences = claims["aud"].as_array().unwrap().iter().map(|one| one.as_str().unwrap().to_owned());
        state.tokens.insert(token.to_owned(), (user, audiences.collect()));
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<BoxBody<Bytes, Infallible>> {
        let (method, uri) = (request.method().clone(), request.uri().clone());
        let credential = request.headers().get("authorization").cloned();
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let trouble = self.state().trouble;
        match trouble {
            Some(Trouble::Silent) => std::future::pending().await,
            Some(Trouble::Endless) => {
                let chunks = tokio_stream::iter(std::iter::repeat_with(|| {
                    Ok(Frame::data(Bytes::from_static(&[b' '; 1 << 16])))
                }));
                return Response::new(BoxBody::new(http_body_util::StreamBody::new(chunks)));
            }
            _ => {}
        }
        let (status, value) = match trouble {
            Some(Trouble::Nonsense) => (StatusCode::OK, json!({ "kind": "Other" })),
            Some(Trouble::Failing) => {
                (StatusCode::INTERNAL_SERVER_ERROR, json!({ "kind": "Status", "message": "etcd is away" }))
            }
            _ if trouble == Some(Trouble::Stranger)
                || credential.is_none_or(|value| value != "Bearer credential") =>
            {
                (StatusCode::UNAUTHORIZED, json!({ "kind": "Status", "message": "Unauthorized" }))
            }
            _ => self.judge(&method, uri.path(), uri.query(), &body),
        };
        let mut response = Response::new(Full::new(Bytes::from(value.to_string())).boxed());
        *response.status_mut() = status;
        response
    }

    fn judge(&self, method: &Method, path: &str, query: Option<&str>, body: &[u8]) -> (StatusCode, Value) {
        let refused =
            |status, why: &str| (status, json!({ "kind": "Status", "status": "Failure", "message": why }));
        let resource = if path.contains("/certificaterequests") {
            "certificaterequests.cert-manager.io"
        } else if path.contains("/pods/") {
            "pods"
        } else if path.contains("/nodes/") {
            "nodes"
        } else {
            "tokenreviews.authentication.k8s.io"
        };
        let verb = match (method.as_str(), path.ends_with("/certificaterequests")) {
            ("POST", _) => "create",
            ("DELETE", _) => "delete",
            (_, true) => "list",
            _ => "get",
        };
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let mut state = self.state();
        state.seen.push(format!("{verb} {path}"));
        if state.forbidden.contains(&(verb, resource)) {
            return refused(
                StatusCode::FORBIDDEN,
                &format!("{resource} is forbidden: User \"x\" cannot {verb} it"),
            );
        }
        match (verb, resource) {
            ("create", "tokenreviews.authentication.k8s.io") => {
                let asked: Vec<&str> =
                    body["spec"]["audiences"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
                let status = match state.tokens.get(body["spec"]["token"].as_str().unwrap()) {
                    None => json!({ "user": {}, "error": "[invalid bearer token]" }),
                    Some((user, _)) if state.trouble == Some(Trouble::NoAudiences) => {
                        json!({ "authenticated": true, "user": user })
                    }
                    Some((user, audiences)) => {
                        let both: Vec<&String> =
                            audiences.iter().filter(|one| asked.contains(&one.as_str())).collect();
                        match both.is_empty() && !asked.is_empty() {
                            true => {
                                json!({ "user": {}, "error": "[token audiences is invalid for the target audiences]" })
                            }
                            false => json!({ "authenticated": true, "user": user, "audiences": both }),
                        }
                    }
                };
                (
                    StatusCode::CREATED,
                    json!({ "kind": "TokenReview", "spec": body["spec"], "status": status }),
                )
            }
            ("create", _) => {
                let mut object = body;
                let path = format!("{path}/{}", object["metadata"]["name"].as_str().unwrap());
                if state.objects.contains_key(&path) {
                    return refused(StatusCode::CONFLICT, "already exists");
                }
                state.made += 1;
                object["metadata"]["uid"] = format!("uid-{}", state.made).into();
                object["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z".into();
                state.objects.insert(path, object.clone());
                (StatusCode::CREATED, object)
            }
            ("list", _) => {
                let query =
                    query.unwrap_or_default().replace("%2F", "/").replace("%2C", ",").replace("%3D", "=");
                let selector = query.split('&').find_map(|part| part.strip_prefix("labelSelector=")).unwrap();
                let fits = |object: &Value| {
                    selector.split(',').all(|pair| {
                        let (key, value) = pair.split_once('=').unwrap();
                        object["metadata"]["labels"][key] == value
                    })
                };
                let below = format!("{path}/");
                let items =
                    state.objects.iter().filter(|(path, object)| path.starts_with(&below) && fits(object));
                let items: Vec<&Value> = items.map(|(_, object)| object).collect();
                (StatusCode::OK, json!({ "kind": "CertificateRequestList", "items": items }))
            }
            _ => match state.objects.get(path).cloned() {
                None => refused(StatusCode::NOT_FOUND, "not found"),
                Some(object) if verb == "delete" => {
                    if body["preconditions"]["uid"] != object["metadata"]["uid"] {
                        return refused(StatusCode::CONFLICT, "the UID in the precondition does not match");
                    }
                    state.objects.remove(path);
                    (StatusCode::OK, json!({ "kind": "Status", "status": "Success" }))
                }
                Some(object) => (StatusCode::OK, object),
            },
        }
    }
}
