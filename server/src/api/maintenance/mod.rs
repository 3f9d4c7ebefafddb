//! Care for a running server: `bonafide.server`.

pub mod v1;
