//! Where the programs under test are.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The programs of one build.
#[derive(Clone, Debug)]
pub struct Programs {
    /// `bonafide-server`
    pub server: PathBuf,
    /// `bonafide-agent`
    pub agent: PathBuf,
    /// `bonafide`
    pub cli: PathBuf,
    /// A workload that speaks mutual TLS with its SVID.
    pub workload: PathBuf,
}

/// The programs, built when they are out of date. `BONAFIDE_BIN_DIR` names a folder with programs that were built
/// before; then nothing is built.
///
/// # Errors
/// When the build fails, or a program is missing.
pub fn programs() -> Result<&'static Programs, String> {
    static FOUND: OnceLock<Result<Programs, String>> = OnceLock::new();
    FOUND.get_or_init(find).as_ref().map_err(Clone::clone)
}

fn find() -> Result<Programs, String> {
    let folder = match std::env::var_os("BONAFIDE_BIN_DIR") {
        Some(folder) => PathBuf::from(folder),
        None => build()?,
    };
    let program = |name: &str| {
        let path = folder.join(name);
        if path.is_file() { Ok(path) } else { Err(format!("{} is missing", path.display())) }
    };
    Ok(Programs {
        server: program("bonafide-server")?,
        agent: program("bonafide-agent")?,
        cli: program("bonafide")?,
        workload: program("workload")?,
    })
}

/// Builds into the folder that this program was built into, with the same profile.
fn build() -> Result<PathBuf, String> {
    let own = std::env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
    let folder =
        own.parent().map(|folder| if folder.ends_with("deps") { folder.join("..") } else { folder.into() });
    let folder =
        folder.and_then(|folder| folder.canonicalize().ok()).ok_or("cannot find the build's folder")?;
    let profile = match folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev".to_owned(),
        Some(name) => name.to_owned(),
    };
    let target = folder.parent().ok_or("cannot find the target folder")?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let status = Command::new(cargo)
        .args(["build", "--quiet", "--profile", &profile, "--target-dir"])
        .arg(target)
        .args([
            "-p",
            "bonafide-server",
            "-p",
            "bonafide-agent",
            "-p",
            "bonafide-cli",
            "-p",
            "bonafide-tests",
            "--bins",
        ])
        .current_dir(workspace)
        .status()
        .map_err(|error| format!("cannot run cargo: {error}"))?;
    if status.success() { Ok(folder) } else { Err(format!("the build failed: {status}")) }
}
