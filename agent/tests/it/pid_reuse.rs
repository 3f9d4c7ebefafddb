//! A PID that is used again never gets the identity of its new owner to the old one's socket.
//!
//! The test runs itself in a PID namespace of its own with a hundred PIDs, so that a number comes round in milliseconds.
//! A *caller* asks for an SVID and hands its socket to an *heir*, which writes down whatever arrives. The caller dies,
//! and a *victim* (an entitled program) is started again and again until it has the caller's PID. Nothing of the
//! victim's may reach the heir, wherever in the call the caller dies; and the heir does get the caller's own identity
//! when the caller lives, which shows that the test would notice.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bonafide_agent::caller::PinnedCaller;
use bonafide_agent::workload_attestor::unix::{Unix, UnixConfig};
use bonafide_agent::workload_attestor::{AttestError, WorkloadAttestor, WorkloadAttestors};
use bonafide_identity::Selector;
use bonafide_runtime::clock::SystemClock;
use bonafide_testkit::EntryBuilder;
use tokio::sync::Semaphore;
use tonic::Status;

use crate::fake_server::FakeServer;
use crate::harness::{Home, eventually, overrides};

const INSIDE: &str = "BONAFIDE_PID_REUSE_INSIDE";
const CALLER: &str = "BONAFIDE_PID_REUSE_CALLER";
const PID_MAX: &str = "/proc/sys/kernel/pid_max";

#[test]
fn a_reused_pid_gets_nothing() {
    let output = Command::new("unshare")
        .args(["--pid", "--fork", "--kill-child", "--mount-proc", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "pid_reuse::inside", "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .output();
    let output = match output {
        Ok(output) => output,
        Err(error) => {
            eprintln!("SKIPPED: a_reused_pid_gets_nothing: unshare cannot be run: {error}");
            return;
        }
    };
    let said =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    if output.status.success() {
        assert!(said.contains("1 passed"), "{said}");
        if let Some(skipped) = said.lines().find(|line| line.starts_with("SKIPPED: ")) {
            eprintln!("{skipped}");
        }
    } else if said.lines().any(|line| line.starts_with("unshare: ")) {
        eprintln!("SKIPPED: a_reused_pid_gets_nothing: no PID namespace: {}", said.trim());
    } else {
        panic!("{said}");
    }
}

/// What [`a_reused_pid_gets_nothing`] runs in its namespace; nothing elsewhere.
#[test]
fn inside() {
    if std::env::var_os(INSIDE).is_none() {
        return;
    }
    if let Err(error) = std::fs::write(PID_MAX, "400") {
        eprintln!("SKIPPED: a_reused_pid_gets_nothing: {PID_MAX} cannot be set: {error}");
        return;
    }
    // The numbers below 300 are given out in the first round only.
    while Command::new("true")
        .spawn()
        .map(|mut child| {
            let pid = child.id();
            child.wait().unwrap();
            pid
        })
        .unwrap()
        < 300
    {}
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        Scene::new().await.the_heir_of_a_living_caller_is_served().await;
        Scene::new().await.death_before_the_connection_is_accepted().await;
        Scene::new().await.death_while_the_caller_is_attested().await;
        Scene::new().await.death_while_a_stream_is_open().await;
    });
}

/// What a caller runs; nothing when run as a test. Connects, asks, hands the socket on, and waits for the end of its input.
#[test]
fn caller() {
    let Some(arguments) = std::env::var_os(CALLER) else { return };
    let arguments = arguments.into_string().unwrap();
    let (socket, heritage) = arguments.split_once(':').unwrap();
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(&fetch_x509_svid()).unwrap();
    let heir = Command::new("cat")
        .stdin(Stdio::from(OwnedFd::from(stream)))
        .stdout(std::fs::File::create(heritage).unwrap())
        .spawn()
        .unwrap();
    // The heir lives on; it ends with the connection.
    drop(heir);
    println!("asked");
    let mut line = String::new();
    let _ = std::io::stdin().read_line(&mut line);
    std::process::exit(0);
}

