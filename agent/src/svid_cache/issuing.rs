//! Having SVIDs signed: keys are made here, on the node, and only requests leave it.
//!
//! Requests go in batches. A batch whose call fails is followed by smaller ones, for one oversized or slow answer must
//! not stop everything; each success doubles the size again.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bonafide_identity::rotation::renewal_after_issue;
use bonafide_identity::{Entry, Timestamp, renewal_instant};
use bonafide_pki::{
    JwsAlgorithm, KeyAlgorithm, KeyError, PrivateKey, Random, Signer as _, agent_csr, inspect, jwk,
};
use bonafide_proto::convert::{SignedToken, X509Chain};
use bonafide_runtime::clock::SharedClock;
use bytes::Bytes;

use super::tokens::key_id;
use super::{Kind, Occasion, SvidCache, Wit, WitSvid, X509, X509Svid};
use crate::config::SvidConfig;
use crate::own_svid::issuers;
use crate::server_client::{ServerClient, ServerError, SignedBatch, WitRequest, X509Request};

/// Has SVIDs signed for the cache.
pub struct Issuing {
    cache: Arc<SvidCache>,
    client: ServerClient,
    clock: SharedClock,
    random: Arc<dyn Random>,
    config: SvidConfig,
    batch: AtomicUsize,
}

/// A kind of SVID that the server signs in batches.
trait Issue: Kind {
    /// What is sent for one entry.
    type Request: Send + 'static;
    /// What comes back.
    type Response;

    fn request(entry: &Entry, key: &PrivateKey) -> Result<Self::Request, String>;
    async fn sign(
        client: &ServerClient,
        requests: &[Self::Request],
    ) -> Result<SignedBatch<Self::Response>, ServerError>;
    fn finish(
        issuing: &Issuing,
        entry: &Entry,
        key: PrivateKey,
        response: Self::Response,
    ) -> Result<Self::Svid, String>;
}

impl Issuing {
    /// With the keys and renewal instants that `config` asks for.
    #[must_use]
    pub fn new(
        cache: Arc<SvidCache>,
        client: ServerClient,
        clock: SharedClock,
        random: Arc<dyn Random>,
        config: SvidConfig,
    ) -> Self {
        Self { cache, client, clock, random, config, batch: AtomicUsize::new(MAX_BATCH) }
    }

    /// Has everything signed that is due. Returns how many SVIDs came.
    ///
    /// # Errors
    /// A call failed; what is left stays due.
    pub async fn sign_due(&self, occasion: Occasion) -> Result<usize, ServerError> {
        let x509 = self.sign_kind::<X509>(occasion).await;
        let wit = match self.sign_kind::<Wit>(occasion).await {
            // A server that cannot sign WIT-SVIDs is as good as any other; whoever asked is told.
            Err(error) if error.is_unimplemented() => {
                self.cache.wit_is_unsupported();
                Ok(0)
            }
            wit => wit,
        };
        Ok(x509? + wit?)
    }

    async fn sign_kind<K: Issue>(&self, occasion: Occasion) -> Result<usize, ServerError> {
        let mut due = self.cache.due::<K>(self.clock.now(), occasion).into_iter().peekable();
        let mut signed = 0;
        while due.peek().is_some() {
            let size = self.batch.load(Ordering::Relaxed);
            let entries: Vec<_> = due.by_ref().take(size).collect();
            signed += self.sign_batch::<K>(entries).await?;
        }
        Ok(signed)
    }

    async fn sign_batch<K: Issue>(&self, entries: Vec<Arc<Entry>>) -> Result<usize, ServerError> {
        let prepared = self.prepare::<K>(entries).await;
        let mut outcomes = Vec::new();
        let (mut asked, mut requests) = (Vec::new(), Vec::new());
        for (entry, made) in prepared {
            match made {
                Ok((key, request)) => {
                    asked.push((entry, key));
                    requests.push(request);
                }
                Err(error) => {
                    tracing::error!(
                        entry = entry.id.as_str(),
                        kind = K::NAME,
                        error,
                        "cannot make a request for an SVID"
                    );
                    outcomes.push((entry, Err(())));
                }
            }
        }
        let size = self.batch.load(Ordering::Relaxed);
        let answer =
            if requests.is_empty() { Ok(Vec::new()) } else { K::sign(&self.client, &requests).await };
        let results = match answer {
            Ok(results) => {
                self.batch.store((size * 2).min(MAX_BATCH), Ordering::Relaxed);
                results
            }
            Err(error) => {
                self.batch.store((size / 2).max(1), Ordering::Relaxed);
                outcomes.extend(asked.into_iter().map(|(entry, _)| (entry, Err(()))));
                self.cache.put::<K>(outcomes);
                return Err(error);
            }
        };
        let mut signed = 0;
        for ((entry, key), result) in asked.into_iter().zip(results) {
            let svid = result
                .map_err(|status| format!("{} ({:?})", status.message(), status.code()))
                .and_then(|response| K::finish(self, &entry, key, response));
            match svid {
                Ok(svid) => {
                    signed += 1;
                    outcomes.push((entry, Ok(svid)));
                }
                Err(error) => {
                    let (entry_id, id) = (entry.id.as_str(), &entry.spiffe_id);
                    tracing::warn!(entry = entry_id, %id, kind = K::NAME, error, "the server did not sign an SVID");
                    outcomes.push((entry, Err(())));
                }
            }
        }
        self.cache.put::<K>(outcomes);
        Ok(signed)
    }

