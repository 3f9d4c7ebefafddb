//! The web certificate of the bundle endpoint, fetched by ACME (RFC 8555).
//!
//! The endpoint itself answers the challenge `tls-alpn-01` (RFC 8737), so nothing else has to listen and no DNS has to
//! change. Certificate and account are kept in one folder: a restart orders nothing. A certificate is renewed at two thirds of
//! its life, at an instant drawn once, and the former one is presented until there is another; how long a failure waits for the next
//! attempt is the business of the task that runs this ([`schedule`]).
//!
//! The protocol is spoken by `instant-acme` over our own connections ([`client`]): decision record 0017.

mod client;
mod files;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bonafide_identity::{DnsName, Timestamp};
use bonafide_pki::tls::{Svid, SvidHolder};
use bonafide_pki::{
    KeyError, KeyType, PrivateKey, Random, X509Error, acme_challenge_certificate, inspect, pem,
    random_serial, web_csr,
};
use bonafide_runtime::backoff::Backoff;
use bonafide_runtime::clock::SharedClock;
use bonafide_runtime::tasks::Schedule;
use instant_acme::{
    Account, AuthorizationStatus, ChallengeType, Identifier, NewAccount, NewOrder, Order, OrderStatus,
};

use super::EndpointUrl;
use crate::status::names;
use client::DirectoryClient;
use files::{Files, StoredAccount, StoredCertificate};

/// The directory of Let's Encrypt, which SPIRE asks as well when none is named.
pub const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";

/// What certificate is wanted, and from whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcmeSettings {
    /// The name of the endpoint.
    pub domain_name: DnsName,
    /// Whom the ACME server may write to.
    pub email: String,
    /// The ACME server's directory.
    pub directory_url: EndpointUrl,
    /// PEM with the authorities of that server's own certificate; `None` means those of the system.
    pub directory_ca_path: Option<PathBuf>,
}

/// Why there is no new certificate.
#[derive(Debug, thiserror::Error)]
pub enum AcmeError {
    /// A file or folder.
    #[error("cannot {doing} {}: {source}", path.display())]
    File {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The ACME server refused something, or does not answer as it should.
    #[error("the ACME server {directory}: {source}")]
    Server {
        /// Its directory.
        directory: String,
        /// What it said.
        source: instant_acme::Error,
    },
    /// The server does not believe that we answer for the name.
    #[error(
        "the ACME server does not grant {domain}: {said}; it must reach this endpoint under that name on TCP port 443, \
         with nothing between that ends TLS"
    )]
    NotGranted {
        /// The name.
        domain: DnsName,
        /// What the server said.
        said: String,
    },
    /// The server has no challenge that the endpoint can answer.
    #[error(
        "the ACME server does not offer the challenge tls-alpn-01: choose another one, or use certificate_path and key_path"
    )]
    NoChallenge,
    /// It took too long.
    #[error("the order was not finished within {0:?}")]
    Timeout(Duration),
    /// What was issued is not what was asked for.
    #[error("the ACME server issued a certificate that cannot be used: {0}")]
    Certificate(String),
    /// A key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A certificate or request could not be written.
    #[error(transparent)]
    X509(#[from] X509Error),
}

/// How the task runs that keeps the certificate fresh. After a failure it waits for five minutes, then for longer: ACME servers limit
/// how often an order may fail.
pub fn schedule() -> Schedule {
    Schedule { interval: LONGEST_RETRY, retry: FIRST_RETRY, immediately: true }
}

/// The certificate, its account, and what the endpoint presents.
pub struct AcmeCertificate {
    settings: AcmeSettings,
    files: Files,
    clock: SharedClock,
    random: Arc<dyn Random>,
    presented: SvidHolder,
    challenge: SvidHolder,
    /// When the certificate that is presented is to be renewed.
    renew_at: Option<Timestamp>,
}

