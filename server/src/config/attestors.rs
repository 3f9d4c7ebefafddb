//! The settings of the node attestors that have more than a switch.

use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

use bonafide_pki::JwsAlgorithm;
use bonafide_pki::evidence::Measurements;
use bonafide_pki::oidc::TokenRules;
use bonafide_runtime::config::{HumanDuration, Problems};
use http::Uri;
use regex::RegexBuilder;

use super::raw::{
    RawGpuEvidence, RawHttpChallenge, RawIssuer, RawK8sPsat, RawOidc, RawPsatCluster, RawSshPop, RawTpmDevId,
};
use super::{SshPopSettings, TpmDevIdSettings};
use crate::gpu_evidence::GpuEvidenceSettings;
use crate::kubernetes::Access;
use crate::node_attestor::http_challenge::HttpChallengeSettings;
use crate::node_attestor::k8s_psat::{ClusterSettings, Proof};
use crate::node_attestor::oidc::claims::{ClaimPath, Pattern};
use crate::node_attestor::oidc::{self, IssuerSettings, KeySettings, KeySource, acceptable};
use crate::node_attestor::sshpop;

pub(super) fn sshpop(raw: RawSshPop, problems: &mut Problems<'_>) -> Option<SshPopSettings> {
    const KEY: &str = "node_attestor.sshpop";
    problems.check(
        !raw.cert_authorities.is_empty() || raw.cert_authorities_path.is_some(),
        format!("{KEY}.cert_authorities"),
        "is required, or cert_authorities_path: the keys that sign host certificates, as in authorized_keys",
    );
    let template = raw.agent_path_template.as_deref().unwrap_or(sshpop::DEFAULT_TEMPLATE);
    let template = problems.take(format!("{KEY}.agent_path_template"), sshpop::template(template));
    let canonical_domain = raw.canonical_domain.filter(|domain| !domain.is_empty());
    problems.check(
        canonical_domain.as_ref().is_none_or(|domain| !domain.starts_with('.')),
        format!("{KEY}.canonical_domain"),
        "is written without a dot in front",
    );
    Some(SshPopSettings {
        cert_authorities: raw.cert_authorities,
        cert_authorities_path: raw.cert_authorities_path,
        canonical_domain,
        agent_path_template: template?,
    })
}

pub(super) fn tpm_devid(raw: RawTpmDevId, problems: &mut Problems<'_>) -> Option<TpmDevIdSettings> {
    let devid_ca_path = problems.required("node_attestor.tpm_devid.devid_ca_path", raw.devid_ca_path);
    let endorsement_ca_path =
        problems.required("node_attestor.tpm_devid.endorsement_ca_path", raw.endorsement_ca_path);
    Some(TpmDevIdSettings { devid_ca_path: devid_ca_path?, endorsement_ca_path: endorsement_ca_path? })
}

pub(super) fn http_challenge(
    raw: RawHttpChallenge,
    problems: &mut Problems<'_>,
) -> Option<HttpChallengeSettings> {
    const KEY: &str = "node_attestor.http_challenge";
    let patterns = raw.allowed_dns_patterns.iter().enumerate().map(|(at, text)| {
        let pattern = RegexBuilder::new(text).size_limit(1 << 20).build();
        problems.take(format!("{KEY}.allowed_dns_patterns[{at}]"), pattern)
    });
    let patterns: Vec<_> = patterns.collect();
    problems.check(raw.required_port != Some(0), format!("{KEY}.required_port"), "must be at least 1");
    let tofu = raw.tofu.unwrap_or(true);
    let by_anyone = match raw.required_port {
        Some(port) => port >= 1024,
        None => raw.allow_non_root_ports.unwrap_or(true),
    };
    problems.check(
        tofu || !by_anyone,
        format!("{KEY}.tofu"),
        "cannot be false while any user of a host can answer: set required_port below 1024 or allow_non_root_ports = false",
    );
    Some(HttpChallengeSettings {
        allowed_dns_patterns: patterns.into_iter().collect::<Option<_>>()?,
        required_port: raw.required_port,
        allow_non_root_ports: raw.allow_non_root_ports.unwrap_or(true),
        tofu,
        allow_local_addresses: raw.allow_local_addresses.unwrap_or(false),
    })
}

