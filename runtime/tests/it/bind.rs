use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use bonafide_runtime::listener::{ListenerError, bind_unix};

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).expect("exists").permissions().mode() & 0o7777
}

fn names(folder: &Path) -> Vec<String> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn folders_and_sockets_get_their_modes_whatever_the_umask() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a/b/api.sock");
    let bound = bind_unix(&path, 0o777, 0o750).unwrap();
    assert_eq!((mode(&path), mode(&folder.path().join("a/b"))), (0o777, 0o750));
    assert_eq!(names(&folder.path().join("a/b")), ["api.sock"], "a temporary name was left behind");
    drop(bound);
    assert!(!path.exists());
    // A folder that exists keeps its mode.
    drop(bind_unix(&path, 0o770, 0o755).unwrap());
    assert_eq!(mode(&folder.path().join("a/b")), 0o750);
}

#[test]
fn a_live_server_keeps_its_socket() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api.sock");
    let first = bind_unix(&path, 0o777, 0o755).unwrap();
    let error = bind_unix(&path, 0o777, 0o755).unwrap_err();
    assert!(matches!(error, ListenerError::AlreadyServed { .. }), "{error}");
    assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    UnixStream::connect(&path).expect("the first still serves");
    assert_eq!(names(folder.path()), ["api.sock"]);
    drop(first);
}

#[test]
fn a_socket_that_nobody_serves_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api.sock");
    drop(UnixListener::bind(&path).unwrap());
    let stale = fs::symlink_metadata(&path).unwrap().ino();
    let bound = bind_unix(&path, 0o777, 0o755).unwrap();
    assert_ne!(fs::symlink_metadata(&path).unwrap().ino(), stale);
    UnixStream::connect(&path).expect("served");
    drop(bound);
}

#[test]
fn what_is_no_socket_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api.sock");
    fs::write(&path, "precious").unwrap();
    let error = bind_unix(&path, 0o777, 0o755).unwrap_err();
    assert!(matches!(error, ListenerError::NotASocket { .. }), "{error}");
    assert_eq!(fs::read(&path).unwrap(), b"precious");
}

#[test]
fn a_path_that_is_too_long_is_named_with_its_limit() {
    let folder = tempfile::tempdir().unwrap();
    let room = 107 - folder.path().as_os_str().len() - 1;
    let fits = folder.path().join("s".repeat(room));
    drop(bind_unix(&fits, 0o777, 0o755).expect("107 bytes fit"));
    let path = folder.path().join("s".repeat(room + 1));
    let error = bind_unix(&path, 0o777, 0o755).unwrap_err();
    assert!(matches!(error, ListenerError::PathTooLong { length: 108, limit: 107, .. }), "{error}");
    // With a short name the temporary one decides, and this is said before anything is made.
    let deep = folder.path().join("d".repeat(room - 4)).join("sock");
    let error = bind_unix(&deep, 0o777, 0o755).unwrap_err();
    assert!(matches!(error, ListenerError::PathTooLong { limit: 105, .. }), "{error}");
    assert_eq!(names(folder.path()), Vec::<String>::new());
}

#[test]
fn dropping_removes_only_what_is_still_ours() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api.sock");
    let first = bind_unix(&path, 0o777, 0o755).unwrap();
    fs::remove_file(&path).unwrap();
    let second = bind_unix(&path, 0o777, 0o755).unwrap();
    drop(first);
    UnixStream::connect(&path).expect("the second's socket is still there");
    drop(second);
    assert!(!path.exists());
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), "").unwrap();
    let error = bind_unix(folder.path().join("file/below/api.sock"), 0o777, 0o755).unwrap_err().to_string();
    assert!(error.contains("create the folder") && error.contains("file"), "{error}");
}

/// Whoever made the folder first could put another socket in the place of ours.
#[test]
fn folders_that_somebody_else_may_have_made_first_are_refused() {
    if !rustix::process::geteuid().is_root() {
        eprintln!(
            "SKIPPED: folders_that_somebody_else_may_have_made_first_are_refused: needs root to give files away"
        );
        return;
    }
    let open = tempfile::tempdir().unwrap();
    fs::set_permissions(open.path(), fs::Permissions::from_mode(0o1777)).unwrap();
    let foreign = open.path().join("foreign");
    fs::create_dir(&foreign).unwrap();
    std::os::unix::fs::chown(&foreign, Some(12345), None).unwrap();
    for path in ["foreign/api.sock", "foreign/public/api.sock"] {
        let error = bind_unix(open.path().join(path), 0o777, 0o755).unwrap_err();
        assert!(matches!(error, ListenerError::ForeignFolder { owner: 12345, .. }), "{error}");
        assert!(error.to_string().contains(foreign.to_str().unwrap()), "{error}");
    }
    // A link counts for what it is and not for what it leads to.
    let own = open.path().join("own");
    fs::create_dir(&own).unwrap();
    let link = open.path().join("link");
    std::os::unix::fs::symlink(&own, &link).unwrap();
    std::os::unix::fs::lchown(&link, Some(12345), None).unwrap();
    let error = bind_unix(link.join("api.sock"), 0o777, 0o755).unwrap_err();
    assert!(matches!(error, ListenerError::ForeignFolder { .. }), "{error}");
    drop(bind_unix(own.join("api.sock"), 0o777, 0o755).unwrap());
    drop(bind_unix(open.path().join("new/public/api.sock"), 0o777, 0o755).unwrap());
    // Where only its owner may write, a folder of somebody else is its owner's choice.
    fs::set_permissions(open.path(), fs::Permissions::from_mode(0o755)).unwrap();
    drop(bind_unix(foreign.join("api.sock"), 0o777, 0o755).unwrap());
}
