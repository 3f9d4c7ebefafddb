//! Trust domains that trust each other: two of our own with agents and workloads, and go-spiffe on either side.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bonafide_tests::{Deployment, Settings, eventually, skipped};
use tokio_stream::StreamExt as _;

use crate::interop::{built_go, run};

const SOON: Duration = Duration::from_secs(30);

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A trust domain with a bundle endpoint.
fn settings(trust_domain: &str, port: u16, more: &str) -> Settings {
    Settings {
        trust_domain: trust_domain.to_owned(),
        server_extra: format!("[federation.bundle_endpoint]\naddress = \"127.0.0.1:{port}\"\n{more}"),
        ..Settings::default()
    }
}

fn federate(with: &Deployment, from: &Deployment, trust_domain: &str, port: u16) {
    let file = from.folder().join(format!("{trust_domain}.pem"));
    std::fs::write(&file, with.cli_text(&["bundle", "show", "--format", "pem"]).unwrap()).unwrap();
    let (url, file) = (format!("https://127.0.0.1:{port}"), file.display().to_string());
    let profile = ["--profile", "https_spiffe", "--bundle-file", &file];
    let made =
        from.cli(&[&["federation", "create", trust_domain, "--url", &url], &profile[..]].concat()).unwrap();
    assert_eq!(made["endpoint_spiffe_id"], format!("spiffe://{trust_domain}/spire/server"));
}

/// How many X.509 authorities are stored for a trust domain.
fn authorities(deployment: &Deployment, trust_domain: &str) -> Result<usize, String> {
    let listed = deployment.cli(&["bundle", "list", trust_domain])?;
    let all = listed["bundles"][0]["authorities"].as_array().ok_or_else(|| listed.to_string())?;
    Ok(all.iter().filter(|one| one["kind"] == "x509").count())
}

#[test]
fn a_workload_sees_the_peers_change_on_its_open_stream_within_five_seconds() {
    let (port_a, port_b) = (free_port(), free_port());
    let a = Deployment::start(settings("a.test", port_a, "")).unwrap();
    let b = Deployment::start(settings("b.test", port_b, "")).unwrap();
    federate(&b, &a, "b.test", port_b);
    federate(&a, &b, "a.test", port_a);
    let listed = a.cli(&["federation", "list"]).unwrap();
    assert_eq!(listed["relationships"][0]["trust_domain"], "b.test");
    a.cli(&["federation", "refresh", "b.test"]).unwrap();

    let uid = format!("unix:uid:{}", rustix::process::getuid().as_raw());
    let parent = a.agent_id().unwrap();
    let entry =
        ["entry", "create", "--spiffe-id", "spiffe://a.test/w", "--parent-id", &parent, "--selector", &uid];
    a.cli(&[&entry[..], &["--federates-with", "b.test"]].concat()).unwrap();

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let name = spiffe::TrustDomain::new("b.test").unwrap();
        let deadline = Instant::now() + SOON;
        let client = spiffe::WorkloadApiClient::connect_to(&a.endpoint()).await.unwrap();
        // Until the entry is with the agent there is no identity, and so no stream.
        let (mut stream, first) = loop {
            let mut stream = client.stream_x509_bundles().await.unwrap();
            match stream.next().await {
                Some(Ok(first)) => break (stream, first),
                other => assert!(Instant::now() < deadline, "{:?}", other.map(|set| set.map(drop))),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        let count =
            |set: &spiffe::X509BundleSet| set.get(&name).map_or(0, |bundle| bundle.authorities().len());
        let mut last = count(&first);
        let mut seen = async |wanted: usize| {
            let wait = async {
                while last != wanted {
                    last =
                        count(&stream.next().await.expect("the stream goes on").expect("without an error"));
                }
            };
            tokio::time::timeout(SOON, wait).await.unwrap_or_else(|_| panic!("never {wanted} authorities"));
        };
        seen(1).await;
        b.cli(&["authority", "prepare", "x509"]).unwrap();
        let began = Instant::now();
        seen(2).await;
        let took = began.elapsed();
        println!("a change at the peer was on the stream after {took:?}");
        assert!(took < Duration::from_secs(5), "{took:?}");
    });

    a.cli(&["federation", "delete", "b.test"]).unwrap();
    assert_eq!(a.cli(&["federation", "list"]).unwrap()["relationships"].as_array().map(Vec::len), Some(0));
    a.cli(&["federation", "refresh", "b.test"]).unwrap_err();
    assert_eq!(authorities(&a, "b.test"), Ok(2), "the bundle stays");
}

