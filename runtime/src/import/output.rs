//! The written file.

use std::fmt::Write as _;

use toml::Value as Toml;

use super::{Remark, Setting, Table, Translation};
use crate::config::hcl::{Kind, Value};

/// Columns of a comment.
const WIDTH: usize = 110;
/// Characters of a value in a comment.
const SHOWN: usize = 240;

/// The configuration, tables in the order of our reference.
pub(super) fn write(table: &Table, file: &str, settings: &[Setting], translation: &Translation) -> String {
    let mut text = String::new();
    comment(&mut text, &format!("Written by `{} import` from SPIRE's {file}.", table.program));
    let order = (table.order)();
    let rank = |key: &str| order.iter().position(|known| *known == key).unwrap_or(usize::MAX);
    let mut sorted: Vec<&Setting> = settings.iter().collect();
    sorted.sort_by_key(|setting| rank(&setting.key));
    let mut heads: Vec<&str> = vec![""];
    for setting in &sorted {
        let (head, _) = split(&setting.key);
        if !heads.contains(&head) {
            heads.push(head);
        }
    }
    for head in heads {
        if !head.is_empty() {
            let _ = write!(text, "\n[{head}]\n");
        }
        for setting in sorted.iter().filter(|setting| split(&setting.key).0 == head) {
            if let Some(why) = &setting.comment {
                comment(&mut text, why);
            }
            let _ = writeln!(text, "{} = {}", split(&setting.key).1, literal(&setting.value));
        }
    }
    remarks(&mut text, "Not carried over. What to do about it:", &translation.left);
    remarks(&mut text, "Carried over, but a little different from SPIRE:", &translation.notes);
    remarks(&mut text, "Without counterpart here; nothing is lost:", &translation.moot);
    text
}

fn split(key: &str) -> (&str, &str) {
    key.rsplit_once('.').unwrap_or(("", key))
}

fn literal(value: &Toml) -> String {
    match value {
        // As an inline table: the key itself is what is meant.
        Toml::Table(table) if table.is_empty() => "{}".to_owned(),
        value => value.to_string(),
    }
}

fn remarks(text: &mut String, title: &str, remarks: &[Remark]) {
    if remarks.is_empty() {
        return;
    }
    text.push('\n');
    comment(text, title);
    for remark in remarks {
        let place = remark.place.map(|place| format!(" ({}:{place})", remark.file)).unwrap_or_default();
        let value = remark.value.as_ref().map(|value| format!(" = {value}")).unwrap_or_default();
        comment(text, "");
        comment(text, &format!("  {}{value}{place}", remark.setting));
        comment(text, &format!("    {}", remark.why));
    }
}

/// A comment of one or more lines; what comes from outside cannot leave it.
fn comment(text: &mut String, words: &str) {
    let indent: String = words.chars().take_while(|c| *c == ' ').collect();
    let clean: String = words.trim().chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    let mut line = format!("# {indent}");
    let empty = line.chars().count();
    let mut used = empty;
    for word in clean.split(' ') {
        let length = word.chars().count();
        if used > empty && used + 1 + length > WIDTH {
            let _ = writeln!(text, "{}", line.trim_end());
            line = format!("# {indent}");
            used = empty;
        }
        if used > empty {
            line.push(' ');
            used += 1;
        }
        line.push_str(word);
        used += length;
    }
    let _ = writeln!(text, "{}", line.trim_end());
}

/// Whether a key's value must not be repeated.
pub(super) fn is_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    ["token", "secret", "password", "connection_string", "access_key", "passphrase", "credential", "pin"]
        .iter()
        .any(|word| key.contains(word))
        // Paths of files are no secrets.
        && !["_path", "_file", "_dir", "_ttl"].iter().any(|end| key.ends_with(end))
}

/// A value on one line, shortened, without secrets.
pub(super) fn shown(value: &Value, secret: bool) -> String {
    let mut text = String::new();
    show(value, secret, &mut text);
    if text.chars().count() > SHOWN {
        text = text.chars().take(SHOWN).collect();
        text.push('…');
    }
    text
}

fn show(value: &Value, secret: bool, text: &mut String) {
    match &value.kind {
        Kind::Text(_) | Kind::Integer(_) | Kind::Float(_) if secret => text.push_str("(a secret)"),
        Kind::Text(words) => {
            let _ = write!(text, "{words:?}");
        }
        Kind::Integer(number) => {
            let _ = write!(text, "{number}");
        }
        Kind::Float(number) => {
            let _ = write!(text, "{number}");
        }
        Kind::Bool(value) => {
            let _ = write!(text, "{value}");
        }
        Kind::List(values) => {
            text.push('[');
            for (at, value) in values.iter().enumerate() {
                text.push_str(if at > 0 { ", " } else { "" });
                show(value, secret, text);
            }
            text.push(']');
        }
        Kind::Object(object) => {
            text.push_str("{ ");
            for item in &object.items {
                let block = if matches!(item.value.kind, Kind::Object(_)) { " " } else { " = " };
                let _ = write!(text, "{}{block}", item.key);
                show(&item.value, secret || is_secret(&item.key), text);
                text.push(' ');
            }
            text.push('}');
        }
    }
}
