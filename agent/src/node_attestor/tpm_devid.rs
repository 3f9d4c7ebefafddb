//! Type `tpm_devid`: a device identity whose key is in this machine's TPM.
//!
//! The TPM does all of it: it loads the device key, makes an attestation key that states that the device key is there, and opens the
//! server's credential with its endorsement key. Keys stay loaded from the payload to the answer, and are flushed then, or when
//! the attempt is given up. What is signed is the server's nonce alone, as the protocol has it; so it must have 32 bytes, which is no
//! certificate, no token and no handshake.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bonafide_pki::tpm::{Hash, Kind, Public, Scheme, template};
use bonafide_pki::{Random, pem};
use data_encoding::BASE64;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{Attempt, NodeAttestError, NodeAttestor, read};
use crate::config::TpmDevIdConfig;
use crate::tpm::{self, Handle, Tpm, TpmError};

/// The attestor of type `tpm_devid`.
pub struct TpmDevId {
    config: TpmDevIdConfig,
    random: Arc<dyn Random>,
}

impl TpmDevId {
    /// With these files, and the TPM of the machine.
    #[must_use]
    pub fn new(config: TpmDevIdConfig, random: Arc<dyn Random>) -> Self {
        Self { config, random }
    }
}

#[async_trait]
impl NodeAttestor for TpmDevId {
    fn kind(&self) -> &'static str {
        "tpm_devid"
    }

    async fn begin(&self) -> Result<Box<dyn Attempt>, NodeAttestError> {
        let identity = Identity::read(&self.config)?;
        let config = self.config.clone();
        let mut password = Zeroizing::new(vec![0; 32]);
        self.random.fill(&mut password);
        let opened = tokio::task::spawn_blocking(move || Session::open(config, &identity, password)).await;
        let session = opened.map_err(|_| NodeAttestError::Challenge("the TPM's thread ended"))??;
        Ok(Box::new(session))
    }
}

/// What the node was provisioned with.
struct Identity {
    chain: Vec<Vec<u8>>,
    private: Zeroizing<Vec<u8>>,
    public: Public,
    scheme: Scheme,
}

impl Identity {
    fn read(config: &TpmDevIdConfig) -> Result<Self, NodeAttestError> {
        let unusable = |path: &Path, problem| NodeAttestError::Unusable { path: path.to_owned(), problem };
        let chain: Vec<Vec<u8>> = pem::decode_all(&read(&config.devid_cert)?)
            .map_err(|_| unusable(&config.devid_cert, "is not PEM"))?
            .into_iter()
            .filter_map(|(label, der)| (label == "CERTIFICATE").then_some(der))
            .collect();
        let Some(leaf) = chain.first() else {
            return Err(unusable(&config.devid_cert, "holds no certificate"));
        };
        let leaf = bonafide_pki::inspect(leaf)
            .map_err(|_| unusable(&config.devid_cert, "holds a broken certificate"))?;
        let blob = |source| NodeAttestError::Blob { path: config.devid_pub.clone(), source };
        let public = tpm::public(&read(&config.devid_pub)?).map_err(blob)?;
        if leaf.public_key.is_none() || public.key().ok() != leaf.public_key {
            return Err(unusable(&config.devid_pub, "is not the key of the certificate"));
        }
        let scheme = match (public.scheme(), public.kind()) {
            (None, Kind::Rsa) => Scheme::RsaSsa(Hash::Sha256),
            (None, Kind::Ecc) => Scheme::Ecdsa(Hash::Sha256),
            (Some(scheme @ (Scheme::RsaSsa(Hash::Sha256) | Scheme::Ecdsa(Hash::Sha256))), _) => scheme,
            _ => {
                let problem = "signs in another way than RSASSA or ECDSA with SHA-256, which servers verify";
                return Err(unusable(&config.devid_pub, problem));
            }
        };
        let private = read(&config.devid_priv)?;
        let private = Zeroizing::new(tpm::without_length(&private).to_vec());
        Ok(Self { chain, private, public, scheme })
    }
}

/// Keys in the TPM, from the payload to the answer.
struct Session {
    config: TpmDevIdConfig,
    payload: Vec<u8>,
    scheme: Scheme,
    /// The attestation key's.
    password: Zeroizing<Vec<u8>>,
    device: Handle,
    attestation: Handle,
    endorsement: Handle,
    loaded: Loaded,
}

