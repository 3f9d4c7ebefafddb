//! Keys that end with the process: for tests, and for servers whose authorities may start afresh.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use super::{KeyManager, checked_id, off_thread, signer};
use crate::key::{KeyError, KeyType, PrivateKey, Signer};

/// Keeps keys in memory.
#[derive(Default)]
pub struct Memory {
    keys: Mutex<BTreeMap<String, Arc<PrivateKey>>>,
}

impl Memory {
    /// Without any key.
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<PrivateKey>>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl KeyManager for Memory {
    async fn generate(&self, id: &str, kind: KeyType) -> Result<Arc<dyn Signer>, KeyError> {
        let id = checked_id(id)?;
        let key = Arc::new(off_thread(move || PrivateKey::generate(kind)).await?);
        self.lock().insert(id, key.clone());
        Ok(key)
    }

    async fn key(&self, id: &str) -> Result<Option<Arc<dyn Signer>>, KeyError> {
        Ok(self.lock().get(id).map(signer))
    }

    async fn ids(&self) -> Result<Vec<String>, KeyError> {
        Ok(self.lock().keys().cloned().collect())
    }

    async fn remove(&self, id: &str) -> Result<(), KeyError> {
        self.lock().remove(id);
        Ok(())
    }
}
