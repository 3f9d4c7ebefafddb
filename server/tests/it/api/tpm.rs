//! `tpm_devid` over the wire, with a node that computes what a TPM would, and lies about it where it can.

use std::sync::{Arc, LazyLock};

use aes::cipher::{BlockCipherEncrypt as _, KeyInit as _};
use bonafide_pki::tpm::{Kind, Public, template};
use bonafide_pki::{KeyType, PrivateKey, SignatureAlgorithm, Signer as _, pem};
use bonafide_proto::spire::server::agent::v1::BanAgentRequest;
use bonafide_testkit::TestAuthority;
use data_encoding::BASE64;
use rsa::pkcs8::DecodePrivateKey as _;
use rsa::traits::Decryptor as _;
use serde_json::{Value, json};
use tempfile::TempDir;
use tonic::{Code, Status};

use super::attestation::node_authority;
use super::harness::*;

/// Keys of RSA take their time, so all tests use the same.
static KEYS: LazyLock<[PrivateKey; 4]> =
    LazyLock::new(|| [(); 4].map(|()| PrivateKey::generate(KeyType::Rsa2048).unwrap()));

/// A node with a TPM that does as it is told.
pub(super) struct Machine {
    devices: Arc<TestAuthority>,
    manufacturer: Arc<TestAuthority>,
    device: PrivateKey,
    /// The members of the payload.
    chain: Vec<Vec<u8>>,
    device_public: Vec<u8>,
    endorsement_certificate: Vec<u8>,
    endorsement_public: Vec<u8>,
    attestation_public: Vec<u8>,
    statement: Vec<u8>,
    signature: Vec<u8>,
}

impl Machine {
    pub(super) fn new() -> Self {
        let authorities = [Arc::new(node_authority()), Arc::new(node_authority())];
        Self::with(authorities, PrivateKey::generate(KeyType::EcP256).unwrap())
    }

    /// Another one of the same authorities.
    fn another(&self) -> Self {
        let authorities = [Arc::clone(&self.devices), Arc::clone(&self.manufacturer)];
        Self::with(authorities, PrivateKey::generate(KeyType::EcP256).unwrap())
    }

    fn with([devices, manufacturer]: [Arc<TestAuthority>; 2], device: PrivateKey) -> Self {
        let [endorsement, ..] = &*KEYS;
        let kind = if device.key_type() == KeyType::EcP256 { Kind::Ecc } else { Kind::Rsa };
        let mut machine = Self {
            chain: devices.certify(device.public_key().spki_der(), |_| {}),
            device_public: public(&template::signing_key(kind), &device),
            endorsement_certificate: manufacturer
                .certify(endorsement.public_key().spki_der(), |_| {})
                .remove(0),
            endorsement_public: public(&template::endorsement_key(), endorsement),
            attestation_public: public(&template::attestation_key(), &KEYS[1]),
            statement: Vec::new(),
            signature: Vec::new(),
            devices,
            manufacturer,
            device,
        };
        machine.state();
        machine
    }

    /// States anew that the device key is here.
    fn state(&mut self) {
        self.statement = statement(&name(&self.device_public));
        self.sign();
    }

    fn sign(&mut self) {
        let signature = KEYS[1].sign_with(SignatureAlgorithm::RsaPkcs1Sha256, &self.statement).unwrap();
        self.signature = [&[0, 0x14, 0, 0x0b][..], &sized(&signature)].concat();
    }

    /// The section of a server's configuration that trusts this machine.
    pub(super) fn section(&self, folder: &TempDir) -> String {
        let file = |name: &str, authority: &TestAuthority| {
            let path = folder.path().join(name);
            std::fs::write(&path, pem::encode("CERTIFICATE", authority.root())).unwrap();
            path.display().to_string()
        };
        format!(
            "[node_attestor.tpm_devid]\ndevid_ca_path = \"{}\"\nendorsement_ca_path = \"{}\"\n",
            file("devices.pem", &self.devices),
            file("manufacturers.pem", &self.manufacturer)
        )
    }

    pub(super) fn payload(&self) -> Vec<u8> {
        let encode = |bytes: &[u8]| BASE64.encode(bytes);
        json!({
            "DevIDCert": self.chain.iter().map(|der| encode(der)).collect::<Vec<_>>(),
            "DevIDPub": encode(&self.device_public),
            "EKCert": encode(&self.endorsement_certificate),
            "EKPub": encode(&self.endorsement_public),
            "AKPub": encode(&self.attestation_public),
            "CertifiedDevID": encode(&self.statement),
            "CertificationSignature": encode(&self.signature),
        })
        .to_string()
        .into_bytes()
    }

