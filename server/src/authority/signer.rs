//! SVIDs from whatever authority is active.
//!
//! Signing reads no store and waits for nothing: the issuer is a snapshot, so an SVID is either wholly of the
//! authority before a rotation or wholly of the one after it. What was signed is written to the inventory and the
//! audit log once for each batch ([`Issuing::record`], [`crate::api::Call`]). A store without space does not stop signing: an outage
//! of the fleet would cost more than a gap in the inventory, and the gap is in the log and the metrics. A database of a
//! group that has been away for long does stop it: bans and deletions made elsewhere would not be heeded.

use std::sync::Arc;
use std::time::Duration;

use bonafide_identity::lifetime::policy::{Decision, Kind, Policy, Refusal, Subject as Living};
use bonafide_identity::{
    DnsName, Entry, Lifetime, SpiffeId, SvidTtls, Timestamp, capped, lifetime::capped_token,
};
use bonafide_pki::{
    CaProfile, CsrError, JwsAlgorithm, JwtClaims, JwtError, LeafProfile, PublicKey, Random, Subject,
    VerifiedCsr, WitClaims, X509Error, X509Issuer, random_jti, random_serial,
};
use tokio::sync::Semaphore;

use super::Authorities;
use super::slots::TokenIssuer;
use crate::status::names;
use crate::store::{Issuance, IssuedSvid, Store, StoreError, SvidKind};

/// Lifetimes and names that the configuration gives.
#[derive(Clone, Debug, Default)]
pub struct IssuingConfig {
    /// Lives of what is signed; `x509` is also the server's own.
    pub ttls: SvidTtls,
    /// `iss` of JWT-SVIDs.
    pub jwt_issuer: Option<String>,
    /// `iss` of WIT-SVIDs.
    pub wit_issuer: Option<String>,
    /// How long what is signed may live.
    pub policy: Policy,
}

/// An X509-SVID or a downstream CA that has just been signed.
#[derive(Clone, Debug)]
pub struct SignedX509 {
    /// DER, leaf first, without the root.
    pub chain: Vec<Vec<u8>>,
    /// What is recorded and audited.
    pub issued: IssuedSvid,
    /// Why it lives another time than was asked for.
    pub adjusted: Option<String>,
}

/// A JWT-SVID or WIT-SVID that has just been signed. No `Debug`: the token is a bearer secret.
pub struct SignedToken {
    /// Compact serialisation.
    pub token: String,
    /// `iat`: whole seconds, not backdated.
    pub issued_at: Timestamp,
    /// What is recorded and audited.
    pub issued: IssuedSvid,
    /// Why it lives another time than was asked for.
    pub adjusted: Option<String>,
}

/// One X509-SVID of a batch: the entry that the caller is entitled to, and its CSR as DER.
pub struct WorkloadRequest {
    /// The entry.
    pub entry: Arc<Entry>,
    /// The CSR; only its key is used.
    pub csr: Vec<u8>,
}

/// Signs.
pub struct Issuing {
    config: IssuingConfig,
    authorities: Arc<Authorities>,
    store: Store,
    random: Arc<dyn Random>,
    /// One permit for each processor: a lone batch is spread over all of them, many batches get one each.
    processors: Arc<Semaphore>,
}

