//! `spire.api.server.agent.v1.Agent`

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use async_trait::async_trait;
use bonafide_identity::{AttestedNode, JoinToken, SpiffeId};
use bonafide_pki::csr_public_key_unverified;
use bonafide_proto::convert::{
    ConvertError, X509Chain, agent_filter_from_wire, agent_id_from_wire, agent_to_wire, join_token_to_wire,
    permission_denied_with_reason, workload_id_from_wire, x509_svid_to_wire,
};
use bonafide_proto::spire::server::agent::v1::agent_server::Agent;
use bonafide_proto::spire::server::agent::v1::attest_agent_request::Step as Asked;
use bonafide_proto::spire::server::agent::v1::attest_agent_response::{Result as Outcome, Step as Answered};
use bonafide_proto::spire::server::agent::v1::{
    AttestAgentRequest, AttestAgentResponse, BanAgentRequest, CountAgentsRequest, CountAgentsResponse,
    CreateJoinTokenRequest, DeleteAgentRequest, GetAgentRequest, ListAgentsRequest, ListAgentsResponse,
    PostStatusRequest, PostStatusResponse, RenewAgentRequest, RenewAgentResponse,
};
use bonafide_proto::spire::types;
use bonafide_proto::spire::types::permission_denied_details::Reason;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};

use super::super::page::Page;
use super::super::{Call, code_name, count, random_uuid, store_failure};
use crate::attestation::{ANSWER_TIME, AttestationError, Claim, MAX_CSR, MAX_PAYLOAD, agent_serial, evict};
use crate::authority::SigningError;
use crate::caller::Origin;
use crate::node_attestor::{AttestError, Conversation, join_token};
use crate::server::Context;
use crate::status::names;
use crate::store::{Entries as _, Issuance as _, IssuedSvid, JoinTokens as _, Nodes as _, StoreError};

/// The service.
pub struct Service {
    context: Arc<Context>,
}

impl Service {
    /// Over the server's state.
    pub fn new(context: Arc<Context>) -> Self {
        Self { context }
    }

    fn agent_id(&self, id: Option<&types::Spiffeid>) -> Result<SpiffeId, Status> {
        Ok(agent_id_from_wire(id, &self.context.td, "invalid agent ID")?)
    }

    fn join_token_request(
        &self,
        request: &CreateJoinTokenRequest,
    ) -> Result<(Option<SpiffeId>, Duration, String), Status> {
        let agent_id = match &request.agent_id {
            None => None,
            id => Some(workload_id_from_wire(id.as_ref(), &self.context.td, "invalid agent ID")?),
        };
        let ttl = match u64::try_from(request.ttl) {
            Ok(ttl) if ttl > 0 => Duration::from_secs(ttl),
            _ => return Err(Status::invalid_argument("ttl is required, you must provide one")),
        };
        let value = match request.token.as_str() {
            "" => random_uuid(&*self.context.random),
            token => token.to_owned(),
        };
        Ok((agent_id, ttl, value))
    }
}

#[async_trait]
impl Agent for Service {
    async fn count_agents(
        &self,
        request: Request<CountAgentsRequest>,
    ) -> Result<Response<CountAgentsResponse>, Status> {
        let filter = agent_filter_from_wire(request.into_inner().filter.as_ref())?;
        let found = self.context.state.nodes_page(0, usize::MAX, |node| filter.matches(node));
        Ok(Response::new(CountAgentsResponse { count: count(found.len()) }))
    }

    async fn list_agents(
        &self,
        request: Request<ListAgentsRequest>,
    ) -> Result<Response<ListAgentsResponse>, Status> {
        let request = request.into_inner();
        let filter = agent_filter_from_wire(request.filter.as_ref())?;
        let page = Page::parse(request.page_size, &request.page_token, "failed to list agents")?;
        let found = self.context.state.nodes_page(page.after, page.limit, |node| filter.matches(node));
        let next_page_token = page.next_token(&found);
        let mask = request.output_mask.as_ref();
        let agents = found.iter().map(|(_, node)| agent_to_wire(node, mask)).collect();
        Ok(Response::new(ListAgentsResponse { agents, next_page_token }))
    }

    async fn get_agent(&self, request: Request<GetAgentRequest>) -> Result<Response<types::Agent>, Status> {
        let call = Call::of(&request)?;
        let request = request.into_inner();
        let id = self.agent_id(request.id.as_ref())?;
        call.target(&id);
        let node = self.context.state.node(&id).ok_or_else(agent_not_found)?;
        Ok(Response::new(agent_to_wire(&node, request.output_mask.as_ref())))
    }

