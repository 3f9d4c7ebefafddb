//! `spire.api.server.trustdomain.v1`: relationships with other trust domains.
//!
//! The bundle that a relationship encloses becomes the bundle of its trust domain, in the same write. What is written here
//! the poller sees by itself.

use std::sync::Arc;

use bonafide_identity::{Bundle, SpiffeId, TrustDomain};
use bonafide_proto::convert;
use bonafide_proto::spire::server::trustdomain::v1 as pb;
use bonafide_proto::spire::types;
use bonafide_proto::spire::types::federation_relationship::BundleEndpointProfile as Profile;
use tonic::{Code, Request, Response, Status};

use crate::api::bundle::v1::with_checks;
use crate::api::page::Page;
use crate::api::{Call, Outcome, batch, store_failure};
use crate::federation::{EndpointUrl, Federation, RefreshError};
use crate::store::{Bundles as _, EndpointProfile, FederationRelationship, Relationships as _, Store};

/// The service.
pub struct Service {
    store: Store,
    trust_domain: TrustDomain,
    federation: Federation,
}

/// A relationship and the bundle that belongs to it.
type WithBundle = (Arc<FederationRelationship>, Option<Arc<Bundle>>);

impl Service {
    /// The service over `store`, for the server of `trust_domain`.
    pub fn new(store: Store, trust_domain: TrustDomain, federation: Federation) -> Self {
        Self { store, trust_domain, federation }
    }

    fn stored_bundle(&self, relationship: &FederationRelationship) -> Option<Arc<Bundle>> {
        self.store.state().bundle(&relationship.trust_domain)
    }
}

#[tonic::async_trait]
impl pb::trust_domain_server::TrustDomain for Service {
    async fn list_federation_relationships(
        &self,
        request: Request<pb::ListFederationRelationshipsRequest>,
    ) -> Result<Response<pb::ListFederationRelationshipsResponse>, Status> {
        let request = request.into_inner();
        const FAILED: &str = "failed to list federation relationships";
        let page = Page::parse(request.page_size, &request.page_token, FAILED)?;
        let rows = self.store.state().relationships_page(page.after, page.limit);
        let next_page_token = page.next_token(&rows);
        let federation_relationships = rows
            .iter()
            .map(|(_, one)| to_wire(one, self.stored_bundle(one).as_deref(), request.output_mask.as_ref()))
            .collect();
        Ok(Response::new(pb::ListFederationRelationshipsResponse {
            federation_relationships,
            next_page_token,
        }))
    }

    async fn get_federation_relationship(
        &self,
        request: Request<pb::GetFederationRelationshipRequest>,
    ) -> Result<Response<types::FederationRelationship>, Status> {
        let call = Call::of(&request)?;
        let request = request.into_inner();
        let trust_domain = convert::trust_domain_from_wire(&request.trust_domain, UNPARSED)?;
        call.target(&trust_domain);
        let found = self.store.state().relationship(&trust_domain);
        let found = found.ok_or_else(|| Status::not_found("federation relationship does not exist"))?;
        let bundle = self.stored_bundle(&found);
        Ok(Response::new(to_wire(&found, bundle.as_deref(), request.output_mask.as_ref())))
    }

    async fn batch_create_federation_relationship(
        &self,
        request: Request<pb::BatchCreateFederationRelationshipRequest>,
    ) -> Result<Response<pb::BatchCreateFederationRelationshipResponse>, Status> {
        const FAILED: &str = "failed to create federation relationship";
        let call = Call::of(&request)?;
        let request = request.into_inner();
        let own = self.trust_domain.clone();
        let items =
            request.federation_relationships.iter().map(|wire| new_relationship(wire, &own)).collect();
        let outcomes = batch(&self.store, &call, items, FAILED, |unit, item| {
            let (relationship, bundle) = match item {
                Ok(item) => item,
                Err(status) => return Ok(Err(status)),
            };
            if unit.relationship(&relationship.trust_domain).is_some() {
                // SPIRE hands on what its database says of it, as an internal error.
                let text = format!(
                    "{FAILED}: there is one with trust domain \"{}\" already",
                    relationship.trust_domain
                );
                return Ok(Err(convert::status(Code::Internal, text)));
            }
            let bundle = bundle.map(|bundle| unit.bundle_put(bundle)).transpose()?;
            // What comes back is what was given: of the bundle only the one that was enclosed.
            Ok(Ok((unit.relationship_create(relationship)?, bundle)))
        });
        let results = results(&call, outcomes.await, request.output_mask.as_ref())
            .map(|(status, federation_relationship)| {
                pb::batch_create_federation_relationship_response::Result { status, federation_relationship }
            })
            .collect();
        Ok(Response::new(pb::BatchCreateFederationRelationshipResponse { results }))
    }

