//! The systemd unit that a process belongs to, as systemd itself says.
//!
//! Selectors `id:<unit>` and `fragment_path:<file>`. systemd is asked over the system bus, where only root may own its
//! name, and all answers must come from one and the same owner of that name. It is shown the pidfd of the caller
//! (`GetUnitByPIDFD`), so that no number is involved that could be given to another process. An
//! older systemd is asked by number, and that only where the number means the same to both sides, which is when the agent lives
//! in the first PID namespace; the caller is looked at again afterwards: while it runs its number is its own.
//!
//! A process cannot choose its unit: it is that of its cgroup, and whoever is not root can move only below the unit it
//! is in. A process in no unit has no selectors. User managers are not asked: what runs in one belongs to
//! `user@<uid>.service` for the system, whatever the user calls it.
//!
//! Rejected: reading the unit's name from the cgroup path (names are escaped, slices nest, and a user's own manager
//! makes paths that look alike); a D-Bus library ([decision](../../../docs/decisions/0014-describing-workloads.md)).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bonafide_identity::Selector;

use super::dbus::{Argument, Call, Connection, DbusError};
use super::places::Places;
use super::{AttestError, WorkloadAttestor, numbers_are_the_systems};
use crate::caller::PinnedCaller;

/// Where systemd is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemdConfig {
    /// The socket of the system bus.
    pub bus_socket: PathBuf,
}

impl Default for SystemdConfig {
    fn default() -> Self {
        Self { bus_socket: DEFAULT_BUS_SOCKET.into() }
    }
}

/// Where the system bus listens unless the configuration says otherwise.
pub const DEFAULT_BUS_SOCKET: &str = "/run/dbus/system_bus_socket";

/// The attestor of type `systemd`.
pub struct Systemd {
    config: SystemdConfig,
    /// Whether our numbers of processes are those of systemd.
    same_numbers: bool,
    patience: Duration,
    places: Places,
}

impl Systemd {
    /// An attestor that connects for each attestation.
    #[must_use]
    pub fn new(config: SystemdConfig) -> Self {
        let same_numbers = numbers_are_the_systems();
        Self { config, same_numbers, patience: PATIENCE, places: Places::new(AT_ONCE, "systemd") }
    }

    async fn unit(&self, caller: &PinnedCaller) -> Result<Option<Unit>, DbusError> {
        let mut bus = Connection::open(&self.config.bus_socket).await?;
        let owner = bus.bus("GetNameOwner", Argument::Text(NAME)).await?;
        let path = match self.unit_path(&mut bus, &owner, caller).await {
            Ok(path) => path,
            Err(DbusError::Answer(error)) if error == NO_UNIT => return Ok(None),
            Err(error) => return Err(error),
        };
        let id = property(&mut bus, &owner, &path, "Id").await?;
        let fragment_path = property(&mut bus, &owner, &path, "FragmentPath").await?;
        Ok(Some(Unit { id, fragment_path }))
    }

    async fn unit_path(
        &self,
        bus: &mut Connection,
        owner: &str,
        caller: &PinnedCaller,
    ) -> Result<String, DbusError> {
        let call = |member, argument| Call {
            destination: owner,
            path: "/org/freedesktop/systemd1",
            interface: "org.freedesktop.systemd1.Manager",
            member,
            argument,
        };
        if bus.descriptors {
            let by_descriptor = call("GetUnitByPIDFD", Argument::Descriptor(caller.pidfd()));
            match bus.call(by_descriptor).await {
                Err(DbusError::Answer(error)) if UNKNOWN_METHOD.contains(&error.as_str()) => {}
                answer => return Ok(answer?.first_text()?.to_owned()),
            }
        }
        if !self.same_numbers {
            return Err(DbusError::Malformed(
                "it does not know GetUnitByPIDFD, and numbers of processes mean something else to it",
            ));
        }
        let by_number = call("GetUnitByPID", Argument::Number(caller.pid().unsigned_abs()));
        Ok(bus.call(by_number).await?.first_text()?.to_owned())
    }
}

struct Unit {
    id: String,
    fragment_path: String,
}

