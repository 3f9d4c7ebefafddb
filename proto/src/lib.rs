//! The wire: protobuf messages, gRPC services, and the only conversions to domain types.
//!
//! The messages and services are those of SPIRE's server and agent APIs, of the SPIFFE Workload API and Broker
//! API, of gRPC health checking, of gRPC error details and, in part, of the kubelet. The `.proto` files beside this crate were written from
//! tables of names and numbers, so that the numbers and not somebody's text are what is shared with other
//! implementations; `tests/vectors` holds samples that such an implementation encoded, and the tests compare.
//!
//! Modules are shorter than the packages they hold (`spire::server::entry::v1` for `spire.api.server.entry.v1`):
//! the `api` in between says nothing. Code outside this crate should see generated types at its edges only and
//! hand domain types inwards, through [`convert`].
//!
//! Maps are ordered, so that a message has one encoding and can be compared by its bytes. The byte fields that
//! many streams share are [`bytes::Bytes`]. Messages that hold a private key or a bearer token have a `Debug`
//! that leaves it out.

pub mod convert;
mod redacted;

/// The descriptors of everything in this crate with what it imports, encoded as a
/// `google.protobuf.FileDescriptorSet`. gRPC reflection serves it.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

macro_rules! package {
    ($(#[$doc:meta])* $name:ident = $file:literal) => {
        $(#[$doc])*
        #[allow(missing_docs, unreachable_pub, unused_qualifications, deprecated, rustdoc::all, clippy::all)]
        #[allow(clippy::pedantic, clippy::nursery, clippy::unwrap_used)]
        pub mod $name {
            include!(concat!(env!("OUT_DIR"), "/", $file, ".rs"));
        }
    };
}

/// SPIRE's APIs.
pub mod spire {
    /// The server's services.
    pub mod server {
        /// Attested nodes.
        pub mod agent {
            package! {
                /// `spire.api.server.agent.v1`
                v1 = "spire.api.server.agent.v1"
            }
        }
        /// Trust bundles.
        pub mod bundle {
            package! {
                /// `spire.api.server.bundle.v1`
                v1 = "spire.api.server.bundle.v1"
            }
        }
        /// Facts about the server.
        pub mod debug {
            package! {
                /// `spire.api.server.debug.v1`
                v1 = "spire.api.server.debug.v1"
            }
        }
        /// Registration entries.
        pub mod entry {
            package! {
                /// `spire.api.server.entry.v1`
                v1 = "spire.api.server.entry.v1"
            }
        }
        /// Signing authorities.
        pub mod localauthority {
            package! {
                /// `spire.api.server.localauthority.v1`
                v1 = "spire.api.server.localauthority.v1"
            }
        }
        /// Log level of the server.
        pub mod logger {
            package! {
                /// `spire.api.server.logger.v1`
                v1 = "spire.api.server.logger.v1"
            }
        }
        /// Signing on request.
        pub mod svid {
            package! {
                /// `spire.api.server.svid.v1`
                v1 = "spire.api.server.svid.v1"
            }
        }
        /// Federation relationships.
        pub mod trustdomain {
            package! {
                /// `spire.api.server.trustdomain.v1`
                v1 = "spire.api.server.trustdomain.v1"
            }
        }
    }

    /// The agent's administrative services.
    pub mod agent {
        /// Facts about the agent.
        pub mod debug {
            package! {
                /// `spire.agent.debug.v1`: this package alone has no `api` in its name.
                v1 = "spire.agent.debug.v1"
            }
        }
        /// Identities on behalf of others.
        pub mod delegatedidentity {
            package! {
                /// `spire.api.agent.delegatedidentity.v1`
                v1 = "spire.api.agent.delegatedidentity.v1"
            }
        }
        /// Log level of the agent.
        pub mod logger {
            package! {
                /// `spire.api.agent.logger.v1`
                v1 = "spire.api.agent.logger.v1"
            }
        }
    }

    package! {
        /// `spire.api.types`: what the services share.
        types = "spire.api.types"
    }

    /// Generated code names its types relative to its package, and `spire.agent.debug.v1` is one level higher
    /// than the others: from there the shared types are in `api`.
    mod api {
        pub(in crate::spire) use super::types;
    }
}

/// Our own services, which peers that speak only SPIRE's protocol never see.
pub mod bonafide {
    /// What agents tell the server beyond SPIRE's protocol.
    pub mod agent {
        package! {
            /// `bonafide.agent.v1`
            v1 = "bonafide.agent.v1"
        }
    }
    /// The server's services.
    pub mod server {
        package! {
            /// `bonafide.server.v1`
            v1 = "bonafide.server.v1"
        }
    }
}

package! {
    /// The SPIFFE Workload API, which has no package: its path is `/SpiffeWorkloadAPI/…`.
    workload = "_"
}

package! {
    /// `spiffe.broker`: the SPIFFE Broker API.
    broker = "spiffe.broker"
}

/// What the kubelet offers on a node, as far as it is asked here.
pub mod kubelet {
    package! {
        /// `v1alpha1`: the pods of the node.
        pods = "v1alpha1"
    }
    package! {
        /// `v1`: what was allocated to their containers.
        podresources = "v1"
    }
    package! {
        /// `k8s.io.api.core.v1`: a pod, in part.
        core = "k8s.io.api.core.v1"
    }
}

/// gRPC health checking.
pub mod health {
    package! {
        /// `grpc.health.v1`
        v1 = "grpc.health.v1"
    }
}

package! {
    /// `google.rpc`: the details of a gRPC error.
    rpc = "google.rpc"
}