pub(super) fn gpu_evidence(raw: RawGpuEvidence, problems: &mut Problems<'_>) -> Option<GpuEvidenceSettings> {
    const KEY: &str = "node_attestor.gpu_evidence";
    problems.check(
        !raw.root_paths.is_empty(),
        format!("{KEY}.root_paths"),
        "is required: PEM files with the roots of device certificates",
    );
    let measurements = match raw.measurements.as_deref() {
        None | Some("prefer") => Some(Measurements::Preferred),
        Some("require") => Some(Measurements::Required),
        Some(_) => {
            problems.push(format!("{KEY}.measurements"), "must be \"prefer\" or \"require\"");
            None
        }
    };
    problems.check(
        measurements != Some(Measurements::Required) || raw.references_path.is_some(),
        format!("{KEY}.references_path"),
        "is required with measurements = \"require\"",
    );
    let max_age = raw.max_age.map_or(DEFAULT_EVIDENCE_AGE, Duration::from);
    problems.check(
        (Duration::from_secs(60)..=Duration::from_secs(7 * 86_400)).contains(&max_age),
        format!("{KEY}.max_age"),
        "must be between 1m and 7d",
    );
    Some(GpuEvidenceSettings {
        root_paths: raw.root_paths,
        references_path: raw.references_path,
        measurements: measurements?,
        max_age,
        device_selectors: raw.device_selectors.unwrap_or(false),
    })
}

const DEFAULT_EVIDENCE_AGE: Duration = Duration::from_secs(86_400);

pub(super) fn oidc(raw: RawOidc, problems: &mut Problems<'_>) -> Option<Vec<IssuerSettings>> {
    const KEY: &str = "node_attestor.oidc.issuers";
    problems.check(!raw.issuers.is_empty(), KEY, "is required: a table for each issuer");
    let (mut names, mut urls) = (HashSet::new(), HashSet::new());
    let mut issuers = Vec::new();
    for (at, raw) in raw.issuers.into_iter().enumerate() {
        problems.check(
            raw.name.as_ref().is_none_or(|name| names.insert(name.clone())),
            format!("{KEY}[{at}].name"),
            "is the name of another issuer too: their agents would have the same IDs",
        );
        problems.check(
            raw.url.as_ref().is_none_or(|url| urls.insert(url.clone())),
            format!("{KEY}[{at}].url"),
            "is configured twice: only the first would count",
        );
        issuers.push(issuer(raw, &format!("{KEY}[{at}]"), problems));
    }
    let issuers: Vec<_> = issuers.into_iter().collect::<Option<_>>()?;
    if issuers.len() > 1 {
        namespaces(&issuers, KEY, problems);
    }
    Some(issuers)
}

/// With several issuers, none may make tokens that lead to the agents of another.
fn namespaces(issuers: &[IssuerSettings], key: &str, problems: &mut Problems<'_>) {
    let mut taken = HashSet::new();
    for (at, issuer) in issuers.iter().enumerate() {
        let constant = |name| (name == ".Issuer").then(|| issuer.name.clone());
        let start = issuer.agent_path_template.common_start(constant);
        let segment = start.strip_prefix("/oidc/").and_then(|rest| Some(rest.split_once('/')?.0.to_owned()));
        let key = format!("{key}[{at}].agent_path_template");
        match segment {
            None => problems.push(
                key,
                "with several issuers, the part after /oidc/ must be a text of the issuer's own, up to the next slash, \
                 such as /oidc/{{ .Issuer }}/: otherwise tokens of one issuer could name agents of another",
            ),
            Some(segment) => {
                let text = format!("/oidc/{segment}/ is where another issuer's agents are: each issuer needs its own");
                problems.check(taken.insert(segment), key, text);
            }
        }
    }
}

