//! The suite that every driver of the key-value seam must pass.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use bonafide_server::store::kv::{self, Batch, KeyValue, KvError, Range};
use bonafide_server::store::{DriverKind, StoreConfig};
use proptest::prelude::*;

use super::{DRIVERS, ON_DISK, available};

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

pub(crate) fn driver(kind: DriverKind, folder: &Path) -> Box<dyn kv::Driver> {
    kv::driver(&StoreConfig { path: folder.join("db"), ..super::config(kind, folder) }, "")
}

fn scan(database: &dyn KeyValue, range: &Range) -> Model {
    let mut found = Model::new();
    let mut last: Option<Vec<u8>> = None;
    database
        .scan(range, &mut |key, value| {
            assert!(last.as_deref().is_none_or(|last| last < key), "keys must come in ascending order");
            last = Some(key.to_vec());
            found.insert(key.to_vec(), value.to_vec());
            ControlFlow::Continue(())
        })
        .unwrap();
    found
}

fn batch(operations: &[(Vec<u8>, Option<Vec<u8>>)]) -> Batch {
    let mut batch = Batch::default();
    for (key, value) in operations {
        match value {
            Some(value) => batch.put(key.clone(), value.clone()),
            None => batch.delete(key.clone()),
        }
    }
    batch
}

/// Keys that are prefixes of each other, and values on both sides of every limit at which a driver changes its layout.
fn operation() -> impl Strategy<Value = (Vec<u8>, Option<Vec<u8>>)> {
    let key = prop_oneof![
        prop::collection::vec(0_u8..4, 0..4),
        prop::collection::vec(any::<u8>(), 0..20),
        Just(vec![255, 255, 255])
    ];
    let length = prop_oneof![4 => 0_usize..50, 1 => 4090_usize..4100, 1 => 8190_usize..8200, 1 => 20_000_usize..20_001];
    (key, prop::option::weighted(0.7, (length, any::<u8>()).prop_map(|(length, fill)| vec![fill; length])))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    /// Every driver does what a map does, before and after it is opened anew.
    #[test]
    fn drivers_are_ordered_maps(
        batches in prop::collection::vec(prop::collection::vec(operation(), 0..12), 1..12),
        bounds in prop::collection::vec((prop::collection::vec(0_u8..4, 0..4), prop::option::of(prop::collection::vec(0_u8..5, 0..4))), 8),
    ) {
        for kind in DRIVERS.into_iter().filter(|kind| available(*kind)) {
            let folder = tempfile::tempdir().unwrap();
            let driver = driver(kind, folder.path());
            let mut model = Model::new();
            let mut database = driver.open().unwrap();
            for operations in &batches {
                database.commit(&batch(operations)).unwrap();
                for (key, value) in operations {
                    match value {
                        Some(value) => drop(model.insert(key.clone(), value.clone())),
                        None => drop(model.remove(key)),
                    }
                }
            }
            for round in 0..2 {
                prop_assert_eq!(&scan(&*database, &Range::all()), &model, "{} round {}", kind, round);
                for (from, to) in &bounds {
                    let range = Range { from: from.clone(), to: to.clone() };
                    let expected: Model = model
                        .iter()
                        .filter(|(key, _)| *key >= from && to.as_ref().is_none_or(|to| *key < to))
                        .map(|(key, value)| (key.clone(), value.clone()))
                        .collect();
                    prop_assert_eq!(scan(&*database, &range), expected, "{} {:?}", kind, range);
                }
                for (key, _) in batches.iter().flatten() {
                    prop_assert_eq!(database.get(key).unwrap(), model.get(key).cloned());
                }
                if kind == DriverKind::Memory {
                    break;
                }
                drop(database);
                database = driver.open().unwrap();
            }
        }
    }
}

#[test]
fn a_scan_stops_when_told() {
    for kind in DRIVERS.into_iter().filter(|kind| available(*kind)) {
        let folder = tempfile::tempdir().unwrap();
        let mut database = driver(kind, folder.path()).open().unwrap();
        database
            .commit(&batch(&[(vec![1], Some(vec![])), (vec![2], Some(vec![])), (vec![3], Some(vec![]))]))
            .unwrap();
        let mut seen = 0;
        database
            .scan(&Range::after(&[1]), &mut |_, _| {
                seen += 1;
                ControlFlow::Break(())
            })
            .unwrap();
        assert_eq!(seen, 1, "{kind}");
        assert!(database.size().unwrap() > 0, "{kind}");
    }
}

/// A page that sled moves into a file of its own is never synced by it: none must get there.
#[test]
fn sled_keeps_large_values_in_its_log() {
    let folder = tempfile::tempdir().unwrap();
    let driver = driver(DriverKind::Sled, folder.path());
    let mut database = driver.open().unwrap();
    let mut model = Model::new();
    for n in 0..60_u8 {
        let value = vec![n; 4096 * (1 + usize::from(n % 5) * 20)];
        database.commit(&batch(&[(vec![n / 7, n], Some(value.clone()))])).unwrap();
        model.insert(vec![n / 7, n], value);
        if n % 3 == 0 {
            database.commit(&batch(&[(vec![n / 7, n], Some(vec![n; 5000]))])).unwrap();
            model.insert(vec![n / 7, n], vec![n; 5000]);
        }
    }
    assert_eq!(scan(&*database, &Range::all()), model);
    let blobs = std::fs::read_dir(folder.path().join("db/blobs")).unwrap().count();
    assert_eq!(blobs, 0);
    drop(database);
    assert_eq!(scan(&*driver.open().unwrap(), &Range::all()), model);
}

#[test]
fn a_database_opens_once() {
    for kind in ON_DISK {
        let folder = tempfile::tempdir().unwrap();
        let driver = driver(kind, folder.path());
        let first = driver.open().unwrap();
        assert!(matches!(driver.open(), Err(KvError::Busy)), "{kind}");
        drop(first);
        driver.open().unwrap();
    }
}

/// sled takes a snapshot file that was not finished for a damaged one; killed while it opened, it never opened again.
#[test]
fn sled_opens_after_an_opening_that_was_interrupted() {
    let folder = tempfile::tempdir().unwrap();
    let driver = driver(DriverKind::Sled, folder.path());
    let mut database = driver.open().unwrap();
    database.commit(&batch(&[(vec![1], Some(vec![2]))])).unwrap();
    drop(database);
    std::fs::write(folder.path().join("db/snap.7FFFFFFFFFFFFFFF.generating"), b"half a snap").unwrap();
    assert_eq!(driver.open().unwrap().get(&[1]).unwrap(), Some(vec![2]));
}