    /// The right answer; nothing for a credential that is not for this TPM and its attestation key.
    pub(super) fn answer(&self, challenge: &[u8]) -> Vec<u8> {
        let challenge: Value = serde_json::from_slice(challenge).unwrap();
        let bytes = |value: &Value| BASE64.decode(value.as_str().unwrap().as_bytes()).unwrap();
        let nonce = bytes(&challenge["DevID"]);
        assert_eq!(nonce.len(), 32);
        let activation = &challenge["CredActivation"];
        let secret = activate(
            &name(&self.attestation_public),
            &bytes(&activation["Credential"]),
            &bytes(&activation["Secret"]),
        );
        let signature = self.device.sign(&nonce).unwrap();
        json!({ "DevID": BASE64.encode(&signature), "CredActivation": BASE64.encode(&secret.unwrap_or_default()) })
            .to_string()
            .into_bytes()
    }

    async fn attest(&self, server: &TestServer) -> Result<Identity, Status> {
        attest(server.anonymous().await, "tpm_devid", &self.payload(), |challenge| self.answer(&challenge))
            .await
    }
}

/// `TPM2_ActivateCredential` (part 1, 24), by other means than the server's.
fn activate(name: &[u8], credential: &[u8], seed: &[u8]) -> Option<Vec<u8>> {
    let hmac = |key: &[u8], message: &[u8]| {
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, key);
        ring::hmac::sign(&key, message).as_ref().to_vec()
    };
    let key = rsa::PrivateKey::from_pkcs8_der(&KEYS[0].expose_pkcs8()).unwrap();
    let key = rsa::oaep::DecryptingKey::<rsa::sha2::Sha256>::new_with_label(key, &b"IDENTITY\0"[..]);
    let seed = key.decrypt(seed).ok()?;
    let kdf = |label: &str, context: &[u8], bits: u32| {
        let message = [&[0, 0, 0, 1][..], label.as_bytes(), &[0], context, &bits.to_be_bytes()].concat();
        hmac(&seed, &message)[..bits as usize / 8].to_vec()
    };
    let (integrity, encrypted) = credential[2..].split_at(32);
    if hmac(&kdf("INTEGRITY", &[], 256), &[encrypted, name].concat()) != integrity {
        return None;
    }
    let cipher = aes::Aes128::new_from_slice(&kdf("STORAGE", name, 128)).unwrap();
    let mut last = [0; 16];
    let mut plain = Vec::new();
    for block in encrypted.chunks(16) {
        let mut pad = aes::Block::from(last);
        cipher.encrypt_block(&mut pad);
        plain.extend(block.iter().zip(pad.iter()).map(|(byte, pad)| byte ^ pad));
        last[..block.len()].copy_from_slice(block);
    }
    Some(plain[2..].to_vec())
}

