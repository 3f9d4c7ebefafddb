//! The node's side of an attestation that asks questions.

use async_trait::async_trait;
use bonafide_pki::Random;
use bonafide_server::node_attestor::{AttestError, Conversation};

/// Draws the same byte for ever, so that challenges are known.
pub(crate) struct Constant(pub(crate) u8);

impl Random for Constant {
    fn fill(&self, bytes: &mut [u8]) {
        bytes.fill(self.0);
    }
}

/// Answers each challenge.
pub(crate) struct Node<'a>(pub(crate) &'a mut (dyn FnMut(&[u8]) -> Vec<u8> + Send));

#[async_trait]
impl Conversation for Node<'_> {
    async fn challenge(&mut self, challenge: Vec<u8>) -> Result<Vec<u8>, AttestError> {
        Ok((self.0)(&challenge))
    }
}
