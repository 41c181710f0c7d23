//! The table of errors and their gRPC statuses. Details for operators are in the log, details
//! for callers in the status.

mod refusal;

use std::{collections::HashMap, time::Duration};

use tonic::{Code, Status, metadata::MetadataValue};
use tonic_types::{ErrorDetails, StatusExt as _};

pub use super::reason::{DOMAIN, Reason};
use crate::{
    auth::{Caller, Refused},
    domain::OrganizationName,
    service::{Error, WatchError},
    store::{self, ErrorKind},
    telemetry::Throttle,
};

/// Trailer with the time until a retry, by the gRPC specification of retries.
const PUSHBACK: &str = "grpc-retry-pushback-ms";
/// The value of [`PUSHBACK`] that forbids a retry.
const NO_RETRY: &str = "-1";
/// Most characters of a field's path, and of the description of its error, in a status.
const MAX_PATH_CHARACTERS: usize = 128;
const MAX_WHY_CHARACTERS: usize = 256;
/// Log lines about rejected calls: those that any client can cause, and those that only
/// authenticated callers can cause.
static REFUSALS: Throttle = Throttle::new(10);
static REFUSALS_OF_KNOWN: Throttle = Throttle::new(10);
const RETRY_SOON: Duration = Duration::from_millis(100);
const RETRY_LATER: Duration = Duration::from_secs(1);

/// The status of a call that is not admitted.
pub(super) fn not_admitted(refused: &Refused, path: &str) -> Status {
    let (code, reason) = match refused {
        Refused::NoKeysYet => {
            return retry(Reason::KeysUnavailable, &refused.to_string(), RETRY_LATER);
        }
        Refused::NoCredentials => (Code::Unauthenticated, Reason::NoCredentials),
        Refused::InvalidCredentials { .. } => (Code::Unauthenticated, Reason::InvalidCredentials),
        Refused::NotGranted { .. } => (Code::PermissionDenied, Reason::MethodNotGranted),
    };
    let throttle = match refused {
        Refused::NotGranted { .. } => &REFUSALS_OF_KNOWN,
        _ => &REFUSALS,
    };
    if let Some(suppressed) = throttle.pass() {
        let path = shortened(path.to_owned(), MAX_PATH_CHARACTERS);
        tracing::warn!(?refused, path, suppressed, "a call was not admitted");
    }
    plain(code, reason, &refused.to_string())
}

/// The status of a call that did not pass the authorizer: a bug of the service.
pub(super) fn no_caller() -> Status {
    plain(
        Code::Internal,
        Reason::Internal,
        "the call did not pass the authorizer",
    )
}

/// The status of a call on behalf of an actor for which the caller may not act.
pub(super) fn may_not_act(caller: &Caller, rpc: &str) -> Status {
    if let Some(suppressed) = REFUSALS_OF_KNOWN.pass() {
        let name = caller.name.as_ref().map(tracing::field::display);
        tracing::warn!(
            name,
            rpc,
            suppressed,
            "a caller may not act on behalf of the actor that it named"
        );
    }
    plain(
        Code::PermissionDenied,
        Reason::ActingNotGranted,
        "the caller may not act on behalf of the actor that the request names",
    )
}

/// The status of a call about an organization that is not in the caller's scope.
fn organization_not_granted(name: &OrganizationName) -> Status {
    if let Some(suppressed) = REFUSALS_OF_KNOWN.pass() {
        let organization = name.as_str();
        tracing::warn!(
            organization,
            suppressed,
            "a caller may not read or change the organization that it named"
        );
    }
    Status::with_error_details(
        Code::PermissionDenied,
        "the caller may neither read nor change this organization",
        info(
            Reason::OrganizationNotGranted,
            &[("organization_name", name.as_str())],
        ),
    )
}

/// Whether a call with an unknown outcome may be repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Repetition {
    /// Yes: a read, or a write with a `request_id`, has its effect once.
    Safe,
    /// No: a write without a `request_id` could have its effect twice, or fail because
    /// of its first effect.
    Unsafe,
}

