//! What an identity is: types and pure rules, with no I/O, no clock and no cryptography.
//!
//! Everything here is a value or a function of values. Time arrives as a [`Timestamp`], randomness as a drawn number,
//! keys and certificates as opaque bytes; so each decision (who is entitled to what, when to rotate, how long to live)
//! can be tested on its own and replayed exactly. Text is parsed once, at the edge, into types that cannot be wrong;
//! no function of this crate panics, whatever it is given.
//!
//! Values are kept small and share their text, since a server holds a million entries in memory; see [`intern`].

mod attested_node;
mod authority;
mod bundle;
mod dns_name;
mod entitlement;
mod entry;
pub mod intern;
pub mod lifetime;
pub mod rotation;
mod selector;
mod spiffe_id;
mod text;
mod trust_domain;
mod validity;

pub use attested_node::{AttestedNode, EVIDENCE, JoinToken, SerialCheck, SerialError, SerialNumber};
pub use authority::{
    AuthorityKind, AuthoritySlot, AuthoritySlots, RotationStep, SlotError, SlotId, SlotStatus, UnknownName,
};
pub use bundle::{AuthorityRefusal, Bundle, Distrusted, JwtAuthority, PruneRefusal, Pruned, X509Authority};
pub use dns_name::{DnsName, DnsNameError, overlapping_wildcard};
pub use entitlement::{EntryIndex, drop_duplicate_hints, matching_entries};
pub use entry::{Entry, EntryError, EntryId, MAX_ENTRY_ID, MAX_HINT};
pub use intern::Interner;
pub use lifetime::{BACKDATE, SvidTtls, capped};
pub use rotation::{activate_at, prepare_at, renewal_instant};
pub use selector::{MatchBehavior, Selector, SelectorError, SelectorSet};
pub use spiffe_id::{MAX_SPIFFE_ID, SpiffeId};
pub use trust_domain::{IdError, MAX_TRUST_DOMAIN, TrustDomain};
pub use validity::{Lifetime, Timestamp};
