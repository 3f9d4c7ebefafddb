//! A kubelet that does as it is told, over its real sockets, and processes in cgroups as it makes them.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bonafide_agent::caller::PinnedCaller;
use bonafide_identity::{SpiffeId, Timestamp, TrustDomain};
use bonafide_pki::{PrivateKey, TrustRoots, tls};
use bonafide_proto::kubelet::core;
use bonafide_proto::kubelet::podresources::pod_resources_lister_server::{
    PodResourcesLister, PodResourcesListerServer,
};
use bonafide_proto::kubelet::podresources::{
    ContainerDevices, ContainerResources, ListPodResourcesRequest, ListPodResourcesResponse, PodResources,
};
use bonafide_proto::kubelet::pods::pods_server::{Pods, PodsServer};
use bonafide_proto::kubelet::pods::{
    EventType, ListPodsRequest, ListPodsResponse, WatchPodsEvent, WatchPodsRequest,
};
use bonafide_runtime::clock::{Clock as _, SystemClock};
use bonafide_runtime::listener::{PeerCred, PidfdOrigin, UnixOptions, bind_unix, serve_unix};
use bonafide_runtime::shutdown::Shutdown;
use bonafide_testkit::TestAuthority;
use prost::Message as _;
use rustix::process::{Pid, PidfdFlags, getegid, geteuid, pidfd_open};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

/// Where the kubelet is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Api {
    Http,
    Pods,
    Resources,
}

/// A pod with one container, `main`.
#[derive(Debug, Clone)]
pub(crate) struct TestPod {
    pub(crate) uid: String,
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) labels: Vec<(&'static str, String)>,
    pub(crate) running: bool,
    pub(crate) ended: bool,
    pub(crate) privileged: bool,
    /// `containerStatuses`, or the list of another kind.
    pub(crate) list: &'static str,
}

impl TestPod {
    pub(crate) fn new(uid: &str, name: &str, id: &str) -> Self {
        Self {
            uid: uid.to_owned(),
            name: name.to_owned(),
            id: id.to_owned(),
            labels: Vec::new(),
            running: true,
            ended: false,
            privileged: false,
            list: "containerStatuses",
        }
    }

    fn json(&self) -> serde_json::Value {
        let state = match (self.ended, self.running) {
            (true, _) => serde_json::json!({"terminated": {"exitCode": 0}}),
            (false, true) => serde_json::json!({"running": {"startedAt": "2026-01-01T00:00:00Z"}}),
            (false, false) => serde_json::json!({"waiting": {}}),
        };
        let status = serde_json::json!([{
            "name": "main", "image": "r/app:1", "imageID": "r/app@sha256:aa", "containerID": format!("containerd://{}", self.id),
            "state": state, "ready": true, "restartCount": 0
        }]);
        let labels: serde_json::Map<String, serde_json::Value> =
            self.labels.iter().map(|(key, value)| ((*key).to_owned(), value.clone().into())).collect();
        let mut statuses = serde_json::Map::new();
        statuses.insert(self.list.to_owned(), status);
        serde_json::json!({
            "metadata": {"uid": self.uid, "name": self.name, "namespace": "shop", "labels": labels,
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "uid": "o-1"}]},
            "spec": {"nodeName": "node-1", "serviceAccountName": "cart", "containers":
                [{"name": "main", "image": "app:1", "securityContext": {"privileged": self.privileged}}]},
            "status": statuses,
        })
    }

    fn proto(&self) -> Vec<u8> {
        let state = core::ContainerState {
            running: (self.running && !self.ended).then(core::ContainerStateRunning::default),
            terminated: self.ended.then(core::ContainerStateTerminated::default),
        };
        let status = core::ContainerStatus {
            name: "main".to_owned(),
            state: Some(state),
            image: "r/app:1".to_owned(),
            image_id: "r/app@sha256:aa".to_owned(),
            container_id: format!("containerd://{}", self.id),
        };
        let mut statuses = core::PodStatus::default();
        match self.list {
            "containerStatuses" => statuses.container_statuses.push(status),
            "initContainerStatuses" => statuses.init_container_statuses.push(status),
            _ => statuses.ephemeral_container_statuses.push(status),
        }
        let owner = core::OwnerReference {
            kind: "StatefulSet".to_owned(),
            name: "web".to_owned(),
            uid: "o-1".to_owned(),
        };
        let container = core::Container {
            name: "main".to_owned(),
            security_context: Some(core::SecurityContext { privileged: Some(self.privileged) }),
        };
        let labels = self.labels.iter().map(|(key, value)| ((*key).to_owned(), value.clone()));
        core::Pod {
            metadata: Some(core::ObjectMeta {
                name: self.name.clone(),
                namespace: "shop".to_owned(),
                uid: self.uid.clone(),
                labels: labels.collect(),
                owner_references: vec![owner],
            }),
            spec: Some(core::PodSpec {
                containers: vec![container],
                service_account_name: "cart".to_owned(),
                node_name: "node-1".to_owned(),
                ..core::PodSpec::default()
            }),
            status: Some(statuses),
        }
        .encode_to_vec()
    }
}

