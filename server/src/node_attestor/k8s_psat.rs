//! Projected service account tokens of Kubernetes: an agent in a pod shows the token that its cluster made for that pod.
//!
//! Whose a token is the cluster's API server says (TokenReview), or its signature does, where the cluster's keys are
//! configured; then nothing has to be reachable, and nobody needs rights in the cluster. The first also knows that a pod is
//! gone. Either way pod and node are compared by UID where the API server is asked: names are used again.
//!
//! A token attests as often as it is valid, as with SPIRE: an agent that attests again finds the same one in its file for most of
//! an hour. What that leaves open is in `docs/threat-model.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bonafide_identity::{Selector, SelectorSet, Timestamp, TrustDomain};
use bonafide_pki::oidc::{OidcToken, TokenRules};
use bonafide_runtime::tasks::chain;
use serde::Deserialize;

use super::oidc::{KeySettings, Keys, KeysError};
use super::{Attempt, AttestError, Attested, Conversation, NodeAttestor};
use crate::kubernetes::{Access, Api, ApiError, Cluster as _, Connect, TokenReview};

/// The attestor's name and the type of its selectors.
pub const NAME: &str = "k8s_psat";

/// One cluster whose agents are accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterSettings {
    /// What it is called in agent IDs, and by agents.
    pub name: String,
    /// Service accounts whose pods are agents, as `namespace:name`.
    pub service_accounts: BTreeSet<String>,
    /// Audiences, of which a token must have one; none means those of the API server.
    pub audiences: Vec<String>,
    /// Labels of nodes that become selectors.
    pub node_labels: BTreeSet<String>,
    /// Labels of pods that become selectors.
    pub pod_labels: BTreeSet<String>,
    /// Whether each pod is an agent, and not each node.
    pub agent_per_pod: bool,
    /// How it is known whose a token is.
    pub proof: Proof,
}

/// How it is known whose a token is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// The API server is asked: about the token, its pod and its node.
    TokenReview(Access),
    /// Keys of the cluster verify the token.
    Keys {
        /// Which keys.
        keys: Box<KeySettings>,
        /// What a token must be like.
        rules: TokenRules,
        /// The API server that is asked about pod and node; without it they are what the token says.
        alive: Option<Access>,
    },
}

impl Proof {
    /// The API server that is asked, if any.
    pub fn access(&self) -> Option<&Access> {
        match self {
            Self::TokenReview(access) | Self::Keys { alive: Some(access), .. } => Some(access),
            Self::Keys { alive: None, .. } => None,
        }
    }
}

/// Why the attestor cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum K8sPsatError {
    /// The keys of a cluster.
    #[error("{0}")]
    Keys(#[from] KeysError),
    /// The access to a cluster.
    #[error("cluster {cluster:?}: {}", chain(.source))]
    Access {
        /// Which.
        cluster: String,
        /// What is wrong.
        source: ApiError,
    },
}

/// The attestor.
pub struct K8sPsat {
    trust_domain: TrustDomain,
    clusters: BTreeMap<String, Cluster>,
}

struct Cluster {
    settings: ClusterSettings,
    keys: Option<(Keys, TokenRules)>,
    api: Option<Arc<dyn Api>>,
}

impl K8sPsat {
    /// Reads the files that the settings name. Nobody is asked before the first agent comes. `connect` makes the clients.
    ///
    /// # Errors
    /// A file cannot be used.
    pub fn new(
        trust_domain: TrustDomain,
        clusters: Vec<ClusterSettings>,
        connect: &Connect<'_>,
    ) -> Result<Self, K8sPsatError> {
        let cluster = |settings: ClusterSettings| {
            let api = settings.proof.access().map(connect).transpose();
            let api =
                api.map_err(|source| K8sPsatError::Access { cluster: settings.name.clone(), source })?;
            let keys = match &settings.proof {
                Proof::TokenReview(_) => None,
                Proof::Keys { keys, rules, .. } => Some((Keys::new(keys)?, rules.clone())),
            };
            Ok((settings.name.clone(), Cluster { settings, keys, api }))
        };
        let clusters = clusters.into_iter().map(cluster).collect::<Result<_, K8sPsatError>>()?;
        Ok(Self { trust_domain, clusters })
    }
}

