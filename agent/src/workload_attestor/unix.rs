//! What the kernel says about a process: user, groups and executable.
//!
//! Selectors `uid:N`, `user:name`, `gid:N`, `group:name`, `supplementary_gid:N`, `supplementary_group:name` and, when
//! switched on, `path:/exe` and `sha256:hex`. User and group are the effective ones. Names come from the *agent's* user
//! database: the workload's own files say nothing, for it may have written them. A number without a name gives no name
//! selector.
//!
//! The digest is of the executable that runs, read through `/proc/<pid>/exe`: neither a file that was put in its place
//! nor a mount namespace changes what is hashed. Digests are kept by device, inode, size and both times, but only of
//! files that have been at rest for a while: a file that changed within the resolution of its own timestamps could
//! change again without showing it.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bonafide_identity::{Selector, Timestamp};
use bonafide_pki::digest::Sha256;
use bonafide_runtime::clock::SharedClock;
use nix::unistd::{Gid, Group, Uid, User};
use tokio::sync::Semaphore;

use super::{AttestError, WorkloadAttestor};
use crate::caller::{PinnedCaller, status_line};

/// What the attestor looks at beyond user and groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnixConfig {
    /// Adds `path` and `sha256`. The agent then needs the right to look at other users' processes.
    pub discover_workload_path: bool,
    /// The largest executable, in bytes, that gets a `sha256` selector; 0 is no limit, negative is none at all.
    pub workload_size_limit: i64,
}

impl Default for UnixConfig {
    fn default() -> Self {
        Self { discover_workload_path: false, workload_size_limit: DEFAULT_SIZE_LIMIT }
    }
}

/// The largest executable that gets a `sha256` selector unless the configuration says otherwise. A process may run from a
/// sparse file of any size, and without a limit would keep a processor busy for as long as it likes.
pub const DEFAULT_SIZE_LIMIT: i64 = 1 << 30;

/// The attestor of type `unix`.
pub struct Unix {
    config: UnixConfig,
    clock: SharedClock,
    names: Arc<Names>,
    digests: Arc<Mutex<HashMap<FileState, String>>>,
    /// Places for reading executables: however many callers there are, they do not take all threads and disks.
    readers: Arc<Semaphore>,
}

impl Unix {
    /// An attestor with an empty memory of names and digests.
    #[must_use]
    pub fn new(config: UnixConfig, clock: SharedClock) -> Self {
        let readers = Arc::new(Semaphore::new(READERS));
        Self { config, clock, names: Arc::default(), digests: Arc::default(), readers }
    }

    async fn executable(&self, caller: &PinnedCaller, values: &mut Vec<String>) -> Result<(), AttestError> {
        let path = caller.executable_path()?;
        if let Some(path) = path.to_str() {
            values.push(format!("path:{path}"));
        } else {
            tracing::debug!(?caller, "the executable's path is not text and gives no selector");
        }
        let limit = self.config.workload_size_limit;
        if limit < 0 {
            return Ok(());
        }
        let file = caller.executable()?;
        let state = FileState::of(&file.metadata().map_err(AttestError::Executable)?);
        if limit > 0 && state.size > limit.unsigned_abs() {
            tracing::debug!(
                ?caller,
                size = state.size,
                limit,
                "the executable is too large for a sha256 selector"
            );
            return Ok(());
        }
        let known = self.digests.lock().unwrap_or_else(PoisonError::into_inner).get(&state).cloned();
        let digest = match known {
            Some(digest) => digest,
            None => {
                let now = self.clock.now();
                let digests = Arc::clone(&self.digests);
                let place =
                    Arc::clone(&self.readers).acquire_owned().await.map_err(|_| AttestError::Stopped)?;
                // Lives as long as this future: whoever hangs up does not leave a reader at work.
                let asking = Arc::new(());
                let asked = Arc::downgrade(&asking);
                let digest = tokio::task::spawn_blocking(move || {
                    let _place = place;
                    let digest =
                        hash(&file, &state, || asked.strong_count() == 0).map_err(AttestError::Executable)?;
                    if state.at_rest(now) {
                        let mut digests = digests.lock().unwrap_or_else(PoisonError::into_inner);
                        if digests.len() >= MAX_DIGESTS {
                            digests.clear();
                        }
                        digests.insert(state, digest.clone());
                    }
                    Ok::<_, AttestError>(digest)
                })
                .await
                .map_err(|_| AttestError::Stopped)??;
                drop(asking);
                digest
            }
        };
        values.push(format!("sha256:{digest}"));
        Ok(())
    }
}

