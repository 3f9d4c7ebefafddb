//! `bonafide entry import` and `bonafide entry export`.
//!
//! An import is a comparison first: what is there already is left alone, so that importing the same file again changes
//! nothing, and a dry run can say what would be done. The comparison is a pure function of both lists.

use std::collections::{BTreeMap, BTreeSet};

use bonafide_proto::spire::server::entry::v1 as api;
use bonafide_proto::spire::server::entry::v1::entry_client::EntryClient;
use bonafide_proto::spire::types;
use serde_json::{Value, json};
use tonic::transport::Channel;

use super::entry::{BATCH, client, list};
use super::{document, id_text, item, selector_text, spiffe_id};
use crate::args::ImportArguments;
use crate::connect::Sockets;
use crate::failure::Failure;
use crate::output::{Output, emit};

/// What an import does with one entry of the file.
#[derive(Clone, Debug, PartialEq)]
enum Step {
    Create(types::Entry),
    /// The entry as it shall be, and each field with its value before and after.
    Update(types::Entry, Vec<Change>),
    Keep,
    Refuse(types::Entry, String),
}

/// A field that changes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Change {
    field: &'static str,
    before: String,
    after: String,
}

pub(super) async fn import(arguments: ImportArguments, to: &Sockets, out: &Output) -> Result<(), Failure> {
    let name = arguments.file.display().to_string();
    let mut wanted = document::entries(&document::read_file(&arguments.file)?, &name)?;
    reparent(&mut wanted, &arguments.reparent)?;
    let mut client = client(to).await?;
    let total = wanted.len();
    let there = list(&mut client, api::list_entries_request::Filter::default()).await?;
    let mut report = Report::default();
    let mut steps = plan(wanted, &there);
    if !arguments.dry_run {
        steps = carry_out(&mut client, steps).await?;
    }
    for step in &steps {
        report.add(step);
    }
    if out.is_json() {
        out.line("", &report.json(arguments.dry_run));
    } else {
        emit(&report.text(arguments.dry_run));
    }
    for step in &steps {
        if let Step::Refuse(entry, why) = step {
            eprintln!("{}: {why}", called(entry));
        }
    }
    match report.failed {
        0 => Ok(()),
        failed => Err(Failure::Partly { what: "entries", failed, total }),
    }
}

pub(super) async fn export(to: &Sockets) -> Result<(), Failure> {
    let mut entries = list(&mut client(to).await?, api::list_entries_request::Filter::default()).await?;
    // The same state gives the same file, which can be compared.
    entries.sort_by(|a, b| a.id.cmp(&b.id));
    emit(&format!("{:#}\n", document::export(&entries)));
    Ok(())
}

/// Gives entries below `OLD` the parent `NEW`.
fn reparent(entries: &mut [types::Entry], pairs: &[String]) -> Result<(), Failure> {
    let mut parents = BTreeMap::new();
    for pair in pairs {
        let bad = || Failure::Input(format!("{pair:?} is not OLD=NEW, two SPIFFE IDs"));
        let (old, new) = pair.split_once('=').ok_or_else(bad)?;
        parents.insert(id_text(Some(&spiffe_id(old)?)), spiffe_id(new)?);
    }
    let mut used = BTreeSet::new();
    for entry in entries {
        let old = id_text(entry.parent_id.as_ref());
        if let Some(new) = parents.get(&old) {
            entry.parent_id = Some(new.clone());
            used.insert(old);
        }
    }
    match parents.keys().find(|old| !used.contains(*old)) {
        Some(old) => Err(Failure::Input(format!("no entry of the file has the parent {old}"))),
        None => Ok(()),
    }
}

type Likeness = (String, String, Vec<String>);

/// What the server calls similar, of which there can be one.
fn likeness(entry: &types::Entry) -> Likeness {
    let selectors: BTreeSet<String> = entry.selectors.iter().map(selector_text).collect();
    (id_text(entry.spiffe_id.as_ref()), id_text(entry.parent_id.as_ref()), selectors.into_iter().collect())
}