    async fn batch_update_federation_relationship(
        &self,
        request: Request<pb::BatchUpdateFederationRelationshipRequest>,
    ) -> Result<Response<pb::BatchUpdateFederationRelationshipResponse>, Status> {
        const FAILED: &str = "failed to update federation relationship";
        let call = Call::of(&request)?;
        let request = request.into_inner();
        let mask = request.input_mask;
        let items = request
            .federation_relationships
            .iter()
            .map(|wire| Fields::read(wire, mask.as_ref()).map_err(|reason| unconverted(&reason)))
            .collect();
        let outcomes = batch(&self.store, &call, items, FAILED, |unit, item| {
            let fields: Fields = match item {
                Ok(fields) => fields,
                Err(status) => return Ok(Err(status)),
            };
            let Some(stored) = unit.relationship(&fields.trust_domain) else {
                let text = format!("{FAILED}: unable to fetch federation relationship: record not found");
                return Ok(Err(convert::status(Code::Internal, text)));
            };
            let mut relationship = FederationRelationship::clone(&stored);
            if let Some(url) = fields.url {
                relationship.bundle_endpoint_url = url.as_str().to_owned();
            }
            if let Some(profile) = fields.profile {
                relationship.profile = profile;
            }
            if let Some(bundle) = fields.bundle {
                unit.bundle_put(bundle)?;
            }
            let relationship = unit.relationship_update(relationship)?;
            let bundle = unit.bundle(&relationship.trust_domain);
            Ok(Ok((relationship, bundle)))
        });
        let results = results(&call, outcomes.await, request.output_mask.as_ref())
            .map(|(status, federation_relationship)| {
                pb::batch_update_federation_relationship_response::Result { status, federation_relationship }
            })
            .collect();
        Ok(Response::new(pb::BatchUpdateFederationRelationshipResponse { results }))
    }

    async fn batch_delete_federation_relationship(
        &self,
        request: Request<pb::BatchDeleteFederationRelationshipRequest>,
    ) -> Result<Response<pb::BatchDeleteFederationRelationshipResponse>, Status> {
        let call = Call::of(&request)?;
        let names = request.into_inner().trust_domains;
        let items: Vec<_> = names.iter().map(|name| deleted(name)).collect();
        const FAILED: &str = "failed to delete federation relationship";
        let outcomes = batch(&self.store, &call, items, FAILED, |unit, item| {
            let trust_domain: TrustDomain = match item {
                Ok(trust_domain) => trust_domain,
                Err(status) => return Ok(Err(status)),
            };
            if unit.relationship(&trust_domain).is_none() {
                return Ok(Err(convert::status(Code::NotFound, "federation relationship not found")));
            }
            unit.relationship_delete(&trust_domain)?;
            Ok(Ok(trust_domain))
        });
        let results = outcomes
            .await
            .into_iter()
            .zip(names)
            .map(|(outcome, name)| {
                // The canonical name wherever there is one, also when the request said `spiffe://…`.
                let canonical = TrustDomain::parse_lenient(&name).map(|found| found.to_string());
                let status = match outcome {
                    Ok(trust_domain) => {
                        call.target(&trust_domain);
                        convert::status_ok()
                    }
                    Err(status) => status,
                };
                let trust_domain = canonical.unwrap_or(name);
                pb::batch_delete_federation_relationship_response::Result {
                    status: Some(status),
                    trust_domain,
                }
            })
            .collect();
        Ok(Response::new(pb::BatchDeleteFederationRelationshipResponse { results }))
    }

    async fn refresh_bundle(
        &self,
        request: Request<pb::RefreshBundleRequest>,
    ) -> Result<Response<()>, Status> {
        let call = Call::of(&request)?;
        let name = request.into_inner().trust_domain;
        let trust_domain = convert::trust_domain_from_wire(&name, UNPARSED)?;
        call.target(&trust_domain);
        match self.federation.refresh(&trust_domain).await {
            Ok(changed) => {
                call.note("bundle", if changed { "changed" } else { "unchanged" });
                Ok(Response::new(()))
            }
            Err(error @ RefreshError::NoRelationship(_)) => Err(Status::not_found(error.to_string())),
            Err(RefreshError::Store(error)) => Err(store_failure("failed to refresh bundle", &error)),
            Err(error @ (RefreshError::Fetch(_) | RefreshError::Outdated)) => {
                Err(Status::internal(format!("failed to refresh bundle: {error}")))
            }
        }
    }
}

/// Status and relationship of each result of a batch.
fn results<'a>(
    call: &'a Call,
    outcomes: Vec<Outcome<WithBundle>>,
    mask: Option<&'a types::FederationRelationshipMask>,
) -> impl Iterator<Item = (Option<types::Status>, Option<types::FederationRelationship>)> + 'a {
    outcomes.into_iter().map(move |outcome| match outcome {
        Ok((relationship, bundle)) => {
            call.target(&relationship.trust_domain);
            call.note("bundle_endpoint_url", &relationship.bundle_endpoint_url);
            let wire = to_wire(&relationship, bundle.as_deref(), mask);
            (Some(convert::status_ok()), Some(wire))
        }
        Err(status) => (Some(status), None),
    })
}

