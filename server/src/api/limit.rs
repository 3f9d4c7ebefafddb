//! Token buckets, one for each rpc and caller.
//!
//! A call that finds its bucket empty waits until there are tokens again, as long as its own deadline allows; that is
//! what SPIRE's agents expect, which send their signing requests in one burst and take a refusal for a failure.
//! Agents are told apart by identity, because many of them may share one address (a NAT, a load balancer); everybody
//! else by address, of IPv6 the first 64 bits.
//!
//! The number of buckets is bounded: whoever can open connections from many addresses must not fill the memory. When
//! a table is full and no bucket in it is idle, newcomers share one bucket.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Mutex;
use std::time::Duration;

use bonafide_identity::SpiffeId;
use tokio::time::Instant;
use tonic::Status;

/// Who is limited.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    /// An attested agent, wherever it calls from.
    Agent(SpiffeId),
    /// Anybody else, by address; IPv6 by its /64 ([`crate::caller::network`]).
    Address(IpAddr),
    /// All those for whom there was no room.
    Crowd,
}

/// The buckets of one rpc.
#[derive(Debug)]
pub struct Limiter {
    rate: u32,
    buckets: Mutex<Buckets>,
    capacity: usize,
}

#[derive(Debug)]
struct Buckets {
    by_subject: HashMap<Subject, Bucket>,
    swept: Instant,
}

#[derive(Debug)]
struct Bucket {
    /// Below zero when callers wait: each has taken its tokens already and sleeps until they exist.
    tokens: f64,
    at: Instant,
}

impl Bucket {
    fn refill(&mut self, rate: f64, now: Instant) {
        self.tokens = (self.tokens + now.duration_since(self.at).as_secs_f64() * rate).min(rate);
        self.at = now;
    }
}

/// Without a deadline of the caller's own, nobody waits longer than this.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// A bucket nobody used for this long is full again, and so says nothing.
const IDLE: Duration = Duration::from_secs(60);
/// A full table is worth a look more often, yet not at each call: the look costs time for each bucket.
const SWEEP_WHEN_FULL: Duration = Duration::from_secs(1);
const CAPACITY: usize = 65_536;

impl Limiter {
    /// `rate` tokens each second and as many at once.
    pub fn new(rate: u32) -> Self {
        Self::with_capacity(rate, CAPACITY)
    }

    fn with_capacity(rate: u32, capacity: usize) -> Self {
        let buckets = Buckets { by_subject: HashMap::new(), swept: Instant::now() };
        Self { rate, buckets: Mutex::new(buckets), capacity }
    }

    /// Takes `cost` tokens, waiting for them until `deadline`.
    ///
    /// # Errors
    /// ResourceExhausted when they cannot be there in time, or never.
    pub async fn take(&self, subject: Subject, cost: usize, deadline: Option<Instant>) -> Result<(), Status> {
        let rate = self.rate as usize;
        if cost > rate {
            return Err(Status::resource_exhausted(format!("rate ({cost}) exceeds burst size ({rate})")));
        }
        let now = Instant::now();
        let latest = deadline.map_or(now + LONGEST_WAIT, |deadline| deadline.min(now + LONGEST_WAIT));
        let (subject, wait) = self.reserve(subject, cost, now, latest)?;
        if wait.is_zero() {
            return Ok(());
        }
        // A caller that gives up while it waits leaves its tokens to the others.
        let mut reservation = Reservation { limiter: self, subject, cost, kept: false };
        tokio::time::sleep(wait).await;
        reservation.kept = true;
        Ok(())
    }

    /// Takes one token if there is one now.
    pub fn try_take(&self, subject: Subject) -> bool {
        let now = Instant::now();
        self.reserve(subject, 1, now, now).is_ok()
    }

