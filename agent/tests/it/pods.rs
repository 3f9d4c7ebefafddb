//! The attestors `k8s` and `gpu` against a scripted kubelet over its real sockets, with processes in real cgroups.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bonafide_agent::caller::PinnedCaller;
use bonafide_agent::config::{Config, WorkloadAttestorConfig};
use bonafide_agent::workload_attestor::gpu::{Gpu, GpuConfig};
use bonafide_agent::workload_attestor::k8s::{K8s, K8sConfig};
use bonafide_agent::workload_attestor::kubernetes::Pods;
use bonafide_agent::workload_attestor::{AttestError, WorkloadAttestor as _};

use crate::kubelet::{
    Api, Jailed, Kubelet, TestPod, World, allocation, can_jail, enter, id, make, pin, sleeper, uid, unmake,
};

/// Both attestors of one kubelet.
struct Node {
    kubelet: Kubelet,
    config: K8sConfig,
    pods: Arc<Pods>,
}

/// How the kubelet is asked.
const API: &str = "pods_api_socket = \"<folder>/pods.sock\"\nkubelet_read_only_port = 1";
const HTTPS: &str = "pods_api_socket = \"<folder>/none.sock\"\nkubelet_secure_port = <port>\n\
                     kubelet_ca_path = \"<folder>/ca.pem\"\ntoken_path = \"<folder>/token\"";
/// A short wait, for containers that never come.
const SHORT: &str = "max_poll_attempts = 2\npoll_retry_interval = \"100ms\"";

impl Node {
    async fn start(settings: &[&str]) -> Self {
        let kubelet = Kubelet::start().await;
        let config = config(&kubelet, settings);
        let pods = config.pods();
        Self { kubelet, config, pods }
    }

    fn world(&self) -> std::sync::MutexGuard<'_, World> {
        self.kubelet.world()
    }

    async fn k8s(&self, caller: &PinnedCaller) -> Result<Vec<String>, AttestError> {
        let found = K8s::new(&self.config, Arc::clone(&self.pods)).attest(caller).await?;
        Ok(found.iter().map(|selector| selector.as_str().to_owned()).collect())
    }

    fn attestor(&self) -> Gpu {
        let config =
            GpuConfig { pod_resources_socket: self.kubelet.path("resources.sock"), device_uuids: true };
        let (proc, sys) = (self.kubelet.path("proc"), self.kubelet.path("sys"));
        Gpu::new(config, Arc::clone(&self.pods)).with_roots(proc, sys)
    }

    async fn gpu(&self, caller: &PinnedCaller) -> Result<Vec<String>, AttestError> {
        let found = self.attestor().attest(caller).await?;
        Ok(found.iter().map(|selector| selector.as_str().to_owned()).collect())
    }
}

fn config(kubelet: &Kubelet, settings: &[&str]) -> K8sConfig {
    let settings = settings
        .join("\n")
        .replace("<folder>", kubelet.folder.path().to_str().unwrap())
        .replace("<port>", &kubelet.port.to_string());
    let text = format!(
        "trust_domain = \"example.org\"\nserver.address = \"a:1\"\nbootstrap.insecure = true\n\
         node_attestor.join_token.token = \"t\"\n[workload_attestor.k8s]\n{settings}\n"
    );
    let config = Config::parse("agent.toml".as_ref(), &text).unwrap();
    match &config.workload_attestors[..] {
        [WorkloadAttestorConfig::K8s(config)] => config.clone(),
        other => panic!("{other:?}"),
    }
}

fn expected(uid: &str) -> Vec<String> {
    let values = [
        "k8s:container-image:r/app:1",
        "k8s:container-image:r/app@sha256:aa",
        "k8s:container-name:main",
        "k8s:node-name:node-1",
        "k8s:ns:shop",
        "k8s:pod-image-count:1",
        "k8s:pod-image:r/app:1",
        "k8s:pod-image:r/app@sha256:aa",
        "k8s:pod-init-image-count:0",
        "k8s:pod-label:app:web",
        "k8s:pod-name:web-0",
        "k8s:pod-owner-uid:StatefulSet:o-1",
        "k8s:pod-owner:StatefulSet:web",
        &format!("k8s:pod-uid:{uid}"),
        "k8s:sa:cart",
    ];
    values.map(str::to_owned).to_vec()
}

fn labelled(pod: TestPod) -> TestPod {
    TestPod { labels: vec![("app", "web".to_owned())], ..pod }
}