/// A TPM, and what to flush when it is no longer needed.
struct Loaded {
    tpm: Tpm,
    handles: Vec<Handle>,
}

impl Loaded {
    fn keep(&mut self, handle: Handle) -> Handle {
        self.handles.push(handle);
        handle
    }

    fn flush(&mut self, handle: Handle) -> Result<(), TpmError> {
        self.handles.retain(|kept| *kept != handle);
        self.tpm.flush(handle)
    }

    fn flush_all(&mut self) {
        for handle in std::mem::take(&mut self.handles) {
            if let Err(error) = self.tpm.flush(handle) {
                tracing::warn!(%error, "a key stays loaded in the TPM");
            }
        }
    }

    fn storage_root(&mut self, config: &TpmDevIdConfig, kind: Kind) -> Result<Handle, TpmError> {
        let password = config.owner_hierarchy_password.expose().as_bytes();
        let (handle, _) = self.tpm.create_primary(Handle::OWNER, password, &template::storage_root(kind))?;
        Ok(self.keep(handle))
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        self.flush_all();
    }
}

impl Session {
    fn open(
        config: TpmDevIdConfig,
        identity: &Identity,
        password: Zeroizing<Vec<u8>>,
    ) -> Result<Self, NodeAttestError> {
        let tpm = match &config.tpm_device {
            Some(path) => Tpm::open(path)?,
            None => Tpm::open(&tpm::find(Path::new("/dev"))?)?,
        };
        let mut loaded = Loaded { tpm, handles: Vec::new() };

        // Without a resource manager a TPM holds three keys: parents go as soon as they have done their part.
        let parent = loaded.storage_root(&config, identity.public.kind())?;
        let device = loaded.tpm.load(parent, &identity.private, identity.public.wire())?;
        loaded.keep(device);
        loaded.flush(parent)?;

        let parent = loaded.storage_root(&config, Kind::Rsa)?;
        let (private, ak_pub) = loaded.tpm.create(parent, &password, &template::attestation_key())?;
        let attestation = loaded.tpm.load(parent, &private, &ak_pub)?;
        loaded.keep(attestation);
        loaded.flush(parent)?;

        let authorization = config.endorsement_hierarchy_password.expose().as_bytes();
        let template = template::endorsement_key();
        let (endorsement, ek_pub) =
            loaded.tpm.create_primary(Handle::ENDORSEMENT, authorization, &template)?;
        loaded.keep(endorsement);
        let stored = loaded.tpm.nv_read(EK_CERTIFICATE).map_err(|source| match source {
            TpmError::Refused { .. } => NodeAttestError::NoEndorsementCertificate { source },
            source => source.into(),
        })?;
        let devid_password = config.devid_password.expose().as_bytes();
        let (statement, signature) =
            loaded.tpm.certify((device, devid_password), (attestation, &password))?;

        let payload = Payload {
            dev_id_cert: identity.chain.iter().map(|der| BASE64.encode(der)).collect(),
            dev_id_pub: BASE64.encode(identity.public.wire()),
            ek_cert: BASE64.encode(certificate(&stored)),
            ek_pub: BASE64.encode(&ek_pub),
            ak_pub: BASE64.encode(&ak_pub),
            certified_dev_id: BASE64.encode(&statement),
            certification_signature: BASE64.encode(&signature),
        };
        let payload = serde_json::to_vec(&payload).expect("texts are JSON");
        let scheme = identity.scheme;
        Ok(Self { config, payload, scheme, password, device, attestation, endorsement, loaded })
    }
}

impl Attempt for Session {
    fn payload(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.payload.clone())
    }

    fn respond(&mut self, challenge: &[u8]) -> Result<Vec<u8>, NodeAttestError> {
        let Questions { nonce, credential, seed } = Questions::read(challenge)?;
        if self.loaded.handles.is_empty() {
            return Err(NodeAttestError::Challenge("it was answered before"));
        }
        let devid_password = self.config.devid_password.expose().as_bytes();
        let signature = self.loaded.tpm.sign((self.device, devid_password), self.scheme, &nonce)?;
        let secret = self.loaded.tpm.activate_credential(
            (self.attestation, &self.password),
            self.endorsement,
            self.config.endorsement_hierarchy_password.expose().as_bytes(),
            &credential,
            &seed,
        )?;
        self.loaded.flush_all();
        let response = Response { dev_id: BASE64.encode(&signature), activation: BASE64.encode(&secret) };
        Ok(serde_json::to_vec(&response).expect("texts are JSON"))
    }
}

