//! Watching changes: the change log in order, from any position.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Semaphore,
    time::{Instant, sleep},
};

use super::{Accounts, Freshness};
use crate::{
    coherence::{Coherence, LogHead},
    domain::{
        ChangeKind, CheckFacts, Key, OrganizationName, Record, RecordChange, Timestamp, Username,
    },
    store::{self, ChangeLog, LogId, Registers},
    telemetry::WATCHERS,
};

/// Most changes of one response.
pub const MAX_CHANGES: usize = 25;
/// Concurrent reads of the log for all watchers, apart from the reads of callers, so that
/// neither delays the other.
const READS_AT_ONCE: usize = 8;
/// Interval of reading the log.
const POLL: Duration = Duration::from_millis(250);
/// Longest interval of responses without changes.
const PROGRESS: Duration = Duration::from_secs(10);
/// Time without a beat after which the stream counts as not followed.
const LONGEST_SILENCE: Duration = Duration::from_secs(60);
/// Longest to wait for a sign that the stream is followed, where the time of the
/// last one is far from this replica's clock. A follower gives one every 2 s; the
/// server waits 5 s for a response to begin.
const BEAT_PATIENCE: Duration = Duration::from_secs(4);

/// The change log and its watchers.
pub struct Changes {
    log: Arc<dyn ChangeLog>,
    registers: Arc<dyn Registers>,
    reads: Semaphore,
    beats: Mutex<Option<Beats>>,
}

/// The beats of the stream's follower, timed by this replica's monotonic clock.
#[derive(Debug, Clone, Copy)]
struct Beats {
    /// The version of the register at the last read.
    version: u64,
    /// When that version was first read.
    since: Instant,
    /// When the register was last read.
    looked: Instant,
    /// Whether this replica saw the register change to that version.
    is_moving: bool,
}

/// Whether the stream is followed.
enum Followed {
    Yes,
    No,
    /// Unknown until the next beat.
    Unclear,
}

impl Beats {
    /// The same after a look at the register now.
    fn look(before: Option<Self>, version: u64) -> Self {
        let now = Instant::now();
        match before {
            // Not older either, as a look that took long may find.
            Some(before) if before.version >= version => Self {
                looked: now,
                ..before
            },
            // The time of a change since a look of long ago is unknown.
            before => Self {
                version,
                since: now,
                looked: now,
                is_moving: before.is_some_and(|it| now - it.looked < LONGEST_SILENCE),
            },
        }
    }

    /// `beat` is when the follower gave the last sign, by its wall clock: as clocks
    /// may differ, it counts only until this replica has seen for itself.
    fn followed(&self, beat: Timestamp) -> Followed {
        let apart = Duration::from_millis(beat.0.abs_diff(Timestamp::now().0));
        if self.since.elapsed() >= LONGEST_SILENCE {
            Followed::No
        } else if self.is_moving || apart < LONGEST_SILENCE {
            Followed::Yes
        } else {
            Followed::Unclear
        }
    }
}

