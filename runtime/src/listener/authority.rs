//! Lets clients connect that name the socket as their HTTP/2 authority.
//!
//! On a Unix socket there is no host to put into `:authority`. grpc-go sends `localhost`; grpc-java sends the socket's
//! path, some C-core and Envoy builds its percent-encoded form. `h2` takes neither for an authority and resets the stream
//! before anyone can look at it. This shim stands between the socket and `h2` and puts `localhost` in the place of an
//! authority that `h2` would refuse.
//!
//! HPACK is stateful: both ends of a connection keep a table of header fields that later requests refer to. The shim
//! follows the client's table with a decoder of its own. As long as every authority is fine, each byte goes
//! through as it came, and `h2` follows the same table. From the first authority that needs a change on, header blocks are written anew
//! without any reference to a table, so that the one in `h2` does not matter any more. Changing blocks one by one was
//! rejected: a table entry that is changed on one side only makes the two tables differ for good. A patched `h2` was
//! rejected because it would have to be carried along with every release (decision record 0006).
//!
//! The shim judges nothing else. What breaks the rules of HTTP/2 is passed on for `h2` to answer; only where it cannot be
//! passed on faithfully does `h2` get a header block that no table can decode, which ends the connection.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::uri::Authority;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::hpack::Decoder;

/// What takes the place of an authority that is none.
const LOCALHOST: &[u8] = b"localhost";
/// A frame's head: length (3), kind, flags, stream (4).
const HEAD: usize = 9;
/// The largest frame that the listener has announced it takes.
const MAX_FRAME: usize = super::connection::MAX_FRAME_SIZE as usize;
/// The largest header block, as it comes and decoded (with 32 bytes per field, as HTTP/2 counts).
const MAX_BLOCK: usize = 64 * 1024;
/// The most frames of one block: a block of the largest size in frames of the largest size needs five.
const MAX_FRAMES: u32 = 64;
/// The largest dynamic table: HTTP/2's default, which the listener leaves as it is.
const MAX_TABLE: usize = 4096;
/// Buffers larger than this are given back when they are empty.
const KEEP: usize = 4096;

const HEADERS: u8 = 0x1;
const PUSH_PROMISE: u8 = 0x5;
const CONTINUATION: u8 = 0x9;

const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
const PRIORITY_LENGTH: usize = 5;

/// Rewrites what a client sends after the connection preface. It takes bytes in pieces of any size and never fails:
/// what it cannot follow it turns into something that `h2` refuses.
pub struct AuthorityRewriter {
    state: State,
    decoder: Decoder,
    block: Option<Block>,
    fields: Fields,
    rewriting: bool,
}

impl std::fmt::Debug for AuthorityRewriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuthorityRewriter")
            .field("state", &self.state)
            .field("rewriting", &self.rewriting)
            .finish()
    }
}

#[derive(Debug)]
enum State {
    /// Within a frame's head.
    Head { bytes: [u8; HEAD], have: usize },
    /// Within a payload that is not ours to read.
    Pass { left: usize },
    /// Within the payload of a frame of a header block.
    Collect { left: usize, payload_from: usize },
    /// Everything to come goes through: `h2` has seen, or is about to see, why this connection ends.
    Raw,
    /// Nothing more goes through.
    Ended,
}

const NEXT_FRAME: State = State::Head { bytes: [0; HEAD], have: 0 };

/// A header block on its way: HEADERS and the CONTINUATIONs after it.
#[derive(Debug)]
struct Block {
    stream: u32,
    flags: u8,
    priority: Option<[u8; PRIORITY_LENGTH]>,
    /// All frames as they came.
    frames: Vec<u8>,
    count: u32,
    /// The HPACK in them, joined.
    hpack: Vec<u8>,
}

/// A decoded header list in one buffer.
#[derive(Debug, Default)]
struct Fields {
    bytes: Vec<u8>,
    lengths: Vec<(usize, usize)>,
    size: usize,
    unfit: bool,
    /// The last authority that was found fit: clients repeat it with each request.
    known: Vec<u8>,
}

impl Default for AuthorityRewriter {
    fn default() -> Self {
        Self::new()
    }
}

impl AuthorityRewriter {
    /// For a new connection whose preface has been read.
    pub fn new() -> Self {
        let decoder = Decoder::new(MAX_TABLE);
        Self { state: NEXT_FRAME, decoder, block: None, fields: Fields::default(), rewriting: false }
    }

