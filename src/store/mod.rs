//! The store: strongly consistent reads and conditional transactions over one table. It
//! knows records, not who may change them.

mod dynamodb;
mod item;
mod keys;

use std::{collections::BTreeMap, error::Error as StdError, sync::Arc, time::Duration};

use async_trait::async_trait;

pub use dynamodb::{
    ATTEMPT_TIMEOUT, Created, DynamoDb, DynamoDbStream, Finding, Findings, OPERATION_TIMEOUT,
    TableSettings,
};
pub use keys::{INVERTED_INDEX, LIST_INDEX, OWNER_INDEX, PARTITION_KEY, SORT_KEY, key_of_item};

use crate::domain::{
    ChangeKind, Digest, Email, EmailClaim, Etag, Key, Made, Membership, OrganizationName, Origin,
    Orphans, Record, RecordChange, Request, Timestamp, Username,
};

/// Most keys that one request to the table reads: those of a BatchGetItem, a limit
/// of DynamoDB.
pub const READ_MAX_KEYS: usize = 100;
/// Requests to the table of one read that are under way at once.
pub const READS_AT_ONCE: usize = 4;

/// Reads that may guard a write: they reflect every committed change, and use no cache.
#[async_trait]
pub trait StrongReads: Send + Sync {
    /// Returns the record of each key, in the order of the keys. `None`: no such record. Each
    /// record is as of an instant during the call. Together they are no snapshot.
    ///
    /// # Errors
    /// The table could not be read.
    async fn read_strong(&self, keys: &[Key]) -> Result<Vec<Option<Record>>, Error>;

    /// Returns at most [`OWNER_HINTS`] users who were Owners of the organization moments ago,
    /// by an index: candidates to read first. Empty if the table lacks the index.
    ///
    /// # Errors
    /// As [`Self::read_strong`].
    async fn owner_hints(&self, organization: &OrganizationName) -> Result<Vec<Username>, Error>;

    /// Returns a page of the users whose memberships have the role Owner, deleted users
    /// included. The pages read the whole partition of the organization, up to 1 MB each.
    ///
    /// # Errors
    /// As [`Self::read_strong`].
    async fn owners(
        &self,
        organization: &OrganizationName,
        after: Option<&ListPosition>,
    ) -> Result<Listed<Username>, Error>;

    /// Returns the claim of an e-mail address.
    ///
    /// # Errors
    /// The table could not be read, or the item says nothing of the kind.
    async fn email_claim(&self, email: &Email) -> Result<Option<StoredClaim>, Error>;

    /// Returns what is remembered of a request, see [`Step::Remember`].
    ///
    /// # Errors
    /// The table could not be read, or the item says nothing of the kind.
    async fn remembered(&self, request: &Request) -> Result<Option<Remembered>, Error>;
}

/// Most users that [`StrongReads::owner_hints`] returns.
pub const OWNER_HINTS: usize = 25;

/// The claim of an e-mail address, as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredClaim {
    /// The holder of the address.
    pub claim: EmailClaim,
    /// Identity of the change that wrote the claim. `None` if another writer did.
    pub change_id: Option<String>,
}

/// The stored outcome of a request, kept for at least [`REQUEST_RETENTION`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remembered {
    /// Digest of the request.
    pub fingerprint: Digest,
    /// The records of its response.
    pub outcome: Vec<Record>,
}

/// Least time that the outcome of a request is kept.
pub const REQUEST_RETENTION: Duration = Duration::from_secs(24 * 3600);

/// The table.
#[async_trait]
pub trait Store: StrongReads {
    /// Applies all steps or none, and stores their origin. At most 50 steps, each of another
    /// record.
    ///
    /// # Errors
    /// See [`CommitError`].
    async fn commit(&self, steps: &[Step], origin: &Origin) -> Result<(), CommitError>;
}

/// Registers: small items that replicas share, changed by compare-and-swap.
#[async_trait]
pub trait Registers: Send + Sync {
    /// A unique identity of the table. A table that is deleted and created again has another.
    ///
    /// # Errors
    /// The table does not exist, is not keyed as it has to be, or may not be
    /// described.
    async fn table_identity(&self) -> Result<String, Error>;

    /// Reads a register, strongly consistently.
    ///
    /// # Errors
    /// The table could not be read, or the item is no register.
    async fn read_register(&self, name: &str) -> Result<Option<Register>, Error>;

    /// Writes a register if it is still at the version `found`, or still absent. Returns its
    /// new version. `None`: it was not, or this write was applied and its response lost. A
    /// read decides.
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

/// The tasks of the orphan clean-up.
#[async_trait]
pub trait OrphanTasks: Send + Sync {
    /// A page of tasks. An item that is no task is an error.
    ///
    /// # Errors
    /// The table could not be read.
    async fn orphans(
        &self,
        after: Option<&ListPosition>,
    ) -> Result<Listed<Result<Orphans, Error>>, Error>;

