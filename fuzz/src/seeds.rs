//! The seeds: small inputs from which the fuzzer starts, and a test that each of them still does what it is there for.
//!
//! They are made here, the same each time, and committed, so that a run needs no generator. After a change,
//! `BONAFIDE_BLESS=1 cargo test --manifest-path fuzz/Cargo.toml` writes them anew.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bonafide_identity::{
    AttestedNode, AuthorityKind, AuthoritySlot, Bundle, DnsName, Entry, EntryId, JoinToken, JwtAuthority,
    Selector, SelectorSet, SerialNumber, SlotId, SlotStatus, SpiffeId, Timestamp, TrustDomain, X509Authority,
};
use bonafide_pki::bundle::{jwks_for_workload, to_spiffe_json};
use bonafide_pki::jwk::public_key_to_jwk;
use bonafide_pki::x509::CaSubject;
use bonafide_pki::{
    JwsAlgorithm, JwtClaims, JwtSigner, Signer, WitClaims, agent_csr, ca_csr, pem, workload_csr,
};
use bonafide_proto::convert::{
    agent_to_wire, bundle_to_wire, entry_to_wire, permission_denied_with_reason, selectors_to_wire,
    spiffe_id_to_wire,
};
use bonafide_proto::spire::server::agent::v1::list_agents_request;
use bonafide_proto::spire::server::entry::v1::list_entries_request;
use bonafide_proto::spire::types::{self, permission_denied_details::Reason};
use bonafide_server::store::{
    Bundles as _, EndpointProfile, Entries as _, FederationRelationship, Issuance as _, IssuedSvid,
    JoinTokens as _, Journal as _, JournalRecord, Nodes as _, Relationships as _, Store, StoreConfig,
    SvidKind,
};
use data_encoding::BASE64;
use prost::Message as _;

use crate::known_key::{self, KnownKey};
use crate::server_records::{BUILT_BACKUP, BUILT_EXPECTED, RAW_BACKUP, RAW_EXPECTED};
use crate::{NOW, attestation_payload, server_records, trust_domain};

type Check = fn(&[u8]) -> bool;

/// The targets by name.
const TARGETS: [(&str, Check); 21] = [
    ("agent_store_file", crate::agent_store_file::check),
    ("attestation_payload", crate::attestation_payload::check),
    ("authority_shim", crate::authority_shim::check),
    ("config", crate::config::check),
    ("csr", crate::csr::check),
    ("entry_conversion", crate::entry_conversion::check),
    ("federation", crate::federation::check),
    ("foreign_token", crate::foreign_token::check),
    ("gpu_evidence", crate::gpu_evidence::check),
    ("jwks", crate::jwks::check),
    ("jwt", crate::jwt::check),
    ("kubelet_facts", crate::kubelet_facts::check),
    ("pem_and_certificate", crate::pem_and_certificate::check),
    ("proxy_header", crate::proxy_header::check),
    ("server_records", crate::server_records::check),
    ("spiffe_id", crate::spiffe_id::check),
    ("spire_config", crate::spire_config::check),
    ("ssh_host", crate::ssh_host::check),
    ("tpm_devid", crate::tpm_devid::check),
    ("workload_facts", crate::workload_facts::check),
    ("upstream_answer", crate::upstream_answer::check),
];

/// A seed that begins with this is refused; all others are accepted.
const REFUSED: &str = "refused-";

/// The largest seed, in bytes.
const LARGEST: usize = 4096;

#[test]
fn each_seed_is_committed_and_does_what_it_is_there_for() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds");
    let bless = std::env::var_os("BONAFIDE_BLESS").is_some();
    for (target, check) in TARGETS {
        let seeds = seeds(target);
        let folder = root.join(target);
        if bless {
            let _ = std::fs::remove_dir_all(&folder);
            std::fs::create_dir_all(&folder).unwrap();
            for (name, bytes) in &seeds {
                std::fs::write(folder.join(name), bytes).unwrap();
            }
        }
        let names: BTreeSet<&str> = seeds.keys().copied().collect();
        assert!(names.iter().any(|name| !name.starts_with(REFUSED)), "{target} has no seed that is accepted");
        assert_eq!(
            committed(&folder),
            names.iter().map(|name| folder.join(name)).collect(),
            "BONAFIDE_BLESS=1"
        );
        for (name, bytes) in seeds {
            assert!(bytes.len() < LARGEST, "{target}/{name} has {} bytes", bytes.len());
            let stored = std::fs::read(folder.join(name)).unwrap();
            assert!(
                stored == bytes,
                "{target}/{name} is not what is made here; BONAFIDE_BLESS=1 writes it anew"
            );
            assert_eq!(check(&stored), !name.starts_with(REFUSED), "{target}/{name}");
        }
    }
}

#[test]
fn each_target_has_a_program_and_a_line_in_the_documentation() {
    let manifest = include_str!("../Cargo.toml");
    let documentation = include_str!("../../docs/fuzzing.md");
    let programs: BTreeSet<&str> =
        manifest.split("[[bin]]\nname = \"").skip(1).map(|rest| rest.split_once('"').unwrap().0).collect();
    assert_eq!(programs, TARGETS.iter().map(|(name, _)| *name).collect());
    for name in programs {
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("fuzz_targets/{name}.rs"));
        let program = std::fs::read_to_string(program).unwrap();
        assert!(program.contains(&format!("bonafide_fuzz::{name}::check(data)")), "{name}");
        assert!(documentation.contains(&format!("| `{name}` |")), "docs/fuzzing.md does not tell of {name}");
    }
}

#[test]
fn the_known_key_signs() {
    let key = KnownKey::default();
    key.public_key().check_point().unwrap();
    for message in ["", "a", "another"] {
        let signature = key.sign(message.as_bytes()).unwrap();
        let verify = |message: &str| {
            let method = bonafide_pki::VerificationAlgorithm::EcdsaSha256;
            key.public_key().verify(method, message.as_bytes(), &signature)
        };
        assert!(verify(message) && !verify("yet another"));
    }
    let loaded = bonafide_pki::PrivateKey::from_pkcs8_der(&known_key::pkcs8()).unwrap();
    assert_eq!(loaded.public_key(), key.public_key());
}

fn committed(folder: &Path) -> BTreeSet<PathBuf> {
    let files = std::fs::read_dir(folder).into_iter().flatten();
    files.map(|file| file.unwrap().path()).collect()
}

type Seeds = BTreeMap<&'static str, Vec<u8>>;

fn seeds(target: &str) -> Seeds {
    match target {
        "agent_store_file" => agent_store_file(),
        "attestation_payload" => attestation(),
        "authority_shim" => authority_shim(),
        "config" => config(),
        "csr" => csr(),
        "entry_conversion" => entry_conversion(),
        "foreign_token" => foreign_token(),
        "jwks" => jwks(),
        "federation" => federation(),
        "jwt" => jwt(),
        "kubelet_facts" => kubelet_facts(),
        "pem_and_certificate" => pem_and_certificate(),
        "proxy_header" => proxy_header(),
        "server_records" => records(),
        "spiffe_id" => spiffe_id(),
        "spire_config" => spire_config(),
        "gpu_evidence" => gpu_evidence(),
        "ssh_host" => ssh_host(),
        "tpm_devid" => tpm_devid(),
        "workload_facts" => workload_facts(),
        "upstream_answer" => upstream_answer(),
        other => panic!("no seeds for {other}"),
    }
}

