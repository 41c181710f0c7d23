//! The change log: an item for each change, in blocks, written in one transaction with
//! the register of its end.

use std::collections::{BTreeMap, HashMap};

use aws_sdk_dynamodb::{
    operation::transact_write_items::TransactWriteItemsError,
    types::{AttributeValue, Put, TransactWriteItem},
};
use uuid::Uuid;

use super::{Attributes, DynamoDb, failed, primary_key, primary_key_of, register, to_attributes};
use crate::{
    domain::{Etag, Key, RecordChange, Timestamp},
    store::{
        Deletion, Error, LOG_RETENTION, LogId, LogPage, ScheduledEnd,
        item::{self, Item},
        keys,
    },
};

/// Codes of a transaction whose register has another version.
const REGISTER_TAKEN: [&str; 2] = ["ConditionalCheckFailed", "TransactionConflict"];
/// Most changes of one read.
const PAGE: u16 = 100;

impl DynamoDb {
    /// Appends a page of changes, and writes a register as [`crate::store::Registers::swap_register`]
    /// does: all or nothing. Schedules the ends that the changes set.
    ///
    /// # Errors
    /// No response: all may be written, now or later.
    pub async fn append(
        &self,
        log: &LogId,
        page: LogPage<'_>,
        (name, found, values): (&str, u64, &BTreeMap<String, String>),
    ) -> Result<Option<u64>, Error> {
        let LogPage {
            first,
            changes,
            passed,
            counts,
        } = page;
        let register = register::Swap::new(name, Some(found), values);
        let version = register.version;
        let mut puts = vec![register.into_put(&self.table)];
        let expires = Timestamp::now().after(LOG_RETENTION);
        puts.extend((first..).zip(changes).map(|(number, change)| {
            let mut attributes = primary_key(&keys::of_logged(log, number));
            attributes.extend(to_attributes(item::encode_logged(change, expires)));
            Put::builder()
                .table_name(&self.table)
                .set_item(Some(attributes))
        }));
        let puts = puts.into_iter().map(|put| {
            let put = put.build().map_err(super::unusable)?;
            Ok(TransactWriteItem::builder().put(put).build())
        });
        let ends = scheduled(changes);
        let ends = ends.iter().map(|expiry| self.schedule(expiry));
        let passed = passed.iter().map(|expiry| self.unschedule(expiry));
        let as_of = (first + changes.len() as u64).saturating_sub(1);
        let counts = counts
            .iter()
            .filter_map(|update| self.update_counts(update, (log, as_of)).transpose());
        let items = puts.chain(ends).chain(passed).chain(counts);
        let items = items.collect::<Result<_, _>>()?;
        let sent = self
            .client
            .transact_write_items()
            .set_transact_items(Some(items))
            .client_request_token(Uuid::new_v4())
            .send()
            .await;
        match sent {
            Ok(_) => Ok(Some(version)),
            // Another replica wrote the register first, or is writing it.
            Err(error) if is_cancelled_by(error.as_service_error(), &REGISTER_TAKEN) => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    /// The next changes after a number, at most 100, with their numbers. Empty if there are none
    /// yet.
    ///
    /// # Errors
    /// The table could not be read.
    pub async fn read_log(
        &self,
        log: &LogId,
        after: u64,
    ) -> Result<Vec<(u64, RecordChange)>, Error> {
        let now = Timestamp::now();
        let items = self.log_items(log, after).await?.into_iter();
        Ok(items.filter_map(|item| logged(item, now)).collect())
    }

    /// The items of the next changes after a number, at most 100 and of one block.
    pub(super) async fn log_items(
        &self,
        log: &LogId,
        after: u64,
    ) -> Result<Vec<Attributes>, Error> {
        let (pk, _) = keys::of_logged(log, after.saturating_add(1));
        let (_, sk) = keys::of_logged(log, after);
        let query = self
            .client
            .query()
            .table_name(&self.table)
            .consistent_read(true)
            .key_condition_expression("PK = :pk AND SK > :sk")
            .expression_attribute_values(":pk", AttributeValue::S(pk))
            .expression_attribute_values(":sk", AttributeValue::S(sk))
            .limit(PAGE.into());
        // Boxed: the futures of the SDK are large.
        let output = Box::pin(query.send()).await.map_err(failed)?;
        Ok(output.items.unwrap_or_default())
    }

    /// The number of the oldest kept change below `end`. `end` if there is none.
    ///
    /// # Errors
    /// The table could not be read.
    pub async fn oldest_kept(&self, log: &LogId, end: u64) -> Result<u64, Error> {
        let now = Timestamp::now();
        // The first block whose last change is kept.
        let mut blocks = 0..end / keys::LOG_BLOCK;
        while !blocks.is_empty() {
            let middle = u64::midpoint(blocks.start, blocks.end);
            if self.ends_with_a_kept_change(log, middle, now).await? {
                blocks.end = middle;
            } else {
                blocks.start = middle + 1;
            }
        }
        let mut after = (blocks.start * keys::LOG_BLOCK).saturating_sub(1);
        while after + 1 < end {
            match self.read_log(log, after).await?.first() {
                Some((number, _)) => return Ok(*number),
                None => after += u64::from(PAGE),
            }
        }
        Ok(end)
    }

    /// The deletions of at most 100 versions of records. `None` if this service did not delete the
    /// version.
    ///
    /// # Errors
    /// The table could not be read.
    pub async fn deletions(&self, deleted: &[(Key, Etag)]) -> Result<Vec<Option<Deletion>>, Error> {
        let keys = deleted.iter();
        let keys: Vec<_> = keys
            .map(|(key, version)| keys::of_deletion(key, version))
            .collect();
        let items = self.get_items(&keys).await?;
        let items: HashMap<_, _> = items
            .into_iter()
            .filter_map(|item| Some((primary_key_of(&item)?, super::to_item(item))))
            .collect();
        let deletion = |key| item::decode_deletion(items.get(key)?);
        Ok(keys.iter().map(deletion).collect())
    }
}

impl DynamoDb {
    async fn ends_with_a_kept_change(
        &self,
        log: &LogId,
        block: u64,
        now: Timestamp,
    ) -> Result<bool, Error> {
        let output = self
            .client
            .query()
            .table_name(&self.table)
            .consistent_read(true)
            .key_condition_expression("PK = :pk")
            .expression_attribute_values(":pk", AttributeValue::S(keys::log_block(log, block)))
            .scan_index_forward(false)
            .limit(1)
            .send()
            .await
            .map_err(failed)?;
        let mut last = output.items.unwrap_or_default().into_iter();
        Ok(last.any(|item| logged(item, now).is_some()))
    }
}

fn logged(attributes: Attributes, now: Timestamp) -> Option<(u64, RecordChange)> {
    let (_, sk) = primary_key_of(&attributes)?;
    let item: Item = super::to_item(attributes);
    Some((
        keys::number_of_logged(&sk)?,
        item::decode_logged(&item, now)?,
    ))
}

/// The ends that these changes set, each once: a transaction writes an item once.
fn scheduled(changes: &[RecordChange]) -> Vec<ScheduledEnd> {
    let mut ends = Vec::new();
    for end in changes.iter().filter_map(ScheduledEnd::set_by) {
        if !ends.contains(&end) {
            ends.push(end);
        }
    }
    ends
}

/// Whether a transaction was cancelled with one of these codes.
pub(super) fn is_cancelled_by(error: Option<&TransactWriteItemsError>, by: &[&str]) -> bool {
    let Some(TransactWriteItemsError::TransactionCanceledException(cancelled)) = error else {
        return false;
    };
    let codes = cancelled.cancellation_reasons().iter();
    let mut codes = codes.filter_map(|reason| reason.code());
    codes.any(|code| by.contains(&code))
}
