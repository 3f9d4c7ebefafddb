//! The attestor `k8s_psat`, against a double of an API server that can fail, and against a real one.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bonafide_identity::{Selector, Timestamp};
use bonafide_runtime::clock::Clock as _;
use bonafide_server::kubernetes::{self, Access, ApiError, CALL_TIME, Cluster as _};
use bonafide_testkit::ManualClock;
use http::Method;
use serde_json::{Value, json};
use tempfile::TempDir;
use tonic::{Code, Status};

use super::attestors::{Issuer, URL, claims, no_challenge};
use super::harness::*;
use crate::kubernetes::double::{Double, Trouble};
use crate::kubernetes::real;

const AUDIENCE: &str = "bonafide";
const POD: &str = "/api/v1/namespaces/spire/pods/p";
const NODE: &str = "/api/v1/nodes/node_1";

fn table(name: &str, settings: &str) -> String {
    format!(
        "[node_attestor.k8s_psat.clusters.{name}]\nservice_account_allow_list = [\"spire:agent\", \"default:agent\"]\n\
         audience = [\"{AUDIENCE}\"]\n{settings}\n"
    )
}

fn asking(kubeconfig: &Path) -> String {
    format!("kube_config_file = \"{}\"", kubeconfig.display())
}

async fn present(server: &TestServer, cluster: &str, token: &str) -> Result<Identity, Status> {
    let payload = json!({ "cluster": cluster, "token": token }).to_string();
    attest(server.anonymous().await, "k8s_psat", payload.as_bytes(), no_challenge).await
}

fn selectors(server: &TestServer, agent: &Identity) -> Vec<String> {
    let record = server.server.context().state.node(&agent.id).unwrap();
    assert!(record.can_reattest);
    record.selectors.iter().map(Selector::as_str).map(str::to_owned).collect()
}

/// A server for one cluster, which is the double.
struct World {
    server: TestServer,
    cluster: Arc<Double>,
    issuer: Issuer,
    clock: ManualClock,
    files: TempDir,
}

impl World {
    async fn new(more: &str) -> Self {
        let (cluster, files, clock) =
            (Double::start().await, TempDir::new().unwrap(), ManualClock::default());
        let settings = format!("{}\n{more}", asking(&cluster.kubeconfig(files.path())));
        let server =
            TestServer::start_in(TempDir::new().unwrap(), clock.clone(), &table("prod", &settings)).await;
        Self { server, cluster, issuer: Issuer::new("k1"), clock, files }
    }

    /// A token that the cluster knows, with its pod and node.
    fn token(&self, change: impl FnOnce(&mut Value)) -> String {
        let claims = claims(&self.clock, change);
        let token = self.issuer.token(&claims);
        self.cluster.admit(&token, &claims);
        token
    }

    async fn refused(&self, token: &str) -> Status {
        present(&self.server, "prod", token).await.unwrap_err()
    }

    async fn expect(&self, token: &str, code: Code, part: &str) {
        let refused = self.refused(token).await;
        assert_eq!(refused.code(), code, "{part}: {refused:?}");
        assert!(refused.message().starts_with("nodeattestor(k8s_psat): "), "{refused:?}");
        assert!(refused.message().contains(part), "{part}: {refused:?}");
    }
}

#[tokio::test]
async fn an_agent_is_what_its_cluster_says() {
    let world = World::new("allowed_node_label_keys = [\"zone\"]\nallowed_pod_label_keys = [\"app\"]").await;
    let token = world.token(|_| {});
    let agent = present(&world.server, "prod", &token).await.unwrap();
    assert_eq!(agent.path(), "/spire/agent/k8s_psat/prod/u-1");
    let expected = [
        "k8s_psat:agent_node_ip:192.0.2.7",
        "k8s_psat:agent_node_label:zone:z1",
        "k8s_psat:agent_node_name:node_1",
        "k8s_psat:agent_node_uid:u-1",
        "k8s_psat:agent_ns:spire",
        "k8s_psat:agent_pod_label:app:agent",
        "k8s_psat:agent_pod_name:p",
        "k8s_psat:agent_pod_uid:p-1",
        "k8s_psat:agent_sa:agent",
        "k8s_psat:cluster:prod",
    ];
    assert_eq!(selectors(&world.server, &agent), expected);
    assert_eq!(
        world.cluster.state().seen,
        ["create /apis/authentication.k8s.io/v1/tokenreviews", &format!("get {POD}"), &format!("get {NODE}")]
    );
    // The same token again, as it stands in the file, and with what is true by then.
    world.cluster.state().objects.get_mut(NODE).unwrap()["metadata"]["labels"] = json!({ "zone": "z2" });
    let again = present(&world.server, "prod", &format!("{token}\n")).await.unwrap();
    assert_eq!(again.id, agent.id);
    assert!(selectors(&world.server, &again).contains(&"k8s_psat:agent_node_label:zone:z2".to_owned()));
}

