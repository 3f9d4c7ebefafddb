//! Lifetimes of entries held against the policy: when an entry is written, and all of them when an operator asks.

use std::sync::Arc;
use std::time::Duration;

use bonafide_identity::lifetime::policy::{Decision, Kind, Policy};
use bonafide_identity::{Entry, SvidTtls, Timestamp};
use bonafide_proto::bonafide::server::v1::{CheckLifetimesResponse, LifetimeFinding};
use bonafide_proto::convert::status;
use bonafide_proto::spire::types;
use tonic::Code;

use crate::config::lifetime::judge;
use crate::server::Context;
use crate::store::State;

/// The kinds of SVIDs that entries give.
const KINDS: [Kind; 3] = [Kind::X509, Kind::Jwt, Kind::Wit];

/// Why an entry may not be written, when it asks for lifetimes that the policy refuses at `now`.
pub(super) fn refused(
    policy: &Policy,
    entry: &Entry,
    ttls: &SvidTtls,
    now: Timestamp,
    what: &str,
) -> Option<types::Status> {
    let refusal = KINDS.into_iter().find_map(|kind| policy.decide_entry(kind, entry, ttls, now).err())?;
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
    let ttls = context.issuing.ttls();
    each(&context.state, |entry| {
        answer.entries += 1;
        for kind in KINDS {
            let (asked, became, reason) = match policy.decide_entry(kind, entry, &ttls, at) {
                Ok(Decision { adjusted: None, .. }) => continue,
                Ok(Decision { life, adjusted: Some((asked, rule)) }) => {
                    answer.adjusted += 1;
                    (asked, Some(life), format!("rule {rule}"))
                }
                Err(refusal) => {
                    answer.refused += 1;
                    let (asked, usual) = ttls.of_entry(kind, entry);
                    (asked.unwrap_or(usual), None, refusal.to_string())
                }
            };
            let seconds = |life: Duration| i64::try_from(life.as_secs()).unwrap_or(i64::MAX);
            let finding = LifetimeFinding {
                entry_id: entry.id.to_string(),
                spiffe_id: entry.spiffe_id.to_string(),
                kind: kind.to_string(),
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
