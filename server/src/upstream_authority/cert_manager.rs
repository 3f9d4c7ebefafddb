//! cert-manager as the upstream authority: a CertificateRequest in a Kubernetes cluster asks one of its issuers to sign this
//! server's CA.
//!
//! A request is named after the key that it is for, and the key stays the same until it is certified: so an attempt that finds
//! the request of an earlier one goes on waiting for that, and a request that somebody approves by hand an hour later is not
//! lost. It is deleted when its certificate was read or when it was refused. What is left behind by a server that stopped
//! in between is deleted when it is old; never what another program made, nor what another server may still wait for.

use std::sync::Arc;
use std::time::Duration;

use bonafide_identity::{Bundle, Timestamp, TrustDomain};
use bonafide_pki::digest::Sha256;
use bonafide_pki::{PublicKey, VerifiedCsr, inspect, pem};
use bonafide_runtime::tasks::chain;
use data_encoding::{BASE64, HEXLOWER};
use serde::Deserialize;
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::{Instant, sleep};

use super::{UpstreamAuthority, UpstreamCa, UpstreamError};
use crate::kubernetes::{Api, ApiError, Call, Verb, escaped, unusable};

/// Which issuer signs, and where requests are made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertManagerIssuer {
    /// The namespace of the requests.
    pub namespace: String,
    /// The issuer.
    pub name: String,
    /// Its kind.
    pub kind: String,
    /// The API group of its kind.
    pub group: String,
}

/// A client of cert-manager.
pub struct CertManager {
    trust_domain: TrustDomain,
    issuer: CertManagerIssuer,
    api: Arc<dyn Api>,
    patience: Duration,
}

impl CertManager {
    /// A client that has done nothing yet.
    #[must_use]
    pub fn new(trust_domain: TrustDomain, issuer: CertManagerIssuer, api: Arc<dyn Api>) -> Self {
        Self { trust_domain, issuer, api, patience: PATIENCE }
    }

