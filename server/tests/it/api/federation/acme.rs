//! The endpoint's certificate by ACME, from Pebble, the test server of Let's Encrypt.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use bonafide_identity::Timestamp;
use bonafide_pki::tls::{Now, WebRoots, https_web_client};
use bonafide_pki::{inspect, pem};
use bonafide_runtime::clock::{Clock as _, SystemClock};
use bonafide_runtime::fetch::{Query, fetch};
use bonafide_runtime::tasks::Periodic;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;

use super::*;

/// A running Pebble. It forgets everything when it ends.
struct Pebble {
    child: Child,
    directory: SocketAddr,
    management: SocketAddr,
    ca: PathBuf,
}

impl Drop for Pebble {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn program(folder: &Path) -> Result<PathBuf, String> {
    let program = folder.join("pebble");
    let output = Command::new("go")
        .args(["build", "-o"])
        .arg(&program)
        .arg("github.com/letsencrypt/pebble/v2/cmd/pebble")
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/interop/pebble"))
        .output()
        .map_err(|error| format!("no Go toolchain: {error}"))?;
    if output.status.success() {
        Ok(program)
    } else {
        Err(format!("Pebble cannot be built: {}", String::from_utf8_lossy(&output.stderr).trim()))
    }
}

impl Pebble {
    /// It validates at `endpoint`, and listens at the same addresses each time.
    async fn start(folder: &Path, program: &Path, ports: [u16; 2], endpoint: u16) -> Self {
        let ca_key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_certificate = params.self_signed(&ca_key).unwrap();
        let issuer = Issuer::new(params, ca_key);
        let key = KeyPair::generate().unwrap();
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let leaf = CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let ca = write("directory-ca.pem", &ca_certificate.pem());
        let (certificate, key) = (write("leaf.pem", &leaf.pem()), write("leaf.key", &key.serialize_pem()));
        let [directory, management] = ports.map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let settings = serde_json::json!({ "pebble": {
            "listenAddress": directory.to_string(),
            "managementListenAddress": management.to_string(),
            "certificate": certificate,
            "privateKey": key,
            "httpPort": 1,
            "tlsPort": endpoint,
            "retryAfter": { "authz": 1, "order": 1 },
            "profiles": { "default": { "description": "ninety days", "validityPeriod": 7_776_000 } },
        }});
        let settings = write("pebble.json", &settings.to_string());
        let log = std::fs::File::create(folder.join("pebble.log")).unwrap();
        let mut command = Command::new(program);
        command.arg("-config").arg(settings).stdin(Stdio::null());
        command.stdout(log.try_clone().unwrap()).stderr(log);
        // Validate at once and each time, and refuse no nonce by chance.
        command
            .env("PEBBLE_VA_NOSLEEP", "1")
            .env("PEBBLE_AUTHZREUSE", "0")
            .env("PEBBLE_WFE_NONCEREJECT", "0");
        let pebble = Self { child: command.spawn().unwrap(), directory, management, ca };
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(pebble.directory).await.is_err()
            || TcpStream::connect(pebble.management).await.is_err()
        {
            assert!(Instant::now() < deadline, "Pebble does not listen");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        pebble
    }

    /// The root of what it issues.
    async fn root(&self) -> WebRoots {
        let der = |text: &[u8]| pem::decode_all(text).unwrap().swap_remove(0).1;
        let own = WebRoots::from_der([der(&std::fs::read(&self.ca).unwrap())], false).unwrap();
        let url = format!("https://{}/roots/0", self.management).parse().unwrap();
        let query = Query::get(url, 1 << 16, Duration::from_secs(10));
        let text = fetch(query, Some(https_web_client(&own, real_time()))).await.unwrap();
        WebRoots::from_der([der(&text)], false).unwrap()
    }
}

fn real_time() -> Now {
    Arc::new(|| SystemClock.now())
}

fn configuration(folder: &Path, pebble: (SocketAddr, &Path), endpoint: u16, domain: &str) -> Config {
    let (at, (directory, ca)) = (folder.display(), pebble);
    let text = format!(
        "trust_domain = \"a.org\"\ndata_dir = \"{at}\"\n[listen]\naddress = \"127.0.0.1:0\"\nadmin_socket = \"{at}/api.sock\"\n\
         [store]\ndriver = \"memory\"\n[key_manager.memory]\n\
         [federation.bundle_endpoint]\naddress = \"127.0.0.1:{endpoint}\"\nprofile = \"https_web\"\n\
         [federation.bundle_endpoint.acme]\ndomain_name = \"{domain}\"\nemail = \"somebody@a.org\"\ntos_accepted = true\n\
         directory_url = \"https://{directory}/dir\"\ndirectory_ca_path = \"{}\"\n",
        ca.display()
    );
    Config::parse(&text, "test.toml".as_ref()).unwrap()
}

fn task(server: &TestServer) -> Periodic {
    server.server.tasks().iter().find(|task| task.name() == "bundle endpoint certificate").unwrap().clone()
}

/// Waits until `found` gives something.
async fn until<T>(server: &TestServer, what: &str, mut found: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(found) = found().await {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: {:?}", task(server).status());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The serial number of what the endpoint presents, after it has given its document.
async fn seen(server: &TestServer, roots: &WebRoots) -> Option<String> {
    let tls = https_web_client(roots, real_time());
    let tcp = TcpStream::connect(endpoint(server)).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let mut stream = TlsConnector::from(tls).connect(name, tcp).await.ok()?;
    let leaf = stream.get_ref().1.peer_certificates().unwrap()[0].to_vec();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut text = Vec::new();
    let _ = stream.read_to_end(&mut text).await;
    assert!(text.starts_with(b"HTTP/1.1 200 OK"), "{}", String::from_utf8_lossy(&text));
    Some(inspect(&leaf).unwrap().serial.to_string())
}

#[tokio::test]
async fn a_certificate_is_had_kept_renewed_and_had_again() {
    let place = TempDir::new().unwrap();
    let program = match program(place.path()) {
        Ok(program) => program,
        Err(why) => return eprintln!("SKIPPED: a_certificate_is_had_kept_renewed_and_had_again: {why}"),
    };
    let (ports, port) = ([free_port(), free_port()], free_port());
    let pebble = Pebble::start(place.path(), &program, ports, port).await;
    let (directory, ca) = (pebble.directory, pebble.ca.clone());
    let data = place.path().join("data");
    let clock = ManualClock::at(Timestamp::from_unix_seconds(SystemClock.now().unix_seconds()));
    let start = async |domain: &str, data: &Path, port: u16| {
        let config = configuration(data, (directory, &ca), port, domain);
        TestServer::start_from(TempDir::new().unwrap(), clock.clone(), config).await
    };

    // The first one.
    let server = start("localhost", &data, port).await;
    let roots = pebble.root().await;
    let first = until(&server, "the first certificate", async || seen(&server, &roots).await).await;
    for name in ["account.json", "certificate.json"] {
        let path = data.join("bundle-acme").join(name);
        let mode = until(&server, name, async || std::fs::metadata(&path).ok()).await.permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    // Outside an order nobody is shown an answer to a challenge.
    let mut tls = ClientConfig::clone(&https_web_client(&roots, real_time()));
    tls.alpn_protocols = vec![b"acme-tls/1".to_vec()];
    let tcp = TcpStream::connect(endpoint(&server)).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(tls)).connect(name, tcp).await.unwrap_err();
    server.server.stop().await.unwrap();

    // A restart presents it again and orders nothing.
    let server = start("localhost", &data, port).await;
    until(&server, "a first look", async || (task(&server).status().runs == 1).then_some(())).await;
    assert_eq!(seen(&server, &roots).await, Some(first.clone()));
    assert_eq!(task(&server).status().failures, 0);

    // When it is due and nobody gives another one, it stays.
    drop(pebble);
    clock.advance(Duration::from_secs(61 * 86_400));
    task(&server).wake();
    until(&server, "a failure", async || (task(&server).status().failures == 1).then_some(())).await;
    assert_eq!(seen(&server, &roots).await, Some(first.clone()));

    // One that knows nothing of the account any more: there will be another account, and a certificate.
    let pebble = Pebble::start(place.path(), &program, ports, port).await;
    let roots = pebble.root().await;
    task(&server).wake();
    let second = until(&server, "the second certificate", async || seen(&server, &roots).await).await;
    assert_ne!(second, first);

    // With that account, once more.
    until(&server, "an end of the run", async || {
        (task(&server).status().failures_in_a_row == 0 && task(&server).status().next.is_some()).then_some(())
    })
    .await;
    clock.advance(Duration::from_secs(7200));
    task(&server).wake();
    let third = until(&server, "the third certificate", async || {
        seen(&server, &roots).await.filter(|serial| *serial != second)
    })
    .await;
    assert_ne!(third, first);
    server.server.stop().await.unwrap();

    // A name under which the endpoint is not reached.
    let server = start("nowhere.invalid", &place.path().join("other"), free_port()).await;
    let error = until(&server, "a refusal", async || task(&server).status().last?.error).await;
    assert!(error.contains("does not grant nowhere.invalid: ") && error.contains("TCP port 443"), "{error}");
    server.server.stop().await.unwrap();
}
