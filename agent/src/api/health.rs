//! `grpc.health.v1.Health`: whether the agent is ready, for the process as a whole.

use bonafide_proto::health::v1::health_check_response::ServingStatus;
use bonafide_proto::health::v1::health_server::Health;
use bonafide_proto::health::v1::{
    HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse,
};
use bonafide_runtime::health::Readiness;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

/// Answers from the readiness of the agent's components.
pub struct HealthService {
    readiness: Readiness,
}

impl HealthService {
    /// Shows this readiness.
    #[must_use]
    pub fn new(readiness: Readiness) -> Self {
        Self { readiness }
    }
}

#[tonic::async_trait]
impl Health for HealthService {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        if !request.get_ref().service.is_empty() {
            return Err(Status::invalid_argument("per-service health is not supported"));
        }
        let status =
            if self.readiness.is_ready() { ServingStatus::Serving } else { ServingStatus::NotServing };
        Ok(Response::new(HealthCheckResponse { status: status.into() }))
    }

    async fn list(&self, _: Request<HealthListRequest>) -> Result<Response<HealthListResponse>, Status> {
        Err(Status::unimplemented("listing is not supported; use Check"))
    }

    type WatchStream = ReceiverStream<Result<HealthCheckResponse, Status>>;

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("watching is not supported; use Check"))
    }
}
