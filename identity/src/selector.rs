//! Selectors: what an attestor found out about a node or a process, as `kind:value` facts, and sets of them.

use crate::text::textual;
use std::{fmt, sync::Arc};

/// Why a selector is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// The kind is empty.
    #[error("missing selector type")]
    NoKind,
    /// The kind holds a colon, which is what separates it from the value.
    #[error("selector type contains ':'")]
    ColonInKind,
    /// The value is empty.
    #[error("missing selector value")]
    NoValue,
    /// The text holds no colon at all.
    #[error("selector must have the form type:value")]
    NoColon,
}

/// One fact, such as `unix:uid:1000` (kind `unix`, value `uid:1000`). Clones share the text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector(
    // "kind:value": a kind never holds a colon, so the first one is the border and need not be stored.
    Arc<str>,
);

impl Selector {
    /// The selector of a kind (the attestor's name) and a value, which may itself hold colons.
    ///
    /// # Errors
    /// When either is empty or the kind holds a colon.
    pub fn new(kind: &str, value: &str) -> Result<Self, SelectorError> {
        if kind.is_empty() {
            return Err(SelectorError::NoKind);
        }
        if kind.contains(':') {
            return Err(SelectorError::ColonInKind);
        }
        if value.is_empty() {
            return Err(SelectorError::NoValue);
        }
        Ok(Self(format!("{kind}:{value}").into()))
    }

    /// Parses `kind:value`.
    ///
    /// # Errors
    /// When there is no colon or nothing on one side of the first one.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        match text.split_once(':') {
            None => Err(SelectorError::NoColon),
            Some(("", _)) => Err(SelectorError::NoKind),
            Some((_, "")) => Err(SelectorError::NoValue),
            Some(_) => Ok(Self(text.into())),
        }
    }

    /// The attestor that vouches for the fact.
    pub fn kind(&self) -> &str {
        self.0.split_once(':').map_or("", |(kind, _)| kind)
    }

    /// The fact.
    pub fn value(&self) -> &str {
        self.0.split_once(':').map_or("", |(_, value)| value)
    }

    /// Both, as `kind:value`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(crate) fn holders(&self) -> usize {
        Arc::strong_count(&self.0)
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Selector({})", self.0)
    }
}

impl std::borrow::Borrow<str> for Selector {
    fn borrow(&self) -> &str {
        &self.0
    }
}

textual!(Selector, SelectorError);

/// How a stored set must relate to a given one in list filters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MatchBehavior {
    /// The same set.
    Exact,
    /// The stored set is a subset of the given one.
    Subset,
    /// The stored set is a superset of the given one.
    Superset,
    /// They share at least one member.
    Any,
}

impl MatchBehavior {
    /// Compares two sorted slices without duplicates, the stored one first.
    pub fn holds<T: Ord>(self, stored: &[T], given: &[T]) -> bool {
        match self {
            Self::Exact => stored == given,
            Self::Subset => is_subset(stored, given),
            Self::Superset => is_subset(given, stored),
            Self::Any => intersects(stored, given),
        }
    }
}

/// A set of selectors: sorted, without duplicates, cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct SelectorSet(Arc<[Selector]>);

impl SelectorSet {
    /// The set without members.
    pub fn empty() -> Self {
        Self::default()
    }

    /// The members in ascending order.
    pub fn iter(&self) -> std::slice::Iter<'_, Selector> {
        self.0.iter()
    }

    /// The members in ascending order.
    pub fn as_slice(&self) -> &[Selector] {
        &self.0
    }

    /// How many members there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True for the empty set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// True when `selector` is a member.
    pub fn contains(&self, selector: &Selector) -> bool {
        self.0.binary_search(selector).is_ok()
    }

    /// True when each member is a member of `other` too.
    pub fn is_subset_of(&self, other: &SelectorSet) -> bool {
        is_subset(&self.0, &other.0)
    }

    /// True when some member is a member of `other` too.
    pub fn intersects(&self, other: &SelectorSet) -> bool {
        intersects(&self.0, &other.0)
    }

    /// The set of all members of both.
    pub fn union(&self, other: &SelectorSet) -> SelectorSet {
        if other.is_subset_of(self) {
            return self.clone();
        }
        self.iter().chain(other.iter()).cloned().collect()
    }

    /// Replaces each member by an equal one.
    pub(crate) fn share_members(&mut self, mut share: impl FnMut(&mut Selector)) {
        if Arc::get_mut(&mut self.0).is_none() {
            self.0 = self.0.iter().cloned().collect();
        }
        if let Some(members) = Arc::get_mut(&mut self.0) {
            members.iter_mut().for_each(&mut share);
        }
    }

    /// Compares this stored set with a given one.
    pub fn matches(&self, given: &SelectorSet, behavior: MatchBehavior) -> bool {
        behavior.holds(&self.0, &given.0)
    }
}

