//! A writer in a process of its own, to be killed, and what its parent knows of it.
//!
//! The child prints a line before each operation and one after it was acknowledged, each with one system call; what
//! is in the pipe survives its death. From these lines the parent knows what must be there, what must not, and what
//! may be either.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bonafide_identity::EntryId;
use bonafide_server::store::{DriverKind, Entries, JoinTokens, Nodes, Store};
use bonafide_testkit::Postgres;
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use super::{entry, id, node, open, token};

const CHILD: &str = "BONAFIDE_TEST_STORE_CHILD";
const WRITERS: usize = 4;
/// Entries and tokens are removed when so many newer ones are there.
const KEPT: usize = 5;

/// Not a test of its own: the body of the child process.
#[test]
fn child() {
    let Ok(order) = std::env::var(CHILD) else { return };
    let mut order = order.split(' ');
    let mut next = || order.next().expect("driver, round, folder").to_owned();
    let (driver, round, folder) = (next().parse().expect("a driver"), next(), next());
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(WRITERS).enable_all().build().unwrap();
    let (store, _) = match open(driver, Path::new(&folder)) {
        Ok(opened) => opened,
        Err(error) => return say(&format!("failed to open: {error}")),
    };
    runtime.block_on(async {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| tokio::spawn(write(store.clone(), format!("{round}-{writer}"), writer)))
            .collect();
        for writer in writers {
            if let Err(error) = writer.await.unwrap() {
                say(&format!("failed to write: {error}"));
            }
        }
    });
}

async fn write(
    store: Store,
    prefix: String,
    writer: usize,
) -> Result<(), bonafide_server::store::StoreError> {
    for n in 0_usize.. {
        let name = format!("{prefix}-{n}");
        let created = name.clone();
        say(&format!("try + {name}"));
        store.write(move |unit| unit.entry_create(entry(&created))).await?;
        say(&format!("ack + {name}"));

        let created = name.clone();
        say(&format!("try c {name}"));
        store.write(move |unit| unit.token_create(&token(&created))).await?;
        say(&format!("ack c {name}"));

        let serial = (n + 1) as u128;
        say(&format!("try n {prefix} {serial}"));
        let agent = prefix.clone();
        store.write(move |unit| unit.node_put(node(&agent, serial))).await?;
        say(&format!("ack n {prefix} {serial}"));

        // Two at once want the same token.
        let old = format!("{prefix}-{}", n / 2);
        say(&format!("try t {old}"));
        let take = |name: String| store.write(move |unit| unit.token_take(&name));
        let (first, second) = tokio::join!(take(old.clone()), take(old.clone()));
        for taken in [first?, second?] {
            if taken.is_some() {
                say(&format!("ack t {old}"));
            }
        }

        if let Some(old) = n.checked_sub(KEPT) {
            let name = format!("{prefix}-{old}");
            say(&format!("try - {name}"));
            let deleted = EntryId::parse(&name).unwrap();
            store.write(move |unit| unit.entry_delete(&deleted)).await?;
            say(&format!("ack - {name}"));
        }
        if n % 16 == writer {
            // Something large now and then.
            let name = format!("td{writer}.test");
            store
                .write(move |unit| {
                    use bonafide_server::store::Bundles;
                    unit.bundle_put(super::bundle(&name, vec![n as u8; 30_000]))
                })
                .await?;
        }
    }
    Ok(())
}

fn say(line: &str) {
    let mut out = io::stdout().lock();
    // Nobody listens any more: then the parent is gone, and so should we be.
    if out.write_all(format!("\n{line}\n").as_bytes()).and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}

/// A running child.
pub(crate) struct Writer {
    process: Child,
    unread: Vec<u8>,
}

