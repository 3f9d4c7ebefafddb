//! Which Slurm job and step a process is in, and what root wrote down about the job.
//!
//! slurmd puts each step into cgroups that belong to root, so their path cannot be forged: it is read from the root of the hierarchy, and what
//! stands further down, where a job may have cgroups of its own, says nothing. The cgroup names the job; account, partition and
//! devices are not in it. These come from a file that the prolog writes as root before the job starts and the epilog removes
//! (`docs/operations/slurm`). Nothing is taken from the process: `SLURM_*` in its environment is its own.
//!
//! Job numbers come again, so a file counts only for the job that it was written for: in this boot of the machine, before the process started,
//! before the job's end if it says one, and for one cgroup. What is wrong with a file takes only what it says from the caller.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use bonafide_identity::{Selector, Timestamp};
use bonafide_runtime::clock::SharedClock;
use serde::Deserialize;

use super::{AttestError, WorkloadAttestor};
use crate::caller::PinnedCaller;
use crate::owned::{OwnedError, read_owned};

/// The settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlurmConfig {
    /// The folder of the files that the prolog writes; nothing when there are none.
    pub jobs_dir: Option<PathBuf>,
    /// Where the cgroup file systems are mounted.
    pub cgroup_root: PathBuf,
}

/// A job and a step in a process's cgroups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located<'a> {
    /// The job.
    pub job: JobName<'a>,
    /// The step: a number, `batch`, `extern` or `interactive`.
    pub step: &'a str,
    /// The user in a path of cgroup v1.
    pub uid: Option<u32>,
    /// The hierarchy's controllers and the path of the job's cgroup, of the first line that names the job.
    pub place: (&'a str, &'a str),
}

/// How a path names a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobName<'a> {
    /// A number.
    Id(&'a str),
    /// Since Slurm 26.05: `s` and letters and digits, never used again.
    Sluid(&'a str),
}

impl<'a> JobName<'a> {
    fn text(self) -> &'a str {
        match self {
            Self::Id(text) | Self::Sluid(text) => text,
        }
    }
}

/// Two hierarchies name different jobs or steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the cgroups name more than one Slurm step")]
pub struct Ambiguous;

/// The step that the text of `/proc/<pid>/cgroup` names, if any.
///
/// # Errors
/// [`Ambiguous`].
pub fn locate(text: &str) -> Result<Option<Located<'_>>, Ambiguous> {
    let mut found: Option<Located<'_>> = None;
    for line in text.lines() {
        // `number:controllers:path`, where the path may hold colons.
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        let Some(located) = step(controllers, path) else { continue };
        match &found {
            None => found = Some(located),
            Some(first) if (first.job, first.step, first.uid) == (located.job, located.step, located.uid) => {
            }
            Some(first) if first.job == located.job && first.step == located.step => {
                found = Some(Located { uid: first.uid.or(located.uid), ..first.clone() });
            }
            Some(_) => return Err(Ambiguous),
        }
    }
    Ok(found)
}

fn step<'a>(controllers: &'a str, path: &'a str) -> Option<Located<'a>> {
    let mut segments = path.strip_prefix('/')?.split('/');
    let first = segments.next()?;
    let (job, uid) = if first == "system.slice" {
        // v2: /system.slice/[<node>_]slurmstepd.scope/job_7/step_0/…
        let scope = segments.next()?.strip_suffix("slurmstepd.scope")?;
        if !(scope.is_empty() || scope.strip_suffix('_').is_some_and(is_node)) {
            return None;
        }
        (segments.next()?, None)
    } else {
        // v1: /slurm[_<node>]/uid_1000/job_7/step_0/…
        let node = first.strip_prefix("slurm")?;
        if !(node.is_empty() || node.strip_prefix('_').is_some_and(is_node)) {
            return None;
        }
        let uid = segments.next()?.strip_prefix("uid_").filter(|text| is_number(text))?.parse().ok()?;
        (segments.next()?, Some(uid))
    };
    let name = match job.strip_prefix("job_") {
        Some(id) if is_number(id) => JobName::Id(id),
        None if is_sluid(job) && uid.is_none() => JobName::Sluid(job),
        _ => return None,
    };
    let step = segments.next()?.strip_prefix("step_").filter(|step| is_step(step))?;
    // Both are parts of one text: the job's path ends where its name does.
    let end = job.as_ptr() as usize - path.as_ptr() as usize + job.len();
    Some(Located { job: name, step, uid, place: (controllers, &path[..end]) })
}

