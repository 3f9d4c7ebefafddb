//! What has gone wrong in other implementations, tried on ours. See docs/security-advisories.md.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex};

use bonafide_proto::workload::{JwtsvidRequest, ValidateJwtsvidRequest, X509svidRequest};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use crate::fake_server::FakeServer;
use crate::harness::{Home, my_entry, my_selector, next, workload};

/// Everything that this thread logs, whatever the level.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<String>>);

impl Visit for Log {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let _ = write!(self.0.lock().unwrap(), "{field}={value:?} ");
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let _ = write!(self.0.lock().unwrap(), "{field}={value} ");
    }
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("bonafide")
    }

    fn new_span(&self, attributes: &Attributes<'_>) -> Id {
        attributes.record(&mut self.clone());
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, values: &Record<'_>) {
        values.record(&mut self.clone());
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        event.record(&mut self.clone());
        self.0.lock().unwrap().push('\n');
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// SPIRE 0.12.0 logged tokens that did not validate, and before 1.14.3 the selectors of workloads; both may hold what is
/// nobody's business.
#[tokio::test]
async fn advisory_tokens_and_selectors_stay_out_of_the_log() {
    let log = Log::default();
    // The whole test runs on this thread, the agent and its server included.
    let _guard = tracing::subscriber::set_default(log.clone());
    let server = FakeServer::start().await;
    server.lock().add(my_entry("e1", "/a").build());
    let home = Home::new();
    let agent = home.start(&server, "").await;
    let mut client = workload(&home).await;
    let audience = vec!["here".to_owned()];
    let request = JwtsvidRequest { audience, spiffe_id: String::new() };
    let token = client.fetch_jwtsvid(request).await.unwrap().into_inner().svids.remove(0).svid;
    let mut stream = client.fetch_x509svid(X509svidRequest {}).await.unwrap().into_inner();
    next(&mut stream).await.unwrap();
    for (audience, svid) in [("elsewhere", token.clone()), ("here", format!("{token}x"))] {
        let request = ValidateJwtsvidRequest { audience: audience.to_owned(), svid };
        client.validate_jwtsvid(request).await.unwrap_err();
    }
    agent.shut_down();
    agent.join().await.unwrap();

    let log = log.0.lock().unwrap();
    assert!(log.contains("the agent serves"), "nothing was captured: {log}");
    let payload = token.split('.').nth(1).unwrap();
    for secret in [payload, &my_selector()] {
        assert!(!log.contains(secret), "{secret} is in the log:\n{log}");
    }
}

/// SPIRE 1.12.3 and 1.11.3: tokens without an end were valid.
#[tokio::test]
async fn advisory_a_token_must_say_when_it_ends() {
    let server = FakeServer::start().await;
    server.lock().add(my_entry("e1", "/a").build());
    let home = Home::new();
    let _agent = home.start(&server, "").await;
    let mut client = workload(&home).await;
    let part = |json: &str| data_encoding::BASE64URL_NOPAD.encode(json.as_bytes());
    let header = part(r#"{"alg":"ES256","kid":"any","typ":"JWT"}"#);
    let claims = part(r#"{"sub":"spiffe://example.org/a","aud":["here"]}"#);
    let svid = format!("{header}.{claims}.{}", data_encoding::BASE64URL_NOPAD.encode(&[1; 64]));
    let request = ValidateJwtsvidRequest { audience: "here".to_owned(), svid };
    let refused = client.validate_jwtsvid(request).await.unwrap_err();
    assert_eq!(refused.message(), "token missing exp claim");
}
