//! The settings of maximum lifetimes.

use std::time::Duration;

use bonafide_identity::lifetime::longest_guaranteed;
use bonafide_identity::lifetime::policy::{Excess, IdPattern, Kind, Policy, Profile, Rule, Subject};
use bonafide_identity::{Selector, SelectorSet, Timestamp};
use bonafide_runtime::config::Problems;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;
use time::{Date, OffsetDateTime};

use super::Config;
use super::raw::{RawLifetime, RawLifetimeRule};

pub(super) fn settings(raw: RawLifetime, problems: &mut Problems<'_>) -> Option<Policy> {
    let issuer = excess(raw.when_issuer_ends_first.as_deref(), "lifetime.when_issuer_ends_first", problems);
    let mut rules = Vec::new();
    for (at, word) in raw.profiles.iter().enumerate() {
        let known = Profile::from_word(word).ok_or_else(|| {
            let names = Profile::ALL.map(Profile::as_str).join(", ");
            format!("unknown profile {word:?}: use {names}")
        });
        rules.push(problems.take(format!("lifetime.profiles[{at}]"), known).map(Profile::rules));
    }
    for (at, raw) in raw.rules.into_iter().enumerate() {
        rules.push(rule(&format!("lifetime.rules[{at}]"), raw, problems).map(|rule| vec![rule]));
    }
    let rules: Vec<Vec<Rule>> = rules.into_iter().collect::<Option<_>>()?;
    Some(Policy::new(rules.into_iter().flatten().collect(), issuer?))
}

fn excess(word: Option<&str>, key: &str, problems: &mut Problems<'_>) -> Option<Excess> {
    match word.unwrap_or("adjust") {
        "adjust" => Some(Excess::Adjust),
        "refuse" => Some(Excess::Refuse),
        other => {
            problems.push(key, format!("{other:?} is neither \"adjust\" nor \"refuse\""));
            None
        }
    }
}

fn rule(base: &str, raw: RawLifetimeRule, problems: &mut Problems<'_>) -> Option<Rule> {
    let key = |name: &str| format!("{base}.{name}");
    let name = problems.required(key("name"), raw.name);
    let mut kinds = Vec::new();
    for word in &raw.kinds {
        let names = Kind::ALL.map(Kind::as_str).join(", ");
        let known = Kind::from_word(word).ok_or_else(|| format!("unknown kind {word:?}: use {names}"));
        kinds.push(problems.take(key("kinds"), known));
    }
    let id = match raw.id {
        None => Some(None),
        Some(text) => {
            let pattern = IdPattern::parse(&text).map_err(|error| format!("{text:?}: {error}"));
            problems.take(key("id"), pattern).map(Some)
        }
    };
    let mut selectors = Vec::new();
    for text in &raw.selectors {
        let selector = Selector::parse(text).map_err(|error| format!("{text:?}: {error}"));
        selectors.push(problems.take(key("selectors"), selector));
    }
    let from = match raw.from {
        None => Some(None),
        Some(text) => problems
            .take(key("from"), day(&text).ok_or_else(|| format!("{text:?} is no date: {DATES}")))
            .map(Some),
    };
    let mut life = |name: &str, life: Option<bonafide_runtime::config::HumanDuration>| {
        let life = life.map(|life| life.0);
        problems.check(
            life.is_none_or(|life| life >= Duration::from_secs(1)),
            key(name),
            "must be at least 1s",
        );
        life
    };
    let (min, default, max) = (life("min", raw.min), life("default", raw.default), life("max", raw.max));
    let excess = excess(raw.beyond.as_deref(), &key("beyond"), problems);
    problems.check(
        min.is_some() || default.is_some() || max.is_some(),
        base,
        "says nothing: give at least one of min, default and max",
    );
    let ordered = |less: Option<Duration>, more: Option<Duration>| {
        less.is_none_or(|less| more.is_none_or(|more| less <= more))
    };
    problems.check(ordered(min, max), key("min"), "is longer than max");
    problems.check(ordered(default, max), key("default"), "is longer than max");
    problems.check(ordered(min, default), key("default"), "is shorter than min");
    let selectors: SelectorSet = selectors.into_iter().collect::<Option<Vec<_>>>()?.into_iter().collect();
    Some(Rule {
        name: name?.into(),
        kinds: kinds.into_iter().collect::<Option<_>>()?,
        id: id?,
        selectors,
        from: from?,
        min,
        default,
        max,
        excess: excess?,
    })
}

