//! The `cert_manager` driver: against a double with an issuer, and against a real API server that knows the resource, where the
//! test is the issuer.

use bonafide_server::kubernetes::{self, Access};
use bonafide_server::upstream_authority::cert_manager::{CertManager, CertManagerIssuer};
use data_encoding::BASE64;
use http::Method;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::upstream::conforms;
use super::*;
use crate::kubernetes::double::Double;
use crate::kubernetes::real;

const REQUESTS: &str = "/apis/cert-manager.io/v1/namespaces/default/certificaterequests";

fn issuer() -> CertManagerIssuer {
    CertManagerIssuer {
        namespace: "default".to_owned(),
        name: "ca".to_owned(),
        kind: "ClusterIssuer".to_owned(),
        group: "cert-manager.io".to_owned(),
    }
}

fn client(kubeconfig: PathBuf) -> CertManager {
    let api = kubernetes::connect(&Access::KubeConfig(kubeconfig)).unwrap();
    CertManager::new(trust_domain(), issuer(), api)
}

fn fresh_csr() -> Vec<u8> {
    TestAuthority::request(&trust_domain().id()).0
}

/// What the issuer writes into the status of a request.
async fn signed(disk: &Disk, request: &Value, now: Timestamp) -> Value {
    let spec = &request["spec"];
    assert_eq!((&spec["isCA"], &spec["usages"]), (&json!(true), &json!(["cert sign", "crl sign"])));
    assert_eq!(
        spec["issuerRef"],
        json!({ "name": "ca", "kind": "ClusterIssuer", "group": "cert-manager.io" })
    );
    let ttl: u64 = spec["duration"].as_str().unwrap().strip_suffix('s').unwrap().parse().unwrap();
    let csr = BASE64.decode(spec["request"].as_str().unwrap().as_bytes()).unwrap();
    let csr = pem::decode_all(&csr).unwrap();
    assert_eq!(csr[0].0, "CERTIFICATE REQUEST");
    let ca = disk.mint_ca(&csr[0].1, Duration::from_secs(ttl), now).await.unwrap();
    let text = |list: &[Vec<u8>]| {
        let text: String = list.iter().map(|der| pem::encode("CERTIFICATE", der)).collect();
        BASE64.encode(text.as_bytes())
    };
    let conditions = json!([
        { "type": "Approved", "status": "True", "reason": "cert-manager.io", "message": "" },
        { "type": "Ready", "status": "True", "reason": "Issued", "message": "" },
    ]);
    // Some issuers add their root.
    let chain = [ca.chain.as_slice(), ca.roots.as_slice()].concat();
    json!({ "conditions": conditions, "certificate": text(&chain), "ca": text(&ca.roots) })
}