/// An allocation to the container `main` of a pod.
pub(crate) fn allocation(pod: &str, resource: &str, ids: &[&str]) -> PodResources {
    let ids = ids.iter().map(|id| (*id).to_owned()).collect();
    let devices = ContainerDevices { resource_name: resource.to_owned(), device_ids: ids };
    let container =
        ContainerResources { name: "main".to_owned(), devices: vec![devices], dynamic_resources: Vec::new() };
    PodResources { name: pod.to_owned(), namespace: "shop".to_owned(), containers: vec![container] }
}

/// Is called before each answer with the number of the question, from 0.
type Script = Box<dyn FnMut(&mut World, Api, usize) + Send>;

/// What the kubelet knows, and what happens when it is asked.
#[derive(Default)]
pub(crate) struct World {
    pub(crate) pods: Vec<TestPod>,
    pub(crate) resources: Vec<PodResources>,
    pub(crate) asked: Vec<Api>,
    pub(crate) script: Option<Script>,
    /// How long each answer takes.
    pub(crate) delay: Duration,
    /// The token without which the port answers 401; a certificate will do as well.
    pub(crate) token: Option<String>,
    /// What the sockets answer instead.
    pub(crate) refuse: Option<Status>,
}

/// A running kubelet.
pub(crate) struct Kubelet {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) port: u16,
    world: Arc<Mutex<World>>,
    changes: watch::Sender<u64>,
    authority: TestAuthority,
    shutdown: Shutdown,
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.shutdown.trigger();
    }
}

#[derive(Clone)]
struct Service {
    world: Arc<Mutex<World>>,
    changes: watch::Sender<u64>,
}

impl Service {
    fn asked<T>(&self, api: Api, answer: impl FnOnce(&World) -> T) -> (T, Duration) {
        let mut world = self.world.lock().unwrap();
        let number = world.asked.len();
        world.asked.push(api);
        if let Some(mut script) = world.script.take() {
            script(&mut world, api, number);
            world.script = Some(script);
        }
        (answer(&world), world.delay)
    }
}

