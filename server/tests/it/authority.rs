//! Authorities: rotation over time, restarts at every point, lost keys, upstream files.

mod cert_manager;
pub(super) mod upstream;
mod vault;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use bonafide_identity::lifetime::policy::Policy;
use bonafide_identity::{
    AuthorityKind, AuthoritySlots, Bundle, SlotError, SlotStatus, Timestamp, TrustDomain,
};
use bonafide_pki::tls::{SvidHolder, TrustStore};
use bonafide_pki::{
    CaSubject, JwtKeys, KeyError, KeyManager, KeyType, PrivateKey, Signer, SystemRandom, TrustRoots,
    VerifiedCsr, agent_csr, inspect, key_manager, pem, validate_jwt_svid, verify_svid_chain,
};
use bonafide_runtime::clock::SharedClock;
use bonafide_server::authority::{
    Authorities, AuthorityConfig, AuthorityError, Issuing, IssuingConfig, ServerSvid, WorkloadRequest,
};
use bonafide_server::store::{DriverKind, Issuance, Journal, Store, StoreConfig};
use bonafide_server::upstream_authority::disk::{Disk, DiskConfig};
use bonafide_server::upstream_authority::{UpstreamAuthority, UpstreamCa, UpstreamError};
use bonafide_testkit::{EntryBuilder, ManualClock, TestAuthority, agent_id, id, trust_domain};

const CA_TTL: Duration = Duration::from_secs(60);

/// What outlives a server process: its files and the time.
struct World {
    folder: tempfile::TempDir,
    clock: ManualClock,
    upstream: Option<Arc<dyn UpstreamAuthority>>,
    driver: DriverKind,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { folder, clock: ManualClock::default(), upstream: None, driver: DriverKind::Redb }
    }

    fn clock(&self) -> SharedClock {
        Arc::new(self.clock.as_fn())
    }

    fn store(&self) -> Store {
        let config = StoreConfig {
            driver: self.driver,
            path: self.folder.path().join("store"),
            cache_bytes: StoreConfig::DEFAULT_CACHE_BYTES,
            trust_domain: trust_domain(),
            postgres: None,
        };
        Store::open(config, self.clock()).unwrap().0
    }

    fn keys(&self) -> Arc<dyn KeyManager> {
        Arc::new(key_manager::Disk::open(self.keys_path()).unwrap())
    }

    fn keys_path(&self) -> PathBuf {
        self.folder.path().join("keys.json")
    }

    async fn start(&self) -> Server {
        self.start_with(self.keys(), self.upstream.clone()).await.unwrap()
    }

    async fn start_with(
        &self,
        keys: Arc<dyn KeyManager>,
        upstream: Option<Arc<dyn UpstreamAuthority>>,
    ) -> Result<Server, AuthorityError> {
        let store = self.store();
        let authorities =
            Authorities::start(config(), keys, upstream, store.clone(), self.clock(), Arc::new(SystemRandom))
                .await?;
        let issuing = Issuing::new(
            IssuingConfig::default(),
            Arc::clone(&authorities),
            store.clone(),
            Arc::new(SystemRandom),
        );
        Ok(Server { store, authorities, issuing: Arc::new(issuing), clock: self.clock.clone() })
    }
}

fn config() -> AuthorityConfig {
    AuthorityConfig {
        trust_domain: trust_domain(),
        ca_ttl: CA_TTL,
        ca_key_type: KeyType::EcP256,
        jwt_key_type: KeyType::EcP256,
        wit_key_type: KeyType::EcP256,
        ca_subject: CaSubject::default(),
        jwt_enabled: true,
        wit_enabled: true,
        policy: Policy::default(),
    }
}

/// One life of a server process.
struct Server {
    store: Store,
    authorities: Arc<Authorities>,
    issuing: Arc<Issuing>,
    clock: ManualClock,
}

impl Server {
    fn slots(&self, kind: AuthorityKind) -> AuthoritySlots {
        self.authorities.slots(kind)
    }

    fn active(&self, kind: AuthorityKind) -> String {
        self.slots(kind).active().unwrap().authority_id.clone()
    }

    fn bundle(&self) -> Arc<Bundle> {
        self.store.state().bundle(&trust_domain()).unwrap()
    }

    async fn tick(&self) -> Timestamp {
        self.authorities.follow_upstream(self.clock.now()).await.unwrap();
        self.authorities.tick(self.clock.now()).await.unwrap()
    }

    /// Lets `span` pass as the rotation task would.
    async fn pass(&self, span: Duration) {
        let end = self.clock.now().saturating_add(span);
        while self.clock.now() < end {
            let next = self.tick().await;
            assert!(next > self.clock.now(), "the next look is not in the future");
            self.clock.set(next.min(end));
            self.check().await;
        }
    }

