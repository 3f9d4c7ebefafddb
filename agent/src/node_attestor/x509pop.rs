//! Type `x509pop`: possession of the key of a certificate that the server trusts.
//!
//! The server sends 32 random bytes, the agent adds 32 of its own and signs SHA-256 of both, so that neither side alone
//! chooses what is signed. RSA signs with PSS, elliptic curves give r and s apart. The hash is SHA-256 whatever the curve.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bonafide_pki::possession::Proof;
use bonafide_pki::{KeyAlgorithm, PrivateKey, Random, Signer as _, pem};
use data_encoding::BASE64;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{Attempt, NodeAttestError, NodeAttestor, read};

/// The attestor of type `x509pop`.
pub struct X509Pop {
    certificate: PathBuf,
    private_key: PathBuf,
    intermediates: Option<PathBuf>,
    random: Arc<dyn Random>,
}

impl X509Pop {
    /// With the certificate and key in these PEM files.
    #[must_use]
    pub fn new(
        certificate: PathBuf,
        private_key: PathBuf,
        intermediates: Option<PathBuf>,
        random: Arc<dyn Random>,
    ) -> Self {
        Self { certificate, private_key, intermediates, random }
    }
}

#[async_trait]
impl NodeAttestor for X509Pop {
    fn kind(&self) -> &'static str {
        "x509pop"
    }

    async fn begin(&self) -> Result<Box<dyn Attempt>, NodeAttestError> {
        let mut certificates = certificates(&self.certificate)?;
        if let Some(path) = &self.intermediates {
            certificates.extend(self::certificates(path)?);
        }
        let key = PrivateKey::from_pem(&read(&self.private_key)?)
            .map_err(|source| NodeAttestError::Key { path: self.private_key.clone(), source })?;
        let unusable = |problem| NodeAttestError::Unusable { path: self.private_key.clone(), problem };
        let leaf = bonafide_pki::inspect(&certificates[0]).map_err(|_| NodeAttestError::Unusable {
            path: self.certificate.clone(),
            problem: "holds a broken certificate",
        })?;
        if leaf.public_key.as_ref() != Some(key.public_key()) {
            return Err(unusable("is not the key of the certificate"));
        }
        let payload = serde_json::to_vec(&Payload {
            certificates: certificates.iter().map(|der| BASE64.encode(der)).collect(),
        })
        .expect("a list of texts is JSON");
        Ok(Box::new(Possession { payload, key, random: Arc::clone(&self.random) }))
    }
}

fn certificates(path: &Path) -> Result<Vec<Vec<u8>>, NodeAttestError> {
    let unusable = |problem| NodeAttestError::Unusable { path: path.to_owned(), problem };
    let found: Vec<_> = pem::decode_all(&read(path)?)
        .map_err(|_| unusable("is not PEM"))?
        .into_iter()
        .filter_map(|(label, der)| (label == "CERTIFICATE").then_some(der))
        .collect();
    if found.is_empty() { Err(unusable("holds no certificate")) } else { Ok(found) }
}

struct Possession {
    payload: Vec<u8>,
    key: PrivateKey,
    random: Arc<dyn Random>,
}

impl Attempt for Possession {
    fn payload(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.payload.clone())
    }

    fn respond(&mut self, challenge: &[u8]) -> Result<Vec<u8>, NodeAttestError> {
        let challenge: Challenge = serde_json::from_slice(challenge)
            .map_err(|_| NodeAttestError::Challenge("it is not the JSON of an x509pop challenge"))?;
        let is_rsa = matches!(self.key.public_key().algorithm(), KeyAlgorithm::Rsa(_));
        let wanted = if is_rsa { challenge.rsa_signature } else { challenge.ecdsa_signature };
        let wanted = wanted.ok_or(NodeAttestError::Challenge("it asks for another kind of key"))?;
        let theirs = BASE64
            .decode(wanted.nonce.as_bytes())
            .map_err(|_| NodeAttestError::Challenge("its nonce is not base64"))?;
        if theirs.len() != NONCE {
            // Signing less than a nonce would let the server choose nearly all of what is signed.
            return Err(NodeAttestError::Challenge("its nonce has not 32 bytes"));
        }
        let mut ours = [0; NONCE];
        self.random.fill(&mut ours);
        let proof = Proof::sign(&self.key, &theirs, &ours).map_err(NodeAttestError::Sign)?;
        let nonce = BASE64.encode(&ours);
        let response = match proof {
            Proof::Rsa { signature } => Response {
                rsa_signature: Some(RsaSignature { nonce, signature: BASE64.encode(&signature) }),
                ecdsa_signature: None,
            },
            Proof::Ecdsa { r, s } => Response {
                rsa_signature: None,
                ecdsa_signature: Some(EcdsaSignature { nonce, r: BASE64.encode(&r), s: BASE64.encode(&s) }),
            },
        };
        Ok(serde_json::to_vec(&response).expect("texts are JSON"))
    }
}

#[derive(Serialize)]
struct Payload {
    certificates: Vec<String>,
}

#[derive(Deserialize)]
struct Challenge {
    rsa_signature: Option<Nonce>,
    ecdsa_signature: Option<Nonce>,
}

#[derive(Deserialize)]
struct Nonce {
    nonce: String,
}

