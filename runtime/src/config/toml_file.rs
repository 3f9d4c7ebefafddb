//! Reading TOML on past mistakes.
//!
//! The parsed tree keeps the byte range of every key and value. When deserialising fails, the failing range is looked
//! up, the innermost key or list item that holds it is noted and removed, and deserialising starts again. That ends:
//! each round removes something or stops.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue, Deserializer};

use super::Problem;

/// The value and the line of every key.
pub(super) fn parse<T: DeserializeOwned>(text: &str) -> Result<(T, BTreeMap<String, usize>), Vec<Problem>> {
    let (mut root, errors) = DeTable::parse_recoverable(text);
    let lines = Lines::new(text);
    if !errors.is_empty() {
        let mut problems: Vec<_> = errors
            .iter()
            .map(|error| Problem {
                key: String::new(),
                line: error.span().map(|span| lines.of(span.start)),
                message: error.message().to_owned(),
            })
            .collect();
        problems.sort_by_key(|problem| problem.line.unwrap_or(usize::MAX));
        return Err(problems);
    }
    let mut places = BTreeMap::new();
    index(root.get_ref(), "", &mut places);

    let mut problems: Vec<Problem> = Vec::new();
    let mut removed: BTreeSet<String> = BTreeSet::new();
    loop {
        let error = match T::deserialize(Deserializer::from(root.clone())) {
            Ok(value) if problems.is_empty() => {
                let keys = places.into_iter().map(|(start, path)| (path, lines.of(start))).collect();
                return Ok((value, keys));
            }
            Ok(_) => break,
            Err(error) => error,
        };
        let message = error.message().to_owned();
        let line = error.span().map(|span| lines.of(span.start));
        let missing = missing_field(&message);
        let place = error.span().and_then(|span| remove(root.get_mut(), &span, missing.is_some()));
        // The path as it was before anything was removed.
        let path = place.and_then(|start| places.get(&start)).cloned();
        if let Some(field) = missing {
            let key = join(path.as_deref().unwrap_or_default(), field);
            // A field that was taken out because of its own mistake has been reported as such.
            if !removed.contains(&key) {
                problems.push(Problem {
                    key,
                    line: line.filter(|_| path.is_some()),
                    message: "is required".into(),
                });
            }
            // What lacked the field is taken out, too, so that reading can go on beside it.
            match path {
                Some(path) => removed.insert(path),
                None => break,
            };
        } else {
            let key = path.clone().unwrap_or_default();
            problems.push(Problem { key, line: line.filter(|_| path.is_some()), message: readable(message) });
            match path {
                Some(path) => removed.insert(path),
                None => break,
            };
        }
    }
    problems.sort_by_key(|problem| problem.line.unwrap_or(usize::MAX));
    Err(problems)
}

fn missing_field(message: &str) -> Option<&str> {
    message.strip_prefix("missing field `")?.strip_suffix('`')
}

fn readable(message: String) -> String {
    match message.strip_prefix("unknown field `").and_then(|rest| rest.split_once('`')) {
        Some((_, rest)) => format!("unknown key{rest}"),
        None => message,
    }
}

fn join(parent: &str, key: &str) -> String {
    if parent.is_empty() { key.to_owned() } else { format!("{parent}.{key}") }
}

/// The path of each key and list item by the offset at which it starts.
fn index(table: &DeTable<'_>, parent: &str, places: &mut BTreeMap<usize, String>) {
    for (key, value) in table {
        let path = join(parent, key.get_ref());
        index_value(value, &path, places);
        places.insert(key.span().start, path);
    }
}

fn index_value(value: &Spanned<DeValue<'_>>, path: &str, places: &mut BTreeMap<usize, String>) {
    match value.get_ref() {
        DeValue::Table(table) => index(table, path, places),
        DeValue::Array(array) => {
            for (position, value) in array.iter().enumerate() {
                let path = format!("{path}[{position}]");
                index_value(value, &path, places);
                places.insert(value.span().start, path);
            }
        }
        _ => {}
    }
}

/// Removes the innermost key or item that holds `span`, or, if `whole`, whose value is exactly there. Returns where it
/// started.
fn remove(table: &mut DeTable<'_>, span: &Range<usize>, whole: bool) -> Option<usize> {
    if let Some(start) = table.iter_mut().find_map(|(_, value)| remove_inside(value, span, whole)) {
        return Some(start);
    }
    let (key, start) = table
        .iter()
        .find(|(key, value)| {
            if whole { value.span() == *span } else { holds(&key.span(), span) || holds(&value.span(), span) }
        })
        .map(|(key, _)| (key.get_ref().clone().into_owned(), key.span().start))?;
    table.remove(key.as_str());
    Some(start)
}

fn remove_inside(value: &mut Spanned<DeValue<'_>>, span: &Range<usize>, whole: bool) -> Option<usize> {
    match value.get_mut() {
        DeValue::Table(table) => remove(table, span, whole),
        DeValue::Array(array) => remove_item(array, span, whole),
        _ => None,
    }
}

