//! `bonafide.agent.v1.GpuEvidence`

use std::sync::Arc;

use async_trait::async_trait;
use bonafide_identity::{AttestedNode, SelectorSet, SpiffeId, Timestamp};
use bonafide_pki::evidence::{DeviceEvidence, MAX_DEVICES};
use bonafide_pki::inspect;
use bonafide_proto::bonafide::agent::v1::gpu_evidence_server::GpuEvidence;
use bonafide_proto::bonafide::agent::v1::{
    GetChallengeRequest, GetChallengeResponse, SubmitEvidenceRequest, SubmitEvidenceResponse,
};
use bonafide_runtime::listener::Peer;
use tonic::{Request, Response, Status};

use super::super::{Call, store_failure};
use crate::server::Context;
use crate::status::names;
use crate::store::{Nodes as _, StoreError};

/// The service.
pub struct Service {
    context: Arc<Context>,
}

impl Service {
    /// Over the server's state.
    pub fn new(context: Arc<Context>) -> Self {
        Self { context }
    }

    fn judge(&self) -> Result<&crate::gpu_evidence::GpuEvidence, Status> {
        let judge = self.context.gpu_evidence.as_ref();
        judge.ok_or_else(|| Status::unimplemented("evidence of GPUs is not configured"))
    }

    /// Writes what is known of the node's devices into its record.
    async fn record(&self, id: &SpiffeId, selectors: SelectorSet, until: Timestamp) -> Result<(), Status> {
        let id = id.clone();
        let written = self.context.store.write(move |unit| {
            let present = unit.node(&id).ok_or(StoreError::NotFound("agent"))?;
            if selectors.is_empty() && present.evidence_until.is_none() {
                return Ok(());
            }
            let mut node = AttestedNode::clone(&present);
            node.set_evidence(selectors, until);
            unit.node_put(node).map(drop)
        });
        written.await.map_err(|error| store_failure("failed to update agent", &error))
    }
}

#[async_trait]
impl GpuEvidence for Service {
    async fn get_challenge(
        &self,
        request: Request<GetChallengeRequest>,
    ) -> Result<Response<GetChallengeResponse>, Status> {
        let call = Call::of(&request)?;
        let now = self.context.clock.now();
        let challenge = self.judge()?.challenge(&call.agent()?.id, &*self.context.random, now);
        Ok(Response::new(GetChallengeResponse { challenge: challenge.to_vec() }))
    }

    async fn submit_evidence(
        &self,
        request: Request<SubmitEvidenceRequest>,
    ) -> Result<Response<SubmitEvidenceResponse>, Status> {
        let call = Call::of(&request)?;
        self.judge()?;
        let id = call.agent()?.id.clone();
        call.target(&id);
        let key = peer_key(&request).ok_or_else(|| Status::internal("the connection has no certificate"))?;
        let request = request.into_inner();
        if request.devices.len() > MAX_DEVICES {
            let text = format!("evidence of more than {MAX_DEVICES} devices");
            return Err(Status::invalid_argument(text));
        }
        let devices = request.devices.into_iter();
        let devices: Vec<_> = devices
            .map(|device| DeviceEvidence { report: device.report, chain: device.certificates })
            .collect();
        let now = self.context.clock.now();
        let (context, agent) = (self.context.clone(), id.clone());
        // Some milliseconds for each device.
        let judged = tokio::task::spawn_blocking(move || {
            let judge = context.gpu_evidence.as_ref()?;
            Some(judge.judge(&agent, &key, &request.challenge, &devices, now))
        });
        let judged = judged.await.ok().flatten().ok_or_else(|| Status::internal("the judgement stopped"))?;
        match judged {
            Ok(judgement) => {
                let result = if judgement.also_at.is_some() { "moved" } else { "ok" };
                metrics::counter!(names::GPU_EVIDENCE, "result" => result).increment(1);
                if let Some(other) = &judgement.also_at {
                    call.note("also_at", other);
                    tracing::warn!(agent = %id, %other, "two nodes show the same GPU: it was moved, or one speaks for the other");
                }
                call.note("devices", judgement.devices.join(","));
                self.record(&id, judgement.selectors.clone(), judgement.until).await?;
                Ok(Response::new(SubmitEvidenceResponse {
                    selectors: judgement.selectors.iter().map(ToString::to_string).collect(),
                    expires_at: judgement.until.unix_seconds(),
                }))
            }
            Err(refusal) => {
                metrics::counter!(names::GPU_EVIDENCE, "result" => refusal.code()).increment(1);
                call.note("refused", refusal.code());
                // A late or repeated answer says nothing of the devices.
                if !matches!(refusal, crate::gpu_evidence::Refusal::Challenge) {
                    self.record(&id, SelectorSet::empty(), now).await?;
                }
                Err(Status::invalid_argument(format!("evidence of GPUs is refused: {refusal}")))
            }
        }
    }
}

/// The public key (SPKI) of the certificate that the caller presented.
fn peer_key<T>(request: &Request<T>) -> Option<Vec<u8>> {
    let Peer::Tls(peer) = &**request.extensions().get::<Arc<Peer>>()? else { return None };
    let key = inspect(peer.certificates.first()?).ok()?.public_key?;
    Some(key.spki_der().to_vec())
}
