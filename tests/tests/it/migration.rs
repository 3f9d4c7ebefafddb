//! Moving a trust domain from one server to another without a failed handshake, as `docs/operations/migrate-from-spire.md`
//! describes it, step by step, with the commands that stand there.
//!
//! Both roles are played by our own programs; their configuration comes from SPIRE's files by the importers. The
//! handshakes are made every 50 ms the whole time, by a client on one node with a server on the other, in mutual TLS.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bonafide_tests::eventually;
use bonafide_tests::programs::{Programs, programs};
use serde_json::Value;
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(60);
const OLD: &str = "old";
const NEW: &str = "new";

#[test]
fn a_trust_domain_moves_to_another_server_without_a_failed_handshake() {
    let mut site = Site::new();
    // What is there before: a server, two nodes, a workload on each.
    site.start_server(OLD);
    for node in [1, 2] {
        let token = site.token(OLD, node);
        site.start_agent(OLD, node, Some(&token));
    }
    let server = site.workload("server");
    let client = site.workload("client");
    let parents: Vec<String> = [1, 2].map(|node| format!("spiffe://example.org/old/{node}")).into();
    site.register(OLD, "/server", &parents[0], &server);
    site.register(OLD, "/client", &parents[1], &client);
    let serving = site.run(&server, 1, &["serve", "--peer", "spiffe://example.org/client"]);
    let address = serving.wait("an address", |event| {
        (event["event"] == "listening").then(|| event["address"].as_str().unwrap().to_owned())
    });
    let dialing = site.run(
        &client,
        2,
        &["dial", "--address", &address, "--peer", "spiffe://example.org/server", "--period-ms", "50"],
    );
    dialing.handshakes();

    // 1. The new server, with authorities of its own; each learns those of the other.
    site.start_server(NEW);
    for (learns, from) in [(OLD, NEW), (NEW, OLD)] {
        let from = site.socket(from);
        let added = site.cli(learns, &["bundle", "append", "--from", from.to_str().unwrap()]);
        assert_eq!((&added["x509_added"], &added["jwt_added"]), (&1.into(), &1.into()), "{added}");
        let again = site.cli(learns, &["bundle", "append", "--from", from.to_str().unwrap()]);
        assert_eq!(again["x509_added"], 0, "what is there is left alone: {again}");
    }
    for workload in [&serving, &dialing] {
        workload.wait("both authorities", |event| (event["authorities"] == 2).then_some(()));
    }

    // 2. The entries.
    let file = site.path("entries.json");
    fs::write(&file, site.text(OLD, &["entry", "export"])).unwrap();
    let moved: Vec<String> = [1, 2]
        .map(|node| format!("--reparent={}=spiffe://example.org/node/{node}", parents[node - 1]))
        .into();
    let import = ["entry", "import", file.to_str().unwrap(), &moved[0], &moved[1]];
    let dry: Vec<&str> = import.into_iter().chain(["--dry-run"]).collect();
    // Besides the two, the names of the nodes are entries of the old server; there they fit no agent.
    let tried = site.cli(NEW, &dry);
    assert_eq!(tried["created"].as_array().unwrap().len(), 4, "{tried}");
    assert_eq!(site.cli(NEW, &["entry", "count"])["count"], 0, "a dry run does nothing");
    assert_eq!(site.cli(NEW, &import)["created"].as_array().unwrap().len(), 4);
    assert_eq!(site.cli(NEW, &import)["unchanged"], 4, "importing again changes nothing");

    // 3. One node after the other; the first one goes back and forth.
    let (old, new) = (site.authority(OLD), site.authority(NEW));
    let token = site.token(NEW, 2);
    site.switch(2, NEW, Some(&token), &dialing, &new);
    dialing.handshakes();
    site.switch(2, OLD, None, &dialing, &old);
    dialing.handshakes();
    site.switch(2, NEW, None, &dialing, &new);
    dialing.handshakes();
    let token = site.token(NEW, 1);
    site.switch(1, NEW, Some(&token), &serving, &new);
    dialing.handshakes();

    // 4. The old server.
    assert_eq!(site.cli(NEW, &["agent", "count"])["count"], 2);
    stop(site.servers.retain_other(OLD));
    dialing.handshakes();

    // 5. Its authorities: nothing that is in use was signed by them.
    for workload in [&serving, &dialing] {
        let last = workload.events().into_iter().rfind(|event| event["event"] == "svid").unwrap();
        assert_eq!((&last["authority"], &last["authorities"]), (&Value::from(new.as_str()), &2.into()));
    }
    site.cli(NEW, &["authority", "taint", "x509", &old]);
    dialing.handshakes();
    let before = [serving.events().len(), dialing.events().len()];
    site.cli(NEW, &["authority", "revoke", "x509", &old]);
    for (workload, before) in [&serving, &dialing].into_iter().zip(before) {
        workload.wait_after(before, "one authority", |event| (event["authorities"] == 1).then_some(()));
    }
    dialing.handshakes();

    let events = dialing.events();
    let failed: Vec<&Value> = events.iter().filter(|event| event["event"] == "failed").collect();
    assert!(failed.is_empty(), "{failed:?}");
    let refused = serving.events().iter().filter(|event| event["event"] == "refused").count();
    assert_eq!(refused, 0);
    let last = events.iter().rfind(|event| event["event"] == "progress").unwrap();
    println!("{last}");
    assert_eq!(last["failed"], 0, "{last}");
}

