//! What becomes of each setting of SPIRE's `agent.conf`.

use bonafide_runtime::import::Carry::{Block, Left, Moot, To, Used};
use bonafide_runtime::import::Form::{Bool, Duration, Integer, Lower, Tables, Text, Texts};
use bonafide_runtime::import::{Carry, Form, Import, Row, Table, shared};

use super::Config;
use super::keys::KEYS;

/// The translation of `agent.conf`.
pub const TABLE: Table = Table {
    program: "bonafide-agent",
    rows: ROWS,
    order: || KEYS.iter().map(|key| key.path).collect(),
    compose,
    validate: |text| Config::parse("the translated configuration".as_ref(), text).map(drop),
};

const fn row(setting: &'static str, carry: Carry) -> Row {
    Row { setting, carry }
}

const PROFILING: &str =
    "there is no profiling endpoint: attach a profiler such as perf to the process instead";
const TELEMETRY: &str = "metrics are offered to Prometheus only, at health_address under /metrics";
const SDS: &str = "Envoy's secret discovery service is not offered: let Envoy read files that `bonafide write --watch` keeps fresh";
const ATTESTOR: &str = "this node attestor does not exist here: attest in another way; the agent then has another SPIFFE ID, so \
                        entries below it need a new parent. For Google Cloud and Azure see node_attestor.oidc, for the \
                        rest x509pop, sshpop, tpm_devid, http_challenge and join tokens";
const WORKLOAD: &str =
    "this workload attestor does not exist here: entries with its selectors match no process on this node";
const SIGSTORE: &str = "signatures of images are not verified: entries with selectors of signatures or attestations match no process; \
                        k8s:container-image with a digest says what runs";
const PIPE: &str = "named pipes exist on Windows only";

const BROKERS: &[(&str, Form)] =
    &[("id", Text), ("allowed_reference_types", Tables(&[("type_url", Text), ("allow_over_tcp", Bool)]))];

