//! The first command of the README.

use std::process::Command;

use bonafide_tests::programs::programs;

#[test]
fn the_demo_shows_rotations_and_leaves_nothing_behind() {
    let programs = programs().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(programs.workload.with_file_name("demo"))
        .env("TMPDIR", folder.path())
        .env("BONAFIDE_BIN_DIR", programs.workload.parent().unwrap())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{errors}");
    for part in ["3 rotations", "0 failed"] {
        assert!(text.contains(part), "{part:?} is missing in\n{text}");
    }
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert!(left.is_empty(), "the demo left {left:?}");
}
