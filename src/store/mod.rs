//! The store: strongly consistent reads and conditional transactions over one table. It stores
//! records, and does not decide on permissions.

mod dynamodb;
pub(crate) mod item;
mod keys;
mod log_head;

use std::{collections::BTreeMap, error::Error as StdError, sync::Arc, time::Duration};

use async_trait::async_trait;

pub use dynamodb::{
    ATTEMPT_TIMEOUT, Created, DynamoDb, Finding, Findings, OPERATION_TIMEOUT, TableSettings,
};
pub use keys::{INVERTED_INDEX, LIST_INDEX, OWNER_INDEX, PARTITION_KEY, SORT_KEY, key_of_item};
pub use log_head::{LOG_REGISTER, LogHead};

use crate::domain::{
    ChangeKind, CountUpdate, Digest, Erasure, ExpireTime, Key, Made, MemberCounts, Membership,
    OrganizationName, Orphans, ProfileId, ProfileName, Record, RecordChange, Request, Timestamp,
    UniqueValue, Username,
};

/// Most keys of one request to the table: DynamoDB's limit of a BatchGetItem.
pub const READ_MAX_KEYS: usize = 100;
/// Most concurrent requests to the table of one read.
pub const READS_AT_ONCE: usize = 4;

/// Most users that [`DynamoDb::owner_hints`] returns.
pub const OWNER_HINTS: u16 = 25;

/// The claim of a unique value, as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredClaim {
    /// The holder of the value.
    pub claim: ProfileId,
    /// Identity of the change that wrote the claim. `None` if another writer did.
    pub change_id: Option<String>,
}

/// The stored outcome of a request, kept for at least [`REQUEST_RETENTION`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredOutcome {
    /// Digest of the request.
    pub fingerprint: Digest,
    /// The records of its response.
    pub outcome: Vec<Record>,
}

/// Least time that the outcome of a request is kept.
pub const REQUEST_RETENTION: Duration = Duration::from_secs(24 * 3600);

/// Registers: small items that replicas share, changed by compare-and-swap.
#[async_trait]
pub trait Registers: Send + Sync {
    /// A unique identity of the table. A table that is deleted and created again has a new
    /// identity.
    ///
    /// # Errors
    /// The table does not exist, has other keys, or may not be described.
    async fn table_identity(&self) -> Result<String, Error>;

    /// Reads a register, strongly consistently.
    ///
    /// # Errors
    /// The table could not be read, or the item is not a register.
    async fn read_register(&self, name: &str) -> Result<Option<Register>, Error>;

    /// Writes a register if it is still at the version `found`, or still absent. Returns its new
    /// version. `None`: the register has changed, or this write was applied and its response was
    /// lost. A read shows which.
    ///
    /// # Errors
    /// No response: the register may be written, now or later.
    async fn swap_register(
        &self,
        name: &str,
        found: Option<u64>,
        values: &BTreeMap<String, String>,
    ) -> Result<Option<u64>, Error>;
}

/// The content of a register.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Register {
    /// Grows with every write. A register that is deleted and created again starts beyond its
    /// earlier versions.
    pub version: u64,
    /// The values by name.
    pub values: BTreeMap<String, String>,
}

/// A list of all records of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProfileKind {
    /// All users.
    Users,
    /// All organizations.
    Organizations,
}

/// A part of a list.
#[derive(Debug, Clone, Copy)]
pub struct Slice<'a> {
    /// The end of the page before. `None`: the first page.
    pub after: Option<&'a ListPosition>,
    /// Most entries.
    pub limit: u16,
}

/// A position in a list, opaque to other modules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListPosition(pub String);

impl ListPosition {
    /// The position after this organization in the list of a user's organizations.
    #[must_use]
    pub fn of_organization(organization: &OrganizationName) -> Self {
        Self(keys::members_of(organization))
    }
}

/// A page of a list.
#[derive(Debug)]
pub struct ListPage<T> {
    /// The entries.
    pub found: Vec<T>,
    /// The end of the page. `None` at the end of the list.
    pub next: Option<ListPosition>,
}