impl Kubelet {
    /// With the sockets `pods.sock` and `resources.sock` in its folder, and a port.
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let world = Arc::new(Mutex::new(World::default()));
        let changes = watch::Sender::new(0);
        let service = Service { world: Arc::clone(&world), changes: changes.clone() };
        let shutdown = Shutdown::new();
        for (name, routes) in [
            ("pods.sock", Routes::new(PodsServer::new(service.clone()))),
            ("resources.sock", Routes::new(PodResourcesListerServer::new(service.clone()))),
        ] {
            let bound = bind_unix(folder.path().join(name), 0o700, 0o700).unwrap();
            let until = shutdown.clone();
            let options = UnixOptions { drain: Duration::ZERO, ..UnixOptions::default() };
            tokio::spawn(async move { serve_unix(bound, routes, options, until).await.unwrap() });
        }
        let now = SystemClock.now();
        let at = |seconds| Timestamp::from_unix_seconds(now.unix_seconds() + seconds);
        let authority = TestAuthority::new(&TrustDomain::parse("kubelet").unwrap(), at(-100), at(36_000));
        let leaf = authority.issue_with(&SpiffeId::parse("spiffe://kubelet/node").unwrap(), |params| {
            let name = "localhost".to_owned().try_into().unwrap();
            params.subject_alt_names.push(rcgen::SanType::DnsName(name));
        });
        let key = PrivateKey::from_pkcs8_der(&leaf.pkcs8).unwrap();
        let held = tls::SvidHolder::new(tls::Svid::new(leaf.chain, Arc::new(key)).unwrap());
        let trust = tls::TrustStore::empty();
        let roots = Arc::new(TrustRoots::from_der([authority.root()]).unwrap());
        trust.set_trust_domain(&TrustDomain::parse("kubelet").unwrap(), &roots);
        let clock: tls::Now = Arc::new(|| SystemClock.now());
        let config = tls::server_config(held, trust, tls::ClientAuth::OptionalSpiffe, clock);
        let mut config = tokio_rustls::rustls::ServerConfig::clone(&config);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(serve_http(listener, TlsAcceptor::from(Arc::new(config)), service));
        std::fs::write(folder.path().join("token"), "the-token\n").unwrap();
        let pem = bonafide_pki::pem::encode("CERTIFICATE", authority.root());
        std::fs::write(folder.path().join("ca.pem"), pem).unwrap();
        Self { folder, port, world, changes, authority, shutdown }
    }

    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Tells those who watch.
    pub(crate) fn announce(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// How often it was asked at one place.
    pub(crate) fn asked(&self, api: Api) -> usize {
        self.world().asked.iter().filter(|one| **one == api).count()
    }

    /// Writes a certificate of the kubelet's authority and its key.
    pub(crate) fn write_certificate(&self) {
        let leaf = self.authority.issue(&SpiffeId::parse("spiffe://kubelet/agent").unwrap());
        let chain: String =
            leaf.chain.iter().map(|der| bonafide_pki::pem::encode("CERTIFICATE", der)).collect();
        std::fs::write(self.path("cert.pem"), chain).unwrap();
        let key = bonafide_pki::pem::encode("PRIVATE KEY", &leaf.pkcs8);
        std::fs::write(self.path("key.pem"), key).unwrap();
    }
}

async fn serve_http(listener: TcpListener, acceptor: TlsAcceptor, service: Service) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { return };
        let (acceptor, service) = (acceptor.clone(), service.clone());
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let certified = stream.get_ref().1.peer_certificates().is_some();
            let mut stream = BufReader::new(stream);
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                if stream.read_line(&mut head).await.unwrap_or(0) == 0 {
                    return;
                }
            }
            let (answer, delay) = service.asked(Api::Http, |world| {
                let token = world.token.as_ref().map(|token| format!("authorization: Bearer {token}\r\n"));
                if token.is_some_and(|token| !certified && !head.contains(&token)) {
                    return "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n".to_owned();
                }
                assert!(head.starts_with("GET /pods HTTP/1.1\r\n"), "{head}");
                let items: Vec<_> = world.pods.iter().map(TestPod::json).collect();
                let body =
                    serde_json::json!({"kind": "PodList", "apiVersion": "v1", "items": items}).to_string();
                format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
            });
            tokio::time::sleep(delay).await;
            drop(stream.write_all(answer.as_bytes()).await);
            drop(stream.shutdown().await);
        });
    }
}

#[tonic::async_trait]
impl Pods for Service {
    type WatchPodsStream = ReceiverStream<Result<WatchPodsEvent, Status>>;