const ROWS: &[Row] = &[
    row("agent.data_dir", Used),
    row("agent.admin_socket_path", To(Text, "admin.socket")),
    row("agent.insecure_bootstrap", Used),
    row("agent.rebootstrap_mode", Used),
    row("agent.rebootstrap_delay", Used),
    row("agent.join_token", Used),
    row("agent.join_token_file", Used),
    row("agent.log_file", To(Text, "log.file")),
    row("agent.log_format", To(Lower, "log.format")),
    row("agent.log_level", Used),
    row("agent.log_selectors", To(Texts, "log.selectors")),
    row("agent.log_source_location", To(Bool, "log.source_location")),
    row("agent.sds.default_svid_name", Left(SDS)),
    row("agent.sds.default_bundle_name", Left(SDS)),
    row("agent.sds.default_all_bundles_name", Left(SDS)),
    row("agent.sds.disable_spiffe_cert_validation", Left(SDS)),
    row("agent.server_address", Used),
    row("agent.server_port", Used),
    row("agent.socket_path", Used),
    row("agent.disable_workload_api", Used),
    row("agent.disable_sds_api", Moot("it is not offered")),
    row("agent.workload_x509_svid_key_type", To(Lower, "svid.key_type")),
    row("agent.trust_bundle_format", Used),
    row("agent.trust_bundle_path", Used),
    row("agent.trust_bundle_spiffe_workload_api", Used),
    row("agent.trust_bundle_unix_socket", Used),
    row("agent.trust_bundle_url", Used),
    row("agent.trust_domain", To(Text, "trust_domain")),
    row("agent.allow_unauthenticated_verifiers", To(Bool, "allow_unauthenticated_verifiers")),
    row("agent.allowed_foreign_jwt_claims", To(Texts, "allowed_foreign_jwt_claims")),
    row("agent.availability_target", To(Duration, "svid.availability_target")),
    row("agent.x509_svid_cache_max_size", Used),
    row("agent.jwt_svid_cache_max_size", Used),
    row("agent.authorized_delegates", Used),
    row("agent.profiling_enabled", Left(PROFILING)),
    row("agent.profiling_port", Moot(PROFILING)),
    row("agent.profiling_freq", Moot(PROFILING)),
    row("agent.profiling_names", Moot(PROFILING)),
    row("agent.experimental.sync_interval", To(Duration, "sync_interval")),
    row(
        "agent.experimental.jwt_svid_cache_hit_timeout",
        Moot("a token that is still valid is given out at once, and the next one is fetched meanwhile"),
    ),
    row("agent.experimental.named_pipe_name", Moot(PIPE)),
    row("agent.experimental.admin_named_pipe_name", Moot(PIPE)),
    row("agent.experimental.use_sync_authorized_entries", Used),
    row(
        "agent.experimental.require_pq_kem",
        Left("key exchange that withstands quantum computers cannot be required"),
    ),
    row("agent.experimental.ratelimit.fetch_x509_svid", To(Integer, "rate_limit.fetch_x509_svid")),
    row("agent.experimental.ratelimit.fetch_jwt_svid", To(Integer, "rate_limit.fetch_jwt_svid")),
    row("agent.experimental.ratelimit.fetch_x509_bundles", To(Integer, "rate_limit.fetch_x509_bundles")),
    row("agent.experimental.ratelimit.fetch_jwt_bundles", To(Integer, "rate_limit.fetch_jwt_bundles")),
    row("agent.experimental.ratelimit.stream_secrets", Left(SDS)),
    row("agent.experimental.ratelimit.fetch_secrets", Left(SDS)),
    row("agent.experimental.broker", Block),
    row("agent.experimental.broker.socket_path", To(Text, "broker.socket")),
    row("agent.experimental.broker.bind_address", Used),
    row("agent.experimental.broker.brokers", To(Tables(BROKERS), "broker.brokers")),
    row("telemetry.Prometheus.host", Used),
    row("telemetry.Prometheus.port", Used),
    row("telemetry.Prometheus.tls", Left("/metrics is plain HTTP: keep it on a loopback or private address")),
    row("telemetry.InMem", Moot("metrics are kept in memory always")),
    row(
        "telemetry.EnableTrustDomainLabel",
        Left("the metrics name no trust domain: add the label in Prometheus's scrape configuration"),
    ),
    row("telemetry.EnableHostnameLabel", Moot("Prometheus adds the instance itself")),
    row("telemetry.*", Left(TELEMETRY)),
    row("health_checks.listener_enabled", Used),
    row("health_checks.bind_address", Used),
    row("health_checks.bind_port", Used),
    row("health_checks.ready_path", Used),
    row("health_checks.live_path", Used),
    row("plugins.KeyManager.disk", Used),
    row(
        "plugins.KeyManager.disk.directory",
        Moot("the agent makes keys of its own, in data_dir; SPIRE's file stays as it is"),
    ),
    row("plugins.KeyManager.memory", Used),
    row(
        "plugins.KeyManager.*",
        Left(
            "the agent keeps its key in data_dir, which only its user can read; that may be weaker than what this plugin gave",
        ),
    ),
    row("plugins.NodeAttestor.join_token", Used),
    row("plugins.NodeAttestor.x509pop", Used),
    row("plugins.NodeAttestor.x509pop.private_key_path", To(Text, "node_attestor.x509pop.private_key_path")),
    row("plugins.NodeAttestor.x509pop.certificate_path", To(Text, "node_attestor.x509pop.certificate_path")),
    row(
        "plugins.NodeAttestor.x509pop.intermediates_path",
        To(Text, "node_attestor.x509pop.intermediates_path"),
    ),
    row(
        "plugins.NodeAttestor.x509pop.spiffe_endpoint_socket",
        Left(
            "certificate and key are read from files only: keep them fresh there, with `bonafide write --watch` for instance",
        ),
    ),
    row("plugins.NodeAttestor.sshpop", Used),
    row("plugins.NodeAttestor.sshpop.host_key_path", To(Text, "node_attestor.sshpop.host_key_path")),
    row("plugins.NodeAttestor.sshpop.host_cert_path", To(Text, "node_attestor.sshpop.host_cert_path")),
    row("plugins.NodeAttestor.tpm_devid", Used),
    row(
        "plugins.NodeAttestor.tpm_devid.devid_cert_path",
        To(Text, "node_attestor.tpm_devid.devid_cert_path"),
    ),
    row(
        "plugins.NodeAttestor.tpm_devid.devid_priv_path",
        To(Text, "node_attestor.tpm_devid.devid_priv_path"),
    ),
    row("plugins.NodeAttestor.tpm_devid.devid_pub_path", To(Text, "node_attestor.tpm_devid.devid_pub_path")),
    row("plugins.NodeAttestor.tpm_devid.devid_password", To(Text, "node_attestor.tpm_devid.devid_password")),
    row(
        "plugins.NodeAttestor.tpm_devid.tpm_device_path",
        To(Text, "node_attestor.tpm_devid.tpm_device_path"),
    ),
    row(
        "plugins.NodeAttestor.tpm_devid.owner_hierarchy_password",
        To(Text, "node_attestor.tpm_devid.owner_hierarchy_password"),
    ),
    row(
        "plugins.NodeAttestor.tpm_devid.endorsement_hierarchy_password",
        To(Text, "node_attestor.tpm_devid.endorsement_hierarchy_password"),
    ),
    row("plugins.NodeAttestor.http_challenge", Used),
    row("plugins.NodeAttestor.http_challenge.hostname", To(Text, "node_attestor.http_challenge.hostname")),
    row("plugins.NodeAttestor.http_challenge.agentname", To(Text, "node_attestor.http_challenge.agentname")),
    row("plugins.NodeAttestor.http_challenge.port", To(Integer, "node_attestor.http_challenge.port")),
    row("plugins.NodeAttestor.http_challenge.advertised_port", Used),
    row("plugins.NodeAttestor.k8s_psat", Used),
    row("plugins.NodeAttestor.k8s_psat.cluster", To(Text, "node_attestor.k8s_psat.cluster")),
    row("plugins.NodeAttestor.k8s_psat.token_path", To(Text, "node_attestor.k8s_psat.token_path")),
    row("plugins.NodeAttestor.*", Left(ATTESTOR)),
    row("plugins.WorkloadAttestor.unix", Used),
    row(
        "plugins.WorkloadAttestor.unix.discover_workload_path",
        To(Bool, "workload_attestor.unix.discover_workload_path"),
    ),
    row(
        "plugins.WorkloadAttestor.unix.workload_size_limit",
        To(Integer, "workload_attestor.unix.workload_size_limit"),
    ),
    row("plugins.WorkloadAttestor.systemd", Used),
    row("plugins.WorkloadAttestor.slurm", Used),
    row("plugins.WorkloadAttestor.docker", Used),
    row(
        "plugins.WorkloadAttestor.docker.docker_socket_path",
        To(Text, "workload_attestor.docker.docker_socket_path"),
    ),
    row(
        "plugins.WorkloadAttestor.docker.docker_version",
        To(Text, "workload_attestor.docker.docker_version"),
    ),
    row(
        "plugins.WorkloadAttestor.docker.podman_socket_path",
        To(Text, "workload_attestor.docker.podman_socket_path"),
    ),
    row("plugins.WorkloadAttestor.docker.podman_socket_path_template", Used),
    row("plugins.WorkloadAttestor.docker.container_id_cgroup_matchers", Used),
    row(
        "plugins.WorkloadAttestor.docker.use_new_container_locator",
        Moot("there is one way to find a container, by its cgroup of version 1 or 2"),
    ),
    row(
        "plugins.WorkloadAttestor.docker.verbose_container_locator_logs",
        Left("how a container was found is not logged in detail"),
    ),
    row("plugins.WorkloadAttestor.docker.docker_host", Moot(PIPE)),
    row(
        "plugins.WorkloadAttestor.docker.sigstore",
        Left(
            "signatures of images are not verified: entries with selectors of signatures or attestations match no process; \
             docker:image_config_digest says what runs",
        ),
    ),
    row("plugins.WorkloadAttestor.k8s", Used),
    row(
        "plugins.WorkloadAttestor.k8s.kubelet_read_only_port",
        To(Integer, "workload_attestor.k8s.kubelet_read_only_port"),
    ),
    row("plugins.WorkloadAttestor.k8s.kubelet_secure_port", Used),
    row("plugins.WorkloadAttestor.k8s.kubelet_ca_path", To(Text, "workload_attestor.k8s.kubelet_ca_path")),
    row(
        "plugins.WorkloadAttestor.k8s.skip_kubelet_verification",
        To(Bool, "workload_attestor.k8s.skip_kubelet_verification"),
    ),
    row("plugins.WorkloadAttestor.k8s.token_path", To(Text, "workload_attestor.k8s.token_path")),
    row("plugins.WorkloadAttestor.k8s.certificate_path", To(Text, "workload_attestor.k8s.certificate_path")),
    row("plugins.WorkloadAttestor.k8s.private_key_path", To(Text, "workload_attestor.k8s.private_key_path")),
    row(
        "plugins.WorkloadAttestor.k8s.use_anonymous_authentication",
        To(Bool, "workload_attestor.k8s.use_anonymous_authentication"),
    ),
    row("plugins.WorkloadAttestor.k8s.node_name", To(Text, "workload_attestor.k8s.node_name")),
    row("plugins.WorkloadAttestor.k8s.node_name_env", To(Text, "workload_attestor.k8s.node_name_env")),
    row("plugins.WorkloadAttestor.k8s.max_poll_attempts", Used),
    row(
        "plugins.WorkloadAttestor.k8s.poll_retry_interval",
        To(Duration, "workload_attestor.k8s.poll_retry_interval"),
    ),
    row(
        "plugins.WorkloadAttestor.k8s.disable_container_selectors",
        To(Bool, "workload_attestor.k8s.disable_container_selectors"),
    ),
    row(
        "plugins.WorkloadAttestor.k8s.reload_interval",
        Moot("tokens, certificates and authorities are read from their files for each question"),
    ),
    row(
        "plugins.WorkloadAttestor.k8s.use_new_container_locator",
        Moot("there is one way to find a container, by its cgroup of version 1 or 2"),
    ),
    row(
        "plugins.WorkloadAttestor.k8s.verbose_container_locator_logs",
        Left("how a container was found is not logged in detail"),
    ),
    row(
        "plugins.WorkloadAttestor.k8s.enable_namespace_labels",
        Left("labels of namespaces are not known to the kubelet: entries with k8s:ns-label match no process"),
    ),
    row(
        "plugins.WorkloadAttestor.k8s.disable_kubelet_client",
        Left("the kubelet is always asked: without its answer nothing is known of a pod"),
    ),
    row("plugins.WorkloadAttestor.k8s.sigstore", Left(SIGSTORE)),
    row("plugins.WorkloadAttestor.k8s.experimental.sigstore", Left(SIGSTORE)),
    row(
        "plugins.WorkloadAttestor.k8s.experimental.broker",
        Left("brokers name workloads by process; references to objects of Kubernetes are not understood"),
    ),
    row("plugins.WorkloadAttestor.*", Left(WORKLOAD)),
    row(
        "plugins.SVIDStore.*",
        Left("SVIDs are not stored elsewhere: entries with store_svid are delivered to nobody"),
    ),
];

