//! `bonafide federation`.

use bonafide_identity::TrustDomain;
use bonafide_proto::convert;
use bonafide_proto::spire::server::trustdomain::v1 as api;
use bonafide_proto::spire::server::trustdomain::v1::trust_domain_client::TrustDomainClient;
use bonafide_proto::spire::types;
use bonafide_proto::spire::types::federation_relationship::BundleEndpointProfile as Wire;
use serde_json::{Value, json};
use tonic::transport::Channel;

use super::{PAGE, bundle, item};
use crate::args::{EndpointProfile, FederationCommand, FederationFields};
use crate::connect::Sockets;
use crate::failure::Failure;
use crate::output::Output;

pub(crate) async fn run(command: FederationCommand, to: &Sockets, out: &Output) -> Result<(), Failure> {
    match command {
        FederationCommand::Create { fields } => {
            let wanted = relationship(fields)?;
            let trust_domain = wanted.trust_domain.clone();
            let request = api::BatchCreateFederationRelationshipRequest {
                federation_relationships: vec![wanted],
                output_mask: None,
            };
            let answer = client(to).await?.batch_create_federation_relationship(request).await;
            let answer = answer.map_err(Failure::refused("cannot create the relationship"))?.into_inner();
            let result = answer.results.into_iter().next();
            let (status, made) =
                result.map_or((None, None), |result| (result.status, result.federation_relationship));
            done("create", &trust_domain, status.as_ref(), made, out)
        }
        FederationCommand::Update { fields } => {
            let wanted = relationship(fields)?;
            let trust_domain = wanted.trust_domain.clone();
            let request = api::BatchUpdateFederationRelationshipRequest {
                federation_relationships: vec![wanted],
                input_mask: None,
                output_mask: None,
            };
            let answer = client(to).await?.batch_update_federation_relationship(request).await;
            let answer = answer.map_err(Failure::refused("cannot update the relationship"))?.into_inner();
            let result = answer.results.into_iter().next();
            let (status, made) =
                result.map_or((None, None), |result| (result.status, result.federation_relationship));
            done("update", &trust_domain, status.as_ref(), made, out)
        }
        FederationCommand::List => {
            let all = list(&mut client(to).await?).await?;
            let rows = all.iter().map(row).collect();
            let json: Vec<Value> = all.iter().map(to_json).collect();
            out.rows(&HEADER, rows, &json!({ "relationships": json }));
            Ok(())
        }
        FederationCommand::Show { trust_domain } => {
            let what = format!("cannot show the relationship with {trust_domain}");
            let request = api::GetFederationRelationshipRequest { trust_domain, output_mask: None };
            let found = client(to).await?.get_federation_relationship(request).await;
            show(&found.map_err(Failure::refused(what))?.into_inner(), out);
            Ok(())
        }
        FederationCommand::Delete { trust_domain } => {
            let request =
                api::BatchDeleteFederationRelationshipRequest { trust_domains: vec![trust_domain.clone()] };
            let answer = client(to).await?.batch_delete_federation_relationship(request).await;
            let answer = answer.map_err(Failure::refused("cannot delete the relationship"))?.into_inner();
            let result = answer.results.into_iter().next();
            item(result.and_then(|result| result.status).as_ref()).map_err(|reason| {
                Failure::Input(format!("cannot delete the relationship with {trust_domain}: {reason}"))
            })?;
            let text =
                format!("deleted the relationship with {trust_domain}; its bundle stays until it is deleted");
            out.line(&text, &json!({ "deleted": trust_domain }));
            Ok(())
        }
        FederationCommand::Refresh { trust_domain } => {
            let what = format!("cannot refresh the bundle of {trust_domain}");
            let request = api::RefreshBundleRequest { trust_domain: trust_domain.clone() };
            client(to).await?.refresh_bundle(request).await.map_err(Failure::refused(what))?;
            let text = format!("fetched the bundle of {trust_domain}");
            out.line(&text, &json!({ "refreshed": trust_domain }));
            Ok(())
        }
    }
}

async fn client(to: &Sockets) -> Result<TrustDomainClient<Channel>, Failure> {
    Ok(TrustDomainClient::new(to.server().await?))
}