/// Identity of a log. If changes may have been missed, a new log begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogId(pub String);

/// A deletion that this service made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deletion {
    /// Its time.
    pub time: Option<Timestamp>,
    /// Its origin.
    pub made: Made,
}

/// Retention of the change log.
pub const LOG_RETENTION: Duration = Duration::from_secs(7 * 24 * 3600);
/// Most changes that are appended together. Each takes up to six of the 100 items of a transaction
/// (the change, an end in the schedule, the counts of two incarnations of a user and of an
/// organization), and the checkpoint takes one.
pub const MAX_APPENDED: usize = 16;
/// Retention of the counts of a deleted user or organization. Its orphans are removed sooner.
const COUNT_RETENTION: Duration = Duration::from_secs(30 * 24 * 3600);

/// Changes to append to a log.
#[derive(Debug, Clone, Copy)]
pub struct LogPage<'a> {
    /// The number of the first change.
    pub first: u64,
    /// At most [`MAX_APPENDED`] changes.
    pub changes: &'a [RecordChange],
    /// Ends that have passed, to remove from the schedule.
    pub passed: &'a [ScheduledEnd],
    /// The updates of counts, each of another incarnation.
    pub counts: &'a [CountUpdate],
}

/// The counts of an incarnation, as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredCounts {
    /// The counts.
    pub counts: MemberCounts,
    /// The number of the last change that they include.
    pub as_of: u64,
    /// The log in which all memberships of the incarnation are counted. `None`: some are not.
    pub complete_in: Option<LogId>,
}

/// The end of a membership, as scheduled.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ScheduledEnd {
    /// The end. One before 1970, of another writer, is scheduled for 1970.
    pub expire_time: ExpireTime,
    /// The organization.
    pub organization_name: OrganizationName,
    /// The member.
    pub member_username: Username,
}

impl ScheduledEnd {
    /// The end of a membership, if it has one.
    #[must_use]
    pub fn of(membership: &Membership) -> Option<Self> {
        let ExpireTime(second) = membership.expire_time?;
        Some(Self {
            expire_time: ExpireTime(second.max(0)),
            organization_name: membership.organization_name.clone(),
            member_username: membership.member_username.clone(),
        })
    }

    /// The end of the membership before a change.
    #[must_use]
    pub fn before(change: &RecordChange) -> Option<Self> {
        Self::of_record(change.before.as_ref())
    }

    /// The end that a change of a membership sets. `None`: the end was the same before. It may have
    /// passed already, and must not be scheduled again.
    #[must_use]
    pub fn set_by(change: &RecordChange) -> Option<Self> {
        Self::of_record(change.after.as_ref())
            .filter(|end| Self::before(change).as_ref() != Some(end))
    }

    fn of_record(record: Option<&Record>) -> Option<Self> {
        match record {
            Some(Record::Membership(membership)) => Self::of(membership),
            _ => None,
        }
    }

    /// The key of the membership.
    #[must_use]
    pub fn key(&self) -> Key {
        Key::Membership(self.organization_name.clone(), self.member_username.clone())
    }
}

/// The purge of a deleted user or organization, as scheduled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScheduledPurge {
    /// The time of the purge, rounded up to whole seconds.
    pub second: i64,
    /// The user or the organization.
    pub name: ProfileName,
}

impl ScheduledPurge {
    /// The purge of a user or an organization that can be undeleted. `None` for other records.
    #[must_use]
    pub fn of(record: &Record) -> Option<Self> {
        let Timestamp(millis) = record.deletion()?.purge_time()?;
        Some(Self {
            second: millis.saturating_add(999).div_euclid(1000).max(0),
            name: record.profile_name()?,
        })
    }
}

/// An erasure that is not done.
#[derive(Debug, Clone)]
pub struct RunningErasure {
    /// The erasure.
    pub erasure: Erasure,
    /// The last item that was examined.
    pub position: Option<ErasurePosition>,
    /// The version of its item. It grows with each write.
    pub version: u64,
}

