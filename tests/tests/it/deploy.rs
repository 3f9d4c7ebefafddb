//! What `deploy/` offers: the chart, the plain manifests, the images, the units, the example registrations.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use bonafide_tests::programs::programs;
use bonafide_tests::{Deployment, Settings, skipped};

use crate::interop::{folder, has, run};

fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(path)
}

/// Every example can be imported as it is, and importing it again changes nothing.
#[test]
fn the_examples_can_be_imported() {
    let deployment = Deployment::start(Settings::default()).unwrap();
    let mut count = 0;
    for example in fs::read_dir(deploy("examples")).unwrap() {
        let path = example.unwrap().path();
        let path = path.to_str().unwrap();
        deployment.cli_text(&["entry", "import", path]).unwrap();
        let entries = deployment.cli(&["entry", "list"]).unwrap();
        deployment.cli_text(&["entry", "import", path]).unwrap();
        assert_eq!(deployment.cli(&["entry", "list"]).unwrap(), entries, "{path}");
        count += 1;
    }
    assert!(count >= 4, "{count} examples");
    let entries = deployment.cli(&["entry", "list"]).unwrap();
    for id in ["/train/llm/rank", "/infer/llm-70b", "/tenant-a/notebook", "/hpc/account/climate"] {
        assert!(entries.to_string().contains(id), "{id} is not in {entries}");
    }
}

/// The chart gives what Kubernetes takes, the daemons take the configurations in it, and the plain manifests are what
/// the chart gives.
#[test]
fn the_chart_gives_what_kubernetes_and_the_daemons_take() {
    let name = "the_chart_gives_what_kubernetes_and_the_daemons_take";
    if !has("python3", "--version") {
        return skipped(name, "no python3");
    }
    let place = tempfile::tempdir().unwrap();
    let environment = place.path().join("venv");
    if let Err(why) = run(Command::new("python3").args(["-m", "venv"]).arg(&environment)) {
        return skipped(name, &format!("no virtual environments: {why}"));
    }
    let install = run(Command::new(environment.join("bin/pip"))
        .args(["install", "--quiet", "--disable-pip-version-check", "-r"])
        .arg(folder("deploy").join("requirements.txt")));
    if let Err(why) = install {
        return skipped(name, &format!("packages cannot be installed: {why}"));
    }
    let out = place.path().join("out");
    fs::create_dir(&out).unwrap();
    let text = run(Command::new(environment.join("bin/python3"))
        .arg(folder("deploy").join("check.py"))
        .arg(deploy("helm/bonafide"))
        .arg(&out))
    .unwrap();
    assert!(text.contains("PASS"), "{text}");

    let mut configurations = 0;
    for file in fs::read_dir(&out).unwrap() {
        let path = file.unwrap().path();
        let file = path.file_name().unwrap().to_str().unwrap();
        let program = match () {
            () if file.ends_with(".server.toml") => &programs().unwrap().server,
            () if file.ends_with(".agent.toml") => &programs().unwrap().agent,
            () => continue,
        };
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, beside(&text, place.path())).unwrap();
        run(Command::new(program).args(["validate", "-c"]).arg(&path)).unwrap();
        configurations += 1;
    }
    assert_eq!(configurations, 9, "configurations in {}", out.display());

    let rendered = format!(
        "# What the chart gives with its defaults, for those who do not use Helm: set the trust domain and the name of the\n\
         # cluster, then `kubectl create namespace bonafide` and `kubectl apply -f` this file. Generated; a test compares.\n{}",
        fs::read_to_string(out.join("plain.yaml")).unwrap()
    );
    let kept = deploy("kubernetes/bonafide.yaml");
    if std::env::var_os("BONAFIDE_BLESS").is_some() {
        fs::write(&kept, &rendered).unwrap();
    }
    assert_eq!(
        fs::read_to_string(&kept).unwrap_or_default(),
        rendered,
        "run with BONAFIDE_BLESS=1 to renew it"
    );
}

/// The same configuration with the folders and files of a pod below `place`, where a test has them.
fn beside(text: &str, place: &Path) -> String {
    let mut text = text.to_owned();
    for (path, content) in [
        ("/etc/bonafide-bundle/bundle.crt", ""),
        ("/etc/bonafide-postgres/connection-string", "host=/run/postgresql user=bonafide"),
    ] {
        let own = place.join(path.trim_start_matches('/'));
        fs::create_dir_all(own.parent().unwrap()).unwrap();
        fs::write(&own, content).unwrap();
        text = text.replace(path, own.to_str().unwrap());
    }
    // A test is in no cluster.
    let config = place.join("kubeconfig");
    fs::write(&config, KUBECONFIG).unwrap();
    let named = |key: &str| format!("{key} = \"{}\"\n", config.display());
    text = text
        .replace("service_account_allow_list", &(named("kube_config_file") + "service_account_allow_list"))
        .replace("configmap_name", &(named("kubeconfig_path") + "configmap_name"));
    for folder in
        ["/var/lib/bonafide-server", "/var/lib/bonafide-agent", "/run/bonafide-server", "/run/bonafide-agent"]
    {
        text = text.replace(folder, place.join(folder.trim_start_matches('/')).to_str().unwrap());
    }
    text
}

