//! Whom a load balancer speaks for: the PROXY protocol, versions 1 and 2.
//!
//! A balancer that passes TCP on hides its clients' addresses; with this protocol it writes them before the first byte of
//! TLS (<https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt>). Whoever may write such a header may have any
//! address, so it is taken from the networks in [`TrustedProxies`] only. As in SPIRE, a peer in them may leave it
//! out and has its own address then, and from any other peer a header ends the connection.
//!
//! Nothing is read beyond the header: what is there is looked at first, and taken up to the header's end. The first byte
//! tells a header from TLS. The parser is our own, for it is a page (decision record 0017).

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use thiserror::Error;
use tokio::io::{AsyncReadExt as _, Interest};
use tokio::net::TcpStream;

/// The longest header of version 1, its line end included (section 2.1).
const MAX_V1: usize = 107;
/// The longest header of version 2 that is taken, its TLVs included. The format allows 65,551 bytes; what balancers send
/// has a few hundred.
const MAX_V2: usize = 4096;
/// What a header of version 1 begins with.
const V1: &[u8] = b"PROXY ";
/// What a header of version 2 begins with.
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family and transport, length.
const V2_FIXED: usize = 16;
/// The TLV with a CRC32C over the whole header (section 2.2.3).
const PP2_TYPE_CRC32C: u8 = 0x03;

/// A network: an address and how many of its leading bits count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    network: IpAddr,
    prefix: u8,
}

/// Why a text is no network.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "is no network: write an address, a slash and the number of bits that count, such as 10.0.0.0/8 or 2001:db8::/32"
)]
pub struct NotACidr;

impl Cidr {
    /// Whether the address is in the network. An IPv4 address within IPv6 is an IPv4 address.
    pub fn contains(&self, address: IpAddr) -> bool {
        masked(address.to_canonical(), self.prefix) == Some(self.network)
            && address.to_canonical().is_ipv4() == self.network.is_ipv4()
    }

    /// How many leading bits count.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }
}

/// The address with all but `prefix` bits cleared.
fn masked(address: IpAddr, prefix: u8) -> Option<IpAddr> {
    let prefix = u32::from(prefix);
    Some(match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(Ipv4Addr::BITS.checked_sub(prefix)?).unwrap_or(0);
            Ipv4Addr::from_bits(address.to_bits() & mask).into()
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(Ipv6Addr::BITS.checked_sub(prefix)?).unwrap_or(0);
            Ipv6Addr::from_bits(address.to_bits() & mask).into()
        }
    })
}

impl FromStr for Cidr {
    type Err = NotACidr;

    /// Bits behind the prefix are cleared.
    fn from_str(text: &str) -> Result<Self, NotACidr> {
        let (address, prefix) = text.split_once('/').ok_or(NotACidr)?;
        let address: IpAddr = address.parse().map_err(|_| NotACidr)?;
        // A network of such addresses is one of IPv4, and is to be written so.
        if !prefix.bytes().all(|byte| byte.is_ascii_digit()) || address != address.to_canonical() {
            return Err(NotACidr);
        }
        let prefix = prefix.parse().map_err(|_| NotACidr)?;
        Ok(Self { network: masked(address, prefix).ok_or(NotACidr)?, prefix })
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

/// The networks whose peers may say for whom they speak; none, by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedProxies(pub Vec<Cidr>);

impl TrustedProxies {
    /// Whether a header from `address` counts.
    pub fn trusts(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(address))
    }
}

/// What the first bytes of a connection are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beginning {
    /// No header.
    Other,
    /// A header so far, or nothing; more bytes must tell.
    Partial,
    /// A header.
    Header {
        /// Its length in bytes.
        length: usize,
        /// The client that it names; `None` when the connection is the proxy's own or the client's address is no IP address.
        client: Option<SocketAddr>,
    },
}

