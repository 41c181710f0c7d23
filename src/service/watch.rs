//! Watching changes: the change log in order, from any position.

mod beats;
mod filter;

use std::{fmt, sync::Arc, time::Duration};

use futures_util::{FutureExt as _, future::BoxFuture};
use parking_lot::Mutex;
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep},
};

pub use self::filter::ChangeFilter;
use self::{
    beats::{Beats, Followed},
    filter::Interest,
};
use super::{Accounts, Freshness};
use crate::{
    coherence::ReadPath,
    domain::{InScope, Key, OrganizationName, Record, RecordChange, Username},
    store::{self, DynamoDb, LogHead, LogId},
    telemetry::WATCHERS,
};

/// Most changes of one response.
pub const MAX_CHANGES: usize = 25;
/// Concurrent reads of the log for all watchers, separate from the reads of callers, so that
/// neither delays the other.
const READS_AT_ONCE: usize = 8;
/// Interval of reading the log.
const POLL: Duration = Duration::from_millis(250);
/// Longest interval of responses without changes.
const PROGRESS: Duration = Duration::from_secs(10);
/// Longest wait for a beat of the stream's follower, if the time of the last beat is far from
/// this replica's clock. A follower beats every 2 s. The server waits 5 s for a response to
/// begin.
const BEAT_PATIENCE: Duration = Duration::from_secs(4);

/// The change log and its watchers.
pub struct ChangeLog {
    table: DynamoDb,
    reads: Semaphore,
    beats: Mutex<Option<Beats>>,
}

impl ChangeLog {
    /// The change log of a table. Does no I/O.
    pub(super) fn new(table: DynamoDb) -> Self {
        Self {
            table,
            reads: Semaphore::new(READS_AT_ONCE),
            beats: Mutex::default(),
        }
    }
}

/// A position in the log, between two changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    log: LogId,
    after: u64,
}

impl Cursor {
    pub(super) fn new(log: LogId, after: u64) -> Self {
        Self { log, after }
    }
}

/// The text is not a cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not a cursor of an earlier response")]
pub struct NoCursor;

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.log.0, self.after)
    }
}

impl std::str::FromStr for Cursor {
    type Err = NoCursor;

    fn from_str(text: &str) -> Result<Self, NoCursor> {
        const LOG_LEN: usize = 32;
        let (log, after) = text.split_once('-').ok_or(NoCursor)?;
        let is_log = log.len() == LOG_LEN && log.bytes().all(|byte| byte.is_ascii_hexdigit());
        let after = after.parse().ok().filter(|_| is_log).ok_or(NoCursor)?;
        Ok(Self {
            log: LogId(log.to_owned()),
            after,
        })
    }
}

/// The start of a watch.
#[derive(Debug, Clone)]
pub enum Start {
    /// With changes from now on.
    Now,
    /// With the oldest change that is kept.
    Oldest,
    /// After the cursor of an earlier watch.
    After(Cursor),
}

/// Reason why a watch ends.
#[derive(Debug)]
pub enum WatchError {
    /// Changes after the cursor are no longer kept, or may be missing.
    Expired,
    /// No replica follows the table's stream.
    NotFollowed,
    /// The table failed.
    Store(store::Error),
}

/// One response of a watch.
#[derive(Debug)]
pub struct ChangeBatch {
    /// Changes in order, each with the cursor after it.
    pub changes: Vec<(RecordChange, Cursor)>,
    /// The cursor after all changes that were read.
    pub cursor: Cursor,
}

/// A watcher of the log.
pub struct Watcher {
    change_log: Arc<ChangeLog>,
    reads: Arc<ReadPath>,
    filter: ChangeFilter,
    cursor: Cursor,
    /// The numbers of changes that were read and not returned yet, with those that match.
    pending: std::vec::IntoIter<(u64, Option<RecordChange>)>,
    last_sent: Option<Instant>,
    _counted: Counted,
}

/// Counts as a watcher until it is dropped.
struct Counted(());

