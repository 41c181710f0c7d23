//! The table's stream, through the SDK of DynamoDB Streams.

use std::collections::HashMap;

use aws_sdk_dynamodb::types::AttributeValue;
use aws_sdk_dynamodbstreams::{
    config::http::HttpResponse,
    error::{ProvideErrorMetadata, SdkError},
    types::{self as sdk, OperationType, ShardIteratorType, StreamViewType},
};

use super::{DynamoDb, ErrorKind, failed, primary_key_of, to_item};
use crate::{
    domain::{ChangeKind, Key, Timestamp},
    store::{
        Changed, ChangedRecord, Error, Position, Shard, ShardId, ShardIterator, StateAfter,
        StreamError, StreamId, StreamPage,
        item::{self, Item},
        keys,
    },
};

/// The table's stream: the changes by all writers, in shards. Changes of one record are in
/// order along a shard and its descendants. Shards begin and end.
impl DynamoDb {
    /// The present stream of the table.
    ///
    /// # Errors
    /// The table could not be described.
    pub async fn stream(&self) -> Result<Option<StreamId>, Error> {
        let table = self.describe().await?;
        let is_on = table
            .stream_specification()
            .is_some_and(|stream| stream.stream_enabled);
        let arn = table.latest_stream_arn().filter(|_| is_on);
        Ok(arn.map(|arn| StreamId(arn.to_owned())))
    }

    /// The listed shards. Listings may lack a shard for a while.
    ///
    /// # Errors
    /// The stream could not be described.
    pub async fn stream_shards(&self, stream: &StreamId) -> Result<Vec<Shard>, StreamError> {
        let mut shards = Vec::new();
        let mut after = None;
        loop {
            let describe = self
                .streams
                .describe_stream()
                .stream_arn(&stream.0)
                .set_exclusive_start_shard_id(after);
            // Boxed, here and below: the futures of the SDK are large.
            let output = Box::pin(describe.send()).await.map_err(stream_failed)?;
            let Some(description) = output.stream_description else {
                return Ok(shards);
            };
            shards.extend(description.shards().iter().filter_map(|shard| {
                Some(Shard {
                    id: ShardId(shard.shard_id()?.to_owned()),
                    parent: shard.parent_shard_id().map(|id| ShardId(id.to_owned())),
                })
            }));
            after = description.last_evaluated_shard_id;
            if after.is_none() {
                return Ok(shards);
            }
        }
    }

    /// A cursor at a position of a shard. Valid for 15 minutes.
    ///
    /// # Errors
    /// See [`StreamError`].
    pub async fn shard_iterator(
        &self,
        stream: &StreamId,
        shard: &ShardId,
        position: &Position,
    ) -> Result<ShardIterator, StreamError> {
        let request = self
            .streams
            .get_shard_iterator()
            .stream_arn(&stream.0)
            .shard_id(&shard.0);
        let request = match position {
            Position::Oldest => request.shard_iterator_type(ShardIteratorType::TrimHorizon),
            Position::After(sequence) => request
                .shard_iterator_type(ShardIteratorType::AfterSequenceNumber)
                .sequence_number(sequence),
        };
        let output = Box::pin(request.send()).await.map_err(stream_failed)?;
        output
            .shard_iterator
            .map(ShardIterator)
            .ok_or(StreamError::Gone)
    }

    /// The changes from a cursor on, at most 1000.
    ///
    /// # Errors
    /// See [`StreamError`].
    pub async fn stream_page(&self, cursor: &ShardIterator) -> Result<StreamPage, StreamError> {
        let request = self.streams.get_records().shard_iterator(&cursor.0);
        let output = Box::pin(request.send()).await.map_err(stream_failed)?;
        let records = output.records.unwrap_or_default().into_iter();
        Ok(StreamPage {
            changes: records.filter_map(changed).collect(),
            next: output.next_shard_iterator.map(ShardIterator),
        })
    }
}

fn changed(record: sdk::Record) -> Option<Changed> {
    let kind = match record.event_name? {
        OperationType::Insert => ChangeKind::Created,
        OperationType::Remove => ChangeKind::Deleted,
        _ => ChangeKind::Updated,
    };
    let record = record.dynamodb?;
    let sequence = record.sequence_number?;
    let time = record.approximate_creation_date_time;
    let time = time.and_then(|time| time.to_millis().ok()).map(Timestamp);
    let view_has_new_image = matches!(
        record.stream_view_type,
        Some(StreamViewType::NewAndOldImages | StreamViewType::NewImage)
    );
    let (pk, sk) = primary_key_of(&attributes(record.keys.unwrap_or_default()))?;
    let images = [record.old_image, record.new_image];
    let images = images.map(|image| image.map(|image| to_item(attributes(image))));
    let deleted_at = images[1].as_ref().filter(|image| item::is_tombstone(image));
    let deleted_at = deleted_at.and_then(item::decode_update_time);
    let record = keys::key_of_item(&pk, &sk);
    let record = record.and_then(|key| of_images(key, kind, images, view_has_new_image));
    Some(Changed {
        sequence,
        time: deleted_at.or(time),
        record,
    })
}