#[async_trait]
impl WorkloadAttestor for Unix {
    fn kind(&self) -> &'static str {
        KIND
    }

    async fn attest(&self, caller: &PinnedCaller) -> Result<Vec<Selector>, AttestError> {
        let groups: Vec<u32> = status_line(caller.status(), "Groups")
            .unwrap_or_default()
            .split_ascii_whitespace()
            .filter_map(|group| group.parse().ok())
            .collect();

        let (uid, gid) = (caller.uid(), caller.gid());
        let mut values = vec![format!("uid:{uid}"), format!("gid:{gid}")];
        let names = self.names.of(uid, gid, &groups).await?;
        values.extend(names.user.as_deref().map(|user| format!("user:{user}")));
        values.extend(names.group.as_deref().map(|group| format!("group:{group}")));
        for (group, name) in groups.iter().zip(&names.supplementary) {
            values.push(format!("supplementary_gid:{group}"));
            values.extend(name.as_deref().map(|name| format!("supplementary_group:{name}")));
        }
        if self.config.discover_workload_path {
            self.executable(caller, &mut values).await?;
        }
        values.iter().map(|value| Ok(Selector::new(KIND, value)?)).collect()
    }
}

/// Names of users and groups. Looking one up may ask a directory service over the network, so each answer, also "there
/// is no name", is kept for a few seconds and nothing is looked up on a thread that serves others.
#[derive(Default)]
struct Names {
    known: Mutex<HashMap<Id, Answer>>,
}

/// When it was asked for, and what the name is.
type Answer = (Instant, Option<Arc<str>>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Id {
    User(u32),
    Group(u32),
}

struct NamesOf {
    user: Option<Arc<str>>,
    group: Option<Arc<str>>,
    supplementary: Vec<Option<Arc<str>>>,
}

impl Names {
    async fn of(self: &Arc<Self>, uid: u32, gid: u32, groups: &[u32]) -> Result<NamesOf, AttestError> {
        let wanted: Vec<Id> = [Id::User(uid), Id::Group(gid)]
            .into_iter()
            .chain(groups.iter().map(|group| Id::Group(*group)))
            .collect();
        let mut found = self.known(&wanted);
        if found.is_none() {
            let names = Arc::clone(self);
            let missing = wanted.clone();
            tokio::task::spawn_blocking(move || names.look_up(&missing))
                .await
                .map_err(|_| AttestError::Stopped)?;
            found = self.known(&wanted);
        }
        let mut found = found.ok_or(AttestError::Stopped)?.into_iter();
        let (user, group) = (found.next().flatten(), found.next().flatten());
        Ok(NamesOf { user, group, supplementary: found.collect() })
    }

    /// All answers, or nothing when one is missing or old.
    fn known(&self, wanted: &[Id]) -> Option<Vec<Option<Arc<str>>>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        wanted
            .iter()
            .map(|id| {
                known.get(id).filter(|(asked, _)| asked.elapsed() < NAMES_KEPT).map(|(_, name)| name.clone())
            })
            .collect()
    }

    fn look_up(&self, wanted: &[Id]) {
        let answers: Vec<_> = wanted
            .iter()
            .map(|id| {
                let name = match *id {
                    Id::User(uid) => {
                        User::from_uid(Uid::from_raw(uid)).map(|user| user.map(|user| user.name))
                    }
                    Id::Group(gid) => {
                        Group::from_gid(Gid::from_raw(gid)).map(|group| group.map(|group| group.name))
                    }
                };
                let name = name.unwrap_or_else(|error| {
                    tracing::warn!(?id, %error, "cannot look up a name");
                    None
                });
                (*id, name.filter(|name| !name.is_empty()).map(Arc::from))
            })
            .collect();
        let now = Instant::now();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, (asked, _)| asked.elapsed() < NAMES_KEPT);
        known.extend(answers.into_iter().map(|(id, name)| (id, (now, name))));
    }
}

/// What must be equal for a file to be the same file with the same content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct FileState {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl FileState {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    fn at_rest(&self, now: Timestamp) -> bool {
        now.saturating_since(Timestamp::from_unix_seconds(self.changed.0)) >= REST
    }
}

fn hash(mut file: &File, state: &FileState, abandoned: impl Fn() -> bool) -> io::Result<String> {
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        if abandoned() {
            return Err(io::Error::other("nobody waits for it any more"));
        }
        let read = match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        digest.update(&buffer[..read]);
    }
    if FileState::of(&file.metadata()?) != *state {
        return Err(io::Error::other("it changed while it was read"));
    }
    Ok(data_encoding::HEXLOWER.encode(&digest.finish()))
}

