//! Where the bundle for the first contact comes from.

use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use bonafide_pki::tls;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixListener};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

use crate::fake_server::FakeServer;
use crate::harness::{Home, my_entry};

/// Answers one request, and gives its first line back.
async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin, status: &str, body: &str) -> String {
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        let mut part = [0; 1024];
        let length = stream.read(&mut part).await.unwrap();
        assert!(length > 0, "the request ends early");
        request.extend_from_slice(&part[..length]);
    }
    let length = body.len();
    let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}");
    stream.write_all(answer.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    String::from_utf8(request).unwrap().lines().next().unwrap().to_owned()
}

#[tokio::test]
async fn a_source_on_a_unix_socket_is_asked_until_it_knows() {
    let server = FakeServer::start().await;
    let home = Home::new();
    let path = home.path("bundle.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let (seen, pem) = (Arc::new(Mutex::new(Vec::new())), server.lock().root_pem());
    let requests = Arc::clone(&seen);
    let source = tokio::spawn(async move {
        for (status, body) in [
            ("503 Service Unavailable", pem.as_str()),
            ("302 Found", &pem),
            ("200 OK", "nothing of use"),
            ("200 OK", &pem),
        ] {
            let (stream, _) = listener.accept().await.unwrap();
            let line = answer(stream, status, body).await;
            requests.lock().unwrap().push(line);
        }
    });
    let extra = format!(
        "bootstrap.bundle_url = \"http://spire/bundle?x=1\"\nbootstrap.bundle_unix_socket = \"{}\"",
        path.display()
    );
    let _agent = home.start(&server, &extra).await;
    source.await.unwrap();
    let seen = seen.lock().unwrap().clone();
    for (number, line) in seen.iter().enumerate() {
        for part in [
            "GET /bundle?x=1&spiffe-trust-domain=example.org&spire-attest-mode=bootstrap&spire-attest-start-time=",
            &format!("&spire-connection-attempts={}&", number + 1),
            &format!("&spire-server-address=127.0.0.1&spire-server-port={} HTTP/1.1", server.address.port()),
        ] {
            assert!(line.contains(part), "{part} is missing in {line}");
        }
    }
    assert_eq!(seen.len(), 4);
}

#[tokio::test]
async fn the_workload_api_of_another_agent_is_a_source() {
    let server = FakeServer::start().await;
    server.lock().add(my_entry("e1", "/a").build());
    server.lock().tokens.insert("second".into());
    let (first, second) = (Home::new(), Home::new());
    let _agent = first.start(&server, "").await;
    let extra = format!(
        "node_attestor.join_token.token = \"second\"\nbootstrap.bundle_workload_api = \"unix://{}\"",
        first.socket().display()
    );
    let agent = second.start(&server, &extra).await;
    assert_eq!(agent.own_svid().id().path(), "/spire/agent/join_token/second");
}

#[tokio::test]
async fn a_source_that_stays_away_is_named() {
    let server = FakeServer::start().await;
    let home = Home::new();
    for (line, named) in [
        (
            "bootstrap.bundle_workload_api = \"unix:///nowhere/api.sock\"",
            "the Workload API at /nowhere/api.sock",
        ),
        (
            "bootstrap.bundle_url = \"http://x/y\"\nbootstrap.bundle_unix_socket = \"/nowhere/s\"",
            "http://x/y on /nowhere/s",
        ),
    ] {
        let error = match home.try_start(&server, line).await {
            Ok(_) => panic!("it must not start"),
            Err(error) => bonafide_runtime::tasks::chain(&error),
        };
        assert!(error.contains("cannot get the trust bundle from") && error.contains(named), "{error}");
    }
    assert_eq!(server.lock().count("AttestAgent"), 0);
}

/// In a process of its own, for the certificate authorities of the system are named by the environment.
#[tokio::test]
async fn a_bundle_comes_over_the_web() {
    let home = Home::new();
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
        ])
        .args([
            "-subj",
            "/CN=web",
            "-addext",
            "subjectAltName=DNS:localhost",
            "-addext",
            "basicConstraints=CA:FALSE",
            "-keyout",
        ])
        .arg(home.path("k.pem"))
        .arg("-out")
        .arg(home.path("c.pem"))
        .output();
    match made {
        Err(error) => {
            eprintln!("SKIPPED: a_bundle_comes_over_the_web: openssl: {error}");
            return;
        }
        Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr)),
    }
    let executable = std::env::current_exe().unwrap();
    let run = |trusted: &Path| {
        let mut command = Command::new(&executable);
        command.args(["--exact", "sources::over_the_web", "--nocapture", "--ignored"]);
        command.env("AGENT_TEST_WEB", home.folder.path()).env("SSL_CERT_FILE", trusted);
        command.env_remove("SSL_CERT_DIR");
        let output = command.output().unwrap();
        let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        (output.status.success(), text.concat())
    };
    let (worked, text) = run(&home.path("c.pem"));
    assert!(worked, "{text}");
    // Whom the system does not know is not believed.
    std::fs::write(home.path("other.pem"), FakeServer::start().await.lock().root_pem()).unwrap();
    let (worked, text) = run(&home.path("other.pem"));
    assert!(!worked && text.contains("cannot get the trust bundle from https://localhost"), "{text}");
}

/// The other process of [`a_bundle_comes_over_the_web`].
#[tokio::test]
#[ignore = "run by another test"]
async fn over_the_web() {
    let Some(folder) = std::env::var_os("AGENT_TEST_WEB") else { return };
    let folder = Path::new(&folder);
    let chain = vec![CertificateDer::from_pem_file(folder.join("c.pem")).unwrap()];
    let key = PrivateKeyDer::from_pem_file(folder.join("k.pem")).unwrap();
    let config = ServerConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = FakeServer::start().await;
    let document = bonafide_pki::bundle::to_spiffe_json(&server.lock().bundle());
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            if let Ok(stream) = TlsAcceptor::from(Arc::new(config.clone())).accept(tcp).await {
                answer(stream, "200 OK", &document).await;
            }
        }
    });
    let home = Home::new();
    let extra = format!(
        "bootstrap.bundle_url = \"https://localhost:{port}/bundle\"\nbootstrap.bundle_format = \"spiffe\""
    );
    match home.try_start(&server, &extra).await {
        Ok(agent) => drop(agent),
        Err(error) => panic!("{}", bonafide_runtime::tasks::chain(&error)),
    }
}
