//! Deletes what has expired.
//!
//! Candidates are found in memory and judged again in the write: between the two an administrator may have given an
//! entry another end. Each write is bounded, so that a large harvest does not keep other writers waiting.

use std::time::Duration;

use bonafide_identity::{AttestedNode, Bundle, SelectorSet, Timestamp, TrustDomain};
use bonafide_pki::inspect;
use bonafide_runtime::tasks::{NextRun, Schedule};

use super::Tasks;
use crate::store::{Bundles, Entries, Issuance, JoinTokens, Journal, Nodes, SpentTokens, Store, StoreError};

/// Which attested nodes are deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePruning {
    /// How long the SVID must have been expired.
    pub expired_for: Duration,
    /// Also nodes that cannot attest again, whose record is what keeps others from attesting in their name.
    pub tofu_nodes: bool,
}

/// Starts the tasks.
pub(super) fn start(
    tasks: &mut Tasks<'_>,
    store: &Store,
    trust_domain: &TrustDomain,
    nodes: Option<NodePruning>,
) {
    let (own, name) = (store.clone(), trust_domain.clone());
    tasks.start("bundle pruning", Schedule::every(6 * HOUR), move |now| {
        let (store, name) = (own.clone(), name.clone());
        async move {
            journals(&store, now).await?;
            Ok(done(bundle(&store, &name, now).await?))
        }
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
    tasks.start("used token pruning", Schedule::every(5 * MINUTE), move |now| {
        let store = own.clone();
        async move { Ok(done(spent(&store, now).await?)) }
    });
    let own = store.clone();
    tasks.start("issuance pruning", Schedule::every(MINUTE), move |now| {
        let store = own.clone();
        async move { Ok(done(issuance(&store, now).await?)) }
    });
    let own = store.clone();
    // What ended must count no longer within seconds; looking costs a walk over the nodes in memory.
    tasks.start("evidence pruning", Schedule::every(Duration::from_secs(2)), move |now| {
        let store = own.clone();
        async move { Ok(done(evidence(&store, now).await?)) }
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
        tracing::info!(
            x509 = pruned.x509,
            jwt = pruned.jwt,
            wit = pruned.wit,
            "expired authorities removed from the bundle"
        );
    }
    // However many went, the bundle is done with one write.
    Ok(0)
}

/// Forgets the authorities of servers that have left the group.
async fn journals(store: &Store, now: Timestamp) -> Result<(), StoreError> {
    if store.silence().is_none() {
        return Ok(());
    }
    let forgotten = store.write(move |unit| unit.journals_prune(now)).await?;
    if forgotten > 0 {
        tracing::info!(forgotten, "authorities of servers that are gone removed from the journal");
    }
    Ok(())
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

/// Forgets tokens of foreign issuers that would be refused by now anyway.
async fn spent(store: &Store, now: Timestamp) -> Result<usize, StoreError> {
    store.write(move |unit| unit.spent_prune(now, BATCH)).await
}

/// Forgets issued SVIDs that have expired.
async fn issuance(store: &Store, now: Timestamp) -> Result<usize, StoreError> {
    store.write(move |unit| unit.issued_prune(now, BATCH)).await
}

/// Takes from nodes what evidence said that is too old by now.
async fn evidence(store: &Store, now: Timestamp) -> Result<usize, StoreError> {
    let over = move |node: &AttestedNode| node.evidence_until.is_some_and(|until| until <= now);
    let found = store.state().nodes_page(0, BATCH, over);
    if found.is_empty() {
        return Ok(0);
    }
    let ended = store.write(move |unit| {
        let mut ended = Vec::new();
        for (_, node) in found {
            let Some(node) = unit.node(&node.id).filter(|node| over(node)) else { continue };
            let mut node = AttestedNode::clone(&node);
            node.set_evidence(SelectorSet::empty(), now);
            ended.push(node.id.clone());
            unit.node_put(node)?;
        }
        Ok(ended)
    });
    let ended = ended.await?;
    for id in &ended {
        tracing::info!(agent = %id, "evidence of GPUs is too old and counts no longer");
    }
    Ok(ended.len())
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bonafide_identity::{JoinToken, JwtAuthority, X509Authority};
    use bonafide_testkit::{
        EntryBuilder, ManualClock, NodeBuilder, TestAuthority, id, selectors, trust_domain,
    };

    use super::*;
    use crate::store::{IssuedSvid, StoreConfig, SvidKind};

    fn open(clock: &ManualClock) -> Store {
        Store::open(StoreConfig::memory(trust_domain()), Arc::new(clock.as_fn())).unwrap().0
    }

    #[tokio::test]
    async fn a_bundle_keeps_authorities_for_a_day_after_their_end() {
        let clock = ManualClock::default();
        let store = open(&clock);
        let name = trust_domain();
        assert_eq!(bundle(&store, &name, clock.now()).await.unwrap(), 0, "there need not be a bundle");
        let root = |seconds| {
            let end = clock.now().saturating_add(Duration::from_secs(seconds));
            let authority = TestAuthority::new(&name, clock.now(), end);
            X509Authority { certificate: authority.certificate().to_vec(), tainted: false }
        };
        let key = |key_id: &str, seconds| JwtAuthority {
            key_id: key_id.to_owned(),
            public_key: vec![1],
            expires_at: Some(clock.now().saturating_add(Duration::from_secs(seconds))),
            tainted: false,
        };
        let mut full = Bundle::empty(name.clone());
        full.append([root(60), root(90_000)], [key("a", 60), key("b", 90_000)], []);
        store.write(move |unit| unit.bundle_put(full)).await.unwrap();
        let left = || store.state().bundle(&trust_domain()).unwrap();

        clock.advance(24 * HOUR + Duration::from_secs(60));
        bundle(&store, &name, clock.now()).await.unwrap();
        assert_eq!((left().x509_authorities.len(), left().jwt_authorities.len()), (2, 2));
        clock.advance(Duration::from_secs(1));
        bundle(&store, &name, clock.now()).await.unwrap();
        assert_eq!((left().x509_authorities.len(), left().jwt_authorities.len()), (1, 1));
        assert_eq!(left().sequence_number, 2);

        clock.advance(48 * HOUR);
        assert!(bundle(&store, &name, clock.now()).await.is_err(), "a bundle is never emptied");
        assert_eq!(left().x509_authorities.len(), 1);
    }

    #[tokio::test]
    async fn entries_end_when_they_say() {
        let clock = ManualClock::default();
        let store = open(&clock);
        let now = clock.now();
        for (name, end) in [("for-ever", None), ("past", Some(-1)), ("now", Some(0)), ("future", Some(1))] {
            let end = end.map(|seconds| Timestamp::from_unix_millis(now.unix_millis() + seconds * 1000));
            let entry = EntryBuilder::new(name).spiffe_id("/w").with(|entry| entry.expires_at = end).build();
            store.write(move |unit| unit.entry_create(entry)).await.unwrap();
        }
        assert_eq!(entries(&store, now).await.unwrap(), 1);
        assert_eq!(entries(&store, now).await.unwrap(), 0, "pruning again finds nothing");
        let left: Vec<_> = store.state().entries().iter().map(|entry| entry.id.to_string()).collect();
        assert_eq!(left, ["for-ever", "now", "future"]);
    }

    #[tokio::test]
    async fn more_than_one_batch_is_harvested_without_waiting() {
        let clock = ManualClock::default();
        let store = open(&clock);
        let now = clock.now();
        store
            .write(move |unit| {
                for number in 0..BATCH + 1 {
                    let entry = EntryBuilder::new(&format!("e{number}")).spiffe_id(&format!("/w{number}"));
                    let end = Some(now.saturating_sub(MINUTE));
                    unit.entry_create(entry.with(|entry| entry.expires_at = end).build())?;
                }
                Ok(())
            })
            .await
            .unwrap();
        assert_eq!(done(entries(&store, now).await.unwrap()), NextRun::In(Duration::ZERO));
        assert_eq!(done(entries(&store, now).await.unwrap()), NextRun::Usual);
        assert_eq!(store.state().entries().len(), 0);
    }

    #[tokio::test]
    async fn tokens_and_issued_svids_are_forgotten() {
        let clock = ManualClock::default();
        let store = open(&clock);
        let now = clock.now();
        let token = |value: &str, at| JoinToken { value: value.to_owned(), expires_at: at, agent_id: None };
        let (old, new) = (token("old", now.saturating_sub(MINUTE)), token("new", now.saturating_add(MINUTE)));
        let svid = |not_after| IssuedSvid {
            kind: SvidKind::WorkloadX509,
            spiffe_id: id("/w"),
            entry_id: None,
            serial: "1".to_owned(),
            not_after,
            authority_id: "a".to_owned(),
        };
        let (expired, valid) = (svid(now.saturating_sub(MINUTE)), svid(now.saturating_add(MINUTE)));
        store
            .write(move |unit| {
                unit.token_create(&old)?;
                unit.token_create(&new)?;
                unit.record_issued(&[expired])?;
                unit.record_issued(&[valid])
            })
            .await
            .unwrap();
        assert_eq!(tokens(&store, now).await.unwrap(), 1);
        assert_eq!(issuance(&store, now).await.unwrap(), 1);
        let (token, svids) =
            store.write(move |unit| Ok((unit.token_take("new")?, unit.issued(now, 10)?))).await.unwrap();
        assert!(token.is_some());
        assert_eq!(svids.len(), 1);
    }

    #[tokio::test]
    async fn evidence_ends_and_the_rest_of_the_node_stays() {
        let clock = ManualClock::default();
        let store = open(&clock);
        let until = clock.now().saturating_add(HOUR);
        let mut node = NodeBuilder::new("gpu").build();
        let before = node.selectors.clone();
        node.set_evidence(selectors(["gpu_node:attested:true"]), until);
        let id = node.id.clone();
        store.write(move |unit| unit.node_put(node).map(drop)).await.unwrap();
        clock.advance(HOUR - Duration::from_secs(1));
        assert_eq!(evidence(&store, clock.now()).await.unwrap(), 0);
        clock.advance(Duration::from_secs(1));
        assert_eq!(evidence(&store, clock.now()).await.unwrap(), 1);
        assert_eq!(evidence(&store, clock.now()).await.unwrap(), 0);
        let left = store.state().node(&id).unwrap();
        assert_eq!((&left.selectors, left.evidence_until), (&before, None));
    }

    #[tokio::test]
    async fn nodes_go_when_they_have_been_gone_for_long() {
        let clock = ManualClock::default();
        let store = open(&clock);
        let now = clock.now();
        let node = |name: &str, hours: u32, can_reattest, banned| {
            NodeBuilder::new(name)
                .with(|node| {
                    node.not_after = now.saturating_sub(HOUR * hours);
                    node.can_reattest = can_reattest;
                    if banned {
                        node.serial = None;
                    }
                })
                .build()
        };
        let all = [
            node("gone", 30, true, false),
            node("recent", 20, true, false),
            node("tofu", 30, false, false),
            node("banned", 30, true, true),
        ];
        store
            .write(move |unit| all.into_iter().try_for_each(|node| unit.node_put(node).map(drop)))
            .await
            .unwrap();
        let left = || -> Vec<String> {
            store
                .state()
                .nodes()
                .iter()
                .map(|node| node.id.path().rsplit('/').next().unwrap().to_owned())
                .collect()
        };
        let which = |tofu_nodes| NodePruning { expired_for: 24 * HOUR, tofu_nodes };
        nodes(&store, &which(false), now).await.unwrap();
        assert_eq!(left(), ["recent", "tofu", "banned"]);
        nodes(&store, &which(true), now).await.unwrap();
        assert_eq!(left(), ["recent", "banned"], "a banned node stays banned");
    }
}
