//! The server's own X509-SVID.

/// Keeps `spiffe://<trust domain>/spire/server` fresh in a `SvidHolder`, and the `TrustStore` equal to the bundles.
pub struct ServerSvid { _p: () }
impl ServerSvid {
    pub fn start(issuing: std::sync::Arc<super::Issuing>, authorities: std::sync::Arc<super::Authorities>, state: std::sync::Arc<crate::store::State>, holder: bonafide_pki::tls::SvidHolder, random: std::sync::Arc<dyn bonafide_pki::Random>, now: bonafide_identity::Timestamp) -> Result<Self, super::SigningError>;
}
