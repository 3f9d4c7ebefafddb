//! The agent's own X.509-SVID: kept on disk, renewed before it ends, given up when the server says so.
//!
//! Two key slots take turns, so that the old key is there until the new certificate is stored: a crash at any moment
//! leaves a pair that works. The server in turn accepts the old certificate until the new one is first used.
//!
//! The instant of renewal is drawn once when an SVID is adopted. An attestor that can attest again does so on a
//! connection without client certificate; the others renew over mutual TLS.

use std::sync::{Arc, Mutex, PoisonError};

use bonafide_identity::{SpiffeId, Timestamp, TrustDomain, renewal_instant};
use bonafide_pki::{
    CertificateInfo, KeyError, KeyManager, KeyType, Random, Signer, X509Error, agent_csr, inspect, tls,
};
use bonafide_runtime::clock::SharedClock;
use tokio::sync::watch;

use crate::bootstrap::store::{AgentData, DataFile, StoreError};
use crate::metrics;
use crate::node_attestor::NodeAttestor;
use crate::server_client::{Connector, Identity, OPERATION_TIMEOUT, ServerClient, ServerError, Verification};

/// What the agent's own SVID needs around it.
#[derive(Clone)]
pub(crate) struct Surroundings {
    pub(crate) trust_domain: TrustDomain,
    pub(crate) file: DataFile,
    pub(crate) keys: Arc<dyn KeyManager>,
    pub(crate) attestor: Arc<dyn NodeAttestor>,
    pub(crate) connector: Connector,
    pub(crate) identity: Identity,
    pub(crate) trust: tls::TrustStore,
    pub(crate) clock: SharedClock,
    pub(crate) random: Arc<dyn Random>,
}

