//! What is promised in documents: that the tests they name exist, and what no narrower test can see.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use bonafide_tests::{Deployment, Settings};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn text(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// What stands between backticks in the last column of a document's tables.
fn named(document: &str) -> Vec<String> {
    let rows = document.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| behaviour"));
    let last = rows.map(|row| row.trim_end_matches(" |").rsplit(" | ").next().unwrap_or_default());
    last.flat_map(|cell| cell.split('`').skip(1).step_by(2)).map(str::to_owned).collect()
}

/// Whether a source has a test of this name: a function after the attribute, perhaps with others between.
fn has_test(source: &str, name: &str) -> bool {
    let function = format!("fn {name}(");
    let mut attributes = Vec::new();
    for line in source.lines().map(str::trim) {
        if line.starts_with("#[") {
            attributes.push(line);
        } else if line.trim_start_matches("async ").starts_with(&function) {
            return attributes.iter().any(|line| *line == "#[test]" || line.starts_with("#[tokio::test"));
        } else {
            attributes.clear();
        }
    }
    false
}

#[test]
fn each_behaviour_has_tests_that_exist() {
    let document = text("docs/reference/contract-tests.md");
    let recorded: BTreeSet<String> = text("tests/tests/it/differential/recordings/spire-1.15.3.json")
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .map(|answer| answer["shape"].as_str().unwrap().to_owned())
        .collect();
    let tests = named(&document);
    assert!(tests.len() > 200, "only {} tests are named", tests.len());
    let missing: Vec<String> = tests
        .into_iter()
        .filter(|test| match (test.strip_prefix("differential: "), test.split_once("::")) {
            (Some(shape), _) => !recorded.contains(shape),
            (None, Some((path, name))) => {
                !fs::read_to_string(root().join(path)).is_ok_and(|source| has_test(&source, name))
            }
            (None, None) => true,
        })
        .collect();
    assert!(missing.is_empty(), "named and not there:\n{}", missing.join("\n"));
    // Each behaviour has one, and no row was lost by its form.
    let rows = document.lines().filter(|line| line.starts_with('|') && !line.starts_with("|---"));
    for row in rows.filter(|row| !row.starts_with("| behaviour")) {
        assert!(row.ends_with("` |"), "no test in: {row}");
    }
}

/// The security advisories name a crate and a function.
#[test]
fn each_advisory_has_tests_that_exist() {
    let mut missing = Vec::new();
    let mut found = 0;
    for test in named(&text("docs/security-advisories.md")) {
        if test.contains("::") {
            continue; // A module, all of whose tests are meant.
        }
        found += 1;
        let places = ["agent", "identity", "pki", "proto", "runtime", "server"];
        let exists = places.iter().any(|place| {
            ["src", "tests"].iter().any(|folder| {
                sources(&root().join(place).join(folder))
                    .iter()
                    .any(|source| fs::read_to_string(source).is_ok_and(|source| has_test(&source, &test)))
            })
        });
        if !exists {
            missing.push(test);
        }
    }
    assert!(found > 20, "only {found} tests are named");
    assert!(missing.is_empty(), "named and not there: {missing:?}");
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

#[test]
fn sockets_have_the_modes_that_clients_count_on() {
    let deployment = Deployment::start(Settings::default()).unwrap();
    let mode = |path: &Path| fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777;
    for (socket, of_socket, of_folder) in [
        // For the group of the server, for everybody, for the group of the agent.
        (deployment.server_socket(), 0o770, 0o750),
        (deployment.workload_socket(), 0o777, 0o755),
        (deployment.admin_socket(), 0o770, 0o750),
    ] {
        let folder = socket.parent().unwrap();
        assert_eq!(
            (format!("{:o}", mode(&socket)), format!("{:o}", mode(folder))),
            (format!("{of_socket:o}"), format!("{of_folder:o}")),
            "{}",
            socket.display()
        );
    }
}
