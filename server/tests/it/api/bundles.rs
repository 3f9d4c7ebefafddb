//! Bundles: the own one, and those of other trust domains.

use std::time::Duration;

use bonafide_identity::{Bundle, TrustDomain};
use bonafide_pki::{KeyType, PrivateKey, Signer};
use bonafide_proto::spire::server::bundle::v1 as pb;
use bonafide_proto::spire::server::bundle::v1::batch_delete_federated_bundle_request::Mode;
use bonafide_proto::spire::server::bundle::v1::bundle_client::BundleClient;
use bonafide_proto::spire::types;
use bonafide_testkit::TestAuthority;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::harness::{TestServer, assert_refused, id, stored_entry, trust_domain};

async fn local(server: &TestServer) -> BundleClient<Channel> {
    BundleClient::new(server.local().await)
}

fn root(server: &TestServer, name: &str) -> types::X509Certificate {
    let now = server.clock.now();
    let authority = TestAuthority::new(
        &TrustDomain::parse(name).unwrap(),
        now.saturating_sub(Duration::from_secs(60)),
        now.saturating_add(Duration::from_secs(3600)),
    );
    types::X509Certificate { asn1: authority.certificate().to_vec(), tainted: false }
}

fn jwt_key(key_id: &str) -> types::JwtKey {
    let key = PrivateKey::generate(KeyType::EcP256).unwrap();
    types::JwtKey {
        public_key: key.public_key().spki_der().to_vec(),
        key_id: key_id.to_owned(),
        expires_at: 2_000_000_000,
        tainted: false,
    }
}

fn foreign(server: &TestServer, name: &str) -> types::Bundle {
    types::Bundle {
        trust_domain: name.to_owned(),
        x509_authorities: vec![root(server, "other.org")],
        jwt_authorities: vec![jwt_key("k1")],
        refresh_hint: 60,
        sequence_number: 42,
        wit_authorities: vec![],
    }
}

fn stored(server: &TestServer, name: &str) -> Option<Bundle> {
    let name = TrustDomain::parse(name).unwrap();
    server.server.context().state.bundle(&name).map(|bundle| Bundle::clone(&bundle))
}

#[track_caller]
fn assert_status(status: Option<&types::Status>, code: Code, message: &str) {
    let status = status.expect("every result has a status");
    let found = status.message.as_str();
    let fits = match message.strip_suffix('…') {
        Some(beginning) => found.starts_with(beginning),
        None => found == message,
    };
    assert!(status.code == code as i32 && fits, "{} {found:?} instead of {code:?} {message:?}", status.code);
}

#[track_caller]
fn assert_refused_as<T>(what: &str, result: Result<T, Status>, code: Code, message: &str) {
    let Err(status) = result else { panic!("{what}: must be refused") };
    let status = types::Status { code: status.code() as i32, message: status.message().to_owned() };
    assert_status(Some(&status), code, message);
}

const NOTHING: types::BundleMask = types::BundleMask {
    x509_authorities: false,
    jwt_authorities: false,
    refresh_hint: false,
    sequence_number: false,
    wit_authorities: false,
};

#[tokio::test]
async fn anybody_may_have_the_own_bundle_through_a_mask() {
    let server = TestServer::start().await;
    let mut client = BundleClient::new(server.anonymous().await);
    let all = client.get_bundle(pb::GetBundleRequest { output_mask: None }).await.unwrap().into_inner();
    assert_eq!(all.trust_domain, "example.org");
    let counts = [all.x509_authorities.len(), all.jwt_authorities.len(), all.wit_authorities.len()];
    assert_eq!(counts, [1, 1, 1]);
    let none = client.get_bundle(pb::GetBundleRequest { output_mask: Some(NOTHING) }).await.unwrap();
    let empty = types::Bundle { trust_domain: "example.org".into(), ..types::Bundle::default() };
    assert_eq!(none.into_inner(), empty);
    let mask = types::BundleMask { jwt_authorities: true, ..NOTHING };
    let some =
        client.get_bundle(pb::GetBundleRequest { output_mask: Some(mask) }).await.unwrap().into_inner();
    assert_eq!(some, types::Bundle { jwt_authorities: all.jwt_authorities, ..empty });
}

