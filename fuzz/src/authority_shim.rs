//! The shim in front of HTTP/2 on Unix sockets: what a local process sends after the connection preface.
//!
//! The first byte says in which pieces the rest arrives. Laws: the pieces do not matter; what comes out is bounded by what
//! went in; another HPACK decoder reads the same header lists on both sides, but for authorities, which are fit on the way out;
//! if nothing had to be changed, nothing was.

use http::uri::Authority;
use loona_hpack::Decoder;
use loona_hpack::decoder::DecoderError;

use bonafide_runtime::listener::authority::AuthorityRewriter;

type Fields = Vec<(Vec<u8>, Vec<u8>)>;

/// Whether a header block came through.
pub fn check(data: &[u8]) -> bool {
    let Some((piece, input)) = data.split_first() else { return false };
    let out = feed(input, usize::from(*piece).max(1));
    assert_eq!(out, feed(input, usize::MAX), "the pieces matter");
    assert_eq!(out, pump(input, usize::from(*piece).max(1)), "what passes unseen matters");

    let ((came, _), (left, cut)) = (blocks(input), blocks(&out));
    assert!(
        out.len() <= input.len() + (came.len() + 1) * MAX_GROWTH,
        "{} bytes became {}",
        input.len(),
        out.len()
    );
    let (mut before, mut after) = (decoder(), decoder());
    let mut changed = false;
    for (came, left) in came.iter().zip(&left) {
        if left.hpack == REFUSAL {
            assert!(left.last, "something follows a refusal");
            return true;
        }
        assert_eq!((came.stream, came.end_stream), (left.stream, left.end_stream));
        let list = match after.decode(&left.hpack) {
            // The standard (RFC 7541, section 4.2) has nothing against a block that only changes the size of the table; the
            // other decoder does, and has lost the table then.
            Err(DecoderError::SizeUpdateAtEnd) => return true,
            list => list.expect("what came out can be decoded"),
        };
        assert!(
            list.iter().all(|(name, value)| !names_authority(name) || is_fit(value)),
            "an unfit authority"
        );
        let mut wanted: Fields = match before.decode(&came.hpack) {
            Err(DecoderError::SizeUpdateAtEnd) => return true,
            list => list.expect("what was passed on could be decoded"),
        };
        for (name, value) in &mut wanted {
            if names_authority(name) && !is_fit(value) {
                *value = b"localhost".to_vec();
                changed = true;
            }
        }
        assert_eq!(list, wanted);
    }
    if !changed && !left.iter().any(|block| block.hpack == REFUSAL) {
        match cut {
            // A block that is interrupted comes out as an empty one, so that HTTP/2 sees what interrupts it.
            Some(at) => assert!(input.starts_with(&out[..at]) && input.ends_with(&out[at + 9..])),
            // A frame of a block that is not complete yet is kept back.
            None => assert!(input.starts_with(&out), "changed without need"),
        }
    }
    !left.is_empty()
}

fn feed(input: &[u8], piece: usize) -> Vec<u8> {
    let mut rewriter = AuthorityRewriter::new();
    let mut out = Vec::new();
    for part in input.chunks(piece) {
        rewriter.feed(part, &mut out);
    }
    out
}

/// As the listener does it: what the rewriter need not see goes past it.
fn pump(input: &[u8], piece: usize) -> Vec<u8> {
    let mut rewriter = AuthorityRewriter::new();
    let mut out = Vec::new();
    for mut part in input.chunks(piece) {
        while !part.is_empty() && !rewriter.has_ended() {
            let (past, rest) = part.split_at(rewriter.passing().min(part.len()));
            if past.is_empty() {
                rewriter.feed(part, &mut out);
                break;
            }
            out.extend_from_slice(past);
            rewriter.passed(past.len());
            part = rest;
        }
    }
    out
}

/// A complete header block.
struct Block {
    stream: u32,
    end_stream: bool,
    hpack: Vec<u8>,
    /// Whether it is the end of the bytes.
    last: bool,
}

/// The header blocks of a client, up to where it breaks the framing rules, and where a block begins that is cut off by
/// another frame.
fn blocks(all: &[u8]) -> (Vec<Block>, Option<usize>) {
    let mut found = Vec::new();
    let mut open: Option<Block> = None;
    let (mut bytes, mut begin) = (all, 0);
    while let Some((head, rest)) = bytes.split_first_chunk::<9>() {
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let (kind, flags) = (head[3], head[4]);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & 0x7fff_ffff;
        let Some((payload, rest)) = rest.split_at_checked(length) else { break };
        if open.is_none() {
            begin = all.len() - bytes.len();
        }
        bytes = rest;
        match (&mut open, kind) {
            (None, HEADERS) if length <= MAX_FRAME => {
                let Some(hpack) = fragment(flags, payload) else { break };
                let (end_stream, last) = (flags & 1 != 0, false);
                open = Some(Block { stream, end_stream, hpack: hpack.to_vec(), last });
            }
            (Some(block), CONTINUATION) if block.stream == stream && length <= MAX_FRAME => {
                block.hpack.extend_from_slice(payload);
            }
            (None, kind) if kind != HEADERS && kind != PUSH_PROMISE => continue,
            _ => break,
        }
        if flags & 4 != 0
            && let Some(mut block) = open.take()
        {
            block.last = bytes.is_empty();
            found.push(block);
        }
    }
    (found, open.map(|_| begin))
}

/// The HPACK in a HEADERS frame, without padding and priority.
fn fragment(flags: u8, mut payload: &[u8]) -> Option<&[u8]> {
    let mut padding = 0;
    if flags & 8 != 0 {
        let (first, rest) = payload.split_first()?;
        (padding, payload) = (usize::from(*first), rest);
    }
    if flags & 0x20 != 0 {
        payload = payload.get(5..)?;
    }
    payload.get(..payload.len().checked_sub(padding)?)
}

fn decoder() -> Decoder<'static> {
    let mut decoder = Decoder::new();
    decoder.set_max_allowed_table_size(4096);
    decoder
}

fn names_authority(name: &[u8]) -> bool {
    name == b":authority" || name == b"host"
}

fn is_fit(value: &[u8]) -> bool {
    Authority::try_from(value).is_ok()
}

/// A block that refers to what no table has.
const REFUSAL: &[u8] = &[0x80];
const HEADERS: u8 = 1;
const PUSH_PROMISE: u8 = 5;
const CONTINUATION: u8 = 9;
const MAX_FRAME: usize = 16_384;
/// What one block can grow to: 64 KiB of fields, in frames.
const MAX_GROWTH: usize = 65_536 + 4096;
