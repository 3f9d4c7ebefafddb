//! The Bonafide agent: attests the node and its workloads and serves them SVIDs.
//!
//! From the inside out: [`caller`] pins a local process, [`workload_attestor`] describes it, [`svid_cache`] knows what it
//! is entitled to and holds it, [`api`] hands it out. On the other side [`bootstrap`] makes the node an agent with the
//! help of a [`node_attestor`], [`own_svid`] keeps it one, and [`sync`] keeps up with the server through
//! [`server_client`]. [`agent`] puts all of it together.

pub mod agent;
pub mod api;
pub mod bootstrap;
pub mod caller;
pub mod config;
mod drivers;
pub mod gpu_evidence;
pub mod metrics;
pub mod node_attestor;
pub mod own_svid;
pub mod owned;
pub mod server_client;
pub mod svid_cache;
pub mod sync;
pub mod tpm;
pub mod workload_attestor;