    async fn delete_agent(&self, request: Request<DeleteAgentRequest>) -> Result<Response<()>, Status> {
        let call = Call::of(&request)?;
        let id = self.agent_id(request.into_inner().id.as_ref())?;
        call.target(&id);
        let aliases = join_token::aliases(&self.context.state, &id);
        let written = self.context.store.write(move |unit| evict(unit, &id, &aliases)).await;
        match written {
            // Its connections are closed by those who watch the record.
            Ok(()) => Ok(Response::new(())),
            Err(StoreError::NotFound(_)) => Err(agent_not_found()),
            Err(error) => Err(store_failure("failed to remove agent", &error)),
        }
    }

    async fn ban_agent(&self, request: Request<BanAgentRequest>) -> Result<Response<()>, Status> {
        let call = Call::of(&request)?;
        let id = self.agent_id(request.into_inner().id.as_ref())?;
        call.target(&id);
        let banned = id;
        let written = self
            .context
            .store
            .write(move |unit| {
                let mut node =
                    AttestedNode::clone(&*unit.node(&banned).ok_or(StoreError::NotFound("agent"))?);
                node.ban();
                unit.node_put(node).map(drop)
            })
            .await;
        match written {
            // Its connections are closed by those who watch the record.
            Ok(()) => Ok(Response::new(())),
            Err(StoreError::NotFound(_)) => Err(agent_not_found()),
            Err(error) => Err(store_failure("failed to ban agent", &error)),
        }
    }

    type AttestAgentStream = Talk;

    async fn attest_agent(
        &self,
        request: Request<Streaming<AttestAgentRequest>>,
    ) -> Result<Response<Talk>, Status> {
        let call = Call::of(&request)?;
        let (sender, responses) = mpsc::channel(2);
        let node = NodeEnd { requests: request.into_inner(), responses: sender.clone() };
        let attestation = attest(self.context.clone(), call, node);
        let task = tokio::spawn(async move {
            if let Err(status) = attestation.await {
                // A node that has gone need not be told.
                let _ = sender.send(Err(status)).await;
            }
        });
        Ok(Response::new(Talk { responses, task: task.abort_handle() }))
    }

    async fn renew_agent(
        &self,
        request: Request<RenewAgentRequest>,
    ) -> Result<Response<RenewAgentResponse>, Status> {
        let call = Call::of(&request)?;
        let node = call.agent()?;
        call.target(&node.id);
        if node.can_reattest {
            return Err(permission_denied_with_reason(
                "agent must reattest instead of renew",
                Reason::AgentMustReattest,
            ));
        }
        let params =
            request.into_inner().params.ok_or_else(|| Status::invalid_argument("params cannot be nil"))?;
        if params.csr.is_empty() {
            return Err(Status::invalid_argument("missing CSR"));
        }
        check_size("CSR", params.csr.len(), MAX_CSR)?;
        let key = csr_public_key_unverified(&params.csr)
            .map_err(|error| Status::invalid_argument(format!("failed to parse CSR: {error}")))?;
        let now = self.context.clock.now();
        let signed = self.context.issuing.issue_agent_x509(&node.id, &key, now).map_err(|error| {
            let text = format!("failed to sign X509 SVID: {error}");
            match error {
                SigningError::CutOff(_) => Status::unavailable(text),
                _ => Status::internal(text),
            }
        })?;
        let serial = agent_serial(&signed.issued)
            .map_err(|error| Status::internal(format!("failed to sign X509 SVID: {error}")))?;
        let (id, issued) = (node.id.clone(), signed.issued.clone());
        self.context
            .store
            .write(move |unit| {
                let mut node = AttestedNode::clone(&*unit.node(&id).ok_or(StoreError::NotFound("agent"))?);
                node.renew(serial, issued.not_after);
                unit.record_issued(std::slice::from_ref(&issued))?;
                unit.node_put(node).map(drop)
            })
            .await
            .map_err(|error| match error {
                StoreError::NotFound(_) => agent_not_found(),
                error => store_failure("failed to update agent", &error),
            })?;
        call.issued("agent", serial);
        let svid = Some(chain_to_wire(&signed.issued, signed.chain));
        Ok(Response::new(RenewAgentResponse { svid }))
    }

