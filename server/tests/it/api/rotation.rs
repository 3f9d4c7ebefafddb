//! Everything rotates at once, by the server's own tasks, while a client keeps shaking hands.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bonafide_identity::AuthorityKind;
use bonafide_pki::tls::{PeerCheck, Svid, SvidHolder, TrustStore, client_config, server_name};
use bonafide_pki::{KeyType, PrivateKey, Signer, TrustRoots, inspect};
use bonafide_runtime::clock::{Clock as _, SystemClock};
use bonafide_testkit::ManualClock;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::harness::{TestServer, id, trust_domain};

/// Lives of six seconds: an authority is prepared every three seconds and signs for three.
const SHORT: &str = "[authority]\nca_ttl = \"6s\"\ndefault_x509_svid_ttl = \"3s\"";
/// How old what the client knows may be. Counted in time and not in handshakes: on a busy machine a few of them may take
/// longer than an SVID lives.
const FRESH: Duration = Duration::from_millis(300);

/// How an HTTP/2 client begins: the preface and empty settings (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_handshake_fails_while_authorities_rotate_every_three_seconds() {
    let clock = ManualClock::at(SystemClock.now());
    let server = TestServer::start_in(TempDir::new().unwrap(), clock.clone(), SHORT).await;
    let stop = Arc::new(AtomicBool::new(false));
    let ticking = tokio::spawn({
        let (clock, stop) = (clock.clone(), Arc::clone(&stop));
        async move {
            while !stop.load(Ordering::Relaxed) {
                clock.set(SystemClock.now());
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    });
    let context = server.server.context();
    let key: Arc<PrivateKey> = Arc::new(PrivateKey::generate(KeyType::EcP256).unwrap());
    let (holder, trust) = (SvidHolder::empty(), TrustStore::empty());
    let peer = PeerCheck::ServerId(trust_domain().server_id());
    let tls = client_config(Some(holder.clone()), trust.clone(), peer, Arc::new(|| SystemClock.now()));
    let (mut authorities, mut server_authorities) = (BTreeSet::new(), BTreeSet::new());
    let mut handshakes = 0;
    let end = tokio::time::Instant::now() + Duration::from_secs(18);
    let mut renewed: Option<tokio::time::Instant> = None;
    while tokio::time::Instant::now() < end {
        // As a client does it: a bundle that may be a little old, an SVID that is renewed early in its life.
        if renewed.is_none_or(|at| at.elapsed() > FRESH) {
            renewed = Some(tokio::time::Instant::now());
            let bundle = context.state.bundle(&trust_domain()).unwrap();
            let roots = bundle.x509_authorities.iter().map(|root| root.certificate.as_slice());
            trust.set_trust_domain(&trust_domain(), &Arc::new(TrustRoots::from_der(roots).unwrap()));
            let signed = context.issuing.mint_x509(
                &id("/client"),
                &[],
                &request(&key),
                Duration::from_secs(3),
                clock.now(),
            );
            let signed = signed.unwrap();
            authorities.insert(signed.issued.authority_id);
            holder.set(Svid::new(signed.chain, key.clone()).unwrap());
        }
        let tcp = TcpStream::connect(server.server.address()).await.unwrap();
        let mut stream = TlsConnector::from(tls.clone())
            .connect(server_name(), tcp)
            .await
            .unwrap_or_else(|error| panic!("handshake {handshakes}: {error}"));
        // With TLS 1.3 the server judges the client after the client is content: its verdict comes with what it
        // answers, its HTTP/2 settings.
        stream.write_all(PREFACE).await.unwrap();
        let mut first = [0; 1];
        let read = tokio::time::timeout(Duration::from_secs(10), stream.read_exact(&mut first)).await;
        read.expect("the server sends its settings")
            .unwrap_or_else(|error| panic!("handshake {handshakes}: {error}"));
        let leaf = stream.get_ref().1.peer_certificates().unwrap()[0].to_vec();
        server_authorities.insert(inspect(&leaf).unwrap().aki);
        handshakes += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    stop.store(true, Ordering::Relaxed);
    ticking.await.unwrap();
    assert!(authorities.len() >= 4, "{} X.509 authorities signed in 18 s", authorities.len());
    assert!(
        server_authorities.len() >= 4,
        "{} authorities of the server's own SVID",
        server_authorities.len()
    );
    let bundle = context.state.bundle(&trust_domain()).unwrap();
    assert!(bundle.jwt_authorities.len() >= 4 && bundle.wit_authorities.len() >= 4);
    for kind in AuthorityKind::ALL {
        assert!(context.authorities.slots(kind).active().is_some());
    }
    for task in server.server.tasks() {
        assert_eq!(task.status().failures, 0, "{}: {:?}", task.name(), task.status());
    }
    println!("{handshakes} handshakes");
}

fn request(key: &PrivateKey) -> bonafide_pki::VerifiedCsr {
    let csr = bonafide_pki::agent_csr(key as &dyn Signer, Some(&id("/client"))).unwrap();
    bonafide_pki::VerifiedCsr::parse(&csr).unwrap()
}
