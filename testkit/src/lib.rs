//! Test doubles and builders: manual clock, seeded randomness, test authority.
//!
//! For tests only, so what cannot be built panics instead of returning an error. The doubles are handed over as
//! closures ([`ManualClock::as_fn`], [`SeededRandom::as_fn`]) or used directly: this crate stands below those whose
//! seams they fill, so that each of them can test with it.

mod authority;
mod builders;
mod clock;
mod gpu;
pub mod postgres;
mod random;

pub use authority::{TestAuthority, TestLeaf};
pub use builders::{EntryBuilder, NodeBuilder, agent_id, bundle, id, selectors, trust_domain};
pub use clock::ManualClock;
pub use gpu::{GpuAuthority, GpuKind, GpuReport, TestGpu, device_id, tcb_info};
pub use postgres::{Forwarder, Postgres};
pub use random::SeededRandom;
