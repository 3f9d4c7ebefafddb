//! X.509 proof of possession: the node presents a certificate and signs a nonce with its key.
//!
//! In the `external_pki` mode the certificate comes from another PKI whose roots are configured; in the `spiffe` mode it
//! is an X.509-SVID of this trust domain below a path that was set aside for the purpose (exchange of one kind of
//! identity for that of an agent).
//!
//! The order of the checks matters: sizes first, then the chain, then one signature, so that an unauthenticated
//! caller can make the server do little before it has shown a certificate of a trusted authority.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use bonafide_identity::{Selector, SelectorSet, SpiffeId, Timestamp, TrustDomain};
use bonafide_pki::x509::{CertificateInfo, TrustRoots, inspect, sha1_fingerprint, verify_chain};
use bonafide_pki::{KeyAlgorithm, PublicKey, Random, VerificationAlgorithm, pem, verify_svid_chain};
use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};

use super::{Attempt, AttestError, Attested, Conversation, NodeAttestor};
use crate::config::X509PopSettings;
use crate::store::State;

/// The attestor's name and the type of its selectors.
pub const NAME: &str = "x509pop";

/// Whose certificates are accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Those of configured roots.
    ExternalPki,
    /// X.509-SVIDs of this trust domain.
    Spiffe,
}

/// How the path of an agent ID is made, below `/spire/agent`.
///
/// A subset of the templates that SPIRE takes: text and `{{ .Name }}`. The names are listed in [`Placeholder`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentPathTemplate(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Name(Placeholder),
}

/// What a template can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placeholder {
    /// `x509pop`
    PluginName,
    /// The trust domain.
    TrustDomain,
    /// SHA-1 of the certificate, hexadecimal.
    Fingerprint,
    /// The certificate's serial number, hexadecimal, of even length.
    SerialNumberHex,
    /// The first common name of the certificate's subject.
    CommonName,
    /// The path of the SVID without the configured prefix; in the spiffe mode only.
    SvidPathTrimmed,
}

const PLACEHOLDERS: [(&str, Placeholder); 6] = [
    (".PluginName", Placeholder::PluginName),
    (".TrustDomain", Placeholder::TrustDomain),
    (".Fingerprint", Placeholder::Fingerprint),
    (".SerialNumberHex", Placeholder::SerialNumberHex),
    (".Subject.CommonName", Placeholder::CommonName),
    (".SVIDPathTrimmed", Placeholder::SvidPathTrimmed),
];

/// Why a template is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// `{{` without `}}`.
    #[error("there is a {{{{ without }}}}")]
    Unclosed,
    /// Not one of the known names.
    #[error(
        "{0:?} is not one of .PluginName, .TrustDomain, .Fingerprint, .SerialNumberHex, .Subject.CommonName, .SVIDPathTrimmed"
    )]
    UnknownName(String),
    /// A name that says something only in the spiffe mode.
    #[error(".SVIDPathTrimmed exists in the spiffe mode only")]
    SpiffeOnly,
    /// Two different certificates would get the same agent ID.
    #[error("must name something of the certificate, or all nodes would be one agent")]
    Constant,
    /// Paths start with a slash.
    #[error("must start with a slash")]
    NoSlash,
}

impl AgentPathTemplate {
    /// The template that holds when none is configured.
    pub fn default_for(mode: Mode) -> Self {
        let own = match mode {
            Mode::ExternalPki => Placeholder::Fingerprint,
            Mode::Spiffe => Placeholder::SvidPathTrimmed,
        };
        Self(vec![
            Piece::Text("/".to_owned()),
            Piece::Name(Placeholder::PluginName),
            Piece::Text("/".to_owned()),
            Piece::Name(own),
        ])
    }

