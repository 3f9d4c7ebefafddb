//! Rotation by hand: every rpc of each kind, what it refuses and what it leaves behind.

use std::time::Duration;

use bonafide_identity::{AuthorityKind, Bundle};
use bonafide_pki::{inspect, pem};
use bonafide_proto::convert;
use bonafide_proto::spire::server::bundle::v1 as bundle_api;
use bonafide_proto::spire::server::bundle::v1::bundle_client::BundleClient;
use bonafide_proto::spire::server::localauthority::v1 as pb;
use bonafide_proto::spire::server::localauthority::v1::local_authority_client::LocalAuthorityClient;
use bonafide_testkit::{ManualClock, TestAuthority};
use tempfile::TempDir;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::harness::{TestServer, assert_refused, trust_domain};

struct Client {
    inner: LocalAuthorityClient<Channel>,
    kind: AuthorityKind,
}

type Answer = Result<Option<pb::AuthorityState>, Status>;

/// Calls the rpc of the client's kind.
macro_rules! of_kind {
    ($client:expr, $field:ident, $($request:tt)*) => { of_kind!(@ $client, $field, $($request)*) };
    (@ $client:expr, $field:ident,
        ($x509:ident, $x509_request:expr), ($jwt:ident, $jwt_request:expr), ($wit:ident, $wit_request:expr)) => {
        match $client.kind {
            AuthorityKind::X509 => $client.inner.$x509($x509_request).await.map(|r| r.into_inner().$field),
            AuthorityKind::Jwt => $client.inner.$jwt($jwt_request).await.map(|r| r.into_inner().$field),
            AuthorityKind::Wit => $client.inner.$wit($wit_request).await.map(|r| r.into_inner().$field),
        }
    };
}

impl Client {
    async fn new(server: &TestServer, kind: AuthorityKind) -> Self {
        Self { inner: LocalAuthorityClient::new(server.local().await), kind }
    }

    async fn active(&mut self) -> Answer {
        of_kind!(
            self,
            active,
            (get_x509_authority_state, pb::GetX509AuthorityStateRequest {}),
            (get_jwt_authority_state, pb::GetJwtAuthorityStateRequest {}),
            (get_wit_authority_state, pb::GetWitAuthorityStateRequest {})
        )
    }

    async fn prepared(&mut self) -> Answer {
        of_kind!(
            self,
            prepared,
            (get_x509_authority_state, pb::GetX509AuthorityStateRequest {}),
            (get_jwt_authority_state, pb::GetJwtAuthorityStateRequest {}),
            (get_wit_authority_state, pb::GetWitAuthorityStateRequest {})
        )
    }

    async fn old(&mut self) -> Answer {
        of_kind!(
            self,
            old,
            (get_x509_authority_state, pb::GetX509AuthorityStateRequest {}),
            (get_jwt_authority_state, pb::GetJwtAuthorityStateRequest {}),
            (get_wit_authority_state, pb::GetWitAuthorityStateRequest {})
        )
    }

    async fn prepare(&mut self) -> Answer {
        of_kind!(
            self,
            prepared_authority,
            (prepare_x509_authority, pb::PrepareX509AuthorityRequest {}),
            (prepare_jwt_authority, pb::PrepareJwtAuthorityRequest {}),
            (prepare_wit_authority, pb::PrepareWitAuthorityRequest {})
        )
    }

    async fn activate(&mut self, id: &str) -> Answer {
        let authority_id = id.to_owned();
        of_kind!(
            self,
            activated_authority,
            (activate_x509_authority, pb::ActivateX509AuthorityRequest { authority_id }),
            (activate_jwt_authority, pb::ActivateJwtAuthorityRequest { authority_id }),
            (activate_wit_authority, pb::ActivateWitAuthorityRequest { authority_id })
        )
    }

    async fn taint(&mut self, id: &str) -> Answer {
        let authority_id = id.to_owned();
        of_kind!(
            self,
            tainted_authority,
            (taint_x509_authority, pb::TaintX509AuthorityRequest { authority_id }),
            (taint_jwt_authority, pb::TaintJwtAuthorityRequest { authority_id }),
            (taint_wit_authority, pb::TaintWitAuthorityRequest { authority_id })
        )
    }

    async fn revoke(&mut self, id: &str) -> Answer {
        let authority_id = id.to_owned();
        of_kind!(
            self,
            revoked_authority,
            (revoke_x509_authority, pb::RevokeX509AuthorityRequest { authority_id }),
            (revoke_jwt_authority, pb::RevokeJwtAuthorityRequest { authority_id }),
            (revoke_wit_authority, pb::RevokeWitAuthorityRequest { authority_id })
        )
    }
}

