//! The Entry service for administrators: what is refused, and with which words.

use bonafide_proto::spire::server::entry::v1::{
    BatchCreateEntryRequest, BatchDeleteEntryRequest, BatchUpdateEntryRequest, CountEntriesRequest,
    GetEntryRequest, ListEntriesRequest, count_entries_request, list_entries_request,
};
use bonafide_proto::spire::types::entry::AdditionalAttributes;
use bonafide_proto::spire::types::{
    self, Entry, EntryMask, FederatesWithMatch, SelectorMatch, Status as ItemStatus,
};
use tonic::Code;
use tonic::transport::Channel;

use super::harness::*;

async fn create(channel: &Channel, wanted: Vec<Entry>) -> Vec<(ItemStatus, Option<Entry>)> {
    let request = BatchCreateEntryRequest { entries: wanted, output_mask: None };
    let results = entries(channel).batch_create_entry(request).await.unwrap().into_inner().results;
    results.into_iter().map(|result| (result.status.expect("always there"), result.entry)).collect()
}

async fn create_one(channel: &Channel, entry: Entry) -> Entry {
    let (status, entry) = create(channel, vec![entry]).await.remove(0);
    assert_eq!((status.code, status.message.as_str()), (0, "OK"));
    entry.unwrap()
}

fn spiffe(trust_domain: &str, path: &str) -> Option<types::Spiffeid> {
    Some(types::Spiffeid { trust_domain: trust_domain.to_owned(), path: path.to_owned() })
}

/// Each malformed field with the words in which SPIRE refuses it. `created` are those that it finds while storing.
fn malformed() -> Vec<(Entry, &'static str, &'static str)> {
    let good = || wanted_entry("/web");
    let convert = "failed to convert entry: ";
    let store = "failed to {} entry: ";
    vec![
        (Entry { spiffe_id: None, ..good() }, convert, "invalid spiffe ID: request must specify SPIFFE ID"),
        (Entry { parent_id: None, ..good() }, convert, "invalid parent ID: request must specify SPIFFE ID"),
        (
            Entry { spiffe_id: spiffe("other.org", "/x"), ..good() },
            convert,
            "invalid spiffe ID: \"spiffe://other.org/x\" is not a member of trust domain \"example.org\"",
        ),
        (
            Entry { spiffe_id: wire_id("/spire/agent/x"), ..good() },
            convert,
            "invalid spiffe ID: \"spiffe://example.org/spire/agent/x\" is not a workload in trust domain \
             \"example.org\"; path is in the reserved namespace",
        ),
        (
            Entry { spiffe_id: wire_id(""), ..good() },
            convert,
            "invalid spiffe ID: \"spiffe://example.org\" is not a workload in trust domain \"example.org\"; \
             path is empty",
        ),
        (
            Entry { spiffe_id: spiffe("Example.org", "/x"), ..good() },
            convert,
            "invalid spiffe ID: trust domain characters are limited to lowercase letters, numbers, dots, dashes, \
             and underscores",
        ),
        (
            Entry { spiffe_id: wire_id("x"), ..good() },
            convert,
            "invalid spiffe ID: path must have a leading slash",
        ),
        (
            Entry { spiffe_id: wire_id("/x/"), ..good() },
            convert,
            "invalid spiffe ID: path cannot have a trailing slash",
        ),
        (
            Entry { parent_id: wire_id("/a/../b"), ..good() },
            convert,
            "invalid parent ID: path cannot contain dot segments",
        ),
        (
            Entry { parent_id: wire_id(""), ..good() },
            convert,
            "invalid parent ID: \"spiffe://example.org\" is not a member of trust domain \"example.org\"; path is \
             empty",
        ),
        (Entry { selectors: Vec::new(), ..good() }, convert, "selector list is empty"),
        (
            Entry { hint: "x".repeat(1025), ..good() },
            convert,
            "hint is too long, max length is 1024 characters",
        ),
        (
            Entry { id: "x".repeat(256), ..good() },
            store,
            "datastore-validation: invalid registration entry: entry ID too long",
        ),
        (
            Entry { id: "a/b".to_owned(), ..good() },
            store,
            "datastore-validation: invalid registration entry: entry ID contains invalid characters",
        ),
        (
            Entry { x509_svid_ttl: -1, ..good() },
            store,
            "datastore-validation: invalid registration entry: X509SvidTtl is not set",
        ),
        (
            Entry { jwt_svid_ttl: -1, ..good() },
            store,
            "datastore-validation: invalid registration entry: JwtSvidTtl is not set",
        ),
        (
            Entry { store_svid: true, selectors: vec![selector("a:1"), selector("b:2")], ..good() },
            store,
            "datastore-validation: invalid registration entry: selector types must be the same when store SVID \
             is enabled",
        ),
        (
            Entry {
                store_svid: true,
                additional_attributes: Some(AdditionalAttributes {
                    disable_x509_svid_prefetch: true,
                    ..Default::default()
                }),
                ..good()
            },
            store,
            "datastore-validation: specifying cache behaviour is incompatible with storable SVIDs",
        ),
    ]
}

