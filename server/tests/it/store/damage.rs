//! A damaged store is refused with a message that names the file and the way back; it is never served as an empty or an
//! older one.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bonafide_server::store::{DriverKind, Entries, JoinTokens, Nodes, StoreError};

use super::{ON_DISK, content, each, entry, node, open, setting, token};

const ENTRIES: usize = 3000;

fn data_file(driver: DriverKind, folder: &Path) -> PathBuf {
    match driver {
        DriverKind::Sled => folder.join("store/db"),
        _ => folder.join("store"),
    }
}

/// A store with some history, closed; its content.
async fn fill(driver: DriverKind, folder: &Path) -> String {
    let (store, _) = open(driver, folder).unwrap();
    for part in 0..30 {
        store
            .write(move |unit| {
                for n in 0..ENTRIES / 30 {
                    unit.entry_create(entry(&format!("e{part}-{n}")))?;
                }
                unit.node_put(node(&format!("n{}", part % 7), part as u128))?;
                unit.token_create(&token(&format!("t{part}"))).map(drop)
            })
            .await
            .unwrap();
    }
    let content = content(store.state());
    store.close().await;
    content
}

fn copy(from: &Path, to: &Path) {
    let status = std::process::Command::new("cp").arg("-a").arg(from.join(".")).arg(to).status().unwrap();
    assert!(status.success());
}

/// Asserts that the store is refused, twice: opening must not repair it into something else.
fn refused(driver: DriverKind, folder: &Path, what: &str) {
    for attempt in ["first", "second"] {
        let error = match open(driver, folder) {
            Ok((_, found)) => panic!("{driver}, {what}, {attempt} opening: served with {found:?}"),
            Err(error) => error,
        };
        assert!(matches!(error, StoreError::Corrupt { .. }), "{driver}, {what}: {error:?}");
        let text = error.to_string();
        assert!(text.contains(folder.join("store").to_str().unwrap()), "{driver}, {what}: {text}");
        assert!(text.contains("bonafide-server restore"), "{driver}, {what}: {text}");
        eprintln!("{driver}, {what}, {attempt}: {text}");
    }
}

#[test]
fn shortened_and_missing_files_are_refused() {
    each(&ON_DISK, async |driver, folder| {
        fill(driver, folder.path()).await;
        type Damage = fn(DriverKind, &Path);
        let damages: [(&str, Damage); 7] = [
            ("last 4 kB cut off", |driver, folder| {
                shorten(&data_file(driver, folder), |length| length - 4096);
            }),
            ("last quarter cut off", |driver, folder| {
                shorten(&data_file(driver, folder), |length| length / 4 * 3);
            }),
            ("half cut off", |driver, folder| shorten(&data_file(driver, folder), |length| length / 2)),
            ("empty", |driver, folder| shorten(&data_file(driver, folder), |_| 0)),
            ("deleted", |driver, folder| fs::remove_file(data_file(driver, folder)).unwrap()),
            ("deleted as a whole", |driver, folder| match driver {
                DriverKind::Sled => fs::remove_dir_all(folder.join("store")).unwrap(),
                _ => fs::remove_file(folder.join("store")).unwrap(),
            }),
            ("expected state deleted", |_, folder| fs::remove_file(folder.join("store.expect")).unwrap()),
        ];
        for (what, damage) in damages {
            let victim = tempfile::tempdir().unwrap();
            copy(folder.path(), victim.path());
            damage(driver, victim.path());
            refused(driver, victim.path(), what);
        }
    });
}

/// An older copy of the database, whole in itself.
#[test]
fn an_older_copy_is_refused() {
    each(&ON_DISK, async |driver, folder| {
        fill(driver, folder.path()).await;
        let older = tempfile::tempdir().unwrap();
        copy(folder.path(), older.path());
        let (store, _) = open(driver, folder.path()).unwrap();
        store.write(|unit| unit.token_take("t1")).await.unwrap();
        store.close().await;
        fs::copy(folder.path().join("store.expect"), older.path().join("store.expect")).unwrap();
        refused(driver, older.path(), "older copy");
    });
}

/// The expected-state file of another store.
#[test]
fn a_foreign_database_is_refused() {
    each(&ON_DISK, async |driver, folder| {
        fill(driver, folder.path()).await;
        let other = tempfile::tempdir().unwrap();
        fill(driver, other.path()).await;
        fs::copy(folder.path().join("store.expect"), other.path().join("store.expect")).unwrap();
        refused(driver, other.path(), "foreign");
    });
}

/// Damage within the file may hit what is not in use: then everything is still there. Anything else is refused.
#[test]
fn zeroed_and_flipped_bytes_are_refused_or_harmless() {
    each(&ON_DISK, async |driver, folder| {
        let whole = fill(driver, folder.path()).await;
        let length = fs::metadata(data_file(driver, folder.path())).unwrap().len();
        let mut random = 0x2545_f491_4f6c_dd1d_u64;
        let mut draw = move |below: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % below
        };
        let mut found = (0, 0);
        for round in 0..setting("BONAFIDE_TEST_DAMAGES", 40) {
            let victim = tempfile::tempdir().unwrap();
            copy(folder.path(), victim.path());
            let file =
                OpenOptions::new().read(true).write(true).open(data_file(driver, victim.path())).unwrap();
            if round % 2 == 0 {
                let middle = length / 4 + draw(length / 2);
                file.write_all_at(&[0; 4096], middle / 4096 * 4096).unwrap();
            } else {
                for _ in 0..10 {
                    let at = draw(length);
                    let mut byte = [0];
                    file.read_exact_at(&mut byte, at).unwrap();
                    byte[0] ^= 1 << draw(8);
                    file.write_all_at(&byte, at).unwrap();
                }
            }
            drop(file);
            match open(driver, victim.path()) {
                Ok((store, _)) => {
                    assert!(
                        content(store.state()) == whole,
                        "{driver}, round {round}: served something else"
                    );
                    found.0 += 1;
                }
                Err(error) => {
                    let text = error.to_string();
                    assert!(
                        matches!(error, StoreError::Corrupt { .. }),
                        "{driver}, round {round}: {error:?}"
                    );
                    assert!(text.contains(victim.path().to_str().unwrap()), "{text}");
                    assert!(text.contains("bonafide-server restore"), "{text}");
                    found.1 += 1;
                }
            }
        }
        eprintln!("{driver}: {} harmless, {} refused", found.0, found.1);
        assert!(found.1 >= 5, "{driver}: the damage must hit something");
    });
}

#[test]
fn a_damaged_expected_state_is_refused() {
    each(&ON_DISK, async |driver, folder| {
        fill(driver, folder.path()).await;
        fs::write(folder.path().join("store.expect"), vec![0; 8192]).unwrap();
        refused(driver, folder.path(), "expected state zeroed");
    });
}

fn shorten(file: &Path, to: impl Fn(u64) -> u64) {
    let file = OpenOptions::new().write(true).open(file).unwrap();
    file.set_len(to(file.metadata().unwrap().len())).unwrap();
}
