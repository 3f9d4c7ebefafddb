//! What the cache decides, without a server.

use bonafide_identity::Bundle;
use bonafide_testkit::{EntryBuilder, selectors, trust_domain};
use bytes::Bytes;

use super::*;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_unix_seconds(seconds)
}

fn entry(id: &str, selector: &str) -> EntryBuilder {
    EntryBuilder::new(id).selectors([selector])
}

fn bundles() -> Bundles {
    Bundles::new(Bundle::empty(trust_domain()), [], None)
}

fn svid(entry: &Entry, renew_at: i64, not_after: i64) -> X509Svid {
    X509Svid {
        id: entry.spiffe_id.clone(),
        chain: Bytes::new(),
        lengths: Box::default(),
        key: Bytes::new(),
        not_after: at(not_after),
        renew_at: at(renew_at),
        issuers: ["authority".to_owned()].into(),
    }
}

fn cache(limit: usize, entries: Vec<Arc<Entry>>) -> Arc<SvidCache> {
    let cache = Arc::new(SvidCache::new(limit));
    cache.update(entries, bundles());
    cache
}

fn ids(entries: &[Arc<Entry>]) -> Vec<&str> {
    entries.iter().map(|entry| entry.id.as_str()).collect()
}

/// Has everything signed that is due.
fn sign(cache: &SvidCache, now: i64, occasion: Occasion) -> Vec<String> {
    let due = cache.due::<X509>(at(now), occasion);
    let signed = due.iter().map(|entry| entry.id.as_str().to_owned()).collect();
    cache.put::<X509>(
        due.into_iter()
            .map(|entry| {
                let svid = svid(&entry, now + 50, now + 100);
                (entry, Ok(svid))
            })
            .collect(),
    );
    signed
}

fn woken(subscription: &mut Subscription) -> bool {
    subscription.changes.has_changed().unwrap()
}

#[test]
fn a_workload_matches_what_it_has_all_selectors_of() {
    let cache = cache(
        9,
        vec![
            EntryBuilder::new("e3").selectors(["a:1", "b:1"]).shared(),
            EntryBuilder::new("e1").selectors(["a:1"]).shared(),
            EntryBuilder::new("e2").selectors(["a:1", "c:1"]).shared(),
            entry("e4", "a:1").with(|entry| entry.store_svid = true).shared(),
            EntryBuilder::new("e5").selectors([]).shared(),
        ],
    );
    assert_eq!(ids(&cache.matching(&selectors(["a:1", "b:1", "z:1"]))), ["e1", "e3"]);
    assert_eq!(ids(&cache.matching(&selectors(["b:1"]))), [] as [&str; 0]);
    assert!(cache.matching(&SelectorSet::empty()).is_empty());
    // Other selectors, then gone.
    let moved = EntryBuilder::new("e1").selectors(["b:1"]).with(|entry| entry.revision = 1).shared();
    cache.update(vec![moved], bundles());
    assert!(cache.matching(&selectors(["a:1"])).is_empty());
    assert_eq!(ids(&cache.matching(&selectors(["a:1", "b:1"]))), ["e1"]);
    cache.update(Vec::new(), bundles());
    assert!(cache.matching(&selectors(["a:1", "b:1"])).is_empty());
    assert!(cache.lock().by_selector.is_empty());
}

#[test]
fn an_svid_is_due_when_it_is_missing_changed_or_old() {
    let e = entry("e1", "a:1");
    let cache = cache(9, vec![e.clone().shared()]);
    assert_eq!(cache.next_renewal(at(0)), None);
    assert_eq!(sign(&cache, 0, Occasion::Regular), ["e1"]);
    assert_eq!(cache.next_renewal(at(0)), Some(at(50)));
    assert!(sign(&cache, 49, Occasion::Regular).is_empty());
    assert_eq!(sign(&cache, 50, Occasion::Regular), ["e1"]);
    assert_eq!(cache.next_renewal(at(50)), Some(at(100)));

    for changed in [
        e.clone().with(|entry| entry.revision = 1),
        e.clone().with(|entry| (entry.revision, entry.created_at) = (1, at(7))),
    ] {
        cache.update(vec![changed.clone().shared()], bundles());
        assert_eq!(sign(&cache, 51, Occasion::Regular), ["e1"]);
        cache.update(vec![changed.shared()], bundles());
        assert!(sign(&cache, 51, Occasion::Regular).is_empty());
    }
}

