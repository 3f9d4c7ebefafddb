//! A consistent copy of a database that goes on being written to.
//!
//! Neither driver's own snapshots would do (sled has none), and stopping the writer for the length of a backup is out
//! of the question. So the copy goes through the keys in order, some at a time between two commits, and a commit that
//! changes a key which the copy has not reached yet leaves the former value here.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use super::kv::{KeyValue, KvError, Range};
use super::record::Table;
use super::writer::Pair;

/// How much is copied at a time, in bytes of keys and values: a few milliseconds.
const PART: usize = 512 << 10;

/// A copy in progress.
#[derive(Default)]
pub(super) struct Snapshot {
    /// A database that stands still by itself.
    source: Option<Box<dyn KeyValue>>,
    /// Keys up to here, included, are copied.
    cursor: Option<Vec<u8>>,
    /// Former values of keys behind the cursor; `None` where there was none.
    former: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    done: bool,
}

impl Snapshot {
    /// A copy of a database that shows one moment, whatever is written to it meanwhile.
    pub(super) fn of(source: Box<dyn KeyValue>) -> Self {
        Self { source: Some(source), ..Self::default() }
    }

    /// Notes that `key` is about to change.
    pub(super) fn keep(&mut self, key: &[u8], former: Option<&[u8]>) {
        let copied = self.done
            || self.source.is_some()
            || self.cursor.as_ref().is_some_and(|cursor| key <= &cursor[..]);
        if !copied && !self.former.contains_key(key) {
            self.former.insert(key.to_vec(), former.map(<[u8]>::to_vec));
        }
    }

    /// The next records, as they were when the copy began, without the header; nothing when all are copied.
    pub(super) fn next(&mut self, database: &dyn KeyValue) -> Result<Vec<Pair>, KvError> {
        let mut part: Vec<Pair> = Vec::new();
        let source = self.source.take();
        let database = source.as_deref().unwrap_or(database);
        while part.is_empty() && !self.done {
            let range = self.cursor.as_ref().map_or_else(Range::all, |cursor| Range::after(cursor));
            let (mut bytes, mut last) = (0, None);
            let mut done = true;
            database.scan(&range, &mut |key, value| {
                bytes += key.len() + value.len();
                last = Some(key.to_vec());
                if Table::of(key) != Some(Table::Header) && !self.former.contains_key(key) {
                    part.push((key.to_vec(), value.to_vec()));
                }
                done = bytes < PART;
                if done { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
            let later = match (done, last) {
                (false, Some(last)) => {
                    let later = self.former.split_off(&Range::after(&last).from);
                    self.cursor = Some(last);
                    later
                }
                _ => BTreeMap::new(),
            };
            self.done = done;
            let former = std::mem::replace(&mut self.former, later);
            part.extend(former.into_iter().filter_map(|(key, value)| Some((key, value?))));
        }
        self.source = source;
        part.sort_unstable();
        Ok(part)
    }
}

#[cfg(test)]
mod tests {
    use super::super::kv::{Batch, Memory};
    use super::*;

    fn key(n: u32) -> Vec<u8> {
        Table::Token.key(&n.to_be_bytes())
    }

    /// Changes before and behind the cursor, creations and deletions: the copy is that of the beginning.
    #[test]
    fn changes_during_the_copy_do_not_show() {
        let mut database = Memory::default();
        let value = vec![7; PART / 8];
        let mut batch = Batch::default();
        for n in (0..100).step_by(2) {
            batch.put(key(n), value.clone());
        }
        database.commit(&batch).unwrap();
        let mut begin = Vec::new();
        database
            .scan(&Range::all(), &mut |key, value| {
                begin.push((key.to_vec(), value.to_vec()));
                ControlFlow::Continue(())
            })
            .unwrap();

        let mut snapshot = Snapshot::default();
        let mut copied = Vec::new();
        let mut step = 0_u32;
        loop {
            let part = snapshot.next(&database).unwrap();
            if part.is_empty() {
                break;
            }
            copied.extend(part);
            let mut batch = Batch::default();
            for n in [step, 99 - step, 50 + step, (step * 37) % 100] {
                let key = key(n);
                snapshot.keep(&key, database.get(&key).unwrap().as_deref());
                if step.is_multiple_of(2) { batch.delete(key) } else { batch.put(key, b"new".to_vec()) }
            }
            database.commit(&batch).unwrap();
            step += 1;
        }
        assert!(step > 3, "the copy must take several parts");
        assert_eq!(copied, begin);
    }
}
