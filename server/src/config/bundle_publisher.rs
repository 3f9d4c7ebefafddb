//! The settings of bundle publishers.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use bonafide_runtime::config::Problems;

use super::raw::{RawBundlePublisher, RawCaBundle, RawClusterTrustBundle, RawConfigMap};
use crate::bundle_publisher::kubernetes::{ConfigMapSettings, Format};
use crate::kubernetes::Access;

/// One place where the bundle is published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BundlePublisherSettings {
    /// Its table, for messages: `k8s_configmap.clusters.<name>`.
    pub name: String,
    /// The cluster.
    pub access: Access,
    /// What is there.
    pub target: Target,
}

/// What of a cluster shows the bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A ConfigMap.
    ConfigMap(ConfigMapSettings),
    /// A ClusterTrustBundle.
    ClusterTrustBundle {
        /// The object's name.
        name: String,
        /// The signer that it belongs to.
        signer_name: Option<String>,
    },
    /// The `caBundle` of objects.
    CaBundle {
        /// The label that they have, with the value `true`.
        label: String,
    },
}

pub(super) fn settings(
    raw: RawBundlePublisher,
    problems: &mut Problems<'_>,
) -> Option<Vec<BundlePublisherSettings>> {
    let mut all = Vec::new();
    all.extend(each("k8s_configmap", raw.k8s_configmap.clusters, problems, config_map));
    all.extend(each(
        "k8s_cluster_trust_bundle",
        raw.k8s_cluster_trust_bundle.clusters,
        problems,
        trust_bundle,
    ));
    all.extend(each("k8s_ca_bundle", raw.k8s_ca_bundle.clusters, problems, ca_bundle));
    all.into_iter().collect()
}