    /// An SVID that is due the moment it comes, because the clocks of agent and server differ by more than half its life,
    /// must not make the agent ask without pause.
    fn not_at_once(&self, renew_at: Timestamp) -> Timestamp {
        renew_at.max(self.clock.now().saturating_add(LEAST_LIFE))
    }

    /// Makes keys and requests off the async threads: an RSA key takes seconds.
    async fn prepare<K: Issue>(
        &self,
        entries: Vec<Arc<Entry>>,
    ) -> Vec<(Arc<Entry>, Result<(PrivateKey, K::Request), String>)> {
        let key_type = self.config.key_type;
        let make = move || {
            let one = |entry: &Entry| {
                let key = PrivateKey::generate(key_type).map_err(|error: KeyError| error.to_string())?;
                let request = K::request(entry, &key)?;
                Ok((key, request))
            };
            entries
                .into_iter()
                .map(|entry| {
                    let made = one(&entry);
                    (entry, made)
                })
                .collect()
        };
        match tokio::task::spawn_blocking(make).await {
            Ok(prepared) => prepared,
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        }
    }
}

impl Issue for X509 {
    type Request = X509Request;
    type Response = X509Chain;

    fn request(entry: &Entry, key: &PrivateKey) -> Result<X509Request, String> {
        let csr = agent_csr(key, Some(&entry.spiffe_id)).map_err(|error| error.to_string())?;
        Ok(X509Request { entry: entry.id.clone(), csr })
    }

    async fn sign(
        client: &ServerClient,
        requests: &[X509Request],
    ) -> Result<SignedBatch<X509Chain>, ServerError> {
        client.sign_x509(requests).await
    }

    fn finish(
        issuing: &Issuing,
        entry: &Entry,
        key: PrivateKey,
        response: X509Chain,
    ) -> Result<X509Svid, String> {
        let chain: Vec<Vec<u8>> = response.certificates.iter().map(|der| der.to_vec()).collect();
        let leaf = inspect(&chain[0]).map_err(|error| error.to_string())?;
        if leaf.spiffe_id.as_ref() != Some(&entry.spiffe_id) {
            return Err(format!("the certificate is for {:?}, not for {}", leaf.uris, entry.spiffe_id));
        }
        if leaf.public_key.as_ref() != Some(key.public_key()) {
            return Err("the certificate is for another key".to_owned());
        }
        let (draw, target) = (issuing.random.u64(), issuing.config.availability_target);
        Ok(X509Svid {
            id: entry.spiffe_id.clone(),
            key: Bytes::from_owner(key.expose_pkcs8()),
            not_after: leaf.not_after,
            renew_at: issuing.not_at_once(renewal_instant(leaf.not_before, leaf.not_after, draw, target)),
            issuers: issuers(&chain).collect(),
            lengths: chain.iter().map(Vec::len).collect(),
            chain: chain.concat().into(),
        })
    }
}

impl Issue for Wit {
    type Request = WitRequest;
    type Response = SignedToken;

    fn request(entry: &Entry, key: &PrivateKey) -> Result<WitRequest, String> {
        let algorithm = algorithm(key).as_str();
        Ok(WitRequest {
            entry: entry.id.clone(),
            public_key: key.public_key().spki_der().to_vec(),
            algorithm,
        })
    }

    async fn sign(
        client: &ServerClient,
        requests: &[WitRequest],
    ) -> Result<SignedBatch<SignedToken>, ServerError> {
        client.sign_wit(requests).await
    }

    fn finish(
        issuing: &Issuing,
        entry: &Entry,
        key: PrivateKey,
        response: SignedToken,
    ) -> Result<WitSvid, String> {
        if response.id != entry.spiffe_id {
            return Err(format!("the token is {}'s, not {}'s", response.id, entry.spiffe_id));
        }
        let (issued_at, not_after): (Timestamp, Timestamp) = (response.issued_at, response.expires_at);
        Ok(WitSvid {
            id: response.id,
            key: jwk::private_key_to_jwk(&key, algorithm(&key)),
            not_after,
            renew_at: issuing.not_at_once(renewal_after_issue(
                issued_at,
                not_after,
                issuing.random.u64(),
                None,
            )),
            key_id: key_id(&response.token).unwrap_or_default(),
            token: response.token,
        })
    }
}

/// What a workload signs with under its WIT-SVID.
fn algorithm(key: &PrivateKey) -> JwsAlgorithm {
    match key.public_key().algorithm() {
        KeyAlgorithm::EcP256 => JwsAlgorithm::Es256,
        KeyAlgorithm::EcP384 => JwsAlgorithm::Es384,
        KeyAlgorithm::Rsa(_) => JwsAlgorithm::Rs256,
    }
}

const LEAST_LIFE: Duration = Duration::from_millis(500);
/// What the server takes at most.
const MAX_BATCH: usize = 500;
