//! What each process needs: clock, supervised tasks, shutdown, configuration, telemetry, health, listeners.
//!
//! Both daemons are built from these parts and nothing here knows what an SVID is. The parts that talk to the
//! outside world replace what the libraries offer ready-made where that was found wanting: the accept loops
//! ([`listener`]) because the stock one spins silently at the descriptor limit and never ends a shutdown while a
//! stream is open, the shim in front of HTTP/2 on Unix sockets because some gRPC clients
//! name the socket path as their authority.

pub mod backoff;
pub mod clock;
pub mod config;
pub mod executor;
pub mod fetch;
pub mod health;
pub mod import;
pub mod listener;
pub mod shutdown;
pub mod tasks;
pub mod telemetry;

/// An error of any kind, as tasks and callbacks hand it back.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