impl Writer {
    pub(crate) fn start(driver: DriverKind, round: usize, folder: &Path) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        if driver == DriverKind::Postgres {
            command.env(bonafide_testkit::postgres::INHERITED, Postgres::shared().unwrap().inheritance());
        }
        let process = command
            .args(["store::workload::child", "--exact", "--nocapture", "--test-threads=1"])
            .env(CHILD, format!("{driver} {round} {}", folder.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        fcntl_setfl(process.stdout.as_ref().unwrap(), OFlags::NONBLOCK).unwrap();
        Self { process, unread: Vec::new() }
    }

    /// Takes in what the child has said until `until`, or until its first acknowledgement when `first_ack` is set.
    pub(crate) fn listen(&mut self, ledger: &mut Ledger, until: Instant, first_ack: bool) {
        while Instant::now() < until {
            let acks = ledger.acks;
            if self.drain(ledger) {
                panic!("the writer ended by itself: {}", self.process.wait().unwrap());
            }
            if first_ack && ledger.acks > acks {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(!first_ack, "the writer did nothing for too long; last heard: {:?}", ledger.last);
    }

    /// Reads all that is in the pipe; true at its end.
    pub(crate) fn drain(&mut self, ledger: &mut Ledger) -> bool {
        let mut buffer = [0; 65536];
        loop {
            match self.process.stdout.as_mut().unwrap().read(&mut buffer) {
                Ok(0) => return true,
                Ok(length) => {
                    self.unread.extend_from_slice(&buffer[..length]);
                    while let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                        let line: Vec<_> = self.unread.drain(..=end).collect();
                        ledger.note(String::from_utf8_lossy(&line).trim());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Stops it where it is, between two instructions of each thread.
    pub(crate) fn freeze(&mut self) {
        kill_process(self.pid(), Signal::STOP).unwrap();
        let stopped = waitpid(Some(self.pid()), WaitOptions::UNTRACED).unwrap();
        assert!(stopped.is_some_and(|(_, status)| status.stopped()), "the writer must stop");
    }

    /// `SIGKILL`; returns when the process is gone.
    pub(crate) fn kill(mut self, ledger: &mut Ledger) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        while !self.drain(ledger) {}
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.process)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Present,
    Absent,
    Either,
}

/// What the parent knows.
#[derive(Default)]
pub(crate) struct Ledger {
    entries: HashMap<String, Fate>,
    tokens: HashMap<String, Fate>,
    taken: HashMap<String, usize>,
    /// Last acknowledged and last tried serial.
    nodes: HashMap<String, (u128, u128)>,
    pub(crate) acks: usize,
    pub(crate) last: String,
}

impl Ledger {
    fn note(&mut self, line: &str) {
        let mut words = line.split(' ');
        let fate = match words.next() {
            Some("try") => Fate::Either,
            Some("ack") => Fate::Present,
            Some("failed") => panic!("{line}"),
            _ => return,
        };
        let acked = fate == Fate::Present;
        self.acks += usize::from(acked);
        self.last = line.to_owned();
        let what = words.next().unwrap();
        let name = words.next().unwrap().to_owned();
        let gone = if acked { Fate::Absent } else { Fate::Either };
        match what {
            "+" => drop(self.entries.insert(name, fate)),
            "-" => drop(self.entries.insert(name, gone)),
            "c" => drop(self.tokens.insert(name, fate)),
            "t" if acked => {
                *self.taken.entry(name.clone()).or_default() += 1;
                self.tokens.insert(name, Fate::Absent);
            }
            // Tried a second time: gone it stays.
            "t" => {
                let known = self.tokens.entry(name).or_insert(Fate::Either);
                if *known == Fate::Present {
                    *known = Fate::Either;
                }
            }
            "n" => {
                let serial = words.next().unwrap().parse().unwrap();
                let known = self.nodes.entry(name).or_default();
                known.1 = serial;
                if acked {
                    known.0 = serial;
                }
            }
            other => panic!("{other}"),
        }
    }

    /// Opens the store and compares. What may have been either is settled by what is found.
    pub(crate) fn check(&mut self, driver: DriverKind, folder: &Path, what: &str) {
        let (store, _) = match open(driver, folder) {
            Ok(opened) => opened,
            Err(error) => panic!("{what}: failed to open: {error}"),
        };
        {
            let entries = store.state().entries();
            for (name, fate) in &mut self.entries {
                let found = entries.get(&EntryId::parse(name).unwrap());
                let seen = if found.is_some() { Fate::Present } else { Fate::Absent };
                assert!(
                    *fate == Fate::Either || *fate == seen,
                    "{what}: entry {name} is {seen:?}, must be {fate:?}"
                );
                assert!(found.is_none_or(|found| **found == entry(name)), "{what}: entry {name} has changed");
                *fate = seen;
            }
            let present = self.entries.values().filter(|fate| **fate == Fate::Present).count();
            assert_eq!(entries.len(), present, "{what}: entries that nobody wrote");
        }
        for (name, (acked, tried)) in &mut self.nodes {
            let found = store.state().node(&id(&format!("/spire/agent/x509pop/{name}")));
            let serial = found.map_or(0, |node| node.serial.unwrap().to_string().parse().unwrap());
            assert!(
                (*acked..=*tried).contains(&serial),
                "{what}: node {name} has {serial}, not {acked}..={tried}"
            );
            (*acked, *tried) = (serial, serial);
        }
        if let Some((name, times)) = self.taken.iter().find(|(_, times)| **times > 1) {
            panic!("{what}: token {name} was taken {times} times");
        }
        // A token that is there is taken here, and so gone for the next check.
        let names: Vec<_> = self.tokens.keys().cloned().collect();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let taken = runtime.block_on(store.write(move |unit| {
            names
                .into_iter()
                .map(|name| Ok((unit.token_take(&name)?.is_some(), name)))
                .collect::<Result<Vec<_>, _>>()
        }));
        for (found, name) in taken.unwrap() {
            let seen = if found { Fate::Present } else { Fate::Absent };
            let fate = self.tokens.insert(name.clone(), Fate::Absent).unwrap();
            assert!(
                fate == Fate::Either || fate == seen,
                "{what}: token {name} is {seen:?}, must be {fate:?}"
            );
        }
        runtime.block_on(store.close());
    }
}