#[test]
fn go_spiffe_on_either_side() {
    let place = tempfile::tempdir().unwrap();
    let Some(program) = built_go(place.path()) else {
        return skipped("go_spiffe_on_either_side", "no Go toolchain");
    };
    let at = place.path().display();
    let theirs = Peer::start(&program, place.path(), "theirs.test", false);
    let web = Peer::start(&program, place.path(), "web.test", true);
    for (profile, roots) in [("https_spiffe", "own.pem"), ("https_web", "cert.pem")] {
        run(Command::new(&program).args(["bundle-certificate", "-dir"]).arg(place.path())).unwrap();
        let port = free_port();
        let mut more = format!("profile = \"{profile}\"\nrefresh_hint = \"4m\"\n");
        if profile == "https_web" {
            more += &format!("certificate_path = \"{at}/cert.pem\"\nkey_path = \"{at}/key.pem\"\n");
        }
        more += &format!("[federation]\nweb_ca_path = \"{}\"\n", web.file("web.pem"));
        let mut deployment = Deployment::prepare(settings("example.org", port, &more)).unwrap();
        deployment.start_server().unwrap();

        // Their client reads our endpoint.
        let own = deployment.cli_text(&["bundle", "show", "--format", "pem"]).unwrap();
        std::fs::write(place.path().join("own.pem"), own).unwrap();
        let mut fetch = Command::new(&program);
        fetch.args([
            "bundle-fetch",
            "-trust-domain",
            "example.org",
            "-url",
            &format!("https://localhost:{port}/"),
        ]);
        fetch.arg("-roots").arg(place.path().join(roots));
        if profile == "https_spiffe" {
            fetch.args(["-id", "spiffe://example.org/spire/server"]);
        }
        let text = run(&mut fetch).unwrap();
        assert!(text.contains("x509=1 jwt=1 hint=4m0s sequence="), "{text}");
        // The other profile's roots do not do.
        let mut wrong = Command::new(&program);
        wrong.args([
            "bundle-fetch",
            "-trust-domain",
            "example.org",
            "-url",
            &format!("https://localhost:{port}/"),
        ]);
        wrong.args(["-roots", &web.file("web.pem")]);
        run(&mut wrong).unwrap_err();

        // We read their handler.
        if profile == "https_spiffe" {
            theirs.is_read_by(
                &deployment,
                &[
                    "--profile",
                    profile,
                    "--endpoint-spiffe-id",
                    "spiffe://theirs.test/endpoint",
                    "--bundle-file",
                    &theirs.file("bundle.pem"),
                ],
            );
        } else {
            web.is_read_by(&deployment, &["--profile", profile]);
        }
        deployment.stop_server().unwrap();
    }
}

/// go-spiffe's handler of a bundle endpoint.
struct Peer {
    child: Child,
    folder: std::path::PathBuf,
    trust_domain: &'static str,
    port: String,
}

impl Peer {
    fn start(program: &Path, place: &Path, trust_domain: &'static str, web: bool) -> Self {
        let folder = place.join(trust_domain);
        std::fs::create_dir(&folder).unwrap();
        let mut child = Command::new(program)
            .args(["bundle-serve", "-trust-domain", trust_domain, &format!("-web={web}"), "-dir"])
            .arg(&folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let port = line.trim().strip_prefix("listening ").unwrap_or_else(|| panic!("{line}")).to_owned();
        Self { child, folder, trust_domain, port }
    }

    fn file(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    /// The server fetches the bundle, and again when it has changed.
    fn is_read_by(&self, server: &Deployment, flags: &[&str]) {
        let url = format!("https://localhost:{}/", self.port);
        server.cli(&[&["federation", "create", self.trust_domain, "--url", &url], flags].concat()).unwrap();
        server.cli(&["federation", "refresh", self.trust_domain]).unwrap();
        assert_eq!(authorities(server, self.trust_domain), Ok(1));
        writeln!(self.child.stdin.as_ref().unwrap(), "more").unwrap();
        eventually("the second authority", SOON, || {
            server.cli(&["federation", "refresh", self.trust_domain])?;
            match authorities(server, self.trust_domain)? {
                2 => Ok(()),
                other => Err(format!("{other} authorities")),
            }
        })
        .unwrap();
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
