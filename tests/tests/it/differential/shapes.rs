//! The requests, in order: what one of them changes, the next ones see.
//!
//! `${x509.prepared}` and the like stand for the authority that the last state answer named so, `${token}` for the last
//! page token.

use data_encoding::BASE64;
use serde_json::{Value, json};

use super::client::{Caller, POOL};
use super::fixtures::base64;

/// One request.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub(super) name: String,
    pub(super) caller: Caller,
    pub(super) method: String,
    pub(super) messages: Vec<Value>,
}

/// All of them.
pub(super) fn all() -> Vec<Shape> {
    let mut shapes = Shapes::default();
    permissions(&mut shapes);
    entries_made(&mut shapes);
    entries_changed(&mut shapes);
    entries_found(&mut shapes);
    bundles(&mut shapes);
    relationships(&mut shapes);
    entries_federated(&mut shapes);
    agents(&mut shapes);
    attestation(&mut shapes);
    minting(&mut shapes);
    entitled(&mut shapes);
    downstream(&mut shapes);
    operations(&mut shapes);
    authorities(&mut shapes);
    entries_deleted(&mut shapes);
    shapes.0
}

#[derive(Default)]
struct Shapes(Vec<Shape>);

impl Shapes {
    fn by(&mut self, caller: Caller, method: &str, label: &str, message: Value) {
        self.stream(caller, method, label, vec![message]);
    }

    fn local(&mut self, method: &str, label: &str, message: Value) {
        self.by(Caller::Local, method, label, message);
    }

    fn stream(&mut self, caller: Caller, method: &str, label: &str, messages: Vec<Value>) {
        let (service, rpc) = method.rsplit_once('/').unwrap();
        let short = service.rsplit('.').next().unwrap();
        let name = format!("{short}/{rpc}: {label} ({})", caller.name());
        assert!(self.0.iter().all(|shape| shape.name != name), "{name} stands twice");
        self.0.push(Shape { name, caller, method: method.to_owned(), messages });
    }
}

const AGENT: &str = "spire.api.server.agent.v1.Agent";
const BUNDLE: &str = "spire.api.server.bundle.v1.Bundle";
const DEBUG: &str = "spire.api.server.debug.v1.Debug";
const ENTRY: &str = "spire.api.server.entry.v1.Entry";
const AUTHORITY: &str = "spire.api.server.localauthority.v1.LocalAuthority";
const LOGGER: &str = "spire.api.server.logger.v1.Logger";
const SVID: &str = "spire.api.server.svid.v1.SVID";
const TRUST_DOMAIN: &str = "spire.api.server.trustdomain.v1.TrustDomain";
const HEALTH: &str = "grpc.health.v1.Health";

fn method(service: &str, name: &str) -> String {
    format!("{service}/{name}")
}

fn id(path: &str) -> Value {
    json!({"trust_domain": "example.org", "path": path})
}

fn foreign(path: &str) -> Value {
    json!({"trust_domain": "foreign-one.test", "path": path})
}

fn selector(kind: &str, value: &str) -> Value {
    json!({"type": kind, "value": value})
}

/// `base` with the fields of `more` put over it; null takes a field away.
fn with(base: &Value, more: Value) -> Value {
    let mut out = base.as_object().unwrap().clone();
    for (key, value) in more.as_object().unwrap() {
        if value.is_null() {
            out.remove(key);
        } else {
            out.insert(key.clone(), value.clone());
        }
    }
    Value::Object(out)
}

fn entry(name: &str) -> Value {
    json!({
        "id": name,
        "spiffe_id": id(&format!("/{name}")),
        "parent_id": id("/spire/agent/join_token/tok-agent"),
        "selectors": [selector("unix", &format!("user:{name}"))],
    })
}

/// Each rpc with an empty message, by each class of callers.
fn permissions(shapes: &mut Shapes) {
    for service in [AGENT, BUNDLE, DEBUG, ENTRY, AUTHORITY, LOGGER, SVID, TRUST_DOMAIN, HEALTH] {
        let service = POOL.get_service_by_name(service).unwrap();
        for rpc in service.methods() {
            for caller in Caller::ALL {
                let path = method(service.full_name(), rpc.name());
                shapes.by(caller, &path, "blank", json!({}));
            }
        }
    }
}