fn to_wire(
    relationship: &FederationRelationship,
    bundle: Option<&Bundle>,
    mask: Option<&types::FederationRelationshipMask>,
) -> types::FederationRelationship {
    let mask = mask.unwrap_or(&ALL);
    let profile = match &relationship.profile {
        EndpointProfile::HttpsWeb => Profile::HttpsWeb(types::HttpsWebProfile {}),
        EndpointProfile::HttpsSpiffe { endpoint_spiffe_id } => {
            Profile::HttpsSpiffe(types::HttpsspiffeProfile {
                endpoint_spiffe_id: endpoint_spiffe_id.to_string(),
            })
        }
    };
    types::FederationRelationship {
        trust_domain: relationship.trust_domain.to_string(),
        bundle_endpoint_url: if mask.bundle_endpoint_url {
            relationship.bundle_endpoint_url.clone()
        } else {
            String::new()
        },
        bundle_endpoint_profile: mask.bundle_endpoint_profile.then_some(profile),
        trust_domain_bundle: bundle
            .filter(|_| mask.trust_domain_bundle)
            .map(|bundle| convert::bundle_to_wire(bundle, None)),
    }
}

/// The fields that a client gave, as far as the mask asks for them.
struct Fields {
    trust_domain: TrustDomain,
    url: Option<EndpointUrl>,
    profile: Option<EndpointProfile>,
    bundle: Option<Bundle>,
}

impl Fields {
    fn read(
        wire: &types::FederationRelationship,
        mask: Option<&types::FederationRelationshipMask>,
    ) -> Result<Self, String> {
        let mask = mask.unwrap_or(&ALL);
        let trust_domain = convert::trust_domain_from_wire(&wire.trust_domain, UNPARSED)
            .map_err(|error| error.to_string())?;
        let url = mask.bundle_endpoint_url.then(|| EndpointUrl::parse(&wire.bundle_endpoint_url));
        let url = url.transpose().map_err(|error| error.to_string())?;
        let profile = mask.bundle_endpoint_profile.then(|| profile(wire)).transpose()?;
        let bundle = wire
            .trust_domain_bundle
            .as_ref()
            .filter(|_| mask.trust_domain_bundle)
            .map(|bundle| enclosed(bundle, &trust_domain))
            .transpose()?;
        Ok(Self { trust_domain, url, profile, bundle })
    }
}

fn profile(wire: &types::FederationRelationship) -> Result<EndpointProfile, String> {
    match &wire.bundle_endpoint_profile {
        None => Err("unsupported bundle endpoint profile type: <nil>".to_owned()),
        Some(Profile::HttpsWeb(_)) => Ok(EndpointProfile::HttpsWeb),
        Some(Profile::HttpsSpiffe(profile)) => match SpiffeId::parse(&profile.endpoint_spiffe_id) {
            Ok(endpoint_spiffe_id) => Ok(EndpointProfile::HttpsSpiffe { endpoint_spiffe_id }),
            Err(error) => Err(format!("failed to parse endpoint SPIFFE ID: {error}")),
        },
    }
}

fn enclosed(wire: &types::Bundle, trust_domain: &TrustDomain) -> Result<Bundle, String> {
    let bundle = with_checks(|checks| convert::bundle_from_wire(wire, checks))
        .map_err(|error| format!("failed to parse bundle: {error}"))?;
    if bundle.trust_domain != *trust_domain {
        return Err(format!(
            "trust domain bundle (\"{}\") must match the trust domain of the federation relationship (\"{trust_domain}\")",
            wire.trust_domain
        ));
    }
    Ok(bundle)
}

fn new_relationship(
    wire: &types::FederationRelationship,
    own: &TrustDomain,
) -> Outcome<(FederationRelationship, Option<Bundle>)> {
    let fields = Fields::read(wire, None).map_err(|reason| unconverted(&reason))?;
    if fields.trust_domain == *own {
        let text = "unable to create federation relationship for server trust domain";
        return Err(convert::status(Code::InvalidArgument, text));
    }
    let Fields { trust_domain, url: Some(url), profile: Some(profile), bundle } = fields else {
        return Err(unconverted("a field is missing"));
    };
    let bundle_endpoint_url = url.as_str().to_owned();
    Ok((FederationRelationship { trust_domain, bundle_endpoint_url, profile }, bundle))
}

fn deleted(name: &str) -> Outcome<TrustDomain> {
    if name.is_empty() {
        return Err(convert::status(Code::InvalidArgument, "missing trust domain"));
    }
    convert::trust_domain_from_wire(name, UNPARSED)
        .map_err(|error| convert::status(Code::InvalidArgument, error.to_string()))
}

fn unconverted(reason: &str) -> types::Status {
    convert::status(Code::InvalidArgument, format!("failed to convert federation relationship: {reason}"))
}

const UNPARSED: &str = "failed to parse trust domain";

const ALL: types::FederationRelationshipMask = types::FederationRelationshipMask {
    bundle_endpoint_url: true,
    bundle_endpoint_profile: true,
    trust_domain_bundle: true,
};
