//! What two servers can agree in: answers without what is random, with certificates and tokens told by what they are.

use std::sync::OnceLock;

use data_encoding::{BASE64, BASE64URL_NOPAD};
use serde_json::{Map, Value, json};
use x509_parser::prelude::*;

use super::fixtures;

/// Masks an answer that came at `now` (Unix seconds).
pub(super) fn mask(answer: Value, now: i64) -> Value {
    field("", answer, now)
}

fn field(name: &str, value: Value, now: i64) -> Value {
    match value {
        Value::Object(mut map) => {
            if map.get("trust_domain").is_some_and(|name| name == "example.org") {
                own_bundle(&mut map);
            }
            let masked: Map<_, _> =
                map.into_iter().map(|(key, value)| (key.clone(), field(&key, value, now))).collect();
            Value::Object(masked)
        }
        Value::Array(list) => {
            let mut list: Vec<_> = list.into_iter().map(|value| field(name, value, now)).collect();
            // A set.
            if name == "selectors" {
                list.sort_by_key(ToString::to_string);
            }
            Value::Array(list)
        }
        Value::String(text) => string(name, text, now),
        Value::Number(number) if name == "uptime" && number.as_i64() != Some(0) => json!("<uptime>"),
        other => other,
    }
}

fn string(name: &str, text: String, now: i64) -> Value {
    match name {
        "asn1" | "x509_authorities" | "public_key" | "challenge" | "svid_key" => json!(bytes(&text)),
        "cert_chain" | "ca_cert_chain" => certificate(&text, now),
        "token" if text.matches('.').count() == 2 => token(&text, now),
        "created_at" => json!("<recently>"),
        "expires_at" | "issued_at" | "x509svid_expires_at" => json!(moment(&text, now)),
        "x509svid_serial_number" if !text.is_empty() => json!("<serial>"),
        "authority_id" | "key_id" | "upstream_authority_subject_key_id" if is_random_id(&text) => {
            json!("<authority>")
        }
        "next_page_token" => json!("<token>"),
        "subject" => json!(without_serial(&text)),
        _ => json!(without_random(&text)),
    }
}

/// How often the bundle changed before anybody looked says nothing.
fn own_bundle(bundle: &mut Map<String, Value>) {
    static FIRST: OnceLock<i64> = OnceLock::new();
    if let Some(number) = bundle.get("sequence_number").and_then(|number| number.as_str()?.parse().ok()) {
        let first = FIRST.get_or_init(|| number);
        bundle.insert("sequence_number".into(), json!(format!("<first{:+}>", number - first)));
    }
}

/// Hex of a digest, or 32 letters and digits.
fn is_random_id(text: &str) -> bool {
    matches!(text.len(), 32 | 40) && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

fn bytes(text: &str) -> String {
    match fixtures::named(text) {
        Some(name) => format!("@{name}"),
        None => "<bytes>".to_owned(),
    }
}

/// To the minute, or to ten minutes where it is more than half an hour, as seen from now; the far future, which only clients name, stays as it is.
fn moment(text: &str, now: i64) -> String {
    let Ok(seconds) = text.parse::<i64>() else { return text.to_owned() };
    if !(1_700_000_000..3_000_000_000).contains(&seconds) {
        return text.to_owned();
    }
    relative(seconds - now)
}

fn relative(seconds: i64) -> String {
    let step = if seconds.abs() > 1800 { 10 } else { 1 };
    let minutes = (seconds as f64 / 60.0 / step as f64).round() as i64 * step;
    format!("<now{minutes:+} min>")
}

fn certificate(text: &str, now: i64) -> Value {
    if let Some(name) = fixtures::named(text) {
        return json!(format!("@{name}"));
    }
    let der = BASE64.decode(text.as_bytes()).unwrap();
    let Ok((rest, certificate)) = X509Certificate::from_der(&der) else { return json!("<no certificate>") };
    let mut extensions: Vec<_> = certificate
        .extensions()
        .iter()
        .map(|found| format!("{}{}", found.oid, if found.critical { " critical" } else { "" }))
        .collect();
    extensions.sort();
    let usage = certificate.key_usage().unwrap().map(|usage| usage.value.to_string());
    let extended = certificate.extended_key_usage().unwrap().map(|usage| {
        let usage = usage.value;
        json!({"any": usage.any, "server": usage.server_auth, "client": usage.client_auth})
    });
    let names: Vec<_> = certificate
        .subject_alternative_name()
        .unwrap()
        .map(|names| names.value.general_names.iter().map(ToString::to_string).collect())
        .unwrap_or_default();
    let basic = certificate
        .basic_constraints()
        .unwrap()
        .map(|basic| json!({"ca": basic.value.ca, "path_length": basic.value.path_len_constraint}));
    let backdated = now - certificate.validity().not_before.timestamp();
    json!({
        "version": certificate.version().0 + 1,
        "subject": without_serial(&certificate.subject().to_string()),
        "issuer": without_serial(&certificate.issuer().to_string()),
        "names": names,
        "usage": usage,
        "extended_usage": extended,
        "basic_constraints": basic,
        "extensions": extensions,
        "signature": certificate.signature_algorithm.algorithm.to_string(),
        "key": certificate.public_key().algorithm.algorithm.to_string(),
        "backdated": (9..=40).contains(&backdated),
        "until": relative(certificate.validity().not_after.timestamp() - now),
        "serial_bytes_at_most_20": certificate.raw_serial().len() <= 20,
        "rest": rest.len(),
    })
}

/// The serial number in a CA's subject is random.
fn without_serial(name: &str) -> String {
    let mut parts: Vec<_> = name.split(',').map(|part| part.trim().to_owned()).collect();
    for part in &mut parts {
        if let Some((key, digits)) = part.split_once('=')
            && digits.len() > 20
            && digits.bytes().all(|byte| byte.is_ascii_digit())
        {
            *part = format!("{key}=<serial>");
        }
    }
    parts.sort();
    parts.join(", ")
}

fn token(text: &str, now: i64) -> Value {
    let mut parts = text.split('.').map(|part| {
        let bytes = BASE64URL_NOPAD.decode(part.as_bytes()).unwrap_or_default();
        serde_json::from_slice::<Value>(&bytes).unwrap_or_default()
    });
    let (mut header, mut claims) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    if header.get("kid").is_some() {
        header["kid"] = json!("<authority>");
    }
    for name in ["exp", "iat"] {
        if let Some(seconds) = claims.get(name).and_then(Value::as_i64) {
            claims[name] = json!(relative(seconds - now));
        }
    }
    if claims.get("jti").is_some() {
        claims["jti"] = json!("<random>");
    }
    json!({"header": header, "claims": claims})
}

/// Replaces UUIDs, and keys and times that are quoted in messages.
fn without_random(text: &str) -> String {
    let mut masked = String::new();
    let mut word = String::new();
    for character in text.chars().chain([' ']) {
        if character.is_ascii_alphanumeric() || character == '-' {
            word.push(character);
            continue;
        }
        masked.push_str(if is_uuid(&word) {
            "<uuid>"
        } else if word.len() >= 32 && is_random_id(&word) {
            "<authority>"
        } else {
            &word
        });
        word.clear();
        masked.push(character);
    }
    masked.pop();
    masked
}

fn is_uuid(word: &str) -> bool {
    word.len() == 36
        && word.char_indices().all(|(at, character)| match at {
            8 | 13 | 18 | 23 => character == '-',
            _ => character.is_ascii_hexdigit(),
        })
}