/// HTTP/2 by hand, so that the caller is a plain process: preface, settings, one request for FetchX509SVID.
pub(crate) fn fetch_x509_svid() -> Vec<u8> {
    let frame = |kind: u8, flags: u8, stream: u8, payload: &[u8]| {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, stream], payload].concat()
    };
    // RFC 7541, section 6.2.2: literal fields with literal names, neither indexed nor compressed.
    let field = |name: &str, value: &str| {
        let length = |text: &str| u8::try_from(text.len()).unwrap();
        [&[0, length(name)], name.as_bytes(), &[length(value)], value.as_bytes()].concat()
    };
    let headers = [
        field(":method", "POST"),
        field(":scheme", "http"),
        field(":path", "/SpiffeWorkloadAPI/FetchX509SVID"),
        field(":authority", "localhost"),
        field("te", "trailers"),
        field("content-type", "application/grpc"),
        field("workload.spiffe.io", "true"),
    ]
    .concat();
    let (settings, request, data) = (4, 1, 0);
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        frame(settings, 0, 0, &[]),
        frame(request, 0x4, 1, &headers),
        frame(data, 0x1, 1, &[0; 5]),
    ]
    .concat()
}

/// Looks at the caller only when it is allowed to.
struct Gated {
    unix: Unix,
    entered: Arc<Semaphore>,
    gate: Arc<Semaphore>,
}

#[async_trait]
impl WorkloadAttestor for Gated {
    fn kind(&self) -> &'static str {
        "gated"
    }

    async fn attest(&self, caller: &PinnedCaller) -> Result<Vec<Selector>, AttestError> {
        self.entered.add_permits(1);
        self.gate.acquire().await.expect("the gate is never closed").forget();
        self.unix.attest(caller).await
    }
}

struct Caller {
    process: Child,
    heritage: PathBuf,
}

impl Caller {
    fn pid(&self) -> u32 {
        self.process.id()
    }

    fn die(&mut self) {
        drop(self.process.stdin.take());
        self.process.wait().unwrap();
    }

    fn heritage(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.heritage).unwrap_or_default()).into_owned()
    }

    fn kept_to_itself(&self) -> Result<(), String> {
        let heritage = self.heritage();
        if heritage.contains("spiffe://") { Err(heritage) } else { Ok(()) }
    }
}

/// By another process: a descriptor of ours that is open for writing could be inherited by what a test beside this one
/// starts at that moment, and the copy could not be started ("text file busy").
fn copy_sleep(to: &Path) {
    assert!(Command::new("cp").arg("/bin/sleep").arg(to).status().unwrap().success());
}

struct Scene {
    server: FakeServer,
    home: Home,
    victim: PathBuf,
    entered: Arc<Semaphore>,
    gate: Arc<Semaphore>,
}

impl Scene {
    async fn new() -> Self {
        let server = FakeServer::start().await;
        let home = Home::new();
        let victim = home.path("victim");
        copy_sleep(&victim);
        let by_path = |path: &Path| format!("unix:path:{}", path.display());
        let me = std::env::current_exe().unwrap();
        {
            let mut state = server.lock();
            state.add(
                EntryBuilder::new("e1").spiffe_id("/victim").selectors([by_path(&victim).as_str()]).build(),
            );
            state
                .add(EntryBuilder::new("e2").spiffe_id("/caller").selectors([by_path(&me).as_str()]).build());
        }
        Self { server, home, victim, entered: Arc::new(Semaphore::new(0)), gate: Arc::new(Semaphore::new(0)) }
    }

    async fn agent(&self) -> bonafide_agent::agent::Agent {
        let config = UnixConfig { discover_workload_path: true, workload_size_limit: -1 };
        let attestor = Gated {
            unix: Unix::new(config, SystemClock::shared()),
            entered: Arc::clone(&self.entered),
            gate: Arc::clone(&self.gate),
        };
        let mut overrides = overrides();
        overrides.workload_attestors = Some(WorkloadAttestors::new(vec![Arc::new(attestor)]));
        self.home.start_with(self.home.config(&self.server, ""), overrides).await.unwrap()
    }

