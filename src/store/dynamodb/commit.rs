//! Conditional transactions, and the classification of their errors.

use std::{collections::HashMap, time::Duration};

use aws_sdk_dynamodb::{
    config::{http::HttpResponse, retry::RetryConfig},
    error::{BuildError, ProvideErrorMetadata as _, SdkError},
    operation::transact_write_items::TransactWriteItemsError,
    types::{
        AttributeValue, CancellationReason, ConditionCheck, Delete, Put,
        ReturnValuesOnConditionCheckFailure, TransactWriteItem, Update,
    },
};
use backon::{BackoffBuilder as _, ExponentialBuilder};
use tokio::time::Instant;
use uuid::Uuid;

use super::{
    DynamoDb, MAX_ATTEMPTS, RETRY_PAUSE, failed, kind_of_code, primary_key, timeouts, to_attribute,
    to_attributes, unusable,
};
use crate::{
    domain::{Origin, Record, Role, State, Timestamp, Uid},
    error_chain::describe,
    store::{
        CommitError, Error, ErrorKind, REQUEST_RETENTION, Step, StoredClaim,
        item::{self, Item, Value},
        keys,
    },
};

/// Pauses between attempts: 25 ms and 50 ms, and up to as much again by jitter.
const RETRY_PAUSES: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(RETRY_PAUSE)
    .with_max_times(MAX_ATTEMPTS as usize - 1)
    .with_jitter();

/// Retention of deletions: longer than the table's stream.
const DELETION_RETENTION: Duration = Duration::from_secs(48 * 3600);

impl DynamoDb {
    /// Applies all steps or none, and stores their origin. At most 50 steps, each of another
    /// record.
    ///
    /// # Errors
    /// See [`CommitError`].
    pub async fn commit(&self, steps: &[Step], origin: &Origin) -> Result<(), CommitError> {
        // The id is DynamoDB's idempotency token and an attribute of every written item. By
        // either, a retry learns that an earlier attempt succeeded.
        let write_id = Uuid::new_v4().to_string();
        let noted = item::encode_origin(origin, &write_id);
        let mut items = Vec::with_capacity(steps.len());
        for step in steps {
            let of_step = self.transact_items(step, &noted);
            items.extend(of_step.map_err(|error| CommitError::NotApplied(unusable(error)))?);
        }
        let end = Instant::now() + self.operation_timeout;
        let mut may_be_applied = false;
        let mut pauses = RETRY_PAUSES.build();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let error = match self.transact(items.clone(), &write_id, left).await {
                Ok(()) => {
                    self.budget.earn();
                    return Ok(());
                }
                Err(error) => error,
            };
            may_be_applied |= matches!(error, CommitError::OutcomeUnknown(_));
            let pause = pauses.next().filter(|pause| {
                let is_in_time = Instant::now() + *pause < end;
                is_in_time && is_worth_retrying(&error, may_be_applied)
            });
            match pause {
                Some(pause) if self.budget.pay() => tokio::time::sleep(pause).await,
                _ => return Err(of_all_attempts(error, may_be_applied)),
            }
        }
    }
}

/// An attempt that may have been applied is always repeated: the repetition learns its
/// outcome. Any other is repeated if the table may recover.
fn is_worth_retrying(error: &CommitError, may_be_applied: bool) -> bool {
    match error {
        CommitError::OutcomeUnknown(_) => true,
        CommitError::NotApplied(error) => {
            matches!(error.kind, ErrorKind::Throttled | ErrorKind::Unavailable)
        }
        CommitError::Conflict => may_be_applied,
        CommitError::Stale => false,
    }
}

/// The error of all attempts. After one attempt that may have been applied, the outcome is
/// unknown, also if a condition has failed since: that attempt may still be on its way, and
/// be applied once the condition holds again.
fn of_all_attempts(last: CommitError, may_be_applied: bool) -> CommitError {
    if !may_be_applied {
        return last;
    }
    CommitError::OutcomeUnknown(match last {
        CommitError::NotApplied(error) | CommitError::OutcomeUnknown(error) => error,
        CommitError::Conflict | CommitError::Stale => Error::new(
            ErrorKind::Unavailable,
            "an earlier attempt of the transaction may be on its way, or hold the items",
        ),
    })
}

