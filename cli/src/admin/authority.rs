//! `bonafide authority`.

use bonafide_proto::spire::server::localauthority::v1 as api;
use bonafide_proto::spire::server::localauthority::v1::local_authority_client::LocalAuthorityClient;
use serde_json::json;
use tonic::transport::Channel;

use crate::args::{AuthorityCommand, Kind};
use crate::connect::Sockets;
use crate::failure::Failure;
use crate::output::{Output, moment_and_left, or_dash};

type Client = LocalAuthorityClient<Channel>;

pub(crate) async fn run(command: AuthorityCommand, to: &Sockets, out: &Output) -> Result<(), Failure> {
    let mut client = LocalAuthorityClient::new(to.server().await?);
    let rows = match command {
        AuthorityCommand::Show { kind: Some(kind) } => show(&mut client, kind).await?,
        AuthorityCommand::Show { kind: None } => {
            let mut rows = Vec::new();
            for kind in [Kind::X509, Kind::Jwt, Kind::Wit] {
                match show(&mut client, kind).await {
                    Ok(more) => rows.extend(more),
                    // A server that signs no tokens of this kind has no authority of it.
                    Err(Failure::Refused { status, .. }) if status.code() == tonic::Code::Unimplemented => {}
                    Err(failure) => return Err(failure),
                }
            }
            rows
        }
        AuthorityCommand::Prepare { kind } => {
            vec![Row::new(kind, "prepared", prepare(&mut client, kind).await?)?]
        }
        AuthorityCommand::Activate { kind, id } => {
            vec![Row::new(kind, "active", activate(&mut client, kind, id).await?)?]
        }
        AuthorityCommand::Taint { kind, id, upstream: false } => {
            vec![Row::new(kind, "tainted", taint(&mut client, kind, id).await?)?]
        }
        AuthorityCommand::Revoke { kind, id, upstream: false } => {
            vec![Row::new(kind, "revoked", revoke(&mut client, kind, id).await?)?]
        }
        AuthorityCommand::Taint { kind, id, upstream: true } => {
            only_x509(kind)?;
            let request = api::TaintX509UpstreamAuthorityRequest { subject_key_id: id };
            let answer = client
                .taint_x509_upstream_authority(request)
                .await
                .map_err(Failure::refused("cannot taint the upstream authority"))?;
            vec![Row::upstream("tainted", answer.into_inner().upstream_authority_subject_key_id)]
        }
        AuthorityCommand::Revoke { kind, id, upstream: true } => {
            only_x509(kind)?;
            let request = api::RevokeX509UpstreamAuthorityRequest { subject_key_id: id };
            let answer = client
                .revoke_x509_upstream_authority(request)
                .await
                .map_err(Failure::refused("cannot revoke the upstream authority"))?;
            vec![Row::upstream("revoked", answer.into_inner().upstream_authority_subject_key_id)]
        }
    };
    let json = json!({
        "authorities": rows.iter().map(|row| json!({
            "kind": row.kind, "state": row.state, "id": row.id,
            "expires_at": row.expires_at, "upstream": row.upstream,
        })).collect::<Vec<_>>()
    });
    let table = rows
        .into_iter()
        .map(|row| {
            vec![
                row.kind.to_owned(),
                row.state.to_owned(),
                row.id,
                moment_and_left(row.expires_at),
                or_dash(&row.upstream),
            ]
        })
        .collect();
    out.rows(&["kind", "state", "authority", "expires", "upstream"], table, &json);
    Ok(())
}

struct Row {
    kind: &'static str,
    state: &'static str,
    id: String,
    expires_at: i64,
    upstream: String,
}

impl Row {
    fn new(kind: Kind, state: &'static str, authority: Option<api::AuthorityState>) -> Result<Self, Failure> {
        let authority =
            authority.ok_or_else(|| Failure::Malformed("no authority in the answer".to_owned()))?;
        let kind = match kind {
            Kind::X509 => "x509",
            Kind::Jwt => "jwt",
            Kind::Wit => "wit",
        };
        let upstream = authority.upstream_authority_subject_key_id;
        Ok(Self { kind, state, id: authority.authority_id, expires_at: authority.expires_at, upstream })
    }