fn is_node(text: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    !text.is_empty() && text.bytes().all(good)
}

fn is_number(text: &str) -> bool {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    digits && (1..=10).contains(&text.len()) && (text.len() == 1 || !text.starts_with('0'))
}

fn is_sluid(text: &str) -> bool {
    let rest = text.strip_prefix('s').unwrap_or_default();
    (1..=31).contains(&rest.len()) && rest.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

fn is_step(text: &str) -> bool {
    is_number(text) || matches!(text, "batch" | "extern" | "interactive")
}

/// What root wrote down about a job.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Facts {
    /// The job as its cgroup is named: its number, or its SLUID.
    pub job: String,
    /// The machine's boot: `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// When this was written, in seconds since the boot: the first number of `/proc/uptime`.
    pub uptime: f64,
    /// When the job must have ended, in seconds since 1970.
    pub ends: Option<i64>,
    /// The job's user.
    pub uid: u32,
    /// That user's name.
    pub user: Option<String>,
    /// The account that is charged.
    pub account: Option<String>,
    /// The partition.
    pub partition: Option<String>,
    /// The GPUs of the job on this node, as Slurm numbers them.
    #[serde(default)]
    pub gpus: Vec<u32>,
}

/// Why what is written about a job does not count.
#[derive(Debug, thiserror::Error)]
pub enum FactsError {
    /// The file.
    #[error(transparent)]
    File(#[from] OwnedError),
    /// It is not what a prolog writes.
    #[error("not what is written about a job: {0}")]
    Malformed(String),
    /// It is about something else.
    #[error("it was written for {0}")]
    Other(&'static str),
}

impl Facts {
    /// Reads a file's content.
    ///
    /// # Errors
    /// [`FactsError::Malformed`].
    pub fn parse(content: &[u8]) -> Result<Self, FactsError> {
        let wrong = |text: &str| FactsError::Malformed(text.to_owned());
        let facts: Self = serde_json::from_slice(content).map_err(|error| wrong(&error.to_string()))?;
        let texts = [&facts.user, &facts.account, &facts.partition];
        if texts.into_iter().flatten().any(|text| !is_plain(text)) {
            return Err(wrong("a name is empty, longer than 128 characters or has unusual ones"));
        }
        if facts.gpus.len() > MAX_GPUS || !(is_number(&facts.job) || is_sluid(&facts.job)) {
            return Err(wrong("no such job"));
        }
        if !facts.uptime.is_finite() || facts.uptime < 0.0 {
            return Err(wrong("uptime is no time"));
        }
        Ok(facts)
    }

    /// Whether they are about the job of this process.
    fn ensure_for(
        &self,
        located: &Located<'_>,
        boot_id: &str,
        started: f64,
        now: Timestamp,
    ) -> Result<(), FactsError> {
        if self.job != located.job.text() {
            return Err(FactsError::Other("another job"));
        }
        if self.boot_id != boot_id {
            return Err(FactsError::Other("a job before the machine was started"));
        }
        if located.uid.is_some_and(|uid| uid != self.uid) {
            return Err(FactsError::Other("a job of another user"));
        }
        // A process starts on a tick, which is 10 ms long.
        if started + 0.02 < self.uptime {
            return Err(FactsError::Other("a job that began after the caller did"));
        }
        if self.ends.is_some_and(|ends| ends.saturating_add(GRACE) < now.unix_seconds()) {
            return Err(FactsError::Other("a job that is over"));
        }
        Ok(())
    }

    /// The selectors' values.
    fn values(&self) -> Vec<String> {
        let mut values = vec![format!("uid:{}", self.uid), format!("gpus:{}", self.gpus.len())];
        let named = [("user", &self.user), ("account", &self.account), ("partition", &self.partition)];
        values.extend(
            named.into_iter().filter_map(|(name, value)| Some(format!("{name}:{}", value.as_ref()?))),
        );
        values.extend(self.gpus.iter().map(|gpu| format!("gpu:{gpu}")));
        values
    }
}

fn is_plain(text: &str) -> bool {
    let good =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'@' | b'+' | b'/');
    (1..=128).contains(&text.len()) && text.bytes().all(good)
}

/// The attestor of type `slurm`.
pub struct Slurm {
    config: SlurmConfig,
    clock: SharedClock,
    /// Who must own the files.
    owner: u32,
    boot_id: String,
    seen: Mutex<HashMap<String, Seen>>,
}

/// A file and the cgroup that it was first used for.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Seen {
    file: (u64, u64, i64, i64),
    cgroup: (u64, u64),
}

