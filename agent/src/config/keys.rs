//! What each key of the configuration file means, for the reference document.
//!
//! The tests compare this table with the structures that are read ([`super::raw`]) and its defaults with what an empty
//! file gives, so that neither can change alone.

/// One key.
pub(super) struct Key {
    /// From the top, joined with dots.
    pub(super) path: &'static str,
    kind: &'static str,
    pub(super) absent: Absent,
    doc: &'static str,
}

/// What holds when a key is absent.
pub(super) enum Absent {
    Required,
    Nothing,
    Is(&'static str),
}

use Absent::{Is, Nothing, Required};

const TEXT: &str = "string";
const PATH: &str = "path";
const SWITCH: &str = "true or false";
const NUMBER: &str = "whole number";
const DURATION: &str = "duration";
const TEXTS: &str = "list of strings";

const fn key(path: &'static str, kind: &'static str, absent: Absent, doc: &'static str) -> Key {
    Key { path, kind, absent, doc }
}

pub(super) const KEYS: &[Key] = &[
    key(
        "trust_domain",
        TEXT,
        Required,
        "The trust domain of the server, as `example.org` or `spiffe://example.org`.",
    ),
    key(
        "data_dir",
        PATH,
        Is("/var/lib/bonafide-agent"),
        "The folder for the agent's own SVID, bundle (`agent-data.json`) and keys (`keys.json`). Created with mode 0700.",
    ),
    key(
        "sync_interval",
        DURATION,
        Is("5s"),
        "Time between two looks at the server, ±10 %. A subscriber that waits for an SVID never waits for this.",
    ),
    key(
        "health_address",
        TEXT,
        Nothing,
        "`host:port` to serve `/live`, `/ready` and `/metrics` on over plain HTTP. Absent: not served.",
    ),
    key(
        "allow_unauthenticated_verifiers",
        SWITCH,
        Is("false"),
        "Whether a process without any identity may fetch the bundles of the agent's own trust domain.",
    ),
    key(
        "allowed_foreign_jwt_claims",
        TEXTS,
        Is("[]"),
        "Claims of tokens of other trust domains that ValidateJWTSVID hands out besides `sub`, `exp` and `aud`.",
    ),
    key(
        "server.address",
        TEXT,
        Required,
        "`host:port` of the server. All addresses behind the name are used in turn.",
    ),
    key(
        "bootstrap.bundle_file",
        PATH,
        Nothing,
        "The trust bundle for the first contact with the server. Not looked at once the agent holds a bundle.",
    ),
    key("bootstrap.bundle_format", TEXT, Is("pem"), "What `bundle_file` holds: `pem` or `spiffe`."),
    key(
        "bootstrap.insecure",
        SWITCH,
        Is("false"),
        "Accept whatever claims to be the server at first contact. Whoever stands between then owns the agent: \
         for experiments only. One of `bundle_file` and `insecure = true` must be given.",
    ),
    key("node_attestor.join_token.token", TEXT, Nothing, "The token. Needed for the first start only."),
    key(
        "node_attestor.join_token.token_file",
        PATH,
        Nothing,
        "A file that holds the token; read when the agent attests. Not together with `token`.",
    ),
    key(
        "node_attestor.x509pop.certificate_path",
        PATH,
        Nothing,
        "PEM file with the node's certificate, optionally followed by intermediates. Read at each attestation.",
    ),
    key(
        "node_attestor.x509pop.private_key_path",
        PATH,
        Nothing,
        "PEM file with the key of that certificate.",
    ),
    key("node_attestor.x509pop.intermediates_path", PATH, Nothing, "PEM file with further intermediates."),
    key(
        "workload_api.socket",
        PATH,
        Is("/tmp/bonafide-agent/public/api.sock"),
        "Where workloads ask for their identity (mode 0777, its folder 0755).",
    ),
    key(
        "admin.socket",
        PATH,
        Nothing,
        "Where the agent's administrative services are offered (mode 0770, its folder 0750). Absent: not offered. \
         Must be in another folder than `workload_api.socket`. The command line looks for it at \
         `/tmp/bonafide-agent/private/admin.sock`.",
    ),
    key("log.level", TEXT, Is("info"), "`panic`, `fatal`, `error`, `warn`, `info`, `debug` or `trace`."),
    key("log.format", TEXT, Is("text"), "`text` for people or `json`, one object in each line."),
    key("log.file", PATH, Nothing, "A file to append to, in place of standard error."),
    key(
        "svid.key_type",
        TEXT,
        Is("ec-p256"),
        "The keys made for workloads: `ec-p256`, `ec-p384`, `rsa-2048` or `rsa-4096`. RSA keys take seconds to make.",
    ),
    key(
        "svid.availability_target",
        DURATION,
        Nothing,
        "How long an SVID should last when the server is away: X.509-SVIDs are renewed this long before they expire, \
         in place of at half their life. At least `24h`; without effect on SVIDs that live less than 12 h longer.",
    ),
    key(
        "svid.x509_cache_size",
        NUMBER,
        Is("1000"),
        "X.509-SVIDs kept ready. A soft limit: those with an open stream are kept beyond it.",
    ),
    key("svid.jwt_cache_size", NUMBER, Is("1000"), "JWT-SVIDs kept; the least recently used go first."),
    key(
        "workload_attestor.unix.discover_workload_path",
        SWITCH,
        Is("false"),
        "Adds the selectors `unix:path` and `unix:sha256`. The agent needs the right to look at other users' processes.",
    ),
    key(
        "workload_attestor.unix.workload_size_limit",
        NUMBER,
        Is("1073741824"),
        "The largest executable, in bytes, that gets a `unix:sha256` selector; 0 is no limit, -1 is none at all.",
    ),
];

/// The reference document of the configuration file.
#[must_use]
pub fn reference() -> String {
    let mut text = String::from(HEAD);
    let mut section = None;
    for key in KEYS {
        let (table, name) = key.path.rsplit_once('.').unwrap_or(("", key.path));
        if section != Some(table) {
            section = Some(table);
            text.push_str(&match table {
                "" => "\n## Top level\n\n".to_owned(),
                table => format!("\n## `[{table}]`\n\n"),
            });
            text.push_str("| key | type | default | meaning |\n|---|---|---|---|\n");
        }
        let default = match key.absent {
            Required => "required".to_owned(),
            Is(default) => format!("`{default}`"),
            Nothing => "–".to_owned(),
        };
        text.push_str(&format!("| `{name}` | {} | {default} | {} |\n", key.kind, key.doc));
    }
    text
}

const HEAD: &str = "\
# Configuration of the agent

<!-- Generated by `bonafide-agent reference configuration`; a test compares. -->

`bonafide-agent run -c FILE` reads one TOML file; `bonafide-agent validate -c FILE` only checks it. An unknown key is an
error, and all mistakes are reported at once. Durations are written as `500ms`, `5s`, `10m`, `24h`, `7d` or joined, `1h30m`.
Relative paths are taken from the folder in which the agent is started. `bonafide-agent import` translates a configuration of SPIRE
([moving over](../operations/migrate-from-spire.md)).

Exactly one table below `node_attestor` must be present; it says how the agent proves to the server which node it runs
on. Without any table below `workload_attestor` the `unix` attestor runs with its defaults.
";
