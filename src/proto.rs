//! Code generated from `proto/`: messages, the gRPC servers and clients, and the
//! cache's entry format.
#![expect(
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated; the documentation is in the .proto files"
)]

use std::marker::PhantomData;

use prost::Message;
use tonic::codec::{BufferSettings, Codec};
use tonic_prost::{ProstDecoder, ProstEncoder};

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

/// Envoy's external authorization API, package `envoy.service.auth.v3`.
pub mod envoy_auth_v3 {
    tonic::include_proto!("envoy.service.auth.v3");
}

/// Calls between replicas, package `account.peer.v1`. Private to the service.
pub mod peer_v1 {
    tonic::include_proto!("account.peer.v1");
}

/// Initial capacity of a message's buffer, in bytes. Enough for most messages. The default
/// is 8 KiB.
const BUFFER_BYTES: usize = 512;
/// Bytes of encoded messages after which a stream sends them before it encodes the next one.
const SEND_BYTES: usize = 32 * 1024;

/// The codec of prost, with buffers for small messages.
#[derive(Debug)]
pub struct SmallMessages<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for SmallMessages<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for SmallMessages<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::new(BufferSettings::new(BUFFER_BYTES, SEND_BYTES))
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstDecoder::new(BufferSettings::new(BUFFER_BYTES, SEND_BYTES))
    }
}
