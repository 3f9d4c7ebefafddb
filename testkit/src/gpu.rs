//! GPUs that do not exist: a device PKI of the shape of NVIDIA's, and reports that its devices sign.

use bonafide_identity::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SigningKey as _,
};
use time::OffsetDateTime;

/// A kind of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GpuKind {
    /// GH100.
    Hopper,
    /// GB100.
    Blackwell,
    /// LS10.
    Switch,
}

/// The authorities above devices: a root, one for each kind, one for a site of production.
pub struct GpuAuthority {
    root: (CertificateParams, KeyPair, Vec<u8>),
}

/// A device with its certificates.
pub struct TestGpu {
    kind: GpuKind,
    /// DER certificates, leaf first, root last.
    pub chain: Vec<Vec<u8>>,
    /// The identifier in its certificate.
    pub pdi: [u8; 8],
    /// The identifier of the firmware in its leaf.
    pub firmware_id: [u8; 48],
    key: KeyPair,
}

/// A report before it is signed. Change what should be wrong.
#[derive(Clone, Debug)]
pub struct GpuReport {
    /// The nonce of the request.
    pub nonce: [u8; 32],
    /// The measurements, from index 0 of reference values.
    pub measurements: Vec<[u8; 48]>,
    /// The vendor's fields.
    pub fields: Vec<(u16, Vec<u8>)>,
}

impl GpuAuthority {
    /// With certificates that never end.
    pub fn new() -> Self {
        let key = key();
        let params = authority("NVIDIA Device Identity CA");
        let certificate = params.self_signed(&key).expect("rcgen signs with its own key").der().to_vec();
        Self { root: (params, key, certificate) }
    }

    /// The root, DER.
    pub fn root(&self) -> &[u8] {
        &self.root.2
    }

    /// A device; `number` is its identifier.
    pub fn device(&self, kind: GpuKind, number: u64) -> TestGpu {
        self.device_with(kind, number, |_| {})
    }

    /// A device whose leaf certificate was changed, maybe for the worse.
    pub fn device_with(
        &self,
        kind: GpuKind,
        number: u64,
        change: impl FnOnce(&mut CertificateParams),
    ) -> TestGpu {
        let (prefix, chip) = match kind {
            GpuKind::Hopper => ("41", "GH100"),
            GpuKind::Blackwell => ("41", "GB100"),
            GpuKind::Switch => ("50", "LS_10"),
        };
        let root = Issuer::new(self.root.0.clone(), &self.root.1);
        let (identity_key, provisioner_key, device_key, leaf_key) = (key(), key(), key(), key());
        let identity = authority(&format!("NVIDIA {chip} Identity"));
        let provisioner = authority(&format!("NVIDIA {chip} Provisioner ICA 1"));
        let mut device = authority(&format!("{chip} A01 GSP BROM"));
        device
            .distinguished_name
            .push(DnType::CustomDnType(vec![2, 5, 4, 5]), format!("{prefix}{number:016X}"));
        let firmware_id = [0x5a; 48];

        let mut leaf = CertificateParams::default();
        leaf.not_before = date(START);
        leaf.not_after = date(END);
        leaf.distinguished_name = name(&format!("{chip} A01 GSP FMC LF"));
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.custom_extensions = vec![match kind {
            GpuKind::Blackwell => tcb_info(&[firmware_id, [0; 48]]),
            _ => device_id(&firmware_id),
        }];
        change(&mut leaf);

        let der = |certificate: rcgen::Certificate| certificate.der().to_vec();
        let signs = "rcgen signs with its own key";
        let identity_der = der(identity.signed_by(&identity_key, &root).expect(signs));
        let identity = Issuer::new(identity, identity_key);
        let provisioner_der = der(provisioner.signed_by(&provisioner_key, &identity).expect(signs));
        let provisioner = Issuer::new(provisioner, provisioner_key);
        let device_der = der(device.signed_by(&device_key, &provisioner).expect(signs));
        let device = Issuer::new(device, device_key);
        let leaf_der = der(leaf.signed_by(&leaf_key, &device).expect(signs));
        TestGpu {
            kind,
            chain: vec![leaf_der, device_der, provisioner_der, identity_der, self.root.2.clone()],
            pdi: number.to_be_bytes(),
            firmware_id,
            key: leaf_key,
        }
    }
}

impl Default for GpuAuthority {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for GpuAuthority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("GpuAuthority")
    }
}

impl std::fmt::Debug for TestGpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TestGpu").field("kind", &self.kind).field("pdi", &self.pdi).finish_non_exhaustive()
    }
}

