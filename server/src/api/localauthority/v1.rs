//! `spire.api.server.localauthority.v1`: rotation of the signing authorities by hand.
//!
//! The five rpcs of each kind are one function each here, with the kind as an argument.

use std::sync::Arc;

use bonafide_identity::{AuthorityKind, AuthorityRefusal, AuthoritySlot, SlotError};
use bonafide_proto::spire::server::localauthority::v1 as pb;
use tonic::{Code, Request, Response, Status};

use crate::api::Call;
use crate::authority::{Authorities, AuthorityError};
use crate::store::StoreError;

/// The service.
pub struct Service {
    authorities: Arc<Authorities>,
}

impl Service {
    /// The service over `authorities`.
    pub fn new(authorities: Arc<Authorities>) -> Self {
        Self { authorities }
    }

    fn require(&self, kind: AuthorityKind) -> Result<(), Status> {
        if self.authorities.enabled(kind) {
            return Ok(());
        }
        Err(status("", kind, &AuthorityError::Disabled(kind)))
    }

    fn state(&self, kind: AuthorityKind) -> Result<States, Status> {
        self.require(kind)?;
        let slots = self.authorities.slots(kind);
        let active = slots.require_active().map_err(|error| status("", kind, &error.into()))?;
        Ok(States {
            active: Some(wire(active)),
            prepared: slots.prepared().map(wire),
            old: slots.old().map(wire),
        })
    }

    async fn prepare(&self, call: &Call, kind: AuthorityKind) -> Result<Option<pb::AuthorityState>, Status> {
        self.require(kind)?;
        let failure = format!("failed to prepare {} authority", name(kind));
        let slot = self.authorities.prepare(kind).await.map_err(|error| status(&failure, kind, &error))?;
        call.target(&slot.authority_id);
        Ok(Some(wire(&slot)))
    }

    async fn activate(
        &self,
        call: &Call,
        kind: AuthorityKind,
        id: &str,
    ) -> Result<Option<pb::AuthorityState>, Status> {
        call.target(id);
        self.require(kind)?;
        let failure = format!("failed to activate {} authority", name(kind));
        let slot =
            self.authorities.activate(kind, id).await.map_err(|error| status(&failure, kind, &error))?;
        Ok(Some(wire(&slot)))
    }

    async fn taint(
        &self,
        call: &Call,
        kind: AuthorityKind,
        id: &str,
    ) -> Result<Option<pb::AuthorityState>, Status> {
        call.target(id);
        self.require(kind)?;
        let failure = format!("failed to taint {} authority", name(kind));
        let end = self.authorities.taint(kind, id).await.map_err(|error| status(&failure, kind, &error))?;
        Ok(Some(pb::AuthorityState {
            authority_id: id.to_owned(),
            expires_at: end.unix_seconds(),
            ..pb::AuthorityState::default()
        }))
    }

    async fn revoke(
        &self,
        call: &Call,
        kind: AuthorityKind,
        id: &str,
    ) -> Result<Option<pb::AuthorityState>, Status> {
        call.target(id);
        self.require(kind)?;
        let failure = format!("failed to revoke {} authority", name(kind));
        self.authorities.revoke(kind, id).await.map_err(|error| status(&failure, kind, &error))?;
        Ok(Some(pb::AuthorityState { authority_id: id.to_owned(), ..pb::AuthorityState::default() }))
    }
}

/// What the three rpcs that show a kind answer.
struct States {
    active: Option<pb::AuthorityState>,
    prepared: Option<pb::AuthorityState>,
    old: Option<pb::AuthorityState>,
}

