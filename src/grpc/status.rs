//! The table of errors and their gRPC statuses. Details for operators go to the log,
//! details for callers into the status.

use std::{collections::HashMap, time::Duration};

use tonic::{Code, Status, metadata::MetadataValue};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::{
    auth::{Caller, Refused},
    domain::{OrganizationName, Username},
    service::{Error, NoPageToken, Refusal, WatchError},
    store::{self, ErrorKind},
    telemetry::Throttle,
};

/// Domain of every `google.rpc.ErrorInfo`.
pub const DOMAIN: &str = "account.v1";

/// Trailer that says when to retry, by the gRPC specification of retries.
const PUSHBACK: &str = "grpc-retry-pushback-ms";
/// The value of [`PUSHBACK`] that says not to retry.
const NO_RETRY: &str = "-1";
/// Most characters of a field's path, and of what is wrong with it, that are told.
const MAX_PATH_CHARACTERS: usize = 128;
const MAX_WHY_CHARACTERS: usize = 256;
/// Lines about calls that are refused: those that anybody can cause, and those that
/// callers can who are known.
static REFUSALS: Throttle = Throttle::new(10);
static REFUSALS_OF_KNOWN: Throttle = Throttle::new(10);
const RETRY_SOON: Duration = Duration::from_millis(100);
const RETRY_LATER: Duration = Duration::from_secs(1);

