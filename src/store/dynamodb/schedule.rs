//! The schedules of the ends of memberships and of purges: an item for each. The follower of the table's
//! stream adds an end with the change that sets it, and removes it after the end.

use std::collections::HashSet;

use aws_sdk_dynamodb::types::{AttributeValue, Delete, Put, TransactWriteItem};

use super::{DynamoDb, failed, primary_key, primary_key_of, unusable};
use crate::{
    domain::Timestamp,
    store::{Error, ScheduledEnd, ScheduledPurge, keys},
};

/// Most purges that are read together, see [`DynamoDb::due_purges`].
const DUE_PURGES: i32 = 25;

impl DynamoDb {
    /// The scheduled ends that come first, at most `limit`, in their order.
    ///
    /// # Errors
    /// The table could not be read.
    pub async fn scheduled_ends(&self, limit: usize) -> Result<Vec<ScheduledEnd>, Error> {
        let query = self
            .client
            .query()
            .table_name(&self.table)
            .consistent_read(true)
            .key_condition_expression("PK = :pk")
            .expression_attribute_values(":pk", AttributeValue::S(keys::SCHEDULED_ENDS.to_owned()))
            .limit(i32::try_from(limit).unwrap_or(i32::MAX));
        let output = Box::pin(query.send()).await.map_err(failed)?;
        let items = output.items.unwrap_or_default();
        let keys = items.iter().filter_map(primary_key_of);
        Ok(keys
            .filter_map(|(_, sk)| keys::scheduled_end(&sk))
            .collect())
    }

    /// The first purges that are scheduled for a time until `now`, at most 25.
    ///
    /// # Errors
    /// The table could not be read.
    pub async fn due_purges(&self, now: Timestamp) -> Result<Vec<ScheduledPurge>, Error> {
        let end = keys::purge_second(now.seconds().saturating_add(1));
        let query = self
            .client
            .query()
            .table_name(&self.table)
            .key_condition_expression("PK = :pk AND SK < :end")
            .expression_attribute_values(
                ":pk",
                AttributeValue::S(keys::SCHEDULED_PURGES.to_owned()),
            )
            .expression_attribute_values(":end", AttributeValue::S(end))
            .limit(DUE_PURGES);
        let output = Box::pin(query.send()).await.map_err(failed)?;
        let items = output.items.unwrap_or_default();
        let keys = items.iter().filter_map(primary_key_of);
        Ok(keys
            .filter_map(|(_, sk)| keys::scheduled_purge(&sk))
            .collect())
    }

    /// The scheduled ones among these ends.
    ///
    /// # Errors
    /// The table could not be read.
    pub async fn scheduled(&self, ends: &[ScheduledEnd]) -> Result<HashSet<ScheduledEnd>, Error> {
        let keys: Vec<_> = ends.iter().map(keys::of_scheduled_end).collect();
        let items = self.get_items(&keys).await?;
        let found = items.iter().filter_map(primary_key_of);
        let found: HashSet<_> = found.collect();
        let ends = ends.iter().zip(keys);
        let ends = ends.filter(|(_, key)| found.contains(key));
        Ok(ends.map(|(end, _)| end.clone()).collect())
    }

    /// Adds an end to the schedule.
    ///
    /// # Errors
    /// The table could not be written.
    pub async fn add_to_schedule(&self, end: &ScheduledEnd) -> Result<(), Error> {
        let put = self.client.put_item().table_name(&self.table);
        let put = put.set_item(Some(primary_key(&keys::of_scheduled_end(end))));
        Box::pin(put.send()).await.map(drop).map_err(failed)
    }

    /// The operation that adds an end to the schedule.
    pub(super) fn schedule(&self, end: &ScheduledEnd) -> Result<TransactWriteItem, Error> {
        let put = Put::builder()
            .table_name(&self.table)
            .set_item(Some(primary_key(&keys::of_scheduled_end(end))))
            .build()
            .map_err(unusable)?;
        Ok(TransactWriteItem::builder().put(put).build())
    }

    /// The operation that removes an end from the schedule.
    pub(super) fn unschedule(&self, end: &ScheduledEnd) -> Result<TransactWriteItem, Error> {
        let delete = Delete::builder()
            .table_name(&self.table)
            .set_key(Some(primary_key(&keys::of_scheduled_end(end))))
            .build()
            .map_err(unusable)?;
        Ok(TransactWriteItem::builder().delete(delete).build())
    }
}
