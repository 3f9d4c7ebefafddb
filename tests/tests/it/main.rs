//! The whole system, judged from outside: the command line, other people's clients, time.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says why by panicking")]

mod authority;
mod contract;
mod demo;
mod deploy;
mod differential;
mod durability;
mod federation;
mod group;
mod interop;
mod lifecycle;
mod migration;
mod nesting;
mod rotation;
mod tpm_devid;