fn bundle(server: &TestServer) -> Bundle {
    Bundle::clone(&server.server.context().state.bundle(&trust_domain()).unwrap())
}

/// IDs in the bundle, each with its taint.
fn published(server: &TestServer, kind: AuthorityKind) -> Vec<(String, bool)> {
    let bundle = bundle(server);
    match kind {
        AuthorityKind::X509 => bundle
            .x509_authorities
            .iter()
            .map(|root| (inspect(&root.certificate).unwrap().ski.unwrap(), root.tainted))
            .collect(),
        AuthorityKind::Jwt => {
            bundle.jwt_authorities.into_iter().map(|key| (key.key_id, key.tainted)).collect()
        }
        AuthorityKind::Wit => {
            bundle.wit_authorities.into_iter().map(|key| (key.key_id, key.tainted)).collect()
        }
    }
}

fn name(kind: AuthorityKind) -> &'static str {
    match kind {
        AuthorityKind::X509 => "X.509",
        AuthorityKind::Jwt => "JWT",
        AuthorityKind::Wit => "WIT",
    }
}

#[tokio::test]
async fn the_whole_way_of_an_authority() {
    for kind in AuthorityKind::ALL {
        let server = TestServer::start().await;
        let mut client = Client::new(&server, kind).await;
        let invalid = Code::InvalidArgument;

        // One active authority and nothing else.
        let first = client.active().await.unwrap().unwrap();
        assert_eq!(published(&server, kind), [(first.authority_id.clone(), false)]);
        assert_eq!((client.prepared().await.unwrap(), client.old().await.unwrap()), (None, None));
        let end = server.clock.now().saturating_add(Duration::from_secs(24 * 3600));
        assert_eq!(first.expires_at, end.unix_seconds());
        assert_eq!(first.upstream_authority_subject_key_id, "");
        assert_refused(client.activate("").await, invalid, "no authority ID provided");
        assert_refused(client.activate("x").await, invalid, "unexpected authority ID");
        assert_refused(client.activate(&first.authority_id).await, invalid, "unexpected authority ID");
        assert_refused(client.taint("").await, invalid, "no authority ID provided");
        assert_refused(client.taint("x").await, invalid, "unexpected authority ID");
        let text = "unable to taint current local authority";
        assert_refused(client.taint(&first.authority_id).await, invalid, text);
        assert_refused(client.revoke("").await, invalid, "invalid authority ID: no authority ID provided");
        let text = "invalid authority ID: unable to use current authority";
        assert_refused(client.revoke(&first.authority_id).await, invalid, text);
        let text = match kind {
            AuthorityKind::X509 => "invalid authority ID: only Old local authority can be revoked",
            AuthorityKind::Jwt | AuthorityKind::Wit => {
                "invalid authority ID: no JWT authority found with provided authority ID"
            }
        };
        assert_refused(client.revoke("x").await, invalid, text);

        // Prepared: published, and still not signing.
        server.clock.advance(Duration::from_secs(60));
        let sequence = bundle(&server).sequence_number;
        let second = client.prepare().await.unwrap().unwrap();
        assert_eq!(client.prepared().await.unwrap(), Some(second.clone()));
        assert_eq!(client.active().await.unwrap(), Some(first.clone()));
        assert_eq!(client.old().await.unwrap(), None);
        assert_eq!(bundle(&server).sequence_number, sequence + 1);
        let ids = [(first.authority_id.clone(), false), (second.authority_id.clone(), false)];
        assert_eq!(published(&server, kind), ids);
        let text = "only Old local authorities can be tainted: unsupported local authority status: PREPARED";
        assert_refused(client.taint(&second.authority_id).await, invalid, text);
        let text = "invalid authority ID: only Old local authority can be revoked";
        assert_refused(client.revoke(&second.authority_id).await, invalid, text);

        // Active; the former one is old.
        assert_eq!(client.activate(&second.authority_id).await.unwrap(), Some(second.clone()));
        assert_eq!(client.active().await.unwrap(), Some(second.clone()));
        assert_eq!(client.old().await.unwrap(), Some(first.clone()));
        assert_eq!(client.prepared().await.unwrap(), None);
        let text = "only Prepared authorities can be activated: unsupported local authority status: OLD";
        assert_refused(client.activate(&first.authority_id).await, Code::Internal, text);
        let what = if kind == AuthorityKind::X509 { "root CA" } else { "key" };
        let text = format!(
            "failed to revoke {} authority: it is not possible to revoke an untainted {what}",
            name(kind)
        );
        assert_refused(client.revoke(&first.authority_id).await, Code::Internal, &text);

        // Tainted, then gone.
        assert_eq!(client.taint(&first.authority_id).await.unwrap(), Some(first.clone()));
        assert_eq!(published(&server, kind)[0], (first.authority_id.clone(), true));
        let text = format!("failed to taint {} authority: authority is already tainted", name(kind));
        assert_refused(client.taint(&first.authority_id).await, Code::Internal, &text);
        let revoked = client.revoke(&first.authority_id).await.unwrap().unwrap();
        assert_eq!(revoked.authority_id, first.authority_id);
        assert_eq!(published(&server, kind), [(second.authority_id.clone(), false)]);
        assert_eq!(client.old().await.unwrap(), None);
        assert_eq!(bundle(&server).sequence_number, sequence + 3);

        let audited = server.audit().await;
        let line = audited.iter().rev().find(|line| line.to_string().contains("Revoke")).unwrap().to_string();
        assert!(line.contains(&first.authority_id), "{line}");
        server.server.stop().await.unwrap();
    }
}

