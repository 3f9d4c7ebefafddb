//! Mutual TLS with X.509-SVIDs.
//!
//! Own certificate and trust are looked up at each handshake, so a rotation takes effect on new connections without a
//! restart. Nothing outlives a handshake: no tickets, no resumption, because a resumed session would not be verified
//! against the present bundle. The provider is always given explicitly; rustls panics when it has to guess.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};
use bonafide_identity::{SpiffeId, Timestamp, TrustDomain};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SigningKey};
use rustls::time_provider::TimeProvider;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, OtherError, RootCertStore,
    ServerConfig, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::crypto;
use crate::key::{KeyError, SignatureAlgorithm, Signer};
use crate::x509::verify::{leaf_id, verify_svid};
use crate::x509::{TrustRoots, VerifyError, X509Error, inspect};

/// Tells the time at a handshake.
pub type Now = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// The TLS provider of the cryptographic backend. Install it as the process default first thing in `main`, for
/// libraries that ask for one.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(crypto::tls_provider())
}

/// A certificate chain with its key, ready for handshakes.
pub struct Svid {
    certified: Arc<CertifiedKey>,
    key: Arc<dyn Signer>,
}

impl Svid {
    /// Pairs a chain (leaf first) with its key.
    ///
    /// # Errors
    /// [`KeyError::Malformed`] when the chain is empty or its leaf belongs to another key.
    pub fn new(chain: Vec<Vec<u8>>, key: Arc<dyn Signer>) -> Result<Self, KeyError> {
        let leaf = chain.first().ok_or(KeyError::Malformed("the certificate chain is empty"))?;
        let info = inspect(leaf).map_err(|_| KeyError::Malformed("the certificate cannot be read"))?;
        if info.public_key.as_ref() != Some(key.public_key()) {
            return Err(KeyError::Malformed("the certificate belongs to another key"));
        }
        let chain = chain.into_iter().map(CertificateDer::from).collect();
        let certified = Arc::new(CertifiedKey::new(chain, Arc::new(HandshakeKey(key.clone()))));
        Ok(Self { certified, key })
    }

    /// The chain as DER, leaf first.
    pub fn chain(&self) -> impl Iterator<Item = &[u8]> {
        self.certified.cert.iter().map(AsRef::as_ref)
    }

    /// The key.
    pub fn key(&self) -> &Arc<dyn Signer> {
        &self.key
    }
}

impl fmt::Debug for Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Svid({:?})", self.key.public_key())
    }
}

/// The SVID that is presented, replaceable at any time. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct SvidHolder {
    current: Arc<ArcSwapOption<Svid>>,
}

impl SvidHolder {
    /// Without an SVID: servers fail handshakes, clients present nothing.
    pub fn empty() -> Self {
        Self::default()
    }

    /// With an SVID.
    pub fn new(svid: Svid) -> Self {
        let holder = Self::default();
        holder.set(svid);
        holder
    }

    /// Replaces the SVID for all later handshakes.
    pub fn set(&self, svid: Svid) {
        self.current.store(Some(Arc::new(svid)));
    }

    /// Presents nothing from now on.
    pub fn clear(&self) {
        self.current.store(None);
    }

    /// The SVID, if there is one.
    pub fn current(&self) -> Option<Arc<Svid>> {
        self.current.load_full()
    }

    fn certified(&self) -> Option<Arc<CertifiedKey>> {
        self.current.load().as_ref().map(|svid| svid.certified.clone())
    }
}

/// The trust roots of each known trust domain, replaceable at any time. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct TrustStore {
    roots: Arc<ArcSwap<HashMap<TrustDomain, Arc<TrustRoots>>>>,
}

impl TrustStore {
    /// Trusts nobody.
    pub fn empty() -> Self {
        Self::default()
    }

    /// Trusts these.
    pub fn new(roots: HashMap<TrustDomain, Arc<TrustRoots>>) -> Self {
        let store = Self::default();
        store.set(roots);
        store
    }

