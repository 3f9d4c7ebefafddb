//! PEM texts, certificates and chains: from TLS peers, nodes that attest, files of other programs.
//!
//! The bytes are read as PEM, as certificates one after the other, and as the signed part of a certificate. Laws: what was
//! read is written as something that reads as the same; a verified leaf has one URI, is no CA, is valid now, and carries the
//! signature of just these bytes.

use std::sync::{Arc, LazyLock};

use bonafide_identity::TrustDomain;
use bonafide_pki::bundle::{from_pem, to_pem};
use bonafide_pki::x509::TrustRoots;
use bonafide_pki::{PrivateKey, inspect, pem, split_certificates, verify_chain, verify_svid_chain};

use crate::{NOW, known_key, trust_domain, with_a_flipped_bit};

static ROOTS: LazyLock<Arc<TrustRoots>> = LazyLock::new(|| Arc::new(known_key::roots()));

/// Whether the bytes hold a PEM block, are a certificate, or the signed part of a valid leaf.
pub fn check(data: &[u8]) -> bool {
    let (text, der) = (text(data), der(data));
    let leaf = known_key::signed(data);
    let part = signed_part(&leaf);
    if part {
        let mut forged = leaf.clone();
        let at = forged.windows(data.len()).position(|window| window == data).expect("it was put there");
        forged[at..at + data.len()].copy_from_slice(&with_a_flipped_bit(data));
        assert!(!verifies(&[forged]), "accepted with a signature of other bytes");
    }
    text || der || part
}

fn text(data: &[u8]) -> bool {
    // Must not panic on, and never shows, what may be a key.
    let _ = PrivateKey::from_pem(data);
    let blocks = pem::decode_all(data).unwrap_or_default();
    let written: String = blocks.iter().map(|(label, der)| pem::encode(label, der)).collect();
    assert_eq!(pem::decode_all(written.as_bytes()).expect("it was written by us"), blocks);
    if let Ok(bundle) = from_pem(&trust_domain(), data) {
        let again = from_pem(&trust_domain(), to_pem(&bundle).as_bytes());
        assert_eq!(again.expect("it was written by us"), bundle);
    }
    !blocks.is_empty()
}

fn der(data: &[u8]) -> bool {
    let info = inspect(data);
    if let Ok(roots) = TrustRoots::from_der([data]) {
        assert!(info.is_ok());
        assert_eq!(roots.certificates().collect::<Vec<_>>(), [data]);
        let _ = verify_chain(&[data.to_vec()], &roots, NOW);
    }
    let chain = split_certificates(data).unwrap_or_default();
    if !chain.is_empty() {
        assert_eq!(chain.concat(), data, "bytes were lost");
    }
    assert!(info.is_err() || chain.len() == 1, "one certificate, and not one element");
    verifies(&chain) || info.is_ok()
}

fn signed_part(leaf: &[u8]) -> bool {
    let chain = [leaf.to_vec()];
    let accepted = verifies(&chain);
    if accepted {
        let path = verify_chain(&chain, &ROOTS, NOW).expect("an SVID is a certificate");
        assert_eq!(path, [leaf.to_vec(), known_key::authority()]);
    }
    accepted
}

fn verifies(chain: &[Vec<u8>]) -> bool {
    let roots = |td: &TrustDomain| (*td == trust_domain()).then(|| ROOTS.clone());
    let Ok(id) = verify_svid_chain(chain, &roots, NOW) else { return false };
    let leaf = inspect(&chain[0]).expect("it was verified");
    assert_eq!(leaf.uris, [id.to_string()]);
    assert_eq!(leaf.spiffe_id.as_ref(), Some(&id));
    assert!(!leaf.is_ca && !id.path().is_empty() && *id.trust_domain() == trust_domain());
    assert!(leaf.is_current(NOW), "not valid now");
    true
}