macro_rules! reasons {
    ($($(#[$doc:meta])+ $name:ident = $text:literal,)+) => {
        /// Why a call failed, stable for callers to branch on.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Reason {
            $($(#[$doc])+ $name,)+
        }

        impl Reason {
            /// Every reason.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// The reason as it stands in `google.rpc.ErrorInfo`.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)+
                }
            }
        }
    };
}

reasons! {
    /// A field breaks its bounds.
    InvalidField = "INVALID_FIELD",
    /// The body is no message of the method's request type.
    MalformedMessage = "MALFORMED_MESSAGE",
    /// The request is larger than the server reads.
    MessageTooLarge = "MESSAGE_TOO_LARGE",
    /// The answer would be larger than clients take.
    ResponseTooLarge = "RESPONSE_TOO_LARGE",
    /// The request is compressed in a way that is not taken.
    UnsupportedCompression = "UNSUPPORTED_COMPRESSION",
    /// There is no such method.
    UnknownMethod = "UNKNOWN_METHOD",
    /// The call does not show who calls.
    NoCredentials = "NO_CREDENTIALS",
    /// What the call shows of who calls is not valid.
    InvalidCredentials = "INVALID_CREDENTIALS",
    /// The keys of tokens could not be read yet.
    KeysUnavailable = "KEYS_UNAVAILABLE",
    /// The caller may not call this method.
    MethodNotGranted = "METHOD_NOT_GRANTED",
    /// The caller may not act on behalf of this user, or of the platform.
    ActingNotGranted = "ACTING_NOT_GRANTED",
    /// There is no such user.
    UserNotFound = "USER_NOT_FOUND",
    /// There is no such organization.
    OrganizationNotFound = "ORGANIZATION_NOT_FOUND",
    /// The user is not a member.
    MembershipNotFound = "MEMBERSHIP_NOT_FOUND",
    /// No user has the e-mail address.
    EmailNotFound = "EMAIL_NOT_FOUND",
    /// Another user has the e-mail address.
    EmailAlreadyExists = "EMAIL_ALREADY_EXISTS",
    /// The user's name is taken.
    UserAlreadyExists = "USER_ALREADY_EXISTS",
    /// The organization's name is taken.
    OrganizationAlreadyExists = "ORGANIZATION_ALREADY_EXISTS",
    /// The user is a member already.
    MembershipAlreadyExists = "MEMBERSHIP_ALREADY_EXISTS",
    /// The acting user may not do this.
    NotPermitted = "NOT_PERMITTED",
    /// The organization would be left without an Owner.
    LastOwner = "LAST_OWNER",
    /// The user who was to become Owner is suspended.
    NewOwnerSuspended = "NEW_OWNER_SUSPENDED",
    /// Nothing was changed: the resource is of another version.
    EtagMismatch = "ETAG_MISMATCH",
    /// Another request has the same name.
    RequestIdReused = "REQUEST_ID_REUSED",
    /// Changes after the cursor are not kept any more, or may have been missed.
    CursorExpired = "CURSOR_EXPIRED",
    /// No replica follows the table's stream.
    ChangesNotFollowed = "CHANGES_NOT_FOLLOWED",
    /// Too many watch changes in this replica.
    TooManyWatchers = "TOO_MANY_WATCHERS",
    /// Changes were not taken in time.
    SlowConsumer = "SLOW_CONSUMER",
    /// This replica stops.
    Stopping = "STOPPING",
    /// Nothing was changed: stale answers could not have been ruled out.
    CacheUnavailable = "CACHE_UNAVAILABLE",
    /// Applied, but cached answers may be older for a while.
    AppliedNotConfirmed = "APPLIED_NOT_CONFIRMED",
    /// The table did not say whether the write was applied.
    OutcomeUnknown = "OUTCOME_UNKNOWN",
    /// Nothing was changed: others changed the same records.
    Contention = "CONTENTION",
    /// Nothing was done: too much is under way.
    Overloaded = "OVERLOADED",
    /// The table cannot be reached.
    StoreUnavailable = "STORE_UNAVAILABLE",
    /// The table sheds load.
    StoreThrottled = "STORE_THROTTLED",
    /// The table lacks an index.
    IndexMissing = "INDEX_MISSING",
    /// The table holds an item that is no record of its kind.
    MalformedItem = "MALFORMED_ITEM",
    /// The deadline passed.
    DeadlineExceeded = "DEADLINE_EXCEEDED",
    /// A bug of the service.
    Internal = "INTERNAL",
}

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

/// The status of a call that did not pass the authorizer: the server is put together
/// wrongly.
pub(super) fn no_caller() -> Status {
    plain(
        Code::Internal,
        Reason::Internal,
        "the call did not pass the authorizer",
    )
}

/// The status of a call on behalf of somebody for whom the caller may not act.
pub(super) fn may_not_act(caller: &Caller, rpc: &str) -> Status {
    if let Some(suppressed) = REFUSALS_OF_KNOWN.pass() {
        let name = caller.name.as_ref().map(tracing::field::display);
        tracing::warn!(
            name,
            rpc,
            suppressed,
            "a caller may not act on behalf of whom it named"
        );
    }
    plain(
        Code::PermissionDenied,
        Reason::ActingNotGranted,
        "the caller may not act on behalf of whom the request names",
    )
}

/// Whether a call with an unknown outcome may be repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Repetition {
    /// It may: a read, or a write with a `request_id`, has its effect once.
    Safe,
    /// It may not: a write without a `request_id` could have its effect twice, or fail because
    /// of its first effect.
    Unsafe,
}

/// The status of a failed use case of a call that may be sent again as
/// `repetition` says.
pub(super) fn of(error: Error, repetition: Repetition) -> Status {
    match error {
        Error::Refused(refusal) => refused(refusal),
        Error::Store(error) => store_failed(&error),
        Error::CacheUnavailable => retry(
            Reason::CacheUnavailable,
            "nothing was changed: the cache is unavailable, so stale answers could not be ruled out",
            RETRY_LATER,
        ),
        Error::NotConfirmed => perhaps_applied(
            Reason::AppliedNotConfirmed,
            "the write was applied, but cached answers may be older than it for a while",
            repetition,
        ),
        Error::OutcomeUnknown(error) => {
            tracing::error!(%error, "outcome of a write unknown");
            perhaps_applied(
                Reason::OutcomeUnknown,
                "the table did not say whether the write was applied; read before retrying",
                repetition,
            )
        }
        Error::Contention => retry(
            Reason::Contention,
            "nothing was changed: others keep changing the same records",
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
            tracing::error!("a write's task ended without an answer");
            plain(
                Code::Internal,
                Reason::Internal,
                "the write was interrupted",
            )
        }
    }
}

