//! The container that a process runs in, as the engine describes it.
//!
//! Selectors `label:<key>:<value>`, `env:<NAME>=<value>`, `image_id:<image as it was named>` and
//! `image_config_digest:sha256:<hex>`. Environment and labels are those that the container was *created* with, from
//! the engine; what the process did to its own environment is not looked at.
//!
//! The container's ID comes from the cgroups of the pinned process ([`super::cgroup`]). It is not believed alone: the
//! engine says which process it started in that container, and both must be at the same place in the cgroups. So a
//! service that may make cgroups below its own cannot pass for a container by giving one that container's name. The engine names
//! that process by number, so the agent must be in the first PID namespace, as engines are; elsewhere attestation fails.
//!
//! A process in no container, or in one that the engine does not know (another engine's), has no selectors. An engine that
//! does not answer is a failure. Nothing is remembered between two attestations.
//!
//! Containers in a user's slice belong to an engine that the user controls: its answers are the user's word for
//! anything, labels and digests of images included. They are asked for only when `podman_socket_path_template` is
//! given. Rejected: asking them by default, as SPIRE does; asking for the digest by the image's name, which may have
//! been given to another image since the container was created.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bonafide_identity::Selector;
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::UnixStream;

use super::cgroup::{EngineKind, Located, Matcher, locate};
use super::places::Places;
use super::{AttestError, WorkloadAttestor, numbers_are_the_systems};
use crate::caller::PinnedCaller;

/// Where engines are asked, and how containers are found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DockerConfig {
    /// Docker's socket.
    pub docker_socket: PathBuf,
    /// The version of the API to ask for, without the `v`; none for the engine's own.
    pub version: Option<String>,
    /// The socket of Podman that runs as root.
    pub podman_socket: PathBuf,
    /// The socket of a user's Podman; users' containers are not looked at without it.
    pub podman_user_socket: Option<UserSocket>,
    /// Where in the cgroup path the ID is, when it is in an unusual place.
    pub matchers: Vec<Matcher>,
}

impl Default for DockerConfig {
    fn default() -> Self {
        Self {
            docker_socket: DEFAULT_DOCKER_SOCKET.into(),
            version: None,
            podman_socket: DEFAULT_PODMAN_SOCKET.into(),
            podman_user_socket: None,
            matchers: Vec::new(),
        }
    }
}

/// The path of a user's socket: text with the user's number in one place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserSocket {
    before: String,
    after: String,
}

/// Why a template is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must hold %d, the user's number, exactly once and no other %")]
pub struct UserSocketError;

impl std::str::FromStr for UserSocket {
    type Err = UserSocketError;

    fn from_str(text: &str) -> Result<Self, UserSocketError> {
        let (before, after) = text.split_once("%d").ok_or(UserSocketError)?;
        if before.contains('%') || after.contains('%') {
            return Err(UserSocketError);
        }
        Ok(Self { before: before.to_owned(), after: after.to_owned() })
    }
}

impl UserSocket {
    fn of(&self, uid: u32) -> PathBuf {
        format!("{}{uid}{}", self.before, self.after).into()
    }
}

/// Docker's socket unless the configuration says otherwise.
pub const DEFAULT_DOCKER_SOCKET: &str = "/var/run/docker.sock";
/// Podman's socket unless the configuration says otherwise.
pub const DEFAULT_PODMAN_SOCKET: &str = "/run/podman/podman.sock";

