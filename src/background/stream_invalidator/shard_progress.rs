//! Progress along the stream: the shards, their checkpoints, and the order of reading them.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    domain::{ExpireTime, Timestamp},
    store::{LogHead, Position, ScheduledEnd, Shard, ShardId, ShardIterator, StreamId},
};

/// Longest time between two reads of the schedule of ends.
pub(super) const SCHEDULE_INTERVAL: Duration = Duration::from_secs(10);
/// Names of the register's values: the stream, and the checkpoint of each shard.
const STREAM: &str = "stream";
const SHARD: &str = "shard:";
/// The checkpoint of a shard that was read to its end.
const ENDED: &str = "END";
/// The time since which a shard that was read to its end is no longer listed.
const UNLISTED: &str = "unlisted:";
/// Time without a listing after which a shard that was read to its end is removed. The stream keeps
/// changes for 24 hours. If the shard is listed again after that, it has no changes that could be
/// read twice.
const FORGET_AFTER: Duration = Duration::from_secs(26 * 3600);

/// The progress along the stream.
pub(super) struct StreamProgress {
    pub(super) stream: StreamId,
    pub(super) head: LogHead,
    pub(super) shards: BTreeMap<ShardId, Progress>,
    /// Ended shards that are no longer listed, and the time since then.
    unlisted: BTreeMap<ShardId, Timestamp>,
    pub(super) discovered: Option<Instant>,
    /// Whether the children of an ended shard are not listed yet.
    pub(super) lacks_children: bool,
    /// Whether the progress is ahead of the register.
    pub(super) has_unsaved: bool,
    /// When the schedule of ends is read next: at its next end, or [`SCHEDULE_INTERVAL`] after the last
    /// read, because `recount` adds ends, too.
    pub(super) read_schedule_at: ExpireTime,
    /// Scheduled ends that have passed and that their memberships do not have any more, and the time when
    /// this was seen.
    replaced: HashMap<ScheduledEnd, Timestamp>,
}

/// The progress along a shard.
#[derive(Debug, Clone)]
pub(super) enum Progress {
    /// To be read from this position.
    Open {
        position: Position,
        cursor: Option<ShardIterator>,
    },
    /// Read to its end.
    Ended,
    /// Listed, but not found in the stream.
    Lost,
}

impl Progress {
    fn is_open(&self) -> bool {
        matches!(self, Self::Open { .. })
    }
}

impl StreamProgress {
    /// Resumes at the checkpoints of the register, if they are of this stream.
    pub(super) fn resume(stream: StreamId, values: BTreeMap<String, String>) -> Self {
        let is_same = values.get(STREAM) == Some(&stream.0);
        let head = if is_same {
            LogHead::resume(&values)
        } else {
            LogHead::begin()
        };
        let values: BTreeMap<_, _> = values.into_iter().filter(|_| is_same).collect();
        let unlisted = values.iter().filter_map(|(name, since)| {
            let id = ShardId(name.strip_prefix(UNLISTED)?.to_owned());
            Some((id, Timestamp(since.parse().ok()?)))
        });
        let unlisted: BTreeMap<_, _> = unlisted.collect();
        let ended = unlisted.keys().map(|id| (id.clone(), Progress::Ended));
        let ended: Vec<_> = ended.collect();
        let checkpoints = values.into_iter();
        let shards = checkpoints.filter_map(|(name, sequence)| {
            let id = ShardId(name.strip_prefix(SHARD)?.to_owned());
            let progress = if sequence == ENDED {
                Progress::Ended
            } else {
                Progress::Open {
                    position: Position::After(sequence),
                    cursor: None,
                }
            };
            Some((id, progress))
        });
        Self {
            shards: shards.chain(ended).collect(),
            unlisted,
            stream,
            head,
            discovered: None,
            lacks_children: false,
            has_unsaved: false,
            read_schedule_at: ExpireTime(0),
            replaced: HashMap::new(),
        }
    }

    /// Whether every known shard was read to its end.
    pub(super) fn has_ended(&self) -> bool {
        let mut shards = self.shards.values();
        !shards.any(Progress::is_open)
    }

    /// Whether the log has the change of a membership that does not have this end any more. Until then, the
    /// end stays scheduled: the membership is counted with it.
    pub(super) fn is_change_logged(&mut self, end: &ScheduledEnd, now: Timestamp) -> bool {
        let processed = self.head.processed;
        let is_logged = *self.replaced.entry(end.clone()).or_insert(now) < processed;
        if is_logged {
            self.replaced.remove(end);
        }
        is_logged
    }

