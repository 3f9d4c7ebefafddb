//! Node attestation: from a claim to an agent SVID (SPIRE's `AttestAgent`).
//!
//! The order of the steps is the contract's: attestor, agent ID, ban, CSR, signature, record. Peers see in which step
//! they failed.
//!
//! Anybody may begin an attestation, so everything about one is bounded: the size of what is sent, the time for each
//! answer, and how many run at once, in all, by attestor and by network. Beyond that number callers wait a little and are then sent
//! away; a server that is flooded must still serve the agents it has.

mod places;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bonafide_identity::{AttestedNode, EntryId, Selector, SerialNumber, SpiffeId, Timestamp};
use bonafide_pki::csr_public_key_unverified;

use crate::authority::{Issuing, SigningError};
use crate::node_attestor::{Attempt, AttestError, Attested, Attestors, Conversation, Spent, join_token};
use crate::store::{
    Entries as _, Issuance as _, IssuedSvid, Nodes as _, Spending, SpentTokens as _, Store, StoreError, Unit,
};
use places::Places;

/// Bytes of a payload or of an answer to a challenge.
pub const MAX_PAYLOAD: usize = 256 * 1024;
/// Bytes of a CSR.
pub const MAX_CSR: usize = 16 * 1024;
/// For each message that the node has to send.
pub const ANSWER_TIME: Duration = Duration::from_secs(30);

/// What a node asks for.
#[derive(Clone, Debug)]
pub struct Claim {
    /// The attestor's name.
    pub attestor: String,
    /// What the node presents to it.
    pub payload: Vec<u8>,
    /// PKCS#10; only its key is used, its signature is not checked.
    pub csr: Vec<u8>,
    /// Where the node calls from; `None` over the administration socket.
    pub address: Option<IpAddr>,
}

/// An agent that has just attested.
#[derive(Clone, Debug)]
pub struct Admitted {
    /// Its record.
    pub node: Arc<AttestedNode>,
    /// DER, leaf first, without the root.
    pub chain: Vec<Vec<u8>>,
    /// The SVID, as noted in the inventory.
    pub issued: IssuedSvid,
}

