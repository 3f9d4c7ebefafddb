//! The command `backup`.
//!
//! A backup comes from the running server when there is one, through its administration socket, and from the store's
//! own files otherwise; the operator need not know which. Either way it is checked as a whole before it gets its name.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use bonafide_proto::bonafide::server::v1::BackupRequest;
use bonafide_proto::bonafide::server::v1::maintenance_client::MaintenanceClient;
use bonafide_runtime::clock::SharedClock;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

use crate::config::Config;
use crate::drivers;
use crate::store::{BackupInfo, Store, StoreError, verify_backup};

/// Why there is no backup.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The store refused, or what was written is not whole.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The file could not be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The running server could not be reached, or refused.
    #[error("the running server at {}: {reason}", socket.display())]
    Server {
        /// Its administration socket.
        socket: PathBuf,
        /// What it said.
        reason: String,
    },
    /// The store is in memory and nobody serves it.
    #[error("the store is in memory, and no server is running at {}", .0.display())]
    NothingThere(PathBuf),
}

/// Writes everything in the store into the file `to`.
///
/// # Errors
/// There is then no file of that name, or the one of before.
pub async fn backup(config: &Config, to: &Path, clock: SharedClock) -> Result<BackupInfo, BackupError> {
    let socket = &config.listen.admin_socket;
    let Some(server) = connect(socket).await? else {
        if config.store.driver == crate::store::DriverKind::Memory {
            return Err(BackupError::NothingThere(socket.clone()));
        }
        let (store, _) = Store::open(drivers::store_config(&config.store, &config.trust_domain), clock)?;
        let info = store.backup(to).await;
        store.close().await;
        return Ok(info?);
    };
    let failed = |source| BackupError::Write { path: to.to_owned(), source };
    let mut partial = to.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let outcome = match receive(server, &partial).await {
        Ok(()) => verify_backup(&partial).map_err(BackupError::Store),
        Err(Failure::Write(source)) => Err(failed(source)),
        Err(Failure::Server(reason)) => Err(BackupError::Server { socket: socket.clone(), reason }),
    };
    match outcome {
        Ok(info) => {
            fs::rename(&partial, to).map_err(failed)?;
            sync_folder(to).map_err(failed)?;
            Ok(info)
        }
        Err(error) => {
            // Perhaps it was never made; the error that matters is the other one.
            let _ = fs::remove_file(&partial);
            Err(error)
        }
    }
}

/// `None` when nobody serves on the socket.
async fn connect(socket: &Path) -> Result<Option<MaintenanceClient<Channel>>, BackupError> {
    let failed = |reason: String| BackupError::Server { socket: socket.to_owned(), reason };
    match UnixStream::connect(socket).await {
        Ok(_) => {}
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(error) => return Err(failed(error.to_string())),
    }
    let path = socket.to_owned();
    let dial = move |_: http::Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    };
    let channel = Endpoint::from_static("http://localhost")
        .connect_with_connector(tower::service_fn(dial))
        .await
        .map_err(|error| failed(error.to_string()))?;
    Ok(Some(MaintenanceClient::new(channel)))
}

enum Failure {
    Write(io::Error),
    Server(String),
}

async fn receive(mut server: MaintenanceClient<Channel>, to: &Path) -> Result<(), Failure> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let told = |status: tonic::Status| Failure::Server(status.message().to_owned());
    let mut stream = server.backup(BackupRequest {}).await.map_err(told)?.into_inner();
    // What stands there already, a leftover or a file or link that somebody else has put there, is never written to.
    match fs::remove_file(to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Failure::Write(error)),
        _ => {}
    }
    let options = File::options().write(true).create_new(true).mode(0o600).open(to);
    let mut file = options.map_err(Failure::Write)?;
    while let Some(response) = stream.message().await.map_err(told)? {
        file.write_all(&response.data).map_err(Failure::Write)?;
    }
    file.sync_all().map_err(Failure::Write)
}

fn sync_folder(file: &Path) -> io::Result<()> {
    let folder = match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    File::open(folder)?.sync_all()
}
