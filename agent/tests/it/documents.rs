//! Reference documents are what the code says.

fn compare(name: &str, expected: &str) {
    let path = format!("{}/../docs/reference/{name}", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("BONAFIDE_BLESS").is_some() {
        std::fs::write(&path, expected).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == expected,
        "docs/reference/{name} differs: run the test with BONAFIDE_BLESS=1, or use `bonafide-agent reference`"
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
