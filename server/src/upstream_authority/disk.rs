//! An upstream authority whose certificate and key are files.
//!
//! The files are looked at on each use, of which the poll for roots is the most frequent, and read again when one of
//! them has changed, so an operator rotates the root by replacing files. A replacement that cannot work (wrong key, expired, chain without root) is refused
//! with the reason in the log, and what was read before goes on working: a half-copied file must not stop a
//! trust domain. What would be refused later by relying parties is found here, by verifying a certificate chain
//! signed for nobody with the same verifier that relying parties use.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bonafide_identity::{Bundle, Timestamp, TrustDomain, X509Authority, capped};
use bonafide_pki::{
    PrivateKey, Random, Signer, VerifiedCsr, X509Error, X509Issuer, inspect, pem, random_serial,
    x509::CaIssuer,
};

use super::{UpstreamAuthority, UpstreamCa, UpstreamError, prove_chain};

/// Where the files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskConfig {
    /// The trust domain that CA certificates are asked for.
    pub trust_domain: TrustDomain,
    /// PEM: the signing certificate, then the intermediates above it, without the root.
    pub cert_file_path: PathBuf,
    /// PEM: the key of the signing certificate, PKCS#8.
    pub key_file_path: PathBuf,
    /// PEM: the roots. Without it the signing certificate must be self-signed and is the root.
    pub bundle_file_path: Option<PathBuf>,
}

/// Signs with a key from a file.
pub struct Disk {
    config: DiskConfig,
    random: Arc<dyn Random>,
    state: Mutex<State>,
}

struct State {
    good: Arc<Loaded>,
    /// What the files looked like when `good` was read, or when what replaced it was refused.
    seen: Vec<Stamp>,
}

/// What is used of the files.
struct Loaded {
    issuer: CaIssuer,
    /// What follows the new CA certificate in its chain: the signing certificate and what is above it, no root.
    above: Vec<Vec<u8>>,
    roots: Vec<Vec<u8>>,
}

/// Enough of a file's metadata to notice that it was replaced or written to. The time of change (ctime) is part of
/// it because a copy that keeps the time of modification is common.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            inode: metadata.ino(),
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

impl Disk {
    /// Reads the files for the first time.
    ///
    /// # Errors
    /// A file cannot be read, or what they hold cannot sign for the trust domain; the text names the file.
    pub fn open(config: DiskConfig, random: Arc<dyn Random>, now: Timestamp) -> Result<Self, UpstreamError> {
        let seen = stamps(&config)?;
        let good = Arc::new(load(&config, now)?);
        Ok(Self { config, random, state: Mutex::new(State { good, seen }) })
    }

    /// The files as they are now, or as they were when they were last good.
    fn current(&self, now: Timestamp) -> Arc<Loaded> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match stamps(&self.config) {
            Ok(seen) if seen == state.seen => {}
            Ok(seen) => {
                match load(&self.config, now) {
                    Ok(loaded) => {
                        let certificate = self.config.cert_file_path.display();
                        tracing::info!(%certificate, "upstream authority read again");
                        state.good = Arc::new(loaded);
                    }
                    Err(error) => {
                        tracing::error!(%error, "changed files are refused; what was read before stays in use");
                    }
                }
                state.seen = seen;
            }
            Err(error) => tracing::error!(%error, "what was read before stays in use"),
        }
        Arc::clone(&state.good)
    }
}

#[async_trait::async_trait]
impl UpstreamAuthority for Disk {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn mint_ca(
        &self,
        csr: &[u8],
        preferred_ttl: Duration,
        now: Timestamp,
    ) -> Result<UpstreamCa, UpstreamError> {
        let loaded = self.current(now);
        let csr = VerifiedCsr::parse(csr).map_err(|error| refused(format!("malformed CSR: {error}")))?;
        let ttl = if preferred_ttl.is_zero() { DEFAULT_TTL } else { preferred_ttl };
        let lifetime = capped(ttl, now, loaded.issuer.not_after());
        if lifetime.is_over(now) {
            return Err(refused(format!(
                "the signing certificate in {} has expired; replace it",
                self.config.cert_file_path.display()
            )));
        }
        let certificate = loaded
            .issuer
            .sign_ca(&csr, lifetime.not_before, lifetime.not_after, &random_serial(&*self.random))
            .map_err(|error| refused(error.to_string()))?;
        let mut chain = vec![certificate];
        chain.extend(loaded.above.iter().cloned());
        Ok(UpstreamCa { chain, roots: loaded.roots.clone() })
    }

