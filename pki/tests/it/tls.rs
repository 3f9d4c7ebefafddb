//! Handshakes in memory: who is let in, and that nothing outlives a change of SVID or trust.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use bonafide_identity::{SpiffeId, Timestamp};
use bonafide_pki::tls::{
    ClientAuth, Now, PeerCheck, Svid, SvidHolder, TrustStore, client_config, insecure_client_config, refusal,
    server_config, server_config_for, server_name,
};
use bonafide_pki::{KeyType, LeafProfile, Signer, TrustRoots, X509Issuer};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, ServerConfig, ServerConnection};

use crate::support::{Role, at, authority, domain, id, key, profile, web};

/// A clock that the tests move.
#[derive(Clone)]
struct Clock(Arc<AtomicI64>);

impl Clock {
    fn new() -> Self {
        Self(Arc::new(AtomicI64::new(at(0).unix_seconds())))
    }

    fn now(&self) -> Now {
        let seconds = self.0.clone();
        Arc::new(move || Timestamp::from_unix_seconds(seconds.load(Ordering::SeqCst)))
    }
}

fn svid(issuer: &X509Issuer, spiffe_id: &SpiffeId, kind: KeyType) -> Svid {
    svid_until(issuer, spiffe_id, kind, 3600)
}

fn svid_until(issuer: &X509Issuer, spiffe_id: &SpiffeId, kind: KeyType, seconds: i64) -> Svid {
    let key = key(kind, Role::Leaf);
    let leaf = issuer
        .issue(&LeafProfile { not_after: at(seconds), ..profile(spiffe_id, key.public_key()) })
        .unwrap();
    Svid::new(issuer.chain_for_leaf(leaf), key).unwrap()
}

fn trust(issuers: &[&X509Issuer]) -> TrustStore {
    let mut store = HashMap::new();
    for issuer in issuers {
        let roots = Arc::new(TrustRoots::from_der([issuer.certificate()]).unwrap());
        store.insert(issuer.trust_domain().clone(), roots);
    }
    TrustStore::new(store)
}

struct Outcome {
    client: Result<ClientConnection, rustls::Error>,
    server: Result<ServerConnection, rustls::Error>,
}

impl Outcome {
    fn both(self) -> (ClientConnection, ServerConnection) {
        (self.client.unwrap(), self.server.unwrap())
    }

    fn client_refuses(self) -> String {
        self.client.map_or_else(refused, |_| panic!("the client accepts"))
    }

    fn server_refuses(self) -> String {
        self.server.map_or_else(refused, |_| panic!("the server accepts"))
    }
}

/// The text of a refusal: readable in the library's own error, and found as ours behind an I/O error.
fn refused(error: rustls::Error) -> String {
    let text = error.to_string();
    if let Some(refusal) = refusal(&error) {
        assert!(text.contains(&refusal.to_string()), "{text}");
        let wrapped = std::io::Error::new(std::io::ErrorKind::InvalidData, error.clone());
        assert_eq!(bonafide_pki::tls::refusal(&wrapped), Some(refusal));
    }
    text
}

