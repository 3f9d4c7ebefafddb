//! Two servers over one PostgreSQL database, an agent at each: what is done at one is done at both.

use std::time::{Duration, Instant};

use bonafide_testkit::{Forwarder, Postgres};
use bonafide_tests::{Deployment, Settings, eventually};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);

#[test]
fn two_servers_are_one_trust_domain() {
    let cluster = match Postgres::start(false) {
        Ok(cluster) => cluster,
        Err(why) => {
            eprintln!("SKIPPED: two_servers_are_one_trust_domain: {why}");
            return;
        }
    };
    let database = cluster.database("bonafide");
    let settings = || Settings {
        store: "postgres".to_owned(),
        server_extra: format!("[store.postgres]\nconnection_string = \"{database}\"\n"),
        x509_svid_ttl: "20s".to_owned(),
        ..Settings::default()
    };
    let mut a = Deployment::start(settings()).unwrap();
    let mut b = Deployment::prepare(settings()).unwrap();
    b.start_server().unwrap();

    // A token made at A is good at B, once, and then at neither.
    let token = a.cli(&["token", "create"]).unwrap()["value"].as_str().unwrap().to_owned();
    b.start_agent(Some(&token)).unwrap();
    let agents = agent_ids(&a);
    assert_eq!(agents.len(), 2, "{agents:?}");
    assert_eq!(agents, agent_ids(&b), "both know both agents");
    let mut third = Deployment::prepare(settings()).unwrap();
    third.connect_to(a.port());
    third.administer(&a);
    third.launch_agent(Some(&token)).unwrap();
    eventually("the refusal of a token that is spent", SOON, || {
        let log = third.log("agent.log");
        if log.contains("token") && log.contains("not exist") { Ok(()) } else { Err(log) }
    })
    .unwrap();
    assert_eq!(agent_ids(&a).len(), 2);
    drop(third);

    // An entry made at A for B's agent is delivered there.
    let of_b = agents.iter().find(|id| id.contains(&token)).expect("the agent of the token").clone();
    let uid = format!("unix:uid:{}", rustix::process::getuid().as_raw());
    let create = |id: &str, parent: &str| {
        let id = format!("spiffe://example.org{id}");
        let arguments = ["entry", "create", "--spiffe-id", &id, "--parent-id", parent, "--selector", &uid];
        a.cli(&arguments).unwrap()
    };
    create("/tool", &of_b);
    let before = eventually("an SVID at B", SOON, || svid(&b)).unwrap();

    // A taints B's authority: B goes over to another at once, and its agents with it.
    let old = active(&b);
    a.cli(&["authority", "taint", "x509", &old]).unwrap();
    let start = Instant::now();
    let new = eventually("another authority at B", SOON, || {
        let now = active(&b);
        if now == old { Err(format!("{now} signs")) } else { Ok(now) }
    })
    .unwrap();
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert!(tainted(&a).contains(&old) && tainted(&b).contains(&old), "both say so");
    eventually("an SVID of the new authority at B", SOON, || {
        let now = svid(&b)?;
        if now == before { Err("the same SVID".to_owned()) } else { Ok(()) }
    })
    .unwrap();
    // And A takes it out of everybody's bundle; it does not come back, not even when B starts again.
    eventually("the revocation", SOON, || a.cli(&["authority", "revoke", "x509", &old])).unwrap();
    b.stop_server().unwrap();
    b.start_server().unwrap();
    assert!(!authorities(&a).contains(&old) && !authorities(&b).contains(&old));
    assert!(authorities(&b).contains(&new));

    // An agent of A goes on at B when A is gone: it has one address, behind which the servers change.
    let forwarder = Forwarder::start(([127, 0, 0, 1], a.port()).into());
    let moving_token = a.cli(&["token", "create"]).unwrap()["value"].as_str().unwrap().to_owned();
    let mut moving = Deployment::prepare(settings()).unwrap();
    moving.connect_to(forwarder.address().port());
    moving.administer(&a);
    moving.start_agent(Some(&moving_token)).unwrap();
    let parent = agent_ids(&a).into_iter().find(|id| id.contains(&moving_token)).unwrap();
    create("/moving", &parent);
    let first = eventually("an SVID from A", SOON, || svid(&moving)).unwrap();
    a.kill_server();
    forwarder.point_at(([127, 0, 0, 1], b.port()).into());
    eventually("an SVID from B", SOON, || {
        let now = svid(&moving)?;
        if now == first { Err("the same SVID".to_owned()) } else { Ok(()) }
    })
    .unwrap();
    // A ban at B is known at A when it comes back.
    b.cli(&["agent", "ban", &parent]).unwrap();
    a.start_server().unwrap();
    let list = a.cli(&["agent", "list"]).unwrap();
    let banned =
        list["agents"].as_array().unwrap().iter().find(|agent| agent["id"] == parent.as_str()).unwrap();
    assert_eq!(banned["banned"], true, "{banned}");
}

fn agent_ids(at: &Deployment) -> Vec<String> {
    let agents = at.cli(&["agent", "list"]).unwrap();
    let mut ids: Vec<_> = agents["agents"]
        .as_array()
        .unwrap()
        .iter()
        .map(|agent| agent["id"].as_str().unwrap().to_owned())
        .collect();
    ids.sort();
    ids
}

fn svid(at: &Deployment) -> Result<String, String> {
    let now = at.cli(&["fetch", "x509"])?;
    Ok(now["svids"][0]["serial_number"].as_str().unwrap_or_default().to_owned())
}

fn active(at: &Deployment) -> String {
    let shown = at.cli(&["authority", "show", "x509"]).unwrap();
    let all = shown["authorities"].as_array().unwrap();
    let active = all.iter().find(|authority| authority["state"] == "active").unwrap();
    active["id"].as_str().unwrap().to_owned()
}

/// Identifiers of the X.509 authorities in the bundle that a server shows, tainted or not.
fn in_bundle(at: &Deployment) -> Vec<(String, bool)> {
    let bundle = at.cli(&["bundle", "show"]).unwrap();
    let listed: Vec<Value> = bundle["bundles"][0]["authorities"].as_array().cloned().unwrap_or_default();
    listed
        .iter()
        .filter(|authority| authority["kind"] == "x509")
        .map(|authority| (authority["id"].as_str().unwrap().to_owned(), authority["tainted"] == true))
        .collect()
}

fn tainted(at: &Deployment) -> Vec<String> {
    in_bundle(at).into_iter().filter(|(_, tainted)| *tainted).map(|(id, _)| id).collect()
}

fn authorities(at: &Deployment) -> Vec<String> {
    in_bundle(at).into_iter().map(|(id, _)| id).collect()
}
