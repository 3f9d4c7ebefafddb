//! ECDSA on P-384 over SHA-256, which the backends verify and do not make.
//!
//! The protocols of proof of possession fix the hash, not the curve; so a node with a P-384 certificate has to sign like
//! this. What is delicate in a signature is the secret number k and the point k·G: both come from the backend, as a fresh
//! key pair. What is left (FIPS 186-5, 6.4.1) are two multiplications and an inversion modulo the group order, done with
//! arithmetic whose time does not depend on the numbers. Each signature is verified by the backend before it is given out, so
//! that a mistake, ours or the machine's, reveals nothing. `docs/decisions/0013-proofs-of-possession.md` weighs it.

use crypto_bigint::modular::{FixedMontyForm, FixedMontyParams};
use crypto_bigint::{Odd, U384};
use zeroize::{Zeroize as _, Zeroizing};

use crate::crypto::{self, Curve, Refused};
use crate::der::{self, DerError, Reader};
use crate::jws::ecdsa_der_from_parts;
use crate::key::VerificationAlgorithm;

/// Signs `message`; the signature comes out as DER. `pkcs8` is the key, `public` its uncompressed point.
pub(crate) fn sign_sha256(pkcs8: &[u8], public: &[u8], message: &[u8]) -> Result<Vec<u8>, Refused> {
    let signature = sign(pkcs8, message).ok_or(Refused)?;
    let verified =
        crypto::verify(Some(Curve::P384), VerificationAlgorithm::EcdsaSha256, public, message, &signature);
    if verified { Ok(signature) } else { Err(Refused) }
}

fn sign(pkcs8: &[u8], message: &[u8]) -> Option<Vec<u8>> {
    let order = FixedMontyParams::new_vartime(Odd::new(U384::from_be_hex(ORDER)).into_option()?);
    let form = |number: &U384| FixedMontyForm::new(number, &order);

    let ephemeral = crypto::generate_ec(Curve::P384).ok()?;
    let (k, point) = numbers(&ephemeral).ok()?;
    let (d, _) = numbers(pkcs8).ok()?;
    let (mut k, mut d) = (secret(k)?, secret(d)?);
    let r = form(&secret(&point[1..=SIZE])?);

    // The hash is shorter than the order, so all of it counts.
    let mut digest = crypto::Sha256::new();
    digest.update(message);
    let mut hash = [0; SIZE];
    hash[SIZE - 32..].copy_from_slice(&digest.finish());
    let z = form(&U384::from_be_slice(&hash));

    let (mut secret_k, mut secret_d) = (form(&k), form(&d));
    let mut inverse = secret_k.invert().into_option()?;
    let s = inverse.mul(&z.add(&r.mul(&secret_d)));
    k.zeroize();
    d.zeroize();
    for number in [&mut secret_k, &mut secret_d, &mut inverse] {
        number.zeroize();
    }
    let (r, s) = (bytes(&r.retrieve()), bytes(&s.retrieve()));
    // Neither is ever zero; the verification that follows would refuse it.
    Some(ecdsa_der_from_parts(&r, &s))
}

/// The secret number and the point of a PKCS#8 key (RFC 5915).
fn numbers(pkcs8: &[u8]) -> Result<(&[u8], &[u8]), DerError> {
    const BROKEN: &str = "private key is not PKCS#8";
    let mut info = Reader::new(Reader::new(pkcs8).expect(der::SEQUENCE, BROKEN)?.content);
    info.expect(der::INTEGER, BROKEN)?;
    info.expect(der::SEQUENCE, BROKEN)?;
    let inner = info.expect(der::OCTET_STRING, BROKEN)?;
    let mut key = Reader::new(Reader::new(inner.content).expect(der::SEQUENCE, BROKEN)?.content);
    key.expect(der::INTEGER, BROKEN)?;
    let secret = key.expect(der::OCTET_STRING, BROKEN)?.content;
    if key.peek() == Some(der::explicit(0)) {
        key.next()?;
    }
    let public =
        Reader::new(key.expect(der::explicit(1), BROKEN)?.content).expect(der::BIT_STRING, BROKEN)?;
    let public = der::bit_string_bytes(public.content, BROKEN)?;
    if public.len() == 1 + 2 * SIZE { Ok((secret, public)) } else { Err(DerError(BROKEN)) }
}

fn secret(bytes: &[u8]) -> Option<U384> {
    if bytes.len() > SIZE {
        return None;
    }
    let mut whole = Zeroizing::new([0; SIZE]);
    whole[SIZE - bytes.len()..].copy_from_slice(bytes);
    Some(U384::from_be_slice(&*whole))
}

fn bytes(number: &U384) -> Vec<u8> {
    number.to_be_bytes().as_ref().to_vec()
}

const SIZE: usize = 48;

/// The order of the group (SEC 2, 2.5.1).
const ORDER: &str =
    "ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{KeyType, PrivateKey, Signer as _};

    #[test]
    fn signatures_are_those_of_the_key_over_this_message_and_never_alike() {
        let key = PrivateKey::generate(KeyType::EcP384).unwrap();
        let other = PrivateKey::generate(KeyType::EcP384).unwrap();
        let mut seen = std::collections::BTreeSet::new();
        for round in 0..20_u8 {
            let signature = key.sign_p384_sha256(&[round]).unwrap();
            let verify = |key: &PrivateKey, message: &[u8]| {
                key.public_key().verify(VerificationAlgorithm::EcdsaSha256, message, &signature)
            };
            assert!(verify(&key, &[round]) && !verify(&key, &[round + 1]) && !verify(&other, &[round]));
            assert!(!key.public_key().verify(VerificationAlgorithm::EcdsaSha384, &[round], &signature));
            let (r, _) = crate::jws::ecdsa_parts(&signature).unwrap();
            assert!(seen.insert(r.to_vec()), "a number was used twice: the key would be known");
        }
    }

    #[test]
    fn other_keys_are_refused() {
        let key = PrivateKey::generate(KeyType::EcP256).unwrap();
        assert!(key.sign_p384_sha256(b"x").is_err());
        assert!(sign(&key.expose_pkcs8(), b"x").is_none());
        assert!(sign(b"", b"x").is_none());
    }
}
