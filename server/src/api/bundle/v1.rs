//! `spire.api.server.bundle.v1`: the own bundle, and those of federated trust domains.

use std::sync::Arc;

use bonafide_identity::{AuthorityKind, Bundle as TrustBundle, Entry, JwtAuthority, TrustDomain};
use bonafide_pki::{PublicKey, TrustRoots};
use bonafide_proto::convert::{self, AuthorityChecks};
use bonafide_proto::spire::server::bundle::v1 as pb;
use bonafide_proto::spire::server::bundle::v1::batch_delete_federated_bundle_request::Mode;
use bonafide_proto::spire::types;
use tonic::{Code, Request, Response, Status};

use crate::api::page::Page;
use crate::api::{Call, Outcome, batch, store_failure};
use crate::authority::{Authorities, AuthorityError};
use crate::store::{Bundles, Entries, Store, StoreError, Unit};

/// The service.
pub struct Service {
    store: Store,
    authorities: Arc<Authorities>,
    trust_domain: TrustDomain,
    jwt_enabled: bool,
    wit_enabled: bool,
}

impl Service {
    /// The service over `store`; keys of servers below are published through `authorities`, upward as well. Publishing
    /// keys of a kind that is switched off is refused.
    pub fn new(
        store: Store,
        authorities: Arc<Authorities>,
        trust_domain: TrustDomain,
        jwt_enabled: bool,
        wit_enabled: bool,
    ) -> Self {
        Self { store, authorities, trust_domain, jwt_enabled, wit_enabled }
    }

    fn own(&self) -> Result<Arc<TrustBundle>, Status> {
        self.store.state().bundle(&self.trust_domain).ok_or_else(|| Status::not_found(NOT_FOUND))
    }

    /// Adds authorities to the own bundle.
    async fn append(&self, more: TrustBundle, failure: &str) -> Result<Arc<TrustBundle>, Status> {
        let written = self.store.write(move |unit| {
            let mut bundle = match unit.bundle(&more.trust_domain) {
                Some(bundle) => TrustBundle::clone(&bundle),
                None => TrustBundle::empty(more.trust_domain.clone()),
            };
            if bundle.append(more.x509_authorities, more.jwt_authorities, more.wit_authorities) {
                return unit.bundle_put(bundle);
            }
            Ok(Arc::new(bundle))
        });
        written.await.map_err(|error| store_failure(failure, &error))
    }

    /// Publishes the key of a server below.
    async fn publish(
        &self,
        call: &Call,
        kind: AuthorityKind,
        key: JwtAuthority,
    ) -> Result<Vec<JwtAuthority>, Status> {
        let what = match kind {
            AuthorityKind::Wit => "failed to publish WIT authority",
            _ => "failed to publish JWT authority",
        };
        call.target(&key.key_id);
        let published = self.authorities.publish_key(kind, key).await;
        published.map_err(|error| match error {
            AuthorityError::Store(error) => store_failure(what, &error),
            // It may be published again when the upstream is back.
            AuthorityError::Upstream(error) => Status::unavailable(format!("{what}: {error}")),
            error => Status::internal(format!("{what}: {error}")),
        })
    }

    /// The trust domain of a federated bundle, or why it cannot be one.
    fn foreign(&self, name: &str, own: &'static str) -> Result<TrustDomain, types::Status> {
        let trust_domain =
            convert::trust_domain_from_wire(name, INVALID_TRUST_DOMAIN).map_err(|error| status_of(&error))?;
        if trust_domain == self.trust_domain {
            return Err(convert::status(Code::InvalidArgument, own));
        }
        Ok(trust_domain)
    }

    /// A bundle to store for another trust domain.
    fn foreign_bundle(&self, wire: &types::Bundle, own: &'static str) -> Outcome<TrustBundle> {
        self.foreign(&wire.trust_domain, own)?;
        with_checks(|checks| convert::bundle_from_wire(wire, checks))
            .map_err(|error| error.to_status("failed to convert bundle"))
    }
}

#[tonic::async_trait]
impl pb::bundle_server::Bundle for Service {
    async fn count_bundles(
        &self,
        _: Request<pb::CountBundlesRequest>,
    ) -> Result<Response<pb::CountBundlesResponse>, Status> {
        let count = i32::try_from(self.store.state().bundles().len()).unwrap_or(i32::MAX);
        Ok(Response::new(pb::CountBundlesResponse { count }))
    }

