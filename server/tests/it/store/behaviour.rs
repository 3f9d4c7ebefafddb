//! What a store does, whatever is under it.

use std::collections::BTreeSet;

use bonafide_identity::{AuthorityKind, AuthoritySlot, EntryId, SlotId, SlotStatus, Timestamp, TrustDomain};
use bonafide_runtime::clock::SystemClock;
use bonafide_server::store::{
    Bundles, Change, ChangeLog, DriverKind, EndpointProfile, Entries, FederationRelationship, Issuance,
    IssuedSvid, JoinTokens, Journal, JournalRecord, KEPT_CHANGES, Nodes, Relationships, Store, StoreConfig,
    StoreError, SvidKind,
};

use super::{DRIVERS, LASTING, bundle, config, content, each, entry, id, node, open, token, trust_domain};

#[test]
fn what_was_written_is_read_and_found_again() {
    each(&DRIVERS, async |driver, folder| {
        let (store, found) = open(driver, folder.path()).unwrap();
        assert!(found.created);
        let epoch = store
            .write(|unit| {
                for name in ["b", "a", "c"] {
                    unit.entry_create(entry(name))?;
                }
                unit.node_put(node("n1", 1))?;
                unit.bundle_put(bundle("store.test", vec![1]))?;
                unit.relationship_create(relationship("other.test", None))?;
                unit.relationship_create(relationship("third.test", Some("/endpoint")))?;
                unit.token_create(&token("t1"))?;
                Ok(unit.epoch())
            })
            .await
            .unwrap();
        assert_eq!((epoch, store.state().epoch()), (7, 7));
        store
            .write(|unit| {
                let mut changed = entry("b");
                changed.hint = "changed".into();
                changed.revision = 1;
                unit.entry_update(changed)?;
                unit.entry_delete(&EntryId::parse("a").unwrap())?;
                unit.entry_create(entry("d"))?;
                unit.node_put(node("n1", 2))?;
                unit.node_put(node("n2", 7))?;
                unit.bundle_put(bundle("store.test", vec![2]))?;
                unit.bundle_put(bundle("other.test", vec![3]))?;
                unit.bundle_delete(&TrustDomain::parse("other.test").unwrap())?;
                unit.relationship_delete(&TrustDomain::parse("other.test").unwrap())?;
                Ok(())
            })
            .await
            .unwrap();
        let state = store.state();
        let listed: Vec<_> =
            state.entries_page(0, 10, |_| true).iter().map(|(row, e)| (*row, e.id.to_string())).collect();
        assert_eq!(listed.iter().map(|(_, id)| id.as_str()).collect::<Vec<_>>(), ["b", "c", "d"]);
        let next: Vec<_> =
            state.entries_page(listed[0].0, 1, |_| true).iter().map(|(_, e)| e.id.to_string()).collect();
        assert_eq!(next, ["c"]);
        assert_eq!(&*state.entries().get(&EntryId::parse("b").unwrap()).unwrap().hint, "changed");
        assert_eq!(state.node(&id("/spire/agent/x509pop/n1")).as_deref(), Some(&node("n1", 2)));
        assert_eq!(state.nodes().len(), 2);
        assert_eq!(state.bundle(&trust_domain()).as_deref(), Some(&bundle("store.test", vec![2])));
        assert_eq!(state.bundles().len(), 1);
        assert_eq!(state.relationships(), [relationship("third.test", Some("/endpoint")).into()]);
        assert_eq!(
            state.changes_since(15),
            Some(vec![Change::Relationship(TrustDomain::parse("other.test").unwrap())])
        );
        assert_eq!(state.changes_since(17), None);
        if driver == DriverKind::Memory {
            return;
        }
        let before = content(state);
        assert!(store.size().await.unwrap() > 0);
        store.close().await;
        let (store, found) = open(driver, folder.path()).unwrap();
        assert_eq!(content(store.state()), before);
        assert_eq!(
            (
                found.created,
                found.entries,
                found.nodes,
                found.bundles,
                found.relationships,
                found.tokens,
                found.epoch
            ),
            (false, 3, 2, 1, 1, 1, 16)
        );
        // Rows go on where they ended.
        store.write(|unit| unit.entry_create(entry("e"))).await.unwrap();
        let rows: Vec<_> = store.state().entries_page(0, 10, |_| true).iter().map(|(row, _)| *row).collect();
        assert_eq!(rows[..3], listed.iter().map(|(row, _)| *row).collect::<Vec<_>>());
        assert!(rows[3] > rows[2]);
    });
}

