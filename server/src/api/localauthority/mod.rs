//! The authorities that sign: `spire.api.server.localauthority`.

pub mod v1;
