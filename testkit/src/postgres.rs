//! A PostgreSQL server of one's own, and a TCP forwarder to stand between.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;

/// A cluster in a folder of its own. It ends, and its folder goes, with this value or with the process, however that
/// dies.
#[derive(Debug)]
pub struct Postgres {
    bin: PathBuf,
    folder: PathBuf,
    port: u16,
    /// Stops the cluster when its standard input ends.
    guard: Option<Child>,
}

/// Names the folder of a cluster that a parent process has started.
pub const INHERITED: &str = "BONAFIDE_TEST_POSTGRES";

static COUNT: AtomicUsize = AtomicUsize::new(0);

impl Postgres {
    /// One cluster for the whole test process (and its children, which find it in [`INHERITED`]); not durable.
    ///
    /// # Errors
    /// Why there is none, for the line that says what was skipped.
    pub fn shared() -> Result<&'static Self, String> {
        static SHARED: OnceLock<Result<Postgres, String>> = OnceLock::new();
        let made = SHARED.get_or_init(|| match std::env::var_os(INHERITED) {
            Some(place) => {
                let place = place.to_string_lossy().into_owned();
                let (port, folder) = place.split_once(' ').ok_or("no port in the environment")?;
                let port = port.parse().map_err(|_| "no port in the environment")?;
                Ok(Self { bin: programs()?, folder: folder.into(), port, guard: None })
            }
            None => Self::start(false),
        });
        made.as_ref().map_err(Clone::clone)
    }

    /// Starts a cluster. One that is not `durable` does not wait for the disk.
    ///
    /// # Errors
    /// Why there is none.
    pub fn start(durable: bool) -> Result<Self, String> {
        let bin = programs()?;
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        // Short: the path of a socket has room for a hundred bytes.
        let folder = std::env::temp_dir().join(format!("bf-pg-{}-{number}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        if is_root() {
            run(Command::new("chown").arg("postgres").arg(&folder))?;
        }
        let port =
            TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).map_err(|e| e.to_string())?;
        let mut cluster = Self { bin, folder, port: port.port(), guard: None };
        let data = cluster.data();
        run(cluster
            .program("initdb")
            .args(["-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C", "-N", "-D"])
            .arg(&data))?;
        let guard = "cat >/dev/null; \"$@\" >/dev/null 2>&1; rm -rf \"$FOLDER\"";
        let stop = cluster.program("pg_ctl");
        let mut command = Command::new("sh");
        command.args(["-c", guard, "guard"]).arg(stop.get_program()).args(stop.get_args());
        command.args(["stop", "-m", "immediate", "-D"]).arg(&data).env("FOLDER", &cluster.folder);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        cluster.guard = Some(command.spawn().map_err(|error| error.to_string())?);
        let durability = if durable { "on" } else { "off" };
        let settings = format!(
            "listen_addresses = '127.0.0.1'\nport = {}\nunix_socket_directories = '{}'\nfsync = {durability}\n\
             max_connections = 60\nshared_buffers = 32MB\nlog_min_messages = fatal\n",
            cluster.port,
            cluster.folder.display()
        );
        cluster.append("postgresql.conf", &settings);
        cluster.control(&["start", "-w"])?;
        Ok(cluster)
    }

    /// Makes a database and gives a connection string for it, over the Unix socket. One that is there stays.
    pub fn database(&self, name: &str) -> String {
        let made = self.sql("postgres", &format!("CREATE DATABASE {name}"));
        assert!(
            made.as_ref().is_ok() || made.as_ref().is_err_and(|error| error.contains("already exists")),
            "{made:?}"
        );
        format!("host={} port={} user=postgres dbname={name}", self.folder.display(), self.port)
    }

    /// Where it listens for TCP.
    pub fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }

    /// What [`INHERITED`] is to be for a child.
    pub fn inheritance(&self) -> String {
        format!("{} {}", self.port, self.folder.display())
    }

    /// Runs `sql` and gives what it answers, without decoration.
    ///
    /// # Errors
    /// What PostgreSQL says.
    pub fn sql(&self, database: &str, sql: &str) -> Result<String, String> {
        let port = self.port.to_string();
        let mut psql = Command::new(self.bin.join("psql"));
        psql.args([
            "-XAtq",
            "-v",
            "ON_ERROR_STOP=1",
            "-U",
            "postgres",
            "-p",
            &port,
            "-d",
            database,
            "-c",
            sql,
        ]);
        psql.arg("-h").arg(&self.folder);
        run(&mut psql)
    }

    /// Ends all sessions as a crash would, and starts again.
    pub fn crash_and_restart(&self) {
        self.control(&["restart", "-w", "-m", "immediate"]).expect("PostgreSQL must restart");
    }

    /// From now on TCP wants TLS, and a certificate whose common name is that of the user, below `ca`. All PEM.
    pub fn demand_certificates(&self, ca: &str, certificate: &str, key: &str) {
        for (name, content) in [("ca.pem", ca), ("server.pem", certificate), ("server.key", key)] {
            self.append(name, content);
        }
        self.append(
            "postgresql.conf",
            "ssl = on\nssl_ca_file = 'ca.pem'\nssl_cert_file = 'server.pem'\nssl_key_file = 'server.key'\n",
        );
        let data = self.data();
        let mut rewrite = self.as_owner("sh");
        rewrite.args(["-c", "sed -i 's/^host .*//' \"$1\" && chmod 600 \"$2\"", "rewrite"]);
        run(rewrite.arg(data.join("pg_hba.conf")).arg(data.join("server.key"))).expect("the owner's files");
        self.append("pg_hba.conf", "hostssl all all 127.0.0.1/32 cert\n");
        self.crash_and_restart();
    }

    /// The files are the cluster's user's; what is appended through it needs no rights of ours.
    fn append(&self, name: &str, content: &str) {
        let mut append = self.as_owner("sh");
        append.args(["-c", "umask 077; cat >>\"$1\"", "append"]).arg(self.data().join(name));
        let mut append = append.stdin(Stdio::piped()).spawn().expect("a shell");
        append.stdin.take().expect("a pipe").write_all(content.as_bytes()).expect("a pipe");
        assert!(append.wait().expect("a shell").success(), "{name} must be written");
    }

    fn control(&self, arguments: &[&str]) -> Result<String, String> {
        let mut control = self.program("pg_ctl");
        control.args(arguments).arg("-D").arg(self.data()).arg("-l").arg(self.data().join("log"));
        // The daemon keeps what it inherits: nobody must wait for its end of a pipe.
        let status = control.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
        match status {
            Ok(status) if status.success() => Ok(String::new()),
            Ok(status) => Err(format!("pg_ctl {arguments:?}: {status}")),
            Err(error) => Err(error.to_string()),
        }
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    fn program(&self, name: &str) -> Command {
        self.as_owner(&self.bin.join(name).display().to_string())
    }

    /// PostgreSQL refuses to run as root.
    fn as_owner(&self, program: &str) -> Command {
        let mut command = if is_root() {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--", program]);
            command
        } else {
            Command::new(program)
        };
        command.env("LC_ALL", "C").current_dir("/");
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Some(mut guard) = self.guard.take() {
            drop(guard.stdin.take());
            let _ = guard.wait();
        }
    }
}