/// Why a node was not admitted. The texts go to the node.
#[derive(Debug, thiserror::Error)]
pub enum AttestationError {
    /// There is no attestor of that name.
    #[error("error getting node attestor: could not find node attestor type {0:?}")]
    UnknownAttestor(String),
    /// The attestor refused.
    #[error(transparent)]
    Attestor(#[from] AttestError),
    /// The attestor gave an ID that no agent may have.
    #[error("agent ID {0} is reserved for the server")]
    ReservedId(SpiffeId),
    /// The node is banned.
    #[error("failed to attest: agent is banned")]
    Banned,
    /// The CSR cannot be read, or its key is not acceptable.
    #[error("failed to parse CSR: {0}")]
    Csr(String),
    /// The SVID could not be signed.
    #[error("failed to sign X509 SVID: {0}")]
    Signing(#[from] SigningError),
    /// The record could not be written.
    #[error("failed to attest: {0}")]
    Store(#[from] StoreError),
    /// The ID belongs to an agent that attested before, and is given once only; or what the node presented was used.
    #[error("nodeattestor({0}): attestation data has already been used to attest an agent")]
    AlreadyUsed(&'static str),
    /// No more used tokens can be remembered, so none can be accepted.
    #[error("nodeattestor({0}): too many tokens were used lately; try again later")]
    NoMemory(&'static str),
    /// Too many attestations are under way.
    #[error("too many nodes attest at once; try again in a moment")]
    Busy,
}

/// Attests nodes.
pub struct Attestation {
    attestors: Attestors,
    issuing: Arc<Issuing>,
    store: Store,
    places: Places,
    spiffe_id_selector: bool,
}

impl Attestation {
    /// With these attestors.
    pub fn new(attestors: Attestors, issuing: Arc<Issuing>, store: Store) -> Self {
        let places = Places::new(attestors.names());
        Self { attestors, issuing, store, places, spiffe_id_selector: false }
    }

    /// Whether a node has its own SPIFFE ID among its selectors, whatever its attestor says of it.
    #[must_use]
    pub fn with_spiffe_id_selector(mut self, on: bool) -> Self {
        self.spiffe_id_selector = on;
        self
    }

    /// The configured attestors.
    pub fn attestors(&self) -> &Attestors {
        &self.attestors
    }

    /// Attests a node and records it.
    ///
    /// # Errors
    /// Why it was not admitted; nothing is then recorded, but a join token is spent all the same.
    pub async fn attest(
        &self,
        claim: &Claim,
        conversation: &mut dyn Conversation,
        now: Timestamp,
    ) -> Result<Admitted, AttestationError> {
        let attestor = self
            .attestors
            .named(&claim.attestor)
            .ok_or_else(|| AttestationError::UnknownAttestor(claim.attestor.clone()))?;
        let place = self.places.take(attestor.name(), claim.address).await;
        let _place = place.ok_or(AttestationError::Busy)?;
        let attempt = Attempt { payload: &claim.payload, address: claim.address, now };
        let mut attested = attestor.attest(attempt, conversation).await?;
        if attested.id.is_server() {
            return Err(AttestationError::ReservedId(attested.id));
        }
        if !attested.id.path().starts_with(&format!("/spire/agent/{}/", attestor.name())) {
            tracing::warn!(agent = %attested.id, attestor = attestor.name(), "agent ID is outside of its attestor's path");
        }
        if self.spiffe_id_selector {
            let own = Selector::new("spiffe_id", &attested.id.to_string()).map_err(StoreError::refused)?;
            attested.selectors = attested.selectors.union(&std::iter::once(own).collect());
        }
        let once = !attested.can_reattest && attestor.name() != join_token::NAME;
        known(&attested, attestor.name(), once, |id| self.store.state().node(id))?;
        let key = csr_public_key_unverified(&claim.csr)
            .map_err(|error| AttestationError::Csr(error.to_string()))?;
        let signed = self.issuing.issue_agent_x509(&attested.id, &key, now)?;
        let spends = Spends { once, spent: attestor.spends(attempt), now };
        let node = self.record(attested, attestor.name(), &signed.issued, spends).await?;
        Ok(Admitted { node, chain: signed.chain, issued: signed.issued })
    }

    async fn record(
        &self,
        attested: Attested,
        attestor: &'static str,
        issued: &IssuedSvid,
        spends: Spends,
    ) -> Result<Arc<AttestedNode>, AttestationError> {
        let serial = agent_serial(issued)?;
        let issued = issued.clone();
        self.store
            .write(move |unit| {
                // It may have been banned while it attested, and two that attest at the same moment are both past the first look.
                let known = match known(&attested, attestor, spends.once, |id| unit.node(id)) {
                    Ok(known) => known,
                    Err(refused) => return Ok(Err(refused)),
                };
                if let Some(Spent { fingerprint, until }) = spends.spent {
                    match unit.spend(&fingerprint, until, spends.now)? {
                        Spending::First => {}
                        Spending::Again => return Ok(Err(AttestationError::AlreadyUsed(attestor))),
                        Spending::Full => return Ok(Err(AttestationError::NoMemory(attestor))),
                    }
                }
                let mut node = AttestedNode {
                    id: attested.id.clone(),
                    attestation_type: attestor.to_owned(),
                    serial: Some(serial),
                    not_after: issued.not_after,
                    new_serial: None,
                    new_not_after: Timestamp::from_unix_seconds(0),
                    selectors: attested.selectors.clone(),
                    can_reattest: attested.can_reattest,
                    agent_version: known.as_ref().map(|node| node.agent_version.clone()).unwrap_or_default(),
                    evidence_until: None,
                };
                if let Some(known) = &known {
                    node.keep_evidence(known, spends.now.saturating_add(EVIDENCE_KEPT));
                }
                unit.record_issued(std::slice::from_ref(&issued))?;
                unit.node_put(node).map(Ok)
            })
            .await?
    }
}

/// The record that there is of a node, if it may attest with that.
fn known(
    attested: &Attested,
    attestor: &'static str,
    once: bool,
    record: impl Fn(&SpiffeId) -> Option<Arc<AttestedNode>>,
) -> Result<Option<Arc<AttestedNode>>, AttestationError> {
    let (known, twin) = (record(&attested.id), attested.twin.as_ref().and_then(&record));
    if [&known, &twin].into_iter().flatten().any(|node| node.banned()) {
        return Err(AttestationError::Banned);
    }
    if twin.is_some() || once && known.is_some() {
        return Err(AttestationError::AlreadyUsed(attestor));
    }
    Ok(known)
}

/// How long evidence of GPUs counts for an agent that attested again, so that it can show new evidence.
const EVIDENCE_KEPT: Duration = Duration::from_secs(5 * 60);

/// What admitting a node uses up.
#[derive(Clone, Copy)]
struct Spends {
    /// Its ID: nobody may attest to it again while there is a record.
    once: bool,
    spent: Option<Spent>,
    now: Timestamp,
}

/// Removes a node and the entries that its join token brought: `aliases`, as [`join_token::aliases`] found them before
/// this write.
///
/// # Errors
/// [`StoreError::NotFound`] when there is no such node.
pub fn evict(unit: &mut Unit<'_>, id: &SpiffeId, aliases: &[EntryId]) -> Result<(), StoreError> {
    unit.node_delete(id)?;
    for alias in aliases {
        if unit.entry(alias).is_some_and(|entry| join_token::is_alias(&entry, id)) {
            unit.entry_delete(alias)?;
        }
    }
    Ok(())
}

/// The serial number of an agent's SVID in the form in which its record has it.
///
/// # Errors
/// Never for what the authority signed; the record would otherwise be unusable.
pub fn agent_serial(issued: &IssuedSvid) -> Result<SerialNumber, StoreError> {
    SerialNumber::parse(&issued.serial).map_err(StoreError::refused)
}
