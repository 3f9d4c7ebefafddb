//! Evidence of GPUs from agents: `bonafide.agent`.

pub mod v1;
