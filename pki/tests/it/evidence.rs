//! Evidence of devices that do not exist, and of real ones where a folder with their reports is named.

use std::collections::BTreeMap;
use std::path::Path;

use bonafide_identity::Timestamp;
use bonafide_pki::evidence::{
    Architecture, Compared, DeviceEvidence, EvidenceError, Feature, MAX_DEVICES, Measurements, Policy,
    Reference, ReferenceError, ReferenceKind, References, Report, VerifiedDevice, device_nonce, rim,
    verify_device, verify_node,
};
use bonafide_pki::{TrustRoots, VerifyError, inspect, pem};
use bonafide_testkit::{GpuAuthority, GpuKind, GpuReport, TestGpu, device_id, tcb_info};

use crate::support::at;

const NONCE: [u8; 32] = [0xc3; 32];

struct World {
    authority: GpuAuthority,
    roots: TrustRoots,
    references: References,
}

impl World {
    fn new() -> Self {
        let authority = GpuAuthority::new();
        let roots = TrustRoots::from_der([authority.root()]).unwrap();
        Self { authority, roots, references: References::new() }
    }

    fn policy(&self) -> Policy<'_> {
        Policy {
            roots: &self.roots,
            references: &self.references,
            measurements: Measurements::Preferred,
            now: at(0),
        }
    }

    fn verify(&self, evidence: &DeviceEvidence) -> Result<VerifiedDevice, EvidenceError> {
        verify_device(evidence, &NONCE, &self.policy())
    }

    /// What is said of a report that was changed before it was signed.
    fn changed(
        &self,
        gpu: &TestGpu,
        change: impl FnOnce(&mut GpuReport),
    ) -> Result<VerifiedDevice, EvidenceError> {
        let mut report = gpu.report(&NONCE);
        change(&mut report);
        self.verify(&DeviceEvidence { report: gpu.sign(&report), chain: gpu.chain.clone() })
    }
}

fn evidence(gpu: &TestGpu, nonce: &[u8; 32]) -> DeviceEvidence {
    DeviceEvidence { report: gpu.sign(&gpu.report(nonce)), chain: gpu.chain.clone() }
}

fn reference(kind: ReferenceKind, version: &str, indexes: impl IntoIterator<Item = u8>) -> Reference {
    let value = |index: u8| format!("{index:02x}").repeat(48);
    Reference {
        kind,
        product: "GH100".to_owned(),
        version: version.to_owned(),
        tag_id: "t".to_owned(),
        signer: "CN=s".to_owned(),
        signer_expires: 0,
        values: indexes.into_iter().map(|index| (index, vec!["ff".repeat(48), value(index)])).collect(),
    }
}

#[test]
fn devices_of_each_kind_are_recognised() {
    let world = World::new();
    for (kind, architecture, driver, firmware) in [
        (GpuKind::Hopper, Architecture::Hopper, Some("590.12"), "96.00.9F.00.01"),
        (GpuKind::Blackwell, Architecture::Blackwell, Some("590.12"), "96.00.9F.00.01"),
        (GpuKind::Switch, Architecture::Switch, None, "96.10.55.00.01"),
    ] {
        let gpu = world.authority.device(kind, 0x431d_480f_e5e8_7274);
        let verified = world.verify(&evidence(&gpu, &NONCE)).unwrap();
        assert_eq!(verified.architecture, architecture);
        assert_eq!(verified.driver_version.as_deref(), driver);
        assert_eq!(verified.firmware_version, firmware);
        assert_eq!(verified.pdi, 0x431d_480f_e5e8_7274_u64.to_be_bytes());
        assert_eq!(verified.feature, (kind != GpuKind::Switch).then_some(Feature::Single));
        assert_eq!(verified.firmware, Compared::NoReference);
        // The root need not be sent.
        let mut short = evidence(&gpu, &NONCE);
        short.chain.pop();
        assert_eq!(world.verify(&short).unwrap(), verified);
    }
}

