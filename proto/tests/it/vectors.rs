//! Every message in this crate, compared with what another implementation made of the same fields.
//!
//! The vectors were written by `tests/vectors/gen`. Two comparisons are needed: equal bytes after decoding and
//! encoding show that nothing is lost, equal JSON shows that each number carries the name it should.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use bonafide_proto::FILE_DESCRIPTOR_SET;
use data_encoding::BASE64;
use prost::{Message, Name};
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};
use serde_json::Value;

type Recode = fn(&[u8]) -> Result<Vec<u8>, prost::DecodeError>;

fn recode<M: Message + Default>(wire: &[u8]) -> Result<Vec<u8>, prost::DecodeError> {
    M::decode(wire).map(|message| message.encode_to_vec())
}

macro_rules! registry {
    ($($($package:ident)::+ { $($message:path),* $(,)? })*) => {
        /// The generated type of each message.
        fn registry() -> BTreeMap<String, Recode> {
            let mut all: BTreeMap<String, Recode> = BTreeMap::new();
            $({
                use $($package)::+::*;
                $(
                    let earlier = all.insert(<$message>::full_name(), recode::<$message>);
                    assert!(earlier.is_none(), "{} is there twice", stringify!($message));
                )*
            })*
            all
        }
    };
}

registry! {
    bonafide_proto::workload {
        X509svidRequest, X509svidResponse, X509svid, X509BundlesRequest, X509BundlesResponse,
        JwtsvidRequest, JwtsvidResponse, Jwtsvid, JwtBundlesRequest, JwtBundlesResponse,
        ValidateJwtsvidRequest, ValidateJwtsvidResponse, WitsvidRequest, WitsvidResponse, Witsvid,
        WitBundlesRequest, WitBundlesResponse
    }
    bonafide_proto::rpc {
        ErrorInfo, Status
    }
    bonafide_proto::health::v1 {
        HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse
    }
    bonafide_proto::broker {
        WorkloadReference, WorkloadPidReference, KubernetesObjectType, KubernetesObjectKey,
        KubernetesObjectReference, SubscribeToX509svidRequest, SubscribeToX509svidResponse, X509svid,
        SubscribeToX509BundlesRequest, SubscribeToX509BundlesResponse, FetchJwtsvidRequest,
        FetchJwtsvidResponse, Jwtsvid, SubscribeToJwtBundlesRequest, SubscribeToJwtBundlesResponse
    }
    bonafide_proto::spire::agent::debug::v1 {
        GetInfoRequest, get_info_response::Cert, GetInfoResponse
    }
    bonafide_proto::spire::agent::delegatedidentity::v1 {
        X509svidWithKey, SubscribeToX509sviDsRequest, SubscribeToX509sviDsResponse,
        SubscribeToX509BundlesRequest, SubscribeToX509BundlesResponse, FetchJwtsviDsRequest,
        FetchJwtsviDsResponse, SubscribeToJwtBundlesRequest, SubscribeToJwtBundlesResponse
    }
    bonafide_proto::spire::agent::logger::v1 {
        GetLoggerRequest, SetLogLevelRequest, ResetLogLevelRequest
    }
    bonafide_proto::spire::server::agent::v1 {
        count_agents_request::Filter, CountAgentsRequest, CountAgentsResponse, list_agents_request::Filter,
        ListAgentsRequest, ListAgentsResponse, GetAgentRequest, DeleteAgentRequest, BanAgentRequest,
        attest_agent_request::Params, AttestAgentRequest, attest_agent_response::Result,
        AttestAgentResponse, RenewAgentRequest, RenewAgentResponse, CreateJoinTokenRequest,
        AgentX509svidParams, PostStatusRequest, PostStatusResponse
    }
    bonafide_proto::spire::server::bundle::v1 {
        CountBundlesRequest, CountBundlesResponse, GetBundleRequest, AppendBundleRequest,
        PublishJwtAuthorityRequest, PublishJwtAuthorityResponse, PublishWitAuthorityRequest,
        PublishWitAuthorityResponse, ListFederatedBundlesRequest, ListFederatedBundlesResponse,
        GetFederatedBundleRequest, BatchCreateFederatedBundleRequest,
        batch_create_federated_bundle_response::Result, BatchCreateFederatedBundleResponse,
        BatchUpdateFederatedBundleRequest, batch_update_federated_bundle_response::Result,
        BatchUpdateFederatedBundleResponse, BatchSetFederatedBundleRequest,
        batch_set_federated_bundle_response::Result, BatchSetFederatedBundleResponse,
        BatchDeleteFederatedBundleRequest, batch_delete_federated_bundle_response::Result,
        BatchDeleteFederatedBundleResponse
    }
    bonafide_proto::spire::server::debug::v1 {
        GetInfoRequest, get_info_response::Cert, GetInfoResponse
    }
    bonafide_proto::spire::server::entry::v1 {
        count_entries_request::Filter, CountEntriesRequest, CountEntriesResponse,
        list_entries_request::Filter, ListEntriesRequest, ListEntriesResponse, GetEntryRequest,
        BatchCreateEntryRequest, batch_create_entry_response::Result, BatchCreateEntryResponse,
        BatchUpdateEntryRequest, batch_update_entry_response::Result, BatchUpdateEntryResponse,
        BatchDeleteEntryRequest, batch_delete_entry_response::Result, BatchDeleteEntryResponse,
        GetAuthorizedEntriesRequest, GetAuthorizedEntriesResponse, SyncAuthorizedEntriesRequest,
        SyncAuthorizedEntriesResponse, EntryRevision
    }
    bonafide_proto::spire::server::localauthority::v1 {
        GetJwtAuthorityStateRequest, GetJwtAuthorityStateResponse, PrepareJwtAuthorityRequest,
        PrepareJwtAuthorityResponse, ActivateJwtAuthorityRequest, ActivateJwtAuthorityResponse,
        TaintJwtAuthorityRequest, TaintJwtAuthorityResponse, RevokeJwtAuthorityRequest,
        RevokeJwtAuthorityResponse, GetX509AuthorityStateRequest, GetX509AuthorityStateResponse,
        PrepareX509AuthorityRequest, PrepareX509AuthorityResponse, ActivateX509AuthorityRequest,
        ActivateX509AuthorityResponse, TaintX509AuthorityRequest, TaintX509AuthorityResponse,
        TaintX509UpstreamAuthorityRequest, TaintX509UpstreamAuthorityResponse,
        RevokeX509UpstreamAuthorityRequest, RevokeX509UpstreamAuthorityResponse, RevokeX509AuthorityRequest,
        RevokeX509AuthorityResponse, GetWitAuthorityStateRequest, GetWitAuthorityStateResponse,
        PrepareWitAuthorityRequest, PrepareWitAuthorityResponse, ActivateWitAuthorityRequest,
        ActivateWitAuthorityResponse, TaintWitAuthorityRequest, TaintWitAuthorityResponse,
        RevokeWitAuthorityRequest, RevokeWitAuthorityResponse, AuthorityState
    }
    bonafide_proto::spire::server::logger::v1 {
        GetLoggerRequest, SetLogLevelRequest, ResetLogLevelRequest
    }
    bonafide_proto::spire::server::svid::v1 {
        MintX509svidRequest, MintX509svidResponse, MintWitsvidRequest, MintWitsvidResponse,
        MintJwtsvidRequest, MintJwtsvidResponse, BatchNewX509svidRequest,
        batch_new_x509svid_response::Result, BatchNewX509svidResponse, NewJwtsvidRequest,
        BatchNewWitsvidRequest, batch_new_witsvid_response::Result, BatchNewWitsvidResponse,
        NewJwtsvidResponse, NewDownstreamX509caRequest, NewDownstreamX509caResponse, NewX509svidParams,
        NewWitsvidParams
    }
    bonafide_proto::spire::server::trustdomain::v1 {
        ListFederationRelationshipsRequest, ListFederationRelationshipsResponse,
        GetFederationRelationshipRequest, BatchCreateFederationRelationshipRequest,
        batch_create_federation_relationship_response::Result, BatchCreateFederationRelationshipResponse,
        BatchUpdateFederationRelationshipRequest, batch_update_federation_relationship_response::Result,
        BatchUpdateFederationRelationshipResponse, BatchDeleteFederationRelationshipRequest,
        batch_delete_federation_relationship_response::Result, BatchDeleteFederationRelationshipResponse,
        RefreshBundleRequest
    }
    bonafide_proto::spire::types {
        Spiffeid, Jwtsvid, Selector, SelectorMatch, X509svid, Logger, Agent, AgentMask, AttestationData,
        JoinToken, Bundle, X509Certificate, JwtKey, WitKey, BundleMask, Status, PermissionDeniedDetails,
        entry::AdditionalAttributes, Entry, EntryMask, FederatesWithMatch, Witsvid, FederationRelationship,
        HttpsspiffeProfile, HttpsWebProfile, FederationRelationshipMask
    }
}

