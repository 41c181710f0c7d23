//! The store: strongly consistent reads and conditional transactions over one table. It
//! knows records, not who may change them.

mod dynamodb;
mod item;
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
    ChangeKind, Digest, Email, EmailClaim, Key, Made, Orphans, Record, Request, Timestamp,
};

/// Most keys that one request to the table reads: those of a BatchGetItem, a limit
/// of DynamoDB.
pub const READ_MAX_KEYS: usize = 100;
/// Requests to the table of one read that are under way at once.
pub const READS_AT_ONCE: usize = 4;

/// Most users that [`DynamoDb::owner_hints`] returns.
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

/// A position in a list, opaque to other modules.
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
    /// [`DynamoDb::free_name`].
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
