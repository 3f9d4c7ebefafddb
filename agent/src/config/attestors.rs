//! The settings of the node attestors.

use bonafide_runtime::config::Problems;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};

use super::{HttpChallengeConfig, JoinTokenSource, NodeAttestorConfig, TokenSource, TokenUrl, raw};
use crate::node_attestor::oidc::is_fetchable;

pub(super) fn join_token(raw: raw::JoinToken, problems: &mut Problems<'_>) -> Option<NodeAttestorConfig> {
    Some(NodeAttestorConfig::JoinToken(match (raw.token, raw.token_file) {
        (Some(_), Some(_)) => {
            problems.push("node_attestor.join_token", "give either token or token_file, not both");
            return None;
        }
        (Some(token), None) => JoinTokenSource::Inline(token),
        (None, Some(file)) => JoinTokenSource::File(file),
        (None, None) => JoinTokenSource::None,
    }))
}

pub(super) fn x509pop(raw: raw::X509Pop, problems: &mut Problems<'_>) -> Option<NodeAttestorConfig> {
    let certificate = problems.required("node_attestor.x509pop.certificate_path", raw.certificate_path);
    let private_key = problems.required("node_attestor.x509pop.private_key_path", raw.private_key_path);
    Some(NodeAttestorConfig::X509Pop {
        certificate: certificate?,
        private_key: private_key?,
        intermediates: raw.intermediates_path,
    })
}

pub(super) fn sshpop(raw: raw::SshPop) -> NodeAttestorConfig {
    NodeAttestorConfig::SshPop {
        host_key: raw.host_key_path.unwrap_or_else(|| "/etc/ssh/ssh_host_rsa_key".into()),
        host_cert: raw.host_cert_path.unwrap_or_else(|| "/etc/ssh/ssh_host_rsa_key-cert.pub".into()),
    }
}

pub(super) fn http_challenge(
    raw: raw::HttpChallenge,
    problems: &mut Problems<'_>,
) -> Option<NodeAttestorConfig> {
    const KEY: &str = "node_attestor.http_challenge";
    let agentname = raw.agentname.unwrap_or_else(|| "default".to_owned());
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    let letter = agentname.as_bytes().first().is_some_and(u8::is_ascii_alphabetic);
    problems.check(
        letter && agentname.len() <= 32 && agentname.bytes().all(plain),
        format!("{KEY}.agentname"),
        "must be a letter and then at most 31 letters, digits and -",
    );
    problems.check(
        raw.hostname.as_deref() != Some("localhost"),
        format!("{KEY}.hostname"),
        "cannot be localhost: servers refuse it",
    );
    problems.check(raw.advertised_port != Some(0), format!("{KEY}.advertised_port"), "must be at least 1");
    Some(NodeAttestorConfig::HttpChallenge(HttpChallengeConfig {
        hostname: raw.hostname.filter(|name| !name.is_empty()),
        agentname,
        port: raw.port.unwrap_or(0),
        advertised_port: raw.advertised_port,
    }))
}

pub(super) fn oidc(raw: raw::Oidc, problems: &mut Problems<'_>) -> Option<NodeAttestorConfig> {
    const KEY: &str = "node_attestor.oidc";
    let source = match (raw.token_path, raw.token_url) {
        (Some(path), None) => {
            let unused = [
                ("method", raw.method.is_some()),
                ("headers", raw.headers.is_some()),
                ("response_field", raw.response_field.is_some()),
                ("ca_path", raw.ca_path.is_some()),
            ];
            for (name, given) in unused {
                problems.check(!given, format!("{KEY}.{name}"), "has no effect with token_path");
            }
            TokenSource::File(path)
        }
        (None, Some(url)) => {
            let fetchable = url.parse::<Uri>().ok().filter(is_fetchable);
            let url = fetchable.ok_or("must be an http or https URL without user and password");
            let url = problems.take(format!("{KEY}.token_url"), url);
            let method = match raw.method.as_deref() {
                None | Some("GET") => Some(Method::GET),
                Some("POST") => Some(Method::POST),
                Some(_) => {
                    problems.push(format!("{KEY}.method"), "must be GET or POST");
                    None
                }
            };
            let mut headers = HeaderMap::new();
            for (name, value) in raw.headers.unwrap_or_default() {
                match (name.parse::<HeaderName>(), HeaderValue::from_str(&value)) {
                    (Ok(name), Ok(mut value)) => {
                        value.set_sensitive(true);
                        headers.insert(name, value);
                    }
                    // The value may be a secret.
                    _ => problems.push(format!("{KEY}.headers"), format!("{name:?} is not a header")),
                }
            }
            TokenSource::Url(Box::new(TokenUrl {
                url: url?,
                method: method?,
                headers,
                field: raw.response_field,
                ca_path: raw.ca_path,
            }))
        }
        _ => {
            problems.push(KEY, "give one of token_path and token_url");
            return None;
        }
    };
    Some(NodeAttestorConfig::Oidc(source))
}

