//! The slots of each kind of authority, and the steps between their states.
//!
//! One task takes steps at a time, whoever asks (the rotation task or an administrator), and a step that has begun
//! is finished even when the one who asked has gone: a key that was generated into a slot has replaced the one
//! before it, so stopping half-way would leave memory and key manager in disagreement until the next start.
//!
//! What a crash can leave behind, and what the next start makes of it:
//!
//! | crash after | left | at the start |
//! |---|---|---|
//! | a key was generated | a key that no record names, in the place of an old or prepared one | the old authority needs no key; a prepared one without its key is forgotten and prepared again |
//! | upstream signed | the same, and a CA certificate that nobody uses | the same |
//! | the write was durable | the step is done | it is found done |
//!
//! An active authority whose key is lost cannot sign any more. It becomes old, what it signed goes on verifying,
//! and a new one takes its place at once.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use bonafide_identity::lifetime::policy::{Kind as LifetimeKind, Policy, Subject as Living};
use bonafide_identity::{
    AuthorityKind, AuthorityRefusal, AuthoritySlot, AuthoritySlots, Bundle, Distrusted, JwtAuthority,
    RotationStep, SlotError, SlotId, SlotStatus, Timestamp, TrustDomain, X509Authority, capped,
};
use bonafide_pki::{
    CaSubject, JwtSigner, KeyError, KeyManager, KeyType, Random, Signer, X509Error, X509Issuer, ca_csr,
    inspect, random_key_id, random_serial, self_signed_ca,
};
use bonafide_runtime::clock::SharedClock;
use tokio::sync::{Mutex, watch};

use super::journal;
use crate::status::names;
use crate::store::{Bundles as _, Journal as _, JournalRecord, Store, StoreError, Unit};
use crate::upstream_authority::{UpstreamAuthority, UpstreamError, prove_chain};

/// What the authorities are like.
#[derive(Clone, Debug)]
pub struct AuthorityConfig {
    /// The trust domain they sign for.
    pub trust_domain: TrustDomain,
    /// Life of a CA certificate and of a JWT or WIT key.
    pub ca_ttl: Duration,
    /// How long an authority may live.
    pub policy: Policy,
    /// Key of the X.509 authority.
    pub ca_key_type: KeyType,
    /// Key of the JWT authority.
    pub jwt_key_type: KeyType,
    /// Key of the WIT authority.
    pub wit_key_type: KeyType,
    /// Subject of CA certificates.
    pub ca_subject: CaSubject,
    /// Whether there is a JWT authority at all.
    pub jwt_enabled: bool,
    /// Whether there is a WIT authority at all.
    pub wit_enabled: bool,
}

/// An active JWT or WIT key.
pub struct TokenIssuer {
    /// Signs with it.
    pub signer: JwtSigner,
    /// No token may outlive this.
    pub not_after: Timestamp,
}

/// The authorities of this server.
pub struct Authorities {
    steps: Arc<Mutex<Steps>>,
    live: Arc<ArcSwap<Live>>,
    taken: Arc<watch::Sender<u64>>,
    clock: SharedClock,
    trust_domain: TrustDomain,
    upstream: Option<Arc<dyn UpstreamAuthority>>,
    revoked: Arc<Revoked>,
    store: Store,
    jwt_enabled: bool,
    wit_enabled: bool,
}

/// What signs and what is shown, replaced as a whole after each step.
struct Live {
    x509: Arc<X509Issuer>,
    jwt: Option<Arc<TokenIssuer>>,
    wit: Option<Arc<TokenIssuer>>,
    slots: HashMap<AuthorityKind, AuthoritySlots>,
}

impl Authorities {
    /// Restores what the journal names and the key manager still holds, makes what is missing, and returns once
    /// there is an active authority of each enabled kind.
    ///
    /// # Errors
    /// A key cannot be made, the upstream authority refuses, or the store does not take a step.
    pub async fn start(
        config: AuthorityConfig,
        keys: Arc<dyn KeyManager>,
        upstream: Option<Arc<dyn UpstreamAuthority>>,
        store: Store,
        clock: SharedClock,
        random: Arc<dyn Random>,
    ) -> Result<Arc<Self>, AuthorityError> {
        let now = clock.now();
        let (jwt_enabled, wit_enabled) = (config.jwt_enabled, config.wit_enabled);
        let trust_domain = config.trust_domain.clone();
        let (above, stored, revoked) = (upstream.clone(), store.clone(), Arc::<Revoked>::default());
        let mut steps = Steps {
            config,
            keys,
            upstream,
            store,
            random,
            kinds: HashMap::new(),
            unfinished: HashMap::new(),
            distrusted: Distrusted::default(),
            told: HashSet::new(),
            revoked: Arc::clone(&revoked),
        };
        for kind in steps.enabled() {
            steps.restore(kind, now).await?;
            if let Err(error) = steps.reconcile(kind, now).await {
                if !steps.signs(kind, now) {
                    return Err(error);
                }
                let error = chain(&error);
                tracing::error!(%kind, error, "a due step of rotation failed; it is tried again");
            }
        }
        let live = steps.live()?;
        Ok(Arc::new(Self {
            steps: Arc::new(Mutex::new(steps)),
            live: Arc::new(ArcSwap::from_pointee(live)),
            taken: Arc::new(watch::Sender::new(0)),
            clock,
            trust_domain,
            upstream: above,
            revoked,
            store: stored,
            jwt_enabled,
            wit_enabled,
        }))
    }

    /// The X.509 authority that signs now.
    pub fn x509(&self) -> Arc<X509Issuer> {
        Arc::clone(&self.live.load().x509)
    }

    /// The JWT key that signs now; `None` when JWT-SVIDs are switched off.
    pub fn jwt(&self) -> Option<Arc<TokenIssuer>> {
        self.live.load().jwt.clone()
    }

    /// The WIT key that signs now; `None` when WIT-SVIDs are switched off.
    pub fn wit(&self) -> Option<Arc<TokenIssuer>> {
        self.live.load().wit.clone()
    }

    /// Both slots of a kind; empty when the kind is switched off.
    pub fn slots(&self, kind: AuthorityKind) -> AuthoritySlots {
        self.live.load().slots.get(&kind).cloned().unwrap_or_default()
    }

    /// Whether there are authorities of this kind.
    pub fn enabled(&self, kind: AuthorityKind) -> bool {
        match kind {
            AuthorityKind::X509 => true,
            AuthorityKind::Jwt => self.jwt_enabled,
            AuthorityKind::Wit => self.wit_enabled,
        }
    }

    /// Whether CA certificates come from an upstream authority.
    pub fn has_upstream(&self) -> bool {
        self.upstream.is_some()
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Counts the steps taken: changes after each of them.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.taken.subscribe()
    }