    /// The values of the register, without the holder of the lease.
    pub(super) fn values(&self) -> BTreeMap<String, String> {
        let shards = self.shards.iter().filter_map(|(id, progress)| {
            let sequence = match progress {
                // Written below, with the time.
                Progress::Ended if self.unlisted.contains_key(id) => return None,
                Progress::Ended => ENDED.to_owned(),
                Progress::Open {
                    position: Position::After(sequence),
                    ..
                } => sequence.clone(),
                Progress::Open {
                    position: Position::Oldest,
                    ..
                }
                | Progress::Lost => return None,
            };
            Some((format!("{SHARD}{}", id.0), sequence))
        });
        let mut values: BTreeMap<_, _> = shards.collect();
        let unlisted = self.unlisted.iter();
        values.extend(unlisted.map(|(id, Timestamp(since))| {
            let name = format!("{UNLISTED}{}", id.0);
            (name, since.to_string())
        }));
        values.insert(STREAM.to_owned(), self.stream.0.clone());
        values.extend(self.head.values());
        values
    }

    /// Opens listed shards whose parents were read to their ends or are no longer kept. Removes
    /// ended shards after [`FORGET_AFTER`] without a listing, because a listing may lack a shard
    /// that a later one has again.
    pub(super) fn add(&mut self, listed: &[Shard], now: Timestamp) {
        let is_listed = |id: &ShardId| listed.iter().any(|shard| shard.id == *id);
        let unlisted = &mut self.unlisted;
        self.shards.retain(|id, progress| {
            if progress.is_open() || is_listed(id) {
                unlisted.remove(id);
                return true;
            }
            // A lost shard is retried once it is listed again.
            if matches!(progress, Progress::Lost) {
                return false;
            }
            let since = *unlisted.entry(id.clone()).or_insert(now);
            let is_kept = since.after(FORGET_AFTER) > now;
            if !is_kept {
                unlisted.remove(id);
            }
            is_kept
        });
        for shard in listed {
            let is_parent_open =
                shard
                    .parent
                    .as_ref()
                    .is_some_and(|parent| match self.shards.get(parent) {
                        Some(progress) => progress.is_open(),
                        None => is_listed(parent),
                    });
            if !is_parent_open && !self.shards.contains_key(&shard.id) {
                let progress = Progress::Open {
                    position: Position::Oldest,
                    cursor: None,
                };
                self.shards.insert(shard.id.clone(), progress);
            }
        }
        self.lacks_children = self.shards.iter().any(|(id, progress)| {
            let is_child = |shard: &Shard| shard.parent.as_ref() == Some(id);
            let is_ended = matches!(progress, Progress::Ended) && is_listed(id);
            is_ended && !listed.iter().any(is_child)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{OrganizationName, Username};

    fn shard(id: &str, parent: Option<&str>) -> Shard {
        Shard {
            id: ShardId(id.to_owned()),
            parent: parent.map(|id| ShardId(id.to_owned())),
        }
    }

    fn stream_progress() -> StreamProgress {
        StreamProgress::resume(StreamId("stream".to_owned()), BTreeMap::new())
    }

    fn open(stream_progress: &StreamProgress) -> Vec<&str> {
        let open = stream_progress
            .shards
            .iter()
            .filter(|(_, progress)| matches!(progress, Progress::Open { .. }));
        open.map(|(id, _)| id.0.as_str()).collect()
    }

    #[test]
    fn a_shard_is_read_after_its_parent() {
        let mut stream_progress = stream_progress();
        let listed = [
            shard("a", Some("trimmed")),
            shard("b", Some("a")),
            shard("c", Some("b")),
            shard("d", Some("a")),
        ];
        let now = Timestamp(0);
        stream_progress.add(&listed, now);
        assert_eq!(open(&stream_progress), ["a"]);
        stream_progress
            .shards
            .insert(ShardId("a".to_owned()), Progress::Ended);
        stream_progress.add(&listed[..1], now);
        assert!(stream_progress.lacks_children && stream_progress.has_ended());
        stream_progress.add(&listed, now);
        assert_eq!(open(&stream_progress), ["b", "d"]);
        assert!(!stream_progress.lacks_children && !stream_progress.has_ended());
        // No longer listed. Its children are still read.
        stream_progress
            .shards
            .insert(ShardId("b".to_owned()), Progress::Ended);
        stream_progress.add(&listed[2..], now);
        assert_eq!(open(&stream_progress), ["c", "d"]);
        assert!(!stream_progress.lacks_children);
    }

    #[test]
    fn an_ended_shard_that_listings_lack_for_a_while_is_not_read_again() {
        let mut stream_progress = stream_progress();
        let listed = [shard("a", None), shard("b", Some("a"))];
        stream_progress.add(&listed, Timestamp(0));
        stream_progress
            .shards
            .insert(ShardId("a".to_owned()), Progress::Ended);
        stream_progress.add(&listed, Timestamp(0));
        stream_progress.add(&listed[1..], Timestamp(1));
        assert_eq!(open(&stream_progress), ["b"]);
        // Another replica takes over while the listings lack it.
        let values = stream_progress.values();
        assert!(!values.contains_key("shard:a") && values.contains_key("unlisted:a"));
        let mut stream_progress = StreamProgress::resume(stream_progress.stream.clone(), values);
        let almost = Timestamp(0).after(FORGET_AFTER);
        stream_progress.add(&listed[1..], almost);
        stream_progress.add(&listed, almost);
        assert_eq!(open(&stream_progress), ["b"]);
        // Listed meanwhile: the time restarts.
        let later = almost.after(FORGET_AFTER);
        stream_progress.add(&listed[1..], later);
        assert!(
            stream_progress
                .shards
                .contains_key(&ShardId("a".to_owned()))
        );
        stream_progress.add(&listed[1..], later.after(FORGET_AFTER));
        assert!(
            !stream_progress
                .shards
                .contains_key(&ShardId("a".to_owned()))
        );
        assert!(stream_progress.unlisted.is_empty());
    }

    #[test]
    fn a_lost_shard_is_retried_once_it_is_listed_again() {
        let mut stream_progress = stream_progress();
        let (listed, now) = ([shard("a", None)], Timestamp(0));
        stream_progress.add(&listed, now);
        stream_progress
            .shards
            .insert(ShardId("a".to_owned()), Progress::Lost);
        // Not retried while it stays listed: each retry would begin a new log.
        stream_progress.add(&listed, now);
        assert!(open(&stream_progress).is_empty());
        stream_progress.add(&[], now);
        stream_progress.add(&listed, now);
        assert_eq!(open(&stream_progress), ["a"]);
    }

    #[test]
    fn a_replaced_end_stays_scheduled_until_the_log_has_its_replacement() {
        let mut stream_progress = stream_progress();
        let end = ScheduledEnd {
            expire_time: ExpireTime(1),
            organization_name: OrganizationName::parse_new("olivia-org").unwrap(),
            member_username: Username::parse_new("membermichael").unwrap(),
        };
        // All changes until the end are in the log, and its replacement may be later.
        stream_progress.head.processed = Timestamp(1500);
        assert!(!stream_progress.is_change_logged(&end, Timestamp(2000)));
        stream_progress.head.processed = Timestamp(2000);
        assert!(!stream_progress.is_change_logged(&end, Timestamp(2400)));
        stream_progress.head.processed = Timestamp(2001);
        assert!(stream_progress.is_change_logged(&end, Timestamp(2500)));
        assert!(stream_progress.replaced.is_empty());
    }

    #[test]
    fn checkpoints_are_resumed_for_the_same_stream_only() {
        let mut stream_progress = stream_progress();
        let after = Position::After("7".to_owned());
        let progress = Progress::Open {
            position: after.clone(),
            cursor: None,
        };
        stream_progress
            .shards
            .insert(ShardId("a".to_owned()), progress);
        stream_progress
            .shards
            .insert(ShardId("b".to_owned()), Progress::Ended);
        let values = stream_progress.values();

        let resumed = StreamProgress::resume(stream_progress.stream.clone(), values.clone());
        let resumed_head = resumed.head;
        let [(_, a), (_, b)] = resumed
            .shards
            .into_iter()
            .collect::<Vec<_>>()
            .try_into()
            .unwrap();
        assert!(matches!(a, Progress::Open { position, cursor: None } if position == after));
        assert!(matches!(b, Progress::Ended));
        assert_eq!(resumed_head.log, stream_progress.head.log);
        let another = StreamProgress::resume(StreamId("another".to_owned()), values);
        assert!(another.shards.is_empty());
        assert_ne!(another.head.log, stream_progress.head.log);
    }
}