/// What a token says, or what is said of it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Bound {
    namespace: String,
    service_account: String,
    pod: Object,
    /// There from Kubernetes 1.30 on.
    node: Option<Object>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Object {
    name: String,
    uid: String,
}

impl Bound {
    /// What the API server said of a token.
    fn reviewed(review: &TokenReview) -> Option<Self> {
        let of =
            |what: &str| review.extra(&format!("authentication.kubernetes.io/{what}")).map(str::to_owned);
        let object = |kind: &str| {
            Some(Object { name: of(&format!("{kind}-name"))?, uid: of(&format!("{kind}-uid"))? })
        };
        let (namespace, service_account) = service_account(&review.user.username)?;
        Some(Self { namespace, service_account, pod: object("pod")?, node: object("node") })
    }

    /// What a token says.
    fn claimed(token: &OidcToken<'_>) -> Option<Self> {
        #[derive(Deserialize)]
        struct Claims {
            namespace: String,
            serviceaccount: Object,
            pod: Object,
            node: Option<Object>,
        }
        let claims = Claims::deserialize(token.claims().get("kubernetes.io")?).ok()?;
        let (namespace, service_account) = service_account(token.claims().get("sub")?.as_str()?)?;
        let same = namespace == claims.namespace && service_account == claims.serviceaccount.name;
        same.then_some(Self { namespace, service_account, pod: claims.pod, node: claims.node })
    }
}

/// Namespace and name of a service account.
fn service_account(user: &str) -> Option<(String, String)> {
    let (namespace, name) = user.strip_prefix("system:serviceaccount:")?.split_once(':')?;
    let plain = |name: &str| !name.is_empty() && !name.contains(':');
    (plain(namespace) && plain(name)).then(|| (namespace.to_owned(), name.to_owned()))
}

/// What is known of an agent.
struct Agent {
    bound: Bound,
    node: Option<Object>,
    node_ip: String,
    node_labels: BTreeMap<String, String>,
    pod_labels: BTreeMap<String, String>,
}

impl Cluster {
    fn name(&self) -> &str {
        &self.settings.name
    }

    fn allowed(&self, namespace: &str, service_account: &str) -> Result<(), AttestError> {
        let full = format!("{namespace}:{service_account}");
        if self.settings.service_accounts.contains(&full) {
            return Ok(());
        }
        let full: String = full.chars().take(MOST_WORDS).collect();
        Err(denied(format!("{full:?} is not an allowed service account for cluster {:?}", self.name())))
    }

    /// Whose a token is, proven.
    async fn bound(&self, text: &str, token: &OidcToken<'_>, now: Timestamp) -> Result<Bound, AttestError> {
        const UNBOUND: &str = "the token is not bound to a pod: project it into the agent's pod as a volume of serviceAccountToken";
        if let Some((keys, rules)) = &self.keys {
            let url = token.issuer().map_err(invalid)?;
            if url != keys.issuer() {
                let text = format!("tokens of issuer {url:?} are not accepted for cluster {:?}", self.name());
                return Err(denied(text.chars().take(MOST_WORDS).collect::<String>()));
            }
            token.check_claims(rules, now).map_err(denied)?;
            let keys = keys.for_key(token.key_id(), now).await.map_err(|why| {
                tracing::warn!(cluster = self.name(), why, "there are no keys to verify tokens with");
                unavailable(format!("the keys of cluster {:?} are not available", self.name()))
            })?;
            token.verify(&keys).map_err(denied)?;
            return Bound::claimed(token).ok_or_else(|| denied(UNBOUND));
        }
        let Some(api) = &self.api else {
            return Err(AttestError::Internal(format!("nodeattestor({NAME}): no proof")));
        };
        let audiences = &self.settings.audiences;
        let review = api.review_token(text, audiences).await.map_err(|error| self.failed(&error))?;
        if !review.authenticated {
            let why: String = review.error.chars().take(MOST_WORDS).collect();
            tracing::info!(cluster = self.name(), why, "the cluster does not authenticate a token");
            let text =
                format!("token not authenticated according to TokenReview API for cluster {:?}", self.name());
            return Err(denied(if why.is_empty() { text } else { format!("{text}: {why}") }));
        }
        // A reviewer that knows no audiences says nothing of them.
        if !audiences.is_empty() && !audiences.iter().any(|audience| review.audiences.contains(audience)) {
            return Err(denied(format!(
                "token review API of cluster {:?} did not validate audience: wanted one of {audiences:?}",
                self.name()
            )));
        }
        Bound::reviewed(&review).ok_or_else(|| denied(UNBOUND))
    }