    /// Looks at what the upstream authority publishes, takes it into the bundle, and takes the steps that follow: an
    /// authority below a tainted root, or a tainted key, is replaced at once. Does nothing without an upstream, or
    /// with one that tells its roots with a signature only.
    ///
    /// # Errors
    /// The upstream authority cannot be asked, or a step failed. What was known before stays.
    pub async fn follow_upstream(&self, now: Timestamp) -> Result<(), AuthorityError> {
        let Some(upstream) = &self.upstream else { return Ok(()) };
        // Asked without holding up the steps that somebody else may want to take.
        let Some(bundle) = counted("bundle", upstream.bundle(now).await)? else { return Ok(()) };
        metrics::gauge!(names::UPSTREAM_SEEN).set(now.unix_seconds() as f64);
        self.step(move |steps| Box::pin(steps.follow(bundle, now))).await
    }

    /// Publishes the key of a server below this one, upward as well where the upstream authority takes keys, and gives
    /// all keys of that kind in the trust domain.
    ///
    /// # Errors
    /// The upstream authority does not take it, or the store does not.
    pub async fn publish_key(
        &self,
        kind: AuthorityKind,
        key: JwtAuthority,
    ) -> Result<Vec<JwtAuthority>, AuthorityError> {
        let mut keys = match &self.upstream {
            Some(upstream) => counted("publish", upstream.publish_key(kind, &key).await)?.unwrap_or_default(),
            None => Vec::new(),
        };
        keys.push(key);
        self.revoked.learn(&self.store);
        self.revoked.leave_out(&mut keys);
        let mut more = Bundle::empty(self.trust_domain.clone());
        match kind {
            AuthorityKind::X509 => {}
            AuthorityKind::Jwt => more.jwt_authorities = keys,
            AuthorityKind::Wit => more.wit_authorities = keys,
        }
        publish(&self.store, more).await?;
        let bundle = self.store.state().bundle(&self.trust_domain);
        Ok(bundle.map_or_else(Vec::new, |bundle| match kind {
            AuthorityKind::X509 => Vec::new(),
            AuthorityKind::Jwt => bundle.jwt_authorities.clone(),
            AuthorityKind::Wit => bundle.wit_authorities.clone(),
        }))
    }

    /// How long to wait between two calls of [`Self::follow_upstream`]; `None` without an upstream authority.
    pub fn upstream_poll_interval(&self) -> Option<Duration> {
        self.upstream.as_ref().map(|upstream| upstream.poll_interval())
    }

    /// Takes every step that is due at `now`, and returns the instant of the next look: the next step that will be
    /// due, [`LONGEST_WAIT`] at the latest.
    ///
    /// # Errors
    /// The first step that failed; the others have been tried all the same.
    pub async fn tick(&self, now: Timestamp) -> Result<Timestamp, AuthorityError> {
        self.step(move |steps| Box::pin(steps.tick(now))).await
    }

    /// Makes a new authority in the slot that is not active and publishes it.
    ///
    /// # Errors
    /// The kind is switched off, or the step failed.
    pub async fn prepare(&self, kind: AuthorityKind) -> Result<AuthoritySlot, AuthorityError> {
        let now = self.clock.now();
        self.step(move |steps| {
            Box::pin(async move {
                steps.slots(kind)?.require_active()?;
                steps.prepare(kind, now).await
            })
        })
        .await
    }

    /// Signs with the prepared authority of this ID from now on.
    ///
    /// # Errors
    /// The kind is switched off, the ID is not that of a prepared authority, or the step failed.
    pub async fn activate(&self, kind: AuthorityKind, id: &str) -> Result<AuthoritySlot, AuthorityError> {
        let id = id.to_owned();
        let now = self.clock.now();
        self.step(move |steps| Box::pin(async move { steps.activate(kind, &id, now).await })).await
    }

    /// Marks an old authority in the bundle, so that everybody replaces what it signed: this server's own, or one of the
    /// bundle that is in no slot of this server, which another server of the trust domain made. Gives its end.
    ///
    /// # Errors
    /// The kind is switched off, the ID is not that of such an authority, or the step failed.
    pub async fn taint(&self, kind: AuthorityKind, id: &str) -> Result<Timestamp, AuthorityError> {
        let id = id.to_owned();
        self.step(move |steps| Box::pin(async move { steps.taint(kind, &id).await })).await
    }

    /// Takes a tainted authority out of the bundle, also one that is in no slot of this server.
    ///
    /// # Errors
    /// The kind is switched off, the authority signs or is about to, is not tainted, or the step failed.
    pub async fn revoke(&self, kind: AuthorityKind, id: &str) -> Result<(), AuthorityError> {
        let id = id.to_owned();
        self.step(move |steps| Box::pin(async move { steps.revoke(kind, &id).await })).await
    }

    /// As [`Self::taint`], for the root of the upstream authority with this subject key identifier (hex).
    ///
    /// # Errors
    /// There is no upstream authority, it is not the root of an old authority, or the step failed.
    pub async fn taint_upstream(&self, subject_key_id: &str) -> Result<(), AuthorityError> {
        let id = subject_key_id.to_ascii_lowercase();
        self.step(move |steps| Box::pin(async move { steps.taint_upstream(&id).await })).await
    }

    /// As [`Self::revoke`], for the root of the upstream authority with this subject key identifier (hex).
    ///
    /// # Errors
    /// There is no upstream authority, it is not the root of an old authority, it is not tainted, or the step failed.
    pub async fn revoke_upstream(&self, subject_key_id: &str) -> Result<(), AuthorityError> {
        let id = subject_key_id.to_ascii_lowercase();
        self.step(move |steps| Box::pin(async move { steps.revoke_upstream(&id).await })).await
    }

    /// Runs `take` alone and to its end, then shows what came of it.
    async fn step<T: Send + 'static>(
        &self,
        take: impl for<'a> FnOnce(&'a mut Steps) -> Taking<'a, T> + Send + 'static,
    ) -> Result<T, AuthorityError> {
        let (steps, live, taken) = (Arc::clone(&self.steps), Arc::clone(&self.live), Arc::clone(&self.taken));
        let task = tokio::spawn(async move {
            let mut steps = steps.lock().await;
            let before = steps.fingerprint();
            let result = take(&mut steps).await;
            if steps.fingerprint() != before {
                live.store(Arc::new(steps.live()?));
                taken.send_modify(|count| *count += 1);
            }
            result
        });
        task.await.unwrap_or(Err(AuthorityError::Interrupted))
    }
}

type Taking<'a, T> = std::pin::Pin<Box<dyn Future<Output = Result<T, AuthorityError>> + Send + 'a>>;

/// The slots, and everything that a step needs.
struct Steps {
    config: AuthorityConfig,
    keys: Arc<dyn KeyManager>,
    upstream: Option<Arc<dyn UpstreamAuthority>>,
    store: Store,
    random: Arc<dyn Random>,
    kinds: HashMap<AuthorityKind, KindState>,
    /// Keys that were made for an authority that the upstream did not confirm. The next attempt takes the same key,
    /// so that an upstream that is away for a day does not cost a key each second.
    unfinished: HashMap<AuthorityKind, Unfinished>,
    /// What the upstream has tainted in the life of this process.
    distrusted: Distrusted,
    /// The keys that the upstream knows, or need not know, by ID. Each is told once in the life of a process: telling
    /// it again and again would bring back a key that somebody has revoked upstream.
    told: HashSet<String>,
    revoked: Arc<Revoked>,
}

