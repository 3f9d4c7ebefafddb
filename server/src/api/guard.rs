//! The wrapper around each service.

use std::collections::HashSet;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bonafide_identity::SpiffeId;
use bonafide_runtime::clock::SharedClock;
use bonafide_runtime::listener::Peer;
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Instant;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::service::{Routes, RoutesBuilder};
use tonic::{Code, Status};
use tower::Service;

use super::limit::{Limiter, Subject};
use super::table::{self, Incomplete};
use super::{Audited, Call, Limit, Notes, Rule, Who};
use crate::audit::{AuditLog, CallRecord, Decision};
use crate::caller::{self, Caller, Origin, Right, network};
use crate::config::RateLimitSettings;
use crate::status::names;
use crate::store::Store;

/// What all guards share.
pub struct Gate {
    store: Store,
    clock: SharedClock,
    audit: AuditLog,
    admin_ids: Vec<SpiffeId>,
    /// One for each row of the table that has a limit.
    limiters: Vec<Option<Arc<Limiter>>>,
    strangers: Strangers,
    next_request: AtomicU64,
}

/// Bounds what the audit log says of callers that have shown no right. Their calls cost them nothing; without a bound
/// they would fill the disk, and the queue that the calls of agents wait for.
struct Strangers {
    lines: Limiter,
    left_out: Mutex<LeftOut>,
}

/// Lines that were not written since the process's log last said so.
#[derive(Default)]
struct LeftOut {
    count: u64,
    said: Option<Instant>,
}

impl Strangers {
    fn new(lines_per_second: u32) -> Self {
        Self { lines: Limiter::new(lines_per_second), left_out: Mutex::default() }
    }

    /// Whether there is room for a line about a failed call.
    fn has_room_for(&self, caller: &Caller) -> bool {
        let (Origin::Remote { address, .. }, Right::Any) = (&caller.origin, &caller.right) else {
            return true;
        };
        if self.lines.try_take(Subject::Address(network(address.ip()))) {
            return true;
        }
        let mut left_out = self.left_out.lock().unwrap_or_else(PoisonError::into_inner);
        left_out.count += 1;
        let now = Instant::now();
        if left_out.said.is_none_or(|said| now.duration_since(said) >= SAY_EVERY) {
            let lines = std::mem::take(&mut left_out.count);
            left_out.said = Some(now);
            tracing::warn!(%address, lines, "refused calls are too many for the audit log and were left out of it");
        }
        false
    }
}

/// Each second, for each address.
const LINES_ABOUT_STRANGERS: u32 = 1000;
/// What was left out is said at most this often.
const SAY_EVERY: Duration = Duration::from_secs(10);
/// Whoever may call without a right has this long to send the request, and so much of it: what has arrived of a
/// message is held until the rest is there.
const STRANGERS_TIME: Duration = Duration::from_secs(10);
const STRANGERS_MESSAGE: usize = 64 * 1024;
/// All messages of one attestation: payload, CSR and the answers to challenges.
const STRANGERS_ATTESTATION: usize = 1024 * 1024;

impl Gate {
    /// A gate in front of the state in `store`.
    pub fn new(
        store: Store,
        clock: SharedClock,
        audit: AuditLog,
        admin_ids: Vec<SpiffeId>,
        limits: RateLimitSettings,
    ) -> Self {
        let rate = |limit| match limit {
            Limit::None => 0,
            Limit::Attestation => limits.attestation,
            Limit::Signing | Limit::SigningEach => limits.signing,
            Limit::Fixed(rate) => rate,
        };
        let limiter = |rule: &Rule| match rate(rule.limit) {
            0 => None,
            rate => Some(Arc::new(Limiter::new(rate))),
        };
        let limiters = table::RULES.iter().map(limiter).collect();
        // Ids go on from the start's instant, so that those of two runs do not meet in one log.
        let first = u64::try_from(clock.now().unix_millis()).unwrap_or_default() << 20;
        let strangers = Strangers::new(LINES_ABOUT_STRANGERS);
        Self { store, clock, audit, admin_ids, limiters, strangers, next_request: AtomicU64::new(first) }
    }

