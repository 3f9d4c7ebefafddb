//! What upstream authorities answer: Vault's logins and signatures, cert-manager's requests, and the identities that an
//! agent's Workload API gives a nested server; and what API servers of Kubernetes answer beside.
//!
//! Law: a signature that is read has a certificate, a root (Vault's one) and a chain of bounded length; identities have certificates
//! that belong to their keys.

use bonafide_proto::workload::X509svidResponse;
use bonafide_server::kubernetes::{Node, Pod, TokenReview};
use bonafide_server::upstream_authority::cert_manager::Request;
use bonafide_server::upstream_authority::spire::identities_of;
use bonafide_server::upstream_authority::vault::{granted, signed};
use prost::Message as _;

/// Whether the bytes are one of the answers.
pub fn check(data: &[u8]) -> bool {
    let signed = signed(data);
    if let Ok(ca) = &signed {
        assert!((1..=17).contains(&ca.chain.len()));
        assert_eq!(ca.roots.len(), 1);
    }
    let granted = granted("login", data);
    if let Ok((token, _)) = &granted {
        assert!(!token.is_empty());
    }
    let identities = X509svidResponse::decode(data).ok();
    let identities = identities.and_then(|message| identities_of(&message, &crate::trust_domain()).ok());
    if let Some((held, _)) = &identities {
        assert!(!held.is_empty());
        for (id, holder) in held {
            assert_eq!(id.trust_domain(), &crate::trust_domain());
            assert!(holder.current().is_some_and(|svid| svid.chain().next().is_some()));
        }
    }
    let requests = Request::parse(data).map(|request| vec![request]).or_else(|_| Request::parse_list(data));
    for ca in requests.iter().flatten().filter_map(Request::certificate) {
        assert!((1..=16).contains(&ca.chain.len()) && (1..=16).contains(&ca.roots.len()));
        assert!(ca.chain.iter().all(|certificate| !ca.roots.contains(certificate)));
    }
    let object = Pod::parse(data).is_ok() || Node::parse(data).is_ok() || TokenReview::parse(data).is_ok();
    signed.is_ok() || granted.is_ok() || identities.is_some() || requests.is_ok() || object
}
