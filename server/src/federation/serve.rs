//! Our own bundle endpoint (SPIFFE Federation, section 5): `GET /` and nothing else, for everybody.
//!
//! The document is made once for each version of the bundle. A conditional request with `Prefer: wait=N` is held until
//! the document changes, while there is a place to wait: places are bounded, and a request that finds none is answered at
//! once and without `Preference-Applied`, so that the reader goes on at the pace of the refresh hint.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bonafide_identity::Bundle;
use bonafide_pki::bundle::to_spiffe_json;
use bonafide_pki::digest::Sha256;
use bonafide_runtime::shutdown::Shutdown;
use bytes::Bytes;
use data_encoding::HEXLOWER;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use tokio::sync::Semaphore;

use super::fetch::{PREFER, PREFERENCE_APPLIED};
use super::http_headers::{none_match, wait_preference};
use crate::status::names;
use crate::store::State;

/// Requests that may wait for a change at once: half of the listener's connections, so that those who do not wait always
/// find a place.
const WAITING: usize = 256;
/// The longest time for which a request is held.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Answers requests for the own bundle. Clones share it.
#[derive(Clone)]
pub struct BundleEndpoint {
    inner: Arc<Inner>,
}

struct Inner {
    state: Arc<State>,
    refresh_hint: Duration,
    made: Mutex<Option<(Arc<Bundle>, Document)>>,
    places: Semaphore,
    shutdown: Shutdown,
}

/// A bundle as it is sent.
#[derive(Clone, Debug)]
struct Document {
    body: Bytes,
    tag: HeaderValue,
}

impl Document {
    fn of(bundle: &Bundle, refresh_hint: Duration) -> Self {
        let published = Bundle { refresh_hint: refresh_hint.as_secs(), ..bundle.clone() };
        let body = to_spiffe_json(&published);
        let mut digest = Sha256::new();
        digest.update(body.as_bytes());
        let tag = format!("\"{}\"", HEXLOWER.encode(&digest.finish()[..16]));
        Self { body: body.into(), tag: HeaderValue::from_str(&tag).expect("hexadecimal digits in quotes") }
    }

    fn has(&self, headers: &HeaderMap) -> bool {
        let fields = headers.get_all(IF_NONE_MATCH).iter().filter_map(|field| field.to_str().ok());
        none_match(fields, self.tag.to_str().unwrap_or_default())
    }
}

impl BundleEndpoint {
    /// The endpoint of the trust domain in `state`, whose document suggests to look again after `refresh_hint`. Requests that
    /// wait are answered when `shutdown` is triggered.
    pub fn new(state: Arc<State>, refresh_hint: Duration, shutdown: Shutdown) -> Self {
        let places = Semaphore::new(WAITING);
        Self { inner: Arc::new(Inner { state, refresh_hint, made: Mutex::default(), places, shutdown }) }
    }

    /// Answers a request; its body is not looked at.
    pub async fn answer<B>(&self, request: Request<B>) -> Response<Full<Bytes>> {
        let response = self.decide(request.method(), request.uri().path(), request.headers()).await;
        let code = response.status().as_str().to_owned();
        metrics::counter!(names::BUNDLE_ENDPOINT_REQUESTS, "code" => code).increment(1);
        response
    }

    async fn decide(&self, method: &Method, path: &str, headers: &HeaderMap) -> Response<Full<Bytes>> {
        if method != Method::GET {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "405 method not allowed\n");
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
            return response;
        }
        if path != "/" {
            return text(StatusCode::NOT_FOUND, "404 page not found\n");
        }
        let wait = wait_preference(headers.get_all(PREFER).iter().filter_map(|field| field.to_str().ok()));
        let (document, applied) = self.inner.document_after(headers, wait).await;
        let Some(document) = document else {
            return text(StatusCode::INTERNAL_SERVER_ERROR, "500 unable to retrieve local bundle\n");
        };
        let mut response = if document.has(headers) {
            let mut response = Response::new(Full::default());
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            response
        } else {
            let mut response = Response::new(Full::new(document.body));
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            response
        };
        let headers = response.headers_mut();
        headers.insert(ETAG, document.tag);
        // A copy in between would delay a revocation.
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        if let Some(wait) = applied {
            let applied = format!("wait={}", wait.as_secs());
            headers.insert(PREFERENCE_APPLIED, applied.parse().expect("a word and digits"));
        }
        response
    }
}