fn sized(bytes: &[u8]) -> Vec<u8> {
    [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
}

/// The public area that a TPM would show for this key.
fn public(template: &[u8], key: &PrivateKey) -> Vec<u8> {
    let spki = key.public_key().spki_der();
    if template[1] == 0x23 {
        let (x, y) = spki[spki.len() - 64..].split_at(32);
        return [&template[..template.len() - 4], &sized(x), &sized(y)].concat();
    }
    // The modulus ends before the exponent 65537, which takes five bytes.
    let modulus = &spki[spki.len() - 5 - 256..spki.len() - 5];
    let unique = if template.ends_with(&[0; 256]) { 258 } else { 2 };
    [&template[..template.len() - unique], &sized(modulus)].concat()
}

fn name(public: &[u8]) -> Vec<u8> {
    Public::parse(public).map(|public| public.name()).unwrap_or_default()
}

fn statement(name: &[u8]) -> Vec<u8> {
    let head = [0xff, 0x54, 0x43, 0x47, 0x80, 0x17];
    [&head[..], &sized(&[0, 0x0b, 7]), &sized(&[]), &[0; 25], &sized(name), &sized(&[0, 0x0b, 8])].concat()
}

fn clear(public: &mut [u8], bit: u32) {
    let bits = u32::from_be_bytes(public[4..8].try_into().unwrap()) & !(1 << bit);
    public[4..8].copy_from_slice(&bits.to_be_bytes());
}

/// Each of these would be admitted if the server looked at less. The third is what counts most: who certifies a key of the file system and
/// shows another one that is in a TPM.
#[tokio::test]
async fn what_does_not_prove_residency_is_refused() {
    type Lie = fn(&mut Machine);
    let lies: &[(&str, Code, Lie)] = &[
        ("no DevID certificate to attest", Code::InvalidArgument, |node| node.chain.clear()),
        ("5 intermediate certificates given; the limit is 4", Code::InvalidArgument, |node| {
            node.chain.extend(vec![vec![0x30, 0]; 5]);
        }),
        (
            "the DevID key public blob is not one of the key in the DevID certificate",
            Code::PermissionDenied,
            |node| {
                node.device_public = public(&template::signing_key(Kind::Rsa), &KEYS[2]);
                node.state();
            },
        ),
        ("unable to verify DevID signature: ", Code::PermissionDenied, |node| {
            node.chain = node_authority().certify(node.device.public_key().spki_der(), |_| {});
        }),
        ("unable to parse DevID certificate: ", Code::InvalidArgument, |node| node.chain[0].truncate(20)),
        ("missing attestation key public blob", Code::InvalidArgument, |node| {
            node.attestation_public.clear();
        }),
        ("missing DevID key public blob", Code::InvalidArgument, |node| node.device_public.clear()),
        ("missing endorsement certificate", Code::InvalidArgument, |node| {
            node.endorsement_certificate.clear();
        }),
        ("missing endorsement key public blob", Code::InvalidArgument, |node| {
            node.endorsement_public.clear();
        }),
        (
            "the attestation key is not what it has to be: the key is not restricted: it would sign a forged statement",
            Code::PermissionDenied,
            |node| clear(&mut node.attestation_public, 16),
        ),
        (
            "the attestation key is not what it has to be: the key is not fixed to its TPM",
            Code::PermissionDenied,
            |node| clear(&mut node.attestation_public, 1),
        ),
        (
            "the attestation key is not what it has to be: the key was not made by the TPM",
            Code::PermissionDenied,
            |node| clear(&mut node.attestation_public, 5),
        ),
        (
            "the DevID key is not what it has to be: the key is not fixed to its TPM: it could be copied",
            Code::PermissionDenied,
            |node| {
                clear(&mut node.device_public, 1);
                node.state();
            },
        ),
        (
            "the endorsement key is not what it has to be: the key is no restricted decryption key",
            Code::PermissionDenied,
            |node| clear(&mut node.endorsement_public, 17),
        ),
        (
            "public key in EK certificate differs from public key created via EK template",
            Code::PermissionDenied,
            |node| node.endorsement_public = public(&template::endorsement_key(), &KEYS[2]),
        ),
        ("cannot verify EK signature: ", Code::PermissionDenied, |node| {
            let key = KEYS[0].public_key().spki_der();
            node.endorsement_certificate = node_authority().certify(key, |_| {}).remove(0);
        }),
        (
            "the endorsement certificate is for another purpose than endorsement keys",
            Code::PermissionDenied,
            |node| {
                let key = KEYS[0].public_key().spki_der();
                let web = |params: &mut rcgen::CertificateParams| {
                    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
                };
                node.endorsement_certificate = node.manufacturer.certify(key, web).remove(0);
            },
        ),
        (
            "cannot verify that DevID is in the same TPM than AK: the certified key is another one",
            Code::PermissionDenied,
            |node| {
                node.statement = statement(&name(&node.endorsement_public));
                node.sign();
            },
        ),
        (
            "cannot verify that DevID is in the same TPM than AK: the signature is not one of the attestation key",
            Code::PermissionDenied,
            |node| *node.statement.last_mut().unwrap() ^= 1,
        ),
        (
            "cannot verify that DevID is in the same TPM than AK: it is malformed: the statement does not begin as those of a TPM do",
            Code::PermissionDenied,
            |node| {
                node.statement[0] = 0;
                node.sign();
            },
        ),
        (
            "cannot verify that DevID is in the same TPM than AK: it is malformed: the statement does not certify a key",
            Code::PermissionDenied,
            |node| {
                node.statement[5] = 0x18;
                node.sign();
            },
        ),
        (
            "cannot verify that DevID is in the same TPM than AK: it is malformed: it is cut short",
            Code::PermissionDenied,
            |node| node.signature.clear(),
        ),
    ];
    let honest = Machine::new();
    let folder = TempDir::new().unwrap();
    let server = TestServer::start_with(&honest.section(&folder)).await;
    for (text, code, lie) in lies {
        let mut node = honest.another();
        lie(&mut node);
        let refused = node.attest(&server).await.unwrap_err();
        assert_eq!(refused.code(), *code, "{text}: {refused:?}");
        assert!(refused.message().starts_with(&format!("nodeattestor(tpm_devid): {text}")), "{refused:?}");
    }
    assert_eq!(server.server.context().state.nodes().len(), 0);
    honest.attest(&server).await.unwrap();
}

#[tokio::test]
async fn answers_to_other_challenges_are_refused() {
    let node = Machine::new();
    let folder = TempDir::new().unwrap();
    let server = TestServer::start_with(&node.section(&folder)).await;
    let earlier = std::sync::Mutex::new(Value::Null);
    let payload = node.payload();
    let first = attest(server.anonymous().await, "tpm_devid", &payload, |challenge| {
        let answer = node.answer(&challenge);
        *earlier.lock().unwrap() = serde_json::from_slice(&answer).unwrap();
        answer
    });
    let first = first.await.unwrap();
    let earlier = earlier.into_inner().unwrap();
    let stranger = node.another();
    let of_another_key = |node: &Machine, challenge: &[u8]| -> Value {
        serde_json::from_slice(&node.answer(challenge)).unwrap()
    };
    for (text, change) in [
        (
            "devID challenge verification failed: ",
            &(|answer: &mut Value, _: &[u8]| *answer = earlier.clone())
                as &(dyn Fn(&mut Value, &[u8]) + Sync),
        ),
        ("devID challenge verification failed: ", &|answer, _| answer["DevID"] = earlier["DevID"].clone()),
        ("devID challenge verification failed: ", &|answer, challenge| {
            answer["DevID"] = of_another_key(&stranger, challenge)["DevID"].clone();
        }),
        ("devID challenge verification failed: ", &|answer, _| answer["DevID"] = Value::Null),
        ("credential activation failed: ", &|answer, _| {
            answer["CredActivation"] = earlier["CredActivation"].clone();
        }),
        ("credential activation failed: ", &|answer, _| answer["CredActivation"] = Value::Null),
        ("credential activation failed: ", &|answer, _| answer["CredActivation"] = "".into()),
    ] {
        let refused = attest(server.anonymous().await, "tpm_devid", &payload, |challenge| {
            let mut answer = serde_json::from_slice(&node.answer(&challenge)).unwrap();
            change(&mut answer, &challenge);
            answer.to_string().into_bytes()
        });
        let refused = refused.await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
        assert!(refused.message().starts_with(&format!("nodeattestor(tpm_devid): {text}")), "{refused:?}");
    }
    // An attestation key that is restricted on paper only has another name in the TPM, which then opens nothing.
    let mut on_paper = node.another();
    let sent = on_paper.payload();
    clear(&mut on_paper.attestation_public, 16);
    let refused =
        attest(server.anonymous().await, "tpm_devid", &sent, |challenge| on_paper.answer(&challenge));
    let refused = refused.await.unwrap_err();
    assert_eq!(
        refused.message(),
        "nodeattestor(tpm_devid): credential activation failed: nonces are different"
    );

    let malformed = attest(server.anonymous().await, "tpm_devid", &payload, |_| b"{".to_vec()).await;
    assert_eq!(malformed.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(node.attest(&server).await.unwrap().id, first.id);
}

#[tokio::test]
async fn rsa_device_keys_attest_and_a_ban_holds_for_both_forms_of_a_certificate() {
    let node = Machine::with(
        [Arc::new(node_authority()), Arc::new(node_authority())],
        PrivateKey::from_pkcs8_der(&KEYS[3].expose_pkcs8()).unwrap(),
    );
    let folder = TempDir::new().unwrap();
    let server = TestServer::start_with(&node.section(&folder)).await;
    let agent = node.attest(&server).await.unwrap();
    let record = server.server.context().state.node(&agent.id).unwrap();
    let selectors: Vec<&str> = record.selectors.iter().map(bonafide_identity::Selector::value).collect();
    let root = data_encoding::HEXLOWER.encode(&bonafide_pki::sha1_fingerprint(node.devices.root()));
    assert_eq!(selectors, [&format!("ca:fingerprint:{root}"), "issuer:cn:root", "subject:cn:device"]);

    let ban = BanAgentRequest { id: wire_id(agent.path()) };
    agents(&server.local().await).ban_agent(ban).await.unwrap();
    let issuer = bonafide_pki::inspect(node.devices.root()).unwrap().public_key.unwrap();
    let mut twin = Machine::with(
        [Arc::clone(&node.devices), Arc::clone(&node.manufacturer)],
        PrivateKey::from_pkcs8_der(&KEYS[3].expose_pkcs8()).unwrap(),
    );
    twin.chain = vec![bonafide_pki::twin(&node.chain[0], &issuer).unwrap()];
    for banned in [&node, &twin] {
        assert_eq!(banned.attest(&server).await.unwrap_err().code(), Code::PermissionDenied);
    }
}
