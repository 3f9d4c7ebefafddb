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
        "key_manager",
        TEXT,
        Is("disk"),
        "Where the agent keeps the keys of its own SVIDs: `disk`, in `data_dir`, or `memory`, so that no key is ever written and the node must \
         attest anew after each restart; a join token cannot do that.",
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
    key(
        "bootstrap.bundle_url",
        TEXT,
        Nothing,
        "The same from a URL: `https://…`, known by the certificate authorities of the system, or `http://…` together with \
         `bundle_unix_socket`. Asked for at each attempt to attest.",
    ),
    key(
        "bootstrap.bundle_unix_socket",
        PATH,
        Nothing,
        "Ask for `bundle_url` on this Unix socket. Whoever answers is told what for, in SPIRE's query parameters \
         (`spire-attest-mode`, `spire-connection-attempts`, `spire-attest-start-time`, `spire-server-address`, \
         `spire-server-port`, `spiffe-trust-domain`).",
    ),
    key(
        "bootstrap.bundle_workload_api",
        TEXT,
        Nothing,
        "The same from the Workload API of another agent, as `unix:///path`; it must hold the bundle of `trust_domain`.",
    ),
    key(
        "bootstrap.bundle_format",
        TEXT,
        Is("pem"),
        "What `bundle_file` or `bundle_url` holds: `pem` or `spiffe`.",
    ),
    key(
        "bootstrap.insecure",
        SWITCH,
        Is("false"),
        "Accept whatever claims to be the server at first contact. Whoever stands between then owns the agent: \
         for experiments only, and only with `rebootstrap_mode = \"never\"`. Exactly one of `bundle_file`, `bundle_url`, \
         `bundle_workload_api` and `insecure = true` must be given.",
    ),
    key(
        "bootstrap.rebootstrap_mode",
        TEXT,
        Is("never"),
        "Whether the agent begins anew with the bundle above when the bundle that it holds no longer knows the server: `never`, \
         `auto` (when it can attest again) or `always` (an agent that cannot does not start). Workloads keep what they hold \
         meanwhile. Without it the agent waits for the server that it knows. Not together with `insecure = true`.",
    ),
    key(
        "bootstrap.rebootstrap_delay",
        DURATION,
        Is("10m"),
        "How long the server must have been unknown before the agent begins anew: counted from the first answer that is signed by \
         an unknown authority, ended by any from a server that the bundle knows. An outage does not begin it, and a restart of the \
         agent begins it anew.",
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
        "node_attestor.sshpop.host_key_path",
        PATH,
        Is("/etc/ssh/ssh_host_rsa_key"),
        "The private key of the SSH host. Read at each attestation.",
    ),
    key(
        "node_attestor.sshpop.host_cert_path",
        PATH,
        Is("/etc/ssh/ssh_host_rsa_key-cert.pub"),
        "The certificate of that key.",
    ),
    key(
        "node_attestor.tpm_devid.devid_cert_path",
        PATH,
        Nothing,
        "PEM file with the certificate of the device identity (DevID), optionally followed by intermediates. Read at each attestation.",
    ),
    key(
        "node_attestor.tpm_devid.devid_priv_path",
        PATH,
        Nothing,
        "The private part of its key as the TPM gave it out (`TPM2B_PRIVATE`, with or without its length in front). The key's parent is \
         the standard storage root key of the same kind, RSA or ECC.",
    ),
    key(
        "node_attestor.tpm_devid.devid_pub_path",
        PATH,
        Nothing,
        "The public area of its key (`TPMT_PUBLIC`, with or without its length in front).",
    ),
    key("node_attestor.tpm_devid.devid_password", TEXT, Nothing, "The password of its key. Absent: none."),
    key(
        "node_attestor.tpm_devid.tpm_device_path",
        PATH,
        Nothing,
        "The TPM: a device, or a Unix socket that takes plain commands. Absent: the only `/dev/tpmrm<n>`, else the only `/dev/tpm<n>`.",
    ),
    key(
        "node_attestor.tpm_devid.owner_hierarchy_password",
        TEXT,
        Nothing,
        "The password of the TPM's owner hierarchy. Absent: none.",
    ),
    key(
        "node_attestor.tpm_devid.endorsement_hierarchy_password",
        TEXT,
        Nothing,
        "The password of the TPM's endorsement hierarchy. Absent: none.",
    ),
    key(
        "node_attestor.http_challenge.hostname",
        TEXT,
        Nothing,
        "The host name under which the server reaches this machine. Absent: the name of the machine.",
    ),
    key(
        "node_attestor.http_challenge.agentname",
        TEXT,
        Is("default"),
        "A part of the path that the server asks for, to tell agents of one host apart behind a proxy.",
    ),
    key(
        "node_attestor.http_challenge.port",
        NUMBER,
        Is("0"),
        "The port that is open while the agent attests; 0 is any free one.",
    ),
    key(
        "node_attestor.http_challenge.advertised_port",
        NUMBER,
        Nothing,
        "The port that the server is told, where a proxy or a port mapping stands between. Absent: `port`.",
    ),
    key(
        "node_attestor.oidc.token_path",
        PATH,
        Nothing,
        "A file with the token; read at each attestation. One of this and `token_url` must be given.",
    ),
    key("node_attestor.oidc.token_url", TEXT, Nothing, "An http or https URL that answers with a token."),
    key("node_attestor.oidc.method", TEXT, Is("GET"), "How it is asked: `GET` or `POST`."),
    key(
        "node_attestor.oidc.headers",
        "table of strings",
        Nothing,
        "Headers of the request, such as `{ Metadata-Flavor = \"Google\" }`.",
    ),
    key(
        "node_attestor.oidc.response_field",
        TEXT,
        Nothing,
        "The member of the answer's JSON object that is the token. Absent: the answer is the token.",
    ),
    key(
        "node_attestor.oidc.ca_path",
        PATH,
        Nothing,
        "PEM with the certificate authorities of an https `token_url`. Absent: those of the system.",
    ),
    key(
        "node_attestor.k8s_psat.cluster",
        TEXT,
        Required,
        "What the server calls the Kubernetes cluster that the agent runs in.",
    ),
    key(
        "node_attestor.k8s_psat.token_path",
        PATH,
        Is("/var/run/secrets/tokens/spire-agent"),
        "The file with the token that is projected into the agent's pod; read at each attestation.",
    ),
    key(
        "workload_api.socket",
        PATH,
        Is("/tmp/bonafide-agent/public/api.sock"),
        "Where workloads ask for their identity (mode 0777, its folder 0755).",
    ),
    key(
        "workload_api.enabled",
        SWITCH,
        Is("true"),
        "Whether the Workload API is offered on that socket. Without it delegates and brokers still get identities, and the socket answers \
         questions after the agent's health.",
    ),
    key(
        "admin.socket",
        PATH,
        Nothing,
        "Where the agent's administrative services are offered (mode 0770, its folder 0750). Absent: not offered. \
         Must be in another folder than `workload_api.socket`. The command line looks for it at \
         `/tmp/bonafide-agent/private/admin.sock`.",
    ),
    key(
        "admin.authorized_delegates",
        TEXTS,
        Is("[]"),
        "SPIFFE IDs whose processes may ask on the admin socket for the identities of others, with SPIRE's Delegated \
         Identity API. Such a process can get any identity of this node, except those whose SPIFFE ID an entry of \
         this node has with `admin` or `downstream`.",
    ),
    key(
        "broker.socket",
        PATH,
        Nothing,
        "Where the SPIFFE Broker API is offered with mutual TLS (mode 0777, its folder 0755: the certificate decides). Must be \
         in another folder than `workload_api.socket` and `admin.socket`.",
    ),
    key(
        "broker.address",
        TEXT,
        Nothing,
        "`host:port` on which it is offered over TCP, with mutual TLS as well.",
    ),
    key(
        "broker.brokers",
        "list of tables",
        Nothing,
        "The brokers, as `[[broker.brokers]]` with `id`, a SPIFFE ID of any trust domain whose bundle the agent holds, and \
         `allowed_reference_types`, a list of tables: `type_url` is a type of reference by which this broker may name \
         workloads, or `*` for each type that the agent understands; `allow_over_tcp` (default `false`) allows it on \
         `broker.address` too. The agent understands `type.googleapis.com/spiffe.broker.WorkloadPIDReference`.",
    ),
    key(
        "rate_limit.fetch_x509_svid",
        NUMBER,
        Is("0"),
        "How often in a second FetchX509SVID may be called by all processes with the same selectors together, and \
         how often at once after a pause; a stream counts when it opens. 0 is no limit. The agent's own calls are exempt.",
    ),
    key("rate_limit.fetch_jwt_svid", NUMBER, Is("0"), "The same for FetchJWTSVID."),
    key("rate_limit.fetch_x509_bundles", NUMBER, Is("0"), "The same for FetchX509Bundles."),
    key("rate_limit.fetch_jwt_bundles", NUMBER, Is("0"), "The same for FetchJWTBundles."),
    key("log.level", TEXT, Is("info"), "`panic`, `fatal`, `error`, `warn`, `info`, `debug` or `trace`."),
    key("log.format", TEXT, Is("text"), "`text` for people or `json`, one object in each line."),
    key("log.file", PATH, Nothing, "A file to append to, in place of standard error."),
    key(
        "log.source_location",
        SWITCH,
        Is("false"),
        "Whether each line says where in the source it comes from.",
    ),
    key(
        "log.selectors",
        TEXTS,
        Is("[]"),
        "Beginnings of selectors, such as `unix:uid` or `docker:label`, that may be written to the log when a caller has no identity. Others \
         are not, for they may hold secrets.",
    ),
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
    key(
        "workload_attestor.systemd.bus_socket",
        PATH,
        Is("/run/dbus/system_bus_socket"),
        "The socket of the D-Bus system bus, over which systemd is asked.",
    ),
    key(
        "workload_attestor.docker.docker_socket_path",
        PATH,
        Is("/var/run/docker.sock"),
        "Docker's socket, as a path or as `unix://` and a path.",
    ),
    key(
        "workload_attestor.docker.docker_version",
        TEXT,
        Nothing,
        "The version of the engine's API to ask for, such as `1.44`. Absent: the engine's own.",
    ),
    key(
        "workload_attestor.docker.podman_socket_path",
        PATH,
        Is("/run/podman/podman.sock"),
        "The socket of Podman that runs as root.",
    ),
    key(
        "workload_attestor.docker.podman_socket_path_template",
        PATH,
        Nothing,
        "The socket of a user's own Podman, with `%d` in place of the user's number. That user controls what is said there and \
         so can get any `docker` selector: give it only where users may be trusted with that. Absent: users' containers have \
         no selectors.",
    ),
    key(
        "workload_attestor.docker.container_id_cgroup_matchers",
        TEXTS,
        Is("[]"),
        "Where in a cgroup path the container's ID is, such as `/my.slice/*/<id>`, when it is not in one of the usual places. \
         The first that fits counts, and the usual places then do not. The ID must be the whole part between two slashes, 64 \
         hexadecimal digits.",
    ),
    key(
        "workload_attestor.k8s.pods_api_socket",
        PATH,
        Is("/var/lib/kubelet/pods-api/pods-api.sock"),
        "The socket of the kubelet's Pods API (Kubernetes 1.37; from 1.35 on behind a feature gate, at \
         `/var/lib/kubelet/pods/kubelet.sock`). Where it is there, nothing of the port below is used.",
    ),
    key(
        "workload_attestor.k8s.kubelet_secure_port",
        NUMBER,
        Is("10250"),
        "The kubelet's HTTPS port. The agent asks it for `/pods`, for which its credentials need the right to get `nodes/proxy`.",
    ),
    key(
        "workload_attestor.k8s.kubelet_read_only_port",
        NUMBER,
        Nothing,
        "The kubelet's port without TLS and authentication, on 127.0.0.1, in place of the other.",
    ),
    key(
        "workload_attestor.k8s.kubelet_ca_path",
        PATH,
        Is("/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"),
        "PEM with the authorities of the kubelet's certificate. This and the other files are read for each question.",
    ),
    key(
        "workload_attestor.k8s.skip_kubelet_verification",
        SWITCH,
        Is("false"),
        "Believes whoever answers on the port, and shows the token to it.",
    ),
    key(
        "workload_attestor.k8s.token_path",
        PATH,
        Is("/var/run/secrets/kubernetes.io/serviceaccount/token"),
        "The token that the agent shows the kubelet, unless it has a certificate.",
    ),
    key(
        "workload_attestor.k8s.certificate_path",
        PATH,
        Nothing,
        "PEM with a certificate for the kubelet, in place of a token; with `private_key_path`.",
    ),
    key("workload_attestor.k8s.private_key_path", PATH, Nothing, "PEM with the key of that certificate."),
    key(
        "workload_attestor.k8s.use_anonymous_authentication",
        SWITCH,
        Is("false"),
        "Shows the kubelet neither token nor certificate.",
    ),
    key(
        "workload_attestor.k8s.node_name",
        TEXT,
        Nothing,
        "The name of this node, by which the kubelet is dialled and verified. Absent: what `node_name_env` says; without that the \
         kubelet is dialled on 127.0.0.1, and its certificate may have any name.",
    ),
    key(
        "workload_attestor.k8s.node_name_env",
        TEXT,
        Is("MY_NODE_NAME"),
        "The variable of the agent's environment with the name of the node.",
    ),
    key(
        "workload_attestor.k8s.max_poll_attempts",
        NUMBER,
        Is("60"),
        "A container that the kubelet does not know yet is waited for, for so many times the interval below.",
    ),
    key(
        "workload_attestor.k8s.poll_retry_interval",
        DURATION,
        Is("500ms"),
        "How long until the kubelet is asked again for such a container; with the Pods API also at each change.",
    ),
    key(
        "workload_attestor.k8s.disable_container_selectors",
        SWITCH,
        Is("false"),
        "Leaves out `k8s:container-name` and `k8s:container-image` and does not wait until the kubelet knows the container: for \
         hooks that run before a container counts as started.",
    ),
    key(
        "workload_attestor.k8s.cgroup_roots",
        TEXTS,
        Is("[]"),
        "Where in the tree of cgroups this node's pods are, beside the root: what stands before `kubepods`. For a kubelet with \
         `--cgroup-root`, or one that is not root's. A node that is itself a container of Docker or Podman is recognised.",
    ),
    key(
        "workload_attestor.gpu.pod_resources_socket",
        PATH,
        Is("/var/lib/kubelet/pod-resources/kubelet.sock"),
        "The socket of the kubelet's API for what is allocated to containers.",
    ),
    key(
        "workload_attestor.gpu.device_uuids",
        SWITCH,
        Is("false"),
        "Adds `gpu:uuid` for whole GPUs of NVIDIA that only this container has, for at most 16.",
    ),
    key(
        "workload_attestor.slurm.jobs_dir",
        PATH,
        Nothing,
        "The folder in which the prolog writes down what it knows of a job (`/run/bonafide-slurm` in the example); root owns it and the \
         folders above it. Absent: job and step only.",
    ),
    key(
        "workload_attestor.slurm.cgroup_root",
        PATH,
        Is("/sys/fs/cgroup"),
        "Where cgroups are mounted, as the agent sees them.",
    ),
    key(
        "gpu_evidence.command",
        PATH,
        Required,
        "The program that collects evidence of the node's GPUs. Root owns it and the folders above it. The table makes the agent show \
         evidence to the server.",
    ),
    key("gpu_evidence.timeout", DURATION, Is("60s"), "How long the program may take, up to 100s."),
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
on. The tables below `workload_attestor` say which workload attestors run; without any, `unix` runs with its defaults.
`gpu` needs the table of `k8s` beside it.
";