impl DynamoDb {
    /// One attempt, of at most `left`. The SDK's own retries are off: they report the last
    /// attempt only.
    async fn transact(
        &self,
        items: Vec<TransactWriteItem>,
        write_id: &str,
        left: Duration,
    ) -> Result<(), CommitError> {
        let once = aws_sdk_dynamodb::config::Builder::default()
            .retry_config(RetryConfig::disabled())
            .timeout_config(timeouts(self.attempt_timeout.min(left), left));
        self.client
            .transact_write_items()
            .set_transact_items(Some(items))
            .client_request_token(write_id)
            .customize()
            .config_override(once)
            .send()
            .await
            .map(|_| ())
            .or_else(|error| classify(error, write_id))
    }

    /// The operations of a step. `noted` are the attributes of the change.
    fn transact_items(
        &self,
        step: &Step,
        noted: &Item,
    ) -> Result<Vec<TransactWriteItem>, BuildError> {
        match step {
            Step::Require { key, found } => {
                let condition = Condition::facts(found.as_ref());
                let check = ConditionCheck::builder()
                    .table_name(&self.table)
                    .set_key(Some(primary_key(&keys::of(key))))
                    .condition_expression(condition.expression)
                    .set_expression_attribute_names(condition.names)
                    .set_expression_attribute_values(condition.values)
                    .build()?;
                Ok(vec![
                    TransactWriteItem::builder().condition_check(check).build(),
                ])
            }
            Step::Create { record, found } => {
                let mut item = item::encode(record);
                for (name, value) in keys::index_attributes(record) {
                    item.extend(value.map(|value| (name.to_owned(), Value::Text(value))));
                }
                let condition = Condition::exactly(found.as_ref());
                let parts = [item, noted.clone()];
                Ok(vec![self.transact_put(
                    &keys::of(&record.key()),
                    parts,
                    condition,
                )?])
            }
            Step::Update { found, record } => Ok(vec![self.transact_update(found, record, noted)?]),
            Step::Delete { found } => {
                let condition = Condition::exactly(Some(found));
                let key = keys::of(&found.key());
                let now = Timestamp::now();
                if let Some(tombstone) = item::encode_tombstone(found, now) {
                    let parts = [tombstone, noted.clone()];
                    return Ok(vec![self.transact_put(&key, parts, condition)?]);
                }
                let delete = self.transact_delete(&key, condition)?;
                let key = keys::of_deletion(&found.key(), &found.stamp().etag());
                let deletion = item::encode_deletion(now, now.after(DELETION_RETENTION));
                Ok(vec![
                    delete,
                    self.transact_put(&key, [deletion, noted.clone()], Condition::default())?,
                ])
            }
            Step::Claim {
                email,
                claim,
                found,
            } => {
                let key = keys::of_email(email);
                let condition = Condition::claim(found.as_ref());
                let item = match claim {
                    Some(claim) => self.transact_put(
                        &key,
                        [item::encode_claim(claim), noted.clone()],
                        condition,
                    )?,
                    None => self.transact_delete(&key, condition)?,
                };
                Ok(vec![item])
            }
            Step::CleanUp(orphans) => {
                let item = item::encode_orphans(orphans);
                Ok(vec![self.transact_put(
                    &keys::of_orphans(orphans),
                    [item, noted.clone()],
                    Condition::default(),
                )?])
            }
            Step::Remember { request, outcome } => {
                let expires = Timestamp::now().after(REQUEST_RETENTION);
                let remembered = item::encode_request(request, outcome, expires);
                Ok(vec![self.transact_put(
                    &keys::of_request(request),
                    [remembered, noted.clone()],
                    Condition::no_item(),
                )?])
            }
        }
    }