async fn property(bus: &mut Connection, owner: &str, path: &str, name: &str) -> Result<String, DbusError> {
    let call = Call {
        destination: owner,
        path,
        interface: "org.freedesktop.DBus.Properties",
        member: "Get",
        argument: Argument::Texts("org.freedesktop.systemd1.Unit", name),
    };
    Ok(bus.call(call).await?.text_variant()?.to_owned())
}

#[async_trait]
impl WorkloadAttestor for Systemd {
    fn kind(&self) -> &'static str {
        KIND
    }

    async fn attest(&self, caller: &PinnedCaller) -> Result<Vec<Selector>, AttestError> {
        let place = self.places.take(caller.uid()).await?;
        let asked = tokio::time::timeout(self.patience, self.unit(caller)).await;
        drop(place);
        let unit = asked
            .map_err(|_| AttestError::TooSlow("systemd"))?
            .map_err(|error| AttestError::Service { what: "systemd", source: Arc::new(error) })?;
        // Of a number that has become another process's in the meantime nothing must be said.
        caller.recheck()?;
        let Some(unit) = unit else { return Ok(Vec::new()) };
        let values = [format!("id:{}", unit.id), format!("fragment_path:{}", unit.fragment_path)];
        values.iter().map(|value| Ok(Selector::new(KIND, value)?)).collect()
    }
}

const KIND: &str = "systemd";
const NAME: &str = "org.freedesktop.systemd1";
const NO_UNIT: &str = "org.freedesktop.systemd1.NoUnitForPID";
/// A systemd without the method says the first; a policy of the bus that names methods one by one, the second.
const UNKNOWN_METHOD: [&str; 2] =
    ["org.freedesktop.DBus.Error.UnknownMethod", "org.freedesktop.DBus.Error.AccessDenied"];
