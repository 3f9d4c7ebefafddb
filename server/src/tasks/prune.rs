//! Deletes what has expired.
//!
//! Candidates are found in memory and judged again in the write: between the two an administrator may have given an
//! entry another end. Each write is bounded, so that a large harvest does not keep other writers waiting.

use std::time::Duration;

use bonafide_identity::{AttestedNode, Bundle, Timestamp, TrustDomain};
use bonafide_pki::inspect;
use bonafide_runtime::tasks::{NextRun, Schedule};

use super::Tasks;
use crate::store::{Bundles, Entries, Issuance, JoinTokens, Nodes, Store, StoreError};

/// Which attested nodes are deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePruning {
    /// How long the SVID must have been expired.
    pub expired_for: Duration,
    /// Also nodes that cannot attest again, whose record is what keeps others from attesting in their name.
    pub tofu_nodes: bool,
}

/// Starts the tasks.
pub(super) fn start(tasks: &mut Tasks<'_>, store: &Store, trust_domain: &TrustDomain, nodes: Option<NodePruning>) {
    let (own, name) = (store.clone(), trust_domain.clone());
    tasks.start("bundle pruning", Schedule::every(6 * HOUR), move |now| {
        let (store, name) = (own.clone(), name.clone());
        async move { Ok(done(bundle(&store, &name, now).await?)) }
    });
    let own = store.clone();
    tasks.start("entry pruning", Schedule::every(5 * MINUTE), move |now| {
        let store = own.clone();
        async move { Ok(done(entries(&store, now).await?)) }
    });
    let own = store.clone();
    tasks.start("join token pruning", Schedule::every(5 * MINUTE), move |now| {
        let store = own.clone();
        async move { Ok(done(tokens(&store, now).await?)) }
    });
    let own = store.clone();
    tasks.start("issuance pruning", Schedule::every(MINUTE), move |now| {
        let store = own.clone();
        async move { Ok(done(issuance(&store, now).await?)) }
    });
    let Some(which) = nodes else { return };
    let own = store.clone();
    let random = std::sync::Arc::clone(&tasks.random);
    tasks.start("node pruning", Schedule::every(HOUR), move |now| {
        let (store, which) = (own.clone(), which.clone());
        // Servers that were started together must not prune together for ever.
        let spread = Duration::from_secs(random.u64() % (30 * 60));
        async move {
            self::nodes(&store, &which, now).await?;
            Ok(NextRun::In(45 * MINUTE + spread))
        }
    });
}

fn done(deleted: usize) -> NextRun {
    // A full harvest may have left something on the field.
    if deleted >= BATCH { NextRun::In(Duration::ZERO) } else { NextRun::Usual }
}

/// Removes authorities that ended more than a day ago from the own bundle.
async fn bundle(store: &Store, trust_domain: &TrustDomain, now: Timestamp) -> Result<usize, StoreError> {
    let Some(mut present) = store.state().bundle(trust_domain).map(|bundle| Bundle::clone(&bundle)) else {
        return Ok(0);
    };
    let end = |der: &[u8]| inspect(der).ok().map(|info| info.not_after);
    match present.prune(now, end) {
        Ok(pruned) if pruned.is_empty() => return Ok(0),
        Ok(_) => {}
        Err(refusal) => return Err(StoreError::refused(refusal)),
    }
    let trust_domain = trust_domain.clone();
    let pruned = store.write(move |unit| {
        let Some(mut bundle) = unit.bundle(&trust_domain).map(|bundle| Bundle::clone(&bundle)) else {
            return Ok(None);
        };
        let pruned = bundle.prune(now, end).map_err(StoreError::refused)?;
        if !pruned.is_empty() {
            unit.bundle_put(bundle)?;
        }
        Ok(Some(pruned))
    });
    if let Some(pruned) = pruned.await?.filter(|pruned| !pruned.is_empty()) {
        tracing::info!(x509 = pruned.x509, jwt = pruned.jwt, wit = pruned.wit, "expired authorities removed from the bundle");
    }
    // However many went, the bundle is done with one write.
    Ok(0)
}

/// Deletes entries whose end has passed.
async fn entries(store: &Store, now: Timestamp) -> Result<usize, StoreError> {
    let expired = store.state().entries_page(0, BATCH, |entry| entry.expires_at.is_some_and(|end| end < now));
    if expired.is_empty() {
        return Ok(0);
    }
    let deleted = store
        .write(move |unit| {
            let mut deleted = Vec::new();
            for (_, entry) in expired {
                let present = unit.entry(&entry.id);
                if present.is_some_and(|entry| entry.expires_at.is_some_and(|end| end < now)) {
                    unit.entry_delete(&entry.id)?;
                    deleted.push(entry.id.clone());
                }
            }
            Ok(deleted)
        })
        .await?;
    for id in &deleted {
        tracing::info!(entry = %id, "expired entry deleted");
    }
    Ok(deleted.len())
}

/// Deletes join tokens that nobody used in time.
async fn tokens(store: &Store, now: Timestamp) -> Result<usize, StoreError> {
    store.write(move |unit| unit.tokens_prune(now, BATCH)).await
}

/// Forgets issued SVIDs that have expired.
async fn issuance(store: &Store, now: Timestamp) -> Result<usize, StoreError> {
    store.write(move |unit| unit.issued_prune(now, BATCH)).await
}

/// Deletes nodes that have been expired for long.
async fn nodes(store: &Store, which: &NodePruning, now: Timestamp) -> Result<(), StoreError> {
    let limit = now.saturating_sub(which.expired_for);
    let tofu_nodes = which.tofu_nodes;
    let prunable = move |node: &AttestedNode| {
        node.not_after < limit && !node.banned() && (node.can_reattest || tofu_nodes)
    };
    loop {
        let expired = store.state().nodes_page(0, BATCH, prunable);
        let full = expired.len() == BATCH;
        if expired.is_empty() {
            return Ok(());
        }
        let deleted = store
            .write(move |unit| {
                let mut deleted = Vec::new();
                for (_, node) in expired {
                    if unit.node(&node.id).is_some_and(|node| prunable(&node)) {
                        unit.node_delete(&node.id)?;
                        deleted.push(node.id.clone());
                    }
                }
                Ok(deleted)
            })
            .await?;
        for id in &deleted {
            tracing::info!(agent = %id, "long expired node deleted");
        }
        if !full {
            return Ok(());
        }
    }
}

/// Records deleted in one write.
const BATCH: usize = 1000;
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(60 * 60);
