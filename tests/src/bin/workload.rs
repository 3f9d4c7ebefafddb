//! A workload: it gets its SVID from the Workload API and speaks mutual TLS with it, as a server or as a client.
//!
//! It prints one JSON object per event, for the demo and the tests to read. Its streams are watched strictly: an
//! interruption is counted, for a rotation must need none.
//!
//! usage: `workload serve --peer ID` | `workload dial --address A --peer ID [--period-ms N] [--seconds N]
//! [--audience A]`

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bonafide_identity::{SpiffeId, Timestamp, TrustDomain};
use bonafide_pki::tls::{self, ClientAuth, PeerCheck, Svid, SvidHolder, TrustStore};
use bonafide_pki::{PrivateKey, TrustRoots, inspect, split_certificates};
use bonafide_proto::workload as api;
use bonafide_proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// How long one handshake with its echo may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), Error> {
    let mut arguments = std::env::args().skip(1);
    let mode = arguments.next().ok_or("usage: workload serve|dial --peer ID …")?;
    let mut options = HashMap::new();
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{name} needs a value"))?;
        options.insert(name, value);
    }
    let option = |name: &str| options.get(name).map(String::as_str);
    let peer = SpiffeId::parse(option("--peer").ok_or("--peer is missing")?)?;
    let identity = Identity::connect().await?;
    match mode.as_str() {
        "serve" => serve(identity, peer).await,
        "dial" => {
            let address = option("--address").ok_or("--address is missing")?.parse()?;
            let period = Duration::from_millis(option("--period-ms").unwrap_or("200").parse()?);
            let length = Duration::from_secs(option("--seconds").unwrap_or("3600").parse()?);
            dial(identity, peer, address, period, length, option("--audience")).await
        }
        other => Err(format!("no such mode: {other}").into()),
    }
}

fn print(event: &serde_json::Value) {
    println!("{event}");
}

fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_unix_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// The SVID in use, kept fresh by an open stream.
struct Identity {
    channel: Channel,
    svid: SvidHolder,
    trust: TrustStore,
    seen: Arc<Seen>,
}

/// What the stream brought.
#[derive(Default)]
struct Seen {
    serials: Mutex<BTreeSet<String>>,
    authorities: Mutex<BTreeSet<String>>,
    interruptions: AtomicU64,
}

impl Identity {
    async fn connect() -> Result<Self, Error> {
        let endpoint =
            std::env::var("SPIFFE_ENDPOINT_SOCKET").map_err(|_| "SPIFFE_ENDPOINT_SOCKET is not set")?;
        let path =
            PathBuf::from(endpoint.strip_prefix("unix://").ok_or("SPIFFE_ENDPOINT_SOCKET must be unix://…")?);
        let channel = Endpoint::from_static("http://localhost").connect_with_connector_lazy(service_fn(
            move |_: Uri| {
                let path = path.clone();
                async move { UnixStream::connect(path).await.map(TokioIo::new) }
            },
        ));
        let (svid, trust) = (SvidHolder::empty(), TrustStore::empty());
        let identity = Self { channel, svid, trust, seen: Arc::default() };
        let (first, mut ready) = watch::channel(false);
        tokio::spawn(follow(
            identity.channel.clone(),
            identity.svid.clone(),
            identity.trust.clone(),
            Arc::clone(&identity.seen),
            first,
        ));
        timeout(Duration::from_secs(60), ready.wait_for(|ready| *ready))
            .await
            .map_err(|_| "no SVID in a minute")??;
        Ok(identity)
    }
}

/// Keeps the SVID fresh for as long as the process lives.
async fn follow(
    channel: Channel,
    svid: SvidHolder,
    trust: TrustStore,
    seen: Arc<Seen>,
    ready: watch::Sender<bool>,
) {
    loop {
        let why = match stream(&channel, &svid, &trust, &seen, &ready).await {
            Ok(()) => "the stream ended".to_owned(),
            Err(error) => error.to_string(),
        };
        // Before the first SVID the entry may simply not have arrived yet.
        if *ready.borrow() {
            seen.interruptions.fetch_add(1, Ordering::Relaxed);
            print(&json!({ "event": "interrupted", "why": why }));
        }
        sleep(Duration::from_millis(200)).await;
    }
}