    async fn get_bundle(
        &self,
        request: Request<pb::GetBundleRequest>,
    ) -> Result<Response<types::Bundle>, Status> {
        let mask = request.into_inner().output_mask;
        self.store.current().map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(Response::new(convert::bundle_to_wire(&*self.own()?, mask.as_ref())))
    }

    async fn append_bundle(
        &self,
        request: Request<pb::AppendBundleRequest>,
    ) -> Result<Response<types::Bundle>, Status> {
        let request = request.into_inner();
        if request.x509_authorities.is_empty()
            && request.jwt_authorities.is_empty()
            && request.wit_authorities.is_empty()
        {
            return Err(Status::invalid_argument("no authorities to append"));
        }
        let mut more = TrustBundle::empty(self.trust_domain.clone());
        with_checks(|checks| {
            const JWT: &str = "failed to convert JWT authority";
            const X509: &str = "failed to convert X.509 authority";
            const WIT: &str = "failed to convert WIT authority";
            more.jwt_authorities = convert::jwt_authorities_from_wire(&request.jwt_authorities, checks, JWT)?;
            more.x509_authorities =
                convert::x509_authorities_from_wire(&request.x509_authorities, checks, X509)?;
            more.wit_authorities = convert::wit_authorities_from_wire(&request.wit_authorities, checks, WIT)?;
            Ok::<_, convert::ConvertError>(())
        })?;
        let bundle = self.append(more, "failed to append bundle").await?;
        Ok(Response::new(convert::bundle_to_wire(&bundle, request.output_mask.as_ref())))
    }

    async fn publish_jwt_authority(
        &self,
        request: Request<pb::PublishJwtAuthorityRequest>,
    ) -> Result<Response<pb::PublishJwtAuthorityResponse>, Status> {
        if !self.jwt_enabled {
            return Err(Status::unimplemented("JWT functionality is disabled"));
        }
        let call = Call::of(&request)?;
        let key = request
            .into_inner()
            .jwt_authority
            .ok_or_else(|| Status::invalid_argument("missing JWT authority"))?;
        let key = with_checks(|checks| {
            convert::jwt_authorities_from_wire(&[key], checks, "invalid JWT authority")
        })?;
        let mut keys = Vec::new();
        for key in key {
            keys = self.publish(&call, AuthorityKind::Jwt, key).await?;
        }
        let jwt_authorities = convert::jwt_authorities_to_wire(&keys);
        Ok(Response::new(pb::PublishJwtAuthorityResponse { jwt_authorities }))
    }

    async fn publish_wit_authority(
        &self,
        request: Request<pb::PublishWitAuthorityRequest>,
    ) -> Result<Response<pb::PublishWitAuthorityResponse>, Status> {
        if !self.wit_enabled {
            return Err(Status::unimplemented("WIT functionality is disabled"));
        }
        let call = Call::of(&request)?;
        let key = request
            .into_inner()
            .wit_authority
            .ok_or_else(|| Status::invalid_argument("missing WIT authority"))?;
        let key = with_checks(|checks| {
            convert::wit_authorities_from_wire(&[key], checks, "invalid WIT authority")
        })?;
        let mut keys = Vec::new();
        for key in key {
            keys = self.publish(&call, AuthorityKind::Wit, key).await?;
        }
        let wit_authorities = convert::wit_authorities_to_wire(&keys);
        Ok(Response::new(pb::PublishWitAuthorityResponse { wit_authorities }))
    }

    async fn list_federated_bundles(
        &self,
        request: Request<pb::ListFederatedBundlesRequest>,
    ) -> Result<Response<pb::ListFederatedBundlesResponse>, Status> {
        let request = request.into_inner();
        let page = Page::parse(request.page_size, &request.page_token, "failed to list bundles")?;
        let rows = self.store.state().bundles_page(page.after, page.limit);
        let next_page_token = page.next_token(&rows);
        // The own bundle takes a place in its page all the same, so that a token means one position for every caller.
        let bundles = rows
            .iter()
            .filter(|(_, bundle)| bundle.trust_domain != self.trust_domain)
            .map(|(_, bundle)| convert::bundle_to_wire(bundle, request.output_mask.as_ref()))
            .collect();
        Ok(Response::new(pb::ListFederatedBundlesResponse { bundles, next_page_token }))
    }

