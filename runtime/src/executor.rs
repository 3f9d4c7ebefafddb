//! The threads that a process runs on.
//!
//! Tokio's default is a thread per core, each with its own stacks and allocator arenas. On a GPU node with two
//! hundred cores that would be most of the agent's memory for work that needs one, so the number is small and can
//! be configured.

use std::io;
use std::num::NonZeroUsize;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

/// The fewest and the most worker threads without configuration.
const WORKERS: (usize, usize) = (2, 4);
/// Threads for blocking work: store writes, signatures, files.
const BLOCKING_THREADS: usize = 64;
/// How long a thread for blocking work stays without any.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// How many worker threads a process has: what is configured, else one per core, but at least two and at most
/// four.
pub fn worker_threads(configured: Option<NonZeroUsize>) -> usize {
    let cores = || std::thread::available_parallelism().map_or(WORKERS.0, NonZeroUsize::get);
    configured.map_or_else(|| cores().clamp(WORKERS.0, WORKERS.1), NonZeroUsize::get)
}

/// Builds the executor of a process. `name` is what its threads are called, at most 15 bytes of it.
///
/// # Errors
/// When the threads cannot be started.
pub fn build(name: &str, configured: Option<NonZeroUsize>) -> io::Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(worker_threads(configured))
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_keep_alive(KEEP_ALIVE)
        .thread_name(name)
        .enable_all()
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_threads_is_small_unless_configured() {
        assert!((2..=4).contains(&worker_threads(None)));
        let six = NonZeroUsize::new(6);
        assert_eq!(worker_threads(six), 6);
        let runtime = build("test", six).expect("threads start");
        assert_eq!(runtime.metrics().num_workers(), 6);
        assert_eq!(runtime.block_on(async { 7 }), 7);
    }
}