    /// What must hold at any moment at which a server answers.
    async fn check(&self) {
        let now = self.clock.now();
        let bundle = self.bundle();
        for kind in AuthorityKind::ALL {
            let slots = self.slots(kind);
            let active = slots.active().expect("an active authority");
            assert!(active.not_after > now, "{kind}: the active authority has expired");
            for slot in slots.iter() {
                let published = match kind {
                    AuthorityKind::X509 => {
                        let wanted = slot.upstream_authority_id.as_ref().unwrap_or(&slot.authority_id);
                        bundle
                            .x509_authorities
                            .iter()
                            .any(|root| inspect(&root.certificate).unwrap().ski.as_ref() == Some(wanted))
                    }
                    AuthorityKind::Jwt => {
                        bundle.jwt_authorities.iter().any(|key| key.key_id == slot.authority_id)
                    }
                    AuthorityKind::Wit => {
                        bundle.wit_authorities.iter().any(|key| key.key_id == slot.authority_id)
                    }
                };
                assert!(
                    published,
                    "{kind}: {} authority {} is not in the bundle",
                    slot.status, slot.authority_id
                );
            }
            let recorded = self.store.write(move |unit| unit.journal(kind)).await.unwrap();
            assert!(recorded.len() <= 2, "{kind}: the journal has {} records", recorded.len());
            assert_eq!(recorded.iter().filter(|r| r.slot.status == SlotStatus::Active).count(), 1, "{kind}");
            for record in recorded {
                assert!(slots.iter().any(|slot| *slot == record.slot), "{kind}: journal and memory differ");
            }
        }
        let mut ids: Vec<_> = bundle.jwt_authorities.iter().map(|key| &key.key_id).collect();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), bundle.jwt_authorities.len(), "an authority is in the bundle twice");
        self.check_signatures();
    }

    /// What is signed now verifies with the published bundle and nothing else.
    fn check_signatures(&self) {
        let now = self.clock.now();
        let bundle = self.bundle();
        let entry = EntryBuilder::new("entry").spiffe_id("/workload").build();
        let key = PrivateKey::generate(KeyType::EcP256).unwrap();
        let csr = VerifiedCsr::parse(&agent_csr(&key, None).unwrap()).unwrap();
        let svid = self.issuing.issue_workload_x509(&entry, &csr, now).unwrap();
        let roots =
            TrustRoots::from_der(bundle.x509_authorities.iter().map(|r| r.certificate.as_slice())).unwrap();
        let roots = Arc::new(roots);
        let trusted = |of: &TrustDomain| (*of == trust_domain()).then(|| Arc::clone(&roots));
        assert_eq!(verify_svid_chain(&svid.chain, &trusted, now).unwrap(), entry.spiffe_id);
        assert_eq!(svid.issued.authority_id, self.active(AuthorityKind::X509));

        let jwt = self.issuing.issue_jwt(&entry, &["audience".to_owned()], now).unwrap();
        let mut keys = JwtKeys::new();
        keys.insert(trust_domain(), &bundle.jwt_authorities);
        let validated = validate_jwt_svid(&jwt.token, &keys, Some("audience"), now).unwrap();
        assert_eq!(validated.spiffe_id, entry.spiffe_id);
        assert_eq!(jwt.issued.authority_id, self.active(AuthorityKind::Jwt));
    }
}

#[tokio::test]
async fn a_first_start_has_one_active_authority_of_each_kind() {
    let world = World::new();
    let server = world.start().await;
    server.check().await;
    let bundle = server.bundle();
    assert_eq!(
        (bundle.x509_authorities.len(), bundle.jwt_authorities.len(), bundle.wit_authorities.len()),
        (1, 1, 1)
    );
    for kind in AuthorityKind::ALL {
        assert!(server.slots(kind).other().is_none());
    }
}

#[tokio::test]
async fn rotation_prepares_at_half_life_and_activates_a_sixth_before_the_end() {
    let world = World::new();
    let server = world.start().await;
    let first = server.active(AuthorityKind::X509);
    let start = world.clock.now();
    let at = |seconds: u64| start.saturating_add(Duration::from_secs(seconds));

    assert!(server.tick().await <= at(10), "upstream files are looked at every ten seconds");
    world.clock.set(at(30));
    server.tick().await;
    assert!(server.slots(AuthorityKind::X509).prepared().is_none(), "prepared too early");
    world.clock.set(at(31));
    assert!(server.tick().await <= at(41));
    let prepared = server.slots(AuthorityKind::X509).prepared().unwrap().authority_id.clone();
    assert_eq!(server.active(AuthorityKind::X509), first);
    server.check().await;
    world.clock.set(at(49));
    let next = server.tick().await;
    assert!(next > at(49) && next < at(51), "the look after next is exactly at the step: {next:?}");
    assert_eq!(server.active(AuthorityKind::X509), first);
    world.clock.set(next);
    server.tick().await;
    assert_eq!(server.active(AuthorityKind::X509), prepared);
    assert_eq!(server.slots(AuthorityKind::X509).old().unwrap().authority_id, first);
    server.check().await;
}

#[tokio::test]
async fn ten_minutes_of_rotation_with_a_life_of_a_minute() {
    let world = World::new();
    let server = world.start().await;
    let sequence = server.bundle().sequence_number;
    server.pass(Duration::from_secs(600)).await;
    let bundle = server.bundle();
    // Each is 30 seconds old when the next is made.
    assert_eq!(bundle.x509_authorities.len(), 20);
    assert_eq!(bundle.jwt_authorities.len(), 20);
    assert_eq!(bundle.wit_authorities.len(), 20);
    assert!(bundle.sequence_number > sequence);
}

