//! Kubernetes clusters: what this server asks of their API servers.
//!
//! [`Api`] makes one bounded call; [`Cluster`] is what can be asked about agents, over any [`Api`]. The one implementation
//! that goes to the network is [`connect`]'s, so that whatever else needs a cluster goes through the same door. Answers are
//! read into the few members that are needed: whole objects are large, and differ between versions.

#[cfg(feature = "k8s")]
mod client;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bonafide_runtime::BoxError;
use serde::Deserialize;
use serde_json::{Value, json};

/// Where a cluster's API server is, and how this server shows who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// The cluster that this server runs in, with its pod's service account.
    InCluster,
    /// The current context of a kubeconfig file.
    KubeConfig(PathBuf),
}

/// One call to an API server.
#[derive(Clone, Debug)]
pub struct Call<'a> {
    /// What is done, as RBAC calls it: `create`, `delete`, `get`, `list` or `patch`.
    pub verb: Verb,
    /// The resource, as RBAC calls it, with its group: `pods`, `tokenreviews.authentication.k8s.io`.
    pub resource: &'a str,
    /// Path and query.
    pub path: String,
    /// The JSON that is sent.
    pub body: Option<Value>,
}

/// What is done to a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// `POST`.
    Create,
    /// `PATCH` with a whole object: server-side apply. RBAC has the same word for it as for [`Self::Patch`].
    Apply,
    /// `DELETE`.
    Delete,
    /// `GET` of one object.
    Get,
    /// `GET` of all.
    List,
    /// `PATCH` with a list of operations (RFC 6902).
    Patch,
}

impl Verb {
    /// The word that RBAC has for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Apply | Self::Patch => "patch",
            Self::Create => "create",
            Self::Delete => "delete",
            Self::Get => "get",
            Self::List => "list",
        }
    }
}

/// Makes calls. Each ends within [`CALL_TIME`], after two seconds at most for a turn, and reads at most [`MAX_ANSWER`] bytes.
#[async_trait]
pub trait Api: Send + Sync {
    /// The body of a successful answer.
    ///
    /// # Errors
    /// [`ApiError`].
    async fn call(&self, call: Call<'_>) -> Result<Vec<u8>, ApiError>;
}

/// For one call with its connection and its answer.
pub const CALL_TIME: Duration = Duration::from_secs(10);

/// In bytes. What etcd keeps is smaller.
pub const MAX_ANSWER: usize = 2 << 20;

/// Why a call has no answer. The texts may be shown to nodes; what is only for the operator is in the source.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The files that say how to reach the cluster cannot be used.
    #[error("the access to the cluster cannot be used")]
    Access(#[source] BoxError),
    /// There is no connection.
    #[error("the API server cannot be reached")]
    Unreachable(#[source] BoxError),
    /// Too many calls wait for it.
    #[error("too many calls to the API server are under way")]
    Busy,
    /// It is silent.
    #[error("the API server did not answer within {}s", CALL_TIME.as_secs())]
    TimedOut,
    /// It does not know the credential.
    #[error("the API server does not accept this server's credential")]
    Unauthorized,
    /// A right is missing.
    #[error("this server may not {} {resource} in the cluster: its role needs that verb", verb.as_str())]
    Forbidden {
        /// The verb of the rule that is missing.
        verb: Verb,
        /// The resource of the rule that is missing.
        resource: String,
        /// What the API server said.
        #[source]
        said: BoxError,
    },
    /// There is no such object, or no such resource.
    #[error("there is no such object of {resource}")]
    Missing {
        /// Of which kind.
        resource: String,
        /// What the API server said.
        #[source]
        said: BoxError,
    },
    /// There is such an object already.
    #[error("there is such an object of {resource} already")]
    Exists {
        /// Of which kind.
        resource: String,
    },
    /// Another refusal.
    #[error("the API server answered {status} to {} {resource}", verb.as_str())]
    Refused {
        /// What was done.
        verb: Verb,
        /// To what.
        resource: String,
        /// The status.
        status: u16,
        /// What the API server said.
        #[source]
        said: BoxError,
    },
    /// The answer is not one.
    #[error("the API server's answer to {} {resource} cannot be used", verb.as_str())]
    Answer {
        /// What was done.
        verb: Verb,
        /// To what.
        resource: String,
        /// What is wrong.
        #[source]
        problem: BoxError,
    },
}

/// What can be asked about the agents of a cluster.
#[async_trait]
pub trait Cluster: Send + Sync {
    /// Has the cluster say whose a token is. Without audiences it must be for the API server.
    ///
    /// # Errors
    /// [`ApiError`].
    async fn review_token(&self, token: &str, audiences: &[String]) -> Result<TokenReview, ApiError>;

    /// A pod; `None` when there is none of that name.
    ///
    /// # Errors
    /// [`ApiError`].
    async fn pod(&self, namespace: &str, name: &str) -> Result<Option<Pod>, ApiError>;

    /// A node; `None` when there is none of that name.
    ///
    /// # Errors
    /// [`ApiError`].
    async fn node(&self, name: &str) -> Result<Option<Node>, ApiError>;
}

#[async_trait]
impl<T: Api + ?Sized> Cluster for T {
    async fn review_token(&self, token: &str, audiences: &[String]) -> Result<TokenReview, ApiError> {
        const RESOURCE: &str = "tokenreviews.authentication.k8s.io";
        let body = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
            "spec": { "token": token, "audiences": audiences },
        });
        let path = "/apis/authentication.k8s.io/v1/tokenreviews".to_owned();
        let call = Call { verb: Verb::Create, resource: RESOURCE, path, body: Some(body) };
        let answer = self.call(call).await?;
        TokenReview::parse(&answer).map_err(|problem| unusable(Verb::Create, RESOURCE, problem))
    }