    /// Replaces all roots for later handshakes.
    pub fn set(&self, roots: HashMap<TrustDomain, Arc<TrustRoots>>) {
        self.roots.store(Arc::new(roots));
    }

    /// Replaces the roots of one trust domain.
    pub fn set_trust_domain(&self, trust_domain: &TrustDomain, roots: &Arc<TrustRoots>) {
        self.roots.rcu(|current| {
            let mut next = HashMap::clone(current);
            next.insert(trust_domain.clone(), roots.clone());
            next
        });
    }

    /// The roots of a trust domain.
    pub fn roots(&self, trust_domain: &TrustDomain) -> Option<Arc<TrustRoots>> {
        self.roots.load().get(trust_domain).cloned()
    }

    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<SpiffeId, VerifyError> {
        // UnixTime counts from 1970 in whole seconds; beyond i64 is beyond any certificate.
        let now = Timestamp::from_unix_seconds(i64::try_from(now.as_secs()).unwrap_or(i64::MAX / 1000));
        verify_svid(leaf, intermediates, &|trust_domain| self.roots(trust_domain), now)
    }
}

/// What a server asks of its clients' certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// No certificate is asked for.
    None,
    /// A certificate is asked for; when presented it must be an X.509-SVID of a known trust domain.
    OptionalSpiffe,
    /// An X.509-SVID of a known trust domain must be presented.
    RequiredSpiffe,
}

/// Which peers are accepted, once their chain is verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerCheck {
    /// This SPIFFE ID and no other.
    ServerId(SpiffeId),
    /// One of these SPIFFE IDs.
    AnyOf(Vec<SpiffeId>),
    /// Any SPIFFE ID of this trust domain.
    Member(TrustDomain),
}

impl PeerCheck {
    fn check(&self, id: &SpiffeId) -> Result<(), PeerError> {
        let (accepted, expected) = match self {
            Self::ServerId(expected) => (id == expected, expected.to_string()),
            Self::AnyOf(list) => {
                let list_text: Vec<String> = list.iter().map(ToString::to_string).collect();
                (list.contains(id), format!("one of {}", list_text.join(", ")))
            }
            Self::Member(trust_domain) => {
                (id.trust_domain() == trust_domain, format!("a member of trust domain {trust_domain}"))
            }
        };
        if accepted { Ok(()) } else { Err(PeerError::Unexpected { presented: id.clone(), expected }) }
    }
}

/// Why a peer is refused in a handshake. [`refusal`] finds it in an error of the TLS library.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PeerError {
    /// Its certificate is not an acceptable X.509-SVID.
    #[error(transparent)]
    Certificate(#[from] VerifyError),
    /// It is somebody else.
    #[error("the peer is {presented}, expected {expected}")]
    Unexpected {
        /// Who it is.
        presented: SpiffeId,
        /// Who was expected.
        expected: String,
    },
}

/// The reason of ours in an error of the TLS library, or in an I/O error around one: without it, the text is about
/// the library's types.
pub fn refusal<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a PeerError> {
    if let Some(rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(inner)))) =
        error.downcast_ref()
    {
        return inner.downcast_ref::<Refusal>().map(|refusal| &refusal.0);
    }
    let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    match inner {
        Some(inner) => refusal(inner),
        None => refusal(error.source()?),
    }
}

/// Carries a [`PeerError`] through the TLS library, which prints the inner error of a refused certificate with
/// `Debug` only.
struct Refusal(PeerError);

impl fmt::Debug for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl std::error::Error for Refusal {}

impl From<PeerError> for rustls::Error {
    fn from(error: PeerError) -> Self {
        Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(Refusal(error)))))
    }
}

/// A server's TLS: presents the held SVID for any server name and none, speaks HTTP/2 only.
///
/// # Panics
/// Never: the backend's provider supports the protocol versions that are asked for.
pub fn server_config(
    svid: SvidHolder,
    trust: TrustStore,
    clients: ClientAuth,
    now: Now,
) -> Arc<ServerConfig> {
    match clients {
        ClientAuth::None => server(svid, None, now),
        ClientAuth::OptionalSpiffe | ClientAuth::RequiredSpiffe => {
            let mandatory = clients == ClientAuth::RequiredSpiffe;
            server(svid, Some(SpiffeVerifier::new(trust, mandatory, None)), now)
        }
    }
}

