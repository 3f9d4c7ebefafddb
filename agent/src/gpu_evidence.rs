//! Evidence of the node's GPUs: collected by a program of the operator, judged by the server.
//!
//! Drivers hand evidence out through a C library, which this process does not load. A collector of the operator's choice is run instead, at
//! the start and whenever the agent's SVID changes, since the agent's key is part of each nonce; and at half the time that the server
//! gives. It is not run again soon after a failure: a GPU in confidential-computing mode may take a failed request as a reason
//! to stop working.
//!
//! [`Collector`] is the seam; [`Command`] runs the program. What it prints is believed by nobody: the server verifies the devices'
//! signatures.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bonafide_identity::Timestamp;
use bonafide_pki::evidence::{DeviceEvidence, MAX_DEVICES, device_nonce};
use bonafide_pki::{inspect, pem};
use bonafide_runtime::clock::SharedClock;
use bonafide_runtime::shutdown::Shutdown;
use data_encoding::{BASE64, HEXLOWER};
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::metrics;
use crate::own_svid::OwnSvid;
use crate::owned::{OwnedError, ensure_owned};
use crate::server_client::{ServerClient, ServerError};

/// The settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuEvidenceConfig {
    /// The program.
    pub command: PathBuf,
    /// How long it may take.
    pub timeout: Duration,
}

/// Why there is no evidence.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// The program, or a folder above it, could be changed by others than root.
    #[error("the collector is not run")]
    Owned(#[from] OwnedError),
    /// The program could not be run.
    #[error("cannot run {}", path.display())]
    Run {
        /// The program.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It took too long.
    #[error("{} was stopped after {after:?}", path.display())]
    TooSlow {
        /// The program.
        path: PathBuf,
        /// The bound.
        after: Duration,
    },
    /// It said that it failed.
    #[error("{} failed: {status}", path.display())]
    Failed {
        /// The program.
        path: PathBuf,
        /// Its exit status.
        status: std::process::ExitStatus,
    },
    /// It printed something else than evidence.
    #[error("what the collector printed is not evidence: {0}")]
    Output(String),
}

/// Something that has devices sign nonces.
#[async_trait]
pub trait Collector: Send + Sync {
    /// Evidence of each device; the one at position `n` is over the nonce at `n`. There are more nonces than devices.
    ///
    /// # Errors
    /// [`CollectError`].
    async fn collect(&self, nonces: &[[u8; 32]]) -> Result<Vec<DeviceEvidence>, CollectError>;
}

/// A program: it reads one nonce for each device in a line, as hexadecimal digits, from its standard input, and prints evidence as JSON.
#[derive(Debug)]
pub struct Command {
    config: GpuEvidenceConfig,
    /// Who must own the program and the folders above it.
    owner: u32,
}

impl Command {
    /// A program that root owns.
    #[must_use]
    pub fn new(config: GpuEvidenceConfig) -> Self {
        Self { config, owner: 0 }
    }

    async fn run(&self, nonces: &[[u8; 32]]) -> Result<Vec<u8>, CollectError> {
        let path = &self.config.command;
        ensure_safe(path, self.owner)?;
        let failed = |source| CollectError::Run { path: path.clone(), source };
        let mut command = tokio::process::Command::new(path);
        command
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .kill_on_drop(true);
        let begun = Instant::now();
        let mut child = loop {
            match command.spawn() {
                // It is just being written.
                Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && begun.elapsed() < BUSY => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                spawned => break spawned.map_err(failed)?,
            }
        };
        // Whatever it started goes with it, however this ends.
        let _group = Group(child.id());
        let (Some(mut input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(failed(io::ErrorKind::BrokenPipe.into()));
        };
        let lines: String = nonces.iter().map(|nonce| HEXLOWER.encode(nonce) + "\n").collect();
        let talk = async {
            // A program that needs no more nonces may close its input.
            let _ = input.write_all(lines.as_bytes()).await;
            drop(input);
            let mut content = Vec::new();
            output.take(MAX_OUTPUT + 1).read_to_end(&mut content).await.map_err(failed)?;
            if content.len() as u64 > MAX_OUTPUT {
                return Err(CollectError::Output(format!("it is larger than {MAX_OUTPUT} bytes")));
            }
            let status = child.wait().await.map_err(failed)?;
            if status.success() {
                Ok(content)
            } else {
                Err(CollectError::Failed { path: path.clone(), status })
            }
        };
        let after = self.config.timeout;
        let slow = |_| Err(CollectError::TooSlow { path: path.clone(), after });
        tokio::time::timeout(after, talk).await.unwrap_or_else(slow)
    }
}

#[async_trait]
impl Collector for Command {
    async fn collect(&self, nonces: &[[u8; 32]]) -> Result<Vec<DeviceEvidence>, CollectError> {
        parse(&self.run(nonces).await?)
    }
}

/// How long a program that is open for writing is waited for.
const BUSY: Duration = Duration::from_secs(2);

/// The processes of a collector, which end when this does.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        let leader = self.0.and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw);
        if let Some(leader) = leader {
            // Nobody may be left in it.
            let _ = rustix::process::kill_process_group(leader, rustix::process::Signal::KILL);
        }
    }
}

