//! Who makes a call, and what that allows.
//!
//! Everything here is decided for each call against the state as it is at that moment, never once for a connection:
//! connections live for minutes, and an agent that was banned, or whose entry lost `admin`, must notice at its next
//! call. What can be decided for a whole connection (the chain verifies) is decided at the handshake, and
//! `server::trust` closes connections when that stops being true.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use bonafide_identity::{AttestedNode, Entry, SerialCheck, SerialNumber, SpiffeId, Timestamp};
use bonafide_pki::x509::inspect;
use bonafide_proto::convert;
use bonafide_proto::spire::types::permission_denied_details::Reason;
use bonafide_runtime::listener::Peer;
use tonic::Status;

use crate::api::{Rule, Who};
use crate::store::{Nodes as _, State, Store};

/// The caller of one call.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Names the call in the log and in the audit log.
    pub request_id: u64,
    /// Where the call came from.
    pub origin: Origin,
    /// By what right it was let in.
    pub right: Right,
}

/// Where a call came from.
#[derive(Clone, Debug)]
pub enum Origin {
    /// The administration socket. The kernel says which process.
    Local {
        /// Process id, as seen from this server's PID namespace.
        pid: i32,
        /// User id.
        uid: u32,
        /// Group id.
        gid: u32,
        /// The process's executable, where it could be read.
        path: Option<PathBuf>,
    },
    /// The TLS address.
    Remote {
        /// The peer's address.
        address: SocketAddr,
        /// The identity that its certificate proved at the handshake; `None` without a certificate.
        id: Option<SpiffeId>,
    },
}

/// What counts as one caller among strangers: an IPv4 address, or the /64 of an IPv6 address, within which anybody has as many
/// addresses as they like.
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        address => address,
    }
}

/// By what right a call was let in: the first that applied, in the order of the variants.
#[derive(Clone, Debug)]
pub enum Right {
    /// Anybody may.
    Any,
    /// It came over the administration socket.
    Local,
    /// `admin_ids`, or an entry with `admin`.
    Admin,
    /// Entries with `downstream`.
    Downstream(Vec<Arc<Entry>>),
    /// An attested agent whose SVID is the one on record.
    Agent(Arc<AttestedNode>),
}

impl Right {
    /// The word for it in the audit log and in metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Any => "any",
            Self::Local => "local",
            Self::Admin => "admin",
            Self::Downstream(_) => "downstream",
            Self::Agent(_) => "agent",
        }
    }
}

impl Origin {
    /// What the transport says of a peer.
    pub fn of(peer: &Peer) -> Self {
        match peer {
            Peer::Unix(unix) => Self::Local {
                pid: unix.cred.pid,
                uid: unix.cred.uid,
                gid: unix.cred.gid,
                path: std::fs::read_link(format!("/proc/{}/exe", unix.cred.pid)).ok(),
            },
            Peer::Tls(tls) => Self::Remote { address: tls.addr, id: tls.spiffe_id.clone() },
        }
    }

    /// The identity proven by a certificate.
    pub fn spiffe_id(&self) -> Option<&SpiffeId> {
        match self {
            Self::Local { .. } => None,
            Self::Remote { id, .. } => id.as_ref(),
        }
    }
}

/// Why an agent is not let in; the order of the checks is the order of the variants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AgentRefusal {
    Expired,
    NotAttested,
    Banned,
    NotActive,
}

impl AgentRefusal {
    fn reason(self) -> Reason {
        match self {
            Self::Expired => Reason::AgentExpired,
            Self::NotAttested => Reason::AgentNotAttested,
            Self::Banned => Reason::AgentBanned,
            Self::NotActive => Reason::AgentNotActive,
        }
    }
}

/// The leaf certificate of a caller, as far as decisions need it.
struct Leaf {
    serial: SerialNumber,
    not_after: Timestamp,
}