/// As [`server_config`], for a server that has certain clients only: a certificate is required, and whoever shows
/// another's is refused in the handshake.
///
/// # Panics
/// Never: the backend's provider supports the protocol versions that are asked for.
pub fn server_config_for(
    svid: SvidHolder,
    trust: TrustStore,
    clients: PeerCheck,
    now: Now,
) -> Arc<ServerConfig> {
    server(svid, Some(SpiffeVerifier::new(trust, true, Some(clients))), now)
}

fn server(svid: SvidHolder, clients: Option<SpiffeVerifier>, now: Now) -> Arc<ServerConfig> {
    let builder = ServerConfig::builder_with_details(provider(), Arc::new(InjectedTime(now)))
        .with_safe_default_protocol_versions()
        .expect("the provider supports TLS 1.2 and 1.3");
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(verifier) => builder.with_client_cert_verifier(Arc::new(verifier)),
    };
    let mut config = builder.with_cert_resolver(Arc::new(Presents(svid)));
    config.alpn_protocols = vec![HTTP2.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Arc::new(config)
}

/// A client's TLS: presents the held SVID when the server asks, verifies the server's chain and SPIFFE ID.
///
/// # Panics
/// Never: the backend's provider supports the protocol versions that are asked for.
pub fn client_config(
    identity: Option<SvidHolder>,
    trust: TrustStore,
    servers: PeerCheck,
    now: Now,
) -> Arc<ClientConfig> {
    client(identity, Arc::new(SpiffeVerifier::new(trust, true, Some(servers))), now)
}

/// A client's TLS for the insecure bootstrap: the server's chain is **not** verified, only that it says to be
/// `expected` and holds the key of the certificate that it shows. The bundle that comes back must not be trusted more
/// than the network.
///
/// # Panics
/// Never: the backend's provider supports the protocol versions that are asked for.
pub fn insecure_client_config(expected: SpiffeId, now: Now) -> Arc<ClientConfig> {
    client(None, Arc::new(UnverifiedServer { expected, algorithms: algorithms() }), now)
}