#[tokio::test]
async fn a_restart_changes_nothing() {
    let world = World::new();
    let server = world.start().await;
    server.pass(Duration::from_secs(35)).await;
    let before: Vec<_> = AuthorityKind::ALL.map(|kind| server.slots(kind)).into();
    let bundle = server.bundle();
    server.store.close().await;
    drop(server);
    let server = world.start().await;
    let after: Vec<_> = AuthorityKind::ALL.map(|kind| server.slots(kind)).into();
    assert_eq!(before, after);
    assert_eq!(bundle, server.bundle());
    server.check().await;
}

#[tokio::test]
async fn a_long_absence_is_made_up_for_at_the_start() {
    let world = World::new();
    let server = world.start().await;
    server.pass(Duration::from_secs(35)).await;
    let first = server.active(AuthorityKind::Jwt);
    let prepared = server.slots(AuthorityKind::Jwt).prepared().unwrap().authority_id.clone();
    server.store.close().await;
    drop(server);
    // The active ones have expired, the prepared ones have not.
    world.clock.advance(Duration::from_secs(30));
    let server = world.start().await;
    assert_eq!(server.active(AuthorityKind::Jwt), prepared);
    server.check().await;
    server.store.close().await;
    drop(server);
    // Everything has expired.
    world.clock.advance(Duration::from_secs(3600));
    let server = world.start().await;
    let active = server.active(AuthorityKind::Jwt);
    assert!(active != prepared && active != first);
    server.check().await;
}

#[tokio::test]
async fn a_lost_key_gives_a_new_authority_and_keeps_the_old_one_published() {
    let world = World::new();
    let server = world.start().await;
    let former = AuthorityKind::ALL.map(|kind| server.active(kind));
    server.store.close().await;
    drop(server);
    std::fs::remove_file(world.keys_path()).unwrap();
    let server = world.start().await;
    for (kind, former) in AuthorityKind::ALL.into_iter().zip(&former) {
        assert_ne!(server.active(kind), *former);
        assert_eq!(server.slots(kind).old().unwrap().authority_id, *former);
    }
    assert_eq!(server.bundle().x509_authorities.len(), 2);
    server.check().await;
    // The authority whose key may be in other hands can be tainted and revoked.
    server.authorities.taint(AuthorityKind::X509, &former[0]).await.unwrap();
    server.authorities.revoke(AuthorityKind::X509, &former[0]).await.unwrap();
    assert_eq!(server.bundle().x509_authorities.len(), 1);
}

#[tokio::test]
async fn a_swapped_key_is_not_used() {
    let world = World::new();
    let server = world.start().await;
    let former = server.active(AuthorityKind::Jwt);
    server.store.close().await;
    drop(server);
    // What a backup of the keys of another day would do.
    world.keys().generate("JWT-Signer-A", KeyType::EcP256).await.unwrap();
    let server = world.start().await;
    assert_ne!(server.active(AuthorityKind::Jwt), former);
    server.check().await;
}

/// Stops the world at one of its calls: says so, and never returns.
struct Stopping<T> {
    inner: T,
    /// Calls until it happens; the rest of the calls pass.
    countdown: AtomicUsize,
    after: bool,
    reached: mpsc::Sender<()>,
}

impl<T> Stopping<T> {
    async fn stop_if_due(&self, after: bool, due: bool) {
        if after == self.after && due {
            self.reached.send(()).unwrap();
            std::future::pending::<()>().await;
        }
    }

    fn due(&self) -> bool {
        self.countdown.fetch_sub(1, Ordering::SeqCst) == 1
    }
}

#[async_trait::async_trait]
impl KeyManager for Stopping<Arc<dyn KeyManager>> {
    async fn generate(&self, id: &str, kind: KeyType) -> Result<Arc<dyn Signer>, KeyError> {
        let due = self.due();
        self.stop_if_due(false, due).await;
        let made = self.inner.generate(id, kind).await;
        self.stop_if_due(true, due).await;
        made
    }

    async fn key(&self, id: &str) -> Result<Option<Arc<dyn Signer>>, KeyError> {
        self.inner.key(id).await
    }

    async fn ids(&self) -> Result<Vec<String>, KeyError> {
        self.inner.ids().await
    }

    async fn remove(&self, id: &str) -> Result<(), KeyError> {
        self.inner.remove(id).await
    }
}

#[async_trait::async_trait]
impl UpstreamAuthority for Stopping<Arc<dyn UpstreamAuthority>> {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    async fn mint_ca(&self, csr: &[u8], ttl: Duration, now: Timestamp) -> Result<UpstreamCa, UpstreamError> {
        let due = self.due();
        self.stop_if_due(false, due).await;
        let minted = self.inner.mint_ca(csr, ttl, now).await;
        self.stop_if_due(true, due).await;
        minted
    }

    async fn bundle(&self, now: Timestamp) -> Result<Option<Bundle>, UpstreamError> {
        self.inner.bundle(now).await
    }
}

/// Runs one life of a process until it says that it has reached its end, and kills it there: nothing that it was in
/// the middle of goes on.
fn killed<F: Future<Output = ()> + Send + 'static>(reached: &mpsc::Receiver<()>, life: F) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.spawn(life);
    reached.recv_timeout(Duration::from_secs(60)).expect("the process reached its end");
    runtime.shutdown_timeout(Duration::from_secs(10));
}

fn lived<T>(life: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(life)
}