impl Slurm {
    /// With files of root.
    #[must_use]
    pub fn new(config: SlurmConfig, clock: SharedClock) -> Self {
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Self { config, clock, owner: 0, boot_id: boot_id.trim().to_owned(), seen: Mutex::default() }
    }

    /// What is written about the job of a process that started at this tick.
    fn facts(&self, located: &Located<'_>, started: u64) -> Result<Option<Facts>, FactsError> {
        let Some(folder) = &self.config.jobs_dir else { return Ok(None) };
        let name = located.job.text();
        let Some(file) = read_owned(folder, &format!("{name}.json"), self.owner, MAX_FILE)? else {
            return Ok(None);
        };
        let facts = Facts::parse(&file.content)?;
        let started = started as f64 / rustix::param::clock_ticks_per_second() as f64;
        facts.ensure_for(located, &self.boot_id, started, self.clock.now())?;
        self.ensure_one_cgroup(located, name, file.instance)?;
        Ok(Some(facts))
    }

    /// A file that is used for a second cgroup was left behind by an earlier job of the same number.
    fn ensure_one_cgroup(
        &self,
        located: &Located<'_>,
        name: &str,
        file: (u64, u64, i64, i64),
    ) -> Result<(), FactsError> {
        let (controllers, place) = located.place;
        // v1 mounts a hierarchy under its controllers' names; v2 has none, and beside v1 it is mounted as `unified`.
        let root = &self.config.cgroup_root;
        let hierarchy = match controllers.trim_start_matches("name=") {
            "" if root.join("unified").is_dir() => root.join("unified"),
            name => root.join(name),
        };
        let folder = hierarchy.join(place.trim_start_matches('/'));
        let cgroup = std::fs::symlink_metadata(&folder)
            .map(|found| (found.dev(), found.ino()))
            .map_err(|source| OwnedError::Unreadable { path: folder, source })?;
        let present = Seen { file, cgroup };
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() >= MAX_SEEN
            && let Some(folder) = &self.config.jobs_dir
        {
            seen.retain(|name, _| folder.join(format!("{name}.json")).exists());
            if seen.len() >= MAX_SEEN {
                seen.clear();
            }
        }
        match seen.get(name) {
            Some(before) if before.file == file && before.cgroup != cgroup => {
                Err(FactsError::Other("an earlier job of the same number: the epilog did not remove it"))
            }
            _ => {
                seen.insert(name.to_owned(), present);
                Ok(())
            }
        }
    }