/// What an administrator has revoked here: key identifiers of roots, and key IDs, the last [`MAX_REVOKED`] of each kind in
/// the order of their revocation. An upstream that goes on publishing it must not bring it back, so the journal keeps it.
#[derive(Default)]
struct Revoked(std::sync::Mutex<Vec<(AuthorityKind, String)>>);

impl Revoked {
    /// Says whether it is new.
    fn note(&self, kind: AuthorityKind, id: &str) -> bool {
        let mut all = self.all();
        if all.iter().any(|(_, known)| known == id) {
            return false;
        }
        if all.iter().filter(|(of, _)| *of == kind).count() >= MAX_REVOKED
            && let Some(oldest) = all.iter().position(|(of, _)| *of == kind)
        {
            all.remove(oldest);
        }
        all.push((kind, id.to_owned()));
        true
    }

    /// Takes over what was revoked at any server of the group.
    fn learn(&self, store: &Store) {
        for kind in AuthorityKind::ALL {
            for id in store.state().revoked(kind) {
                self.note(kind, &id);
            }
        }
    }

    fn holds(&self, kind: AuthorityKind, id: &str) -> bool {
        self.all().iter().any(|(of, known)| *of == kind && known == id)
    }

    fn forget(&self, id: &str) {
        self.all().retain(|(_, known)| known != id);
    }

    /// What the journal of a kind keeps.
    fn of(&self, kind: AuthorityKind) -> Vec<String> {
        self.all().iter().filter(|(of, _)| *of == kind).map(|(_, id)| id.clone()).collect()
    }

    fn leave_out(&self, keys: &mut Vec<JwtAuthority>) {
        let revoked = self.all();
        keys.retain(|key| revoked.iter().all(|(_, id)| *id != key.key_id));
    }

    fn holds_root(&self, certificate: &[u8]) -> bool {
        let revoked = self.all();
        if revoked.is_empty() {
            return false;
        }
        let key_id = inspect(certificate).ok().and_then(|info| info.ski);
        key_id.is_some_and(|key_id| revoked.iter().any(|(_, id)| *id == key_id))
    }

    fn leave_out_of(&self, bundle: &mut Bundle) {
        self.leave_out(&mut bundle.jwt_authorities);
        self.leave_out(&mut bundle.wit_authorities);
        bundle.x509_authorities.retain(|root| !self.holds_root(&root.certificate));
    }

    fn all(&self) -> std::sync::MutexGuard<'_, Vec<(AuthorityKind, String)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A key in a slot, waiting for the upstream.
#[derive(Clone)]
struct Unfinished {
    slot: SlotId,
    signer: Arc<dyn Signer>,
    /// JWT and WIT: under which ID it is published. The same again, since the upstream may have taken it although its
    /// answer was lost.
    token_key_id: String,
}

/// The slots of one kind and what belongs to the authorities in them, by authority ID.
#[derive(Clone, Default)]
struct KindState {
    slots: AuthoritySlots,
    material: HashMap<String, Material>,
}

#[derive(Clone)]
struct Material {
    /// SubjectPublicKeyInfo, DER.
    public_key: Vec<u8>,
    /// X.509 only: the CA certificate, then upstream intermediates.
    chain: Vec<Vec<u8>>,
    /// `None` when it cannot sign any more.
    issuer: Option<Issuer>,
}

#[derive(Clone)]
enum Issuer {
    X509(Arc<X509Issuer>),
    Token(Arc<TokenIssuer>),
}

/// What a new authority consists of.
struct Made {
    authority_id: String,
    not_after: Timestamp,
    upstream_authority_id: Option<String>,
    material: Material,
    /// X.509 only: what goes into the bundle.
    roots: Vec<Vec<u8>>,
    /// JWT and WIT only: what the upstream says of the others.
    keys: Vec<JwtAuthority>,
}

/// Key identifiers, of roots and of token keys.
#[derive(Clone)]
struct Signing(HashSet<String>);

impl Signing {
    fn holds(&self, certificate: &[u8], key_id: &str) -> bool {
        if certificate.is_empty() {
            return self.0.contains(key_id);
        }
        inspect(certificate).ok().and_then(|info| info.ski).is_some_and(|ski| self.0.contains(&ski))
    }
}

impl Steps {
    fn enabled(&self) -> Vec<AuthorityKind> {
        let enabled = |kind: &AuthorityKind| match kind {
            AuthorityKind::X509 => true,
            AuthorityKind::Jwt => self.config.jwt_enabled,
            AuthorityKind::Wit => self.config.wit_enabled,
        };
        AuthorityKind::ALL.into_iter().filter(enabled).collect()
    }

    fn state(&self, kind: AuthorityKind) -> Result<&KindState, AuthorityError> {
        self.kinds.get(&kind).ok_or(AuthorityError::Disabled(kind))
    }

    fn slots(&self, kind: AuthorityKind) -> Result<&AuthoritySlots, AuthorityError> {
        Ok(&self.state(kind)?.slots)
    }

    /// What [`Authorities`] shows, as far as it can change.
    fn fingerprint(&self) -> HashMap<AuthorityKind, AuthoritySlots> {
        self.kinds.iter().map(|(kind, state)| (*kind, state.slots.clone())).collect()
    }

    fn live(&self) -> Result<Live, AuthorityError> {
        let issuer = |kind| {
            let state = self.kinds.get(&kind)?;
            state.material.get(&state.slots.active()?.authority_id)?.issuer.clone()
        };
        let token = |kind| match issuer(kind) {
            Some(Issuer::Token(issuer)) => Some(issuer),
            _ => None,
        };
        let Some(Issuer::X509(x509)) = issuer(AuthorityKind::X509) else {
            return Err(SlotError::Initializing.into());
        };
        Ok(Live {
            x509,
            jwt: token(AuthorityKind::Jwt),
            wit: token(AuthorityKind::Wit),
            slots: self.fingerprint(),
        })
    }

    /// Whether the authority in `slot` can sign at `now`, as far as is known here.
    fn usable(&self, kind: AuthorityKind, slot: &AuthoritySlot, now: Timestamp) -> bool {
        let has_issuer = self
            .kinds
            .get(&kind)
            .and_then(|state| state.material.get(&slot.authority_id))
            .is_some_and(|material| material.issuer.is_some());
        // One of the other origin than the configuration names is given up: whoever adds or removes an upstream
        // authority does not mean "next month".
        let right_origin =
            kind != AuthorityKind::X509 || slot.upstream_authority_id.is_some() == self.upstream.is_some();
        has_issuer && right_origin && slot.not_after > now
    }