/// Restarts after a crash and sees that all is well, then lets rotation go on for a while.
fn recovers(world: &World, what: &str, check: impl FnOnce(&Server)) {
    lived(async {
        let server = world.start().await;
        server.check().await;
        check(&server);
        server.pass(Duration::from_secs(120)).await;
        server.store.close().await;
        println!("{what}: recovered");
    });
}

#[test]
fn a_crash_during_the_first_start_leaves_nothing_to_repair() {
    for after in [false, true] {
        for call in 1..=3 {
            let world = World::new();
            let (reached, end) = mpsc::channel();
            let keys = Stopping { inner: world.keys(), countdown: AtomicUsize::new(call), after, reached };
            let (store, clock) = (world.store(), world.clock());
            killed(&end, async move {
                let keys = Arc::new(keys);
                let _ = Authorities::start(config(), keys, None, store, clock, Arc::new(SystemRandom)).await;
            });
            recovers(&world, &format!("key {call}, after: {after}"), |server| {
                let bundle = server.bundle();
                let counts = [
                    bundle.x509_authorities.len(),
                    bundle.jwt_authorities.len(),
                    bundle.wit_authorities.len(),
                ];
                assert_eq!(counts, [1, 1, 1], "an authority was made twice or published unfinished");
            });
        }
    }
}

#[test]
fn a_crash_during_a_preparation_leaves_the_active_authority_alone() {
    for after in [false, true] {
        for kind in AuthorityKind::ALL {
            let world = World::new();
            let active = lived(async {
                let server = world.start().await;
                let active = AuthorityKind::ALL.map(|kind| server.active(kind));
                server.store.close().await;
                active
            });
            let (reached, end) = mpsc::channel();
            let keys = Stopping { inner: world.keys(), countdown: AtomicUsize::new(1), after, reached };
            let (store, clock) = (world.store(), world.clock());
            killed(&end, async move {
                let keys = Arc::new(keys);
                let authorities =
                    Authorities::start(config(), keys, None, store, clock, Arc::new(SystemRandom))
                        .await
                        .unwrap();
                let _ = authorities.prepare(kind).await;
            });
            recovers(&world, &format!("{kind}, after: {after}"), |server| {
                assert_eq!(AuthorityKind::ALL.map(|kind| server.active(kind)), active);
                assert!(server.slots(kind).other().is_none(), "an authority without a record");
            });
        }
    }
}

#[test]
fn a_crash_that_costs_a_prepared_authority_its_key_only_costs_that() {
    let world = World::new();
    let (active, prepared) = lived(async {
        let server = world.start().await;
        let prepared = server.authorities.prepare(AuthorityKind::X509).await.unwrap();
        let active = server.active(AuthorityKind::X509);
        server.store.close().await;
        (active, prepared)
    });
    let (reached, end) = mpsc::channel();
    let keys = Stopping { inner: world.keys(), countdown: AtomicUsize::new(1), after: true, reached };
    let (store, clock) = (world.store(), world.clock());
    killed(&end, async move {
        let keys = Arc::new(keys);
        let authorities =
            Authorities::start(config(), keys, None, store, clock, Arc::new(SystemRandom)).await.unwrap();
        let _ = authorities.prepare(AuthorityKind::X509).await;
    });
    lived(async {
        let server = world.start().await;
        assert_eq!(server.active(AuthorityKind::X509), active);
        assert!(server.slots(AuthorityKind::X509).prepared().is_none(), "it cannot sign any more");
        let error =
            server.authorities.activate(AuthorityKind::X509, &prepared.authority_id).await.unwrap_err();
        assert!(matches!(error, AuthorityError::Slot(SlotError::UnexpectedAuthorityId)), "{error}");
        server.pass(Duration::from_secs(120)).await;
    });
}

#[test]
fn a_crash_around_the_upstream_signature_is_harmless() {
    for after in [false, true] {
        let mut world = World::new();
        let files = UpstreamFiles::self_signed(&world);
        world.upstream = Some(Arc::new(files.open(&world)));
        let active = lived(async {
            let server = world.start().await;
            let active = server.active(AuthorityKind::X509);
            server.store.close().await;
            active
        });
        let (reached, end) = mpsc::channel();
        let upstream: Arc<dyn UpstreamAuthority> = Arc::new(Stopping {
            inner: world.upstream.clone().unwrap(),
            countdown: AtomicUsize::new(1),
            after,
            reached,
        });
        let (store, clock, keys) = (world.store(), world.clock(), world.keys());
        killed(&end, async move {
            let random = Arc::new(SystemRandom);
            let authorities =
                Authorities::start(config(), keys, Some(upstream), store, clock, random).await.unwrap();
            let _ = authorities.prepare(AuthorityKind::X509).await;
        });
        recovers(&world, &format!("upstream, after: {after}"), |server| {
            assert_eq!(server.active(AuthorityKind::X509), active);
        });
    }
}