/// A certificate with the same extension twice can be read, and verifies nothing.
#[tokio::test]
async fn an_authority_that_verification_cannot_use_is_refused() {
    let server = TestServer::start().await;
    let authority = server.federated("other.org").await;
    let id = bonafide_identity::SpiffeId::parse("spiffe://other.org/a").unwrap();
    let odd = authority.issue_with(&id, |params| {
        let usage = rcgen::CustomExtension::from_oid_content(&[2, 5, 29, 15], vec![3, 2, 1, 6]);
        params.custom_extensions.push(usage);
    });
    bonafide_pki::inspect(&odd.chain[0]).expect("it can be read");
    let asn1 = odd.chain[0].clone();
    let request = pb::AppendBundleRequest {
        x509_authorities: vec![types::X509Certificate { asn1, tainted: false }],
        ..pb::AppendBundleRequest::default()
    };
    let refused = BundleClient::new(server.local().await).append_bundle(request).await.map(drop);
    assert_eq!(refused.expect_err("refused").code(), Code::InvalidArgument);
    // Agents are still let in.
    server.agent().await;
}

#[tokio::test]
async fn appending_adds_what_is_new() {
    let server = TestServer::start().await;
    let mut client = local(&server).await;
    let request = |x509, jwt| pb::AppendBundleRequest {
        x509_authorities: x509,
        jwt_authorities: jwt,
        ..pb::AppendBundleRequest::default()
    };
    let bad_root = types::X509Certificate { asn1: b"x".to_vec(), tainted: false };
    let two_roots = types::X509Certificate {
        asn1: [root(&server, "a.org").asn1, root(&server, "a.org").asn1].concat(),
        tainted: false,
    };
    let bad_key = types::JwtKey { public_key: b"x".to_vec(), ..jwt_key("k") };
    for (what, request, message) in [
        ("nothing", request(vec![], vec![]), "no authorities to append"),
        ("no certificate", request(vec![bad_root], vec![]), "failed to convert X.509 authority: …"),
        ("two certificates", request(vec![two_roots], vec![]), "failed to convert X.509 authority: …"),
        ("no key", request(vec![], vec![bad_key]), "failed to convert JWT authority: …"),
        ("no key ID", request(vec![], vec![jwt_key("")]), "failed to convert JWT authority: missing key ID"),
    ] {
        assert_refused_as(what, client.append_bundle(request).await, Code::InvalidArgument, message);
    }
    let before = stored(&server, "example.org").unwrap();
    let tainted = types::X509Certificate { tainted: true, ..root(&server, "example.org") };
    let more = request(vec![tainted.clone(), tainted], vec![jwt_key("k1")]);
    let bundle = client.append_bundle(more.clone()).await.unwrap().into_inner();
    assert_eq!((bundle.x509_authorities.len(), bundle.jwt_authorities.len()), (2, 2));
    assert!(!bundle.x509_authorities[1].tainted, "taint is not for clients to say");
    assert_eq!(bundle.jwt_authorities[1].expires_at, 2_000_000_000);
    assert_eq!(bundle.sequence_number, before.sequence_number + 1);
    let again = client.append_bundle(more).await.unwrap().into_inner();
    assert_eq!(again, bundle, "appending what is there changes nothing");
}

#[tokio::test]
async fn downstream_servers_publish_their_keys() {
    let server = TestServer::start().await;
    let mut entry = stored_entry("downstream", &id("/spire/agent/x"), "/downstream");
    entry.downstream = true;
    server.entry(entry).await;
    let identity = server.identity("/downstream");
    let mut client = BundleClient::new(server.remote(Some(&identity)).await.unwrap());
    let bad = types::JwtKey { public_key: b"x".to_vec(), ..jwt_key("k") };
    for (what, jwt_authority, message) in [
        ("nothing", None, "missing JWT authority"),
        ("no key", Some(bad), "invalid JWT authority: …"),
        ("no key ID", Some(jwt_key("")), "invalid JWT authority: missing key ID"),
    ] {
        let result = client.publish_jwt_authority(pb::PublishJwtAuthorityRequest { jwt_authority }).await;
        assert_refused_as(what, result, Code::InvalidArgument, message);
    }
    let request = pb::PublishJwtAuthorityRequest { jwt_authority: Some(jwt_key("theirs")) };
    let keys = client.publish_jwt_authority(request).await.unwrap().into_inner().jwt_authorities;
    assert_eq!(keys.len(), 2, "all keys of the trust domain come back");
    assert_eq!(keys[1].key_id, "theirs");

    let missing = client.publish_wit_authority(pb::PublishWitAuthorityRequest { wit_authority: None }).await;
    assert_refused(missing, Code::InvalidArgument, "missing WIT authority");
    let types::JwtKey { public_key, expires_at, .. } = jwt_key("w");
    let wit = types::WitKey { public_key, key_id: "w".into(), expires_at, tainted: false };
    let request = pb::PublishWitAuthorityRequest { wit_authority: Some(wit) };
    let keys = client.publish_wit_authority(request).await.unwrap().into_inner().wit_authorities;
    assert_eq!(keys.len(), 2);
}

