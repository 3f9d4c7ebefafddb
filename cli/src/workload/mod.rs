//! Commands that call the Workload API as the process that runs them.

pub(crate) mod fetch;
pub(crate) mod files;
pub(crate) mod validate;
