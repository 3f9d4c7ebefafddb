//! Many pods of one node start at once, as a job's do: each is a process of its own in a cgroup of its own, and asks for its identity.

use std::io::{BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bonafide_testkit::EntryBuilder;

use crate::fake_server::FakeServer;
use crate::harness::{Home, eventually};
use crate::kubelet::{Api, Jailed, Kubelet, TestPod, can_jail, id, uid};
use crate::pid_reuse::fetch_x509_svid;

const MEMBER: &str = "BONAFIDE_TEST_MEMBER";

/// What a member runs; nothing when run as a test. Waits for a line, asks, and says how many microseconds that took.
#[test]
fn member() {
    let Some(arguments) = std::env::var_os(MEMBER) else { return };
    let arguments = arguments.into_string().unwrap();
    let (socket, expected) = arguments.split_once(' ').unwrap();
    println!("ready");
    let mut line = String::new();
    let _ = std::io::stdin().read_line(&mut line);
    let started = Instant::now();
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(&fetch_x509_svid()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let outcome = loop {
        let mut head = [0; 9];
        if stream.read_exact(&mut head).is_err() {
            break "closed".to_owned();
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        stream.read_exact(&mut payload).unwrap();
        let (data, headers, end) = (head[3] == 0, head[3] == 1, head[4] & 1 == 1);
        if data && length > 0 {
            let found = payload.windows(expected.len()).any(|window| window == expected.as_bytes());
            break if found { started.elapsed().as_micros().to_string() } else { "another's".to_owned() };
        }
        if headers && end {
            break "refused".to_owned();
        }
    };
    println!("outcome {outcome}");
    std::process::exit(0);
}

/// The user and system time of this process, in milliseconds.
fn cpu() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields = stat[stat.rfind(')').unwrap()..].split_whitespace();
    let ticks: u64 = fields.skip(12).take(2).map(|field| field.parse::<u64>().unwrap()).sum();
    ticks * 10
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_that_start_together_are_attested_with_few_questions() {
    const TEST: &str = "pods_that_start_together_are_attested_with_few_questions";
    const PODS: u32 = 250;
    if !can_jail(TEST) {
        return;
    }
    let server = FakeServer::start().await;
    for number in 0..PODS {
        let name = format!("k8s:pod-name:rank-{number}");
        let entry = EntryBuilder::new(&format!("e{number}"))
            .spiffe_id(&format!("/rank/{number}"))
            .selectors(["k8s:ns:shop", "k8s:sa:cart", name.as_str()])
            .build();
        server.lock().add(entry);
    }
    // The second time the kubelet learns of the pods a while after they have started.
    for (late, api) in [(false, Api::Http), (true, Api::Http), (true, Api::Pods)] {
        let kubelet = Kubelet::start().await;
        let home = Home::new();
        let folder = kubelet.folder.path().display();
        let socket = if api == Api::Pods { "pods.sock" } else { "none.sock" };
        let settings = format!(
            "[workload_attestor.k8s]\npods_api_socket = \"{folder}/{socket}\"\nkubelet_secure_port = {}\n\
             kubelet_ca_path = \"{folder}/ca.pem\"\ntoken_path = \"{folder}/token\"",
            kubelet.port
        );
        server.lock().tokens.insert("token".to_owned());
        let agent = home.start(&server, &settings).await;
        eventually("all identities", async || {
            let held = agent.cache().counts().x509;
            if held == usize::try_from(PODS).unwrap() { Ok(()) } else { Err(held) }
        })
        .await;
        let pods: Vec<TestPod> = (0..PODS)
            .map(|number| TestPod::new(&uid(8, number), &format!("rank-{number}"), &id(8, number)))
            .collect();
        let mut members = Vec::new();
        for (number, pod) in pods.iter().enumerate() {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command
                .args(["--exact", "gang_start::member", "--nocapture", "--test-threads=1"])
                .env(MEMBER, format!("{} spiffe://example.org/rank/{number}", home.socket().display()))
                .stdin(Stdio::piped())
                .stdout(Stdio::piped());
            let mut member =
                Jailed::at(&format!("kubepods/burstable/pod{}/{}", pod.uid, pod.id), &mut command);
            let output = BufReader::new(member.process.stdout.take().unwrap());
            members.push((member, output));
        }
        for (_, output) in &mut members {
            assert_eq!(saying(output, "ready"), "");
        }
        kubelet.world().delay = Duration::from_millis(20);
        if !late {
            kubelet.world().pods = pods.clone();
        }
        let (before, started) = (cpu(), Instant::now());
        for (member, _) in &mut members {
            let mut input = member.process.stdin.take().unwrap();
            input.write_all(b"go\n").unwrap();
        }
        let told = tokio::task::spawn_blocking(move || {
            let told: Vec<String> =
                members.iter_mut().map(|(_, output)| saying(output, "outcome ")).collect();
            (told, members)
        });
        if late {
            tokio::time::sleep(Duration::from_millis(700)).await;
            kubelet.world().pods = pods;
            kubelet.announce();
        }
        let (told, members) = told.await.unwrap();
        let (took, used, asked) = (started.elapsed(), cpu() - before, kubelet.asked(api));
        drop(members);
        let mut micros: Vec<u64> =
            told.iter().map(|one| one.parse().unwrap_or_else(|_| panic!("{one}"))).collect();
        micros.sort_unstable();
        let at = |part: usize| micros[(micros.len() - 1) * part / 100] / 1000;
        eprintln!(
            "{PODS} pods at once ({api:?}, kubelet late: {late}): p50 {} ms, p99 {} ms, {asked} questions to the kubelet in {} ms, \
             {used} ms of CPU time for agent, kubelet and server together",
            at(50),
            at(99),
            took.as_millis()
        );
        // One for each pause that has passed, and not one for each pod.
        let most = 3 + usize::try_from(took.as_millis() / 100).unwrap();
        assert!(asked <= most, "{asked} questions in {took:?}");
        assert!(at(99) < 10_000, "{} ms", at(99));
        agent.shut_down();
        agent.join().await.unwrap();
    }
}

/// What follows a mark on a line of a member.
fn saying(output: &mut impl std::io::BufRead, mark: &str) -> String {
    let mut line = String::new();
    while output.read_line(&mut line).unwrap() > 0 {
        if let Some(at) = line.find(mark) {
            return line[at + mark.len()..].trim().to_owned();
        }
        line.clear();
    }
    "nothing".to_owned()
}
