//! The configuration file as it is written.

use std::collections::BTreeMap;
use std::path::PathBuf;

use bonafide_runtime::config::HumanDuration;
use bonafide_runtime::telemetry::{LogFormat, LogLevel};
use serde::{Deserialize, Serialize};

use super::BundleFormat;

macro_rules! table {
    ($(#[$doc:meta])* $name:ident { $($key:ident: $kind:ty),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Default, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub(super) struct $name {
            $(pub(super) $key: $kind),*
        }
    };
}

table! {
    /// The whole file.
    Raw {
        trust_domain: Option<String>,
        data_dir: Option<PathBuf>,
        sync_interval: Option<HumanDuration>,
        health_address: Option<String>,
        allow_unauthenticated_verifiers: Option<bool>,
        allowed_foreign_jwt_claims: Option<Vec<String>>,
        server: Server,
        bootstrap: Bootstrap,
        node_attestor: NodeAttestor,
        workload_api: Socket,
        admin: Socket,
        log: Log,
        svid: Svid,
        workload_attestor: WorkloadAttestor,
    }
}

table! { Server { address: Option<String> } }

table! {
    Bootstrap {
        bundle_file: Option<PathBuf>,
        bundle_format: Option<BundleFormat>,
        insecure: Option<bool>,
    }
}

table! {
    /// Which table is present says which attestor is meant.
    NodeAttestor {
        join_token: Option<JoinToken>,
        x509pop: Option<X509Pop>,
        sshpop: Option<SshPop>,
        http_challenge: Option<HttpChallenge>,
        oidc: Option<Oidc>,
    }
}

table! {
    JoinToken {
        token: Option<String>,
        token_file: Option<PathBuf>,
    }
}

table! {
    X509Pop {
        certificate_path: Option<PathBuf>,
        private_key_path: Option<PathBuf>,
        intermediates_path: Option<PathBuf>,
    }
}

table! {
    SshPop {
        host_key_path: Option<PathBuf>,
        host_cert_path: Option<PathBuf>,
    }
}

table! {
    HttpChallenge {
        hostname: Option<String>,
        agentname: Option<String>,
        port: Option<u16>,
        advertised_port: Option<u16>,
    }
}

table! {
    Oidc {
        token_path: Option<PathBuf>,
        token_url: Option<String>,
        method: Option<String>,
        headers: Option<BTreeMap<String, String>>,
        response_field: Option<String>,
        ca_path: Option<PathBuf>,
    }
}

table! { Socket { socket: Option<PathBuf> } }

table! {
    Log {
        level: Option<LogLevel>,
        format: Option<LogFormat>,
        file: Option<PathBuf>,
    }
}

table! {
    Svid {
        key_type: Option<String>,
        availability_target: Option<HumanDuration>,
        x509_cache_size: Option<usize>,
        jwt_cache_size: Option<usize>,
    }
}

table! { WorkloadAttestor { unix: Option<Unix> } }

table! {
    Unix {
        discover_workload_path: Option<bool>,
        workload_size_limit: Option<i64>,
    }
}

#[cfg(test)]
impl Raw {
    /// Nothing but every table, so that each key shows when this is written out.
    pub(super) fn with_all_tables() -> Self {
        Self {
            node_attestor: NodeAttestor {
                join_token: Some(JoinToken::default()),
                x509pop: Some(X509Pop::default()),
                sshpop: Some(SshPop::default()),
                http_challenge: Some(HttpChallenge::default()),
                oidc: Some(Oidc::default()),
            },
            workload_attestor: WorkloadAttestor { unix: Some(Unix::default()) },
            ..Self::default()
        }
    }
}