fn entries_made(shapes: &mut Shapes) {
    let create = method(ENTRY, "BatchCreateEntry");
    let good = entry("web");
    let one = |entry: Value| json!({"entries": [entry]});
    let long = "x".repeat(1025);
    let name64 = "a".repeat(64);
    let bad: &[(&str, Value)] = &[
        ("no id of the workload", json!({"spiffe_id": null})),
        ("empty SPIFFE ID", json!({"spiffe_id": {}})),
        ("no path", json!({"spiffe_id": id("")})),
        ("path without a slash", json!({"spiffe_id": id("web")})),
        ("path with a double slash", json!({"spiffe_id": id("//web")})),
        ("path with a trailing slash", json!({"spiffe_id": id("/web/")})),
        ("path with a dot segment", json!({"spiffe_id": id("/a/../b")})),
        ("path with a percent", json!({"spiffe_id": id("/a%20b")})),
        ("path with a space", json!({"spiffe_id": id("/a b")})),
        ("path with a letter beyond ASCII", json!({"spiffe_id": id("/ä")})),
        ("path with a query", json!({"spiffe_id": id("/a?b")})),
        ("reserved path", json!({"spiffe_id": id("/spire/server")})),
        ("reserved agent path", json!({"spiffe_id": id("/spire/agent/x")})),
        ("path below spire", json!({"spiffe_id": id("/spire/x")})),
        ("path that begins like spire", json!({"id": "spirex", "spiffe_id": id("/spirex")})),
        ("foreign SPIFFE ID", json!({"spiffe_id": foreign("/web")})),
        ("no trust domain", json!({"spiffe_id": {"path": "/web"}})),
        ("trust domain in capitals", json!({"spiffe_id": {"trust_domain": "EXAMPLE.ORG", "path": "/web"}})),
        (
            "trust domain with a scheme",
            json!({"id": "scheme",
            "spiffe_id": {"trust_domain": "spiffe://example.org", "path": "/scheme"}}),
        ),
        ("trust domain with a path", json!({"spiffe_id": {"trust_domain": "example.org/x", "path": "/web"}})),
        ("trust domain with a port", json!({"spiffe_id": {"trust_domain": "example.org:1", "path": "/web"}})),
        ("no parent", json!({"parent_id": null})),
        ("empty parent", json!({"parent_id": {}})),
        ("parent without path", json!({"parent_id": id("")})),
        ("foreign parent", json!({"parent_id": foreign("/x")})),
        ("malformed parent", json!({"parent_id": id("x")})),
        ("no selectors", json!({"selectors": []})),
        ("selector without type", json!({"selectors": [selector("", "x")]})),
        ("selector with a colon in its type", json!({"selectors": [selector("a:b", "x")]})),
        ("selector without value", json!({"selectors": [selector("unix", "")]})),
        (
            "selector with a colon in its value",
            json!({"id": "colon", "spiffe_id": id("/colon"),
            "selectors": [selector("unix", "a:b:c")]}),
        ),
        (
            "the same selector twice",
            json!({"id": "twice", "spiffe_id": id("/twice"),
            "selectors": [selector("unix", "uid:7"), selector("unix", "uid:7")]}),
        ),
        ("negative X.509 lifetime", json!({"x509_svid_ttl": -1})),
        ("negative JWT lifetime", json!({"jwt_svid_ttl": -1})),
        ("identifier of 256", json!({"id": "x".repeat(256)})),
        ("identifier of 255", json!({"id": "x".repeat(255), "spiffe_id": id("/long-id")})),
        ("identifier with a slash", json!({"id": "a/b"})),
        ("identifier with a space", json!({"id": "a b"})),
        ("identifier with each sign", json!({"id": "A.b_c-1", "spiffe_id": id("/signs")})),
        ("hint of 1025", json!({"hint": long})),
        ("hint of 1024", json!({"id": "hint", "spiffe_id": id("/hint"), "hint": "h".repeat(1024)})),
        ("DNS name with an empty label", json!({"dns_names": ["a..b"]})),
        ("DNS name with a trailing dot", json!({"dns_names": ["a.b."]})),
        ("DNS name that is empty", json!({"dns_names": [""]})),
        ("DNS name with a space", json!({"dns_names": ["a b"]})),
        ("DNS name with an underscore", json!({"dns_names": ["a_b.test"]})),
        ("DNS name with a long label", json!({"dns_names": [format!("{name64}.test")]})),
        ("DNS name that begins with a hyphen", json!({"dns_names": ["-a.test"]})),
        ("DNS name with a star inside", json!({"dns_names": ["a*.test"]})),
        ("DNS name with a star in the middle", json!({"dns_names": ["a.*.test"]})),
        ("DNS name that is a star", json!({"dns_names": ["*"]})),
        (
            "DNS name with a star in front",
            json!({"id": "star", "spiffe_id": id("/star"),
            "dns_names": ["*.star.test"]}),
        ),
        (
            "wildcard that covers another name",
            json!({"id": "covers", "spiffe_id": id("/covers"),
            "dns_names": ["*.star.test", "a.star.test"]}),
        ),
        ("DNS names", json!({"id": "dns", "spiffe_id": id("/dns"), "dns_names": ["a.test", "b.test"]})),
        (
            "the same DNS name twice",
            json!({"id": "dns2", "spiffe_id": id("/dns2"),
            "dns_names": ["a.test", "a.test"]}),
        ),
        ("DNS name in capitals", json!({"id": "dns3", "spiffe_id": id("/dns3"), "dns_names": ["A.test"]})),
        ("federates with nobody known", json!({"federates_with": ["unknown.test"]})),
        ("federates with a malformed name", json!({"federates_with": ["UNKNOWN"]})),
        ("federates with an empty name", json!({"federates_with": [""]})),
        (
            "stored with selectors of two types",
            json!({"store_svid": true,
            "selectors": [selector("a", "x"), selector("b", "y")]}),
        ),
        (
            "stored",
            json!({"id": "stored", "spiffe_id": id("/stored"), "store_svid": true,
            "selectors": [selector("a", "x"), selector("a", "y")]}),
        ),
        (
            "stored without prefetch",
            json!({"store_svid": true,
            "additional_attributes": {"disable_x509_svid_prefetch": true}}),
        ),
        (
            "attributes",
            json!({"id": "attributes", "spiffe_id": id("/attributes"),
            "additional_attributes": {"disable_x509_svid_prefetch": true, "jwt_svid_include_jti": true}}),
        ),
        (
            "attributes that are empty",
            json!({"id": "attributes2", "spiffe_id": id("/attributes2"),
            "additional_attributes": {}}),
        ),
        (
            "revision and time of the client",
            json!({"id": "revision", "spiffe_id": id("/revision"),
            "revision_number": "7", "created_at": "1234"}),
        ),
        ("expired", json!({"id": "expired", "spiffe_id": id("/expired"), "expires_at": "1000"})),
        (
            "expires far away",
            json!({"id": "expires", "spiffe_id": id("/expires"), "expires_at": "4102444800"}),
        ),
        (
            "expires before all time",
            json!({"id": "expires2", "spiffe_id": id("/expires2"), "expires_at": "-1"}),
        ),
        (
            "lifetimes",
            json!({"id": "lifetimes", "spiffe_id": id("/lifetimes"),
            "x509_svid_ttl": 7200, "jwt_svid_ttl": 600}),
        ),
        (
            "parent is the server",
            json!({"id": "alias", "spiffe_id": id("/alias"), "parent_id": id("/spire/server"),
            "selectors": [selector("x509pop", "subject:cn:nobody")]}),
        ),
        ("parent is a workload", json!({"id": "child", "spiffe_id": id("/child"), "parent_id": id("/web")})),
        (
            "admin and downstream",
            json!({"id": "both", "spiffe_id": id("/both"), "admin": true,
            "downstream": true}),
        ),
    ];
    // Each with a name of its own: what one server takes and the other does not must not change what follows.
    for (number, (label, change)) in bad.iter().enumerate() {
        shapes.local(&create, label, one(with(&entry(&format!("case-{number:02}")), change.clone())));
    }
    // What one server takes and the other does not goes, so that it shows here alone.
    let gone = json!({"ids": ["twice", "case-44", "dns2"]});
    shapes.local(&method(ENTRY, "BatchDeleteEntry"), "taken by one server alone", gone);
    shapes.local(&create, "nothing", json!({"entries": []}));
    shapes.local(&create, "good", one(good.clone()));
    shapes.local(&create, "the same again", one(good.clone()));
    shapes.local(
        &create,
        "similar with other fields",
        one(with(&good, json!({"id": "other", "hint": "new"}))),
    );
    shapes.local(&create, "similar without id", one(with(&good, json!({"id": null}))));
    shapes.local(&create, "the same id", one(with(&good, json!({"spiffe_id": id("/different")}))));
    shapes.local(&create, "without id", one(with(&entry("anonymous"), json!({"id": null}))));
    shapes.local(
        &create,
        "an empty message among good ones",
        json!({"entries": [entry("first"), {}, entry("second")]}),
    );
    shapes.local(&create, "the same twice in one batch", json!({"entries": [entry("pair"), entry("pair")]}));
    shapes.local(&create, "empty mask", json!({"entries": [entry("masked")], "output_mask": {}}));
    shapes.local(
        &create,
        "mask of two",
        json!({"entries": [entry("masked2")],
        "output_mask": {"spiffe_id": true, "hint": true}}),
    );
    shapes.local(
        &create,
        "mask on a similar one",
        json!({"entries": [entry("masked2")],
        "output_mask": {"parent_id": true}}),
    );
    shapes.by(Caller::Admin, &create, "good", one(entry("by-admin")));
    for number in 0..12 {
        let name = format!("page-{number:02}");
        let more = json!({"spiffe_id": id("/page"), "hint": format!("hint-{}", number % 3),
            "downstream": number % 4 == 0, "selectors": [selector("page", &format!("n:{number}")),
            selector("page", &format!("m:{}", number % 2)), selector("page", "all")]});
        shapes.local(&create, &name, one(with(&entry(&name), more)));
    }
    // What the controller of Kubernetes asks to see which fields the server knows.
    let probe = json!({"spiffe_id": id("/spire-controller-manager/unsupported-fields-test"),
        "parent_id": id("/spire-controller-manager/unsupported-fields-test"),
        "selectors": [selector("a", "1")], "x509_svid_ttl": 60, "jwt_svid_ttl": 60, "store_svid": true,
        "hint": "hint"});
    shapes.local(&create, "probe for fields", one(probe.clone()));
    shapes.local(&create, "probe for fields again", one(probe));
}

