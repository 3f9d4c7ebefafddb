//! Closes connections whose peer has lost its standing.
//!
//! A connection that was made is not made again just because a bundle or a record has changed. Each call is checked,
//! so no such peer gets anything new; but streams that are open, and connections as such, would live on until their age
//! ends them. Here they end as soon as the change is written.

use std::collections::HashMap;
use std::sync::Arc;

use bonafide_identity::{SpiffeId, TrustDomain};
use bonafide_pki::{TrustRoots, verify_svid_chain};
use bonafide_runtime::clock::SharedClock;
use bonafide_runtime::listener::{CloseMode, ConnectionRegistry, Peer};
use bonafide_runtime::tasks::TaskGroup;

use crate::status::names;
use crate::store::{Change, State};

/// Watches the state until the shutdown.
pub(super) fn spawn(
    group: &mut TaskGroup,
    state: Arc<State>,
    connections: ConnectionRegistry,
    clock: SharedClock,
) {
    let mut epochs = state.subscribe();
    let mut seen = *epochs.borrow_and_update();
    let shutdown = group.shutdown().clone();
    group.spawn("connection standing", async move {
        loop {
            tokio::select! {
                () = shutdown.triggered() => return Ok(()),
                changed = epochs.changed() => if changed.is_err() { return Ok(()) },
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
                let roots = Roots::of(&state);
                let now = clock.now();
                close(&connections, "trust", |peer| match peer {
                    Peer::Tls(tls) if !tls.certificates.is_empty() => {
                        verify_svid_chain(&tls.certificates, &|name| roots.get(name), now).is_err()
                    }
                    _ => false,
                });
            }
        }
    });
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
