//! `bonafide write`: the SVID, its key and the bundle as files for programs without an SDK.
//!
//! A program must never read a new certificate beside an old key. The three files live in a folder of their own
//! per rotation, and a symbolic link `current` moves from one to the next in one step; `svid.pem`, `key.pem` and
//! `bundle.pem` are links through it. Writing in place, as other helpers do, has a moment where they do not fit.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink};
use std::path::Path;

use bonafide_pki::pem;
use bonafide_proto::workload as api;
use serde_json::json;

use super::fetch;
use crate::args::WriteArguments;
use crate::connect::Sockets;
use crate::failure::Failure;
use crate::output::Output;

/// The link that names the folder in use.
const CURRENT: &str = "current";
const NAMES: [&str; 3] = ["svid.pem", "key.pem", "bundle.pem"];

pub(crate) async fn run(arguments: WriteArguments, to: &Sockets, out: &Output) -> Result<(), Failure> {
    let mut stream = fetch::x509_stream(to).await?;
    let what = "cannot fetch X.509-SVIDs";
    while let Some(response) = stream.message().await.map_err(Failure::refused(what))? {
        let svid = choose(&response, arguments.spiffe_id.as_deref())?;
        let chain = certificates(&svid.x509_svid)?;
        let roots = certificates(&svid.bundle)?;
        let key = pem::encode("PRIVATE KEY", &svid.x509_svid_key);
        write_set(&arguments.dir, &chain, &key, &roots)?;
        out.line(
            &format!("wrote {} to {}", svid.spiffe_id, arguments.dir.display()),
            &json!({ "spiffe_id": svid.spiffe_id, "folder": arguments.dir }),
        );
        if !arguments.watch {
            return Ok(());
        }
    }
    Err(Failure::Malformed("the agent ended the stream; the files stay as they are".to_owned()))
}

fn choose<'a>(response: &'a api::X509svidResponse, id: Option<&str>) -> Result<&'a api::X509svid, Failure> {
    response.svids.iter().find(|svid| id.is_none_or(|id| svid.spiffe_id == id)).ok_or_else(|| {
        Failure::Input(format!("this process is not entitled to {}", id.unwrap_or("any identity")))
    })
}

fn certificates(der: &[u8]) -> Result<String, Failure> {
    let certificates =
        bonafide_pki::split_certificates(der).map_err(|error| Failure::Malformed(error.to_string()))?;
    Ok(certificates.iter().map(|certificate| pem::encode("CERTIFICATE", certificate).to_string()).collect())
}

/// Replaces the three files in `folder` at once.
pub(crate) fn write_set(folder: &Path, chain: &str, key: &str, roots: &str) -> Result<(), Failure> {
    create_folder(folder)?;
    let fresh = tempfile::Builder::new().prefix("set-").tempdir_in(folder).map_err(Failure::file(folder))?;
    for (name, content) in NAMES.into_iter().zip([chain, key, roots]) {
        write_secret(&fresh.path().join(name), content.as_bytes())?;
    }
    sync(fresh.path())?;
    let current = folder.join(CURRENT);
    let old = fs::read_link(&current).ok();
    let fresh = fresh.keep();
    let target = Path::new(fresh.file_name().expect("a temporary folder has a name"));
    let staged = folder.join(format!(".{CURRENT}-{}", std::process::id()));
    let _ = fs::remove_file(&staged);
    symlink(target, &staged).map_err(Failure::file(&staged))?;
    fs::rename(&staged, &current).map_err(Failure::file(&current))?;
    for name in NAMES {
        let link = folder.join(name);
        if fs::read_link(&link).is_err() {
            let staged = folder.join(format!(".{name}-{}", std::process::id()));
            let _ = fs::remove_file(&staged);
            symlink(Path::new(CURRENT).join(name), &staged).map_err(Failure::file(&staged))?;
            fs::rename(&staged, &link).map_err(Failure::file(&link))?;
        }
    }
    sync(folder)?;
    // Who has the old files open keeps them; only our own folders are removed.
    if let Some(old) = old.filter(|old| old != target && old.to_string_lossy().starts_with("set-")) {
        let _ = fs::remove_dir_all(folder.join(old));
    }
    Ok(())
}

/// Writes a file that only its owner may read. A file that is there already is replaced, for its mode and its owner stay
/// when it is written to, and others may have it open.
pub(crate) fn write_secret(path: &Path, content: &[u8]) -> Result<(), Failure> {
    if fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file()) {
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let mut fresh = tempfile::NamedTempFile::new_in(folder).map_err(Failure::file(path))?;
        fresh.write_all(content).and_then(|()| fresh.as_file().sync_all()).map_err(Failure::file(path))?;
        fresh.persist(path).map_err(|error| Failure::file(path)(error.error))?;
        return sync(folder);
    }
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(path).map_err(Failure::file(path))?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(Failure::file(path))
}

/// Creates a folder that only its owner may enter; an existing one is left as it is.
pub(crate) fn create_folder(folder: &Path) -> Result<(), Failure> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(Failure::file(folder))
}

fn sync(folder: &Path) -> Result<(), Failure> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(Failure::file(folder))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_set_is_replaced_at_once_and_leaves_one_folder() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("svid");
        for round in 0..3 {
            let text = |name: &str| format!("{name} {round}");
            write_set(&path, &text("chain"), &text("key"), &text("roots")).unwrap();
            assert_eq!(fs::read_to_string(path.join("svid.pem")).unwrap(), text("chain"));
            assert_eq!(fs::read_to_string(path.join("key.pem")).unwrap(), text("key"));
            assert_eq!(fs::read_to_string(path.join("bundle.pem")).unwrap(), text("roots"));
        }
        let sets = fs::read_dir(&path)
            .unwrap()
            .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("set-"))
            .count();
        assert_eq!(sets, 1);
        let mode = fs::metadata(path.join("key.pem")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_secret_does_not_go_into_a_file_that_others_can_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key.pem");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let mut opened = File::open(&path).unwrap();
        write_secret(&path, b"secret").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read(&path).unwrap(), b"secret");
        let mut seen = String::new();
        std::io::Read::read_to_string(&mut opened, &mut seen).unwrap();
        assert_eq!(seen, "old", "who had the old file open reads the old file");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_reader_never_sees_files_of_two_rotations() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_owned();
        write_set(&path, "0", "0", "0").unwrap();
        let reader = {
            let path = path.clone();
            std::thread::spawn(move || {
                let mut seen = 0;
                while seen < 300 {
                    // A program that resolves the link once reads a consistent set.
                    let set = path.join(fs::read_link(path.join(CURRENT)).unwrap());
                    let Ok(chain) = fs::read_to_string(set.join("svid.pem")) else { continue };
                    let Ok(key) = fs::read_to_string(set.join("key.pem")) else { continue };
                    assert_eq!(chain, key);
                    seen += 1;
                }
            })
        };
        for round in 1..200 {
            let text = round.to_string();
            write_set(&path, &text, &text, &text).unwrap();
        }
        reader.join().unwrap();
    }
}
