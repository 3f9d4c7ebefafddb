//! One suite for every key manager, and what is particular to the disk.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use bonafide_pki::key_manager::{Disk, Memory};
use bonafide_pki::{KeyError, KeyManager, KeyType, Signer, VerificationAlgorithm};
use data_encoding::BASE64;
use tempfile::TempDir;

use crate::support::{Role, key};

/// What every key manager must do.
async fn conforms(keys: &dyn KeyManager) {
    assert_eq!(keys.ids().await.unwrap(), Vec::<String>::new());
    assert!(keys.key("x509-CA-A").await.unwrap().is_none());
    keys.remove("x509-CA-A").await.unwrap();
    assert!(matches!(keys.generate("", KeyType::EcP256).await, Err(KeyError::EmptyId)));

    let first = keys.generate("x509-CA-A", KeyType::EcP256).await.unwrap();
    assert_eq!(first.key_type(), KeyType::EcP256);
    let signature = first.sign(b"message").unwrap();
    assert!(first.public_key().verify(VerificationAlgorithm::EcdsaSha256, b"message", &signature));
    let found = keys.key("x509-CA-A").await.unwrap().unwrap();
    assert_eq!(found.public_key(), first.public_key());

    let jwt = keys.generate("JWT-Signer-A", KeyType::EcP384).await.unwrap();
    assert_eq!(keys.ids().await.unwrap(), ["JWT-Signer-A", "x509-CA-A"]);

    // A new key takes the place of the old one; who still holds the old one can go on signing.
    let second = keys.generate("x509-CA-A", KeyType::EcP256).await.unwrap();
    assert_ne!(second.public_key(), first.public_key());
    assert_eq!(keys.key("x509-CA-A").await.unwrap().unwrap().public_key(), second.public_key());
    first.sign(b"message").unwrap();

    keys.remove("x509-CA-A").await.unwrap();
    assert!(keys.key("x509-CA-A").await.unwrap().is_none());
    assert_eq!(keys.key("JWT-Signer-A").await.unwrap().unwrap().public_key(), jwt.public_key());

    let rsa = keys.generate("JWT-Signer-B", KeyType::Rsa2048).await.unwrap();
    assert_eq!(rsa.key_type(), KeyType::Rsa2048);
    assert_eq!(keys.ids().await.unwrap(), ["JWT-Signer-A", "JWT-Signer-B"]);

    // Many at once, none lost.
    let made = [0, 1, 2, 3, 4, 5].map(|number| format!("k{number}"));
    let (a, b, c) = tokio::join!(
        keys.generate(&made[0], KeyType::EcP256),
        keys.generate(&made[1], KeyType::EcP256),
        keys.generate(&made[2], KeyType::EcP256),
    );
    let all: Vec<Arc<dyn Signer>> = vec![a.unwrap(), b.unwrap(), c.unwrap()];
    for (id, key) in made.iter().zip(&all) {
        assert_eq!(keys.key(id).await.unwrap().unwrap().public_key(), key.public_key());
    }
}

#[tokio::test]
async fn memory_conforms() {
    conforms(&Memory::new()).await;
}

#[tokio::test]
async fn disk_conforms() {
    let folder = TempDir::new().unwrap();
    conforms(&Disk::open(folder.path().join("keys.json")).unwrap()).await;
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn refused(path: &Path) -> String {
    match Disk::open(path) {
        Err(error @ KeyError::File { .. }) => error.to_string(),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("accepted"),
    }
}

#[tokio::test]
async fn keys_survive_a_restart_in_a_private_file() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("deep/down/keys.json");
    let keys = Disk::open(&path).unwrap();
    assert_eq!(keys.path(), path);
    assert_eq!(mode(path.parent().unwrap()), 0o700);
    let made = keys.generate("agent-svid-A", KeyType::EcP256).await.unwrap();
    keys.generate("agent-svid-B", KeyType::EcP256).await.unwrap();
    assert_eq!(mode(&path), 0o600);
    drop(keys);
    let keys = Disk::open(&path).unwrap();
    assert_eq!(keys.key("agent-svid-A").await.unwrap().unwrap().public_key(), made.public_key());
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no temporary file is left");
}

