//! HPACK, the decoding half (RFC 7541).
//!
//! Our own because what exists did not fit: the one maintained decoder that stands alone builds its Huffman tables anew for each
//! string, so that 64 KiB from a client cost almost half a second of processor time; the other panics on truncated input; `h2`
//! keeps its decoder to itself. The tests compare this one with the former on everything they can think of.

use std::collections::VecDeque;

/// A header block that RFC 7541 does not allow. The decoder that met it is of no use any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// The receiving end of a connection's header compression.
pub(super) struct Decoder {
    entries: VecDeque<Entry>,
    /// The sum of the sizes of the entries (section 4.1).
    size: usize,
    /// The size that the sender has chosen.
    max: usize,
    /// The largest size that it may choose.
    limit: usize,
    name: Vec<u8>,
    value: Vec<u8>,
}

struct Entry {
    name_length: usize,
    bytes: Box<[u8]>,
}

impl Entry {
    fn size(&self) -> usize {
        self.bytes.len() + ENTRY_OVERHEAD
    }
}

/// What each entry counts beside its bytes (section 4.1).
const ENTRY_OVERHEAD: usize = 32;
/// Scratch space above this is given back after each block.
const KEEP: usize = 1024;

impl Decoder {
    /// An empty table whose size is, and may at most be, `limit`.
    pub(super) fn new(limit: usize) -> Self {
        Self { entries: VecDeque::new(), size: 0, max: limit, limit, name: Vec::new(), value: Vec::new() }
    }

    /// Decodes a whole header block and hands each field's name and value to `field`.
    ///
    /// # Errors
    /// When the block is malformed; fields before the mistake have been handed out.
    pub(super) fn decode(
        &mut self,
        mut block: &[u8],
        mut field: impl FnMut(&[u8], &[u8]),
    ) -> Result<(), Malformed> {
        let mut may_resize = true;
        while let Some(first) = block.first() {
            if first & 0x80 != 0 {
                let index = integer(&mut block, 7)?;
                let (name, value) = self.lookup(index)?;
                field(name, value);
            } else if first & 0xe0 == 0x20 {
                // Section 4.2: only at the beginning of a block.
                let max = integer(&mut block, 5)?;
                if max > self.limit || !may_resize {
                    return Err(Malformed);
                }
                self.max = max;
                self.evict(max);
                continue;
            } else {
                let indexed = first & 0x40 != 0;
                let index = integer(&mut block, if indexed { 6 } else { 4 })?;
                let mut name = std::mem::take(&mut self.name);
                name.clear();
                if index == 0 {
                    string(&mut block, &mut name)?;
                } else {
                    name.extend_from_slice(self.lookup(index)?.0);
                }
                self.value.clear();
                string(&mut block, &mut self.value)?;
                field(&name, &self.value);
                if indexed {
                    self.insert(&name);
                }
                self.name = name;
            }
            may_resize = false;
        }
        self.name.clear();
        self.name.shrink_to(KEEP);
        self.value.clear();
        self.value.shrink_to(KEEP);
        Ok(())
    }

    fn lookup(&self, index: usize) -> Result<(&[u8], &[u8]), Malformed> {
        let index = index.checked_sub(1).ok_or(Malformed)?;
        if let Some((name, value)) = STATIC_TABLE.get(index) {
            return Ok((name.as_bytes(), value.as_bytes()));
        }
        let entry = self.entries.get(index - STATIC_TABLE.len()).ok_or(Malformed)?;
        Ok(entry.bytes.split_at(entry.name_length))
    }

    /// Adds `name` with the present value. An entry larger than the table only empties it (section 4.4).
    fn insert(&mut self, name: &[u8]) {
        let size = name.len() + self.value.len() + ENTRY_OVERHEAD;
        self.evict(self.max.saturating_sub(size));
        if size <= self.max {
            let bytes = [name, &self.value].concat().into_boxed_slice();
            self.entries.push_front(Entry { name_length: name.len(), bytes });
            self.size += size;
        }
    }

    fn evict(&mut self, down_to: usize) {
        while self.size > down_to {
            let Some(oldest) = self.entries.pop_back() else { break };
            self.size -= oldest.size();
        }
    }
}

/// An integer with a prefix of so many bits (section 5.1). At most four bytes follow the prefix: no number in HTTP/2 needs more.
fn integer(block: &mut &[u8], prefix: u32) -> Result<usize, Malformed> {
    let (first, rest) = block.split_first().ok_or(Malformed)?;
    *block = rest;
    let mask = (1_usize << prefix) - 1;
    let mut value = usize::from(*first) & mask;
    if value < mask {
        return Ok(value);
    }
    for shift in [0, 7, 14, 21] {
        let (next, rest) = block.split_first().ok_or(Malformed)?;
        *block = rest;
        value += usize::from(next & 0x7f) << shift;
        if next & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Malformed)
}

