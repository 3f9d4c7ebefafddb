//! The settings of federation.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bonafide_identity::{DnsName, SpiffeId, TrustDomain};
use bonafide_runtime::config::Problems;

use super::raw::{RawAcme, RawBundleEndpoint, RawFederatesWith, RawFederation};
use crate::federation::acme::{AcmeSettings, LETS_ENCRYPT};
use crate::federation::{EndpointUrl, EndpointUrlError};
use crate::store::{EndpointProfile, FederationRelationship};

/// How bundles of other trust domains come in, and how our own goes out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FederationSettings {
    /// PEM with the authorities of `https_web` endpoints; `None` means those of the system.
    pub web_ca_path: Option<PathBuf>,
    /// Our own endpoint, if there is one.
    pub bundle_endpoint: Option<BundleEndpointSettings>,
    /// Relationships that win over those in the store.
    pub federates_with: Vec<FederationRelationship>,
}

/// Our own bundle endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BundleEndpointSettings {
    /// Where it listens.
    pub address: SocketAddr,
    /// How often peers should look.
    pub refresh_hint: Duration,
    /// How it is authenticated.
    pub profile: BundleEndpointProfile,
}

/// How our own bundle endpoint is authenticated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BundleEndpointProfile {
    /// By the server's own X.509-SVID.
    HttpsSpiffe,
    /// By a certificate of the Web PKI.
    HttpsWeb {
        /// PEM: the certificate, then its intermediates.
        certificate_path: PathBuf,
        /// PEM: its private key.
        key_path: PathBuf,
    },
    /// By a certificate of the Web PKI that the server fetches itself.
    HttpsWebAcme(AcmeSettings),
}

pub(super) fn settings(
    raw: RawFederation,
    own: Option<&TrustDomain>,
    problems: &mut Problems<'_>,
) -> Option<FederationSettings> {
    let bundle_endpoint = match raw.bundle_endpoint {
        None => Some(None),
        Some(raw) => bundle_endpoint(raw, problems).map(Some),
    };
    let relationships: Vec<_> =
        raw.federates_with.into_iter().map(|(name, raw)| relationship(&name, raw, own, problems)).collect();
    Some(FederationSettings {
        web_ca_path: raw.web_ca_path,
        bundle_endpoint: bundle_endpoint?,
        federates_with: relationships.into_iter().collect::<Option<_>>()?,
    })
}

fn bundle_endpoint(raw: RawBundleEndpoint, problems: &mut Problems<'_>) -> Option<BundleEndpointSettings> {
    let key = |name: &str| format!("federation.bundle_endpoint.{name}");
    let address = problems.required(key("address"), raw.address).and_then(|text| {
        problems.take(key("address"), text.parse().map_err(|error| format!("{text:?}: {error}")))
    });
    let default = Duration::from_secs(300);
    let refresh_hint = super::duration(problems, &key("refresh_hint"), raw.refresh_hint, default);
    let profile = match raw.profile.as_deref().unwrap_or(SPIFFE) {
        SPIFFE => {
            for (name, path) in [("certificate_path", &raw.certificate_path), ("key_path", &raw.key_path)] {
                let message =
                    "has no effect in the https_spiffe profile, which presents the server's own SVID";
                problems.check(path.is_none(), key(name), message);
            }
            let message = "has no effect in the https_spiffe profile, which presents the server's own SVID";
            problems.check(raw.acme.is_none(), key("acme"), message);
            Some(BundleEndpointProfile::HttpsSpiffe)
        }
        WEB if raw.acme.is_some() => {
            for (name, path) in [("certificate_path", &raw.certificate_path), ("key_path", &raw.key_path)] {
                let message = "has no effect beside federation.bundle_endpoint.acme; remove one of them";
                problems.check(path.is_none(), key(name), message);
            }
            raw.acme.and_then(|raw| acme(raw, problems)).map(BundleEndpointProfile::HttpsWebAcme)
        }
        WEB => {
            let certificate_path = problems.required(key("certificate_path"), raw.certificate_path);
            let key_path = problems.required(key("key_path"), raw.key_path);
            certificate_path.zip(key_path).map(|(certificate_path, key_path)| {
                BundleEndpointProfile::HttpsWeb { certificate_path, key_path }
            })
        }
        other => {
            problems.push(key("profile"), unknown(other));
            None
        }
    };
    Some(BundleEndpointSettings { address: address?, refresh_hint: refresh_hint?, profile: profile? })
}

