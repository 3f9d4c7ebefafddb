//! HTTP challenges: the node shows a nonce under the host name that it claims.
//!
//! Anybody may begin an attestation, and this one makes the server call a host that the caller names. What that is
//! good for is kept small: one GET of one fixed path, no redirects, ten seconds, 64 bytes, and an answer that says no more
//! than that the nonce was not there. Names that lead to the server's own machine or to link-local addresses (metadata
//! services, also where they have other addresses) are refused unless that is configured, and calls under way at once are few. Who can should set
//! `allowed_dns_patterns`.
//!
//! DNS does not tell letters of one case from those of the other, and names may end with a dot; agents of one host must
//! not have several IDs because of that (each would be trusted on first use), so IDs have the plain lower-case name.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bonafide_identity::{Selector, SelectorSet, TrustDomain};
use bonafide_pki::Random;
use bonafide_runtime::fetch::{Query, Surplus, exchange};
use regex::Regex;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use super::{Attempt, AttestError, Attested, Conversation, NodeAttestor};

/// The attestor's name and the type of its selectors.
pub const NAME: &str = "http_challenge";

/// What is configured.
#[derive(Clone, Debug)]
pub struct HttpChallengeSettings {
    /// Host names that may attest; all when it is empty. A pattern matches anywhere in the name unless it is anchored.
    pub allowed_dns_patterns: Vec<Regex>,
    /// The one port that agents may serve the nonce on.
    pub required_port: Option<u16>,
    /// Ports from 1024 on, which any user of the host can open.
    pub allow_non_root_ports: bool,
    /// The first agent of a host is trusted, and no second one until it is deleted.
    pub tofu: bool,
    /// Names that lead to loopback and link-local addresses.
    pub allow_local_addresses: bool,
}

impl PartialEq for HttpChallengeSettings {
    fn eq(&self, other: &Self) -> bool {
        let patterns = |settings: &Self| -> Vec<String> {
            settings.allowed_dns_patterns.iter().map(ToString::to_string).collect()
        };
        let rest = |s: &Self| (s.required_port, s.allow_non_root_ports, s.tofu, s.allow_local_addresses);
        patterns(self) == patterns(other) && rest(self) == rest(other)
    }
}

impl Eq for HttpChallengeSettings {}

/// Where host names lead.
#[async_trait]
pub trait Resolver: Send + Sync {
    /// The addresses of a host.
    ///
    /// # Errors
    /// It has none, or nobody could be asked.
    async fn addresses(&self, host: &str) -> io::Result<Vec<IpAddr>>;
}

/// The resolver of the system.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemResolver;

#[async_trait]
impl Resolver for SystemResolver {
    async fn addresses(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        let host = absolute(host);
        Ok(tokio::net::lookup_host((&*host, 0)).await?.map(|address| address.ip()).collect())
    }
}

/// A name with a dot is meant as it is: without one at its end, the system would also look for it below its own search domains,
/// where another host may have it. Names of one label are only found there.
fn absolute(host: &str) -> Cow<'_, str> {
    if host.contains('.') { format!("{}.", host.trim_end_matches('.')).into() } else { host.into() }
}

/// The attestor.
pub struct HttpChallenge {
    trust_domain: TrustDomain,
    settings: HttpChallengeSettings,
    resolver: Arc<dyn Resolver>,
    random: Arc<dyn Random>,
    calls: Semaphore,
}

impl HttpChallenge {
    /// With these settings.
    pub fn new(
        trust_domain: TrustDomain,
        settings: HttpChallengeSettings,
        resolver: Arc<dyn Resolver>,
        random: Arc<dyn Random>,
    ) -> Self {
        Self { trust_domain, settings, resolver, random, calls: Semaphore::new(CALLS) }
    }