/// A string, plain or in Huffman code (section 5.2), appended to `out`.
fn string(block: &mut &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    let coded = block.first().ok_or(Malformed)? & 0x80 != 0;
    let length = integer(block, 7)?;
    let (text, rest) = block.split_at_checked(length).ok_or(Malformed)?;
    *block = rest;
    if coded {
        huffman(text, out)
    } else {
        out.extend_from_slice(text);
        Ok(())
    }
}

/// The code is canonical (appendix B): the codes of one length are consecutive numbers, so one comparison per bit tells whether a
/// code is complete.
fn huffman(text: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    // The code so far; the first code of this length; the place of that code's symbol.
    let (mut code, mut first, mut place, mut length) = (0_usize, 0_usize, 0_usize, 0_usize);
    let mut ones = true;
    for byte in text {
        for bit in (0..8).rev() {
            let bit = usize::from(byte >> bit & 1);
            ones &= bit == 1;
            code = code << 1 | bit;
            first <<= 1;
            length += 1;
            let count = CODE.counts[length];
            if code - first < count {
                // The last symbol ends a string and may not occur (section 5.2).
                let symbol = u8::try_from(CODE.symbols[place + code - first]).map_err(|_| Malformed)?;
                out.push(symbol);
                (code, first, place, length, ones) = (0, 0, 0, 0, true);
            } else {
                first += count;
                place += count;
            }
        }
    }
    // What is left is padding: fewer than eight ones.
    if length < 8 && ones { Ok(()) } else { Err(Malformed) }
}

struct Code {
    /// How many codes there are of each length.
    counts: [usize; MAX_LENGTH + 1],
    /// The symbols in the order of their codes.
    symbols: [u16; SYMBOLS],
}

const MAX_LENGTH: usize = 30;
const SYMBOLS: usize = 257;

static CODE: Code = code();

const fn code() -> Code {
    let mut code = Code { counts: [0; MAX_LENGTH + 1], symbols: [0; SYMBOLS] };
    let (mut length, mut place) = (1, 0);
    while length <= MAX_LENGTH {
        let mut symbol = 0;
        while symbol < SYMBOLS {
            if LENGTHS[symbol] as usize == length {
                code.counts[length] += 1;
                code.symbols[place] = symbol as u16;
                place += 1;
            }
            symbol += 1;
        }
        length += 1;
    }
    code
}

/// The lengths of the codes in bits, by symbol (appendix B).
#[rustfmt::skip]
const LENGTHS: [u8; SYMBOLS] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28,
    28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7,
    7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21,
    23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24,
    21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30,
];

