//! A client of a D-Bus bus: as much of the protocol as asking a service a question needs.
//!
//! One connection serves one attestation and sees answers to its own calls only. Numbers, texts, paths, variants of
//! them and one file descriptor on the way out are all that is marshalled (D-Bus specification, "Message Protocol").
//! Messages are bounded; whatever does not parse ends the connection. The deadline is the caller's.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::UnixStream;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum DbusError {
    /// The bus cannot be reached, or hung up.
    #[error("cannot talk to the bus")]
    Io(#[from] io::Error),
    /// The bus does not let us in.
    #[error("the bus refuses to authenticate us")]
    Refused,
    /// What came is not a message, or not the one that was promised.
    #[error("the bus sent something that is not understood: {0}")]
    Malformed(&'static str),
    /// The service answered with an error.
    #[error("the service answered {0}")]
    Answer(String),
}

/// A message as far as its header goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message<'a> {
    /// What sort of message it is: 1 call, 2 return, 3 error, 4 signal.
    pub kind: u8,
    /// Its number.
    pub serial: u32,
    /// The call that it answers.
    pub reply_serial: Option<u32>,
    /// The object that is called.
    pub path: Option<&'a str>,
    /// What is called.
    pub member: Option<&'a str>,
    /// Which error it is.
    pub error_name: Option<&'a str>,
    /// Who sent it; filled in by the bus.
    pub sender: Option<&'a str>,
    /// The types in the body.
    pub signature: &'a str,
    body: &'a [u8],
    big_endian: bool,
}

impl<'a> Message<'a> {
    /// The length of the message that starts with these [`PROLOGUE`] bytes.
    ///
    /// # Errors
    /// They do not start a message, or it is longer than [`MAX_MESSAGE`].
    pub fn length(prologue: &[u8; PROLOGUE]) -> Result<usize, DbusError> {
        let big_endian = endianness(prologue[0])?;
        let mut reader = Reader { bytes: prologue, at: 4, big_endian };
        let body = reader.u32()? as usize;
        reader.u32()?;
        let fields = reader.u32()? as usize;
        if body > MAX_MESSAGE || fields > MAX_MESSAGE {
            return Err(DbusError::Malformed("a message is too long"));
        }
        let length = (PROLOGUE + fields).next_multiple_of(8) + body;
        if length > MAX_MESSAGE { Err(DbusError::Malformed("a message is too long")) } else { Ok(length) }
    }

    /// Reads one whole message.
    ///
    /// # Errors
    /// It is malformed, or something is missing or left over.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, DbusError> {
        let prologue = bytes.first_chunk().ok_or(DbusError::Malformed("a message is cut off"))?;
        if Self::length(prologue)? != bytes.len() {
            return Err(DbusError::Malformed("a message has another length than it says"));
        }
        let big_endian = endianness(bytes[0])?;
        if bytes[3] != 1 {
            return Err(DbusError::Malformed("it is of another version of the protocol"));
        }
        let mut reader = Reader { bytes, at: 8, big_endian };
        let mut message = Self {
            kind: bytes[1],
            serial: reader.u32()?,
            reply_serial: None,
            path: None,
            member: None,
            error_name: None,
            sender: None,
            signature: "",
            body: &[],
            big_endian,
        };
        let end = PROLOGUE + reader.u32()? as usize;
        while reader.at < end {
            reader.align(8)?;
            let field = reader.byte()?;
            match (field, reader.signature()?) {
                (1, "o") => message.path = Some(reader.text()?),
                (3, "s") => message.member = Some(reader.text()?),
                (4, "s") => message.error_name = Some(reader.text()?),
                (5, "u") => message.reply_serial = Some(reader.u32()?),
                (7, "s") => message.sender = Some(reader.text()?),
                (8, "g") => message.signature = reader.signature()?,
                // Fields that are not looked at, and those of later versions.
                (_, "s" | "o") => drop(reader.text()?),
                (_, "u") => drop(reader.u32()?),
                (_, "g") => drop(reader.signature()?),
                _ => return Err(DbusError::Malformed("a header field is of an unknown type")),
            }
        }
        if reader.at != end {
            return Err(DbusError::Malformed("a header field is cut off"));
        }
        reader.align(8)?;
        message.body = &bytes[reader.at..];
        Ok(message)
    }

    /// The body's first value, which is a text or an object path.
    ///
    /// # Errors
    /// It is something else.
    pub fn first_text(&self) -> Result<&'a str, DbusError> {
        if !self.signature.starts_with(['s', 'o']) {
            return Err(DbusError::Malformed("an answer is of another type than promised"));
        }
        self.reader().text()
    }

    /// The text in the variant that is the whole body.
    ///
    /// # Errors
    /// It is something else.
    pub fn text_variant(&self) -> Result<&'a str, DbusError> {
        let mut reader = self.reader();
        if self.signature != "v" || reader.signature()? != "s" {
            return Err(DbusError::Malformed("a property is of another type than promised"));
        }
        reader.text()
    }

    fn reader(&self) -> Reader<'a> {
        Reader { bytes: self.body, at: 0, big_endian: self.big_endian }
    }
}

