//! The lock file of this workspace agrees with that of the programs: a parser is fuzzed in the version that is shipped.

use std::collections::{BTreeMap, BTreeSet};

#[test]
fn what_is_fuzzed_is_what_is_shipped() {
    let shipped = versions(include_str!("../../Cargo.lock"));
    let fuzzed = versions(include_str!("../Cargo.lock"));
    let differing: Vec<_> = fuzzed
        .iter()
        .filter_map(|(name, versions)| Some((name, versions, shipped.get(name)?)))
        .filter(|(_, fuzzed, shipped)| !fuzzed.is_subset(shipped))
        .collect();
    assert!(differing.is_empty(), "name, fuzzed, shipped: {differing:?}");
    assert!(fuzzed.contains_key("ring") && shipped.contains_key("ring"));
}

fn versions(lock: &'static str) -> BTreeMap<&'static str, BTreeSet<&'static str>> {
    let mut versions: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    let value = |line: &'static str, key: &str| line.strip_prefix(key)?.strip_suffix('"');
    let mut name = "";
    for line in lock.lines() {
        if let Some(found) = value(line, "name = \"") {
            name = found;
        } else if let Some(version) = value(line, "version = \"") {
            versions.entry(name).or_default().insert(version);
        }
    }
    versions
}
