//! What comes from above: one suite for the drivers, and what the authorities do with an upstream that is away, that
//! publishes, taints and revokes.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use bonafide_identity::{JwtAuthority, X509Authority};
use bonafide_pki::{PublicKey, X509Issuer, ca_csr, random_serial};
use bonafide_server::store::Bundles as _;

use super::*;

/// What every driver keeps, whatever is above it.
pub(crate) async fn conforms(upstream: &dyn UpstreamAuthority, now: Timestamp) {
    let name = upstream.name();
    let key = Arc::new(PrivateKey::generate(KeyType::EcP256).unwrap());
    let serial = random_serial(&SystemRandom);
    let csr = ca_csr(&*key, &trust_domain(), &CaSubject::default(), &serial).unwrap();
    let ttl = Duration::from_secs(600);
    let ca = upstream.mint_ca(&csr, ttl, now).await.unwrap();
    let info = inspect(&ca.chain[0]).unwrap();
    assert!(info.is_ca, "{name}");
    assert_eq!(info.public_key.as_ref(), Some(key.public_key()), "{name}");
    assert!(
        info.not_after <= now.saturating_add(ttl + Duration::from_secs(60)),
        "{name}: longer than asked for"
    );
    assert!(info.not_after > now.saturating_add(ttl / 2), "{name}");
    assert!(
        ca.chain.iter().all(|certificate| !ca.roots.contains(certificate)),
        "{name}: the root is in the chain"
    );
    let roots = TrustRoots::from_der(ca.roots.iter().map(Vec::as_slice)).unwrap();
    let issuer = X509Issuer::new(&trust_domain(), ca.chain[0].clone(), ca.chain.clone(), key).unwrap();
    issuer.check_roots(&roots, now).unwrap_or_else(|error| panic!("{name}: {error}"));

    let error = upstream.mint_ca(b"nonsense", ttl, now).await.unwrap_err();
    assert_eq!(error.name, name);

    if let Some(bundle) = upstream.bundle(now).await.unwrap() {
        assert_eq!(bundle.trust_domain, trust_domain(), "{name}");
        for root in &ca.roots {
            assert!(
                bundle.x509_authorities.iter().any(|have| have.certificate == *root),
                "{name}: a root of a signature is not published"
            );
        }
    }

    let key = token_key("conforms", now);
    for round in ["first", "again"] {
        let Some(keys) = upstream.publish_key(AuthorityKind::Jwt, &key).await.unwrap() else { continue };
        assert!(keys.iter().any(|have| have.key_id == key.key_id), "{name}, {round}");
        let bundle = upstream.bundle(now).await.unwrap().expect("who takes keys shows them");
        assert_eq!(
            bundle.jwt_authorities.iter().filter(|have| have.key_id == key.key_id).count(),
            1,
            "{name}"
        );
    }
}

fn token_key(id: &str, now: Timestamp) -> JwtAuthority {
    let key = PrivateKey::generate(KeyType::EcP256).unwrap();
    JwtAuthority {
        key_id: id.to_owned(),
        public_key: key.public_key().spki_der().to_vec(),
        expires_at: Some(Timestamp::from_unix_seconds(now.unix_seconds() + 3600)),
        tainted: false,
    }
}

/// An upstream in this process: signs with files, publishes what it is told, and can be away.
struct Above {
    disk: Disk,
    away: AtomicBool,
    takes_keys: bool,
    asked: AtomicUsize,
    keys_of_csrs: Mutex<BTreeSet<String>>,
    published: Mutex<Bundle>,
}

impl Above {
    fn new(files: &UpstreamFiles, world: &World, takes_keys: bool) -> Arc<Self> {
        Arc::new(Self {
            disk: files.open(world),
            away: AtomicBool::new(false),
            takes_keys,
            asked: AtomicUsize::new(0),
            keys_of_csrs: Mutex::default(),
            published: Mutex::new(Bundle::empty(trust_domain())),
        })
    }

    fn leave(&self) {
        self.away.store(true, Ordering::SeqCst);
    }

    fn come_back(&self) {
        self.away.store(false, Ordering::SeqCst);
    }

    fn here(&self) -> Result<(), UpstreamError> {
        if self.away.load(Ordering::SeqCst) {
            return Err(UpstreamError { name: "above", reason: "is away".to_owned() });
        }
        Ok(())
    }

    fn edit(&self, change: impl FnOnce(&mut Bundle)) {
        change(&mut self.published.lock().unwrap());
    }
}

