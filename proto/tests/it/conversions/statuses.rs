//! Statuses of items, reasons of denials, and what is kept out of logs.

use bonafide_proto::convert::{
    denial_reason, permission_denied_with_reason, result_status, status, status_from_error, status_ok,
};
use bonafide_proto::spire::types::permission_denied_details::Reason;
use bonafide_proto::spire::{agent::delegatedidentity::v1::X509svidWithKey, types};
use bonafide_proto::{broker, rpc, workload};
use prost::Message;
use tonic::{Code, Status};

#[test]
fn success_is_a_status_of_its_own() {
    assert_eq!(status_ok(), types::Status { code: 0, message: "OK".into() });
    assert!(result_status(Some(&status_ok())).is_ok());
    assert_eq!(result_status(None).unwrap_err().code(), Code::Internal);
    let failed = status(Code::NotFound, "entry not found");
    assert_eq!(failed, types::Status { code: 5, message: "entry not found".into() });
    let error = result_status(Some(&failed)).unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::NotFound, "entry not found"));
    assert_eq!(status_from_error(&error), failed);
    let nonsense = types::Status { code: 99, message: "?".into() };
    assert_eq!(result_status(Some(&nonsense)).unwrap_err().code(), Code::Unknown);
}

#[test]
fn a_denial_carries_its_reason() {
    for reason in [Reason::AgentExpired, Reason::AgentBanned, Reason::AgentMustReattest] {
        let denial = permission_denied_with_reason("authorization denied for method /a/b", reason);
        assert_eq!(denial.code(), Code::PermissionDenied);
        assert_eq!(denial.message(), "authorization denied for method /a/b");
        assert_eq!(denial_reason(&denial), Some(reason));
        let headers = denial.into_http::<()>().headers().clone();
        assert!(headers.contains_key("grpc-status-details-bin"));
        let received = Status::from_header_map(&headers).expect("the headers hold a status");
        assert_eq!(denial_reason(&received), Some(reason));
    }
}

/// The bytes that a Go server puts into the trailer: code 7, message `no`, and an `Any` with the reason.
#[test]
fn the_details_are_those_that_agents_look_for() {
    let name = b"type.googleapis.com/spire.api.types.PermissionDeniedDetails";
    let mut packed = vec![0x0a, name.len() as u8];
    packed.extend_from_slice(name);
    packed.extend_from_slice(&[0x12, 0x02, 0x08, 0x03]);
    let mut expected = vec![0x08, 0x07, 0x12, 0x02, b'n', b'o', 0x1a, packed.len() as u8];
    expected.extend_from_slice(&packed);
    let denial = permission_denied_with_reason("no", Reason::AgentNotActive);
    assert_eq!(denial.details(), expected);
}

#[test]
fn other_errors_have_no_reason() {
    assert_eq!(denial_reason(&Status::permission_denied("no")), None);
    let details = permission_denied_with_reason("no", Reason::AgentBanned).details().to_vec();
    let other = Status::with_details(Code::Internal, "no", details.into());
    assert_eq!(denial_reason(&other), None);
    let garbage = Status::with_details(Code::PermissionDenied, "no", vec![0xff; 7].into());
    assert_eq!(denial_reason(&garbage), None);
    let with_reason = |type_url: &str, reason: i32| {
        let details = rpc::Status {
            details: vec![prost_types::Any {
                type_url: type_url.into(),
                value: types::PermissionDeniedDetails { reason }.encode_to_vec(),
            }],
            ..rpc::Status::default()
        };
        denial_reason(&Status::with_details(Code::PermissionDenied, "no", details.encode_to_vec().into()))
    };
    let name = "x/spire.api.types.PermissionDeniedDetails";
    assert_eq!(with_reason(name, 4), Some(Reason::AgentBanned));
    assert_eq!(with_reason(name, 99), None, "a reason of the future is no reason to act");
    assert_eq!(with_reason("x/spire.api.types.Status", 4), None);
}

#[test]
fn secrets_are_not_printed() {
    let secret = "do-not-print";
    let bytes = bytes::Bytes::from_static(secret.as_bytes());
    let spelled = format!("{:?}", secret.as_bytes());
    let printed = [
        format!("{:?}", workload::X509svid { x509_svid_key: bytes.clone(), ..Default::default() }),
        format!(
            "{:?}",
            workload::X509svidResponse {
                svids: vec![workload::X509svid { x509_svid_key: bytes.clone(), ..Default::default() }],
                ..Default::default()
            }
        ),
        format!("{:?}", workload::Jwtsvid { svid: secret.into(), ..Default::default() }),
        format!("{:?}", workload::Witsvid { wit_svid_key: secret.into(), ..Default::default() }),
        format!("{:?}", workload::ValidateJwtsvidRequest { svid: secret.into(), ..Default::default() }),
        format!("{:?}", broker::X509svid { x509_svid_key: bytes, ..Default::default() }),
        format!("{:?}", broker::Jwtsvid { svid: secret.into(), ..Default::default() }),
        format!("{:?}", X509svidWithKey { x509_svid_key: secret.into(), ..Default::default() }),
        format!("{:?}", types::Jwtsvid { token: secret.into(), ..Default::default() }),
        format!("{:?}", types::JoinToken { value: secret.into(), ..Default::default() }),
        format!("{:?}", types::AttestationData { payload: secret.into(), ..Default::default() }),
        format!(
            "{:?}",
            bonafide_proto::spire::server::agent::v1::CreateJoinTokenRequest {
                token: secret.into(),
                ..Default::default()
            }
        ),
    ];
    for text in printed {
        assert!(!text.contains(secret) && !text.contains(&spelled), "{text}");
        assert!(text.contains("<12 bytes hidden>"), "{text}");
    }
}
