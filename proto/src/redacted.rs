//! `Debug` for the messages that carry a secret: everything but the secret, of which only the length is shown.
//!
//! A derived `Debug` would put private keys into whatever log prints a response. `build.rs` switches the derived
//! one off for the same messages; one that is named there and missing here does not compile.

use std::fmt::{self, Debug, Formatter};

use crate::spire::{agent::delegatedidentity, server::agent, types};
use crate::{broker, workload};

struct Hidden(usize);

impl Debug for Hidden {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        write!(formatter, "<{} bytes hidden>", self.0)
    }
}

macro_rules! redact {
    ($($message:ty { $($shown:ident),*; $($hidden:ident),* })*) => {
        $(impl Debug for $message {
            fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
                let Self { $($shown,)* $($hidden,)* } = self;
                formatter
                    .debug_struct(stringify!($message))
                    $(.field(stringify!($shown), $shown))*
                    $(.field(stringify!($hidden), &Hidden($hidden.len())))*
                    .finish()
            }
        })*
    };
}

redact! {
    workload::X509svid { spiffe_id, x509_svid, bundle, hint; x509_svid_key }
    workload::Jwtsvid { spiffe_id, hint; svid }
    workload::Witsvid { spiffe_id, wit_svid, hint; wit_svid_key }
    workload::ValidateJwtsvidRequest { audience; svid }
    broker::X509svid { spiffe_id, x509_svid, bundle, hint; x509_svid_key }
    broker::Jwtsvid { spiffe_id, hint; svid }
    delegatedidentity::v1::X509svidWithKey { x509_svid; x509_svid_key }
    agent::v1::CreateJoinTokenRequest { ttl, agent_id; token }
    types::AttestationData { r#type; payload }
    types::Jwtsvid { id, expires_at, issued_at, hint; token }
    types::JoinToken { expires_at; value }
}