/// Why an engine's answer is of no use.
#[derive(Debug, thiserror::Error)]
enum EngineError {
    #[error("cannot connect to {path}")]
    Connect {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the conversation broke off")]
    Conversation(#[from] hyper::Error),
    #[error("it answered with status {0}")]
    Status(StatusCode),
    #[error("its answer is incomplete or larger than {MAX_ANSWER} bytes")]
    Answer(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("its answer is not what the API documents")]
    Json(#[source] serde_json::Error),
    #[error("it describes another container than the one asked for")]
    OtherContainer,
    #[error("the cgroups of the container's first process cannot be read")]
    FirstProcess(#[source] std::io::Error),
    #[error("the caller is not where the engine runs the container that its cgroup names")]
    Elsewhere,
    #[error(
        "its numbers of processes mean something else to the agent, which is in a PID namespace of its own"
    )]
    OtherNumbers,
    #[error(transparent)]
    Ambiguous(#[from] super::cgroup::Ambiguous),
}

impl From<EngineError> for AttestError {
    fn from(error: EngineError) -> Self {
        Self::Service { what: SERVICE, source: Arc::new(error) }
    }
}

/// The attestor of type `docker`.
pub struct Docker {
    config: DockerConfig,
    proc: PathBuf,
    /// Whether our numbers of processes are those of the engine.
    same_numbers: bool,
    patience: Duration,
    places: Places,
    /// For engines that users control: one that does not answer must not hold up those of the system.
    places_of_users: Places,
}

impl Docker {
    /// An attestor that connects for each attestation.
    #[must_use]
    pub fn new(config: DockerConfig) -> Self {
        Self {
            config,
            proc: "/proc".into(),
            same_numbers: numbers_are_the_systems(),
            patience: PATIENCE,
            places: Places::new(AT_ONCE, SERVICE),
            places_of_users: Places::new(AT_ONCE, SERVICE),
        }
    }

    /// The engine's socket; nothing when containers of that engine are not looked at.
    fn socket(&self, engine: EngineKind) -> Option<PathBuf> {
        match engine {
            EngineKind::Docker => Some(self.config.docker_socket.clone()),
            EngineKind::Podman => Some(self.config.podman_socket.clone()),
            EngineKind::User { uid, podman: true } => {
                self.config.podman_user_socket.as_ref().map(|socket| socket.of(uid))
            }
            EngineKind::User { podman: false, .. } => None,
        }
    }

    async fn describe(&self, located: &Located<'_>, socket: &Path) -> Result<Vec<String>, EngineError> {
        let version = self.config.version.as_deref();
        let Some(answer) = get(socket, version, &format!("containers/{}/json", located.id)).await? else {
            tracing::debug!(container = located.id, "the engine does not know the container");
            return Ok(Vec::new());
        };
        let container = parse_container(&answer).map_err(EngineError::Json)?;
        if container.id != located.id {
            return Err(EngineError::OtherContainer);
        }
        self.ensure_inside(located, &container)?;
        let mut values = container.values();
        if let Some(image) = container.image_path()
            && let Some(answer) = get(socket, version, &image).await?
        {
            values.extend(parse_image(&answer).map_err(EngineError::Json)?);
        }
        Ok(values)
    }

    /// The caller's place is that of the process which the engine started.
    fn ensure_inside(&self, located: &Located<'_>, container: &Container) -> Result<(), EngineError> {
        // The number would be looked up among our processes, and might be that of whoever likes.
        if !self.same_numbers {
            return Err(EngineError::OtherNumbers);
        }
        let first = container.first_process().ok_or(EngineError::Elsewhere)?;
        let text = std::fs::read(self.proc.join(first.to_string()).join("cgroup"))
            .map_err(EngineError::FirstProcess)?;
        let text = String::from_utf8_lossy(&text);
        match locate(&text, &self.config.matchers)? {
            Some(real) if real == *located => Ok(()),
            _ => Err(EngineError::Elsewhere),
        }
    }
}

#[async_trait]
impl WorkloadAttestor for Docker {
    fn kind(&self) -> &'static str {
        KIND
    }

    async fn attest(&self, caller: &PinnedCaller) -> Result<Vec<Selector>, AttestError> {
        let text = caller.read("cgroup")?;
        let Some(located) = locate(&text, &self.config.matchers).map_err(EngineError::from)? else {
            return Ok(Vec::new());
        };
        let Some(socket) = self.socket(located.engine) else {
            tracing::debug!(?caller, engine = ?located.engine, "containers of this engine are not looked at");
            return Ok(Vec::new());
        };
        let place = match located.engine {
            // The user whose engine it is: the processes in its containers may have many.
            EngineKind::User { uid, .. } => self.places_of_users.take(uid).await?,
            EngineKind::Docker | EngineKind::Podman => self.places.take(caller.uid()).await?,
        };
        let described = tokio::time::timeout(self.patience, self.describe(&located, &socket)).await;
        drop(place);
        let values = described.map_err(|_| AttestError::TooSlow(SERVICE))??;
        // It may have been moved while the engine was asked.
        if locate(&caller.read("cgroup")?, &self.config.matchers).map_err(EngineError::from)? != Some(located)
        {
            return Err(EngineError::Elsewhere.into());
        }
        values.iter().map(|value| Ok(Selector::new(KIND, value)?)).collect()
    }
}

/// What the engine says at a path; nothing when it says that there is no such thing.
async fn get(socket: &Path, version: Option<&str>, path: &str) -> Result<Option<Bytes>, EngineError> {
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|source| EngineError::Connect { path: socket.to_owned(), source })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let path = match version {
        Some(version) => format!("/v{version}/{path}"),
        None => format!("/{path}"),
    };
    let request = Request::get(path)
        .header(http::header::HOST, "docker")
        .body(Empty::<Bytes>::new())
        .expect("paths are made of characters that need no escape");
    let answer = async move {
        let response = sender.send_request(request).await?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Ok(None),
            status => return Err(EngineError::Status(status)),
        }
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        Ok(Some(body.map_err(EngineError::Answer)?.to_bytes()))
    };
    // Both ends live in this future: whoever hangs up leaves no connection behind.
    tokio::pin!(answer);
    tokio::select! {
        answer = &mut answer => answer,
        ended = connection => {
            ended?;
            // What has arrived is still in the sender's hands.
            answer.await
        }
    }
}

