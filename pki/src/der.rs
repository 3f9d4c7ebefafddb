//! DER, as much as certificates need: a strict reader over borrowed bytes and a writer that nests.
//!
//! Small on purpose. Reading is used for CSRs, keys and names, where the raw bytes must be kept; whole certificates
//! of other people are read by x509-parser.

use bonafide_identity::Timestamp;
use time::OffsetDateTime;

pub(crate) const BOOLEAN: u8 = 0x01;
pub(crate) const INTEGER: u8 = 0x02;
pub(crate) const BIT_STRING: u8 = 0x03;
pub(crate) const OCTET_STRING: u8 = 0x04;
pub(crate) const OID: u8 = 0x06;
pub(crate) const UTF8_STRING: u8 = 0x0c;
pub(crate) const PRINTABLE_STRING: u8 = 0x13;
pub(crate) const UTC_TIME: u8 = 0x17;
pub(crate) const GENERALIZED_TIME: u8 = 0x18;
pub(crate) const SEQUENCE: u8 = 0x30;
pub(crate) const SET: u8 = 0x31;

/// A context-specific tag, constructed.
pub(crate) const fn explicit(number: u8) -> u8 {
    0xa0 | number
}

/// A context-specific tag, primitive.
pub(crate) const fn implicit(number: u8) -> u8 {
    0x80 | number
}

/// Not DER, or not the structure that was expected; the text says where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct DerError(pub(crate) &'static str);

/// One element.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Element<'a> {
    pub(crate) tag: u8,
    pub(crate) content: &'a [u8],
    /// Tag, length and content.
    pub(crate) raw: &'a [u8],
}

/// Reads elements one after the other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn peek(&self) -> Option<u8> {
        self.rest.first().copied()
    }

    pub(crate) fn next(&mut self) -> Result<Element<'a>, DerError> {
        let (tag, length, header) = header(self.rest)?;
        let end = header.checked_add(length).ok_or(DerError("length is too large"))?;
        let raw = self.rest.get(..end).ok_or(DerError("data is cut short"))?;
        self.rest = &self.rest[end..];
        Ok(Element { tag, content: &raw[header..], raw })
    }

    /// The next element, which must have this tag; `what` is the complaint otherwise.
    pub(crate) fn expect(&mut self, tag: u8, what: &'static str) -> Result<Element<'a>, DerError> {
        let element = self.next()?;
        if element.tag == tag { Ok(element) } else { Err(DerError(what)) }
    }

    /// Nothing may be left.
    pub(crate) fn end(&self, what: &'static str) -> Result<(), DerError> {
        if self.rest.is_empty() { Ok(()) } else { Err(DerError(what)) }
    }
}

fn header(bytes: &[u8]) -> Result<(u8, usize, usize), DerError> {
    let [tag, first, rest @ ..] = bytes else { return Err(DerError("data is cut short")) };
    if tag & 0x1f == 0x1f {
        return Err(DerError("tag number is too large"));
    }
    if *first < 0x80 {
        return Ok((*tag, usize::from(*first), 2));
    }
    let count = usize::from(first & 0x7f);
    if count == 0 || count > 4 {
        return Err(DerError("length is indefinite or too large"));
    }
    let octets = rest.get(..count).ok_or(DerError("data is cut short"))?;
    let length = octets.iter().fold(0_usize, |length, octet| (length << 8) | usize::from(*octet));
    if octets[0] == 0 || length < 0x80 {
        return Err(DerError("length is not in its shortest form"));
    }
    Ok((*tag, length, 2 + count))
}

/// The content of a BIT STRING that is a whole number of bytes.
pub(crate) fn bit_string_bytes<'a>(content: &'a [u8], what: &'static str) -> Result<&'a [u8], DerError> {
    match content {
        [0, bytes @ ..] => Ok(bytes),
        _ => Err(DerError(what)),
    }
}

/// The magnitude of a positive INTEGER in its shortest form.
pub(crate) fn positive_integer<'a>(content: &'a [u8], what: &'static str) -> Result<&'a [u8], DerError> {
    match content {
        [0, second, ..] if *second >= 0x80 => Ok(&content[1..]),
        [first, ..] if (1..0x80).contains(first) => Ok(content),
        _ => Err(DerError(what)),
    }
}

/// Writes elements into one buffer.
#[derive(Default)]
pub(crate) struct Writer {
    out: Vec<u8>,
}

