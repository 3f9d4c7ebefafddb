//! The grammar of the command line. The doc comments are the help texts, the manual pages and
//! `docs/reference/cli.md`: there is no second description.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;
use time::{Date, OffsetDateTime};

use crate::output::Format;

/// Where the server listens unless told otherwise.
pub(crate) const SERVER_SOCKET: &str = "/tmp/bonafide-server/private/api.sock";
/// Where the agent listens unless told otherwise.
pub(crate) const AGENT_SOCKET: &str = "unix:///tmp/bonafide-agent/public/api.sock";

/// Manage SPIFFE identities: who may have which, who has them, and until when.
///
/// Administrative commands speak to the server's local socket; `fetch`, `watch`, `write` and `validate` speak to
/// the agent as a workload does and get what the calling process is entitled to.
#[derive(Debug, Parser)]
#[command(name = "bonafide", version, propagate_version = true, max_term_width = 100)]
pub(crate) struct Arguments {
    /// The server's local socket.
    #[arg(long, global = true, env = "BONAFIDE_SERVER_SOCKET", hide_env_values = true, default_value = SERVER_SOCKET, value_name = "PATH")]
    pub(crate) server_socket: PathBuf,
    /// The agent's Workload API socket, as a path or as unix:///path.
    #[arg(long, global = true, env = "SPIFFE_ENDPOINT_SOCKET", hide_env_values = true, default_value = AGENT_SOCKET, value_name = "SOCKET")]
    pub(crate) agent_socket: String,
    /// What to print: a table for people, or JSON for scripts.
    #[arg(short, long, global = true, value_enum, default_value_t)]
    pub(crate) output: Format,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Registration entries: which process on which node gets which SPIFFE ID.
    #[command(subcommand)]
    Entry(EntryCommand),
    /// Attested nodes.
    #[command(subcommand)]
    Agent(AgentCommand),
    /// Join tokens, with which an agent attests once.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Trust bundles: the own one and those of federated trust domains.
    #[command(subcommand)]
    Bundle(BundleCommand),
    /// Federation relationships: where the bundles of other trust domains are fetched.
    #[command(subcommand)]
    Federation(FederationCommand),
    /// The authorities that sign: show, prepare, activate, taint, revoke.
    #[command(subcommand)]
    Authority(AuthorityCommand),
    /// Sign an SVID without a registration entry.
    #[command(subcommand)]
    Mint(MintCommand),
    /// Facts about the running server and its log level.
    #[command(subcommand)]
    Server(ServerCommand),
    /// The policy of maximum lifetimes.
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Ask whether the server or the agent is healthy; exits with 1 when it is not.
    Health(HealthArguments),
    /// Get SVIDs and bundles from the agent, as the calling process.
    #[command(subcommand)]
    Fetch(FetchCommand),
    /// Stay connected and print each X.509-SVID as it is rotated.
    Watch(WatchArguments),
    /// Write the X.509-SVID, its key and the bundle to files, and keep them fresh.
    Write(WriteArguments),
    /// Ask the agent, or a bundle, whether a token is good.
    #[command(subcommand)]
    Validate(ValidateCommand),
    /// Reference values for evidence of GPUs. Speaks to nobody.
    #[command(subcommand)]
    Gpu(GpuCommand),
    /// Print a completion script for a shell.
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write the manual pages into a folder.
    Man {
        /// The folder; it is created when missing.
        directory: PathBuf,
    },
}

