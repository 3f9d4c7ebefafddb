//! Trust bundles in the forms in which workloads get them, made once for all of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use bonafide_identity::{Bundle, JwtAuthority, TrustDomain};
use bonafide_pki::{JwtKeySource, JwtKeys, KeyLookup, TrustRoots, bundle, inspect};
use bytes::Bytes;

/// One bundle.
#[derive(Debug)]
pub struct CachedBundle {
    /// What the server sent.
    pub bundle: Bundle,
    /// The X.509 authorities, concatenated DER.
    pub x509: Bytes,
    /// The JWT authorities as a JWKS.
    pub jwt: Bytes,
    /// The WIT authorities as a JWKS.
    pub wit: String,
    jwt_keys: JwtKeys,
}

impl CachedBundle {
    fn new(bundle: Bundle) -> Self {
        let mut jwt_keys = JwtKeys::new();
        jwt_keys.insert(bundle.trust_domain.clone(), &bundle.jwt_authorities);
        let wit = String::from_utf8_lossy(&bundle::wit_jwks(&bundle.wit_authorities)).into_owned();
        Self {
            x509: bundle
                .x509_authorities
                .iter()
                .flat_map(|authority| authority.certificate.iter().copied())
                .collect(),
            jwt: bundle::jwks_for_workload(&bundle.jwt_authorities).into(),
            wit,
            jwt_keys,
            bundle,
        }
    }
}

/// Which parts of a bundle differ from what was held before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Parts {
    pub(super) x509: bool,
    pub(super) tokens: bool,
}

/// The bundles that the agent holds.
#[derive(Debug)]
pub struct Bundles {
    /// Of the own trust domain.
    pub own: Arc<CachedBundle>,
    /// Of the trust domains that entries federate with, as far as the server has them.
    pub federated: BTreeMap<TrustDomain, Arc<CachedBundle>>,
    /// The authorities of the own trust domain that nothing should be signed by any more.
    pub tainted: Tainted,
}

/// Authorities that should have nothing left that they signed: they still verify and are tainted, or they have gone from the
/// bundle without that having been seen, as happens to an agent that was cut off.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tainted {
    /// Subject key identifiers, lower-case hex.
    pub x509: BTreeSet<String>,
    /// Key IDs.
    pub jwt: BTreeSet<String>,
    /// Key IDs.
    pub wit: BTreeSet<String>,
}

impl Bundles {
    /// The forms of these bundles. What has not changed since `before` is shared with it.
    #[must_use]
    pub fn new(own: Bundle, federated: impl IntoIterator<Item = Bundle>, before: Option<&Self>) -> Self {
        let own = reuse(own, before.map(|before| &before.own));
        let federated = federated
            .into_iter()
            .map(|bundle| {
                let known = before.and_then(|before| before.federated.get(&bundle.trust_domain));
                (bundle.trust_domain.clone(), reuse(bundle, known))
            })
            .collect();
        let tainted = match before {
            Some(before) if Arc::ptr_eq(&before.own, &own) => before.tainted.clone(),
            before => Tainted::of(&own).and_gone(&own, before),
        };
        Self { own, federated, tainted }
    }

    /// Whether nothing at all has changed.
    #[must_use]
    pub fn same_as(&self, before: &Self) -> bool {
        self.all().count() == before.all().count()
            && self.all().zip(before.all()).all(|(new, old)| Arc::ptr_eq(new, old))
    }

    /// What differs from before, by trust domain.
    pub(super) fn changes(&self, before: &Self) -> BTreeMap<TrustDomain, Parts> {
        let map = |bundles: &'_ Self| -> BTreeMap<TrustDomain, Arc<CachedBundle>> {
            bundles.all().map(|bundle| (bundle.bundle.trust_domain.clone(), Arc::clone(bundle))).collect()
        };
        let (old, new) = (map(before), map(self));
        let names: BTreeSet<&TrustDomain> = old.keys().chain(new.keys()).collect();
        names
            .into_iter()
            .filter_map(|name| {
                let parts = match (old.get(name), new.get(name)) {
                    (Some(old), Some(new)) if Arc::ptr_eq(old, new) => return None,
                    (Some(old), Some(new)) => {
                        Parts { x509: old.x509 != new.x509, tokens: old.jwt != new.jwt || old.wit != new.wit }
                    }
                    _ => Parts { x509: true, tokens: true },
                };
                (parts != Parts::default()).then(|| (name.clone(), parts))
            })
            .collect()
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &Arc<CachedBundle>> {
        std::iter::once(&self.own).chain(self.federated.values())
    }

