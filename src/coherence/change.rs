//! Changes of the table: their decisions, plans and results.

use std::{any::Any, sync::Arc};

use async_trait::async_trait;

use crate::{
    domain::{Key, Record},
    store::{self, DynamoDb, Step},
};

/// A permit that a write holds until it has ended.
pub type HeldPermit = Arc<dyn Any + Send + Sync>;

/// A change of the table. [`super::WritePath::apply`] may call [`Self::decide`] more than once,
/// each time on the present content of the table.
#[async_trait]
pub trait Change: Send + Sync + 'static {
    /// Result of the change.
    type Output: Send + 'static;
    /// Reason of a refusal.
    type Refusal: Send + 'static;

    /// All keys that the change can affect, with or without a record.
    fn touches(&self) -> Vec<Key>;

    /// Whether the plan may publish records, see [`Plan::publish`].
    fn may_publish(&self) -> bool {
        false
    }

    /// Decides, on strong reads only.
    async fn decide(
        &self,
        table: &DynamoDb,
    ) -> Result<Verdict<Self::Output, Self::Refusal>, store::Error>;
}

/// Decision of a change.
#[derive(Debug)]
pub enum Verdict<T, R> {
    /// Commit this plan.
    Commit(Plan<T>),
    /// The table already has the requested state.
    Keep {
        /// Result of the change.
        output: T,
        /// See [`Plan::premises`].
        premises: Vec<Record>,
    },
    /// Refuse, and reveal records of the table. Later reads must not contradict them.
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
    /// The change was refused.
    Refused(R),
    /// Nothing was changed: the cache could be neither fenced nor left in time, or a replica neither
    /// fenced nor evicted.
    CacheUnavailable,
    /// The change was applied, but reads may return older records for a while.
    NotConfirmed,
    /// The table did not report whether the change was applied.
    OutcomeUnknown(store::Error),
    /// Nothing was changed: other writes changed the same records.
    Contention,
    /// Nothing was changed: too many background tasks are running.
    Overloaded,
    /// Nothing was changed: too little time was left.
    TooLate,
    /// Nothing was changed: the table failed.
    Store(store::Error),
    /// The task of the write ended without a result.
    Interrupted,
}
