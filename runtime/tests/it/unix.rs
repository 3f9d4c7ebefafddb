use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bonafide_runtime::listener::{
    CloseMode, ConnectionRegistry, Http2Options, Peer, PidfdOrigin, UnixOptions, bind_unix, serve_unix,
};
use bonafide_runtime::shutdown::Shutdown;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;
use tokio_stream::StreamExt;

use crate::echo::{Echo, connect_unix, hang, level, unary, watch};

pub(crate) struct Served {
    folder: TempDir,
    pub(crate) echo: Echo,
    pub(crate) registry: ConnectionRegistry,
    pub(crate) shutdown: Shutdown,
    pub(crate) task: JoinHandle<Result<(), bonafide_runtime::listener::ListenerError>>,
}

impl Served {
    pub(crate) fn path(&self) -> std::path::PathBuf {
        self.folder.path().join("api.sock")
    }
}

pub(crate) fn serve(change: impl FnOnce(&mut UnixOptions)) -> Served {
    let folder = tempfile::tempdir().unwrap();
    let bound = bind_unix(folder.path().join("api.sock"), 0o777, 0o755).unwrap();
    let (echo, shutdown) = (Echo::new(), Shutdown::new());
    let mut options = UnixOptions::default();
    change(&mut options);
    let registry = options.registry.clone();
    let task = tokio::spawn(serve_unix(bound, echo.routes(), options, shutdown.clone()));
    Served { folder, echo, registry, shutdown, task }
}

#[tokio::test]
async fn a_caller_is_known_by_its_process() {
    let served = serve(|_| {});
    let channel = connect_unix(&served.path()).await.unwrap();
    let answer = unary(&channel, "hello").await.unwrap();
    let (pid, uid) = (std::process::id(), rustix::process::getuid().as_raw());
    assert!(answer.starts_with("hello authority=localhost from "), "{answer}");
    assert!(answer.contains(&format!("pid={pid} uid={uid} gid=")), "{answer}");
    let peers = served.registry.peers();
    let Peer::Unix(peer) = &*peers[0] else { panic!("{:?}", peers[0]) };
    assert!(peer.cred.pidfd.is_some() && peer.cred.pidfd_origin != PidfdOrigin::Absent, "{peer:?}");
    eprintln!("pidfd from {:?}", peer.cred.pidfd_origin);
    drop(channel);
    level(|| served.registry.len(), |open| *open == 0).await;
}

#[tokio::test]
async fn a_caller_is_not_pinned_where_nobody_asks() {
    let served = serve(|options| options.pin_peers = false);
    let channel = connect_unix(&served.path()).await.unwrap();
    assert!(unary(&channel, "x").await.unwrap().contains("origin=Absent"));
}

#[tokio::test]
async fn shutdown_lets_running_streams_speak_and_ends_them_at_the_deadline() {
    let served = serve(|options| options.drain = Duration::from_millis(800));
    let channel = connect_unix(&served.path()).await.unwrap();
    let mut stream = watch(&channel).await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), "first");
    let hanging = tokio::spawn(async move { hang(&channel).await });
    served.echo.wait_open(2).await;

    let begin = Instant::now();
    served.shutdown.trigger();
    level(|| served.path().exists(), |exists| !exists).await;
    assert!(connect_unix(&served.path()).await.is_err(), "still accepting");
    served.echo.text.send_replace("last words".into());
    assert_eq!(stream.next().await.unwrap().unwrap(), "last words");

    let path = served.path();
    tokio::time::timeout(Duration::from_secs(10), served.task)
        .await
        .expect("shutdown ends")
        .unwrap()
        .unwrap();
    assert!(begin.elapsed() >= Duration::from_millis(700), "cut after {:?}", begin.elapsed());
    assert!(!path.exists());
    served.echo.wait_open(0).await;
    assert!(stream.next().await.is_none_or(|item| item.is_err()));
    assert!(hanging.await.unwrap().is_err());
}

#[tokio::test]
async fn shutdown_without_streams_is_quick() {
    let served = serve(|options| options.drain = Duration::from_secs(60));
    let channel = connect_unix(&served.path()).await.unwrap();
    unary(&channel, "x").await.unwrap();
    served.shutdown.trigger();
    tokio::time::timeout(Duration::from_secs(5), served.task)
        .await
        .expect("nothing to wait for")
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn the_application_closes_connections_gently_or_at_once() {
    let served = serve(|_| {});
    let channel = connect_unix(&served.path()).await.unwrap();
    let mut stream = watch(&channel).await.unwrap();
    stream.next().await.unwrap().unwrap();
    assert_eq!(served.registry.close_where(CloseMode::Graceful, |_| false), 0);
    assert_eq!(served.registry.close_where(CloseMode::Graceful, |_| true), 1);
    served.echo.text.send_replace("second".into());
    assert_eq!(stream.next().await.unwrap().unwrap(), "second", "a running stream goes on");
    assert_eq!(served.registry.close_where(CloseMode::Now, |_| true), 1);
    assert!(stream.next().await.is_none_or(|item| item.is_err()));
    served.echo.wait_open(0).await;
    level(|| served.registry.is_empty(), |empty| *empty).await;
}

#[tokio::test]
async fn who_says_nothing_or_something_else_is_put_out() {
    let served = serve(|options| {
        options.http2 =
            Http2Options { preface_timeout: Duration::from_millis(200), ..Http2Options::default() };
    });
    for first in ["", "PRI * HTTP/2.0\r\n", "GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"] {
        let mut stream = tokio::net::UnixStream::connect(served.path()).await.unwrap();
        stream.write_all(first.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await;
        assert!(read.is_ok(), "left open after {first:?}");
        assert!(answer.is_empty(), "{answer:?}");
    }
    assert!(served.registry.is_empty());
}

#[tokio::test]
async fn one_user_cannot_take_all_connections() {
    let served = serve(|options| options.max_connections_per_user = 2);
    let first = connect_unix(&served.path()).await.unwrap();
    let second = connect_unix(&served.path()).await.unwrap();
    unary(&first, "x").await.unwrap();
    unary(&second, "x").await.unwrap();
    let mut third = tokio::net::UnixStream::connect(served.path()).await.unwrap();
    assert_eq!(third.read(&mut [0]).await.unwrap(), 0, "a third connection is served");
    drop(first);
    level(|| served.registry.len(), |open| *open == 1).await;
    let third = connect_unix(&served.path()).await.unwrap();
    unary(&third, "x").await.unwrap();
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_calls() {
    let served = serve(|_| {});
    let channel = connect_unix(&served.path()).await.unwrap();
    let stream = watch(&channel).await.unwrap();
    served.echo.wait_open(1).await;
    drop((stream, channel));
    served.echo.wait_open(0).await;
    assert_eq!(served.echo.open.load(Ordering::SeqCst), 0);
}