#[async_trait::async_trait]
impl UpstreamAuthority for Above {
    fn name(&self) -> &'static str {
        "above"
    }

    async fn mint_ca(&self, csr: &[u8], ttl: Duration, now: Timestamp) -> Result<UpstreamCa, UpstreamError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if let Ok(csr) = VerifiedCsr::parse(csr) {
            let key: &PublicKey = &csr.public_key;
            self.keys_of_csrs.lock().unwrap().insert(format!("{:?}", key.subject_key_id()));
        }
        self.here()?;
        let mut ca = self
            .disk
            .mint_ca(csr, ttl, now)
            .await
            .map_err(|error| UpstreamError { name: "above", ..error })?;
        // The whole bundle comes with a signature, as from a server above.
        let published = self.published.lock().unwrap();
        ca.roots.extend(published.x509_authorities.iter().map(|root| root.certificate.clone()));
        Ok(ca)
    }

    async fn bundle(&self, now: Timestamp) -> Result<Option<Bundle>, UpstreamError> {
        self.here()?;
        let mut bundle = self.published.lock().unwrap().clone();
        let files = self.disk.bundle(now).await?.unwrap();
        bundle.append(files.x509_authorities, [], []);
        Ok(Some(bundle))
    }

    async fn publish_key(
        &self,
        kind: AuthorityKind,
        key: &JwtAuthority,
    ) -> Result<Option<Vec<JwtAuthority>>, UpstreamError> {
        self.here()?;
        if !self.takes_keys || kind != AuthorityKind::Jwt {
            return Ok(None);
        }
        let mut published = self.published.lock().unwrap();
        published.append([], [key.clone()], []);
        Ok(Some(published.jwt_authorities.clone()))
    }
}

#[tokio::test]
async fn the_drivers_conform() {
    let world = World::new();
    let now = world.clock.now();
    conforms(&UpstreamFiles::self_signed(&world).open(&world), now).await;
    conforms(&UpstreamFiles::intermediate(&world).open(&world), now).await;
    conforms(&*Above::new(&UpstreamFiles::self_signed(&world), &world, true), now).await;
}

#[tokio::test]
async fn an_upstream_that_goes_away_costs_nothing_while_the_authority_lives() {
    let mut world = World::new();
    let above = Above::new(&UpstreamFiles::self_signed(&world), &world, true);
    world.upstream = Some(above.clone());
    let server = world.start().await;
    server.pass(Duration::from_secs(5)).await;
    let first = server.active(AuthorityKind::X509);

    above.leave();
    // The bundle cannot be looked at, and what is known stays.
    server.authorities.follow_upstream(world.clock.now()).await.unwrap_err();
    server.check().await;
    // A restart finds the authority in the journal and asks nobody.
    let asked = above.asked.load(Ordering::SeqCst);
    server.store.close().await;
    drop(server);
    let server = world.start().await;
    assert_eq!(server.active(AuthorityKind::X509), first);
    assert_eq!(above.asked.load(Ordering::SeqCst), asked);
    server.check().await;

    // The next one is due and cannot be had; it is asked for again and again with one key, not with one for each try.
    let keys_before = above.keys_of_csrs.lock().unwrap().len();
    world.clock.advance(Duration::from_secs(30));
    for _ in 0..5 {
        server.authorities.tick(world.clock.now()).await.unwrap_err();
        world.clock.advance(Duration::from_secs(1));
    }
    assert_eq!(above.asked.load(Ordering::SeqCst), asked + 5);
    assert_eq!(above.keys_of_csrs.lock().unwrap().len(), keys_before + 1);
    assert!(server.slots(AuthorityKind::X509).prepared().is_none());
    server.check_signatures();

    above.come_back();
    server.tick().await;
    assert!(server.slots(AuthorityKind::X509).prepared().is_some());
    assert_eq!(above.keys_of_csrs.lock().unwrap().len(), keys_before + 1, "the key is not forgotten");
    server.pass(Duration::from_secs(60)).await;
    assert_ne!(server.active(AuthorityKind::X509), first);
}

#[tokio::test]
async fn without_an_authority_an_upstream_that_is_away_is_an_error_that_says_so() {
    let mut world = World::new();
    let above = Above::new(&UpstreamFiles::self_signed(&world), &world, true);
    above.leave();
    world.upstream = Some(above.clone());
    let refused = world.start_with(world.keys(), world.upstream.clone()).await.err().unwrap();
    assert!(matches!(refused, AuthorityError::Upstream(_)), "{refused}");
    above.come_back();
    world.start().await.check().await;
}

