//! What comes with a bundle rather than in it: addresses of endpoints, entity tags, the preference to wait. The documents
//! are read by [`crate::jwks`].
//!
//! Laws: an address that was accepted is accepted again, and nothing of it can end a line of a request; a tag that was kept
//! matches itself; a preference does not depend on what follows it.

use bonafide_server::federation::EndpointUrl;
use bonafide_server::federation::http_headers::{entity_tag, none_match, wait_preference};

/// Whether the bytes are an address, a tag or a preference.
pub fn check(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let url = EndpointUrl::parse(text);
    if let Ok(url) = &url {
        assert_eq!(EndpointUrl::parse(url.as_str()).as_ref(), Ok(url));
        assert!(url.target().starts_with('/') && !url.host().is_empty());
        assert!(url.target().bytes().chain(url.authority().bytes()).all(|byte| byte > b' '), "{url}");
        let again = EndpointUrl::parse(&format!("https://{}{}", url.authority(), url.target()))
            .expect("its parts are good");
        assert_eq!((again.host(), again.port(), again.target()), (url.host(), url.port(), url.target()));
    }
    let tag = entity_tag(text);
    if let Some(tag) = &tag {
        assert!(tag.bytes().all(|byte| byte.is_ascii_graphic()));
        assert!(tag.contains(',') || none_match([&tag[..]], tag));
    }
    let _ = none_match([text], "\"0\"");
    let wait = wait_preference([text]);
    if wait.is_some() {
        assert_eq!(wait_preference([text, "wait=1"]), wait);
    }
    url.is_ok() || tag.is_some() || wait.is_some()
}
