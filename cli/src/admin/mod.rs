//! Commands that go to the server's local socket.

pub(crate) mod agent;
pub(crate) mod authority;
pub(crate) mod bundle;
mod document;
pub(crate) mod entry;
pub(crate) mod federation;
pub(crate) mod mint;
pub(crate) mod policy;
pub(crate) mod server;
pub(crate) mod token;
mod transfer;

use bonafide_identity::{Selector, SpiffeId};
use bonafide_proto::spire::types;

use crate::failure::Failure;

/// How many items one page of a list holds: small enough for gRPC's 4 MiB, large enough to be few calls.
const PAGE: i32 = 500;

/// A SPIFFE ID from the command line.
fn spiffe_id(text: &str) -> Result<types::Spiffeid, Failure> {
    let id = SpiffeId::parse(text)
        .map_err(|error| Failure::Input(format!("{text:?} is not a SPIFFE ID: {error}")))?;
    Ok(types::Spiffeid { trust_domain: id.trust_domain().as_str().to_owned(), path: id.path().to_owned() })
}

/// Selectors from the command line.
fn selectors(texts: &[String]) -> Result<Vec<types::Selector>, Failure> {
    texts
        .iter()
        .map(|text| {
            let selector = Selector::parse(text).map_err(|error| {
                Failure::Input(format!(
                    "{text:?} is not a selector ({error}): write type:value, as in unix:uid:1000"
                ))
            })?;
            Ok(types::Selector { r#type: selector.kind().to_owned(), value: selector.value().to_owned() })
        })
        .collect()
}

/// A SPIFFE ID of the wire as text; "-" where it is absent.
fn id_text(id: Option<&types::Spiffeid>) -> String {
    id.map_or_else(|| "-".to_owned(), |id| format!("spiffe://{}{}", id.trust_domain, id.path))
}

fn selector_text(selector: &types::Selector) -> String {
    format!("{}:{}", selector.r#type, selector.value)
}

/// Whether the result of one item of a batch is good; the reason otherwise. Code 0 is success.
fn item(status: Option<&types::Status>) -> Result<(), String> {
    match status {
        Some(status) if status.code == 0 => Ok(()),
        Some(status) => Err(format!("{} ({:?})", status.message, tonic::Code::from(status.code))),
        None => Err("the server gave no status".to_owned()),
    }
}