/// The call got no permit in time.
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

/// The text, or its beginning: what a request says is echoed within bounds, as clients
/// bound the metadata that they take.
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

/// A status with a reason and nothing else.
pub(super) fn plain(code: Code, reason: Reason, message: &str) -> Status {
    Status::with_error_details(code, message, info(reason, &[]))
}

fn refused(refusal: Refusal) -> Status {
    match refusal {
        Refusal::UserExists(username) => resource(
            Code::AlreadyExists,
            Reason::UserAlreadyExists,
            "User",
            username.to_string(),
        ),
        Refusal::OrganizationExists(name) => resource(
            Code::AlreadyExists,
            Reason::OrganizationAlreadyExists,
            "Organization",
            name.to_string(),
        ),
        Refusal::MembershipExists(organization, member) => resource(
            Code::AlreadyExists,
            Reason::MembershipAlreadyExists,
            "Membership",
            membership_name(&organization, &member),
        ),
        Refusal::UserNotFound(username) => resource(
            Code::NotFound,
            Reason::UserNotFound,
            "User",
            username.to_string(),
        ),
        Refusal::OrganizationNotFound(name) => resource(
            Code::NotFound,
            Reason::OrganizationNotFound,
            "Organization",
            name.to_string(),
        ),
        Refusal::MembershipNotFound(organization, member) => resource(
            Code::NotFound,
            Reason::MembershipNotFound,
            "Membership",
            membership_name(&organization, &member),
        ),
        Refusal::EmailExists => plain(
            Code::AlreadyExists,
            Reason::EmailAlreadyExists,
            "another user has this e-mail address",
        ),
        Refusal::EmailNotFound => plain(
            Code::NotFound,
            Reason::EmailNotFound,
            "no user has this e-mail address",
        ),
        Refusal::InvalidUser(field, why) => invalid_field(format!("user.{field}"), why),
        Refusal::InvalidOrganization(field, why) => {
            invalid_field(format!("organization.{field}"), why)
        }
        Refusal::NewOwnerSuspended(username) => {
            let mut details = info(
                Reason::NewOwnerSuspended,
                &[("username", username.as_str())],
            );
            details.add_precondition_failure_violation(
                Reason::NewOwnerSuspended.as_str(),
                username.to_string(),
                "an organization keeps at least one Owner who can act",
            );
            Status::with_error_details(
                Code::FailedPrecondition,
                "the new Owner is suspended: the organization would be left without an Owner who can act",
                details,
            )
        }
        Refusal::NotPermitted => plain(
            Code::PermissionDenied,
            Reason::NotPermitted,
            "the acting user may not do this in this organization, or there is no such organization",
        ),
        Refusal::EtagMismatch => plain(
            Code::Aborted,
            Reason::EtagMismatch,
            "the resource is of another version than the etag names; read it again",
        ),
        Refusal::RequestIdReused => {
            let why = "another request had this id";
            field(Reason::RequestIdReused, "request_id", why.to_owned())
        }
        Refusal::NoPageToken => invalid_field("page_token", NoPageToken.to_string()),
        Refusal::LastOwner(organization) => {
            let mut details = info(
                Reason::LastOwner,
                &[("organization_name", organization.as_str())],
            );
            details.add_precondition_failure_violation(
                Reason::LastOwner.as_str(),
                organization.to_string(),
                "an organization keeps at least one Owner",
            );
            Status::with_error_details(
                Code::FailedPrecondition,
                "the last Owner can neither leave nor be demoted nor removed",
                details,
            )
        }
    }
}

/// The status of a watch that ended.
pub(super) fn watch_failed(error: WatchError) -> Status {
    match error {
        WatchError::Expired => plain(
            Code::OutOfRange,
            Reason::CursorExpired,
            "changes after the cursor are not kept any more, or may have been missed; \
             read what you need anew and watch from now on",
        ),
        WatchError::NotFollowed => retry(
            Reason::ChangesNotFollowed,
            "no replica follows the table's stream",
            RETRY_LATER,
        ),
        WatchError::Store(error) => store_failed(&error),
    }
}

