//! Maximum lifetimes: what may live how long, from which day on.
//!
//! A [`Policy`] is a list of [`Rule`]s. Each says for which kinds, SPIFFE IDs and selectors it is meant and from which
//! instant on; all that apply are kept together, the shortest maximum and the longest minimum win, and of the defaults the last
//! one written. What is too long is shortened or refused, as the rule says whose limit it is, and the rule is named.
//! Only lifetimes promised at `now` are judged: what was signed before a rule began is left as it is.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::SvidTtls;
use crate::{Entry, SelectorSet, SpiffeId, Timestamp, TrustDomain};

/// What a lifetime is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// X.509-SVIDs of workloads.
    X509,
    /// JWT-SVIDs.
    Jwt,
    /// WIT-SVIDs.
    Wit,
    /// X.509-SVIDs of agents.
    Agent,
    /// X.509 authorities and the keys of tokens, and CA certificates of downstream servers.
    Authority,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::X509, Self::Jwt, Self::Wit, Self::Agent, Self::Authority];

    /// The word in configurations: `x509`, `jwt`, `wit`, `agent` or `authority`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::X509 => "x509",
            Self::Jwt => "jwt",
            Self::Wit => "wit",
            Self::Agent => "agent",
            Self::Authority => "authority",
        }
    }

    /// The kind with that word.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What happens to a life that is longer or shorter than it may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Excess {
    /// It becomes as long as it may be.
    #[default]
    Adjust,
    /// Nothing is signed, and an entry that asks for it is not accepted.
    Refuse,
}

/// SPIFFE IDs: one, or all below a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdPattern {
    trust_domain: TrustDomain,
    path: String,
    below: bool,
}

impl IdPattern {
    /// `spiffe://td/path`, or `spiffe://td/path/*` for everything below it, or `spiffe://td/*` for every ID with a path.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (id, below) = match text.strip_suffix("/*") {
            Some(id) => (id, true),
            None => (text, false),
        };
        if id.contains('*') {
            return Err("`*` may only be the last segment".to_owned());
        }
        let bare = id.strip_prefix("spiffe://").filter(|rest| !rest.contains('/'));
        let (trust_domain, path) = match bare {
            Some(td) => TrustDomain::parse(td).map(|td| (td, String::new())),
            None => SpiffeId::parse(id).map(|id| (id.trust_domain().clone(), id.path().to_owned())),
        }
        .map_err(|error| error.to_string())?;
        Ok(Self { trust_domain, path, below })
    }

    /// Whether an ID is meant.
    pub fn matches(&self, id: &SpiffeId) -> bool {
        *id.trust_domain() == self.trust_domain
            && match id.path().strip_prefix(self.path.as_str()) {
                Some("") => !self.below,
                Some(rest) => self.below && rest.starts_with('/'),
                None => false,
            }
    }
}

