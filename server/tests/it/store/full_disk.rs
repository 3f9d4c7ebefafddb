//! A full disk: writes are refused with a clear error, reads go on, and writes resume by themselves when there is room.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use bonafide_identity::EntryId;
use bonafide_server::store::kv::{Batch, KvError};
use bonafide_server::store::{Bundles, Entries, StoreError};

use super::{ON_DISK, bundle, content, each, entry, is_root, open, skip};

/// A small file system in memory; unmounted when dropped.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(place: &Path, megabytes: usize) -> Result<Self, String> {
        let size = format!("size={megabytes}m");
        let output = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(place).output();
        match output {
            Ok(output) if output.status.success() => Ok(Self(place.to_owned())),
            Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("--lazy").arg(&self.0).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("{} is left mounted", self.0.display());
        }
    }
}

fn small_disk(name: &str, folder: &Path) -> Option<Tmpfs> {
    if !is_root() {
        skip(name, "needs root");
        return None;
    }
    Tmpfs::mount(folder, 48).map_err(|why| skip(name, &why)).ok()
}

/// Fills what is left, to the last block.
fn ballast(folder: &Path) -> PathBuf {
    let path = folder.join("ballast");
    let mut file = OpenOptions::new().create(true).append(true).open(&path).unwrap();
    for size in [1 << 20, 4096, 1] {
        while file.write_all(&vec![7; size]).is_ok() {}
    }
    path
}

#[test]
fn writes_wait_for_space_and_nothing_else_does() {
    each(&ON_DISK, async |driver, folder| {
        let Some(_disk) = small_disk("full disk", folder.path()) else { return };
        let (store, _) = open(driver, folder.path()).unwrap();
        for n in 0..200 {
            store.write(move |unit| unit.entry_create(entry(&format!("e{n}")))).await.unwrap();
        }
        for round in 0..3 {
            let ballast = ballast(folder.path());
            let before = content(store.state());
            for n in 0..20 {
                let error =
                    store.write(move |unit| unit.entry_create(entry(&format!("x{n}")))).await.unwrap_err();
                assert!(matches!(error, StoreError::Full { confirmed: true, .. }), "{error:?}");
                let text = error.to_string();
                assert!(text.contains("no space left") && text.contains("free some space"), "{text}");
                assert!(text.contains(folder.path().to_str().unwrap()), "{text}");
            }
            // Reads, and closures that only read, go on.
            assert_eq!(content(store.state()), before);
            let id = EntryId::parse("e7").unwrap();
            assert!(store.write(move |unit| Ok(unit.entry(&id))).await.unwrap().is_some());

            fs::remove_file(ballast).unwrap();
            resumes(&store, &format!("r{round}")).await;
        }
        let before = content(store.state());
        assert_eq!(store.state().entries().len(), 203);
        store.close().await;
        let (store, _) = open(driver, folder.path()).unwrap();
        assert_eq!(content(store.state()), before);
        store.close().await;
    });
}

/// The disk fills up in the middle of commits: the check before a commit cannot see that coming.
#[test]
fn a_disk_that_fills_up_under_a_commit_loses_nothing() {
    each(&ON_DISK, async |driver, folder| {
        let Some(_disk) = small_disk("disk filling up", folder.path()) else { return };
        let (store, _) = open(driver, folder.path()).unwrap();
        let mut acknowledged = Vec::new();
        let mut refusals = 0;
        for round in 0..6 {
            let place = folder.path().to_owned();
            let filler = std::thread::spawn(move || ballast(&place));
            let start = Instant::now();
            for n in 0.. {
                let name = format!("r{round}-{n}");
                let created = name.clone();
                let large = bundle("large.test", vec![n as u8; 200_000]);
                let written = store.write(move |unit| {
                    unit.entry_create(entry(&created))?;
                    unit.bundle_put(large)
                });
                match written.await {
                    Ok(_) => acknowledged.push(name),
                    Err(StoreError::Full { .. }) => {
                        refusals += 1;
                        if filler.is_finished() && start.elapsed() > Duration::from_millis(100) {
                            break;
                        }
                    }
                    Err(error) => panic!("{error}"),
                }
                assert!(start.elapsed() < Duration::from_secs(30), "the disk must get full");
            }
            fs::remove_file(filler.join().unwrap()).unwrap();
            let name = format!("back{round}");
            resumes(&store, &name).await;
            acknowledged.push(name);
            let entries = store.state().entries();
            for name in &acknowledged {
                assert!(entries.get(&EntryId::parse(name).unwrap()).is_some(), "{driver}: {name} is lost");
            }
        }
        assert!(refusals > 0);
        let before = content(store.state());
        store.close().await;
        let (store, _) = open(driver, folder.path()).unwrap();
        assert_eq!(content(store.state()), before);
        store.close().await;
    });
}

async fn resumes(store: &bonafide_server::store::Store, name: &str) {
    let start = Instant::now();
    loop {
        let created = name.to_owned();
        match store.write(move |unit| unit.entry_create(entry(&created))).await {
            Ok(_) => return,
            Err(error) => {
                assert!(start.elapsed() < Duration::from_secs(20), "writes must resume; last: {error}");
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Below the store: a driver that ran into a full disk can be opened anew and has every batch that it acknowledged.
#[test]
fn a_driver_that_ran_full_opens_again() {
    for kind in ON_DISK {
        let folder = tempfile::tempdir().unwrap();
        let Some(_disk) = small_disk("driver on a full disk", folder.path()) else { return };
        let driver = super::key_value::driver(kind, folder.path());
        for round in 0..4_u32 {
            let mut database = driver.open().unwrap();
            let mut acknowledged = 0_u32;
            let error = loop {
                let mut batch = Batch::default();
                batch.put(
                    [round.to_be_bytes(), acknowledged.to_be_bytes()].concat(),
                    vec![acknowledged as u8; 3000],
                );
                batch.put(round.to_be_bytes().to_vec(), acknowledged.to_be_bytes().to_vec());
                match database.commit(&batch) {
                    Ok(()) => acknowledged += 1,
                    Err(error) => break error,
                }
                if acknowledged == 200 {
                    ballast(folder.path());
                }
            };
            assert!(matches!(error, KvError::Full), "{kind}: {error:?}");
            drop(database);
            // While the disk is still full it may refuse to open, but must not damage anything.
            match driver.open() {
                Ok(database) => drop(database),
                Err(error) => assert!(matches!(error, KvError::Full), "{kind}: {error:?}"),
            }
            fs::remove_file(folder.path().join("ballast")).unwrap();
            let database = driver.open().unwrap();
            for n in 0..acknowledged {
                let value = database.get(&[round.to_be_bytes(), n.to_be_bytes()].concat()).unwrap();
                assert_eq!(value, Some(vec![n as u8; 3000]), "{kind}, round {round}, {n} of {acknowledged}");
            }
            let last = database.get(&round.to_be_bytes()).unwrap().unwrap();
            let last = u32::from_be_bytes(last.try_into().unwrap());
            // The batch that failed is there as a whole or not at all.
            let failed = database.get(&[round.to_be_bytes(), acknowledged.to_be_bytes()].concat()).unwrap();
            assert_eq!(last, if failed.is_some() { acknowledged } else { acknowledged - 1 });
            eprintln!(
                "{kind}, round {round}: {acknowledged} kept, the failed one {}",
                if failed.is_some() { "too" } else { "not" }
            );
        }
    }
}
