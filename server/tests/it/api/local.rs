//! Logger, Debug and Health, on the administration socket.

use std::time::Duration;

use bonafide_proto::health::v1::health_check_response::ServingStatus;
use bonafide_proto::health::v1::health_client::HealthClient;
use bonafide_proto::health::v1::{HealthCheckRequest, HealthListRequest};
use bonafide_proto::spire::server::debug::v1::GetInfoRequest;
use bonafide_proto::spire::server::debug::v1::debug_client::DebugClient;
use bonafide_proto::spire::server::logger::v1::logger_client::LoggerClient;
use bonafide_proto::spire::server::logger::v1::{GetLoggerRequest, ResetLogLevelRequest, SetLogLevelRequest};
use bonafide_proto::spire::types::LogLevel;
use tonic::Code;

use super::harness::*;

#[tokio::test]
async fn the_log_level_changes_and_returns() {
    let server = TestServer::start().await;
    let client = LoggerClient::new(server.local().await);
    let set = async |new_level: i32| client.clone().set_log_level(SetLogLevelRequest { new_level }).await;
    let launch = client.clone().get_logger(GetLoggerRequest {}).await.unwrap().into_inner();
    assert_eq!(launch.current_level(), launch.launch_level());
    let changed = set(LogLevel::Panic.into()).await.unwrap().into_inner();
    assert_eq!((changed.current_level(), changed.launch_level()), (LogLevel::Panic, launch.launch_level()));
    let reset = client.clone().reset_log_level(ResetLogLevelRequest {}).await.unwrap().into_inner();
    assert_eq!(reset, launch);
    assert_eq!(set(0).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(set(8).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(set(-1).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn debug_tells_and_remembers_for_five_seconds() {
    let server = TestServer::start().await;
    let client = DebugClient::new(server.local().await);
    let info = async || client.clone().get_info(GetInfoRequest {}).await.unwrap().into_inner();
    server.agent().await;
    server.federated("other.org").await;
    server.clock.advance(Duration::from_secs(7));
    let first = info().await;
    assert_eq!(
        (first.uptime, first.agents_count, first.entries_count, first.federated_bundles_count),
        (7, 1, 0, 2)
    );
    let [leaf, root] = &first.svid_chain[..] else { panic!("a leaf and its root") };
    assert_eq!(root.id, wire_id(""));
    assert_eq!(leaf.id, wire_id("/spire/server"));
    assert!(leaf.expires_at > server.clock.now().unix_seconds());
    assert!(leaf.subject.contains("O=SPIRE"), "{}", leaf.subject);
    server.entry(stored_entry("e", &id("/spire/server"), "/e")).await;
    server.clock.advance(Duration::from_secs(4));
    assert_eq!(info().await, first);
    server.clock.advance(Duration::from_secs(1));
    assert_eq!(info().await.entries_count, 1);
}

#[tokio::test]
async fn health_is_that_of_the_whole() {
    let server = TestServer::start().await;
    let client = HealthClient::new(server.local().await);
    let request = |service: &str| HealthCheckRequest { service: service.to_owned() };
    let status = client.clone().check(request("")).await.unwrap().into_inner().status();
    assert_eq!(status, ServingStatus::Serving);
    assert_eq!(client.clone().check(request("x")).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(client.clone().watch(request("x")).await.unwrap_err().code(), Code::InvalidArgument);
    let listed = client.clone().list(HealthListRequest {}).await.unwrap().into_inner();
    assert_eq!(listed.statuses.into_values().map(|told| told.status()).collect::<Vec<_>>(), [status]);

    let mut watch = client.clone().watch(request("")).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    let part = server.server.context().readiness.register("part");
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    part.ready();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
}
