//! Reference documents are what the code says.

fn compare(name: &str, expected: &str) {
    let path = format!("{}/../docs/reference/{name}", env!("CARGO_MANIFEST_DIR"));
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == expected,
        "docs/reference/{name} differs: write it again with `bonafide-agent reference`"
    );
}

#[test]
fn configuration() {
    compare("configuration-agent.md", &bonafide_agent::config::reference());
}

#[test]
fn metrics() {
    compare("metrics-agent.md", &bonafide_agent::metrics::reference());
}
