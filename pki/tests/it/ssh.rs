//! SSH keys and host certificates as OpenSSH makes them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bonafide_identity::Timestamp;
use bonafide_pki::ssh::{SshCertificate, SshError, SshPrivateKey, SshPublicKey, SshVerifyError};

/// Runs `ssh-keygen`; `None` when the machine has none.
fn keygen(folder: &Path, arguments: &[&str]) -> Option<()> {
    let mut command = Command::new("ssh-keygen");
    command.args(arguments).current_dir(folder).stdin(Stdio::null());
    match command.output() {
        Ok(output) => {
            assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
            Some(())
        }
        Err(_) => {
            println!("SKIPPED: ssh: ssh-keygen is not installed");
            None
        }
    }
}

fn certified(folder: &Path, kind: &[&str], sign: &[&str]) -> Option<(SshPrivateKey, SshCertificate)> {
    let name = format!("host{}", std::fs::read_dir(folder).unwrap().count());
    keygen(folder, &[&["-q", "-N", "", "-f", &name], kind].concat())?;
    keygen(folder, &[&["-q", "-s", "ca"], sign, &[&format!("{name}.pub")]].concat())?;
    let key = std::fs::read(folder.join(&name)).unwrap();
    let certificate = std::fs::read(folder.join(format!("{name}-cert.pub"))).unwrap();
    Some((SshPrivateKey::from_text(&key).unwrap(), SshCertificate::from_text(&certificate).unwrap()))
}

fn public(path: PathBuf) -> SshPublicKey {
    SshPublicKey::from_authorized_key(&std::fs::read_to_string(path).unwrap()).unwrap().unwrap()
}

fn at(text: &str) -> Timestamp {
    let format = time::format_description::well_known::Rfc3339;
    Timestamp::from_unix_seconds(time::OffsetDateTime::parse(text, &format).unwrap().unix_timestamp())
}

const HOST: [&str; 8] =
    ["-h", "-I", "rack-1", "-n", "a.example.org,b", "-V", "20260101000000Z:20260201000000Z", "-z7"];

#[test]
fn certificates_of_each_kind_of_key_are_read_verified_and_proven() {
    for (authority, host) in [
        (&["-t", "ed25519"][..], &["-t", "ed25519"][..]),
        (&["-t", "ecdsa", "-b", "256"], &["-t", "ecdsa", "-b", "384"]),
        (&["-t", "ecdsa", "-b", "384"], &["-t", "ecdsa", "-b", "256"]),
        (&["-t", "rsa", "-b", "2048"], &["-t", "rsa", "-b", "3072"]),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let ca = [&["-q", "-N", "", "-f", "ca"], authority].concat();
        if keygen(folder.path(), &ca).is_none() {
            return;
        }
        let (key, certificate) = certified(folder.path(), host, &HOST).unwrap();
        assert_eq!(certificate.principals, ["a.example.org", "b"]);
        assert_eq!((certificate.key_id.as_str(), certificate.serial), ("rack-1", 7));
        assert_eq!(certificate.key, key.public_key());
        let authority = public(folder.path().join("ca.pub"));
        let verify = |time| certificate.verify_host(std::slice::from_ref(&authority), at(time));
        verify("2026-01-15T00:00:00Z").unwrap();
        verify("2026-01-01T00:00:00Z").unwrap();
        assert_eq!(verify("2025-12-31T23:59:59Z"), Err(SshVerifyError::NotYetValid));
        assert_eq!(verify("2026-02-01T00:00:00Z"), Err(SshVerifyError::Expired));
        assert!(matches!(
            certificate.verify_host(&[key.public_key()], at("2026-01-15T00:00:00Z")),
            Err(SshVerifyError::UnknownAuthority(_))
        ));

        // With an ECDSA authority a second form of the signature is as good, and is found from either.
        let twin = certificate.twin();
        assert_eq!(twin.is_some(), authority.name().starts_with("ecdsa-"));
        if let Some(twin) = twin {
            twin.verify_host(std::slice::from_ref(&authority), at("2026-01-15T00:00:00Z")).unwrap();
            assert_ne!(twin.fingerprint(), certificate.fingerprint());
            assert_eq!(twin.twin().unwrap(), certificate);
        }

        // Whatever byte of it is another, it is refused or it is not what was signed.
        let wire = certificate.wire();
        for position in 0..wire.len() {
            let mut changed = wire.to_vec();
            changed[position] ^= 1;
            if let Ok(changed) = SshCertificate::parse(&changed) {
                let verdict =
                    changed.verify_host(std::slice::from_ref(&authority), at("2026-01-15T00:00:00Z"));
                assert!(verdict.is_err(), "byte {position}");
            }
            assert!(SshCertificate::parse(&wire[..position]).is_err());
        }

        let signature = key.sign(b"message").unwrap();
        assert!(certificate.key.verify(b"message", &signature, false));
        assert!(!certificate.key.verify(b"massage", &signature, true));
        assert!(!authority.verify(b"message", &signature, true));
        let mut other = signature.clone();
        other.format = "ssh-rsa".to_owned();
        assert!(!certificate.key.verify(b"message", &other, true));
    }
}

