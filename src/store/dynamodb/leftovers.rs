//! What deletions left to be removed: an item for each deletion, all in one
//! partition.

use async_trait::async_trait;
use aws_sdk_dynamodb::types::AttributeValue;

use super::{DynamoDb, failed, primary_key, primary_key_of, to_item};
use crate::{
    domain::Leftovers,
    store::{Error, LeftoverTasks, item, keys},
};

/// Deletions that are looked at together.
const PAGE: i32 = 100;

#[async_trait]
impl LeftoverTasks for DynamoDb {
    async fn leftovers(&self) -> Result<Vec<Leftovers>, Error> {
        let output = self
            .client
            .query()
            .table_name(&self.table)
            .key_condition_expression("PK = :pk")
            .expression_attribute_values(":pk", AttributeValue::S(keys::LEFTOVERS.to_owned()))
            .limit(PAGE)
            .send()
            .await
            .map_err(failed)?;
        let items = output.items.unwrap_or_default().into_iter();
        let leftovers = items.filter_map(|item| {
            let (_, sk) = primary_key_of(&item)?;
            item::decode_leftovers(&sk, &to_item(item))
        });
        Ok(leftovers.collect())
    }

    async fn finish(&self, leftovers: &Leftovers) -> Result<(), Error> {
        let delete = self.client.delete_item().table_name(&self.table);
        let delete = delete.set_key(Some(primary_key(&keys::of_leftovers(leftovers))));
        delete.send().await.map(drop).map_err(failed)
    }
}
