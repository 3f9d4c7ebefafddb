//! Where named private keys live. Two drivers: memory (keys are lost with the process) and disk.
//!
//! Keys never leave through this seam: a caller gets something that signs. Drivers that keep keys in a device fit
//! the same trait.

mod disk;
mod memory;

use std::sync::Arc;

use async_trait::async_trait;

use crate::key::{KeyError, KeyType, PrivateKey, Signer};

pub use disk::Disk;
pub use memory::Memory;

/// Keeps private keys under IDs such as `x509-CA-A`.
#[async_trait]
pub trait KeyManager: Send + Sync {
    /// Makes a key and keeps it under `id`, in place of a key that was there. When this fails the old key remains.
    ///
    /// # Errors
    /// [`KeyError`]: the key could not be made or kept.
    async fn generate(&self, id: &str, kind: KeyType) -> Result<Arc<dyn Signer>, KeyError>;

    /// The key under `id`.
    ///
    /// # Errors
    /// [`KeyError`]: the keys could not be read.
    async fn key(&self, id: &str) -> Result<Option<Arc<dyn Signer>>, KeyError>;

    /// All IDs in ascending order.
    ///
    /// # Errors
    /// [`KeyError`]: the keys could not be read.
    async fn ids(&self) -> Result<Vec<String>, KeyError>;

    /// Forgets the key under `id`; nothing happens when there is none.
    ///
    /// # Errors
    /// [`KeyError`]: the key could not be removed, and is still there.
    async fn remove(&self, id: &str) -> Result<(), KeyError>;
}

/// Runs work that blocks or computes for long off the async threads.
async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, KeyError> + Send + 'static,
) -> Result<T, KeyError> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(KeyError::Interrupted))
}

fn checked_id(id: &str) -> Result<String, KeyError> {
    if id.is_empty() { Err(KeyError::EmptyId) } else { Ok(id.to_owned()) }
}

fn signer(key: &Arc<PrivateKey>) -> Arc<dyn Signer> {
    key.clone()
}