fn issuer(raw: RawIssuer, key: &str, problems: &mut Problems<'_>) -> Option<IssuerSettings> {
    let of = |name: &str| format!("{key}.{name}");
    let name = problems.required(of("name"), raw.name);
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
    problems.check(
        name.as_ref().is_none_or(|name| !name.is_empty() && name.chars().all(plain)),
        of("name"),
        "may have letters, digits and - only: it becomes a part of agent IDs",
    );
    let url = problems.required(of("url"), raw.url);
    problems.check(
        !raw.audiences.is_empty() && raw.audiences.iter().all(|audience| !audience.is_empty()),
        of("audiences"),
        "is required: what tokens for this server have in aud",
    );
    let keys = keys((url.as_deref(), "url"), raw.jwks_path, raw.jwks_url, key, problems);
    if let Some(KeySource::File(_)) = keys {
        let unused = [
            ("ca_path", raw.ca_path.is_some()),
            ("fetch_token_path", raw.fetch_token_path.is_some()),
            ("refresh", raw.refresh.is_some()),
        ];
        for (name, given) in unused {
            problems.check(!given, of(name), "has no effect with jwks_path: nothing is fetched");
        }
    }
    let algorithms = match raw.algorithms {
        None => Some(vec![JwsAlgorithm::Rs256, JwsAlgorithm::Es256, JwsAlgorithm::Es384]),
        Some(names) => {
            problems.check(!names.is_empty(), of("algorithms"), "must name at least one algorithm");
            let parse = |(at, name): (usize, &String)| {
                let parsed = name.parse::<JwsAlgorithm>().ok().filter(|found| *found != JwsAlgorithm::Es512);
                let known = "RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384";
                let parsed = parsed.ok_or_else(|| format!("{name:?} is not one of {known}"));
                problems.take(format!("{key}.algorithms[{at}]"), parsed)
            };
            names.iter().enumerate().map(parse).collect()
        }
    };
    let leeway = bounded(problems, of("leeway"), raw.leeway, 60, 0, 300);
    let max_age = bounded(problems, of("max_age"), raw.max_age, 3600, 1, 86_400);
    let refresh = bounded(problems, of("refresh"), raw.refresh, 3600, 60, 86_400);
    let mut path = |name: &str, text: &str| problems.take(of(name), ClaimPath::parse(text));
    let required_claims: Option<Vec<_>> = raw
        .required_claims
        .iter()
        .map(|(claim, values)| {
            Some((path("required_claims", claim)?, values.iter().map(|value| Pattern::new(value)).collect()))
        })
        .collect();
    let selectors: Option<Vec<_>> =
        raw.selectors.iter().map(|(name, claim)| Some((name.clone(), path("selectors", claim)?))).collect();
    for (claim, values) in &raw.required_claims {
        let text = format!("gives no value for {claim:?}: no token could have one");
        problems.check(!values.is_empty(), of("required_claims"), text);
    }
    for name in raw.selectors.keys() {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let usable = !name.is_empty() && name.chars().all(plain) && name != "issuer";
        let text = format!("{name:?}: names have letters, digits, - and _, and issuer is taken");
        problems.check(usable, of("selectors"), text);
    }
    let template = problems.required(of("agent_path_template"), raw.agent_path_template).and_then(|text| {
        let template = problems.take(of("agent_path_template"), oidc::template(&text))?;
        // What tokens say must not name the agents of other attestors.
        problems.check(
            template.start().starts_with("/oidc/"),
            of("agent_path_template"),
            "must start with /oidc/",
        );
        Some(template)
    });
    Some(IssuerSettings {
        name: name?,
        url: url?,
        keys: keys?,
        ca_path: raw.ca_path,
        fetch_token_path: raw.fetch_token_path,
        refresh,
        rules: TokenRules { audiences: raw.audiences, algorithms: algorithms?, leeway, max_age },
        required_claims: required_claims?,
        selectors: selectors?,
        agent_path_template: template?,
        reattestable: raw.reattestable.unwrap_or(true),
    })
}

/// A duration in seconds, with its default and its limits.
fn bounded(
    problems: &mut Problems<'_>,
    key: String,
    value: Option<HumanDuration>,
    default: u64,
    least: u64,
    most: u64,
) -> Duration {
    let value = value.map_or(Duration::from_secs(default), |HumanDuration(value)| value);
    let fits = (Duration::from_secs(least)..=Duration::from_secs(most)).contains(&value);
    problems.check(fits, key, format!("must be from {least}s to {most}s"));
    value
}

pub(super) fn k8s_psat(raw: RawK8sPsat, problems: &mut Problems<'_>) -> Option<Vec<ClusterSettings>> {
    const KEY: &str = "node_attestor.k8s_psat.clusters";
    problems.check(!raw.clusters.is_empty(), KEY, "is required: a table for each cluster");
    let read = raw.clusters.into_iter().map(|(name, raw)| psat_cluster(name, raw, KEY, problems));
    read.collect::<Vec<_>>().into_iter().collect()
}

