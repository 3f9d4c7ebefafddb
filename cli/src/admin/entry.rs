//! `bonafide entry`.

use bonafide_proto::spire::server::entry::v1 as api;
use bonafide_proto::spire::server::entry::v1::entry_client::EntryClient;
use bonafide_proto::spire::types;
use serde_json::{Value, json};
use tonic::transport::Channel;

use super::{PAGE, id_text, item, selector_text, selectors, spiffe_id, transfer};
use crate::args::{EntryCommand, EntryFields, EntryFilter, Match};
use crate::connect::Sockets;
use crate::failure::Failure;
use crate::output::{Output, moment, or_dash, span};

/// How many entries one call creates or deletes.
pub(super) const BATCH: usize = 200;

pub(crate) async fn run(command: EntryCommand, to: &Sockets, out: &Output) -> Result<(), Failure> {
    match command {
        EntryCommand::Create { id, fields } => {
            let entry = from_fields(id.unwrap_or_default(), *fields)?;
            create(&mut client(to).await?, vec![entry], out).await
        }
        EntryCommand::Import(arguments) => transfer::import(arguments, to, out).await,
        EntryCommand::Export => transfer::export(to).await,
        EntryCommand::Update { id, fields } => {
            let entry = from_fields(id, *fields)?;
            update(&mut client(to).await?, entry, out).await
        }
        EntryCommand::List { filter } => {
            let filter = list_filter(filter)?;
            let entries = list(&mut client(to).await?, filter).await?;
            print(&entries, out);
            Ok(())
        }
        EntryCommand::Show { id } => {
            let what = format!("cannot show entry {id}");
            let request = api::GetEntryRequest { id, output_mask: None };
            let entry =
                client(to).await?.get_entry(request).await.map_err(Failure::refused(what))?.into_inner();
            show(&entry, out);
            Ok(())
        }
        EntryCommand::Count { filter } => {
            let filter = count_filter(list_filter(filter)?);
            let request = api::CountEntriesRequest { filter: Some(filter) };
            let answer = client(to)
                .await?
                .count_entries(request)
                .await
                .map_err(Failure::refused("cannot count entries"))?;
            let count = answer.into_inner().count;
            out.line(&count.to_string(), &json!({ "count": count }));
            Ok(())
        }
        EntryCommand::Delete { ids } => delete(&mut client(to).await?, ids, out).await,
    }
}

pub(super) async fn client(to: &Sockets) -> Result<EntryClient<Channel>, Failure> {
    Ok(EntryClient::new(to.server().await?))
}

fn from_fields(id: String, fields: EntryFields) -> Result<types::Entry, Failure> {
    let workload = spiffe_id(&fields.spiffe_id)?;
    let parent = match &fields.parent_id {
        Some(parent) => spiffe_id(parent)?,
        None => {
            types::Spiffeid { trust_domain: workload.trust_domain.clone(), path: "/spire/server".to_owned() }
        }
    };
    Ok(types::Entry {
        id,
        spiffe_id: Some(workload),
        parent_id: Some(parent),
        selectors: selectors(&fields.selectors)?,
        x509_svid_ttl: fields.x509_svid_ttl.unwrap_or(0),
        jwt_svid_ttl: fields.jwt_svid_ttl.unwrap_or(0),
        federates_with: fields.federates_with,
        admin: fields.admin,
        downstream: fields.downstream,
        expires_at: fields.expires_at.unwrap_or(0),
        dns_names: fields.dns_names,
        store_svid: fields.store_svid,
        hint: fields.hint,
        additional_attributes: (fields.no_prefetch || fields.jti).then_some(
            types::entry::AdditionalAttributes {
                disable_x509_svid_prefetch: fields.no_prefetch,
                jwt_svid_include_jti: fields.jti,
            },
        ),
        ..types::Entry::default()
    })
}

