//! What the agent counts.
//!
//! The table is the contract; `docs/reference/metrics-agent.md` is written from it and a test compares. Each number is
//! recorded by one function here, so that a name or a label cannot differ from place to place.

use std::time::Duration;

use bonafide_identity::Timestamp;
use bonafide_runtime::listener::LISTENER_METRICS;
use bonafide_runtime::telemetry::{MetricDoc, MetricKind, RUNTIME_METRICS, Stability, describe, markdown};

use crate::server_client::ServerError;

const fn doc(
    name: &'static str,
    kind: MetricKind,
    unit: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> MetricDoc {
    MetricDoc { name, kind, unit, labels, help, stability: Stability::Stable }
}

/// The metrics of the agent.
pub const AGENT_METRICS: &[MetricDoc] = &[
    doc(
        WORKLOAD_CALLS,
        MetricKind::Counter,
        "",
        &["method", "code"],
        "Calls that ended, by gRPC code: of the Workload API, and with `delegated.` or `broker.` before the method of the \
         Delegated Identity and of the Broker API. A stream that its client closed ends with OK.",
    ),
    doc(WORKLOAD_STREAMS, MetricKind::Gauge, "", &["method"], "Open streams, by method as above."),
    doc(
        WORKLOAD_UPDATES,
        MetricKind::Counter,
        "",
        &["method"],
        "Messages that were pushed on streams, the first of each included.",
    ),
    doc(
        WORKLOAD_ATTESTATIONS,
        MetricKind::Counter,
        "",
        &["result"],
        "Attestations of callers: `ok`, or `failed` when no attestor could look or the caller did not last.",
    ),
    doc(
        WORKLOAD_ATTESTATION_SECONDS,
        MetricKind::Histogram,
        "seconds",
        &[],
        "How long it took to attest a caller.",
    ),
    doc(
        KUBELET_REQUESTS,
        MetricKind::Counter,
        "",
        &["api", "result"],
        "Questions to the kubelet, by where it was asked: `pods` (its HTTP port), `pods_api` or `pod_resources`, and `ok` or `failed`. \
         Callers who ask at the same time share one.",
    ),
    doc(
        GPU_WITHHELD,
        MetricKind::Counter,
        "",
        &["reason"],
        "Attestations that gave no `gpu` selectors because allocations were not certain: `pod` (the caller's pod is not known), \
         `kubelet` (allocations cannot be read), `devices` (they make no sense), `host` (the drivers of the machine do not answer) or `unsteady` (the pod changed at each look).",
    ),
    doc(ENTRIES, MetricKind::Gauge, "", &[], "Entries that the agent is entitled to."),
    doc(SVIDS, MetricKind::Gauge, "", &["kind"], "SVIDs that are kept, by kind: `x509`, `jwt` or `wit`."),
    doc(
        SVIDS_SIGNED,
        MetricKind::Counter,
        "",
        &["kind", "result"],
        "Requests for an SVID: `ok`, or `failed` when the server was away or refused.",
    ),
    doc(
        NEXT_EXPIRY,
        MetricKind::Gauge,
        "seconds",
        &[],
        "When the first of the kept X.509-SVIDs ends, as Unix time; 0 without any.",
    ),
    doc(
        GPU_EVIDENCE,
        MetricKind::Counter,
        "",
        &["result"],
        "Attempts to show evidence of GPUs: `ok`, `refused` by the server, `not_collected`, or `no_challenge`.",
    ),
    doc(
        SYNCS,
        MetricKind::Counter,
        "",
        &["result"],
        "Passes of the synchronisation with the server: `ok` or `failed`.",
    ),
    doc(SYNC_SECONDS, MetricKind::Histogram, "seconds", &[], "How long a pass took."),
    doc(
        LAST_SYNC,
        MetricKind::Gauge,
        "seconds",
        &[],
        "When the last pass succeeded, as Unix time; 0 before the first.",
    ),
    doc(
        SERVER_CALLS,
        MetricKind::Counter,
        "",
        &["rpc", "result"],
        "Operations at the server: `ok`, or how they failed (`unreachable`, `untrusted`, `certificate_refused`, `error`, \
         `timeout`, `malformed`, `attestor`).",
    ),
    doc(
        SERVER_CALL_SECONDS,
        MetricKind::Histogram,
        "seconds",
        &["rpc"],
        "How long operations at the server took.",
    ),
    doc(OWN_EXPIRY, MetricKind::Gauge, "seconds", &[], "When the agent's own SVID ends, as Unix time."),
    doc(
        OWN_RENEWALS,
        MetricKind::Counter,
        "",
        &["result"],
        "Renewals of the agent's own SVID, attestations included: `ok` or `failed`.",
    ),
];

const WORKLOAD_CALLS: &str = "bonafide_agent_workload_api_calls_total";
const WORKLOAD_STREAMS: &str = "bonafide_agent_workload_api_streams";
const WORKLOAD_UPDATES: &str = "bonafide_agent_workload_api_updates_total";
const WORKLOAD_ATTESTATIONS: &str = "bonafide_agent_workload_attestations_total";
const WORKLOAD_ATTESTATION_SECONDS: &str = "bonafide_agent_workload_attestation_seconds";
const KUBELET_REQUESTS: &str = "bonafide_agent_kubelet_requests_total";
const GPU_WITHHELD: &str = "bonafide_agent_gpu_withheld_total";
const ENTRIES: &str = "bonafide_agent_entries";
const SVIDS: &str = "bonafide_agent_svids";
const SVIDS_SIGNED: &str = "bonafide_agent_svids_signed_total";
const NEXT_EXPIRY: &str = "bonafide_agent_next_svid_expiry_timestamp_seconds";
const GPU_EVIDENCE: &str = "bonafide_agent_gpu_evidence_total";
const SYNCS: &str = "bonafide_agent_syncs_total";
const SYNC_SECONDS: &str = "bonafide_agent_sync_seconds";
const LAST_SYNC: &str = "bonafide_agent_last_sync_timestamp_seconds";
const SERVER_CALLS: &str = "bonafide_agent_server_calls_total";
const SERVER_CALL_SECONDS: &str = "bonafide_agent_server_call_seconds";
const OWN_EXPIRY: &str = "bonafide_agent_own_svid_expiry_timestamp_seconds";
const OWN_RENEWALS: &str = "bonafide_agent_own_svid_renewals_total";

/// Hands the descriptions to the recorder.
pub fn describe_all() {
    describe(AGENT_METRICS);
    describe(LISTENER_METRICS);
}

/// The reference document of the metrics.
#[must_use]
pub fn reference() -> String {
    format!(
        "# Metrics of the agent\n\n<!-- Generated by `bonafide-agent reference metrics`; a test compares. -->\n\n\
         Served as Prometheus text on `/metrics` of `health_address`.\n\n{}",
        markdown(&[AGENT_METRICS, LISTENER_METRICS, RUNTIME_METRICS]),
    )
}

pub(crate) fn workload_called(method: &'static str, code: tonic::Code) {
    metrics::counter!(WORKLOAD_CALLS, "method" => method, "code" => format!("{code:?}")).increment(1);
}

pub(crate) fn workload_stream(method: &'static str, change: f64) {
    metrics::gauge!(WORKLOAD_STREAMS, "method" => method).increment(change);
}

pub(crate) fn workload_updated(method: &'static str) {
    metrics::counter!(WORKLOAD_UPDATES, "method" => method).increment(1);
}

pub(crate) fn workload_attested(result: &'static str, took: Duration) {
    metrics::counter!(WORKLOAD_ATTESTATIONS, "result" => result).increment(1);
    metrics::histogram!(WORKLOAD_ATTESTATION_SECONDS).record(took.as_secs_f64());
}

pub(crate) fn kubelet_asked(api: &'static str, ok: bool) {
    metrics::counter!(KUBELET_REQUESTS, "api" => api, "result" => if ok { "ok" } else { "failed" })
        .increment(1);
}

pub(crate) fn gpu_withheld(reason: &'static str) {
    metrics::counter!(GPU_WITHHELD, "reason" => reason).increment(1);
}

pub(crate) fn entries(count: usize) {
    metrics::gauge!(ENTRIES).set(count as f64);
}

pub(crate) fn svids(kind: &'static str, count: usize) {
    metrics::gauge!(SVIDS, "kind" => kind).set(count as f64);
}

pub(crate) fn svid_signed(kind: &'static str, ok: bool) {
    let result = if ok { "ok" } else { "failed" };
    metrics::counter!(SVIDS_SIGNED, "kind" => kind, "result" => result).increment(1);
}

pub(crate) fn next_expiry(at: Option<Timestamp>) {
    metrics::gauge!(NEXT_EXPIRY).set(at.map_or(0.0, seconds));
}

pub(crate) fn synced(ok: Option<Timestamp>, took: Duration) {
    metrics::counter!(SYNCS, "result" => if ok.is_some() { "ok" } else { "failed" }).increment(1);
    metrics::histogram!(SYNC_SECONDS).record(took.as_secs_f64());
    if let Some(now) = ok {
        metrics::gauge!(LAST_SYNC).set(seconds(now));
    }
}

pub(crate) fn server_called(rpc: &'static str, error: Option<&ServerError>, took: Duration) {
    let result = error.map_or("ok", ServerError::outcome);
    metrics::counter!(SERVER_CALLS, "rpc" => rpc, "result" => result).increment(1);
    metrics::histogram!(SERVER_CALL_SECONDS, "rpc" => rpc).record(took.as_secs_f64());
}

pub(crate) fn own_svid(not_after: Timestamp) {
    metrics::gauge!(OWN_EXPIRY).set(seconds(not_after));
}

pub(crate) fn gpu_evidence(result: &'static str) {
    metrics::counter!(GPU_EVIDENCE, "result" => result).increment(1);
}

pub(crate) fn own_svid_renewed(ok: bool) {
    metrics::counter!(OWN_RENEWALS, "result" => if ok { "ok" } else { "failed" }).increment(1);
}

fn seconds(at: Timestamp) -> f64 {
    at.unix_millis() as f64 / 1000.0
}
