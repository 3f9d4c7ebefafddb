//! Evidence of GPUs: from the agent's call to the selectors of its record.

use std::time::Duration;

use bonafide_pki::evidence::{DeviceEvidence, MAX_DEVICES, device_nonce};
use bonafide_pki::pem;
use bonafide_proto::bonafide::agent::v1::gpu_evidence_client::GpuEvidenceClient;
use bonafide_proto::bonafide::agent::v1::submit_evidence_request::Device;
use bonafide_proto::bonafide::agent::v1::{
    GetChallengeRequest, SubmitEvidenceRequest, SubmitEvidenceResponse,
};
use bonafide_testkit::{GpuAuthority, GpuKind, GpuReport, ManualClock, TestGpu};
use tempfile::TempDir;
use tonic::{Code, Status};

use super::harness::*;

struct World {
    server: TestServer,
    authority: GpuAuthority,
}

impl World {
    async fn new(more: &str) -> Self {
        let (folder, authority) = (TempDir::new().unwrap(), GpuAuthority::new());
        let root = folder.path().join("root.pem");
        std::fs::write(&root, pem::encode("CERTIFICATE", authority.root())).unwrap();
        let references = folder.path().join("references");
        std::fs::create_dir(&references).unwrap();
        let values: Vec<String> = [0, 7].map(|index| format!("\"{index}\":[\"{index:02x}\"]")).into();
        let values = values.join(",").replace("\"00\"", &format!("\"{}\"", "00".repeat(48)));
        let values = values.replace("\"07\"", &format!("\"{}\"", "07".repeat(48)));
        let reference = format!(
            r#"{{"kind":"firmware","product":"GH100","version":"96.00.9F.00.01","tag_id":"t","signer":"s","signer_expires":0,"values":{{{values}}}}}"#
        );
        std::fs::write(references.join("a.json"), reference).unwrap();
        let table = format!(
            "[node_attestor.gpu_evidence]\nroot_paths = [\"{}\"]\nreferences_path = \"{}\"\n{more}",
            root.display(),
            references.display()
        );
        let server = TestServer::start_in(folder, ManualClock::default(), &table).await;
        Self { server, authority }
    }

    async fn challenge(&self, agent: &Identity) -> [u8; 32] {
        let mut client = GpuEvidenceClient::new(self.server.remote(Some(agent)).await.unwrap());
        let answer = client.get_challenge(GetChallengeRequest {}).await.unwrap().into_inner();
        answer.challenge.try_into().unwrap()
    }

    async fn submit(
        &self,
        agent: &Identity,
        challenge: &[u8],
        devices: Vec<DeviceEvidence>,
    ) -> Result<SubmitEvidenceResponse, Status> {
        let mut client = GpuEvidenceClient::new(self.server.remote(Some(agent)).await.unwrap());
        let devices =
            devices.into_iter().map(|device| Device { report: device.report, certificates: device.chain });
        let request = SubmitEvidenceRequest { challenge: challenge.to_vec(), devices: devices.collect() };
        client.submit_evidence(request).await.map(tonic::Response::into_inner)
    }

    /// What the record of a node says beside its attestor's selectors.
    fn known(&self, agent: &Identity) -> Vec<String> {
        let node = self.server.server.context().state.node(&agent.id).unwrap();
        let ours = node.selectors.iter().filter(|selector| selector.kind() == "gpu_node");
        ours.map(|selector| selector.value().to_owned()).collect()
    }
}

fn shown(agent: &Identity, challenge: &[u8; 32], gpus: &[&TestGpu]) -> Vec<DeviceEvidence> {
    shown_with(agent, challenge, gpus, |_| {})
}

fn shown_with(
    agent: &Identity,
    challenge: &[u8; 32],
    gpus: &[&TestGpu],
    change: impl Fn(&mut GpuReport),
) -> Vec<DeviceEvidence> {
    use bonafide_pki::Signer as _;
    let key = agent.key.public_key().spki_der();
    let evidence = gpus.iter().enumerate().map(|(index, gpu)| {
        let mut report = gpu.report(&device_nonce(challenge, key, index));
        change(&mut report);
        DeviceEvidence { report: gpu.sign(&report), chain: gpu.chain.clone() }
    });
    evidence.collect()
}

const GOOD: [&str; 6] =
    ["arch:gh100", "attested-count:2", "attested:true", "cc-mode:on", "fw-rim:match", "revocation:unknown"];

