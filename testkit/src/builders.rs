//! Short ways to domain values that are valid and plain; each test changes what it is about.

use bonafide_identity::{
    AttestedNode, Bundle, DnsName, Entry, EntryId, Selector, SelectorSet, SerialNumber, SpiffeId, Timestamp,
    TrustDomain, X509Authority,
};
use std::sync::Arc;

/// The trust domain of tests: `example.org`.
pub fn trust_domain() -> TrustDomain {
    TrustDomain::parse("example.org").expect("a constant that is valid")
}

/// The SPIFFE ID of a path in [`trust_domain`], or of a whole URI.
///
/// # Panics
/// When it is not valid.
pub fn id(path_or_uri: &str) -> SpiffeId {
    let parsed = if path_or_uri.starts_with("spiffe:") {
        SpiffeId::parse(path_or_uri)
    } else {
        SpiffeId::from_parts(trust_domain(), path_or_uri)
    };
    parsed.unwrap_or_else(|error| panic!("{path_or_uri}: {error}"))
}

/// The ID of an agent in [`trust_domain`]: `/spire/agent/test/<name>`.
///
/// # Panics
/// When the name is no path segment.
pub fn agent_id(name: &str) -> SpiffeId {
    id(&format!("/spire/agent/test/{name}"))
}

/// A set of selectors given as `type:value`.
///
/// # Panics
/// When one is not valid.
pub fn selectors<'a>(texts: impl IntoIterator<Item = &'a str>) -> SelectorSet {
    let parse = |text| Selector::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    texts.into_iter().map(parse).collect()
}

/// A bundle of [`trust_domain`] with these root certificates (DER).
pub fn bundle(roots: impl IntoIterator<Item = Vec<u8>>) -> Bundle {
    let mut bundle = Bundle::empty(trust_domain());
    let authority = |certificate| X509Authority { certificate, tainted: false };
    bundle.append(roots.into_iter().map(authority), [], []);
    bundle
}

/// Builds an [`Entry`]: `/workload/<id>` below the agent `a`, for `unix:uid:1000`, unless told otherwise.
#[derive(Clone, Debug)]
pub struct EntryBuilder(Entry);

impl EntryBuilder {
    /// Starts with the entry's ID.
    ///
    /// # Panics
    /// When the ID is not valid.
    pub fn new(entry_id: &str) -> Self {
        Self(Entry {
            id: EntryId::parse(entry_id).unwrap_or_else(|error| panic!("{entry_id}: {error}")),
            spiffe_id: id(&format!("/workload/{entry_id}")),
            parent_id: agent_id("a"),
            selectors: selectors(["unix:uid:1000"]),
            x509_svid_ttl: 0,
            jwt_svid_ttl: 0,
            federates_with: [].into(),
            admin: false,
            downstream: false,
            expires_at: None,
            dns_names: [].into(),
            revision: 0,
            created_at: Timestamp::from_unix_seconds(1_767_225_600),
            store_svid: false,
            hint: "".into(),
            disable_x509_svid_prefetch: false,
            jwt_svid_include_jti: false,
        })
    }

    /// Sets the SPIFFE ID, as in [`id`].
    pub fn spiffe_id(self, path_or_uri: &str) -> Self {
        let spiffe_id = id(path_or_uri);
        self.with(|entry| entry.spiffe_id = spiffe_id)
    }

    /// Sets the parent.
    pub fn parent(self, parent_id: SpiffeId) -> Self {
        self.with(|entry| entry.parent_id = parent_id)
    }

    /// Makes it an alias: its parent is the server.
    pub fn alias(self) -> Self {
        self.parent(trust_domain().server_id())
    }

    /// Sets the selectors, as in [`selectors`].
    pub fn selectors<'a>(self, texts: impl IntoIterator<Item = &'a str>) -> Self {
        let set = selectors(texts);
        self.with(|entry| entry.selectors = set)
    }

    /// Sets the DNS names.
    ///
    /// # Panics
    /// When one is not valid.
    pub fn dns_names<'a>(self, names: impl IntoIterator<Item = &'a str>) -> Self {
        let parse = |name| DnsName::parse(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        self.with(|entry| entry.dns_names = names.into_iter().map(parse).collect())
    }

    /// Sets the hint.
    pub fn hint(self, hint: &str) -> Self {
        self.with(|entry| entry.hint = hint.into())
    }

    /// Changes anything.
    pub fn with(mut self, change: impl FnOnce(&mut Entry)) -> Self {
        change(&mut self.0);
        self
    }

    /// The entry.
    pub fn build(self) -> Entry {
        self.0
    }

    /// The entry, shared.
    pub fn shared(self) -> Arc<Entry> {
        Arc::new(self.0)
    }
}

/// Builds an [`AttestedNode`]: serial 1, good until 2100, without selectors, unless told otherwise.
#[derive(Clone, Debug)]
pub struct NodeBuilder(AttestedNode);

impl NodeBuilder {
    /// Starts with the agent's name, as in [`agent_id`].
    pub fn new(name: &str) -> Self {
        Self(AttestedNode {
            id: agent_id(name),
            attestation_type: "test".into(),
            serial: Some(SerialNumber::from(1)),
            not_after: Timestamp::from_unix_seconds(4_102_444_800),
            new_serial: None,
            new_not_after: Timestamp::from_unix_seconds(0),
            selectors: SelectorSet::empty(),
            can_reattest: false,
            agent_version: String::new(),
            evidence_until: None,
        })
    }

    /// Sets the serial of the living certificate.
    pub fn serial(self, serial: SerialNumber) -> Self {
        self.with(|node| node.serial = Some(serial))
    }

    /// Sets the selectors, as in [`selectors`].
    pub fn selectors<'a>(self, texts: impl IntoIterator<Item = &'a str>) -> Self {
        let set = selectors(texts);
        self.with(|node| node.selectors = set)
    }

    /// Changes anything.
    pub fn with(mut self, change: impl FnOnce(&mut AttestedNode)) -> Self {
        change(&mut self.0);
        self
    }

    /// The node.
    pub fn build(self) -> AttestedNode {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_is_valid() {
        let entry = EntryBuilder::new("e").dns_names(["a.example.org"]).hint("h").build();
        assert_eq!(entry.validate(&trust_domain()), Ok(()));
        assert_eq!(EntryBuilder::new("e").alias().build().validate(&trust_domain()), Ok(()));
        assert_eq!(NodeBuilder::new("a").build().id, entry.parent_id);
        assert_eq!(bundle([vec![1], vec![2]]).x509_authorities.len(), 2);
    }
}
