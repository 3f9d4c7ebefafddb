//! Bytes in JSON as Go writes them: standard base64 with padding, null for none.

use serde::{Deserialize, Serializer};

/// Bytes.
#[derive(Debug, Default, Deserialize)]
#[serde(transparent)]
pub(super) struct Base64(#[serde(deserialize_with = "base64")] pub(super) Vec<u8>);

pub(super) fn base64<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?.unwrap_or_default();
    data_encoding::BASE64.decode(text.as_bytes()).map_err(serde::de::Error::custom)
}

pub(super) fn to_base64<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&data_encoding::BASE64.encode(bytes))
}
