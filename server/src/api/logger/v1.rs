//! `spire.api.server.logger.v1.Logger`

use std::sync::Arc;

use async_trait::async_trait;
use bonafide_proto::spire::server::logger::v1::logger_server::Logger;
use bonafide_proto::spire::server::logger::v1::{GetLoggerRequest, ResetLogLevelRequest, SetLogLevelRequest};
use bonafide_proto::spire::types;
use bonafide_runtime::telemetry::LogLevel;
use tonic::{Request, Response, Status};

use super::super::Call;
use crate::server::Context;

/// The service.
pub struct Service {
    context: Arc<Context>,
}

impl Service {
    /// Over the process's log.
    pub fn new(context: Arc<Context>) -> Self {
        Self { context }
    }

    fn levels(&self) -> Response<types::Logger> {
        let log = &self.context.log;
        Response::new(types::Logger {
            current_level: to_wire(log.current()).into(),
            launch_level: to_wire(log.launch()).into(),
        })
    }
}

#[async_trait]
impl Logger for Service {
    async fn get_logger(&self, _: Request<GetLoggerRequest>) -> Result<Response<types::Logger>, Status> {
        Ok(self.levels())
    }

    async fn set_log_level(
        &self,
        request: Request<SetLogLevelRequest>,
    ) -> Result<Response<types::Logger>, Status> {
        let call = Call::of(&request)?;
        let level = match types::LogLevel::try_from(request.get_ref().new_level) {
            Ok(types::LogLevel::Unspecified) => {
                return Err(Status::invalid_argument("newLevel value cannot be LogLevel_UNSPECIFIED"));
            }
            Ok(level) => level,
            Err(_) => return Err(Status::invalid_argument("unsupported log level")),
        };
        let level = from_wire(level);
        call.note("level", level);
        self.context.log.set(level);
        Ok(self.levels())
    }

    async fn reset_log_level(
        &self,
        _: Request<ResetLogLevelRequest>,
    ) -> Result<Response<types::Logger>, Status> {
        self.context.log.reset();
        Ok(self.levels())
    }
}

fn to_wire(level: LogLevel) -> types::LogLevel {
    match level {
        LogLevel::Panic => types::LogLevel::Panic,
        LogLevel::Fatal => types::LogLevel::Fatal,
        LogLevel::Error => types::LogLevel::Error,
        LogLevel::Warn => types::LogLevel::Warn,
        LogLevel::Info => types::LogLevel::Info,
        LogLevel::Debug => types::LogLevel::Debug,
        LogLevel::Trace => types::LogLevel::Trace,
    }
}

/// The unspecified level has been refused before.
fn from_wire(level: types::LogLevel) -> LogLevel {
    match level {
        types::LogLevel::Panic => LogLevel::Panic,
        types::LogLevel::Fatal => LogLevel::Fatal,
        types::LogLevel::Error => LogLevel::Error,
        types::LogLevel::Warn => LogLevel::Warn,
        types::LogLevel::Unspecified | types::LogLevel::Info => LogLevel::Info,
        types::LogLevel::Debug => LogLevel::Debug,
        types::LogLevel::Trace => LogLevel::Trace,
    }
}