fn compose(import: &mut Import<'_>) {
    let folder = import.text("agent.data_dir").unwrap_or_else(|| ".".to_owned());
    let own = format!("{}/bonafide", folder.trim_end_matches('/'));
    let why = "A folder of its own within SPIRE's: both keep files of the same names, and SPIRE's must stay as they are for as \
               long as there is a way back.";
    import.set("data_dir", own.clone(), "agent.data_dir", Some(why));
    if !import.is_set("trust_domain") {
        import.refuse("agent.trust_domain", "is required");
    }
    let address = import.text("agent.server_address");
    let port = import.integer("agent.server_port").filter(|port| *port != 0);
    match (address, port) {
        (Some(address), Some(port)) => {
            let address = address.trim_matches(['[', ']']);
            let colon = address.contains(':');
            let address = if colon { format!("[{address}]:{port}") } else { format!("{address}:{port}") };
            import.set("server.address", address, "agent.server_address", None);
        }
        (address, port) => {
            if address.is_none() {
                import.refuse("agent.server_address", "is required");
            }
            if port.is_none() {
                import.refuse("agent.server_port", "is required");
            }
        }
    }
    let socket = import.text("agent.socket_path");
    let socket = socket.unwrap_or_else(|| "/tmp/spire-agent/public/api.sock".to_owned());
    import.set("workload_api.socket", socket, "agent.socket_path", None);
    if import.bool("agent.disable_workload_api") == Some(true) {
        import.set("workload_api.enabled", false, "agent.disable_workload_api", None);
        import.note(
            "agent.disable_workload_api",
            "the socket is there all the same, for questions after the agent's health",
        );
    }
    if import.has("plugins.KeyManager.memory") {
        if import.has("plugins.KeyManager.disk") {
            import.refuse("plugins.KeyManager.memory", "there can be one KeyManager");
        } else {
            import.set("key_manager", "memory", "plugins.KeyManager.memory", None);
        }
    }
    if let Some(level) = import.text("agent.log_level") {
        import.set("log.level", shared::log_level(&level), "agent.log_level", None);
    }
    for (setting, key) in [
        ("agent.x509_svid_cache_max_size", "svid.x509_cache_size"),
        ("agent.jwt_svid_cache_max_size", "svid.jwt_cache_size"),
    ] {
        // Zero and less mean the default, which is the same.
        if let Some(size) = import.integer(setting).filter(|size| *size > 0) {
            import.set(key, size, setting, None);
        }
    }
    if import.bool("agent.experimental.use_sync_authorized_entries") == Some(false) {
        let why = "the agent always asks by SyncAuthorizedEntries";
        import.left("agent.experimental.use_sync_authorized_entries", why);
    }
    shared::health(import, "health_address");
    bootstrap(import, &own);
    rebootstrap(import);
    delegates(import);
    node_attestor(import, &own);
    workload_attestors(import);
}

