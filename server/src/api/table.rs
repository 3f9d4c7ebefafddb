//! Who may call what, how often, and what of it is audited: one row for each rpc of each service.
//!
//! The server does not start with a service that has a method without a row ([`check`]), and a path without a row is
//! answered with Unimplemented, so a forgotten row can never let anybody in.

use std::collections::HashSet;
use std::fmt;

use prost::Message as _;
use prost_types::FileDescriptorSet;

/// A set of caller classes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Who(u8);

impl Who {
    /// Anybody, also without a certificate.
    pub const ANY: Self = Self(1);
    /// The administration socket.
    pub const LOCAL: Self = Self(2);
    /// Administrators over TLS.
    pub const ADMIN: Self = Self(4);
    /// Downstream servers.
    pub const DOWNSTREAM: Self = Self(8);
    /// Attested agents.
    pub const AGENT: Self = Self(16);

    const LOCAL_ADMIN: Self = Self(Self::LOCAL.0 | Self::ADMIN.0);
    const LOCAL_ADMIN_AGENT: Self = Self(Self::LOCAL_ADMIN.0 | Self::AGENT.0);

    /// Whether all of `other` is in this set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl fmt::Debug for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [
            (Self::ANY, "any"),
            (Self::LOCAL, "local"),
            (Self::ADMIN, "admin"),
            (Self::DOWNSTREAM, "downstream"),
            (Self::AGENT, "agent"),
        ];
        f.debug_set()
            .entries(names.iter().filter(|(who, _)| self.contains(*who)).map(|(_, name)| name))
            .finish()
    }
}

/// How often an rpc may be called over TLS; the administration socket is never limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// As often as one likes.
    None,
    /// `ratelimit.attestation`, one token for a call.
    Attestation,
    /// `ratelimit.signing`, one token for a call.
    Signing,
    /// `ratelimit.signing`, one token for each item; the handler says how many ([`super::Call::charge`]).
    SigningEach,
    /// So many calls each second.
    Fixed(u32),
}

/// Which calls are written to the audit log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audited {
    /// Each.
    Always,
    /// Those that were refused or failed. For what every agent asks every few seconds, and changes nothing: at ten
    /// thousand agents these lines would bury all others.
    Failures,
}

/// One rpc.
#[derive(Debug)]
pub struct Rule {
    /// `/package.Service/Method`.
    pub path: &'static str,
    /// Who may call it.
    pub who: Who,
    /// How often.
    pub limit: Limit,
    /// Whether calls are audited.
    pub audited: Audited,
}

impl Rule {
    /// Whether the class may call it.
    pub const fn allows(&self, who: Who) -> bool {
        self.who.contains(who)
    }

    /// `package.Service`
    pub fn service(&self) -> &'static str {
        self.path.trim_start_matches('/').split('/').next().unwrap_or_default()
    }
}

macro_rules! rules {
    ($($path:literal => $who:ident $limit:ident $(($value:literal))? $audited:ident;)*) => {
        /// The table.
        pub static RULES: &[Rule] = &[$(Rule {
            path: concat!("/", $path),
            who: Who::$who,
            limit: Limit::$limit $(($value))?,
            audited: Audited::$audited,
        }),*];
    };
}