    /// Removes the tombstone of this very deletion, if it is there still: other writers
    /// may take the name from now on.
    ///
    /// # Errors
    /// The table could not be written.
    async fn free_name(&self, orphans: &Orphans) -> Result<(), Error>;

    /// Removes the task.
    ///
    /// # Errors
    /// The table could not be written.
    async fn finish(&self, orphans: &Orphans) -> Result<(), Error>;
}

/// Lists, page by page. A page may have fewer entries than the limit, or none. A record that
/// is created or deleted meanwhile may be missing. Every other record is on exactly one page.
#[async_trait]
pub trait Lists: Send + Sync {
    /// The memberships of an organization by the member's name, strongly consistent,
    /// ineffective ones included.
    ///
    /// # Errors
    /// The table could not be read.
    async fn members(
        &self,
        organization: &OrganizationName,
        slice: Slice<'_>,
    ) -> Result<Listed<Membership>, Error>;

    /// The organizations of which a user was a member moments ago, by name.
    ///
    /// # Errors
    /// The index could not be read.
    async fn organizations_of(
        &self,
        user: &Username,
        slice: Slice<'_>,
    ) -> Result<Listed<OrganizationName>, Error>;

    /// All users, or all organizations, as of moments ago, in no particular order.
    ///
    /// # Errors
    /// The index could not be read.
    async fn directory(&self, directory: Directory, slice: Slice<'_>)
    -> Result<Listed<Key>, Error>;
}

/// A list of all records of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Directory {
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

/// A position in a list, opaque to other rooms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListPosition(pub String);

/// A page of a list.
#[derive(Debug)]
pub struct Listed<T> {
    /// The entries.
    pub found: Vec<T>,
    /// The end of the page. `None` at the end of the list.
    pub next: Option<ListPosition>,
}

/// The log of changes: what the table's stream told, numbered from 1 without
/// gaps, kept for [`LOG_RETENTION`].
#[async_trait]
pub trait ChangeLog: Send + Sync {
    /// Appends at most [`MAX_APPENDED`] changes, the first one with the number
    /// `first`, and writes a register with them, as
    /// [`Registers::swap_register`]: all or nothing.
    ///
    /// # Errors
    /// The table did not say: all may be written, now or later.
    async fn append(
        &self,
        log: &LogId,
        first: u64,
        changes: &[RecordChange],
        register: (&str, u64, &BTreeMap<String, String>),
    ) -> Result<Option<u64>, Error>;

    /// The next changes after a number, at most 100 of them, with their numbers.
    /// None, if there are none yet.
    ///
    /// # Errors
    /// The table could not be read.
    async fn read_log(&self, log: &LogId, after: u64) -> Result<Vec<(u64, RecordChange)>, Error>;

    /// The number of the oldest change that is kept, of those below `end`; `end`
    /// if there is none.
    ///
    /// # Errors
    /// The table could not be read.
    async fn oldest_kept(&self, log: &LogId, end: u64) -> Result<u64, Error>;

    /// How this service deleted these versions of records, if it was this
    /// service. For at most 100 versions.
    ///
    /// # Errors
    /// The table could not be read.
    async fn deletions(&self, deleted: &[(Key, Etag)]) -> Result<Vec<Option<Deletion>>, Error>;
}

/// Identity of a log. Where changes may have been missed, another one begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogId(pub String);

/// A deletion that this service made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deletion {
    /// When.
    pub time: Option<Timestamp>,
    /// How.
    pub made: Made,
}

/// How long the log of changes is kept.
pub const LOG_RETENTION: Duration = Duration::from_secs(7 * 24 * 3600);
/// Most changes that are appended together.
pub const MAX_APPENDED: usize = 50;

/// The table's stream: changes by all writers, in shards. Changes of one
/// record are in order along a shard and its descendants; shards come and go.
#[async_trait]
pub trait ChangeStream: Send + Sync {
    /// The stream that the table has now.
    ///
    /// # Errors
    /// The table could not be asked.
    async fn stream(&self) -> Result<Option<StreamId>, Error>;

    /// The shards that are listed now. Listings may lack one for a while.
    ///
    /// # Errors
    /// The stream could not be asked.
    async fn shards(&self, stream: &StreamId) -> Result<Vec<Shard>, StreamError>;

    /// A cursor at a position of a shard. Good for 15 minutes.
    ///
    /// # Errors
    /// See [`StreamError`].
    async fn cursor(
        &self,
        stream: &StreamId,
        shard: &ShardId,
        position: &Position,
    ) -> Result<ShardIterator, StreamError>;

    /// The changes from a cursor on, at most 1000.
    ///
    /// # Errors
    /// See [`StreamError`].
    async fn changes(&self, cursor: &ShardIterator) -> Result<StreamPage, StreamError>;
}

/// Identity of a stream. A stream that is turned off and on is another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamId(pub String);

/// Identity of a shard.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(pub String);

/// A place to go on from in a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardIterator(pub String);

/// A shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shard {
    /// Its identity.
    pub id: ShardId,
    /// The shard whose changes come before this one's.
    pub parent: Option<ShardId>,
}