#[tokio::test]
async fn publishing_a_kind_that_is_switched_off_is_unimplemented() {
    let server =
        TestServer::start_with("[authority]\ndisable_jwt_svids = true\ndisable_wit_svids = true").await;
    let mut entry = stored_entry("downstream", &id("/spire/agent/x"), "/downstream");
    entry.downstream = true;
    server.entry(entry).await;
    let identity = server.identity("/downstream");
    let mut client = BundleClient::new(server.remote(Some(&identity)).await.unwrap());
    let jwt = client.publish_jwt_authority(pb::PublishJwtAuthorityRequest::default()).await;
    assert_refused(jwt, Code::Unimplemented, "JWT functionality is disabled");
    let wit = client.publish_wit_authority(pb::PublishWitAuthorityRequest::default()).await;
    assert_refused(wit, Code::Unimplemented, "WIT functionality is disabled");
}

/// Trust domain, code and message, for what create, update and set have in common; `verb` begins the words about the
/// own trust domain.
fn bad_bundles(server: &TestServer, verb: &str) -> Vec<(types::Bundle, Code, String)> {
    let invalid = Code::InvalidArgument;
    let with = |change: fn(&mut types::Bundle)| {
        let mut bundle = foreign(server, "other.org");
        change(&mut bundle);
        bundle
    };
    let own = format!("{verb} a federated bundle for the server's own trust domain is not allowed");
    vec![
        (foreign(server, "example.org"), invalid, own.clone()),
        (foreign(server, "spiffe://example.org"), invalid, own),
        (foreign(server, ""), invalid, "trust domain argument is not valid: …".into()),
        (foreign(server, "Other.org"), invalid, "trust domain argument is not valid: …".into()),
        (foreign(server, "other.org/path"), invalid, "trust domain argument is not valid: …".into()),
        (
            with(|bundle| bundle.x509_authorities[0].asn1 = b"x".to_vec()),
            invalid,
            "failed to convert bundle: unable to parse X.509 authority: …".into(),
        ),
        (
            with(|bundle| bundle.jwt_authorities[0].public_key.clear()),
            invalid,
            "failed to convert bundle: unable to parse JWT authority: …".into(),
        ),
        (
            with(|bundle| bundle.jwt_authorities[0].key_id.clear()),
            invalid,
            "failed to convert bundle: unable to parse JWT authority: missing key ID".into(),
        ),
        (
            with(|bundle| bundle.refresh_hint = -1),
            invalid,
            "failed to convert bundle: refresh hint must not be negative".into(),
        ),
    ]
}

#[tokio::test]
async fn create() {
    let server = TestServer::start().await;
    let mut client = local(&server).await;
    let mut table = bad_bundles(&server, "creating");
    let wanted = foreign(&server, "spiffe://other.org");
    table.push((wanted.clone(), Code::Ok, "OK".into()));
    table.push((foreign(&server, "other.org"), Code::AlreadyExists, "bundle already exists".into()));
    let bundle = table.iter().map(|(bundle, ..)| bundle.clone()).collect();
    let request = pb::BatchCreateFederatedBundleRequest { bundle, output_mask: None };
    let results = client.batch_create_federated_bundle(request).await.unwrap().into_inner().results;
    assert_eq!(results.len(), table.len());
    for (result, (_, code, message)) in results.iter().zip(&table) {
        assert_status(result.status.as_ref(), *code, message);
        assert_eq!(result.bundle.is_some(), *code == Code::Ok);
    }
    let echoed = results[table.len() - 2].bundle.clone().unwrap();
    assert_eq!(echoed, types::Bundle { trust_domain: "other.org".into(), ..wanted });
    assert_eq!(stored(&server, "other.org").unwrap().sequence_number, 42, "the number is the peer's");
    let count = client.count_bundles(pb::CountBundlesRequest {}).await.unwrap().into_inner().count;
    assert_eq!(count, 2);
    let audited = server.audit().await;
    let line = audited.iter().find(|line| line.to_string().contains("BatchCreateFederatedBundle")).unwrap();
    assert!(line.to_string().contains("other.org"), "{line}");
}

