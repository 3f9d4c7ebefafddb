//! `bonafide bundle`.

use std::io::Read;
use std::path::Path;

use bonafide_identity::{Bundle, JwtAuthority, Timestamp, TrustDomain};
use bonafide_pki::bundle as documents;
use bonafide_proto::convert;
use bonafide_proto::spire::server::bundle::v1 as api;
use bonafide_proto::spire::server::bundle::v1::bundle_client::BundleClient;
use bonafide_proto::spire::types;
use serde_json::{Value, json};
use tonic::transport::Channel;

use super::{PAGE, document, item};
use crate::args::{BundleCommand, BundleFormat, DeleteMode};
use crate::connect::Sockets;
use crate::failure::Failure;
use crate::output::{Output, emit, moment_and_left};

pub(crate) async fn run(command: BundleCommand, to: &Sockets, out: &Output) -> Result<(), Failure> {
    match command {
        BundleCommand::Show { format } => {
            let bundle = own(&mut client(to).await?).await?;
            print(&[bundle], format, out)
        }
        BundleCommand::List { trust_domain, format } => {
            let mut client = client(to).await?;
            let bundles = match trust_domain {
                Some(trust_domain) => {
                    let what = format!("cannot show the bundle of {trust_domain}");
                    let request = api::GetFederatedBundleRequest { trust_domain, output_mask: None };
                    vec![parse(
                        &client
                            .get_federated_bundle(request)
                            .await
                            .map_err(Failure::refused(what))?
                            .into_inner(),
                    )?]
                }
                None => list(&mut client).await?,
            };
            print(&bundles, format, out)
        }
        BundleCommand::Set { trust_domain, file, format } => {
            let bundle = read(&trust_domain, &file, format)?;
            let request = api::BatchSetFederatedBundleRequest {
                bundle: vec![convert::bundle_to_wire(&bundle, None)],
                output_mask: None,
            };
            let answer = client(to)
                .await?
                .batch_set_federated_bundle(request)
                .await
                .map_err(Failure::refused("cannot set the bundle"))?
                .into_inner();
            let result = answer.results.into_iter().next();
            item(result.and_then(|result| result.status).as_ref()).map_err(|reason| {
                Failure::Input(format!("cannot set the bundle of {trust_domain}: {reason}"))
            })?;
            out.line(&format!("set the bundle of {trust_domain}"), &json!({ "set": trust_domain }));
            Ok(())
        }
        BundleCommand::Import { file, dry_run } => import(&file, dry_run, to, out).await,
        BundleCommand::Append { from, file, format } => {
            let mut client = client(to).await?;
            let before = own(&mut client).await?;
            let added = match (from, file) {
                (Some(socket), _) => {
                    let other = Sockets { server: socket.clone(), agent: to.agent.clone() };
                    let theirs = own(&mut BundleClient::new(other.server().await?)).await?;
                    if theirs.trust_domain != before.trust_domain {
                        return Err(Failure::Input(format!(
                            "the server at {} holds the trust domain {}, this one holds {}",
                            socket.display(),
                            theirs.trust_domain,
                            before.trust_domain
                        )));
                    }
                    theirs
                }
                (None, file) => {
                    let file = file.unwrap_or_else(|| "-".into());
                    read(before.trust_domain.as_str(), &file, format)?
                }
            };
            append(&mut client, &before, &added, out).await
        }
        BundleCommand::Delete { trust_domain, mode } => {
            use api::batch_delete_federated_bundle_request::Mode;
            let mode = match mode {
                DeleteMode::Restrict => Mode::Restrict,
                DeleteMode::Delete => Mode::Delete,
                DeleteMode::Dissociate => Mode::Dissociate,
            };
            let request = api::BatchDeleteFederatedBundleRequest {
                trust_domains: vec![trust_domain.clone()],
                mode: mode.into(),
            };
            let answer = client(to)
                .await?
                .batch_delete_federated_bundle(request)
                .await
                .map_err(Failure::refused("cannot delete the bundle"))?
                .into_inner();
            let result = answer.results.into_iter().next();
            item(result.and_then(|result| result.status).as_ref()).map_err(|reason| {
                Failure::Input(format!("cannot delete the bundle of {trust_domain}: {reason}"))
            })?;
            out.line(&format!("deleted the bundle of {trust_domain}"), &json!({ "deleted": trust_domain }));
            Ok(())
        }
    }
}