/// The replica, or the caller, has as many WatchChanges streams as it may.
pub(super) fn too_many_watchers() -> Status {
    retry(
        Reason::TooManyWatchers,
        "too many WatchChanges streams are open in this replica, or of this caller",
        RETRY_LATER,
    )
}

/// The replica, or the connection, has as many health checks by Watch as it may.
pub(super) fn too_many_health_watches() -> Status {
    retry(
        Reason::TooManyWatchers,
        "too many health checks by Watch are open in this replica, or on this connection",
        RETRY_LATER,
    )
}

/// The records that were asked for are too large together.
pub(super) fn response_too_large() -> Status {
    plain(
        Code::ResourceExhausted,
        Reason::ResponseTooLarge,
        "the records are too large for one answer; ask for fewer of them at once",
    )
}

/// The replica, or the connection, has as many reflection streams as it may.
pub(super) fn too_many_reflections() -> Status {
    retry(
        Reason::Overloaded,
        "nothing was done: too many reflection streams are open in this replica, or on this connection",
        RETRY_LATER,
    )
}

/// The call's metadata is larger than it may be.
pub(super) fn metadata_too_large(most: usize) -> Status {
    plain(
        Code::ResourceExhausted,
        Reason::MessageTooLarge,
        &format!("the call's metadata is larger than {most} bytes"),
    )
}

/// The caller has as many connections as it may.
pub(super) fn too_many_connections() -> Status {
    retry(
        Reason::Overloaded,
        "nothing was done: too many connections are open in this replica",
        RETRY_LATER,
    )
}

/// The stream ends because the replica does.
pub(super) fn stopping() -> Status {
    retry(
        Reason::Stopping,
        "this replica stops; go on with another one after the last cursor",
        RETRY_SOON,
    )
}

/// The stream ends because its caller's credentials have expired.
pub(super) fn expired() -> Status {
    plain(
        Code::Unauthenticated,
        Reason::InvalidCredentials,
        "the call's credentials have expired; go on after the last cursor with new ones",
    )
}

/// The stream ends because its connection is to.
pub(super) fn long_enough() -> Status {
    retry(
        Reason::Stopping,
        "the stream has lasted as long as a connection may; go on after the last cursor",
        Duration::ZERO,
    )
}

fn store_failed(error: &store::Error) -> Status {
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
        ErrorKind::Throttled => retry(Reason::StoreThrottled, "the table sheds load", RETRY_LATER),
        // Told by a metric: a line for each would make things worse.
        ErrorKind::Crowded => retry(
            Reason::Overloaded,
            "too many reads wait for the table in this replica",
            RETRY_SOON,
        ),
        ErrorKind::Malformed => plain(
            Code::DataLoss,
            Reason::MalformedItem,
            "the table holds an item that is no record of its kind",
        ),
    }
}

/// The name of a membership as a resource: the names of the organization and of the
/// member. `/` stands between them, and is `%2F` within the organization's.
fn membership_name(organization: &OrganizationName, member: &Username) -> String {
    let organization = organization.as_str();
    if organization.contains('/') {
        let organization = organization.replace('%', "%25").replace('/', "%2F");
        return format!("{organization}/{member}");
    }
    format!("{organization}/{member}")
}

fn resource(code: Code, reason: Reason, kind: &str, name: String) -> Status {
    let verb = match code {
        Code::AlreadyExists => "exists already",
        _ => "does not exist",
    };
    let message = format!("{} {name:?} {verb}", kind.to_lowercase());
    let mut details = info(reason, &[]);
    details.set_resource_info(format!("{DOMAIN}.{kind}"), name, "", message.clone());
    Status::with_error_details(code, message, details)
}

/// The write was applied, or may have been. Without a `request_id`, a retry of it
/// could meet its own effect: gRPC libraries are told not to retry by themselves.
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
    // What the retry policies of gRPC libraries heed, which know no details.
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