/// The status of a call whose use case failed. `repetition` is whether the call may be
/// repeated.
pub(super) fn of(error: Error, repetition: Repetition) -> Status {
    match error {
        Error::Refused(refusal) => refusal::refused(refusal),
        Error::Store(error) => store_status(&error),
        Error::CacheUnavailable => retry(
            Reason::CacheUnavailable,
            "nothing was changed: the cache is unavailable, so stale reads could not be ruled out",
            RETRY_LATER,
        ),
        Error::NotConfirmed => perhaps_applied(
            Reason::AppliedNotConfirmed,
            "the write was applied, but reads may return older records for a while",
            repetition,
        ),
        Error::OutcomeUnknown(error) => {
            tracing::error!(%error, "the outcome of a write is unknown");
            perhaps_applied(
                Reason::OutcomeUnknown,
                "the table did not report whether the write was applied; read before you retry",
                repetition,
            )
        }
        Error::Contention => retry(
            Reason::Contention,
            "nothing was changed: other writes keep changing the same records",
            RETRY_SOON,
        ),
        Error::Overloaded => retry(
            Reason::Overloaded,
            "nothing was changed: too many writes are under way",
            RETRY_SOON,
        ),
        Error::TooLate => plain(
            Code::DeadlineExceeded,
            Reason::DeadlineExceeded,
            "nothing was changed: too little time was left before the deadline",
        ),
        Error::Interrupted => {
            tracing::error!("the task of a write ended without a result");
            plain(
                Code::Internal,
                Reason::Internal,
                "the write was interrupted",
            )
        }
    }
}

/// The call got no permit, or no memory, in time.
pub(super) fn crowded() -> Status {
    retry(
        Reason::Overloaded,
        "nothing was done: too many calls are under way in this replica",
        RETRY_SOON,
    )
}

/// A field breaks its bounds.
pub(super) fn invalid_field(path: impl Into<String>, why: String) -> Status {
    field(Reason::InvalidField, path, why)
}

/// The text, or its first `most` characters: clients limit the metadata that they accept, so
/// a status repeats only a bounded part of a request.
pub(super) fn shortened(mut text: String, most: usize) -> String {
    if let Some((end, _)) = text.char_indices().nth(most) {
        text.truncate(end);
        text.push('…');
    }
    text
}

fn field(reason: Reason, path: impl Into<String>, why: String) -> Status {
    let path = shortened(path.into(), MAX_PATH_CHARACTERS);
    let why = shortened(why, MAX_WHY_CHARACTERS);
    let message = format!("{path}: {why}");
    let mut details = info(reason, &[("field", &path)]);
    details.add_bad_request_violation(path, why);
    Status::with_error_details(Code::InvalidArgument, message, details)
}

/// The deadline passed while the call was under way.
pub(super) fn deadline_exceeded() -> Status {
    plain(
        Code::DeadlineExceeded,
        Reason::DeadlineExceeded,
        "the deadline passed; if this is a change, it may have been applied",
    )
}

/// A status with a reason and no other details.
pub(super) fn plain(code: Code, reason: Reason, message: &str) -> Status {
    Status::with_error_details(code, message, info(reason, &[]))
}

/// The status of a watch that ended.
pub(super) fn watch_failed(error: WatchError) -> Status {
    match error {
        WatchError::Expired => plain(
            Code::OutOfRange,
            Reason::CursorExpired,
            "changes after the cursor are no longer kept, or may have been missed; \
             read the records again, and watch without a cursor",
        ),
        WatchError::NotFollowed => retry(
            Reason::ChangesNotFollowed,
            "no replica follows the table's stream",
            RETRY_LATER,
        ),
        WatchError::Store(error) => store_status(&error),
    }
}

/// The replica, or the caller, has reached its limit of WatchChanges streams.
pub(super) fn too_many_watchers() -> Status {
    retry(
        Reason::TooManyWatchers,
        "this replica, or this caller, has too many open WatchChanges streams",
        RETRY_LATER,
    )
}

/// The replica, or the connection, has reached its limit of health Watch streams.
pub(super) fn too_many_health_watches() -> Status {
    retry(
        Reason::TooManyWatchers,
        "this replica, or this connection, has too many open health Watch streams",
        RETRY_LATER,
    )
}

/// The requested records are too large for one response.
pub(super) fn response_too_large() -> Status {
    plain(
        Code::ResourceExhausted,
        Reason::ResponseTooLarge,
        "the records are too large for one response; request fewer records at once",
    )
}

