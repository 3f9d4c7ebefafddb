//! The paths, types and directions of all calls.

use std::collections::BTreeMap;
use std::fs;

use serde_json::{Value, json};

use crate::vectors::{folder, in_part, pool};

/// All methods that others know in the form of `methods.json`, by path.
fn ours() -> BTreeMap<String, Value> {
    pool()
        .services()
        .filter(|service| {
            !service.package_name().starts_with("bonafide.") && !in_part(service.package_name())
        })
        .flat_map(|service| service.methods().collect::<Vec<_>>())
        .map(|method| {
            let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
            let facts = json!({
                "path": path,
                "input": method.input().full_name(),
                "output": method.output().full_name(),
                "client_stream": method.is_client_streaming(),
                "server_stream": method.is_server_streaming(),
            });
            (path, facts)
        })
        .collect()
}

#[test]
fn methods_are_those_that_others_call() {
    let text = fs::read_to_string(folder().join("methods.json")).expect("the list is part of the crate");
    let theirs: Vec<Value> = serde_json::from_str(&text).expect("the list is a JSON array");
    let theirs: BTreeMap<String, Value> = theirs
        .into_iter()
        .map(|method| (method["path"].as_str().expect("a method has a path").to_owned(), method))
        .collect();
    assert_eq!(ours(), theirs);
}

#[test]
fn no_method_is_missing() {
    let ours = ours();
    let count = |prefix: &str| ours.keys().filter(|path| path.starts_with(prefix)).count();
    assert_eq!(count("/spire.api.server."), 62);
    assert_eq!(count("/spire.api.agent.") + count("/spire.agent.debug.v1.Debug/"), 8);
    assert_eq!(count("/SpiffeWorkloadAPI/"), 7);
    assert_eq!(count("/spiffe.broker.API/"), 4);
    assert_eq!(count("/grpc.health.v1.Health/"), 3);
    assert_eq!(ours.len(), 62 + 8 + 7 + 4 + 3);
}

/// The descriptors say what reflection shows; what is called is a literal in the generated client and server.
#[test]
fn generated_code_uses_these_paths() {
    let mut code = String::new();
    for entry in fs::read_dir(env!("OUT_DIR")).expect("the generated code is there") {
        let path = entry.expect("the folder can be listed").path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            code += &fs::read_to_string(path).expect("generated code is text");
        }
    }
    for path in ours().keys() {
        let uses = code.matches(&format!("\"{path}\"")).count();
        assert_eq!(uses, 2, "{path}: once in the client, once in the server");
    }
}
