//! The bundle endpoint's socket, certificate and tasks.

use std::net::SocketAddr;
use std::sync::Arc;

use bonafide_pki::tls::{SvidHolder, https_server};
use bonafide_runtime::listener::{HttpsOptions, serve_https};
use bonafide_runtime::tasks::{NextRun, Periodic, Schedule, TaskGroup};
use tokio::net::TcpListener;
use tokio::sync::Mutex;

use super::{Context, ServerError, bind_tcp};
use crate::config::BundleEndpointProfile;
use crate::federation::certificate_files::{self, CertificateFiles};
use crate::federation::serve::BundleEndpoint;

/// A socket, and what is presented on it.
pub(super) struct Bound {
    listener: TcpListener,
    address: SocketAddr,
    certificate: SvidHolder,
    /// The files of the certificate, where it is not the server's own SVID.
    files: Option<CertificateFiles>,
}

/// Binds the address and reads the certificate, where an endpoint is configured.
pub(super) async fn bind(context: &Arc<Context>) -> Result<Option<Bound>, ServerError> {
    let Some(settings) = &context.config.federation.bundle_endpoint else { return Ok(None) };
    let (certificate, files) = match &settings.profile {
        BundleEndpointProfile::HttpsSpiffe => (context.server_svid.clone(), None),
        BundleEndpointProfile::HttpsWeb { certificate_path, key_path } => {
            let files = CertificateFiles::open(certificate_path.clone(), key_path.clone())?;
            (files.holder().clone(), Some(files))
        }
    };
    let (listener, address) = bind_tcp("federation.bundle_endpoint.address", settings.address).await?;
    Ok(Some(Bound { listener, address, certificate, files }))
}

/// Serves it until the shutdown.
pub(super) fn spawn(group: &mut TaskGroup, context: &Arc<Context>, bound: Bound) -> SocketAddr {
    let Bound { listener, address, certificate, files } = bound;
    let refresh_hint =
        context.config.federation.bundle_endpoint.as_ref().map(|settings| settings.refresh_hint);
    let shutdown = group.shutdown().clone();
    let endpoint =
        BundleEndpoint::new(context.state.clone(), refresh_hint.unwrap_or_default(), shutdown.clone());
    let clock = context.clock.clone();
    let tls = https_server(certificate, Arc::new(move || clock.now()));
    let options = HttpsOptions { name: "bundle", ..HttpsOptions::default() };
    group.spawn("bundle endpoint", async move {
        let answer = move |request| {
            let endpoint = endpoint.clone();
            async move { endpoint.answer(request).await }
        };
        Ok(serve_https(listener, tls, options, answer, shutdown).await?)
    });
    if let Some(files) = files {
        let schedule = Schedule { immediately: false, ..Schedule::every(certificate_files::EVERY) };
        let periodic = Periodic::new("bundle endpoint certificate", schedule, context.clock.clone());
        let (files, random) = (Arc::new(Mutex::new(files)), context.random.clone());
        let shutdown = group.shutdown().clone();
        group.spawn("bundle endpoint certificate", async move {
            let work = |_| {
                let files = files.clone();
                async move {
                    let mut files = files.lock_owned().await;
                    let changed = tokio::task::spawn_blocking(move || files.refresh()).await??;
                    if changed {
                        tracing::info!("the certificate of the bundle endpoint was read anew");
                    }
                    Ok(NextRun::Usual)
                }
            };
            periodic.run(shutdown, move || random.u64(), work).await
        });
    }
    address
}
