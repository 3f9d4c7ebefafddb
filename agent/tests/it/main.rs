//! The agent as a whole, against a server that does as it is told and with this process as its workload.

#![allow(clippy::unwrap_used, reason = "helpers of tests may fail like tests")]

mod admin;
mod advisories;
mod bootstrap;
mod broker;
mod containers;
mod delegated_identity;
mod documents;
mod fake_server;
mod gang_start;
mod gpu_evidence;
mod harness;
mod keeping_up;
mod kubelet;
mod pid_reuse;
mod pods;
mod rebootstrap;
mod sources;
mod workload_api;
