//! Publishers to Kubernetes clusters: a ConfigMap, a ClusterTrustBundle, and the `caBundle` of webhooks and API services.
//!
//! All of them write by server-side apply or by patches that name what they expect, so nothing that belongs to somebody else
//! is overwritten.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bonafide_identity::Bundle;
use bonafide_pki::bundle::{jwks_for_workload, to_pem, to_spiffe_json};
use bonafide_pki::digest::Sha256;
use data_encoding::{BASE64, HEXLOWER};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{BundlePublisher, PublishError};
use crate::kubernetes::{Api, ApiError, Call, Verb, escaped, unusable};

/// How a bundle is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The X.509 authorities as PEM.
    Pem,
    /// The whole bundle (SPIFFE Trust Domain and Bundle, section 4).
    Spiffe,
    /// The JWT authorities as a plain JSON Web Key Set (RFC 7517).
    Jwks,
}

impl Format {
    fn write(self, bundle: &Bundle, refresh_hint: Option<Duration>) -> String {
        match self {
            Self::Pem => to_pem(bundle),
            Self::Spiffe => match refresh_hint {
                Some(hint) => to_spiffe_json(&Bundle { refresh_hint: hint.as_secs(), ..bundle.clone() }),
                None => to_spiffe_json(bundle),
            },
            Self::Jwks => String::from_utf8_lossy(&jwks_for_workload(&bundle.jwt_authorities)).into_owned(),
        }
    }
}

/// Applies an object. What one owner applied before and does not apply now is removed, so each field has an owner of its own.
async fn apply(
    api: &dyn Api,
    resource: &str,
    path: String,
    field: &[&str],
    object: Value,
) -> Result<(), ApiError> {
    let mut digest = Sha256::new();
    for part in field {
        digest.update(&(part.len() as u64).to_be_bytes());
        digest.update(part.as_bytes());
    }
    let owner = HEXLOWER.encode(&digest.finish()[..8]);
    let path = format!("{path}?fieldManager=bonafide-server-{owner}&force=true");
    api.call(Call { verb: Verb::Apply, resource, path, body: Some(object) }).await.map(drop)
}

/// A key of a ConfigMap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigMapSettings {
    /// The ConfigMap's namespace.
    pub namespace: String,
    /// The ConfigMap's name.
    pub configmap_name: String,
    /// The key in its data.
    pub configmap_key: String,
    /// What is written there.
    pub format: Format,
    /// The hint in the format `spiffe`, in place of the bundle's own.
    pub refresh_hint: Option<Duration>,
}

/// Publishes to a ConfigMap. It is created when it is missing; its other keys are left alone.
pub struct ConfigMap {
    name: String,
    api: Arc<dyn Api>,
    settings: ConfigMapSettings,
}

impl ConfigMap {
    /// A publisher called `name` to a cluster.
    pub fn new(name: String, api: Arc<dyn Api>, settings: ConfigMapSettings) -> Self {
        Self { name, api, settings }
    }
}

#[async_trait]
impl BundlePublisher for ConfigMap {
    fn name(&self) -> &str {
        &self.name
    }

    async fn publish(&self, bundle: &Bundle) -> Result<(), PublishError> {
        let ConfigMapSettings { namespace, configmap_name, configmap_key, format, refresh_hint } =
            &self.settings;
        let object = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": { "name": configmap_name, "namespace": namespace },
            "data": { configmap_key: format.write(bundle, *refresh_hint) },
        });
        let path =
            format!("/api/v1/namespaces/{}/configmaps/{}", escaped(namespace), escaped(configmap_name));
        let field = [bundle.trust_domain.as_str(), configmap_key.as_str()];
        Ok(apply(&*self.api, "configmaps", path, &field, object).await?)
    }
}

/// Publishes to a ClusterTrustBundle, which pods mount as a projected volume.
pub struct ClusterTrustBundle {
    name: String,
    api: Arc<dyn Api>,
    object_name: String,
    signer_name: Option<String>,
}

