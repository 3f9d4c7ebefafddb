//! One question at a time to a service, however many wait for the answer.
//!
//! An answer is good for everybody who came before it was asked for, and for nobody who came later: who asks about a process must
//! not be told what was true before that process was looked at. So there is no age below which an answer is fresh enough; those
//! who come while a question is under way share the next one. A pause between questions bounds what the service has to do.

use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

/// Answers of type `T`, or why there is none.
pub(crate) struct Shared<T, E> {
    pause: Duration,
    last: Mutex<Last<T, E>>,
}

struct Last<T, E> {
    /// When the last question began, whether or not somebody waited for its answer.
    began: Option<Instant>,
    /// The last answer, and when its question began.
    answer: Option<(Instant, Result<T, E>)>,
}

impl<T: Clone, E: Clone> Shared<T, E> {
    /// With so much time between the beginnings of two questions.
    pub(crate) fn new(pause: Duration) -> Self {
        Self { pause, last: Mutex::new(Last { began: None, answer: None }) }
    }

    /// An answer to a question that began at `after` or later.
    ///
    /// # Errors
    /// That question had none.
    pub(crate) async fn since<F>(&self, after: Instant, ask: impl FnOnce() -> F) -> Result<T, E>
    where
        F: Future<Output = Result<T, E>>,
    {
        // Whoever is next in line asks, and finds that it is answered if it came early enough.
        let mut last = self.last.lock().await;
        if let Some((began, result)) = &last.answer
            && *began >= after
        {
            return result.clone();
        }
        if let Some(began) = last.began {
            tokio::time::sleep_until(began + self.pause).await;
        }
        let began = Instant::now();
        last.began = Some(began);
        let result = ask().await;
        last.answer = Some((began, result.clone()));
        result
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn those_who_wait_share_and_those_who_come_later_do_not() {
        let shared = Arc::new(Shared::<usize, ()>::new(Duration::ZERO));
        let asked = Arc::new(AtomicUsize::new(0));
        let (begun, has_begun) = oneshot::channel();
        let (release, released) = oneshot::channel::<()>();
        let first = {
            let (shared, asked) = (Arc::clone(&shared), Arc::clone(&asked));
            tokio::spawn(async move {
                let ask = || async move {
                    begun.send(()).unwrap();
                    released.await.unwrap();
                    Ok(asked.fetch_add(1, Ordering::SeqCst))
                };
                shared.since(Instant::now(), ask).await
            })
        };
        has_begun.await.unwrap();
        // They came while the first question was under way, which may have seen what was before them.
        let came = Instant::now();
        let others: Vec<_> = (0..20)
            .map(|_| {
                let (shared, asked) = (Arc::clone(&shared), Arc::clone(&asked));
                let ask = || async move { Ok(asked.fetch_add(1, Ordering::SeqCst)) };
                tokio::spawn(async move { shared.since(came, ask).await })
            })
            .collect();
        release.send(()).unwrap();
        assert_eq!(first.await.unwrap(), Ok(0));
        for other in others {
            assert_eq!(other.await.unwrap(), Ok(1), "one for all who came meanwhile");
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
        let ask = || async { Ok(asked.fetch_add(1, Ordering::SeqCst)) };
        assert_eq!(shared.since(Instant::now(), ask).await, Ok(2));
    }

    #[tokio::test]
    async fn a_failure_is_shared_and_who_goes_away_takes_nothing_with_it() {
        let shared = Arc::new(Shared::<(), &str>::new(Duration::from_millis(20)));
        let came = Instant::now();
        assert_eq!(shared.since(came, || async { Err("away") }).await, Err("away"));
        assert_eq!(shared.since(came, || async { Ok(()) }).await, Err("away"), "asked once for both");
        let later = Instant::now() + Duration::from_millis(1);
        let gone = shared.since(later, std::future::pending);
        assert!(tokio::time::timeout(Duration::from_millis(50), gone).await.is_err());
        assert_eq!(shared.since(later, || async { Ok(()) }).await, Ok(()));
        let again = Instant::now() + Duration::from_millis(1);
        assert_eq!(shared.since(again, || async { Ok(()) }).await, Ok(()));
        assert!(again.elapsed() >= Duration::from_millis(10), "not at once after the one before");
    }
}
