//! What the log says of callers that have no identity.
//!
//! Selectors may hold what is nobody's business (labels, paths), so only those are written whose prefixes the operator has named.
//! Anybody on the node can be such a caller as often as they like: there is a line each second at most, with the number of those
//! that were left out.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bonafide_identity::{SelectorSet, Timestamp};

use crate::caller::PinnedCaller;

/// Writes them down.
#[derive(Debug, Default)]
pub struct Unidentified {
    prefixes: Vec<String>,
    last: Mutex<(Option<Timestamp>, u64)>,
}

impl Unidentified {
    /// With the beginnings of those selectors that may be written, such as `unix:uid`.
    #[must_use]
    pub fn new(prefixes: Vec<String>) -> Self {
        Self { prefixes, last: Mutex::default() }
    }

    /// A caller got no identity.
    pub(super) fn note(
        &self,
        caller: &PinnedCaller,
        method: &'static str,
        selectors: &SelectorSet,
        now: Timestamp,
    ) {
        let Some(suppressed) = self.allow(now) else { return };
        let selectors = self.shown(selectors);
        let selectors = (!selectors.is_empty()).then_some(selectors.as_str());
        tracing::warn!(
            pid = caller.pid(),
            method,
            registered = false,
            selectors,
            suppressed,
            "no identity issued"
        );
    }

    /// How many were left out since the last line, when there may be one now.
    fn allow(&self, now: Timestamp) -> Option<u64> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (said, suppressed) = &mut *last;
        // A clock that went back silences nothing for long.
        if said.is_some_and(|said| said <= now && now.saturating_since(said) < EVERY) {
            *suppressed += 1;
            return None;
        }
        *said = Some(now);
        Some(std::mem::take(suppressed))
    }

    /// Those selectors that are a named prefix, or continue one after a colon.
    fn shown(&self, selectors: &SelectorSet) -> String {
        let named = |text: &str| {
            let begins = |prefix: &String| {
                text.strip_prefix(prefix.as_str())
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
            };
            self.prefixes.iter().any(begins)
        };
        let shown: Vec<&str> =
            selectors.iter().map(bonafide_identity::Selector::as_str).filter(|text| named(text)).collect();
        shown.join(",")
    }
}

const EVERY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use bonafide_identity::Selector;

    use super::*;

    #[test]
    fn only_named_selectors_are_shown() {
        let set: SelectorSet =
            ["unix:uid:1000", "unix:uidx:1", "docker:label:secret:x", "k8s:ns:a", "k8s:nsx"]
                .map(|text| Selector::parse(text).unwrap())
                .into_iter()
                .collect();
        let shown = |prefixes: &[&str]| {
            Unidentified::new(prefixes.iter().map(ToString::to_string).collect()).shown(&set)
        };
        assert_eq!(shown(&[]), "");
        assert_eq!(shown(&["unix:uid"]), "unix:uid:1000");
        assert_eq!(shown(&["k8s", "unix:uid:1000"]), "k8s:ns:a,k8s:nsx,unix:uid:1000");
        assert_eq!(shown(&["unix:ui", "", "doc"]), "");
    }

    #[test]
    fn a_line_each_second_counts_the_others() {
        let log = Unidentified::default();
        let at = Timestamp::from_unix_millis;
        assert_eq!(log.allow(at(5_000)), Some(0));
        assert_eq!((log.allow(at(5_000)), log.allow(at(5_999))), (None, None));
        assert_eq!(log.allow(at(6_000)), Some(2));
        assert_eq!(log.allow(at(10)), Some(0), "the clock went back");
    }
}