#[tokio::test(flavor = "multi_thread")]
async fn good_evidence_becomes_selectors_that_end() {
    let world = World::new("max_age = \"30m\"").await;
    let agent = world.server.agent().await;
    let gpus = [1, 2].map(|number| world.authority.device(GpuKind::Hopper, number));
    let gpus: Vec<_> = gpus.iter().collect();
    let before = world.server.server.context().state.node(&agent.id).unwrap().selectors.clone();
    let challenge = world.challenge(&agent).await;
    let answer = world.submit(&agent, &challenge, shown(&agent, &challenge, &gpus)).await.unwrap();
    assert_eq!(world.known(&agent), GOOD);
    let named: Vec<_> = GOOD.iter().map(|value| format!("gpu_node:{value}")).collect();
    assert_eq!(answer.selectors, named);
    assert_eq!(answer.expires_at, world.server.clock.now().unix_seconds() + 1800);
    let node = world.server.server.context().state.node(&agent.id).unwrap();
    assert!(before.is_subset_of(&node.selectors), "what the attestor said is still there");

    let line = world.server.audit().await.pop().unwrap();
    assert_eq!(line["method"], "/bonafide.agent.v1.GpuEvidence/SubmitEvidence", "{line}");
    assert_eq!(line["devices"].as_str().map(str::len), Some(129), "{line}");

    // The same devices at another node are good as well, and that is said.
    let other = world.server.agent().await;
    let challenge = world.challenge(&other).await;
    world.submit(&other, &challenge, shown(&other, &challenge, &gpus)).await.unwrap();
    let line = world.server.audit().await.pop().unwrap();
    assert_eq!(line["also_at"], agent.id.to_string(), "{line}");

    world.server.clock.advance(Duration::from_secs(1801));
    eventually("the evidence is over", async || world.known(&agent).is_empty()).await;
    let node = world.server.server.context().state.node(&agent.id).unwrap();
    assert_eq!(node.selectors, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_evidence_takes_these_selectors_and_no_others() {
    let world = World::new("device_selectors = true").await;
    let agent = world.server.agent().await;
    let gpu = world.authority.device(GpuKind::Hopper, 1);
    let before = world.server.server.context().state.node(&agent.id).unwrap().selectors.clone();
    let good = async || {
        let challenge = world.challenge(&agent).await;
        world.submit(&agent, &challenge, shown(&agent, &challenge, &[&gpu])).await.unwrap();
        assert!(world.known(&agent).iter().any(|value| value.starts_with("device:")));
    };
    let refused = async |devices: Vec<DeviceEvidence>, challenge: &[u8; 32], text: &str| {
        let status = world.submit(&agent, challenge, devices).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains(text), "{}", status.message());
    };
    good().await;
    let challenge = world.challenge(&agent).await;
    let wrong = shown_with(&agent, &challenge, &[&gpu], |report| report.measurements[7][0] ^= 1);
    refused(wrong, &challenge, "device 0: measurement 7 of the firmware").await;
    let node = world.server.server.context().state.node(&agent.id).unwrap();
    assert_eq!((&node.selectors, node.evidence_until), (&before, None));
    let line = world.server.audit().await.pop().unwrap();
    assert_eq!(line["refused"], "measurement", "{line}");

    // Twice the same answer; the answer to an older challenge; that of another agent; the nonce of another place.
    good().await;
    let challenge = world.challenge(&agent).await;
    let devices = shown(&agent, &challenge, &[&gpu]);
    world.submit(&agent, &challenge, devices.clone()).await.unwrap();
    refused(devices.clone(), &challenge, "the challenge").await;
    let later = world.challenge(&agent).await;
    refused(devices, &challenge, "the challenge").await;
    refused(shown(&agent, &later, &[&gpu]), &later, "the challenge").await;
    assert!(!world.known(&agent).is_empty(), "a late answer says nothing of the devices");
    let other = world.server.agent().await;
    let challenge = world.challenge(&agent).await;
    refused(shown(&other, &challenge, &[&gpu]), &challenge, "another nonce").await;
    assert!(world.known(&agent).is_empty());
    let challenge = world.challenge(&agent).await;
    let second = world.authority.device(GpuKind::Hopper, 2);
    let mut devices = shown(&agent, &challenge, &[&gpu, &second]);
    devices.swap(0, 1);
    refused(devices, &challenge, "another nonce").await;
    let challenge = world.challenge(&agent).await;
    world.server.clock.advance(Duration::from_secs(121));
    refused(shown(&agent, &challenge, &[&gpu]), &challenge, "the challenge").await;

    let challenge = world.challenge(&agent).await;
    refused(Vec::new(), &challenge, "no evidence of any device").await;
    let many = vec![DeviceEvidence { report: Vec::new(), chain: Vec::new() }; MAX_DEVICES + 1];
    refused(many, &challenge, "more than 32 devices").await;
    let foreign = GpuAuthority::new().device(GpuKind::Hopper, 1);
    let challenge = world.challenge(&agent).await;
    refused(shown(&agent, &challenge, &[&foreign]), &challenge, "certificate chain is refused").await;
}

#[tokio::test]
async fn a_server_without_it_says_so() {
    let server = TestServer::start().await;
    let agent = server.agent().await;
    let mut client = GpuEvidenceClient::new(server.remote(Some(&agent)).await.unwrap());
    let refused = client.get_challenge(GetChallengeRequest {}).await;
    assert_refused(refused, Code::Unimplemented, "evidence of GPUs is not configured");
}