    fn signs(&self, kind: AuthorityKind, now: Timestamp) -> bool {
        let active = self.kinds.get(&kind).and_then(|state| state.slots.active());
        active.is_some_and(|active| self.usable(kind, active, now))
    }

    /// Fills the slots of `kind` from the journal and the key manager.
    async fn restore(&mut self, kind: AuthorityKind, now: Timestamp) -> Result<(), AuthorityError> {
        let records = self.store.write(move |unit| journal::read(unit, kind)).await?;
        let recorded = records.len();
        for id in records.iter().flat_map(|record| &record.revoked) {
            self.revoked.note(kind, id);
        }
        let mut state = KindState::default();
        let mut slots = Vec::new();
        for record in journal::current(records) {
            let issuer = self.issuer_of(&record).await?;
            let slot = record.slot;
            if issuer.is_none() && slot.status == SlotStatus::Prepared {
                let authority = &slot.authority_id;
                tracing::warn!(%kind, authority, "the key of the prepared authority is lost");
                continue;
            }
            if issuer.is_none() && slot.status == SlotStatus::Active {
                let authority = &slot.authority_id;
                tracing::warn!(%kind, authority, "the key of the active authority is lost; a new one takes its place");
            }
            let material =
                Material { public_key: record.public_key, chain: record.certificate_chain, issuer };
            state.material.insert(slot.authority_id.clone(), material);
            slots.push(slot);
        }
        let restored = slots.len();
        state.slots = AuthoritySlots::restore(slots)?;
        if restored < recorded {
            self.commit(kind, state, |_| Ok(())).await?;
        } else {
            self.kinds.insert(kind, state);
        }
        self.republish(kind, now).await
    }

    /// The issuer of a journal record, if the key manager holds its key.
    async fn issuer_of(&self, record: &JournalRecord) -> Result<Option<Issuer>, AuthorityError> {
        let Some(signer) = self.keys.key(&record.key_id).await? else { return Ok(None) };
        if signer.public_key().spki_der() != record.public_key {
            return Ok(None);
        }
        if record.kind != AuthorityKind::X509 {
            let signer = JwtSigner::new(record.slot.authority_id.clone(), signer);
            return Ok(Some(Issuer::Token(Arc::new(TokenIssuer {
                signer,
                not_after: record.slot.not_after,
            }))));
        }
        match self.x509_issuer(&record.certificate_chain, record.slot.upstream_authority_id.is_some(), signer)
        {
            Ok(issuer) => Ok(Some(Issuer::X509(Arc::new(issuer)))),
            Err(error) => {
                let authority = &record.slot.authority_id;
                tracing::error!(authority, %error, "the recorded CA certificate cannot be used");
                Ok(None)
            }
        }
    }

    /// `chain` is the CA certificate and what is above it.
    fn x509_issuer(
        &self,
        chain: &[Vec<u8>],
        has_upstream: bool,
        signer: Arc<dyn Signer>,
    ) -> Result<X509Issuer, X509Error> {
        let certificate = chain.first().cloned().unwrap_or_default();
        let handed_out = if has_upstream { chain.to_vec() } else { Vec::new() };
        X509Issuer::new(&self.config.trust_domain, certificate, handed_out, signer)
    }

    /// Makes sure that what signs, or is about to, is in the bundle. It always should be; a bundle restored from a
    /// backup of another age is how it might not.
    async fn republish(&self, kind: AuthorityKind, now: Timestamp) -> Result<(), AuthorityError> {
        let state = self.state(kind)?;
        let mut more = Bundle::empty(self.config.trust_domain.clone());
        self.revoked.learn(&self.store);
        // Another server may have revoked it while this one was away.
        let wanted = |slot: &&AuthoritySlot| {
            self.usable(kind, slot, now) && !self.revoked.holds(kind, &slot.authority_id)
        };
        for slot in state.slots.iter().filter(wanted) {
            let Some(material) = state.material.get(&slot.authority_id) else { continue };
            match kind {
                // Roots are the upstream's, and are looked at right after the start.
                AuthorityKind::X509 if self.upstream.is_some() => {}
                AuthorityKind::X509 => {
                    more.x509_authorities.extend(material.chain.first().cloned().map(root));
                }
                AuthorityKind::Jwt => more.jwt_authorities.push(token_key(slot, material)),
                AuthorityKind::Wit => more.wit_authorities.push(token_key(slot, material)),
            }
        }
        publish(&self.store, more).await
    }

    async fn tick(&mut self, now: Timestamp) -> Result<Timestamp, AuthorityError> {
        self.revoked.learn(&self.store);
        let mut failed = None;
        for kind in self.enabled() {
            failed = failed.or(self.reconcile(kind, now).await.err());
        }
        match failed {
            Some(error) => Err(error),
            None => Ok(self.next_look(now)),
        }
    }

    /// Takes over what the upstream publishes, and what follows from it.
    async fn follow(&mut self, mut upstream: Bundle, now: Timestamp) -> Result<(), AuthorityError> {
        // Before anything is left out: what was revoked here and has been appended by hand still goes when it is tainted
        // up there.
        self.distrusted.note(&upstream);
        self.revoked.learn(&self.store);
        self.revoked.leave_out_of(&mut upstream);
        self.merge(&upstream, now).await?;
        let mut failed = self.tell(&upstream, now).await.err();
        for kind in self.enabled() {
            failed = failed.or(self.reconcile(kind, now).await.err());
        }
        // What has just been replaced can be called tainted now.
        self.merge(&upstream, now).await?;
        for kind in self.enabled() {
            failed = failed.or(self.judge_old(kind).await.err());
        }
        let bundle = self.own_bundle();
        self.distrusted.forget_beyond(&bundle);
        failed.map_or(Ok(()), Err)
    }

    async fn merge(&self, upstream: &Bundle, now: Timestamp) -> Result<(), AuthorityError> {
        let (signing, distrusted) = (self.signing(now), self.distrusted.clone());
        let mut preview = self.own_bundle();
        if !preview.follow(upstream, &distrusted, |der, id| signing.holds(der, id)) {
            return Ok(());
        }
        let mut upstream = upstream.clone();
        let written = self.store.write(move |unit| {
            leave_out_revoked(unit, &mut upstream)?;
            journal::change_bundle(unit, &upstream.trust_domain, |bundle| {
                bundle.follow(&upstream, &distrusted, |der, id| signing.holds(der, id));
                Ok(())
            })
        });
        written.await?;
        let (roots, keys) = (preview.x509_authorities.len(), preview.jwt_authorities.len());
        let tainted = preview.x509_authorities.iter().filter(|root| root.tainted).count();
        tracing::info!(roots, tainted, keys, "the bundle follows the upstream authority");
        Ok(())
    }

