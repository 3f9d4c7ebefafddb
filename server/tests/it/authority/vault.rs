//! The `vault` driver against a double that answers as Vault's HTTP API is documented.

use std::net::SocketAddr;
use std::sync::Mutex;

use bonafide_pki::tls::provider;
use bonafide_runtime::shutdown::Shutdown;
use bonafide_server::upstream_authority::vault::{Vault, VaultAuth, VaultConfig};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use super::upstream::conforms;
use super::*;

/// What the double does and has seen.
struct Double {
    disk: Disk,
    now: Timestamp,
    /// The token that is good now; each login gives a new one.
    token: Mutex<String>,
    logins: AtomicUsize,
    renewals: AtomicUsize,
    /// Of a token, in seconds.
    lease: u64,
    namespace: Option<&'static str>,
}

impl Double {
    fn new(world: &World, lease: u64) -> Arc<Self> {
        Arc::new(Self {
            disk: UpstreamFiles::intermediate(world).open(world),
            now: world.clock.now(),
            token: Mutex::new("first".to_owned()),
            logins: AtomicUsize::new(0),
            renewals: AtomicUsize::new(0),
            lease,
            namespace: None,
        })
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> (StatusCode, Value) {
        let header =
            |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let refused = |status, why: &str| (status, json!({ "errors": [why] }));
        if header("x-vault-request").as_deref() != Some("true")
            || header("x-vault-namespace").as_deref() != self.namespace
        {
            return refused(StatusCode::BAD_REQUEST, "wrong headers");
        }
        let token = self.token.lock().unwrap().clone();
        let allowed = header("x-vault-token") == Some(token.clone());
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let auth = |token: &str| {
            (
                StatusCode::OK,
                json!({ "auth": { "client_token": token, "lease_duration": self.lease, "renewable": true } }),
            )
        };
        let log_in = |good: bool| {
            if !good {
                return refused(StatusCode::BAD_REQUEST, "invalid credentials");
            }
            let number = self.logins.fetch_add(1, Ordering::SeqCst);
            let fresh = format!("login-{number}");
            self.token.lock().unwrap().clone_from(&fresh);
            auth(&fresh)
        };
        match (method, path.as_str()) {
            (Method::POST, "/v1/auth/approle/login") => {
                log_in(body["role_id"] == "role" && body["secret_id"] == "secret")
            }
            (Method::POST, "/v1/auth/k8s/login") => {
                log_in(body["role"] == "bonafide" && body["jwt"] == "jwt")
            }
            (Method::POST, "/v1/auth/cert/login") => log_in(body["name"] == "bonafide"),
            _ if !allowed => refused(StatusCode::FORBIDDEN, "permission denied"),
            (Method::GET, "/v1/auth/token/lookup-self") => (
                StatusCode::OK,
                json!({ "data": { "ttl": self.lease, "renewable": true, "policies": ["x"] } }),
            ),
            (Method::POST, "/v1/auth/token/renew-self") => {
                self.renewals.fetch_add(1, Ordering::SeqCst);
                auth(&token)
            }
            (Method::POST, "/v1/pki/int/root/sign-intermediate") => {
                assert_eq!(body["use_csr_values"], true);
                assert_eq!(body["uri_sans"], "spiffe://example.org");
                let ttl: u64 = body["ttl"].as_str().unwrap().strip_suffix('s').unwrap().parse().unwrap();
                let csr = pem::decode_all(body["csr"].as_str().unwrap().as_bytes()).unwrap();
                assert_eq!(csr[0].0, "CERTIFICATE REQUEST");
                match self.disk.mint_ca(&csr[0].1, Duration::from_secs(ttl), self.now).await {
                    Ok(ca) => {
                        let text = |der: &Vec<u8>| pem::encode("CERTIFICATE", der);
                        let above: Vec<String> = ca.chain[1..].iter().chain(&ca.roots).map(text).collect();
                        let data = json!({
                            "certificate": text(&ca.chain[0]), "issuing_ca": above[0], "ca_chain": above,
                            "serial_number": "1", "expiration": 1,
                        });
                        (StatusCode::OK, json!({ "lease_id": "", "data": data }))
                    }
                    Err(error) => refused(StatusCode::BAD_REQUEST, &error.to_string()),
                }
            }
            _ => refused(StatusCode::NOT_FOUND, "no handler for route"),
        }
    }

    async fn serve(self: &Arc<Self>, tls: Option<Arc<ServerConfig>>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let double = Arc::clone(self);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (double, tls) = (Arc::clone(&double), tls.clone());
                tokio::spawn(async move {
                    let service = service_fn(move |request| {
                        let double = Arc::clone(&double);
                        async move {
                            let (status, body) = double.answer(request).await;
                            let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
                            *response.status_mut() = status;
                            Ok::<_, std::convert::Infallible>(response)
                        }
                    });
                    let http = hyper::server::conn::http1::Builder::new();
                    match tls {
                        None => drop(http.serve_connection(TokioIo::new(stream), service).await),
                        Some(tls) => {
                            let Ok(stream) = TlsAcceptor::from(tls).accept(stream).await else { return };
                            drop(http.serve_connection(TokioIo::new(stream), service).await);
                        }
                    }
                });
            }
        });
        address
    }
}

