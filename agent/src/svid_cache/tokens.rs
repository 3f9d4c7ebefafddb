//! JWT-SVIDs: signed on request, kept by SPIFFE ID and audiences until they are past half their life.
//!
//! A token that is due but has not expired is a safety net: the server is asked, but not for long, and the old token
//! serves when it does not answer. Requests for the same token at the same time ask once.
//!
//! Entries that want a `jti` in their tokens are not served from here: whoever asks for one wants to tell tokens apart.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bonafide_identity::rotation::renewal_after_issue;
use bonafide_identity::{Entry, SpiffeId, Timestamp};
use bonafide_pki::Random;
use bonafide_proto::convert::SignedToken;
use bonafide_runtime::clock::SharedClock;
use data_encoding::BASE64URL_NOPAD;
use tonic::Code;

use crate::metrics;
use crate::server_client::{OPERATION_TIMEOUT, ServerClient, ServerError};

/// Gets JWT-SVIDs and keeps them.
pub struct JwtSvids {
    client: ServerClient,
    clock: SharedClock,
    random: Arc<dyn Random>,
    kept: Mutex<Kept>,
    asking: Asking,
}

/// Which tokens somebody asks the server for.
type Asking = Mutex<HashMap<Key, Arc<tokio::sync::Mutex<()>>>>;

/// A place among those who want the same token. The last to leave clears it away, also when its workload has hung up
/// meanwhile: workloads choose the audiences, so what they left behind would grow for ever.
struct Turn<'a> {
    asking: &'a Asking,
    key: &'a Key,
    mutex: Arc<tokio::sync::Mutex<()>>,
}

