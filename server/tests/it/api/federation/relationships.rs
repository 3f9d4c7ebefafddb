//! The service: codes, messages, masks, pages.

use bonafide_proto::spire::server::trustdomain::v1 as pb;
use bonafide_proto::spire::types;
use tonic::Code;

use super::super::harness::{TestServer, assert_refused};
use super::*;

/// An endpoint that nobody serves: connecting fails at once.
const NOWHERE: &str = "https://127.0.0.1:1";

#[tokio::test]
async fn what_cannot_be_created_is_refused_item_by_item() {
    let server = TestServer::start().await;
    let other = authority(&server, "other.org");
    let mut foreign = Bundle::empty(td("third.org"));
    foreign.x509_authorities.push(bonafide_identity::X509Authority { certificate: other, tainted: false });
    let no_profile = types::FederationRelationship { bundle_endpoint_profile: None, ..web("b.org", NOWHERE) };
    let converting = "failed to convert federation relationship: ";
    let cases = [
        (web("Other.org", NOWHERE), "failed to parse trust domain: trust domain characters are limited to"),
        (web("", NOWHERE), "failed to parse trust domain: trust domain is missing"),
        (web("b.org", "http://b.org"), "bundle endpoint URL must use the https scheme"),
        (web("b.org", "https:///x"), "bundle endpoint URL must specify the host"),
        (web("b.org", "https://me@b.org"), "bundle endpoint URL must not contain user info"),
        (no_profile, "unsupported bundle endpoint profile type: <nil>"),
        (spiffe("b.org", NOWHERE, "b.org/x"), "failed to parse endpoint SPIFFE ID: scheme is missing"),
        (
            with_bundle(web("b.org", NOWHERE), &foreign),
            "trust domain bundle (\"third.org\") must match the trust domain of the federation relationship (\"b.org\")",
        ),
    ];
    let (mut items, messages): (Vec<_>, Vec<_>) = cases.into_iter().unzip();
    items.push(web("example.org", NOWHERE));
    items.push(web("spiffe://good.org", NOWHERE));
    let results = create(&server, items).await;
    assert_eq!(results.len(), messages.len() + 2, "one for each, in order");
    for ((code, message, relationship), expected) in results.iter().zip(messages) {
        assert_eq!(*code, Code::InvalidArgument as i32, "{message}");
        assert!(message.starts_with(&format!("{converting}{expected}")), "{message:?} is not {expected:?}");
        assert!(relationship.is_none());
    }
    let (code, message, _) = &results[results.len() - 2];
    assert_eq!(
        (*code, message.as_str()),
        (Code::InvalidArgument as i32, "unable to create federation relationship for server trust domain")
    );
    let (code, message, good) = results.last().unwrap();
    assert_eq!((*code, message.as_str(), good.as_ref()), (0, "OK", Some(&web("good.org", NOWHERE))));
    assert!(bundle(&server, "third.org").is_none(), "the bundle of what was refused is not stored");
    let lines = server.audit().await;
    let line = lines
        .iter()
        .find(|line| line["method"].as_str().unwrap().ends_with("BatchCreateFederationRelationship"));
    assert_eq!(line.unwrap()["targets"], serde_json::json!(["good.org"]));
    assert_eq!(line.unwrap()["failed"].as_array().unwrap().len(), 9);
}

