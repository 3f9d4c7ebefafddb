//! Metrics: one recorder, and tables that say what is counted.

use std::fmt::Write as _;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

use crate::listener::LISTENER_METRICS;
use crate::shutdown::Shutdown;

/// What kind of number a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// Only ever grows while the process lives.
    Counter,
    /// Goes up and down.
    Gauge,
    /// A distribution over fixed buckets.
    Histogram,
}

/// What a user of a metric may rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stability {
    /// Name, labels and meaning stay.
    Stable,
    /// May change with any release.
    Experimental,
}

/// The description of one metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetricDoc {
    /// The full name.
    pub name: &'static str,
    /// The kind.
    pub kind: MetricKind,
    /// The unit of its numbers, such as `seconds` or `bytes`; empty for plain counts.
    pub unit: &'static str,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// What it says.
    pub help: &'static str,
    /// What a user may rely on.
    pub stability: Stability,
}

/// The metrics of this crate.
pub const RUNTIME_METRICS: &[MetricDoc] = &[
    MetricDoc {
        name: "process_open_fds",
        kind: MetricKind::Gauge,
        unit: "",
        labels: &[],
        help: "File descriptors that the process holds.",
        stability: Stability::Stable,
    },
    MetricDoc {
        name: "process_max_fds",
        kind: MetricKind::Gauge,
        unit: "",
        labels: &[],
        help: "File descriptors that the process may hold.",
        stability: Stability::Stable,
    },
    MetricDoc {
        name: "process_resident_memory_bytes",
        kind: MetricKind::Gauge,
        unit: "bytes",
        labels: &[],
        help: "Physical memory that the process holds.",
        stability: Stability::Stable,
    },
    MetricDoc {
        name: "process_start_time_seconds",
        kind: MetricKind::Gauge,
        unit: "seconds",
        labels: &[],
        help: "When metrics began in this process, as Unix time.",
        stability: Stability::Stable,
    },
];

/// Reads the metrics of the process. Copies share them.
#[derive(Clone, Debug)]
pub struct MetricsHandle {
    prometheus: PrometheusHandle,
}

/// The metrics of the process; the first call begins to record.
///
/// When something else has installed a recorder for the `metrics` facade before, what is rendered here stays empty but
/// for the process's own numbers; no daemon of ours does that.
pub fn metrics() -> MetricsHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    let prometheus = HANDLE.get_or_init(|| {
        let builder = PrometheusBuilder::new();
        // Refused only when the list is empty.
        let builder = builder.set_buckets(&BUCKETS).unwrap_or_else(|_| PrometheusBuilder::new());
        let recorder = builder.build_recorder();
        let handle = recorder.handle();
        if metrics::set_global_recorder(recorder).is_err() {
            tracing::warn!("another metrics recorder is installed; ours records nothing");
        }
        describe(RUNTIME_METRICS);
        describe(LISTENER_METRICS);
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        metrics::gauge!("process_start_time_seconds").set(started.as_secs_f64());
        handle
    });
    MetricsHandle { prometheus: prometheus.clone() }
}

impl MetricsHandle {
    /// Everything in Prometheus's text form.
    pub fn render(&self) -> String {
        observe_process();
        self.prometheus.render()
    }

    /// Drains what histograms have buffered, every five seconds until the shutdown. Without it they grow from one
    /// rendering to the next.
    pub async fn upkeep(self, shutdown: Shutdown) {
        let mut tick = tokio::time::interval(Duration::from_secs(5));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.triggered() => return,
                _ = tick.tick() => self.prometheus.run_upkeep(),
            }
        }
    }
}

fn observe_process() {
    if let Ok(descriptors) = std::fs::read_dir("/proc/self/fd") {
        metrics::gauge!("process_open_fds").set(descriptors.count() as f64);
    }
    if let Some(limit) = rustix::process::getrlimit(rustix::process::Resource::Nofile).current {
        metrics::gauge!("process_max_fds").set(limit as f64);
    }
    let pages = std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|text| text.split_whitespace().nth(1)?.parse::<u64>().ok());
    if let Some(pages) = pages {
        let bytes = pages.saturating_mul(rustix::param::page_size() as u64);
        metrics::gauge!("process_resident_memory_bytes").set(bytes as f64);
    }
}

/// Gives the recorder the help texts of a component's table.
pub fn describe(table: &[MetricDoc]) {
    for doc in table {
        match doc.kind {
            MetricKind::Counter => metrics::describe_counter!(doc.name, doc.help),
            MetricKind::Gauge => metrics::describe_gauge!(doc.name, doc.help),
            MetricKind::Histogram => metrics::describe_histogram!(doc.name, doc.help),
        }
    }
}

/// The reference table in Markdown, sorted by name. A test compares it with the documentation.
pub fn markdown(tables: &[&[MetricDoc]]) -> String {
    let mut docs: Vec<_> = tables.iter().flat_map(|table| table.iter()).collect();
    docs.sort_by_key(|doc| doc.name);
    let mut text =
        String::from("| metric | kind | unit | labels | meaning | stability |\n|---|---|---|---|---|---|\n");
    for doc in docs {
        let kind = match doc.kind {
            MetricKind::Counter => "counter",
            MetricKind::Gauge => "gauge",
            MetricKind::Histogram => "histogram",
        };
        let stability = match doc.stability {
            Stability::Stable => "stable",
            Stability::Experimental => "experimental",
        };
        let labels: Vec<_> = doc.labels.iter().map(|label| format!("`{label}`")).collect();
        // Writing into a string cannot fail.
        let _ = writeln!(
            text,
            "| `{}` | {kind} | {} | {} | {} | {stability} |",
            doc.name,
            doc.unit,
            labels.join(", "),
            doc.help
        );
    }
    text
}

/// From half a millisecond to half a minute, in seconds: what our calls, store writes and signatures take.
const BUCKETS: [f64; 15] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_recorded_is_rendered_with_its_help() {
        const TABLE: &[MetricDoc] = &[MetricDoc {
            name: "bonafide_test_total",
            kind: MetricKind::Counter,
            unit: "",
            labels: &["outcome"],
            help: "Tests.",
            stability: Stability::Experimental,
        }];
        let handle = metrics();
        describe(TABLE);
        metrics::counter!("bonafide_test_total", "outcome" => "ok").increment(3);
        metrics::histogram!("bonafide_test_seconds").record(0.002);
        let text = metrics().render();
        assert!(text.contains("# HELP bonafide_test_total Tests."), "{text}");
        assert!(text.contains("bonafide_test_total{outcome=\"ok\"} 3"), "{text}");
        assert!(text.contains("bonafide_test_seconds_bucket{le=\"0.0025\"} 1"), "{text}");
        for doc in RUNTIME_METRICS {
            assert!(text.contains(&format!("# HELP {} ", doc.name)), "{} is missing: {text}", doc.name);
        }
        drop(handle);
    }

    #[test]
    fn the_table_is_sorted_and_complete() {
        let text = markdown(&[RUNTIME_METRICS]);
        let rows: Vec<_> = text.lines().skip(2).collect();
        assert_eq!(rows.len(), RUNTIME_METRICS.len());
        assert!(rows.is_sorted());
        assert_eq!(
            rows[0],
            "| `process_max_fds` | gauge |  |  | File descriptors that the process may hold. | stable |"
        );
    }
}