/// The fields of an entry, as flags.
#[derive(Debug, Args)]
pub(crate) struct EntryFields {
    /// The SPIFFE ID that the workload gets.
    #[arg(long, value_name = "ID")]
    pub(crate) spiffe_id: String,
    /// The SPIFFE ID of the agent (or of another entry) below which the workload runs.
    #[arg(long, value_name = "ID", required_unless_present = "node", conflicts_with = "node")]
    pub(crate) parent_id: Option<String>,
    /// A selector type:value that the workload must have; repeat it for several, all must hold.
    #[arg(long = "selector", short, value_name = "TYPE:VALUE", required = true)]
    pub(crate) selectors: Vec<String>,
    /// The entry names nodes instead of workloads: its parent is the server, its selectors are node selectors.
    #[arg(long)]
    pub(crate) node: bool,
    /// Lifetime of X.509-SVIDs, such as 1h or 90s; the server's default when absent.
    #[arg(long, value_name = "DURATION", value_parser = seconds)]
    pub(crate) x509_svid_ttl: Option<i32>,
    /// Lifetime of JWT-SVIDs; the server's default when absent.
    #[arg(long, value_name = "DURATION", value_parser = seconds)]
    pub(crate) jwt_svid_ttl: Option<i32>,
    /// A foreign trust domain whose bundle the workload gets; repeat it for several.
    #[arg(long, value_name = "TRUST-DOMAIN")]
    pub(crate) federates_with: Vec<String>,
    /// A DNS name for the certificate; the first one also becomes its common name.
    #[arg(long = "dns", value_name = "NAME")]
    pub(crate) dns_names: Vec<String>,
    /// The identity may use the administrative API over mutual TLS.
    #[arg(long)]
    pub(crate) admin: bool,
    /// The identity is that of a downstream server.
    #[arg(long)]
    pub(crate) downstream: bool,
    /// A word by which a workload with several identities tells them apart.
    #[arg(long, default_value = "")]
    pub(crate) hint: String,
    /// When the entry is removed, as RFC 3339 or Unix seconds; never when absent.
    #[arg(long, value_name = "TIME", value_parser = instant)]
    pub(crate) expires_at: Option<i64>,
    /// The SVID goes to a secret store instead of the Workload API.
    #[arg(long)]
    pub(crate) store_svid: bool,
    /// Agents sign the X.509-SVID only when the workload asks.
    #[arg(long)]
    pub(crate) no_prefetch: bool,
    /// JWT-SVIDs carry a `jti` claim.
    #[arg(long)]
    pub(crate) jti: bool,
}

/// Filters that must all hold.
#[derive(Debug, Args)]
pub(crate) struct EntryFilter {
    /// Only entries with this SPIFFE ID.
    #[arg(long, value_name = "ID")]
    pub(crate) spiffe_id: Option<String>,
    /// Only entries below this parent.
    #[arg(long, value_name = "ID")]
    pub(crate) parent_id: Option<String>,
    /// Only entries that match these selectors.
    #[arg(long = "selector", short, value_name = "TYPE:VALUE")]
    pub(crate) selectors: Vec<String>,
    /// How the entry's selectors must relate to those given.
    #[arg(long = "match", value_enum, default_value_t = Match::Superset)]
    pub(crate) matching: Match,
    /// Only entries that federate with all of these trust domains.
    #[arg(long, value_name = "TRUST-DOMAIN")]
    pub(crate) federates_with: Vec<String>,
    /// Only entries with this hint.
    #[arg(long)]
    pub(crate) hint: Option<String>,
    /// Only entries of downstream servers.
    #[arg(long)]
    pub(crate) downstream: bool,
}

/// How two sets must relate.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Match {
    /// The stored set equals the given one.
    Exact,
    /// The stored set is contained in the given one.
    Subset,
    /// The stored set contains the given one.
    Superset,
    /// The two sets share an element.
    Any,
}