async fn list(
    client: &mut TrustDomainClient<Channel>,
) -> Result<Vec<types::FederationRelationship>, Failure> {
    let (mut all, mut token) = (Vec::new(), String::new());
    loop {
        let request =
            api::ListFederationRelationshipsRequest { output_mask: None, page_size: PAGE, page_token: token };
        let page = client.list_federation_relationships(request).await;
        let page = page.map_err(Failure::refused("cannot list relationships"))?.into_inner();
        all.extend(page.federation_relationships);
        if page.next_page_token.is_empty() {
            return Ok(all);
        }
        token = page.next_page_token;
    }
}

/// What the flags say, for the wire; the server judges the URL.
fn relationship(fields: FederationFields) -> Result<types::FederationRelationship, Failure> {
    let FederationFields { trust_domain, url, profile, endpoint_spiffe_id, bundle_file, bundle_format } =
        fields;
    let trust_domain = TrustDomain::parse_lenient(&trust_domain)
        .map_err(|error| Failure::Input(format!("{trust_domain:?} is not a trust domain: {error}")))?;
    let profile = match (profile, endpoint_spiffe_id) {
        (EndpointProfile::HttpsSpiffe, id) => {
            let endpoint_spiffe_id = id.unwrap_or_else(|| trust_domain.server_id().to_string());
            Wire::HttpsSpiffe(types::HttpsspiffeProfile { endpoint_spiffe_id })
        }
        (EndpointProfile::HttpsWeb, None) => Wire::HttpsWeb(types::HttpsWebProfile {}),
        (EndpointProfile::HttpsWeb, Some(_)) => {
            return Err(Failure::Input("--endpoint-spiffe-id is for --profile https_spiffe".to_owned()));
        }
    };
    let enclosed =
        bundle_file.map(|file| bundle::read(trust_domain.as_str(), &file, bundle_format)).transpose()?;
    Ok(types::FederationRelationship {
        trust_domain: trust_domain.to_string(),
        bundle_endpoint_url: url,
        bundle_endpoint_profile: Some(profile),
        trust_domain_bundle: enclosed.map(|bundle| convert::bundle_to_wire(&bundle, None)),
    })
}

fn done(
    verb: &str,
    trust_domain: &str,
    status: Option<&types::Status>,
    made: Option<types::FederationRelationship>,
    out: &Output,
) -> Result<(), Failure> {
    item(status).map_err(|reason| {
        Failure::Input(format!("cannot {verb} the relationship with {trust_domain}: {reason}"))
    })?;
    let made = made.ok_or_else(|| Failure::Malformed("the server sent no relationship".to_owned()))?;
    show(&made, out);
    Ok(())
}

fn show(one: &types::FederationRelationship, out: &Output) {
    let fields: Vec<(&str, String)> = HEADER.into_iter().zip(row(one)).collect();
    out.fields(&fields, &to_json(one));
}

const HEADER: [&str; 5] = ["trust domain", "endpoint", "profile", "endpoint id", "bundle"];

fn row(one: &types::FederationRelationship) -> Vec<String> {
    let (profile, id) = profile(one);
    let bundle = match &one.trust_domain_bundle {
        None => "none".to_owned(),
        Some(bundle) => format!("sequence number {}", bundle.sequence_number),
    };
    vec![
        one.trust_domain.clone(),
        one.bundle_endpoint_url.clone(),
        profile.to_owned(),
        id.unwrap_or("-").to_owned(),
        bundle,
    ]
}

fn to_json(one: &types::FederationRelationship) -> Value {
    let (profile, id) = profile(one);
    json!({
        "trust_domain": one.trust_domain,
        "bundle_endpoint_url": one.bundle_endpoint_url,
        "profile": profile,
        "endpoint_spiffe_id": id,
        "bundle_sequence_number": one.trust_domain_bundle.as_ref().map(|bundle| bundle.sequence_number),
    })
}

fn profile(one: &types::FederationRelationship) -> (&'static str, Option<&str>) {
    match &one.bundle_endpoint_profile {
        Some(Wire::HttpsWeb(_)) => ("https_web", None),
        Some(Wire::HttpsSpiffe(profile)) => ("https_spiffe", Some(&profile.endpoint_spiffe_id)),
        None => ("-", None),
    }
}