#[test]
fn a_failed_renewal_waits_for_the_next_regular_look() {
    let cache = cache(9, vec![entry("e1", "a:1").shared()]);
    sign(&cache, 0, Occasion::Regular);
    let due = cache.due::<X509>(at(60), Occasion::Regular);
    cache.put::<X509>(vec![(Arc::clone(&due[0]), Err(()))]);
    assert_eq!(cache.next_renewal(at(60)), None, "else the agent would ask without pause");
    assert_eq!(ids(&cache.due::<X509>(at(61), Occasion::Regular)), ["e1"]);
    // The old one serves as long as it lasts.
    let mut subscription = cache.subscribe(selectors(["a:1"]), Interest::X509);
    let availability = |subscription: &mut Subscription, now| {
        subscription.view::<X509>(at(now)).unwrap().entries.pop().unwrap().1
    };
    assert!(matches!(availability(&mut subscription, 99), Availability::Ready(_)));
    assert!(matches!(availability(&mut subscription, 100), Availability::Refused));
}

#[test]
fn demand_covers_what_subscribers_lack_and_nothing_else() {
    let cache =
        cache(1, vec![entry("e1", "a:1").shared(), entry("e2", "b:1").shared(), entry("e3", "b:1").shared()]);
    assert!(sign(&cache, 0, Occasion::Demand).is_empty(), "nobody waits");
    let subscription = cache.subscribe(selectors(["b:1"]), Interest::X509);
    assert_eq!(sign(&cache, 0, Occasion::Demand), ["e2", "e3"]);
    drop(subscription);
    let due = cache.due::<X509>(at(0), Occasion::Demand);
    assert!(due.is_empty());
    // A stream of bundles has nothing signed.
    let _bundles = cache.subscribe(selectors(["a:1"]), Interest::Bundles);
    assert!(sign(&cache, 0, Occasion::Demand).is_empty());
}

#[test]
fn what_has_failed_is_not_tried_again_on_demand() {
    let cache = cache(9, vec![entry("e1", "a:1").shared()]);
    let _subscription = cache.subscribe(selectors(["a:1"]), Interest::X509);
    let due = cache.due::<X509>(at(0), Occasion::Demand);
    cache.put::<X509>(vec![(Arc::clone(&due[0]), Err(()))]);
    assert!(cache.due::<X509>(at(0), Occasion::Demand).is_empty());
    // Unless the entry has changed since.
    cache.update(vec![entry("e1", "a:1").with(|entry| entry.revision = 1).shared()], bundles());
    assert_eq!(ids(&cache.due::<X509>(at(0), Occasion::Demand)), ["e1"]);
}

#[test]
fn beyond_the_limit_the_least_recently_used_go_and_subscribers_stay() {
    let all: Vec<_> =
        (1..=4).map(|number| entry(&format!("e{number}"), &format!("s:{number}")).shared()).collect();
    let cache = cache(2, all);
    assert_eq!(sign(&cache, 0, Occasion::Regular), ["e1", "e2"]);
    // Used in this order: e2, then e3 by a subscriber.
    let _ = cache.matching(&selectors(["s:2"]));
    let third = cache.subscribe(selectors(["s:3"]), Interest::X509);
    assert_eq!(sign(&cache, 0, Occasion::Demand), ["e3"]);
    let held = |cache: &SvidCache| -> Vec<String> {
        let state = cache.lock();
        let with = state.held.values().filter(|held| held.x509.0.svid().is_some());
        with.map(|held| held.entry.id.as_str().to_owned()).collect()
    };
    assert_eq!(held(&cache), ["e2", "e3"]);
    let first = cache.subscribe(selectors(["s:1"]), Interest::X509);
    let fourth = cache.subscribe(selectors(["s:4"]), Interest::X509);
    assert_eq!(sign(&cache, 0, Occasion::Demand), ["e1", "e4"]);
    assert_eq!(held(&cache), ["e1", "e3", "e4"], "a soft limit");
    drop((first, fourth));
    assert!(sign(&cache, 0, Occasion::Regular).is_empty());
    assert_eq!(held(&cache).len(), 2);
    assert!(held(&cache).contains(&"e3".to_owned()));
    drop(third);
    assert_eq!(cache.lock().groups.len(), 0);
}