/// All of them: a report has about 32,000 bits. That the signature is over other bytes then is looked at for each; it is
/// verified for one bit of each byte, and for all with `BONAFIDE_TEST_BIT_FLIPS=all`.
#[test]
fn no_bit_of_what_was_signed_can_be_changed() {
    let world = World::new();
    let gpu = world.authority.device(GpuKind::Hopper, 1);
    let good = evidence(&gpu, &NONCE);
    let key = inspect(&good.chain[0]).unwrap().public_key.unwrap();
    let signed = good.report.len() - 96;
    let all = std::env::var("BONAFIDE_TEST_BIT_FLIPS").is_ok_and(|value| value == "all");
    let unchanged = &good.report[..signed];
    let accepts = |bytes: &[u8], verify: bool| {
        Report::parse(bytes).is_ok_and(|report| {
            report.nonce() == &NONCE
                && report.signed_bytes().len() == signed
                && (report.signed_bytes() == unchanged || verify)
                && (!verify || report.is_signed_by(&key))
        })
    };
    assert!(accepts(&good.report, true));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for first in 0..threads {
            let (good, accepts) = (&good, &accepts);
            scope.spawn(move || {
                let mut report = good.report.clone();
                for bit in (first..report.len() * 8).step_by(threads) {
                    report[bit / 8] ^= 1 << (bit % 8);
                    let of_the_signature = bit / 8 >= signed;
                    let verify = all || of_the_signature || bit / 8 % 8 == bit % 8;
                    assert!(!accepts(&report, verify), "bit {bit} can be changed");
                    report[bit / 8] ^= 1 << (bit % 8);
                }
            });
        }
    });
    assert!(signed * 8 > 29_000, "{signed} bytes are signed");
    // The whole verification uses no other decision.
    for bit in (0..good.report.len() * 8).step_by(997) {
        let mut changed = good.clone();
        changed.report[bit / 8] ^= 1 << (bit % 8);
        world.verify(&changed).unwrap_err();
    }
}

#[test]
fn a_report_of_any_other_length_is_refused() {
    let world = World::new();
    let gpu = world.authority.device(GpuKind::Hopper, 1);
    let good = evidence(&gpu, &NONCE);
    for length in 0..good.report.len() {
        assert!(Report::parse(&good.report[..length]).is_err(), "{length}");
    }
    for more in [1, 96, 5000] {
        let longer = [&good.report[..], &vec![0; more]].concat();
        assert!(Report::parse(&longer).is_err(), "{more} more");
    }
}

#[test]
fn the_nonce_binds_time_agent_and_device() {
    let world = World::new();
    let gpu = world.authority.device(GpuKind::Hopper, 1);
    let (challenge, other) = ([1; 32], [2; 32]);
    let nonce = device_nonce(&challenge, b"agent", 0);
    let shown = evidence(&gpu, &nonce);
    assert!(verify_device(&shown, &nonce, &world.policy()).is_ok());
    for foreign in [
        device_nonce(&other, b"agent", 0),
        device_nonce(&challenge, b"another agent", 0),
        device_nonce(&challenge, b"agent", 1),
    ] {
        assert_eq!(verify_device(&shown, &foreign, &world.policy()), Err(EvidenceError::Nonce));
    }
}

