//! Signing on request: `spire.api.server.svid`.

pub mod v1;