impl ClusterTrustBundle {
    /// A publisher called `name` to a cluster. With `signer_name`, `object_name` begins with it, colons in place of
    /// slashes, and a colon; the server then needs the right to `attest` for that signer.
    pub fn new(name: String, api: Arc<dyn Api>, object_name: String, signer_name: Option<String>) -> Self {
        Self { name, api, object_name, signer_name }
    }
}

/// From the newest on: clusters have them as they are old.
const TRUST_BUNDLE_VERSIONS: [&str; 3] = ["v1", "v1beta1", "v1alpha1"];

#[async_trait]
impl BundlePublisher for ClusterTrustBundle {
    fn name(&self) -> &str {
        &self.name
    }

    async fn publish(&self, bundle: &Bundle) -> Result<(), PublishError> {
        const RESOURCE: &str = "clustertrustbundles.certificates.k8s.io";
        if bundle.x509_authorities.is_empty() {
            return Ok(());
        }
        let mut spec = json!({ "trustBundle": to_pem(bundle) });
        if let Some(signer) = &self.signer_name {
            spec["signerName"] = signer.as_str().into();
        }
        let mut missing = None;
        for version in TRUST_BUNDLE_VERSIONS {
            let object = json!({
                "apiVersion": format!("certificates.k8s.io/{version}"), "kind": "ClusterTrustBundle",
                "metadata": { "name": self.object_name }, "spec": spec,
            });
            let name = escaped(&self.object_name);
            let path = format!("/apis/certificates.k8s.io/{version}/clustertrustbundles/{name}");
            match apply(&*self.api, RESOURCE, path, &[], object).await {
                Err(error @ ApiError::Missing { .. }) => missing = Some(error),
                outcome => return Ok(outcome?),
            }
        }
        Err(missing.expect("there are versions").into())
    }
}

/// Sets the `caBundle` of webhooks, conversion webhooks of custom resources and API services that carry a label.
pub struct CaBundle {
    name: String,
    api: Arc<dyn Api>,
    label: String,
}

impl CaBundle {
    /// A publisher called `name` to the objects of a cluster that have `label` with the value `true`.
    pub fn new(name: String, api: Arc<dyn Api>, label: String) -> Self {
        Self { name, api, label }
    }
}

/// A kind of object with one or more `caBundle`.
struct Kind {
    resource: &'static str,
    path: &'static str,
    /// Where the parts with a `caBundle` are, as JSON pointers, each with what names the part.
    places: fn(&Value) -> Vec<Place>,
}

struct Place {
    /// What must be as it was seen for the patch to be applied: a pointer and its value.
    identity: Option<(String, Value)>,
    /// The object that holds `caBundle`.
    holder: String,
}

fn webhooks(object: &Value) -> Vec<Place> {
    let hooks = object["webhooks"].as_array().map(Vec::as_slice).unwrap_or_default();
    let place = |(at, hook): (usize, &Value)| Place {
        identity: Some((format!("/webhooks/{at}/name"), hook["name"].clone())),
        holder: format!("/webhooks/{at}/clientConfig"),
    };
    hooks.iter().enumerate().map(place).collect()
}

const KINDS: [Kind; 4] = [
    Kind {
        resource: "validatingwebhookconfigurations.admissionregistration.k8s.io",
        path: "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations",
        places: webhooks,
    },
    Kind {
        resource: "mutatingwebhookconfigurations.admissionregistration.k8s.io",
        path: "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations",
        places: webhooks,
    },
    Kind {
        resource: "customresourcedefinitions.apiextensions.k8s.io",
        path: "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
        places: |object| {
            let holder = "/spec/conversion/webhook/clientConfig";
            let there = object.pointer(holder).is_some_and(Value::is_object);
            there.then(|| Place { identity: None, holder: holder.to_owned() }).into_iter().collect()
        },
    },
    Kind {
        resource: "apiservices.apiregistration.k8s.io",
        path: "/apis/apiregistration.k8s.io/v1/apiservices",
        places: |object| {
            // Without a service the API server itself answers; with insecureSkipTLSVerify a caBundle is refused.
            let remote = object["spec"]["service"].is_object();
            let verified = object["spec"]["insecureSkipTLSVerify"] != Value::Bool(true);
            let place = || Place { identity: None, holder: "/spec".to_owned() };
            (remote && verified).then(place).into_iter().collect()
        },
    },
];

