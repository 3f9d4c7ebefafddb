//! The configuration's documentation as data, and the page made from it.

use std::fmt::Write as _;

/// One option.
#[derive(Debug)]
pub struct Field {
    /// The full path of the key.
    pub key: &'static str,
    /// What may be written.
    pub kind: &'static str,
    /// What holds when it is left out; `required` when it may not be.
    pub default: &'static str,
    /// What it does.
    pub doc: &'static str,
}

const fn field(key: &'static str, kind: &'static str, default: &'static str, doc: &'static str) -> Field {
    Field { key, kind, default, doc }
}

/// All options, in the order of the page.
pub const FIELDS: &[Field] = &[
    field("trust_domain", "trust domain", "required", "The trust domain this server issues identities for."),
    field(
        "data_dir",
        "path",
        "required",
        "The folder where the server keeps its files; it is created when missing.",
    ),
    field(
        "admin_ids",
        "list of SPIFFE IDs",
        "none",
        "IDs with administration rights over TLS, of this trust domain or of a federated one. Entries with `admin` \
         give the same rights.",
    ),
    field(
        "listen.address",
        "address",
        "`0.0.0.0:8081`",
        "TCP address for agents, downstream servers and remote administrators.",
    ),
    field(
        "listen.admin_socket",
        "path",
        "`/tmp/bonafide-server/private/api.sock`",
        "Unix socket for local administration. Whoever can open it is an administrator.",
    ),
    field(
        "listen.health_address",
        "address",
        "off",
        "Plain HTTP address of `/live`, `/ready` and `/metrics`.",
    ),
    field("listen.max_connections", "number", "20000", "TCP connections open at once; more are refused."),
    field(
        "listen.proxy_protocol_trusted_cidrs",
        "list of networks",
        "none",
        "Load balancers, such as `10.0.0.0/8`, that may say with the PROXY protocol (version 1 or 2) which client they speak for at \
         `listen.address`. That client's address then counts for limits, attestation and the audit log. When there are any, a header from \
         elsewhere ends its connection.",
    ),
    field(
        "log.level",
        "`panic`, `fatal`, `error`, `warn`, `info`, `debug` or `trace`",
        "`info`",
        "The least severity that is written.",
    ),
    field("log.format", "`text` or `json`", "`text`", "Lines for people or JSON objects for programs."),
    field("log.file", "path", "standard error", "Where the log goes. SIGUSR2 opens the file anew."),
    field(
        "log.source_location",
        "true or false",
        "`false`",
        "Whether each line says where in the source it comes from.",
    ),
    field(
        "audit.enabled",
        "true or false",
        "`true`",
        "Write one JSON object for each call: who, from where, what, the decision, serials issued.",
    ),
    field(
        "audit.file",
        "path",
        "`<data_dir>/audit.log`",
        "Where the audit log goes. SIGUSR2 opens the file anew, after a rotation for instance.",
    ),
    field(
        "authority.ca_ttl",
        "duration",
        "`24h`",
        "Lifetime of the X.509 CA and of the JWT and WIT keys. The next one is prepared at half of it.",
    ),
    field(
        "authority.default_x509_svid_ttl",
        "duration",
        "`1h`",
        "Lifetime of an X.509-SVID whose entry gives none. At most a sixth of `ca_ttl` (and seven days) can be guaranteed.",
    ),
    field(
        "authority.default_jwt_svid_ttl",
        "duration",
        "`5m`",
        "Lifetime of a JWT-SVID whose entry gives none.",
    ),
    field(
        "authority.default_wit_svid_ttl",
        "duration",
        "`1h`",
        "Lifetime of a minted WIT-SVID for which none is asked.",
    ),
    field("authority.agent_ttl", "duration", "`default_x509_svid_ttl`", "Lifetime of an agent's SVID."),
    field(
        "authority.ca_key_type",
        "`ec-p256`, `ec-p384`, `rsa-2048` or `rsa-4096`",
        "`ec-p256`",
        "Key of the X.509 CA.",
    ),
    field("authority.jwt_key_type", "as `ca_key_type`", "`ca_key_type`", "Key that signs JWT-SVIDs."),
    field("authority.wit_key_type", "as `ca_key_type`", "`ca_key_type`", "Key that signs WIT-SVIDs."),
    field(
        "authority.ca_subject.country",
        "list of strings",
        "`[\"US\"]`",
        "Country names in the subject of the CA certificate. The defaults hold only when the whole subject is left out.",
    ),
    field(
        "authority.ca_subject.organization",
        "list of strings",
        "`[\"SPIFFE\"]`",
        "Organizations in the subject of the CA certificate.",
    ),
    field(
        "authority.ca_subject.common_name",
        "string",
        "none",
        "Common name in the subject of the CA certificate.",
    ),
    field(
        "authority.jwt_issuer",
        "string",
        "none",
        "The `iss` claim of JWT-SVIDs; needed for federation with clouds by OpenID Connect.",
    ),
    field("authority.wit_issuer", "string", "none", "The `iss` claim of WIT-SVIDs."),
    field(
        "authority.disable_jwt_svids",
        "true or false",
        "`false`",
        "No JWT keys; calls for JWT-SVIDs are answered with Unimplemented.",
    ),
    field(
        "authority.disable_wit_svids",
        "true or false",
        "`false`",
        "No WIT keys; calls for WIT-SVIDs are answered with Unimplemented.",
    ),
    field(
        "key_manager.disk.path",
        "path",
        "`<data_dir>/keys.json`",
        "The file, of mode 0600, that holds the private keys.",
    ),
    field(
        "key_manager.memory",
        "empty table",
        "off",
        "Keep private keys in memory only: a restart makes new authorities.",
    ),
    field(
        "upstream_authority.disk.certificate_path",
        "path",
        "required",
        "PEM with the CA certificate that signs this server's CA, then its intermediates.",
    ),
    field("upstream_authority.disk.key_path", "path", "required", "PEM with that certificate's private key."),
    field(
        "upstream_authority.disk.bundle_path",
        "path",
        "none",
        "PEM with the roots, when the certificate is not itself a root.",
    ),
    field(
        "upstream_authority.spire.server_address",
        "`host:port`",
        "required",
        "Another server of the same trust domain, Bonafide or SPIRE, that signs this server's CA.",
    ),
    field(
        "upstream_authority.spire.workload_api_socket",
        "path",
        "required",
        "The Workload API socket of an agent of that server, which gives this server its identity. The entry there must be downstream.",
    ),
    field(
        "upstream_authority.spire.poll_interval",
        "duration",
        "`5s`",
        "Time between two looks at that server's bundle: how fast new roots, keys and taints come down. From `100ms` to `1m`.",
    ),
    field(
        "upstream_authority.vault.address",
        "URL",
        "required",
        "HashiCorp Vault or OpenBao, whose PKI engine signs this server's CA: `https://host:port`. `http://` is for this machine alone.",
    ),
    field(
        "upstream_authority.vault.ca_cert_path",
        "path",
        "required with https",
        "PEM with the roots that its certificate is verified with.",
    ),
    field("upstream_authority.vault.namespace", "string", "none", "The namespace."),
    field(
        "upstream_authority.vault.pki_mount_point",
        "path",
        "`pki`",
        "Where the PKI engine is mounted. The token's policy must allow `update` of `<mount>/root/sign-intermediate`.",
    ),
    field(
        "upstream_authority.vault.token.token_file",
        "path",
        "required",
        "The file with the token. One of the tables `token`, `approle`, `cert` and `kubernetes` says how to log in.",
    ),
    field(
        "upstream_authority.vault.approle.mount_point",
        "path",
        "`approle`",
        "Where the method is mounted.",
    ),
    field("upstream_authority.vault.approle.role_id", "string", "required", "The role's ID."),
    field(
        "upstream_authority.vault.approle.secret_id_file",
        "path",
        "required",
        "The file with the secret ID.",
    ),
    field("upstream_authority.vault.cert.mount_point", "path", "`cert`", "Where the method is mounted."),
    field(
        "upstream_authority.vault.cert.role",
        "string",
        "any that fits",
        "The name of the certificate role.",
    ),
    field(
        "upstream_authority.vault.cert.client_cert_path",
        "path",
        "required",
        "PEM with the client certificate, then its intermediates.",
    ),
    field("upstream_authority.vault.cert.client_key_path", "path", "required", "PEM with its key, PKCS#8."),
    field(
        "upstream_authority.vault.kubernetes.mount_point",
        "path",
        "`kubernetes`",
        "Where the method is mounted.",
    ),
    field("upstream_authority.vault.kubernetes.role", "string", "required", "The role."),
    field(
        "upstream_authority.vault.kubernetes.token_path",
        "path",
        "`/var/run/secrets/kubernetes.io/serviceaccount/token`",
        "The file with the service account's token.",
    ),
    field(
        "upstream_authority.cert_manager.kube_config_file",
        "path",
        "the cluster that the server runs in",
        "cert-manager in a Kubernetes cluster, one of whose issuers signs this server's CA: the kubeconfig file for that cluster. The role \
         needs `create`, `get`, `list` and `delete` of `certificaterequests.cert-manager.io` in the namespace.",
    ),
    field(
        "upstream_authority.cert_manager.namespace",
        "string",
        "required",
        "Where CertificateRequests are made.",
    ),
    field("upstream_authority.cert_manager.issuer_name", "string", "required", "The issuer."),
    field(
        "upstream_authority.cert_manager.issuer_kind",
        "string",
        "`Issuer`",
        "Its kind, such as `ClusterIssuer`.",
    ),
    field(
        "upstream_authority.cert_manager.issuer_group",
        "string",
        "`cert-manager.io`",
        "The API group of its kind.",
    ),
    field(
        "store.driver",
        "`sled`, `redb`, `postgres` or `memory`",
        "`sled`",
        "Where entries, agents, bundles and tokens are kept. With `postgres` several servers share them ([how](../operations/run-a-group.md)). `memory` is for trials: nothing survives the process.",
    ),
    field(
        "store.path",
        "path",
        "`<data_dir>/store` (sled), `<data_dir>/store.redb`",
        "The store's folder (sled) or file (redb). With postgres only `<path>.server`, the identity of this server in the group, and `<path>.expect`, what it has last seen, lie there.",
    ),
    field("store.cache_mib", "number", "32", "Memory that the store's driver may use as cache, in MiB."),
    field(
        "store.postgres.connection_string",
        "string",
        "from `BONAFIDE_STORE_CONNECTION_STRING`",
        "The group's database, as `libpq` writes it: `host=… dbname=… user=… password=…` or `postgresql://…`. TLS is always verified in full (`sslmode` `require` and less mean `verify-full`), except on Unix sockets and with `sslmode=disable`.",
    ),
    field(
        "store.postgres.connection_string_path",
        "path",
        "none",
        "A file that holds it instead; read anew for each connection.",
    ),
    field(
        "store.postgres.ca_path",
        "path",
        "`sslrootcert`, or the system's",
        "PEM with the roots that the database's certificate is verified with.",
    ),
    field(
        "store.postgres.client_certificate_path",
        "path",
        "`sslcert`, or none",
        "PEM: a certificate to show to the database, with its intermediates.",
    ),
    field("store.postgres.client_key_path", "path", "`sslkey`, or none", "PEM with its key, PKCS#8."),
    field(
        "store.postgres.timeout",
        "duration",
        "`10s`",
        "How long one question to the database may take, waiting for a lock included; from 1s to 1m. Half of it for connecting, and for a server to rest while it has the lock.",
    ),
    field(
        "store.postgres.max_cut_off",
        "duration",
        "`5m`",
        "How long a server that cannot reach the database goes on signing by what it knows; then it is not ready and signs nothing. Bans and deletions made at other servers take effect here this much later at worst. From 3s to 24h.",
    ),
    field(
        "node_attestor.spiffe_id_selector",
        "true or false",
        "`false`",
        "Whether a node that attests has its own SPIFFE ID among its selectors, as `spiffe_id:spiffe://…`. A node that was attested \
         before has it with its next attestation.",
    ),
    field("node_attestor.join_token.enabled", "true or false", "`true`", "Accept join tokens."),
    field(
        "node_attestor.x509pop.mode",
        "`external_pki` or `spiffe`",
        "`external_pki`",
        "Accept certificates of another PKI, or X.509-SVIDs of this trust domain below `spiffe_prefix`.",
    ),
    field(
        "node_attestor.x509pop.ca_bundle_path",
        "path",
        "required in the `external_pki` mode, or the next",
        "PEM with the roots of the node certificates.",
    ),
    field("node_attestor.x509pop.ca_bundle_paths", "list of paths", "none", "The same for several files."),
    field(
        "node_attestor.x509pop.agent_path_template",
        "template",
        "`/{{ .PluginName }}/{{ .Fingerprint }}`; in the `spiffe` mode `/{{ .PluginName }}/{{ .SVIDPathTrimmed }}`",
        "Path of the agent's SPIFFE ID below `/spire/agent`. Known names: `.PluginName`, `.TrustDomain`, `.Fingerprint` (hexadecimal SHA-1 \
         of the certificate), `.SerialNumberHex`, `.Subject.CommonName`, `.DNSNames` (a list), `.URISanSelectors.<key>`, \
         `.SVIDPathTrimmed` (spiffe mode). [Templates](node-attestors.md#agent-path-templates).",
    ),
    field(
        "node_attestor.x509pop.spiffe_prefix",
        "path prefix",
        "`/spire-exchange/`",
        "In the `spiffe` mode, the path under which presented SVIDs must lie; it is cut off.",
    ),
    field(
        "node_attestor.x509pop.max_intermediates",
        "number",
        "4",
        "Intermediate certificates accepted in one payload.",
    ),
    field("node_attestor.x509pop.max_rsa_key_size", "number", "8192", "Largest RSA key accepted, in bits."),
    field(
        "node_attestor.x509pop.verify_client_ip",
        "true or false",
        "`false`",
        "Require the caller's address to be among the certificate's IP addresses.",
    ),
    field(
        "node_attestor.sshpop.cert_authorities",
        "list of strings",
        "required, or the next",
        "Keys that sign the certificates of SSH hosts, each as in an `authorized_keys` file.",
    ),
    field(
        "node_attestor.sshpop.cert_authorities_path",
        "path",
        "none",
        "A file with such keys, one a line. Both together are trusted.",
    ),
    field(
        "node_attestor.sshpop.canonical_domain",
        "domain",
        "none",
        "The domain in which the certificate's first principal must be. It is cut off for `.Hostname`.",
    ),
    field(
        "node_attestor.sshpop.agent_path_template",
        "template",
        "`/{{ .PluginName }}/{{ .Fingerprint }}`",
        "Path of the agent's SPIFFE ID below `/spire/agent`. Known names: `.PluginName`, `.Fingerprint` (SHA-256 of the certificate, \
         base64url), `.Hostname`, `.KeyId`, `.Serial`, `.ValidPrincipals` (a list). [Templates](node-attestors.md#agent-path-templates).",
    ),
    field(
        "node_attestor.tpm_devid.devid_ca_path",
        "path",
        "required",
        "PEM file with the authorities that sign certificates of device identities (DevID).",
    ),
    field(
        "node_attestor.tpm_devid.endorsement_ca_path",
        "path",
        "required",
        "PEM file with the authorities of TPM manufacturers, including those that sign endorsement certificates directly: nodes \
         send no intermediates for them.",
    ),
    field(
        "node_attestor.http_challenge.allowed_dns_patterns",
        "list of regular expressions",
        "all names",
        "Host names that may attest. A pattern matches anywhere in a name: write `^` and `$` around it.",
    ),
    field(
        "node_attestor.http_challenge.required_port",
        "number",
        "any",
        "The only port on which agents may serve the challenge.",
    ),
    field(
        "node_attestor.http_challenge.allow_non_root_ports",
        "true or false",
        "`true`",
        "Accept ports from 1024 on, which any user of a host can open.",
    ),
    field(
        "node_attestor.http_challenge.tofu",
        "true or false",
        "`true`",
        "Trust the first agent of a host name and no second one until it is deleted. Can be `false` only with ports below 1024.",
    ),
    field(
        "node_attestor.http_challenge.allow_local_addresses",
        "true or false",
        "`false`",
        "Call names that lead to loopback and link-local addresses, and to the clouds' services for their machines, as well. Not in SPIRE, which calls any.",
    ),
    field(
        "node_attestor.gpu_evidence.root_paths",
        "list of paths",
        "required",
        "PEM files with the roots that device certificates of GPUs must lead to. The table makes the server take evidence of GPUs from \
         agents that another attestor admitted.",
    ),
    field(
        "node_attestor.gpu_evidence.references_path",
        "path",
        "none",
        "Folder of reference values (`*.json`), as `bonafide gpu reference` makes them. Read at the start.",
    ),
    field(
        "node_attestor.gpu_evidence.measurements",
        "`prefer` or `require`",
        "`prefer`",
        "Whether evidence of a driver or firmware without reference values is taken. With wrong values it never is.",
    ),
    field(
        "node_attestor.gpu_evidence.max_age",
        "duration",
        "`24h`",
        "How long selectors from evidence last, unless they are renewed. From 1m to 7d.",
    ),
    field(
        "node_attestor.gpu_evidence.device_selectors",
        "true or false",
        "`false`",
        "Give `gpu_node:device:<hash>` for each device.",
    ),
    field(
        "node_attestor.oidc.issuers[].name",
        "letters, digits and `-`",
        "required",
        "What the issuer is called: `.Issuer` in templates.",
    ),
    field(
        "node_attestor.oidc.issuers[].url",
        "URL",
        "required",
        "The `iss` claim of its tokens, to the letter.",
    ),
    field(
        "node_attestor.oidc.issuers[].audiences",
        "list of strings",
        "required",
        "A token must have one of these in `aud`. Use one that is for this server alone.",
    ),
    field(
        "node_attestor.oidc.issuers[].jwks_path",
        "path",
        "none",
        "A file with the issuer's JSON Web Key Set. It is read again while tokens come in, at most every 10 s.",
    ),
    field(
        "node_attestor.oidc.issuers[].jwks_url",
        "https URL",
        "found by OpenID Connect Discovery at `url`",
        "Where the key set is fetched from.",
    ),
    field(
        "node_attestor.oidc.issuers[].ca_path",
        "path",
        "those of the system",
        "PEM with the certificate authorities of the servers that keys are fetched from.",
    ),
    field(
        "node_attestor.oidc.issuers[].fetch_token_path",
        "path",
        "none",
        "A file with a bearer token to show when fetching; read each time.",
    ),
    field(
        "node_attestor.oidc.issuers[].refresh",
        "duration",
        "`1h`",
        "How long fetched keys are used before they are fetched again, `1m` to `24h`. A token that names an unknown key has them \
         fetched at once, at most every 10 s. When fetching fails the last keys stay in use.",
    ),
    field(
        "node_attestor.oidc.issuers[].algorithms",
        "list of JOSE names",
        "`[\"RS256\", \"ES256\", \"ES384\"]`",
        "Accepted signatures; also known are `RS384`, `RS512`, `PS256`, `PS384`, `PS512`.",
    ),
    field(
        "node_attestor.oidc.issuers[].leeway",
        "duration",
        "`1m`",
        "What the issuer's clock may differ by, at most `5m`.",
    ),
    field(
        "node_attestor.oidc.issuers[].max_age",
        "duration",
        "`1h`",
        "How long ago a token may have been issued (`iat`), at most `24h`, however long it would be valid.",
    ),
    field(
        "node_attestor.oidc.issuers[].required_claims",
        "table: claim to list of values",
        "none",
        "Claims that a token must have, each with one of the values, in which `*` stands for anything. A claim is a name, or a JSON \
         pointer such as `/kubernetes.io/namespace`.",
    ),
    field(
        "node_attestor.oidc.issuers[].selectors",
        "table: name to claim",
        "none",
        "Selectors `oidc:<name>:<value>` from claims; a list gives one for each value. There is always `oidc:issuer:<url>`.",
    ),
    field(
        "node_attestor.oidc.issuers[].agent_path_template",
        "template",
        "required",
        "Path of the agent's SPIFFE ID below `/spire/agent`; it starts with `/oidc/`, and with several issuers with a segment of \
         each issuer's own after that, such as `{{ .Issuer }}`. Known names: `.PluginName`, `.TrustDomain`, `.Issuer`, \
         `.Claims.<name>`, `index .Claims \"<claim>\"`. What comes out of a placeholder is escaped. \
         [Templates](node-attestors.md#agent-path-templates).",
    ),
    field(
        "node_attestor.oidc.issuers[].reattestable",
        "true or false",
        "`true`",
        "Agents attest again with a fresh token. `false`: the first one with an ID is trusted and renews its SVID.",
    ),
    field(
        "node_attestor.k8s_psat.clusters.\"<cluster>\".service_account_allow_list",
        "list of `namespace:name`",
        "required",
        "The service accounts whose pods are agents. The cluster's name is what agents have in `cluster`, and a part of their IDs.",
    ),
    field(
        "node_attestor.k8s_psat.clusters.\"<cluster>\".audience",
        "list of strings",
        "`[\"spire-server\"]`",
        "A token must have one of these in `aud`. An empty list means the API server's own audiences.",
    ),
    field(
        "node_attestor.k8s_psat.clusters.\"<cluster>\".kube_config_file",
        "path",
        "the cluster that the server runs in",
        "The kubeconfig file for the cluster. With `issuer`, nothing is asked unless this or `ask_api_server` is set.",
    ),
    field(
        "node_attestor.k8s_psat.clusters.\"<cluster>\".allowed_node_label_keys",
        "list of strings",
        "none",
        "Labels of the node that become selectors `k8s_psat:agent_node_label:<key>:<value>`.",
    ),
    field(
        "node_attestor.k8s_psat.clusters.\"<cluster>\".allowed_pod_label_keys",
        "list of strings",
        "none",
        "Labels of the agent's pod that become selectors `k8s_psat:agent_pod_label:<key>:<value>`.",
    ),
    field(
        "node_attestor.k8s_psat.clusters.\"<cluster>\".use_pod_uid_for_agent_id",
        "true or false",
        "`false`",
        "Each pod is an agent, `/k8s_psat/<cluster>/pod/<pod UID>`, in place of each node.",
    ),
    field(
        "node_attestor.k8s_psat.clusters.\"<cluster>\".issuer",
        "URL or text",
        "none: TokenReview",
        "The `iss` claim of the cluster's tokens (`--service-account-issuer`), to the letter. With it tokens are verified here, with the \
         cluster's keys, and no right in the cluster is needed. Not in SPIRE, like all keys that follow.",
    ),
    field(
        "node_attestor.k8s_psat.clusters.\"<cluster>\".jwks_path",
        "path",
        "none",
        "A file with the cluster's JSON Web Key Set (`kubectl get --raw /openid/v1/jwks`). It is read again while tokens come in, at most \
         every 10 s.",
    ),
    field(
        "node_attestor.k8s_psat.clusters.\"<cluster>\".jwks_url",
        "https URL",
        "found by OpenID Connect Discovery at `issuer`",
        "Where the key set is fetched from.",
    ),
    field(
        "node_attestor.k8s_psat.clusters.\"<cluster>\".ca_path",
        "path",
        "those of the system",
        "PEM with the certificate authorities of the servers that keys are fetched from.",
    ),
    field(
        "node_attestor.k8s_psat.clusters.\"<cluster>\".fetch_token_path",
        "path",
        "none",
        "A file with a bearer token to show when fetching; read each time.",
    ),
    field(
        "node_attestor.k8s_psat.clusters.\"<cluster>\".refresh",
        "duration",
        "`1h`",
        "How long fetched keys are used before they are fetched again, `1m` to `24h`.",
    ),
    field(
        "node_attestor.k8s_psat.clusters.\"<cluster>\".max_age",
        "duration",
        "`24h`",
        "How long ago a token may have been issued (`iat`), `1m` to `48h`. The kubelet renews tokens at 80 % of their life, and after a day.",
    ),
    field(
        "node_attestor.k8s_psat.clusters.\"<cluster>\".ask_api_server",
        "true or false",
        "`true` with `kube_config_file`",
        "With `issuer`: the API server is asked as well whether the token's pod and node are there, and what labels they have.",
    ),
    field(
        "ratelimit.attestation",
        "number per second",
        "1",
        "Attestations from one address. 0 switches the limit off.",
    ),
    field(
        "ratelimit.signing",
        "number per second",
        "500",
        "Signatures for one agent, or from one address where the caller is no agent, separately for each rpc. It is also the largest \
         batch. 0 switches the limit off.",
    ),
    field(
        "prune.attested_nodes_expired_for",
        "duration",
        "never",
        "Remove agents whose SVID has been expired for this long. Banned agents stay.",
    ),
    field(
        "prune.tofu_nodes",
        "true or false",
        "`false`",
        "Remove also agents that cannot attest again by themselves.",
    ),
    field(
        "lifetime.profiles",
        "list of `public_tls`, `public_code_signing` and `workloads`",
        "none",
        "Rules that somebody else made: certificates of public TLS (200 days from 2026-03-15 on, 100 from 2027-03-15, 47 from \
         2029-03-15), of public code signing (460 days from 2026-03-01 on), or identities in hours (SVIDs and agents a day, \
         JWT-SVIDs an hour). All shorten.",
    ),
    field(
        "lifetime.when_issuer_ends_first",
        "`adjust` or `refuse`",
        "`adjust`",
        "What happens when the authority ends before an SVID would: the SVID ends with it, or nothing is signed and the answer names \
         the authority. With `refuse` the server does not start with lifetimes that its authorities cannot always give.",
    ),
    field(
        "lifetime.rules[].name",
        "string",
        "required",
        "What the rule is called in messages and in the audit log.",
    ),
    field(
        "lifetime.rules[].kinds",
        "list of `x509`, `jwt`, `wit`, `agent` and `authority`",
        "all",
        "What is limited. `authority` is the server's own authorities and the CAs of downstream servers.",
    ),
    field(
        "lifetime.rules[].id",
        "SPIFFE ID",
        "all",
        "Whose: one ID, or `spiffe://example.org/path/*` for all below a path.",
    ),
    field(
        "lifetime.rules[].selectors",
        "list of selectors",
        "all",
        "Only for entries that have all of these selectors.",
    ),
    field(
        "lifetime.rules[].from",
        "date or instant",
        "always",
        "From when on, as `2027-03-15` (midnight UTC) or `2027-03-15T12:00:00Z`. What was signed before is left alone.",
    ),
    field(
        "lifetime.rules[].min",
        "duration",
        "none",
        "The shortest life. Of all rules that apply the longest counts.",
    ),
    field(
        "lifetime.rules[].default",
        "duration",
        "as `authority` says",
        "The life of entries that ask for none. Of all rules that apply the last one counts.",
    ),
    field(
        "lifetime.rules[].max",
        "duration",
        "none",
        "The longest life, from the signature on. Of all rules that apply the shortest counts. A certificate begins 10 s before its \
         signature; the profiles leave room for that.",
    ),
    field(
        "lifetime.rules[].beyond",
        "`adjust` or `refuse`",
        "`adjust`",
        "What happens to a life beyond min or max: it is shortened or lengthened, and the audit log says so, or the entry is not \
         accepted and nothing is signed. Defaults are always adjusted.",
    ),
    field(
        "federation.web_ca_path",
        "path",
        "the system's authorities",
        "PEM with the authorities that endpoints of the profile `https_web` are verified with. Read again at each fetch.",
    ),
    field(
        "federation.bundle_endpoint.address",
        "address",
        "required",
        "TCP address on which everybody may read this trust domain's bundle over HTTPS.",
    ),
    field(
        "federation.bundle_endpoint.refresh_hint",
        "duration",
        "`5m`",
        "How often peers should look for a new bundle. Bonafide servers see a change at once all the same.",
    ),
    field(
        "federation.bundle_endpoint.profile",
        "`https_spiffe` or `https_web`",
        "`https_spiffe`",
        "How the endpoint is authenticated: by the server's own X.509-SVID, or by a certificate of the Web PKI, from files or \
         fetched by ACME.",
    ),
    field(
        "federation.bundle_endpoint.certificate_path",
        "path",
        "required in the `https_web` profile without `acme`",
        "PEM with the certificate for the endpoint's name, then its intermediates. Read again when it changes.",
    ),
    field(
        "federation.bundle_endpoint.key_path",
        "path",
        "required in the `https_web` profile without `acme`",
        "PEM with that certificate's private key. Read again when it changes; a pair that does not fit is not used.",
    ),
    field(
        "federation.bundle_endpoint.acme.domain_name",
        "DNS name",
        "required with `acme`",
        "The endpoint's name, for which the server fetches and renews a certificate itself. The ACME server must reach the endpoint \
         under it on TCP port 443. Certificate and account are kept in `<data_dir>/bundle-acme`.",
    ),
    field(
        "federation.bundle_endpoint.acme.email",
        "address for mail",
        "required with `acme`",
        "Whom the ACME server may write to.",
    ),
    field(
        "federation.bundle_endpoint.acme.tos_accepted",
        "`true`",
        "required with `acme`",
        "That you have accepted the terms of service of the ACME server.",
    ),
    field(
        "federation.bundle_endpoint.acme.directory_url",
        "URL",
        "`https://acme-v02.api.letsencrypt.org/directory`",
        "The directory of the ACME server.",
    ),
    field(
        "federation.bundle_endpoint.acme.directory_ca_path",
        "path",
        "the system's authorities",
        "PEM with the authorities that the ACME server's own certificate is verified with. Read again at each call.",
    ),
    field(
        "federation.federates_with.\"<trust domain>\".bundle_endpoint_url",
        "URL",
        "required",
        "Where the bundle endpoint of that trust domain is: `https://…`. A relationship written here wins over one made with \
         `bonafide federation`, and is not listed there.",
    ),
    field(
        "federation.federates_with.\"<trust domain>\".profile",
        "`https_spiffe` or `https_web`",
        "required",
        "How that endpoint is authenticated.",
    ),
    field(
        "federation.federates_with.\"<trust domain>\".endpoint_spiffe_id",
        "SPIFFE ID",
        "required in the `https_spiffe` profile",
        "Whose X.509-SVID that endpoint must present; `spiffe://<trust domain>/spire/server` where it is a server of that trust domain.",
    ),
    field(
        "bundle_publisher.k8s_configmap.clusters.\"<name>\".namespace",
        "string",
        "required",
        "The namespace of a ConfigMap in which this trust domain's bundle is kept up to date, by server-side apply. The right to \
         `patch` it is needed, and the right to `create` ConfigMaps where it does not exist.",
    ),
    field(
        "bundle_publisher.k8s_configmap.clusters.\"<name>\".configmap_name",
        "string",
        "required",
        "The name of the ConfigMap.",
    ),
    field(
        "bundle_publisher.k8s_configmap.clusters.\"<name>\".configmap_key",
        "string",
        "`bundle.crt` (pem), `bundle.json`",
        "The key in its data. Other keys are left alone.",
    ),
    field(
        "bundle_publisher.k8s_configmap.clusters.\"<name>\".format",
        "`pem`, `spiffe` or `jwks`",
        "`pem`",
        "What is written: the X.509 authorities, the whole SPIFFE bundle, or the keys of JWT-SVIDs.",
    ),
    field(
        "bundle_publisher.k8s_configmap.clusters.\"<name>\".refresh_hint",
        "duration",
        "the bundle's own",
        "The hint that is written in the format `spiffe`.",
    ),
    field(
        "bundle_publisher.k8s_configmap.clusters.\"<name>\".kubeconfig_path",
        "path",
        "the cluster that the server runs in",
        "The kubeconfig file of another cluster; its current context counts.",
    ),
    field(
        "bundle_publisher.k8s_cluster_trust_bundle.clusters.\"<name>\".name",
        "string",
        "required",
        "The ClusterTrustBundle that is kept up to date. With `signer_name` it begins with it, a colon in place of each slash, and a colon.",
    ),
    field(
        "bundle_publisher.k8s_cluster_trust_bundle.clusters.\"<name>\".signer_name",
        "string",
        "none",
        "The signer that pods may select it by, such as `example.org/svid`. The right to `attest` for it is needed.",
    ),
    field(
        "bundle_publisher.k8s_cluster_trust_bundle.clusters.\"<name>\".kubeconfig_path",
        "path",
        "the cluster that the server runs in",
        "As above.",
    ),
    field(
        "bundle_publisher.k8s_ca_bundle.clusters.\"<name>\".label",
        "label key",
        "required",
        "The `caBundle` of each webhook configuration, conversion webhook of a custom resource and API service that has this label \
         with the value `true` is kept up to date. The rights to `list` and `patch` all four kinds are needed.",
    ),
    field(
        "bundle_publisher.k8s_ca_bundle.clusters.\"<name>\".kubeconfig_path",
        "path",
        "the cluster that the server runs in",
        "As above.",
    ),
];

