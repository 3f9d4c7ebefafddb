//! Payloads of records: protobuf messages written by hand, and their conversion to and from domain types.
//!
//! Protobuf because old records must load for ever: fields are numbered, new ones are added, unknown ones are skipped,
//! numbers are never used twice. The messages live here and not in a `.proto` file since nothing else may depend on
//! them. `tests/it/store_samples.rs` holds records as the first version wrote them.
//!
//! Times are Unix milliseconds.

use bonafide_identity::{
    AttestedNode, AuthorityKind, AuthoritySlot, Bundle, DnsName, Entry, EntryId, JoinToken, JwtAuthority,
    Selector, SelectorSet, SerialNumber, SlotId, SlotStatus, SpiffeId, Timestamp, TrustDomain, X509Authority,
};
use prost::Message;

use super::aggregates::{
    Change, EndpointProfile, FederationRelationship, IssuedSvid, JournalRecord, SvidKind,
};
use super::record::Table;

/// A payload that does not say what it should; the text names the field.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a {record} record cannot be read: {what}")]
pub(super) struct DecodeError {
    record: &'static str,
    what: String,
}

type Decoded<T> = Result<T, DecodeError>;

fn bad(record: &'static str, what: impl ToString) -> DecodeError {
    DecodeError { record, what: what.to_string() }
}

fn parse<M: Message + Default>(record: &'static str, payload: &[u8]) -> Decoded<M> {
    M::decode(payload).map_err(|error| bad(record, error))
}

/// What the database holds altogether: the one record under `Table::Header`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Header {
    /// Identifies this database; its expected-state file carries the same.
    #[prost(bytes = "vec", tag = "1")]
    pub(super) store_id: Vec<u8>,
    #[prost(string, tag = "2")]
    pub(super) trust_domain: String,
    /// Sequence number of the last commit.
    #[prost(uint64, tag = "3")]
    pub(super) sequence: u64,
    /// Number of records, without this one.
    #[prost(uint64, tag = "4")]
    pub(super) count: u64,
    #[prost(fixed64, tag = "5")]
    pub(super) digest: u64,
    /// Rows up to here were given out.
    #[prost(uint64, tag = "6")]
    pub(super) last_row: u64,
    /// Epoch of the last change.
    #[prost(uint64, tag = "7")]
    pub(super) epoch: u64,
    /// Number of registration entries.
    #[prost(uint64, tag = "8")]
    pub(super) entries: u64,
}

impl Header {
    pub(super) fn read(payload: &[u8]) -> Decoded<Self> {
        parse("header", payload)
    }
}

#[derive(Clone, PartialEq, Message)]
struct EntryRecord {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(string, tag = "2")]
    spiffe_id: String,
    #[prost(string, tag = "3")]
    parent_id: String,
    #[prost(string, repeated, tag = "4")]
    selectors: Vec<String>,
    #[prost(uint32, tag = "5")]
    x509_svid_ttl: u32,
    #[prost(uint32, tag = "6")]
    jwt_svid_ttl: u32,
    #[prost(string, repeated, tag = "7")]
    federates_with: Vec<String>,
    #[prost(bool, tag = "8")]
    admin: bool,
    #[prost(bool, tag = "9")]
    downstream: bool,
    #[prost(sint64, optional, tag = "10")]
    expires_at: Option<i64>,
    #[prost(string, repeated, tag = "11")]
    dns_names: Vec<String>,
    #[prost(int64, tag = "12")]
    revision: i64,
    #[prost(sint64, tag = "13")]
    created_at: i64,
    #[prost(bool, tag = "14")]
    store_svid: bool,
    #[prost(string, tag = "15")]
    hint: String,
    #[prost(bool, tag = "16")]
    disable_x509_svid_prefetch: bool,
    #[prost(bool, tag = "17")]
    jwt_svid_include_jti: bool,
}