impl fmt::Display for IdPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}{}{}", self.trust_domain, self.path, if self.below { "/*" } else { "" })
    }
}

/// One rule. What is not given does not limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// By which it is spoken of.
    pub name: Arc<str>,
    /// For which kinds; for all when there are none.
    pub kinds: Vec<Kind>,
    /// For which SPIFFE IDs.
    pub id: Option<IdPattern>,
    /// For entries that have all of these selectors; it is then for nothing without an entry.
    pub selectors: SelectorSet,
    /// From when on.
    pub from: Option<Timestamp>,
    /// The shortest life.
    pub min: Option<Duration>,
    /// The life of what asks for none.
    pub default: Option<Duration>,
    /// The longest life.
    pub max: Option<Duration>,
    /// What happens beyond.
    pub excess: Excess,
}

impl Rule {
    /// Whether it is for a subject at an instant.
    pub fn applies(&self, subject: &Subject<'_>, now: Timestamp) -> bool {
        (self.kinds.is_empty() || self.kinds.contains(&subject.kind))
            && self.from.is_none_or(|from| from <= now)
            && self.id.as_ref().is_none_or(|pattern| pattern.matches(subject.id))
            && (self.selectors.is_empty()
                || subject.selectors.is_some_and(|given| self.selectors.is_subset_of(given)))
    }
}

/// What is to live.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// Its kind.
    pub kind: Kind,
    /// Its SPIFFE ID; that of the trust domain for authorities.
    pub id: &'a SpiffeId,
    /// The selectors of its entry, where it has one.
    pub selectors: Option<&'a SelectorSet>,
}

/// All rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    rules: Arc<[Rule]>,
    /// What happens to a life that its issuer cannot give because it ends first.
    when_issuer_ends_first: Excess,
}

/// How long something lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The life.
    pub life: Duration,
    /// What was asked for, and the rule that made another life of it.
    pub adjusted: Option<(Duration, Arc<str>)>,
}

/// Why nothing may be signed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is longer than a rule allows.
    #[error("the lifetime of {}s is longer than the {}s that rule {rule:?} allows", asked.as_secs(), max.as_secs())]
    TooLong {
        /// The life that was asked for.
        asked: Duration,
        /// The longest one.
        max: Duration,
        /// Whose.
        rule: Arc<str>,
    },
    /// It is shorter than a rule allows.
    #[error("the lifetime of {}s is shorter than the {}s that rule {rule:?} demands", asked.as_secs(), min.as_secs())]
    TooShort {
        /// The life that was asked for.
        asked: Duration,
        /// The shortest one.
        min: Duration,
        /// Whose.
        rule: Arc<str>,
    },
    /// Two rules cannot both be kept.
    #[error(
        "rule {longest:?} allows at most {}s and rule {shortest:?} demands at least {}s: one of them must change",
        max.as_secs(), min.as_secs()
    )]
    Contradiction {
        /// Whose maximum.
        longest: Arc<str>,
        /// The maximum.
        max: Duration,
        /// Whose minimum.
        shortest: Arc<str>,
        /// The minimum.
        min: Duration,
    },
    /// The issuer ends first, and the policy does not let the life be cut.
    #[error(
        "a lifetime of {}s would end at {} (unix seconds), after its issuer {issuer}, which ends at {}",
        life.as_secs(), wanted.unix_seconds(), ends.unix_seconds()
    )]
    Issuer {
        /// The life.
        life: Duration,
        /// Its end.
        wanted: Timestamp,
        /// The certificate or key that ends first.
        issuer: String,
        /// When.
        ends: Timestamp,
    },
}

impl Policy {
    /// These rules.
    pub fn new(rules: Vec<Rule>, when_issuer_ends_first: Excess) -> Self {
        Self { rules: rules.into(), when_issuer_ends_first }
    }

    /// The rules, as they were written.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// What happens to a life that its issuer cannot give.
    pub fn when_issuer_ends_first(&self) -> Excess {
        self.when_issuer_ends_first
    }

    /// The life of a subject that asks for `asked`, or for nothing and then has `usual` unless a rule has a default.
    ///
    /// # Errors
    /// [`Refusal`], but for [`Refusal::Issuer`].
    pub fn decide(
        &self,
        subject: &Subject<'_>,
        asked: Option<Duration>,
        usual: Duration,
        now: Timestamp,
    ) -> Result<Decision, Refusal> {
        let mut default = usual;
        let mut longest: Option<(Duration, &Rule)> = None;
        let mut shortest: Option<(Duration, &Rule)> = None;
        for rule in self.rules.iter().filter(|rule| rule.applies(subject, now)) {
            default = rule.default.unwrap_or(default);
            if let Some(max) = rule.max
                && longest.is_none_or(|(so_far, _)| max < so_far)
            {
                longest = Some((max, rule));
            }
            if let Some(min) = rule.min
                && shortest.is_none_or(|(so_far, _)| min > so_far)
            {
                shortest = Some((min, rule));
            }
        }
        if let (Some((max, of)), Some((min, other))) = (longest, shortest)
            && max < min
        {
            let (longest, shortest) = (of.name.clone(), other.name.clone());
            return Err(Refusal::Contradiction { longest, max, shortest, min });
        }
        let wanted = asked.unwrap_or(default);
        let became =
            |life: Duration, rule: &Rule| Decision { life, adjusted: Some((wanted, rule.name.clone())) };
        match (longest, shortest) {
            // What nobody asked for is adjusted, whatever the rule says of what is asked for.
            (Some((max, rule)), _) if wanted > max => match rule.excess {
                Excess::Refuse if asked.is_some() => {
                    Err(Refusal::TooLong { asked: wanted, max, rule: rule.name.clone() })
                }
                Excess::Adjust | Excess::Refuse => Ok(became(max, rule)),
            },
            (_, Some((min, rule))) if wanted < min => match rule.excess {
                Excess::Refuse if asked.is_some() => {
                    Err(Refusal::TooShort { asked: wanted, min, rule: rule.name.clone() })
                }
                Excess::Adjust | Excess::Refuse => Ok(became(min, rule)),
            },
            _ => Ok(Decision { life: wanted, adjusted: None }),
        }
    }

    /// The life of an entry's SVIDs of a kind.
    ///
    /// # Errors
    /// As [`Self::decide`].
    pub fn decide_entry(
        &self,
        kind: Kind,
        entry: &Entry,
        ttls: &SvidTtls,
        now: Timestamp,
    ) -> Result<Decision, Refusal> {
        let (asked, usual) = ttls.of_entry(kind, entry);
        let subject = Subject { kind, id: &entry.spiffe_id, selectors: Some(&entry.selectors) };
        self.decide(&subject, asked, usual, now)
    }

    /// Whether an issuer that is called `issuer` and ends at `ends` may cut a life that begins at `now`.
    ///
    /// # Errors
    /// [`Refusal::Issuer`].
    pub fn judge_issuer(
        &self,
        life: Duration,
        now: Timestamp,
        issuer: &str,
        ends: Timestamp,
    ) -> Result<(), Refusal> {
        let wanted = now.saturating_add(life);
        if wanted <= ends || self.when_issuer_ends_first == Excess::Adjust {
            return Ok(());
        }
        Err(Refusal::Issuer { life, wanted, issuer: issuer.to_owned(), ends })
    }

    /// The instants at which rules begin, in order, each once.
    pub fn beginnings(&self) -> Vec<Timestamp> {
        let mut all: Vec<_> = self.rules.iter().filter_map(|rule| rule.from).collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

/// Rules that somebody else made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// Certificates of public TLS servers (CA/Browser Forum ballot SC-081v3): at most 200 days from 2026-03-15 on, 100 from 2027-03-15
    /// on, 47 from 2029-03-15 on.
    PublicTls,
    /// Certificates for public code signing (CA/Browser Forum): at most 460 days from 2026-03-01 on.
    PublicCodeSigning,
    /// Identities of workloads in hours: X.509-SVIDs, WIT-SVIDs and agents at most a day, JWT-SVIDs at most an hour.
    Workloads,
}

impl Profile {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::PublicTls, Self::PublicCodeSigning, Self::Workloads];

    /// The word in configurations.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PublicTls => "public_tls",
            Self::PublicCodeSigning => "public_code_signing",
            Self::Workloads => "workloads",
        }
    }

    /// The profile with that word.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|profile| profile.as_str() == word)
    }

    /// Its rules, for X.509-SVIDs where the profile is about certificates.
    pub fn rules(self) -> Vec<Rule> {
        let rule = |kinds: &[Kind], from: Option<i64>, max: Duration| Rule {
            name: self.as_str().into(),
            kinds: kinds.to_vec(),
            id: None,
            selectors: SelectorSet::empty(),
            from: from.map(Timestamp::from_unix_seconds),
            min: None,
            default: None,
            max: Some(max),
            excess: Excess::Adjust,
        };
        match self {
            Self::PublicTls => [(MARCH_15_2026, 200), (MARCH_15_2027, 100), (MARCH_15_2029, 47)]
                .map(|(from, days)| rule(&[Kind::X509], Some(from), days * DAY - BOTH_ENDS))
                .into(),
            Self::PublicCodeSigning => vec![rule(&[Kind::X509], Some(MARCH_1_2026), 460 * DAY - BOTH_ENDS)],
            Self::Workloads => vec![
                rule(&[Kind::X509, Kind::Wit, Kind::Agent], None, DAY),
                rule(&[Kind::Jwt], None, DAY / 24),
            ],
        }
    }
}

const DAY: Duration = Duration::from_secs(86_400);
/// What a certificate lives longer than from its signature to its end: it begins earlier, and its last second counts.
const BOTH_ENDS: Duration = Duration::from_secs(super::BACKDATE.as_secs() + 1);
const MARCH_1_2026: i64 = 1_772_323_200;
const MARCH_15_2026: i64 = 1_773_532_800;
const MARCH_15_2027: i64 = 1_805_068_800;
const MARCH_15_2029: i64 = 1_868_227_200;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Selector;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_unix_seconds(seconds)
    }

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    fn id(text: &str) -> SpiffeId {
        SpiffeId::parse(text).unwrap()
    }

    fn rule(name: &str) -> Rule {
        Rule {
            name: name.into(),
            kinds: Vec::new(),
            id: None,
            selectors: SelectorSet::empty(),
            from: None,
            min: None,
            default: None,
            max: None,
            excess: Excess::Adjust,
        }
    }

    fn life(
        policy: &Policy,
        subject: &Subject<'_>,
        asked: Option<u64>,
        now: i64,
    ) -> Result<(u64, Option<String>), Refusal> {
        let decision = policy.decide(subject, asked.map(seconds), seconds(3600), at(now))?;
        Ok((decision.life.as_secs(), decision.adjusted.map(|(_, rule)| rule.to_string())))
    }

    #[test]
    fn patterns_end_at_segments() {
        let all = IdPattern::parse("spiffe://a.org/*").unwrap();
        let below = IdPattern::parse("spiffe://a.org/ns/shop/*").unwrap();
        let one = IdPattern::parse("spiffe://a.org/web").unwrap();
        for (pattern, yes, no) in [
            (
                &all,
                &["spiffe://a.org/x", "spiffe://a.org/x/y"][..],
                &["spiffe://b.org/x", "spiffe://a.org.b/x"][..],
            ),
            (
                &below,
                &["spiffe://a.org/ns/shop/sa/web"],
                &["spiffe://a.org/ns/shop", "spiffe://a.org/ns/shopping/x"],
            ),
            (&one, &["spiffe://a.org/web"], &["spiffe://a.org/web/x", "spiffe://a.org/webs"]),
        ] {
            assert!(yes.iter().all(|text| pattern.matches(&id(text))), "{pattern}");
            assert!(no.iter().all(|text| !pattern.matches(&id(text))), "{pattern}");
            assert_eq!(IdPattern::parse(&pattern.to_string()).as_ref(), Ok(pattern));
        }
        for wrong in [
            "",
            "*",
            "web",
            "spiffe://a.org/*/x",
            "spiffe://a.org/we*",
            "spiffe://A.org/*",
            "spiffe://a.org//*",
            "http://a/*",
        ] {
            assert!(IdPattern::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_tightest_rule_wins_and_is_named() {
        let web = id("spiffe://a.org/ns/shop/web");
        let selectors: SelectorSet = [Selector::parse("k8s:ns:shop").unwrap()].into_iter().collect();
        let policy = Policy::new(
            vec![
                Rule { max: Some(seconds(7200)), ..rule("all") },
                Rule {
                    id: Some(IdPattern::parse("spiffe://a.org/ns/shop/*").unwrap()),
                    max: Some(seconds(600)),
                    excess: Excess::Refuse,
                    ..rule("shop")
                },
                Rule { selectors: selectors.clone(), default: Some(seconds(300)), ..rule("selected") },
                Rule { kinds: vec![Kind::Jwt], min: Some(seconds(60)), ..rule("tokens") },
            ],
            Excess::Adjust,
        );
        let subject = |kind, selectors| Subject { kind, id: &web, selectors };
        let x509 = subject(Kind::X509, None);
        assert_eq!(life(&policy, &x509, Some(500), 0), Ok((500, None)));
        // Nobody asked for more, so nobody is refused.
        assert_eq!(life(&policy, &x509, None, 0), Ok((600, Some("shop".into()))));
        let refused = life(&policy, &x509, Some(601), 0).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "the lifetime of 601s is longer than the 600s that rule \"shop\" allows"
        );
        assert_eq!(life(&policy, &subject(Kind::X509, Some(&selectors)), None, 0), Ok((300, None)));
        assert_eq!(life(&policy, &subject(Kind::Jwt, None), Some(5), 0), Ok((60, Some("tokens".into()))));
        let other = id("spiffe://a.org/other");
        let other = Subject { kind: Kind::X509, id: &other, selectors: None };
        assert_eq!(life(&policy, &other, Some(9000), 0), Ok((7200, Some("all".into()))));
    }

    #[test]
    fn rules_that_cannot_both_be_kept_are_said() {
        let web = id("spiffe://a.org/web");
        let subject = Subject { kind: Kind::X509, id: &web, selectors: None };
        let policy = Policy::new(
            vec![
                Rule { max: Some(seconds(60)), ..rule("short") },
                Rule { min: Some(seconds(61)), ..rule("long") },
            ],
            Excess::Adjust,
        );
        assert!(matches!(life(&policy, &subject, Some(60), 0), Err(Refusal::Contradiction { .. })));
    }

    #[test]
    fn public_tls_tightens_on_its_days() {
        let web = id("spiffe://a.org/web");
        let subject = Subject { kind: Kind::X509, id: &web, selectors: None };
        let policy = Policy::new(Profile::PublicTls.rules(), Excess::Adjust);
        let day = 86_400;
        for (now, days) in [
            (MARCH_15_2026 - 1, 398),
            (MARCH_15_2026, 200),
            (MARCH_15_2027 - 1, 200),
            (MARCH_15_2027, 100),
            (MARCH_15_2029, 47),
        ] {
            // A limit leaves room for what a certificate lives before its signature.
            let whole = if days == 398 { 398 * day } else { days * day - 11 };
            assert_eq!(life(&policy, &subject, Some(398 * day), now).unwrap().0, whole, "{now}");
        }
        assert_eq!(policy.beginnings(), [MARCH_15_2026, MARCH_15_2027, MARCH_15_2029].map(at));
        // As the calendar has them: days since the epoch of 2026-03-15 and so on.
        assert_eq!(
            [MARCH_1_2026, MARCH_15_2026, MARCH_15_2027, MARCH_15_2029].map(|one| one / 86_400),
            [20_513, 20_527, 20_892, 21_623]
        );
        let jwt = Subject { kind: Kind::Jwt, ..subject };
        assert_eq!(life(&policy, &jwt, Some(398 * day), MARCH_15_2029), Ok((398 * day, None)));
    }

    #[test]
    fn an_issuer_that_ends_first_is_named() {
        let lenient = Policy::default();
        assert_eq!(lenient.judge_issuer(seconds(60), at(0), "x", at(59)), Ok(()));
        let strict = Policy::new(Vec::new(), Excess::Refuse);
        assert_eq!(strict.judge_issuer(seconds(60), at(0), "x", at(60)), Ok(()));
        let refused = strict.judge_issuer(seconds(60), at(0), "X.509 authority ab12", at(59)).unwrap_err();
        assert!(refused.to_string().contains("X.509 authority ab12, which ends at 59"), "{refused}");
    }
}