#[test]
fn each_finished_step_is_found_finished() {
    for kind in AuthorityKind::ALL {
        let world = World::new();
        // Each life ends without any farewell right after its step.
        let prepared = lived(async { world.start().await.authorities.prepare(kind).await.unwrap() });
        let activated = lived(async {
            let server = world.start().await;
            assert_eq!(server.slots(kind).prepared(), Some(&prepared));
            let former = server.active(kind);
            let activated = server.authorities.activate(kind, &prepared.authority_id).await.unwrap();
            assert_eq!(activated.authority_id, prepared.authority_id);
            former
        });
        let former = activated;
        lived(async {
            let server = world.start().await;
            assert_eq!(server.active(kind), prepared.authority_id);
            assert_eq!(server.slots(kind).old().unwrap().authority_id, former);
            server.check().await;
            server.authorities.taint(kind, &former).await.unwrap();
        });
        lived(async {
            let server = world.start().await;
            assert!(server.slots(kind).old().unwrap().tainted);
            server.authorities.revoke(kind, &former).await.unwrap();
        });
        recovers(&world, kind.as_str(), |server| {
            assert!(server.slots(kind).old().is_none());
            assert_eq!(server.active(kind), prepared.authority_id);
        });
    }
}

#[tokio::test]
async fn a_store_that_refuses_costs_a_step_and_no_more() {
    let world = World::new();
    let server = world.start().await;
    let before = server.slots(AuthorityKind::X509);
    server.store.close().await;
    world.clock.advance(Duration::from_secs(31));
    server.authorities.tick(world.clock.now()).await.unwrap_err();
    assert_eq!(server.slots(AuthorityKind::X509), before);
    server.check_signatures();
    // Signing goes on although the inventory takes nothing.
    let entry = EntryBuilder::new("entry").spiffe_id("/workload").build();
    let jwt = server.issuing.issue_jwt(&entry, &["a".to_owned()], world.clock.now()).unwrap();
    server.issuing.record(vec![jwt.issued]).await;
}

#[tokio::test]
async fn who_asked_may_go_and_the_step_is_taken_all_the_same() {
    let world = World::new();
    let server = world.start().await;
    let mut steps = server.authorities.subscribe();
    {
        let asking = server.authorities.prepare(AuthorityKind::Jwt);
        tokio::pin!(asking);
        // One poll starts it; then the caller hangs up.
        let polled =
            std::future::poll_fn(|context| std::task::Poll::Ready(asking.as_mut().poll(context))).await;
        assert!(polled.is_pending());
    }
    tokio::time::timeout(Duration::from_secs(30), steps.changed()).await.expect("the step is taken").unwrap();
    assert!(server.slots(AuthorityKind::Jwt).prepared().is_some());
    server.check().await;
}

#[tokio::test]
async fn switched_off_kinds_have_no_authority() {
    let world = World::new();
    let config = AuthorityConfig { jwt_enabled: false, wit_enabled: false, ..config() };
    let random = Arc::new(SystemRandom);
    let authorities =
        Authorities::start(config, world.keys(), None, world.store(), world.clock(), random).await.unwrap();
    assert!(authorities.jwt().is_none() && authorities.wit().is_none());
    for kind in [AuthorityKind::Jwt, AuthorityKind::Wit] {
        let error = authorities.prepare(kind).await.unwrap_err();
        assert!(matches!(error, AuthorityError::Disabled(_)), "{error}");
    }
}

/// The files of an upstream authority.
struct UpstreamFiles {
    authority: TestAuthority,
    cert: PathBuf,
    key: PathBuf,
    bundle: Option<PathBuf>,
}

impl UpstreamFiles {
    fn self_signed(world: &World) -> Self {
        let files = Self {
            authority: upstream_authority(world, 3600),
            cert: world.folder.path().join("upstream.pem"),
            key: world.folder.path().join("upstream-key.pem"),
            bundle: None,
        };
        files.write();
        files
    }

    fn intermediate(world: &World) -> Self {
        let root = upstream_authority(world, 3600);
        let files = Self {
            authority: root.intermediate(),
            bundle: Some(world.folder.path().join("upstream-roots.pem")),
            ..Self::self_signed(world)
        };
        files.write();
        files
    }

    fn write(&self) {
        std::fs::write(&self.key, pem::encode("PRIVATE KEY", &self.authority.pkcs8())).unwrap();
        std::fs::write(&self.cert, pem::encode("CERTIFICATE", self.authority.certificate())).unwrap();
        if let Some(bundle) = &self.bundle {
            std::fs::write(bundle, pem::encode("CERTIFICATE", self.authority.root())).unwrap();
        }
    }

    fn config(&self) -> DiskConfig {
        DiskConfig {
            trust_domain: trust_domain(),
            cert_file_path: self.cert.clone(),
            key_file_path: self.key.clone(),
            bundle_file_path: self.bundle.clone(),
        }
    }

    fn try_open(&self, world: &World) -> Result<Disk, UpstreamError> {
        Disk::open(self.config(), Arc::new(SystemRandom), world.clock.now())
    }

    fn open(&self, world: &World) -> Disk {
        self.try_open(world).unwrap()
    }
}

async fn roots(upstream: &dyn UpstreamAuthority, world: &World) -> Vec<Vec<u8>> {
    let bundle = upstream.bundle(world.clock.now()).await.unwrap().unwrap();
    bundle.x509_authorities.into_iter().map(|root| root.certificate).collect()
}

fn upstream_authority(world: &World, seconds: u64) -> TestAuthority {
    let now = world.clock.now();
    let life =
        (now.saturating_sub(Duration::from_secs(60)), now.saturating_add(Duration::from_secs(seconds)));
    TestAuthority::new(&trust_domain(), life.0, life.1)
}

