//! `spire.api.server.debug.v1.Debug`

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bonafide_identity::{EntryIndex, Timestamp};
use bonafide_pki::inspect;
use bonafide_proto::convert::spiffe_id_to_wire;
use bonafide_proto::spire::server::debug::v1::debug_server::Debug;
use bonafide_proto::spire::server::debug::v1::{GetInfoRequest, GetInfoResponse, get_info_response::Cert};
use tonic::{Request, Response, Status};

use super::super::count;
use crate::server::Context;

/// The service.
pub struct Service {
    context: Arc<Context>,
    cached: Mutex<Option<(Timestamp, GetInfoResponse)>>,
}

const FRESH: Duration = Duration::from_secs(5);

impl Service {
    /// Over the server's state.
    pub fn new(context: Arc<Context>) -> Self {
        Self { context, cached: Mutex::new(None) }
    }

    fn info(&self, now: Timestamp) -> Result<GetInfoResponse, Status> {
        let context = &self.context;
        let svid = context.server_svid.current();
        let bundle = context.state.bundle(&context.td);
        // Up to and with the root, as SPIRE shows it.
        let last = svid.iter().flat_map(|svid| svid.chain()).last().map(inspect);
        let root = bundle.iter().flat_map(|bundle| &bundle.x509_authorities).find(|root| {
            let issuer = last.as_ref().and_then(|last| last.as_ref().ok()?.aki.clone());
            issuer.is_some() && inspect(&root.certificate).is_ok_and(|root| root.ski == issuer)
        });
        let chain = svid.iter().flat_map(|svid| svid.chain());
        let svid_chain = chain.chain(root.map(|root| &root.certificate[..])).map(|der| {
            let info = inspect(der).map_err(|error| Status::internal(error.to_string()))?;
            Ok(Cert {
                id: info.spiffe_id.as_ref().map(spiffe_id_to_wire),
                expires_at: info.not_after.unix_seconds(),
                subject: info.subject,
            })
        });
        Ok(GetInfoResponse {
            svid_chain: svid_chain.collect::<Result<_, Status>>()?,
            uptime: i32::try_from(now.saturating_since(context.started_at).as_secs()).unwrap_or(i32::MAX),
            agents_count: count(context.state.nodes().len()),
            federated_bundles_count: count(context.state.bundles().len()),
            entries_count: count(context.state.with_entries(EntryIndex::len)),
        })
    }
}

#[async_trait]
impl Debug for Service {
    async fn get_info(&self, _: Request<GetInfoRequest>) -> Result<Response<GetInfoResponse>, Status> {
        let now = self.context.clock.now();
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        let info = match &*cached {
            Some((at, info)) if *at <= now && now.saturating_since(*at) < FRESH => info.clone(),
            _ => {
                let info = self.info(now)?;
                *cached = Some((now, info.clone()));
                info
            }
        };
        Ok(Response::new(info))
    }
}
