//! Type `join_token`: a secret that the server handed out for one attestation. There is no challenge.

use async_trait::async_trait;
use zeroize::Zeroizing;

use super::{Attempt, NodeAttestError, NodeAttestor, read};
use crate::config::JoinTokenSource;

/// The attestor of type `join_token`.
pub struct JoinToken {
    source: JoinTokenSource,
}

impl JoinToken {
    /// With a token from this source.
    #[must_use]
    pub fn new(source: JoinTokenSource) -> Self {
        Self { source }
    }
}

#[async_trait]
impl NodeAttestor for JoinToken {
    fn kind(&self) -> &'static str {
        "join_token"
    }

    async fn begin(&self) -> Result<Box<dyn Attempt>, NodeAttestError> {
        let token = match &self.source {
            JoinTokenSource::None => return Err(NodeAttestError::NoToken),
            JoinTokenSource::Inline(token) => Zeroizing::new(token.as_bytes().to_vec()),
            JoinTokenSource::File(path) => {
                // Whoever wrote the file with an editor or `echo` left a line end behind.
                let content = Zeroizing::new(read(path)?.trim_ascii().to_vec());
                if content.is_empty() {
                    return Err(NodeAttestError::Unusable { path: path.clone(), problem: "holds no token" });
                }
                content
            }
        };
        Ok(Box::new(Token(token)))
    }
}

struct Token(Zeroizing<Vec<u8>>);

impl Attempt for Token {
    fn payload(&self) -> Zeroizing<Vec<u8>> {
        self.0.clone()
    }

    fn respond(&mut self, _: &[u8]) -> Result<Vec<u8>, NodeAttestError> {
        Err(NodeAttestError::Challenge("a join token is not challenged"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn payload(source: JoinTokenSource) -> Result<Vec<u8>, NodeAttestError> {
        Ok(JoinToken::new(source).begin().await?.payload().to_vec())
    }

    #[tokio::test]
    async fn the_payload_is_the_token_itself() {
        assert_eq!(payload(JoinTokenSource::Inline("abc".into())).await.unwrap(), b"abc");
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        std::fs::write(&file, " abc\n").unwrap();
        assert_eq!(payload(JoinTokenSource::File(file.clone())).await.unwrap(), b"abc");

        std::fs::write(&file, "\n").unwrap();
        assert!(matches!(payload(JoinTokenSource::File(file)).await, Err(NodeAttestError::Unusable { .. })));
        let missing = JoinTokenSource::File(folder.path().join("missing"));
        assert!(matches!(payload(missing).await, Err(NodeAttestError::Unreadable { .. })));
        assert!(matches!(payload(JoinTokenSource::None).await, Err(NodeAttestError::NoToken)));
    }

    #[tokio::test]
    async fn a_challenge_is_a_mistake_of_the_server() {
        let mut attempt = JoinToken::new(JoinTokenSource::Inline("abc".into())).begin().await.unwrap();
        assert!(matches!(attempt.respond(b"x"), Err(NodeAttestError::Challenge(_))));
    }
}
