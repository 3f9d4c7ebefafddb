//! Turning a pinned process into selectors.
//!
//! All attestors look at the same process at the same time. One that fails takes nothing from the others: its selectors
//! are missing, so entries that need them do not match. What is then found is not all there is to say about the caller
//! ([`Attested::complete`]): if no entry matches, that is not the same as a caller without identity, and the answer is "try
//! again" and not "denied", as it is when all fail.

pub mod cgroup;
pub mod dbus;
pub mod docker;
pub mod gpu;
pub mod k8s;
pub mod kubernetes;
mod places;
pub mod slurm;
pub mod systemd;
pub mod unix;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use bonafide_identity::{Selector, SelectorError, SelectorSet};
use tokio::task::JoinSet;

use crate::caller::{CallerError, PinnedCaller};
use crate::metrics;

/// One way to describe a process.
#[async_trait]
pub trait WorkloadAttestor: Send + Sync {
    /// The type of the selectors it gives, and its name in configuration, logs and metrics.
    fn kind(&self) -> &'static str;

    /// What this attestor knows about the caller. An empty list says that it looked and found nothing to say.
    ///
    /// # Errors
    /// The caller could not be looked at; see [`AttestError`].
    async fn attest(&self, caller: &PinnedCaller) -> Result<Vec<Selector>, AttestError>;
}

/// Why an attestor has nothing to say.
#[derive(Debug, thiserror::Error)]
pub enum AttestError {
    /// The caller is gone, changed, or cannot be read.
    #[error(transparent)]
    Caller(#[from] CallerError),
    /// A fact about the caller does not make a selector.
    #[error("cannot express a fact about the caller as a selector")]
    Selector(#[from] SelectorError),
    /// The executable could not be read.
    #[error("cannot read the caller's executable")]
    Executable(#[source] std::io::Error),
    /// Who knows about the caller cannot be asked.
    #[error("cannot ask {what} about the caller")]
    Service {
        /// Who.
        what: &'static str,
        /// Why not.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// Who knows about the caller does not answer in time.
    #[error("{0} does not answer in time")]
    TooSlow(&'static str),
    /// The attestor stopped before it was done.
    #[error("the attestor stopped")]
    Stopped,
}

/// Whether our numbers of processes are those of the system's services, which live in the first PID namespace.
fn numbers_are_the_systems() -> bool {
    std::fs::read_link("/proc/self/ns/pid")
        .is_ok_and(|namespace| namespace.as_os_str() == FIRST_PID_NAMESPACE)
}

/// `PROC_PID_INIT_INO` of Linux: the first PID namespace has this number on every machine.
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";

/// Nobody could say anything about the caller, or the caller is no longer the process that connected.
#[derive(Debug, thiserror::Error)]
#[error("workload attestation failed")]
pub struct AttestationFailed;

/// What the attestors found.
#[derive(Debug)]
pub struct Attested {
    /// The selectors of all that had something to say.
    pub selectors: SelectorSet,
    /// Whether none has failed.
    pub complete: bool,
}

/// All configured attestors.
#[derive(Clone)]
pub struct WorkloadAttestors(Arc<[Arc<dyn WorkloadAttestor>]>);

impl WorkloadAttestors {
    /// Attestors that are asked together.
    #[must_use]
    pub fn new(attestors: Vec<Arc<dyn WorkloadAttestor>>) -> Self {
        Self(attestors.into())
    }

    /// The selectors of the caller, which is checked to be still the same when all attestors are done.
    ///
    /// # Errors
    /// All attestors failed, or the caller is not the process that connected. The log says why.
    pub async fn attest(&self, caller: &PinnedCaller) -> Result<Attested, AttestationFailed> {
        let started = Instant::now();
        let result = self.attest_all(caller).await;
        let outcome = if result.is_ok() { "ok" } else { "failed" };
        metrics::workload_attested(outcome, started.elapsed());
        result
    }

    async fn attest_all(&self, caller: &PinnedCaller) -> Result<Attested, AttestationFailed> {
        let mut selectors = BTreeSet::new();
        let (mut succeeded, mut complete) = (0_usize, true);
        let mut take = |kind: &'static str, result: Result<Vec<Selector>, AttestError>| match result {
            Ok(found) => {
                succeeded += 1;
                selectors.extend(found);
            }
            Err(error) => {
                complete = false;
                let error = &error as &dyn std::error::Error;
                tracing::warn!(attestor = kind, ?caller, error, "a workload attestor failed");
            }
        };
        if let [only] = &*self.0 {
            take(only.kind(), only.attest(caller).await);
        } else {
            let mut running = JoinSet::new();
            for attestor in &*self.0 {
                let (attestor, caller) = (Arc::clone(attestor), caller.clone());
                running.spawn(async move { (attestor.kind(), attestor.attest(&caller).await) });
            }
            while let Some(done) = running.join_next().await {
                match done {
                    Ok((kind, result)) => take(kind, result),
                    Err(_) => take("unknown", Err(AttestError::Stopped)),
                }
            }
        }
        if succeeded == 0 {
            return Err(AttestationFailed);
        }
        if let Err(error) = caller.recheck() {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(?caller, error, "the caller did not last until it was attested");
            return Err(AttestationFailed);
        }
        Ok(Attested { selectors: selectors.into_iter().collect(), complete })
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};
    use std::sync::Mutex;

    use bonafide_runtime::listener::{PeerCred, PidfdOrigin};
    use rustix::process::{Pid, PidfdFlags, getegid, geteuid, pidfd_open};

    use super::*;

    struct Says(&'static [&'static str]);
    struct Fails;
    struct Kills(Mutex<Option<Child>>);

    #[async_trait]
    impl WorkloadAttestor for Says {
        fn kind(&self) -> &'static str {
            "says"
        }
        async fn attest(&self, _: &PinnedCaller) -> Result<Vec<Selector>, AttestError> {
            self.0.iter().map(|value| Ok(Selector::new("says", value)?)).collect()
        }
    }

    #[async_trait]
    impl WorkloadAttestor for Fails {
        fn kind(&self) -> &'static str {
            "fails"
        }
        async fn attest(&self, _: &PinnedCaller) -> Result<Vec<Selector>, AttestError> {
            Err(AttestError::Stopped)
        }
    }

    #[async_trait]
    impl WorkloadAttestor for Kills {
        fn kind(&self) -> &'static str {
            "kills"
        }
        async fn attest(&self, _: &PinnedCaller) -> Result<Vec<Selector>, AttestError> {
            if let Some(mut child) = self.0.lock().unwrap().take() {
                child.kill().unwrap();
                child.wait().unwrap();
            }
            Ok(vec![Selector::new("kills", "done")?])
        }
    }