#[test]
fn what_does_not_make_a_host_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    if keygen(folder.path(), &["-q", "-N", "", "-f", "ca", "-t", "ed25519"]).is_none() {
        return;
    }
    let authority = [public(folder.path().join("ca.pub"))];
    let ed25519 = &["-t", "ed25519"][..];
    let now = at("2026-01-15T00:00:00Z");
    let verdict =
        |sign: &[&str]| certified(folder.path(), ed25519, sign).unwrap().1.verify_host(&authority, now);
    assert_eq!(verdict(&["-I", "u", "-n", "root"]), Err(SshVerifyError::NotHost(1)));
    assert_eq!(verdict(&["-h", "-I", "h"]), Err(SshVerifyError::NoPrincipals));
    assert_eq!(verdict(&["-h", "-I", "h", "-n", "h", "-V", "always:forever"]), Ok(()));
    let option = ["-h", "-I", "h", "-n", "h", "-O", "critical:colour=red"];
    assert_eq!(verdict(&option), Err(SshVerifyError::CriticalOption("colour".to_owned())));

    // What the authority's key file holds.
    let line = std::fs::read_to_string(folder.path().join("ca.pub")).unwrap();
    let parse = SshPublicKey::from_authorized_key;
    assert!(parse(&format!("cert-authority {line}")).unwrap().is_some());
    assert_eq!(parse("  # comment").unwrap(), None);
    assert!(matches!(parse(&format!("from=\"10.0.0.1\" {line}")), Err(SshError::Options)));
    assert!(matches!(parse("ssh-dss AAAA"), Err(SshError::Unsupported(_))));
    assert!(matches!(parse("ssh-ed25519"), Err(SshError::Malformed(_))));
    assert!(matches!(parse(&line.replace("ssh-ed25519", "ssh-rsa")), Err(SshError::Malformed(_))));
    assert!(matches!(SshCertificate::from_text(line.as_bytes()), Err(SshError::NotCertificate)));

    // Keys that cannot be used.
    keygen(folder.path(), &["-q", "-N", "secret", "-f", "locked", "-t", "ed25519"]).unwrap();
    let locked = std::fs::read(folder.path().join("locked")).unwrap();
    assert!(matches!(SshPrivateKey::from_text(&locked), Err(SshError::Encrypted)));
    keygen(folder.path(), &["-q", "-N", "", "-f", "large", "-t", "ecdsa", "-b", "521"]).unwrap();
    let large = std::fs::read(folder.path().join("large")).unwrap();
    assert!(matches!(SshPrivateKey::from_text(&large), Err(SshError::Unsupported(_))));
    keygen(folder.path(), &["-q", "-N", "", "-f", "old", "-t", "rsa", "-b", "2048", "-m", "PEM"]).unwrap();
    let old = SshPrivateKey::from_text(&std::fs::read(folder.path().join("old")).unwrap()).unwrap();
    assert_eq!(old.public_key(), public(folder.path().join("old.pub")));
    assert!(!format!("{old:?}").contains("Zeroizing"));
}
