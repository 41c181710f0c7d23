//! Writes the change log in the order of the stream, which has the changes of each record in order.
//! A page's changes and its checkpoint are one transaction.

use std::time::Duration;

use super::{
    Stop, StreamInvalidator,
    membership_counts::count_updates,
    shard_progress::{Progress, SCHEDULE_INTERVAL, StreamProgress},
};
use crate::{
    background::leader_lease::HeldLease,
    domain::{ChangeKind, ExpireTime, Membership, Record, RecordChange, Timestamp},
    store::{
        self, Changed, ChangedRecord, DynamoDb, LOG_REGISTER, LogPage, MAX_APPENDED, Position,
        ScheduledEnd, ShardId, StateAfter,
    },
    telemetry::CHANGES_LOGGED,
};

/// Most pages of ends that are logged between two reads of the stream.
const PAGES_OF_ENDS: usize = 20;
/// Pause after the schedule could not be read.
const RETRY: Duration = Duration::from_secs(5);

impl StreamInvalidator {
    /// Appends the changes of a page to the log, together with the checkpoint after them.
    pub(super) async fn log(
        &self,
        shard: &ShardId,
        changes: Vec<Changed>,
        stream_progress: &mut StreamProgress,
        lease: &mut HeldLease,
    ) -> Result<(), Stop> {
        let changes = changes.into_iter();
        let (sequences, changes): (Vec<_>, Vec<_>) = changes.filter_map(to_log).unzip();
        let sequences = sequences.chunks(MAX_APPENDED);
        for (sequences, changes) in sequences.zip(changes.chunks(MAX_APPENDED)) {
            let mut changes = changes.to_vec();
            let attributed = attribute_deletions(&self.table, &mut changes).await;
            attributed.map_err(Stop::Failed)?;
            if let Some(last) = sequences.last() {
                let progress = Progress::Open {
                    position: Position::After(last.clone()),
                    cursor: None,
                };
                stream_progress.shards.insert(shard.clone(), progress);
            }
            self.append(&changes, &[], stream_progress, lease).await?;
        }
        Ok(())
    }

    /// Appends the ends of memberships that have passed. An end waits until all earlier changes are in the
    /// log: one of them may have changed it.
    pub(super) async fn log_ends(
        &self,
        stream_progress: &mut StreamProgress,
        lease: &mut HeldLease,
    ) -> Result<(), Stop> {
        for _ in 0..PAGES_OF_ENDS {
            let until = stream_progress.head.processed;
            if stream_progress.read_schedule_at.is_after(until) {
                return Ok(());
            }
            let (passed, found) = match self.passed_ends(until, stream_progress).await {
                Ok(ends) => ends,
                Err(error) => {
                    tracing::warn!(%error, "the ends of memberships cannot be read");
                    stream_progress.read_schedule_at = ExpireTime(until.after(RETRY).seconds());
                    return Ok(());
                }
            };
            if passed.is_empty() {
                return Ok(());
            }
            // The next ones may have passed, too.
            stream_progress.read_schedule_at = ExpireTime(0);
            let (mut changes, mut done) = (Vec::new(), Vec::new());
            for (end, found) in passed.into_iter().zip(found) {
                let found = found.and_then(Record::into_membership);
                let change = found.and_then(|found| expired(&end, found));
                if change.is_some() || stream_progress.is_change_logged(&end, self.fencing.now()) {
                    changes.extend(change);
                    done.push(end);
                }
            }
            if done.is_empty() {
                return Ok(());
            }
            self.append(&changes, &done, stream_progress, lease).await?;
        }
        Ok(())
    }

    /// The first scheduled ends that have passed, and their memberships.
    async fn passed_ends(
        &self,
        until: Timestamp,
        stream_progress: &mut StreamProgress,
    ) -> Result<(Vec<ScheduledEnd>, Vec<Option<Record>>), store::Error> {
        let mut ends = self.table.scheduled_ends(MAX_APPENDED).await?;
        let at_latest = ExpireTime(until.after(SCHEDULE_INTERVAL).seconds());
        let first = ends.first().map_or(at_latest, |end| end.expire_time);
        stream_progress.read_schedule_at = first.min(at_latest);
        ends.retain(|end| !end.expire_time.is_after(until));
        let keys: Vec<_> = ends.iter().map(ScheduledEnd::key).collect();
        let found = self.table.read_strong(&keys).await?;
        Ok((ends, found))
    }