/// The page `docs/reference/configuration-server.md`.
pub fn markdown() -> String {
    let mut page = String::from(
        "# Configuration of bonafide-server\n\n\
         <!-- Generated from server/src/config/reference.rs; run the server's tests with BONAFIDE_BLESS=1 to renew. -->\n\n\
         `bonafide-server run -c server.toml` reads one TOML file. Unknown keys are refused, and all mistakes are reported together;\n\
         `bonafide-server validate -c server.toml` does only that. Durations are whole numbers with a unit (`ms`, `s`, `m`, `h`, `d`), which\n\
         may be combined: `1h30m`. Relative paths are relative to the folder in which the server is started.\n\
         `bonafide-server import` translates a configuration of SPIRE ([moving over](../operations/migrate-from-spire.md)).\n\n\
         The smallest configuration:\n\n\
         ```toml\ntrust_domain = \"example.org\"\ndata_dir = \"/var/lib/bonafide/server\"\n```\n",
    );
    let mut section = None;
    for field in FIELDS {
        let (head, key) = field.key.rsplit_once('.').unwrap_or(("", field.key));
        if section != Some(head) {
            section = Some(head);
            let title = match head.strip_suffix("[]") {
                _ if head.is_empty() => "Top level".to_owned(),
                Some(list) => format!("`[[{list}]]`"),
                None => format!("`[{head}]`"),
            };
            let _ = write!(page, "\n## {title}\n\n| key | value | default | meaning |\n|---|---|---|---|\n");
        }
        let _ = writeln!(page, "| `{key}` | {} | {} | {} |", field.kind, field.default, field.doc);
    }
    page
}
