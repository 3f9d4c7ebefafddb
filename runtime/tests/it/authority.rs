//! Clients that name the socket as their authority, made by hand frame by frame.

use std::path::Path;
use std::time::{Duration, Instant};

use loona_hpack::{Decoder, Encoder};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::echo::{Echo, connect_unix, unary};
use crate::unix::serve;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// How a call ended.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Answer(String),
    Reset(u32),
    GoAway(u32),
    Closed,
}

/// An HTTP/2 client that sends what it is told to.
struct Raw<I> {
    io: I,
    encoder: Encoder<'static>,
    decoder: Decoder<'static>,
    stream: u32,
}

impl<I: AsyncRead + AsyncWrite + Unpin> Raw<I> {
    async fn new(mut io: I) -> Self {
        io.write_all(PREFACE).await.unwrap();
        io.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
        Self { io, encoder: Encoder::new(), decoder: Decoder::new(), stream: 1 }
    }

    fn header_block(&mut self, authority: Option<&str>) -> Vec<u8> {
        let mut list = vec![(":method", "POST"), (":scheme", "http"), (":path", "/test.Echo/Unary")];
        list.extend(authority.map(|authority| (":authority", authority)));
        list.extend([("te", "trailers"), ("content-type", "application/grpc"), ("user-agent", "by hand")]);
        self.encoder.encode(list.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())))
    }

    /// Sends a request in one HEADERS frame and reads until it has ended.
    async fn call(&mut self, authority: Option<&str>) -> Outcome {
        let block = self.header_block(authority);
        let frames = frame(HEADERS, 4, self.stream, &block);
        self.send(frames).await
    }

    /// Sends these frames with the request's body and reads until the call has ended.
    async fn send(&mut self, mut frames: Vec<u8>) -> Outcome {
        // A gRPC message: not compressed, five bytes long; field 1, a text of three bytes.
        frames.extend(frame(DATA, 1, self.stream, &[0, 0, 0, 0, 5, 0x0a, 3, b'h', b'e', b'y']));
        let stream = self.stream;
        self.stream += 2;
        if self.io.write_all(&frames).await.is_err() {
            return Outcome::Closed;
        }
        let ended = tokio::time::timeout(Duration::from_secs(10), self.outcome(stream)).await;
        ended.expect("no answer in time")
    }

    async fn outcome(&mut self, wanted: u32) -> Outcome {
        let mut text = String::new();
        loop {
            let mut head = [0; 9];
            if self.io.read_exact(&mut head).await.is_err() {
                return Outcome::Closed;
            }
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let (kind, flags) = (head[3], head[4]);
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            let mut payload = vec![0; length];
            if self.io.read_exact(&mut payload).await.is_err() {
                return Outcome::Closed;
            }
            let number = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
            match kind {
                DATA if length > 7 => text = String::from_utf8(payload[7..].to_vec()).unwrap(),
                HEADERS => {
                    let list = self.decoder.decode(&payload).unwrap();
                    if flags & 1 != 0 {
                        assert_eq!(stream, wanted);
                        let status =
                            list.iter().find(|(name, _)| name == b"grpc-status").map(|(_, value)| &value[..]);
                        assert_eq!(status, Some(&b"0"[..]), "{list:?}");
                        return Outcome::Answer(text);
                    }
                }
                RST_STREAM => return Outcome::Reset(number(0)),
                // Answering may fail when the server has left; why it left is still to be read.
                SETTINGS if flags & 1 == 0 => drop(self.io.write_all(&frame(SETTINGS, 1, 0, &[])).await),
                PING if flags & 1 == 0 => drop(self.io.write_all(&frame(PING, 1, 0, &payload)).await),
                GOAWAY => return Outcome::GoAway(number(4)),
                _ => {}
            }
        }
    }
}

async fn raw(path: &Path) -> Raw<UnixStream> {
    Raw::new(UnixStream::connect(path).await.unwrap()).await
}

fn is_answered_as(outcome: &Outcome, authority: &str) -> bool {
    matches!(outcome, Outcome::Answer(text) if text.starts_with(&format!("hey authority={authority} from pid=")))
}

#[tokio::test]
async fn any_authority_is_served_also_from_the_table() {
    let served = serve(|_| {});
    for authority in ["/tmp/x/api.sock", "%2Ftmp%2Fapi.sock", "unix:/tmp/api.sock", "a b", ""] {
        let mut client = raw(&served.path()).await;
        for request in 1..=3 {
            let outcome = client.call(Some(authority)).await;
            assert!(is_answered_as(&outcome, "localhost"), "{authority:?}, request {request}: {outcome:?}");
        }
    }
}

#[tokio::test]
async fn fit_authorities_arrive_as_they_are() {
    let served = serve(|_| {});
    let mut client = raw(&served.path()).await;
    for authority in ["localhost", "agent_socket", "example.org:8081"] {
        let outcome = client.call(Some(authority)).await;
        assert!(is_answered_as(&outcome, authority), "{authority}: {outcome:?}");
    }
    assert!(is_answered_as(&client.call(None).await, "none"));
}

