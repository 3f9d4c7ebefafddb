//! The Bonafide agent: attests the node and its workloads and serves them SVIDs.

pub mod bootstrap;
pub mod caller;
pub mod config;
pub mod metrics;
pub mod node_attestor;
pub mod own_svid;
pub mod server_client;
pub mod svid_cache;
pub mod workload_attestor;
