//! Look-ups that see what was written last. Momento answers with what may be a
//! moment old unless a call asks otherwise, which its SDK has no way to do: this
//! speaks its protocol, with the credential and the connections of its own.

use std::{
    collections::HashMap,
    fmt,
    sync::atomic::{AtomicUsize, Ordering},
};

use futures_util::future::try_join_all;
use http::Uri;
use momento_protos::cache_client::{
    ECacheResult, GetBatchRequest, GetRequest, GetResponse, scs_client::ScsClient,
};
use tokio::task::consume_budget;
use tonic::{
    Code, Request, Status,
    metadata::{AsciiMetadataKey, AsciiMetadataValue, MetadataMap},
};
use webpki_roots::TLS_SERVER_ROOTS;

use super::{
    Credential, Error, Found, Kind,
    channel::{Channel, Endpoint},
    is_long,
    momento::{REQUEST_TIMEOUT, Settings},
};

/// Asks for what was written last.
const READ_CONCERN: (&str, &str) = ("read-concern", "consistent");
/// Tells the server when an answer is of no more use.
const TIMEOUT: &str = "grpc-timeout";

/// What a call says of its trace.
type Headers = HashMap<String, String>;

/// Look-ups, over long-lived connections. Its debug output is redacted.
pub(super) struct Lookups {
    channels: Vec<Channel>,
    origin: Uri,
    next: AtomicUsize,
    /// Of every call; the credential is in it.
    metadata: MetadataMap,
}

impl fmt::Debug for Lookups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lookups(redacted)")
    }
}

impl Lookups {
    /// Opens the connections.
    ///
    /// # Errors
    /// [`Kind::Unavailable`]: one of them cannot be had. [`Kind::Refused`]: the
    /// endpoint, the credential or the cache's name cannot be sent.
    pub(super) async fn connect(
        credential: &Credential,
        settings: &Settings,
    ) -> Result<Self, Error> {
        let url: Uri = credential.endpoint().parse().map_err(refused)?;
        let roots = TLS_SERVER_ROOTS.iter().cloned().collect();
        let endpoint = Endpoint::new(&url, roots).map_err(refused)?;
        let channels = (0..settings.connections.max(1)).map(|_| Channel::connect(endpoint.clone()));
        let channels = try_join_all(channels).await.map_err(|error| Error {
            kind: Kind::Unavailable,
            source: error.into(),
        })?;
        let mut metadata = MetadataMap::new();
        for (name, value) in [
            ("authorization", credential.0.auth_token()),
            ("cache", &settings.cache),
            READ_CONCERN,
            (TIMEOUT, &format!("{}m", REQUEST_TIMEOUT.as_millis())),
        ] {
            let value = AsciiMetadataValue::try_from(value).map_err(refused)?;
            metadata.insert(AsciiMetadataKey::from_static(name), value);
        }
        Ok(Self {
            channels,
            origin: url,
            next: AtomicUsize::new(0),
            metadata,
        })
    }

    /// Looks up one key, with these headers.
    ///
    /// # Errors
    /// See [`failed`].
    pub(super) async fn get(&self, key: String, headers: Headers) -> Result<Found, Error> {
        let request = self.request(get_request(key), headers);
        let response = self.client(1).get(request).await;
        let response = response.map_err(|status| failed(&status))?;
        Ok(found(response.into_inner()))
    }

    /// Looks up keys, with these headers. The answers come as a stream and are matched by position:
    /// where the stream ends early, the rest is unknown, not missing.
    ///
    /// # Errors
    /// See [`failed`].
    pub(super) async fn get_batch(
        &self,
        keys: Vec<String>,
        headers: Headers,
    ) -> Result<Vec<Found>, Error> {
        let wanted = keys.len();
        let items = keys.into_iter().map(get_request).collect();
        let request = self.request(GetBatchRequest { items }, headers);
        let response = self.client(wanted).get_batch(request).await;
        let mut answers = response.map_err(|status| failed(&status))?.into_inner();
        let mut all = Vec::with_capacity(wanted);
        // To its end: streams that are left before are resets to the other side, and
        // many of them end the connection.
        while let Some(answer) = answers.message().await.map_err(|status| failed(&status))? {
            if all.len() < wanted {
                all.push(found(answer));
            }
            consume_budget().await;
        }
        all.resize(wanted, Found::Unknown);
        Ok(all)
    }

    /// A client for so many keys: of the channel whose turn it is, or of another one
    /// that is open. Long answers have a channel to themselves.
    fn client(&self, keys: usize) -> ScsClient<Channel> {
        let (short, long) = self.channels.split_at(self.channels.len() - 1);
        let usual = if is_long(keys) || short.is_empty() {
            long
        } else {
            short
        };
        let turn = self.next.fetch_add(1, Ordering::Relaxed) % usual.len();
        let (before, after) = usual.split_at(turn);
        let mut in_turn = after.iter().chain(before).chain(&self.channels);
        let channel = in_turn.find(|channel| channel.is_open());
        let channel = channel.unwrap_or(&usual[turn]);
        ScsClient::with_origin(channel.clone(), self.origin.clone())
    }

    fn request<T>(&self, message: T, headers: Headers) -> Request<T> {
        let mut request = Request::new(message);
        let metadata = request.metadata_mut();
        *metadata = self.metadata.clone();
        for (name, value) in headers {
            let name = AsciiMetadataKey::from_bytes(name.as_bytes());
            if let (Ok(name), Ok(value)) = (name, value.parse()) {
                metadata.insert(name, value);
            }
        }
        request
    }
}

fn get_request(key: String) -> GetRequest {
    GetRequest {
        cache_key: key.into_bytes(),
    }
}

fn found(response: GetResponse) -> Found {
    match response.result() {
        ECacheResult::Hit => Found::Hit(response.cache_body),
        ECacheResult::Miss => Found::Miss,
        ECacheResult::Ok | ECacheResult::Invalid => Found::Unknown,
    }
}

fn refused(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error {
        kind: Kind::Refused,
        source: error.into(),
    }
}

/// The server's messages name no keys, values or credentials.
fn failed(status: &Status) -> Error {
    let kind = match status.code() {
        Code::Unauthenticated | Code::PermissionDenied => Kind::Credential,
        Code::NotFound => Kind::Missing,
        Code::InvalidArgument | Code::FailedPrecondition | Code::Unimplemented => Kind::Refused,
        _ => Kind::Unavailable,
    };
    Error {
        kind,
        source: format!("{:?}: {}", status.code(), status.message()).into(),
    }
}