macro_rules! kinds {
    (upstream { $($upstream:tt)* }
     $($kind:ident:
        $show:ident($show_request:ident, $show_response:ident),
        $prepare:ident($prepare_request:ident, $prepare_response:ident),
        $activate:ident($activate_request:ident, $activate_response:ident),
        $taint:ident($taint_request:ident, $taint_response:ident),
        $revoke:ident($revoke_request:ident, $revoke_response:ident);)*
    ) => {
        #[tonic::async_trait]
        impl pb::local_authority_server::LocalAuthority for Service {
            $(
                async fn $show(
                    &self,
                    _: Request<pb::$show_request>,
                ) -> Result<Response<pb::$show_response>, Status> {
                    let States { active, prepared, old } = self.state(AuthorityKind::$kind)?;
                    Ok(Response::new(pb::$show_response { active, prepared, old }))
                }

                async fn $prepare(
                    &self,
                    request: Request<pb::$prepare_request>,
                ) -> Result<Response<pb::$prepare_response>, Status> {
                    let prepared_authority =
                        self.prepare(&*Call::of(&request)?, AuthorityKind::$kind).await?;
                    Ok(Response::new(pb::$prepare_response { prepared_authority }))
                }

                async fn $activate(
                    &self,
                    request: Request<pb::$activate_request>,
                ) -> Result<Response<pb::$activate_response>, Status> {
                    let call = Call::of(&request)?;
                    let id = request.into_inner().authority_id;
                    let activated_authority = self.activate(&call, AuthorityKind::$kind, &id).await?;
                    Ok(Response::new(pb::$activate_response { activated_authority }))
                }

                async fn $taint(
                    &self,
                    request: Request<pb::$taint_request>,
                ) -> Result<Response<pb::$taint_response>, Status> {
                    let call = Call::of(&request)?;
                    let id = request.into_inner().authority_id;
                    let tainted_authority = self.taint(&call, AuthorityKind::$kind, &id).await?;
                    Ok(Response::new(pb::$taint_response { tainted_authority }))
                }

                async fn $revoke(
                    &self,
                    request: Request<pb::$revoke_request>,
                ) -> Result<Response<pb::$revoke_response>, Status> {
                    let call = Call::of(&request)?;
                    let id = request.into_inner().authority_id;
                    let revoked_authority = self.revoke(&call, AuthorityKind::$kind, &id).await?;
                    Ok(Response::new(pb::$revoke_response { revoked_authority }))
                }
            )*
            $($upstream)*
        }
    };
}

kinds! {
    upstream {
        async fn taint_x509_upstream_authority(
            &self,
            request: Request<pb::TaintX509UpstreamAuthorityRequest>,
        ) -> Result<Response<pb::TaintX509UpstreamAuthorityResponse>, Status> {
            let call = Call::of(&request)?;
            let id = request.into_inner().subject_key_id.to_ascii_lowercase();
            call.target(&id);
            let tainted = self.authorities.taint_upstream(&id).await;
            tainted.map_err(|error| upstream_status("failed to taint upstream authority", &error))?;
            Ok(Response::new(pb::TaintX509UpstreamAuthorityResponse { upstream_authority_subject_key_id: id }))
        }

        async fn revoke_x509_upstream_authority(
            &self,
            request: Request<pb::RevokeX509UpstreamAuthorityRequest>,
        ) -> Result<Response<pb::RevokeX509UpstreamAuthorityResponse>, Status> {
            let call = Call::of(&request)?;
            let id = request.into_inner().subject_key_id.to_ascii_lowercase();
            call.target(&id);
            let revoked = self.authorities.revoke_upstream(&id).await;
            revoked.map_err(|error| upstream_status("failed to revoke upstream authority", &error))?;
            Ok(Response::new(pb::RevokeX509UpstreamAuthorityResponse { upstream_authority_subject_key_id: id }))
        }
    }
    X509:
        get_x509_authority_state(GetX509AuthorityStateRequest, GetX509AuthorityStateResponse),
        prepare_x509_authority(PrepareX509AuthorityRequest, PrepareX509AuthorityResponse),
        activate_x509_authority(ActivateX509AuthorityRequest, ActivateX509AuthorityResponse),
        taint_x509_authority(TaintX509AuthorityRequest, TaintX509AuthorityResponse),
        revoke_x509_authority(RevokeX509AuthorityRequest, RevokeX509AuthorityResponse);
    Jwt:
        get_jwt_authority_state(GetJwtAuthorityStateRequest, GetJwtAuthorityStateResponse),
        prepare_jwt_authority(PrepareJwtAuthorityRequest, PrepareJwtAuthorityResponse),
        activate_jwt_authority(ActivateJwtAuthorityRequest, ActivateJwtAuthorityResponse),
        taint_jwt_authority(TaintJwtAuthorityRequest, TaintJwtAuthorityResponse),
        revoke_jwt_authority(RevokeJwtAuthorityRequest, RevokeJwtAuthorityResponse);
    Wit:
        get_wit_authority_state(GetWitAuthorityStateRequest, GetWitAuthorityStateResponse),
        prepare_wit_authority(PrepareWitAuthorityRequest, PrepareWitAuthorityResponse),
        activate_wit_authority(ActivateWitAuthorityRequest, ActivateWitAuthorityResponse),
        taint_wit_authority(TaintWitAuthorityRequest, TaintWitAuthorityResponse),
        revoke_wit_authority(RevokeWitAuthorityRequest, RevokeWitAuthorityResponse);
}

