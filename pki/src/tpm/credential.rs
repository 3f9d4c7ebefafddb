//! A secret for one key in one TPM (part 1, 24): whoever opens it holds an endorsement key and a key of a given name.

use zeroize::Zeroizing;

use super::{Public, TpmError};
use crate::crypto::{self, Refused};
use crate::random::Random;

/// What the other side passes to `TPM2_ActivateCredential`. Neither part has a length in front.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// The secret, encrypted and authenticated (`TPMS_ID_OBJECT`).
    pub credential: Vec<u8>,
    /// The seed of the keys for that, encrypted to the endorsement key.
    pub seed: Vec<u8>,
}

/// Encrypts `secret` so that only the TPM with the endorsement key `protector` gives it out, and only to someone who uses the
/// key called `name` in that TPM.
///
/// # Errors
/// [`TpmError::Unfit`] when the protector is no endorsement key, [`TpmError::Malformed`] when the secret is longer than 32 bytes.
pub fn make_credential(
    protector: &Public,
    name: &[u8],
    secret: &[u8],
    random: &dyn Random,
) -> Result<Credential, TpmError> {
    protector.is_endorsement_key()?;
    if secret.len() > 32 {
        return Err(TpmError::Malformed("the secret is longer than a digest"));
    }
    let bits = protector.aes_bits().unwrap_or(128);
    let mut seed = Zeroizing::new(vec![0; usize::from(bits / 8)]);
    random.fill(&mut seed);
    let refused = |_: Refused| TpmError::Unfit("cannot be used for encryption");
    // Labels end with a zero byte (part 1, B.4 and 11.4.10.2).
    let encrypted =
        crypto::rsa_oaep_sha256(protector.key()?.bare(), b"IDENTITY\0", &seed, random).map_err(refused)?;

    let key = Zeroizing::new(kdf(&seed, b"STORAGE\0", name, usize::from(bits)));
    let size = u16::try_from(secret.len()).expect("the secret is short").to_be_bytes();
    let mut identity = [&size[..], secret].concat();
    crypto::aes_cfb_encrypt(&key, &mut identity).map_err(refused)?;

    let key = Zeroizing::new(kdf(&seed, b"INTEGRITY\0", &[], 256));
    let integrity = crypto::hmac_sha256(&key, &[&identity, name]);
    let mut credential = 32_u16.to_be_bytes().to_vec();
    credential.extend(integrity);
    credential.extend(identity);
    Ok(Credential { credential, seed: encrypted })
}

/// KDFa with SHA-256 and one context (part 1, 11.4.10.2), for at most one digest of output.
fn kdf(key: &[u8], label: &[u8], context: &[u8], bits: usize) -> Vec<u8> {
    let size = u32::try_from(bits).unwrap_or(256).min(256);
    let mut out = crypto::hmac_sha256(key, &[&1_u32.to_be_bytes(), label, context, &size.to_be_bytes()]);
    out.truncate(size as usize / 8);
    out
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;

    use super::*;
    use crate::random::SystemRandom;
    use crate::tpm::{Kind, template};

    #[test]
    fn cfb_is_that_of_the_standard() {
        // NIST SP 800-38A F.3.13 begins with another IV: CFB with IV 0 of a first block P is P xor E(0), and what follows is CFB with
        // the ciphertext as IV. So encrypting IV xor E(0) first makes it the standard's example.
        let key = HEXLOWER.decode(b"2b7e151628aed2a6abf7158809cf4f3c").unwrap();
        let iv = HEXLOWER.decode(b"000102030405060708090a0b0c0d0e0f").unwrap();
        let mut zero = [0; 16];
        crypto::aes_cfb_encrypt(&key, &mut zero).unwrap();
        let mut data: Vec<u8> = iv.iter().zip(zero).map(|(iv, zero)| iv ^ zero).collect();
        data.extend(
            HEXLOWER.decode(b"6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51").unwrap(),
        );
        crypto::aes_cfb_encrypt(&key, &mut data).unwrap();
        assert_eq!(data[..16], iv);
        let expected = "3b3fd92eb72dad20333449f8e83cfb4ac8a64537a0b3a93fcde3cdad9f1ce58b";
        assert_eq!(HEXLOWER.encode(&data[16..]), expected);
    }

    #[test]
    fn only_endorsement_keys_protect() {
        let wire = |template: Vec<u8>, unique: usize| {
            [&template[..template.len() - unique], &[1, 0], &[0xc1; 256]].concat()
        };
        let ek = Public::parse(&wire(template::endorsement_key(), 258)).unwrap();
        let made = make_credential(&ek, b"name", &[7; 32], &SystemRandom).unwrap();
        assert_eq!((made.credential.len(), made.seed.len()), (2 + 32 + 2 + 32, 256));
        assert!(make_credential(&ek, b"name", &[7; 33], &SystemRandom).is_err());
        for other in [template::attestation_key(), template::signing_key(Kind::Rsa)] {
            let other = Public::parse(&wire(other, 2)).unwrap();
            assert!(matches!(make_credential(&other, b"n", &[7], &SystemRandom), Err(TpmError::Unfit(_))));
        }
    }
}
