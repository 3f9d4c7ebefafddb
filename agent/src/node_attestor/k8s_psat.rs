//! Type `k8s_psat`: the token that the cluster projects into the agent's pod. There is no challenge.
//!
//! The kubelet renews the token in its file, so the file is read at each attestation.

use std::path::PathBuf;

use async_trait::async_trait;
use serde::Serialize;
use zeroize::Zeroizing;

use super::oidc::{Presented, from_file};
use super::{Attempt, NodeAttestError, NodeAttestor};

/// The attestor of type `k8s_psat`.
pub struct K8sPsat {
    cluster: String,
    token_path: PathBuf,
}

impl K8sPsat {
    /// With the server's name for the cluster, and the file with the token.
    #[must_use]
    pub fn new(cluster: String, token_path: PathBuf) -> Self {
        Self { cluster, token_path }
    }
}

#[async_trait]
impl NodeAttestor for K8sPsat {
    fn kind(&self) -> &'static str {
        "k8s_psat"
    }

    async fn begin(&self) -> Result<Box<dyn Attempt>, NodeAttestError> {
        let token = from_file(&self.token_path)?;
        let payload = Payload { cluster: &self.cluster, token: &token };
        let payload = serde_json::to_vec(&payload).expect("texts are JSON");
        Ok(Box::new(Presented(Zeroizing::new(payload))))
    }
}

#[derive(Serialize)]
struct Payload<'a> {
    cluster: &'a str,
    token: &'a str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_file_is_read_at_each_attestation() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let attestor = K8sPsat::new("prod \"1\"".to_owned(), path.clone());
        assert!(matches!(attestor.begin().await, Err(NodeAttestError::Unreadable { .. })));
        for token in ["a.b.c", "d.e.f\n"] {
            std::fs::write(&path, token).unwrap();
            let payload = attestor.begin().await.unwrap().payload().to_vec();
            let expected = format!(r#"{{"cluster":"prod \"1\"","token":"{}"}}"#, token.trim());
            assert_eq!(String::from_utf8(payload).unwrap(), expected);
        }
        std::fs::write(&path, "not a token").unwrap();
        let refused = attestor.begin().await.map(drop).unwrap_err().to_string();
        assert!(refused.ends_with("token holds no token"), "{refused}");
        std::fs::write(&path, "a.b.c").unwrap();
        let mut attempt = attestor.begin().await.unwrap();
        assert!(matches!(attempt.respond(b"{}"), Err(NodeAttestError::Challenge(_))));
    }
}