fn psat_cluster(
    name: String,
    raw: RawPsatCluster,
    key: &str,
    problems: &mut Problems<'_>,
) -> Option<ClusterSettings> {
    let key = format!("{key}.{name}");
    let of = |name: &str| format!("{key}.{name}");
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    problems.check(
        name.chars().all(plain) && name.len() <= 128 && !["", ".", ".."].contains(&name.as_str()),
        &key,
        "a cluster's name may have letters, digits, -, _ and . only: it becomes a part of agent IDs",
    );
    problems.check(
        !raw.service_account_allow_list.is_empty(),
        of("service_account_allow_list"),
        "is required: the agents' service accounts, as \"namespace:name\"",
    );
    for (at, account) in raw.service_account_allow_list.iter().enumerate() {
        let parts: Vec<&str> = account.split(':').collect();
        problems.check(
            parts.len() == 2 && parts.iter().all(|part| !part.is_empty()),
            of(&format!("service_account_allow_list[{at}]")),
            format!("{account:?} is not \"namespace:name\""),
        );
    }
    let audiences = raw.audience.unwrap_or_else(|| vec!["spire-server".to_owned()]);
    let access = |file: Option<std::path::PathBuf>| file.map_or(Access::InCluster, Access::KubeConfig);
    let proof = match raw.issuer {
        None => {
            for (name, given) in [
                ("jwks_path", raw.jwks_path.is_some()),
                ("jwks_url", raw.jwks_url.is_some()),
                ("ca_path", raw.ca_path.is_some()),
                ("fetch_token_path", raw.fetch_token_path.is_some()),
                ("refresh", raw.refresh.is_some()),
                ("max_age", raw.max_age.is_some()),
                ("ask_api_server", raw.ask_api_server.is_some()),
            ] {
                problems.check(
                    !given,
                    of(name),
                    "has no effect without issuer: the API server verifies tokens",
                );
            }
            Some(Proof::TokenReview(access(raw.kube_config_file)))
        }
        Some(url) => {
            problems.check(
                !audiences.is_empty() && audiences.iter().all(|audience| !audience.is_empty()),
                of("audience"),
                "is required with issuer: what tokens for this server have in aud",
            );
            let of_file = raw.jwks_path.is_some();
            for (name, given) in [
                ("ca_path", raw.ca_path.is_some()),
                ("fetch_token_path", raw.fetch_token_path.is_some()),
                ("refresh", raw.refresh.is_some()),
            ] {
                problems.check(
                    !of_file || !given,
                    of(name),
                    "has no effect with jwks_path: nothing is fetched",
                );
            }
            let source = keys((Some(&url), "issuer"), raw.jwks_path, raw.jwks_url, &key, problems);
            let refresh = bounded(problems, of("refresh"), raw.refresh, 3600, 60, 86_400);
            let max_age = bounded(problems, of("max_age"), raw.max_age, 86_400, 60, 172_800);
            let asked = raw.ask_api_server.unwrap_or(raw.kube_config_file.is_some());
            problems.check(
                asked || raw.kube_config_file.is_none(),
                of("kube_config_file"),
                "has no effect with ask_api_server = false",
            );
            for (name, labels) in [
                ("allowed_node_label_keys", &raw.allowed_node_label_keys),
                ("allowed_pod_label_keys", &raw.allowed_pod_label_keys),
            ] {
                let text = "needs the API server, which alone knows labels: set ask_api_server = true";
                problems.check(asked || labels.is_empty(), of(name), text);
            }
            let algorithms = vec![
                JwsAlgorithm::Rs256,
                JwsAlgorithm::Rs384,
                JwsAlgorithm::Rs512,
                JwsAlgorithm::Es256,
                JwsAlgorithm::Es384,
            ];
            let leeway = Duration::from_secs(60);
            source.map(|source| Proof::Keys {
                keys: Box::new(KeySettings {
                    name: name.clone(),
                    url,
                    source,
                    ca_path: raw.ca_path,
                    fetch_token_path: raw.fetch_token_path,
                    refresh,
                }),
                rules: TokenRules { audiences: audiences.clone(), algorithms, leeway, max_age },
                alive: asked.then(|| access(raw.kube_config_file)),
            })
        }
    };
    let set = |list: Vec<String>| list.into_iter().collect::<BTreeSet<_>>();
    Some(ClusterSettings {
        name,
        service_accounts: set(raw.service_account_allow_list),
        audiences,
        node_labels: set(raw.allowed_node_label_keys),
        pod_labels: set(raw.allowed_pod_label_keys),
        agent_per_pod: raw.use_pod_uid_for_agent_id.unwrap_or(false),
        proof: proof?,
    })
}