    async fn get_federated_bundle(
        &self,
        request: Request<pb::GetFederatedBundleRequest>,
    ) -> Result<Response<types::Bundle>, Status> {
        let request = request.into_inner();
        let trust_domain = self
            .foreign(
                &request.trust_domain,
                "getting a federated bundle for the server's own trust domain is not allowed",
            )
            .map_err(|status| Status::new(Code::from_i32(status.code), status.message))?;
        let bundle = self.store.state().bundle(&trust_domain).ok_or_else(|| Status::not_found(NOT_FOUND))?;
        Ok(Response::new(convert::bundle_to_wire(&bundle, request.output_mask.as_ref())))
    }

    async fn batch_create_federated_bundle(
        &self,
        request: Request<pb::BatchCreateFederatedBundleRequest>,
    ) -> Result<Response<pb::BatchCreateFederatedBundleResponse>, Status> {
        const OWN: &str = "creating a federated bundle for the server's own trust domain is not allowed";
        let call = Call::of(&request)?;
        let request = request.into_inner();
        let items: Vec<_> = request.bundle.iter().map(|wire| self.foreign_bundle(wire, OWN)).collect();
        let outcomes = batch(&self.store, &call, items, "unable to create bundle", |unit, item| {
            let bundle = match item {
                Ok(bundle) => bundle,
                Err(status) => return Ok(Err(status)),
            };
            if unit.bundle(&bundle.trust_domain).is_some() {
                return Ok(Err(convert::status(Code::AlreadyExists, "bundle already exists")));
            }
            unit.bundle_put(bundle).map(Ok)
        });
        let results = self
            .wire(&call, outcomes.await, request.output_mask.as_ref())
            .map(|(status, bundle)| pb::batch_create_federated_bundle_response::Result { status, bundle })
            .collect();
        Ok(Response::new(pb::BatchCreateFederatedBundleResponse { results }))
    }

    async fn batch_update_federated_bundle(
        &self,
        request: Request<pb::BatchUpdateFederatedBundleRequest>,
    ) -> Result<Response<pb::BatchUpdateFederatedBundleResponse>, Status> {
        const OWN: &str = "updating a federated bundle for the server's own trust domain is not allowed";
        let call = Call::of(&request)?;
        let request = request.into_inner();
        let mask = request.input_mask;
        let items: Vec<_> = request
            .bundle
            .into_iter()
            .map(|wire| Ok((self.foreign(&wire.trust_domain, OWN)?, wire)))
            .collect();
        let outcomes = batch(&self.store, &call, items, "failed to update bundle", move |unit, item| {
            let (trust_domain, wire) = match item {
                Ok(item) => item,
                Err(status) => return Ok(Err(status)),
            };
            let stored = unit.bundle(&trust_domain);
            let mut bundle =
                stored.as_deref().cloned().unwrap_or_else(|| TrustBundle::empty(trust_domain.clone()));
            // What the message holds is judged before the question whether there is anything to change.
            let applied =
                with_checks(|checks| convert::apply_bundle_update(&mut bundle, &wire, mask.as_ref(), checks));
            if let Err(error) = applied {
                return Ok(Err(error.to_status("failed to convert bundle")));
            }
            if stored.is_none() {
                return Ok(Err(convert::status(Code::NotFound, NOT_FOUND)));
            }
            unit.bundle_put(bundle).map(Ok)
        });
        let results = self
            .wire(&call, outcomes.await, request.output_mask.as_ref())
            .map(|(status, bundle)| pb::batch_update_federated_bundle_response::Result { status, bundle })
            .collect();
        Ok(Response::new(pb::BatchUpdateFederatedBundleResponse { results }))
    }

    async fn batch_set_federated_bundle(
        &self,
        request: Request<pb::BatchSetFederatedBundleRequest>,
    ) -> Result<Response<pb::BatchSetFederatedBundleResponse>, Status> {
        const OWN: &str = "setting a federated bundle for the server's own trust domain is not allowed";
        let call = Call::of(&request)?;
        let request = request.into_inner();
        let items: Vec<_> = request.bundle.iter().map(|wire| self.foreign_bundle(wire, OWN)).collect();
        let outcomes = batch(&self.store, &call, items, "failed to set bundle", |unit, item| match item {
            Ok(bundle) => unit.bundle_put(bundle).map(Ok),
            Err(status) => Ok(Err(status)),
        });
        let results = self
            .wire(&call, outcomes.await, request.output_mask.as_ref())
            .map(|(status, bundle)| pb::batch_set_federated_bundle_response::Result { status, bundle })
            .collect();
        Ok(Response::new(pb::BatchSetFederatedBundleResponse { results }))
    }

