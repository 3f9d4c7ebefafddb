//! `bonafide agent`.

use bonafide_proto::spire::server::agent::v1 as api;
use bonafide_proto::spire::server::agent::v1::agent_client::AgentClient;
use bonafide_proto::spire::types;
use serde_json::{Value, json};
use tonic::transport::Channel;

use super::entry::selector_match;
use super::{PAGE, id_text, selector_text, spiffe_id};
use crate::args::{AgentCommand, AgentFilter};
use crate::connect::Sockets;
use crate::failure::Failure;
use crate::output::{Output, moment_and_left, or_dash};

pub(crate) async fn run(command: AgentCommand, to: &Sockets, out: &Output) -> Result<(), Failure> {
    match command {
        AgentCommand::List { filter } => {
            let filter = list_filter(filter)?;
            let agents = list(&mut client(to).await?, filter).await?;
            let rows = agents
                .iter()
                .map(|agent| {
                    vec![
                        id_text(agent.id.as_ref()),
                        agent.attestation_type.clone(),
                        moment_and_left(agent.x509svid_expires_at),
                        state(agent).to_owned(),
                        or_dash(&agent.agent_version),
                    ]
                })
                .collect();
            let json = json!({ "agents": agents.iter().map(to_json).collect::<Vec<_>>() });
            out.rows(&["spiffe id", "attested by", "svid expires", "state", "version"], rows, &json);
        }
        AgentCommand::Show { id } => {
            let request = api::GetAgentRequest { id: Some(spiffe_id(&id)?), output_mask: None };
            let what = format!("cannot show {id}");
            let agent =
                client(to).await?.get_agent(request).await.map_err(Failure::refused(what))?.into_inner();
            let mut fields = vec![
                ("SPIFFE ID", id_text(agent.id.as_ref())),
                ("attested by", agent.attestation_type.clone()),
                ("state", state(&agent).to_owned()),
                ("serial number", or_dash(&agent.x509svid_serial_number)),
                ("SVID expires", moment_and_left(agent.x509svid_expires_at)),
                ("can attest again", if agent.can_reattest { "yes" } else { "no" }.to_owned()),
                ("version", or_dash(&agent.agent_version)),
            ];
            fields.extend(agent.selectors.iter().map(|selector| ("selector", selector_text(selector))));
            out.fields(&fields, &to_json(&agent));
        }
        AgentCommand::Count { filter } => {
            let filter = list_filter(filter)?;
            let request = api::CountAgentsRequest {
                filter: Some(api::count_agents_request::Filter {
                    by_attestation_type: filter.by_attestation_type,
                    by_selector_match: filter.by_selector_match,
                    by_banned: filter.by_banned,
                    by_can_reattest: filter.by_can_reattest,
                    by_expires_before: filter.by_expires_before,
                }),
            };
            let answer = client(to)
                .await?
                .count_agents(request)
                .await
                .map_err(Failure::refused("cannot count agents"))?;
            let count = answer.into_inner().count;
            out.line(&count.to_string(), &json!({ "count": count }));
        }
        AgentCommand::Ban { id } => {
            let request = api::BanAgentRequest { id: Some(spiffe_id(&id)?) };
            client(to)
                .await?
                .ban_agent(request)
                .await
                .map_err(Failure::refused(format!("cannot ban {id}")))?;
            out.line(&format!("banned {id}"), &json!({ "banned": id }));
        }
        AgentCommand::Evict { id } => {
            let request = api::DeleteAgentRequest { id: Some(spiffe_id(&id)?) };
            client(to)
                .await?
                .delete_agent(request)
                .await
                .map_err(Failure::refused(format!("cannot evict {id}")))?;
            out.line(&format!("evicted {id}"), &json!({ "evicted": id }));
        }
    }
    Ok(())
}

async fn client(to: &Sockets) -> Result<AgentClient<Channel>, Failure> {
    Ok(AgentClient::new(to.server().await?))
}

fn list_filter(filter: AgentFilter) -> Result<api::list_agents_request::Filter, Failure> {
    Ok(api::list_agents_request::Filter {
        by_attestation_type: filter.attestation_type.unwrap_or_default(),
        by_selector_match: selector_match(&filter.selectors, filter.matching)?,
        by_banned: filter.banned,
        by_can_reattest: filter.can_reattest,
        by_expires_before: String::new(),
    })
}

async fn list(
    client: &mut AgentClient<Channel>,
    filter: api::list_agents_request::Filter,
) -> Result<Vec<types::Agent>, Failure> {
    let (mut all, mut token) = (Vec::new(), String::new());
    loop {
        let request = api::ListAgentsRequest {
            filter: Some(filter.clone()),
            output_mask: None,
            page_size: PAGE,
            page_token: token,
        };
        let page =
            client.list_agents(request).await.map_err(Failure::refused("cannot list agents"))?.into_inner();
        all.extend(page.agents);
        if page.next_page_token.is_empty() {
            return Ok(all);
        }
        token = page.next_page_token;
    }
}

fn state(agent: &types::Agent) -> &'static str {
    let now = time::OffsetDateTime::now_utc().unix_timestamp();
    match agent.banned {
        true => "banned",
        false if agent.x509svid_expires_at <= now => "expired",
        false => "active",
    }
}

fn to_json(agent: &types::Agent) -> Value {
    json!({
        "id": id_text(agent.id.as_ref()),
        "attestation_type": agent.attestation_type,
        "serial_number": agent.x509svid_serial_number,
        "expires_at": agent.x509svid_expires_at,
        "selectors": agent.selectors.iter().map(selector_text).collect::<Vec<_>>(),
        "banned": agent.banned,
        "can_reattest": agent.can_reattest,
        "version": agent.agent_version,
    })
}
