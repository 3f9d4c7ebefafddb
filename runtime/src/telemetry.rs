//! Logs and metrics.
//!
//! Log events go through one filter whose level changes at run time (the Logger API). Metrics go through the
//! `metrics` facade into one Prometheus recorder; each component describes what it counts in a table of
//! [`MetricDoc`], and the reference in the documentation is tested against those tables.

mod logging;
mod metric;

pub use logging::{
    FATAL, LogConfig, LogFormat, LogHandle, LogLevel, LoggingError, PANIC, init_logging, reopen_on_signal,
};
pub use metric::{
    MetricDoc, MetricKind, MetricsHandle, RUNTIME_METRICS, Stability, describe, markdown, metrics,
};
