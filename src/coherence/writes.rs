//! Writes: fence what the write can affect, commit, confirm by fencing again,
//! and only then acknowledge.

use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::{join, join_all};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::{Coherence, Entry, FENCE_MAX_AGE, FENCE_TTL, Nonce, Tag};
use crate::{
    cache,
    domain::{Key, Record, Timestamp},
    store::{self, CommitError, Step, StrongReads},
};

/// Longest one attempt to place a fence may take.
const FENCE_TIMEOUT: Duration = Duration::from_millis(250);
/// Attempts to place a fence before a commit.
const FENCE_ATTEMPTS: u32 = 3;
/// Pause between attempts to confirm.
const CONFIRM_PAUSE: Duration = Duration::from_millis(20);
/// A commit does not start with less time than this left to confirm it.
const CONFIRM_RESERVE: Duration = Duration::from_millis(250);
/// Confirming ends this long before the deadline, so that its failure is told.
const ANSWER_RESERVE: Duration = Duration::from_millis(50);
/// Times a change is decided anew because the table changed under it.
const MAX_DECISIONS: u32 = 8;
/// Greatest pause before the second decision; doubled each time.
const CONTENTION_PAUSE: Duration = Duration::from_millis(10);
/// Pause between attempts to repair what could not be confirmed.
const REPAIR_PAUSE: Duration = Duration::from_millis(500);

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
    Keep(T),
    /// Refuse, revealing what the table holds: cached answers must not
    /// contradict it.
    Refuse {
        /// Why.
        refusal: R,
        /// Keys, besides those touched, whose state the refusal reveals.
        reveals: Vec<Key>,
    },
    /// Refuse, revealing nothing.
    Deny(R),
}

/// What to commit.
#[derive(Debug)]
pub struct Plan<T> {
    /// The transaction.
    pub steps: Vec<Step>,
    /// Records to put into the cache once the write is confirmed. Only what
    /// grants: a write that takes something away leaves its fences standing.
    pub publish: Vec<Record>,
    /// What the change returns.
    pub output: T,
}

/// Why a change was not acknowledged.
#[derive(Debug)]
pub enum WriteError<R> {
    /// The change refused.
    Refused(R),
    /// Nothing was changed: the fences could not be placed.
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

/// A fence in place.
struct Fence {
    key: Key,
    /// What is stored.
    bytes: Vec<u8>,
    /// Whether it replaced this write's own earlier fence: then no other writer
    /// has fenced the key since before this write's commit, and none of them
    /// can have been acknowledged with something newer.
    is_unbroken: bool,
}

/// Fences in place on all keys of a write.
struct Fences {
    placed: Vec<Fence>,
    /// When the first of them was sent: none expires earlier than
    /// [`FENCE_TTL`] after this.
    since: Instant,
}

/// What one decision came to.
enum Attempt<T, R> {
    Done(Result<T, WriteError<R>>),
    /// The table changed under the decision.
    Again,
}

impl Coherence {
    /// Applies a change and returns once no replica answers from before it.
    /// Once begun it runs to its end, also if the caller stops waiting.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub async fn apply<C: Change>(
        &self,
        change: C,
        deadline: Instant,
    ) -> Result<C::Output, WriteError<C::Refusal>> {
        if !self.has_room_in_background() {
            return Err(WriteError::Overloaded);
        }
        let coherence = self.clone();
        let run = async move { coherence.run(&change, deadline).await };
        self.background
            .spawn(run)
            .await
            .unwrap_or(Err(WriteError::Interrupted))
    }

    async fn run<C: Change>(
        &self,
        change: &C,
        deadline: Instant,
    ) -> Result<C::Output, WriteError<C::Refusal>> {
        let keys = change.touches();
        for decision in 0..MAX_DECISIONS {
            if decision > 0 {
                let pause = CONTENTION_PAUSE * 2_u32.pow(decision - 1);
                sleep(pause * u32::from(Nonce::random().jitter()) / u32::from(u8::MAX)).await;
            }
            match self.attempt(change, &keys, deadline).await {
                Attempt::Done(result) => return result,
                Attempt::Again => {}
            }
        }
        Err(WriteError::Contention)
    }