fn acme(raw: RawAcme, problems: &mut Problems<'_>) -> Option<AcmeSettings> {
    let key = |name: &str| format!("federation.bundle_endpoint.acme.{name}");
    let domain_name = problems.required(key("domain_name"), raw.domain_name).and_then(|text| {
        let name = DnsName::parse(&text).map_err(|error| format!("{text:?}: {error}"));
        let name = name.and_then(|name| match text.starts_with('*') {
            true => Err(format!("{text:?}: the endpoint answers for one name, not for a wildcard")),
            false => Ok(name),
        });
        problems.take(key("domain_name"), name)
    });
    let email = problems.required(key("email"), raw.email).and_then(|text| {
        let plain = text.bytes().all(|byte| byte.is_ascii_graphic() && !b",?<>".contains(&byte));
        let at = text.split_once('@').is_some_and(|(user, host)| !user.is_empty() && !host.is_empty());
        problems.check(plain && at, key("email"), format!("{text:?} is no address for mail"));
        (plain && at).then_some(text)
    });
    let accepted = raw.tos_accepted.unwrap_or(false);
    let message = "must be true: read the terms of service of the ACME server, which its directory names; without them there is \
                   no certificate";
    problems.check(accepted, key("tos_accepted"), message);
    let url = raw.directory_url.unwrap_or_else(|| LETS_ENCRYPT.to_owned());
    let url = EndpointUrl::parse(&url).map_err(|error| match error {
        EndpointUrlError::Scheme => format!("{url:?} must begin with https://"),
        other => format!("{url:?}: {other}"),
    });
    let directory_url = problems.take(key("directory_url"), url);
    Some(AcmeSettings {
        domain_name: domain_name?,
        email: email?,
        directory_url: directory_url?,
        directory_ca_path: raw.directory_ca_path,
    })
}

fn relationship(
    name: &str,
    raw: RawFederatesWith,
    own: Option<&TrustDomain>,
    problems: &mut Problems<'_>,
) -> Option<FederationRelationship> {
    let base = format!("federation.federates_with.{name}");
    let key = |name: &str| format!("{base}.{name}");
    let trust_domain =
        problems.take(base.as_str(), TrustDomain::parse(name).map_err(|error| format!("{name:?}: {error}")));
    problems.check(
        own.is_none() || own != trust_domain.as_ref(),
        base.as_str(),
        "is this server's own trust domain",
    );
    let url = problems
        .required(key("bundle_endpoint_url"), raw.bundle_endpoint_url)
        .and_then(|text| problems.take(key("bundle_endpoint_url"), EndpointUrl::parse(&text)));
    let id_key = key("endpoint_spiffe_id");
    let profile = match problems.required(key("profile"), raw.profile).as_deref() {
        None => None,
        Some(SPIFFE) => problems.required(id_key.as_str(), raw.endpoint_spiffe_id).and_then(|text| {
            let id = SpiffeId::parse(&text).map_err(|error| format!("{text:?}: {error}"));
            let endpoint_spiffe_id = problems.take(id_key, id)?;
            Some(EndpointProfile::HttpsSpiffe { endpoint_spiffe_id })
        }),
        Some(WEB) => {
            let message = "has no effect in the https_web profile, which verifies the host name";
            problems.check(raw.endpoint_spiffe_id.is_none(), id_key, message);
            Some(EndpointProfile::HttpsWeb)
        }
        Some(other) => {
            problems.push(key("profile"), unknown(other));
            None
        }
    };
    Some(FederationRelationship {
        trust_domain: trust_domain?,
        bundle_endpoint_url: url?.as_str().to_owned(),
        profile: profile?,
    })
}

fn unknown(profile: &str) -> String {
    format!("unknown profile {profile:?}: use {SPIFFE} or {WEB}")
}

const SPIFFE: &str = "https_spiffe";
const WEB: &str = "https_web";

#[cfg(test)]
mod tests {
    use std::path::Path;

    use bonafide_runtime::config::ConfigError;

    use super::super::Config;
    use super::*;

