//! The stream invalidator: follows the table's stream, fences the records that were changed
//! without the service or by a replica that crashed, and writes the change log. One replica
//! at a time runs it, by a lease in the table.

mod change_log_writer;
mod membership_counts;
mod shard_progress;

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream};
use tokio::time::{Instant, sleep, sleep_until};

use self::shard_progress::{Progress, StreamProgress};
use super::leader_lease::{HeldLease, LeaderLease};
use crate::{
    coherence::{Cached, Fencing},
    domain::{Key, Timestamp},
    store::{
        self, Changed, ChangedRecord, DynamoDb, LOG_REGISTER, LogHead, Position, Register, ShardId,
        StateAfter, StreamError, StreamId, StreamPage,
    },
    telemetry::{INVALIDATOR_ACTIVE, INVALIDATOR_FENCES, INVALIDATOR_LAG},
};

/// Shards that are read at once.
const SHARDS_AT_ONCE: usize = 16;
/// Changed records that are compared with the cache and fenced together.
const RECORDS_AT_ONCE: usize = 100;
/// Added to the greatest age of an entry. Changes beyond that age are skipped. Clocks differ, and
/// the stream's times are approximate.
const CLOCK_SLACK: Duration = Duration::from_secs(600);

/// Intervals of the invalidator.
#[derive(Debug, Clone, Copy)]
pub struct InvalidatorTiming {
    /// Interval of reading a shard. DynamoDB allows five reads a second for all readers
    /// together. A read returns more than is written in this time.
    pub poll: Duration,
    /// Longest time between two writes of the lease, with the checkpoints.
    pub beat: Duration,
    /// Time without a write after which another replica takes the lease.
    pub takeover: Duration,
    /// Interval of listing the shards.
    pub discover: Duration,
    /// The same, while the children of an ended shard are not listed.
    pub rediscover: Duration,
    /// Longest attempt to fence a change.
    pub fence: Duration,
}

impl Default for InvalidatorTiming {
    fn default() -> Self {
        Self {
            poll: Duration::from_millis(250),
            beat: Duration::from_secs(2),
            takeover: Duration::from_secs(6),
            discover: Duration::from_secs(30),
            rediscover: Duration::from_secs(1),
            fence: Duration::from_secs(10),
        }
    }
}

/// Follows the stream while this replica holds the lease.
pub struct StreamInvalidator {
    table: DynamoDb,
    fencing: Arc<Fencing>,
    leader: LeaderLease,
    timing: InvalidatorTiming,
}

/// Reason why this replica stops following.
enum Stop {
    /// Another replica has the lease.
    Deposed,
    /// The stream has ended. There may be another one.
    StreamGone,
    /// A failure. A retry may succeed.
    Failed(store::Error),
}

impl StreamInvalidator {
    /// An invalidator of the records of `table`.
    #[must_use]
    pub fn new(table: DynamoDb, fencing: Arc<Fencing>, timing: InvalidatorTiming) -> Self {
        Self {
            leader: LeaderLease::new(table.clone(), LOG_REGISTER, timing.takeover),
            table,
            fencing,
            timing,
        }
    }

    /// Waits for the lease and follows the stream. Never ends.
    pub async fn run(&self) {
        self.leader.run(Box::pin(self.lead())).await;
    }

    async fn lead(&self) {
        metrics::gauge!(INVALIDATOR_ACTIVE).set(0);
        let mut candidate = self.leader.candidate();
        loop {
            match self.leader.read().await {
                Ok(register) if candidate.may_take(register.as_ref()) => {
                    if let Err(error) = self.take_lease_and_follow(register).await {
                        tracing::warn!(%error, "the stream cannot be followed");
                    }
                    candidate.forget();
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, "the invalidator's lease cannot be read"),
            }
            sleep(self.timing.beat / 2).await;
        }
    }

    /// Takes the lease and follows the stream until the lease is lost.
    async fn take_lease_and_follow(&self, register: Option<Register>) -> Result<(), store::Error> {
        let Some(stream) = self.table.stream().await? else {
            tracing::warn!("the table has no stream: changes by other writers are not detected");
            sleep(self.timing.discover).await;
            return Ok(());
        };
        let version = register.as_ref().map(|register| register.version);
        let mut stream_progress =
            StreamProgress::resume(stream, register.map(|it| it.values).unwrap_or_default());
        let Some(mut lease) = self.leader.write(version, stream_progress.values()).await? else {
            return Ok(());
        };
        tracing::info!("following the table's stream");
        metrics::gauge!(INVALIDATOR_ACTIVE).set(1);
        let stopped = self.follow(&mut stream_progress, &mut lease).await;
        metrics::gauge!(INVALIDATOR_ACTIVE).set(0);
        metrics::gauge!(INVALIDATOR_LAG).set(0);
        match stopped {
            Stop::Deposed => tracing::info!("another replica follows the table's stream"),
            Stop::StreamGone => tracing::warn!("the table's stream is gone"),
            Stop::Failed(error) => return Err(error),
        }
        Ok(())
    }