const DATES: &str = "write 2027-03-15, which begins at midnight UTC, or 2027-03-15T12:00:00Z";

/// A date, or an instant of RFC 3339.
fn day(text: &str) -> Option<Timestamp> {
    let date =
        Date::parse(text, format_description!("[year]-[month]-[day]")).map(|day| day.midnight().assume_utc());
    let instant = date.or_else(|_| OffsetDateTime::parse(text, &Rfc3339)).ok()?;
    Some(Timestamp::from_unix_seconds(instant.unix_timestamp()))
}

/// What of the configuration's own lifetimes does not keep the policy, or cannot work at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Judgement {
    /// What is wrong now: the server does not start.
    pub problems: Vec<String>,
    /// What will be adjusted, or be wrong from a day on.
    pub warnings: Vec<String>,
}

impl Judgement {
    /// What is wrong now keeps the server from starting; what will be is a warning.
    fn say(&mut self, now: bool, text: String) {
        if now { &mut self.problems } else { &mut self.warnings }.push(text);
    }
}

/// Holds the lifetimes of `[authority]` against `[lifetime]` at `now` and at each day on which a rule begins.
pub fn judge(config: &Config, now: Timestamp) -> Judgement {
    let (policy, authority) = (&config.lifetime, &config.authority);
    let id = config.trust_domain.id();
    let mut judgement = Judgement::default();
    let later = policy.beginnings().into_iter().filter(|beginning| *beginning > now);
    for at in std::iter::once(now).chain(later) {
        let when = if at == now { String::new() } else { format!(" from {} on", date(at)) };
        let mut decide = |kind: Kind, key: &str, life: Duration| {
            let subject = Subject { kind, id: &id, selectors: None };
            match policy.decide(&subject, Some(life), life, at) {
                Ok(decision) => {
                    if let Some((asked, rule)) = &decision.adjusted {
                        judgement.warnings.push(format!(
                            "authority.{key} is {asked:?}, and becomes {:?} by lifetime rule {rule:?}{when}",
                            decision.life
                        ));
                    }
                    decision.life
                }
                Err(refusal) => {
                    judgement.say(at == now, format!("authority.{key}{when}: {refusal}"));
                    life
                }
            }
        };
        let ca = decide(Kind::Authority, "ca_ttl", authority.ca_ttl);
        let lives = [
            (Kind::X509, "default_x509_svid_ttl", authority.default_x509_svid_ttl),
            (Kind::Jwt, "default_jwt_svid_ttl", authority.default_jwt_svid_ttl),
            (Kind::Wit, "default_wit_svid_ttl", authority.default_wit_svid_ttl),
            (Kind::Agent, "agent_ttl", authority.agent_ttl),
        ]
        .map(|(kind, key, life)| (key, decide(kind, key, life)));
        if policy.when_issuer_ends_first() == Excess::Adjust {
            continue;
        }
        let guaranteed = longest_guaranteed(ca);
        for (key, life) in lives.into_iter().filter(|(_, life)| *life > guaranteed) {
            let text = format!(
                "authority.{key} is {life:?}{when}, but an authority of {ca:?} signs until a sixth of its life, at most 7 days, is \
                 left: {ca:?} / 6 = {guaranteed:?}. With lifetime.when_issuer_ends_first = \"refuse\" nothing would be signed at the \
                 end of each authority: make ca_ttl at least {:?}, or {key} at most {guaranteed:?}",
                life * 6
            );
            judgement.say(at == now, text);
        }
    }
    judgement.warnings.dedup();
    judgement
}