pub(super) fn entry(entry: &Entry) -> Vec<u8> {
    EntryRecord {
        id: entry.id.to_string(),
        spiffe_id: entry.spiffe_id.to_string(),
        parent_id: entry.parent_id.to_string(),
        selectors: selectors(&entry.selectors),
        x509_svid_ttl: entry.x509_svid_ttl,
        jwt_svid_ttl: entry.jwt_svid_ttl,
        federates_with: entry.federates_with.iter().map(ToString::to_string).collect(),
        admin: entry.admin,
        downstream: entry.downstream,
        expires_at: entry.expires_at.map(Timestamp::unix_millis),
        dns_names: entry.dns_names.iter().map(ToString::to_string).collect(),
        revision: entry.revision,
        created_at: entry.created_at.unix_millis(),
        store_svid: entry.store_svid,
        hint: entry.hint.to_string(),
        disable_x509_svid_prefetch: entry.disable_x509_svid_prefetch,
        jwt_svid_include_jti: entry.jwt_svid_include_jti,
    }
    .encode_to_vec()
}

/// Reads entries one after the other. It keeps what the next one is likely to need again, the buffers of the message
/// and the parent with its trust domain: half of the time that loading takes is spent on memory.
#[derive(Default)]
pub(super) struct EntryReader {
    record: EntryRecord,
    parent: Option<(String, SpiffeId)>,
}

impl EntryReader {
    pub(super) fn read(&mut self, payload: &[u8]) -> Decoded<Entry> {
        const RECORD: &str = "entry";
        self.record.clear();
        self.record.merge(payload).map_err(|error| bad(RECORD, error))?;
        let parent = match self.parent.take() {
            Some(parent) if parent.0 == self.record.parent_id => parent,
            other => {
                self.parent = other;
                (self.record.parent_id.clone(), self.id(&self.record.parent_id)?)
            }
        };
        let parent_id = self.parent.insert(parent).1.clone();
        let record = &self.record;
        let mut federates_with = record
            .federates_with
            .iter()
            .map(|name| trust_domain(RECORD, name))
            .collect::<Decoded<Vec<_>>>()?;
        federates_with.sort();
        let dns_names = record
            .dns_names
            .iter()
            .map(|name| name.parse::<DnsName>().map_err(|error| bad(RECORD, error)))
            .collect::<Decoded<Box<[_]>>>()?;
        Ok(Entry {
            id: EntryId::parse(&record.id).map_err(|error| bad(RECORD, error))?,
            spiffe_id: self.id(&record.spiffe_id)?,
            parent_id,
            selectors: read_selectors(RECORD, &record.selectors)?,
            x509_svid_ttl: record.x509_svid_ttl,
            jwt_svid_ttl: record.jwt_svid_ttl,
            federates_with: federates_with.into_boxed_slice(),
            admin: record.admin,
            downstream: record.downstream,
            expires_at: record.expires_at.map(Timestamp::from_unix_millis),
            dns_names,
            revision: record.revision,
            created_at: Timestamp::from_unix_millis(record.created_at),
            store_svid: record.store_svid,
            hint: record.hint.as_str().into(),
            disable_x509_svid_prefetch: record.disable_x509_svid_prefetch,
            jwt_svid_include_jti: record.jwt_svid_include_jti,
        })
    }

    fn id(&self, text: &str) -> Decoded<SpiffeId> {
        match &self.parent {
            Some((_, near)) => SpiffeId::parse_near(text, near.trust_domain()),
            None => SpiffeId::parse(text),
        }
        .map_err(|error| bad("entry", error))
    }
}

#[derive(Clone, PartialEq, Message)]
struct NodeRecord {
    #[prost(uint64, tag = "1")]
    row: u64,
    #[prost(string, tag = "2")]
    id: String,
    #[prost(string, tag = "3")]
    attestation_type: String,
    /// Absent when the node is banned.
    #[prost(string, optional, tag = "4")]
    serial: Option<String>,
    #[prost(sint64, tag = "5")]
    not_after: i64,
    #[prost(string, optional, tag = "6")]
    new_serial: Option<String>,
    #[prost(sint64, tag = "7")]
    new_not_after: i64,
    #[prost(string, repeated, tag = "8")]
    selectors: Vec<String>,
    #[prost(bool, tag = "9")]
    can_reattest: bool,
    #[prost(string, tag = "10")]
    agent_version: String,
    #[prost(sint64, optional, tag = "11")]
    evidence_until: Option<i64>,
}

