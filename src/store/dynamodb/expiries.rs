//! The schedule of memberships that expire: an item for each end in the change log, written and
//! removed by the follower of the table's stream.

use aws_sdk_dynamodb::types::{AttributeValue, Delete, Put, TransactWriteItem};

use super::{DynamoDb, failed, primary_key, primary_key_of, unusable};
use crate::store::{Error, Expiry, keys};

impl DynamoDb {
    /// The scheduled ends that come first, at most `limit`, in their order.
    ///
    /// # Errors
    /// The table could not be read.
    pub async fn expiries(&self, limit: usize) -> Result<Vec<Expiry>, Error> {
        let query = self
            .client
            .query()
            .table_name(&self.table)
            .consistent_read(true)
            .key_condition_expression("PK = :pk")
            .expression_attribute_values(":pk", AttributeValue::S(keys::EXPIRIES.to_owned()))
            .limit(i32::try_from(limit).unwrap_or(i32::MAX));
        let output = Box::pin(query.send()).await.map_err(failed)?;
        let items = output.items.unwrap_or_default();
        let keys = items.iter().filter_map(primary_key_of);
        Ok(keys.filter_map(|(_, sk)| keys::expiry(&sk)).collect())
    }

    /// The operation that adds an end to the schedule.
    pub(super) fn schedule(&self, expiry: &Expiry) -> Result<TransactWriteItem, Error> {
        let put = Put::builder()
            .table_name(&self.table)
            .set_item(Some(primary_key(&keys::of_expiry(expiry))))
            .build()
            .map_err(unusable)?;
        Ok(TransactWriteItem::builder().put(put).build())
    }

    /// The operation that removes an end from the schedule.
    pub(super) fn unschedule(&self, expiry: &Expiry) -> Result<TransactWriteItem, Error> {
        let delete = Delete::builder()
            .table_name(&self.table)
            .set_key(Some(primary_key(&keys::of_expiry(expiry))))
            .build()
            .map_err(unusable)?;
        Ok(TransactWriteItem::builder().delete(delete).build())
    }
}