/// Refuses what somebody else than `owner` or root could replace, and what is not a program.
fn ensure_safe(path: &Path, owner: u32) -> Result<(), CollectError> {
    let found = ensure_owned(path, owner)?;
    if found.is_file() && found.mode() & 0o111 != 0 {
        return Ok(());
    }
    Err(OwnedError::Unsafe { path: path.to_owned(), problem: "it is not a program" }.into())
}

/// One device, as NVIDIA's tools write evidence; other members are left alone.
#[derive(Deserialize)]
struct Printed {
    /// The report in base64.
    evidence: String,
    /// The certificates: PEM in base64.
    certificate: String,
}

/// Reads what a collector printed: a JSON list with `evidence` and `certificate` of each device, both in base64.
///
/// # Errors
/// [`CollectError::Output`].
pub fn parse(output: &[u8]) -> Result<Vec<DeviceEvidence>, CollectError> {
    let wrong = |text: String| CollectError::Output(text);
    let printed: Vec<Printed> = serde_json::from_slice(output).map_err(|error| wrong(error.to_string()))?;
    if printed.len() > MAX_DEVICES {
        return Err(wrong(format!("there are more than {MAX_DEVICES} devices")));
    }
    let devices = printed.iter().enumerate().map(|(at, device)| {
        let decoded = |text: &str, what: &str| {
            BASE64.decode(text.as_bytes()).map_err(|_| wrong(format!("{what} of device {at} is not base64")))
        };
        let text = decoded(&device.certificate, "certificate")?;
        let blocks = pem::decode_all(&text).map_err(|error| wrong(format!("device {at}: {error}")))?;
        let chain: Vec<_> =
            blocks.into_iter().filter(|(label, _)| label == "CERTIFICATE").map(|(_, der)| der).collect();
        if chain.is_empty() || chain.len() > MAX_CHAIN {
            return Err(wrong(format!("device {at} has {} certificates", chain.len())));
        }
        Ok(DeviceEvidence { report: decoded(&device.evidence, "evidence")?, chain })
    });
    devices.collect()
}

/// Shows evidence to the server, again and again.
pub(crate) struct Showing {
    pub(crate) collector: Arc<dyn Collector>,
    pub(crate) own: OwnSvid,
    pub(crate) client: ServerClient,
    pub(crate) clock: SharedClock,
}

/// How an attempt ended.
enum Shown {
    /// Good until then.
    Good(Timestamp),
    /// No device was asked, so it does no harm to try again.
    NotAsked,
    /// What devices said was not taken, or they said nothing.
    Refused,
}

impl Showing {
    /// Runs until the shutdown.
    pub(crate) async fn run(self, shutdown: Shutdown) {
        let mut changes = self.own.changes();
        loop {
            changes.mark_unchanged();
            let shown = tokio::select! {
                () = shutdown.triggered() => return,
                shown = self.show() => shown,
            };
            let pause = match shown {
                Shown::Good(until) => {
                    let left = until.unix_seconds().saturating_sub(self.clock.now().unix_seconds());
                    Some(Duration::from_secs(u64::try_from(left / 2).unwrap_or(0)).max(SHORTEST_PAUSE))
                }
                Shown::NotAsked => Some(SHORTEST_PAUSE),
                Shown::Refused => None,
            };
            let over = async {
                match pause {
                    Some(pause) => tokio::time::sleep(pause).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = shutdown.triggered() => return,
                () = over => {}
                changed = changes.changed() => if changed.is_err() { return },
            }
        }
    }

    async fn show(&self) -> Shown {
        let key =
            self.own.chain().first().and_then(|leaf| inspect(leaf).ok()).and_then(|info| info.public_key);
        let Some(key) = key else { return Shown::NotAsked };
        // The server takes the key from the connection: one that was made with the former SVID must not be used.
        self.client.disconnect().await;
        let challenge = match self.client.gpu_challenge().await {
            Ok(challenge) => challenge,
            Err(error) => {
                let off = matches!(&error, ServerError::Status { status, .. } if status.code() == tonic::Code::Unimplemented);
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "the server gives no challenge for evidence of GPUs");
                metrics::gpu_evidence("no_challenge");
                // A server that does not know of it may after its restart, when this agent's SVID is renewed.
                return if off { Shown::Refused } else { Shown::NotAsked };
            }
        };
        let nonces: Vec<_> =
            (0..MAX_DEVICES).map(|index| device_nonce(&challenge, key.spki_der(), index)).collect();
        let devices = match self.collector.collect(&nonces).await {
            Ok(devices) => devices,
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "evidence of GPUs could not be collected");
                metrics::gpu_evidence("not_collected");
                return Shown::Refused;
            }
        };
        let count = devices.len();
        match self.client.submit_gpu_evidence(&challenge, devices).await {
            Ok(until) => {
                tracing::info!(
                    devices = count,
                    until = until.unix_seconds(),
                    "the server took the evidence of GPUs"
                );
                metrics::gpu_evidence("ok");
                Shown::Good(until)
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "the server did not take the evidence of GPUs");
                metrics::gpu_evidence("refused");
                Shown::Refused
            }
        }
    }
}