impl AcmeCertificate {
    /// Makes the folder, and takes the certificate into use that an earlier run has left there for the same name and directory.
    ///
    /// # Errors
    /// The folder cannot be made or read.
    pub fn open(
        settings: AcmeSettings,
        folder: PathBuf,
        clock: SharedClock,
        random: Arc<dyn Random>,
    ) -> Result<Self, AcmeError> {
        let files = Files::open(folder)?;
        let mut certificate = Self {
            settings,
            files,
            clock,
            random,
            presented: SvidHolder::empty(),
            challenge: SvidHolder::empty(),
            renew_at: None,
        };
        if let Some(stored) = certificate.files.certificate()?
            && stored.directory_url == certificate.settings.directory_url.as_str()
            && stored.domain_name == certificate.settings.domain_name.as_str()
            && let Err(error) = certificate.present(&stored)
        {
            tracing::warn!(%error, "the stored certificate of the bundle endpoint is not used; another one is ordered");
        }
        Ok(certificate)
    }

    /// What is presented.
    pub fn presented(&self) -> &SvidHolder {
        &self.presented
    }

    /// What answers a challenge, while there is one.
    pub fn challenge(&self) -> &SvidHolder {
        &self.challenge
    }

    /// Orders a certificate when there is none or it is time for the next. Gives the time until which nothing is to be done.
    ///
    /// # Errors
    /// [`AcmeError`]; what is presented stays.
    pub async fn refresh(&mut self) -> Result<Timestamp, AcmeError> {
        if let Some(renew_at) = self.renew_at.filter(|renew_at| self.clock.now() < *renew_at) {
            return Ok(renew_at);
        }
        let ordered = tokio::time::timeout(ORDER, self.order()).await;
        self.challenge.clear();
        let stored = ordered.map_err(|_| AcmeError::Timeout(ORDER))??;
        self.present(&stored)?;
        // A clock that is wrong must not make an order follow the other.
        let soonest = self.clock.now().saturating_add(BETWEEN_ORDERS);
        let renew_at = self.renew_at.map_or(soonest, |renew_at| renew_at.max(soonest));
        self.renew_at = Some(renew_at);
        self.files.keep_certificate(&stored)?;
        Ok(renew_at)
    }

    /// How long the task may rest until `then`. A clock that is set, or a machine that slept, is noticed within the hour.
    pub fn rest(&self, then: Timestamp) -> Duration {
        then.saturating_since(self.clock.now()).clamp(Duration::from_secs(1), LONGEST_REST)
    }

    /// Takes a certificate into use.
    fn present(&mut self, stored: &StoredCertificate) -> Result<(), AcmeError> {
        let wrong = |what: String| AcmeError::Certificate(what);
        let blocks = pem::decode_all(stored.chain.as_bytes()).map_err(|error| wrong(error.to_string()))?;
        let chain: Vec<_> =
            blocks.into_iter().filter(|(label, _)| label == "CERTIFICATE").map(|(_, der)| der).collect();
        let leaf = chain.first().ok_or_else(|| wrong("there is none".to_owned()))?;
        let info = inspect(leaf).map_err(|error| wrong(error.to_string()))?;
        let domain = self.settings.domain_name.as_str();
        if !info.dns_names.iter().any(|name| name.eq_ignore_ascii_case(domain)) {
            return Err(wrong(format!("it is for {:?}, not for {domain}", info.dns_names)));
        }
        if info.not_after <= self.clock.now() {
            return Err(wrong("it has expired".to_owned()));
        }
        let key = Arc::new(PrivateKey::from_pem(stored.key.as_bytes())?);
        let svid = Svid::new(chain, key).map_err(|error| wrong(error.to_string()))?;
        let renew_at = renewal(info.not_before, info.not_after, self.random.u64());
        self.presented.set(svid);
        self.renew_at = Some(renew_at);
        let not_after = info.not_after.unix_seconds();
        metrics::gauge!(names::BUNDLE_ENDPOINT_CERTIFICATE_END).set(not_after as f64);
        tracing::info!(
            %domain,
            serial = %info.serial,
            not_after,
            renew_at = renew_at.unix_seconds(),
            "the bundle endpoint has a web certificate"
        );
        Ok(())
    }

