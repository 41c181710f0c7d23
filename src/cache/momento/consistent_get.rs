//! Look-ups that see what was written last. Momento answers with what may be a
//! moment old unless a call asks otherwise, which its SDK has no way to do: this
//! speaks its protocol, with the credential and the connections of its own.

use std::{
    collections::HashMap,
    fmt,
    sync::atomic::{AtomicUsize, Ordering},
};

use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::future::try_join_all;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version,
    header::{AUTHORIZATION, CONTENT_TYPE, TE},
    uri::PathAndQuery,
};
use momento_protos::cache_client::ECacheResult;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};
use tokio::task::consume_budget;
use webpki_roots::TLS_SERVER_ROOTS;

use super::{
    REQUEST_TIMEOUT, Settings,
    connection::{Channel, Endpoint},
    response_stream::{Answers, framed},
};
use crate::cache::{Credential, Error, FailureKind, Found, Keys, is_long};

/// What is called for one key, and for several.
const GET: &str = "/cache_client.Scs/Get";
const GET_BATCH: &str = "/cache_client.Scs/GetBatch";
/// The cache that is meant.
const CACHE: HeaderName = HeaderName::from_static("cache");
/// Asks for what was written last.
const READ_CONCERN: HeaderName = HeaderName::from_static("read-concern");
const CONSISTENT: HeaderValue = HeaderValue::from_static("consistent");
/// Header with the time after which the client does not wait any more.
const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const TRAILERS: HeaderValue = HeaderValue::from_static("trailers");

/// What a call says of its trace.
type Headers = HashMap<String, String>;

/// A `GetResponse` of Momento's, whose value stays where it is.
#[derive(Clone, PartialEq, prost::Message)]
struct GetResponse {
    #[prost(enumeration = "ECacheResult", tag = "1")]
    result: i32,
    #[prost(bytes = "bytes", tag = "2")]
    cache_body: Bytes,
}

/// Look-ups, over long-lived connections. Its debug output is redacted.
pub(super) struct Lookups {
    channels: Vec<Channel>,
    next: AtomicUsize,
    /// The heads of calls; the credential is in them.
    get: Request<()>,
    get_batch: Request<()>,
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
    /// [`FailureKind::Unavailable`]: one of them cannot be had. [`FailureKind::Refused`]: the
    /// endpoint, the credential or the cache's name cannot be sent.
    pub(super) async fn connect(
        credential: &Credential,
        settings: &Settings,
    ) -> Result<Self, Error> {
        let url: Uri = credential.endpoint().parse().map_err(refused)?;
        let [get, get_batch] = [GET, GET_BATCH].map(|path| head(&url, path, credential, settings));
        let (get, get_batch) = (get?, get_batch?);
        let roots = TLS_SERVER_ROOTS.iter().cloned().collect();
        let endpoint = Endpoint::new(&url, roots).map_err(refused)?;
        let channels = (0..settings.connections.max(1)).map(|_| Channel::connect(endpoint.clone()));
        let channels = try_join_all(channels).await.map_err(unavailable)?;
        Ok(Self {
            channels,
            next: AtomicUsize::new(0),
            get,
            get_batch,
        })
    }

    /// Looks up keys, of which there is one at least, with these headers. The answers
    /// come one by one and are matched by position: where they end early, the rest is
    /// unknown, not missing.
    ///
    /// # Errors
    /// The call has failed.
    pub(super) async fn get(&self, keys: &Keys, headers: Headers) -> Result<Vec<Found>, Error> {
        let wanted = keys.len();
        let (head, question) = if wanted == 1 {
            (&self.get, get_request(keys))
        } else {
            (&self.get_batch, get_batch_request(keys))
        };
        let mut head = head.clone();
        tell(head.headers_mut(), headers);
        let answer = self.channel(wanted).call(head, question?).await;
        let mut answers = Answers::of(answer.map_err(unavailable)?)?;
        let mut all = Vec::with_capacity(wanted);
        // To their end: calls that are left before are resets to the other side, and
        // many of them end the connection.
        while let Some(answer) = answers.next().await? {
            if all.len() < wanted {
                all.push(found(answer));
            }
            consume_budget().await;
        }
        if wanted == 1 && all.is_empty() {
            return Err(unavailable("the answer is empty"));
        }
        all.resize(wanted, Found::Unknown);
        Ok(all)
    }

