//! gRPC reflection on the public socket, both versions. Only what that socket serves is described.

use bonafide_proto::FILE_DESCRIPTOR_SET;
use prost::Message as _;
use prost_types::FileDescriptorSet;
use tonic::service::RoutesBuilder;
use tonic_reflection::server::{Builder, Error};

/// Adds both reflection services.
///
/// # Errors
/// The descriptors are broken, which a test rules out.
pub fn reflection(routes: &mut RoutesBuilder) -> Result<(), Error> {
    let mut descriptors = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).map_err(Error::DecodeError)?;
    descriptors.file.retain(|file| SERVED.contains(&file.name()));
    let builder = || Builder::configure().register_file_descriptor_set(descriptors.clone());
    routes.add_service(builder().build_v1()?);
    routes.add_service(builder().build_v1alpha()?);
    Ok(())
}

const SERVED: &[&str] = &["workloadapi.proto", "google/protobuf/struct.proto", "grpc/health/v1/health.proto"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_described_file_is_there() {
        let descriptors = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap();
        for name in SERVED {
            assert!(descriptors.file.iter().any(|file| file.name() == *name), "{name}");
        }
        reflection(&mut RoutesBuilder::default()).unwrap();
    }
}