impl Counted {
    fn new() -> Self {
        metrics::gauge!(WATCHERS).increment(1);
        Self(())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        metrics::gauge!(WATCHERS).decrement(1);
    }
}

impl Accounts {
    /// Starts a watch.
    ///
    /// # Errors
    /// See [`WatchError`].
    pub async fn watch(&self, start: Start, filter: ChangeFilter) -> Result<Watcher, WatchError> {
        let change_log = self.change_log.clone();
        let counted = Counted::new();
        let head = change_log.head().await?;
        let after = match start {
            Start::Now => head.next - 1,
            Start::After(cursor) if cursor.log == head.log && cursor.after < head.next => {
                cursor.after
            }
            Start::After(_) => return Err(WatchError::Expired),
            Start::Oldest => {
                let oldest = self.table.oldest_kept(&head.log, head.next).await;
                oldest.map_err(WatchError::Store)? - 1
            }
        };
        let mut watcher = Watcher {
            cursor: Cursor {
                log: head.log.clone(),
                after,
            },
            change_log,
            reads: self.reads.clone(),
            filter,
            pending: Vec::new().into_iter(),
            last_sent: None,
            _counted: counted,
        };
        watcher.read(Some(head)).await?;
        Ok(watcher)
    }
}

impl ChangeLog {
    /// The end of the log, if the stream is followed.
    async fn head(&self) -> Result<LogHead, WatchError> {
        let deadline = Instant::now() + BEAT_PATIENCE;
        loop {
            let head = LogHead::read(&self.table).await;
            let head = head.map_err(WatchError::Store)?;
            let (head, version) = head.ok_or(WatchError::NotFollowed)?;
            let beats = {
                let mut beats = self.beats.lock();
                let seen = Beats::observe(*beats, version);
                *beats = Some(seen);
                seen
            };
            match beats.followed(head.beat) {
                Followed::Yes if head.next > 0 => return Ok(head),
                Followed::Unclear if Instant::now() < deadline => sleep(POLL).await,
                _ => return Err(WatchError::NotFollowed),
            }
        }
    }
}

impl Watcher {
    /// Waits for changes, and returns at most [`MAX_CHANGES`]. Returns none at first, and after
    /// some seconds without a change that matches the filter.
    ///
    /// # Errors
    /// See [`WatchError`]. Another watch may start after the last cursor.
    pub async fn next(&mut self) -> Result<ChangeBatch, WatchError> {
        if self.last_sent.is_none() {
            self.last_sent = Some(Instant::now());
            return Ok(self.batch(Vec::new()));
        }
        loop {
            let changes = self.take_pending();
            if !changes.is_empty() {
                self.last_sent = Some(Instant::now());
                return Ok(self.batch(changes));
            }
            let is_time = self.last_sent.is_none_or(|sent| sent.elapsed() >= PROGRESS);
            let head = if is_time {
                Some(self.change_log.head().await?)
            } else {
                None
            };
            let is_any = self.read(head).await?;
            if is_time {
                let changes = self.take_pending();
                self.last_sent = Some(Instant::now());
                return Ok(self.batch(changes));
            }
            if !is_any {
                sleep(POLL).await;
            }
        }
    }

    fn batch(&self, changes: Vec<(RecordChange, Cursor)>) -> ChangeBatch {
        ChangeBatch {
            changes,
            cursor: self.cursor.clone(),
        }
    }

    /// Takes changes that were read, up to the size of a response.
    fn take_pending(&mut self) -> Vec<(RecordChange, Cursor)> {
        let mut changes = Vec::new();
        while changes.len() < MAX_CHANGES
            && let Some((number, change)) = self.pending.next()
        {
            self.cursor.after = number;
            if let Some(change) = change {
                changes.push((change, self.cursor.clone()));
            }
        }
        changes
    }