pub(super) fn node(row: u64, node: &AttestedNode) -> Vec<u8> {
    NodeRecord {
        row,
        id: node.id.to_string(),
        attestation_type: node.attestation_type.clone(),
        serial: node.serial.as_ref().map(ToString::to_string),
        not_after: node.not_after.unix_millis(),
        new_serial: node.new_serial.as_ref().map(ToString::to_string),
        new_not_after: node.new_not_after.unix_millis(),
        selectors: selectors(&node.selectors),
        can_reattest: node.can_reattest,
        agent_version: node.agent_version.clone(),
        evidence_until: node.evidence_until.map(Timestamp::unix_millis),
    }
    .encode_to_vec()
}

pub(super) fn read_node(payload: &[u8]) -> Decoded<(u64, AttestedNode)> {
    const RECORD: &str = "node";
    let record: NodeRecord = parse(RECORD, payload)?;
    let serial = |text: Option<String>| text.map(|text| serial(RECORD, &text)).transpose();
    let node = AttestedNode {
        id: spiffe_id(RECORD, &record.id)?,
        attestation_type: record.attestation_type,
        serial: serial(record.serial)?,
        not_after: Timestamp::from_unix_millis(record.not_after),
        new_serial: serial(record.new_serial)?,
        new_not_after: Timestamp::from_unix_millis(record.new_not_after),
        selectors: read_selectors(RECORD, &record.selectors)?,
        can_reattest: record.can_reattest,
        agent_version: record.agent_version,
        evidence_until: record.evidence_until.map(Timestamp::from_unix_millis),
    };
    Ok((record.row, node))
}

#[derive(Clone, PartialEq, Message)]
struct BundleRecord {
    #[prost(uint64, tag = "1")]
    row: u64,
    #[prost(string, tag = "2")]
    trust_domain: String,
    #[prost(message, repeated, tag = "3")]
    x509_authorities: Vec<CertificateRecord>,
    #[prost(message, repeated, tag = "4")]
    jwt_authorities: Vec<KeyRecord>,
    #[prost(message, repeated, tag = "5")]
    wit_authorities: Vec<KeyRecord>,
    #[prost(uint64, tag = "6")]
    refresh_hint: u64,
    #[prost(uint64, tag = "7")]
    sequence_number: u64,
}

#[derive(Clone, PartialEq, Message)]
struct CertificateRecord {
    #[prost(bytes = "vec", tag = "1")]
    der: Vec<u8>,
    #[prost(bool, tag = "2")]
    tainted: bool,
}

#[derive(Clone, PartialEq, Message)]
struct KeyRecord {
    #[prost(string, tag = "1")]
    key_id: String,
    #[prost(bytes = "vec", tag = "2")]
    public_key: Vec<u8>,
    #[prost(sint64, optional, tag = "3")]
    expires_at: Option<i64>,
    #[prost(bool, tag = "4")]
    tainted: bool,
}

pub(super) fn bundle(row: u64, bundle: &Bundle) -> Vec<u8> {
    let keys = |keys: &[JwtAuthority]| {
        keys.iter()
            .map(|key| KeyRecord {
                key_id: key.key_id.clone(),
                public_key: key.public_key.clone(),
                expires_at: key.expires_at.map(Timestamp::unix_millis),
                tainted: key.tainted,
            })
            .collect()
    };
    BundleRecord {
        row,
        trust_domain: bundle.trust_domain.to_string(),
        x509_authorities: bundle
            .x509_authorities
            .iter()
            .map(|authority| CertificateRecord {
                der: authority.certificate.clone(),
                tainted: authority.tainted,
            })
            .collect(),
        jwt_authorities: keys(&bundle.jwt_authorities),
        wit_authorities: keys(&bundle.wit_authorities),
        refresh_hint: bundle.refresh_hint,
        sequence_number: bundle.sequence_number,
    }
    .encode_to_vec()
}