const KUBECONFIG: &str = r#"{"apiVersion":"v1","kind":"Config","current-context":"c",
    "clusters":[{"name":"c","cluster":{"server":"https://127.0.0.1:6443"}}],
    "users":[{"name":"c","user":{"token":"t"}}],"contexts":[{"name":"c","context":{"cluster":"c","user":"c"}}]}"#;

/// systemd understands the units, and finds little that they could still give up.
#[test]
fn the_units_are_understood_and_confined() {
    if !has("systemd-analyze", "--version") {
        return skipped("the_units_are_understood_and_confined", "no systemd-analyze");
    }
    let place = tempfile::tempdir().unwrap();
    // The most exposure that systemd may see, in tenths of its scale from 0 (none) to 10: the agent must see every process.
    for (unit, program, most) in [
        ("bonafide-server.service", &programs().unwrap().server, "20"),
        ("bonafide-agent.service", &programs().unwrap().agent, "40"),
    ] {
        let text = fs::read_to_string(deploy("systemd").join(unit)).unwrap();
        let installed = format!("/usr/local/bin/{}", program.file_name().unwrap().to_str().unwrap());
        assert!(text.contains(&installed), "{unit} does not start {installed}");
        let path = place.path().join(unit);
        fs::write(&path, text.replace(&installed, program.to_str().unwrap())).unwrap();
        let text = run(Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&path)).unwrap();
        assert!(!text.contains(unit), "{text}");
        run(Command::new("systemd-analyze")
            .args(["security", "--offline=true", "--threshold", most, "--no-pager"])
            .arg(&path))
        .unwrap();
    }
}

/// The images hold the programs, the certificate authorities and nothing else.
#[test]
fn the_images_hold_the_programs_alone() {
    let name = "the_images_hold_the_programs_alone";
    if !rustix::process::getuid().is_root() {
        return skipped(name, "not root");
    }
    if !has("podman", "--version") {
        return skipped(name, "no podman");
    }
    let place = tempfile::tempdir().unwrap();
    for program in ["bonafide-server", "bonafide-agent", "bonafide"] {
        fs::write(place.path().join(program), program).unwrap();
    }
    let authorities = place.path().join("authorities.pem");
    fs::write(&authorities, "authorities").unwrap();
    let storage = format!("--root={}", place.path().join("storage").display());
    let podman = place.path().join("podman");
    // An own storage, so that no image of this machine is touched.
    fs::write(
        &podman,
        format!("#!/bin/sh\nexec podman {storage} --storage-driver=vfs --cgroup-manager=cgroupfs \"$@\"\n"),
    )
    .unwrap();
    run(Command::new("chmod").arg("0755").arg(&podman)).unwrap();
    let build = run(Command::new(deploy("container/build"))
        .arg("trial")
        .env("BUILDER", &podman)
        .env("PROGRAMS", place.path())
        .env("SSL_CERT_FILE", &authorities));
    if let Err(why) = &build
        && (why.contains("not permitted") || why.contains("not supported"))
    {
        return skipped(name, &format!("podman cannot build here: {why}"));
    }
    build.unwrap();
    for (image, user, files) in [
        (
            "bonafide-server:trial",
            "65532:65532",
            "etc/ssl/certs/ca-certificates.crt usr/bin/bonafide usr/bin/bonafide-server",
        ),
        (
            "bonafide-agent:trial",
            "0:0",
            "etc/ssl/certs/ca-certificates.crt usr/bin/bonafide usr/bin/bonafide-agent",
        ),
    ] {
        let text =
            run(Command::new(&podman).args(["image", "inspect", "--format", "{{.Config.User}}", image]))
                .unwrap();
        assert_eq!(text.trim(), user);
        let folder = place.path().join(image.replace(':', "-"));
        let script = format!(
            "set -e; mkdir {0}; {1} save --format docker-dir -o {0} {2} >/dev/null 2>&1; for layer in {0}/*; do tar tf $layer 2>/dev/null || true; done",
            folder.display(),
            podman.display(),
            image
        );
        let listed = run(Command::new("sh").args(["-c", &script])).unwrap();
        let mut found: Vec<&str> = listed.lines().filter(|line| !line.ends_with('/')).collect();
        found.sort_unstable();
        assert_eq!(found.join(" "), files, "{image}");
    }
}