fn keys(
    (issuer, issuer_key): (Option<&str>, &str),
    path: Option<std::path::PathBuf>,
    url: Option<String>,
    key: &str,
    problems: &mut Problems<'_>,
) -> Option<KeySource> {
    let mut parse = |name: &str, text: &str| {
        let url = text.parse::<Uri>().ok().filter(acceptable);
        let url = url.ok_or("must be an https URL (http on the same machine only), or give jwks_path");
        problems.take(format!("{key}.{name}"), url)
    };
    match (path, url) {
        (Some(_), Some(_)) => {
            problems.push(format!("{key}.jwks_url"), "remove this or jwks_path: keys have one source");
            None
        }
        (Some(path), None) => Some(KeySource::File(path)),
        (None, Some(url)) => parse("jwks_url", &url).map(KeySource::Url),
        (None, None) => {
            let document = format!("{}/.well-known/openid-configuration", issuer?.trim_end_matches('/'));
            parse(issuer_key, &document).map(KeySource::Discovery)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use bonafide_runtime::config::ConfigError;

    use super::super::Config;

    fn problems(text: &str) -> Vec<String> {
        let text = format!("trust_domain = \"example.org\"\ndata_dir = \"/x\"\n{text}");
        match Config::parse(&text, Path::new("server.toml")) {
            Ok(_) => Vec::new(),
            Err(ConfigError::Invalid { problems, .. }) => {
                problems.into_iter().map(|problem| format!("{}: {}", problem.key, problem.message)).collect()
            }
            Err(other) => panic!("expected mistakes, got {other:?}"),
        }
    }

    #[test]
    fn evidence_of_gpus_needs_roots_and_another_attestor() {
        let with = |text: &str| problems(&format!("[node_attestor.gpu_evidence]\n{text}"));
        assert!(with("root_paths = [\"/r\"]").is_empty());
        for (text, start) in [
            ("", "node_attestor.gpu_evidence.root_paths: is required"),
            (
                "root_paths = [\"/r\"]\nmeasurements = \"all\"",
                "node_attestor.gpu_evidence.measurements: must be",
            ),
            (
                "root_paths = [\"/r\"]\nmeasurements = \"require\"",
                "node_attestor.gpu_evidence.references_path: is",
            ),
            ("root_paths = [\"/r\"]\nmax_age = \"59s\"", "node_attestor.gpu_evidence.max_age: must be"),
            ("root_paths = [\"/r\"]\nmax_age = \"8d\"", "node_attestor.gpu_evidence.max_age: must be"),
            (
                "root_paths = [\"/r\"]\n[node_attestor.join_token]\nenabled = false",
                "node_attestor.gpu_evidence: says nothing of who a node is",
            ),
        ] {
            let found = with(text);
            assert_eq!(found.len(), 1, "{text}: {found:?}");
            assert!(found[0].starts_with(start), "{found:?}");
        }
    }

    #[test]
    fn a_cluster_is_told_all_that_is_wrong_with_it() {
        const KEY: &str = "node_attestor.k8s_psat.clusters";
        let table = |name: &str, text: &str| {
            format!("[{KEY}.{name}]\nservice_account_allow_list = [\"a:b\"]\n{text}\n")
        };
        let with = |text: &str| problems(&table("prod", text));
        for good in [
            "",
            "audience = []",
            "kube_config_file = \"/k\"\nallowed_node_label_keys = [\"x\"]\nuse_pod_uid_for_agent_id = true",
            "issuer = \"https://issuer.test\"",
            "issuer = \"kubernetes/serviceaccount\"\njwks_path = \"/x\"",
            "issuer = \"https://issuer.test\"\nask_api_server = true\nallowed_pod_label_keys = [\"x\"]",
        ] {
            assert_eq!(with(good), [""; 0], "{good}");
        }
        for (text, start) in [
            ("jwks_path = \"/x\"", "jwks_path: has no effect without issuer"),
            ("ask_api_server = true", "ask_api_server: has no effect without issuer"),
            ("issuer = \"issuer.test\"", "issuer: must be an https URL"),
            ("issuer = \"https://i.test\"\naudience = []", "audience: is required with issuer"),
            ("issuer = \"x\"\njwks_path = \"/x\"\nrefresh = \"1h\"", "refresh: has no effect with jwks_path"),
            ("issuer = \"https://i.test\"\nmax_age = \"3d\"", "max_age: must be from"),
            (
                "issuer = \"https://i.test\"\nkube_config_file = \"/k\"\nask_api_server = false",
                "kube_config_file: has no effect with",
            ),
            (
                "issuer = \"https://i.test\"\nallowed_node_label_keys = [\"x\"]",
                "allowed_node_label_keys: needs the API server",
            ),
        ] {
            let found = with(text);
            assert_eq!(found.len(), 1, "{text}: {found:?}");
            assert!(found[0].starts_with(&format!("{KEY}.prod.{start}")), "{text}: {found:?}");
        }
        let found = problems(&table("\"a/b\"", ""));
        assert!(found[0].contains("a cluster's name may have letters"), "{found:?}");
        let found = problems(&format!("[{KEY}.prod]\nservice_account_allow_list = [\"b\"]"));
        assert!(found[0].starts_with(&format!("{KEY}.prod.service_account_allow_list[0]: ")), "{found:?}");
        for none in ["[node_attestor.k8s_psat]", &format!("[{KEY}.prod]")] {
            assert!(problems(none)[0].contains("is required"), "{none}");
        }
    }

    #[test]
    fn sshpop_needs_an_authority_and_a_template_that_is_known() {
        let with = |text: &str| problems(&format!("[node_attestor.sshpop]\n{text}"));
        assert!(with("cert_authorities_path = \"/x\"")[..].is_empty());
        assert!(
            with(
                "cert_authorities = [\"k\"]\nagent_path_template = \"/static/{{ index .ValidPrincipals 0 }}\""
            )
            .is_empty()
        );
        assert!(with("")[0].starts_with("node_attestor.sshpop.cert_authorities: is required"));
        let found = with(
            "cert_authorities = [\"k\"]\ncanonical_domain = \".x\"\nagent_path_template = \"/{{ .Foo }}\"",
        );
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(
            found.iter().any(
                |problem| problem.contains("\".Foo\" is not one of .PluginName, .Fingerprint, .Hostname")
            )
        );
    }

    #[test]
    fn tpm_devid_needs_the_authorities_of_both_kinds() {
        let with = |text: &str| problems(&format!("[node_attestor.tpm_devid]\n{text}"));
        assert!(with("devid_ca_path = \"/d\"\nendorsement_ca_path = \"/e\"").is_empty());
        let found = with("");
        assert_eq!(found.len(), 2, "{found:?}");
        for key in ["devid_ca_path", "endorsement_ca_path"] {
            let start = format!("node_attestor.tpm_devid.{key}: ");
            assert!(found.iter().any(|problem| problem.starts_with(&start)), "{found:?}");
        }
    }

    #[test]
    fn trust_on_first_use_goes_with_ports_that_anyone_can_open() {
        let with = |text: &str| problems(&format!("[node_attestor.http_challenge]\n{text}"));
        for allowed in [
            "",
            "tofu = true",
            "tofu = false\nallow_non_root_ports = false",
            "tofu = false\nrequired_port = 80",
        ] {
            assert_eq!(with(allowed), [""; 0], "{allowed}");
        }
        for refused in [
            "tofu = false",
            "tofu = false\nallow_non_root_ports = true",
            "tofu = false\nrequired_port = 1024",
        ] {
            assert!(
                with(refused)[0].starts_with("node_attestor.http_challenge.tofu: cannot be false"),
                "{refused}"
            );
        }
        assert!(
            with("allowed_dns_patterns = [\"a\", \"(\"]")[0]
                .starts_with("node_attestor.http_challenge.allowed_dns_patterns[1]")
        );
        assert!(with("allowed_dns_patterns = [\"(\\\\w{1000}){1000}\"]")[0].contains("exceeds size limit"));
    }

    #[test]
    fn a_pattern_that_matches_anywhere_is_warned_about() {
        let text = "trust_domain = \"example.org\"\ndata_dir = \"/x\"\n[node_attestor.http_challenge]\n\
                    allowed_dns_patterns = [\"^a$\", \"example.org\"]\n";
        let warnings = Config::parse(text, Path::new("server.toml")).unwrap().warnings();
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].contains("example.org matches anywhere"), "{warnings:?}");
    }

    #[test]
    fn several_issuers_have_agents_in_places_of_their_own() {
        let with = |first: &str, second: &str| {
            let issuer = |name: &str, template: &str| {
                format!(
                    "[[node_attestor.oidc.issuers]]\nname = \"{name}\"\nurl = \"https://{name}.test\"\n\
                     audiences = [\"x\"]\nagent_path_template = \"{template}\"\n"
                )
            };
            problems(&format!("{}{}", issuer("a", first), issuer("b", second)))
        };
        let free = "/oidc/{{ .Claims.sub }}";
        assert_eq!(with("/oidc/{{ .Issuer }}/{{ .Claims.sub }}", "/oidc/b/{{ .Claims.sub }}"), [""; 0]);
        assert_eq!(
            with("/oidc/{{ .Issuer }}/{{ .Claims.sub }}", "/oidc/x-{{ .Issuer }}/{{ .Claims.sub }}"),
            [""; 0]
        );
        for open in [
            free,
            "/oidc/b{{ .Claims.sub }}",
            "/oidc/{{ .Issuer }}-{{ .Claims.sub }}/x",
            "/oidc/{{ .Claims.sub }}/b",
        ] {
            let found = with("/oidc/a/{{ .Claims.sub }}", open);
            assert_eq!(found.len(), 1, "{open}: {found:?}");
            assert!(
                found[0].starts_with("node_attestor.oidc.issuers[1].agent_path_template: with several issuers, the part after /oidc/"),
                "{found:?}"
            );
        }
        let same = with("/oidc/b/{{ .Claims.sub }}", "/oidc/{{ .Issuer }}/{{ .Claims.sub }}");
        assert_eq!(same.len(), 1, "{same:?}");
        assert!(same[0].contains("/oidc/b/ is where another issuer's agents are"), "{same:?}");
    }

    #[test]
    fn an_issuer_is_told_all_that_is_wrong_with_it() {
        const GOOD: &str = "[[node_attestor.oidc.issuers]]\nname = \"a\"\nurl = \"https://issuer.test\"\naudiences = [\"x\"]\n\
                            agent_path_template = \"/oidc/a/{{ .Claims.sub }}\"\n";
        assert_eq!(problems(GOOD), [""; 0]);
        let twice = problems(&format!("{GOOD}{GOOD}"));
        // The name, the URL and the place of the agents.
        assert_eq!(twice.len(), 3, "{twice:?}");
        for (line, start) in [
            ("name = \"a/b\"", "name: may have letters"),
            ("url = \"issuer.test\"", "url: must be an https URL"),
            ("url = \"http://issuer.test\"", "url: must be an https URL"),
            ("audiences = []", "audiences: is required"),
            ("agent_path_template = \"/x/{{ .Claims.sub }}\"", "agent_path_template: must start with /oidc/"),
            (
                "agent_path_template = \"/oidc/{{ .Issuer }}\"",
                "agent_path_template: must name something of the node",
            ),
            ("jwks_url = \"http://issuer.test/keys\"", "jwks_url: must be an https URL"),
            ("algorithms = [\"HS256\"]", "algorithms[0]: \"HS256\" is not one of"),
            ("algorithms = [\"none\"]", "algorithms[0]: \"none\" is not one of"),
            ("algorithms = []", "algorithms: must name"),
            ("leeway = \"6m\"", "leeway: must be from 0s to 300s"),
            ("max_age = \"2d\"", "max_age: must be from 1s to 86400s"),
            ("refresh = \"1s\"", "refresh: must be from 60s to 86400s"),
            ("required_claims = { \"/a//b\" = [\"x\"] }", "required_claims: \"/a//b\" has an empty name"),
            ("required_claims = { a = [] }", "required_claims: gives no value"),
            ("selectors = { \"a:b\" = \"sub\" }", "selectors: \"a:b\": names have"),
            ("selectors = { issuer = \"sub\" }", "selectors: \"issuer\": names have"),
            ("jwks_path = \"/x\"\nrefresh = \"1h\"", "refresh: has no effect with jwks_path"),
        ] {
            let key = line.split(' ').next().unwrap();
            let rest: String =
                GOOD.lines().filter(|kept| !kept.starts_with(key)).map(|kept| format!("{kept}\n")).collect();
            let found = problems(&format!("{rest}{line}\n"));
            assert_eq!(found.len(), 1, "{line}: {found:?}");
            let expected = format!("node_attestor.oidc.issuers[0].{start}");
            assert!(found[0].starts_with(&expected), "{line}: {found:?}");
        }
        assert!(problems("[node_attestor.oidc]")[0].starts_with("node_attestor.oidc.issuers: is required"));
    }
}
