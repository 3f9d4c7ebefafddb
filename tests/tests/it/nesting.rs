//! Three layers of real daemons: a root server with its agent, a middle server below it with its own, and a leaf server
//! below that.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bonafide_tests::{Deployment, Settings, eventually};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);

/// A server below `above`, with an agent of its own.
fn below(above: &Deployment, name: &str) -> Deployment {
    let settings = Settings { server_extra: upstream(above), ..Settings::default() };
    let mut deployment = Deployment::prepare(settings).unwrap();
    // The same program runs in every layer; what tells them apart is whose agent they ask.
    register_downstream(above, name);
    deployment.start_server().unwrap();
    let token = deployment.cli(&["token", "create"]).unwrap();
    deployment.start_agent(token["value"].as_str()).unwrap();
    deployment
}

fn upstream(above: &Deployment) -> String {
    format!(
        "[upstream_authority.spire]\nserver_address = \"127.0.0.1:{}\"\nworkload_api_socket = {:?}\npoll_interval = \"300ms\"\n",
        above.port(),
        above.workload_socket()
    )
}

fn register_downstream(above: &Deployment, name: &str) {
    let server = selector(&above.programs().server);
    // Another identity of the same process, which is no downstream server: it has to find out which one is.
    above.register("/another", &server).unwrap();
    let (id, parent) = (format!("spiffe://example.org/{name}"), above.agent_id().unwrap());
    above
        .cli(&[
            "entry",
            "create",
            "--spiffe-id",
            &id,
            "--parent-id",
            &parent,
            "--selector",
            &server,
            "--downstream",
        ])
        .unwrap();
}

fn selector(program: &Path) -> String {
    format!("unix:path:{}", program.canonicalize().unwrap().display())
}

/// A copy of the workload with an identity at this deployment.
fn workload(deployment: &Deployment, name: &str) -> PathBuf {
    let program = deployment.folder().join(name);
    std::fs::copy(&deployment.programs().workload, &program).unwrap();
    deployment.register(&format!("/{name}"), &selector(&program)).unwrap();
    program
}

fn active(deployment: &Deployment) -> Result<(String, String), String> {
    let shown = deployment.cli(&["authority", "show", "x509"])?;
    let text = |key: &str| shown["authorities"][0][key].as_str().unwrap_or_default().to_owned();
    Ok((text("id"), text("upstream")))
}

/// How many X.509 authorities and JWT keys the agent of a deployment hands out.
fn known(deployment: &Deployment) -> Result<(usize, usize), String> {
    let bundles = deployment.cli(&["fetch", "bundles"])?;
    let bundle = &bundles["bundles"]["spiffe://example.org"];
    let count = |list: &Value| list.as_array().map_or(0, Vec::len);
    Ok((count(&bundle["x509"]), count(&bundle["jwt"]["keys"])))
}