/// Two servers and two nodes in one folder.
struct Site {
    programs: &'static Programs,
    servers: Running,
    agents: Running,
    ports: [u16; 2],
    // The folder goes last: the processes have it open.
    folder: TempDir,
}

/// Processes by name; dropping kills them.
#[derive(Default)]
struct Running(Vec<(String, Child)>);

impl Running {
    fn retain_other(&mut self, name: &str) -> Child {
        let at = self.0.iter().position(|(known, _)| known == name).unwrap();
        self.0.remove(at).1
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for (_, child) in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Site {
    fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("bonafide-").tempdir().unwrap();
        let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let ports = [free(), free()];
        Self {
            programs: programs().unwrap(),
            servers: Running::default(),
            agents: Running::default(),
            ports,
            folder,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn port(&self, server: &str) -> u16 {
        self.ports[usize::from(server == NEW)]
    }

    fn socket(&self, server: &str) -> PathBuf {
        self.path(&format!("{server}/private/api.sock"))
    }

    fn agent_socket(&self, node: usize) -> PathBuf {
        self.path(&format!("node{node}/public/api.sock"))
    }

    /// Translates a configuration of SPIRE and expects the exit code.
    fn import(&self, program: &Path, name: &str, text: &str, code: i32) -> PathBuf {
        let (from, to) = (self.path(&format!("{name}.conf")), self.path(&format!("{name}.toml")));
        fs::write(&from, text).unwrap();
        let _ = fs::remove_file(&to);
        let mut command = Command::new(program);
        command.arg("import").arg(&from).arg("--output").arg(&to).stdin(Stdio::null());
        let output = command.output().unwrap();
        let report = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{report}");
        assert!(command.output().unwrap().status.code() == Some(1), "an existing file was replaced");
        to
    }

    fn start(&self, program: &Path, log: &str, config: &Path) -> Child {
        let log = File::options().create(true).append(true).open(self.path(log)).unwrap();
        Command::new(program)
            .args(["run", "-c"])
            .arg(config)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap()
    }

    fn start_server(&mut self, name: &str) {
        let folder = self.path(name);
        let text = format!(
            r#"server {{
              bind_address = "127.0.0.1" bind_port = "{port}" trust_domain = "example.org"
              data_dir = "{folder}/data" socket_path = "{folder}/private/api.sock"
              ca_ttl = "1h" default_x509_svid_ttl = "10m" ratelimit {{ attestation = false }}
            }}
            plugins {{
              DataStore "sql" {{ plugin_data {{ database_type = "sqlite3" connection_string = "x" }} }}
              NodeAttestor "join_token" {{ plugin_data {{ }} }}
              KeyManager "disk" {{ plugin_data {{ keys_path = "{folder}/data/keys.json" }} }}
            }}"#,
            port = self.port(name),
            folder = folder.display(),
        );
        // The database is what is not carried over.
        let config = self.import(&self.programs.server, name, &text, 3);
        let child = self.start(&self.programs.server, &format!("{name}.log"), &config);
        self.servers.0.push((name.to_owned(), child));
        eventually("a healthy server", SOON, || self.try_text(name, &["health", "server"])).unwrap();
    }

    /// Starts the agent that speaks with `server`; it keeps what it holds in a folder for that server.
    fn start_agent(&mut self, server: &str, node: usize, token: Option<&str>) {
        let name = format!("node{node}-{server}");
        let bundle = self.path(&format!("{name}.pem"));
        if token.is_some() {
            fs::write(&bundle, self.text(server, &["bundle", "show", "--format", "pem"])).unwrap();
        }
        let text = format!(
            r#"{{"agent": {{"trust_domain": "example.org", "server_address": "127.0.0.1", "server_port": {port},
              "data_dir": "{folder}/{name}", "socket_path": "{socket}", "trust_bundle_path": "{bundle}",
              "join_token": "{token}", "experimental": {{"sync_interval": "500ms"}}}},
            "plugins": {{"NodeAttestor": {{"join_token": {{"plugin_data": {{}}}}}},
              "KeyManager": {{"disk": {{"plugin_data": {{"directory": "{folder}/{name}"}}}}}},
              "WorkloadAttestor": {{"unix": {{"plugin_data": {{"discover_workload_path": true}}}}}}}}}}"#,
            port = self.port(server),
            folder = self.folder.path().display(),
            socket = self.agent_socket(node).display(),
            bundle = bundle.display(),
            token = token.unwrap_or_default(),
        );
        let config = self.import(&self.programs.agent, &name, &text, 0);
        let child = self.start(&self.programs.agent, &format!("{name}.log"), &config);
        self.agents.0.push((node.to_string(), child));
    }

    /// A join token whose agent can be named without knowing the token.
    fn token(&self, server: &str, node: usize) -> String {
        let name = if server == NEW { "node" } else { "old" };
        let id = format!("spiffe://example.org/{name}/{node}");
        self.cli(server, &["token", "create", "--agent-id", &id])["value"].as_str().unwrap().to_owned()
    }

    /// Stops the agent of a node, starts the other one on the same socket, and waits until the workload has an SVID of
    /// the authority.
    fn switch(&mut self, node: usize, to: &str, token: Option<&str>, workload: &Workload, authority: &str) {
        let before = workload.events().len();
        stop(self.agents.retain_other(&node.to_string()));
        self.start_agent(to, node, token);
        workload.wait_after(before, "an SVID of the other authority", |event| {
            (event["event"] == "svid" && event["authority"] == authority).then_some(())
        });
    }

    /// A copy of the workload of its own, so that it has a path, and so an identity, of its own.
    fn workload(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::copy(&self.programs.workload, &path).unwrap();
        path.canonicalize().unwrap()
    }

    fn register(&self, server: &str, path: &str, parent: &str, program: &Path) {
        let (id, selector) =
            (format!("spiffe://example.org{path}"), format!("unix:path:{}", program.display()));
        self.cli(
            server,
            &["entry", "create", "--spiffe-id", &id, "--parent-id", parent, "--selector", &selector],
        );
    }

    fn run(&self, program: &Path, node: usize, arguments: &[&str]) -> Workload {
        let mut child = Command::new(program)
            .args(arguments)
            .env("SPIFFE_ENDPOINT_SOCKET", format!("unix://{}", self.agent_socket(node).display()))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let events: Arc<Mutex<Vec<Value>>> = Arc::default();
        let (lines, seen) = (BufReader::new(child.stdout.take().unwrap()).lines(), Arc::clone(&events));
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if let Ok(event) = serde_json::from_str(&line) {
                    seen.lock().unwrap_or_else(PoisonError::into_inner).push(event);
                }
            }
        });
        Workload { _child: Running(vec![(String::new(), child)]), events }
    }

    /// The identifier of the X.509 authority with which a server signs.
    fn authority(&self, server: &str) -> String {
        self.cli(server, &["authority", "show", "x509"])["authorities"][0]["id"].as_str().unwrap().to_owned()
    }

    fn try_text(&self, server: &str, arguments: &[&str]) -> Result<String, String> {
        let output = Command::new(&self.programs.cli)
            .arg("--server-socket")
            .arg(self.socket(server))
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .map_err(|error| error.to_string())?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(format!("{}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr)))
    }

    fn text(&self, server: &str, arguments: &[&str]) -> String {
        self.try_text(server, arguments).unwrap()
    }

    fn cli(&self, server: &str, arguments: &[&str]) -> Value {
        let all: Vec<&str> = ["-o", "json"].into_iter().chain(arguments.iter().copied()).collect();
        serde_json::from_str(&self.text(server, &all)).unwrap()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for log in
                ["old.log", "new.log", "node1-old.log", "node2-old.log", "node1-new.log", "node2-new.log"]
            {
                let text = fs::read_to_string(self.path(log)).unwrap_or_default();
                let lines: Vec<&str> = text.lines().collect();
                eprintln!("--- {log}\n{}", lines[lines.len().saturating_sub(15)..].join("\n"));
            }
        }
    }
}

