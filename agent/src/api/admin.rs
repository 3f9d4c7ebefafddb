//! The admin socket: facts about the agent, and its log level. Whoever may open the socket may call.

use std::sync::Arc;
use std::time::Instant;

use bonafide_proto::convert::spiffe_id_to_wire;
use bonafide_proto::spire::agent::debug::v1::debug_server::Debug;
use bonafide_proto::spire::agent::debug::v1::{GetInfoRequest, GetInfoResponse, get_info_response};
use bonafide_proto::spire::agent::logger::v1::logger_server::Logger;
use bonafide_proto::spire::agent::logger::v1::{GetLoggerRequest, ResetLogLevelRequest, SetLogLevelRequest};
use bonafide_proto::spire::types;
use bonafide_runtime::telemetry::{LogHandle, LogLevel};
use tonic::{Request, Response, Status};

use crate::own_svid::OwnSvid;
use crate::svid_cache::SvidCache;
use crate::svid_cache::tokens::JwtSvids;
use crate::sync::LastSync;

/// `spire.agent.debug.v1.Debug`.
pub struct DebugService {
    /// The agent's SVID.
    pub own: OwnSvid,
    /// What it holds for workloads.
    pub cache: Arc<SvidCache>,
    /// The tokens.
    pub tokens: Arc<JwtSvids>,
    /// When the server was last heard.
    pub last_sync: LastSync,
    /// When the agent was started.
    pub started: Instant,
}

#[tonic::async_trait]
impl Debug for DebugService {
    async fn get_info(&self, _: Request<GetInfoRequest>) -> Result<Response<GetInfoResponse>, Status> {
        let chain = self.own.chain();
        let svid_chain = chain
            .iter()
            .filter_map(|der| bonafide_pki::inspect(der).ok())
            .map(|info| get_info_response::Cert {
                id: info.spiffe_id.as_ref().map(spiffe_id_to_wire),
                expires_at: info.not_after.unix_seconds(),
                subject: info.subject,
            })
            .collect();
        let count = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
        let x509 = count(self.cache.counts().x509);
        #[allow(deprecated, reason = "older command lines show it")]
        let response = GetInfoResponse {
            svid_chain,
            uptime: i32::try_from(self.started.elapsed().as_secs()).unwrap_or(i32::MAX),
            svids_count: x509,
            last_sync_success: self.last_sync.unix_seconds(),
            cached_x509_svids_count: x509,
            cached_jwt_svids_count: count(self.tokens.count()),
            cached_svidstore_x509_svids_count: 0,
        };
        Ok(Response::new(response))
    }
}

/// `spire.api.agent.logger.v1.Logger`.
pub struct LoggerService {
    /// The log of the process.
    pub log: LogHandle,
}

impl LoggerService {
    fn answer(&self) -> Response<types::Logger> {
        let wire = |level: LogLevel| i32::from(level as u8);
        Response::new(types::Logger {
            current_level: wire(self.log.current()),
            launch_level: wire(self.log.launch()),
        })
    }
}

#[tonic::async_trait]
impl Logger for LoggerService {
    async fn get_logger(&self, _: Request<GetLoggerRequest>) -> Result<Response<types::Logger>, Status> {
        Ok(self.answer())
    }

    async fn set_log_level(
        &self,
        request: Request<SetLogLevelRequest>,
    ) -> Result<Response<types::Logger>, Status> {
        let wanted = request.get_ref().new_level;
        if wanted == types::LogLevel::Unspecified as i32 {
            return Err(Status::invalid_argument("newLevel value cannot be LogLevel_UNSPECIFIED"));
        }
        let level = LogLevel::ALL.into_iter().find(|level| i32::from(*level as u8) == wanted);
        let level = level.ok_or_else(|| Status::invalid_argument("unsupported log level"))?;
        self.log.set(level);
        tracing::info!(%level, "the log level was changed");
        Ok(self.answer())
    }

    async fn reset_log_level(
        &self,
        _: Request<ResetLogLevelRequest>,
    ) -> Result<Response<types::Logger>, Status> {
        self.log.reset();
        Ok(self.answer())
    }
}
