//! Attested nodes: `spire.api.server.agent`.

pub mod v1;
