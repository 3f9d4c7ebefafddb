//! JWT-SVIDs: signed on first request, kept by SPIFFE ID and audiences, and renewed in the background.
//!
//! A token that workloads keep asking for is replaced at half its life by [`JwtSvids::keep_fresh`], so that no request waits
//! for the server once a first one has. How much work that is, is bounded: a token is renewed only if somebody has
//! asked for it within the time that it lives, so what nobody asks for any more is renewed once or twice and then ends. One
//! that is due and has not expired is served as it is, also while the server is away. Requests for the same token at
//! the same time ask once.
//!
//! Rejected: renewing on request, as SPIRE does, which makes one call in a token's life as slow as the server, and as
//! slow as the server is away when it is.
//!
//! Entries that want a `jti` in their tokens are not served from here: whoever asks for one wants to tell tokens apart.
//! (SPIRE's agent loses that wish when it reads the entry, and serves the same token again.)

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bonafide_identity::rotation::renewal_after_issue;
use bonafide_identity::{Entry, EntryId, SpiffeId, Timestamp};
use bonafide_pki::Random;
use bonafide_proto::convert::SignedToken;
use bonafide_runtime::clock::SharedClock;
use bonafide_runtime::tasks::chain;
use data_encoding::BASE64URL_NOPAD;
use tokio::sync::Notify;
use tokio::task::JoinSet;
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
    /// Somebody has been given a token that is due, or a new one.
    news: Notify,
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
    /// Of the entry that it was signed for.
    entry: EntryId,
    /// As they were asked for first: a token has them in that order.
    audiences: Arc<[String]>,
    /// When it is due; drawn once.
    renew_at: Timestamp,
    /// When the server may be asked for the next: as soon as it is due, later after failures.
    next_attempt: Timestamp,
    failures: u32,
    asked_at: Timestamp,
    key_id: Option<String>,
}

impl Token {
    /// Whether somebody has asked for it within as long as it lives, seen from this instant.
    fn is_wanted(&self, at: Timestamp) -> bool {
        let life = self.signed.expires_at.saturating_since(self.signed.issued_at);
        self.asked_at.saturating_add(life) >= at
    }
}

/// A token to be renewed.
struct Due {
    key: Key,
    entry: EntryId,
    audiences: Arc<[String]>,
}

/// What to do about a kept token.
#[derive(Debug, PartialEq, Eq)]
enum Plan {
    /// It is fresh.
    Serve,
    /// It should be replaced, and serves meanwhile.
    Refresh,
    /// There is none.
    Sign,
}

impl JwtSvids {
    /// Keeps up to `limit` tokens.
    #[must_use]
    pub fn new(client: ServerClient, clock: SharedClock, random: Arc<dyn Random>, limit: usize) -> Self {
        Self {
            client,
            clock,
            random,
            kept: Mutex::new(Kept::new(limit)),
            asking: Mutex::default(),
            news: Notify::new(),
        }
    }

    /// A token for this entry and these audiences.
    ///
    /// # Errors
    /// The server did not sign, and no kept token is still valid.
    pub async fn fetch(&self, entry: &Entry, audiences: &[String]) -> Result<Arc<SignedToken>, ServerError> {
        if entry.jwt_svid_include_jti {
            return self.sign(entry, audiences).await;
        }
        let key = Key { id: entry.spiffe_id.clone(), audiences: audiences.iter().cloned().collect() };
        if let Some(token) = self.kept(&key) {
            return Ok(token);
        }
        let turn = Turn::new(&self.asking, &key);
        let _turn = turn.mutex.lock().await;
        // Somebody else may have got it while this call waited for its turn.
        if let Some(token) = self.kept(&key) {
            return Ok(token);
        }
        let signed = self.sign(entry, audiences).await?;
        if key.audiences.iter().map(String::len).sum::<usize>() <= MOST_AUDIENCES {
            let token = self.token(&signed, entry, audiences.into());
            lock(&self.kept).put(key.clone(), token);
            self.news.notify_one();
        }
        Ok(signed)
    }

    fn token(&self, signed: &Arc<SignedToken>, entry: &Entry, audiences: Arc<[String]>) -> Token {
        let renew_at = renewal_after_issue(signed.issued_at, signed.expires_at, self.random.u64(), None);
        Token {
            signed: Arc::clone(signed),
            entry: entry.id.clone(),
            audiences,
            renew_at,
            // One that is due the moment it comes, because clocks differ, must not make the agent ask without pause.
            next_attempt: renew_at.max(self.clock.now().saturating_add(RETRY)),
            failures: 0,
            asked_at: self.clock.now(),
            key_id: key_id(&signed.token),
        }
    }