    /// Publishes upward the keys of ours that the upstream has not been told: those of before there was an upstream,
    /// and those that it lost.
    async fn tell(&mut self, known: &Bundle, now: Timestamp) -> Result<(), AuthorityError> {
        let knows =
            |id: &str| known.jwt_authorities.iter().chain(&known.wit_authorities).any(|key| key.key_id == id);
        let Some(upstream) = self.upstream.clone() else { return Ok(()) };
        let mut more = Bundle::empty(self.config.trust_domain.clone());
        let mut failed = None;
        for kind in [AuthorityKind::Jwt, AuthorityKind::Wit] {
            let Some(state) = self.kinds.get(&kind) else { continue };
            for slot in state.slots.iter() {
                let id = &slot.authority_id;
                let wanted = slot.status != SlotStatus::Old
                    && self.usable(kind, slot, now)
                    && !self.compromised(kind, slot)
                    && !self.told.contains(id);
                let Some(material) = state.material.get(id).filter(|_| wanted) else { continue };
                if !knows(id) {
                    match counted("publish", upstream.publish_key(kind, &token_key(slot, material)).await) {
                        Ok(None) => {}
                        Ok(Some(keys)) if kind == AuthorityKind::Jwt => more.jwt_authorities.extend(keys),
                        Ok(Some(keys)) => more.wit_authorities.extend(keys),
                        Err(error) => {
                            failed = Some(error.into());
                            continue;
                        }
                    }
                }
                self.told.insert(id.clone());
            }
        }
        self.revoked.leave_out_of(&mut more);
        publish(&self.store, more).await?;
        failed.map_or(Ok(()), Err)
    }

    fn own_bundle(&self) -> Bundle {
        let trust_domain = &self.config.trust_domain;
        let bundle = self.store.state().bundle(trust_domain);
        bundle.map_or_else(|| Bundle::empty(trust_domain.clone()), |bundle| Bundle::clone(&bundle))
    }

    /// What is trusted through what signs now.
    fn signing(&self, now: Timestamp) -> Signing {
        let active = self.kinds.iter().filter_map(|(kind, state)| Some((*kind, state.slots.active()?)));
        let active = active.filter(|(kind, slot)| self.usable(*kind, slot, now));
        Signing(active.map(|(kind, slot)| trusted_through(kind, slot).to_owned()).collect())
    }

    /// Whether what this authority is trusted through is tainted: its own key, or the root above it. The bundle says so,
    /// or the upstream does and the bundle cannot yet, because it is what signs.
    fn compromised(&self, kind: AuthorityKind, slot: &AuthoritySlot) -> bool {
        let Some(bundle) = self.store.state().bundle(&self.config.trust_domain) else { return false };
        let id = trusted_through(kind, slot);
        // By another server of the group, before this one saw that it was tainted.
        if self.revoked.holds(kind, id) && !self.published(kind, slot) {
            return true;
        }
        let key = |keys: &[JwtAuthority]| keys.iter().any(|key| key.tainted && key.key_id == id);
        match kind {
            AuthorityKind::X509 => {
                let tainted = bundle.x509_authorities.iter().filter(|root| root.tainted);
                let mut tainted = tainted.map(|root| &root.certificate).chain(&self.distrusted.x509);
                tainted.any(|certificate| has_key_id(certificate, id))
            }
            AuthorityKind::Jwt => key(&bundle.jwt_authorities) || self.distrusted.jwt.contains(id),
            AuthorityKind::Wit => key(&bundle.wit_authorities) || self.distrusted.wit.contains(id),
        }
    }

    /// Marks the old authority when the bundle says that it is tainted, and forgets it when it was and is in the bundle
    /// no more: what the upstream does to its own is done here as well.
    async fn judge_old(&mut self, kind: AuthorityKind) -> Result<(), AuthorityError> {
        let Some(old) = self.slots(kind)?.old().cloned() else { return Ok(()) };
        let mut next = self.state(kind)?.clone();
        if !old.tainted && self.compromised(kind, &old) {
            next.slots.distrust_old();
            tracing::warn!(%kind, authority = %old.authority_id, "the old authority is tainted, by the upstream or another server");
        } else if old.tainted && !self.published(kind, &old) {
            next.slots.forget_old(&old.authority_id);
            tracing::warn!(%kind, authority = %old.authority_id, "the old authority is revoked, by the upstream or another server");
        } else {
            return Ok(());
        }
        self.commit(kind, next, |_| Ok(())).await
    }

    fn published(&self, kind: AuthorityKind, slot: &AuthoritySlot) -> bool {
        let (bundle, id) = (self.own_bundle(), trusted_through(kind, slot));
        match kind {
            AuthorityKind::X509 => {
                bundle.x509_authorities.iter().any(|root| has_key_id(&root.certificate, id))
            }
            AuthorityKind::Jwt => bundle.jwt_authorities.iter().any(|key| key.key_id == id),
            AuthorityKind::Wit => bundle.wit_authorities.iter().any(|key| key.key_id == id),
        }
    }

    fn next_look(&self, now: Timestamp) -> Timestamp {
        let due = self.kinds.values().map(|state| state.slots.next_due(now));
        let next = due.min().unwrap_or(now).min(now.saturating_add(LONGEST_WAIT));
        next.max(now.saturating_add(SHORTEST_WAIT))
    }

    /// Takes the steps of one kind that are due.
    async fn reconcile(&mut self, kind: AuthorityKind, now: Timestamp) -> Result<(), AuthorityError> {
        // Prepare and activate, twice over: no state is further from being in order than that.
        for _ in 0..4 {
            match self.due(kind, now)? {
                None => break,
                Some(RotationStep::Prepare(_)) => drop(self.prepare(kind, now).await?),
                Some(RotationStep::Activate) => {
                    let id = self.slots(kind)?.prepared().map(|slot| slot.authority_id.clone());
                    self.activate(kind, &id.unwrap_or_default(), now).await?;
                }
            }
        }
        self.judge_old(kind).await
    }

    fn due(&self, kind: AuthorityKind, now: Timestamp) -> Result<Option<RotationStep>, AuthorityError> {
        let slots = self.slots(kind)?;
        let prepared = slots.prepared().filter(|slot| self.usable(kind, slot, now));
        if !self.signs(kind, now) {
            return Ok(Some(match prepared {
                Some(_) => RotationStep::Activate,
                None => RotationStep::Prepare(slots.free_slot()),
            }));
        }
        if slots.active().is_some_and(|active| self.compromised(kind, active)) {
            return Ok(match prepared {
                Some(prepared) if !self.compromised(kind, prepared) => Some(RotationStep::Activate),
                // The upstream goes on signing below the root that it has tainted. It will stop, but asking it at each
                // look would not hasten that.
                Some(prepared) if now.saturating_since(prepared.issued_at) < BETWEEN_TAINTED => None,
                _ => Some(RotationStep::Prepare(slots.free_slot())),
            });
        }
        // A prepared authority that has been tainted meanwhile must not sign.
        let prepared = prepared.filter(|prepared| !self.compromised(kind, prepared));
        Ok(match (slots.due(now), prepared) {
            (Some(RotationStep::Activate), None) => Some(RotationStep::Prepare(slots.free_slot())),
            // An upstream that ends soon gives nothing that lives longer than what there is. Asking at each look
            // would replace the prepared authority every few seconds; asking ever more often as the end comes
            // nearer is enough for an upstream that is renewed at the last minute.
            (Some(RotationStep::Prepare(_)), Some(prepared))
                if now.saturating_since(prepared.issued_at)
                    < prepared.not_after.saturating_since(now) / 10 =>
            {
                None
            }
            (step, _) => step,
        })
    }