    /// How many of the bytes to come go through unseen, so that they need not be fed.
    pub fn passing(&self) -> usize {
        match self.state {
            State::Pass { left } => left,
            State::Raw => usize::MAX,
            State::Head { .. } | State::Collect { .. } | State::Ended => 0,
        }
    }

    /// Notes that `count` bytes went through unseen; at most [`AuthorityRewriter::passing`].
    pub fn passed(&mut self, count: usize) {
        if let State::Pass { left } = &mut self.state {
            *left = left.saturating_sub(count);
            if *left == 0 {
                self.state = NEXT_FRAME;
            }
        }
    }

    /// Whether the connection is over for the shim: nothing that is fed any more comes out.
    pub fn has_ended(&self) -> bool {
        matches!(self.state, State::Ended)
    }

    /// Takes the client's next bytes and appends what `h2` is to see.
    pub fn feed(&mut self, mut input: &[u8], out: &mut Vec<u8>) {
        while !input.is_empty() {
            match &mut self.state {
                State::Head { bytes, have } => {
                    let (now, later) = input.split_at(input.len().min(HEAD - *have));
                    bytes[*have..*have + now.len()].copy_from_slice(now);
                    *have += now.len();
                    input = later;
                    if *have == HEAD {
                        let head = *bytes;
                        self.on_head(head, out);
                    }
                }
                State::Pass { .. } | State::Raw => {
                    let (now, later) = input.split_at(input.len().min(self.passing()));
                    out.extend_from_slice(now);
                    self.passed(now.len());
                    input = later;
                }
                State::Collect { left, payload_from } => {
                    let (now, later) = input.split_at(input.len().min(*left));
                    *left -= now.len();
                    input = later;
                    let (done, payload_from) = (*left == 0, *payload_from);
                    if let Some(block) = &mut self.block {
                        block.frames.extend_from_slice(now);
                    }
                    if done {
                        self.on_payload(payload_from, out);
                    }
                }
                State::Ended => return,
            }
        }
    }

    fn on_head(&mut self, head: [u8; HEAD], out: &mut Vec<u8>) {
        let [l1, l2, l3, kind, flags, s1, s2, s3, s4] = head;
        let length = usize::from(l1) << 16 | usize::from(l2) << 8 | usize::from(l3);
        let stream = u32::from_be_bytes([s1, s2, s3, s4]) & 0x7fff_ffff;
        let wanted = match &self.block {
            None => kind == HEADERS,
            Some(block) => kind == CONTINUATION && stream == block.stream,
        };
        if wanted && length <= MAX_FRAME {
            let block = self.block.get_or_insert_with(|| Block {
                stream,
                flags,
                priority: None,
                frames: Vec::with_capacity(HEAD + length),
                count: 0,
                hpack: Vec::new(),
            });
            block.frames.extend_from_slice(&head);
            block.count += 1;
            // The end of the block shows in its last frame.
            block.flags |= flags & END_HEADERS;
            let payload_from = block.frames.len();
            if block.count > MAX_FRAMES || payload_from + length > MAX_BLOCK + HEAD * MAX_FRAMES as usize {
                return self.refuse(stream, out);
            }
            self.state = State::Collect { left: length, payload_from };
            if length == 0 {
                self.on_payload(payload_from, out);
            }
        } else if let Some(block) = self.block.take() {
            // Another frame within a block, or too large a one: h2 must see that it stands where it must not.
            frame(out, HEADERS, 0, block.stream, &[]);
            out.extend_from_slice(&head);
            self.state = State::Raw;
        } else if kind == PUSH_PROMISE {
            // Forbidden to clients, and it would change the tables.
            self.refuse(stream, out);
        } else {
            out.extend_from_slice(&head);
            // A HEADERS frame here is too large: h2 refuses it by its head.
            self.state = match (kind, length) {
                (HEADERS, _) => State::Raw,
                (_, 0) => NEXT_FRAME,
                (_, left) => State::Pass { left },
            };
        }
    }