#[tokio::test]
async fn token_keys_are_published_upward_before_they_sign_and_those_of_others_come_down() {
    let mut world = World::new();
    let above = Above::new(&UpstreamFiles::self_signed(&world), &world, true);
    let now = world.clock.now();
    above.edit(|bundle| assert!(bundle.append([], [token_key("sibling", now)], [token_key("wit", now)])));
    world.upstream = Some(above.clone());
    let server = world.start().await;
    let active = server.active(AuthorityKind::Jwt);
    let has = |bundle: &Bundle, id: &str| bundle.jwt_authorities.iter().any(|key| key.key_id == id);
    assert!(has(&above.published.lock().unwrap(), &active));
    assert!(has(&server.bundle(), "sibling"), "the answer holds the others");
    server.tick().await;
    assert!(server.bundle().wit_authorities.iter().any(|key| key.key_id == "wit"));

    // A key of a server below this one goes on upward.
    let keys = server.authorities.publish_key(AuthorityKind::Jwt, token_key("below", now)).await.unwrap();
    assert_eq!(keys.len(), 3);
    assert!(has(&above.published.lock().unwrap(), "below") && has(&server.bundle(), "below"));

    // No key signs that the upstream was not told.
    above.leave();
    let refused = server.authorities.prepare(AuthorityKind::Jwt).await.unwrap_err();
    assert!(matches!(refused, AuthorityError::Upstream(_)), "{refused}");
    assert!(server.slots(AuthorityKind::Jwt).prepared().is_none());
    let refused =
        server.authorities.publish_key(AuthorityKind::Jwt, token_key("late", now)).await.unwrap_err();
    assert!(matches!(refused, AuthorityError::Upstream(_)), "{refused}");
    assert!(!has(&server.bundle(), "late"));
    // A kind that the upstream does not take is published here alone.
    above.come_back();
    server.authorities.publish_key(AuthorityKind::Wit, token_key("here", now)).await.unwrap();
    assert!(server.bundle().wit_authorities.iter().any(|key| key.key_id == "here"));
}

#[tokio::test]
async fn an_upstream_that_comes_later_is_told_the_keys_that_there_are() {
    let mut world = World::new();
    let server = world.start().await;
    let active = server.active(AuthorityKind::Jwt);
    server.store.close().await;
    drop(server);
    let above = Above::new(&UpstreamFiles::self_signed(&world), &world, true);
    world.upstream = Some(above.clone());
    let server = world.start().await;
    assert_eq!(server.active(AuthorityKind::Jwt), active);
    server.tick().await;
    let told =
        |above: &Above| above.published.lock().unwrap().jwt_authorities.iter().any(|k| k.key_id == active);
    assert!(told(&above));
    // Told once: whoever revokes the key up there must not find it back.
    above.edit(|bundle| bundle.jwt_authorities.clear());
    server.tick().await;
    assert!(!told(&above));
}

#[tokio::test]
async fn what_was_revoked_here_does_not_come_back_from_above() {
    let mut world = World::new();
    let mut files = UpstreamFiles::self_signed(&world);
    let above = Above::new(&files, &world, true);
    world.upstream = Some(above.clone());
    let server = world.start().await;
    let (root, key) = (files.authority.root().to_vec(), server.active(AuthorityKind::Jwt));
    let root_id = inspect(&root).unwrap().ski.unwrap();
    // The upstream has a new root, and goes on publishing the former one.
    let former = X509Authority { certificate: root.clone(), tainted: false };
    above.edit(|bundle| bundle.x509_authorities.push(former));
    let mut first = std::mem::replace(&mut files.authority, upstream_authority(&world, 7200));
    files.write();
    for kind in [AuthorityKind::X509, AuthorityKind::Jwt] {
        let prepared = server.authorities.prepare(kind).await.unwrap();
        server.authorities.activate(kind, &prepared.authority_id).await.unwrap();
    }
    server.authorities.taint_upstream(&root_id).await.unwrap();
    server.authorities.revoke_upstream(&root_id).await.unwrap();
    server.authorities.taint(AuthorityKind::Jwt, &key).await.unwrap();
    server.authorities.revoke(AuthorityKind::Jwt, &key).await.unwrap();
    server.tick().await;
    let now = world.clock.now();
    server.authorities.publish_key(AuthorityKind::Jwt, token_key("below", now)).await.unwrap();
    server.authorities.prepare(AuthorityKind::Jwt).await.unwrap();
    let bundle = server.bundle();
    assert!(
        above.published.lock().unwrap().jwt_authorities.iter().any(|have| have.key_id == key),
        "still up there"
    );
    assert!(bundle.jwt_authorities.iter().all(|have| have.key_id != key));
    let holds_root =
        |server: &Server| server.bundle().x509_authorities.iter().any(|have| have.certificate == root);
    assert!(!holds_root(&server));
    // A signature brings it along as well.
    server.authorities.prepare(AuthorityKind::X509).await.unwrap();
    assert!(!holds_root(&server), "it came back with a signature");
    server.check().await;

    // Nor does the next start forget.
    server.store.close().await;
    drop(server);
    let server = world.start().await;
    server.tick().await;
    assert!(!holds_root(&server), "it came back after a restart");
    assert!(server.bundle().jwt_authorities.iter().all(|have| have.key_id != key));

    // What an upstream signs below it is refused, until somebody appends it by hand.
    std::mem::swap(&mut files.authority, &mut first);
    files.write();
    let error = server.authorities.prepare(AuthorityKind::X509).await.unwrap_err();
    assert!(matches!(error, AuthorityError::Misissued(_)), "{error}");
    let mut bundle = Bundle::clone(&server.bundle());
    bundle.x509_authorities.push(X509Authority { certificate: root.clone(), tainted: false });
    server.store.write(move |unit| unit.bundle_put(bundle)).await.unwrap();
    server.authorities.prepare(AuthorityKind::X509).await.unwrap();
    server.check().await;
}