impl Issuing {
    /// Signs with `authorities` by `config`.
    pub fn new(
        config: IssuingConfig,
        authorities: Arc<Authorities>,
        store: Store,
        random: Arc<dyn Random>,
    ) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self { config, authorities, store, random, processors: Arc::new(Semaphore::new(processors)) }
    }

    /// The lives that the configuration gives.
    pub fn ttls(&self) -> SvidTtls {
        self.config.ttls
    }

    /// The authorities that sign.
    pub fn authorities(&self) -> &Arc<Authorities> {
        &self.authorities
    }

    /// An X509-SVID for a workload: everything but the key comes from the entry.
    ///
    /// # Errors
    /// The authority has expired, or signing failed.
    pub fn issue_workload_x509(
        &self,
        entry: &Entry,
        csr: &VerifiedCsr,
        now: Timestamp,
    ) -> Result<SignedX509, SigningError> {
        let mut signed = self.leaf(
            &self.authorities.x509(),
            &Leaf {
                kind: SvidKind::WorkloadX509,
                id: &entry.spiffe_id,
                dns_names: &entry.dns_names,
                subject: Subject::Default,
                key: &csr.public_key,
                life: self.life_of_entry(Kind::X509, entry, now)?,
            },
            now,
        )?;
        signed.issued.entry_id = Some(entry.id.clone());
        Ok(signed)
    }

    /// X509-SVIDs for a batch, in its order. CSRs are proven and certificates signed on blocking threads, on as
    /// many as there are idle processors.
    pub async fn issue_workload_batch(
        self: &Arc<Self>,
        requests: Vec<WorkloadRequest>,
        now: Timestamp,
    ) -> Vec<Result<SignedX509, SigningError>> {
        if requests.is_empty() {
            return Vec::new();
        }
        // Nobody closes the semaphore, so the permit comes; a batch without one would merely run uncounted.
        let mut permits = Arc::clone(&self.processors).acquire_owned().await.ok();
        let mut threads = 1;
        while threads < requests.len() / WORTH_A_THREAD {
            let Ok(another) = Arc::clone(&self.processors).try_acquire_owned() else { break };
            if let Some(permits) = &mut permits {
                permits.merge(another);
            }
            threads += 1;
        }
        let issuing = Arc::clone(self);
        let count = requests.len();
        let work = tokio::task::spawn_blocking(move || {
            let _permits = permits;
            let issue = |request: &WorkloadRequest| {
                let csr = VerifiedCsr::parse(&request.csr)?;
                issuing.issue_workload_x509(&request.entry, &csr, now)
            };
            let share = requests.len().div_ceil(threads);
            let (own, others) = requests.split_at(share.min(requests.len()));
            std::thread::scope(|scope| {
                let others: Vec<_> = others
                    .chunks(share)
                    .map(|chunk| {
                        (chunk.len(), scope.spawn(move || chunk.iter().map(issue).collect::<Vec<_>>()))
                    })
                    .collect();
                let mut results: Vec<_> = own.iter().map(issue).collect();
                for (length, other) in others {
                    match other.join() {
                        Ok(part) => results.extend(part),
                        Err(_) => results.extend((0..length).map(|_| Err(SigningError::Interrupted))),
                    }
                }
                results
            })
        });
        work.await.unwrap_or_else(|_| (0..count).map(|_| Err(SigningError::Interrupted)).collect())
    }

    /// An X509-SVID for an agent.
    ///
    /// # Errors
    /// The authority has expired, or signing failed.
    pub fn issue_agent_x509(
        &self,
        id: &SpiffeId,
        key: &PublicKey,
        now: Timestamp,
    ) -> Result<SignedX509, SigningError> {
        let life = self.life(Kind::Agent, id, Duration::ZERO, self.config.ttls.agent, now)?;
        self.leaf(
            &self.authorities.x509(),
            &Leaf { kind: SvidKind::AgentX509, id, dns_names: &[], subject: Subject::Default, key, life },
            now,
        )
    }

    /// An X509-SVID for this server.
    ///
    /// # Errors
    /// The authority has expired, or signing failed.
    pub fn issue_server_x509(&self, key: &PublicKey, now: Timestamp) -> Result<SignedX509, SigningError> {
        let id = self.authorities.trust_domain().server_id();
        // Rules that contradict each other must not take the server off the network.
        let life = self.life(Kind::X509, &id, Duration::ZERO, self.config.ttls.x509, now).unwrap_or_else(
            |refusal| {
                tracing::error!(%refusal, "the server's own SVID lives as long as the default says");
                Decision { life: self.config.ttls.x509, adjusted: None }
            },
        );
        self.leaf(
            &self.authorities.x509(),
            &Leaf {
                kind: SvidKind::ServerX509,
                id: &id,
                dns_names: &[],
                subject: Subject::Default,
                key,
                life,
            },
            now,
        )
    }

    /// An X509-SVID that an administrator asked for without an entry: subject and DNS names are those of the CSR. A
    /// `ttl` of zero means the default.
    ///
    /// # Errors
    /// The authority has expired, or signing failed.
    pub fn mint_x509(
        &self,
        id: &SpiffeId,
        dns_names: &[DnsName],
        csr: &VerifiedCsr,
        ttl: Duration,
        now: Timestamp,
    ) -> Result<SignedX509, SigningError> {
        let life = self.life(Kind::X509, id, ttl, self.config.ttls.x509, now)?;
        self.leaf(
            &self.authorities.x509(),
            &Leaf {
                kind: SvidKind::WorkloadX509,
                id,
                dns_names,
                subject: Subject::Raw(&csr.subject_raw),
                key: &csr.public_key,
                life,
            },
            now,
        )
    }

    /// A CA certificate for a downstream server of the same trust domain. A `preferred_ttl` of zero means `ca_ttl`.
    ///
    /// # Errors
    /// The authority has expired, or signing failed.
    pub fn issue_downstream_ca(
        &self,
        key: &PublicKey,
        preferred_ttl: Duration,
        now: Timestamp,
    ) -> Result<SignedX509, SigningError> {
        self.store.current().map_err(SigningError::CutOff)?;
        let issuer = self.authorities.x509();
        let id = self.authorities.trust_domain().id();
        let life = self.life(Kind::Authority, &id, preferred_ttl, self.config.ttls.ca, now)?;
        let (lifetime, adjusted) =
            self.fitted(&life, now, "X.509", issuer.authority_id(), issuer.not_after(), capped)?;
        let serial = random_serial(&*self.random);
        let certificate = issuer.issue_ca(&CaProfile {
            public_key: key,
            not_before: lifetime.not_before,
            not_after: lifetime.not_after,
            serial,
        })?;
        Ok(SignedX509 {
            chain: issuer.chain_for_leaf(certificate),
            issued: IssuedSvid {
                kind: SvidKind::DownstreamAuthority,
                spiffe_id: id,
                entry_id: None,
                serial: serial.to_string(),
                not_after: lifetime.not_after,
                authority_id: issuer.authority_id().to_owned(),
            },
            adjusted,
        })
    }

    /// A JWT-SVID for a workload. Empty strings in `audience` are dropped.
    ///
    /// # Errors
    /// JWT-SVIDs are switched off, the key has expired, or signing failed.
    pub fn issue_jwt(
        &self,
        entry: &Entry,
        audience: &[String],
        now: Timestamp,
    ) -> Result<SignedToken, SigningError> {
        let life = self.life_of_entry(Kind::Jwt, entry, now)?;
        let jti = entry.jwt_svid_include_jti.then(|| random_jti(&*self.random));
        let mut signed = self.jwt(SvidKind::WorkloadJwt, &entry.spiffe_id, audience, jti, life, now)?;
        signed.issued.entry_id = Some(entry.id.clone());
        Ok(signed)
    }

    /// A JWT-SVID that an administrator asked for without an entry. A `ttl` of zero means the default.
    ///
    /// # Errors
    /// As [`Self::issue_jwt`].
    pub fn mint_jwt(
        &self,
        id: &SpiffeId,
        audience: &[String],
        ttl: Duration,
        now: Timestamp,
    ) -> Result<SignedToken, SigningError> {
        let life = self.life(Kind::Jwt, id, ttl, self.config.ttls.jwt, now)?;
        self.jwt(SvidKind::WorkloadJwt, id, audience, None, life, now)
    }

    /// A WIT-SVID for a workload, bound to `key`, with which it will sign by `algorithm`. Lives as long as the
    /// workload's X509-SVIDs.
    ///
    /// # Errors
    /// WIT-SVIDs are switched off, key and algorithm do not fit, the key has expired, or signing failed.
    pub fn issue_wit(
        &self,
        entry: &Entry,
        key: &PublicKey,
        algorithm: JwsAlgorithm,
        now: Timestamp,
    ) -> Result<SignedToken, SigningError> {
        let life = self.life_of_entry(Kind::Wit, entry, now)?;
        let mut signed = self.wit(SvidKind::WorkloadWit, &entry.spiffe_id, key, algorithm, life, now)?;
        signed.issued.entry_id = Some(entry.id.clone());
        Ok(signed)
    }

    /// A WIT-SVID that an administrator asked for without an entry. A `ttl` of zero means the default.
    ///
    /// # Errors
    /// As [`Self::issue_wit`].
    pub fn mint_wit(
        &self,
        id: &SpiffeId,
        key: &PublicKey,
        algorithm: JwsAlgorithm,
        ttl: Duration,
        now: Timestamp,
    ) -> Result<SignedToken, SigningError> {
        let life = self.life(Kind::Wit, id, ttl, self.config.ttls.wit, now)?;
        self.wit(SvidKind::WorkloadWit, id, key, algorithm, life, now)
    }

    /// Writes what was signed to the inventory, in one write. Does not fail: whoever asked gets what was signed for
    /// them, also while the store takes nothing.
    pub async fn record(&self, svids: Vec<IssuedSvid>) {
        if svids.is_empty() {
            return;
        }
        let count = svids.len();
        if let Err(error) = self.store.write(move |unit| unit.record_issued(&svids)).await {
            metrics::counter!(names::UNRECORDED).increment(count as u64);
            tracing::error!(%error, count, "what was signed is missing in the inventory; the audit log has it");
        }
    }

    fn leaf(&self, issuer: &X509Issuer, leaf: &Leaf<'_>, now: Timestamp) -> Result<SignedX509, SigningError> {
        // Without its own SVID the server could not even say why it signs nothing else.
        if leaf.kind != SvidKind::ServerX509 {
            self.store.current().map_err(SigningError::CutOff)?;
        }
        let (ends, id) = (issuer.not_after(), issuer.authority_id());
        let (lifetime, adjusted) = if leaf.kind == SvidKind::ServerX509 {
            (living(capped(leaf.life.life, now, ends), ends, now)?, None)
        } else {
            self.fitted(&leaf.life, now, "X.509", id, ends, capped)?
        };
        let serial = random_serial(&*self.random);
        let certificate = issuer.issue(&LeafProfile {
            spiffe_id: leaf.id,
            dns_names: leaf.dns_names,
            subject: leaf.subject,
            public_key: leaf.key,
            not_before: lifetime.not_before,
            not_after: lifetime.not_after,
            serial,
        })?;
        Ok(SignedX509 {
            chain: issuer.chain_for_leaf(certificate),
            issued: IssuedSvid {
                kind: leaf.kind,
                spiffe_id: leaf.id.clone(),
                entry_id: None,
                serial: serial.to_string(),
                not_after: lifetime.not_after,
                authority_id: issuer.authority_id().to_owned(),
            },
            adjusted,
        })
    }

    fn life_of_entry(&self, kind: Kind, entry: &Entry, now: Timestamp) -> Result<Decision, Refusal> {
        self.config.policy.decide_entry(kind, entry, &self.config.ttls, now)
    }

    /// The life of what has no entry; zero asks for nothing.
    fn life(
        &self,
        kind: Kind,
        id: &SpiffeId,
        asked: Duration,
        usual: Duration,
        now: Timestamp,
    ) -> Result<Decision, Refusal> {
        let subject = Living { kind, id, selectors: None };
        self.config.policy.decide(&subject, (!asked.is_zero()).then_some(asked), usual, now)
    }

    /// The validity of something with this life, and why it is another one than was asked for.
    fn fitted(
        &self,
        decision: &Decision,
        now: Timestamp,
        kind: &str,
        authority: &str,
        ends: Timestamp,
        cap: fn(Duration, Timestamp, Timestamp) -> Lifetime,
    ) -> Result<(Lifetime, Option<String>), SigningError> {
        let life = decision.life;
        let lifetime = living(cap(life, now, ends), ends, now)?;
        if !lifetime.limited_by_issuer {
            let say = |(asked, rule): &(Duration, Arc<str>)| {
                format!("rule {rule}: {}s for {}s", life.as_secs(), asked.as_secs())
            };
            return Ok((lifetime, decision.adjusted.as_ref().map(say)));
        }
        let issuer = format!("{kind} authority {authority}");
        self.config.policy.judge_issuer(life, now, &issuer, ends)?;
        let left = lifetime.not_after.saturating_since(now).as_secs();
        Ok((lifetime, Some(format!("{issuer} ends first: {left}s for {}s", life.as_secs()))))
    }

    fn jwt(
        &self,
        kind: SvidKind,
        id: &SpiffeId,
        audience: &[String],
        jti: Option<String>,
        life: Decision,
        now: Timestamp,
    ) -> Result<SignedToken, SigningError> {
        self.store.current().map_err(SigningError::CutOff)?;
        let issuer = self.authorities.jwt().ok_or(SigningError::Disabled("JWT"))?;
        let (key, ends) = (issuer.signer.key_id(), issuer.not_after);
        let (lifetime, adjusted) = self.fitted(&life, now, "JWT", key, ends, capped_token)?;
        let serial = jti.clone().unwrap_or_default();
        let token = issuer.signer.sign_jwt_svid(&JwtClaims {
            sub: id,
            aud: audience,
            exp: lifetime.not_after,
            iat: now,
            iss: self.config.jwt_issuer.as_deref(),
            jti,
        })?;
        Ok(SignedToken { adjusted, ..token_of(kind, id, &issuer, token, serial, lifetime) })
    }

    fn wit(
        &self,
        kind: SvidKind,
        id: &SpiffeId,
        key: &PublicKey,
        algorithm: JwsAlgorithm,
        life: Decision,
        now: Timestamp,
    ) -> Result<SignedToken, SigningError> {
        self.store.current().map_err(SigningError::CutOff)?;
        let issuer = self.authorities.wit().ok_or(SigningError::Disabled("WIT"))?;
        let (issuing_key, ends) = (issuer.signer.key_id(), issuer.not_after);
        let (lifetime, adjusted) = self.fitted(&life, now, "WIT", issuing_key, ends, capped_token)?;
        let claims =
            WitClaims { sub: id, exp: lifetime.not_after, iat: now, iss: self.config.wit_issuer.as_deref() };
        let token = issuer.signer.sign_wit_svid(&claims, key, algorithm)?;
        Ok(SignedToken { adjusted, ..token_of(kind, id, &issuer, token, String::new(), lifetime) })
    }
}