fn reason(result: Result<Vec<String>, AttestError>) -> String {
    let error = result.unwrap_err();
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}

#[tokio::test]
async fn the_kubelet_is_asked_over_https_as_configured() {
    if !can_jail("the_kubelet_is_asked_over_https_as_configured") {
        return;
    }
    let (uid, id) = (uid(1, 0), id(1, 0));
    let jailed = Jailed::in_container(&uid, &id);
    let caller = jailed.pin();
    let node = Node::start(&[HTTPS]).await;
    node.world().token = Some("the-token".to_owned());
    node.world().pods = vec![labelled(TestPod::new(&uid, "web-0", &id))];
    assert_eq!(node.k8s(&caller).await.unwrap(), expected(&uid));
    assert_eq!(node.kubelet.asked(Api::Http), 1);

    // A token that rotates is followed; a wrong one, another authority and another name are told.
    std::fs::write(node.kubelet.path("token"), "another").unwrap();
    let told = reason(node.k8s(&caller).await);
    assert!(told.contains("401") && told.contains("token_path"), "{told}");
    std::fs::write(node.kubelet.path("token"), "the-token").unwrap();
    assert_eq!(node.k8s(&caller).await.unwrap(), expected(&uid));
    std::fs::write(node.kubelet.path("token"), "").unwrap();
    assert!(reason(node.k8s(&caller).await).contains("holds no token"));
    std::fs::write(node.kubelet.path("token"), "the-token").unwrap();

    let with = |settings: &[&str]| {
        let config = config(&node.kubelet, settings);
        K8s::new(&config, config.pods())
    };
    let named = with(&[HTTPS, "node_name = \"localhost\""]);
    assert_eq!(named.attest(&caller).await.unwrap().len(), expected(&uid).len());
    let text =
        format!("{:?}", with(&[HTTPS, "node_name = \"127.0.0.1\""]).attest(&caller).await.unwrap_err());
    assert!(text.contains("NotValidForName"), "{text}");
    let own_authority = std::fs::read(node.kubelet.path("ca.pem")).unwrap();
    let other = Kubelet::start().await;
    std::fs::copy(other.path("ca.pem"), node.kubelet.path("ca.pem")).unwrap();
    let text = format!("{:?}", with(&[HTTPS]).attest(&caller).await.unwrap_err());
    assert!(text.contains("UnknownIssuer") || text.contains("BadSignature"), "{text}");
    let believing = with(&[HTTPS, "skip_kubelet_verification = true"]);
    assert_eq!(believing.attest(&caller).await.unwrap().len(), expected(&uid).len());
    std::fs::write(node.kubelet.path("ca.pem"), own_authority).unwrap();

    node.kubelet.write_certificate();
    let settings = HTTPS.replace("token_path = \"<folder>/token\"", "");
    let certificate = "certificate_path = \"<folder>/cert.pem\"\nprivate_key_path = \"<folder>/key.pem\"";
    let certified = with(&[&settings, certificate]);
    assert_eq!(certified.attest(&caller).await.unwrap().len(), expected(&uid).len());
    let nobody = with(&[&settings, "use_anonymous_authentication = true"]);
    assert!(format!("{:?}", nobody.attest(&caller).await).contains("401"));
}

