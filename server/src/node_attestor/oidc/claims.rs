//! Where a claim is in a token, and what its value may be.

use std::fmt;

use serde_json::{Map, Value};

/// A claim: the name of one at the top, or a JSON pointer (RFC 6901) to one further in, such as
/// `/kubernetes.io/pod/name`. Names that begin with a slash can be reached by a pointer only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimPath {
    written: String,
    steps: Vec<String>,
}

/// Why a text is no path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClaimPathError {
    /// Nothing, or a name in between that is nothing.
    #[error("{0:?} has an empty name in it")]
    Empty(String),
    /// `~` stands for itself as `~0` and for a slash as `~1`.
    #[error("{0:?} has a ~ without 0 or 1 after it")]
    Escape(String),
    /// Deeper than any token.
    #[error("{0:?} has more than eight steps")]
    Deep(String),
}

impl ClaimPath {
    /// Reads a path.
    ///
    /// # Errors
    /// [`ClaimPathError`].
    pub fn parse(text: &str) -> Result<Self, ClaimPathError> {
        let steps: Vec<String> = match text.strip_prefix('/') {
            None => vec![text.to_owned()],
            Some(pointer) => {
                let step = |step: &str| {
                    let rest = step.replace("~0", "").replace("~1", "");
                    if rest.contains('~') {
                        return Err(ClaimPathError::Escape(text.to_owned()));
                    }
                    Ok(step.replace("~1", "/").replace("~0", "~"))
                };
                pointer.split('/').map(step).collect::<Result<_, _>>()?
            }
        };
        if steps.iter().any(String::is_empty) {
            return Err(ClaimPathError::Empty(text.to_owned()));
        }
        if steps.len() > 8 {
            return Err(ClaimPathError::Deep(text.to_owned()));
        }
        Ok(Self { written: text.to_owned(), steps })
    }

    /// The value there, if any.
    pub fn of<'a>(&self, claims: &'a Map<String, Value>) -> Option<&'a Value> {
        let (first, rest) = self.steps.split_first()?;
        rest.iter().try_fold(claims.get(first)?, |value, step| value.as_object()?.get(step))
    }
}

impl fmt::Display for ClaimPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
    }
}

/// A value as text: texts, whole numbers, true and false. Nothing else has one form only.
pub fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(value) => Some(value.to_string()),
        Value::Number(number) if !number.is_f64() => Some(number.to_string()),
        _ => None,
    }
}

/// The texts of a value, or of each in a list.
pub fn texts(value: &Value) -> Vec<String> {
    match value {
        Value::Array(list) => list.iter().filter_map(text).collect(),
        value => text(value).into_iter().collect(),
    }
}

/// A text in which `*` stands for any number of characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// Any text is one.
    pub fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// Whether the whole text fits. Takes at most as many steps as both are long, multiplied.
    pub fn matches(&self, text: &str) -> bool {
        let parts: Vec<&str> = self.0.split('*').collect();
        let [first, middle @ .., last] = &parts[..] else { return self.0 == text };
        let Some(mut rest) = text.strip_prefix(first) else { return false };
        for part in middle {
            // The first place is the best: it leaves the most for those that follow.
            match rest.find(part) {
                Some(at) => rest = &rest[at + part.len()..],
                None => return false,
            }
        }
        rest.len() >= last.len() && rest.ends_with(last)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn claims_are_found_at_the_top_and_further_in() {
        let claims = json!({
            "sub": "a", "https://x/y": "b", "kubernetes.io": {"pod": {"name": "c"}}, "a/b": {"~": "d"}, "n": 7, "list": ["x", 1, {}],
            "f": 1.5, "t": true
        });
        let claims = claims.as_object().unwrap();
        for (path, expected) in [
            ("sub", Some("a")),
            ("/sub", Some("a")),
            ("https://x/y", Some("b")),
            ("/kubernetes.io/pod/name", Some("c")),
            ("/a~1b/~0", Some("d")),
            ("n", Some("7")),
            ("t", Some("true")),
            ("f", None),
            ("list", None),
            ("kubernetes.io", None),
            ("/kubernetes.io/pod/name/x", None),
            ("none", None),
        ] {
            let value = ClaimPath::parse(path).unwrap().of(claims).and_then(text);
            assert_eq!(value.as_deref(), expected, "{path}");
        }
        assert_eq!(texts(&claims["list"]), ["x", "1"]);
        for wrong in ["", "/", "/a//b", "/a~2", "/~", "/1/2/3/4/5/6/7/8/9"] {
            assert!(ClaimPath::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_star_stands_for_anything() {
        for (pattern, text, fits) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("", "", true),
            ("*", "", true),
            ("a*", "ab/c", true),
            ("*:ref:refs/heads/main", "repo:o/r:ref:refs/heads/main", true),
            ("repo:o/*:ref:refs/heads/main", "repo:o/r:ref:refs/heads/main", true),
            ("repo:o/*:ref:refs/heads/main", "repo:o/r:ref:refs/heads/maine", false),
            ("repo:o/*", "repo:other/r", false),
            ("a*a", "a", false),
            ("a*b*c", "abbc", true),
            ("a*b*c", "acbb", false),
            ("**", "x", true),
        ] {
            assert_eq!(Pattern::new(pattern).matches(text), fits, "{pattern} {text}");
        }
    }
}
