//! The configuration files of server and agent.
//!
//! Laws: what was accepted is accepted, with the same meaning, below a comment; with an unknown key it is refused, and the
//! refusal names the line; each mistake that is reported lies within the text.

use std::path::Path;

use bonafide_agent::config::Config as AgentConfig;
use bonafide_runtime::config::{ByteSize, ConfigError, HumanDuration, Problem};
use bonafide_server::config::Config as ServerConfig;

/// Whether the text configures a server or an agent.
pub fn check(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    // A byte order mark means nothing, but only at the beginning.
    let text = text.trim_start_matches('\u{feff}');
    units(text);
    let path = Path::new("config.toml");
    let server = reader(text, |text| ServerConfig::parse(text, path).map(|config| format!("{config:?}")));
    let agent = reader(text, |text| AgentConfig::parse(path, text).map(|config| format!("{config:?}")));
    server || agent
}

fn reader(text: &str, read: impl Fn(&str) -> Result<String, ConfigError>) -> bool {
    match read(text) {
        Ok(meaning) => {
            assert_eq!(read(&format!("# comment\n{text}")).expect("comments mean nothing"), meaning);
            let refused = problems(read(&format!("not_a_key = 1\n{text}")));
            assert!(
                refused.iter().any(|problem| problem.key == "not_a_key" && problem.line == Some(1)),
                "an unknown key is not named: {refused:?}"
            );
            true
        }
        refused => {
            let problems = problems(refused);
            assert!(!problems.is_empty(), "refused for no reason");
            let lines = text.matches('\n').count() + 1;
            for Problem { line, message, .. } in problems {
                assert!(line.is_none_or(|line| (1..=lines).contains(&line)), "line {line:?} of {lines}");
                assert!(!message.is_empty());
            }
            false
        }
    }
}

fn problems(result: Result<String, ConfigError>) -> Vec<Problem> {
    match result {
        Err(ConfigError::Invalid { problems, .. }) => problems,
        Err(ConfigError::Read { .. }) => unreachable!("no file is read"),
        Ok(meaning) => panic!("accepted: {meaning}"),
    }
}

fn units(text: &str) {
    if let Ok(duration) = text.parse::<HumanDuration>() {
        assert_eq!(duration.to_string().parse(), Ok(duration));
    }
    if let Ok(size) = text.parse::<ByteSize>() {
        assert_eq!(size.to_string().parse(), Ok(size));
    }
}
