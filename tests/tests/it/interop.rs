//! Other people's clients against the real daemons. Each knows SPIFFE and nothing of this project.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bonafide_tests::{Deployment, Settings, skipped};

/// Lifetimes short enough that each client sees rotations on its stream while a test runs.
fn rotating() -> Settings {
    Settings {
        x509_svid_ttl: "6s".to_owned(),
        jwt_svid_ttl: "20s".to_owned(),
        ca_ttl: "60s".to_owned(),
        agent_ttl: "30s".to_owned(),
        ..Settings::default()
    }
}

pub(crate) fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("interop").join(name)
}

/// Whether a program is there at all.
pub(crate) fn has(program: &str, argument: &str) -> bool {
    Command::new(program)
        .arg(argument)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Runs `command` to its end and returns what it printed; a failure holds all of it.
pub(crate) fn run(command: &mut Command) -> Result<String, String> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{command:?}: {error}"))?;
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() {
        Ok(text)
    } else {
        Err(format!("{command:?} ended with {}:\n{text}", output.status))
    }
}

/// The path that the kernel reports for processes that run `program`.
fn selector(program: &Path) -> String {
    format!("unix:path:{}", fs::canonicalize(program).expect("the program exists").display())
}

pub(crate) fn built_go(into: &Path) -> Option<PathBuf> {
    if !has("go", "version") {
        return None;
    }
    let program = into.join("interop-go");
    run(Command::new("go").args(["build", "-o"]).arg(&program).arg(".").current_dir(folder("go"))).unwrap();
    Some(program)
}

#[test]
fn go_spiffe() {
    let place = tempfile::tempdir().unwrap();
    let Some(program) = built_go(place.path()) else { return skipped("go_spiffe", "no Go toolchain") };
    let deployment = Deployment::start(rotating()).unwrap();
    deployment.register("/go", &selector(&program)).unwrap();
    let written = place.path().join("written");
    fs::create_dir(&written).unwrap();
    let go = |arguments: &[&str]| {
        run(Command::new(&program).args(arguments).env("SPIFFE_ENDPOINT_SOCKET", deployment.endpoint()))
    };
    let text =
        go(&["suite", "-expect", "spiffe://example.org/go", "-write", written.to_str().unwrap()]).unwrap();
    assert!(text.contains("PASS"), "{text}");
    openssl_agrees(&written);
    let text = go(&["watch", "-serials", "3", "-roots", "2", "-kids", "2", "-timeout", "90s"]).unwrap();
    assert!(text.contains("PASS"), "{text}");
}

/// `openssl` verifies the chain that go-spiffe wrote, and the signature of the token.
fn openssl_agrees(written: &Path) {
    if !has("openssl", "version") {
        return skipped("openssl", "no openssl program");
    }
    let verdict = run(Command::new("openssl")
        .args(["verify", "-x509_strict", "-CAfile", "bundle.pem", "-untrusted", "chain.pem", "chain.pem"])
        .current_dir(written))
    .unwrap();
    assert!(verdict.contains("chain.pem: OK"), "{verdict}");
    let text = run(Command::new("openssl")
        .args(["x509", "-in", "chain.pem", "-noout", "-text"])
        .current_dir(written))
    .unwrap();
    for part in [
        "URI:spiffe://example.org/go",
        "X509v3 Key Usage: critical",
        "Digital Signature, Key Encipherment, Key Agreement",
        "TLS Web Server Authentication, TLS Web Client Authentication",
        "X509v3 Basic Constraints: critical",
        "CA:FALSE",
        "X509v3 Subject Key Identifier",
        "X509v3 Authority Key Identifier",
    ] {
        assert!(text.contains(part), "{part} is missing in\n{text}");
    }
}

#[test]
fn go_spiffetls_both_ways() {
    let place = tempfile::tempdir().unwrap();
    let Some(program) = built_go(place.path()) else {
        return skipped("go_spiffetls_both_ways", "no Go toolchain");
    };
    let deployment = Deployment::start(rotating()).unwrap();
    // Two files, so two paths and two identities.
    let other = place.path().join("interop-go-2");
    fs::copy(&program, &other).unwrap();
    deployment.register("/left", &selector(&program)).unwrap();
    deployment.register("/right", &selector(&other)).unwrap();
    for (server, client, peer_of_server, peer_of_client) in
        [(&program, &other, "right", "left"), (&other, &program, "left", "right")]
    {
        let mut listening = Command::new(server)
            .args(["serve", "-peer", &format!("spiffe://example.org/{peer_of_server}")])
            .env("SPIFFE_ENDPOINT_SOCKET", deployment.endpoint())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(
            &mut std::io::BufReader::new(listening.stdout.take().unwrap()),
            &mut line,
        )
        .unwrap();
        let address = line.trim().strip_prefix("listening ").unwrap_or_else(|| panic!("{line}")).to_owned();
        let report = run(Command::new(client)
            .args(["dial", "-address", &address, "-peer", &format!("spiffe://example.org/{peer_of_client}")])
            .args(["-length", "8s"])
            .env("SPIFFE_ENDPOINT_SOCKET", deployment.endpoint()));
        let _ = listening.kill();
        let _ = listening.wait();
        let report = report.unwrap();
        let json: serde_json::Value = serde_json::from_str(report.lines().next().unwrap()).unwrap();
        assert_eq!(json["failed"], 0, "{report}");
        assert!(json["handshakes"].as_u64().unwrap() > 20, "{report}");
        assert!(json["peer_svids"].as_u64().unwrap() >= 2, "no rotation was seen: {report}");
    }
}

