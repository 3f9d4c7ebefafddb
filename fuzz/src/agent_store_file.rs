//! The agent's files: `agent-data.json`, which another agent may have written, and the key manager's file.
//!
//! Laws: what was read is written and reads as the same; each key that a key file gives out signs for its public key; a file
//! that is refused is left as it is.

use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::LazyLock;

use bonafide_agent::bootstrap::store::{AgentData, DataFile, parse};
use bonafide_pki::key_manager::Disk;
use bonafide_pki::{KeyManager as _, SignatureAlgorithm, VerificationAlgorithm};
use tokio::runtime::{Builder, Runtime};

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Builder::new_current_thread().build().expect("a runtime without drivers"));

/// Whether the bytes are one of the files, and hold something.
pub fn check(data: &[u8]) -> bool {
    agent_data(data) | keys(data)
}

fn agent_data(data: &[u8]) -> bool {
    let Ok(read) = parse(data) else { return false };
    let folder = crate::folder();
    let file = DataFile::open(folder.path()).expect("the folder is there");
    file.store(&read).expect("there is room");
    assert_eq!(file.load().expect("it was written by us"), read);
    read != AgentData::default()
}

fn keys(data: &[u8]) -> bool {
    let folder = crate::folder();
    let path = folder.path().join("keys.json");
    write(&path, data);
    let opened = Disk::open(&path);
    assert_eq!(std::fs::read(&path).expect("it was written"), data, "reading changes the file");
    let Ok(manager) = opened else { return false };
    RUNTIME.block_on(async {
        let ids = manager.ids().await.expect("it is open");
        for id in &ids {
            let key = manager.key(id).await.expect("it is open").expect("it is listed");
            let (algorithm, verification) = match key.key_type().signature_algorithm() {
                SignatureAlgorithm::EcdsaP256Sha256 => {
                    (SignatureAlgorithm::EcdsaP256Sha256, VerificationAlgorithm::EcdsaSha256)
                }
                SignatureAlgorithm::EcdsaP384Sha384 => {
                    (SignatureAlgorithm::EcdsaP384Sha384, VerificationAlgorithm::EcdsaSha384)
                }
                _ => (SignatureAlgorithm::RsaPkcs1Sha256, VerificationAlgorithm::RsaPkcs1Sha256),
            };
            let signature = key.sign_with(algorithm, data).expect("a key that was read signs");
            assert!(key.public_key().verify(verification, data, &signature), "public and private key differ");
        }
        // Removing what is not there writes nothing; removing one key leaves the others.
        if let Some(first) = ids.first() {
            manager.remove(first).await.expect("there is room");
            let left = Disk::open(&path).expect("it was written by us").ids().await.expect("it is open");
            assert_eq!(left, ids[1..]);
        }
        !ids.is_empty()
    })
}

fn write(path: &Path, data: &[u8]) {
    use std::io::Write as _;
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .expect("a new folder");
    file.write_all(data).expect("there is room");
}
