//! Closes connections whose peer has lost its standing.
//!
//! A connection that was made is not made again just because a bundle or a record has changed. Each call is checked,
//! so no such peer gets anything new; but streams that are open, and connections as such, would live on until their age
//! ends them. Here they end as soon as the change is written.
//!
//! Chains are verified again only when an authority has left a bundle, and only those of its trust domain: bundles change
//! often (a downstream server may add a key at any time), and with many connections it is seconds of work. It is done
//! twice: a client that verified before the change may wait with its first byte until after the first look.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bonafide_identity::{SpiffeId, TrustDomain};
use bonafide_pki::{TrustRoots, verify_svid_chain};
use bonafide_runtime::clock::SharedClock;
use bonafide_runtime::listener::{CloseMode, ConnectionRegistry, Peer};
use bonafide_runtime::tasks::TaskGroup;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::status::names;
use crate::store::{Change, State};

/// Longer than a client may take from the verification of its chain to its first request (10 seconds each for the rest
/// of the handshake and for the preface), so that the second look sees whoever verified before the change.
const SECOND_LOOK: Duration = Duration::from_secs(25);

/// Watches the state until the shutdown.
pub(super) fn spawn(
    group: &mut TaskGroup,
    state: Arc<State>,
    connections: ConnectionRegistry,
    clock: SharedClock,
) {
    let mut epochs = state.subscribe();
    let mut seen = *epochs.borrow_and_update();
    let mut trusted = authorities(&state);
    let shutdown = group.shutdown().clone();
    group.spawn("connection standing", async move {
        let mut looks = JoinSet::new();
        let mut second: Option<(Instant, BTreeSet<TrustDomain>)> = None;
        loop {
            let at = second.as_ref().map(|(at, _)| *at);
            tokio::select! {
                () = shutdown.triggered() => return Ok(()),
                changed = epochs.changed() => if changed.is_err() { return Ok(()) },
                () = until(at) => {
                    if let Some((_, domains)) = second.take() {
                        looks.spawn(look(state.clone(), connections.clone(), clock.clone(), domains));
                    }
                    continue;
                }
                Some(_) = looks.join_next() => continue,
            }
            let epoch = *epochs.borrow_and_update();
            let changes = state.changes_since(seen);
            seen = epoch;
            let bundles_changed = match &changes {
                Some(changes) => changes.iter().any(|change| matches!(change, Change::Bundle(_))),
                None => true,
            };
            match &changes {
                Some(changes) => {
                    for change in changes {
                        if let Change::Node(id) = change
                            && lost(&state, id)
                        {
                            close(&connections, "agent", |peer| peer_id(peer) == Some(id));
                        }
                    }
                }
                // Too much has changed to say what: look at everybody.
                None => close(&connections, "agent", |peer| {
                    peer_id(peer).is_some_and(|id| id.is_agent() && lost(&state, id))
                }),
            }
            if bundles_changed {
                let now_trusted = authorities(&state);
                let mut domains = less_trusted(&trusted, &now_trusted);
                trusted = now_trusted;
                if !domains.is_empty() {
                    looks.spawn(look(state.clone(), connections.clone(), clock.clone(), domains.clone()));
                    domains.extend(second.into_iter().flat_map(|(_, domains)| domains));
                    second = Some((Instant::now() + SECOND_LOOK, domains));
                }
            }
        }
    });
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// The X.509 authorities of each trust domain.
type Authorities = BTreeMap<TrustDomain, HashSet<Vec<u8>>>;

fn authorities(state: &State) -> Authorities {
    let bundles = state.bundles().into_iter();
    bundles
        .map(|bundle| {
            let certificates = bundle.x509_authorities.iter().map(|authority| authority.certificate.clone());
            (bundle.trust_domain.clone(), certificates.collect())
        })
        .collect()
}

/// The trust domains that had an authority before which they do not have now.
fn less_trusted(before: &Authorities, now: &Authorities) -> BTreeSet<TrustDomain> {
    let none = HashSet::new();
    let gone = before.iter().filter(|(name, had)| !had.is_subset(now.get(*name).unwrap_or(&none)));
    gone.map(|(name, _)| name.clone()).collect()
}

/// Verifies the chains of the peers from these trust domains and closes the connections of those that fail.
async fn look(
    state: Arc<State>,
    connections: ConnectionRegistry,
    clock: SharedClock,
    domains: BTreeSet<TrustDomain>,
) {
    let registry = connections.clone();
    let failed = tokio::task::spawn_blocking(move || {
        let roots = Roots::of(&state);
        let now = clock.now();
        let concerned = registry.peers().into_iter().filter_map(|peer| match &*peer {
            Peer::Tls(tls) if tls.certificates.is_empty() => None,
            Peer::Tls(tls)
                if tls.spiffe_id.as_ref().is_some_and(|id| !domains.contains(id.trust_domain())) =>
            {
                None
            }
            Peer::Tls(tls) => {
                let verified = verify_svid_chain(&tls.certificates, &|name| roots.get(name), now);
                verified.is_err().then_some(tls.connection_id)
            }
            Peer::Unix(_) => None,
        });
        concerned.collect::<HashSet<u64>>()
    })
    .await;
    match failed {
        Ok(failed) if failed.is_empty() => {}
        Ok(failed) => close(&connections, "trust", |peer| failed.contains(&peer.connection_id())),
        Err(error) => tracing::error!(%error, "connections could not be verified anew"),
    }
}

fn lost(state: &State, id: &SpiffeId) -> bool {
    state.node(id).is_none_or(|node| node.banned())
}

fn peer_id(peer: &Peer) -> Option<&SpiffeId> {
    match peer {
        Peer::Tls(tls) => tls.spiffe_id.as_ref(),
        Peer::Unix(_) => None,
    }
}

fn close(connections: &ConnectionRegistry, reason: &'static str, chosen: impl FnMut(&Peer) -> bool) {
    let closed = connections.close_where(CloseMode::Now, chosen);
    if closed > 0 {
        metrics::counter!(names::CONNECTIONS_CLOSED, "reason" => reason).increment(closed as u64);
        tracing::info!(reason, closed, "connections closed whose peer has lost its standing");
    }
}

/// The roots of all bundles at one moment.
struct Roots(HashMap<TrustDomain, Arc<TrustRoots>>);

impl Roots {
    fn of(state: &State) -> Self {
        let roots = state.bundles().into_iter().filter_map(|bundle| {
            let certificates = bundle.x509_authorities.iter().map(|authority| &authority.certificate[..]);
            // What cannot be read verifies nothing.
            let roots = TrustRoots::from_der(certificates).ok()?;
            Some((bundle.trust_domain.clone(), Arc::new(roots)))
        });
        Self(roots.collect())
    }

    fn get(&self, trust_domain: &TrustDomain) -> Option<Arc<TrustRoots>> {
        self.0.get(trust_domain).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_authority_that_leaves_takes_trust_away() {
        let of = |bundles: &[(&str, &[u8])]| -> Authorities {
            let one = |(name, certificates): &(&str, &[u8])| {
                let certificates = certificates.iter().map(|byte| vec![*byte]).collect();
                (TrustDomain::parse(name).unwrap(), certificates)
            };
            bundles.iter().map(one).collect()
        };
        let less = |before: &[(&str, &[u8])], now: &[(&str, &[u8])]| -> Vec<String> {
            less_trusted(&of(before), &of(now)).iter().map(ToString::to_string).collect()
        };
        assert!(less(&[("a", &[1])], &[("a", &[1])]).is_empty());
        assert!(less(&[("a", &[1])], &[("a", &[2, 1]), ("b", &[3])]).is_empty());
        assert_eq!(less(&[("a", &[1, 2]), ("b", &[3])], &[("a", &[2]), ("b", &[3, 4])]), ["a"]);
        assert_eq!(less(&[("a", &[1]), ("b", &[3])], &[("a", &[1])]), ["b"]);
    }
}