fn entries_changed(shapes: &mut Shapes) {
    let update = method(ENTRY, "BatchUpdateEntry");
    let one = |entry: Value| json!({"entries": [entry]});
    let good = entry("web");
    shapes.local(&update, "nothing", json!({"entries": []}));
    shapes.local(&update, "without id", one(with(&good, json!({"id": null}))));
    shapes.local(&update, "unknown id", one(with(&good, json!({"id": "nobody"}))));
    shapes.local(&update, "without change", one(good.clone()));
    shapes.local(&update, "hint", one(with(&good, json!({"hint": "one"}))));
    shapes.local(&update, "without mask clears", one(good.clone()));
    shapes.local(&update, "without selectors", one(with(&good, json!({"selectors": null}))));
    shapes.local(&update, "without SPIFFE ID", one(with(&good, json!({"spiffe_id": null}))));
    shapes.local(&update, "without parent", one(with(&good, json!({"parent_id": null}))));
    shapes.local(&update, "malformed DNS name", one(with(&good, json!({"dns_names": ["a..b"]}))));
    shapes.local(
        &update,
        "unknown trust domain",
        one(with(&good, json!({"federates_with": ["unknown.test"]}))),
    );
    shapes.local(&update, "long hint", one(with(&good, json!({"hint": "x".repeat(1025)}))));
    let masks: &[(&str, Value, Value)] = &[
        ("empty mask", json!({"hint": "ignored"}), json!({})),
        ("mask of the hint", json!({"hint": "masked", "x509_svid_ttl": 9}), json!({"hint": true})),
        ("mask of a lifetime", json!({"x509_svid_ttl": 120}), json!({"x509_svid_ttl": true})),
        ("mask of a negative lifetime", json!({"x509_svid_ttl": -5}), json!({"x509_svid_ttl": true})),
        ("mask of the other lifetime", json!({"jwt_svid_ttl": 60}), json!({"jwt_svid_ttl": true})),
        (
            "mask of selectors",
            json!({"selectors": [selector("unix", "uid:1"), selector("unix", "gid:1")]}),
            json!({"selectors": true}),
        ),
        ("mask of no selectors", json!({"selectors": []}), json!({"selectors": true})),
        ("mask of DNS names", json!({"dns_names": ["x.test"]}), json!({"dns_names": true})),
        ("mask of no DNS names", json!({}), json!({"dns_names": true})),
        ("mask of the parent", json!({"parent_id": id("/other")}), json!({"parent_id": true})),
        ("mask of a missing parent", json!({"parent_id": null}), json!({"parent_id": true})),
        ("mask of the SPIFFE ID", json!({"spiffe_id": id("/web-2")}), json!({"spiffe_id": true})),
        ("mask of a reserved SPIFFE ID", json!({"spiffe_id": id("/spire/x")}), json!({"spiffe_id": true})),
        ("mask of admin", json!({"admin": true}), json!({"admin": true})),
        ("mask of admin off", json!({}), json!({"admin": true})),
        ("mask of downstream", json!({"downstream": true}), json!({"downstream": true})),
        ("mask of downstream off", json!({}), json!({"downstream": true})),
        ("mask of the expiry", json!({"expires_at": "4102444800"}), json!({"expires_at": true})),
        ("mask of storing", json!({"store_svid": true}), json!({"store_svid": true})),
        ("mask of storing off", json!({}), json!({"store_svid": true})),
        (
            "mask of attributes",
            json!({"additional_attributes": {"jwt_svid_include_jti": true}}),
            json!({"additional_attributes": true}),
        ),
        ("mask of no attributes", json!({}), json!({"additional_attributes": true})),
        (
            "mask of an invalid field that is left out",
            json!({"dns_names": ["a..b"], "hint": "fine"}),
            json!({"hint": true}),
        ),
        ("mask of the revision", json!({"revision_number": "99"}), json!({"revision_number": true})),
    ];
    for (label, change, mask) in masks {
        let message = json!({"entries": [with(&good, change.clone())], "input_mask": mask});
        shapes.local(&update, label, message);
    }
    shapes.local(
        &update,
        "output mask",
        json!({"entries": [with(&good, json!({"hint": "out"}))],
        "input_mask": {"hint": true}, "output_mask": {"hint": true, "revision_number": true}}),
    );
    shapes.local(&update, "back to the beginning", one(good.clone()));
    shapes.local(&update, "good and bad", json!({"entries": [good, {"id": "nobody"}, {}]}));
    shapes.local(
        &update,
        "to what another one is",
        one(with(
            &entry("first"),
            json!({"spiffe_id": id("/second"),
        "selectors": [selector("unix", "user:second")]}),
        )),
    );
    shapes.local(&update, "back from it", one(entry("first")));
}

fn entries_found(shapes: &mut Shapes) {
    let (list, count, get) =
        (method(ENTRY, "ListEntries"), method(ENTRY, "CountEntries"), method(ENTRY, "GetEntry"));
    let short = json!({"spiffe_id": true, "selectors": true, "hint": true});
    let filters: &[(&str, Value)] = &[
        ("empty filter", json!({})),
        ("by SPIFFE ID", json!({"by_spiffe_id": id("/page")})),
        ("by unknown SPIFFE ID", json!({"by_spiffe_id": id("/nobody")})),
        ("by empty SPIFFE ID", json!({"by_spiffe_id": {}})),
        ("by foreign SPIFFE ID", json!({"by_spiffe_id": foreign("/page")})),
        ("by malformed SPIFFE ID", json!({"by_spiffe_id": id("page")})),
        ("by reserved SPIFFE ID", json!({"by_spiffe_id": id("/spire/server")})),
        ("by trust domain ID", json!({"by_spiffe_id": id("")})),
        ("by parent", json!({"by_parent_id": id("/web")})),
        ("by parent server", json!({"by_parent_id": id("/spire/server")})),
        ("by foreign parent", json!({"by_parent_id": foreign("/x")})),
        ("by malformed parent", json!({"by_parent_id": id("x")})),
        ("by empty parent", json!({"by_parent_id": {}})),
        ("by hint", json!({"by_hint": "hint-1"})),
        ("by unknown hint", json!({"by_hint": "nothing"})),
        ("by empty hint", json!({"by_hint": ""})),
        ("by downstream", json!({"by_downstream": true})),
        ("by not downstream", json!({"by_downstream": false})),
        ("by ID and hint", json!({"by_spiffe_id": id("/page"), "by_hint": "hint-2"})),
        (
            "by ID, hint and downstream",
            json!({"by_spiffe_id": id("/page"), "by_hint": "hint-2",
            "by_downstream": true}),
        ),
        ("by no selectors", json!({"by_selectors": {"selectors": []}})),
        ("by malformed selector", json!({"by_selectors": {"selectors": [selector("", "x")]}})),
        ("by selector without value", json!({"by_selectors": {"selectors": [selector("x", "")]}})),
        (
            "by selector with a colon in its type",
            json!({"by_selectors": {"selectors": [selector("a:b", "c")]}}),
        ),
        ("by unknown match", json!({"by_selectors": {"selectors": [selector("page", "all")], "match": 9}})),
        ("by no trust domains", json!({"by_federates_with": {"trust_domains": []}})),
        ("by malformed trust domain", json!({"by_federates_with": {"trust_domains": ["BAD"]}})),
        ("by empty trust domain", json!({"by_federates_with": {"trust_domains": [""]}})),
        ("by unknown trust domain", json!({"by_federates_with": {"trust_domains": ["nobody.test"]}})),
        (
            "by unknown federation match",
            json!({"by_federates_with": {"trust_domains": ["nobody.test"],
            "match": 9}}),
        ),
    ];
    for (label, filter) in filters {
        shapes.local(&list, label, json!({"filter": filter, "output_mask": short}));
        shapes.local(&count, label, json!({"filter": filter}));
    }
    let sets: &[(&str, Vec<Value>)] = &[
        ("one", vec![selector("page", "all")]),
        ("two", vec![selector("page", "all"), selector("page", "m:1")]),
        ("three", vec![selector("page", "n:3"), selector("page", "m:1"), selector("page", "all")]),
        ("twice the same", vec![selector("page", "all"), selector("page", "all")]),
        (
            "many",
            (0..12)
                .map(|n| selector("page", &format!("n:{n}")))
                .chain([selector("page", "all"), selector("page", "m:0")])
                .collect(),
        ),
    ];
    for (label, selectors) in sets {
        for (name, number) in [("exact", 0), ("subset", 1), ("superset", 2), ("any", 3)] {
            let filter = json!({"by_selectors": {"selectors": selectors, "match": number}});
            shapes.local(&list, &format!("{name} {label}"), json!({"filter": filter, "output_mask": {}}));
            shapes.local(&count, &format!("{name} {label}"), json!({"filter": filter}));
        }
    }
    let pages = json!({"by_spiffe_id": id("/page")});
    shapes.local(&list, "page of five", json!({"filter": pages, "page_size": 5, "output_mask": {}}));
    shapes.local(
        &list,
        "second page of five",
        json!({"filter": pages, "page_size": 5,
        "page_token": "${token}", "output_mask": {}}),
    );
    shapes.local(
        &list,
        "third page of five",
        json!({"filter": pages, "page_size": 5,
        "page_token": "${token}", "output_mask": {}}),
    );
    shapes.local(
        &list,
        "page of one thousand",
        json!({"filter": pages, "page_size": 1000, "output_mask": {}}),
    );
    shapes.local(&list, "negative page", json!({"filter": pages, "page_size": -1, "output_mask": {}}));
    shapes.local(
        &list,
        "malformed token",
        json!({"filter": pages, "page_size": 5, "page_token": "x",
        "output_mask": {}}),
    );
    shapes.local(
        &list,
        "malformed token without size",
        json!({"filter": pages, "page_token": "x",
        "output_mask": {}}),
    );
    shapes.local(&list, "exact pages of one", json!({"page_size": 1, "output_mask": {}, "filter":
        {"by_selectors": {"selectors": [selector("page", "n:3"), selector("page", "m:1"), selector("page", "all")]}}}));
    shapes.local(&get, "unknown", json!({"id": "nobody"}));
    shapes.local(&get, "good", json!({"id": "web"}));
    shapes.local(&get, "with empty mask", json!({"id": "web", "output_mask": {}}));
    for field in [
        "spiffe_id",
        "parent_id",
        "selectors",
        "x509_svid_ttl",
        "federates_with",
        "admin",
        "downstream",
        "expires_at",
        "dns_names",
        "revision_number",
        "store_svid",
        "jwt_svid_ttl",
        "hint",
        "created_at",
        "additional_attributes",
    ] {
        for name in ["attributes", "lifetimes", "dns"] {
            shapes.local(
                &get,
                &format!("{field} of {name}"),
                json!({"id": name, "output_mask": {field: true}}),
            );
        }
    }
    shapes.by(Caller::Admin, &get, "good", json!({"id": "lifetimes"}));
}