/// The member that does not apply is null, as the other implementation writes it.
#[derive(Serialize)]
struct Response {
    rsa_signature: Option<RsaSignature>,
    ecdsa_signature: Option<EcdsaSignature>,
}

#[derive(Serialize)]
struct RsaSignature {
    nonce: String,
    signature: String,
}

#[derive(Serialize)]
struct EcdsaSignature {
    nonce: String,
    r: String,
    s: String,
}

const NONCE: usize = 32;

#[cfg(test)]
mod tests {
    use bonafide_identity::Timestamp;
    use bonafide_pki::{KeyType, SystemRandom};
    use bonafide_testkit::{TestAuthority, id, trust_domain};

    use super::*;

    fn write(folder: &Path, name: &str, label: &str, blocks: &[Vec<u8>]) -> PathBuf {
        let path = folder.join(name);
        std::fs::write(&path, blocks.iter().map(|der| pem::encode(label, der)).collect::<String>()).unwrap();
        path
    }

    fn authority() -> TestAuthority {
        let at = |seconds| Timestamp::from_unix_seconds(seconds);
        TestAuthority::new(&trust_domain(), at(1_700_000_000), at(2_000_000_000))
    }

    fn attestor(folder: &Path, pkcs8: &[u8], chain: &[Vec<u8>]) -> X509Pop {
        let certificate = write(folder, "c.pem", "CERTIFICATE", &chain[..1]);
        let intermediates = write(folder, "i.pem", "CERTIFICATE", &[authority().root().to_vec()]);
        let key = write(folder, "k.pem", "PRIVATE KEY", &[pkcs8.to_vec()]);
        X509Pop::new(certificate, key, Some(intermediates), Arc::new(SystemRandom))
    }

    #[tokio::test]
    async fn both_nonces_are_signed() {
        let folder = tempfile::tempdir().unwrap();
        let leaf = authority().issue(&id("/node"));
        let mut attempt = attestor(folder.path(), &leaf.pkcs8, &leaf.chain).begin().await.unwrap();
        let payload: serde_json::Value = serde_json::from_slice(&attempt.payload()).unwrap();
        assert_eq!(payload["certificates"][0], BASE64.encode(&leaf.chain[0]));
        assert_eq!(payload["certificates"].as_array().unwrap().len(), 2);

        let theirs = [7; 32];
        let challenge =
            format!(r#"{{"rsa_signature":null,"ecdsa_signature":{{"nonce":"{}"}}}}"#, BASE64.encode(&theirs));
        let response: serde_json::Value =
            serde_json::from_slice(&attempt.respond(challenge.as_bytes()).unwrap()).unwrap();
        assert!(response["rsa_signature"].is_null());
        let part = |name: &str| {
            BASE64.decode(response["ecdsa_signature"][name].as_str().unwrap().as_bytes()).unwrap()
        };
        let proof = Proof::Ecdsa { r: part("r"), s: part("s") };
        let key = bonafide_pki::inspect(&leaf.chain[0]).unwrap().public_key.unwrap();
        assert_eq!(part("nonce").len(), 32);
        assert!(proof.verify(&key, &theirs, &part("nonce")));
        assert!(!proof.verify(&key, &part("nonce"), &theirs));
    }

    #[tokio::test]
    async fn bad_challenges_are_not_signed() {
        let folder = tempfile::tempdir().unwrap();
        let leaf = authority().issue(&id("/node"));
        let mut attempt = attestor(folder.path(), &leaf.pkcs8, &leaf.chain).begin().await.unwrap();
        let short = BASE64.encode(&[0; 31]);
        for challenge in [
            "".to_owned(),
            "[]".to_owned(),
            "{}".to_owned(),
            format!(r#"{{"ecdsa_signature":{{"nonce":"{short}"}}}}"#),
            r#"{"ecdsa_signature":{"nonce":"%"}}"#.to_owned(),
            format!(r#"{{"rsa_signature":{{"nonce":"{}"}}}}"#, BASE64.encode(&[0; 32])),
        ] {
            assert!(
                matches!(attempt.respond(challenge.as_bytes()), Err(NodeAttestError::Challenge(_))),
                "{challenge}"
            );
        }
    }

    #[tokio::test]
    async fn files_that_do_not_fit_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let leaf = authority().issue(&id("/node"));
        let other = PrivateKey::generate(KeyType::EcP256).unwrap();
        let attempt = async |attestor: X509Pop| match attestor.begin().await {
            Ok(_) => panic!("must be refused"),
            Err(error) => error.to_string(),
        };
        let mismatch = attempt(attestor(folder.path(), &other.expose_pkcs8(), &leaf.chain)).await;
        assert!(mismatch.contains("k.pem is not the key of the certificate"), "{mismatch}");
        let missing =
            X509Pop::new(folder.path().join("x"), folder.path().join("k.pem"), None, Arc::new(SystemRandom));
        assert!(attempt(missing).await.contains("cannot read"));
        let swapped = X509Pop::new(
            folder.path().join("k.pem"),
            folder.path().join("c.pem"),
            None,
            Arc::new(SystemRandom),
        );
        assert!(attempt(swapped).await.contains("k.pem holds no certificate"));
    }
}