    async fn follow(&self, stream_progress: &mut StreamProgress, lease: &mut HeldLease) -> Stop {
        loop {
            if let Err(stop) = self.discover(stream_progress).await {
                return stop;
            }
            let next = Instant::now() + self.timing.poll;
            if let Err(stop) = self.read_shards(stream_progress, lease).await {
                return stop;
            }
            if let Err(stop) = self.log_ends(stream_progress, lease).await {
                return stop;
            }
            let since = lease.written.elapsed();
            if (since >= self.timing.beat
                || stream_progress.has_unsaved && since >= self.timing.poll)
                && let Err(stop) = self.beat(stream_progress, lease).await
            {
                return stop;
            }
            sleep_until(next).await;
        }
    }

    /// Lists the shards at intervals, and when one has ended. A stream that was turned off
    /// ends all its shards. The table may have another one.
    async fn discover(&self, stream_progress: &mut StreamProgress) -> Result<(), Stop> {
        let pause = if stream_progress.lacks_children {
            self.timing.rediscover
        } else {
            self.timing.discover
        };
        if stream_progress
            .discovered
            .is_some_and(|since| since.elapsed() < pause)
        {
            return Ok(());
        }
        if stream_progress.has_ended() {
            let stream = self.table.stream().await.map_err(Stop::Failed)?;
            if stream.is_some_and(|stream| stream != stream_progress.stream) {
                return Err(Stop::StreamGone);
            }
        }
        let listed = self.table.stream_shards(&stream_progress.stream).await;
        let listed = listed.map_err(|error| match error {
            StreamError::Store(error) => Stop::Failed(error),
            StreamError::Gone | StreamError::Trimmed | StreamError::Expired => Stop::StreamGone,
        })?;
        stream_progress.add(&listed, Timestamp::now());
        stream_progress.discovered = Some(Instant::now());
        Ok(())
    }

    /// Reads a page of every open shard, and logs its changes. A failed shard is retried
    /// later, without delay for the others. Fails if all shards fail.
    async fn read_shards(
        &self,
        stream_progress: &mut StreamProgress,
        lease: &mut HeldLease,
    ) -> Result<(), Stop> {
        let began = self.fencing.now();
        let open: Vec<_> = stream_progress
            .shards
            .iter()
            .filter(|(_, progress)| matches!(progress, Progress::Open { .. }))
            .map(|(id, progress)| (id.clone(), progress.clone()))
            .collect();
        let read = open.into_iter().map(|(id, progress)| async {
            let read = self
                .read_shard(&stream_progress.stream, &id, progress)
                .await;
            (id, read)
        });
        let read: Vec<_> = stream::iter(read.collect::<Vec<_>>())
            .buffer_unordered(SHARDS_AT_ONCE)
            .collect()
            .await;
        let mut lag = Duration::ZERO;
        let mut is_complete = true;
        let mut is_any_read = read.is_empty();
        let mut failure = None;
        for (id, read) in read {
            let read = match read {
                Ok(read) => read,
                Err(error) => {
                    tracing::warn!(%error, shard = id.0, "a shard cannot be followed");
                    failure = Some(error);
                    continue;
                }
            };
            is_any_read = true;
            lag = lag.max(read.lag);
            if matches!(read.progress, Progress::Ended | Progress::Lost) {
                // Its children must be listed.
                is_complete = false;
                stream_progress.discovered = None;
                stream_progress.has_unsaved = true;
            }
            stream_progress.has_unsaved |= read.has_records;
            if read.is_interrupted {
                tracing::warn!(
                    shard = id.0,
                    "changes may have been missed; a new log begins"
                );
                stream_progress.head = LogHead::begin();
                stream_progress.has_unsaved = true;
            }
            self.log(&id, read.changes, stream_progress, lease).await?;
            stream_progress.shards.insert(id, read.progress);
        }
        metrics::gauge!(INVALIDATOR_LAG).set(lag.as_secs_f64());
        if is_complete && failure.is_none() && !stream_progress.lacks_children {
            stream_progress.head.processed = began.before(lag);
        }
        match failure {
            Some(error) if !is_any_read => Err(Stop::Failed(error)),
            _ => Ok(()),
        }
    }

    async fn read_shard(
        &self,
        stream: &StreamId,
        id: &ShardId,
        progress: Progress,
    ) -> Result<Read, store::Error> {
        let Progress::Open { position, cursor } = progress.clone() else {
            return Ok(Read::just(progress));
        };
        let page = async {
            let cursor = match cursor {
                Some(cursor) => cursor,
                None => self.table.shard_iterator(stream, id, &position).await?,
            };
            self.table.stream_page(&cursor).await
        };
        match page.await {
            Ok(page) => self.process(page, position).await,
            // Missed changes are older than all entries.
            Err(StreamError::Trimmed) => Ok(Read {
                is_interrupted: matches!(position, Position::After(_)),
                ..Read::just(Progress::Open {
                    position: Position::Oldest,
                    cursor: None,
                })
            }),
            Err(StreamError::Expired) => Ok(Read::just(Progress::Open {
                position,
                cursor: None,
            })),
            Err(StreamError::Gone) => Ok(Read {
                is_interrupted: true,
                ..Read::just(Progress::Lost)
            }),
            Err(StreamError::Store(error)) => Err(error),
        }
    }

