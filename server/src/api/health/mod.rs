//! gRPC health checking: `grpc.health`.

pub mod v1;
