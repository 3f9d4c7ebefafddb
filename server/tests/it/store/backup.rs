//! Backups are consistent, complete, and fit every driver.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bonafide_identity::{Timestamp, TrustDomain};
use bonafide_runtime::clock::SystemClock;
use bonafide_server::store::{
    DriverKind, Entries, Existing, JoinTokens, Nodes, Store, StoreConfig, StoreError, restore, verify_backup,
};

use super::{DRIVERS, LASTING, ON_DISK, available, config, content, each, entry, node, open, token};

const NOW: Timestamp = Timestamp::from_unix_seconds(1_750_000_000);

#[test]
fn a_backup_restores_into_every_driver() {
    each(&DRIVERS, async |driver, folder| {
        let (store, _) = open(driver, folder.path()).unwrap();
        for n in 0..500 {
            store
                .write(move |unit| {
                    unit.entry_create(entry(&format!("e{n}")))?;
                    unit.node_put(node(&format!("n{}", n % 10), n))?;
                    unit.token_create(&token(&format!("t{n}"))).map(drop)
                })
                .await
                .unwrap();
        }
        store.write(|unit| unit.entry_delete(&entry("e7").id)).await.unwrap();
        let file = folder.path().join("backup");
        let info = store.backup(&file).await.unwrap();
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(verify_backup(&file).unwrap(), info);
        let before = content(store.state());
        for target in LASTING.into_iter().filter(|target| available(*target)) {
            let place = tempfile::tempdir().unwrap();
            assert_eq!(restore(&file, &config(target, place.path()), Existing::Refuse, NOW).unwrap(), info);
            let (restored, found) = open(target, place.path()).unwrap();
            assert_eq!(content(restored.state()), before, "{driver} to {target}");
            assert_eq!(found.tokens, 500);
            // It works as a store: writes, closes, opens.
            restored.write(|unit| unit.entry_create(entry("new"))).await.unwrap();
            restored.close().await;
            assert_eq!(open(target, place.path()).unwrap().1.entries, 500);
        }
    });
}

/// A backup holds join tokens. Who put a file or a link in its way gets none of it.
#[test]
fn a_backup_is_not_written_into_what_stands_there() {
    each(&ON_DISK[..1], async |driver, folder| {
        let (store, _) = open(driver, folder.path()).unwrap();
        store.write(|unit| unit.token_create(&token("t")).map(drop)).await.unwrap();
        let (file, partial) = (folder.path().join("backup"), folder.path().join("backup.partial"));
        let elsewhere = folder.path().join("elsewhere");
        fs::write(&elsewhere, "precious").unwrap();
        std::os::unix::fs::symlink(&elsewhere, &partial).unwrap();
        store.backup(&file).await.unwrap();
        assert_eq!(fs::read(&elsewhere).unwrap(), b"precious");

        fs::write(&partial, "").unwrap();
        fs::set_permissions(&partial, fs::Permissions::from_mode(0o644)).unwrap();
        let mut opened = fs::File::open(&partial).unwrap();
        store.backup(&file).await.unwrap();
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let mut seen = Vec::new();
        std::io::Read::read_to_end(&mut opened, &mut seen).unwrap();
        assert!(seen.is_empty());
        store.close().await;
    });
}

