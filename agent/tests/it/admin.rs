//! The admin socket, and what is beside the Workload API on the public one.

use bonafide_proto::health::v1::health_check_response::ServingStatus;
use bonafide_proto::health::v1::health_client::HealthClient;
use bonafide_proto::health::v1::{HealthCheckRequest, HealthListRequest};
use bonafide_proto::spire::agent::debug::v1::GetInfoRequest;
use bonafide_proto::spire::agent::debug::v1::debug_client::DebugClient;
use bonafide_proto::spire::agent::logger::v1::logger_client::LoggerClient;
use bonafide_proto::spire::agent::logger::v1::{GetLoggerRequest, ResetLogLevelRequest, SetLogLevelRequest};
use bonafide_runtime::telemetry::{LogConfig, init_logging};
use tonic::Code;

use crate::fake_server::FakeServer;
use crate::harness::{Home, channel, eventually, my_entry, overrides};

#[tokio::test]
async fn debug_shows_the_agent() {
    let server = FakeServer::start().await;
    server.lock().add(my_entry("e1", "/a").build());
    let home = Home::new();
    let agent = home.start(&server, "").await;
    let mut debug = DebugClient::new(channel(home.admin_socket()).await);
    eventually("the SVID is signed ahead", async || {
        let info = debug.get_info(GetInfoRequest {}).await.unwrap().into_inner();
        if info.cached_x509_svids_count == 1 && info.last_sync_success > 0 { Ok(()) } else { Err(info) }
    })
    .await;
    let info = debug.get_info(GetInfoRequest {}).await.unwrap().into_inner();
    assert_eq!(info.svid_chain.len(), 1);
    assert_eq!(info.svid_chain[0].id.as_ref().unwrap().path, "/spire/agent/join_token/token");
    assert_eq!(info.svid_chain[0].expires_at, agent.own_svid().not_after().unix_seconds());
    assert!(info.svid_chain[0].subject.contains("O=SPIRE"), "{info:?}");
    assert_eq!(info.cached_jwt_svids_count, 0);
}

#[tokio::test]
async fn the_log_level_can_be_changed_and_reset() {
    let server = FakeServer::start().await;
    let home = Home::new();
    let Ok(log) = init_logging(LogConfig::default()) else {
        eprintln!("SKIPPED: the_log_level_can_be_changed_and_reset: logging is set up already");
        return;
    };
    let mut overrides = overrides();
    overrides.log = Some(log);
    let _agent = home.start_with(home.config(&server, ""), overrides).await.unwrap();
    let mut logger = LoggerClient::new(channel(home.admin_socket()).await);
    let level = |logger: bonafide_proto::spire::types::Logger| (logger.current_level, logger.launch_level);
    assert_eq!(level(logger.get_logger(GetLoggerRequest {}).await.unwrap().into_inner()), (5, 5));
    let changed = logger.set_log_level(SetLogLevelRequest { new_level: 3 }).await.unwrap().into_inner();
    assert_eq!(level(changed), (3, 5));
    for wrong in [0, 8, -1] {
        let refused = logger.set_log_level(SetLogLevelRequest { new_level: wrong }).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{wrong}");
    }
    assert_eq!(level(logger.reset_log_level(ResetLogLevelRequest {}).await.unwrap().into_inner()), (5, 5));
}

#[tokio::test]
async fn health_is_answered_on_both_sockets_without_the_security_header() {
    let server = FakeServer::start().await;
    let home = Home::new();
    let _agent = home.start(&server, "").await;
    for socket in [home.socket(), home.admin_socket()] {
        let mut health = HealthClient::new(channel(socket).await);
        let check = |service: &str| HealthCheckRequest { service: service.to_owned() };
        let answer = health.check(check("")).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving);
        assert_eq!(health.check(check("x")).await.unwrap_err().code(), Code::InvalidArgument);
        assert_eq!(health.list(HealthListRequest {}).await.unwrap_err().code(), Code::Unimplemented);
        assert_eq!(health.watch(check("")).await.unwrap_err().code(), Code::Unimplemented);
    }
}

#[tokio::test]
async fn reflection_lists_what_is_served() {
    use tokio_stream::StreamExt as _;
    use tonic_reflection::pb::v1::ServerReflectionRequest;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

    let server = FakeServer::start().await;
    let home = Home::new();
    let _agent = home.start(&server, "").await;
    let mut reflection = ServerReflectionClient::new(channel(home.socket()).await);
    let ask = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers = reflection.server_reflection_info(tokio_stream::once(ask)).await.unwrap().into_inner();
    let answer = answers.next().await.unwrap().unwrap().message_response;
    let Some(MessageResponse::ListServicesResponse(list)) = answer else { panic!("{answer:?}") };
    let names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
    for name in ["SpiffeWorkloadAPI", "grpc.health.v1.Health"] {
        assert!(names.iter().any(|found| found == name), "{name} is missing from {names:?}");
    }
    assert!(!names.iter().any(|name| name.starts_with("spire.")), "{names:?}");
}

#[tokio::test]
async fn the_workload_socket_does_not_offer_administration() {
    let server = FakeServer::start().await;
    let home = Home::new();
    let _agent = home.start(&server, "").await;
    let mut debug = DebugClient::new(channel(home.socket()).await);
    assert_eq!(debug.get_info(GetInfoRequest {}).await.unwrap_err().code(), Code::Unimplemented);
}

#[tokio::test]
async fn no_two_sockets_share_a_folder() {
    let server = FakeServer::start().await;
    let home = Home::new();
    std::fs::create_dir(home.path("public")).unwrap();
    std::os::unix::fs::symlink(home.path("public"), home.path("link")).unwrap();
    let config = home.config(&server, "");
    for other in ["link/admin.sock", "public/../link/admin.sock"] {
        let mut config = config.clone();
        config.admin_socket = Some(home.path(other));
        let error = match home.start_with(config, overrides()).await {
            Ok(_) => panic!("it must not start"),
            Err(error) => error.to_string(),
        };
        assert!(error.contains("are in the same folder"), "{error}");
    }
    std::fs::create_dir(home.path("private")).unwrap();
    std::os::unix::fs::symlink(home.path("private"), home.path("second")).unwrap();
    let mut both = config.clone();
    both.broker.socket = Some(home.path("second/broker.sock"));
    let error = match home.start_with(both, overrides()).await {
        Ok(_) => panic!("it must not start"),
        Err(error) => error.to_string(),
    };
    assert!(error.contains("are in the same folder") && error.contains("admin.sock"), "{error}");
    assert!(server.lock().tokens.contains("token"), "no token is spent");
    assert!(!home.socket().exists(), "nothing is left behind");
    home.start_with(config, overrides()).await.unwrap();
}