pub(super) fn read_bundle(payload: &[u8]) -> Decoded<(u64, Bundle)> {
    const RECORD: &str = "bundle";
    let record: BundleRecord = parse(RECORD, payload)?;
    let keys = |keys: Vec<KeyRecord>| {
        keys.into_iter()
            .map(|key| JwtAuthority {
                key_id: key.key_id,
                public_key: key.public_key,
                expires_at: key.expires_at.map(Timestamp::from_unix_millis),
                tainted: key.tainted,
            })
            .collect()
    };
    let bundle = Bundle {
        trust_domain: trust_domain(RECORD, &record.trust_domain)?,
        x509_authorities: record
            .x509_authorities
            .into_iter()
            .map(|authority| X509Authority { certificate: authority.der, tainted: authority.tainted })
            .collect(),
        jwt_authorities: keys(record.jwt_authorities),
        wit_authorities: keys(record.wit_authorities),
        refresh_hint: record.refresh_hint,
        sequence_number: record.sequence_number,
    };
    Ok((record.row, bundle))
}

#[derive(Clone, PartialEq, Message)]
struct RelationshipRecord {
    #[prost(uint64, tag = "1")]
    row: u64,
    #[prost(string, tag = "2")]
    trust_domain: String,
    #[prost(string, tag = "3")]
    bundle_endpoint_url: String,
    /// Present for the profile `https_spiffe`, absent for `https_web`.
    #[prost(string, optional, tag = "4")]
    endpoint_spiffe_id: Option<String>,
}

pub(super) fn relationship(row: u64, relationship: &FederationRelationship) -> Vec<u8> {
    RelationshipRecord {
        row,
        trust_domain: relationship.trust_domain.to_string(),
        bundle_endpoint_url: relationship.bundle_endpoint_url.clone(),
        endpoint_spiffe_id: match &relationship.profile {
            EndpointProfile::HttpsWeb => None,
            EndpointProfile::HttpsSpiffe { endpoint_spiffe_id } => Some(endpoint_spiffe_id.to_string()),
        },
    }
    .encode_to_vec()
}

pub(super) fn read_relationship(payload: &[u8]) -> Decoded<(u64, FederationRelationship)> {
    const RECORD: &str = "federation relationship";
    let record: RelationshipRecord = parse(RECORD, payload)?;
    let profile = match record.endpoint_spiffe_id {
        None => EndpointProfile::HttpsWeb,
        Some(id) => EndpointProfile::HttpsSpiffe { endpoint_spiffe_id: spiffe_id(RECORD, &id)? },
    };
    let relationship = FederationRelationship {
        trust_domain: trust_domain(RECORD, &record.trust_domain)?,
        bundle_endpoint_url: record.bundle_endpoint_url,
        profile,
    };
    Ok((record.row, relationship))
}

#[derive(Clone, PartialEq, Message)]
struct TokenRecord {
    #[prost(string, tag = "1")]
    value: String,
    #[prost(sint64, tag = "2")]
    expires_at: i64,
    #[prost(string, optional, tag = "3")]
    agent_id: Option<String>,
}

pub(super) fn token(token: &JoinToken) -> Vec<u8> {
    TokenRecord {
        value: token.value.clone(),
        expires_at: token.expires_at.unix_millis(),
        agent_id: token.agent_id.as_ref().map(ToString::to_string),
    }
    .encode_to_vec()
}

