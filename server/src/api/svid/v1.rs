//! `spire.api.server.svid.v1`: signing on request.
//!
//! An agent is trusted for its node only, so each item of each call is checked against the entries as they are at
//! that moment; SPIFFE ID, DNS names and lifetime come from the entry, and the request gives nothing but a key.

use std::sync::Arc;
use std::time::Duration;

use bonafide_identity::{AttestedNode, DnsName, Entry, EntryId, SpiffeId, TrustDomain, overlapping_wildcard};
use bonafide_pki::{JwsAlgorithm, JwtError, PublicKey, VerifiedCsr};
use bonafide_proto::convert;
use bonafide_proto::spire::server::svid::v1 as pb;
use bonafide_proto::spire::types;
use bonafide_runtime::clock::SharedClock;
use bytes::Bytes;
use tonic::{Code, Request, Response, Status};

use crate::api::Call;
use crate::authority::{Authorities, Issuing, SignedToken, SignedX509, SigningError, WorkloadRequest};
use crate::store::Store;

/// The service.
pub struct Service {
    store: Store,
    authorities: Arc<Authorities>,
    issuing: Arc<Issuing>,
    clock: SharedClock,
}

impl Service {
    /// The service that signs with `issuing` for the entries in `store`.
    pub fn new(store: Store, issuing: Arc<Issuing>, clock: SharedClock) -> Self {
        let authorities = Arc::clone(issuing.authorities());
        Self { store, authorities, issuing, clock }
    }

    fn trust_domain(&self) -> &TrustDomain {
        self.authorities.trust_domain()
    }

    /// The entries with these IDs to which an agent is entitled now, in their order.
    fn entitled<'a>(
        &self,
        node: &AttestedNode,
        ids: impl Iterator<Item = &'a str>,
    ) -> Vec<Result<Arc<Entry>, types::Status>> {
        let entries = self.store.state().entries();
        ids.map(|id| {
            if id.is_empty() {
                return Err(convert::status(Code::InvalidArgument, "missing entry ID"));
            }
            // A text that cannot be an ID is the ID of no entry.
            EntryId::parse(id)
                .ok()
                .and_then(|id| entries.authorized_entry(&node.id, &node.selectors, &id))
                .ok_or_else(|| convert::status(Code::NotFound, NOT_ENTITLED))
        })
        .collect()
    }
}

#[tonic::async_trait]
impl pb::svid_server::Svid for Service {
    async fn mint_x509svid(
        &self,
        request: Request<pb::MintX509svidRequest>,
    ) -> Result<Response<pb::MintX509svidResponse>, Status> {
        let call = Call::of(&request)?;
        let request = request.into_inner();
        let ttl = ttl(request.ttl)?;
        let now = self.clock.now();
        let minted = off_thread({
            let (issuing, trust_domain) = (Arc::clone(&self.issuing), self.trust_domain().clone());
            move || {
                let csr = verified(&request.csr)?;
                let id = only_workload_id(&csr, &trust_domain)?;
                let names = dns_names(&csr)?;
                issuing.mint_x509(&id, &names, &csr, ttl, now).map_err(|error| failed(SIGN_X509, &error))
            }
        })
        .await?;
        call.target(&minted.issued.spiffe_id);
        call.issued("x509", &minted.issued.serial);
        note_adjusted(&call, minted.adjusted.as_deref());
        self.issuing.record(vec![minted.issued.clone()]).await;
        Ok(Response::new(pb::MintX509svidResponse { svid: Some(x509_to_wire(minted, "")) }))
    }

    async fn mint_jwtsvid(
        &self,
        request: Request<pb::MintJwtsvidRequest>,
    ) -> Result<Response<pb::MintJwtsvidResponse>, Status> {
        let call = Call::of(&request)?;
        let request = request.into_inner();
        if self.authorities.jwt().is_none() {
            return Err(Status::unimplemented(JWT_DISABLED));
        }
        let id = convert::workload_id_from_wire(request.id.as_ref(), self.trust_domain(), INVALID_ID)?;
        let audience = audience(request.audience)?;
        let ttl = ttl(request.ttl)?;
        let now = self.clock.now();
        let issuing = Arc::clone(&self.issuing);
        let minted = off_thread(move || {
            issuing.mint_jwt(&id, &audience, ttl, now).map_err(|error| failed(SIGN_JWT, &error))
        })
        .await?;
        call.target(&minted.issued.spiffe_id);
        call.issued("jwt", &minted.issued.serial);
        note_adjusted(&call, minted.adjusted.as_deref());
        self.issuing.record(vec![minted.issued.clone()]).await;
        Ok(Response::new(pb::MintJwtsvidResponse {
            svid: Some(convert::jwt_svid_to_wire(token(minted, ""))),
        }))
    }