#[tokio::test]
async fn several_clusters_and_agents_of_pods_have_their_own_places() {
    let (cluster, files, clock) = (Double::start().await, TempDir::new().unwrap(), ManualClock::default());
    let settings = asking(&cluster.kubeconfig(files.path()));
    let pods = format!("{settings}\nuse_pod_uid_for_agent_id = true");
    let section = format!("{}{}", table("nodes", &settings), table("pods", &pods));
    let server = TestServer::start_in(TempDir::new().unwrap(), clock.clone(), &section).await;
    let issuer = Issuer::new("k1");
    let claims = claims(&clock, |_| {});
    let token = issuer.token(&claims);
    cluster.admit(&token, &claims);
    for (name, path) in [("nodes", "nodes/u-1"), ("pods", "pods/pod/p-1")] {
        let agent = present(&server, name, &token).await.unwrap();
        assert_eq!(agent.path(), format!("/spire/agent/k8s_psat/{path}"));
        assert!(selectors(&server, &agent).contains(&format!("k8s_psat:cluster:{name}")));
    }
    let refused = present(&server, "other", &token).await.unwrap_err();
    assert_refused::<()>(
        Err(refused),
        Code::InvalidArgument,
        "nodeattestor(k8s_psat): not configured for cluster \"other\"",
    );
}

#[tokio::test]
async fn each_refusal_says_why() {
    let world = World::new("").await;
    for (payload, text) in [
        ("{\"token\":\"a.b.c\"}", "missing cluster in attestation data"),
        ("{\"cluster\":\"prod\"}", "missing token in attestation data"),
        ("{\"cluster\":\"prod\",\"token\":\"x\"}", "unable to parse JWT token"),
    ] {
        let channel = world.server.anonymous().await;
        let refused = attest(channel, "k8s_psat", payload.as_bytes(), no_challenge).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains(text), "{refused:?}");
    }
    // Nobody is asked about a service account that is not on the list, whoever signed.
    let other = world.token(|claims| claims["sub"] = "system:serviceaccount:spire:other".into());
    let text = "\"spire:other\" is not an allowed service account for cluster \"prod\"";
    world.expect(&other, Code::PermissionDenied, text).await;
    let user = world.token(|claims| claims["sub"] = "admin".into());
    world.expect(&user, Code::InvalidArgument, "the token is not one of a service account").await;
    assert!(world.cluster.state().seen.is_empty());

    let unknown = world.issuer.token(&claims(&world.clock, |_| {}));
    let text =
        "token not authenticated according to TokenReview API for cluster \"prod\": [invalid bearer token]";
    world.expect(&unknown, Code::PermissionDenied, text).await;
    let elsewhere = world.token(|claims| claims["aud"] = json!(["other"]));
    world.expect(&elsewhere, Code::PermissionDenied, "invalid for the target audiences").await;
    let token = world.token(|claims| claims["jti"] = "again".into());
    world.cluster.state().trouble = Some(Trouble::NoAudiences);
    world
        .expect(&token, Code::PermissionDenied, "did not validate audience: wanted one of [\"bonafide\"]")
        .await;
    world.cluster.state().trouble = None;
    // What the token says of itself is not what counts.
    world.cluster.state().tokens.get_mut(&token).unwrap().0["username"] =
        "system:serviceaccount:spire:other".into();
    world.expect(&token, Code::PermissionDenied, "\"spire:other\" is not an allowed service account").await;
    world.cluster.state().tokens.get_mut(&token).unwrap().0["username"] =
        "system:serviceaccount:spire:agent".into();
    let change = |path: &str, pointer: &str, value: Value| {
        *world.cluster.state().objects.get_mut(path).unwrap().pointer_mut(pointer).unwrap() = value;
    };
    change(POD, "/metadata/uid", "p-2".into());
    let text = "pod UID mismatch for pod \"p\" in cluster \"prod\": token bound to pod UID \"p-1\"";
    world.expect(&token, Code::PermissionDenied, text).await;
    change(POD, "/metadata/uid", "p-1".into());
    change(POD, "/status/phase", "Failed".into());
    world.expect(&token, Code::PermissionDenied, "pod \"p\" in cluster \"prod\" has ended").await;
    change(POD, "/status/phase", "Running".into());
    change(NODE, "/metadata/uid", "u-2".into());
    let text = "node UID mismatch for node \"node_1\" in cluster \"prod\": token bound to node \"node_1\" of UID \"u-1\"";
    world.expect(&token, Code::PermissionDenied, text).await;
    world.cluster.state().objects.remove(NODE);
    world
        .expect(&token, Code::PermissionDenied, "there is no node \"node_1\" in cluster \"prod\" any more")
        .await;
    world.cluster.state().objects.remove(POD);
    world.expect(&token, Code::PermissionDenied, "there is no pod \"p\" in cluster \"prod\" any more").await;
    world.cluster.state().tokens.get_mut(&token).unwrap().0["extra"] = json!({});
    world.expect(&token, Code::PermissionDenied, "the token is not bound to a pod").await;
    assert_eq!(world.server.server.context().state.nodes().len(), 0);
}