    /// Reads a template.
    ///
    /// # Errors
    /// Why it would not give each node an ID of its own.
    pub fn parse(text: &str, mode: Mode) -> Result<Self, TemplateError> {
        if !text.starts_with('/') {
            return Err(TemplateError::NoSlash);
        }
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("{{") {
            if !before.is_empty() {
                pieces.push(Piece::Text(before.to_owned()));
            }
            let (name, after) = after.split_once("}}").ok_or(TemplateError::Unclosed)?;
            let name = name.trim();
            let (_, placeholder) = PLACEHOLDERS
                .iter()
                .find(|(known, _)| *known == name)
                .ok_or_else(|| TemplateError::UnknownName(name.to_owned()))?;
            if *placeholder == Placeholder::SvidPathTrimmed && mode != Mode::Spiffe {
                return Err(TemplateError::SpiffeOnly);
            }
            pieces.push(Piece::Name(*placeholder));
            rest = after;
        }
        if !rest.is_empty() {
            pieces.push(Piece::Text(rest.to_owned()));
        }
        let constant = |piece: &Piece| {
            matches!(piece, Piece::Text(_) | Piece::Name(Placeholder::PluginName | Placeholder::TrustDomain))
        };
        if pieces.iter().all(constant) {
            return Err(TemplateError::Constant);
        }
        Ok(Self(pieces))
    }

    fn names(&self, placeholder: Placeholder) -> bool {
        self.0.contains(&Piece::Name(placeholder))
    }

    fn render(&self, value: impl Fn(Placeholder) -> String) -> String {
        let piece = |piece: &Piece| match piece {
            Piece::Text(text) => text.clone(),
            Piece::Name(placeholder) => value(*placeholder),
        };
        self.0.iter().map(piece).collect()
    }
}

/// The attestor.
pub struct X509Pop {
    trust_domain: TrustDomain,
    settings: X509PopSettings,
    trust: Trust,
    random: Arc<dyn Random>,
}

enum Trust {
    /// The configured roots.
    Roots(TrustRoots),
    /// The trust domain's bundle as it is at the moment.
    Bundle(Arc<State>),
}

