//! What the server shows of itself: metrics and readiness.
//!
//! Each metric has a row in [`METRICS`]; the page `docs/reference/metrics-server.md` is made from these rows and a test
//! compares them. Counters are written where things happen; gauges of the state are read when somebody looks
//! ([`observe`]), so they cost nothing otherwise and cannot drift.

use bonafide_identity::{AuthorityKind, EntryIndex, Timestamp};
use bonafide_runtime::listener::{ConnectionRegistry, LISTENER_METRICS};
use bonafide_runtime::telemetry::{MetricDoc, MetricKind, RUNTIME_METRICS, Stability};

use crate::authority::Authorities;
use crate::store::Store;

/// The names, for those who count.
pub mod names {
    /// Finished calls.
    pub const RPCS: &str = "bonafide_server_rpcs_total";
    /// How long calls took.
    pub const RPC_SECONDS: &str = "bonafide_server_rpc_seconds";
    /// SVIDs signed.
    pub const SIGNATURES: &str = "bonafide_server_signatures_total";
    /// Lines written to the audit log.
    pub const AUDIT_LINES: &str = "bonafide_server_audit_lines_total";
    /// Lines of the audit log that were lost.
    pub const AUDIT_LOST: &str = "bonafide_server_audit_lines_lost_total";
    /// What was signed and is missing in the inventory.
    pub const UNRECORDED: &str = "bonafide_server_issuance_unrecorded_total";
    /// Attestations by type and result.
    pub const ATTESTATIONS: &str = "bonafide_server_attestations_total";
    /// Judgements of evidence of GPUs by result.
    pub const GPU_EVIDENCE: &str = "bonafide_server_gpu_evidence_total";
    /// Registration entries.
    pub const ENTRIES: &str = "bonafide_server_entries";
    /// Attested agents.
    pub const AGENTS: &str = "bonafide_server_agents";
    /// Trust bundles.
    pub const BUNDLES: &str = "bonafide_server_bundles";
    /// Position in the change log.
    pub const EPOCH: &str = "bonafide_server_store_epoch";
    /// How long the store took to make a group of writes durable.
    pub const STORE_COMMIT_SECONDS: &str = "bonafide_server_store_commit_seconds";
    /// Reads of the database.
    pub const STORE_READS: &str = "bonafide_server_store_reads_total";
    /// Writes to the store.
    pub const STORE_WRITES: &str = "bonafide_server_store_writes_total";
    /// For how long the shared database has not been heard of.
    pub const STORE_SILENCE: &str = "bonafide_server_store_silence_seconds";
    /// End of an authority.
    pub const AUTHORITY_NOT_AFTER: &str = "bonafide_server_authority_not_after_seconds";
    /// Calls to the upstream authority.
    pub const UPSTREAM_CALLS: &str = "bonafide_server_upstream_calls_total";
    /// When the upstream authority last said what it publishes.
    pub const UPSTREAM_SEEN: &str = "bonafide_server_upstream_seen_seconds";
    /// Connections that the server closed because the peer lost its standing.
    pub const CONNECTIONS_CLOSED: &str = "bonafide_server_connections_closed_total";
    /// Open connections.
    pub const CONNECTIONS: &str = "bonafide_server_connections";
    /// Fetches of bundles of other trust domains.
    pub const FEDERATION_FETCHES: &str = "bonafide_server_federation_fetches_total";
    /// When a bundle was last fetched.
    pub const FEDERATION_LAST_SUCCESS: &str = "bonafide_server_federation_last_success_seconds";
    /// Relationships that are polled.
    pub const FEDERATION_RELATIONSHIPS: &str = "bonafide_server_federation_relationships";
    /// Bundles written to a place outside.
    pub const BUNDLE_PUBLICATIONS: &str = "bonafide_server_bundle_publications_total";
    /// Requests to the bundle endpoint.
    pub const BUNDLE_ENDPOINT_REQUESTS: &str = "bonafide_server_bundle_endpoint_requests_total";
    /// Requests that wait at the bundle endpoint.
    pub const BUNDLE_ENDPOINT_WAITING: &str = "bonafide_server_bundle_endpoint_waiting";
    /// When the bundle endpoint's certificate ends, where it comes by ACME.
    pub const BUNDLE_ENDPOINT_CERTIFICATE_END: &str =
        "bonafide_server_bundle_endpoint_certificate_end_seconds";
}