    /// What can be said of a claim before anything is done about it. The texts and codes are the other implementation's.
    fn check(&self, claim: &Claim) -> Result<(u16, String), AttestError> {
        let settings = &self.settings;
        if settings.required_port.is_some_and(|required| i64::from(required) != claim.port) {
            return Err(invalid(format!("port {} is not allowed to be used by this server", claim.port)));
        }
        if !settings.allow_non_root_ports && claim.port >= 1024 {
            return Err(invalid(format!("port {} is not allowed to be >= 1024", claim.port)));
        }
        let name = claim.agentname.as_bytes();
        let plain = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'-';
        if !(name.first().is_some_and(u8::is_ascii_alphabetic) && name.iter().all(plain) && name.len() <= 32)
        {
            return Err(invalid("agent name is not valid"));
        }
        let plain = claim.hostname.trim_end_matches('.').to_ascii_lowercase();
        if plain == "localhost" || plain.ends_with(".localhost") {
            return Err(denied("you can not use localhost as a hostname"));
        }
        let allowed = |pattern: &Regex| pattern.is_match(&claim.hostname);
        if !settings.allowed_dns_patterns.is_empty() && !settings.allowed_dns_patterns.iter().any(allowed) {
            return Err(denied("the requested hostname is not allowed to connect"));
        }
        let failed = |text: &str| denied(format!("challenge verification failed: {text}"));
        if plain.is_empty() {
            return Err(failed("hostname must be set"));
        }
        if plain.contains('/') {
            return Err(failed("hostname can not contain a slash"));
        }
        if plain.contains(':') {
            return Err(failed("hostname can not contain a colon"));
        }
        let character = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
        if plain.len() > 253 || !plain.bytes().all(character) || plain.split('.').any(str::is_empty) {
            return Err(failed("hostname is not a host name"));
        }
        let port = u16::try_from(claim.port).ok().filter(|port| *port > 0);
        Ok((port.ok_or_else(|| failed("port is invalid"))?, plain))
    }

    async fn shows(&self, host: &str, port: u16, agent: &str, nonce: &str) -> Result<(), String> {
        let attempt = async {
            let addresses = match host.parse() {
                Ok(address) => vec![address],
                Err(_) => {
                    self.resolver.addresses(host).await.map_err(|error| format!("no address: {error}"))?
                }
            };
            let mut last = "there is no address that may be called".to_owned();
            for address in addresses.into_iter().filter(|address| self.may_call(*address)).take(ADDRESSES) {
                match self.ask(SocketAddr::new(address, port), host, agent).await {
                    Ok(body) if String::from_utf8_lossy(&body).trim() == nonce => return Ok(()),
                    Ok(_) => last = format!("another answer of {address}"),
                    Err(error) => last = format!("{address}: {error}"),
                }
            }
            Err(last)
        };
        match tokio::time::timeout(CALL_TIME, attempt).await {
            Ok(outcome) => outcome,
            Err(_) => Err("no answer in time".to_owned()),
        }
    }

    async fn ask(&self, address: SocketAddr, host: &str, agent: &str) -> Result<Vec<u8>, String> {
        let path = format!("/.well-known/spiffe/nodeattestor/http_challenge/{agent}/challenge");
        let url = http::Uri::builder()
            .scheme("http")
            .authority(format!("{host}:{}", address.port()))
            .path_and_query(path)
            .build()
            .map_err(|error| error.to_string())?;
        let stream = tokio::time::timeout(CONNECT_TIME, TcpStream::connect(address))
            .await
            .map_err(|_| "no connection in time".to_owned())?
            .map_err(|error| error.to_string())?;
        let answer = exchange(stream, Query::get(url, BODY, CALL_TIME), Surplus::Ignore).await;
        answer.map(|body| body.to_vec()).map_err(|error| error.to_string())
    }

    fn may_call(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        // A gateway would call the address inside.
        if let IpAddr::V6(outer) = address
            && let Some(inner) = embedded(outer)
            && !self.may_call(IpAddr::V4(inner))
        {
            return false;
        }
        let never = address.is_unspecified()
            || address.is_multicast()
            || matches!(address, IpAddr::V4(address) if address.is_broadcast());
        let local = address.is_loopback()
            || match address {
                IpAddr::V4(address) => address.is_link_local() || address == AZURE,
                IpAddr::V6(address) => address.is_unicast_link_local() || address == AMAZON,
            };
        !never && (!local || self.settings.allow_local_addresses)
    }
}

/// The IPv4 address that a NAT64 (RFC 6052) or 6to4 (RFC 3056) address leads to.
fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let from = |high: u16, low: u16| Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low));
    match address.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => Some(from(high, low)),
        _ => None,
    }
}