rules! {
    "spire.api.server.agent.v1.Agent/CountAgents" => LOCAL_ADMIN None Always;
    "spire.api.server.agent.v1.Agent/ListAgents" => LOCAL_ADMIN None Always;
    "spire.api.server.agent.v1.Agent/GetAgent" => LOCAL_ADMIN None Always;
    "spire.api.server.agent.v1.Agent/DeleteAgent" => LOCAL_ADMIN None Always;
    "spire.api.server.agent.v1.Agent/BanAgent" => LOCAL_ADMIN None Always;
    "spire.api.server.agent.v1.Agent/AttestAgent" => ANY Attestation Always;
    "spire.api.server.agent.v1.Agent/RenewAgent" => AGENT Signing Always;
    "spire.api.server.agent.v1.Agent/CreateJoinToken" => LOCAL_ADMIN None Always;
    "spire.api.server.agent.v1.Agent/PostStatus" => AGENT Fixed(10) Failures;

    "spire.api.server.bundle.v1.Bundle/CountBundles" => LOCAL_ADMIN None Always;
    "spire.api.server.bundle.v1.Bundle/GetBundle" => ANY None Failures;
    "spire.api.server.bundle.v1.Bundle/AppendBundle" => LOCAL_ADMIN None Always;
    "spire.api.server.bundle.v1.Bundle/PublishJWTAuthority" => DOWNSTREAM Fixed(500) Always;
    "spire.api.server.bundle.v1.Bundle/PublishWITAuthority" => DOWNSTREAM Fixed(500) Always;
    "spire.api.server.bundle.v1.Bundle/ListFederatedBundles" => LOCAL_ADMIN None Always;
    "spire.api.server.bundle.v1.Bundle/GetFederatedBundle" => LOCAL_ADMIN_AGENT None Failures;
    "spire.api.server.bundle.v1.Bundle/BatchCreateFederatedBundle" => LOCAL_ADMIN None Always;
    "spire.api.server.bundle.v1.Bundle/BatchUpdateFederatedBundle" => LOCAL_ADMIN None Always;
    "spire.api.server.bundle.v1.Bundle/BatchSetFederatedBundle" => LOCAL_ADMIN None Always;
    "spire.api.server.bundle.v1.Bundle/BatchDeleteFederatedBundle" => LOCAL_ADMIN None Always;

    "spire.api.server.debug.v1.Debug/GetInfo" => LOCAL None Always;

    "spire.api.server.entry.v1.Entry/CountEntries" => LOCAL_ADMIN None Always;
    "spire.api.server.entry.v1.Entry/ListEntries" => LOCAL_ADMIN None Always;
    "spire.api.server.entry.v1.Entry/GetEntry" => LOCAL_ADMIN None Always;
    "spire.api.server.entry.v1.Entry/BatchCreateEntry" => LOCAL_ADMIN None Always;
    "spire.api.server.entry.v1.Entry/BatchUpdateEntry" => LOCAL_ADMIN None Always;
    "spire.api.server.entry.v1.Entry/BatchDeleteEntry" => LOCAL_ADMIN None Always;
    "spire.api.server.entry.v1.Entry/GetAuthorizedEntries" => AGENT Fixed(100) Failures;
    "spire.api.server.entry.v1.Entry/SyncAuthorizedEntries" => AGENT Fixed(100) Failures;

    "spire.api.server.localauthority.v1.LocalAuthority/GetJWTAuthorityState" => LOCAL_ADMIN None Always;
    "spire.api.server.localauthority.v1.LocalAuthority/PrepareJWTAuthority" => LOCAL_ADMIN None Always;
    "spire.api.server.localauthority.v1.LocalAuthority/ActivateJWTAuthority" => LOCAL_ADMIN None Always;
    "spire.api.server.localauthority.v1.LocalAuthority/TaintJWTAuthority" => LOCAL_ADMIN None Always;
    "spire.api.server.localauthority.v1.LocalAuthority/RevokeJWTAuthority" => LOCAL_ADMIN None Always;
    "spire.api.server.localauthority.v1.LocalAuthority/GetX509AuthorityState" => LOCAL_ADMIN None Always;
    "spire.api.server.localauthority.v1.LocalAuthority/PrepareX509Authority" => LOCAL_ADMIN None Always;
    "spire.api.server.localauthority.v1.LocalAuthority/ActivateX509Authority" => LOCAL_ADMIN None Always;
    "spire.api.server.localauthority.v1.LocalAuthority/TaintX509Authority" => LOCAL_ADMIN None Always;
    "spire.api.server.localauthority.v1.LocalAuthority/TaintX509UpstreamAuthority" => LOCAL_ADMIN None Always;
    "spire.api.server.localauthority.v1.LocalAuthority/RevokeX509Authority" => LOCAL_ADMIN None Always;
    "spire.api.server.localauthority.v1.LocalAuthority/RevokeX509UpstreamAuthority" => LOCAL_ADMIN None Always;
    "spire.api.server.localauthority.v1.LocalAuthority/GetWITAuthorityState" => LOCAL_ADMIN None Always;
    "spire.api.server.localauthority.v1.LocalAuthority/PrepareWITAuthority" => LOCAL_ADMIN None Always;
    "spire.api.server.localauthority.v1.LocalAuthority/ActivateWITAuthority" => LOCAL_ADMIN None Always;
    "spire.api.server.localauthority.v1.LocalAuthority/TaintWITAuthority" => LOCAL_ADMIN None Always;
    "spire.api.server.localauthority.v1.LocalAuthority/RevokeWITAuthority" => LOCAL_ADMIN None Always;

    "spire.api.server.logger.v1.Logger/GetLogger" => LOCAL None Always;
    "spire.api.server.logger.v1.Logger/SetLogLevel" => LOCAL None Always;
    "spire.api.server.logger.v1.Logger/ResetLogLevel" => LOCAL None Always;

    "spire.api.server.svid.v1.SVID/MintX509SVID" => LOCAL_ADMIN None Always;
    "spire.api.server.svid.v1.SVID/MintJWTSVID" => LOCAL_ADMIN None Always;
    "spire.api.server.svid.v1.SVID/MintWITSVID" => LOCAL_ADMIN None Always;
    "spire.api.server.svid.v1.SVID/BatchNewX509SVID" => AGENT SigningEach Always;
    "spire.api.server.svid.v1.SVID/NewJWTSVID" => AGENT Signing Always;
    "spire.api.server.svid.v1.SVID/BatchNewWITSVID" => AGENT SigningEach Always;
    "spire.api.server.svid.v1.SVID/NewDownstreamX509CA" => DOWNSTREAM Signing Always;

    "spire.api.server.trustdomain.v1.TrustDomain/ListFederationRelationships" => LOCAL_ADMIN None Always;
    "spire.api.server.trustdomain.v1.TrustDomain/GetFederationRelationship" => LOCAL_ADMIN None Always;
    "spire.api.server.trustdomain.v1.TrustDomain/BatchCreateFederationRelationship" => LOCAL_ADMIN None Always;
    "spire.api.server.trustdomain.v1.TrustDomain/BatchUpdateFederationRelationship" => LOCAL_ADMIN None Always;
    "spire.api.server.trustdomain.v1.TrustDomain/BatchDeleteFederationRelationship" => LOCAL_ADMIN None Always;
    "spire.api.server.trustdomain.v1.TrustDomain/RefreshBundle" => LOCAL_ADMIN None Always;

    "grpc.health.v1.Health/Check" => LOCAL None Failures;
    "grpc.health.v1.Health/List" => LOCAL None Failures;
    "grpc.health.v1.Health/Watch" => LOCAL None Failures;

    "bonafide.server.v1.Maintenance/Backup" => LOCAL None Always;
    "bonafide.server.v1.Maintenance/CheckLifetimes" => LOCAL None Failures;

    "bonafide.agent.v1.GpuEvidence/GetChallenge" => AGENT Fixed(10) Failures;
    "bonafide.agent.v1.GpuEvidence/SubmitEvidence" => AGENT Fixed(1) Always;
}