/// Decides whether `rule` lets the peer in.
///
/// # Errors
/// PermissionDenied, with the reason in its details where an agent can act on it; Unauthenticated for a certificate
/// without exactly one SPIFFE ID.
pub async fn authorize(
    peer: &Peer,
    origin: &Origin,
    rule: &Rule,
    admin_ids: &[SpiffeId],
    store: &Store,
    now: Timestamp,
) -> Result<Right, Status> {
    let state = store.state();
    if rule.allows(Who::ANY) {
        return Ok(Right::Any);
    }
    let tls = match peer {
        Peer::Unix(_) if rule.allows(Who::LOCAL) => return Ok(Right::Local),
        Peer::Unix(_) => return Err(denied(rule)),
        Peer::Tls(tls) => tls,
    };
    let Some(leaf) = tls.certificates.first() else { return Err(denied(rule)) };
    let Some(id) = origin.spiffe_id() else {
        return Err(Status::unauthenticated("the client certificate must hold exactly one SPIFFE ID"));
    };
    let leaf = inspect(leaf)
        .map(|info| Leaf { serial: info.serial, not_after: info.not_after })
        .map_err(|error| Status::unauthenticated(format!("cannot read the client certificate: {error}")))?;
    let expired = leaf.not_after < now;

    if rule.allows(Who::ADMIN) && !expired && is_admin(state, admin_ids, id) {
        return Ok(Right::Admin);
    }
    if rule.allows(Who::DOWNSTREAM) && !expired {
        let entries = state.with_entries(|entries| entries.downstream(id));
        if !entries.is_empty() {
            return Ok(Right::Downstream(entries));
        }
    }
    if rule.allows(Who::AGENT) {
        return match agent(id, &leaf, store, now).await {
            Ok(node) => Ok(Right::Agent(node)),
            Err(refusal) => Err(convert::permission_denied_with_reason(denial_text(rule), refusal.reason())),
        };
    }
    Err(denied(rule))
}

fn is_admin(state: &State, admin_ids: &[SpiffeId], id: &SpiffeId) -> bool {
    admin_ids.contains(id) || state.with_entries(|entries| entries.is_admin(id))
}

async fn agent(
    id: &SpiffeId,
    leaf: &Leaf,
    store: &Store,
    now: Timestamp,
) -> Result<Arc<AttestedNode>, AgentRefusal> {
    if leaf.not_after < now {
        return Err(AgentRefusal::Expired);
    }
    let node = store.state().node(id).ok_or(AgentRefusal::NotAttested)?;
    match node.check_serial(&leaf.serial) {
        SerialCheck::Current => Ok(node),
        SerialCheck::New => promote(node, leaf, store).await,
        SerialCheck::Banned => Err(AgentRefusal::Banned),
        SerialCheck::Inactive => Err(AgentRefusal::NotActive),
    }
}

/// The renewed SVID has been used for the first time: from now on it is the only one.
async fn promote(
    node: Arc<AttestedNode>,
    leaf: &Leaf,
    store: &Store,
) -> Result<Arc<AttestedNode>, AgentRefusal> {
    let (id, serial) = (node.id.clone(), leaf.serial);
    let written = store
        .write(move |unit| {
            // Read again: between the check and this write the agent may have been banned or promoted.
            let Some(node) = unit.node(&id) else { return Ok(Err(AgentRefusal::NotAttested)) };
            match node.check_serial(&serial) {
                SerialCheck::Current => Ok(Ok(node)),
                SerialCheck::New => {
                    let mut promoted = AttestedNode::clone(&node);
                    promoted.promote();
                    unit.node_put(promoted).map(Ok)
                }
                SerialCheck::Banned => Ok(Err(AgentRefusal::Banned)),
                SerialCheck::Inactive => Ok(Err(AgentRefusal::NotActive)),
            }
        })
        .await;
    match written {
        Ok(decision) => decision,
        Err(error) => {
            // Both serials stay valid until the store takes writes again; the agent must not suffer for that.
            tracing::warn!(agent = %node.id, %error, "the first use of a renewed SVID could not be recorded");
            Ok(node)
        }
    }
}

fn denial_text(rule: &Rule) -> String {
    format!("authorization denied for method {}", rule.path)
}

fn denied(rule: &Rule) -> Status {
    Status::permission_denied(denial_text(rule))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_addresses_of_a_64_are_one_network() {
        let of = |text: &str| network(text.parse().unwrap()).to_string();
        assert_eq!(of("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(of("2001:db8:1:3::6"), "2001:db8:1:3::");
        assert_eq!((of("192.0.2.1").as_str(), of("::ffff:192.0.2.1").as_str()), ("192.0.2.1", "192.0.2.1"));
    }
}
