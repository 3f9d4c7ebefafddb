//! Proof that a peer holds the private key of its certificate, as `x509pop` attestation asks for it: a signature
//! over the server's and the client's nonce, one after the other, with SHA-256 whatever the key.

use crate::jws::{ecdsa_der_from_parts, ecdsa_parts};
use crate::key::{
    KeyAlgorithm, KeyError, PrivateKey, PublicKey, SignatureAlgorithm, Signer as _, VerificationAlgorithm,
};

/// A signature in the form in which `x509pop` sends it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// RSA-PSS with SHA-256.
    Rsa {
        /// The signature.
        signature: Vec<u8>,
    },
    /// ECDSA with SHA-256; unsigned big-endian numbers.
    Ecdsa {
        /// The number r.
        r: Vec<u8>,
        /// The number s.
        s: Vec<u8>,
    },
}

impl Proof {
    /// Signs both nonces.
    ///
    /// # Errors
    /// [`KeyError::Sign`].
    pub fn sign(key: &PrivateKey, server_nonce: &[u8], client_nonce: &[u8]) -> Result<Self, KeyError> {
        let message = [server_nonce, client_nonce].concat();
        match key.public_key().algorithm() {
            KeyAlgorithm::Rsa(_) => {
                Ok(Self::Rsa { signature: key.sign_with(SignatureAlgorithm::RsaPssSha256, &message)? })
            }
            curve @ (KeyAlgorithm::EcP256 | KeyAlgorithm::EcP384) => {
                let signature = match curve {
                    KeyAlgorithm::EcP384 => key.sign_p384_sha256(&message)?,
                    _ => key.sign_with(SignatureAlgorithm::EcdsaP256Sha256, &message)?,
                };
                let (r, s) = ecdsa_parts(&signature)?;
                Ok(Self::Ecdsa { r: r.to_vec(), s: s.to_vec() })
            }
        }
    }

    /// Whether the proof fits the key and both nonces.
    pub fn verify(&self, key: &PublicKey, server_nonce: &[u8], client_nonce: &[u8]) -> bool {
        let message = [server_nonce, client_nonce].concat();
        match (self, key.algorithm()) {
            (Self::Rsa { signature }, KeyAlgorithm::Rsa(_)) => {
                key.verify(VerificationAlgorithm::RsaPssSha256, &message, signature)
                    || key.verify(VerificationAlgorithm::RsaPssSha256AnySalt, &message, signature)
            }
            (Self::Ecdsa { r, s }, KeyAlgorithm::EcP256 | KeyAlgorithm::EcP384) => {
                key.verify(VerificationAlgorithm::EcdsaSha256, &message, &ecdsa_der_from_parts(r, s))
            }
            _ => false,
        }
    }
}
