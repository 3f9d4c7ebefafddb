//! The main job, to watch: a server, an agent, two workloads in mutual TLS, and three rotations under it.
//!
//! Everything runs in a temporary folder and on loopback, and goes away at the end, also after an interruption.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use bonafide_tests::programs::programs;
use bonafide_tests::{Deployment, Settings};
use serde_json::Value;

/// Short enough to watch: a renewal comes at about half of it.
const SVID_LIFE: &str = "8s";
/// How long any one step may take on a busy machine.
const STEP: Duration = Duration::from_secs(60);
const WORKLOADS: [&str; 2] = ["backend", "frontend"];

fn main() -> ExitCode {
    println!("Bonafide: building the programs (the first time this takes a few minutes) …");
    if let Err(why) = programs() {
        eprintln!("error: {why}");
        return ExitCode::FAILURE;
    }
    match Demo::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("error: {why}");
            ExitCode::FAILURE
        }
    }
}

struct Demo {
    started: Instant,
    events: Receiver<(&'static str, Value)>,
    sender: Sender<(&'static str, Value)>,
    /// The newest SVID of each workload.
    svids: BTreeMap<&'static str, Svid>,
    address: Option<String>,
    handshakes: u64,
    failed: u64,
    interruptions: u64,
    stopped: bool,
    workloads: Vec<Child>,
    deployment: Deployment,
}

#[derive(Clone, Default)]
struct Svid {
    serial: String,
    authority: String,
    authorities: u64,
}

impl Demo {
    fn run() -> Result<(), String> {
        let settings = Settings {
            x509_svid_ttl: SVID_LIFE.to_owned(),
            agent_ttl: "30s".to_owned(),
            sync_interval: "250ms".to_owned(),
            ..Settings::default()
        };
        let started = Instant::now();
        let (sender, events) = channel();
        watch_for_interruption(sender.clone())?;
        let say = |who: &str, what: &str| line(started, who, what);
        let mut deployment = Deployment::prepare(settings)?;
        println!("All files are in {} and go away at the end.\n", deployment.folder().display());
        deployment.start_server()?;
        say("server", "is up, with its own authority for example.org on the embedded store");
        let token = deployment.cli(&["token", "create"])?;
        deployment.start_agent(token["value"].as_str())?;
        say("agent", &format!("attested with a join token as {}", deployment.agent_id()?));
        let mut demo = Self {
            started,
            events,
            sender,
            svids: BTreeMap::new(),
            address: None,
            handshakes: 0,
            failed: 0,
            interruptions: 0,
            stopped: false,
            workloads: Vec::new(),
            deployment,
        };
        demo.story()
    }

    fn story(&mut self) -> Result<(), String> {
        for name in WORKLOADS {
            let program = self.program(name)?;
            let selector = format!("unix:path:{}", program.display());
            self.deployment.register(&format!("/{name}"), &selector)?;
            self.say("operator", &format!("registered spiffe://example.org/{name} for {selector}"));
        }
        self.start("backend", &["serve", "--peer", "spiffe://example.org/frontend"])?;
        self.until("the backend's address", |demo| demo.address.is_some())?;
        let address = self.address.clone().unwrap_or_default();
        self.start("frontend", &["dial", "--peer", "spiffe://example.org/backend", "--address", &address])?;
        self.until("the first handshakes", |demo| demo.handshakes > 0)?;
        self.say("frontend", "speaks mutual TLS with the backend: a new handshake five times a second");

        self.title("Rotation 1: each SVID is renewed at about half of its life, on the open stream");
        let before = self.svids.clone();
        self.until_all("renewed SVIDs", |demo, name| demo.svids[name].serial != before[name].serial)?;

        self.title("Rotation 2: the operator prepares the next authority and, once known, activates it");
        let old = self.authority()?;
        let fresh = text(&self.deployment.cli(&["authority", "prepare", "x509"])?["authorities"][0]["id"]);
        self.say("operator", &format!("prepared authority {}", short(&fresh)));
        self.until_all("the new bundle", |demo, name| demo.svids[name].authorities >= 2)?;
        self.deployment.cli(&["authority", "activate", "x509", &fresh])?;
        self.say("operator", "activated it: every renewal from now on is signed by it");
        self.until_all("SVIDs of the new authority", |demo, name| demo.svids[name].authority == fresh)?;

        self.title(
            "Rotation 3: an emergency: the authority in use is distrusted, and everything is signed anew",
        );
        let next = text(&self.deployment.cli(&["authority", "prepare", "x509"])?["authorities"][0]["id"]);
        self.until_all("the new bundle", |demo, name| demo.svids[name].authorities >= 2)?;
        self.deployment.cli(&["authority", "activate", "x509", &next])?;
        let tainted = Instant::now();
        self.deployment.cli(&["authority", "taint", "x509", &fresh])?;
        self.say("operator", &format!("tainted authority {}", short(&fresh)));
        self.until_all("SVIDs of the third authority", |demo, name| demo.svids[name].authority == next)?;
        self.say("operator", &format!("nothing of it is in use any more, after {:.1?}", tainted.elapsed()));
        self.deployment.cli(&["authority", "revoke", "x509", &fresh])?;
        self.say("operator", "revoked it: whatever it signed is refused everywhere");
        let more = self.handshakes + 10;
        self.until("handshakes after the revocation", |demo| demo.handshakes >= more)?;

        self.title("What the operator sees");
        for command in [vec!["entry", "list"], vec!["agent", "list"], vec!["authority", "show"]] {
            println!("$ bonafide {}\n{}", command.join(" "), self.deployment.cli_text(&command)?);
        }
        self.stop();
        println!(
            "3 rotations (authorities {} → {} → {}), {} handshakes, {} failed, {} interruptions of a stream",
            short(&old),
            short(&fresh),
            short(&next),
            self.handshakes,
            self.failed,
            self.interruptions
        );
        if self.failed + self.interruptions > 0 {
            return Err("a rotation was felt by a workload".to_owned());
        }
        Ok(())
    }

    /// A program of its own for each workload: the path is what tells the two apart.
    fn program(&self, name: &str) -> Result<PathBuf, String> {
        let path = self.deployment.folder().join(name);
        let original: &Path = &self.deployment.programs().workload;
        if !path.exists() {
            std::fs::copy(original, &path).map_err(|error| format!("{}: {error}", path.display()))?;
        }
        path.canonicalize().map_err(|error| format!("{}: {error}", path.display()))
    }

    fn start(&mut self, name: &'static str, arguments: &[&str]) -> Result<(), String> {
        let mut child = Command::new(self.program(name)?)
            .args(arguments)
            .env("SPIFFE_ENDPOINT_SOCKET", self.deployment.endpoint())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("cannot start the {name}: {error}"))?;
        let output = child.stdout.take().ok_or("no output to read")?;
        let sender = self.sender.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if let Ok(event) = serde_json::from_str(&line) {
                    let _ = sender.send((name, event));
                }
            }
        });
        self.workloads.push(child);
        Ok(())
    }

    fn until_all(&mut self, what: &str, done: impl Fn(&Self, &str) -> bool) -> Result<(), String> {
        self.until(what, |demo| {
            WORKLOADS.iter().all(|name| demo.svids.contains_key(name) && done(demo, name))
        })
    }

    /// Reads events until `done`.
    fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) -> Result<(), String> {
        let deadline = Instant::now() + STEP;
        while !done(self) {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok((who, event)) = self.events.recv_timeout(left) else {
                return Err(format!(
                    "waited in vain for {what}\n{}\n{}",
                    self.deployment.log("server.log"),
                    self.deployment.log("agent.log")
                ));
            };
            self.note(who, &event);
            if self.stopped {
                return Err("interrupted".to_owned());
            }
        }
        Ok(())
    }

    fn note(&mut self, who: &'static str, event: &Value) {
        match event["event"].as_str().unwrap_or_default() {
            "listening" => self.address = Some(text(&event["address"])),
            "progress" => {
                self.handshakes = event["handshakes"].as_u64().unwrap_or(0);
                self.failed = event["failed"].as_u64().unwrap_or(0);
            }
            "svid" => {
                let svid = Svid {
                    serial: text(&event["serial"]),
                    authority: text(&event["authority"]),
                    authorities: event["authorities"].as_u64().unwrap_or(0),
                };
                let what = if event["new"] == true {
                    format!(
                        "new X.509-SVID, serial …{}, by authority {}",
                        tail(&svid.serial),
                        short(&svid.authority)
                    )
                } else {
                    format!("new bundle: {} authorities", svid.authorities)
                };
                self.say(who, &format!("{what} ({} handshakes, {} failed)", self.handshakes, self.failed));
                self.svids.insert(who, svid);
            }
            "stop" => self.stopped = true,
            "interrupted" => {
                self.interruptions += 1;
                self.say(who, &format!("its stream was interrupted: {}", text(&event["why"])));
            }
            "failed" | "refused" => self.say(who, &format!("a handshake failed: {}", text(&event["why"]))),
            _ => {}
        }
    }

    fn authority(&self) -> Result<String, String> {
        Ok(text(&self.deployment.cli(&["authority", "show", "x509"])?["authorities"][0]["id"]))
    }

    fn title(&self, text: &str) {
        println!("\n{text}");
    }

    fn say(&self, who: &str, what: &str) {
        line(self.started, who, what);
    }

    fn stop(&mut self) {
        for child in &mut self.workloads {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        self.stop();
    }
}

/// An interruption from the keyboard ends the story, not the process: the folder must go.
fn watch_for_interruption(sender: Sender<(&'static str, Value)>) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("cannot watch for signals: {error}"))?;
    std::thread::spawn(move || {
        if runtime.block_on(tokio::signal::ctrl_c()).is_ok() {
            let _ = sender.send(("demo", serde_json::json!({ "event": "stop" })));
        }
    });
    Ok(())
}

fn line(started: Instant, who: &str, what: &str) {
    println!("{:6.1}s  {who:<8}  {what}", started.elapsed().as_secs_f64());
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// The first eight characters: enough to tell authorities apart.
fn short(id: &str) -> &str {
    id.get(..8).unwrap_or(id)
}

fn tail(serial: &str) -> &str {
    serial.get(serial.len().saturating_sub(8)..).unwrap_or(serial)
}