#[tokio::test]
async fn the_enclosed_bundle_becomes_that_of_the_trust_domain() {
    let server = TestServer::start().await;
    let certificate = authority(&server, "b.org");
    let mut enclosed = Bundle::empty(td("b.org"));
    enclosed
        .x509_authorities
        .push(bonafide_identity::X509Authority { certificate: certificate.clone(), tainted: false });
    enclosed.sequence_number = 5;
    let wanted = with_bundle(web("b.org", NOWHERE), &enclosed);
    let results = create(&server, vec![wanted.clone()]).await;
    assert_eq!(results[0].2.as_ref(), Some(&wanted));
    assert!(has(bundle(&server, "b.org").as_ref(), &certificate));

    // As SPIRE does it: a second one is an internal error, and its bundle is not stored.
    let mut second = Bundle::empty(td("b.org"));
    second.sequence_number = 9;
    let results = create(&server, vec![with_bundle(web("b.org", NOWHERE), &second)]).await;
    assert_eq!(results[0].0, Code::Internal as i32);
    assert!(results[0].1.starts_with("failed to create federation relationship: "), "{}", results[0].1);
    assert_eq!(bundle(&server, "b.org").unwrap().sequence_number, 5);

    // Without a bundle of its own the answer has none, even where one is stored; asked for later it has it.
    create_one(&server, web("c.org", NOWHERE)).await;
    let get = |name: &str, output_mask| pb::GetFederationRelationshipRequest {
        trust_domain: name.to_owned(),
        output_mask,
    };
    let mut client = client(&server).await;
    assert_eq!(
        client.get_federation_relationship(get("spiffe://b.org", None)).await.unwrap().into_inner(),
        wanted
    );
    let nothing = Some(types::FederationRelationshipMask::default());
    let found = client.get_federation_relationship(get("b.org", nothing)).await.unwrap().into_inner();
    assert_eq!(found, types::FederationRelationship { trust_domain: "b.org".into(), ..Default::default() });
    let missing = client.get_federation_relationship(get("x.org", None)).await;
    assert_refused(missing, Code::NotFound, "federation relationship does not exist");
    let malformed = client.get_federation_relationship(get("X", None)).await.unwrap_err();
    assert_eq!(malformed.code(), Code::InvalidArgument);
    assert!(malformed.message().starts_with("failed to parse trust domain: "), "{malformed}");
}

#[tokio::test]
async fn updates_write_what_the_mask_names() {
    let server = TestServer::start().await;
    create_one(&server, spiffe("b.org", NOWHERE, "spiffe://b.org/x")).await;
    let mut client = client(&server).await;
    let mut update = async |one: types::FederationRelationship, input_mask| {
        let request = pb::BatchUpdateFederationRelationshipRequest {
            federation_relationships: vec![one],
            input_mask,
            output_mask: None,
        };
        let response = client.batch_update_federation_relationship(request).await.unwrap().into_inner();
        let result = response.results.into_iter().next().unwrap();
        (result.status.unwrap(), result.federation_relationship)
    };
    let only = |url: bool, profile: bool, bundle: bool| {
        Some(types::FederationRelationshipMask {
            bundle_endpoint_url: url,
            bundle_endpoint_profile: profile,
            trust_domain_bundle: bundle,
        })
    };
    let change = types::FederationRelationship {
        bundle_endpoint_profile: None,
        ..web("b.org", "https://127.0.0.1:2")
    };
    let (status, found) = update(change, only(true, false, false)).await;
    assert_eq!(status.code, 0, "{status:?}");
    assert_eq!(found.unwrap(), spiffe("b.org", "https://127.0.0.1:2", "spiffe://b.org/x"));
    let (status, found) = update(web("b.org", ""), only(false, true, false)).await;
    assert_eq!((status.code, found.unwrap()), (0, web("b.org", "https://127.0.0.1:2")));
    let (status, _) = update(web("b.org", "http://b.org"), None).await;
    assert_eq!(status.code, Code::InvalidArgument as i32);
    let (status, found) = update(spiffe("b.org", NOWHERE, "spiffe://c.org/y"), None).await;
    assert_eq!((status.code, found.unwrap()), (0, spiffe("b.org", NOWHERE, "spiffe://c.org/y")));
    let enclosed = Bundle { sequence_number: 3, ..Bundle::empty(td("b.org")) };
    let (status, found) = update(with_bundle(web("b.org", ""), &enclosed), only(false, false, true)).await;
    assert_eq!(status.code, 0);
    assert_eq!(found.unwrap(), with_bundle(spiffe("b.org", NOWHERE, "spiffe://c.org/y"), &enclosed));
    assert_eq!(bundle(&server, "b.org").unwrap().sequence_number, 3);
    // As SPIRE does it: an unknown one is an internal error, and its bundle is not stored.
    let unknown = Bundle::empty(td("x.org"));
    let (status, found) = update(with_bundle(web("x.org", NOWHERE), &unknown), None).await;
    assert_eq!((status.code, found), (Code::Internal as i32, None));
    assert!(status.message.starts_with("failed to update federation relationship: "), "{status:?}");
    assert!(bundle(&server, "x.org").is_none());
}