fn endianness(mark: u8) -> Result<bool, DbusError> {
    match mark {
        b'l' => Ok(false),
        b'B' => Ok(true),
        _ => Err(DbusError::Malformed("it does not start like a message")),
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    big_endian: bool,
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], DbusError> {
        let end = self.at.checked_add(length);
        let taken = end.and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or(DbusError::Malformed("a value is cut off"))?;
        self.at += length;
        Ok(taken)
    }

    fn align(&mut self, to: usize) -> Result<(), DbusError> {
        let padding = self.take(self.at.next_multiple_of(to) - self.at)?;
        if padding.iter().all(|byte| *byte == 0) {
            Ok(())
        } else {
            Err(DbusError::Malformed("padding is not zero"))
        }
    }

    fn byte(&mut self) -> Result<u8, DbusError> {
        Ok(self.take(1)?[0])
    }

    fn u32(&mut self) -> Result<u32, DbusError> {
        self.align(4)?;
        let bytes = self.take(4)?.try_into().expect("four bytes were taken");
        Ok(if self.big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) })
    }

    fn text(&mut self) -> Result<&'a str, DbusError> {
        let length = self.u32()? as usize;
        self.terminated(length)
    }

    fn signature(&mut self) -> Result<&'a str, DbusError> {
        let length = usize::from(self.byte()?);
        self.terminated(length)
    }

    fn terminated(&mut self, length: usize) -> Result<&'a str, DbusError> {
        let text =
            std::str::from_utf8(self.take(length)?).map_err(|_| DbusError::Malformed("text is not UTF-8"))?;
        if self.byte()? != 0 || text.contains('\0') {
            return Err(DbusError::Malformed("a text does not end where it should"));
        }
        Ok(text)
    }
}

/// What is to be called.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call<'a> {
    pub(super) destination: &'a str,
    pub(super) path: &'a str,
    pub(super) interface: &'a str,
    pub(super) member: &'a str,
    pub(super) argument: Argument<'a>,
}