#[tokio::test]
async fn the_pods_api_is_preferred_and_containers_of_all_kinds_are_found() {
    if !can_jail("the_pods_api_is_preferred_and_containers_of_all_kinds_are_found") {
        return;
    }
    let (uid, id) = (uid(2, 0), id(2, 0));
    let jailed = Jailed::in_container(&uid, &id);
    let caller = jailed.pin();
    let node = Node::start(&[API]).await;
    let pod = labelled(TestPod::new(&uid, "web-0", &id));
    node.world().pods = vec![pod.clone()];
    assert_eq!(node.k8s(&caller).await.unwrap(), expected(&uid));
    assert_eq!((node.kubelet.asked(Api::Pods), node.kubelet.asked(Api::Http)), (1, 0));
    for list in ["initContainerStatuses", "ephemeralContainerStatuses"] {
        node.world().pods = vec![TestPod { list, ..pod.clone() }];
        let found = node.k8s(&caller).await.unwrap();
        assert!(found.contains(&"k8s:container-name:main".to_owned()), "{list}: {found:?}");
        // What somebody attached to the pod must not pass for the pod's own image.
        let counted = found.contains(&"k8s:pod-image-count:0".to_owned());
        assert_eq!(counted, list == "initContainerStatuses", "{found:?}");
        let attached = list == "ephemeralContainerStatuses";
        assert!(!(attached && found.iter().any(|one| one.contains("pod-image"))), "{found:?}");
    }
    node.world().refuse = Some(tonic::Status::failed_precondition("not synced\u{1b}[31m"));
    let told = reason(node.k8s(&caller).await);
    assert!(told.contains("FailedPrecondition") && !told.contains('\u{1b}'), "{told}");

    // A process in no pod is of no concern to the kubelet.
    let mut plain = sleeper().spawn().unwrap();
    let asked = node.world().asked.len();
    assert!(node.k8s(&pin(plain.id())).await.unwrap().is_empty());
    assert!(node.gpu(&pin(plain.id())).await.unwrap().is_empty());
    assert_eq!(node.world().asked.len(), asked);
    plain.kill().unwrap();
    plain.wait().unwrap();

    // A hook that runs before the container counts as there.
    let node = Node::start(&[API, "disable_container_selectors = true"]).await;
    node.world().pods = vec![TestPod { id: String::new(), ..pod }];
    let found = node.k8s(&caller).await.unwrap();
    assert!(found.contains(&"k8s:sa:cart".to_owned()), "{found:?}");
    assert!(!found.iter().any(|selector| selector.starts_with("k8s:container")), "{found:?}");
}

#[tokio::test]
async fn a_container_that_is_not_listed_yet_is_waited_for_by_all_together() {
    if !can_jail("a_container_that_is_not_listed_yet_is_waited_for_by_all_together") {
        return;
    }
    const CALLERS: u32 = 20;
    let places: Vec<_> = (0..CALLERS).map(|number| (uid(3, number), id(3, number))).collect();
    let jailed: Vec<_> = places.iter().map(|(uid, id)| Jailed::in_container(uid, id)).collect();
    for (settings, api, watched) in [(API, Api::Pods, true), (HTTPS, Api::Http, false)] {
        // Only a change that is announced can end the wait in time.
        let interval = if watched { "10s" } else { "200ms" };
        let node = Arc::new(Node::start(&[settings, &format!("poll_retry_interval = \"{interval}\"")]).await);
        let waiting: Vec<_> = jailed
            .iter()
            .map(|jailed| {
                let (node, caller) = (Arc::clone(&node), jailed.pin());
                tokio::spawn(async move { node.k8s(&caller).await })
            })
            .collect();
        let started = Instant::now();
        while node.kubelet.asked(api) == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // Another caller is not held up.
        let (other_uid, other_id) = (uid(3, 1000), id(3, 1000));
        let other = Jailed::in_container(&other_uid, &other_id);
        node.world().pods = vec![labelled(TestPod::new(&other_uid, "web-0", &other_id))];
        assert_eq!(node.k8s(&other.pin()).await.unwrap(), expected(&other_uid));
        assert!(started.elapsed() < Duration::from_secs(5));
        let pods = places.iter().map(|(uid, id)| labelled(TestPod::new(uid, "web-0", id)));
        node.world().pods = pods.collect();
        node.kubelet.announce();
        for (waiting, (uid, _)) in waiting.into_iter().zip(&places) {
            assert_eq!(waiting.await.unwrap().unwrap(), expected(uid));
        }
        let (asked, took) = (node.kubelet.asked(api), started.elapsed());
        let most = 6 + usize::try_from(took.as_millis() / 100).unwrap();
        assert!(asked <= most && took < Duration::from_secs(9), "{asked} questions in {took:?}");
    }
}

