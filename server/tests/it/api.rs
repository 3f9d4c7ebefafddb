//! The services, over real sockets.

mod agents;
mod attestation;
mod attestors;
mod bundle_publishers;
mod bundles;
mod entries;
mod federation;
mod gpu_evidence;
mod harness;
mod k8s_psat;
mod lifecycle;
mod lifetimes;
mod local;
mod local_authority;
mod nesting;
mod permissions;
mod reference;
mod rotation;
mod svid;
mod sync;
mod tpm;