#[test]
fn chains_that_do_not_lead_to_the_root_or_hold_more_are_refused() {
    let world = World::new();
    let gpu = world.authority.device(GpuKind::Hopper, 1);
    let other = world.authority.device(GpuKind::Hopper, 2);
    let good = evidence(&gpu, &NONCE);
    let with = |chain: Vec<Vec<u8>>| world.verify(&DeviceEvidence { report: good.report.clone(), chain });

    let foreign = GpuAuthority::new().device(GpuKind::Hopper, 1);
    let refused = world.verify(&evidence(&foreign, &NONCE));
    assert!(matches!(refused, Err(EvidenceError::Chain(_))), "{refused:?}");
    assert_eq!(with(Vec::new()), Err(EvidenceError::Chain(VerifyError::Empty)));
    // The leaf of another device, with its own chain and below this one's.
    assert_eq!(with(other.chain.clone()), Err(EvidenceError::Signature));
    let mut swapped = good.chain.clone();
    swapped[0].clone_from(&other.chain[0]);
    assert!(matches!(with(swapped), Err(EvidenceError::Chain(_))));
    // The device's own certificate in place of the leaf.
    assert!(matches!(with(good.chain[1..].to_vec()), Err(EvidenceError::Chain(_))));
    // Something that is not on the path; another order; one missing; one twice; bytes behind; cut at each length.
    let mut surplus = good.chain.clone();
    surplus.push(other.chain[1].clone());
    assert!(matches!(with(surplus), Err(EvidenceError::Certificate(_))));
    let mut turned = good.chain.clone();
    turned.swap(1, 2);
    assert!(matches!(with(turned), Err(EvidenceError::Certificate(_))));
    for missing in 1..4 {
        let mut chain = good.chain.clone();
        chain.remove(missing);
        assert!(matches!(with(chain), Err(EvidenceError::Chain(_))), "{missing}");
    }
    let mut twice = good.chain.clone();
    twice.insert(1, good.chain[1].clone());
    assert!(with(twice).is_err());
    assert!(with(vec![good.chain[0].clone(); 40]).is_err());
    for at in 0..good.chain.len() - 1 {
        let mut longer = good.chain.clone();
        longer[at].push(0);
        assert!(with(longer).is_err(), "certificate {at}");
    }
    for length in 0..good.chain[0].len() {
        let mut cut = good.chain.clone();
        cut[0].truncate(length);
        assert!(with(cut).is_err(), "{length}");
    }
    let policy = Policy { now: Timestamp::from_unix_seconds(1_500_000_000), ..world.policy() };
    let early = verify_device(&good, &NONCE, &policy);
    assert_eq!(early, Err(EvidenceError::Chain(VerifyError::NotYetValid)));
}

#[test]
fn the_firmware_of_certificate_and_report_are_one() {
    let world = World::new();
    let hopper = world.authority.device(GpuKind::Hopper, 1);
    let blackwell = world.authority.device(GpuKind::Blackwell, 1);
    assert_eq!(world.changed(&hopper, |report| report.field(20)[47] ^= 1), Err(EvidenceError::Firmware));
    assert_eq!(world.changed(&hopper, |report| report.field(20).clear()), Err(EvidenceError::Firmware));
    // Older drivers do not repeat it; those of Blackwell do.
    assert!(world.changed(&hopper, |report| *report = report.clone().without(20)).is_ok());
    let silent = world.changed(&blackwell, |report| *report = report.clone().without(20));
    assert_eq!(silent, Err(EvidenceError::Firmware));

    // Of several identifiers in a TcbInfo the first counts.
    let id = [0x5a; 48];
    let leaf = |change: &dyn Fn() -> Vec<rcgen::CustomExtension>| {
        let gpu =
            world.authority.device_with(GpuKind::Blackwell, 1, |leaf| leaf.custom_extensions = change());
        world.verify(&evidence(&gpu, &NONCE)).map(drop)
    };
    assert_eq!(leaf(&|| vec![tcb_info(&[id])]), Ok(()));
    assert_eq!(leaf(&|| vec![tcb_info(&[[0; 48], id])]), Err(EvidenceError::Firmware));
    assert_eq!(leaf(&Vec::new), Err(EvidenceError::Firmware));
    for odd in [
        vec![tcb_info(&[])],
        vec![tcb_info(&[id]), device_id(&id)],
        vec![rcgen::CustomExtension::from_oid_content(&[2, 23, 133, 5, 4, 1, 1], vec![0x30, 0x80])],
        vec![rcgen::CustomExtension::from_oid_content(&[2, 23, 133, 5, 4, 1, 1], b"\x30\x00\x00".to_vec())],
        vec![rcgen::CustomExtension::from_oid_content(&[2, 23, 133, 5, 4, 1], b"\x30\x02\x30\x00".to_vec())],
    ] {
        let refused = leaf(&|| odd.clone());
        assert!(matches!(refused, Err(EvidenceError::Certificate(_))), "{refused:?}");
    }
}

