//! The purge of deleted users and organizations once they can no longer be undeleted.

use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use super::{Accounts, Error, Refusal, deletions::delete_at_once, read_set::ReadSet};
use crate::{
    coherence::{Change, Plan, Verdict},
    domain::{Key, Origin, Timestamp},
    store::{self, DynamoDb, ScheduledPurge, Step},
};

impl Accounts {
    /// The scheduled purges that are due for `margin`: replicas have different clocks.
    ///
    /// # Errors
    /// The table could not be read.
    pub async fn due_purges(&self, margin: Duration) -> Result<Vec<ScheduledPurge>, store::Error> {
        self.table.due_purges(self.table.now().before(margin)).await
    }

    /// Purges a user or an organization that is due for `margin`. Returns whether it was purged.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn purge(
        &self,
        purge: ScheduledPurge,
        margin: Duration,
        deadline: Instant,
    ) -> Result<bool, Error> {
        let origin = Origin::background();
        let change = PurgeIfDue {
            purge,
            until: self.table.now().before(margin),
        };
        self.writes.apply(change, origin, deadline, None).await
    }
}

struct PurgeIfDue {
    purge: ScheduledPurge,
    until: Timestamp,
}

#[async_trait]
impl Change for PurgeIfDue {
    type Output = bool;
    type Refusal = Refusal;

    fn touches(&self) -> Vec<Key> {
        vec![self.purge.name.key()]
    }

    async fn decide(&self, table: &DynamoDb) -> Result<Verdict<bool, Refusal>, store::Error> {
        let key = self.purge.name.key();
        let found = ReadSet::read(table, [key.clone()]).await?;
        let record = found.record(&key);
        let scheduled = record.and_then(ScheduledPurge::of);
        let commit = |steps, output| {
            Verdict::Commit(Plan {
                steps,
                publish: Vec::new(),
                premises: Vec::new(),
                output,
            })
        };
        if scheduled.as_ref() != Some(&self.purge) {
            // The record was changed past the service.
            let steps = vec![found.still(key), Step::Unschedule(self.purge.clone())];
            return Ok(commit(steps, false));
        }
        let due = record.filter(|record| {
            let deletion = record.deletion();
            deletion.is_some_and(|deletion| deletion.is_due(self.until))
        });
        let Some(due) = due else {
            return Ok(Verdict::Keep {
                output: false,
                premises: Vec::new(),
            });
        };
        Ok(match delete_at_once(table, due.clone()).await? {
            Ok(steps) => commit(steps, true),
            Err(refused) => refused,
        })
    }
}