fn bootstrap(import: &mut Import<'_>, data_dir: &str) {
    const FORMAT: &str = "agent.trust_bundle_format";
    const SOCKET: &str = "agent.trust_bundle_unix_socket";
    const WHY: &str = "The bundle by which the agent recognises its server must hold the authority of the server that it is going to.";
    let insecure = import.bool("agent.insecure_bootstrap").unwrap_or(false);
    let sources = [
        ("agent.trust_bundle_path", "bootstrap.bundle_file"),
        ("agent.trust_bundle_url", "bootstrap.bundle_url"),
        ("agent.trust_bundle_spiffe_workload_api", "bootstrap.bundle_workload_api"),
    ];
    let given = sources.map(|(setting, key)| import.text(setting).map(|value| (setting, key, value)));
    let mut given = given.into_iter().flatten();
    let first = given.next();
    let excluded = match &first {
        Some((first, ..)) if insecure => Some(("agent.insecure_bootstrap", *first)),
        Some((first, ..)) => given.next().map(|(second, ..)| (second, *first)),
        None => None,
    };
    if let Some((setting, other)) = excluded {
        let other = other.trim_start_matches("agent.");
        return import.refuse(setting, &format!("excludes {other}; remove one of them"));
    }
    let url = first.as_ref().is_some_and(|(setting, ..)| *setting == "agent.trust_bundle_url");
    match import.text(SOCKET) {
        Some(socket) if url => import.set("bootstrap.bundle_unix_socket", socket, SOCKET, None),
        Some(_) => import.refuse(SOCKET, "needs trust_bundle_url"),
        None => {}
    }
    let format = import.text(FORMAT);
    match first {
        Some((setting, key, value)) => {
            import.set(key, value, setting, Some(WHY));
            if key != "bootstrap.bundle_workload_api" {
                let format = format.unwrap_or_else(|| "pem".to_owned());
                return import.set("bootstrap.bundle_format", format, FORMAT, None);
            }
        }
        None if insecure => import.set("bootstrap.insecure", true, "agent.insecure_bootstrap", None),
        None => {
            // A file that is not there: the agent says so and trusts nobody.
            import.set("bootstrap.bundle_file", format!("{data_dir}/bootstrap-bundle.pem"), "", Some(WHY));
        }
    }
    if format.is_some() {
        import.moot(FORMAT, "it says nothing without trust_bundle_path or trust_bundle_url");
    }
}

fn rebootstrap(import: &mut Import<'_>) {
    const MODE: &str = "agent.rebootstrap_mode";
    const DELAY: &str = "agent.rebootstrap_delay";
    let mode = import.text(MODE);
    let on = mode.as_deref().is_some_and(|mode| mode != "never");
    if on && import.bool("agent.insecure_bootstrap") == Some(true) {
        return import.refuse(MODE, "excludes insecure_bootstrap; remove one of them");
    }
    if on {
        import.note(MODE, "the agent goes on while it begins anew, and workloads keep what they hold");
    }
    if let Some(mode) = mode {
        import.set("bootstrap.rebootstrap_mode", mode, MODE, None);
    }
    if import.text(DELAY).is_none() {
        return;
    }
    let delay = import.value(DELAY, Duration);
    if on {
        // No delay is a delay of SPIRE's, and not its default.
        import.set("bootstrap.rebootstrap_delay", delay.unwrap_or_else(|| "0s".into()), DELAY, None);
    } else {
        import.moot(DELAY, "it says nothing in the mode never");
    }
}

fn delegates(import: &mut Import<'_>) {
    const DELEGATES: &str = "agent.authorized_delegates";
    const ADDRESS: &str = "agent.experimental.broker.bind_address";
    const RIGHTS: &str =
        "identities of entries with admin or downstream are given to nobody but the workload";
    let ids = import.value(DELEGATES, Texts).filter(|ids| ids.as_array().is_some_and(|ids| !ids.is_empty()));
    if let Some(ids) = ids {
        if import.is_set("admin.socket") {
            import.set("admin.authorized_delegates", ids, DELEGATES, None);
            import.note(DELEGATES, RIGHTS);
        } else {
            import.moot(DELEGATES, "it says nothing without admin_socket_path");
        }
    }
    if !import.has("agent.experimental.broker") {
        return;
    }
    import.note(
        "agent.experimental.broker",
        &format!(
            "{RIGHTS}; a broker may name workloads by WorkloadPIDReference, other types of references are not understood"
        ),
    );
    let address = import.text(ADDRESS);
    if address.is_none() && !import.is_set("broker.socket") {
        import.refuse("agent.experimental.broker", "requires socket_path, bind_address, or both");
    }
    if let Some(address) = address {
        let (name, port) = address.rsplit_once(':').unwrap_or((&address, ""));
        let host = if name.is_empty() { Some("0.0.0.0".to_owned()) } else { shared::host(name) };
        let host = host.unwrap_or_else(|| {
            let why = "it is a name, and the agent binds to addresses only: write the address into broker.address, where \
                       127.0.0.1 stands now";
            import.left(ADDRESS, why);
            "127.0.0.1".to_owned()
        });
        import.set("broker.address", format!("{host}:{port}"), ADDRESS, None);
    }
}

fn node_attestor(import: &mut Import<'_>, data_dir: &str) {
    const TOKEN: &str = "node_attestor.join_token.token";
    const TOKEN_FILE: &str = "node_attestor.join_token.token_file";
    const ONCE: &str =
        "Good for one attestation with the server that made it: put a token of the new server here.";
    let token = import.text("agent.join_token");
    let file = import.text("agent.join_token_file");
    if token.is_some() && file.is_some() {
        import.refuse("agent.join_token_file", "excludes join_token; remove one of them");
    }
    let known = ["x509pop", "sshpop", "tpm_devid", "http_challenge", "k8s_psat", "join_token"];
    let plugin = |name: &str| format!("plugins.NodeAttestor.{name}");
    let given: Vec<&str> = known.into_iter().filter(|name| import.has(&plugin(name))).collect();
    for second in given.iter().skip(1) {
        import.refuse(&plugin(second), "there can be one NodeAttestor");
    }
    let attestor = given.first().copied().unwrap_or("join_token");
    if attestor != "join_token" {
        for setting in ["agent.join_token", "agent.join_token_file"] {
            if import.has(setting) {
                let why = format!("the agent attests by {attestor}; remove that table to use a token");
                import.left(setting, &why);
            }
        }
    }
    match (token, file) {
        _ if attestor == "x509pop" => {
            for (key, file) in [("certificate_path", "node.pem"), ("private_key_path", "node.key")] {
                let key = format!("node_attestor.x509pop.{key}");
                let why = "SPIRE's file names none: put it there.";
                if !import.is_set(&key) {
                    import.set(&key, format!("{data_dir}/{file}"), "", Some(why));
                }
            }
        }
        _ if attestor == "sshpop" => {
            import.default("node_attestor.sshpop.host_key_path", "/etc/ssh/ssh_host_rsa_key");
            import.default("node_attestor.sshpop.host_cert_path", "/etc/ssh/ssh_host_rsa_key-cert.pub");
        }
        // Its settings are carried one by one.
        _ if attestor == "tpm_devid" => {}
        _ if attestor == "http_challenge" => {
            const PORT: &str = "plugins.NodeAttestor.http_challenge.advertised_port";
            import.default("node_attestor.http_challenge.agentname", "default");
            // Zero means the port that is open.
            if let Some(port) = import.integer(PORT).filter(|port| *port != 0) {
                import.set("node_attestor.http_challenge.advertised_port", port, PORT, None);
            }
        }
        _ if attestor == "k8s_psat" => {
            if !import.is_set("node_attestor.k8s_psat.cluster") {
                import.refuse("plugins.NodeAttestor.k8s_psat.cluster", "is required");
            }
        }
        (Some(token), _) => import.set(TOKEN, token, "agent.join_token", Some(ONCE)),
        (None, Some(file)) => import.set(TOKEN_FILE, file, "agent.join_token_file", Some(ONCE)),
        (None, None) => {
            let why = "Say here how this node attests; until then the agent holds nothing to attest with.";
            import.set_table("node_attestor.join_token", "", Some(why));
        }
    }
}