#[test]
fn leaves_of_other_kinds_are_refused() {
    use rcgen::{BasicConstraints, DistinguishedName, DnType, IsCa, KeyUsagePurpose};
    let world = World::new();
    let named = |name: &str| {
        let mut subject = DistinguishedName::new();
        subject.push(DnType::CommonName, name);
        subject
    };
    let leaf = |change: &dyn Fn(&mut rcgen::CertificateParams)| {
        let gpu = world.authority.device_with(GpuKind::Hopper, 1, change);
        world.verify(&evidence(&gpu, &NONCE)).unwrap_err()
    };
    for name in ["GB100 A01 GSP FMC LF", "GH100 A01 GSP BROM", "GH999 A01 GSP FMC LF", ""] {
        let refused = leaf(&|params| params.distinguished_name = named(name));
        assert!(matches!(refused, EvidenceError::Certificate(_)), "{name}: {refused}");
    }
    let refused = leaf(&|params| params.key_usages = vec![KeyUsagePurpose::KeyAgreement]);
    assert!(matches!(refused, EvidenceError::Certificate(_)), "{refused}");
    let refused = leaf(&|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
    assert!(matches!(refused, EvidenceError::Chain(_)), "{refused}");
    // A critical extension that nobody knows.
    let refused = leaf(&|params| {
        let mut unknown = rcgen::CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0]);
        unknown.set_criticality(true);
        params.custom_extensions.push(unknown);
    });
    assert!(matches!(refused, EvidenceError::Chain(_)), "{refused}");
}

#[test]
fn odd_fields_are_refused_and_unknown_ones_are_not() {
    let world = World::new();
    let gpu = world.authority.device(GpuKind::Hopper, 1);
    assert!(world.changed(&gpu, |report| report.fields.push((40_000, vec![1; 900]))).is_ok());
    let malformed = |change: &dyn Fn(&mut GpuReport)| {
        let refused = world.changed(&gpu, change);
        assert!(matches!(refused, Err(EvidenceError::Malformed(_))), "{refused:?}");
    };
    malformed(&|report| report.fields.push((3, b"1\0".to_vec())));
    malformed(&|report| *report = report.clone().without(3));
    malformed(&|report| *report = report.clone().without(6));
    malformed(&|report| *report.field(3) = b"590.12\0x".to_vec());
    malformed(&|report| *report.field(3) = b"590.12:x\0".to_vec());
    malformed(&|report| *report.field(3) = vec![b'1'; 33]);
    malformed(&|report| report.fields.push((40_000, vec![1; 9000])));
    for chip in [vec![0xa0, 1, 0, 0], vec![0x80, 1, 0, 0, 0, 0, 0, 0, 0], Vec::new()] {
        assert_eq!(world.changed(&gpu, |report| *report.field(4) = chip), Err(EvidenceError::Chip));
    }
}

