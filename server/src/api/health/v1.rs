//! `grpc.health.v1.Health`
//!
//! The server is healthy when it is ready, all of it; single services are not told apart, as in SPIRE.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use async_trait::async_trait;
use bonafide_proto::health::v1::health_check_response::ServingStatus;
use bonafide_proto::health::v1::health_server::Health;
use bonafide_proto::health::v1::{
    HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse,
};
use bonafide_runtime::health::Readiness;
use tokio::time::{Interval, MissedTickBehavior};
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use crate::server::Context;

/// The service.
pub struct Service {
    readiness: Readiness,
}

impl Service {
    /// Over the server's readiness.
    pub fn new(context: Arc<Context>) -> Self {
        Self { readiness: context.readiness.clone() }
    }
}

#[async_trait]
impl Health for Service {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        whole(&request)?;
        Ok(Response::new(response(&self.readiness)))
    }

    async fn list(&self, _: Request<HealthListRequest>) -> Result<Response<HealthListResponse>, Status> {
        let statuses = [(String::new(), response(&self.readiness))].into();
        Ok(Response::new(HealthListResponse { statuses }))
    }

    type WatchStream = Watch;

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Watch>, Status> {
        whole(&request)?;
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Response::new(Watch { readiness: self.readiness.clone(), look, told: None }))
    }
}

fn whole(request: &Request<HealthCheckRequest>) -> Result<(), Status> {
    if request.get_ref().service.is_empty() {
        return Ok(());
    }
    Err(Status::invalid_argument("per-service health is not supported"))
}

fn response(readiness: &Readiness) -> HealthCheckResponse {
    let status = if readiness.is_ready() { ServingStatus::Serving } else { ServingStatus::NotServing };
    HealthCheckResponse { status: status.into() }
}

/// How soon a watcher learns of a change.
const LOOK: Duration = Duration::from_millis(500);

/// Tells the status at once and whenever it changes.
pub struct Watch {
    readiness: Readiness,
    look: Interval,
    told: Option<HealthCheckResponse>,
}

impl Stream for Watch {
    type Item = Result<HealthCheckResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut TaskContext<'_>) -> Poll<Option<Self::Item>> {
        while self.look.poll_tick(context).is_ready() {
            let status = response(&self.readiness);
            if self.told != Some(status) {
                self.told = Some(status);
                return Poll::Ready(Some(Ok(status)));
            }
        }
        Poll::Pending
    }
}
