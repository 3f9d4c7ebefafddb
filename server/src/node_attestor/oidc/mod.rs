//! Tokens of OpenID Connect issuers: a Kubernetes cluster, a cloud's metadata service, a build system.
//!
//! A bearer token proves nothing of who presents it. So a token attests one node, once: what it is remembered by is written
//! in the transaction that records the node, and kept until the token would be refused anyway. Beyond that the operator says
//! what a token must be like: audience, age, algorithms, claims. What remains is in `docs/threat-model.md`.
//!
//! Everything that can be said without a key is looked at before a key is needed, so that strangers cannot make the server
//! fetch keys with tokens that would be refused in any case; and fetching has a rate of its own.

pub mod claims;
mod keys;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use bonafide_identity::{Selector, SelectorSet, TrustDomain};
use bonafide_pki::oidc::{CheckedToken, OidcToken, TokenRules};
use serde::Deserialize;

use super::template::{Field, FieldKind, Output, Template, TemplateError, Value};
use super::{Attempt, AttestError, Attested, Conversation, NodeAttestor, Spent};
use claims::{ClaimPath, Pattern, text, texts};
pub(super) use keys::Keys;
pub use keys::{KeySettings, KeySource, KeysError, acceptable};

/// The attestor's name and the type of its selectors.
pub const NAME: &str = "oidc";

/// One issuer whose tokens are accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuerSettings {
    /// What it is called in agent IDs.
    pub name: String,
    /// The `iss` claim of its tokens, to the letter.
    pub url: String,
    /// Where its keys come from.
    pub keys: KeySource,
    /// PEM of the authorities that verify its server, in place of the system's.
    pub ca_path: Option<PathBuf>,
    /// A file with a token that is shown when keys are fetched.
    pub fetch_token_path: Option<PathBuf>,
    /// How long fetched keys are used before they are fetched anew.
    pub refresh: Duration,
    /// What its tokens must be like.
    pub rules: TokenRules,
    /// Claims that a token must have, each with the values of which it must have one.
    pub required_claims: Vec<(ClaimPath, Vec<Pattern>)>,
    /// Selectors by name, and the claims that their values come from.
    pub selectors: Vec<(String, ClaimPath)>,
    /// How the agent's SPIFFE ID is made.
    pub agent_path_template: Template,
    /// Whether an agent may attest again with a fresh token.
    pub reattestable: bool,
}

impl IssuerSettings {
    fn key_settings(&self) -> KeySettings {
        KeySettings {
            name: self.name.clone(),
            url: self.url.clone(),
            source: self.keys.clone(),
            ca_path: self.ca_path.clone(),
            fetch_token_path: self.fetch_token_path.clone(),
            refresh: self.refresh,
        }
    }
}

/// The names that an agent path template may use.
pub const FIELDS: &[Field] = &[
    Field::constant(".PluginName"),
    Field::constant(".TrustDomain"),
    Field::constant(".Issuer"),
    Field::of_node(CLAIMS, FieldKind::Map),
];
const CLAIMS: &str = ".Claims";

/// Reads a template.
///
/// # Errors
/// Why it would not give each node an ID of its own.
pub fn template(text: &str) -> Result<Template, TemplateError> {
    Template::parse(text, FIELDS)
}

/// The attestor.
pub struct Oidc {
    trust_domain: TrustDomain,
    issuers: Vec<Issuer>,
}

struct Issuer {
    settings: IssuerSettings,
    keys: Keys,
}

impl Oidc {
    /// Reads the files that the settings name. Keys are fetched when the first token needs them.
    ///
    /// # Errors
    /// A file cannot be used.
    pub fn new(trust_domain: TrustDomain, issuers: Vec<IssuerSettings>) -> Result<Self, KeysError> {
        let issuer = |settings: IssuerSettings| {
            let keys = Keys::new(&settings.key_settings())?;
            Ok(Issuer { settings, keys })
        };
        Ok(Self { trust_domain, issuers: issuers.into_iter().map(issuer).collect::<Result<_, KeysError>>()? })
    }

    /// Whether the files can be used.
    ///
    /// # Errors
    /// The first that cannot.
    pub fn check(issuers: &[IssuerSettings]) -> Result<(), KeysError> {
        issuers.iter().try_for_each(|settings| Keys::new(&settings.key_settings()).map(drop))
    }

    fn issuer(&self, token: &OidcToken<'_>) -> Result<&Issuer, AttestError> {
        let url = token.issuer().map_err(invalid)?;
        let found = self.issuers.iter().find(|issuer| issuer.settings.url == url);
        found.ok_or_else(|| denied(format!("tokens of issuer {url:?} are not accepted")))
    }
}

