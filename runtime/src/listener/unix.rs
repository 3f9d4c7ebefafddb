//! gRPC on Unix sockets.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{getsockopt, sockopt};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::net::UnixStream;
use tonic::service::Routes;

use super::accept::Connections;
use super::authority::AuthorityShim;
use super::connection::{Prefaced, Quota, Server, next_connection_id};
use super::{
    ConnectionRegistry, Http2Options, ListenerError, Peer, PeerCred, PidfdOrigin, UnixListenerBound, UnixPeer,
};
use crate::shutdown::Shutdown;

/// How a Unix socket is served.
#[derive(Clone, Debug)]
pub struct UnixOptions {
    /// The listener's name in logs and metrics.
    pub name: &'static str,
    /// Whether each peer is pinned with a pidfd. It costs a second descriptor per connection.
    pub pin_peers: bool,
    /// Connections that processes of one user may hold together.
    pub max_connections_per_user: usize,
    /// How long running streams may go on after the shutdown began.
    pub drain: Duration,
    /// The bounds of each connection.
    pub http2: Http2Options,
    /// Where the connections are registered.
    pub registry: ConnectionRegistry,
}

impl Default for UnixOptions {
    fn default() -> Self {
        Self {
            name: "unix",
            pin_peers: true,
            max_connections_per_user: 4096,
            drain: Duration::from_secs(10),
            http2: Http2Options::default(),
            registry: ConnectionRegistry::new(),
        }
    }
}

/// Serves gRPC on a Unix socket until the shutdown, then drains. The socket file is removed as soon as no more connections
/// are accepted.
///
/// # Errors
/// When the listener breaks.
pub async fn serve_unix(
    bound: UnixListenerBound,
    routes: Routes,
    options: UnixOptions,
    shutdown: Shutdown,
) -> Result<(), ListenerError> {
    let listener = bound.listener().map_err(|source| ListenerError::Socket {
        step: "listen on",
        path: bound.path().to_owned(),
        source,
    })?;
    let UnixOptions { name, pin_peers, max_connections_per_user, drain, http2, registry } = options;
    let server = Server::new(name, routes, http2, registry, &shutdown);
    let users = Quota::new(max_connections_per_user);
    let mut connections = Connections::new(name, listener, shutdown);
    let outcome = loop {
        let mut stream = match connections.next().await {
            Ok(Some(stream)) => stream,
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        };
        let cred = match peer_cred(&stream, pin_peers) {
            Ok(cred) => cred,
            Err(error) => {
                server.refuse("credentials", &"unknown", &error);
                continue;
            }
        };
        let Some(share) = users.take(cred.uid) else {
            let peer = format!("uid {}", cred.uid);
            server.refuse("too_many_connections", &peer, &"this user has too many connections");
            continue;
        };
        let served = Arc::clone(&server);
        server.spawn(async move {
            let _share = share;
            if let Err(error) = served.read_preface(&mut stream).await {
                let peer = format!("pid {} uid {}", cred.pid, cred.uid);
                return served.give_up("preface", &peer, &error);
            }
            let peer = Peer::Unix(UnixPeer { cred, connection_id: next_connection_id() });
            served.serve(Prefaced::new(AuthorityShim::new(stream)), peer, None).await;
        });
    };
    drop((connections, bound));
    server.drain(drain).await;
    outcome
}

/// Who connected, from the kernel.
fn peer_cred(stream: &UnixStream, pin: bool) -> io::Result<PeerCred> {
    let cred = getsockopt(stream, sockopt::PeerCredentials)?;
    let (pidfd, pidfd_origin) = if pin { pidfd(stream, cred.pid())? } else { (None, PidfdOrigin::Absent) };
    Ok(PeerCred {
        pid: cred.pid(),
        uid: cred.uid(),
        gid: cred.gid(),
        pidfd: pidfd.map(Arc::new),
        pidfd_origin,
    })
}

fn pidfd(socket: &impl AsFd, pid: i32) -> io::Result<(Option<std::os::fd::OwnedFd>, PidfdOrigin)> {
    match getsockopt(&socket.as_fd(), sockopt::PeerPidfd) {
        Ok(pidfd) => Ok((Some(pidfd), PidfdOrigin::Socket)),
        // The option came with Linux 6.5.
        Err(Errno::ENOPROTOOPT) => opened_pidfd(pid),
        Err(error @ (Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM)) => Err(error.into()),
        // The process is gone, or in no PID namespace that we can see.
        Err(_) => Ok((None, PidfdOrigin::Absent)),
    }
}

fn opened_pidfd(pid: i32) -> io::Result<(Option<std::os::fd::OwnedFd>, PidfdOrigin)> {
    // A negative number would be a process group, which no peer is.
    let Some(pid) = Some(pid).filter(|pid| *pid > 0).and_then(Pid::from_raw) else {
        return Ok((None, PidfdOrigin::Absent));
    };
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => Ok((Some(pidfd), PidfdOrigin::Opened)),
        Err(rustix::io::Errno::SRCH | rustix::io::Errno::INVAL) => Ok((None, PidfdOrigin::Absent)),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What kernels before 6.5 are served with.
    #[test]
    fn a_pidfd_is_opened_from_the_id_where_the_socket_has_none() {
        let own = i32::try_from(std::process::id()).unwrap();
        let (pidfd, origin) = opened_pidfd(own).unwrap();
        assert!(pidfd.is_some() && origin == PidfdOrigin::Opened);
        // Not visible, not an ID, and beyond the largest that the kernel gives.
        for pid in [0, -1, i32::MAX] {
            let (pidfd, origin) = opened_pidfd(pid).unwrap();
            assert!(pidfd.is_none() && origin == PidfdOrigin::Absent, "{pid}: {origin:?}");
        }
    }
}