#[tokio::test]
async fn update() {
    let server = TestServer::start().await;
    server.federated("other.org").await;
    let mut client = local(&server).await;
    let mut table = bad_bundles(&server, "updating");
    table.push((foreign(&server, "nowhere.org"), Code::NotFound, "bundle not found".into()));
    table.push((foreign(&server, "other.org"), Code::Ok, "OK".into()));
    let bundle = table.iter().map(|(bundle, ..)| bundle.clone()).collect();
    let request =
        pb::BatchUpdateFederatedBundleRequest { bundle, input_mask: None, output_mask: Some(NOTHING) };
    let results = client.batch_update_federated_bundle(request).await.unwrap().into_inner().results;
    assert_eq!(results.len(), table.len());
    for (result, (_, code, message)) in results.iter().zip(&table) {
        assert_status(result.status.as_ref(), *code, message);
    }
    let last = results.last().unwrap().bundle.clone().unwrap();
    assert_eq!(last, types::Bundle { trust_domain: "other.org".into(), ..types::Bundle::default() });
    let before = stored(&server, "other.org").unwrap();
    assert_eq!((before.refresh_hint, before.jwt_authorities.len()), (60, 1));

    let input_mask = Some(types::BundleMask { refresh_hint: true, ..NOTHING });
    let bundle =
        types::Bundle { trust_domain: "other.org".into(), refresh_hint: 7, ..types::Bundle::default() };
    let request =
        pb::BatchUpdateFederatedBundleRequest { bundle: vec![bundle.clone()], input_mask, output_mask: None };
    client.batch_update_federated_bundle(request).await.unwrap();
    assert_eq!(stored(&server, "other.org").unwrap(), Bundle { refresh_hint: 7, ..before });

    let request =
        pb::BatchUpdateFederatedBundleRequest { bundle: vec![bundle], input_mask: None, output_mask: None };
    client.batch_update_federated_bundle(request).await.unwrap();
    assert!(stored(&server, "other.org").unwrap().is_empty(), "without a mask what is left out is emptied");
}

#[tokio::test]
async fn set() {
    let server = TestServer::start().await;
    let mut client = local(&server).await;
    let mut table = bad_bundles(&server, "setting");
    table.push((foreign(&server, "other.org"), Code::Ok, "OK".into()));
    let replacing = types::Bundle { refresh_hint: 9, ..foreign(&server, "other.org") };
    table.push((replacing, Code::Ok, "OK".into()));
    let bundle = table.iter().map(|(bundle, ..)| bundle.clone()).collect();
    let request = pb::BatchSetFederatedBundleRequest { bundle, output_mask: None };
    let results = client.batch_set_federated_bundle(request).await.unwrap().into_inner().results;
    assert_eq!(results.len(), table.len());
    for (result, (_, code, message)) in results.iter().zip(&table) {
        assert_status(result.status.as_ref(), *code, message);
        assert_eq!(result.bundle.is_some(), *code == Code::Ok);
    }
    assert_eq!(stored(&server, "other.org").unwrap().refresh_hint, 9);
}