/// Services for the machine itself, like those at link-local addresses, that clouds have elsewhere: Azure's host, Amazon's
/// metadata over IPv6.
const AZURE: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 16);
const AMAZON: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

#[async_trait]
impl NodeAttestor for HttpChallenge {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn attest(
        &self,
        attempt: Attempt<'_>,
        conversation: &mut dyn Conversation,
    ) -> Result<Attested, AttestError> {
        let claim: Claim = serde_json::from_slice(attempt.payload)
            .map_err(|error| invalid(format!("failed to unmarshal data: {error}")))?;
        let (port, host) = self.check(&claim)?;
        let internal =
            |error: &dyn fmt::Display| AttestError::Internal(format!("nodeattestor({NAME}): {error}"));
        let id = self.trust_domain.agent_id(&format!("{NAME}/{host}")).map_err(|error| internal(&error))?;
        let mut nonce = [0; 32];
        self.random.fill(&mut nonce);
        let nonce = data_encoding::BASE64URL.encode(&nonce);
        let challenge = serde_json::to_vec(&Challenge { nonce: &nonce }).map_err(|error| internal(&error))?;
        // Whatever it says: the answer is that the node serves the nonce by now.
        let answer = tokio::time::timeout(ANSWER_TIME, conversation.challenge(challenge)).await;
        answer.map_err(|_| AttestError::TimedOut)??;
        let Ok(_call) = self.calls.try_acquire() else {
            let text =
                format!("nodeattestor({NAME}): too many hosts are called at once; try again in a moment");
            return Err(AttestError::Unavailable(text));
        };
        if let Err(why) = self.shows(&host, port, &claim.agentname, &nonce).await {
            // Why is for the log alone, or this would be a way to look around in the server's network.
            tracing::info!(host, port, why, "http_challenge: the nonce was not found");
            return Err(denied(
                "challenge verification failed: expected nonce was not found in HTTP response",
            ));
        }
        let selector = Selector::new(NAME, &format!("hostname:{host}")).map_err(|error| internal(&error))?;
        let selectors: SelectorSet = [selector].into_iter().collect();
        Ok(Attested { id, selectors, can_reattest: !self.settings.tofu, twin: None })
    }
}

fn invalid(text: impl fmt::Display) -> AttestError {
    AttestError::Invalid(format!("nodeattestor({NAME}): {text}"))
}

fn denied(text: impl fmt::Display) -> AttestError {
    AttestError::Denied(format!("nodeattestor({NAME}): {text}"))
}

#[derive(Deserialize)]
struct Claim {
    #[serde(default)]
    hostname: String,
    #[serde(default)]
    agentname: String,
    #[serde(default)]
    port: i64,
}

#[derive(Serialize)]
struct Challenge<'a> {
    nonce: &'a str,
}

/// For the answer to the challenge: nodes have nothing to do for it but to serve the nonce.
const ANSWER_TIME: Duration = Duration::from_secs(5);
/// All steps of a call together.
const CALL_TIME: Duration = Duration::from_secs(10);
/// To one address, so that one that does not answer leaves time for the next.
const CONNECT_TIME: Duration = Duration::from_secs(4);
const ADDRESSES: usize = 4;
/// A nonce has 44 bytes.
const BODY: usize = 64;
/// Calls under way at once.
const CALLS: usize = 32;

#[cfg(test)]
mod tests {
    use bonafide_pki::SystemRandom;

    use super::*;

    fn attestor(change: impl FnOnce(&mut HttpChallengeSettings)) -> HttpChallenge {
        let mut settings = HttpChallengeSettings {
            allowed_dns_patterns: Vec::new(),
            required_port: None,
            allow_non_root_ports: true,
            tofu: true,
            allow_local_addresses: false,
        };
        change(&mut settings);
        let trust_domain = TrustDomain::parse("example.org").unwrap();
        HttpChallenge::new(trust_domain, settings, Arc::new(SystemResolver), Arc::new(SystemRandom))
    }

    fn claim(hostname: &str, agentname: &str, port: i64) -> Claim {
        Claim { hostname: hostname.to_owned(), agentname: agentname.to_owned(), port }
    }

