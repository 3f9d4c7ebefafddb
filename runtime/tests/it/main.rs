//! The runtime against real sockets, signals and limits.
#![allow(missing_docs)]

mod authority;
mod bind;
mod descriptors;
mod echo;
mod health;
mod process;
mod tls;
mod unix;