    async fn create_join_token(
        &self,
        request: Request<CreateJoinTokenRequest>,
    ) -> Result<Response<types::JoinToken>, Status> {
        let call = Call::of(&request)?;
        let (agent_id, ttl, value) = self.join_token_request(request.get_ref())?;
        let now = self.context.clock.now();
        let token = JoinToken { value, expires_at: now.saturating_add(ttl), agent_id };
        // The token itself is a secret; the audit log gets who it will be.
        let parent = self.context.td.agent_id(&join_token::agent_path(&token.value)).map_err(|error| {
            Status::invalid_argument(format!("token cannot be part of a SPIFFE ID: {error}"))
        })?;
        let alias = match &token.agent_id {
            None => None,
            Some(agent_id) => {
                call.target(agent_id);
                let entry_id = random_uuid(&*self.context.random);
                let alias = join_token::alias(&entry_id, agent_id, &parent, now).map_err(|error| {
                    let what = "failed to create join token registration entry";
                    Status::internal(format!("{what}: {error}"))
                })?;
                Some(alias)
            }
        };
        let wire = join_token_to_wire(&token);
        self.context
            .store
            .write(move |unit| {
                unit.token_create(&token)?;
                if let Some(alias) = alias
                    && unit.similar_entry(&alias).is_none()
                {
                    unit.entry_create(alias)?;
                }
                Ok(())
            })
            .await
            .map_err(|error| match error {
                StoreError::Full { .. } => store_failure("failed to create token", &error),
                error => Status::internal(format!("failed to create token: {error}")),
            })?;
        Ok(Response::new(wire))
    }

    async fn post_status(
        &self,
        request: Request<PostStatusRequest>,
    ) -> Result<Response<PostStatusResponse>, Status> {
        let call = Call::of(&request)?;
        let node = call.agent()?;
        let version = request.into_inner().agent_version;
        if version.chars().count() > MAX_VERSION {
            let text = format!("agent version is too long (max {MAX_VERSION} characters)");
            return Err(Status::invalid_argument(text));
        }
        if version != node.agent_version {
            let id = node.id.clone();
            self.context
                .store
                .write(move |unit| {
                    let mut node =
                        AttestedNode::clone(&*unit.node(&id).ok_or(StoreError::NotFound("agent"))?);
                    node.agent_version = version;
                    unit.node_put(node).map(drop)
                })
                .await
                .map_err(|error| match error {
                    StoreError::NotFound(_) => agent_not_found(),
                    error => store_failure("failed to update agent", &error),
                })?;
        }
        Ok(Response::new(PostStatusResponse {}))
    }
}

const MAX_VERSION: usize = 255;

fn agent_not_found() -> Status {
    Status::not_found("agent not found")
}

fn chain_to_wire(issued: &IssuedSvid, chain: Vec<Vec<u8>>) -> types::X509svid {
    x509_svid_to_wire(X509Chain {
        id: issued.spiffe_id.clone(),
        certificates: chain.into_iter().map(Into::into).collect(),
        expires_at: issued.not_after,
        hint: String::new(),
    })
}

fn check_size(what: &str, size: usize, limit: usize) -> Result<(), Status> {
    if size <= limit {
        return Ok(());
    }
    Err(Status::invalid_argument(format!("malformed param: {what} has {size} bytes; the limit is {limit}")))
}

/// The attestation of one node, from its first message to its SVID.
async fn attest(context: Arc<Context>, call: Arc<Call>, mut node: NodeEnd) -> Result<(), Status> {
    let claim = claim(node.next().await.map_err(status)?, &call)?;
    call.note("attestor", &claim.attestor);
    let now = context.clock.now();
    let outcome = context.attestation.attest(&claim, &mut node, now).await;
    let outcome = outcome.map_err(|error| attestation_status(&error));
    let code = outcome.as_ref().map_or_else(Status::code, |_| tonic::Code::Ok);
    // A name that nobody configured must not become a label: peers choose it.
    let known =
        context.attestation.attestors().named(&claim.attestor).map_or("unknown", |known| known.name());
    metrics::counter!(names::ATTESTATIONS, "type" => known, "code" => code_name(code)).increment(1);
    let admitted = outcome?;
    tracing::info!(agent = %admitted.node.id, attestor = known, "node attested");
    call.target(&admitted.node.id);
    call.issued("agent", &admitted.issued.serial);
    let result = Outcome {
        svid: Some(chain_to_wire(&admitted.issued, admitted.chain)),
        reattestable: admitted.node.can_reattest,
    };
    node.send(Answered::Result(result)).await.map_err(status)
}

