//! `host:port`.

use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use tokio::net::TcpStream;

/// Where an upstream server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// A name or an IP address without brackets.
    pub host: String,
    /// The TCP port.
    pub port: u16,
}

impl Address {
    /// Connects to the first of the addresses behind the name that answers.
    ///
    /// # Errors
    /// The name has no address, or the last of them does not answer.
    pub(super) async fn dial(&self) -> std::io::Result<TcpStream> {
        let found: Vec<SocketAddr> =
            tokio::net::lookup_host((self.host.as_str(), self.port)).await?.take(MOST_ADDRESSES).collect();
        let mut last = std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address");
        for address in found {
            match tokio::time::timeout(DIAL_TIMEOUT, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => {
                    stream.set_nodelay(true)?;
                    return Ok(stream);
                }
                Ok(Err(error)) => last = error,
                Err(_) => last = std::io::ErrorKind::TimedOut.into(),
            }
        }
        Err(last)
    }
}

impl FromStr for Address {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const SHAPE: &str = "must have the form host:port, with brackets around an IPv6 address";
        let (host, port) = text.rsplit_once(':').ok_or(SHAPE)?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or(SHAPE)?;
        let host = match host.strip_prefix('[') {
            Some(inner) => inner.strip_suffix(']').filter(|inner| inner.parse::<Ipv6Addr>().is_ok()),
            None => Some(host).filter(|host| !host.contains([':', ']', '/', '@', ' '])),
        };
        let host = host.filter(|host| !host.is_empty()).ok_or(SHAPE)?;
        Ok(Self { host: host.to_owned(), port })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// For the TCP handshake with one address.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// A name with more addresses than these is asked at no more of them.
const MOST_ADDRESSES: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_and_port() {
        for (text, host, port) in
            [("root.example.org:8081", "root.example.org", 8081), ("[::1]:443", "::1", 443)]
        {
            let address: Address = text.parse().unwrap();
            assert_eq!((address.host.as_str(), address.port), (host, port));
            assert_eq!(address.to_string(), text);
        }
        for text in ["", "host", ":1", "host:", "host:0", "host:70000", "::1:443", "a@b:1", "https://host:1"]
        {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }
}