    async fn mint_witsvid(
        &self,
        request: Request<pb::MintWitsvidRequest>,
    ) -> Result<Response<pb::MintWitsvidResponse>, Status> {
        let call = Call::of(&request)?;
        let request = request.into_inner();
        if self.authorities.wit().is_none() {
            return Err(Status::unimplemented(WIT_DISABLED));
        }
        let id = convert::workload_id_from_wire(request.id.as_ref(), self.trust_domain(), INVALID_ID)?;
        let key = public_key(&request.public_key)?;
        let algorithm = algorithm(&request.signing_algorithm)?;
        let ttl = ttl(request.ttl)?;
        let now = self.clock.now();
        let issuing = Arc::clone(&self.issuing);
        let minted = off_thread(move || {
            issuing.mint_wit(&id, &key, algorithm, ttl, now).map_err(|error| failed(SIGN_WIT, &error))
        })
        .await?;
        call.target(&minted.issued.spiffe_id);
        call.issued("wit", "");
        note_adjusted(&call, minted.adjusted.as_deref());
        self.issuing.record(vec![minted.issued.clone()]).await;
        Ok(Response::new(pb::MintWitsvidResponse {
            svid: Some(convert::wit_svid_to_wire(token(minted, ""))),
        }))
    }

    async fn batch_new_x509svid(
        &self,
        request: Request<pb::BatchNewX509svidRequest>,
    ) -> Result<Response<pb::BatchNewX509svidResponse>, Status> {
        let call = Call::of(&request)?;
        let params = request.into_inner().params;
        if params.is_empty() {
            return Err(Status::invalid_argument(NO_PARAMETERS));
        }
        call.charge(params.len()).await?;
        let now = self.clock.now();
        let entitled = self.entitled(call.agent()?, params.iter().map(|item| item.entry_id.as_str()));
        let mut items = Vec::with_capacity(params.len());
        let mut requests = Vec::with_capacity(params.len());
        for (entry, params) in entitled.into_iter().zip(params) {
            let item = match entry {
                // What is missing is said before what is not found.
                Err(status) if status.code == Code::InvalidArgument as i32 => Err(status),
                _ if params.csr.is_empty() => Err(convert::status(Code::InvalidArgument, "missing CSR")),
                Err(status) => Err(status),
                Ok(entry) => {
                    requests.push(WorkloadRequest { entry: Arc::clone(&entry), csr: params.csr });
                    Ok(entry)
                }
            };
            items.push(item);
        }
        let mut signed = self.issuing.issue_workload_batch(requests, now).await.into_iter();
        let mut records = Vec::with_capacity(items.len());
        let mut results = Vec::with_capacity(items.len());
        for (position, item) in items.into_iter().enumerate() {
            let outcome = item.and_then(|entry| match signed.next() {
                Some(Ok(svid)) => Ok((svid, entry)),
                Some(Err(error)) => Err(signing_status(SIGN_X509, &error)),
                None => Err(signing_status(SIGN_X509, &SigningError::Interrupted)),
            });
            results.push(match outcome {
                Ok((svid, entry)) => {
                    call.issued("x509", &svid.issued.serial);
                    note_adjusted(&call, svid.adjusted.as_deref());
                    records.push(svid.issued.clone());
                    pb::batch_new_x509svid_response::Result {
                        status: Some(convert::status_ok()),
                        svid: Some(x509_to_wire(svid, &entry.hint)),
                    }
                }
                Err(status) => {
                    call.failed(position, status.code, &status.message);
                    pb::batch_new_x509svid_response::Result { status: Some(status), svid: None }
                }
            });
        }
        self.issuing.record(records).await;
        Ok(Response::new(pb::BatchNewX509svidResponse { results }))
    }

    async fn new_jwtsvid(
        &self,
        request: Request<pb::NewJwtsvidRequest>,
    ) -> Result<Response<pb::NewJwtsvidResponse>, Status> {
        let call = Call::of(&request)?;
        let request = request.into_inner();
        if self.authorities.jwt().is_none() {
            return Err(Status::unimplemented(JWT_DISABLED));
        }
        let now = self.clock.now();
        // Unlike in a batch, no ID at all is the ID of no entry.
        let entry = self.entitled(call.agent()?, std::iter::once(request.entry_id.as_str())).pop();
        let entry = entry.and_then(Result::ok).ok_or_else(|| Status::not_found(NOT_ENTITLED))?;
        let audience = audience(request.audience)?;
        let issuing = Arc::clone(&self.issuing);
        let hint = entry.hint.to_string();
        let signed = off_thread(move || {
            issuing.issue_jwt(&entry, &audience, now).map_err(|error| failed(SIGN_JWT, &error))
        })
        .await?;
        call.target(&signed.issued.spiffe_id);
        call.issued("jwt", &signed.issued.serial);
        note_adjusted(&call, signed.adjusted.as_deref());
        self.issuing.record(vec![signed.issued.clone()]).await;
        Ok(Response::new(pb::NewJwtsvidResponse {
            svid: Some(convert::jwt_svid_to_wire(token(signed, &hint))),
        }))
    }

