//! Facts about this server: `spire.api.server.debug`.

pub mod v1;