    /// Whether pod and node of the token are there, and what is known of them.
    async fn agent(&self, bound: Bound) -> Result<Agent, AttestError> {
        let Some(api) = &self.api else {
            let node = bound.node.clone();
            return Ok(Agent {
                bound,
                node,
                node_ip: String::new(),
                node_labels: BTreeMap::new(),
                pod_labels: BTreeMap::new(),
            });
        };
        let (cluster, Object { name, uid }) = (self.name(), &bound.pod);
        let pod = api.pod(&bound.namespace, name).await.map_err(|error| self.failed(&error))?;
        let pod =
            pod.ok_or_else(|| denied(format!("there is no pod {name:?} in cluster {cluster:?} any more")))?;
        if pod.uid != *uid {
            return Err(denied(format!(
                "pod UID mismatch for pod {name:?} in cluster {cluster:?}: token bound to pod UID {uid:?}, which is gone"
            )));
        }
        if pod.ended {
            return Err(denied(format!("pod {name:?} in cluster {cluster:?} has ended")));
        }
        if pod.node_name.is_empty() {
            return Err(denied(format!("pod {name:?} in cluster {cluster:?} is on no node")));
        }
        let node = api.node(&pod.node_name).await.map_err(|error| self.failed(&error))?;
        let name = &pod.node_name;
        let node =
            node.ok_or_else(|| denied(format!("there is no node {name:?} in cluster {cluster:?} any more")))?;
        if let Some(bound) = &bound.node
            && (bound.name != *name || bound.uid != node.uid)
        {
            return Err(denied(format!(
                "node UID mismatch for node {name:?} in cluster {cluster:?}: token bound to node {:?} of UID {:?}",
                bound.name, bound.uid
            )));
        }
        Ok(Agent {
            node: Some(Object { name: pod.node_name, uid: node.uid }),
            node_ip: pod.host_ip,
            node_labels: node.labels,
            pod_labels: pod.labels,
            bound,
        })
    }

    fn failed(&self, error: &ApiError) -> AttestError {
        tracing::warn!(
            cluster = self.name(),
            error = chain(error),
            "a cluster could not be asked about an agent"
        );
        let text = format!("nodeattestor({NAME}): cluster {:?}: {error}", self.name());
        match error {
            ApiError::Unreachable(_) | ApiError::TimedOut | ApiError::Busy => AttestError::Unavailable(text),
            _ => AttestError::Internal(text),
        }
    }

    fn path(&self, agent: &Agent) -> Result<String, AttestError> {
        let suffix = match (self.settings.agent_per_pod, &agent.node) {
            (true, _) => format!("pod/{}", uid(&agent.bound.pod.uid)?),
            (false, Some(node)) => uid(&node.uid)?.to_owned(),
            (false, None) => {
                return Err(denied(format!(
                    "tokens of cluster {:?} do not name the node, as they do from Kubernetes 1.30 on: have the server ask the \
                     API server (ask_api_server), or make an agent of each pod (use_pod_uid_for_agent_id)",
                    self.name()
                )));
            }
        };
        Ok(format!("{NAME}/{}/{suffix}", self.name()))
    }

