//! Where calls come in: accept loops for gRPC on Unix sockets and on mutual TLS.
//!
//! The loops are our own, on hyper's HTTP/2, because tonic's was measured to spin at full CPU without a log line when
//! descriptors run out, to wait for ever at shutdown while a stream is open, and to leave the TLS handshake unbounded
//! (decision record 0005). What they add: a bounded wait after accept errors, limits on handshakes and connections, a
//! maximum connection age that never cuts a running stream, a registry through which the application closes
//! connections whose peer has lost its standing, and a shutdown that ends.
//!
//! Each request carries an `Arc<`[`Peer`]`>` among its extensions.

pub mod authority;

pub(crate) mod accept;
mod bind;
mod connection;
mod hpack;
mod https;
mod limits;
pub mod proxy;
mod registry;
mod tls;
mod unix;

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bonafide_identity::SpiffeId;
use thiserror::Error;

use crate::telemetry::{MetricDoc, MetricKind, Stability};

pub use bind::{UnixListenerBound, bind_unix};
pub use https::{HttpsOptions, serve_https};
pub use limits::{DescriptorLimit, forbid_core_dumps, raise_descriptor_limit};
pub use registry::{CloseMode, ConnectionRegistry};
pub use tls::{TlsOptions, serve_tls, serve_tls_unix};
pub use unix::{UnixOptions, serve_unix};

/// Why a listener could not be made or ended.
#[derive(Debug, Error)]
pub enum ListenerError {
    /// The socket path does not fit into the kernel's 108 bytes.
    #[error("the socket path {} is {length} bytes long; the limit is {limit} there", path.display())]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length.
        length: usize,
        /// The longest that would fit: 107, or less when the file name is very short.
        limit: usize,
    },
    /// A live server answers on the path.
    #[error("another process is serving on {}; stop it or choose another path", path.display())]
    AlreadyServed {
        /// The path.
        path: PathBuf,
    },
    /// Something that is no socket stands on the path.
    #[error("{} exists and is not a socket; remove it or choose another path", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// A folder of the path is somebody else's, where anybody could have made it.
    #[error(
        "{} belongs to user {owner}, in a folder where anybody may make files: remove it, or choose a path in which only \
         root and this process's user may write",
        path.display()
    )]
    ForeignFolder {
        /// The folder.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// A step of making the socket failed.
    #[error("cannot {step} {}: {source}", path.display())]
    Socket {
        /// What was tried.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Accepting failed in a way that no waiting heals.
    #[error("the {listener} listener is broken: {source}")]
    Accept {
        /// The listener's name.
        listener: &'static str,
        /// What accept said.
        source: io::Error,
    },
    /// The limit on descriptors could not be read or raised.
    #[error("cannot raise the limit on file descriptors: {0}")]
    DescriptorLimit(io::Error),
    /// Core dumps could not be forbidden.
    #[error("cannot forbid core dumps: {0}")]
    CoreLimit(io::Error),
}

/// The process at the other end of a Unix socket, as the kernel vouched for it when it connected.
#[derive(Clone, Debug)]
pub struct PeerCred {
    /// The process ID in our PID namespace; 0 when the process is not visible there.
    pub pid: i32,
    /// The effective user ID at the time of connecting.
    pub uid: u32,
    /// The effective group ID at the time of connecting.
    pub gid: u32,
    /// A descriptor that stands for this very process, whatever becomes of its ID. `None` when not asked for or when
    /// the process was gone already.
    pub pidfd: Option<Arc<OwnedFd>>,
    /// How sure it is that `pidfd` is the process that connected.
    pub pidfd_origin: PidfdOrigin,
}

/// Where a pidfd came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PidfdOrigin {
    /// From the socket (SO_PEERPIDFD): it is the process that connected, without doubt.
    Socket,
    /// Opened from the process ID after the fact, on kernels before 6.5: the ID may have been reused in between, so
    /// the holder must compare start time and user.
    Opened,
    /// There is none.
    Absent,
}

/// A peer on a Unix socket.
#[derive(Clone, Debug)]
pub struct UnixPeer {
    /// The process.
    pub cred: PeerCred,
    /// The number of the connection, unique in this process.
    pub connection_id: u64,
}

/// A peer on TLS.
#[derive(Clone, Debug)]
pub struct TlsPeer {
    /// Where it connects from, behind a trusted proxy as that proxy says; the unspecified address on a Unix socket.
    pub addr: SocketAddr,
    /// The verified client chain in DER, leaf first; empty when it sent none.
    pub certificates: Arc<Vec<Vec<u8>>>,
    /// Who it is; `None` when it sent no certificate.
    pub spiffe_id: Option<SpiffeId>,
    /// The number of the connection, unique in this process.
    pub connection_id: u64,
}

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub enum Peer {
    /// A process on this machine.
    Unix(UnixPeer),
    /// A client on the network.
    Tls(TlsPeer),
}

impl Peer {
    /// The number of the connection, unique in this process.
    pub fn connection_id(&self) -> u64 {
        match self {
            Self::Unix(peer) => peer.connection_id,
            Self::Tls(peer) => peer.connection_id,
        }
    }
}

/// The bounds of one HTTP/2 connection.
#[derive(Clone, Debug)]
pub struct Http2Options {
    /// Streams that a client may have open at once.
    pub max_concurrent_streams: u32,
    /// Bytes of one decoded header list, counted as HTTP/2 does (32 more per field).
    pub max_header_list_size: u32,
    /// Bytes that a client may send on one stream before the application has read them.
    pub stream_window: u32,
    /// The same over all streams of a connection.
    pub connection_window: u32,
    /// Response bytes that are buffered for one stream.
    pub max_send_buffer: usize,
    /// How long a client may take to send the HTTP/2 preface.
    pub preface_timeout: Duration,
    /// How often an idle peer is pinged; `None` is never.
    pub keepalive_interval: Option<Duration>,
    /// How long it may take to answer a ping.
    pub keepalive_timeout: Duration,
}

impl Default for Http2Options {
    fn default() -> Self {
        Self {
            max_concurrent_streams: 256,
            max_header_list_size: 16 * 1024,
            stream_window: 64 * 1024,
            connection_window: 256 * 1024,
            max_send_buffer: 64 * 1024,
            preface_timeout: Duration::from_secs(10),
            keepalive_interval: None,
            keepalive_timeout: Duration::from_secs(20),
        }
    }
}

/// The metrics of listeners.
pub const LISTENER_METRICS: &[MetricDoc] = &[
    MetricDoc {
        name: "bonafide_listener_accept_errors_total",
        kind: MetricKind::Counter,
        unit: "",
        labels: &["listener"],
        help: "Errors of accept, among them those for want of file descriptors.",
        stability: Stability::Experimental,
    },
    MetricDoc {
        name: "bonafide_listener_connections",
        kind: MetricKind::Gauge,
        unit: "",
        labels: &["listener"],
        help: "Open connections.",
        stability: Stability::Experimental,
    },
    MetricDoc {
        name: "bonafide_listener_connections_total",
        kind: MetricKind::Counter,
        unit: "",
        labels: &["listener"],
        help: "Connections that were served.",
        stability: Stability::Experimental,
    },
    MetricDoc {
        name: "bonafide_listener_handshake_failures_total",
        kind: MetricKind::Counter,
        unit: "",
        labels: &["listener", "reason"],
        help: "Connections that ended before their first request: refused, failed or too slow.",
        stability: Stability::Experimental,
    },
];