    /// Renews what is due, for ever. `entry` looks an entry up as it is now.
    pub async fn keep_fresh(&self, entry: impl Fn(&EntryId) -> Option<Arc<Entry>>) {
        loop {
            let now = self.clock.now();
            let (due, next) = lock(&self.kept).due(now);
            if due.is_empty() {
                let wait = next.map_or(Duration::MAX, |next| next.saturating_since(now));
                tokio::select! {
                    () = self.news.notified() => {}
                    () = tokio::time::sleep(wait) => {}
                }
                continue;
            }
            let mut running = JoinSet::new();
            for Due { key, entry: id, audiences } in due {
                let current =
                    entry(&id).filter(|entry| entry.spiffe_id == key.id && !entry.jwt_svid_include_jti);
                let Some(entry) = current else {
                    // Nobody gets it any more, or not for this entry; whoever still may asks anew.
                    lock(&self.kept).remove(&key);
                    continue;
                };
                let client = self.client.clone();
                running.spawn(async move {
                    let signed = sign_once(&client, &entry, &audiences).await;
                    (key, entry, audiences, signed)
                });
            }
            while let Some(done) = running.join_next().await {
                match done {
                    Ok((key, entry, audiences, Ok(signed))) => {
                        let token = self.token(&signed, &entry, audiences);
                        lock(&self.kept).replace(&key, token);
                    }
                    Ok((key, _, _, Err(error))) => {
                        tracing::warn!(id = %key.id, error = chain(&error), "a JWT-SVID could not be renewed yet");
                        lock(&self.kept).failed(&key, self.clock.now());
                    }
                    Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
                }
            }
        }
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

    /// A kept token that has not expired.
    fn kept(&self, key: &Key) -> Option<Arc<SignedToken>> {
        let now = self.clock.now();
        let mut kept = lock(&self.kept);
        let (token, revived) = kept.get(key, now)?;
        let due = match plan(token.signed.expires_at, token.renew_at, now) {
            Plan::Serve => false,
            Plan::Refresh => token.next_attempt <= now,
            Plan::Sign => return None,
        };
        if due || revived {
            self.news.notify_one();
        }
        Some(Arc::clone(&token.signed))
    }

    /// Asks until there is an answer that asking again would not change.
    async fn sign(&self, entry: &Entry, audiences: &[String]) -> Result<Arc<SignedToken>, ServerError> {
        let mut last = None;
        let attempts = async {
            loop {
                match sign_once(&self.client, entry, audiences).await {
                    Err(error) if !is_final(&error) => last = Some(error),
                    result => return result,
                }
                tokio::time::sleep(RETRY).await;
            }
        };
        let result = tokio::time::timeout(OPERATION_TIMEOUT, attempts).await;
        result.unwrap_or_else(|_| {
            Err(last.unwrap_or(ServerError::Timeout { rpc: RPC, after: OPERATION_TIMEOUT }))
        })
    }
}

async fn sign_once(
    client: &ServerClient,
    entry: &Entry,
    audiences: &[String],
) -> Result<Arc<SignedToken>, ServerError> {
    let result = match client.sign_jwt(&entry.id, audiences).await {
        Ok(signed) if signed.id != entry.spiffe_id => {
            let what = format!("the token is {}'s, not {}'s", signed.id, entry.spiffe_id);
            Err(ServerError::Malformed { rpc: RPC, what })
        }
        result => result.map(Arc::new),
    };
    metrics::svid_signed("jwt", result.is_ok());
    result
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

    /// The token, which somebody asks for now, and whether it would have been let end before.
    fn get(&mut self, key: &Key, now: Timestamp) -> Option<(&Token, bool)> {
        let (used, token) = self.tokens.get_mut(key)?;
        let revived = !token.is_wanted(token.next_attempt);
        token.asked_at = now;
        self.by_use.remove(used);
        self.uses += 1;
        *used = self.uses;
        self.by_use.insert(self.uses, key.clone());
        Some((token, revived))
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

    /// Puts another token in the place of one that is kept, which counts as no use.
    fn replace(&mut self, key: &Key, token: Token) {
        if let Some((_, kept)) = self.tokens.get_mut(key) {
            let asked_at = kept.asked_at;
            *kept = Token { asked_at, ..token };
        }
    }

    fn remove(&mut self, key: &Key) {
        if let Some((used, _)) = self.tokens.remove(key) {
            self.by_use.remove(&used);
        }
        self.report();
    }

    fn failed(&mut self, key: &Key, now: Timestamp) {
        if let Some((_, token)) = self.tokens.get_mut(key) {
            token.next_attempt = now.saturating_add(RETRY.saturating_mul(1 << token.failures.min(5)));
            token.failures += 1;
        }
    }

    /// What is to be renewed now, some of it at most, and when to look again if that is nothing. Each is given out once in a
    /// while only. Lets go of what has expired.
    fn due(&mut self, now: Timestamp) -> (Vec<Due>, Option<Timestamp>) {
        self.retain(|token| token.signed.expires_at > now);
        let mut due = Vec::new();
        let mut next: Option<Timestamp> = None;
        for (key, (_, token)) in &mut self.tokens {
            if !token.is_wanted(token.next_attempt.max(now)) {
                continue;
            }
            if token.next_attempt <= now && due.len() < RENEWALS_AT_ONCE {
                token.next_attempt = now.saturating_add(OPERATION_TIMEOUT);
                due.push(Due {
                    key: key.clone(),
                    entry: token.entry.clone(),
                    audiences: Arc::clone(&token.audiences),
                });
            }
            next = Some(next.map_or(token.next_attempt, |next| next.min(token.next_attempt)));
        }
        (due, next)
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
const RENEWALS_AT_ONCE: usize = 16;

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
        Token {
            signed: Arc::new(signed),
            entry: EntryId::parse("e1").unwrap(),
            audiences: ["x".to_owned()].into(),
            renew_at: at(50),
            next_attempt: at(50),
            failures: 0,
            asked_at: at(0),
            key_id: Some(key_id.to_owned()),
        }
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
        assert!(kept.get(&key("/a", &["x"]), at(0)).is_some());
        kept.put(key("/c", &["x"]), token("1"));
        assert!(kept.get(&key("/b", &["x"]), at(0)).is_none());
        assert!(
            kept.get(&key("/a", &["x"]), at(0)).is_some() && kept.get(&key("/c", &["x"]), at(0)).is_some()
        );
        assert_eq!((kept.tokens.len(), kept.by_use.len()), (2, 2));
        kept.put(key("/c", &["x"]), token("1"));
        assert_eq!((kept.tokens.len(), kept.by_use.len()), (2, 2));
    }

    #[test]
    fn the_order_of_audiences_does_not_matter() {
        let mut kept = Kept::new(9);
        kept.put(key("/a", &["x", "y"]), token("1"));
        assert!(kept.get(&key("/a", &["y", "x"]), at(0)).is_some());
        assert!(kept.get(&key("/a", &["y"]), at(0)).is_none());
        assert!(kept.get(&key("/b", &["x", "y"]), at(0)).is_none());
    }

    #[test]
    fn tokens_of_a_tainted_key_go() {
        let mut kept = Kept::new(9);
        kept.put(key("/a", &["x"]), token("1"));
        kept.put(key("/b", &["x"]), token("2"));
        kept.retain(|token| token.key_id.as_deref() != Some("1"));
        assert!(
            kept.get(&key("/a", &["x"]), at(0)).is_none() && kept.get(&key("/b", &["x"]), at(0)).is_some()
        );
        assert_eq!(kept.by_use.len(), 1);
    }

    #[test]
    fn what_is_asked_for_is_renewed_and_what_is_not_ends() {
        let mut kept = Kept::new(9);
        kept.put(key("/a", &["x"]), token("1"));
        let due = |kept: &mut Kept, seconds| {
            let (due, next) = kept.due(at(seconds));
            (due.len(), next.map(Timestamp::unix_seconds))
        };
        assert_eq!(due(&mut kept, 49), (0, Some(50)));
        assert_eq!(due(&mut kept, 50), (1, Some(80)), "once, not again while it is being renewed");
        assert_eq!(due(&mut kept, 51), (0, Some(80)));
        // Failures: later and later.
        for (now, next) in [(52, 53), (53, 55), (55, 59)] {
            kept.failed(&key("/a", &["x"]), at(now));
            assert_eq!(due(&mut kept, now), (0, Some(next)));
        }
        // The next token: asked for 50 s before it came, so it is renewed once more, and no further.
        let signed = |from: i64| {
            let mut next = token("2");
            let signed =
                SignedToken { issued_at: at(from), expires_at: at(from + 100), ..(*next.signed).clone() };
            next.signed = Arc::new(signed);
            (next.renew_at, next.next_attempt) = (at(from + 50), at(from + 50));
            next
        };
        kept.replace(&key("/a", &["x"]), signed(50));
        assert_eq!(due(&mut kept, 100), (1, Some(130)));
        kept.replace(&key("/a", &["x"]), signed(100));
        assert_eq!(due(&mut kept, 150), (0, None));
        // Somebody asks again: it serves, and is renewed, which whoever renews has to be told once.
        let told: Vec<bool> = (0..2)
            .map(|_| kept.get(&key("/a", &["x"]), at(160)).is_some_and(|(_, revived)| revived))
            .collect();
        assert_eq!(told, [true, false]);
        assert_eq!(due(&mut kept, 160), (1, Some(190)));
        // Expired.
        assert_eq!(due(&mut kept, 200), (0, None));
        assert!(kept.tokens.is_empty() && kept.by_use.is_empty());
    }

    #[test]
    fn renewals_come_some_at_a_time_and_count_as_no_use() {
        let mut kept = Kept::new(40);
        for number in 0..40 {
            kept.put(key(&format!("/{number}"), &["x"]), token("1"));
        }
        let counts: Vec<usize> = (0..4).map(|_| kept.due(at(60)).0.len()).collect();
        assert_eq!(counts, [16, 16, 8, 0]);
        kept.replace(&key("/0", &["x"]), token("2"));
        kept.put(key("/new", &["x"]), token("1"));
        assert!(kept.get(&key("/0", &["x"]), at(0)).is_none(), "it was the least recently used all the same");
        kept.remove(&key("/1", &["x"]));
        assert_eq!((kept.tokens.len(), kept.by_use.len()), (39, 39));
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