impl<'a> Turn<'a> {
    fn new(asking: &'a Asking, key: &'a Key) -> Self {
        let mutex = Arc::clone(lock(asking).entry(key.clone()).or_default());
        Self { asking, key, mutex }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut asking = lock(self.asking);
        // Two hold it: the map and this call.
        if Arc::strong_count(&self.mutex) <= 2 {
            asking.remove(self.key);
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Key {
    id: SpiffeId,
    audiences: BTreeSet<String>,
}

struct Token {
    signed: Arc<SignedToken>,
    renew_at: Timestamp,
    key_id: Option<String>,
}

/// What to do about a kept token.
#[derive(Debug, PartialEq, Eq)]
enum Plan {
    /// It is fresh.
    Serve,
    /// It should be replaced, and serves when that fails.
    Refresh,
    /// There is none.
    Sign,
}

impl JwtSvids {
    /// Keeps up to `limit` tokens.
    #[must_use]
    pub fn new(client: ServerClient, clock: SharedClock, random: Arc<dyn Random>, limit: usize) -> Self {
        Self { client, clock, random, kept: Mutex::new(Kept::new(limit)), asking: Mutex::default() }
    }

    /// A token for this entry and these audiences.
    ///
    /// # Errors
    /// The server did not sign, and no kept token is still valid.
    pub async fn fetch(&self, entry: &Entry, audiences: &[String]) -> Result<Arc<SignedToken>, ServerError> {
        if entry.jwt_svid_include_jti {
            return self.sign(entry, audiences, OPERATION_TIMEOUT).await;
        }
        let key = Key { id: entry.spiffe_id.clone(), audiences: audiences.iter().cloned().collect() };
        if let (Plan::Serve, Some(token)) = self.plan(&key) {
            return Ok(token);
        }
        let turn = Turn::new(&self.asking, &key);
        let _turn = turn.mutex.lock().await;
        self.refresh(entry, audiences, &key).await
    }

    async fn refresh(
        &self,
        entry: &Entry,
        audiences: &[String],
        key: &Key,
    ) -> Result<Arc<SignedToken>, ServerError> {
        // Somebody else may have got it while this call waited for its turn.
        let signed = match self.plan(key) {
            (Plan::Serve, Some(token)) => return Ok(token),
            (Plan::Refresh, Some(old)) => match self.sign(entry, audiences, PATIENCE_WITH_TOKEN).await {
                Ok(signed) => signed,
                Err(error) => {
                    let error = bonafide_runtime::tasks::chain(&error);
                    tracing::warn!(id = %entry.spiffe_id, error, "a JWT-SVID could not be renewed; the old one serves");
                    return Ok(old);
                }
            },
            _ => self.sign(entry, audiences, OPERATION_TIMEOUT).await?,
        };
        if key.audiences.iter().map(String::len).sum::<usize>() > MOST_AUDIENCES {
            return Ok(signed);
        }
        let renew_at = renewal_after_issue(signed.issued_at, signed.expires_at, self.random.u64(), None);
        let key_id = key_id(&signed.token);
        lock(&self.kept).put(key.clone(), Token { signed: Arc::clone(&signed), renew_at, key_id });
        Ok(signed)
    }

    /// Forgets tokens that were signed by these keys.
    pub fn drop_signed_by(&self, key_ids: &BTreeSet<String>) {
        if !key_ids.is_empty() {
            lock(&self.kept).retain(|token| token.key_id.as_ref().is_none_or(|id| !key_ids.contains(id)));
        }
    }

    /// How many tokens are kept.
    #[must_use]
    pub fn count(&self) -> usize {
        lock(&self.kept).tokens.len()
    }

    fn plan(&self, key: &Key) -> (Plan, Option<Arc<SignedToken>>) {
        let now = self.clock.now();
        match lock(&self.kept).get(key) {
            Some(token) => {
                (plan(token.signed.expires_at, token.renew_at, now), Some(Arc::clone(&token.signed)))
            }
            None => (Plan::Sign, None),
        }
    }

    async fn sign(
        &self,
        entry: &Entry,
        audiences: &[String],
        patience: Duration,
    ) -> Result<Arc<SignedToken>, ServerError> {
        let mut last = None;
        let attempts = async {
            loop {
                match self.client.sign_jwt(&entry.id, audiences).await {
                    Ok(signed) if signed.id != entry.spiffe_id => {
                        let what = format!("the token is {}'s, not {}'s", signed.id, entry.spiffe_id);
                        return Err(ServerError::Malformed { rpc: RPC, what });
                    }
                    Ok(signed) => return Ok(Arc::new(signed)),
                    Err(error) if is_final(&error) => return Err(error),
                    Err(error) => last = Some(error),
                }
                tokio::time::sleep(RETRY).await;
            }
        };
        let result = tokio::time::timeout(patience, attempts).await;
        let result = result
            .unwrap_or_else(|_| Err(last.unwrap_or(ServerError::Timeout { rpc: RPC, after: patience })));
        metrics::svid_signed("jwt", result.is_ok());
        result
    }
}

fn plan(expires_at: Timestamp, renew_at: Timestamp, now: Timestamp) -> Plan {
    if now < renew_at && now < expires_at {
        Plan::Serve
    } else if now < expires_at {
        Plan::Refresh
    } else {
        Plan::Sign
    }
}

/// Whether the same question would get the same answer, or whoever asked has run out of time.
fn is_final(error: &ServerError) -> bool {
    match error {
        ServerError::Unreachable { .. } => false,
        ServerError::Status { status, .. } => matches!(
            status.code(),
            Code::Unknown
                | Code::Cancelled
                | Code::DeadlineExceeded
                | Code::InvalidArgument
                | Code::Unimplemented
        ),
        _ => true,
    }
}

/// The `kid` of a compact JWS. Nothing is verified: the server that signed it is the one that says what is tainted.
pub(crate) fn key_id(token: &str) -> Option<String> {
    let header = BASE64URL_NOPAD.decode(token.split('.').next()?.as_bytes()).ok()?;
    let header: serde_json::Value = serde_json::from_slice(&header).ok()?;
    Some(header.get("kid")?.as_str()?.to_owned())
}

/// Tokens with the order of their use.
struct Kept {
    limit: usize,
    uses: u64,
    tokens: HashMap<Key, (u64, Token)>,
    by_use: BTreeMap<u64, Key>,
}

impl Kept {
    fn new(limit: usize) -> Self {
        Self { limit, uses: 0, tokens: HashMap::new(), by_use: BTreeMap::new() }
    }

    fn get(&mut self, key: &Key) -> Option<&Token> {
        let (used, token) = self.tokens.get_mut(key)?;
        self.by_use.remove(used);
        self.uses += 1;
        *used = self.uses;
        self.by_use.insert(self.uses, key.clone());
        Some(token)
    }

    fn put(&mut self, key: Key, token: Token) {
        self.uses += 1;
        if let Some((used, _)) = self.tokens.insert(key.clone(), (self.uses, token)) {
            self.by_use.remove(&used);
        }
        self.by_use.insert(self.uses, key);
        while self.tokens.len() > self.limit
            && let Some((_, key)) = self.by_use.pop_first()
        {
            self.tokens.remove(&key);
        }
        self.report();
    }

    fn retain(&mut self, keep: impl Fn(&Token) -> bool) {
        self.tokens.retain(|_, (_, token)| keep(token));
        let tokens = &self.tokens;
        self.by_use.retain(|_, key| tokens.contains_key(key));
        self.report();
    }

    fn report(&self) {
        metrics::svids("jwt", self.tokens.len());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const RPC: &str = "NewJWTSVID";
/// Tokens for more bytes of audiences than this are not kept: their number is bounded, and so must their size be.
const MOST_AUDIENCES: usize = 4096;
const RETRY: Duration = Duration::from_secs(1);
/// While a token that is still valid is at hand.
const PATIENCE_WITH_TOKEN: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use bonafide_testkit::id;

    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_unix_seconds(seconds)
    }

    fn key(name: &str, audiences: &[&str]) -> Key {
        Key { id: id(name), audiences: audiences.iter().map(|audience| (*audience).to_owned()).collect() }
    }

    fn token(key_id: &str) -> Token {
        let signed = SignedToken {
            id: id("/a"),
            token: "t".into(),
            issued_at: at(0),
            expires_at: at(100),
            hint: String::new(),
        };
        Token { signed: Arc::new(signed), renew_at: at(50), key_id: Some(key_id.to_owned()) }
    }

    #[test]
    fn a_token_is_served_until_it_is_due_and_held_until_it_ends() {
        assert_eq!(plan(at(100), at(50), at(49)), Plan::Serve);
        assert_eq!(plan(at(100), at(50), at(50)), Plan::Refresh);
        assert_eq!(plan(at(100), at(50), at(99)), Plan::Refresh);
        assert_eq!(plan(at(100), at(50), at(100)), Plan::Sign);
    }

    #[tokio::test]
    async fn who_hangs_up_leaves_nothing_behind() {
        let asking = Asking::default();
        let wanted = key("/a", &["x"]);
        let ask = async || {
            let turn = Turn::new(&asking, &wanted);
            let _turn = turn.mutex.lock().await;
            std::future::pending::<()>().await;
        };
        {
            let (mut first, mut second) = (Box::pin(ask()), Box::pin(ask()));
            assert!(futures_now(&mut first).is_none() && futures_now(&mut second).is_none());
            assert_eq!(lock(&asking).len(), 1);
            drop(first);
            assert_eq!(lock(&asking).len(), 1, "the second still asks");
        }
        assert!(lock(&asking).is_empty());
    }

    fn futures_now<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        match std::pin::Pin::new(future).poll(&mut context) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        }
    }

    #[test]
    fn the_least_recently_used_goes_first() {
        let mut kept = Kept::new(2);
        kept.put(key("/a", &["x"]), token("1"));
        kept.put(key("/b", &["x"]), token("1"));
        assert!(kept.get(&key("/a", &["x"])).is_some());
        kept.put(key("/c", &["x"]), token("1"));
        assert!(kept.get(&key("/b", &["x"])).is_none());
        assert!(kept.get(&key("/a", &["x"])).is_some() && kept.get(&key("/c", &["x"])).is_some());
        assert_eq!((kept.tokens.len(), kept.by_use.len()), (2, 2));
        kept.put(key("/c", &["x"]), token("1"));
        assert_eq!((kept.tokens.len(), kept.by_use.len()), (2, 2));
    }

    #[test]
    fn the_order_of_audiences_does_not_matter() {
        let mut kept = Kept::new(9);
        kept.put(key("/a", &["x", "y"]), token("1"));
        assert!(kept.get(&key("/a", &["y", "x"])).is_some());
        assert!(kept.get(&key("/a", &["y"])).is_none());
        assert!(kept.get(&key("/b", &["x", "y"])).is_none());
    }

    #[test]
    fn tokens_of_a_tainted_key_go() {
        let mut kept = Kept::new(9);
        kept.put(key("/a", &["x"]), token("1"));
        kept.put(key("/b", &["x"]), token("2"));
        kept.retain(|token| token.key_id.as_deref() != Some("1"));
        assert!(kept.get(&key("/a", &["x"])).is_none() && kept.get(&key("/b", &["x"])).is_some());
        assert_eq!(kept.by_use.len(), 1);
    }

    #[test]
    fn key_ids_are_read_from_the_header() {
        let header = BASE64URL_NOPAD.encode(br#"{"alg":"ES256","kid":"k1"}"#);
        assert_eq!(key_id(&format!("{header}.e30.x")).as_deref(), Some("k1"));
        for broken in ["", "x", "e30.e30.x", "%.%.%"] {
            assert_eq!(key_id(broken), None, "{broken}");
        }
    }
}