/// A handshake, then a byte in each direction.
fn connect(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> Outcome {
    connect_to(server_name(), client, server)
}

/// The same, with the name that the client sends.
fn connect_to(name: ServerName<'static>, client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> Outcome {
    let mut client = ClientConnection::new(client.clone(), name).unwrap();
    let mut server = ServerConnection::new(server.clone()).unwrap();
    client.writer().write_all(b"c").unwrap();
    let (mut client_error, mut server_error) = (None, None);
    for _ in 0..10 {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        let mut rest = &wire[..];
        while !rest.is_empty() && server_error.is_none() {
            server.read_tls(&mut rest).unwrap();
            server_error = server.process_new_packets().err();
        }
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        let mut rest = &wire[..];
        while !rest.is_empty() && client_error.is_none() {
            client.read_tls(&mut rest).unwrap();
            client_error = client.process_new_packets().err();
        }
    }
    let mut byte = [0];
    if server_error.is_none() && client_error.is_none() {
        assert_eq!(server.reader().read(&mut byte).unwrap(), 1);
    }
    Outcome { client: client_error.map_or(Ok(client), Err), server: server_error.map_or(Ok(server), Err) }
}

fn server_id() -> SpiffeId {
    domain().server_id()
}

#[test]
fn both_sides_show_and_verify_for_every_pair_of_key_kinds() {
    let clock = Clock::new();
    let issuer = authority(KeyType::EcP256);
    let trust = trust(&[&issuer]);
    for server_kind in KeyType::ALL {
        for client_kind in KeyType::ALL {
            let holder = SvidHolder::new(svid(&issuer, &server_id(), server_kind));
            let server = server_config(holder, trust.clone(), ClientAuth::RequiredSpiffe, clock.now());
            let holder = SvidHolder::new(svid(&issuer, &web(), client_kind));
            let client = client_config(
                Some(holder.clone()),
                trust.clone(),
                PeerCheck::ServerId(server_id()),
                clock.now(),
            );
            let (client, server) = connect(&client, &server).both();
            assert_eq!(client.alpn_protocol(), Some(&b"h2"[..]));
            assert_eq!(server.alpn_protocol(), Some(&b"h2"[..]));
            let shown: Vec<&[u8]> = server.peer_certificates().unwrap().iter().map(AsRef::as_ref).collect();
            assert_eq!(shown, holder.current().unwrap().chain().collect::<Vec<_>>());
        }
    }
}

/// Agents dial names and addresses, and others send whatever they like: who a server is says its SPIFFE ID.
#[test]
fn the_server_shows_its_svid_whatever_name_is_asked_for() {
    let clock = Clock::new();
    let issuer = authority(KeyType::EcP256);
    let trust = trust(&[&issuer]);
    let holder = SvidHolder::new(svid(&issuer, &server_id(), KeyType::EcP256));
    let server = server_config(holder.clone(), trust.clone(), ClientAuth::OptionalSpiffe, clock.now());
    // Of an address no name is sent.
    for name in ["somewhere.example.org", "localhost", "other.test", "127.0.0.1", "::1"] {
        let client = client_config(None, trust.clone(), PeerCheck::ServerId(server_id()), clock.now());
        let (client, server) = connect_to(ServerName::try_from(name).unwrap(), &client, &server).both();
        let sent = server.server_name();
        assert_eq!(sent, Some(name).filter(|name| name.parse::<std::net::IpAddr>().is_err()));
        let shown: Vec<&[u8]> = client.peer_certificates().unwrap().iter().map(AsRef::as_ref).collect();
        assert_eq!(shown, holder.current().unwrap().chain().collect::<Vec<_>>(), "{name}");
    }
}

#[test]
fn client_certificates_are_asked_for_as_configured() {
    let clock = Clock::new();
    let issuer = authority(KeyType::EcP256);
    let trust = trust(&[&issuer]);
    let server = |clients| {
        let holder = SvidHolder::new(svid(&issuer, &server_id(), KeyType::EcP256));
        server_config(holder, trust.clone(), clients, clock.now())
    };
    let client = |identity| client_config(identity, trust.clone(), PeerCheck::Member(domain()), clock.now());
    let anonymous = client(None);
    let (_, connection) = connect(&anonymous, &server(ClientAuth::OptionalSpiffe)).both();
    assert!(connection.peer_certificates().is_none());
    // A holder that has nothing yet is anonymous too.
    connect(&client(Some(SvidHolder::empty())), &server(ClientAuth::OptionalSpiffe)).both();
    assert_eq!(
        connect(&anonymous, &server(ClientAuth::RequiredSpiffe)).server_refuses(),
        "peer sent no certificates"
    );
    let known = client(Some(SvidHolder::new(svid(&issuer, &web(), KeyType::EcP256))));
    let (_, connection) = connect(&known, &server(ClientAuth::None)).both();
    assert!(connection.peer_certificates().is_none());
    let (_, connection) = connect(&known, &server(ClientAuth::OptionalSpiffe)).both();
    assert_eq!(connection.peer_certificates().unwrap().len(), 1);
}

#[test]
fn a_server_may_have_certain_clients_only() {
    let clock = Clock::new();
    let issuer = authority(KeyType::EcP256);
    let trust = trust(&[&issuer]);
    let holder = SvidHolder::new(svid(&issuer, &server_id(), KeyType::EcP256));
    let server = server_config_for(holder, trust.clone(), PeerCheck::AnyOf(vec![web()]), clock.now());
    let client = |id: Option<&SpiffeId>| {
        let identity = id.map(|id| SvidHolder::new(svid(&issuer, id, KeyType::EcP256)));
        client_config(identity, trust.clone(), PeerCheck::Member(domain()), clock.now())
    };
    let (_, connection) = connect(&client(Some(&web())), &server).both();
    assert_eq!(connection.peer_certificates().unwrap().len(), 1);
    let refused = connect(&client(Some(&server_id())), &server).server_refuses();
    assert!(refused.contains("the peer is spiffe://") && refused.contains("expected one of"), "{refused}");
    assert_eq!(connect(&client(None), &server).server_refuses(), "peer sent no certificates");
}

#[test]
fn a_client_certificate_that_is_shown_must_be_right() {
    let clock = Clock::new();
    let issuer = authority(KeyType::EcP256);
    let stranger = authority(KeyType::EcP384);
    let holder = SvidHolder::new(svid(&issuer, &server_id(), KeyType::EcP256));
    let server = server_config(holder, trust(&[&issuer]), ClientAuth::OptionalSpiffe, clock.now());
    let client = |svid| {
        client_config(
            Some(SvidHolder::new(svid)),
            trust(&[&issuer]),
            PeerCheck::Member(domain()),
            clock.now(),
        )
    };
    let text = connect(&client(svid(&stranger, &web(), KeyType::EcP256)), &server).server_refuses();
    assert!(text.contains("not signed by a known authority"), "{text}");
    // An expired one.
    let short = client(svid_until(&issuer, &web(), KeyType::EcP256, 5));
    connect(&short, &server).both();
    clock.0.store(at(6).unix_seconds(), Ordering::SeqCst);
    let text = connect(&short, &server).server_refuses();
    assert!(text.contains("certificate has expired"), "{text}");
    // An authority's own certificate.
    let authority_svid =
        Svid::new(vec![issuer.certificate().to_vec()], key(KeyType::EcP256, Role::Authority)).unwrap();
    let text = connect(&client(authority_svid), &server).server_refuses();
    assert!(text.contains("may sign certificates"), "{text}");
}

#[test]
fn the_server_must_be_the_one_that_is_expected() {
    let clock = Clock::new();
    let issuer = authority(KeyType::EcP256);
    let holder = SvidHolder::new(svid(&issuer, &web(), KeyType::EcP256));
    let server = server_config(holder, TrustStore::empty(), ClientAuth::None, clock.now());
    let with = |check, trust| connect(&client_config(None, trust, check, clock.now()), &server);
    let text = with(PeerCheck::ServerId(server_id()), trust(&[&issuer])).client_refuses();
    assert!(
        text.contains(
            "the peer is spiffe://example.org/ns/default/sa/web, expected spiffe://example.org/spire/server"
        ),
        "{text}"
    );
    let text = with(PeerCheck::Member(web().trust_domain().clone()), TrustStore::empty()).client_refuses();
    assert!(text.contains("no trust bundle for trust domain example.org"), "{text}");
    with(PeerCheck::AnyOf(vec![server_id(), web()]), trust(&[&issuer])).both();
    assert!(with(PeerCheck::AnyOf(Vec::new()), trust(&[&issuer])).client.is_err());
    with(PeerCheck::Member(domain()), trust(&[&issuer])).both();

    // Bootstrap without a bundle looks at the name only.
    connect(&insecure_client_config(web(), clock.now()), &server).both();
    let text = connect(&insecure_client_config(server_id(), clock.now()), &server).client_refuses();
    assert!(text.contains("the peer is spiffe://example.org/ns/default/sa/web"), "{text}");
    assert!(
        connect(&insecure_client_config(id("spiffe://example.org/x"), clock.now()), &server).client.is_err()
    );
}

#[test]
fn a_change_of_svid_or_trust_counts_from_the_next_handshake() {
    let clock = Clock::new();
    let (old, new) = (authority(KeyType::EcP256), authority(KeyType::EcP384));
    let holder = SvidHolder::empty();
    let trusted = trust(&[&old]);
    let server = server_config(holder.clone(), trusted.clone(), ClientAuth::RequiredSpiffe, clock.now());
    let mine = SvidHolder::new(svid(&old, &web(), KeyType::EcP256));
    let client =
        client_config(Some(mine.clone()), trusted.clone(), PeerCheck::ServerId(server_id()), clock.now());
    assert!(connect(&client, &server).server.is_err(), "the server has no SVID yet");
    holder.set(svid(&old, &server_id(), KeyType::EcP256));
    connect(&client, &server).both();

    // Trust moves to another authority: old certificates are refused on both sides, new ones accepted.
    let roots = Arc::new(TrustRoots::from_der([new.certificate()]).unwrap());
    trusted.set_trust_domain(&domain(), &roots);
    assert!(connect(&client, &server).client.is_err());
    holder.set(svid(&new, &server_id(), KeyType::EcP256));
    assert!(connect(&client, &server).server.is_err());
    mine.set(svid(&new, &web(), KeyType::EcP256));
    connect(&client, &server).both();
    assert!(trusted.roots(&domain()).is_some());
}

/// A resumed session would skip the verification of certificates.
#[test]
fn sessions_are_never_resumed() {
    let clock = Clock::new();
    let issuer = authority(KeyType::EcP256);
    let holder = SvidHolder::new(svid(&issuer, &server_id(), KeyType::EcP256));
    let server = server_config(holder.clone(), trust(&[&issuer]), ClientAuth::RequiredSpiffe, clock.now());
    let client = client_config(Some(holder), trust(&[&issuer]), PeerCheck::Member(domain()), clock.now());
    // Also for a client that would like to.
    let mut eager = ClientConfig::clone(&client);
    eager.resumption = rustls::client::Resumption::in_memory_sessions(8);
    for client in [client, Arc::new(eager)] {
        for _ in 0..3 {
            let (client, server) = connect(&client, &server).both();
            assert_eq!(client.handshake_kind(), Some(HandshakeKind::Full));
            assert_eq!(server.handshake_kind(), Some(HandshakeKind::Full));
        }
    }
    assert_eq!(server.send_tls13_tickets, 0);
}

/// With two providers linked in, rustls panics when it has to choose; ours is always named.
#[test]
fn configurations_do_not_depend_on_a_process_default() {
    assert!(rustls::crypto::CryptoProvider::get_default().is_none(), "no test installs one");
    let clock = Clock::new();
    server_config(SvidHolder::empty(), TrustStore::empty(), ClientAuth::OptionalSpiffe, clock.now());
    client_config(None, TrustStore::empty(), PeerCheck::Member(domain()), clock.now());
    insecure_client_config(web(), clock.now());
}

#[test]
fn a_chain_and_a_key_that_do_not_belong_together_are_refused() {
    let issuer = authority(KeyType::EcP256);
    let certificate = issuer.certificate().to_vec();
    assert!(Svid::new(vec![certificate], key(KeyType::EcP256, Role::Leaf)).is_err());
    assert!(Svid::new(Vec::new(), key(KeyType::EcP256, Role::Leaf)).is_err());
    let svid = svid(&issuer, &web(), KeyType::EcP256);
    assert_eq!(svid.key().public_key(), key(KeyType::EcP256, Role::Leaf).public_key());
    assert!(!format!("{svid:?}").contains("chain"));
}