    /// A frame of the block is complete.
    fn on_payload(&mut self, payload_from: usize, out: &mut Vec<u8>) {
        let Some(mut block) = self.block.take() else { return };
        let payload = &block.frames[payload_from..];
        let first = block.count == 1;
        let Some((priority, fragment)) =
            (if first { unwrap(block.flags, payload) } else { Some((None, payload)) })
        else {
            // Padding or priority do not fit into the frame: h2 refuses it as it is.
            out.extend_from_slice(&block.frames);
            self.state = State::Raw;
            return;
        };
        if first {
            block.priority = priority;
        }
        if block.hpack.len() + fragment.len() > MAX_BLOCK {
            return self.refuse(block.stream, out);
        }
        if block.flags & END_HEADERS == 0 {
            block.hpack.extend_from_slice(fragment);
            self.block = Some(block);
            self.state = NEXT_FRAME;
            return;
        }
        let decoded = if first {
            self.fields.decode(&mut self.decoder, fragment)
        } else {
            block.hpack.extend_from_slice(fragment);
            self.fields.decode(&mut self.decoder, &block.hpack)
        };
        if !decoded {
            return self.refuse(block.stream, out);
        }
        self.rewriting |= self.fields.unfit;
        if self.rewriting {
            self.fields.write(&block, out);
        } else {
            out.extend_from_slice(&block.frames);
        }
        self.fields.clear();
        self.state = NEXT_FRAME;
    }

    /// Ends the connection through h2: index 0 exists in no table.
    fn refuse(&mut self, stream: u32, out: &mut Vec<u8>) {
        frame(out, HEADERS, END_HEADERS | END_STREAM, stream, &[0x80]);
        self.block = None;
        self.state = State::Ended;
    }
}

impl Fields {
    /// Whether the block could be decoded and is not too large.
    fn decode(&mut self, decoder: &mut Decoder, hpack: &[u8]) -> bool {
        self.clear();
        let decoded = decoder.decode(hpack, |name, value| {
            self.size = self.size.saturating_add(name.len() + value.len() + 32);
            if self.size > MAX_BLOCK {
                return;
            }
            self.unfit |= names_authority(name) && !self.is_fit(value);
            self.bytes.extend_from_slice(name);
            self.bytes.extend_from_slice(value);
            self.lengths.push((name.len(), value.len()));
        });
        decoded.is_ok() && self.size <= MAX_BLOCK
    }

    fn is_fit(&mut self, value: &[u8]) -> bool {
        if !self.known.is_empty() && value == self.known {
            return true;
        }
        let fit = Authority::try_from(value).is_ok();
        if fit && value.len() <= KEEP {
            self.known.clear();
            self.known.extend_from_slice(value);
        }
        fit
    }

    /// Writes the list as literals that no table keeps, in one HEADERS frame and as many CONTINUATIONs as it takes.
    fn write(&mut self, block: &Block, out: &mut Vec<u8>) {
        let bytes = std::mem::take(&mut self.bytes);
        let mut payload = Vec::with_capacity(PRIORITY_LENGTH + bytes.len() + 4 * self.lengths.len());
        payload.extend(block.priority.iter().flatten());
        let mut rest = &bytes[..];
        for (name, value) in std::mem::take(&mut self.lengths) {
            let (name, after) = rest.split_at(name);
            let (value, after) = after.split_at(value);
            rest = after;
            let fit = !names_authority(name) || self.is_fit(value);
            payload.push(0);
            literal(&mut payload, name);
            literal(&mut payload, if fit { value } else { LOCALHOST });
        }
        let kept = block.flags & (END_STREAM | if block.priority.is_some() { PRIORITY } else { 0 });
        let mut parts = payload.chunks(MAX_FRAME);
        let first = parts.next().unwrap_or_default();
        let mut last = parts.len() == 0;
        frame(out, HEADERS, kept | if last { END_HEADERS } else { 0 }, block.stream, first);
        while let Some(part) = parts.next() {
            last = parts.len() == 0;
            frame(out, CONTINUATION, if last { END_HEADERS } else { 0 }, block.stream, part);
        }
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(KEEP);
        self.lengths.clear();
        self.lengths.shrink_to(KEEP / 32);
        self.size = 0;
        self.unfit = false;
    }
}

/// `host` carries what `:authority` should have where a proxy has translated HTTP/1.
fn names_authority(name: &[u8]) -> bool {
    name == b":authority" || name == b"host"
}

