//! `bonafide mint`. Keys are made here and never leave this process but into the files that were asked for.

use std::path::Path;

use bonafide_identity::{DnsName, SpiffeId};
use bonafide_pki::{KeyType, PrivateKey, Signer, pem, workload_csr};
use bonafide_proto::spire::server::bundle::v1::bundle_client::BundleClient;
use bonafide_proto::spire::server::svid::v1 as api;
use bonafide_proto::spire::server::svid::v1::svid_client::SvidClient;
use serde_json::json;

use super::{id_text, spiffe_id};
use crate::args::MintCommand;
use crate::connect::Sockets;
use crate::failure::Failure;
use crate::output::{Output, emit, moment_and_left};
use crate::workload::files;

pub(crate) async fn run(command: MintCommand, to: &Sockets, out: &Output) -> Result<(), Failure> {
    match command {
        MintCommand::X509 { spiffe_id, ttl, dns_names, write } => {
            x509(&spiffe_id, ttl, &dns_names, write.as_deref(), to, out).await
        }
        MintCommand::Jwt { spiffe_id: id, audience, ttl, write } => {
            let request =
                api::MintJwtsvidRequest { id: Some(spiffe_id(&id)?), audience, ttl: ttl.unwrap_or(0) };
            let svid = SvidClient::new(to.server().await?)
                .mint_jwtsvid(request)
                .await
                .map_err(Failure::refused("cannot mint a JWT-SVID"))?
                .into_inner()
                .svid
                .ok_or_else(|| Failure::Malformed("no SVID in it".to_owned()))?;
            match write {
                Some(file) => {
                    files::write_secret(&file, svid.token.as_bytes())?;
                    out.line(
                        &format!("wrote {}", file.display()),
                        &json!({ "file": file, "expires_at": svid.expires_at }),
                    );
                }
                None => out.line(&svid.token, &json!({ "token": svid.token, "expires_at": svid.expires_at })),
            }
            Ok(())
        }
        MintCommand::Wit { spiffe_id: id, ttl, write } => {
            let key = PrivateKey::generate(KeyType::EcP256).map_err(key_failure)?;
            let request = api::MintWitsvidRequest {
                id: Some(spiffe_id(&id)?),
                public_key: key.public_key().spki_der().to_vec(),
                ttl: ttl.unwrap_or(0),
                signing_algorithm: "ES256".to_owned(),
            };
            let svid = SvidClient::new(to.server().await?)
                .mint_witsvid(request)
                .await
                .map_err(Failure::refused("cannot mint a WIT-SVID"))?
                .into_inner()
                .svid
                .ok_or_else(|| Failure::Malformed("no SVID in it".to_owned()))?;
            let key = pem::encode("PRIVATE KEY", &key.expose_pkcs8());
            match write {
                Some(folder) => {
                    files::create_folder(&folder)?;
                    files::write_secret(&folder.join("token.jwt"), svid.token.as_bytes())?;
                    files::write_secret(&folder.join("key.pem"), key.as_bytes())?;
                    out.line(
                        &format!("wrote token.jwt and key.pem to {}", folder.display()),
                        &json!({ "folder": folder, "expires_at": svid.expires_at }),
                    );
                }
                None => out.line(
                    &format!("{}\n{key}", svid.token),
                    &json!({ "token": svid.token, "key": key.as_str(), "expires_at": svid.expires_at }),
                ),
            }
            Ok(())
        }
    }
}

async fn x509(
    id: &str,
    ttl: Option<i32>,
    dns_names: &[String],
    write: Option<&Path>,
    to: &Sockets,
    out: &Output,
) -> Result<(), Failure> {
    let id =
        SpiffeId::parse(id).map_err(|error| Failure::Input(format!("{id:?} is not a SPIFFE ID: {error}")))?;
    let dns_names = dns_names
        .iter()
        .map(|name| {
            DnsName::parse(name)
                .map_err(|error| Failure::Input(format!("{name:?} is not a DNS name: {error}")))
        })
        .collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKey::generate(KeyType::EcP256).map_err(key_failure)?;
    let csr = workload_csr(&key, &id, &dns_names)
        .map_err(|error| Failure::Input(format!("cannot make a signing request: {error}")))?;
    let channel = to.server().await?;
    let svid = SvidClient::new(channel.clone())
        .mint_x509svid(api::MintX509svidRequest { csr, ttl: ttl.unwrap_or(0) })
        .await
        .map_err(Failure::refused("cannot mint an X.509-SVID"))?
        .into_inner()
        .svid
        .ok_or_else(|| Failure::Malformed("no SVID in it".to_owned()))?;
    let bundle = super::bundle::own(&mut BundleClient::new(channel)).await?;
    let chain: String =
        svid.cert_chain.iter().map(|certificate| pem::encode("CERTIFICATE", certificate)).collect();
    let key = pem::encode("PRIVATE KEY", &key.expose_pkcs8());
    let roots = bonafide_pki::bundle::to_pem(&bundle);
    match write {
        Some(folder) => {
            files::write_set(folder, &chain, &key, &roots)?;
            out.line(
                &format!("wrote svid.pem, key.pem and bundle.pem to {}", folder.display()),
                &json!({ "folder": folder, "expires_at": svid.expires_at }),
            );
        }
        None if out.is_json() => out.line(
            "",
            &json!({ "id": id_text(svid.id.as_ref()), "svid": chain, "key": key.as_str(), "bundle": roots, "expires_at": svid.expires_at }),
        ),
        None => {
            eprintln!("{} until {}", id_text(svid.id.as_ref()), moment_and_left(svid.expires_at));
            emit(&format!("{chain}{}{roots}", key.as_str()));
        }
    }
    Ok(())
}

fn key_failure(error: impl std::fmt::Display) -> Failure {
    Failure::Input(format!("cannot make a key: {error}"))
}