fn plan(wanted: Vec<types::Entry>, there: &[types::Entry]) -> Vec<Step> {
    let by_id: BTreeMap<&str, &types::Entry> = there.iter().map(|entry| (entry.id.as_str(), entry)).collect();
    let mut similar: BTreeMap<Likeness, String> =
        there.iter().map(|entry| (likeness(entry), entry.id.clone())).collect();
    let mut seen = BTreeSet::new();
    let mut steps = Vec::new();
    for mut entry in wanted {
        if !entry.id.is_empty() && !seen.insert(entry.id.clone()) {
            steps.push(Step::Refuse(entry, "stands twice in the file".to_owned()));
            continue;
        }
        let like = likeness(&entry);
        let twin = similar.get(&like).cloned();
        if entry.id.is_empty()
            && let Some(twin) = &twin
        {
            entry.id.clone_from(twin);
        }
        let step = match (by_id.get(entry.id.as_str()), twin) {
            (_, Some(twin)) if twin != entry.id => {
                let why = format!(
                    "the same SPIFFE ID, parent and selectors belong to entry {}; delete one of the two",
                    if twin.is_empty() { "of this file without an identifier" } else { &twin }
                );
                Step::Refuse(entry, why)
            }
            (Some(old), _) => {
                // An update may leave its place to an entry that comes later.
                similar.remove(&likeness(old));
                similar.insert(like, entry.id.clone());
                match differences(old, &entry) {
                    changes if changes.is_empty() => Step::Keep,
                    changes => Step::Update(entry, changes),
                }
            }
            // Its twin came earlier in the file.
            (None, Some(_)) => Step::Refuse(entry, "stands twice in the file".to_owned()),
            (None, None) => {
                similar.insert(like, entry.id.clone());
                Step::Create(entry)
            }
        };
        steps.push(step);
    }
    steps
}

/// The fields in which two entries differ, as far as a client can set them.
fn differences(old: &types::Entry, new: &types::Entry) -> Vec<Change> {
    let set =
        |values: Vec<String>| values.into_iter().collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>();
    let bare = |domains: &[String]| {
        set(domains.iter().map(|domain| domain.trim_start_matches("spiffe://").to_owned()).collect())
    };
    let fields = |entry: &types::Entry| {
        let attributes = entry.additional_attributes.unwrap_or_default();
        [
            ("SPIFFE ID", id_text(entry.spiffe_id.as_ref())),
            ("parent ID", id_text(entry.parent_id.as_ref())),
            ("selectors", set(entry.selectors.iter().map(selector_text).collect()).join(" ")),
            ("X.509-SVID TTL", entry.x509_svid_ttl.to_string()),
            ("JWT-SVID TTL", entry.jwt_svid_ttl.to_string()),
            ("federates with", bare(&entry.federates_with).join(" ")),
            ("admin", entry.admin.to_string()),
            ("downstream", entry.downstream.to_string()),
            ("expires", entry.expires_at.to_string()),
            // The first one is special, so their order counts.
            ("DNS names", entry.dns_names.join(" ")),
            ("store-svid", entry.store_svid.to_string()),
            ("hint", entry.hint.clone()),
            ("no-prefetch", attributes.disable_x509_svid_prefetch.to_string()),
            ("jti", attributes.jwt_svid_include_jti.to_string()),
        ]
    };
    fields(old)
        .into_iter()
        .zip(fields(new))
        .filter(|((_, before), (_, after))| before != after)
        .map(|((field, before), (_, after))| Change { field, before, after })
        .collect()
}

