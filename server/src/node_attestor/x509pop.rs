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
use std::sync::Arc;

use async_trait::async_trait;
use bonafide_identity::{Selector, SelectorSet, SpiffeId, Timestamp, TrustDomain};
use bonafide_pki::x509::{CertificateInfo, TrustRoots, inspect, sha1_fingerprint, twin, verify_chain};
use bonafide_pki::{KeyAlgorithm, PublicKey, Random, VerificationAlgorithm, verify_svid_chain};
use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};

use super::json::{Base64, base64, to_base64};
use super::roots::{self, RootsError};
use super::template::{Field, FieldKind, Output, Template, TemplateError, Value};
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentPathTemplate(Template);

const FIELDS: [Field; 8] = [
    Field::constant(".PluginName"),
    Field::constant(".TrustDomain"),
    Field::of_node(".Fingerprint", FieldKind::Text),
    Field::of_node(".SerialNumberHex", FieldKind::Text),
    Field::of_node(".Subject.CommonName", FieldKind::Text),
    Field::of_node(".DNSNames", FieldKind::List),
    Field::of_node(".URISanSelectors", FieldKind::Map),
    // In the spiffe mode only. The path is one of an SVID that was verified, so its slashes are right.
    Field { name: SVID_PATH, kind: FieldKind::Text, distinguishes: true, path: true },
];
const SVID_PATH: &str = ".SVIDPathTrimmed";

impl AgentPathTemplate {
    /// The template that holds when none is configured.
    ///
    /// # Panics
    /// Never: both are templates.
    pub fn default_for(mode: Mode) -> Self {
        let text = match mode {
            Mode::ExternalPki => "/{{ .PluginName }}/{{ .Fingerprint }}",
            Mode::Spiffe => "/{{ .PluginName }}/{{ .SVIDPathTrimmed }}",
        };
        Self::parse(text, mode).expect("the default is a template")
    }

    /// Reads a template.
    ///
    /// # Errors
    /// Why it would not give each node an ID of its own.
    pub fn parse(text: &str, mode: Mode) -> Result<Self, TemplateError> {
        let fields = match mode {
            Mode::ExternalPki => &FIELDS[..FIELDS.len() - 1],
            Mode::Spiffe => &FIELDS[..],
        };
        Template::parse(text, fields).map(Self).map_err(|error| match error {
            TemplateError::UnknownName { name, .. } if name == SVID_PATH => TemplateError::SpiffeOnly,
            error => error,
        })
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
    ) -> Result<Self, RootsError> {
        let trust = match settings.mode {
            Mode::ExternalPki => Trust::Roots(roots::read(&settings.ca_bundle_paths)?),
            Mode::Spiffe => Trust::Bundle(state),
        };
        Ok(Self { trust_domain, settings, trust, random })
    }

    /// Whether the configured files can be used.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn check(settings: &X509PopSettings) -> Result<(), RootsError> {
        match settings.mode {
            Mode::ExternalPki => roots::read(&settings.ca_bundle_paths).map(drop),
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

    /// Keys and values of the URIs that were made to be selectors.
    fn uri_selectors<'a>(&self, leaf: &'a CertificateInfo) -> Vec<(&'a str, &'a str)> {
        let prefix = format!("x509pop://{}/", self.trust_domain);
        let parts = |uri: &'a String| uri.strip_prefix(&prefix).and_then(|rest| rest.split_once('/'));
        let whole = |(key, value): &(&str, &str)| !key.is_empty() && !value.is_empty();
        leaf.uris.iter().filter_map(parts).filter(whole).collect()
    }

    fn selectors(&self, leaf: &CertificateInfo, path: &[Vec<u8>]) -> Result<SelectorSet, AttestError> {
        let mut values = BTreeSet::new();
        if let Some(name) = leaf.common_name.as_ref().filter(|name| !name.is_empty()) {
            values.insert(format!("subject:cn:{name}"));
        }
        values.extend(path.iter().skip(1).map(|der| format!("ca:fingerprint:{}", fingerprint(der))));
        values.insert(format!("serialnumber:{}", HEXLOWER.encode(leaf.serial.as_be_bytes())));
        let sans = self.uri_selectors(leaf);
        values.extend(sans.iter().map(|(key, value)| format!("san:{key}:{value}")));
        values
            .iter()
            .map(|value| Selector::new(NAME, value))
            .collect::<Result<SelectorSet, _>>()
            .map_err(|error| internal(error.to_string()))
    }

    fn agent_id(
        &self,
        der: &[u8],
        leaf: &CertificateInfo,
        trimmed: Option<&String>,
    ) -> Result<SpiffeId, AttestError> {
        let sans = self.uri_selectors(leaf);
        let values = |name: &'static str, key: Option<&str>| {
            Some(Value::Text(match (name, key) {
                (".PluginName", _) => NAME.to_owned(),
                (".TrustDomain", _) => self.trust_domain.to_string(),
                (".Fingerprint", _) => fingerprint(der),
                (".SerialNumberHex", _) => HEXLOWER.encode(leaf.serial.as_be_bytes()),
                (".Subject.CommonName", _) => leaf.common_name.clone().unwrap_or_default(),
                (".DNSNames", _) => return Some(Value::List(leaf.dns_names.clone())),
                (".URISanSelectors", Some(key)) => {
                    sans.iter().find(|(known, _)| *known == key).map(|(_, value)| (*value).to_owned())?
                }
                (SVID_PATH, _) => trimmed?.clone(),
                _ => return None,
            }))
        };
        let refused = |error: &dyn fmt::Display| invalid(format!("failed to create agent ID: {error}"));
        let template = &self.settings.agent_path_template.0;
        let suffix = template.render(Output::Checked, &values).map_err(|error| refused(&error))?;
        self.trust_domain.agent_id(suffix.trim_start_matches('/')).map_err(|error| refused(&error))
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

        let id = self.agent_id(&chain[0], &leaf, trimmed.as_ref())?;
        // A ban is one of the certificate, whichever of its signatures the node shows.
        let issuer = path.get(1).and_then(|issuer| inspect(issuer).ok()?.public_key);
        let twin = issuer.and_then(|issuer| twin(&chain[0], &issuer));
        let twin = twin.map(|twin| self.agent_id(&twin, &leaf, trimmed.as_ref())).transpose()?;
        let twin = twin.filter(|twin| *twin != id);
        Ok(Attested { id, selectors: self.selectors(&leaf, &path)?, can_reattest: true, twin })
    }
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
        for usual in
            ["/cn/{{ .Subject.CommonName }}", "/r/{{ .URISanSelectors.rack }}", "/{{ index .DNSNames 0 }}"]
        {
            parse(usual).unwrap();
        }
        assert_eq!(parse("nodes/{{ .Fingerprint }}"), Err(TemplateError::NoSlash));
        assert_eq!(parse("/x/{{ .PluginName }}{{ .TrustDomain }}"), Err(TemplateError::Constant));
        assert_eq!(parse("/{{ .SVIDPathTrimmed }}"), Err(TemplateError::SpiffeOnly));
        AgentPathTemplate::default_for(Mode::Spiffe);
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