#[test]
fn measurements_are_compared_by_index_and_named() {
    let mut world = World::new();
    let gpu = world.authority.device(GpuKind::Hopper, 1);
    world.references.add(&reference(ReferenceKind::Firmware, "96.00.9f.00.01", [0, 1, 12])).unwrap();
    let good = world.verify(&evidence(&gpu, &NONCE)).unwrap();
    assert_eq!((good.firmware, good.driver), (Compared::Match, Compared::NoReference));
    let strict = Policy { measurements: Measurements::Required, ..world.policy() };
    let refused = verify_device(&evidence(&gpu, &NONCE), &NONCE, &strict).unwrap_err();
    assert_eq!(refused.to_string(), "no reference values for driver 590.12 of GH100: import them");

    world.references.add(&reference(ReferenceKind::Driver, "590.12", [7, 35, 63])).unwrap();
    world.references.add(&reference(ReferenceKind::Driver, "590.13", [1])).unwrap();
    let good = world.verify(&evidence(&gpu, &NONCE)).unwrap();
    assert_eq!((good.firmware, good.driver), (Compared::Match, Compared::Match));
    let wrong = |index: usize| world.changed(&gpu, |report| report.measurements[index][5] ^= 1);
    assert_eq!(
        wrong(12).unwrap_err().to_string(),
        "measurement 12 of the firmware is not one of its reference values (version 96.00.9F.00.01)"
    );
    assert!(matches!(
        wrong(7),
        Err(EvidenceError::Measurement { kind: ReferenceKind::Driver, index: 7, .. })
    ));
    assert!(wrong(2).is_ok(), "nobody says what measurement 2 should be");
    let short = world.changed(&gpu, |report| report.measurements.truncate(20));
    assert!(matches!(short, Err(EvidenceError::Measurement { index: 35, .. })), "{short:?}");
    // The first decoder counts only while it is on.
    assert!(matches!(wrong(35), Err(EvidenceError::Measurement { index: 35, .. })));
    let off = world.changed(&gpu, |report| {
        *report.field(11) = vec![0x55];
        report.measurements[35] = [9; 48];
    });
    assert!(off.is_ok());

    // Another set for the same version is as good; one that both claim is not.
    let mut more = reference(ReferenceKind::Firmware, "96.00.9F.00.01", [0]);
    more.values.insert(12, vec!["0d".repeat(48)]);
    world.references.add(&more).unwrap();
    assert!(world.changed(&gpu, |report| report.measurements[12] = [0x0d; 48]).is_ok());
    world.references.add(&reference(ReferenceKind::Driver, "590.12", [12])).unwrap();
    assert_eq!(world.verify(&evidence(&gpu, &NONCE)), Err(EvidenceError::Conflict(12)));
}

#[test]
fn reference_files_are_checked() {
    let mut references = References::new();
    let good = serde_json::to_string(&reference(ReferenceKind::Driver, "1.2", [3])).unwrap();
    references.add_json(good.as_bytes()).unwrap();
    assert_eq!(references.len(), 1);
    let bad = [
        good.replace("\"kind\"", "\"sort\""),
        good.replace("driver", "drive"),
        good.replace("0303", "03"),
        good.replace("\"3\"", "\"300\""),
        "[]".to_owned(),
    ];
    for text in bad {
        assert!(references.add_json(text.as_bytes()).is_err(), "{text}");
    }
    let empty = reference(ReferenceKind::Driver, "1.2", []);
    assert_eq!(references.add(&empty), Err(ReferenceError::Empty));
}

#[test]
fn the_devices_of_a_node_are_different_alike_and_connected() {
    let world = World::new();
    let node = |devices: &[DeviceEvidence]| verify_node(devices, |_| NONCE, &world.policy());
    let error = |devices: &[DeviceEvidence]| {
        let refused = node(devices).unwrap_err();
        (refused.device, refused.error)
    };
    let gpus: Vec<_> = (1..=2).map(|number| world.authority.device(GpuKind::Hopper, number)).collect();
    let shown: Vec<_> = gpus.iter().map(|gpu| evidence(gpu, &NONCE)).collect();
    assert_eq!(node(&shown).unwrap().len(), 2);
    assert_eq!(error(&[]), (None, EvidenceError::Empty));
    assert_eq!(error(&vec![shown[0].clone(); MAX_DEVICES + 1]), (None, EvidenceError::TooMany));
    let twice = [shown[0].clone(), shown[1].clone(), shown[0].clone()];
    assert_eq!(error(&twice), (Some(2), EvidenceError::Duplicate));

    let mode = |gpu: &TestGpu, mode| {
        let mut report = gpu.report(&NONCE);
        *report.field(36) = vec![mode, 0];
        DeviceEvidence { report: gpu.sign(&report), chain: gpu.chain.clone() }
    };
    assert_eq!(error(&[shown[0].clone(), mode(&gpus[1], 1)]), (None, EvidenceError::Mode));

    let switch = world.authority.device(GpuKind::Switch, 77);
    let connected = |switches: &[[u8; 8]], gpus_of_switch: &[[u8; 8]]| {
        let mut devices: Vec<_> = gpus
            .iter()
            .map(|gpu| {
                let mut report = gpu.report(&NONCE);
                *report.field(22) =
                    switches.iter().flat_map(|pdi| pdi.iter().rev().copied().collect::<Vec<_>>()).collect();
                DeviceEvidence { report: gpu.sign(&report), chain: gpu.chain.clone() }
            })
            .collect();
        let mut report = switch.report(&NONCE);
        *report.field(26) = [gpus_of_switch.concat(), vec![0; 64]].concat();
        devices.push(DeviceEvidence { report: switch.sign(&report), chain: switch.chain.clone() });
        node(&devices).map(|devices| devices.len()).map_err(|refused| refused.error)
    };
    let pdis = [gpus[0].pdi, gpus[1].pdi];
    assert_eq!(connected(&[switch.pdi], &pdis), Ok(3));
    assert_eq!(connected(&[switch.pdi], &pdis[..1]), Err(EvidenceError::Topology));
    assert_eq!(connected(&[[9; 8]], &pdis), Err(EvidenceError::Topology));
    assert_eq!(connected(&[], &pdis), Err(EvidenceError::Topology));
    assert_eq!(error(&[evidence(&switch, &NONCE)]), (None, EvidenceError::Empty));
}