/// What to import, and how.
#[derive(Debug, Args)]
pub(crate) struct ImportArguments {
    /// The file, or - for standard input.
    pub(crate) file: PathBuf,
    /// Say what would be done, and do nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Put the entries below the parent OLD below NEW instead; repeat it for several. For nodes whose agents have other
    /// SPIFFE IDs here.
    #[arg(long, value_name = "OLD=NEW")]
    pub(crate) reparent: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum EntryCommand {
    /// Create an entry.
    Create {
        /// An identifier of your own; the server makes one up when absent.
        #[arg(long)]
        id: Option<String>,
        #[command(flatten)]
        fields: Box<EntryFields>,
    },
    /// Make entries what a JSON file says: create those that are missing, update those that differ, by identifier.
    ///
    /// Reads what `spire-server entry show -output json` prints, what `spire-server entry create -data` reads, and what
    /// `bonafide entry export` or `bonafide -o json entry list` print. Entries that are not in the file are left alone;
    /// importing the same file again changes nothing.
    Import(ImportArguments),
    /// Print all entries as JSON that `bonafide entry import` and `spire-server entry create -data` read.
    Export,
    /// Replace an entry: fields that are not given become empty.
    Update {
        /// The entry's identifier.
        #[arg(long)]
        id: String,
        #[command(flatten)]
        fields: Box<EntryFields>,
    },
    /// List entries.
    List {
        #[command(flatten)]
        filter: EntryFilter,
    },
    /// Show one entry.
    Show {
        /// The entry's identifier.
        id: String,
    },
    /// Count entries.
    Count {
        #[command(flatten)]
        filter: EntryFilter,
    },
    /// Delete entries.
    Delete {
        /// The entries' identifiers.
        #[arg(required = true)]
        ids: Vec<String>,
    },
}

/// Filters that must all hold.
#[derive(Debug, Args)]
pub(crate) struct AgentFilter {
    /// Only agents that attested in this way, such as join_token.
    #[arg(long, value_name = "TYPE")]
    pub(crate) attestation_type: Option<String>,
    /// Only agents that match these node selectors.
    #[arg(long = "selector", short, value_name = "TYPE:VALUE")]
    pub(crate) selectors: Vec<String>,
    /// How the agent's selectors must relate to those given.
    #[arg(long = "match", value_enum, default_value_t = Match::Superset)]
    pub(crate) matching: Match,
    /// Only banned agents (true), or only others (false).
    #[arg(long)]
    pub(crate) banned: Option<bool>,
    /// Only agents that can attest again (true), or only others (false).
    #[arg(long)]
    pub(crate) can_reattest: Option<bool>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum AgentCommand {
    /// List attested agents.
    List {
        #[command(flatten)]
        filter: AgentFilter,
    },
    /// Show one agent with its selectors.
    Show {
        /// The agent's SPIFFE ID.
        id: String,
    },
    /// Count attested agents.
    Count {
        #[command(flatten)]
        filter: AgentFilter,
    },
    /// Ban an agent: its SVID stops working at once and it cannot attest again until it is evicted.
    Ban {
        /// The agent's SPIFFE ID.
        id: String,
    },
    /// Evict an agent: its SVID stops working at once; it may attest again.
    Evict {
        /// The agent's SPIFFE ID.
        id: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Create a join token. It is shown once.
    Create {
        /// How long it can be used.
        #[arg(long, default_value = "10m", value_name = "DURATION", value_parser = seconds)]
        ttl: i32,
        /// A SPIFFE ID under which entries can name the agent that uses this token.
        #[arg(long, value_name = "ID")]
        agent_id: Option<String>,
        /// The token itself; a random one when absent.
        #[arg(long)]
        value: Option<String>,
    },
}

/// The form of a bundle in a file.
#[derive(Clone, Copy, Debug, ValueEnum, PartialEq, Eq)]
pub(crate) enum BundleFormat {
    /// The X.509 authorities as PEM certificates.
    Pem,
    /// The SPIFFE bundle document (JSON Web Key Set).
    Spiffe,
}

/// What happens to entries that federate with a deleted bundle.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum DeleteMode {
    /// Refuse while such entries exist.
    Restrict,
    /// Delete those entries.
    Delete,
    /// Keep the entries, without the relation.
    Dissociate,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BundleCommand {
    /// Show the own trust bundle.
    Show {
        /// Print the bundle itself, in this form, instead of a summary.
        #[arg(long, value_enum)]
        format: Option<BundleFormat>,
    },
    /// List the bundles of federated trust domains.
    List {
        /// Only this trust domain.
        trust_domain: Option<String>,
        /// Print the bundles themselves, in this form, instead of a summary.
        #[arg(long, value_enum)]
        format: Option<BundleFormat>,
    },
    /// Create or replace the bundle of a federated trust domain.
    Set {
        /// The foreign trust domain.
        trust_domain: String,
        /// The file with the bundle, or - for standard input.
        #[arg(long, default_value = "-")]
        file: PathBuf,
        /// The form of the file.
        #[arg(long, value_enum, default_value = "pem")]
        format: BundleFormat,
    },
    /// Set the bundles of federated trust domains from what `spire-server bundle list` prints with -output json or with
    /// -format spiffe.
    Import {
        /// The file, or - for standard input.
        file: PathBuf,
        /// Say what would be done, and do nothing.
        #[arg(long)]
        dry_run: bool,
    },
    /// Add authorities to the own bundle, those of another server of this trust domain for instance.
    ///
    /// Both sides are SPIRE's API, so the server may be SPIRE's: --server-socket names the one that learns, --from the one
    /// that is asked. What is there already is left alone.
    Append {
        /// The local socket of the server whose bundle is added.
        #[arg(long, value_name = "PATH", conflicts_with = "file")]
        from: Option<PathBuf>,
        /// The file with the authorities, or - for standard input.
        #[arg(long, required_unless_present = "from")]
        file: Option<PathBuf>,
        /// The form of the file.
        #[arg(long, value_enum, default_value = "pem")]
        format: BundleFormat,
    },
    /// Delete the bundle of a federated trust domain.
    Delete {
        /// The foreign trust domain.
        trust_domain: String,
        /// What happens to entries that federate with it.
        #[arg(long, value_enum, default_value = "restrict")]
        mode: DeleteMode,
    },
}

/// How a bundle endpoint is authenticated.
#[derive(Clone, Copy, Debug, ValueEnum, PartialEq, Eq)]
#[value(rename_all = "snake_case")]
pub(crate) enum EndpointProfile {
    /// By an X.509-SVID.
    HttpsSpiffe,
    /// By a certificate of the Web PKI.
    HttpsWeb,
}

/// A relationship, as flags.
#[derive(Debug, Args)]
pub(crate) struct FederationFields {
    /// The foreign trust domain.
    pub(crate) trust_domain: String,
    /// Its bundle endpoint: https://…
    #[arg(long)]
    pub(crate) url: String,
    /// How the endpoint is authenticated.
    #[arg(long, value_enum)]
    pub(crate) profile: EndpointProfile,
    /// Whose X.509-SVID the endpoint must present (https_spiffe); the foreign trust domain's server when absent.
    #[arg(long, value_name = "ID")]
    pub(crate) endpoint_spiffe_id: Option<String>,
    /// A file with the bundle to begin with, or - for standard input; https_spiffe needs one once.
    #[arg(long, value_name = "FILE")]
    pub(crate) bundle_file: Option<PathBuf>,
    /// The form of that file.
    #[arg(long, value_enum, default_value = "pem")]
    pub(crate) bundle_format: BundleFormat,
}

#[derive(Debug, Subcommand)]
pub(crate) enum FederationCommand {
    /// Begin to fetch the bundle of another trust domain.
    Create {
        #[command(flatten)]
        fields: FederationFields,
    },
    /// Replace endpoint and profile of a relationship; its bundle too, where one is given.
    Update {
        #[command(flatten)]
        fields: FederationFields,
    },
    /// List the relationships; those in the server's configuration file are not among them.
    List,
    /// Show one relationship.
    Show {
        /// The foreign trust domain.
        trust_domain: String,
    },
    /// End a relationship. The bundle that was fetched stays.
    Delete {
        /// The foreign trust domain.
        trust_domain: String,
    },
    /// Fetch the bundle of a trust domain now.
    Refresh {
        /// The foreign trust domain.
        trust_domain: String,
    },
}

/// A kind of signing authority.
#[derive(Clone, Copy, Debug, ValueEnum, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Signs X.509-SVIDs.
    X509,
    /// Signs JWT-SVIDs.
    Jwt,
    /// Signs WIT-SVIDs.
    Wit,
}

#[derive(Debug, Subcommand)]
pub(crate) enum AuthorityCommand {
    /// Show the authorities of one kind, or of all.
    Show {
        /// The kind.
        kind: Option<Kind>,
    },
    /// Make the next authority and publish it in the bundle; nothing is signed with it yet.
    Prepare {
        /// The kind.
        kind: Kind,
    },
    /// Sign with the prepared authority from now on.
    Activate {
        /// The kind.
        kind: Kind,
        /// The prepared authority's identifier.
        id: String,
    },
    /// Distrust an old authority: everything signed by it is signed anew.
    Taint {
        /// The kind.
        kind: Kind,
        /// The old authority's identifier.
        id: String,
        /// The identifier names the authority of the upstream.
        #[arg(long)]
        upstream: bool,
    },
    /// Remove a tainted authority from the bundle: what it signed is refused everywhere.
    Revoke {
        /// The kind.
        kind: Kind,
        /// The tainted authority's identifier.
        id: String,
        /// The identifier names the authority of the upstream.
        #[arg(long)]
        upstream: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum MintCommand {
    /// Make a key here and have an X.509-SVID signed for it.
    X509 {
        /// The SPIFFE ID.
        #[arg(long, value_name = "ID")]
        spiffe_id: String,
        /// Lifetime; the server's default when absent.
        #[arg(long, value_name = "DURATION", value_parser = seconds)]
        ttl: Option<i32>,
        /// A DNS name for the certificate; repeat it for several.
        #[arg(long = "dns", value_name = "NAME")]
        dns_names: Vec<String>,
        /// Write svid.pem, key.pem and bundle.pem into this folder instead of printing them.
        #[arg(long, value_name = "FOLDER")]
        write: Option<PathBuf>,
    },
    /// Have a JWT-SVID signed.
    Jwt {
        /// The SPIFFE ID.
        #[arg(long, value_name = "ID")]
        spiffe_id: String,
        /// Whom the token is for; repeat it for several.
        #[arg(long, required = true)]
        audience: Vec<String>,
        /// Lifetime; the server's default when absent.
        #[arg(long, value_name = "DURATION", value_parser = seconds)]
        ttl: Option<i32>,
        /// Write the token to this file instead of printing it.
        #[arg(long, value_name = "FILE")]
        write: Option<PathBuf>,
    },
    /// Make a key here and have a WIT-SVID signed for it.
    Wit {
        /// The SPIFFE ID.
        #[arg(long, value_name = "ID")]
        spiffe_id: String,
        /// Lifetime; the server's default when absent.
        #[arg(long, value_name = "DURATION", value_parser = seconds)]
        ttl: Option<i32>,
        /// Write token.jwt and key.pem into this folder instead of printing them.
        #[arg(long, value_name = "FOLDER")]
        write: Option<PathBuf>,
    },
}

/// A log level of SPIRE's Logger API.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Level {
    Panic,
    Fatal,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

#[derive(Debug, Subcommand)]
pub(crate) enum GpuCommand {
    /// Verify a signed file of reference values (a SWID tag) and print its values as JSON, for the folder that the server's
    /// node_attestor.gpu_evidence.references_path names.
    Reference {
        /// The file.
        file: PathBuf,
        /// PEM with the roots that its signer must lead to.
        #[arg(long, required = true, value_name = "PATH")]
        root: Vec<PathBuf>,
        /// Judge the signer as of this moment (RFC 3339, such as 2024-03-01T00:00:00Z) instead of now: signers expire, and what they
        /// signed stays in use.
        #[arg(long, value_name = "TIME")]
        at: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// List which lifetimes of the configuration and of entries the policy refuses or adjusts; exits with 1 when any is refused.
    Check {
        /// Look at another day or instant, such as 2029-03-15 (midnight UTC) or 2029-03-15T12:00:00Z.
        #[arg(long, value_name = "DATE", value_parser = instant)]
        at: Option<i64>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ServerCommand {
    /// Show uptime, counts and the server's own SVID.
    Info,
    /// Show the log level, or set it until the next start.
    LogLevel {
        /// The new level.
        level: Option<Level>,
        /// Return to the level of the start.
        #[arg(long, conflicts_with = "level")]
        reset: bool,
    },
}

/// Whom to ask.
#[derive(Debug, Args)]
pub(crate) struct HealthArguments {
    /// The process to ask.
    #[arg(value_enum, default_value = "server")]
    pub(crate) who: Process,
}

/// One of the two daemons.
#[derive(Clone, Copy, Debug, ValueEnum, PartialEq, Eq)]
pub(crate) enum Process {
    /// bonafide-server.
    Server,
    /// bonafide-agent.
    Agent,
}

#[derive(Debug, Subcommand)]
pub(crate) enum FetchCommand {
    /// The X.509-SVIDs of the calling process.
    X509,
    /// JWT-SVIDs for an audience.
    Jwt {
        /// Whom the token is for; repeat it for several.
        #[arg(long, required = true)]
        audience: Vec<String>,
        /// Only the identity with this SPIFFE ID.
        #[arg(long, value_name = "ID")]
        spiffe_id: Option<String>,
    },
    /// WIT-SVIDs, with the keys that they are bound to.
    Wit {
        /// Only the identity with this SPIFFE ID.
        #[arg(long, value_name = "ID")]
        spiffe_id: Option<String>,
    },
    /// The trust bundles that the calling process may verify peers with.
    Bundles,
}

/// How long to watch.
#[derive(Debug, Args)]
pub(crate) struct WatchArguments {
    /// Stop after this many messages; never when absent.
    #[arg(long, value_name = "N")]
    pub(crate) count: Option<usize>,
}

/// Where files go.
#[derive(Debug, Args)]
pub(crate) struct WriteArguments {
    /// The folder for svid.pem, key.pem and bundle.pem; each rotation replaces all three at once.
    #[arg(long, value_name = "FOLDER")]
    pub(crate) dir: PathBuf,
    /// The identity with this SPIFFE ID; the default identity when absent.
    #[arg(long, value_name = "ID")]
    pub(crate) spiffe_id: Option<String>,
    /// Stay connected and write again at each rotation.
    #[arg(long)]
    pub(crate) watch: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ValidateCommand {
    /// Ask the agent whether a JWT-SVID is good for an audience.
    Jwt {
        /// Whom the token must be for.
        #[arg(long)]
        audience: String,
        /// The token, or - to read it from standard input.
        token: String,
    },
    /// Verify a WIT-SVID with the bundles that the agent gives.
    Wit {
        /// The token, or - to read it from standard input.
        token: String,
    },
}

/// Parses `90s`, `5m`, `1h30m`, `2d` or plain seconds into whole seconds of 1 and more.
fn seconds(text: &str) -> Result<i32, String> {
    let bad = || format!("{text:?} is not a duration: write 90s, 5m, 1h30m or 2d");
    let total = if text.bytes().all(|byte| byte.is_ascii_digit()) {
        text.parse::<i64>().map_err(|_| bad())?
    } else {
        let (mut total, mut number) = (0i64, String::new());
        for letter in text.chars() {
            if letter.is_ascii_digit() {
                number.push(letter);
                continue;
            }
            let unit = match letter {
                's' => 1,
                'm' => 60,
                'h' => 3_600,
                'd' => 86_400,
                _ => return Err(bad()),
            };
            let count: i64 = number.parse().map_err(|_| bad())?;
            number.clear();
            total = count.checked_mul(unit).and_then(|span| span.checked_add(total)).ok_or_else(bad)?;
        }
        if !number.is_empty() {
            return Err(bad());
        }
        total
    };
    match i32::try_from(total) {
        Ok(total) if total > 0 => Ok(total),
        _ => Err(format!("{text:?} is out of range: at least 1s, at most 68 years")),
    }
}

/// Parses a date, RFC 3339 text or Unix seconds.
fn instant(text: &str) -> Result<i64, String> {
    if let Ok(seconds) = text.parse::<i64>() {
        return Ok(seconds);
    }
    if let Ok(day) = Date::parse(text, format_description!("[year]-[month]-[day]")) {
        return Ok(day.midnight().assume_utc().unix_timestamp());
    }
    OffsetDateTime::parse(text, &Rfc3339).map(OffsetDateTime::unix_timestamp).map_err(|_| {
        format!("{text:?} is not a time: write 2027-01-31, 2027-01-31T12:00:00Z or Unix seconds")
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn grammar_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn durations() {
        assert_eq!(seconds("90"), Ok(90));
        assert_eq!(seconds("1h30m"), Ok(5_400));
        assert_eq!(seconds("2d"), Ok(172_800));
        for bad in ["", "0", "0s", "h", "1", "5x", "1h3", "99999999999d", "9999999999"] {
            assert_eq!(seconds(bad).is_ok(), bad == "1", "{bad}");
        }
    }

    #[test]
    fn instants() {
        assert_eq!(instant("1700000000"), Ok(1_700_000_000));
        assert_eq!(instant("2023-11-14T22:13:20Z"), Ok(1_700_000_000));
        assert_eq!(instant("2023-11-14"), Ok(1_699_920_000));
        assert!(instant("tomorrow").is_err());
    }
}