#[tokio::test]
async fn a_cluster_that_cannot_be_asked_says_what_is_missing() {
    let world = World::new("").await;
    let token = world.token(|_| {});
    for (verb, resource) in
        [("create", "tokenreviews.authentication.k8s.io"), ("get", "pods"), ("get", "nodes")]
    {
        world.cluster.state().forbidden = [(verb, resource)].into();
        let text = format!("cluster \"prod\": this server may not {verb} {resource} in the cluster");
        world.expect(&token, Code::Internal, &text).await;
    }
    world.cluster.state().forbidden.clear();
    for (trouble, code, text) in [
        (Trouble::Failing, Code::Internal, "the API server answered 500 to create tokenreviews"),
        (
            Trouble::Nonsense,
            Code::Internal,
            "answer to create tokenreviews.authentication.k8s.io cannot be used",
        ),
        (
            Trouble::Endless,
            Code::Internal,
            "answer to create tokenreviews.authentication.k8s.io cannot be used",
        ),
        (Trouble::Stranger, Code::Internal, "the API server does not accept this server's credential"),
    ] {
        world.cluster.state().trouble = Some(trouble);
        world.expect(&token, code, text).await;
    }
    world.cluster.state().trouble = None;
    present(&world.server, "prod", &token).await.unwrap();
    // Another place, without a restart. A call that fails has the file read again.
    world.cluster.state().trouble = Some(Trouble::Stranger);
    world.refused(&token).await;
    let insecure = json!({ "server": "https://127.0.0.1:1", "insecure-skip-tls-verify": true });
    crate::kubernetes::kubeconfig(world.files.path(), "kubeconfig", &insecure, &json!({}));
    world.expect(&token, Code::Internal, "the access to the cluster cannot be used").await;
    // Nobody listens there, and for a moment nobody is made to wait for that.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let nowhere = json!({ "server": format!("http://{free}") });
    crate::kubernetes::kubeconfig(world.files.path(), "kubeconfig", &nowhere, &json!({}));
    for _ in 0..2 {
        world.expect(&token, Code::Unavailable, "cluster \"prod\": the API server cannot be reached").await;
    }
}

#[tokio::test]
async fn a_silent_api_server_costs_ten_seconds() {
    let (double, files) = (Double::start().await, TempDir::new().unwrap());
    double.state().trouble = Some(Trouble::Silent);
    let api = kubernetes::connect(&Access::KubeConfig(double.kubeconfig(files.path()))).unwrap();
    tokio::time::pause();
    let before = tokio::time::Instant::now();
    let outcome = api.node("n").await;
    assert!(matches!(outcome, Err(ApiError::TimedOut | ApiError::Unreachable(_))), "{outcome:?}");
    assert!(before.elapsed() <= CALL_TIME + Duration::from_secs(1), "{:?}", before.elapsed());
    // Those who come at that moment are told at once.
    let before = tokio::time::Instant::now();
    assert!(matches!(api.node("n").await, Err(ApiError::Unreachable(_))));
    assert_eq!(before.elapsed(), Duration::ZERO);
}