/// A signed tag, in canonical form already; `body` is what stands before the signature.
fn signed_tag(signer: &TestGpu, body: &str) -> String {
    use rsa::sha2::{Digest as _, Sha384};
    let base64 = |bytes: &[u8]| data_encoding::BASE64.encode(bytes);
    let scope = r#"xmlns="http://standards.iso.org/iso/19770/-2/2015/schema.xsd" xmlns:h="http://www.w3.org/2001/04/xmlenc#sha384""#;
    let head = format!(r#"<SoftwareIdentity {scope} tagId="t-1">"#);
    let tail = "</SoftwareIdentity>";
    let digest = base64(&Sha384::digest(format!("{head}{body}{tail}")));
    let (dsig, c14n) = ("http://www.w3.org/2000/09/xmldsig#", "http://www.w3.org/2006/12/xml-c14n11");
    let more = "http://www.w3.org/2001/04/xmldsig-more#";
    let info = format!(
        r#"<ds:CanonicalizationMethod Algorithm="{c14n}"></ds:CanonicalizationMethod><ds:SignatureMethod Algorithm="{more}ecdsa-sha384"></ds:SignatureMethod><ds:Reference URI=""><ds:Transforms><ds:Transform Algorithm="{dsig}enveloped-signature"></ds:Transform><ds:Transform Algorithm="{c14n}"></ds:Transform></ds:Transforms><ds:DigestMethod Algorithm="{more}sha384"></ds:DigestMethod><ds:DigestValue>{digest}</ds:DigestValue></ds:Reference></ds:SignedInfo>"#
    );
    // The namespaces in scope belong to the canonical form of the part, sorted by prefix.
    let scope = scope.replace(" xmlns:h", &format!(r#" xmlns:ds="{dsig}" xmlns:h"#));
    let signature = base64(&signer.sign_bytes(format!("<ds:SignedInfo {scope}>{info}").as_bytes()));
    let certificates: String = signer
        .chain
        .iter()
        .map(|der| format!("<ds:X509Certificate>{}</ds:X509Certificate>", base64(der)))
        .collect();
    format!(
        r#"{head}{body}<ds:Signature xmlns:ds="{dsig}"><ds:SignedInfo>{info}<ds:SignatureValue>{signature}</ds:SignatureValue><ds:KeyInfo><ds:X509Data>{certificates}</ds:X509Data></ds:KeyInfo></ds:Signature>{tail}"#
    )
}

#[test]
fn signed_reference_values_are_imported_and_changed_ones_are_not() {
    let world = World::new();
    let signer = world.authority.device(GpuKind::Hopper, 7);
    let import = |text: &str| rim::import(text.as_bytes(), &world.roots, at(0));
    let hash = |byte: &str| byte.repeat(48);
    let body = format!(
        r#"<Meta colloquialVersion="96.00.9F.00.01" product="GH100"></Meta><Payload><Resource active="True" alternatives="2" index="1" type="Measurement" h:Hash0="{}" h:Hash1="{}"></Resource><Resource active="False" alternatives="1" index="2" type="Measurement" h:Hash0="00"></Resource></Payload>"#,
        hash("AB"),
        hash("01")
    );
    let text = signed_tag(&signer, &body);
    let imported = import(&text).unwrap();
    assert_eq!((imported.kind, imported.product.as_str()), (ReferenceKind::Firmware, "GH100"));
    assert_eq!((imported.version.as_str(), imported.tag_id.as_str()), ("96.00.9F.00.01", "t-1"));
    assert_eq!(imported.values, BTreeMap::from([(1, vec![hash("ab"), hash("01")])]));
    assert!(imported.signer.contains("FMC LF"), "{}", imported.signer);
    // What canonical form does away with changes nothing: quotes, the order of attributes, blanks in tags.
    let other = text.replace(r#"product="GH100"></Meta>"#, "product = 'GH100' />");
    assert_ne!(other, text);
    assert_eq!(import(&other), Ok(imported.clone()));

    for place in (0..text.len()).step_by(23) {
        let mut changed = text.clone().into_bytes();
        changed[place] = if changed[place] == b'1' { b'2' } else { b'1' };
        let result = rim::import(&changed, &world.roots, at(0));
        assert!(result.is_err() || result == Ok(imported.clone()), "byte {place}");
    }
    let wrapped = text.replace("<Payload>", "<Payload><Payload></Payload>");
    assert_eq!(import(&wrapped), Err(rim::RimError::Digest));
    let two = text.replace(
        "<Meta",
        &format!(
            "{}<Meta",
            &text[text.find("<ds:Signature").unwrap()..text.find("</SoftwareIdentity>").unwrap()]
        ),
    );
    assert!(matches!(import(&two), Err(rim::RimError::Form(_))));
    let foreign = GpuAuthority::new().device(GpuKind::Hopper, 7);
    assert!(matches!(import(&signed_tag(&foreign, &body)), Err(rim::RimError::Signer(_))));
    let mut stolen = world.authority.device(GpuKind::Hopper, 8);
    stolen.chain.clone_from(&signer.chain);
    assert_eq!(import(&signed_tag(&stolen, &body)), Err(rim::RimError::Signature));

    for (from, to) in [
        ("index=\"1\"", "index=\"256\""),
        ("index=\"2\"", "index=\"1\""),
        ("active=\"True\"", "active=\"yes\""),
        ("alternatives=\"2\"", "alternatives=\"3\""),
        ("alternatives=\"2\"", "alternatives=\"99\""),
        ("active=\"True\"", "active=\"False\""),
        ("product=\"GH100\"", "product=\"GH 100\""),
        ("ABAB", "AB"),
    ] {
        let text = signed_tag(
            &signer,
            &body.replacen(from, to, 1).replace(
                "active=\"False\" alternatives=\"1\" index=\"1\" type=\"Measurement\" h:Hash0=\"00\"",
                &format!(
                    "active=\"True\" alternatives=\"1\" index=\"1\" type=\"Measurement\" h:Hash0=\"{}\"",
                    hash("00")
                ),
            ),
        );
        assert!(matches!(import(&text), Err(rim::RimError::Content(_))), "{to}: {:?}", import(&text));
    }
    let driver = signed_tag(&signer, &body.replace("96.00.9F.00.01", "590.12"));
    assert_eq!(import(&driver).unwrap().kind, ReferenceKind::Driver);
}

/// Files as NVIDIA publishes them, in a folder that `BONAFIDE_TEST_GPU_EVIDENCE` names: pairs of `<name>AttestationReport.txt`
/// (hexadecimal) and `<name>CertChain.txt`, and signed reference values (`*.swidtag`), with `verifier_device_root.pem` and
/// `verifier_RIM_root.pem`; and `gpu_evidence.json` with `switch_evidence.json`, as collectors print them.
#[test]
fn evidence_of_real_devices_is_good() {
    const NAME: &str = "evidence_of_real_devices_is_good";
    let Some(folder) = std::env::var_os("BONAFIDE_TEST_GPU_EVIDENCE") else {
        eprintln!("SKIPPED: {NAME}: BONAFIDE_TEST_GPU_EVIDENCE does not name a folder");
        return;
    };
    let folder = Path::new(&folder);
    let ders = |path: &Path| -> Vec<Vec<u8>> {
        pem::decode_all(&std::fs::read(path).unwrap()).unwrap().into_iter().map(|(_, der)| der).collect()
    };
    let roots =
        |name: &str| TrustRoots::from_der(ders(&folder.join(name)).iter().map(Vec::as_slice)).unwrap();
    let (device_root, rim_root) = (roots("verifier_device_root.pem"), roots("verifier_RIM_root.pem"));
    let files: BTreeMap<String, _> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path()))
        .collect();

    let mut references = References::new();
    for (_, path) in files.iter().filter(|(name, _)| name.ends_with(".swidtag")) {
        let text = std::fs::read(path).unwrap();
        // Each at a moment at which its signer was valid.
        let moments =
            (0..24).map(|quarter| Timestamp::from_unix_seconds(1_672_531_200 + quarter * 7_776_000));
        let good = moments.clone().find_map(|then| Some((then, rim::import(&text, &rim_root, then).ok()?)));
        let refusals: Vec<_> = moments.map(|then| rim::import(&text, &rim_root, then).err()).collect();
        let (signed, imported) = good.unwrap_or_else(|| panic!("{}: {refusals:?}", path.display()));
        references.add(&imported).unwrap();
        let changed = String::from_utf8(text).unwrap().replacen("size=\"48\"", "size=\"49\"", 1);
        assert_eq!(rim::import(changed.as_bytes(), &rim_root, signed), Err(rim::RimError::Digest));
    }
    let policy = Policy {
        roots: &device_root,
        references: &references,
        measurements: Measurements::Preferred,
        now: at(0),
    };
    let mut seen = 0;
    for (name, path) in &files {
        let Some(start) = name.strip_suffix("AttestationReport.txt") else { continue };
        let text: String = std::fs::read_to_string(path).unwrap().split_whitespace().collect();
        let report = data_encoding::HEXLOWER_PERMISSIVE.decode(text.as_bytes()).unwrap();
        let chain = ders(&folder.join(format!("{start}CertChain.txt")));
        let nonce = *Report::parse(&report).unwrap().nonce();
        let evidence = DeviceEvidence { report, chain };
        let verified =
            verify_device(&evidence, &nonce, &policy).unwrap_or_else(|error| panic!("{name}: {error}"));
        eprintln!(
            "{name}: {} driver {:?} ({:?}), firmware {} ({:?})",
            verified.architecture,
            verified.driver_version,
            verified.driver,
            verified.firmware_version,
            verified.firmware
        );
        seen += 1;
    }
    assert!(seen > 0, "there is no report in the folder");

    // A machine with GPUs and switches that are connected.
    let printed = |name: &str| -> Vec<DeviceEvidence> {
        let Some(path) = files.get(name) else { return Vec::new() };
        let text: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let bytes =
            |value: &serde_json::Value| data_encoding::BASE64.decode(value.as_str().unwrap().as_bytes());
        let device = |value: &serde_json::Value| DeviceEvidence {
            report: bytes(&value["evidence"]).unwrap(),
            chain: pem::decode_all(&bytes(&value["certificate"]).unwrap())
                .unwrap()
                .into_iter()
                .map(|(_, der)| der)
                .collect(),
        };
        text.as_array().unwrap().iter().map(device).collect()
    };
    let mut devices = printed("gpu_evidence.json");
    devices.extend(printed("switch_evidence.json"));
    let nonces: Vec<_> =
        devices.iter().map(|device| *Report::parse(&device.report).unwrap().nonce()).collect();
    if !devices.is_empty() {
        let verified = verify_node(&devices, |index| nonces[index], &policy).unwrap();
        eprintln!("{} devices of one machine are good", verified.len());
        devices.remove(0);
        let missing = verify_node(&devices, |index| nonces[index + 1], &policy).unwrap_err();
        assert_eq!(missing.error, EvidenceError::Topology);
    }
}
