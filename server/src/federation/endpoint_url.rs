//! The address of a bundle endpoint (SPIFFE Federation, section 5.1).

use std::fmt;
use std::net::Ipv6Addr;

use http::Uri;

/// Why a text is not the address of a bundle endpoint. The text is what SPIRE says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointUrlError {
    /// It is no URL.
    #[error("failed to parse bundle endpoint URL: {0}")]
    Malformed(String),
    /// It is of another scheme than `https`.
    #[error("bundle endpoint URL must use the https scheme")]
    Scheme,
    /// It names no host.
    #[error("bundle endpoint URL must specify the host")]
    NoHost,
    /// It holds a user name, which would not be sent.
    #[error("bundle endpoint URL must not contain user info")]
    UserInfo,
}

/// An `https` URL with a host and without user information.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointUrl {
    text: String,
    host: String,
    port: u16,
    target: String,
}

impl EndpointUrl {
    /// The longest URL that is accepted, in bytes.
    pub const MAX: usize = 2048;

    /// Parses a URL; a fragment is ignored.
    ///
    /// # Errors
    /// [`EndpointUrlError`].
    pub fn parse(text: &str) -> Result<Self, EndpointUrlError> {
        let malformed = |why: &str| EndpointUrlError::Malformed(why.to_owned());
        if text.len() > Self::MAX {
            return Err(malformed("it is longer than 2048 bytes"));
        }
        let (scheme, rest) = text.split_once(':').ok_or(EndpointUrlError::Scheme)?;
        if !scheme.eq_ignore_ascii_case("https") {
            return Err(EndpointUrlError::Scheme);
        }
        let rest = rest.strip_prefix("//").ok_or(EndpointUrlError::NoHost)?;
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let authority = &rest[..end];
        if authority.contains('@') {
            return Err(EndpointUrlError::UserInfo);
        }
        if authority.is_empty() || authority.starts_with(':') {
            return Err(EndpointUrlError::NoHost);
        }
        let without_fragment = text.split('#').next().unwrap_or(text);
        let uri: Uri =
            without_fragment.parse().map_err(|error: http::uri::InvalidUri| malformed(&error.to_string()))?;
        let host = uri.host().filter(|host| !host.is_empty()).ok_or(EndpointUrlError::NoHost)?;
        let port = match uri.port() {
            Some(port) => port.as_u16(),
            // `Uri` takes "host:" and "host:99999" as a host without a port.
            None if authority.trim_end_matches(':').len() > host.len() => {
                return Err(malformed("invalid port"));
            }
            None => 443,
        };
        let target = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        let target = if target.starts_with('/') { target.to_owned() } else { format!("/{target}") };
        let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            // `Uri` does not look at what is between brackets.
            Some(address) => {
                address.parse::<Ipv6Addr>().map_err(|_| malformed("invalid IPv6 address"))?;
                address.to_owned()
            }
            None if host.contains(['[', ']', ':']) => return Err(malformed("invalid host")),
            None => host.to_owned(),
        };
        Ok(Self { text: text.to_owned(), host, port, target })
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Host name or IP address, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// TCP port; 443 when none is written.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What stands in the request line: path and query.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// What stands in the `Host` header.
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        if self.port == 443 { host } else { format!("{host}:{}", self.port) }
    }
}

impl fmt::Display for EndpointUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts() {
        let parts = |text: &str| {
            let url = EndpointUrl::parse(text).unwrap();
            (url.host().to_owned(), url.port(), url.target().to_owned(), url.authority())
        };
        let of = |host: &str, port: u16, target: &str, authority: &str| {
            (host.to_owned(), port, target.to_owned(), authority.to_owned())
        };
        assert_eq!(parts("https://example.org"), of("example.org", 443, "/", "example.org"));
        assert_eq!(parts("HTTPS://example.org/"), of("example.org", 443, "/", "example.org"));
        assert_eq!(parts("https://a.b:8443/x?y=1#z"), of("a.b", 8443, "/x?y=1", "a.b:8443"));
        assert_eq!(parts("https://a?y"), of("a", 443, "/?y", "a"));
        assert_eq!(parts("https://a/x?to=b@c"), of("a", 443, "/x?to=b@c", "a"));
        assert_eq!(parts("https://[::1]:8443"), of("::1", 8443, "/", "[::1]:8443"));
    }

    #[test]
    fn what_is_refused_is_refused_in_the_words_of_spire() {
        for (text, message) in [
            ("http://example.org", "bundle endpoint URL must use the https scheme"),
            ("example.org", "bundle endpoint URL must use the https scheme"),
            ("", "bundle endpoint URL must use the https scheme"),
            ("https:example.org", "bundle endpoint URL must specify the host"),
            ("https://", "bundle endpoint URL must specify the host"),
            ("https:///x", "bundle endpoint URL must specify the host"),
            ("https://[]", "failed to parse bundle endpoint URL: invalid IPv6 address"),
            ("https://[x]", "failed to parse bundle endpoint URL: invalid IPv6 address"),
            ("https://:8443/x", "bundle endpoint URL must specify the host"),
            ("https://me@example.org", "bundle endpoint URL must not contain user info"),
            ("https://me:secret@example.org/", "bundle endpoint URL must not contain user info"),
        ] {
            assert_eq!(EndpointUrl::parse(text).unwrap_err().to_string(), message, "{text}");
        }
        for text in ["https://a:99999/", "https://a b/", "https://a/\u{7f}", "https://a\r\nX: y"] {
            let error = EndpointUrl::parse(text).unwrap_err();
            assert!(matches!(error, EndpointUrlError::Malformed(_)), "{text:?}: {error}");
        }
        let long = format!("https://a/{}", "x".repeat(EndpointUrl::MAX));
        assert!(EndpointUrl::parse(&long).is_err());
    }

    proptest::proptest! {
        #[test]
        fn what_is_parsed_is_parsed_again_and_cannot_break_a_request(text in "https://[a-z\\[\\]:@/?#%0-9 \r\n.]{0,20}") {
            if let Ok(url) = EndpointUrl::parse(&text) {
                proptest::prop_assert_eq!(EndpointUrl::parse(url.as_str()).unwrap(), url.clone());
                proptest::prop_assert!(url.target().starts_with('/') && !url.host().is_empty());
                proptest::prop_assert!(!url.target().bytes().chain(url.authority().bytes()).any(|b| b <= b' '));
            }
        }
    }
}