fn bundle(name: &str) -> Value {
    json!({
        "trust_domain": format!("foreign-{name}.test"),
        "x509_authorities": [{"asn1": base64(&format!("root-{name}"))}],
        "jwt_authorities": [{"public_key": base64("key-p256"), "key_id": "fixed", "expires_at": "4102444800"}],
        "refresh_hint": "60", "sequence_number": "42",
    })
}

fn bundles(shapes: &mut Shapes) {
    let name = |rpc| method(BUNDLE, rpc);
    let good = bundle("one");
    let bad: &[(&str, Value)] = &[
        ("without trust domain", json!({"trust_domain": null})),
        ("own trust domain", json!({"trust_domain": "example.org"})),
        ("own trust domain with scheme", json!({"trust_domain": "spiffe://example.org"})),
        ("malformed trust domain", json!({"trust_domain": "BAD"})),
        ("trust domain with a path", json!({"trust_domain": "spiffe://path.test/x"})),
        ("malformed certificate", json!({"x509_authorities": [{"asn1": BASE64.encode(b"nonsense")}]})),
        ("empty certificate", json!({"x509_authorities": [{"asn1": ""}]})),
        ("empty authority", json!({"x509_authorities": [{}]})),
        (
            "two certificates in one",
            json!({"trust_domain": "two-in-one.test",
            "x509_authorities": [{"asn1": base64("root-both")}]}),
        ),
        ("key without identifier", json!({"jwt_authorities": [{"public_key": base64("key-p256")}]})),
        ("key without bytes", json!({"jwt_authorities": [{"key_id": "fixed"}]})),
        (
            "malformed key",
            json!({"jwt_authorities": [{"public_key": BASE64.encode(b"no"), "key_id": "fixed"}]}),
        ),
        (
            "same key twice",
            json!({"trust_domain": "twice.test", "jwt_authorities": [
            {"public_key": base64("key-p256"), "key_id": "fixed"},
            {"public_key": base64("key-p384"), "key_id": "fixed"}]}),
        ),
        (
            "same certificate twice",
            json!({"trust_domain": "twice2.test", "x509_authorities": [
            {"asn1": base64("root-one")}, {"asn1": base64("root-one")}]}),
        ),
        (
            "tainted",
            json!({"trust_domain": "tainted.test", "x509_authorities": [
            {"asn1": base64("root-one"), "tainted": true}], "jwt_authorities": []}),
        ),
        (
            "tainted key",
            json!({"trust_domain": "tainted2.test", "x509_authorities": [], "jwt_authorities": [
            {"public_key": base64("key-p256"), "key_id": "fixed", "tainted": true}]}),
        ),
        ("empty", json!({"trust_domain": "empty.test", "x509_authorities": [], "jwt_authorities": []})),
        ("negative hint", json!({"trust_domain": "hint.test", "refresh_hint": "-1"})),
        (
            "RSA key",
            json!({"trust_domain": "rsa.test", "jwt_authorities": [
            {"public_key": base64("key-rsa"), "key_id": "fixed"}]}),
        ),
    ];
    for rpc in ["BatchCreateFederatedBundle", "BatchUpdateFederatedBundle", "BatchSetFederatedBundle"] {
        for (number, (label, change)) in bad.iter().enumerate() {
            let case = with(&good, json!({"trust_domain": format!("case-{number}.test")}));
            shapes.local(&name(rpc), label, json!({"bundle": [with(&case, change.clone())]}));
        }
        shapes.local(&name(rpc), "nothing", json!({"bundle": []}));
        let gone = json!({"trust_domains":
            ["path.test", "case-6.test", "case-7.test", "two-in-one.test", "hint.test"]});
        shapes.local(
            &name("BatchDeleteFederatedBundle"),
            &format!("taken by one server alone after {rpc}"),
            gone,
        );
    }
    shapes.local(&name("BatchUpdateFederatedBundle"), "unknown", json!({"bundle": [bundle("two")]}));
    shapes.local(&name("BatchCreateFederatedBundle"), "good", json!({"bundle": [good]}));
    shapes.local(&name("BatchCreateFederatedBundle"), "again", json!({"bundle": [good]}));
    shapes.local(
        &name("BatchCreateFederatedBundle"),
        "with scheme",
        json!({"bundle":
        [with(&good, json!({"trust_domain": "spiffe://scheme.test"}))]}),
    );
    shapes.local(
        &name("BatchCreateFederatedBundle"),
        "good and bad",
        json!({"bundle": [bundle("two"), {}, good]}),
    );
    shapes.local(
        &name("BatchCreateFederatedBundle"),
        "empty mask",
        json!({"bundle": [with(&good, json!({"trust_domain": "mask.test"}))], "output_mask": {}}),
    );
    let masks = [
        ("empty mask", json!({})),
        ("mask of the hint", json!({"refresh_hint": true})),
        ("mask of the sequence", json!({"sequence_number": true})),
        ("mask of authorities", json!({"x509_authorities": true})),
        ("mask of keys", json!({"jwt_authorities": true})),
    ];
    for (label, mask) in &masks {
        let change = json!({"x509_authorities": [{"asn1": base64("root-two")}], "jwt_authorities": [],
            "refresh_hint": "90", "sequence_number": "43"});
        shapes.local(
            &name("BatchUpdateFederatedBundle"),
            label,
            json!({"bundle": [with(&good, change)], "input_mask": mask}),
        );
        shapes.local(
            &name("GetFederatedBundle"),
            label,
            json!({"trust_domain": "foreign-one.test", "output_mask": mask}),
        );
        shapes.local(&name("ListFederatedBundles"), label, json!({"output_mask": mask}));
    }
    shapes.local(&name("BatchUpdateFederatedBundle"), "everything", json!({"bundle": [good]}));
    shapes.local(
        &name("BatchSetFederatedBundle"),
        "new",
        json!({"bundle":
        [with(&good, json!({"trust_domain": "set.test"}))]}),
    );
    shapes.local(
        &name("BatchSetFederatedBundle"),
        "replaced",
        json!({"bundle":
        [with(&good, json!({"trust_domain": "set.test", "refresh_hint": "1", "jwt_authorities": []}))]}),
    );
    for td in [
        "",
        "example.org",
        "spiffe://example.org",
        "nobody.test",
        "BAD",
        "foreign-one.test",
        "spiffe://foreign-one.test",
        "set.test",
    ] {
        for caller in [Caller::Local, Caller::Agent] {
            shapes.by(
                caller,
                &name("GetFederatedBundle"),
                &format!("of {td:?}"),
                json!({"trust_domain": td}),
            );
        }
    }
    shapes.local(&name("CountBundles"), "some", json!({}));
    shapes.local(&name("ListFederatedBundles"), "page of two", json!({"page_size": 2, "output_mask": {}}));
    shapes.local(
        &name("ListFederatedBundles"),
        "malformed token",
        json!({"page_size": 2, "page_token": "x"}),
    );
    for (label, mask) in &masks {
        shapes.by(Caller::Anonymous, &name("GetBundle"), label, json!({"output_mask": mask}));
    }
    let append = name("AppendBundle");
    shapes.local(
        &append,
        "malformed certificate",
        json!({"x509_authorities": [{"asn1": BASE64.encode(b"x")}]}),
    );
    shapes.local(
        &append,
        "malformed key",
        json!({"jwt_authorities": [{"public_key": BASE64.encode(b"x"), "key_id": "k"}]}),
    );
    shapes.local(
        &append,
        "key without identifier",
        json!({"jwt_authorities": [{"public_key": base64("key-p256")}]}),
    );
    shapes.local(
        &append,
        "certificate",
        json!({"x509_authorities": [{"asn1": base64("root-two")}],
        "output_mask": {}}),
    );
    shapes.local(
        &append,
        "the same certificate",
        json!({"x509_authorities": [{"asn1": base64("root-two")}],
        "output_mask": {}}),
    );
    shapes.local(
        &append,
        "key",
        json!({"jwt_authorities": [{"public_key": base64("key-p384"),
        "key_id": "appended", "expires_at": "4102444800"}], "output_mask": {}}),
    );
    shapes.local(
        &append,
        "the same key",
        json!({"jwt_authorities": [{"public_key": base64("key-p384"),
        "key_id": "appended", "expires_at": "4102444800"}], "output_mask": {}}),
    );
    for caller in [Caller::Local, Caller::Agent, Caller::Anonymous] {
        shapes.by(caller, &name("GetBundle"), "after appending", json!({}));
    }
}