#[tokio::test]
async fn get_and_list() {
    let server = TestServer::start().await;
    for name in ["a.org", "b.org", "c.org"] {
        server.federated(name).await;
    }
    let mut client = local(&server).await;
    let get =
        |name: &str| pb::GetFederatedBundleRequest { trust_domain: name.into(), output_mask: Some(NOTHING) };
    let own = "getting a federated bundle for the server's own trust domain is not allowed";
    for (name, code, message) in [
        ("example.org", Code::InvalidArgument, own),
        ("", Code::InvalidArgument, "trust domain argument is not valid: …"),
        ("B.org", Code::InvalidArgument, "trust domain argument is not valid: …"),
        ("d.org", Code::NotFound, "bundle not found"),
    ] {
        assert_refused_as(name, client.get_federated_bundle(get(name)).await, code, message);
    }
    let found = client.get_federated_bundle(get("spiffe://b.org")).await.unwrap().into_inner();
    assert_eq!(found, types::Bundle { trust_domain: "b.org".into(), ..types::Bundle::default() });
    let agent = server.agent().await;
    let mut of_agent = BundleClient::new(server.remote(Some(&agent)).await.unwrap());
    of_agent.get_federated_bundle(get("a.org")).await.unwrap();

    let mut list = async |page_size, page_token: String| {
        let request = pb::ListFederatedBundlesRequest { output_mask: Some(NOTHING), page_size, page_token };
        client.list_federated_bundles(request).await.map(|response| {
            let response = response.into_inner();
            let names: Vec<_> = response.bundles.into_iter().map(|bundle| bundle.trust_domain).collect();
            (names, response.next_page_token)
        })
    };
    let (all, token) = list(0, "ignored".into()).await.unwrap();
    assert_eq!((all, token.as_str()), (vec!["a.org".to_owned(), "b.org".into(), "c.org".into()], ""));
    let mut seen = Vec::new();
    let mut token = String::new();
    for _ in 0..10 {
        let (page, next) = list(2, token).await.unwrap();
        assert!(page.len() <= 2);
        seen.extend(page);
        token = next;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(token, "", "the pages end");
    assert_eq!(seen, ["a.org", "b.org", "c.org"]);
    let text = "failed to list bundles: could not parse token 'x'";
    assert_refused(list(2, "x".into()).await, Code::Internal, text);
    assert_eq!(list(-1, "ignored".into()).await.unwrap().0.len(), 3, "a negative size is as none");
}

#[tokio::test]
async fn delete_by_mode() {
    let server = TestServer::start().await;
    let mut client = local(&server).await;
    let mut delete = async |names: &[&str], mode: i32| {
        let trust_domains = names.iter().map(|name| (*name).to_owned()).collect();
        let request = pb::BatchDeleteFederatedBundleRequest { trust_domains, mode };
        client.batch_delete_federated_bundle(request).await.map(|response| response.into_inner().results)
    };
    let entry =
        |entry_id: &str| server.server.context().state.entries().get(&entry_id.parse().unwrap()).cloned();
    for name in ["a.org", "b.org", "c.org"] {
        server.federated(name).await;
    }
    for (entry_id, with) in [("in-a", &["a.org"][..]), ("in-ab", &["a.org", "b.org"]), ("in-b", &["b.org"])] {
        let mut stored = stored_entry(entry_id, &id("/spire/agent/x"), &format!("/{entry_id}"));
        stored.federates_with = with.iter().map(|name| TrustDomain::parse(name).unwrap()).collect();
        server.entry(stored).await;
    }

    let results =
        delete(&["a.org", "example.org", "", "d.org", "c.org"], Mode::Restrict as i32).await.unwrap();
    let restricted =
        "failed to delete federated bundle: cannot delete bundle; federated with 2 registration entries";
    let own = "removing the bundle for the server trust domain is not allowed";
    for (result, (code, message)) in results.iter().zip([
        (Code::FailedPrecondition, restricted),
        (Code::InvalidArgument, own),
        (Code::InvalidArgument, "trust domain argument is not valid: …"),
        (Code::NotFound, "bundle not found"),
        (Code::Ok, "OK"),
    ]) {
        assert_status(result.status.as_ref(), code, message);
    }
    assert_eq!(
        results.iter().map(|r| r.trust_domain.as_str()).collect::<Vec<_>>(),
        ["a.org", "example.org", "", "d.org", "c.org"]
    );
    assert!(stored(&server, "a.org").is_some() && stored(&server, "c.org").is_none());

    let results = delete(&["a.org"], Mode::Dissociate as i32).await.unwrap();
    assert_status(results[0].status.as_ref(), Code::Ok, "OK");
    let left = entry("in-ab").unwrap();
    assert_eq!(left.federates_with.to_vec(), [TrustDomain::parse("b.org").unwrap()]);
    assert_eq!(left.revision, 1);
    assert!(entry("in-a").unwrap().federates_with.is_empty());
    assert!(stored(&server, "a.org").is_none());

    let results = delete(&["spiffe://b.org"], Mode::Delete as i32).await.unwrap();
    assert_eq!(results[0].trust_domain, "spiffe://b.org");
    assert!(entry("in-ab").is_none() && entry("in-b").is_none() && entry("in-a").is_some());
    assert!(stored(&server, "b.org").is_none());

    let unknown = delete(&["c.org"], 7).await;
    assert_refused(
        unknown,
        Code::InvalidArgument,
        "failed to parse deletion mode: unhandled delete mode \"7\"",
    );
    assert_eq!(server.server.context().state.bundles().len(), 1);
    assert_eq!(stored(&server, trust_domain().as_str()).unwrap().x509_authorities.len(), 1);
}
