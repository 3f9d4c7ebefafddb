//! What a load balancer writes before TLS begins: the PROXY protocol, versions 1 and 2.
//!
//! Laws: the answer does not depend on how the bytes were cut, nor on what follows the header; nothing is taken beyond the bound; what
//! was refused stays refused with more bytes.

use bonafide_runtime::listener::proxy::{Beginning, beginning};

/// The longest header that may be taken.
const LONGEST: usize = 4096;

/// Whether the bytes begin with a header.
pub fn check(data: &[u8]) -> bool {
    let whole = beginning(data);
    // Everything is decided within the bound, so longer beginnings say nothing new.
    for length in 0..data.len().min(LONGEST + 1) {
        match beginning(&data[..length]) {
            Ok(Beginning::Partial) => {}
            decided => {
                assert_eq!(decided, whole, "{length} of {} bytes say something else", data.len());
                break;
            }
        }
    }
    match whole {
        Ok(Beginning::Header { length, .. }) => {
            assert!(length <= data.len() && length <= LONGEST);
            assert_eq!(beginning(&data[..length]), whole);
            true
        }
        Ok(Beginning::Partial) => {
            assert!(data.len() < LONGEST, "nothing is decided after {} bytes", data.len());
            false
        }
        Ok(Beginning::Other) | Err(_) => false,
    }
}