    fn reserve(
        &self,
        subject: Subject,
        cost: usize,
        now: Instant,
        latest: Instant,
    ) -> Result<(Subject, Duration), Status> {
        let rate = f64::from(self.rate);
        let mut buckets = self.buckets.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let full = buckets.by_subject.len() >= self.capacity;
        if now.duration_since(buckets.swept) >= if full { SWEEP_WHEN_FULL } else { IDLE } {
            buckets.swept = now;
            buckets.by_subject.retain(|_, bucket| {
                bucket.refill(rate, now);
                bucket.tokens < rate
            });
        }
        let room = buckets.by_subject.len() < self.capacity || buckets.by_subject.contains_key(&subject);
        let subject = if room { subject } else { Subject::Crowd };
        let bucket =
            buckets.by_subject.entry(subject.clone()).or_insert_with(|| Bucket { tokens: rate, at: now });
        bucket.refill(rate, now);
        let missing = cost as f64 - bucket.tokens;
        let wait = if missing <= 0.0 { Duration::ZERO } else { Duration::from_secs_f64(missing / rate) };
        if now + wait > latest {
            return Err(Status::resource_exhausted(format!(
                "rate: Wait(n={cost}) would exceed context deadline"
            )));
        }
        bucket.tokens -= cost as f64;
        Ok((subject, wait))
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.buckets.lock().unwrap().by_subject.len()
    }
}

struct Reservation<'a> {
    limiter: &'a Limiter,
    subject: Subject,
    cost: usize,
    kept: bool,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        let mut buckets = self.limiter.buckets.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(bucket) = buckets.by_subject.get_mut(&self.subject) {
            bucket.tokens += self.cost as f64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> Subject {
        Subject::Address(IpAddr::from([10, 0, 0, last]))
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_passes_and_the_next_waits() {
        let limiter = Limiter::new(10);
        let begin = Instant::now();
        for _ in 0..10 {
            limiter.take(address(1), 1, None).await.unwrap();
        }
        assert_eq!(begin.elapsed(), Duration::ZERO);
        limiter.take(address(1), 5, None).await.unwrap();
        assert_eq!(begin.elapsed().as_millis().div_ceil(10), 50, "{:?}", begin.elapsed());
        // Another caller is not held up by the first.
        limiter.take(address(2), 10, Some(Instant::now())).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_come_in_time_is_refused_at_once_and_costs_nothing() {
        let limiter = Limiter::new(1);
        limiter.take(address(1), 1, None).await.unwrap();
        let begin = Instant::now();
        let deadline = Some(begin + Duration::from_millis(900));
        let status = limiter.take(address(1), 1, deadline).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::ResourceExhausted);
        assert_eq!(begin.elapsed(), Duration::ZERO);
        limiter.take(address(1), 1, Some(begin + Duration::from_millis(1100))).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn more_than_a_burst_is_never_possible() {
        let status = Limiter::new(500).take(address(1), 501, None).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::ResourceExhausted);
        assert_eq!(status.message(), "rate (501) exceeds burst size (500)");
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_gives_up_returns_its_tokens() {
        let limiter = Limiter::new(10);
        limiter.take(address(1), 10, None).await.unwrap();
        let waiting = limiter.take(address(1), 10, None);
        assert!(tokio::time::timeout(Duration::from_millis(500), waiting).await.is_err());
        // Half a second has brought five tokens; the abandoned ten are not missing.
        limiter.take(address(1), 5, Some(Instant::now() + Duration::from_millis(10))).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn idle_buckets_are_dropped_and_their_number_is_bounded() {
        let limiter = Limiter::with_capacity(1, 3);
        for last in 1..=3 {
            limiter.take(address(last), 1, None).await.unwrap();
        }
        // No room: the fourth and the fifth share.
        let soon = Some(Instant::now() + Duration::from_millis(10));
        limiter.take(address(4), 1, soon).await.unwrap();
        limiter.take(address(5), 1, soon).await.unwrap_err();
        assert_eq!(limiter.len(), 4);
        tokio::time::advance(IDLE).await;
        limiter.take(address(6), 1, None).await.unwrap();
        assert_eq!(limiter.len(), 1);
    }
}
