//! The command around the translation.

use std::fs::OpenOptions;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::{Remark, Table, translate};
use crate::BoxError;
use crate::config::hcl;

/// What was asked for.
#[derive(Clone, Debug)]
pub struct Request {
    /// SPIRE's file; `-` is standard input.
    pub input: PathBuf,
    /// The file to write, which must not exist; standard output when absent.
    pub output: Option<PathBuf>,
    /// Replace `$NAME` and `${NAME}` first, as SPIRE does under `-expandEnv`.
    pub expand_env: bool,
    /// Only report.
    pub check: bool,
}

/// How it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// Everything was carried.
    Whole,
    /// Something was not; the report says what.
    Partly,
}

impl From<Done> for ExitCode {
    fn from(done: Done) -> Self {
        match done {
            Done::Whole => Self::SUCCESS,
            // 1 is a failure and 2 a wrong command line.
            Done::Partly => Self::from(3),
        }
    }
}

/// Translates one file and reports on standard error.
///
/// # Errors
/// The input cannot be read or is wrong, with every mistake in it; the output cannot be written.
pub fn run(table: &Table, request: &Request) -> Result<Done, BoxError> {
    let name = request.input.display().to_string();
    let name = if name == "-" { "standard input".to_owned() } else { name };
    let mut text = read(&request.input).map_err(|error| format!("{name}: {error}"))?;
    if request.expand_env {
        let lookup = |name: &str| std::env::var(name).ok();
        let (expanded, unknown) = hcl::expand_environment(&text, lookup)
            .ok_or_else(|| format!("{name}: larger than {} bytes with the environment", hcl::MAX_BYTES))?;
        for variable in unknown {
            eprintln!("{name}: the environment has no {variable}; it is taken as empty, as SPIRE does");
        }
        text = expanded;
    }
    let translation = translate(table, &name, &text, &read).map_err(|mistakes| {
        let lines: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
        match lines.as_slice() {
            [one] => one.clone(),
            lines => format!("{} mistakes\n  {}", lines.len(), lines.join("\n  ")),
        }
    })?;
    if !request.check {
        match &request.output {
            Some(path) => write(path, &translation.text)
                .map_err(|error| format!("{} cannot be written: {error}", path.display()))?,
            None => print(&translation.text)?,
        }
    }
    report("not carried", &translation.left);
    report("note", &translation.notes);
    eprintln!(
        "{name}: {} settings carried over, {} not, {} without counterpart",
        translation.carried,
        translation.left.len(),
        translation.moot.len()
    );
    Ok(if translation.left.is_empty() { Done::Whole } else { Done::Partly })
}

fn report(what: &str, remarks: &[Remark]) {
    for Remark { file, place, setting, why, .. } in remarks {
        match place {
            Some(place) => eprintln!("{file}:{place}: {what}: {setting}: {why}"),
            None => eprintln!("{file}: {what}: {setting}: {why}"),
        }
    }
}

/// At most what the reader takes, and one byte that makes it say so.
fn read(path: &Path) -> io::Result<String> {
    let limit = u64::try_from(hcl::MAX_BYTES).unwrap_or(u64::MAX).saturating_add(1);
    let mut text = String::new();
    if path == Path::new("-") {
        io::stdin().lock().take(limit).read_to_string(&mut text)?;
    } else {
        std::fs::File::open(path)?.take(limit).read_to_string(&mut text)?;
    }
    Ok(text)
}

/// A join token may be in it, so it is its owner's alone. What is there is not replaced.
fn write(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// Who reads may stop early, as `head` does.
fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}