/// A certificate at the front of what is stored: some TPMs have room left after it.
fn certificate(stored: &[u8]) -> &[u8] {
    let size = match stored {
        [0x30, 0x82, high, low, ..] => 4 + usize::from(u16::from_be_bytes([*high, *low])),
        [0x30, 0x81, size, ..] => 3 + usize::from(*size),
        _ => stored.len(),
    };
    stored.get(..size).unwrap_or(stored)
}

/// What the server asks, checked for what the TPM need not see.
#[derive(Debug, PartialEq, Eq)]
pub struct Questions {
    /// What the device key shall sign.
    pub nonce: Vec<u8>,
    /// The secret for this TPM.
    pub credential: Vec<u8>,
    /// The seed of its encryption.
    pub seed: Vec<u8>,
}

impl Questions {
    /// Reads a challenge.
    ///
    /// # Errors
    /// [`NodeAttestError::Challenge`].
    pub fn read(challenge: &[u8]) -> Result<Self, NodeAttestError> {
        let challenge: Challenge = serde_json::from_slice(challenge)
            .map_err(|_| NodeAttestError::Challenge("it is not the JSON of a tpm_devid challenge"))?;
        let decode = |text: &str| {
            let decoded = BASE64.decode(text.as_bytes());
            decoded.map_err(|_| NodeAttestError::Challenge("it is not base64"))
        };
        let nonce = decode(&challenge.dev_id)?;
        if nonce.len() != NONCE {
            // The server alone chooses what is signed: nothing that could mean something elsewhere.
            return Err(NodeAttestError::Challenge("its nonce has not 32 bytes"));
        }
        let Some(activation) = challenge.activation else {
            return Err(NodeAttestError::Challenge("it asks for no credential activation"));
        };
        let (credential, seed) = (decode(&activation.credential)?, decode(&activation.secret)?);
        if credential.len() > MAX_PART || seed.len() > MAX_PART {
            return Err(NodeAttestError::Challenge("its credential is larger than a TPM takes"));
        }
        Ok(Self { nonce, credential, seed })
    }
}

/// Where manufacturers leave the certificate of the endorsement key (TCG EK Credential Profile, 2.2.1.4).
const EK_CERTIFICATE: Handle = Handle(0x01c0_0002);
const NONCE: usize = 32;
/// The seed is as long as the endorsement key; the credential is shorter.
const MAX_PART: usize = 512;

/// The names are those of fields in Go.
#[derive(Serialize)]
struct Payload {
    #[serde(rename = "DevIDCert")]
    dev_id_cert: Vec<String>,
    #[serde(rename = "DevIDPub")]
    dev_id_pub: String,
    #[serde(rename = "EKCert")]
    ek_cert: String,
    #[serde(rename = "EKPub")]
    ek_pub: String,
    #[serde(rename = "AKPub")]
    ak_pub: String,
    #[serde(rename = "CertifiedDevID")]
    certified_dev_id: String,
    #[serde(rename = "CertificationSignature")]
    certification_signature: String,
}

#[derive(Deserialize)]
struct Challenge {
    #[serde(rename = "DevID")]
    dev_id: String,
    #[serde(rename = "CredActivation")]
    activation: Option<Activation>,
}

#[derive(Deserialize)]
struct Activation {
    #[serde(rename = "Credential")]
    credential: String,
    #[serde(rename = "Secret")]
    secret: String,
}

#[derive(Serialize)]
struct Response {
    #[serde(rename = "DevID")]
    dev_id: String,
    #[serde(rename = "CredActivation")]
    activation: String,
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use bonafide_pki::{KeyType, PrivateKey, Signer as _, SystemRandom};

    use super::*;
    use crate::config::Secret;