pub(super) fn k8s_psat(raw: raw::K8sPsat, problems: &mut Problems<'_>) -> Option<NodeAttestorConfig> {
    let cluster = problems.required("node_attestor.k8s_psat.cluster", raw.cluster)?;
    problems.check(!cluster.is_empty(), "node_attestor.k8s_psat.cluster", "must not be empty");
    let token_path = raw.token_path.unwrap_or_else(|| "/var/run/secrets/tokens/spire-agent".into());
    Some(NodeAttestorConfig::K8sPsat { cluster, token_path })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use bonafide_runtime::config::ConfigError;

    use super::super::{Config, NodeAttestorConfig, TokenSource};

    fn parse(table: &str) -> Result<NodeAttestorConfig, Vec<String>> {
        let text = format!(
            "trust_domain = \"example.org\"\nserver.address = \"a:1\"\nbootstrap.insecure = true\n[node_attestor.{table}"
        );
        match Config::parse(Path::new("agent.toml"), &text) {
            Ok(config) => Ok(config.node_attestor),
            Err(ConfigError::Invalid { problems, .. }) => {
                Err(problems.into_iter().map(|found| format!("{}: {}", found.key, found.message)).collect())
            }
            Err(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_attestor_takes_its_documented_defaults() {
        let Ok(NodeAttestorConfig::SshPop { host_key, host_cert }) = parse("sshpop]") else {
            panic!("sshpop")
        };
        assert_eq!(host_key, Path::new("/etc/ssh/ssh_host_rsa_key"));
        assert_eq!(host_cert, Path::new("/etc/ssh/ssh_host_rsa_key-cert.pub"));
        let Ok(NodeAttestorConfig::HttpChallenge(config)) = parse("http_challenge]") else {
            panic!("http_challenge")
        };
        assert_eq!((config.hostname, config.agentname.as_str(), config.port), (None, "default", 0));
        let url = "oidc]\ntoken_url = \"http://m/x\"\nheaders = { Metadata = \"true\" }\nresponse_field = \"access_token\"";
        let Ok(NodeAttestorConfig::Oidc(TokenSource::Url(source))) = parse(url) else { panic!("oidc") };
        assert_eq!((source.method.as_str(), source.headers["metadata"].to_str().unwrap()), ("GET", "true"));
        assert!(matches!(
            parse("oidc]\ntoken_path = \"/t\""),
            Ok(NodeAttestorConfig::Oidc(TokenSource::File(_)))
        ));
    }

    #[test]
    fn mistakes_are_named() {
        for (table, start) in [
            ("k8s_psat]", "node_attestor.k8s_psat.cluster: "),
            ("k8s_psat]\ncluster = \"\"", "node_attestor.k8s_psat.cluster: must not be empty"),
            ("oidc]", "node_attestor.oidc: give one of"),
            ("oidc]\ntoken_path = \"/t\"\ntoken_url = \"http://m\"", "node_attestor.oidc: give one of"),
            ("oidc]\ntoken_path = \"/t\"\nmethod = \"GET\"", "node_attestor.oidc.method: has no effect"),
            ("oidc]\ntoken_url = \"file:///t\"", "node_attestor.oidc.token_url: "),
            ("oidc]\ntoken_url = \"http://u:secret@m/t\"", "node_attestor.oidc.token_url: "),
            ("oidc]\ntoken_url = \"http://m\"\nmethod = \"PUT\"", "node_attestor.oidc.method: must be"),
            (
                "oidc]\ntoken_url = \"http://m\"\nheaders = { \"a b\" = \"secret\" }",
                "node_attestor.oidc.headers: \"a b\"",
            ),
            ("http_challenge]\nagentname = \"a.b\"", "node_attestor.http_challenge.agentname: must be"),
            ("http_challenge]\nhostname = \"localhost\"", "node_attestor.http_challenge.hostname: cannot"),
            ("http_challenge]\nadvertised_port = 0", "node_attestor.http_challenge.advertised_port: must"),
            ("sshpop]\n[node_attestor.oidc]\ntoken_path = \"/t\"", "node_attestor: only one table"),
        ] {
            let found = parse(table).unwrap_err();
            assert_eq!(found.len(), 1, "{table}: {found:?}");
            assert!(found[0].starts_with(start) && !found[0].contains("secret"), "{table}: {found:?}");
        }
    }
}
