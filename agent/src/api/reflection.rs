//! gRPC reflection, both versions. Only what a socket serves is described on it.

use bonafide_proto::FILE_DESCRIPTOR_SET;
use prost::Message as _;
use prost_types::FileDescriptorSet;
use tonic::service::RoutesBuilder;
use tonic::service::interceptor::{InterceptedService, Interceptor};
use tonic::{Request, Status};
use tonic_reflection::server::{Builder, Error};

/// Adds both reflection services to the workload socket, on which the Workload API is offered or not.
///
/// # Errors
/// The descriptors are broken, which a test rules out.
pub fn reflection(routes: &mut RoutesBuilder, workload_api: bool) -> Result<(), Error> {
    let files = if workload_api { WORKLOAD } else { HEALTH };
    add(routes, files, |request: Request<()>| Ok::<_, Status>(request))
}

/// Adds both reflection services to a socket that serves these files, behind `guard`.
pub(super) fn add(
    routes: &mut RoutesBuilder,
    files: &[&str],
    guard: impl Interceptor + Clone + Send + Sync + 'static,
) -> Result<(), Error> {
    let mut descriptors = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).map_err(Error::DecodeError)?;
    descriptors.file.retain(|file| files.contains(&file.name()));
    let builder = || Builder::configure().register_file_descriptor_set(descriptors.clone());
    routes.add_service(InterceptedService::new(builder().build_v1()?, guard.clone()));
    routes.add_service(InterceptedService::new(builder().build_v1alpha()?, guard));
    Ok(())
}

const WORKLOAD: &[&str] =
    &["workloadapi.proto", "google/protobuf/struct.proto", "grpc/health/v1/health.proto"];
const HEALTH: &[&str] = &["grpc/health/v1/health.proto"];
/// What the broker sockets serve.
pub(super) const BROKER: &[&str] = &["brokerapi.proto", "google/protobuf/any.proto"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_described_file_is_there() {
        let descriptors = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap();
        for name in WORKLOAD.iter().chain(BROKER) {
            assert!(descriptors.file.iter().any(|file| file.name() == *name), "{name}");
        }
        for workload_api in [true, false] {
            reflection(&mut RoutesBuilder::default(), workload_api).unwrap();
        }
    }
}
