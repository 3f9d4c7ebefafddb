//! The authorities that sign: X.509 CA, JWT key and WIT key, two slots each, one state machine for all three.
//!
//! An authority passes through *prepared* (its public half is in the trust bundle, it signs nothing), *active* (it
//! signs) and *old* (it signs nothing any more, what it signed still verifies). The rules of when to take which
//! step are pure and live in `bonafide_identity`; this module makes the steps real:
//!
//! - [`slots`] holds the slots and takes the steps,
//! - [`journal`] is what survives a restart,
//! - [`signer`] makes SVIDs with whatever is active,
//! - [`server_svid`] keeps the server's own identity fresh.
//!
//! A step is one store transaction that holds both the journal records and the bundle, and what is in memory
//! changes only after it is durable. So there is no moment at which a restart could find an active authority that
//! is not published. Rejected: the journal as a file of its own (two things to write, hence an order in which to
//! lose one of them), and a journal entry per intention (recovery would have to guess what the intention reached).

pub mod journal;
pub mod server_svid;
pub mod signer;
pub mod slots;

pub use server_svid::{ServerSvid, ServerSvidError};
pub use signer::{Issuing, IssuingConfig, SignedToken, SignedX509, SigningError, WorkloadRequest};
pub use slots::{Authorities, AuthorityConfig, AuthorityError, TokenIssuer};