/// What is used of the answer to `GET /containers/{id}/json` (Docker Engine API, "Inspect a container").
#[derive(Debug, Deserialize)]
pub struct Container {
    #[serde(rename = "Id")]
    id: String,
    #[serde(rename = "Image", default)]
    image: String,
    #[serde(rename = "State")]
    state: State,
    #[serde(rename = "Config")]
    config: ContainerConfig,
}

#[derive(Debug, Deserialize)]
struct State {
    #[serde(rename = "Running", default)]
    running: bool,
    #[serde(rename = "Pid", default)]
    pid: i32,
}

#[derive(Debug, Deserialize)]
struct ContainerConfig {
    #[serde(rename = "Image", default)]
    image: String,
    #[serde(rename = "Labels", default)]
    labels: Option<BTreeMap<String, String>>,
    #[serde(rename = "Env", default)]
    env: Option<Vec<String>>,
}

/// Reads the description of a container.
///
/// # Errors
/// It is not the JSON that the API documents.
pub fn parse_container(json: &[u8]) -> Result<Container, serde_json::Error> {
    serde_json::from_slice(json)
}

/// The selector value of an image's description, if it has an identifier of the usual form.
///
/// # Errors
/// It is not the JSON that the API documents.
pub fn parse_image(json: &[u8]) -> Result<Option<String>, serde_json::Error> {
    #[derive(Deserialize)]
    struct Image {
        #[serde(rename = "Id", default)]
        id: String,
    }
    let image: Image = serde_json::from_slice(json)?;
    Ok(digest(&image.id).map(|digest| format!("image_config_digest:sha256:{digest}")))
}

/// The digits of `sha256:<digits>`; Podman leaves the algorithm out.
fn digest(id: &str) -> Option<&str> {
    let digits = id.strip_prefix("sha256:").unwrap_or(id);
    let hexadecimal = digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    (digits.len() == 64 && hexadecimal).then_some(digits)
}

impl Container {
    /// The process that the engine started, while the container runs.
    #[must_use]
    pub fn first_process(&self) -> Option<i32> {
        (self.state.running && self.state.pid > 0).then_some(self.state.pid)
    }

    /// Where the engine describes the image that the container was made from.
    fn image_path(&self) -> Option<String> {
        if self.config.image.is_empty() {
            return None;
        }
        digest(&self.image).map(|digest| format!("images/sha256:{digest}/json"))
    }

