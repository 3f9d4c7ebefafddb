//! Clients behind a proxy: by headers written here, and by one that HAProxy writes.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bonafide_runtime::listener::proxy::TrustedProxies;
use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tonic::transport::Endpoint;

use crate::echo::unary;
use crate::tls::{Served, serve};

const V1: &[u8] = b"PROXY TCP4 192.0.2.7 10.0.0.1 56324 443\r\n";

fn trusting(networks: &[&str]) -> TrustedProxies {
    TrustedProxies(networks.iter().map(|network| network.parse().unwrap()).collect())
}

/// Calls over a connection that begins with `pieces`, each in a segment of its own, and gives the address that the server saw.
async fn seen(served: &Served, from: &str, to: SocketAddr, pieces: &[&[u8]]) -> Result<String, String> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(from.parse().unwrap(), 0)).unwrap();
    let mut stream = socket.connect(to).await.map_err(|error| error.to_string())?;
    stream.set_nodelay(true).unwrap();
    for piece in pieces {
        stream.write_all(piece).await.map_err(|error| error.to_string())?;
        // The other side runs in this thread: it has looked at the piece before the next one is sent.
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
    }
    let connector = TlsConnector::from(served.authority.client(None));
    let name = ServerName::try_from("localhost").unwrap();
    let stream = connector.connect(name, stream).await.map_err(|error| error.to_string())?;
    let mut stream = Some(TokioIo::new(stream));
    let channel = Endpoint::from_static("http://localhost")
        .connect_with_connector(tower::service_fn(move |_: Uri| {
            let stream = stream.take().ok_or_else(|| std::io::Error::other("there was one connection"));
            async move { stream }
        }))
        .await
        .map_err(|error| error.to_string())?;
    let answer = unary(&channel, "x").await.map_err(|status| status.to_string())?;
    let (_, address) = answer.split_once(" from ip=").ok_or("no address")?;
    Ok(address.split(' ').next().unwrap_or_default().to_owned())
}

fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    header.extend([command, family]);
    header.extend(u16::try_from(rest.len()).unwrap().to_be_bytes());
    header.extend(rest);
    header
}

#[tokio::test]
async fn the_client_is_whom_the_header_names() {
    let served = serve(|options| options.trusted_proxies = trusting(&["127.0.0.0/30"])).await;
    let four = v2(0x21, 0x11, &[192, 0, 2, 8, 10, 0, 0, 1, 1, 1, 2, 2, 4, 0, 1, 0]);
    let mut six = [0; 36];
    six[..2].copy_from_slice(&[0x20, 0x01]);
    let six = v2(0x21, 0x21, &six);
    let long = v2(0x21, 0x11, &[&[192, 0, 2, 9, 10, 0, 0, 1, 1, 1, 2, 2, 4, 3, 0][..], &[0; 768]].concat());
    for (pieces, address) in [
        (vec![V1], "192.0.2.7"),
        (V1.chunks(1).collect(), "192.0.2.7"),
        (vec![&b"PROXY TCP6 2001:db8::1 2001:db8::2 1 2\r\n"[..]], "2001:db8::1"),
        (vec![&four], "192.0.2.8"),
        (four.chunks(3).collect(), "192.0.2.8"),
        (vec![&six], "2001::"),
        (vec![&long], "192.0.2.9"),
        (long.chunks(300).collect(), "192.0.2.9"),
        // A proxy that speaks for itself, and one that does not say.
        (vec![&v2(0x20, 0, &[])], "127.0.0.1"),
        (vec![&b"PROXY UNKNOWN\r\n"[..]], "127.0.0.1"),
        (vec![], "127.0.0.1"),
    ] {
        let found = seen(&served, "127.0.0.1", served.addr, &pieces).await;
        assert_eq!(found.as_deref(), Ok(address), "{pieces:x?}");
    }
    // One whose word does not count may only come for itself.
    assert_eq!(seen(&served, "127.0.0.7", served.addr, &[]).await.as_deref(), Ok("127.0.0.7"));
    for header in [V1, &four, b"PROXY UNKNOWN\r\n"] {
        seen(&served, "127.0.0.7", served.addr, &[header]).await.unwrap_err();
    }
    for garbage in
        [&b"PROXY TCP4 here there 1 2\r\n"[..], b"\r\n\r\n\r\n\r\n\r\n\r\n", &v2(0x21, 0x11, &[1, 2, 3])]
    {
        seen(&served, "127.0.0.1", served.addr, &[garbage]).await.unwrap_err();
    }
    // Twice is once too often: what follows the header must be TLS.
    seen(&served, "127.0.0.1", served.addr, &[V1, V1]).await.unwrap_err();
}