fn remove_item(array: &mut DeArray<'_>, span: &Range<usize>, whole: bool) -> Option<usize> {
    if let Some(start) = array.iter_mut().find_map(|value| remove_inside(value, span, whole)) {
        return Some(start);
    }
    let found =
        |value: &Spanned<DeValue<'_>>| if whole { value.span() == *span } else { holds(&value.span(), span) };
    let index = array.iter().position(found)?;
    let start = array.get(index)?.span().start;
    let kept =
        std::mem::replace(array, DeArray::new()).into_iter().enumerate().filter(|(at, _)| *at != index);
    *array = kept.map(|(_, value)| value).collect();
    Some(start)
}

fn holds(outer: &Range<usize>, inner: &Range<usize>) -> bool {
    outer.start <= inner.start && inner.end <= outer.end && !outer.is_empty()
}

/// Byte offsets to line numbers.
struct Lines(Vec<usize>);

impl Lines {
    fn new(text: &str) -> Self {
        Self(text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at).collect())
    }

    fn of(&self, offset: usize) -> usize {
        self.0.partition_point(|newline| *newline < offset) + 1
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::config::HumanDuration;

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Config {
        server: Server,
        #[serde(default)]
        plugins: Vec<Plugin>,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Server {
        port: u16,
        #[serde(default)]
        ttl: HumanDuration,
        #[serde(default)]
        level: Level,
    }

    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(rename_all = "lowercase")]
    enum Level {
        #[default]
        Info,
        Debug,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Plugin {
        name: String,
    }

    fn problems(text: &str) -> Vec<String> {
        parse::<Config>(text).unwrap_err().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_good_file_is_read_with_its_lines() {
        let (config, lines) =
            parse::<Config>("[server]\nport = 1\nlevel = \"debug\"\n[[plugins]]\nname = \"a\"\n").unwrap();
        assert_eq!((config.server.port, config.server.level), (1, Level::Debug));
        assert_eq!(lines["server.port"], 2);
        assert_eq!(lines["plugins[0].name"], 5);
    }

    #[test]
    fn every_mistake_is_found_in_one_go() {
        let text = "
colour = 1
[server]
port = \"high\"
tll = \"1h\"
ttl = \"1 fortnight\"
level = \"loud\"
[[plugins]]
name = \"a\"
size = 3
[[plugins]]
name = 7
[extra]
a = 1
";
        let found = problems(text);
        assert_eq!(found.len(), 8, "{found:#?}");
        let starts = [
            "line 2: colour: unknown key",
            "line 4: server.port: ",
            "line 5: server.tll: unknown key",
            "line 6: server.ttl: ",
            "line 7: server.level: unknown variant `loud`",
            "line 10: plugins[0].size: unknown key",
            "line 12: plugins[1].name: ",
            "line 13: extra: unknown key",
        ];
        for (line, start) in found.iter().zip(starts) {
            assert!(line.starts_with(start), "{line:?} does not start with {start:?}");
        }
        assert!(found[1].contains("u16"), "{}", found[1]);
        assert!(found[2].contains("expected one of `port`, `ttl`, `level`"), "{}", found[2]);
    }

    #[test]
    fn a_missing_field_is_named_and_never_twice() {
        assert_eq!(problems("[server]\nttl = \"1h\"\n"), ["line 1: server.port: is required"]);
        assert_eq!(problems(""), ["server: is required"]);
        assert_eq!(problems("[server]\nport = true\n").len(), 1);
    }

    #[test]
    fn lists_keep_their_numbers_while_items_are_taken_out() {
        let text =
            "[server]\nport = 1\n[[plugins]]\nname = 1\n[[plugins]]\n[[plugins]]\nname = true\nx = 1\n";
        let found = problems(text);
        assert_eq!(found.len(), 4, "{found:#?}");
        for (line, start) in found.iter().zip([
            "line 4: plugins[0].name: invalid type",
            "line 5: plugins[1].name: is required",
            "line 7: plugins[2].name: invalid type",
            "line 8: plugins[2].x: unknown key",
        ]) {
            assert!(line.starts_with(start), "{line:?} does not start with {start:?}");
        }
    }

    #[test]
    fn every_syntax_error_is_listed() {
        let found = problems("a = \nb = 1\nc = = 2\n");
        assert!(found.len() >= 2, "{found:?}");
        assert!(found[0].starts_with("line 1: "), "{found:?}");
    }

    #[test]
    fn a_wrong_shape_ends() {
        assert_eq!(problems("server = 3\n").len(), 1);
        assert_eq!(problems("plugins = \"none\"\n[server]\nport = 1\n").len(), 1);
        assert!(!problems("server = [1, 2]\nplugins = [1, 2]\n").is_empty());
    }
}
