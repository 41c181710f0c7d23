//! Look-ups with the consistent read concern. Momento's SDK cannot request it, so they use Momento's
//! protocol over a tonic channel of their own.

use std::{collections::HashMap, fmt};

use momento_protos::cache_client::{
    ECacheResult, GetBatchRequest, GetRequest, GetResponse, scs_client::ScsClient,
};
use tokio::task::consume_budget;
use tonic::{
    Code, Request, Status,
    metadata::{Ascii, MetadataKey, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, ClientTlsConfig, Endpoint},
};

use super::{CONNECT_TIMEOUT, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, REQUEST_TIMEOUT};
use crate::cache::{Credential, Error, FailureKind, Found};

/// Largest response for one key, in bytes: many times an entry of this service.
const MAX_RESPONSE_BYTES: usize = 256 * 1024;

/// HTTP/2 windows of a look-up and of the connection, in bytes: a look-up of the most keys, with the
/// largest records, is received without waiting.
const STREAM_WINDOW: u32 = 4 * 1024 * 1024;
const CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;

/// The client of look-ups, over one long-lived connection.
#[derive(Clone)]
pub(super) struct MomentoLookups(ScsClient<InterceptedService<Channel, CallHeaders>>);

/// The headers of each look-up.
#[derive(Clone)]
struct CallHeaders {
    authorization: MetadataValue<Ascii>,
    cache: MetadataValue<Ascii>,
}

impl fmt::Debug for MomentoLookups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MomentoLookups(redacted)")
    }
}

impl Interceptor for CallHeaders {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let consistent = MetadataValue::from_static("consistent");
        let headers = request.metadata_mut();
        headers.insert("authorization", self.authorization.clone());
        headers.insert("cache", self.cache.clone());
        headers.insert("read-concern", consistent);
        Ok(request)
    }
}

impl MomentoLookups {
    /// Opens the connection.
    ///
    /// # Errors
    /// [`FailureKind::Unavailable`]: there is no connection. [`FailureKind::Refused`]: the
    /// endpoint, the credential or the name of the cache cannot be sent.
    pub(super) async fn connect(credential: &Credential, cache: &str) -> Result<Self, Error> {
        let mut authorization: MetadataValue<Ascii> =
            credential.0.auth_token().parse().map_err(refused)?;
        authorization.set_sensitive(true);
        let headers = CallHeaders {
            authorization,
            cache: cache.parse().map_err(refused)?,
        };
        let url = credential.endpoint();
        let has_tls = url.starts_with("https://");
        let mut endpoint = Endpoint::from_shared(url)
            .map_err(refused)?
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(REQUEST_TIMEOUT)
            .tcp_nodelay(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true);
        if has_tls {
            let tls = ClientTlsConfig::new().with_webpki_roots();
            endpoint = endpoint.tls_config(tls).map_err(refused)?;
        }
        let connected = endpoint.connect().await;
        let channel = connected.map_err(|error| Error::new(FailureKind::Unavailable, error))?;
        let client = ScsClient::with_interceptor(channel, headers);
        Ok(Self(client.max_decoding_message_size(MAX_RESPONSE_BYTES)))
    }

    /// Looks up at least one key. The responses arrive one by one, and belong to the keys by their
    /// positions: if they end early, the results of the other keys are unknown. `context` are the
    /// headers of the call's trace.
    ///
    /// # Errors
    /// The call failed.
    pub(super) async fn get(
        &self,
        keys: &[String],
        context: HashMap<String, String>,
    ) -> Result<Vec<Found>, Error> {
        let mut client = self.0.clone();
        let item = |key: &String| GetRequest {
            cache_key: key.clone().into_bytes(),
        };
        if let [key] = keys {
            let response = client.get(traced(item(key), context)).await;
            return Ok(vec![found(
                response.map_err(|status| failed(&status))?.into_inner(),
            )]);
        }
        let request = GetBatchRequest {
            items: keys.iter().map(item).collect(),
        };
        let responses = client.get_batch(traced(request, context)).await;
        let mut responses = responses.map_err(|status| failed(&status))?.into_inner();
        let mut all = Vec::with_capacity(keys.len());
        while let Some(response) = responses
            .message()
            .await
            .map_err(|status| failed(&status))?
        {
            if all.len() < keys.len() {
                all.push(found(response));
            }
            consume_budget().await;
        }
        all.resize(keys.len(), Found::Unknown);
        Ok(all)
    }
}

fn traced<T>(message: T, context: HashMap<String, String>) -> Request<T> {
    let mut request = Request::new(message);
    for (name, value) in context {
        if let (Ok(name), Ok(value)) = (name.parse::<MetadataKey<Ascii>>(), value.parse()) {
            request.metadata_mut().insert(name, value);
        }
    }
    request
}

fn found(response: GetResponse) -> Found {
    match response.result() {
        ECacheResult::Hit => Found::Hit(response.cache_body.into()),
        ECacheResult::Miss => Found::Miss,
        ECacheResult::Ok | ECacheResult::Invalid => Found::Unknown,
    }
}

fn failed(status: &Status) -> Error {
    let kind = match status.code() {
        Code::Unauthenticated | Code::PermissionDenied => FailureKind::Credential,
        Code::NotFound => FailureKind::Missing,
        Code::InvalidArgument | Code::FailedPrecondition | Code::Unimplemented => {
            FailureKind::Refused
        }
        _ => FailureKind::Unavailable,
    };
    Error::new(kind, format!("{:?}: {}", status.code(), status.message()))
}

fn refused(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::new(FailureKind::Refused, error)
}