const KIND: &str = "unix";
const NAMES_KEPT: Duration = Duration::from_secs(5);
const MAX_DIGESTS: usize = 1024;
const READERS: usize = 4;
const REST: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use bonafide_runtime::clock::SystemClock;
    use bonafide_runtime::listener::{PeerCred, PidfdOrigin};
    use rustix::process::{Pid, PidfdFlags, getegid, geteuid, pidfd_open};

    use super::*;

    fn start(program: &std::path::Path) -> (Child, PinnedCaller) {
        let child = Command::new(program).arg("1000").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let caller = PinnedCaller::pin(&PeerCred {
            pid,
            uid: geteuid().as_raw(),
            gid: getegid().as_raw(),
            pidfd: Some(Arc::new(pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()).unwrap())),
            pidfd_origin: PidfdOrigin::Socket,
        })
        .unwrap();
        (child, caller)
    }

    /// By another process: a descriptor of ours that is open for writing could be inherited by what a test beside this one
    /// starts at that moment, and the copy could not be started ("text file busy").
    fn copy_sleep(to: &std::path::Path) {
        assert!(Command::new("cp").arg("/bin/sleep").arg(to).status().unwrap().success());
    }

    fn stop(mut child: Child) {
        child.kill().unwrap();
        child.wait().unwrap();
    }

    fn attestor(discover_workload_path: bool, workload_size_limit: i64) -> Unix {
        Unix::new(UnixConfig { discover_workload_path, workload_size_limit }, SystemClock::shared())
    }

    async fn values(attestor: &Unix, caller: &PinnedCaller) -> Vec<String> {
        let selectors = attestor.attest(caller).await.unwrap();
        assert!(selectors.iter().all(|selector| selector.kind() == "unix"));
        selectors.iter().map(|selector| selector.value().to_owned()).collect()
    }

    #[tokio::test]
    async fn user_and_groups_are_those_of_the_process() {
        let (child, caller) = start("/bin/sleep".as_ref());
        let found = values(&attestor(false, 0), &caller).await;
        stop(child);
        let ask = |arguments: &[&str]| {
            let output = Command::new("id").args(arguments).output().unwrap();
            String::from_utf8(output.stdout).unwrap().trim().to_owned()
        };
        let mut expected = vec![format!("uid:{}", ask(&["-u"])), format!("gid:{}", ask(&["-g"]))];
        expected.push(format!("user:{}", ask(&["-un"])));
        expected.push(format!("group:{}", ask(&["-gn"])));
        for value in &expected {
            assert!(found.contains(value), "{value} is missing from {found:?}");
        }
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        for group in status_line(&status, "Groups").unwrap().split_whitespace() {
            assert!(
                found.contains(&format!("supplementary_gid:{group}")),
                "{group} is missing from {found:?}"
            );
        }
        assert!(!found.iter().any(|value| value.starts_with("path:") || value.starts_with("sha256:")));
    }

    #[tokio::test]
    async fn a_number_without_a_name_gives_no_name() {
        let names = Arc::new(Names::default());
        let found = names.of(3_999_999_999, 3_999_999_999, &[0, 3_999_999_998]).await.unwrap();
        assert_eq!(found.user, None);
        assert_eq!(found.group, None);
        assert_eq!(found.supplementary, [Some(Arc::from("root")), None]);
    }

    #[tokio::test]
    async fn the_digest_is_of_what_runs_even_when_the_file_was_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("program");
        copy_sleep(&program);
        let expected = Command::new("sha256sum").arg(&program).output().unwrap();
        let expected = String::from_utf8(expected.stdout).unwrap();
        let expected = format!("sha256:{}", expected.split_whitespace().next().unwrap());

        let (child, caller) = start(&program);
        let unix = attestor(true, 0);
        let before = values(&unix, &caller).await;
        assert!(before.contains(&expected), "{before:?}");
        assert!(before.contains(&format!("path:{}", program.display())), "{before:?}");

        std::fs::remove_file(&program).unwrap();
        std::fs::write(&program, b"something else").unwrap();
        let after = values(&unix, &caller).await;
        stop(child);
        assert!(after.contains(&expected), "{after:?}");
        assert!(!after.contains(&format!("path:{}", program.display())), "{after:?}");
    }

    #[tokio::test]
    async fn the_size_limit_decides_about_the_digest_alone() {
        let (child, caller) = start("/bin/sleep".as_ref());
        let size = i64::try_from(std::fs::metadata("/bin/sleep").unwrap().len()).unwrap();
        for (limit, hashed) in [(size, true), (size - 1, false), (0, true), (-1, false)] {
            let found = values(&attestor(true, limit), &caller).await;
            assert_eq!(
                found.iter().any(|value| value.starts_with("sha256:")),
                hashed,
                "limit {limit}: {found:?}"
            );
            assert!(found.iter().any(|value| value.starts_with("path:")), "{found:?}");
        }
        stop(child);
    }

    #[test]
    fn a_reader_stops_when_nobody_waits() {
        let file = File::open("/bin/sleep").unwrap();
        let state = FileState::of(&file.metadata().unwrap());
        assert!(hash(&file, &state, || true).is_err());
        assert_eq!(hash(&file, &state, || false).unwrap().len(), 64);
    }

    #[tokio::test]
    async fn only_files_at_rest_are_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("program");
        copy_sleep(&program);
        let (child, caller) = start(&program);
        let changed = FileState::of(&std::fs::metadata(&program).unwrap()).changed.0;
        let at =
            |seconds| -> SharedClock { Arc::new(move || Timestamp::from_unix_seconds(changed + seconds)) };
        let config = UnixConfig { discover_workload_path: true, workload_size_limit: 0 };
        for (seconds, remembered) in [(0, 0), (2, 0), (3, 1)] {
            let unix = Unix::new(config.clone(), at(seconds));
            values(&unix, &caller).await;
            assert_eq!(unix.digests.lock().unwrap().len(), remembered, "after {seconds} s");
        }
        stop(child);
    }
}
