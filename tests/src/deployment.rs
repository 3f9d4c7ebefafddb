//! A server and an agent in a folder of their own.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::eventually;
use crate::programs::{Programs, programs};

/// How long a daemon may take to start on a busy machine.
const START: Duration = Duration::from_secs(60);

/// What a deployment is like; the defaults are those of a short test.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The trust domain.
    pub trust_domain: String,
    /// Lifetime of authorities.
    pub ca_ttl: String,
    /// Lifetime of X.509-SVIDs.
    pub x509_svid_ttl: String,
    /// Lifetime of JWT-SVIDs.
    pub jwt_svid_ttl: String,
    /// Lifetime of the agent's SVID.
    pub agent_ttl: String,
    /// Key type of all authorities.
    pub key_type: String,
    /// Time between two looks of the agent at the server.
    pub sync_interval: String,
    /// The driver of the store.
    pub store: String,
    /// Further lines for the `authority` table of the server's configuration.
    pub authority_extra: String,
    /// Further lines for the `listen` table of the server's configuration.
    pub listen_extra: String,
    /// Further lines for the server's configuration: of the `ratelimit` table, then tables of their own.
    pub server_extra: String,
    /// Further lines for the `admin` table of the agent's configuration, then tables of their own. `{folder}` stands for
    /// the deployment's folder.
    pub agent_extra: String,
    /// Where the files go; a new temporary folder when absent.
    pub folder: Option<PathBuf>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            trust_domain: "example.org".to_owned(),
            ca_ttl: "1h".to_owned(),
            x509_svid_ttl: "10m".to_owned(),
            jwt_svid_ttl: "5m".to_owned(),
            agent_ttl: "10m".to_owned(),
            key_type: "ec-p256".to_owned(),
            sync_interval: "500ms".to_owned(),
            store: "sled".to_owned(),
            authority_extra: String::new(),
            listen_extra: String::new(),
            server_extra: String::new(),
            agent_extra: String::new(),
            folder: None,
        }
    }
}

/// Running daemons. Dropping it kills them and removes the folder.
#[derive(Debug)]
pub struct Deployment {
    settings: Settings,
    programs: &'static Programs,
    port: u16,
    /// Where the agent connects to, when that is not the server of this deployment.
    agent_port: Option<u16>,
    /// The socket of the server that is administered, when that is not the one of this deployment.
    administered: Option<PathBuf>,
    server: Option<Child>,
    agent: Option<Child>,
    // The folder goes last: the processes have it open.
    folder: TempDir,
}

impl Deployment {
    /// Starts a server, lets an agent attest with a join token, and waits until both are ready.
    ///
    /// # Errors
    /// What did not start, with the end of its log.
    pub fn start(settings: Settings) -> Result<Self, String> {
        let mut deployment = Self::prepare(settings)?;
        deployment.start_server()?;
        let token = deployment.cli(&["token", "create"])?;
        let token = token["value"].as_str().ok_or("no token in the answer")?.to_owned();
        deployment.start_agent(Some(&token))?;
        Ok(deployment)
    }

    /// Lays out the folder and the configuration files; nothing runs yet.
    ///
    /// # Errors
    /// When the programs cannot be built or files cannot be written.
    pub fn prepare(settings: Settings) -> Result<Self, String> {
        let programs = programs()?;
        let mut builder = tempfile::Builder::new();
        builder.prefix("bonafide-");
        let folder = match &settings.folder {
            Some(parent) => builder.tempdir_in(parent),
            None => builder.tempdir(),
        }
        .map_err(|error| format!("cannot make a folder: {error}"))?;
        // Between closing this listener and the server's opening the port somebody else could take it; the range of
        // ephemeral ports makes that rare, and the server then says so.
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .map_err(|error| format!("no port is free: {error}"))?
            .port();
        let deployment = Self {
            settings,
            programs,
            port,
            agent_port: None,
            administered: None,
            server: None,
            agent: None,
            folder,
        };
        deployment.write("server.toml", &deployment.server_config())?;
        Ok(deployment)
    }

    /// The folder with all files.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The Workload API socket.
    pub fn workload_socket(&self) -> PathBuf {
        self.folder().join("agent/public/api.sock")
    }

    /// The server's local socket.
    pub fn server_socket(&self) -> PathBuf {
        self.folder().join("server/private/api.sock")
    }

    /// The agent's administration socket.
    pub fn admin_socket(&self) -> PathBuf {
        self.folder().join("agent/private/admin.sock")
    }

    /// The port of the server.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Lets the agent, when it is started, connect to this port of this machine.
    pub fn connect_to(&mut self, port: u16) {
        self.agent_port = Some(port);
    }

