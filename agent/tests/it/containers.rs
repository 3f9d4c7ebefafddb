//! The `docker` attestor against a real engine: Podman, with a container that it runs here.
//!
//! Skipped where there is no Podman, or where it cannot start containers.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bonafide_agent::caller::PinnedCaller;
use bonafide_agent::workload_attestor::docker::{Docker, DockerConfig};
use bonafide_agent::workload_attestor::{AttestError, WorkloadAttestor as _};
use bonafide_runtime::listener::{PeerCred, PidfdOrigin};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::harness::eventually;

/// Podman with a storage of its own.
struct Podman {
    folder: tempfile::TempDir,
    service: Option<Child>,
}

impl Podman {
    fn run(&self, arguments: &[&str]) -> Result<String, String> {
        let path = |name: &str| self.folder.path().join(name);
        let output = Command::new("timeout")
            .args([
                "60",
                "podman",
                "--storage-driver=vfs",
                "--cgroup-manager=cgroupfs",
                "--events-backend=none",
            ])
            .arg(format!("--root={}", path("root").display()))
            .arg(format!("--runroot={}", path("run").display()))
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .map_err(|error| error.to_string())?;
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
        }
    }

    fn serve(&mut self) -> PathBuf {
        let socket = self.folder.path().join("podman.sock");
        let path = |name: &str| self.folder.path().join(name);
        let service = Command::new("podman")
            .args(["--storage-driver=vfs", "--cgroup-manager=cgroupfs", "--events-backend=none"])
            .arg(format!("--root={}", path("root").display()))
            .arg(format!("--runroot={}", path("run").display()))
            .args(["system", "service", "--time=120"])
            .arg(format!("unix://{}", socket.display()))
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.service = Some(service.unwrap());
        socket
    }

    /// An image whose programs are those of this machine, mounted when it runs.
    fn image(&self, name: &str) -> Result<String, String> {
        let root = self.folder.path().join("image");
        std::fs::create_dir_all(root.join("usr")).unwrap();
        for link in ["bin", "lib", "lib64"] {
            let _ = std::os::unix::fs::symlink(format!("usr/{link}"), root.join(link));
        }
        let tar = self.folder.path().join("image.tar");
        let packed = Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&tar).arg(".").status();
        assert!(packed.unwrap().success());
        self.run(&["import", "--quiet", tar.to_str().unwrap(), name])
    }

    /// Starts a container and gives its ID.
    fn start(&self, image: &str) -> Result<String, String> {
        let run = |runtime: &[&str]| {
            let detached =
                ["run", "--detach", "--network=none", "--log-driver=none", "--volume=/usr:/usr:ro"];
            let settings = ["--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024", "--label=role=web"];
            let what = ["--env=MODE=prod", image, "/bin/sleep", "1000"];
            self.run(&[runtime, &detached, &settings, &what].concat())
        };
        run(&[]).or_else(|first| run(&["--runtime=runc"]).map_err(|_| first))
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        drop(self.run(&["rm", "--all", "--force", "--time=0"]));
        if let Some(service) = &mut self.service {
            drop(service.kill());
            drop(service.wait());
        }
    }
}

/// The process as if it had connected to the agent.
fn pin(pid: i32) -> PinnedCaller {
    PinnedCaller::pin(&PeerCred {
        pid,
        uid: 0,
        gid: 0,
        pidfd: Some(Arc::new(pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()).unwrap())),
        pidfd_origin: PidfdOrigin::Socket,
    })
    .unwrap()
}

#[tokio::test]
async fn podman_says_what_a_container_is_and_what_only_has_its_name() {
    const TEST: &str = "podman_says_what_a_container_is_and_what_only_has_its_name";
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: {TEST}: containers of the system need root");
        return;
    }
    // `PROC_PID_INIT_INO` of Linux.
    if std::fs::read_link("/proc/self/ns/pid").unwrap().as_os_str() != "pid:[4026531836]" {
        eprintln!("SKIPPED: {TEST}: this is not the first PID namespace");
        return;
    }
    let mut podman = Podman { folder: tempfile::tempdir().unwrap(), service: None };
    let started =
        podman.image("localhost/app:1").and_then(|image| Ok((podman.start("localhost/app:1")?, image)));
    let (id, image) = match started {
        Ok(started) => started,
        Err(error) => {
            eprintln!("SKIPPED: {TEST}: Podman starts no container: {error}");
            return;
        }
    };
    let socket = podman.serve();
    let first: i32 = podman.run(&["inspect", "--format={{.State.Pid}}", &id]).unwrap().parse().unwrap();
    let attestor = Docker::new(DockerConfig { podman_socket: socket, ..DockerConfig::default() });
    let caller = pin(first);
    eventually("an answer of Podman", async || attestor.attest(&caller).await.map(drop)).await;

    let found = attestor.attest(&caller).await.unwrap();
    let found: Vec<&str> = found.iter().map(bonafide_identity::Selector::as_str).collect();
    let digest = format!("docker:image_config_digest:{image}");
    for expected in
        ["docker:label:role:web", "docker:env:MODE=prod", "docker:image_id:localhost/app:1", &digest]
    {
        assert!(found.contains(&expected), "{expected} is missing from {found:?}");
    }

    // The same image under another name: the digest stays that of what runs.
    std::fs::write(podman.folder.path().join("image/other"), b"other").unwrap();
    let other = podman.image("localhost/app:1").unwrap();
    assert_ne!(image, other);
    let found = attestor.attest(&caller).await.unwrap();
    assert!(found.iter().any(|selector| selector.as_str() == digest), "{found:?}");

    let Some(forged) = Forged::new(&id) else {
        eprintln!("SKIPPED: {TEST}: no cgroup can be made here; the attack with a forged name was not tried");
        return;
    };
    let refused = attestor.attest(&pin(i32::try_from(forged.process.id()).unwrap())).await;
    assert!(matches!(refused, Err(AttestError::Service { .. })), "{refused:?}");
    assert!(format!("{refused:?}").contains("Elsewhere"), "{refused:?}");
}

/// A process in a cgroup that has the name of a container's, as a service can make it below its own.
struct Forged {
    folders: [PathBuf; 2],
    process: Child,
}

impl Forged {
    fn new(id: &str) -> Option<Self> {
        for hierarchy in ["pids", "unified", "."] {
            let service =
                Path::new("/sys/fs/cgroup").join(hierarchy).join(format!("forged-{}", std::process::id()));
            let container = service.join(format!("libpod-{id}"));
            if std::fs::create_dir_all(&container).is_err() {
                continue;
            }
            let mut process = Command::new("sleep").arg("1000").spawn().unwrap();
            if std::fs::write(container.join("cgroup.procs"), process.id().to_string()).is_ok() {
                return Some(Self { folders: [container, service], process });
            }
            process.kill().unwrap();
            process.wait().unwrap();
            [container, service].iter().for_each(|folder| drop(std::fs::remove_dir(folder)));
        }
        None
    }
}

impl Drop for Forged {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
        for folder in &self.folders {
            // The kernel lets go of a cgroup a moment after its last process.
            for _ in 0..100 {
                if std::fs::remove_dir(folder).is_ok() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}