    async fn bundle(&self, now: Timestamp) -> Result<Option<Bundle>, UpstreamError> {
        let mut bundle = Bundle::empty(self.config.trust_domain.clone());
        let root = |der: &Vec<u8>| X509Authority { certificate: der.clone(), tainted: false };
        bundle.x509_authorities.extend(self.current(now).roots.iter().map(root));
        Ok(Some(bundle))
    }
}

fn stamps(config: &DiskConfig) -> Result<Vec<Stamp>, UpstreamError> {
    [Some(&config.cert_file_path), Some(&config.key_file_path), config.bundle_file_path.as_ref()]
        .into_iter()
        .flatten()
        .map(|path| fs::metadata(path).map(|m| Stamp::of(&m)).map_err(|error| unreadable(path, &error)))
        .collect()
}

fn load(config: &DiskConfig, now: Timestamp) -> Result<Loaded, UpstreamError> {
    let chain = certificates(&config.cert_file_path)?;
    let key = private_key(&config.key_file_path)?;
    let certificate_path = config.cert_file_path.display();
    let signing = inspect(&chain[0]).map_err(|error| refused(format!("{certificate_path}: {error}")))?;
    if !signing.is_ca {
        return Err(refused(format!("{certificate_path}: the first certificate is not a CA")));
    }
    if signing.not_after <= now {
        return Err(refused(format!("{certificate_path}: the first certificate has expired; replace it")));
    }
    if signing.public_key.as_ref() != Some(key.public_key()) {
        return Err(refused(format!(
            "{} does not hold the key of the first certificate in {certificate_path}",
            config.key_file_path.display()
        )));
    }
    let roots = match &config.bundle_file_path {
        Some(path) => certificates(path)?,
        None if chain.len() == 1 => chain.clone(),
        None => {
            return Err(refused(format!(
                "{certificate_path} holds {} certificates; with more than one, the roots go into the bundle file",
                chain.len()
            )));
        }
    };
    // Up to and without the first root: what lies above a trusted certificate is of no use to anybody.
    let above: Vec<_> =
        chain.iter().take_while(|certificate| !roots.contains(certificate)).cloned().collect();
    let key: Arc<dyn Signer> = Arc::new(key);
    let refused_as_issuer = |error: X509Error| refused(format!("{certificate_path}: {error}"));
    let trust_domain = &config.trust_domain;
    let issuer = CaIssuer::new(trust_domain, chain[0].clone(), above.clone(), Arc::clone(&key))
        .map_err(refused_as_issuer)?;
    let like_us = X509Issuer::new(trust_domain, chain[0].clone(), above.clone(), Arc::clone(&key))
        .map_err(refused_as_issuer)?;
    prove_chain(&like_us, key.public_key(), &roots, now).map_err(|reason| {
        let roots = config.bundle_file_path.as_ref().unwrap_or(&config.cert_file_path).display();
        refused(format!("{certificate_path} does not chain to a root in {roots}: {reason}"))
    })?;
    Ok(Loaded { issuer, above, roots })
}

/// At least one certificate.
fn certificates(path: &Path) -> Result<Vec<Vec<u8>>, UpstreamError> {
    let blocks = blocks(path)?;
    if let Some((label, _)) = blocks.iter().find(|(label, _)| label != "CERTIFICATE") {
        return Err(refused(format!("{}: holds a {label} where only certificates belong", path.display())));
    }
    if blocks.is_empty() {
        return Err(refused(format!("{}: holds no certificate", path.display())));
    }
    Ok(blocks.into_iter().map(|(_, der)| der).collect())
}

fn private_key(path: &Path) -> Result<PrivateKey, UpstreamError> {
    let blocks = blocks(path)?;
    match blocks.as_slice() {
        [(label, der)] if label == "PRIVATE KEY" => {
            PrivateKey::from_pkcs8_der(der).map_err(|error| refused(format!("{}: {error}", path.display())))
        }
        [(label, _)] => Err(refused(format!(
            "{}: holds a {label}; convert it with `openssl pkcs8 -topk8 -nocrypt`",
            path.display()
        ))),
        _ => Err(refused(format!("{}: must hold exactly one key", path.display()))),
    }
}

fn blocks(path: &Path) -> Result<Vec<(String, Vec<u8>)>, UpstreamError> {
    let text = fs::read(path).map_err(|error| unreadable(path, &error))?;
    pem::decode_all(&text).map_err(|error| refused(format!("{}: {error}", path.display())))
}

fn unreadable(path: &Path, error: &std::io::Error) -> UpstreamError {
    refused(format!("{} cannot be read: {error}", path.display()))
}

fn refused(reason: String) -> UpstreamError {
    UpstreamError { name: NAME, reason }
}

const NAME: &str = "disk";

/// Life of a CA certificate when the asker names none.
const DEFAULT_TTL: Duration = Duration::from_secs(3600);
