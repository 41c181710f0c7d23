//! The table in DynamoDB: strongly consistent reads, and the client's settings. Only this
//! module calls DynamoDB.

mod change_log;
mod change_stream;
mod commit;
mod condition;
mod counts;
mod erasures;
mod lists;
mod orphans;
mod register;
mod retry_budget;
mod schedule;
mod table;
mod transaction;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use aws_config::SdkConfig;
use aws_sdk_dynamodb::{
    Client,
    config::{retry::RetryConfig, timeout::TimeoutConfig},
    error::{ProvideErrorMetadata, SdkError},
    types::{AttributeValue, KeysAndAttributes},
};
use backon::{BackoffBuilder as _, ExponentialBuilder};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

pub use table::{Created, Finding, Findings};

use self::retry_budget::Budget;
use super::{
    Error, ErrorKind, READ_MAX_KEYS, READS_AT_ONCE, StoredClaim, StoredOutcome,
    item::{self, Item, Value},
    keys,
};
use crate::{
    domain::{Key, ProfileName, Record, Request, Timestamp, Uid, UniqueValue},
    error_chain::describe,
    telemetry::{AwsCalls, Backend},
};

/// Longest TCP and TLS handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// Default of the longest attempt.
pub const ATTEMPT_TIMEOUT: Duration = Duration::from_millis(500);
/// Default of the longest operation, with all attempts. With the greatest age of fences at the
/// start of a commit (1 s), it is shorter than their time to live (5 s).
pub const OPERATION_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest attempt to read a page of the stream, and all attempts: pages have up to 1 MB.
const PAGE_ATTEMPT_TIMEOUT: Duration = Duration::from_secs(2);
const PAGE_TIMEOUT: Duration = Duration::from_secs(5);
/// Attempts per operation.
const MAX_ATTEMPTS: u32 = 3;
/// Least pause before the second attempt. Doubles for the third. Jitter adds up to as much again.
const RETRY_PAUSE: Duration = Duration::from_millis(25);
/// Pauses before retries of keys that DynamoDB left unprocessed: 10 ms to 80 ms, and up to as
/// much again by jitter.
const UNPROCESSED_PAUSES: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(Duration::from_millis(10))
    .with_max_times(4)
    .with_jitter();

type Attributes = HashMap<String, AttributeValue>;

/// The settings of the table.
#[derive(Debug, Clone)]
pub struct TableSettings {
    /// Name of the table.
    pub table: String,
    /// Endpoint to use instead of the region's.
    pub endpoint: Option<String>,
    /// Longest attempt, at most [`Self::operation_timeout`].
    pub attempt_timeout: Duration,
    /// Longest operation, with all attempts. The fences of a commit must outlive it.
    pub operation_timeout: Duration,
    /// The wall clock. Memberships expire by it.
    pub wall_clock: fn() -> Timestamp,
}

/// The table, over one long-lived client, and the client of its stream. Clones share both.
#[derive(Debug, Clone)]
pub struct DynamoDb {
    client: Client,
    streams: aws_sdk_dynamodbstreams::Client,
    table: String,
    attempt_timeout: Duration,
    operation_timeout: Duration,
    wall_clock: fn() -> Timestamp,
    /// The retry budget of commits, which the SDK does not retry.
    retry_budget: Arc<Budget>,
}

impl DynamoDb {
    /// Builds the clients. Does no I/O.
    #[must_use]
    pub fn new(aws: &SdkConfig, settings: TableSettings) -> Self {
        let (attempt, operation) = (settings.attempt_timeout, settings.operation_timeout);
        let mut config = aws_sdk_dynamodb::config::Builder::from(aws)
            .retry_config(retries())
            .timeout_config(timeouts(attempt, operation))
            .interceptor(AwsCalls(Backend::DynamoDb));
        let mut streams = aws_sdk_dynamodbstreams::config::Builder::from(aws)
            .retry_config(retries())
            .timeout_config(timeouts(PAGE_ATTEMPT_TIMEOUT, PAGE_TIMEOUT))
            .interceptor(AwsCalls(Backend::DynamoDbStreams));
        if settings.endpoint.is_some() {
            streams.set_endpoint_url(settings.endpoint.clone());
        }
        // Always set: otherwise the SDK takes an empty variable for an endpoint.
        config.set_endpoint_url(settings.endpoint.or(aws.endpoint_url().map(str::to_owned)));
        Self {
            client: Client::from_conf(config.build()),
            streams: aws_sdk_dynamodbstreams::Client::from_conf(streams.build()),
            table: settings.table,
            attempt_timeout: attempt,
            operation_timeout: operation,
            wall_clock: settings.wall_clock,
            retry_budget: Arc::default(),
        }
    }