    async fn attempt<C: Change>(
        &self,
        change: &C,
        keys: &[Key],
        deadline: Instant,
    ) -> Attempt<C::Output, C::Refusal> {
        if Instant::now() + CONFIRM_RESERVE > deadline {
            return Attempt::Done(Err(WriteError::TooLate));
        }
        let decide = change.decide(self.store.as_ref());
        let (fences, verdict) = join(self.fence(keys), decide).await;
        Attempt::Done(match (verdict, fences) {
            (Err(error), _) => Err(WriteError::Store(error)),
            (Ok(Verdict::Deny(refusal)), _) => Err(WriteError::Refused(refusal)),
            (Ok(_), None) => {
                tracing::warn!("write refused: the cache cannot be fenced");
                Err(WriteError::CacheUnavailable)
            }
            (Ok(Verdict::Commit(plan)), Some(fences)) => {
                return self.commit(plan, keys, &fences, deadline).await;
            }
            (Ok(Verdict::Keep(output)), Some(_)) => {
                let confirmed = self.confirm(keys, &[], deadline).await;
                confirmed
                    .map(|_| output)
                    .ok_or(WriteError::CacheUnavailable)
            }
            (Ok(Verdict::Refuse { refusal, reveals }), Some(_)) => {
                let keys = [reveals.as_slice(), keys].concat();
                let confirmed = self.confirm(&keys, &[], deadline).await;
                Err(match confirmed {
                    Some(_) => WriteError::Refused(refusal),
                    None => WriteError::CacheUnavailable,
                })
            }
        })
    }

    async fn commit<T, R>(
        &self,
        plan: Plan<T>,
        keys: &[Key],
        fences: &Fences,
        deadline: Instant,
    ) -> Attempt<T, R> {
        if Instant::now() + CONFIRM_RESERVE > deadline {
            return Attempt::Done(Err(WriteError::TooLate));
        }
        if fences.since.elapsed() > FENCE_MAX_AGE {
            return Attempt::Again;
        }
        let outcome_unknown = match self.store.commit(&plan.steps).await {
            Ok(()) => None,
            Err(CommitError::Stale | CommitError::Conflict) => return Attempt::Again,
            Err(CommitError::NotApplied(error)) => {
                return Attempt::Done(Err(WriteError::Store(error)));
            }
            Err(CommitError::OutcomeUnknown(error)) => Some(error),
        };
        let read_time = Timestamp::now();
        let confirmed = self.confirm(keys, &fences.placed, deadline).await;
        if confirmed.is_none() {
            tracing::warn!("write not confirmed; repairing in the background");
            self.repair_in_background(keys.to_vec());
        }
        Attempt::Done(match (outcome_unknown, confirmed) {
            (Some(error), _) => Err(WriteError::OutcomeUnknown(error)),
            (None, None) => Err(WriteError::NotConfirmed),
            (None, Some(fences)) => {
                self.publish_in_background(plan.publish, fences, read_time);
                Ok(plan.output)
            }
        })
    }

    /// Fences all keys; `None` if any fence could not be placed.
    async fn fence(&self, keys: &[Key]) -> Option<Fences> {
        let since = Instant::now();
        let placed = join_all(keys.iter().map(|key| async move {
            for _ in 0..FENCE_ATTEMPTS {
                if let Some(fence) = self.place_fence(key).await {
                    return Some(fence);
                }
            }
            None
        }));
        let placed = placed.await.into_iter().collect::<Option<Vec<_>>>()?;
        Some(Fences { placed, since })
    }

