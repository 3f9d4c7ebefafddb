//! Device identities in TPMs: public areas, statements, signatures, answers of a TPM, and the payloads, challenges and answers of
//! `tpm_devid`.
//!
//! The bytes are read as each of them; those up to the first zero byte also as what a node presents, those after it as what it
//! answers; as the signed part of a certificate, and as a statement that the attestation key signed, each presented with
//! all else that a good node has. Laws: what is read is kept byte for byte; no key has two roles; nobody is admitted without
//! a signature of the certified key, the secret that was encrypted to the TPM, and a statement about that very key.

use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use bonafide_agent::node_attestor::tpm_devid::Questions;
use bonafide_agent::tpm::{Command, answer as tpm_answer};
use bonafide_pki::tpm::{CertifyStatement, Kind, Public, Signature, template};
use bonafide_pki::{PrivateKey, SignatureAlgorithm, Signer as _, inspect, pem};
use bonafide_server::config::TpmDevIdSettings;
use bonafide_server::node_attestor::tpm_devid::TpmDevId;
use bonafide_server::node_attestor::{Attempt, AttestError, Attested, NodeAttestor};
use data_encoding::BASE64;
use serde_json::{Value, json};
use tokio::runtime::{Builder, Runtime};

use crate::exchange::{Constant, Node};
use crate::known_key::{self, tlv};
use crate::{NOW, split_at_byte, trust_domain};

struct Fixture {
    runtime: Runtime,
    attestor: TpmDevId,
    /// The attestation key; the endorsement key has the same numbers, for nothing is decrypted here.
    key: PrivateKey,
}

static FIXTURE: LazyLock<Fixture> = LazyLock::new(|| {
    let files = crate::folder();
    let path: PathBuf = files.path().join("roots.pem");
    std::fs::write(&path, pem::encode("CERTIFICATE", &known_key::authority())).expect("there is room");
    let settings = TpmDevIdSettings { devid_ca_path: path.clone(), endorsement_ca_path: path };
    Fixture {
        runtime: Builder::new_current_thread().build().expect("a runtime without drivers"),
        attestor: TpmDevId::new(trust_domain(), &settings, Arc::new(Constant(7)))
            .expect("the roots are there"),
        key: PrivateKey::from_pkcs8_der(include_bytes!("../keys/rsa-2048.pkcs8.der")).expect("an RSA key"),
    }
});

/// Whether anything was read, or a node admitted.
pub fn check(data: &[u8]) -> bool {
    let mut read = false;
    if let Ok(public) = Public::parse(data) {
        assert_eq!(public.wire(), data);
        assert_eq!(Public::parse(public.wire()).expect("it was read before"), public);
        assert_eq!(public.name()[..2], public.name_hash().id().to_be_bytes());
        let roles = [public.is_attestation_key().is_ok(), public.is_endorsement_key().is_ok()];
        assert_ne!(roles, [true, true], "a key that signs statements also decrypts");
        assert!(!(roles[1] && public.is_device_key().is_ok()), "a device key also decrypts");
        read = true;
    }
    read |= CertifyStatement::parse(data).is_ok() | Signature::parse(data).is_ok();
    for (gives_handle, sessions) in [(true, true), (false, true), (true, false), (false, false)] {
        let command = Command::new(1, "TPM2_Test", gives_handle);
        read |= tpm_answer(command, data, sessions).is_ok_and(|answer| answer.rest().len() < data.len());
    }
    if let Ok(questions) = Questions::read(data) {
        assert_eq!(questions.nonce.len(), 32, "signed more or less than a nonce");
        read = true;
    }
    let (payload, answer) = split_at_byte(data, 0);
    if let Ok(attested) = attest(payload, &mut |_| answer.to_vec()) {
        sound(&attested);
        // The secret and the nonce are known here, and nowhere else.
        if let Ok(answer) = serde_json::from_slice::<Value>(answer) {
            let secret = answer.get("CredActivation").or_else(|| answer.get(1));
            assert_eq!(secret, Some(&Value::from(BASE64.encode(&[7; 32]))));
        }
        read = true;
    }
    read | certified(data) | stated(data)
}

/// A certificate signed over these bytes, of a node that is otherwise good.
fn certified(data: &[u8]) -> bool {
    let payload = payload(&known_key::signed(data), &device(), &statement(&device()));
    let Ok(attested) = attest(&payload, &mut |_| answer(7, b"")) else { return false };
    sound(&attested);
    assert!(attest(&payload, &mut |_| answer(8, b"")).is_err(), "admitted without the secret");
    assert!(
        attest(&payload, &mut |_| answer(7, b"more")).is_err(),
        "admitted with a signature of another nonce"
    );
    true
}

/// A statement of the attestation key, of a node that is otherwise good.
fn stated(data: &[u8]) -> bool {
    let payload = payload(&known_key::leaf(), &device(), data);
    if attest(&payload, &mut |_| answer(7, b"")).is_err() {
        return false;
    }
    let name = Public::parse(&device()).expect("our own").name();
    assert_eq!(CertifyStatement::parse(data).expect("it was admitted").name, name);
    true
}