    fn values(&self, located: &Located<'_>, caller: &PinnedCaller) -> Vec<String> {
        let mut values = vec![match located.job {
            JobName::Id(id) => format!("job_id:{id}"),
            JobName::Sluid(sluid) => format!("sluid:{sluid}"),
        }];
        values.push(format!("step:{}", located.step));
        match self.facts(located, caller.start_ticks()) {
            Ok(Some(facts)) if ![0, facts.uid].contains(&caller.uid()) => {
                tracing::warn!(
                    job = located.job.text(),
                    "what the prolog wrote is about a job of another user"
                );
            }
            Ok(facts) => values.extend(facts.iter().flat_map(Facts::values)),
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(
                    job = located.job.text(),
                    ?caller,
                    error,
                    "what is written about a Slurm job is not used"
                );
            }
        }
        values
    }
}

#[async_trait]
impl WorkloadAttestor for Slurm {
    fn kind(&self) -> &'static str {
        "slurm"
    }

    async fn attest(&self, caller: &PinnedCaller) -> Result<Vec<Selector>, AttestError> {
        let text = caller.read("cgroup")?;
        let ambiguous =
            |error| AttestError::Service { what: "the kernel", source: std::sync::Arc::new(error) };
        let Some(located) = locate(&text).map_err(ambiguous)? else { return Ok(Vec::new()) };
        let values = self.values(&located, caller);
        // It may have been moved to another step while the file was read.
        if caller.read("cgroup")? != text {
            return Err(crate::caller::CallerError::Changed("cgroup").into());
        }
        values.iter().map(|value| Ok(Selector::new("slurm", value)?)).collect()
    }
}

