//! Clients that name a socket's path as their HTTP/2 authority, on each Unix socket of the real daemons.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use bonafide_tests::{Deployment, Settings};

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A field that is neither indexed nor compressed; RFC 7541, section 6.2.2.
fn field(name: &str, value: &str) -> Vec<u8> {
    let mut bytes = vec![0];
    for text in [name, value] {
        bytes.push(u8::try_from(text.len()).ok().filter(|length| *length < 127).unwrap());
        bytes.extend(text.as_bytes());
    }
    bytes
}

/// What the socket answers first to a call of the health service: the kind of the frame.
fn first_answer(socket: &Path, authority: &str) -> u8 {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let headers: Vec<u8> = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/grpc.health.v1.Health/Check"),
        (":authority", authority),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
    ]
    .into_iter()
    .flat_map(|(name, value)| field(name, value))
    .collect();
    let mut request = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    request.extend(frame(SETTINGS, 0, 0, &[]));
    request.extend(frame(HEADERS, 4, 1, &headers));
    // An empty message, and the end.
    request.extend(frame(0, 1, 1, &[0; 5]));
    stream.write_all(&request).unwrap();
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        stream.read_exact(&mut payload).unwrap();
        if matches!(head[3], HEADERS | RST_STREAM | GOAWAY) {
            return head[3];
        }
    }
}

#[test]
fn each_unix_socket_serves_any_authority() {
    let deployment = Deployment::start(Settings::default()).unwrap();
    for socket in [deployment.server_socket(), deployment.workload_socket(), deployment.admin_socket()] {
        let path = socket.display().to_string();
        for authority in ["localhost", path.as_str(), &path.replace('/', "%2F"), "unix:api.sock", "a b"] {
            let answer = first_answer(&socket, authority);
            assert_eq!(answer, HEADERS, "{}: {authority:?}", socket.display());
        }
    }
}