    /// Fences all keys again, trying until the deadline, so that nothing that
    /// was read before now can be filled or answered from now on. `own` are the
    /// write's fences from before its commit.
    async fn confirm(&self, keys: &[Key], own: &[Fence], deadline: Instant) -> Option<Vec<Fence>> {
        let placed = join_all(keys.iter().map(|key| async move {
            let own = own.iter().find(|fence| fence.key == *key);
            if let Some(fence) = self.renew_fence(own).await {
                return fence;
            }
            loop {
                if let Some(fence) = self.place_fence(key).await {
                    return fence;
                }
                sleep(CONFIRM_PAUSE).await;
            }
        }));
        timeout_at(deadline - ANSWER_RESERVE, placed).await.ok()
    }

    /// Replaces the write's own fence by another one, if it is still there.
    async fn renew_fence(&self, own: Option<&Fence>) -> Option<Fence> {
        let own = own?;
        let cache_key = self.cache_key(&own.key);
        let bytes = Entry::new(Tag::Fence).encode(&cache_key);
        let stored = self
            .cache
            .set_if_equal(&cache_key, &bytes, &own.bytes, FENCE_TTL);
        is_fence_stored(stored).await.then(|| Fence {
            key: own.key.clone(),
            bytes,
            is_unbroken: true,
        })
    }

    /// Places one fence, whatever is under the key. Each attempt has a nonce of
    /// its own, so that one that is late cannot make the next a no-op.
    async fn place_fence(&self, key: &Key) -> Option<Fence> {
        let cache_key = self.cache_key(key);
        let bytes = Entry::new(Tag::Fence).encode(&cache_key);
        let stored = self.cache.set_if_not_equal(&cache_key, &bytes, FENCE_TTL);
        is_fence_stored(stored).await.then(|| Fence {
            key: key.clone(),
            bytes,
            is_unbroken: false,
        })
    }

    /// Replaces the confirming fences by what was written, so that the next
    /// read is a hit. Where another writer fenced in between, what was written
    /// may be old by now and is left out; where one fences later, its fence
    /// stays.
    fn publish_in_background(
        &self,
        records: Vec<Record>,
        fences: Vec<Fence>,
        read_time: Timestamp,
    ) {
        if records.is_empty() || !self.has_room_in_background() {
            return;
        }
        let coherence = self.clone();
        self.background.spawn(async move {
            let coherence = &coherence;
            join_all(records.into_iter().map(|record| {
                let key = record.key();
                let fence = fences
                    .iter()
                    .find(|fence| fence.key == key && fence.is_unbroken);
                async move {
                    if let Some(Fence { bytes, .. }) = fence {
                        coherence
                            .replace(&key, bytes, Some(record), read_time)
                            .await;
                    }
                }
            }))
            .await;
        });
    }

    /// Fences until it works, or until every entry from before has expired.
    fn repair_in_background(&self, keys: Vec<Key>) {
        let coherence = self.clone();
        self.background.spawn(async move {
            let ages = keys
                .iter()
                .flat_map(|key| [true, false].map(|is_present| coherence.max_age(key, is_present)));
            let longest = ages.max();
            let give_up = Instant::now() + longest.unwrap_or_default();
            while Instant::now() < give_up {
                let until = Instant::now() + FENCE_TIMEOUT + ANSWER_RESERVE;
                if coherence.confirm(&keys, &[], until).await.is_some() {
                    tracing::info!("write confirmed late");
                    return;
                }
                sleep(REPAIR_PAUSE).await;
            }
        });
    }
}

async fn is_fence_stored(stored: impl Future<Output = Result<bool, cache::Error>>) -> bool {
    match timeout(FENCE_TIMEOUT, stored).await {
        Ok(Ok(is_stored)) => is_stored,
        Ok(Err(error)) => {
            tracing::debug!(%error, "fence not placed");
            false
        }
        Err(_) => {
            tracing::debug!("fence not placed: too slow");
            false
        }
    }
}