#[test]
fn refusals_name_what_is_wrong_and_change_nothing() {
    each(&DRIVERS, async |driver, folder| {
        let (store, _) = open(driver, folder.path()).unwrap();
        store.write(|unit| unit.entry_create(entry("a"))).await.unwrap();
        store.write(|unit| unit.token_create(&token("t"))).await.unwrap();
        let before = content(store.state());
        let text = |result: Result<(), StoreError>| result.unwrap_err().to_string();
        let refused = [
            text(store.write(|unit| unit.entry_create(entry("a")).map(drop)).await),
            text(store.write(|unit| unit.entry_update(entry("x")).map(drop)).await),
            text(store.write(|unit| unit.entry_delete(&EntryId::parse("x").unwrap()).map(drop)).await),
            text(store.write(|unit| unit.node_delete(&id("/spire/agent/x")).map(drop)).await),
            text(store.write(|unit| unit.bundle_delete(&trust_domain()).map(drop)).await),
            text(store.write(|unit| unit.relationship_delete(&trust_domain()).map(drop)).await),
            text(store.write(|unit| unit.relationship_update(relationship("x", None)).map(drop)).await),
            text(store.write(|unit| unit.token_create(&token("t"))).await),
        ];
        assert_eq!(
            refused,
            [
                "entry already exists",
                "entry not found",
                "entry not found",
                "agent not found",
                "bundle not found",
                "federation relationship not found",
                "federation relationship not found",
                "join token already exists"
            ]
        );
        assert_eq!(content(store.state()), before);
    });
}

#[test]
fn a_failed_closure_takes_only_its_own_writes_with_it() {
    #[derive(Debug, thiserror::Error, PartialEq)]
    #[error("no, {0}")]
    struct No(usize);

    each(&DRIVERS, async |driver, folder| {
        let (store, _) = open(driver, folder.path()).unwrap();
        let writes = (0..300).map(|n| {
            let store = store.clone();
            tokio::spawn(async move {
                store
                    .write(move |unit| {
                        unit.entry_create(entry(&format!("e{n}")))?;
                        unit.token_create(&token(&format!("t{n}")))?;
                        unit.node_put(node("shared", n as u128))?;
                        match n % 3 {
                            0 => Ok(n),
                            1 => Err(StoreError::refused(No(n))),
                            _ => panic!("closure {n}"),
                        }
                    })
                    .await
            })
        });
        let writes: Vec<_> = writes.collect();
        for (n, write) in writes.into_iter().enumerate() {
            match (n % 3, write.await.unwrap()) {
                (0, Ok(value)) => assert_eq!(value, n),
                (1, Err(error)) => assert_eq!(error.refusal::<No>().unwrap(), No(n)),
                (2, Err(StoreError::Panicked(text))) => assert_eq!(text, format!("closure {n}")),
                (_, other) => panic!("{n}: {other:?}"),
            }
        }
        let kept: BTreeSet<_> = store.state().entries().iter().map(|entry| entry.id.to_string()).collect();
        assert_eq!(kept, (0..300).step_by(3).map(|n| format!("e{n}")).collect());
        for n in 0..300 {
            let taken = store.write(move |unit| unit.token_take(&format!("t{n}"))).await.unwrap();
            assert_eq!(taken.is_some(), n % 3 == 0, "token {n}");
        }
        let serial = store.state().nodes()[0].serial.unwrap().to_string().parse::<u32>().unwrap();
        assert_eq!(serial % 3, 0);
    });
}