    /// The X.509 authorities by which members of all these trust domains are recognised. A bundle that cannot be used is
    /// left out: it must not cost the others.
    #[must_use]
    pub fn trust_roots(&self) -> HashMap<TrustDomain, Arc<TrustRoots>> {
        let roots = self.all().filter_map(|bundle| {
            let name = &bundle.bundle.trust_domain;
            let authorities = bundle.bundle.x509_authorities.iter();
            match TrustRoots::from_der(authorities.map(|authority| authority.certificate.as_slice())) {
                Ok(roots) => Some((name.clone(), Arc::new(roots))),
                Err(error) => {
                    tracing::warn!(trust_domain = %name, %error, "members of a trust domain cannot be recognised");
                    None
                }
            }
        });
        roots.collect()
    }

    /// The bundles of the own and of these trust domains, keyed by `spiffe://` name; unknown ones are left out.
    pub fn for_workload<'a>(
        &'a self,
        federated: impl IntoIterator<Item = &'a TrustDomain>,
    ) -> impl Iterator<Item = (String, &'a Arc<CachedBundle>)> {
        let known = federated.into_iter().filter_map(|name| self.federated.get(name));
        std::iter::once(&self.own).chain(known).map(|bundle| (bundle.bundle.trust_domain.id_string(), bundle))
    }
}

impl Tainted {
    /// With those that were there before and are no longer.
    fn and_gone(mut self, own: &CachedBundle, before: Option<&Bundles>) -> Self {
        let Some(before) = before else { return self };
        let (now, then, since) = (Self::all(own), Self::all(&before.own), &before.tainted);
        let mut add = |into: fn(&mut Self) -> &mut BTreeSet<String>, of: fn(&Self) -> &BTreeSet<String>| {
            let gone = of(&then).iter().chain(of(since)).filter(|id| !of(&now).contains(*id));
            into(&mut self).extend(gone.cloned());
        };
        add(|ids| &mut ids.x509, |ids| &ids.x509);
        add(|ids| &mut ids.jwt, |ids| &ids.jwt);
        add(|ids| &mut ids.wit, |ids| &ids.wit);
        self
    }

    fn of(own: &CachedBundle) -> Self {
        Self::listed(own, true)
    }

    fn all(own: &CachedBundle) -> Self {
        Self::listed(own, false)
    }

    fn listed(own: &CachedBundle, tainted_only: bool) -> Self {
        let ids = |authorities: &[JwtAuthority]| {
            let meant = authorities.iter().filter(|authority| authority.tainted || !tainted_only);
            meant.map(|authority| authority.key_id.clone()).collect()
        };
        let x509 = own.bundle.x509_authorities.iter().filter(|authority| authority.tainted || !tainted_only);
        Self {
            x509: x509.filter_map(|authority| inspect(&authority.certificate).ok()?.ski).collect(),
            jwt: ids(&own.bundle.jwt_authorities),
            wit: ids(&own.bundle.wit_authorities),
        }
    }
}

/// The JWT keys that one workload may verify with: of the own trust domain, and of those that its entries federate with.
pub struct WorkloadKeys<'a> {
    /// Everything the agent holds.
    pub bundles: &'a Bundles,
    /// What the workload's entries federate with.
    pub federated: &'a BTreeSet<TrustDomain>,
}

