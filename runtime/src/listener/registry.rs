//! The open connections, and how the application closes some of them.
//!
//! A TLS handshake verifies a client once. When its agent is banned, its certificate expires or the trust in its authority ends, the
//! connection knows nothing of it (measured: old connections keep working under old trust). So the application
//! says which peers have lost their standing.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::Peer;

/// How a connection is closed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum CloseMode {
    /// No new requests; running ones go on for as long as they take.
    #[default]
    Graceful,
    /// At once: running requests are cut.
    Now,
}

/// The open connections of one or more listeners. Clones share them.
#[derive(Clone, Default)]
pub struct ConnectionRegistry {
    connections: Arc<Mutex<HashMap<u64, Registered>>>,
}

struct Registered {
    peer: Arc<Peer>,
    close: watch::Sender<Option<CloseMode>>,
}

impl fmt::Debug for ConnectionRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionRegistry").field("connections", &self.len()).finish()
    }
}

impl ConnectionRegistry {
    /// No connections.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many connections are open.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The peers of all open connections, in no order.
    pub fn peers(&self) -> Vec<Arc<Peer>> {
        self.lock().values().map(|registered| Arc::clone(&registered.peer)).collect()
    }

    /// Closes each connection whose peer `chosen` accepts; how many those were. `chosen` is called under a lock and must not come back
    /// here. A connection that closes gracefully can still be closed at once later.
    pub fn close_where(&self, mode: CloseMode, mut chosen: impl FnMut(&Peer) -> bool) -> usize {
        let connections = self.lock();
        let chosen = connections.values().filter(|registered| chosen(&registered.peer));
        chosen
            .map(|registered| registered.close.send_modify(|close| *close = (*close).max(Some(mode))))
            .count()
    }

    pub(super) fn register(&self, peer: Arc<Peer>) -> Registration {
        let (close, closed) = watch::channel(None);
        let id = peer.connection_id();
        self.lock().insert(id, Registered { peer, close });
        Registration { registry: self.clone(), id, closed }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Registered>> {
        // A panic of a caller's `chosen` leaves the map whole.
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's place in the registry; dropping gives it up.
pub(super) struct Registration {
    registry: ConnectionRegistry,
    id: u64,
    closed: watch::Receiver<Option<CloseMode>>,
}

impl Registration {
    /// Waits for an order to close that is stronger than `so_far`.
    pub(super) async fn close(&mut self, so_far: Option<CloseMode>) -> CloseMode {
        loop {
            if let Some(mode) = (*self.closed.borrow_and_update()).filter(|mode| Some(*mode) > so_far) {
                return mode;
            }
            if self.closed.changed().await.is_err() {
                // The sender lives in the registry until this registration is dropped.
                std::future::pending::<()>().await;
            }
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.registry.lock().remove(&self.id);
    }
}