/// What is handed over with a call.
#[derive(Debug, Clone, Copy)]
pub(super) enum Argument<'a> {
    None,
    Text(&'a str),
    Texts(&'a str, &'a str),
    Number(u32),
    Descriptor(BorrowedFd<'a>),
}

/// One connection to a bus.
pub(super) struct Connection {
    stream: UnixStream,
    /// Whether descriptors can be handed over.
    pub(super) descriptors: bool,
    serial: u32,
    buffer: Vec<u8>,
}

impl Connection {
    /// Connects and introduces itself.
    pub(super) async fn open(socket: &Path) -> Result<Self, DbusError> {
        let mut stream = UnixStream::connect(socket).await?;
        let uid = rustix::process::geteuid().as_raw().to_string();
        let hello = format!("\0AUTH EXTERNAL {}\r\n", data_encoding::HEXLOWER.encode(uid.as_bytes()));
        stream.write_all(hello.as_bytes()).await?;
        if !line(&mut stream).await?.starts_with("OK ") {
            return Err(DbusError::Refused);
        }
        stream.write_all(b"NEGOTIATE_UNIX_FD\r\n").await?;
        let descriptors = line(&mut stream).await? == "AGREE_UNIX_FD";
        stream.write_all(b"BEGIN\r\n").await?;
        let mut connection = Self { stream, descriptors, serial: 0, buffer: Vec::new() };
        connection.bus("Hello", Argument::None).await?;
        Ok(connection)
    }

    /// Asks the bus itself; the answer starts with a text.
    pub(super) async fn bus(&mut self, member: &str, argument: Argument<'_>) -> Result<String, DbusError> {
        let path = "/org/freedesktop/DBus";
        let call = Call { destination: BUS, path, interface: BUS, member, argument };
        Ok(self.call(call).await?.first_text()?.to_owned())
    }

    /// Calls and waits for the answer, which must come from the destination.
    pub(super) async fn call(&mut self, call: Call<'_>) -> Result<Message<'_>, DbusError> {
        self.serial += 1;
        let serial = self.serial;
        let bytes = call.marshal(serial);
        let descriptor = match call.argument {
            Argument::Descriptor(descriptor) => Some(descriptor),
            _ => None,
        };
        self.send(&bytes, descriptor).await?;
        for _ in 0..MAX_OTHERS {
            self.receive().await?;
            // Parsed twice, for the borrow of what is returned must not outlive a round of the loop.
            let message = Message::parse(&self.buffer)?;
            let ours = matches!(message.kind, RETURN | ERROR)
                && message.reply_serial == Some(serial)
                && message.sender == Some(call.destination);
            if ours {
                return match Message::parse(&self.buffer)? {
                    Message { kind: ERROR, error_name, .. } => {
                        Err(DbusError::Answer(error_name.unwrap_or("an error without a name").to_owned()))
                    }
                    message => Ok(message),
                };
            }
        }
        Err(DbusError::Malformed("everything but an answer"))
    }

    async fn send(&mut self, mut bytes: &[u8], descriptor: Option<BorrowedFd<'_>>) -> Result<(), DbusError> {
        if let Some(descriptor) = descriptor {
            let stream = &self.stream;
            let sent = stream
                .async_io(Interest::WRITABLE, || {
                    let descriptors = [descriptor];
                    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                    let mut control = SendAncillaryBuffer::new(&mut space);
                    control.push(SendAncillaryMessage::ScmRights(&descriptors));
                    let data = [IoSlice::new(bytes)];
                    Ok(rustix::net::sendmsg(stream.as_fd(), &data, &mut control, SendFlags::NOSIGNAL)?)
                })
                .await?;
            bytes = &bytes[sent..];
        }
        Ok(self.stream.write_all(bytes).await?)
    }

    async fn receive(&mut self) -> Result<(), DbusError> {
        let mut prologue = [0; PROLOGUE];
        self.stream.read_exact(&mut prologue).await?;
        let length = Message::length(&prologue)?;
        self.buffer.clear();
        self.buffer.extend_from_slice(&prologue);
        self.buffer.resize(length, 0);
        self.stream.read_exact(&mut self.buffer[PROLOGUE..]).await?;
        Ok(())
    }
}

/// One line of the handshake. Byte by byte, for nothing behind it must be taken; it is short and local.
async fn line(stream: &mut UnixStream) -> Result<String, DbusError> {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        if line.len() > MAX_LINE {
            return Err(DbusError::Malformed("a line of the handshake is too long"));
        }
        line.push(stream.read_u8().await?);
    }
    line.truncate(line.len() - 2);
    String::from_utf8(line).map_err(|_| DbusError::Malformed("a line of the handshake is not text"))
}

impl Call<'_> {
    fn marshal(&self, serial: u32) -> Vec<u8> {
        let mut body = Writer::default();
        let signature = match self.argument {
            Argument::None => "",
            Argument::Text(text) => {
                body.text(text);
                "s"
            }
            Argument::Texts(first, second) => {
                body.text(first);
                body.text(second);
                "ss"
            }
            Argument::Number(number) => {
                body.u32(number);
                "u"
            }
            Argument::Descriptor(_) => {
                // The place among the descriptors that travel with the message.
                body.u32(0);
                "h"
            }
        };
        let mut fields = Fields::new(CALL, serial);
        fields.text(1, "o", self.path);
        fields.text(2, "s", self.interface);
        fields.text(3, "s", self.member);
        fields.text(6, "s", self.destination);
        if !signature.is_empty() {
            fields.signature(signature);
        }
        if matches!(self.argument, Argument::Descriptor(_)) {
            fields.number(9, 1);
        }
        fields.finish(&body.0)
    }
}

