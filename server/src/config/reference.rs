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
        "log.level",
        "`panic`, `fatal`, `error`, `warn`, `info`, `debug` or `trace`",
        "`info`",
        "The least severity that is written.",
    ),
    field("log.format", "`text` or `json`", "`text`", "Lines for people or JSON objects for programs."),
    field("log.file", "path", "standard error", "Where the log goes. SIGUSR2 opens the file anew."),
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
        "store.driver",
        "`sled`, `redb` or `memory`",
        "`sled`",
        "Where entries, agents, bundles and tokens are kept. `memory` is for trials: nothing survives the process.",
    ),
    field(
        "store.path",
        "path",
        "`<data_dir>/store` (sled), `<data_dir>/store.redb`",
        "The store's folder (sled) or file (redb).",
    ),
    field("store.cache_mib", "number", "32", "Memory that the store's driver may use as cache, in MiB."),
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
         of the certificate), `.SerialNumberHex`, `.Subject.CommonName`, `.SVIDPathTrimmed` (spiffe mode).",
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
            let title = if head.is_empty() { "Top level".to_owned() } else { format!("`[{head}]`") };
            let _ = write!(page, "\n## {title}\n\n| key | value | default | meaning |\n|---|---|---|---|\n");
        }
        let _ = writeln!(page, "| `{key}` | {} | {} | {} |", field.kind, field.default, field.doc);
    }
    page
}