/// The change of a record. A tombstone is not a record: its creation is the record's deletion, and
/// its replacement is a creation. `None` for its removal, which is not a change.
fn of_images(
    key: Key,
    kind: ChangeKind,
    images: [Option<Item>; 2],
    view_has_new_image: bool,
) -> Option<ChangedRecord> {
    let is_tombstone = |image: &Option<Item>| image.as_ref().is_some_and(item::is_tombstone);
    let kind = match (images.each_ref().map(is_tombstone), kind) {
        ([true, true], _) | ([true, _], ChangeKind::Deleted) => return None,
        ([true, false], _) => ChangeKind::Created,
        ([false, true], _) => ChangeKind::Deleted,
        ([false, false], kind) => kind,
    };
    let [old, new] = images;
    let made_by = |image: &Option<Item>| image.as_ref().and_then(item::decode_made);
    let change_before = made_by(&old).map(|made| made.change_id);
    let made = made_by(&new).filter(|made| Some(&made.change_id) != change_before.as_ref());
    let decode = |image: Option<Item>| item::decode(&key, &image?);
    let left = match decode(new) {
        Some(record) => StateAfter::Record(record),
        None if view_has_new_image => StateAfter::Nothing,
        None => StateAfter::Unknown,
    };
    Some(ChangedRecord {
        kind,
        before: decode(old),
        made,
        left,
        key,
    })
}

/// The attributes of an image, in the types of the other SDK. Attributes of types that no record
/// uses become empty maps.
fn attributes(image: HashMap<String, sdk::AttributeValue>) -> HashMap<String, AttributeValue> {
    let image = image.into_iter().map(|(name, value)| {
        let value = match value {
            sdk::AttributeValue::S(text) => AttributeValue::S(text),
            sdk::AttributeValue::N(number) => AttributeValue::N(number),
            sdk::AttributeValue::M(map) => AttributeValue::M(attributes(map)),
            _ => AttributeValue::M(HashMap::new()),
        };
        (name, value)
    });
    image.collect()
}

fn stream_failed<E>(error: SdkError<E, HttpResponse>) -> StreamError
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    match error.code() {
        // The second code is for a position that the stream does not have.
        Some("TrimmedDataAccessException" | "ValidationException") => StreamError::Trimmed,
        Some("ExpiredIteratorException") => StreamError::Expired,
        Some("ResourceNotFoundException") => StreamError::Gone,
        Some("LimitExceededException") => StreamError::Store(Error::new(
            ErrorKind::Throttled,
            "the stream has too many readers",
        )),
        _ => StreamError::Store(failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use aws_sdk_dynamodbstreams::{error::ErrorMetadata, operation::get_records::GetRecordsError};

    use aws_smithy_types::body::SdkBody;

    use super::*;

    fn kind(code: &str) -> StreamError {
        let error = GetRecordsError::generic(ErrorMetadata::builder().code(code).build());
        let status = 400.try_into().unwrap();
        let response = HttpResponse::new(status, SdkBody::empty());
        stream_failed(SdkError::service_error(error, response))
    }

    fn left(view: Option<StreamViewType>, operation: OperationType) -> StateAfter {
        let user = sdk::AttributeValue::S("USER#oliviaowner".to_owned());
        let change = sdk::StreamRecord::builder()
            .keys("PK", user.clone())
            .keys("SK", user)
            .sequence_number("1")
            .set_stream_view_type(view)
            .build();
        let record = sdk::Record::builder()
            .event_name(operation)
            .dynamodb(change);
        changed(record.build()).unwrap().record.unwrap().left
    }

    #[test]
    fn a_record_is_absent_only_if_the_stream_has_new_images() {
        use OperationType::{Modify, Remove};
        use StreamViewType::{KeysOnly, NewAndOldImages, NewImage, OldImage};
        for view in [NewImage, NewAndOldImages] {
            assert!(matches!(left(Some(view), Remove), StateAfter::Nothing));
        }
        for view in [None, Some(KeysOnly), Some(OldImage)] {
            assert!(matches!(left(view.clone(), Remove), StateAfter::Unknown));
            assert!(matches!(left(view, Modify), StateAfter::Unknown));
        }
    }

    #[test]
    fn tombstones_appear_as_deletions_and_creations_and_their_removal_is_omitted() {
        use ChangeKind::{Created, Deleted, Updated};
        let key = || keys::key_of_item("USER#oliviaowner", "USER#oliviaowner").unwrap();
        let text = |text: &str| item::Value::Text(text.to_owned());
        let user = || Some(Item::from([("firstName".to_owned(), text("Olivia"))]));
        let tombstone = || {
            let state = ("state".to_owned(), text(item::TOMBSTONE));
            Some(Item::from([state, ("writeId".to_owned(), text("w"))]))
        };
        let change_of = |kind, images| {
            let change = of_images(key(), kind, images, true)?;
            let after = matches!(change.left, StateAfter::Record(_));
            let made = change.made.map(|made| made.change_id);
            Some((change.kind, change.before.is_some(), after, made))
        };
        let made = Some("w".to_owned());
        let deletion = Some((Deleted, true, false, made));
        assert_eq!(change_of(Updated, [user(), tombstone()]), deletion);
        let creation = Some((Created, false, true, None));
        assert_eq!(change_of(Updated, [tombstone(), user()]), creation);
        assert_eq!(change_of(Deleted, [tombstone(), None]), None);
        assert_eq!(change_of(Updated, [tombstone(), tombstone()]), None);
        let update = Some((Updated, true, true, None));
        assert_eq!(change_of(Updated, [user(), user()]), update);
    }

    #[test]
    fn each_code_of_the_stream_is_an_error_of_its_kind() {
        use StreamError::{Expired, Gone, Store, Trimmed};
        assert!(matches!(kind("TrimmedDataAccessException"), Trimmed));
        assert!(matches!(kind("ValidationException"), Trimmed));
        assert!(matches!(kind("ExpiredIteratorException"), Expired));
        assert!(matches!(kind("ResourceNotFoundException"), Gone));
        for (code, expected) in [
            ("LimitExceededException", ErrorKind::Throttled),
            ("InternalServerError", ErrorKind::Unavailable),
        ] {
            let Store(error) = kind(code) else {
                panic!("{code}")
            };
            assert_eq!(error.kind, expected, "{code}");
        }
    }
}
