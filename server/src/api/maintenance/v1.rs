//! `bonafide.server.v1.Maintenance`
//!
//! The backup goes to the caller as bytes rather than to a path that it names: the server must not write with its own
//! rights where somebody else says.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use bonafide_identity::Timestamp;
use bonafide_proto::bonafide::server::v1::maintenance_server::Maintenance;
use bonafide_proto::bonafide::server::v1::{
    BackupRequest, BackupResponse, CheckLifetimesRequest, CheckLifetimesResponse,
};
use tokio::fs::File;
use tokio::io::AsyncReadExt as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::super::{Call, lifetimes, random_uuid, store_failure};
use crate::server::Context;

/// The service.
pub struct Service {
    context: Arc<Context>,
}

/// Bytes in one message.
const CHUNK: usize = 64 * 1024;

impl Service {
    /// Over the server's store.
    pub fn new(context: Arc<Context>) -> Self {
        Self { context }
    }
}

#[async_trait]
impl Maintenance for Service {
    type BackupStream = ReceiverStream<Result<BackupResponse, Status>>;

    async fn backup(&self, request: Request<BackupRequest>) -> Result<Response<Self::BackupStream>, Status> {
        let call = Call::of(&request)?;
        let name = format!("backup-{}.partial", random_uuid(&*self.context.random));
        let file = Temporary(self.context.config.data_dir.join(name));
        let info = self
            .context
            .store
            .backup(&file.0)
            .await
            .map_err(|error| store_failure("failed to make a backup", &error))?;
        call.note("records", info.records);
        call.note("bytes", info.bytes);
        let (sender, receiver) = mpsc::channel(4);
        tokio::spawn(async move {
            if let Err(error) = send(&file, &sender).await {
                let text = format!("failed to read the backup: {error}");
                // A caller that has gone need not be told.
                let _ = sender.send(Err(Status::internal(text))).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn check_lifetimes(
        &self,
        request: Request<CheckLifetimesRequest>,
    ) -> Result<Response<CheckLifetimesResponse>, Status> {
        Call::of(&request)?;
        let at = match request.into_inner().at {
            0 => self.context.clock.now(),
            at => Timestamp::from_unix_seconds(at),
        };
        let context = Arc::clone(&self.context);
        // There may be a million entries.
        let checked = tokio::task::spawn_blocking(move || lifetimes::check(&context, at)).await;
        checked.map(Response::new).map_err(|_| Status::internal("the check was cut off"))
    }
}

/// Ends when the file does, or the caller.
async fn send(
    file: &Temporary,
    sender: &mpsc::Sender<Result<BackupResponse, Status>>,
) -> std::io::Result<()> {
    let mut reader = File::open(&file.0).await?;
    loop {
        let mut data = vec![0; CHUNK];
        let length = reader.read(&mut data).await?;
        data.truncate(length);
        if length == 0 || sender.send(Ok(BackupResponse { data })).await.is_err() {
            return Ok(());
        }
    }
}

/// A file that goes with its owner.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(file = %self.0.display(), %error, "a temporary file is left behind");
        }
    }
}