#[tokio::test]
async fn a_silent_api_server_holds_up_few() {
    let (double, files) = (Double::start().await, TempDir::new().unwrap());
    double.state().trouble = Some(Trouble::Silent);
    let api = kubernetes::connect(&Access::KubeConfig(double.kubeconfig(files.path()))).unwrap();
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let api = Arc::clone(&api);
        calls.spawn(async move { api.node("n").await });
    }
    // Sixteen have their turn; four are told to come again while those wait.
    for _ in 0..4 {
        let first =
            tokio::time::timeout(CALL_TIME / 2, calls.join_next()).await.expect("at most two seconds");
        assert!(matches!(first, Some(Ok(Err(ApiError::Busy)))), "{first:?}");
    }
    assert_eq!(calls.len(), 16);
}

#[tokio::test]
async fn files_that_cannot_be_used_are_found_at_the_start() {
    let files = TempDir::new().unwrap();
    let random: Arc<dyn bonafide_pki::Random> = Arc::new(bonafide_pki::SystemRandom);
    let check = |settings: &str| {
        let config = configuration(files.path(), &table("prod", settings));
        bonafide_server::drivers::check(&config, &random, &bonafide_runtime::clock::SystemClock::shared())
            .join("\n")
    };
    let missing = check("kube_config_file = \"/missing\"");
    assert!(
        missing.starts_with("node_attestor.k8s_psat: cluster \"prod\": ") && missing.contains("/missing"),
        "{missing}"
    );
    let outside = check("");
    assert!(outside.contains("there is no kube_config_file, and this server is in no cluster"), "{outside}");
    let keys = check("issuer = \"x\"\njwks_path = \"/missing\"");
    assert!(keys.starts_with("node_attestor.k8s_psat: issuer prod: cannot read /missing"), "{keys}");
}

#[tokio::test]
async fn keys_of_the_cluster_are_enough() {
    let (files, clock, issuer) = (TempDir::new().unwrap(), ManualClock::default(), Issuer::new("k1"));
    let keys = files.path().join("keys.json");
    std::fs::write(&keys, issuer.key_set()).unwrap();
    let offline = format!("issuer = \"{URL}\"\njwks_path = \"{}\"", keys.display());
    let cluster = Double::start().await;
    let section = [
        table("offline", &offline),
        table("pods", &format!("{offline}\nuse_pod_uid_for_agent_id = true")),
        table("alive", &format!("{offline}\n{}", asking(&cluster.kubeconfig(files.path())))),
    ]
    .concat();
    let server = TestServer::start_in(TempDir::new().unwrap(), clock.clone(), &section).await;
    let signed = |change: fn(&mut Value)| issuer.token(&claims(&clock, change));
    let token = signed(|_| {});
    let agent = present(&server, "offline", &token).await.unwrap();
    assert_eq!(agent.path(), "/spire/agent/k8s_psat/offline/u-1");
    let expected = [
        "k8s_psat:agent_node_name:node_1",
        "k8s_psat:agent_node_uid:u-1",
        "k8s_psat:agent_ns:spire",
        "k8s_psat:agent_pod_name:p",
        "k8s_psat:agent_pod_uid:p-1",
        "k8s_psat:agent_sa:agent",
        "k8s_psat:cluster:offline",
    ];
    assert_eq!(selectors(&server, &agent), expected);
    present(&server, "offline", &token).await.unwrap();
    // Before Kubernetes 1.30 tokens name no node.
    let old = signed(|claims| drop(claims["kubernetes.io"].as_object_mut().unwrap().remove("node")));
    let refused = present(&server, "offline", &old).await.unwrap_err();
    assert!(refused.message().contains("do not name the node"), "{refused:?}");
    let agent = present(&server, "pods", &old).await.unwrap();
    assert_eq!(agent.path(), "/spire/agent/k8s_psat/pods/pod/p-1");
    for (token, text) in [
        (Issuer::new("k1").token(&claims(&clock, |_| {})), "token signature is invalid"),
        (
            signed(|claims| claims["iss"] = "https://other.test".into()),
            "tokens of issuer \"https://other.test\" are not accepted",
        ),
        (signed(|claims| claims["aud"] = json!(["other"])), "token is not meant for this server"),
        (signed(|claims| claims["exp"] = 1.into()), "token has expired"),
        (
            signed(|claims| claims["kubernetes.io"]["serviceaccount"]["name"] = "other".into()),
            "the token is not bound to a pod",
        ),
        (signed(|claims| claims["kubernetes.io"]["pod"] = Value::Null), "the token is not bound to a pod"),
        (
            signed(|claims| claims["kubernetes.io"]["node"]["uid"] = "../x".into()),
            "the UID of pod or node is none",
        ),
        (
            signed(|claims| claims["kubernetes.io"]["pod"]["name"] = "a\nb".into()),
            "cannot be made selectors of",
        ),
    ] {
        let refused = present(&server, "offline", &token).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{text}: {refused:?}");
        assert!(refused.message().contains(text), "{text}: {refused:?}");
    }
    // With the API server a pod that is gone is not attested, and nobody reviews tokens.
    let refused = present(&server, "alive", &token).await.unwrap_err();
    assert!(refused.message().contains("there is no pod \"p\""), "{refused:?}");
    cluster.admit(&token, &claims(&clock, |_| {}));
    let agent = present(&server, "alive", &token).await.unwrap();
    assert!(selectors(&server, &agent).contains(&"k8s_psat:agent_node_ip:192.0.2.7".to_owned()));
    assert!(cluster.state().seen.iter().all(|seen| seen.starts_with("get ")), "{:?}", cluster.state().seen);
}

