//! Tasks of the orphan clean-up: an item for each deletion, all in one partition.

use aws_sdk_dynamodb::{error::ProvideErrorMetadata as _, types::AttributeValue};

use super::{DynamoDb, failed, lists::last_key, primary_key, primary_key_of, to_item};
use crate::{
    domain::Orphans,
    store::{
        Error, ErrorKind, ListPage, ListPosition, item,
        keys::{self, SORT_KEY},
    },
};

/// Most tasks of a page.
const PAGE: i32 = 100;

impl DynamoDb {
    /// A page of tasks. An item that is not a task is an error.
    ///
    /// # Errors
    /// The table could not be read.
    pub async fn orphans(
        &self,
        after: Option<&ListPosition>,
    ) -> Result<ListPage<Result<Orphans, Error>>, Error> {
        let start =
            after.map(|ListPosition(sk)| primary_key(&(keys::LEFTOVERS.to_owned(), sk.clone())));
        let query = self
            .client
            .query()
            .table_name(&self.table)
            .key_condition_expression("PK = :pk")
            .expression_attribute_values(":pk", AttributeValue::S(keys::LEFTOVERS.to_owned()))
            .set_exclusive_start_key(start)
            .limit(PAGE);
        // Boxed, here and below: the futures of the SDK are large.
        let output = Box::pin(query.send()).await.map_err(failed)?;
        let next = last_key(&output, SORT_KEY);
        let items = output.items.unwrap_or_default().into_iter();
        let found = items.map(|item| {
            let orphans =
                primary_key_of(&item).and_then(|(_, sk)| item::decode_orphans(&sk, &to_item(item)));
            orphans.ok_or_else(|| Error::new(ErrorKind::Malformed, "a task of the orphan clean-up"))
        });
        let found = found.collect();
        Ok(ListPage { found, next })
    }

    /// Removes the tombstone of this deletion, if it still exists. From then on, other writers can
    /// take the name.
    ///
    /// # Errors
    /// The table could not be written.
    pub async fn free_name(&self, orphans: &Orphans) -> Result<(), Error> {
        let delete = self.client.delete_item().table_name(&self.table);
        let delete = delete
            .set_key(Some(primary_key(&keys::of(&orphans.gone.key()))))
            .expression_attribute_names("#state", item::STATE)
            .expression_attribute_names("#uid", item::UID)
            .expression_attribute_values(
                ":tombstone",
                AttributeValue::S(item::TOMBSTONE.to_owned()),
            );
        let delete = match &orphans.uid {
            Some(uid) => delete
                .condition_expression("#state = :tombstone AND #uid = :uid")
                .expression_attribute_values(":uid", AttributeValue::S(uid.as_str().to_owned())),
            None => {
                delete.condition_expression("#state = :tombstone AND attribute_not_exists(#uid)")
            }
        };
        match Box::pin(delete.send()).await {
            Err(error) if error.code() != Some("ConditionalCheckFailedException") => {
                Err(failed(error))
            }
            // The name is taken again, or the tombstone is of another deletion.
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Removes the task.
    ///
    /// # Errors
    /// The table could not be written.
    pub async fn finish(&self, orphans: &Orphans) -> Result<(), Error> {
        let delete = self.client.delete_item().table_name(&self.table);
        let delete = delete.set_key(Some(primary_key(&keys::of_orphans(orphans))));
        let deleted = Box::pin(delete.send()).await;
        deleted.map(drop).map_err(failed)
    }
}
