//! Certificates, keys and CSRs that both servers get. Made once with `openssl`; the keys are gone.

use std::collections::HashMap;
use std::sync::LazyLock;

use data_encoding::BASE64;

macro_rules! fixtures {
    ($($name:literal),* $(,)?) => {
        static ALL: &[(&str, &[u8])] = &[$(($name, include_bytes!(concat!("fixtures/", $name, ".der")))),*];
    };
}

fixtures!(
    "csr-admin",
    "csr-agent",
    "csr-bad-dns",
    "csr-bad-signature",
    "csr-bare",
    "csr-dns",
    "csr-foreign",
    "csr-http",
    "csr-reserved",
    "csr-subject",
    "csr-td",
    "csr-trailing",
    "csr-two-uris",
    "csr-web",
    "csr-web-p384",
    "csr-web-rsa",
    "csr-web-rsa1024",
    "csr-wildcard",
    "csr-wildcard-ok",
    "key-p256",
    "key-p384",
    "key-rsa",
    "root-both",
    "root-one",
    "root-two",
);

/// As the JSON form of protobuf writes bytes.
pub(super) fn base64(name: &str) -> String {
    let (_, bytes) = ALL.iter().find(|(known, _)| *known == name).unwrap_or_else(|| panic!("no {name}"));
    BASE64.encode(bytes)
}

/// Which fixture this is.
pub(super) fn named(base64: &str) -> Option<&'static str> {
    static NAMES: LazyLock<HashMap<String, &'static str>> =
        LazyLock::new(|| ALL.iter().map(|(name, bytes)| (BASE64.encode(bytes), *name)).collect());
    NAMES.get(base64).copied()
}
