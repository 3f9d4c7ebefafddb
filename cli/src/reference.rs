//! The command line's documents, made from the grammar itself: manual pages, and `docs/reference/cli.md`, which a
//! test compares with what the code says.

use std::path::Path;

use clap::{Command, CommandFactory};

use crate::args::Arguments;
use crate::failure::Failure;

/// Writes one manual page for each command into `directory`.
pub(crate) fn write_man_pages(directory: &Path) -> Result<(), Failure> {
    std::fs::create_dir_all(directory).map_err(Failure::file(directory))?;
    clap_mangen::generate_to(Arguments::command(), directory).map_err(Failure::file(directory))
}

/// The reference as Markdown.
#[cfg_attr(
    not(test),
    expect(dead_code, reason = "the document is committed; the test that compares it calls this")
)]
fn markdown() -> String {
    let mut command = Arguments::command().term_width(100);
    command.build();
    let mut text = String::from("# The `bonafide` command\n\nMade from the program's own help texts.\n");
    section(&mut command, &mut text);
    text
}

fn section(command: &mut Command, text: &mut String) {
    let name = command.get_bin_name().unwrap_or_else(|| command.get_name()).to_owned();
    let help = command.render_long_help().to_string();
    let lines: Vec<&str> = help.lines().map(str::trim_end).collect();
    text.push_str(&format!("\n## `{name}`\n\n```text\n{}\n```\n", lines.join("\n").trim_end()));
    let names: Vec<String> = command
        .get_subcommands()
        .map(|sub| sub.get_name().to_owned())
        .filter(|name| name != "help")
        .collect();
    for name in names {
        if let Some(sub) = command.find_subcommand_mut(&name) {
            section(sub, text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn document_says_what_the_code_does() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/cli.md");
        let text = markdown();
        if std::env::var_os("BONAFIDE_BLESS").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &text).unwrap();
        }
        let committed = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            committed == text,
            "docs/reference/cli.md is out of date: run the test with BONAFIDE_BLESS=1"
        );
    }

    #[test]
    fn every_command_has_a_manual_page() {
        let folder = tempfile::tempdir().unwrap();
        write_man_pages(folder.path()).unwrap();
        for name in ["bonafide.1", "bonafide-entry-create.1", "bonafide-fetch-jwt.1"] {
            assert!(folder.path().join(name).exists(), "{name}");
        }
    }
}
