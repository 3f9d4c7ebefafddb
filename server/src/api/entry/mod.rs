//! Registration entries: `spire.api.server.entry`.

pub mod v1;