    async fn prepare(
        &mut self,
        kind: AuthorityKind,
        now: Timestamp,
    ) -> Result<AuthoritySlot, AuthorityError> {
        let mut next = self.state(kind)?.clone();
        let place = next.slots.free_slot();
        let unfinished = match self.unfinished.remove(&kind) {
            Some(unfinished) if unfinished.slot == place => unfinished,
            // From here on the former key of the slot is gone. It belongs to an old authority, or to a prepared one
            // that is not going to be used.
            _ => Unfinished {
                slot: place,
                signer: self.keys.generate(kind.key_id(place), self.key_type(kind)).await?,
                token_key_id: random_key_id(&*self.random),
            },
        };
        let made = match self.make(kind, &unfinished, now).await {
            Ok(made) => made,
            Err(error) => {
                if matches!(error, AuthorityError::Upstream(_)) {
                    self.unfinished.insert(kind, unfinished);
                }
                return Err(error);
            }
        };
        let slot = next
            .slots
            .prepare(made.authority_id.clone(), now, made.not_after, made.upstream_authority_id)?
            .clone();
        let mut more = Bundle::empty(self.config.trust_domain.clone());
        match kind {
            AuthorityKind::X509 => more.x509_authorities.extend(made.roots.into_iter().map(root)),
            AuthorityKind::Jwt => {
                more.jwt_authorities.push(token_key(&slot, &made.material));
                more.jwt_authorities.extend(made.keys);
            }
            AuthorityKind::Wit => {
                more.wit_authorities.push(token_key(&slot, &made.material));
                more.wit_authorities.extend(made.keys);
            }
        }
        next.material.insert(made.authority_id, made.material);
        self.commit(kind, next, |bundle| {
            append(bundle, more);
            Ok(())
        })
        .await?;
        let not_after = slot.not_after.unix_seconds();
        tracing::info!(%kind, authority = %slot.authority_id, slot = %slot.slot, not_after, "authority prepared");
        Ok(slot)
    }

    async fn activate(
        &mut self,
        kind: AuthorityKind,
        id: &str,
        now: Timestamp,
    ) -> Result<AuthoritySlot, AuthorityError> {
        let mut next = self.state(kind)?.clone();
        let slot = next.slots.activate(id)?.clone();
        if !self.usable(kind, &slot, now) {
            return Err(AuthorityError::Unusable(slot.authority_id));
        }
        self.commit(kind, next, |_| Ok(())).await?;
        tracing::info!(%kind, authority = %slot.authority_id, slot = %slot.slot, "authority activated");
        Ok(slot)
    }

    async fn taint(&mut self, kind: AuthorityKind, id: &str) -> Result<Timestamp, AuthorityError> {
        self.refuse_below_upstream(kind, "tainted")?;
        let mut next = self.state(kind)?.clone();
        next.slots.require_active()?;
        let end = match next.slots.taint(id) {
            Ok(slot) => slot.not_after,
            Err(SlotError::UnexpectedAuthorityId) => {
                self.elsewhere(kind, id).ok_or(SlotError::UnexpectedAuthorityId)?
            }
            Err(error) => return Err(error.into()),
        };
        let wanted = id.to_owned();
        self.commit(kind, next, move |bundle| match kind {
            AuthorityKind::X509 => bundle.taint_x509(|der| has_key_id(der, &wanted)),
            AuthorityKind::Jwt => bundle.taint_jwt(&wanted).map(drop),
            AuthorityKind::Wit => bundle.taint_wit(&wanted).map(drop),
        })
        .await?;
        tracing::warn!(%kind, authority = %id, "authority tainted");
        Ok(end)
    }

    /// The end of an authority that is in the bundle and in no slot; an authority of another server, mostly.
    fn elsewhere(&self, kind: AuthorityKind, id: &str) -> Option<Timestamp> {
        if self.slots(kind).ok()?.iter().any(|slot| slot.authority_id == id) {
            return None;
        }
        let bundle = self.store.state().bundle(&self.config.trust_domain)?;
        let keys = match kind {
            AuthorityKind::X509 => {
                let root = bundle.x509_authorities.iter().find(|root| has_key_id(&root.certificate, id))?;
                return inspect(&root.certificate).ok().map(|info| info.not_after);
            }
            AuthorityKind::Jwt => &bundle.jwt_authorities,
            AuthorityKind::Wit => &bundle.wit_authorities,
        };
        let key = keys.iter().find(|key| key.key_id == id)?;
        Some(key.expires_at.unwrap_or(Timestamp::from_unix_millis(0)))
    }

    async fn revoke(&mut self, kind: AuthorityKind, id: &str) -> Result<(), AuthorityError> {
        self.refuse_below_upstream(kind, "revoked")?;
        let mut next = self.state(kind)?.clone();
        next.slots.require_active()?;
        // That it is tainted is for the bundle to say.
        if self.elsewhere(kind, id).is_none() {
            next.slots.check_revocable(kind, id)?;
        }
        next.slots.forget_old(id);
        let wanted = id.to_owned();
        self.commit_revocation(kind, id, next, move |bundle| match kind {
            AuthorityKind::X509 => bundle.revoke_x509(|der| has_key_id(der, &wanted)),
            AuthorityKind::Jwt => bundle.revoke_jwt(&wanted).map(drop),
            AuthorityKind::Wit => bundle.revoke_wit(&wanted).map(drop),
        })
        .await?;
        tracing::warn!(%kind, authority = %id, "authority revoked");
        Ok(())
    }

    async fn taint_upstream(&mut self, id: &str) -> Result<(), AuthorityError> {
        let kind = AuthorityKind::X509;
        let mut next = self.upstream_state()?;
        next.slots.taint_upstream(id)?;
        let wanted = id.to_owned();
        self.commit(kind, next, move |bundle| bundle.taint_x509(|der| has_key_id(der, &wanted))).await?;
        tracing::warn!(authority = %id, "upstream authority tainted");
        Ok(())
    }

    async fn revoke_upstream(&mut self, id: &str) -> Result<(), AuthorityError> {
        let kind = AuthorityKind::X509;
        let mut next = self.upstream_state()?;
        next.slots.revoke_upstream(id)?;
        let wanted = id.to_owned();
        self.commit_revocation(kind, id, next, move |bundle| {
            bundle.revoke_x509(|der| has_key_id(der, &wanted))
        })
        .await?;
        tracing::warn!(authority = %id, "upstream authority revoked");
        Ok(())
    }

