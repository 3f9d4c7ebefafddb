//! Type `sshpop`: possession of the SSH host key of a certificate whose authority the server trusts.
//!
//! As with `x509pop` both sides choose a nonce and the agent signs SHA-256 of both. RSA keys sign with SHA-256
//! (`rsa-sha2-256`), which every server of this protocol verifies.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use bonafide_pki::Random;
use bonafide_pki::digest::Sha256;
use bonafide_pki::ssh::{SshCertificate, SshPrivateKey};
use data_encoding::BASE64;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{Attempt, NodeAttestError, NodeAttestor, read};

/// The attestor of type `sshpop`.
pub struct SshPop {
    host_key: PathBuf,
    host_cert: PathBuf,
    random: Arc<dyn Random>,
}

impl SshPop {
    /// With the key and the certificate in these files of OpenSSH.
    #[must_use]
    pub fn new(host_key: PathBuf, host_cert: PathBuf, random: Arc<dyn Random>) -> Self {
        Self { host_key, host_cert, random }
    }
}

#[async_trait]
impl NodeAttestor for SshPop {
    fn kind(&self) -> &'static str {
        "sshpop"
    }

    async fn begin(&self) -> Result<Box<dyn Attempt>, NodeAttestError> {
        let ssh = |path: &PathBuf| {
            let path = path.clone();
            move |source| NodeAttestError::Ssh { path, source }
        };
        let certificate = SshCertificate::from_text(&read(&self.host_cert)?).map_err(ssh(&self.host_cert))?;
        let key = SshPrivateKey::from_text(&read(&self.host_key)?).map_err(ssh(&self.host_key))?;
        if certificate.key != key.public_key() {
            let problem = "is not the key of the certificate";
            return Err(NodeAttestError::Unusable { path: self.host_key.clone(), problem });
        }
        let payload = serde_json::to_vec(&Payload { certificate: BASE64.encode(certificate.wire()) })
            .expect("a text is JSON");
        Ok(Box::new(Possession { payload, key, random: Arc::clone(&self.random) }))
    }
}

struct Possession {
    payload: Vec<u8>,
    key: SshPrivateKey,
    random: Arc<dyn Random>,
}

impl Attempt for Possession {
    fn payload(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.payload.clone())
    }

    fn respond(&mut self, challenge: &[u8]) -> Result<Vec<u8>, NodeAttestError> {
        let challenge: Challenge = serde_json::from_slice(challenge)
            .map_err(|_| NodeAttestError::Challenge("it is not the JSON of an sshpop challenge"))?;
        let theirs = BASE64
            .decode(challenge.nonce.as_bytes())
            .map_err(|_| NodeAttestError::Challenge("its nonce is not base64"))?;
        if theirs.len() != NONCE {
            // Signing less than a nonce would let the server choose nearly all of what is signed.
            return Err(NodeAttestError::Challenge("its nonce has not 32 bytes"));
        }
        let mut ours = [0; NONCE];
        self.random.fill(&mut ours);
        let mut combined = Sha256::new();
        combined.update(&theirs);
        combined.update(&ours);
        let signature = self.key.sign(&combined.finish()).map_err(NodeAttestError::Sign)?;
        let response = Response {
            nonce: BASE64.encode(&ours),
            signature: Signature {
                format: signature.format,
                blob: BASE64.encode(&signature.blob),
                rest: None,
            },
        };
        Ok(serde_json::to_vec(&response).expect("texts are JSON"))
    }
}

#[derive(Serialize)]
struct Payload {
    #[serde(rename = "Certificate")]
    certificate: String,
}

#[derive(Deserialize)]
struct Challenge {
    #[serde(rename = "Nonce", alias = "nonce")]
    nonce: String,
}

#[derive(Serialize)]
struct Response {
    #[serde(rename = "Nonce")]
    nonce: String,
    #[serde(rename = "Signature")]
    signature: Signature,
}

#[derive(Serialize)]
struct Signature {
    #[serde(rename = "Format")]
    format: String,
    #[serde(rename = "Blob")]
    blob: String,
    #[serde(rename = "Rest")]
    rest: Option<String>,
}

const NONCE: usize = 32;

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::{Command, Stdio};

    use bonafide_pki::SystemRandom;
    use bonafide_pki::ssh::SshSignature;

    use super::*;

    fn keygen(folder: &Path, arguments: &str) -> bool {
        let mut command = Command::new("ssh-keygen");
        command.arg("-q").args(arguments.split(' ').map(|word| if word == "-" { "" } else { word }));
        match command.current_dir(folder).stdin(Stdio::null()).status() {
            Ok(status) => {
                assert!(status.success(), "{arguments}");
                true
            }
            Err(_) => {
                println!("SKIPPED: sshpop: ssh-keygen is not installed");
                false
            }
        }
    }

    #[tokio::test]
    async fn both_nonces_are_signed_with_the_key_of_the_certificate() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        if !keygen(path, "-t ed25519 -N - -f ca") {
            return;
        }
        for kind in ["ed25519", "ecdsa -b 384", "rsa -b 2048"] {
            let name = kind.split(' ').next().unwrap();
            keygen(path, &format!("-t {kind} -N - -f {name}"));
            keygen(path, &format!("-s ca -h -I x -n host {name}.pub"));
            let (key, cert) = (path.join(name), path.join(format!("{name}-cert.pub")));
            let attestor = SshPop::new(key, cert.clone(), Arc::new(SystemRandom));
            let mut attempt = attestor.begin().await.unwrap();
            let certificate = SshCertificate::from_text(&std::fs::read(cert).unwrap()).unwrap();
            let payload: serde_json::Value = serde_json::from_slice(&attempt.payload()).unwrap();
            assert_eq!(payload, serde_json::json!({ "Certificate": BASE64.encode(certificate.wire()) }));

            let challenge = format!(r#"{{"Nonce":"{}"}}"#, BASE64.encode(&[7; 32]));
            let response = attempt.respond(challenge.as_bytes()).unwrap();
            let response: serde_json::Value = serde_json::from_slice(&response).unwrap();
            let bytes =
                |value: &serde_json::Value| BASE64.decode(value.as_str().unwrap().as_bytes()).unwrap();
            let signature = &response["Signature"];
            assert!(signature["Rest"].is_null());
            let signature = SshSignature {
                format: signature["Format"].as_str().unwrap().to_owned(),
                blob: bytes(&signature["Blob"]),
            };
            let mut combined = Sha256::new();
            combined.update(&[7; 32]);
            combined.update(&bytes(&response["Nonce"]));
            assert!(certificate.key.verify(&combined.finish(), &signature, false), "{kind}");

            for wrong in ["", "{}", r#"{"Nonce":null}"#, r#"{"Nonce":"%"}"#, r#"{"Nonce":"AAAA"}"#] {
                assert!(
                    matches!(attempt.respond(wrong.as_bytes()), Err(NodeAttestError::Challenge(_))),
                    "{wrong}"
                );
            }
        }
        let begin = async |key: &str, cert: &str| {
            let attestor = SshPop::new(path.join(key), path.join(cert), Arc::new(SystemRandom));
            attestor.begin().await.map(drop).unwrap_err().to_string()
        };
        assert!(begin("rsa", "ed25519-cert.pub").await.ends_with("rsa is not the key of the certificate"));
        assert!(begin("rsa", "rsa.pub").await.contains("rsa.pub"));
        assert!(begin("none", "rsa-cert.pub").await.contains("cannot read"));
    }
}