/// Makes the calls; a step that the server refuses comes back as refused.
async fn carry_out(client: &mut EntryClient<Channel>, steps: Vec<Step>) -> Result<Vec<Step>, Failure> {
    let mut done = Vec::new();
    // Updates first: one of them may free the place of an entry that is created.
    let (updates, rest): (Vec<_>, Vec<_>) =
        steps.into_iter().partition(|step| matches!(step, Step::Update(..)));
    for batch in updates.chunks(BATCH) {
        let entries = batch.iter().filter_map(entry_of).collect();
        let request = api::BatchUpdateEntryRequest { entries, input_mask: None, output_mask: None };
        let answer = client.batch_update_entry(request).await;
        let answer = answer.map_err(Failure::refused("cannot update entries"))?.into_inner();
        let results = answer.results.iter().map(|result| item(result.status.as_ref()));
        done.extend(after(batch, results)?);
    }
    let (creates, rest): (Vec<_>, Vec<_>) =
        rest.into_iter().partition(|step| matches!(step, Step::Create(_)));
    for batch in creates.chunks(BATCH) {
        let entries = batch.iter().filter_map(entry_of).collect();
        let request = api::BatchCreateEntryRequest { entries, output_mask: None };
        let answer = client.batch_create_entry(request).await;
        let answer = answer.map_err(Failure::refused("cannot create entries"))?.into_inner();
        let results = answer.results.iter().map(|result| item(result.status.as_ref()));
        done.extend(after(batch, results)?);
    }
    done.extend(rest);
    Ok(done)
}

fn entry_of(step: &Step) -> Option<types::Entry> {
    match step {
        Step::Create(entry) | Step::Update(entry, _) | Step::Refuse(entry, _) => Some(entry.clone()),
        Step::Keep => None,
    }
}

fn after(
    batch: &[Step],
    results: impl ExactSizeIterator<Item = Result<(), String>>,
) -> Result<Vec<Step>, Failure> {
    if results.len() != batch.len() {
        return Err(Failure::Malformed(format!("{} results for {} entries", results.len(), batch.len())));
    }
    let one = |(step, result): (&Step, Result<(), String>)| match (result, entry_of(step)) {
        (Err(why), Some(entry)) => Step::Refuse(entry, why),
        _ => step.clone(),
    };
    Ok(batch.iter().zip(results).map(one).collect())
}

/// An entry as messages name it.
fn called(entry: &types::Entry) -> String {
    let id = if entry.id.is_empty() { "(no identifier)" } else { &entry.id };
    format!("entry {id} {}", id_text(entry.spiffe_id.as_ref()))
}

#[derive(Default)]
struct Report {
    lines: String,
    created: Vec<Value>,
    updated: Vec<Value>,
    refused: Vec<Value>,
    kept: usize,
    failed: usize,
}

impl Report {
    fn add(&mut self, step: &Step) {
        let brief =
            |entry: &types::Entry| json!({ "id": entry.id, "spiffe_id": id_text(entry.spiffe_id.as_ref()) });
        match step {
            Step::Create(entry) => {
                let selectors: Vec<String> = entry.selectors.iter().map(selector_text).collect();
                self.lines.push_str(&format!(
                    "+ {} below {} for {}\n",
                    called(entry),
                    id_text(entry.parent_id.as_ref()),
                    selectors.join(" ")
                ));
                self.created.push(brief(entry));
            }
            Step::Update(entry, changes) => {
                self.lines.push_str(&format!("~ {}\n", called(entry)));
                for Change { field, before, after } in changes {
                    self.lines.push_str(&format!("    {field}: {before:?} -> {after:?}\n"));
                }
                let changes: Vec<Value> = changes
                    .iter()
                    .map(|c| json!({ "field": c.field, "before": c.before, "after": c.after }))
                    .collect();
                let mut value = brief(entry);
                value["changes"] = json!(changes);
                self.updated.push(value);
            }
            Step::Keep => self.kept += 1,
            Step::Refuse(entry, why) => {
                self.failed += 1;
                let mut value = brief(entry);
                value["error"] = json!(why);
                self.refused.push(value);
            }
        }
    }

