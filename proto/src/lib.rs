//! The wire: protobuf messages, gRPC services, and the only conversions to domain types.