fn relationships(shapes: &mut Shapes) {
    let name = |rpc| method(TRUST_DOMAIN, rpc);
    let good = json!({"trust_domain": "fed-one.test", "bundle_endpoint_url": "https://127.0.0.1:1/bundle",
        "https_web": {}});
    let bad: &[(&str, Value)] = &[
        ("without trust domain", json!({"trust_domain": null})),
        ("own trust domain", json!({"trust_domain": "example.org"})),
        ("malformed trust domain", json!({"trust_domain": "BAD"})),
        ("without URL", json!({"bundle_endpoint_url": null})),
        ("URL without scheme", json!({"bundle_endpoint_url": "127.0.0.1/bundle"})),
        ("URL of http", json!({"bundle_endpoint_url": "http://127.0.0.1/bundle"})),
        ("URL without host", json!({"bundle_endpoint_url": "https:///bundle"})),
        ("URL with a user", json!({"bundle_endpoint_url": "https://user@127.0.0.1/bundle"})),
        ("malformed URL", json!({"bundle_endpoint_url": "https://bad host/"})),
        ("without profile", json!({"https_web": null})),
        ("without endpoint ID", json!({"https_web": null, "https_spiffe": {}})),
        ("malformed endpoint ID", json!({"https_web": null, "https_spiffe": {"endpoint_spiffe_id": "x"}})),
        ("bundle of another trust domain", json!({"trust_domain_bundle": bundle("two")})),
        (
            "malformed bundle",
            json!({"trust_domain_bundle": {"trust_domain": "fed-one.test",
            "x509_authorities": [{"asn1": BASE64.encode(b"x")}]}}),
        ),
    ];
    for rpc in ["BatchCreateFederationRelationship", "BatchUpdateFederationRelationship"] {
        for (label, change) in bad {
            shapes.local(
                &name(rpc),
                label,
                json!({"federation_relationships": [with(&good, change.clone())]}),
            );
        }
        shapes.local(&name(rpc), "nothing", json!({"federation_relationships": []}));
    }
    let create = name("BatchCreateFederationRelationship");
    let update = name("BatchUpdateFederationRelationship");
    shapes.local(&update, "unknown", json!({"federation_relationships": [good]}));
    shapes.local(&create, "good", json!({"federation_relationships": [good]}));
    shapes.local(&create, "again", json!({"federation_relationships": [good]}));
    let spiffe = json!({"trust_domain": "fed-two.test", "bundle_endpoint_url": "https://127.0.0.1:1/",
        "https_spiffe": {"endpoint_spiffe_id": "spiffe://fed-two.test/spire/server"},
        "trust_domain_bundle": with(&bundle("two"), json!({"trust_domain": "fed-two.test"}))});
    shapes.local(&create, "SPIFFE with bundle", json!({"federation_relationships": [spiffe]}));
    shapes.local(
        &create,
        "empty mask",
        json!({"federation_relationships":
        [with(&good, json!({"trust_domain": "fed-three.test"}))], "output_mask": {}}),
    );
    shapes.local(
        &create,
        "good and bad",
        json!({"federation_relationships":
        [with(&good, json!({"trust_domain": "fed-four.test"})), {}]}),
    );
    let masks = [
        ("empty mask", json!({})),
        ("mask of the URL", json!({"bundle_endpoint_url": true})),
        ("mask of the profile", json!({"bundle_endpoint_profile": true})),
        ("mask of the bundle", json!({"trust_domain_bundle": true})),
    ];
    for (label, mask) in &masks {
        let changed = json!({"trust_domain": "fed-two.test", "bundle_endpoint_url": "https://127.0.0.1:2/new",
            "https_web": {}});
        shapes.local(&update, label, json!({"federation_relationships": [changed], "input_mask": mask}));
        shapes.local(
            &name("GetFederationRelationship"),
            label,
            json!({"trust_domain": "fed-two.test", "output_mask": mask}),
        );
        shapes.local(&name("ListFederationRelationships"), label, json!({"output_mask": mask}));
    }
    shapes.local(&update, "everything", json!({"federation_relationships": [spiffe]}));
    for td in ["", "example.org", "nobody.test", "BAD", "fed-one.test", "spiffe://fed-one.test"] {
        shapes.local(&name("GetFederationRelationship"), &format!("of {td:?}"), json!({"trust_domain": td}));
    }
    for td in ["", "nobody.test", "BAD"] {
        shapes.local(&name("RefreshBundle"), &format!("of {td:?}"), json!({"trust_domain": td}));
    }
    shapes.local(
        &name("ListFederationRelationships"),
        "page of two",
        json!({"page_size": 2, "output_mask": {}}),
    );
    shapes.local(
        &name("ListFederationRelationships"),
        "second page of two",
        json!({"page_size": 2, "page_token": "${token}", "output_mask": {}}),
    );
    shapes.local(
        &name("ListFederationRelationships"),
        "malformed token",
        json!({"page_size": 2, "page_token": "x"}),
    );
    let delete = name("BatchDeleteFederationRelationship");
    for td in ["", "example.org", "nobody.test", "BAD", "fed-three.test", "fed-four.test"] {
        shapes.local(&delete, &format!("of {td:?}"), json!({"trust_domains": [td]}));
    }
    shapes.local(&delete, "of two", json!({"trust_domains": ["fed-one.test", "nobody.test"]}));
}