#[test]
fn without_prefetch_an_svid_is_signed_on_demand_and_then_renewed() {
    let cache =
        cache(9, vec![entry("e1", "a:1").with(|entry| entry.disable_x509_svid_prefetch = true).shared()]);
    assert!(sign(&cache, 0, Occasion::Regular).is_empty());
    let subscription = cache.subscribe(selectors(["a:1"]), Interest::X509);
    assert_eq!(sign(&cache, 0, Occasion::Demand), ["e1"]);
    drop(subscription);
    assert_eq!(sign(&cache, 50, Occasion::Regular), ["e1"]);
}

#[test]
fn subscribers_are_woken_by_what_concerns_them_alone() {
    let cache = cache(9, vec![entry("e1", "a:1").shared(), entry("e2", "b:1").shared()]);
    let mut a = cache.subscribe(selectors(["a:1"]), Interest::X509);
    let mut a_bundles = cache.subscribe(selectors(["a:1"]), Interest::Bundles);
    let mut b = cache.subscribe(selectors(["b:1"]), Interest::X509);
    let settle = |all: [&mut Subscription; 3]| {
        all.map(|subscription| {
            let woken = woken(subscription);
            let _ = subscription.view::<X509>(at(0));
            woken
        })
    };
    let e1 = || entry("e1", "a:1").shared();
    cache.put::<X509>(vec![(e1(), Ok(svid(&e1(), 50, 100)))]);
    assert_eq!(settle([&mut a, &mut a_bundles, &mut b]), [true, false, false], "an SVID");

    let changed = entry("e2", "b:1").with(|entry| entry.hint = "x".into()).shared();
    cache.update(vec![e1(), Arc::clone(&changed)], bundles());
    assert_eq!(settle([&mut a, &mut a_bundles, &mut b]), [false, false, true], "an entry");
    cache.update(vec![e1(), Arc::clone(&changed)], bundles());
    assert_eq!(settle([&mut a, &mut a_bundles, &mut b]), [false, false, false], "nothing");

    let mut own = Bundle::empty(trust_domain());
    own.jwt_authorities.push(bonafide_identity::JwtAuthority {
        key_id: "k".into(),
        public_key: bonafide_pki::Signer::public_key(
            &bonafide_pki::PrivateKey::generate(bonafide_pki::KeyType::EcP256).unwrap(),
        )
        .spki_der()
        .to_vec(),
        expires_at: None,
        tainted: false,
    });
    cache.update(vec![e1(), changed], Bundles::new(own, [], None));
    assert_eq!(settle([&mut a, &mut a_bundles, &mut b]), [false, true, false], "a JWT key");

    cache.update(vec![e1()], bundles());
    assert_eq!(settle([&mut a, &mut a_bundles, &mut b]), [false, true, true], "an entry that goes");
}

#[test]
fn an_svid_is_never_given_out_under_another_name() {
    let e1 = entry("e1", "a:1");
    let cache = cache(9, vec![e1.clone().shared()]);
    sign(&cache, 0, Occasion::Regular);
    let mut subscription = cache.subscribe(selectors(["a:1"]), Interest::X509);
    cache.update(vec![e1.spiffe_id("/new").with(|entry| entry.revision = 1).shared()], bundles());
    let view = subscription.view::<X509>(at(0)).unwrap();
    assert!(matches!(view.entries[0].1, Availability::Pending), "{:?}", view.entries);
    assert_eq!(sign(&cache, 0, Occasion::Demand), ["e1"]);
    let view = subscription.view::<X509>(at(0)).unwrap();
    assert!(matches!(&view.entries[0].1, Availability::Ready(svid) if svid.id.path() == "/new"));
}