    /// A whole order, with the account that is there or a new one.
    async fn order(&self) -> Result<StoredCertificate, AcmeError> {
        let (account, known) = self.account().await?;
        match self.order_with(&account).await {
            Err(AcmeError::Server { source: instant_acme::Error::Api(problem), .. })
                if known && problem.r#type.as_deref() == Some(NO_ACCOUNT) =>
            {
                tracing::warn!(%problem, "the ACME server has forgotten the account; another one is made");
                self.files.forget_account()?;
                let (account, _) = self.account().await?;
                self.order_with(&account).await
            }
            outcome => outcome,
        }
    }

    /// The account, and whether it is an earlier run's.
    async fn account(&self) -> Result<(Account, bool), AcmeError> {
        let directory = self.settings.directory_url.as_str().to_owned();
        let client = || {
            let ca = self.settings.directory_ca_path.clone();
            Box::new(DirectoryClient::new(ca, self.clock.clone()))
        };
        let email = format!("mailto:{}", self.settings.email);
        let stored = self.files.account()?.filter(|stored| stored.directory_url == directory);
        if let Some(stored) = stored {
            let StoredAccount { email: former, credentials, .. } = stored;
            let kept = serde_json::to_value(&credentials).ok();
            let account = Account::builder_with_http(client())
                .from_credentials(credentials)
                .await
                .map_err(self.said())?;
            if former != self.settings.email {
                account.update_contacts(&[&email]).await.map_err(self.said())?;
                let credentials = kept.and_then(|kept| serde_json::from_value(kept).ok());
                if let Some(credentials) = credentials {
                    self.keep_account(directory, credentials)?;
                }
            }
            return Ok((account, true));
        }
        let wanted =
            NewAccount { contact: &[&email], terms_of_service_agreed: true, only_return_existing: false };
        let (account, credentials) = Account::builder_with_http(client())
            .create(&wanted, directory.clone(), None)
            .await
            .map_err(self.said())?;
        self.keep_account(directory, credentials)?;
        Ok((account, false))
    }

    fn keep_account(
        &self,
        directory_url: String,
        credentials: instant_acme::AccountCredentials,
    ) -> Result<(), AcmeError> {
        let email = self.settings.email.clone();
        self.files.keep_account(&StoredAccount { directory_url, email, credentials })
    }

