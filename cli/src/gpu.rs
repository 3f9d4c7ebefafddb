//! `bonafide gpu`: reference values out of signed files.

use std::io::Read as _;
use std::path::Path;

use bonafide_identity::Timestamp;
use bonafide_pki::evidence::rim;
use bonafide_pki::{TrustRoots, pem};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::args::GpuCommand;
use crate::failure::Failure;
use crate::output::emit;

pub(crate) fn run(command: GpuCommand) -> Result<(), Failure> {
    let GpuCommand::Reference { file, root, at } = command;
    let at = match at {
        None => OffsetDateTime::now_utc(),
        Some(text) => OffsetDateTime::parse(&text, &Rfc3339).map_err(|_| {
            Failure::Input(format!("{text:?} is not a moment: write it like 2024-03-01T00:00:00Z"))
        })?,
    };
    let mut certificates = Vec::new();
    for path in &root {
        let blocks = pem::decode_all(&read(path)?)
            .map_err(|error| Failure::Input(format!("{}: {error}", path.display())))?;
        certificates
            .extend(blocks.into_iter().filter(|(label, _)| label == "CERTIFICATE").map(|(_, der)| der));
    }
    let roots = TrustRoots::from_der(certificates.iter().map(Vec::as_slice))
        .map_err(|error| Failure::Input(format!("a root cannot be used: {error}")))?;
    let reference = rim::import(&read(&file)?, &roots, Timestamp::from_unix_seconds(at.unix_timestamp()))
        .map_err(|error| Failure::Input(format!("{}: {error}", file.display())))?;
    let text =
        serde_json::to_string_pretty(&reference).map_err(|error| Failure::Malformed(error.to_string()))?;
    emit(&(text + "\n"));
    Ok(())
}

/// A file of at most 1 MiB.
fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let failed = |error| Failure::File { path: path.to_owned(), error };
    let mut content = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(MAX_FILE + 1).read_to_end(&mut content).map_err(failed)?;
    if content.len() as u64 > MAX_FILE {
        return Err(Failure::Input(format!("{} is larger than {MAX_FILE} bytes", path.display())));
    }
    Ok(content)
}

const MAX_FILE: u64 = 1 << 20;