fn entries_federated(shapes: &mut Shapes) {
    let create = method(ENTRY, "BatchCreateEntry");
    for (name, tds) in [
        ("fed-a", vec!["foreign-one.test"]),
        ("fed-b", vec!["foreign-one.test", "foreign-two.test"]),
        ("fed-c", vec!["spiffe://foreign-two.test"]),
        ("fed-d", vec!["foreign-one.test", "foreign-one.test"]),
    ] {
        let message = json!({"entries": [with(&entry(name), json!({"federates_with": tds}))]});
        shapes.local(&create, &format!("federates: {name}"), message);
    }
    for (label, tds) in [
        ("one", vec!["foreign-one.test"]),
        ("two", vec!["foreign-two.test"]),
        ("both", vec!["foreign-one.test", "foreign-two.test"]),
        ("with scheme", vec!["spiffe://foreign-one.test"]),
    ] {
        for (name, number) in [("exact", 0), ("subset", 1), ("superset", 2), ("any", 3)] {
            let filter = json!({"by_federates_with": {"trust_domains": tds, "match": number}});
            shapes.local(
                &method(ENTRY, "ListEntries"),
                &format!("federates {name} {label}"),
                json!({"filter": filter, "output_mask": {"federates_with": true}}),
            );
            shapes.local(
                &method(ENTRY, "CountEntries"),
                &format!("federates {name} {label}"),
                json!({"filter": filter}),
            );
        }
    }
    let delete = method(BUNDLE, "BatchDeleteFederatedBundle");
    for td in ["", "example.org", "nobody.test", "BAD", "foreign-one.test", "set.test"] {
        shapes.local(&delete, &format!("restricted {td:?}"), json!({"trust_domains": [td]}));
    }
    shapes.local(&delete, "unknown mode", json!({"trust_domains": ["foreign-one.test"], "mode": 9}));
    shapes.local(
        &delete,
        "dissociated",
        json!({"trust_domains": ["foreign-two.test"], "mode": "DISSOCIATE"}),
    );
    shapes.local(&method(ENTRY, "GetEntry"), "after dissociation", json!({"id": "fed-b"}));
    // The revision of what was dissociated differs from here on.
    shapes.local(
        &method(ENTRY, "BatchDeleteEntry"),
        "of the dissociated",
        json!({"ids": ["fed-b", "fed-c"]}),
    );
    shapes.local(&delete, "with entries", json!({"trust_domains": ["foreign-one.test"], "mode": "DELETE"}));
    shapes.local(&method(ENTRY, "GetEntry"), "after deletion of its trust domain", json!({"id": "fed-a"}));
    shapes.local(&delete, "nothing", json!({"trust_domains": []}));
}

fn agents(shapes: &mut Shapes) {
    let (list, count, get) =
        (method(AGENT, "ListAgents"), method(AGENT, "CountAgents"), method(AGENT, "GetAgent"));
    let filters: &[(&str, Value)] = &[
        ("empty filter", json!({})),
        ("by type", json!({"by_attestation_type": "join_token"})),
        ("by unknown type", json!({"by_attestation_type": "nothing"})),
        ("by empty type", json!({"by_attestation_type": ""})),
        ("by banned", json!({"by_banned": true})),
        ("by not banned", json!({"by_banned": false})),
        ("by reattestable", json!({"by_can_reattest": true})),
        ("by not reattestable", json!({"by_can_reattest": false})),
        ("by no selectors", json!({"by_selector_match": {"selectors": []}})),
        ("by unknown selector", json!({"by_selector_match": {"selectors": [selector("x", "y")]}})),
        ("by malformed selector", json!({"by_selector_match": {"selectors": [selector("", "y")]}})),
        ("by any selector", json!({"by_selector_match": {"selectors": [selector("x", "y")], "match": 3}})),
        ("by early expiry", json!({"by_expires_before": "2001-01-01 00:00:00 +0000 +00"})),
        ("by late expiry", json!({"by_expires_before": "2101-01-01 00:00:00 +0000 +00"})),
        ("by malformed expiry", json!({"by_expires_before": "tomorrow"})),
    ];
    for (label, filter) in filters {
        shapes.local(&list, label, json!({"filter": filter}));
        shapes.local(&count, label, json!({"filter": filter}));
    }
    for mask in [
        "attestation_type",
        "x509svid_serial_number",
        "x509svid_expires_at",
        "selectors",
        "banned",
        "can_reattest",
        "agent_version",
    ] {
        shapes.local(
            &get,
            &format!("mask of {mask}"),
            json!({"id": id("/spire/agent/join_token/tok-agent"), "output_mask": {mask: true}}),
        );
    }
    shapes.local(&list, "page of one", json!({"page_size": 1, "output_mask": {}}));
    shapes.local(
        &list,
        "second page of one",
        json!({"page_size": 1, "page_token": "${token}", "output_mask": {}}),
    );
    shapes.local(&list, "malformed token", json!({"page_size": 1, "page_token": "x"}));
    let ids = [
        ("good", id("/spire/agent/join_token/tok-agent")),
        ("unknown", id("/spire/agent/none")),
        ("workload", id("/web")),
        ("foreign", foreign("/spire/agent/x")),
        ("server", id("/spire/server")),
        ("malformed", id("x")),
        ("without path", id("")),
        ("agent prefix only", id("/spire/agent")),
    ];
    for (label, agent) in &ids {
        shapes.local(&get, &format!("{label} ID"), json!({"id": agent}));
        if *label != "good" {
            shapes.local(&method(AGENT, "DeleteAgent"), &format!("{label} ID"), json!({"id": agent}));
            shapes.local(&method(AGENT, "BanAgent"), &format!("{label} ID"), json!({"id": agent}));
        }
    }
    let status = method(AGENT, "PostStatus");
    shapes.by(
        Caller::Agent,
        &status,
        "version",
        json!({"agent_version": "1.2.3", "current_bundle_serial": "9"}),
    );
    shapes.by(Caller::Agent, &status, "version of 255", json!({"agent_version": "v".repeat(255)}));
    shapes.by(Caller::Agent, &status, "version of 256", json!({"agent_version": "v".repeat(256)}));
    shapes.by(Caller::Agent, &status, "version again", json!({"agent_version": "1.15.3"}));
    shapes.local(&get, "after its version", json!({"id": id("/spire/agent/join_token/tok-agent")}));
    let token = method(AGENT, "CreateJoinToken");
    shapes.local(&token, "without lifetime", json!({"token": "t-1"}));
    shapes.local(&token, "negative lifetime", json!({"token": "t-1", "ttl": -1}));
    shapes.local(&token, "random", json!({"ttl": 600}));
    shapes.local(&token, "given", json!({"ttl": 600, "token": "t-1"}));
    shapes.local(&token, "given again", json!({"ttl": 600, "token": "t-1"}));
    shapes.local(&token, "with ID", json!({"ttl": 600, "token": "t-2", "agent_id": id("/node-two")}));
    shapes.local(&token, "with foreign ID", json!({"ttl": 600, "token": "t-3", "agent_id": foreign("/x")}));
    shapes.local(
        &token,
        "with reserved ID",
        json!({"ttl": 600, "token": "t-4", "agent_id": id("/spire/server")}),
    );
    shapes.local(
        &token,
        "with agent ID",
        json!({"ttl": 600, "token": "t-5", "agent_id": id("/spire/agent/x")}),
    );
    shapes.local(&token, "with malformed ID", json!({"ttl": 600, "token": "t-6", "agent_id": id("x")}));
    shapes.local(&token, "with a slash", json!({"ttl": 600, "token": "a/b"}));
    shapes.local(&token, "with a space", json!({"ttl": 600, "token": "a b"}));
    shapes.local(&token, "of one second", json!({"ttl": 1, "token": "t-short"}));
    shapes.local(
        &method(ENTRY, "ListEntries"),
        "alias of a token",
        json!({"filter": {"by_spiffe_id": id("/node-two")}}),
    );
}