    #[test]
    fn certificates_are_cut_out_of_what_is_stored() {
        assert_eq!(certificate(&[0x30, 0x81, 1, 7, 0xff, 0xff]), [0x30, 0x81, 1, 7]);
        assert_eq!(certificate(&[0x30, 0x82, 0, 2, 7, 8, 0]), [0x30, 0x82, 0, 2, 7, 8]);
        for other in [&[][..], &[0x30], &[0x30, 0x82, 1, 0, 7], &[1, 2, 3]] {
            assert_eq!(certificate(other), other);
        }
    }

    #[test]
    fn bad_challenges_do_not_reach_the_tpm() {
        let text = |nonce: usize, credential: usize| {
            let encode = |length: usize| BASE64.encode(&vec![7; length]);
            format!(
                r#"{{"DevID":"{}","CredActivation":{{"Credential":"{}","Secret":"{}"}}}}"#,
                encode(nonce),
                encode(credential),
                encode(256)
            )
        };
        let read = Questions::read(text(32, 68).as_bytes()).unwrap();
        assert_eq!((read.nonce.len(), read.credential.len(), read.seed.len()), (32, 68, 256));
        let bare = |nonce: usize| format!(r#"{{"DevID":"{}"}}"#, BASE64.encode(&vec![7; nonce]));
        for refused in ["", "[]", "{}", &text(31, 68), &text(33, 68), &text(32, 513), &bare(32)] {
            assert!(
                matches!(Questions::read(refused.as_bytes()), Err(NodeAttestError::Challenge(_))),
                "{refused}"
            );
        }
    }

    #[tokio::test]
    async fn files_that_do_not_fit_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, content: &[u8]| -> PathBuf {
            let path = folder.path().join(name);
            std::fs::write(&path, content).unwrap();
            path
        };
        let at = |seconds| bonafide_identity::Timestamp::from_unix_seconds(seconds);
        let authority = bonafide_testkit::TestAuthority::new(
            &bonafide_testkit::trust_domain(),
            at(1_700_000_000),
            at(2_000_000_000),
        );
        let leaf = authority.issue(&bonafide_testkit::id("/node"));
        let key = PrivateKey::from_pkcs8_der(&leaf.pkcs8).unwrap();
        let other = PrivateKey::generate(KeyType::EcP256).unwrap();
        let public = |key: &PrivateKey, scheme: &[u8]| {
            let spki = key.public_key().spki_der();
            let (x, y) = spki[spki.len() - 64..].split_at(32);
            let template = template::signing_key(Kind::Ecc);
            // Type, name, attributes, no policy, no cipher; then the scheme.
            [&template[..12], scheme, &[0, 3, 0, 0x10, 0, 32], x, &[0, 32], y].concat()
        };
        let (ecdsa, sha384) = ([0, 0x18, 0, 0x0b], [0, 0x18, 0, 0x0c]);
        let certificate = file("c.pem", pem::encode("CERTIFICATE", &leaf.chain[0]).as_bytes());
        let begin = async |devid_cert: &Path, devid_pub: PathBuf| {
            let config = TpmDevIdConfig {
                devid_cert: devid_cert.to_owned(),
                devid_priv: file("priv", b"private"),
                devid_pub,
                devid_password: Secret::default(),
                tpm_device: Some(folder.path().join("none")),
                owner_hierarchy_password: Secret::default(),
                endorsement_hierarchy_password: Secret::default(),
            };
            let attestor = TpmDevId::new(config, Arc::new(SystemRandom));
            attestor.begin().await.map(drop).unwrap_err().to_string()
        };
        let good = file("pub", &public(&key, &ecdsa));
        assert!(begin(&certificate, good.clone()).await.contains("cannot open the TPM at"));
        let sized = file("sized", &tpm::sized(&public(&key, &[0, 0x10])));
        assert!(begin(&certificate, sized).await.contains("cannot open the TPM at"));
        let swapped = begin(&certificate, file("other", &public(&other, &ecdsa))).await;
        assert!(swapped.ends_with("other is not the key of the certificate"), "{swapped}");
        let digest = begin(&certificate, file("sha384", &public(&key, &sha384))).await;
        assert!(digest.contains("sha384 signs in another way"), "{digest}");
        assert!(begin(&good, good.clone()).await.ends_with("pub is not PEM"));
        assert!(begin(&certificate, certificate.clone()).await.contains("c.pem is no public area"));
        assert!(begin(&folder.path().join("none"), good).await.contains("cannot read"));
    }
}