/// A client's TLS for servers of the web: verified by host name against these roots (PEM), HTTP/1.1.
///
/// # Errors
/// There is no certificate in the text that could be a root.
///
/// # Panics
/// Never: the backend's provider supports the protocol versions that are asked for.
pub fn web_client_config(roots: &[u8]) -> Result<Arc<ClientConfig>, X509Error> {
    let malformed = |text: &str| X509Error::Malformed(text.to_owned());
    let blocks = crate::pem::decode_all(roots).map_err(|error| malformed(&error.to_string()))?;
    let mut store = RootCertStore::empty();
    let certificates = blocks.into_iter().filter(|(label, _)| label == "CERTIFICATE");
    // Systems have roots among others that nobody can use.
    let (usable, _) = store.add_parsable_certificates(certificates.map(|(_, der)| der.into()));
    if usable == 0 {
        return Err(malformed("there is no certificate of an authority"));
    }
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("the provider supports TLS 1.2 and 1.3")
        .with_root_certificates(store)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// How far a server of the web is verified by a client that has reasons of its own.
#[derive(Clone, Copy, Debug)]
pub enum WebServer<'a> {
    /// By its host name and one of these authorities (PEM).
    Named(&'a [u8]),
    /// By one of these authorities (PEM), whatever names its certificate has: for a server that is dialled at an address of
    /// the machine itself.
    Local(&'a [u8]),
    /// Not at all: whoever can stand between is believed.
    Anybody,
}

/// As [`web_client_config`], with a choice of how far the server is verified, and with a certificate (PEM of the chain and of the
/// key) for a server that asks for one.
///
/// # Errors
/// There is no authority, or certificate and key cannot be used.
///
/// # Panics
/// Never: the backend's provider supports the protocol versions that are asked for.
pub fn web_client_config_with(
    server: WebServer<'_>,
    identity: Option<(&[u8], &[u8])>,
) -> Result<Arc<ClientConfig>, X509Error> {
    let malformed = |text: String| X509Error::Malformed(text);
    let certificates = |text: &[u8]| -> Result<Vec<CertificateDer<'static>>, X509Error> {
        let blocks = crate::pem::decode_all(text).map_err(|error| malformed(error.to_string()))?;
        let certificates = blocks.into_iter().filter(|(label, _)| label == "CERTIFICATE");
        Ok(certificates.map(|(_, der)| der.into()).collect())
    };
    let authorities = |text: &[u8]| {
        let mut store = RootCertStore::empty();
        let (usable, _) = store.add_parsable_certificates(certificates(text)?);
        if usable == 0 {
            return Err(malformed("there is no certificate of an authority".to_owned()));
        }
        Ok(store)
    };
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("the provider supports TLS 1.2 and 1.3");
    let builder = match server {
        WebServer::Named(text) => builder.with_root_certificates(authorities(text)?),
        WebServer::Local(text) => {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(UnnamedServer {
                roots: Some(authorities(text)?),
                algorithms: algorithms(),
            }))
        }
        WebServer::Anybody => builder.dangerous().with_custom_certificate_verifier(Arc::new(UnnamedServer {
            roots: None,
            algorithms: algorithms(),
        })),
    };
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let chain: Vec<Vec<u8>> = certificates(chain)?.into_iter().map(|der| der.to_vec()).collect();
            let key = crate::key::PrivateKey::from_pem(key).map_err(|error| malformed(error.to_string()))?;
            let held = Svid::new(chain, Arc::new(key)).map_err(|error| malformed(error.to_string()))?;
            builder.with_client_cert_resolver(Arc::new(Presents(SvidHolder::new(held))))
        }
    };
    config.alpn_protocols = vec![HTTP1.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// The name to dial with: servers present their SVID for any name, and are checked by SPIFFE ID.
///
/// # Panics
/// Never.
pub fn server_name() -> ServerName<'static> {
    ServerName::try_from("bonafide-server").expect("it is a DNS name")
}

