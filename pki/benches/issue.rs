//! What issuing costs beyond its two signatures.
//!
//! (a) bare: verify a P-256 CSR's signature and sign the bytes of a certificate, with nothing but the backend.
//! (b) full: CSR in, leaf certificate out, through the public interface.
//!
//! Slices of both alternate in one run on one thread and are measured in processor time, so that other work on the
//! machine does not favour one of them. The median ratio must be at least 0.85.
//! `BONAFIDE_BENCH_SECONDS` sets the length (default 2).

use std::hint::black_box;
use std::sync::Arc;

#[cfg(feature = "aws-lc")]
use aws_lc_rs as backend;
#[cfg(all(feature = "ring", not(feature = "aws-lc")))]
use ring as backend;

use backend::rand::SystemRandom as BackendRandom;
use backend::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, UnparsedPublicKey,
};
use bonafide_identity::{SpiffeId, Timestamp, TrustDomain};
use bonafide_pki::{
    CaSubject, KeyType, LeafProfile, PrivateKey, Signer as _, Subject, SystemRandom, VerifiedCsr, X509Issuer,
    agent_csr, random_serial, self_signed_ca,
};
use rustix::time::{ClockId, clock_gettime};

fn main() {
    let seconds: f64 =
        std::env::var("BONAFIDE_BENCH_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2.0);
    // `cargo test --benches` only wants to know that it runs.
    let seconds = if std::env::args().any(|argument| argument == "--test") { 0.1 } else { seconds };

    let bench = Bench::new();
    let (mut bare_rates, mut full_rates, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    let start = thread_seconds();
    while thread_seconds() - start < seconds || ratios.len() < 5 {
        let bare = rate(|| bench.bare());
        let full = rate(|| bench.full());
        bare_rates.push(bare);
        full_rates.push(full);
        ratios.push(full / bare);
    }
    let ratio = median(&mut ratios);
    println!("bare verify+sign: {:>8.0} per processor second", median(&mut bare_rates));
    println!("CSR to leaf:      {:>8.0} per processor second", median(&mut full_rates));
    println!("ratio:            {ratio:>8.3} (median of {} pairs, at least {LEAST_RATIO})", ratios.len());
    assert!(ratio >= LEAST_RATIO, "issuing costs too much beyond its signatures: {ratio:.3} < {LEAST_RATIO}");
}

struct Bench {
    issuer: X509Issuer,
    id: SpiffeId,
    csr: Vec<u8>,
    random: BackendRandom,
    signing_key: EcdsaKeyPair,
    /// The signed part of the CSR, its signature, and the key that made it.
    csr_signed: Vec<u8>,
    csr_signature: Vec<u8>,
    csr_key: Vec<u8>,
    /// The signed part of a certificate.
    certificate_signed: Vec<u8>,
}

impl Bench {
    fn new() -> Self {
        let trust_domain = TrustDomain::parse("bench.example").expect("valid");
        let id = SpiffeId::parse("spiffe://bench.example/ns/default/sa/web").expect("valid");
        let ca_key = PrivateKey::generate(KeyType::EcP256).expect("key");
        let pkcs8 = ca_key.expose_pkcs8();
        let random = BackendRandom::new();
        #[cfg(feature = "aws-lc")]
        let signing_key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &pkcs8).expect("key");
        #[cfg(all(feature = "ring", not(feature = "aws-lc")))]
        let signing_key =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &pkcs8, &random).expect("key");
        let (begin, end) =
            (Timestamp::from_unix_seconds(NOW - 10), Timestamp::from_unix_seconds(NOW + 86_400));
        let serial = random_serial(&SystemRandom);
        let ca =
            self_signed_ca(&ca_key, &trust_domain, &CaSubject::default(), begin, end, serial).expect("CA");
        let issuer = X509Issuer::new(&trust_domain, ca, Vec::new(), Arc::new(ca_key)).expect("issuer");
        let workload = PrivateKey::generate(KeyType::EcP256).expect("key");
        let csr = agent_csr(&workload, Some(&id)).expect("CSR");
        let csr_signed = first_element(&csr);
        let csr_signature = workload.sign(&csr_signed).expect("signature");
        let spki = workload.public_key().spki_der();
        let csr_key = spki[spki.len() - 65..].to_vec();
        let mut bench = Self {
            issuer,
            id,
            csr,
            random,
            signing_key,
            csr_signed,
            csr_signature,
            csr_key,
            certificate_signed: Vec::new(),
        };
        bench.certificate_signed = first_element(&bench.full());
        bench
    }

    fn bare(&self) -> Vec<u8> {
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &self.csr_key)
            .verify(&self.csr_signed, &self.csr_signature)
            .expect("the signature is right");
        let signature = self.signing_key.sign(&self.random, &self.certificate_signed).expect("signature");
        signature.as_ref().to_vec()
    }

    fn full(&self) -> Vec<u8> {
        let csr = VerifiedCsr::parse(&self.csr).expect("CSR");
        let profile = LeafProfile {
            spiffe_id: &self.id,
            dns_names: &[],
            subject: Subject::Default,
            public_key: &csr.public_key,
            not_before: Timestamp::from_unix_seconds(NOW - 10),
            not_after: Timestamp::from_unix_seconds(NOW + 3600),
            serial: random_serial(&SystemRandom),
        };
        self.issuer.issue(&profile).expect("leaf")
    }
}

/// The first element inside a DER sequence, both with two-byte lengths.
fn first_element(der: &[u8]) -> Vec<u8> {
    let at = |index: usize| usize::from(der[index]);
    let outer = if at(1) == 0x82 { 4 } else { 3 };
    let length = match at(outer + 1) {
        0x82 => 4 + (at(outer + 2) << 8) + at(outer + 3),
        0x81 => 3 + at(outer + 2),
        short => 2 + short,
    };
    der[outer..outer + length].to_vec()
}

fn rate(work: impl Fn() -> Vec<u8>) -> f64 {
    let start = thread_seconds();
    let mut count = 0_u32;
    loop {
        for _ in 0..32 {
            black_box(work());
        }
        count += 32;
        let spent = thread_seconds() - start;
        if spent >= SLICE_SECONDS {
            return f64::from(count) / spent;
        }
    }
}

fn thread_seconds() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

const LEAST_RATIO: f64 = 0.85;
const SLICE_SECONDS: f64 = 0.02;
const NOW: i64 = 1_800_000_000;