/// Adds what is not there yet. Tainted authorities are left out: a server adds them as trusted ones.
async fn append(
    client: &mut BundleClient<Channel>,
    before: &Bundle,
    added: &Bundle,
    out: &Output,
) -> Result<(), Failure> {
    let x509: Vec<_> = added
        .x509_authorities
        .iter()
        .filter(|new| {
            !new.tainted && before.x509_authorities.iter().all(|old| old.certificate != new.certificate)
        })
        .cloned()
        .collect();
    let missing = |old: &[JwtAuthority], new: &[JwtAuthority]| -> Vec<JwtAuthority> {
        let known = |key: &JwtAuthority| old.iter().any(|old| old.key_id == key.key_id);
        new.iter().filter(|key| !key.tainted && !known(key)).cloned().collect()
    };
    let jwt = missing(&before.jwt_authorities, &added.jwt_authorities);
    let wit = missing(&before.wit_authorities, &added.wit_authorities);
    let (roots, keys, wits) = (x509.len(), jwt.len(), wit.len());
    if roots + keys + wits > 0 {
        let request = api::AppendBundleRequest {
            x509_authorities: convert::x509_authorities_to_wire(&x509),
            jwt_authorities: convert::jwt_authorities_to_wire(&jwt),
            wit_authorities: convert::wit_authorities_to_wire(&wit),
            output_mask: None,
        };
        client.append_bundle(request).await.map_err(Failure::refused("cannot add to the bundle"))?;
    }
    out.line(
        &format!(
            "added {roots} X.509, {keys} JWT and {wits} WIT authorities to the bundle of {}",
            before.trust_domain
        ),
        &json!({
            "trust_domain": before.trust_domain.as_str(), "x509_added": roots, "jwt_added": keys,
            "wit_added": wits,
        }),
    );
    Ok(())
}

/// Creates or replaces each bundle that differs.
async fn import(file: &Path, dry_run: bool, to: &Sockets, out: &Output) -> Result<(), Failure> {
    let wanted = document::bundles(&document::read_file(file)?, &file.display().to_string())?;
    let mut client = client(to).await?;
    let there = list(&mut client).await?;
    let total = wanted.len();
    let (mut set, mut unchanged, mut failed) = (Vec::new(), Vec::new(), 0);
    for bundle in wanted {
        let domain = bundle.trust_domain.to_string();
        let same = |old: &&Bundle| {
            old.trust_domain == bundle.trust_domain
                && old.x509_authorities == bundle.x509_authorities
                && old.jwt_authorities == bundle.jwt_authorities
        };
        if there.iter().any(|old| same(&old)) {
            unchanged.push(domain);
            continue;
        }
        if !dry_run {
            let request = api::BatchSetFederatedBundleRequest {
                bundle: vec![convert::bundle_to_wire(&bundle, None)],
                output_mask: None,
            };
            let answer = client.batch_set_federated_bundle(request).await;
            let answer = answer.map_err(Failure::refused(format!("cannot set the bundle of {domain}")))?;
            let result = answer.into_inner().results.into_iter().next();
            if let Err(reason) = item(result.and_then(|result| result.status).as_ref()) {
                failed += 1;
                eprintln!("bundle of {domain}: {reason}");
                continue;
            }
        }
        set.push(domain);
    }
    let list = |domains: &[String]| if domains.is_empty() { "none".to_owned() } else { domains.join(" ") };
    let would = if dry_run { "would set" } else { "set" };
    out.line(
        &format!("{would} the bundles of: {}; unchanged: {}", list(&set), list(&unchanged)),
        &json!({ "dry_run": dry_run, "set": set, "unchanged": unchanged }),
    );
    if failed > 0 { Err(Failure::Partly { what: "bundles", failed, total }) } else { Ok(()) }
}

async fn client(to: &Sockets) -> Result<BundleClient<Channel>, Failure> {
    Ok(BundleClient::new(to.server().await?))
}

/// The own trust domain's bundle.
pub(super) async fn own(client: &mut BundleClient<Channel>) -> Result<Bundle, Failure> {
    let request = api::GetBundleRequest { output_mask: None };
    parse(&client.get_bundle(request).await.map_err(Failure::refused("cannot show the bundle"))?.into_inner())
}

