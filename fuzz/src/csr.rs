//! Certificate signing requests: from agents, workloads' agents, downstream servers.
//!
//! The bytes are read as a request, and as the signed part of one. Laws: the key and the subject are bytes of the
//! request; nothing is accepted under a signature of other bytes; a certificate for an accepted request can be issued, is
//! read by an independent reader, says what the request said, and is verified.

use std::sync::{Arc, LazyLock};

use bonafide_identity::{DnsName, SerialNumber, SpiffeId, Timestamp};
use bonafide_pki::x509::{LeafProfile, Subject, TrustRoots, X509Issuer};
use bonafide_pki::{PublicKey, VerifiedCsr, csr_public_key_unverified, inspect, verify_svid_chain};

use crate::{NOW, contains, known_key, with_a_flipped_bit};

static ISSUER: LazyLock<X509Issuer> = LazyLock::new(known_key::issuer);
static ROOTS: LazyLock<Arc<TrustRoots>> = LazyLock::new(|| Arc::new(known_key::roots()));

/// Whether the bytes are a request, or the signed part of one.
pub fn check(data: &[u8]) -> bool {
    let whole = request(data);
    let part = request(&known_key::signed(data));
    if part {
        // The same signature over something else.
        let mut forged = known_key::signed(data);
        let at = forged.windows(data.len()).position(|window| window == data).expect("it was put there");
        forged[at..at + data.len()].copy_from_slice(&with_a_flipped_bit(data));
        assert!(VerifiedCsr::parse(&forged).is_err(), "accepted with a signature of other bytes");
    }
    whole || part
}

fn request(der: &[u8]) -> bool {
    let unproven = csr_public_key_unverified(der);
    let Ok(csr) = VerifiedCsr::parse(der) else { return false };
    assert_eq!(unproven.expect("a proven key is a key"), csr.public_key);
    let key = csr.public_key.spki_der();
    assert!(contains(der, key), "the key is not that of the request");
    assert!(contains(der, &csr.subject_raw), "the subject is not that of the request");
    assert_eq!(PublicKey::from_spki_der(key).expect("it was read from this"), csr.public_key);

    let id = SpiffeId::parse("spiffe://example.org/workload").expect("a valid ID");
    let dns_names: Vec<DnsName> = csr.dns_names.iter().filter_map(|name| DnsName::parse(name).ok()).collect();
    let leaf = ISSUER.issue(&LeafProfile {
        spiffe_id: &id,
        dns_names: &dns_names,
        subject: Subject::Raw(&csr.subject_raw),
        public_key: &csr.public_key,
        not_before: NOW,
        not_after: Timestamp::from_unix_seconds(NOW.unix_seconds() + 3600),
        serial: SerialNumber::from(2_u128),
    });
    let leaf = leaf.expect("an accepted request can be granted");
    let info = inspect(&leaf).expect("what was issued can be read");
    assert_eq!(info.public_key.as_ref(), Some(&csr.public_key));
    assert_eq!(info.uris, [id.to_string()]);
    assert_eq!(info.dns_names, dns_names.iter().map(ToString::to_string).collect::<Vec<_>>());
    if dns_names.is_empty() && csr.subject_raw != [0x30, 0] {
        assert_eq!(info.subject_raw, csr.subject_raw);
    }
    let verified = verify_svid_chain(&[leaf], &|_| Some(ROOTS.clone()), NOW);
    assert_eq!(verified.expect("what was issued is valid"), id);
    true
}