    /// Appends changes to the log together with the checkpoint and the counts of memberships, and
    /// removes `passed` ends from the schedule.
    async fn append(
        &self,
        changes: &[RecordChange],
        passed: &[ScheduledEnd],
        stream_progress: &mut StreamProgress,
        lease: &mut HeldLease,
    ) -> Result<(), Stop> {
        let ends: Vec<_> = changes.iter().filter_map(ScheduledEnd::before).collect();
        let scheduled = self.table.scheduled(&ends).await.map_err(Stop::Failed)?;
        let counts = count_updates(changes, scheduled);
        let first = stream_progress.head.next;
        stream_progress.head.next += changes.len() as u64;
        let mut values = stream_progress.values();
        self.leader.claim(&mut values);
        let register = (LOG_REGISTER, lease.version, &values);
        let log = &stream_progress.head.log;
        let page = LogPage {
            first,
            changes,
            passed,
            counts: &counts,
        };
        let appended = self.table.append(log, page, register);
        let version = appended.await.map_err(Stop::Failed)?;
        *lease = HeldLease::written_now(version.ok_or(Stop::Deposed)?);
        stream_progress.has_unsaved = false;
        let set = changes.iter().filter_map(ScheduledEnd::set_by);
        let set = set.map(|end| end.expire_time);
        let read_at = stream_progress.read_schedule_at;
        stream_progress.read_schedule_at = set.fold(read_at, ExpireTime::min);
        metrics::counter!(CHANGES_LOGGED).increment(changes.len() as u64);
        Ok(())
    }
}

/// The change to log at a scheduled end. `None`: the membership has another end now.
fn expired(end: &ScheduledEnd, found: Membership) -> Option<RecordChange> {
    let ExpireTime(second) = end.expire_time;
    (ScheduledEnd::of(&found).as_ref() == Some(end)).then(|| RecordChange {
        key: end.key(),
        kind: ChangeKind::Expired,
        time: Some(Timestamp(second.saturating_mul(1000))),
        before: Some(Record::Membership(found)),
        after: None,
        made: None,
    })
}

/// Adds the origin of deletions without a tombstone: the deletions of memberships.
async fn attribute_deletions(
    table: &DynamoDb,
    changes: &mut [RecordChange],
) -> Result<(), store::Error> {
    let (mut deletions, mut versions) = (Vec::new(), Vec::new());
    for change in changes {
        if let (ChangeKind::Deleted, Some(before), None) =
            (change.kind, &change.before, &change.made)
        {
            versions.push((change.key.clone(), before.stamp().etag()));
            deletions.push(change);
        }
    }
    let found = table.deletions(&versions).await?;
    for (change, deletion) in deletions.into_iter().zip(found) {
        if let Some(deletion) = deletion {
            change.time = deletion.time.or(change.time);
            change.made = Some(deletion.made);
        }
    }
    Ok(())
}

/// The change of a record to log, with its position in the shard. `None`: nothing was changed, or
/// the item is not a record.
fn to_log(changed: Changed) -> Option<(String, RecordChange)> {
    let ChangedRecord {
        key,
        kind,
        before,
        made,
        left,
    } = changed.record?;
    let after = match left {
        StateAfter::Record(record) => Some(record),
        StateAfter::Nothing | StateAfter::Unknown => None,
    };
    if made.is_none() && before.is_some() && before == after {
        return None;
    }
    let made_at = made.as_ref().and(after.as_ref());
    let made_at = made_at.and_then(|record| record.stamp().update_time);
    let change = RecordChange {
        key,
        kind,
        before,
        after,
        time: made_at.or(changed.time),
        made,
    };
    Some((changed.sequence, change))
}