#[tokio::test]
async fn listing_deleting_and_those_of_the_configuration() {
    let configured = "[federation.federates_with.\"c.org\"]\nbundle_endpoint_url = \"https://127.0.0.1:1\"\nprofile = \"https_web\"\n";
    let server = TestServer::start_with(configured).await;
    let items = (0..5).map(|n| web(&format!("t{n}.org"), NOWHERE)).collect();
    assert!(create(&server, items).await.iter().all(|(code, ..)| *code == 0));
    let mut client = client(&server).await;
    let mut list = async |page_size, page_token: String| {
        let request = pb::ListFederationRelationshipsRequest { output_mask: None, page_size, page_token };
        client.list_federation_relationships(request).await.map(|response| {
            let response = response.into_inner();
            let names: Vec<_> =
                response.federation_relationships.into_iter().map(|one| one.trust_domain).collect();
            (names, response.next_page_token)
        })
    };
    let all = ["t0.org", "t1.org", "t2.org", "t3.org", "t4.org"];
    for size in [0, -1] {
        let (names, token) = list(size, "ignored".into()).await.unwrap();
        assert_eq!(
            (names.as_slice(), token.as_str()),
            (&all.map(str::to_owned)[..], ""),
            "none of the configuration"
        );
    }
    let (mut seen, mut token) = (Vec::new(), String::new());
    for _ in 0..4 {
        let (page, next) = list(2, token).await.unwrap();
        seen.extend(page);
        token = next;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!((seen.as_slice(), token.as_str()), (&all.map(str::to_owned)[..], ""));
    assert_refused(
        list(2, "x".into()).await,
        Code::Internal,
        "failed to list federation relationships: could not parse token 'x'",
    );

    let trust_domains = ["spiffe://t1.org", "", "X", "x.org", "t1.org"].map(str::to_owned).to_vec();
    let request = pb::BatchDeleteFederationRelationshipRequest { trust_domains };
    let results = client.batch_delete_federation_relationship(request).await.unwrap().into_inner().results;
    let results: Vec<_> = results
        .into_iter()
        .map(|result| {
            let status = result.status.unwrap();
            (Code::from_i32(status.code), status.message, result.trust_domain)
        })
        .collect();
    assert_eq!(results[0], (Code::Ok, "OK".into(), "t1.org".into()));
    assert_eq!(results[1], (Code::InvalidArgument, "missing trust domain".into(), String::new()));
    assert_eq!((results[2].0, results[2].2.as_str()), (Code::InvalidArgument, "X"));
    let missing =
        |name: &str| (Code::NotFound, "federation relationship not found".to_owned(), name.to_owned());
    assert_eq!(results[3..], [missing("x.org"), missing("t1.org")]);

    // The configuration wins: what is stored for the same trust domain is listed, and not used.
    create_one(&server, web("c.org", "https://127.0.0.1:2")).await;
    let used = server.server.context().federation.relationships();
    assert_eq!(used[&td("c.org")].bundle_endpoint_url, NOWHERE);
    assert_eq!(used.len(), 5);

    let refresh = |name: &str| pb::RefreshBundleRequest { trust_domain: name.to_owned() };
    let unknown = client.refresh_bundle(refresh("x.org")).await;
    assert_refused(unknown, Code::NotFound, "no relationship with trust domain \"x.org\"");
    assert_eq!(client.refresh_bundle(refresh("")).await.unwrap_err().code(), Code::InvalidArgument);
    let failed = client.refresh_bundle(refresh("c.org")).await.unwrap_err();
    assert_eq!(failed.code(), Code::Internal);
    assert!(failed.message().starts_with("failed to refresh bundle: "), "{failed}");
}
