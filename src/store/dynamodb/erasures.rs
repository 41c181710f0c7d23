//! Erasures: an item for each, the scan of the table for a name, and the rewriting of items that are not
//! records.

use std::time::Duration;

use aws_sdk_dynamodb::{
    error::ProvideErrorMetadata as _,
    types::{AttributeValue, ConditionCheck, Delete, TransactWriteItem},
};

use super::{
    Attributes, DynamoDb, change_log::is_cancelled_by, condition::Condition, failed, primary_key,
    primary_key_of, to_attributes, to_item, unusable,
};
use crate::{
    domain::{
        ErasedUser, Erasure, ErasureId, Key, ProfileId, ProfileName, Pseudonymization,
        RecordChange, Timestamp, Username,
    },
    store::{
        ErasurePosition, Error, LogId, Mention, RewrittenLog, RunningErasure, ScannedItem,
        ScannedPage,
        item::{self, Item, Value},
        keys,
    },
};

const CONDITION_FAILED: &str = "ConditionalCheckFailedException";
/// Most erasures that are read together.
const PAGE: i32 = 25;
/// Items of the table, and changes of the log, that are examined together.
const EXAMINED_AT_ONCE: i32 = 100;
/// Retention of erasures that are done: longer than everything that they report as remaining.
const RETENTION: Duration = Duration::from_secs(60 * 24 * 3600);
/// Numbers that are skipped if a log has no changes there: they were removed.
const GAP: u64 = 100;
/// The attributes of a logged change that may name a user.
const NAMING: [&str; 4] = [item::RECORD_SK, item::CHANGED_BY, item::BEFORE, item::AFTER];
/// The last item that was examined.
const POSITION: [&str; 2] = ["positionPK", "positionSK"];

impl DynamoDb {
    /// An erasure, also one that is done, for 60 days.
    ///
    /// # Errors
    /// The table could not be read.
    pub async fn erasure(&self, id: ErasureId) -> Result<Option<Erasure>, Error> {
        // In this order: a running one becomes one that is done.
        for key in [keys::of_running_erasure(id), keys::of_done_erasure(id)] {
            if let Some(item) = self.get_item(&key).await? {
                return Ok(item::decode_erasure(id, &to_item(item)));
            }
        }
        Ok(None)
    }

    /// Some erasures that are not done.
    ///
    /// # Errors
    /// The table could not be read.
    pub async fn running_erasures(&self) -> Result<Vec<RunningErasure>, Error> {
        let query = self
            .client
            .query()
            .table_name(&self.table)
            .consistent_read(true)
            .key_condition_expression("PK = :pk")
            .expression_attribute_values(":pk", AttributeValue::S(keys::ERASURES.to_owned()))
            .limit(PAGE);
        // Boxed, here and below: the futures of the SDK are large.
        let output = Box::pin(query.send()).await.map_err(failed)?;
        let items = output.items.unwrap_or_default().into_iter();
        Ok(items.filter_map(running).collect())
    }

    /// Saves the progress of an erasure, if no other replica has saved it since it was read. Returns
    /// whether it was saved.
    ///
    /// # Errors
    /// The table could not be written.
    pub async fn save_erasure(&self, running: &mut RunningErasure) -> Result<bool, Error> {
        let found = running.version;
        let mut attributes = primary_key(&keys::of_running_erasure(running.erasure.id));
        attributes.extend(to_attributes(item::encode_erasure(&running.erasure)));
        if let Some(ErasurePosition(pk, sk)) = &running.position {
            let values = [pk, sk].map(|text| AttributeValue::S(text.clone()));
            attributes.extend(POSITION.map(str::to_owned).into_iter().zip(values));
        }
        let next = AttributeValue::N((found + 1).to_string());
        attributes.insert(item::VERSION.to_owned(), next);
        let put = self.client.put_item().table_name(&self.table);
        let put = put
            .set_item(Some(attributes))
            .expression_attribute_names("#version", item::VERSION);
        let put = if found == 0 {
            put.condition_expression("attribute_exists(PK) AND attribute_not_exists(#version)")
        } else {
            put.condition_expression("#version = :found")
                .expression_attribute_values(":found", AttributeValue::N(found.to_string()))
        };
        match Box::pin(put.send()).await {
            Ok(_) => {
                running.version = found + 1;
                Ok(true)
            }
            Err(error) if error.code() == Some(CONDITION_FAILED) => Ok(false),
            Err(error) => Err(failed(error)),
        }
    }

    /// Replaces an erasure by one that is done and does not name the user.
    ///
    /// # Errors
    /// The table could not be written.
    pub async fn finish_erasure(&self, done: &Erasure) -> Result<(), Error> {
        let mut item = item::encode_erasure(done);
        item::put_expiry(&mut item, done.phase_time.after(RETENTION));
        let mut attributes = primary_key(&keys::of_done_erasure(done.id));
        attributes.extend(to_attributes(item));
        let put = self.client.put_item().table_name(&self.table);
        let put = put.set_item(Some(attributes));
        Box::pin(put.send()).await.map_err(failed)?;
        self.delete_key(&keys::of_running_erasure(done.id)).await
    }

