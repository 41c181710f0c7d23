//! Code generated from `proto/`: messages, the gRPC server and client, and the
//! cache's entry format.
#![expect(
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated; the documentation stands in the .proto files"
)]

/// The public API, package `account.v1`.
pub mod account_v1 {
    tonic::include_proto!("account.v1");

    /// The API's descriptors, for server reflection.
    pub const DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("account_descriptor");
}

/// The cache's entry format, package `account.cache.v1`. Private to the service.
pub mod cache_v1 {
    tonic::include_proto!("account.cache.v1");
}
