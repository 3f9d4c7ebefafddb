//! SSH proof of possession: the node presents the certificate of its SSH host key and signs a nonce with that key.
//!
//! What counts is the authority that signed the certificate, that it is one for hosts, names at least one, is valid now and has
//! no critical option (nobody here would check it). Which of its names the node goes by is up to the certificate: the first.
//!
//! Go's SSH library, and so SPIRE's agent, signs with RSA keys over SHA-1. Such an answer is accepted, since what is signed
//! is a hash of a nonce of ours; a certificate signed like that is not.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bonafide_identity::{SelectorSet, SpiffeId, TrustDomain};
use bonafide_pki::Random;
use bonafide_pki::digest::Sha256;
use bonafide_pki::ssh::{SshCertificate, SshError, SshPublicKey, SshSignature};
use serde::{Deserialize, Serialize};

use super::json::{base64, to_base64};
use super::template::{Field, FieldKind, Output, Template, TemplateError, Value};
use super::{Attempt, AttestError, Attested, Conversation, NodeAttestor};
use crate::config::SshPopSettings;

/// The attestor's name.
pub const NAME: &str = "sshpop";

/// Why the attestor cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum SshPopError {
    /// The file with the authorities cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// An authority cannot be used.
    #[error("{place}: {source}")]
    Authority {
        /// Where it is written.
        place: String,
        /// What is wrong with it.
        source: SshError,
    },
    /// There is no authority at all.
    #[error("there is no certificate authority in {}", path.display())]
    None {
        /// The file.
        path: PathBuf,
    },
}

/// The names that an agent path template may use.
pub const FIELDS: &[Field] = &[
    Field::constant(".PluginName"),
    Field::of_node(".Fingerprint", FieldKind::Text),
    Field::of_node(".Hostname", FieldKind::Text),
    Field::of_node(".KeyId", FieldKind::Text),
    Field::of_node(".Serial", FieldKind::Text),
    Field::of_node(".ValidPrincipals", FieldKind::List),
];

/// The template that holds when none is configured.
pub const DEFAULT_TEMPLATE: &str = "/{{ .PluginName }}/{{ .Fingerprint }}";

/// Reads a template.
///
/// # Errors
/// Why it would not give each node an ID of its own.
pub fn template(text: &str) -> Result<Template, TemplateError> {
    Template::parse(text, FIELDS)
}

/// The attestor.
pub struct SshPop {
    trust_domain: TrustDomain,
    authorities: Vec<SshPublicKey>,
    canonical_domain: Option<String>,
    template: Template,
    random: Arc<dyn Random>,
}

impl SshPop {
    /// Reads the authorities.
    ///
    /// # Errors
    /// They cannot be read or used.
    pub fn new(
        trust_domain: TrustDomain,
        settings: SshPopSettings,
        random: Arc<dyn Random>,
    ) -> Result<Self, SshPopError> {
        let authorities = Self::authorities(&settings)?;
        let SshPopSettings { canonical_domain, agent_path_template: template, .. } = settings;
        Ok(Self { trust_domain, authorities, canonical_domain, template, random })
    }

    /// Whether the configured authorities can be used.
    ///
    /// # Errors
    /// They cannot be read or used.
    pub fn check(settings: &SshPopSettings) -> Result<(), SshPopError> {
        Self::authorities(settings).map(drop)
    }

    fn authorities(settings: &SshPopSettings) -> Result<Vec<SshPublicKey>, SshPopError> {
        let parse = |place: String, line: &str| {
            SshPublicKey::from_authorized_key(line).map_err(|source| SshPopError::Authority { place, source })
        };
        let mut found = Vec::new();
        for (at, line) in settings.cert_authorities.iter().enumerate() {
            found.extend(parse(format!("cert_authorities[{at}]"), line)?);
        }
        if let Some(path) = &settings.cert_authorities_path {
            let text = std::fs::read_to_string(path)
                .map_err(|source| SshPopError::Read { path: path.clone(), source })?;
            for (at, line) in text.lines().enumerate() {
                found.extend(parse(format!("{}, line {}", path.display(), at + 1), line)?);
            }
        }
        if found.is_empty() {
            let path = settings.cert_authorities_path.as_deref().unwrap_or(Path::new("cert_authorities"));
            return Err(SshPopError::None { path: path.to_owned() });
        }
        Ok(found)
    }

    fn hostname(&self, principal: &str) -> Result<String, AttestError> {
        let Some(domain) = &self.canonical_domain else { return Ok(principal.to_owned()) };
        let suffix = format!(".{domain}");
        principal.strip_suffix(&suffix).map(str::to_owned).ok_or_else(|| {
            denied(format!("failed to decanonicalize hostname: cert principal is not in domain {suffix:?}"))
        })
    }

