//! The driver that forgets: tests and throw-away servers.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use super::{Batch, KeyValue, KvError, Range, Visitor};

/// An ordered map in memory.
#[derive(Debug, Default)]
pub struct Memory {
    keys: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl KeyValue for Memory {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        Ok(self.keys.get(key).cloned())
    }

    fn scan(&self, range: &Range, visit: Visitor<'_>) -> Result<(), KvError> {
        if range.is_void() {
            return Ok(());
        }
        for (key, value) in self.keys.range::<[u8], _>(range.bounds()) {
            if let ControlFlow::Break(()) = visit(key, value) {
                break;
            }
        }
        Ok(())
    }

    fn commit(&mut self, batch: &Batch) -> Result<(), KvError> {
        for (key, value) in batch.iter() {
            match value {
                Some(value) => drop(self.keys.insert(key.to_vec(), value.to_vec())),
                None => drop(self.keys.remove(key)),
            }
        }
        Ok(())
    }

    fn size(&self) -> Result<u64, KvError> {
        Ok(self.keys.iter().map(|(key, value)| (key.len() + value.len()) as u64).sum())
    }
}
