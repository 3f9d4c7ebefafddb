//! The settings of the attestors.

use std::time::Duration;

use bonafide_runtime::config::Problems;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};

use super::{
    HttpChallengeConfig, JoinTokenSource, NodeAttestorConfig, Secret, TokenSource, TokenUrl, TpmDevIdConfig,
    raw,
};
use crate::node_attestor::oidc::is_fetchable;
use crate::workload_attestor::gpu::{DEFAULT_POD_RESOURCES_SOCKET, GpuConfig};
use crate::workload_attestor::k8s::{DEFAULT_NODE_NAME_ENV, K8sConfig};
use crate::workload_attestor::kubernetes::Waiting;
use crate::workload_attestor::kubernetes::source::{
    Credentials, DEFAULT_CA_PATH, DEFAULT_PODS_API_SOCKET, DEFAULT_SECURE_PORT, DEFAULT_TOKEN_PATH,
    KubeletConfig, KubeletTls,
};

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

pub(super) fn tpm_devid(raw: raw::TpmDevId, problems: &mut Problems<'_>) -> Option<NodeAttestorConfig> {
    let mut required = |name: &str, path| problems.required(format!("node_attestor.tpm_devid.{name}"), path);
    let devid_cert = required("devid_cert_path", raw.devid_cert_path);
    let devid_priv = required("devid_priv_path", raw.devid_priv_path);
    let devid_pub = required("devid_pub_path", raw.devid_pub_path);
    let secret = |text: Option<String>| text.map(Secret::new).unwrap_or_default();
    Some(NodeAttestorConfig::TpmDevId(TpmDevIdConfig {
        devid_cert: devid_cert?,
        devid_priv: devid_priv?,
        devid_pub: devid_pub?,
        devid_password: secret(raw.devid_password),
        tpm_device: raw.tpm_device_path,
        owner_hierarchy_password: secret(raw.owner_hierarchy_password),
        endorsement_hierarchy_password: secret(raw.endorsement_hierarchy_password),
    }))
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

pub(super) fn k8s(raw: raw::K8s, problems: &mut Problems<'_>) -> K8sConfig {
    let key = |name: &str| format!("workload_attestor.k8s.{name}");
    let open = raw.kubelet_read_only_port.is_some();
    for (name, port) in [
        ("kubelet_read_only_port", raw.kubelet_read_only_port),
        ("kubelet_secure_port", raw.kubelet_secure_port),
    ] {
        problems.check(port != Some(0), key(name), "must be at least 1");
    }
    problems.check(
        !open || raw.kubelet_secure_port.is_none(),
        key("kubelet_read_only_port"),
        "excludes kubelet_secure_port",
    );
    let anonymous = raw.use_anonymous_authentication.unwrap_or(false);
    let shown = raw.token_path.is_some() || raw.certificate_path.is_some() || raw.private_key_path.is_some();
    problems.check(
        !(anonymous && shown),
        key("use_anonymous_authentication"),
        "excludes token_path, certificate_path and private_key_path",
    );
    let token = raw.token_path;
    let credentials = match (raw.certificate_path, raw.private_key_path) {
        (Some(certificate), Some(key)) => Credentials::Certificate { certificate, key },
        (Some(_), None) => {
            problems.push(key("certificate_path"), "needs private_key_path");
            Credentials::Anonymous
        }
        (None, Some(_)) => {
            problems.push(key("private_key_path"), "needs certificate_path");
            Credentials::Anonymous
        }
        (None, None) if anonymous => Credentials::Anonymous,
        (None, None) => Credentials::Token(token.unwrap_or_else(|| DEFAULT_TOKEN_PATH.into())),
    };
    let skip = raw.skip_kubelet_verification.unwrap_or(false);
    let ca_path = (!skip).then(|| raw.kubelet_ca_path.unwrap_or_else(|| DEFAULT_CA_PATH.into()));
    let node_name = raw.node_name.filter(|name| !name.is_empty());
    let is_host = |name: &String| {
        name.len() <= 253
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'))
    };
    problems.check(
        node_name.as_ref().is_none_or(is_host),
        key("node_name"),
        "must be a host name or address",
    );
    let attempts = raw.max_poll_attempts.unwrap_or(Waiting::default().attempts);
    problems.check((1..=MAX_ATTEMPTS).contains(&attempts), key("max_poll_attempts"), "must be from 1 to 600");
    let interval = raw.poll_retry_interval.map_or(Waiting::default().interval, Into::into);
    problems.check(
        (MIN_INTERVAL..=MAX_INTERVAL).contains(&interval),
        key("poll_retry_interval"),
        "must be from 100ms to 10s",
    );
    let mut cgroup_roots = Vec::new();
    for (at, root) in raw.cgroup_roots.unwrap_or_default().into_iter().enumerate() {
        let root = root.trim_end_matches('/');
        problems.check(
            root.starts_with('/') && !root.split('/').any(|part| part == ".."),
            key(&format!("cgroup_roots[{at}]")),
            "must be an absolute path without ..",
        );
        cgroup_roots.push(root.to_owned());
    }
    K8sConfig {
        pods_api_socket: raw.pods_api_socket.unwrap_or_else(|| DEFAULT_PODS_API_SOCKET.into()),
        kubelet: KubeletConfig {
            port: raw.kubelet_read_only_port.or(raw.kubelet_secure_port).unwrap_or(DEFAULT_SECURE_PORT),
            tls: (!open).then_some(KubeletTls { ca_path, credentials }),
            node_name,
        },
        node_name_env: raw.node_name_env.unwrap_or_else(|| DEFAULT_NODE_NAME_ENV.to_owned()),
        waiting: Waiting { attempts, interval, cgroup_roots },
        disable_container_selectors: raw.disable_container_selectors.unwrap_or(false),
    }
}

pub(super) fn gpu(raw: raw::Gpu) -> GpuConfig {
    GpuConfig {
        pod_resources_socket: raw.pod_resources_socket.unwrap_or_else(|| DEFAULT_POD_RESOURCES_SOCKET.into()),
        device_uuids: raw.device_uuids.unwrap_or(false),
    }
}

const MAX_ATTEMPTS: u32 = 600;
const MIN_INTERVAL: Duration = Duration::from_millis(100);
const MAX_INTERVAL: Duration = Duration::from_secs(10);

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
        let files = "devid_cert_path = \"/c\"\ndevid_priv_path = \"/k\"\ndevid_pub_path = \"/p\"";
        let Ok(NodeAttestorConfig::TpmDevId(config)) = parse(&format!("tpm_devid]\n{files}")) else {
            panic!("tpm_devid")
        };
        assert_eq!((config.devid_pub, config.tpm_device), ("/p".into(), None));
        assert_eq!(config.devid_password.expose(), "");
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
            (
                "tpm_devid]\ndevid_cert_path = \"/c\"\ndevid_pub_path = \"/p\"\ndevid_password = \"secret\"",
                "node_attestor.tpm_devid.devid_priv_path: is required",
            ),
            ("sshpop]\n[node_attestor.oidc]\ntoken_path = \"/t\"", "node_attestor: only one table"),
        ] {
            let found = parse(table).unwrap_err();
            assert_eq!(found.len(), 1, "{table}: {found:?}");
            assert!(found[0].starts_with(start) && !found[0].contains("secret"), "{table}: {found:?}");
        }
    }
}