/// The form that SPIRE's disk key managers read and write.
#[tokio::test]
async fn the_file_has_the_form_that_spire_uses() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("keys.json");
    let theirs = key(KeyType::EcP256, Role::Leaf);
    let encoded = BASE64.encode(&theirs.expose_pkcs8());
    fs::write(&path, format!("{{\n\t\"keys\": {{\n\t\t\"x509-CA-A\": \"{encoded}\"\n\t}}\n}}")).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    let keys = Disk::open(&path).unwrap();
    assert_eq!(keys.key("x509-CA-A").await.unwrap().unwrap().public_key(), theirs.public_key());
    keys.generate("x509-CA-B", KeyType::EcP256).await.unwrap();
    let document: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_eq!(document["keys"]["x509-CA-A"], encoded);
    assert_eq!(document["keys"].as_object().unwrap().len(), 2);
    assert_eq!(document.as_object().unwrap().len(), 1);
}

#[tokio::test]
async fn a_failed_write_loses_nothing() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("keys.json");
    let keys = Disk::open(&path).unwrap();
    let old = keys.generate("a", KeyType::EcP256).await.unwrap();
    let before = fs::read(&path).unwrap();
    // A folder stands where the temporary file would go.
    let obstacle = folder.path().join("keys.json.new");
    fs::create_dir(&obstacle).unwrap();
    for error in [keys.generate("a", KeyType::EcP256).await.err(), keys.remove("a").await.err()] {
        let text = error.unwrap().to_string();
        assert!(text.contains("keys.json: could not be written; the keys in it are unchanged"), "{text}");
    }
    assert_eq!(keys.key("a").await.unwrap().unwrap().public_key(), old.public_key());
    assert_eq!(fs::read(&path).unwrap(), before);
    fs::remove_dir(&obstacle).unwrap();
    let new = keys.generate("a", KeyType::EcP256).await.unwrap();
    assert_eq!(Disk::open(&path).unwrap().key("a").await.unwrap().unwrap().public_key(), new.public_key());
}

#[tokio::test]
async fn what_a_crash_leaves_behind_does_no_harm() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("keys.json");
    // Half a file, readable by all, and a link that points elsewhere: neither may be written into.
    let elsewhere = folder.path().join("elsewhere");
    fs::write(&elsewhere, "precious").unwrap();
    std::os::unix::fs::symlink(&elsewhere, folder.path().join("keys.json.new")).unwrap();
    let keys = Disk::open(&path).unwrap();
    keys.generate("a", KeyType::EcP256).await.unwrap();
    assert_eq!(fs::read(&elsewhere).unwrap(), b"precious");
    assert_eq!(mode(&path), 0o600);
    fs::write(folder.path().join("keys.json.new"), "{\"keys\":{\"half").unwrap();
    let keys = Disk::open(&path).unwrap();
    keys.generate("b", KeyType::EcP256).await.unwrap();
    assert_eq!(keys.ids().await.unwrap(), ["a", "b"]);
    assert_eq!(mode(&path), 0o600);
}

#[tokio::test]
async fn files_that_cannot_be_trusted_are_refused_and_left_alone() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("keys.json");
    let keys = Disk::open(&path).unwrap();
    keys.generate("a", KeyType::EcP256).await.unwrap();
    let good = fs::read(&path).unwrap();
    for open in [0o640, 0o604, 0o660, 0o622] {
        fs::set_permissions(&path, Permissions::from_mode(open)).unwrap();
        let text = refused(&path);
        assert!(text.contains("keys.json") && text.contains("chmod 0600"), "{text}");
    }
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    Disk::open(&path).unwrap();

    let text = String::from_utf8(good.clone()).unwrap();
    let encoded = text.split('"').nth(5).unwrap();
    for bad in [
        String::new(),
        "{}".to_owned(),
        "{\"keys\":[]}".to_owned(),
        text[..text.len() / 2].to_owned(),
        text.replace("\"keys\"", "\"key\""),
        text.replace(encoded, "!!!"),
        text.replace(encoded, "AAAA"),
        format!("{{\"keys\":{{\"a\":\"{encoded}\",\"a\":\"{encoded}\"}}}}"),
        format!("{{\"keys\":{{\"a\":{:?}}}}}", encoded.replace(&encoded[60..64], "AAAA")),
    ] {
        fs::write(&path, &bad).unwrap();
        let text = refused(&path);
        assert!(text.contains("keys.json") && text.contains("restore it from a backup"), "{text}");
        assert!(!text.contains(&encoded[..20]), "the key is printed: {text}");
        assert_eq!(fs::read(&path).unwrap(), bad.as_bytes(), "the file is left as it was");
    }
}
