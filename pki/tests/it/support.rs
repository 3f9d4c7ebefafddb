//! Keys, authorities and other people's tools for the tests.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock};

use bonafide_identity::{SerialNumber, SpiffeId, Timestamp, TrustDomain};
use bonafide_pki::{
    CaSubject, KeyType, LeafProfile, PrivateKey, PublicKey, Signer, Subject, SystemRandom, X509Issuer,
    random_serial, self_signed_ca,
};
use tempfile::TempDir;

/// The moment of all tests: 2027-01-15.
pub(crate) const NOW: i64 = 1_800_000_000;

pub(crate) fn at(offset: i64) -> Timestamp {
    Timestamp::from_unix_seconds(NOW + offset)
}

pub(crate) fn domain() -> TrustDomain {
    TrustDomain::parse("example.org").unwrap()
}

pub(crate) fn id(text: &str) -> SpiffeId {
    SpiffeId::parse(text).unwrap()
}

pub(crate) fn web() -> SpiffeId {
    id("spiffe://example.org/ns/default/sa/web")
}

pub(crate) fn serial() -> SerialNumber {
    random_serial(&SystemRandom)
}

/// One key of each kind for authorities and one for leaves, made once: RSA takes its time.
pub(crate) fn key(kind: KeyType, role: Role) -> Arc<PrivateKey> {
    static KEYS: [[OnceLock<Arc<PrivateKey>>; 2]; 4] = [const { [const { OnceLock::new() }; 2] }; 4];
    KEYS[kind as usize][role as usize].get_or_init(|| Arc::new(PrivateKey::generate(kind).unwrap())).clone()
}

#[derive(Clone, Copy)]
pub(crate) enum Role {
    Authority,
    Leaf,
}

/// A self-signed authority that lives for a day.
pub(crate) fn authority(kind: KeyType) -> X509Issuer {
    authority_of(&domain(), key(kind, Role::Authority))
}

pub(crate) fn authority_of(trust_domain: &TrustDomain, key: Arc<PrivateKey>) -> X509Issuer {
    let certificate =
        self_signed_ca(&*key, trust_domain, &CaSubject::default(), at(-10), at(86_400), serial()).unwrap();
    X509Issuer::new(trust_domain, certificate, Vec::new(), key).unwrap()
}

/// An ordinary leaf for an hour.
pub(crate) fn profile<'a>(spiffe_id: &'a SpiffeId, public_key: &'a PublicKey) -> LeafProfile<'a> {
    LeafProfile {
        spiffe_id,
        dns_names: &[],
        subject: Subject::Default,
        public_key,
        not_before: at(-10),
        not_after: at(3600),
        serial: serial(),
    }
}

pub(crate) fn leaf(issuer: &X509Issuer, spiffe_id: &SpiffeId, key: &dyn Signer) -> Vec<u8> {
    issuer.issue(&profile(spiffe_id, key.public_key())).unwrap()
}

/// OpenSSL in a folder of its own.
pub(crate) struct OpenSsl {
    folder: TempDir,
}

impl OpenSsl {
    /// Says that the test is skipped when OpenSSL is not installed.
    pub(crate) fn find(test: &str) -> Option<Self> {
        let found =
            Command::new("openssl").arg("version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if found.is_ok_and(|status| status.success()) {
            return Some(Self { folder: tempfile::tempdir().unwrap() });
        }
        eprintln!("SKIPPED: {test}: openssl is not installed");
        None
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.path(name), content).unwrap();
    }

    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    pub(crate) fn write_certificate(&self, name: &str, der: &[u8]) {
        self.write(name, bonafide_pki::pem::encode("CERTIFICATE", der));
    }

    /// Runs a command line (words separated by spaces, `'` for words with spaces); gives success and all output.
    pub(crate) fn run(&self, line: &str) -> (bool, String) {
        let words = line
            .split('\'')
            .enumerate()
            .flat_map(|(at, part)| if at % 2 == 1 { vec![part] } else { part.split_whitespace().collect() });
        let output = Command::new("openssl")
            .args(words)
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    }

    /// As [`Self::run`], and it must succeed.
    pub(crate) fn must(&self, line: &str) -> String {
        let (success, text) = self.run(line);
        assert!(success, "openssl {line}:\n{text}");
        text
    }

    /// A CSR with a fresh key: `key` as for `genpkey`, `more` as for `req`.
    pub(crate) fn csr(&self, key: &str, more: &str) -> Vec<u8> {
        self.must(&format!("genpkey {key} -out csr-key.pem"));
        self.must(&format!("req -new -key csr-key.pem -outform DER -out made.csr {more}"));
        self.read("made.csr")
    }

    /// A self-signed P-256 CA with a configuration section of extensions; gives its certificate and key.
    pub(crate) fn ca(&self, subject: &str, extensions: &str) -> (Vec<u8>, Arc<PrivateKey>) {
        self.write(
            "ca.conf",
            format!(
                "[req]\ndistinguished_name=dn\nprompt=no\nstring_mask=default\n[dn]\n[ext]\n{extensions}\n"
            ),
        );
        self.must("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out made-ca-key.pem");
        self.must(&format!(
            "req -x509 -new -key made-ca-key.pem -config ca.conf -extensions ext -days 36500 -outform DER -out made-ca.der \
             -subj '{subject}'"
        ));
        let key = PrivateKey::from_pem(&self.read("made-ca-key.pem")).unwrap();
        (self.read("made-ca.der"), Arc::new(key))
    }
}

pub(crate) const P256: &str = "-algorithm EC -pkeyopt ec_paramgen_curve:P-256";
pub(crate) const P384: &str = "-algorithm EC -pkeyopt ec_paramgen_curve:P-384";
pub(crate) const RSA_2048: &str = "-algorithm RSA -pkeyopt rsa_keygen_bits:2048";
