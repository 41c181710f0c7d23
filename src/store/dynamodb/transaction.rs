//! The items of a transaction: the operations of each step, with their conditions.

use std::time::Duration;

use aws_sdk_dynamodb::{
    error::BuildError,
    types::{
        ConditionCheck, Delete, Put, ReturnValuesOnConditionCheckFailure, TransactWriteItem, Update,
    },
};

use super::{DynamoDb, condition::Condition, primary_key, to_attributes};
use crate::{
    domain::{Key, Record, Timestamp},
    store::{
        REQUEST_RETENTION, Step,
        item::{self, Item, Value},
        keys,
    },
};

/// Retention of deletions: longer than the table's stream.
const DELETION_RETENTION: Duration = Duration::from_secs(48 * 3600);

impl DynamoDb {
    /// The operations of a step, with the attributes of the change.
    pub(super) fn transact_items(
        &self,
        step: &Step,
        origin: &Item,
    ) -> Result<Vec<TransactWriteItem>, BuildError> {
        let put = |key: &(String, String), item, condition| {
            self.transact_put(key, [item, origin.clone()], condition)
        };
        let item = match step {
            Step::Require { key, found } => {
                self.transact_check(key, Condition::facts(found.as_ref()))?
            }
            Step::RequireVersion { found } => {
                self.transact_check(&found.key(), Condition::exactly(Some(found)))?
            }
            Step::Create { record, found } => {
                return self.transact_create(record, found.as_ref(), origin);
            }
            Step::Update { found, record } => self.transact_update(found, record, origin)?,
            Step::Delete { found } => return self.transact_end(found, origin),
            Step::Claim {
                value,
                claim,
                found,
            } => {
                let key = keys::of_unique(value);
                let condition = Condition::claim(found.as_ref());
                match claim {
                    Some(claim) => put(&key, item::encode_claim(claim), condition)?,
                    None => self.transact_delete(&key, condition)?,
                }
            }
            Step::CleanUp(orphans) => {
                let item = item::encode_orphans(orphans);
                put(&keys::of_orphans(orphans), item, Condition::default())?
            }
            Step::Schedule(purge) => put(
                &keys::of_scheduled_purge(purge),
                Item::new(),
                Condition::default(),
            )?,
            Step::Unschedule(purge) => {
                self.transact_delete(&keys::of_scheduled_purge(purge), Condition::default())?
            }
            Step::Erase(erasure) => put(
                &keys::of_running_erasure(erasure.id),
                item::encode_erasure(erasure),
                Condition::no_item(),
            )?,
            Step::StoreOutcome { request, outcome } => {
                let expires = Timestamp::now().after(REQUEST_RETENTION);
                let item = item::encode_request(request, outcome, expires);
                put(&keys::of_request(request), item, Condition::no_item())?
            }
        };
        Ok(vec![item])
    }

    /// Writes a record and, for a user or an organization, the item of its uid.
    fn transact_create(
        &self,
        record: &Record,
        found: Option<&Record>,
        origin: &Item,
    ) -> Result<Vec<TransactWriteItem>, BuildError> {
        let mut item = item::encode(record);
        for (name, value) in keys::index_attributes(record) {
            item.extend(value.map(|value| (name.to_owned(), Value::Text(value))));
        }
        let key = keys::of(&record.key());
        let parts = [item, origin.clone()];
        let mut items = vec![self.transact_put(&key, parts, Condition::exactly(found))?];
        let uid = record.uid().and_then(keys::of_uid);
        if let Some((key, name)) = uid.zip(record.profile_name()) {
            let parts = [item::encode_holder(&name), origin.clone()];
            items.push(self.transact_put(&key, parts, Condition::default())?);
        }
        Ok(items)
    }

    /// Deletes a membership, or replaces a user or an organization by its tombstone and deletes the item
    /// of its uid.
    fn transact_end(
        &self,
        found: &Record,
        origin: &Item,
    ) -> Result<Vec<TransactWriteItem>, BuildError> {
        let condition = Condition::exactly(Some(found));
        let key = keys::of(&found.key());
        let now = Timestamp::now();
        if let Some(tombstone) = item::encode_tombstone(found, now) {
            let parts = [tombstone, origin.clone()];
            let mut items = vec![self.transact_put(&key, parts, condition)?];
            if let Some(key) = found.uid().and_then(keys::of_uid) {
                items.push(self.transact_delete(&key, Condition::default())?);
            }
            return Ok(items);
        }
        let delete = self.transact_delete(&key, condition)?;
        let key = keys::of_deletion(&found.key(), &found.stamp().etag());
        let deletion = item::encode_deletion(now, now.after(DELETION_RETENTION));
        let parts = [deletion, origin.clone()];
        let put = self.transact_put(&key, parts, Condition::default())?;
        Ok(vec![delete, put])
    }

    fn transact_check(
        &self,
        key: &Key,
        condition: Condition,
    ) -> Result<TransactWriteItem, BuildError> {
        let check = ConditionCheck::builder()
            .table_name(&self.table)
            .set_key(Some(primary_key(&keys::of(key))))
            .condition_expression(condition.expression)
            .set_expression_attribute_names(condition.names)
            .set_expression_attribute_values(condition.values)
            .build()?;
        Ok(TransactWriteItem::builder().condition_check(check).build())
    }

    fn transact_update(
        &self,
        found: &Record,
        record: &Record,
        origin: &Item,
    ) -> Result<TransactWriteItem, BuildError> {
        let (mut set, mut gone) = item::difference(found, record);
        set.extend(origin.clone());
        for (name, value) in keys::index_attributes(record) {
            match value {
                Some(value) => drop(set.insert(name.to_owned(), Value::Text(value))),
                None => gone.push(name.to_owned()),
            }
        }
        let left_out = item::OPTIONAL_ORIGIN.iter();
        let left_out = left_out.filter(|name| !origin.contains_key(**name));
        gone.extend(left_out.map(|name| (*name).to_owned()));

        let mut condition = Condition::exactly(Some(found));
        let expression = condition.update(set, gone);
        let update = Update::builder()
            .table_name(&self.table)
            .set_key(Some(primary_key(&keys::of(&record.key()))))
            .update_expression(expression)
            .condition_expression(condition.expression)
            .set_expression_attribute_names(condition.names)
            .set_expression_attribute_values(condition.values)
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld)
            .build()?;
        Ok(TransactWriteItem::builder().update(update).build())
    }

    fn transact_delete(
        &self,
        key: &(String, String),
        condition: Condition,
    ) -> Result<TransactWriteItem, BuildError> {
        let delete = Delete::builder()
            .table_name(&self.table)
            .set_key(Some(primary_key(key)))
            .set_condition_expression(condition.given())
            .set_expression_attribute_names(condition.names)
            .set_expression_attribute_values(condition.values)
            .build()?;
        Ok(TransactWriteItem::builder().delete(delete).build())
    }

    fn transact_put(
        &self,
        key: &(String, String),
        parts: [Item; 2],
        condition: Condition,
    ) -> Result<TransactWriteItem, BuildError> {
        let mut attributes = primary_key(key);
        attributes.extend(parts.into_iter().flat_map(to_attributes));
        let put = Put::builder()
            .table_name(&self.table)
            .set_item(Some(attributes))
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld)
            .set_condition_expression(condition.given())
            .set_expression_attribute_names(condition.names)
            .set_expression_attribute_values(condition.values)
            .build()?;
        Ok(TransactWriteItem::builder().put(put).build())
    }
}
