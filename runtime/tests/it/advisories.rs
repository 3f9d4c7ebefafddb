//! What has gone wrong in other implementations of the same protocols, tried on ours. See docs/security-advisories.md.

use std::time::{Duration, Instant};

use loona_hpack::Encoder;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::echo::{connect_unix, level, unary};
use crate::tls::connect_raw;
use crate::unix;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

fn request(encoder: &mut Encoder<'_>) -> Vec<u8> {
    let list = [
        (":method", "POST"),
        (":scheme", "https"),
        (":path", "/test.Echo/Hang"),
        (":authority", "localhost"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
    ];
    encoder.encode(list.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())))
}

/// Sends, and reads until the server ends the connection. Gives the reason that it gave, if any.
async fn reason(mut stream: impl AsyncRead + AsyncWrite + Unpin, bytes: Vec<u8>) -> Option<u32> {
    let conversation = async {
        let mut first = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
        first.extend(bytes);
        // The server may end it before all of this is written; why, is still to be read.
        let _ = stream.write_all(&first).await;
        let _ = stream.flush().await;
        let mut reason = None;
        loop {
            let mut head = [0; 9];
            if stream.read_exact(&mut head).await.is_err() {
                return reason;
            }
            let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
            if stream.read_exact(&mut payload).await.is_err() {
                return reason;
            }
            if head[3] == GOAWAY {
                reason = Some(u32::from_be_bytes(payload[4..8].try_into().unwrap()));
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), conversation).await.expect("the server ends the connection")
}

const ENHANCE_YOUR_CALM: u32 = 11;

/// CVE-2023-44487 and CVE-2023-39325: requests that are cancelled as soon as they are made cost the server more than the
/// client.
#[tokio::test]
async fn advisory_rapid_reset() {
    let served = crate::tls::serve(|_| {}).await;
    let mut encoder = Encoder::new();
    let mut bytes = Vec::new();
    for stream in (1..20_000).step_by(2) {
        bytes.extend(frame(HEADERS, 4, stream, &request(&mut encoder)));
        bytes.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
    }
    assert_eq!(reason(connect_raw(&served).await, bytes).await, Some(ENHANCE_YOUR_CALM));
    served.echo.wait_open(0).await;
}

/// CVE-2023-45288: a header list that never ends is decoded for ever.
#[tokio::test]
async fn advisory_continuation_flood() {
    let served = crate::tls::serve(|_| {}).await;
    let mut bytes = frame(HEADERS, 0, 1, &request(&mut Encoder::new()));
    for _ in 0..2000 {
        // "x: y" again and again, without a table.
        bytes.extend(frame(CONTINUATION, 0, 1, &[0, 1, b'x', 1, b'y'].repeat(1000)));
    }
    assert!(reason(connect_raw(&served).await, bytes).await.is_some());
    assert_eq!(served.echo.open.load(std::sync::atomic::Ordering::SeqCst), 0);
}

/// CVE-2022-41723: a header list that takes long to decode for its length.
#[tokio::test]
async fn advisory_header_lists_are_decoded_in_no_time() {
    let (tls, local) = (crate::tls::serve(|_| {}).await, unix::serve(|_| {}));
    // A name of one and a value of 16 thousand Huffman coded zeros (five bits each), in each of a hundred lists.
    let mut bytes = Vec::new();
    for stream in (1..200).step_by(2) {
        let mut block = vec![0, 1, b'x', 0xff];
        let value = vec![0_u8; 10_000];
        let mut rest = value.len() - 0x7f;
        while rest >= 0x80 {
            block.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        block.push(rest as u8);
        block.extend(value);
        bytes.extend(frame(HEADERS, 5, stream, &block));
    }
    bytes.extend(frame(GOAWAY, 0, 0, &[0; 8]));
    let begun = Instant::now();
    let _ = reason(connect_raw(&tls).await, bytes.clone()).await;
    assert!(begun.elapsed() < Duration::from_secs(10), "over TLS: {:?}", begun.elapsed());
    // Unix sockets have a decoder of our own in front.
    let begun = Instant::now();
    let _ = reason(UnixStream::connect(local.path()).await.unwrap(), bytes).await;
    assert!(begun.elapsed() < Duration::from_secs(10), "on the Unix socket: {:?}", begun.elapsed());
}

/// GHSA-h746-rm5q-8mgq (SPIRE): the descriptors that stand for peers were not closed.
#[tokio::test]
async fn advisory_peers_leave_no_descriptors() {
    let served = unix::serve(|_| {});
    for _ in 0..300 {
        let channel = connect_unix(&served.path()).await.unwrap();
        unary(&channel, "x").await.unwrap();
        // And one that leaves without a word.
        drop(UnixStream::connect(served.path()).await.unwrap());
    }
    let pidfds = || {
        let descriptors = std::fs::read_dir("/proc/self/fd").unwrap();
        descriptors
            .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
            .filter(|target| target.to_string_lossy().contains("pidfd"))
            .count()
    };
    // Other tests run beside this one and have peers of their own.
    level(pidfds, |count| *count < 100).await;
}
