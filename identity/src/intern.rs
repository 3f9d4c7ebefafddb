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

    /// The shared copy of a trust domain name.
    pub fn trust_domain(&mut self, name: TrustDomain) -> TrustDomain {
        self.trust_domains.share(name)
    }

    /// The shared copy of a SPIFFE ID.
    pub fn spiffe_id(&mut self, id: SpiffeId) -> SpiffeId {
        if let Some(known) = self.ids.values.get(&id) {
            return known.clone();
        }
        let id = self.trust_domain_of(id);
        self.ids.share(id)
    }

    /// The ID with a shared trust domain, its path left alone: for IDs that are likely the only ones of their kind.
    pub fn trust_domain_of(&mut self, id: SpiffeId) -> SpiffeId {
        let trust_domain = self.trust_domain(id.trust_domain().clone());
        SpiffeId::from_shared(trust_domain, id.shared_path().clone())
    }

    /// The shared copy of a selector.
    pub fn selector(&mut self, selector: Selector) -> Selector {
        self.selectors.share(selector)
    }

    /// The set with shared members.
    pub fn selector_set(&mut self, set: &SelectorSet) -> SelectorSet {
        set.iter().map(|selector| self.selector(selector.clone())).collect()
    }

    /// Makes an entry share its parent, its trust domains and its selectors.
    pub fn entry(&mut self, entry: &mut Entry) {
        entry.parent_id = self.spiffe_id(entry.parent_id.clone());
        entry.spiffe_id = self.trust_domain_of(entry.spiffe_id.clone());
        entry.selectors = self.selector_set(&entry.selectors);
        for name in &mut entry.federates_with {
            *name = self.trust_domain(name.clone());
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
        std::sync::Arc::strong_count(self.shared_path())
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
    fn share(&mut self, value: T) -> T {
        if let Some(known) = self.values.get(&value) {
            return known.clone();
        }
        if self.values.len() >= self.sweep_at {
            // Two holders are the pool and the one value that came by: not shared with anything.
            self.values.retain(|value| value.holders() > 2);
            self.sweep_at = (2 * self.values.len()).max(FIRST_SWEEP);
        }
        self.values.insert(value.clone());
        value
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
        let mut parse = || interner.spiffe_id(SpiffeId::parse("spiffe://td/a").unwrap());
        let (a, b) = (parse(), parse());
        assert!(std::sync::Arc::ptr_eq(a.shared_path(), b.shared_path()));
        assert_eq!(a.holders(), 3);
    }

    #[test]
    fn lonely_values_are_forgotten() {
        let mut interner = Interner::new();
        let kept: Vec<_> = (0..2).map(|_| interner.selector(Selector::new("k", "shared").unwrap())).collect();
        for n in 0..=FIRST_SWEEP {
            interner.selector(Selector::new("k", &n.to_string()).unwrap());
        }
        assert!(interner.selectors.values.len() < FIRST_SWEEP);
        assert!(interner.selectors.values.contains(&kept[0]));
    }
}