type Read<T> = fn(&str, T, &mut Problems<'_>) -> Option<(Option<PathBuf>, Target)>;

fn each<T>(
    kind: &str,
    clusters: BTreeMap<String, T>,
    problems: &mut Problems<'_>,
    read: Read<T>,
) -> Vec<Option<BundlePublisherSettings>> {
    let mut one = |(name, raw)| {
        let name = format!("{kind}.clusters.{name}");
        let (kubeconfig, target) = read(&format!("bundle_publisher.{name}"), raw, problems)?;
        let access = kubeconfig.map_or(Access::InCluster, Access::KubeConfig);
        Some(BundlePublisherSettings { name, access, target })
    };
    clusters.into_iter().map(&mut one).collect()
}

fn named(problems: &mut Problems<'_>, key: String, value: Option<String>) -> Option<String> {
    let value = problems.required(key.as_str(), value)?;
    problems.check(!value.is_empty() && value.len() <= 253, key, "must have 1 to 253 characters");
    Some(value)
}

fn config_map(
    base: &str,
    raw: RawConfigMap,
    problems: &mut Problems<'_>,
) -> Option<(Option<PathBuf>, Target)> {
    let key = |name: &str| format!("{base}.{name}");
    let format = match raw.format.as_deref().unwrap_or("pem") {
        "pem" => Some(Format::Pem),
        "spiffe" => Some(Format::Spiffe),
        "jwks" => Some(Format::Jwks),
        other => {
            problems.push(key("format"), format!("unknown format {other:?}: use pem, spiffe or jwks"));
            None
        }
    };
    let refresh_hint = raw.refresh_hint.map(|hint| hint.0);
    if let Some(hint) = refresh_hint {
        problems.check(hint >= Duration::from_secs(1), key("refresh_hint"), "must be at least 1s");
        let meant = format.is_none() || format == Some(Format::Spiffe);
        problems.check(meant, key("refresh_hint"), "has an effect in the format spiffe only");
    }
    let namespace = named(problems, key("namespace"), raw.namespace);
    let configmap_name = named(problems, key("configmap_name"), raw.configmap_name);
    let configmap_key = raw.configmap_key.unwrap_or_else(|| {
        if format == Some(Format::Pem) { "bundle.crt".to_owned() } else { "bundle.json".to_owned() }
    });
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    problems.check(
        !configmap_key.is_empty() && configmap_key.bytes().all(plain),
        key("configmap_key"),
        "must be letters, digits, dots, dashes and underscores",
    );
    let settings = ConfigMapSettings {
        namespace: namespace?,
        configmap_name: configmap_name?,
        configmap_key,
        format: format?,
        refresh_hint,
    };
    Some((raw.kubeconfig_path, Target::ConfigMap(settings)))
}

fn trust_bundle(
    base: &str,
    raw: RawClusterTrustBundle,
    problems: &mut Problems<'_>,
) -> Option<(Option<PathBuf>, Target)> {
    let key = format!("{base}.name");
    let name = named(problems, key.clone(), raw.name)?;
    match &raw.signer_name {
        Some(signer) => {
            let prefix = format!("{}:", signer.replace('/', ":"));
            let message = format!("must begin with {prefix:?}, as signer_name is given");
            problems.check(name.len() > prefix.len() && name.starts_with(&prefix), key, message);
            let named = signer.contains('/') && !signer.starts_with('/') && !signer.ends_with('/');
            problems.check(named, format!("{base}.signer_name"), "must be a domain, a slash and a name");
        }
        None => problems.check(!name.contains(':'), key, "must have no colon, as no signer_name is given"),
    }
    Some((raw.kubeconfig_path, Target::ClusterTrustBundle { name, signer_name: raw.signer_name }))
}

fn ca_bundle(base: &str, raw: RawCaBundle, problems: &mut Problems<'_>) -> Option<(Option<PathBuf>, Target)> {
    let key = format!("{base}.label");
    let label = named(problems, key.clone(), raw.label)?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'/');
    problems.check(label.bytes().all(plain), key, "must be a label's key, such as example.org/ca-bundle");
    Some((raw.kubeconfig_path, Target::CaBundle { label }))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use bonafide_runtime::config::ConfigError;

    use super::super::Config;
    use super::*;

    fn parse(text: &str) -> Result<Vec<BundlePublisherSettings>, Vec<String>> {
        let text = format!("trust_domain = \"example.org\"\ndata_dir = \"/x\"\n{text}");
        match Config::parse(&text, Path::new("server.toml")) {
            Ok(config) => Ok(config.bundle_publishers),
            Err(ConfigError::Invalid { problems, .. }) => {
                Err(problems.iter().map(|one| one.key.clone()).collect())
            }
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn every_place_of_every_cluster_is_read() {
        let places = parse(
            r#"
            [bundle_publisher.k8s_configmap.clusters.a]
            namespace = "ns"
            configmap_name = "bundle"
            [bundle_publisher.k8s_configmap.clusters.b]
            namespace = "ns"
            configmap_name = "bundle"
            format = "spiffe"
            refresh_hint = "1m"
            kubeconfig_path = "/k"
            [bundle_publisher.k8s_cluster_trust_bundle.clusters.a]
            name = "example.org:svid:all"
            signer_name = "example.org/svid"
            [bundle_publisher.k8s_ca_bundle.clusters.a]
            label = "example.org/ca-bundle"
            "#,
        )
        .unwrap();
        let names: Vec<_> = places.iter().map(|place| place.name.as_str()).collect();
        let kinds = ["k8s_configmap.clusters.a", "k8s_configmap.clusters.b"];
        assert_eq!(names[..2], kinds);
        assert_eq!(names[2..], ["k8s_cluster_trust_bundle.clusters.a", "k8s_ca_bundle.clusters.a"]);
        assert_eq!(places[0].access, Access::InCluster);
        assert_eq!(places[1].access, Access::KubeConfig("/k".into()));
        let key = |place: &BundlePublisherSettings| match &place.target {
            Target::ConfigMap(settings) => settings.configmap_key.clone(),
            _ => String::new(),
        };
        assert_eq!((key(&places[0]).as_str(), key(&places[1]).as_str()), ("bundle.crt", "bundle.json"));
        assert_eq!(parse("").unwrap(), []);
    }

    #[test]
    fn mistakes_are_named() {
        for (text, keys) in [
            (
                "[k8s_configmap.clusters.a]\n",
                &["k8s_configmap.clusters.a.configmap_name", "k8s_configmap.clusters.a.namespace"][..],
            ),
            (
                "[k8s_configmap.clusters.a]\nnamespace = \"n\"\nconfigmap_name = \"c\"\nformat = \"der\"\nconfigmap_key = \"a/b\"\n",
                &["k8s_configmap.clusters.a.configmap_key", "k8s_configmap.clusters.a.format"],
            ),
            (
                "[k8s_configmap.clusters.a]\nnamespace = \"n\"\nconfigmap_name = \"c\"\nrefresh_hint = \"1m\"\n",
                &["k8s_configmap.clusters.a.refresh_hint"],
            ),
            (
                "[k8s_cluster_trust_bundle.clusters.a]\nname = \"a:b\"\n",
                &["k8s_cluster_trust_bundle.clusters.a.name"],
            ),
            (
                "[k8s_cluster_trust_bundle.clusters.a]\nname = \"other\"\nsigner_name = \"example.org\"\n",
                &[
                    "k8s_cluster_trust_bundle.clusters.a.name",
                    "k8s_cluster_trust_bundle.clusters.a.signer_name",
                ],
            ),
            ("[k8s_ca_bundle.clusters.a]\nlabel = \"a b\"\n", &["k8s_ca_bundle.clusters.a.label"]),
        ] {
            let mut found =
                parse(&format!("[bundle_publisher]\n{}", text.replace("[k8s", "[bundle_publisher.k8s")))
                    .unwrap_err();
            found.sort();
            let keys: Vec<String> = keys.iter().map(|key| format!("bundle_publisher.{key}")).collect();
            assert_eq!(found, keys, "{text}");
        }
    }
}
