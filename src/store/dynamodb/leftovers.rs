//! What deletions left to be removed: an item for each deletion, all in one
//! partition.

use async_trait::async_trait;
use aws_sdk_dynamodb::types::AttributeValue;

use super::{DynamoDb, failed, lists::last_key, primary_key, primary_key_of, to_item};
use crate::{
    domain::Leftovers,
    store::{
        Error, Kind, LeftoverTasks, Listed, Place, item,
        keys::{self, SORT_KEY},
    },
};

/// Deletions of a page.
const PAGE: i32 = 100;

#[async_trait]
impl LeftoverTasks for DynamoDb {
    async fn leftovers(&self, after: Option<&Place>) -> Result<Listed<Leftovers>, Error> {
        let start = after.map(|Place(sk)| primary_key(&(keys::LEFTOVERS.to_owned(), sk.clone())));
        let output = self
            .client
            .query()
            .table_name(&self.table)
            .key_condition_expression("PK = :pk")
            .expression_attribute_values(":pk", AttributeValue::S(keys::LEFTOVERS.to_owned()))
            .set_exclusive_start_key(start)
            .limit(PAGE)
            .send()
            .await
            .map_err(failed)?;
        let next = last_key(&output, SORT_KEY);
        let (mut found, mut unreadable) = (Vec::new(), Vec::new());
        for item in output.items.unwrap_or_default() {
            let leftovers = primary_key_of(&item)
                .and_then(|(_, sk)| item::decode_leftovers(&sk, &to_item(item)));
            match leftovers {
                Some(leftovers) => found.push(leftovers),
                None => unreadable.push(Error::new(
                    Kind::Malformed,
                    "an item that should say what a deletion left",
                )),
            }
        }
        Ok(Listed {
            found,
            unreadable,
            next,
        })
    }

    async fn finish(&self, leftovers: &Leftovers) -> Result<(), Error> {
        let delete = self.client.delete_item().table_name(&self.table);
        let delete = delete.set_key(Some(primary_key(&keys::of_leftovers(leftovers))));
        delete.send().await.map(drop).map_err(failed)
    }
}