impl JwtKeySource for WorkloadKeys<'_> {
    fn key(&self, trust_domain: &TrustDomain, key_id: &str) -> KeyLookup {
        let own = &self.bundles.own;
        let bundle = if own.bundle.trust_domain == *trust_domain {
            Some(own)
        } else {
            self.federated.get(trust_domain).and_then(|name| self.bundles.federated.get(name))
        };
        bundle.map_or(KeyLookup::UnknownTrustDomain, |bundle| bundle.jwt_keys.key(trust_domain, key_id))
    }
}

fn reuse(bundle: Bundle, known: Option<&Arc<CachedBundle>>) -> Arc<CachedBundle> {
    match known {
        Some(known) if known.bundle == bundle => Arc::clone(known),
        _ => Arc::new(CachedBundle::new(bundle)),
    }
}

#[cfg(test)]
mod tests {
    use bonafide_identity::{Timestamp, X509Authority};
    use bonafide_testkit::{TestAuthority, trust_domain};

    use super::*;

    fn root() -> Vec<u8> {
        let at = |seconds| Timestamp::from_unix_seconds(seconds);
        TestAuthority::new(&trust_domain(), at(1_700_000_000), at(2_000_000_000)).root().to_vec()
    }

    fn bundle_of(name: &str, roots: &[(&Vec<u8>, bool)]) -> Bundle {
        let mut bundle = Bundle::empty(TrustDomain::parse(name).unwrap());
        bundle.x509_authorities = roots
            .iter()
            .map(|(root, tainted)| X509Authority { certificate: (*root).clone(), tainted: *tainted })
            .collect();
        bundle
    }

    #[test]
    fn only_what_changed_is_made_again_and_reported() {
        let (a, b) = (root(), root());
        let before = Bundles::new(
            bundle_of("example.org", &[(&a, false)]),
            [bundle_of("one.test", &[(&a, false)]), bundle_of("two.test", &[])],
            None,
        );
        let after = Bundles::new(
            bundle_of("example.org", &[(&a, false)]),
            [bundle_of("one.test", &[(&a, false), (&b, false)]), bundle_of("three.test", &[])],
            Some(&before),
        );
        assert!(Arc::ptr_eq(&before.own, &after.own));
        let names: Vec<(String, bool)> =
            after.changes(&before).into_iter().map(|(name, parts)| (name.to_string(), parts.x509)).collect();
        assert_eq!(
            names,
            [("one.test".into(), true), ("three.test".into(), true), ("two.test".into(), true)]
        );
        let one = &after.federated[&TrustDomain::parse("one.test").unwrap()];
        assert_eq!(one.x509, [a, b].concat());
    }

    #[test]
    fn a_taint_is_known_without_a_change_for_workloads() {
        let a = root();
        let before = Bundles::new(bundle_of("example.org", &[(&a, false)]), [], None);
        let after = Bundles::new(bundle_of("example.org", &[(&a, true)]), [], Some(&before));
        assert!(before.tainted.x509.is_empty());
        assert_eq!(after.tainted.x509, BTreeSet::from([inspect(&a).unwrap().ski.unwrap()]));
        assert!(after.changes(&before).is_empty(), "the bytes are the same");
        let same = Bundles::new(bundle_of("example.org", &[(&a, true)]), [], Some(&after));
        assert_eq!(same.tainted, after.tainted);
    }

    #[test]
    fn what_has_gone_counts_as_tainted() {
        let (a, b) = (root(), root());
        let ski = |der: &[u8]| inspect(der).unwrap().ski.unwrap();
        let step = |roots: &[(&Vec<u8>, bool)], before: Option<&Bundles>| {
            Bundles::new(bundle_of("example.org", roots), [], before)
        };
        let both = step(&[(&a, false), (&b, false)], None);
        assert_eq!(both.tainted, Tainted::default());
        let one = step(&[(&b, false)], Some(&both));
        assert_eq!(one.tainted.x509, BTreeSet::from([ski(&a)]));
        // It stays so, also when something else changes, and ends when the authority is back.
        let none = step(&[(&b, true)], Some(&one));
        assert_eq!(none.tainted.x509, BTreeSet::from([ski(&a), ski(&b)]));
        let back = step(&[(&a, false), (&b, false)], Some(&none));
        assert_eq!(back.tainted, Tainted::default());
    }
}
