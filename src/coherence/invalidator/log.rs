//! Writes the change log, in the order of the stream: for one record, the order of its
//! changes. A page's changes and its checkpoint are one transaction.

use super::{
    Invalidator, REGISTER, Stop,
    tail::{Progress, Tail},
};
use crate::{
    background::leader_lease::HeldLease,
    domain::{ChangeKind, RecordChange},
    store::{self, ChangeLog, Changed, ChangedRecord, Left, MAX_APPENDED, Position, ShardId},
    telemetry::CHANGES_LOGGED,
};

impl Invalidator {
    /// Logs what a page told, and moves the checkpoint on with it.
    pub(super) async fn log(
        &self,
        shard: &ShardId,
        told: Vec<Changed>,
        tail: &mut Tail,
        lease: &mut HeldLease,
    ) -> Result<(), Stop> {
        let told = told.into_iter();
        let (sequences, changes): (Vec<_>, Vec<_>) = told.filter_map(change).unzip();
        let sequences = sequences.chunks(MAX_APPENDED);
        for (sequences, changes) in sequences.zip(changes.chunks(MAX_APPENDED)) {
            let mut changes = changes.to_vec();
            let attributed = attribute_deletions(self.log.as_ref(), &mut changes).await;
            attributed.map_err(Stop::Failed)?;
            if let Some(last) = sequences.last() {
                let progress = Progress::Open {
                    position: Position::After(last.clone()),
                    cursor: None,
                };
                tail.shards.insert(shard.clone(), progress);
            }
            let first = tail.head.next;
            tail.head.next += changes.len() as u64;
            let mut values = tail.values();
            self.leader.claim(&mut values);
            let register = (REGISTER, lease.version, &values);
            let appended = self.log.append(&tail.head.log, first, &changes, register);
            let version = appended.await.map_err(Stop::Failed)?;
            *lease = HeldLease::written_now(version.ok_or(Stop::Deposed)?);
            tail.is_ahead = false;
            metrics::counter!(CHANGES_LOGGED).increment(changes.len() as u64);
        }
        Ok(())
    }
}

/// Says of deletions who made them, where no tombstone does: a membership leaves nothing
/// that could.
async fn attribute_deletions(
    log: &dyn ChangeLog,
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
    let found = log.deletions(&versions).await?;
    for (change, deletion) in deletions.into_iter().zip(found) {
        if let Some(deletion) = deletion {
            change.time = deletion.time.or(change.time);
            change.made = Some(deletion.made);
        }
    }
    Ok(())
}

/// The change of a record, with its place in the shard; `None` for what changed
/// nothing.
fn change(told: Changed) -> Option<(String, RecordChange)> {
    let ChangedRecord {
        key,
        kind,
        before,
        made,
        left,
    } = told.record?;
    let after = match left {
        Left::Record(record) => Some(record),
        Left::Nothing | Left::Unknown => None,
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
        time: made_at.or(told.time),
        made,
    };
    Some((told.sequence, change))
}
