//! Several servers over one PostgreSQL database: each sees what the others do, nothing is lost or done twice, and what is
//! cut off stands still instead of going its own way.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bonafide_identity::{
    AuthorityKind, AuthoritySlot, EntryId, SlotId, SlotStatus, SpiffeId, Timestamp, TrustDomain,
};
use bonafide_runtime::clock::SystemClock;
use bonafide_server::store::{
    Bundles, DriverKind, Entries, Existing, JoinTokens, Journal, JournalRecord, Nodes, PostgresConfig,
    Relationships, Store, StoreConfig, StoreError, restore,
};
use bonafide_testkit::{Forwarder, Postgres};
use tempfile::TempDir;
use tokio::sync::oneshot::error::TryRecvError;

use super::workload::{Ledger, Writer};
use super::{at, available, bundle, config, content, entry, id, node, setting, token};

const SOON: Duration = Duration::from_secs(30);

/// Runs `body` with a connection string for a database of its own.
fn with_database(name: &str, body: impl AsyncFn(&'static Postgres, PostgresConfig)) {
    if !available(DriverKind::Postgres) {
        return;
    }
    let cluster = Postgres::shared().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(body(cluster, at(cluster.database(name))));
}

fn member(postgres: &PostgresConfig, folder: &Path) -> StoreConfig {
    let postgres = Some(postgres.clone());
    StoreConfig { driver: DriverKind::Postgres, postgres, ..config(DriverKind::Memory, folder) }
}

/// A server of the group.
struct Member {
    store: Store,
    folder: TempDir,
}

impl Member {
    fn join(postgres: &PostgresConfig) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(member(postgres, folder.path()), SystemClock::shared()).unwrap().0;
        Self { store, folder }
    }

    /// Waits until `look` is content, and says how long that took.
    async fn sees<T>(&self, what: &str, mut look: impl FnMut(&Store) -> Option<T>) -> Duration {
        let start = Instant::now();
        let mut epochs = self.store.state().subscribe();
        loop {
            epochs.borrow_and_update();
            if look(&self.store).is_some() {
                return start.elapsed();
            }
            let left =
                SOON.checked_sub(start.elapsed()).unwrap_or_else(|| panic!("waited {SOON:?} for {what}"));
            // Looked at again now and then: not all that is waited for is a change of the state.
            let _ = tokio::time::timeout(left.min(Duration::from_millis(50)), epochs.changed()).await;
        }
    }

    async fn create(&self, name: &str) -> Result<(), StoreError> {
        let made = entry(name);
        self.store.write(move |unit| unit.entry_create(made).map(drop)).await
    }

    /// Creates an entry as soon as writes are taken again.
    async fn creates(&self, name: &str) {
        let start = Instant::now();
        while let Err(error) = self.create(name).await {
            let passing = matches!(error, StoreError::Unreachable { confirmed: true, .. });
            assert!(passing && start.elapsed() < SOON, "{error:?} after {:?}", start.elapsed());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn sees_entry(&self, name: &str) -> Duration {
        let wanted = EntryId::parse(name).unwrap();
        self.sees(name, move |store| store.state().entries().get(&wanted).map(drop)).await
    }
}

/// All that both hold, compared once neither writes any more.
async fn agree(members: &[&Member]) {
    let last = members.iter().map(|member| member.store.state().epoch()).max().unwrap();
    for member in members {
        member.sees("the last change", |store| (store.state().epoch() >= last).then_some(())).await;
        assert_eq!(content(member.store.state()), content(members[0].store.state()));
    }
}

fn domain(name: &str) -> TrustDomain {
    TrustDomain::parse(name).unwrap()
}

#[test]
fn what_one_server_writes_the_others_see_within_a_second() {
    with_database("seen", async |_, postgres| {
        let (a, b) = (Member::join(&postgres), Member::join(&postgres));
        a.create("e1").await.unwrap();
        a.create("e2").await.unwrap();
        assert!(b.sees_entry("e2").await < Duration::from_secs(1));
        let agent = node("n", 1);
        let agent_id: SpiffeId = agent.id.clone();
        a.store.write(move |unit| unit.node_put(agent).map(drop)).await.unwrap();
        a.store.write(|unit| unit.bundle_put(bundle("far.test", vec![1])).map(drop)).await.unwrap();
        let seen = b.sees("a bundle", |store| store.state().bundle(&domain("far.test"))).await;
        assert!(seen < Duration::from_secs(1), "{seen:?}");
        // B builds on what A has done, and A sees what became of it.
        let banned = agent_id.clone();
        b.store
            .write(move |unit| {
                let mut node = (*unit.node(&banned).ok_or(StoreError::NotFound("agent"))?).clone();
                node.serial = None;
                unit.node_put(node)?;
                unit.entry_delete(&EntryId::parse("e1").unwrap())?;
                unit.bundle_delete(&domain("far.test")).map(drop)
            })
            .await
            .unwrap();
        let banned = agent_id.clone();
        let seen =
            a.sees("a ban", move |store| store.state().node(&banned).filter(|node| node.banned())).await;
        assert!(seen < Duration::from_secs(1), "{seen:?}");
        b.store.write(move |unit| unit.node_delete(&agent_id).map(drop)).await.unwrap();
        b.store
            .write(|unit| {
                unit.relationship_create(super::behaviour::relationship("far.test", None)).map(drop)
            })
            .await
            .unwrap();
        agree(&[&a, &b]).await;
        a.store.write(|unit| unit.relationship_delete(&domain("far.test")).map(drop)).await.unwrap();
        agree(&[&a, &b]).await;
        // Who comes later reads it from the database, checked as a whole.
        let c = Member::join(&postgres);
        agree(&[&a, &c]).await;
    });
}

#[test]
fn a_token_is_spent_once_in_the_whole_group() {
    with_database("tokens", async |_, postgres| {
        let (a, b) = (Member::join(&postgres), Member::join(&postgres));
        for n in 0..100 {
            let made = token(&format!("t{n}"));
            a.store.write(move |unit| unit.token_create(&made)).await.unwrap();
        }
        let take = |member: &Member, n: usize| {
            let store = member.store.clone();
            async move { store.write(move |unit| unit.token_take(&format!("t{n}"))).await.unwrap().is_some() }
        };
        let mut winners = [0, 0];
        for n in 0..100 {
            match tokio::join!(take(&a, n), take(&b, n)) {
                (true, false) => winners[0] += 1,
                (false, true) => winners[1] += 1,
                other => panic!("token t{n}: {other:?}"),
            }
        }
        eprintln!("taken by the first server: {}, by the second: {}", winners[0], winners[1]);
    });
}

#[test]
fn two_servers_at_once_lose_no_update() {
    with_database("race", async |_, postgres| {
        let writes = setting("BONAFIDE_TEST_GROUP_WRITES", 10_000);
        let members = [Member::join(&postgres), Member::join(&postgres)];
        let counted = Arc::new(AtomicUsize::new(0));
        let start = Instant::now();
        let mut tasks = tokio::task::JoinSet::new();
        for (which, member) in members.iter().enumerate() {
            for lane in 0..32 {
                let (store, counted) = (member.store.clone(), counted.clone());
                let per_lane = writes / 64;
                tasks.spawn(async move {
                    for n in 0..per_lane {
                        let name = format!("w{which}-{lane}-{n}");
                        match n % 4 {
                            0 => {
                                let made = entry(&name);
                                store.write(move |unit| unit.entry_create(made).map(drop)).await.unwrap();
                            }
                            1 => {
                                let gone = EntryId::parse(&format!("w{which}-{lane}-{}", n - 1)).unwrap();
                                store.write(move |unit| unit.entry_delete(&gone).map(drop)).await.unwrap();
                            }
                            2 => {
                                let made = token(&name);
                                store.write(move |unit| unit.token_create(&made)).await.unwrap();
                            }
                            // All of them add one to the same number.
                            _ => {
                                let add = store.write(|unit| {
                                    let id = node("counter", 0).id;
                                    let former = unit.node(&id).and_then(|node| node.serial);
                                    let former: u128 =
                                        former.map_or(0, |serial| serial.to_string().parse().unwrap());
                                    unit.node_put(node("counter", former + 1)).map(drop)
                                });
                                add.await.unwrap();
                                counted.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                    }
                });
            }
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
        let took = start.elapsed();
        let [a, b] = &members;
        agree(&[a, b]).await;
        let counter = a.store.state().node(&node("counter", 0).id).unwrap().serial.unwrap();
        assert_eq!(counter.to_string(), counted.load(Ordering::Relaxed).to_string());
        let c = Member::join(&postgres);
        agree(&[a, &c]).await;
        eprintln!(
            "{writes} writes by two servers in {took:?}: {:.0} each second",
            writes as f64 / took.as_secs_f64()
        );
    });
}

#[test]
fn each_server_has_a_journal_of_its_own_and_revocations_are_everybodys() {
    with_database("journals", async |_, postgres| {
        let (a, b) = (Member::join(&postgres), Member::join(&postgres));
        let record = |authority: &str, end: i64, revoked: &[&str]| JournalRecord {
            kind: AuthorityKind::Jwt,
            slot: AuthoritySlot {
                slot: SlotId::A,
                status: SlotStatus::Active,
                authority_id: authority.to_owned(),
                issued_at: Timestamp::from_unix_seconds(1),
                not_after: Timestamp::from_unix_seconds(end),
                tainted: false,
                upstream_authority_id: None,
            },
            key_id: "JWT-Signer-A".into(),
            certificate_chain: Vec::new(),
            public_key: vec![1],
            revoked: revoked.iter().map(ToString::to_string).collect(),
        };
        let put = async |member: &Member, record: JournalRecord| {
            member.store.write(move |unit| unit.journal_put(&record)).await.unwrap();
        };
        let own = async |member: &Member| {
            let records = member.store.write(|unit| unit.journal(AuthorityKind::Jwt)).await.unwrap();
            records.into_iter().map(|record| record.slot.authority_id).collect::<Vec<_>>()
        };
        put(&a, record("of-a", 1000, &["x"])).await;
        put(&b, record("of-b", 9_000_000_000, &["y"])).await;
        assert_eq!((own(&a).await, own(&b).await), (vec!["of-a".to_owned()], vec!["of-b".to_owned()]));
        a.sees("both revocations", |store| {
            (store.state().revoked(AuthorityKind::Jwt) == ["x", "y"]).then_some(())
        })
        .await;
        assert_eq!(b.store.write(|unit| unit.revoked(AuthorityKind::Jwt)).await.unwrap(), ["x", "y"]);
        // It stays its own through a restart.
        let (folder, store) = (b.folder, b.store);
        store.close().await;
        drop(store);
        let store = Store::open(member(&postgres, folder.path()), SystemClock::shared()).unwrap().0;
        let b = Member { store, folder };
        assert_eq!(own(&b).await, ["of-b"]);
        assert_eq!(b.store.state().revoked(AuthorityKind::Jwt), ["x", "y"]);
        // What a server left that is gone goes two weeks after its end; one's own does not.
        let at = |seconds| Timestamp::from_unix_seconds(seconds);
        let early = at(1000 + 14 * 86_400 - 1);
        assert_eq!(b.store.write(move |unit| unit.journals_prune(early)).await.unwrap(), 0);
        let late = at(10_000_000_000);
        assert_eq!(b.store.write(move |unit| unit.journals_prune(late)).await.unwrap(), 1);
        assert_eq!((own(&a).await.len(), own(&b).await.len()), (0, 1));
    });
}

#[test]
fn a_server_that_is_cut_off_refuses_writes_at_once_and_catches_up() {
    with_database("cut", async |cluster, direct| {
        let forwarder = Forwarder::start(cluster.address());
        let through = PostgresConfig {
            max_cut_off: Duration::from_secs(3),
            timeout: Duration::from_secs(2),
            ..at(format!(
                "host=127.0.0.1 port={} user=postgres dbname=cut sslmode=disable",
                forwarder.address().port()
            ))
        };
        let (a, b) = (Member::join(&direct), Member::join(&through));
        a.create("before").await.unwrap();
        b.sees_entry("before").await;
        forwarder.cut();
        b.sees("the loss", |store| (store.silence()? > Duration::from_millis(1500)).then_some(())).await;
        let start = Instant::now();
        let refused = b.create("refused").await.unwrap_err();
        assert!(matches!(refused, StoreError::Unreachable { confirmed: true, .. }), "{refused:?}");
        assert!(start.elapsed() < Duration::from_millis(200), "refused after {:?}", start.elapsed());
        assert!(b.store.state().entries().get(&EntryId::parse("before").unwrap()).is_some(), "reads go on");
        assert!(b.store.current().is_ok(), "and so does signing, for a while");
        a.create("meanwhile").await.unwrap();
        b.sees("the end of signing", |store| store.current().err()).await;
        let error = b.store.current().unwrap_err();
        assert!(matches!(error, StoreError::CutOff { .. }), "{error}");
        assert!(b.store.state().entries().get(&EntryId::parse("meanwhile").unwrap()).is_none());

        forwarder.mend();
        b.sees_entry("meanwhile").await;
        b.sees("being up to date", |store| store.current().ok()).await;
        b.creates("after").await;
        agree(&[&a, &b]).await;
        assert!(a.store.state().entries().get(&EntryId::parse("refused").unwrap()).is_none());

        // So far behind that the log does not tell any more.
        forwarder.cut();
        for n in 0..50 {
            a.create(&format!("far{n}")).await.unwrap();
        }
        let shorten =
            "DELETE FROM bonafide_batches WHERE sequence < (SELECT max(sequence) FROM bonafide_batches)";
        cluster.sql("cut", shorten).unwrap();
        forwarder.mend();
        b.sees_entry("far49").await;
        agree(&[&a, &b]).await;
        b.creates("again").await;
        a.sees_entry("again").await;
        agree(&[&a, &b]).await;
    });
}

#[test]
fn a_database_that_crashes_under_load_loses_nothing_that_was_acknowledged() {
    if let Err(why) = Postgres::shared() {
        return super::skip("a crash of PostgreSQL", &why);
    }
    // Its own cluster, durable: a crash must not take others' tests with it, nor what was acknowledged.
    let cluster = Postgres::start(true).unwrap();
    let postgres = at(cluster.database("crash"));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let members = [Member::join(&postgres), Member::join(&postgres)];
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let mut tasks = tokio::task::JoinSet::new();
        for (which, member) in members.iter().enumerate() {
            for lane in 0..4 {
                let (store, stop) = (member.store.clone(), stop.clone());
                tasks.spawn(async move {
                    let (mut acked, mut open, mut lost) = (Vec::new(), Vec::new(), Vec::new());
                    for n in 0.. {
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                        let name = format!("w{which}-{lane}-{n}");
                        let made = entry(&name);
                        match store.write(move |unit| unit.entry_create(made).map(drop)).await {
                            Ok(()) => acked.push(name),
                            Err(StoreError::Unreachable { confirmed: false, .. }) => open.push(name),
                            Err(StoreError::Unreachable { confirmed: true, .. }) => {
                                lost.push(name);
                                tokio::time::sleep(Duration::from_millis(20)).await;
                            }
                            Err(error) => panic!("{name}: {error}"),
                        }
                    }
                    (acked, open, lost)
                });
            }
        }
        for round in 0..3 {
            let before = members[0].store.state().epoch();
            members[0].sees("progress", |store| (store.state().epoch() > before + 50).then_some(())).await;
            tokio::task::block_in_place(|| cluster.crash_and_restart());
            eprintln!("crash {round}: at epoch {}", members[0].store.state().epoch());
        }
        let before = members[1].store.state().epoch();
        members[1].sees("writes again", |store| (store.state().epoch() > before + 50).then_some(())).await;
        stop.store(true, Ordering::Relaxed);
        let (mut acked, mut open, mut lost) = (Vec::new(), Vec::new(), Vec::new());
        while let Some(done) = tasks.join_next().await {
            let (some, unclear, refused) = done.unwrap();
            acked.extend(some);
            open.extend(unclear);
            lost.extend(refused);
        }
        let [a, b] = &members;
        agree(&[a, b]).await;
        let late = Member::join(&postgres);
        agree(&[a, &late]).await;
        let there =
            |name: &String| late.store.state().entries().get(&EntryId::parse(name).unwrap()).is_some();
        assert!(acked.iter().all(there), "an acknowledged write is lost");
        assert!(!lost.iter().any(there), "a write is there that was refused for certain");
        let kept = open.iter().filter(|name| there(name)).count();
        eprintln!(
            "{} acknowledged, {} refused, {} unclear at the time, of which {kept} were kept",
            acked.len(),
            lost.len(),
            open.len()
        );
        assert_eq!(late.store.state().entries().len(), acked.len() + kept);
    });
}

#[test]
fn a_server_that_stops_with_the_lock_does_not_stop_the_others() {
    with_database("held", async |_, postgres| {
        let hasty = PostgresConfig { timeout: Duration::from_secs(2), ..postgres.clone() };
        let (a, b) = (Member::join(&postgres), Member::join(&hasty));
        let (hold, held) = std::sync::mpsc::channel::<()>();
        let (begun, begins) = tokio::sync::oneshot::channel();
        let frozen = b.store.clone();
        let holder = tokio::spawn(async move {
            frozen
                .write(move |unit| {
                    let _ = begun.send(());
                    let _ = held.recv();
                    unit.entry_create(entry("held")).map(drop)
                })
                .await
        });
        begins.await.unwrap();
        let start = Instant::now();
        a.create("free").await.unwrap();
        let waited = start.elapsed();
        assert!(waited > Duration::from_millis(300) && waited < Duration::from_secs(5), "{waited:?}");
        hold.send(()).unwrap();
        let refused = holder.await.unwrap().unwrap_err();
        assert!(matches!(refused, StoreError::Unreachable { confirmed: true, .. }), "{refused:?}");
        b.sees_entry("free").await;
        let start = Instant::now();
        while let Err(error) = b.create("held").await {
            assert!(start.elapsed() < SOON, "{error}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        agree(&[&a, &b]).await;
    });
}

#[test]
fn a_server_that_is_killed_while_it_writes_leaves_the_others_writing() {
    if !available(DriverKind::Postgres) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let postgres = super::postgres(folder.path());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let other = Member::join(&postgres);
        let mut ledger = Ledger::default();
        for round in 0..setting("BONAFIDE_TEST_KILLS", 10).min(30) {
            let acks = ledger.acks;
            let mut writer = Writer::start(DriverKind::Postgres, round, folder.path());
            tokio::task::block_in_place(|| writer.listen(&mut ledger, Instant::now() + SOON, true));
            let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
            let store = other.store.clone();
            let beside = tokio::spawn(async move {
                for n in 0_u128.. {
                    let made = node("beside", n + 1);
                    store.write(move |unit| unit.node_put(made).map(drop)).await.unwrap();
                    if !matches!(stopped.try_recv(), Err(TryRecvError::Empty)) {
                        return n;
                    }
                }
                0
            });
            tokio::task::block_in_place(|| {
                let more = Instant::now() + Duration::from_millis(100);
                writer.listen(&mut ledger, more, false);
                writer.kill(&mut ledger);
            });
            let start = Instant::now();
            other.store.write(|unit| unit.node_put(node("after", 1)).map(drop)).await.unwrap();
            assert!(start.elapsed() < Duration::from_secs(2), "waited {:?} after a kill", start.elapsed());
            stop.send(()).unwrap();
            beside.await.unwrap();
            assert!(ledger.acks > acks);
        }
        eprintln!("{} writes acknowledged by those that were killed", ledger.acks);
        other.store.write(|unit| unit.node_delete(&node("beside", 1).id).map(drop)).await.unwrap();
        tokio::task::block_in_place(|| {
            ledger.check(DriverKind::Postgres, folder.path(), "killed beside another");
        });
        let again = Member::join(&postgres);
        agree(&[&other, &again]).await;
    });
}

#[test]
fn a_database_that_went_back_is_refused_by_those_who_know_better() {
    with_database("back", async |cluster, postgres| {
        let (a, b) = (Member::join(&postgres), Member::join(&postgres));
        a.create("e1").await.unwrap();
        cluster
            .sql("back", "CREATE TABLE r AS TABLE bonafide_records; CREATE TABLE b AS TABLE bonafide_batches")
            .unwrap();
        for n in 2..5 {
            a.create(&format!("e{n}")).await.unwrap();
        }
        b.sees_entry("e4").await;
        // As when a standby takes over that had not received the last commits.
        cluster
            .sql(
                "back",
                "BEGIN; TRUNCATE bonafide_records, bonafide_batches; INSERT INTO bonafide_records TABLE r;
                 INSERT INTO bonafide_batches TABLE b; COMMIT",
            )
            .unwrap();
        for member in [&a, &b] {
            let error = member.create("e5").await.unwrap_err();
            assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
            assert!(error.to_string().contains("went back"), "{error}");
            assert_eq!(member.store.state().entries().len(), 4, "reads go on");
        }
        let (folder, store) = (a.folder, a.store);
        store.close().await;
        drop(store);
        let error =
            Store::open(member(&postgres, folder.path()), SystemClock::shared()).unwrap_err().to_string();
        assert!(error.contains("standby") && error.contains("store.expect"), "{error}");
        // The operator accepts the loss.
        std::fs::remove_file(folder.path().join("store.expect")).unwrap();
        let (store, found) = Store::open(member(&postgres, folder.path()), SystemClock::shared()).unwrap();
        assert_eq!(found.entries, 1);
        store.write(|unit| unit.entry_create(entry("e2")).map(drop)).await.unwrap();
    });
}

#[test]
fn a_damaged_log_or_record_is_not_believed() {
    with_database("damage", async |cluster, postgres| {
        let forwarder = Forwarder::start(cluster.address());
        let port = forwarder.address().port();
        let through = at(format!("host=127.0.0.1 port={port} user=postgres dbname=damage sslmode=disable"));
        let (a, b) = (Member::join(&postgres), Member::join(&through));
        a.create("e1").await.unwrap();
        b.sees_entry("e1").await;
        forwarder.cut();
        a.create("e2").await.unwrap();
        let flip = "UPDATE bonafide_batches SET batch = set_byte(batch, 30, get_byte(batch, 30) # 1)
                    WHERE sequence = (SELECT max(sequence) FROM bonafide_batches)";
        cluster.sql("damage", flip).unwrap();
        forwarder.mend();
        let start = Instant::now();
        let error = loop {
            match b.create("e3").await {
                Err(StoreError::Unreachable { .. }) if start.elapsed() < SOON => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                other => break other.unwrap_err().to_string(),
            }
        };
        assert!(error.contains("checksum"), "{error}");
        assert_eq!(b.store.state().entries().len(), 1, "what it knew it still serves");
        cluster.sql("damage", "UPDATE bonafide_records SET value = set_byte(value, 20, get_byte(value, 20) # 1) WHERE get_byte(key, 0) = ascii('e')").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let error = Store::open(member(&postgres, folder.path()), SystemClock::shared()).unwrap_err();
        assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
    });
}

#[test]
fn a_server_is_not_two() {
    with_database("twice", async |_, postgres| {
        let a = Member::join(&postgres);
        let copy = tempfile::tempdir().unwrap();
        for name in ["store.server", "store.expect"] {
            std::fs::copy(a.folder.path().join(name), copy.path().join(name)).unwrap();
        }
        let error =
            Store::open(member(&postgres, copy.path()), SystemClock::shared()).unwrap_err().to_string();
        assert!(error.contains("store.server") && error.contains("data_dir"), "{error}");
        a.create("e").await.unwrap();
    });
}

#[test]
fn a_restored_store_is_another_one_and_the_old_tables_stay() {
    with_database("restored", async |cluster, postgres| {
        let a = Member::join(&postgres);
        a.create("e1").await.unwrap();
        let file = a.folder.path().join("backup");
        a.store.backup(&file).await.unwrap();
        a.create("e2").await.unwrap();
        let place = tempfile::tempdir().unwrap();
        let now = Timestamp::from_unix_seconds(1_750_000_000);
        let into = member(&postgres, place.path());
        let refused = restore(&file, &into, Existing::Refuse, now).unwrap_err().to_string();
        assert!(refused.contains("there is a store already"), "{refused}");
        restore(&file, &into, Existing::MoveAside, now).unwrap();
        let error = a.create("e3").await.unwrap_err().to_string();
        assert!(error.contains("another store"), "{error}");
        let b = Member::join(&postgres);
        assert_eq!(b.store.state().entries().len(), 1);
        let kept = "SELECT count(*) > 2 FROM bonafide_records_before_restore_1750000000";
        assert_eq!(cluster.sql("restored", kept).unwrap(), "t");
        b.create("e2").await.unwrap();
    });
}

#[test]
fn tls_is_verified_and_a_client_certificate_shown() {
    use rcgen::{
        BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    };
    if let Err(why) = Postgres::shared() {
        return super::skip("TLS to PostgreSQL", &why);
    }
    let authority = || {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().pem();
        (Issuer::new(params, key), certificate)
    };
    let leaf = |issuer: &Issuer<'_, KeyPair>, name: &str, usage| {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, issuer).unwrap().pem(), key.serialize_pem())
    };
    let (issuer, ca) = authority();
    let (certificate, key) = leaf(&issuer, "server", ExtendedKeyUsagePurpose::ServerAuth);
    let cluster = Postgres::start(false).unwrap();
    let _ = cluster.database("secured");
    cluster.demand_certificates(&ca, &certificate, &key);

    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let (certificate, key) = leaf(&issuer, "postgres", ExtendedKeyUsagePurpose::ClientAuth);
    let (certificate, key) = (write("client.pem", &certificate), write("client.key", &key));
    let (right, wrong) = (write("ca.pem", &ca), write("other.pem", &authority().1));
    let port = cluster.address().port();
    let text = |host: &str, ca: &Path, mode: &str| {
        format!(
            "host={host} port={port} user=postgres dbname=secured sslmode={mode} sslrootcert={} sslcert={} sslkey={}",
            ca.display(),
            certificate.display(),
            key.display()
        )
    };
    let open = |text: String| {
        let place = tempfile::tempdir().unwrap();
        Store::open(member(&at(text), place.path()), SystemClock::shared()).map(|(store, _)| (store, place))
    };
    // `require` would do without a verification elsewhere.
    let refused = |text: String| open(text).expect_err("must be refused").to_string();
    let error = refused(text("localhost", &wrong, "require"));
    assert!(error.contains("certificate") || error.contains("UnknownIssuer"), "{error}");
    let error = refused(text("127.0.0.1", &right, "require"));
    assert!(error.contains("NotValidForName") || error.contains("not valid for"), "the wrong name: {error}");
    refused(text("localhost", &right, "disable"));
    let file = write("connection", &text("localhost", &right, "verify-full"));
    let from_file =
        PostgresConfig { connection_string: super::ConnectionSecret::File(file), ..at(String::new()) };
    let place = tempfile::tempdir().unwrap();
    let store = Store::open(member(&from_file, place.path()), SystemClock::shared()).unwrap().0;
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(store.write(|unit| unit.entry_create(entry("e")).map(drop))).unwrap();
    let used = "SELECT count(*) FROM pg_stat_ssl WHERE ssl AND client_dn = '/CN=postgres'";
    assert_eq!(cluster.sql("secured", used).unwrap(), "1");
}

/// The price of the group's guarantees beside the least that PostgreSQL itself asks for a durable row. Durable cluster,
/// one commit at a time, then many at once.
#[test]
fn commits_stand_beside_plain_inserts() {
    if let Err(why) = Postgres::shared() {
        return super::skip("the comparison with plain inserts", &why);
    }
    let cluster = Postgres::start(true).unwrap();
    let postgres = at(cluster.database("pace"));
    cluster.sql("pace", "CREATE TABLE plain (key bytea PRIMARY KEY, value bytea NOT NULL)").unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let seconds = Duration::from_secs(setting("BONAFIDE_BENCH_SECONDS", 2) as u64);
    runtime.block_on(async {
        let super::ConnectionSecret::Text(text) = &postgres.connection_string else { panic!("a text") };
        let (client, connection) = tokio_postgres::connect(text, tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        let insert = client.prepare("INSERT INTO plain VALUES ($1, $2)").await.unwrap();
        let (start, mut plain) = (Instant::now(), 0_u64);
        while start.elapsed() < seconds {
            let (key, value) = (plain.to_be_bytes().to_vec(), vec![7_u8; 400]);
            client.execute(&insert, &[&key, &value]).await.unwrap();
            plain += 1;
        }
        let plain = plain as f64 / seconds.as_secs_f64();

        let members = [Member::join(&postgres), Member::join(&postgres)];
        let run = async |members: &[Member], lanes: usize, tag: &str| {
            let mut tasks = tokio::task::JoinSet::new();
            let start = Instant::now();
            for (which, member) in members.iter().enumerate() {
                for lane in 0..lanes {
                    let (store, tag) = (member.store.clone(), format!("{tag}{which}-{lane}"));
                    tasks.spawn(async move {
                        let mut done = 0_u64;
                        while start.elapsed() < seconds {
                            let made = entry(&format!("{tag}-{done}"));
                            store.write(move |unit| unit.entry_create(made).map(drop)).await.unwrap();
                            done += 1;
                        }
                        done
                    });
                }
            }
            let mut sum = 0;
            while let Some(done) = tasks.join_next().await {
                sum += done.unwrap();
            }
            sum as f64 / start.elapsed().as_secs_f64()
        };
        let one = run(&members[..1], 1, "a").await;
        let two = run(&members, 1, "b").await;
        let one_many = run(&members[..1], 64, "c").await;
        let two_many = run(&members, 64, "d").await;
        eprintln!(
            "each second: {plain:.0} plain inserts; one at a time {one:.0} by one server ({:.2}), {two:.0} by two ({:.2}); \
             64 at once {one_many:.0} ({:.2}), {two_many:.0} by two ({:.2})",
            one / plain,
            two / plain,
            one_many / plain,
            two_many / plain
        );
        assert!(one > plain / 20.0, "a commit costs more than twenty plain inserts");
        assert!(one_many > plain / 2.0, "grouping does not pay");
        agree(&[&members[0], &members[1]]).await;
        assert_eq!(members[0].store.state().node(&id("/none")), None);
    });
}