/// The last item that an erasure has examined: a partition key and a sort key, or a log and a number.
#[derive(Debug, Clone)]
pub struct ErasurePosition(pub String, pub String);

/// A page of the table, as an erasure examines it.
#[derive(Debug)]
pub struct ScannedPage {
    /// The number of its items.
    pub examined: u64,
    /// Records that mention the name.
    pub records: Vec<Key>,
    /// Other items that mention the name.
    pub others: Vec<ScannedItem>,
    /// The end of the page. `None` at the end of the table.
    pub next: Option<ErasurePosition>,
}

/// An item that is not a record, such as the outcome of a request.
#[derive(Debug)]
pub struct ScannedItem {
    pub(crate) key: (String, String),
    pub(crate) mention: Mention,
}

/// The way in which an item that is not a record names a user.
#[derive(Debug)]
pub(crate) enum Mention {
    /// By its values: the actor of the change that wrote it, or the records of the response to a request.
    Values {
        actor: Option<Username>,
        outcome: Option<Vec<Record>>,
    },
    /// As the counts of an earlier incarnation, which nothing needs any more.
    Counts,
}

/// A part of a change log that was rewritten.
#[derive(Debug)]
pub struct RewrittenLog {
    /// The number of the last change of the part.
    pub last: u64,
    /// The number of changes that were rewritten.
    pub changed: u64,
}

/// Identity of a stream. A stream that is turned off and on has a new identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamId(pub String);

/// Identity of a shard.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(pub String);

/// A cursor in a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardIterator(pub String);

/// A shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shard {
    /// Its identity.
    pub id: ShardId,
    /// The shard that precedes this one.
    pub parent: Option<ShardId>,
}

/// The start of reading a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Position {
    /// At the oldest change that is kept, for 24 hours.
    Oldest,
    /// After the change with this sequence number.
    After(String),
}

/// Changes of a shard.
#[derive(Debug, Clone)]
pub struct StreamPage {
    /// The changes, in order.
    pub changes: Vec<Changed>,
    /// The cursor of the next page. `None` at the end of a closed shard.
    pub next: Option<ShardIterator>,
}

/// A change.
#[derive(Debug, Clone)]
pub struct Changed {
    /// Its position in the shard.
    pub sequence: String,
    /// Its approximate time, by DynamoDB's clock or as stored in a tombstone.
    pub time: Option<Timestamp>,
    /// The changed record. `None` for items that are not records.
    pub record: Option<ChangedRecord>,
}

/// A changed record.
#[derive(Debug, Clone)]
pub struct ChangedRecord {
    /// Its key.
    pub key: Key,
    /// The kind of the change.
    pub kind: ChangeKind,
    /// The record before, if the stream includes it.
    pub before: Option<Record>,
    /// The origin of the record or tombstone after the change. `None` if another writer wrote it,
    /// or if there is none.
    pub made: Option<Made>,
    /// The state after the change.
    pub left: StateAfter,
}

/// The state of a key after a change.
#[expect(clippy::large_enum_variant, reason = "most states are records")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StateAfter {
    /// This record.
    Record(Record),
    /// No record.
    Nothing,
    /// The stream does not include it.
    Unknown,
}

/// Reason why a stream could not be read.
#[derive(Debug)]
pub enum StreamError {
    /// The requested changes are no longer kept.
    Trimmed,
    /// The cursor is too old.
    Expired,
    /// The stream or the shard no longer exists.
    Gone,
    /// The stream could not be read.
    Store(Error),
}

