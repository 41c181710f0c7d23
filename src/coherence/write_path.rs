//! The write path: fence the entries that the write can affect, commit, confirm by fencing
//! again, and only then acknowledge.

use std::{collections::HashMap, sync::Arc, time::Duration};

use backon::{BackoffBuilder as _, ExponentialBuilder};
use futures_util::future::{join, try_join};
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::Instrument as _;

use super::{
    Change, HeldPermit, Plan, Timing, Verdict, WriteError,
    background::BackgroundTasks,
    fence_writer::CacheFences,
    fencing::{Barrier, BarrierError, CacheBarrier, Cached, Fencing},
    near_cache::NearCache,
    replica_directory::ReplicaDirectory,
    replica_fencing::ReplicaFences,
    write_queues::{QueueHead, WriteQueues},
};
use crate::{
    domain::{Key, Origin, Record, Timestamp},
    store::{CommitError, DynamoDb, StateAfter, Step},
    telemetry::{CONTENTION, WRITES},
};

/// Time that must be left to confirm a write when its commit starts.
const CONFIRM_RESERVE: Duration = Duration::from_millis(250);
/// Confirmation ends this long before the deadline, so that its failure is returned.
const RESPONSE_RESERVE: Duration = Duration::from_millis(50);
/// Most decisions of one change. It is decided again if the table has changed meanwhile.
const MAX_DECISIONS: usize = 16;
/// Pauses between decisions: 5 ms to 80 ms, and up to as much again by jitter.
const CONTENTION_PAUSES: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(Duration::from_millis(5))
    .with_max_delay(Duration::from_millis(80))
    .with_max_times(MAX_DECISIONS)
    .with_jitter();

/// Result of one attempt: a decision, its barrier and its commit.
enum Attempt<T, R> {
    Done(Result<T, WriteError<R>>),
    /// Decide again: a condition has failed, or another transaction holds an item. Contains the
    /// contended record.
    Again(Option<Key>),
}

/// Applies changes to the table.
pub struct WritePath {
    table: DynamoDb,
    fencing: Arc<Fencing>,
    near_cache: Arc<NearCache>,
    directory: Arc<ReplicaDirectory>,
    write_queues: WriteQueues,
    timing: Timing,
    background: BackgroundTasks,
}

impl WritePath {
    pub(super) fn new(
        table: DynamoDb,
        fencing: Arc<Fencing>,
        near_cache: Arc<NearCache>,
        directory: Arc<ReplicaDirectory>,
        background: BackgroundTasks,
        timing: Timing,
    ) -> Self {
        Self {
            table,
            fencing,
            near_cache,
            directory,
            write_queues: WriteQueues::default(),
            timing,
            background,
        }
    }

