//! Distinguished names, as raw DER: names of other people are copied, never re-encoded.

use crate::der::{self, DerError, Reader, Writer};

pub(crate) const COUNTRY: &[u8] = &[0x55, 0x04, 0x06];
pub(crate) const ORGANIZATION: &[u8] = &[0x55, 0x04, 0x0a];
pub(crate) const ORGANIZATIONAL_UNIT: &[u8] = &[0x55, 0x04, 0x0b];
pub(crate) const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
pub(crate) const SERIAL_NUMBER: &[u8] = &[0x55, 0x04, 0x05];

/// The name without any attribute.
pub(crate) const EMPTY: &[u8] = &[der::SEQUENCE, 0];

/// `C=US, O=SPIRE`: the subject of leaf certificates and agent CSRs.
pub(crate) const DEFAULT: &[u8] = &[
    0x30, 0x1d, 0x31, 0x0b, 0x30, 0x09, 0x06, 0x03, 0x55, 0x04, 0x06, 0x13, 0x02, b'U', b'S', 0x31, 0x0e,
    0x30, 0x0c, 0x06, 0x03, 0x55, 0x04, 0x0a, 0x13, 0x05, b'S', b'P', b'I', b'R', b'E',
];

/// Checks the shape of a name: a sequence of non-empty sets of attributes.
pub(crate) fn check(raw: &[u8]) -> Result<(), DerError> {
    let mut outer = Reader::new(raw);
    let name = outer.expect(der::SEQUENCE, "name is not a sequence")?;
    outer.end("bytes after the name")?;
    let mut sets = Reader::new(name.content);
    while !sets.is_empty() {
        let set = sets.expect(der::SET, "name contains something other than a set")?;
        let mut attributes = Reader::new(set.content);
        if attributes.is_empty() {
            return Err(DerError("name contains an empty set"));
        }
        while !attributes.is_empty() {
            let attribute = attributes.expect(der::SEQUENCE, "name attribute is not a sequence")?;
            let mut parts = Reader::new(attribute.content);
            parts.expect(der::OID, "name attribute has no type")?;
            parts.next()?;
            parts.end("name attribute has more than a value")?;
        }
    }
    Ok(())
}

/// `raw`, less every attribute of type `kind`, plus one with `value` at the end.
pub(crate) fn with_attribute(raw: &[u8], kind: &[u8], value: &str) -> Result<Vec<u8>, DerError> {
    let name = Reader::new(raw).expect(der::SEQUENCE, "name is not a sequence")?;
    let mut kept = Writer::with_capacity(raw.len() + value.len() + 16);
    let mut sets = Reader::new(name.content);
    while !sets.is_empty() {
        let set = sets.expect(der::SET, "name contains something other than a set")?;
        let mut attributes = Reader::new(set.content);
        let mut others = Writer::default();
        let mut dropped = false;
        while !attributes.is_empty() {
            let attribute = attributes.expect(der::SEQUENCE, "name attribute is not a sequence")?;
            let oid = Reader::new(attribute.content).expect(der::OID, "name attribute has no type")?;
            if oid.content == kind {
                dropped = true;
            } else {
                others.raw(attribute.raw);
            }
        }
        let others = others.finish();
        if !dropped {
            kept.raw(set.raw);
        } else if !others.is_empty() {
            kept.element(der::SET, &others);
        }
    }
    attribute(&mut kept, kind, value);
    let kept = kept.finish();
    let mut out = Writer::with_capacity(kept.len() + 4);
    out.element(der::SEQUENCE, &kept);
    Ok(out.finish())
}

/// Writes one attribute as a set of its own.
pub(crate) fn attribute(writer: &mut Writer, kind: &[u8], value: &str) {
    let tag = if value.bytes().all(printable) { der::PRINTABLE_STRING } else { der::UTF8_STRING };
    writer.nested(der::SET, |writer| {
        writer.sequence(|writer| {
            writer.element(der::OID, kind);
            writer.element(tag, value.as_bytes());
        });
    });
}

/// The characters of a PrintableString (X.680 41.4).
fn printable(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b" '()+,-./:=?".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(attributes: &[(&[u8], &str)]) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.sequence(|writer| attributes.iter().for_each(|(kind, value)| attribute(writer, kind, value)));
        writer.finish()
    }

    #[test]
    fn the_default_is_what_the_writer_makes() {
        assert_eq!(DEFAULT, name(&[(COUNTRY, "US"), (ORGANIZATION, "SPIRE")]));
        assert_eq!(check(DEFAULT), Ok(()));
        assert_eq!(check(EMPTY), Ok(()));
    }

    #[test]
    fn an_attribute_is_replaced_wherever_it_was() {
        let before = name(&[(COMMON_NAME, "a"), (ORGANIZATION, ""), (COMMON_NAME, "b")]);
        let after = with_attribute(&before, COMMON_NAME, "*.c.org").unwrap();
        assert_eq!(after, name(&[(ORGANIZATION, ""), (COMMON_NAME, "*.c.org")]));
        assert_eq!(with_attribute(EMPTY, COMMON_NAME, "x").unwrap(), name(&[(COMMON_NAME, "x")]));
    }

    #[test]
    fn a_multi_valued_set_keeps_its_other_attributes() {
        let mut writer = Writer::default();
        writer.sequence(|writer| {
            writer.nested(der::SET, |writer| {
                for (kind, value) in [(COMMON_NAME, "a"), (ORGANIZATIONAL_UNIT, "u")] {
                    writer.sequence(|writer| {
                        writer.element(der::OID, kind);
                        writer.element(der::UTF8_STRING, value.as_bytes());
                    });
                }
            });
        });
        let before = writer.finish();
        assert_eq!(check(&before), Ok(()));
        let after = with_attribute(&before, COMMON_NAME, "z").unwrap();
        let mut expected = Writer::default();
        expected.sequence(|writer| {
            writer.nested(der::SET, |writer| {
                writer.sequence(|writer| {
                    writer.element(der::OID, ORGANIZATIONAL_UNIT);
                    writer.element(der::UTF8_STRING, b"u");
                });
            });
            attribute(writer, COMMON_NAME, "z");
        });
        assert_eq!(after, expected.finish());
    }

    #[test]
    fn odd_shapes_are_refused() {
        for bad in [
            &b""[..],
            b"\x31\x00",
            b"\x30\x00\x00",
            b"\x30\x02\x31\x00",
            b"\x30\x02\x30\x00",
            b"\x30\x04\x31\x02\x30\x00",
            b"\x30\x06\x31\x04\x30\x02\x06\x00",
            b"\x30\x0a\x31\x08\x30\x06\x06\x00\x0c\x00\x0c\x00",
        ] {
            assert!(check(bad).is_err(), "{bad:?}");
        }
    }
}
