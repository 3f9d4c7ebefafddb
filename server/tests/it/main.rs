//! Integration tests of the server.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what fails here fails the test")]

mod api;
mod authority;
mod kubernetes;
mod store;
