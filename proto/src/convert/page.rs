//! Answers to the polling of agents, written as bytes straight from the domain types.
//!
//! Every agent asks every few seconds for everything it is entitled to, so this is most of what a server says. As
//! messages of generated types each of these entries would be a dozen texts that are copied, measured, written and
//! thrown away. The bytes are those that the generated types would give, which is what `tests/it` holds them against.

use bonafide_identity::{Entry, Selector, SpiffeId, Timestamp};
use bytes::BufMut;
use prost::encoding::{encode_varint, encoded_len_varint};

use super::entry::{ALL, seconds};
use crate::spire::types::EntryMask;

/// One `SyncAuthorizedEntriesResponse`.
#[derive(Clone, Copy, Debug)]
pub struct SyncPage<'a, I> {
    /// What it tells of.
    pub entries: I,
    /// How it tells of them.
    pub form: SyncForm<'a>,
    /// Whether further messages follow in this answer.
    pub more: bool,
}

/// How a page tells of its entries.
#[derive(Clone, Copy, Debug)]
pub enum SyncForm<'a> {
    /// The fields of a mask; absent: all.
    Full(Option<&'a EntryMask>),
    /// Revision and time of creation.
    Revisions,
}

impl<'a, I: Iterator<Item = &'a Entry> + Clone> SyncPage<'_, I> {
    /// The length of the message in bytes.
    pub fn encoded_len(&self) -> usize {
        let mut length = Length(0);
        self.write(&mut length);
        length.0
    }

    /// Writes the message.
    pub fn encode(&self, buffer: &mut impl BufMut) {
        self.write(&mut Bytes(buffer));
    }
}

impl<'a, I: Iterator<Item = &'a Entry> + Clone> Fields for SyncPage<'_, I> {
    fn write(&self, to: &mut impl Sink) {
        match self.form {
            SyncForm::Revisions => self.entries.clone().for_each(|entry| to.message(1, &Revision(entry))),
            SyncForm::Full(mask) => {
                let mask = mask.unwrap_or(&ALL);
                self.entries.clone().for_each(|entry| to.message(2, &Masked { entry, mask }));
            }
        }
        to.flag(3, self.more);
    }
}

/// The fields of a message, in the order of their numbers. Those with the default value are left out.
trait Fields {
    fn write(&self, to: &mut impl Sink);
}

/// Where fields go.
trait Sink {
    fn varint(&mut self, value: u64);
    fn bytes(&mut self, bytes: &[u8]);

    /// Key of a field of wire type `kind` (0 is a number, 2 has a length).
    fn key(&mut self, number: u32, kind: u32) {
        self.varint(u64::from(number << 3 | kind));
    }

    fn number(&mut self, number: u32, value: i64) {
        if value != 0 {
            self.key(number, 0);
            // Negative numbers in two's complement, as the format has it.
            self.varint(value.cast_unsigned());
        }
    }

    fn flag(&mut self, number: u32, value: bool) {
        self.number(number, i64::from(value));
    }

    fn text(&mut self, number: u32, value: &str) {
        if !value.is_empty() {
            self.member(number, value);
        }
    }

    /// A text of a list, which is there even when it is empty.
    fn member(&mut self, number: u32, value: &str) {
        self.key(number, 2);
        self.varint(value.len() as u64);
        self.bytes(value.as_bytes());
    }

    fn message(&mut self, number: u32, fields: &impl Fields)
    where
        Self: Sized,
    {
        let mut length = Length(0);
        fields.write(&mut length);
        self.key(number, 2);
        self.varint(length.0 as u64);
        fields.write(self);
    }
}

/// Counts.
struct Length(usize);

impl Sink for Length {
    fn varint(&mut self, value: u64) {
        self.0 += encoded_len_varint(value);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.0 += bytes.len();
    }

    fn message(&mut self, number: u32, fields: &impl Fields) {
        let mut length = Self(0);
        fields.write(&mut length);
        self.key(number, 2);
        self.varint(length.0 as u64);
        self.0 += length.0;
    }
}

/// Writes.
struct Bytes<'a, B>(&'a mut B);

impl<B: BufMut> Sink for Bytes<'_, B> {
    fn varint(&mut self, value: u64) {
        encode_varint(value, self.0);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.0.put_slice(bytes);
    }
}

struct Masked<'a> {
    entry: &'a Entry,
    mask: &'a EntryMask,
}

impl Fields for Masked<'_> {
    fn write(&self, to: &mut impl Sink) {
        let Self { entry, mask } = *self;
        to.text(1, entry.id.as_str());
        if mask.spiffe_id {
            to.message(2, &entry.spiffe_id);
        }
        if mask.parent_id {
            to.message(3, &entry.parent_id);
        }
        if mask.selectors {
            entry.selectors.iter().for_each(|selector| to.message(4, selector));
        }
        if mask.x509_svid_ttl {
            to.number(5, i64::from(seconds(entry.x509_svid_ttl)));
        }
        if mask.federates_with {
            entry.federates_with.iter().for_each(|name| to.member(6, name.as_str()));
        }
        to.flag(7, mask.admin && entry.admin);
        to.flag(8, mask.downstream && entry.downstream);
        if mask.expires_at {
            to.number(9, entry.expires_at.map_or(0, Timestamp::unix_seconds));
        }
        if mask.dns_names {
            entry.dns_names.iter().for_each(|name| to.member(10, name.as_str()));
        }
        if mask.revision_number {
            to.number(11, entry.revision);
        }
        to.flag(12, mask.store_svid && entry.store_svid);
        if mask.jwt_svid_ttl {
            to.number(13, i64::from(seconds(entry.jwt_svid_ttl)));
        }
        if mask.hint {
            to.text(14, &entry.hint);
        }
        if mask.created_at {
            to.number(15, entry.created_at.unix_seconds());
        }
        if mask.additional_attributes && (entry.disable_x509_svid_prefetch || entry.jwt_svid_include_jti) {
            to.message(16, &Attributes(entry));
        }
    }
}

struct Attributes<'a>(&'a Entry);

impl Fields for Attributes<'_> {
    fn write(&self, to: &mut impl Sink) {
        to.flag(1, self.0.disable_x509_svid_prefetch);
        to.flag(2, self.0.jwt_svid_include_jti);
    }
}

impl Fields for SpiffeId {
    fn write(&self, to: &mut impl Sink) {
        to.text(1, self.trust_domain().as_str());
        to.text(2, self.path());
    }
}

impl Fields for Selector {
    fn write(&self, to: &mut impl Sink) {
        to.text(1, self.kind());
        to.text(2, self.value());
    }
}

struct Revision<'a>(&'a Entry);

impl Fields for Revision<'_> {
    fn write(&self, to: &mut impl Sink) {
        to.text(1, self.0.id.as_str());
        to.number(2, self.0.revision);
        to.number(3, self.0.created_at.unix_seconds());
    }
}
