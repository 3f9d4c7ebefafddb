//! Bytes from peers: whatever they are, the answer is a value or an error, never a panic.

use std::sync::OnceLock;

use bonafide_identity::{JwtAuthority, TrustDomain};
use bonafide_pki::{
    JwtClaims, JwtKeys, JwtSigner, KeyType, PrivateKey, PublicKey, Signer as _, TrustRoots, VerifiedCsr,
    WitClaims, agent_csr, bundle, csr_public_key_unverified, inspect, jwk, pem, split_certificates,
    validate_jwt_svid, validate_wit_svid, verify_svid_chain,
};
use proptest::prelude::*;

use crate::support::{Role, at, authority, domain, key, leaf, web};

/// Replaces, inserts, removes and cuts at some places.
fn mutated(seed: &[u8], changes: &[(prop::sample::Index, u8, u8)]) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for (place, kind, value) in changes {
        if bytes.is_empty() {
            break;
        }
        let at = place.index(bytes.len());
        match kind % 5 {
            0 => bytes[at] = *value,
            1 => bytes[at] ^= 1 << (value % 8),
            2 => bytes.insert(at, *value),
            3 => drop(bytes.remove(at)),
            _ => bytes.truncate(at + 1),
        }
    }
    bytes
}

fn changes() -> impl Strategy<Value = Vec<(prop::sample::Index, u8, u8)>> {
    prop::collection::vec(any::<(prop::sample::Index, u8, u8)>(), 0..6)
}

struct Seeds {
    csr: Vec<u8>,
    leaf: Vec<u8>,
    root: Vec<u8>,
    jwt: String,
    wit: String,
    keys: JwtKeys,
    document: String,
    key_set: Vec<u8>,
    pem: String,
    private: Vec<u8>,
    spki: Vec<u8>,
}

fn seeds() -> &'static Seeds {
    static SEEDS: OnceLock<Seeds> = OnceLock::new();
    SEEDS.get_or_init(|| {
        let issuer = authority(KeyType::EcP256);
        let workload = key(KeyType::EcP256, Role::Leaf);
        let signer = JwtSigner::new("k".to_owned(), key(KeyType::EcP256, Role::Authority));
        let sub = web();
        let claims =
            JwtClaims { sub: &sub, aud: &["a".to_owned()], exp: at(60), iat: at(0), iss: None, jti: None };
        let wit = WitClaims { sub: &sub, exp: at(60), iat: at(0), iss: None };
        let authority = JwtAuthority {
            key_id: "k".to_owned(),
            public_key: signer.public_key().spki_der().to_vec(),
            expires_at: None,
            tainted: false,
        };
        let mut keys = JwtKeys::new();
        keys.insert(domain(), std::slice::from_ref(&authority));
        let root = issuer.certificate().to_vec();
        let mut roots = bundle::from_pem(&domain(), pem::encode("CERTIFICATE", &root).as_bytes()).unwrap();
        roots.jwt_authorities.push(authority);
        Seeds {
            csr: agent_csr(&*workload, Some(&sub)).unwrap(),
            leaf: leaf(&issuer, &sub, &*workload),
            jwt: signer.sign_jwt_svid(&claims).unwrap(),
            wit: signer
                .sign_wit_svid(&wit, workload.public_key(), bonafide_pki::JwsAlgorithm::Es256)
                .unwrap(),
            keys,
            document: bundle::to_spiffe_json(&roots),
            key_set: bundle::jwks_for_workload(&roots.jwt_authorities),
            pem: bundle::to_pem(&roots),
            private: workload.expose_pkcs8().to_vec(),
            spki: workload.public_key().spki_der().to_vec(),
            root,
        }
    })
}

