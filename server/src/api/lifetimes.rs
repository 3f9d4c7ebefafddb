//! Lifetimes of entries held against the policy: when an entry is written, and all of them when an operator asks.

use std::sync::Arc;
use std::time::Duration;

use bonafide_identity::lifetime::policy::{Decision, Kind, Policy, Refusal, Subject};
use bonafide_identity::{Entry, SvidTtls, Timestamp};
use bonafide_proto::bonafide::server::v1::{CheckLifetimesResponse, LifetimeFinding};
use bonafide_proto::convert::status;
use bonafide_proto::spire::types;
use tonic::Code;

use crate::config::lifetime::judge;
use crate::server::Context;
use crate::store::State;

/// What an entry asks for, of each kind of SVID. WIT-SVIDs share the setting of X.509-SVIDs.
fn lives(entry: &Entry, ttls: &SvidTtls) -> [(Kind, u32, Duration); 3] {
    [
        (Kind::X509, entry.x509_svid_ttl, ttls.x509),
        (Kind::Jwt, entry.jwt_svid_ttl, ttls.jwt),
        (Kind::Wit, entry.x509_svid_ttl, ttls.wit),
    ]
}

fn decide(
    policy: &Policy,
    entry: &Entry,
    (kind, asked, usual): (Kind, u32, Duration),
    now: Timestamp,
) -> Result<Decision, Refusal> {
    let subject = Subject { kind, id: &entry.spiffe_id, selectors: Some(&entry.selectors) };
    policy.decide(&subject, (asked > 0).then(|| Duration::from_secs(asked.into())), usual, now)
}

/// Why an entry may not be written, when it asks for lifetimes that the policy refuses at `now`.
pub(super) fn refused(
    policy: &Policy,
    entry: &Entry,
    ttls: &SvidTtls,
    now: Timestamp,
    what: &str,
) -> Option<types::Status> {
    if policy.rules().is_empty() {
        return None;
    }
    let refusal = |life| decide(policy, entry, life, now).err();
    let refusal = lives(entry, ttls).into_iter().find_map(refusal)?;
    Some(status(Code::InvalidArgument, format!("{what}: {refusal}")))
}

/// Findings that are told one by one.
const MOST_FINDINGS: usize = 1000;
const PAGE: usize = 1000;

/// What does not keep the policy at `at`: the configuration, and every entry.
pub(super) fn check(context: &Arc<Context>, at: Timestamp) -> CheckLifetimesResponse {
    let policy = &context.config.lifetime;
    let judgement = judge(&context.config, at);
    let mut answer = CheckLifetimesResponse {
        at: at.unix_seconds(),
        problems: judgement.problems,
        warnings: judgement.warnings,
        beginnings: policy.beginnings().into_iter().map(Timestamp::unix_seconds).collect(),
        ..CheckLifetimesResponse::default()
    };
    each(&context.state, |entry| {
        answer.entries += 1;
        for life in lives(entry, &context.issuing.ttls()) {
            let (asked, became, reason) = match decide(policy, entry, life, at) {
                Ok(Decision { adjusted: None, .. }) => continue,
                Ok(Decision { life, adjusted: Some((asked, rule)) }) => {
                    answer.adjusted += 1;
                    (asked, Some(life), format!("rule {rule}"))
                }
                Err(refusal) => {
                    answer.refused += 1;
                    let (_, asked, usual) = life;
                    let asked = if asked == 0 { usual } else { Duration::from_secs(asked.into()) };
                    (asked, None, refusal.to_string())
                }
            };
            let seconds = |life: Duration| i64::try_from(life.as_secs()).unwrap_or(i64::MAX);
            let finding = LifetimeFinding {
                entry_id: entry.id.to_string(),
                spiffe_id: entry.spiffe_id.to_string(),
                kind: life.0.to_string(),
                asked: seconds(asked),
                life: became.map_or(0, seconds),
                refused: became.is_none(),
                reason,
            };
            if answer.findings.len() < MOST_FINDINGS {
                answer.findings.push(finding);
            } else if finding.refused
                && let Some(other) = answer.findings.iter_mut().find(|other| !other.refused)
            {
                // What breaks is worth more than what is only adjusted.
                *other = finding;
            }
        }
    });
    answer.findings.sort_by_key(|finding| !finding.refused);
    answer
}

fn each(state: &State, mut look: impl FnMut(&Entry)) {
    let mut after = 0;
    loop {
        let page = state.entries_page(after, PAGE, |_| true);
        let Some((last, _)) = page.last() else { return };
        after = *last;
        page.iter().for_each(|(_, entry)| look(entry));
    }
}