    /// Lets a call in, or not. What comes back with a refusal is what is known of the caller.
    async fn admit(
        &self,
        index: usize,
        rule: &'static Rule,
        peer: &Peer,
        headers: &HeaderMap,
    ) -> Result<Call, (Caller, Decision, Status)> {
        let origin = Origin::of(peer);
        let request_id = self.next_request.fetch_add(1, Ordering::Relaxed);
        let now = self.clock.now();
        let right = caller::authorize(peer, &origin, rule, &self.admin_ids, &self.store, now).await;
        let right = match right {
            Ok(right) => right,
            Err(status) => {
                let caller = Caller { request_id, origin, right: Right::Any };
                return Err((caller, Decision::Denied, status));
            }
        };
        let limiter = match origin {
            Origin::Local { .. } => None,
            Origin::Remote { .. } => self.limiters[index].clone(),
        };
        let caller = Caller { request_id, origin, right };
        let deadline = timeout(headers).map(|timeout| Instant::now() + timeout);
        let call = Call { rule, caller, limiter, deadline, notes: Mutex::default() };
        if rule.limit != Limit::SigningEach
            && let Err(status) = call.charge(1).await
        {
            return Err((call.caller, Decision::Limited, status));
        }
        Ok(call)
    }
}

/// A service behind the gate.
#[derive(Clone)]
pub struct Guarded<S> {
    inner: S,
    gate: Arc<Gate>,
}

impl<S: NamedService> NamedService for Guarded<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for Guarded<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        // The clone has not been polled ready; the one that has goes with this call.
        let fresh = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, fresh);
        let gate = self.gate.clone();
        Box::pin(async move { Ok(serve(&gate, &mut inner, request).await) })
    }
}

/// As grpc-go says it: clients of SPIRE tell an older server from a broken one by the code, people by the text.
fn unknown(path: &str, service_is_here: bool) -> Status {
    Status::unimplemented(match path.trim_start_matches('/').split_once('/') {
        Some((service, method)) if service_is_here => {
            format!("unknown method {method} for service {service}")
        }
        Some((service, _)) => format!("unknown service {service}"),
        None => format!("malformed method name: {path:?}"),
    })
}

async fn serve<S>(gate: &Arc<Gate>, inner: &mut S, mut request: http::Request<Body>) -> http::Response<Body>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
{
    let begun = Instant::now();
    let Some((index, rule)) = table::rule(request.uri().path()) else {
        return unknown(request.uri().path(), true).into_http();
    };
    let Some(peer) = request.extensions().get::<Arc<Peer>>().cloned() else {
        return Status::internal("the connection has no peer information").into_http();
    };
    // Nothing is decided, and so nothing need be audited, while the audit log cannot keep up.
    gate.audit.admission().await;
    let call = match gate.admit(index, rule, &peer, request.headers()).await {
        Ok(call) => Arc::new(call),
        Err((caller, decision, status)) => {
            let (code, message) = (status.code(), status.message().to_owned());
            tracing::debug!(method = rule.path, request = caller.request_id, %code, message, "call refused");
            finish(gate, rule, caller, Notes::default(), decision, code, message, begun);
            return status.into_http();
        }
    };
    request.extensions_mut().insert(call.clone());
    let mut report = Report { gate: gate.clone(), call: Some(call), begun };
    let response = if rule.allows(Who::ANY) {
        let most = match rule.limit {
            Limit::Attestation => STRANGERS_ATTESTATION,
            _ => STRANGERS_MESSAGE,
        };
        let request = request.map(|body| Body::new(Bounded { body, left: most, most }));
        let late = |_| Ok(Status::deadline_exceeded("the request did not come in time").into_http());
        tokio::time::timeout(STRANGERS_TIME, inner.call(request)).await.unwrap_or_else(late)
    } else {
        inner.call(request).await
    };
    let Ok(response) = response;
    if let Some((code, message)) = outcome(response.headers()) {
        report.send(code, message);
        return response;
    }
    response.map(|body| Body::new(Watched { body, report }))
}

/// Sends the result of a call to metrics and audit, once; a call that is dropped before its end was cancelled.
struct Report {
    gate: Arc<Gate>,
    call: Option<Arc<Call>>,
    begun: Instant,
}

impl Report {
    fn send(&mut self, code: Code, message: String) {
        let Some(call) = self.call.take() else { return };
        let notes = call.lock().clone();
        if code == Code::Internal || code == Code::Unknown {
            tracing::error!(method = call.rule.path, request = call.caller.request_id, %code, message, "call failed");
        }
        let caller = call.caller.clone();
        finish(&self.gate, call.rule, caller, notes, Decision::Allowed, code, message, self.begun);
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        self.send(Code::Cancelled, "the caller went away".to_owned());
    }
}