    async fn pod(&self, namespace: &str, name: &str) -> Result<Option<Pod>, ApiError> {
        let path = format!("/api/v1/namespaces/{}/pods/{}", escaped(namespace), escaped(name));
        object(self, "pods", path, Pod::parse).await
    }

    async fn node(&self, name: &str) -> Result<Option<Node>, ApiError> {
        object(self, "nodes", format!("/api/v1/nodes/{}", escaped(name)), Node::parse).await
    }
}

async fn object<T>(
    api: &(impl Api + ?Sized),
    resource: &str,
    path: String,
    parse: fn(&[u8]) -> Result<T, serde_json::Error>,
) -> Result<Option<T>, ApiError> {
    match api.call(Call { verb: Verb::Get, resource, path, body: None }).await {
        Ok(answer) => parse(&answer).map(Some).map_err(|problem| unusable(Verb::Get, resource, problem)),
        Err(ApiError::Missing { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

pub(crate) fn unusable(verb: Verb, resource: &str, problem: impl Into<BoxError>) -> ApiError {
    ApiError::Answer { verb, resource: resource.to_owned(), problem: problem.into() }
}

/// One segment of a path: everything but what names of objects consist of is escaped, and so are lone dots.
pub(crate) fn escaped(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    let dots = name.bytes().all(|byte| byte == b'.');
    name.bytes().fold(String::new(), |mut text, byte| {
        if plain(byte) || (byte == b'.' && !dots) {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
        text
    })
}

/// What a cluster says of a token.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct TokenReview {
    /// Whether it is somebody's.
    pub authenticated: bool,
    /// Why it is nobody's.
    pub error: String,
    /// Those of the asked audiences that it is for.
    pub audiences: Vec<String>,
    /// Whose it is.
    pub user: User,
}

/// Whose a token is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct User {
    /// `system:serviceaccount:<namespace>:<name>` for service accounts.
    pub username: String,
    /// What else is known: pod and node that a token is bound to.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl TokenReview {
    /// Reads the API server's answer.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(json: &[u8]) -> Result<Self, serde_json::Error> {
        #[derive(Deserialize)]
        struct Answer {
            status: TokenReview,
        }
        serde_json::from_slice(json).map(|Answer { status }| status)
    }

    /// The one value of something that is known of the user.
    pub fn extra(&self, key: &str) -> Option<&str> {
        match self.user.extra.get(key).map(Vec::as_slice) {
            Some([value]) if !value.is_empty() => Some(value),
            _ => None,
        }
    }
}

/// What is needed of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Unlike the name, no other pod ever has it.
    pub uid: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// The node that it runs on; empty when it was not given to one.
    pub node_name: String,
    /// That node's address; empty when it is not known.
    pub host_ip: String,
    /// Whether all its containers have ended for good.
    pub ended: bool,
}

impl Pod {
    /// Reads the API server's answer.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(json: &[u8]) -> Result<Self, serde_json::Error> {
        #[derive(Default, Deserialize)]
        #[serde(default, rename_all = "camelCase")]
        struct Spec {
            node_name: String,
        }
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Status {
            #[serde(rename = "hostIP")]
            host_ip: String,
            phase: String,
        }
        #[derive(Deserialize)]
        struct Answer {
            metadata: Metadata,
            #[serde(default)]
            spec: Spec,
            #[serde(default)]
            status: Status,
        }
        let Answer { metadata, spec, status } = serde_json::from_slice(json)?;
        Ok(Self {
            uid: metadata.uid,
            labels: metadata.labels,
            node_name: spec.node_name,
            host_ip: status.host_ip,
            ended: matches!(status.phase.as_str(), "Succeeded" | "Failed"),
        })
    }
}