    fn call(&self) -> Caller {
        let heritage = self.home.path("heritage");
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "pid_reuse::caller", "--nocapture", "--test-threads=1"])
            .env_remove(INSIDE)
            .env(CALLER, format!("{}:{}", self.home.socket().display(), heritage.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(process.stdout.take().unwrap());
        assert!(
            said.lines().map_while(Result::ok).any(|line| line.contains("asked")),
            "the caller did not ask"
        );
        Caller { process, heritage }
    }

    /// Starts the victim until it has this PID.
    fn reuse(&self, pid: u32) -> Child {
        for _ in 0..10_000 {
            let mut victim = Command::new(&self.victim).arg("1000").stdin(Stdio::null()).spawn().unwrap();
            if victim.id() == pid {
                return victim;
            }
            victim.kill().unwrap();
            victim.wait().unwrap();
        }
        panic!("PID {pid} never came round");
    }

    async fn entered(&self) {
        let entered = tokio::time::timeout(Duration::from_secs(20), self.entered.acquire()).await;
        entered.expect("a call arrives").unwrap().forget();
    }

    async fn the_heir_of_a_living_caller_is_served(&self) {
        let _agent = self.agent().await;
        let mut caller = self.call();
        self.entered().await;
        self.gate.add_permits(1);
        eventually("the heir reads the caller's identity", async || {
            let heritage = caller.heritage();
            if heritage.contains("spiffe://example.org/caller") { Ok(()) } else { Err(heritage) }
        })
        .await;
        assert!(!caller.heritage().contains("/victim"));
        caller.die();
    }

    async fn death_before_the_connection_is_accepted(&self) {
        // The agent has bound its socket and does not serve before it has synchronised.
        let busy = (0..1000).map(|_| Status::unavailable("busy")).collect();
        self.server.lock().fail.insert("SyncAuthorizedEntries", busy);
        self.gate.add_permits(1);
        let serve = async {
            let _agent = self.agent().await;
            std::future::pending::<()>().await;
        };
        let script = async {
            eventually("the socket is there", async || {
                if self.home.socket().exists() { Ok(()) } else { Err("no socket") }
            })
            .await;
            let mut caller = tokio::task::block_in_place(|| self.call());
            caller.die();
            let mut victim = tokio::task::block_in_place(|| self.reuse(caller.pid()));
            self.server.lock().fail.clear();
            eventually("the call is answered", async || {
                let heritage = caller.heritage();
                if heritage.contains("grpc-status")
                    || heritage.contains("attestation")
                    || !heritage.is_empty()
                {
                    Ok(())
                } else {
                    Err(heritage)
                }
            })
            .await;
            // The answer comes in one piece; leave time for what must not come.
            tokio::time::sleep(Duration::from_millis(300)).await;
            caller.kept_to_itself().unwrap();
            victim.kill().unwrap();
            victim.wait().unwrap();
        };
        tokio::select! {
            () = serve => {}
            () = script => {}
        }
    }

    async fn death_while_the_caller_is_attested(&self) {
        let _agent = self.agent().await;
        let mut caller = self.call();
        self.entered().await;
        caller.die();
        let mut victim = tokio::task::block_in_place(|| self.reuse(caller.pid()));
        self.gate.add_permits(1);
        eventually("the call is answered", async || {
            if caller.heritage().is_empty() { Err("nothing") } else { Ok(()) }
        })
        .await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        caller.kept_to_itself().unwrap();
        victim.kill().unwrap();
        victim.wait().unwrap();
    }

    async fn death_while_a_stream_is_open(&self) {
        let agent = self.agent().await;
        let mut caller = self.call();
        self.entered().await;
        self.gate.add_permits(1);
        eventually("the stream is open", async || {
            let heritage = caller.heritage();
            if heritage.contains("spiffe://example.org/caller") { Ok(()) } else { Err(heritage) }
        })
        .await;
        caller.die();
        let mut victim = tokio::task::block_in_place(|| self.reuse(caller.pid()));
        // Something new for the caller's selectors.
        let me = format!("unix:path:{}", std::env::current_exe().unwrap().display());
        let late = EntryBuilder::new("e3").spiffe_id("/late").selectors([me.as_str()]).build();
        self.server.lock().add(late);
        eventually("the late entry is signed", async || {
            let counts = agent.cache().counts();
            if counts.x509 == 3 { Ok(()) } else { Err(counts) }
        })
        .await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        let heritage = caller.heritage();
        assert!(!heritage.contains("/late") && !heritage.contains("/victim"), "{heritage}");
        victim.kill().unwrap();
        victim.wait().unwrap();
    }
}