/// Eight GPUs and four switches need less than a fifth of it.
const MAX_OUTPUT: u64 = 1 << 20;
const MAX_CHAIN: usize = 10;
const SHORTEST_PAUSE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    struct Program {
        folder: tempfile::TempDir,
        command: Command,
    }

    impl Program {
        fn new(script: &str, timeout: Duration) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().canonicalize().unwrap().join("collect");
            std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            let owner = std::fs::metadata(&path).unwrap().uid();
            Self { folder, command: Command { config: GpuEvidenceConfig { command: path, timeout }, owner } }
        }

        fn path(&self) -> &Path {
            &self.command.config.command
        }

        async fn run(&self) -> Result<Vec<u8>, CollectError> {
            self.command.run(&[[0xab; 32], [1; 32]]).await
        }
    }

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_program_gets_nonces_and_no_environment() {
        let program =
            Program::new("read first; read second; echo \"$first $second $(pwd) ${HOME-none}\"", LONG);
        let said = String::from_utf8(program.run().await.unwrap()).unwrap();
        assert_eq!(said, format!("{} {} / none\n", "ab".repeat(32), "01".repeat(32)));
        // One that does not read its input is as good.
        assert_eq!(Program::new("echo x", LONG).run().await.unwrap(), b"x\n");
    }

    #[tokio::test]
    async fn a_program_that_fails_talks_too_much_or_takes_too_long_is_stopped() {
        let failed = Program::new("echo x; exit 3", LONG).run().await;
        assert!(matches!(failed, Err(CollectError::Failed { .. })), "{failed:?}");
        let much = Program::new("while :; do echo 0123456789abcdef0123456789abcdef; done", LONG).run().await;
        assert!(matches!(much, Err(CollectError::Output(_))), "{much:?}");
        // A child that keeps the output open does not outlive the bound.
        let slow = Program::new("sleep 1000 & echo $! > $(dirname $0)/pid; wait", Duration::from_secs(2));
        let ended = slow.run().await;
        assert!(matches!(ended, Err(CollectError::TooSlow { .. })), "{ended:?}");
        let pid = std::fs::read_to_string(slow.folder.path().join("pid")).unwrap();
        let gone = || {
            std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()))
                .map_or(true, |stat| stat.contains(") Z "))
        };
        let until = Instant::now() + LONG;
        while !gone() {
            assert!(Instant::now() < until, "the child of the collector still runs");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn a_program_that_others_could_replace_is_not_run() {
        let program = Program::new("echo x", LONG);
        let mode = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        assert!(program.run().await.is_ok());
        let refused = async || {
            let ended = program.run().await;
            assert!(matches!(ended, Err(CollectError::Owned(OwnedError::Unsafe { .. }))), "{ended:?}");
        };
        mode(program.path(), 0o775);
        refused().await;
        mode(program.path(), 0o644);
        refused().await;
        mode(program.path(), 0o755);
        mode(program.folder.path(), 0o777);
        refused().await;
        mode(program.folder.path(), 0o755);
        assert!(program.run().await.is_ok());
        let real = program.path().with_file_name("real");
        std::fs::rename(program.path(), &real).unwrap();
        std::os::unix::fs::symlink(&real, program.path()).unwrap();
        refused().await;
        let stranger = Command { config: program.command.config.clone(), owner: 12_345 };
        let checked = ensure_safe(&real, stranger.owner);
        assert_eq!(checked.is_err(), std::fs::metadata(&real).unwrap().uid() != 0);
    }

    #[test]
    fn what_is_printed_is_read_strictly() {
        let certificate = BASE64.encode(pem::encode("CERTIFICATE", b"der").as_bytes());
        let good = format!(
            r#"[{{"arch": "HOPPER", "nonce": "00", "evidence": "AQI=", "certificate": "{certificate}", "driver_version": "1"}}]"#
        );
        let read = parse(good.as_bytes()).unwrap();
        assert_eq!(read, [DeviceEvidence { report: vec![1, 2], chain: vec![b"der".to_vec()] }]);
        assert!(parse(b"[]").unwrap().is_empty());
        let one = good.trim_matches(['[', ']']);
        for bad in [
            "{}".to_owned(),
            String::new(),
            good.replace("AQI=", "!"),
            good.replace(&certificate, "AQI="),
            good.replace(&certificate, &BASE64.encode(pem::encode("KEY", b"der").as_bytes())),
            good.replace("\"evidence\"", "\"report\""),
            format!("[{}]", vec![one; MAX_DEVICES + 1].join(",")),
        ] {
            assert!(matches!(parse(bad.as_bytes()), Err(CollectError::Output(_))), "{bad}");
        }
    }
}