/// A running workload and what it said.
struct Workload {
    _child: Running,
    events: Arc<Mutex<Vec<Value>>>,
}

impl Workload {
    fn seen(&self) -> MutexGuard<'_, Vec<Value>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn events(&self) -> Vec<Value> {
        self.seen().clone()
    }

    fn wait<T>(&self, what: &str, wanted: impl Fn(&Value) -> Option<T>) -> T {
        self.wait_after(0, what, wanted)
    }

    fn wait_after<T>(&self, before: usize, what: &str, wanted: impl Fn(&Value) -> Option<T>) -> T {
        eventually(what, SOON, || {
            let seen = self.seen();
            let found = seen.iter().skip(before).find_map(&wanted);
            found.ok_or_else(|| format!("{:?}", &seen[seen.len().saturating_sub(3)..]))
        })
        .unwrap()
    }

    /// Waits for twenty handshakes and more.
    fn handshakes(&self) {
        let count =
            |event: &Value| (event["event"] == "progress").then(|| event["handshakes"].as_u64()).flatten();
        let before = self.events().iter().rev().find_map(count).unwrap_or(0);
        self.wait("handshakes", |event| count(event).filter(|now| *now >= before + 20));
    }
}

/// Ends a daemon by SIGTERM.
fn stop(child: Child) {
    let mut child = Running(vec![(String::new(), child)]);
    let process = &mut child.0[0].1;
    let pid = rustix::process::Pid::from_raw(i32::try_from(process.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let ended =
        eventually("the end of a daemon", SOON, || process.try_wait().ok().flatten().ok_or("it still runs"));
    assert!(ended.unwrap().success());
}