/// Each attestor that SPIRE's file has gets its table, for without one it does not run.
fn workload_attestors(import: &mut Import<'_>) {
    const DOCKER: &str = "plugins.WorkloadAttestor.docker";
    let [unix, systemd, docker, k8s, slurm] = ["unix", "systemd", "docker", "k8s", "slurm"]
        .map(|name| import.has(&format!("plugins.WorkloadAttestor.{name}")));
    if unix {
        import.default("workload_attestor.unix.discover_workload_path", false);
    } else if !systemd && !docker && !k8s && !slurm {
        import.note(
            "plugins.WorkloadAttestor.unix",
            "SPIRE's file has no workload attestor that exists here; unix runs then, and entries with its selectors match",
        );
    }
    if systemd {
        import.default("workload_attestor.systemd.bus_socket", "/run/dbus/system_bus_socket");
    }
    if k8s {
        kubelet(import);
    }
    if slurm {
        import.default("workload_attestor.slurm.cgroup_root", "/sys/fs/cgroup");
    }
    if !docker {
        return;
    }
    import.default("workload_attestor.docker.docker_socket_path", "/var/run/docker.sock");
    let setting = format!("{DOCKER}.podman_socket_path_template");
    match import.text(&setting) {
        Some(template) => {
            import.set("workload_attestor.docker.podman_socket_path_template", template, &setting, None);
            let why = "each user with such a socket can get any docker selector: leave it out where users may not be trusted \
                       with that";
            import.note(&setting, why);
        }
        None => import.note(
            &setting,
            "SPIRE asks the Podman of a user at /run/user/%d/podman/podman.sock unless told otherwise; here nobody is asked unless \
             it is given, for that user could get any docker selector: give it if containers of users have entries",
        ),
    }
    let setting = format!("{DOCKER}.container_id_cgroup_matchers");
    if let Some(patterns) = import.value(&setting, Texts) {
        import.set("workload_attestor.docker.container_id_cgroup_matchers", patterns, &setting, None);
        import.note(
            &setting,
            "a container's ID must have 64 hexadecimal digits and be all between two slashes",
        );
    }
}