fn wire(slot: &AuthoritySlot) -> pb::AuthorityState {
    pb::AuthorityState {
        authority_id: slot.authority_id.clone(),
        expires_at: slot.not_after.unix_seconds(),
        upstream_authority_subject_key_id: slot.upstream_authority_id.clone().unwrap_or_default(),
    }
}

fn name(kind: AuthorityKind) -> &'static str {
    match kind {
        AuthorityKind::X509 => "X.509",
        AuthorityKind::Jwt => "JWT",
        AuthorityKind::Wit => "WIT",
    }
}

/// `what` begins the text of what is not the caller's mistake.
fn status(what: &str, kind: AuthorityKind, error: &AuthorityError) -> Status {
    let outer = || format!("{what}: {error}");
    match error {
        AuthorityError::Disabled(_) => {
            Status::unimplemented(format!("{} functionality is disabled", name(kind)))
        }
        AuthorityError::BelowUpstream(_) => Status::failed_precondition(error.to_string()),
        // A key that was never there is the caller's mistake, for kinds that allow keys outside of the slots.
        AuthorityError::Bundle(AuthorityRefusal::NoSuchKey) => {
            Status::invalid_argument(format!("invalid authority ID: {error}"))
        }
        AuthorityError::Slot(slot) => match slot {
            SlotError::Initializing => Status::unavailable(slot.to_string()),
            SlotError::NotPrepared(_) => Status::internal(slot.to_string()),
            SlotError::NoAuthorityId
            | SlotError::UnexpectedAuthorityId
            | SlotError::TaintCurrent
            | SlotError::TaintNotOld(_)
            | SlotError::NotRevocable(_) => Status::invalid_argument(slot.to_string()),
            SlotError::NoUpstream => Status::failed_precondition(slot.to_string()),
            SlotError::AlreadyTainted
            | SlotError::Untainted
            | SlotError::Duplicate(_)
            | SlotError::NoLife
            | SlotError::Contradiction => Status::internal(outer()),
        },
        AuthorityError::Store(StoreError::Full { .. }) => Status::new(Code::Unavailable, outer()),
        _ => Status::internal(outer()),
    }
}

/// The two rpcs about upstream roots say "current" and "old" of the root, not of an authority of this server.
fn upstream_status(what: &str, error: &AuthorityError) -> Status {
    match error {
        AuthorityError::Slot(SlotError::NoAuthorityId) => {
            Status::invalid_argument("no subject key ID provided")
        }
        AuthorityError::Slot(SlotError::TaintCurrent) => {
            Status::invalid_argument("unable to use upstream authority signing current authority")
        }
        AuthorityError::Slot(SlotError::UnexpectedAuthorityId) => {
            Status::invalid_argument("upstream authority didn't sign the old local authority")
        }
        AuthorityError::Slot(SlotError::TaintNotOld(_)) => {
            Status::invalid_argument("only upstream authorities signing an old authority can be used")
        }
        other => status(what, AuthorityKind::X509, other),
    }
}