fn run(command: &mut Command) -> Result<String, String> {
    let Output { status, stdout, stderr } =
        command.stdin(Stdio::null()).output().map_err(|error| format!("{command:?}: {error}"))?;
    if status.success() {
        Ok(String::from_utf8_lossy(&stdout).trim().to_owned())
    } else {
        Err(format!("{command:?}: {}", String::from_utf8_lossy(&stderr).trim()))
    }
}

fn is_root() -> bool {
    // The owner of what this process sees as itself; no system call of our own is needed for it.
    use std::os::unix::fs::MetadataExt as _;
    fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

/// The folder with PostgreSQL's programs: that of `initdb` on the path, or the newest that Debian has installed.
fn programs() -> Result<PathBuf, String> {
    let complete =
        |folder: &Path| ["initdb", "pg_ctl", "psql"].iter().all(|name| folder.join(name).is_file());
    let path = std::env::var_os("PATH").unwrap_or_default();
    let installed = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut debian: Vec<_> = installed.map(|version| version.path().join("bin")).collect();
    debian.sort();
    debian
        .into_iter()
        .rev()
        .chain(std::env::split_paths(&path))
        .find(|folder| complete(folder))
        .ok_or_else(|| "PostgreSQL is not installed (Debian: postgresql)".to_owned())
}

/// Forwards TCP connections to one address; can be cut and mended, and pointed elsewhere.
#[derive(Debug)]
pub struct Forwarder {
    address: SocketAddr,
    shared: Arc<Forwarding>,
}

#[derive(Debug)]
struct Forwarding {
    target: Mutex<SocketAddr>,
    cut: AtomicBool,
    open: Mutex<Vec<TcpStream>>,
}

impl Forwarder {
    /// Listens on a free port of this machine.
    pub fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Forwarding {
            target: Mutex::new(target),
            cut: AtomicBool::new(false),
            open: Mutex::default(),
        });
        let accepting = shared.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if accepting.cut.load(Ordering::SeqCst) {
                    continue;
                }
                let target = *accepting.target.lock().unwrap_or_else(PoisonError::into_inner);
                let Ok(server) = TcpStream::connect(target) else { continue };
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) else { continue };
                    thread::spawn(move || forward(from, to));
                }
                accepting.open.lock().unwrap_or_else(PoisonError::into_inner).extend([client, server]);
            }
        });
        Self { address, shared }
    }

    /// Where to connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends all connections and lets no new one through.
    pub fn cut(&self) {
        self.shared.cut.store(true, Ordering::SeqCst);
        self.close();
    }

    /// Lets connections through again.
    pub fn mend(&self) {
        self.shared.cut.store(false, Ordering::SeqCst);
    }

    /// Sends new connections to `target`, and ends those that are open.
    pub fn point_at(&self, target: SocketAddr) {
        *self.shared.target.lock().unwrap_or_else(PoisonError::into_inner) = target;
        self.close();
    }

    fn close(&self) {
        for stream in self.shared.open.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // It may be closed already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = [0; 16 * 1024];
    loop {
        match from.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => break,
            Ok(length) => {
                if to.write_all(&buffer[..length]).is_err() {
                    break;
                }
            }
        }
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}