#[tokio::test]
async fn without_trusted_networks_a_header_is_no_beginning_of_tls() {
    let served = serve(|_| {}).await;
    seen(&served, "127.0.0.1", served.addr, &[V1]).await.unwrap_err();
    assert_eq!(seen(&served, "127.0.0.1", served.addr, &[]).await.as_deref(), Ok("127.0.0.1"));
}

#[tokio::test]
async fn half_a_header_ends_in_time_and_places_are_those_of_the_client() {
    let served = serve(|options| {
        options.trusted_proxies = trusting(&["127.0.0.1/32"]);
        options.handshake_timeout = Duration::from_millis(300);
        options.max_handshakes_per_address = 2;
    })
    .await;
    let mut waiting = Vec::new();
    for first in [&V1[..20], b"", b"\r\n\r\n\0"] {
        let mut stream = TcpStream::connect(served.addr).await.unwrap();
        stream.write_all(first).await.unwrap();
        waiting.push(stream);
    }
    // The proxy is not held to the limit that its clients have.
    assert_eq!(seen(&served, "127.0.0.1", served.addr, &[V1]).await.as_deref(), Ok("192.0.2.7"));
    for mut stream in waiting {
        let read = tokio::time::timeout(Duration::from_secs(10), stream.read(&mut [0])).await;
        assert!(matches!(read, Ok(Ok(0) | Err(_))), "left open: {read:?}");
    }
    // Each client is, whatever the proxy.
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(served.addr).await.unwrap();
        stream.write_all(V1).await.unwrap();
        held.push(stream);
    }
    let mut third = TcpStream::connect(served.addr).await.unwrap();
    third.write_all(V1).await.unwrap();
    let read = tokio::time::timeout(Duration::from_millis(250), third.read(&mut [0])).await;
    assert!(matches!(read, Ok(Ok(0) | Err(_))), "the third of a client with two places: {read:?}");
}

/// Ends the program with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn haproxy(folder: &Path, to: SocketAddr, ports: [u16; 2]) -> Option<Running> {
    let [first, second] = ports;
    let configuration = format!(
        "defaults\n mode tcp\n timeout connect 5s\n timeout client 20s\n timeout server 20s\n\
         listen v1\n bind 127.0.0.1:{first}\n server s {to} send-proxy\n\
         listen v2\n bind 127.0.0.1:{second}\n server s {to} send-proxy-v2 proxy-v2-options crc32c,unique-id,authority\n \
         unique-id-format %ci-%cp\n"
    );
    let path = folder.join("haproxy.cfg");
    std::fs::write(&path, configuration).unwrap();
    let mut command = Command::new("haproxy");
    command.arg("-db").arg("-f").arg(path).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().ok().map(Running)
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// HAProxy names the client, in both versions; with the second come a checksum and TLVs.
#[tokio::test]
async fn haproxy_names_its_client() {
    let served = serve(|options| options.trusted_proxies = trusting(&["127.0.0.1/32"])).await;
    let folder = tempfile::tempdir().unwrap();
    let ports = [free_port(), free_port()];
    let Some(mut proxy) = haproxy(folder.path(), served.addr, ports) else {
        eprintln!("SKIPPED: haproxy_names_its_client: haproxy is not installed");
        return;
    };
    for port in ports {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        let found = loop {
            let found = seen(&served, "127.0.0.9", address, &[]).await;
            if found.is_ok() || tokio::time::Instant::now() > deadline {
                break found;
            }
            assert!(proxy.0.try_wait().unwrap().is_none(), "haproxy has ended");
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        assert_eq!(found.as_deref(), Ok("127.0.0.9"));
    }
}