async fn stream(
    channel: &Channel,
    svid: &SvidHolder,
    trust: &TrustStore,
    seen: &Seen,
    ready: &watch::Sender<bool>,
) -> Result<(), Error> {
    let mut responses =
        client(channel).fetch_x509svid(with_header(api::X509svidRequest {})).await?.into_inner();
    while let Some(response) = responses.message().await? {
        let first = response.svids.first().ok_or("an empty message")?;
        let id = SpiffeId::parse(&first.spiffe_id)?;
        let chain = split_certificates(&first.x509_svid)?;
        let leaf = inspect(chain.first().ok_or("an empty chain")?)?;
        let mut roots: Vec<(TrustDomain, Vec<Vec<u8>>)> =
            vec![(id.trust_domain().clone(), split_certificates(&first.bundle)?)];
        for (domain, bundle) in &response.federated_bundles {
            roots.push((TrustDomain::parse_lenient(domain)?, split_certificates(bundle)?));
        }
        let count = roots[0].1.len();
        let mut stores = HashMap::new();
        for (domain, certificates) in roots {
            stores.insert(domain, Arc::new(TrustRoots::from_der(certificates.iter().map(Vec::as_slice))?));
        }
        // Trust first: a peer may already use what the new bundle vouches for.
        trust.set(stores);
        svid.set(Svid::new(chain, Arc::new(PrivateKey::from_pkcs8_der(&first.x509_svid_key)?))?);
        let serial = leaf.serial.to_string();
        let authority = leaf.aki.unwrap_or_default();
        let new = seen.serials.lock().is_ok_and(|mut serials| serials.insert(serial.clone()));
        if let Ok(mut authorities) = seen.authorities.lock() {
            authorities.insert(authority.clone());
        }
        print(&json!({
            "event": "svid", "id": first.spiffe_id, "serial": serial, "new": new, "authority": authority,
            "expires_at": leaf.not_after.unix_seconds(), "authorities": count,
        }));
        ready.send_replace(true);
    }
    Ok(())
}

fn client(channel: &Channel) -> SpiffeWorkloadApiClient<Channel> {
    SpiffeWorkloadApiClient::new(channel.clone())
}

/// The security header of the SPIFFE Workload Endpoint.
fn with_header<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.metadata_mut().insert("workload.spiffe.io", MetadataValue::from_static("true"));
    request
}

async fn serve(identity: Identity, peer: SpiffeId) -> Result<(), Error> {
    let config = tls::server_config(
        identity.svid.clone(),
        identity.trust.clone(),
        ClientAuth::RequiredSpiffe,
        Arc::new(now),
    );
    let acceptor = TlsAcceptor::from(config);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    print(&json!({ "event": "listening", "address": listener.local_addr()?.to_string() }));
    loop {
        let (connection, _) = listener.accept().await?;
        let (acceptor, peer) = (acceptor.clone(), peer.clone());
        tokio::spawn(async move {
            let echo = async {
                let mut stream = acceptor.accept(connection).await?;
                let certificates = stream.get_ref().1.peer_certificates().ok_or("no certificate")?;
                let actual = inspect(&certificates[0])?.spiffe_id;
                if actual.as_ref() != Some(&peer) {
                    return Err::<(), Error>(format!("refused {actual:?}").into());
                }
                let mut message = [0; 5];
                stream.read_exact(&mut message).await?;
                stream.write_all(&message).await?;
                stream.shutdown().await?;
                Ok(())
            };
            if let Ok(Err(why)) = timeout(HANDSHAKE, echo).await {
                print(&json!({ "event": "refused", "why": why.to_string() }));
            }
        });
    }
}