#[async_trait]
impl BundlePublisher for CaBundle {
    fn name(&self) -> &str {
        &self.name
    }

    async fn publish(&self, bundle: &Bundle) -> Result<(), PublishError> {
        if bundle.x509_authorities.is_empty() {
            // Who is given no authority trusts those of the system.
            return Ok(());
        }
        let wanted = Value::from(BASE64.encode(to_pem(bundle).as_bytes()));
        let (mut done, mut failures) = (0, Vec::new());
        for kind in &KINDS {
            let objects = match self.labelled(kind).await {
                Ok(objects) => objects,
                Err(error) => {
                    failures.push((kind.resource.to_owned(), error));
                    continue;
                }
            };
            for object in objects {
                let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                let patch = patch(&object, &(kind.places)(&object), &wanted);
                if patch.is_empty() {
                    done += 1;
                    continue;
                }
                let path = format!("{}/{}", kind.path, escaped(&name));
                let body = Some(Value::Array(patch));
                match self.api.call(Call { verb: Verb::Patch, resource: kind.resource, path, body }).await {
                    Ok(_) => done += 1,
                    // It was deleted meanwhile.
                    Err(ApiError::Missing { .. }) => {}
                    Err(error) => failures.push((format!("{} {name}", kind.resource), error)),
                }
            }
        }
        let failed = failures.len();
        match failures.into_iter().next() {
            None => Ok(()),
            Some((object, error)) => {
                Err(PublishError::Partly { done, failed, object, source: Box::new(error) })
            }
        }
    }
}

impl CaBundle {
    async fn labelled(&self, kind: &Kind) -> Result<Vec<Value>, ApiError> {
        #[derive(Deserialize)]
        struct List {
            #[serde(default)]
            items: Vec<Value>,
            #[serde(default)]
            metadata: ListMetadata,
        }
        #[derive(Default, Deserialize)]
        struct ListMetadata {
            #[serde(default, rename = "continue")]
            next: String,
        }
        let (mut items, mut next) = (Vec::new(), String::new());
        for _ in 0..MOST_PAGES {
            let selector = escaped(&format!("{}=true", self.label));
            let mut path = format!("{}?limit=5&labelSelector={selector}", kind.path);
            if !next.is_empty() {
                path.push_str("&continue=");
                path.push_str(&escaped(&next));
            }
            let answer =
                self.api.call(Call { verb: Verb::List, resource: kind.resource, path, body: None }).await?;
            let list: List = serde_json::from_slice(&answer)
                .map_err(|problem| unusable(Verb::List, kind.resource, problem))?;
            items.extend(list.items);
            next = list.metadata.next;
            if next.is_empty() {
                break;
            }
        }
        Ok(items)
    }
}

/// Pages of one kind that are looked at, of five objects each: the definition of a custom resource may have some hundred kilobytes.
const MOST_PAGES: usize = 200;

