//! Registration entries.
//!
//! A client's entry becomes a [`NewEntry`], which lacks what only the server decides; an update goes field by field
//! into an existing entry, and only when every field was good. Both share one reader for each field.

use std::collections::BTreeSet;

use bonafide_identity::{
    DnsName, Entry, EntryError, EntryId, MAX_ENTRY_ID, MAX_HINT, Selector, SelectorSet, SpiffeId, Timestamp,
    TrustDomain,
};

use crate::convert::{
    ConvertError, instant, instant_or_never, member_id_from_wire, selectors_from_wire, selectors_to_wire,
    spiffe_id_from_wire, spiffe_id_to_wire, trust_domain_from_wire, workload_id_from_wire,
};
use crate::spire::types::{self, EntryMask, entry::AdditionalAttributes};

/// An entry as a client asks for it: each field was checked, nothing was stored yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewEntry {
    /// The wanted ID; `None` lets the server choose.
    pub id: Option<EntryId>,
    /// The identity.
    pub spiffe_id: SpiffeId,
    /// Who hands it out.
    pub parent_id: SpiffeId,
    /// Not empty.
    pub selectors: SelectorSet,
    /// Seconds; 0 means the default.
    pub x509_svid_ttl: u32,
    /// Seconds; 0 means the default.
    pub jwt_svid_ttl: u32,
    /// Sorted, without duplicates.
    pub federates_with: Box<[TrustDomain]>,
    /// Whether the identity may administrate.
    pub admin: bool,
    /// Whether the identity is a downstream server.
    pub downstream: bool,
    /// When the entry may be deleted; `None` means never.
    pub expires_at: Option<Timestamp>,
    /// In the order given: the first becomes the common name.
    pub dns_names: Box<[DnsName]>,
    /// Whether the SVID goes to a secret store.
    pub store_svid: bool,
    /// Tells several SVIDs of one workload apart.
    pub hint: Box<str>,
    /// Sign only when a workload asks.
    pub disable_x509_svid_prefetch: bool,
    /// Give each JWT-SVID a unique `jti`.
    pub jwt_svid_include_jti: bool,
}

impl NewEntry {
    /// The entry to store, with revision 0. `draw_id` is asked when the client wished no ID.
    #[must_use]
    pub fn into_entry(self, draw_id: impl FnOnce() -> EntryId, created_at: Timestamp) -> Entry {
        Entry {
            id: self.id.unwrap_or_else(draw_id),
            spiffe_id: self.spiffe_id,
            parent_id: self.parent_id,
            selectors: self.selectors,
            x509_svid_ttl: self.x509_svid_ttl,
            jwt_svid_ttl: self.jwt_svid_ttl,
            federates_with: self.federates_with,
            admin: self.admin,
            downstream: self.downstream,
            expires_at: self.expires_at,
            dns_names: self.dns_names,
            revision: 0,
            created_at,
            store_svid: self.store_svid,
            hint: self.hint,
            disable_x509_svid_prefetch: self.disable_x509_svid_prefetch,
            jwt_svid_include_jti: self.jwt_svid_include_jti,
        }
    }
}

/// The entry for the wire: its ID always, the rest as the mask says (absent mask: everything).
#[must_use]
pub fn entry_to_wire(entry: &Entry, mask: Option<&EntryMask>) -> types::Entry {
    let mask = mask.unwrap_or(&ALL);
    let attributes = AdditionalAttributes {
        disable_x509_svid_prefetch: entry.disable_x509_svid_prefetch,
        jwt_svid_include_jti: entry.jwt_svid_include_jti,
    };
    types::Entry {
        id: entry.id.as_str().to_owned(),
        spiffe_id: mask.spiffe_id.then(|| spiffe_id_to_wire(&entry.spiffe_id)),
        parent_id: mask.parent_id.then(|| spiffe_id_to_wire(&entry.parent_id)),
        selectors: when(mask.selectors, || selectors_to_wire(&entry.selectors)),
        x509_svid_ttl: when(mask.x509_svid_ttl, || seconds(entry.x509_svid_ttl)),
        federates_with: when(mask.federates_with, || {
            entry.federates_with.iter().map(|trust_domain| trust_domain.as_str().to_owned()).collect()
        }),
        admin: mask.admin && entry.admin,
        downstream: mask.downstream && entry.downstream,
        expires_at: when(mask.expires_at, || entry.expires_at.map_or(0, Timestamp::unix_seconds)),
        dns_names: when(mask.dns_names, || {
            entry.dns_names.iter().map(|name| name.as_str().to_owned()).collect()
        }),
        revision_number: when(mask.revision_number, || entry.revision),
        store_svid: mask.store_svid && entry.store_svid,
        jwt_svid_ttl: when(mask.jwt_svid_ttl, || seconds(entry.jwt_svid_ttl)),
        hint: when(mask.hint, || entry.hint.to_string()),
        created_at: when(mask.created_at, || entry.created_at.unix_seconds()),
        additional_attributes: (mask.additional_attributes && attributes != AdditionalAttributes::default())
            .then_some(attributes),
    }
}