/// Where to begin in a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Position {
    /// At the oldest change that is kept: 24 hours.
    Oldest,
    /// After the change with this sequence number.
    After(String),
}

/// Changes of a shard.
#[derive(Debug, Clone)]
pub struct StreamPage {
    /// The changes, in order.
    pub changes: Vec<Changed>,
    /// Where to go on; `None` at the end of a closed shard.
    pub next: Option<ShardIterator>,
}

/// A change.
#[derive(Debug, Clone)]
pub struct Changed {
    /// Where it is in the shard.
    pub sequence: String,
    /// About when it was made, by DynamoDB's clock.
    pub time: Option<Timestamp>,
    /// What was changed; `None` for items that are no records.
    pub record: Option<ChangedRecord>,
}

/// A changed record.
#[derive(Debug, Clone)]
pub struct ChangedRecord {
    /// Its key.
    pub key: Key,
    /// What became of it.
    pub kind: ChangeKind,
    /// The record before, if the stream includes it.
    pub before: Option<Record>,
    /// How this service wrote what is left, a tombstone included; `None` where it did
    /// not, and where nothing is left.
    pub made: Option<Made>,
    /// What the change left.
    pub left: Left,
}

/// What a change left under a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Left {
    /// This record.
    Record(Record),
    /// Nothing.
    Nothing,
    /// The stream does not tell.
    Unknown,
}

/// Why a stream could not be read.
#[derive(Debug)]
pub enum StreamError {
    /// What is wanted is not kept any more.
    Trimmed,
    /// The cursor is too old.
    Expired,
    /// There is no such stream or shard any more.
    Gone,
    /// The stream could not be asked.
    Store(Error),
}

/// One part of a transaction. `found` is what a strong read returned; the
/// transaction fails as [`CommitError::Stale`] where that no longer holds.
#[derive(Debug, Clone)]
pub enum Step {
    /// The facts on which a decision stands still hold: the record exists in
    /// the same incarnation and, for a membership, with the same role; or there
    /// is still no such record.
    Require {
        /// The record.
        key: Key,
        /// What it was.
        found: Option<Record>,
    },
    /// Write a new record whole. It takes the place of exactly what was found: of
    /// nothing, or of what an earlier incarnation of its names left.
    Create {
        /// The new record.
        record: Record,
        /// What it replaces.
        found: Option<Record>,
    },
    /// Change exactly what was found. Attributes in which the two records do not
    /// differ stay as they are, also those that this version does not know.
    Update {
        /// The record before.
        found: Record,
        /// The record after.
        record: Record,
    },
    /// Delete exactly what was found. A user or an organization leaves a tombstone: the
    /// name stays taken for writers that would give it no new identity, until
    /// [`OrphanTasks::free_name`].
    Delete {
        /// What it was.
        found: Record,
    },
    /// Say who has an e-mail address from now on, over exactly what was found.
    Claim {
        /// The address.
        email: Email,
        /// Who has it; nobody, if `None`.
        claim: Option<EmailClaim>,
        /// The claim that it replaces, of this very version.
        found: Option<StoredClaim>,
    },
    /// Have removed what a deletion leaves.
    CleanUp(Orphans),
    /// Remember a request, of which nothing was remembered yet.
    Remember {
        /// The request.
        request: Request,
        /// The records that its answer shows.
        outcome: Vec<Record>,
    },
}

/// What went wrong in the table, as far as callers care.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The table cannot be reached, or did not answer in time.
    Unavailable,
    /// The table sheds load.
    Throttled,
    /// Too many reads wait for the table already: it was not asked.
    Crowded,
    /// There is no such table.
    Missing,
    /// The table lacks an index.
    NoIndex,
    /// The table has other keys, or may not be used.
    Unusable,
    /// The table holds an item that is no record of its kind.
    Malformed,
}

impl ErrorKind {
    /// Whether waiting may mend it.
    #[must_use]
    pub fn may_pass(self) -> bool {
        matches!(self, Self::Unavailable | Self::Throttled | Self::Crowded)
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Unavailable => "the table is unavailable",
            Self::Throttled => "the table sheds load",
            Self::Crowded => "the table was not asked",
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
    /// What happened, for operators.
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

/// Why a transaction was not acknowledged.
#[derive(Debug)]
pub enum CommitError {
    /// Nothing was changed: something found before is no longer so.
    Stale,
    /// Nothing was changed: another transaction holds one of the items.
    Conflict,
    /// Nothing was changed: the table refused or could not be reached.
    NotApplied(Error),
    /// The table did not say whether the transaction was applied.
    OutcomeUnknown(Error),
}
