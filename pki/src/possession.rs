//! Proof that a peer holds the private key of its certificate, as `x509pop` attestation asks for it: a signature
//! over the server's and the client's nonce, one after the other, with SHA-256 whatever the key.

use crate::jws::{ecdsa_der_from_parts, ecdsa_parts};
use crate::key::{KeyAlgorithm, KeyError, PublicKey, SignatureAlgorithm, Signer, VerificationAlgorithm};

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
    /// [`KeyError::Policy`] for P-384 keys: the backends sign SHA-256 with P-256 only. [`KeyError::Sign`].
    pub fn sign(signer: &dyn Signer, server_nonce: &[u8], client_nonce: &[u8]) -> Result<Self, KeyError> {
        let message = [server_nonce, client_nonce].concat();
        match signer.public_key().algorithm() {
            KeyAlgorithm::Rsa(_) => {
                Ok(Self::Rsa { signature: signer.sign_with(SignatureAlgorithm::RsaPssSha256, &message)? })
            }
            KeyAlgorithm::EcP256 => {
                let signature = signer.sign_with(SignatureAlgorithm::EcdsaP256Sha256, &message)?;
                let (r, s) = ecdsa_parts(&signature)?;
                Ok(Self::Ecdsa { r: r.to_vec(), s: s.to_vec() })
            }
            KeyAlgorithm::EcP384 => Err(KeyError::Policy(
                "x509pop signs with SHA-256, which P-384 keys cannot do here: use a P-256 or RSA certificate"
                    .to_owned(),
            )),
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