/// Finds the row of a path.
pub fn rule(path: &str) -> Option<(usize, &'static Rule)> {
    RULES.iter().enumerate().find(|(_, rule)| rule.path == path)
}

/// The table and the services do not belong together.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the permission table is incomplete: {}", .missing.join(", "))]
pub struct Incomplete {
    /// Methods without a row, or services without a description.
    pub missing: Vec<String>,
}

/// Checks that each method of each named service has a row.
///
/// # Errors
/// Names the methods that have none.
pub fn check<'a>(services: impl IntoIterator<Item = &'a str>) -> Result<(), Incomplete> {
    let methods = described_methods();
    let mut missing = Vec::new();
    for service in services {
        let prefix = format!("/{service}/");
        let mut known = methods.iter().filter(|path| path.starts_with(&prefix)).peekable();
        if known.peek().is_none() {
            missing.push(format!("{service} (no such service is described)"));
        }
        missing.extend(known.filter(|path| rule(path).is_none()).cloned());
    }
    missing.sort();
    if missing.is_empty() { Ok(()) } else { Err(Incomplete { missing }) }
}

fn described_methods() -> HashSet<String> {
    let descriptors = FileDescriptorSet::decode(bonafide_proto::FILE_DESCRIPTOR_SET)
        .expect("the build wrote this descriptor set");
    let mut paths = HashSet::new();
    for file in &descriptors.file {
        for service in &file.service {
            let name = match file.package() {
                "" => service.name().to_owned(),
                package => format!("{package}.{}", service.name()),
            };
            paths.extend(service.method.iter().map(|method| format!("/{name}/{}", method.name())));
        }
    }
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_is_a_method_and_stands_once() {
        let methods = described_methods();
        let mut seen = HashSet::new();
        for rule in RULES {
            assert!(methods.contains(rule.path), "{} is no method", rule.path);
            assert!(seen.insert(rule.path), "{} stands twice", rule.path);
            assert_ne!(rule.who, Who(0), "{} lets nobody in", rule.path);
        }
    }

    /// The policy as SPIRE documents it: who may do what is said by exceptions from "local and administrators".
    #[test]
    fn the_rows_are_those_of_the_default_policy() {
        let short = |rule: &Rule| {
            let (service, method) = rule.path.rsplit_once('/').unwrap();
            format!("{}/{method}", service.rsplit('.').next().unwrap())
        };
        for rule in RULES {
            let expected = match short(rule).as_str() {
                "Agent/AttestAgent" | "Bundle/GetBundle" => Who::ANY,
                "Agent/RenewAgent"
                | "Agent/PostStatus"
                | "Entry/GetAuthorizedEntries"
                | "Entry/SyncAuthorizedEntries"
                | "SVID/BatchNewX509SVID"
                | "SVID/NewJWTSVID"
                | "SVID/BatchNewWITSVID"
                | "GpuEvidence/GetChallenge"
                | "GpuEvidence/SubmitEvidence" => Who::AGENT,
                "SVID/NewDownstreamX509CA" | "Bundle/PublishJWTAuthority" | "Bundle/PublishWITAuthority" => {
                    Who::DOWNSTREAM
                }
                "Bundle/GetFederatedBundle" => Who(Who::LOCAL.0 | Who::ADMIN.0 | Who::AGENT.0),
                name if ["Logger/", "Debug/", "Health/", "Maintenance/"]
                    .iter()
                    .any(|p| name.starts_with(p)) =>
                {
                    Who::LOCAL
                }
                _ => Who(Who::LOCAL.0 | Who::ADMIN.0),
            };
            assert_eq!(rule.who, expected, "{}", rule.path);
            let limit = match short(rule).as_str() {
                "Agent/AttestAgent" => Limit::Attestation,
                "Agent/RenewAgent" | "SVID/NewJWTSVID" | "SVID/NewDownstreamX509CA" => Limit::Signing,
                "SVID/BatchNewX509SVID" | "SVID/BatchNewWITSVID" => Limit::SigningEach,
                "Bundle/PublishJWTAuthority" | "Bundle/PublishWITAuthority" => Limit::Fixed(500),
                "Agent/PostStatus" | "GpuEvidence/GetChallenge" => Limit::Fixed(10),
                // SPIRE has no limit here; an agent that polls has no use for more.
                "Entry/GetAuthorizedEntries" | "Entry/SyncAuthorizedEntries" => Limit::Fixed(100),
                "GpuEvidence/SubmitEvidence" => Limit::Fixed(1),
                _ => Limit::None,
            };
            assert_eq!(rule.limit, limit, "{}", rule.path);
        }
        assert_eq!(RULES.len(), 62 + 3 + 2 + 2);
    }

    #[test]
    fn each_method_of_each_service_in_the_table_has_a_row() {
        let services: HashSet<&str> = RULES.iter().map(Rule::service).collect();
        assert_eq!(services.len(), 11);
        assert_eq!(check(services), Ok(()));
    }

    #[test]
    fn a_method_without_a_row_is_named() {
        let error = check(["SpiffeWorkloadAPI", "no.such.Service"]).unwrap_err();
        assert!(error.missing.contains(&"/SpiffeWorkloadAPI/FetchX509SVID".to_owned()), "{error}");
        assert!(
            error.missing.contains(&"no.such.Service (no such service is described)".to_owned()),
            "{error}"
        );
    }
}
