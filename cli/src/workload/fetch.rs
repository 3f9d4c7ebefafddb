//! `bonafide fetch` and `bonafide watch`.

use bonafide_pki::inspect;
use bonafide_proto::workload as api;
use serde_json::{Map, Value, json};

use crate::args::{FetchCommand, WatchArguments};
use crate::connect::Sockets;
use crate::failure::Failure;
use crate::output::{Output, moment_and_left, or_dash};

pub(crate) async fn run(command: FetchCommand, to: &Sockets, out: &Output) -> Result<(), Failure> {
    match command {
        FetchCommand::X509 => print_x509(&first_x509(to).await?, out),
        FetchCommand::Jwt { audience, spiffe_id } => jwt(audience, spiffe_id, to, out).await,
        FetchCommand::Wit { spiffe_id } => wit(spiffe_id, to, out).await,
        FetchCommand::Bundles => bundles(to, out).await,
    }
}

pub(crate) async fn watch(arguments: WatchArguments, to: &Sockets, out: &Output) -> Result<(), Failure> {
    let mut stream = x509_stream(to).await?;
    let mut seen = 0;
    while let Some(response) = stream.message().await.map_err(Failure::refused("the stream ended"))? {
        print_x509(&response, out)?;
        seen += 1;
        if arguments.count.is_some_and(|count| seen >= count) {
            return Ok(());
        }
    }
    Err(Failure::Malformed("the agent ended the stream; it may have been stopped".to_owned()))
}

/// The open stream of X.509-SVIDs.
pub(super) async fn x509_stream(to: &Sockets) -> Result<tonic::Streaming<api::X509svidResponse>, Failure> {
    let request = api::X509svidRequest {};
    Ok(to
        .workload()
        .await?
        .fetch_x509svid(request)
        .await
        .map_err(Failure::refused("cannot fetch X.509-SVIDs"))?
        .into_inner())
}

async fn first_x509(to: &Sockets) -> Result<api::X509svidResponse, Failure> {
    first(x509_stream(to).await?, "cannot fetch X.509-SVIDs").await
}

/// The first message of a stream.
pub(super) async fn first<T>(mut stream: tonic::Streaming<T>, what: &str) -> Result<T, Failure> {
    stream
        .message()
        .await
        .map_err(Failure::refused(what))?
        .ok_or_else(|| Failure::Malformed("the agent closed the stream without a message".to_owned()))
}

fn print_x509(response: &api::X509svidResponse, out: &Output) -> Result<(), Failure> {
    let (mut rows, mut json) = (Vec::new(), Vec::new());
    for svid in &response.svids {
        let leaf = inspect(
            bonafide_pki::split_certificates(&svid.x509_svid)
                .map_err(malformed)?
                .first()
                .ok_or_else(|| Failure::Malformed(format!("{} has no certificate", svid.spiffe_id)))?,
        )
        .map_err(malformed)?;
        let (serial, expires_at) = (leaf.serial.to_string(), leaf.not_after.unix_seconds());
        rows.push(vec![
            svid.spiffe_id.clone(),
            serial.clone(),
            moment_and_left(expires_at),
            or_dash(&svid.hint),
        ]);
        json.push(json!({
            "spiffe_id": svid.spiffe_id, "serial_number": serial, "expires_at": expires_at, "hint": svid.hint,
        }));
    }
    let federated: Vec<&String> = response.federated_bundles.keys().collect();
    out.rows(
        &["spiffe id", "serial number", "expires", "hint"],
        rows,
        &json!({ "svids": json, "federated_bundles": federated }),
    );
    Ok(())
}

async fn jwt(
    audience: Vec<String>,
    spiffe_id: Option<String>,
    to: &Sockets,
    out: &Output,
) -> Result<(), Failure> {
    let request = api::JwtsvidRequest { audience, spiffe_id: spiffe_id.unwrap_or_default() };
    let answer = to
        .workload()
        .await?
        .fetch_jwtsvid(request)
        .await
        .map_err(Failure::refused("cannot fetch a JWT-SVID"))?
        .into_inner();
    let json = json!({ "svids": answer.svids.iter().map(|svid| json!({
        "spiffe_id": svid.spiffe_id, "token": svid.svid, "hint": svid.hint,
    })).collect::<Vec<_>>() });
    // A token is for a pipe: one per line and nothing else.
    let text: Vec<&str> = answer.svids.iter().map(|svid| svid.svid.as_str()).collect();
    out.line(&text.join("\n"), &json);
    Ok(())
}

async fn wit(spiffe_id: Option<String>, to: &Sockets, out: &Output) -> Result<(), Failure> {
    let request = api::WitsvidRequest { spiffe_id: spiffe_id.unwrap_or_default() };
    let what = "cannot fetch a WIT-SVID";
    let stream =
        to.workload().await?.fetch_witsvid(request).await.map_err(Failure::refused(what))?.into_inner();
    let answer = first(stream, what).await?;
    let json = json!({ "svids": answer.svids.iter().map(|svid| json!({
        "spiffe_id": svid.spiffe_id, "token": svid.wit_svid, "key": svid.wit_svid_key, "hint": svid.hint,
    })).collect::<Vec<_>>() });
    let text: Vec<&str> = answer.svids.iter().map(|svid| svid.wit_svid.as_str()).collect();
    out.line(&text.join("\n"), &json);
    Ok(())
}

async fn bundles(to: &Sockets, out: &Output) -> Result<(), Failure> {
    let mut client = to.workload().await?;
    let what = "cannot fetch bundles";
    let x509 = client.fetch_x509_bundles(api::X509BundlesRequest {}).await.map_err(Failure::refused(what))?;
    let x509 = first(x509.into_inner(), what).await?.bundles;
    let jwt = client.fetch_jwt_bundles(api::JwtBundlesRequest {}).await.map_err(Failure::refused(what))?;
    let jwt = first(jwt.into_inner(), what).await?.bundles;
    let (mut rows, mut json) = (Vec::new(), Map::new());
    for (domain, certificates) in &x509 {
        let certificates = bonafide_pki::split_certificates(certificates).map_err(malformed)?;
        let keys: Value = match jwt.get(domain) {
            Some(keys) => serde_json::from_slice(keys).map_err(malformed)?,
            None => json!({ "keys": [] }),
        };
        let count = keys["keys"].as_array().map_or(0, Vec::len);
        rows.push(vec![domain.clone(), certificates.len().to_string(), count.to_string()]);
        let x509: Vec<String> =
            certificates.iter().map(|certificate| data_encoding::BASE64.encode(certificate)).collect();
        json.insert(domain.clone(), json!({ "x509": x509, "jwt": keys }));
    }
    out.rows(&["trust domain", "x509 authorities", "jwt keys"], rows, &json!({ "bundles": json }));
    Ok(())
}

fn malformed(error: impl std::fmt::Display) -> Failure {
    Failure::Malformed(error.to_string())
}