struct Vector {
    message: String,
    sample: String,
    wire: Vec<u8>,
    json: Value,
}

impl Vector {
    fn title(&self) -> String {
        format!("{} ({})", self.message, self.sample)
    }
}

pub(crate) fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors")
}

fn vectors() -> Vec<Vector> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder()).expect("the vectors are part of the crate") {
        let path = entry.expect("the folder can be listed").path();
        if path.extension().is_none_or(|extension| extension != "json") || path.ends_with("methods.json") {
            continue;
        }
        let text = fs::read_to_string(&path).expect("a vector file can be read");
        let samples: Vec<Value> = serde_json::from_str(&text).expect("a vector file is a JSON array");
        all.extend(samples.into_iter().map(|sample| {
            let text = |key: &str| sample[key].as_str().expect("a vector has its three texts").to_owned();
            Vector {
                message: text("message"),
                sample: text("sample"),
                wire: BASE64.decode(text("wire").as_bytes()).expect("the wire is base64"),
                json: sample["json"].clone(),
            }
        }));
    }
    all
}

/// The messages that this crate defines, without those it imports, the entries of maps, and our own, for which there is
/// nobody else to compare with.
fn defined() -> BTreeSet<String> {
    pool()
        .all_messages()
        .filter(|message| message.package_name() != "google.protobuf" && !message.is_map_entry())
        .filter(|message| {
            !message.package_name().starts_with("bonafide.") && !in_part(message.package_name())
        })
        .map(|message| message.full_name().to_owned())
        .collect()
}