impl TestGpu {
    /// A good report: each measurement is its index 48 times.
    pub fn report(&self, nonce: &[u8; 32]) -> GpuReport {
        let count = if self.kind == GpuKind::Switch { 31 } else { 64 };
        let version = |text: &str| [text.as_bytes(), &[0]].concat();
        let fields = match self.kind {
            GpuKind::Switch => {
                vec![(6, b"96.10.55.00.01".to_vec()), (22, self.pdi.to_vec()), (26, vec![0; 128])]
            }
            kind => {
                let chip: u64 = if kind == GpuKind::Hopper { 0x180 } else { 0x1a0 };
                vec![
                    (3, version("590.12")),
                    (4, chip.to_le_bytes().to_vec()),
                    // 96.00.9F.00.01
                    (6, 0x0000_0001_9600_9f00_u64.to_le_bytes().to_vec()),
                    (11, vec![0xaa]),
                    (20, self.firmware_id.to_vec()),
                    (21, vec![0x55]),
                    (36, vec![0, 0]),
                    (999, b"not known to anybody".to_vec()),
                ]
            }
        };
        let measurements = (0..count).map(|index| [index; 48]).collect();
        GpuReport { nonce: *nonce, measurements, fields }
    }

    /// The bytes of a report with the device's signature.
    pub fn sign(&self, report: &GpuReport) -> Vec<u8> {
        let mut bytes = vec![0x11, 0xe0, 0x01, 0xff];
        bytes.extend(report.nonce);
        bytes.extend([0, 0x11, 0x60, 0, 0]);
        let mut record = Vec::new();
        for (index, value) in (1_u8..).zip(&report.measurements) {
            record.extend([index, 1, 51, 0, 1, 48, 0]);
            record.extend(value);
        }
        bytes.push(u8::try_from(report.measurements.len()).expect("a report has few measurements"));
        let length = u32::try_from(record.len()).expect("a report is small");
        bytes.extend(&length.to_le_bytes()[..3]);
        bytes.extend(record);
        bytes.extend([0x77; 32]);
        let mut opaque = Vec::new();
        for (kind, value) in &report.fields {
            opaque.extend(kind.to_le_bytes());
            opaque.extend(u16::try_from(value.len()).expect("a field is small").to_le_bytes());
            opaque.extend(value);
        }
        bytes.extend(u16::try_from(opaque.len()).expect("fields are small").to_le_bytes());
        bytes.extend(opaque);
        let signature = self.sign_bytes(&bytes);
        bytes.extend(signature);
        bytes
    }

    /// An ECDSA signature with SHA-384 by the key of the leaf, as r and s of 48 bytes.
    pub fn sign_bytes(&self, bytes: &[u8]) -> Vec<u8> {
        fixed(&self.key.sign(bytes).expect("rcgen signs with its own key"))
    }
}

impl GpuReport {
    /// The value of a field, to be changed; it is made when there is none.
    pub fn field(&mut self, kind: u16) -> &mut Vec<u8> {
        let at = self.fields.iter().position(|(known, _)| *known == kind);
        let at = at.unwrap_or_else(|| {
            self.fields.push((kind, Vec::new()));
            self.fields.len() - 1
        });
        &mut self.fields[at].1
    }

    /// Leaves a field out.
    pub fn without(mut self, kind: u16) -> Self {
        self.fields.retain(|(known, _)| *known != kind);
        self
    }
}

/// The DICE extension of Hopper.
pub fn device_id(firmware_id: &[u8; 48]) -> CustomExtension {
    let key = element(0x30, &[]);
    let content = element(0x30, &[element(0x02, &[1]), key, fwid(firmware_id)].concat());
    CustomExtension::from_oid_content(&[2, 23, 133, 5, 4, 1], content)
}

/// The DICE extension of Blackwell.
pub fn tcb_info(firmware_ids: &[[u8; 48]]) -> CustomExtension {
    let ids: Vec<u8> = firmware_ids.iter().flat_map(fwid).collect();
    let content =
        [element(0x80, b"NVIDIA"), element(0x83, &[1]), element(0xa6, &ids), element(0x87, &[0; 5])];
    CustomExtension::from_oid_content(&[2, 23, 133, 5, 4, 1, 1], element(0x30, &content.concat()))
}

fn fwid(firmware_id: &[u8; 48]) -> Vec<u8> {
    const SHA384: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02];
    element(0x30, &[element(0x06, SHA384), element(0x04, firmware_id)].concat())
}

fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = u8::try_from(content.len()).expect("the elements of tests are small");
    let head = if length < 0x80 { vec![tag, length] } else { vec![tag, 0x81, length] };
    [head, content.to_vec()].concat()
}

/// r and s, 48 bytes each, out of a DER signature.
fn fixed(signature: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    // SEQUENCE with a short length: the two numbers have at most 49 bytes each.
    let mut rest = &signature[2..];
    for _ in 0..2 {
        let length = usize::from(rest[1]);
        let number = &rest[2..2 + length];
        let number = number.strip_prefix(&[0]).unwrap_or(number);
        out.extend(vec![0; 48 - number.len()]);
        out.extend(number);
        rest = &rest[2 + length..];
    }
    out
}

fn key() -> KeyPair {
    KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).expect("the backend makes P-384 keys")
}

fn authority(common_name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = date(START);
    params.not_after = date(END);
    params.distinguished_name = name(common_name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

fn name(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "NVIDIA Corporation");
    name.push(DnType::CommonName, common_name);
    name
}

fn date(at: Timestamp) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(at.unix_seconds()).expect("the dates of devices are fixed")
}

const START: Timestamp = Timestamp::from_unix_seconds(1_602_892_800);
const END: Timestamp = Timestamp::from_unix_seconds(253_402_300_799);