/// A message under construction: its header.
struct Fields(Writer);

impl Fields {
    fn new(kind: u8, serial: u32) -> Self {
        let mut writer = Writer(vec![b'l', kind, 0, 1]);
        writer.u32(0);
        writer.u32(serial);
        writer.u32(0);
        Self(writer)
    }

    fn start(&mut self, field: u8, signature: &str) {
        self.0.align(8);
        self.0.0.push(field);
        self.0.signature(signature);
    }

    fn text(&mut self, field: u8, signature: &str, value: &str) {
        self.start(field, signature);
        self.0.text(value);
    }

    fn number(&mut self, field: u8, value: u32) {
        self.start(field, "u");
        self.0.u32(value);
    }

    fn signature(&mut self, value: &str) {
        self.start(8, "g");
        self.0.signature(value);
    }

    fn finish(mut self, body: &[u8]) -> Vec<u8> {
        let fields = length(self.0.0.len() - PROLOGUE);
        self.0.0[4..8].copy_from_slice(&length(body.len()).to_le_bytes());
        self.0.0[12..16].copy_from_slice(&fields.to_le_bytes());
        self.0.align(8);
        self.0.0.extend_from_slice(body);
        self.0.0
    }
}

#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    fn u32(&mut self, value: u32) {
        self.align(4);
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn text(&mut self, value: &str) {
        self.u32(length(value.len()));
        self.0.extend_from_slice(value.as_bytes());
        self.0.push(0);
    }

    fn signature(&mut self, value: &str) {
        self.0.push(u8::try_from(value.len()).expect("our signatures are short"));
        self.0.extend_from_slice(value.as_bytes());
        self.0.push(0);
    }
}

fn length(length: usize) -> u32 {
    u32::try_from(length).expect("our messages are short")
}

/// The bytes at the start of a message that say how long it is.
pub const PROLOGUE: usize = 16;
/// Bytes of a message; the answers that are asked for have hundreds.
pub const MAX_MESSAGE: usize = 64 * 1024;

