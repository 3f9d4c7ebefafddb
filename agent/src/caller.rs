//! The identity of a local caller, pinned so that it cannot become another process.
//!
//! A PID is a number that the kernel hands out again. Between the moment a process connects and the moment its SVID
//! is sent, the process may die and its number may go to somebody else; whoever still holds the socket would then get
//! what the *new* owner of the number is entitled to. Everything here exists to make that impossible:
//!
//! - The listener takes a pidfd of the process that *connected*. While that pidfd says "running", nobody else can
//!   have the number.
//! - `/proc/<pid>` is opened once, and the pidfd is asked afterwards: if it still runs, the directory is that
//!   process's, and stays so for ever, for the kernel ties an open `/proc` directory to the process and not to the
//!   number. All reads go through this descriptor, each between two questions to the pidfd.
//! - The start time and the effective user and group are compared as well. They are redundant while the pidfd is
//!   right, and that is their purpose.
//! - [`PinnedCaller::recheck`] asks everything again after attestation and before anything is released, and also
//!   whether the process still runs the same executable: otherwise a caller could ask, replace itself by a program
//!   that is entitled to more, and let a child that shares its socket read the answer.
//!
//! Before Linux 6.5 a socket gives no pidfd and the listener opens one from the number when it accepts. The window
//! between connecting and accepting then remains, and only the user and group that were recorded at connect guard it.
//!
//! Rejected: comparing start times alone (clock ticks are 10 ms long, and PIDs can be recycled within one); trusting
//! anything that the workload controls, like its environment or files that are looked up in its mount namespace.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bonafide_runtime::listener::{PeerCred, PidfdOrigin};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// Why a caller cannot be pinned, or is no longer the process that was pinned.
#[derive(Debug, thiserror::Error)]
pub enum CallerError {
    /// The kernel gave no PID: the caller lives in a PID namespace that the agent cannot see.
    #[error(
        "the caller's process is not visible to the agent (share the host's PID namespace with the agent)"
    )]
    NotVisible,
    /// There is no pidfd, so the number cannot be tied to a process.
    #[error("the kernel gave no process descriptor for the caller")]
    NoPidfd,
    /// The process has exited.
    #[error("the caller has exited")]
    Gone,
    /// Something that must not change has changed.
    #[error("the caller is no longer the process that connected: its {0} changed")]
    Changed(&'static str),
    /// Something below `/proc/<pid>` cannot be read.
    #[error("cannot read {what} of the caller")]
    Unreadable {
        /// The file below `/proc/<pid>`.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// A step of pinning or reading. Tests stop at each of them to let the caller die there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    BeforeOpen,
    Opened,
    BeforeRead,
    Read,
}

pub(crate) type Observer = dyn Fn(Step) + Send + Sync;

/// A process that connected to one of the agent's sockets. Cheap to clone.
#[derive(Clone)]
pub struct PinnedCaller(Arc<Pinned>);

struct Pinned {
    pid: i32,
    uid: u32,
    gid: u32,
    pidfd: Arc<OwnedFd>,
    directory: OwnedFd,
    start_time: u64,
    status: String,
    executable: Option<FileId>,
    observer: Option<Box<Observer>>,
}

type FileId = (u64, u64);

impl PinnedCaller {
    /// Pins the process that connected.
    ///
    /// # Errors
    /// The caller is not visible, has no pidfd, has exited, is another process by now, or `/proc` is unreadable.
    pub fn pin(cred: &PeerCred) -> Result<Self, CallerError> {
        Self::pin_observed(cred, Path::new("/proc"), None)
    }

    /// Pins a process that somebody names by its number, as a delegate or a broker does. From here on it is the one that
    /// had the number now: that it is the one that was meant, only whoever named it can make sure of.
    ///
    /// # Errors
    /// There is no such process, or as [`pin`](Self::pin).
    pub fn pin_named(pid: i32) -> Result<Self, CallerError> {
        let number = Some(pid).filter(|pid| *pid > 0).and_then(Pid::from_raw).ok_or(CallerError::Gone)?;
        let pidfd = pidfd_open(number, PidfdFlags::empty()).map_err(|errno| match errno {
            // Nobody has the number, or a thread that is not a process.
            rustix::io::Errno::SRCH | rustix::io::Errno::INVAL | rustix::io::Errno::NOENT => {
                CallerError::Gone
            }
            errno => unreadable("its process descriptor", errno),
        })?;
        let status = std::fs::read(Path::new("/proc").join(pid.to_string()).join("status"));
        // Whatever was read: it is this process's if that still runs.
        ensure_running(&pidfd)?;
        let status = status.map_err(|source| CallerError::Unreadable { what: "status", source })?;
        let status = String::from_utf8_lossy(&status);
        Self::pin(&PeerCred {
            pid,
            uid: effective(&status, "Uid")?,
            gid: effective(&status, "Gid")?,
            pidfd: Some(Arc::new(pidfd)),
            pidfd_origin: PidfdOrigin::Opened,
        })
    }

    pub(crate) fn pin_observed(
        cred: &PeerCred,
        proc: &Path,
        observer: Option<Box<Observer>>,
    ) -> Result<Self, CallerError> {
        if cred.pid <= 0 {
            return Err(CallerError::NotVisible);
        }
        let pidfd = cred.pidfd.clone().ok_or(CallerError::NoPidfd)?;
        observe(observer.as_deref(), Step::BeforeOpen);
        ensure_running(&pidfd)?;
        let directory = rustix::fs::open(
            proc.join(cred.pid.to_string()),
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        );
        observe(observer.as_deref(), Step::Opened);
        // Whatever opening said: of a process that is gone, it says nothing.
        ensure_running(&pidfd)?;
        let directory = directory.map_err(|errno| unreadable("its directory", errno))?;

        let mut pinned = Pinned {
            pid: cred.pid,
            uid: cred.uid,
            gid: cred.gid,
            pidfd,
            directory,
            start_time: 0,
            status: String::new(),
            executable: None,
            observer,
        };
        pinned.start_time = pinned.start_time()?;
        pinned.status = pinned.checked_status()?;
        pinned.executable = pinned.executable_id()?;
        Ok(Self(Arc::new(pinned)))
    }

    /// The number, for logs: never look anything up by it.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.0.pid
    }

    /// The process itself, to show to others who know about it.
    #[must_use]
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.0.pidfd.as_fd()
    }

    /// The effective user when the process connected.
    #[must_use]
    pub fn uid(&self) -> u32 {
        self.0.uid
    }

    /// The effective group when the process connected.
    #[must_use]
    pub fn gid(&self) -> u32 {
        self.0.gid
    }

    /// When the process started, in clock ticks since the machine did.
    #[must_use]
    pub fn start_ticks(&self) -> u64 {
        self.0.start_time
    }

    /// `/proc/<pid>/status` as it was when the process was pinned, which is when this call came in.
    #[must_use]
    pub fn status(&self) -> &str {
        &self.0.status
    }

    /// The content of a file below `/proc/<pid>`.
    ///
    /// # Errors
    /// The caller has exited, or the file cannot be read.
    pub fn read(&self, file: &'static str) -> Result<String, CallerError> {
        self.0.read(file)
    }

    /// Where the executable was when it was started, as the kernel prints it: with ` (deleted)` behind it when that
    /// file is gone.
    ///
    /// # Errors
    /// The caller has exited, or the agent lacks the right to look (it needs the caller's user or root).
    pub fn executable_path(&self) -> Result<PathBuf, CallerError> {
        use std::os::unix::ffi::OsStringExt as _;
        self.0.between_checks(|directory| {
            let target = rustix::fs::readlinkat(directory, "exe", Vec::new())
                .map_err(|errno| unreadable("the executable's path", errno))?;
            Ok(PathBuf::from(std::ffi::OsString::from_vec(target.into_bytes())))
        })
    }

    /// The executable itself, whatever lies at its path by now and in whatever mount namespace the caller is.
    ///
    /// # Errors
    /// As [`executable_path`](Self::executable_path).
    pub fn executable(&self) -> Result<File, CallerError> {
        self.0.between_checks(|directory| {
            rustix::fs::openat(
                directory,
                "exe",
                OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY,
                Mode::empty(),
            )
            .map(File::from)
            .map_err(|errno| unreadable("the executable", errno))
        })
    }

    /// Whether the process still runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        ensure_running(&self.0.pidfd).is_ok()
    }

    /// Compares everything that pins the process. Call it after the last look and before anything is released.
    ///
    /// # Errors
    /// The caller has exited, or is not what it was.
    pub fn recheck(&self) -> Result<(), CallerError> {
        let pinned = &self.0;
        if pinned.start_time()? != pinned.start_time {
            return Err(CallerError::Changed("start time"));
        }
        pinned.checked_status()?;
        if pinned.executable_id()? != pinned.executable {
            return Err(CallerError::Changed("executable"));
        }
        Ok(())
    }
}

