//! Our endpoint, as any HTTP client sees it.

use std::time::Instant;

use bonafide_pki::TrustRoots;
use bonafide_pki::tls::{TrustStore, https_spiffe_client, server_name};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::*;

/// A response.
pub(super) struct Seen {
    pub(super) status: u16,
    pub(super) head: String,
    pub(super) body: String,
}

impl Seen {
    fn field(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }
}

async fn ask(server: &TestServer, name: &str, request: &str) -> Seen {
    let own = bundle(server, name).unwrap();
    let roots = TrustRoots::from_der(own.x509_authorities.iter().map(|root| &root.certificate[..])).unwrap();
    let trust = TrustStore::empty();
    trust.set_trust_domain(&td(name), &Arc::new(roots));
    let tls = https_spiffe_client(trust, td(name).server_id(), Arc::new(server.clock.as_fn()));
    let tcp = TcpStream::connect(endpoint(server)).await.unwrap();
    let mut stream = TlsConnector::from(tls).connect(server_name(), tcp).await.unwrap();
    stream.write_all(format!("{request}\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).await.unwrap();
    let mut text = Vec::new();
    let _ = stream.read_to_end(&mut text).await;
    let text = String::from_utf8(text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Seen { status, head: head.to_owned(), body: body.to_owned() }
}

#[tokio::test]
async fn the_document_and_nothing_else() {
    let server = server_of("a.org", &format!("{ENDPOINT}refresh_hint = \"2m\"\n")).await;
    let seen = ask(&server, "a.org", "GET / HTTP/1.1").await;
    assert_eq!((seen.status, seen.field("content-type")), (200, Some("application/json")));
    let published = from_spiffe_json(&td("a.org"), seen.body.as_bytes()).unwrap();
    assert_eq!(published.refresh_hint, 120);
    let own = bundle(&server, "a.org").unwrap();
    assert_eq!(published.x509_authorities, own.x509_authorities);
    assert_eq!(published.jwt_authorities.len(), own.jwt_authorities.len());
    let json: serde_json::Value = serde_json::from_str(&seen.body).unwrap();
    let root = &json["keys"][0];
    assert_eq!((root["use"].as_str(), root["x5c"].as_array().map(Vec::len)), (Some("x509-svid"), Some(1)));
    assert_eq!(root["kid"], serde_json::Value::Null);
    assert!(seen.body.starts_with("{\n    \"keys\""), "indented by four");
    for (request, status) in [
        ("POST / HTTP/1.1\r\nContent-Length: 0", 405),
        ("HEAD / HTTP/1.1", 405),
        ("DELETE /x HTTP/1.1", 405),
        ("GET /x HTTP/1.1", 404),
        ("GET /x y HTTP/1.1", 400),
        ("GET /../ HTTP/1.1", 404),
        ("GET /?x=1 HTTP/1.1", 200),
        ("GET / HTTP/1.1\r\nPrefer: wait=30", 200),
        ("nonsense", 400),
    ] {
        assert_eq!(ask(&server, "a.org", request).await.status, status, "{request}");
    }
    let long = format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(20_000));
    assert_eq!(ask(&server, "a.org", &long).await.status, 431);
}

#[tokio::test]
async fn a_conditional_request_is_held_until_something_changes() {
    let server = server_of("a.org", ENDPOINT).await;
    let first = ask(&server, "a.org", "GET / HTTP/1.1").await;
    let tag = first.field("etag").unwrap().to_owned();
    assert_eq!(first.field("preference-applied"), None);

    let same = ask(&server, "a.org", &format!("GET / HTTP/1.1\r\nIf-None-Match: {tag}")).await;
    assert_eq!((same.status, same.field("etag"), same.body.as_str()), (304, Some(&tag[..]), ""));
    let began = Instant::now();
    let held =
        ask(&server, "a.org", &format!("GET / HTTP/1.1\r\nIf-None-Match: {tag}\r\nPrefer: wait=1")).await;
    assert_eq!((held.status, held.field("preference-applied")), (304, Some("wait=1")));
    assert!(began.elapsed() >= Duration::from_secs(1));
    let other = ask(&server, "a.org", "GET / HTTP/1.1\r\nIf-None-Match: \"x\"\r\nPrefer: wait=20").await;
    assert_eq!(
        (other.status, other.field("preference-applied")),
        (200, Some("wait=20")),
        "nothing to wait for"
    );

    let certificate = authority(&server, "a.org");
    let request = format!("GET / HTTP/1.1\r\nIf-None-Match: {tag}\r\nPrefer: wait=600");
    let began = Instant::now();
    let (held, ()) = tokio::join!(ask(&server, "a.org", &request), append(&server, certificate.clone()));
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!((held.status, held.field("preference-applied")), (200, Some("wait=30")), "it is bounded");
    assert_ne!(held.field("etag"), Some(&tag[..]));
    let published = from_spiffe_json(&td("a.org"), held.body.as_bytes()).unwrap();
    assert!(published.x509_authorities.iter().any(|root| root.certificate == certificate));

    // Whoever waits is answered when the server stops.
    let tag = held.field("etag").unwrap().to_owned();
    let request = format!("GET / HTTP/1.1\r\nIf-None-Match: {tag}\r\nPrefer: wait=30");
    let began = Instant::now();
    let stop = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        server.server.shutdown().trigger();
    };
    let (held, ()) = tokio::join!(ask(&server, "a.org", &request), stop);
    assert_eq!(held.status, 304);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}