#[tokio::test]
async fn preparing_twice_replaces_what_was_prepared() {
    let server = TestServer::start().await;
    let mut client = Client::new(&server, AuthorityKind::Jwt).await;
    let first = client.prepare().await.unwrap().unwrap();
    let second = client.prepare().await.unwrap().unwrap();
    assert_eq!(client.prepared().await.unwrap(), Some(second.clone()));
    let refused = client.activate(&first.authority_id).await;
    assert_refused(refused, Code::InvalidArgument, "unexpected authority ID");
    client.activate(&second.authority_id).await.unwrap();
    // A key of the bundle that is in no slot any more can be revoked, once it is tainted.
    let text = "failed to revoke JWT authority: it is not possible to revoke an untainted key";
    assert_refused(client.revoke(&first.authority_id).await, Code::Internal, text);
}

/// After a trust domain has moved here from another server, that server's authorities go the way of our own.
#[tokio::test]
async fn authorities_of_another_server_can_be_tainted_and_revoked() {
    let (server, other) = (TestServer::start().await, TestServer::start().await);
    let theirs = bundle(&other);
    let own = bundle(&server);
    let request = bundle_api::AppendBundleRequest {
        x509_authorities: convert::x509_authorities_to_wire(&theirs.x509_authorities),
        jwt_authorities: convert::jwt_authorities_to_wire(&theirs.jwt_authorities),
        wit_authorities: convert::wit_authorities_to_wire(&theirs.wit_authorities),
        output_mask: None,
    };
    BundleClient::new(server.local().await).append_bundle(request).await.unwrap();
    for kind in AuthorityKind::ALL {
        let mut client = Client::new(&server, kind).await;
        let id = published(&other, kind)[0].0.clone();
        assert_eq!(published(&server, kind).len(), 2);
        let refused = client.revoke(&id).await.unwrap_err();
        assert_eq!(refused.code(), Code::Internal, "untainted: {refused:?}");
        let tainted = client.taint(&id).await.unwrap().unwrap();
        let expires_at = Client::new(&other, kind).await.active().await.unwrap().unwrap().expires_at;
        assert_eq!((tainted.authority_id, tainted.expires_at), (id.clone(), expires_at));
        assert_eq!(client.taint(&id).await.unwrap_err().code(), Code::Internal);
        client.revoke(&id).await.unwrap();
        assert_eq!(published(&server, kind).len(), 1);
        assert_eq!(client.revoke(&id).await.unwrap_err().code(), Code::InvalidArgument, "it is gone");
        assert!(client.active().await.unwrap().is_some());
    }
    assert_eq!(bundle(&server).x509_authorities, own.x509_authorities);
}

#[tokio::test]
async fn without_an_upstream_there_is_no_upstream_authority() {
    let server = TestServer::start().await;
    let mut client = LocalAuthorityClient::new(server.local().await);
    let text = "upstream authority is not configured";
    let subject_key_id = "00".to_owned();
    let taint = pb::TaintX509UpstreamAuthorityRequest { subject_key_id: subject_key_id.clone() };
    assert_refused(client.taint_x509_upstream_authority(taint).await, Code::FailedPrecondition, text);
    let revoke = pb::RevokeX509UpstreamAuthorityRequest { subject_key_id };
    assert_refused(client.revoke_x509_upstream_authority(revoke).await, Code::FailedPrecondition, text);
}