impl Changes {
    /// Reads the log of a table, and its end in the registers.
    #[must_use]
    pub fn new(log: Arc<dyn ChangeLog>, registers: Arc<dyn Registers>) -> Self {
        Self {
            log,
            registers,
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

/// The text is no cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is no cursor of an earlier response")]
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

/// The filter of a watch. Default: all changes.
#[derive(Debug, Clone, Default)]
pub struct ChangeFilter {
    /// Of this organization and of its memberships; and of its members, where it
    /// suspends, resumes or deletes them.
    pub organization: Option<OrganizationName>,
    /// Of this user and of the user's memberships; and of the organizations that the
    /// user is a member of, where it suspends, resumes or deletes them.
    pub user: Option<Username>,
}

/// Whether a change matches the filter.
enum Interest {
    Told,
    NotTold,
    /// It matches if this membership exists.
    IfMember(OrganizationName, Username),
}

impl ChangeFilter {
    fn interest(&self, change: &RecordChange) -> Interest {
        let wants_organization = |it| self.organization.as_ref().is_none_or(|wanted| wanted == it);
        let wants_user = |it| self.user.as_ref().is_none_or(|wanted| wanted == it);
        match (&change.key, &self.organization, &self.user) {
            (Key::Membership(organization, user), ..) => {
                Interest::of(wants_organization(organization) && wants_user(user))
            }
            (Key::User(user), None, _) => Interest::of(wants_user(user)),
            (Key::Organization(it), _, None) => Interest::of(wants_organization(it)),
            (Key::User(user), Some(organization), _)
                if wants_user(user) && changes_standing(change) =>
            {
                Interest::IfMember(organization.clone(), user.clone())
            }
            (Key::Organization(organization), _, Some(user))
                if wants_organization(organization) && changes_standing(change) =>
            {
                Interest::IfMember(organization.clone(), user.clone())
            }
            (Key::User(_) | Key::Organization(_), ..) => Interest::NotTold,
        }
    }
}

impl Interest {
    fn of(is_told: bool) -> Self {
        if is_told { Self::Told } else { Self::NotTold }
    }
}

/// Whether a change of a user or an organization may affect its memberships.
fn changes_standing(change: &RecordChange) -> bool {
    let state = |record: &Option<Record>| match record {
        Some(Record::User(user)) => Some(user.state),
        Some(Record::Organization(organization)) => Some(organization.state),
        Some(Record::Membership(_)) | None => None,
    };
    match (change.kind, state(&change.before), state(&change.after)) {
        (ChangeKind::Created, ..) => false,
        (ChangeKind::Updated, Some(before), Some(after)) => before != after,
        // A deletion, or an image was left out.
        (ChangeKind::Deleted | ChangeKind::Updated, ..) => true,
    }
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
    changes: Arc<Changes>,
    coherence: Coherence,
    filter: ChangeFilter,
    cursor: Cursor,
    /// The numbers of changes that were read and not returned yet, with those that match.
    pending: std::vec::IntoIter<(u64, Option<RecordChange>)>,
    last_told: Option<Instant>,
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
        let changes = self.changes.clone();
        let counted = Counted::new();
        let head = changes.head().await?;
        let after = match start {
            Start::Now => head.next - 1,
            Start::After(cursor) if cursor.log == head.log && cursor.after < head.next => {
                cursor.after
            }
            Start::After(_) => return Err(WatchError::Expired),
            Start::Oldest => {
                let oldest = changes.log.oldest_kept(&head.log, head.next).await;
                oldest.map_err(WatchError::Store)? - 1
            }
        };
        let mut watcher = Watcher {
            cursor: Cursor {
                log: head.log.clone(),
                after,
            },
            changes,
            coherence: self.coherence.clone(),
            filter,
            pending: Vec::new().into_iter(),
            last_told: None,
            _counted: counted,
        };
        watcher.read(Some(head)).await?;
        Ok(watcher)
    }
}

impl Changes {
    /// The end of the log, if the stream is followed.
    async fn head(&self) -> Result<LogHead, WatchError> {
        let give_up = Instant::now() + BEAT_PATIENCE;
        loop {
            let head = LogHead::read(self.registers.as_ref()).await;
            let head = head.map_err(WatchError::Store)?;
            let (head, version) = head.ok_or(WatchError::NotFollowed)?;
            let beats = {
                let mut beats = self.beats.lock().unwrap_or_else(PoisonError::into_inner);
                let seen = Beats::look(*beats, version);
                *beats = Some(seen);
                seen
            };
            match beats.followed(head.beat) {
                Followed::Yes if head.next > 0 => return Ok(head),
                Followed::Unclear if Instant::now() < give_up => sleep(POLL).await,
                _ => return Err(WatchError::NotFollowed),
            }
        }
    }
}

impl Watcher {
    /// Waits for changes; returns them, [`MAX_CHANGES`] at most. None, if the place moved on, or some seconds passed,
    /// without one that is to be told; and none at first.
    ///
    /// # Errors
    /// See [`WatchError`]. The cursor returned last is good for another try.
    pub async fn next(&mut self) -> Result<ChangeBatch, WatchError> {
        if self.last_told.is_none() {
            self.last_told = Some(Instant::now());
            return Ok(self.told(Vec::new()));
        }
        loop {
            let changes = self.take_pending();
            if !changes.is_empty() {
                self.last_told = Some(Instant::now());
                return Ok(self.told(changes));
            }
            let is_time = self.last_told.is_none_or(|told| told.elapsed() >= PROGRESS);
            let head = if is_time {
                Some(self.changes.head().await?)
            } else {
                None
            };
            let is_any = self.read(head).await?;
            if is_time {
                let changes = self.take_pending();
                self.last_told = Some(Instant::now());
                return Ok(self.told(changes));
            }
            if !is_any {
                sleep(POLL).await;
            }
        }
    }

    fn told(&self, changes: Vec<(RecordChange, Cursor)>) -> ChangeBatch {
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

    /// Reads on; returns whether there was anything. With a head, makes sure that
    /// whatever is before it is there to be read.
    async fn read(&mut self, head: Option<LogHead>) -> Result<bool, WatchError> {
        // Never closed.
        let permit = self.changes.reads.acquire().await.ok();
        let Cursor { log, after } = &self.cursor;
        let read = self.changes.log.read_log(log, *after).await;
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
            let is_told = match self.filter.interest(&change) {
                Interest::Told => true,
                Interest::NotTold => false,
                Interest::IfMember(organization, user) => {
                    self.is_of_member(&change, organization, user).await?
                }
            };
            pending.push((number, is_told.then_some(change)));
        }
        let is_any = !pending.is_empty();
        self.pending = pending.into_iter();
        Ok(is_any)
    }

    /// Whether the changed incarnation is that of a membership. An orphan counts, too.
    async fn is_of_member(
        &self,
        change: &RecordChange,
        organization: OrganizationName,
        user: Username,
    ) -> Result<bool, WatchError> {
        let key = [Key::Membership(organization, user)];
        let answer = self
            .coherence
            .read::<CheckFacts>(&key, Freshness::Coherent)
            .await;
        let answer = answer.map_err(WatchError::Store)?;
        let Some(CheckFacts::Membership(facts)) = answer.records.into_iter().flatten().next()
        else {
            return Ok(false);
        };
        let record = change.before.as_ref().or(change.after.as_ref());
        Ok(match record {
            Some(Record::User(user)) => user.uid == facts.member_uid,
            Some(Record::Organization(organization)) => organization.uid == facts.organization_uid,
            Some(Record::Membership(_)) | None => true,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_followed(beats: &Beats, beat: Timestamp) -> Option<bool> {
        match beats.followed(beat) {
            Followed::Yes => Some(true),
            Followed::No => Some(false),
            Followed::Unclear => None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn beats_are_judged_by_what_this_replica_has_seen() {
        let (near, far) = (Timestamp::now(), Timestamp(0));
        let first = Beats::look(None, 7);
        assert_eq!(is_followed(&first, near), Some(true));
        assert_eq!(is_followed(&first, far), None);
        sleep(LONGEST_SILENCE / 2).await;
        let moved = Beats::look(Some(first), 8);
        assert_eq!(is_followed(&moved, far), Some(true));
        // No further sign, whatever the clocks say.
        sleep(LONGEST_SILENCE).await;
        let silent = Beats::look(Some(moved), 8);
        for beat in [near, far] {
            assert_eq!(is_followed(&silent, beat), Some(false));
        }
        // One came after a look of long ago: when, nobody has seen.
        sleep(LONGEST_SILENCE).await;
        let late = Beats::look(Some(silent), 9);
        assert_eq!(is_followed(&late, far), None);
    }

    #[test]
    fn a_cursor_is_read_as_it_is_written() {
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