/// Where Linux mounts cgroups.
pub const DEFAULT_CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// Jobs may be killed that long after their end.
const GRACE: i64 = 300;
const MAX_FILE: u64 = 16 << 10;
const MAX_GPUS: usize = 64;
const MAX_SEEN: usize = 8192;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;
    use std::process::{Command, Stdio};
    use std::sync::Arc;

    use bonafide_runtime::clock::SystemClock;
    use bonafide_runtime::listener::{PeerCred, PidfdOrigin};
    use rustix::process::{Pid, PidfdFlags, getegid, geteuid, pidfd_open};

    use super::*;

    fn found(text: &str) -> Option<(JobName<'_>, &str, Option<u32>, &str)> {
        locate(text).unwrap().map(|located| (located.job, located.step, located.uid, located.place.1))
    }

    #[test]
    fn steps_are_found_in_both_versions_of_cgroups() {
        let job = "/system.slice/slurmstepd.scope/job_7";
        assert_eq!(
            found(&format!("0::{job}/step_0/user/task_1\n")),
            Some((JobName::Id("7"), "0", None, job))
        );
        assert_eq!(found(&format!("0::{job}/step_batch")), Some((JobName::Id("7"), "batch", None, job)));
        let node = "/system.slice/gpu-1.a_slurmstepd.scope/s1AbC";
        assert_eq!(
            found(&format!("0::{node}/step_interactive/user")),
            Some((JobName::Sluid("s1AbC"), "interactive", None, node))
        );
        let v1 = "12:freezer:/slurm/uid_1000/job_7/step_0\n\
                  4:memory:/slurm/uid_1000/job_7/step_0/task_3\n1:name=systemd:/system.slice/slurmd.service\n0::/x\n";
        assert_eq!(found(v1), Some((JobName::Id("7"), "0", Some(1000), "/slurm/uid_1000/job_7")));
        let v1 = "4:devices:/slurm_gpu-1/uid_0/job_7/step_extern/task_3";
        assert_eq!(found(v1).map(|found| found.1), Some("extern"));
    }

    #[test]
    fn look_alikes_are_not_steps() {
        for path in [
            "/user.slice/user-7.slice/system.slice/slurmstepd.scope/job_7/step_0",
            "/user.slice/slurm/uid_7/job_7/step_0",
            "/system.slice/evil.service/slurmstepd.scope/job_7/step_0",
            "/system.slice/evilslurmstepd.scope/job_7/step_0",
            "/system.slice/_slurmstepd.scope/job_7/step_0",
            "/system.slice/slurmstepd.scope.d/job_7/step_0",
            "/system.slice/slurmstepd.scope/x/job_7/step_0",
            "/system.slice/slurmstepd.scope/job_/step_0",
            "/system.slice/slurmstepd.scope/job_7x/step_0",
            "/system.slice/slurmstepd.scope/job_07/step_0",
            "/system.slice/slurmstepd.scope/job_99999999999/step_0",
            "/system.slice/slurmstepd.scope/s/step_0",
            "/system.slice/slurmstepd.scope/system/step_",
            "/system.slice/slurmstepd.scope/job_7/step_evil",
            "/system.slice/slurmstepd.scope/job_7",
            "/system.slice/slurmstepd.scope",
            "/slurm/uid_x/job_7/step_0",
            "/slurm/uid_1/s7/step_0",
            "/slurmx/uid_1/job_7/step_0",
            "/slurm_/uid_1/job_7/step_0",
            "/../../system.slice/slurmstepd.scope/job_7/step_0",
            "slurm/uid_1/job_7/step_0",
            "",
        ] {
            assert_eq!(locate(&format!("0::{path}\n")), Ok(None), "{path}");
        }
        // What a job appends below its step changes nothing.
        let nested =
            "0::/system.slice/slurmstepd.scope/job_7/step_0/system.slice/slurmstepd.scope/job_8/step_1";
        assert_eq!(found(nested).map(|found| found.0), Some(JobName::Id("7")));
        let two = "2:cpu:/slurm/uid_1/job_7/step_0\n3:memory:/slurm/uid_1/job_8/step_0\n";
        assert_eq!(locate(two), Err(Ambiguous));
        assert_eq!(locate(&two.replace("job_8/step_0", "job_7/step_1")), Err(Ambiguous));
        assert_eq!(locate(&two.replace("uid_1/job_8", "uid_2/job_7")).unwrap().unwrap().uid, Some(1));
    }

    struct World {
        folder: tempfile::TempDir,
        slurm: Slurm,
    }

    const PATH: &str = "0::/system.slice/slurmstepd.scope/job_7/step_0/user/task_0\n";
    /// What a prolog wrote ten seconds after the machine was started.
    const GOOD: &str = r#"{"job": "7", "boot_id": "b", "uptime": 10.00, "ends": 2000, "uid": 1000, "user": "alice", "account": "ml",
        "partition": "gpu", "gpus": [0, 3]}"#;

    impl World {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let root = folder.path().canonicalize().unwrap();
            let owner = std::fs::metadata(&root).unwrap().uid();
            let now = Timestamp::from_unix_seconds(1500);
            let config = SlurmConfig { jobs_dir: Some(root.join("jobs")), cgroup_root: root.join("cgroup") };
            let slurm = Slurm {
                config,
                clock: Arc::new(move || now),
                owner,
                boot_id: "b".to_owned(),
                seen: Mutex::default(),
            };
            let world = Self { folder, slurm };
            std::fs::create_dir(world.jobs()).unwrap();
            world.chmod(&world.jobs(), 0o755);
            world.job_begins();
            world.write(GOOD);
            world
        }

        fn jobs(&self) -> PathBuf {
            self.slurm.config.jobs_dir.clone().unwrap()
        }

        fn cgroup(&self) -> PathBuf {
            self.slurm.config.cgroup_root.join("system.slice/slurmstepd.scope/job_7")
        }

        fn job_begins(&self) {
            std::fs::create_dir_all(self.cgroup()).unwrap();
        }

        fn write(&self, text: &str) {
            let file = self.jobs().join("7.json");
            let new = self.jobs().join("new");
            std::fs::write(&new, text).unwrap();
            self.chmod(&new, 0o644);
            std::fs::rename(new, file).unwrap();
        }

        fn chmod(&self, path: &Path, mode: u32) {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        }

        /// Of a process that started so many seconds after the machine.
        fn facts(&self, started: u64) -> Result<Option<Facts>, String> {
            let located = locate(PATH).unwrap().unwrap();
            let ticks = started * rustix::param::clock_ticks_per_second();
            self.slurm.facts(&located, ticks).map_err(|error| error.to_string())
        }

        fn refused(&self, part: &str) {
            let error = self.facts(20).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn what_root_wrote_makes_selectors() {
        let world = World::new();
        let facts = world.facts(20).unwrap().unwrap();
        let mut values = facts.values();
        values.sort();
        assert_eq!(
            values,
            ["account:ml", "gpu:0", "gpu:3", "gpus:2", "partition:gpu", "uid:1000", "user:alice"]
        );
        std::fs::remove_file(world.jobs().join("7.json")).unwrap();
        assert_eq!(world.facts(20), Ok(None), "nobody wrote anything");
    }

    #[test]
    fn what_was_written_for_another_job_does_not_count() {
        let world = World::new();
        assert!(world.facts(10).is_ok());
        assert!(world.facts(9).unwrap_err().contains("began after the caller"));
        for (from, to, part) in [
            ("\"job\": \"7\"", "\"job\": \"8\"", "another job"),
            ("\"boot_id\": \"b\"", "\"boot_id\": \"c\"", "before the machine"),
            ("\"ends\": 2000", "\"ends\": 1199", "is over"),
        ] {
            world.write(&GOOD.replace(from, to));
            world.refused(part);
        }
        let v1 = locate("4:cpu:/slurm/uid_1001/job_7/step_0").unwrap().unwrap();
        world.write(GOOD);
        assert!(world.slurm.facts(&v1, 1 << 30).unwrap_err().to_string().contains("another user"));
    }

    #[test]
    fn a_file_that_was_left_behind_does_not_count_for_the_next_job_of_the_number() {
        let world = World::new();
        assert!(world.facts(20).is_ok());
        assert!(world.facts(30).is_ok(), "the same job again");
        // The inode of the removed folder could be given out at once.
        let kept = world.slurm.config.cgroup_root.join("kept");
        std::fs::rename(world.cgroup(), kept).unwrap();
        world.job_begins();
        world.refused("an earlier job of the same number");
        world.write(GOOD);
        assert!(world.facts(20).is_ok(), "the prolog of the next job has run");
        std::fs::remove_dir(world.cgroup()).unwrap();
        world.refused("cannot read");
    }

    #[test]
    fn files_that_others_could_have_written_do_not_count() {
        let world = World::new();
        let file = world.jobs().join("7.json");
        world.chmod(&file, 0o666);
        world.refused("may write to it");
        world.chmod(&file, 0o644);
        world.chmod(&world.jobs(), 0o777);
        world.refused("may write to it");
        world.chmod(&world.jobs(), 0o755);
        assert!(world.facts(20).is_ok());
        // A second name, a link, a pipe, a folder, too much.
        let other = world.folder.path().join("other");
        std::fs::hard_link(&file, &other).unwrap();
        world.refused("one name");
        std::fs::remove_file(&file).unwrap();
        std::os::unix::fs::symlink(&other, &file).unwrap();
        assert!(world.facts(20).is_err());
        std::fs::remove_file(&file).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, &file, rustix::fs::Mode::from_raw_mode(0o644)).unwrap();
        world.refused("one name");
        std::fs::remove_file(&file).unwrap();
        std::fs::create_dir(&file).unwrap();
        world.chmod(&file, 0o755);
        world.refused("one name");
        std::fs::remove_dir(&file).unwrap();
        world.write(&format!("{GOOD}{}", " ".repeat(17 << 10)));
        world.refused("too large");
        // Somebody else's, and a folder that is a link.
        world.write(GOOD);
        let stranger = Slurm { owner: 12_345, ..World::new().slurm };
        if geteuid().is_root() {
            std::os::unix::fs::chown(&file, Some(1000), None).unwrap();
            world.refused("another user");
            world.write(GOOD);
        } else {
            assert!(stranger.facts(&locate(PATH).unwrap().unwrap(), 1 << 30).is_err());
        }
        let real = world.folder.path().join("real");
        std::fs::rename(world.jobs(), &real).unwrap();
        std::os::unix::fs::symlink(&real, world.jobs()).unwrap();
        world.refused("symbolic link");
    }

    #[test]
    fn what_is_not_what_a_prolog_writes_is_refused() {
        for bad in [
            String::new(),
            "[]".to_owned(),
            GOOD.replace("alice", "a\\nb"),
            GOOD.replace("alice", "a:b"),
            GOOD.replace("alice", ""),
            GOOD.replace("alice", &"a".repeat(129)),
            GOOD.replace("1000", "-1"),
            GOOD.replace("[0, 3]", "[\"0\"]"),
            GOOD.replace("[0, 3]", &format!("{:?}", vec![0; 65])),
            GOOD.replace("10.00", "-1"),
            GOOD.replace("\"7\"", "\"../7\""),
            GOOD.replace("\"uid\"", "\"name\": \"x\", \"uid\""),
            GOOD.replace("\"uid\": 1000,", ""),
        ] {
            assert!(matches!(Facts::parse(bad.as_bytes()), Err(FactsError::Malformed(_))), "{bad}");
        }
        assert!(Facts::parse(br#"{"job": "s1", "boot_id": "", "uptime": 1, "uid": 1}"#).is_ok());
    }

    /// The scripts of the documentation, with another folder.
    #[test]
    fn prolog_and_epilog_write_and_take_back() {
        let world = World::new();
        let script = |name: &str, environment: &[(&str, &str)]| {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operations/slurm").join(name);
            let text = std::fs::read_to_string(path).unwrap();
            let folder = world.jobs();
            let changed = text.replace("folder=/run/bonafide-slurm", &format!("folder={}", folder.display()));
            assert_ne!(changed, text);
            let mut shell = Command::new("sh");
            shell.args(["-c", &changed]).env_clear().envs(environment.iter().copied());
            shell.stdin(Stdio::null()).stderr(Stdio::null()).status().unwrap().success()
        };
        let job = [
            ("SLURM_JOB_ID", "7"),
            ("SLURM_JOB_UID", "1000"),
            ("SLURM_JOB_USER", "alice"),
            ("SLURM_JOB_ACCOUNT", "ml"),
            ("SLURM_JOB_PARTITION", "gpu"),
            ("SLURM_JOB_GPUS", "0,3-5"),
            ("SLURM_JOB_END_TIME", "4000000000"),
        ];
        assert!(script("prolog.sh", &job));
        let file = world.jobs().join("7.json");
        let written = Facts::parse(&std::fs::read(&file).unwrap()).unwrap();
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        assert_eq!(
            written,
            Facts {
                job: "7".to_owned(),
                boot_id: boot_id.trim().to_owned(),
                uptime: written.uptime,
                ends: Some(4_000_000_000),
                uid: 1000,
                user: Some("alice".to_owned()),
                account: Some("ml".to_owned()),
                partition: Some("gpu".to_owned()),
                gpus: vec![0, 3, 4, 5],
            }
        );
        assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o777, 0o644);

        // Names that would break out of the text are left out; a job without GPUs has none.
        let mut odd = job;
        odd[2].1 = "a\", \"uid\": 0, \"x\": \"";
        odd[3].1 = "$(id)";
        odd[5].1 = "";
        assert!(script("prolog.sh", &odd));
        let written = Facts::parse(&std::fs::read(&file).unwrap()).unwrap();
        assert_eq!((written.uid, written.user, written.account, written.gpus), (1000, None, None, vec![]));
        for (at, value) in [(0, "../7"), (0, ""), (5, "0,x"), (5, "-1")] {
            let mut bad = job;
            bad[at].1 = value;
            assert!(!script("prolog.sh", &bad), "{value}");
        }

        assert!(!script("epilog.sh", &[("SLURM_JOB_ID", "../7")]));
        assert!(script("epilog.sh", &[("SLURM_JOB_ID", "7")]));
        assert!(!file.exists());
        assert!(script("epilog.sh", &[("SLURM_JOB_ID", "7")]), "the second time changes nothing");
    }

    /// A process in real cgroups with the names of slurmd, of each version that the machine has.
    #[tokio::test]
    async fn a_process_in_the_cgroup_of_a_step_gets_the_selectors_of_its_job() {
        const NAME: &str = "a_process_in_the_cgroup_of_a_step_gets_the_selectors_of_its_job";
        let v2 = "system.slice/slurmstepd.scope/job_4000000007/step_0";
        let v1 = "slurm/uid_1000/job_4000000007/step_0";
        let places = [("unified", v2), ("", v2), ("freezer", v1)];
        let mut tried = 0;
        for (hierarchy, step) in places {
            let mount = Path::new("/sys/fs/cgroup").join(hierarchy);
            let top = mount.join(step.split('/').next().unwrap());
            let mine = !top.exists();
            if !mount.join("cgroup.procs").exists()
                || mount.join(step).exists()
                || std::fs::create_dir_all(mount.join(step)).is_err()
            {
                continue;
            }
            let mut child = Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap();
            let moved = std::fs::write(mount.join(step).join("cgroup.procs"), child.id().to_string());
            let mut found = Ok((Vec::new(), Vec::new()));
            if moved.is_ok() {
                found = attested(child.id()).await;
                tried += 1;
            }
            child.kill().unwrap();
            child.wait().unwrap();
            let mut path = Path::new(step);
            while !path.as_os_str().is_empty() && (mine || mount.join(path) != top) {
                // The kernel may need a moment to see that the process has gone.
                let until = std::time::Instant::now() + std::time::Duration::from_secs(30);
                while std::fs::remove_dir(mount.join(path)).is_err() {
                    assert!(std::time::Instant::now() < until, "{} cannot be removed", path.display());
                    std::thread::yield_now();
                }
                path = path.parent().unwrap();
            }
            if moved.is_ok() {
                let (selectors, other) = found.unwrap();
                assert_eq!(&selectors[..2], ["slurm:job_id:4000000007", "slurm:step:0"], "{hierarchy}");
                assert!(selectors.contains(&"slurm:account:ml".to_owned()), "{hierarchy}: {selectors:?}");
                assert_eq!(other, Vec::<String>::new(), "a process in no step");
            }
        }
        if tried == 0 {
            eprintln!("SKIPPED: {NAME}: no process can be moved into cgroups below /sys/fs/cgroup");
        }
    }

    /// What the attestor says of a process, and of this one.
    async fn attested(pid: u32) -> Result<(Vec<String>, Vec<String>), AttestError> {
        let mut world = World::new();
        world.slurm.boot_id = Slurm::new(world.slurm.config.clone(), SystemClock::shared()).boot_id;
        world.slurm.config.cgroup_root = "/sys/fs/cgroup".into();
        let boot_id = format!("{:?}", world.slurm.boot_id);
        let facts = GOOD.replace("\"7\"", "\"4000000007\"").replace("\"b\"", &boot_id);
        std::fs::write(world.jobs().join("4000000007.json"), facts).unwrap();
        world.chmod(&world.jobs().join("4000000007.json"), 0o644);
        let mut said = Vec::new();
        for pid in [pid, std::process::id()] {
            let pid = i32::try_from(pid).unwrap();
            let pidfd = pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()).unwrap();
            let caller = PinnedCaller::pin(&PeerCred {
                pid,
                uid: geteuid().as_raw(),
                gid: getegid().as_raw(),
                pidfd: Some(Arc::new(pidfd)),
                pidfd_origin: PidfdOrigin::Socket,
            })?;
            let selectors = world.slurm.attest(&caller).await?;
            said.push(selectors.iter().map(ToString::to_string).collect::<Vec<_>>());
        }
        let other = said.pop().unwrap();
        Ok((said.pop().unwrap(), other))
    }
}