    /// The values of the selectors that labels, environment and the image's name make.
    ///
    /// Whoever creates a container chooses these texts. What is not one line of text makes no selector, nor does a
    /// label whose key holds a colon: two different labels could then make the same selector.
    #[must_use]
    pub fn values(&self) -> Vec<String> {
        let config = &self.config;
        let mut values = Vec::new();
        for (key, value) in config.labels.iter().flatten() {
            if key.contains(':') {
                tracing::warn!(container = self.id, key, "a label with a colon in its key gives no selector");
            } else {
                values.push(format!("label:{key}:{value}"));
            }
        }
        values.extend(config.env.iter().flatten().map(|variable| format!("env:{variable}")));
        if !config.image.is_empty() {
            values.push(format!("image_id:{}", config.image));
        }
        values.retain(|value| !value.contains(char::is_control));
        values
    }
}

const KIND: &str = "docker";
const PATIENCE: Duration = Duration::from_secs(5);
const AT_ONCE: usize = 16;
const SERVICE: &str = "the container engine";
/// Far above the descriptions of real containers, which have a few tens of KiB.
const MAX_ANSWER: usize = 1024 * 1024;

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::sync::Mutex;

    use bonafide_runtime::listener::{PeerCred, PidfdOrigin};
    use rustix::process::{Pid, PidfdFlags, getegid, geteuid, pidfd_open};
    use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
    use tokio::net::UnixListener;

    use super::*;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
    const IMAGE: &str = "cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc";
    const FIRST: i32 = 4_000_001;

    /// A `/proc` in which this process and the first process of a container have these cgroups, and an engine.
    struct Scene {
        folder: tempfile::TempDir,
        caller: PinnedCaller,
        asked: Arc<Mutex<Vec<String>>>,
        attestor: Docker,
    }

    type Answers = Arc<dyn Fn(&str) -> Answer + Send + Sync>;

    enum Answer {
        Json(String),
        Status(&'static str),
        /// A body that goes on for ever.
        Endless,
        Silence,
    }

    impl Scene {
        fn new(mine: &str, first: &str, answers: impl Fn(&str) -> Answer + Send + Sync + 'static) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let pid = i32::try_from(std::process::id()).unwrap();
            let proc = folder.path().join("proc");
            for (pid, cgroup) in [(pid, mine), (FIRST, first)] {
                let own = proc.join(pid.to_string());
                std::fs::create_dir_all(&own).unwrap();
                for file in ["stat", "status"] {
                    std::fs::copy(format!("/proc/self/{file}"), own.join(file)).unwrap();
                }
                std::fs::write(own.join("cgroup"), fill(cgroup)).unwrap();
            }
            let cred = PeerCred {
                pid,
                uid: geteuid().as_raw(),
                gid: getegid().as_raw(),
                pidfd: Some(Arc::new(pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()).unwrap())),
                pidfd_origin: PidfdOrigin::Socket,
            };
            let caller = PinnedCaller::pin_observed(&cred, &proc, None).unwrap();
            let asked = serve(&folder.path().join("engine.sock"), Arc::new(answers));
            let config = DockerConfig {
                docker_socket: folder.path().join("engine.sock"),
                podman_socket: folder.path().join("podman.sock"),
                ..DockerConfig::default()
            };
            let attestor =
                Docker { proc, same_numbers: true, patience: Duration::from_secs(20), ..Docker::new(config) };
            Self { folder, caller, asked, attestor }
        }

        async fn attest(&self) -> Result<Vec<String>, AttestError> {
            let found = self.attestor.attest(&self.caller).await?;
            Ok(found.iter().map(|selector| selector.as_str().to_owned()).collect())
        }

        fn asked(&self) -> Vec<String> {
            self.asked.lock().unwrap().clone()
        }
    }

    fn fill(text: &str) -> String {
        text.replace("<A>", A).replace("<B>", B)
    }

    /// An engine that speaks HTTP by hand; returns the paths that were asked for.
    fn serve(socket: &Path, answers: Answers) -> Arc<Mutex<Vec<String>>> {
        let listener = UnixListener::bind(socket).unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let paths = Arc::clone(&asked);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (answers, paths) = (Arc::clone(&answers), Arc::clone(&paths));
                tokio::spawn(async move {
                    let mut stream = BufReader::new(stream);
                    let mut head = String::new();
                    while !head.ends_with("\r\n\r\n") {
                        if stream.read_line(&mut head).await.unwrap_or(0) == 0 {
                            return;
                        }
                    }
                    let path = head.split(' ').nth(1).unwrap().to_owned();
                    paths.lock().unwrap().push(path.clone());
                    let json = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n";
                    let text = match answers(&path) {
                        Answer::Json(body) => format!("{json}Content-Length: {}\r\n\r\n{body}", body.len()),
                        Answer::Status(status) => {
                            format!("HTTP/1.1 {status}\r\nContent-Length: 14\r\n\r\n{{\"message\":\"\"}}")
                        }
                        Answer::Endless => {
                            let head = format!("{json}Transfer-Encoding: chunked\r\n\r\n");
                            stream.write_all(head.as_bytes()).await.unwrap();
                            let chunk = format!("1000\r\n{}\r\n", " ".repeat(0x1000));
                            while stream.write_all(chunk.as_bytes()).await.is_ok() {}
                            return;
                        }
                        Answer::Silence => std::future::pending().await,
                    };
                    drop(stream.write_all(text.as_bytes()).await);
                });
            }
        });
        asked
    }

    /// The documented shape, with much that is not used.
    fn container(id: &str, labels: &serde_json::Value, env: &serde_json::Value) -> String {
        serde_json::json!({
            "Id": id,
            "Created": "2026-01-01T00:00:00.0Z",
            "Path": "/app",
            "Args": [],
            "State": {
                "Status": "running", "Running": true, "Paused": false, "Restarting": false, "OOMKilled": false,
                "Dead": false, "Pid": FIRST, "ExitCode": 0, "Error": "",
                "StartedAt": "2026-01-01T00:00:00.0Z", "FinishedAt": "0001-01-01T00:00:00Z"
            },
            "Image": format!("sha256:{IMAGE}"),
            "Name": "/web",
            "HostConfig": { "NetworkMode": "default", "CapAdd": null },
            "Config": {
                "Hostname": "h", "User": "", "Env": env, "Cmd": ["/app"], "Image": "registry.example/app:1",
                "Labels": labels
            },
            "NetworkSettings": { "Networks": {} }
        })
        .to_string()
    }

    fn usual(path: &str) -> Answer {
        let labels = serde_json::json!({"role": "web", "team": "a"});
        let env = serde_json::json!(["PATH=/bin", "MODE=prod"]);
        if path == format!("/containers/{A}/json") {
            Answer::Json(container(A, &labels, &env))
        } else if path == format!("/images/sha256:{IMAGE}/json") {
            Answer::Json(serde_json::json!({"Id": format!("sha256:{IMAGE}"), "RepoTags": []}).to_string())
        } else {
            Answer::Status("404 Not Found")
        }
    }

    const INSIDE: &str = "0::/system.slice/docker-<A>.scope";

    #[tokio::test]
    async fn a_container_is_described_by_labels_environment_and_image() {
        let scene = Scene::new("0::/system.slice/docker-<A>.scope/work", INSIDE, usual);
        let found = scene.attest().await.unwrap();
        let expected = [
            "docker:label:role:web".to_owned(),
            "docker:label:team:a".to_owned(),
            "docker:env:PATH=/bin".to_owned(),
            "docker:env:MODE=prod".to_owned(),
            "docker:image_id:registry.example/app:1".to_owned(),
            format!("docker:image_config_digest:sha256:{IMAGE}"),
        ];
        assert_eq!(found, expected);
        assert_eq!(scene.asked(), [format!("/containers/{A}/json"), format!("/images/sha256:{IMAGE}/json")]);
    }

    #[tokio::test]
    async fn the_configured_version_of_the_api_is_asked_for() {
        let mut scene = Scene::new(INSIDE, INSIDE, |path| usual(path.strip_prefix("/v1.44").unwrap()));
        scene.attestor.config.version = Some("1.44".to_owned());
        assert_eq!(scene.attest().await.unwrap().len(), 6);
    }

    #[tokio::test]
    async fn outside_of_containers_the_engine_is_not_asked() {
        for mine in ["0::/", "0::/system.slice/cron.service", ""] {
            let scene = Scene::new(mine, INSIDE, usual);
            assert!(scene.attest().await.unwrap().is_empty(), "{mine}");
            assert!(scene.asked().is_empty());
        }
    }

    #[tokio::test]
    async fn a_container_of_another_engine_has_no_selectors() {
        let scene = Scene::new("0::/kubepods/pod1/<B>", INSIDE, usual);
        assert!(scene.attest().await.unwrap().is_empty());
        assert_eq!(scene.asked(), [format!("/containers/{B}/json")]);
    }

    #[tokio::test]
    async fn a_cgroup_with_the_name_of_a_container_is_not_the_container() {
        // A service with the right to make cgroups below its own.
        let scene = Scene::new("0::/system.slice/evil.service/docker-<A>.scope", INSIDE, usual);
        let error = scene.attest().await.unwrap_err();
        assert!(format!("{error:?}").contains("Elsewhere"), "{error:?}");
        // An ordinary user: the engine is not even asked.
        let forged = "0::/user.slice/user-1000.slice/user@1000.service/app.slice/docker-<A>.scope";
        let scene = Scene::new(forged, INSIDE, usual);
        assert!(scene.attest().await.unwrap().is_empty());
        assert!(scene.asked().is_empty());
        // A container that makes a cgroup with the name of another remains what it is.
        let scene = Scene::new("0::/system.slice/docker-<A>.scope/docker/<B>", INSIDE, usual);
        assert_eq!(scene.attest().await.unwrap().len(), 6);
        assert!(scene.asked().iter().all(|path| !path.contains(B)));
    }

    #[tokio::test]
    async fn numbers_of_another_namespace_are_not_looked_up() {
        let mut scene = Scene::new(INSIDE, INSIDE, usual);
        scene.attestor.same_numbers = false;
        let error = scene.attest().await.unwrap_err();
        assert!(format!("{error:?}").contains("OtherNumbers"), "{error:?}");
    }

    #[tokio::test]
    async fn a_container_that_does_not_run_is_nobodys() {
        let scene = Scene::new(INSIDE, INSIDE, |path| match usual(path) {
            Answer::Json(json) => Answer::Json(json.replace("\"Running\":true", "\"Running\":false")),
            other => other,
        });
        assert!(scene.attest().await.is_err());
        // Its first process is another's by now.
        let scene = Scene::new(INSIDE, "0::/system.slice/cron.service", usual);
        assert!(scene.attest().await.is_err());
    }

    #[tokio::test]
    async fn an_engine_that_describes_another_container_is_not_believed() {
        let none = serde_json::Value::Null;
        let scene = Scene::new(INSIDE, INSIDE, move |_| Answer::Json(container(B, &none, &none)));
        let error = scene.attest().await.unwrap_err();
        assert!(format!("{error:?}").contains("OtherContainer"), "{error:?}");
    }

    #[tokio::test]
    async fn hostile_texts_make_no_selectors_of_others() {
        let labels = serde_json::json!({
            "a:b": "c", "line": "x\ndocker:label:role:admin", "nul": "\0", "": "empty key", "fine": "a:b:c"
        });
        let env = serde_json::json!(["X=1\nY=2", "no equals sign", "Z=:", ""]);
        let scene = Scene::new(INSIDE, INSIDE, move |path| {
            if path.starts_with("/containers") {
                Answer::Json(
                    container(A, &labels, &env).replace("registry.example/app:1", "../../x y\\u0007"),
                )
            } else {
                Answer::Status("404 Not Found")
            }
        });
        let expected = [
            "docker:label::empty key",
            "docker:label:fine:a:b:c",
            "docker:env:no equals sign",
            "docker:env:Z=:",
            "docker:env:",
        ];
        assert_eq!(scene.attest().await.unwrap(), expected);
        // The image is asked for by digest: its name goes nowhere.
        assert_eq!(scene.asked()[1], format!("/images/sha256:{IMAGE}/json"));
    }

    #[tokio::test]
    async fn an_engine_that_is_away_slow_endless_or_broken_fails() {
        for answer in [
            || Answer::Status("500 Internal Server Error"),
            || Answer::Status("301 Moved Permanently"),
            || Answer::Json("{\"Id\":".to_owned()),
            || Answer::Json("{\"Id\":\"x\"}".to_owned()),
            || Answer::Json("[".repeat(100_000)),
            || Answer::Endless,
        ] {
            let scene = Scene::new(INSIDE, INSIDE, move |_| answer());
            assert!(matches!(scene.attest().await, Err(AttestError::Service { .. })));
        }
        let mut scene = Scene::new(INSIDE, INSIDE, |_| Answer::Silence);
        scene.attestor.patience = Duration::from_millis(100);
        assert!(matches!(scene.attest().await, Err(AttestError::TooSlow(_))));
        std::fs::remove_file(scene.folder.path().join("engine.sock")).unwrap();
        assert!(matches!(scene.attest().await, Err(AttestError::Service { .. })));
    }

    #[tokio::test]
    async fn podman_is_asked_where_it_is_and_users_engines_only_on_request() {
        let inside = "0::/machine.slice/libpod-<A>.scope/container";
        let scene = Scene::new(inside, inside, |_| panic!("Docker is asked about Podman's container"));
        let asked = serve(&scene.folder.path().join("podman.sock"), Arc::new(usual));
        assert_eq!(scene.attest().await.unwrap().len(), 6);
        assert_eq!(asked.lock().unwrap().len(), 2);

        let users = "0::/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-<A>.scope/container";
        let mut scene = Scene::new(users, users, |_| panic!("Docker is asked about a user's container"));
        assert!(scene.attest().await.unwrap().is_empty());
        let template = format!("{}/user-%d.sock", scene.folder.path().display());
        scene.attestor.config.podman_user_socket = Some(template.parse().unwrap());
        let asked = serve(&scene.folder.path().join("user-1000.sock"), Arc::new(usual));
        assert_eq!(scene.attest().await.unwrap().len(), 6);
        assert_eq!(asked.lock().unwrap().len(), 2);
    }

    #[tokio::test]
    async fn users_engines_that_do_not_answer_hold_up_nobody_elses() {
        let scene = Scene::new(INSIDE, INSIDE, usual);
        let mut held = Vec::new();
        for uid in 0..2 {
            for _ in 0..AT_ONCE / 2 {
                held.push(scene.attestor.places_of_users.take(uid).await.unwrap());
            }
        }
        assert_eq!(scene.attest().await.unwrap().len(), 6);
    }

    #[tokio::test]
    async fn a_caller_that_moves_meanwhile_is_refused() {
        let scene = Scene::new(INSIDE, INSIDE, usual);
        let own = scene.attestor.proc.join(std::process::id().to_string()).join("cgroup");
        let moving = Scene::new(INSIDE, INSIDE, move |path| {
            std::fs::File::create(&own).unwrap().write_all(fill("0::/docker/<B>").as_bytes()).unwrap();
            usual(path)
        });
        let attestor = Docker {
            config: moving.attestor.config.clone(),
            proc: scene.attestor.proc.clone(),
            same_numbers: true,
            ..Docker::new(DockerConfig::default())
        };
        let error = attestor.attest(&scene.caller).await.unwrap_err();
        assert!(format!("{error:?}").contains("Elsewhere"), "{error:?}");
    }

    #[test]
    fn templates_hold_the_user_once() {
        let socket: UserSocket = "/run/user/%d/podman/podman.sock".parse().unwrap();
        assert_eq!(socket.of(7), Path::new("/run/user/7/podman/podman.sock"));
        for template in ["/run/podman.sock", "/%d/%d", "/%s/%d", "/%d/%"] {
            assert!(template.parse::<UserSocket>().is_err(), "{template}");
        }
    }
}