/// Why the attestor cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum X509PopError {
    /// A bundle file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It does not hold certificates.
    #[error("{}: {reason}", path.display())]
    NotCertificates {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl X509Pop {
    /// Reads the roots, if any.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn new(
        trust_domain: TrustDomain,
        settings: X509PopSettings,
        state: Arc<State>,
        random: Arc<dyn Random>,
    ) -> Result<Self, X509PopError> {
        let trust = match settings.mode {
            Mode::ExternalPki => Trust::Roots(read_roots(&settings.ca_bundle_paths)?),
            Mode::Spiffe => Trust::Bundle(state),
        };
        Ok(Self { trust_domain, settings, trust, random })
    }

    /// Whether the configured files can be used.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn check(settings: &X509PopSettings) -> Result<(), X509PopError> {
        match settings.mode {
            Mode::ExternalPki => read_roots(&settings.ca_bundle_paths).map(drop),
            Mode::Spiffe => Ok(()),
        }
    }

    /// The chain's path to a root: leaf first, root last. In the spiffe mode also the SVID's path.
    fn verify(
        &self,
        chain: &[Vec<u8>],
        now: Timestamp,
    ) -> Result<(Vec<Vec<u8>>, Option<String>), AttestError> {
        let refused = |error: &dyn fmt::Display| denied(format!("certificate verification failed: {error}"));
        match &self.trust {
            Trust::Roots(roots) => {
                let path = verify_chain(chain, roots, now).map_err(|error| refused(&error))?;
                Ok((path, None))
            }
            Trust::Bundle(state) => {
                let bundle = state
                    .bundle(&self.trust_domain)
                    .ok_or_else(|| internal("the trust bundle is not there yet"))?;
                let roots = bundle.x509_authorities.iter().map(|authority| &authority.certificate[..]);
                let roots = TrustRoots::from_der(roots).map_err(|error| internal(error.to_string()))?;
                let roots = Arc::new(roots);
                let own =
                    |trust_domain: &TrustDomain| (*trust_domain == self.trust_domain).then(|| roots.clone());
                let id = verify_svid_chain(chain, &own, now).map_err(|error| refused(&error))?;
                let path = verify_chain(chain, &roots, now).map_err(|error| refused(&error))?;
                Ok((path, Some(self.trimmed(&id)?)))
            }
        }
    }

    fn trimmed(&self, id: &SpiffeId) -> Result<String, AttestError> {
        let prefix = &self.settings.spiffe_prefix;
        match id.path().strip_prefix(prefix.as_str()) {
            Some(rest) if !rest.is_empty() => Ok(rest.to_owned()),
            _ => Err(denied(format!("certificate's SPIFFE ID {id} is not below {prefix}"))),
        }
    }

    fn check_leaf(&self, leaf: &CertificateInfo, attempt: &Attempt<'_>) -> Result<PublicKey, AttestError> {
        if !leaf.key_usage.is_some_and(|usage| usage.digital_signature) {
            return Err(invalid("certificate not intended for digital signature use"));
        }
        if self.settings.verify_client_ip {
            let address = attempt.address.map(|address| address.to_canonical());
            if !address.is_some_and(|address| leaf.ip_addresses.contains(&address)) {
                return Err(denied("the caller's address is not among the certificate's IP addresses"));
            }
        }
        let Some(key) = &leaf.public_key else {
            return Err(invalid("certificate's key is of a kind or size that is not accepted"));
        };
        if let KeyAlgorithm::Rsa(bits) = key.algorithm()
            && bits > self.settings.max_rsa_key_size
        {
            let limit = self.settings.max_rsa_key_size;
            return Err(invalid(format!("certificate's RSA key has {bits} bits; the limit is {limit}")));
        }
        Ok(key.clone())
    }

    async fn prove(&self, key: &PublicKey, conversation: &mut dyn Conversation) -> Result<(), AttestError> {
        let mut nonce = [0; NONCE];
        self.random.fill(&mut nonce);
        let nonce_only = Some(Nonce { nonce: nonce.to_vec() });
        let challenge = match key.algorithm() {
            KeyAlgorithm::Rsa(_) => Challenge { rsa_signature: nonce_only, ecdsa_signature: None },
            KeyAlgorithm::EcP256 | KeyAlgorithm::EcP384 => {
                Challenge { rsa_signature: None, ecdsa_signature: nonce_only }
            }
        };
        let challenge = serde_json::to_vec(&challenge).map_err(|error| internal(error.to_string()))?;
        let response = conversation.challenge(challenge).await?;
        let response: Response = serde_json::from_slice(&response)
            .map_err(|error| invalid(format!("unable to unmarshal challenge response: {error}")))?;
        let failed = || denied("challenge response verification failed");
        let (client_nonce, algorithm, signature) = match (key.algorithm(), response) {
            (KeyAlgorithm::Rsa(_), Response { rsa_signature: Some(rsa), .. }) => {
                (rsa.nonce, VerificationAlgorithm::RsaPssSha256AnySalt, rsa.signature)
            }
            (KeyAlgorithm::EcP256 | KeyAlgorithm::EcP384, Response { ecdsa_signature: Some(ecdsa), .. }) => {
                let signature = ecdsa_der(&ecdsa.r, &ecdsa.s).ok_or_else(failed)?;
                (ecdsa.nonce, VerificationAlgorithm::EcdsaSha256, signature)
            }
            _ => return Err(invalid("challenge response does not answer the challenge")),
        };
        if client_nonce.len() != NONCE {
            return Err(invalid(format!("challenge response nonce must have {NONCE} bytes")));
        }
        let mut message = nonce.to_vec();
        message.extend_from_slice(&client_nonce);
        if key.verify(algorithm, &message, &signature) { Ok(()) } else { Err(failed()) }
    }

    fn selectors(&self, leaf: &CertificateInfo, path: &[Vec<u8>]) -> Result<SelectorSet, AttestError> {
        let mut values = BTreeSet::new();
        if let Some(name) = leaf.common_name.as_ref().filter(|name| !name.is_empty()) {
            values.insert(format!("subject:cn:{name}"));
        }
        values.extend(path.iter().skip(1).map(|der| format!("ca:fingerprint:{}", fingerprint(der))));
        values.insert(format!("serialnumber:{}", HEXLOWER.encode(leaf.serial.as_be_bytes())));
        let prefix = format!("x509pop://{}/", self.trust_domain);
        for uri in &leaf.uris {
            let parts = uri.strip_prefix(&prefix).and_then(|rest| rest.split_once('/'));
            if let Some((key, value)) = parts.filter(|(key, value)| !key.is_empty() && !value.is_empty()) {
                values.insert(format!("san:{key}:{value}"));
            }
        }
        values
            .iter()
            .map(|value| Selector::new(NAME, value))
            .collect::<Result<SelectorSet, _>>()
            .map_err(|error| internal(error.to_string()))
    }
}