#[tokio::test]
async fn malformed_fields_are_refused_one_by_one() {
    let server = TestServer::start().await;
    let channel = server.local().await;
    let cases = malformed();
    let mut batch: Vec<Entry> = cases.iter().map(|(entry, ..)| entry.clone()).collect();
    batch.push(wanted_entry("/good"));
    let results = create(&channel, batch).await;
    assert_eq!(results.len(), cases.len() + 1);
    for ((entry, outer, message), (status, created)) in cases.iter().zip(&results) {
        let expected = format!("{}{message}", outer.replace("{}", "create"));
        assert_eq!((status.code, &status.message), (Code::InvalidArgument as i32, &expected), "{entry:?}");
        assert_eq!(*created, None);
    }
    // One that is good is not held up by the others.
    assert_eq!(results.last().unwrap().0.code, 0);

    // DNS names and selectors: many ways to be wrong, one code.
    for entry in [
        Entry { dns_names: vec![String::new()], ..wanted_entry("/x") },
        Entry { dns_names: vec!["a..b".to_owned()], ..wanted_entry("/x") },
        Entry { dns_names: vec!["a.".to_owned()], ..wanted_entry("/x") },
        Entry { dns_names: vec!["*".to_owned()], ..wanted_entry("/x") },
        Entry { dns_names: vec!["a.*.b".to_owned()], ..wanted_entry("/x") },
        Entry { selectors: vec![types::Selector::default()], ..wanted_entry("/x") },
        Entry {
            selectors: vec![types::Selector { r#type: "a:b".to_owned(), value: "c".to_owned() }],
            ..wanted_entry("/x")
        },
        Entry { federates_with: vec!["Bad".to_owned()], ..wanted_entry("/x") },
        // Not stored as one: a client that wants two would see a difference, and repair it, for ever.
        Entry { selectors: vec![selector("a:b"), selector("a:b")], ..wanted_entry("/x") },
        Entry { dns_names: vec!["a.test".to_owned(), "a.test".to_owned()], ..wanted_entry("/x") },
    ] {
        let (status, created) = create(&channel, vec![entry.clone()]).await.remove(0);
        assert_eq!(status.code, Code::InvalidArgument as i32, "{entry:?}");
        assert!(status.message.starts_with("failed to convert entry: "), "{status:?}");
        assert_eq!(created, None);
    }
    let unknown = Entry { federates_with: vec!["other.org".to_owned()], ..wanted_entry("/x") };
    let (status, _) = create(&channel, vec![unknown]).await.remove(0);
    assert_eq!(
        (status.code, status.message.as_str()),
        (
            Code::Internal as i32,
            "failed to create entry: unable to find federated bundle \"spiffe://other.org\""
        )
    );
    // Nothing is also a batch.
    assert_eq!(create(&channel, Vec::new()).await, []);
}

#[tokio::test]
async fn malformed_updates_are_refused_in_the_same_words() {
    let server = TestServer::start().await;
    let channel = server.local().await;
    let stored = create_one(&channel, wanted_entry("/web")).await;
    for (entry, outer, message) in malformed() {
        if entry.id != stored.id && !entry.id.is_empty() {
            continue; // An update cannot change the ID.
        }
        let request = BatchUpdateEntryRequest {
            entries: vec![Entry { id: stored.id.clone(), ..entry.clone() }],
            ..Default::default()
        };
        let result =
            entries(&channel).batch_update_entry(request).await.unwrap().into_inner().results.remove(0);
        let (status, expected) =
            (result.status.unwrap(), format!("{}{message}", outer.replace("{}", "update")));
        assert_eq!((status.code, &status.message), (Code::InvalidArgument as i32, &expected), "{entry:?}");
    }
    let request = GetEntryRequest { id: stored.id.clone(), output_mask: None };
    assert_eq!(
        entries(&channel).get_entry(request).await.unwrap().into_inner(),
        stored,
        "nothing has changed"
    );
}

#[tokio::test]
async fn creating_keeps_what_was_asked_and_decides_the_rest() {
    let server = TestServer::start().await;
    server.federated("other.org").await;
    let channel = server.local().await;
    let wanted = Entry {
        id: "my-entry".to_owned(),
        selectors: vec![selector("unix:uid:2"), selector("unix:uid:1")],
        x509_svid_ttl: 60,
        jwt_svid_ttl: 61,
        federates_with: vec!["spiffe://other.org".to_owned()],
        admin: true,
        downstream: true,
        expires_at: 4_000_000_000,
        dns_names: vec!["b.example".to_owned(), "a.example".to_owned()],
        revision_number: 17,
        created_at: 5,
        hint: "internal".to_owned(),
        additional_attributes: Some(AdditionalAttributes {
            disable_x509_svid_prefetch: true,
            jwt_svid_include_jti: true,
        }),
        ..wanted_entry("/web")
    };
    let created = create_one(&channel, wanted.clone()).await;
    let expected = Entry {
        selectors: vec![selector("unix:uid:1"), selector("unix:uid:2")],
        federates_with: vec!["other.org".to_owned()],
        revision_number: 0,
        created_at: server.clock.now().unix_seconds(),
        ..wanted
    };
    assert_eq!(created, expected);

    let plain = create_one(&channel, wanted_entry("/plain")).await;
    assert_eq!((plain.id.len(), &plain.id[14..15]), (36, "4"), "a random UUID");

    // A similar entry is not a second one; the answer is the first, untouched.
    let similar = Entry { hint: "other".to_owned(), id: "else".to_owned(), ..wanted_entry("/plain") };
    let (status, echoed) = create(&channel, vec![similar]).await.remove(0);
    assert_eq!(
        (status.code, status.message.as_str(), echoed),
        (Code::AlreadyExists as i32, "similar entry already exists", Some(plain.clone()))
    );
    // Also within one batch.
    let twins = create(&channel, vec![wanted_entry("/twin"), wanted_entry("/twin")]).await;
    assert_eq!((twins[0].0.code, twins[1].0.code), (0, Code::AlreadyExists as i32));
    assert_eq!(twins[0].1, twins[1].1);
    // An ID that is taken: there is nothing to echo.
    let taken = Entry { id: plain.id.clone(), ..wanted_entry("/another") };
    let (status, echoed) = create(&channel, vec![taken]).await.remove(0);
    assert_eq!((status.code, echoed), (Code::AlreadyExists as i32, None));

    let masked = BatchCreateEntryRequest {
        entries: vec![wanted_entry("/masked")],
        output_mask: Some(EntryMask { spiffe_id: true, ..Default::default() }),
    };
    let result = entries(&channel).batch_create_entry(masked).await.unwrap().into_inner().results.remove(0);
    let entry = result.entry.unwrap();
    assert_eq!(entry, Entry { id: entry.id.clone(), spiffe_id: wire_id("/masked"), ..Default::default() });

    let audit = server.audit().await;
    let line =
        audit.iter().find(|line| line["method"].as_str().unwrap().ends_with("BatchCreateEntry")).unwrap();
    assert_eq!(line["targets"][0], "my-entry");
    assert_eq!(line["caller"]["class"], "local");
    assert!(line["caller"]["uid"].is_u64() && line["caller"]["path"].is_string(), "{line}");
}

#[tokio::test]
async fn updates_touch_what_the_mask_says() {
    let server = TestServer::start().await;
    let channel = server.local().await;
    let stored =
        create_one(&channel, Entry { hint: "a".to_owned(), admin: true, ..wanted_entry("/web") }).await;
    let update = async |entry: Entry, input_mask: Option<EntryMask>| {
        let request = BatchUpdateEntryRequest { entries: vec![entry], input_mask, output_mask: None };
        let result =
            entries(&channel).batch_update_entry(request).await.unwrap().into_inner().results.remove(0);
        (result.status.unwrap(), result.entry)
    };
    let mask = Some(EntryMask { hint: true, ..Default::default() });
    let change = Entry { id: stored.id.clone(), hint: "b".to_owned(), ..Default::default() };
    let (status, updated) = update(change.clone(), mask).await;
    assert_eq!((status.code, status.message.as_str()), (0, "OK"));
    let expected = Entry { hint: "b".to_owned(), revision_number: 1, ..stored.clone() };
    assert_eq!(updated, Some(expected.clone()));
    // The same again: the revision says that somebody wrote.
    assert_eq!(update(change, mask).await.1.unwrap().revision_number, 2);
    // Without a mask, what is left out is taken away.
    let (_, replaced) = update(Entry { id: stored.id.clone(), ..wanted_entry("/new") }, None).await;
    let expected = Entry {
        spiffe_id: wire_id("/new"),
        hint: String::new(),
        admin: false,
        revision_number: 3,
        ..expected
    };
    assert_eq!(replaced, Some(expected));
    for id in ["nobody", "", "a/b"] {
        let (status, entry) = update(Entry { id: id.to_owned(), ..wanted_entry("/x") }, None).await;
        assert_eq!((status.code, entry), (Code::NotFound as i32, None), "{id:?}");
    }
}

#[tokio::test]
async fn deleting_and_getting() {
    let server = TestServer::start().await;
    let channel = server.local().await;
    let stored = create_one(&channel, wanted_entry("/web")).await;
    let get = async |id: &str| {
        entries(&channel).get_entry(GetEntryRequest { id: id.to_owned(), output_mask: None }).await
    };
    assert_eq!(get(&stored.id).await.unwrap().into_inner(), stored);
    assert_refused(get("").await, Code::InvalidArgument, "missing ID");
    assert_refused(get("nobody").await, Code::NotFound, "entry not found");
    assert_refused(get("a/b").await, Code::NotFound, "entry not found");

    let ids = vec![String::new(), "nobody".to_owned(), stored.id.clone(), stored.id.clone()];
    let request = BatchDeleteEntryRequest { ids: ids.clone() };
    let results = entries(&channel).batch_delete_entry(request).await.unwrap().into_inner().results;
    let results: Vec<_> = results
        .into_iter()
        .map(|result| {
            let status = result.status.unwrap();
            (result.id, status.code, status.message)
        })
        .collect();
    let expected = [
        (Code::InvalidArgument, "missing entry ID"),
        (Code::NotFound, "entry not found"),
        (Code::Ok, "OK"),
        (Code::NotFound, "entry not found"),
    ];
    let expected: Vec<_> =
        ids.into_iter().zip(expected).map(|(id, (code, text))| (id, code as i32, text.to_owned())).collect();
    assert_eq!(results, expected);
}

#[tokio::test]
async fn listing_filters_and_pages() {
    let server = TestServer::start().await;
    server.federated("one.org").await;
    server.federated("two.org").await;
    let channel = server.local().await;
    let make = |name: &str, selectors: &[&str], federates: &[&str]| Entry {
        id: name.to_owned(),
        selectors: selectors.iter().map(|text| selector(text)).collect(),
        federates_with: federates.iter().map(|name| (*name).to_owned()).collect(),
        ..wanted_entry(&format!("/{name}"))
    };
    let created = create(
        &channel,
        vec![
            make("a", &["k:1"], &[]),
            Entry { hint: "h".to_owned(), ..make("b", &["k:1", "k:2"], &["one.org"]) },
            Entry { downstream: true, ..make("c", &["k:1", "k:2", "k:3"], &["one.org", "two.org"]) },
            Entry { parent_id: wire_id("/spire/server"), ..make("d", &["k:4"], &[]) },
        ],
    )
    .await;
    assert!(created.iter().all(|(status, _)| status.code == 0), "{created:?}");
    type Filter = list_entries_request::Filter;
    let list = async |filter: Filter| {
        let request = ListEntriesRequest { filter: Some(filter), ..Default::default() };
        let response = entries(&channel).list_entries(request).await?.into_inner();
        let mut names: Vec<String> = response.entries.into_iter().map(|entry| entry.id).collect();
        names.sort_unstable();
        Ok::<_, tonic::Status>(names.concat())
    };
    let by = |texts: &[&str], how: i32| {
        let selectors = texts.iter().map(|text| selector(text)).collect();
        Some(SelectorMatch { selectors, r#match: how })
    };
    let federates = |names: &[&str], how: i32| {
        let trust_domains = names.iter().map(|name| (*name).to_owned()).collect();
        Some(FederatesWithMatch { trust_domains, r#match: how })
    };
    let all = Filter::default;
    for (filter, expected) in [
        (all(), "abcd"),
        (Filter { by_spiffe_id: wire_id("/b"), ..all() }, "b"),
        (Filter { by_parent_id: wire_id("/spire/server"), ..all() }, "d"),
        (Filter { by_parent_id: wire_id("/spire/agent/test/1"), ..all() }, "abc"),
        (Filter { by_selectors: by(&["k:1", "k:2"], 0), ..all() }, "b"),
        (Filter { by_selectors: by(&["k:1", "k:2"], 1), ..all() }, "ab"),
        (Filter { by_selectors: by(&["k:1", "k:2"], 2), ..all() }, "bc"),
        (Filter { by_selectors: by(&["k:3", "k:4"], 3), ..all() }, "cd"),
        (Filter { by_federates_with: federates(&["one.org"], 0), ..all() }, "b"),
        (Filter { by_federates_with: federates(&["spiffe://one.org"], 2), ..all() }, "bc"),
        (Filter { by_federates_with: federates(&["two.org"], 3), ..all() }, "c"),
        (Filter { by_hint: Some("h".to_owned()), ..all() }, "b"),
        (Filter { by_hint: Some(String::new()), ..all() }, "abcd"),
        (Filter { by_downstream: Some(true), ..all() }, "c"),
        (Filter { by_downstream: Some(false), ..all() }, "abcd"),
        (Filter { by_parent_id: wire_id("/spire/agent/test/1"), by_downstream: Some(true), ..all() }, "c"),
    ] {
        assert_eq!(list(filter.clone()).await.unwrap(), expected, "{filter:?}");
    }
    for (filter, message) in [
        (Filter { by_selectors: by(&[], 0), ..all() }, "malformed selectors filter: empty selector set"),
        (
            Filter { by_federates_with: federates(&[], 0), ..all() },
            "malformed federates with filter: empty trust domain set",
        ),
        (
            Filter { by_spiffe_id: wire_id("/spire/server"), ..all() },
            "malformed SPIFFE ID filter: \"spiffe://example.org/spire/server\" is not a workload in trust domain \
             \"example.org\"; path is in the reserved namespace",
        ),
        (
            Filter { by_parent_id: wire_id(""), ..all() },
            "malformed parent ID filter: \"spiffe://example.org\" is not a member of trust domain \"example.org\"; \
             path is empty",
        ),
    ] {
        assert_refused(list(filter).await, Code::InvalidArgument, message);
    }

    let (mut token, mut pages) = (String::new(), Vec::new());
    loop {
        let request = ListEntriesRequest {
            filter: Some(Filter { by_selectors: by(&["k:1"], 2), ..all() }),
            page_size: 2,
            page_token: token,
            ..Default::default()
        };
        let page = entries(&channel).list_entries(request).await.unwrap().into_inner();
        pages.push(page.entries.into_iter().map(|entry| entry.id).collect::<String>());
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(pages, ["ab", "c"]);
    let request = ListEntriesRequest { page_size: 1, page_token: "-".to_owned(), ..Default::default() };
    let refused = entries(&channel).list_entries(request).await;
    assert_refused(refused, Code::Internal, "failed to list entries: could not parse token '-'");

    let filter = count_entries_request::Filter { by_downstream: Some(true), ..Default::default() };
    for (filter, expected) in [(None, 4), (Some(filter), 1)] {
        let count = entries(&channel).count_entries(CountEntriesRequest { filter }).await.unwrap();
        assert_eq!(count.into_inner().count, expected);
    }
}

#[tokio::test]
async fn a_message_that_is_too_large_is_refused_and_the_connection_survives() {
    let server = TestServer::start().await;
    let channel = server.local().await;
    let huge = Entry { hint: "x".repeat(5 << 20), ..wanted_entry("/x") };
    let request = BatchCreateEntryRequest { entries: vec![huge], output_mask: None };
    let status = entries(&channel).batch_create_entry(request).await.unwrap_err();
    assert!(matches!(status.code(), Code::OutOfRange | Code::ResourceExhausted), "{status:?}");
    create_one(&channel, wanted_entry("/x")).await;
}