#[tokio::test]
async fn below_an_upstream_root_the_root_is_published_and_the_chain_handed_out() {
    let mut world = World::new();
    let files = UpstreamFiles::self_signed(&world);
    world.upstream = Some(Arc::new(files.open(&world)));
    let server = world.start().await;
    server.check().await;
    let bundle = server.bundle();
    assert_eq!(bundle.x509_authorities.len(), 1);
    assert_eq!(bundle.x509_authorities[0].certificate, files.authority.root());
    let key = PrivateKey::generate(KeyType::EcP256).unwrap();
    let svid = server.issuing.issue_agent_x509(&agent_id("a"), key.public_key(), world.clock.now()).unwrap();
    assert_eq!(svid.chain.len(), 2, "leaf and our CA");
    let ca = inspect(&svid.chain[1]).unwrap();
    assert!(ca.is_ca);
    assert_eq!(ca.uris, [trust_domain().id_string()]);
    assert_eq!(ca.ski.as_deref(), Some(server.active(AuthorityKind::X509).as_str()));
    // Rotation changes the intermediate and not the root.
    let former = server.active(AuthorityKind::X509);
    server.pass(Duration::from_secs(120)).await;
    assert_ne!(server.active(AuthorityKind::X509), former);
    assert_eq!(server.bundle().x509_authorities.len(), 1);
    // There is nothing of ours in the bundle to taint.
    let old = server.slots(AuthorityKind::X509).other().unwrap().authority_id.clone();
    let error = server.authorities.taint(AuthorityKind::X509, &old).await.unwrap_err();
    assert!(matches!(error, AuthorityError::BelowUpstream(_)), "{error}");
}

#[tokio::test]
async fn below_an_upstream_intermediate_the_whole_chain_is_handed_out() {
    let mut world = World::new();
    let files = UpstreamFiles::intermediate(&world);
    world.upstream = Some(Arc::new(files.open(&world)));
    let server = world.start().await;
    server.check().await;
    let key = PrivateKey::generate(KeyType::EcP256).unwrap();
    let svid = server.issuing.issue_agent_x509(&agent_id("a"), key.public_key(), world.clock.now()).unwrap();
    assert_eq!(svid.chain.len(), 3, "leaf, our CA, the intermediate");
    assert_eq!(svid.chain[2], files.authority.certificate());
    assert!(!svid.chain.iter().any(|certificate| certificate == files.authority.root()));
}

#[tokio::test]
async fn a_replaced_root_reaches_the_bundle_and_can_be_tainted_and_revoked() {
    let mut world = World::new();
    let mut files = UpstreamFiles::self_signed(&world);
    world.upstream = Some(Arc::new(files.open(&world)));
    let server = world.start().await;
    let former = inspect(files.authority.root()).unwrap().ski.unwrap();
    files.authority = upstream_authority(&world, 7200);
    files.write();
    server.tick().await;
    assert_eq!(
        server.bundle().x509_authorities.len(),
        2,
        "the new root is published before anything is signed below it"
    );
    server.check().await;

    let error = server.authorities.taint_upstream(&former).await.unwrap_err();
    assert!(matches!(error, AuthorityError::Slot(SlotError::TaintCurrent)), "{error}");
    let prepared = server.authorities.prepare(AuthorityKind::X509).await.unwrap();
    assert_ne!(prepared.upstream_authority_id.as_deref(), Some(former.as_str()));
    server.authorities.activate(AuthorityKind::X509, &prepared.authority_id).await.unwrap();
    assert!(matches!(
        server.authorities.revoke_upstream(&former).await.unwrap_err(),
        AuthorityError::Slot(SlotError::Untainted)
    ));
    server.authorities.taint_upstream(&former.to_uppercase()).await.unwrap();
    assert_eq!(server.bundle().x509_authorities.iter().filter(|root| root.tainted).count(), 1);
    server.authorities.revoke_upstream(&former).await.unwrap();
    assert_eq!(server.bundle().x509_authorities.len(), 1);
    server.check().await;
}

#[tokio::test]
async fn adding_an_upstream_replaces_the_self_signed_authority_at_the_next_start() {
    let mut world = World::new();
    let server = world.start().await;
    let former = server.active(AuthorityKind::X509);
    server.store.close().await;
    drop(server);
    let files = UpstreamFiles::self_signed(&world);
    world.upstream = Some(Arc::new(files.open(&world)));
    let server = world.start().await;
    assert_ne!(server.active(AuthorityKind::X509), former);
    assert_eq!(server.bundle().x509_authorities.len(), 2, "what the former one signed still verifies");
    server.check_signatures();
}

#[tokio::test]
async fn an_upstream_that_ends_soon_is_not_asked_all_the_time() {
    let mut world = World::new();
    let mut files = UpstreamFiles::self_signed(&world);
    files.authority = upstream_authority(&world, 40);
    files.write();
    world.upstream = Some(Arc::new(files.open(&world)));
    let server = world.start().await;
    let mut ids = std::collections::BTreeSet::new();
    for _ in 0..38 {
        world.clock.advance(Duration::from_secs(1));
        server.tick().await;
        ids.extend(server.slots(AuthorityKind::X509).iter().map(|slot| slot.authority_id.clone()));
    }
    assert!(ids.len() < 20, "{} CA certificates in 38 seconds", ids.len());
    server.check_signatures();
}