    fn transact_update(
        &self,
        found: &Record,
        record: &Record,
        noted: &Item,
    ) -> Result<TransactWriteItem, BuildError> {
        let (mut set, mut gone) = item::difference(found, record);
        set.extend(noted.clone());
        for (name, value) in keys::index_attributes(record) {
            match value {
                Some(value) => drop(set.insert(name.to_owned(), Value::Text(value))),
                None => gone.push(name.to_owned()),
            }
        }
        let left_out = item::OPTIONAL_ORIGIN.iter();
        let left_out = left_out.filter(|name| !noted.contains_key(**name));
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
            .condition_expression(condition.expression)
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
            .set_condition_expression(
                Some(condition.expression).filter(|expression| !expression.is_empty()),
            )
            .set_expression_attribute_names(condition.names)
            .set_expression_attribute_values(condition.values)
            .build()?;
        Ok(TransactWriteItem::builder().put(put).build())
    }
}

/// A condition expression with its placeholders.
#[derive(Default)]
struct Condition {
    expression: String,
    names: Option<HashMap<String, String>>,
    values: Option<HashMap<String, AttributeValue>>,
}

impl Condition {
    /// There is no item under the key.
    fn no_item() -> Self {
        let mut condition = Self::default();
        condition.and("attribute_not_exists(PK)");
        condition
    }

    /// The facts of decisions: existence, incarnation, state and role.
    fn facts(found: Option<&Record>) -> Self {
        let mut condition = Self::default();
        match found {
            None => {
                let [state, tombstone] = condition.name_and_value(
                    item::STATE,
                    "tombstone",
                    Value::Text(item::TOMBSTONE.to_owned()),
                );
                condition.and(&format!(
                    "(attribute_not_exists(PK) OR {state} = {tombstone})"
                ));
            }
            Some(record) => {
                condition.and("attribute_exists(PK)");
                condition.and_facts(record);
            }
        }
        condition
    }

    /// The facts, the version and the creation time. The versions of a record that was
    /// deleted and created again start anew.
    fn exactly(found: Option<&Record>) -> Self {
        let mut condition = Self::facts(found);
        if let Some(record) = found {
            let stamp = record.stamp();
            condition.and_version(stamp.version);
            condition.and_create_time(stamp.create_time);
        }
        condition
    }

    /// The address has this very claim. `None`: it has none.
    fn claim(found: Option<&StoredClaim>) -> Self {
        let Some(StoredClaim { claim, change_id }) = found else {
            return Self::no_item();
        };
        let mut condition = Self::default();
        let text = |text: &str| Value::Text(text.to_owned());
        // The user does not suffice: the user may have released the address and claimed it
        // again.
        condition.and_equal(item::WRITE_ID, change_id.as_deref().map(text));
        if change_id.is_none() {
            let uid = claim.uid.as_ref().map(|uid| text(uid.as_str()));
            condition.and_equal(item::USERNAME, Some(text(claim.username.as_str())));
            condition.and_equal(item::UID, uid);
        }
        condition
    }

    /// The update expression. It shares the placeholders of the condition.
    fn update(&mut self, set: Item, gone: Vec<String>) -> String {
        let names = self.names.get_or_insert_default();
        let values = self.values.get_or_insert_default();
        let mut placeholder = |name: String| {
            let placeholder = format!("#{name}");
            names.insert(placeholder.clone(), name);
            placeholder
        };
        let mut clauses = Vec::new();
        for (name, value) in set {
            let new = format!(":new_{name}");
            clauses.push(format!("{} = {new}", placeholder(name)));
            values.insert(new, to_attribute(value));
        }
        let gone: Vec<_> = gone.into_iter().map(placeholder).collect();
        let remove = (!gone.is_empty()).then(|| format!(" REMOVE {}", gone.join(", ")));
        format!("SET {}{}", clauses.join(", "), remove.unwrap_or_default())
    }

