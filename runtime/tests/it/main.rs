//! The runtime against real sockets, signals and limits.
#![allow(missing_docs, clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod advisories;
mod authority;
mod bind;
mod descriptors;
mod echo;
mod health;
mod https;
mod process;
mod proxy;
mod tls;
mod unix;