#[tokio::test]
async fn unusable_upstream_files_are_refused_and_the_last_good_ones_stay() {
    let mut world = World::new();
    let files = UpstreamFiles::self_signed(&world);
    let disk = Arc::new(files.open(&world));
    world.upstream = Some(disk.clone());
    let server = world.start().await;
    let other = upstream_authority(&world, 3600);
    let expired = {
        let now = world.clock.now();
        let before = |seconds| now.saturating_sub(Duration::from_secs(seconds));
        TestAuthority::new(&trust_domain(), before(100), before(50))
    };
    let leaf = other.issue(&id("/workload"));
    type Spoil<'a> = Box<dyn Fn(&Path, &Path) + 'a>;
    let write = |path: &Path, text: String| std::fs::write(path, text).unwrap();
    let cases: Vec<(&str, Spoil<'_>, &str)> = vec![
        ("no certificate", Box::new(|cert, _| write(cert, String::new())), "holds no certificate"),
        ("not PEM", Box::new(|cert, _| write(cert, "-----BEGIN CERTIFICATE-----\nx".to_owned())), "PEM"),
        ("missing", Box::new(|cert, _| std::fs::remove_file(cert).unwrap()), "cannot be read"),
        (
            "another key",
            Box::new(|_, key| write(key, pem::encode("PRIVATE KEY", &other.pkcs8()))),
            "does not hold the key",
        ),
        (
            "old kind of key file",
            Box::new(|_, key| write(key, pem::encode("DSA PRIVATE KEY", &other.pkcs8()))),
            "openssl pkcs8",
        ),
        ("no key", Box::new(|_, key| write(key, String::new())), "exactly one key"),
        (
            "expired",
            Box::new(|cert, key| {
                write(cert, pem::encode("CERTIFICATE", expired.certificate()));
                write(key, pem::encode("PRIVATE KEY", &expired.pkcs8()));
            }),
            "has expired",
        ),
        (
            "a leaf",
            Box::new(|cert, key| {
                write(cert, pem::encode("CERTIFICATE", &leaf.chain[0]));
                write(key, pem::encode("PRIVATE KEY", &leaf.pkcs8));
            }),
            "not a CA",
        ),
        (
            "an intermediate without its root",
            Box::new(|cert, key| {
                let intermediate = other.intermediate();
                let both = [intermediate.certificate(), other.certificate()];
                write(cert, both.map(|der| pem::encode("CERTIFICATE", der)).concat());
                write(key, pem::encode("PRIVATE KEY", &intermediate.pkcs8()));
            }),
            "bundle file",
        ),
    ];
    for (what, spoil, reason) in cases {
        files.write();
        assert_eq!(roots(&*disk, &world).await, [files.authority.root()], "{what}");
        spoil(&files.cert, &files.key);
        let error = files.try_open(&world).err().unwrap_or_else(|| panic!("{what}: opened")).to_string();
        assert!(error.contains(reason), "{what}: {error}");
        assert!(error.contains("upstream"), "{what}: names no file: {error}");
        // Whoever is running goes on.
        assert_eq!(roots(&*disk, &world).await, [files.authority.root()], "{what}");
        server.authorities.prepare(AuthorityKind::X509).await.unwrap();
    }
    server.check().await;
}

#[tokio::test]
async fn an_upstream_bundle_that_does_not_fit_is_refused() {
    let world = World::new();
    let files = UpstreamFiles::intermediate(&world);
    let stranger = upstream_authority(&world, 3600);
    std::fs::write(files.bundle.as_ref().unwrap(), pem::encode("CERTIFICATE", stranger.root())).unwrap();
    let error = files.try_open(&world).err().unwrap().to_string();
    assert!(error.contains("does not chain"), "{error}");
}

