//! The public face of the crate: what it issues is read back by other people's parsers and verified by OpenSSL where
//! it is installed; what it accepts is made by others.

// The lint's own exception for tests does not reach the functions that they share.
#![allow(clippy::unwrap_used)]

mod bundles;
mod csr;
mod evidence;
mod hostile;
mod issuing;
mod key_managers;
mod keys;
mod oidc;
mod ssh;
mod support;
mod tls;
mod tokens;
mod verifying;