fn claim(asked: Option<Asked>, call: &Call) -> Result<Claim, Status> {
    let malformed = |what: &str| Status::invalid_argument(format!("malformed param: {what}"));
    let Some(Asked::Params(params)) = asked else { return Err(malformed("missing params")) };
    let data = params.data.ok_or_else(|| malformed("missing attestation data"))?;
    let svid = params.params.ok_or_else(|| malformed("missing X509-SVID parameters"))?;
    if svid.csr.is_empty() {
        return Err(malformed("missing CSR"));
    }
    if data.r#type.is_empty() {
        return Err(malformed("missing attestation data type"));
    }
    if data.payload.is_empty() {
        return Err(malformed("missing attestation data payload"));
    }
    check_size("CSR", svid.csr.len(), MAX_CSR)?;
    check_size("attestation data type", data.r#type.len(), MAX_TYPE)?;
    check_size("attestation data payload", data.payload.len(), MAX_PAYLOAD)?;
    let address = match &call.caller.origin {
        Origin::Remote { address, .. } => Some(address.ip()),
        Origin::Local { .. } => None,
    };
    Ok(Claim { attestor: data.r#type, payload: data.payload, csr: svid.csr, address })
}

const MAX_TYPE: usize = 255;

/// The node at the other end of the stream.
struct NodeEnd {
    requests: Streaming<AttestAgentRequest>,
    responses: mpsc::Sender<Result<AttestAgentResponse, Status>>,
}

impl NodeEnd {
    async fn next(&mut self) -> Result<Option<Asked>, AttestError> {
        match tokio::time::timeout(ANSWER_TIME, self.requests.message()).await {
            Err(_) => Err(AttestError::TimedOut),
            Ok(Err(status)) if status.code() == tonic::Code::Cancelled => Err(AttestError::Gone),
            Ok(Err(status)) => Err(AttestError::Invalid(status.message().to_owned())),
            Ok(Ok(None)) => Err(AttestError::Gone),
            Ok(Ok(Some(request))) => Ok(request.step),
        }
    }

    async fn send(&mut self, step: Answered) -> Result<(), AttestError> {
        let response = AttestAgentResponse { step: Some(step) };
        self.responses.send(Ok(response)).await.map_err(|_| AttestError::Gone)
    }
}

#[async_trait]
impl Conversation for NodeEnd {
    async fn challenge(&mut self, challenge: Vec<u8>) -> Result<Vec<u8>, AttestError> {
        self.send(Answered::Challenge(challenge)).await?;
        match self.next().await? {
            Some(Asked::ChallengeResponse(response)) if response.len() > MAX_PAYLOAD => {
                Err(AttestError::Invalid("malformed param: challenge response is too large".to_owned()))
            }
            Some(Asked::ChallengeResponse(response)) => Ok(response),
            _ => Err(AttestError::Invalid("malformed param: missing challenge response".to_owned())),
        }
    }
}

fn status(error: AttestError) -> Status {
    attestation_status(&AttestationError::Attestor(error))
}

fn attestation_status(error: &AttestationError) -> Status {
    let text = error.to_string();
    match error {
        AttestationError::UnknownAttestor(_) => Status::failed_precondition(text),
        AttestationError::Attestor(error) => match error {
            AttestError::Invalid(_) => Status::invalid_argument(text),
            AttestError::Denied(_) => Status::permission_denied(text),
            AttestError::Unavailable(_) => Status::unavailable(text),
            AttestError::Internal(_) => Status::internal(text),
            AttestError::TimedOut => Status::deadline_exceeded(text),
            AttestError::Gone => Status::cancelled(text),
        },
        AttestationError::Signing(SigningError::CutOff(_)) => Status::unavailable(text),
        AttestationError::ReservedId(_) | AttestationError::Signing(_) => Status::internal(text),
        AttestationError::Banned | AttestationError::AlreadyUsed(_) => Status::permission_denied(text),
        AttestationError::Csr(_) => Status::invalid_argument(text),
        AttestationError::Store(error) => store_failure("failed to attest", error),
        AttestationError::Busy | AttestationError::NoMemory(_) => Status::unavailable(text),
    }
}

impl From<ConvertError> for AttestError {
    fn from(error: ConvertError) -> Self {
        Self::Invalid(error.to_string())
    }
}

/// The response stream of an attestation. The attestation goes on beside it, so that a node which reads nothing is sent
/// away in time like one that says nothing; it ends when the node hangs up.
pub struct Talk {
    responses: mpsc::Receiver<Result<AttestAgentResponse, Status>>,
    task: AbortHandle,
}

impl Stream for Talk {
    type Item = Result<AttestAgentResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut TaskContext<'_>) -> Poll<Option<Self::Item>> {
        self.responses.poll_recv(context)
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        self.task.abort();
    }
}