#[test]
fn a_token_is_taken_once() {
    each(&DRIVERS, async |driver, folder| {
        let (store, _) = open(driver, folder.path()).unwrap();
        for round in 0..5 {
            store.write(move |unit| unit.token_create(&token(&format!("t{round}")))).await.unwrap();
            let takers: Vec<_> = (0..64)
                .map(|_| {
                    let store = store.clone();
                    tokio::spawn(async move {
                        store.write(move |unit| unit.token_take(&format!("t{round}"))).await
                    })
                })
                .collect();
            let mut taken = 0;
            for taker in takers {
                taken += usize::from(taker.await.unwrap().unwrap().is_some());
            }
            assert_eq!(taken, 1);
        }
    });
}

#[test]
fn expired_tokens_are_pruned_a_few_at_a_time() {
    each(&DRIVERS, async |driver, folder| {
        let (store, _) = open(driver, folder.path()).unwrap();
        store
            .write(|unit| {
                for n in 0..10 {
                    let mut token = token(&format!("t{n}"));
                    token.expires_at = Timestamp::from_unix_seconds(n);
                    unit.token_create(&token)?;
                }
                Ok(())
            })
            .await
            .unwrap();
        let now = Timestamp::from_unix_seconds(6);
        let pruned = store.write(move |unit| unit.tokens_prune(now, 5)).await.unwrap();
        // The second one sees what the first one left, and a token of its own unit.
        let rest = store
            .write(move |unit| {
                let mut fresh = token("fresh");
                fresh.expires_at = now;
                unit.token_create(&fresh)?;
                unit.token_take("t9")?;
                unit.tokens_prune(now, 50)
            })
            .await
            .unwrap();
        assert_eq!((pruned, rest), (5, 3));
        for n in 0..10 {
            let left = store.write(move |unit| unit.token_take(&format!("t{n}"))).await.unwrap();
            assert_eq!(left.is_some(), n == 7 || n == 8, "t{n}");
        }
    });
}

#[test]
fn similar_entries_are_found_within_a_group() {
    each(&[DriverKind::Memory], async |driver, folder| {
        let (store, _) = open(driver, folder.path()).unwrap();
        store.write(|unit| unit.entry_create(entry("a"))).await.unwrap();
        let like = |name: &str| {
            let mut like = entry("a");
            like.id = EntryId::parse(name).unwrap();
            like
        };
        store
            .write(move |unit| {
                assert_eq!(unit.similar_entry(&like("b")).unwrap().id.as_str(), "a");
                assert!(unit.similar_entry(&entry("b")).is_none());
                unit.entry_delete(&like("a").id)?;
                assert!(unit.similar_entry(&like("b")).is_none());
                unit.entry_create(like("b"))?;
                assert_eq!(unit.similar_entry(&like("x")).unwrap().id.as_str(), "b");
                unit.entry_create(like("c"))?;
                unit.entry_delete(&like("b").id)?;
                assert_eq!(unit.similar_entry(&like("x")).unwrap().id.as_str(), "c");
                let mut moved = like("c");
                moved.spiffe_id = id("/elsewhere");
                unit.entry_update(moved)?;
                assert!(unit.similar_entry(&like("x")).is_none());
                assert_eq!(unit.entries_where(&mut |_| true).len(), 1);
                Ok(())
            })
            .await
            .unwrap();
        assert_eq!(store.state().entries().len(), 1);
    });
}