fn client(
    identity: Option<SvidHolder>,
    verifier: Arc<dyn ServerCertVerifier>,
    now: Now,
) -> Arc<ClientConfig> {
    let builder = ClientConfig::builder_with_details(provider(), Arc::new(InjectedTime(now)))
        .with_safe_default_protocol_versions()
        .expect("the provider supports TLS 1.2 and 1.3")
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match identity {
        Some(svid) => builder.with_client_cert_resolver(Arc::new(Presents(svid))),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![HTTP2.to_vec()];
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

/// Authorities that vouch for the names of web servers (Web PKI).
#[derive(Clone, Debug)]
pub struct WebRoots {
    roots: Arc<RootCertStore>,
}

impl WebRoots {
    /// Takes DER certificates. With `lenient`, those that cannot be used are left out: a system's store may hold some
    /// that nobody has looked at for years.
    ///
    /// # Errors
    /// [`X509Error::Malformed`] for the first that cannot be used, unless `lenient`; or when none is left.
    pub fn from_der(
        certificates: impl IntoIterator<Item = Vec<u8>>,
        lenient: bool,
    ) -> Result<Self, X509Error> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates {
            match roots.add(CertificateDer::from(certificate)) {
                Err(error) if !lenient => return Err(X509Error::Malformed(error.to_string())),
                _ => {}
            }
        }
        if roots.is_empty() {
            return Err(X509Error::Malformed("there is no usable authority".to_owned()));
        }
        Ok(Self { roots: Arc::new(roots) })
    }
}

/// A client's TLS for HTTPS (HTTP/1.1) to a server that is authenticated as on the web: by its host name and one of
/// `roots` (SPIFFE Federation, section 5.2.1).
///
/// # Panics
/// Never: the backend's provider supports the protocol versions that are asked for.
pub fn https_web_client(roots: &WebRoots, now: Now) -> Arc<ClientConfig> {
    let mut config = ClientConfig::builder_with_details(provider(), Arc::new(InjectedTime(now)))
        .with_safe_default_protocol_versions()
        .expect("the provider supports TLS 1.2 and 1.3")
        .with_root_certificates(Arc::clone(&roots.roots))
        .with_no_client_auth();
    config.alpn_protocols = vec![HTTP1.to_vec()];
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

/// A client's TLS for HTTPS (HTTP/1.1) to a server that is authenticated by its X.509-SVID, whatever its host name (SPIFFE
/// Federation, section 5.2.2).
pub fn https_spiffe_client(trust: TrustStore, server: SpiffeId, now: Now) -> Arc<ClientConfig> {
    let mut config = ClientConfig::clone(&client_config(None, trust, PeerCheck::ServerId(server), now));
    config.alpn_protocols = vec![HTTP1.to_vec()];
    Arc::new(config)
}

/// A server's TLS for HTTPS (HTTP/1.1): presents what is held for any server name and none, asks for no certificate.
pub fn https_server(held: SvidHolder, now: Now) -> Arc<ServerConfig> {
    let mut config = ServerConfig::clone(&server_config(held, TrustStore::empty(), ClientAuth::None, now));
    config.alpn_protocols = vec![HTTP1.to_vec()];
    Arc::new(config)
}

/// As [`https_server`], and answers the challenge `tls-alpn-01` of an ACME server with `challenge` (RFC 8737).
pub fn https_server_with_challenge(held: SvidHolder, challenge: SvidHolder, now: Now) -> Arc<ServerConfig> {
    let mut config = ServerConfig::clone(&https_server(held.clone(), now));
    config.cert_resolver = Arc::new(PresentsOrProves { held, challenge });
    config.alpn_protocols.push(ACME_TLS.to_vec());
    Arc::new(config)
}

struct InjectedTime(Now);

impl TimeProvider for InjectedTime {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = u64::try_from((self.0)().unix_seconds()).ok()?;
        Some(UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds)))
    }
}

impl fmt::Debug for InjectedTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InjectedTime")
    }
}

/// Shows the held SVID, whatever the peer's hints.
#[derive(Debug)]
struct Presents(SvidHolder);

impl ResolvesServerCert for Presents {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.certified()
    }
}

impl ResolvesClientCert for Presents {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.certified()
    }

    fn has_certs(&self) -> bool {
        self.0.certified().is_some()
    }
}

/// Shows what is held, and to who speaks the protocol of the challenge, and no other, the answer to it.
#[derive(Debug)]
struct PresentsOrProves {
    held: SvidHolder,
    challenge: SvidHolder,
}

impl ResolvesServerCert for PresentsOrProves {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let mut protocols = hello.alpn().into_iter().flatten();
        match (protocols.next(), protocols.next()) {
            (Some(ACME_TLS), None) => self.challenge.certified(),
            _ => self.held.certified(),
        }
    }
}

/// A signer in the form that the TLS library asks for.
struct HandshakeKey(Arc<dyn Signer>);

impl HandshakeKey {
    fn schemes(&self) -> &'static [(SignatureScheme, SignatureAlgorithm)] {
        use SignatureAlgorithm as A;
        match self.0.key_type().signature_algorithm() {
            A::EcdsaP256Sha256 => &[(SignatureScheme::ECDSA_NISTP256_SHA256, A::EcdsaP256Sha256)],
            A::EcdsaP384Sha384 => &[(SignatureScheme::ECDSA_NISTP384_SHA384, A::EcdsaP384Sha384)],
            A::RsaPkcs1Sha256 | A::RsaPssSha256 => &[
                (SignatureScheme::RSA_PSS_SHA256, A::RsaPssSha256),
                (SignatureScheme::RSA_PKCS1_SHA256, A::RsaPkcs1Sha256),
            ],
        }
    }
}

