//! Conditional transactions, and the classification of their errors.

use std::time::Duration;

use aws_sdk_dynamodb::{
    config::{http::HttpResponse, retry::RetryConfig},
    error::{ProvideErrorMetadata as _, SdkError},
    operation::transact_write_items::TransactWriteItemsError,
    types::{CancellationReason, TransactWriteItem},
};
use backon::{BackoffBuilder as _, ExponentialBuilder};
use tokio::time::Instant;
use uuid::Uuid;

use super::{DynamoDb, MAX_ATTEMPTS, RETRY_PAUSE, failed, kind_of_code, timeouts, unusable};
use crate::{
    domain::{Origin, Record, Timestamp},
    error_chain::describe,
    store::{CommitError, Error, ErrorKind, Step, item},
};

/// Pauses between attempts: 25 ms and 50 ms, and up to as much again by jitter.
const RETRY_PAUSES: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(RETRY_PAUSE)
    .with_max_times(MAX_ATTEMPTS as usize - 1)
    .with_jitter();

impl DynamoDb {
    /// Applies all steps or none, and stores their origin. The steps are of different records, and
    /// together of at most 100 items.
    ///
    /// # Errors
    /// See [`CommitError`].
    pub async fn commit(&self, steps: &[Step], origin: &Origin) -> Result<(), CommitError> {
        // Conditions of DynamoDB cannot compare with the present time.
        if expires_before(self.end_of_commit(), steps) {
            return Err(CommitError::Stale);
        }
        // The id is DynamoDB's idempotency token and an attribute of every written item. Each of
        // them shows a retry that an earlier attempt has succeeded.
        let write_id = Uuid::new_v4().to_string();
        let origin_item = item::encode_origin(origin, &write_id);
        let mut items = Vec::with_capacity(steps.len());
        for step in steps {
            let of_step = self.transact_items(step, &origin_item);
            items.extend(of_step.map_err(|error| CommitError::NotApplied(unusable(error)))?);
        }
        let end = Instant::now() + self.operation_timeout;
        let mut may_be_applied = false;
        let mut pauses = RETRY_PAUSES.build();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let error = match self.transact(items.clone(), &write_id, left).await {
                Ok(()) => {
                    self.retry_budget.earn();
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
                Some(pause) if self.retry_budget.pay() => tokio::time::sleep(pause).await,
                _ => return Err(of_all_attempts(error, may_be_applied)),
            }
        }
    }
}

/// Whether at `end` a membership that these steps require or change has expired, or a deletion that they
/// undo cannot be undone.
fn expires_before(end: Timestamp, steps: &[Step]) -> bool {
    steps.iter().any(|step| match step {
        Step::Update { found, record }
            if record.deletion().is_none() && found.deletion().is_some() =>
        {
            let deletion = found.deletion();
            deletion.is_some_and(|deletion| !deletion.can_be_undone(end))
        }
        Step::Require {
            found: Some(Record::Membership(membership)),
            ..
        }
        | Step::Update {
            found: Record::Membership(membership),
            ..
        }
        | Step::RequireVersion {
            found: Record::Membership(membership),
        } => membership.has_expired(|| end),
        _ => false,
    })
}

/// An attempt that may have been applied is retried in any case: the retry finds its outcome. Any
/// other attempt is retried if the table may recover.
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

/// The error of all attempts. If any attempt may have been applied, the outcome is unknown, even if
/// a later attempt failed a condition: the earlier one may still be in progress, and be applied once
/// the condition holds again.
fn of_all_attempts(last: CommitError, may_be_applied: bool) -> CommitError {
    if !may_be_applied {
        return last;
    }
    CommitError::OutcomeUnknown(match last {
        CommitError::NotApplied(error) | CommitError::OutcomeUnknown(error) => error,
        CommitError::Conflict | CommitError::Stale => Error::new(
            ErrorKind::Unavailable,
            "an earlier attempt of the transaction may be in progress, or hold the items",
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
        let transact = self
            .client
            .transact_write_items()
            .set_transact_items(Some(items))
            .client_request_token(write_id)
            .customize()
            .config_override(once);
        // Boxed: the futures of the SDK are large.
        let transacted = Box::pin(transact.send()).await;
        transacted
            .map(|_| ())
            .or_else(|error| classify(error, write_id))
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

/// Whether this write put the item that failed a condition. If so, an earlier attempt has
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