fn vault(address: &str, auth: VaultAuth) -> VaultConfig {
    VaultConfig {
        trust_domain: trust_domain(),
        address: address.parse().unwrap(),
        ca_cert_path: None,
        namespace: None,
        pki_mount_point: "pki/int".to_owned(),
        auth,
    }
}

fn file(world: &World, name: &str, text: &str) -> PathBuf {
    let path = world.folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    path
}

#[tokio::test]
async fn the_driver_conforms_with_each_way_to_log_in() {
    let world = World::new();
    let mut double = Double::new(&world, 3600);
    Arc::get_mut(&mut double).unwrap().namespace = Some("team/a");
    let address = format!("http://{}", double.serve(None).await);
    let approle = VaultAuth::AppRole {
        mount_point: "approle".to_owned(),
        role_id: "role".to_owned(),
        secret_id_file: file(&world, "secret-id", "secret\n"),
    };
    let kubernetes = VaultAuth::Kubernetes {
        mount_point: "k8s".to_owned(),
        role: "bonafide".to_owned(),
        token_path: file(&world, "jwt", "jwt"),
    };
    for auth in [VaultAuth::Token { token_file: file(&world, "token", "first\n") }, approle, kubernetes] {
        let config = VaultConfig { namespace: Some("team/a".to_owned()), ..vault(&address, auth) };
        conforms(&Vault::new(config), world.clock.now()).await;
    }
    assert_eq!(double.logins.load(Ordering::SeqCst), 2, "one login for many calls");
}

