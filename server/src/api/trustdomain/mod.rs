//! Relationships with other trust domains: `spire.api.server.trustdomain`.

pub mod v1;