    async fn batch_new_witsvid(
        &self,
        request: Request<pb::BatchNewWitsvidRequest>,
    ) -> Result<Response<pb::BatchNewWitsvidResponse>, Status> {
        let call = Call::of(&request)?;
        let params = request.into_inner().params;
        if params.is_empty() {
            return Err(Status::invalid_argument(NO_PARAMETERS));
        }
        call.charge(params.len()).await?;
        let now = self.clock.now();
        let entitled = self.entitled(call.agent()?, params.iter().map(|item| item.entry_id.as_str()));
        let issuing = Arc::clone(&self.issuing);
        let outcomes = off_thread(move || {
            let sign = |(entry, params): (Result<Arc<Entry>, types::Status>, pb::NewWitsvidParams)| {
                let entry = entry?;
                let key =
                    public_key(&params.public_key).map_err(|error| convert::status_from_error(&error))?;
                let algorithm = algorithm(&params.signing_algorithm)
                    .map_err(|error| convert::status_from_error(&error))?;
                let signed = issuing.issue_wit(&entry, &key, algorithm, now);
                signed.map(|signed| (signed, entry)).map_err(|error| signing_status(SIGN_WIT, &error))
            };
            Ok(entitled.into_iter().zip(params).map(sign).collect::<Vec<_>>())
        })
        .await?;
        let mut records = Vec::with_capacity(outcomes.len());
        let mut results = Vec::with_capacity(outcomes.len());
        for (position, outcome) in outcomes.into_iter().enumerate() {
            results.push(match outcome {
                Ok((signed, entry)) => {
                    call.target(&signed.issued.spiffe_id);
                    call.issued("wit", "");
                    note_adjusted(&call, signed.adjusted.as_deref());
                    records.push(signed.issued.clone());
                    pb::batch_new_witsvid_response::Result {
                        status: Some(convert::status_ok()),
                        svid: Some(convert::wit_svid_to_wire(token(signed, &entry.hint))),
                    }
                }
                Err(status) => {
                    call.failed(position, status.code, &status.message);
                    pb::batch_new_witsvid_response::Result { status: Some(status), svid: None }
                }
            });
        }
        self.issuing.record(records).await;
        Ok(Response::new(pb::BatchNewWitsvidResponse { results }))
    }

    async fn new_downstream_x509ca(
        &self,
        request: Request<pb::NewDownstreamX509caRequest>,
    ) -> Result<Response<pb::NewDownstreamX509caResponse>, Status> {
        let call = Call::of(&request)?;
        let request = request.into_inner();
        let ttl = ttl(request.preferred_ttl)?;
        let now = self.clock.now();
        let issuing = Arc::clone(&self.issuing);
        let signed = off_thread(move || {
            let csr = verified(&request.csr)?;
            let signed = issuing.issue_downstream_ca(&csr.public_key, ttl, now);
            signed.map_err(|error| failed("failed to sign downstream X.509 CA", &error))
        })
        .await?;
        call.issued("ca", &signed.issued.serial);
        note_adjusted(&call, signed.adjusted.as_deref());
        self.issuing.record(vec![signed.issued.clone()]).await;
        let bundle = self.store.state().bundle(self.trust_domain());
        let bundle = bundle.ok_or_else(|| Status::not_found("failed to fetch bundle"))?;
        Ok(Response::new(pb::NewDownstreamX509caResponse {
            ca_cert_chain: signed.chain,
            x509_authorities: bundle.x509_authorities.iter().map(|root| root.certificate.clone()).collect(),
        }))
    }
}

/// Signing, and verifying what a peer signed, takes milliseconds with RSA and P-384: too long for a thread that
/// serves everybody.
async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Status> + Send + 'static,
) -> Result<T, Status> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(failed("failed to sign", &SigningError::Interrupted)))
}

fn verified(csr: &[u8]) -> Result<VerifiedCsr, Status> {
    if csr.is_empty() {
        return Err(Status::invalid_argument("missing CSR"));
    }
    VerifiedCsr::parse(csr).map_err(|error| Status::invalid_argument(error.to_string()))
}

