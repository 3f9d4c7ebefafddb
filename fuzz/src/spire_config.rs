//! Configuration files of SPIRE, in HCL 1 and JSON, and what the importers of both daemons make of them.
//!
//! Laws: a mistake lies within the text; what was read is the same when it is written as JSON and read again; a file that
//! an importer wrote passes that daemon's own validation, whatever stands in its comments; the environment is
//! expanded without exceeding the bound.

use std::io;

use bonafide_agent::config::{Config as AgentConfig, import::TABLE as AGENT};
use bonafide_runtime::config::hcl::{self, Kind, Object, Value};
use bonafide_runtime::import::{Mistake, Translation, translate};
use bonafide_server::config::{Config as ServerConfig, import::TABLE as SERVER};

/// Whether the text is a document.
pub fn check(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    if let Some((expanded, _)) = hcl::expand_environment(text, |name| Some(format!("<{name}>"))) {
        assert!(expanded.len() <= hcl::MAX_BYTES);
    }
    let lines = text.matches('\n').count() + 1;
    let document = match hcl::parse(text) {
        Ok(document) => document,
        Err(error) => {
            assert!((1..=lines).contains(&error.place.line), "{error} in {lines} lines");
            return false;
        }
    };
    assert_eq!(hcl::parse(&json(&document)).as_ref(), Ok(&document), "written as JSON");
    let missing = |_: &std::path::Path| Err(io::Error::from(io::ErrorKind::NotFound));
    if let Some(translation) = outcome(translate(&SERVER, "server.conf", text, &missing), lines) {
        ServerConfig::parse(&translation.text, "server.toml".as_ref()).expect("the server's own validation");
    }
    if let Some(translation) = outcome(translate(&AGENT, "agent.conf", text, &missing), lines) {
        AgentConfig::parse("agent.toml".as_ref(), &translation.text).expect("the agent's own validation");
    }
    true
}

fn outcome(result: Result<Translation, Vec<Mistake>>, lines: usize) -> Option<Translation> {
    match result {
        Ok(translation) => {
            for remark in &translation.left {
                assert!(!remark.why.is_empty());
                let lead = remark.setting.split_whitespace().next().unwrap_or_default();
                assert!(translation.text.contains("Not carried over"));
                assert!(lead.contains(char::is_control) || translation.text.contains(lead), "{lead}");
            }
            Some(translation)
        }
        Err(mistakes) => {
            assert!(!mistakes.is_empty(), "refused for no reason");
            for mistake in mistakes {
                assert!(mistake.place.is_none_or(|place| (1..=lines).contains(&place.line)), "{mistake}");
            }
            None
        }
    }
}

fn json(object: &Object) -> String {
    let item = |item: &hcl::Item| format!("{}:{}", quoted(&item.key), value(&item.value));
    format!("{{{}}}", object.items.iter().map(item).collect::<Vec<_>>().join(","))
}

fn value(read: &Value) -> String {
    match &read.kind {
        Kind::Text(text) => quoted(text),
        Kind::Integer(number) => number.to_string(),
        Kind::Float(number) => format!("{number:?}"),
        Kind::Bool(truth) => truth.to_string(),
        Kind::List(values) => format!("[{}]", values.iter().map(value).collect::<Vec<_>>().join(",")),
        Kind::Object(object) => json(object),
    }
}

fn quoted(text: &str) -> String {
    serde_json::to_string(text).expect("text is JSON")
}
