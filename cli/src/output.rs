//! What a command prints: a table for people, or one JSON document for scripts.

use std::io::Write;

use clap::ValueEnum;
use comfy_table::{Table, presets};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// The form of the output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Aligned columns for people.
    #[default]
    Table,
    /// One JSON document for scripts.
    Json,
}

/// Prints in the chosen form.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    format: Format,
}

impl Output {
    /// Prints in `format`.
    pub(crate) fn new(format: Format) -> Self {
        Self { format }
    }

    /// Whether scripts read the output.
    pub(crate) fn is_json(self) -> bool {
        self.format == Format::Json
    }

    /// Prints rows under `header`, or `json`.
    pub(crate) fn rows(self, header: &[&str], rows: Vec<Vec<String>>, json: &Value) {
        if self.is_json() {
            self.json(json);
        } else {
            emit(&format!("{}\n", table(header, rows)));
        }
    }

    /// Prints the fields of one thing, or `json`.
    pub(crate) fn fields(self, fields: &[(&str, String)], json: &Value) {
        if self.is_json() {
            self.json(json);
            return;
        }
        let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        for (name, value) in fields {
            emit(&format!("{name:width$}  {value}\n"));
        }
    }

    /// Prints one line, or `json`.
    pub(crate) fn line(self, text: &str, json: &Value) {
        if self.is_json() {
            self.json(json);
        } else {
            emit(&format!("{text}\n"));
        }
    }

    fn json(self, value: &Value) {
        emit(&format!("{value:#}\n"));
    }
}

/// Writes to standard output. Who reads may stop early, as `head` does: then there is nobody to tell, and the command
/// ends as such commands end.
pub(crate) fn emit(text: &str) {
    let mut out = std::io::stdout().lock();
    if let Err(error) = out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        if error.kind() != std::io::ErrorKind::BrokenPipe {
            eprintln!("error: cannot write the output: {error}");
        }
        std::process::exit(1);
    }
}

fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.iter().map(|name| name.to_uppercase()));
    table.add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

/// A moment as RFC 3339 text; "never" for 0, which is how the wire writes "no end".
pub(crate) fn moment(unix_seconds: i64) -> String {
    if unix_seconds == 0 {
        return "never".to_owned();
    }
    OffsetDateTime::from_unix_timestamp(unix_seconds)
        .ok()
        .and_then(|moment| moment.format(&Rfc3339).ok())
        .unwrap_or_else(|| unix_seconds.to_string())
}

/// A moment with the time left until it, as people read it.
pub(crate) fn moment_and_left(unix_seconds: i64) -> String {
    if unix_seconds == 0 {
        return "never".to_owned();
    }
    let left = unix_seconds - OffsetDateTime::now_utc().unix_timestamp();
    let text = moment(unix_seconds);
    if left < 0 { format!("{text} (expired)") } else { format!("{text} (in {})", span(left)) }
}

/// Seconds in the two largest units.
pub(crate) fn span(seconds: i64) -> String {
    let (days, hours, minutes, rest) =
        (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{rest}s"),
        (0, 0, _) => format!("{minutes}m{rest:02}s"),
        (0, _, _) => format!("{hours}h{minutes:02}m"),
        _ => format!("{days}d{hours:02}h"),
    }
}

/// `text`, or "-" where there is none, so that columns stay readable and splittable.
pub(crate) fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_readable() {
        assert_eq!(moment(0), "never");
        assert_eq!(moment(1_700_000_000), "2023-11-14T22:13:20Z");
        assert_eq!(moment(i64::MAX), i64::MAX.to_string());
        assert!(moment_and_left(1).ends_with("(expired)"));
    }

    #[test]
    fn spans_use_two_units() {
        assert_eq!(span(7), "7s");
        assert_eq!(span(67), "1m07s");
        assert_eq!(span(3_600 + 300), "1h05m");
        assert_eq!(span(2 * 86_400 + 3_600), "2d01h");
    }
}
