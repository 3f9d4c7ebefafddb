//! Signed identities as the server hands them to agents and administrators.

use std::fmt::{self, Debug, Formatter};

use bonafide_identity::{SpiffeId, Timestamp};
use bytes::Bytes;

use crate::convert::{ConvertError, instant, spiffe_id_from_wire, spiffe_id_to_wire};
use crate::spire::types;

/// An X509-SVID without its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct X509Chain {
    /// Whose it is.
    pub id: SpiffeId,
    /// DER, leaf first, without the root; not empty.
    pub certificates: Vec<Bytes>,
    /// End of the leaf's life, in whole seconds.
    pub expires_at: Timestamp,
    /// Tells several SVIDs of one workload apart.
    pub hint: String,
}

/// A JWT-SVID or WIT-SVID. The first is a bearer token, so `Debug` hides both.
#[derive(Clone, PartialEq, Eq)]
pub struct SignedToken {
    /// Whose it is.
    pub id: SpiffeId,
    /// JWS compact serialisation; not empty.
    pub token: String,
    /// When it was signed, in whole seconds.
    pub issued_at: Timestamp,
    /// When it ends, in whole seconds.
    pub expires_at: Timestamp,
    /// Tells several SVIDs of one workload apart.
    pub hint: String,
}

impl Debug for SignedToken {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("SignedToken")
            .field("id", &self.id)
            .field("issued_at", &self.issued_at)
            .field("expires_at", &self.expires_at)
            .field("hint", &self.hint)
            .finish_non_exhaustive()
    }
}

/// An X509-SVID for the wire.
#[must_use]
pub fn x509_svid_to_wire(svid: X509Chain) -> types::X509svid {
    types::X509svid {
        id: Some(spiffe_id_to_wire(&svid.id)),
        cert_chain: svid.certificates,
        expires_at: svid.expires_at.unix_seconds(),
        hint: svid.hint,
    }
}

/// Reads an X509-SVID that a server signed. The certificates are not parsed here.
///
/// # Errors
/// When the ID, the chain or the end of life is missing or malformed.
pub fn x509_svid_from_server(svid: types::X509svid) -> Result<X509Chain, ConvertError> {
    let id = spiffe_id_from_wire(svid.id.as_ref(), INVALID_ID)?;
    if svid.cert_chain.is_empty() || svid.cert_chain.iter().any(Bytes::is_empty) {
        return Err(ConvertError::IncompleteSvid("certificates"));
    }
    Ok(X509Chain {
        id,
        certificates: svid.cert_chain,
        expires_at: some_instant(svid.expires_at, "expires_at")?,
        hint: svid.hint,
    })
}

/// A JWT-SVID for the wire.
#[must_use]
pub fn jwt_svid_to_wire(svid: SignedToken) -> types::Jwtsvid {
    types::Jwtsvid {
        token: svid.token,
        id: Some(spiffe_id_to_wire(&svid.id)),
        expires_at: svid.expires_at.unix_seconds(),
        issued_at: svid.issued_at.unix_seconds(),
        hint: svid.hint,
    }
}

/// Reads a JWT-SVID that a server signed. The token is not parsed here.
///
/// # Errors
/// When a part is missing, or the token ends before it begins.
pub fn jwt_svid_from_server(svid: types::Jwtsvid) -> Result<SignedToken, ConvertError> {
    token(svid.id.as_ref(), svid.token, svid.issued_at, svid.expires_at, svid.hint)
}

/// A WIT-SVID for the wire.
#[must_use]
pub fn wit_svid_to_wire(svid: SignedToken) -> types::Witsvid {
    types::Witsvid {
        token: svid.token,
        id: Some(spiffe_id_to_wire(&svid.id)),
        expires_at: svid.expires_at.unix_seconds(),
        issued_at: svid.issued_at.unix_seconds(),
        hint: svid.hint,
    }
}

/// Reads a WIT-SVID that a server signed. The token is not parsed here.
///
/// # Errors
/// When a part is missing, or the token ends before it begins.
pub fn wit_svid_from_server(svid: types::Witsvid) -> Result<SignedToken, ConvertError> {
    token(svid.id.as_ref(), svid.token, svid.issued_at, svid.expires_at, svid.hint)
}

fn token(
    id: Option<&types::Spiffeid>,
    token: String,
    issued_at: i64,
    expires_at: i64,
    hint: String,
) -> Result<SignedToken, ConvertError> {
    let id = spiffe_id_from_wire(id, INVALID_ID)?;
    if token.is_empty() {
        return Err(ConvertError::IncompleteSvid("token"));
    }
    let (issued_at, expires_at) =
        (some_instant(issued_at, "issued_at")?, some_instant(expires_at, "expires_at")?);
    if issued_at > expires_at {
        return Err(ConvertError::IncompleteSvid("a life: it ends before it begins"));
    }
    Ok(SignedToken { id, token, issued_at, expires_at, hint })
}

/// Zero is how an absent time looks on the wire.
fn some_instant(seconds: i64, name: &'static str) -> Result<Timestamp, ConvertError> {
    if seconds == 0 {
        return Err(ConvertError::IncompleteSvid(name));
    }
    Ok(instant(seconds))
}

const INVALID_ID: &str = "invalid SPIFFE ID in SVID";