    fn selectors(&self, agent: &Agent) -> Result<SelectorSet, AttestError> {
        let bound = &agent.bound;
        let mut values = vec![
            format!("cluster:{}", self.name()),
            format!("agent_ns:{}", bound.namespace),
            format!("agent_sa:{}", bound.service_account),
            format!("agent_pod_name:{}", bound.pod.name),
            format!("agent_pod_uid:{}", bound.pod.uid),
        ];
        if let Some(node) = &agent.node {
            values.push(format!("agent_node_name:{}", node.name));
            values.push(format!("agent_node_uid:{}", node.uid));
        }
        if !agent.node_ip.is_empty() {
            values.push(format!("agent_node_ip:{}", agent.node_ip));
        }
        for (kind, labels, allowed) in [
            ("agent_node_label", &agent.node_labels, &self.settings.node_labels),
            ("agent_pod_label", &agent.pod_labels, &self.settings.pod_labels),
        ] {
            let allowed = labels.iter().filter(|(key, _)| allowed.contains(*key));
            values.extend(allowed.map(|(key, value)| format!("{kind}:{key}:{value}")));
        }
        if values.iter().any(|value| value.len() > LONGEST_VALUE || value.chars().any(char::is_control)) {
            return Err(denied("what is known of the pod cannot be made selectors of"));
        }
        let selectors = values.iter().map(|value| Selector::new(NAME, value).map_err(invalid));
        Ok(selectors.collect::<Result<Vec<_>, _>>()?.into_iter().collect())
    }
}

/// A UID as a segment of a path.
fn uid(text: &str) -> Result<&str, AttestError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    let fits = !text.is_empty() && text.len() <= 64 && text.bytes().all(plain);
    fits.then_some(text).ok_or_else(|| denied("the UID of pod or node is none"))
}

#[async_trait]
impl NodeAttestor for K8sPsat {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn attest(&self, attempt: Attempt<'_>, _: &mut dyn Conversation) -> Result<Attested, AttestError> {
        let payload: Payload = serde_json::from_slice(attempt.payload)
            .map_err(|error| invalid(format!("failed to unmarshal data payload: {error}")))?;
        if payload.cluster.is_empty() {
            return Err(invalid("missing cluster in attestation data"));
        }
        if payload.token.is_empty() {
            return Err(invalid("missing token in attestation data"));
        }
        let text = payload.token.trim_ascii();
        if text.len() > LONGEST_TOKEN {
            return Err(invalid("the token is too long"));
        }
        let cluster = self.clusters.get(&payload.cluster).ok_or_else(|| {
            let name: String = payload.cluster.chars().take(64).collect();
            invalid(format!("not configured for cluster {name:?}"))
        })?;
        // Strangers must not make this server ask for tokens that lead nowhere, whoever signed them.
        let token = OidcToken::parse(text).map_err(invalid)?;
        let subject = token.claims().get("sub").and_then(serde_json::Value::as_str).and_then(service_account);
        let (namespace, name) =
            subject.ok_or_else(|| invalid("the token is not one of a service account"))?;
        cluster.allowed(&namespace, &name)?;

        let bound = cluster.bound(text, &token, attempt.now).await?;
        cluster.allowed(&bound.namespace, &bound.service_account)?;
        let agent = cluster.agent(bound).await?;
        let id = self.trust_domain.agent_id(&cluster.path(&agent)?).map_err(invalid)?;
        let selectors = cluster.selectors(&agent)?;
        Ok(Attested { id, selectors, can_reattest: true, twin: None })
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Payload {
    cluster: String,
    token: String,
}

fn invalid(text: impl fmt::Display) -> AttestError {
    AttestError::Invalid(format!("nodeattestor({NAME}): {text}"))
}

fn denied(text: impl fmt::Display) -> AttestError {
    AttestError::Denied(format!("nodeattestor({NAME}): {text}"))
}

fn unavailable(text: impl fmt::Display) -> AttestError {
    AttestError::Unavailable(format!("nodeattestor({NAME}): {text}"))
}

/// In bytes. Tokens of service accounts have one or two thousand.
const LONGEST_TOKEN: usize = 16 << 10;
/// Of a selector, in bytes: a label's key and value have at most 380.
const LONGEST_VALUE: usize = 512;
/// Of what others said, in characters.
const MOST_WORDS: usize = 300;
