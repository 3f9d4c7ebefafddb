//! The server's own X509-SVID, and whom the server trusts.
//!
//! Both are looked up at each handshake from a holder that is replaced as a whole; connections that exist keep what
//! they were made with. The key is new with each SVID and never stored: after a restart the server simply signs
//! itself another.

use std::collections::HashMap;
use std::sync::Arc;

use bonafide_identity::{AuthorityKind, Bundle, Timestamp, TrustDomain, renewal_instant};
use bonafide_pki::tls::{Svid, SvidHolder, TrustStore};
use bonafide_pki::{KeyError, KeyType, PrivateKey, Random, Signer, TrustRoots};

use super::slots::has_key_id;
use super::{Authorities, Issuing, SigningError};
use crate::store::Store;

/// Keeps `spiffe://<trust domain>/spire/server` fresh in a [`SvidHolder`], and a [`TrustStore`] equal to the bundles.
pub struct ServerSvid {
    issuing: Arc<Issuing>,
    authorities: Arc<Authorities>,
    store: Store,
    holder: SvidHolder,
    trust: TrustStore,
    random: Arc<dyn Random>,
    held: Held,
    /// The bundles that `trust` was filled from.
    trusted: HashMap<TrustDomain, (Arc<Bundle>, Arc<TrustRoots>)>,
}

/// What is known of the SVID in the holder.
struct Held {
    authority_id: String,
    /// Drawn once, when it was signed.
    renew_at: Timestamp,
}

/// Why there is no new SVID for the server.
#[derive(Debug, thiserror::Error)]
pub enum ServerSvidError {
    /// Its key could not be made.
    #[error("the server's key: {0}")]
    Key(#[from] KeyError),
    /// It could not be signed.
    #[error("the server's X509-SVID: {0}")]
    Signing(#[from] SigningError),
}

impl ServerSvid {
    /// Signs the first SVID and fills both holders.
    ///
    /// # Errors
    /// The key could not be made, or the SVID not signed.
    pub fn start(
        issuing: Arc<Issuing>,
        store: Store,
        holder: SvidHolder,
        trust: TrustStore,
        random: Arc<dyn Random>,
        now: Timestamp,
    ) -> Result<Self, ServerSvidError> {
        let held = renew(&issuing, &holder, &*random, now)?;
        let authorities = Arc::clone(issuing.authorities());
        let trusted = HashMap::new();
        let mut svid = Self { issuing, authorities, store, holder, trust, random, held, trusted };
        svid.refresh_trust();
        Ok(svid)
    }

    /// Brings both holders up to date, and returns the instant at which the SVID is to be renewed next.
    ///
    /// # Errors
    /// A renewal was due and failed; the former SVID stays in use.
    pub fn refresh(&mut self, now: Timestamp) -> Result<Timestamp, ServerSvidError> {
        self.refresh_trust();
        if now >= self.held.renew_at || self.tainted() {
            self.held = renew(&self.issuing, &self.holder, &*self.random, now)?;
        }
        Ok(self.held.renew_at)
    }

    /// Whether the authority that signed the SVID is tainted, or the root above it. When it is also the active one,
    /// renewing would change nothing; the rotation replaces the authority first.
    fn tainted(&self) -> bool {
        if self.authorities.x509().authority_id() == self.held.authority_id {
            return false;
        }
        let slots = self.authorities.slots(AuthorityKind::X509);
        let in_slot = slots.iter().any(|slot| slot.tainted && slot.authority_id == self.held.authority_id);
        let bundle = self.store.state().bundle(self.authorities.trust_domain());
        in_slot
            || bundle.is_some_and(|bundle| {
                let mut tainted = bundle.x509_authorities.iter().filter(|root| root.tainted);
                tainted.any(|root| has_key_id(&root.certificate, &self.held.authority_id))
            })
    }

    /// Takes over the bundles that have changed. A certificate in a federated bundle that cannot be used as a root
    /// costs that trust domain its trust, and is said so; it must not keep the others from being updated.
    fn refresh_trust(&mut self) {
        let bundles = self.store.state().bundles();
        let mut trusted = HashMap::with_capacity(bundles.len());
        for bundle in bundles {
            if let Some((known, roots)) = self.trusted.get(&bundle.trust_domain)
                && known.x509_authorities == bundle.x509_authorities
            {
                trusted.insert(bundle.trust_domain.clone(), (bundle, Arc::clone(roots)));
                continue;
            }
            match TrustRoots::from_der(bundle.x509_authorities.iter().map(|root| root.certificate.as_slice()))
            {
                Ok(roots) => drop(trusted.insert(bundle.trust_domain.clone(), (bundle, Arc::new(roots)))),
                Err(error) => {
                    let trust_domain = &bundle.trust_domain;
                    tracing::error!(%trust_domain, %error, "the bundle cannot be used for verification");
                }
            }
        }
        self.trusted = trusted;
        let roots = self.trusted.iter().map(|(name, (_, roots))| (name.clone(), Arc::clone(roots)));
        self.trust.set(roots.collect());
    }
}

fn renew(
    issuing: &Issuing,
    holder: &SvidHolder,
    random: &dyn Random,
    now: Timestamp,
) -> Result<Held, ServerSvidError> {
    let key: Arc<dyn Signer> = Arc::new(PrivateKey::generate(KeyType::EcP256)?);
    let signed = issuing.issue_server_x509(key.public_key(), now)?;
    let not_after = signed.issued.not_after;
    holder.set(Svid::new(signed.chain, key)?);
    let not_before = now.saturating_sub(bonafide_identity::BACKDATE);
    let renew_at = renewal_instant(not_before, not_after, random.u64(), None);
    let (serial, authority) = (&signed.issued.serial, &signed.issued.authority_id);
    tracing::info!(%serial, %authority, not_after = not_after.unix_seconds(), "the server has a new X509-SVID");
    Ok(Held { authority_id: signed.issued.authority_id, renew_at })
}
