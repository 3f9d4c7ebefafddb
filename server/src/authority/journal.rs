//! What survives a restart: one record for each authority that is in a slot.
//!
//! The journal of a kind holds what the slots hold, at most two records, and is rewritten with each step in the
//! same transaction that changes the bundle. History is the audit log's business: a tail of former authorities
//! here would be one more thing to bound, and restoring would have to tell the tail from the present. What an
//! administrator has revoked is written with each record, because an upstream authority that goes on publishing it must
//! not bring it back after a restart.

use bonafide_identity::{AuthorityKind, AuthorityRefusal, Bundle, SlotStatus, TrustDomain};

use crate::store::{Bundles, Journal, JournalRecord, StoreError, Unit};

/// The records of a kind.
pub(super) fn read(unit: &Unit<'_>, kind: AuthorityKind) -> Result<Vec<JournalRecord>, StoreError> {
    unit.journal(kind)
}

/// Makes `records` the journal of `kind`.
pub(super) fn write(
    unit: &mut Unit<'_>,
    kind: AuthorityKind,
    records: &[JournalRecord],
) -> Result<(), StoreError> {
    for former in unit.journal(kind)? {
        if records.iter().all(|record| record.slot.authority_id != former.slot.authority_id) {
            unit.journal_delete(kind, &former.slot.authority_id)?;
        }
    }
    records.iter().try_for_each(|record| unit.journal_put(record))
}

/// The records that fill the slots: the newest active one, and the newest of the other slot. There is never more than
/// that in a journal that this version wrote; a record too many is no reason not to start.
pub(super) fn current(mut records: Vec<JournalRecord>) -> Vec<JournalRecord> {
    records.sort_by_key(|record| std::cmp::Reverse(record.slot.issued_at));
    let active = records.iter().position(|record| record.slot.status == SlotStatus::Active);
    let active = active.map(|position| records.remove(position));
    let other = records.into_iter().find(|record| {
        record.slot.status != SlotStatus::Active
            && active.as_ref().is_none_or(|active| active.slot.slot != record.slot.slot)
    });
    active.into_iter().chain(other).collect()
}

/// Changes the bundle of `trust_domain`, which need not exist yet. Writes nothing when nothing changes.
pub(super) fn change_bundle(
    unit: &mut Unit<'_>,
    trust_domain: &TrustDomain,
    change: impl FnOnce(&mut Bundle) -> Result<(), AuthorityRefusal>,
) -> Result<(), StoreError> {
    let stored = unit.bundle(trust_domain);
    let mut bundle = stored.as_deref().cloned().unwrap_or_else(|| Bundle::empty(trust_domain.clone()));
    change(&mut bundle).map_err(StoreError::refused)?;
    if stored.as_deref() != Some(&bundle) {
        unit.bundle_put(bundle)?;
    }
    Ok(())
}