fn sound(attested: &Attested) {
    assert_eq!(attested.id.require_agent(&trust_domain()), Ok(()));
    assert!(attested.id.path().starts_with("/spire/agent/tpm_devid/"));
    assert!(attested.selectors.iter().all(|selector| selector.kind() == "tpm_devid"));
}

/// What a node presents: a certificate, the public area of its key, and a statement, signed by the attestation key.
pub fn payload(certificate: &[u8], device: &[u8], statement: &[u8]) -> Vec<u8> {
    payload_with(certificate, device, &attestation(), statement)
}

/// The same with another public area of the attestation key.
pub fn payload_with(certificate: &[u8], device: &[u8], attestation: &[u8], statement: &[u8]) -> Vec<u8> {
    let signature = signature(statement);
    let encode = |bytes: &[u8]| BASE64.encode(bytes);
    json!({
        "DevIDCert": [encode(certificate)],
        "DevIDPub": encode(device),
        "EKCert": encode(&endorsement_certificate()),
        "EKPub": encode(&rsa_area(&template::endorsement_key())),
        "AKPub": encode(attestation),
        "CertifiedDevID": encode(statement),
        "CertificationSignature": encode(&signature),
    })
    .to_string()
    .into_bytes()
}

/// The attestation key's signature, as a TPM writes it.
pub fn signature(statement: &[u8]) -> Vec<u8> {
    let made = FIXTURE.key.sign_with(SignatureAlgorithm::RsaPkcs1Sha256, statement);
    [&[0, 0x14, 0, 0x0b][..], &sized(&made.expect("an RSA key signs"))].concat()
}

/// An answer with this byte for a secret, and something more signed than was asked for.
pub fn answer(secret: u8, surplus: &[u8]) -> Vec<u8> {
    let signature = known_key::signature_der(&[&[7; 32][..], surplus].concat());
    json!({ "DevID": BASE64.encode(&signature), "CredActivation": BASE64.encode(&[secret; 32]) })
        .to_string()
        .into_bytes()
}

/// A challenge as servers send it.
pub fn challenge() -> Vec<u8> {
    let encode = |length: usize| BASE64.encode(&vec![7; length]);
    json!({ "DevID": encode(32), "CredActivation": { "Credential": encode(68), "Secret": encode(256) } })
        .to_string()
        .into_bytes()
}

/// The public area of the device key, which is the known one.
pub fn device() -> Vec<u8> {
    let spki = known_key::spki();
    let (x, y) = spki[spki.len() - 64..].split_at(32);
    let template = template::signing_key(Kind::Ecc);
    [&template[..template.len() - 4], &sized(x), &sized(y)].concat()
}

/// The public area of the attestation key.
pub fn attestation() -> Vec<u8> {
    rsa_area(&template::attestation_key())
}

/// A statement about a key.
pub fn statement(public: &[u8]) -> Vec<u8> {
    let name = Public::parse(public).expect("our own").name();
    let head = [0xff, 0x54, 0x43, 0x47, 0x80, 0x17];
    [&head[..], &sized(b"signer"), &sized(&[]), &[0; 25], &sized(&name), &sized(b"qualified")].concat()
}

/// Bytes behind their length.
pub fn sized(bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).expect("inputs are small");
    [&length.to_be_bytes()[..], bytes].concat()
}

/// A public area with the RSA key's modulus.
pub fn rsa_area(template: &[u8]) -> Vec<u8> {
    let spki = FIXTURE.key.public_key().spki_der();
    // The exponent after it takes five bytes.
    let modulus = &spki[spki.len() - 5 - 256..spki.len() - 5];
    let unique = if template.ends_with(&[0; 256]) { 258 } else { 2 };
    [&template[..template.len() - unique], &sized(modulus)].concat()
}

/// A certificate of the endorsement key, without names and purposes.
fn endorsement_certificate() -> Vec<u8> {
    let issuer = inspect(&known_key::authority()).expect("our own").subject_raw;
    let time = |text: &str| tlv(0x17, &[text.as_bytes()]);
    let validity = tlv(0x30, &[&time("250101000000Z"), &time("270101000000Z")]);
    // Basic constraints: no authority.
    let constraints = tlv(0x30, &[&[6, 3, 0x55, 0x1d, 0x13], &tlv(0x04, &[&[0x30, 0]])]);
    let extensions = tlv(0xa3, &[&tlv(0x30, &[&constraints])]);
    let key = FIXTURE.key.public_key().spki_der();
    let content = [
        &tlv(0xa0, &[&[2, 1, 2]])[..],
        &[2, 1, 5],
        known_key::ECDSA_SHA256,
        &issuer,
        &validity,
        &[0x30, 0],
        key,
        &extensions,
    ];
    known_key::signed(&tlv(0x30, &content))
}

fn attest(
    payload: &[u8],
    respond: &mut (dyn FnMut(&[u8]) -> Vec<u8> + Send),
) -> Result<Attested, AttestError> {
    let attempt = Attempt { payload, address: None, now: NOW };
    FIXTURE.runtime.block_on(FIXTURE.attestor.attest(attempt, &mut Node(respond)))
}