fn attestation(shapes: &mut Shapes) {
    let attest = method(AGENT, "AttestAgent");
    let params = |kind: &str, payload: &str, csr: Value| json!({"params": {"data": {"type": kind, "payload": BASE64.encode(payload.as_bytes())}, "params": csr}});
    let csr = json!({"csr": base64("csr-bare")});
    let cases: &[(&str, Value)] = &[
        ("without data", json!({"params": {"params": csr}})),
        ("without type", params("", "t-1", csr.clone())),
        ("without payload", params("join_token", "", csr.clone())),
        ("without CSR", params("join_token", "t-1", json!({}))),
        ("without parameters", json!({"params": {"data": {"type": "join_token", "payload": "dA=="}}})),
        ("challenge response first", json!({"challenge_response": "dA=="})),
        ("unknown type", params("nothing", "x", csr.clone())),
        ("type that is not configured", params("x509pop", "{}", csr.clone())),
        ("unknown token", params("join_token", "nobody", csr.clone())),
        ("token that was used", params("join_token", "tok-agent", csr.clone())),
        ("token of a banned agent", params("join_token", "tok-banned", csr.clone())),
        ("malformed CSR", params("join_token", "t-1", json!({"csr": "dA=="}))),
        ("token that a malformed CSR spent", params("join_token", "t-1", csr.clone())),
        (
            "CSR with a bad signature",
            params("join_token", "t-2", json!({"csr": base64("csr-bad-signature")})),
        ),
        ("the same token", params("join_token", "t-2", csr.clone())),
    ];
    for (label, message) in cases {
        for caller in [Caller::Anonymous, Caller::Local] {
            if caller == Caller::Local && !["unknown token", "unknown type", "without CSR"].contains(label) {
                continue;
            }
            shapes.by(caller, &attest, label, message.clone());
        }
    }
    shapes.local(&method(AGENT, "ListAgents"), "after attestations", json!({}));
    shapes.local(
        &method(AGENT, "DeleteAgent"),
        "of a token with ID",
        json!({"id": id("/spire/agent/join_token/t-2")}),
    );
    shapes.local(
        &method(ENTRY, "ListEntries"),
        "alias of an evicted agent",
        json!({"filter": {"by_spiffe_id": id("/node-two")}}),
    );
    let renew = method(AGENT, "RenewAgent");
    shapes.by(Caller::Agent, &renew, "without CSR", json!({"params": {}}));
    shapes.by(Caller::Agent, &renew, "malformed CSR", json!({"params": {"csr": "dA=="}}));
    shapes.by(
        Caller::Agent,
        &renew,
        "bad signature",
        json!({"params": {"csr": base64("csr-bad-signature")}}),
    );
    shapes.by(Caller::Agent, &renew, "good", json!({"params": {"csr": base64("csr-bare")}}));
    // The new SVID was never used, so the old one is still good.
    shapes.by(Caller::Agent, &renew, "good again", json!({"params": {"csr": base64("csr-web")}}));
    shapes.by(Caller::Agent, &renew, "RSA key", json!({"params": {"csr": base64("csr-web-rsa")}}));
    shapes.by(Caller::Agent, &renew, "P-384 key", json!({"params": {"csr": base64("csr-web-p384")}}));
}

fn minting(shapes: &mut Shapes) {
    let x509 = method(SVID, "MintX509SVID");
    for name in [
        "bare",
        "web",
        "web-p384",
        "web-rsa",
        "web-rsa1024",
        "subject",
        "dns",
        "wildcard",
        "wildcard-ok",
        "bad-dns",
        "two-uris",
        "foreign",
        "td",
        "reserved",
        "agent",
        "http",
        "bad-signature",
        "trailing",
        "admin",
    ] {
        shapes.local(&x509, name, json!({"csr": base64(&format!("csr-{name}"))}));
    }
    shapes.local(&x509, "malformed", json!({"csr": "dA=="}));
    for ttl in [-1, 1, 60, 7200, 100_000_000] {
        shapes.local(&x509, &format!("lifetime {ttl}"), json!({"csr": base64("csr-web"), "ttl": ttl}));
    }
    shapes.by(Caller::Admin, &x509, "web", json!({"csr": base64("csr-web")}));
    let jwt = method(SVID, "MintJWTSVID");
    let cases: &[(&str, Value)] = &[
        ("without ID", json!({"audience": ["a"]})),
        ("without audience", json!({"id": id("/web")})),
        ("empty audience", json!({"id": id("/web"), "audience": [""]})),
        ("some empty audience", json!({"id": id("/web"), "audience": ["", "a"]})),
        ("good", json!({"id": id("/web"), "audience": ["a"]})),
        ("two audiences", json!({"id": id("/web"), "audience": ["b", "a"]})),
        ("the same audience twice", json!({"id": id("/web"), "audience": ["a", "a"]})),
        ("trust domain ID", json!({"id": id(""), "audience": ["a"]})),
        ("reserved ID", json!({"id": id("/spire/server"), "audience": ["a"]})),
        ("agent ID", json!({"id": id("/spire/agent/x"), "audience": ["a"]})),
        ("foreign ID", json!({"id": foreign("/web"), "audience": ["a"]})),
        ("malformed ID", json!({"id": id("web"), "audience": ["a"]})),
        ("lifetime", json!({"id": id("/web"), "audience": ["a"], "ttl": 120})),
        ("negative lifetime", json!({"id": id("/web"), "audience": ["a"], "ttl": -1})),
        ("huge lifetime", json!({"id": id("/web"), "audience": ["a"], "ttl": 100_000_000})),
    ];
    for (label, message) in cases {
        shapes.local(&jwt, label, message.clone());
    }
    let wit = method(SVID, "MintWITSVID");
    shapes.local(
        &wit,
        "good",
        json!({"id": id("/web"), "public_key": base64("key-p256"),
        "signing_algorithm": "ES256"}),
    );
}