/// The priority and the HPACK in the payload of a HEADERS frame; `None` when it is too short for what its flags
/// promise.
fn unwrap(flags: u8, payload: &[u8]) -> Option<(Option<[u8; PRIORITY_LENGTH]>, &[u8])> {
    let (padding, rest) = match flags & PADDED {
        0 => (0, payload),
        _ => payload.split_first().map(|(padding, rest)| (usize::from(*padding), rest))?,
    };
    let (priority, rest) = match flags & PRIORITY {
        0 => (None, rest),
        _ => rest.split_first_chunk().map(|(priority, rest)| (Some(*priority), rest))?,
    };
    Some((priority, &rest[..rest.len().checked_sub(padding)?]))
}

fn literal(out: &mut Vec<u8>, text: &[u8]) {
    // An integer with a prefix of seven bits (RFC 7541, section 5.1), then the text as it is.
    match text.len().checked_sub(0x7f) {
        None => out.push(text.len() as u8),
        Some(mut rest) => {
            out.push(0x7f);
            while rest >= 0x80 {
                out.push(rest as u8 | 0x80);
                rest >>= 7;
            }
            out.push(rest as u8);
        }
    }
    out.extend_from_slice(text);
}

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let [_, l1, l2, l3] = (payload.len() as u32).to_be_bytes();
    out.extend_from_slice(&[l1, l2, l3, kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

/// A connection whose client may name any authority. The preface must have been read.
#[derive(Debug)]
pub struct AuthorityShim<I> {
    inner: I,
    rewriter: AuthorityRewriter,
    ready: Vec<u8>,
    taken: usize,
}

impl<I> AuthorityShim<I> {
    /// In front of a new connection.
    pub fn new(inner: I) -> Self {
        Self { inner, rewriter: AuthorityRewriter::new(), ready: Vec::new(), taken: 0 }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for AuthorityShim<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            let ready = &this.ready[this.taken..];
            if !ready.is_empty() {
                let count = ready.len().min(buffer.remaining());
                buffer.put_slice(&ready[..count]);
                this.taken += count;
                return Poll::Ready(Ok(()));
            }
            this.ready.clear();
            this.ready.shrink_to(KEEP);
            this.taken = 0;
            if this.rewriter.has_ended() {
                return Poll::Ready(Ok(()));
            }
            let passing = this.rewriter.passing();
            if passing > 0 {
                // The bulk of what a client sends goes straight into the reader's buffer.
                let most = buffer.remaining().min(passing);
                let mut direct = ReadBuf::new(buffer.initialize_unfilled_to(most));
                std::task::ready!(Pin::new(&mut this.inner).poll_read(context, &mut direct))?;
                let count = direct.filled().len();
                buffer.advance(count);
                this.rewriter.passed(count);
                return Poll::Ready(Ok(()));
            }
            let mut piece = [0; 2048];
            let mut piece = ReadBuf::new(&mut piece);
            std::task::ready!(Pin::new(&mut this.inner).poll_read(context, &mut piece))?;
            if piece.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            this.rewriter.feed(piece.filled(), &mut this.ready);
        }
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for AuthorityShim<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use loona_hpack::{Decoder, Encoder};
    use proptest::prelude::*;

    use super::*;

    type List = Vec<(Vec<u8>, Vec<u8>)>;

    /// Frames as a server that trusts nothing in the shim would read them.
    fn split(mut bytes: &[u8]) -> Vec<(u8, u8, u32, Vec<u8>)> {
        let mut frames = Vec::new();
        while !bytes.is_empty() {
            assert!(bytes.len() >= HEAD, "a torn head: {bytes:?}");
            let length = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]) as usize;
            let stream = u32::from_be_bytes([bytes[5], bytes[6], bytes[7], bytes[8]]);
            assert!(bytes.len() >= HEAD + length, "a torn payload");
            assert!(length <= MAX_FRAME, "too large a frame");
            frames.push((bytes[3], bytes[4], stream, bytes[HEAD..HEAD + length].to_vec()));
            bytes = &bytes[HEAD + length..];
        }
        frames
    }

    /// The header lists in frames, decoded with one table.
    fn lists(bytes: &[u8]) -> Vec<List> {
        let mut decoder = Decoder::new();
        let mut lists = Vec::new();
        let mut block: Option<Vec<u8>> = None;
        for (kind, flags, _, payload) in split(bytes) {
            match kind {
                HEADERS => {
                    assert!(block.is_none(), "a block within a block");
                    block = Some(unwrap(flags, &payload).expect("well formed").1.to_vec());
                }
                CONTINUATION => block.as_mut().expect("in a block").extend(payload),
                _ => {
                    assert!(block.is_none(), "a frame within a block");
                    continue;
                }
            }
            if flags & END_HEADERS != 0 {
                lists.push(decoder.decode(&block.take().expect("in a block")).expect("decodes"));
            }
        }
        lists
    }

    fn rewrite(input: &[u8], piece: usize) -> Vec<u8> {
        let mut rewriter = AuthorityRewriter::new();
        let mut out = Vec::new();
        for part in input.chunks(piece.max(1)) {
            rewriter.feed(part, &mut out);
        }
        out
    }

    fn request(authority: &str) -> List {
        [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/S/M"),
            (":authority", authority),
            ("te", "trailers"),
        ]
        .map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec()))
        .into()
    }

    fn encode(encoder: &mut Encoder<'_>, list: &List) -> Vec<u8> {
        encoder.encode(list.iter().map(|(name, value)| (&name[..], &value[..])))
    }

    fn headers(stream: u32, hpack: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        frame(&mut out, HEADERS, END_HEADERS, stream, hpack);
        out
    }

    fn expected(list: &List) -> List {
        list.iter()
            .map(|(name, value)| {
                let unfit = names_authority(name) && Authority::try_from(&value[..]).is_err();
                (name.clone(), if unfit { LOCALHOST.to_vec() } else { value.clone() })
            })
            .collect()
    }

    #[test]
    fn a_connection_with_fit_authorities_goes_through_byte_for_byte() {
        let mut encoder = Encoder::new();
        let mut input = Vec::new();
        frame(&mut input, 4, 0, 0, &[0, 3, 0, 0, 0, 100]);
        for stream in [1, 3, 5] {
            input.extend(headers(stream, &encode(&mut encoder, &request("localhost:80"))));
            frame(&mut input, 0, END_STREAM, stream, &[7; 3000]);
        }
        for piece in [1, 7, 100, usize::MAX] {
            assert_eq!(rewrite(&input, piece), input);
        }
    }

    #[test]
    fn paths_become_localhost_also_when_they_come_from_the_table() {
        for authority in ["/tmp/x/api.sock", "%2Ftmp%2Fapi.sock", "", "a b", "\u{fc}"] {
            let mut encoder = Encoder::new();
            let mut input = Vec::new();
            let mut lengths = Vec::new();
            for stream in [1, 3] {
                let hpack = encode(&mut encoder, &request(authority));
                lengths.push(hpack.len());
                input.extend(headers(stream, &hpack));
                frame(&mut input, 0, END_STREAM, stream, b"body");
            }
            if authority.len() > 2 {
                assert!(lengths[1] < lengths[0], "the second request does not use the table: {lengths:?}");
            }
            for piece in [1, 10, usize::MAX] {
                let out = rewrite(&input, piece);
                assert_eq!(lists(&out), [request("localhost"), request("localhost")], "{authority:?}");
                assert_eq!(split(&out).iter().filter(|frame| frame.0 == 0).count(), 2);
            }
        }
    }

    #[test]
    fn a_change_of_mind_within_a_connection_keeps_the_tables_apart() {
        let mut encoder = Encoder::new();
        let requests = ["localhost", "/a", "localhost", "b:1", "/a", "/b"].map(request);
        let input: Vec<u8> =
            requests.iter().flat_map(|list| headers(1, &encode(&mut encoder, list))).collect();
        let wanted: Vec<_> = requests.iter().map(expected).collect();
        assert_eq!(lists(&rewrite(&input, 3)), wanted);
    }

    #[test]
    fn huffman_padding_priority_and_continuation_are_understood() {
        // `:authority: /tmp/x/api.sock` as a literal with incremental indexing, its value in Huffman code, made by hand from
        // RFC 7541, appendix B.
        let value = "/tmp/x/api.sock";
        let codes: [(u32, u8); 15] = [
            (0x18, 6),
            (0x9, 5),
            (0x29, 6),
            (0x2b, 6),
            (0x18, 6),
            (0x79, 7),
            (0x18, 6),
            (0x3, 5),
            (0x2b, 6),
            (0x6, 5),
            (0x17, 6),
            (0x8, 5),
            (0x7, 5),
            (0x4, 5),
            (0x75, 7),
        ];
        let mut bits: Vec<bool> = Vec::new();
        for (code, length) in codes {
            bits.extend((0..length).rev().map(|bit| code >> bit & 1 == 1));
        }
        bits.resize(bits.len().next_multiple_of(8), true);
        let coded: Vec<u8> =
            bits.chunks(8).map(|byte| byte.iter().fold(0, |byte, bit| byte << 1 | u8::from(*bit))).collect();
        assert_eq!(value.len(), codes.len());
        let mut hpack = vec![0x83, 0x86, 0x84, 0x41, 0x80 | coded.len() as u8];
        hpack.extend(coded);
        let (one, two) = hpack.split_at(9);
        let mut payload = vec![3, 0, 0, 0, 0, 15];
        payload.extend(one);
        payload.extend([0; 3]);
        let mut input = Vec::new();
        frame(&mut input, HEADERS, PADDED | PRIORITY | END_STREAM, 1, &payload);
        frame(&mut input, CONTINUATION, 0, 1, &[]);
        frame(&mut input, CONTINUATION, END_HEADERS, 1, two);
        let out = rewrite(&input, 4);
        let frames = split(&out);
        assert_eq!(frames.len(), 1);
        assert_eq!((frames[0].0, frames[0].1), (HEADERS, PRIORITY | END_STREAM | END_HEADERS));
        let authority = &lists(&out)[0][3];
        assert_eq!((&authority.0[..], &authority.1[..]), (&b":authority"[..], LOCALHOST));
    }

    #[test]
    fn large_lists_are_split_into_frames() {
        let mut list = request("/x");
        list.extend((0..3).map(|index| (format!("x-{index}").into_bytes(), vec![b'v'; 15_000])));
        let hpack = encode(&mut Encoder::new(), &list);
        let mut input = Vec::new();
        let mut parts = hpack.chunks(16_000);
        frame(&mut input, HEADERS, 0, 1, parts.next().unwrap());
        for part in parts {
            frame(&mut input, CONTINUATION, 0, 1, part);
        }
        frame(&mut input, CONTINUATION, END_HEADERS, 1, &[]);
        assert_eq!(lists(&rewrite(&input, 1000)), [expected(&list)]);
    }

    /// The frame that ends the connection in h2 is the last thing that comes out.
    fn is_refused(input: &[u8]) -> bool {
        let out = rewrite(input, 9);
        split(&out).last().is_some_and(|(kind, _, _, payload)| *kind == HEADERS && payload == &[0x80])
    }

    #[test]
    fn bounds_hold() {
        // A block without end, in frames of full size and in empty ones.
        let mut full = Vec::new();
        frame(&mut full, HEADERS, 0, 1, &[0; 16_384]);
        let mut empty = full.clone();
        for _ in 0..5 {
            frame(&mut full, CONTINUATION, 0, 1, &[0; 16_384]);
        }
        for _ in 0..100 {
            frame(&mut empty, CONTINUATION, 0, 1, &[]);
        }
        assert!(is_refused(&full) && is_refused(&empty));
        // A small block that decodes to a large list: one table entry named over and over.
        let mut bomb = vec![0x40, 1, b'a', 0x7f, 0x80 | 0x11, 0x1e];
        bomb.extend(vec![b'b'; 127 + 0x11 + (0x1e << 7)]);
        bomb.extend(vec![0xbe; 1000]);
        assert!(is_refused(&headers(1, &bomb)));
        // A table that is larger than what was announced.
        assert!(is_refused(&headers(1, &[0x3f, 0xe2, 0x1f, 0x82])));
        assert!(!is_refused(&headers(1, &[0x3f, 0xe1, 0x1f, 0x82])));
        // What HPACK does not know.
        for bad in [&[0x80][..], &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff], &[0xbe], &[0x40], &[0x41, 0x81, 0x00]]
        {
            assert!(is_refused(&headers(1, bad)), "{bad:?}");
        }
    }

    #[test]
    fn what_breaks_the_rules_is_left_for_h2_to_see() {
        // Too large a frame, and a frame within a block.
        let mut large = vec![0, 0x40, 1, HEADERS, END_HEADERS, 0, 0, 0, 1];
        large.extend([0x82; 50]);
        assert_eq!(rewrite(&large, 5), large);
        let mut torn = Vec::new();
        frame(&mut torn, HEADERS, 0, 1, &[0x82]);
        frame(&mut torn, 0, 0, 1, b"data");
        let kinds: Vec<_> = split(&rewrite(&torn, 5)).iter().map(|frame| (frame.0, frame.1)).collect();
        assert_eq!(kinds, [(HEADERS, 0), (0, 0)]);
        // Padding that is longer than the frame.
        let mut padded = Vec::new();
        frame(&mut padded, HEADERS, END_HEADERS | PADDED, 1, &[200, 0x82]);
        assert_eq!(rewrite(&padded, 5), padded);
        // A promise from a client.
        let mut promise = Vec::new();
        frame(&mut promise, PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2, 0x82]);
        assert!(is_refused(&promise));
    }

    fn any_list() -> impl Strategy<Value = List> {
        let name = prop_oneof![
            3 => Just(b":authority".to_vec()),
            1 => Just(b"host".to_vec()),
            2 => Just(b":path".to_vec()),
            1 => Just(b"grpc-timeout".to_vec()),
            2 => "[a-z-]{1,12}".prop_map(String::into_bytes),
        ];
        let value = prop_oneof![
            2 => Just(b"localhost".to_vec()),
            2 => "/[a-z/.]{0,40}".prop_map(String::into_bytes),
            1 => "%2F[a-z]{0,20}".prop_map(String::into_bytes),
            1 => prop::collection::vec(any::<u8>(), 0..60),
            1 => Just(vec![b'v'; 3000]),
        ];
        prop::collection::vec((name, value), 0..8)
    }

    /// One request on the wire: its list, how it is cut into frames, and what else its frame carries.
    fn any_request() -> impl Strategy<Value = (List, usize, Option<u8>, bool)> {
        (any_list(), 1..5000_usize, prop::option::of(any::<u8>()), any::<bool>())
    }

    fn on_the_wire(
        encoder: &mut Encoder<'_>,
        (list, cut, padding, priority): &(List, usize, Option<u8>, bool),
    ) -> Vec<u8> {
        let hpack = encode(encoder, list);
        let cut = (*cut).max(hpack.len() / 50);
        let mut parts = hpack.chunks(cut);
        let mut payload = Vec::new();
        payload.extend(*padding);
        payload.extend(priority.then_some([0, 0, 0, 0, 1]).iter().flatten());
        payload.extend(parts.next().unwrap_or_default());
        payload.resize(payload.len() + usize::from(padding.unwrap_or(0)), 0);
        let flags = if padding.is_some() { PADDED } else { 0 } | if *priority { PRIORITY } else { 0 };
        let mut out = Vec::new();
        frame(&mut out, HEADERS, flags | if parts.len() == 0 { END_HEADERS } else { 0 }, 1, &payload);
        while let Some(part) = parts.next() {
            frame(&mut out, CONTINUATION, if parts.len() == 0 { END_HEADERS } else { 0 }, 1, part);
        }
        frame(&mut out, 0, 0, 1, b"data");
        out
    }

    proptest! {
        #[test]
        fn the_lists_that_h2_sees_are_those_that_were_sent_but_for_the_authority(
            requests in prop::collection::vec(any_request(), 1..8),
            piece in 1..4000_usize,
        ) {
            let mut encoder = Encoder::new();
            let input: Vec<u8> = requests.iter().flat_map(|request| on_the_wire(&mut encoder, request)).collect();
            let out = rewrite(&input, piece);
            let wanted: Vec<List> = requests.iter().map(|request| expected(&request.0)).collect();
            if wanted.iter().zip(&requests).all(|(wanted, request)| *wanted == request.0) {
                prop_assert_eq!(&out, &input);
            }
            prop_assert_eq!(lists(&out), wanted);
        }

        #[test]
        fn no_bytes_make_it_panic_or_swell(bytes in prop::collection::vec(any::<u8>(), 0..2000), piece in 1..500_usize) {
            prop_assert!(rewrite(&bytes, piece).len() <= 2 * bytes.len() + MAX_BLOCK);
        }

        #[test]
        fn no_damage_makes_it_panic(
            requests in prop::collection::vec(any_request(), 1..4),
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..10),
            piece in 1..500_usize,
        ) {
            let mut encoder = Encoder::new();
            let mut input: Vec<u8> = requests.iter().flat_map(|request| on_the_wire(&mut encoder, request)).collect();
            for (index, byte) in damage {
                *index.get_mut(&mut input) = byte;
            }
            rewrite(&input, piece);
        }
    }
}