/// A process that others ask about.
struct Subject(Child);

impl Subject {
    fn start(program: &Path) -> Self {
        Self(Command::new(program).arg("1000").stdin(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `sleep` under a path of its own, so that nobody else has its selector.
fn sleeper(place: &Path) -> PathBuf {
    let found = run(Command::new("sh").args(["-c", "command -v sleep"])).unwrap();
    let program = place.join("sleep");
    fs::copy(found.trim(), &program).unwrap();
    program
}

#[test]
fn go_delegates() {
    let place = tempfile::tempdir().unwrap();
    let Some(program) = built_go(place.path()) else { return skipped("go_delegates", "no Go toolchain") };
    let agent_extra = "authorized_delegates = [\"spiffe://example.org/delegate\"]\n".to_owned();
    let deployment = Deployment::start(Settings { agent_extra, ..Settings::default() }).unwrap();
    let [other, unknown] = ["interop-go-2", "interop-go-3"].map(|name| {
        let copy = place.path().join(name);
        fs::copy(&program, &copy).unwrap();
        copy
    });
    let subject = sleeper(place.path());
    deployment.register("/delegate", &selector(&program)).unwrap();
    deployment.register("/other", &selector(&other)).unwrap();
    deployment.register("/one", &selector(&subject)).unwrap();
    deployment.register("/two", &selector(&subject)).unwrap();
    let process = Subject::start(&subject);
    let pid = process.0.id().to_string();
    let admin = deployment.admin_socket();
    let ask = |program: &Path, more: &[&str]| {
        run(Command::new(program)
            .args(["delegate", "-pid", &pid, "-selectors", &selector(&subject), "-admin"])
            .arg(&admin)
            .args(more))
    };
    // They come in the order of the identifiers of their entries, which are random.
    let ids = entitled(&deployment, &selector(&subject));
    let text = ask(&program, &["-expect", &ids]).unwrap();
    assert!(text.contains("PASS"), "{text}");
    for (program, words) in
        [(&other, "caller not configured as an authorized delegate"), (&unknown, "no identity issued")]
    {
        let text = ask(program, &["-refused", words]).unwrap();
        assert!(text.contains("PASS"), "{text}");
    }
}

/// The SPIFFE IDs of the entries with this selector, in the order of the entries' identifiers.
fn entitled(deployment: &Deployment, selector: &str) -> String {
    let listed = deployment.cli(&["entry", "list", "--selector", selector]).unwrap();
    let mut found: Vec<(&str, &str)> = listed["entries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| (entry["id"].as_str().unwrap(), entry["spiffe_id"].as_str().unwrap()))
        .collect();
    found.sort_unstable();
    found.into_iter().map(|(_, id)| id).collect::<Vec<_>>().join(",")
}

#[test]
fn go_brokers() {
    let place = tempfile::tempdir().unwrap();
    let Some(program) = built_go(place.path()) else { return skipped("go_brokers", "no Go toolchain") };
    let agent_extra = "[broker]\nsocket = \"{folder}/agent/broker/broker.sock\"\n\
        [[broker.brokers]]\nid = \"spiffe://example.org/broker\"\nallowed_reference_types = \
        [{ type_url = \"type.googleapis.com/spiffe.broker.WorkloadPIDReference\" }]\n"
        .to_owned();
    let deployment = Deployment::start(Settings { agent_extra, ..Settings::default() }).unwrap();
    let other = place.path().join("interop-go-2");
    fs::copy(&program, &other).unwrap();
    let subject = sleeper(place.path());
    deployment.register("/broker", &selector(&program)).unwrap();
    deployment.register("/other", &selector(&other)).unwrap();
    deployment.register("/one", &selector(&subject)).unwrap();
    deployment.register("/two", &selector(&subject)).unwrap();
    let process = Subject::start(&subject);
    let ids = entitled(&deployment, &selector(&subject));
    let ask = |program: &Path, more: &[&str]| {
        run(Command::new(program)
            .args(["broker", "-pid", &process.0.id().to_string(), "-selectors", &selector(&subject)])
            .args(["-agent", &deployment.agent_id().unwrap(), "-socket"])
            .arg(deployment.folder().join("agent/broker/broker.sock"))
            .args(more)
            .env("SPIFFE_ENDPOINT_SOCKET", deployment.endpoint()))
    };
    let text = ask(&program, &["-expect", &ids]).unwrap();
    assert!(text.contains("PASS"), "{text}");
    let text = ask(&other, &["-refused"]).unwrap();
    assert!(text.contains("PASS"), "{text}");
}

/// The calls of spire-controller-manager, as the real one made them.
#[test]
fn go_registrar() {
    let place = tempfile::tempdir().unwrap();
    let Some(program) = built_go(place.path()) else { return skipped("go_registrar", "no Go toolchain") };
    let mut deployment = Deployment::prepare(Settings::default()).unwrap();
    deployment.start_server().unwrap();
    let text =
        run(Command::new(&program).args(["registrar", "-socket"]).arg(deployment.server_socket())).unwrap();
    assert!(text.contains("PASS"), "{text}");
}

#[test]
fn python_spiffe() {
    if !has("python3", "--version") {
        return skipped("python_spiffe", "no python3");
    }
    let place = tempfile::tempdir().unwrap();
    let environment = place.path().join("venv");
    if let Err(why) = run(Command::new("python3").args(["-m", "venv"]).arg(&environment)) {
        return skipped("python_spiffe", &format!("no virtual environments: {why}"));
    }
    let install = run(Command::new(environment.join("bin/pip"))
        .args(["install", "--quiet", "--disable-pip-version-check", "-r"])
        .arg(folder("python").join("requirements.txt")));
    if let Err(why) = install {
        return skipped("python_spiffe", &format!("packages cannot be installed: {why}"));
    }
    let python = environment.join("bin/python3");
    let deployment = Deployment::start(rotating()).unwrap();
    deployment.register("/python", &selector(&python)).unwrap();
    let text = run(Command::new(&python)
        .arg(folder("python").join("interop.py"))
        .args(["--expect", "spiffe://example.org/python", "--serials", "3"])
        .env("SPIFFE_ENDPOINT_SOCKET", deployment.endpoint()))
    .unwrap();
    assert!(text.contains("PASS"), "{text}");
}

#[test]
fn java_spiffe() {
    if !has("mvn", "--version") || !has("java", "-version") {
        return skipped("java_spiffe", "no Maven or no Java");
    }
    let place = tempfile::tempdir().unwrap();
    let sources = place.path().join("java");
    run(Command::new("cp").arg("-r").arg(folder("java")).arg(&sources)).unwrap();
    if let Err(why) = run(Command::new("mvn").args(["-q", "-B", "package"]).current_dir(&sources)) {
        return skipped("java_spiffe", &format!("the client cannot be built: {why}"));
    }
    let which = run(Command::new("sh").args(["-c", "command -v java"])).unwrap();
    let deployment = Deployment::start(rotating()).unwrap();
    deployment.register("/java", &selector(Path::new(which.trim()))).unwrap();
    let target = sources.join("target");
    let text = run(Command::new("java")
        .arg("-cp")
        .arg(format!("{}:{}/*", target.join("interop.jar").display(), target.join("lib").display()))
        .args(["id.bonafide.interop.Interop", "spiffe://example.org/java", "interop", "3", "60"])
        .env("SPIFFE_ENDPOINT_SOCKET", deployment.endpoint()))
    .unwrap();
    assert!(text.contains("PASS"), "{text}");
}

/// The `spiffe` crate: a third implementation in Rust, by other authors.
#[test]
fn rust_spiffe() {
    let deployment = Deployment::start(rotating()).unwrap();
    let own = std::env::current_exe().unwrap();
    deployment.register("/rust", &selector(&own)).unwrap();
    let endpoint = deployment.endpoint();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let source = tokio::time::timeout(
            Duration::from_secs(30),
            spiffe::X509SourceBuilder::new().endpoint(&endpoint).build(),
        )
        .await
        .expect("an X509Source in time")
        .expect("an X509Source");
        let svid = source.svid().expect("an SVID");
        assert_eq!(svid.spiffe_id().to_string(), "spiffe://example.org/rust");
        let first = svid.leaf().as_bytes().to_vec();
        let mut updates = source.updated();
        tokio::time::timeout(Duration::from_secs(30), async {
            loop {
                updates.changed().await.expect("the source lives");
                if source.svid().expect("an SVID").leaf().as_bytes() != first {
                    break;
                }
            }
        })
        .await
        .expect("a rotation on the stream");

        let client = spiffe::WorkloadApiClient::connect_to(&endpoint).await.expect("a client");
        let token = client.fetch_jwt_token(&["interop"], None).await.expect("a token");
        let bundles = client.fetch_jwt_bundles().await.expect("JWT bundles");
        assert!(!bundles.is_empty());
        let valid = client.validate_jwt_token("interop", &token).await.expect("a verdict");
        assert_eq!(valid.spiffe_id().to_string(), "spiffe://example.org/rust");
    });
}