    /// Applies a change. Returns once no replica serves a state from before it. A change that
    /// has begun runs to its end, also if the caller stops waiting, and holds `permit` until
    /// then.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub async fn apply<C: Change>(
        self: &Arc<Self>,
        change: C,
        origin: Origin,
        deadline: Instant,
        permit: Option<HeldPermit>,
    ) -> Result<C::Output, WriteError<C::Refusal>> {
        if !self.background.has_room() {
            return Err(WriteError::Overloaded);
        }
        let write_path = self.clone();
        let run = async move {
            let result = write_path.run(&change, &origin, deadline).await;
            drop(permit);
            result
        };
        self.background
            .spawn(run.in_current_span())
            .await
            .unwrap_or(Err(WriteError::Interrupted))
    }

    async fn run<C: Change>(
        self: &Arc<Self>,
        change: &C,
        origin: &Origin,
        deadline: Instant,
    ) -> Result<C::Output, WriteError<C::Refusal>> {
        let keys = change.touches();
        let latest_commit = deadline - CONFIRM_RESERVE;
        let mut queue_head = None;
        for pause in CONTENTION_PAUSES.build() {
            let attempt = self.attempt(change, origin, &keys, deadline, &mut queue_head);
            match attempt.await {
                Attempt::Done(result) => return result,
                Attempt::Again(key) => {
                    metrics::counter!(CONTENTION).increment(1);
                    if queue_head.is_none() {
                        queue_head = self.write_queues.wait(key.as_ref(), latest_commit).await;
                    }
                    let resume = Instant::now() + pause;
                    if queue_head.is_none() || resume > latest_commit {
                        return Err(WriteError::Contention);
                    }
                    sleep_until(resume).await;
                }
            }
        }
        Err(WriteError::Contention)
    }

    async fn attempt<C: Change>(
        self: &Arc<Self>,
        change: &C,
        origin: &Origin,
        keys: &[Key],
        deadline: Instant,
        queue_head: &mut QueueHead<'_>,
    ) -> Attempt<C::Output, C::Refusal> {
        let latest_commit = deadline - CONFIRM_RESERVE;
        if Instant::now() > latest_commit {
            return Attempt::Done(Err(WriteError::TooLate));
        }
        // A denied write does not wait for its barrier.
        let decide = async {
            let decided = change.decide(&self.table);
            match timeout_at(latest_commit, decided).await {
                Ok(Ok(Verdict::Deny(refusal))) => Err(WriteError::Refused(refusal)),
                Ok(Ok(verdict)) => Ok(verdict),
                Ok(Err(error)) => Err(WriteError::Store(error)),
                Err(_) => Err(WriteError::TooLate),
            }
        };
        let barrier = async {
            let raised = self
                .fencing
                .barrier(keys, change.may_publish(), latest_commit);
            raised.await.map_err(write_error)
        };
        let (verdict, mut barrier) = match try_join(decide, barrier).await {
            Ok(both) => both,
            Err(error) => return Attempt::Done(Err(error)),
        };
        Attempt::Done(match verdict {
            Verdict::Commit(plan) => {
                let commit = self.commit(plan, origin, keys, barrier, deadline, queue_head);
                return commit.await;
            }
            Verdict::Keep { output, premises } => {
                queue_head.take();
                let premises = by_key(premises);
                let revealed =
                    self.confirm_revealed(keys, &mut barrier.replicas, premises, deadline);
                revealed.await.map(|()| output)
            }
            Verdict::Refuse {
                refusal,
                absent,
                premises,
            } => {
                queue_head.take();
                let mut premises = by_key(premises);
                premises.extend(absent.into_iter().map(|key| (key, StateAfter::Nothing)));
                let revealed =
                    self.confirm_revealed(keys, &mut barrier.replicas, premises, deadline);
                revealed.await.and(Err(WriteError::Refused(refusal)))
            }
            // Returned above already.
            Verdict::Deny(refusal) => Err(WriteError::Refused(refusal)),
        })
    }

    /// Ensures that no later read contradicts the present content of the table.
    async fn confirm_revealed<R>(
        &self,
        keys: &[Key],
        replicas: &mut ReplicaFences,
        premises: HashMap<Key, StateAfter>,
        deadline: Instant,
    ) -> Result<(), WriteError<R>> {
        let by = deadline - RESPONSE_RESERVE;
        let confirmed = self.confirm_with_premises(keys, None, replicas, &premises, by);
        confirmed
            .await
            .map(drop)
            .ok_or(WriteError::CacheUnavailable)
    }

    async fn commit<T, R>(
        self: &Arc<Self>,
        plan: Plan<T>,
        origin: &Origin,
        keys: &[Key],
        barrier: Barrier,
        deadline: Instant,
        queue_head: &mut QueueHead<'_>,
    ) -> Attempt<T, R> {
        let latest_commit = deadline - CONFIRM_RESERVE;
        let barrier = match self.renew_barrier(barrier, keys, latest_commit).await {
            Ok(barrier) if Instant::now() <= latest_commit => barrier,
            Ok(_) => return Attempt::Done(Err(WriteError::TooLate)),
            Err(error) => return Attempt::Done(Err(write_error(error))),
        };
        let Barrier {
            cache,
            mut replicas,
        } = barrier;
        // From here on, because an aborted task may leave a transaction that is applied later.
        replicas.end_holds_by_time();
        let outcome_unknown = match self.table.commit(&plan.steps, origin).await {
            Ok(()) => None,
            Err(CommitError::Stale | CommitError::Conflict) => {
                replicas.release_holds_on_drop();
                return Attempt::Again(contended_key(&plan.steps, keys));
            }
            Err(CommitError::NotApplied(error)) => {
                replicas.release_holds_on_drop();
                return Attempt::Done(Err(WriteError::Store(error)));
            }
            Err(CommitError::OutcomeUnknown(error)) => Some(error),
        };
        // The commit has an outcome: the next change need not wait for the cache.
        queue_head.take();
        let premises = by_key(plan.premises);
        let checked = keys_of_conditions(&plan.steps);
        let read_time = self.fencing.now();
        let by = deadline - RESPONSE_RESERVE;
        let confirmed = self
            .confirm_with_premises(keys, cache.fences(), &mut replicas, &premises, by)
            .await;
        // The response reveals the records that the conditions checked.
        self.remove_incoherent(&checked);
        if confirmed.is_some() && outcome_unknown.is_none() {
            replicas.release_holds_on_drop();
        }
        if confirmed.is_none() {
            tracing::warn!("write not confirmed; repairing in the background");
            let premises = premises.into_keys();
            self.repair_in_background(keys.iter().cloned().chain(premises).collect());
        }
        let outcome = match (&outcome_unknown, &confirmed) {
            (Some(_), _) => "unknown",
            (None, None) => "not_confirmed",
            (None, Some(CacheBarrier::Fences(_))) => "fenced",
            (None, Some(CacheBarrier::Unused(_))) => "without_cache",
        };
        metrics::counter!(WRITES, "outcome" => outcome).increment(1);
        Attempt::Done(match (outcome_unknown, confirmed) {
            (Some(error), _) => Err(WriteError::OutcomeUnknown(error)),
            (None, None) => Err(WriteError::NotConfirmed),
            (None, Some(confirmed)) => {
                if let CacheBarrier::Fences(fences) = confirmed {
                    self.publish_in_background(plan.publish, fences, read_time);
                }
                Ok(plan.output)
            }
        })
    }

    /// Raises the barrier anew if its fences could expire before the commit has ended, as
    /// after slow reads. The decision stands: the conditions of the transaction check it.
    async fn renew_barrier(
        &self,
        mut barrier: Barrier,
        keys: &[Key],
        deadline: Instant,
    ) -> Result<Barrier, BarrierError> {
        while barrier.age() > self.timing.fence_max_age {
            self.fencing.renew(&mut barrier, keys, deadline).await?;
        }
        Ok(barrier)
    }

    async fn confirm_with_premises(
        &self,
        keys: &[Key],
        before: Option<&CacheFences>,
        replicas: &mut ReplicaFences,
        premises: &HashMap<Key, StateAfter>,
        by: Instant,
    ) -> Option<CacheBarrier> {
        let confirm = self.fencing.confirm(keys, before, replicas, by);
        let (confirmed, are_confirmed) = join(confirm, self.confirm_premises(premises, by)).await;
        confirmed.filter(|_| are_confirmed)
    }

    /// Ensures that no later read contradicts the premises. A read could do so if the write of a
    /// premise was not confirmed.
    async fn confirm_premises(
        &self,
        premises: &HashMap<Key, StateAfter>,
        deadline: Instant,
    ) -> bool {
        if premises.is_empty() {
            return true;
        }
        let compared = self.fencing.compare(premises).await.into_iter();
        let outdated: Vec<_> = compared
            .filter(|(_, cached)| matches!(cached, Cached::Contradicts | Cached::Unknown))
            .map(|(key, _)| key)
            .collect();
        let are_confirmed =
            outdated.is_empty() || self.fencing.invalidate(&outdated, deadline).await;
        let keys: Vec<_> = premises.keys().cloned().collect();
        self.remove_incoherent(&keys);
        are_confirmed
    }

    /// Removes this replica's copies that are not coherent. Reads with a staleness bound could
    /// return them.
    fn remove_incoherent(&self, keys: &[Key]) {
        let epoch = || self.directory.serving_epoch(Instant::now());
        self.near_cache.remove_incoherent(keys, epoch);
    }

    /// Replaces the confirming fences by the written records.
    fn publish_in_background(
        self: &Arc<Self>,
        records: Vec<Record>,
        fences: CacheFences,
        read_time: Timestamp,
    ) {
        if records.is_empty() || !self.background.has_room() {
            return;
        }
        let write_path = self.clone();
        self.background.spawn(async move {
            let publish = write_path.fencing.publish(records, fences, read_time);
            publish.await;
        });
    }

    /// Confirms until it succeeds, or until all older entries have expired.
    fn repair_in_background(self: &Arc<Self>, keys: Vec<Key>) {
        let write_path = self.clone();
        self.background.spawn(async move {
            let fencing = &write_path.fencing;
            let max_age = keys.iter().map(|key| fencing.max_age(key)).max();
            let deadline = Instant::now() + max_age.unwrap_or_default();
            if fencing.invalidate(&keys, deadline).await {
                tracing::info!("write confirmed late");
            }
        });
    }
}