#[tokio::test]
async fn forged_places_and_pods_that_are_gone_get_nothing() {
    if !can_jail("forged_places_and_pods_that_are_gone_get_nothing") {
        return;
    }
    let (victim, container) = (uid(4, 0), id(4, 0));
    let node = Node::start(&[API, SHORT]).await;
    node.world().pods = vec![labelled(TestPod::new(&victim, "web-0", &container))];
    // A service that makes a cgroup with the victim's name below its own.
    for own in ["forged.slice/own.service/kubepods/burstable", "system.slice/own.service/kubepods.slice"] {
        let forged = Jailed::at(&format!("{own}/pod{victim}/{container}"), &mut sleeper());
        let told = reason(node.k8s(&forged.pin()).await);
        assert!(told.contains("where this node's kubelet makes none"), "{told}");
        assert!(node.gpu(&forged.pin()).await.is_err());
    }
    assert!(node.world().asked.is_empty(), "the kubelet was asked");
    // A pod that makes one below its container stays what it is: to the kubelet, nobody.
    let (own_uid, own_id) = (uid(4, 1), id(4, 1));
    let below =
        format!("kubepods/burstable/pod{own_uid}/{own_id}/kubepods/burstable/pod{victim}/{container}");
    let forged = Jailed::at(&below, &mut sleeper());
    assert!(reason(node.k8s(&forged.pin()).await).contains("does not know"));
    node.world().pods.push(labelled(TestPod::new(&own_uid, "own", &own_id)));
    let found = node.k8s(&forged.pin()).await.unwrap();
    assert!(found.contains(&format!("k8s:pod-uid:{own_uid}")), "{found:?}");

    // The pod was deleted by force and goes on; a new one has its name.
    let old = Jailed::in_container(&victim, &container);
    node.world().pods = vec![labelled(TestPod::new(&uid(4, 2), "web-0", &id(4, 2)))];
    node.world().resources = vec![allocation("web-0", "nvidia.com/gpu", &["GPU-1"])];
    assert!(reason(node.k8s(&old.pin()).await).contains("has its pod been deleted?"));
    assert!(node.gpu(&old.pin()).await.is_err());
    // The kubelet has seen the container end, whatever still lives there.
    node.world().pods = vec![TestPod { ended: true, ..TestPod::new(&victim, "web-0", &container) }];
    assert!(node.k8s(&old.pin()).await.is_err());
    // The pod's container was started anew.
    node.world().pods = vec![TestPod::new(&victim, "web-0", &id(4, 3))];
    assert!(node.k8s(&old.pin()).await.is_err());
    // Another pod is said to have the container.
    node.world().pods = vec![TestPod::new(&uid(4, 4), "web-0", &container)];
    assert!(node.k8s(&old.pin()).await.is_err());
    node.world().pods = vec![TestPod::new(&victim, "a", &container), TestPod::new(&victim, "b", &container)];
    assert!(reason(node.k8s(&old.pin()).await).contains("two pods"));
}

