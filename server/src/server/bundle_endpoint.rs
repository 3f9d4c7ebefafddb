//! The bundle endpoint's socket, certificate and tasks.

use std::net::SocketAddr;
use std::sync::Arc;

use bonafide_pki::tls::{SvidHolder, https_server, https_server_with_challenge};
use bonafide_runtime::listener::{HttpsOptions, serve_https};
use bonafide_runtime::tasks::{NextRun, Periodic, Schedule, TaskGroup};
use tokio::net::TcpListener;
use tokio::sync::Mutex;

use super::{Context, ServerError, bind_tcp};
use crate::config::BundleEndpointProfile;
use crate::federation::acme::{self, AcmeCertificate};
use crate::federation::certificate_files::{self, CertificateFiles};
use crate::federation::serve::BundleEndpoint;

/// A socket, and what is presented on it.
pub(super) struct Bound {
    listener: TcpListener,
    address: SocketAddr,
    certificate: SvidHolder,
    source: Source,
}

/// Where the certificate comes from.
enum Source {
    /// It is the server's own SVID.
    Own,
    /// Files that something else renews.
    Files(CertificateFiles),
    /// An ACME server.
    Acme(Box<AcmeCertificate>),
}

/// Binds the address and reads the certificate, where an endpoint is configured.
pub(super) async fn bind(context: &Arc<Context>) -> Result<Option<Bound>, ServerError> {
    let Some(settings) = &context.config.federation.bundle_endpoint else { return Ok(None) };
    let (certificate, source) = match &settings.profile {
        BundleEndpointProfile::HttpsSpiffe => (context.server_svid.clone(), Source::Own),
        BundleEndpointProfile::HttpsWeb { certificate_path, key_path } => {
            let files = CertificateFiles::open(certificate_path.clone(), key_path.clone())?;
            (files.holder().clone(), Source::Files(files))
        }
        BundleEndpointProfile::HttpsWebAcme(settings) => {
            let folder = context.config.data_dir.join("bundle-acme");
            let (clock, random) = (context.clock.clone(), context.random.clone());
            let acme = AcmeCertificate::open(settings.clone(), folder, clock, random)?;
            (acme.presented().clone(), Source::Acme(Box::new(acme)))
        }
    };
    let (listener, address) = bind_tcp("federation.bundle_endpoint.address", settings.address).await?;
    Ok(Some(Bound { listener, address, certificate, source }))
}

/// Serves it until the shutdown. Gives its address, and the work that keeps its certificate fresh.
pub(super) fn spawn(
    group: &mut TaskGroup,
    context: &Arc<Context>,
    bound: Bound,
) -> (SocketAddr, Option<Periodic>) {
    let Bound { listener, address, certificate, source } = bound;
    let refresh_hint =
        context.config.federation.bundle_endpoint.as_ref().map(|settings| settings.refresh_hint);
    let shutdown = group.shutdown().clone();
    let endpoint =
        BundleEndpoint::new(context.state.clone(), refresh_hint.unwrap_or_default(), shutdown.clone());
    let clock = context.clock.clone();
    let now = Arc::new(move || clock.now());
    let tls = match &source {
        Source::Acme(acme) => https_server_with_challenge(certificate, acme.challenge().clone(), now),
        Source::Own | Source::Files(_) => https_server(certificate, now),
    };
    let options = HttpsOptions { name: "bundle", ..HttpsOptions::default() };
    group.spawn("bundle endpoint", async move {
        let answer = move |request| {
            let endpoint = endpoint.clone();
            async move { endpoint.answer(request).await }
        };
        Ok(serve_https(listener, tls, options, answer, shutdown).await?)
    });
    let periodic = match source {
        Source::Own => None,
        Source::Files(files) => Some(spawn_files(group, context, files)),
        Source::Acme(acme) => Some(spawn_acme(group, context, *acme)),
    };
    (address, periodic)
}

const NAME: &str = "bundle endpoint certificate";

fn spawn_files(group: &mut TaskGroup, context: &Arc<Context>, files: CertificateFiles) -> Periodic {
    let schedule = Schedule { immediately: false, ..Schedule::every(certificate_files::EVERY) };
    let periodic = Periodic::new(NAME, schedule, context.clock.clone());
    let (files, random) = (Arc::new(Mutex::new(files)), context.random.clone());
    let (shutdown, running) = (group.shutdown().clone(), periodic.clone());
    group.spawn(NAME, async move {
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
        running.run(shutdown, move || random.u64(), work).await
    });
    periodic
}

fn spawn_acme(group: &mut TaskGroup, context: &Arc<Context>, acme: AcmeCertificate) -> Periodic {
    let periodic = Periodic::new(NAME, acme::schedule(), context.clock.clone());
    let (acme, random) = (Arc::new(Mutex::new(acme)), context.random.clone());
    let (shutdown, running) = (group.shutdown().clone(), periodic.clone());
    group.spawn(NAME, async move {
        let work = |_| {
            let acme = acme.clone();
            async move {
                let mut acme = acme.lock().await;
                let then = acme.refresh().await?;
                Ok(NextRun::In(acme.rest(then)))
            }
        };
        running.run(shutdown, move || random.u64(), work).await
    });
    periodic
}
