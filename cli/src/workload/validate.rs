//! `bonafide validate`.

use std::io::Read;

use bonafide_identity::{Timestamp, TrustDomain};
use bonafide_pki::JwtKeys;
use bonafide_proto::workload as api;
use prost_types::value::Kind;
use serde_json::{Map, Value, json};

use super::fetch::first;
use crate::args::ValidateCommand;
use crate::connect::Sockets;
use crate::failure::Failure;
use crate::output::Output;

pub(crate) async fn run(command: ValidateCommand, to: &Sockets, out: &Output) -> Result<(), Failure> {
    match command {
        ValidateCommand::Jwt { audience, token } => {
            let request = api::ValidateJwtsvidRequest { audience, svid: text(token)? };
            let answer = to
                .workload()
                .await?
                .validate_jwtsvid(request)
                .await
                .map_err(Failure::refused("the token is not valid"))?
                .into_inner();
            let claims = answer.claims.map(object).unwrap_or_default();
            print(&answer.spiffe_id, &claims, out);
        }
        ValidateCommand::Wit { token } => {
            let what = "cannot fetch WIT bundles";
            let stream = to
                .workload()
                .await?
                .fetch_wit_bundles(api::WitBundlesRequest {})
                .await
                .map_err(Failure::refused(what))?;
            let mut keys = JwtKeys::default();
            for (domain, jwks) in first(stream.into_inner(), what).await?.bundles {
                let domain = TrustDomain::parse_lenient(&domain)
                    .map_err(|error| Failure::Malformed(error.to_string()))?;
                let authorities = bonafide_pki::bundle::from_jwks(jwks.as_bytes())
                    .map_err(|error| Failure::Malformed(error.to_string()))?;
                keys.insert(domain, &authorities);
            }
            let now = Timestamp::from_unix_seconds(time::OffsetDateTime::now_utc().unix_timestamp());
            let valid = bonafide_pki::validate_wit_svid(&text(token)?, &keys, now)
                .map_err(|error| Failure::Input(format!("the token is not valid: {error}")))?;
            print(&valid.spiffe_id.to_string(), &valid.claims, out);
        }
    }
    Ok(())
}

fn print(spiffe_id: &str, claims: &Map<String, Value>, out: &Output) {
    let mut fields = vec![("SPIFFE ID", spiffe_id.to_owned())];
    fields.push(("claims", Value::Object(claims.clone()).to_string()));
    out.fields(&fields, &json!({ "spiffe_id": spiffe_id, "claims": claims }));
}

fn text(argument: String) -> Result<String, Failure> {
    if argument != "-" {
        return Ok(argument);
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).map_err(Failure::file("standard input".as_ref()))?;
    Ok(text.trim().to_owned())
}

fn object(claims: prost_types::Struct) -> Map<String, Value> {
    claims.fields.into_iter().map(|(name, value)| (name, json_of(value))).collect()
}

fn json_of(value: prost_types::Value) -> Value {
    match value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(value)) => Value::Bool(value),
        // Times are whole numbers, and read better as such.
        Some(Kind::NumberValue(value)) if value.fract() == 0.0 && value.abs() < 9.0e15 => json!(value as i64),
        Some(Kind::NumberValue(value)) => json!(value),
        Some(Kind::StringValue(value)) => Value::String(value),
        Some(Kind::ListValue(list)) => list.values.into_iter().map(json_of).collect(),
        Some(Kind::StructValue(fields)) => Value::Object(object(fields)),
    }
}