fn only_workload_id(csr: &VerifiedCsr, trust_domain: &TrustDomain) -> Result<SpiffeId, Status> {
    let uri = match csr.uris.as_slice() {
        [uri] => uri,
        [] => return Err(Status::invalid_argument("CSR URI SAN is required")),
        _ => return Err(Status::invalid_argument("only one URI SAN is expected")),
    };
    let invalid =
        |error: &dyn std::fmt::Display| Status::invalid_argument(format!("CSR URI SAN is invalid: {error}"));
    let id = SpiffeId::parse(uri).map_err(|error| invalid(&error))?;
    id.require_workload(trust_domain).map_err(|error| invalid(&error))?;
    Ok(id)
}

fn dns_names(csr: &VerifiedCsr) -> Result<Vec<DnsName>, Status> {
    let names: Vec<_> = csr
        .dns_names
        .iter()
        .map(|name| DnsName::parse(name))
        .collect::<Result<_, _>>()
        .map_err(|error| Status::invalid_argument(format!("CSR DNS name is not valid: {error}")))?;
    if let Some((wildcard, name)) = overlapping_wildcard(&names) {
        return Err(Status::invalid_argument(format!(
            "CSR DNS name contains a wildcard that covers another non-wildcard name: {wildcard} covers {name}"
        )));
    }
    Ok(names)
}

/// Empty strings are dropped before they are counted.
fn audience(mut audience: Vec<String>) -> Result<Vec<String>, Status> {
    audience.retain(|audience| !audience.is_empty());
    if audience.is_empty() {
        return Err(Status::invalid_argument("at least one audience is required"));
    }
    Ok(audience)
}

fn public_key(spki: &[u8]) -> Result<PublicKey, Status> {
    if spki.is_empty() {
        return Err(Status::invalid_argument("missing public key"));
    }
    let key = PublicKey::from_spki_der(spki).and_then(|key| key.check_point().map(|()| key));
    key.map_err(|error| Status::invalid_argument(format!("malformed public key: {error}")))
}

fn algorithm(name: &str) -> Result<JwsAlgorithm, Status> {
    if name.is_empty() {
        return Err(Status::invalid_argument("missing signing algorithm"));
    }
    name.parse()
        .map_err(|error: JwtError| Status::invalid_argument(format!("invalid signing algorithm: {error}")))
}

fn ttl(seconds: i32) -> Result<Duration, Status> {
    let seconds = u64::try_from(seconds).map_err(|_| Status::invalid_argument("TTL must not be negative"))?;
    Ok(Duration::from_secs(seconds))
}

/// Why something lives another time than was asked for, for the audit log.
fn note_adjusted(call: &Call, why: Option<&str>) {
    if let Some(why) = why {
        call.note("lifetime", why);
    }
}

fn failed(what: &str, error: &SigningError) -> Status {
    let status = signing_status(what, error);
    Status::new(Code::from_i32(status.code), status.message)
}

/// What the asker got wrong is said as it is; the rest is ours.
fn signing_status(what: &str, error: &SigningError) -> types::Status {
    match error {
        SigningError::Policy(refusal) => {
            convert::status(Code::FailedPrecondition, format!("{what}: {refusal}"))
        }
        SigningError::Csr(error) => convert::status(Code::InvalidArgument, error.to_string()),
        SigningError::Token(JwtError::Confirmation { .. }) => {
            convert::status(Code::InvalidArgument, format!("{what}: {error}"))
        }
        SigningError::CutOff(_) => convert::status(Code::Unavailable, format!("{what}: {error}")),
        _ => convert::status(Code::Internal, format!("{what}: {error}")),
    }
}

fn x509_to_wire(signed: SignedX509, hint: &str) -> types::X509svid {
    convert::x509_svid_to_wire(convert::X509Chain {
        id: signed.issued.spiffe_id,
        certificates: signed.chain.into_iter().map(Bytes::from).collect(),
        expires_at: signed.issued.not_after,
        hint: hint.to_owned(),
    })
}

fn token(signed: SignedToken, hint: &str) -> convert::SignedToken {
    convert::SignedToken {
        id: signed.issued.spiffe_id,
        token: signed.token,
        issued_at: signed.issued_at,
        expires_at: signed.issued.not_after,
        hint: hint.to_owned(),
    }
}

const NO_PARAMETERS: &str = "missing parameters";
const NOT_ENTITLED: &str = "entry not found or not authorized";
const INVALID_ID: &str = "invalid SPIFFE ID";
const JWT_DISABLED: &str = "JWT functionality is disabled";
const WIT_DISABLED: &str = "WIT functionality is disabled";
const SIGN_X509: &str = "failed to sign X509-SVID";
const SIGN_JWT: &str = "failed to sign JWT-SVID";
const SIGN_WIT: &str = "failed to sign WIT-SVID";