pub(super) fn read_token(payload: &[u8]) -> Decoded<JoinToken> {
    const RECORD: &str = "join token";
    let record: TokenRecord = parse(RECORD, payload)?;
    Ok(JoinToken {
        value: record.value,
        expires_at: Timestamp::from_unix_millis(record.expires_at),
        agent_id: record.agent_id.map(|id| spiffe_id(RECORD, &id)).transpose()?,
    })
}

/// A used token of a foreign issuer; its fingerprint is the key.
#[derive(Clone, PartialEq, Message)]
struct SpentRecord {
    #[prost(sint64, tag = "1")]
    until: i64,
}

pub(super) fn spent(until: Timestamp) -> Vec<u8> {
    SpentRecord { until: until.unix_millis() }.encode_to_vec()
}

pub(super) fn read_spent(payload: &[u8]) -> Decoded<Timestamp> {
    let record: SpentRecord = parse("used token", payload)?;
    Ok(Timestamp::from_unix_millis(record.until))
}

#[derive(Clone, PartialEq, Message)]
struct JournalMessage {
    /// 1 X.509, 2 JWT, 3 WIT.
    #[prost(uint32, tag = "1")]
    kind: u32,
    /// 1 A, 2 B.
    #[prost(uint32, tag = "2")]
    slot: u32,
    /// 1 prepared, 2 active, 3 old.
    #[prost(uint32, tag = "3")]
    status: u32,
    #[prost(string, tag = "4")]
    authority_id: String,
    #[prost(sint64, tag = "5")]
    issued_at: i64,
    #[prost(sint64, tag = "6")]
    not_after: i64,
    #[prost(bool, tag = "7")]
    tainted: bool,
    #[prost(string, optional, tag = "8")]
    upstream_authority_id: Option<String>,
    #[prost(string, tag = "9")]
    key_id: String,
    #[prost(bytes = "vec", repeated, tag = "10")]
    certificate_chain: Vec<Vec<u8>>,
    #[prost(bytes = "vec", tag = "11")]
    public_key: Vec<u8>,
    #[prost(string, repeated, tag = "12")]
    revoked: Vec<String>,
}

pub(super) fn kind_number(kind: AuthorityKind) -> u8 {
    match kind {
        AuthorityKind::X509 => 1,
        AuthorityKind::Jwt => 2,
        AuthorityKind::Wit => 3,
    }
}

pub(super) fn journal(record: &JournalRecord) -> Vec<u8> {
    JournalMessage {
        kind: kind_number(record.kind).into(),
        slot: match record.slot.slot {
            SlotId::A => 1,
            SlotId::B => 2,
        },
        status: match record.slot.status {
            SlotStatus::Prepared => 1,
            SlotStatus::Active => 2,
            SlotStatus::Old => 3,
        },
        authority_id: record.slot.authority_id.clone(),
        issued_at: record.slot.issued_at.unix_millis(),
        not_after: record.slot.not_after.unix_millis(),
        tainted: record.slot.tainted,
        upstream_authority_id: record.slot.upstream_authority_id.clone(),
        key_id: record.key_id.clone(),
        certificate_chain: record.certificate_chain.clone(),
        public_key: record.public_key.clone(),
        revoked: record.revoked.clone(),
    }
    .encode_to_vec()
}

pub(super) fn read_journal(payload: &[u8]) -> Decoded<JournalRecord> {
    const RECORD: &str = "journal";
    let record: JournalMessage = parse(RECORD, payload)?;
    Ok(JournalRecord {
        kind: match record.kind {
            1 => AuthorityKind::X509,
            2 => AuthorityKind::Jwt,
            3 => AuthorityKind::Wit,
            other => return Err(bad(RECORD, format!("kind {other}"))),
        },
        slot: AuthoritySlot {
            slot: match record.slot {
                1 => SlotId::A,
                2 => SlotId::B,
                other => return Err(bad(RECORD, format!("slot {other}"))),
            },
            status: match record.status {
                1 => SlotStatus::Prepared,
                2 => SlotStatus::Active,
                3 => SlotStatus::Old,
                other => return Err(bad(RECORD, format!("status {other}"))),
            },
            authority_id: record.authority_id,
            issued_at: Timestamp::from_unix_millis(record.issued_at),
            not_after: Timestamp::from_unix_millis(record.not_after),
            tainted: record.tainted,
            upstream_authority_id: record.upstream_authority_id,
        },
        key_id: record.key_id,
        certificate_chain: record.certificate_chain,
        public_key: record.public_key,
        revoked: record.revoked,
    })
}

