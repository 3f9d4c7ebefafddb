//! The reference pages are what the code says.

use std::path::Path;

fn check(name: &str, expected: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference").join(name);
    if std::env::var_os("BONAFIDE_BLESS").is_some() {
        std::fs::write(&path, expected).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == expected, "{} is out of date: run the tests with BONAFIDE_BLESS=1", path.display());
}

#[test]
fn configuration() {
    check("configuration-server.md", &bonafide_server::config::reference::markdown());
}

#[test]
fn metrics() {
    check("metrics-server.md", &bonafide_server::status::markdown());
}
