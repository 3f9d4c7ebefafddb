//! `bonafide token`.

use bonafide_proto::spire::server::agent::v1 as api;
use bonafide_proto::spire::server::agent::v1::agent_client::AgentClient;
use serde_json::json;

use super::spiffe_id;
use crate::args::TokenCommand;
use crate::connect::Sockets;
use crate::failure::Failure;
use crate::output::{Output, moment_and_left};

pub(crate) async fn run(command: TokenCommand, to: &Sockets, out: &Output) -> Result<(), Failure> {
    let TokenCommand::Create { ttl, agent_id, value } = command;
    let request = api::CreateJoinTokenRequest {
        ttl,
        token: value.unwrap_or_default(),
        agent_id: agent_id.as_deref().map(spiffe_id).transpose()?,
    };
    let token = AgentClient::new(to.server().await?)
        .create_join_token(request)
        .await
        .map_err(Failure::refused("cannot create a join token"))?
        .into_inner();
    let json = json!({ "value": token.value, "expires_at": token.expires_at });
    out.fields(&[("token", token.value), ("usable until", moment_and_left(token.expires_at))], &json);
    Ok(())
}
