//! DNS names as they may stand in an SVID.

use crate::text::textual;
use std::fmt;

/// Why a DNS name is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DnsNameError {
    /// Nothing was given.
    #[error("empty or only whitespace")]
    Empty,
    /// More than 255 bytes.
    #[error("length exceeded")]
    TooLong,
    /// A label is empty: two dots in a row, or one at either end.
    #[error("label is empty")]
    EmptyLabel,
    /// A label has more than 63 bytes.
    #[error("label \"{0}\" is longer than 63 bytes")]
    LabelTooLong(String),
    /// A label holds something other than letters, digits, underscores and inner hyphens.
    #[error("label \"{0}\" may hold only letters, digits, underscores and hyphens, and hyphens only inside")]
    Label(String),
    /// A `*` that is not the whole first label, or has no label after it.
    #[error("wildcard must be the whole first label and be followed by another label")]
    Wildcard,
}

/// A DNS name: ASCII labels of letters, digits and hyphens, 1 to 63 bytes long, at most 255 bytes in all, no trailing
/// dot; the first label may be `*`. Case is kept as given. Underscores are no part of a host name, but names of services
/// hold them and SPIRE takes them, so they are accepted too.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DnsName(Box<str>);

impl DnsName {
    /// Parses a name.
    ///
    /// # Errors
    /// The first rule that the name breaks.
    pub fn parse(name: &str) -> Result<Self, DnsNameError> {
        if name.trim().is_empty() {
            return Err(DnsNameError::Empty);
        }
        if name.len() > 255 {
            return Err(DnsNameError::TooLong);
        }
        let labels = match name.split_once('.') {
            Some(("*", rest)) => rest,
            _ if name == "*" => return Err(DnsNameError::Wildcard),
            _ => name,
        };
        labels.split('.').try_for_each(check_label)?;
        Ok(Self(name.into()))
    }

    /// The name as it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// True when the first label is `*`.
    pub fn is_wildcard(&self) -> bool {
        self.0.starts_with("*.")
    }

    /// True when this is a wildcard that stands for `other` (one label in place of the `*`, letter case aside).
    pub fn covers(&self, other: &DnsName) -> bool {
        let Some(suffix) = self.0.strip_prefix("*.") else { return false };
        other.0.split_once('.').is_some_and(|(first, rest)| first != "*" && rest.eq_ignore_ascii_case(suffix))
    }
}

/// The first pair of a wildcard and another listed name that it already covers.
pub fn overlapping_wildcard(names: &[DnsName]) -> Option<(&DnsName, &DnsName)> {
    let wildcards = names.iter().filter(|name| name.is_wildcard());
    wildcards
        .flat_map(|wildcard| names.iter().map(move |name| (wildcard, name)))
        .find(|(wildcard, name)| wildcard.covers(name))
}

fn check_label(label: &str) -> Result<(), DnsNameError> {
    if label.is_empty() {
        return Err(DnsNameError::EmptyLabel);
    }
    if label.contains('*') {
        return Err(DnsNameError::Wildcard);
    }
    if label.len() > 63 {
        return Err(DnsNameError::LabelTooLong(label.into()));
    }
    let inner = label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    if !inner || label.starts_with('-') || label.ends_with('-') {
        return Err(DnsNameError::Label(label.into()));
    }
    Ok(())
}

impl fmt::Display for DnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for DnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DnsName({})", self.0)
    }
}

textual!(DnsName, DnsNameError);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_rules() {
        let longest = [&"a".repeat(63), &"b".repeat(63), &"c".repeat(63), &*"d".repeat(63)].join(".");
        for good in [
            "a",
            "example.org",
            "A-b.9",
            "*.example.org",
            "xn--bcher-kva.example",
            "1.2.3.4",
            "a_b._tcp",
            &longest,
        ] {
            assert_eq!(DnsName::parse(good).unwrap().as_str(), good);
        }
        for (bad, why) in [
            ("", DnsNameError::Empty),
            ("  ", DnsNameError::Empty),
            ("example.org.", DnsNameError::EmptyLabel),
            (".example.org", DnsNameError::EmptyLabel),
            ("a..b", DnsNameError::EmptyLabel),
            ("*.", DnsNameError::EmptyLabel),
            ("*", DnsNameError::Wildcard),
            ("*a.b", DnsNameError::Wildcard),
            ("a.*.b", DnsNameError::Wildcard),
            ("*.*.b", DnsNameError::Wildcard),
            ("-a.b", DnsNameError::Label("-a".into())),
            ("a-.b", DnsNameError::Label("a-".into())),
            ("bücher.example", DnsNameError::Label("bücher".into())),
            ("a b", DnsNameError::Label("a b".into())),
            (&"a".repeat(64), DnsNameError::LabelTooLong("a".repeat(64))),
            (&format!("{longest}.e"), DnsNameError::TooLong),
        ] {
            assert_eq!(DnsName::parse(bad), Err(why), "{bad}");
        }
    }

    #[test]
    fn a_wildcard_covers_one_label() {
        let names = |list: &[&str]| list.iter().map(|n| DnsName::parse(n).unwrap()).collect::<Vec<_>>();
        assert!(overlapping_wildcard(&names(&["a.example.org", "*.Example.org"])).is_some());
        assert!(overlapping_wildcard(&names(&["a.b.example.org", "*.example.org", "example.org"])).is_none());
        assert!(overlapping_wildcard(&names(&["*.example.org", "*.example.org"])).is_none());
    }
}
