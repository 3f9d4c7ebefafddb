//! Laws that hold for every input, checked on many. `PROPTEST_CASES` says on how many.
#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

mod entitlement;
mod names;
mod rotation;
mod selectors;