#[test]
fn svids_of_a_tainted_authority_are_replaced_in_batches() {
    let all: Vec<_> = (0..250).map(|number| entry(&format!("e{number:03}"), "a:1").shared()).collect();
    let cache = cache(1000, all.clone());
    assert_eq!(sign(&cache, 0, Occasion::Regular).len(), 250);
    let mut tainted = bundles();
    tainted.tainted.x509.insert("authority".into());
    cache.update(all, tainted);
    let replace = |now| {
        let due = cache.due::<X509>(at(now), Occasion::Regular);
        let count = due.len();
        let fresh = |entry: &Entry| X509Svid {
            issuers: ["new".to_owned()].into(),
            ..svid(entry, now + 50, now + 100)
        };
        cache.put::<X509>(
            due.into_iter()
                .map(|entry| {
                    let svid = fresh(&entry);
                    (entry, Ok(svid))
                })
                .collect(),
        );
        count
    };
    assert_eq!(cache.next_renewal(at(1)), Some(at(1)));
    assert_eq!([replace(1), replace(2)], [100, 0]);
    // Without waiting for the next regular look.
    assert_eq!(cache.next_renewal(at(2)), Some(at(6)));
    assert_eq!(replace(5), 0);
    assert_eq!([replace(6), replace(11)], [100, 50]);
    assert_eq!(cache.next_renewal(at(16)), Some(at(51)));
    assert_eq!(replace(16), 0);
}

#[test]
fn wit_svids_are_signed_for_subscribers_alone_and_let_go_when_they_end() {
    let cache = cache(9, vec![entry("e1", "a:1").shared(), entry("e2", "b:1").shared()]);
    assert!(cache.due::<Wit>(at(0), Occasion::Regular).is_empty());
    let subscription = cache.subscribe(selectors(["a:1"]), Interest::Wit);
    let due = cache.due::<Wit>(at(0), Occasion::Demand);
    assert_eq!(ids(&due), ["e1"]);
    let wit = WitSvid {
        id: due[0].spiffe_id.clone(),
        token: "t".into(),
        key: zeroize::Zeroizing::new("k".into()),
        not_after: at(100),
        renew_at: at(50),
        key_id: "kid".into(),
    };
    cache.put::<Wit>(vec![(Arc::clone(&due[0]), Ok(wit))]);
    assert_eq!(cache.counts().wit, 1);
    drop(subscription);
    assert!(cache.due::<Wit>(at(49), Occasion::Regular).is_empty());
    assert_eq!(cache.counts().wit, 1, "it may be asked for again");
    assert!(cache.due::<Wit>(at(50), Occasion::Regular).is_empty());
    assert_eq!(cache.counts().wit, 0);
}

#[test]
fn a_chain_is_cut_where_its_certificates_meet() {
    let mut svid = svid(&entry("e1", "a:1").build(), 1, 2);
    svid.chain = Bytes::from_static(b"leafroot!");
    svid.lengths = [4, 5].into();
    assert_eq!(svid.certificates().collect::<Vec<_>>(), [&b"leaf"[..], b"root!"]);
}

#[test]
fn whoever_wants_all_bundles_hears_of_each() {
    let cache = cache(9, vec![entry("e1", "a:1").shared()]);
    let mut all = cache.subscribe(selectors(["a:1"]), Interest::AllBundles);
    let mut own = cache.subscribe(selectors(["a:1"]), Interest::Bundles);
    for subscription in [&mut all, &mut own] {
        subscription.view::<X509>(at(0)).unwrap();
    }
    let foreign = Bundle::empty(TrustDomain::parse("one.test").unwrap());
    let before = cache.bundles();
    let entries = cache.entries();
    cache.update(entries, Bundles::new(Bundle::empty(trust_domain()), [foreign], before.as_deref()));
    assert!(woken(&mut all) && !woken(&mut own));
    // And of what its owner is entitled to.
    all.view::<X509>(at(0)).unwrap();
    let before = cache.bundles().unwrap();
    cache.update(Vec::new(), Bundles::new(before.own.bundle.clone(), [], Some(&before)));
    assert!(woken(&mut all));
}