#[tokio::test]
async fn upstream_roots_are_tainted_and_revoked_by_their_key_id() {
    let (folder, clock) = (TempDir::new().unwrap(), ManualClock::default());
    let (cert, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    let renew = || {
        let now = clock.now();
        let end = now.saturating_add(Duration::from_secs(48 * 3600));
        let authority = TestAuthority::new(&trust_domain(), now.saturating_sub(Duration::from_secs(60)), end);
        std::fs::write(&key, pem::encode("PRIVATE KEY", &authority.pkcs8())).unwrap();
        std::fs::write(&cert, pem::encode("CERTIFICATE", authority.certificate())).unwrap();
        inspect(authority.root()).unwrap().ski.unwrap()
    };
    let first_root = renew();
    let more = format!(
        "[upstream_authority.disk]\ncertificate_path = {:?}\nkey_path = {:?}",
        cert.display().to_string(),
        key.display().to_string()
    );
    let server = TestServer::start_in(folder, clock.clone(), &more).await;
    let mut own = Client::new(&server, AuthorityKind::X509).await;
    let mut client = LocalAuthorityClient::new(server.local().await);
    let active = own.active().await.unwrap().unwrap();
    assert_eq!(active.upstream_authority_subject_key_id, first_root);
    let mut taint = async |id: &str| {
        let request = pb::TaintX509UpstreamAuthorityRequest { subject_key_id: id.to_owned() };
        let response = client.taint_x509_upstream_authority(request).await;
        response.map(|response| response.into_inner().upstream_authority_subject_key_id)
    };
    let invalid = Code::InvalidArgument;
    let current = "unable to use upstream authority signing current authority";
    assert_refused(taint("").await, invalid, "no subject key ID provided");
    assert_refused(taint(&first_root).await, invalid, current);

    let second_root = renew();
    let prepared = own.prepare().await.unwrap().unwrap();
    assert_eq!(prepared.upstream_authority_subject_key_id, second_root);
    let text = "only upstream authorities signing an old authority can be used";
    assert_refused(taint(&second_root).await, invalid, text);
    own.activate(&prepared.authority_id).await.unwrap();
    let text = "upstream authority didn't sign the old local authority";
    assert_refused(taint("00").await, invalid, text);
    assert_refused(taint(&second_root).await, invalid, current);

    // Of this server's own authorities nothing is in the bundle.
    let text = "local authority can't be tainted if there is an upstream authority";
    assert_refused(own.taint(&active.authority_id).await, Code::FailedPrecondition, text);
    let text = "local authority can't be revoked if there is an upstream authority";
    assert_refused(own.revoke(&active.authority_id).await, Code::FailedPrecondition, text);

    let mut other_client = LocalAuthorityClient::new(server.local().await);
    let mut revoke = async |id: &str| {
        let request = pb::RevokeX509UpstreamAuthorityRequest { subject_key_id: id.to_owned() };
        let response = other_client.revoke_x509_upstream_authority(request).await;
        response.map(|response| response.into_inner().upstream_authority_subject_key_id)
    };
    let text = "failed to revoke upstream authority: it is not possible to revoke an untainted root CA";
    assert_refused(revoke(&first_root).await, Code::Internal, text);
    assert_eq!(taint(&first_root.to_uppercase()).await.unwrap(), first_root);
    let tainted = published(&server, AuthorityKind::X509);
    assert_eq!(tainted, [(first_root.clone(), true), (second_root.clone(), false)]);
    assert_refused(revoke("").await, invalid, "no subject key ID provided");
    assert_eq!(revoke(&first_root).await.unwrap(), first_root);
    assert_eq!(published(&server, AuthorityKind::X509), [(second_root, false)]);
}

#[tokio::test]
async fn kinds_that_are_switched_off_are_unimplemented() {
    let server =
        TestServer::start_with("[authority]\ndisable_jwt_svids = true\ndisable_wit_svids = true").await;
    for kind in [AuthorityKind::Jwt, AuthorityKind::Wit] {
        let mut client = Client::new(&server, kind).await;
        let text = format!("{} functionality is disabled", name(kind));
        assert_refused(client.active().await, Code::Unimplemented, &text);
        assert_refused(client.prepare().await, Code::Unimplemented, &text);
        assert_refused(client.activate("").await, Code::Unimplemented, &text);
        assert_refused(client.taint("").await, Code::Unimplemented, &text);
        assert_refused(client.revoke("").await, Code::Unimplemented, &text);
    }
}
