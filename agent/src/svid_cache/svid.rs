//! SVIDs as they are kept, and the slot that holds one.

use std::sync::Arc;

use bonafide_identity::{Entry, SpiffeId, Timestamp};
use bytes::Bytes;
use zeroize::Zeroizing;

use super::bundles::Tainted;

/// An X.509-SVID of a workload with its private key, as the Workload API sends them.
pub struct X509Svid {
    /// Whose it is.
    pub id: SpiffeId,
    /// Concatenated DER, leaf first.
    pub chain: Bytes,
    /// How many bytes of `chain` each certificate has.
    pub lengths: Box<[usize]>,
    /// PKCS#8 DER; wiped when the last copy is dropped.
    pub key: Bytes,
    /// When the leaf ends.
    pub not_after: Timestamp,
    /// When to replace it; drawn once.
    pub renew_at: Timestamp,
    /// The key identifiers of those who signed the chain, lower-case hex.
    pub issuers: Box<[String]>,
}

/// A WIT-SVID of a workload with its private key.
pub struct WitSvid {
    /// Whose it is.
    pub id: SpiffeId,
    /// JWS in compact form.
    pub token: String,
    /// The private key as a JWK.
    pub key: Zeroizing<String>,
    /// When it ends.
    pub not_after: Timestamp,
    /// When to replace it; drawn once.
    pub renew_at: Timestamp,
    /// The authority that signed it.
    pub key_id: String,
}

impl X509Svid {
    /// The certificates one by one, leaf first. They share the bytes of the chain.
    pub fn certificates(&self) -> impl Iterator<Item = Bytes> {
        self.lengths.iter().scan(0, |start, length| {
            let end = *start + length;
            let certificate = self.chain.get(*start..end)?;
            *start = end;
            Some(self.chain.slice_ref(certificate))
        })
    }
}

impl std::fmt::Debug for X509Svid {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "X509Svid({}, until {})", self.id, self.not_after.unix_seconds())
    }
}

impl std::fmt::Debug for WitSvid {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "WitSvid({}, until {})", self.id, self.not_after.unix_seconds())
    }
}

/// What the cache needs to know of an SVID, of whatever kind.
pub trait Svid: Send + Sync + 'static {
    /// Whose it is.
    fn id(&self) -> &SpiffeId;
    /// When it ends.
    fn not_after(&self) -> Timestamp;
    /// When to replace it.
    fn renew_at(&self) -> Timestamp;
    /// Whether an authority signed it that nothing should be signed by any more.
    fn is_tainted(&self, tainted: &Tainted) -> bool;
}

impl Svid for X509Svid {
    fn id(&self) -> &SpiffeId {
        &self.id
    }
    fn not_after(&self) -> Timestamp {
        self.not_after
    }
    fn renew_at(&self) -> Timestamp {
        self.renew_at
    }
    fn is_tainted(&self, tainted: &Tainted) -> bool {
        self.issuers.iter().any(|issuer| tainted.x509.contains(issuer))
    }
}

impl Svid for WitSvid {
    fn id(&self) -> &SpiffeId {
        &self.id
    }
    fn not_after(&self) -> Timestamp {
        self.not_after
    }
    fn renew_at(&self) -> Timestamp {
        self.renew_at
    }
    fn is_tainted(&self, tainted: &Tainted) -> bool {
        tainted.wit.contains(&self.key_id)
    }
}

/// What a workload can be given for an entry at this moment.
#[derive(Debug)]
pub enum Availability<S> {
    /// This.
    Ready(Arc<S>),
    /// Nothing yet: it is being signed.
    Pending,
    /// Nothing, and the server has failed to sign it: waiting for it must not hold up the rest.
    Refused,
}

/// The place of one entry's SVID.
pub(super) struct Slot<S> {
    svid: Option<Arc<S>>,
    /// Of the entry that it was signed for.
    version: Version,
    /// Failed attempts since the last success.
    failures: u32,
    tainted: bool,
}

/// An entry that was removed and made again starts with the same revision.
type Version = (i64, Timestamp);

pub(super) fn version(entry: &Entry) -> Version {
    (entry.revision, entry.created_at)
}

/// Why a slot needs a new SVID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// There is none that could be given out.
    Missing,
    /// It is time, or the entry has changed.
    Renewal,
    /// The authority that signed it is tainted.
    Tainted,
}

impl<S> Default for Slot<S> {
    fn default() -> Self {
        Self { svid: None, version: (0, Timestamp::from_unix_millis(0)), failures: 0, tainted: false }
    }
}

impl<S: Svid> Slot<S> {
    pub(super) fn svid(&self) -> Option<&Arc<S>> {
        self.svid.as_ref()
    }

    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    fn usable(&self, entry: &Entry, now: Timestamp) -> Option<&Arc<S>> {
        self.svid.as_ref().filter(|svid| svid.not_after() > now && *svid.id() == entry.spiffe_id)
    }

    pub(super) fn availability(&self, entry: &Entry, now: Timestamp) -> Availability<S> {
        match self.usable(entry, now) {
            Some(svid) => Availability::Ready(Arc::clone(svid)),
            None if self.failures > 0 => Availability::Refused,
            None => Availability::Pending,
        }
    }

    pub(super) fn need(&self, entry: &Entry, now: Timestamp) -> Option<Need> {
        let Some(svid) = self.usable(entry, now) else { return Some(Need::Missing) };
        if self.version != version(entry) || svid.renew_at() <= now {
            Some(Need::Renewal)
        } else {
            self.tainted.then_some(Need::Tainted)
        }
    }

    /// Whether it waits for its turn to be replaced because of a tainted authority. After a failure it waits for the next
    /// regular look.
    pub(super) fn awaits_replacement(&self) -> bool {
        self.svid.is_some() && self.tainted && self.failures == 0
    }

    pub(super) fn next_renewal(&self, now: Timestamp) -> Option<Timestamp> {
        let at = self.svid.as_ref()?.renew_at();
        (self.failures == 0 || at > now).then_some(at)
    }

    /// Takes an SVID that was signed for this state of the entry.
    pub(super) fn put(&mut self, svid: S, signed_for: &Entry, tainted: &Tainted) {
        self.tainted = svid.is_tainted(tainted);
        self.svid = Some(Arc::new(svid));
        self.version = version(signed_for);
        self.failures = 0;
    }

    pub(super) fn failed(&mut self) {
        self.failures = self.failures.saturating_add(1);
    }

    /// A changed entry deserves an attempt of its own.
    pub(super) fn entry_changed(&mut self) {
        self.failures = 0;
    }

    pub(super) fn drop_svid(&mut self) -> bool {
        self.svid.take().is_some()
    }

    pub(super) fn taint(&mut self, tainted: &Tainted) {
        self.tainted = self.svid.as_ref().is_some_and(|svid| svid.is_tainted(tainted));
    }
}