#[test]
fn three_layers_are_one_trust_domain_through_a_rotation_at_the_top() {
    let root = Deployment::start(Settings::default()).unwrap();
    let middle = below(&root, "middle");
    let leaf = below(&middle, "leaf");
    let tool = selector(&root.programs().cli);
    for layer in [&root, &middle, &leaf] {
        layer.register("/tool", &tool).unwrap();
    }

    // One workload at the bottom and one at the top; their handshakes go on through everything that follows.
    let (server, client) = (workload(&root, "at-root"), workload(&leaf, "at-leaf"));
    let listening = Events::of(&server, &root, &["serve", "--peer", "spiffe://example.org/at-leaf"]);
    let address = listening.wait("the server's address", |event| {
        (event["event"] == "listening").then(|| event["address"].as_str().unwrap_or_default().to_owned())
    });
    let dial = ["dial", "--address", &address, "--peer", "spiffe://example.org/at-root", "--period-ms", "50"];
    let dialing = Events::of(&client, &leaf, &dial);
    dialing.wait("handshakes", |event| (event["event"] == "progress").then_some(()));

    // The chain holds three certificates of authorities less the root: leaf, leaf's CA, middle's CA.
    let folder = leaf.folder().join("fetched");
    eventually("an SVID at the leaf", SOON, || leaf.cli_text(&["write", "--dir", folder.to_str().unwrap()]))
        .unwrap();
    let chain = std::fs::read_to_string(folder.join("svid.pem")).unwrap();
    assert_eq!(chain.matches("BEGIN CERTIFICATE").count(), 3, "{chain}");

    // Each layer's JWT key is known to all: a token from the bottom verifies at the top and the reverse.
    eventually("one set of keys", SOON, || {
        let sets = [known(&root)?, known(&middle)?, known(&leaf)?];
        if sets.iter().all(|set| *set == (1, 3)) { Ok(()) } else { Err(format!("{sets:?}")) }
    })
    .unwrap();
    for (from, to) in [(&leaf, &root), (&root, &leaf), (&middle, &leaf)] {
        let token = from.cli_text(&["fetch", "jwt", "--audience", "api"]).unwrap();
        let valid = to.cli(&["validate", "jwt", "--audience", "api", token.trim()]).unwrap();
        assert_eq!(valid["spiffe_id"], "spiffe://example.org/tool");
    }

    // Rotation at the top, as an operator does it.
    let (old, _) = active(&root).unwrap();
    assert_eq!(active(&middle).unwrap().1, old);
    assert_eq!(active(&leaf).unwrap().1, old, "the root is named, not what is between");
    let fresh = root.cli(&["authority", "prepare", "x509"]).unwrap()["authorities"][0]["id"].clone();
    let fresh = fresh.as_str().unwrap();
    eventually("the new root at the bottom", SOON, || match known(&leaf)? {
        (2, _) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .unwrap();
    root.cli(&["authority", "activate", "x509", fresh]).unwrap();
    let serials = |deployment: &Deployment| -> Result<(Value, Value), String> {
        let agent = deployment.cli(&["agent", "list"])?["agents"][0]["serial_number"].clone();
        Ok((agent, deployment.cli(&["fetch", "x509"])?["svids"][0]["serial_number"].clone()))
    };
    let layers = [&root, &middle, &leaf].map(|layer| (layer, serials(layer).unwrap()));
    root.cli(&["authority", "taint", "x509", &old]).unwrap();
    for (name, layer) in [("middle", &middle), ("leaf", &leaf)] {
        eventually(&format!("the {name} below the new root"), SOON, || match active(layer)? {
            (_, upstream) if upstream == fresh => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .unwrap();
    }
    // Whatever the old root is above of is replaced, in every layer, without anybody asking.
    for (layer, before) in &layers {
        eventually("new SVIDs of agents and workloads", SOON, || match serials(layer)? {
            now if now.0 != before.0 && now.1 != before.1 => Ok(()),
            now => Err(format!("{before:?} {now:?}")),
        })
        .unwrap();
    }
    for workload in [&listening, &dialing] {
        eventually("a second SVID", SOON, || match workload.count("svid") {
            0 | 1 => Err("one SVID"),
            _ => Ok(()),
        })
        .unwrap();
    }
    root.cli(&["authority", "revoke", "x509", &old]).unwrap();
    for layer in [&root, &middle, &leaf] {
        eventually("the old root gone", SOON, || match known(layer)? {
            (1, 3) => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .unwrap();
    }
    let done = dialing.count("progress");
    eventually("handshakes after all that", SOON, || match dialing.count("progress") {
        now if now > done + 1 => Ok(()),
        now => Err(now),
    })
    .unwrap();
    assert_eq!((dialing.count("failed"), listening.count("refused")), (0, 0), "{dialing:?}");
}

#[test]
fn a_server_outlives_its_upstream_and_one_without_an_authority_waits_for_it() {
    let mut root = Deployment::start(Settings::default()).unwrap();
    let mut middle = below(&root, "middle");
    let authority = active(&middle).unwrap();
    root.kill_server();

    // It starts with what its journal holds, and signs; what needs the upstream says that it is away.
    middle.kill_server();
    middle.start_server().unwrap();
    assert_eq!(active(&middle).unwrap(), authority);
    middle.cli(&["mint", "jwt", "--spiffe-id", "spiffe://example.org/x", "--audience", "a"]).unwrap();
    let refused = middle.cli(&["authority", "prepare", "x509"]).unwrap_err();
    assert!(refused.contains(&format!("127.0.0.1:{}", root.port())), "{refused}");

    // One that has no authority yet is alive and not ready, and its log says what it waits for.
    let settings = Settings { server_extra: upstream(&root), ..Settings::default() };
    let mut fresh = Deployment::prepare(settings).unwrap();
    let log = fresh.folder().join("server.log");
    std::thread::scope(|scope| {
        let starting = scope.spawn(|| fresh.start_server());
        eventually("a server that waits", SOON, || {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            if text.contains("the server waits for it") { Ok(()) } else { Err(text) }
        })
        .unwrap();
        assert!(!starting.is_finished(), "it neither serves nor ends");
        root.start_server().unwrap();
        starting.join().unwrap().unwrap();
    });
    // The root is the same after its restart, so both are below it.
    assert_eq!(active(&fresh).unwrap().1, authority.1);
    eventually("the upstream's signature again", SOON, || middle.cli(&["authority", "prepare", "x509"]))
        .unwrap();
}

/// A running workload and what it has printed.
#[derive(Debug)]
struct Events {
    child: Child,
    seen: Arc<Mutex<Vec<Value>>>,
}

impl Events {
    fn of(program: &Path, at: &Deployment, arguments: &[&str]) -> Self {
        let mut child = Command::new(program)
            .args(arguments)
            .env("SPIFFE_ENDPOINT_SOCKET", at.endpoint())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let seen = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&seen);
        std::thread::spawn(move || {
            lines
                .filter_map(|line| serde_json::from_str(&line).ok())
                .for_each(|event| noted.lock().unwrap().push(event));
        });
        Self { child, seen }
    }

    fn wait<T>(&self, what: &str, wanted: impl Fn(&Value) -> Option<T>) -> T {
        let look = || {
            let seen = self.seen.lock().unwrap();
            seen.iter().find_map(&wanted).ok_or_else(|| format!("{seen:?}"))
        };
        eventually(what, SOON, look).unwrap()
    }

    fn count(&self, event: &str) -> usize {
        self.seen.lock().unwrap().iter().filter(|seen| seen["event"] == event).count()
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
