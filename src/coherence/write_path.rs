//! The write path: fence the entries that the write can affect, commit, confirm by fencing
//! again, and only then acknowledge.

use std::{any::Any, collections::HashMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::future::{join, try_join};
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::Instrument as _;

use super::{
    Coherence,
    fault_injection::Sabotage,
    fencing::{Barrier, BarrierError, Cached, Fences},
    write_queues::QueueHead,
};
use crate::{
    backoff,
    domain::{Key, Origin, Record},
    store::{self, CommitError, Left, Step, StrongReads},
    telemetry::{CONTENTION, WRITES},
};

/// Time that must be left to confirm a write when its commit starts.
const CONFIRM_RESERVE: Duration = Duration::from_millis(250);
/// Confirmation ends this long before the deadline, so that its failure is returned.
const RESPONSE_RESERVE: Duration = Duration::from_millis(50);
/// Decisions of one change, which is decided again if the table changed meanwhile.
const MAX_DECISIONS: u32 = 16;
/// Longest pause before the second decision. Doubles each time, up to
/// [`MAX_CONTENTION_PAUSE`].
const CONTENTION_PAUSE: Duration = Duration::from_millis(10);
const MAX_CONTENTION_PAUSE: Duration = Duration::from_millis(160);

/// A permit that a write holds until it has ended.
pub type HeldPermit = Arc<dyn Any + Send + Sync>;

/// A change of the table. [`Coherence::apply`] may call [`Self::decide`] more than once,
/// each time on what the table holds then.
#[async_trait]
pub trait Change: Send + Sync + 'static {
    /// Result of the change.
    type Output: Send + 'static;
    /// Reason of a refusal.
    type Refusal: Send + 'static;

    /// All keys that the change can affect, whether there is a record or not.
    fn touches(&self) -> Vec<Key>;

    /// Whether the plan may publish records, see [`Plan::publish`].
    fn may_publish(&self) -> bool {
        false
    }

    /// Decides, on strong reads only.
    async fn decide(
        &self,
        table: &dyn StrongReads,
    ) -> Result<Verdict<Self::Output, Self::Refusal>, store::Error>;
}

/// Decision of a change.
#[derive(Debug)]
pub enum Verdict<T, R> {
    /// Commit this plan.
    Commit(Plan<T>),
    /// The table holds already what the change asks for.
    Keep {
        /// Result of the change.
        output: T,
        /// See [`Plan::premises`].
        premises: Vec<Record>,
    },
    /// Refuse, and reveal what the table holds. Later reads must not contradict it.
    Refuse {
        /// The reason.
        refusal: R,
        /// Keys without a record that the refusal reveals, besides the touched ones.
        absent: Vec<Key>,
        /// See [`Plan::premises`].
        premises: Vec<Record>,
    },
    /// Refuse, and reveal nothing.
    Deny(R),
}

impl<T, R> Verdict<T, R> {
    /// Refuses because of the touched keys alone.
    pub fn refuse(refusal: R) -> Self {
        Self::Refuse {
            refusal,
            absent: Vec::new(),
            premises: Vec::new(),
        }
    }
}

/// A transaction, and its effect on the cache.
#[derive(Debug)]
pub struct Plan<T> {
    /// The transaction.
    pub steps: Vec<Step>,
    /// Records to put into the cache once the write is confirmed. Only records that grant:
    /// after a write that revokes, the fences stay.
    pub publish: Vec<Record>,
    /// Records of other writes, as they were read, that the result reveals. Later reads
    /// must not contradict them.
    pub premises: Vec<Record>,
    /// Result of the change.
    pub output: T,
}

/// Reason why a change was not acknowledged.
#[derive(Debug)]
pub enum WriteError<R> {
    /// The change refused.
    Refused(R),
    /// Nothing was changed: the fences could not be placed, and there was no
    /// time left to do without the cache.
    CacheUnavailable,
    /// The change was applied, but cached answers may be older than it for a
    /// while.
    NotConfirmed,
    /// The table did not say whether the change was applied.
    OutcomeUnknown(store::Error),
    /// Nothing was changed: others changed the same records again and again.
    Contention,
    /// Nothing was changed: too many writes are under way.
    Overloaded,
    /// Nothing was changed: too little time was left.
    TooLate,
    /// Nothing was changed: the table failed.
    Store(store::Error),
    /// The task of the write ended without a result.
    Interrupted,
}

/// Result of one decision.
enum Attempt<T, R> {
    Done(Result<T, WriteError<R>>),
    /// The table changed meanwhile, or another change of this record is being committed.
    Again(Option<Key>),
}