    /// Fences the changed records of a page. The page counts as read only after that.
    async fn process(&self, page: StreamPage, position: Position) -> Result<Read, store::Error> {
        let StreamPage { changes, next } = page;
        let lag = self.age_of(changes.last());
        let last = changes.last().map(|changed| changed.sequence.clone());
        let records: Vec<_> = changes
            .iter()
            .filter(|changed| self.may_be_cached(changed))
            .filter_map(|changed| changed.record.clone())
            .collect();
        let has_records = !records.is_empty();
        if has_records {
            self.invalidate(records).await?;
        }
        let progress = match next {
            None => Progress::Ended,
            cursor => Progress::Open {
                position: last.map_or(position, Position::After),
                cursor,
            },
        };
        Ok(Read {
            progress,
            changes,
            has_records,
            is_interrupted: false,
            lag,
        })
    }

    /// Whether an entry from before the change may still be accepted.
    fn may_be_cached(&self, changed: &Changed) -> bool {
        let Some((time, record)) = changed.time.zip(changed.record.as_ref()) else {
            return true;
        };
        let limit = self.fencing.max_age(&record.key) + CLOCK_SLACK;
        let age = self.fencing.now().0.saturating_sub(time.0);
        u128::try_from(age).map_or(true, |age| age <= limit.as_millis())
    }

    /// Fences the records with entries that may be older than the changes.
    async fn invalidate(&self, records: Vec<ChangedRecord>) -> Result<(), store::Error> {
        // Of several changes of a record, the last one decides.
        let last: HashMap<_, _> = records
            .into_iter()
            .map(|record| (record.key, record.left))
            .collect();
        let last: Vec<_> = last.into_iter().collect();
        for some in last.chunks(RECORDS_AT_ONCE) {
            self.invalidate_some(&some.iter().cloned().collect())
                .await?;
        }
        Ok(())
    }

    async fn invalidate_some(&self, left: &HashMap<Key, StateAfter>) -> Result<(), store::Error> {
        let compared = self.fencing.compare(left).await;
        let contradicting = compared
            .iter()
            .filter(|(_, cached)| *cached == Cached::Contradicts);
        metrics::counter!(INVALIDATOR_FENCES).increment(contradicting.count() as u64);
        // Fenced keys, too: the write of a fence may be about to publish a record from before this
        // change.
        let outdated = compared
            .iter()
            .filter(|(_, cached)| *cached != Cached::Agrees);
        let outdated: Vec<_> = outdated.map(|(key, _)| key.clone()).collect();
        // Also records that agree with the cache: no other replica can look into a near cache.
        let all: Vec<_> = compared.into_iter().map(|(key, _)| key).collect();
        let deadline = Instant::now() + self.timing.fence;
        let fencing = &self.fencing;
        let is_cache_fenced =
            outdated.is_empty() || fencing.invalidate_cache(&outdated, deadline).await;
        if is_cache_fenced && fencing.invalidate_memory(&all, deadline).await {
            return Ok(());
        }
        Err(store::Error::new(
            store::ErrorKind::Unavailable,
            "the cache could be neither fenced nor taken out of use, or a replica neither fenced nor \
             evicted",
        ))
    }

    /// The age of a change, by the wall clock and the stream's time.
    fn age_of(&self, changed: Option<&Changed>) -> Duration {
        let time = changed.and_then(|changed| changed.time);
        let millis = time.map_or(0, |time| self.fencing.now().0.saturating_sub(time.0));
        Duration::from_millis(u64::try_from(millis).unwrap_or(0))
    }

    /// Writes the lease and the checkpoints.
    async fn beat(
        &self,
        stream_progress: &mut StreamProgress,
        lease: &mut HeldLease,
    ) -> Result<(), Stop> {
        let written = self
            .leader
            .write(Some(lease.version), stream_progress.values())
            .await;
        *lease = written.map_err(Stop::Failed)?.ok_or(Stop::Deposed)?;
        stream_progress.has_unsaved = false;
        Ok(())
    }

    /// Stops, and releases the lease, so that no replica has to wait for it.
    pub async fn resign(&self) {
        self.leader.resign().await;
    }
}

/// The result of reading a shard.
struct Read {
    progress: Progress,
    /// The changes of the page.
    changes: Vec<Changed>,
    /// Whether there were changes of records.
    has_records: bool,
    /// Whether changes before the page may have been missed.
    is_interrupted: bool,
    /// Age of the last change.
    lag: Duration,
}

impl Read {
    fn just(progress: Progress) -> Self {
        Self {
            progress,
            changes: Vec::new(),
            has_records: false,
            is_interrupted: false,
            lag: Duration::ZERO,
        }
    }
}
