//! Writes: fence what the write can affect, commit, confirm by fencing again,
//! and only then acknowledge.

use std::{any::Any, collections::HashMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::future::{join, try_join};
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::Instrument as _;

use super::{
    Coherence,
    fault_injection::Sabotage,
    fencing::{Cached, Cover, Fences, Uncovered},
    write_queues::Turn,
};
use crate::{
    backoff,
    domain::{Key, Origin, Record},
    store::{self, CommitError, Left, Step, StrongReads},
    telemetry::{CONTENTION, WRITES},
};

/// A commit does not start with less time than this left to confirm it.
const CONFIRM_RESERVE: Duration = Duration::from_millis(250);
/// Confirming ends this long before the deadline, so that its failure is told.
const ANSWER_RESERVE: Duration = Duration::from_millis(50);
/// Times a change is decided because the table changed under it.
const MAX_DECISIONS: u32 = 16;
/// Greatest pause before the second decision; doubled each time, up to a bound.
const CONTENTION_PAUSE: Duration = Duration::from_millis(10);
const MAX_CONTENTION_PAUSE: Duration = Duration::from_millis(160);

/// Something to keep for as long as work is under way.
pub type Held = Arc<dyn Any + Send + Sync>;

/// A change to the table. [`Coherence::apply`] may ask it to decide more than
/// once, each time on what the table holds then.
#[async_trait]
pub trait Change: Send + Sync + 'static {
    /// What the change returns.
    type Output: Send + 'static;
    /// Why it may refuse.
    type Refusal: Send + 'static;

    /// Every key that the change can affect, also if there is nothing under it
    /// yet.
    fn touches(&self) -> Vec<Key>;

    /// Whether the change may have something to publish, see [`Plan::publish`].
    fn may_publish(&self) -> bool {
        false
    }

    /// Decides, on strong reads only, what to do.
    async fn decide(
        &self,
        table: &dyn StrongReads,
    ) -> Result<Verdict<Self::Output, Self::Refusal>, store::Error>;
}

/// What a change decided.
#[derive(Debug)]
pub enum Verdict<T, R> {
    /// Commit this.
    Commit(Plan<T>),
    /// The table is as the change wants it.
    Keep {
        /// What the change returns.
        output: T,
        /// See [`Plan::upholds`].
        upholds: Vec<Record>,
    },
    /// Refuse, revealing what the table holds: cached answers must not
    /// contradict it.
    Refuse {
        /// Why.
        refusal: R,
        /// Keys, besides those touched, under which nothing was found, as the
        /// refusal reveals.
        absent: Vec<Key>,
        /// See [`Plan::upholds`].
        upholds: Vec<Record>,
    },
    /// Refuse, revealing nothing.
    Deny(R),
}

impl<T, R> Verdict<T, R> {
    /// Refuses for what the change touches, and nothing else.
    pub fn refuse(refusal: R) -> Self {
        Self::Refuse {
            refusal,
            absent: Vec::new(),
            upholds: Vec::new(),
        }
    }
}

/// What to commit.
#[derive(Debug)]
pub struct Plan<T> {
    /// The transaction.
    pub steps: Vec<Step>,
    /// Records to put into the cache once the write is confirmed. Only what
    /// grants: a write that takes something away leaves its fences standing.
    pub publish: Vec<Record>,
    /// Records, as they were found, that the answer says are there, and that
    /// others wrote.
    pub upholds: Vec<Record>,
    /// What the change returns.
    pub output: T,
}

/// Why a change was not acknowledged.
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
    /// The write's task ended without an answer.
    Interrupted,
}

/// What one decision came to.
enum Attempt<T, R> {
    Done(Result<T, WriteError<R>>),
    /// The table changed under the decision, or others are at work on this record.
    Again(Option<Key>),
}