    #[test]
    fn claims_are_looked_at_in_the_order_of_the_contract() {
        let plain = attestor(|_| {});
        let strict = attestor(|settings| {
            settings.required_port = Some(80);
            settings.allowed_dns_patterns = vec![Regex::new(r"^[a-z]+\.example\.org$").unwrap()];
        });
        let rooted = attestor(|settings| settings.allow_non_root_ports = false);
        for (attestor, claim, expected) in [
            (&strict, claim("localhost", "", 81), "port 81 is not allowed to be used by this server"),
            (&rooted, claim("localhost", "", 1024), "port 1024 is not allowed to be >= 1024"),
            (&plain, claim("localhost", "", 80), "agent name is not valid"),
            (&plain, claim("localhost", "1a", 80), "agent name is not valid"),
            (&plain, claim("localhost", "a.b", 80), "agent name is not valid"),
            (&plain, claim("localhost", &"a".repeat(33), 80), "agent name is not valid"),
            (&plain, claim("localhost", "a", 80), "you can not use localhost as a hostname"),
            (&plain, claim("LocalHost.", "a", 80), "you can not use localhost as a hostname"),
            (&plain, claim("x.localhost", "a", 80), "you can not use localhost as a hostname"),
            (
                &strict,
                claim("a.example.org.evil", "a", 80),
                "the requested hostname is not allowed to connect",
            ),
            (&plain, claim("", "a", 80), "challenge verification failed: hostname must be set"),
            (
                &plain,
                claim("a/b", "a", 80),
                "challenge verification failed: hostname can not contain a slash",
            ),
            (
                &plain,
                claim("a:b", "a", 80),
                "challenge verification failed: hostname can not contain a colon",
            ),
            (&plain, claim("a@b", "a", 80), "challenge verification failed: hostname is not a host name"),
            (&plain, claim("a..b", "a", 80), "challenge verification failed: hostname is not a host name"),
            (&plain, claim("a b", "a", 80), "challenge verification failed: hostname is not a host name"),
            (&plain, claim("a", "a", 0), "challenge verification failed: port is invalid"),
            (&plain, claim("a", "a", 65_536), "challenge verification failed: port is invalid"),
            (&plain, claim("a", "a", -80), "challenge verification failed: port is invalid"),
        ] {
            let refused = attestor.check(&claim).unwrap_err().to_string();
            assert_eq!(refused, format!("nodeattestor(http_challenge): {expected}"));
        }
        assert_eq!(
            plain.check(&claim("Host.Example.ORG.", "a-1", 8080)).unwrap(),
            (8080, "host.example.org".to_owned())
        );
        assert_eq!(strict.check(&claim("web.example.org", "a", 80)).unwrap().1, "web.example.org");
        assert!(rooted.check(&claim("a", "a", 1023)).is_ok());
    }

    #[test]
    fn names_with_a_dot_are_absolute() {
        for (name, expected) in
            [("a.example.org", "a.example.org."), ("a.example.org.", "a.example.org."), ("a", "a")]
        {
            assert_eq!(absolute(name), expected);
        }
    }

    #[test]
    fn local_addresses_are_called_only_where_that_is_wanted() {
        let (plain, open) = (attestor(|_| {}), attestor(|settings| settings.allow_local_addresses = true));
        for (address, by_default, when_allowed) in [
            ("192.0.2.1", true, true),
            ("10.0.0.1", true, true),
            ("2001:db8::1", true, true),
            ("127.0.0.1", false, true),
            ("::1", false, true),
            ("::ffff:127.0.0.1", false, true),
            ("169.254.169.254", false, true),
            ("fe80::1", false, true),
            ("fd00:ec2::254", false, true),
            ("168.63.129.16", false, true),
            ("64:ff9b::169.254.169.254", false, true),
            ("64:ff9b::192.0.2.1", true, true),
            ("64:ff9b::0.0.0.0", false, false),
            ("2002:7f00:1::1", false, true),
            ("2002:c000:201::1", true, true),
            ("0.0.0.0", false, false),
            ("::", false, false),
            ("255.255.255.255", false, false),
            ("224.0.0.1", false, false),
        ] {
            let address = address.parse().unwrap();
            assert_eq!(
                (plain.may_call(address), open.may_call(address)),
                (by_default, when_allowed),
                "{address}"
            );
        }
    }
}
