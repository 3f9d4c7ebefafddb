//! An agent in this process, and clients of its sockets.

use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::Duration;

use bonafide_agent::agent::{Agent, Overrides, StartError};
use bonafide_agent::bootstrap::AttestPatience;
use bonafide_agent::config::Config;
use bonafide_identity::{Entry, TrustDomain};
use bonafide_proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use bonafide_testkit::EntryBuilder;
use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tonic::codegen::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use crate::fake_server::FakeServer;

/// How long anything may take before a test gives up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Where an agent lives.
pub(crate) struct Home {
    pub(crate) folder: TempDir,
}

impl Home {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path("public/api.sock")
    }

    pub(crate) fn admin_socket(&self) -> PathBuf {
        self.path("private/admin.sock")
    }

    /// A configuration for this server with a join token; `extra` goes on top.
    pub(crate) fn config(&self, server: &FakeServer, extra: &str) -> Config {
        let bundle = self.path("bundle.pem");
        std::fs::write(&bundle, server.lock().root_pem()).unwrap();
        let attestor =
            if extra.contains("node_attestor") { "" } else { "node_attestor.join_token.token = \"token\"" };
        let bootstrap = if extra.contains("bootstrap.") {
            String::new()
        } else {
            format!("bootstrap.bundle_file = \"{}\"", bundle.display())
        };
        let interval = if extra.contains("sync_interval") { "" } else { "sync_interval = \"100ms\"" };
        let text = format!(
            r#"
            trust_domain = "{}"
            data_dir = "{}"
            server.address = "{}"
            workload_api.socket = "{}"
            admin.socket = "{}"
            {attestor}
            {bootstrap}
            {interval}
            {extra}
            "#,
            server.lock().trust_domain,
            self.path("data").display(),
            server.address,
            self.socket().display(),
            self.admin_socket().display(),
        );
        Config::parse(Path::new("agent.toml"), &text).unwrap()
    }

    pub(crate) async fn start(&self, server: &FakeServer, extra: &str) -> Agent {
        self.start_with(self.config(server, extra), overrides()).await.unwrap()
    }

    /// For an agent that is not to start: gives up soon.
    pub(crate) async fn try_start(&self, server: &FakeServer, extra: &str) -> Result<Agent, StartError> {
        self.start_with(self.config(server, extra), impatient()).await
    }

    pub(crate) async fn start_with(&self, config: Config, overrides: Overrides) -> Result<Agent, StartError> {
        tokio::time::timeout(PATIENCE, Agent::start(config, overrides))
            .await
            .expect("the agent starts or fails")
    }
}

/// Quick to try again, and slow to give up: the machine may be busy.
pub(crate) fn overrides() -> Overrides {
    log();
    Overrides {
        patience: AttestPatience { initial: Duration::from_millis(50), total: Duration::from_secs(20) },
        drain: Duration::from_millis(200),
        ..Overrides::default()
    }
}

/// Quick to give up, for agents that are not to start.
pub(crate) fn impatient() -> Overrides {
    let patience = AttestPatience { initial: Duration::from_millis(50), total: Duration::from_millis(500) };
    Overrides { patience, ..overrides() }
}

/// Shows the agent's log when a test fails and `AGENT_TEST_LOG` is set.
fn log() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if std::env::var_os("AGENT_TEST_LOG").is_some() {
            let config = bonafide_runtime::telemetry::LogConfig {
                level: bonafide_runtime::telemetry::LogLevel::Debug,
                ..Default::default()
            };
            drop(bonafide_runtime::telemetry::init_logging(config));
        }
    });
}

pub(crate) type WithHeader = fn(Request<()>) -> Result<Request<()>, Status>;
pub(crate) type Workload = SpiffeWorkloadApiClient<InterceptedService<Channel, WithHeader>>;

/// A workload: this process.
pub(crate) async fn workload(home: &Home) -> Workload {
    workload_at(home.socket()).await
}

pub(crate) async fn workload_at(socket: PathBuf) -> Workload {
    fn header(mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("workload.spiffe.io", "true".parse().expect("it is ASCII"));
        Ok(request)
    }
    SpiffeWorkloadApiClient::with_interceptor(channel(socket).await, header as WithHeader)
}

pub(crate) async fn channel(socket: PathBuf) -> Channel {
    let connect = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(tokio::net::UnixStream::connect(socket).await?)) }
    });
    Endpoint::from_static("http://localhost").connect_with_connector(connect).await.unwrap()
}

/// The selector that this process has.
pub(crate) fn my_selector() -> String {
    format!("unix:uid:{}", rustix::process::geteuid().as_raw())
}

/// An entry for this process.
pub(crate) fn my_entry(id: &str, path: &str) -> EntryBuilder {
    EntryBuilder::new(id).spiffe_id(path).selectors([my_selector().as_str()])
}

pub(crate) fn federating(entry: Entry, with: &[&str]) -> Entry {
    let federates_with = with.iter().map(|name| TrustDomain::parse(name).unwrap()).collect();
    Entry { federates_with, ..entry }
}

/// Waits until something holds; says what was last seen when it never does.
pub(crate) async fn eventually<T: std::fmt::Debug>(what: &str, mut look: impl AsyncFnMut() -> Result<(), T>) {
    let started = tokio::time::Instant::now();
    loop {
        match look().await {
            Ok(()) => return,
            Err(seen) => assert!(started.elapsed() < PATIENCE, "{what} never happened; last seen: {seen:?}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The next message of a stream.
pub(crate) async fn next<T>(stream: &mut tonic::Streaming<T>) -> Result<T, Status> {
    let message = tokio::time::timeout(PATIENCE, stream.message()).await.expect("the stream says something");
    message.map(|message| message.expect("the stream does not just end"))
}

/// Cuts concatenated DER certificates apart. All of them are between 256 and 65,535 bytes long.
pub(crate) fn certificates(mut der: &[u8]) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    while let [0x30, 0x82, high, low, ..] = der {
        let (certificate, rest) = der.split_at(4 + usize::from(u16::from_be_bytes([*high, *low])));
        found.push(certificate.to_vec());
        der = rest;
    }
    assert!(der.is_empty(), "something follows the certificates");
    found
}