    /// A channel for so many keys: the one whose turn it is, or another one that is
    /// open. Long answers have a channel to themselves.
    fn channel(&self, keys: usize) -> &Channel {
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
        channel.unwrap_or(&usual[turn])
    }
}

/// The head of all calls of a method.
fn head(
    server: &Uri,
    path: &'static str,
    credential: &Credential,
    settings: &Settings,
) -> Result<Request<()>, Error> {
    let mut url = server.clone().into_parts();
    url.path_and_query = Some(PathAndQuery::from_static(path));
    let timeout = format!("{}m", REQUEST_TIMEOUT.as_millis());
    let head = Request::builder()
        .method(Method::POST)
        .version(Version::HTTP_2)
        .uri(Uri::from_parts(url).map_err(refused)?)
        .header(TE, TRAILERS)
        .header(CONTENT_TYPE, GRPC)
        .header(AUTHORIZATION, credential.0.auth_token())
        .header(CACHE, &settings.cache)
        .header(READ_CONCERN, CONSISTENT)
        .header(TIMEOUT, timeout);
    head.body(()).map_err(refused)
}

/// Adds what a call says of its trace.
fn tell(head: &mut HeaderMap, headers: Headers) {
    for (name, value) in headers {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            head.insert(name, value);
        }
    }
}

/// A `GetRequest` of Momento's: the key is its field 1.
fn get_request(keys: &Keys) -> Result<Bytes, Error> {
    let length = keys.iter().map(|key| field_len(key.len())).sum();
    framed(length, |bytes| {
        for key in keys.iter() {
            put_request(bytes, key);
        }
    })
}

/// A `GetBatchRequest` of Momento's: a `GetRequest` for each key is its field 1.
fn get_batch_request(keys: &Keys) -> Result<Bytes, Error> {
    let length = keys.iter().map(|key| field_len(field_len(key.len())));
    framed(length.sum(), |bytes| {
        for key in keys.iter() {
            put_field(bytes, field_len(key.len()));
            put_request(bytes, key);
        }
    })
}

fn put_request(bytes: &mut BytesMut, key: &[u8]) {
    put_field(bytes, key.len());
    bytes.put_slice(key);
}

/// What the field 1 begins with, if it is of so many bytes.
fn put_field(bytes: &mut BytesMut, length: usize) {
    encode_key(1, WireType::LengthDelimited, bytes);
    encode_varint(length as u64, bytes);
}

/// Bytes that such a field takes.
fn field_len(length: usize) -> usize {
    key_len(1) + encoded_len_varint(length as u64) + length
}

fn found(response: GetResponse) -> Found {
    match response.result() {
        ECacheResult::Hit => Found::Hit(response.cache_body),
        ECacheResult::Miss => Found::Miss,
        ECacheResult::Ok | ECacheResult::Invalid => Found::Unknown,
    }
}

fn refused(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::new(FailureKind::Refused, error)
}

fn unavailable(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::new(FailureKind::Unavailable, error)
}

#[cfg(test)]
mod tests {
    use momento_protos::cache_client::{GetBatchRequest, GetRequest};
    use prost::Message as _;

    use super::*;

    #[test]
    fn questions_are_written_as_momento_defines_them() {
        let long = "k".repeat(300);
        let keys = ["short", "", &long];
        let request = |key: &str| GetRequest {
            cache_key: key.into(),
        };
        for key in keys {
            let framed = get_request(&[key].into_iter().collect()).unwrap();
            // An empty field is written, too; it says the same.
            let decoded = GetRequest::decode(&framed[5..]).unwrap();
            assert_eq!(decoded, request(key));
        }
        let framed = get_batch_request(&keys.into_iter().collect()).unwrap();
        let decoded = GetBatchRequest::decode(&framed[5..]).unwrap();
        assert_eq!(decoded.items, keys.map(request));
        assert_eq!(framed[..5], [0, 0, 0, 1, 63]);
        assert_eq!(framed.len(), 5 + 256 + 63);
    }
}