#[async_trait]
impl NodeAttestor for X509Pop {
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
        let chain: Vec<Vec<u8>> = payload.certificates.into_iter().map(|certificate| certificate.0).collect();
        if chain.is_empty() {
            return Err(invalid("no certificate to attest"));
        }
        let (most, given) = (self.settings.max_intermediates, chain.len() - 1);
        if given > most {
            return Err(invalid(format!("{given} intermediate certificates given; the limit is {most}")));
        }
        let leaf = inspect(&chain[0])
            .map_err(|error| invalid(format!("unable to parse leaf certificate: {error}")))?;
        let key = self.check_leaf(&leaf, &attempt)?;
        let (path, trimmed) = self.verify(&chain, attempt.now)?;
        self.prove(&key, conversation).await?;

        let name = leaf.common_name.clone().unwrap_or_default();
        // The text in it is the node's rather than the operator's: it must not reach beyond its place in the path, where
        // the names of other nodes and of other attestors are.
        if self.settings.agent_path_template.names(Placeholder::CommonName)
            && (name.is_empty() || name.contains('/'))
        {
            return Err(invalid(format!("the common name {name:?} cannot be a part of an agent path")));
        }
        let serial = HEXLOWER.encode(leaf.serial.as_be_bytes());
        let suffix = self.settings.agent_path_template.render(|placeholder| match placeholder {
            Placeholder::PluginName => NAME.to_owned(),
            Placeholder::TrustDomain => self.trust_domain.to_string(),
            Placeholder::Fingerprint => fingerprint(&chain[0]),
            Placeholder::SerialNumberHex => serial.clone(),
            Placeholder::CommonName => name.clone(),
            Placeholder::SvidPathTrimmed => trimmed.clone().unwrap_or_default(),
        });
        let id = self
            .trust_domain
            .agent_id(suffix.trim_start_matches('/'))
            .map_err(|error| invalid(format!("the agent path {suffix:?} is no SPIFFE ID path: {error}")))?;
        Ok(Attested { id, selectors: self.selectors(&leaf, &path)?, can_reattest: true })
    }
}

fn read_roots(paths: &[PathBuf]) -> Result<TrustRoots, X509PopError> {
    let mut certificates = Vec::new();
    for path in paths {
        let not_certificates = |reason: String| X509PopError::NotCertificates { path: path.clone(), reason };
        let text = std::fs::read(path).map_err(|source| X509PopError::Read { path: path.clone(), source })?;
        let blocks = pem::decode_all(&text).map_err(|error| not_certificates(error.to_string()))?;
        let before = certificates.len();
        for (label, der) in blocks {
            if label == "CERTIFICATE" {
                inspect(&der).map_err(|error| not_certificates(error.to_string()))?;
                certificates.push(der);
            }
        }
        if certificates.len() == before {
            return Err(not_certificates("holds no PEM certificate".to_owned()));
        }
    }
    let der = certificates.iter().map(Vec::as_slice);
    TrustRoots::from_der(der).map_err(|error| X509PopError::NotCertificates {
        path: paths.first().cloned().unwrap_or_default(),
        reason: error.to_string(),
    })
}

fn fingerprint(der: &[u8]) -> String {
    HEXLOWER.encode(&sha1_fingerprint(der))
}

fn invalid(text: impl fmt::Display) -> AttestError {
    AttestError::Invalid(format!("nodeattestor({NAME}): {text}"))
}

fn denied(text: impl fmt::Display) -> AttestError {
    AttestError::Denied(format!("nodeattestor({NAME}): {text}"))
}

fn internal(text: impl fmt::Display) -> AttestError {
    AttestError::Internal(format!("nodeattestor({NAME}): {text}"))
}