    fn upstream_state(&self) -> Result<KindState, AuthorityError> {
        if self.upstream.is_none() {
            return Err(SlotError::NoUpstream.into());
        }
        self.state(AuthorityKind::X509).cloned()
    }

    /// A CA of ours is an intermediate then; it is not in the bundle, so there is nothing to taint or revoke.
    fn refuse_below_upstream(&self, kind: AuthorityKind, what: &'static str) -> Result<(), AuthorityError> {
        match (kind, &self.upstream) {
            (AuthorityKind::X509, Some(_)) => Err(AuthorityError::BelowUpstream(what)),
            _ => Ok(()),
        }
    }

    fn key_type(&self, kind: AuthorityKind) -> KeyType {
        match kind {
            AuthorityKind::X509 => self.config.ca_key_type,
            AuthorityKind::Jwt => self.config.jwt_key_type,
            AuthorityKind::Wit => self.config.wit_key_type,
        }
    }

    /// An authority with the key of `unfinished`, known to the upstream.
    async fn make(
        &mut self,
        kind: AuthorityKind,
        unfinished: &Unfinished,
        now: Timestamp,
    ) -> Result<Made, AuthorityError> {
        let signer = Arc::clone(&unfinished.signer);
        if kind == AuthorityKind::X509 {
            return self.make_ca(signer, now).await;
        }
        let mut made = self.make_key(signer, unfinished.token_key_id.clone(), now);
        if let Some(upstream) = &self.upstream {
            let key = JwtAuthority {
                key_id: made.authority_id.clone(),
                public_key: made.material.public_key.clone(),
                expires_at: Some(made.not_after),
                tainted: false,
            };
            // Before anything is signed with it, or somebody would refuse what it signs.
            made.keys = counted("publish", upstream.publish_key(kind, &key).await)?.unwrap_or_default();
            self.revoked.leave_out(&mut made.keys);
            self.told.insert(key.key_id);
        }
        Ok(made)
    }

    /// The life of an authority that is made now.
    fn ca_ttl(&self, now: Timestamp) -> Duration {
        let AuthorityConfig { trust_domain, ca_ttl, policy, .. } = &self.config;
        let id = trust_domain.id();
        let subject = Living { kind: LifetimeKind::Authority, id: &id, selectors: None };
        match policy.decide(&subject, None, *ca_ttl, now) {
            Ok(decision) => decision.life,
            Err(refusal) => {
                // Rules that begin to contradict each other must not end all signing.
                tracing::error!(%refusal, "the authority lives as long as authority.ca_ttl says");
                *ca_ttl
            }
        }
    }

    async fn make_ca(&self, signer: Arc<dyn Signer>, now: Timestamp) -> Result<Made, AuthorityError> {
        let AuthorityConfig { trust_domain, ca_subject, .. } = &self.config;
        let ca_ttl = self.ca_ttl(now);
        let serial = random_serial(&*self.random);
        let (chain, roots) = match &self.upstream {
            None => {
                let life = capped(ca_ttl, now, FAR_FUTURE);
                let ca = self_signed_ca(
                    &*signer,
                    trust_domain,
                    ca_subject,
                    life.not_before,
                    life.not_after,
                    serial,
                )?;
                (vec![ca.clone()], vec![ca])
            }
            Some(upstream) => {
                let csr = ca_csr(&*signer, trust_domain, ca_subject, &serial)?;
                let mut ca = counted("sign", upstream.mint_ca(&csr, ca_ttl, now).await)?;
                // One that was revoked here must not come back with a signature. Whoever appends it to the bundle by hand
                // means it.
                let bundle = self.own_bundle();
                let appended =
                    |der: &[u8]| bundle.x509_authorities.iter().any(|root| root.certificate == der);
                ca.roots.retain(|root| !self.revoked.holds_root(root) || appended(root));
                (ca.chain, ca.roots)
            }
        };
        let misissued = |reason: String| AuthorityError::Misissued(reason);
        let certificate = chain.first().ok_or_else(|| misissued("the chain is empty".to_owned()))?;
        let info = inspect(certificate)?;
        let wanted = trust_domain.id_string();
        if !info.is_ca {
            return Err(misissued("the certificate is not one of a CA".to_owned()));
        }
        if info.public_key.as_ref() != Some(signer.public_key()) {
            return Err(misissued("the certificate is for another key".to_owned()));
        }
        if info.uris.iter().any(|uri| *uri != wanted) {
            return Err(misissued(format!("the certificate names {:?} instead of {wanted}", info.uris)));
        }
        let issuer = self.x509_issuer(&chain, self.upstream.is_some(), Arc::clone(&signer))?;
        prove_chain(&issuer, signer.public_key(), &roots, now).map_err(misissued)?;
        let upstream_authority_id = self.upstream.as_ref().map(|_| root_above(&chain, &roots));
        Ok(Made {
            authority_id: issuer.authority_id().to_owned(),
            not_after: info.not_after,
            upstream_authority_id,
            material: Material {
                public_key: signer.public_key().spki_der().to_vec(),
                chain,
                issuer: Some(Issuer::X509(Arc::new(issuer))),
            },
            roots,
            keys: Vec::new(),
        })
    }

    fn make_key(&self, signer: Arc<dyn Signer>, authority_id: String, now: Timestamp) -> Made {
        let not_after = capped(self.ca_ttl(now), now, FAR_FUTURE).not_after;
        let public_key = signer.public_key().spki_der().to_vec();
        let signer = JwtSigner::new(authority_id.clone(), signer);
        Made {
            authority_id,
            not_after,
            upstream_authority_id: None,
            material: Material {
                public_key,
                chain: Vec::new(),
                issuer: Some(Issuer::Token(Arc::new(TokenIssuer { signer, not_after }))),
            },
            roots: Vec::new(),
            keys: Vec::new(),
        }
    }

    /// As [`Self::commit`], for a step that revokes `id`.
    async fn commit_revocation(
        &mut self,
        kind: AuthorityKind,
        id: &str,
        next: KindState,
        change: impl FnOnce(&mut Bundle) -> Result<(), AuthorityRefusal> + Send + 'static,
    ) -> Result<(), AuthorityError> {
        // First, since it is written together with the step.
        let new = self.revoked.note(kind, id);
        let committed = self.commit(kind, next, change).await;
        if committed.is_err() && new {
            self.revoked.forget(id);
        }
        committed
    }