fn read_everything(bytes: &[u8]) {
    let _ = VerifiedCsr::parse(bytes);
    let _ = csr_public_key_unverified(bytes);
    let _ = inspect(bytes);
    let _ = split_certificates(bytes);
    let _ = PublicKey::from_spki_der(bytes).map(|key| key.check_point());
    let _ = PrivateKey::from_pkcs8_der(bytes);
    let _ = PrivateKey::from_pem(bytes);
    let _ = pem::decode_all(bytes);
    let _ = bundle::from_pem(&domain(), bytes);
    let _ = bundle::from_spiffe_json(&domain(), bytes);
    let _ = bundle::from_jwks(bytes);
    let _ = TrustRoots::from_der([bytes]);
    let known = |_: &TrustDomain| TrustRoots::from_der([&seeds().root[..]]).ok().map(std::sync::Arc::new);
    let _ = verify_svid_chain(&[bytes.to_vec(), bytes.to_vec()], &known, at(0));
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = validate_jwt_svid(text, &seeds().keys, Some("a"), at(0));
        let _ = validate_wit_svid(text, &seeds().keys, at(0));
    }
    if let Ok(jwk) = serde_json::from_slice::<jwk::Jwk>(bytes) {
        let _ = jwk::jwk_to_public_key(&jwk);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        read_everything(&bytes);
    }

    #[test]
    fn nested_der(tags in prop::collection::vec((prop::sample::select(vec![0x30_u8, 0x31, 0xa0, 0xa3, 3, 4, 2, 6]), 0_u8..40), 0..40)) {
        let bytes: Vec<u8> = tags.into_iter().flat_map(|(tag, length)| [tag, length]).collect();
        read_everything(&bytes);
    }

    #[test]
    fn mutated_documents(changes in changes()) {
        let seeds = seeds();
        for seed in [
            &seeds.csr[..], &seeds.leaf, &seeds.root, seeds.jwt.as_bytes(), seeds.wit.as_bytes(),
            seeds.document.as_bytes(), &seeds.key_set, seeds.pem.as_bytes(), &seeds.private, &seeds.spki,
        ] {
            read_everything(&mutated(seed, &changes));
        }
    }

    /// A changed CSR or token is only ever accepted when it says the same.
    #[test]
    fn a_mutation_never_changes_what_is_accepted(changes in changes()) {
        let seeds = seeds();
        let good = VerifiedCsr::parse(&seeds.csr).unwrap();
        if let Ok(csr) = VerifiedCsr::parse(&mutated(&seeds.csr, &changes)) {
            prop_assert_eq!(csr, good);
        }
        let good = validate_jwt_svid(&seeds.jwt, &seeds.keys, Some("a"), at(0)).unwrap();
        if let Ok(text) = String::from_utf8(mutated(seeds.jwt.as_bytes(), &changes))
            && let Ok(token) = validate_jwt_svid(&text, &seeds.keys, Some("a"), at(0))
        {
            prop_assert_eq!(token, good);
        }
    }
}

/// CVE-2025-61723 and CVE-2025-58185 (Go): PEM without ends was read anew from each beginning, and lengths in DER were
/// believed before the bytes were there.
#[test]
fn advisory_what_is_read_costs_its_length() {
    let started = std::time::Instant::now();
    let size = 4 << 20;
    for line in
        ["-----BEGIN A-----\n", "-----END A-----\n", "-----BEGIN A-----\nAAAA\n-----END B-----\n", "-\n"]
    {
        let text = line.repeat(size / line.len());
        let _ = pem::decode_all(text.as_bytes());
        let _ = bundle::from_pem(&domain(), text.as_bytes());
    }
    let unfinished = format!("-----BEGIN A-----\n{}", "AAAA\n".repeat(size / 5));
    assert!(pem::decode_all(unfinished.as_bytes()).is_err());
    // A certificate of four gigabytes, in ten bytes, alone and at the end of many small ones.
    let huge = [0x30, 0x84, 0xff, 0xff, 0xff, 0xff, 0x30, 0x03, 0x02, 0x01];
    assert!(inspect(&huge).is_err() && split_certificates(&huge).is_err());
    let many = [[0x30, 0].repeat(size / 2), huge.to_vec()].concat();
    assert!(split_certificates(&many).is_err());
    assert!(started.elapsed().as_secs() < 100, "took {:?}", started.elapsed());
}