    async fn prove(
        &self,
        certificate: &SshCertificate,
        conversation: &mut dyn Conversation,
    ) -> Result<(), AttestError> {
        let mut nonce = [0; NONCE];
        self.random.fill(&mut nonce);
        let challenge = serde_json::to_vec(&Challenge { nonce: nonce.to_vec() })
            .map_err(|error| AttestError::Internal(format!("nodeattestor({NAME}): {error}")))?;
        let answer = conversation.challenge(challenge).await?;
        let answer: Response = serde_json::from_slice(&answer)
            .map_err(|error| invalid(format!("failed to unmarshal challenge response: {error}")))?;
        if answer.nonce.len() != NONCE {
            return Err(invalid("failed to combine nonces: invalid response nonce size"));
        }
        let Some(signature) = answer.signature.filter(|signature| signature.rest.is_empty()) else {
            return Err(invalid("failed to verify signature: there is none"));
        };
        let mut combined = Sha256::new();
        combined.update(&nonce);
        combined.update(&answer.nonce);
        let signature = SshSignature { format: signature.format, blob: signature.blob };
        if certificate.key.verify(&combined.finish(), &signature, true) {
            Ok(())
        } else {
            Err(denied("failed to verify signature: it is not one of the certified key"))
        }
    }

    fn agent_id(&self, certificate: &SshCertificate, hostname: &str) -> Result<SpiffeId, AttestError> {
        let values = |name: &'static str, _: Option<&str>| {
            Some(match name {
                ".PluginName" => Value::Text(NAME.to_owned()),
                ".Fingerprint" => Value::Text(certificate.fingerprint()),
                ".Hostname" => Value::Text(hostname.to_owned()),
                ".KeyId" => Value::Text(certificate.key_id.clone()),
                ".Serial" => Value::Text(certificate.serial.to_string()),
                ".ValidPrincipals" => Value::List(certificate.principals.clone()),
                _ => return None,
            })
        };
        let refused = |error: &dyn fmt::Display| invalid(format!("failed to create AgentID: {error}"));
        let path = self.template.render(Output::Checked, &values).map_err(|error| refused(&error))?;
        self.trust_domain.agent_id(path.trim_start_matches('/')).map_err(|error| refused(&error))
    }
}

#[async_trait]
impl NodeAttestor for SshPop {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn attest(
        &self,
        attempt: Attempt<'_>,
        conversation: &mut dyn Conversation,
    ) -> Result<Attested, AttestError> {
        let payload: Payload = serde_json::from_slice(attempt.payload)
            .map_err(|error| invalid(format!("failed to unmarshal data: {error}")))?;
        if payload.certificate.is_empty() {
            return Err(invalid("no certificate in response"));
        }
        let certificate = SshCertificate::parse(&payload.certificate).map_err(|error| match error {
            SshError::NotCertificate => invalid("pubkey in response is not a certificate"),
            error => invalid(format!("failed to parse public key: {error}")),
        })?;
        let Some(principal) = certificate.principals.first() else {
            return Err(invalid("cert has no valid principals"));
        };
        certificate
            .verify_host(&self.authorities, attempt.now)
            .map_err(|error| denied(format!("failed to check host key: {error}")))?;
        let hostname = self.hostname(principal)?;
        self.prove(&certificate, conversation).await?;

        let id = self.agent_id(&certificate, &hostname)?;
        // A ban is one of the certificate, whichever of its signatures the node shows.
        let twin = certificate.twin().map(|twin| self.agent_id(&twin, &hostname)).transpose()?;
        let twin = twin.filter(|twin| *twin != id);
        Ok(Attested { id, selectors: SelectorSet::empty(), can_reattest: true, twin })
    }
}

fn invalid(text: impl fmt::Display) -> AttestError {
    AttestError::Invalid(format!("nodeattestor({NAME}): {text}"))
}

fn denied(text: impl fmt::Display) -> AttestError {
    AttestError::Denied(format!("nodeattestor({NAME}): {text}"))
}

const NONCE: usize = 32;

/// The names are those of fields in Go, which reads them whatever their case.
#[derive(Deserialize)]
struct Payload {
    #[serde(rename = "Certificate", alias = "certificate", deserialize_with = "base64", default)]
    certificate: Vec<u8>,
}

#[derive(Serialize)]
struct Challenge {
    #[serde(rename = "Nonce", serialize_with = "to_base64")]
    nonce: Vec<u8>,
}

#[derive(Deserialize)]
struct Response {
    #[serde(rename = "Nonce", alias = "nonce", deserialize_with = "base64", default)]
    nonce: Vec<u8>,
    #[serde(rename = "Signature", alias = "signature", default)]
    signature: Option<Signature>,
}

#[derive(Deserialize)]
struct Signature {
    #[serde(rename = "Format", alias = "format", default)]
    format: String,
    #[serde(rename = "Blob", alias = "blob", deserialize_with = "base64", default)]
    blob: Vec<u8>,
    #[serde(rename = "Rest", alias = "rest", deserialize_with = "base64", default)]
    rest: Vec<u8>,
}
