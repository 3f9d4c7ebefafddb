//! A real API server, with an etcd of its own. It is built once by
//! `go build` in `tests/interop/kube-apiserver` (see there), and looked for at `BONAFIDE_TEST_KUBE_APISERVER` and below `target/`.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// The `iss` claim of its tokens.
pub(crate) const ISSUER: &str = "https://kubernetes.test";

pub(crate) struct Cluster {
    folder: TempDir,
    port: u16,
    tls: TlsConnector,
    _programs: Vec<Program>,
}

/// Ends with the test, whatever becomes of that.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn program() -> Result<PathBuf, String> {
    if let Some(path) = std::env::var_os("BONAFIDE_TEST_KUBE_APISERVER") {
        return Ok(path.into());
    }
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/kube-apiserver/kube-apiserver");
    if built.exists() {
        Ok(built)
    } else {
        Err("no kube-apiserver was built (tests/interop/kube-apiserver)".to_owned())
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Cluster {
    /// Starts one, or says on standard error why the test is skipped.
    pub(crate) async fn start(test: &str) -> Option<Self> {
        let program = match program() {
            Ok(program) => program,
            Err(why) => {
                eprintln!("SKIPPED: {test}: {why}");
                return None;
            }
        };
        let folder = TempDir::new().unwrap();
        let file = |name: &str, content: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, content).unwrap();
            path
        };
        let quiet = |program: &Path, arguments: &[String], log: &str| {
            let log = std::fs::File::create(folder.path().join(log)).unwrap();
            let mut command = Command::new(program);
            command.args(arguments).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
            command.spawn().map(Program)
        };
        let [client, peer, port] = [free_port(), free_port(), free_port()];
        let [client, peer] = [client, peer].map(|port| format!("http://127.0.0.1:{port}"));
        let etcd = [
            format!("--data-dir={}", folder.path().join("etcd").display()),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster=default={peer}"),
        ];
        let etcd = match quiet(Path::new("etcd"), &etcd, "etcd.log") {
            Ok(etcd) => etcd,
            Err(error) => {
                eprintln!("SKIPPED: {test}: etcd: {error}");
                return None;
            }
        };
        let tokens = rcgen::KeyPair::generate().unwrap();
        let made =
            rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        let signing = file("sa.key", &tokens.serialize_pem());
        let verifying = file("sa.pub", &tokens.public_key_pem());
        let users = file(
            "users.csv",
            "admin-token,admin,1,\"system:masters\"\nbonafide-token,bonafide,2,\"servers\"\n",
        );
        let certificate = file("tls.pem", &made.cert.pem());
        let key = file("tls.key", &made.signing_key.serialize_pem());
        let arguments = [
            format!("--etcd-servers={client}"),
            "--bind-address=127.0.0.1".to_owned(),
            format!("--secure-port={port}"),
            format!("--tls-cert-file={}", certificate.display()),
            format!("--tls-private-key-file={}", key.display()),
            format!("--cert-dir={}", folder.path().display()),
            format!("--service-account-issuer={ISSUER}"),
            format!("--service-account-key-file={}", verifying.display()),
            format!("--service-account-signing-key-file={}", signing.display()),
            "--api-audiences=kubernetes".to_owned(),
            "--authorization-mode=RBAC".to_owned(),
            format!("--token-auth-file={}", users.display()),
            "--service-cluster-ip-range=10.0.0.0/24".to_owned(),
            "--feature-gates=ClusterTrustBundle=true".to_owned(),
            "--runtime-config=certificates.k8s.io/v1beta1=true".to_owned(),
            // Pods are made here without controllers that would make what this asks for.
            "--disable-admission-plugins=ServiceAccount".to_owned(),
        ];
        let server = quiet(&program, &arguments, "api.log").unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        let config = ClientConfig::builder_with_provider(bonafide_pki::tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let tls = TlsConnector::from(std::sync::Arc::new(config));
        let cluster = Self { folder, port, tls, _programs: vec![server, etcd] };
        let ready = cluster.until(Duration::from_secs(120), async || {
            matches!(cluster.try_call(Method::GET, "/readyz", None).await, Ok((200, _)))
        });
        if !ready.await {
            let log = std::fs::read_to_string(cluster.folder.path().join("api.log")).unwrap_or_default();
            panic!("the API server is not ready: {}", log.lines().last().unwrap_or_default());
        }
        Some(cluster)
    }

    /// Waits for a level; whether it came.
    pub(crate) async fn until(&self, bound: Duration, level: impl AsyncFn() -> bool) -> bool {
        let end = Instant::now() + bound;
        loop {
            if level().await {
                return true;
            }
            if Instant::now() >= end {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The file that this server under test uses: a user with the rights that it was given.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        let cluster = json!({
            "server": format!("https://127.0.0.1:{}", self.port),
            "certificate-authority": self.certificate(),
        });
        super::kubeconfig(self.folder.path(), "kubeconfig", &cluster, &json!({ "token": "bonafide-token" }))
    }

    pub(crate) fn certificate(&self) -> PathBuf {
        self.folder.path().join("tls.pem")
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("https://127.0.0.1:{}{path}", self.port)
    }

    pub(crate) fn admin_token(&self) -> PathBuf {
        let path = self.folder.path().join("admin-token");
        std::fs::write(&path, "admin-token").unwrap();
        path
    }

    async fn try_call(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> std::io::Result<(u16, Value)> {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let stream = self.tls.connect(name, stream).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(std::io::Error::other)?;
        let driver = tokio::spawn(connection);
        let kind = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "127.0.0.1")
            .header(header::AUTHORIZATION, "Bearer admin-token")
            .header(header::CONTENT_TYPE, kind)
            .body(Full::new(Bytes::from(body.map(Value::to_string).unwrap_or_default())))
            .unwrap();
        let response = sender.send_request(request).await.map_err(std::io::Error::other)?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.map_err(std::io::Error::other)?.to_bytes();
        driver.abort();
        Ok((status, serde_json::from_slice(&body).unwrap_or_default()))
    }

    /// What a call as the administrator is answered with.
    pub(crate) async fn status(&self, method: Method, path: &str) -> u16 {
        self.try_call(method, path, None).await.unwrap().0
    }

    /// A call as the administrator, which must succeed.
    pub(crate) async fn call(&self, method: Method, path: &str, body: Value) -> Value {
        let (status, answer) = self.try_call(method.clone(), path, Some(&body)).await.unwrap();
        assert!((200..300).contains(&status), "{method} {path}: {status} {answer}");
        answer
    }

    pub(crate) async fn create(&self, path: &str, body: Value) -> Value {
        self.call(Method::POST, path, body).await
    }

    /// Gives the server under test these rights and no others: API group, resource and verbs.
    pub(crate) async fn allow(&self, rules: &[(&str, &str, &[&str])]) {
        let rules: Vec<Value> = rules
            .iter()
            .filter(|(_, _, verbs)| !verbs.is_empty())
            .map(|(group, resource, verbs)| json!({ "apiGroups": [group], "resources": [resource], "verbs": verbs }))
            .collect();
        const ROLES: &str = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
        const BINDINGS: &str = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";
        let role = json!({ "metadata": { "name": "bonafide" }, "rules": rules });
        if self.try_call(Method::GET, &format!("{ROLES}/bonafide"), None).await.unwrap().0 == 200 {
            self.call(Method::PUT, &format!("{ROLES}/bonafide"), role).await;
            return;
        }
        self.create(ROLES, role).await;
        let group = "rbac.authorization.k8s.io";
        let binding = json!({
            "metadata": { "name": "bonafide" },
            "roleRef": { "apiGroup": group, "kind": "ClusterRole", "name": "bonafide" },
            "subjects": [{ "apiGroup": group, "kind": "User", "name": "bonafide" }],
        });
        self.create(BINDINGS, binding).await;
    }

    /// A pod of a service account on a node, running; its UID.
    pub(crate) async fn pod(&self, name: &str, account: &str, node: &str) -> String {
        const PODS: &str = "/api/v1/namespaces/default/pods";
        let pod = json!({
            "metadata": { "name": name, "labels": { "app": "agent", "other": "o" } },
            "spec": { "serviceAccountName": account, "nodeName": node, "containers": [{ "name": "c", "image": "i" }] },
        });
        let pod = self.create(PODS, pod).await;
        let status = json!({ "status": { "phase": "Running", "hostIP": "192.0.2.7", "hostIPs": [{ "ip": "192.0.2.7" }] } });
        self.call(Method::PATCH, &format!("{PODS}/{name}/status"), status).await;
        pod["metadata"]["uid"].as_str().unwrap().to_owned()
    }

    /// The token that the kubelet would project into a pod.
    pub(crate) async fn token(&self, account: &str, audience: &str, pod: &str, uid: &str) -> String {
        let bound = json!({ "kind": "Pod", "apiVersion": "v1", "name": pod, "uid": uid });
        let spec = json!({ "audiences": [audience], "expirationSeconds": 600, "boundObjectRef": bound });
        let path = format!("/api/v1/namespaces/default/serviceaccounts/{account}/token");
        let answer = self.create(&path, json!({ "spec": spec })).await;
        answer["status"]["token"].as_str().unwrap().to_owned()
    }
}
