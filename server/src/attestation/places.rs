//! How many attestations may be under way at once, so that those of some leave room for others.
//!
//! Strangers can make an attestation last: by being slow to answer, or by having the server ask a slow host or issuer. So no
//! network and no attestor may have all places.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::caller::network;

/// All places.
const AT_ONCE: usize = 256;
/// For one attestor: more than one of them can be held up by strangers.
const FOR_ATTESTOR: usize = AT_ONCE / 4;
/// For one network. Nodes behind a common address take turns; an attestation takes milliseconds.
const FOR_NETWORK: usize = 4;
/// How long callers wait for a place.
const WAIT: Duration = Duration::from_secs(5);

/// The places, by attestor and by network.
pub(super) struct Places {
    all: Arc<Semaphore>,
    by_attestor: BTreeMap<&'static str, Arc<Semaphore>>,
    /// Of those that hold a place or wait for one.
    by_network: Networks,
}

/// With the number of those who hold a place or wait for one.
type Networks = Arc<Mutex<HashMap<IpAddr, (usize, Arc<Semaphore>)>>>;

impl Places {
    /// For these attestors.
    pub(super) fn new(attestors: impl Iterator<Item = &'static str>) -> Self {
        Self {
            all: Arc::new(Semaphore::new(AT_ONCE)),
            by_attestor: attestors.map(|name| (name, Arc::new(Semaphore::new(FOR_ATTESTOR)))).collect(),
            by_network: Arc::default(),
        }
    }

    /// Waits a little for a place; nothing when there is none by then. Without an address the network does not count.
    pub(super) async fn take(&self, attestor: &str, address: Option<IpAddr>) -> Option<Place> {
        let attestor = self.by_attestor.get(attestor)?.clone();
        let turn = address.map(|address| self.turn(network(address)));
        // The narrowest first: who waits for the next must not keep others from a wider one.
        let waiting = async {
            let mut permits = Vec::with_capacity(3);
            if let Some(turn) = &turn {
                permits.push(turn.semaphore.clone().acquire_owned().await.ok()?);
            }
            permits.push(attestor.acquire_owned().await.ok()?);
            permits.push(self.all.clone().acquire_owned().await.ok()?);
            Some(permits)
        };
        let permits = tokio::time::timeout(WAIT, waiting).await.ok()??;
        Some(Place { _permits: permits, _turn: turn })
    }

    fn turn(&self, network: IpAddr) -> Turn {
        let mut networks = self.by_network.lock().unwrap_or_else(PoisonError::into_inner);
        let (users, semaphore) =
            networks.entry(network).or_insert_with(|| (0, Arc::new(Semaphore::new(FOR_NETWORK))));
        *users += 1;
        Turn { networks: self.by_network.clone(), network, semaphore: semaphore.clone() }
    }
}

/// A place that is held.
pub(super) struct Place {
    // Given back before the turn, so that nobody finds the network unknown while one is held.
    _permits: Vec<OwnedSemaphorePermit>,
    _turn: Option<Turn>,
}

/// Holding or waiting for a place of a network.
struct Turn {
    networks: Networks,
    network: IpAddr,
    semaphore: Arc<Semaphore>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut networks = self.networks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((users, _)) = networks.get_mut(&self.network) {
            *users -= 1;
            if *users == 0 {
                networks.remove(&self.network);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn one_network_cannot_have_all_places_of_an_attestor_nor_one_attestor_all_places() {
        let places = Places::new(["a", "b"].into_iter());
        let mut held = Vec::new();
        for host in 1..=FOR_NETWORK {
            held.push(places.take("a", address(&format!("2001:db8::{host}"))).await.unwrap());
        }
        assert!(places.take("a", address("2001:db8::ffff:1")).await.is_none());
        assert!(places.take("b", address("2001:db8::ffff:1")).await.is_none());
        for host in held.len()..FOR_ATTESTOR {
            held.push(places.take("a", address(&format!("192.0.2.{host}"))).await.unwrap());
        }
        assert!(places.take("a", address("198.51.100.1")).await.is_none());
        assert!(places.take("a", None).await.is_none());
        held.push(places.take("b", address("198.51.100.1")).await.unwrap());

        // Who waits gets the place that is given back.
        let waiting = places.take("a", address("2001:db8::1"));
        held.swap_remove(0);
        assert!(waiting.await.is_some());
        drop(held);
        assert!(places.by_network.lock().unwrap().is_empty());
        assert!(places.take("c", None).await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn networks_that_hold_nothing_are_forgotten() {
        let places = Places::new(["a"].into_iter());
        let one = places.take("a", address("192.0.2.1")).await.unwrap();
        let two = places.take("a", address("192.0.2.1")).await.unwrap();
        drop(one);
        assert_eq!(places.by_network.lock().unwrap().len(), 1);
        drop(two);
        // Neither are those who gave up waiting.
        let mut held = Vec::new();
        for _ in 0..FOR_NETWORK {
            held.push(places.take("a", address("192.0.2.1")).await.unwrap());
        }
        assert!(places.take("a", address("192.0.2.1")).await.is_none());
        drop(held);
        assert_eq!(places.by_network.lock().unwrap().len(), 0);
    }
}