#[tokio::test]
async fn a_client_certificate_logs_in_over_tls_that_is_verified() {
    let world = World::new();
    let double = Double::new(&world, 3600);
    // TLS libraries read the real clock here.
    let now = bonafide_runtime::clock::Clock::now(&bonafide_runtime::clock::SystemClock);
    let life = |seconds| Duration::from_secs(seconds);
    let authority =
        TestAuthority::new(&trust_domain(), now.saturating_sub(life(60)), now.saturating_add(life(3600)));
    let local = authority.issue_with(&id("/vault"), |params| {
        params.subject_alt_names.push(rcgen::SanType::IpAddress([127, 0, 0, 1].into()));
    });
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(authority.root().to_vec())).unwrap();
    let clients = WebPkiClientVerifier::builder_with_provider(roots.into(), provider()).build().unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(local.pkcs8.clone()));
    let tls = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(clients)
        .with_single_cert(local.chain.iter().cloned().map(CertificateDer::from).collect(), key)
        .unwrap();
    let address = format!("https://{}", double.serve(Some(Arc::new(tls))).await);

    let client = authority.issue(&id("/client"));
    let auth = VaultAuth::Certificate {
        mount_point: "cert".to_owned(),
        role: Some("bonafide".to_owned()),
        client_cert_path: file(&world, "client.pem", &pem::encode("CERTIFICATE", &client.chain[0])),
        client_key_path: file(&world, "client-key.pem", &pem::encode("PRIVATE KEY", &client.pkcs8)),
    };
    let ca = file(&world, "vault-ca.pem", &pem::encode("CERTIFICATE", authority.root()));
    let config = VaultConfig { ca_cert_path: Some(ca.clone()), ..vault(&address, auth) };
    let driver = Vault::new(config.clone());
    conforms(&driver, world.clock.now()).await;

    // Another authority, without a restart: its server is not believed, and no secret is sent to it.
    let stranger =
        TestAuthority::new(&trust_domain(), now.saturating_sub(life(60)), now.saturating_add(life(3600)));
    std::fs::write(&ca, pem::encode("CERTIFICATE", stranger.root())).unwrap();
    let csr = TestAuthority::request(&trust_domain().id()).0;
    let refused = driver.mint_ca(&csr, CA_TTL, world.clock.now()).await.unwrap_err().to_string();
    assert!(refused.contains("certificate"), "{refused}");
}

#[tokio::test]
async fn a_token_is_renewed_and_one_that_is_refused_is_replaced() {
    let world = World::new();
    let double = Double::new(&world, 3);
    let address = format!("http://{}", double.serve(None).await);
    let secret = file(&world, "secret-id", "secret");
    let auth = VaultAuth::AppRole {
        mount_point: "approle".to_owned(),
        role_id: "role".to_owned(),
        secret_id_file: secret.clone(),
    };
    let driver = Arc::new(Vault::new(vault(&address, auth)));
    let (running, shutdown) = (Arc::clone(&driver), Shutdown::new());
    let until = shutdown.clone();
    let task = tokio::spawn(async move { running.run(until).await });
    let csr = TestAuthority::request(&trust_domain().id()).0;
    let sign = async || driver.mint_ca(&csr, CA_TTL, world.clock.now()).await;
    sign().await.unwrap();
    tokio::time::timeout(Duration::from_secs(20), async {
        while double.renewals.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("a renewal");
    sign().await.unwrap();
    assert_eq!(double.logins.load(Ordering::SeqCst), 1);

    // Revoked at Vault: there is a new login, once.
    "revoked".clone_into(&mut double.token.lock().unwrap());
    sign().await.unwrap();
    assert_eq!(double.logins.load(Ordering::SeqCst), 2);

    // A secret that is wrong is said so, in Vault's words and without the secret.
    std::fs::write(&secret, "s3cret-of-another").unwrap();
    "revoked".clone_into(&mut double.token.lock().unwrap());
    let refused = sign().await.unwrap_err().to_string();
    assert!(refused.contains("invalid credentials") && !refused.contains("s3cret"), "{refused}");
    shutdown.trigger();
    task.await.unwrap().unwrap();
}

#[tokio::test]
async fn an_endless_answer_is_cut_off() {
    use tokio::io::AsyncWriteExt as _;
    let world = World::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await?;
                let chunk = [b"10000\r\n".to_vec(), vec![b' '; 0x10000], b"\r\n".to_vec()].concat();
                loop {
                    stream.write_all(&chunk).await?;
                }
                #[allow(unreachable_code, reason = "names the type of the error")]
                Ok::<(), std::io::Error>(())
            });
        }
    });
    let driver = Vault::new(vault(&address, VaultAuth::Token { token_file: file(&world, "token", "t") }));
    let csr = TestAuthority::request(&trust_domain().id()).0;
    let refused = driver.mint_ca(&csr, CA_TTL, world.clock.now()).await.unwrap_err().to_string();
    assert!(refused.contains("limit"), "{refused}");
}