/// The replica, or the connection, has reached its limit of reflection streams.
pub(super) fn too_many_reflections() -> Status {
    retry(
        Reason::Overloaded,
        "nothing was done: this replica, or this connection, has too many open reflection streams",
        RETRY_LATER,
    )
}

/// The call's metadata is too large.
pub(super) fn metadata_too_large(most: usize) -> Status {
    plain(
        Code::ResourceExhausted,
        Reason::MessageTooLarge,
        &format!("the call's metadata is larger than {most} bytes"),
    )
}

/// The caller has too many connections for another one.
pub(super) fn too_many_connections() -> Status {
    retry(
        Reason::Overloaded,
        "nothing was done: too many connections are open in this replica",
        RETRY_LATER,
    )
}

/// The stream ends because the replica stops.
pub(super) fn stopping() -> Status {
    retry(
        Reason::Stopping,
        "this replica stops; continue with another replica after the last cursor",
        RETRY_SOON,
    )
}

/// The stream ends because its caller's credentials have expired.
pub(super) fn expired() -> Status {
    plain(
        Code::Unauthenticated,
        Reason::InvalidCredentials,
        "the call's credentials have expired; continue after the last cursor with new credentials",
    )
}

/// The stream ends because another policy is in use.
pub(super) fn policy_replaced() -> Status {
    retry(
        Reason::Stopping,
        "another policy of callers is in use; continue after the last cursor",
        Duration::ZERO,
    )
}

/// The stream ends because the lifetime of its connection ends.
pub(super) fn lifetime_ended() -> Status {
    retry(
        Reason::Stopping,
        "the stream has reached its longest lifetime; continue after the last cursor",
        Duration::ZERO,
    )
}

fn store_status(error: &store::Error) -> Status {
    if error.kind != ErrorKind::Crowded {
        tracing::error!(%error, "table operation failed");
    }
    match error.kind {
        ErrorKind::Unavailable | ErrorKind::Missing | ErrorKind::Unusable => retry(
            Reason::StoreUnavailable,
            "the table is unavailable",
            RETRY_LATER,
        ),
        ErrorKind::NoIndex => plain(
            Code::FailedPrecondition,
            Reason::IndexMissing,
            "the table lacks an index; add it with `account-service setup`",
        ),
        ErrorKind::Throttled => retry(
            Reason::StoreThrottled,
            "the table throttles requests",
            RETRY_LATER,
        ),
        // Counted by a metric: a log line for each would add load.
        ErrorKind::Crowded => retry(
            Reason::Overloaded,
            "too many reads wait for the table in this replica",
            RETRY_SOON,
        ),
        ErrorKind::Malformed => plain(
            Code::DataLoss,
            Reason::MalformedItem,
            "the table holds a malformed item",
        ),
    }
}

/// The write was applied, or may have been. Without a `request_id`, a retry could meet the
/// effect of the first attempt, so a trailer forbids gRPC libraries to retry.
fn perhaps_applied(reason: Reason, message: &str, repetition: Repetition) -> Status {
    match repetition {
        Repetition::Safe => retry(reason, message, RETRY_LATER),
        Repetition::Unsafe => {
            let mut status = plain(Code::Unavailable, reason, message);
            let never = MetadataValue::from_static(NO_RETRY);
            status.metadata_mut().insert(PUSHBACK, never);
            status
        }
    }
}

fn retry(reason: Reason, message: &str, after: Duration) -> Status {
    let code = match reason {
        Reason::Contention => Code::Aborted,
        Reason::StoreThrottled | Reason::Overloaded | Reason::TooManyWatchers => {
            Code::ResourceExhausted
        }
        _ => Code::Unavailable,
    };
    let mut details = info(reason, &[]);
    details.set_retry_info(Some(after));
    let mut status = Status::with_error_details(code, message, details);
    // For the retry policies of gRPC libraries, which ignore the details.
    let pushback = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
    let pushback = MetadataValue::from(pushback);
    status.metadata_mut().insert(PUSHBACK, pushback);
    status
}

pub(super) fn info(reason: Reason, metadata: &[(&str, &str)]) -> ErrorDetails {
    let metadata: HashMap<_, _> = metadata
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    ErrorDetails::with_error_info(reason.as_str(), DOMAIN, metadata)
}