    /// Uses the server of another deployment wherever this one's own would be administered.
    pub fn administer(&mut self, other: &Self) {
        self.administered = Some(other.server_socket());
    }

    /// The programs in use.
    pub fn programs(&self) -> &'static Programs {
        self.programs
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf, String> {
        let path = self.folder().join(name);
        fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(path)
    }

    fn server_config(&self) -> String {
        let settings = &self.settings;
        let folder = self.folder().display();
        format!(
            r#"trust_domain = "{td}"
data_dir = "{folder}/server/data"
[listen]
address = "127.0.0.1:{port}"
admin_socket = "{folder}/server/private/api.sock"
{listen_extra}[log]
level = "info"
[authority]
ca_ttl = "{ca}"
default_x509_svid_ttl = "{x509}"
default_jwt_svid_ttl = "{jwt}"
agent_ttl = "{agent}"
ca_key_type = "{key}"
{authority_extra}[store]
driver = "{store}"
[ratelimit]
attestation = 0
{extra}"#,
            td = settings.trust_domain,
            port = self.port,
            ca = settings.ca_ttl,
            x509 = settings.x509_svid_ttl,
            jwt = settings.jwt_svid_ttl,
            agent = settings.agent_ttl,
            key = settings.key_type,
            store = settings.store,
            listen_extra = settings.listen_extra,
            authority_extra = settings.authority_extra,
            extra = settings.server_extra,
        )
    }

    fn agent_config(&self, token: Option<&str>) -> String {
        let folder = self.folder().display();
        let mut text = format!(
            r#"trust_domain = "{td}"
data_dir = "{folder}/agent/data"
sync_interval = "{sync}"
[server]
address = "127.0.0.1:{port}"
[bootstrap]
bundle_file = "{folder}/bundle.pem"
[workload_api]
socket = "{folder}/agent/public/api.sock"
[admin]
socket = "{folder}/agent/private/admin.sock"
{extra}[workload_attestor.unix]
discover_workload_path = true
[node_attestor.join_token]
"#,
            td = self.settings.trust_domain,
            sync = self.settings.sync_interval,
            port = self.agent_port.unwrap_or(self.port),
            extra = self.settings.agent_extra.replace("{folder}", &folder.to_string()),
        );
        if let Some(token) = token {
            let _ = writeln!(text, "token = \"{token}\"");
        }
        text
    }

    fn spawn(&self, program: &Path, log: &str, arguments: &[&str]) -> Result<Child, String> {
        let path = self.folder().join(log);
        let file = File::options().create(true).append(true).open(&path);
        let file = file.map_err(|error| format!("{}: {error}", path.display()))?;
        let again = file.try_clone().map_err(|error| error.to_string())?;
        Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(again)
            .spawn()
            .map_err(|error| format!("cannot start {}: {error}", program.display()))
    }

    /// Starts the server and waits until it answers as healthy.
    ///
    /// # Errors
    /// Why it did not, with the end of its log.
    pub fn start_server(&mut self) -> Result<(), String> {
        let config = self.folder().join("server.toml").display().to_string();
        self.server = Some(self.spawn(&self.programs.server, "server.log", &["run", "-c", &config])?);
        eventually("a healthy server", START, || {
            if let Some(status) = self.server.as_mut().and_then(exited) {
                return Err(format!("the server ended: {status}"));
            }
            self.cli(&["health", "server"]).map(drop)
        })
        .map_err(|error| format!("{error}\n{}", self.log("server.log")))
    }

    /// Starts the agent, which attests with `token` when it holds no SVID yet, and waits until it is healthy.
    ///
    /// # Errors
    /// Why it is not, with the end of its log.
    pub fn start_agent(&mut self, token: Option<&str>) -> Result<(), String> {
        self.launch_agent(token)?;
        eventually("a healthy agent", START, || {
            if let Some(status) = self.agent.as_mut().and_then(exited) {
                return Err(format!("the agent ended: {status}"));
            }
            self.cli(&["health", "agent"]).map(drop)
        })
        .map_err(|error| format!("{error}\n{}", self.log("agent.log")))
    }