async fn create(
    client: &mut EntryClient<Channel>,
    entries: Vec<types::Entry>,
    out: &Output,
) -> Result<(), Failure> {
    let total = entries.len();
    let (mut made, mut failed) = (Vec::new(), 0);
    for batch in entries.chunks(BATCH) {
        let request = api::BatchCreateEntryRequest { entries: batch.to_vec(), output_mask: None };
        let answer = client
            .batch_create_entry(request)
            .await
            .map_err(Failure::refused("cannot create entries"))?
            .into_inner();
        for (asked, result) in batch.iter().zip(answer.results) {
            match item(result.status.as_ref()) {
                Ok(()) => made.extend(result.entry),
                Err(reason) => {
                    failed += 1;
                    let existing =
                        result.entry.map(|entry| format!("; it is entry {}", entry.id)).unwrap_or_default();
                    eprintln!("{}: {reason}{existing}", id_text(asked.spiffe_id.as_ref()));
                }
            }
        }
    }
    if !made.is_empty() {
        print(&made, out);
    }
    if failed > 0 { Err(Failure::Partly { what: "entries", failed, total }) } else { Ok(()) }
}

async fn update(client: &mut EntryClient<Channel>, entry: types::Entry, out: &Output) -> Result<(), Failure> {
    let request = api::BatchUpdateEntryRequest { entries: vec![entry], input_mask: None, output_mask: None };
    let answer = client
        .batch_update_entry(request)
        .await
        .map_err(Failure::refused("cannot update the entry"))?
        .into_inner();
    let result =
        answer.results.into_iter().next().ok_or_else(|| Failure::Malformed("no result".to_owned()))?;
    item(result.status.as_ref())
        .map_err(|reason| Failure::Input(format!("cannot update the entry: {reason}")))?;
    if let Some(entry) = result.entry {
        show(&entry, out);
    }
    Ok(())
}

async fn delete(client: &mut EntryClient<Channel>, ids: Vec<String>, out: &Output) -> Result<(), Failure> {
    let total = ids.len();
    let (mut gone, mut failed) = (Vec::new(), 0);
    for batch in ids.chunks(BATCH) {
        let request = api::BatchDeleteEntryRequest { ids: batch.to_vec() };
        let answer = client
            .batch_delete_entry(request)
            .await
            .map_err(Failure::refused("cannot delete entries"))?
            .into_inner();
        for (id, result) in batch.iter().zip(answer.results) {
            match item(result.status.as_ref()) {
                Ok(()) => gone.push(id.clone()),
                Err(reason) => {
                    failed += 1;
                    eprintln!("{id}: {reason}");
                }
            }
        }
    }
    if !gone.is_empty() {
        out.line(&format!("deleted {}", gone.join(" ")), &json!({ "deleted": gone }));
    }
    if failed > 0 { Err(Failure::Partly { what: "entries", failed, total }) } else { Ok(()) }
}

pub(super) async fn list(
    client: &mut EntryClient<Channel>,
    filter: api::list_entries_request::Filter,
) -> Result<Vec<types::Entry>, Failure> {
    let (mut all, mut token) = (Vec::new(), String::new());
    loop {
        let request = api::ListEntriesRequest {
            filter: Some(filter.clone()),
            output_mask: None,
            page_size: PAGE,
            page_token: token,
        };
        let page =
            client.list_entries(request).await.map_err(Failure::refused("cannot list entries"))?.into_inner();
        all.extend(page.entries);
        if page.next_page_token.is_empty() {
            return Ok(all);
        }
        token = page.next_page_token;
    }
}

fn list_filter(filter: EntryFilter) -> Result<api::list_entries_request::Filter, Failure> {
    use types::federates_with_match::MatchBehavior as FederatesWith;
    Ok(api::list_entries_request::Filter {
        by_spiffe_id: filter.spiffe_id.as_deref().map(spiffe_id).transpose()?,
        by_parent_id: filter.parent_id.as_deref().map(spiffe_id).transpose()?,
        by_selectors: selector_match(&filter.selectors, filter.matching)?,
        by_federates_with: (!filter.federates_with.is_empty()).then(|| types::FederatesWithMatch {
            trust_domains: filter.federates_with,
            r#match: FederatesWith::MatchSuperset.into(),
        }),
        by_hint: filter.hint,
        by_downstream: filter.downstream.then_some(true),
    })
}

fn count_filter(filter: api::list_entries_request::Filter) -> api::count_entries_request::Filter {
    api::count_entries_request::Filter {
        by_spiffe_id: filter.by_spiffe_id,
        by_parent_id: filter.by_parent_id,
        by_selectors: filter.by_selectors,
        by_federates_with: filter.by_federates_with,
        by_hint: filter.by_hint,
        by_downstream: filter.by_downstream,
    }
}