#[test]
fn the_journal_lists_oldest_first() {
    each(&DRIVERS, async |driver, folder| {
        let (store, _) = open(driver, folder.path()).unwrap();
        let record = |kind, id: &str, issued_at| JournalRecord {
            kind,
            slot: AuthoritySlot {
                slot: SlotId::A,
                status: SlotStatus::Prepared,
                authority_id: id.into(),
                issued_at: Timestamp::from_unix_seconds(issued_at),
                not_after: Timestamp::from_unix_seconds(issued_at + 100),
                tainted: false,
                upstream_authority_id: Some("up".into()),
            },
            key_id: format!("key-{id}"),
            certificate_chain: vec![vec![1, 2], vec![3]],
            public_key: vec![4],
            revoked: vec!["ab".to_owned()],
        };
        store
            .write(move |unit| {
                for record in [
                    record(AuthorityKind::X509, "a", 30),
                    record(AuthorityKind::X509, "b", 10),
                    record(AuthorityKind::X509, "c", 20),
                    record(AuthorityKind::Jwt, "a", 40),
                ] {
                    unit.journal_put(&record)?;
                }
                Ok(())
            })
            .await
            .unwrap();
        let listed = store
            .write(move |unit| {
                unit.journal_delete(AuthorityKind::X509, "c")?;
                unit.journal_delete(AuthorityKind::X509, "unknown")?;
                unit.journal_put(&record(AuthorityKind::X509, "d", 5))?;
                Ok((unit.journal(AuthorityKind::X509)?, unit.journal(AuthorityKind::Wit)?))
            })
            .await
            .unwrap();
        let expected = ["d", "b", "a"].map(|id| match id {
            "d" => record(AuthorityKind::X509, "d", 5),
            "b" => record(AuthorityKind::X509, "b", 10),
            _ => record(AuthorityKind::X509, "a", 30),
        });
        assert_eq!(listed, (expected.to_vec(), vec![]));
        let again = store.write(|unit| unit.journal(AuthorityKind::X509)).await.unwrap();
        assert_eq!(again, expected);
    });
}

#[test]
fn issued_svids_are_listed_until_they_expire_and_pruned_then() {
    each(&DRIVERS, async |driver, folder| {
        let (store, _) = open(driver, folder.path()).unwrap();
        let svid = |n: i64, kind| IssuedSvid {
            kind,
            spiffe_id: id(&format!("/workload/{n}")),
            entry_id: (n % 2 == 0).then(|| EntryId::parse(&format!("e{n}")).unwrap()),
            serial: format!("{n}"),
            not_after: Timestamp::from_unix_seconds(1000 + n),
            authority_id: "authority".into(),
        };
        let issued: Vec<_> = (0..100)
            .map(|n| svid(n, if n < 50 { SvidKind::WorkloadX509 } else { SvidKind::WorkloadJwt }))
            .collect();
        let all = issued.clone();
        store.write(move |unit| unit.record_issued(&all)).await.unwrap();
        store.write(|unit| unit.record_issued(&[])).await.unwrap();
        let at = |seconds| Timestamp::from_unix_seconds(seconds);
        let listed = store.write(move |unit| unit.issued(at(0), 1000)).await.unwrap();
        assert_eq!(listed, issued);
        let listed = store.write(move |unit| unit.issued(at(1060), 1000)).await.unwrap();
        assert_eq!(listed, issued[61..]);
        let pruned = store.write(move |unit| unit.issued_prune(at(1060), 1000)).await.unwrap();
        assert!(pruned > 0);
        assert_eq!(store.write(move |unit| unit.issued(at(1060), 1000)).await.unwrap(), issued[61..]);
        store.write(move |unit| unit.issued_prune(at(2000), 1000)).await.unwrap();
        assert_eq!(store.write(move |unit| unit.issued(at(0), 1000)).await.unwrap(), []);
    });
}

#[test]
fn large_values_come_back() {
    each(&LASTING, async |driver, folder| {
        let (store, _) = open(driver, folder.path()).unwrap();
        for n in 0..20_u8 {
            let name = format!("td{n}.test");
            store
                .write(move |unit| unit.bundle_put(bundle(&name, vec![n; 50_000 * usize::from(n)])))
                .await
                .unwrap();
        }
        let before = content(store.state());
        drop(store);
        let (store, _) = open(driver, folder.path()).unwrap();
        assert_eq!(content(store.state()), before);
    });
}

