//! PEM (RFC 7468): labelled base64 between two lines. Text between blocks is skipped, as every tool does.

use data_encoding::{BASE64, DecodeError};
use zeroize::Zeroizing;

/// Why a text is not PEM.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PemError {
    /// The text is not UTF-8.
    #[error("PEM text is not UTF-8")]
    NotText,
    /// A block was begun and not ended, or ended under another label.
    #[error("PEM block {0:?} has no end line")]
    Unfinished(String),
    /// The content of a block is not base64.
    #[error("PEM block {0:?} is not base64")]
    NotBase64(String),
}

/// One block, lines of 64 characters, with a final newline.
pub fn encode(label: &str, der: &[u8]) -> String {
    let body = Zeroizing::new(BASE64.encode(der));
    // Sized once: a private key may pass through here, and growing would leave copies behind.
    let mut out = String::with_capacity(body.len() + body.len() / 64 + 2 * label.len() + 40);
    out.push_str(BEGIN);
    out.push_str(label);
    out.push_str("-----\n");
    let mut rest: &str = &body;
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        out.push_str(line);
        out.push('\n');
        rest = after;
    }
    out.push_str(END);
    out.push_str(label);
    out.push_str("-----\n");
    out
}

/// All blocks of a text in order, each as label and content.
///
/// # Errors
/// [`PemError`] when a block is broken; a text without any block gives an empty list.
pub fn decode_all(text: &[u8]) -> Result<Vec<(String, Vec<u8>)>, PemError> {
    let text = std::str::from_utf8(text).map_err(|_| PemError::NotText)?;
    let mut blocks = Vec::new();
    let mut lines = text.lines().map(str::trim);
    while let Some(line) = lines.next() {
        let Some(label) = marker(line, BEGIN) else { continue };
        let mut parts = Vec::new();
        loop {
            let line = lines.next().ok_or_else(|| PemError::Unfinished(label.to_owned()))?;
            match marker(line, END) {
                Some(end) if end == label => break,
                Some(_) => return Err(PemError::Unfinished(label.to_owned())),
                None if line.starts_with(BEGIN) => return Err(PemError::Unfinished(label.to_owned())),
                None => parts.extend(line.split_ascii_whitespace()),
            }
        }
        // Joined in one piece: it may be a private key, and growing would leave copies behind.
        let body = Zeroizing::new(parts.concat());
        let content =
            BASE64.decode(body.as_bytes()).map_err(|_: DecodeError| PemError::NotBase64(label.to_owned()))?;
        blocks.push((label.to_owned(), content));
    }
    Ok(blocks)
}

fn marker<'a>(line: &'a str, start: &str) -> Option<&'a str> {
    line.strip_prefix(start)?.strip_suffix("-----")
}

const BEGIN: &str = "-----BEGIN ";
const END: &str = "-----END ";

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn text_around_blocks_and_windows_line_ends_are_tolerated() {
        let text = b"subject=x\r\n-----BEGIN A-----\r\nAQI=\r\n-----END A-----\r\nmore\n-----BEGIN B-----\n  Aw == \n-----END B-----";
        let expected = vec![("A".to_owned(), vec![1, 2]), ("B".to_owned(), vec![3])];
        assert_eq!(decode_all(text), Ok(expected));
        assert_eq!(decode_all(b""), Ok(Vec::new()));
    }

    #[test]
    fn broken_blocks_are_named() {
        let refused = |text: &str| decode_all(text.as_bytes()).unwrap_err();
        assert_eq!(refused("-----BEGIN A-----\nAQI="), PemError::Unfinished("A".into()));
        assert_eq!(refused("-----BEGIN A-----\n-----END B-----"), PemError::Unfinished("A".into()));
        assert_eq!(
            refused("-----BEGIN A-----\nAQI=\n-----BEGIN A-----\nAQI=\n-----END A-----"),
            PemError::Unfinished("A".into())
        );
        assert_eq!(refused("-----BEGIN A-----\n!\n-----END A-----"), PemError::NotBase64("A".into()));
        assert_eq!(decode_all(&[0xff]), Err(PemError::NotText));
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes(content in prop::collection::vec(any::<u8>(), 0..400)) {
            let text = encode("TEST DATA", &content);
            prop_assert!(text.lines().all(|line| line.len() <= 64));
            prop_assert_eq!(decode_all(text.as_bytes()).unwrap(), vec![("TEST DATA".to_owned(), content)]);
        }

        #[test]
        fn no_text_panics(text in "(-----(BEGIN|END) [AB]-----\n|[a-zA-Z=]{0,5}\n|-| ){0,12}") {
            let _ = decode_all(text.as_bytes());
        }
    }
}