    /// The present time, by the wall clock.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        (self.wall_clock)()
    }

    /// The time by which a commit that starts now has ended.
    #[must_use]
    pub fn end_of_commit(&self) -> Timestamp {
        self.now().after(self.operation_timeout)
    }

    async fn get(&self, key: &Key) -> Result<Option<Record>, Error> {
        let item = self.get_item(&keys::of(key)).await?;
        Ok(item.and_then(|item| decode(key, item)))
    }

    async fn get_item(&self, key: &(String, String)) -> Result<Option<Attributes>, Error> {
        let get = self
            .client
            .get_item()
            .table_name(&self.table)
            .set_key(Some(primary_key(key)))
            .consistent_read(true);
        // Boxed, here and below: the futures of the SDK are large.
        let output = Box::pin(get.send()).await.map_err(failed)?;
        Ok(output.item)
    }

    /// Reads at most [`READ_MAX_KEYS`] records.
    async fn get_batch(&self, keys: &[Key]) -> Result<HashMap<Key, Record>, Error> {
        let by_primary_key: HashMap<_, _> = keys.iter().map(|key| (keys::of(key), key)).collect();
        let mut records = HashMap::with_capacity(keys.len());
        for item in self.get_items(by_primary_key.keys()).await? {
            if let Some(key) = primary_key_of(&item).and_then(|of| by_primary_key.get(&of))
                && let Some(record) = decode(key, item)
            {
                records.insert((*key).clone(), record);
            }
        }
        Ok(records)
    }

    /// Reads at most [`READ_MAX_KEYS`] items, each once: DynamoDB rejects duplicate keys. Unprocessed
    /// keys are retried, and never treated as absent.
    async fn get_items(
        &self,
        keys: impl IntoIterator<Item = &(String, String)>,
    ) -> Result<Vec<Attributes>, Error> {
        let wanted: HashSet<_> = keys.into_iter().collect();
        let mut wanted: Vec<_> = wanted.into_iter().map(primary_key).collect();
        let mut items = Vec::with_capacity(wanted.len());
        if wanted.is_empty() {
            return Ok(items);
        }
        let mut pauses = UNPROCESSED_PAUSES.build();
        loop {
            // Built anew each time, so that no response decides the consistency of the next
            // read.
            let consistent = KeysAndAttributes::builder()
                .consistent_read(true)
                .set_keys(Some(wanted))
                .build()
                .map_err(unusable)?;
            let get = self.client.batch_get_item();
            let get = get.request_items(&self.table, consistent);
            let output = Box::pin(get.send()).await.map_err(failed)?;
            items.extend(output.responses.into_iter().flatten().flat_map(|it| it.1));
            let unprocessed = output.unprocessed_keys.unwrap_or_default();
            match unprocessed.into_values().next() {
                None => return Ok(items),
                Some(rest) => wanted = rest.keys,
            }
            let Some(pause) = pauses.next() else {
                return Err(Error::new(ErrorKind::Throttled, "keys stay unprocessed"));
            };
            tokio::time::sleep(pause).await;
        }
    }
}

/// Reads that may guard a write: they reflect every committed change, and use no cache.
impl DynamoDb {
    /// Returns the record of each key, in the order of the keys. `None`: no such record. Each
    /// record is as of a time during the call. Together they are not a snapshot.
    ///
    /// # Errors
    /// The table could not be read.
    pub async fn read_strong(&self, keys: &[Key]) -> Result<Vec<Option<Record>>, Error> {
        match keys {
            [] => Ok(Vec::new()),
            [key] => Ok(vec![self.get(key).await?]),
            keys => {
                let batches = keys.chunks(READ_MAX_KEYS);
                let batches: Vec<_> = batches.map(|batch| self.get_batch(batch)).collect();
                let found: Vec<_> = stream::iter(batches)
                    .buffered(READS_AT_ONCE)
                    .try_collect()
                    .await?;
                let found: HashMap<_, _> = found.into_iter().flatten().collect();
                Ok(keys.iter().map(|key| found.get(key).cloned()).collect())
            }
        }
    }

    /// Returns the claim of a unique value.
    ///
    /// # Errors
    /// The table could not be read, or the item is not a claim.
    pub async fn claim(&self, value: &UniqueValue) -> Result<Option<StoredClaim>, Error> {
        let Some(item) = self.get_item(&keys::of_unique(value)).await? else {
            return Ok(None);
        };
        let claim = item::decode_claim(&to_item(item));
        claim
            .map(Some)
            .ok_or_else(|| Error::new(ErrorKind::Malformed, "the claim of a unique value"))
    }

    /// The name of the user or the organization with a uid, if this service created it.
    ///
    /// # Errors
    /// The table could not be read.
    pub async fn name_of_uid(&self, uid: &Uid) -> Result<Option<ProfileName>, Error> {
        let Some(key) = keys::of_uid(uid) else {
            return Ok(None);
        };
        let item = self.get_item(&key).await?;
        Ok(item.and_then(|item| item::decode_holder(&to_item(item))))
    }

    /// Returns the stored outcome of a request, see [`crate::store::Step::StoreOutcome`].
    ///
    /// # Errors
    /// The table could not be read, or the item is not an outcome.
    pub async fn stored_outcome(&self, request: &Request) -> Result<Option<StoredOutcome>, Error> {
        let Some(item) = self.get_item(&keys::of_request(request)).await? else {
            return Ok(None);
        };
        let stored_outcome = item::decode_request(&to_item(item));
        stored_outcome.map(Some).ok_or_else(|| {
            let message = format!("the stored outcome of request {}", request.id.as_str());
            Error::new(ErrorKind::Malformed, message)
        })
    }
}

