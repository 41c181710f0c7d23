//! Generates the gRPC server, the client and the cache's entry format from
//! `proto/`, without protoc.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

const PROTO_ROOT: &str = "proto";
const API: [&str; 1] = ["account/v1/account_service.proto"];
const CACHE: [&str; 1] = ["account/cache/v1/entry.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={PROTO_ROOT}");
    let out = PathBuf::from(env::var("OUT_DIR")?);

    let api = protox::compile(API, [PROTO_ROOT])?;
    fs::write(out.join("account_descriptor.bin"), api.encode_to_vec())?;
    // Maps by their keys, so that equal messages are encoded alike.
    let configure = tonic_prost_build::configure().btree_map(".account.v1");
    configure.compile_fds(api)?;

    let cache = protox::compile(CACHE, [PROTO_ROOT])?;
    tonic_prost_build::configure()
        .build_client(false)
        .build_server(false)
        .compile_fds(cache)?;
    Ok(())
}
