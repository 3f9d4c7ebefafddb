//! SSH: keys, certificates, key files, and the payloads and answers of `sshpop`.
//!
//! The bytes are read as each of them; those up to the first zero byte also as what a node presents, those after it as what it
//! answers; and as the signed part of a certificate, which is then presented with a good answer. Laws: nobody is admitted
//! without a signature of the certified key over both nonces, under a certificate of the authority; what is read is kept byte
//! for byte.

use std::sync::{Arc, LazyLock};

use bonafide_pki::digest::Sha256;
use bonafide_pki::ssh::{SshCertificate, SshPrivateKey, SshPublicKey};
use bonafide_server::config::SshPopSettings;
use bonafide_server::node_attestor::sshpop::{DEFAULT_TEMPLATE, SshPop, template};
use bonafide_server::node_attestor::{Attempt, AttestError, Attested, NodeAttestor};
use data_encoding::BASE64;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde_json::{Value, json};
use tokio::runtime::{Builder, Runtime};

use crate::exchange::{Constant, Node};
use crate::{NOW, split_at_byte, trust_domain, with_a_flipped_bit};

struct Fixture {
    runtime: Runtime,
    /// With the usual agent path, and with one that is made of what the certificate says.
    pops: [SshPop; 2],
    authority: SshPublicKey,
}

static FIXTURE: LazyLock<Fixture> = LazyLock::new(|| {
    let blob = public_blob(&authority());
    let pop = |text: &str| {
        let settings = SshPopSettings {
            cert_authorities: vec![format!("ssh-ed25519 {}", BASE64.encode(&blob))],
            cert_authorities_path: None,
            canonical_domain: None,
            agent_path_template: template(text).expect("a template"),
        };
        SshPop::new(trust_domain(), settings, Arc::new(Constant(7))).expect("an authority")
    };
    Fixture {
        runtime: Builder::new_current_thread().build().expect("a runtime without drivers"),
        pops: [pop(DEFAULT_TEMPLATE), pop("/ssh/{{ .Hostname }}/{{ .KeyId }}-{{ last .ValidPrincipals }}")],
        authority: SshPublicKey::parse(&blob).expect("an Ed25519 key"),
    }
});

fn authority() -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[1; 32]).expect("any seed is one")
}

/// The host whose key everybody knows.
pub fn host() -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[2; 32]).expect("any seed is one")
}

/// A string in SSH's encoding.
pub fn string(bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).expect("inputs are small");
    [&length.to_be_bytes()[..], bytes].concat()
}

fn public_blob(key: &Ed25519KeyPair) -> Vec<u8> {
    [string(b"ssh-ed25519"), string(key.public_key().as_ref())].concat()
}

/// A certificate over these bytes, which are everything before the authority's key.
pub fn certificate(content: &[u8]) -> Vec<u8> {
    let signed = [content, &string(&public_blob(&authority()))].concat();
    let signature = [string(b"ssh-ed25519"), string(authority().sign(&signed).as_ref())].concat();
    [signed, string(&signature)].concat()
}

/// Whether anything was read, or a node admitted.
pub fn check(data: &[u8]) -> bool {
    let mut read = false;
    if let Ok(certificate) = SshCertificate::parse(data) {
        assert_eq!(certificate.wire(), data);
        read = true;
    }
    if let Ok(key) = SshPublicKey::parse(data) {
        assert_eq!(key.blob(), data);
        assert_eq!(SshPublicKey::parse(key.blob()).expect("it was read before"), key);
        let line = format!("{} {}", key.name(), BASE64.encode(key.blob()));
        let again = SshPublicKey::from_authorized_key(&line);
        assert_eq!(again.expect("it was read before"), Some(key));
        read = true;
    }
    if let Ok(certificate) = SshCertificate::from_text(data) {
        assert_eq!(SshCertificate::parse(certificate.wire()).expect("it was read before"), certificate);
        read = true;
    }
    if let Ok(text) = std::str::from_utf8(data) {
        read |= SshPublicKey::from_authorized_key(text).is_ok_and(|key| key.is_some());
    }
    if let Ok(key) = SshPrivateKey::from_text(data) {
        let signature = key.sign(b"message").expect("it is whole");
        assert!(key.public_key().verify(b"message", &signature, false));
        assert!(!key.public_key().verify(b"massage", &signature, true));
        read = true;
    }
    let (payload, answer) = split_at_byte(data, 0);
    for pop in &FIXTURE.pops {
        if let Ok(attested) = attest(pop, payload, &mut |_| answer.to_vec()) {
            sound(&attested);
            read = true;
        }
    }
    read | certified(data)
}

/// A certificate that the authority signed over these bytes, with the host's answer and with other ones.
fn certified(data: &[u8]) -> bool {
    let wire = certificate(data);
    let payload = payload(&wire);
    let mut admitted = false;
    for pop in &FIXTURE.pops {
        let Ok(attested) = attest(pop, &payload, &mut |challenge| self::answer(challenge, &host(), &[]))
        else {
            continue;
        };
        sound(&attested);
        admitted = true;
        let other = attest(pop, &payload, &mut |challenge| self::answer(challenge, &authority(), &[]));
        assert!(other.is_err(), "admitted with another key");
        let replayed = attest(pop, &payload, &mut |challenge| self::answer(challenge, &host(), &[1]));
        assert!(replayed.is_err(), "admitted with a signature of other nonces");
        if let Ok(changed) = SshCertificate::parse(&with_a_flipped_bit(&wire)) {
            let authorities = std::slice::from_ref(&FIXTURE.authority);
            assert!(
                changed.verify_host(authorities, NOW).is_err(),
                "another certificate under the same signature"
            );
        }
    }
    admitted
}

fn sound(attested: &Attested) {
    assert_eq!(attested.id.require_agent(&trust_domain()), Ok(()));
    let path = attested.id.path();
    assert!(path.starts_with("/spire/agent/sshpop/") || path.starts_with("/spire/agent/ssh/"));
    // What a certificate says is a part of one segment: it adds none.
    assert!(path.split('/').count() <= 6, "{path}");
}

/// What a node with this certificate presents.
pub fn payload(wire: &[u8]) -> Vec<u8> {
    json!({ "Certificate": BASE64.encode(wire) }).to_string().into_bytes()
}

/// An answer to a challenge, with something more signed than was asked for.
pub fn answer(challenge: &[u8], key: &Ed25519KeyPair, surplus: &[u8]) -> Vec<u8> {
    let challenge: Value = serde_json::from_slice(challenge).expect("our own challenge");
    let theirs = challenge["Nonce"].as_str().expect("our own challenge").as_bytes();
    let mut combined = Sha256::new();
    combined.update(&BASE64.decode(theirs).expect("our own challenge"));
    combined.update(&[9; 32]);
    combined.update(surplus);
    let signature = key.sign(&combined.finish());
    json!({
        "Nonce": BASE64.encode(&[9; 32]),
        "Signature": { "Format": "ssh-ed25519", "Blob": BASE64.encode(signature.as_ref()), "Rest": null },
    })
    .to_string()
    .into_bytes()
}

/// The challenge that the server of this target sends.
pub fn server_challenge() -> Vec<u8> {
    json!({ "Nonce": BASE64.encode(&[7; 32]) }).to_string().into_bytes()
}

fn attest(
    pop: &SshPop,
    payload: &[u8],
    respond: &mut (dyn FnMut(&[u8]) -> Vec<u8> + Send),
) -> Result<Attested, AttestError> {
    let attempt = Attempt { payload, address: None, now: NOW };
    FIXTURE.runtime.block_on(pop.attest(attempt, &mut Node(respond)))
}