/// Reads an entry that a client wants to create. Its revision and creation time are ignored.
///
/// # Errors
/// With SPIRE's text when a field breaks a rule; see [`ConvertError::found_when_stored`].
pub fn entry_from_wire(wire: &types::Entry, trust_domain: &TrustDomain) -> Result<NewEntry, ConvertError> {
    // The order of the checks is SPIRE's: an entry with two mistakes is refused with the same text.
    let parent_id = member_id_from_wire(wire.parent_id.as_ref(), trust_domain, PARENT_ID)?;
    let spiffe_id = workload_id_from_wire(wire.spiffe_id.as_ref(), trust_domain, SPIFFE_ID)?;
    let dns_names = dns_names(wire)?;
    let federates_with = federates_with(wire)?;
    let selectors = selectors(wire)?;
    let hint = hint(wire)?;
    let attributes = wire.additional_attributes.unwrap_or_default();
    check_stored(wire.store_svid, attributes.disable_x509_svid_prefetch, &selectors)?;
    Ok(NewEntry {
        id: if wire.id.is_empty() { None } else { Some(entry_id(&wire.id)?) },
        spiffe_id,
        parent_id,
        selectors,
        x509_svid_ttl: x509_svid_ttl(wire)?,
        jwt_svid_ttl: jwt_svid_ttl(wire)?,
        federates_with,
        admin: wire.admin,
        downstream: wire.downstream,
        expires_at: instant_or_never(wire.expires_at),
        dns_names,
        store_svid: wire.store_svid,
        hint,
        disable_x509_svid_prefetch: attributes.disable_x509_svid_prefetch,
        jwt_svid_include_jti: attributes.jwt_svid_include_jti,
    })
}

/// Writes the masked fields of a client's entry into a stored one (absent mask: all fields, so that what the client
/// left out becomes empty). ID, revision and creation time stay; raising the revision is the store's business.
///
/// # Errors
/// With SPIRE's text when a masked field breaks a rule; the entry is then unchanged.
pub fn apply_entry_update(
    entry: &mut Entry,
    wire: &types::Entry,
    mask: Option<&EntryMask>,
    trust_domain: &TrustDomain,
) -> Result<(), ConvertError> {
    let mask = mask.unwrap_or(&ALL);
    let mut updated = entry.clone();
    if mask.parent_id {
        updated.parent_id = member_id_from_wire(wire.parent_id.as_ref(), trust_domain, PARENT_ID)?;
    }
    if mask.spiffe_id {
        updated.spiffe_id = workload_id_from_wire(wire.spiffe_id.as_ref(), trust_domain, SPIFFE_ID)?;
    }
    if mask.dns_names {
        updated.dns_names = dns_names(wire)?;
    }
    if mask.federates_with {
        updated.federates_with = federates_with(wire)?;
    }
    if mask.selectors {
        updated.selectors = selectors(wire)?;
    }
    if mask.hint {
        updated.hint = hint(wire)?;
    }
    if mask.admin {
        updated.admin = wire.admin;
    }
    if mask.downstream {
        updated.downstream = wire.downstream;
    }
    if mask.expires_at {
        updated.expires_at = instant_or_never(wire.expires_at);
    }
    if mask.store_svid {
        updated.store_svid = wire.store_svid;
    }
    if mask.additional_attributes {
        let attributes = wire.additional_attributes.unwrap_or_default();
        updated.disable_x509_svid_prefetch = attributes.disable_x509_svid_prefetch;
        updated.jwt_svid_include_jti = attributes.jwt_svid_include_jti;
    }
    check_stored(updated.store_svid, updated.disable_x509_svid_prefetch, &updated.selectors)?;
    if mask.x509_svid_ttl {
        updated.x509_svid_ttl = x509_svid_ttl(wire)?;
    }
    if mask.jwt_svid_ttl {
        updated.jwt_svid_ttl = jwt_svid_ttl(wire)?;
    }
    *entry = updated;
    Ok(())
}

/// Reads an entry that a server sent. Fields that a mask left out are empty; a missing parent, for which an entry has
/// no empty value, becomes the ID of the server, which is nobody's agent.
///
/// # Errors
/// When ID or SPIFFE ID is missing, or a field that is there is malformed.
pub fn entry_from_server(wire: &types::Entry) -> Result<Entry, ConvertError> {
    if wire.id.is_empty() {
        return Err(ConvertError::NoEntryId);
    }
    let spiffe_id = spiffe_id_from_wire(wire.spiffe_id.as_ref(), SPIFFE_ID)?;
    let parent_id = match &wire.parent_id {
        None => spiffe_id.trust_domain().server_id(),
        id => spiffe_id_from_wire(id.as_ref(), PARENT_ID)?,
    };
    let attributes = wire.additional_attributes.unwrap_or_default();
    Ok(Entry {
        id: entry_id(&wire.id)?,
        parent_id,
        selectors: selectors_from_wire(&wire.selectors).map_err(ConvertError::Selector)?,
        x509_svid_ttl: x509_svid_ttl(wire)?,
        jwt_svid_ttl: jwt_svid_ttl(wire)?,
        federates_with: federates_with(wire)?,
        admin: wire.admin,
        downstream: wire.downstream,
        expires_at: instant_or_never(wire.expires_at),
        dns_names: wire
            .dns_names
            .iter()
            .map(|name| DnsName::parse(name).map_err(ConvertError::DnsName))
            .collect::<Result<_, _>>()?,
        revision: wire.revision_number,
        created_at: instant(wire.created_at),
        store_svid: wire.store_svid,
        hint: wire.hint.as_str().into(),
        disable_x509_svid_prefetch: attributes.disable_x509_svid_prefetch,
        jwt_svid_include_jti: attributes.jwt_svid_include_jti,
        spiffe_id,
    })
}

