//! Compiles `proto/**/*.proto` without `protoc`, which a builder of this project need not have.
//!
//! Two products go to `OUT_DIR`: one Rust file for each package, and the encoded descriptor set that gRPC
//! reflection serves and that the tests check the generated code against.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

use protox::prost::Message as _;

/// Messages whose `bytes` fields are shared between the streams of many workloads: `Bytes` makes each copy a
/// reference count instead of a copy of the chain.
const SHARED_BYTES: &[&str] = &[
    ".X509SVID",
    ".X509SVIDResponse",
    ".X509BundlesResponse",
    ".JWTBundlesResponse",
    ".spiffe.broker",
    ".spire.api.types.X509SVID",
];

/// Messages that carry a private key or a bearer token: `src/redacted.rs` gives them a `Debug` without it.
const SECRET: &[&str] = &[
    ".X509SVID",
    ".JWTSVID",
    ".WITSVID",
    ".ValidateJWTSVIDRequest",
    ".spiffe.broker.X509SVID",
    ".spiffe.broker.JWTSVID",
    ".spire.api.agent.delegatedidentity.v1.X509SVIDWithKey",
    ".spire.api.server.agent.v1.CreateJoinTokenRequest",
    ".spire.api.types.AttestationData",
    ".spire.api.types.JWTSVID",
    ".spire.api.types.JoinToken",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=proto");

    let root = Path::new("proto");
    let mut files = Vec::new();
    collect(root, &mut files)?;
    files.sort();
    let mut descriptors = protox::compile(&files, [root])?;

    let mut builder = tonic_prost_build::configure().btree_map(".");
    for path in SHARED_BYTES {
        builder = builder.bytes(path);
    }
    // Types know their own names, so that one packed into `google.protobuf.Any` is labelled by the compiler.
    let mut config = tonic_prost_build::Config::new();
    config.enable_type_names().type_name_domain(["."], "type.googleapis.com");
    builder.skip_debug(SECRET).compile_fds_with_config(descriptors.clone(), config)?;

    // Comments are for the generated documentation; nobody reads them through reflection.
    for file in &mut descriptors.file {
        file.source_code_info = None;
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    Ok(())
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "proto") {
            files.push(path);
        }
    }
    Ok(())
}
