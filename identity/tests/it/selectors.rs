//! Selector sets behave as sets.

use bonafide_identity::{MatchBehavior, Selector, SelectorSet};
use proptest::prelude::*;
use std::collections::BTreeSet;

fn members() -> impl Strategy<Value = BTreeSet<Selector>> {
    let selector = (0..3u8, 0..6u8).prop_map(|(kind, value)| {
        Selector::new(&format!("kind{kind}"), &format!("value:{value}")).expect("valid")
    });
    prop::collection::btree_set(selector, 0..8)
}

fn set(members: &BTreeSet<Selector>) -> SelectorSet {
    members.iter().cloned().collect()
}

proptest! {
    #[test]
    fn every_question_is_answered_as_by_a_set(a in members(), b in members()) {
        let (x, y) = (set(&a), set(&b));
        prop_assert_eq!(x.is_subset_of(&y), a.is_subset(&b));
        prop_assert_eq!(x.intersects(&y), !a.is_disjoint(&b));
        prop_assert_eq!(x.union(&y), set(&a.union(&b).cloned().collect()));
        prop_assert_eq!(x.matches(&y, MatchBehavior::Exact), a == b);
        prop_assert_eq!(x.matches(&y, MatchBehavior::Subset), a.is_subset(&b));
        prop_assert_eq!(x.matches(&y, MatchBehavior::Superset), a.is_superset(&b));
        prop_assert_eq!(x.matches(&y, MatchBehavior::Any), !a.is_disjoint(&b));
        prop_assert_eq!(x.len(), a.len());
        prop_assert!(b.iter().all(|selector| x.contains(selector) == a.contains(selector)));
    }

    #[test]
    fn order_and_repetition_do_not_matter(list in prop::collection::vec(members(), 0..3)) {
        let forwards: SelectorSet = list.iter().flatten().cloned().collect();
        let backwards: SelectorSet = list.iter().rev().flat_map(|m| m.iter().rev()).cloned().collect();
        prop_assert_eq!(&forwards, &backwards);
        prop_assert!(forwards.as_slice().windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[test]
    fn subset_is_an_order(a in members(), b in members(), c in members()) {
        let (x, y, z) = (set(&a), set(&b), set(&c));
        prop_assert!(x.is_subset_of(&x));
        prop_assert!(SelectorSet::empty().is_subset_of(&x));
        prop_assert!(x.is_subset_of(&x.union(&y)) && y.is_subset_of(&x.union(&y)));
        prop_assert!(!(x.is_subset_of(&y) && y.is_subset_of(&x)) || x == y);
        prop_assert!(!(x.is_subset_of(&y) && y.is_subset_of(&z)) || x.is_subset_of(&z));
    }
}