    /// How long one attempt waits for a signature.
    #[must_use]
    pub fn patient_for(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    async fn call(
        &self,
        verb: Verb,
        name: &str,
        body: Option<serde_json::Value>,
    ) -> Result<Vec<u8>, ApiError> {
        let namespace = escaped(&self.issuer.namespace);
        let path = format!("/apis/cert-manager.io/v1/namespaces/{namespace}/certificaterequests{name}");
        self.api.call(Call { verb, resource: RESOURCE, path, body }).await
    }

    async fn get(&self, name: &str) -> Result<Request, ApiError> {
        let answer = self.call(Verb::Get, &format!("/{}", escaped(name)), None).await?;
        Request::parse(&answer).map_err(|problem| unusable(Verb::Get, RESOURCE, problem))
    }

    /// Deletes this very request, and nothing that has its name by now. That it is gone already is as good.
    async fn delete(&self, name: &str, uid: &str) -> Result<(), ApiError> {
        let body = json!({ "preconditions": { "uid": uid } });
        match self.call(Verb::Delete, &format!("/{}", escaped(name)), Some(body)).await {
            Ok(_) | Err(ApiError::Missing { .. } | ApiError::Exists { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn create(&self, name: &str, csr: &[u8], ttl: Duration) -> Result<Request, ApiError> {
        let CertManagerIssuer { name: issuer, kind, group, .. } = &self.issuer;
        let labels = json!({ TRUST_DOMAIN: label(&self.trust_domain), MANAGED_BY: PROGRAM });
        let body = json!({
            "apiVersion": "cert-manager.io/v1",
            "kind": "CertificateRequest",
            "metadata": { "name": name, "labels": labels },
            "spec": {
                "request": BASE64.encode(pem::encode("CERTIFICATE REQUEST", csr).as_bytes()),
                "isCA": true,
                "usages": ["cert sign", "crl sign"],
                "duration": format!("{}s", ttl.as_secs()),
                "issuerRef": { "name": issuer, "kind": kind, "group": group },
            },
        });
        let answer = self.call(Verb::Create, "", Some(body)).await?;
        Request::parse(&answer).map_err(|problem| unusable(Verb::Create, RESOURCE, problem))
    }

    /// The request for this key: a new one, or that of an earlier attempt unless it came to an end that is of no use.
    async fn request(
        &self,
        csr: &[u8],
        key: &PublicKey,
        ttl: Duration,
        now: Timestamp,
    ) -> Result<Request, UpstreamError> {
        let name = self.name_for(key);
        for _ in 0..2 {
            match self.create(&name, csr, ttl).await {
                Err(ApiError::Exists { .. }) => {}
                outcome => return outcome.map_err(refused),
            }
            let found = match self.get(&name).await {
                Err(ApiError::Missing { .. }) => continue,
                outcome => outcome.map_err(refused)?,
            };
            if !found.is_ours(&self.trust_domain) {
                return Err(failed(format!("{RESOURCE} {name} was made by somebody else: delete it")));
            }
            let fresh = match &found.state {
                State::Pending(_) => true,
                State::Refused(_) => false,
                State::Signed(ca) => {
                    inspect(&ca.chain[0]).is_ok_and(|info| info.not_after > now.saturating_add(ttl / 2))
                }
            };
            if fresh {
                return Ok(found);
            }
            self.delete(&found.name, &found.uid).await.map_err(refused)?;
        }
        Err(failed(format!("{RESOURCE} {name} is there and cannot be replaced: delete it")))
    }

    /// One name for one key and one issuer.
    fn name_for(&self, key: &PublicKey) -> String {
        let mut digest = Sha256::new();
        for part in [&self.issuer.group, &self.issuer.kind, &self.issuer.name] {
            digest.update(part.as_bytes());
            digest.update(&[0]);
        }
        digest.update(key.spki_der());
        format!("bonafide-ca-{}", &HEXLOWER.encode(&digest.finish())[..32])
    }

    /// Waits for a signature; and whether the request has come to an end.
    async fn signed(&self, mut request: Request) -> (Result<UpstreamCa, UpstreamError>, bool) {
        let until = Instant::now() + self.patience;
        loop {
            match request.state {
                State::Signed(ca) => return (Ok(ca), true),
                State::Refused(why) => {
                    return (Err(failed(format!("{RESOURCE} {} {why}", request.name))), true);
                }
                State::Pending(why) if Instant::now() >= until => {
                    let text = format!(
                        "{RESOURCE} {} is not signed yet ({why}): see whether it has to be approved and whether the issuer works; the \
                         next attempt looks at the same request",
                        request.name
                    );
                    return (Err(failed(text)), false);
                }
                State::Pending(_) => sleep(BETWEEN).await,
            }
            request = match self.get(&request.name).await {
                Ok(request) => request,
                Err(error) => return (Err(refused(error)), false),
            };
        }
    }

    /// Deletes what earlier servers left behind. That it cannot be done hinders nobody.
    async fn tidy(&self, now: Timestamp) {
        let selector = format!("{TRUST_DOMAIN}%3D{},{MANAGED_BY}%3D{PROGRAM}", label(&self.trust_domain));
        let query = format!(
            "?labelSelector={}&limit={MOST_LISTED}",
            selector.replace('/', "%2F").replace(',', "%2C")
        );
        let tidied = async {
            let answer = self.call(Verb::List, &query, None).await?;
            let listed = Request::parse_list(&answer);
            for request in listed.map_err(|problem| unusable(Verb::List, RESOURCE, problem))? {
                let age = now.unix_seconds() - request.created_at.unwrap_or(now.unix_seconds());
                let old = match request.state {
                    State::Pending(_) => FORGOTTEN,
                    State::Signed(_) | State::Refused(_) => STALE,
                };
                if age > old && request.is_ours(&self.trust_domain) {
                    self.delete(&request.name, &request.uid).await?;
                }
            }
            Ok::<_, ApiError>(())
        };
        if let Err(error) = tidied.await {
            tracing::warn!(error = chain(&error), "old CertificateRequests could not be deleted");
        }
    }
}

#[async_trait::async_trait]
impl UpstreamAuthority for CertManager {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn mint_ca(
        &self,
        csr: &[u8],
        preferred_ttl: Duration,
        now: Timestamp,
    ) -> Result<UpstreamCa, UpstreamError> {
        let verified = VerifiedCsr::parse(csr).map_err(|error| failed(format!("the CSR: {error}")))?;
        let request = self.request(csr, &verified.public_key, preferred_ttl, now).await?;
        let (name, uid) = (request.name.clone(), request.uid.clone());
        let (outcome, ended) = self.signed(request).await;
        if ended && let Err(error) = self.delete(&name, &uid).await {
            tracing::warn!(name, error = chain(&error), "a CertificateRequest could not be deleted");
        }
        self.tidy(now).await;
        outcome
    }

    /// cert-manager tells its root with each signature.
    async fn bundle(&self, _: Timestamp) -> Result<Option<Bundle>, UpstreamError> {
        Ok(None)
    }
}

/// What is needed of a CertificateRequest.
#[derive(Clone, Debug)]
pub struct Request {
    name: String,
    uid: String,
    ours: Option<String>,
    created_at: Option<i64>,
    state: State,
}

/// How far a request has come.
#[derive(Clone, Debug)]
enum State {
    /// Waits for somebody; the text says for whom.
    Pending(String),
    /// Will never be signed; the text says why.
    Refused(String),
    Signed(UpstreamCa),
}

#[derive(Deserialize)]
struct Object {
    metadata: Metadata,
    #[serde(default)]
    status: Status,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: String,
    uid: String,
    creation_timestamp: Option<String>,
    #[serde(default)]
    labels: std::collections::BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Status {
    conditions: Vec<Condition>,
    certificate: String,
    ca: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Condition {
    r#type: String,
    status: String,
    reason: String,
    message: String,
}

impl Request {
    /// Reads the API server's answer.
    ///
    /// # Errors
    /// It is no CertificateRequest.
    pub fn parse(json: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice::<Object>(json).map(Self::from)
    }

    /// Reads a list of them.
    ///
    /// # Errors
    /// It is none.
    pub fn parse_list(json: &[u8]) -> Result<Vec<Self>, serde_json::Error> {
        #[derive(Deserialize)]
        struct List {
            items: Vec<Object>,
        }
        let list: List = serde_json::from_slice(json)?;
        Ok(list.items.into_iter().map(Self::from).collect())
    }

    /// What was signed, if it was.
    pub fn certificate(&self) -> Option<&UpstreamCa> {
        match &self.state {
            State::Signed(ca) => Some(ca),
            State::Pending(_) | State::Refused(_) => None,
        }
    }

    fn is_ours(&self, trust_domain: &TrustDomain) -> bool {
        self.ours.as_ref() == Some(&label(trust_domain))
    }
}

impl From<Object> for Request {
    fn from(Object { metadata, status }: Object) -> Self {
        let Metadata { name, uid, creation_timestamp, mut labels } = metadata;
        let made_here = labels.get(MANAGED_BY).is_some_and(|program| program == PROGRAM);
        let created_at = creation_timestamp.and_then(|text| OffsetDateTime::parse(&text, &Rfc3339).ok());
        Self {
            name,
            uid,
            ours: labels.remove(TRUST_DOMAIN).filter(|_| made_here),
            created_at: created_at.map(OffsetDateTime::unix_timestamp),
            state: status.into(),
        }
    }
}

impl From<Status> for State {
    fn from(status: Status) -> Self {
        let said = |condition: &Condition| -> String {
            format!("{}: {}", condition.reason, condition.message).chars().take(MOST_WORDS).collect()
        };
        let find = |kind: &str, value: &str| {
            status.conditions.iter().find(|condition| condition.r#type == kind && condition.status == value)
        };
        if let Some(denied) = find("Denied", "True") {
            return Self::Refused(format!("was denied ({})", said(denied)));
        }
        if let Some(invalid) = find("InvalidRequest", "True") {
            return Self::Refused(format!("is invalid ({})", said(invalid)));
        }
        let ready = status.conditions.iter().find(|condition| condition.r#type == "Ready");
        if let Some(failed) = ready.filter(|ready| ready.status == "False" && ready.reason == "Failed") {
            return Self::Refused(format!("has failed ({})", said(failed)));
        }
        if !status.certificate.is_empty() {
            return match signed(&status) {
                Ok(ca) => Self::Signed(ca),
                Err(why) => Self::Refused(why),
            };
        }
        let approved = find("Approved", "True").is_some();
        Self::Pending(match ready {
            Some(ready) => said(ready),
            None if approved => "it is approved, and its issuer has done nothing".to_owned(),
            None => "nobody has approved it".to_owned(),
        })
    }
}

/// The certificate, what is above it, and the roots. That they belong together is for the caller to prove.
fn signed(status: &Status) -> Result<UpstreamCa, String> {
    let certificates = |what: &str, text: &str| {
        let text = BASE64
            .decode(text.as_bytes())
            .map_err(|error| format!("has a {what} that is no base64: {error}"))?;
        let blocks =
            pem::decode_all(&text).map_err(|error| format!("has a {what} that is no PEM: {error}"))?;
        let found = blocks.into_iter().filter(|(label, _)| label == "CERTIFICATE").map(|(_, der)| der);
        let found: Vec<Vec<u8>> = found.collect();
        match found.len() {
            0 => Err(format!("has a {what} without certificates")),
            1..=LONGEST_CHAIN => Ok(found),
            many => Err(format!("has a {what} of {many} certificates")),
        }
    };
    if status.ca.is_empty() {
        return Err(
            "was signed, and its issuer does not tell its CA (status.ca): use one that does".to_owned()
        );
    }
    let roots = certificates("CA", &status.ca)?;
    let mut chain = certificates("certificate", &status.certificate)?;
    // Some issuers put their root below the certificate as well.
    chain.retain(|certificate| !roots.contains(certificate));
    if chain.is_empty() {
        return Err("was answered with the CA itself".to_owned());
    }
    Ok(UpstreamCa { chain, roots })
}

/// A trust domain as the value of a label, which has at most 63 characters.
fn label(trust_domain: &TrustDomain) -> String {
    let name = trust_domain.as_str();
    let alphanumeric = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    if name.len() <= 63 && alphanumeric(name.as_bytes().first()) && alphanumeric(name.as_bytes().last()) {
        return name.to_owned();
    }
    let mut digest = Sha256::new();
    digest.update(name.as_bytes());
    format!("sha256-{}", &HEXLOWER.encode(&digest.finish())[..56])
}

/// A call that came to nothing.
pub fn refused(error: ApiError) -> UpstreamError {
    let reason = chain(&error);
    failed(match error {
        ApiError::Missing { .. } => {
            format!("{reason}: is cert-manager installed, and is there the namespace?")
        }
        _ => reason,
    })
}

fn failed(reason: String) -> UpstreamError {
    UpstreamError { name: NAME, reason }
}

const NAME: &str = "cert_manager";
const RESOURCE: &str = "certificaterequests.cert-manager.io";
/// The label that SPIRE's plugin sets as well.
const TRUST_DOMAIN: &str = "cert-manager.spiffe.io/trust-domain";
const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
const PROGRAM: &str = "bonafide-server";

/// Of one attempt. The next one goes on with the same request.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at a request.
const BETWEEN: Duration = Duration::from_millis(250);
/// Seconds after which a request that came to an end is not waited for by anybody.
const STALE: i64 = 3600;
/// The same for one that nobody has signed or refused.
const FORGOTTEN: i64 = 7 * 86_400;
const MOST_LISTED: usize = 100;
/// In certificates.
const LONGEST_CHAIN: usize = 16;
/// Of what others said, in characters.
const MOST_WORDS: usize = 300;
