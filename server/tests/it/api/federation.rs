//! Federation: the service for relationships, the endpoint, the poller, and peers that do not mean well.

mod acme;
mod endpoint;
mod polling;
mod relationships;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bonafide_identity::{Bundle, TrustDomain};
use bonafide_pki::bundle::{from_spiffe_json, to_spiffe_json};
use bonafide_proto::convert;
use bonafide_proto::spire::server::trustdomain::v1 as pb;
use bonafide_proto::spire::server::trustdomain::v1::trust_domain_client::TrustDomainClient;
use bonafide_proto::spire::types;
use bonafide_proto::spire::types::federation_relationship::BundleEndpointProfile as Profile;
use bonafide_server::config::Config;
use bonafide_testkit::{ManualClock, TestAuthority};
use tempfile::TempDir;
use tonic::transport::Channel;

use super::harness::TestServer;

/// A server of any trust domain.
async fn server_of(name: &str, more: &str) -> TestServer {
    let folder = TempDir::new().unwrap();
    let at = folder.path().display();
    let text = format!(
        "trust_domain = \"{name}\"\ndata_dir = \"{at}\"\n[listen]\naddress = \"127.0.0.1:0\"\nadmin_socket = \"{at}/api.sock\"\n\
         [store]\ndriver = \"memory\"\n[key_manager.memory]\n{more}"
    );
    let config = Config::parse(&text, "test.toml".as_ref()).unwrap();
    TestServer::start_from(folder, ManualClock::default(), config).await
}

const ENDPOINT: &str = "[federation.bundle_endpoint]\naddress = \"127.0.0.1:0\"\n";

fn td(name: &str) -> TrustDomain {
    TrustDomain::parse(name).unwrap()
}

fn endpoint(server: &TestServer) -> SocketAddr {
    server.server.bundle_endpoint_address().unwrap()
}

fn bundle(server: &TestServer, name: &str) -> Option<Arc<Bundle>> {
    server.server.context().state.bundle(&td(name))
}

async fn client(server: &TestServer) -> TrustDomainClient<Channel> {
    TrustDomainClient::new(server.local().await)
}

fn spiffe(name: &str, url: &str, id: &str) -> types::FederationRelationship {
    let profile = types::HttpsspiffeProfile { endpoint_spiffe_id: id.to_owned() };
    types::FederationRelationship {
        trust_domain: name.to_owned(),
        bundle_endpoint_url: url.to_owned(),
        bundle_endpoint_profile: Some(Profile::HttpsSpiffe(profile)),
        trust_domain_bundle: None,
    }
}

fn web(name: &str, url: &str) -> types::FederationRelationship {
    types::FederationRelationship {
        bundle_endpoint_profile: Some(Profile::HttpsWeb(types::HttpsWebProfile {})),
        ..spiffe(name, url, "")
    }
}

fn with_bundle(mut one: types::FederationRelationship, bundle: &Bundle) -> types::FederationRelationship {
    one.trust_domain_bundle = Some(convert::bundle_to_wire(bundle, None));
    one
}

/// A relationship with the endpoint of `peer`, with its bundle as it is now.
fn with_peer(peer: &TestServer, name: &str) -> types::FederationRelationship {
    let url = format!("https://{}", endpoint(peer));
    let published = to_spiffe_json(&bundle(peer, name).unwrap());
    let bundle = from_spiffe_json(&td(name), published.as_bytes()).unwrap();
    with_bundle(spiffe(name, &url, &format!("spiffe://{name}/spire/server")), &bundle)
}

async fn create(
    server: &TestServer,
    relationships: Vec<types::FederationRelationship>,
) -> Vec<(i32, String, Option<types::FederationRelationship>)> {
    let request = pb::BatchCreateFederationRelationshipRequest {
        federation_relationships: relationships,
        output_mask: None,
    };
    let response = client(server).await.batch_create_federation_relationship(request).await.unwrap();
    let results = response.into_inner().results.into_iter();
    results
        .map(|result| {
            let status = result.status.expect("each result has a status");
            (status.code, status.message, result.federation_relationship)
        })
        .collect()
}

async fn create_one(server: &TestServer, relationship: types::FederationRelationship) {
    let results = create(server, vec![relationship]).await;
    assert_eq!((results[0].0, results[0].1.as_str()), (0, "OK"));
}

fn authority(server: &TestServer, name: &str) -> Vec<u8> {
    let now = server.clock.now();
    let hour = Duration::from_secs(3600);
    TestAuthority::new(&td(name), now.saturating_sub(hour), now.saturating_add(hour)).certificate().to_vec()
}

/// Adds an authority to a server's own bundle.
async fn append(server: &TestServer, certificate: Vec<u8>) {
    use bonafide_proto::spire::server::bundle::v1::AppendBundleRequest;
    use bonafide_proto::spire::server::bundle::v1::bundle_client::BundleClient;
    let request = AppendBundleRequest {
        x509_authorities: vec![types::X509Certificate { asn1: certificate, tainted: false }],
        ..AppendBundleRequest::default()
    };
    BundleClient::new(server.local().await).append_bundle(request).await.unwrap();
}

fn has(bundle: Option<&Arc<Bundle>>, certificate: &[u8]) -> bool {
    bundle.is_some_and(|bundle| bundle.x509_authorities.iter().any(|root| root.certificate == certificate))
}