#[tokio::test]
async fn a_taint_from_above_replaces_what_is_below_it_and_a_revocation_takes_it_away() {
    let mut world = World::new();
    let mut files = UpstreamFiles::self_signed(&world);
    let above = Above::new(&files, &world, true);
    world.upstream = Some(above.clone());
    let server = world.start().await;
    let (holder, trust) = (SvidHolder::empty(), TrustStore::empty());
    let mut svid = ServerSvid::start(
        Arc::clone(&server.issuing),
        server.store.clone(),
        holder.clone(),
        trust,
        Arc::new(SystemRandom),
        world.clock.now(),
    )
    .unwrap();
    let issuer = |holder: &SvidHolder| {
        let held = holder.current().unwrap();
        inspect(held.chain().next().unwrap()).unwrap().aki.unwrap()
    };
    let first = server.active(AuthorityKind::X509);
    let token = server.active(AuthorityKind::Jwt);
    let root = files.authority.root().to_vec();
    let tainted = |server: &Server| -> usize {
        server.bundle().x509_authorities.iter().filter(|root| root.tainted).count()
    };

    // Tainted while the upstream still signs below it: it is asked once more, and then not at each look.
    let listed = |tainted| X509Authority { certificate: root.clone(), tainted };
    above.edit(|bundle| bundle.x509_authorities = vec![listed(true)]);
    let asked = above.asked.load(Ordering::SeqCst);
    for _ in 0..4 {
        server.tick().await;
        world.clock.advance(Duration::from_secs(1));
    }
    assert_eq!(tainted(&server), 0, "nobody could do anything about it yet");
    assert_eq!(above.asked.load(Ordering::SeqCst), asked + 1);
    assert_eq!(server.active(AuthorityKind::X509), first);

    // The upstream has another root: the authority is replaced, the old one marked, the server's SVID renewed.
    files.authority = upstream_authority(&world, 7200);
    files.write();
    world.clock.advance(Duration::from_secs(60));
    server.tick().await;
    let second = server.active(AuthorityKind::X509);
    assert_ne!(second, first);
    assert_eq!(tainted(&server), 1, "now the flag is passed on");
    svid.refresh(world.clock.now()).unwrap();
    assert_eq!(issuer(&holder), second);

    // A tainted key of ours is replaced as well.
    above.edit(|bundle| drop(bundle.taint_jwt(&token)));
    server.tick().await;
    assert_ne!(server.active(AuthorityKind::Jwt), token);
    assert!(server.slots(AuthorityKind::Jwt).old().unwrap().tainted);

    // What has only vanished stays; what was tainted before goes.
    above.edit(|bundle| {
        bundle.x509_authorities.clear();
        bundle.jwt_authorities.retain(|key| key.key_id != token);
    });
    server.tick().await;
    assert!(server.bundle().x509_authorities.iter().all(|have| have.certificate != root));
    assert!(server.bundle().jwt_authorities.iter().all(|key| key.key_id != token));
    assert!(server.slots(AuthorityKind::Jwt).old().is_none());
    server.check().await;
}