/// SVIDs of one kind that one authority signed.
#[derive(Clone, PartialEq, Message)]
struct IssuanceRecord {
    /// 1 workload X.509, 2 workload JWT, 3 workload WIT, 4 agent X.509, 5 server X.509, 6 downstream authority.
    #[prost(uint32, tag = "1")]
    kind: u32,
    #[prost(string, tag = "2")]
    authority_id: String,
    #[prost(message, repeated, tag = "3")]
    svids: Vec<SvidRecord>,
}

#[derive(Clone, PartialEq, Message)]
struct SvidRecord {
    #[prost(string, tag = "1")]
    spiffe_id: String,
    /// Empty when no entry entitled to it.
    #[prost(string, tag = "2")]
    entry_id: String,
    #[prost(string, tag = "3")]
    serial: String,
    #[prost(sint64, tag = "4")]
    not_after: i64,
}

/// One record; all of `svids` are of the same kind and authority.
pub(super) fn issuance(svids: &[IssuedSvid]) -> Vec<u8> {
    let Some(first) = svids.first() else { return Vec::new() };
    let kind = match first.kind {
        SvidKind::WorkloadX509 => 1,
        SvidKind::WorkloadJwt => 2,
        SvidKind::WorkloadWit => 3,
        SvidKind::AgentX509 => 4,
        SvidKind::ServerX509 => 5,
        SvidKind::DownstreamAuthority => 6,
    };
    let svids = svids
        .iter()
        .map(|svid| SvidRecord {
            spiffe_id: svid.spiffe_id.to_string(),
            entry_id: svid.entry_id.as_ref().map(ToString::to_string).unwrap_or_default(),
            serial: svid.serial.clone(),
            not_after: svid.not_after.unix_millis(),
        })
        .collect();
    IssuanceRecord { kind, authority_id: first.authority_id.clone(), svids }.encode_to_vec()
}

pub(super) fn read_issuance(payload: &[u8]) -> Decoded<Vec<IssuedSvid>> {
    const RECORD: &str = "issuance";
    let record: IssuanceRecord = parse(RECORD, payload)?;
    let kind = match record.kind {
        1 => SvidKind::WorkloadX509,
        2 => SvidKind::WorkloadJwt,
        3 => SvidKind::WorkloadWit,
        4 => SvidKind::AgentX509,
        5 => SvidKind::ServerX509,
        6 => SvidKind::DownstreamAuthority,
        other => return Err(bad(RECORD, format!("kind {other}"))),
    };
    let svid = |svid: SvidRecord| {
        let entry_id = match svid.entry_id.as_str() {
            "" => None,
            id => Some(EntryId::parse(id).map_err(|error| bad(RECORD, error))?),
        };
        Ok(IssuedSvid {
            kind,
            spiffe_id: spiffe_id(RECORD, &svid.spiffe_id)?,
            entry_id,
            serial: svid.serial,
            not_after: Timestamp::from_unix_millis(svid.not_after),
            authority_id: record.authority_id.clone(),
        })
    };
    record.svids.into_iter().map(svid).collect()
}

#[derive(Clone, PartialEq, Message)]
struct ChangesRecord {
    /// Epoch of the first change; the others follow without gaps.
    #[prost(uint64, tag = "1")]
    first: u64,
    #[prost(message, repeated, tag = "2")]
    changes: Vec<ChangeRecord>,
}

