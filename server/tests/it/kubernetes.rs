//! API servers for the tests: a double in this process, and a real one where there is a program of it.

pub(crate) mod double;
pub(crate) mod real;

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// A kubeconfig file for one cluster; JSON is YAML.
pub(crate) fn kubeconfig(folder: &Path, name: &str, cluster: &Value, user: &Value) -> PathBuf {
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{ "name": "c", "cluster": cluster }],
        "users": [{ "name": "c", "user": user }],
        "contexts": [{ "name": "c", "context": { "cluster": "c", "user": "c" } }],
    });
    let path = folder.join(name);
    std::fs::write(&path, config.to_string()).unwrap();
    path
}