/// A report of two measurements.
fn gpu_report() -> Vec<u8> {
    let measurement = |index: u8| [&[index, 1, 51, 0, 1, 48, 0][..], &[index; 48]].concat();
    let record = [measurement(1), measurement(2)].concat();
    let field = |kind: u16, value: &[u8]| {
        let length = u16::try_from(value.len()).expect("seeds are small");
        [&kind.to_le_bytes()[..], &length.to_le_bytes(), value].concat()
    };
    let fields = [field(3, b"590.12\0"), field(6, &[0, 0x9f, 0, 0x96, 1, 0, 0, 0]), field(99, b"x")].concat();
    let opaque_length = u16::try_from(fields.len()).expect("seeds are small").to_le_bytes();
    [
        &[0x11, 0xe0, 0x01, 0xff][..],
        &[7; 32],
        &[0, 0x11, 0x60, 0, 0, 2, 110, 0, 0],
        &record,
        &[9; 32],
        &opaque_length,
        &fields,
        &[5; 96],
    ]
    .concat()
}

fn gpu_evidence() -> Seeds {
    let digest = "0f".repeat(48);
    let reference = format!(
        r#"{{"kind":"driver","product":"GH100","version":"590.12","tag_id":"t","signer":"s","signer_expires":0,"values":{{"7":["{digest}"]}}}}"#
    );
    let certificate =
        data_encoding::BASE64.encode(b"-----BEGIN CERTIFICATE-----\nAQI=\n-----END CERTIFICATE-----\n");
    let printed = format!(r#"[{{"arch":"HOPPER","evidence":"AQI=","certificate":"{certificate}"}}]"#);
    let tag =
        r#"<?xml version="1.0"?><a xmlns="u" xmlns:p="v" b="&lt;'" p:a="1"><p:c/>x&#13;<d xmlns=""/></a>"#;
    [
        ("report.bin", gpu_report()),
        ("refused-cut.bin", gpu_report()[..200].to_vec()),
        ("refused-longer.bin", [&gpu_report()[..], &[0]].concat()),
        ("tag.xml", tag.as_bytes().to_vec()),
        ("refused-entity.xml", b"<!DOCTYPE a [<!ENTITY x \"y\">]><a>&x;</a>".to_vec()),
        ("refused-open.xml", b"<a><b></a>".to_vec()),
        ("reference.json", reference.clone().into_bytes()),
        ("refused-digest.json", reference.replace("0f0f", "0f").into_bytes()),
        ("printed.json", printed.into_bytes()),
        ("refused-printed.json", br#"[{"evidence":"AQI="}]"#.to_vec()),
    ]
    .into()
}

fn ssh_host() -> Seeds {
    use ring::signature::KeyPair as _;

    use crate::ssh_host::{answer, certificate, host, payload, server_challenge, string};

    let content = |kind: u32, principals: &[&[u8]], option: &[u8], before: u64| {
        [
            string(b"ssh-ed25519-cert-v01@openssh.com"),
            string(&[5; 32]),
            string(host().public_key().as_ref()),
            9_u64.to_be_bytes().to_vec(),
            kind.to_be_bytes().to_vec(),
            string(b"rack-1"),
            string(&principals.iter().flat_map(|name| string(name)).collect::<Vec<u8>>()),
            0_u64.to_be_bytes().to_vec(),
            before.to_be_bytes().to_vec(),
            string(option),
            string(b""),
            string(b""),
        ]
        .concat()
    };
    let good = content(2, &[b"node.example.org"], b"", u64::MAX);
    let wire = certificate(&good);
    let key = [string(b"ssh-ed25519"), string(host().public_key().as_ref())].concat();
    let line = |kind: &str, blob: &[u8]| format!("{kind} {} comment\n", BASE64.encode(blob)).into_bytes();
    let inner = [
        [0, 0, 0, 1, 0, 0, 0, 1].to_vec(),
        key.clone(),
        string(&[&[2; 32], host().public_key().as_ref()].concat()),
        string(b""),
        vec![1, 2, 3, 4],
    ]
    .concat();
    let file = |cipher: &[u8]| {
        let parts = [
            string(cipher),
            string(cipher),
            string(b""),
            1_u32.to_be_bytes().to_vec(),
            string(&key),
            string(&inner),
        ];
        pem::encode("OPENSSH PRIVATE KEY", &[&b"openssh-key-v1\0"[..], &parts.concat()].concat()).into_bytes()
    };
    let whole = [payload(&wire), vec![0], answer(&server_challenge(), &host(), &[])].concat();
    let replayed = [payload(&wire), vec![0], answer(&server_challenge(), &host(), &[1])].concat();
    [
        ("signed-part", good),
        ("certificate", wire.clone()),
        ("certificate.pub", line("ssh-ed25519-cert-v01@openssh.com", &wire)),
        ("key", key.clone()),
        ("key.pub", line("cert-authority ssh-ed25519", &key)),
        ("private-key", file(b"none")),
        ("payload-and-answer", whole),
        ("refused-answer-over-other-nonces", replayed),
        ("refused-private-key-encrypted", file(b"aes256-ctr")),
        ("refused-signed-part-of-a-user", content(1, &[b"root"], b"", u64::MAX)),
        ("refused-signed-part-without-names", content(2, &[], b"", u64::MAX)),
        ("refused-signed-part-past", content(2, &[b"node"], b"", 1)),
        (
            "refused-signed-part-with-an-option",
            content(2, &[b"node"], &[string(b"x"), string(b"y")].concat(), u64::MAX),
        ),
        ("refused-key-of-another-kind", string(b"ssh-dss")),
    ]
    .into()
}

fn tpm_devid() -> Seeds {
    use bonafide_pki::tpm::{Kind, template};

    use crate::tpm_devid::{
        answer, attestation, challenge, device, payload, payload_with, rsa_area, signature, sized, statement,
    };

    let whole = |payload: Vec<u8>, answer: Vec<u8>| [payload, vec![0], answer].concat();
    let (leaf, good) = (known_key::leaf(), statement(&device()));
    let other = rsa_area(&template::signing_key(Kind::Rsa));
    let unrestricted = {
        let mut area = attestation();
        area[5] &= !1;
        area
    };
    let made = |body: &[u8]| {
        let size = u32::try_from(10 + body.len()).expect("it is small");
        [&[0x80, 2][..], &size.to_be_bytes(), &[0; 4], body].concat()
    };
    let body = [&[0x80, 0, 0, 1, 0, 0, 0, 4][..], &sized(&[7, 7]), &[0; 5]].concat();
    [
        ("attestation-key", attestation()),
        ("device-key", device()),
        ("endorsement-key", rsa_area(&template::endorsement_key())),
        ("statement", good.clone()),
        ("signature", signature(&good)),
        ("signature-of-a-curve", [&[0, 0x18, 0, 0x0b][..], &sized(&[1; 32]), &sized(&[2; 32])].concat()),
        ("answer-of-the-tpm", made(&body)),
        ("challenge.json", challenge()),
        ("signed-part", signed_part(&leaf).to_vec()),
        ("payload-and-answer", whole(payload(&leaf, &device(), &good), answer(7, b""))),
        ("refused-secret", whole(payload(&leaf, &device(), &good), answer(8, b""))),
        ("refused-signature-of-more", whole(payload(&leaf, &device(), &good), answer(7, b"1"))),
        ("refused-key-of-another", whole(payload(&leaf, &other, &statement(&other)), answer(7, b""))),
        (
            "refused-statement-about-another",
            whole(payload(&leaf, &device(), &statement(&other)), answer(7, b"")),
        ),
        (
            "refused-attestation-key",
            whole(payload_with(&leaf, &device(), &unrestricted, &good), answer(7, b"")),
        ),
        ("refused-answer-of-the-tpm-cut", made(&body[..9])),
        ("refused-area-with-more", [&device()[..], &[0]].concat()),
        ("refused-statement-of-another-kind", [&good[..5], &[0x18], &good[6..]].concat()),
        ("refused-challenge-short.json", challenge().iter().copied().filter(|byte| *byte != b'=').collect()),
    ]
    .into()
}

fn foreign_token() -> Seeds {
    use crate::foreign_token::{ISSUER, key_set, payload, token};

    let claims = |sub: &str, namespace: &str, end: i64| {
        serde_json::json!({
            "iss": ISSUER, "aud": ["here"], "sub": sub, "iat": NOW.unix_seconds(), "exp": end, "k": { "ns": namespace, "groups": ["a", 1] },
        })
        .to_string()
        .into_bytes()
    };
    let end = NOW.unix_seconds() + 600;
    let good = claims("system:serviceaccount:a:b", "axb", end);
    let text = |text: &str| text.as_bytes().to_vec();
    [
        ("claims.json", good.clone()),
        ("claims-that-point-elsewhere.json", claims("../../x509pop/a", "n", end)),
        ("token", token(&good).into_bytes()),
        ("payload.json", payload(&token(&good))),
        ("keys.json", key_set()),
        ("template", text("/oidc/{{ .Issuer }}/{{ index .Claims \"/k/ns\" | lower | trimPrefix `a` }}-{{- trunc 8 .Claims.sub -}}")),
        ("template-of-functions", text("/{{ printf \"%s-%s\" (first (splitList \"/\" .Claims.sub)) .PluginName | replace \"a\" \"b\" | sha256sum }}")),
        ("host.json", text(r#"{"hostname":"node.example.org","agentname":"a","port":80}"#)),
        ("refused-host-local.json", text(r#"{"hostname":"LOCALHOST","agentname":"a","port":80}"#)),
        ("refused-host-with-a-path.json", text(r#"{"hostname":"a/b","agentname":"a","port":80}"#)),
        ("refused-claims-past.json", claims("a", "n", 1)),
        ("refused-claims-of-another-namespace.json", claims("a", "ab c", end)),
        ("refused-template-program", text("/{{ if .Claims.sub }}x{{ end }}")),
        ("refused-token-unsigned", token(&good).replacen("eyJ", "eyK", 1).into_bytes()),
    ]
    .into()
}

fn csr() -> Seeds {
    let key = KnownKey::default();
    let names = [DnsName::parse("web.example.org").unwrap(), DnsName::parse("*.web.example.org").unwrap()];
    let workload = workload_csr(&key, &id("/web"), &names).unwrap();
    let mut unproven = workload.clone();
    *unproven.last_mut().unwrap() ^= 1;
    let serial = SerialNumber::from(3_u128);
    [
        ("agent.der", agent_csr(&key, Some(&id("/spire/agent/x"))).unwrap()),
        ("agent-without-id.der", agent_csr(&key, None).unwrap()),
        ("authority.der", ca_csr(&key, &trust_domain(), &CaSubject::default(), &serial).unwrap()),
        ("rsa.der", workload_csr(&known_key::rsa(), &id("/web"), &[]).unwrap()),
        ("signed-part.der", signed_part(&workload).to_vec()),
        ("workload.der", workload),
        ("refused-unproven.der", unproven),
    ]
    .into()
}

fn jwt() -> Seeds {
    let signer = JwtSigner::new("one".into(), Arc::new(KnownKey::default()));
    let (exp, iat) = (NOW.saturating_add(std::time::Duration::from_secs(300)), NOW);
    let (sub, aud) = (id("/web"), ["one".to_owned(), "two".to_owned()]);
    let jwt = JwtClaims {
        sub: &sub,
        aud: &aud,
        exp,
        iat,
        iss: Some("https://issuer.example.org"),
        jti: Some("j".into()),
    };
    let expired = JwtClaims {
        exp: iat.saturating_sub(std::time::Duration::from_secs(61)),
        iat: Timestamp::from_unix_seconds(0),
        ..jwt.clone()
    };
    let rsa = JwtSigner::new("rsa".into(), Arc::new(known_key::rsa()));
    let key = KnownKey::default();
    let wit = WitClaims { sub: &sub, exp, iat, iss: None };
    let wit = signer.sign_wit_svid(&wit, key.public_key(), JwsAlgorithm::Es256).unwrap();
    let svid = signer.sign_jwt_svid(&jwt).unwrap();
    [
        ("content.txt", content(&svid)),
        ("content-minimal.txt", b"{\"alg\":\"ES256\",\"kid\":\"one\"}\n{\"sub\":\"spiffe://example.org/a\",\"exp\":1767225660.5,\"aud\":\"x\"}".to_vec()),
        ("rsa.jwt", rsa.sign_jwt_svid(&jwt).unwrap().into_bytes()),
        ("svid.jwt", svid.into_bytes()),
        ("wit.txt", content(&wit)),
        ("wit.jwt", wit.into_bytes()),
        ("refused-expired.jwt", signer.sign_jwt_svid(&expired).unwrap().into_bytes()),
        ("refused-none.txt", b"{\"alg\":\"none\",\"kid\":\"one\",\"typ\":\"JWT\"}\n{\"sub\":\"spiffe://example.org/a\",\"exp\":9999999999,\"aud\":[\"x\"]}".to_vec()),
    ]
    .into()
}

/// Header and claims of a token, in two lines.
fn content(token: &str) -> Vec<u8> {
    let decode = |part: &str| data_encoding::BASE64URL_NOPAD.decode(part.as_bytes()).unwrap();
    let parts: Vec<&str> = token.split('.').collect();
    [decode(parts[0]), decode(parts[1])].join(&b'\n')
}

fn jwks() -> Seeds {
    let jwk = |key: &dyn Signer| serde_json::to_vec(&public_key_to_jwk(key.public_key())).unwrap();
    let other =
        br#"{"keys":[{"use":"x509-svid","kty":"EC","x5c":[]},{"kty":"OKP","crv":"Ed25519","x":"AA"}]}"#;
    let foreign = br#"{"spiffe_sequence":1,"keys":[{"use":"other","kty":"x"},{"use":"jwt-svid","kty":"OKP","kid":"a"}]}"#;
    [
        ("bundle.json", to_spiffe_json(&bundle()).into_bytes()),
        ("ec.jwk", jwk(&KnownKey::default())),
        ("keys.json", jwks_for_workload(&known_key::token_authorities())),
        ("rsa.jwk", jwk(&known_key::rsa())),
        ("refused-foreign.json", foreign.to_vec()),
        ("refused-no-certificate.json", other.to_vec()),
    ]
    .into()
}

fn pem_and_certificate() -> Seeds {
    let (leaf, authority) = (known_key::leaf(), known_key::authority());
    let label = "CERTIFICATE";
    let text =
        format!("subject=x\r\n{}\nmore\n{}", pem::encode(label, &authority), pem::encode(label, &leaf));
    [
        ("authority.der", authority.clone()),
        ("chain.der", [&leaf[..], &authority].concat()),
        ("chain.pem", text.into_bytes()),
        ("key.pem", pem::encode("PRIVATE KEY", &known_key::pkcs8()).into_bytes()),
        ("rsa.pem", pem::encode("PRIVATE KEY", &known_key::rsa().expose_pkcs8()).into_bytes()),
        ("signed-part.der", signed_part(&leaf).to_vec()),
        ("leaf.der", leaf),
        ("refused-class.der", [&[0x70], &authority[1..]].concat()),
        ("refused-unfinished.pem", b"-----BEGIN A-----\nAQI=\n-----END B-----\n".to_vec()),
        ("refused-authority-as-leaf.der", signed_part(&authority).to_vec()),
    ]
    .into()
}

fn spiffe_id() -> Seeds {
    [
        ("agent.txt", "spiffe://example.org/spire/agent/x509pop/0a1b"),
        ("dns.txt", "*.web.example.org"),
        ("entry.txt", "0b2d8f1e-0c54-4f0e-9df5-1c1a5b0e8b0a"),
        ("member.txt", "spiffe://td-1_a.b/A-Z_a.z/0..9/..."),
        ("selector.txt", "unix:path:/usr/bin/a:b"),
        ("serial.txt", "1461501637330902918203684832716283019655932542975"),
        ("trust-domain.txt", "spiffe://example.org"),
        ("refused-characters.txt", "/TD/%41?q#f"),
        ("refused-slashes.txt", "//./../"),
    ]
    .map(|(name, text)| (name, text.as_bytes().to_vec()))
    .into()
}

fn federation() -> Seeds {
    [
        ("address.txt", "https://example.org:8443/bundle?x=1#y"),
        ("address-ip.txt", "HTTPS://[::1]"),
        ("preference.txt", "respond-async, Wait = \"20\"; x=1"),
        ("tag.txt", "W/\"0a,1b\""),
        ("refused-scheme.txt", "http://example.org/"),
        ("refused-tag.txt", "\"a\"b\""),
        ("refused-user.txt", "https://me:secret@example.org/"),
    ]
    .map(|(name, text)| (name, text.as_bytes().to_vec()))
    .into()
}

fn proxy_header() -> Seeds {
    let binary = |command: u8, family: u8, length: u16, rest: &[u8]| {
        let signature = b"\r\n\r\n\0\r\nQUIT\n";
        [&signature[..], &[command, family], &length.to_be_bytes(), rest].concat()
    };
    let four = [192, 0, 2, 7, 10, 0, 0, 1, 0xdc, 0x04, 0x01, 0xbb];
    let six = [[0x20; 16], [0x21; 16]].concat();
    let six = [&six[..], &[1, 2, 3, 4]].concat();
    let tlvs = [&four[..], &[4, 0, 1, 0, 2, 0, 3, b'a', b'.', b'b', 0x20, 0, 5, 1, 0, 0, 0, 0]].concat();
    // The checksum of these bytes with zeros in its place.
    let sum = [&four[..], &[3, 0, 4, 0x83, 0xa4, 0xc7, 0xb0]].concat();
    let wrong = [&four[..], &[3, 0, 4, 0, 0, 0, 0]].concat();
    [
        ("line-four", b"PROXY TCP4 192.0.2.7 10.0.0.1 56324 443\r\n\x16\x03\x01".to_vec()),
        ("line-six", b"PROXY TCP6 2001:db8::7 ::1 1 2\r\n".to_vec()),
        ("line-unknown", b"PROXY UNKNOWN ffff:: x\r\n".to_vec()),
        ("binary-four", binary(0x21, 0x11, 12, &four)),
        ("binary-six", binary(0x21, 0x21, 36, &six)),
        ("binary-local", binary(0x20, 0, 0, b"\x16\x03\x01")),
        ("binary-unix", binary(0x21, 0x31, 216, &[0; 216])),
        ("binary-tlvs", binary(0x21, 0x11, 30, &tlvs)),
        ("binary-checksum", binary(0x21, 0x11, 19, &sum)),
        ("refused-checksum", binary(0x21, 0x11, 19, &wrong)),
        ("refused-family", binary(0x21, 0x41, 12, &four)),
        ("refused-length", binary(0x21, 0x11, 11, &four)),
        ("refused-tlv", binary(0x21, 0x11, 29, &tlvs)),
        ("refused-line", b"PROXY TCP4 192.0.2.7 10.0.0.1 056324 443\r\n".to_vec()),
        ("refused-partial", b"PROXY TCP4 192.0.2.7".to_vec()),
    ]
    .into()
}

fn upstream_answer() -> Seeds {
    let text = |der: &[u8]| pem::encode("CERTIFICATE", der);
    let (leaf, authority) = (known_key::leaf(), known_key::authority());
    let signature = |chain: &[&[u8]]| {
        let chain: Vec<String> = chain.iter().map(|der| text(der)).collect();
        let data = serde_json::json!({ "certificate": text(&leaf), "issuing_ca": text(&authority), "ca_chain": chain });
        serde_json::json!({ "lease_id": "", "data": data }).to_string().into_bytes()
    };
    let identity = |id: &str, bundle: &[u8]| {
        let svid = bonafide_proto::workload::X509svid {
            spiffe_id: id.to_owned(),
            x509_svid: leaf.clone().into(),
            x509_svid_key: known_key::pkcs8().into(),
            bundle: bundle.to_vec().into(),
            hint: String::new(),
        };
        let message = bonafide_proto::workload::X509svidResponse { svids: vec![svid], ..Default::default() };
        message.encode_to_vec()
    };
    let request = |status: serde_json::Value| {
        let labels = serde_json::json!({ "app.kubernetes.io/managed-by": "bonafide-server", "cert-manager.spiffe.io/trust-domain": "example.org" });
        let metadata = serde_json::json!({ "name": "r", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z", "labels": labels });
        serde_json::json!({ "metadata": metadata, "status": status }).to_string().into_bytes()
    };
    let denied = serde_json::json!({ "conditions": [{ "type": "Denied", "status": "True", "reason": "r", "message": "m" }] });
    let user = serde_json::json!({ "username": "system:serviceaccount:a:b", "extra": { "authentication.kubernetes.io/pod-name": ["p"] } });
    let review = serde_json::json!({ "status": { "authenticated": true, "user": user, "audiences": ["a"] } });
    let login = br#"{"auth":{"client_token":"t","lease_duration":3600,"renewable":true}}"#;
    [
        ("identity.pb", identity("spiffe://example.org/nested", &authority)),
        ("login.json", login.to_vec()),
        ("signature.json", signature(&[&authority])),
        ("signature-without-a-chain.json", signature(&[])),
        ("request.json", request(serde_json::json!({ "certificate": BASE64.encode(text(&leaf).as_bytes()), "ca": BASE64.encode(text(&authority).as_bytes()) }))),
        ("requests.json", [&b"{\"items\":["[..], &request(denied.clone()), b"]}"].concat()),
        ("review.json", review.to_string().into_bytes()),
        ("refused-errors.json", br#"{"errors":["permission denied"]}"#.to_vec()),
        ("refused-foreign-identity.pb", identity("spiffe://elsewhere/nested", &authority)),
        ("refused-no-roots.pb", identity("spiffe://example.org/nested", b"x")),
        ("refused-no-token.json", br#"{"auth":{"client_token":""}}"#.to_vec()),
    ]
    .into()
}

fn entry_conversion() -> Seeds {
    let wire = entry_to_wire(&entry(), None);
    let least = types::Entry {
        spiffe_id: wire.spiffe_id.clone(),
        parent_id: wire.parent_id.clone(),
        selectors: wire.selectors.clone(),
        ..types::Entry::default()
    };
    let chain = types::X509svid {
        id: Some(spiffe_id_to_wire(&id("/web"))),
        cert_chain: vec![vec![1, 2, 3].into(), vec![4].into()],
        expires_at: NOW.unix_seconds(),
        hint: "internal".into(),
    };
    let token = types::Jwtsvid {
        token: "a.b.c".into(),
        id: Some(spiffe_id_to_wire(&id("/web"))),
        expires_at: NOW.unix_seconds() + 60,
        issued_at: NOW.unix_seconds(),
        hint: String::new(),
    };
    let selectors = types::SelectorMatch { selectors: selectors_to_wire(&selectors()), r#match: 1 };
    let entries = list_entries_request::Filter {
        by_spiffe_id: wire.spiffe_id.clone(),
        by_selectors: Some(selectors.clone()),
        ..list_entries_request::Filter::default()
    };
    let agents = list_agents_request::Filter {
        by_attestation_type: "join_token".into(),
        by_selector_match: Some(selectors.clone()),
        by_expires_before: "2027-01-01 00:00:00 +0000 UTC".into(),
        ..list_agents_request::Filter::default()
    };
    let denial = permission_denied_with_reason("agent is banned", Reason::AgentBanned);
    let foreign = types::Entry {
        spiffe_id: Some(types::Spiffeid { trust_domain: "other.org".into(), path: "/a".into() }),
        ..least.clone()
    };
    [
        ("agent.bin", agent_to_wire(&node(), None).encode_to_vec()),
        ("agent-filter.bin", agents.encode_to_vec()),
        ("bundle.bin", bundle_to_wire(&bundle(), None).encode_to_vec()),
        ("denial.bin", denial.details().to_vec()),
        ("entry.bin", wire.encode_to_vec()),
        ("entry-filter.bin", entries.encode_to_vec()),
        ("entry-least.bin", least.encode_to_vec()),
        ("jwt-svid.bin", token.encode_to_vec()),
        ("selectors.bin", selectors.encode_to_vec()),
        ("x509-svid.bin", chain.encode_to_vec()),
        ("refused-foreign.bin", foreign.encode_to_vec()),
    ]
    .into()
}

fn authority_shim() -> Seeds {
    let list = |authority: &'static str| {
        [
            (&b":method"[..], &b"POST"[..]),
            (b":scheme", b"http"),
            (b":path", b"/SpiffeWorkloadAPI/FetchX509SVID"),
            (b":authority", authority.as_bytes()),
            (b"te", b"trailers"),
            (b"workload.spiffe.io", b"true"),
        ]
    };
    let mut encoder = loona_hpack::Encoder::new();
    let mut block = |authority| encoder.encode(list(authority));
    let frame = |kind: u8, flags: u8, stream: u8, payload: &[u8]| {
        [&(payload.len() as u32).to_be_bytes()[1..], &[kind, flags, 0, 0, 0, stream], payload].concat()
    };
    let settings = frame(4, 0, 0, &[0, 3, 0, 0, 0, 100]);
    let fit = [block("localhost"), block("localhost")];
    let mut encoder = loona_hpack::Encoder::new();
    let mut block = |authority| encoder.encode(list(authority));
    let path = [block("/tmp/a/api.sock"), block("/tmp/a/api.sock"), block("localhost")];
    let (half, rest) = path[0].split_at(20);
    let padded = [&[3, 0, 0, 0, 0, 16][..], &path[0], &[0; 3]].concat();
    // Huffman code, as most clients send it: www.example.com (RFC 7541, appendix C.4.1).
    let huffman = b"\x82\x86\x84\x41\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff";
    [
        (
            "fit.bin",
            [
                &[9][..],
                &settings,
                &frame(1, 4, 1, &fit[0]),
                &frame(0, 1, 1, b"body"),
                &frame(1, 5, 3, &fit[1]),
            ]
            .concat(),
        ),
        (
            "path.bin",
            [
                &[5][..],
                &settings,
                &frame(1, 4, 1, &path[0]),
                &frame(1, 5, 3, &path[1]),
                &frame(1, 4, 5, &path[2]),
            ]
            .concat(),
        ),
        (
            "continued.bin",
            [&[1][..], &frame(1, 1, 1, half), &frame(9, 4, 1, rest), &frame(8, 0, 0, &[0, 0, 1, 0])].concat(),
        ),
        ("padded.bin", [&[200][..], &frame(1, 0x2c, 1, &padded)].concat()),
        ("huffman.bin", [&[7][..], &frame(1, 5, 1, huffman)].concat()),
        (
            "refused-interrupted.bin",
            [&[9][..], &frame(1, 1, 1, half), &frame(0, 0, 1, b"x"), &frame(9, 4, 1, rest)].concat(),
        ),
        (
            "resized.bin",
            [&[3][..], &frame(1, 4, 1, &[&[0x20, 0x3f, 0xe1, 0x1f][..], huffman].concat())].concat(),
        ),
    ]
    .into()
}

fn attestation() -> Seeds {
    let payload = attestation_payload::payload(&[&known_key::leaf()]);
    let challenge = attestation_payload::server_challenge();
    let answer = attestation_payload::answer(&challenge, &[]);
    let wrong = attestation_payload::answer(&challenge, b"more");
    let conversation = |answer: &[u8]| [&payload[..], &[0], answer].concat();
    let claims = |change: fn(&mut serde_json::Value)| {
        let mut claims = serde_json::json!({
            "iss": crate::foreign_token::ISSUER, "aud": ["here"], "sub": "system:serviceaccount:a:b",
            "iat": NOW.unix_seconds(), "exp": NOW.unix_seconds() + 600,
            "kubernetes.io": {
                "namespace": "a", "serviceaccount": { "name": "b", "uid": "s" }, "pod": { "name": "p", "uid": "u-1" },
                "node": { "name": "n", "uid": "u-1" },
            },
        });
        change(&mut claims);
        claims.to_string().into_bytes()
    };
    let signed = |claims: &[u8]| crate::foreign_token::token(claims);
    // Pod and node in one.
    let object = br#"{"metadata":{"uid":"u-1","labels":{"x":"y"}},"spec":{"nodeName":"n"},"status":{"hostIP":"192.0.2.1"}}"#;
    let about = |payload: &[u8]| [payload, &[0], &object[..]].concat();
    // What readers pass over may be what others cannot read.
    let more = |json: &[u8]| [&json[..json.len() - 1], b",\"x\":[\"\xff\",1e999]}"].concat();
    [
        ("challenge-with-more.bin", more(&challenge)),
        ("x509pop-with-more.bin", conversation(&more(&answer))),
        ("x509pop.json", conversation(&answer)),
        ("certificate.der", signed_part(&known_key::leaf()).to_vec()),
        ("challenge.json", challenge),
        ("psat.json", attestation_payload::psat_payload("keys", &signed(&claims(|_| {})))),
        ("psat-asked.bin", about(&attestation_payload::psat_payload("asked", &signed(&claims(|_| {}))))),
        ("psat-claims.bin", about(&claims(|_| {}))),
        ("refused-psat-cluster.json", attestation_payload::psat_payload("x", &signed(&claims(|_| {})))),
        (
            "refused-psat-node.bin",
            about(&attestation_payload::psat_payload(
                "asked",
                &signed(&claims(|claims| claims["kubernetes.io"]["node"]["uid"] = "u-2".into())),
            )),
        ),
        ("refused-psat-account.json", claims(|claims| claims["sub"] = "system:serviceaccount:a:c".into())),
        ("refused-psat-claims.json", claims(|claims| claims["kubernetes.io"]["pod"]["uid"] = "../u".into())),
        ("token.txt", attestation_payload::TOKEN.into()),
        ("refused-answer.json", conversation(&wrong)),
        ("refused-rsa-answer.json", conversation(br#"{"rsa_signature":{"nonce":"","signature":""}}"#)),
        ("refused-payload.json", br#"{"certificates":[""]}"#.to_vec()),
    ]
    .into()
}

fn agent_store_file() -> Seeds {
    let item = |der: &[u8]| BASE64.encode(pem::encode("CERTIFICATE", der).as_bytes());
    let data = serde_json::json!({
        "svid": [item(&known_key::leaf())],
        "bundle": [item(&[1; 40]), item(&[2; 40])],
        "reattestable": true,
        "bootstrap_use": 1,
    });
    let keys = serde_json::json!({ "keys": {
        "agent-svid-A": BASE64.encode(&known_key::pkcs8()),
        "agent-svid-B": BASE64.encode(&known_key::rsa().expose_pkcs8()),
    }});
    [
        ("agent-data.json", data.to_string().into_bytes()),
        ("keys.json", keys.to_string().into_bytes()),
        ("refused-keys.json", br#"{"keys":{"a":"MAA=","a":"%"}}"#.to_vec()),
        ("refused-torn.json", br#"{"svid":["LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0t"],"bundle""#.to_vec()),
    ]
    .into()
}

/// A D-Bus message, little endian; the fields' values are a text, a number or a signature.
fn dbus(kind: u8, fields: &[(u8, &str, &str)], body: &[u8]) -> Vec<u8> {
    let mut header = Vec::new();
    let number = |number: usize| u32::try_from(number).unwrap().to_le_bytes();
    for (field, signature, value) in fields {
        header.resize(header.len().next_multiple_of(8), 0);
        header.extend([*field, 1, signature.as_bytes()[0], 0]);
        match *signature {
            "u" => header.extend(number(value.parse().unwrap())),
            "g" => header.push(u8::try_from(value.len()).unwrap()),
            _ => header.extend(number(value.len())),
        }
        if *signature != "u" {
            header.extend(value.as_bytes());
            header.push(0);
        }
    }
    let mut message =
        [&[b'l', kind, 0, 1], &number(body.len())[..], &number(7), &number(header.len())].concat();
    message.extend(header);
    message.resize(message.len().next_multiple_of(8), 0);
    message.extend(body);
    message
}

fn workload_facts() -> Seeds {
    let to_us = [(5, "u", "3"), (7, "s", ":1.2")];
    let variant = b"\x01s\0\0\x09\0\0\0a.service\0";
    let path = b"\x02\0\0\0/a\0";
    let returned =
        |signature: &'static str, body: &[u8]| dbus(2, &[to_us[0], to_us[1], (8, "g", signature)], body);
    let (a, b) = ("a".repeat(64), "b".repeat(64));
    let container = serde_json::json!({
        "Id": a,
        "Image": format!("sha256:{b}"),
        "State": { "Running": true, "Pid": 7 },
        "Config": { "Image": "app:1", "Labels": { "role": "web", "a:b": "c\n" }, "Env": ["PATH=/bin"] },
    });
    [
        ("property.bin", returned("v", variant)),
        ("unit.bin", returned("o", path)),
        ("error.bin", dbus(3, &[to_us[0], (4, "s", "org.example.No")], &[])),
        ("call.bin", dbus(1, &[(1, "o", "/a"), (2, "s", "b.c"), (3, "s", "Get"), (6, "s", "d.e")], &[])),
        ("refused-cut.bin", returned("o", path)[..40].to_vec()),
        ("refused-length.bin", [&returned("o", path)[..], &[0]].concat()),
        ("systemd.txt", format!("0::/system.slice/docker-{a}.scope/init.scope\n").into_bytes()),
        ("v1.txt", format!("4:pids:/docker/{a}\n1:name=systemd:/docker/{a}\n0::/x\n").into_bytes()),
        ("user.txt", format!("0::/user.slice/user-7.slice/user@7.service/libpod-{a}.scope\n").into_bytes()),
        ("refused-two.txt", format!("2:cpu:/docker/{a}\n1:name=systemd:/docker/{b}\n").into_bytes()),
        ("refused-none.txt", format!("0::/machine.slice/libpod-conmon-{a}.scope\n").into_bytes()),
        ("slurm.txt", b"0::/system.slice/a_slurmstepd.scope/job_7/step_0/user/task_0\n".to_vec()),
        ("slurm-v1.txt", b"4:cpu:/slurm/uid_1/job_7/step_batch\n3:memory:/slurm/uid_1/job_7/step_batch/task_0\n".to_vec()),
        ("refused-slurm.txt", b"0::/user.slice/slurmstepd.scope/job_7/step_0\n".to_vec()),
        (
            "slurm.json",
            br#"{"job": "7", "boot_id": "b", "uptime": 10.5, "ends": null, "uid": 1, "user": "a", "gpus": [0]}"#.to_vec(),
        ),
        ("refused-slurm.json", br#"{"job": "../7", "boot_id": "b", "uptime": 10.5, "uid": 1}"#.to_vec()),
        ("container.json", container.to_string().into_bytes()),
        ("image.json", format!(r#"{{"Id":"sha256:{b}","RepoTags":null}}"#).into_bytes()),
        ("refused-answer.json", br#"{"message":"No such container"}"#.to_vec()),
    ]
    .into()
}

fn kubelet_facts() -> Seeds {
    use bonafide_proto::kubelet::core::{
        ContainerState, ContainerStateRunning, ContainerStatus, ObjectMeta, Pod, PodSpec, PodStatus,
    };
    use bonafide_proto::kubelet::podresources::{
        CdiDevice, ClaimResource, ContainerDevices, ContainerResources, DynamicResource,
        ListPodResourcesResponse, PodResources,
    };

    use crate::kubelet_facts::ID;

    let uid = "2c48913c-b29f-11e7-9350-020968147796";
    let escaped = uid.replace('-', "_");
    let text = |text: String| text.into_bytes();
    let json = serde_json::json!({"items": [{
        "metadata": {"uid": uid, "name": "web-0", "namespace": "shop", "labels": {"app": "web", "bad": "x\ny"},
            "ownerReferences": [{"kind": "Job", "name": "j", "uid": "u"}]},
        "spec": {"serviceAccountName": "cart", "nodeName": "n", "volumes": [{"name": "d", "hostPath": {"path": "/dev"}}],
            "containers": [{"name": "main", "securityContext": {"privileged": true}}]},
        "status": {"ephemeralContainerStatuses": [{"name": "main", "image": "a:1", "imageID": "a@sha256:0",
            "containerID": format!("containerd://{ID}"), "state": {"running": {}}}]}
    }]});
    let status = ContainerStatus {
        name: "main".to_owned(),
        state: Some(ContainerState { running: Some(ContainerStateRunning {}), terminated: None }),
        image: "a:1".to_owned(),
        image_id: "a@sha256:0".to_owned(),
        container_id: format!("cri-o://{ID}"),
    };
    let pod = Pod {
        metadata: Some(ObjectMeta {
            name: "web-0".to_owned(),
            namespace: "shop".to_owned(),
            uid: uid.to_owned(),
            labels: [("app".to_owned(), "web".to_owned())].into(),
            owner_references: Vec::new(),
        }),
        spec: Some(PodSpec { service_account_name: "cart".to_owned(), ..PodSpec::default() }),
        status: Some(PodStatus { container_statuses: vec![status], ..PodStatus::default() }),
    };
    let gpu = "GPU-aaaaaaaa-0000-0000-0000-000000000001";
    let list = |ids: &[&str], driver: &str| {
        let devices = ContainerDevices {
            resource_name: "nvidia.com/gpu".to_owned(),
            device_ids: ids.iter().map(|id| (*id).to_owned()).collect(),
        };
        let part = ClaimResource {
            cdi_devices: vec![CdiDevice { name: format!("k8s.gpu.nvidia.com/claim={uid}-gpu-1") }],
            driver_name: driver.to_owned(),
            pool_name: "n".to_owned(),
            device_name: "gpu-1".to_owned(),
            share_id: None,
        };
        let claim = DynamicResource {
            claim_name: "c".to_owned(),
            claim_namespace: "shop".to_owned(),
            claim_resources: vec![part],
        };
        let container = ContainerResources {
            name: "main".to_owned(),
            devices: vec![devices],
            dynamic_resources: vec![claim],
        };
        let pod = |name: &str| PodResources {
            name: name.to_owned(),
            namespace: "shop".to_owned(),
            containers: vec![container.clone()],
        };
        ListPodResourcesResponse { pod_resources: vec![pod("web-0"), pod("web-1")] }.encode_to_vec()
    };
    [
        ("cgroupfs.txt", text(format!("0::/kubepods/burstable/pod{uid}/{ID}\n"))),
        (
            "systemd.txt",
            text(format!("0::/kubepods.slice/kubepods-pod{escaped}.slice/cri-containerd-{ID}.scope\n")),
        ),
        (
            "colons.txt",
            text(format!(
                "0::/system.slice/containerd.service/kubepods-pod{escaped}.slice:cri-containerd:{ID}"
            )),
        ),
        ("namespace.txt", text(format!("1:pids:/../../pod{uid}/{ID}\n0::/../crio-{ID}.scope\n"))),
        ("refused-forged.txt", text(format!("0::/user.slice/kubepods/pod{uid}/{ID}\n"))),
        (
            "refused-two.txt",
            text(format!("1:cpu:/kubepods/pod{uid}/{ID}\n0::/kubepods/pod{}/{ID}\n", "0".repeat(32))),
        ),
        ("pods.json", text(json.to_string())),
        ("pod.bin", pod.encode_to_vec()),
        ("devices.bin", list(&[gpu], "x")),
        ("shares.bin", list(&[&format!("{gpu}::0"), &format!("{gpu}::1")], "gpu.nvidia.com")),
        ("refused-device.bin", list(&[gpu, "a\nb"], "x")),
        ("refused-nothing.bin", list(&[], "x")[..8].to_vec()),
    ]
    .into()
}

fn spire_config() -> Seeds {
    let server = r#"# comment
server {
    bind_address = "127.0.0.1", bind_port = "8081" // another
    proxy_protocol_trusted_cidrs = ["10.0.0.0/8", "::1/128"]
    trust_domain = "example.org" data_dir = "./.data"
    admin_ids = ["spiffe://example.org/a",]
    ca_subject = { country = ["US"] organization = [] }
    ratelimit { attestation = false }
    federation { federates_with "a.test" { bundle_endpoint_url = "https://a.test" bundle_endpoint_profile "https_web" { } }
        bundle_endpoint { port = 8443 profile "https_web" { acme { domain_name = "b.test" email = "e@b.test" tos_accepted = true } } } }
    experimental { feature_flags = ["wit-svid"] }
}
/* plugins */
plugins {
    DataStore "sql" { plugin_data { connection_string = "${DB}" } }
    KeyManager "memory" { plugin_data = {} }
    NodeAttestor "x509pop" { plugin_data { ca_bundle_path = "c" max_intermediates = 0x2 } }
    UpstreamAuthority "disk" { plugin_data { cert_file_path = "c" key_file_path = "k" } }
}
telemetry { Prometheus { port = 9988 } }
health_checks { listener_enabled = true bind_port = "9988" }
"#;
    let agent = r#"{"agent": [{"trust_domain": "example.org", "server_address": "h", "server_port": 8081,
 "trust_bundle_path": "b", "join_token": "t\u00e9", "experimental": {"sync_interval": "1.5s"}}],
 "plugins": {"WorkloadAttestor": [{"unix": {"plugin_data": {}}}, {"k8s": {"enabled": false}}]}}"#;
    let agent_hcl = "agent { trust_domain = \"a\" server_address = \"::1\" server_port = 1\ninsecure_bootstrap = true\n\
                     log_file = <<-EOF\n  x\n  EOF\n}\n";
    [
        ("server.conf", server.as_bytes().to_vec()),
        ("agent.json", agent.as_bytes().to_vec()),
        ("agent.conf", agent_hcl.as_bytes().to_vec()),
        ("words.conf", b"a = \"${ \\ \" { } }\\x41\\101\" b = -017 c = 1.5e3 d \"l\" \"m\" { }".to_vec()),
        ("refused-unclosed.conf", b"a { b = [1, {".to_vec()),
        ("refused-hcl2.conf", b"a = b.c".to_vec()),
        ("refused-trailing.json", br#"{"a": [1, 2,]}"#.to_vec()),
        ("refused-deep.conf", "a = ".bytes().chain("[".repeat(70).bytes()).collect()),
    ]
    .into()
}

fn config() -> Seeds {
    let server = r#"trust_domain = "example.org"
data_dir = "/var/lib/bonafide"
admin_ids = ["spiffe://example.org/admin"]
[listen]
address = "[::1]:8081"
health_address = "127.0.0.1:9000"
max_connections = 100
[log]
level = "debug"
format = "json"
[authority]
ca_ttl = "7d"
default_x509_svid_ttl = "1h30m"
ca_key_type = "rsa-2048"
ca_subject = { country = ["DE"], common_name = "x" }
jwt_issuer = "https://issuer.example.org"
[upstream_authority.disk]
certificate_path = "ca.pem"
key_path = "ca.key"
[store]
driver = "redb"
cache_mib = 16
[node_attestor.x509pop]
ca_bundle_paths = ["roots.pem"]
agent_path_template = "/n/{{ .Subject.CommonName }}/{{ .Fingerprint }}"
[prune]
attested_nodes_expired_for = "30d"
"#;
    let agent = r#"trust_domain = "spiffe://example.org"
sync_interval = "250ms"
allowed_foreign_jwt_claims = ["scope"]
[server]
address = "server.example.org:8081"
[bootstrap]
bundle_file = "bundle.json"
bundle_format = "spiffe"
[node_attestor.x509pop]
certificate_path = "c.pem"
private_key_path = "k.pem"
[svid]
key_type = "ec-p384"
availability_target = "24h"
[workload_attestor.unix]
workload_size_limit = -1
"#;
    let mistakes = "trust_domain = 3\nfoo = 1\n[listen]\naddress = \"x\"\n[[authority]]\nca_ttl = \"5\"\n[server]\naddress = ''\n";
    [
        ("agent.toml", agent),
        ("agent-least.toml", "trust_domain='a'\nserver.address='h:1'\nbootstrap.insecure=true\nnode_attestor.join_token.token='t'\n"),
        ("server.toml", server),
        ("server-least.toml", "trust_domain = \"a\"\ndata_dir = \"d\"\n"),
        ("refused-mistakes.toml", mistakes),
        ("refused-syntax.toml", "trust_domain = \"a\n[[x]\n= 1\n"),
    ]
    .map(|(name, text)| (name, text.as_bytes().to_vec()))
    .into()
}

/// One record of each table as the store itself writes it.
fn records() -> Seeds {
    let folder = crate::folder();
    let path = folder.path().join("backup");
    let (store, _) = Store::open(StoreConfig::memory(trust_domain()), Arc::new(|| NOW)).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime
        .block_on(store.write(|unit| {
            unit.entry_create(entry())?;
            unit.node_put(node())?;
            unit.bundle_put(bundle())?;
            unit.relationship_create(FederationRelationship {
                trust_domain: TrustDomain::parse("other.org").unwrap(),
                bundle_endpoint_url: "https://other.org/bundle".into(),
                profile: EndpointProfile::HttpsSpiffe {
                    endpoint_spiffe_id: SpiffeId::parse("spiffe://other.org/e").unwrap(),
                },
            })?;
            unit.token_create(&JoinToken {
                value: "t".into(),
                expires_at: NOW,
                agent_id: Some(id("/spire/agent/x")),
            })?;
            unit.journal_put(&JournalRecord {
                kind: AuthorityKind::Jwt,
                slot: AuthoritySlot {
                    slot: SlotId::A,
                    status: SlotStatus::Active,
                    authority_id: "one".into(),
                    issued_at: NOW,
                    not_after: NOW,
                    tainted: true,
                    upstream_authority_id: Some("up".into()),
                },
                key_id: "jwt-A".into(),
                certificate_chain: vec![vec![1], vec![2]],
                public_key: vec![3],
                revoked: Vec::new(),
            })?;
            unit.record_issued(&[IssuedSvid {
                kind: SvidKind::WorkloadX509,
                spiffe_id: id("/web"),
                entry_id: Some(EntryId::parse("entry-1").unwrap()),
                serial: "17".into(),
                not_after: NOW,
                authority_id: "0a".into(),
            }])
        }))
        .unwrap();
    runtime.block_on(store.backup(&path)).unwrap();
    let records = server_records::records_of(&std::fs::read(&path).unwrap());
    let mut seeds = Seeds::new();
    let mut pieces = Vec::new();
    for (key, payload) in &records {
        let name = match key[0] {
            b'e' => "entry.bin",
            b'n' => "node.bin",
            b'b' => "bundle.bin",
            b'f' => "relationship.bin",
            b't' => "token.bin",
            b'j' => "journal.bin",
            b'i' => "issuance.bin",
            b'c' => "change.bin",
            other => panic!("a record of {other}"),
        };
        seeds.insert(name, [&key[..1], payload].concat());
        if payload.len() < 256 {
            let table = server_records::TABLES.iter().position(|table| *table == key[0]).unwrap();
            pieces.extend([payload.len() as u8, table as u8]);
            pieces.extend_from_slice(payload);
        }
    }
    assert_eq!(seeds.len(), server_records::TABLES.len(), "a record of each table");
    let whole: Vec<_> = records.iter().map(|(key, payload)| (key.clone(), &payload[..])).collect();
    let backup = server_records::backup_of(&whole);
    let mut damaged = backup.clone();
    damaged[100] ^= 4;
    // Nothing committed. One slot alone is enough, and two would make too large a seed.
    let expected = [0; 45];
    seeds.extend([
        ("backup.bin", [&[RAW_BACKUP][..], &backup].concat()),
        ("backup-empty.bin", vec![BUILT_BACKUP]),
        ("refused-backup.bin", [&[RAW_BACKUP][..], &damaged].concat()),
        ("records.bin", [&[BUILT_BACKUP][..], &pieces].concat()),
        ("expected.bin", [&[BUILT_EXPECTED][..], &expected].concat()),
        ("refused-expected.bin", [&[RAW_EXPECTED][..], b"BFEXPECT\x01", &[0; 40]].concat()),
        ("refused-expected-commit.bin", [&[BUILT_EXPECTED][..], &[1; 45]].concat()),
    ]);
    seeds
}

fn entry() -> Entry {
    Entry {
        id: EntryId::parse("entry-1").unwrap(),
        spiffe_id: id("/web"),
        parent_id: id("/spire/agent/x"),
        selectors: selectors(),
        x509_svid_ttl: 3600,
        jwt_svid_ttl: 300,
        federates_with: [TrustDomain::parse("other.org").unwrap()].into(),
        admin: true,
        downstream: false,
        expires_at: Some(NOW),
        dns_names: [DnsName::parse("web.example.org").unwrap()].into(),
        revision: 0,
        created_at: NOW,
        store_svid: false,
        hint: "\x12\x01".into(),
        disable_x509_svid_prefetch: true,
        jwt_svid_include_jti: true,
    }
}

fn node() -> AttestedNode {
    AttestedNode {
        id: id("/spire/agent/x"),
        attestation_type: "x509pop".into(),
        serial: Some(SerialNumber::from(1_u128)),
        not_after: NOW,
        new_serial: Some(SerialNumber::from(2_u128)),
        new_not_after: NOW,
        selectors: selectors(),
        can_reattest: true,
        agent_version: "1.2.3".into(),
        evidence_until: None,
    }
}

fn bundle() -> Bundle {
    let mut bundle = Bundle::empty(trust_domain());
    bundle.x509_authorities = vec![X509Authority { certificate: known_key::authority(), tainted: true }];
    bundle.jwt_authorities = known_key::token_authorities().into();
    let wit = JwtAuthority {
        key_id: "wit".into(),
        public_key: known_key::spki(),
        expires_at: Some(NOW),
        tainted: false,
    };
    bundle.wit_authorities = vec![wit];
    (bundle.refresh_hint, bundle.sequence_number) = (300, 7);
    bundle
}

fn selectors() -> SelectorSet {
    ["unix:uid:1000", "unix:gid:100"].iter().map(|text| Selector::parse(text).unwrap()).collect()
}

fn id(path: &str) -> SpiffeId {
    SpiffeId::from_parts(trust_domain(), path).unwrap()
}

/// The first element within the outermost one.
fn signed_part(der: &[u8]) -> &[u8] {
    let content = &der[header(der).0..];
    let (head, length) = header(content);
    &content[..head + length]
}

/// The length of an element's head and of its content.
fn header(der: &[u8]) -> (usize, usize) {
    match der[1] {
        0x81 => (3, der[2].into()),
        0x82 => (4, usize::from(der[2]) << 8 | usize::from(der[3])),
        short => (2, short.into()),
    }
}