#[tokio::test]
async fn one_connection_may_change_its_mind() {
    let served = serve(|_| {});
    let mut client = raw(&served.path()).await;
    for (authority, seen) in
        [("a:1", "a:1"), ("/x", "localhost"), ("a:1", "a:1"), ("/y", "localhost"), ("/x", "localhost")]
    {
        let outcome = client.call(Some(authority)).await;
        assert!(is_answered_as(&outcome, seen), "{authority}: {outcome:?}");
    }
}

#[tokio::test]
async fn torn_and_padded_blocks_are_served() {
    let served = serve(|_| {});
    let mut client = raw(&served.path()).await;
    for _ in 0..2 {
        let block = client.header_block(Some("/tmp/api.sock"));
        let (first, rest) = block.split_at(5);
        // Padded by two bytes, with a priority, then two continuations.
        let mut payload = vec![2, 0, 0, 0, 0, 7];
        payload.extend(first);
        payload.extend([0, 0]);
        let mut frames = frame(HEADERS, 0x28, client.stream, &payload);
        frames.extend(frame(CONTINUATION, 0, client.stream, &rest[..1]));
        frames.extend(frame(CONTINUATION, 4, client.stream, &rest[1..]));
        let outcome = client.send(frames).await;
        assert!(is_answered_as(&outcome, "localhost"), "{outcome:?}");
    }
}

#[tokio::test]
async fn what_cannot_be_decoded_ends_the_connection_with_a_reason() {
    const PROTOCOL_ERROR: u32 = 1;
    const FRAME_SIZE_ERROR: u32 = 6;
    let served = serve(|_| {});
    let flood: Vec<u8> = frame(HEADERS, 0, 1, &[0x82])
        .into_iter()
        .chain((0..100).flat_map(|_| frame(CONTINUATION, 0, 1, &[])))
        .collect();
    let cases = [
        ("an index that does not exist", frame(HEADERS, 4, 1, &[0xff, 0x00]), PROTOCOL_ERROR),
        ("a block without end", flood, PROTOCOL_ERROR),
        ("a frame within a block", frame(HEADERS, 0, 1, &[0x82]), PROTOCOL_ERROR),
        ("too large a frame", frame(HEADERS, 4, 1, &[0x82; 16_385]), FRAME_SIZE_ERROR),
        ("padding longer than the frame", frame(HEADERS, 0xc, 1, &[9, 0x82]), PROTOCOL_ERROR),
    ];
    for (what, frames, code) in cases {
        // The same before and after the shim has begun to rewrite.
        for authority in [None, Some("/tmp/api.sock")] {
            let mut client = raw(&served.path()).await;
            let mut frames = frames.clone();
            if authority.is_some() {
                assert!(is_answered_as(&client.call(authority).await, "localhost"));
                let mut at = 0;
                while at < frames.len() {
                    frames[at + 8] = 3;
                    at += 9 + u32::from_be_bytes([0, frames[at], frames[at + 1], frames[at + 2]]) as usize;
                }
            }
            assert_eq!(client.send(frames).await, Outcome::GoAway(code), "{what}, {authority:?}");
        }
    }
}

/// Why the shim exists. When this fails, h2 has learned it and the shim can go.
#[tokio::test]
async fn h2_alone_resets_such_requests() {
    let (client, server) = tokio::io::duplex(64 * 1024);
    let service = hyper_util::service::TowerToHyperService::new(Echo::new().routes());
    let connection = hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new())
        .serve_connection(hyper_util::rt::TokioIo::new(server), service);
    tokio::spawn(connection);
    let mut client = Raw::new(client).await;
    assert_eq!(client.call(Some("/tmp/api.sock")).await, Outcome::Reset(1));
}

/// Prints what the shim costs; machines differ too much for a bound.
#[tokio::test]
async fn the_cost_is_shown() {
    const CALLS: u32 = 300;
    let served = serve(|_| {});
    let bare = tempfile::tempdir().unwrap();
    let bare_path = bare.path().join("bare.sock");
    let listener = tokio::net::UnixListener::bind(&bare_path).unwrap();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let service = hyper_util::service::TowerToHyperService::new(Echo::new().routes());
        let _ = hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new())
            .serve_connection(hyper_util::rt::TokioIo::new(stream), service)
            .await;
    });
    for (what, path) in [("without the shim", bare_path), ("through the shim", served.path())] {
        let channel = connect_unix(&path).await.unwrap();
        unary(&channel, "warm").await.unwrap();
        let begin = Instant::now();
        for _ in 0..CALLS {
            unary(&channel, "x").await.unwrap();
        }
        eprintln!("unary call {what}: {:?}", begin.elapsed() / CALLS);
    }
    let mut client = raw(&served.path()).await;
    client.call(Some("/tmp/api.sock")).await;
    let begin = Instant::now();
    for _ in 0..CALLS {
        client.call(Some("/tmp/api.sock")).await;
    }
    eprintln!("raw call, rewritten: {:?}", begin.elapsed() / CALLS);
}