/// The JSON patch (RFC 6902) that gives each place the wanted `caBundle`; empty when all have it.
fn patch(object: &Value, places: &[Place], wanted: &Value) -> Vec<Value> {
    let mut operations = Vec::new();
    for Place { identity, holder } in places {
        let path = format!("{holder}/caBundle");
        if object.pointer(&path) == Some(wanted) {
            continue;
        }
        if let Some((path, value)) = identity {
            operations.push(json!({ "op": "test", "path": path, "value": value }));
        }
        operations.push(json!({ "op": "add", "path": path, "value": wanted }));
    }
    operations
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use bonafide_identity::{TrustDomain, X509Authority};

    use super::*;

    /// An API server that answers from a list, and keeps what it was asked.
    #[derive(Default)]
    struct Scripted {
        asked: Mutex<Vec<(Verb, String, Value)>>,
        answers: Mutex<Vec<(&'static str, Result<Value, ApiError>)>>,
    }

    #[async_trait]
    impl Api for Scripted {
        async fn call(&self, call: Call<'_>) -> Result<Vec<u8>, ApiError> {
            let asked = (call.verb, call.path.clone(), call.body.unwrap_or_default());
            self.asked.lock().unwrap().push(asked);
            let mut answers = self.answers.lock().unwrap();
            let at = answers.iter().position(|(path, _)| call.path.starts_with(path));
            let answer = at.map_or(Ok(json!({})), |at| answers.remove(at).1);
            answer.map(|value| value.to_string().into_bytes())
        }
    }

    fn bundle() -> Bundle {
        let td = TrustDomain::parse("example.org").unwrap();
        let document = br#"{"keys":[{"use":"jwt-svid","kid":"k","kty":"EC","crv":"P-256",
            "x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}],
            "spiffe_refresh_hint":300,"spiffe_sequence":7}"#;
        let mut bundle = bonafide_pki::bundle::from_spiffe_json(&td, document).unwrap();
        // Nobody here looks into it.
        bundle.x509_authorities.push(X509Authority { certificate: vec![0x30, 0], tainted: false });
        bundle
    }

    fn missing() -> ApiError {
        ApiError::Missing { resource: "clustertrustbundles.certificates.k8s.io".into(), said: "no".into() }
    }

    #[tokio::test]
    async fn a_config_map_is_applied_in_the_wanted_format() {
        for (format, holds) in
            [(Format::Spiffe, "\"spiffe_refresh_hint\":60"), (Format::Jwks, "\"kid\""), (Format::Pem, "")]
        {
            let api = Arc::new(Scripted::default());
            let settings = ConfigMapSettings {
                namespace: "ns".to_owned(),
                configmap_name: "b/../c".to_owned(),
                configmap_key: "bundle".to_owned(),
                format,
                refresh_hint: Some(Duration::from_secs(60)),
            };
            let publisher = ConfigMap::new("k8s_configmap".to_owned(), api.clone(), settings);
            publisher.publish(&bundle()).await.unwrap();
            let asked = api.asked.lock().unwrap();
            let (verb, path, body) = &asked[0];
            assert_eq!(*verb, Verb::Apply);
            let (path, query) = path.split_once('?').unwrap();
            assert_eq!(path, "/api/v1/namespaces/ns/configmaps/b%2F..%2Fc");
            assert!(
                query.starts_with("fieldManager=bonafide-server-") && query.ends_with("&force=true"),
                "{query}"
            );
            let compact = body["data"]["bundle"].as_str().unwrap().replace([' ', '\n'], "");
            assert!(compact.contains(holds), "{compact}");
            assert!(format != Format::Jwks || !compact.contains("spiffe_"), "{compact}");
        }
    }

    #[tokio::test]
    async fn a_cluster_trust_bundle_takes_the_newest_version_that_the_cluster_has() {
        let api = Arc::new(Scripted::default());
        let v1 = "/apis/certificates.k8s.io/v1/";
        api.answers.lock().unwrap().push((v1, Err(missing())));
        let signer = Some("example.org/svid".to_owned());
        let name = "example.org:svid:bundle".to_owned();
        let publisher = ClusterTrustBundle::new("k".to_owned(), api.clone(), name, signer);
        publisher.publish(&bundle()).await.unwrap();
        {
            let asked = api.asked.lock().unwrap();
            let paths: Vec<&str> = asked.iter().map(|(_, path, _)| path.split('/').nth(3).unwrap()).collect();
            assert_eq!(paths, ["v1", "v1beta1"]);
            assert_eq!(asked[1].2["spec"]["signerName"], "example.org/svid");
            assert!(asked[1].1.contains("example.org%3Asvid%3Abundle"), "{}", asked[1].1);
        }

        let none = Arc::new(Scripted::default());
        none.answers.lock().unwrap().extend((0..3).map(|_| ("/apis/", Err(missing()))));
        let publisher = ClusterTrustBundle::new("k".to_owned(), none, "b".to_owned(), None);
        let error = publisher.publish(&bundle()).await.unwrap_err();
        assert!(matches!(error, PublishError::Cluster(ApiError::Missing { .. })), "{error}");
    }

    #[tokio::test]
    async fn only_what_differs_is_patched_and_one_failure_stops_no_other() {
        let api = Arc::new(Scripted::default());
        let wanted = BASE64.encode(to_pem(&bundle()).as_bytes());
        let hook = |name: &str, ca: &str| json!({ "name": name, "clientConfig": { "caBundle": ca } });
        let list = |items: Vec<Value>| Ok(json!({ "items": items }));
        let named = |name: &str, more: Value| {
            let mut object = json!({ "metadata": { "name": name } });
            object.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            object
        };
        let admission = "/apis/admissionregistration.k8s.io/v1/";
        let validating = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations?";
        let refused = ApiError::Forbidden { verb: Verb::Patch, resource: "x".into(), said: "no".into() };
        api.answers.lock().unwrap().extend([
            (
                validating,
                list(vec![
                    named("fresh", json!({ "webhooks": [hook("a", &wanted)] })),
                    named(
                        "stale",
                        json!({ "webhooks": [hook("a", &wanted), hook("b", "b2xk"), { "name": "c" }] }),
                    ),
                ]),
            ),
            ("/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/stale", Err(refused)),
            (admission, list(Vec::new())),
            (
                "/apis/apiextensions.k8s.io/",
                list(vec![
                    named("plain", json!({ "spec": { "conversion": { "strategy": "None" } } })),
                    named(
                        "converted",
                        json!({ "spec": { "conversion": { "webhook": { "clientConfig": {} } } } }),
                    ),
                ]),
            ),
            (
                "/apis/apiregistration.k8s.io/",
                list(vec![
                    named("local", json!({ "spec": { "service": null } })),
                    named("blind", json!({ "spec": { "service": {}, "insecureSkipTLSVerify": true } })),
                    named("remote", json!({ "spec": { "service": { "name": "s" } } })),
                ]),
            ),
        ]);
        let publisher = CaBundle::new("k".to_owned(), api.clone(), "example.org/ca".to_owned());
        let error = publisher.publish(&bundle()).await.unwrap_err();
        assert!(
            matches!(&error, PublishError::Partly { failed: 1, object, .. } if object.ends_with(" stale")),
            "{error}"
        );
        let asked = api.asked.lock().unwrap();
        assert!(asked[0].1.contains("labelSelector=example.org%2Fca%3Dtrue"), "{}", asked[0].1);
        let patched: Vec<_> = asked.iter().filter(|(verb, ..)| *verb == Verb::Patch).collect();
        let names: Vec<_> = patched.iter().map(|(_, path, _)| path.rsplit('/').next().unwrap()).collect();
        assert_eq!(names, ["stale", "converted", "remote"]);
        let operations: Vec<_> = patched[0]
            .2
            .as_array()
            .unwrap()
            .iter()
            .map(|one| (one["op"].clone(), one["path"].clone()))
            .collect();
        assert_eq!(
            operations,
            [
                (json!("test"), json!("/webhooks/1/name")),
                (json!("add"), json!("/webhooks/1/clientConfig/caBundle")),
                (json!("test"), json!("/webhooks/2/name")),
                (json!("add"), json!("/webhooks/2/clientConfig/caBundle")),
            ]
        );
    }
}