/// What is needed of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Unlike the name, no other node ever has it.
    pub uid: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

impl Node {
    /// Reads the API server's answer.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(json: &[u8]) -> Result<Self, serde_json::Error> {
        #[derive(Deserialize)]
        struct Answer {
            metadata: Metadata,
        }
        let Answer { metadata } = serde_json::from_slice(json)?;
        Ok(Self { uid: metadata.uid, labels: metadata.labels })
    }
}

#[derive(Deserialize)]
struct Metadata {
    uid: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

/// Makes clients: [`connect`], or what a test has in its place.
pub type Connect<'a> = dyn Fn(&Access) -> Result<Arc<dyn Api>, ApiError> + 'a;

/// A client of the API server. The files are read now, to find mistakes, and again while it is used; nobody is asked yet.
///
/// # Errors
/// The files cannot be used.
#[cfg(feature = "k8s")]
pub fn connect(access: &Access) -> Result<Arc<dyn Api>, ApiError> {
    Ok(Arc::new(client::Client::new(access.clone())?))
}

/// Nothing: this program has no client.
///
/// # Errors
/// Always.
#[cfg(not(feature = "k8s"))]
pub fn connect(_: &Access) -> Result<Arc<dyn Api>, ApiError> {
    Err(ApiError::Access("this program was built without the feature k8s".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_one_segment() {
        for (name, path) in [
            ("pod-1.a_b", "pod-1.a_b"),
            ("..", "%2E%2E"),
            (".", "%2E"),
            ("a/../b?c#d", "a%2F..%2Fb%3Fc%23d"),
            ("ü", "%C3%BC"),
        ] {
            assert_eq!(escaped(name), path);
        }
    }

    #[test]
    fn answers_are_read_into_what_is_needed() {
        let pod = json!({
            "kind": "Pod", "metadata": { "name": "p", "uid": "u", "labels": { "a": "b" }, "more": [1] },
            "spec": { "nodeName": "n", "containers": [] }, "status": { "phase": "Running", "hostIP": "10.0.0.1" },
        });
        let read = |value: &Value| Pod::parse(value.to_string().as_bytes());
        let found = read(&pod).unwrap();
        assert_eq!(
            (found.uid.as_str(), found.node_name.as_str(), found.host_ip.as_str()),
            ("u", "n", "10.0.0.1")
        );
        assert!(!found.ended && found.labels["a"] == "b");
        for phase in ["Succeeded", "Failed"] {
            let mut ended = pod.clone();
            ended["status"]["phase"] = phase.into();
            assert!(read(&ended).unwrap().ended, "{phase}");
        }
        assert!(read(&json!({ "metadata": { "uid": "u" } })).is_ok());
        for nonsense in ["", "{}", "[]", "{\"metadata\":{}}", "{\"metadata\":{\"uid\":7}}"] {
            assert!(
                Pod::parse(nonsense.as_bytes()).is_err() && Node::parse(nonsense.as_bytes()).is_err(),
                "{nonsense}"
            );
            assert!(TokenReview::parse(nonsense.as_bytes()).is_err(), "{nonsense}");
        }
        let review = json!({ "status": { "authenticated": true, "user": { "extra": { "a": ["x"], "b": [], "c": ["x", "y"], "d": [""] } } } });
        let review = TokenReview::parse(review.to_string().as_bytes()).unwrap();
        assert_eq!(
            ["a", "b", "c", "d", "e"].map(|key| review.extra(key)),
            [Some("x"), None, None, None, None]
        );
    }
}