/// Waits for requests in the double, and gives each a status.
fn issue(double: &Arc<Double>, disk: Disk, now: Timestamp) -> JoinHandle<()> {
    let double = Arc::clone(double);
    tokio::spawn(async move {
        loop {
            let waiting: Vec<(String, Value)> = {
                let state = double.state();
                let waiting = state.objects.iter().filter(|(_, object)| object.get("status").is_none());
                waiting.map(|(path, object)| (path.clone(), object.clone())).collect()
            };
            for (path, request) in waiting {
                let status = signed(&disk, &request, now).await;
                if let Some(object) = double.state().objects.get_mut(&path) {
                    object["status"] = status;
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
}

fn condition(kind: &str, status: &str, reason: &str) -> Value {
    json!({ "conditions": [{ "type": kind, "status": status, "reason": reason, "message": "why" }] })
}

#[tokio::test]
async fn the_driver_conforms_and_leaves_nothing_behind() {
    let world = World::new();
    for files in [UpstreamFiles::self_signed(&world), UpstreamFiles::intermediate(&world)] {
        let double = Double::start().await;
        let issuer = issue(&double, files.open(&world), world.clock.now());
        conforms(&client(double.kubeconfig(world.folder.path())), world.clock.now()).await;
        assert_eq!(double.state().objects.len(), 0);
        issuer.abort();
    }
}

#[tokio::test]
async fn a_request_that_waits_is_taken_up_again() {
    let world = World::new();
    let double = Double::start().await;
    let driver = client(double.kubeconfig(world.folder.path())).patient_for(Duration::from_millis(300));
    let (csr, now) = (fresh_csr(), world.clock.now());
    let refused = driver.mint_ca(&csr, CA_TTL, now).await.unwrap_err().to_string();
    assert!(refused.contains("is not signed yet (nobody has approved it)"), "{refused}");
    let path = double.state().objects.keys().next().unwrap().clone();
    double.state().objects.get_mut(&path).unwrap()["status"] = condition("Approved", "True", "hand");
    let refused = driver.mint_ca(&csr, CA_TTL, now).await.unwrap_err().to_string();
    assert!(refused.contains("it is approved, and its issuer has done nothing"), "{refused}");
    assert_eq!(double.state().objects.len(), 1, "one request for one key");
    // Signed while nobody looked.
    let files = UpstreamFiles::self_signed(&world);
    let request = double.state().objects[&path].clone();
    let status = signed(&files.open(&world), &request, now).await;
    double.state().objects.get_mut(&path).unwrap()["status"] = status;
    driver.mint_ca(&csr, CA_TTL, now).await.unwrap();
    assert_eq!(double.state().objects.len(), 0);
}

#[tokio::test]
async fn each_end_is_told_and_cleared_away() {
    let world = World::new();
    let double = Double::start().await;
    let driver = client(double.kubeconfig(world.folder.path())).patient_for(Duration::from_millis(100));
    let (csr, now) = (fresh_csr(), world.clock.now());
    let sign = async || driver.mint_ca(&csr, CA_TTL, now).await.map(drop).map_err(|error| error.to_string());
    let without_root = json!({ "certificate": BASE64.encode(b"x"), "conditions": [] });
    for (status, text) in [
        (condition("Denied", "True", "Policy"), "was denied (Policy: why)"),
        (condition("InvalidRequest", "True", "Csr"), "is invalid (Csr: why)"),
        (condition("Ready", "False", "Failed"), "has failed (Failed: why)"),
        (without_root, "its issuer does not tell its CA (status.ca)"),
        (json!({ "certificate": "?", "ca": "?" }), "that is no base64"),
        (json!({ "certificate": "eA==", "ca": "eA==" }), "without certificates"),
    ] {
        // Waiting, then at its end, while nobody looks: the next attempt makes a new one.
        let waiting = sign().await.unwrap_err();
        assert!(waiting.contains("is not signed yet"), "{waiting}");
        let path = double.state().objects.keys().next().unwrap().clone();
        let uid = double.state().objects[&path]["metadata"]["uid"].clone();
        double.state().objects.get_mut(&path).unwrap()["status"] = status.clone();
        let waiting = sign().await.unwrap_err();
        assert!(waiting.contains("is not signed yet"), "{waiting}");
        assert_ne!(double.state().objects[&path]["metadata"]["uid"], uid);
        // At its end while it is waited for.
        let ending = Arc::clone(&double);
        let ender = tokio::spawn(async move {
            loop {
                if let Some(object) = ending.state().objects.get_mut(&path) {
                    object["status"] = status.clone();
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        let patient = client(double.kubeconfig(world.folder.path()));
        double.state().objects.clear();
        let refused = patient.mint_ca(&csr, CA_TTL, now).await.unwrap_err().to_string();
        assert!(refused.contains(text), "{text}: {refused}");
        ender.abort();
        assert_eq!(double.state().objects.len(), 0, "{text}");
    }
    // Rights, and what is not installed.
    for verb in ["create", "get"] {
        double.state().forbidden = [(verb, "certificaterequests.cert-manager.io")].into();
        let text = format!("this server may not {verb} certificaterequests.cert-manager.io");
        // An attempt that was refused may have made the request already.
        let refused = sign().await.unwrap_err();
        let refused = if verb == "get" { refused + &sign().await.unwrap_err() } else { refused };
        assert!(refused.contains(&text), "{refused}");
    }
}

#[tokio::test]
async fn only_old_requests_of_this_program_are_deleted() {
    let world = World::new();
    let double = Double::start().await;
    let files = UpstreamFiles::self_signed(&world);
    // The objects of the double were made when the clock began.
    let ended = condition("Ready", "False", "Failed");
    let request = |name: &str, program: &str, trust_domain: &str, status: &Value| {
        let labels = json!({ "cert-manager.spiffe.io/trust-domain": trust_domain, "app.kubernetes.io/managed-by": program });
        let metadata = json!({ "name": name, "uid": name, "labels": labels, "creationTimestamp": "2026-01-01T00:00:00Z" });
        (format!("{REQUESTS}/{name}"), json!({ "metadata": metadata, "status": status }))
    };
    let here = trust_domain().to_string();
    let pending = condition("Approved", "True", "hand");
    let put = [
        request("ours", "bonafide-server", &here, &ended),
        request("waiting", "bonafide-server", &here, &pending),
        request("of-spire", "spire", &here, &ended),
        request("of-another", "bonafide-server", "other.test", &ended),
    ];
    double.state().objects.extend(put);
    let issuer = issue(&double, files.open(&world), world.clock.now());
    let driver = client(double.kubeconfig(world.folder.path()));
    let names = || -> Vec<String> {
        let paths = double.state().objects.keys().cloned().collect::<Vec<_>>();
        paths.iter().map(|path| path.rsplit('/').next().unwrap().to_owned()).collect()
    };
    let begin = world.clock.now();
    driver.mint_ca(&fresh_csr(), CA_TTL, begin).await.unwrap();
    assert_eq!(names(), ["of-another", "of-spire", "ours", "waiting"], "young ones stay");
    driver.mint_ca(&fresh_csr(), CA_TTL, begin.saturating_add(Duration::from_secs(3601))).await.unwrap();
    assert_eq!(names(), ["of-another", "of-spire", "waiting"]);
    let week = Duration::from_secs(7 * 86_400 + 1);
    double.state().forbidden = [("list", "certificaterequests.cert-manager.io")].into();
    driver.mint_ca(&fresh_csr(), CA_TTL, begin.saturating_add(week)).await.unwrap();
    assert_eq!(names().len(), 3, "without the right nothing is lost");
    double.state().forbidden.clear();
    driver.mint_ca(&fresh_csr(), CA_TTL, begin.saturating_add(week)).await.unwrap();
    assert_eq!(names(), ["of-another", "of-spire"]);
    issuer.abort();
}

/// The resource as far as the API server has to know it: what it checks and keeps, and that status is apart.
fn definition() -> Value {
    let text = json!({ "type": "string" });
    let byte = json!({ "type": "string", "format": "byte" });
    let condition = json!({
        "type": "object", "required": ["type", "status"],
        "properties": { "type": text, "status": text, "reason": text, "message": text },
    });
    let spec = json!({
        "type": "object", "required": ["request", "issuerRef"],
        "properties": {
            "request": byte, "isCA": { "type": "boolean" }, "duration": text,
            "usages": { "type": "array", "items": text },
            "issuerRef": {
                "type": "object", "required": ["name"], "properties": { "name": text, "kind": text, "group": text },
            },
        },
    });
    let status = json!({
        "type": "object",
        "properties": { "conditions": { "type": "array", "items": condition }, "certificate": byte, "ca": byte },
    });
    let schema = json!({ "type": "object", "properties": { "spec": spec, "status": status } });
    json!({
        "metadata": { "name": "certificaterequests.cert-manager.io" },
        "spec": {
            "group": "cert-manager.io", "scope": "Namespaced",
            "names": { "kind": "CertificateRequest", "listKind": "CertificateRequestList", "plural": "certificaterequests", "singular": "certificaterequest" },
            "versions": [{ "name": "v1", "served": true, "storage": true, "schema": { "openAPIV3Schema": schema }, "subresources": { "status": {} } }],
        },
    })
}

#[tokio::test]
async fn a_real_api_server_takes_the_requests() {
    let Some(cluster) = real::Cluster::start("a_real_api_server_takes_the_requests").await else { return };
    let world = World::new();
    let now = world.clock.now();
    const VERBS: [&str; 4] = ["create", "get", "list", "delete"];
    cluster.allow(&[("cert-manager.io", "certificaterequests", &VERBS)]).await;
    let driver = client(cluster.kubeconfig());
    let missing = cluster.until(Duration::from_secs(30), async || {
        let refused = driver.mint_ca(&fresh_csr(), CA_TTL, now).await.unwrap_err().to_string();
        refused.contains("is cert-manager installed")
    });
    assert!(missing.await, "{}", driver.mint_ca(&fresh_csr(), CA_TTL, now).await.unwrap_err());
    cluster.create("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition()).await;
    let served = cluster.until(Duration::from_secs(30), async || {
        let list = cluster.status(Method::GET, REQUESTS).await;
        list == 200
    });
    assert!(served.await, "the resource is not served");

    let files = UpstreamFiles::intermediate(&world);
    let disk = files.open(&world);
    let issuing = async {
        loop {
            let list = cluster.call(Method::GET, REQUESTS, json!({})).await;
            for request in list["items"].as_array().unwrap().iter().filter(|one| one.get("status").is_none())
            {
                let status = json!({ "status": signed(&disk, request, now).await });
                let path = format!("{REQUESTS}/{}/status", request["metadata"]["name"].as_str().unwrap());
                cluster.call(Method::PATCH, &path, status).await;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        () = conforms(&driver, now) => {}
        () = issuing => {}
    }
    let list = cluster.call(Method::GET, REQUESTS, json!({})).await;
    assert_eq!(list["items"], json!([]), "nothing is left behind");

    for verb in ["create", "get"] {
        let rest: Vec<&str> = VERBS.into_iter().filter(|one| *one != verb).collect();
        cluster.allow(&[("cert-manager.io", "certificaterequests", &rest)]).await;
        let text = format!("this server may not {verb} certificaterequests.cert-manager.io");
        let impatient = client(cluster.kubeconfig()).patient_for(Duration::from_millis(1));
        let named = cluster.until(Duration::from_secs(30), async || {
            impatient
                .mint_ca(&fresh_csr(), CA_TTL, now)
                .await
                .is_err_and(|error| error.to_string().contains(&text))
        });
        assert!(named.await, "{text}");
    }
}