/// A selector filter, or none when no selector was given.
pub(super) fn selector_match(
    texts: &[String],
    matching: Match,
) -> Result<Option<types::SelectorMatch>, Failure> {
    use types::selector_match::MatchBehavior;
    if texts.is_empty() {
        return Ok(None);
    }
    let behavior = match matching {
        Match::Exact => MatchBehavior::MatchExact,
        Match::Subset => MatchBehavior::MatchSubset,
        Match::Superset => MatchBehavior::MatchSuperset,
        Match::Any => MatchBehavior::MatchAny,
    };
    Ok(Some(types::SelectorMatch { selectors: selectors(texts)?, r#match: behavior.into() }))
}

fn print(entries: &[types::Entry], out: &Output) {
    let rows = entries
        .iter()
        .map(|entry| {
            vec![
                entry.id.clone(),
                id_text(entry.spiffe_id.as_ref()),
                id_text(entry.parent_id.as_ref()),
                entry.selectors.iter().map(selector_text).collect::<Vec<_>>().join(" "),
                ttl(entry.x509_svid_ttl),
                ttl(entry.jwt_svid_ttl),
                or_dash(&flags(entry)),
            ]
        })
        .collect();
    let json = json!({ "entries": entries.iter().map(to_json).collect::<Vec<_>>() });
    out.rows(&["id", "spiffe id", "parent id", "selectors", "x509 ttl", "jwt ttl", "flags"], rows, &json);
}

fn show(entry: &types::Entry, out: &Output) {
    let mut fields = vec![
        ("entry", entry.id.clone()),
        ("SPIFFE ID", id_text(entry.spiffe_id.as_ref())),
        ("parent ID", id_text(entry.parent_id.as_ref())),
    ];
    fields.extend(entry.selectors.iter().map(|selector| ("selector", selector_text(selector))));
    fields.extend([
        ("revision", entry.revision_number.to_string()),
        ("created", moment(entry.created_at)),
        ("X.509-SVID TTL", ttl(entry.x509_svid_ttl)),
        ("JWT-SVID TTL", ttl(entry.jwt_svid_ttl)),
        ("expires", moment(entry.expires_at)),
        ("flags", or_dash(&flags(entry))),
        ("hint", or_dash(&entry.hint)),
    ]);
    fields.extend(entry.federates_with.iter().map(|domain| ("federates with", domain.clone())));
    fields.extend(entry.dns_names.iter().map(|name| ("DNS name", name.clone())));
    out.fields(&fields, &to_json(entry));
}

fn ttl(seconds: i32) -> String {
    if seconds == 0 { "default".to_owned() } else { span(seconds.into()) }
}

fn flags(entry: &types::Entry) -> String {
    let attributes = entry.additional_attributes.unwrap_or_default();
    [
        (entry.admin, "admin"),
        (entry.downstream, "downstream"),
        (entry.store_svid, "store-svid"),
        (attributes.disable_x509_svid_prefetch, "no-prefetch"),
        (attributes.jwt_svid_include_jti, "jti"),
    ]
    .into_iter()
    .filter_map(|(set, name)| set.then_some(name))
    .collect::<Vec<_>>()
    .join(",")
}

fn to_json(entry: &types::Entry) -> Value {
    let attributes = entry.additional_attributes.unwrap_or_default();
    json!({
        "id": entry.id,
        "spiffe_id": id_text(entry.spiffe_id.as_ref()),
        "parent_id": id_text(entry.parent_id.as_ref()),
        "selectors": entry.selectors.iter().map(selector_text).collect::<Vec<_>>(),
        "x509_svid_ttl": entry.x509_svid_ttl,
        "jwt_svid_ttl": entry.jwt_svid_ttl,
        "federates_with": entry.federates_with,
        "admin": entry.admin,
        "downstream": entry.downstream,
        "expires_at": entry.expires_at,
        "dns_names": entry.dns_names,
        "revision_number": entry.revision_number,
        "created_at": entry.created_at,
        "store_svid": entry.store_svid,
        "hint": entry.hint,
        "disable_x509_svid_prefetch": attributes.disable_x509_svid_prefetch,
        "jwt_svid_include_jti": attributes.jwt_svid_include_jti,
    })
}