const BUS: &str = "org.freedesktop.DBus";
const CALL: u8 = 1;
const RETURN: u8 = 2;
const ERROR: u8 = 3;
/// Signals and the like that may come before an answer.
const MAX_OTHERS: usize = 64;
const MAX_LINE: usize = 1024;

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A message from a service, for its double in the tests of `systemd`.
    pub(in super::super) struct Reply<'a> {
        pub(in super::super) to: &'a str,
        pub(in super::super) serial: u32,
        pub(in super::super) error: Option<&'a str>,
        pub(in super::super) signature: &'a str,
        pub(in super::super) texts: &'a [&'a str],
    }

    impl Reply<'_> {
        pub(in super::super) fn marshal(&self, serial: u32) -> Vec<u8> {
            let mut fields = Fields::new(if self.error.is_some() { ERROR } else { RETURN }, serial);
            fields.number(5, self.serial);
            fields.text(6, "s", self.to);
            if let Some(error) = self.error {
                fields.text(4, "s", error);
            }
            let mut body = Writer::default();
            match self.signature {
                "" => {}
                "v" => {
                    body.signature("s");
                    body.text(self.texts[0]);
                }
                // Object path, unit name and invocation ID.
                "osay" => {
                    self.texts.iter().for_each(|text| body.text(text));
                    body.u32(0);
                }
                _ => self.texts.iter().for_each(|text| body.text(text)),
            }
            if !self.signature.is_empty() {
                fields.signature(self.signature);
            }
            fields.finish(&body.0)
        }
    }

    impl Connection {
        pub(in super::super) async fn next_call(&mut self) -> Result<Message<'_>, DbusError> {
            self.receive().await?;
            Message::parse(&self.buffer)
        }

        pub(in super::super) async fn reply(&mut self, reply: &Reply<'_>) -> Result<(), DbusError> {
            self.serial += 1;
            self.send(&reply.marshal(self.serial), None).await
        }

        /// Takes a well-known name; a number comes back, so this is not [`Connection::bus`].
        pub(in super::super) async fn own(&mut self, name: &str) {
            self.serial += 1;
            let mut body = Writer::default();
            body.text(name);
            body.u32(0);
            let mut fields = Fields::new(CALL, self.serial);
            fields.text(1, "o", "/org/freedesktop/DBus");
            fields.text(2, "s", BUS);
            fields.text(3, "s", "RequestName");
            fields.text(6, "s", BUS);
            fields.signature("su");
            let bytes = fields.finish(&body.0);
            self.send(&bytes, None).await.unwrap();
        }
    }

    fn answer() -> Vec<u8> {
        Reply { to: ":1.7", serial: 3, error: None, signature: "v", texts: &["a.service"] }.marshal(9)
    }

    #[test]
    fn a_message_is_read_as_it_was_written() {
        let bytes = answer();
        let message = Message::parse(&bytes).unwrap();
        assert_eq!((message.kind, message.serial, message.reply_serial), (RETURN, 9, Some(3)));
        assert_eq!(message.text_variant().unwrap(), "a.service");
        assert!(message.first_text().is_err());

        let call = Call {
            destination: "a.b",
            path: "/x",
            interface: "a.b",
            member: "Get",
            argument: Argument::Texts("i", "p"),
        };
        let bytes = call.marshal(1);
        let message = Message::parse(&bytes).unwrap();
        assert_eq!((message.kind, message.path, message.member), (CALL, Some("/x"), Some("Get")));
        assert_eq!(message.first_text().unwrap(), "i");
    }

    #[test]
    fn the_other_byte_order_is_understood() {
        // By hand: a return to call 3 whose body is the text "a".
        let mut bytes = vec![b'B', RETURN, 0, 1];
        bytes.extend([0, 0, 0, 6, 0, 0, 0, 9, 0, 0, 0, 15]);
        bytes.extend([5, 1, b'u', 0, 0, 0, 0, 3]);
        bytes.extend([8, 1, b'g', 0, 1, b's', 0, 0]);
        bytes.extend([0, 0, 0, 1, b'a', 0]);
        let message = Message::parse(&bytes).unwrap();
        assert_eq!(message.reply_serial, Some(3));
        assert_eq!(message.first_text().unwrap(), "a");
    }

    #[test]
    fn broken_messages_are_refused() {
        let whole = answer();
        for end in 0..whole.len() {
            assert!(Message::parse(&whole[..end]).is_err(), "cut at {end}");
        }
        assert!(Message::parse(&[&whole[..], &[0]].concat()).is_err(), "one byte more");
        // Whatever one byte is changed to, reading ends and panics nowhere.
        for at in 0..whole.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut broken = whole.clone();
                broken[at] = value;
                if let Ok(message) = Message::parse(&broken) {
                    drop(message.text_variant());
                    drop(message.first_text());
                }
            }
        }
        let mut huge: [u8; PROLOGUE] = *whole.first_chunk().unwrap();
        huge[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(Message::length(&huge).is_err());
    }
}