/// In characters.
const LONGEST_QUOTE: usize = 256;

const PARENT_ID: &str = "invalid parent ID";
const SPIFFE_ID: &str = "invalid spiffe ID";

pub(super) const ALL: EntryMask = EntryMask {
    spiffe_id: true,
    parent_id: true,
    selectors: true,
    x509_svid_ttl: true,
    federates_with: true,
    admin: true,
    downstream: true,
    expires_at: true,
    dns_names: true,
    revision_number: true,
    store_svid: true,
    jwt_svid_ttl: true,
    hint: true,
    created_at: true,
    additional_attributes: true,
};

/// The value of a masked field, or the one that is not on the wire.
fn when<T: Default>(wanted: bool, value: impl FnOnce() -> T) -> T {
    if wanted { value() } else { T::default() }
}

/// What came over the wire fits; what a configuration brought could be longer than the wire can say.
pub(super) fn seconds(ttl: u32) -> i32 {
    i32::try_from(ttl).unwrap_or(i32::MAX)
}

fn entry_id(text: &str) -> Result<EntryId, ConvertError> {
    if text.len() > MAX_ENTRY_ID {
        return Err(ConvertError::EntryIdTooLong);
    }
    EntryId::parse(text).map_err(|_: EntryError| ConvertError::EntryIdCharacters)
}

fn selectors(wire: &types::Entry) -> Result<SelectorSet, ConvertError> {
    if wire.selectors.is_empty() {
        return Err(ConvertError::NoSelectors);
    }
    let set = selectors_from_wire(&wire.selectors).map_err(ConvertError::Selector)?;
    if set.len() < wire.selectors.len() {
        let texts = wire.selectors.iter().map(|selector| format!("{}:{}", selector.r#type, selector.value));
        return Err(ConvertError::Twice(repeated(texts)));
    }
    Ok(set)
}

/// In their order, since the first becomes the common name.
fn dns_names(wire: &types::Entry) -> Result<Box<[DnsName]>, ConvertError> {
    let names = wire.dns_names.iter().map(|name| DnsName::parse(name).map_err(ConvertError::DnsName));
    let names = names.collect::<Result<Vec<_>, _>>()?;
    if names.iter().collect::<BTreeSet<_>>().len() < names.len() {
        return Err(ConvertError::Twice(repeated(names.iter().map(|name| name.as_str().to_owned()))));
    }
    Ok(names.into())
}

/// The first text that stands twice, not more of it than a person reads.
fn repeated(texts: impl Iterator<Item = String>) -> String {
    let mut seen = BTreeSet::new();
    let mut texts = texts;
    let twice = texts.find(|text| !seen.insert(text.clone())).unwrap_or_default();
    twice.chars().take(LONGEST_QUOTE).collect()
}

fn federates_with(wire: &types::Entry) -> Result<Box<[TrustDomain]>, ConvertError> {
    let mut all = wire
        .federates_with
        .iter()
        .map(|text| trust_domain_from_wire(text, "invalid federated trust domain"))
        .collect::<Result<Vec<_>, _>>()?;
    all.sort_unstable();
    all.dedup();
    Ok(all.into())
}

fn hint(wire: &types::Entry) -> Result<Box<str>, ConvertError> {
    if wire.hint.len() > MAX_HINT {
        return Err(ConvertError::HintTooLong);
    }
    Ok(wire.hint.as_str().into())
}

fn x509_svid_ttl(wire: &types::Entry) -> Result<u32, ConvertError> {
    u32::try_from(wire.x509_svid_ttl).map_err(|_| ConvertError::X509SvidTtl)
}

fn jwt_svid_ttl(wire: &types::Entry) -> Result<u32, ConvertError> {
    u32::try_from(wire.jwt_svid_ttl).map_err(|_| ConvertError::JwtSvidTtl)
}

fn check_stored(
    store_svid: bool,
    disable_prefetch: bool,
    selectors: &SelectorSet,
) -> Result<(), ConvertError> {
    if !store_svid {
        return Ok(());
    }
    if disable_prefetch {
        return Err(ConvertError::StorePrefetch);
    }
    let mut kinds = selectors.iter().map(Selector::kind);
    let first = kinds.next();
    if kinds.any(|kind| Some(kind) != first) {
        return Err(ConvertError::StoreSelectorTypes);
    }
    Ok(())
}
