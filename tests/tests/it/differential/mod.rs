//! The same requests to this server and, once, to SPIRE: what differs is listed with its reason, and nothing else may.
//!
//! `recordings/spire-1.15.3.json` holds what a SPIRE server answered. `BONAFIDE_TEST_RECORD=<socket>,<address>` writes
//! it anew from a SPIRE server of trust domain `example.org` that was just set up, with rate limits off and an entry
//! cache that reloads each second; see `docs/testing.md`.

mod client;
mod fixtures;
mod mask;
mod shapes;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bonafide_identity::Timestamp;
use bonafide_tests::{Deployment, Settings};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use client::{Callers, Target};
use shapes::Shape;

/// An answer to one shape, as it is recorded.
#[derive(Debug, Serialize, Deserialize)]
struct Recorded {
    shape: String,
    answer: Value,
}

/// Shapes that may be answered differently, and why.
#[derive(Debug, Deserialize)]
struct Difference {
    /// Names of shapes; a star at the end stands for the rest of a name.
    shapes: Vec<String>,
    reason: String,
}

pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    Timestamp::from_unix_millis(i64::try_from(since.as_millis()).unwrap())
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/differential/recordings")
}

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(work)
}

/// Sends all shapes in order. `settle` is how long the server takes until what was written is what agents see.
async fn answers(target: &Target, settle: Duration) -> Vec<Recorded> {
    let callers = Callers::introduce(target).await;
    let mut known = BTreeMap::new();
    let mut recorded = Vec::new();
    let mut dirty = true;
    for shape in shapes::all() {
        let cached = shape.caller == client::Caller::Agent;
        if cached && dirty && !settle.is_zero() {
            tokio::time::sleep(settle).await;
            dirty = false;
        } else if !cached {
            dirty = true;
        }
        let messages: Vec<_> = shape.messages.iter().map(|message| filled(message, &known)).collect();
        let answer = callers.call(shape.caller, &shape.method, &messages).await;
        learn(&shape, &answer, &mut known);
        let mut answer = mask::mask(answer, now().unix_seconds());
        if shape.method.ends_with("AuthorizedEntries") {
            sort_entries(&mut answer);
        }
        recorded.push(Recorded { shape: shape.name, answer });
    }
    recorded
}

/// What an agent is entitled to is a set.
fn sort_entries(answer: &mut Value) {
    for response in answer["responses"].as_array_mut().into_iter().flatten() {
        if let Some(entries) = response["entries"].as_array_mut() {
            entries.sort_by_key(|entry| entry["id"].to_string());
        }
    }
}

/// Puts what was learned in the place of its names.
fn filled(message: &Value, known: &BTreeMap<String, String>) -> Value {
    match message {
        Value::String(text) => match text.strip_prefix("${").and_then(|text| text.strip_suffix('}')) {
            Some(name) => Value::from(known.get(name).map_or("nothing", String::as_str)),
            None => message.clone(),
        },
        Value::Array(list) => list.iter().map(|value| filled(value, known)).collect(),
        Value::Object(map) => {
            Value::Object(map.iter().map(|(key, value)| (key.clone(), filled(value, known))).collect())
        }
        other => other.clone(),
    }
}

fn learn(shape: &Shape, answer: &Value, known: &mut BTreeMap<String, String>) {
    let response = &answer["responses"][0];
    if let Some(token) = response["next_page_token"].as_str() {
        known.insert("token".to_owned(), token.to_owned());
    }
    for (kind, key) in [("X509", "x509"), ("JWT", "jwt")] {
        if shape.method.ends_with(&format!("Get{kind}AuthorityState")) {
            for slot in ["active", "prepared", "old"] {
                let found = response[slot]["authority_id"].as_str().unwrap_or("none");
                known.insert(format!("{key}.{slot}"), found.to_owned());
            }
        }
    }
}

#[test]
fn answers_are_those_of_spire() {
    if let Ok(target) = std::env::var("BONAFIDE_TEST_RECORD") {
        let (socket, address) = target.split_once(',').expect("socket,address");
        let target = Target { socket: socket.into(), address: address.to_owned() };
        let recorded = run(answers(&target, Duration::from_millis(2500)));
        let lines: Vec<_> = recorded.iter().map(|line| serde_json::to_string(line).unwrap()).collect();
        std::fs::create_dir_all(folder()).unwrap();
        std::fs::write(folder().join("spire-1.15.3.json"), lines.join("\n") + "\n").unwrap();
        return;
    }
    let settings = Settings {
        ca_ttl: "24h".to_owned(),
        x509_svid_ttl: "1h".to_owned(),
        agent_ttl: "1h".to_owned(),
        server_extra: "signing = 0\n".to_owned(),
        authority_extra: "disable_wit_svids = true\n".to_owned(),
        ..Settings::default()
    };
    let mut deployment = Deployment::prepare(settings).unwrap();
    deployment.start_server().unwrap();
    let target =
        Target { socket: deployment.server_socket(), address: format!("127.0.0.1:{}", deployment.port()) };
    let ours = run(answers(&target, Duration::ZERO));

    let text = std::fs::read_to_string(folder().join("spire-1.15.3.json")).unwrap();
    let theirs: BTreeMap<String, Value> = text
        .lines()
        .map(|line| serde_json::from_str::<Recorded>(line).unwrap())
        .map(|recorded| (recorded.shape, recorded.answer))
        .collect();
    let listed = std::fs::read_to_string(folder().join("differences.json")).unwrap();
    let listed: Vec<Difference> = serde_json::from_str(&listed).unwrap();

    let names: BTreeSet<&String> = ours.iter().map(|recorded| &recorded.shape).collect();
    assert_eq!(names, theirs.keys().collect(), "the recording is of other shapes");
    assert!(names.len() >= 500, "{} shapes", names.len());

    let mut used = vec![0; listed.len()];
    let mut unexplained = Vec::new();
    for Recorded { shape, answer } in &ours {
        if *answer == theirs[shape] {
            continue;
        }
        let reason = listed.iter().position(|difference| difference.shapes.iter().any(|p| covers(p, shape)));
        match reason {
            Some(at) => used[at] += 1,
            None => unexplained.push(format!("{shape}\n  spire: {}\n  ours:  {answer}", theirs[shape])),
        }
    }
    let stale: Vec<_> =
        listed.iter().zip(&used).filter(|(_, used)| **used == 0).map(|(listed, _)| &listed.reason).collect();
    eprintln!(
        "{} shapes, {} answered differently for {} reasons",
        names.len(),
        used.iter().sum::<usize>(),
        listed.len()
    );
    assert!(
        unexplained.is_empty(),
        "{} answers differ without a reason:\n{}",
        unexplained.len(),
        unexplained.join("\n")
    );
    assert!(stale.is_empty(), "listed, but not different: {stale:?}");
}

fn covers(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => pattern == name,
    }
}