fn entitled(shapes: &mut Shapes) {
    let mask = json!({"spiffe_id": true, "selectors": true, "federates_with": true, "admin": true,
        "downstream": true, "revision_number": true, "store_svid": true, "hint": true,
        "additional_attributes": true, "created_at": true});
    let get = method(ENTRY, "GetAuthorizedEntries");
    shapes.by(Caller::Agent, &get, "everything", json!({}));
    shapes.by(Caller::Agent, &get, "mask of agents", json!({"output_mask": mask}));
    shapes.by(Caller::Agent, &get, "empty mask", json!({"output_mask": {}}));
    let sync = method(ENTRY, "SyncAuthorizedEntries");
    shapes.by(Caller::Agent, &sync, "mask of agents", json!({"output_mask": mask}));
    shapes.by(Caller::Agent, &sync, "mask without revision", json!({"output_mask": {"spiffe_id": true}}));
    shapes.by(Caller::Agent, &sync, "identifiers first", json!({"ids": ["web"]}));
    shapes.stream(
        Caller::Agent,
        &sync,
        "identifiers after everything",
        vec![json!({"output_mask": mask}), json!({"ids": ["web", "nobody"]})],
    );
    shapes.stream(Caller::Agent, &sync, "no message", vec![]);
    let x509 = method(SVID, "BatchNewX509SVID");
    let one = |entry: &str, csr: &str| json!({"params": [{"entry_id": entry, "csr": base64(csr)}]});
    for (label, message) in [
        ("good", one("web", "csr-web")),
        ("bare CSR", one("web", "csr-bare")),
        ("CSR for somebody else", one("web", "csr-admin")),
        ("RSA key", one("web", "csr-web-rsa")),
        ("RSA key of 1024", one("web", "csr-web-rsa1024")),
        ("P-384 key", one("web", "csr-web-p384")),
        ("subject of the CSR", one("web", "csr-subject")),
        ("DNS names of the CSR", one("web", "csr-dns")),
        ("DNS names of the entry", one("dns", "csr-web")),
        ("lifetime of the entry", one("lifetimes", "csr-web")),
        ("bad signature", one("web", "csr-bad-signature")),
        ("trailing byte", one("web", "csr-trailing")),
        ("unknown entry", one("nobody", "csr-web")),
        ("entry of somebody else", one("e-admin", "csr-web")),
        ("alias entry", one("alias", "csr-web")),
        ("child of a workload", one("child", "csr-web")),
        ("expired entry", one("expired", "csr-web")),
        ("stored entry", one("stored", "csr-web")),
        ("without entry", json!({"params": [{"csr": base64("csr-web")}]})),
        ("without CSR", json!({"params": [{"entry_id": "web"}]})),
        ("malformed CSR", json!({"params": [{"entry_id": "web", "csr": "dA=="}]})),
        ("empty item", json!({"params": [{}]})),
        (
            "good, bad, good",
            json!({"params": [{"entry_id": "web", "csr": base64("csr-web")}, {},
            {"entry_id": "child", "csr": base64("csr-web")}]}),
        ),
    ] {
        shapes.by(Caller::Agent, &x509, label, message);
    }
    let jwt = method(SVID, "NewJWTSVID");
    for (label, message) in [
        ("good", json!({"entry_id": "web", "audience": ["a"]})),
        ("without audience", json!({"entry_id": "web"})),
        ("empty audience", json!({"entry_id": "web", "audience": [""]})),
        ("without entry", json!({"audience": ["a"]})),
        ("unknown entry", json!({"entry_id": "nobody", "audience": ["a"]})),
        ("unknown entry without audience", json!({"entry_id": "nobody"})),
        ("entry of somebody else", json!({"entry_id": "e-admin", "audience": ["a"]})),
        ("lifetime of the entry", json!({"entry_id": "lifetimes", "audience": ["a"]})),
        ("with an identifier", json!({"entry_id": "attributes", "audience": ["a", "b"]})),
        ("child of a workload", json!({"entry_id": "child", "audience": ["a"]})),
    ] {
        shapes.by(Caller::Agent, &jwt, label, message);
    }
}

fn downstream(shapes: &mut Shapes) {
    let ca = method(SVID, "NewDownstreamX509CA");
    for (label, message) in [
        ("good", json!({"csr": base64("csr-td")})),
        ("any CSR", json!({"csr": base64("csr-bare")})),
        ("malformed CSR", json!({"csr": "dA=="})),
        ("bad signature", json!({"csr": base64("csr-bad-signature")})),
        ("lifetime", json!({"csr": base64("csr-td"), "preferred_ttl": 3600})),
        ("negative lifetime", json!({"csr": base64("csr-td"), "preferred_ttl": -1})),
        ("huge lifetime", json!({"csr": base64("csr-td"), "preferred_ttl": 100_000_000})),
        ("RSA key", json!({"csr": base64("csr-web-rsa")})),
    ] {
        shapes.by(Caller::Downstream, &ca, label, message);
    }
    let publish = method(BUNDLE, "PublishJWTAuthority");
    for (label, message) in [
        ("without bytes", json!({"jwt_authority": {"key_id": "pushed"}})),
        ("without identifier", json!({"jwt_authority": {"public_key": base64("key-p256")}})),
        ("malformed", json!({"jwt_authority": {"public_key": "dA==", "key_id": "pushed"}})),
        (
            "good",
            json!({"jwt_authority": {"public_key": base64("key-p256"), "key_id": "pushed",
            "expires_at": "4102444800"}}),
        ),
        (
            "again",
            json!({"jwt_authority": {"public_key": base64("key-p256"), "key_id": "pushed",
            "expires_at": "4102444800"}}),
        ),
    ] {
        shapes.by(Caller::Downstream, &publish, label, message);
    }
}

fn operations(shapes: &mut Shapes) {
    for level in 0..=8 {
        shapes.local(&method(LOGGER, "SetLogLevel"), &format!("level {level}"), json!({"new_level": level}));
    }
    shapes.local(&method(LOGGER, "GetLogger"), "after setting", json!({}));
    shapes.local(&method(LOGGER, "ResetLogLevel"), "after setting", json!({}));
    shapes.local(&method(HEALTH, "Check"), "named", json!({"service": "x"}));
    shapes.local(&method(HEALTH, "Watch"), "named", json!({"service": "x"}));
}

fn authorities(shapes: &mut Shapes) {
    for (kind, key) in [("X509", "x509"), ("JWT", "jwt")] {
        let rpc = |verb: &str| method(AUTHORITY, &format!("{verb}{kind}Authority"));
        let state = method(AUTHORITY, &format!("Get{kind}AuthorityState"));
        let by = |what: &str| json!({"authority_id": format!("${{{key}.{what}}}")});
        shapes.local(&state, "at first", json!({}));
        for verb in ["Activate", "Taint", "Revoke"] {
            shapes.local(&rpc(verb), "unknown", json!({"authority_id": "nobody"}));
            shapes.local(&rpc(verb), "active", by("active"));
        }
        shapes.local(&rpc("Taint"), "prepared", by("prepared"));
        shapes.local(&rpc("Revoke"), "prepared", by("prepared"));
        shapes.local(&rpc("Prepare"), "once more", json!({}));
        shapes.local(&state, "prepared", json!({}));
        shapes.local(&rpc("Activate"), "prepared", by("prepared"));
        shapes.local(&state, "activated", json!({}));
        shapes.local(&rpc("Activate"), "old", by("old"));
        shapes.local(&rpc("Revoke"), "old before taint", by("old"));
        shapes.local(&rpc("Taint"), "old", by("old"));
        shapes.local(&rpc("Taint"), "old again", by("old"));
        shapes.local(&rpc("Revoke"), "old", by("old"));
        shapes.local(&rpc("Revoke"), "old again", by("old"));
        shapes.local(&state, "at the end", json!({}));
    }
    for verb in ["Taint", "Revoke"] {
        let rpc = method(AUTHORITY, &format!("{verb}X509UpstreamAuthority"));
        shapes.local(&rpc, "without upstream", json!({"subject_key_id": "ab"}));
    }
}

fn entries_deleted(shapes: &mut Shapes) {
    let delete = method(ENTRY, "BatchDeleteEntry");
    shapes.local(&delete, "nothing", json!({"ids": []}));
    shapes.local(&delete, "without id", json!({"ids": [""]}));
    shapes.local(&delete, "unknown", json!({"ids": ["nobody"]}));
    shapes.local(&delete, "good", json!({"ids": ["web"]}));
    shapes.local(&delete, "again", json!({"ids": ["web"]}));
    shapes.local(&delete, "some", json!({"ids": ["page-00", "nobody", "page-01", "page-01"]}));
    shapes.local(
        &method(ENTRY, "CountEntries"),
        "at the end",
        json!({"filter": {"by_spiffe_id": id("/page")}}),
    );
    shapes.local(&method(ENTRY, "BatchCreateEntry"), "what was deleted", json!({"entries": [entry("web")]}));
}
