//! Device identities in a TPM: the node presents a certificate for a key, proves that it holds the key, and that the key is in
//! the same TPM as an endorsement key which the TPM's manufacturer vouches for.
//!
//! The proof has three links. The certificate of the endorsement key is signed by a manufacturer. A credential that only the TPM with
//! that key opens, for an attestation key of a given name, shows that the attestation key is there. A statement signed by the
//! attestation key says that the device key is there too. Each link holds only if the keys are of the right sort: a statement of
//! an attestation key that signs anything is worth nothing, nor is one about a key which the certificate does not name. So the
//! server looks at the attributes of all three, and compares the device key with the certificate.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bonafide_identity::{Selector, SelectorSet, SpiffeId, TrustDomain};
use bonafide_pki::digest::same_secret;
use bonafide_pki::tpm::{
    Public, TpmError, make_credential, may_certify_endorsement_key, verify_certification,
};
use bonafide_pki::x509::{CertificateInfo, TrustRoots, inspect, sha1_fingerprint, twin, verify_chain};
use bonafide_pki::{KeyAlgorithm, PublicKey, Random, VerificationAlgorithm};
use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};

use super::json::{Base64, base64, to_base64};
use super::roots::{self, RootsError};
use super::{Attempt, AttestError, Attested, Conversation, NodeAttestor};
use crate::config::TpmDevIdSettings;

/// The attestor's name and the type of its selectors.
pub const NAME: &str = "tpm_devid";

/// The attestor.
pub struct TpmDevId {
    trust_domain: TrustDomain,
    device_roots: TrustRoots,
    manufacturer_roots: TrustRoots,
    random: Arc<dyn Random>,
}

impl TpmDevId {
    /// Reads the authorities of both kinds.
    ///
    /// # Errors
    /// They cannot be read or used.
    pub fn new(
        trust_domain: TrustDomain,
        settings: &TpmDevIdSettings,
        random: Arc<dyn Random>,
    ) -> Result<Self, RootsError> {
        let device_roots = roots::read(std::slice::from_ref(&settings.devid_ca_path))?;
        let manufacturer_roots = roots::read(std::slice::from_ref(&settings.endorsement_ca_path))?;
        Ok(Self { trust_domain, device_roots, manufacturer_roots, random })
    }

    /// Whether the configured files can be used.
    ///
    /// # Errors
    /// They cannot be read or used.
    pub fn check(settings: &TpmDevIdSettings) -> Result<(), RootsError> {
        roots::read(std::slice::from_ref(&settings.devid_ca_path))?;
        roots::read(std::slice::from_ref(&settings.endorsement_ca_path)).map(drop)
    }

    /// The keys of the three roles, once everything that needs no answer was checked.
    fn keys(&self, payload: &Payload, key: &PublicKey, attempt: &Attempt<'_>) -> Result<Keys, AttestError> {
        let public = |bytes: &[u8], what: &str| {
            if bytes.is_empty() {
                return Err(invalid(format!("missing {what} public blob")));
            }
            Public::parse(bytes)
                .map_err(|error| invalid(format!("cannot decode {what} public blob: {error}")))
        };
        let unfit = |what: &'static str| {
            move |error: TpmError| denied(format!("{what} is not what it has to be: {error}"))
        };
        let attestation = public(&payload.ak_pub, "attestation key")?;
        let device = public(&payload.dev_id_pub, "DevID key")?;
        if payload.ek_cert.is_empty() {
            return Err(invalid("missing endorsement certificate"));
        }
        let endorsement = public(&payload.ek_pub, "endorsement key")?;
        let certificate = inspect(&payload.ek_cert)
            .map_err(|error| invalid(format!("cannot parse endorsement certificate: {error}")))?;

        if device.key().ok().as_ref() != Some(key) {
            return Err(denied("the DevID key public blob is not one of the key in the DevID certificate"));
        }
        device.is_device_key().map_err(unfit("the DevID key"))?;
        attestation.is_attestation_key().map_err(unfit("the attestation key"))?;
        endorsement.is_endorsement_key().map_err(unfit("the endorsement key"))?;
        if certificate.public_key.is_none() || endorsement.key().ok() != certificate.public_key {
            return Err(denied(
                "public key in EK certificate differs from public key created via EK template",
            ));
        }
        verify_chain(std::slice::from_ref(&payload.ek_cert), &self.manufacturer_roots, attempt.now)
            .map_err(|error| denied(format!("cannot verify EK signature: {error}")))?;
        let purpose = may_certify_endorsement_key(&payload.ek_cert)
            .map_err(|error| invalid(format!("cannot parse endorsement certificate: {error}")))?;
        if !purpose {
            return Err(denied("the endorsement certificate is for another purpose than endorsement keys"));
        }
        verify_certification(
            &attestation,
            &device,
            &payload.certified_dev_id,
            &payload.certification_signature,
        )
        .map_err(|error| denied(format!("cannot verify that DevID is in the same TPM than AK: {error}")))?;
        Ok(Keys { attestation, endorsement })
    }

    async fn prove(
        &self,
        key: &PublicKey,
        keys: &Keys,
        conversation: &mut dyn Conversation,
    ) -> Result<(), AttestError> {
        let (mut nonce, mut secret) = ([0; NONCE], [0; NONCE]);
        self.random.fill(&mut nonce);
        self.random.fill(&mut secret);
        let made = make_credential(&keys.endorsement, &keys.attestation.name(), &secret, &*self.random)
            .map_err(|error| denied(format!("cannot generate credential activation challenge: {error}")))?;
        let challenge = Challenge {
            dev_id: nonce.to_vec(),
            activation: Activation { credential: made.credential, secret: made.seed },
        };
        let challenge = serde_json::to_vec(&challenge).map_err(|error| internal(error.to_string()))?;
        let answer = conversation.challenge(challenge).await?;
        let answer: Response = serde_json::from_slice(&answer)
            .map_err(|error| invalid(format!("unable to unmarshall challenges response: {error}")))?;
        let algorithm = match key.algorithm() {
            KeyAlgorithm::Rsa(_) => VerificationAlgorithm::RsaPkcs1Sha256,
            KeyAlgorithm::EcP256 | KeyAlgorithm::EcP384 => VerificationAlgorithm::EcdsaSha256,
        };
        if !key.verify(algorithm, &nonce, &answer.dev_id) {
            return Err(denied(
                "devID challenge verification failed: the signature is not one of the DevID key over this \
                 challenge with SHA-256",
            ));
        }
        if !same_secret(&secret, &answer.activation) {
            return Err(denied("credential activation failed: nonces are different"));
        }
        Ok(())
    }

    fn agent_id(&self, certificate: &[u8]) -> Result<SpiffeId, AttestError> {
        let path = format!("{NAME}/{}", fingerprint(certificate));
        self.trust_domain.agent_id(&path).map_err(|error| internal(error.to_string()))
    }
}

