//! Bundle publishers, against a real API server.

use std::time::Duration;

use bonafide_pki::bundle::to_pem;
use bonafide_proto::spire::server::localauthority::v1 as pb;
use bonafide_proto::spire::server::localauthority::v1::local_authority_client::LocalAuthorityClient;
use data_encoding::BASE64;
use http::Method;
use serde_json::{Value, json};

use super::harness::*;
use crate::kubernetes::real;

const MAP: &str = "/api/v1/namespaces/default/configmaps/bonafide-bundle";
const HOOK: &str = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/hook";
const SERVICE: &str = "/apis/apiregistration.k8s.io/v1/apiservices/v1.example.org";
const TRUST: &str = "/apis/certificates.k8s.io/v1beta1/clustertrustbundles/example.org:svid:bundle";

const RIGHTS: [(&str, &str, &[&str]); 7] = [
    ("", "configmaps", &["patch", "create"]),
    ("admissionregistration.k8s.io", "validatingwebhookconfigurations", &["list", "patch"]),
    ("admissionregistration.k8s.io", "mutatingwebhookconfigurations", &["list", "patch"]),
    ("apiextensions.k8s.io", "customresourcedefinitions", &["list", "patch"]),
    ("apiregistration.k8s.io", "apiservices", &["list", "patch"]),
    ("certificates.k8s.io", "clustertrustbundles", &["patch", "create"]),
    ("certificates.k8s.io", "signers", &["attest"]),
];

fn pem(server: &TestServer) -> String {
    to_pem(&server.server.context().state.bundle(&trust_domain()).unwrap())
}

#[tokio::test]
async fn a_real_cluster_has_the_bundle_everywhere() {
    let Some(cluster) = real::Cluster::start("a_real_cluster_has_the_bundle_everywhere").await else {
        return;
    };
    cluster.allow(&RIGHTS).await;
    let labels = json!({ "example.org/ca-bundle": "true" });
    let hook = |name: &str| {
        json!({
            "name": format!("{name}.example.org"), "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "failurePolicy": "Ignore", "rules": [],
            "clientConfig": { "service": { "namespace": "default", "name": name } },
        })
    };
    let (hooks, services) = (HOOK.rsplit_once('/').unwrap().0, SERVICE.rsplit_once('/').unwrap().0);
    cluster
        .create(
            hooks,
            json!({ "metadata": { "name": "hook", "labels": labels }, "webhooks": [hook("a"), hook("b")] }),
        )
        .await;
    let others = json!({ "metadata": { "name": "other" }, "webhooks": [hook("c")] });
    cluster.create(hooks, others).await;
    cluster
        .create(
            services,
            json!({
                "metadata": { "name": "v1.example.org", "labels": labels },
                "spec": {
                    "group": "example.org", "version": "v1", "groupPriorityMinimum": 100, "versionPriority": 100,
                    "service": { "namespace": "default", "name": "a" },
                },
            }),
        )
        .await;
    let config = cluster.kubeconfig();
    let section = format!(
        "[bundle_publisher.k8s_configmap.clusters.prod]\nnamespace = \"default\"\nconfigmap_name = \"bonafide-bundle\"\n\
         kubeconfig_path = \"{0}\"\n\
         [bundle_publisher.k8s_ca_bundle.clusters.prod]\nlabel = \"example.org/ca-bundle\"\nkubeconfig_path = \"{0}\"\n\
         [bundle_publisher.k8s_cluster_trust_bundle.clusters.prod]\nname = \"example.org:svid:bundle\"\n\
         signer_name = \"example.org/svid\"\nkubeconfig_path = \"{0}\"\n",
        config.display()
    );
    let server = TestServer::start_with(&section).await;
    let published =
        server.server.tasks().iter().find(|task| task.name() == "bundle publication").unwrap().clone();
    let get = async |path: &str| cluster.call(Method::GET, path, Value::Null).await;
    let holds = async |server: &TestServer| {
        // Rights reach the API server's memory a moment after they were written, and failures are tried again.
        let there =
            cluster.status(Method::GET, MAP).await == 200 && cluster.status(Method::GET, TRUST).await == 200;
        if !there {
            return false;
        }
        let encoded = BASE64.encode(pem(server).as_bytes());
        let hooks = get(HOOK).await;
        get(MAP).await["data"]["bundle.crt"] == pem(server)
            && (0..2).all(|at| hooks["webhooks"][at]["clientConfig"]["caBundle"] == encoded)
            && get(SERVICE).await["spec"]["caBundle"] == encoded
            && get(TRUST).await["spec"]["trustBundle"]
                .as_str()
                .is_some_and(|text| text.contains("BEGIN CERTIFICATE"))
    };
    let settled = cluster.until(Duration::from_secs(60), async || holds(&server).await).await;
    assert!(settled, "{:?}", published.status());
    assert_eq!(get(&format!("{hooks}/other")).await["webhooks"][0]["clientConfig"]["caBundle"], Value::Null);
    assert_eq!(get(TRUST).await["spec"]["signerName"], "example.org/svid");

    // A new authority is everywhere before it signs.
    let before = pem(&server);
    let mut authorities = LocalAuthorityClient::new(server.local().await);
    authorities.prepare_x509_authority(pb::PrepareX509AuthorityRequest {}).await.unwrap();
    assert_ne!(pem(&server), before);
    assert!(
        cluster.until(Duration::from_secs(10), async || holds(&server).await).await,
        "{:?}",
        published.status()
    );

    // What belongs to others stays; what is ours comes back.
    let change = json!({ "data": { "bundle.crt": "changed", "more": "theirs" } });
    cluster.call(Method::PATCH, MAP, change).await;
    published.wake();
    assert!(
        cluster.until(Duration::from_secs(10), async || holds(&server).await).await,
        "{:?}",
        published.status()
    );
    assert_eq!(get(MAP).await["data"]["more"], "theirs");

    // A right that is missing is named, and keeps the other places fresh.
    let mut fewer = RIGHTS;
    fewer[0].2 = &[];
    cluster.allow(&fewer).await;
    let named = cluster.until(Duration::from_secs(30), async || {
        published.wake();
        let error = published.status().last.and_then(|last| last.error).unwrap_or_default();
        error.contains("k8s_configmap.clusters.prod: this server may not patch configmaps in the cluster")
            && !error.contains("k8s_ca_bundle")
    });
    assert!(named.await, "{:?}", published.status());
}
