//! The documents in which entries and bundles travel between servers.
//!
//! Entries are written in three ways: as `spire-server entry create -data` reads them, as `spire-server entry show
//! -output json` prints them, and as `bonafide -o json entry list` does. They differ in how an ID, a selector and a number
//! are written and in three names, so one reader takes all of them. An unknown key is a mistake, not a thing to skip: it
//! may be one that matters.

use std::fmt;
use std::io::Read;
use std::path::Path;

use bonafide_identity::{Bundle, TrustDomain};
use bonafide_pki::bundle::from_spiffe_json;
use bonafide_proto::convert;
use bonafide_proto::spire::types;
use data_encoding::BASE64;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{id_text, spiffe_id};
use crate::failure::Failure;

/// The largest file that is read, in bytes: about 200 000 entries.
const MAX_BYTES: u64 = 64 << 20;

/// Reads a file, or standard input for `-`.
pub(super) fn read_file(file: &Path) -> Result<Vec<u8>, Failure> {
    let mut content = Vec::new();
    let read = |mut from: Box<dyn Read>, content: &mut Vec<u8>| {
        from.by_ref().take(MAX_BYTES + 1).read_to_end(content).map_err(Failure::file(file))
    };
    if file == Path::new("-") {
        read(Box::new(std::io::stdin()), &mut content)?;
    } else {
        read(Box::new(std::fs::File::open(file).map_err(Failure::file(file))?), &mut content)?;
    }
    if content.len() as u64 > MAX_BYTES {
        return Err(Failure::Input(format!("{} is larger than {MAX_BYTES} bytes", file.display())));
    }
    Ok(content)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EntryFile {
    entries: Vec<Value>,
    #[serde(default)]
    next_page_token: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EntryDocument {
    #[serde(default, alias = "entry_id")]
    id: String,
    spiffe_id: Id,
    parent_id: Id,
    selectors: Vec<SelectorDocument>,
    #[serde(default)]
    x509_svid_ttl: i32,
    #[serde(default)]
    jwt_svid_ttl: i32,
    #[serde(default)]
    federates_with: Vec<String>,
    #[serde(default)]
    admin: bool,
    #[serde(default)]
    downstream: bool,
    #[serde(default, alias = "entryExpiry")]
    expires_at: Number,
    #[serde(default)]
    dns_names: Vec<String>,
    #[serde(default)]
    store_svid: bool,
    #[serde(default)]
    hint: String,
    #[serde(default)]
    additional_attributes: Option<Attributes>,
    #[serde(default)]
    disable_x509_svid_prefetch: bool,
    #[serde(default)]
    jwt_svid_include_jti: bool,
    // The receiving server counts and dates for itself.
    #[serde(default, rename = "revision_number")]
    _revision: Number,
    #[serde(default, rename = "created_at")]
    _created: Number,
}

/// `spiffe://td/path`, or its parts.
#[derive(Deserialize)]
#[serde(untagged)]
enum Id {
    Text(String),
    Parts(IdParts),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct IdParts {
    trust_domain: String,
    #[serde(default)]
    path: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum SelectorDocument {
    Text(String),
    Parts(SelectorParts),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SelectorParts {
    r#type: String,
    value: String,
}

/// 64-bit numbers are texts in the JSON of protobuf.
#[derive(Deserialize)]
#[serde(untagged)]
enum Number {
    Plain(i64),
    Text(String),
}

impl Default for Number {
    fn default() -> Self {
        Self::Plain(0)
    }
}

impl Number {
    fn value(&self) -> Result<i64, String> {
        match self {
            Self::Plain(number) => Ok(*number),
            Self::Text(text) => text.parse().map_err(|_| format!("{text:?} is not a whole number")),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Attributes {
    #[serde(default)]
    disable_x509_svid_prefetch: bool,
    #[serde(default)]
    jwt_svid_include_jti: bool,
}

/// The entries of a document.
///
/// # Errors
/// Everything that is wrong with it, each mistake with the entry that it is in.
pub(super) fn entries(content: &[u8], name: &str) -> Result<Vec<types::Entry>, Failure> {
    let file: EntryFile = serde_json::from_slice(content)
        .map_err(|error| Failure::Input(format!("{name} is not a file of entries: {error}")))?;
    if !file.next_page_token.is_empty() {
        return Err(Failure::Input(format!("{name} is one page of several; export all of them")));
    }
    let (mut entries, mut mistakes) = (Vec::new(), Vec::new());
    for (at, value) in file.entries.into_iter().enumerate() {
        let which = which(&value, at);
        match entry(value) {
            Ok(entry) => entries.push(entry),
            Err(why) => mistakes.push(format!("{which}: {why}")),
        }
    }
    if mistakes.is_empty() {
        return Ok(entries);
    }
    let (count, shown) = (mistakes.len(), mistakes.len().min(50));
    let more = if count > shown { format!("\n  and {} more", count - shown) } else { String::new() };
    Err(Failure::Input(format!("{name}: {count} bad entries\n  {}{more}", mistakes[..shown].join("\n  "))))
}

/// How to find an entry in the file: its place, and the ID that it says.
fn which(value: &Value, at: usize) -> String {
    let text = |key: &str| value.get(key).and_then(Value::as_str).map(|text| format!(" {text}"));
    let parts = value.get("spiffe_id").filter(|id| id.is_object()).map(|id| {
        let part = |key: &str| id.get(key).and_then(Value::as_str).unwrap_or_default();
        format!(" spiffe://{}{}", part("trust_domain"), part("path"))
    });
    let id = text("id").or_else(|| text("entry_id")).unwrap_or_default();
    let spiffe_id = text("spiffe_id").or(parts).unwrap_or_default();
    format!("entry {}{id}{spiffe_id}", at + 1)
}

fn entry(value: Value) -> Result<types::Entry, String> {
    let document: EntryDocument = serde_json::from_value(value).map_err(|error| error.to_string())?;
    let parse = |id: Id| {
        let text = match id {
            Id::Text(text) => text,
            Id::Parts(parts) => {
                // Otherwise its beginning would be read as part of the trust domain.
                if !parts.path.is_empty() && !parts.path.starts_with('/') {
                    return Err(format!("the path {:?} does not begin with a slash", parts.path));
                }
                let domain = parts.trust_domain.trim_start_matches("spiffe://");
                format!("spiffe://{domain}{}", parts.path)
            }
        };
        spiffe_id(&text).map_err(|error| error.to_string())
    };
    let selectors = document.selectors.into_iter().map(|selector| match selector {
        SelectorDocument::Parts(parts) => Ok(types::Selector { r#type: parts.r#type, value: parts.value }),
        SelectorDocument::Text(text) => match text.split_once(':') {
            Some((kind, value)) => Ok(types::Selector { r#type: kind.to_owned(), value: value.to_owned() }),
            None => Err(format!("{text:?} is not a selector type:value")),
        },
    });
    let attributes = document.additional_attributes.as_ref();
    let prefetch =
        document.disable_x509_svid_prefetch || attributes.is_some_and(|a| a.disable_x509_svid_prefetch);
    let jti = document.jwt_svid_include_jti || attributes.is_some_and(|a| a.jwt_svid_include_jti);
    Ok(types::Entry {
        id: document.id,
        spiffe_id: Some(parse(document.spiffe_id)?),
        parent_id: Some(parse(document.parent_id)?),
        selectors: selectors.collect::<Result<_, String>>()?,
        x509_svid_ttl: document.x509_svid_ttl,
        jwt_svid_ttl: document.jwt_svid_ttl,
        federates_with: document.federates_with,
        admin: document.admin,
        downstream: document.downstream,
        expires_at: document.expires_at.value()?,
        dns_names: document.dns_names,
        store_svid: document.store_svid,
        hint: document.hint,
        additional_attributes: (prefetch || jti).then_some(types::entry::AdditionalAttributes {
            disable_x509_svid_prefetch: prefetch,
            jwt_svid_include_jti: jti,
        }),
        ..types::Entry::default()
    })
}

/// Entries as `spire-server entry create -data` and `bonafide entry import` read them.
pub(super) fn export(entries: &[types::Entry]) -> Value {
    let one = |entry: &types::Entry| {
        let attributes = entry.additional_attributes.unwrap_or_default();
        let selectors: Vec<Value> =
            entry.selectors.iter().map(|s| json!({ "type": s.r#type, "value": s.value })).collect();
        let mut document = json!({
            "entry_id": entry.id,
            "spiffe_id": id_text(entry.spiffe_id.as_ref()),
            "parent_id": id_text(entry.parent_id.as_ref()),
            "selectors": selectors,
            "x509_svid_ttl": entry.x509_svid_ttl,
            "jwt_svid_ttl": entry.jwt_svid_ttl,
            "federates_with": entry.federates_with,
            "admin": entry.admin,
            "downstream": entry.downstream,
            "entryExpiry": entry.expires_at,
            "dns_names": entry.dns_names,
            "store_svid": entry.store_svid,
            "hint": entry.hint,
        });
        if attributes != types::entry::AdditionalAttributes::default() {
            document["additional_attributes"] = json!({
                "disable_x509_svid_prefetch": attributes.disable_x509_svid_prefetch,
                "jwt_svid_include_jti": attributes.jwt_svid_include_jti,
            });
        }
        document
    };
    json!({ "entries": entries.iter().map(one).collect::<Vec<_>>() })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BundleFile {
    bundles: Vec<BundleDocument>,
    #[serde(default)]
    next_page_token: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BundleDocument {
    trust_domain: String,
    #[serde(default)]
    x509_authorities: Vec<X509Document>,
    #[serde(default)]
    jwt_authorities: Vec<JwtDocument>,
    #[serde(default)]
    wit_authorities: Vec<Value>,
    #[serde(default)]
    refresh_hint: Number,
    #[serde(default)]
    sequence_number: Number,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct X509Document {
    asn1: String,
    #[serde(default)]
    tainted: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JwtDocument {
    public_key: String,
    key_id: String,
    #[serde(default)]
    expires_at: Number,
    #[serde(default)]
    tainted: bool,
}

/// The bundles in what `spire-server bundle list` prints, with `-output json` or with `-format spiffe`.
///
/// # Errors
/// What is wrong, with the trust domain that it is about.
pub(super) fn bundles(content: &[u8], name: &str) -> Result<Vec<Bundle>, Failure> {
    let bad = |what: String| Failure::Input(format!("{name}: {what}"));
    let text = std::str::from_utf8(content).map_err(|error| bad(error.to_string()))?;
    if text.trim_start().starts_with('*') {
        return headed(text).map_err(bad);
    }
    let file: BundleFile =
        serde_json::from_str(text).map_err(|error| bad(format!("not a list of bundles: {error}")))?;
    if !file.next_page_token.is_empty() {
        return Err(bad("one page of several; export all of them".to_owned()));
    }
    let parse = |document: BundleDocument| {
        let domain = document.trust_domain.clone();
        bundle(document).map_err(|error| bad(format!("bundle of {domain}: {error}")))
    };
    file.bundles.into_iter().map(parse).collect()
}

fn bundle(document: BundleDocument) -> Result<Bundle, String> {
    let bytes = |text: &str| BASE64.decode(text.as_bytes()).map_err(|error| error.to_string());
    let number = |number: &Number| {
        number.value().and_then(|value| u64::try_from(value).map_err(|_| format!("{value} is negative")))
    };
    if !document.wit_authorities.is_empty() {
        return Err("has WIT authorities, which no server takes from a document".to_owned());
    }
    let wire = types::Bundle {
        x509_authorities: document
            .x509_authorities
            .iter()
            .map(|root| Ok(types::X509Certificate { asn1: bytes(&root.asn1)?, tainted: root.tainted }))
            .collect::<Result<_, String>>()?,
        jwt_authorities: document
            .jwt_authorities
            .iter()
            .map(|key| {
                Ok(types::JwtKey {
                    public_key: bytes(&key.public_key)?,
                    key_id: key.key_id.clone(),
                    expires_at: key.expires_at.value()?,
                    tainted: key.tainted,
                })
            })
            .collect::<Result<_, String>>()?,
        refresh_hint: document.refresh_hint.value()?,
        sequence_number: number(&document.sequence_number)?,
        trust_domain: document.trust_domain,
        ..types::Bundle::default()
    };
    convert::bundle_from_server(&wire).map_err(|error| error.to_string())
}

/// Documents below headings of stars: `****`, `* td`, `****`, then the document.
fn headed(text: &str) -> Result<Vec<Bundle>, String> {
    let stars = |line: &str| !line.is_empty() && line.bytes().all(|byte| byte == b'*');
    let mut parts: Vec<(&str, String)> = Vec::new();
    let mut heading = false;
    for line in text.lines() {
        let line = line.trim_end();
        if stars(line) {
            heading = !heading;
        } else if heading {
            let domain =
                line.strip_prefix("* ").ok_or_else(|| format!("{line:?} is not the heading of a bundle"))?;
            parts.push((domain, String::new()));
        } else if let Some((_, document)) = parts.last_mut() {
            document.push_str(line);
            document.push('\n');
        }
    }
    let parse = |(domain, document): (&str, String)| {
        let about = |error: &dyn fmt::Display| format!("bundle of {domain}: {error}");
        let parsed = TrustDomain::parse_lenient(domain).map_err(|error| about(&error))?;
        from_spiffe_json(&parsed, document.as_bytes()).map_err(|error| {
            format!("{} (write the list with -format spiffe or -output json)", about(&error))
        })
    };
    parts.into_iter().map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOWN: &str = r#"{"entries":[{"admin":true,"created_at":"1795538417","dns_names":["a.test"],"downstream":false,
        "expires_at":"1999999999","federates_with":["b.test"],"hint":"h","id":"my-id","jwt_svid_ttl":7,
        "parent_id":{"path":"/n","trust_domain":"example.org"},"revision_number":"3",
        "selectors":[{"type":"unix","value":"uid:1"}],"spiffe_id":{"path":"/w","trust_domain":"example.org"},
        "store_svid":false,"x509_svid_ttl":600,
        "additional_attributes":{"disable_x509_svid_prefetch":true,"jwt_svid_include_jti":false}}],"next_page_token":""}"#;

    const DATA: &str = r#"{"entries":[{"admin":true,"dns_names":["a.test"],"entryExpiry":1999999999,
        "federates_with":["b.test"],"hint":"h","entry_id":"my-id","jwt_svid_ttl":7,"parent_id":"spiffe://example.org/n",
        "selectors":[{"type":"unix","value":"uid:1"}],"spiffe_id":"spiffe://example.org/w","x509_svid_ttl":600,
        "additional_attributes":{"disable_x509_svid_prefetch":true}}]}"#;

    const LISTED: &str = r#"{"entries":[{"admin":true,"dns_names":["a.test"],"expires_at":1999999999,
        "federates_with":["b.test"],"hint":"h","id":"my-id","jwt_svid_ttl":7,"parent_id":"spiffe://example.org/n",
        "selectors":["unix:uid:1"],"spiffe_id":"spiffe://example.org/w","x509_svid_ttl":600,
        "revision_number":0,"created_at":5,"downstream":false,"store_svid":false,
        "disable_x509_svid_prefetch":true,"jwt_svid_include_jti":false}]}"#;

    #[test]
    fn three_ways_to_write_an_entry_mean_the_same() {
        let shown = entries(SHOWN.as_bytes(), "x").unwrap();
        assert_eq!(shown, entries(DATA.as_bytes(), "x").unwrap());
        assert_eq!(shown, entries(LISTED.as_bytes(), "x").unwrap());
        assert_eq!(shown, entries(export(&shown).to_string().as_bytes(), "x").unwrap());
        assert_eq!((shown[0].id.as_str(), shown[0].expires_at), ("my-id", 1_999_999_999));
    }

    #[test]
    fn mistakes_name_the_entry() {
        let bad = r#"{"entries":[
            {"id":"a","spiffe_id":"spiffe://example.org/a","parent_id":"spiffe://example.org/n","selectors":[],"colour":1},
            {"entry_id":"b","spiffe_id":{"trust_domain":"example.org","path":"b"},"parent_id":"spiffe://example.org/n","selectors":[]},
            {"spiffe_id":"spiffe://example.org/c","parent_id":"spiffe://example.org/n","selectors":["x"],"expires_at":"soon"}]}"#;
        let error = entries(bad.as_bytes(), "f.json").unwrap_err().to_string();
        for part in [
            "f.json: 3 bad entries",
            "entry 1 a spiffe://example.org/a: unknown field `colour`",
            "entry 2 b spiffe://example.orgb: the path",
            "entry 3 spiffe://example.org/c: \"x\"",
        ] {
            assert!(error.contains(part), "{part} in {error}");
        }
        assert!(entries(br#"{"entries":[],"next_page_token":"x"}"#, "f").is_err());
        assert!(entries(b"[]", "f").is_err());
    }

    #[test]
    fn bundles_are_read_from_both_lists() {
        let key = "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEzpDZAyZczE2HDnDLECH4d/IaXTYh77E7tob2sDHLc/wRB7bY3/4p6wbwXxJj7a6Lqrw/qfvqDUTO/SkbXcIgqw==";
        let listed = format!(
            r#"{{"bundles":[{{"jwt_authorities":[{{"expires_at":"0","key_id":"k","public_key":"{key}","tainted":false}}],"refresh_hint":"0","sequence_number":"1","trust_domain":"other.test","wit_authorities":[],"x509_authorities":[]}}],"next_page_token":""}}"#
        );
        let from_json = bundles(listed.as_bytes(), "x").unwrap();
        assert_eq!(from_json.len(), 1);
        assert_eq!(from_json[0].jwt_authorities[0].key_id, "k");
        let document = bonafide_pki::bundle::to_spiffe_json(&from_json[0]);
        let headed =
            format!("****\n* other.test\n****\n{document}\n\n****\n* third.test\n****\n{document}\n");
        let from_text = bundles(headed.as_bytes(), "x").unwrap();
        assert_eq!(from_text.len(), 2);
        assert_eq!(from_text[0].jwt_authorities, from_json[0].jwt_authorities);
        assert_eq!(from_text[1].trust_domain.as_str(), "third.test");
        let pem = "****\n* other.test\n****\n-----BEGIN CERTIFICATE-----\n";
        let error = bundles(pem.as_bytes(), "x").unwrap_err().to_string();
        assert!(error.contains("other.test") && error.contains("-format spiffe"), "{error}");
    }
}