    async fn watch_pods(
        &self,
        _: Request<WatchPodsRequest>,
    ) -> Result<Response<Self::WatchPodsStream>, Status> {
        let (send, receive) = mpsc::channel(8);
        let mut changes = self.changes.subscribe();
        tokio::spawn(async move {
            let event = |kind: EventType| WatchPodsEvent { r#type: kind.into(), pod: Vec::new() };
            let mut next = event(EventType::InitialSyncComplete);
            while send.send(Ok(next)).await.is_ok() && changes.changed().await.is_ok() {
                next = event(EventType::Modified);
            }
        });
        Ok(Response::new(ReceiverStream::new(receive)))
    }

    async fn list_pods(&self, _: Request<ListPodsRequest>) -> Result<Response<ListPodsResponse>, Status> {
        let (answer, delay) = self.asked(Api::Pods, |world| match &world.refuse {
            Some(status) => Err(status.clone()),
            None => Ok(ListPodsResponse { pods: world.pods.iter().map(TestPod::proto).collect() }),
        });
        tokio::time::sleep(delay).await;
        answer.map(Response::new)
    }
}

#[tonic::async_trait]
impl PodResourcesLister for Service {
    async fn list(
        &self,
        _: Request<ListPodResourcesRequest>,
    ) -> Result<Response<ListPodResourcesResponse>, Status> {
        let (answer, delay) = self.asked(Api::Resources, |world| match &world.refuse {
            Some(status) => Err(status.clone()),
            None => Ok(ListPodResourcesResponse { pod_resources: world.resources.clone() }),
        });
        tokio::time::sleep(delay).await;
        answer.map(Response::new)
    }
}

/// A process in a cgroup.
pub(crate) struct Jailed {
    pub(crate) process: Child,
    folder: PathBuf,
}

/// The folder of a hierarchy in which cgroups can be made.
fn hierarchy() -> Option<&'static Path> {
    static FOUND: std::sync::OnceLock<Option<PathBuf>> = std::sync::OnceLock::new();
    FOUND
        .get_or_init(|| {
            ["pids", "unified", "."].into_iter().map(|name| Path::new("/sys/fs/cgroup").join(name)).find(
                |root| {
                    let probe = root.join(format!("bonafide-probe-{}", std::process::id()));
                    let made = std::fs::create_dir(&probe).is_ok() && probe.join("cgroup.procs").exists();
                    drop(std::fs::remove_dir(&probe));
                    made
                },
            )
        })
        .as_deref()
}

/// Whether cgroups can be made here; says that a test is skipped when not.
pub(crate) fn can_jail(test: &str) -> bool {
    if hierarchy().is_none() {
        eprintln!("SKIPPED: {test}: no cgroup can be made here");
    }
    hierarchy().is_some()
}

impl Jailed {
    /// A process that sleeps in the cgroup of this container.
    pub(crate) fn in_container(uid: &str, id: &str) -> Self {
        Self::at(&format!("kubepods/burstable/pod{uid}/{id}"), &mut sleeper())
    }

    pub(crate) fn at(path: &str, command: &mut Command) -> Self {
        let folder = make(path);
        let process = command.spawn().unwrap();
        enter(&folder, process.id());
        Self { process, folder }
    }

    pub(crate) fn pin(&self) -> PinnedCaller {
        pin(self.process.id())
    }

    pub(crate) fn kill(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

pub(crate) fn sleeper() -> Command {
    let mut command = Command::new("sleep");
    command.arg("1000").stdin(Stdio::null());
    command
}

/// Makes a cgroup, while others may remove what is above it.
pub(crate) fn make(path: &str) -> PathBuf {
    let folder = hierarchy().unwrap().join(path);
    for _ in 0..100 {
        if std::fs::create_dir_all(&folder).is_ok() {
            break;
        }
    }
    folder
}

pub(crate) fn enter(folder: &Path, pid: u32) {
    std::fs::write(folder.join("cgroup.procs"), pid.to_string()).unwrap();
}

impl Drop for Jailed {
    fn drop(&mut self) {
        self.kill();
        unmake(&self.folder);
    }
}

/// Removes a cgroup, and what is above it unless others are there.
pub(crate) fn unmake(folder: &Path) {
    // The kernel lets go of a cgroup a moment after its last process.
    for _ in 0..100 {
        if std::fs::remove_dir(folder).is_ok() {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let root = hierarchy().unwrap();
    let mut above = folder.parent().unwrap();
    while above != root && std::fs::remove_dir(above).is_ok() {
        above = above.parent().unwrap();
    }
}

/// The process as if it had connected to the agent.
pub(crate) fn pin(pid: u32) -> PinnedCaller {
    let pid = i32::try_from(pid).unwrap();
    PinnedCaller::pin(&PeerCred {
        pid,
        uid: geteuid().as_raw(),
        gid: getegid().as_raw(),
        pidfd: Some(Arc::new(pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()).unwrap())),
        pidfd_origin: PidfdOrigin::Socket,
    })
    .unwrap()
}

/// A UID that no other test uses.
pub(crate) fn uid(test: u8, number: u32) -> String {
    format!("{test:08x}-{:04x}-4000-8000-{number:012x}", std::process::id() & 0xffff)
}

/// A container's ID that no other test uses.
pub(crate) fn id(test: u8, number: u32) -> String {
    format!("{test:08x}{:08x}{:048x}", std::process::id(), number)
}