    fn text(&self, dry_run: bool) -> String {
        let would = if dry_run { "would be " } else { "" };
        format!(
            "{}{} {would}created, {} {would}updated, {} unchanged, {} refused\n",
            self.lines,
            self.created.len(),
            self.updated.len(),
            self.kept,
            self.failed
        )
    }

    fn json(&self, dry_run: bool) -> Value {
        json!({
            "dry_run": dry_run, "created": self.created, "updated": self.updated, "unchanged": self.kept,
            "refused": self.refused,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: &str, path: &str) -> types::Entry {
        let of = |path: &str| Some(types::Spiffeid { trust_domain: "example.org".into(), path: path.into() });
        types::Entry {
            id: id.into(),
            spiffe_id: of(path),
            parent_id: of("/node"),
            selectors: vec![types::Selector { r#type: "unix".into(), value: "uid:1".into() }],
            ..types::Entry::default()
        }
    }

    #[test]
    fn what_is_there_is_left_alone() {
        let mut there = entry("a", "/w");
        there.revision_number = 7;
        there.created_at = 9;
        there.additional_attributes = Some(types::entry::AdditionalAttributes::default());
        there.federates_with = vec!["b.test".into()];
        let mut wanted = entry("a", "/w");
        wanted.federates_with = vec!["spiffe://b.test".into()];
        assert_eq!(plan(vec![wanted.clone()], &[there.clone()]), [Step::Keep]);
        wanted.id.clear();
        assert_eq!(plan(vec![wanted.clone()], &[there]), [Step::Keep], "found by what it is");
        assert_eq!(plan(vec![wanted.clone()], &[]), [Step::Create(wanted)]);
    }

    #[test]
    fn a_difference_is_an_update_that_names_the_field() {
        let mut wanted = entry("a", "/w");
        wanted.hint = "h".into();
        wanted.dns_names = vec!["x.test".into()];
        let Step::Update(_, changes) = &plan(vec![wanted], &[entry("a", "/w")])[0] else { panic!() };
        assert_eq!(changes.iter().map(|change| change.field).collect::<Vec<_>>(), ["DNS names", "hint"]);
        assert_eq!((changes[1].before.as_str(), changes[1].after.as_str()), ("", "h"));
    }

    #[test]
    fn two_identifiers_for_one_entry_are_refused() {
        let steps = plan(vec![entry("b", "/w")], &[entry("a", "/w")]);
        let Step::Refuse(_, why) = &steps[0] else { panic!("{steps:?}") };
        assert!(why.contains("entry a"), "{why}");
        let steps = plan(vec![entry("a", "/w"), entry("a", "/x"), entry("b", "/w"), entry("", "/w")], &[]);
        assert!(matches!(steps[0], Step::Create(_)));
        assert!(steps[1..].iter().all(|step| matches!(step, Step::Refuse(..))), "{steps:?}");
    }

    #[test]
    fn an_entry_may_take_the_place_that_another_one_leaves() {
        let steps = plan(vec![entry("a", "/x"), entry("b", "/w")], &[entry("a", "/w")]);
        assert!(matches!(steps[..], [Step::Update(..), Step::Create(_)]), "{steps:?}");
    }

    #[test]
    fn parents_are_replaced_where_asked_for() {
        let mut entries = [entry("a", "/w"), entry("b", "/x")];
        entries[1].parent_id =
            Some(types::Spiffeid { trust_domain: "example.org".into(), path: "/other".into() });
        let pairs = ["spiffe://example.org/node=spiffe://example.org/new".to_owned()];
        reparent(&mut entries, &pairs).unwrap();
        assert_eq!(id_text(entries[0].parent_id.as_ref()), "spiffe://example.org/new");
        assert_eq!(id_text(entries[1].parent_id.as_ref()), "spiffe://example.org/other");
        assert!(reparent(&mut entries, &pairs).unwrap_err().to_string().contains("no entry"));
        assert!(reparent(&mut entries, &["x".to_owned()]).is_err());
    }
}