struct Keys {
    attestation: Public,
    endorsement: Public,
}

#[async_trait]
impl NodeAttestor for TpmDevId {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn attest(
        &self,
        attempt: Attempt<'_>,
        conversation: &mut dyn Conversation,
    ) -> Result<Attested, AttestError> {
        let payload: Payload = serde_json::from_slice(attempt.payload)
            .map_err(|error| invalid(format!("unable to unmarshall attestation data: {error}")))?;
        let chain: Vec<Vec<u8>> = payload.dev_id_cert.iter().flatten().map(|der| der.0.clone()).collect();
        if chain.is_empty() {
            return Err(invalid("no DevID certificate to attest"));
        }
        let given = chain.len() - 1;
        if given > MAX_INTERMEDIATES {
            return Err(invalid(format!(
                "{given} intermediate certificates given; the limit is {MAX_INTERMEDIATES}"
            )));
        }
        let leaf = inspect(&chain[0])
            .map_err(|error| invalid(format!("unable to parse DevID certificate: {error}")))?;
        let Some(key) = leaf.public_key.clone() else {
            return Err(invalid("the DevID certificate's key is of a kind or size that is not accepted"));
        };
        let path = verify_chain(&chain, &self.device_roots, attempt.now)
            .map_err(|error| denied(format!("unable to verify DevID signature: {error}")))?;
        let keys = self.keys(&payload, &key, &attempt)?;
        self.prove(&key, &keys, conversation).await?;

        let id = self.agent_id(&chain[0])?;
        // A ban is one of the certificate, whichever of its signatures the node shows.
        let issuer = path.get(1).and_then(|issuer| inspect(issuer).ok()?.public_key);
        let twin = issuer.and_then(|issuer| twin(&chain[0], &issuer));
        let twin = twin.map(|twin| self.agent_id(&twin)).transpose()?.filter(|twin| *twin != id);
        Ok(Attested { id, selectors: selectors(&leaf, &path)?, can_reattest: true, twin })
    }
}

fn selectors(leaf: &CertificateInfo, path: &[Vec<u8>]) -> Result<SelectorSet, AttestError> {
    let named = |kind: &str, name: &Option<String>| {
        name.as_ref().filter(|name| !name.is_empty()).map(|name| format!("{kind}:cn:{name}"))
    };
    let mut values = BTreeSet::new();
    values.extend(named("subject", &leaf.common_name));
    values.extend(named("issuer", &leaf.issuer_common_name));
    values.extend(path.iter().skip(1).map(|der| format!("ca:fingerprint:{}", fingerprint(der))));
    values
        .iter()
        .map(|value| Selector::new(NAME, value))
        .collect::<Result<SelectorSet, _>>()
        .map_err(|error| internal(error.to_string()))
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

const NONCE: usize = 32;
const MAX_INTERMEDIATES: usize = 4;

/// The names are those of fields in Go.
#[derive(Deserialize)]
struct Payload {
    #[serde(rename = "DevIDCert", default)]
    dev_id_cert: Option<Vec<Base64>>,
    #[serde(rename = "DevIDPub", deserialize_with = "base64", default)]
    dev_id_pub: Vec<u8>,
    #[serde(rename = "EKCert", deserialize_with = "base64", default)]
    ek_cert: Vec<u8>,
    #[serde(rename = "EKPub", deserialize_with = "base64", default)]
    ek_pub: Vec<u8>,
    #[serde(rename = "AKPub", deserialize_with = "base64", default)]
    ak_pub: Vec<u8>,
    #[serde(rename = "CertifiedDevID", deserialize_with = "base64", default)]
    certified_dev_id: Vec<u8>,
    #[serde(rename = "CertificationSignature", deserialize_with = "base64", default)]
    certification_signature: Vec<u8>,
}

#[derive(Serialize)]
struct Challenge {
    #[serde(rename = "DevID", serialize_with = "to_base64")]
    dev_id: Vec<u8>,
    #[serde(rename = "CredActivation")]
    activation: Activation,
}

#[derive(Serialize)]
struct Activation {
    #[serde(rename = "Credential", serialize_with = "to_base64")]
    credential: Vec<u8>,
    #[serde(rename = "Secret", serialize_with = "to_base64")]
    secret: Vec<u8>,
}

#[derive(Deserialize)]
struct Response {
    #[serde(rename = "DevID", deserialize_with = "base64", default)]
    dev_id: Vec<u8>,
    #[serde(rename = "CredActivation", deserialize_with = "base64", default)]
    activation: Vec<u8>,
}
