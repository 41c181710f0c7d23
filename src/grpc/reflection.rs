//! Server reflection: the implementation of tonic, corrected where it differs from the
//! protocol. A request that fails gets an error response, and the stream stays open. An enum
//! value is found by its full name. Streams are bounded.

use std::{collections::HashMap, pin::Pin, sync::Arc};

use futures_util::{Stream, StreamExt as _, stream};
use prost::Message as _;
use prost_types::{EnumDescriptorProto, FileDescriptorSet};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_reflection::{
    pb::{v1, v1alpha},
    server::{Builder, Error},
};

use super::{share_limit::ShareLimit, status};
use crate::{proto::account_v1::DESCRIPTOR_SET, transport::listener::Peer};

/// Streams open at once in the process, and on one connection.
const MAX_STREAMS: usize = 64;
const MAX_STREAMS_PER_CONNECTION: usize = 4;

/// The state of the implementation of each version.
#[derive(Debug)]
struct ReflectionState {
    streams: Arc<ShareLimit<u64>>,
    /// The full names of enums, by the full names of their values. Both have the same scope.
    enums: HashMap<String, String>,
}

fn builder() -> Builder<'static> {
    Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        // So that grpcurl shows the details of errors.
        .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
}

impl ReflectionState {
    fn new() -> Self {
        let set = FileDescriptorSet::decode(DESCRIPTOR_SET).unwrap_or_default();
        let mut enums = HashMap::new();
        for file in &set.file {
            for it in &file.enum_type {
                add_values(&mut enums, file.package(), it);
            }
            for message in &file.message_type {
                let scope = format!("{}.{}", file.package(), message.name());
                for it in &message.enum_type {
                    add_values(&mut enums, &scope, it);
                }
            }
        }
        Self {
            streams: ShareLimit::new(MAX_STREAMS, MAX_STREAMS_PER_CONNECTION),
            enums,
        }
    }
}

fn add_values(enums: &mut HashMap<String, String>, scope: &str, it: &EnumDescriptorProto) {
    for value in &it.value {
        let value = format!("{scope}.{}", value.name());
        enums.insert(value, format!("{scope}.{}", it.name()));
    }
}

/// The versions of the protocol differ only in their package.
macro_rules! reflection {
    ($version:ident, $build:ident, $name:ident) => {
        /// Reflection in one version of its protocol.
        pub mod $name {
            use super::$version::{
                ErrorResponse, ServerReflectionRequest, ServerReflectionResponse,
                server_reflection_client::ServerReflectionClient,
                server_reflection_request::MessageRequest,
                server_reflection_response::MessageResponse,
                server_reflection_server::{ServerReflection, ServerReflectionServer},
            };
            use super::*;

            /// The service.
            ///
            /// # Errors
            /// The descriptors cannot be read.
            pub fn server() -> Result<ServerReflectionServer<impl ServerReflection>, Error> {
                Ok(ServerReflectionServer::new(Reflection {
                    inner: builder().$build()?,
                    shared: Arc::new(ReflectionState::new()),
                }))
            }

            struct Reflection<S> {
                inner: ServerReflectionServer<S>,
                shared: Arc<ReflectionState>,
            }

            type Responses =
                Pin<Box<dyn Stream<Item = Result<ServerReflectionResponse, Status>> + Send>>;

            #[tonic::async_trait]
            impl<S: ServerReflection> ServerReflection for Reflection<S> {
                type ServerReflectionInfoStream = Responses;

                async fn server_reflection_info(
                    &self,
                    request: Request<Streaming<ServerReflectionRequest>>,
                ) -> Result<Response<Responses>, Status> {
                    let peer = request.extensions().get::<Peer>();
                    let connection = peer.map_or(0, |peer| peer.connection);
                    let permit = self.shared.streams.try_acquire(connection);
                    let permit = permit.ok_or_else(status::too_many_reflections)?;
                    let client = ServerReflectionClient::new(self.inner.clone());
                    let shared = self.shared.clone();
                    let responses = request.into_inner().then(move |request| {
                        // Held as long as the stream.
                        let _ = &permit;
                        let (client, shared) = (client.clone(), shared.clone());
                        async move { Ok(respond(client, &shared, request?).await) }
                    });
                    Ok(Response::new(Box::pin(responses)))
                }
            }

            async fn respond<S: ServerReflection>(
                mut client: ServerReflectionClient<ServerReflectionServer<S>>,
                shared: &ReflectionState,
                request: ServerReflectionRequest,
            ) -> ServerReflectionResponse {
                let mut other_version = request.clone();
                if let Some(MessageRequest::FileContainingSymbol(symbol)) =
                    &mut other_version.message_request
                    && let Some(of_value) = shared.enums.get(symbol)
                {
                    symbol.clone_from(of_value);
                }
                let response = client
                    .server_reflection_info(stream::iter([other_version]))
                    .await;
                let response = match response {
                    Ok(responses) => responses.into_inner().message().await,
                    Err(status) => Err(status),
                };
                let message = match response {
                    Ok(response) => response.and_then(|response| response.message_response),
                    Err(status) => Some(MessageResponse::ErrorResponse(ErrorResponse {
                        error_code: Code::from(status.code()).into(),
                        error_message: status.message().to_owned(),
                    })),
                };
                ServerReflectionResponse {
                    valid_host: request.host.clone(),
                    original_request: Some(request),
                    message_response: message,
                }
            }
        }
    };
}

reflection!(v1, build_v1, reflection_v1);
reflection!(v1alpha, build_v1alpha, reflection_v1alpha);
