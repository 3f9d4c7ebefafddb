//! `SIGKILL` at random moments: nothing that was acknowledged is lost, every opening succeeds, no token is taken twice.

use std::time::{Duration, Instant};

use super::workload::{Ledger, Writer};
use super::{LASTING, ON_DISK, available, setting};

#[test]
fn nothing_acknowledged_is_lost_by_a_kill() {
    let kills = setting("BONAFIDE_TEST_KILLS", 10);
    for driver in LASTING.into_iter().filter(|driver| available(*driver)) {
        let folder = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::default();
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        for round in 0..kills {
            let mut writer = Writer::start(driver, round, folder.path());
            // One in four dies while it opens the store, or soon after.
            if round % 4 == 3 {
                writer.listen(&mut ledger, Instant::now() + random.millis(60), false);
            } else {
                writer.listen(&mut ledger, Instant::now() + Duration::from_secs(60), true);
                writer.listen(&mut ledger, Instant::now() + random.millis(150), false);
            }
            writer.kill(&mut ledger);
            ledger.check(driver, folder.path(), &format!("{driver}, kill {round}"));
        }
        eprintln!("{driver}: {kills} kills, {} acknowledged writes, none lost", ledger.acks);
        assert!(ledger.acks > kills, "the writer must get something done");
    }
}

#[test]
fn a_store_that_was_killed_while_it_was_made_opens() {
    let kills = setting("BONAFIDE_TEST_KILLS", 10);
    for driver in ON_DISK {
        let mut random = Random(0x2545_f491_4f6c_dd1d);
        let mut found = [0, 0];
        for round in 0..kills {
            let folder = tempfile::tempdir().unwrap();
            let mut ledger = Ledger::default();
            let mut writer = Writer::start(driver, round, folder.path());
            // Waiting for the first file, since starting a process takes longer than making a store.
            let start = Instant::now();
            while std::fs::read_dir(folder.path()).unwrap().next().is_none() {
                assert!(start.elapsed() < Duration::from_secs(60), "the store must be made");
            }
            writer.listen(&mut ledger, Instant::now() + random.millis(8), false);
            writer.kill(&mut ledger);
            found[usize::from(folder.path().join("store").exists())] += 1;
            ledger.check(driver, folder.path(), &format!("{driver}, kill {round} of a new store"));
        }
        eprintln!(
            "{driver}: killed {} times before and {} times after the first file of the database",
            found[0], found[1]
        );
    }
}

/// A xorshift generator: the same moments in each run, as far as the scheduler agrees.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn millis(&mut self, below: u64) -> Duration {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        Duration::from_micros(self.0 % (below * 1000))
    }
}
