//! The few header fields that bundle endpoints and their readers exchange: entity tags (RFC 9110, section 8.8.3) and
//! the preference `wait` (RFC 7240, section 4.3).

use std::time::Duration;

/// Whether `If-None-Match` names `tag` (with its quotes). Tags are compared weakly, as that field asks.
pub fn none_match<'a>(fields: impl IntoIterator<Item = &'a str>, tag: &str) -> bool {
    let opaque = |text: &str| text.trim().strip_prefix("W/").unwrap_or(text.trim()).to_owned();
    let wanted = opaque(tag);
    // A comma inside of a tag only splits tags that are not ours: those have none.
    fields
        .into_iter()
        .flat_map(|field| field.split(','))
        .any(|one| one.trim() == "*" || opaque(one) == wanted)
}

/// An entity tag as a peer sent it, when it is short and of the right form: only then is it sent back.
pub fn entity_tag(field: &str) -> Option<String> {
    let field = field.trim();
    let opaque = field.strip_prefix("W/").unwrap_or(field);
    let inner = opaque.strip_prefix('"')?.strip_suffix('"')?;
    let good = inner.len() <= 128 && inner.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"');
    good.then(|| field.to_owned())
}

/// The `wait` among the preferences, in whole seconds; the first one counts. Those that cannot be read are as good as
/// absent.
pub fn wait_preference<'a>(fields: impl IntoIterator<Item = &'a str>) -> Option<Duration> {
    let preference = fields.into_iter().flat_map(|field| field.split(',')).find_map(|preference| {
        let token = preference.split(';').next()?;
        let (name, value) = token.split_once('=')?;
        name.trim().eq_ignore_ascii_case("wait").then(|| value.trim().trim_matches('"').to_owned())
    })?;
    preference.parse::<u32>().ok().map(|seconds| Duration::from_secs(u64::from(seconds)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn tags_are_found_in_lists() {
        for (field, found) in [
            ("\"a1\"", true),
            ("W/\"a1\"", true),
            ("\"x\", \"a1\"", true),
            ("*", true),
            ("\"a2\"", false),
            ("a1", false),
            ("", false),
        ] {
            assert_eq!(none_match([field], "\"a1\""), found, "{field}");
        }
        assert!(none_match(["\"x\"", "\"a1\""], "\"a1\""));
    }

    #[test]
    fn only_tags_of_the_right_form_are_kept() {
        for good in ["\"\"", "\"a\"", "W/\"a,b\"", " \"a\" "] {
            assert_eq!(entity_tag(good).as_deref(), Some(good.trim()));
        }
        let long = format!("\"{}\"", "x".repeat(129));
        for bad in ["", "a", "\"a", "\"a\"b\"", "\"a b\"", "\"a\r\n\"", "\"é\"", &long] {
            assert_eq!(entity_tag(bad), None, "{bad}");
        }
    }

    #[test]
    fn preferences() {
        for (fields, seconds) in [
            (&["wait=20"][..], Some(20)),
            (&["respond-async, Wait = \"5\"; x=1"], Some(5)),
            (&["respond-async", "wait=7"], Some(7)),
            (&["wait=1, wait=2"], Some(1)),
            (&["wait"], None),
            (&["wait=-1"], None),
            (&["wait=99999999999"], None),
            (&["waiting=3"], None),
            (&[], None),
        ] {
            let found = wait_preference(fields.iter().copied());
            assert_eq!(found, seconds.map(Duration::from_secs), "{fields:?}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics_and_what_is_kept_matches_itself(text in "[ -~]{0,40}") {
            let _ = wait_preference([&text[..]]);
            let _ = none_match([&text[..]], "\"a\"");
            if let Some(tag) = entity_tag(&text) && !tag.contains(',') {
                prop_assert!(none_match([&tag[..]], &tag));
            }
        }
    }
}