    async fn batch_delete_federated_bundle(
        &self,
        request: Request<pb::BatchDeleteFederatedBundleRequest>,
    ) -> Result<Response<pb::BatchDeleteFederatedBundleResponse>, Status> {
        const OWN: &str = "removing the bundle for the server trust domain is not allowed";
        let call = Call::of(&request)?;
        let request = request.into_inner();
        let mode = Mode::try_from(request.mode)
            .map_err(|_| format!("failed to parse deletion mode: unhandled delete mode \"{}\"", request.mode))
            .map_err(Status::invalid_argument)?;
        let items: Vec<_> = request.trust_domains.iter().map(|name| self.foreign(name, OWN)).collect();
        let outcomes = batch(
            &self.store,
            &call,
            items,
            "failed to delete federated bundle",
            move |unit, item| match item {
                Ok(trust_domain) => delete(unit, &trust_domain, mode),
                Err(status) => Ok(Err(status)),
            },
        );
        let results = outcomes
            .await
            .into_iter()
            .zip(request.trust_domains)
            .map(|(outcome, name)| {
                let status = match outcome {
                    Ok(trust_domain) => {
                        call.target(&trust_domain);
                        convert::status_ok()
                    }
                    Err(status) => status,
                };
                // The name as it was asked with, also when that was `spiffe://…`: what SPIRE's command line shows.
                pb::batch_delete_federated_bundle_response::Result {
                    status: Some(status),
                    trust_domain: name,
                }
            })
            .collect();
        Ok(Response::new(pb::BatchDeleteFederatedBundleResponse { results }))
    }
}

impl Service {
    /// Status and bundle of each result of a batch.
    fn wire<'a>(
        &'a self,
        call: &'a Call,
        outcomes: Vec<Outcome<Arc<TrustBundle>>>,
        mask: Option<&'a types::BundleMask>,
    ) -> impl Iterator<Item = (Option<types::Status>, Option<types::Bundle>)> + 'a {
        outcomes.into_iter().map(move |outcome| match outcome {
            Ok(bundle) => {
                call.target(&bundle.trust_domain);
                (Some(convert::status_ok()), Some(convert::bundle_to_wire(&bundle, mask)))
            }
            Err(status) => (Some(status), None),
        })
    }
}

fn delete(
    unit: &mut Unit<'_>,
    trust_domain: &TrustDomain,
    mode: Mode,
) -> Result<Outcome<TrustDomain>, StoreError> {
    if unit.bundle(trust_domain).is_none() {
        return Ok(Err(convert::status(Code::NotFound, NOT_FOUND)));
    }
    let federating = unit.entries_where(&mut |entry| entry.federates_with.contains(trust_domain));
    match mode {
        Mode::Restrict if !federating.is_empty() => {
            return Ok(Err(convert::status(
                Code::FailedPrecondition,
                format!(
                    "failed to delete federated bundle: cannot delete bundle; federated with {} registration entries",
                    federating.len()
                ),
            )));
        }
        Mode::Restrict => {}
        Mode::Delete => {
            for entry in federating {
                unit.entry_delete(&entry.id)?;
            }
        }
        Mode::Dissociate => {
            for entry in federating {
                let federates_with =
                    entry.federates_with.iter().filter(|other| *other != trust_domain).cloned().collect();
                let revision = entry.revision + 1;
                unit.entry_update(Entry { federates_with, revision, ..Entry::clone(&entry) })?;
            }
        }
    }
    unit.bundle_delete(trust_domain)?;
    Ok(Ok(trust_domain.clone()))
}

pub(in crate::api) fn with_checks<T>(read: impl FnOnce(&AuthorityChecks<'_>) -> T) -> T {
    read(&AuthorityChecks {
        // One that verification cannot use would cost the whole trust domain its trust: it is refused here, where somebody
        // reads why.
        x509: &|der| TrustRoots::from_der([der]).map(drop).map_err(|error| error.to_string()),
        public_key: &|spki| PublicKey::from_spki_der(spki).map(drop).map_err(|error| error.to_string()),
    })
}

fn status_of(error: &convert::ConvertError) -> types::Status {
    convert::status(Code::InvalidArgument, error.to_string())
}

const NOT_FOUND: &str = "bundle not found";
const INVALID_TRUST_DOMAIN: &str = "trust domain argument is not valid";