#[derive(Clone, PartialEq, Message)]
struct ChangeRecord {
    /// 1 entry, 2 node, 3 bundle, 4 federation relationship.
    #[prost(uint32, tag = "1")]
    what: u32,
    #[prost(string, tag = "2")]
    key: String,
}

pub(super) fn changes(first: u64, changes: &[Change]) -> Vec<u8> {
    let changes = changes
        .iter()
        .map(|change| match change {
            Change::Entry(id) => ChangeRecord { what: 1, key: id.to_string() },
            Change::Node(id) => ChangeRecord { what: 2, key: id.to_string() },
            Change::Bundle(name) => ChangeRecord { what: 3, key: name.to_string() },
            Change::Relationship(name) => ChangeRecord { what: 4, key: name.to_string() },
        })
        .collect();
    ChangesRecord { first, changes }.encode_to_vec()
}

pub(super) fn read_changes(payload: &[u8]) -> Decoded<(u64, Vec<Change>)> {
    const RECORD: &str = "change";
    let record: ChangesRecord = parse(RECORD, payload)?;
    let change = |change: ChangeRecord| {
        Ok(match change.what {
            1 => Change::Entry(EntryId::parse(&change.key).map_err(|error| bad(RECORD, error))?),
            2 => Change::Node(spiffe_id(RECORD, &change.key)?),
            3 => Change::Bundle(trust_domain(RECORD, &change.key)?),
            4 => Change::Relationship(trust_domain(RECORD, &change.key)?),
            other => return Err(bad(RECORD, format!("a change of {other}"))),
        })
    };
    Ok((record.first, record.changes.into_iter().map(change).collect::<Decoded<_>>()?))
}

/// The payload of a record of `table` as this version would write what it reads there.
pub(super) fn rewritten(table: Table, payload: &[u8]) -> Decoded<Vec<u8>> {
    match table {
        Table::Header => Header::read(payload).map(|header| header.encode_to_vec()),
        Table::Entry => EntryReader::default().read(payload).map(|read| entry(&read)),
        Table::Node => read_node(payload).map(|(row, read)| node(row, &read)),
        Table::Bundle => read_bundle(payload).map(|(row, read)| bundle(row, &read)),
        Table::Relationship => read_relationship(payload).map(|(row, read)| relationship(row, &read)),
        Table::Token => read_token(payload).map(|read| token(&read)),
        Table::Journal => read_journal(payload).map(|read| journal(&read)),
        Table::Issuance => read_issuance(payload).map(|read| issuance(&read)),
        Table::Change => read_changes(payload).map(|(first, read)| changes(first, &read)),
        Table::Spent => read_spent(payload).map(spent),
    }
}

fn selectors(set: &SelectorSet) -> Vec<String> {
    set.iter().map(ToString::to_string).collect()
}

fn read_selectors(record: &'static str, selectors: &[String]) -> Decoded<SelectorSet> {
    selectors.iter().map(|text| Selector::parse(text).map_err(|error| bad(record, error))).collect()
}

fn spiffe_id(record: &'static str, text: &str) -> Decoded<SpiffeId> {
    SpiffeId::parse(text).map_err(|error| bad(record, error))
}

fn trust_domain(record: &'static str, text: &str) -> Decoded<TrustDomain> {
    TrustDomain::parse(text).map_err(|error| bad(record, error))
}

fn serial(record: &'static str, text: &str) -> Decoded<SerialNumber> {
    text.parse().map_err(|error| bad(record, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_rewritten_alike_and_the_rest_refused() {
        let written = token(&JoinToken {
            value: "t".into(),
            expires_at: Timestamp::from_unix_millis(-1),
            agent_id: Some(SpiffeId::parse("spiffe://td/spire/agent/a").unwrap()),
        });
        assert_eq!(rewritten(Table::Token, &written), Ok(written.clone()));
        // The same bytes are no journal: a slot has to be one of two.
        assert!(rewritten(Table::Journal, &written).is_err());
        assert!(rewritten(Table::Token, &written[1..]).is_err());
    }
}