impl SigningKey for HandshakeKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn rustls::sign::Signer>> {
        let (scheme, algorithm) = self.schemes().iter().find(|(scheme, _)| offered.contains(scheme))?;
        Some(Box::new(HandshakeSigner { key: self.0.clone(), scheme: *scheme, algorithm: *algorithm }))
    }

    fn algorithm(&self) -> rustls::SignatureAlgorithm {
        match self.0.key_type().signature_algorithm() {
            SignatureAlgorithm::EcdsaP256Sha256 | SignatureAlgorithm::EcdsaP384Sha384 => {
                rustls::SignatureAlgorithm::ECDSA
            }
            SignatureAlgorithm::RsaPkcs1Sha256 | SignatureAlgorithm::RsaPssSha256 => {
                rustls::SignatureAlgorithm::RSA
            }
        }
    }
}

impl fmt::Debug for HandshakeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HandshakeKey({:?})", self.0.public_key())
    }
}

struct HandshakeSigner {
    key: Arc<dyn Signer>,
    scheme: SignatureScheme,
    algorithm: SignatureAlgorithm,
}

impl rustls::sign::Signer for HandshakeSigner {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        self.key.sign_with(self.algorithm, message).map_err(|error| rustls::Error::General(error.to_string()))
    }

    fn scheme(&self) -> SignatureScheme {
        self.scheme
    }
}

impl fmt::Debug for HandshakeSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HandshakeSigner({:?})", self.scheme)
    }
}

fn algorithms() -> WebPkiSupportedAlgorithms {
    crypto::tls_provider().signature_verification_algorithms
}

/// Verifies the chain of the other side, of a client or of a server.
#[derive(Debug)]
struct SpiffeVerifier {
    trust: TrustStore,
    mandatory: bool,
    peers: Option<PeerCheck>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl SpiffeVerifier {
    fn new(trust: TrustStore, mandatory: bool, peers: Option<PeerCheck>) -> Self {
        Self { trust, mandatory, peers, algorithms: algorithms() }
    }
}

/// What each verifier does the same way: the peer's signature over the handshake is verified with `self.algorithms`.
macro_rules! proofs_of_possession {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            rustls::crypto::verify_tls12_signature(message, certificate, signed, &self.algorithms)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            rustls::crypto::verify_tls13_signature(message, certificate, signed, &self.algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.algorithms.supported_schemes()
        }
    };
}

impl ClientCertVerifier for SpiffeVerifier {
    /// None: the roots change while connections come and go, and SPIFFE peers need no hints.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let id = self.trust.verify(leaf, intermediates, now).map_err(PeerError::from)?;
        if let Some(expected) = &self.peers {
            expected.check(&id)?;
        }
        Ok(ClientCertVerified::assertion())
    }

    proofs_of_possession!();
}

impl ServerCertVerifier for SpiffeVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let id = self.trust.verify(leaf, intermediates, now).map_err(PeerError::from)?;
        if let Some(expected) = &self.peers {
            expected.check(&id)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    proofs_of_possession!();
}

/// Believes a server's own word, for the insecure bootstrap.
#[derive(Debug)]
struct UnverifiedServer {
    expected: SpiffeId,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for UnverifiedServer {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let id = leaf_id(leaf).map_err(PeerError::from)?;
        PeerCheck::ServerId(self.expected.clone()).check(&id)?;
        Ok(ServerCertVerified::assertion())
    }

    proofs_of_possession!();
}

/// Verifies that a server has a certificate of one of these authorities, if any, and its key; no names.
#[derive(Debug)]
struct UnnamedServer {
    roots: Option<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for UnnamedServer {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if let Some(roots) = &self.roots {
            let leaf = rustls::server::ParsedCertificate::try_from(leaf)?;
            let algorithms = self.algorithms.all;
            rustls::client::verify_server_cert_signed_by_trust_anchor(
                &leaf,
                roots,
                intermediates,
                now,
                algorithms,
            )?;
        }
        Ok(ServerCertVerified::assertion())
    }

    proofs_of_possession!();
}

const HTTP2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";
/// RFC 8737, section 6.2.
const ACME_TLS: &[u8] = b"acme-tls/1";