    /// Reads the next changes, and returns whether there were any. With a head, verifies that
    /// no change before the head is missing.
    async fn read(&mut self, head: Option<LogHead>) -> Result<bool, WatchError> {
        // The semaphore is never closed.
        let permit = self.change_log.reads.acquire().await.ok();
        let Cursor { log, after } = &self.cursor;
        let read = self.change_log.table.read_log(log, *after).await;
        let read = read.map_err(WatchError::Store)?;
        drop(permit);
        let is_contiguous = (after + 1..)
            .zip(&read)
            .all(|(expected, (number, _))| expected == *number);
        let is_missing =
            head.is_some_and(|head| head.log != *log || read.is_empty() && head.next > after + 1);
        if !is_contiguous || is_missing {
            return Err(WatchError::Expired);
        }
        let mut pending = Vec::with_capacity(read.len());
        for (number, change) in read {
            let is_match = match self.filter.interest(&change) {
                Interest::Included => self.is_in_scope(&change).await?,
                Interest::Excluded => false,
                Interest::IfMember(organization, user) => {
                    self.is_in_scope(&change).await?
                        && self.is_of_member(&change, organization, user).await?
                }
            };
            pending.push((number, is_match.then_some(change)));
        }
        let is_any = !pending.is_empty();
        self.pending = pending.into_iter();
        Ok(is_any)
    }

    /// Whether the caller may read the organization of a change. A changed organization is judged by its
    /// labels before or after the change, and a membership by the present labels of its organization.
    async fn is_in_scope(&self, change: &RecordChange) -> Result<bool, WatchError> {
        let scope = &self.filter.scope;
        let name = match &change.key {
            Key::Organization(name) | Key::Membership(name, _) => Some(name),
            // The organization of the filter, of which the user is a member.
            Key::User(_) => self.filter.organization.as_ref(),
        };
        let Some(name) = name else {
            return Ok(scope.is_every());
        };
        match scope.judge_name(name) {
            InScope::Yes => return Ok(true),
            InScope::No => return Ok(false),
            InScope::ByLabels => {}
        }
        let images = || change.before.iter().chain(&change.after);
        if let Key::Organization(_) = &change.key {
            return Ok(images().any(|image| scope.has_record(image)));
        }
        let found = self.find(Key::Organization(name.clone())).await?;
        // A membership of an earlier organization of the name is not of this one.
        let is_of_found = |image: &Record| match (image, &found) {
            (Record::Membership(membership), Some(found)) => {
                membership.organization_uid.as_ref() == found.uid()
            }
            _ => true,
        };
        Ok(
            found.as_ref().is_some_and(|found| scope.has_record(found))
                && images().all(is_of_found),
        )
    }

    /// The present record of a key. Boxed: the future of a watcher stays small.
    fn find(&self, key: Key) -> BoxFuture<'_, Result<Option<Record>, WatchError>> {
        let find = async move {
            let result = self.reads.read(&[key], Freshness::Coherent).await;
            let records = result.map_err(WatchError::Store)?.into_records();
            Ok(records.flatten().next())
        };
        find.boxed()
    }

    /// Whether the changed incarnation is that of a membership. An orphan counts, too.
    async fn is_of_member(
        &self,
        change: &RecordChange,
        organization: OrganizationName,
        user: Username,
    ) -> Result<bool, WatchError> {
        let found = self.find(Key::Membership(organization, user)).await?;
        let Some(Record::Membership(membership)) = found else {
            return Ok(false);
        };
        if membership.has_expired(|| self.change_log.table.now()) {
            return Ok(false);
        }
        let record = change.before.as_ref().or(change.after.as_ref());
        Ok(match record {
            Some(Record::User(user)) => user.uid == membership.member_uid,
            Some(Record::Organization(organization)) => {
                organization.uid == membership.organization_uid
            }
            Some(Record::Membership(_)) | None => true,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_parsed_from_its_text_form() {
        let cursor = Cursor {
            log: LogId("0123456789abcdef0123456789abcdef".to_owned()),
            after: 42,
        };
        assert_eq!(cursor.to_string().parse(), Ok(cursor));
        for text in ["", "42", "0123-42", "0123456789abcdef0123456789abcdef-x"] {
            assert_eq!(text.parse::<Cursor>(), Err(NoCursor), "{text}");
        }
    }
}
