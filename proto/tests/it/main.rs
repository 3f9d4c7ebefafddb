//! The wire against an independent implementation, and the conversions against arbitrary input.

#![allow(clippy::unwrap_used, reason = "a test that cannot prepare itself has failed")]

mod conversions;
mod kubelet;
mod methods;
mod vectors;