/// Why a header cannot be used.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ProxyHeaderError {
    /// The peer may not send one.
    #[error(
        "a PROXY protocol header, or something else than TLS, came from a peer outside listen.proxy_protocol_trusted_cidrs"
    )]
    Untrusted,
    /// It begins like a header and is none.
    #[error("what begins like a PROXY protocol header is none")]
    Signature,
    /// It is longer than a header may be.
    #[error("the PROXY protocol header is too long")]
    TooLong,
    /// A line of version 1 is not as it must be.
    #[error("the line of the PROXY protocol, version 1, is malformed")]
    Line,
    /// Version, command, family or transport of version 2 do not exist.
    #[error(
        "the PROXY protocol header has the unknown version and command {0:#04x} or family and transport {1:#04x}"
    )]
    Unknown(u8, u8),
    /// The addresses or the TLVs of version 2 do not fit its length.
    #[error("the length of the PROXY protocol header does not fit what is in it")]
    Length,
    /// The checksum of version 2 is not that of the header.
    #[error("the checksum of the PROXY protocol header is wrong")]
    Checksum,
}

/// Looks at the first bytes of a connection.
///
/// # Errors
/// They begin like a header and are none that may be used.
pub fn beginning(bytes: &[u8]) -> Result<Beginning, ProxyHeaderError> {
    let signature = match bytes.first() {
        None => return Ok(Beginning::Partial),
        Some(b'P') => V1,
        Some(b'\r') => V2,
        Some(_) => return Ok(Beginning::Other),
    };
    let known = bytes.len().min(signature.len());
    if bytes[..known] != signature[..known] {
        return Err(ProxyHeaderError::Signature);
    }
    if signature == V1 { line(bytes) } else { binary(bytes) }
}

/// Version 1: `PROXY TCP4 <source> <destination> <source port> <destination port>\r\n`.
fn line(bytes: &[u8]) -> Result<Beginning, ProxyHeaderError> {
    let Some(end) = bytes.iter().take(MAX_V1).position(|byte| *byte == b'\n') else {
        return if bytes.len() < MAX_V1 { Ok(Beginning::Partial) } else { Err(ProxyHeaderError::TooLong) };
    };
    let text = bytes.get(V1.len()..end).and_then(|line| line.strip_suffix(b"\r"));
    let text = text.and_then(|line| std::str::from_utf8(line).ok()).ok_or(ProxyHeaderError::Line)?;
    let length = end + 1;
    // Whatever follows this word is to be passed over.
    if text == "UNKNOWN" || text.starts_with("UNKNOWN ") {
        return Ok(Beginning::Header { length, client: None });
    }
    let mut words = text.split(' ');
    let mut word = || words.next().unwrap_or_default();
    let family = word();
    let (source, destination) = (word().parse::<IpAddr>(), word().parse::<IpAddr>());
    let (port, destination_port) = (port(word()), port(word()));
    let (Ok(source), Ok(destination), Some(port), Some(_), None) =
        (source, destination, port, destination_port, words.next())
    else {
        return Err(ProxyHeaderError::Line);
    };
    match (family, source.is_ipv4(), destination.is_ipv4()) {
        ("TCP4", true, true) | ("TCP6", false, false) => {
            Ok(Beginning::Header { length, client: Some(SocketAddr::new(source.to_canonical(), port)) })
        }
        _ => Err(ProxyHeaderError::Line),
    }
}

/// Digits without sign and leading zeros.
fn port(text: &str) -> Option<u16> {
    let plain = text == "0" || !text.starts_with(['0', '+']);
    text.parse().ok().filter(|_| plain)
}