    fn cred_of(pid: u32) -> PeerCred {
        let pid = i32::try_from(pid).unwrap();
        PeerCred {
            pid,
            uid: geteuid().as_raw(),
            gid: getegid().as_raw(),
            pidfd: Some(Arc::new(pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()).unwrap())),
            pidfd_origin: PidfdOrigin::Socket,
        }
    }

    fn myself() -> PinnedCaller {
        PinnedCaller::pin(&cred_of(std::process::id())).unwrap()
    }

    #[tokio::test]
    async fn selectors_of_all_attestors_are_merged() {
        let attestors = WorkloadAttestors::new(vec![
            Arc::new(Says(&["a", "b"])),
            Arc::new(Fails),
            Arc::new(Says(&["b", "c"])),
        ]);
        let found = attestors.attest(&myself()).await.unwrap();
        assert!(!found.complete, "one has failed");
        let shown: Vec<String> = found.selectors.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["says:a", "says:b", "says:c"]);
    }

    #[tokio::test]
    async fn all_failing_is_a_failure_and_nothing_found_is_not() {
        let caller = myself();
        assert!(
            WorkloadAttestors::new(vec![Arc::new(Fails), Arc::new(Fails)]).attest(&caller).await.is_err()
        );
        assert!(WorkloadAttestors::new(vec![Arc::new(Fails)]).attest(&caller).await.is_err());
        let silent = WorkloadAttestors::new(vec![Arc::new(Says(&[]))]);
        let found = silent.attest(&caller).await.unwrap();
        assert!(found.selectors.is_empty() && found.complete);
    }

    #[tokio::test]
    async fn a_caller_that_dies_while_it_is_attested_is_refused() {
        let child = Command::new("sleep").arg("1000").spawn().unwrap();
        let caller = PinnedCaller::pin(&cred_of(child.id())).unwrap();
        let attestors =
            WorkloadAttestors::new(vec![Arc::new(Says(&["a"])), Arc::new(Kills(Mutex::new(Some(child))))]);
        assert!(attestors.attest(&caller).await.is_err());
    }
}