/// Packages of which this crate holds what it needs: they are compared with samples of whole messages (`kubelet.rs`).
pub(crate) fn in_part(package: &str) -> bool {
    matches!(package, "v1" | "v1alpha1" | "k8s.io.api.core.v1")
}

pub(crate) fn pool() -> DescriptorPool {
    DescriptorPool::decode(FILE_DESCRIPTOR_SET).expect("the descriptor set is complete")
}

#[test]
fn each_message_has_a_generated_type_and_a_vector() {
    let defined = defined();
    assert_eq!(registry().into_keys().collect::<BTreeSet<_>>(), defined);
    assert_eq!(vectors().into_iter().map(|vector| vector.message).collect::<BTreeSet<_>>(), defined);
}

#[test]
fn generated_types_keep_every_byte() {
    let registry = registry();
    let mut failures = Vec::new();
    for vector in vectors() {
        match registry[&vector.message](&vector.wire) {
            Ok(wire) if wire == vector.wire => {}
            Ok(wire) => failures.push(format!(
                "{}: {} became {}",
                vector.title(),
                BASE64.encode(&vector.wire),
                BASE64.encode(&wire)
            )),
            Err(error) => failures.push(format!("{}: {error}", vector.title())),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn fields_carry_the_names_that_others_give_them() {
    let pool = pool();
    let options = SerializeOptions::new().use_proto_field_name(true);
    let mut failures = Vec::new();
    for vector in vectors() {
        let descriptor = pool.get_message_by_name(&vector.message).expect("each vector has a descriptor");
        let message = DynamicMessage::decode(descriptor, vector.wire.as_slice()).expect("a vector decodes");
        if let Some(number) = message.unknown_fields().map(prost_reflect::UnknownField::number).next() {
            failures.push(format!("{}: nobody told us of field {number}", vector.title()));
        }
        let json = message
            .serialize_with_options(serde_json::value::Serializer, &options)
            .expect("a decoded message can be written as JSON");
        if json != vector.json {
            failures.push(format!("{}: {json} instead of {}", vector.title(), vector.json));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