impl Inner {
    fn document(&self) -> Option<Document> {
        let bundle = self.state.bundle(self.state.trust_domain())?;
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        match &*made {
            Some((of, document)) if Arc::ptr_eq(of, &bundle) => Some(document.clone()),
            _ => {
                let document = Document::of(&bundle, self.refresh_hint);
                *made = Some((bundle, document.clone()));
                Some(document)
            }
        }
    }

    /// The document, when the reader has another one or the time is up; and how long the reader may ask to wait, where its
    /// preference was followed.
    async fn document_after(
        &self,
        headers: &HeaderMap,
        wait: Option<Duration>,
    ) -> (Option<Document>, Option<Duration>) {
        // Before the first look, so that no change falls in between.
        let mut changes = self.state.subscribe_bundles();
        let document = self.document();
        let Some(wait) = wait.map(|wait| wait.min(LONGEST_WAIT)) else { return (document, None) };
        match &document {
            Some(document) if document.has(headers) => {}
            // There is nothing to wait for.
            _ => return (document, Some(wait)),
        }
        let Ok(_place) = self.places.try_acquire() else { return (document, None) };
        let _gauge = Waiting::new();
        let changed = async {
            loop {
                if changes.changed().await.is_err() {
                    return self.document();
                }
                match self.document() {
                    Some(document) if document.has(headers) => {}
                    other => return other,
                }
            }
        };
        tokio::select! {
            document = changed => (document, Some(wait)),
            () = tokio::time::sleep(wait) => (document, Some(wait)),
            () = self.shutdown.triggered() => (document, Some(wait)),
        }
    }
}

/// Counts a request that waits.
struct Waiting;

impl Waiting {
    fn new() -> Self {
        metrics::gauge!(names::BUNDLE_ENDPOINT_WAITING).increment(1.0);
        Self
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        metrics::gauge!(names::BUNDLE_ENDPOINT_WAITING).decrement(1.0);
    }
}

fn text(status: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(body.as_bytes())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

#[cfg(test)]
mod tests {
    use bonafide_identity::{Timestamp, TrustDomain};

    use super::*;
    use crate::store::{Bundles as _, Store, StoreConfig};

    #[tokio::test(start_paused = true)]
    async fn who_finds_no_place_to_wait_is_answered_at_once() {
        let trust_domain = TrustDomain::parse("a.org").unwrap();
        let clock: bonafide_runtime::clock::SharedClock = Arc::new(|| Timestamp::from_unix_seconds(0));
        let (store, _) = Store::open(StoreConfig::memory(trust_domain.clone()), clock).unwrap();
        let endpoint = BundleEndpoint::new(store.state().clone(), Duration::from_secs(300), Shutdown::new());
        let get = |tag: &HeaderValue| {
            let request = Request::get("/").header(IF_NONE_MATCH, tag).header(PREFER, "wait=20");
            endpoint.answer(request.body(()).unwrap())
        };
        let nothing = HeaderValue::from_static("\"x\"");
        assert_eq!(get(&nothing).await.status(), StatusCode::INTERNAL_SERVER_ERROR, "there is no bundle yet");
        store.write(move |unit| unit.bundle_put(Bundle::empty(trust_domain))).await.unwrap();
        let tag = get(&nothing).await.headers()[ETAG].clone();

        let began = tokio::time::Instant::now();
        let places = endpoint.inner.places.acquire_many(u32::try_from(WAITING).unwrap()).await.unwrap();
        let refused = get(&tag).await;
        assert_eq!(refused.status(), StatusCode::NOT_MODIFIED);
        assert!(!refused.headers().contains_key(PREFERENCE_APPLIED));
        assert_eq!(began.elapsed(), Duration::ZERO);
        drop(places);
        let held = get(&tag).await;
        assert_eq!(
            (held.status(), &held.headers()[PREFERENCE_APPLIED]),
            (StatusCode::NOT_MODIFIED, &"wait=20".parse().unwrap())
        );
        assert_eq!(began.elapsed().as_secs(), 20);
    }
}
