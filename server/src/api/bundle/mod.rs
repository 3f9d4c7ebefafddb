//! Trust bundles: `spire.api.server.bundle`.

pub mod v1;