    /// Starts the agent and waits for nothing.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn launch_agent(&mut self, token: Option<&str>) -> Result<(), String> {
        let bundle = self.cli_text(&["bundle", "show", "--format", "pem"])?;
        self.write("bundle.pem", &bundle)?;
        let config = self.write("agent.toml", &self.agent_config(token))?.display().to_string();
        self.agent = Some(self.spawn(&self.programs.agent, "agent.log", &["run", "-c", &config])?);
        Ok(())
    }

    /// The SPIFFE ID of the one attested agent.
    ///
    /// # Errors
    /// When there is not exactly one.
    pub fn agent_id(&self) -> Result<String, String> {
        let agents = self.cli(&["agent", "list"])?;
        match agents["agents"].as_array().map(Vec::as_slice) {
            Some([agent]) => Ok(agent["id"].as_str().unwrap_or_default().to_owned()),
            _ => Err(format!("expected one agent: {agents}")),
        }
    }

    /// Registers `path` (below the trust domain) for processes with `selector`, below the agent.
    ///
    /// # Errors
    /// What the command line said.
    pub fn register(&self, path: &str, selector: &str) -> Result<String, String> {
        let id = format!("spiffe://{}{path}", self.settings.trust_domain);
        let parent = self.agent_id()?;
        let made = self.cli(&[
            "entry",
            "create",
            "--spiffe-id",
            &id,
            "--parent-id",
            &parent,
            "--selector",
            selector,
        ])?;
        Ok(made["entries"][0]["id"].as_str().unwrap_or_default().to_owned())
    }

    /// Runs the `bonafide` command against this deployment and reads its JSON.
    ///
    /// # Errors
    /// What it wrote to standard error, or output that is not JSON.
    pub fn cli(&self, arguments: &[&str]) -> Result<Value, String> {
        let mut all = vec!["-o", "json"];
        all.extend(arguments);
        let text = self.cli_text(&all)?;
        serde_json::from_str(&text).map_err(|error| format!("not JSON ({error}): {text}"))
    }

    /// Runs the `bonafide` command against this deployment and returns what it printed.
    ///
    /// # Errors
    /// What it wrote to standard error.
    pub fn cli_text(&self, arguments: &[&str]) -> Result<String, String> {
        let Output { status, stdout, stderr } = self
            .command(arguments)
            .output()
            .map_err(|error| format!("cannot run the command line: {error}"))?;
        if status.success() {
            Ok(String::from_utf8_lossy(&stdout).into_owned())
        } else {
            Err(format!("bonafide {}: {}", arguments.join(" "), String::from_utf8_lossy(&stderr).trim()))
        }
    }

    /// The `bonafide` command, pointed at this deployment.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.programs.cli);
        command
            .args(arguments)
            .env("BONAFIDE_SERVER_SOCKET", self.administered.clone().unwrap_or_else(|| self.server_socket()))
            .env("SPIFFE_ENDPOINT_SOCKET", self.endpoint())
            .stdin(Stdio::null());
        command
    }

    /// The value of SPIFFE_ENDPOINT_SOCKET.
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.workload_socket().display())
    }

    /// Kills the server as a power failure of its process would (SIGKILL).
    pub fn kill_server(&mut self) {
        kill(self.server.take());
    }

    /// Kills the agent (SIGKILL).
    pub fn kill_agent(&mut self) {
        kill(self.agent.take());
    }

    /// Asks the server to stop (SIGTERM) and waits.
    ///
    /// # Errors
    /// When it does not stop in time, or not with success.
    pub fn stop_server(&mut self) -> Result<(), String> {
        stop("server", self.server.take())
    }

    /// Asks the agent to stop (SIGTERM) and waits.
    ///
    /// # Errors
    /// When it does not stop in time, or not with success.
    pub fn stop_agent(&mut self) -> Result<(), String> {
        stop("agent", self.agent.take())
    }

    /// The process ids of server and agent, while they run.
    pub fn pids(&self) -> (Option<u32>, Option<u32>) {
        (self.server.as_ref().map(Child::id), self.agent.as_ref().map(Child::id))
    }

    /// The end of a log.
    pub fn log(&self, name: &str) -> String {
        let text = fs::read_to_string(self.folder().join(name)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        format!("--- {name}\n{}", lines[lines.len().saturating_sub(30)..].join("\n"))
    }
}

impl Drop for Deployment {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}\n{}", self.log("server.log"), self.log("agent.log"));
        }
        kill(self.agent.take());
        kill(self.server.take());
    }
}

fn exited(child: &mut Child) -> Option<ExitStatus> {
    child.try_wait().ok().flatten()
}

fn kill(child: Option<Child>) {
    if let Some(mut child) = child {
        let _ = child.kill();
        let _ = child.wait();
    }
}

fn stop(who: &str, child: Option<Child>) -> Result<(), String> {
    let mut child = child.ok_or_else(|| format!("the {who} is not running"))?;
    let pid =
        i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw).ok_or("no process id")?;
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).map_err(|error| error.to_string())?;
    let ended = eventually(&format!("the {who}'s end"), Duration::from_secs(20), || {
        exited(&mut child).ok_or("it still runs")
    });
    match ended {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("the {who} ended with {status}")),
        Err(error) => {
            kill(Some(child));
            Err(error)
        }
    }
}
