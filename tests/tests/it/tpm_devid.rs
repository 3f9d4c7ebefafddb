//! Both halves of `tpm_devid` with a TPM that is not ours: `swtpm`, the software TPM of IBM's reference code.

use std::path::{Path, PathBuf};
use std::process::{Child, Command as Program, Stdio};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bonafide_agent::config::{Secret, TpmDevIdConfig};
use bonafide_agent::node_attestor::NodeAttestor as _;
use bonafide_agent::node_attestor::tpm_devid::TpmDevId as AgentHalf;
use bonafide_agent::tpm::{Auth, Command, Handle, Tpm, sized};
use bonafide_identity::{Selector, Timestamp};
use bonafide_pki::tpm::{Kind, Public, template};
use bonafide_pki::x509::sha1_fingerprint;
use bonafide_pki::{SystemRandom, pem};
use bonafide_server::config::TpmDevIdSettings;
use bonafide_server::node_attestor::tpm_devid::TpmDevId as ServerHalf;
use bonafide_server::node_attestor::{Attempt, AttestError, Attested, Conversation, NodeAttestor as _};
use bonafide_testkit::{TestAuthority, trust_domain};
use bonafide_tests::{eventually, skipped};
use data_encoding::HEXLOWER;
use tempfile::TempDir;

const NOW: Timestamp = Timestamp::from_unix_seconds(1_800_000_000);
const EK_CERTIFICATE: Handle = Handle(0x01c0_0002);

/// A running software TPM with a certificate of its endorsement key.
struct SoftTpm {
    process: Child,
    folder: TempDir,
}

impl Drop for SoftTpm {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl SoftTpm {
    /// Nothing, with a word why, where `swtpm` is not installed.
    fn start(test: &str) -> Option<Self> {
        let folder = TempDir::new().unwrap();
        let state = format!("dir={}", folder.path().display());
        let server = format!("type=unixio,path={}", folder.path().join("tpm.sock").display());
        let started = Program::new("swtpm")
            .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"])
            .args(["--tpmstate", &state, "--server", &server])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let Ok(process) = started else {
            skipped(test, "swtpm is not installed");
            return None;
        };
        let tpm = Self { process, folder };
        eventually("the software TPM", Duration::from_secs(20), || {
            std::os::unix::net::UnixStream::connect(tpm.socket()).map(drop).map_err(|error| error.to_string())
        })
        .unwrap();
        Some(tpm)
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("tpm.sock")
    }

    fn open(&self) -> Tpm {
        Tpm::open(&self.socket()).unwrap()
    }

