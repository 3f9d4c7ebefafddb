//! Keys, CSRs, X.509, JWT, WIT and SPIFFE bundles as bytes: build, parse, verify.
//!
//! Everything that touches a private key or a peer's certificate lives here, so that one crate knows the
//! cryptographic backend and the TLS provider. The backend is chosen by an exclusive feature, `ring`
//! (default) or `aws-lc`; only the `crypto` module names it.
//!
//! Certificates, CSRs and JSON Web Signatures are written by us rather than by a certificate library: a CA must
//! copy its own name, key identifier and the subject's key byte for byte (see
//! `docs/decisions/0003-own-certificate-writer.md`). What we write is parsed back by an independent parser in the
//! tests.

mod crypto;
mod der;
mod ecdsa;
mod jws;
mod key;
mod p384;
mod random;

pub mod bundle;
pub mod digest;
pub mod evidence;
pub mod jwk;
pub mod jwt;
pub mod key_manager;
pub mod oidc;
pub mod pem;
pub mod possession;
pub mod ssh;
pub mod tls;
pub mod tpm;
pub mod wit;
pub mod x509;

pub use jws::{JwsAlgorithm, JwtKeySource, JwtKeys, KeyLookup};
pub use jwt::{JwtClaims, JwtError, JwtSigner, ValidatedJwt, validate_jwt_svid};
pub use key::{
    KeyAlgorithm, KeyError, KeyType, PrivateKey, PublicKey, SignatureAlgorithm, Signer, VerificationAlgorithm,
};
pub use key_manager::KeyManager;
pub use random::{Random, SystemRandom, random_jti, random_key_id, random_serial};
pub use wit::{ValidatedWit, WitClaims, validate_wit_svid};
pub use x509::{
    CaIssuer, CaProfile, CaSubject, CertificateInfo, CsrError, KeyUsage, LeafProfile, Subject, TrustRoots,
    VerifiedCsr, VerifyError, X509Error, X509Issuer, acme_challenge_certificate, agent_csr, ca_csr,
    csr_public_key_unverified, inspect, self_signed_ca, sha1_fingerprint, split_certificates, twin,
    verify_chain, verify_svid_chain, web_csr, workload_csr,
};