    fn upstream(state: &'static str, id: String) -> Self {
        Self { kind: "x509", state, id: "-".to_owned(), expires_at: 0, upstream: id }
    }
}

fn only_x509(kind: Kind) -> Result<(), Failure> {
    if kind == Kind::X509 {
        Ok(())
    } else {
        Err(Failure::Input("only X.509 authorities have an upstream".to_owned()))
    }
}

/// Calls the method of the kind's own message types: the three kinds differ in their names alone.
macro_rules! by_kind {
    ($client:expr, $kind:expr, $what:literal,
     $x509:ident($x509_request:expr), $jwt:ident($jwt_request:expr), $wit:ident($wit_request:expr), $field:ident) => {
        match $kind {
            Kind::X509 => $client.$x509($x509_request).await.map(|answer| answer.into_inner().$field),
            Kind::Jwt => $client.$jwt($jwt_request).await.map(|answer| answer.into_inner().$field),
            Kind::Wit => $client.$wit($wit_request).await.map(|answer| answer.into_inner().$field),
        }
        .map_err(Failure::refused($what))
    };
}

async fn show(client: &mut Client, kind: Kind) -> Result<Vec<Row>, Failure> {
    let what = "cannot show the authorities";
    let states = match kind {
        Kind::X509 => {
            let request = api::GetX509AuthorityStateRequest {};
            let answer =
                client.get_x509_authority_state(request).await.map_err(Failure::refused(what))?.into_inner();
            [answer.active, answer.prepared, answer.old]
        }
        Kind::Jwt => {
            let request = api::GetJwtAuthorityStateRequest {};
            let answer =
                client.get_jwt_authority_state(request).await.map_err(Failure::refused(what))?.into_inner();
            [answer.active, answer.prepared, answer.old]
        }
        Kind::Wit => {
            let request = api::GetWitAuthorityStateRequest {};
            let answer =
                client.get_wit_authority_state(request).await.map_err(Failure::refused(what))?.into_inner();
            [answer.active, answer.prepared, answer.old]
        }
    };
    ["active", "prepared", "old"]
        .into_iter()
        .zip(states)
        .filter(|(_, authority)| authority.is_some())
        .map(|(state, authority)| Row::new(kind, state, authority))
        .collect()
}

async fn prepare(client: &mut Client, kind: Kind) -> Result<Option<api::AuthorityState>, Failure> {
    by_kind!(
        client,
        kind,
        "cannot prepare an authority",
        prepare_x509_authority(api::PrepareX509AuthorityRequest {}),
        prepare_jwt_authority(api::PrepareJwtAuthorityRequest {}),
        prepare_wit_authority(api::PrepareWitAuthorityRequest {}),
        prepared_authority
    )
}

async fn activate(
    client: &mut Client,
    kind: Kind,
    authority_id: String,
) -> Result<Option<api::AuthorityState>, Failure> {
    by_kind!(
        client,
        kind,
        "cannot activate the authority",
        activate_x509_authority(api::ActivateX509AuthorityRequest { authority_id }),
        activate_jwt_authority(api::ActivateJwtAuthorityRequest { authority_id }),
        activate_wit_authority(api::ActivateWitAuthorityRequest { authority_id }),
        activated_authority
    )
}

async fn taint(
    client: &mut Client,
    kind: Kind,
    authority_id: String,
) -> Result<Option<api::AuthorityState>, Failure> {
    by_kind!(
        client,
        kind,
        "cannot taint the authority",
        taint_x509_authority(api::TaintX509AuthorityRequest { authority_id }),
        taint_jwt_authority(api::TaintJwtAuthorityRequest { authority_id }),
        taint_wit_authority(api::TaintWitAuthorityRequest { authority_id }),
        tainted_authority
    )
}

async fn revoke(
    client: &mut Client,
    kind: Kind,
    authority_id: String,
) -> Result<Option<api::AuthorityState>, Failure> {
    by_kind!(
        client,
        kind,
        "cannot revoke the authority",
        revoke_x509_authority(api::RevokeX509AuthorityRequest { authority_id }),
        revoke_jwt_authority(api::RevokeJwtAuthorityRequest { authority_id }),
        revoke_wit_authority(api::RevokeWitAuthorityRequest { authority_id }),
        revoked_authority
    )
}