/// A clock that stands at the real time: what signs tokens here has that.
fn real_time() -> ManualClock {
    let clock = ManualClock::default();
    let now: Timestamp = bonafide_runtime::clock::SystemClock.now();
    let ahead = now.unix_seconds() - clock.now().unix_seconds();
    clock.advance(Duration::from_secs(u64::try_from(ahead).unwrap()));
    clock
}

const RIGHTS: [(&str, &str, &[&str]); 3] =
    [("authentication.k8s.io", "tokenreviews", &["create"]), ("", "pods", &["get"]), ("", "nodes", &["get"])];

#[tokio::test]
async fn a_real_cluster_attests_its_agents() {
    let Some(cluster) = real::Cluster::start("a_real_cluster_attests_its_agents").await else { return };
    cluster.allow(&RIGHTS).await;
    let node = cluster
        .create("/api/v1/nodes", json!({ "metadata": { "name": "n1", "labels": { "zone": "z1" } } }))
        .await;
    let node = node["metadata"]["uid"].as_str().unwrap().to_owned();
    const ACCOUNTS: &str = "/api/v1/namespaces/default/serviceaccounts";
    cluster.create(ACCOUNTS, json!({ "metadata": { "name": "agent" } })).await;
    cluster.create(ACCOUNTS, json!({ "metadata": { "name": "other" } })).await;
    let asked = asking(&cluster.kubeconfig());
    let keys = format!(
        "issuer = \"{}\"\njwks_url = \"{}\"\nca_path = \"{}\"\nfetch_token_path = \"{}\"",
        real::ISSUER,
        cluster.url("/openid/v1/jwks"),
        cluster.certificate().display(),
        cluster.admin_token().display(),
    );
    let section = [
        table(
            "prod",
            &format!("{asked}\nallowed_node_label_keys = [\"zone\"]\nallowed_pod_label_keys = [\"app\"]"),
        ),
        table("offline", &keys),
        table("alive", &format!("{keys}\n{asked}")),
    ]
    .concat();
    let server = TestServer::start_in(TempDir::new().unwrap(), real_time(), &section).await;

    let uid = cluster.pod("p1", "agent", "n1").await;
    let token = cluster.token("agent", AUDIENCE, "p1", &uid).await;
    // Rights reach the API server's memory a moment after they were written.
    let settled =
        cluster.until(Duration::from_secs(30), async || present(&server, "prod", &token).await.is_ok()).await;
    assert!(settled, "{:?}", present(&server, "prod", &token).await.map(|agent| agent.id));
    let agent = present(&server, "prod", &token).await.unwrap();
    assert_eq!(agent.path(), format!("/spire/agent/k8s_psat/prod/{node}"));
    let expected = [
        "k8s_psat:agent_node_ip:192.0.2.7".to_owned(),
        "k8s_psat:agent_node_label:zone:z1".to_owned(),
        "k8s_psat:agent_node_name:n1".to_owned(),
        format!("k8s_psat:agent_node_uid:{node}"),
        "k8s_psat:agent_ns:default".to_owned(),
        "k8s_psat:agent_pod_label:app:agent".to_owned(),
        "k8s_psat:agent_pod_name:p1".to_owned(),
        format!("k8s_psat:agent_pod_uid:{uid}"),
        "k8s_psat:agent_sa:agent".to_owned(),
        "k8s_psat:cluster:prod".to_owned(),
    ];
    assert_eq!(selectors(&server, &agent), expected);
    for name in ["offline", "alive"] {
        let agent = present(&server, name, &token).await.unwrap();
        assert_eq!(agent.path(), format!("/spire/agent/k8s_psat/{name}/{node}"));
    }

    // A token for somebody else, and one of another service account.
    let elsewhere = cluster.token("agent", "other", "p1", &uid).await;
    let refused = present(&server, "prod", &elsewhere).await.unwrap_err();
    assert!(refused.message().contains("invalid for the target audiences"), "{refused:?}");
    let refused = present(&server, "offline", &elsewhere).await.unwrap_err();
    assert!(refused.message().contains("token is not meant for this server"), "{refused:?}");
    let stranger = cluster.pod("p2", "other", "n1").await;
    let stranger = cluster.token("other", AUDIENCE, "p2", &stranger).await;
    for name in ["prod", "offline"] {
        let refused = present(&server, name, &stranger).await.unwrap_err();
        assert!(
            refused.message().contains("\"default:other\" is not an allowed service account"),
            "{refused:?}"
        );
    }

    // Each right that is taken away is named, and the attestor has no other need.
    for (at, (group, resource, verbs)) in RIGHTS.iter().enumerate() {
        let mut rights = RIGHTS;
        rights[at].2 = &[];
        cluster.allow(&rights).await;
        let resource = if group.is_empty() { (*resource).to_owned() } else { format!("{resource}.{group}") };
        let text = format!("this server may not {} {resource} in the cluster", verbs[0]);
        let named = cluster.until(Duration::from_secs(30), async || {
            present(&server, "prod", &token).await.is_err_and(|refused| refused.message().contains(&text))
        });
        assert!(named.await, "{text}: {:?}", present(&server, "prod", &token).await.map(|agent| agent.id));
    }
    cluster.allow(&RIGHTS).await;
    assert!(
        cluster.until(Duration::from_secs(30), async || present(&server, "prod", &token).await.is_ok()).await
    );

    // The pod goes away, and another one gets its name: the old token is worth nothing where the cluster is asked.
    const POD: &str = "/api/v1/namespaces/default/pods/p1";
    cluster.call(Method::DELETE, POD, json!({ "gracePeriodSeconds": 0 })).await;
    for name in ["prod", "alive"] {
        let refused = present(&server, name, &token).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
        let known = ["there is no pod \"p1\"", "token not authenticated"];
        assert!(known.iter().any(|text| refused.message().contains(text)), "{refused:?}");
    }
    let recycled = cluster.pod("p1", "agent", "n1").await;
    let refused = present(&server, "alive", &token).await.unwrap_err();
    assert!(refused.message().contains("pod UID mismatch for pod \"p1\""), "{refused:?}");
    let refused = present(&server, "prod", &token).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
    let fresh = cluster.token("agent", AUDIENCE, "p1", &recycled).await;
    assert_eq!(present(&server, "prod", &fresh).await.unwrap().id, agent.id);

    // A node that was made anew under its name is not the one that the token was made for.
    cluster.call(Method::DELETE, "/api/v1/nodes/n1", json!({})).await;
    cluster.create("/api/v1/nodes", json!({ "metadata": { "name": "n1" } })).await;
    let refused = present(&server, "alive", &fresh).await.unwrap_err();
    assert!(refused.message().contains("node UID mismatch for node \"n1\""), "{refused:?}");
}