impl std::fmt::Debug for PinnedCaller {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Pinned { pid, uid, gid, start_time, .. } = &*self.0;
        write!(formatter, "PinnedCaller(pid {pid}, uid {uid}, gid {gid}, started at tick {start_time})")
    }
}

impl Pinned {
    fn between_checks<T>(
        &self,
        look: impl FnOnce(&OwnedFd) -> Result<T, CallerError>,
    ) -> Result<T, CallerError> {
        observe(self.observer.as_deref(), Step::BeforeRead);
        ensure_running(&self.pidfd)?;
        let seen = look(&self.directory);
        observe(self.observer.as_deref(), Step::Read);
        ensure_running(&self.pidfd)?;
        seen
    }

    fn read(&self, file: &'static str) -> Result<String, CallerError> {
        self.between_checks(|directory| {
            let opened = rustix::fs::openat(directory, file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                .map_err(|errno| unreadable(file, errno))?;
            let mut content = Vec::with_capacity(2048);
            File::from(opened)
                .take(MAX_PROC_FILE)
                .read_to_end(&mut content)
                .map_err(|source| CallerError::Unreadable { what: file, source })?;
            // A process may put any bytes into its name, which `stat` and `status` show.
            Ok(String::from_utf8_lossy(&content).into_owned())
        })
    }

    fn start_time(&self) -> Result<u64, CallerError> {
        let stat = self.read("stat")?;
        // The name is in parentheses and may hold parentheses and blanks itself: count from the last one.
        stat.rfind(')')
            .and_then(|end| stat[end + 1..].split_ascii_whitespace().nth(START_TIME_AFTER_NAME))
            .and_then(|field| field.parse().ok())
            .ok_or_else(|| malformed("stat"))
    }

    /// `/proc/<pid>/status`, whose user and group are still those of the process that connected.
    fn checked_status(&self) -> Result<String, CallerError> {
        let status = self.read("status")?;
        if effective(&status, "Uid")? != self.uid {
            return Err(CallerError::Changed("user"));
        }
        if effective(&status, "Gid")? != self.gid {
            return Err(CallerError::Changed("group"));
        }
        Ok(status)
    }

    /// Device and inode of the executable; `None` when the agent may not look, which then stays so.
    fn executable_id(&self) -> Result<Option<FileId>, CallerError> {
        self.between_checks(|directory| {
            Ok(rustix::fs::statat(directory, "exe", AtFlags::empty())
                .ok()
                .map(|stat| (stat.st_dev, stat.st_ino)))
        })
    }
}

/// The value of the line `Name:` of `/proc/<pid>/status`.
#[must_use]
pub(crate) fn status_line<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

/// The effective ID in the line `name` of `/proc/<pid>/status`.
fn effective(status: &str, name: &str) -> Result<u32, CallerError> {
    status_line(status, name)
        .and_then(|ids| ids.split_ascii_whitespace().nth(1))
        .and_then(|id| id.parse().ok())
        .ok_or_else(|| malformed("status"))
}

fn ensure_running(pidfd: &OwnedFd) -> Result<(), CallerError> {
    // Readable means: exited, be it reaped or not.
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    let immediately = Timespec { tv_sec: 0, tv_nsec: 0 };
    loop {
        match rustix::event::poll(&mut fds, Some(&immediately)) {
            Ok(0) => return Ok(()),
            Ok(_) => return Err(CallerError::Gone),
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return Err(CallerError::NoPidfd),
        }
    }
}

fn observe(observer: Option<&Observer>, step: Step) {
    if let Some(observer) = observer {
        observer(step);
    }
}

fn unreadable(what: &'static str, errno: rustix::io::Errno) -> CallerError {
    match errno {
        // What `/proc` says through a directory whose process is gone.
        rustix::io::Errno::SRCH => CallerError::Gone,
        errno => CallerError::Unreadable { what, source: errno.into() },
    }
}

fn malformed(what: &'static str) -> CallerError {
    CallerError::Unreadable { what, source: io::Error::from(io::ErrorKind::InvalidData) }
}

/// `starttime` is field 22 of `/proc/<pid>/stat`; the name is field 2 (`proc_pid_stat(5)`).
const START_TIME_AFTER_NAME: usize = 19;

/// Far above what `status` can hold (65,536 supplementary groups are the kernel's limit).
const MAX_PROC_FILE: u64 = 1024 * 1024;

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};
    use std::sync::Mutex;

    use rustix::process::{getegid, geteuid};

    use super::*;

    fn sleeper() -> Child {
        Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().expect("sleep exists")
    }

    /// By another process: a descriptor of ours that is open for writing could be inherited by what a test beside this one
    /// starts at that moment, and the copy could not be started ("text file busy").
    fn copy_sleep(to: &Path) {
        assert!(Command::new("cp").arg("/bin/sleep").arg(to).status().unwrap().success());
    }

    fn cred_of(child: &Child) -> PeerCred {
        let pid = i32::try_from(child.id()).unwrap();
        PeerCred {
            pid,
            uid: geteuid().as_raw(),
            gid: getegid().as_raw(),
            pidfd: Some(Arc::new(pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()).unwrap())),
            pidfd_origin: PidfdOrigin::Socket,
        }
    }

    fn kill(child: &mut Child) {
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn pins_a_living_process_and_reads_its_files() {
        let mut child = sleeper();
        let caller = PinnedCaller::pin(&cred_of(&child)).unwrap();
        caller.recheck().unwrap();
        assert!(caller.is_running());
        assert!(caller.read("status").unwrap().contains("Groups:"));
        assert!(caller.executable_path().unwrap().is_absolute());
        assert!(caller.executable().unwrap().metadata().unwrap().len() > 0);
        kill(&mut child);
        assert!(!caller.is_running());
        assert!(matches!(caller.recheck(), Err(CallerError::Gone)));
        assert!(matches!(caller.read("status"), Err(CallerError::Gone)));
        assert!(matches!(caller.executable(), Err(CallerError::Gone)));
    }

    #[test]
    fn a_named_process_is_pinned_like_a_caller() {
        let mut child = sleeper();
        let pid = i32::try_from(child.id()).unwrap();
        let named = PinnedCaller::pin_named(pid).unwrap();
        assert_eq!((named.pid(), named.uid(), named.gid()), (pid, geteuid().as_raw(), getegid().as_raw()));
        named.recheck().unwrap();
        kill(&mut child);
        assert!(!named.is_running());
        assert!(matches!(PinnedCaller::pin_named(pid), Err(CallerError::Gone)));
        for nobody in [0, -1, i32::MIN, i32::MAX] {
            assert!(matches!(PinnedCaller::pin_named(nobody), Err(CallerError::Gone)), "{nobody}");
        }
    }

    #[test]
    fn a_process_that_nobody_reaped_counts_as_gone() {
        let mut child = sleeper();
        let caller = PinnedCaller::pin(&cred_of(&child)).unwrap();
        child.kill().unwrap();
        // A zombie keeps its number and its directory in /proc until it is reaped.
        let mut polled = [PollFd::new(&*caller.0.pidfd, PollFlags::IN)];
        rustix::event::poll(&mut polled, None).unwrap();
        assert!(Path::new("/proc").join(child.id().to_string()).exists());
        assert!(matches!(caller.recheck(), Err(CallerError::Gone)));
        child.wait().unwrap();
    }

    #[test]
    fn death_at_any_step_of_pinning_is_seen() {
        for fatal in [Step::BeforeOpen, Step::Opened, Step::BeforeRead, Step::Read] {
            let child = sleeper();
            let cred = cred_of(&child);
            let child = Mutex::new(Some(child));
            let observer = move |step| {
                if step == fatal
                    && let Some(mut child) = child.lock().unwrap().take()
                {
                    kill(&mut child);
                }
            };
            let pinned = PinnedCaller::pin_observed(&cred, Path::new("/proc"), Some(Box::new(observer)));
            assert!(matches!(pinned, Err(CallerError::Gone)), "died at {fatal:?}: {pinned:?}");
        }
    }

    #[test]
    fn a_number_that_belongs_to_somebody_else_is_refused() {
        // As after a reuse: the pidfd is of a process that is gone, the number of one that runs.
        let mut first = sleeper();
        let mut second = sleeper();
        let cred = PeerCred { pid: i32::try_from(second.id()).unwrap(), ..cred_of(&first) };
        kill(&mut first);
        assert!(matches!(PinnedCaller::pin(&cred), Err(CallerError::Gone)));
        kill(&mut second);
    }

    #[test]
    fn other_ids_than_at_connect_are_refused() {
        let mut child = sleeper();
        let cred = cred_of(&child);
        let other_user = PeerCred { uid: cred.uid + 1, ..cred.clone() };
        assert!(matches!(PinnedCaller::pin(&other_user), Err(CallerError::Changed("user"))));
        let other_group = PeerCred { gid: cred.gid + 1, ..cred.clone() };
        assert!(matches!(PinnedCaller::pin(&other_group), Err(CallerError::Changed("group"))));
        kill(&mut child);
    }

    #[test]
    fn what_cannot_be_pinned_is_refused() {
        let mut child = sleeper();
        let cred = cred_of(&child);
        let invisible = PeerCred { pid: 0, ..cred.clone() };
        assert!(matches!(PinnedCaller::pin(&invisible), Err(CallerError::NotVisible)));
        let no_pidfd = PeerCred { pidfd: None, ..cred.clone() };
        assert!(matches!(PinnedCaller::pin(&no_pidfd), Err(CallerError::NoPidfd)));
        let empty = tempfile::tempdir().unwrap();
        let hidden = PinnedCaller::pin_observed(&cred, empty.path(), None);
        assert!(matches!(hidden, Err(CallerError::Unreadable { .. })), "{hidden:?}");
        kill(&mut child);
    }

    #[test]
    fn another_start_time_is_a_change() {
        let mut child = sleeper();
        let mut caller = PinnedCaller::pin(&cred_of(&child)).unwrap();
        Arc::get_mut(&mut caller.0).unwrap().start_time += 1;
        assert!(matches!(caller.recheck(), Err(CallerError::Changed("start time"))));
        kill(&mut child);
    }

    #[test]
    fn another_executable_is_a_change() {
        // The shell waits for a line and then becomes `sleep`, without a change of PID.
        let mut child = Command::new("sh")
            .args(["-c", "read line; exec sleep 1000"])
            .stdin(Stdio::piped())
            .spawn()
            .expect("sh exists");
        let caller = PinnedCaller::pin(&cred_of(&child)).unwrap();
        caller.recheck().unwrap();
        let before = caller.executable_path().unwrap();
        drop(child.stdin.take());
        for _ in 0..2000 {
            if caller.executable_path().is_ok_and(|path| path != before) {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert!(matches!(caller.recheck(), Err(CallerError::Changed("executable"))));
        kill(&mut child);
    }

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_start_time() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join(") 0 0 (x");
        copy_sleep(&program);
        let mut child = Command::new(&program).arg("1000").spawn().unwrap();
        let mut plain = sleeper();
        let odd = PinnedCaller::pin(&cred_of(&child)).unwrap();
        let normal = PinnedCaller::pin(&cred_of(&plain)).unwrap();
        assert!(normal.0.start_time.abs_diff(odd.0.start_time) < 1000);
        kill(&mut child);
        kill(&mut plain);
    }

    #[test]
    fn status_lines_are_found_by_their_whole_name() {
        let status = "Name:\tUid: 7\nUid:\t1\t2\t3\t4\nGroups:\t\n";
        assert_eq!(status_line(status, "Uid"), Some("1\t2\t3\t4"));
        assert_eq!(status_line(status, "Groups"), Some(""));
        assert_eq!(status_line(status, "Gid"), None);
    }
}