const fn doc(
    name: &'static str,
    kind: MetricKind,
    unit: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> MetricDoc {
    MetricDoc { name, kind, unit, labels, help, stability: Stability::Stable }
}

/// All metrics of the server's own.
pub const METRICS: &[MetricDoc] = &[
    doc(
        names::RPCS,
        MetricKind::Counter,
        "",
        &["method", "code"],
        "Finished calls, also those that were refused.",
    ),
    doc(
        names::RPC_SECONDS,
        MetricKind::Histogram,
        "seconds",
        &["method"],
        "How long calls took, streams included.",
    ),
    doc(
        names::SIGNATURES,
        MetricKind::Counter,
        "",
        &["kind"],
        "What was signed: `x509`, `jwt`, `wit`, `agent` or `ca`.",
    ),
    doc(names::AUDIT_LINES, MetricKind::Counter, "", &[], "Lines written to the audit log."),
    doc(
        names::AUDIT_LOST,
        MetricKind::Counter,
        "",
        &[],
        "Lines that the audit log could not take. Alert on any.",
    ),
    doc(
        names::UNRECORDED,
        MetricKind::Counter,
        "",
        &[],
        "SVIDs that were signed while the store took no writes, and so are missing in its inventory.",
    ),
    doc(
        names::ATTESTATIONS,
        MetricKind::Counter,
        "",
        &["type", "code"],
        "Node attestations by attestor and result.",
    ),
    doc(
        names::GPU_EVIDENCE,
        MetricKind::Counter,
        "",
        &["result"],
        "Judgements of evidence of GPUs: `ok`, `moved` (good, and another node showed one of the devices shortly before: alert on it), or \
         why it was refused: `malformed`, `chain`, `certificate`, `nonce`, `signature`, `firmware_id`, `chip`, `no_reference`, \
         `measurement`, `conflict`, `empty`, `too_many`, `duplicate`, `mode`, `topology`, `challenge`.",
    ),
    doc(names::ENTRIES, MetricKind::Gauge, "", &[], "Registration entries."),
    doc(names::AGENTS, MetricKind::Gauge, "", &[], "Attested agents, banned ones included."),
    doc(names::BUNDLES, MetricKind::Gauge, "", &[], "Trust bundles, this trust domain's own included."),
    doc(names::EPOCH, MetricKind::Gauge, "", &[], "Position in the change log: grows with each change."),
    doc(
        names::STORE_COMMIT_SECONDS,
        MetricKind::Histogram,
        "seconds",
        &[],
        "How long the store took to make a group of writes durable.",
    ),
    doc(
        names::STORE_READS,
        MetricKind::Counter,
        "",
        &[],
        "Lookups and scans in the database, by writes, backups and the start. Calls that only read are answered from memory.",
    ),
    doc(
        names::STORE_WRITES,
        MetricKind::Counter,
        "",
        &["result"],
        "Writes to the store: `ok`, or `failed` for want of space or by an error of the disk.",
    ),
    doc(
        names::STORE_SILENCE,
        MetricKind::Gauge,
        "seconds",
        &[],
        "For how long the database of a group of servers has not been heard of; absent with any other driver. Alert beyond \
         ten seconds: at `store.postgres.max_cut_off` the server stops to sign.",
    ),
    doc(
        names::AUTHORITY_NOT_AFTER,
        MetricKind::Gauge,
        "seconds",
        &["kind"],
        "When the active authority ends, as Unix time. Alert well before.",
    ),
    doc(
        names::UPSTREAM_CALLS,
        MetricKind::Counter,
        "",
        &["call", "result"],
        "Calls to the upstream authority: `sign`, `bundle` or `publish`, and whether they were `ok` or `failed`.",
    ),
    doc(
        names::UPSTREAM_SEEN,
        MetricKind::Gauge,
        "seconds",
        &[],
        "When the upstream authority last said what it publishes, as Unix time. Alert when it stands still for minutes.",
    ),
    doc(
        names::CONNECTIONS_CLOSED,
        MetricKind::Counter,
        "",
        &["reason"],
        "Connections the server closed: `agent` (banned or evicted) or `trust` (its chain no longer verifies).",
    ),
    doc(
        names::CONNECTIONS,
        MetricKind::Gauge,
        "",
        &[],
        "Open connections, those on the administration socket included.",
    ),
    doc(
        names::FEDERATION_FETCHES,
        MetricKind::Counter,
        "",
        &["trust_domain", "result"],
        "Fetches of the bundle of another trust domain: `changed`, `unchanged` or `failed`.",
    ),
    doc(
        names::FEDERATION_LAST_SUCCESS,
        MetricKind::Gauge,
        "seconds",
        &["trust_domain"],
        "When the bundle of another trust domain was last fetched, as Unix time; NaN once the relationship has ended. Alert when it is \
         long ago.",
    ),
    doc(
        names::FEDERATION_RELATIONSHIPS,
        MetricKind::Gauge,
        "",
        &[],
        "Federation relationships that are polled, of the configuration and of the store.",
    ),
    doc(
        names::BUNDLE_PUBLICATIONS,
        MetricKind::Counter,
        "",
        &["publisher", "result"],
        "Times that the bundle was written to the place of a publisher: `published` or `failed`.",
    ),
    doc(
        names::BUNDLE_ENDPOINT_REQUESTS,
        MetricKind::Counter,
        "",
        &["code"],
        "Requests to the bundle endpoint by HTTP status.",
    ),
    doc(
        names::BUNDLE_ENDPOINT_WAITING,
        MetricKind::Gauge,
        "",
        &[],
        "Requests that wait at the bundle endpoint for a change.",
    ),
    doc(
        names::BUNDLE_ENDPOINT_CERTIFICATE_END,
        MetricKind::Gauge,
        "seconds",
        &[],
        "Unix time at which the bundle endpoint's certificate ends; absent unless it is fetched by ACME.",
    ),
];

/// Reads the state into the gauges.
pub fn observe(store: &Store, authorities: &Authorities, connections: &ConnectionRegistry) {
    let state = store.state();
    if let Some(silence) = store.silence() {
        metrics::gauge!(names::STORE_SILENCE).set(silence.as_secs_f64());
    }
    metrics::gauge!(names::ENTRIES).set(state.with_entries(EntryIndex::len) as f64);
    metrics::gauge!(names::AGENTS).set(state.nodes().len() as f64);
    metrics::gauge!(names::BUNDLES).set(state.bundles().len() as f64);
    metrics::gauge!(names::EPOCH).set(state.epoch() as f64);
    metrics::gauge!(names::CONNECTIONS).set(connections.len() as f64);
    for (kind, label) in
        [(AuthorityKind::X509, "x509"), (AuthorityKind::Jwt, "jwt"), (AuthorityKind::Wit, "wit")]
    {
        if let Some(active) = authorities.slots(kind).active() {
            let not_after: Timestamp = active.not_after;
            metrics::gauge!(names::AUTHORITY_NOT_AFTER, "kind" => label).set(not_after.unix_seconds() as f64);
        }
    }
}

/// The tables that make up the server's reference.
pub fn tables() -> [&'static [MetricDoc]; 3] {
    [METRICS, LISTENER_METRICS, RUNTIME_METRICS]
}

/// The page `docs/reference/metrics-server.md`.
pub fn markdown() -> String {
    format!(
        "# Metrics of bonafide-server\n\n\
         <!-- Generated from the tables beside the code; run the server's tests with BONAFIDE_BLESS=1 to renew. -->\n\n\
         `/metrics` on `listen.health_address`, in Prometheus's text form. `/live` and `/ready` are beside it.\n\n{}",
        bonafide_runtime::telemetry::markdown(&tables())
    )
}
