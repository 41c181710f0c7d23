//! Generates the gRPC server, the client and the cache's entry format from
//! `proto/`, without protoc.

use std::{env, error::Error, fs, path::PathBuf};

const PROTO_ROOT: &str = "proto";
/// Third-party files that the contract imports.
const IMPORT_ROOT: &str = "third_party/googleapis";
const API: [&str; 1] = ["account/v1/account_service.proto"];
const CACHE: [&str; 1] = ["account/cache/v1/entry.proto"];
const ENVOY_ROOT: &str = "third_party/envoy";
const EXT_AUTHZ: [&str; 1] = ["envoy/service/auth/v3/external_auth.proto"];
const PEER: [&str; 1] = ["account/peer/v1/peer_service.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={PROTO_ROOT}");
    println!("cargo::rerun-if-changed={IMPORT_ROOT}");
    println!("cargo::rerun-if-changed={ENVOY_ROOT}");
    let out = PathBuf::from(env::var("OUT_DIR")?);

    let mut compiler = protox::Compiler::new([PROTO_ROOT, IMPORT_ROOT])?;
    compiler.include_imports(true).include_source_info(true);
    compiler.open_files(API)?;
    // Encoded by protox, because prost's types omit the HTTP forms.
    let descriptors = compiler.encode_file_descriptor_set();
    fs::write(out.join("account_descriptor.bin"), descriptors)?;
    // Sorted maps, so that equal messages have equal encodings.
    let configure = tonic_prost_build::configure()
        .btree_map(".account.v1")
        .codec_path("crate::proto::SmallMessages");
    configure.compile_fds(compiler.file_descriptor_set())?;

    let cache = protox::compile(CACHE, [PROTO_ROOT])?;
    tonic_prost_build::configure()
        .btree_map(".account.cache.v1")
        .build_client(false)
        .build_server(false)
        .compile_fds(cache)?;

    let peer = protox::compile(PEER, [PROTO_ROOT])?;
    tonic_prost_build::configure().compile_fds(peer)?;

    let ext_authz = protox::compile(EXT_AUTHZ, [ENVOY_ROOT])?;
    // The client is for the tests.
    tonic_prost_build::configure()
        .codec_path("crate::proto::SmallMessages")
        .compile_fds(ext_authz)?;
    Ok(())
}