    fn write(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    /// Does what a manufacturer does.
    fn certify(&self, manufacturer: &TestAuthority) {
        const DEFINE: Command = Command::new(0x12a, "TPM2_NV_DefineSpace", false);
        const WRITE: Command = Command::new(0x137, "TPM2_NV_Write", false);
        // The platform writes, everybody reads.
        const ATTRIBUTES: u32 = 1 | 1 << 16 | 1 << 18 | 1 << 25 | 1 << 30;
        let mut tpm = self.open();
        let (handle, public) =
            tpm.create_primary(Handle::ENDORSEMENT, &[], &template::endorsement_key()).unwrap();
        tpm.flush(handle).unwrap();
        let key = Public::parse(&public).unwrap().key().unwrap();
        let mut certificate = manufacturer.certify(key.spki_der(), |_| {}).remove(0);
        // As on TPMs whose index is larger than the certificate.
        certificate.extend([0xff; 20]);
        let size = u16::try_from(certificate.len()).unwrap();
        let index = [
            &EK_CERTIFICATE.0.to_be_bytes()[..],
            &[0, 0x0b],
            &ATTRIBUTES.to_be_bytes(),
            &[0, 0],
            &size.to_be_bytes(),
        ]
        .concat();
        let auth = [Auth::Password(&[])];
        let asked = [&sized(&[])[..], &sized(&index)].concat();
        tpm.run(DEFINE, &[Handle::PLATFORM], &auth, &asked).unwrap();
        for (at, part) in certificate.chunks(512).enumerate() {
            let at = u16::try_from(at * 512).unwrap().to_be_bytes();
            let asked = [&sized(part)[..], &at].concat();
            tpm.run(WRITE, &[Handle::PLATFORM, EK_CERTIFICATE], &auth, &asked).unwrap();
        }
    }

    /// Does what an administrator does: makes a key and has it certified.
    fn provision(&self, devices: &TestAuthority, kind: Kind, passwords: [&str; 3]) -> TpmDevIdConfig {
        let [devid, owner, endorsement] = passwords;
        let mut tpm = self.open();
        let (parent, _) =
            tpm.create_primary(Handle::OWNER, owner.as_bytes(), &template::storage_root(kind)).unwrap();
        let made = tpm.create(parent, devid.as_bytes(), &template::signing_key(kind)).unwrap();
        tpm.flush(parent).unwrap();
        let (private, public) = made;
        let key = Public::parse(&public).unwrap().key().unwrap();
        let chain = devices.certify(key.spki_der(), |_| {});
        let chain: String = chain.iter().map(|der| pem::encode("CERTIFICATE", der)).collect();
        let secret = |text: &str| Secret::new(text.to_owned());
        TpmDevIdConfig {
            devid_cert: self.write("devid.pem", chain.as_bytes()),
            devid_priv: self.write("devid.priv", &private),
            devid_pub: self.write("devid.pub", &public),
            devid_password: secret(devid),
            tpm_device: Some(self.socket()),
            owner_hierarchy_password: secret(owner),
            endorsement_hierarchy_password: secret(endorsement),
        }
    }

    fn change_password(&self, hierarchy: Handle, password: &str) {
        const COMMAND: Command = Command::new(0x129, "TPM2_HierarchyChangeAuth", false);
        let auth = [Auth::Password(&[])];
        self.open().run(COMMAND, &[hierarchy], &auth, &sized(password.as_bytes())).unwrap();
    }

    /// How many keys and sessions are in the TPM's memory.
    fn loaded(&self) -> usize {
        const COMMAND: Command = Command::new(0x17a, "TPM2_GetCapability", false);
        let mut tpm = self.open();
        [0x8000_0000_u32, 0x0200_0000, 0x0300_0000]
            .into_iter()
            .map(|first| {
                let asked = [1_u32.to_be_bytes(), first.to_be_bytes(), 16_u32.to_be_bytes()].concat();
                let answer = tpm.run(COMMAND, &[], &[], &asked).unwrap();
                let count: [u8; 4] = answer.rest()[5..9].try_into().unwrap();
                usize::try_from(u32::from_be_bytes(count)).unwrap()
            })
            .sum()
    }
}

fn authority() -> TestAuthority {
    let at = |seconds| Timestamp::from_unix_seconds(seconds);
    TestAuthority::new(&trust_domain(), at(1_700_000_000), at(2_000_000_000))
}

fn server_half(folder: &Path, devices: &TestAuthority, manufacturer: &TestAuthority) -> ServerHalf {
    let file = |name: &str, authority: &TestAuthority| {
        let path = folder.join(name);
        std::fs::write(&path, pem::encode("CERTIFICATE", authority.root())).unwrap();
        path
    };
    let settings = TpmDevIdSettings {
        devid_ca_path: file("devices.pem", devices),
        endorsement_ca_path: file("manufacturers.pem", manufacturer),
    };
    ServerHalf::new(trust_domain(), &settings, Arc::new(SystemRandom)).unwrap()
}

type Answering<'a> = dyn FnMut(&[u8]) -> Result<Vec<u8>, String> + Send + 'a;

struct Node<'a>(&'a mut Answering<'a>);

#[async_trait]
impl Conversation for Node<'_> {
    async fn challenge(&mut self, challenge: Vec<u8>) -> Result<Vec<u8>, AttestError> {
        (self.0)(&challenge).map_err(AttestError::Internal)
    }
}

/// Attests, and gives the challenge and the answer as well.
async fn attest(
    server: &ServerHalf,
    config: &TpmDevIdConfig,
) -> Result<(Attested, Vec<u8>, Vec<u8>), AttestError> {
    let agent = AgentHalf::new(config.clone(), Arc::new(SystemRandom));
    let internal = |error: &dyn std::error::Error| AttestError::Internal(error.to_string());
    let mut agent = agent.begin().await.map_err(|error| internal(&error))?;
    let payload = agent.payload();
    let attempt = Attempt { payload: &payload, address: None, now: NOW };
    let (mut asked, mut given) = (Vec::new(), Vec::new());
    let mut answering = |challenge: &[u8]| {
        asked = challenge.to_vec();
        given = agent.respond(challenge).map_err(|error| error.to_string())?;
        Ok(given.clone())
    };
    let attested = server.attest(attempt, &mut Node(&mut answering)).await?;
    Ok((attested, asked, given))
}

#[tokio::test]
async fn keys_of_both_kinds_in_a_tpm_attest() {
    let Some(tpm) = SoftTpm::start("keys_of_both_kinds_in_a_tpm_attest") else { return };
    let (devices, manufacturer) = (authority(), authority());
    tpm.certify(&manufacturer);
    let server = server_half(tpm.folder.path(), &devices, &manufacturer);
    let below = devices.intermediate();
    for (kind, issuer, name) in [(Kind::Rsa, &devices, "root"), (Kind::Ecc, &below, "intermediate")] {
        let config = tpm.provision(issuer, kind, [""; 3]);
        let (first, ..) = attest(&server, &config).await.unwrap();
        let (second, ..) = attest(&server, &config).await.unwrap();
        assert_eq!(first, second);
        assert_eq!(tpm.loaded(), 0, "{kind:?}: something stays in the TPM");

        let pem = std::fs::read(&config.devid_cert).unwrap();
        let leaf = pem::decode_all(&pem).unwrap().remove(0).1;
        let print = |der: &[u8]| HEXLOWER.encode(&sha1_fingerprint(der));
        assert_eq!(first.id.path(), format!("/spire/agent/tpm_devid/{}", print(&leaf)));
        assert!(first.can_reattest);
        let mut expected = vec![
            format!("ca:fingerprint:{}", print(devices.root())),
            format!("issuer:cn:{name}"),
            "subject:cn:device".to_owned(),
        ];
        if name == "intermediate" {
            expected.push(format!("ca:fingerprint:{}", print(below.certificate())));
        }
        expected.sort();
        let mut found: Vec<&str> = first.selectors.iter().map(Selector::value).collect();
        found.sort_unstable();
        assert_eq!(found, expected);
    }
}

#[tokio::test]
async fn passwords_of_the_key_and_of_both_hierarchies_are_used() {
    let Some(tpm) = SoftTpm::start("passwords_of_the_key_and_of_both_hierarchies_are_used") else { return };
    let (devices, manufacturer) = (authority(), authority());
    tpm.certify(&manufacturer);
    tpm.change_password(Handle::OWNER, "owner");
    tpm.change_password(Handle::ENDORSEMENT, "endorsement");
    let server = server_half(tpm.folder.path(), &devices, &manufacturer);
    let config = tpm.provision(&devices, Kind::Ecc, ["device", "owner", "endorsement"]);
    attest(&server, &config).await.unwrap();
    let wrong = || Secret::new("wrong".to_owned());
    for (wrong, command) in [
        (TpmDevIdConfig { devid_password: wrong(), ..config.clone() }, "TPM2_Certify"),
        (TpmDevIdConfig { owner_hierarchy_password: wrong(), ..config.clone() }, "TPM2_CreatePrimary"),
        (TpmDevIdConfig { endorsement_hierarchy_password: wrong(), ..config.clone() }, "TPM2_CreatePrimary"),
    ] {
        let error = attest(&server, &wrong).await.unwrap_err().to_string();
        assert!(error.starts_with(&format!("the TPM refuses {command}: the password is wrong")), "{error}");
        assert_eq!(tpm.loaded(), 0, "{command}: something stays in the TPM");
    }
}

#[tokio::test]
async fn a_tpm_opens_only_what_is_meant_for_it() {
    let test = "a_tpm_opens_only_what_is_meant_for_it";
    let (Some(tpm), Some(other)) = (SoftTpm::start(test), SoftTpm::start(test)) else { return };
    let (devices, manufacturer) = (authority(), authority());
    let server = server_half(tpm.folder.path(), &devices, &manufacturer);
    let config = tpm.provision(&devices, Kind::Ecc, [""; 3]);
    let error = attest(&server, &config).await.unwrap_err().to_string();
    assert!(error.contains("no certificate of its RSA endorsement key at the index 0x01c00002"), "{error}");
    assert_eq!(tpm.loaded(), 0);
    tpm.certify(&manufacturer);
    other.certify(&manufacturer);
    attest(&server, &config).await.unwrap();

    // A key that was made by another TPM cannot be loaded.
    let moved = TpmDevIdConfig { tpm_device: Some(other.socket()), ..config.clone() };
    let error = attest(&server, &moved).await.unwrap_err().to_string();
    assert!(error.starts_with("the TPM refuses TPM2_Load: the key was made by another TPM"), "{error}");

    // A credential for another attestation key, or for another TPM, is not opened.
    let (_, challenge, _) = attest(&server, &config).await.unwrap();
    let mut agent = AgentHalf::new(config, Arc::new(SystemRandom)).begin().await.unwrap();
    let error = agent.respond(&challenge).unwrap_err().to_string();
    assert!(error.starts_with("the TPM refuses TPM2_ActivateCredential"), "{error}");
    drop(agent);
    assert_eq!((tpm.loaded(), other.loaded()), (0, 0));
}