    async fn order_with(&self, account: &Account) -> Result<StoredCertificate, AcmeError> {
        let domain = &self.settings.domain_name;
        let names = [Identifier::Dns(domain.as_str().to_owned())];
        let mut order = account.new_order(&NewOrder::new(&names)).await.map_err(self.said())?;
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization.map_err(self.said())?;
            // One that is valid already needs no proof; of all others the order says later what became of them.
            if authorization.status != AuthorizationStatus::Pending {
                continue;
            }
            let mut challenge =
                authorization.challenge(ChallengeType::TlsAlpn01).ok_or(AcmeError::NoChallenge)?;
            let answer = self.answer(challenge.key_authorization().digest().as_ref())?;
            self.challenge.set(answer);
            challenge.set_ready().await.map_err(self.said())?;
        }
        self.until(&mut order, &[OrderStatus::Ready, OrderStatus::Valid]).await?;
        self.challenge.clear();
        let key = PrivateKey::generate(KeyType::EcP256)?;
        order.finalize_csr(&web_csr(&key, domain)?).await.map_err(self.said())?;
        self.until(&mut order, &[OrderStatus::Valid]).await?;
        let chain = order.certificate().await.map_err(self.said())?;
        Ok(StoredCertificate {
            directory_url: self.settings.directory_url.as_str().to_owned(),
            domain_name: domain.as_str().to_owned(),
            key: pem::encode("PRIVATE KEY", &key.expose_pkcs8()).into(),
            chain: chain.ok_or_else(|| AcmeError::Certificate("there is none".to_owned()))?,
        })
    }

    /// The certificate that proves that this endpoint is asked, for an authorization with this digest.
    fn answer(&self, digest: &[u8]) -> Result<Svid, AcmeError> {
        let digest =
            digest.try_into().map_err(|_| AcmeError::Certificate("the digest is not SHA-256".to_owned()))?;
        let key = PrivateKey::generate(KeyType::EcP256)?;
        let now = self.clock.now();
        let (from, to) = (now.saturating_sub(AN_HOUR), now.saturating_add(AN_HOUR));
        let domain = &self.settings.domain_name;
        let serial = random_serial(&*self.random);
        let certificate = acme_challenge_certificate(&key, domain, digest, from, to, serial)?;
        Ok(Svid::new(vec![certificate], Arc::new(key))?)
    }

    /// Looks at the order, with growing delays, until it is in one of the states. The caller bounds the time.
    async fn until(&self, order: &mut Order, wanted: &[OrderStatus]) -> Result<(), AcmeError> {
        let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(5), 2.0);
        loop {
            let status = order.refresh().await.map_err(self.said())?.status;
            if wanted.contains(&status) {
                return Ok(());
            }
            if status == OrderStatus::Invalid {
                return Err(self.why(order).await);
            }
            tokio::time::sleep(backoff.next(self.random.u64())).await;
        }
    }

    /// What the server says of an order that has failed.
    async fn why(&self, order: &mut Order) -> AcmeError {
        let mut said = order.state().error.iter().map(ToString::to_string).collect::<Vec<_>>();
        let mut authorizations = order.authorizations();
        while let Some(Ok(mut authorization)) = authorizations.next().await {
            if let Ok(state) = authorization.refresh().await {
                let errors = state.challenges.iter().filter_map(|challenge| challenge.error.as_ref());
                said.extend(errors.map(ToString::to_string));
            }
        }
        let said: String = said.join("; ").chars().take(MOST_WORDS).collect();
        AcmeError::NotGranted { domain: self.settings.domain_name.clone(), said }
    }

    fn said(&self) -> impl Fn(instant_acme::Error) -> AcmeError {
        let directory = self.settings.directory_url.as_str();
        move |source| AcmeError::Server { directory: directory.to_owned(), source }
    }
}

/// When to renew a certificate: at two thirds of its life, or up to a twentieth of it earlier, as `draw` says, a number uniform
/// over all of `u64`. Servers that began together do not come back together.
fn renewal(not_before: Timestamp, not_after: Timestamp, draw: u64) -> Timestamp {
    let life = not_after.saturating_since(not_before);
    let early = (life / 20).mul_f64(draw as f64 / u64::MAX as f64);
    not_before.saturating_add((life / 3 * 2).saturating_sub(early))
}

/// For one order, with all that the server has to be waited for.
const ORDER: Duration = Duration::from_secs(300);
const FIRST_RETRY: Duration = Duration::from_secs(300);
const LONGEST_RETRY: Duration = Duration::from_secs(4 * 3600);
const LONGEST_REST: Duration = Duration::from_secs(3600);
/// From one order to the next, at least.
const BETWEEN_ORDERS: Duration = Duration::from_secs(60);
const AN_HOUR: Duration = Duration::from_secs(3600);
/// So many characters of what an ACME server says go into the log.
const MOST_WORDS: usize = 500;
/// RFC 8555, section 6.7.
const NO_ACCOUNT: &str = "urn:ietf:params:acme:error:accountDoesNotExist";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_is_at_two_thirds_and_never_later() {
        let at = Timestamp::from_unix_seconds;
        let day = 86_400;
        assert_eq!(renewal(at(0), at(90 * day), 0), at(60 * day));
        assert_eq!(renewal(at(0), at(90 * day), u64::MAX), at(60 * day - 90 * day / 20));
        let middle = renewal(at(0), at(90 * day), u64::MAX / 2);
        assert!(middle > at(57 * day) && middle < at(58 * day), "{middle:?}");
        // Nonsense leads to a renewal now, not to a panic.
        assert_eq!(renewal(at(10), at(5), 7), at(10));
    }
}