#[test]
fn the_change_log_keeps_the_newest_changes() {
    each(&LASTING, async |driver, folder| {
        let (store, _) = open(driver, folder.path()).unwrap();
        for round in 0..3_u64 {
            store
                .write(move |unit| {
                    for n in 0..7000 {
                        unit.node_put(node("n", u128::from(round * 7000 + n)))?;
                    }
                    Ok(())
                })
                .await
                .unwrap();
        }
        let check = |store: &Store| {
            let state = store.state();
            assert_eq!(state.epoch(), 21_000);
            assert_eq!(state.changes_since(21_000 - KEPT_CHANGES as u64).unwrap().len(), KEPT_CHANGES);
            assert_eq!(state.changes_since(1), None);
        };
        check(&store);
        store.close().await;
        check(&open(driver, folder.path()).unwrap().0);
    });
}

#[test]
fn readers_are_woken_in_order() {
    each(&[DriverKind::Memory], async |driver, folder| {
        let (store, _) = open(driver, folder.path()).unwrap();
        let (mut all, mut bundles) = (store.state().subscribe(), store.state().subscribe_bundles());
        store.write(|unit| unit.entry_create(entry("a"))).await.unwrap();
        assert_eq!(*all.borrow_and_update(), 1);
        assert!(!bundles.has_changed().unwrap());
        store.write(|unit| unit.bundle_put(bundle("store.test", vec![1]))).await.unwrap();
        all.changed().await.unwrap();
        bundles.changed().await.unwrap();
        assert_eq!((*all.borrow_and_update(), *bundles.borrow_and_update()), (2, 2));
        // Neither tokens nor reading are changes.
        store.write(|unit| unit.token_create(&token("t"))).await.unwrap();
        store.write(|unit| Ok(unit.epoch())).await.unwrap();
        assert!(!all.has_changed().unwrap());
    });
}

#[test]
fn a_store_is_opened_once_and_for_its_own_trust_domain() {
    each(&LASTING, async |driver, folder| {
        let (store, _) = open(driver, folder.path()).unwrap();
        assert!(matches!(open(driver, folder.path()), Err(StoreError::Busy { .. })), "the same files");
        drop(store);
        let foreign = StoreConfig {
            trust_domain: TrustDomain::parse("foreign.test").unwrap(),
            ..config(driver, folder.path())
        };
        let error = Store::open(foreign, SystemClock::shared()).unwrap_err().to_string();
        assert!(error.contains("store.test") && error.contains("foreign.test"), "{error}");
        open(driver, folder.path()).unwrap();
    });
}

#[test]
fn a_closed_store_refuses_writes_and_still_reads() {
    each(&DRIVERS, async |driver, folder| {
        let (store, _) = open(driver, folder.path()).unwrap();
        let writes: Vec<_> = (0..50)
            .map(|n| {
                let store = store.clone();
                tokio::spawn(async move {
                    store.write(move |unit| unit.entry_create(entry(&format!("e{n}")))).await
                })
            })
            .collect();
        store.clone().close().await;
        let mut kept = 0;
        for write in writes {
            match write.await.unwrap() {
                Ok(_) => kept += 1,
                Err(error) => assert!(matches!(error, StoreError::Closed), "{error}"),
            }
        }
        assert_eq!(store.state().entries().len(), kept);
        assert!(matches!(store.write(|_| Ok(())).await, Err(StoreError::Closed)));
        if driver != DriverKind::Memory {
            assert_eq!(open(driver, folder.path()).unwrap().1.entries, kept);
        }
    });
}

pub(crate) fn relationship(name: &str, endpoint: Option<&str>) -> FederationRelationship {
    FederationRelationship {
        trust_domain: TrustDomain::parse(name).unwrap(),
        bundle_endpoint_url: format!("https://{name}/bundle"),
        profile: match endpoint {
            None => EndpointProfile::HttpsWeb,
            Some(path) => EndpointProfile::HttpsSpiffe { endpoint_spiffe_id: id(path) },
        },
    }
}