/// Why the agent's own SVID could not be made or kept.
#[derive(Debug, thiserror::Error)]
pub enum OwnSvidError {
    /// The key manager.
    #[error("the agent's key cannot be made or read")]
    Key(#[from] KeyError),
    /// The certificate request.
    #[error("the request for the agent's certificate cannot be made")]
    Request(#[source] X509Error),
    /// What came back is not an agent's SVID for the key that was sent.
    #[error("the server sent a certificate that is not the agent's: {0}")]
    NotOurs(String),
    /// The state file.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The server.
    #[error(transparent)]
    Server(#[from] ServerError),
}

/// A chain with the key that it certifies.
#[derive(Clone)]
pub(crate) struct Pair {
    slot: &'static str,
    signer: Arc<dyn Signer>,
    chain: Vec<Vec<u8>>,
    info: Arc<CertificateInfo>,
    id: SpiffeId,
    reattestable: bool,
}

impl Pair {
    fn new(
        slot: &'static str,
        signer: Arc<dyn Signer>,
        chain: Vec<Vec<u8>>,
        reattestable: bool,
    ) -> Result<Self, OwnSvidError> {
        let not_ours = |problem: String| OwnSvidError::NotOurs(problem);
        let leaf = chain.first().ok_or_else(|| not_ours("there is none".to_owned()))?;
        let info = inspect(leaf).map_err(|error| not_ours(error.to_string()))?;
        if info.public_key.as_ref() != Some(signer.public_key()) {
            return Err(not_ours("it is for another key".to_owned()));
        }
        let id = info.spiffe_id.clone().ok_or_else(|| not_ours("it has no SPIFFE ID".to_owned()))?;
        Ok(Self { slot, signer, chain, info: Arc::new(info), id, reattestable })
    }

    pub(crate) fn id(&self) -> &SpiffeId {
        &self.id
    }

    pub(crate) fn not_after(&self) -> Timestamp {
        self.info.not_after
    }
}

/// What the state file holds.
pub(crate) enum Stored {
    Usable(Pair),
    Unusable(&'static str),
}

impl Stored {
    /// Pairs the stored chain with its key.
    pub(crate) async fn find(
        data: &AgentData,
        keys: &Arc<dyn KeyManager>,
        now: Timestamp,
    ) -> Result<Self, OwnSvidError> {
        if data.svid.is_empty() {
            return Ok(Self::Unusable("there is no stored SVID"));
        }
        for slot in SLOTS {
            let Some(signer) = keys.key(slot).await? else { continue };
            if let Ok(pair) = Pair::new(slot, signer, data.svid.clone(), data.reattestable) {
                return Ok(if pair.not_after().saturating_sub(EXPIRY_MARGIN) <= now {
                    Self::Unusable("the stored SVID has expired")
                } else {
                    Self::Usable(pair)
                });
            }
        }
        Ok(Self::Unusable("the key of the stored SVID is missing"))
    }
}

/// A fresh key in the slot that is not in use.
pub(crate) struct Slots {
    slot: &'static str,
    signer: Arc<dyn Signer>,
}

impl Slots {
    pub(crate) async fn generate(
        surroundings: &Surroundings,
        in_use: Option<&'static str>,
    ) -> Result<Self, OwnSvidError> {
        let slot = if in_use == Some(SLOTS[0]) { SLOTS[1] } else { SLOTS[0] };
        let signer = surroundings.keys.generate(slot, KeyType::EcP256).await?;
        Ok(Self { slot, signer })
    }

    pub(crate) fn csr(&self) -> Result<Vec<u8>, OwnSvidError> {
        agent_csr(&*self.signer, None).map_err(OwnSvidError::Request)
    }

    pub(crate) fn with_chain(self, chain: Vec<Vec<u8>>, reattestable: bool) -> Result<Pair, OwnSvidError> {
        Pair::new(self.slot, self.signer, chain, reattestable)
    }
}

/// The agent's own SVID. Cheap to clone.
#[derive(Clone)]
pub struct OwnSvid(Arc<Inner>);

struct Inner {
    surroundings: Surroundings,
    state: Mutex<State>,
    /// Wakes whoever shows the SVID; counts adoptions.
    changes: watch::Sender<u64>,
}

struct State {
    pair: Pair,
    renew_at: Timestamp,
    roots: Vec<Vec<u8>>,
}

impl OwnSvid {
    /// Puts a pair into use.
    pub(crate) fn adopt(surroundings: &Surroundings, pair: Pair, roots: Vec<Vec<u8>>) -> Self {
        let renew_at = draw_renewal(&pair, &*surroundings.random);
        let inner = Inner {
            surroundings: surroundings.clone(),
            state: Mutex::new(State { pair, renew_at, roots }),
            changes: watch::Sender::new(0),
        };
        let own = Self(Arc::new(inner));
        own.present();
        own
    }

    /// The agent's ID.
    #[must_use]
    pub fn id(&self) -> SpiffeId {
        self.state().pair.id.clone()
    }

    /// The chain, DER, leaf first.
    #[must_use]
    pub fn chain(&self) -> Vec<Vec<u8>> {
        self.state().pair.chain.clone()
    }

    /// When it ends.
    #[must_use]
    pub fn not_after(&self) -> Timestamp {
        self.state().pair.not_after()
    }

    /// When it is to be renewed.
    #[must_use]
    pub fn renew_at(&self) -> Timestamp {
        self.state().renew_at
    }

    /// Whether the agent may attest again.
    #[must_use]
    pub fn reattestable(&self) -> bool {
        self.state().pair.reattestable
    }

    /// Changes whenever another SVID is put into use.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// Whether one of these authorities (lower-case hex key identifiers) signed the chain.
    #[must_use]
    pub fn is_signed_by(&self, authorities: &std::collections::BTreeSet<String>) -> bool {
        let chain = self.chain();
        issuers(&chain).any(|issuer| authorities.contains(&issuer))
    }

    /// Replaces the SVID: by a new attestation where that is possible, else by renewal.
    ///
    /// # Errors
    /// What failed; the present SVID stays in use.
    pub async fn renew(&self, client: &ServerClient) -> Result<(), OwnSvidError> {
        let result = self.replace(client).await;
        metrics::own_svid_renewed(result.is_ok());
        result
    }

    async fn replace(&self, client: &ServerClient) -> Result<(), OwnSvidError> {
        let surroundings = &self.0.surroundings;
        let (slot, reattestable) = {
            let state = self.state();
            (state.pair.slot, state.pair.reattestable)
        };
        let fresh = Slots::generate(surroundings, Some(slot)).await?;
        let pair = if reattestable {
            let attempt = async {
                let connection = surroundings.connector.connect(Verification::Bundle, None).await?;
                connection.attest(&*surroundings.attestor, fresh.csr()?).await.map_err(OwnSvidError::from)
            };
            let attested = tokio::time::timeout(OPERATION_TIMEOUT, attempt)
                .await
                .unwrap_or(Err(ServerError::Timeout { rpc: "AttestAgent", after: OPERATION_TIMEOUT }.into()));
            match &attested {
                Ok(_) => client.observe(Ok(())),
                Err(OwnSvidError::Server(error)) => client.observe(Err(error)),
                Err(_) => {}
            }
            let attested = attested?;
            fresh.with_chain(attested.chain, attested.reattestable)?
        } else {
            let chain = client.renew(fresh.csr()?).await?;
            fresh.with_chain(chain, false)?
        };
        self.install(pair, None, client).await?;
        Ok(())
    }

    /// Puts another pair into use, and another bundle with it if there is one.
    ///
    /// # Errors
    /// The state file cannot be written; the present SVID stays in use.
    pub(crate) async fn install(
        &self,
        pair: Pair,
        roots: Option<Vec<Vec<u8>>>,
        client: &ServerClient,
    ) -> Result<(), OwnSvidError> {
        // On disk before it is used: the server forgets the old serial when it sees the new one.
        let bundle = roots.unwrap_or_else(|| self.roots());
        let (svid, reattestable) = (pair.chain.clone(), pair.reattestable);
        self.write(AgentData { svid, bundle: bundle.clone(), reattestable, ..AgentData::default() }).await?;
        {
            let renew_at = draw_renewal(&pair, &*self.0.surroundings.random);
            let mut state = self.state();
            state.pair = pair;
            state.renew_at = renew_at;
            state.roots = bundle;
        }
        self.present();
        client.disconnect().await;
        tracing::info!(id = %self.id(), not_after = self.not_after().unix_seconds(), "the agent's SVID is renewed");
        Ok(())
    }

    /// Keeps other roots of the own trust domain for the next start.
    ///
    /// # Errors
    /// The state file cannot be written.
    pub async fn keep_roots(&self, roots: Vec<Vec<u8>>) -> Result<(), StoreError> {
        {
            let mut state = self.state();
            if state.roots == roots {
                return Ok(());
            }
            state.roots = roots;
        }
        self.persist().await
    }

    /// Forgets the SVID on disk, so that the next start attests anew.
    ///
    /// # Errors
    /// The state file cannot be written.
    pub async fn forget(&self) -> Result<(), StoreError> {
        let data = AgentData { svid: Vec::new(), ..self.data() };
        self.write(data).await
    }

    pub(crate) async fn persist(&self) -> Result<(), StoreError> {
        self.write(self.data()).await
    }

    async fn write(&self, data: AgentData) -> Result<(), StoreError> {
        let file = self.0.surroundings.file.clone();
        match tokio::task::spawn_blocking(move || file.store(&data)).await {
            Ok(result) => result,
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        }
    }

    fn data(&self) -> AgentData {
        let state = self.state();
        AgentData {
            svid: state.pair.chain.clone(),
            bundle: state.roots.clone(),
            reattestable: state.pair.reattestable,
            ..AgentData::default()
        }
    }

    pub(crate) fn surroundings(&self) -> &Surroundings {
        &self.0.surroundings
    }

    /// The key slot in use.
    pub(crate) fn slot(&self) -> &'static str {
        self.state().pair.slot
    }

    /// The X.509 authorities of the own trust domain that are kept for the next start.
    pub(crate) fn roots(&self) -> Vec<Vec<u8>> {
        self.state().roots.clone()
    }

    /// Shows the SVID at handshakes from now on.
    fn present(&self) {
        let pair = self.state().pair.clone();
        metrics::own_svid(pair.not_after());
        match tls::Svid::new(pair.chain, pair.signer) {
            Ok(svid) => self.0.surroundings.identity.set(svid),
            Err(error) => tracing::error!(%error, "the agent's own SVID cannot be used"),
        }
        self.0.changes.send_modify(|count| *count += 1);
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The key identifiers of those who signed the certificates of a chain, lower-case hex.
pub(crate) fn issuers(chain: &[Vec<u8>]) -> impl Iterator<Item = String> {
    chain.iter().filter_map(|der| inspect(der).ok()?.aki)
}

fn draw_renewal(pair: &Pair, random: &dyn Random) -> Timestamp {
    renewal_instant(pair.info.not_before, pair.info.not_after, random.u64(), None)
}

const SLOTS: [&str; 2] = ["agent-svid-A", "agent-svid-B"];
const EXPIRY_MARGIN: std::time::Duration = std::time::Duration::from_secs(1);
