//! Integration tests of the server.

mod api;
mod authority;
mod store;