fn write_error<R>(error: BarrierError) -> WriteError<R> {
    match error {
        BarrierError::NotRaised => {
            tracing::warn!(
                "write rejected: the cache could be neither fenced nor taken out of use in time, or a replica could be neither fenced nor evicted"
            );
            WriteError::CacheUnavailable
        }
        BarrierError::Store(error) => WriteError::Store(error),
    }
}

/// The records that the conditions of a transaction check, and that it does not change.
fn keys_of_conditions(steps: &[Step]) -> Vec<Key> {
    let checked = steps.iter().filter_map(|step| match step {
        Step::Require { .. } | Step::RequireVersion { .. } => step.key(),
        _ => None,
    });
    checked.collect()
}

/// The record that concurrent changes contend for: an organization, if there is one,
/// because all changes of its members require it.
fn contended_key(steps: &[Step], keys: &[Key]) -> Option<Key> {
    let mut organizations = keys_of_conditions(steps)
        .into_iter()
        .chain(keys.iter().cloned());
    let organization = organizations.find(|key| matches!(key, Key::Organization(_)));
    organization.or_else(|| keys.first().cloned())
}

fn by_key(premises: Vec<Record>) -> HashMap<Key, StateAfter> {
    let premises = premises.into_iter();
    premises
        .map(|record| (record.key(), StateAfter::Record(record)))
        .collect()
}
