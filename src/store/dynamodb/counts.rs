//! Counts of memberships: an item for each incarnation of a user and an organization, written in the
//! transactions of the change log.

use std::fmt;

use aws_sdk_dynamodb::{
    error::ProvideErrorMetadata as _,
    types::{AttributeValue, TransactWriteItem, Update},
};

use super::{DynamoDb, failed, primary_key, to_item, unusable};
use crate::{
    domain::{CountUpdate, MemberCounts, ProfileId, Timestamp},
    store::{
        COUNT_RETENTION, Error, LogId, StoredCounts,
        item::{self, EXPIRE_TIME},
        keys,
    },
};

/// The attributes of the counts.
const COUNTS: [&str; 4] = ["owners", "admins", "members", "others"];
/// The number of the last change that the counts include, and its log.
const AS_OF: &str = "asOf";
const LOG: &str = "log";
/// The log in which all changes are counted.
const COMPLETE_IN: &str = "completeIn";

fn values(counts: &MemberCounts) -> [i64; 4] {
    let MemberCounts {
        owners,
        admins,
        members,
        others,
    } = *counts;
    [owners, admins, members, others]
}

fn number(number: impl fmt::Display) -> AttributeValue {
    AttributeValue::N(number.to_string())
}

impl DynamoDb {
    /// The counts of an incarnation. `None`: nothing was counted.
    ///
    /// # Errors
    /// The table could not be read.
    pub async fn counts(&self, of: &ProfileId) -> Result<Option<StoredCounts>, Error> {
        let Some(key) = keys::of_counts(of) else {
            return Ok(None);
        };
        let Some(item) = self.get_item(&key).await? else {
            return Ok(None);
        };
        let item = to_item(item);
        let [owners, admins, members, others] =
            COUNTS.map(|name| item::number(&item, name).unwrap_or_default());
        Ok(Some(StoredCounts {
            counts: MemberCounts {
                owners,
                admins,
                members,
                others,
            },
            as_of: item::number(&item, AS_OF)
                .and_then(|number| u64::try_from(number).ok())
                .unwrap_or_default(),
            complete_in: item::text(&item, COMPLETE_IN).map(|log| LogId(log.to_owned())),
        }))
    }

    /// Replaces the counts of an incarnation by a full count, if no change after the number `as_of` is
    /// included in them. Returns whether they were replaced.
    ///
    /// # Errors
    /// The table could not be written.
    pub async fn set_counts(
        &self,
        of: &ProfileId,
        counts: &MemberCounts,
        (log, as_of): (&LogId, u64),
    ) -> Result<bool, Error> {
        let Some(key) = keys::of_counts(of) else {
            return Ok(true);
        };
        let mut update = self
            .client
            .update_item()
            .table_name(&self.table)
            .set_key(Some(primary_key(&key)))
            .condition_expression("attribute_not_exists(#asOf) OR #asOf <= :asOf OR #log <> :log")
            .update_expression(format!(
                "SET #asOf = :asOf, #log = :log, #complete = :log, {}",
                COUNTS.map(|name| format!("#{name} = :{name}")).join(", ")
            ))
            .expression_attribute_names("#asOf", AS_OF)
            .expression_attribute_names("#log", LOG)
            .expression_attribute_names("#complete", COMPLETE_IN)
            .expression_attribute_values(":asOf", number(as_of))
            .expression_attribute_values(":log", AttributeValue::S(log.0.clone()));
        for (name, count) in COUNTS.into_iter().zip(values(counts)) {
            update = update
                .expression_attribute_names(format!("#{name}"), name)
                .expression_attribute_values(format!(":{name}"), number(count));
        }
        match Box::pin(update.send()).await {
            Ok(_) => Ok(true),
            Err(error)
                if error.code() == Some("ConditionalCheckFailedException")
                    || error.code() == Some("TransactionConflictException") =>
            {
                Ok(false)
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// The operation that updates the counts of an incarnation. `None`: its uid is too long for a key.
    pub(super) fn update_counts(
        &self,
        update: &CountUpdate,
        (log, as_of): (&LogId, u64),
    ) -> Result<Option<TransactWriteItem>, Error> {
        let Some(key) = keys::of_counts(&update.profile) else {
            return Ok(None);
        };
        let mut set = vec!["#asOf = :asOf", "#log = :log"];
        let mut operation = Update::builder()
            .table_name(&self.table)
            .set_key(Some(primary_key(&key)))
            .expression_attribute_names("#asOf", AS_OF)
            .expression_attribute_names("#log", LOG)
            .expression_attribute_values(":log", AttributeValue::S(log.0.clone()))
            .expression_attribute_values(":asOf", number(as_of));
        if update.is_created {
            set.push("#complete = :log");
            operation = operation.expression_attribute_names("#complete", COMPLETE_IN);
        }
        if update.is_deleted {
            set.push("#expires = :expires");
            let expires = Timestamp::now().after(COUNT_RETENTION);
            operation = operation
                .expression_attribute_names("#expires", EXPIRE_TIME)
                .expression_attribute_values(":expires", number(expires.seconds()));
        }
        let mut added = Vec::new();
        for (name, count) in COUNTS.into_iter().zip(values(&update.added)) {
            if count != 0 {
                added.push(format!("#{name} :{name}"));
                operation = operation
                    .expression_attribute_names(format!("#{name}"), name)
                    .expression_attribute_values(format!(":{name}"), number(count));
            }
        }
        let mut expression = format!("SET {}", set.join(", "));
        if !added.is_empty() {
            expression = format!("{expression} ADD {}", added.join(", "));
        }
        let operation = operation.update_expression(expression).build();
        let operation = operation.map_err(unusable)?;
        Ok(Some(TransactWriteItem::builder().update(operation).build()))
    }
}