fn kubelet(import: &mut Import<'_>) {
    const PORT: &str = "plugins.WorkloadAttestor.k8s.kubelet_secure_port";
    const ATTEMPTS: &str = "plugins.WorkloadAttestor.k8s.max_poll_attempts";
    const SOCKET: &str = "The kubelet's Pods API is used where this socket is, and the port elsewhere.";
    let socket = crate::workload_attestor::kubernetes::source::DEFAULT_PODS_API_SOCKET;
    import.set("workload_attestor.k8s.pods_api_socket", socket.to_owned(), "", Some(SOCKET));
    // Zero means the default.
    if let Some(port) = import.integer(PORT).filter(|port| *port != 0) {
        import.set("workload_attestor.k8s.kubelet_secure_port", port, PORT, None);
    }
    if let Some(attempts) = import.integer(ATTEMPTS).filter(|attempts| *attempts > 0) {
        import.set("workload_attestor.k8s.max_poll_attempts", attempts, ATTEMPTS, None);
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::Path;

    use bonafide_runtime::import::{Translation, translate};

    use super::*;
    use crate::config::{
        BootstrapConfig, BundleFormat, JoinTokenSource, NodeAttestorConfig, RebootstrapMode,
        WorkloadAttestorConfig,
    };

    fn attempt(text: &str) -> Result<Translation, Vec<String>> {
        translate(&TABLE, "agent.conf", text, &|_| Err(io::Error::from(io::ErrorKind::NotFound)))
            .map_err(|mistakes| mistakes.iter().map(ToString::to_string).collect())
    }

    fn import(text: &str) -> (Config, Translation) {
        let translation = attempt(text).unwrap();
        let config = Config::parse(Path::new("agent.toml"), &translation.text).unwrap();
        (config, translation)
    }

    fn left(translation: &Translation) -> Vec<&str> {
        let mut left: Vec<&str> = translation.left.iter().map(|remark| remark.setting.as_str()).collect();
        left.sort_unstable();
        left
    }

    const LEAST: &str =
        "agent {\n trust_domain = \"example.org\"\n server_address = \"server\"\n server_port = 8081\n}\n";

    #[test]
    fn defaults_stay_those_of_spire_and_nothing_is_trusted_by_accident() {
        let (config, translation) = import(LEAST);
        assert_eq!(config.workload_socket, Path::new("/tmp/spire-agent/public/api.sock"));
        assert_eq!(config.data_dir, Path::new("./bonafide"));
        assert!(matches!(config.bootstrap, BootstrapConfig::Bundle { .. }));
        assert!(config.node_attestor == NodeAttestorConfig::JoinToken(JoinTokenSource::None));
        assert_eq!(left(&translation), Vec::<&str>::new());
    }

    #[test]
    fn all_that_exists_here_is_carried() {
        let (config, translation) = import(
            r#"{"agent": [{"trust_domain": "example.org", "server_address": "::1", "server_port": "9081",
              "data_dir": "/d/", "admin_socket_path": "/run/p/admin.sock", "socket_path": "/run/a.sock",
              "trust_bundle_path": "b.json", "trust_bundle_format": "spiffe", "log_level": "DEBUG",
              "workload_x509_svid_key_type": "ec-p384", "availability_target": "24h0m0s",
              "x509_svid_cache_max_size": 7, "jwt_svid_cache_max_size": 0, "allow_unauthenticated_verifiers": true,
              "allowed_foreign_jwt_claims": ["scope"], "rebootstrap_mode": "never",
              "experimental": {"sync_interval": "2s", "use_sync_authorized_entries": true}}],
             "health_checks": {"listener_enabled": true, "bind_address": "0.0.0.0", "bind_port": "8082"},
             "plugins": [{"NodeAttestor": [{"x509pop": {"plugin_data": {"certificate_path": "c", "private_key_path": "k"}}}],
              "KeyManager": {"disk": {"plugin_data": {"directory": "x"}}},
              "WorkloadAttestor": [{"unix": [{"plugin_data": [{"discover_workload_path": true, "workload_size_limit": -1}]}]}]}]}"#,
        );
        assert_eq!(left(&translation), Vec::<&str>::new());
        assert_eq!((config.server.host.as_str(), config.server.port), ("::1", 9081));
        assert_eq!(config.data_dir, Path::new("/d/bonafide"));
        let bundle = BootstrapConfig::Bundle { file: "b.json".into(), format: BundleFormat::Spiffe };
        assert_eq!(config.bootstrap, bundle);
        assert!(matches!(config.node_attestor, NodeAttestorConfig::X509Pop { .. }));
        assert_eq!((config.svid.x509_cache_size, config.svid.jwt_cache_size), (7, 1000));
        assert_eq!(config.health_address.unwrap().to_string(), "0.0.0.0:8082");
        assert_eq!(config.sync_interval.as_secs(), 2);
        assert!(config.svid.availability_target.is_some() && config.allow_unauthenticated_verifiers);
        let WorkloadAttestorConfig::Unix(unix) = &config.workload_attestors[0] else {
            panic!("{:?}", config.workload_attestors);
        };
        assert!(unix.discover_workload_path && unix.workload_size_limit == -1);
    }

    #[test]
    fn what_does_not_exist_here_is_named_without_secrets() {
        let (config, translation) = import(
            r#"agent {
              trust_domain = "example.org" server_address = "server" server_port = 8081
              join_token = "the-token" log_selectors = ["unix:uid"] disable_workload_api = true
              trust_bundle_format = "spiffe" rebootstrap_delay = "1m" authorized_delegates = ["spiffe://example.org/d"]
              sds { default_svid_name = "x" disable_spiffe_cert_validation = false }
              experimental {
                use_sync_authorized_entries = false
                ratelimit { stream_secrets = 5 fetch_secrets = 0 }
              }
            }
            plugins {
              KeyManager "memory" { plugin_data { } }
              WorkloadAttestor "windows" { plugin_data { } }
              NodeAttestor "made_elsewhere" { plugin_data { password = "hidden" } }
              SVIDStore "aws_secretsmanager" { plugin_data { secretaccesskey = "hidden" } }
            }
            health_checks { bind_port = "8080" }
            telemetry { Prometheus { host = "localhost" } }"#,
        );
        assert_eq!(
            left(&translation),
            [
                "agent.experimental.ratelimit.stream_secrets",
                "agent.experimental.use_sync_authorized_entries",
                "agent.sds.default_svid_name",
                "plugins.NodeAttestor.made_elsewhere",
                "plugins.SVIDStore.aws_secretsmanager",
                "plugins.WorkloadAttestor.windows",
            ]
        );
        assert!(!translation.text.contains("hidden"), "{}", translation.text);
        assert_eq!(
            (config.workload_api_enabled, config.key_manager),
            (false, super::super::KeyStorage::Memory)
        );
        assert_eq!(config.log_selectors, ["unix:uid"]);
        let file = "./bonafide/bootstrap-bundle.pem".into();
        assert_eq!(config.bootstrap, BootstrapConfig::Bundle { file, format: BundleFormat::Pem });
        let moot: Vec<&str> = translation.moot.iter().map(|remark| remark.setting.as_str()).collect();
        for setting in [
            "agent.trust_bundle_format",
            "agent.rebootstrap_delay",
            "agent.authorized_delegates",
            "agent.experimental.ratelimit.fetch_secrets",
            "health_checks.bind_port",
            "telemetry.Prometheus.host",
        ] {
            assert!(moot.contains(&setting), "{setting} in {moot:?}");
        }
        assert_eq!(translation.text.matches("the-token").count(), 1, "{}", translation.text);
    }

    #[test]
    fn sources_of_the_bundle_and_beginning_anew() {
        let with = |text: &str| import(&format!("{LEAST}agent {{ {text} }}")).0;
        let config = with(
            "trust_bundle_url = \"http://b/x\" trust_bundle_unix_socket = \"/b.sock\" trust_bundle_format = \"spiffe\"\n\
             rebootstrap_mode = \"auto\" rebootstrap_delay = \"1.5m\"",
        );
        let BootstrapConfig::Url { url, format: BundleFormat::Spiffe } = config.bootstrap else {
            panic!("{:?}", config.bootstrap);
        };
        assert_eq!(url.to_string(), "http://b/x on /b.sock");
        assert_eq!(
            (config.rebootstrap.mode, config.rebootstrap.delay.as_secs()),
            (RebootstrapMode::Auto, 90)
        );
        let config = with(
            "trust_bundle_spiffe_workload_api = \"unix:///a.sock\" rebootstrap_mode = \"always\" rebootstrap_delay = \"0s\"",
        );
        assert_eq!(config.bootstrap, BootstrapConfig::WorkloadApi { socket: "/a.sock".into() });
        assert_eq!(
            (config.rebootstrap.mode, config.rebootstrap.delay.as_secs()),
            (RebootstrapMode::Always, 0)
        );
        assert_eq!(with("trust_bundle_url = \"https://b\"").rebootstrap.mode, RebootstrapMode::Never);
        for (text, start) in [
            (
                "insecure_bootstrap = true trust_bundle_url = \"https://b\"",
                "agent.insecure_bootstrap: excludes",
            ),
            (
                "trust_bundle_path = \"p\" trust_bundle_url = \"https://b\"",
                "agent.trust_bundle_url: excludes trust_bundle_path",
            ),
            ("trust_bundle_unix_socket = \"/b\"", "agent.trust_bundle_unix_socket: needs"),
            ("trust_bundle_url = \"http://b\"", "agent.trust_bundle_url, here bootstrap.bundle_url: "),
            ("insecure_bootstrap = true rebootstrap_mode = \"auto\"", "agent.rebootstrap_mode: excludes"),
            ("rebootstrap_mode = \"soon\"", "agent.rebootstrap_mode, here bootstrap.rebootstrap_mode: "),
            ("rebootstrap_mode = \"auto\" rebootstrap_delay = \"soon\"", "agent.rebootstrap_delay: "),
        ] {
            let found = attempt(&format!("{LEAST}agent {{ {text} }}")).unwrap_err();
            assert_eq!(found.len(), 1, "{text}: {found:?}");
            assert!(found[0].starts_with("agent.conf:6:") && found[0].contains(start), "{text}: {found:?}");
        }
    }

    #[test]
    fn delegates_brokers_and_limits() {
        let (config, translation) = import(&format!(
            r#"{LEAST}agent {{
              admin_socket_path = "/run/p/admin.sock" authorized_delegates = ["spiffe://example.org/d"]
              experimental {{
                ratelimit {{ fetch_x509_svid = 5 fetch_jwt_svid = "6" fetch_x509_bundles = 7 fetch_jwt_bundles = 0 }}
                broker {{
                  socket_path = "/run/b/b.sock" bind_address = ":8443"
                  brokers = [{{
                    id = "spiffe://example.org/b"
                    allowed_reference_types = [{{ type_url = "t" }}, {{ type_url = "u" allow_over_tcp = true }}]
                  }}]
                  brokers {{ id = "spiffe://other.org/b" allowed_reference_types {{ type_url = "*" }} }}
                }}
              }}
            }}"#
        ));
        assert_eq!(left(&translation), Vec::<&str>::new());
        assert_eq!(config.authorized_delegates.len(), 1);
        let limits = config.rate_limits;
        assert_eq!(
            (
                limits.fetch_x509_svid,
                limits.fetch_jwt_svid,
                limits.fetch_x509_bundles,
                limits.fetch_jwt_bundles
            ),
            (5, 6, 7, 0)
        );
        assert_eq!(config.broker.socket.as_deref(), Some(Path::new("/run/b/b.sock")));
        assert_eq!(config.broker.address.unwrap().to_string(), "0.0.0.0:8443");
        let brokers: Vec<_> =
            config.broker.brokers.iter().map(|(id, types)| (id.to_string(), &types.0)).collect();
        assert_eq!(brokers[0].0, "spiffe://example.org/b");
        assert_eq!(brokers[0].1.values().copied().collect::<Vec<_>>(), [false, true]);
        assert_eq!(brokers[1].0, "spiffe://other.org/b");
        assert!(translation.text.contains("WorkloadPIDReference"), "{}", translation.text);

        let broker =
            |text: &str| attempt(&format!("{LEAST}agent {{ experimental {{ broker {{ {text} }} }} }}"));
        let named = broker(
            "bind_address = \"host:1\" brokers { id = \"spiffe://a/b\" allowed_reference_types { type_url = \"*\" } }",
        );
        assert_eq!(left(&named.unwrap()), ["agent.experimental.broker.bind_address"]);
        for (text, part) in [
            ("brokers = []", "agent.experimental.broker: requires socket_path"),
            (
                "socket_path = \"/b/s\" brokers { name = \"x\" }",
                "SPIRE has no such setting as \"name\" there",
            ),
            ("socket_path = \"/b/s\" brokers = [1]", "must be blocks in braces"),
            (
                "socket_path = \"/b/s\" sokcet = 1",
                "agent.experimental.broker.sokcet: SPIRE has no such setting",
            ),
            (
                "socket_path = \"/b/s\" brokers = []",
                "agent.experimental.broker.brokers, here broker.brokers: must name",
            ),
        ] {
            let found = broker(text).unwrap_err();
            assert_eq!(found.len(), 1, "{text}: {found:?}");
            assert!(found[0].starts_with("agent.conf:6:") && found[0].contains(part), "{text}: {found:?}");
        }
    }

    #[test]
    fn node_attestors_are_carried_with_the_defaults_of_spire() {
        let with = |text: &str| import(&format!("{LEAST}plugins {{ NodeAttestor {text} }}"));
        let (config, _) = with("\"sshpop\" { plugin_data { host_key_path = \"/k\" } }");
        let NodeAttestorConfig::SshPop { host_key, host_cert } = config.node_attestor else { panic!() };
        assert_eq!((host_key, host_cert), ("/k".into(), "/etc/ssh/ssh_host_rsa_key-cert.pub".into()));
        let (config, translation) = with(
            "\"tpm_devid\" { plugin_data { devid_cert_path = \"/c\" devid_priv_path = \"/k\" devid_pub_path = \"/p\" \
             devid_password = \"pw\" owner_hierarchy_password = \"ow\" } }",
        );
        let NodeAttestorConfig::TpmDevId(devid) = config.node_attestor else { panic!() };
        assert_eq!((devid.devid_cert, devid.devid_priv), ("/c".into(), "/k".into()));
        assert_eq!((devid.devid_password.expose(), devid.owner_hierarchy_password.expose()), ("pw", "ow"));
        assert_eq!(left(&translation), Vec::<&str>::new());
        for empty in ["{ }", "{ plugin_data { } }", "{ plugin_data { advertised_port = 0 } }"] {
            let (config, _) = with(&format!("\"http_challenge\" {empty}"));
            let NodeAttestorConfig::HttpChallenge(challenge) = config.node_attestor else { panic!() };
            assert_eq!((challenge.agentname.as_str(), challenge.advertised_port), ("default", None));
        }
        let (config, _) = with(
            "\"http_challenge\" { plugin_data { hostname = \"h\" agentname = \"a\" port = 80 advertised_port = \"81\" } }",
        );
        let NodeAttestorConfig::HttpChallenge(challenge) = config.node_attestor else { panic!() };
        assert_eq!((challenge.hostname.as_deref(), challenge.agentname.as_str()), (Some("h"), "a"));
        assert_eq!((challenge.port, challenge.advertised_port), (80, Some(81)));
        let (config, translation) =
            with("\"k8s_psat\" { plugin_data { cluster = \"prod\" token_path = \"/t\" } }");
        let NodeAttestorConfig::K8sPsat { cluster, token_path } = config.node_attestor else { panic!() };
        assert_eq!((cluster.as_str(), token_path), ("prod", "/t".into()));
        assert_eq!(left(&translation), Vec::<&str>::new());
        let found = attempt(&format!("{LEAST}plugins {{ NodeAttestor \"k8s_psat\" {{ }} }}")).unwrap_err();
        assert!(found[0].contains("plugins.NodeAttestor.k8s_psat.cluster: is required"), "{found:?}");
        let (config, translation) = import(&format!(
            "{LEAST}agent {{ join_token = \"the-token\" }}\nplugins {{ NodeAttestor \"sshpop\" {{ }} }}"
        ));
        assert!(matches!(config.node_attestor, NodeAttestorConfig::SshPop { .. }));
        assert_eq!(left(&translation), ["agent.join_token"]);
        assert!(!translation.text.contains("the-token"), "{}", translation.text);
        let two = "plugins { NodeAttestor \"sshpop\" { } NodeAttestor \"join_token\" { } }";
        let found = attempt(&format!("{LEAST}{two}")).unwrap_err();
        assert_eq!(
            found,
            ["agent.conf:6:50: plugins.NodeAttestor.join_token: there can be one NodeAttestor"]
        );
    }

    #[test]
    fn each_workload_attestor_runs_only_when_it_is_there() {
        let with = |text: &str| {
            let (config, translation) = import(&format!("{LEAST}plugins {{ {text} }}"));
            (config.workload_attestors, translation)
        };
        let unix = "WorkloadAttestor \"unix\" { }";
        let (found, translation) =
            with(&format!("{unix} WorkloadAttestor \"systemd\" {{ plugin_data {{ }} }}"));
        assert!(
            matches!(found[..], [WorkloadAttestorConfig::Unix(_), WorkloadAttestorConfig::Systemd(_)]),
            "{found:?}"
        );
        assert_eq!(left(&translation), Vec::<&str>::new());
        let (found, translation) = with("WorkloadAttestor \"systemd\" { }");
        assert!(matches!(found[..], [WorkloadAttestorConfig::Systemd(_)]), "{found:?}");
        assert!(!translation.text.contains("unix runs then"), "{}", translation.text);
        let (found, _) = with("WorkloadAttestor \"k8s\" { }");
        assert!(matches!(found[..], [WorkloadAttestorConfig::K8s(_)]), "{found:?}");
        let (found, translation) = with(
            r#"WorkloadAttestor "k8s" { plugin_data {
              kubelet_secure_port = 10251 kubelet_ca_path = "/ca" token_path = "/t" node_name_env = "NODE" node_name = "n"
              max_poll_attempts = 7 poll_retry_interval = "250ms" reload_interval = "1m" disable_container_selectors = true
              use_new_container_locator = true verbose_container_locator_logs = true enable_namespace_labels = true
              experimental { sigstore { allowed_identities { "i" = ["s"] } } broker { access_policy = "enforced" } }
            } }"#,
        );
        let [WorkloadAttestorConfig::K8s(k8s)] = &found[..] else { panic!("{found:?}") };
        assert_eq!((k8s.kubelet.port, k8s.kubelet.node_name.as_deref()), (10251, Some("n")));
        assert_eq!((k8s.waiting.attempts, k8s.waiting.interval.as_millis()), (7, 250));
        assert!(k8s.disable_container_selectors && k8s.node_name_env == "NODE");
        assert_eq!(
            left(&translation),
            [
                "plugins.WorkloadAttestor.k8s.enable_namespace_labels",
                "plugins.WorkloadAttestor.k8s.experimental.broker",
                "plugins.WorkloadAttestor.k8s.experimental.sigstore",
                "plugins.WorkloadAttestor.k8s.verbose_container_locator_logs",
            ]
        );
        let (found, _) = with(
            "WorkloadAttestor \"k8s\" { plugin_data { kubelet_read_only_port = 10255 kubelet_secure_port = 0 } }",
        );
        let [WorkloadAttestorConfig::K8s(k8s)] = &found[..] else { panic!("{found:?}") };
        assert!(k8s.kubelet.port == 10255 && k8s.kubelet.tls.is_none());
        let (found, translation) = with("WorkloadAttestor \"slurm\" { }");
        assert!(matches!(found[..], [WorkloadAttestorConfig::Slurm(_)]), "{found:?}");
        assert!(!translation.text.contains("unix runs then"), "{}", translation.text);
        let (found, translation) = with("WorkloadAttestor \"windows\" { }");
        assert!(matches!(found[..], [WorkloadAttestorConfig::Unix(_)]), "{found:?}");
        assert!(translation.text.contains("unix runs then"), "{}", translation.text);

        let (found, translation) = with("WorkloadAttestor \"docker\" { plugin_data { } }");
        let [WorkloadAttestorConfig::Docker(docker)] = &found[..] else { panic!("{found:?}") };
        assert_eq!(docker.podman_user_socket, None);
        assert!(translation.text.contains("/run/user/%d/podman/podman.sock"), "{}", translation.text);
        let (found, translation) = with(
            r#"WorkloadAttestor "docker" { plugin_data {
              docker_socket_path = "unix:///d.sock" docker_version = "1.44" podman_socket_path = "unix:///p.sock"
              podman_socket_path_template = "unix:///u/%d.sock" container_id_cgroup_matchers = ["/my.slice/*/<id>"]
              use_new_container_locator = false verbose_container_locator_logs = true docker_host = "npipe:x"
              sigstore { registry_credentials { "docker.io" { username = "u" password = "hidden" } } }
            } }"#,
        );
        let [WorkloadAttestorConfig::Docker(docker)] = &found[..] else { panic!("{found:?}") };
        assert_eq!(
            (docker.docker_socket.as_path(), docker.podman_socket.as_path()),
            ("/d.sock".as_ref(), "/p.sock".as_ref())
        );
        assert!(docker.podman_user_socket.is_some() && docker.matchers.len() == 1);
        assert_eq!(docker.version.as_deref(), Some("1.44"));
        assert_eq!(
            left(&translation),
            [
                "plugins.WorkloadAttestor.docker.sigstore",
                "plugins.WorkloadAttestor.docker.verbose_container_locator_logs",
            ]
        );
        assert!(!translation.text.contains("hidden"), "{}", translation.text);
    }

    #[test]
    fn what_spire_refuses_is_refused() {
        let found =
            attempt(&format!("{LEAST}agent {{ insecure_boostrap = true\nsocket_path = \"\" }}")).unwrap_err();
        assert_eq!(found, ["agent.conf:6:9: agent.insecure_boostrap: SPIRE has no such setting"]);
        let found =
            attempt(&format!("{LEAST}agent {{ join_token = \"a\" join_token_file = \"b\" }}")).unwrap_err();
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(attempt("agent { }").unwrap_err().len(), 3);
    }

    /// Rows that write do so under keys that exist.
    #[test]
    fn the_table_writes_keys_that_are_read() {
        for Row { setting, carry } in ROWS {
            if let To(_, key) = carry {
                assert!(KEYS.iter().any(|known| known.path == *key), "{setting}: {key}");
            }
        }
    }
}