#[tokio::test]
async fn who_moves_or_dies_while_the_kubelet_is_asked_gets_nothing() {
    if !can_jail("who_moves_or_dies_while_the_kubelet_is_asked_gets_nothing") {
        return;
    }
    let (uid, id) = (uid(5, 0), id(5, 0));
    let node = Node::start(&[API, SHORT]).await;
    node.world().pods = vec![labelled(TestPod::new(&uid, "web-0", &id))];
    node.world().resources = vec![allocation("web-0", "nvidia.com/gpu", &["GPU-1"])];
    // At each question of one attestation: before the first answer of the pods, of the devices, of the pods again.
    for step in 0..3 {
        for dies in [false, true] {
            let jailed = Jailed::in_container(&uid, &id);
            let (caller, pid) = (jailed.pin(), jailed.process.id());
            let elsewhere = make(&format!("kubepods/burstable/pod{uid}/{}", crate::kubelet::id(5, 1)));
            let away = elsewhere.clone();
            node.world().asked.clear();
            node.world().script = Some(Box::new(move |_, _, number| {
                if number != step {
                } else if dies {
                    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
                    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
                    while pin_is_running(pid) {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                } else {
                    enter(&away, pid);
                }
            }));
            let gpu = node.gpu(&caller).await;
            assert!(gpu.is_err(), "step {step}, dies {dies}: {gpu:?}");
            if step == 0 {
                // The same for the other attestor, whose only question it is.
                let k8s = node.k8s(&caller).await;
                assert!(k8s.is_err(), "dies {dies}: {k8s:?}");
            }
            node.world().script = None;
            drop(jailed);
            unmake(&elsewhere);
        }
    }
}

/// Whether it has not become a zombie yet.
fn pin_is_running(pid: rustix::process::Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

const G: &str = "GPU-aaaaaaaa-0000-0000-0000-000000000001";
const H: &str = "GPU-aaaaaaaa-0000-0000-0000-000000000002";

#[tokio::test]
async fn devices_are_those_that_the_kubelet_gave() {
    if !can_jail("devices_are_those_that_the_kubelet_gave") {
        return;
    }
    let (uid, id) = (uid(6, 0), id(6, 0));
    let mut command = sleeper();
    command.env("NVIDIA_VISIBLE_DEVICES", "all").env("CUDA_VISIBLE_DEVICES", "0,1");
    let jailed = Jailed::at(&format!("kubepods/burstable/pod{uid}/{id}"), &mut command);
    let caller = jailed.pin();
    for settings in [API, HTTPS] {
        let node = Node::start(&[settings, SHORT]).await;
        let information = node.kubelet.path("proc/driver/nvidia/gpus/0000:19:00.0");
        std::fs::create_dir_all(&information).unwrap();
        let text =
            format!("Model: \t NVIDIA H200\nGPU UUID: \t {G}\nVideo BIOS: \t 96.00.A5\nDevice Minor: \t 0\n");
        std::fs::write(information.join("information"), text).unwrap();
        let pod = TestPod::new(&uid, "web-0", &id);
        node.world().pods = vec![pod.clone()];
        // Whatever the workload says of itself.
        assert_eq!(node.gpu(&caller).await.unwrap(), Vec::<String>::new());
        node.world().resources =
            vec![allocation("web-0", "nvidia.com/gpu", &[G]), allocation("web-1", "nvidia.com/gpu", &[H])];
        let whole = [
            "gpu:count-ge:1",
            "gpu:count:1",
            "gpu:product:nvidia-h200",
            "gpu:resource:nvidia.com/gpu",
            "gpu:shared:false",
            &format!("gpu:uuid:{G}"),
            "gpu:vbios:96.00.a5",
            "gpu:vendor:nvidia",
        ];
        assert_eq!(node.gpu(&caller).await.unwrap(), whole);
        // Two containers claim one device.
        node.world().resources[1] = allocation("web-1", "nvidia.com/gpu", &[G]);
        let found = node.gpu(&caller).await.unwrap();
        assert!(found.contains(&"gpu:shared:true".to_owned()), "{found:?}");
        assert!(!found.iter().any(|selector| selector.contains("uuid")), "{found:?}");
        // One that may open all of the host's devices.
        node.world().pods = vec![TestPod { privileged: true, ..pod.clone() }];
        assert_eq!(node.gpu(&caller).await.unwrap(), Vec::<String>::new());
        // One that has not started, or that another pod of that name is beside.
        node.world().pods = vec![TestPod { running: false, ..pod.clone() }];
        assert!(node.gpu(&caller).await.is_err());
        node.world().pods =
            vec![pod.clone(), TestPod::new(&crate::kubelet::uid(6, 1), "web-0", &crate::kubelet::id(6, 1))];
        assert!(reason(node.gpu(&caller).await).contains("changed while"));
        node.world().pods = vec![pod];
        node.world().resources = vec![allocation("web-0", "nvidia.com/gpu", &["x".repeat(1 << 20).as_str()])];
        assert!(reason(node.gpu(&caller).await).contains("cannot be right"));
        node.world().resources =
            vec![allocation("web-0", "nvidia.com/gpu", &[G]), allocation("web-0", "nvidia.com/gpu", &[H])];
        assert!(reason(node.gpu(&caller).await).contains("two pods"));
        node.world().refuse = Some(tonic::Status::resource_exhausted("rate limit"));
        assert!(node.gpu(&caller).await.is_err());
    }
}

/// The pod's name goes to another pod, with another device, at each moment of an attestation: what comes out is the first pod's
/// device or nothing.
#[tokio::test]
async fn a_name_that_is_given_again_gives_nobodys_device() {
    if !can_jail("a_name_that_is_given_again_gives_nobodys_device") {
        return;
    }
    let (mine, my_id) = (uid(7, 0), id(7, 0));
    let (heir, heirs_id) = (uid(7, 1), id(7, 1));
    let jailed = Jailed::in_container(&mine, &my_id);
    let caller = jailed.pin();
    let mut withheld = 0;
    for settings in [API, HTTPS] {
        let node = Node::start(&[settings, SHORT]).await;
        // When the pod goes, when the new one comes, and when the kubelet's two lists notice.
        for (gone, listed) in (0..4).flat_map(|gone| (0..4).map(move |listed| (gone, listed))) {
            for returns in [false, true] {
                let (first, second) =
                    (TestPod::new(&mine, "web-0", &my_id), TestPod::new(&heir, "web-0", &heirs_id));
                {
                    let mut world = node.world();
                    world.asked.clear();
                    world.pods = vec![first.clone()];
                    world.resources = vec![allocation("web-0", "nvidia.com/gpu", &[G])];
                    world.script = Some(Box::new(move |world, _, number| {
                        if number == gone {
                            world.pods = vec![second.clone()];
                        }
                        if number == listed {
                            world.resources = vec![allocation("web-0", "nvidia.com/gpu", &[H])];
                        }
                        // A kubelet never lists a pod again that it has let go: only a lie could, and not for long.
                        if returns && number == gone + 1 && listed >= gone {
                            world.pods = vec![second.clone(), first.clone()];
                        }
                    }));
                }
                let found = node.gpu(&caller).await;
                match &found {
                    Ok(found) => {
                        let of_heir = found.iter().any(|selector| selector.contains(H));
                        // The old list with the new allocation is what a kubelet says of the pod itself.
                        assert!(!of_heir || listed < gone, "gone {gone}, listed {listed}: {found:?}");
                    }
                    Err(_) => withheld += 1,
                }
                if gone <= 2 && listed <= 1 && listed >= gone {
                    assert!(found.is_err(), "gone {gone}, listed {listed}: {found:?}");
                }
            }
        }
        node.world().script = None;
        node.world().pods = vec![TestPod::new(&heir, "web-0", &heirs_id)];
        assert!(node.k8s(&caller).await.is_err(), "the name is the heir's now");
    }
    assert!(withheld > 10, "{withheld}");
}

/// Pods of three names come and go, as the kubelet lets them: gone from its list of pods before the name is given again, and
/// allocations noticed at any moment in between. Old ones, deleted by force, go on and ask as well. Nobody ever gets what was
/// allocated to another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_churn_nobody_gets_anothers_device() {
    const NAMES: u32 = 3;
    const GENERATIONS: u32 = 16;
    if !can_jail("under_churn_nobody_gets_anothers_device") {
        return;
    }
    let node = Arc::new(Node::start(&[API, SHORT]).await);
    let gpu = Arc::new(node.attestor());
    let random = bonafide_testkit::SeededRandom::new(7);
    let (mut jailed, mut asking) = (Vec::new(), Vec::new());
    for generation in 0..GENERATIONS {
        for name in 0..NAMES {
            let number = generation * NAMES + name;
            let (uid, id, name) = (uid(9, number), id(9, number), format!("web-{name}"));
            let own = format!("GPU-aaaaaaaa-0000-0000-0000-{number:012}");
            let process = Jailed::in_container(&uid, &id);
            let caller = process.pin();
            jailed.push(process);
            let (attestor, device) = (Arc::clone(&gpu), own.clone());
            asking.push(tokio::spawn(async move {
                let (mut given, mut withheld) = (0, 0);
                for _ in 0..4 {
                    match attestor.attest(&caller).await {
                        Ok(found) => {
                            let uuids: Vec<_> = found
                                .iter()
                                .filter_map(|selector| selector.as_str().strip_prefix("gpu:uuid:"))
                                .collect();
                            assert!(uuids.iter().all(|uuid| *uuid == device), "{device}: {uuids:?}");
                            given += uuids.len();
                        }
                        Err(_) => withheld += 1,
                    }
                }
                (given, withheld)
            }));
            // The old pod goes, the new one comes, its container starts, its allocation is noticed.
            let step = async || tokio::time::sleep(Duration::from_millis(random.below(16))).await;
            node.world().pods.retain(|pod| pod.name != name);
            step().await;
            let starting = TestPod { running: false, ..TestPod::new(&uid, &name, &id) };
            node.world().pods.push(starting);
            step().await;
            {
                let mut world = node.world();
                world.resources.retain(|pod| pod.name != name);
                world.resources.push(allocation(&name, "nvidia.com/gpu", &[&own]));
            }
            node.world().pods.iter_mut().filter(|pod| pod.uid == uid).for_each(|pod| pod.running = true);
            node.kubelet.announce();
            step().await;
        }
    }
    let (mut given, mut withheld) = (0, 0);
    for asking in asking {
        let (some, none) = asking.await.unwrap();
        (given, withheld) = (given + some, withheld + none);
    }
    eprintln!(
        "{given} devices given, {withheld} attestations without, {} questions",
        node.world().asked.len()
    );
    assert!(given > 10 && withheld > 10, "{given} given, {withheld} withheld");
}