/// One step of a transaction. `found` is the result of a strong read. If it no longer holds, the
/// transaction fails as [`CommitError::Stale`].
#[derive(Debug, Clone)]
pub enum Step {
    /// Requires that the facts of a decision still hold: the record exists in the same incarnation
    /// and state, or as a membership of the same incarnations with the same role and time of expiry,
    /// which does not expire before the transaction has ended; or there is still no such record.
    Require {
        /// The record.
        key: Key,
        /// The record as it was read.
        found: Option<Record>,
    },
    /// Requires exactly the record that was found, in all its attributes.
    RequireVersion {
        /// The record as it was read.
        found: Record,
    },
    /// Writes a new record. It replaces exactly what was found: no record, or the record of an
    /// earlier incarnation of its names.
    Create {
        /// The new record.
        record: Record,
        /// The replaced record.
        found: Option<Record>,
    },
    /// Changes exactly the record that was found. Attributes that are equal in the two records stay
    /// unchanged, and unknown attributes, too.
    Update {
        /// The record before.
        found: Record,
        /// The record after.
        record: Record,
    },
    /// Deletes exactly the record that was found. A user or an organization leaves a tombstone.
    /// Until [`DynamoDb::free_name`], the name stays taken for writers that would not give it a new
    /// uid.
    Delete {
        /// The record as it was read.
        found: Record,
    },
    /// Assigns or releases a unique value, over exactly the claim that was found.
    Claim {
        /// The value.
        value: UniqueValue,
        /// The claim of the new holder. `None` releases the value.
        claim: Option<ProfileId>,
        /// The replaced claim, in exactly this version.
        found: Option<StoredClaim>,
    },
    /// Adds the task to remove the orphans of a deletion.
    CleanUp(Orphans),
    /// Schedules the purge of a deleted user or organization.
    Schedule(ScheduledPurge),
    /// Removes a purge from the schedule.
    Unschedule(ScheduledPurge),
    /// Begins an erasure.
    Erase(Erasure),
    /// Stores the outcome of a request that has no stored outcome yet.
    StoreOutcome {
        /// The request.
        request: Request,
        /// The records of its response.
        outcome: Vec<Record>,
    },
}

impl Step {
    /// The key of the step's record. `None`: the step is not about a record.
    #[must_use]
    pub fn key(&self) -> Option<Key> {
        match self {
            Self::Require { key, .. } => Some(key.clone()),
            Self::Create { record, .. } | Self::Update { record, .. } => Some(record.key()),
            Self::RequireVersion { found } | Self::Delete { found } => Some(found.key()),
            Self::Claim { .. }
            | Self::CleanUp(_)
            | Self::Schedule(_)
            | Self::Unschedule(_)
            | Self::Erase(_)
            | Self::StoreOutcome { .. } => None,
        }
    }
}

/// The kind of an error of the table, for callers to branch on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The table is unreachable, or did not respond in time.
    Unavailable,
    /// The table sheds load.
    Throttled,
    /// Too many reads wait for the table already: no request was sent.
    Crowded,
    /// There is no such table.
    Missing,
    /// The table lacks an index.
    NoIndex,
    /// The table has other keys, or may not be used.
    Unusable,
    /// The table holds an item that is not of the expected kind.
    Malformed,
}

impl ErrorKind {
    /// Whether a retry may succeed.
    #[must_use]
    pub fn is_transient(self) -> bool {
        matches!(self, Self::Unavailable | Self::Throttled | Self::Crowded)
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Unavailable => "the table is unavailable",
            Self::Throttled => "the table sheds load",
            Self::Crowded => "too many reads wait for the table",
            Self::Missing => "there is no such table",
            Self::NoIndex => "the table lacks an index",
            Self::Unusable => "the table is unusable",
            Self::Malformed => "the table holds a malformed item",
        }
    }
}

/// A failed table operation.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{}: {source}", .kind.as_str())]
pub struct Error {
    /// The kind.
    pub kind: ErrorKind,
    /// The details, for operators.
    pub source: Arc<dyn StdError + Send + Sync>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self {
            kind,
            source: Arc::from(source.into()),
        }
    }
}

/// Reason why a transaction was not acknowledged.
#[derive(Debug)]
pub enum CommitError {
    /// Nothing was changed: a record has changed since it was read.
    Stale,
    /// Nothing was changed: another transaction holds one of the items.
    Conflict,
    /// Nothing was changed: the table rejected the transaction, or was unreachable.
    NotApplied(Error),
    /// The table did not report whether the transaction was applied.
    OutcomeUnknown(Error),
}