impl Writer {
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self { out: Vec::with_capacity(capacity) }
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.out
    }

    /// Bytes that are already DER.
    pub(crate) fn raw(&mut self, der: &[u8]) {
        self.out.extend_from_slice(der);
    }

    pub(crate) fn element(&mut self, tag: u8, content: &[u8]) {
        self.out.push(tag);
        self.length(content.len());
        self.out.extend_from_slice(content);
    }

    /// An element whose content `body` writes.
    pub(crate) fn nested(&mut self, tag: u8, body: impl FnOnce(&mut Self)) {
        self.out.push(tag);
        let start = self.out.len();
        // Room for the two length octets that most elements of a certificate need at most; corrected below.
        self.out.extend_from_slice(&[0, 0, 0]);
        body(self);
        let length = self.out.len() - start - 3;
        let mut octets = Self::default();
        octets.length(length);
        let octets = octets.out;
        if octets.len() == 3 {
            self.out[start..start + 3].copy_from_slice(&octets);
        } else {
            self.out.splice(start..start + 3, octets);
        }
    }

    pub(crate) fn sequence(&mut self, body: impl FnOnce(&mut Self)) {
        self.nested(SEQUENCE, body);
    }

    /// A positive INTEGER from its big-endian magnitude.
    pub(crate) fn integer(&mut self, magnitude: &[u8]) {
        let skipped = magnitude.iter().take_while(|byte| **byte == 0).count();
        let magnitude = &magnitude[skipped..];
        self.out.push(INTEGER);
        match magnitude.first() {
            None => self.out.extend_from_slice(&[1, 0]),
            Some(first) => {
                let pad = *first >= 0x80;
                self.length(magnitude.len() + usize::from(pad));
                if pad {
                    self.out.push(0);
                }
                self.out.extend_from_slice(magnitude);
            }
        }
    }

    /// A BIT STRING that is a whole number of bytes.
    pub(crate) fn bit_string(&mut self, bytes: &[u8]) {
        self.out.push(BIT_STRING);
        self.length(bytes.len() + 1);
        self.out.push(0);
        self.out.extend_from_slice(bytes);
    }

    /// A validity instant: UTCTime through 2049, GeneralizedTime from 2050 (RFC 5280 4.1.2.5).
    pub(crate) fn time(&mut self, at: Timestamp) -> Result<(), DerError> {
        const OUT_OF_RANGE: DerError = DerError("a certificate cannot express this date");
        let at = OffsetDateTime::from_unix_timestamp(at.unix_seconds()).map_err(|_| OUT_OF_RANGE)?;
        let year = u32::try_from(at.year()).map_err(|_| OUT_OF_RANGE)?;
        if year > 9999 {
            return Err(OUT_OF_RANGE);
        }
        let mut text = [0; 15];
        let two = |text: &mut [u8], value: u32| {
            text[0] = b'0' + (value / 10 % 10) as u8;
            text[1] = b'0' + (value % 10) as u8;
        };
        two(&mut text[0..], year / 100);
        two(&mut text[2..], year % 100);
        two(&mut text[4..], u32::from(u8::from(at.month())));
        two(&mut text[6..], u32::from(at.day()));
        two(&mut text[8..], u32::from(at.hour()));
        two(&mut text[10..], u32::from(at.minute()));
        two(&mut text[12..], u32::from(at.second()));
        text[14] = b'Z';
        if (1950..2050).contains(&year) {
            self.element(UTC_TIME, &text[2..]);
        } else {
            self.element(GENERALIZED_TIME, &text);
        }
        Ok(())
    }

    fn length(&mut self, length: usize) {
        if length < 0x80 {
            self.out.push(length as u8);
            return;
        }
        let octets = length.to_be_bytes();
        let skipped = octets.iter().take_while(|octet| **octet == 0).count();
        self.out.push(0x80 | (octets.len() - skipped) as u8);
        self.out.extend_from_slice(&octets[skipped..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(body: impl FnOnce(&mut Writer)) -> Vec<u8> {
        let mut writer = Writer::default();
        body(&mut writer);
        writer.finish()
    }

    #[test]
    fn lengths_are_shortest_and_read_back() {
        for length in [0, 1, 127, 128, 255, 256, 65_535, 65_536] {
            let content = vec![7; length];
            let flat = written(|writer| writer.element(OCTET_STRING, &content));
            let nested = written(|writer| writer.nested(OCTET_STRING, |writer| writer.raw(&content)));
            assert_eq!(flat, nested, "{length}");
            let mut reader = Reader::new(&flat);
            let element = reader.next().unwrap();
            assert_eq!(
                (element.tag, element.content.len(), element.raw.len()),
                (OCTET_STRING, length, flat.len())
            );
            assert!(reader.is_empty());
        }
    }

    #[test]
    fn integers_are_positive_and_minimal() {
        assert_eq!(written(|w| w.integer(&[0, 0, 1])), [2, 1, 1]);
        assert_eq!(written(|w| w.integer(&[0x80])), [2, 2, 0, 0x80]);
        assert_eq!(written(|w| w.integer(&[0])), [2, 1, 0]);
        assert_eq!(positive_integer(&[0, 0x80], "").unwrap(), [0x80]);
        for bad in [&[][..], &[0], &[0, 1], &[0x80], &[0xff, 0xff]] {
            assert!(positive_integer(bad, "").is_err(), "{bad:?}");
        }
    }

    #[test]
    fn dates_change_form_in_2050() {
        let time = |seconds| written(|w| w.time(Timestamp::from_unix_seconds(seconds)).unwrap());
        assert_eq!(time(0), b"\x17\x0d700101000000Z");
        assert_eq!(time(2_524_607_999), b"\x17\x0d491231235959Z");
        assert_eq!(time(2_524_608_000), b"\x18\x0f20500101000000Z");
        assert_eq!(time(-631_152_000), b"\x17\x0d500101000000Z");
        assert_eq!(time(-631_152_001), b"\x18\x0f19491231235959Z");
        assert_eq!(time(253_402_300_799), b"\x18\x0f99991231235959Z");
        for seconds in [253_402_300_800, i64::MAX / 1000, -99_999_999_999] {
            assert!(Writer::default().time(Timestamp::from_unix_seconds(seconds)).is_err(), "{seconds}");
        }
    }

    #[test]
    fn non_canonical_headers_are_refused() {
        for bad in [
            &b""[..],
            b"\x30",
            b"\x30\x05\x00",
            b"\x30\x80\x00\x00",
            b"\x04\x81\x01\x00",
            b"\x04\x82\x00\x80",
            b"\x1f\x81\x00",
            b"\x04\x85\x01\x00\x00\x00\x00",
            b"\x04\x84\xff\xff\xff\xff",
        ] {
            assert!(Reader::new(bad).next().is_err(), "{bad:?}");
        }
    }
}
