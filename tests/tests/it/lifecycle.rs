//! What an operator does in a day, through the command line alone.

use std::process::Command;
use std::time::Duration;

use bonafide_tests::{Deployment, Settings, eventually};

const SOON: Duration = Duration::from_secs(30);

fn own_uid() -> String {
    format!("unix:uid:{}", rustix::process::getuid().as_raw())
}

#[test]
fn a_process_gets_what_it_is_registered_for() {
    let deployment = Deployment::start(Settings::default()).unwrap();
    let refused = deployment.cli(&["fetch", "x509"]).unwrap_err();
    assert!(refused.contains("no identity issued"), "{refused}");
    assert!(refused.contains("hint:"), "an error says what to do: {refused}");

    let entry = deployment.register("/tool", &own_uid()).unwrap();
    let fetched = eventually("an SVID", SOON, || deployment.cli(&["fetch", "x509"])).unwrap();
    assert_eq!(fetched["svids"][0]["spiffe_id"], "spiffe://example.org/tool");

    let token = deployment.cli_text(&["fetch", "jwt", "--audience", "api"]).unwrap();
    let valid = deployment.cli(&["validate", "jwt", "--audience", "api", token.trim()]).unwrap();
    assert_eq!(valid["spiffe_id"], "spiffe://example.org/tool");
    assert_eq!(valid["claims"]["aud"], serde_json::json!(["api"]));
    let refused = deployment.cli(&["validate", "jwt", "--audience", "other", token.trim()]).unwrap_err();
    assert!(refused.contains("audience"), "{refused}");

    let wit = deployment.cli(&["fetch", "wit"]).unwrap();
    let wit_token = wit["svids"][0]["token"].as_str().unwrap().to_owned();
    let valid = deployment.cli(&["validate", "wit", &wit_token]).unwrap();
    assert_eq!(valid["spiffe_id"], "spiffe://example.org/tool");
    assert!(valid["claims"]["cnf"]["jwk"].is_object(), "{valid}");

    let folder = deployment.folder().join("written");
    deployment.cli_text(&["write", "--dir", folder.to_str().unwrap()]).unwrap();
    for name in ["svid.pem", "key.pem", "bundle.pem"] {
        assert!(folder.join(name).exists(), "{name}");
    }

    // The entry goes, and so does the identity.
    deployment.cli(&["entry", "delete", &entry]).unwrap();
    eventually("the identity's end", SOON, || match deployment.cli(&["fetch", "x509"]) {
        Err(refused) if refused.contains("no identity issued") => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .unwrap();
}

#[test]
fn operators_manage_entries_and_see_clear_errors() {
    let deployment = Deployment::start(Settings::default()).unwrap();
    let agent = deployment.agent_id().unwrap();
    let create = |extra: &[&str]| {
        let mut arguments =
            vec!["entry", "create", "--spiffe-id", "spiffe://example.org/a", "--parent-id", &agent];
        arguments.extend(extra);
        deployment.cli(&arguments)
    };
    create(&["--selector", "unix:uid:1", "--selector", "unix:gid:1", "--id", "first"]).unwrap();
    let again = create(&["--selector", "unix:gid:1", "--selector", "unix:uid:1"]).unwrap_err();
    assert!(again.contains("similar entry already exists") && again.contains("first"), "{again}");
    let bad = create(&["--selector", "no-colon"]).unwrap_err();
    assert!(bad.contains("type:value"), "{bad}");

    let listed = deployment.cli(&["entry", "list", "--selector", "unix:uid:1"]).unwrap();
    assert_eq!(listed["entries"].as_array().unwrap().len(), 1);
    let none = deployment.cli(&["entry", "list", "--selector", "unix:uid:1", "--match", "exact"]).unwrap();
    assert_eq!(none["entries"].as_array().unwrap().len(), 0);
    assert_eq!(deployment.cli(&["entry", "count"]).unwrap()["count"], 1);

    let updated = deployment
        .cli(&[
            "entry",
            "update",
            "--id",
            "first",
            "--spiffe-id",
            "spiffe://example.org/b",
            "--parent-id",
            &agent,
            "--selector",
            "unix:uid:2",
            "--x509-svid-ttl",
            "5m",
        ])
        .unwrap();
    assert_eq!(updated["revision_number"], 1);
    assert_eq!(deployment.cli(&["entry", "show", "first"]).unwrap()["x509_svid_ttl"], 300);
    let unknown = deployment.cli(&["entry", "delete", "second"]).unwrap_err();
    assert!(unknown.contains("entry not found"), "{unknown}");

    let file = deployment.folder().join("entries.json");
    std::fs::write(
        &file,
        format!(
            r#"{{"entries":[{{"spiffe_id":"spiffe://example.org/c","parent_id":"{agent}","selectors":[{{"type":"unix","value":"uid:3"}}],"entryExpiry":0}}]}}"#
        ),
    )
    .unwrap();
    deployment.cli(&["entry", "import", file.to_str().unwrap()]).unwrap();
    assert_eq!(deployment.cli(&["entry", "count"]).unwrap()["count"], 2);
    let table = deployment.cli_text(&["entry", "list"]).unwrap();
    assert!(table.starts_with("ID"), "{table}");
}

#[test]
fn ban_and_evict_take_effect_at_once() {
    let mut deployment = Deployment::start(Settings::default()).unwrap();
    let agent = deployment.agent_id().unwrap();
    deployment.cli(&["agent", "ban", &agent]).unwrap();
    assert_eq!(deployment.cli(&["agent", "show", &agent]).unwrap()["banned"], true);
    // A banned agent deletes its SVID and exits; its record keeps it from coming back.
    eventually("the agent's end", SOON, || match deployment.cli(&["health", "agent"]) {
        Err(gone) if gone.contains("cannot reach") => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .unwrap();
    deployment.kill_agent();
    deployment.cli(&["agent", "evict", &agent]).unwrap();
    assert_eq!(deployment.cli(&["agent", "count"]).unwrap()["count"], 0);
    let token = deployment.cli(&["token", "create"]).unwrap()["value"].as_str().unwrap().to_owned();
    deployment.start_agent(Some(&token)).unwrap();
    assert_ne!(deployment.agent_id().unwrap(), agent);
}

#[test]
fn restarts_lose_nothing() {
    let mut deployment = Deployment::start(Settings::default()).unwrap();
    deployment.register("/tool", &own_uid()).unwrap();
    eventually("an SVID", SOON, || deployment.cli(&["fetch", "x509"])).unwrap();
    let authorities = deployment.cli(&["authority", "show"]).unwrap();

    deployment.kill_server();
    // The agent serves what it holds while the server is away.
    deployment.cli(&["fetch", "x509"]).unwrap();
    deployment.start_server().unwrap();
    assert_eq!(deployment.cli(&["authority", "show"]).unwrap(), authorities);
    assert_eq!(deployment.cli(&["entry", "count"]).unwrap()["count"], 1);

    // The agent's SVID survives on its disk: no new token is needed.
    deployment.kill_agent();
    deployment.start_agent(None).unwrap();
    eventually("an SVID", SOON, || deployment.cli(&["fetch", "x509"])).unwrap();

    deployment.stop_agent().unwrap();
    deployment.stop_server().unwrap();
}

/// The serial numbers of the agent's and of this process's SVID.
fn serials(deployment: &Deployment) -> Result<(String, String), String> {
    let agent = deployment.cli(&["agent", "list"])?["agents"][0]["serial_number"].to_string();
    let own = deployment.cli(&["fetch", "x509"])?["svids"][0]["serial_number"].to_string();
    Ok((agent, own))
}

#[test]
fn authorities_are_rotated_by_hand() {
    let deployment = Deployment::start(Settings::default()).unwrap();
    deployment.register("/tool", &own_uid()).unwrap();
    eventually("an SVID", SOON, || deployment.cli(&["fetch", "x509"])).unwrap();
    for kind in ["x509", "jwt", "wit"] {
        let old = deployment.cli(&["authority", "show", kind]).unwrap()["authorities"][0]["id"].clone();
        let old = old.as_str().unwrap();
        let refused = deployment.cli(&["authority", "taint", kind, old]).unwrap_err();
        assert!(refused.contains("unable to taint current local authority"), "{refused}");
        let fresh = deployment.cli(&["authority", "prepare", kind]).unwrap()["authorities"][0]["id"].clone();
        if kind == "x509" {
            // What the operator waits for: that everybody has learned the new authority before it signs.
            eventually("the new authority at the workload", SOON, || {
                let bundles = deployment.cli(&["fetch", "bundles"])?;
                let known = bundles["bundles"]["spiffe://example.org"]["x509"].as_array().map_or(0, Vec::len);
                if known == 2 { Ok(()) } else { Err(format!("{known} authorities")) }
            })
            .unwrap();
        }
        deployment.cli(&["authority", "activate", kind, fresh.as_str().unwrap()]).unwrap();
        let refused = deployment.cli(&["authority", "revoke", kind, old]).unwrap_err();
        assert!(refused.contains("untainted"), "{refused}");
        let before = serials(&deployment).unwrap();
        deployment.cli(&["authority", "taint", kind, old]).unwrap();
        if kind == "x509" {
            // What the tainted authority signed is replaced without anybody asking; only then may it go.
            eventually("new SVIDs of agent and workload", SOON, || {
                let now = serials(&deployment)?;
                if now.0 != before.0 && now.1 != before.1 {
                    Ok(())
                } else {
                    Err(format!("{before:?} {now:?}"))
                }
            })
            .unwrap();
        }
        deployment.cli(&["authority", "revoke", kind, old]).unwrap();
        let bundle = deployment.cli_text(&["bundle", "show"]).unwrap();
        assert!(!bundle.contains(old) && bundle.contains(fresh.as_str().unwrap()), "{bundle}");
    }
    let folder = deployment.folder().join("after");
    deployment.cli_text(&["write", "--dir", folder.to_str().unwrap()]).unwrap();
    let verdict = Command::new("openssl")
        .args(["verify", "-x509_strict", "-CAfile", "bundle.pem", "-untrusted", "svid.pem", "svid.pem"])
        .current_dir(&folder)
        .output();
    match verdict {
        Ok(verdict) => assert!(verdict.status.success(), "{}", String::from_utf8_lossy(&verdict.stderr)),
        Err(why) => bonafide_tests::skipped("openssl after a rotation", &why.to_string()),
    }
}

#[test]
fn minted_svids_verify() {
    for key_type in ["ec-p256", "ec-p384", "rsa-2048"] {
        let settings = Settings { key_type: key_type.to_owned(), ..Settings::default() };
        let deployment = Deployment::start(settings).unwrap();
        let folder = deployment.folder().join("minted");
        deployment
            .cli(&[
                "mint",
                "x509",
                "--spiffe-id",
                "spiffe://example.org/batch",
                "--dns",
                "batch.example.org",
                "--ttl",
                "10m",
                "--write",
                folder.to_str().unwrap(),
            ])
            .unwrap();
        let verdict = Command::new("openssl")
            .args([
                "verify",
                "-x509_strict",
                "-CAfile",
                "bundle.pem",
                "-verify_hostname",
                "batch.example.org",
            ])
            .args(["-untrusted", "svid.pem", "svid.pem"])
            .current_dir(&folder)
            .output();
        match verdict {
            Ok(verdict) => {
                assert!(verdict.status.success(), "{key_type}: {}", String::from_utf8_lossy(&verdict.stderr));
            }
            Err(why) => bonafide_tests::skipped("openssl on a minted SVID", &why.to_string()),
        }
        let token = deployment
            .cli(&["mint", "jwt", "--spiffe-id", "spiffe://example.org/batch", "--audience", "a"])
            .unwrap();
        assert_eq!(token["token"].as_str().unwrap().split('.').count(), 3);
        let refused =
            deployment.cli(&["mint", "jwt", "--spiffe-id", "spiffe://elsewhere/x", "--audience", "a"]);
        assert!(refused.unwrap_err().contains("elsewhere"), "the error names what is wrong");
    }
}
