//! The log level while running: `spire.api.server.logger`.

pub mod v1;
