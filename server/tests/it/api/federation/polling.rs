//! Two servers; then one server and peers that do not behave.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use super::super::harness::{assert_refused, eventually};
use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_arrives_within_five_seconds_in_both_directions() {
    let (a, b) = (server_of("a.org", ENDPOINT).await, server_of("b.org", ENDPOINT).await);
    create_one(&b, with_peer(&a, "a.org")).await;
    create_one(&a, with_peer(&b, "b.org")).await;
    for (from, to, name) in [(&a, &b, "a.org"), (&b, &a, "b.org")] {
        for round in 0..2 {
            let certificate = authority(from, name);
            append(from, certificate.clone()).await;
            let began = Instant::now();
            eventually("the peer's new authority", async || has(bundle(to, name).as_ref(), &certificate))
                .await;
            assert!(began.elapsed() < Duration::from_secs(5), "{name} {round}: {:?}", began.elapsed());
        }
        let published = bundle(from, name).unwrap();
        let fetched = bundle(to, name).unwrap();
        assert_eq!(fetched.sequence_number, published.sequence_number);
        assert_eq!(
            (fetched.jwt_authorities.len(), fetched.refresh_hint),
            (published.jwt_authorities.len(), 300)
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_endpoint_must_be_who_it_should_be() {
    let (a, b) = (server_of("a.org", ENDPOINT).await, server_of("b.org", "").await);
    let url = format!("https://{}", endpoint(&a));
    // Without a bundle there is nothing to verify with; the moment there is one, it works.
    create_one(&b, spiffe("a.org", &url, "spiffe://a.org/spire/server")).await;
    let refresh = || pb::RefreshBundleRequest { trust_domain: "a.org".to_owned() };
    let refused = client(&b).await.refresh_bundle(refresh()).await.unwrap_err();
    assert!(refused.message().contains("local copy of bundle not found"), "{refused}");
    let wrong = TestAuthority::new(
        &td("a.org"),
        b.clock.now(),
        b.clock.now().saturating_add(Duration::from_secs(60)),
    );
    let set = |certificate: Vec<u8>| {
        let mut bundle = Bundle::empty(td("a.org"));
        bundle.x509_authorities.push(bonafide_identity::X509Authority { certificate, tainted: false });
        use bonafide_server::store::Bundles as _;
        b.server.context().store.write(move |unit| unit.bundle_put(bundle))
    };
    set(wrong.certificate().to_vec()).await.unwrap();
    let refused = client(&b).await.refresh_bundle(refresh()).await.unwrap_err();
    assert!(refused.message().contains("is not authenticated: certificate is not signed by"), "{refused}");
    let real = bundle(&a, "a.org").unwrap().x509_authorities[0].certificate.clone();
    set(real.clone()).await.unwrap();
    eventually("the whole bundle", async || {
        bundle(&b, "a.org").is_some_and(|found| !found.jwt_authorities.is_empty())
    })
    .await;

    // Another ID of the same trust domain is not good enough.
    let request = pb::BatchUpdateFederationRelationshipRequest {
        federation_relationships: vec![spiffe("a.org", &url, "spiffe://a.org/other")],
        ..Default::default()
    };
    client(&b).await.batch_update_federation_relationship(request).await.unwrap();
    let refused = client(&b).await.refresh_bundle(refresh()).await.unwrap_err();
    assert!(
        refused.message().contains("the peer is spiffe://a.org/spire/server, expected spiffe://a.org/other"),
        "{refused}"
    );
    assert!(
        bundle(&b, "a.org").is_some_and(|kept| !kept.jwt_authorities.is_empty()),
        "the last good one is kept"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bundle_that_was_deleted_or_replaced_comes_again() {
    use bonafide_server::store::Bundles as _;
    let peer = WebPeer::start().await;
    let b = server_of("b.org", &peer.configured()).await;
    let first = peer.publish(&b, 1);
    eventually("the first bundle", async || has(bundle(&b, "w.org").as_ref(), &first)).await;
    b.server.context().store.write(move |unit| unit.bundle_delete(&td("w.org"))).await.unwrap();
    let refresh = pb::RefreshBundleRequest { trust_domain: "w.org".to_owned() };
    client(&b).await.refresh_bundle(refresh).await.unwrap();
    assert!(has(bundle(&b, "w.org").as_ref(), &first));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_own_endpoint_in_the_web_profile() {
    let folder = TempDir::new().unwrap();
    let (certificate, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let a = server_of(
        "a.org",
        &format!(
            "{ENDPOINT}profile = \"https_web\"\ncertificate_path = \"{}\"\nkey_path = \"{}\"\n",
            certificate.display(),
            key.display()
        ),
    )
    .await;
    let b = server_of("b.org", &format!("[federation]\nweb_ca_path = \"{}\"\n", certificate.display())).await;
    create_one(&b, web("a.org", &format!("https://localhost:{}/", endpoint(&a).port()))).await;
    let certificate = authority(&a, "a.org");
    eventually("a bundle", async || bundle(&b, "a.org").is_some()).await;
    append(&a, certificate.clone()).await;
    eventually("the change", async || has(bundle(&b, "a.org").as_ref(), &certificate)).await;

    let config = &a.server.context().config;
    assert!(bonafide_server::federation::check(&config.federation).is_empty());
    let mut broken = config.federation.clone();
    broken.web_ca_path = Some(key.clone());
    assert_eq!(bonafide_server::federation::check(&broken).len(), 1);

    // What is deleted here comes again, although the peer has nothing new.
    use bonafide_server::store::Bundles as _;
    b.server.context().store.write(move |unit| unit.bundle_delete(&td("a.org"))).await.unwrap();
    eventually("the bundle again", async || has(bundle(&b, "a.org").as_ref(), &certificate)).await;

    // The same endpoint under a name that its certificate does not have, and with authorities that do not know it.
    let refresh = |name: &str| pb::RefreshBundleRequest { trust_domain: name.to_owned() };
    create_one(&b, web("c.org", &format!("https://127.0.0.2:{}/", endpoint(&a).port()))).await;
    assert_eq!(
        client(&b).await.refresh_bundle(refresh("c.org")).await.unwrap_err().code(),
        tonic::Code::Internal
    );
    let peer = WebPeer::start().await;
    create_one(&b, web("w.org", &peer.url)).await;
    let refused = client(&b).await.refresh_bundle(refresh("w.org")).await.unwrap_err();
    assert!(refused.message().contains("is not authenticated"), "{refused}");
    // And an SVID is no web certificate.
    let spiffe_peer = server_of("s.org", ENDPOINT).await;
    create_one(&b, web("s.org", &format!("https://{}", endpoint(&spiffe_peer)))).await;
    let refused = client(&b).await.refresh_bundle(refresh("s.org")).await.unwrap_err();
    assert!(refused.message().contains("is not authenticated"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_a_peer_sends_costs_the_last_good_bundle() {
    // Only what happens from now on is counted.
    let metrics = bonafide_runtime::telemetry::metrics();
    let peer = WebPeer::start().await;
    let b = server_of("b.org", &peer.configured()).await;
    let first = peer.publish(&b, 7);
    let mut client = client(&b).await;
    let mut refresh = async || {
        let request = pb::RefreshBundleRequest { trust_domain: "w.org".to_owned() };
        client.refresh_bundle(request).await.map(drop)
    };
    refresh().await.unwrap();
    assert!(has(bundle(&b, "w.org").as_ref(), &first));
    let ok = |body: &str| format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let chunk = format!("40000\r\n{}\r\n", "x".repeat(0x40000));
    for (response, says) in [
        (
            "HTTP/1.1 302 Found\r\nLocation: https://localhost/\r\nContent-Length: 0\r\n\r\n".to_owned(),
            "unexpected status 302 fetching bundle: redirects are not followed",
        ),
        ("HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n".to_owned(), "unexpected status 500"),
        ("HTTP/1.1 304 No\r\n\r\n".to_owned(), "unexpected status 304"),
        ("HTTP/1.1 204 No\r\n\r\n".to_owned(), "unexpected status 204"),
        ("SSH-2.0\r\n".to_owned(), "the answer cannot be read"),
        (ok("no json"), "is not a SPIFFE bundle document"),
        (ok("{\"keys\":[{\"use\":\"x509-svid\",\"kty\":\"EC\",\"x5c\":[\"AAAA\"]}]}"), "bundle key 0"),
        (ok(&format!("{{\"keys\":[{}{{}}]}}", "{},".repeat(1024))), "has more than 1024 keys"),
        (ok("{\"keys\":[{\"use\":\"jwt-svid\",\"kty\":\"EC\"}]}"), "must have a kid"),
        (format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 5 << 20), "has more than 4194304 bytes"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc".to_owned(), "cannot be read"),
        (format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(200_000)), "the answer cannot be read"),
    ] {
        peer.answer(response.clone().into_bytes());
        let refused = refresh().await.unwrap_err();
        assert!(refused.message().contains(says), "{refused}, not {says}");
        assert!(has(bundle(&b, "w.org").as_ref(), &first));
    }
    // More than fits, in chunks that never say how much it will be.
    let chunked = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{}", chunk.repeat(17));
    peer.answer(chunked.into_bytes());
    let refused = refresh().await.unwrap_err();
    assert!(refused.message().contains("has more than 4194304 bytes"), "{refused}");

    // An older number with the same content changes nothing; with other content it is a peer that was set up anew.
    let published = bundle(&b, "w.org").unwrap();
    peer.publish_bundle(&Bundle { sequence_number: 3, ..Bundle::clone(&published) });
    refresh().await.unwrap();
    assert_eq!(bundle(&b, "w.org").unwrap().sequence_number, 7);
    let second = peer.publish(&b, 2);
    refresh().await.unwrap();
    let now = bundle(&b, "w.org").unwrap();
    assert_eq!((now.sequence_number, now.x509_authorities.len()), (2, 1));
    assert!(has(Some(&now), &second));
    let shown = metrics.render();
    for result in ["changed", "unchanged", "failed"] {
        let name = format!(
            "bonafide_server_federation_fetches_total{{trust_domain=\"w.org\",result=\"{result}\"}} "
        );
        assert!(shown.contains(&name), "{name} is missing in {shown}");
    }
    assert!(
        shown.contains("bonafide_server_federation_last_success_seconds{trust_domain=\"w.org\"} 1767"),
        "{shown}"
    );
    // A trust domain may revoke everything it has.
    peer.answer(ok("{\"keys\":[]}").into_bytes());
    refresh().await.unwrap();
    assert!(bundle(&b, "w.org").unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_without_long_polling_is_asked_at_the_pace_of_its_hint() {
    let peer = WebPeer::start().await;
    let b = server_of("b.org", &peer.configured()).await;
    let first = peer.publish(&b, 1);
    eventually("the bundle", async || has(bundle(&b, "w.org").as_ref(), &first)).await;
    let asked = peer.asked();
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(peer.asked(), asked, "the next request is due in a minute");
    let requests = peer.requests.lock().unwrap().join("");
    assert!(requests.contains("cache-control: no-cache"), "{requests}");
    assert!(requests.contains("prefer: wait=20") && requests.contains("GET /bundle HTTP/1.1"), "{requests}");
    assert!(!requests.to_lowercase().contains("authorization"));
    // The relationship goes, and with it what was fetched for it.
    assert_refused(
        client(&b).await.refresh_bundle(pb::RefreshBundleRequest { trust_domain: "v.org".into() }).await,
        tonic::Code::NotFound,
        "no relationship with trust domain \"v.org\"",
    );
}

/// A peer on the web that answers what it is told to.
struct WebPeer {
    url: String,
    answer: Arc<Mutex<Vec<u8>>>,
    requests: Arc<Mutex<Vec<String>>>,
    asked: Arc<AtomicUsize>,
    folder: TempDir,
}

impl WebPeer {
    async fn start() -> Self {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let folder = TempDir::new().unwrap();
        std::fs::write(folder.path().join("ca.pem"), made.cert.pem()).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let tls = ServerConfig::builder_with_provider(bonafide_pki::tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://localhost:{}/bundle", listener.local_addr().unwrap().port());
        let answer: Arc<Mutex<Vec<u8>>> = Arc::default();
        let requests: Arc<Mutex<Vec<String>>> = Arc::default();
        let asked: Arc<AtomicUsize> = Arc::default();
        let shared = (answer.clone(), requests.clone(), asked.clone());
        tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { return };
                let (acceptor, (answer, requests, asked)) = (acceptor.clone(), shared.clone());
                tokio::spawn(async move {
                    let Ok(mut stream) = acceptor.accept(stream).await else { return };
                    let mut request = vec![0; 4096];
                    let length = stream.read(&mut request).await.unwrap_or(0);
                    requests.lock().unwrap().push(String::from_utf8_lossy(&request[..length]).into_owned());
                    asked.fetch_add(1, Ordering::SeqCst);
                    let answer = answer.lock().unwrap().clone();
                    let _ = stream.write_all(&answer).await;
                    let _ = stream.shutdown().await;
                });
            }
        });
        Self { url, answer, requests, asked, folder }
    }

    /// A server's configuration that knows this peer as w.org.
    fn configured(&self) -> String {
        format!(
            "[federation]\nweb_ca_path = \"{}/ca.pem\"\n[federation.federates_with.\"w.org\"]\nbundle_endpoint_url = \"{}\"\nprofile = \"https_web\"\n",
            self.folder.path().display(),
            self.url
        )
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    fn answer(&self, bytes: Vec<u8>) {
        *self.answer.lock().unwrap() = bytes;
    }

    fn publish_bundle(&self, bundle: &Bundle) {
        let body = to_spiffe_json(bundle);
        self.answer(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes());
    }

    /// Publishes a new authority under this sequence number and gives it.
    fn publish(&self, server: &TestServer, sequence_number: u64) -> Vec<u8> {
        let certificate = authority(server, "w.org");
        let mut bundle = Bundle { sequence_number, ..Bundle::empty(td("w.org")) };
        bundle
            .x509_authorities
            .push(bonafide_identity::X509Authority { certificate: certificate.clone(), tainted: false });
        self.publish_bundle(&bundle);
        certificate
    }
}
