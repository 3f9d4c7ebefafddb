//! The Bonafide server: holds a trust domain, attests nodes and signs SVIDs.
//!
//! [`server`] is the composition root: it builds what the configuration names, binds the sockets and runs until it
//! is told to stop. The binary and the tests go through the same door, [`server::Server::start`].

pub mod api;
pub mod attestation;
pub mod audit;
pub mod authority;
pub mod backup;
pub mod bundle_publisher;
pub mod caller;
pub mod config;
pub mod drivers;
pub mod federation;
pub mod gpu_evidence;
pub mod kubernetes;
pub mod node_attestor;
pub mod server;
pub mod status;
pub mod store;
pub mod tasks;
pub mod upstream_authority;