    fn and_facts(&mut self, record: &Record) {
        match record {
            Record::User(user) => {
                self.and_uid(item::UID, user.uid.as_ref());
                self.and_state(user.state);
            }
            Record::Organization(organization) => {
                self.and_uid(item::UID, organization.uid.as_ref());
                self.and_state(organization.state);
            }
            Record::Membership(membership) => {
                self.and_role(membership.role);
                let organization_uid = membership.organization_uid.as_ref();
                self.and_uid(item::ORGANIZATION_UID, organization_uid);
                self.and_uid(item::MEMBER_UID, membership.member_uid.as_ref());
            }
        }
    }

    /// The attribute has this value. `None`: it is missing.
    fn and_equal(&mut self, attribute: &str, value: Option<Value>) {
        if let Some(value) = value {
            let [name, value] = self.name_and_value(attribute, attribute, value);
            self.and(&format!("{name} = {value}"));
            return;
        }
        let name = format!("#{attribute}");
        self.and(&format!("attribute_not_exists({name})"));
        let names = self.names.get_or_insert_default();
        names.insert(name, attribute.to_owned());
    }

    /// The identity is this one. `None`: the attribute is missing, empty, or no text.
    fn and_uid(&mut self, attribute: &str, uid: Option<&Uid>) {
        if let Some(uid) = uid {
            self.and_equal(attribute, Some(Value::Text(uid.as_str().to_owned())));
            return;
        }
        let empty = Value::Text(String::new());
        let [name, empty] = self.name_and_value(attribute, attribute, empty);
        self.and(&format!("NOT ({name} > {empty})"));
    }

    /// The version is this one. 0: the attribute is missing, no number, or below 1.
    fn and_version(&mut self, version: u64) {
        let version = i64::try_from(version).unwrap_or(i64::MAX);
        if version > 0 {
            self.and_whole(item::VERSION, version);
            return;
        }
        let [name, one] = self.name_and_value(item::VERSION, "first", Value::Number("1".into()));
        self.and(&format!("NOT ({name} >= {one})"));
    }

    /// The time is this one. `None`: the attribute is missing or no number.
    fn and_create_time(&mut self, time: Option<Timestamp>) {
        if let Some(Timestamp(millis)) = time {
            self.and_whole(item::CREATE_TIME, millis);
            return;
        }
        let number = Value::Text("N".to_owned());
        let [name, number] = self.name_and_value(item::CREATE_TIME, "number", number);
        self.and(&format!("NOT attribute_type({name}, {number})"));
    }

    /// `whole` is the greatest whole number that is not above the attribute's, within
    /// `i64`: so numbers are read.
    fn and_whole(&mut self, attribute: &str, whole: i64) {
        let number = |number: i64| Value::Number(number.to_string());
        if whole > i64::MIN {
            let [name, least] = self.name_and_value(attribute, attribute, number(whole));
            self.and(&format!("{name} >= {least}"));
        }
        if whole < i64::MAX {
            let next = format!("{attribute}_next");
            let [name, next] = self.name_and_value(attribute, &next, number(whole + 1));
            self.and(&format!("{name} < {next}"));
        }
    }

    /// The state is this one; a suspension is any other than ACTIVE, as it was read.
    fn and_state(&mut self, state: State) {
        let active = Value::Text(State::Active.as_str().to_owned());
        let [name, active] = self.name_and_value(item::STATE, "active", active);
        match state {
            State::Active => {
                self.and(&format!(
                    "(attribute_not_exists({name}) OR {name} = {active})"
                ));
            }
            State::Suspended => {
                let tombstone = Value::Text(item::TOMBSTONE.to_owned());
                let [_, tombstone] = self.name_and_value(item::STATE, "tombstone", tombstone);
                self.and(&format!(
                    "attribute_exists({name}) AND NOT {name} IN ({active}, {tombstone})"
                ));
            }
        }
    }

    /// The role is this one; `None` is any other than the known ones, as it was read.
    fn and_role(&mut self, role: Option<Role>) {
        let text = |role: Role| Value::Text(role.as_str().to_owned());
        if let Some(role) = role {
            self.and_equal(item::ROLE, Some(text(role)));
            return;
        }
        for role in Role::ALL {
            let [name, known] = self.name_and_value(item::ROLE, role.as_str(), text(role));
            self.and(&format!("NOT {name} = {known}"));
        }
    }

