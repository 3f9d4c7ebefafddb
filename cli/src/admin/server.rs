//! `bonafide server` and `bonafide health`.

use std::process::ExitCode;

use bonafide_proto::health::v1 as health_api;
use bonafide_proto::health::v1::health_client::HealthClient;
use bonafide_proto::spire::server::debug::v1 as debug_api;
use bonafide_proto::spire::server::debug::v1::debug_client::DebugClient;
use bonafide_proto::spire::server::logger::v1 as logger_api;
use bonafide_proto::spire::server::logger::v1::logger_client::LoggerClient;
use bonafide_proto::spire::types::LogLevel;
use serde_json::json;

use super::id_text;
use crate::args::{HealthArguments, Level, Process, ServerCommand};
use crate::connect::Sockets;
use crate::failure::Failure;
use crate::output::{Output, moment_and_left, span};

pub(crate) async fn run(command: ServerCommand, to: &Sockets, out: &Output) -> Result<(), Failure> {
    match command {
        ServerCommand::Info => info(to, out).await,
        ServerCommand::LogLevel { level, reset } => log_level(level, reset, to, out).await,
    }
}

async fn info(to: &Sockets, out: &Output) -> Result<(), Failure> {
    let info = DebugClient::new(to.server().await?)
        .get_info(debug_api::GetInfoRequest {})
        .await
        .map_err(Failure::refused("cannot ask the server about itself"))?
        .into_inner();
    let mut fields = vec![
        ("uptime", span(info.uptime.into())),
        ("agents", info.agents_count.to_string()),
        ("entries", info.entries_count.to_string()),
        ("federated bundles", info.federated_bundles_count.to_string()),
    ];
    for certificate in &info.svid_chain {
        let id = id_text(certificate.id.as_ref());
        fields.push((
            "SVID chain",
            format!("{id} {} {}", certificate.subject, moment_and_left(certificate.expires_at)),
        ));
    }
    let json = json!({
        "uptime": info.uptime,
        "agents": info.agents_count,
        "entries": info.entries_count,
        "federated_bundles": info.federated_bundles_count,
        "svid_chain": info.svid_chain.iter().map(|certificate| json!({
            "id": id_text(certificate.id.as_ref()),
            "subject": certificate.subject,
            "expires_at": certificate.expires_at,
        })).collect::<Vec<_>>(),
    });
    out.fields(&fields, &json);
    Ok(())
}

async fn log_level(level: Option<Level>, reset: bool, to: &Sockets, out: &Output) -> Result<(), Failure> {
    let mut client = LoggerClient::new(to.server().await?);
    let answer = match (level, reset) {
        (Some(level), _) => {
            client.set_log_level(logger_api::SetLogLevelRequest { new_level: wire(level).into() }).await
        }
        (None, true) => client.reset_log_level(logger_api::ResetLogLevelRequest {}).await,
        (None, false) => client.get_logger(logger_api::GetLoggerRequest {}).await,
    }
    .map_err(Failure::refused("cannot ask for the log level"))?
    .into_inner();
    let name = |level: LogLevel| level.as_str_name().to_lowercase();
    let (current, launch) = (name(answer.current_level()), name(answer.launch_level()));
    let json = json!({ "current": current, "at_start": launch });
    out.fields(&[("log level", current), ("at start", launch)], &json);
    Ok(())
}

fn wire(level: Level) -> LogLevel {
    match level {
        Level::Panic => LogLevel::Panic,
        Level::Fatal => LogLevel::Fatal,
        Level::Error => LogLevel::Error,
        Level::Warn => LogLevel::Warn,
        Level::Info => LogLevel::Info,
        Level::Debug => LogLevel::Debug,
        Level::Trace => LogLevel::Trace,
    }
}

pub(crate) async fn health(
    arguments: HealthArguments,
    to: &Sockets,
    out: &Output,
) -> Result<ExitCode, Failure> {
    let (who, channel) = match arguments.who {
        Process::Server => ("server", to.server().await?),
        Process::Agent => ("agent", to.agent().await?),
    };
    let answer = HealthClient::new(channel)
        .check(health_api::HealthCheckRequest { service: String::new() })
        .await
        .map_err(Failure::refused(format!("cannot ask the {who} for its health")))?
        .into_inner();
    let healthy = answer.status() == health_api::health_check_response::ServingStatus::Serving;
    let text = if healthy { format!("the {who} is healthy") } else { format!("the {who} is not healthy") };
    out.line(&text, &json!({ "who": who, "healthy": healthy }));
    Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
