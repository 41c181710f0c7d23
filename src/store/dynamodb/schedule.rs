//! The schedule of the ends of memberships: an item for each end. The follower of the table's stream adds
//! it with the change that sets the end, and removes it after the end.

use std::collections::HashSet;

use aws_sdk_dynamodb::types::{AttributeValue, Delete, Put, TransactWriteItem};

use super::{DynamoDb, failed, primary_key, primary_key_of, unusable};
use crate::store::{Error, ScheduledEnd, keys};

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
