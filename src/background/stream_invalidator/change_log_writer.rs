//! Writes the change log in the order of the stream, which has the changes of each record in order.
//! A page's changes and its checkpoint are one transaction.

use super::{
    Stop, StreamInvalidator,
    shard_progress::{NextExpiry, Progress, StreamProgress},
};
use crate::{
    background::leader_lease::HeldLease,
    domain::{ChangeKind, ExpireTime, Membership, Record, RecordChange, Timestamp},
    store::{
        self, Changed, ChangedRecord, DynamoDb, Expiry, LOG_REGISTER, MAX_APPENDED, Position,
        ShardId, StateAfter,
    },
    telemetry::CHANGES_LOGGED,
};

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

    /// Appends the expiry of memberships that have ended by now.
    pub(super) async fn log_expiries(
        &self,
        stream_progress: &mut StreamProgress,
        lease: &mut HeldLease,
    ) -> Result<(), Stop> {
        let now = self.table.now();
        if !stream_progress.next_expiry.is_due(now) {
            return Ok(());
        }
        let scheduled = self.table.expiries(MAX_APPENDED).await;
        let mut passed = scheduled.map_err(Stop::Failed)?;
        let next = passed.first().map(|expiry| expiry.expire_time);
        stream_progress.next_expiry = NextExpiry::At(next);
        passed.retain(|expiry| !expiry.expire_time.is_after(now));
        if passed.is_empty() {
            return Ok(());
        }
        let keys: Vec<_> = passed.iter().map(Expiry::key).collect();
        let found = self.table.read_strong(&keys).await.map_err(Stop::Failed)?;
        let ends = passed.iter().zip(found);
        let changes: Vec<_> = ends
            .filter_map(|(expiry, found)| expired(expiry, found?.into_membership()?))
            .collect();
        self.append(&changes, &passed, stream_progress, lease)
            .await?;
        // Others may be due, too.
        stream_progress.next_expiry = NextExpiry::Unknown;
        Ok(())
    }

    /// Appends changes to the log together with the checkpoint, and removes `passed` ends from the
    /// schedule.
    async fn append(
        &self,
        changes: &[RecordChange],
        passed: &[Expiry],
        stream_progress: &mut StreamProgress,
        lease: &mut HeldLease,
    ) -> Result<(), Stop> {
        let first = stream_progress.head.next;
        stream_progress.head.next += changes.len() as u64;
        let mut values = stream_progress.values();
        self.leader.claim(&mut values);
        let register = (LOG_REGISTER, lease.version, &values);
        let log = &stream_progress.head.log;
        let appended = self.table.append(log, first, changes, passed, register);
        let version = appended.await.map_err(Stop::Failed)?;
        *lease = HeldLease::written_now(version.ok_or(Stop::Deposed)?);
        stream_progress.has_unsaved = false;
        for change in changes {
            if let Some(Record::Membership(membership)) = &change.after {
                stream_progress.next_expiry.add(membership.expire_time);
            }
        }
        metrics::counter!(CHANGES_LOGGED).increment(changes.len() as u64);
        Ok(())
    }
}

/// The change to log at a scheduled end. `None`: the membership has another end now.
fn expired(expiry: &Expiry, found: Membership) -> Option<RecordChange> {
    let ExpireTime(scheduled) = expiry.expire_time;
    let ExpireTime(end) = found.expire_time?;
    // Ends before 1970 are scheduled for 1970.
    (end.max(0) == scheduled).then(|| RecordChange {
        key: expiry.key(),
        kind: ChangeKind::Expired,
        time: Some(Timestamp(end.saturating_mul(1000))),
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
