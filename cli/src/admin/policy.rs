//! `bonafide policy`.

use std::process::ExitCode;

use bonafide_proto::bonafide::server::v1::CheckLifetimesRequest;
use bonafide_proto::bonafide::server::v1::maintenance_client::MaintenanceClient;
use serde_json::json;

use crate::args::PolicyCommand;
use crate::connect::Sockets;
use crate::failure::Failure;
use crate::output::{Output, moment, span};

pub(crate) async fn run(command: PolicyCommand, to: &Sockets, out: &Output) -> Result<ExitCode, Failure> {
    let PolicyCommand::Check { at } = command;
    let answer = MaintenanceClient::new(to.server().await?)
        .check_lifetimes(CheckLifetimesRequest { at: at.unwrap_or(0) })
        .await
        .map_err(Failure::refused("cannot check the lifetimes"))?
        .into_inner();
    let json = json!({
        "at": answer.at,
        "problems": answer.problems,
        "warnings": answer.warnings,
        "rules_begin": answer.beginnings,
        "entries": answer.entries,
        "refused": answer.refused,
        "adjusted": answer.adjusted,
        "findings": answer.findings.iter().map(|finding| json!({
            "entry_id": finding.entry_id,
            "spiffe_id": finding.spiffe_id,
            "kind": finding.kind,
            "asked": finding.asked,
            "life": (!finding.refused).then_some(finding.life),
            "reason": finding.reason,
        })).collect::<Vec<_>>(),
    });
    let mut fields = vec![
        ("at", moment(answer.at)),
        ("entries looked at", answer.entries.to_string()),
        ("lifetimes refused", answer.refused.to_string()),
        ("lifetimes adjusted", answer.adjusted.to_string()),
    ];
    fields.extend(answer.problems.iter().map(|problem| ("problem", problem.clone())));
    fields.extend(answer.warnings.iter().map(|warning| ("warning", warning.clone())));
    if !out.is_json() {
        let later = answer.beginnings.iter().filter(|beginning| **beginning > answer.at);
        fields.extend(later.map(|beginning| ("a rule begins", moment(*beginning))));
    }
    out.fields(&fields, &json);
    if !out.is_json() && !answer.findings.is_empty() {
        let rows = answer.findings.iter().map(|finding| {
            let became = if finding.refused { "refused".to_owned() } else { span(finding.life) };
            vec![
                finding.spiffe_id.clone(),
                finding.kind.clone(),
                span(finding.asked),
                became,
                finding.reason.clone(),
            ]
        });
        out.rows(&["SPIFFE ID", "KIND", "ASKED", "BECOMES", "WHY"], rows.collect(), &json);
    }
    let broken = answer.refused > 0 || !answer.problems.is_empty();
    Ok(if broken { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
