//! Places for conversations with a service that many callers share.
//!
//! A service that describes processes is asked a few times at once. One user with many processes could take all places, and
//! whoever comes then would wait behind them. So each user may hold half of the places and waits for one of that half
//! first, where only its own callers stand in line.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::AttestError;

/// See the module.
pub(super) struct Places {
    all: Arc<Semaphore>,
    for_one: usize,
    users: Mutex<HashMap<u32, Arc<Semaphore>>>,
    patience: Duration,
    service: &'static str,
}

/// Given back when dropped.
pub(super) struct Place {
    _mine: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

impl Places {
    /// So many conversations at once with the service that errors name.
    pub(super) fn new(at_once: usize, service: &'static str) -> Self {
        Self {
            all: Arc::new(Semaphore::new(at_once)),
            for_one: at_once.div_ceil(2),
            users: Mutex::default(),
            patience: PATIENCE,
            service,
        }
    }

    /// A place for a caller of this user.
    ///
    /// # Errors
    /// None came free in time.
    pub(super) async fn take(&self, uid: u32) -> Result<Place, AttestError> {
        let mine = {
            let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
            // Those of whom nobody holds a place or waits are as good as new ones.
            users.retain(|_, places| Arc::strong_count(places) > 1);
            Arc::clone(users.entry(uid).or_insert_with(|| Arc::new(Semaphore::new(self.for_one))))
        };
        let place = async {
            let stopped = |_| AttestError::Stopped;
            let mine = mine.acquire_owned().await.map_err(stopped)?;
            let of_all = Arc::clone(&self.all).acquire_owned().await.map_err(stopped)?;
            Ok(Place { _mine: mine, _of_all: of_all })
        };
        tokio::time::timeout(self.patience, place).await.map_err(|_| AttestError::TooSlow(self.service))?
    }
}

/// For a place alone: the conversation has its own.
const PATIENCE: Duration = Duration::from_secs(15);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_user_takes_half_of_the_places_and_stands_in_no_other_line() {
        let places = Places { patience: Duration::from_millis(50), ..Places::new(4, "x") };
        let held = [places.take(1).await.unwrap(), places.take(1).await.unwrap()];
        let waiting = places.take(1);
        tokio::pin!(waiting);
        assert!(futures_now(&mut waiting).await.is_none());
        let others = [places.take(2).await.unwrap(), places.take(3).await.unwrap()];
        assert!(matches!(waiting.await, Err(AttestError::TooSlow("x"))));
        assert!(places.take(4).await.is_err(), "there are four");
        drop(held);
        drop(others);
        assert!(places.take(4).await.is_ok());
        assert_eq!(places.users.lock().unwrap().len(), 1, "who has gone is forgotten");
    }

    /// What is there already.
    async fn futures_now<T>(future: &mut (impl Future<Output = T> + Unpin)) -> Option<T> {
        tokio::select! {
            biased;
            done = future => Some(done),
            () = std::future::ready(()) => None,
        }
    }
}