#[tokio::test]
async fn the_upstream_refuses_what_is_not_a_request_of_ours() {
    let world = World::new();
    let disk = UpstreamFiles::self_signed(&world).open(&world);
    let now = world.clock.now();
    let foreign = TestAuthority::request(&id("spiffe://other.org/x")).0;
    for (csr, reason) in [(b"nonsense".to_vec(), "malformed CSR"), (foreign, "exactly the URI")] {
        let error = disk.mint_ca(&csr, CA_TTL, now).await.unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
}

#[tokio::test]
async fn the_server_svid_is_renewed_at_half_life_and_when_its_authority_is_tainted() {
    let mut world = World::new();
    world.driver = DriverKind::Memory;
    let server = world.start().await;
    let (holder, trust) = (SvidHolder::empty(), TrustStore::empty());
    let random = Arc::new(SystemRandom);
    let now = world.clock.now();
    let mut svid = ServerSvid::start(
        Arc::clone(&server.issuing),
        server.store.clone(),
        holder.clone(),
        trust.clone(),
        random,
        now,
    )
    .unwrap();
    let leaf = |holder: &SvidHolder| holder.current().unwrap().chain().next().unwrap().to_vec();
    let first = leaf(&holder);
    let info = inspect(&first).unwrap();
    assert_eq!(info.spiffe_id, Some(trust_domain().server_id()));
    assert!(trust.roots(&trust_domain()).is_some());

    // The default life of an hour is capped by the authority's minute: half of it, give or take a tenth.
    let renewal = svid.refresh(now).unwrap();
    let after = renewal.saturating_since(now).as_secs_f64();
    assert!((27.0..=33.0).contains(&after), "renewal after {after} s");
    assert_eq!(leaf(&holder), first);
    world.clock.set(renewal);
    svid.refresh(renewal).unwrap();
    let second = leaf(&holder);
    assert_ne!(second, first);

    let former = server.active(AuthorityKind::X509);
    let prepared = server.authorities.prepare(AuthorityKind::X509).await.unwrap();
    svid.refresh(world.clock.now()).unwrap();
    assert_eq!(trust.roots(&trust_domain()).unwrap().certificates().count(), 2, "trust follows the bundle");
    server.authorities.activate(AuthorityKind::X509, &prepared.authority_id).await.unwrap();
    svid.refresh(world.clock.now()).unwrap();
    assert_eq!(leaf(&holder), second, "an activation alone changes nothing");
    server.authorities.taint(AuthorityKind::X509, &former).await.unwrap();
    svid.refresh(world.clock.now()).unwrap();
    assert_eq!(inspect(&leaf(&holder)).unwrap().aki, Some(prepared.authority_id));
}

#[tokio::test]
async fn a_batch_keeps_its_order_and_one_bad_request_spoils_no_other() {
    let mut world = World::new();
    world.driver = DriverKind::Memory;
    let server = world.start().await;
    let now = world.clock.now();
    let requests: Vec<_> = (0..250)
        .map(|n| {
            let entry = EntryBuilder::new(&format!("e{n}")).spiffe_id(&format!("/w{n}")).shared();
            let key = PrivateKey::generate(KeyType::EcP256).unwrap();
            let mut csr = agent_csr(&key, None).unwrap();
            if n % 50 == 7 {
                *csr.last_mut().unwrap() ^= 1;
            }
            WorkloadRequest { entry, csr }
        })
        .collect();
    let signed = server.issuing.issue_workload_batch(requests, now).await;
    assert_eq!(signed.len(), 250);
    let mut records = Vec::new();
    for (n, signed) in signed.into_iter().enumerate() {
        match signed {
            Err(error) => assert!(n % 50 == 7, "{n}: {error}"),
            Ok(signed) => {
                assert_ne!(n % 50, 7);
                assert_eq!(signed.issued.spiffe_id, id(&format!("/w{n}")));
                assert_eq!(inspect(&signed.chain[0]).unwrap().spiffe_id, Some(id(&format!("/w{n}"))));
                records.push(signed.issued);
            }
        }
    }
    let mut serials: Vec<_> = records.iter().map(|record| record.serial.clone()).collect();
    serials.sort();
    serials.dedup();
    assert_eq!(serials.len(), 245);
    server.issuing.record(records.clone()).await;
    let stored = server.store.write(move |unit| unit.issued(now, 1000)).await.unwrap();
    assert_eq!(stored.len(), 245);
    assert!(server.issuing.issue_workload_batch(Vec::new(), now).await.is_empty());
}

#[tokio::test]
async fn nothing_outlives_its_issuer_and_nothing_is_signed_by_an_expired_one() {
    let mut world = World::new();
    world.driver = DriverKind::Memory;
    let server = world.start().await;
    let not_after = server.authorities.x509().not_after();
    let entry = EntryBuilder::new("e").spiffe_id("/w").with(|entry| entry.x509_svid_ttl = 86_400).build();
    let key = PrivateKey::generate(KeyType::EcP256).unwrap();
    let csr = VerifiedCsr::parse(&agent_csr(&key, None).unwrap()).unwrap();
    let now = world.clock.now();
    let svid = server.issuing.issue_workload_x509(&entry, &csr, now).unwrap();
    assert_eq!(svid.issued.not_after, not_after);
    assert_eq!(inspect(&svid.chain[0]).unwrap().not_after, not_after);
    let jwt =
        server.issuing.mint_jwt(&entry.spiffe_id, &["a".to_owned()], Duration::from_secs(9999), now).unwrap();
    assert!(jwt.issued.not_after <= server.slots(AuthorityKind::Jwt).active().unwrap().not_after);
    let later = not_after.saturating_add(Duration::from_secs(1));
    assert!(server.issuing.issue_workload_x509(&entry, &csr, later).is_err());
    assert!(server.issuing.issue_jwt(&entry, &["a".to_owned()], later).is_err());
}

#[tokio::test]
async fn other_kinds_of_keys_sign_as_well() {
    for kind in [KeyType::EcP384, KeyType::Rsa2048] {
        let mut world = World::new();
        world.driver = DriverKind::Memory;
        let store = world.store();
        let config =
            AuthorityConfig { ca_key_type: kind, jwt_key_type: kind, wit_key_type: kind, ..config() };
        let random = Arc::new(SystemRandom);
        let authorities =
            Authorities::start(config, world.keys(), None, store.clone(), world.clock(), random.clone())
                .await;
        let authorities = authorities.unwrap();
        let issuing = Issuing::new(IssuingConfig::default(), Arc::clone(&authorities), store.clone(), random);
        let server = Server { store, authorities, issuing: Arc::new(issuing), clock: world.clock.clone() };
        server.check().await;
    }
}