fn is_subset<T: Ord>(small: &[T], large: &[T]) -> bool {
    if small.len() > large.len() {
        return false;
    }
    let mut rest = large;
    small.iter().all(|wanted| {
        // An entry has few selectors and a process may have dozens: leap rather than walk.
        rest = &rest[rest.partition_point(|have| have < wanted)..];
        rest.first() == Some(wanted)
    })
}

fn intersects<T: Ord>(a: &[T], b: &[T]) -> bool {
    let (small, large) = if a.len() <= b.len() { (a, b) } else { (b, a) };
    small.iter().any(|wanted| large.binary_search(wanted).is_ok())
}

impl FromIterator<Selector> for SelectorSet {
    fn from_iter<I: IntoIterator<Item = Selector>>(iter: I) -> Self {
        let mut all: Vec<_> = iter.into_iter().collect();
        all.sort_unstable();
        all.dedup();
        Self(all.into())
    }
}

impl<'a> IntoIterator for &'a SelectorSet {
    type Item = &'a Selector;
    type IntoIter = std::slice::Iter<'a, Selector>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Debug for SelectorSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(Selector::as_str)).finish()
    }
}

impl serde::Serialize for SelectorSet {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self)
    }
}

impl<'de> serde::Deserialize<'de> for SelectorSet {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Vec::<Selector>::deserialize(deserializer)?.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(texts: &[&str]) -> SelectorSet {
        texts.iter().map(|t| Selector::parse(t).unwrap()).collect()
    }

    #[test]
    fn a_value_may_hold_colons_and_a_kind_may_not() {
        let selector = Selector::parse("unix:uid:1000").unwrap();
        assert_eq!((selector.kind(), selector.value()), ("unix", "uid:1000"));
        assert_eq!(Selector::new("unix", "uid:1000").unwrap(), selector);
        assert_eq!(Selector::new("a:b", "c"), Err(SelectorError::ColonInKind));
        assert_eq!(Selector::new("", "c"), Err(SelectorError::NoKind));
        assert_eq!(Selector::new("a", ""), Err(SelectorError::NoValue));
        assert_eq!(Selector::parse("abc"), Err(SelectorError::NoColon));
        assert_eq!(Selector::parse(":c"), Err(SelectorError::NoKind));
        assert_eq!(Selector::parse("a:"), Err(SelectorError::NoValue));
        assert_eq!(Selector::parse("a::").unwrap().value(), ":");
    }

    #[test]
    fn the_four_ways_to_match() {
        let (ab, bc, b) = (set(&["a:1", "b:1"]), set(&["b:1", "c:1"]), set(&["b:1", "b:1"]));
        use MatchBehavior::{Any, Exact, Subset, Superset};
        assert!(ab.matches(&set(&["b:1", "a:1"]), Exact) && !ab.matches(&b, Exact));
        assert!(b.matches(&ab, Subset) && !ab.matches(&b, Subset) && ab.matches(&ab, Subset));
        assert!(ab.matches(&b, Superset) && !b.matches(&ab, Superset));
        assert!(ab.matches(&bc, Any) && !ab.matches(&set(&["c:1"]), Any));
        assert!(SelectorSet::empty().is_subset_of(&b) && !SelectorSet::empty().intersects(&b));
    }

    #[test]
    fn serde_keeps_the_set_sorted() {
        let json = serde_json::to_string(&set(&["b:1", "a:1", "b:1"])).unwrap();
        assert_eq!(json, r#"["a:1","b:1"]"#);
        assert_eq!(serde_json::from_str::<SelectorSet>(r#"["b:1","a:1"]"#).unwrap(), set(&["a:1", "b:1"]));
    }
}