/// The signature as DER from its two numbers, which arrive as unsigned big-endian bytes. Nothing when one of them has no
/// place in a P-384 signature.
fn ecdsa_der(r: &[u8], s: &[u8]) -> Option<Vec<u8>> {
    let mut content = integer(r)?;
    content.extend(integer(s)?);
    let mut der = vec![0x30, u8::try_from(content.len()).ok().filter(|length| *length < 0x80)?];
    der.extend(content);
    Some(der)
}

fn integer(bytes: &[u8]) -> Option<Vec<u8>> {
    let start = bytes.iter().position(|byte| *byte != 0)?;
    let bytes = &bytes[start..];
    if bytes.len() > 48 {
        return None;
    }
    let sign = usize::from(bytes[0] >= 0x80);
    let mut der = vec![0x02, (bytes.len() + sign) as u8];
    der.extend(std::iter::repeat_n(0, sign));
    der.extend_from_slice(bytes);
    Some(der)
}

const NONCE: usize = 32;

/// Bytes as Go's JSON has them: standard base64 with padding, or null for none.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
struct Base64(#[serde(deserialize_with = "base64")] Vec<u8>);

fn base64<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?.unwrap_or_default();
    data_encoding::BASE64.decode(text.as_bytes()).map_err(serde::de::Error::custom)
}

fn to_base64<S: serde::Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&data_encoding::BASE64.encode(bytes))
}

#[derive(Deserialize)]
struct Payload {
    #[serde(alias = "Certificates", default)]
    certificates: Vec<Base64>,
}

#[derive(Serialize)]
struct Challenge {
    rsa_signature: Option<Nonce>,
    ecdsa_signature: Option<Nonce>,
}

#[derive(Serialize)]
struct Nonce {
    #[serde(serialize_with = "to_base64")]
    nonce: Vec<u8>,
}

#[derive(Deserialize)]
struct Response {
    #[serde(default)]
    rsa_signature: Option<RsaResponse>,
    #[serde(default)]
    ecdsa_signature: Option<EcdsaResponse>,
}

#[derive(Deserialize)]
struct RsaResponse {
    #[serde(deserialize_with = "base64")]
    nonce: Vec<u8>,
    #[serde(deserialize_with = "base64")]
    signature: Vec<u8>,
}

#[derive(Deserialize)]
struct EcdsaResponse {
    #[serde(deserialize_with = "base64")]
    nonce: Vec<u8>,
    #[serde(deserialize_with = "base64")]
    r: Vec<u8>,
    #[serde(deserialize_with = "base64")]
    s: Vec<u8>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates() {
        let parse = |text| AgentPathTemplate::parse(text, Mode::ExternalPki);
        assert_eq!(
            parse("/{{ .PluginName }}/{{.Fingerprint}}").unwrap(),
            AgentPathTemplate::default_for(Mode::ExternalPki)
        );
        assert_eq!(
            parse("/nodes/{{ .Subject.CommonName }}").unwrap().render(|_| "n1".to_owned()),
            "/nodes/n1"
        );
        assert_eq!(parse("nodes/{{ .Fingerprint }}"), Err(TemplateError::NoSlash));
        assert_eq!(parse("/x/{{ .PluginName }}"), Err(TemplateError::Constant));
        assert_eq!(parse("/x/{{ .Fingerprint"), Err(TemplateError::Unclosed));
        assert_eq!(parse("/{{ .SVIDPathTrimmed }}"), Err(TemplateError::SpiffeOnly));
        assert_eq!(parse("/{{ .Foo }}"), Err(TemplateError::UnknownName(".Foo".to_owned())));
    }

    #[test]
    fn numbers_of_a_signature_become_der() {
        assert_eq!(ecdsa_der(&[0, 0, 1], &[0x80]), Some(vec![0x30, 7, 2, 1, 1, 2, 2, 0, 0x80]));
        assert_eq!(ecdsa_der(&[], &[1]), None);
        assert_eq!(ecdsa_der(&[0], &[1]), None);
        assert_eq!(ecdsa_der(&[1; 49], &[1]), None);
        assert_eq!(ecdsa_der(&[0xff; 48], &[0xff; 48]).unwrap().len(), 2 + 2 * 51);
    }
}
