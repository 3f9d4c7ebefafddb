//! At the limit on descriptors the server must wait, not spin, and go on when there are some again.

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bonafide_runtime::listener::{UnixOptions, bind_unix, raise_descriptor_limit, serve_unix};
use bonafide_runtime::shutdown::Shutdown;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::echo::{Echo, connect_unix, unary};

const SOCKET: &str = "BONAFIDE_TEST_SOCKET";
const LIMIT: u64 = 40;

/// Not a test: the server that the test below runs as a process of its own.
#[tokio::test]
async fn child_with_few_descriptors() {
    let Some(path) = std::env::var_os(SOCKET).map(PathBuf::from) else { return };
    setrlimit(Resource::RLIMIT_NOFILE, LIMIT, LIMIT).unwrap();
    bonafide_runtime::telemetry::init_logging(Default::default()).unwrap();
    let bound = bind_unix(path, 0o777, 0o755).unwrap();
    let _ = serve_unix(bound, Echo::new().routes(), UnixOptions::default(), Shutdown::new()).await;
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The processor time that a process has used, in clock ticks of 10 ms.
fn ticks(process: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[tokio::test]
async fn the_limit_is_waited_out_with_a_warning_and_no_spinning() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api.sock");
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "descriptors::child_with_few_descriptors", "--nocapture"])
        .env(SOCKET, &path)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut child = Killed(child);
    crate::echo::level(|| path.exists(), |exists| *exists).await;

    // Each connection costs the server two descriptors, so these are more than it can take.
    let held: Vec<_> = (0..LIMIT).map(|_| UnixStream::connect(&path).unwrap()).collect();
    let stderr = child.0.stderr.take().unwrap();
    let (tell, told) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            let _ = tell.send(line);
        }
    });
    let mut told = told;
    let warned = async {
        loop {
            let line = told.recv().await.expect("the child has ended");
            if line.contains("Too many open files") {
                return line;
            }
        }
    };
    let line = tokio::time::timeout(Duration::from_secs(20), warned).await.expect("no warning came");
    eprintln!("{line}");
    let before = ticks(child.0.id());
    tokio::time::sleep(Duration::from_secs(2)).await;
    let used = ticks(child.0.id()) - before;
    assert!(used <= 40, "{used}0 ms of processor time in 2 s at the limit");
    let mut more = 0;
    while told.try_recv().is_ok() {
        more += 1;
    }
    assert!(more <= 8, "{more} lines of log in 2 s");

    drop(held);
    let answer = tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            if let Ok(channel) = connect_unix(&path).await
                && let Ok(answer) = unary(&channel, "again").await
            {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(answer.await.expect("no service after the want was over").starts_with("again"));
}

#[test]
fn the_limit_is_raised_to_what_is_allowed() {
    let limit = raise_descriptor_limit().unwrap();
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    assert_eq!((limit.now, soft), (hard, hard));
    assert!(limit.before <= limit.now);
}
