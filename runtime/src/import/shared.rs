//! What the tables of both daemons need.

use std::net::IpAddr;

use super::Import;

/// An address as it stands before `:port`; `None` for a name other than `localhost`.
pub fn host(text: &str) -> Option<String> {
    let text = text.trim_matches(['[', ']']);
    if text.eq_ignore_ascii_case("localhost") {
        return Some("127.0.0.1".to_owned());
    }
    match text.parse::<IpAddr>().ok()? {
        IpAddr::V4(address) => Some(address.to_string()),
        IpAddr::V6(address) => Some(format!("[{address}]")),
    }
}

/// SPIRE's name of a log level in ours.
pub fn log_level(text: &str) -> String {
    let level = text.to_ascii_lowercase();
    if level == "warning" { "warn".to_owned() } else { level }
}

/// SPIRE has an address for health checks and another for metrics; here one serves both, under `key`.
pub fn health(import: &mut Import<'_>, key: &str) {
    let checks = import.bool("health_checks.listener_enabled").unwrap_or(false);
    let metrics = import.integer("telemetry.Prometheus.port").filter(|port| *port != 0);
    let place = |import: &mut Import<'_>, name: &str, port: i64, from: &str| {
        let name = import.text(name).unwrap_or_else(|| "localhost".to_owned());
        match host(&name) {
            Some(host) => {
                let address = format!("{host}:{port}");
                import.set(key, address.clone(), from, None);
                Some(address)
            }
            None => {
                import.left(from, &format!("{name:?} is a name: write its address into {key}"));
                None
            }
        }
    };
    if !checks {
        let idle = ["bind_address", "bind_port", "ready_path", "live_path"];
        for setting in idle.map(|name| format!("health_checks.{name}")) {
            if import.has(&setting) {
                import.moot(&setting, "it says nothing without listener_enabled");
            }
        }
    }
    if metrics.is_none() && import.has("telemetry.Prometheus.host") {
        import.moot("telemetry.Prometheus.host", "it says nothing without a port");
    }
    let mut served = None;
    if checks {
        let port = import.integer("health_checks.bind_port").unwrap_or(80);
        served = place(import, "health_checks.bind_address", port, "health_checks.bind_port");
        for (setting, path) in [("health_checks.ready_path", "/ready"), ("health_checks.live_path", "/live")]
        {
            if import.text(setting).is_some_and(|text| text != path) {
                import.left(setting, &format!("the path is always {path}: change the probe"));
            }
        }
    }
    if let Some(port) = metrics {
        let from = "telemetry.Prometheus.port";
        let name = import.text("telemetry.Prometheus.host").unwrap_or_else(|| "localhost".to_owned());
        let why = "metrics have other names here, and lie under /metrics: see the reference of metrics for dashboards";
        match served {
            None => {
                if place(import, "telemetry.Prometheus.host", port, from).is_some() {
                    import.note(from, why);
                }
            }
            Some(address) if host(&name).map(|host| format!("{host}:{port}")).as_ref() == Some(&address) => {
                import.note(from, why);
            }
            Some(address) => {
                import.left(
                    from,
                    &format!("one address serves health and metrics: scrape {address}/metrics; {why}"),
                );
            }
        }
    }
}