    /// The placeholders of an attribute's name and of a value.
    fn name_and_value(&mut self, attribute: &str, value_name: &str, value: Value) -> [String; 2] {
        let (name, placeholder) = (format!("#{attribute}"), format!(":{value_name}"));
        let names = self.names.get_or_insert_default();
        names.insert(name.clone(), attribute.to_owned());
        let values = self.values.get_or_insert_default();
        values.insert(placeholder.clone(), to_attribute(value));
        [name, placeholder]
    }

    fn and(&mut self, clause: &str) {
        if !self.expression.is_empty() {
            self.expression.push_str(" AND ");
        }
        self.expression.push_str(clause);
    }
}

fn classify(
    error: SdkError<TransactWriteItemsError, HttpResponse>,
    write_id: &str,
) -> Result<(), CommitError> {
    if let Some(TransactWriteItemsError::TransactionCanceledException(cancelled)) =
        error.as_service_error()
    {
        let reasons = cancelled.cancellation_reasons();
        return classify_cancellation(reasons, &describe(&error), write_id);
    }
    // Only a response that rejects the request proves that nothing was applied.
    let is_refused = error
        .raw_response()
        .is_some_and(|response| response.status().is_client_error());
    let is_sent = !matches!(error, SdkError::ConstructionFailure(_));
    let is_in_progress = error.code() == Some("TransactionInProgressException");
    Err(if is_sent && (!is_refused || is_in_progress) {
        CommitError::OutcomeUnknown(failed(error))
    } else {
        CommitError::NotApplied(failed(error))
    })
}

fn classify_cancellation(
    reasons: &[CancellationReason],
    description: &str,
    write_id: &str,
) -> Result<(), CommitError> {
    let codes = || reasons.iter().filter_map(CancellationReason::code);
    if reasons.iter().any(|reason| written_by(reason, write_id)) {
        return Ok(());
    }
    if codes().any(|code| code == "ConditionalCheckFailed") {
        return Err(CommitError::Stale);
    }
    if codes().any(|code| code == "TransactionConflict") {
        return Err(CommitError::Conflict);
    }
    let kind = codes()
        .find(|code| *code != "None")
        .map_or(ErrorKind::Unavailable, kind_of_code);
    Err(CommitError::NotApplied(Error::new(
        kind,
        format!("{description} ({})", codes().collect::<Vec<_>>().join(", ")),
    )))
}

/// Whether this very write put the item that failed a condition: an earlier attempt
/// succeeded, and its response was lost.
fn written_by(reason: &CancellationReason, write_id: &str) -> bool {
    reason
        .item()
        .and_then(|item| item.get(item::WRITE_ID))
        .and_then(|value| value.as_s().ok())
        .is_some_and(|found| found == write_id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cancelled_by(codes: &[&str]) -> CommitError {
        let reasons = codes.iter();
        let reasons = reasons.map(|code| CancellationReason::builder().code(*code).build());
        let reasons: Vec<_> = reasons.collect();
        classify_cancellation(&reasons, "cancelled", "a-write-id").unwrap_err()
    }

    #[test]
    fn a_cancelled_transaction_is_an_error_by_the_codes_of_its_items() {
        let stale = cancelled_by(&["None", "ConditionalCheckFailed", "TransactionConflict"]);
        assert!(matches!(stale, CommitError::Stale), "{stale:?}");
        let conflict = cancelled_by(&["None", "TransactionConflict"]);
        assert!(matches!(conflict, CommitError::Conflict), "{conflict:?}");
        for (codes, kind) in [
            (&["None", "ThrottlingError"][..], ErrorKind::Throttled),
            (&["None", "ValidationError"], ErrorKind::Unusable),
            (&["None", "None"], ErrorKind::Unavailable),
            (&[], ErrorKind::Unavailable),
        ] {
            let CommitError::NotApplied(error) = cancelled_by(codes) else {
                panic!("{codes:?}")
            };
            assert_eq!(error.kind, kind, "{codes:?}");
        }
    }
}