/// What a leaf needs besides its issuer.
struct Leaf<'a> {
    kind: SvidKind,
    id: &'a SpiffeId,
    dns_names: &'a [DnsName],
    subject: Subject<'a>,
    key: &'a PublicKey,
    life: Decision,
}

/// Why nothing was signed.
#[derive(Debug, thiserror::Error)]
pub enum SigningError {
    /// The authority ends before anything it signs could begin. The rotation has failed for long; its log says why.
    #[error("the signing authority expired at {} (unix seconds)", .0.unix_seconds())]
    AuthorityExpired(Timestamp),
    /// The store is shared, and what is known of it here is too old to act on.
    #[error(transparent)]
    CutOff(StoreError),
    /// This kind of SVID is switched off in the configuration.
    #[error("{0} functionality is disabled")]
    Disabled(&'static str),
    /// The policy of lifetimes does not allow it.
    #[error(transparent)]
    Policy(#[from] Refusal),
    /// The CSR cannot be used.
    #[error(transparent)]
    Csr(#[from] CsrError),
    /// The certificate could not be made.
    #[error(transparent)]
    X509(#[from] X509Error),
    /// The token could not be made.
    #[error(transparent)]
    Token(#[from] JwtError),
    /// The thread that signed ended without an answer.
    #[error("signing was cut off")]
    Interrupted,
}

fn living(lifetime: Lifetime, issuer_not_after: Timestamp, now: Timestamp) -> Result<Lifetime, SigningError> {
    if lifetime.is_over(now) { Err(SigningError::AuthorityExpired(issuer_not_after)) } else { Ok(lifetime) }
}

fn token_of(
    kind: SvidKind,
    id: &SpiffeId,
    issuer: &TokenIssuer,
    token: String,
    serial: String,
    lifetime: Lifetime,
) -> SignedToken {
    SignedToken {
        token,
        issued_at: lifetime.not_before,
        issued: IssuedSvid {
            kind,
            spiffe_id: id.clone(),
            entry_id: None,
            serial,
            not_after: lifetime.not_after,
            authority_id: issuer.signer.key_id().to_owned(),
        },
        adjusted: None,
    }
}

/// Items below which another thread costs more than it saves: starting one takes as long as half a signature.
const WORTH_A_THREAD: usize = 8;