#[expect(clippy::too_many_arguments, reason = "these are the columns of one line")]
fn finish(
    gate: &Gate,
    rule: &'static Rule,
    caller: Caller,
    notes: Notes,
    decision: Decision,
    code: Code,
    message: String,
    begun: Instant,
) {
    let took = begun.elapsed();
    metrics::counter!(names::RPCS, "method" => rule.path, "code" => code_name(code)).increment(1);
    metrics::histogram!(names::RPC_SECONDS, "method" => rule.path).record(took.as_secs_f64());
    for (kind, _) in &notes.issued {
        metrics::counter!(names::SIGNATURES, "kind" => *kind).increment(1);
    }
    let unremarkable = decision == Decision::Allowed && matches!(code, Code::Ok | Code::Cancelled);
    if rule.audited == Audited::Failures && unremarkable && notes.failed.is_empty() {
        return;
    }
    if code != Code::Ok && !gate.strangers.has_room_for(&caller) {
        return;
    }
    gate.audit.record(CallRecord {
        time: gate.clock.now(),
        caller,
        method: rule.path,
        notes,
        decision,
        code,
        message,
        took,
    });
}

/// A response body that reports the status in its trailers.
struct Watched {
    body: Body,
    report: Report,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some((code, message)) = frame.trailers_ref().and_then(outcome) {
                    self.report.send(code, message);
                }
            }
            Poll::Ready(Some(Err(status))) => {
                let (code, message) = (status.code(), status.message().to_owned());
                self.report.send(code, message);
            }
            Poll::Ready(None) | Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A request body of bounded size.
struct Bounded {
    body: Body,
    left: usize,
    most: usize,
}

impl HttpBody for Bounded {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            let length = frame.data_ref().map_or(0, Bytes::len);
            match self.left.checked_sub(length) {
                Some(left) => self.left = left,
                None => {
                    let text = format!("the request is larger than {} bytes", self.most);
                    return Poll::Ready(Some(Err(Status::resource_exhausted(text))));
                }
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn outcome(headers: &HeaderMap) -> Option<(Code, String)> {
    Status::from_header_map(headers).map(|status| (status.code(), status.message().to_owned()))
}

/// `grpc-timeout`: at most eight digits and a unit.
fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

/// The code's name as the gRPC documents write it.
pub(crate) fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}

/// Collects services, each behind the gate.
pub struct Services {
    gate: Arc<Gate>,
    routes: RoutesBuilder,
    names: HashSet<&'static str>,
}

impl Services {
    /// None yet.
    pub fn new(gate: Arc<Gate>) -> Self {
        Self { gate, routes: RoutesBuilder::default(), names: HashSet::new() }
    }

    /// Adds one.
    #[must_use]
    pub fn with<S>(mut self, service: S) -> Self
    where
        S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>
            + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send + 'static,
    {
        self.names.insert(S::NAME);
        self.routes.add_service(Guarded { inner: service, gate: self.gate.clone() });
        self
    }

    /// What a listener serves.
    ///
    /// # Errors
    /// A method of one of the services has no row in the permission table.
    pub fn routes(self) -> Result<Routes, Incomplete> {
        table::check(self.names)?;
        let nowhere = |uri: http::Uri| async move { unknown(uri.path(), false).into_http::<Body>() };
        Ok(Routes::from(self.routes.routes().into_axum_router().fallback(nowhere)).prepare())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_refused_calls_does_not_flood_the_audit_log() {
        let strangers = Strangers::new(10);
        let caller = |origin, right| Caller { request_id: 1, origin, right };
        let from = |address: &str| Origin::Remote { address: address.parse().unwrap(), id: None };
        let lines = |caller: &Caller| (0..100).filter(|_| strangers.has_room_for(caller)).count();
        assert_eq!(lines(&caller(from("10.0.0.1:1"), Right::Any)), 10);
        assert_eq!(lines(&caller(from("10.0.0.1:2"), Right::Any)), 0, "the port makes no difference");
        assert_eq!(lines(&caller(from("10.0.0.2:1"), Right::Any)), 10);
        // Those with a right, and those on this machine, are never left out.
        assert_eq!(lines(&caller(from("10.0.0.1:1"), Right::Admin)), 100);
        let local = Origin::Local { pid: 1, uid: 0, gid: 0, path: None };
        assert_eq!(lines(&caller(local, Right::Any)), 100);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(lines(&caller(from("10.0.0.1:1"), Right::Any)), 10);
    }

    #[test]
    fn timeouts() {
        let parse = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().unwrap());
            timeout(&headers)
        };
        assert_eq!(parse("30S"), Some(Duration::from_secs(30)));
        assert_eq!(parse("250m"), Some(Duration::from_millis(250)));
        assert_eq!(parse("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for bad in ["", "S", "1", "1x", "123456789S", "-1S", "1 S"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