/// Version 2: the fixed part, addresses by family, TLVs.
fn binary(bytes: &[u8]) -> Result<Beginning, ProxyHeaderError> {
    let Some(fixed) = bytes.get(..V2_FIXED) else { return Ok(Beginning::Partial) };
    let (command, family) = (fixed[12], fixed[13]);
    let length = V2_FIXED + usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    let addresses = match family {
        0x00 => 0,
        0x11 | 0x12 => 12,
        0x21 | 0x22 => 36,
        0x31 | 0x32 => 216,
        _ => return Err(ProxyHeaderError::Unknown(command, family)),
    };
    let local = match command {
        0x20 => true,
        0x21 => false,
        _ => return Err(ProxyHeaderError::Unknown(command, family)),
    };
    if length > MAX_V2 {
        return Err(ProxyHeaderError::TooLong);
    }
    if length < V2_FIXED + addresses && !local {
        return Err(ProxyHeaderError::Length);
    }
    let Some(header) = bytes.get(..length) else { return Ok(Beginning::Partial) };
    // What comes with a connection of the proxy's own is to be passed over.
    if local {
        return Ok(Beginning::Header { length, client: None });
    }
    let (addresses, tlvs) = header[V2_FIXED..].split_at(addresses);
    // Without a family, what would be addresses is not said to be TLVs.
    if family != 0x00 {
        check_tlvs(header, tlvs)?;
    }
    let port = |at: usize| u16::from_be_bytes([addresses[at], addresses[at + 1]]);
    let client = match (family >> 4, addresses.first_chunk::<4>(), addresses.first_chunk::<16>()) {
        (1, Some(source), _) => Some(SocketAddr::new(Ipv4Addr::from(*source).into(), port(8))),
        (2, _, Some(source)) => {
            Some(SocketAddr::new(IpAddr::from(Ipv6Addr::from(*source)).to_canonical(), port(32)))
        }
        _ => None,
    };
    Ok(Beginning::Header { length, client })
}

/// TLVs must fill their space, and a checksum must be right. All others are passed over.
fn check_tlvs(header: &[u8], mut tlvs: &[u8]) -> Result<(), ProxyHeaderError> {
    while let [kind, high, low, rest @ ..] = tlvs {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let (value, rest) = rest.split_at_checked(length).ok_or(ProxyHeaderError::Length)?;
        if *kind == PP2_TYPE_CRC32C {
            let said: [u8; 4] = value.try_into().map_err(|_| ProxyHeaderError::Length)?;
            let at = header.len() - rest.len() - value.len();
            let (before, after) = (&header[..at], &header[at + value.len()..]);
            if crc32c([before, &[0; 4], after].into_iter().flatten()) != u32::from_be_bytes(said) {
                return Err(ProxyHeaderError::Checksum);
            }
        }
        tlvs = rest;
    }
    if tlvs.is_empty() { Ok(()) } else { Err(ProxyHeaderError::Length) }
}

/// CRC32C (RFC 4960, appendix B), bit by bit: a header is short.
fn crc32c<'a>(bytes: impl Iterator<Item = &'a u8>) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    !bytes.fold(u32::MAX, |mut sum, byte| {
        sum ^= u32::from(*byte);
        for _ in 0..8 {
            sum = if sum & 1 == 1 { sum >> 1 ^ POLYNOMIAL } else { sum >> 1 };
        }
        sum
    })
}