fn date(at: Timestamp) -> String {
    let known = OffsetDateTime::from_unix_timestamp(at.unix_seconds()).ok();
    known.and_then(|at| at.format(&Rfc3339).ok()).unwrap_or_else(|| at.unix_seconds().to_string())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use bonafide_runtime::config::ConfigError;

    use super::*;

    fn parse(text: &str) -> Result<Config, Vec<String>> {
        let text = format!("trust_domain = \"example.org\"\ndata_dir = \"/x\"\n{text}");
        match Config::parse(&text, Path::new("server.toml")) {
            Ok(config) => Ok(config),
            Err(ConfigError::Invalid { problems, .. }) => {
                Err(problems.iter().map(|one| one.key.clone()).collect())
            }
            Err(other) => panic!("{other}"),
        }
    }

    const NOW: Timestamp = Timestamp::from_unix_seconds(1_800_000_000);

    #[test]
    fn rules_and_profiles_are_read() {
        let policy = parse(
            r#"
            [lifetime]
            profiles = ["public_tls"]
            when_issuer_ends_first = "refuse"
            [[lifetime.rules]]
            name = "payments"
            kinds = ["x509", "wit"]
            id = "spiffe://example.org/payments/*"
            selectors = ["k8s:ns:payments"]
            from = "2027-03-15"
            min = "5m"
            default = "10m"
            max = "1h"
            beyond = "refuse"
            [[lifetime.rules]]
            name = "exact"
            from = "2027-03-15T12:00:00+02:00"
            max = "100d"
            "#,
        )
        .unwrap()
        .lifetime;
        let rules = policy.rules();
        assert_eq!(rules.len(), 5, "three days of public TLS and two of our own");
        let payments = &rules[3];
        assert_eq!(
            (payments.kinds.as_slice(), payments.excess),
            (&[Kind::X509, Kind::Wit][..], Excess::Refuse)
        );
        assert_eq!(payments.from, Some(Timestamp::from_unix_seconds(1_805_068_800)));
        assert_eq!(payments.max, Some(Duration::from_secs(3600)));
        assert_eq!(rules[4].from, Some(Timestamp::from_unix_seconds(1_805_068_800 + 10 * 3600)));
        assert_eq!(policy.when_issuer_ends_first(), Excess::Refuse);
        assert_eq!(parse("").unwrap().lifetime, Policy::default());
    }

    #[test]
    fn mistakes_are_named() {
        for (text, keys) in [
            ("profiles = [\"workloads\", \"x\"]\n", &["profiles[1]"][..]),
            ("when_issuer_ends_first = \"shorten\"\n", &["when_issuer_ends_first"]),
            ("[[lifetime.rules]]\n", &["rules[0]", "rules[0].name"]),
            ("[[lifetime.rules]]\nname = \"a\"\nmax = \"1m\"\nmin = \"2m\"\n", &["rules[0].min"]),
            ("[[lifetime.rules]]\nname = \"a\"\nmax = \"1m\"\ndefault = \"2m\"\n", &["rules[0].default"]),
            ("[[lifetime.rules]]\nname = \"a\"\nmin = \"1m\"\ndefault = \"2s\"\n", &["rules[0].default"]),
            (
                "[[lifetime.rules]]\nname = \"a\"\nmax = \"1m\"\nkinds = [\"tls\"]\nid = \"web\"\nselectors = [\"x\"]\nfrom = \"soon\"\nbeyond = \"cut\"\n",
                &["rules[0].beyond", "rules[0].from", "rules[0].id", "rules[0].kinds", "rules[0].selectors"],
            ),
        ] {
            let mut found = parse(&format!("[lifetime]\n{text}")).unwrap_err();
            found.sort();
            let keys: Vec<String> = keys.iter().map(|key| format!("lifetime.{key}")).collect();
            assert_eq!(found, keys, "{text}");
        }
    }

    #[test]
    fn lifetimes_that_cannot_work_are_shown_with_the_arithmetic() {
        let config =
            parse("[authority]\nca_ttl = \"1h\"\n[lifetime]\nwhen_issuer_ends_first = \"refuse\"\n").unwrap();
        let judgement = judge(&config, NOW);
        assert_eq!(judgement.problems.len(), 3, "{judgement:?}");
        assert!(judgement.problems[0].contains("3600s / 6 = 600s"), "{judgement:?}");
        assert!(judgement.problems[0].contains("ca_ttl at least 21600s"), "{judgement:?}");
        assert_eq!(judge(&parse("[authority]\nca_ttl = \"1h\"\n").unwrap(), NOW), Judgement::default());

        let text = "[[lifetime.rules]]\nname = \"short\"\nkinds = [\"x509\"]\nmax = \"10m\"\nbeyond = \"refuse\"\nfrom = \"2030-01-01\"\n";
        let judgement = judge(&parse(text).unwrap(), NOW);
        assert_eq!(judgement.problems, Vec::<String>::new());
        assert!(judgement.warnings[0].contains("from 2030-01-01T00:00:00Z on"), "{judgement:?}");
        let judgement = judge(&parse(&text.replace("2030", "2020")).unwrap(), NOW);
        assert!(judgement.problems[0].contains("rule \"short\""), "{judgement:?}");
        let adjusted = judge(&parse(&text.replace("refuse", "adjust").replace("2030", "2020")).unwrap(), NOW);
        assert!(adjusted.problems.is_empty() && adjusted.warnings.len() == 1, "{adjusted:?}");
    }
}