impl Coherence {
    /// Applies a change. Returns once no replica serves a state from before it. A change that
    /// has begun runs to its end, also if the caller stops waiting, and holds `permit` until
    /// then.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub async fn apply<C: Change>(
        &self,
        change: C,
        origin: Origin,
        deadline: Instant,
        permit: Option<HeldPermit>,
    ) -> Result<C::Output, WriteError<C::Refusal>> {
        if !self.has_room_in_background() {
            return Err(WriteError::Overloaded);
        }
        let coherence = self.clone();
        let run = async move {
            let result = coherence.run(&change, &origin, deadline).await;
            drop(permit);
            result
        };
        self.background
            .spawn(run.in_current_span())
            .await
            .unwrap_or(Err(WriteError::Interrupted))
    }

    async fn run<C: Change>(
        &self,
        change: &C,
        origin: &Origin,
        deadline: Instant,
    ) -> Result<C::Output, WriteError<C::Refusal>> {
        let keys = change.touches();
        let latest_commit = deadline - CONFIRM_RESERVE;
        let mut queue_head = None;
        for decision in 1..=MAX_DECISIONS {
            let attempt = self.attempt(change, origin, &keys, deadline, &mut queue_head);
            match attempt.await {
                Attempt::Done(result) => return result,
                Attempt::Again(key) => {
                    metrics::counter!(CONTENTION).increment(1);
                    if queue_head.is_none() {
                        queue_head = self.write_queues.wait(key.as_ref(), latest_commit).await;
                    }
                    let resume = Instant::now() + pause_after(decision);
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
        &self,
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
        if self.lacks(Sabotage::NoOpWithoutFence) {
            match change.decide(self.store.as_ref()).await {
                Ok(Verdict::Keep { output, .. }) => return Attempt::Done(Ok(output)),
                Ok(Verdict::Refuse { refusal, .. }) => {
                    return Attempt::Done(Err(WriteError::Refused(refusal)));
                }
                _ => {}
            }
        }
        // A denied write does not wait for its barrier.
        let decide = async {
            let decided = change.decide(self.store.as_ref());
            match timeout_at(latest_commit, decided).await {
                Ok(Ok(Verdict::Deny(refusal))) => Err(WriteError::Refused(refusal)),
                Ok(Ok(verdict)) => Ok(verdict),
                Ok(Err(error)) => Err(WriteError::Store(error)),
                Err(_) => Err(WriteError::TooLate),
            }
        };
        let barrier = async {
            let barrier = self.barrier(keys, change.may_publish(), None, latest_commit);
            barrier.await.map_err(no_barrier)
        };
        let (verdict, barrier) = match try_join(decide, barrier).await {
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
                let revealed = self
                    .confirm_revealed(keys, by_key(premises), deadline)
                    .await;
                revealed.map(|()| output)
            }
            Verdict::Refuse {
                refusal,
                absent,
                premises,
            } => {
                queue_head.take();
                let mut premises = by_key(premises);
                premises.extend(absent.into_iter().map(|key| (key, Left::Nothing)));
                let revealed = self.confirm_revealed(keys, premises, deadline).await;
                revealed.and(Err(WriteError::Refused(refusal)))
            }
            Verdict::Deny(refusal) => Err(WriteError::Refused(refusal)),
        })
    }

    /// Ensures that no later read contradicts what the table holds now.
    async fn confirm_revealed<R>(
        &self,
        keys: &[Key],
        premises: HashMap<Key, Left>,
        deadline: Instant,
    ) -> Result<(), WriteError<R>> {
        let by = deadline - RESPONSE_RESERVE;
        let confirmed = self.confirm_with_premises(keys, None, &premises, by).await;
        confirmed.map(drop).ok_or(WriteError::CacheUnavailable)
    }

    async fn commit<T, R>(
        &self,
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
            Err(error) => return Attempt::Done(Err(no_barrier(error))),
        };
        let before = barrier.fences();
        let outcome_unknown = match self.store.commit(&plan.steps, origin).await {
            Ok(()) => None,
            Err(CommitError::Stale | CommitError::Conflict) => {
                return Attempt::Again(contended_key(&plan.steps, keys));
            }
            Err(CommitError::NotApplied(error)) => {
                return Attempt::Done(Err(WriteError::Store(error)));
            }
            Err(CommitError::OutcomeUnknown(error)) => Some(error),
        };
        // The commit has an outcome: the next change need not wait for the cache.
        queue_head.take();
        let premises = by_key(plan.premises);
        let required = required(&plan.steps);
        if self.lacks(Sabotage::PublishAfterCommit) {
            self.publish_instead_of_confirming(keys, &plan.publish)
                .await;
            return Attempt::Done(Ok(plan.output));
        }
        if self.lacks(Sabotage::AcknowledgeBeforeConfirm) {
            self.repair_in_background(keys.to_vec());
            return Attempt::Done(Ok(plan.output));
        }
        let read_time = self.now();
        let by = deadline - RESPONSE_RESERVE;
        let confirmed = self
            .confirm_with_premises(keys, before, &premises, by)
            .await;
        // The conditions of the transaction held when it was committed.
        self.local_caches.remove(&required);
        if confirmed.is_none() {
            tracing::warn!("write not confirmed; repairing in the background");
            let premises = premises.into_keys();
            self.repair_in_background(keys.iter().cloned().chain(premises).collect());
        }
        let outcome = match (&outcome_unknown, &confirmed) {
            (Some(_), _) => "unknown",
            (None, None) => "not_confirmed",
            (None, Some(Barrier::Fences(_))) => "fenced",
            (None, Some(Barrier::Unused(_))) => "without_cache",
        };
        metrics::counter!(WRITES, "outcome" => outcome).increment(1);
        Attempt::Done(match (outcome_unknown, confirmed) {
            (Some(error), _) => Err(WriteError::OutcomeUnknown(error)),
            (None, None) => Err(WriteError::NotConfirmed),
            (None, Some(confirmed)) => {
                if let Barrier::Fences(fences) = confirmed {
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
        while barrier.since().elapsed() > self.settings.timing.fence_max_age {
            barrier = self
                .barrier(keys, false, barrier.fences(), deadline)
                .await?;
        }
        Ok(barrier)
    }

    async fn confirm_with_premises(
        &self,
        keys: &[Key],
        before: Option<&Fences>,
        premises: &HashMap<Key, Left>,
        by: Instant,
    ) -> Option<Barrier> {
        let confirm = self.confirm(keys, before, by);
        let (confirmed, are_confirmed) = join(confirm, self.confirm_premises(premises, by)).await;
        confirmed.filter(|_| are_confirmed)
    }

    /// Ensures that no later read contradicts the premises. One could, if the write that made
    /// them was not confirmed.
    async fn confirm_premises(&self, premises: &HashMap<Key, Left>, deadline: Instant) -> bool {
        if premises.is_empty() {
            return true;
        }
        let compared = self.compare(premises).await.into_iter();
        let outdated: Vec<_> = compared
            .filter(|(_, cached)| matches!(cached, Cached::Contradicts | Cached::Unknown))
            .map(|(key, _)| key)
            .collect();
        let are_confirmed =
            outdated.is_empty() || self.confirm(&outdated, None, deadline).await.is_some();
        let keys: Vec<_> = premises.keys().cloned().collect();
        self.local_caches.remove(&keys);
        are_confirmed
    }

    /// Confirms until it succeeds, or until all older entries have expired.
    fn repair_in_background(&self, keys: Vec<Key>) {
        let coherence = self.clone();
        self.background.spawn(async move {
            let ages = keys
                .iter()
                .flat_map(|key| [true, false].map(|is_present| coherence.max_age(key, is_present)));
            let give_up = Instant::now() + ages.max().unwrap_or_default();
            if coherence.confirm(&keys, None, give_up).await.is_some() {
                tracing::info!("write confirmed late");
            }
        });
    }
}

fn no_barrier<R>(no_barrier: BarrierError) -> WriteError<R> {
    match no_barrier {
        BarrierError::TooLate => {
            tracing::warn!("write refused: the cache can be neither fenced nor left in time");
            WriteError::CacheUnavailable
        }
        BarrierError::Store(error) => WriteError::Store(error),
    }
}

/// The records that a transaction requires.
fn required(steps: &[Step]) -> Vec<Key> {
    let required = steps.iter().filter_map(|step| match step {
        Step::Require { key, .. } => Some(key.clone()),
        _ => None,
    });
    required.collect()
}

/// The record that concurrent changes contend for: an organization, if there is one,
/// because all changes of its members require it.
fn contended_key(steps: &[Step], keys: &[Key]) -> Option<Key> {
    let mut organizations = required(steps).into_iter().chain(keys.iter().cloned());
    let organization = organizations.find(|key| matches!(key, Key::Organization(_)));
    organization.or_else(|| keys.first().cloned())
}

fn pause_after(decision: u32) -> Duration {
    let pause = CONTENTION_PAUSE.saturating_mul(2_u32.saturating_pow(decision - 1));
    let pause = pause.min(MAX_CONTENTION_PAUSE);
    backoff::up_to(pause)
}

fn by_key(premises: Vec<Record>) -> HashMap<Key, Left> {
    let premises = premises.into_iter();
    premises
        .map(|record| (record.key(), Left::Record(record)))
        .collect()
}
