//! How far the stream was followed: shards, checkpoints, and which shard may be
//! read when.

use std::collections::BTreeMap;

use tokio::time::Instant;

use super::log::LogHead;
use crate::lease;
use crate::store::{Cursor, Position, Shard, ShardId, StreamId};

/// Names of its values: which stream it is, and how far it was read in each shard.
const STREAM: &str = "stream";
const SHARD: &str = "shard:";
/// The checkpoint of a shard that was read to its end.
const ENDED: &str = "END";
/// How far the stream was followed.
pub(super) struct Tail {
    pub(super) stream: StreamId,
    pub(super) head: LogHead,
    pub(super) shards: BTreeMap<ShardId, Progress>,
    pub(super) discovered: Option<Instant>,
    /// Whether a shard has ended whose children are not listed yet.
    pub(super) lacks_children: bool,
    /// Whether there is more to remember than the register holds.
    pub(super) is_ahead: bool,
}

/// How far a shard was read.
#[derive(Debug, Clone)]
pub(super) enum Progress {
    /// On from here.
    Open {
        position: Position,
        cursor: Option<Cursor>,
    },
    /// To its end.
    Ended,
}

impl Tail {
    /// Goes on where the register says, if it is about this stream.
    pub(super) fn resume(stream: StreamId, values: BTreeMap<String, String>) -> Self {
        let is_same = values.get(STREAM) == Some(&stream.0);
        let head = if is_same {
            LogHead::resume(&values)
        } else {
            LogHead::begin()
        };
        let checkpoints = values.into_iter().filter(|_| is_same);
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
            shards: shards.collect(),
            stream,
            head,
            discovered: None,
            lacks_children: false,
            is_ahead: false,
        }
    }

    /// Whether every shard that is known was read to its end.
    pub(super) fn has_ended(&self) -> bool {
        let mut shards = self.shards.values();
        shards.all(|progress| matches!(progress, Progress::Ended))
    }

    /// What the register is to hold.
    pub(super) fn values(&self, owner: &str) -> BTreeMap<String, String> {
        let shards = self.shards.iter().filter_map(|(id, progress)| {
            let sequence = match progress {
                Progress::Ended => ENDED.to_owned(),
                Progress::Open {
                    position: Position::After(sequence),
                    ..
                } => sequence.clone(),
                Progress::Open {
                    position: Position::Oldest,
                    ..
                } => return None,
            };
            Some((format!("{SHARD}{}", id.0), sequence))
        });
        let mut values: BTreeMap<_, _> = shards.collect();
        lease::claim(&mut values, owner);
        values.insert(STREAM.to_owned(), self.stream.0.clone());
        values.extend(self.head.values());
        values
    }

    /// Opens listed shards whose parents were read to their ends or are not kept
    /// any more, and forgets ended shards that are not listed any more.
    pub(super) fn add(&mut self, listed: &[Shard]) {
        let is_listed = |id: &ShardId| listed.iter().any(|shard| shard.id == *id);
        self.shards
            .retain(|id, progress| matches!(progress, Progress::Open { .. }) || is_listed(id));
        for shard in listed {
            let is_parent_open =
                shard
                    .parent
                    .as_ref()
                    .is_some_and(|parent| match self.shards.get(parent) {
                        Some(Progress::Ended) => false,
                        Some(Progress::Open { .. }) => true,
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
            matches!(progress, Progress::Ended) && !listed.iter().any(is_child)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(id: &str, parent: Option<&str>) -> Shard {
        Shard {
            id: ShardId(id.to_owned()),
            parent: parent.map(|id| ShardId(id.to_owned())),
        }
    }

    fn tail() -> Tail {
        Tail::resume(StreamId("stream".to_owned()), BTreeMap::new())
    }

    fn open(tail: &Tail) -> Vec<&str> {
        let open = tail
            .shards
            .iter()
            .filter(|(_, progress)| matches!(progress, Progress::Open { .. }));
        open.map(|(id, _)| id.0.as_str()).collect()
    }

    #[test]
    fn a_shard_is_read_after_its_parent() {
        let mut tail = tail();
        let listed = [
            shard("a", Some("trimmed")),
            shard("b", Some("a")),
            shard("c", Some("b")),
            shard("d", Some("a")),
        ];
        tail.add(&listed);
        assert_eq!(open(&tail), ["a"]);
        tail.shards.insert(ShardId("a".to_owned()), Progress::Ended);
        tail.add(&listed[..1]);
        assert!(tail.lacks_children && tail.has_ended());
        tail.add(&listed);
        assert_eq!(open(&tail), ["b", "d"]);
        assert!(!tail.lacks_children && !tail.has_ended());
        // Trimmed from the listing, and from memory; its children go on.
        tail.shards.insert(ShardId("b".to_owned()), Progress::Ended);
        tail.add(&listed[2..]);
        assert_eq!(open(&tail), ["c", "d"]);
        assert!(!tail.shards.contains_key(&ShardId("a".to_owned())));
    }

    #[test]
    fn checkpoints_are_resumed_for_the_same_stream_only() {
        let mut tail = tail();
        let after = Position::After("7".to_owned());
        let progress = Progress::Open {
            position: after.clone(),
            cursor: None,
        };
        tail.shards.insert(ShardId("a".to_owned()), progress);
        tail.shards.insert(ShardId("b".to_owned()), Progress::Ended);
        let values = tail.values("me");

        let resumed = Tail::resume(tail.stream.clone(), values.clone());
        let resumed_head = resumed.head;
        let [(_, a), (_, b)] = resumed
            .shards
            .into_iter()
            .collect::<Vec<_>>()
            .try_into()
            .unwrap();
        assert!(matches!(a, Progress::Open { position, cursor: None } if position == after));
        assert!(matches!(b, Progress::Ended));
        assert_eq!(resumed_head.log, tail.head.log);
        let another = Tail::resume(StreamId("another".to_owned()), values);
        assert!(another.shards.is_empty());
        assert_ne!(another.head.log, tail.head.log);
    }
}
