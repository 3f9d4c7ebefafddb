//! Sharing equal texts.
//!
//! A million entries name the same few trust domains, some thousand parents and a handful of selectors over and over.
//! Kept apart, those copies weigh more than all else. The interner remembers one copy of each and forgets those that
//! turned out to be alone, so that a fleet whose selectors are all different does not pay for the attempt.

use crate::{Entry, Selector, SelectorSet, SpiffeId, TrustDomain};
use std::{collections::HashSet, hash::Hash};

/// A pool of texts to share. Passing values through the same interner makes equal ones share their memory.
#[derive(Debug, Default)]
pub struct Interner {
    trust_domains: Pool<TrustDomain>,
    ids: Pool<SpiffeId>,
    selectors: Pool<Selector>,
}

impl Interner {
    /// An empty pool.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes a trust domain name share its text.
    pub fn share_trust_domain(&mut self, name: &mut TrustDomain) {
        self.trust_domains.share(name);
    }

    /// Makes a SPIFFE ID share its texts.
    pub fn share_spiffe_id(&mut self, id: &mut SpiffeId) {
        self.trust_domains.share(id.trust_domain_mut());
        self.ids.share(id);
    }

    /// Makes the members of a set share their texts.
    pub fn share_selectors(&mut self, set: &mut SelectorSet) {
        set.share_members(|selector| self.selectors.share(selector));
    }

    /// Makes an entry share its parent, its trust domains and its selectors; its own SPIFFE ID is likely the only one
    /// of its kind.
    pub fn share_entry(&mut self, entry: &mut Entry) {
        self.share_spiffe_id(&mut entry.parent_id);
        self.trust_domains.share(entry.spiffe_id.trust_domain_mut());
        self.share_selectors(&mut entry.selectors);
        for name in &mut entry.federates_with {
            self.share_trust_domain(name);
        }
    }
}

/// Something whose text is counted by its holders.
trait Shared: Clone + Eq + Hash {
    /// How many values hold this text, the pool's own included.
    fn holders(&self) -> usize;
}

impl Shared for TrustDomain {
    fn holders(&self) -> usize {
        self.holders()
    }
}

impl Shared for SpiffeId {
    fn holders(&self) -> usize {
        self.holders()
    }
}

impl Shared for Selector {
    fn holders(&self) -> usize {
        self.holders()
    }
}

#[derive(Debug)]
struct Pool<T> {
    values: HashSet<T>,
    sweep_at: usize,
}

impl<T> Default for Pool<T> {
    fn default() -> Self {
        Self { values: HashSet::new(), sweep_at: FIRST_SWEEP }
    }
}

impl<T: Shared> Pool<T> {
    fn share(&mut self, value: &mut T) {
        if let Some(known) = self.values.get(value) {
            value.clone_from(known);
            return;
        }
        if self.values.len() >= self.sweep_at {
            // Two holders are the pool and the one value that came by: not shared with anything.
            self.values.retain(|value| value.holders() > 2);
            self.sweep_at = (2 * self.values.len()).max(FIRST_SWEEP);
        }
        self.values.insert(value.clone());
    }
}

/// Texts that recur at all recur within so many others.
const FIRST_SWEEP: usize = 1 << 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_become_one() {
        let mut interner = Interner::new();
        let mut ids = [(); 2].map(|()| SpiffeId::parse("spiffe://td/a").unwrap());
        ids.iter_mut().for_each(|id| interner.share_spiffe_id(id));
        assert!(std::ptr::eq(ids[0].path(), ids[1].path()));
        assert!(std::ptr::eq(ids[0].trust_domain().as_str(), ids[1].trust_domain().as_str()));
        assert_eq!(ids[0].holders(), 3);
    }

    #[test]
    fn a_set_shares_its_members_and_leaves_its_clones_alone() {
        let mut interner = Interner::new();
        let set =
            |members: &[&str]| members.iter().map(|s| Selector::parse(s).unwrap()).collect::<SelectorSet>();
        let (mut a, mut b) = (set(&["k:1", "k:2"]), set(&["k:2", "k:3"]));
        let clone = a.clone();
        interner.share_selectors(&mut a);
        interner.share_selectors(&mut b);
        assert!(std::ptr::eq(a.as_slice()[1].as_str(), b.as_slice()[0].as_str()));
        assert_eq!(a, clone);
    }

    #[test]
    fn lonely_values_are_forgotten() {
        let mut interner = Interner::new();
        let selector = |value: &str| SelectorSet::from_iter([Selector::new("k", value).unwrap()]);
        let mut kept = [(); 2].map(|()| selector("shared"));
        kept.iter_mut().for_each(|set| interner.share_selectors(set));
        for n in 0..=FIRST_SWEEP {
            interner.share_selectors(&mut selector(&n.to_string()));
        }
        assert!(interner.selectors.values.len() < FIRST_SWEEP);
        assert!(interner.selectors.values.contains(&kept[0].as_slice()[0]));
    }
}