async fn dial(
    identity: Identity,
    peer: SpiffeId,
    address: SocketAddr,
    period: Duration,
    length: Duration,
    audience: Option<&str>,
) -> Result<(), Error> {
    // TLS sessions are not resumed: each connection is a full handshake with the certificates of that moment.
    let config = tls::client_config(
        Some(identity.svid.clone()),
        identity.trust.clone(),
        PeerCheck::ServerId(peer),
        Arc::new(now),
    );
    let connector = TlsConnector::from(config);
    let (mut handshakes, mut failed) = (0u64, 0u64);
    let (mut tokens, mut tokens_failed) = (0u64, 0u64);
    let (mut peers, mut keys) = (BTreeSet::new(), BTreeSet::new());
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let end = Instant::now() + length;
    while Instant::now() < end {
        ticks.tick().await;
        match timeout(HANDSHAKE, handshake(&connector, address))
            .await
            .map_err(Error::from)
            .and_then(|done| done)
        {
            Ok(serial) => {
                handshakes += 1;
                peers.insert(serial);
            }
            Err(why) => {
                failed += 1;
                print(&json!({ "event": "failed", "why": why.to_string() }));
            }
        }
        if (handshakes + failed).is_multiple_of(10) {
            print(&json!({ "event": "progress", "handshakes": handshakes, "failed": failed }));
            if let Some(audience) = audience {
                match token(&identity.channel, audience).await {
                    Ok(key) => {
                        tokens += 1;
                        keys.insert(key);
                    }
                    Err(why) => {
                        tokens_failed += 1;
                        print(&json!({ "event": "token failed", "why": why.to_string() }));
                    }
                }
            }
        }
    }
    let count = |set: &Mutex<BTreeSet<String>>| set.lock().map(|set| set.len()).unwrap_or_default();
    print(&json!({
        "event": "summary",
        "handshakes": handshakes,
        "failed": failed,
        "svids": count(&identity.seen.serials),
        "authorities": count(&identity.seen.authorities),
        "peer_svids": peers.len(),
        "tokens": tokens,
        "tokens_failed": tokens_failed,
        "jwt_keys": keys.len(),
        "interruptions": identity.seen.interruptions.load(Ordering::Relaxed),
    }));
    Ok(())
}

/// One connection with a full handshake and an echo; the serial number of the peer's certificate.
async fn handshake(connector: &TlsConnector, address: SocketAddr) -> Result<String, Error> {
    let connection = TcpStream::connect(address).await?;
    let mut stream = connector.connect(tls::server_name(), connection).await?;
    let leaf =
        stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()).ok_or("no certificate")?;
    let serial = inspect(leaf)?.serial.to_string();
    // Under TLS 1.3 a client learns that its certificate was refused only by reading.
    stream.write_all(b"hello").await?;
    let mut reply = [0; 5];
    stream.read_exact(&mut reply).await?;
    Ok(serial)
}

/// Fetches a JWT-SVID and has it validated; the key that signed it.
async fn token(channel: &Channel, audience: &str) -> Result<String, Error> {
    let request = api::JwtsvidRequest { audience: vec![audience.to_owned()], spiffe_id: String::new() };
    let response = client(channel).fetch_jwtsvid(with_header(request)).await?.into_inner();
    let token = response.svids.into_iter().next().ok_or("no token")?.svid;
    let request = api::ValidateJwtsvidRequest { audience: audience.to_owned(), svid: token.clone() };
    client(channel).validate_jwtsvid(with_header(request)).await?;
    let header = token.split('.').next().ok_or("no header")?;
    let header: serde_json::Value =
        serde_json::from_slice(&data_encoding::BASE64URL_NOPAD.decode(header.as_bytes())?)?;
    Ok(header["kid"].as_str().ok_or("no kid")?.to_owned())
}