impl Issuer {
    fn check(&self, token: &OidcToken<'_>, attempt: &Attempt<'_>) -> Result<CheckedToken, AttestError> {
        let checked = token.check_claims(&self.settings.rules, attempt.now).map_err(denied)?;
        for (path, patterns) in &self.settings.required_claims {
            let values = path.of(token.claims()).map(texts).unwrap_or_default();
            if !values.iter().any(|value| patterns.iter().any(|pattern| pattern.matches(value))) {
                return Err(denied(format!("claim {path} does not have a value that is required")));
            }
        }
        Ok(checked)
    }

    fn selectors(&self, token: &OidcToken<'_>) -> Result<SelectorSet, AttestError> {
        let mut found = vec![Selector::new(NAME, &format!("issuer:{}", self.settings.url)).map_err(invalid)?];
        for (name, path) in &self.settings.selectors {
            for value in path.of(token.claims()).map(texts).unwrap_or_default() {
                if value.is_empty() {
                    continue;
                }
                if value.len() > LONGEST_VALUE
                    || value.chars().any(char::is_control)
                    || found.len() > MOST_SELECTORS
                {
                    return Err(invalid(format!("claim {path} cannot be made selectors of")));
                }
                found.push(Selector::new(NAME, &format!("{name}:{value}")).map_err(invalid)?);
            }
        }
        Ok(found.into_iter().collect())
    }

    fn agent_path(&self, trust_domain: &TrustDomain, token: &OidcToken<'_>) -> Result<String, AttestError> {
        let values = |name: &'static str, key: Option<&str>| {
            Some(Value::Text(match (name, key) {
                (".PluginName", _) => NAME.to_owned(),
                (".TrustDomain", _) => trust_domain.to_string(),
                (".Issuer", _) => self.settings.name.clone(),
                (CLAIMS, Some(key)) => {
                    let value = text(ClaimPath::parse(key).ok()?.of(token.claims())?)?;
                    Some(value).filter(|value| value.len() <= LONGEST_VALUE)?
                }
                _ => return None,
            }))
        };
        self.settings.agent_path_template.render(Output::Escaped, &values).map_err(invalid)
    }
}

#[async_trait]
impl NodeAttestor for Oidc {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn attest(&self, attempt: Attempt<'_>, _: &mut dyn Conversation) -> Result<Attested, AttestError> {
        let payload = payload(attempt.payload)?;
        let token = OidcToken::parse(&payload.token).map_err(invalid)?;
        let issuer = self.issuer(&token)?;
        issuer.check(&token, &attempt)?;
        let path = issuer.agent_path(&self.trust_domain, &token)?;
        let id = self.trust_domain.agent_id(path.trim_start_matches('/')).map_err(invalid)?;
        let selectors = issuer.selectors(&token)?;
        let keys = issuer.keys.for_key(token.key_id(), attempt.now).await.map_err(|why| {
            tracing::warn!(issuer = issuer.settings.url, why, "there are no keys to verify tokens with");
            AttestError::Unavailable(format!("nodeattestor({NAME}): the issuer's keys are not available"))
        })?;
        token.verify(&keys).map_err(denied)?;
        Ok(Attested { id, selectors, can_reattest: issuer.settings.reattestable, twin: None })
    }

    fn spends(&self, attempt: Attempt<'_>) -> Option<Spent> {
        let payload = payload(attempt.payload).ok()?;
        let token = OidcToken::parse(&payload.token).ok()?;
        let checked = self.issuer(&token).ok()?.check(&token, &attempt).ok()?;
        Some(Spent { fingerprint: checked.fingerprint, until: checked.refused_from })
    }
}

fn payload(bytes: &[u8]) -> Result<Payload, AttestError> {
    serde_json::from_slice(bytes).map_err(|error| invalid(format!("failed to unmarshal data: {error}")))
}

#[derive(Deserialize)]
struct Payload {
    token: String,
}

fn invalid(text: impl fmt::Display) -> AttestError {
    AttestError::Invalid(format!("nodeattestor({NAME}): {text}"))
}

fn denied(text: impl fmt::Display) -> AttestError {
    AttestError::Denied(format!("nodeattestor({NAME}): {text}"))
}

/// Bytes of a claim that becomes a selector or a part of an ID.
const LONGEST_VALUE: usize = 512;
const MOST_SELECTORS: usize = 64;