/// Names and values that need not be sent (appendix A).
#[rustfmt::skip]
const STATIC_TABLE: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type List = Vec<(Vec<u8>, Vec<u8>)>;

    fn ours(decoder: &mut Decoder, block: &[u8]) -> Result<List, Malformed> {
        let mut list = Vec::new();
        decoder.decode(block, |name, value| list.push((name.to_vec(), value.to_vec()))).map(|()| list)
    }

    fn theirs() -> loona_hpack::Decoder<'static> {
        let mut decoder = loona_hpack::Decoder::new();
        decoder.set_max_allowed_table_size(4096);
        decoder
    }

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        let digit = |byte: u8| (byte as char).to_digit(16).unwrap() as u8;
        digits.chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
    }

    fn list(pairs: &[(&str, &str)]) -> List {
        pairs.iter().map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec())).collect()
    }

    /// RFC 7541, appendix C.4: three requests on one connection with Huffman code.
    #[test]
    fn the_examples_of_the_standard() {
        let mut decoder = Decoder::new(4096);
        let start =
            [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "www.example.com")];
        let first = hex("8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff");
        assert_eq!(ours(&mut decoder, &first), Ok(list(&start)));
        let second = hex("8286 84be 5886 a8eb 1064 9cbf");
        let wanted = [&start[..], &[("cache-control", "no-cache")]].concat();
        assert_eq!(ours(&mut decoder, &second), Ok(list(&wanted)));
        let third = hex("8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf");
        let wanted = [
            (":method", "GET"),
            (":scheme", "https"),
            (":path", "/index.html"),
            (":authority", "www.example.com"),
            ("custom-key", "custom-value"),
        ];
        assert_eq!(ours(&mut decoder, &third), Ok(list(&wanted)));
        assert_eq!((decoder.size, decoder.entries.len()), (164, 3));
    }

    #[test]
    fn eviction_follows_the_size() {
        let mut decoder = Decoder::new(4096);
        // A limit of 100, then entries of 34 + n bytes each.
        ours(&mut decoder, &[0x3f, 100 - 31]).unwrap();
        ours(&mut decoder, b"\x40\x01a\x01b\x40\x01c\x01d").unwrap();
        assert_eq!((decoder.size, decoder.entries.len()), (68, 2));
        ours(&mut decoder, b"\x40\x01e\x01f").unwrap();
        assert_eq!(ours(&mut decoder, &[0xbe, 0xbf]), Ok(list(&[("e", "f"), ("c", "d")])));
        assert_eq!(ours(&mut decoder, &[0xc0]), Err(Malformed));
        // Larger than the table: the table is empty afterwards.
        let mut large = vec![0x40, 1, b'x', 90];
        large.extend([b'y'; 90]);
        assert_eq!(ours(&mut decoder, &large).unwrap().len(), 1);
        assert_eq!((decoder.size, decoder.entries.len()), (0, 0));
    }

    #[test]
    fn a_resize_stands_at_the_beginning() {
        assert!(ours(&mut Decoder::new(4096), &[0x20, 0x3f, 0xe1, 0x1f, 0x82]).is_ok());
        assert_eq!(ours(&mut Decoder::new(4096), &[0x3f, 0xe2, 0x1f, 0x82]), Err(Malformed));
        assert_eq!(ours(&mut Decoder::new(4096), &[0x82, 0x20]), Err(Malformed));
    }

    #[test]
    fn every_symbol_survives_the_huffman_code() {
        // The code of each symbol from its length alone, by the rule of canonical codes.
        let mut codes = [(0_u32, 0_u8); SYMBOLS];
        let (mut next, mut before) = (0_u32, 0_u8);
        for symbol in CODE.symbols {
            let length = LENGTHS[usize::from(symbol)];
            next <<= length - before;
            before = length;
            codes[usize::from(symbol)] = (next, length);
            next += 1;
        }
        // Points that appendix B gives: the first code, one in the middle, the end of a string.
        assert_eq!(
            (codes[48], codes[97], codes[92], codes[256]),
            ((0, 5), (3, 5), (0x7fff0, 19), (0x3fff_ffff, 30))
        );
        for symbol in 0..=255_u8 {
            let (code, length) = codes[usize::from(symbol)];
            let bits = usize::from(length).next_multiple_of(8);
            let padded =
                u64::from(code) << (bits - usize::from(length)) | ((1 << (bits - usize::from(length))) - 1);
            let bytes = &padded.to_be_bytes()[8 - bits / 8..];
            let mut out = Vec::new();
            assert_eq!((huffman(bytes, &mut out), &out[..]), (Ok(()), &[symbol][..]));
        }
        for bad in [&[0xff, 0xff, 0xff, 0xff][..], &[0x00], &[0xff], &[0x07, 0xff], &[0x06]] {
            assert_eq!(huffman(bad, &mut Vec::new()), Err(Malformed), "{bad:?}");
        }
    }

    /// Blocks that are likely to mean something.
    fn any_block() -> impl Strategy<Value = Vec<u8>> {
        let text = prop_oneof![
            prop::collection::vec(any::<u8>(), 0..20)
                .prop_map(|text| [&[text.len() as u8][..], &text].concat()),
            prop::collection::vec(any::<u8>(), 0..6)
                .prop_map(|text| [&[0x80 | text.len() as u8][..], &text].concat()),
            Just(vec![0x8c, 0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff]),
        ];
        let field = prop_oneof![
            (1..75_u8).prop_map(|index| vec![0x80 | index]),
            (any::<u8>(), text.clone())
                .prop_map(|(index, value)| [&[0x41 + index % 60][..], &value].concat()),
            (text.clone(), text.clone(), prop::sample::select(vec![0x40_u8, 0x00, 0x10]))
                .prop_map(|(name, value, kind)| [&[kind][..], &name, &value].concat()),
        ];
        let resize = prop::option::of((0..31_u8).prop_map(|size| 0x20 | size));
        (resize, prop::collection::vec(field, 1..6))
            .prop_map(|(resize, fields)| resize.into_iter().chain(fields.concat()).collect())
    }

    proptest! {
        #[test]
        fn another_decoder_reads_the_same(blocks in prop::collection::vec(any_block(), 1..6)) {
            let (mut mine, mut other) = (Decoder::new(4096), theirs());
            for block in blocks {
                let (got, wanted) = (ours(&mut mine, &block), other.decode(&block));
                prop_assert_eq!(got.clone().ok(), wanted.ok(), "block {:?}", block);
                if got.is_err() {
                    break;
                }
            }
        }

        #[test]
        fn no_bytes_make_it_panic_or_remember_too_much(blocks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..5)) {
            let mut decoder = Decoder::new(4096);
            for block in blocks {
                let _ = ours(&mut decoder, &block);
                let sum: usize = decoder.entries.iter().map(Entry::size).sum();
                prop_assert_eq!(sum, decoder.size);
                prop_assert!(decoder.size <= decoder.max && decoder.max <= 4096);
            }
        }
    }
}