async fn list(client: &mut BundleClient<Channel>) -> Result<Vec<Bundle>, Failure> {
    let (mut all, mut token) = (Vec::new(), String::new());
    loop {
        let request =
            api::ListFederatedBundlesRequest { output_mask: None, page_size: PAGE, page_token: token };
        let page = client
            .list_federated_bundles(request)
            .await
            .map_err(Failure::refused("cannot list bundles"))?
            .into_inner();
        for bundle in &page.bundles {
            all.push(parse(bundle)?);
        }
        if page.next_page_token.is_empty() {
            return Ok(all);
        }
        token = page.next_page_token;
    }
}

fn parse(bundle: &types::Bundle) -> Result<Bundle, Failure> {
    convert::bundle_from_server(bundle).map_err(|error| Failure::Malformed(error.to_string()))
}

/// A bundle from a file.
pub(super) fn read(trust_domain: &str, file: &Path, format: BundleFormat) -> Result<Bundle, Failure> {
    let domain = TrustDomain::parse_lenient(trust_domain)
        .map_err(|error| Failure::Input(format!("{trust_domain:?} is not a trust domain: {error}")))?;
    let mut content = Vec::new();
    if file == Path::new("-") {
        std::io::stdin().read_to_end(&mut content).map_err(Failure::file(file))?;
    } else {
        content = std::fs::read(file).map_err(Failure::file(file))?;
    }
    match format {
        BundleFormat::Pem => documents::from_pem(&domain, &content),
        BundleFormat::Spiffe => documents::from_spiffe_json(&domain, &content),
    }
    .map_err(|error| Failure::Input(format!("{} holds no usable bundle: {error}", file.display())))
}

fn print(bundles: &[Bundle], format: Option<BundleFormat>, out: &Output) -> Result<(), Failure> {
    match format {
        Some(BundleFormat::Pem) => {
            for bundle in bundles {
                emit(&documents::to_pem(bundle));
            }
            return Ok(());
        }
        Some(BundleFormat::Spiffe) => {
            for bundle in bundles {
                emit(&format!("{}\n", documents::to_spiffe_json(bundle)));
            }
            return Ok(());
        }
        None => {}
    }
    let (mut rows, mut json) = (Vec::new(), Vec::new());
    for bundle in bundles {
        let authorities = authorities(bundle)?;
        for authority in &authorities {
            rows.push(vec![
                bundle.trust_domain.to_string(),
                authority.kind.to_owned(),
                authority.id.clone(),
                moment_and_left(authority.expires_at),
                if authority.tainted { "tainted" } else { "trusted" }.to_owned(),
            ]);
        }
        json.push(json!({
            "trust_domain": bundle.trust_domain.as_str(),
            "sequence_number": bundle.sequence_number,
            "refresh_hint": bundle.refresh_hint,
            "authorities": authorities.iter().map(Authority::to_json).collect::<Vec<_>>(),
        }));
    }
    out.rows(&["trust domain", "kind", "authority", "expires", "state"], rows, &json!({ "bundles": json }));
    Ok(())
}

struct Authority {
    kind: &'static str,
    id: String,
    expires_at: i64,
    tainted: bool,
}

impl Authority {
    fn to_json(&self) -> Value {
        json!({ "kind": self.kind, "id": self.id, "expires_at": self.expires_at, "tainted": self.tainted })
    }
}

fn authorities(bundle: &Bundle) -> Result<Vec<Authority>, Failure> {
    let mut all = Vec::new();
    for authority in &bundle.x509_authorities {
        let certificate = bonafide_pki::inspect(&authority.certificate)
            .map_err(|error| Failure::Malformed(format!("authority of {}: {error}", bundle.trust_domain)))?;
        all.push(Authority {
            kind: "x509",
            id: certificate.ski.unwrap_or_else(|| "-".to_owned()),
            expires_at: certificate.not_after.unix_seconds(),
            tainted: authority.tainted,
        });
    }
    for (kind, keys) in [("jwt", &bundle.jwt_authorities), ("wit", &bundle.wit_authorities)] {
        all.extend(keys.iter().map(|key| Authority {
            kind,
            id: key.key_id.clone(),
            expires_at: key.expires_at.map_or(0, Timestamp::unix_seconds),
            tainted: key.tainted,
        }));
    }
    Ok(all)
}