    /// Makes `next` the slots of `kind`, on the disk first, together with what the step does to the bundle.
    async fn commit(
        &mut self,
        kind: AuthorityKind,
        mut next: KindState,
        change: impl FnOnce(&mut Bundle) -> Result<(), AuthorityRefusal> + Send + 'static,
    ) -> Result<(), AuthorityError> {
        next.material.retain(|id, _| next.slots.iter().any(|slot| slot.authority_id == *id));
        let revoked = self.revoked.of(kind);
        let records: Vec<_> = next
            .slots
            .iter()
            .filter_map(|slot| {
                let material = next.material.get(&slot.authority_id)?;
                Some(JournalRecord {
                    kind,
                    slot: slot.clone(),
                    key_id: kind.key_id(slot.slot).to_owned(),
                    certificate_chain: material.chain.clone(),
                    public_key: material.public_key.clone(),
                    revoked: revoked.clone(),
                })
            })
            .collect();
        let trust_domain = self.config.trust_domain.clone();
        let written = self.store.write(move |unit| {
            journal::write(unit, kind, &records)?;
            journal::change_bundle(unit, &trust_domain, change)
        });
        written.await.map_err(|error| match error.refusal::<AuthorityRefusal>() {
            Ok(refusal) => AuthorityError::Bundle(refusal),
            Err(error) => AuthorityError::Store(error),
        })?;
        self.kinds.insert(kind, next);
        Ok(())
    }
}

/// Why a step was not taken.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The slots do not allow it.
    #[error(transparent)]
    Slot(#[from] SlotError),
    /// The bundle does not allow it.
    #[error(transparent)]
    Bundle(AuthorityRefusal),
    /// With an upstream authority there is nothing of this server's to taint or revoke.
    #[error("local authority can't be {0} if there is an upstream authority")]
    BelowUpstream(&'static str),
    /// This kind is switched off in the configuration.
    #[error("{} functionality is disabled", .0.as_str().to_uppercase())]
    Disabled(AuthorityKind),
    /// The authority cannot sign: its key is lost, or it has expired.
    #[error("authority {0} cannot sign any more; prepare a new one")]
    Unusable(String),
    /// The key manager failed.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A certificate could not be made or read.
    #[error(transparent)]
    X509(#[from] X509Error),
    /// The CA certificate is not what was asked for.
    #[error("CA certificate refused: {0}")]
    Misissued(String),
    /// The store did not take it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The upstream authority did not give what was asked.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// The task that took the step ended without an answer.
    #[error("the step was cut off")]
    Interrupted,
}

/// Adds to the bundle what is not in it.
async fn publish(store: &Store, more: Bundle) -> Result<(), AuthorityError> {
    let present = store.state().bundle(&more.trust_domain);
    let mut known = present.map_or_else(|| Bundle::empty(more.trust_domain.clone()), |b| Bundle::clone(&b));
    if !append(&mut known, more.clone()) {
        return Ok(());
    }
    let written = store.write(move |unit| {
        let mut more = more;
        leave_out_revoked(unit, &mut more)?;
        journal::change_bundle(unit, &more.trust_domain.clone(), |bundle| {
            append(bundle, more);
            Ok(())
        })
    });
    written.await?;
    Ok(())
}

/// Takes out of `more` what has been revoked anywhere in the group up to this very write, and is not in the bundle: what
/// somebody has appended again by hand is meant.
fn leave_out_revoked(unit: &Unit<'_>, more: &mut Bundle) -> Result<(), StoreError> {
    let stored = unit.bundle(&more.trust_domain);
    let [x509, jwt, wit] = [
        unit.revoked(AuthorityKind::X509)?,
        unit.revoked(AuthorityKind::Jwt)?,
        unit.revoked(AuthorityKind::Wit)?,
    ];
    let known = |keys: &[JwtAuthority], id: &str| keys.iter().any(|key| key.key_id == id);
    more.jwt_authorities.retain(|key| {
        !jwt.contains(&key.key_id) || stored.as_ref().is_some_and(|b| known(&b.jwt_authorities, &key.key_id))
    });
    more.wit_authorities.retain(|key| {
        !wit.contains(&key.key_id) || stored.as_ref().is_some_and(|b| known(&b.wit_authorities, &key.key_id))
    });
    if !x509.is_empty() {
        let revoked =
            |der: &[u8]| inspect(der).ok().and_then(|info| info.ski).is_some_and(|id| x509.contains(&id));
        more.x509_authorities.retain(|root| {
            let stored = stored.as_ref().map_or(&[][..], |bundle| &bundle.x509_authorities);
            stored.iter().any(|known| known.certificate == root.certificate) || !revoked(&root.certificate)
        });
    }
    Ok(())
}

/// Counts a call to the upstream authority.
fn counted<T>(call: &'static str, result: Result<T, UpstreamError>) -> Result<T, UpstreamError> {
    let outcome = if result.is_ok() { "ok" } else { "failed" };
    metrics::counter!(names::UPSTREAM_CALLS, "call" => call, "result" => outcome).increment(1);
    result
}

/// The identifier of what others trust this authority through: the root above it, or its own certificate or key.
fn trusted_through(kind: AuthorityKind, slot: &AuthoritySlot) -> &str {
    match (kind, &slot.upstream_authority_id) {
        (AuthorityKind::X509, Some(root)) => root,
        _ => &slot.authority_id,
    }
}

fn append(bundle: &mut Bundle, more: Bundle) -> bool {
    bundle.append(more.x509_authorities, more.jwt_authorities, more.wit_authorities)
}

fn root(certificate: Vec<u8>) -> X509Authority {
    X509Authority { certificate, tainted: false }
}

fn token_key(slot: &AuthoritySlot, material: &Material) -> JwtAuthority {
    JwtAuthority {
        key_id: slot.authority_id.clone(),
        public_key: material.public_key.clone(),
        expires_at: Some(slot.not_after),
        tainted: slot.tainted,
    }
}

/// Whether a certificate has this subject key identifier (lower-case hex).
pub(super) fn has_key_id(der: &[u8], id: &str) -> bool {
    inspect(der).is_ok_and(|info| info.ski.as_deref() == Some(id))
}

/// The subject key identifier (lower-case hex) of the root that `chain` ends below.
fn root_above(chain: &[Vec<u8>], roots: &[Vec<u8>]) -> String {
    let named = chain.last().and_then(|last| inspect(last).ok()).and_then(|info| info.aki);
    // A root without an identifier is not named by what it signs; the first one stands for it.
    let first = || roots.first().and_then(|root| inspect(root).ok()).and_then(|info| info.ski);
    named.or_else(first).unwrap_or_default()
}

/// An error and its causes in one line.
fn chain(error: &AuthorityError) -> String {
    bonafide_runtime::tasks::chain(error)
}

/// How many revocations of a kind are remembered: more than an upstream publishes at a time.
const MAX_REVOKED: usize = 256;

/// A look costs nothing, and finds what changed without a step being due: a clock that was set.
pub const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// How often an upstream is asked again that signs below a root that it has tainted.
const BETWEEN_TAINTED: Duration = Duration::from_secs(60);

/// A step that stays due in spite of being taken must not keep a processor busy.
const SHORTEST_WAIT: Duration = Duration::from_millis(50);

/// What caps the life of a self-signed authority: nothing.
const FAR_FUTURE: Timestamp = Timestamp::from_unix_millis(i64::MAX);