impl Coherence {
    /// Applies a change and returns once no replica answers from before it.
    /// Once begun it runs to its end, also if the caller stops waiting, and keeps
    /// `place` until then.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub async fn apply<C: Change>(
        &self,
        change: C,
        origin: Origin,
        deadline: Instant,
        place: Option<Held>,
    ) -> Result<C::Output, WriteError<C::Refusal>> {
        if !self.has_room_in_background() {
            return Err(WriteError::Overloaded);
        }
        let coherence = self.clone();
        let run = async move {
            let result = coherence.run(&change, &origin, deadline).await;
            drop(place);
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
        let mut turn = None;
        for decision in 1..=MAX_DECISIONS {
            let attempt = self.attempt(change, origin, &keys, deadline, &mut turn);
            match attempt.await {
                Attempt::Done(result) => return result,
                Attempt::Again(key) => {
                    metrics::counter!(CONTENTION).increment(1);
                    if turn.is_none() {
                        turn = self.turns.wait(key.as_ref(), latest_commit).await;
                    }
                    let resume = Instant::now() + pause_after(decision);
                    if turn.is_none() || resume > latest_commit {
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
        turn: &mut Turn<'_>,
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
        // A write that is denied does not wait for its cover.
        let decide = async {
            let decided = change.decide(self.store.as_ref());
            match timeout_at(latest_commit, decided).await {
                Ok(Ok(Verdict::Deny(refusal))) => Err(WriteError::Refused(refusal)),
                Ok(Ok(verdict)) => Ok(verdict),
                Ok(Err(error)) => Err(WriteError::Store(error)),
                Err(_) => Err(WriteError::TooLate),
            }
        };
        let cover = async {
            let cover = self.cover(keys, change.may_publish(), None, latest_commit);
            cover.await.map_err(uncovered)
        };
        let (verdict, cover) = match try_join(decide, cover).await {
            Ok(both) => both,
            Err(error) => return Attempt::Done(Err(error)),
        };
        Attempt::Done(match verdict {
            Verdict::Commit(plan) => {
                let commit = self.commit(plan, origin, keys, cover, deadline, turn);
                return commit.await;
            }
            Verdict::Keep { output, upholds } => {
                turn.take();
                let revealed = self.reveal(keys, grounds(upholds), deadline).await;
                revealed.map(|()| output)
            }
            Verdict::Refuse {
                refusal,
                absent,
                upholds,
            } => {
                turn.take();
                let mut grounds = grounds(upholds);
                grounds.extend(absent.into_iter().map(|key| (key, Left::Nothing)));
                let revealed = self.reveal(keys, grounds, deadline).await;
                revealed.and(Err(WriteError::Refused(refusal)))
            }
            Verdict::Deny(refusal) => Err(WriteError::Refused(refusal)),
        })
    }

    /// Makes sure that no cached answer contradicts what the table holds now.
    async fn reveal<R>(
        &self,
        keys: &[Key],
        grounds: HashMap<Key, Left>,
        deadline: Instant,
    ) -> Result<(), WriteError<R>> {
        let by = deadline - ANSWER_RESERVE;
        let confirmed = self.confirm_and_uphold(keys, None, &grounds, by).await;
        confirmed.map(drop).ok_or(WriteError::CacheUnavailable)
    }

    async fn commit<T, R>(
        &self,
        plan: Plan<T>,
        origin: &Origin,
        keys: &[Key],
        cover: Cover,
        deadline: Instant,
        turn: &mut Turn<'_>,
    ) -> Attempt<T, R> {
        let latest_commit = deadline - CONFIRM_RESERVE;
        let cover = match self.renew(cover, keys, latest_commit).await {
            Ok(cover) if Instant::now() <= latest_commit => cover,
            Ok(_) => return Attempt::Done(Err(WriteError::TooLate)),
            Err(error) => return Attempt::Done(Err(uncovered(error))),
        };
        let before = cover.fences();
        let outcome_unknown = match self.store.commit(&plan.steps, origin).await {
            Ok(()) => None,
            Err(CommitError::Stale | CommitError::Conflict) => {
                return Attempt::Again(crowded(&plan.steps, keys));
            }
            Err(CommitError::NotApplied(error)) => {
                return Attempt::Done(Err(WriteError::Store(error)));
            }
            Err(CommitError::OutcomeUnknown(error)) => Some(error),
        };
        // The table is what it was taken for; others need not wait for the cache.
        turn.take();
        let grounds = grounds(plan.upholds);
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
        let by = deadline - ANSWER_RESERVE;
        let confirmed = self.confirm_and_uphold(keys, before, &grounds, by).await;
        // What the decision stands on was so when it was committed.
        self.recent.forget(&required);
        if confirmed.is_none() {
            tracing::warn!("write not confirmed; repairing in the background");
            let grounds = grounds.into_keys();
            self.repair_in_background(keys.iter().cloned().chain(grounds).collect());
        }
        let outcome = match (&outcome_unknown, &confirmed) {
            (Some(_), _) => "unknown",
            (None, None) => "not_confirmed",
            (None, Some(Cover::Fences(_))) => "fenced",
            (None, Some(Cover::Unused(_))) => "without_cache",
        };
        metrics::counter!(WRITES, "outcome" => outcome).increment(1);
        Attempt::Done(match (outcome_unknown, confirmed) {
            (Some(error), _) => Err(WriteError::OutcomeUnknown(error)),
            (None, None) => Err(WriteError::NotConfirmed),
            (None, Some(confirmed)) => {
                if let Cover::Fences(fences) = confirmed {
                    self.publish_in_background(plan.publish, fences, read_time);
                }
                Ok(plan.output)
            }
        })
    }

    /// The cover, made anew if it may be gone before the commit has ended: reading
    /// what decides may take long. The decision need not be made anew, for the
    /// conditions of the commit say whether it still stands.
    async fn renew(
        &self,
        mut cover: Cover,
        keys: &[Key],
        deadline: Instant,
    ) -> Result<Cover, Uncovered> {
        while cover.since().elapsed() > self.settings.timing.fence_max_age {
            cover = self.cover(keys, false, cover.fences(), deadline).await?;
        }
        Ok(cover)
    }

    async fn confirm_and_uphold(
        &self,
        keys: &[Key],
        before: Option<&Fences>,
        grounds: &HashMap<Key, Left>,
        by: Instant,
    ) -> Option<Cover> {
        let confirm = self.confirm(keys, before, by);
        let (confirmed, is_upheld) = join(confirm, self.uphold(grounds, by)).await;
        confirmed.filter(|_| is_upheld)
    }

    /// Makes sure that what an answer stands on is not contradicted by cached
    /// answers. They could only if whoever wrote it did not confirm it.
    async fn uphold(&self, grounds: &HashMap<Key, Left>, deadline: Instant) -> bool {
        if grounds.is_empty() {
            return true;
        }
        let compared = self.compare(grounds).await.into_iter();
        let outdated: Vec<_> = compared
            .filter(|(_, cached)| matches!(cached, Cached::Contradicts | Cached::Unknown))
            .map(|(key, _)| key)
            .collect();
        let is_upheld =
            outdated.is_empty() || self.confirm(&outdated, None, deadline).await.is_some();
        let keys: Vec<_> = grounds.keys().cloned().collect();
        self.recent.forget(&keys);
        is_upheld
    }

    /// Confirms until it works, or until every entry from before has expired.
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

fn uncovered<R>(uncovered: Uncovered) -> WriteError<R> {
    match uncovered {
        Uncovered::TooLate => {
            tracing::warn!("write refused: the cache can be neither fenced nor left in time");
            WriteError::CacheUnavailable
        }
        Uncovered::Store(error) => WriteError::Store(error),
    }
}

/// The records on which a transaction's decision stands.
fn required(steps: &[Step]) -> Vec<Key> {
    let required = steps.iter().filter_map(|step| match step {
        Step::Require { key, .. } => Some(key.clone()),
        _ => None,
    });
    required.collect()
}

/// The record at which changes meet that fail with this one: an organization, if
/// there is one, for all who change its members stand on it.
fn crowded(steps: &[Step], keys: &[Key]) -> Option<Key> {
    let mut organizations = required(steps).into_iter().chain(keys.iter().cloned());
    let organization = organizations.find(|key| matches!(key, Key::Organization(_)));
    organization.or_else(|| keys.first().cloned())
}

fn pause_after(decision: u32) -> Duration {
    let pause = CONTENTION_PAUSE.saturating_mul(2_u32.saturating_pow(decision - 1));
    let pause = pause.min(MAX_CONTENTION_PAUSE);
    backoff::up_to(pause)
}

fn grounds(upholds: Vec<Record>) -> HashMap<Key, Left> {
    let grounds = upholds.into_iter();
    grounds
        .map(|record| (record.key(), Left::Record(record)))
        .collect()
}
