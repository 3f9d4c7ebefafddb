//! Bundle documents and key sets: of federated trust domains, from files, from foreign Workload APIs.
//!
//! Law: what was read is written as a document that reads as the same.

use bonafide_identity::{Bundle, JwtAuthority};
use bonafide_pki::PublicKey;
use bonafide_pki::bundle::{from_jwks, from_spiffe_json, jwks_for_workload, to_spiffe_json};
use bonafide_pki::jwk::{Jwk, jwk_to_public_key, public_key_to_jwk};

/// Whether the bytes are a bundle document, a key set or a key.
pub fn check(data: &[u8]) -> bool {
    let td = crate::trust_domain();
    let bundle = from_spiffe_json(&td, data).map(in_order);
    if let Ok(bundle) = &bundle {
        let written = to_spiffe_json(bundle);
        assert_eq!(
            from_spiffe_json(&td, written.as_bytes()).map(in_order).expect("it was written by us"),
            *bundle
        );
    }
    let keys = from_jwks(data).map(sorted);
    if let Ok(keys) = &keys {
        assert_eq!(sorted(from_jwks(&jwks_for_workload(keys)).expect("it was written by us")), *keys);
        for key in keys {
            PublicKey::from_spki_der(&key.public_key).expect("only usable keys are kept");
        }
    }
    let jwk = serde_json::from_slice::<Jwk>(data).ok().and_then(|jwk| jwk_to_public_key(&jwk).ok());
    if let Some(key) = &jwk {
        assert_eq!(jwk_to_public_key(&public_key_to_jwk(key)).expect("it was written by us"), *key);
    }
    bundle.is_ok_and(|bundle| !bundle.is_empty()) || keys.is_ok_and(|keys| !keys.is_empty()) || jwk.is_some()
}

/// Documents list token keys by key ID.
fn in_order(mut bundle: Bundle) -> Bundle {
    bundle.jwt_authorities = sorted(bundle.jwt_authorities);
    bundle.wit_authorities = sorted(bundle.wit_authorities);
    bundle
}

fn sorted(mut keys: Vec<JwtAuthority>) -> Vec<JwtAuthority> {
    keys.sort_by(|a, b| a.key_id.cmp(&b.key_id));
    keys
}