    /// Examines the next items of the table for a user's name.
    ///
    /// # Errors
    /// The table could not be read.
    pub async fn scan_for(
        &self,
        user: &ErasedUser,
        after: Option<&ErasurePosition>,
    ) -> Result<ScannedPage, Error> {
        let start = after.map(|ErasurePosition(pk, sk)| primary_key(&(pk.clone(), sk.clone())));
        let scan = self
            .client
            .scan()
            .table_name(&self.table)
            .consistent_read(true)
            .limit(EXAMINED_AT_ONCE)
            .set_exclusive_start_key(start);
        let output = Box::pin(scan.send()).await.map_err(failed)?;
        let next = output.last_evaluated_key.as_ref().and_then(primary_key_of);
        let mut page = ScannedPage {
            examined: 0,
            records: Vec::new(),
            others: Vec::new(),
            next: next.map(|(pk, sk)| ErasurePosition(pk, sk)),
        };
        for attributes in output.items.unwrap_or_default() {
            page.examined += 1;
            page.examine(attributes, user);
        }
        Ok(page)
    }

    /// Replaces the name in an item that is not a record, or removes the item. It does nothing if the item
    /// was changed since.
    ///
    /// # Errors
    /// The table could not be written.
    pub async fn replace_name(
        &self,
        scanned: &ScannedItem,
        replacement: Pseudonymization<'_>,
    ) -> Result<(), Error> {
        let Mention::Values { actor, outcome } = &scanned.mention else {
            return self.delete_key(&scanned.key).await;
        };
        let (mut found, mut set) = (Item::new(), Item::new());
        if let Some(actor) = actor {
            let value = |name: &Username| Value::Text(name.to_string());
            found.insert(item::CHANGED_BY.to_owned(), value(actor));
            set.insert(item::CHANGED_BY.to_owned(), value(replacement.pseudonym));
        }
        if let Some(outcome) = outcome {
            let replaced = outcome.iter().map(|record| replacement.of_record(record));
            found.extend([item::encode_outcome(outcome)]);
            set.extend([item::encode_outcome(&replaced.collect::<Vec<_>>())]);
        }
        let names: Vec<_> = found.keys().map(String::as_str).collect();
        let mut condition = Condition::same(&found, &names);
        let expression = condition.update(set, Vec::new());
        let update = self.client.update_item().table_name(&self.table);
        let update = update
            .set_key(Some(primary_key(&scanned.key)))
            .update_expression(expression)
            .condition_expression(condition.expression)
            .set_expression_attribute_names(condition.names)
            .set_expression_attribute_values(condition.values);
        match Box::pin(update.send()).await {
            Err(error) if error.code() != Some(CONDITION_FAILED) => Err(failed(error)),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Rewrites the next changes of a log after a number: those for which `rewrite` returns another one.
    ///
    /// # Errors
    /// The table could not be read or written.
    pub async fn rewrite_log(
        &self,
        log: &LogId,
        after: u64,
        rewrite: impl Fn(&RecordChange) -> Option<RecordChange>,
    ) -> Result<RewrittenLog, Error> {
        let items = self.log_items(log, after).await?;
        let mut rewritten = RewrittenLog {
            last: (after + GAP).min(keys::end_of_block(after + 1)),
            changed: 0,
        };
        // Also changes that have expired and are not removed yet.
        let always = Timestamp(0);
        for attributes in items {
            let Some(key) = primary_key_of(&attributes) else {
                continue;
            };
            rewritten.last = keys::number_of_logged(&key.1).unwrap_or(rewritten.last);
            let logged = to_item(attributes);
            let expires = item::number(&logged, item::EXPIRE_TIME).unwrap_or_default();
            let change = item::decode_logged(&logged, always);
            let Some(change) = change.and_then(|change| rewrite(&change)) else {
                continue;
            };
            rewritten.changed += 1;
            let expires = Timestamp(expires.saturating_mul(1000));
            let mut attributes = primary_key(&key);
            attributes.extend(to_attributes(item::encode_logged(&change, expires)));
            let condition = Condition::same(&logged, &NAMING);
            let put = self.client.put_item().table_name(&self.table);
            let put = put
                .set_item(Some(attributes))
                .condition_expression(condition.expression)
                .set_expression_attribute_names(condition.names)
                .set_expression_attribute_values(condition.values);
            match Box::pin(put.send()).await {
                Err(error) if error.code() != Some(CONDITION_FAILED) => return Err(failed(error)),
                Ok(_) | Err(_) => {}
            }
        }
        Ok(rewritten)
    }

    /// Removes the counts of an erased user.
    ///
    /// # Errors
    /// The table could not be written.
    pub async fn remove_counts(&self, user: &ErasedUser) -> Result<(), Error> {
        let profile = ProfileId {
            name: ProfileName::User(user.username.clone()),
            uid: user.uid.clone(),
        };
        match keys::of_counts(&profile) {
            Some(key) => self.delete_key(&key).await,
            None => Ok(()),
        }
    }

    /// Removes the scheduled ends of an erased user's memberships, while the erasure holds the name.
    ///
    /// # Errors
    /// The table could not be read or written.
    pub async fn remove_ends(&self, username: &Username, id: ErasureId) -> Result<(), Error> {
        let mut start = None;
        loop {
            let query = self
                .client
                .query()
                .table_name(&self.table)
                .key_condition_expression("PK = :pk")
                .expression_attribute_values(
                    ":pk",
                    AttributeValue::S(keys::SCHEDULED_ENDS.to_owned()),
                )
                .set_exclusive_start_key(start);
            let output = Box::pin(query.send()).await.map_err(failed)?;
            let items = output.items.unwrap_or_default();
            for (pk, sk) in items.iter().filter_map(primary_key_of) {
                let end = keys::scheduled_end(&sk);
                if end.is_some_and(|end| end.member_username == *username) {
                    self.delete_while_held(&(pk, sk), username, id).await?;
                }
            }
            start = output.last_evaluated_key;
            if start.is_none() {
                return Ok(());
            }
        }
    }

    /// Deletes an item, if the erasure holds the name of its user.
    async fn delete_while_held(
        &self,
        key: &(String, String),
        username: &Username,
        id: ErasureId,
    ) -> Result<(), Error> {
        let check = ConditionCheck::builder()
            .table_name(&self.table)
            .set_key(Some(primary_key(&keys::of(&Key::User(username.clone())))))
            .condition_expression("#erasure = :id")
            .expression_attribute_names("#erasure", item::ERASURE)
            .expression_attribute_values(":id", AttributeValue::S(id.to_string()))
            .build()
            .map_err(unusable)?;
        let delete = Delete::builder()
            .table_name(&self.table)
            .set_key(Some(primary_key(key)))
            .build()
            .map_err(unusable)?;
        let items = [
            TransactWriteItem::builder().condition_check(check).build(),
            TransactWriteItem::builder().delete(delete).build(),
        ];
        let transact = self.client.transact_write_items();
        let transact = transact.set_transact_items(Some(items.into()));
        match Box::pin(transact.send()).await {
            // The name is free already.
            Err(error)
                if is_cancelled_by(error.as_service_error(), &["ConditionalCheckFailed"]) =>
            {
                Ok(())
            }
            sent => sent.map(drop).map_err(failed),
        }
    }

    async fn delete_key(&self, key: &(String, String)) -> Result<(), Error> {
        let delete = self.client.delete_item().table_name(&self.table);
        let delete = delete.set_key(Some(primary_key(key)));
        Box::pin(delete.send()).await.map(drop).map_err(failed)
    }
}

impl ScannedPage {
    fn examine(&mut self, attributes: Attributes, user: &ErasedUser) {
        let username = &user.username;
        let Some(primary) = primary_key_of(&attributes) else {
            return;
        };
        let item = to_item(attributes);
        if let Some(key) = keys::key_of_item(&primary.0, &primary.1) {
            let is_mentioned = match &key {
                // The erasure holds the record of the user until its end.
                Key::User(name) if name == username => false,
                Key::Membership(_, member) if member == username => true,
                _ => item::mentions(&item, username),
            };
            self.records.extend(is_mentioned.then_some(key));
            return;
        }
        // The log is rewritten by its numbers.
        if keys::is_of_log(&primary.0) {
            return;
        }
        let mention = mention(&primary.0, &item, user);
        self.others.extend(mention.map(|mention| ScannedItem {
            key: primary,
            mention,
        }));
    }
}

fn mention(pk: &str, item: &Item, user: &ErasedUser) -> Option<Mention> {
    let username = &user.username;
    if let Some((name, uid)) = keys::of_counted(pk) {
        let is_of_user = name == ProfileName::User(username.clone());
        return (is_of_user && uid != user.uid).then_some(Mention::Counts);
    }
    let outcome = keys::is_of_request(pk).then(|| item::decode_request(item));
    let outcome = outcome.flatten().map(|found| found.outcome);
    let outcome = outcome.filter(|outcome| outcome.iter().any(|record| record.names(username)));
    let actor = item::text(item, item::CHANGED_BY) == Some(username.as_str());
    let actor = actor.then(|| username.clone());
    (actor.is_some() || outcome.is_some()).then_some(Mention::Values { actor, outcome })
}

fn running(attributes: Attributes) -> Option<RunningErasure> {
    let (_, sk) = primary_key_of(&attributes)?;
    let item = to_item(attributes);
    let [pk_of_last, sk_of_last] = POSITION.map(|name| item::text(&item, name).map(str::to_owned));
    let version = item::number(&item, item::VERSION).unwrap_or_default();
    Some(RunningErasure {
        erasure: item::decode_erasure(ErasureId::parse(&sk)?, &item)?,
        position: pk_of_last
            .zip(sk_of_last)
            .map(|(pk, sk)| ErasurePosition(pk, sk)),
        version: u64::try_from(version).ok()?,
    })
}