    fn parse(text: &str) -> Result<FederationSettings, Vec<String>> {
        let text = format!("trust_domain = \"example.org\"\ndata_dir = \"/x\"\n{text}");
        match Config::parse(&text, Path::new("server.toml")) {
            Ok(config) => Ok(config.federation),
            Err(ConfigError::Invalid { problems, .. }) => {
                Err(problems.iter().map(|one| one.key.clone()).collect())
            }
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn both_directions_and_both_profiles() {
        let settings = parse(
            r#"
            [federation.bundle_endpoint]
            address = "0.0.0.0:8443"
            [federation.federates_with."other.org"]
            bundle_endpoint_url = "https://other.org:8443/bundle"
            profile = "https_spiffe"
            endpoint_spiffe_id = "spiffe://other.org/spire/server"
            [federation.federates_with."web.org"]
            bundle_endpoint_url = "https://web.org"
            profile = "https_web"
            "#,
        )
        .unwrap();
        let endpoint = settings.bundle_endpoint.unwrap();
        assert_eq!(endpoint.profile, BundleEndpointProfile::HttpsSpiffe);
        assert_eq!(endpoint.refresh_hint, Duration::from_secs(300));
        let profiles: Vec<_> = settings
            .federates_with
            .into_iter()
            .map(|one| (one.trust_domain.to_string(), one.profile))
            .collect();
        let endpoint_spiffe_id = SpiffeId::parse("spiffe://other.org/spire/server").unwrap();
        assert_eq!(
            profiles,
            [
                ("other.org".to_owned(), EndpointProfile::HttpsSpiffe { endpoint_spiffe_id }),
                ("web.org".to_owned(), EndpointProfile::HttpsWeb),
            ]
        );
        let web = parse(
            "[federation.bundle_endpoint]\naddress = \"0.0.0.0:443\"\nprofile = \"https_web\"\n\
             certificate_path = \"/c\"\nkey_path = \"/k\"\nrefresh_hint = \"1m\"\n",
        );
        let profile = web.unwrap().bundle_endpoint.unwrap().profile;
        assert!(matches!(profile, BundleEndpointProfile::HttpsWeb { .. }));
        assert_eq!(parse("").unwrap().bundle_endpoint, None);
    }

    #[test]
    fn a_certificate_by_acme() {
        let endpoint = |more: &str| {
            parse(&format!(
                "[federation.bundle_endpoint]\naddress = \"0.0.0.0:443\"\nprofile = \"https_web\"\n{more}\n"
            ))
        };
        let whole = "[federation.bundle_endpoint.acme]\ndomain_name = \"b.test\"\nemail = \"a@b.test\"\ntos_accepted = true";
        let BundleEndpointProfile::HttpsWebAcme(acme) =
            endpoint(whole).unwrap().bundle_endpoint.unwrap().profile
        else {
            panic!("another profile");
        };
        assert_eq!((acme.domain_name.as_str(), acme.directory_url.as_str()), ("b.test", LETS_ENCRYPT));
        let all = ["acme.domain_name", "acme.email", "acme.tos_accepted"];
        for (text, keys) in [
            ("[federation.bundle_endpoint.acme]".to_owned(), &all[..]),
            (whole.replace("true", "false"), &["acme.tos_accepted"]),
            (whole.replace("b.test\"\ne", "*.b.test\"\ne"), &["acme.domain_name"]),
            (whole.replace("a@b.test", "nobody"), &["acme.email"]),
            (format!("{whole}\ndirectory_url = \"http://ca.test/\""), &["acme.directory_url"]),
            (format!("key_path = \"/k\"\n{whole}"), &["key_path"]),
        ] {
            let mut found = endpoint(&text).unwrap_err();
            found.sort();
            let keys: Vec<String> =
                keys.iter().map(|key| format!("federation.bundle_endpoint.{key}")).collect();
            assert_eq!(found, keys, "{text}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (text, keys) in [
            ("[federation.bundle_endpoint]\n", &["bundle_endpoint.address"][..]),
            (
                "[federation.bundle_endpoint]\naddress = \"0.0.0.0:1\"\nprofile = \"https_web\"\n",
                &["bundle_endpoint.certificate_path", "bundle_endpoint.key_path"],
            ),
            (
                "[federation.bundle_endpoint]\naddress = \"0.0.0.0:1\"\ncertificate_path = \"/c\"\n",
                &["bundle_endpoint.certificate_path"],
            ),
            (
                "[federation.bundle_endpoint]\naddress = \"x\"\nprofile = \"http\"\n",
                &["bundle_endpoint.address", "bundle_endpoint.profile"],
            ),
            (
                "[federation.federates_with.a]\n",
                &["federates_with.a.bundle_endpoint_url", "federates_with.a.profile"],
            ),
            (
                "[federation.federates_with.a]\nbundle_endpoint_url = \"http://a\"\nprofile = \"https_spiffe\"\n",
                &["federates_with.a.bundle_endpoint_url", "federates_with.a.endpoint_spiffe_id"],
            ),
            (
                "[federation.federates_with.a]\nbundle_endpoint_url = \"https://a\"\nprofile = \"https_web\"\n\
                 endpoint_spiffe_id = \"spiffe://a/b\"\n",
                &["federates_with.a.endpoint_spiffe_id"],
            ),
            (
                "[federation.federates_with.\"example.org\"]\nbundle_endpoint_url = \"https://a\"\nprofile = \"https_web\"\n",
                &["federates_with.example.org"],
            ),
            (
                "[federation.federates_with.A]\nbundle_endpoint_url = \"https://a\"\nprofile = \"https_web\"\n",
                &["federates_with.A"],
            ),
        ] {
            let mut found = parse(text).unwrap_err();
            found.sort();
            let keys: Vec<String> = keys.iter().map(|key| format!("federation.{key}")).collect();
            assert_eq!(found, keys, "{text}");
        }
    }
}