const PATIENCE: Duration = Duration::from_secs(5);
/// The bus allows each user a limited number of connections; others need some, too.
const AT_ONCE: usize = 16;

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::{Child, Command, Stdio};
    use std::sync::Mutex;

    use bonafide_runtime::listener::{PeerCred, PidfdOrigin};
    use rustix::process::{Pid, PidfdFlags, getegid, geteuid, pidfd_open};

    use super::super::dbus::tests::Reply;
    use super::*;

    /// A message bus of its own, by the daemon that distributions ship.
    struct Bus {
        folder: tempfile::TempDir,
        daemon: Child,
    }

    impl Bus {
        fn start(test: &str) -> Option<Self> {
            let folder = tempfile::tempdir().unwrap();
            let config = folder.path().join("bus.conf");
            let listen = folder.path().join("bus");
            let text = format!(
                r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
                "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
                <busconfig><type>system</type><listen>unix:path={}</listen><auth>EXTERNAL</auth>
                <policy context="default"><allow send_destination="*" eavesdrop="false"/><allow receive_sender="*"/>
                <allow own="*"/><allow user="*"/></policy></busconfig>"#,
                listen.display()
            );
            std::fs::write(&config, text).unwrap();
            let daemon = Command::new("dbus-daemon")
                .arg(format!("--config-file={}", config.display()))
                .args(["--nofork", "--nopidfile", "--nosyslog"])
                .stdin(Stdio::null())
                .stderr(Stdio::null())
                .spawn();
            let daemon = match daemon {
                Ok(daemon) => daemon,
                Err(error) => {
                    eprintln!("SKIPPED: {test}: dbus-daemon cannot be run: {error}");
                    return None;
                }
            };
            Some(Self { folder, daemon })
        }

        fn socket(&self) -> PathBuf {
            self.folder.path().join("bus")
        }

        async fn connect(&self) -> Connection {
            for _ in 0..2000 {
                if let Ok(connection) = Connection::open(&self.socket()).await {
                    return connection;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            panic!("the bus never answered");
        }

        /// A service with systemd's name that answers calls as `answer` says; returns what was called.
        async fn serve(&self, answer: Answer) -> Arc<Mutex<Vec<String>>> {
            let mut service = self.connect().await;
            service.own(NAME).await;
            // The answer to the request for the name, and signals about it.
            let called = Arc::new(Mutex::new(Vec::new()));
            let seen = Arc::clone(&called);
            tokio::spawn(async move {
                loop {
                    let Ok(call) = service.next_call().await else { return };
                    let (Some(member), Some(sender), 1) = (call.member, call.sender, call.kind) else {
                        continue;
                    };
                    seen.lock().unwrap().push(member.to_owned());
                    let (to, serial, what) = (sender.to_owned(), call.serial, answer(member, call.path));
                    let (error, signature, texts) = match what {
                        Says::Error(name) => (Some(name), "", vec![]),
                        Says::Values(signature, texts) => (None, signature, texts),
                        Says::Nothing => continue,
                    };
                    let reply = Reply { to: &to, serial, error, signature, texts: &texts };
                    service.reply(&reply).await.unwrap();
                }
            });
            // Owned once somebody else sees the owner.
            let mut other = self.connect().await;
            for _ in 0..2000 {
                if other.bus("GetNameOwner", Argument::Text(NAME)).await.is_ok() {
                    return called;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            panic!("the service never got its name");
        }
    }

    impl Drop for Bus {
        fn drop(&mut self) {
            drop(self.daemon.kill());
            drop(self.daemon.wait());
        }
    }

    enum Says {
        Error(&'static str),
        Values(&'static str, Vec<&'static str>),
        Nothing,
    }

    type Answer = fn(&str, Option<&str>) -> Says;

    const UNIT: &str = "/org/freedesktop/systemd1/unit/web_2eservice";

    fn modern(member: &str, path: Option<&str>) -> Says {
        // `Get` is asked for twice, the identifier first.
        static ASKED: Mutex<bool> = Mutex::new(false);
        match (member, path) {
            ("GetUnitByPIDFD", _) => Says::Values("osay", vec![UNIT, "web.service"]),
            ("Get", Some(UNIT)) => {
                let mut asked = ASKED.lock().unwrap();
                *asked = !*asked;
                let value = if *asked { "web.service" } else { "/etc/systemd/system/web.service" };
                Says::Values("v", vec![value])
            }
            _ => Says::Error("org.freedesktop.DBus.Error.UnknownMethod"),
        }
    }

    fn old(member: &str, path: Option<&str>) -> Says {
        match (member, path) {
            ("GetUnitByPID", _) => Says::Values("o", vec![UNIT]),
            ("Get", Some(UNIT)) => Says::Values("v", vec!["same"]),
            _ => Says::Error("org.freedesktop.DBus.Error.UnknownMethod"),
        }
    }

    fn attestor(socket: &Path, same_numbers: bool) -> Systemd {
        let config = SystemdConfig { bus_socket: socket.to_owned() };
        Systemd { same_numbers, patience: Duration::from_secs(20), ..Systemd::new(config) }
    }

    fn pin(pid: u32) -> PinnedCaller {
        let pid = i32::try_from(pid).unwrap();
        PinnedCaller::pin(&PeerCred {
            pid,
            uid: geteuid().as_raw(),
            gid: getegid().as_raw(),
            pidfd: Some(Arc::new(pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()).unwrap())),
            pidfd_origin: PidfdOrigin::Socket,
        })
        .unwrap()
    }

    fn shown(selectors: &[Selector]) -> Vec<String> {
        selectors.iter().map(ToString::to_string).collect()
    }

    #[tokio::test]
    async fn systemd_is_shown_the_descriptor_and_says_the_unit() {
        let Some(bus) = Bus::start("systemd_is_shown_the_descriptor_and_says_the_unit") else { return };
        let called = bus.serve(modern).await;
        let found = attestor(&bus.socket(), false).attest(&pin(std::process::id())).await.unwrap();
        let expected = ["systemd:id:web.service", "systemd:fragment_path:/etc/systemd/system/web.service"];
        assert_eq!(shown(&found), expected);
        assert_eq!(*called.lock().unwrap(), ["GetUnitByPIDFD", "Get", "Get"]);
    }

    #[tokio::test]
    async fn an_older_systemd_is_asked_by_number_where_numbers_agree() {
        let Some(bus) = Bus::start("an_older_systemd_is_asked_by_number_where_numbers_agree") else { return };
        let called = bus.serve(old).await;
        let caller = pin(std::process::id());
        let found = attestor(&bus.socket(), true).attest(&caller).await.unwrap();
        assert_eq!(shown(&found), ["systemd:id:same", "systemd:fragment_path:same"]);
        assert_eq!(*called.lock().unwrap(), ["GetUnitByPIDFD", "GetUnitByPID", "Get", "Get"]);
        let refused = attestor(&bus.socket(), false).attest(&caller).await;
        assert!(matches!(refused, Err(AttestError::Service { .. })), "{refused:?}");
        assert_eq!(called.lock().unwrap().last().unwrap(), "GetUnitByPIDFD", "the number was used");
    }

    #[tokio::test]
    async fn a_process_in_no_unit_has_no_selectors_and_other_errors_fail() {
        let Some(bus) = Bus::start("a_process_in_no_unit_has_no_selectors_and_other_errors_fail") else {
            return;
        };
        bus.serve(|_, _| Says::Error(NO_UNIT)).await;
        assert!(attestor(&bus.socket(), true).attest(&pin(std::process::id())).await.unwrap().is_empty());

        let Some(bus) = Bus::start("a_process_in_no_unit_has_no_selectors_and_other_errors_fail") else {
            return;
        };
        bus.serve(|_, _| Says::Error("org.freedesktop.DBus.Error.Failed")).await;
        assert!(attestor(&bus.socket(), true).attest(&pin(std::process::id())).await.is_err());
    }

    #[tokio::test]
    async fn answers_of_another_type_and_no_answers_fail_in_time() {
        let Some(bus) = Bus::start("answers_of_another_type_and_no_answers_fail_in_time") else { return };
        // The property is a text, but not in a variant.
        bus.serve(|member, _| match member {
            "GetUnitByPIDFD" => Says::Values("osay", vec![UNIT, "web.service"]),
            _ => Says::Values("s", vec!["web.service"]),
        })
        .await;
        let caller = pin(std::process::id());
        let wrong = attestor(&bus.socket(), true).attest(&caller).await;
        assert!(matches!(wrong, Err(AttestError::Service { .. })), "{wrong:?}");

        let Some(bus) = Bus::start("answers_of_another_type_and_no_answers_fail_in_time") else { return };
        bus.serve(|_, _| Says::Nothing).await;
        let silent = Systemd { patience: Duration::from_millis(100), ..attestor(&bus.socket(), true) };
        assert!(matches!(silent.attest(&caller).await, Err(AttestError::TooSlow("systemd"))));
    }

    #[tokio::test]
    async fn without_a_bus_or_without_systemd_on_it_the_attestor_fails() {
        let folder = tempfile::tempdir().unwrap();
        let caller = pin(std::process::id());
        assert!(attestor(&folder.path().join("none"), true).attest(&caller).await.is_err());
        let Some(bus) = Bus::start("without_a_bus_or_without_systemd_on_it_the_attestor_fails") else {
            return;
        };
        bus.connect().await;
        assert!(attestor(&bus.socket(), true).attest(&caller).await.is_err());
    }

    #[tokio::test]
    async fn a_caller_that_dies_while_systemd_thinks_gets_nothing() {
        static VICTIM: Mutex<Option<Child>> = Mutex::new(None);
        let Some(bus) = Bus::start("a_caller_that_dies_while_systemd_thinks_gets_nothing") else { return };
        let child = Command::new("sleep").arg("1000").spawn().unwrap();
        let caller = pin(child.id());
        *VICTIM.lock().unwrap() = Some(child);
        bus.serve(|member, path| {
            if let Some(mut child) = VICTIM.lock().unwrap().take() {
                child.kill().unwrap();
                child.wait().unwrap();
            }
            old(member, path)
        })
        .await;
        let result = attestor(&bus.socket(), true).attest(&caller).await;
        assert!(matches!(result, Err(AttestError::Caller(_))), "{result:?}");
    }
}