fn retries() -> RetryConfig {
    RetryConfig::standard()
        .with_max_attempts(MAX_ATTEMPTS)
        // The SDK draws pauses from 0 up to this.
        .with_initial_backoff(RETRY_PAUSE * 2)
}

fn timeouts(attempt: Duration, operation: Duration) -> TimeoutConfig {
    TimeoutConfig::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .operation_attempt_timeout(attempt)
        .operation_timeout(operation)
        .build()
}

fn primary_key((pk, sk): &(String, String)) -> Attributes {
    HashMap::from([
        (
            keys::PARTITION_KEY.to_owned(),
            AttributeValue::S(pk.clone()),
        ),
        (keys::SORT_KEY.to_owned(), AttributeValue::S(sk.clone())),
    ])
}

fn primary_key_of(item: &Attributes) -> Option<(String, String)> {
    let text = |name| item.get(name)?.as_s().ok().cloned();
    Some((text(keys::PARTITION_KEY)?, text(keys::SORT_KEY)?))
}

fn decode(key: &Key, attributes: Attributes) -> Option<Record> {
    item::decode(key, &to_item(attributes))
}

fn to_item(attributes: Attributes) -> Item {
    let item = attributes.into_iter();
    item.map(|(name, value)| (name, to_value(value))).collect()
}

/// An attribute of a type that records do not use becomes an empty map: present, without
/// content.
fn to_value(attribute: AttributeValue) -> Value {
    match attribute {
        AttributeValue::S(text) => Value::Text(text),
        AttributeValue::N(number) => Value::Number(number),
        AttributeValue::L(list) => Value::List(list.into_iter().map(to_value).collect()),
        AttributeValue::M(map) => Value::Map(to_item(map)),
        _ => Value::Map(Item::new()),
    }
}

fn to_attributes(item: Item) -> Attributes {
    let item = item.into_iter();
    item.map(|(name, value)| (name, to_attribute(value)))
        .collect()
}

fn to_attribute(value: Value) -> AttributeValue {
    match value {
        Value::Text(text) => AttributeValue::S(text),
        Value::Number(number) => AttributeValue::N(number),
        Value::List(list) => AttributeValue::L(list.into_iter().map(to_attribute).collect()),
        Value::Map(map) => AttributeValue::M(to_attributes(map)),
    }
}

/// The error of a read.
#[expect(clippy::needless_pass_by_value, reason = "made for map_err")]
fn failed<E, R>(error: SdkError<E, R>) -> Error
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    R: std::fmt::Debug + Send + Sync + 'static,
{
    let kind = match error.code() {
        Some(code) => kind_of_code(code),
        None => match &error {
            SdkError::ConstructionFailure(_) => ErrorKind::Unusable,
            _ => ErrorKind::Unavailable,
        },
    };
    Error::new(kind, describe(&error))
}

fn kind_of_code(code: &str) -> ErrorKind {
    match code {
        "ProvisionedThroughputExceededException"
        | "RequestLimitExceeded"
        | "ThrottlingException"
        | "ThrottlingError"
        | "ProvisionedThroughputExceeded" => ErrorKind::Throttled,
        "InternalServerError"
        | "ServiceUnavailable"
        | "TransactionConflictException"
        | "TransactionInProgressException" => ErrorKind::Unavailable,
        "ResourceNotFoundException" => ErrorKind::Missing,
        _ => ErrorKind::Unusable,
    }
}

fn unusable(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::Unusable, error)
}

#[cfg(test)]
mod tests {
    use aws_sdk_dynamodb::{
        error::ErrorMetadata, operation::get_item::GetItemError, types::error::InternalServerError,
    };

    use super::*;

    #[test]
    fn each_code_of_the_table_is_an_error_of_its_kind() {
        for (code, kind) in [
            (
                "ProvisionedThroughputExceededException",
                ErrorKind::Throttled,
            ),
            ("ThrottlingException", ErrorKind::Throttled),
            ("InternalServerError", ErrorKind::Unavailable),
            ("ServiceUnavailable", ErrorKind::Unavailable),
            ("TransactionInProgressException", ErrorKind::Unavailable),
            ("ResourceNotFoundException", ErrorKind::Missing),
            ("AccessDeniedException", ErrorKind::Unusable),
        ] {
            let error = GetItemError::generic(ErrorMetadata::builder().code(code).build());
            assert_eq!(
                failed(SdkError::service_error(error, ())).kind,
                kind,
                "{code}"
            );
        }
        let timeout = SdkError::<InternalServerError, ()>::timeout_error("late");
        assert_eq!(failed(timeout).kind, ErrorKind::Unavailable);
        let unsendable = SdkError::<InternalServerError, ()>::construction_failure("no");
        assert_eq!(failed(unsendable).kind, ErrorKind::Unusable);
    }
}