/// Each write changes two records together; a backup taken at any moment has them equal.
#[test]
fn a_backup_under_load_is_of_one_moment() {
    each(&LASTING, async |driver, folder| {
        let (store, _) = open(driver, folder.path()).unwrap();
        // Enough for several parts, so that commits fall in between.
        for part in 0..20 {
            store
                .write(move |unit| {
                    for n in 0..500 {
                        unit.entry_create(entry(&format!("e{part}-{n}")))?;
                    }
                    Ok(())
                })
                .await
                .unwrap();
        }
        let stop = Arc::new(AtomicBool::new(false));
        let load = {
            let (store, stop) = (store.clone(), stop.clone());
            tokio::spawn(async move {
                let mut n = 0_u128;
                while !stop.load(Ordering::Relaxed) {
                    n += 1;
                    let write = store.write(move |unit| {
                        unit.node_put(node("first", n))?;
                        unit.node_put(node("second", n))?;
                        unit.entry_delete(&entry(&format!("e{}-{}", n % 20, n / 20 % 500)).id).map(drop)?;
                        unit.entry_create(entry(&format!("f{n}")))?;
                        Ok(())
                    });
                    match write.await {
                        Ok(()) | Err(StoreError::NotFound(_)) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
                n
            })
        };
        for round in 0..3 {
            let file = folder.path().join(format!("backup-{round}"));
            let info = store.backup(&file).await.unwrap();
            let place = tempfile::tempdir().unwrap();
            restore(&file, &config(driver, place.path()), Existing::Refuse, NOW).unwrap();
            // sled lets go of its files a moment after it was closed.
            let start = Instant::now();
            let (restored, found) = loop {
                match open(driver, place.path()) {
                    Err(StoreError::Busy { .. }) if start.elapsed() < Duration::from_secs(30) => {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                    opened => break opened.unwrap(),
                }
            };
            let nodes = restored.state().nodes();
            assert!(nodes.windows(2).all(|pair| pair[0].serial == pair[1].serial), "{nodes:?}");
            assert_eq!(found.entries, 10_000, "as many deleted as created, in {info:?}");
        }
        stop.store(true, Ordering::Relaxed);
        assert!(load.await.unwrap() > 3);
    });
}

#[test]
fn restoring_over_a_store_wants_to_be_told() {
    each(&ON_DISK, async |driver, folder| {
        let (store, _) = open(driver, folder.path()).unwrap();
        store.write(|unit| unit.entry_create(entry("old"))).await.unwrap();
        let file = folder.path().join("backup");
        store.backup(&file).await.unwrap();
        store.write(|unit| unit.entry_create(entry("later"))).await.unwrap();
        let config = config(driver, folder.path());

        assert!(matches!(restore(&file, &config, Existing::MoveAside, NOW), Err(StoreError::Busy { .. })));
        drop(store);
        let error = restore(&file, &config, Existing::Refuse, NOW).unwrap_err().to_string();
        assert!(error.contains("there is a store already"), "{error}");
        assert_eq!(open(driver, folder.path()).unwrap().1.entries, 2);

        restore(&file, &config, Existing::MoveAside, NOW).unwrap();
        assert_eq!(open(driver, folder.path()).unwrap().1.entries, 1);
        // The former store is whole, under its new name.
        let aside = folder.path().join("aside");
        fs::create_dir(&aside).unwrap();
        let former = format!("store.before-restore-{}", NOW.unix_seconds());
        fs::rename(folder.path().join(&former), aside.join("store")).unwrap();
        let expect = format!("store.expect.before-restore-{}", NOW.unix_seconds());
        fs::rename(folder.path().join(expect), aside.join("store.expect")).unwrap();
        assert_eq!(open(driver, &aside).unwrap().1.entries, 2);
    });
}

/// What restoring is for: the store at the place is damaged.
#[test]
fn a_damaged_store_is_moved_aside_too() {
    each(&ON_DISK, async |driver, folder| {
        let (store, _) = open(driver, folder.path()).unwrap();
        store.write(|unit| unit.entry_create(entry("a"))).await.unwrap();
        let file = folder.path().join("backup");
        store.backup(&file).await.unwrap();
        drop(store);
        fs::write(folder.path().join("store.expect"), b"nonsense").unwrap();
        assert!(matches!(open(driver, folder.path()), Err(StoreError::Corrupt { .. })));
        restore(&file, &config(driver, folder.path()), Existing::MoveAside, NOW).unwrap();
        assert_eq!(open(driver, folder.path()).unwrap().1.entries, 1);
    });
}

#[test]
fn a_damaged_backup_is_refused_before_anything_happens() {
    each(&[DriverKind::Redb], async |driver, folder| {
        let (store, _) = open(driver, folder.path()).unwrap();
        store.write(|unit| unit.entry_create(entry("a"))).await.unwrap();
        let file = folder.path().join("backup");
        store.backup(&file).await.unwrap();
        drop(store);
        let whole = fs::read(&file).unwrap();
        let place = tempfile::tempdir().unwrap();
        let refused = |bytes: &[u8], what: &str| {
            fs::write(&file, bytes).unwrap();
            let error = restore(&file, &config(driver, place.path()), Existing::Refuse, NOW).unwrap_err();
            assert!(matches!(error, StoreError::Corrupt { .. }), "{what}: {error:?}");
            assert!(error.to_string().contains(file.to_str().unwrap()), "{what}: {error}");
            assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0, "{what}");
        };
        for length in 0..whole.len() {
            refused(&whole[..length], &format!("cut to {length}"));
        }
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            refused(&bytes, &format!("bit {at}"));
        }
        refused(&[&whole[..], b"x"].concat(), "something appended");

        fs::write(&file, &whole).unwrap();
        let foreign = StoreConfig {
            trust_domain: TrustDomain::parse("foreign.test").unwrap(),
            ..config(driver, place.path())
        };
        assert!(matches!(restore(&file, &foreign, Existing::Refuse, NOW), Err(StoreError::Mismatch { .. })));
        let memory = StoreConfig::memory(super::trust_domain());
        assert!(matches!(restore(&file, &memory, Existing::Refuse, NOW), Err(StoreError::Mismatch { .. })));
        restore(&file, &config(driver, place.path()), Existing::Refuse, NOW).unwrap();
        Store::open(config(driver, place.path()), SystemClock::shared()).unwrap();
    });
}
