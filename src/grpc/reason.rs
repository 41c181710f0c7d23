//! The reasons of failed calls: stable names for callers to branch on.

/// Domain of every `google.rpc.ErrorInfo`.
pub const DOMAIN: &str = "account.v1";

macro_rules! reasons {
    ($($(#[$doc:meta])+ $name:ident = $text:literal,)+) => {
        /// The reason why a call failed, stable for callers to branch on.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Reason {
            $($(#[$doc])+ $name,)+
        }

        impl Reason {
            /// Every reason.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// The reason in `google.rpc.ErrorInfo`.
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
    /// The body is not a message of the method's request type.
    MalformedMessage = "MALFORMED_MESSAGE",
    /// The request is larger than the server accepts.
    MessageTooLarge = "MESSAGE_TOO_LARGE",
    /// The response would be larger than clients accept.
    ResponseTooLarge = "RESPONSE_TOO_LARGE",
    /// The compression of the request is not accepted.
    UnsupportedCompression = "UNSUPPORTED_COMPRESSION",
    /// There is no such method.
    UnknownMethod = "UNKNOWN_METHOD",
    /// The call has no credentials.
    NoCredentials = "NO_CREDENTIALS",
    /// The credentials of the call are not valid.
    InvalidCredentials = "INVALID_CREDENTIALS",
    /// The keys that verify tokens could not be read yet.
    KeysUnavailable = "KEYS_UNAVAILABLE",
    /// The caller may not call this method.
    MethodNotGranted = "METHOD_NOT_GRANTED",
    /// The caller may not act on behalf of this user, or of the platform.
    ActingNotGranted = "ACTING_NOT_GRANTED",
    /// The caller may neither read nor change this organization.
    OrganizationNotGranted = "ORGANIZATION_NOT_GRANTED",
    /// There is no such user.
    UserNotFound = "USER_NOT_FOUND",
    /// There is no such organization.
    OrganizationNotFound = "ORGANIZATION_NOT_FOUND",
    /// The user is not a member.
    MembershipNotFound = "MEMBERSHIP_NOT_FOUND",
    /// There is no such erasure.
    ErasureNotFound = "ERASURE_NOT_FOUND",
    /// No user has the e-mail address.
    EmailNotFound = "EMAIL_NOT_FOUND",
    /// Another user has the e-mail address.
    EmailAlreadyExists = "EMAIL_ALREADY_EXISTS",
    /// No user or organization has the external id.
    ExternalIdNotFound = "EXTERNAL_ID_NOT_FOUND",
    /// Another user or organization has the external id.
    ExternalIdAlreadyExists = "EXTERNAL_ID_ALREADY_EXISTS",
    /// No user or organization has the uid.
    UidNotFound = "UID_NOT_FOUND",
    /// Not all memberships of the user or the organization are counted.
    CountIncomplete = "COUNT_INCOMPLETE",
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
    /// Nothing was changed: the user is an Owner of too many organizations to check them all.
    TooManyOrganizations = "TOO_MANY_ORGANIZATIONS",
    /// The new Owner is suspended.
    NewOwnerSuspended = "NEW_OWNER_SUSPENDED",
    /// Nothing was changed: the resource has another version.
    EtagMismatch = "ETAG_MISMATCH",
    /// Another request had the same `request_id`.
    RequestIdReused = "REQUEST_ID_REUSED",
    /// Changes after the cursor are no longer kept, or may have been missed.
    CursorExpired = "CURSOR_EXPIRED",
    /// No replica follows the table's stream.
    ChangesNotFollowed = "CHANGES_NOT_FOLLOWED",
    /// Too many watch streams are open.
    TooManyWatchers = "TOO_MANY_WATCHERS",
    /// The client did not receive changes in time.
    SlowConsumer = "SLOW_CONSUMER",
    /// This replica stops.
    Stopping = "STOPPING",
    /// Nothing was changed: stale reads could not be ruled out.
    CacheUnavailable = "CACHE_UNAVAILABLE",
    /// The write was applied, but reads may return older records for a while.
    AppliedNotConfirmed = "APPLIED_NOT_CONFIRMED",
    /// The table did not report whether the write was applied.
    OutcomeUnknown = "OUTCOME_UNKNOWN",
    /// Nothing was changed: other writes changed the same records.
    Contention = "CONTENTION",
    /// Nothing was done: this replica has reached a limit.
    Overloaded = "OVERLOADED",
    /// The table is unreachable or unusable.
    StoreUnavailable = "STORE_UNAVAILABLE",
    /// The table throttles requests.
    StoreThrottled = "STORE_THROTTLED",
    /// The table lacks an index.
    IndexMissing = "INDEX_MISSING",
    /// The table holds a malformed item.
    MalformedItem = "MALFORMED_ITEM",
    /// The deadline passed.
    DeadlineExceeded = "DEADLINE_EXCEEDED",
    /// A bug of the service.
    Internal = "INTERNAL",
}