/// Why the first bytes of a connection did not come or cannot be used.
#[derive(Debug, Error)]
pub(super) enum ReadError {
    #[error(transparent)]
    Header(#[from] ProxyHeaderError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Takes the header off the stream, where there is one, and gives the client that it names. The caller bounds the time.
///
/// # Errors
/// The peer leaves, or sends a header that cannot be used or that it may not send.
pub(super) async fn take_header(
    stream: &mut TcpStream,
    trusted: bool,
) -> Result<Option<SocketAddr>, ReadError> {
    let mut taken: Vec<u8> = Vec::new();
    let mut seen = [0; 256];
    loop {
        stream.ready(Interest::READABLE).await?;
        let count = stream.peek(&mut seen).await?;
        if count == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let before = taken.len();
        taken.extend_from_slice(&seen[..count]);
        let found = beginning(&taken);
        if !trusted && !matches!(found, Ok(Beginning::Other)) {
            return Err(ProxyHeaderError::Untrusted.into());
        }
        match found? {
            Beginning::Other => return Ok(None),
            Beginning::Partial => drop(stream.read_exact(&mut seen[..count]).await?),
            Beginning::Header { length, client } => {
                stream.read_exact(&mut seen[..length - before]).await?;
                return Ok(client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(bytes: &[u8]) -> (usize, Option<String>) {
        match beginning(bytes) {
            Ok(Beginning::Header { length, client }) => (length, client.map(|client| client.to_string())),
            other => panic!("{other:?} for {bytes:?}"),
        }
    }

    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [V2, &[command, family], &length, rest].concat()
    }

    #[test]
    fn lines_of_version_1() {
        for (text, client) in [
            ("PROXY TCP4 192.0.2.7 10.0.0.1 56324 443\r\n", Some("192.0.2.7:56324")),
            ("PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", Some("255.255.255.255:65535")),
            ("PROXY TCP6 2001:db8::7 2001:db8::1 1 0\r\n", Some("[2001:db8::7]:1")),
            ("PROXY TCP6 ::ffff:192.0.2.7 ::1 1 2\r\n", Some("192.0.2.7:1")),
            ("PROXY UNKNOWN\r\n", None),
            ("PROXY UNKNOWN ffff::1 whatever there is\r\n", None),
        ] {
            assert_eq!(header(text.as_bytes()), (text.len(), client.map(str::to_owned)), "{text}");
            assert_eq!(header(format!("{text}\x16\x03").as_bytes()).0, text.len());
        }
        for text in [
            "PROXY TCP4 192.0.2.7 10.0.0.1 56324 443\n",
            "PROXY TCP4 192.0.2.7 10.0.0.1 56324 443 \r\n",
            "PROXY  TCP4 192.0.2.7 10.0.0.1 56324 443\r\n",
            "PROXY TCP4 192.0.2.7 10.0.0.1 56324\r\n",
            "PROXY TCP4 192.0.2.7 10.0.0.1 +1 443\r\n",
            "PROXY TCP4 192.0.2.7 10.0.0.1 01 443\r\n",
            "PROXY TCP4 192.0.2.7 10.0.0.1 65536 443\r\n",
            "PROXY TCP4 2001:db8::7 2001:db8::1 1 2\r\n",
            "PROXY TCP6 192.0.2.7 10.0.0.1 1 2\r\n",
            "PROXY TCP4 192.0.2.07 10.0.0.1 1 2\r\n",
            "PROXY UDP4 192.0.2.7 10.0.0.1 1 2\r\n",
            "PROXY UNKNOWNS\r\n",
            "PROXY \r\n",
            "PROXY \n",
        ] {
            assert_eq!(beginning(text.as_bytes()), Err(ProxyHeaderError::Line), "{text}");
        }
        let endless = [V1, &[b'x'; MAX_V1]].concat();
        assert_eq!(beginning(&endless), Err(ProxyHeaderError::TooLong));
        assert_eq!(beginning(&endless[..MAX_V1 - 1]), Ok(Beginning::Partial));
    }

    #[test]
    fn headers_of_version_2() {
        let four = [192, 0, 2, 7, 10, 0, 0, 1, 0xdc, 0x04, 0x01, 0xbb];
        let mut six = [0; 36];
        six[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
        (six[15], six[32], six[33]) = (7, 1, 2);
        let tlvs = [&four[..], &[0x04, 0, 2, 0, 0, 0xea, 0, 3, 1, b'a', b'b']].concat();
        for (bytes, client) in [
            (v2(0x21, 0x11, &four), Some("192.0.2.7:56324")),
            (v2(0x21, 0x21, &six), Some("[2001:db8::7]:258")),
            (v2(0x21, 0x11, &tlvs), Some("192.0.2.7:56324")),
            (v2(0x21, 0x31, &[0; 216]), None),
            (v2(0x21, 0x00, b"any"), None),
            (v2(0x20, 0x00, &[]), None),
            (v2(0x20, 0x11, &four), None),
            (v2(0x20, 0x11, &[]), None),
        ] {
            assert_eq!(header(&bytes), (bytes.len(), client.map(str::to_owned)), "{bytes:x?}");
        }
        let unknown = |command, family| Err(ProxyHeaderError::Unknown(command, family));
        for (bytes, error) in [
            (v2(0x11, 0x11, &four), unknown(0x11, 0x11)),
            (v2(0x22, 0x11, &four), unknown(0x22, 0x11)),
            (v2(0x21, 0x13, &four), unknown(0x21, 0x13)),
            (v2(0x21, 0x41, &four), unknown(0x21, 0x41)),
            (v2(0x21, 0x11, &four[..11]), Err(ProxyHeaderError::Length)),
            (v2(0x21, 0x21, &six[..35]), Err(ProxyHeaderError::Length)),
            (v2(0x21, 0x11, &tlvs[..tlvs.len() - 1]), Err(ProxyHeaderError::Length)),
            (v2(0x21, 0x11, &[&four[..], &[4, 0]].concat()), Err(ProxyHeaderError::Length)),
            (v2(0x21, 0x11, &[0; MAX_V2]), Err(ProxyHeaderError::TooLong)),
        ] {
            assert_eq!(beginning(&bytes), error, "{bytes:x?}");
        }
    }

    #[test]
    fn a_checksum_is_that_of_the_header() {
        assert_eq!(crc32c(b"123456789".iter()), 0xe306_9283, "the check value of CRC-32/ISCSI");
        let mut rest =
            vec![192, 0, 2, 7, 10, 0, 0, 1, 0, 1, 0, 2, PP2_TYPE_CRC32C, 0, 4, 0, 0, 0, 0, 4, 0, 0];
        let sum = crc32c(v2(0x21, 0x11, &rest).iter());
        assert_eq!(beginning(&v2(0x21, 0x11, &rest)), Err(ProxyHeaderError::Checksum));
        rest[15..19].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(header(&v2(0x21, 0x11, &rest)).1.as_deref(), Some("192.0.2.7:1"));
        rest[0] ^= 1;
        assert_eq!(beginning(&v2(0x21, 0x11, &rest)), Err(ProxyHeaderError::Checksum));
    }

    /// However the bytes arrive, the answer is the same: each beginning of a header is one.
    #[test]
    fn what_is_cut_is_a_beginning() {
        let four = [192, 0, 2, 7, 10, 0, 0, 1, 0xdc, 0x04, 0x01, 0xbb];
        for whole in
            [b"PROXY TCP4 192.0.2.7 10.0.0.1 56324 443\r\n".to_vec(), v2(0x21, 0x11, &four), v2(0x20, 0, &[])]
        {
            for length in 0..whole.len() {
                assert_eq!(beginning(&whole[..length]), Ok(Beginning::Partial), "{length} of {whole:x?}");
            }
        }
        assert_eq!(beginning(b"\x16\x03\x01"), Ok(Beginning::Other));
        assert_eq!(beginning(b"PRI * HTTP/2.0"), Err(ProxyHeaderError::Signature));
        assert_eq!(beginning(b"\r\n\r\nGET"), Err(ProxyHeaderError::Signature));
    }

    #[test]
    fn networks() {
        let of = |text: &str| text.parse::<Cidr>().unwrap();
        let within = |network: &str, address: &str| of(network).contains(address.parse().unwrap());
        assert!(within("10.0.0.0/8", "10.255.0.1") && !within("10.0.0.0/8", "11.0.0.1"));
        assert!(within("10.1.2.3/8", "10.255.0.1"), "bits behind the prefix do not count");
        assert_eq!(of("10.1.2.3/8").to_string(), "10.0.0.0/8");
        assert!(within("10.0.0.0/8", "::ffff:10.0.0.1"));
        assert!(within("2001:db8::/32", "2001:db8:ffff::1") && !within("2001:db8::/32", "2001:db9::"));
        assert!(within("192.0.2.7/32", "192.0.2.7") && !within("192.0.2.7/32", "192.0.2.6"));
        assert!(within("0.0.0.0/0", "203.0.113.1") && !within("0.0.0.0/0", "2001:db8::1"));
        assert!(within("::/0", "2001:db8::1") && !within("::/0", "203.0.113.1"));
        for wrong in [
            "",
            "10.0.0.0",
            "10.0.0.0/33",
            "10.0.0/8",
            "::1/129",
            "::1/+1",
            "::1/",
            "::ffff:10.0.0.0/104",
            "a/1",
        ] {
            assert_eq!(wrong.parse::<Cidr>(), Err(NotACidr), "{wrong}");
        }
        assert!(!TrustedProxies::default().trusts("127.0.0.1".parse().unwrap()));
    }
}
