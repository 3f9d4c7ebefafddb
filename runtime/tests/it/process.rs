use std::time::Duration;

use bonafide_runtime::shutdown::{Shutdown, on_signals};
use bonafide_runtime::telemetry::{LogConfig, LogFormat, init_logging, reopen_on_signal};
use nix::sys::signal::{Signal, raise};

use crate::echo::level;

/// One test for all that is global to a process.
#[tokio::test]
async fn signals_stop_the_process_and_reopen_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let config = LogConfig { format: LogFormat::Json, file: Some(path.clone()), ..LogConfig::default() };
    let handle = init_logging(config.clone()).unwrap();
    assert!(init_logging(config).is_err(), "logging was set up twice");

    let shutdown = Shutdown::new();
    let reopening = tokio::spawn(reopen_on_signal(handle, shutdown.clone()));
    let stopping = tokio::spawn(on_signals(shutdown.clone()));
    // Both install their handlers when they are first polled.
    tokio::task::yield_now().await;
    std::fs::rename(&path, folder.path().join("log.1")).unwrap();
    raise(Signal::SIGUSR2).unwrap();
    level(|| path.exists(), |exists| *exists).await;

    raise(Signal::SIGTERM).unwrap();
    tokio::time::timeout(Duration::from_secs(10), shutdown.triggered()).await.expect("SIGTERM stops");
    stopping.await.unwrap().unwrap();
    reopening.await.unwrap().unwrap();

    let panicked = tokio::spawn(async { panic!("told to the log") }).await;
    assert!(panicked.is_err());
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains("\"target\":\"panic\"") && text.contains("told to the log"), "{text}");
}
